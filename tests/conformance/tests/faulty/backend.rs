//! A store that breaks one law.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use databroker_host::backend::{
    Backend, BackendError, Batch, Change, ChangesPage, ChangesRequest, EvictRequest, Evicted, Hint, LeaseAction,
    LeaseRequest, Observed, Operation, Outcome, PageBounds, Position, Pruned, PutResult, ScanPage, ScanRequest,
    Statistics,
};
use databroker_host::record::{Checkpoint, Key, Options, Record, Service, Timestamp};
use parking_lot::Mutex;

/// The law that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The change log leaves out every tenth version.
    DropsChanges,
    /// The change log gives a page's changes in the opposite order.
    ReversesChanges,
    /// The change log gives each change of a page twice.
    RepeatsChanges,
    /// Some versions become visible only after higher ones.
    ShowsVersionsLate,
    /// The log keeps nothing but the newest change.
    PrunesTooEagerly,
    /// Of changes that are there, every tenth look is told that they were pruned.
    DeniesChanges,
    /// The steps of a batch are applied one by one, and readers see the states between.
    SplitsBatches,
    /// The steps of a batch are applied last to first.
    ReversesBatches,
    /// The version that a step is answered with is not the one that it got.
    AnswersWrongVersions,
    /// The version that a record must have is not checked.
    IgnoresExpectedVersions,
    /// A delete leaves the record where it is.
    KeepsDeletedRecords,
    /// Tombstones have lost the record's data.
    LosesTombstoneData,
    /// Absent data is stored as empty data.
    ConfusesAbsentData,
    /// Data is stored without its last byte.
    CutsData,
    /// A record that was read once is returned as it was then, every other time.
    ReadsStaleRecords,
    /// Keys are compared without regard to case.
    FoldsKeys,
    /// A scan leaves out the first record of each page but the first.
    SkipsAtPageBorders,
    /// A scan repeats the last record of a page as the first of the next.
    RepeatsAtPageBorders,
    /// A scan gives records of all types.
    ScansOtherTypes,
    /// A hint by field finds nothing.
    LosesFieldHints,
    /// A hint by network finds nothing.
    LosesNetworkHints,
    /// A count leaves out one record.
    Miscounts,
    /// Types stay listed when their last record has gone.
    ListsEmptyTypes,
    /// Capacity removes the newest records.
    EvictsNewest,
    /// Capacity and time to live remove records without a tombstone.
    EvictsSilently,
    /// Capacity and time to live remove nothing.
    NeverEvicts,
    /// Old changes are never removed.
    NeverPrunes,
    /// Everybody gets the lease.
    GivesLeaseTwice,
    /// Leases never run out.
    LeasesForever,
    /// A lease cannot be given back.
    KeepsReleasedLeases,
    /// Every other renewal of a lease is refused.
    RefusesRenewals,
    /// Clear keeps the server version.
    ClearKeepsServerVersion,
    /// Whatever clears the store, the server version stays what it was first seen to be.
    HidesClears,
    /// Clear keeps the records.
    ClearKeepsRecords,
    /// A checkpoint is not stored.
    ForgetsCheckpoint,
    /// Services stay listed for ever.
    ListsExpiredServices,
    /// Options lose their indexed fields.
    LosesOptions,
}

/// A store that breaks one law and leaves all others to another store.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    fault: Fault,
    /// What the fault remembers.
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Versions that were held back once.
    held_back: BTreeSet<u64>,
    /// Records as they were when first read, and how often they were read.
    read: BTreeMap<Key, (Record, usize)>,
    /// Types that were ever listed.
    types: BTreeSet<String>,
    /// Who asked for which lease, and how often.
    holders: BTreeMap<(String, String), usize>,
    /// How often changes were looked for.
    looks: usize,
    /// The server version that was seen first.
    server_version: Option<u64>,
}

