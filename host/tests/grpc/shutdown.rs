//! The end of the server, as clients see it.

use std::time::Duration;

use databroker_host::component::{self, Limits, Source};
use databroker_host::server::ServerError;
use databroker_proto::databroker as proto;
use databroker_proto::registry::ListRequest;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::server::{PATIENCE, SERVER_VERSION, Server, TYPE, descriptors, record};

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

#[tokio::test(flavor = "multi_thread")]
async fn the_server_ends_with_an_error_when_its_plugin_has_stopped() {
    let config = component::Config {
        plugin: Source::BuiltIn("memory".to_owned()),
        connection_string: None,
        cache_dir: None,
        limits: Limits {
            compute: Duration::from_millis(10),
            ..Limits::default()
        },
    };
    let (backend, info) = component::open(config, descriptors()).await.unwrap();
    let server = Server::start_on(backend, info, LONG).await;
    // More than it can do in that time.
    let records = || (0..20_000).map(|id| record(&id.to_string(), "")).collect::<Vec<_>>();
    let mut client = server.client();
    let failed = loop {
        if let Err(status) = client.put(proto::PutRequest { records: records() }).await {
            break status;
        }
    };
    assert_eq!(failed.code(), Code::Unavailable, "{failed:?}");
    let outcome = server.ended().await;
    assert!(
        matches!(&outcome, Err(ServerError::Stopped(cause)) if cause.contains("computed")),
        "{outcome:?}"
    );
}
