//! The connections of a listener: accepted, encrypted where there is a certificate, and counted.
//!
//! The beginning of each, a TLS handshake or the first byte, is waited for in a task of its own, for a bounded time, so
//! that a client that does not go on keeps nobody else waiting, and does not stay. How many there may be, and which has
//! to go for another, is in `connections/open.rs`; `connections/gathered.rs` sends together what is ready together.

mod gathered;
mod open;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::stream::{self, Stream};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, rustls};
use tonic::transport::server::{Connected, TcpConnectInfo};

use self::gathered::Gathered;
use self::open::OpenConnection;
pub(crate) use self::open::one_client;
pub use self::open::{OpenConnections, Peer};
use crate::listener;
use crate::telemetry::seldom::Seldom;

/// How long that beginning may take: the TLS handshake, or the first byte.
const HANDSHAKE_TIME_LIMIT: Duration = Duration::from_secs(10);

/// When the kernel begins to ask an idle connection whether its client is still there, and how often it then does.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How often the same thing is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The connections of a listener, as the transport takes them. The stream never ends. Every connection is counted in
/// `open` from here on until it is dropped.
pub fn incoming(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    open: OpenConnections,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let incoming = Incoming {
        listener,
        tls,
        open,
        handshakes: JoinSet::new(),
        accept_errors: Seldom::default(),
        refusals: BTreeMap::new(),
    };
    stream::unfold(incoming, |mut incoming| async {
        let connection = incoming.next().await;
        Some((Ok(connection), incoming))
    })
}

/// A connection to a client, encrypted or not.
pub struct Connection {
    bytes: Gathered<Box<dyn Bytes>>,
    info: TcpConnectInfo,
    open: OpenConnection,
}

/// What carries bytes both ways.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Bytes for T {}

struct Incoming {
    listener: TcpListener,
    /// None where connections are not encrypted.
    tls: Option<TlsAcceptor>,
    open: OpenConnections,
    /// Those that are under way.
    handshakes: JoinSet<Result<Connection, Failed>>,
    accept_errors: Seldom,
    /// By reason, of which there are as many as [`reason`] knows.
    refusals: BTreeMap<&'static str, Seldom>,
}

impl Incoming {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                Some(done) = self.handshakes.join_next() => match done {
                    Ok(Ok(connection)) => return connection,
                    Ok(Err(failed)) => self.tell(&failed),
                    Err(error) => tracing::error!(%error, "a connection failed by a fault of the server"),
                },
                (socket, peer) = accept(&self.open, &self.listener, &mut self.accept_errors) => {
                    self.begin(socket, peer);
                }
            }
        }
    }

    fn begin(&mut self, socket: TcpStream, peer: SocketAddr) {
        let Some((open, displaced)) = self.open.open(peer.ip()) else {
            self.tell_reason(peer, ALL_KNOWN);
            return;
        };
        if displaced {
            self.tell_reason(peer, DISPLACED);
        }
        prepare(&socket);
        let info = socket.connect_info();
        let greeting = greet(socket, self.tls.clone());
        self.handshakes.spawn(async move {
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(HANDSHAKE_TIME_LIMIT, greeting) => greeted,
                () = open.cut() => Ok(Err(io::Error::other(Foreign(CUT)))),
            };
            match greeted {
                Ok(Ok(bytes)) => Ok(Connection {
                    bytes: Gathered::new(bytes),
                    info,
                    open,
                }),
                Ok(Err(error)) => Err(Failed { peer, error }),
                Err(_) => Err(Failed {
                    peer,
                    error: io::ErrorKind::TimedOut.into(),
                }),
            }
        });
    }

    fn tell(&mut self, failed: &Failed) {
        let Failed { peer, error } = failed;
        let reason = reason(error);
        tracing::debug!(%peer, reason, %error, "a connection came to nothing");
        self.tell_reason(*peer, reason);
    }

    fn tell_reason(&mut self, peer: SocketAddr, reason: &'static str) {
        let refusals = self.refusals.entry(reason).or_default();
        if let Some(untold) = refusals.turn(Instant::now(), LOG_INTERVAL) {
            tracing::info!(%peer, reason, untold, "refused a connection");
        }
    }
}

/// Accepts a connection once there is room for it.
async fn accept(open: &OpenConnections, listener: &TcpListener, errors: &mut Seldom) -> (TcpStream, SocketAddr) {
    open.few_leaving().await;
    listener::accept(listener, errors).await
}

/// What is said where there are as many connections as there may be.
const ALL_KNOWN: &str = "GRPC_MAX_CONNECTIONS connections of clients with a token are open: set a larger number, or look \
                         who opens them";
const DISPLACED: &str =
    "GRPC_MAX_CONNECTIONS connections are open, so that one without a token was closed for this one";
const CUT: &str = "GRPC_MAX_CONNECTIONS connections are open, and this one had shown no token";

/// Does the TLS handshake. On a plain connection, waits for the first byte and looks whether it is one of HTTP/2: who
/// speaks something else would be told nothing, and nobody here either.
async fn greet(socket: TcpStream, tls: Option<TlsAcceptor>) -> io::Result<Box<dyn Bytes>> {
    let Some(tls) = tls else {
        let mut first = [0];
        return match socket.peek(&mut first).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ if first == *b"P" => Ok(Box::new(socket)),
            // How a TLS handshake begins.
            _ if first == [22] => Err(io::Error::other(Foreign(
                "the client speaks TLS, and this server does not: its address for this server must be http, or this server \
                 needs a certificate",
            ))),
            _ => Err(io::Error::other(Foreign("the client does not speak HTTP/2"))),
        };
    };
    Ok(Box::new(tls.accept(socket).await?))
}

