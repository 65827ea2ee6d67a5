//! What a row that is far too large costs, as the system counts it for this process: so this test is alone in it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use databroker_sql::{ConnectionString, Environment, ErrorKind, Pool, Statement};
use postgres_server::PostgresServer;

/// The most memory that this process has had so far, in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap();
    kibibytes << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_large_takes_no_memory() {
    let server = PostgresServer::start().unwrap();
    let settings = ConnectionString::parse(&server.url(), &Environment::bare()).unwrap();
    let pool = Pool::guarded(settings, 64 << 20).await.unwrap();
    let before = peak();
    let statement = Statement {
        sql: "SELECT repeat('x', 200000000)",
        parameters: &[],
        max_rows: 10,
        max_bytes: 64 << 20,
        timeout: Duration::from_secs(60),
    };
    let wait = Duration::from_secs(10);
    let outcomes = [
        pool.run(&statement, wait),
        pool.run(&statement, wait),
        pool.run(&statement, wait),
    ];
    for outcome in futures::future::join_all(outcomes).await {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TooLarge);
    }
    let taken = peak() - before;
    assert!(taken < 8 << 20, "{taken} bytes were taken for rows that nobody gets");
}
