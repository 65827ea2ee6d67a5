//! Tables of cases.

use memory::{ChangesRequest, Checkpoint, EvictRequest, Service};

use super::*;

fn outcome(outcome: &Outcome<Data>) -> String {
    match outcome {
        Outcome::Stored(version) => format!("stored {version}"),
        Outcome::Deleted(tombstone) => {
            let data = tombstone.data().map(|data| String::from_utf8_lossy(data).into_owned());
            format!("deleted {} {}", tombstone.version(), data.unwrap_or_default())
        }
        Outcome::Missing => "missing".to_owned(),
    }
}

#[test]
fn batches_are_whole_or_nothing() {
    let cases: &[(&str, Batch<Data>, &str)] = &[
        ("the first", vec![upsert("t", "a", "1")], "stored 1"),
        (
            "two",
            vec![upsert("t", "b", "2"), upsert("u", "a", "3")],
            "stored 2, stored 3",
        ),
        (
            "the same key twice",
            vec![upsert("t", "a", "4"), upsert("t", "a", "5")],
            "stored 4, stored 5",
        ),
        ("nothing to delete", vec![delete("t", "z")], "missing"),
        ("no type to delete from", vec![delete("z", "a")], "missing"),
        ("delete", vec![delete("t", "a")], "deleted 6 5"),
        (
            "delete again",
            vec![delete("t", "a"), upsert("t", "c", "6")],
            "missing, stored 7",
        ),
        (
            "delete what the batch wrote",
            vec![upsert("t", "d", "7"), delete("t", "d")],
            "stored 8, deleted 9 7",
        ),
        ("expected", vec![expecting(2, upsert("t", "b", "8"))], "stored 10"),
        ("expected none", vec![expecting(0, upsert("t", "e", "9"))], "stored 11"),
        (
            "unexpected",
            vec![upsert("t", "f", ""), expecting(2, upsert("t", "b", ""))],
            "conflict 1",
        ),
        ("unexpectedly there", vec![expecting(0, delete("t", "b"))], "conflict 0"),
        (
            "unexpectedly missing",
            vec![expecting(6, delete("t", "a"))],
            "conflict 0",
        ),
        (
            "expected as an earlier step left it",
            vec![upsert("t", "g", "10"), expecting(12, upsert("t", "g", "11"))],
            "stored 12, stored 13",
        ),
        (
            "expected none after a delete in the batch",
            vec![delete("t", "g"), expecting(0, upsert("t", "g", "12"))],
            "deleted 14 11, stored 15",
        ),
        (
            "a missing record uses no version within a batch either",
            vec![
                delete("t", "z"),
                upsert("t", "g", "13"),
                expecting(16, delete("t", "g")),
            ],
            "missing, stored 16, deleted 17 13",
        ),
        (
            "expected none of what is missing",
            vec![expecting(0, delete("t", "z"))],
            "missing",
        ),
        ("nothing", vec![], ""),
        ("empty names", vec![upsert("", "", "")], "stored 18"),
    ];
    let mut store = store();
    for (name, batch, expected) in cases {
        let before = (scan(&store, None, None, BIG), store.position(), store.measure());
        let result = match put(&mut store, batch.clone(), 7) {
            Ok(outcomes) => outcomes.iter().map(outcome).collect::<Vec<_>>().join(", "),
            Err(Refusal::Conflict(step)) => format!("conflict {step}"),
            Err(Refusal::Exhausted(text)) => text,
        };
        assert_eq!(result, *expected, "{name}");
        if result.starts_with("conflict") {
            assert_eq!(
                (scan(&store, None, None, BIG), store.position(), store.measure()),
                before,
                "{name}: left a trace"
            );
        }
    }
}

#[test]
fn a_refused_batch_does_not_disturb_the_others() {
    let mut store = store();
    let batches = vec![
        vec![upsert("t", "a", "1")],
        vec![upsert("t", "b", "2"), expecting(9, upsert("t", "a", "2"))],
        vec![expecting(1, upsert("t", "a", "3"))],
    ];
    let result = store.put(batches, 1, &extract, &|| true);
    assert_eq!(result.batches[1].as_ref().unwrap_err(), &Refusal::Conflict(1));
    assert_eq!(outcome(&result.batches[2].as_ref().unwrap()[0]), "stored 2");
    assert_eq!(ids(&scan(&store, None, None, BIG)), "a");
}

