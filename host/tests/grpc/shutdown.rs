//! The end of the server, as clients see it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use databroker_host::component::{self, Limits, Restarts, Source};
use databroker_host::grpc::auth::token;
use databroker_host::server::ServerError;
use databroker_host::settings::SharedSecret;
use databroker_proto::databroker as proto;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::registry::ListRequest;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::program::{Serving, program};
use crate::server::{Connection, Credentials, PATIENCE, SERVER_VERSION, Server, TYPE, deletion, descriptors, record};

fn assert_shutting_down(status: &Status) {
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "the databroker is shutting down")
    );
}

#[tokio::test]
async fn streams_end_with_unavailable_and_what_was_written_is_safe() {
    let server = Server::start().await;
    let start = proto::SyncRequest {
        server_version: SERVER_VERSION,
        r#type: TYPE.to_owned(),
        ..Default::default()
    };
    let mut synced = server.client().sync(start).await.unwrap().into_inner();
    let mut services = server
        .registry_client()
        .watch(ListRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut health = HealthClient::new(server.channel.clone())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        health.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    assert!(services.message().await.unwrap().is_some());
    let written = server.put(vec![record("a", "x")]).await;
    assert!(synced.message().await.unwrap().is_some());
    assert_eq!(written.records.len(), 1);

    server.stop();
    let patiently = |what| async move {
        tokio::time::timeout(PATIENCE, what)
            .await
            .expect("the stream does not end")
    };
    let status = patiently(synced.message()).await.unwrap_err();
    // The text is the server's own: it came in trailers, and no reset was taken for it.
    assert_shutting_down(&status);
    let status = tokio::time::timeout(PATIENCE, services.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_shutting_down(&status);
    let message = tokio::time::timeout(PATIENCE, health.message()).await.unwrap();
    match message {
        Ok(Some(message)) => {
            assert_eq!(message.status(), ServingStatus::NotServing);
            let status = tokio::time::timeout(PATIENCE, health.message())
                .await
                .unwrap()
                .unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::Unavailable, "the databroker is shutting down")
            );
        }
        // The two states may come so close that only the latter is seen.
        Err(status) => assert_eq!(status.code(), Code::Unavailable),
        Ok(None) => panic!("the watch ended without a status"),
    }
    drop((synced, services, health));
    server.ended().await.unwrap();
}

/// Longer than a test waits: what ends by it alone does not end in time.
const LONG: Duration = Duration::from_secs(600);

