//! The writer: the one task that changes records, the change log and options.
//!
//! Callers send their writes here and wait. While the backend works on one call, the puts that arrive are collected, and
//! the next call carries them all (group commit): throughput does not follow the store's latency, and a caller who is
//! alone waits for nobody. Since there is one call at a time, its results come in the order of the versions, and they feed
//! the hub as they come.
//!
//! A task of its own, since a write must not stop half way when its caller goes away.
//!
//! A call that fails may have changed something all the same: the store's answer was lost, or broke a law. The results of
//! later calls would then skip those changes, so until a later write has succeeded the hub is fed from the change log.
//!
//! A store that has stopped and was opened again is adopted here, between two writes: the hub and the options are set to
//! what came back before any call reaches it. So no answer of the new store is ever taken for one of the old.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::follower::catch_up;
use super::hub::Hub;
use super::options::{self, Known, OptionsTable, missing_required};
use super::{BrokerError, Change};
use crate::backend::{
    self, Availability, Backend, BackendError, Batch, Event, EvictRequest, Evicted, Operation, Outcome, Position,
    Pruned, Refusal, Reopened, Reopenings,
};
use crate::record::{Options, Record, Timestamp, Version};
use crate::telemetry::traces;

/// Most writes that wait; further callers wait to be let in.
const QUEUE: usize = 1024;
/// Most bytes of puts that wait, in units of [`UNIT`]: a write goes on when its caller goes away, so that nothing else bounds
/// them while the store is slow. Further callers wait to be let in.
const QUEUE_UNITS: usize = 64 << 10;
const UNIT: usize = 1 << 10;
/// A call takes no further batch once it carries so many bytes. Larger calls make callers wait longer, and cost a database
/// more for each record. With the 4 MiB that a batch may have, a call stays within the 8 MiB that the storage interface
/// promises.
const GROUP_BYTES: usize = 512 << 10;
/// What each step counts beside its record, since even one without any is work: with the 2^16 and some more that fit into a
/// batch, that keeps a call within the 2^17 steps that the storage interface promises.
const STEP_BYTES: usize = 128;
/// Most batches that one call carries.
const GROUP_BATCHES: usize = 1024;
/// Most records that one call evicts, so that puts pass in between.
pub const EVICT_RECORDS: u32 = 256;

/// Most calls by which one step of a clean removes, or the writer what is above a type's capacity: 16 million changes, or a
/// million records of a type. So a store that always says that there is more keeps neither the host busy nor the other steps from
/// their turn.
pub const MOST_CALLS: usize = 4096;
/// How long writes wait for a store that has stopped and is being opened again. Once it took longer, they fail at once until
/// it is open.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where callers hand in writes.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Job>,
    /// The room for puts that wait.
    room: Arc<Semaphore>,
}

/// What one put gives back.
#[derive(Debug)]
pub struct Stored {
    /// The server version that the batch was written under.
    pub server_version: u64,
    /// One per step, in their order.
    pub records: Vec<StoredRecord>,
}

/// What became of one step.
#[derive(Debug)]
pub enum StoredRecord {
    /// The record or the tombstone, as streams get it.
    Written(Arc<Change>),
    /// There was nothing to delete.
    Missing,
}

/// Why a put failed.
#[derive(Debug)]
pub enum PutError {
    /// A step found another version than it expected.
    Conflict,
    /// Anything else.
    Broker(BrokerError),
}

type Reply<T> = oneshot::Sender<Result<T, BrokerError>>;

#[derive(Debug)]
enum Job {
    Put(PutJob),
    Evict(EvictRequest, Reply<Evicted>),
    Prune {
        before: Timestamp,
        max_changes: u32,
        reply: Reply<Pruned>,
    },
    SetOptions {
        record_type: String,
        options: Option<Options>,
        reply: Reply<()>,
    },
    RequiredOptions(Reply<()>),
    Clear(Reply<(u64, u64)>),
    Close(Reply<()>),
}

