//! The server: a listener, the services, and an orderly end.
//!
//! What a shutdown does, in this order, so that clients neither lose what was acknowledged nor take the end for their own:
//!
//! 1. health says NOT_SERVING, so that nobody new is sent here;
//! 2. the broker ends all streams and refuses new calls, both with UNAVAILABLE, finishes the writes that wait and closes the
//!    backend;
//! 3. connections are told to go away, and close once the calls on them have sent their trailers.
//!
//! All of it has a grace period; what is not done by then is broken off.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, lookup_host};
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::broker::Broker;
use crate::grpc;
use crate::grpc::auth::Guard;
use crate::grpc::call::CallLayer;
use crate::grpc::health::{Reporter, State};
use crate::settings::{Address, SharedSecret};

/// Flow control: how far a client may be ahead on one stream, and on one connection, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Most calls at a time on one connection. A proxy carries those of many clients, a Sync stream for each of their types.
const STREAMS_PER_CONNECTION: u32 = 4096;

/// Most bytes of a call's metadata.
const HEADER_BYTES: u32 = 64 << 10;

/// How many calls that clients broke off may wait on a connection. Where it is exceeded all streams of the connection go, so
/// it leaves room for a proxy whose clients run into their deadlines together.
const PENDING_RESETS: usize = 256;

/// How often an idle connection is asked whether the client is still there, and how long that may take. Clients that are
/// gone without a word are found by this; it is as rare as Pomerium's own.
const PING_INTERVAL: Duration = Duration::from_secs(5 * 60);
const PING_TIMEOUT: Duration = Duration::from_secs(60);

/// When the kernel begins to ask the same, and how often it then does.
const TCP_KEEPALIVE: Duration = Duration::from_secs(15);

/// The kernel's queue of connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// What callers prove themselves with.
    pub shared_secret: SharedSecret,
    /// How long a shutdown may take.
    pub grace_period: Duration,
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", listen_advice(.error))]
    Listen {
        /// The address as it was configured.
        address: String,
        /// What the operating system says.
        error: io::Error,
    },
    /// The services cannot be put together.
    #[error("cannot describe the services for reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport has failed.
    #[error("the transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The backend did not close in order.
    #[error("closing the store failed: {0}; what was acknowledged may not be safe")]
    Close(#[from] crate::broker::BrokerError),
    /// The grace period ran out.
    #[error("calls were broken off: they were not done {0:?} after the shutdown began")]
    Grace(Duration),
}

fn listen_advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another process uses it: stop that one or set another GRPC_ADDRESS".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "not permitted: ports below 1024 need CAP_NET_BIND_SERVICE; set another GRPC_ADDRESS or grant it".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have the address: set another GRPC_ADDRESS".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Listens on an address: without a host on all addresses of this machine, IPv6 and IPv4 alike.
///
/// # Errors
///
/// [`ServerError::Listen`].
pub async fn listen(address: &Address) -> Result<TcpListener, ServerError> {
    let listened = match address.host() {
        "" => listen_everywhere(address.port()),
        host => match lookup_host((host, address.port())).await {
            Ok(found) => listen_on_any(found),
            Err(error) => Err(error),
        },
    };
    listened.map_err(|error| ServerError::Listen {
        address: address.to_string(),
        error,
    })
}

fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let both = bind(SocketAddr::from(([0; 16], port)));
    match both {
        // A kernel without IPv6.
        Err(error) if error.kind() != io::ErrorKind::AddrInUse && error.kind() != io::ErrorKind::PermissionDenied => {
            bind(SocketAddr::from(([0; 4], port)))
        }
        bound => bound,
    }
}

fn listen_on_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpListener> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match bind(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    // A restart does not wait for the connections of the process before to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves until the shutdown, and then until all is done; see the head of this file.
///
/// # Errors
///
/// [`ServerError`]; after a shutdown, if it was not an orderly one.
pub async fn run(
    listener: TcpListener,
    broker: Arc<Broker>,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServerError> {
    let (reporter, health) = Reporter::new();
    reporter.probe(&broker).await;

    let routes = grpc::routes(&broker, &Guard::new(&config.shared_secret), health)?;
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(TCP_KEEPALIVE))
        .with_keepalive_interval(Some(TCP_KEEPALIVE));
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .layer(CallLayer)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async {
            // The sender is dropped only with this function's future, which takes this one along.
            let _ = stopped.await;
        });
    tokio::pin!(serving);

    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = reporter.follow(&broker) => {}
        () = shutdown => {}
    }

    tracing::info!(grace_period = ?config.grace_period, "shutting down");
    reporter.set(State::NotServing);
    let drained = async {
        let closed = broker.shutdown().await;
        reporter.set(State::Ended);
        // The other end is waited for below.
        let _ = stop.send(());
        closed
    };
    let done = tokio::time::timeout(config.grace_period, async { tokio::join!(&mut serving, drained) });
    match done.await {
        Ok((served, closed)) => {
            served?;
            closed?;
            tracing::info!("all calls are done");
            Ok(())
        }
        Err(_) => Err(ServerError::Grace(config.grace_period)),
    }
}
