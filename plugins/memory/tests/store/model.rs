//! The store does what a naive model does that keeps everything in one list.

use std::collections::BTreeMap;

use memory::{EvictRequest, Outcome};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put(Vec<Write>),
    Prune {
        before: Timestamp,
        max_changes: u32,
    },
    Evict {
        record_type: usize,
        modified_before: Option<Timestamp>,
        keep: Option<u64>,
        max_records: u32,
    },
    Options {
        record_type: usize,
        is_indexed: bool,
    },
    Clear,
}

#[derive(Clone, Debug)]
struct Write {
    record_type: usize,
    id: usize,
    /// The value of the indexed field; none deletes.
    value: Option<u8>,
    expected: Option<Expected>,
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    None,
    Current,
    Wrong,
}

const TYPES: [&str; 3] = ["", "s", "t"];
const IDS: [&str; 4] = ["", "a", "ab", "b"];
const PREFIXES: [&str; 3] = ["10.0.0.0/8", "10.1.0.0/16", "::/0"];

fn steps() -> impl Strategy<Value = Vec<(Step, i64)>> {
    let expected = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Expected::None)),
        3 => Just(Some(Expected::Current)),
        1 => Just(Some(Expected::Wrong)),
    ];
    let write = (
        0..TYPES.len(),
        0..IDS.len(),
        proptest::option::weighted(0.7, 0..4_u8),
        expected,
    )
        .prop_map(|(record_type, id, value, expected)| Write {
            record_type,
            id,
            value,
            expected,
        });
    let step = prop_oneof![
        20 => proptest::collection::vec(write, 0..5).prop_map(Step::Put),
        2 => (0..60_i64, 0..6_u32).prop_map(|(before, max_changes)| Step::Prune { before, max_changes }),
        3 => (0..TYPES.len(), proptest::option::of(0..60_i64), proptest::option::of(0..5_u64), 1..4_u32).prop_map(
            |(record_type, modified_before, keep, max_records)| Step::Evict { record_type, modified_before, keep, max_records }
        ),
        2 => (0..TYPES.len(), any::<bool>()).prop_map(|(record_type, is_indexed)| Step::Options { record_type, is_indexed }),
        1 => Just(Step::Clear),
    ];
    // The clock is set back now and then.
    proptest::collection::vec((step, prop_oneof![9 => 0..3_i64, 1 => -9..0_i64]), 1..40)
}

/// All changes since the last clear, pruned or not.
#[derive(Clone, Debug, Default)]
struct Model {
    history: Vec<Seen>,
    pruned: usize,
    latest: Version,
}

impl Model {
    fn live(&self) -> BTreeMap<(String, String), Seen> {
        let mut live = BTreeMap::new();
        for change in &self.history {
            let key = (change.1.clone(), change.2.clone());
            match change.5 {
                Some(_) => live.remove(&key),
                None => live.insert(key, change.clone()),
            };
        }
        live
    }

    fn append(&mut self, record_type: &str, id: &str, data: Option<Data>, now: Timestamp, deleted: Option<Timestamp>) {
        self.latest += 1;
        self.history
            .push((self.latest, record_type.to_owned(), id.to_owned(), data, now, deleted));
    }

    fn delete(&mut self, record_type: &str, id: &str, now: Timestamp) -> Option<Seen> {
        let data = self.live().get(&(record_type.to_owned(), id.to_owned()))?.3.clone();
        self.append(record_type, id, data, now, Some(now));
        self.history.last().cloned()
    }

    fn put(&mut self, batch: &Batch<Data>, now: Timestamp) -> Result<Vec<Option<Seen>>, Refusal> {
        let mut next = self.clone();
        let mut outcomes = Vec::new();
        for (step, change) in batch.iter().enumerate() {
            let key = (change.record_type.clone(), change.id.clone());
            let version = next.live().get(&key).map_or(0, |record| record.0);
            if change.expected.is_some_and(|expected| expected != version) {
                return Err(Refusal::Conflict(step));
            }
            outcomes.push(match &change.operation {
                Operation::Upsert { data, .. } => {
                    next.append(&key.0, &key.1, data.clone(), now, None);
                    next.history.last().cloned()
                }
                Operation::Delete => next.delete(&key.0, &key.1, now),
            });
        }
        *self = next;
        Ok(outcomes)
    }