#[test]
fn data_comes_back_as_it_was_put() {
    let mut store = store();
    let without = Change {
        operation: Operation::Upsert {
            data: None,
            network: None,
        },
        ..upsert("t", "none", "")
    };
    put(
        &mut store,
        vec![without, upsert("t", "empty", ""), upsert("t", "some", "\0x")],
        3,
    )
    .unwrap();
    let data = |id| store.get("t", id).unwrap().data().cloned();
    assert_eq!(
        (data("none"), data("empty"), data("some")),
        (None, Some(vec![]), Some(b"\0x".to_vec()))
    );
    assert!(store.get("t", "").is_none() && store.get("", "some").is_none());
}

#[test]
fn a_tombstone_has_the_last_data_and_the_time_of_the_delete() {
    let mut store = store();
    put(&mut store, vec![upsert("t", "a", "last")], 5).unwrap();
    put(&mut store, vec![delete("t", "a")], 8).unwrap();
    let expected = (2, "t".to_owned(), "a".to_owned(), Some(b"last".to_vec()), 8, Some(8));
    assert_eq!(changes(&store, 1, None, BIG), Ok(vec![expected.clone()]));
    store.prune(9, 1);
    assert_eq!(
        changes(&store, 1, None, BIG),
        Ok(vec![expected]),
        "the data outlives the change that wrote it"
    );
}

#[test]
fn pages_stop_at_either_bound_and_hold_one_record() {
    let mut store = store();
    let batch = ["a", "b", "c", "d", "e"].map(|id| upsert("t", id, "12345678"));
    put(&mut store, batch.to_vec(), 1).unwrap();
    for (records, bytes, expected) in [
        (usize::MAX, u64::MAX, 5),
        (2, u64::MAX, 2),
        (usize::MAX, 30, 3),
        (usize::MAX, 29, 2),
        (0, 0, 1),
        (usize::MAX, 1, 1),
        (5, u64::MAX, 5),
    ] {
        let bounds = Bounds { records, bytes };
        let page = store.scan(&ScanRequest {
            bounds,
            ..scan_request(None)
        });
        assert_eq!(
            (page.records.len(), page.more),
            (expected, expected < 5),
            "scan {bounds:?}"
        );
        assert_eq!(ids(&scan(&store, Some("t"), None, bounds)), "a b c d e", "{bounds:?}");
        let page = store
            .changes(&ChangesRequest {
                after: 0,
                record_type: None,
                bounds,
            })
            .unwrap();
        assert_eq!(
            (page.records.len(), page.through),
            (expected, expected as u64),
            "changes {bounds:?}"
        );
    }
}

#[test]
fn a_scan_continues_after_any_key() {
    let mut store = store();
    let batch = [("s", "b"), ("s", "d"), ("t", ""), ("t", "b")].map(|(record_type, id)| upsert(record_type, id, ""));
    put(&mut store, batch.to_vec(), 1).unwrap();
    for (record_type, after, expected) in [
        (None, ("", ""), "s/b s/d t/ t/b"),
        (None, ("s", "c"), "s/d t/ t/b"),
        (None, ("s", "d"), "t/ t/b"),
        (None, ("sa", ""), "t/ t/b"),
        (None, ("t", ""), "t/b"),
        (None, ("u", ""), ""),
        (Some("t"), ("s", "z"), "t/ t/b"),
        (Some("t"), ("u", ""), ""),
        (Some("s"), ("s", "b"), "s/d"),
        (Some("z"), ("", ""), ""),
    ] {
        let page = store.scan(&ScanRequest {
            after: Some((after.0.to_owned(), after.1.to_owned())),
            ..scan_request(record_type)
        });
        let found: Vec<_> = page
            .records
            .iter()
            .map(|entry| format!("{}/{}", entry.record_type(), entry.id()))
            .collect();
        assert_eq!(
            (found.join(" ").as_str(), page.more),
            (expected, false),
            "{record_type:?} after {after:?}"
        );
    }
}

