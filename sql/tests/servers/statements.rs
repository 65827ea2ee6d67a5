//! Values there and back, bounds, transactions, cancellation, notifications, errors.

use std::time::Duration;

use databroker_sql::{ErrorKind, Isolation, Statement, TransactionOptions, Value, Wake};
use postgres_server::{PgBouncer, PoolMode, PostgresServer};

use super::{WAIT, eventually, kind, one, open, run, statement};

#[tokio::test]
async fn values_come_back_as_they_went() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&server.url()).await.unwrap();
    let values = [
        Value::Boolean(true),
        Value::Integer(i64::MIN),
        Value::Float(0.1),
        Value::Text("ü'\"\\".to_owned()),
        Value::Bytes(vec![0, 255, 7]),
        Value::Timestamp(1_700_000_000_123_456),
        Value::Timestamp(-1),
        Value::Booleans(vec![Some(true), None, Some(false)]),
        Value::Integers(vec![]),
        Value::Integers(vec![Some(-1), None]),
        Value::Floats(vec![Some(1.5)]),
        Value::Texts(vec![Some(String::new()), None, Some("{a,b}".to_owned())]),
        Value::ByteStrings(vec![Some(vec![]), Some(vec![0])]),
        Value::Timestamps(vec![Some(0), None]),
    ];
    // The same text with parameters of other types each time.
    for value in &values {
        let rows = run(&pool, "SELECT $1", std::slice::from_ref(value)).await.unwrap();
        assert_eq!(rows.rows, [[value.clone()]]);
    }
    for (sql, expected) in [
        ("1::int2", Value::Integer(1)),
        ("4000000000::oid", Value::Integer(4_000_000_000)),
        ("1.5::real", Value::Float(1.5)),
        ("'{\"a\": 1}'::jsonb", Value::Text("{\"a\": 1}".to_owned())),
        ("'10.0.0.0/8'::cidr", Value::Text("10.0.0.0/8".to_owned())),
        ("'2001:db8::1'::inet", Value::Text("2001:db8::1".to_owned())),
        (
            "'0123456789abcdef0123456789abcdef'::uuid",
            Value::Text("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
        ),
        (
            "'2000-01-01T00:00:00Z'::timestamptz",
            Value::Timestamp(946_684_800_000_000),
        ),
        ("NULL::text", Value::Null),
        ("ARRAY[1, 2]::int4[]", Value::Integers(vec![Some(1), Some(2)])),
    ] {
        assert_eq!(
            run(&pool, &format!("SELECT {sql}"), &[]).await.unwrap().rows,
            [[expected]],
            "{sql}"
        );
    }
    let error = run(&pool, "SELECT 1.5::numeric", &[]).await.unwrap_err();
    assert!(
        error.to_string().contains("NUMERIC, which is not supported: cast it"),
        "{error}"
    );
    let error = run(&pool, "SELECT $1", &[Value::Text("a\0b".to_owned())])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("NUL"), "{error}");
    assert_eq!(one(&pool, "2 + 2").await, "4", "the pool works on");
}

#[tokio::test]
async fn a_batch_is_one_statement_and_bounds_hold() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&server.url()).await.unwrap();
    run(&pool, "CREATE TABLE t (id bigint, name text)", &[]).await.unwrap();
    let count = 5000;
    let parameters = [
        Value::Integers((0..count).map(Some).collect()),
        Value::Texts(
            (0..count)
                .map(|number| (number % 2 == 0).then(|| number.to_string()))
                .collect(),
        ),
    ];
    let sql = "INSERT INTO t SELECT * FROM unnest($1, $2)";
    assert_eq!(run(&pool, sql, &parameters).await.unwrap().affected, 5000);
    assert_eq!(one(&pool, "SELECT count(name) FROM t").await, "2500");

    let bounded = |max_rows, max_bytes| Statement {
        max_rows,
        max_bytes,
        ..statement("SELECT * FROM t", &[])
    };
    assert_eq!(kind(pool.run(&bounded(4999, 1 << 30), WAIT).await), ErrorKind::TooLarge);
    assert_eq!(kind(pool.run(&bounded(5000, 1000), WAIT).await), ErrorKind::TooLarge);
    let all = pool.run(&bounded(5000, 1 << 30), WAIT).await.unwrap();
    assert_eq!(all.rows.len(), 5000);
}