impl Faulty {
    /// Breaks one law of a store.
    pub fn new(inner: Arc<dyn Backend>, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            inner,
            fault,
            memory: Mutex::default(),
        })
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    /// What is shown of a server version.
    fn shown(&self, server_version: u64) -> u64 {
        if self.is(Fault::HidesClears) {
            *self.memory.lock().server_version.get_or_insert(server_version)
        } else {
            server_version
        }
    }

    /// What is shown of where the store stands.
    fn stands(&self, position: Position) -> Position {
        Position {
            server_version: self.shown(position.server_version),
            ..position
        }
    }

    /// What is stored instead of a change.
    fn change(&self, mut change: Change) -> Change {
        match (self.fault, &mut change.operation) {
            (Fault::ConfusesAbsentData, Operation::Upsert { data, .. }) => {
                data.get_or_insert_default();
            }
            // The Any's last byte, as long as what is left is still an Any.
            (Fault::CutsData, Operation::Upsert { data: Some(data), .. }) if data.len() > 1_000 => {
                data.truncate(data.len() - 1);
            }
            (Fault::IgnoresExpectedVersions, _) => change.expected = None,
            _ => {}
        }
        change.key = self.key(change.key);
        change
    }

    fn key(&self, key: Key) -> Key {
        if self.is(Fault::FoldsKeys) {
            Key::new(key.record_type, key.id.to_lowercase())
        } else {
            key
        }
    }

    /// Puts each step of each batch as a batch of its own.
    async fn put_split(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let mut results = Vec::new();
        let mut server_version = 0;
        for batch in batches {
            let mut outcomes = Ok(Vec::new());
            for (index, change) in batch.changes.into_iter().enumerate() {
                let step = Batch { changes: vec![change] };
                let result = self.inner.put(vec![step], now).await?;
                server_version = result.server_version;
                match (result.batches.into_iter().next(), &mut outcomes) {
                    (Some(Ok(step)), Ok(outcomes)) => outcomes.extend(step),
                    (Some(Err(refusal)), _) => outcomes = Err(refusal),
                    (_, Err(_)) | (None, _) => {}
                }
                // Time for readers to see it; a large batch must not keep the writers of other cases from writing.
                if index < 10 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            results.push(outcomes);
        }
        Ok(PutResult {
            server_version,
            options_revision: None,
            batches: results,
        })
    }

    fn spoil_outcomes(&self, result: &mut PutResult) {
        for outcomes in result.batches.iter_mut().flatten() {
            if self.is(Fault::ReversesBatches) {
                outcomes.reverse();
            }
            for outcome in outcomes {
                match outcome {
                    Outcome::Stored(version) if self.is(Fault::AnswersWrongVersions) => *version += 1,
                    Outcome::Deleted(tombstone) if self.is(Fault::LosesTombstoneData) => tombstone.data = None,
                    _ => {}
                }
            }
        }
    }

    /// Removes a type's newest records in place of its oldest ones.
    async fn evict_newest(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        let everything = ScanRequest {
            record_type: Some(request.record_type.clone()),
            hint: None,
            condition: None,
            after: None,
            bounds: PageBounds {
                records: u32::MAX,
                bytes: u64::MAX,
            },
        };
        let page = self.inner.scan(everything).await?;
        let mut records = page.records;
        records.sort_by_key(|record| record.version);
        let keep = usize::try_from(request.keep.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        let changes = records
            .into_iter()
            .skip(keep)
            .map(|record| Change {
                key: record.key,
                operation: Operation::Delete,
                expected: None,
            })
            .collect();
        let put = self.inner.put(vec![Batch { changes }], now).await?;
        let outcomes = put.batches.into_iter().flatten().flatten();
        Ok(Evicted {
            server_version: put.server_version,
            tombstones: outcomes
                .filter_map(|outcome| match outcome {
                    Outcome::Deleted(tombstone) => Some(tombstone),
                    _ => None,
                })
                .collect(),
            more: false,
        })
    }

    /// Writes the tombstones, and behind them what was deleted once more, unless somebody has written it since.
    async fn put_and_keep(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let result = self.inner.put(batches, now).await?;
        let outcomes = result.batches.iter().flatten().flatten();
        let kept: Vec<_> = outcomes
            .filter_map(|outcome| match outcome {
                Outcome::Deleted(tombstone) => Some(tombstone),
                _ => None,
            })
            .map(|tombstone| Change {
                key: tombstone.key.clone(),
                operation: Operation::Upsert {
                    data: tombstone.data.clone(),
                    network: None,
                },
                expected: Some(0),
            })
            .map(|change| Batch { changes: vec![change] })
            .collect();
        if !kept.is_empty() {
            self.inner.put(kept, now).await?;
        }
        Ok(result)
    }
}

#[async_trait]
impl Backend for Faulty {
    async fn close(&self) -> Result<(), BackendError> {
        self.inner.close().await
    }

    async fn health(&self) -> Result<(), BackendError> {
        self.inner.health().await
    }

    async fn put(&self, mut batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        for batch in &mut batches {
            batch.changes = std::mem::take(&mut batch.changes)
                .into_iter()
                .map(|change| self.change(change))
                .collect();
            if self.is(Fault::ReversesBatches) {
                batch.changes.reverse();
            }
        }
        if self.is(Fault::KeepsDeletedRecords) {
            return self.put_and_keep(batches, now).await;
        }
        if self.is(Fault::SplitsBatches) {
            return self.put_split(batches, now).await;
        }
        let mut result = self.inner.put(batches, now).await?;
        self.spoil_outcomes(&mut result);
        result.server_version = self.shown(result.server_version);
        if self.is(Fault::PrunesTooEagerly) {
            self.inner.prune(Timestamp(i64::MAX), u32::MAX).await?;
        }
        Ok(result)
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        let keys = keys.into_iter().map(|key| self.key(key)).collect();
        let mut records = self.inner.get(keys).await?;
        if self.is(Fault::IgnoresExpectedVersions) {
            // Time for others to write what is then overwritten.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        if self.is(Fault::ReadsStaleRecords) {
            let mut memory = self.memory.lock();
            for record in records.iter_mut().flatten() {
                let (first, reads) = memory
                    .read
                    .entry(record.key.clone())
                    .or_insert_with(|| (record.clone(), 0));
                *reads += 1;
                if *reads % 2 == 0 {
                    record.clone_from(first);
                }
            }
        }
        Ok(records)
    }

    async fn scan(&self, mut request: ScanRequest) -> Result<ScanPage, BackendError> {
        let lost = match request.hint {
            Some(Hint::Field { .. }) => self.is(Fault::LosesFieldHints),
            Some(Hint::Network(_)) => self.is(Fault::LosesNetworkHints),
            None => false,
        };
        let borders = self.is(Fault::SkipsAtPageBorders) || self.is(Fault::RepeatsAtPageBorders);
        if borders {
            // Small pages, for many borders.
            request.bounds.records = request.bounds.records.min(16);
        }
        if self.is(Fault::ScansOtherTypes) {
            request.record_type = None;
        }
        let after = request.after.clone();
        let mut page = self.inner.scan(request).await?;
        if lost {
            page.records.clear();
            page.more = false;
        }
        if let Some(after) = after {
            if self.is(Fault::SkipsAtPageBorders) && !page.records.is_empty() {
                page.records.remove(0);
            }
            if self.is(Fault::RepeatsAtPageBorders)
                && let Some(last) = self.inner.get(vec![after]).await?.into_iter().flatten().next()
            {
                page.records.insert(0, last);
            }
        }
        page.position = self.stands(page.position);
        Ok(page)
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        let count = self.inner.count(record_type).await?;
        Ok(count.saturating_sub(u64::from(self.is(Fault::Miscounts))))
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        let types = self.inner.types().await?;
        if !self.is(Fault::ListsEmptyTypes) {
            return Ok(types);
        }
        let mut memory = self.memory.lock();
        memory.types.extend(types);
        Ok(memory.types.iter().cloned().collect())
    }

    async fn current(&self) -> Result<Position, BackendError> {
        Ok(self.stands(self.inner.current().await?))
    }

    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        let mut page = self.inner.changes(request).await?;
        if self.is(Fault::DeniesChanges) && !page.records.is_empty() {
            let mut memory = self.memory.lock();
            memory.looks += 1;
            if memory.looks.is_multiple_of(10) {
                return Err(BackendError::Pruned(page.position.earliest_version));
            }
        }
        match self.fault {
            Fault::DropsChanges => page.records.retain(|record| record.version % 10 != 0),
            Fault::ReversesChanges => page.records.reverse(),
            Fault::RepeatsChanges => {
                page.records = page
                    .records
                    .into_iter()
                    .flat_map(|record| [record.clone(), record])
                    .collect();
            }
            Fault::ShowsVersionsLate => {
                let highest = page.records.last().map_or(0, |record| record.version);
                let mut memory = self.memory.lock();
                page.records.retain(|record| {
                    record.version % 5 != 0 || record.version == highest || !memory.held_back.insert(record.version)
                });
            }
            Fault::LosesTombstoneData => {
                for record in &mut page.records {
                    if record.deleted_at.is_some() {
                        record.data = None;
                    }
                }
            }
            _ => {}
        }
        page.position = self.stands(page.position);
        Ok(page)
    }

    async fn wait(&self, mut seen: Observed) -> Result<Observed, BackendError> {
        if self.is(Fault::HidesClears) {
            seen.server_version = self.inner.current().await?.server_version;
        }
        let mut observed = self.inner.wait(seen).await?;
        observed.server_version = self.shown(observed.server_version);
        Ok(observed)
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        let mut options = self.inner.list_options().await?;
        if self.is(Fault::LosesOptions) {
            for (_, options) in &mut options {
                options.capacity = None;
            }
        }
        Ok(options)
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        self.inner.set_options(record_type, options).await
    }

    async fn lease(&self, mut requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        for request in &mut requests {
            match (&mut request.action, self.fault) {
                (LeaseAction::Hold(duration), Fault::LeasesForever) => *duration = Duration::from_secs(1 << 30),
                (LeaseAction::Release, Fault::KeepsReleasedLeases) => "nobody".clone_into(&mut request.id),
                (LeaseAction::Hold(_), Fault::RefusesRenewals) => {
                    let holder = (request.name.clone(), request.id.clone());
                    let mut memory = self.memory.lock();
                    let asked = memory.holders.entry(holder).or_default();
                    *asked += 1;
                    if asked.is_multiple_of(2) {
                        "nobody".clone_into(&mut request.id);
                    }
                }
                _ => {}
            }
        }
        let mut answers = self.inner.lease(requests, now).await?;
        if self.is(Fault::GivesLeaseTwice) {
            answers.fill(true);
        }
        Ok(answers)
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        self.inner.get_checkpoint().await
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        if self.is(Fault::ForgetsCheckpoint) {
            return Ok(());
        }
        self.inner.set_checkpoint(checkpoint).await
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        self.inner.report_services(services, ttl, now).await
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        let now = if self.is(Fault::ListsExpiredServices) {
            Timestamp(0)
        } else {
            now
        };
        self.inner.list_services(now).await
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        let before = if self.is(Fault::NeverPrunes) {
            Timestamp(0)
        } else {
            before
        };
        let pruned = self.inner.prune(before, max_changes).await?;
        Ok(Pruned {
            position: self.stands(pruned.position),
            ..pruned
        })
    }

    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        match self.fault {
            Fault::EvictsNewest => self.evict_newest(request, now).await,
            Fault::NeverEvicts => Ok(Evicted {
                server_version: self.inner.current().await?.server_version,
                tombstones: Vec::new(),
                more: false,
            }),
            Fault::EvictsSilently => {
                let evicted = self.inner.evict(request, now).await?;
                Ok(Evicted {
                    tombstones: Vec::new(),
                    ..evicted
                })
            }
            _ => {
                let evicted = self.inner.evict(request, now).await?;
                Ok(Evicted {
                    server_version: self.shown(evicted.server_version),
                    ..evicted
                })
            }
        }
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        match self.fault {
            Fault::ClearKeepsServerVersion => {
                let server_version = self.inner.current().await?.server_version;
                self.inner.clear(server_version).await
            }
            Fault::ClearKeepsRecords => {
                let everything = ScanRequest {
                    record_type: None,
                    hint: None,
                    condition: None,
                    after: None,
                    bounds: PageBounds {
                        records: u32::MAX,
                        bytes: u64::MAX,
                    },
                };
                let records = self.inner.scan(everything).await?.records;
                self.inner.clear(new_server_version).await?;
                let changes = records
                    .into_iter()
                    .map(|record| Change {
                        key: record.key,
                        operation: Operation::Upsert {
                            data: record.data,
                            network: None,
                        },
                        expected: None,
                    })
                    .collect();
                self.inner.put(vec![Batch { changes }], Timestamp::now()).await?;
                self.inner.current().await
            }
            _ => Ok(self.stands(self.inner.clear(new_server_version).await?)),
        }
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        self.inner.measure().await
    }
}
