//! The server: a listener, the services, and an orderly end.
//!
//! What a shutdown does, in this order, so that clients neither lose what was acknowledged nor take the end for their
//! own:
//!
//! 1. health says NOT_SERVING, so that nobody new is sent here;
//! 2. the broker ends all streams and refuses new calls, both with UNAVAILABLE, finishes the writes that wait and
//!    closes the backend;
//! 3. calls that wait for their clients are ended with UNAVAILABLE, too, and connections are told to go away;
//! 4. once no call is open any more, connections have a moment to close; those that do not are dropped.
//!
//! All of it has a grace period, which only a client that does not take its answers can use up; what is not done by
//! then is broken off. A further signal breaks it off at once.
//!
//! A store whose plugin has stopped will not answer again. Then the server ends with an error, in the same order, so
//! that whatever supervises the process starts a new one.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Either};
use futures::stream::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::{TlsAcceptor, rustls};
use tonic::transport;

use crate::broker::Broker;
use crate::connections::{self, OpenConnections};
use crate::grpc;
use crate::grpc::auth::Guard;
use crate::grpc::call::CallLayer;
use crate::grpc::health::{HealthService, Reporter, State};
use crate::grpc::open_calls::OpenCalls;
use crate::grpc::opening::Opening;
use crate::grpc::room::Room;
use crate::telemetry::Instruments;

/// Flow control: how far a client may be ahead on one stream, and on one connection, in bytes. It is what a connection
/// holds of requests that wait; on a long way of 100 ms it still lets 10 MiB through in a second.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Most calls at a time on one connection. A Pomerium process has up to 16 streams, and a databroker of Pomerium's that
/// follows this one forwards those of all its clients over one connection: those of 64 processes here. One more would wait
/// for ever, so there is room; against it stands that the metadata of so many calls may come in one go, before any of them
/// is looked at.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// Most bytes of a call's metadata. Pomerium sends about 1 KiB: a token, and what traces add.
const HEADER_BYTES: u32 = 16 << 10;

/// How many calls that clients broke off may wait on a connection. Where it is exceeded all streams of the connection
/// go, so it leaves room for a proxy whose clients run into their deadlines together.
const PENDING_RESETS: usize = 256;

/// How many streams of a connection may be reset for what the client did wrong in them, before the connection is ended.
const RESETS_FOR_ERRORS: usize = 256;

/// How often an idle connection is asked whether the client is still there, and how long that may take. Clients that
/// are gone without a word are found by this.
const PING_INTERVAL: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long connections without calls have to take what was written to them and to close.
const LINGER: Duration = Duration::from_secs(1);

/// How much there may be at a time. What is not a setting is in `grpc/room.rs` and above.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections.
    pub connections: usize,
    /// Streams of all connections together.
    pub streams: usize,
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who may call.
    pub guard: Guard,
    /// How long a shutdown may take, as it is set when that begins.
    pub grace_period: watch::Receiver<Duration>,
    /// What connections are encrypted with; none for plain ones.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// How much there may be at a time.
    pub limits: Limits,
    /// Where it counts the calls that are open, for whoever wants to know.
    pub calls: OpenCalls,
    /// What is told of calls and connections, and of whether they are served.
    pub instruments: Instruments,
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The services cannot be put together.
    #[error("cannot describe the services for reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport has failed.
    #[error("the transport failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The transport has ended without having been told to.
    #[error("no more connections are taken, and nobody has asked for that")]
    Ended,
    /// The backend did not close in order.
    #[error("closing the store failed: {0}; what was acknowledged may not be safe")]
    Close(#[from] crate::broker::BrokerError),
    /// The storage plugin is gone.
    #[error("the storage plugin has stopped: {0}; the log says more, and a restart opens the store again")]
    Stopped(String),
    /// The grace period ran out.
    #[error("calls were broken off: they were not done {0:?} after the shutdown began")]
    Grace(Duration),
    /// A second signal came.
    #[error("the shutdown was broken off by a second signal")]
    BrokenOff,
}

/// Serves a store that is open already; see [`Server::run`].
///
/// # Errors
///
/// [`ServerError`]; after a signal, if the shutdown was not an orderly one.
pub async fn run(
    listener: TcpListener,
    broker: Arc<Broker>,
    config: Config,
    signals: impl Stream<Item = ()>,
) -> Result<(), ServerError> {
    Server::new(listener, config).run(broker, signals).await
}