#[tokio::test]
async fn a_transaction_is_committed_or_never_was() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&format!("{}?pool_max_conns=2", server.url())).await.unwrap();
    run(&pool, "CREATE TABLE t (id bigint PRIMARY KEY)", &[]).await.unwrap();
    let options = TransactionOptions::default();
    let insert = |sql| statement(sql, &[]);

    let mut committed = pool.begin(&options, WAIT).await.unwrap();
    committed.run(&insert("INSERT INTO t VALUES (1)")).await.unwrap();
    committed.commit().await.unwrap();

    let mut dropped = pool.begin(&options, WAIT).await.unwrap();
    dropped.run(&insert("INSERT INTO t VALUES (2)")).await.unwrap();
    drop(dropped);

    let mut rolled_back = pool.begin(&options, WAIT).await.unwrap();
    rolled_back.run(&insert("INSERT INTO t VALUES (3)")).await.unwrap();
    rolled_back.rollback().await.unwrap();

    // Postgres itself would answer this commit without an error.
    let mut failed = pool.begin(&options, WAIT).await.unwrap();
    failed.run(&insert("INSERT INTO t VALUES (4)")).await.unwrap();
    assert_eq!(
        failed
            .run(&insert("INSERT INTO t VALUES (1)"))
            .await
            .unwrap_err()
            .code(),
        Some("23505")
    );
    assert_eq!(kind(failed.commit().await), ErrorKind::Statement);

    let mut reading = pool
        .begin(
            &TransactionOptions {
                isolation: Isolation::RepeatableRead,
                read_only: true,
            },
            WAIT,
        )
        .await
        .unwrap();
    assert_eq!(
        kind(reading.run(&insert("INSERT INTO t VALUES (5)")).await),
        ErrorKind::ReadOnly
    );
    drop(reading);

    eventually("the roll-back", async || {
        one(&pool, "SELECT array_agg(id) FROM t").await == "{1}"
    })
    .await;
    // Whatever was dropped is not in the way.
    for _ in 0..8 {
        drop(pool.begin(&options, WAIT).await.unwrap());
    }
}

#[tokio::test]
async fn what_is_dropped_or_late_is_cancelled_at_the_server() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&format!("{}?pool_max_conns=2", server.url())).await.unwrap();
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'";
    let slow = statement("SELECT pg_sleep(600)", &[]);

    let running = tokio::time::timeout(Duration::from_millis(300), pool.run(&slow, WAIT));
    assert!(running.await.is_err());
    eventually("the end of what was dropped", async || {
        one(&pool, sleeping).await == "0"
    })
    .await;

    let late = Statement {
        timeout: Duration::from_millis(300),
        ..slow
    };
    assert_eq!(kind(pool.run(&late, WAIT).await), ErrorKind::Timeout);
    eventually("the end of what was late", async || one(&pool, sleeping).await == "0").await;

    // The pool has its connections back.
    eventually("an idle pool", async || pool.statistics().acquired == 0).await;
}

#[tokio::test]
async fn a_statement_that_catches_its_cancellation_ends_too() {
    const STUBBORN: &str =
        "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$";
    const LEFT: &str = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO %'";
    let server = PostgresServer::start().unwrap();
    let pool = open(&format!("{}?pool_max_conns=2", server.url())).await.unwrap();
    let stubborn = Statement {
        timeout: Duration::from_millis(100),
        ..statement(STUBBORN, &[])
    };
    for _ in 0..4 {
        let outcomes = tokio::join!(pool.run(&stubborn, WAIT), pool.run(&stubborn, WAIT));
        assert_eq!(
            (kind(outcomes.0), kind(outcomes.1)),
            (ErrorKind::Timeout, ErrorKind::Timeout)
        );
    }
    eventually("the end of them all", async || server.sql(LEFT).unwrap() == "0").await;
    eventually("an idle pool", async || pool.statistics().acquired == 0).await;
}

