//! What a real component gets of a database through `sql`: within which bounds, and what is left of it when it goes.

use std::time::{Duration, Instant};

use databroker_sql::{Error, ErrorKind};
use postgres_server::PostgresServer;

use super::{Log, ask};
use crate::component::Grants;
use crate::component::database::Database;

/// Waits until a statement gives this.
async fn until(server: &PostgresServer, statement: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = server.sql(statement).unwrap();
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{statement} gives {found}, not {expected}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_have_bounds_and_the_password_stays_with_the_host() {
    let server = PostgresServer::start().unwrap();
    let url = format!("postgres://postgres:hunter2@127.0.0.1:{}/postgres", server.port());
    let too_large = "too-large: ";
    let cases: &[(&[&str], &str)] = &[
        (&["database"], "postgres at 127.0.0.1:"),
        (&["run SELECT generate_series(1, 5)"], "5 rows"),
        (&["rows 4", "run SELECT generate_series(1, 5)"], too_large),
        (&["bytes 1000", "run SELECT repeat('x', 1000)"], too_large),
        (&["send 1000"], "done"),
        (&["send 70000000"], too_large),
        // A text.
        (&["text 1000000"], "1 rows"),
        (&["text 1100000"], too_large),
        (&["parameters 100"], "done"),
        (&["parameters 65536"], too_large),
        (&["run COPY (SELECT 1) TO STDOUT"], "statement: COPY is not supported"),
        (&["run COPY (SELECT 1) TO STDOUT", "run SELECT 1"], "1 rows"),
        // Statements beside each other, and again once they have ended.
        (&["crowd 3 60000000 0"], "3 of 3"),
        (&["crowd 3 60000000 0", "crowd 3 60000000 0"], "3 of 3"),
        (&["crowd 5 60000000 60"], "out-of-connections: "),
        (&["timeout 100", "run SELECT pg_sleep(30)"], "timeout: "),
        (&["run SELECT nonsense"], "statement: "),
        // A connection that was left in the middle of an answer is not used for the next one.
        (
            &[
                "rows 1",
                "run SELECT generate_series(1, 5)",
                "rows 9",
                "run SELECT generate_series(1, 5)",
            ],
            "5 rows",
        ),
        (
            &["begin", "run SELECT nonsense", "run SELECT 1"],
            "statement: a statement of this transaction has failed",
        ),
    ];
    for (script, expected) in cases {
        let said = ask(Some(url.clone()), Grants::default(), script).await.unwrap();
        let last = said.last().unwrap();
        assert!(last.starts_with(expected), "{script:?}: {said:?}");
        assert!(!said.concat().contains("hunter2"), "{said:?}");
    }
    until(&server, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active' AND pid <> pg_backend_pid()", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_drops_is_undone() {
    const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
        AND state <> 'idle'";
    let server = PostgresServer::start().unwrap();
    server.sql("CREATE TABLE t (x int)").unwrap();
    let insert = "run INSERT INTO t VALUES (1)";
    // What is done, and how many rows there are then.
    for (script, rows) in [
        (&["begin", insert, "commit"][..], "1"),
        (&["begin", insert, "forget"], "1"),
        (&["begin", insert], "1"),
        (&["drop INSERT INTO t SELECT 1 FROM pg_sleep(30)"], "1"),
        // It catches what would cancel it.
        (
            &[
                "drop DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$",
            ],
            "1",
        ),
        (&[insert], "2"),
    ] {
        ask(Some(server.url()), Grants::default(), script).await.unwrap();
        // Neither a transaction nor a statement is left at the server.
        until(&server, OTHERS, "0").await;
        assert_eq!(server.sql("SELECT count(*) FROM t").unwrap(), rows, "{script:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_takes_no_answers_is_given_no_more_than_there_is_room_for() {
    let server = PostgresServer::start().unwrap();
    let url = format!("{}?pool_max_conns=2", server.url());
    // Two have room in 128 MiB, and two connections keep one each.
    let said = ask(Some(url), Grants::default(), &["bytes 64000000", "hoard 8 60000000 6"])
        .await
        .unwrap();
    let ran: u32 = said[1].strip_suffix(" ran").unwrap().parse().unwrap();
    assert!(ran <= 4, "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_channels_of_a_listener_are_bounded() {
    for (script, may) in [
        ("channels 64 63", true),
        ("channels 65 1", false),
        ("channels 1 64", false),
        ("channels 1 10000000", false),
    ] {
        match ask(None, Grants::default(), &[script]).await {
            Ok(said) => assert!(may && said == ["done"], "{script}: {said:?}"),
            Err(error) => {
                let said = error.to_string();
                assert!(
                    !may && said.contains("with names of 63 bytes at most"),
                    "{script}: {said}"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_end_of_a_failure_is_told_where_it_was_told() {
    let database = Database::new("postgres://u@127.0.0.1:1/d", None).unwrap();
    let log = Log::default();
    let recording = log.record();
    for kind in [ErrorKind::Unreachable, ErrorKind::Settings] {
        for _ in 0..10 {
            let failed: Result<(), Error> = database.ask(async { Err(Error::new(kind, "a failure")) }).await;
            failed.unwrap_err();
            database.ask(async { Ok(()) }).await.unwrap();
        }
    }
    drop(recording);
    let text = log.text();
    assert_eq!(text.matches("the database has failed").count(), 2, "{text}");
    assert_eq!(text.matches("the database answers again").count(), 1, "{text}");
}
