//! Patch: read, merge, put with the versions that were read, and again if another writer was in between.
//!
//! That is atomic on every backend, shared ones included. Patches of one record through this host wait for each other
//! first, so that many of them at once do not make each other start over; what is left to the retry are other hosts and puts.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};

use super::writer::PutError;
use super::{ANSWER_BYTES, Broker, BrokerError, GET_KEYS, Write, Written};
use crate::backend::{BackendError, Batch};
use crate::data::Mask;
use crate::record::{Key, Record, Version};

/// The places to wait at; two records may share one.
const PLACES: u64 = 256;
/// What an answer has for a record beside its type, id and data.
const OVERHEAD_BYTES: usize = 96;
/// How often a patch starts over before it gives up.
const ATTEMPTS: usize = 64;

/// Where patches of the same record wait for each other.
pub struct Patcher {
    places: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Default for Patcher {
    fn default() -> Self {
        Self {
            places: (0..PLACES).map(|_| Mutex::new(())).collect(),
            hasher: RandomState::new(),
        }
    }
}

impl Patcher {
    /// Patches records, all or none; those that do not exist are skipped.
    pub async fn patch(&self, broker: &Broker, writes: Vec<Write>, mask: &Mask) -> Result<Written, BrokerError> {
        let _waiting = self.wait(&writes).await;
        for _ in 0..ATTEMPTS {
            // A store that lost its content gives the same versions again, to other records. Where hosts share one, versions
            // go on whatever happens.
            let read_under = (!broker.shared).then(|| broker.hub.position().0);
            let (batch, patched) = merge(broker, &writes, mask).await?;
            if batch.changes.is_empty() {
                let (server_version, _) = broker.position().await?;
                return Ok(Written {
                    server_version,
                    records: Vec::new(),
                });
            }
            match broker.writer.put(batch, read_under).await {
                Ok(stored) => return Ok(broker.written(patched, stored)),
                Err(PutError::Broker(error)) => return Err(error),
                Err(PutError::Conflict) => {}
            }
        }
        Err(BackendError::Unavailable(format!(
            "other writers were faster {ATTEMPTS} times in a row; nothing was changed, try again"
        ))
        .into())
    }

    /// Waits for the patches of the same records, in one order so that no two patches wait for each other.
    async fn wait(&self, writes: &[Write]) -> Vec<MutexGuard<'_, ()>> {
        let places: BTreeSet<usize> = writes
            .iter()
            .map(|write| usize::try_from(self.hasher.hash_one(&write.key) % PLACES).unwrap_or(0))
            .collect();
        let mut guards = Vec::with_capacity(places.len());
        for place in places {
            if let Some(mutex) = self.places.get(place) {
                guards.push(mutex.lock().await);
            }
        }
        guards
    }
}

/// Reads the records and merges the writes into them: the batch to put, and the writes that found a record.
///
/// The records are read a few at a time and each once, however often the request names it: a small request may name many
/// large ones, and no more of them may be held than the answer has room for.
async fn merge(broker: &Broker, writes: &[Write], mask: &Mask) -> Result<(Batch, Vec<Write>), BrokerError> {
    // What this request has made so far of each record that it names; none: it is not there, or was deleted.
    let mut merged: HashMap<&Key, Option<Bytes>> = HashMap::new();
    let mut batch = Batch::default();
    let mut bytes = 0;
    let mut patched = Vec::new();
    for part in writes.chunks(GET_KEYS) {
        let mut found = read(broker, part, &merged).await?;
        for write in part {
            let (existing, expected): (Option<Bytes>, Option<Version>) = match merged.get(&write.key) {
                Some(None) => continue,
                Some(data) => (data.clone(), None),
                None => match found.remove(&write.key) {
                    Some(record) => (record.data, Some(record.version)),
                    None => {
                        merged.insert(&write.key, None);
                        continue;
                    }
                },
            };
            let data = if write.delete {
                None
            } else {
                let data = broker
                    .descriptors
                    .merge(existing.as_deref(), write.data.as_deref(), mask)
                    .map_err(|error| BrokerError::Patch(error.to_string()))?;
                Some(data)
            };
            let change = broker.change(write, data.clone(), expected);
            // The answer has the merged records, which may be far larger than the request.
            bytes += change.size() + OVERHEAD_BYTES;
            if bytes > ANSWER_BYTES {
                return Err(BrokerError::AnswerTooLarge(ANSWER_BYTES));
            }
            batch.changes.push(change);
            merged.insert(&write.key, data);
            patched.push(write.clone());
        }
    }
    Ok((batch, patched))
}

/// The records that these writes name, but for those that were read before.
async fn read(
    broker: &Broker,
    writes: &[Write],
    before: &HashMap<&Key, Option<Bytes>>,
) -> Result<HashMap<Key, Record>, BrokerError> {
    let keys: BTreeSet<&Key> = writes
        .iter()
        .map(|write| &write.key)
        .filter(|key| !before.contains_key(key))
        .collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let records = broker.get_all(keys.into_iter().cloned().collect()).await?;
    Ok(records
        .into_iter()
        .flatten()
        .map(|record| (record.key.clone(), record))
        .collect())
}
