//! Answers that break a law, one by one; each is refused for the law that it breaks.

use bytes::Bytes;

use crate::backend::{
    BackendError, Batch, Change, ChangesPage, ChangesRequest, EvictRequest, Evicted, Operation, Outcome, PageBounds,
    Position, Pruned, PutResult, Refusal, ScanPage,
};
use crate::component::laws::{self, Broken, PutShape};
use crate::record::{Key, Options, Record, Service, Timestamp};

const BOUNDS: PageBounds = PageBounds { records: 2, bytes: 10 };
const POSITION: Position = Position {
    server_version: 7,
    earliest_version: 1,
    latest_version: 9,
};

fn record(id: &str, version: u64) -> Record {
    Record {
        version,
        key: Key::new("t", id),
        data: Some(Bytes::from_static(b"\x0a\x02ab")),
        modified_at: Timestamp(1),
        deleted_at: None,
    }
}

/// A record whose data is a text that is longer than what is left.
fn garbled(id: &str, version: u64) -> Record {
    Record {
        data: Some(Bytes::from_static(b"\x0a\x7fx")),
        ..record(id, version)
    }
}

fn tombstone(id: &str, version: u64) -> Record {
    Record {
        deleted_at: Some(Timestamp(2)),
        ..record(id, version)
    }
}

/// Holds a check to what it should find: nothing, or a law that has these words.
fn expect(name: &str, found: Result<(), Broken>, law: Option<&str>) {
    let said = found.err().map(|broken| broken.into_error("p", "f").to_string());
    match (&said, law) {
        (None, None) => {}
        (Some(said), Some(law)) => assert!(said.contains(law), "{name}: {law:?} is not in {said:?}"),
        (said, law) => panic!("{name}: {said:?} instead of {law:?}"),
    }
}

#[test]
fn the_error_names_plugin_function_and_law() {
    let error = Broken::new("the law").into_error("mine", "get");
    let BackendError::Internal(said) = error else {
        panic!("{error:?}")
    };
    for word in ["\"mine\"", "`get`", "the law"] {
        assert!(said.contains(word), "{said}");
    }
}

#[test]
fn answers_of_get() {
    let keys = [Key::new("t", "a"), Key::new("t", "b")];
    let cases = [
        ("good", vec![Some(record("a", 1)), None], None),
        ("one too few", vec![None], Some("one answer per key")),
        ("one too many", vec![None, None, None], Some("one answer per key")),
        (
            "swapped",
            vec![Some(record("b", 1)), None],
            Some("the record with that key"),
        ),
        ("dead", vec![Some(tombstone("a", 1)), None], Some("no `deleted-at`")),
        ("version 0", vec![Some(record("a", 0)), None], Some("never 0")),
        (
            "no protobuf",
            vec![Some(garbled("a", 1)), None],
            Some("google.protobuf.Any"),
        ),
    ];
    for (name, answers, law) in cases {
        expect(name, laws::answers(&keys, &answers), law);
    }
}

