//! The store as a whole, and why its calls fail.

use std::cell::Cell;

use crate::database::{Data, Database, Failure, FailureKind, Query, Row, Session, Value};

/// The key of the advisory lock that all writers take: "databrok" in ASCII.
pub(crate) const WRITERS: i64 = 0x6461_7461_6272_6f6b;

/// Why a call fails, as the interface tells it apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Wrong settings.
    Configuration(String),
    /// Not reachable, or of unknown outcome.
    Unavailable(String),
    /// No room.
    Exhausted(String),
    /// No writes at present.
    ReadOnly(String),
    /// The log no longer reaches back; this is the highest version that is gone.
    Pruned(u64),
    /// A fault of the plugin.
    Internal(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let message = failure.message;
        match failure.kind {
            FailureKind::Settings => Self::Configuration(message),
            FailureKind::Unavailable | FailureKind::Conflict => Self::Unavailable(message),
            FailureKind::ReadOnly => Self::ReadOnly(message),
            FailureKind::Full | FailureKind::TooLarge => Self::Exhausted(message),
            FailureKind::Other => Self::Internal(message),
        }
    }
}

/// Pomerium's tables, and what this host knows of them.
pub struct Store<D, J> {
    pub(crate) database: D,
    pub(crate) data: J,
    /// Every change up to here is visible, or never will be.
    pub(crate) horizon: Cell<i64>,
    /// The sequence that versions come from.
    pub(crate) sequence: String,
}

impl<D: Database, J: Data> Store<D, J> {
    /// Runs a statement by itself.
    pub(crate) async fn run(&self, text: &str, parameters: Vec<Value>) -> Result<Vec<Row>, Error> {
        Ok(self.database.run(Query::new(text, parameters)).await?)
    }

    /// The first row of what a statement gives.
    pub(crate) async fn one(&self, text: &str, parameters: Vec<Value>) -> Result<Row, Error> {
        first(self.run(text, parameters).await?)
    }

    /// Begins a transaction that has writing to itself.
    pub(crate) async fn begin_writing(&self) -> Result<D::Transaction, Error> {
        let transaction = self.database.begin().await?;
        // In a statement of its own: what comes after it sees what those before it have committed.
        let lock = Query::new("SELECT pg_advisory_xact_lock($1)", vec![Value::Integer(WRITERS)]);
        transaction.run(lock).await?;
        Ok(transaction)
    }

    /// Says whether the database answers.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if it does not.
    pub async fn health(&self) -> Result<(), Error> {
        self.run("SELECT 1", Vec::new()).await.map(drop)
    }
}

pub(crate) fn first(rows: Vec<Row>) -> Result<Row, Error> {
    let missing = || {
        Error::Internal("the database gives no row where there is always one: its schema is not Pomerium's".to_owned())
    };
    rows.into_iter().next().ok_or_else(missing)
}

/// A version or another number, as Postgres has it.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A version or another number, as everybody else has it.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
