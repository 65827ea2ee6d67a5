//! The budget: history goes first, then writes are refused; deletes and reads go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{EvictRequest, Lease, LeaseAction, Service, SettingsError};

use super::*;

const KIBIBYTE: u64 = 1 << 10;

fn bounded(bytes: u64) -> Store<Data> {
    Store::new(Budget::of(bytes), 1)
}

fn fill(store: &mut Store<Data>, prefix: &str) -> usize {
    let data = "x".repeat(600);
    let mut count = 0;
    loop {
        match put(store, vec![upsert("t", &format!("{prefix}{count}"), &data)], 1) {
            Ok(_) => count += 1,
            Err(Refusal::Exhausted(text)) => {
                assert!(text.contains("budget"), "{text}");
                return count;
            }
            Err(refusal) => panic!("{refusal:?}"),
        }
    }
}

#[test]
fn connection_strings() {
    let budget = |bytes| Ok(Budget::of(bytes));
    for (text, expected) in [
        (None, Ok(Budget::DEFAULT)),
        (Some(""), Ok(Budget::DEFAULT)),
        (Some("  "), Ok(Budget::DEFAULT)),
        (Some("memory://"), Ok(Budget::DEFAULT)),
        (Some("memory://?"), Ok(Budget::DEFAULT)),
        (Some("memory://?budget=512MiB"), budget(512 << 20)),
        (Some("memory://?budget=3000MiB"), budget(3000 << 20)),
        (Some("memory://?budget=3GiB"), Err(SettingsError::Range)),
        (Some("memory://?budget=2048KiB"), budget(2 << 20)),
        (Some("memory://?budget=1048576"), budget(1 << 20)),
        (Some("memory://?budget=1048576B"), budget(1 << 20)),
        (Some("memory://?budget=4GiB"), Err(SettingsError::Range)),
        (Some("memory://?budget=1KiB"), Err(SettingsError::Range)),
        (Some("memory://?budget=0"), Err(SettingsError::Range)),
        (Some("memory://?budget=99999999999GiB"), Err(SettingsError::Range)),
        (Some("memory://?budget="), Err(SettingsError::Size)),
        (Some("memory://?budget=MiB"), Err(SettingsError::Size)),
        (Some("memory://?budget=1.5GiB"), Err(SettingsError::Size)),
        (Some("memory://?budget=1GB"), Err(SettingsError::Size)),
        (Some("memory://?budget=-1GiB"), Err(SettingsError::Size)),
        (Some("memory://?budget=1GiB&budget=2GiB"), Err(SettingsError::Repeated)),
        (Some("memory://?bugdet=1GiB"), Err(SettingsError::Parameter)),
        (Some("memory://?budget"), Err(SettingsError::Parameter)),
        (Some("memory://host"), Err(SettingsError::Form)),
        (Some("postgres://user:password@host/name"), Err(SettingsError::Form)),
    ] {
        assert_eq!(Budget::from_connection_string(text), expected, "{text:?}");
        if let Err(error) = expected {
            assert!(!error.to_string().contains("password"));
        }
    }
    assert_eq!(Budget::of(512 << 20).to_string(), "512 MiB");
}

#[test]
fn history_is_given_up_before_writes_are_refused() {
    let mut store = bounded(256 * KIBIBYTE);
    let data = "x".repeat(600);
    for now in 0..1000 {
        put(&mut store, vec![upsert("t", &format!("{}", now % 100), &data)], now).unwrap();
    }
    let statistics = store.measure();
    assert_eq!(store.count(None), 100);
    assert!(statistics.pruned_for_space > 500, "{statistics:?}");
    assert!(statistics.used_bytes <= 256 * KIBIBYTE, "{statistics:?}");
    assert!(
        statistics.used_bytes > 250 * KIBIBYTE,
        "history is kept as long as there is room: {statistics:?}"
    );
    assert_eq!(changes(&store, 0, None, BIG), Err(statistics.pruned_for_space));
    assert_eq!(
        changes(&store, statistics.pruned_for_space, None, BIG).unwrap().len() as u64,
        statistics.changes
    );
}