#[test]
fn changes_of_one_type_reach_as_far_as_those_of_all() {
    let mut store = store();
    for (record_type, id) in [("s", "a"), ("t", "a"), ("t", "b"), ("s", "b"), ("t", "c"), ("t", "d")] {
        put(&mut store, vec![upsert(record_type, id, "")], 1).unwrap();
    }
    for (after, record_type, expected, through) in [
        (0, Some("s"), "a b", 6),
        (1, Some("s"), "b", 6),
        (4, Some("s"), "", 6),
        (2, Some("t"), "b c d", 6),
        (0, Some("z"), "", 6),
        (5, None, "d", 6),
        (6, None, "", 6),
        (9, None, "", 9),
        (9, Some("t"), "", 9),
    ] {
        let request = ChangesRequest {
            after,
            record_type: record_type.map(str::to_owned),
            bounds: BIG,
        };
        let page = store.changes(&request).unwrap();
        let found: Vec<_> = page.records.iter().map(|entry| seen(entry)).collect();
        assert_eq!((ids(&found).as_str(), page.through), (expected, through), "{request:?}");
    }
}

#[test]
fn pruning_keeps_the_newest_change() {
    let mut store = store();
    for now in 1..=5 {
        put(&mut store, vec![upsert("t", "a", "")], now).unwrap();
    }
    let pruned = store.prune(3, 1);
    assert_eq!(
        (pruned.removed, pruned.more, pruned.position.earliest_version),
        (1, true, 2)
    );
    assert_eq!(changes(&store, 0, None, BIG), Err(1));
    assert_eq!(changes(&store, 1, None, BIG).unwrap().len(), 4);
    let pruned = store.prune(3, 9);
    assert_eq!(
        (pruned.removed, pruned.more, pruned.position.earliest_version),
        (1, false, 3)
    );
    let pruned = store.prune(99, 99);
    assert_eq!(
        (pruned.removed, pruned.more, pruned.position.earliest_version),
        (2, false, 5)
    );
    assert_eq!(changes(&store, 3, Some("t"), BIG), Err(4));
    assert_eq!(changes(&store, 3, Some("z"), BIG), Err(4));
    assert_eq!(ids(&scan(&store, None, None, BIG)), "a");
}

#[test]
fn eviction_takes_the_lowest_versions_that_are_surplus_or_old() {
    let mut store = store();
    for (now, id) in (1..).zip(["e", "d", "c", "b", "a"]) {
        put(&mut store, vec![upsert("t", id, "data"), upsert("u", id, "")], now).unwrap();
    }
    put(&mut store, vec![upsert("t", "d", "again")], 6).unwrap();
    let mut evict = |modified_before, keep, max_records| {
        let evicted = store.evict(
            &EvictRequest {
                record_type: "t".to_owned(),
                modified_before,
                keep,
                max_records,
            },
            9,
        );
        assert!(
            evicted
                .tombstones
                .iter()
                .all(|tombstone| tombstone.deleted_at() == Some(9))
        );
        let ids: Vec<_> = evicted
            .tombstones
            .iter()
            .map(|tombstone| tombstone.id().to_owned())
            .collect();
        format!("{}{}", ids.join(" "), if evicted.more { " +" } else { "" })
    };
    assert_eq!(evict(None, None, 9), "");
    assert_eq!(evict(None, Some(5), 9), "");
    assert_eq!(evict(Some(1), Some(9), 9), "");
    assert_eq!(evict(Some(4), Some(4), 1), "e +");
    assert_eq!(evict(Some(4), Some(4), 1), "c");
    assert_eq!(evict(None, Some(1), 1), "b +");
    assert_eq!(evict(None, Some(1), 9), "a");
    assert_eq!(evict(Some(7), None, 9), "d");
    assert_eq!(evict(Some(7), Some(0), 9), "");
    assert_eq!(
        (store.count(Some("t")), store.count(Some("u")), store.count(None)),
        (0, 5, 5)
    );
    assert_eq!(store.types().collect::<Vec<_>>(), ["u"]);
}