#[tokio::test]
async fn a_held_connection_is_nobody_elses() {
    let server = PostgresServer::start().unwrap();
    let bouncer = PgBouncer::start(&server, PoolMode::Transaction, 4).unwrap();
    for url in [server.url(), bouncer.url()] {
        let pool = open(&format!("{url}?pool_max_conns=1")).await.unwrap();
        let asking = statement("SELECT 1", &[]);
        let (rows, held) = pool.run_and_hold(&asking, WAIT).await.unwrap();
        assert_eq!(rows.rows, [[Value::Integer(1)]]);
        let refused = pool.run(&asking, Duration::from_millis(100)).await;
        assert_eq!(kind(refused), ErrorKind::OutOfConnections, "{url}");
        drop(held);
        pool.run(&asking, WAIT).await.unwrap();
        assert_eq!(pool.statistics().new_connections, 1, "{url}");
    }
}

/// What statements outside of transactions leave in their session.
#[tokio::test]
async fn a_renewed_pool_has_nothing_of_its_sessions() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&server.url()).await.unwrap();
    run(&pool, "CREATE TABLE t ()", &[]).await.unwrap();
    run(&pool, "SELECT pg_advisory_lock(1)", &[]).await.unwrap();
    run(&pool, "SET application_name = 'mine'", &[]).await.unwrap();
    run(&pool, "BEGIN", &[]).await.unwrap();
    run(&pool, "LOCK TABLE t", &[]).await.unwrap();
    let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' OR relation = 't'::regclass";
    assert_eq!(server.sql(held).unwrap(), "2");
    pool.renew();
    eventually("the end of its locks", async || server.sql(held).unwrap() == "0").await;
    assert_ne!(one(&pool, "current_setting('application_name')").await, "mine");
}

#[tokio::test]
async fn the_pool_is_bounded_and_its_age_is_too() {
    let server = PostgresServer::start().unwrap();
    let url = format!(
        "{}?pool_max_conns=2&pool_min_conns=1&pool_max_conn_lifetime=200ms&pool_health_check_period=50ms",
        server.url()
    );
    let pool = open(&url).await.unwrap();
    let options = TransactionOptions::default();
    let held = [
        pool.begin(&options, WAIT).await.unwrap(),
        pool.begin(&options, WAIT).await.unwrap(),
    ];
    let error = pool.begin(&options, Duration::from_millis(100)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfConnections);
    assert!(error.to_string().contains("of 2 in the pool"), "{error}");
    assert_eq!(pool.statistics().acquired, 2);
    drop(held);
    let first = one(&pool, "SELECT pg_backend_pid()").await;
    eventually("another connection", async || {
        one(&pool, "SELECT pg_backend_pid()").await != first
    })
    .await;
    eventually("one that is kept", async || {
        pool.statistics().lifetime_closed > 2 && pool.statistics().idle == 1
    })
    .await;
}

#[tokio::test]
async fn notifications_come_and_what_is_missed_is_told() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&server.url()).await.unwrap();
    let mut listener = pool.listen(vec!["one".to_owned(), "Two".to_owned()]);
    assert_eq!(listener.wait(WAIT).await, Wake::Missed, "it has only begun to listen");
    run(&pool, "SELECT pg_notify('Two', 'payload')", &[]).await.unwrap();
    assert_eq!(listener.wait(WAIT).await, Wake::Notified);
    assert_eq!(listener.wait(Duration::from_millis(50)).await, Wake::Elapsed);

    server
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
        .unwrap();
    assert_eq!(listener.wait(WAIT).await, Wake::Missed, "its connection broke");
    assert_eq!(listener.wait(WAIT).await, Wake::Missed, "it has only begun to listen");
    run(&pool, "SELECT pg_notify('Two', 'payload')", &[]).await.unwrap();
    assert_eq!(listener.wait(WAIT).await, Wake::Notified);
}

