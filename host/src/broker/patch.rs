//! Patch: read, merge, put with the versions that were read, and again if another writer was in between.
//!
//! That is atomic on every backend, shared ones included. Patches of one record through this host wait for each other
//! first, so that many of them at once do not make each other start over; what is left to the retry are other hosts and puts.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};

use super::writer::PutError;
use super::{ANSWER_BYTES, Broker, BrokerError, Write, Written};
use crate::backend::{BackendError, Batch};
use crate::data::Mask;
use crate::record::{Key, Version};

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
            let (batch, patched) = merge(broker, &writes, mask).await?;
            if batch.changes.is_empty() {
                let server_version = broker.position().await?.server_version;
                return Ok(Written {
                    server_version,
                    records: Vec::new(),
                });
            }
            match broker.writer.put(batch).await {
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
async fn merge(broker: &Broker, writes: &[Write], mask: &Mask) -> Result<(Batch, Vec<Write>), BrokerError> {
    let keys: Vec<Key> = writes.iter().map(|write| write.key.clone()).collect();
    let records = broker.get_all(keys).await?;
    // What the earlier writes of this request have made of a record that it names more than once; none: deleted it.
    let mut earlier: HashMap<&Key, Option<Bytes>> = HashMap::new();
    let mut batch = Batch::default();
    let mut bytes = 0;
    let mut patched = Vec::new();
    for (write, record) in writes.iter().zip(records) {
        let Some(record) = record else { continue };
        let (existing, expected): (Option<Bytes>, Option<Version>) = match earlier.get(&write.key) {
            Some(None) => continue,
            Some(data) => (data.clone(), None),
            None => (record.data, Some(record.version)),
        };
        let data = if write.delete {
            None
        } else {
            let merged = broker
                .descriptors
                .merge(existing.as_deref(), write.data.as_deref(), mask)
                .map_err(|error| BrokerError::Patch(error.to_string()))?;
            Some(merged)
        };
        let change = broker.change(write, data.clone(), expected);
        // The answer has the merged records, which may be far larger than the request.
        bytes += change.size() + OVERHEAD_BYTES;
        if bytes > ANSWER_BYTES {
            return Err(BrokerError::AnswerTooLarge(ANSWER_BYTES));
        }
        batch.changes.push(change);
        earlier.insert(&write.key, data);
        patched.push(write.clone());
    }
    Ok((batch, patched))
}
