//! Writing: each batch is looked through first and applied afterwards, so that a refused one leaves no trace.
//!
//! The look foresees what the batch comes to: the versions that its steps find, the bytes that it adds, and the bytes of
//! the answer. What it lets through cannot fail any more.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::batch::{Batch, Change, Operation, Outcome, PutResult, Refusal};
use crate::budget::bytes;
use crate::entry::{Data, Entry, Timestamp, Version, put_cost};
use crate::index::{Extract, Indexed, TOO_MANY_VALUES, Values};
use crate::retention::INSTANCE_FULL;
use crate::store::Store;
use crate::table::Table;

const TOO_MANY_DELETES: &str =
    "the last data of so many records does not fit into one answer: delete fewer in one call";

impl<D: Data> Store<D> {
    /// Tombstones of more bytes than this are not returned from one put: no host takes more.
    const LARGEST_ANSWER: u64 = 64 << 20;

    /// Applies batches, each of them whole or not at all, in their order.
    ///
    /// `has_room` says whether the memory around the store still has what it needs for everything else. Where it has not,
    /// history is given up first; then batches that grow are refused.
    pub fn put(
        &mut self,
        batches: Vec<Batch<D>>,
        now: Timestamp,
        extract: &impl Extract,
        has_room: &impl Fn() -> bool,
    ) -> PutResult<D> {
        let found = self.extract(&batches, extract);
        let mut answer_bytes = 0;
        let results = batches.into_iter().zip(found).map(|(batch, found)| {
            let indexed = self.indexed(&batch, found)?;
            let answer = self.check(&batch, &indexed, answer_bytes, has_room)?;
            answer_bytes += answer;
            Ok(self.apply(batch, indexed, now))
        });
        PutResult {
            batches: results.collect(),
            server_version: self.server_version,
        }
    }