#[test]
fn results_of_put() {
    let change = |operation, expected| Change {
        key: Key::new("t", "a"),
        operation,
        expected,
    };
    let upsert = Operation::Upsert {
        data: None,
        network: None,
    };
    let batches = [
        Batch {
            changes: vec![change(upsert.clone(), None), change(Operation::Delete, Some(3))],
        },
        Batch {
            changes: vec![change(upsert, None)],
        },
    ];
    let stored = Outcome::Stored;
    let deleted = |id: &str, version| Outcome::Deleted(tombstone(id, version));
    let second = || Ok(vec![stored(6)]);
    let cases = [
        ("good", vec![Ok(vec![stored(4), deleted("a", 5)]), second()], None),
        ("missing", vec![Ok(vec![stored(4), Outcome::Missing]), second()], None),
        ("conflict", vec![Err(Refusal::Conflict(1)), second()], None),
        ("full", vec![Err(Refusal::Exhausted("full".to_owned())), second()], None),
        ("a batch less", vec![second()], Some("one result per batch")),
        (
            "a step less",
            vec![Ok(vec![stored(4)]), second()],
            Some("one outcome per step"),
        ),
        (
            "a delete that stores",
            vec![Ok(vec![stored(4), stored(5)]), second()],
            Some("the outcome of an upsert"),
        ),
        (
            "an upsert that is missing",
            vec![Ok(vec![Outcome::Missing, Outcome::Missing]), second()],
            Some("the outcome of an upsert"),
        ),
        (
            "another's tombstone",
            vec![Ok(vec![stored(4), deleted("b", 5)]), second()],
            Some("the key that was deleted"),
        ),
        (
            "a tombstone that lives",
            vec![Ok(vec![stored(4), Outcome::Deleted(record("a", 5))]), second()],
            Some("`deleted-at`"),
        ),
        (
            "falling",
            vec![Ok(vec![stored(4), deleted("a", 3)]), second()],
            Some("ascend"),
        ),
        (
            "falling over batches",
            vec![Ok(vec![stored(6), Outcome::Missing]), second()],
            Some("ascend"),
        ),
        (
            "as low as an earlier call's",
            vec![Ok(vec![stored(3), Outcome::Missing]), second()],
            Some("ascend"),
        ),
        (
            "version 0",
            vec![Ok(vec![stored(0), Outcome::Missing]), second()],
            Some("ascend"),
        ),
        (
            "conflict nowhere",
            vec![Err(Refusal::Conflict(2)), second()],
            Some("a step of the batch"),
        ),
        (
            "conflict unasked",
            vec![Err(Refusal::Conflict(0)), second()],
            Some("expected a version"),
        ),
    ];
    let shape = PutShape::new(&batches);
    for (name, batches, law) in cases {
        let result = PutResult {
            server_version: 7,
            options_revision: None,
            batches,
        };
        expect(name, shape.check(3, &result).map(drop), law);
    }
    let result = PutResult {
        server_version: 0,
        options_revision: None,
        batches: vec![],
    };
    expect("server version 0", shape.check(3, &result).map(drop), Some("never 0"));
}

#[test]
fn pages_of_scan() {
    let after = Key::new("t", "a");
    let large = Record {
        data: Some(Bytes::from([&b"\x0a\x62"[..], &[b'a'; 98]].concat())),
        ..record("b", 1)
    };
    let of_other_type = Record {
        key: Key::new("u", "b"),
        ..record("b", 1)
    };
    let cases = [
        ("good", vec![record("b", 2), record("c", 1)], true, None),
        ("empty", vec![], false, None),
        ("one large record", vec![large.clone()], true, None),
        (
            "the cursor again",
            vec![record("a", 1)],
            true,
            Some("begin after the key"),
        ),
        (
            "twice",
            vec![record("b", 1), record("b", 1)],
            true,
            Some("ascend strictly"),
        ),
        (
            "falling",
            vec![record("c", 1), record("b", 1)],
            true,
            Some("ascend strictly"),
        ),
        ("more of nothing", vec![], true, Some("one record at least")),
        ("another type", vec![of_other_type], false, Some("the type asked for")),
        ("dead", vec![tombstone("b", 1)], false, Some("no `deleted-at`")),
        ("no protobuf", vec![garbled("b", 1)], false, Some("google.protobuf.Any")),
        (
            "too many",
            vec![record("b", 1), record("c", 1), record("d", 1)],
            false,
            Some("no more records"),
        ),
        ("too large", vec![large, record("c", 1)], false, Some("no more bytes")),
    ];
    for (name, records, more, law) in cases {
        let page = ScanPage {
            records,
            more,
            position: POSITION,
        };
        expect(name, laws::scan_page(Some(&after), Some("t"), BOUNDS, &page), law);
    }
}

