//! Requests that nobody sends by mistake: each ends in an error with the right code, and the server goes on.

use bytes::Bytes;
use databroker_host::grpc::auth::token;
use databroker_host::settings::SharedSecret;
use databroker_proto::databroker as proto;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use prost_types::value::Kind;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use crate::server::{Credentials, Server, TYPE, record};

/// All calls that need a token.
const GUARDED: [&str; 19] = [
    "/databroker.DataBrokerService/AcquireLease",
    "/databroker.DataBrokerService/Clear",
    "/databroker.DataBrokerService/Get",
    "/databroker.DataBrokerService/GetOptions",
    "/databroker.DataBrokerService/ListTypes",
    "/databroker.DataBrokerService/Put",
    "/databroker.DataBrokerService/Patch",
    "/databroker.DataBrokerService/Query",
    "/databroker.DataBrokerService/ReleaseLease",
    "/databroker.DataBrokerService/RenewLease",
    "/databroker.DataBrokerService/ServerInfo",
    "/databroker.DataBrokerService/SetOptions",
    "/databroker.DataBrokerService/Sync",
    "/databroker.DataBrokerService/SyncLatest",
    "/databroker.CheckpointService/GetCheckpoint",
    "/databroker.CheckpointService/SetCheckpoint",
    "/registry.Registry/Report",
    "/registry.Registry/List",
    "/registry.Registry/Watch",
];

/// Calls any path with an empty message.
async fn call(channel: &Channel, path: &str, token: Option<&str>) -> Status {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(());
    if let Some(token) = token {
        request
            .metadata_mut()
            .insert("jwt", MetadataValue::try_from(token).unwrap());
    }
    let answer = grpc
        .unary(request, path.parse().unwrap(), ProstCodec::<(), ()>::default())
        .await;
    answer.map(|_| ()).expect_err("the call should have failed")
}

#[tokio::test]
async fn every_call_of_the_three_services_needs_a_token() {
    let server = Server::start().await;
    for path in GUARDED {
        let status = call(&server.channel, path, None).await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "unauthenticated"),
            "{path}"
        );
        let wrong = token(&SharedSecret::generate()).unwrap();
        let status = call(&server.channel, path, Some(&wrong)).await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "invalid JWT"),
            "{path}"
        );
    }
    server.client().server_info(()).await.unwrap();
}

#[tokio::test]
async fn what_is_not_served_is_unimplemented_with_a_sentence() {
    let server = Server::start().await;
    let token = server.token();
    for (path, part) in [
        (
            "/pomerium.config.ConfigService/ListRoutes",
            "does not serve pomerium.config.ConfigService",
        ),
        (
            "/health.HealthNotifier/SyncHealth",
            "does not serve health.HealthNotifier",
        ),
        ("/some.Other/Thing", "does not serve \"some.Other\""),
        ("/databroker.DataBrokerService/Drop", "has no method \"Drop\""),
        ("/grpc.health.v1.Health/List", "has no method \"List\""),
        ("/", "does not serve"),
    ] {
        let status = call(&server.channel, path, Some(&token)).await;
        assert_eq!(status.code(), Code::Unimplemented, "{path}");
        assert!(status.message().contains(part), "{path}: {status:?}");
    }
}

fn with_data(data: &[u8]) -> proto::PutRequest {
    let broken = proto::Record {
        data: Some(Bytes::copy_from_slice(data)),
        ..record("broken", "")
    };
    proto::PutRequest {
        records: vec![record("fine", "x"), broken],
    }
}