#[tokio::test]
async fn who_has_no_call_or_asks_nothing_more_does_not_hold_up_the_end() {
    let server = Server::start_with_grace(LONG).await;
    // A connection that says nothing at all, and one that spoke once and stays.
    let silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let idle = Endpoint::from_shared(format!("http://{}", server.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    // A reflection stream is the client's to end, and this client does not.
    let mut held = ServerReflectionClient::new(server.channel.clone())
        .server_reflection_info(futures::stream::pending())
        .await
        .unwrap()
        .into_inner();
    // A call whose request never comes to its end.
    let unfinished = tokio::spawn(unfinished_call(server.channel.clone()));
    while server.calls.count() < 2 {
        tokio::task::yield_now().await;
    }

    server.stop();
    let status = tokio::time::timeout(PATIENCE, held.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_shutting_down(&status);
    assert_eq!(unfinished.await.unwrap().code(), Code::Unavailable);
    drop(held);
    server.ended().await.unwrap();
    drop((silent, idle));
}

/// Opens a unary call, sends nothing, and waits for the answer.
async fn unfinished_call(channel: Channel) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let request = tonic::Request::new(futures::stream::pending::<HealthCheckRequest>());
    let path = http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
    client.client_streaming(request, path, codec).await.unwrap_err()
}

/// A server with a call that cannot end: its client reads nothing of an answer that is larger than what may be sent ahead.
async fn unread(grace_period: Duration) -> (Server, tonic::Streaming<proto::SyncLatestResponse>) {
    let server = Server::start_with_grace(grace_period).await;
    let content = "x".repeat(2 << 20);
    for id in ["a", "b", "c", "d", "e", "f"] {
        server.put(vec![record(id, &content)]).await;
    }
    let request = proto::SyncLatestRequest::default();
    let stream = server.client().sync_latest(request).await.unwrap().into_inner();
    (server, stream)
}

#[tokio::test]
async fn a_call_that_does_not_end_is_broken_off_after_the_grace_period() {
    let (server, _unread) = unread(Duration::from_millis(200)).await;
    server.stop();
    let outcome = server.ended().await;
    assert!(matches!(outcome, Err(ServerError::Grace(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (server, _unread) = unread(LONG).await;
    server.stop();
    server.stop();
    let outcome = server.ended().await;
    assert!(matches!(outcome, Err(ServerError::BrokenOff)), "{outcome:?}");
}

/// A server on the memory plugin, which may return so little that one record can be too much for it.
async fn small(restarts: u32) -> Server {
    answering(1 << 20, restarts).await
}

/// A server on the memory plugin, which may return so many bytes.
async fn answering(answer_bytes: usize, restarts: u32) -> Server {
    let config = component::Config {
        limits: Limits {
            answer_bytes,
            ..Limits::default()
        },
        restarts: Restarts {
            most: restarts,
            ..Restarts::default()
        },
        ..component::Config::new(Source::BuiltIn("memory".to_owned()))
    };
    let (backend, info) = component::open(config, descriptors()).await.unwrap();
    Server::start_on(backend, info, LONG).await
}

/// Reads what the plugin stops over.
async fn stop_plugin(server: &Server) {
    server.put(vec![record("large", &"x".repeat(3 << 20))]).await;
    let status = server.get("large").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

async fn server_version(server: &Server) -> u64 {
    let answer = server.client().server_info(()).await.unwrap();
    answer.into_inner().server_version
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_with_an_error_when_its_plugin_has_stopped() {
    let server = small(0).await;
    stop_plugin(&server).await;
    let outcome = server.ended().await;
    assert!(
        matches!(&outcome, Err(ServerError::Stopped(cause)) if cause.contains("fuel")),
        "{outcome:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_stops_is_started_again_and_clients_begin_again() {
    let server = small(5).await;
    let before = server_version(&server).await;
    let start = |server_version| proto::SyncRequest {
        server_version,
        wait: Some(true),
        ..Default::default()
    };
    let mut stream = server.client().sync(start(before)).await.unwrap().into_inner();
    let mut health = HealthClient::new(server.channel.clone())
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    stop_plugin(&server).await;
    let status = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(status) = stream.message().await {
                break status;
            }
        }
    })
    .await
    .expect("the stream ends");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Aborted, "invalid server version")
    );
    let mut states = Vec::new();
    while states.len() < 3 {
        let message = tokio::time::timeout(PATIENCE, health.message()).await.unwrap();
        states.push(message.unwrap().unwrap().status());
    }
    use ServingStatus::{NotServing, Serving};
    assert_eq!(states, [Serving, NotServing, Serving]);
    let after = server_version(&server).await;
    assert_ne!(after, before);
    assert_eq!(server.put(vec![record("a", "new")]).await.server_version, after);
    let mut stream = server.client().sync(start(after)).await.unwrap().into_inner();
    assert!(tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().is_ok());
    let metrics = server.instruments.metrics.text().unwrap();
    assert!(metrics.contains("plugin_restarts_total 1\n"), "{metrics}");
    drop((stream, health));
    server.stop();
    server.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_least_limit_of_answers_nobody_stops_the_plugin_by_deleting() {
    let server = answering(component::LEAST_ANSWER_BYTES.try_into().unwrap(), 0).await;
    let content = "x".repeat(2_000_000);
    let ids: Vec<String> = (0..33).map(|id| id.to_string()).collect();
    for id in &ids {
        server.put(vec![record(id, &content)]).await;
    }
    let before = server_version(&server).await;
    let answer = server.put(ids.iter().map(|id| deletion(id)).collect()).await;
    assert_eq!(answer.server_version, before);
    assert_eq!(server.get("0").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_fails_once_its_plugin_has_stopped_too_often() {
    let secret = SharedSecret::generate();
    let reports = tempfile::tempdir().unwrap();
    let hostile = guest_build::build("tests/hostile/guest", "hostile-guest");
    let cache = hostile.with_file_name("cache");
    let environment = [
        ("GRPC_ADDRESS", "127.0.0.1:0"),
        ("SHARED_SECRET", &secret.to_base64()),
        ("LOG_FORMAT", "json"),
        ("DATABROKER_STORAGE_TYPE", hostile.to_str().unwrap()),
        ("DATABROKER_PLUGIN_SETTINGS", "misbehaviour=trap"),
        ("DATABROKER_PLUGIN_CACHE_DIR", cache.to_str().unwrap()),
        ("DATABROKER_PLUGIN_RESTARTS", "1"),
        ("DATABROKER_PLUGIN_REPORT_DIR", reports.path().to_str().unwrap()),
    ];
    let mut command = program(&["serve"], &environment);
    let mut serving = Serving(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(serving.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"serving\"") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it does not serve");
    }
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let log = std::thread::spawn(move || {
        let mut rest = String::new();
        log.read_to_string(&mut rest).unwrap();
        rest
    });
    let channel = Endpoint::from_shared(format!("http://{}", line["address"].as_str().unwrap()))
        .unwrap()
        .connect_lazy();
    let credentials = Credentials(Some(token(&secret).unwrap().try_into().unwrap()));
    let mut client = DataBrokerServiceClient::new(Connection::new(channel, credentials));

    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = serving.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the program does not end");
        // It may be on its way up again, or down.
        let request = proto::GetRequest {
            r#type: "hostile".to_owned(),
            id: "a".to_owned(),
        };
        let _ = client.get(request).await;
    };
    let log = log.join().unwrap();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("stopped too often (DATABROKER_PLUGIN_RESTARTS)"), "{log}");
    assert_eq!(std::fs::read_dir(reports.path()).unwrap().count(), 2, "{log}");
}