#[derive(Debug)]
struct PutJob {
    batch: Batch,
    /// The server version that the versions it expects were read under, where they could be those of other content by now.
    read_under: Option<u64>,
    /// The call that waits, for its trace.
    span: Span,
    reply: PutReply,
}

/// Where the answer to a put goes, with the room that the put takes until then.
#[derive(Debug)]
struct PutReply {
    answer: oneshot::Sender<Result<Stored, PutError>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl PutReply {
    /// A caller that has gone away does not hear of it.
    fn send(self, answer: Result<Stored, PutError>) {
        let _ = self.answer.send(answer);
    }
}

impl Writer {
    /// Starts the task. It ends after [`Writer::close`], or once all writers are gone.
    pub fn start(
        backend: Arc<dyn Backend>,
        reopenings: Reopenings,
        shared: bool,
        hub: Arc<Hub>,
        options: Arc<OptionsTable>,
        clock: fn() -> Timestamp,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(QUEUE);
        let task = WriterTask {
            backend,
            reopenings,
            is_adopted: false,
            wait_until: None,
            shared,
            hub,
            options,
            known_options: None,
            clock,
            last_now: Timestamp(i64::MIN),
            surplus: BTreeMap::new(),
        };
        tokio::spawn(task.run(jobs));
        Self {
            queue,
            room: Arc::new(Semaphore::new(QUEUE_UNITS)),
        }
    }

    /// Applies a batch, all of it or nothing. Where it was made of records that were read before, name the server version
    /// that they were read under: under another one it is refused as a conflict.
    pub async fn put(&self, batch: Batch, read_under: Option<u64>) -> Result<Stored, PutError> {
        let units = batch_bytes(&batch).div_ceil(UNIT).min(QUEUE_UNITS);
        let room = Arc::clone(&self.room).acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX));
        let room = room.await.map_err(|_| PutError::Broker(BrokerError::ShuttingDown))?;
        let (answer, result) = oneshot::channel();
        let job = Job::Put(PutJob {
            batch,
            read_under,
            span: traces::current(),
            reply: PutReply {
                answer,
                _room: Some(room),
            },
        });
        self.queue
            .send(job)
            .await
            .map_err(|_| PutError::Broker(BrokerError::ShuttingDown))?;
        result.await.map_err(|_| PutError::Broker(BrokerError::ShuttingDown))?
    }

    /// Removes records, a bounded number of them.
    pub async fn evict(&self, request: EvictRequest) -> Result<Evicted, BrokerError> {
        self.ask(|reply| Job::Evict(request, reply)).await
    }

    /// Removes old changes, a bounded number of them.
    pub async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BrokerError> {
        self.ask(|reply| Job::Prune {
            before,
            max_changes,
            reply,
        })
        .await
    }

    /// Replaces a type's options.
    pub async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BrokerError> {
        self.ask(|reply| Job::SetOptions {
            record_type,
            options,
            reply,
        })
        .await
    }

    /// Sets the options that Pomerium counts on, where they are missing.
    pub async fn set_required_options(&self) -> Result<(), BrokerError> {
        self.ask(Job::RequiredOptions).await
    }

    /// Wipes the store; returns the server versions before and after.
    pub async fn clear(&self) -> Result<(u64, u64), BrokerError> {
        self.ask(Job::Clear).await
    }

    /// Closes the store after the writes that are waiting, and ends the task.
    pub async fn close(&self) -> Result<(), BrokerError> {
        self.ask(Job::Close).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, BrokerError> {
        let (reply, result) = oneshot::channel();
        self.queue
            .send(job(reply))
            .await
            .map_err(|_| BrokerError::ShuttingDown)?;
        result.await.map_err(|_| BrokerError::ShuttingDown)?
    }
}

