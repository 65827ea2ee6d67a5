//! Each call of the three services, once there and back.

use databroker_proto::databroker as proto;
use databroker_proto::databroker::sync_latest_response::Response as Latest;
use databroker_proto::databroker::sync_response::Response as Synced;
use databroker_proto::registry;
use prost_types::Duration as ProtoDuration;
use tonic::Code;

use crate::server::{PATIENCE, SERVER_VERSION, Server, TYPE, deletion, record, text};

#[tokio::test]
async fn records_are_written_read_deleted_and_streamed() {
    let server = Server::start().await;
    let written = server
        .put(vec![
            record("a", "one"),
            record("b", "two"),
            record("a", "three"),
            deletion("b"),
        ])
        .await;
    assert_eq!(written.server_version, SERVER_VERSION);
    let versions: Vec<u64> = written.records.iter().map(|record| record.version).collect();
    assert!(versions.is_sorted() && versions[0] > 0, "{versions:?}");
    assert!(written.records.iter().all(|record| record.modified_at.is_some()));
    assert!(written.records[3].deleted_at.is_some_and(|time| time.seconds > 0));

    assert_eq!(server.get("a").await.unwrap(), written.records[2]);
    let missing = server.get("b").await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.message()),
        (Code::NotFound, "record not found")
    );

    // What Put answers is what Sync delivers.
    let start = proto::SyncRequest {
        server_version: SERVER_VERSION,
        record_version: 0,
        r#type: TYPE.to_owned(),
        wait: Some(false),
    };
    let mut stream = server.client().sync(start).await.unwrap().into_inner();
    let mut synced = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        match message.response.unwrap() {
            Synced::Record(record) => synced.push(record),
            Synced::Options(options) => panic!("{options:?}"),
        }
    }
    assert_eq!(synced[..3], written.records[..3]);
    assert_eq!(
        (synced[3].version, synced[3].deleted_at),
        (versions[3], written.records[3].deleted_at)
    );

    let request = proto::SyncLatestRequest {
        r#type: TYPE.to_owned(),
    };
    let mut stream = server.client().sync_latest(request).await.unwrap().into_inner();
    let mut latest = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        latest.push(message.response.unwrap());
    }
    let end = proto::Versions {
        server_version: SERVER_VERSION,
        latest_record_version: versions[3],
    };
    assert_eq!(
        latest,
        [Latest::Record(written.records[2].clone()), Latest::Versions(end)]
    );

    let info = server.client().server_info(()).await.unwrap().into_inner();
    assert_eq!(
        (info.server_version, info.latest_record_version),
        (SERVER_VERSION, versions[3])
    );
    let types = server.client().list_types(()).await.unwrap().into_inner().types;
    assert_eq!(types, [TYPE]);
}

#[tokio::test]
async fn an_open_stream_gets_each_change_and_ends_with_aborted_after_clear() {
    let server = Server::start().await;
    let start = proto::SyncRequest {
        server_version: SERVER_VERSION,
        r#type: TYPE.to_owned(),
        ..Default::default()
    };
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(server.client().sync(start.clone()).await.unwrap().into_inner());
    }
    let written = server.put(vec![record("a", "one")]).await.records;
    for stream in &mut streams {
        let message = tokio::time::timeout(PATIENCE, stream.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(message.response, Some(Synced::Record(written[0].clone())));
    }
    let cleared = server.client().clear(()).await.unwrap().into_inner();
    assert_eq!(cleared.old_server_version, SERVER_VERSION);
    assert!(cleared.new_server_version != 0 && cleared.new_server_version != SERVER_VERSION);
    for stream in &mut streams {
        let status = tokio::time::timeout(PATIENCE, stream.message())
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (Code::Aborted, "invalid server version")
        );
    }
    let status = server.client().sync(start).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
}