#[tokio::test]
async fn failures_are_told_apart() {
    let server = PostgresServer::with(&postgres_server::Options {
        password: Some("right".to_owned()),
        ..Default::default()
    })
    .unwrap();
    let at = format!("127.0.0.1:{}", server.port());
    let trusting = PostgresServer::start().unwrap();
    trusting.sql("CREATE ROLE u LOGIN").unwrap();
    trusting.sql("CREATE DATABASE closed").unwrap();
    trusting.sql("ALTER DATABASE closed ALLOW_CONNECTIONS false").unwrap();
    for (url, expected, text) in [
        (
            format!("postgres://postgres:wrong@{at}/postgres"),
            ErrorKind::Settings,
            "28P01",
        ),
        (
            format!("postgres://nobody@127.0.0.1:{}/postgres", trusting.port()),
            ErrorKind::Settings,
            "28000",
        ),
        (
            format!("postgres://postgres:right@{at}/nothing"),
            ErrorKind::Settings,
            "3D000",
        ),
        (
            format!("postgres://postgres:right@{at}/postgres?options=-c%20nonsense%3D1"),
            ErrorKind::Settings,
            "nonsense",
        ),
        (
            format!("postgres://postgres:right@{at}/postgres?options=-c%20work_mem%3Dnonsense"),
            ErrorKind::Settings,
            "work_mem",
        ),
        (
            format!("postgres://u@127.0.0.1:{}/closed", trusting.port()),
            ErrorKind::Unreachable,
            "55000",
        ),
        (
            format!("postgres://postgres:right@{at}/postgres?sslmode=require"),
            ErrorKind::Settings,
            "no TLS",
        ),
        (
            "postgres://u@127.0.0.1:1/d".to_owned(),
            ErrorKind::Unreachable,
            "127.0.0.1:1",
        ),
        (
            "postgres://u@no.such.host.invalid/d".to_owned(),
            ErrorKind::Unreachable,
            "cannot be looked up",
        ),
    ] {
        let error = open(&url).await.unwrap_err();
        assert_eq!(error.kind(), expected, "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(
            !error.to_string().contains("wrong") && !error.to_string().contains("right"),
            "{error}"
        );
    }

    let pool = open(&format!("postgres://postgres:right@{at}/postgres")).await.unwrap();
    run(&pool, "CREATE TABLE t (id bigint PRIMARY KEY)", &[]).await.unwrap();
    run(&pool, "INSERT INTO t VALUES (1), (2)", &[]).await.unwrap();
    assert_eq!(kind(run(&pool, "nonsense", &[]).await), ErrorKind::Statement);
    // A text that the statement itself has made, of a kind that the host logs.
    let raise = "DO $$ BEGIN RAISE EXCEPTION '%', repeat('ü', 1000000) USING ERRCODE = '57014'; END $$";
    let error = run(&pool, raise, &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(error.to_string().len() < 5000, "{} bytes", error.to_string().len());
    run(&pool, "CREATE TABLE named (name text PRIMARY KEY)", &[])
        .await
        .unwrap();
    let process = one(&pool, "SELECT pg_backend_pid()").await;
    let long = "INSERT INTO named SELECT string_agg(md5(n::text), '') FROM generate_series(1, 1000) n";
    let error = run(&pool, long, &[]).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::TooLarge, Some("54000")),
        "{error}"
    );
    assert_eq!(
        one(&pool, "SELECT pg_backend_pid()").await,
        process,
        "the connection is kept"
    );
    let blocked = Statement {
        timeout: Duration::from_secs(5),
        ..statement("SELECT 1", &[])
    };
    drop(pool.run(&blocked, WAIT).await.unwrap());

    // Two transactions that wait for each other.
    let options = TransactionOptions::default();
    let (mut one, mut two) = (
        pool.begin(&options, WAIT).await.unwrap(),
        pool.begin(&options, WAIT).await.unwrap(),
    );
    let update = ["UPDATE t SET id = id WHERE id = 1", "UPDATE t SET id = id WHERE id = 2"];
    one.run(&statement(update[0], &[])).await.unwrap();
    two.run(&statement(update[1], &[])).await.unwrap();
    let (second, first) = (statement(update[1], &[]), statement(update[0], &[]));
    let (one, two) = tokio::join!(one.run(&second), two.run(&first));
    let kinds: Vec<_> = [one, two]
        .into_iter()
        .filter_map(Result::err)
        .map(|error| error.kind())
        .collect();
    assert_eq!(kinds, [ErrorKind::Conflict]);
}

#[tokio::test]
async fn a_password_comes_from_a_file() {
    use std::os::unix::fs::PermissionsExt as _;
    let server = PostgresServer::with(&postgres_server::Options {
        password: Some("pass:word".to_owned()),
        ..Default::default()
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("passwords");
    std::fs::write(&path, format!("127.0.0.1:{}:*:postgres:pass\\:word\n", server.port())).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let pool = open(&format!("{}?passfile={}", server.url(), path.display()))
        .await
        .unwrap();
    assert_eq!(one(&pool, "SELECT current_user").await, "postgres");
}
