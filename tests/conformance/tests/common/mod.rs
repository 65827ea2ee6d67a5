//! Starts the real server in this process: broker, gRPC services and transport over any backend.

#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::Arc;
use std::time::Duration;

use databroker_conformance::{Format, Outcome, Report, Selection, Settings, Suite, Target};
use databroker_host::backend::{Backend, StoreInfo, native, new_server_version};
use databroker_host::broker::{self, Broker};
use databroker_host::component::{self, Source};
use databroker_host::data::Descriptors;
use databroker_host::grpc::auth::Guard;
use databroker_host::server;
use databroker_host::settings::SharedSecret;
use databroker_host::telemetry::Instruments;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Settings so short that the cases which wait for their end can run.
pub const HISTORY: Duration = Duration::from_secs(3);
pub const CLEAN_INTERVAL: Duration = Duration::from_secs(1);
pub const SERVICE_TTL: Duration = Duration::from_secs(2);

/// A server that runs until it is stopped.
pub struct Server {
    /// Where it is.
    pub target: Target,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), server::ServerError>>,
}

impl Server {
    /// Serves a backend on a free port of this machine.
    pub async fn start(
        backend: Arc<dyn Backend>,
        info: StoreInfo,
        descriptors: Arc<Descriptors>,
        config: broker::Config,
    ) -> Self {
        Self::with_secret(&SharedSecret::generate(), backend, info, descriptors, config).await
    }

    /// The same, with the secret that other servers of the same store have.
    pub async fn with_secret(
        shared_secret: &SharedSecret,
        backend: Arc<dyn Backend>,
        info: StoreInfo,
        descriptors: Arc<Descriptors>,
        config: broker::Config,
    ) -> Self {
        let settings = Settings {
            history: (config.history <= HISTORY).then_some(config.history),
            clean_interval: (config.clean_interval <= CLEAN_INTERVAL).then_some(config.clean_interval),
            service_ttl: (config.service_ttl <= SERVICE_TTL).then_some(config.service_ttl),
        };
        let broker = Broker::start(backend, info, config, descriptors)
            .await
            .expect("a broker");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("the port's number"));
        let target = Target::new(&address, &shared_secret.to_base64(), settings).expect("a target");
        let instruments = Instruments::default();
        let config = server::Config {
            guard: Guard::new(shared_secret, Arc::clone(&instruments.metrics)),
            grace_period: watch::channel(Duration::from_secs(10)).1,
            tls: None,
            limits: server::Limits {
                connections: 1024,
                streams: 4096,
            },
            calls: Default::default(),
            instruments,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let signals = futures::stream::once(async {
            let _ = stopped.await;
        });
        let task = tokio::spawn(server::run(listener, broker, config, signals));
        Self { target, stop, task }
    }

    /// Shuts the server down; a disorderly end is a failure.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.expect("the server's task").expect("an orderly end");
    }
}

/// Panics with the report unless everything is as expected.
pub fn assert_success(report: &Report) {
    let text = report.write(Format::Text).expect("a report");
    assert!(report.is_success(), "{text}");
    println!("{text}");
}

/// The suite passes on a plugin.
pub async fn plugin_passes(plugin: Source) {
    let (descriptors, _) = settings();
    let (backend, info) = component::open(component::Config::new(plugin), Arc::clone(&descriptors))
        .await
        .expect("the plugin");
    passes(backend, info, descriptors, short()).await;
}

/// A case that only ever skips checks nothing: with all settings given, none may.
pub async fn passes(backend: Arc<dyn Backend>, info: StoreInfo, descriptors: Arc<Descriptors>, config: broker::Config) {
    let server = Server::start(backend, info, descriptors, config).await;
    let report = Suite::run(&server.target, &Selection::default()).await;
    assert_success(&report);
    for case in &report.cases {
        assert!(
            !matches!(case.outcome, Outcome::Skipped(_)),
            "{} was skipped",
            case.name
        );
    }
    server.stop().await;
}

/// A broker that forgets and cleans so soon that no case has to be skipped.
pub fn short() -> broker::Config {
    broker::Config {
        history: HISTORY,
        clean_interval: CLEAN_INTERVAL,
        service_ttl: SERVICE_TTL,
        ..broker::Config::default()
    }
}

/// What a native store is opened with.
pub fn settings() -> (Arc<Descriptors>, native::Settings) {
    let descriptors = Arc::new(Descriptors::built_in());
    let settings = native::Settings {
        connection_string: None,
        new_server_version: new_server_version(0),
        descriptors: Arc::clone(&descriptors),
    };
    (descriptors, settings)
}
