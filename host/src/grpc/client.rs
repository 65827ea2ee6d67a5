//! The client's side: a connection to any databroker, this host's or Pomerium's own, for the commands.
//!
//! Its errors are its point. Whoever calls by hand mostly has the address, the scheme or the secret wrong, and the
//! transport's own words for these ("frame with invalid size", "InvalidContentType") tell nobody what to change. So
//! connecting is a step of its own, and what goes wrong there and later becomes a [`ClientError`] with a remedy.
//!
//! TLS is done here and not by the transport, which would hide why a handshake failed.

mod tls;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;

pub use tls::{Identity, Trust, TrustError, certificates};

use super::auth::{METADATA_KEY, token};
use crate::secret::SharedSecret;

/// The largest message that is taken, in bytes. This host sends none above 4 MiB; other servers may be set up
/// otherwise.
const MAX_ANSWER: usize = 64 << 20;

/// When the kernel begins to ask whether the server is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// Pings on a connection; Pomerium's own servers take more frequent ones for an attack.
const PING_INTERVAL: Duration = Duration::from_secs(6 * 60);

/// The calls of the databroker, each with a token of its own.
pub type DataBroker = DataBrokerServiceClient<InterceptedService<Channel, Credentials>>;

/// Where to connect to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    address: String,
    host: String,
    port: u16,
    /// Whom to trust; none for plaintext.
    trust: Option<Trust>,
    /// How long connecting and each single answer may take.
    timeout: Duration,
}

impl Target {
    /// A target from `http://HOST:PORT` or `https://HOST:PORT`. Whom to trust is asked for only where the scheme is
    /// https.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`], or what is wrong with the certificates.
    pub fn new(
        address: &str,
        timeout: Duration,
        trust: impl FnOnce() -> Result<Trust, TrustError>,
    ) -> Result<Self, ClientError> {
        // What is before the @ may be a password.
        let shown = address.rsplit_once('@').map_or(address, |(_, host)| host);
        let refuse = || ClientError::Address(shown.to_owned());
        let uri: Uri = address.parse().map_err(|_| refuse())?;
        let authority = uri.authority().ok_or_else(refuse)?;
        let (secure, port) = match uri.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return Err(refuse()),
        };
        if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(refuse());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || (authority.as_str().ends_with(':')) {
            return Err(refuse());
        }
        Ok(Self {
            address: address.trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(port),
            trust: if secure { Some(trust()?) } else { None },
            timeout,
        })
    }

    /// The address as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    async fn stream(self: Arc<Self>) -> Result<TokioIo<Box<dyn Stream>>, ConnectError> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(ConnectError::Tcp)?;
        let _ = tcp.set_nodelay(true);
        let Some(trust) = &self.trust else {
            return Ok(TokioIo::new(Box::new(tcp)));
        };
        let stream = trust.handshake(&self.host, tcp).await.map_err(ConnectError::Tls)?;
        Ok(TokioIo::new(Box::new(stream)))
    }
}

/// A connection to a databroker.
#[derive(Clone, Debug)]
pub struct Client {
    target: Arc<Target>,
    channel: Channel,
}

