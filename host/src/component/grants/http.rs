//! Outgoing HTTP requests: to granted origins, over connections that are made here.
//!
//! The runtime's own way of sending would look the name up by itself, after every check. So the name is looked up once, the
//! answer is held to the same rules as for TCP, and the connection goes to an address of that answer. Redirects are answers
//! like any other: whoever follows one asks again. A connection serves one request, by HTTP/1.1.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::outgoing_handler::Host as _;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p2::types::{HostFutureIncomingResponse, HostOutgoingRequest};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::Refused;
use super::destination::{Host, Origin};
use super::network::{Network, NoAddress};
use super::open;
use crate::component::state::State;

/// How long connecting may take, and the answer to begin, and each further part of it, where the plugin asks for no less. It
/// is the time of a call that bounds all of it.
const LONGEST: Duration = Duration::from_secs(60);

/// How many bytes of an answer's head are taken.
const MAX_HEAD: usize = 128 * 1024;

/// What an instance needs to send requests.
pub(in crate::component) struct Http {
    context: WasiHttpCtx,
    hooks: Hooks,
}

struct Hooks {
    network: Arc<Network>,
    /// Each request that is under way has a clone.
    under_way: Arc<()>,
    /// How many other things are open, counted when a request begins.
    others: usize,
}

/// Most bytes of the fields of one request or answer: headers and trailers.
const FIELD_BYTES: usize = 8 << 10;

impl Http {
    pub(in crate::component) fn new(network: Arc<Network>) -> Self {
        let mut context = WasiHttpCtx::new();
        context.set_field_size_limit(FIELD_BYTES);
        Self {
            context,
            hooks: Hooks {
                network,
                under_way: Arc::new(()),
                others: 0,
            },
        }
    }

    /// How many requests are under way.
    pub(super) fn under_way(&self) -> usize {
        Arc::strong_count(&self.hooks.under_way).saturating_sub(1)
    }
}

/// Links outgoing requests: WASI's own, but that what is open is counted before each. What sends them cannot see the table
/// of handles.
pub(in crate::component) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type Handle = (Resource<HostOutgoingRequest>, Option<Resource<RequestOptions>>);
    type Handled = Result<Resource<HostFutureIncomingResponse>, ErrorCode>;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    linker.allow_shadowing(true);
    linker.instance("wasi:http/outgoing-handler@0.2.12")?.func_wrap(
        "handle",
        |mut store, (request, options): Handle| -> wasmtime::Result<(Handled,)> {
            let state: &mut State = store.data_mut();
            state.http.hooks.others = open::count(&mut state.table);
            match state.http().handle(request, options) {
                Ok(answer) => Ok((Ok(answer),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.http.hooks,
            table: &mut self.table,
            ctx: &mut self.http.context,
        }
    }
}

/// What goes on with an answer after its head has come.
type Rest = Box<dyn Future<Output = Result<(), Error>> + Send>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Rest,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Rest), Error>> + Send> {
        let under_way = Arc::clone(&self.under_way);
        let network = Arc::clone(&self.network);
        let open = self
            .others
            .saturating_add(Arc::strong_count(&self.under_way).saturating_sub(2));
        if !network.granted().has_room(open, "HTTP request") {
            return Box::new(async { Err(Error::ConnectionLimitReached) });
        }
        Box::new(async move {
            let origin = granted(&network, &request)?;
            let (response, connection) = send(&network, &origin, request, options.unwrap_or_default()).await?;
            let rest = async move {
                let _under_way = under_way;
                connection.await
            };
            Ok((response, Box::new(rest) as Rest))
        })
    }

    // A server that answers nonsense, as often as the plugin likes to ask it, is no news for the log: the plugin is told.
    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        tracing::debug!(error = error.to_string(), "an HTTP request of a plugin has failed");
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, error: &io::Error) -> ErrorCode {
        tracing::debug!(error = error.to_string(), "a plugin's HTTP request was not connected");
        ErrorCode::ConnectionRefused
    }

    fn p2_error_from_tls(&mut self, error: &io::Error) -> ErrorCode {
        tracing::debug!(error = error.to_string(), "TLS of a plugin's HTTP request has failed");
        ErrorCode::TlsProtocolError
    }
}

