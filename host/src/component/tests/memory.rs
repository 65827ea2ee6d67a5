//! The memory plugin, driven through `trait Backend`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::open_memory;
use crate::backend::{
    BackendError, Batch, Change, ChangesRequest, EvictRequest, Hint, LeaseAction, LeaseRequest, Operation, Outcome,
    PageBounds, Refusal, ScanRequest,
};
use crate::record::{Checkpoint, Key, Options, Service, Timestamp};

const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);
const BOUNDS: PageBounds = PageBounds {
    records: 100,
    bytes: 1 << 20,
};

/// The least `Any` with this type.
fn any(name: &str) -> Bytes {
    Bytes::from([&[0x0a, u8::try_from(name.len()).unwrap()][..], name.as_bytes()].concat())
}

fn upsert(id: &str, data: &'static [u8]) -> Change {
    Change {
        key: Key::new("t", id),
        operation: Operation::Upsert {
            data: Some(Bytes::from_static(data)),
            network: None,
        },
        expected: None,
    }
}

fn delete(id: &str) -> Change {
    Change {
        key: Key::new("t", id),
        operation: Operation::Delete,
        expected: None,
    }
}

fn batch(changes: Vec<Change>) -> Vec<Batch> {
    vec![Batch { changes }]
}

fn scan(after: Option<&str>, records: u32) -> ScanRequest {
    ScanRequest {
        record_type: Some("t".to_owned()),
        hint: None,
        condition: None,
        after: after.map(|id| Key::new("t", id)),
        bounds: PageBounds { records, ..BOUNDS },
    }
}

fn changes(after: u64) -> ChangesRequest {
    ChangesRequest {
        after,
        record_type: None,
        bounds: BOUNDS,
    }
}

#[tokio::test]
async fn records_are_written_read_listed_and_removed() {
    let (backend, info) = open_memory().await;
    assert!(!info.shared && !info.durable);
    assert_ne!(info.position.server_version, 0);

    let put = backend
        .put(
            batch(vec![upsert("a", b"\x0a\x011"), upsert("b", b""), delete("none")]),
            NOW,
        )
        .await
        .unwrap();
    assert_eq!(put.server_version, info.position.server_version);
    let outcomes = put.batches[0].as_ref().unwrap();
    let [Outcome::Stored(first), Outcome::Stored(second), Outcome::Missing] = outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert!(first < second);

    let keys = vec![Key::new("t", "b"), Key::new("t", "none"), Key::new("t", "a")];
    let got = backend.get(keys).await.unwrap();
    assert_eq!(got[0].as_ref().unwrap().data, Some(Bytes::new()));
    assert_eq!(got[1], None);
    let a = got[2].as_ref().unwrap();
    assert_eq!((a.version, a.modified_at), (first, NOW));

    let page = backend.scan(scan(None, 1)).await.unwrap();
    assert!(page.more);
    assert_eq!(page.records, std::slice::from_ref(a));
    let page = backend.scan(scan(Some("a"), 1)).await.unwrap();
    assert_eq!(page.records[0].key.id, "b");
    assert!(!page.more);

    let put = backend.put(batch(vec![delete("a")]), NOW).await.unwrap();
    let [Outcome::Deleted(tombstone)] = &put.batches[0].as_ref().unwrap()[..] else {
        panic!("{put:?}");
    };
    assert_eq!(tombstone.data, Some(Bytes::from_static(b"\x0a\x011")));
    let page = backend.changes(changes(0)).await.unwrap();
    assert_eq!(page.through, page.position.latest_version);
    assert!(page.records.contains(tombstone));
    assert_eq!(backend.count(None).await.unwrap(), 1);
    assert_eq!(backend.types().await.unwrap(), ["t"]);
    assert_eq!(backend.current().await.unwrap(), page.position);
    assert_eq!(backend.measure().await.unwrap().types[0].records, 1);
    backend.health().await.unwrap();
    backend.close().await.unwrap();
}