    fn prune(&mut self, before: Timestamp, max_changes: u32) {
        for _ in 0..max_changes {
            if self.pruned + 1 < self.history.len() && self.history[self.pruned].4 < before {
                self.pruned += 1;
            }
        }
    }

    fn evict(&mut self, request: &EvictRequest, now: Timestamp) -> (Vec<Seen>, bool) {
        let mut records: Vec<_> = self
            .live()
            .into_values()
            .filter(|record| record.1 == request.record_type)
            .collect();
        records.sort();
        let surplus = request
            .keep
            .map_or(0, |keep| records.len().saturating_sub(keep as usize));
        let old = |record: &Seen| request.modified_before.is_some_and(|before| record.4 < before);
        let named: Vec<_> = records
            .iter()
            .enumerate()
            .filter(|(place, record)| *place < surplus || old(record))
            .collect();
        let more = named.len() > request.max_records as usize;
        let taken = named.into_iter().take(request.max_records as usize);
        (
            taken
                .filter_map(|(_, record)| self.delete(&record.1, &record.2, now))
                .collect(),
            more,
        )
    }
}

fn batch(writes: &[Write], model: &Model) -> Batch<Data> {
    let live = model.live();
    let change = |write: &Write| {
        let (record_type, id) = (TYPES[write.record_type], IDS[write.id]);
        let current = live
            .get(&(record_type.to_owned(), id.to_owned()))
            .map_or(0, |record| record.0);
        let expected = write.expected.map(|expected| match expected {
            Expected::None => 0,
            Expected::Current => current,
            Expected::Wrong => current + 1,
        });
        let change = match write.value {
            Some(3) => upsert(record_type, id, &format!("net:{}", PREFIXES[write.id % PREFIXES.len()])),
            Some(value) => upsert(record_type, id, &format!("x={value};y={value}")),
            None => delete(record_type, id),
        };
        Change { expected, ..change }
    };
    writes.iter().map(change).collect()
}

