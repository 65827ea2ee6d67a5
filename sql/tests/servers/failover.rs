//! Several servers: roles, names that are not known, and a primary that goes.

use std::time::Duration;

use databroker_sql::{ErrorKind, Wake};
use postgres_server::{Options, PostgresServer};

use super::{WAIT, eventually, kind, one, open, run};

#[tokio::test]
async fn the_server_of_the_right_role_is_found() {
    let primary = PostgresServer::start().unwrap();
    let standby = primary.standby().unwrap();
    let both = |first: &PostgresServer, second: &PostgresServer, target: &str| {
        format!(
            "postgres://postgres@no.such.host.invalid,127.0.0.1,127.0.0.1/postgres?port=5432,{},{}&target_session_attrs={target}",
            first.port(),
            second.port()
        )
    };
    for (target, expected) in [
        ("read-write", "f"),
        ("primary", "f"),
        ("read-only", "t"),
        ("standby", "t"),
        ("prefer-standby", "t"),
    ] {
        for url in [both(&primary, &standby, target), both(&standby, &primary, target)] {
            let pool = open(&url).await.unwrap();
            let found = one(&pool, "SELECT pg_is_in_recovery()").await;
            assert!(found.starts_with(expected), "{target}: {found}");
        }
    }
    let pool = open(&both(&standby, &primary, "any")).await.unwrap();
    assert_eq!(
        one(&pool, "SELECT pg_is_in_recovery()").await,
        "true",
        "the first that answers"
    );
    assert_eq!(kind(run(&pool, "CREATE TABLE t ()", &[]).await), ErrorKind::ReadOnly);

    let alone = |server: &PostgresServer, target| format!("{}?target_session_attrs={target}", server.url());
    for (server, target, text) in [
        (&standby, "read-write", "it takes no writes"),
        (&standby, "primary", "it is a standby"),
        (&primary, "standby", "it is no standby"),
        (&primary, "read-only", "it takes writes"),
    ] {
        let error = open(&alone(server, target)).await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::ReadOnly && error.to_string().contains(text),
            "{error}"
        );
    }
    assert!(open(&alone(&primary, "prefer-standby")).await.is_ok());

    // A primary by role, and yet its sessions do not write as they begin.
    let reading = PostgresServer::with(&Options {
        configuration: vec!["default_transaction_read_only = on".to_owned()],
        ..Options::default()
    })
    .unwrap();
    assert_eq!(kind(open(&alone(&reading, "read-write")).await), ErrorKind::ReadOnly);
    assert!(open(&alone(&reading, "read-only")).await.is_ok());
    assert!(open(&alone(&reading, "primary")).await.is_ok());
}

#[tokio::test]
async fn a_promoted_standby_is_found_and_listened_to() {
    let primary = PostgresServer::start().unwrap();
    let standby = primary.standby().unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?target_session_attrs=read-write",
        primary.port(),
        standby.port()
    );
    let pool = open(&url).await.unwrap();
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(WAIT).await, Wake::Missed);
    run(&pool, "CREATE TABLE t (id bigint)", &[]).await.unwrap();
    eventually("the replica", async || {
        standby.sql("SELECT to_regclass('t')").is_ok_and(|name| name == "t")
    })
    .await;

    primary.stop_immediately().unwrap();
    let error = run(&pool, "INSERT INTO t VALUES (1)", &[]).await.unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::FailingOver | ErrorKind::Unreachable),
        "{error}"
    );
    let error = run(&pool, "INSERT INTO t VALUES (1)", &[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailingOver, "{error}");
    for port in [primary.port(), standby.port()] {
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}: ")), "{error}");
    }

    standby.promote().unwrap();
    eventually("a write", async || {
        run(&pool, "INSERT INTO t VALUES (2)", &[]).await.is_ok()
    })
    .await;
    eventually_listening(&mut listener).await;
    run(&pool, "SELECT pg_notify('c', '')", &[]).await.unwrap();
    assert_eq!(listener.wait(WAIT).await, Wake::Notified);
}

/// Waits until the listener hears nothing new, which it says only once it listens.
async fn eventually_listening(listener: &mut databroker_sql::Listener) {
    for _ in 0..50 {
        if listener.wait(Duration::from_millis(200)).await == Wake::Elapsed {
            return;
        }
    }
    panic!("the listener does not find the new primary");
}

#[tokio::test]
async fn a_killed_server_comes_back() {
    let server = PostgresServer::start().unwrap();
    let pool = open(&server.url()).await.unwrap();
    assert_eq!(one(&pool, "1").await, "1");
    server.kill().unwrap();
    eventually("the end", async || run(&pool, "SELECT 1", &[]).await.is_err()).await;
    eventually("the start", async || server.restart().is_ok()).await;
    eventually("an answer", async || run(&pool, "SELECT 1", &[]).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_is_full_is_told_from_one_that_is_gone() {
    let server = PostgresServer::with(&Options {
        configuration: vec![
            "max_connections = 4".to_owned(),
            "superuser_reserved_connections = 0".to_owned(),
            "max_wal_senders = 0".to_owned(),
        ],
        ..Options::default()
    })
    .unwrap();
    let pool = open(&format!("{}?pool_max_conns=9", server.url())).await.unwrap();
    let mut held = Vec::new();
    let error = loop {
        match pool.begin(&databroker_sql::TransactionOptions::default(), WAIT).await {
            Ok(transaction) => held.push(transaction),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::OutOfConnections, "{error}");
    assert!(held.len() >= 3);
}