/// The plugin compares words at a time: whatever the length of what ids have in common, bytes decide, as numbers from 0 to
/// 255.
#[tokio::test]
async fn ids_ascend_bytewise() {
    let (backend, _) = open_memory().await;
    let mut ids = Vec::new();
    for common in 0..20 {
        let common = "x".repeat(common);
        for ends in [
            "",
            "\0",
            "\0a",
            "a",
            "ab",
            "b",
            "\u{7f}",
            "\u{80}",
            "\u{ffff}",
            "\u{10000}",
            "aaaaaaaaaaab",
            "aaaaaaaaaaba",
        ] {
            ids.push(format!("{common}{ends}"));
        }
    }
    let puts = ids.iter().rev().map(|id| upsert(id, b"")).collect();
    backend.put(batch(puts), NOW).await.unwrap();
    ids.sort_unstable();
    ids.dedup();
    let page = backend.scan(scan(None, 1000)).await.unwrap();
    let scanned: Vec<_> = page.records.into_iter().map(|record| record.key.id).collect();
    assert_eq!(scanned, ids);
    for id in ids {
        let got = backend.get(vec![Key::new("t", &id)]).await.unwrap();
        assert_eq!(got[0].as_ref().map(|record| record.key.id.as_str()), Some(id.as_str()));
    }
}

#[tokio::test]
async fn a_refused_batch_changes_nothing_and_disturbs_no_other() {
    let (backend, _) = open_memory().await;
    let mut unexpected = upsert("b", b"\x0a\x012");
    unexpected.expected = Some(77);
    let batches = vec![
        Batch {
            changes: vec![upsert("a", b"\x0a\x011"), unexpected],
        },
        Batch {
            changes: vec![upsert("c", b"\x0a\x013")],
        },
    ];
    let put = backend.put(batches, NOW).await.unwrap();
    assert_eq!(put.batches[0], Err(Refusal::Conflict(1)));
    assert!(put.batches[1].is_ok());
    let ids: Vec<_> = backend.scan(scan(None, 10)).await.unwrap().records;
    assert_eq!(
        ids.iter().map(|record| record.key.id.as_str()).collect::<Vec<_>>(),
        ["c"]
    );
}

#[tokio::test]
async fn records_are_evicted_changes_pruned_and_all_is_cleared() {
    let (backend, info) = open_memory().await;
    for id in ["a", "b", "c"] {
        backend.put(batch(vec![upsert(id, b"\x0a\x01x")]), NOW).await.unwrap();
    }
    let request = EvictRequest {
        record_type: "t".to_owned(),
        modified_before: None,
        keep: Some(1),
        max_records: 1,
    };
    let evicted = backend.evict(request.clone(), NOW).await.unwrap();
    assert_eq!((evicted.tombstones[0].key.id.as_str(), evicted.more), ("a", true));
    let evicted = backend.evict(request, NOW).await.unwrap();
    assert_eq!((evicted.tombstones[0].key.id.as_str(), evicted.more), ("b", false));

    let pruned = backend.prune(Timestamp(NOW.0 + 1), 100).await.unwrap();
    assert!(pruned.removed > 0);
    let error = backend.changes(changes(0)).await.unwrap_err();
    assert!(
        matches!(error, BackendError::Pruned(version) if version > 0),
        "{error:?}"
    );

    let position = backend.clear(info.position.server_version + 1).await.unwrap();
    assert_eq!(position.server_version, info.position.server_version + 1);
    assert_eq!(backend.count(None).await.unwrap(), 0);
}

#[tokio::test]
async fn the_small_state_is_kept() {
    let (backend, _) = open_memory().await;
    let options = Options {
        capacity: Some(3),
        indexable_fields: vec!["a.b".to_owned()],
        ttl: Some(Duration::from_secs(60)),
    };
    backend
        .set_options("t".to_owned(), Some(options.clone()))
        .await
        .unwrap();
    assert_eq!(backend.list_options().await.unwrap(), [("t".to_owned(), options)]);
    backend.set_options("t".to_owned(), None).await.unwrap();
    assert_eq!(backend.list_options().await.unwrap(), []);

    let request = |id: &str, action| LeaseRequest {
        name: "l".to_owned(),
        id: id.to_owned(),
        action,
    };
    let hold = LeaseAction::Hold(Duration::from_secs(10));
    let requests = vec![
        request("x", hold),
        request("y", hold),
        request("x", LeaseAction::Release),
        request("y", hold),
    ];
    assert_eq!(backend.lease(requests, NOW).await.unwrap(), [true, false, true, true]);

    let checkpoint = Checkpoint {
        server_version: 5,
        record_version: 6,
    };
    backend.set_checkpoint(checkpoint).await.unwrap();
    assert_eq!(backend.get_checkpoint().await.unwrap(), checkpoint);

    let service = Service {
        kind: 1,
        endpoint: "http://one".to_owned(),
    };
    backend
        .report_services(vec![service.clone()], Duration::from_secs(10), NOW)
        .await
        .unwrap();
    assert_eq!(backend.list_services(NOW).await.unwrap(), [service]);
}