struct WriterTask {
    backend: Arc<dyn Backend>,
    reopenings: Reopenings,
    /// True where the store was opened again and what it holds was not looked at yet.
    is_adopted: bool,
    /// Until when writes wait for the store to be opened again.
    wait_until: Option<Instant>,
    /// True where other hosts write to the store too, whose changes the follower adds to the hub.
    shared: bool,
    hub: Arc<Hub>,
    options: Arc<OptionsTable>,
    /// What a put before this one said of a shared store's options.
    known_options: Known,
    clock: fn() -> Timestamp,
    /// Times of writes do not go back when the clock does.
    last_now: Timestamp,
    /// The types that have more records than their capacity still, each with the calls that were made for it between jobs.
    surplus: BTreeMap<String, usize>,
}

impl WriterTask {
    async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut put_aside = None;
        loop {
            self.look_at_adopted().await;
            if let Some((record_type, calls)) = self.surplus.pop_first() {
                self.go_on_to_capacity(record_type, calls + 1).await;
            }
            let job = match put_aside.take() {
                Some(job) => job,
                None if self.surplus.is_empty() => tokio::select! {
                    biased;
                    event = self.reopenings.next() => {
                        self.take_note(event);
                        continue;
                    }
                    job = jobs.recv() => match job {
                        Some(job) => job,
                        None => return,
                    },
                },
                None => match jobs.try_recv() {
                    Ok(job) => job,
                    Err(_) => continue,
                },
            };
            self.wait_until_open().await;
            self.look_at_adopted().await;
            // A reply that fails means that the caller has gone away: the write stays.
            match job {
                Job::Put(first) => {
                    // Of the calls that it serves, the commit is a part of the first one's trace.
                    let span = first.span.clone();
                    let mut group = Group::new(first);
                    while group.has_room() {
                        match jobs.try_recv() {
                            Ok(Job::Put(next)) => group.add(next),
                            Ok(other) => {
                                put_aside = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.put(group).instrument(span).await;
                }
                Job::Evict(request, reply) => {
                    let _ = reply.send(self.evict(request).await.map_err(BrokerError::from));
                }
                Job::Prune {
                    before,
                    max_changes,
                    reply,
                } => {
                    let pruned = self.backend.prune(before, max_changes).await;
                    if let Ok(pruned) = &pruned {
                        self.hub.pruned(pruned.position.earliest_version);
                    }
                    let _ = reply.send(pruned.map_err(BrokerError::from));
                }
                Job::SetOptions {
                    record_type,
                    options,
                    reply,
                } => {
                    let _ = reply.send(self.set_bounded_options(record_type, options).await);
                }
                Job::RequiredOptions(reply) => {
                    let _ = reply.send(self.set_required_options().await.map_err(BrokerError::from));
                }
                Job::Clear(reply) => {
                    let _ = reply.send(self.clear().await.map_err(BrokerError::from));
                }
                Job::Close(reply) => {
                    // Those that still wait are told by their replies being dropped.
                    jobs.close();
                    let _ = reply.send(self.backend.close().await.map_err(BrokerError::from));
                    return;
                }
            }
            // What has stopped is looked at once it is open again.
            if self.hub.in_doubt() && self.reopenings.availability() == Availability::Open {
                self.look_again().await;
            }
        }
    }

    /// Waits for a store that is being opened again, for a bounded time.
    async fn wait_until_open(&mut self) {
        while self.reopenings.availability() == Availability::Reopening {
            let until = *self.wait_until.get_or_insert_with(|| Instant::now() + PATIENCE);
            match tokio::time::timeout_at(until, self.reopenings.next()).await {
                Ok(event) => self.take_note(event),
                Err(_) => return,
            }
        }
        self.wait_until = None;
    }

    fn take_note(&mut self, event: Event) {
        match event {
            Event::Reopened(reopened) => self.adopt(reopened),
            // The next outage is waited out anew.
            Event::Availability => {
                if self.reopenings.availability() == Availability::Open {
                    self.wait_until = None;
                }
            }
        }
    }

    /// Takes over a store that was opened again. A shared one's follower finds out by itself what came back, as it does
    /// with whatever other hosts do to the store.
    fn adopt(&mut self, reopened: Reopened) {
        if !self.shared {
            let position = reopened.position;
            if position.server_version == self.hub.position().0 {
                // It may hold changes whose answers were lost.
                self.hub.doubt();
            } else {
                // First of all, so that nobody who meets the new content gets the old options with it.
                self.options.replace([]);
                self.hub.reset(position);
                // No write of unknown outcome has come to this content.
                self.hub.settle();
            }
        }
        self.is_adopted = true;
        self.known_options = None;
        reopened.adopt();
    }

    /// Looks what a store holds that was opened again, once it can be asked, and completes its options.
    async fn look_at_adopted(&mut self) {
        if !self.is_adopted || self.reopenings.availability() != Availability::Open {
            return;
        }
        self.is_adopted = false;
        if self.hub.in_doubt() {
            self.look_again().await;
        }
        // The periodic clean tries again.
        if let Err(error) = self.set_required_options().await {
            tracing::warn!(%error, "could not set the options that Pomerium needs in the store that was opened again");
        }
    }

    /// Takes note that a write has failed: unless the store says that nothing was changed, something may have been. A
    /// shared store's follower reads the change log in any case.
    fn doubt(&self, error: &BackendError) {
        if !self.shared && !is_unchanged(error) {
            self.hub.doubt();
        }
    }

    /// Reads what the store holds after a write of unknown outcome; true if that went well.
    async fn look_again(&self) -> bool {
        let looked = async {
            catch_up(&*self.backend, &self.hub).await?;
            self.list_options().await
        };
        match looked.await {
            Ok(()) => true,
            Err(BackendError::Stopped(_)) => false,
            Err(error) => {
                tracing::warn!(%error, "cannot tell yet what has come of a write that failed; will look again");
                false
            }
        }
    }

    /// True where the table has the store's options: not what other hosts have set since the follower looked, nor what a
    /// write of unknown outcome did.
    fn knows_options(&self) -> bool {
        !self.shared && !self.hub.in_doubt()
    }

    async fn list_options(&self) -> Result<(), BackendError> {
        let options: BTreeMap<String, Options> = self.backend.list_options().await?.into_iter().collect();
        if *self.options.all() != options {
            self.options.replace(options);
            self.hub.options_changed();
        }
        Ok(())
    }

    fn now(&mut self) -> Timestamp {
        self.last_now = self.last_now.max((self.clock)());
        self.last_now
    }

    /// Puts a group, and once more, each by itself, the batches that found no room: what a store can take in one call, the
    /// tombstones that it answers with among it, others may have used up.
    async fn put(&mut self, group: Group) {
        for job in self.put_together(group).await {
            self.put_together(Group::new(job)).await;
        }
    }

    /// Puts a group in one call. Returns the batches that are worth another try without the others.
    async fn put_together(&mut self, group: Group) -> Vec<PutJob> {
        let now = self.now();
        let server_version = self.hub.position().0;
        let group = group.without_outdated(server_version);
        let Group { batches, replies, .. } = group;
        if batches.is_empty() {
            return Vec::new();
        }
        // The backend gets a copy, of which the record data is shared, and what is left makes the records.
        let result = match self.backend.put(batches.clone(), now).await {
            Ok(result) => result,
            Err(error) => {
                self.doubt(&error);
                fail(replies, &error);
                return Vec::new();
            }
        };
        self.know_options(result.options_revision).await;
        let server_version = result.server_version;
        let mut changes = Vec::new();
        // How many records were stored of each type.
        let mut of_types: BTreeMap<String, usize> = BTreeMap::new();
        let mut answers = Vec::with_capacity(replies.len());
        let mut alone = Vec::new();
        let is_alone = batches.len() == 1;
        for ((batch, reply), outcomes) in batches.into_iter().zip(replies).zip(result.batches) {
            let answer = match outcomes {
                Ok(outcomes) => {
                    let records = batch
                        .changes
                        .into_iter()
                        .zip(outcomes)
                        .map(|(step, outcome)| {
                            if matches!(outcome, Outcome::Stored(_)) {
                                match of_types.get_mut(&step.key.record_type) {
                                    Some(stored) => *stored += 1,
                                    None => {
                                        of_types.insert(step.key.record_type.clone(), 1);
                                    }
                                }
                            }
                            written(step, outcome, now)
                        })
                        .inspect(|record| {
                            if let StoredRecord::Written(change) = record {
                                changes.push(Arc::clone(change));
                            }
                        })
                        .collect();
                    Ok(Stored {
                        server_version,
                        records,
                    })
                }
                Err(Refusal::Conflict(_)) => Err(PutError::Conflict),
                Err(Refusal::Exhausted(_)) if !is_alone => {
                    alone.push(PutJob {
                        batch,
                        // It was compared with this one's above, and nothing but this task makes it another.
                        read_under: None,
                        span: traces::current(),
                        reply,
                    });
                    continue;
                }
                Err(Refusal::Exhausted(reason)) => {
                    Err(PutError::Broker(BrokerError::Backend(BackendError::Exhausted(reason))))
                }
            };
            answers.push((reply, answer));
        }
        // Whoever has an answer finds the change in a stream that begins then: in the hub, or in a store that is shared.
        // Of the latter they are told after the answers: Pomerium's storage tests take a change that comes before for a fault.
        if !self.shared {
            self.publish(server_version, std::mem::take(&mut changes)).await;
        }
        for (record_type, stored) in of_types {
            self.enforce_capacity(record_type, stored).await;
        }
        for (reply, answer) in answers {
            reply.send(answer);
        }
        self.publish(server_version, changes).await;
        alone
    }

    /// Looks what other hosts of a shared store have set, since a capacity counts for the next put through any of them. Where
    /// that fails, what is known already counts.
    async fn know_options(&mut self, revision: Option<u64>) {
        if !self.shared {
            return;
        }
        let backend = &*self.backend;
        let looked = match revision {
            Some(revision) => self
                .options
                .refresh_to(revision, &mut self.known_options, backend)
                .await
                .map(drop),
            None => self.options.refresh(backend).await.map(drop),
        };
        if let Err(error) = looked {
            tracing::debug!(%error, "could not look for changed options");
        }
    }

    async fn publish(&self, server_version: u64, changes: Vec<Arc<Change>>) {
        if self.shared {
            self.hub.publish_next(server_version, changes);
            return;
        }
        if changes.is_empty() {
            return;
        }
        if self.hub.in_doubt() {
            // Whatever an earlier call has changed stands before these changes in the log.
            if self.look_again().await {
                self.hub.settle();
            }
            return;
        }
        let through = changes
            .iter()
            .map(|change| change.record.version)
            .max()
            .unwrap_or_default();
        // Nobody else replaces the content of this store, whatever its answer says.
        let (content, _) = self.hub.position();
        self.hub.publish(content, changes, through);
    }

    /// Removes what is above a type's capacity: as many records at least as were just stored, so that the type does not
    /// grow, and what is left between later jobs, so that those who wait are not held up by a capacity that was lowered.
    async fn enforce_capacity(&mut self, record_type: String, stored: usize) {
        let mut removed = 0;
        while removed < stored {
            match self.evict_surplus(&record_type).await {
                Some(evicted) => removed += evicted,
                None => return,
            }
        }
        self.surplus.entry(record_type).or_default();
    }

    /// Goes on with what was left, by the so many-th call. A store that always says that there is more is left alone after
    /// some, until the next put or clean.
    async fn go_on_to_capacity(&mut self, record_type: String, calls: usize) {
        if self.evict_surplus(&record_type).await.is_none() {
            return;
        }
        if calls < MOST_CALLS {
            self.surplus.insert(record_type, calls);
        } else {
            warn_of_surplus(&record_type);
        }
    }

    /// Removes some of what is above a type's capacity; says how many where there may be more. The records that were put
    /// are safe, so a failure is nobody's: it is logged, and the next put or clean tries again.
    async fn evict_surplus(&mut self, record_type: &str) -> Option<usize> {
        let keep = self.options.get(record_type)?.capacity?;
        let request = EvictRequest {
            record_type: record_type.to_owned(),
            modified_before: None,
            keep: Some(keep),
            max_records: EVICT_RECORDS,
        };
        match self.evict(request).await {
            Ok(evicted) => (evicted.more && !evicted.tombstones.is_empty()).then_some(evicted.tombstones.len()),
            Err(error) => {
                tracing::warn!(%error, record_type, "could not remove the records above the type's capacity");
                None
            }
        }
    }

    async fn evict(&mut self, request: EvictRequest) -> Result<Evicted, BackendError> {
        let now = self.now();
        let evicted = match self.backend.evict(request, now).await {
            Ok(evicted) => evicted,
            Err(error) => {
                self.doubt(&error);
                return Err(error);
            }
        };
        let tombstones = evicted.tombstones.iter().cloned();
        let tombstones = tombstones.map(|record| Arc::new(Change::new(record))).collect();
        self.publish(evicted.server_version, tombstones).await;
        Ok(evicted)
    }

    /// Sets what a client asks for, unless all options together would be too much. What removes a type's is let through
    /// without a look, so that a store that has too much to be looked at can be mended.
    async fn set_bounded_options(&self, record_type: String, options: Option<Options>) -> Result<(), BrokerError> {
        if let Some(options) = options.as_ref().filter(|options| !options.is_empty()) {
            if !self.knows_options() {
                self.list_options().await?;
            }
            options::check_room(&self.options.all(), &record_type, options)?;
        }
        Ok(self.set_options(record_type, options).await?)
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        let options = options.filter(|options| !options.is_empty());
        if self.knows_options() && self.options.get(&record_type) == options {
            return Ok(());
        }
        if let Err(error) = self.backend.set_options(record_type.clone(), options.clone()).await {
            self.doubt(&error);
            return Err(error);
        }
        self.options.set(record_type, options);
        self.hub.options_changed();
        Ok(())
    }

    async fn set_required_options(&self) -> Result<(), BackendError> {
        if !self.knows_options() {
            self.list_options().await?;
        }
        for (record_type, options) in missing_required(&self.options.all()) {
            self.set_options(record_type, Some(options)).await?;
        }
        Ok(())
    }

    async fn clear(&self) -> Result<(u64, u64), BackendError> {
        let before = self.backend.current().await?.server_version;
        // First of all, so that nobody who meets the new content gets the old options with it, or takes the hub's word for
        // which server version it is under.
        let options = self.options.all();
        self.options.replace([]);
        let emptied = self.options.all();
        let was_in_doubt = self.hub.in_doubt();
        if !self.shared {
            self.hub.doubt();
        }
        let position: Position = match self.backend.clear(backend::new_server_version(before)).await {
            Ok(position) => position,
            Err(error) => {
                // Of a shared store newer ones may have been read meanwhile.
                self.options.replace_unchanged(&emptied, options.as_ref().clone());
                self.hub.options_changed();
                if is_unchanged(&error) && !was_in_doubt {
                    self.hub.settle();
                }
                return Err(error);
            }
        };
        self.hub.reset(position);
        // Whatever an earlier call has changed went with the rest.
        self.hub.settle();
        // The store is cleared whatever comes of this; the periodic clean tries again.
        if let Err(error) = self.set_required_options().await {
            tracing::warn!(%error, "could not set the options that Pomerium needs after the Clear; will try again");
        }
        Ok((before, position.server_version))
    }
}

/// Tells that a type was left alone after [`MOST_CALLS`].
pub fn warn_of_surplus(record_type: &str) {
    tracing::warn!(
        calls = MOST_CALLS,
        record_type,
        "the store still says that there are records of the type to remove; going on later"
    );
}

/// True where the write has changed nothing: the store says so, or was not asked.
fn is_unchanged(error: &BackendError) -> bool {
    matches!(
        error,
        BackendError::Exhausted(_) | BackendError::ReadOnly(_) | BackendError::NotCalled(_)
    )
}

/// The record that a step has left.
fn written(step: backend::Change, outcome: Outcome, now: Timestamp) -> StoredRecord {
    let stored = |version: Version, data| Record {
        version,
        key: step.key,
        data,
        modified_at: now,
        deleted_at: None,
    };
    let record = match (outcome, step.operation) {
        (Outcome::Missing, _) => return StoredRecord::Missing,
        (Outcome::Deleted(tombstone), _) => tombstone,
        (Outcome::Stored(version), Operation::Upsert { data, .. }) => stored(version, data),
        (Outcome::Stored(version), Operation::Delete) => stored(version, None),
    };
    StoredRecord::Written(Arc::new(Change::new(record)))
}

/// What a batch counts.
fn batch_bytes(batch: &Batch) -> usize {
    let size = |change: &backend::Change| change.size() + STEP_BYTES;
    batch.changes.iter().map(size).sum()
}

fn fail(replies: Vec<PutReply>, error: &BackendError) {
    for reply in replies {
        reply.send(Err(PutError::Broker(error.clone().into())));
    }
}

/// The puts that one call carries.
struct Group {
    batches: Vec<Batch>,
    /// One per batch, as in [`PutJob`].
    read_under: Vec<Option<u64>>,
    replies: Vec<PutReply>,
    bytes: usize,
}

impl Group {
    fn new(first: PutJob) -> Self {
        let mut group = Self {
            batches: Vec::new(),
            read_under: Vec::new(),
            replies: Vec::new(),
            bytes: 0,
        };
        group.add(first);
        group
    }

    fn add(&mut self, job: PutJob) {
        self.bytes += batch_bytes(&job.batch);
        self.batches.push(job.batch);
        self.read_under.push(job.read_under);
        self.replies.push(job.reply);
    }

    /// Refuses the batches that were made of records of another server version: versions that they expect may be there
    /// again, of other records.
    fn without_outdated(self, server_version: u64) -> Self {
        let mut kept = Self {
            batches: Vec::new(),
            read_under: Vec::new(),
            replies: Vec::new(),
            bytes: self.bytes,
        };
        for ((batch, read_under), reply) in self.batches.into_iter().zip(self.read_under).zip(self.replies) {
            if read_under.is_some_and(|read_under| read_under != server_version) {
                reply.send(Err(PutError::Conflict));
            } else {
                kept.batches.push(batch);
                kept.read_under.push(read_under);
                kept.replies.push(reply);
            }
        }
        kept
    }

    fn has_room(&self) -> bool {
        self.bytes < GROUP_BYTES && self.batches.len() < GROUP_BATCHES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Key;

    #[test]
    fn steps_without_data_fill_a_call_too() {
        let job = || {
            let step = backend::Change {
                key: Key::new("", ""),
                operation: Operation::Delete,
                expected: None,
            };
            PutJob {
                batch: Batch {
                    changes: vec![step; 1_000],
                },
                read_under: None,
                span: Span::none(),
                reply: PutReply {
                    answer: oneshot::channel().0,
                    _room: None,
                },
            }
        };
        let mut group = Group::new(job());
        while group.has_room() {
            group.add(job());
        }
        let steps: usize = group.batches.iter().map(|batch| batch.changes.len()).sum();
        assert!((3_000..6_000).contains(&steps), "{steps}");
    }
}