/// A server on a listener. It answers while one of its functions is awaited.
pub struct Server {
    /// Answers calls.
    serving: BoxFuture<'static, Result<(), tonic::transport::Error>>,
    /// Has it take no more connections, and end once there are none.
    stop: oneshot::Sender<()>,
    services: Opening,
    health: HealthService,
    reporter: Reporter,
    guard: Guard,
    grace_period: watch::Receiver<Duration>,
    calls: OpenCalls,
    instruments: Instruments,
}

impl Server {
    /// A server whose store is not open yet.
    pub fn new(listener: TcpListener, config: Config) -> Self {
        let Config {
            guard,
            grace_period,
            tls,
            limits,
            calls,
            instruments,
        } = config;
        let (reporter, health) = Reporter::new();
        let services = Opening::new(health.clone());
        let open = OpenConnections::new(limits.connections);
        let observed = open.clone();
        let metrics = Arc::clone(&instruments.metrics);
        metrics.observe_connections(move || observed.count());
        let incoming = connections::incoming(listener, tls.map(TlsAcceptor::from), open);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = transport::Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
            .http2_max_local_error_reset_streams(Some(RESETS_FOR_ERRORS))
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .layer(CallLayer::new(calls.clone(), Room::new(limits.streams), metrics))
            .serve_with_incoming_shutdown(services.clone(), incoming, async {
                // The sender is dropped only with the server, which takes this one along.
                let _ = stopped.await;
            });
        Self {
            serving: serving.boxed(),
            stop,
            services,
            health,
            reporter,
            guard,
            grace_period,
            calls,
            instruments,
        }
    }

    /// Answers that the store is not open yet, until this is done, which opens it.
    ///
    /// # Errors
    ///
    /// [`ServerError::Transport`] or [`ServerError::Ended`]; nothing more is answered then.
    pub async fn until<T>(&mut self, opened: impl Future<Output = T>) -> Result<T, ServerError> {
        match futures::future::select(pin!(opened), &mut self.serving).await {
            Either::Left((opened, _)) => Ok(opened),
            Either::Right((ended, _)) => {
                ended?;
                Err(ServerError::Ended)
            }
        }
    }

    /// Serves until the first of the signals, and then until all is done or the next of them; see the head of this file.
    ///
    /// # Errors
    ///
    /// [`ServerError`]; after a signal, if the shutdown was not an orderly one.
    pub async fn run(self, broker: Arc<Broker>, signals: impl Stream<Item = ()>) -> Result<(), ServerError> {
        let Self {
            mut serving,
            stop,
            services,
            health,
            reporter,
            guard,
            grace_period,
            calls,
            instruments,
        } = self;
        let Instruments { metrics, health: board } = instruments;
        let mut signals = pin!(signals);
        metrics.observe_broker(&broker);
        services.open(grpc::routes(&broker, &guard, health)?);
        let reporting = async {
            reporter.probe(&broker).await;
            board.serving();
            reporter.follow(&broker).await
        };

        let failure = tokio::select! {
            ended = &mut serving => {
                broker.shutdown().await?;
                ended?;
                return Err(ServerError::Ended);
            }
            cause = reporting => Some(cause),
            _ = signals.next() => None,
        };

        let grace_period = *grace_period.borrow();
        tracing::info!(failure, ?grace_period, "shutting down");
        board.draining();
        reporter.set(State::NotServing);
        let drained = async {
            let closed = broker.shutdown().await;
            calls.end();
            // The other end is waited for below.
            let _ = stop.send(());
            calls.none().await;
            closed
        };
        let done = async {
            match futures::future::select(pin!(drained), &mut serving).await {
                Either::Left((closed, serving)) => {
                    // Who has no call loses nothing where it does not close in time.
                    let _ = tokio::time::timeout(LINGER, serving).await;
                    closed
                }
                Either::Right((_, drained)) => drained.await,
            }
        };
        let next_signal = async {
            if signals.next().await.is_none() {
                std::future::pending().await
            }
        };
        let done = tokio::select! {
            done = tokio::time::timeout(grace_period, done) => done,
            () = next_signal => return Err(ServerError::BrokenOff),
        };
        match (failure, done) {
            (Some(cause), _) => Err(ServerError::Stopped(cause)),
            (None, Ok(closed)) => {
                closed?;
                tracing::info!("all calls are done");
                Ok(())
            }
            (None, Err(_)) => Err(ServerError::Grace(grace_period)),
        }
    }
}
