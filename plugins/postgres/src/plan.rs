//! What a call writes, worked out before anything is written: what its steps do to each other, and which batches are refused.
//!
//! Nothing here asks a database. What is stored is given, or guessed; where the guess was wrong the database says so.

use std::collections::HashMap;

use crate::record::{Key, Record};
use crate::text;
use crate::write::{Change, Operation, Outcome, PutResult, Refusal};

/// Most bytes of tombstones that a call answers with.
const TOMBSTONES: u64 = 64 << 20;

/// Most bytes of a type and an id together, as they are stored. The database indexes both in one entry, which it bounds by
/// 2704 bytes with what it adds. It compresses entries first, so that some would fit that are longer; they are refused all the
/// same, since nobody could tell which.
const KEY: usize = 2600;

/// What a call writes, worked out.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) writes: Vec<Write>,
    pub(crate) batches: Vec<Result<Vec<Step>, Refusal>>,
}

impl Plan {
    pub(crate) fn of(batches: &[Vec<Change>], stored: &HashMap<Key, (u64, u64)>) -> Self {
        let mut plan = Self::default();
        // What the accepted batches have made of the keys so far.
        let mut now: HashMap<Key, Before> = HashMap::new();
        let mut tombstones = 0;
        for batch in batches {
            let begin = plan.writes.len();
            let result = plan.batch(batch, stored, &mut now, &mut tombstones);
            if result.is_err() {
                plan.writes.truncate(begin);
            }
            plan.batches.push(result);
        }
        plan
    }

    fn batch(
        &mut self,
        batch: &[Change],
        stored: &HashMap<Key, (u64, u64)>,
        now: &mut HashMap<Key, Before>,
        tombstones: &mut u64,
    ) -> Result<Vec<Step>, Refusal> {
        let mut changed: HashMap<Key, Before> = HashMap::new();
        let mut steps = Vec::with_capacity(batch.len());
        let mut removed = 0_u64;
        for (index, change) in batch.iter().enumerate() {
            let before = match changed.get(&change.key).or_else(|| now.get(&change.key)) {
                Some(before) => *before,
                None => match stored.get(&change.key) {
                    Some(&(version, size)) => Before::Stored { version, size },
                    None => Before::Missing,
                },
            };
            let fits = match (change.expected, before) {
                (None, _) => true,
                (Some(expected), Before::Missing) => expected == 0,
                (Some(expected), Before::Stored { version, .. }) => expected == version,
                // Nobody can know the version that it will have.
                (Some(_), Before::Written(_)) => false,
            };
            if !fits {
                return Err(Refusal::Conflict(u32::try_from(index).unwrap_or(u32::MAX)));
            }
            let place = self.writes.len();
            let (write, step) = match &change.operation {
                Operation::Upsert { data, network } => {
                    let length = text::stored_len(&change.key.record_type) + text::stored_len(&change.key.id);
                    if length > KEY {
                        return Err(Refusal::Exhausted(format!(
                            "a record's type and id come to {length} bytes, of which Postgres cannot index more than {KEY}: shorten them"
                        )));
                    }
                    changed.insert(change.key.clone(), Before::Written(place));
                    let write = Write {
                        key: change.key.clone(),
                        data: data.clone(),
                        network: network.clone(),
                        deleted: false,
                        in_database: false,
                    };
                    (write, Step::Stored(place))
                }
                Operation::Delete => {
                    let (data, in_database, size) = match before {
                        Before::Missing => {
                            steps.push(Step::Missing);
                            continue;
                        }
                        Before::Stored { size, .. } => (None, true, size),
                        Before::Written(place) => {
                            let data = self.writes.get(place).and_then(|write| write.data.clone());
                            let size = data.as_ref().map_or(0, Vec::len);
                            (data, false, u64::try_from(size).unwrap_or(u64::MAX))
                        }
                    };
                    removed = removed.saturating_add(size);
                    if tombstones.saturating_add(removed) > TOMBSTONES {
                        let problem = "what it removes is more than 64 MiB, which do not fit into an answer: remove fewer records at once";
                        return Err(Refusal::Exhausted(problem.to_owned()));
                    }
                    changed.insert(change.key.clone(), Before::Missing);
                    let write = Write {
                        key: change.key.clone(),
                        data,
                        network: None,
                        deleted: true,
                        in_database,
                    };
                    (write, Step::Deleted(place))
                }
            };
            self.writes.push(write);
            steps.push(step);
        }
        now.extend(changed);
        *tombstones = tombstones.saturating_add(removed);
        Ok(steps)
    }

    /// What to answer once it is written. `removed` are the records that the database had.
    pub(crate) fn result(mut self, written: &Written, removed: &mut HashMap<Key, Record>, now: i64) -> PutResult {
        let version = |place: usize| written.versions.get(place).copied().unwrap_or_default();
        let mut outcomes = Vec::with_capacity(self.batches.len());
        for batch in self.batches {
            outcomes.push(batch.map(|steps| {
                steps
                    .into_iter()
                    .map(|step| match step {
                        Step::Missing => Outcome::Missing,
                        Step::Stored(place) => Outcome::Stored(version(place)),
                        Step::Deleted(place) => {
                            Outcome::Deleted(tombstone(self.writes.get_mut(place), removed, version(place), now))
                        }
                    })
                    .collect()
            }));
        }
        PutResult {
            server_version: written.server_version,
            options_revision: written.options_revision,
            batches: outcomes,
        }
    }
}

/// What there is of a key before a step.
#[derive(Clone, Copy)]
enum Before {
    /// No record.
    Missing,
    /// A record in the database, with its size.
    Stored { version: u64, size: u64 },
    /// A record that this call writes, by its place among the writes.
    Written(usize),
}

/// A row of the change log that is to be written.
pub(crate) struct Write {
    pub(crate) key: Key,
    /// What is written, or the last of what is removed, unless the database has that.
    pub(crate) data: Option<Vec<u8>>,
    pub(crate) network: Option<String>,
    pub(crate) deleted: bool,
    /// True where the data of what is removed is the database's.
    pub(crate) in_database: bool,
}

/// A step that was accepted.
pub(crate) enum Step {
    Stored(usize),
    Deleted(usize),
    Missing,
}

/// What a call has written.
pub(crate) struct Written {
    pub(crate) server_version: u64,
    pub(crate) options_revision: u64,
    /// By the places of the writes.
    pub(crate) versions: Vec<u64>,
}

/// What a delete has left.
fn tombstone(write: Option<&mut Write>, removed: &mut HashMap<Key, Record>, version: u64, now: i64) -> Record {
    let (key, data) = match write {
        Some(write) if write.in_database => {
            let record = removed.remove(&write.key);
            (write.key.clone(), record.and_then(|record| record.data))
        }
        Some(write) => (write.key.clone(), write.data.take()),
        None => (
            Key {
                record_type: String::new(),
                id: String::new(),
            },
            None,
        ),
    };
    Record {
        version,
        key,
        data,
        modified_at: now,
        deleted_at: Some(now),
    }
}
