//! What callers are told before the store is open.

use std::fs;
use std::sync::Arc;

use databroker_host::backend::native::{Native, Settings};
use databroker_host::broker::{self, Broker};
use databroker_host::grpc::auth::{Guard, token};
use databroker_host::listener::listen;
use databroker_host::server::{self, Limits};
use databroker_host::settings::{Address, SharedSecret};
use databroker_host::telemetry::Instruments;
use databroker_proto::databroker::GetRequest;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use tokio::sync::{oneshot, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::operate::{Operated, address, get};
use crate::server::{Connection, Credentials, PATIENCE, SERVER_VERSION, TYPE, descriptors};

/// What becomes of asking for a record that nobody has put.
async fn asked(channel: &Channel, secret: &SharedSecret) -> Status {
    let credentials = Credentials(Some(token(secret).unwrap().try_into().unwrap()));
    let mut client = DataBrokerServiceClient::new(Connection::new(channel.clone(), credentials));
    let request = GetRequest {
        r#type: TYPE.to_owned(),
        id: "nobody".to_owned(),
    };
    let answer = tokio::time::timeout(PATIENCE, client.get(request)).await;
    answer.expect("the call hangs").unwrap_err()
}

fn is_told(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("the store is not open yet"), "{status}");
}

#[tokio::test]
async fn a_database_that_is_waited_for_leaves_nobody_without_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let secret = SharedSecret::generate();
    let content = format!(
        "grpc_address: 127.0.0.1:0\ngrpc_insecure: true\nhealth_check_addr: 127.0.0.1:0\nlog_format: json\nshared_secret: {}\n\
         databroker_storage_type: postgres\n\
         databroker_storage_connection_string: postgres://postgres@127.0.0.1:1/postgres\n",
        secret.to_base64()
    );
    fs::write(&file, content).unwrap();
    let mut operated = Operated::start(&file);
    let probes = address(&operated.line(&["answering probes"]));
    let grpc = address(&operated.line(&["\"listening\""]));
    operated.line(&["the store is not there yet"]);

    let channel = Endpoint::from_shared(format!("http://{grpc}")).unwrap().connect_lazy();
    is_told(&asked(&channel, &secret).await);
    let mut health = HealthClient::new(channel);
    let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    for (path, code) in [("/healthz", 200), ("/startupz", 503), ("/readyz", 503)] {
        let answer = get(&probes, path, "");
        assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {answer}");
    }
    operated.signal("-TERM");
    operated.line(&["told to stop before the store was open"]);
    assert_eq!(operated.serving.0.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn who_was_connected_before_is_served_once_the_store_is_open() {
    let address = Address::parse("127.0.0.1:0").unwrap();
    let listener = listen(&address, "GRPC_ADDRESS").await.unwrap();
    let address = listener.local_addr().unwrap();
    let secret = SharedSecret::generate();
    let instruments = Instruments::default();
    let config = server::Config {
        guard: Guard::new(&secret, Arc::clone(&instruments.metrics)),
        grace_period: watch::channel(PATIENCE).1,
        tls: None,
        limits: Limits {
            connections: 8,
            streams: 8,
        },
        calls: Default::default(),
        instruments,
    };
    let (open, opened) = oneshot::channel::<Arc<Broker>>();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        let mut server = server::Server::new(listener, config);
        let broker = server.until(opened).await.unwrap().unwrap();
        let signals = futures::stream::once(async {
            let _ = stopped.await;
        });
        server.run(broker, signals).await
    });

    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    is_told(&asked(&channel, &secret).await);
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let reflected = reflection.server_reflection_info(futures::stream::pending()).await;
    is_told(&reflected.unwrap_err());
    let mut watch = HealthClient::new(channel.clone());
    let mut watch = watch.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::NotServing
    );

    let settings = Settings {
        connection_string: None,
        new_server_version: SERVER_VERSION,
        descriptors: descriptors(),
    };
    let (backend, info) = Native::open(settings).unwrap();
    let broker = Broker::start(backend, info, broker::Config::default(), descriptors()).await;
    assert!(open.send(broker.unwrap()).is_ok(), "the server has ended");
    // The stream from before goes on.
    let served = tokio::time::timeout(PATIENCE, watch.message()).await;
    assert_eq!(served.unwrap().unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(asked(&channel, &secret).await.code(), Code::NotFound);
    drop((watch, channel));
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}