#[tokio::test]
async fn a_write_whose_caller_has_gone_is_finished() {
    let (backend, _) = open_memory().await;
    let mut put = backend.put(batch(vec![upsert("a", b"\x0a\x011")]), NOW);
    assert!(futures::poll!(&mut put).is_pending());
    drop(put);
    let answers = backend.get(vec![Key::new("t", "a")]).await.unwrap();
    assert!(answers[0].is_some(), "the write was broken off");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_each_get_their_own_answer() {
    let (backend, _) = open_memory().await;
    let all = (0..500).map(|number| {
        let id = format!("{number:03}");
        Change {
            key: Key::new("t", id.clone()),
            operation: Operation::Upsert {
                data: Some(any(&id)),
                network: None,
            },
            expected: None,
        }
    });
    backend.put(batch(all.collect()), NOW).await.unwrap();
    let calls = (0..5000).map(|number| {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let id = format!("{:03}", number % 500);
            let answers = backend.get(vec![Key::new("t", id.clone())]).await.unwrap();
            assert_eq!(answers[0].as_ref().unwrap().data, Some(any(&id)));
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
}

#[tokio::test]
async fn an_answer_that_does_not_fit_is_told_as_that() {
    let (backend, _) = open_memory().await;
    let large = Change {
        operation: Operation::Upsert {
            data: Some(Bytes::from(vec![0; 1 << 20])),
            network: None,
        },
        ..upsert("a", b"")
    };
    backend.put(batch(vec![large]), NOW).await.unwrap();
    let error = backend.get(vec![Key::new("t", "a"); 100]).await.unwrap_err();
    assert!(matches!(error, BackendError::Exhausted(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("answer") && !text.contains("full"), "{text}");
}

#[tokio::test]
async fn a_record_with_more_values_than_the_host_gives_is_refused_alone() {
    // An `Any` of a list of texts, each of which is three bytes in it and 33 in the host's count.
    let texts = |count: usize| {
        let list = b"\x0a\x01x".repeat(count);
        let name = b"type.googleapis.com/google.protobuf.FieldMask";
        let mut any = vec![0x0a, u8::try_from(name.len()).unwrap()];
        any.extend_from_slice(name);
        any.push(0x12);
        prost::encoding::encode_varint(u64::try_from(list.len()).unwrap(), &mut any);
        any.extend_from_slice(&list);
        Bytes::from(any)
    };
    let of = |id: &str, count| {
        let mut change = upsert(id, b"");
        change.operation = Operation::Upsert {
            data: Some(texts(count)),
            network: None,
        };
        Batch { changes: vec![change] }
    };
    let (backend, _) = open_memory().await;
    let options = Options {
        capacity: None,
        indexable_fields: vec!["paths".to_owned()],
        ttl: None,
    };
    let set = || backend.set_options("t".to_owned(), Some(options.clone()));
    set().await.unwrap();
    // The first two are too much together; the last one is by itself.
    let batches = vec![of("a", 1_300_000), of("b", 1_300_000), of("c", 2_100_000)];
    let put = backend.put(batches, NOW).await.unwrap();
    assert!(put.batches[0].is_ok() && put.batches[1].is_ok(), "{:?}", put.batches);
    assert!(
        matches!(&put.batches[2], Err(Refusal::Exhausted(text)) if text.contains("indexed fields")),
        "{:?}",
        put.batches[2]
    );
    for (after, found) in [(None, "a"), (Some("a"), "b")] {
        let mut request = scan(after, 1);
        request.hint = Some(Hint::Field {
            path: "paths".to_owned(),
            value: "x".to_owned(),
        });
        assert_eq!(backend.scan(request).await.unwrap().records[0].key.id, found);
    }

    // What is there already cannot be indexed either, and stays as it was.
    backend.set_options("t".to_owned(), None).await.unwrap();
    let put = backend.put(vec![of("c", 2_100_000)], NOW).await.unwrap();
    assert!(put.batches[0].is_ok());
    let error = set().await.unwrap_err();
    assert!(matches!(error, BackendError::Exhausted(_)), "{error:?}");
    assert_eq!(backend.list_options().await.unwrap(), []);
    assert_eq!(backend.count(None).await.unwrap(), 3);
}