#[test]
fn eviction_by_age_survives_a_clock_that_is_set_back() {
    let mut store = store();
    for (now, id) in [(100, "a"), (10, "b"), (11, "c"), (101, "d"), (102, "e")] {
        put(&mut store, vec![upsert("t", id, "")], now).unwrap();
    }
    for (before, expected) in [(11, "b"), (12, "c"), (101, "a"), (102, "d"), (103, "e")] {
        let evicted = store.evict(
            &EvictRequest {
                record_type: "t".to_owned(),
                modified_before: Some(before),
                keep: None,
                max_records: 9,
            },
            200,
        );
        let found: Vec<_> = evicted.tombstones.iter().map(|tombstone| seen(tombstone)).collect();
        assert_eq!(ids(&found), expected, "before {before}");
    }
}

#[test]
fn hints_narrow_without_losing_anything() {
    let mut store = store();
    let data = [
        ("a", "x=1;y=1"),
        ("b", "x=2"),
        ("c", "x=1;x=2"),
        ("d", ""),
        ("e", "y=1"),
    ];
    put(&mut store, data.map(|(id, data)| upsert("t", id, data)).to_vec(), 1).unwrap();
    let find = |store: &Store<Data>, path: &str, value: &str| {
        let hint = || {
            Some(Hint::Field {
                path: path.to_owned(),
                value: value.to_owned(),
            })
        };
        let one = Bounds { records: 1, bytes: 1 };
        let found = scan(store, Some("t"), hint(), BIG);
        assert_eq!(scan(store, Some("t"), hint(), one), found, "page by page");
        ids(&found)
    };
    assert_eq!(
        find(&store, "x", "1"),
        "a b c d e",
        "what is not indexed narrows nothing"
    );
    store
        .set_options("t".to_owned(), indexing(&["x", "x"]), &extract)
        .unwrap();
    assert_eq!(find(&store, "x", "1"), "a c");
    assert_eq!(find(&store, "x", "2"), "b c");
    assert_eq!(find(&store, "x", "3"), "");
    assert_eq!(find(&store, "y", "1"), "a b c d e");
    put(
        &mut store,
        vec![upsert("t", "a", "x=2"), delete("t", "b"), upsert("t", "f", "x=1")],
        2,
    )
    .unwrap();
    assert_eq!(find(&store, "x", "1"), "c f");
    assert_eq!(find(&store, "x", "2"), "a c");
    store.set_options("t".to_owned(), indexing(&["y"]), &extract).unwrap();
    assert_eq!(find(&store, "x", "2"), "a c d e f");
    assert_eq!(find(&store, "y", "1"), "e");
    store.set_options("t".to_owned(), None, &extract).unwrap();
    assert_eq!(find(&store, "y", "1"), "a c d e f");
    assert_eq!(store.options().count(), 0);
}

#[test]
fn an_index_is_not_asked_before_it_is_whole() {
    let mut store = store();
    let batch = (0..2000)
        .map(|number| upsert("t", &format!("{number:04}"), "x=1"))
        .collect();
    put(&mut store, batch, 1).unwrap();
    let hint = Some(Hint::Field {
        path: "x".to_owned(),
        value: "1".to_owned(),
    });
    let mut reindex = store.start_reindex("t".to_owned(), indexing(&["x"])).unwrap();
    let mut steps = 0;
    while !store.continue_reindex(&mut reindex, &extract, &|| true).unwrap() {
        steps += 1;
        assert_eq!(scan(&store, Some("t"), hint.clone(), BIG).len(), 2000);
    }
    assert_eq!(steps, 4);
    assert_eq!(scan(&store, Some("t"), hint, BIG).len(), 2000);
}

