//! Health and reflection: open to everybody.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::server::{PATIENCE, Server};

const SERVED: [&str; 6] = [
    "databroker.CheckpointService",
    "databroker.DataBrokerService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "registry.Registry",
];

fn asking_for(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn health_follows_the_broker() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel.clone());
    for name in SERVED.into_iter().chain(["", "pomerium-databroker"]) {
        let answer = client.check(asking_for(name)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{name:?}");
    }
    assert_eq!(
        client.check(asking_for("nobody.Knows")).await.unwrap_err().code(),
        Code::NotFound
    );
    let mut unknown = client.watch(asking_for("nobody.Knows")).await.unwrap().into_inner();
    assert_eq!(
        unknown.message().await.unwrap().unwrap().status(),
        ServingStatus::ServiceUnknown
    );
    let mut watch = client
        .watch(asking_for("pomerium-databroker"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    // A broker that has ended answers no more, while the server does not know yet.
    server.broker.shutdown().await.unwrap();
    let message = tokio::time::timeout(PATIENCE, watch.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(message.status(), ServingStatus::NotServing);
    let answer = client.check(asking_for("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn reflection_v1_lists_what_is_served() {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    let server = Server::start().await;
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("databroker.DataBrokerService".to_owned()),
        MessageRequest::FileContainingSymbol("grpc.health.v1.Health".to_owned()),
    ];
    let requests = asked.map(|request| v1::ServerReflectionRequest {
        message_request: Some(request),
        host: String::new(),
    });
    let answers = client
        .server_reflection_info(futures::stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers
        .map(|answer| answer.unwrap().message_response.unwrap())
        .collect()
        .await;
    let MessageResponse::ListServicesResponse(list) = &answers[0] else {
        panic!("{:?}", answers[0])
    };
    expect_services(
        list.service.iter().map(|service| service.name.as_str()),
        "grpc.reflection.v1alpha.ServerReflection",
    );
    for answer in &answers[1..] {
        assert!(
            matches!(answer, MessageResponse::FileDescriptorResponse(_)),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn reflection_v1alpha_lists_what_is_served() {
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;
    let server = Server::start().await;
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel.clone());
    let request = v1alpha::ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        host: String::new(),
    };
    let answers = client
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answers: Vec<_> = answers
        .map(|answer| answer.unwrap().message_response.unwrap())
        .collect()
        .await;
    let MessageResponse::ListServicesResponse(list) = &answers[0] else {
        panic!("{:?}", answers[0])
    };
    expect_services(
        list.service.iter().map(|service| service.name.as_str()),
        "grpc.reflection.v1.ServerReflection",
    );
}

/// All services but the other version of reflection, which each version leaves to that one.
fn expect_services<'a>(listed: impl Iterator<Item = &'a str>, other: &str) {
    let expected: BTreeSet<&str> = SERVED.into_iter().filter(|name| *name != other).collect();
    assert_eq!(listed.collect::<BTreeSet<_>>(), expected);
}