/// The origin of a request, if it is granted.
fn granted(network: &Network, request: &Request<WasiBody>) -> Result<Origin, Error> {
    let uri = request.uri();
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let origin = Origin::of(tls, authority.as_str()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let granted = network.granted();
    // A tunnel would lead anywhere.
    if *request.method() == Method::CONNECT {
        granted
            .refusals
            .refuse(Refused::Origin, &format!("CONNECT to {origin}"), || {
                "none: HTTP requests make no tunnels".to_owned()
            });
        return Err(Error::HttpRequestDenied);
    }
    if !granted.grants.http_origins.contains(&origin) {
        granted
            .refusals
            .refuse(Refused::Origin, &format!("a request to {origin}"), || {
                format!("DATABROKER_PLUGIN_HTTP_ORIGINS={origin}")
            });
        return Err(Error::HttpRequestDenied);
    }
    Ok(origin)
}

/// Sends a request and waits for the head of the answer.
async fn send(
    network: &Network,
    origin: &Origin,
    mut request: Request<WasiBody>,
    options: RequestOptions,
) -> Result<(Response<WasiBody>, BoxFuture<'static, Result<(), Error>>), Error> {
    let limit = |asked: Option<Duration>| asked.map_or(LONGEST, |asked| asked.min(LONGEST));
    let connected = timeout(limit(options.connect_timeout), connect(network, origin)).await;
    let stream = connected.map_err(|_| Error::ConnectionTimeout)??;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    // Towards a server, a request line has no scheme and no host.
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));

    let mut connection = connection.map(|ended| ended.map_err(Error::from)).boxed().fuse();
    let answer = timeout(limit(options.first_byte_timeout), sender.send_request(request)).fuse();
    let mut answer = std::pin::pin!(answer);
    let response = loop {
        tokio::select! {
            response = &mut answer => break response.map_err(|_| Error::ConnectionReadTimeout)??,
            ended = &mut connection, if !futures::future::FusedFuture::is_terminated(&connection) => ended?,
        }
    };
    let between = limit(options.between_bytes_timeout);
    let response = response.map(|body| StreamBody::new(frames(body, between).boxed()).boxed_unsync());
    let rest = async move {
        if futures::future::FusedFuture::is_terminated(&connection) {
            return Ok(());
        }
        connection.await
    };
    Ok((response, rest.boxed()))
}

/// The parts of an answer, each within a time.
fn frames(
    body: Incoming,
    limit: Duration,
) -> impl futures::Stream<Item = Result<hyper::body::Frame<Bytes>, Error>> + Send {
    futures::stream::unfold(Some(body), move |body| async move {
        let mut body = body?;
        match timeout(limit, body.frame()).await {
            Ok(Some(Ok(frame))) => Some((Ok(frame), Some(body))),
            Ok(Some(Err(error))) => Some((Err(Error::from(error)), None)),
            Ok(None) => None,
            Err(_) => Some((Err(Error::ConnectionReadTimeout), None)),
        }
    })
}

/// What bytes go through.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Connects to the first address of an origin that answers.
async fn connect(network: &Network, origin: &Origin) -> Result<Box<dyn Stream>, Error> {
    let (addresses, name) = match &origin.host {
        Host::Name(name) => {
            let found = network.resolve(name, &BTreeSet::from([origin.port])).await;
            let found = found.map_err(|why| match why {
                NoAddress::Denied => Error::DestinationIpProhibited,
                NoAddress::Malformed => Error::HttpRequestUriInvalid,
                NoAddress::Unresolvable => Error::DnsError {
                    rcode: None,
                    info_code: None,
                },
            })?;
            let name = ServerName::try_from(name.clone())?;
            (found.into_iter().map(|(address, _)| address).collect::<Vec<_>>(), name)
        }
        // The origin names the address itself.
        Host::Range(range) => (vec![range.addr()], ServerName::from(range.addr())),
    };
    let stream = connect_to_one(&addresses, origin.port).await.map_err(Error::Connect)?;
    if !origin.tls {
        return Ok(Box::new(stream));
    }
    let connector = TlsConnector::from(trusted().await?);
    let stream = connector.connect(name, stream).await.map_err(Error::Tls)?;
    Ok(Box::new(stream))
}

async fn connect_to_one(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut failed = io::Error::from(io::ErrorKind::HostUnreachable);
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(*address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Trusts the authorities that this machine trusts. They are read once, at the first request.
async fn trusted() -> Result<Arc<ClientConfig>, Error> {
    static TRUSTED: OnceCell<Arc<ClientConfig>> = OnceCell::const_new();
    let load = || async {
        let found = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
        let found = found.map_err(|_| Error::ConfigurationError)?;
        for error in &found.errors {
            tracing::warn!(
                error = error.to_string(),
                "an authority that this machine trusts cannot be read"
            );
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|_| Error::ConfigurationError)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    };
    TRUSTED.get_or_try_init(load).await.cloned()
}