#[tokio::test]
async fn absurd_requests_are_invalid() {
    let server = Server::start().await;
    let mut client = server.client();
    let mut invalid: Vec<(&str, Status)> = Vec::new();

    for (name, data) in [
        ("a lone tag", &b"\x0a"[..]),
        ("no UTF-8", b"\x0a\x01\xff"),
        ("a length too long", b"\x12\x7f"),
    ] {
        let status = client.put(with_data(data)).await.unwrap_err();
        assert!(status.message().contains("records[1].data"), "{status:?}");
        invalid.push((name, status));
    }
    for (name, seconds, nanos) in [
        ("0 s", 0, 0),
        ("less than 0", -1, 0),
        ("malformed", 1, -1),
        ("ages", i64::MAX, 0),
    ] {
        let duration = Some(prost_types::Duration { seconds, nanos });
        let request = proto::AcquireLeaseRequest {
            name: "lease".to_owned(),
            duration,
        };
        invalid.push((name, client.acquire_lease(request).await.unwrap_err()));
        let options = Some(proto::Options {
            ttl: duration,
            ..Default::default()
        });
        let request = proto::SetOptionsRequest {
            r#type: TYPE.to_owned(),
            options,
        };
        invalid.push((name, client.set_options(request).await.unwrap_err()));
    }
    let request = proto::AcquireLeaseRequest {
        name: "lease".to_owned(),
        duration: None,
    };
    invalid.push(("no duration", client.acquire_lease(request).await.unwrap_err()));
    let (day, long) = (24 * 60 * 60, "n".repeat(1025));
    let long = long.as_str();
    for (name, lease, id, seconds) in [
        ("a lease for days", "lease", "id", day + 1),
        ("a lease of a long name", long, "id", 1),
        ("a lease of a long id", "lease", long, 1),
    ] {
        let duration = Some(prost_types::Duration { seconds, nanos: 0 });
        let (lease, id) = (lease.to_owned(), id.to_owned());
        if id.len() < 1024 {
            let request = proto::AcquireLeaseRequest {
                name: lease.clone(),
                duration,
            };
            invalid.push((name, client.acquire_lease(request).await.unwrap_err()));
        }
        let request = proto::RenewLeaseRequest {
            name: lease,
            id,
            duration,
        };
        invalid.push((name, client.renew_lease(request).await.unwrap_err()));
    }
    let request = proto::SetOptionsRequest::default();
    let status = client.set_options(request).await.unwrap_err();
    assert_eq!(status.message(), "options req type is empty");
    invalid.push(("options of the empty type", status));

    let query = |offset, limit, kind: Option<Kind>| proto::QueryRequest {
        offset,
        limit,
        filter: kind.map(|kind| prost_types::Struct {
            fields: [("age".to_owned(), prost_types::Value { kind: Some(kind) })].into(),
        }),
        ..Default::default()
    };
    invalid.push(("offset", client.query(query(-1, 1, None)).await.unwrap_err()));
    invalid.push(("limit", client.query(query(0, i64::MIN, None)).await.unwrap_err()));
    let status = client
        .query(query(0, 1, Some(Kind::NumberValue(f64::NAN))))
        .await
        .unwrap_err();
    assert!(status.message().starts_with("invalid query filter: "), "{status:?}");
    invalid.push(("no number", status));

    for (name, status) in invalid {
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
    }
    assert_eq!(
        server.get("fine").await.unwrap_err().code(),
        Code::NotFound,
        "part of a refused request was written"
    );
}

#[tokio::test]
async fn messages_have_a_limit_both_ways() {
    let server = Server::start().await;
    let large = |length: usize| proto::PutRequest {
        records: vec![record("large", &"x".repeat(length))],
    };
    // Well below the limit: written, read, streamed.
    server.client().put(large((4 << 20) - 1024)).await.unwrap();
    assert!(server.get("large").await.is_ok());
    // It could be received, but no client would take the answer: refused before anything is written.
    let before = server.get("large").await.unwrap().version;
    let status = server.client().put(large((4 << 20) - 130)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("ask for less at a time"), "{status:?}");
    assert_eq!(server.get("large").await.unwrap().version, before);
    // It cannot even be received.
    let status = server.client().put(large(5 << 20)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");

    // A query answers what a client takes, or says that it would be too much.
    let many = (0..8).map(|index| record(&format!("{index}"), &"x".repeat(1 << 20)));
    for record in many {
        server.put(vec![record]).await;
    }
    let query = |limit| proto::QueryRequest {
        r#type: TYPE.to_owned(),
        limit,
        ..Default::default()
    };
    let answer = server.client().query(query(3)).await.unwrap().into_inner();
    assert_eq!((answer.records.len(), answer.total_count), (3, 9));
    let status = server.client().query(query(100)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
}

#[tokio::test]
async fn only_the_first_token_counts() {
    let server = Server::start().await;
    let wrong = token(&SharedSecret::generate()).unwrap();
    for (first, second, expected) in [
        (server.token(), wrong.clone(), Code::Ok),
        (wrong.clone(), server.token(), Code::Unauthenticated),
    ] {
        let channel = InterceptedService::new(server.channel.clone(), Credentials(None));
        let mut request = Request::new(());
        request.metadata_mut().append("jwt", first.try_into().unwrap());
        request.metadata_mut().append("jwt", second.try_into().unwrap());
        let answer = DataBrokerServiceClient::new(channel).server_info(request).await;
        assert_eq!(answer.map_or_else(|status| status.code(), |_| Code::Ok), expected);
    }
}