#[test]
fn live_records_are_refused_at_the_limit_and_deletes_make_room() {
    let mut store = bounded(256 * KIBIBYTE);
    let count = fill(&mut store, "a");
    let before = (scan(&store, None, None, BIG), store.position(), store.measure());
    assert!(fill(&mut store, "b") == 0);
    let big = "x".repeat(300_000);
    assert!(matches!(
        put(&mut store, vec![upsert("t", "a0", &big)], 1),
        Err(Refusal::Exhausted(_))
    ));
    let mixed = vec![delete("t", "a0"), upsert("t", "c", &big)];
    assert!(matches!(put(&mut store, mixed, 1), Err(Refusal::Exhausted(_))));
    assert_eq!(
        (scan(&store, None, None, BIG), store.position(), store.measure()),
        before,
        "refused, without a trace"
    );

    let same = store.get("t", "a1").unwrap().data().unwrap().clone();
    put(
        &mut store,
        vec![upsert("t", "a1", std::str::from_utf8(&same).unwrap())],
        2,
    )
    .expect("overwrites need no room");
    put(&mut store, vec![delete("t", "a2"), upsert("t", "b0", "x")], 2).expect("the batch makes its own room");
    let deletes = (3..count).map(|number| delete("t", &format!("a{number}"))).collect();
    assert_eq!(put(&mut store, deletes, 3).unwrap().len(), count - 3);
    assert_eq!(ids(&scan(&store, None, None, BIG)), "a0 a1 b0");
    assert!(fill(&mut store, "c") >= count - 4, "the space is there again");
}

#[test]
fn leases_and_services_go_on_in_a_full_store() {
    let mut store = bounded(256 * KIBIBYTE);
    let hold = |name: &str, id: &str, for_long: u64| {
        vec![Lease {
            name: name.to_owned(),
            id: id.to_owned(),
            action: LeaseAction::Hold(for_long),
        }]
    };
    let service = || {
        vec![Service {
            kind: 1,
            endpoint: "http://leader".to_owned(),
        }]
    };
    assert_eq!(store.lease(hold("leader", "me", 10), 1), Ok(vec![true]));
    store.report_services(service(), 10, 1).unwrap();
    assert!(fill(&mut store, "a") > 0);
    assert_eq!(store.lease(hold("leader", "me", 10), 5), Ok(vec![true]), "renewed");
    assert_eq!(store.lease(hold("leader", "you", 10), 20), Ok(vec![true]), "taken over");
    assert_eq!(store.lease(hold("cleaner", "you", 10), 20), Ok(vec![true]), "a new one");
    store.report_services(service(), 10, 5).expect("known already");
    assert_eq!(fill(&mut store, "b"), 0, "records stay refused");

    let mut taken = 0;
    while store.lease(hold(&format!("{taken}"), "me", 1_000), 30).is_ok() {
        taken += 1;
        assert!(taken < 10_000, "they have no end");
    }
    assert_eq!(
        store.lease(hold("0", "me", 1_000), 31),
        Ok(vec![true]),
        "renewals need no room"
    );
    assert!(store.measure().used_bytes <= 256 * KIBIBYTE + KIBIBYTE);
}

#[test]
fn eviction_works_in_a_full_store() {
    let mut store = bounded(256 * KIBIBYTE);
    let count = fill(&mut store, "a");
    let request = EvictRequest {
        record_type: "t".to_owned(),
        modified_before: None,
        keep: Some(10),
        max_records: u32::MAX,
    };
    assert_eq!(store.evict(&request, 2).tombstones.len(), count - 10);
    assert!(store.measure().used_bytes <= 256 * KIBIBYTE);
    assert!(fill(&mut store, "b") >= count - 11);
}

#[test]
fn overwriting_for_hours_does_not_grow() {
    let mut store = store();
    let mut highest = (0, 0);
    for now in 0..200_000_i64 {
        let batch = vec![
            upsert("t", &format!("{}", now % 50), &"x".repeat(100)),
            upsert("u", "", "x=1"),
        ];
        put(&mut store, batch, now).unwrap();
        store.prune(now - 100, 1000);
        let used = store.measure().used_bytes;
        if now < 1000 {
            highest.0 = used.max(highest.0)
        } else {
            highest.1 = used.max(highest.1)
        }
    }
    assert!(highest.1 <= highest.0, "{highest:?}");
}

#[test]
fn types_that_come_and_go_leave_nothing() {
    let mut store = store();
    for now in 0..1000 {
        let name = format!("type {now}");
        put(&mut store, vec![upsert(&name, "a", "net:10.0.0.0/8")], now).unwrap();
        put(&mut store, vec![delete(&name, "a")], now).unwrap();
        store.prune(now, 1000);
    }
    let used = store.measure().used_bytes;
    assert!(used < 4 * KIBIBYTE, "{used}");
}

