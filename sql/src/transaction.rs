//! A transaction: committed, or it never was.

use std::time::Duration;

use super::error::{Error, ErrorKind};
use super::pool::Acquired;
use super::statement::{self, Rows, Statement};

/// How much a transaction sees of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement sees what was committed before it.
    #[default]
    ReadCommitted,
    /// All statements see what was committed before the first one.
    RepeatableRead,
    /// As if transactions ran one after the other. Those that cannot fail with a conflict.
    Serializable,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionOptions {
    /// How much it sees of others.
    pub isolation: Isolation,
    /// True if it only reads.
    pub read_only: bool,
}

/// How long a transaction may idle between statements before the server ends it: one that is held for long keeps the
/// server from cleaning up.
const IDLE: Duration = Duration::from_secs(60);

/// A transaction. It rolls back when it is dropped.
#[derive(Debug)]
pub struct Transaction {
    acquired: Acquired,
    /// True once a statement has failed. The server then answers a commit by rolling back, without an error.
    failed: bool,
}

impl Transaction {
    pub(crate) async fn begin(mut acquired: Acquired, options: &TransactionOptions) -> Result<Self, Error> {
        let isolation = match options.isolation {
            Isolation::ReadCommitted => "READ COMMITTED",
            Isolation::RepeatableRead => "REPEATABLE READ",
            Isolation::Serializable => "SERIALIZABLE",
        };
        // Never READ WRITE: a server that was set to take no writes, by an operator or because its disk is nearly full, would
        // take them all the same; and a standby refuses it even where nothing is written.
        let access = if options.read_only { ", READ ONLY" } else { "" };
        let sql = format!(
            "BEGIN ISOLATION LEVEL {isolation}{access}; SET LOCAL idle_in_transaction_session_timeout = {}",
            IDLE.as_millis()
        );
        acquired.in_transaction = true;
        let mut transaction = Self {
            acquired,
            failed: false,
        };
        transaction.command(sql).await?;
        Ok(transaction)
    }

    /// Runs a statement.
    ///
    /// # Errors
    ///
    /// [`Error`]; afterwards the transaction can only be rolled back.
    pub async fn run(&mut self, statement: &Statement<'_>) -> Result<Rows, Error> {
        if self.failed {
            return Err(failed());
        }
        let prepare = self.acquired.prepares();
        let result = self
            .acquired
            .using(async |connection| statement::run(connection, statement, prepare).await)
            .await;
        self.failed |= result.is_err();
        result
    }

    /// Commits.
    ///
    /// # Errors
    ///
    /// [`Error`]. Of the kind `Unreachable` or `FailingOver`, it is unknown whether it was committed; of any other, it was
    /// not.
    pub async fn commit(self) -> Result<(), Error> {
        self.commit_and_keep().await.map(drop)
    }

    /// The same, and the connection stays in use.
    pub(crate) async fn commit_and_keep(mut self) -> Result<Acquired, Error> {
        if self.failed {
            return Err(failed());
        }
        self.command("COMMIT".to_owned()).await?;
        self.acquired.in_transaction = false;
        Ok(self.acquired)
    }

    /// Rolls back, and waits for that. Dropping does the same without waiting.
    ///
    /// # Errors
    ///
    /// [`Error`] if the connection broke, with which the transaction has ended too.
    pub async fn rollback(mut self) -> Result<(), Error> {
        self.command("ROLLBACK".to_owned()).await?;
        self.acquired.in_transaction = false;
        Ok(())
    }

    async fn command(&mut self, sql: String) -> Result<(), Error> {
        /// A commit may wait for a standby; nobody waits longer.
        const LONGEST: Duration = Duration::from_secs(60);
        let result = self
            .acquired
            .using(async |connection| {
                let running = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(connection);
                match tokio::time::timeout(LONGEST, running).await {
                    Ok(result) => Ok(result.map(drop)?),
                    Err(_) => Err(Error::new(ErrorKind::Unreachable, "the server does not answer")),
                }
            })
            .await;
        self.failed |= result.is_err();
        result
    }
}

fn failed() -> Error {
    Error::new(
        ErrorKind::Statement,
        "a statement of this transaction has failed, so nothing of it is kept: begin another one",
    )
}