#[test]
fn pages_of_changes() {
    let of_other_type = Record {
        key: Key::new("u", "b"),
        ..record("b", 5)
    };
    // What was asked after, what came, through where.
    let cases = [
        ("good", 4, vec![tombstone("b", 5), record("a", 6)], 6, None),
        ("caught up", 4, vec![], 9, None),
        ("at the end", 9, vec![], 9, None),
        ("in the future", 20, vec![], 20, None),
        ("nothing new of this type yet", 4, vec![], 6, None),
        ("the cursor again", 4, vec![record("b", 4)], 5, Some("ascend strictly")),
        (
            "falling",
            4,
            vec![record("a", 6), record("b", 5)],
            6,
            Some("ascend strictly"),
        ),
        ("another type", 4, vec![of_other_type], 5, Some("the type asked for")),
        (
            "through before the last",
            4,
            vec![record("b", 6)],
            5,
            Some("`through` is no lower"),
        ),
        ("no protobuf", 4, vec![garbled("b", 5)], 5, Some("google.protobuf.Any")),
        ("through before the cursor", 4, vec![], 3, Some("`through` is no lower")),
        ("through the future", 4, vec![], 10, Some("`through` is no higher")),
        (
            "a record of the future",
            4,
            vec![record("b", 12)],
            12,
            Some("`through` is no higher"),
        ),
        ("standing still", 4, vec![], 4, Some("reaches further")),
    ];
    for (name, after, records, through, law) in cases {
        let request = ChangesRequest {
            after,
            record_type: Some("t".to_owned()),
            bounds: BOUNDS,
        };
        let page = ChangesPage {
            records,
            through,
            position: POSITION,
        };
        expect(name, laws::changes_page(&request, &page), law);
    }
    expect("pruned", laws::pruned_beyond(4, 5), None);
    expect(
        "pruned before",
        laws::pruned_beyond(4, 4),
        Some("higher than the one asked for"),
    );
}

#[test]
fn evictions_and_prunes() {
    let request = EvictRequest {
        record_type: "t".to_owned(),
        modified_before: None,
        keep: Some(0),
        max_records: 2,
    };
    let cases = [
        ("good", vec![tombstone("z", 3), tombstone("a", 4)], true, None),
        ("nothing", vec![], false, None),
        (
            "as low as an earlier call's",
            vec![tombstone("a", 2)],
            false,
            Some("ascend"),
        ),
        ("more of nothing", vec![], true, Some("one record at least")),
        ("alive", vec![record("a", 3)], false, Some("`deleted-at`")),
        (
            "falling",
            vec![tombstone("a", 3), tombstone("b", 3)],
            false,
            Some("ascend"),
        ),
        (
            "too many",
            vec![tombstone("a", 3), tombstone("b", 4), tombstone("c", 5)],
            false,
            Some("no more records"),
        ),
    ];
    for (name, tombstones, more, law) in cases {
        let evicted = Evicted {
            server_version: 7,
            tombstones,
            more,
        };
        expect(name, laws::evicted(2, &request, &evicted).map(drop), law);
    }

    let pruned = |removed, more| Pruned {
        removed,
        more,
        position: POSITION,
    };
    expect("prune", laws::pruned(5, &pruned(5, true)), None);
    expect(
        "prune too many",
        laws::pruned(5, &pruned(6, true)),
        Some("no more changes"),
    );
    expect(
        "prune nothing",
        laws::pruned(5, &pruned(0, true)),
        Some("one change at least"),
    );
}

#[test]
fn the_rest() {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    expect("types", laws::types(&texts(&["a", "b"])), None);
    expect("types twice", laws::types(&texts(&["a", "a"])), Some("ascend"));
    let options = |types: &[&str]| -> Vec<_> {
        types
            .iter()
            .map(|name| ((*name).to_owned(), Options::default()))
            .collect()
    };
    expect("options", laws::typed_options(&options(&["a", "b"])), None);
    expect(
        "options falling",
        laws::typed_options(&options(&["b", "a"])),
        Some("ascend"),
    );
    let service = |kind, endpoint: &str| Service {
        kind,
        endpoint: endpoint.to_owned(),
    };
    expect("services", laws::services(&[service(1, "z"), service(2, "a")]), None);
    expect(
        "services falling",
        laws::services(&[service(2, "a"), service(1, "z")]),
        Some("ascend"),
    );
    expect("leases", laws::leases(2, 2), None);
    expect("leases less", laws::leases(2, 1), Some("one answer per request"));
    let zero = Position {
        server_version: 0,
        ..POSITION
    };
    let turned = Position {
        earliest_version: 10,
        ..POSITION
    };
    expect("position", laws::position(&POSITION), None);
    expect("position 0", laws::position(&zero), Some("never 0"));
    expect("position turned", laws::position(&turned), Some("no newer"));
    let latest = POSITION.latest_version;
    expect("cleared", laws::cleared(latest, 7, &POSITION), None);
    expect(
        "cleared otherwise",
        laws::cleared(latest, 8, &POSITION),
        Some("`clear`"),
    );
    expect(
        "cleared to lower versions",
        laws::cleared(latest + 1, 7, &POSITION),
        Some("go on from"),
    );
}