#[tokio::test]
async fn queries_find_and_patches_change() {
    let server = Server::start().await;
    let written = server
        .put(vec![
            record("a", "apple"),
            record("b", "banana"),
            record("c", "Apple pie"),
        ])
        .await
        .records;
    let query = |query: &str, limit: i64| proto::QueryRequest {
        r#type: TYPE.to_owned(),
        query: query.to_owned(),
        limit,
        ..Default::default()
    };
    let answer = server.client().query(query("apple", 10)).await.unwrap().into_inner();
    assert_eq!(answer.records, [written[0].clone(), written[2].clone()]);
    assert_eq!((answer.total_count, answer.server_version), (2, SERVER_VERSION));
    assert_eq!(answer.record_version, written[2].version);
    let none = server.client().query(query("apple", 0)).await.unwrap().into_inner();
    assert_eq!((none.records.len(), none.total_count), (0, 2));

    let by_id = prost_types::Struct {
        fields: [(
            "id".to_owned(),
            prost_types::Value {
                kind: Some(prost_types::value::Kind::StringValue("b".into())),
            },
        )]
        .into(),
    };
    let filtered = proto::QueryRequest {
        filter: Some(by_id),
        ..query("", 10)
    };
    let answer = server.client().query(filtered).await.unwrap().into_inner();
    assert_eq!(answer.records, [written[1].clone()]);

    let mask = prost_types::FieldMask {
        paths: vec!["value".to_owned()],
    };
    let request = proto::PatchRequest {
        records: vec![record("b", "blueberry"), record("missing", "x")],
        field_mask: Some(mask),
    };
    let patched = server.client().patch(request).await.unwrap().into_inner();
    assert_eq!((patched.server_version, patched.records.len()), (SERVER_VERSION, 1));
    assert_eq!(patched.records[0].data, Some(text("blueberry")));
    assert_eq!(server.get("b").await.unwrap(), patched.records[0]);

    let mask = prost_types::FieldMask {
        paths: vec!["nonsense".to_owned()],
    };
    let request = proto::PatchRequest {
        records: vec![record("b", "x")],
        field_mask: Some(mask),
    };
    let status = server.client().patch(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown);
    assert!(status.message().contains("nonsense"), "{status:?}");
}

#[tokio::test]
async fn options_are_set_and_cleared() {
    let server = Server::start().await;
    let get = || async {
        let request = proto::GetOptionsRequest {
            r#type: TYPE.to_owned(),
        };
        server
            .client()
            .get_options(request)
            .await
            .map(|response| response.into_inner().options.unwrap())
    };
    let set = |options| async {
        let request = proto::SetOptionsRequest {
            r#type: TYPE.to_owned(),
            options,
        };
        server
            .client()
            .set_options(request)
            .await
            .map(|response| response.into_inner().options)
    };
    assert_eq!(get().await.unwrap_err().code(), Code::NotFound);
    let options = proto::Options {
        capacity: Some(u64::MAX),
        indexable_fields: vec!["value".to_owned()],
        ttl: Some(ProtoDuration {
            seconds: 3600,
            nanos: 5,
        }),
    };
    assert_eq!(set(Some(options.clone())).await.unwrap(), Some(options.clone()));
    assert_eq!(get().await.unwrap(), options);
    for cleared in [None, Some(proto::Options::default())] {
        set(Some(options.clone())).await.unwrap();
        assert_eq!(set(cleared).await.unwrap(), Some(proto::Options::default()));
        assert_eq!(get().await.unwrap_err().code(), Code::NotFound);
    }
    let status = server
        .client()
        .get_options(proto::GetOptionsRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "options req type is empty")
    );
}

#[tokio::test]
async fn leases_have_one_holder() {
    let server = Server::start().await;
    let name = || "lease".to_owned();
    let duration = Some(ProtoDuration { seconds: 60, nanos: 0 });
    let acquire = || async {
        let request = proto::AcquireLeaseRequest { name: name(), duration };
        server
            .client()
            .acquire_lease(request)
            .await
            .map(|response| response.into_inner().id)
    };
    let id = acquire().await.unwrap();
    let taken = acquire().await.unwrap_err();
    assert_eq!(
        (taken.code(), taken.message()),
        (Code::AlreadyExists, "lease is already taken")
    );
    let renew = |id: &str| proto::RenewLeaseRequest {
        name: name(),
        id: id.to_owned(),
        duration,
    };
    server.client().renew_lease(renew(&id)).await.unwrap();
    let lost = server.client().renew_lease(renew("other")).await.unwrap_err();
    assert_eq!(
        (lost.code(), lost.message()),
        (Code::AlreadyExists, "lease no longer held")
    );
    let release = |id: &str| proto::ReleaseLeaseRequest {
        name: name(),
        id: id.to_owned(),
    };
    server.client().release_lease(release("other")).await.unwrap();
    assert_eq!(acquire().await.unwrap_err().code(), Code::AlreadyExists);
    server.client().release_lease(release(&id)).await.unwrap();
    acquire().await.unwrap();
}

