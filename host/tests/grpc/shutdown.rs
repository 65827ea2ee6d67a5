//! The end of the server, as clients see it.

use std::time::Duration;

use databroker_host::server::ServerError;
use databroker_proto::databroker as proto;
use databroker_proto::registry::ListRequest;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::server::{PATIENCE, SERVER_VERSION, Server, TYPE, record};

#[tokio::test]
async fn streams_end_with_unavailable_and_what_was_written_is_safe() {
    let mut server = Server::start().await;
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
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "the databroker is shutting down")
    );
    let status = tokio::time::timeout(PATIENCE, services.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "the databroker is shutting down")
    );
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

#[tokio::test]
async fn a_call_that_does_not_end_is_broken_off_after_the_grace_period() {
    let mut server = Server::start_with_grace(Duration::from_millis(200)).await;
    // A reflection stream is the client's to end, and this client does not.
    let mut client =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let requests = futures::stream::pending();
    let _held = client.server_reflection_info(requests).await.unwrap();
    server.stop();
    let outcome = server.ended().await;
    assert!(matches!(outcome, Err(ServerError::Grace(_))), "{outcome:?}");
}
