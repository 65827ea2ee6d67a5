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
    // What is asked for, how many bytes of it may come, and what the row may take all the same.
    const CASES: [(&str, u64, u64); 2] = [
        // Larger than may come at all.
        ("SELECT repeat('x', 200000000)", 64 << 20, 8 << 20),
        // Small on the way, where each item takes 4 bytes, and eight times as large here.
        ("SELECT array_fill(''::bytea, ARRAY[5000000])", 1 << 20, 100 << 20),
    ];
    let server = PostgresServer::start().unwrap();
    let settings = ConnectionString::parse(&server.url(), &Environment::bare()).unwrap();
    let pool = Pool::guarded(settings, 64 << 20).await.unwrap();
    for (sql, max_bytes, most) in CASES {
        let before = peak();
        let statement = Statement {
            sql,
            parameters: &[],
            max_rows: 10,
            max_bytes,
            timeout: Duration::from_secs(60),
        };
        let wait = Duration::from_secs(10);
        let outcomes = [
            pool.run(&statement, wait),
            pool.run(&statement, wait),
            pool.run(&statement, wait),
        ];
        for outcome in futures::future::join_all(outcomes).await {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TooLarge, "{sql}");
        }
        let taken = peak() - before;
        assert!(
            taken < most,
            "{taken} bytes were taken for rows that nobody gets: {sql}"
        );
    }
}
