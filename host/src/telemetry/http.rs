//! The HTTP listeners of metrics and health.
//!
//! HTTP/1.1, with or without TLS. They are for a few clients that an operator knows, so that bounds are narrow: a
//! client that says nothing, or holds many connections, can keep others out for a while but takes no memory worth
//! speaking of.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::seldom::Seldom;
use crate::listener;

/// Most connections at a time; further ones wait.
const CONNECTIONS: usize = 64;

/// How long a client may take for the handshake and for each request's head, idle time before it included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection may last: an answer that nobody takes does not hold it for ever.
const LIFETIME: Duration = Duration::from_secs(10 * 60);

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// Serves until the shutdown, and then drops what is open.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    // Dropping it ends the connections.
    let mut connections = JoinSet::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut errors = Seldom::default();
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&room).acquire_owned().await.ok();
            (listener::accept(&listener, &mut errors).await, permit)
        };
        let ((stream, peer), permit) = tokio::select! {
            () = &mut shutdown => return,
            accepted = accepted => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (tls, router) = (tls.clone(), router.clone());
        connections.spawn(async move {
            let served = tokio::time::timeout(LIFETIME, connection(stream, tls, router)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(%peer, %error, "an HTTP connection has failed");
            }
            drop(permit);
        });
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match tls {
        None => requests(stream, router).await,
        Some(acceptor) => {
            let secured = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
            requests(secured, router).await
        }
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, router: Router) -> io::Result<()> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        // Probes and scrapes are rare, and who stays would keep others out.
        .keep_alive(false)
        .header_read_timeout(PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::net::SocketAddr;

    use axum::routing::get;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;
    use tokio_rustls::TlsConnector;

    use super::*;

    /// A listener that answers `/` with a word, until it is told to stop.
    async fn listen(tls: Option<TlsAcceptor>) -> (SocketAddr, oneshot::Sender<()>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new().route("/", get(|| async { "well" }));
        let task = tokio::spawn(serve(listener, tls, router, async {
            let _ = stopped.await;
        }));
        (address, stop, task)
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_until_the_shutdown() {
        let (address, stop, task) = listen(None).await;
        let answer = ask(TcpStream::connect(address).await.unwrap()).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with("well"),
            "{answer}"
        );

        // A client that says nothing does not hold up the end.
        let mut silent = TcpStream::connect(address).await.unwrap();
        stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
        assert_eq!(
            silent.read(&mut [0; 1]).await.unwrap_or(0),
            0,
            "the connection is closed"
        );
    }

    #[tokio::test]
    async fn answers_over_tls() {
        let provider = || Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let (address, _stop, _task) = listen(Some(TlsAcceptor::from(Arc::new(server)))).await;

        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = TlsConnector::from(Arc::new(client));
        let plain = TcpStream::connect(address).await.unwrap();
        let secured = connector
            .connect(ServerName::try_from("localhost").unwrap(), plain)
            .await
            .unwrap();
        let answer = ask(secured).await;
        assert!(answer.ends_with("well"), "{answer}");
    }
}