#[test]
fn indexes_and_small_state_are_counted() {
    let mut store = bounded(64 * KIBIBYTE);
    let long = format!("x={}", "v".repeat(1000));
    for number in 0..25 {
        put(&mut store, vec![upsert("t", &format!("{number}"), &long)], 1).unwrap();
    }
    let before = (scan(&store, None, None, BIG), store.measure());
    assert!(
        store
            .set_options("t".to_owned(), indexing(&["x", "y"]), &extract)
            .is_err(),
        "the index is too large"
    );
    assert_eq!(
        (scan(&store, None, None, BIG), store.measure().used_bytes),
        (before.0, before.1.used_bytes)
    );
    assert_eq!(store.options().count(), 0);
    store
        .set_options("t".to_owned(), indexing(&["y"]), &extract)
        .expect("this one is small");

    let hold = |name: String| Lease {
        name,
        id: "id".to_owned(),
        action: LeaseAction::Hold(1),
    };
    let refused = store.lease(vec![hold("l".repeat(40_000))], 1).unwrap_err();
    assert!(
        refused.to_string().contains("leases, services and options"),
        "{refused}"
    );
    assert_eq!(store.lease(vec![hold("small".to_owned())], 1), Ok(vec![true]));
    let service = Service {
        kind: 1,
        endpoint: "s".repeat(40_000),
    };
    assert!(store.report_services(vec![service], 1, 1).is_err());
    assert_eq!(store.services(1).count(), 0);
    let service = || Service {
        kind: 1,
        endpoint: "s".repeat(1000),
    };
    let before = store.measure().used_bytes;
    for now in 1..1000 {
        store.report_services(vec![service()], 1, now).unwrap();
    }
    store.expire_services(1000);
    assert_eq!(store.measure().used_bytes, before);
}

#[test]
fn an_instance_without_memory_refuses_what_adds() {
    let mut store = store();
    let batch = (0..100)
        .map(|number| upsert("t", &format!("{number}"), "data"))
        .collect();
    put(&mut store, batch, 1).unwrap();
    let mut put_scarce = |change| {
        store
            .put(vec![vec![change]], 2, &extract, &|| false)
            .batches
            .pop()
            .unwrap()
    };
    assert!(
        matches!(put_scarce(upsert("t", "new", "data")), Err(Refusal::Exhausted(text)) if text.contains("instance"))
    );
    assert!(put_scarce(upsert("t", "1", "more")).is_ok(), "no larger than before");
    assert!(put_scarce(delete("t", "2")).is_ok());
    assert_eq!(store.count(None), 99);
    assert!(store.measure().pruned_for_space > 90, "history was given up first");
}

#[test]
fn more_last_data_than_an_answer_holds_is_refused_and_costs_no_history() {
    let mut store = store();
    let data = "x".repeat(4 << 20);
    for number in 0..17 {
        put(&mut store, vec![upsert("t", &format!("{number}"), &data)], 1).unwrap();
    }
    let deletes: Vec<_> = (0..17).map(|number| delete("t", &format!("{number}"))).collect();
    let refused = put(&mut store, deletes.clone(), 2);
    assert!(matches!(refused, Err(Refusal::Exhausted(text)) if text.contains("delete fewer")));
    assert_eq!((store.count(None), store.measure().changes), (17, 17));
    assert!(put(&mut store, deletes[..15].to_vec(), 2).is_ok());
}

/// Data that says how much of it there is.
struct Counted(Vec<u8>, Arc<AtomicU64>);

impl Counted {
    fn new(length: usize, all: &Arc<AtomicU64>) -> Self {
        all.fetch_add(length as u64, Ordering::Relaxed);
        Self(vec![7; length], Arc::clone(all))
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
    }
}

#[test]
fn history_stays_within_an_instance_that_is_smaller_than_the_budget() {
    let mut store = Store::new(Budget::of(64 << 20), 1);
    let all = Arc::new(AtomicU64::new(0));
    let room = 256 * KIBIBYTE;
    let has_room = || all.load(Ordering::Relaxed) < room;
    for now in 0..2_000 {
        let overwrite = Change {
            record_type: "t".to_owned(),
            id: "1".to_owned(),
            operation: Operation::Upsert {
                data: Some(Counted::new(1000, &all)),
                network: None,
            },
            expected: None,
        };
        let result = store.put(vec![vec![overwrite]], now, &extract, &has_room);
        assert!(result.batches.iter().all(Result::is_ok), "overwrites go on");
        let used = all.load(Ordering::Relaxed);
        assert!(used <= room + 2 * 1000, "{used} bytes");
    }
    assert!(store.measure().changes > 100, "as much history as there is room for");
}

#[test]
fn what_fills_the_store_is_named() {
    let mut store = bounded(64 * KIBIBYTE);
    let hold = |number: u32| Lease {
        name: format!("{number:01000}"),
        id: "id".to_owned(),
        action: LeaseAction::Hold(1000),
    };
    let refused = (0..100)
        .find_map(|number| store.lease(vec![hold(number)], 1).err())
        .unwrap()
        .to_string();
    assert!(
        refused.contains(" 0 bytes of live records") && !refused.contains(" 0 of leases"),
        "{refused}"
    );
}
