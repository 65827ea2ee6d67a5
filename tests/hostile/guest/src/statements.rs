//! What it does to its database. What the host says of that is the error of the call.
//!
//! The database has a table `t` of one whole number a row.

use std::future::{Future as _, poll_fn};
use std::task::Poll;

use crate::bindings::databroker::storage::sql::{self, Isolation, Statement};
use crate::bindings::databroker::storage::types::Error;

/// A statement that asks for all that it may have, and more.
fn statement(text: &str) -> Statement {
    Statement {
        text: text.to_owned(),
        parameters: Vec::new(),
        max_rows: u32::MAX,
        max_bytes: u64::MAX,
        timeout: u64::MAX,
    }
}

/// Runs a statement by itself.
pub async fn run(text: &str) -> Result<(), Error> {
    sql::run(statement(text)).await.map(drop).map_err(told)
}

/// Asks whatever can be asked of a database. Each must fail in the same way.
pub async fn without_a_grant() -> Result<(), Error> {
    let asked = [
        sql::connect().await.err(),
        sql::run(statement("SELECT 1")).await.err(),
        sql::begin(Isolation::ReadCommitted, false).await.err(),
    ];
    let mut refused = asked.into_iter().map(|error| match error {
        Some(error @ sql::Error::Settings(_)) => told(error),
        other => Error::Internal(format!("reached: {other:?}")),
    });
    let unlike = refused.find(|error| matches!(error, Error::Internal(_)));
    Err(unlike.unwrap_or_else(|| Error::Unavailable("settings: no database".to_owned())))
}

/// Begins transactions, each with a row of its own, until no more can be begun. Statements by themselves go on meanwhile.
pub async fn leak_transactions() -> Result<(), Error> {
    let refused = loop {
        match sql::begin(Isolation::ReadCommitted, false).await {
            Ok(transaction) => {
                let written = transaction.run(statement("INSERT INTO t VALUES (1)")).await;
                written.map_err(|error| Error::Internal(format!("a transaction is no good: {error:?}")))?;
                std::mem::forget(transaction);
            }
            Err(error) => break error,
        }
    };
    let beside = sql::run(statement("SELECT 1")).await;
    beside.map_err(|error| Error::Internal(format!("nothing runs beside transactions: {error:?}")))?;
    Err(told(refused))
}

/// Listens with one more listener after the other, until it is ended. The first one has connected before there is a second.
pub async fn leak_listeners() -> Result<(), Error> {
    const LISTENING: &str = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    loop {
        let listener = sql::Listener::new(&["t".to_owned()]);
        let mut connected = false;
        while !connected {
            listener.wait(10_000_000).await;
            let rows = sql::run(statement(LISTENING)).await.map_err(told)?.rows;
            connected = !rows.is_empty();
        }
        std::mem::forget(listener);
    }
}

/// Begins to wait again and again, which needs no database, until it is ended.
pub async fn leak_calls() {
    wait_without_end(&sql::Listener::new(&[])).await;
}

/// The same, for a channel whose name is long.
pub async fn listen_to_long_channel() {
    wait_without_end(&sql::Listener::new(&["x".repeat(10 << 20)])).await;
}

async fn wait_without_end(listener: &sql::Listener) {
    loop {
        let mut waiting = Box::pin(listener.wait(u64::MAX));
        poll_fn(|context| {
            let _ = waiting.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
        std::mem::forget(waiting);
    }
}

/// Writes, locks the table against everybody, and traps.
pub async fn trap_in_transaction() -> Result<(), Error> {
    let transaction = sql::begin(Isolation::ReadCommitted, false).await.map_err(told)?;
    for text in ["INSERT INTO t VALUES (1)", "LOCK TABLE t IN ACCESS EXCLUSIVE MODE"] {
        transaction.run(statement(text)).await.map_err(told)?;
    }
    panic!("this is a trap in a transaction")
}

/// An error of the database, as one of the store.
fn told(error: sql::Error) -> Error {
    let (kind, failure) = match error {
        sql::Error::Settings(failure) => ("settings", failure),
        sql::Error::OutOfConnections(failure) => ("out-of-connections", failure),
        sql::Error::Timeout(failure) => ("timeout", failure),
        sql::Error::TooLarge(failure) => ("too-large", failure),
        other => return Error::Internal(format!("{other:?}")),
    };
    Error::Unavailable(format!("{kind}: {}", failure.message))
}