impl Client {
    /// Connects, within the target's time.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unreachable`] with what to do.
    pub async fn connect(target: &Target) -> Result<Self, ClientError> {
        let target = Arc::new(target.clone());
        let unreachable = |cause, remedy| ClientError::Unreachable {
            address: target.address.clone(),
            cause,
            remedy,
        };
        // The transport sees plaintext, since TLS is done below it; the URI serves as the calls' authority.
        let uri = format!(
            "http://{}",
            target.address.split_once("://").map_or("", |(_, rest)| rest)
        );
        let endpoint = Endpoint::from_shared(uri)
            .map_err(|_| ClientError::Address(target.address.clone()))?
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_while_idle(false)
            .tcp_keepalive(Some(TCP_KEEPALIVE));
        let connector = tower::service_fn({
            let target = Arc::clone(&target);
            move |_: Uri| Arc::clone(&target).stream()
        });
        let connecting = endpoint.connect_with_connector(connector);
        let channel = match tokio::time::timeout(target.timeout, connecting).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => {
                let (cause, remedy) = explain(&error);
                return Err(unreachable(cause, remedy));
            }
            Err(_) => {
                return Err(unreachable(
                    format!("no connection within {}", humantime::format_duration(target.timeout)),
                    "check the address and what is between here and there, or allow more with --timeout",
                ));
            }
        };
        Ok(Self { target, channel })
    }

    /// The calls of the databroker.
    pub fn databroker(&self, secret: &SharedSecret) -> DataBroker {
        let credentials = Credentials(secret.clone());
        DataBrokerServiceClient::with_interceptor(self.channel.clone(), credentials)
            .max_decoding_message_size(MAX_ANSWER)
    }

    /// The health service, which asks for no token.
    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    /// Waits for an answer, within the target's time.
    ///
    /// # Errors
    ///
    /// What the server says, or why it says nothing.
    pub async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, ClientError> {
        match tokio::time::timeout(self.target.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(self.failed(&Status::deadline_exceeded(format!(
                "no answer within {}; allow more with --timeout",
                humantime::format_duration(self.target.timeout)
            )))),
        }
    }

    /// What a status that is no success means to the caller.
    pub fn failed(&self, status: &Status) -> ClientError {
        let address = self.target.address.clone();
        // A status with a source was made here: the transport has failed, and the server has said nothing.
        if status.source().is_some() && status.code() != Code::Unauthenticated && !is_too_large(status) {
            return ClientError::Broken {
                address,
                cause: root_cause(status),
                remedy: if self.target.trust.is_some() {
                    "is it a databroker's gRPC address?"
                } else {
                    "is it a databroker's gRPC address? Where it has TLS, write https://"
                },
            };
        }
        match status.code() {
            Code::Unauthenticated => ClientError::Refused(address),
            code => ClientError::Failed {
                address,
                code,
                message: status.message().to_owned(),
                remedy: remedy(status),
            },
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none.
    #[error("{0:?} is not an address: write http://HOST:PORT, or https://HOST:PORT where the databroker has TLS")]
    Address(String),
    /// The certificates to connect with cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Nobody is there, or nobody who speaks TLS as we do.
    #[error("cannot reach {address}: {cause}: {remedy}")]
    Unreachable {
        /// The address.
        address: String,
        /// The transport's words.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The connection broke, or what is at the other end is no gRPC server.
    #[error("the connection to {address} broke: {cause}: {remedy}")]
    Broken {
        /// The address.
        address: String,
        /// The transport's words.
        cause: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The token was not accepted.
    #[error("{0} does not accept the token: SHARED_SECRET is another there, or the clocks differ; its log says why")]
    Refused(String),
    /// The call failed.
    #[error("{address} answers {code:?}: {message}{remedy}")]
    Failed {
        /// The address.
        address: String,
        /// The status.
        code: Code,
        /// What it says.
        message: String,
        /// What to do, or nothing where the message says it.
        remedy: &'static str,
    },
}

impl ClientError {
    /// The status code of an answer, where there was one.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(_) => Some(Code::Unauthenticated),
            Self::Failed { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// True where the same call may succeed later: nobody is there, or not ready.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Failed { code, .. } => matches!(code, Code::Unavailable | Code::DeadlineExceeded),
            _ => false,
        }
    }
}

/// What to do about a status, where its message does not say it.
fn remedy(status: &Status) -> &'static str {
    match status.code() {
        _ if is_too_large(status) => {
            "; a message holds 4 MiB at most: ask for fewer records with --limit, or put smaller ones"
        }
        Code::Unimplemented => "; is it a databroker, and of a version that has this call?",
        _ => "",
    }
}

/// True for a message above its bound, for which each implementation has a code of its own.
fn is_too_large(status: &Status) -> bool {
    let message = status.message();
    matches!(status.code(), Code::ResourceExhausted | Code::OutOfRange)
        && (message.contains("larger than") || message.contains("too large") || message.contains("4 MiB"))
}

/// Adds a new token to each call.
#[derive(Clone)]
pub struct Credentials(SharedSecret);

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let unusable = |error: &dyn fmt::Display| Status::internal(format!("cannot make a token: {error}"));
        let token = token(&self.0).map_err(|error| unusable(&error))?;
        let token = MetadataValue::try_from(token).map_err(|error| unusable(&error))?;
        request.metadata_mut().insert(METADATA_KEY, token);
        Ok(request)
    }
}

/// What connections are made of: TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Which step of connecting failed.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("{0}")]
    Tcp(io::Error),
    #[error("{0}")]
    Tls(io::Error),
}

/// What went wrong while connecting, and what to do about it.
fn explain(error: &(dyn Error + 'static)) -> (String, &'static str) {
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<ConnectError>() {
            Some(ConnectError::Tls(error)) => return tls::explain(error),
            Some(ConnectError::Tcp(error)) => {
                return match error.kind() {
                    io::ErrorKind::ConnectionRefused => (
                        "connection refused".to_owned(),
                        "nothing listens there; start the databroker, or name another with --address",
                    ),
                    _ => (
                        error.to_string(),
                        "check the address and the network, or name another with --address",
                    ),
                };
            }
            None => next = error.source(),
        }
    }
    (
        root_cause(error),
        "is it a databroker's gRPC address? Where it has TLS, write https://",
    )
}

/// The innermost error, which is the one that says something.
fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;

    fn target(address: &str) -> Result<Target, ClientError> {
        Target::new(address, Duration::from_secs(5), || {
            Trust::new(Vec::new(), Vec::new(), None, None)
        })
    }

    #[test]
    fn addresses_are_urls_with_a_host_and_nothing_behind_it() {
        let cases = [
            ("http://127.0.0.1:5443", Some(("127.0.0.1", 5443))),
            ("http://[::1]:5443/", Some(("::1", 5443))),
            ("http://databroker", Some(("databroker", 80))),
            ("127.0.0.1:5443", None),
            ("", None),
            ("ftp://databroker", None),
            ("http://", None),
            ("http://:5443", None),
            ("http://databroker:", None),
            ("http://user:password@databroker", None),
            ("http://databroker/path", None),
            ("http://databroker?x=1", None),
            ("http://data broker", None),
        ];
        for (address, expected) in cases {
            let found = target(address).ok();
            let found = found.as_ref().map(|target| (target.host.as_str(), target.port));
            assert_eq!(found, expected, "{address:?}");
        }
        for address in [
            "http://user:hunter2@databroker",
            "user:hunter2@databroker",
            "http://user:hun@ter2@host/x",
        ] {
            let error = format!("{0} {0:?}", target(address).unwrap_err());
            assert!(!error.contains("hun") && error.contains("http://HOST:PORT"), "{error}");
        }
    }

    #[tokio::test]
    async fn tls_where_there_is_none_and_none_where_there_is_tls_are_told_apart() {
        // A server that answers whatever comes with what a plaintext HTTP/2 server says first.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"\0\0\0\x04\0\0\0\0\0").await;
            }
        });
        let authority = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let trust = Trust::new(vec![authority.cert.der().clone()], Vec::new(), None, None).unwrap();
        let target = Target::new(&format!("https://127.0.0.1:{port}"), Duration::from_secs(5), || {
            Ok(trust)
        })
        .unwrap();
        let error = Client::connect(&target).await.unwrap_err();
        assert!(error.to_string().contains("write http://"), "{error}");
        assert!(error.is_unavailable());
    }
}
