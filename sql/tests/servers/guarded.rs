//! A pool for statements of somebody who is not trusted, by each way to a server: what is too large is not even received, and all
//! else is as ever.

use std::time::Duration;

use databroker_sql::{
    ConnectionString, Environment, Error, ErrorKind, Pool, Statement, TransactionOptions, Value, Wake,
};
use postgres_server::PostgresServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::tls::{self, Authority};
use super::{WAIT, eventually, kind, one, run, statement};

/// Bytes of a message at most.
const LARGEST: u64 = 64 << 20;

async fn open(text: &str) -> Result<Pool, Error> {
    Pool::guarded(ConnectionString::parse(text, &Environment::bare()).unwrap(), LARGEST).await
}

/// A server, and the ways to it: TCP, its Unix socket, TLS.
fn ways() -> (PostgresServer, [String; 3]) {
    let server = tls::server(
        &Authority::new(),
        "host all all 127.0.0.1/32 trust\nlocal all all trust",
    );
    let socket = format!(
        "host={} port={} user=postgres dbname=postgres pool_max_conns=2",
        server.socket_folder().display(),
        server.port()
    );
    let tcp = format!("{}?pool_max_conns=2", server.url());
    let ways = [
        format!("{tcp}&sslmode=disable"),
        socket,
        format!("{tcp}&sslmode=require"),
    ];
    (server, ways)
}

/// The numbers of the server's processes behind both connections of a pool, which are idle afterwards.
async fn processes(pool: &Pool) -> [Value; 2] {
    let asking = statement("SELECT pg_backend_pid()", &[]);
    let options = TransactionOptions::default();
    let (mut first, mut second) = (
        pool.begin(&options, WAIT).await.unwrap(),
        pool.begin(&options, WAIT).await.unwrap(),
    );
    let processes = [first.run(&asking).await, second.run(&asking).await];
    first.commit().await.unwrap();
    second.commit().await.unwrap();
    processes.map(|rows| rows.unwrap().rows[0][0].clone())
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_server_is_not_taken_for_one_that_fails() {
    const BUSY: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'active' \
        AND pid <> pg_backend_pid()";
    let (server, ways) = ways();
    for way in ways {
        let pool = open(&way).await.unwrap();
        for sql in [
            "SELECT 'and before it', repeat('x', 70000000)",
            "DO $$ BEGIN RAISE NOTICE '%', repeat('x', 70000000); END $$",
            "DO $$ BEGIN RAISE EXCEPTION '%', repeat('x', 70000000); END $$",
        ] {
            let before = processes(&pool).await;
            let error = run(&pool, sql, &[]).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::TooLarge, None),
                "{way}: {error}"
            );
            assert!(
                error
                    .to_string()
                    .contains("is 67 MiB long, and 64 MiB at most are taken: read less at once"),
                "{way}: {error}"
            );
            // One connection is gone, and the other one is good.
            let process = run(&pool, "SELECT pg_backend_pid()", &[]).await.unwrap().rows[0][0].clone();
            assert!(before.contains(&process), "{way}: {process:?} is none of {before:?}");
            eventually("the end of the statement", async || server.sql(BUSY).unwrap() == "0").await;
        }

        let options = TransactionOptions::default();
        let mut transaction = pool.begin(&options, WAIT).await.unwrap();
        let large = statement("SELECT repeat('x', 70000000)", &[]);
        assert_eq!(kind(transaction.run(&large).await), ErrorKind::TooLarge, "{way}");
        assert_eq!(
            kind(transaction.commit().await),
            ErrorKind::Statement,
            "{way}: it has failed"
        );
        assert_eq!(one(&pool, "2 + 2").await, "4", "{way}");
    }
}

#[tokio::test]
async fn types_that_were_made_in_the_database_are_refused_before_anybody_looks_into_them() {
    const MADE: &str = "CREATE TYPE mood AS ENUM ('well'); CREATE TYPE pair AS (one text, other mood); CREATE DOMAIN short AS text; \
        CREATE DOMAIN shorter AS short; CREATE TABLE t (mood mood, short shorter)";
    let (server, ways) = ways();
    server.sql(MADE).unwrap();
    for way in ways {
        let pool = open(&way).await.unwrap();
        let null = [Value::Null];
        for (sql, parameters, place) in [
            ("SELECT 1, NULL::shorter[]", &[][..], "column 2 is"),
            ("SELECT NULL::pair", &[], "column 1 is"),
            ("SELECT * FROM t", &[], "column 1 is"),
            ("INSERT INTO t (mood) VALUES ($1)", &null, "parameter 1 would be"),
            ("SELECT $1::shorter[] IS NULL", &null, "parameter 1 would be"),
        ] {
            let error = run(&pool, sql, parameters).await.unwrap_err();
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::Statement, None),
                "{way}: {sql}: {error}"
            );
            let said = format!("{place} of a type that was made in this database, which is not supported: cast it");
            assert!(error.to_string().starts_with(&said), "{way}: {sql}: {error}");
        }
        // As the error says.
        let text = Value::Text("well".to_owned());
        for (sql, parameters, rows) in [
            ("SELECT NULL::shorter[]::text", &[][..], vec![vec![Value::Null]]),
            ("INSERT INTO t (mood) VALUES ($1::text::mood)", &null, vec![]),
            (
                "INSERT INTO t VALUES ($1::mood, 'a')",
                std::slice::from_ref(&text),
                vec![],
            ),
            // A domain alone is told as what it is one of.
            (
                "SELECT mood::text, short FROM t WHERE short = 'a'",
                &[],
                vec![vec![text.clone(), Value::Text("a".to_owned())]],
            ),
            ("DELETE FROM t", &[], vec![]),
        ] {
            assert_eq!(run(&pool, sql, parameters).await.unwrap().rows, rows, "{way}: {sql}");
        }
        eventually("an idle pool", async || pool.statistics().acquired == 0).await;
    }
}

