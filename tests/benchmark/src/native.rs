//! Our host without the plugin's boundary: the same services and broker over the native backend. What a component costs
//! is the difference.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use databroker_host::backend::{native, new_server_version};
use databroker_host::broker::{self, Broker};
use databroker_host::data::Descriptors;
use databroker_host::grpc::auth::Guard;
use databroker_host::server;
use databroker_host::settings::SharedSecret;
use databroker_host::telemetry::Instruments;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Serves until the process is killed.
pub(crate) async fn serve(
    address: SocketAddr,
    shared_secret: &str,
    connection_string: Option<String>,
) -> anyhow::Result<()> {
    let descriptors = Arc::new(Descriptors::built_in());
    let (backend, info) = native::Native::open(native::Settings {
        connection_string,
        new_server_version: new_server_version(0),
        descriptors: Arc::clone(&descriptors),
    })?;
    let instruments = Instruments::default();
    // As the host does: what it costs to count is not the boundary's.
    let backend = instruments.measure(backend);
    let broker = Broker::start(backend, info, broker::Config::default(), descriptors).await?;
    let listener = TcpListener::bind(address).await?;
    let shared_secret = SharedSecret::parse(shared_secret).context("the shared secret")?;
    let config = server::Config {
        guard: Guard::new(&shared_secret, Arc::clone(&instruments.metrics)),
        grace_period: watch::channel(Duration::from_secs(10)).1,
        tls: None,
        calls: Default::default(),
        limits: server::Limits {
            connections: 8192,
            streams: 8192,
        },
        instruments,
    };
    server::run(listener, broker, config, futures::stream::pending()).await?;
    Ok(())
}