#[tokio::test]
async fn the_checkpoint_is_kept() {
    let server = Server::start().await;
    let mut client = server.checkpoint_client();
    let first = client
        .get_checkpoint(proto::GetCheckpointRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (first.checkpoint, first.is_leader),
        (Some(proto::Checkpoint::default()), false)
    );
    let checkpoint = Some(proto::Checkpoint {
        server_version: u64::MAX,
        record_version: 7,
    });
    client
        .set_checkpoint(proto::SetCheckpointRequest { checkpoint })
        .await
        .unwrap();
    let second = client
        .get_checkpoint(proto::GetCheckpointRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(second.checkpoint, checkpoint);
    client
        .set_checkpoint(proto::SetCheckpointRequest { checkpoint: None })
        .await
        .unwrap();
    let third = client
        .get_checkpoint(proto::GetCheckpointRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(third.checkpoint, Some(proto::Checkpoint::default()));
}

#[tokio::test]
async fn an_answer_of_more_than_clients_take_is_refused() {
    let server = Server::start().await;
    // Two of these fit into an answer, three do not.
    let long = |start: &str| format!("{start}{}", "x".repeat(1_900_000));
    let mut registry = server.registry_client();
    let all = registry::ListRequest::default();
    let mut watch = registry.watch(all.clone()).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().services, []);
    let mut watched = Ok(None);
    for start in ["a", "b", "c"] {
        let written = proto::Record {
            r#type: long(start),
            ..record("id", "")
        };
        server.put(vec![written]).await;
        // As many as a report may have, about as long as they may be.
        let endpoint = |number| format!("{start}{number:04}{}", "x".repeat(1_900));
        let services = (0..1_000)
            .map(|number| registry::Service {
                kind: 1,
                endpoint: endpoint(number),
            })
            .collect();
        let request = registry::RegisterRequest {
            services,
            ..Default::default()
        };
        registry.report(request).await.unwrap();
        watched = tokio::time::timeout(PATIENCE, watch.message()).await.unwrap();
    }
    let types = server.client().list_types(()).await.unwrap_err();
    let services = registry.list(all).await.unwrap_err();
    for status in [types, services, watched.unwrap_err()] {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("more than 4194304 bytes"), "{status:?}");
    }
}

#[tokio::test]
async fn services_are_reported_listed_and_watched() {
    let server = Server::start().await;
    let mut client = server.registry_client();
    let metrics = registry::Service {
        kind: 7,
        endpoint: "http://user:password@127.0.0.1:9090/metrics".to_owned(),
    };
    let proxy = registry::Service {
        kind: 4,
        endpoint: "http://127.0.0.1".to_owned(),
    };
    let only = |kinds: &[i32]| registry::ListRequest { kinds: kinds.to_vec() };

    let mut watch = client.watch(only(&[7])).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().services, []);
    let request = registry::RegisterRequest {
        services: vec![metrics.clone(), proxy.clone()],
        ..Default::default()
    };
    let answer = client.report(request).await.unwrap().into_inner();
    let call_back_after = answer.call_back_after.unwrap();
    assert!(
        call_back_after.seconds > 0 && call_back_after.seconds < 30,
        "{call_back_after:?}"
    );
    let watched = tokio::time::timeout(PATIENCE, watch.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(watched.services, std::slice::from_ref(&metrics));
    assert_eq!(
        client.list(only(&[])).await.unwrap().into_inner().services,
        [proxy.clone(), metrics]
    );
    assert_eq!(client.list(only(&[4, 1])).await.unwrap().into_inner().services, [proxy]);
}