#[tokio::test]
async fn few_statements_are_kept_and_no_long_ones() {
    const KEPT: &str = "SELECT count(*), coalesce(max(length(statement)), 0) FROM pg_prepared_statements";
    let server = PostgresServer::start().unwrap();
    let pool = open(&format!("{}?pool_max_conns=1", server.url())).await.unwrap();
    let kept = async || match run(&pool, KEPT, &[]).await.unwrap().rows[0][..] {
        [Value::Integer(count), Value::Integer(longest)] => (count, longest),
        ref other => panic!("{other:?}"),
    };
    assert_eq!(kept().await.0, 1, "the question itself");
    for length in [1000, 10_000, 20_000, 1 << 20] {
        run(&pool, &format!("SELECT 1 /*{}*/", "x".repeat(length)), &[])
            .await
            .unwrap();
    }
    let (count, longest) = kept().await;
    assert_eq!(count, 3);
    assert!((10_000..16_384).contains(&longest), "{longest}");
    for number in 0..300 {
        run(&pool, &format!("SELECT {number}"), &[]).await.unwrap();
    }
    assert_eq!(kept().await.0, 64);
}

#[tokio::test]
async fn all_else_is_as_without_a_guard() {
    let (server, ways) = ways();
    for way in ways {
        let pool = open(&way).await.unwrap();
        // Nearly as much as may be: in one row, in many, and the other way.
        let large = async |sql, parameters| {
            let bounds = Statement {
                max_rows: 1_000_000,
                max_bytes: LARGEST,
                ..statement(sql, parameters)
            };
            pool.run(&bounds, WAIT).await.unwrap().rows
        };
        let rows = large("SELECT repeat('x', 60 << 20)", &[]).await;
        assert!(rows == [[Value::Text("x".repeat(60 << 20))]], "{way}");
        let rows = large("SELECT n, repeat('x', n % 50) FROM generate_series(1, 400000) n", &[]).await;
        assert_eq!(rows.len(), 400_000, "{way}");
        assert_eq!(
            rows[399_998],
            [Value::Integer(399_999), Value::Text("x".repeat(49))],
            "{way}"
        );
        let parameters = [Value::Bytes(vec![7; 60 << 20])];
        let rows = large("SELECT $1 = decode(repeat('07', 60 << 20), 'hex')", &parameters).await;
        assert_eq!(rows, [[Value::Boolean(true)]], "{way}");
        assert_eq!(pool.statistics().new_connections, 1, "{way}");

        let error = run(&pool, "nonsense", &[]).await.unwrap_err();
        assert_eq!(error.code(), Some("42601"), "{way}: {error}");
        run(&pool, "CREATE TABLE t (id bigint)", &[]).await.unwrap();
        let mut transaction = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
        transaction
            .run(&statement("INSERT INTO t VALUES (1)", &[]))
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        drop(pool.begin(&TransactionOptions::default(), WAIT).await.unwrap());
        assert_eq!(one(&pool, "SELECT count(*) FROM t").await, "1", "{way}");
        run(&pool, "DROP TABLE t", &[]).await.unwrap();

        let mut listener = pool.listen(vec!["c".to_owned()]);
        assert_eq!(
            listener.wait(WAIT).await,
            Wake::Missed,
            "{way}: it has only begun to listen"
        );
        run(&pool, "SELECT pg_notify('c', '')", &[]).await.unwrap();
        assert_eq!(listener.wait(WAIT).await, Wake::Notified, "{way}");

        let slow = statement("SELECT pg_sleep(600)", &[]);
        let running = tokio::time::timeout(Duration::from_millis(300), pool.run(&slow, WAIT));
        assert!(running.await.is_err());
        eventually("the end of what was dropped", async || {
            server
                .sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'")
                .unwrap()
                == "0"
        })
        .await;

        drop((pool, listener));
        eventually("the end of all connections", async || {
            let others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
            server.sql(others).unwrap() == "0"
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_no_server_of_postgres_is_not_said_to_have_large_rows() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            drop(client.read(&mut [0; 1000]).await);
            drop(client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    let error = open(&format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(
        error.to_string().contains("no server of Postgres answers there"),
        "{error}"
    );
}