/// The client speaks something else.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Foreign(&'static str);

/// A handshake that came to nothing.
struct Failed {
    peer: SocketAddr,
    error: io::Error,
}

/// Why a handshake failed, with what can be done about it.
fn reason(error: &io::Error) -> &'static str {
    use rustls::{AlertDescription, Error};
    if let Some(Foreign(reason)) = error.get_ref().and_then(|error| error.downcast_ref()) {
        return reason;
    }
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidMessage(_)) => "the client does not speak TLS: its address for this server must be https",
        Some(Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::BadCertificate | AlertDescription::CertificateUnknown,
        )) => "the client does not trust this server's certificate: give it the certificate authority",
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "to the client this server's certificate has expired: renew it, or compare the clocks"
        }
        Some(Error::AlertReceived(_)) => "the client has broken off the TLS handshake",
        Some(Error::NoCertificatesPresented) => "the client has no certificate, and this server asks for one",
        Some(Error::InvalidCertificate(_)) => "the client's certificate is not one that this server accepts",
        Some(Error::PeerIncompatible(_)) => "the client and this server have no version or cipher of TLS in common",
        Some(_) => "the client breaks the rules of TLS",
        None if error.kind() == io::ErrorKind::TimedOut => "the client connected and did not go on",
        None => "the client closed the connection before it was of use",
    }
}

/// Without these a connection is slower, or found to be dead later: no reason to refuse it.
fn prepare(socket: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let set = socket
        .set_nodelay(true)
        .and_then(|()| SockRef::from(socket).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set the options of a connection");
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.open.peer(self.info.clone())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connection").field("info", &self.info).finish()
    }
}

impl Connection {
    /// Whatever the transport waits for, it hears when the connection has to end.
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        match self.open.poll_cut(context) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.bytes).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.bytes).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.bytes).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.bytes).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.bytes).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

    use std::pin::pin;
    use std::sync::Arc;

    use futures::StreamExt as _;
    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A certificate for `localhost`: what a server is to have, and what a client that trusts it.
    fn tls() -> (TlsAcceptor, TlsConnector) {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key.into())
            .unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server).into(), Arc::new(client).into())
    }

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// The client says `hello`, the server `world`.
    async fn talk(mut client: impl Bytes, mut server: Connection) {
        client.write_all(b"hello").await.unwrap();
        client.flush().await.unwrap();
        let mut heard = [0; 5];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        server.write_all(b"world").await.unwrap();
        // A flush alone would leave it to the next one.
        server.shutdown().await.unwrap();
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"world");
    }

    #[tokio::test]
    async fn a_connection_knows_its_peer_and_is_counted_while_it_lasts() {
        let (listener, address) = listen().await;
        let open = OpenConnections::new(8);
        let mut incoming = pin!(incoming(listener, None, open.clone()));
        // Who speaks TLS here is refused, and the next one is not.
        let mut encrypted = TcpStream::connect(address).await.unwrap();
        encrypted.write_all(&[22, 3, 1]).await.unwrap();
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"P").await.unwrap();
        let mut server = incoming.next().await.unwrap().unwrap();
        assert_eq!(server.connect_info().address(), client.local_addr().ok());
        assert_eq!(server.read_u8().await.unwrap(), b'P');
        tokio::select! {
            // It is closed, in an orderly way or not.
            _ = encrypted.read_u8() => {}
            _ = incoming.next() => panic!("a connection came of it"),
        }
        assert_eq!(open.count(), 1);
        talk(client, server).await;
        assert_eq!(open.count(), 0);
    }

    #[tokio::test]
    async fn a_client_that_does_not_shake_hands_keeps_no_other_waiting() {
        let (listener, address) = listen().await;
        let (acceptor, connector) = tls();
        let open = OpenConnections::new(8);
        let mut incoming = pin!(incoming(listener, Some(acceptor), open.clone()));
        let silent = TcpStream::connect(address).await.unwrap();
        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();

        let socket = TcpStream::connect(address).await.unwrap();
        let peer = socket.local_addr().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let both = async { tokio::join!(connector.connect(name, socket), incoming.next()) };
        let (client, server) = tokio::time::timeout(PATIENCE, both)
            .await
            .expect("the handshake waits for another one");
        let (client, server) = (client.unwrap(), server.unwrap().unwrap());
        assert_eq!(server.connect_info().address(), Some(peer));
        talk(client, server).await;

        // The plain one was refused, which its client sees.
        let refused = async {
            let mut answer = Vec::new();
            let _ = plain.read_to_end(&mut answer).await;
        };
        tokio::select! {
            () = refused => {}
            _ = incoming.next() => panic!("a connection came of it"),
            () = tokio::time::sleep(PATIENCE) => panic!("the connection stays open"),
        }
        assert_eq!(open.count(), 1, "of the one that says nothing");
        drop(silent);
    }

    #[test]
    fn reasons_say_what_to_do() {
        use rustls::{AlertDescription, Error, InvalidMessage};
        for (error, part) in [
            (Error::InvalidMessage(InvalidMessage::InvalidContentType), "https"),
            (Error::AlertReceived(AlertDescription::UnknownCA), "authority"),
            (Error::NoCertificatesPresented, "no certificate"),
            (Error::DecryptError, "rules of TLS"),
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            assert!(reason(&error).contains(part), "{error}: {}", reason(&error));
        }
        assert!(reason(&io::ErrorKind::UnexpectedEof.into()).contains("closed"));
        assert!(reason(&io::ErrorKind::TimedOut.into()).contains("did not go on"));
    }
}
