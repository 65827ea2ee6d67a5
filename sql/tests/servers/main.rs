//! Everything that needs a real server, each test with servers of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::time::{Duration, Instant};

use databroker_sql::{ConnectionString, Environment, Error, ErrorKind, Pool, Rows, Statement, Value};

mod failover;
mod guarded;
mod pooling;
mod silence;
mod statements;
mod tls;

/// How long a test waits for what has to come.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How long a caller waits for a connection.
pub(crate) const WAIT: Duration = Duration::from_secs(5);

pub(crate) async fn open(text: &str) -> Result<Pool, Error> {
    Pool::open(ConnectionString::parse(text, &Environment::bare()).unwrap()).await
}

pub(crate) fn statement<'s>(sql: &'s str, parameters: &'s [Value]) -> Statement<'s> {
    Statement {
        sql,
        parameters,
        max_rows: 1000,
        max_bytes: 1 << 20,
        timeout: Duration::from_secs(10),
    }
}

pub(crate) async fn run(pool: &Pool, sql: &str, parameters: &[Value]) -> Result<Rows, Error> {
    pool.run(&statement(sql, parameters), WAIT).await
}

/// The one value that a statement gives, as text.
pub(crate) async fn one(pool: &Pool, sql: &str) -> String {
    match run(pool, &format!("SELECT ({sql})::text"), &[])
        .await
        .unwrap()
        .rows
        .as_slice()
    {
        [row] => match row.as_slice() {
            [Value::Text(text)] => text.clone(),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so().await {
        assert!(Instant::now() < end, "{what} does not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