fn check(store: &Store<Data>, model: &Model, indexed: &[bool]) {
    let live: Vec<Seen> = model.live().into_values().collect();
    let small = Bounds { records: 2, bytes: 12 };
    for bounds in [BIG, small] {
        assert_eq!(scan(store, None, None, bounds), live);
    }
    let history = &model.history[model.pruned..];
    let pruned = if model.pruned > 0 {
        model.history[model.pruned - 1].0
    } else {
        0
    };
    let position = store.position();
    assert_eq!(position.latest_version, model.latest);
    assert_eq!(position.earliest_version, history.first().map_or(0, |change| change.0));
    for after in model.latest.saturating_sub(12)..=model.latest + 1 {
        let expected = |record_type: Option<&str>| {
            if after < pruned {
                return Err(pruned);
            }
            let is_asked = |change: &&Seen| change.0 > after && record_type.is_none_or(|asked| change.1 == asked);
            Ok(history.iter().filter(is_asked).cloned().collect::<Vec<_>>())
        };
        for record_type in TYPES.map(Some).into_iter().chain([None]) {
            for bounds in [BIG, small] {
                assert_eq!(
                    changes(store, after, record_type, bounds),
                    expected(record_type),
                    "after {after}"
                );
            }
        }
    }
    let mut types: Vec<_> = live.iter().map(|record| record.1.as_str()).collect();
    types.dedup();
    assert_eq!(store.types().collect::<Vec<_>>(), types);
    for (record_type, is_indexed) in TYPES.into_iter().zip(indexed) {
        let of_type: Vec<_> = live.iter().filter(|record| record.1 == record_type).cloned().collect();
        assert_eq!(store.count(Some(record_type)), of_type.len() as u64);
        for value in 0..3 {
            let hint = Hint::Field {
                path: "x".to_owned(),
                value: value.to_string(),
            };
            let data = format!("x={value};y={value}").into_bytes();
            let is_found = |record: &&Seen| !is_indexed || record.3.as_ref() == Some(&data);
            let expected: Vec<_> = of_type.iter().filter(is_found).cloned().collect();
            assert_eq!(scan(store, Some(record_type), Some(hint), small), expected, "x={value}");
        }
    }
    for (asked, containing) in [
        ("10.1.2.3/32", &["10.0.0.0/8", "10.1.0.0/16"][..]),
        ("10.2.0.0/16", &["10.0.0.0/8"]),
        ("2001:db8::/32", &["::/0"]),
    ] {
        let is_found = |record: &&Seen| {
            let data = String::from_utf8_lossy(record.3.as_deref().unwrap_or_default()).into_owned();
            data.strip_prefix("net:")
                .is_some_and(|prefix| containing.contains(&prefix))
        };
        let expected: Vec<_> = live.iter().filter(is_found).cloned().collect();
        assert_eq!(
            scan(store, None, Some(Hint::Network(asked.parse().unwrap())), small),
            expected,
            "{asked}"
        );
    }
    let statistics = store.measure();
    assert_eq!(statistics.changes, history.len() as u64);
    let bytes = |record: &Seen| record.1.len() + record.2.len() + record.3.as_ref().map_or(0, Vec::len);
    let counted: u64 = statistics.types.iter().map(|of_type| of_type.bytes).sum();
    assert_eq!(counted, live.iter().map(bytes).sum::<usize>() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(steps in steps()) {
        let mut store = store();
        let mut model = Model::default();
        let mut indexed = [false; TYPES.len()];
        let mut now = 10;
        for (step, elapsed) in &steps {
            now += elapsed;
            match step {
                Step::Put(writes) => {
                    let batch = batch(writes, &model);
                    let expected = model.put(&batch, now);
                    let found = put(&mut store, batch, now).map(|outcomes| {
                        outcomes.iter().map(|outcome| match outcome {
                            Outcome::Stored(version) => changes(&store, version - 1, None, BIG).unwrap().first().cloned(),
                            Outcome::Deleted(tombstone) => Some(seen(tombstone)),
                            Outcome::Missing => None,
                        }).collect::<Vec<_>>()
                    });
                    prop_assert_eq!(found, expected);
                }
                Step::Prune { before, max_changes } => {
                    store.prune(*before, *max_changes);
                    model.prune(*before, *max_changes);
                }
                Step::Evict { record_type, modified_before, keep, max_records } => {
                    let request = EvictRequest {
                        record_type: TYPES[*record_type].to_owned(),
                        modified_before: *modified_before,
                        keep: *keep,
                        max_records: *max_records,
                    };
                    let evicted = store.evict(&request, now);
                    let found = evicted.tombstones.iter().map(|tombstone| seen(tombstone)).collect::<Vec<_>>();
                    prop_assert_eq!((found, evicted.more), model.evict(&request, now));
                }
                Step::Options { record_type, is_indexed } => {
                    indexed[*record_type] = *is_indexed;
                    let options = if *is_indexed { indexing(&["x"]) } else { None };
                    store.set_options(TYPES[*record_type].to_owned(), options, &extract).unwrap();
                }
                Step::Clear => {
                    store.clear(store.position().server_version + 1);
                    model = Model { latest: model.latest, ..Model::default() };
                    indexed = [false; TYPES.len()];
                }
            }
            check(&store, &model, &indexed);
        }
        // What is counted is given back to the last byte.
        store.clear(1);
        prop_assert_eq!(store.measure().used_bytes, 0);
    }
}