#[test]
fn networks_are_found_over_all_types() {
    let mut store = store();
    let batch = vec![
        upsert("s", "a", "net:10.0.0.0/8"),
        upsert("s", "b", "net:10.1.0.0/16"),
        upsert("t", "c", "net:0.0.0.0/0"),
        upsert("t", "d", "none"),
        upsert("t", "e", "net:2001:db8::/32"),
    ];
    put(&mut store, batch, 1).unwrap();
    let find = |store: &Store<Data>, record_type, prefix: &str, bounds| {
        ids(&scan(
            store,
            record_type,
            Some(Hint::Network(prefix.parse().unwrap())),
            bounds,
        ))
    };
    let one = Bounds { records: 1, bytes: 1 };
    assert_eq!(find(&store, None, "10.1.2.3/32", BIG), "a b c");
    assert_eq!(find(&store, None, "10.1.2.3/32", one), "a b c");
    assert_eq!(find(&store, Some("s"), "10.9.0.0/16", BIG), "a");
    assert_eq!(find(&store, None, "2001:db8::1/128", one), "e");
    store.set_options("s".to_owned(), indexing(&["x"]), &extract).unwrap();
    put(
        &mut store,
        vec![upsert("s", "a", "net:192.168.0.0/16"), delete("t", "c")],
        2,
    )
    .unwrap();
    assert_eq!(
        find(&store, None, "10.1.2.3/32", BIG),
        "b",
        "with and without a field index"
    );
}

#[test]
fn clear_keeps_versions_leases_and_services() {
    let mut store = store();
    let service = Service {
        kind: 1,
        endpoint: "https://a".to_owned(),
    };
    let hold = |id: &str| memory::Lease {
        name: "lease".to_owned(),
        id: id.to_owned(),
        action: memory::LeaseAction::Hold(100),
    };
    store.set_options("t".to_owned(), indexing(&["x"]), &extract).unwrap();
    store.lease(vec![hold("a")], 1).unwrap();
    store.report_services(vec![service.clone()], 10, 1).unwrap();
    store.set_checkpoint(Checkpoint {
        server_version: 3,
        record_version: 4,
    });
    for now in 1..=3 {
        put(&mut store, vec![upsert("t", "a", "x=1")], now).unwrap();
    }
    store.prune(3, 9);
    let position = store.clear(7);
    assert_eq!(
        (
            position.server_version,
            position.earliest_version,
            position.latest_version
        ),
        (7, 0, 3)
    );
    assert_eq!(
        changes(&store, 0, None, BIG),
        Ok(vec![]),
        "nothing is missing from a log that begins anew"
    );
    assert_eq!(
        (store.count(None), store.options().count(), store.checkpoint()),
        (0, 0, Checkpoint::default())
    );
    assert_eq!(store.lease(vec![hold("b"), hold("a")], 2).unwrap(), [false, true]);
    assert_eq!(store.services(10).collect::<Vec<_>>(), [&service]);
    assert_eq!(store.services(11).count(), 0);
    assert_eq!(
        outcome(&put(&mut store, vec![upsert("t", "a", "")], 9).unwrap()[0]),
        "stored 4"
    );
    assert_eq!(changes(&store, 0, None, BIG).unwrap().len(), 1);
}

#[test]
fn services_are_listed_in_order_and_revised() {
    let mut store = store();
    let service = |kind, endpoint: &str| Service {
        kind,
        endpoint: endpoint.to_owned(),
    };
    let first = store.observed();
    store
        .report_services(vec![service(2, "a"), service(1, "b"), service(1, "a")], 10, 0)
        .unwrap();
    store.report_services(vec![service(1, "b")], 20, 0).unwrap();
    let second = store.observed();
    assert_ne!(first.services_revision, second.services_revision);
    let order = [service(1, "a"), service(1, "b"), service(2, "a")];
    assert_eq!(store.services(9).collect::<Vec<_>>(), order.iter().collect::<Vec<_>>());
    assert_eq!(store.observed(), second);
    assert_eq!(store.expire_services(10), Some(20));
    assert_ne!(store.observed().services_revision, second.services_revision);
    assert!(!format!("{:?}", service(1, "https://user:password@host")).contains("password"));
}
