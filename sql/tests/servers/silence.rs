//! Servers that are there and say nothing, as those do whose machine or network went without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use databroker_sql::{ErrorKind, Listener, TransactionOptions, Wake};
use postgres_server::PostgresServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{WAIT, open};

/// As long as somebody waits who looks after other things in between.
const SHORT: Duration = Duration::from_millis(500);

/// Passes on what comes, until it swallows everything and keeps all connections open.
struct Relay {
    port: u16,
    silent: Arc<AtomicBool>,
}

impl Relay {
    async fn to(server: &PostgresServer) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silent = Arc::new(AtomicBool::new(false));
        let (flag, to) = (Arc::clone(&silent), server.port());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = TcpStream::connect(("127.0.0.1", to)).await.unwrap().into_split();
                tokio::spawn(pass(from_client, to_server, Arc::clone(&flag)));
                tokio::spawn(pass(from_server, to_client, Arc::clone(&flag)));
            }
        });
        Self { port, silent }
    }

    fn silence(&self) {
        self.silent.store(true, Ordering::SeqCst);
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    silent: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let read = buffer.get(..length).unwrap();
        if !silent.load(Ordering::SeqCst) && to.write_all(read).await.is_err() {
            return;
        }
    }
    if silent.load(Ordering::SeqCst) {
        // Nobody hears of the end either.
        std::future::pending::<()>().await;
    }
}

/// A connection string of the relay, and of the server behind it as the second one.
fn both(relay: &Relay, server: &PostgresServer) -> String {
    format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?connect_timeout=2",
        relay.port,
        server.port()
    )
}

/// Notifies, by a way of its own, until the listener hears of it in one of many short waits.
async fn until_heard(listener: &mut Listener, server: &PostgresServer) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        server.sql("SELECT pg_notify('c', '')").unwrap();
        if listener.wait(SHORT).await == Wake::Notified {
            return;
        }
        assert!(Instant::now() < end, "it does not hear of anything");
    }
}

#[tokio::test]
async fn short_waits_get_past_a_server_that_says_nothing() {
    let server = PostgresServer::start().unwrap();
    let relay = Relay::to(&server).await;
    let pool = open(&both(&relay, &server)).await.unwrap();
    relay.silence();
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(SHORT).await, Wake::Missed, "it does not listen yet");
    until_heard(&mut listener, &server).await;
}

#[tokio::test]
async fn a_listener_notices_that_its_server_says_nothing_any_more() {
    let server = PostgresServer::start().unwrap();
    let relay = Relay::to(&server).await;
    let pool = open(&both(&relay, &server)).await.unwrap();
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(WAIT).await, Wake::Missed, "it has only begun to listen");
    until_heard(&mut listener, &server).await;
    relay.silence();
    until_heard(&mut listener, &server).await;
}

#[tokio::test]
async fn a_standby_that_refuses_to_notify_is_asked_ever_more_seldom_until_it_is_promoted() {
    let primary = PostgresServer::start().unwrap();
    let standby = primary.standby().unwrap();
    let pool = open(&standby.url()).await.unwrap();
    let mut listener = pool.listen(vec!["c".to_owned()]);
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        assert_eq!(listener.wait(SHORT).await, Wake::Missed);
    }
    let log = standby.log().unwrap();
    let tries = log.matches("cannot execute LISTEN during recovery").count();
    // At first, after 0.5 s, 1 s, 2 s and 4 s; a slow machine gets less far.
    assert!((1..=5).contains(&tries), "{tries}: {log}");
    standby.promote().unwrap();
    until_heard(&mut listener, &standby).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_is_told_from_a_pool_that_is_too_small() {
    let server = PostgresServer::start().unwrap();
    let relay = Relay::to(&server).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", relay.port);
    let pool = open(&format!("{url}?pool_max_conns=2")).await.unwrap();
    let options = TransactionOptions::default();
    let _first = pool.begin(&options, WAIT).await.unwrap();
    relay.silence();
    let error = pool.begin(&options, SHORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(error.to_string().contains("no server of Postgres answers"), "{error}");

    let pool = open(&format!("{}?pool_max_conns=1", server.url())).await.unwrap();
    let _only = pool.begin(&options, WAIT).await.unwrap();
    let error = pool.begin(&options, SHORT).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfConnections, "{error}");
    assert!(error.to_string().contains("pool_max_conns"), "{error}");
}