    /// What is found in the data of each batch's steps; nothing for any, where no type has indexed fields. One look for each type.
    fn extract(&self, batches: &[Batch<D>], extract: &impl Extract) -> Vec<Vec<Found>> {
        if self.options.values().all(|options| options.indexable_fields.is_empty()) {
            return batches.iter().map(|_| Vec::new()).collect();
        }
        let mut found: Vec<Vec<Found>> = batches
            .iter()
            .map(|batch| batch.iter().map(|_| None).collect())
            .collect();
        type Steps<'a> = (Vec<(usize, usize)>, Vec<&'a [u8]>);
        let mut by_type: BTreeMap<&str, Steps<'_>> = BTreeMap::new();
        for (batch_number, batch) in batches.iter().enumerate() {
            for (step, change) in batch.iter().enumerate() {
                if let Operation::Upsert { data: Some(data), .. } = &change.operation {
                    let (places, datas) = by_type.entry(&change.record_type).or_default();
                    places.push((batch_number, step));
                    datas.push(data.as_ref());
                }
            }
        }
        for (record_type, (places, datas)) in by_type {
            let paths = self.tables.get(record_type).map(Table::paths).unwrap_or_default();
            if paths.is_empty() {
                continue;
            }
            for ((batch, step), values) in places.into_iter().zip(extract.extract(&datas, &paths)) {
                if let Some(place) = found.get_mut(batch).and_then(|steps| steps.get_mut(step)) {
                    *place = Some(values.ok_or(TooManyValues));
                }
            }
        }
        found
    }

    fn indexed(&self, batch: &Batch<D>, found: Vec<Found>) -> Result<Vec<Indexed>, Refusal> {
        let of_step = |(change, found): (&Change<D>, Found)| {
            let Operation::Upsert { network, .. } = &change.operation else {
                return Ok(Indexed::default());
            };
            let Some(values) = found else {
                return Ok(Indexed {
                    network: *network,
                    values: Vec::new(),
                });
            };
            let values = values.map_err(|TooManyValues| Refusal::Exhausted(TOO_MANY_VALUES.to_owned()))?;
            Ok(match self.tables.get(change.record_type.as_str()) {
                Some(table) => table.indexed(*network, values),
                None => Indexed::default(),
            })
        };
        let found = found.into_iter().chain(std::iter::repeat_with(|| None));
        batch.iter().zip(found).map(of_step).collect()
    }

    /// Says whether a batch can be applied; after that it cannot fail. Returns the bytes of the tombstones that it will
    /// leave. Changes nothing, but may prune the log.
    fn check(
        &mut self,
        batch: &Batch<D>,
        indexed: &[Indexed],
        answer_before: u64,
        has_room: &impl Fn() -> bool,
    ) -> Result<u64, Refusal> {
        let foreseen = self.foresee(batch, indexed)?;
        let grows = foreseen.adds && foreseen.growth > 0;
        if grows {
            let live = self
                .usage
                .live()
                .saturating_add(u64::try_from(foreseen.growth).unwrap_or(0));
            if live > self.budget.live_limit() {
                return Err(Refusal::Exhausted(self.no_room()));
            }
        }
        if answer_before + foreseen.answer > Self::LARGEST_ANSWER {
            return Err(Refusal::Exhausted(TOO_MANY_DELETES.to_owned()));
        }
        // Until the budget is used up, what is written comes on top of the history that is kept of what it replaces.
        let lengthens = self.usage.used().saturating_add(foreseen.written) <= self.budget.limit();
        while (grows || lengthens) && !has_room() {
            if !self.give_up_history() {
                if !grows {
                    break;
                }
                return Err(Refusal::Exhausted(INSTANCE_FULL.to_owned()));
            }
        }
        if !self.reserve(batch) {
            return Err(Refusal::Exhausted(
                "there is no memory to lengthen the change log: put fewer records at once".to_owned(),
            ));
        }
        Ok(foreseen.answer)
    }

    /// Walks through a batch without applying it, each step finding what those before it would have left.
    fn foresee(&self, batch: &Batch<D>, indexed: &[Indexed]) -> Result<Foreseen, Refusal> {
        let mut foreseen = Foreseen::default();
        // A single step has none before it.
        let mut touched: Option<HashMap<(&str, &str), Option<Live>>> =
            (batch.len() > 1).then(|| HashMap::with_capacity(batch.len()));
        let mut new_types = HashSet::new();
        let mut version = self.latest_version;
        for (step, (change, indexed)) in batch.iter().zip(indexed).enumerate() {
            let key = (change.record_type.as_str(), change.id.as_str());
            let table = self.tables.get(key.0);
            let stored = || {
                let (entry, cost) = table?.cost(key.1)?;
                Some(Live {
                    version: entry.version(),
                    size: entry.size(),
                    cost,
                })
            };
            let live = touched
                .as_ref()
                .and_then(|touched| touched.get(&key).copied())
                .unwrap_or_else(stored);
            if change
                .expected
                .is_some_and(|expected| expected != live.map_or(0, |live| live.version))
            {
                return Err(Refusal::Conflict(step));
            }
            let after = match &change.operation {
                Operation::Upsert { data, .. } => {
                    let length = data.as_ref().map(|data| data.as_ref().len());
                    let indexed = if indexed.is_empty() { 0 } else { indexed.cost() };
                    if table.is_none() && new_types.insert(key.0) {
                        foreseen.growth += signed(Table::<D>::fixed_cost(key.0));
                    }
                    foreseen.adds = true;
                    let change = put_cost::<D>(key.1.len(), length);
                    foreseen.written += change;
                    Some(Live {
                        version: version + 1,
                        size: bytes(key.0.len() + key.1.len() + length.unwrap_or(0)),
                        cost: Table::<D>::record_cost(change, indexed),
                    })
                }
                Operation::Delete => {
                    foreseen.answer += live.map_or(0, |live| live.size);
                    foreseen.written += live.map_or(0, |_| put_cost::<D>(0, None));
                    None
                }
            };
            if live.is_some() || after.is_some() {
                version += 1;
            }
            foreseen.growth += signed(after.map_or(0, |live| live.cost)) - signed(live.map_or(0, |live| live.cost));
            if let Some(touched) = &mut touched {
                touched.insert(key, after);
            }
        }
        Ok(foreseen)
    }

    fn apply(&mut self, batch: Batch<D>, indexed: Vec<Indexed>, now: Timestamp) -> Vec<Outcome<D>> {
        let apply_step = |(change, indexed): (Change<D>, Indexed)| match change.operation {
            Operation::Upsert { data, .. } => {
                let version = self.latest_version + 1;
                let table = self.table(&change.record_type);
                let entry = table.upsert(version, now, change.id, data, indexed);
                self.append(entry);
                Outcome::Stored(version)
            }
            Operation::Delete => match self.remove(&change.record_type, &change.id, now) {
                Some(tombstone) => Outcome::Deleted(tombstone),
                None => Outcome::Missing,
            },
        };
        batch.into_iter().zip(indexed).map(apply_step).collect()
    }

    pub(crate) fn remove(&mut self, record_type: &str, id: &str, now: Timestamp) -> Option<Arc<Entry<D>>> {
        let version = self.latest_version + 1;
        let tombstone = self.tables.get_mut(record_type)?.remove(version, now, id)?;
        self.append(Arc::clone(&tombstone));
        Some(tombstone)
    }

    /// Makes room in the queues of the log for each step of a batch; false where there is no memory for it.
    fn reserve(&mut self, batch: &Batch<D>) -> bool {
        let mut of_types: BTreeMap<&str, usize> = BTreeMap::new();
        for change in batch {
            *of_types.entry(&change.record_type).or_default() += 1;
        }
        self.log.reserve(batch.len())
            && of_types
                .into_iter()
                .all(|(record_type, steps)| match self.tables.get_mut(record_type) {
                    Some(table) => table.log.reserve(steps),
                    None => true,
                })
    }
}

/// What a step's data was found to have in the indexed fields of its type; nothing where that was not asked.
type Found = Option<Result<Values, TooManyValues>>;

/// There were more values than an index takes.
#[derive(Debug)]
struct TooManyValues;

/// What a batch will come to.
#[derive(Debug, Default)]
struct Foreseen {
    /// True if any step writes a record.
    adds: bool,
    /// By how many bytes the live records and their indexes grow.
    growth: i64,
    /// Bytes of the changes, which come on top of what is there.
    written: u64,
    /// Bytes of the tombstones that go into the answer.
    answer: u64,
}

/// A live record, as a batch finds it or leaves it.
#[derive(Clone, Copy, Debug)]
struct Live {
    version: Version,
    size: u64,
    cost: u64,
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
