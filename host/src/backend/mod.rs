//! The border between the broker and storage: `trait Backend` in plain Rust.
//!
//! It says the same as the WIT interface `databroker:storage/store`, whose laws bind every implementation; they are not
//! repeated here. There are two implementations: [`crate::component`], which carries a call to a plugin, and the native
//! one in `native`, which the tests use and which is the yardstick of what the component boundary costs. `reopening` is how
//! a store that stopped comes back.
//!
//! Nothing here is generic and every result is bounded, so that the broker holds one `Arc<dyn Backend>`.

pub mod native;
mod reopening;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use databroker_sql::PoolStatistics;

pub use reopening::{Availability, Event, Reopened, Reopener, Reopenings};

use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp, Version};
use crate::telemetry::metrics::Reading;

/// A store of records, opened.
///
/// The broker never has more than one of `put`, `evict`, `prune`, `clear` and `set_options` under way at a time. Reads
/// overlap with each other and with one of these.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Closes the store: whatever was acknowledged is safe afterwards. No call follows.
    async fn close(&self) -> Result<(), BackendError>;

    /// Says whether the store can answer now.
    async fn health(&self) -> Result<(), BackendError>;

    /// Applies batches, each of them atomic, in their order.
    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError>;

    /// Reads records by key: one answer per key, in their order.
    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError>;

    /// Reads a page of live records, ascending by key.
    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError>;

    /// Counts the live records of a type, or of all types.
    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError>;

    /// Lists the types that have live records, ascending.
    async fn types(&self) -> Result<Vec<String>, BackendError>;

    /// Says where the store stands.
    async fn current(&self) -> Result<Position, BackendError>;

    /// Reads a page of the change log, ascending by version. Fails with [`BackendError::Pruned`] where the log no longer
    /// reaches back so far.
    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError>;

    /// Returns what there is as soon as it differs from what was seen, and after at most a minute. Shared stores only.
    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError>;

    /// Lists all options, ascending by type.
    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError>;

    /// Replaces a type's options; none removes them.
    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError>;

    /// Takes, renews or gives back leases: one answer per request, in their order.
    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError>;

    /// The checkpoint as last set.
    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError>;

    /// Replaces the checkpoint.
    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError>;

    /// Adds services to the registry, or keeps those that are there, for so long from now.
    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError>;

    /// Lists the services whose time has not run out, ascending by kind, then by endpoint.
    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError>;

    /// Removes changes older than `before`, at most `max_changes` of them, but never the newest.
    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError>;

    /// Removes records, each with a tombstone.
    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError>;

    /// Removes all records, changes and options; the store takes the new server version.
    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError>;

    /// Says what the store holds, for metrics and logs.
    async fn measure(&self) -> Result<Statistics, BackendError>;

    /// Says what runs the store and what that takes, for metrics and health. It asks nobody, so that it answers at once.
    fn runtime(&self) -> Runtime {
        Runtime::default()
    }
}

/// Why a call failed. The texts are for the operator, free of secrets and of record data.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendError {
    /// The settings are wrong; only from opening.
    #[error("the storage settings are wrong: {0}")]
    Configuration(String),
    /// The store cannot be reached, or the outcome of a write is not known.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store was not asked at all, since its plugin is being started again or has too many calls; nothing was changed.
    #[error("the store is unavailable: {0}")]
    NotCalled(String),
    /// The store is full, and nothing was changed; or what was asked for does not fit into one answer.
    #[error("there is no room: {0}")]
    Exhausted(String),
    /// The store takes no writes at present.
    #[error("the store is read-only: {0}")]
    ReadOnly(String),
    /// The change log no longer reaches back so far; the highest version that was pruned.
    #[error("changes up to version {0} are no longer in the change log")]
    Pruned(Version),
    /// What is stored cannot be read back.
    #[error("the store is corrupt: {0}")]
    Corrupt(String),
    /// A fault of the plugin, an answer that breaks a law of the interface among them.
    #[error("the storage plugin failed: {0}")]
    Internal(String),
    /// The plugin's instance trapped or was stopped while the call was under way; the outcome of a write is not known.
    #[error("the storage plugin stopped: {0}")]
    Stopped(String),
    /// The store is closed already: the process goes down.
    #[error("the store is closed")]
    Closed,
}

/// A server version to take instead of another: random, never 0, and within 32 bits as Pomerium's own on Postgres are.
pub fn new_server_version(before: u64) -> u64 {
    loop {
        let candidate = u64::from(rand::random::<u32>());
        if candidate != 0 && candidate != before {
            return candidate;
        }
    }
}

/// Where a store stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Names this incarnation of the content; never 0.
    pub server_version: u64,
    /// The oldest change in the log; 0 where the log is empty.
    pub earliest_version: Version,
    /// The newest change ever made.
    pub latest_version: Version,
}

/// What opening a store found.
#[derive(Debug)]
pub struct StoreInfo {
    /// One line for the operator.
    pub summary: String,
    /// True where other hosts may write to the same store.
    pub shared: bool,
    /// True where the content survives a restart.
    pub durable: bool,
    /// Where the store stands.
    pub position: Position,
    /// What tells when it has stopped and was opened again, for the one who stands in front of it.
    pub reopenings: Reopenings,
}

/// An ordered list of steps that are applied as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The steps.
    pub changes: Vec<Change>,
}

/// One step of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The record to change.
    pub key: Key,
    /// What to do with it.
    pub operation: Operation,
    /// The version that the record must have, 0 for none; else the batch is refused.
    pub expected: Option<Version>,
}

impl Change {
    /// The bytes of type, id and data.
    pub fn size(&self) -> usize {
        let data = match &self.operation {
            Operation::Upsert { data: Some(data), .. } => data.len(),
            Operation::Upsert { data: None, .. } | Operation::Delete => 0,
        };
        self.key.record_type.len() + self.key.id.len() + data
    }
}

/// What to do with one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the record.
    Upsert {
        /// The record's data.
        data: Option<Bytes>,
        /// The canonical network prefix in the data, if it has one.
        network: Option<String>,
    },
    /// Removes the record, if there is one.
    Delete,
}

/// What a put gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutResult {
    /// The server version that the batches were written under.
    pub server_version: u64,
    /// What [`Observed`] would have said of the options, if the store tells. Only of use where others set options too.
    pub options_revision: Option<u64>,
    /// One result per batch: the outcomes of its steps, or why it was refused.
    pub batches: Vec<Result<Vec<Outcome>, Refusal>>,
}

/// The outcome of one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The version that the upsert was given.
    Stored(Version),
    /// The tombstone that the delete has left.
    Deleted(Record),
    /// There was nothing to delete.
    Missing,
}

/// Why one batch was refused; it has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The step with this index found another version than it expected.
    Conflict(usize),
    /// There is no room for it.
    Exhausted(String),
}

/// The bounds of a page: it stops at whichever is met first, but holds one record at least where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBounds {
    /// Most records; at least 1.
    pub records: u32,
    /// Most bytes of types, ids and data; at least 1.
    pub bytes: u64,
}

/// Narrows a scan; the backend may return more than was asked for, but not less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Records whose indexed field has this value.
    Field {
        /// Field names joined by dots.
        path: String,
        /// The value.
        value: String,
    },
    /// Records whose network contains the whole of this canonical prefix.
    Network(String),
}

/// What to scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// Only this type; none for all.
    pub record_type: Option<String>,
    /// Narrows the scan.
    pub hint: Option<Hint>,
    /// Narrows it too: a predicate in the path language of SQL/JSON over the JSON form of the data, with which records of the
    /// type may be left out. See [`Filter::condition`](crate::filter::Filter::condition).
    pub condition: Option<String>,
    /// Continues after this key.
    pub after: Option<Key>,
    /// The bounds of the page.
    pub bounds: PageBounds,
}

/// Part of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// Live records, ascending by key.
    pub records: Vec<Record>,
    /// True if there is more after the last of them.
    pub more: bool,
    /// Where the store stood no later than the records were read.
    pub position: Position,
}

/// What to read from the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesRequest {
    /// Only changes with a higher version.
    pub after: Version,
    /// Only this type; none for all.
    pub record_type: Option<String>,
    /// The bounds of the page.
    pub bounds: PageBounds,
}

/// Part of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesPage {
    /// The changes, ascending by version.
    pub records: Vec<Record>,
    /// The page holds every change asked for up to this version.
    pub through: Version,
    /// Where the store stood when the page was read.
    pub position: Position,
}

/// What a waiting host has seen of a shared store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The server version.
    pub server_version: u64,
    /// The newest change.
    pub latest_version: Version,
    /// Changes whenever any type's options change.
    pub options_revision: u64,
    /// Changes whenever a service is reported or expires.
    pub services_revision: u64,
}

/// What to do with one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The lease's name.
    pub name: String,
    /// Who asks.
    pub id: String,
    /// Take and keep it, or give it back.
    pub action: LeaseAction,
}

/// What is asked of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseAction {
    /// Take the lease for so long, or keep it for so long again.
    Hold(Duration),
    /// Give it back.
    Release,
}

/// What a prune did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// How many changes were removed.
    pub removed: u32,
    /// True if there is more to remove.
    pub more: bool,
    /// Where the store stands now.
    pub position: Position,
}

/// Which records to remove: those that any of the two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictRequest {
    /// Of this type.
    pub record_type: String,
    /// Records that were last modified before this.
    pub modified_before: Option<Timestamp>,
    /// All but this many, which are those with the highest versions.
    pub keep: Option<u64>,
    /// Remove so many at most, the lowest versions first.
    pub max_records: u32,
}

/// What an eviction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The server version that the tombstones were written under.
    pub server_version: u64,
    /// The tombstones, ascending by version.
    pub tombstones: Vec<Record>,
    /// True if there is more to remove.
    pub more: bool,
}

/// What one type holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeStatistics {
    /// The type.
    pub record_type: String,
    /// Live records.
    pub records: u64,
    /// Bytes of their types, ids and data.
    pub bytes: u64,
}

/// What runs a store, and what that takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runtime {
    /// The plugin; none for a store within the host.
    pub plugin: Option<PluginIdentity>,
    /// Bytes of memory that its instance has.
    pub memory_bytes: u64,
    /// Lines that it logged and that were left out, since there were too many.
    pub log_lines_dropped: u64,
    /// How often a new instance took the place of one that had stopped.
    pub restarts: u64,
    /// How often it was refused what it is not granted, by kind.
    pub refusals: Vec<(&'static str, u64)>,
    /// The database that it reaches by way of the host; none for most.
    pub database: Option<DatabaseRuntime>,
}

/// What a plugin's database has done for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseRuntime {
    /// The first server of its connection string, and the database there.
    pub name: String,
    /// Its connections; none until there is one.
    pub pool: Option<PoolStatistics>,
    /// True behind a pooler that gives each transaction another connection.
    pub pooled: bool,
    /// True where its server takes no writes at present.
    pub read_only: bool,
    /// What was asked of it has ended so often, by how it did: `ok`, or the kind of failure.
    pub outcomes: Vec<(&'static str, u64)>,
    /// How long it took until then.
    pub durations: Reading,
}

/// Which plugin it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginIdentity {
    /// That of the built-in plugin, or the file's without its ending.
    pub name: String,
    /// SHA-256 of the component, in hexadecimal.
    pub digest: String,
    /// The world that it is built for, with its version.
    pub world: String,
}

/// What a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// By type, ascending.
    pub types: Vec<TypeStatistics>,
    /// Changes in the log.
    pub changes: u64,
    /// Bytes that count against the limit.
    pub used_bytes: u64,
    /// The limit, if there is one.
    pub limit_bytes: Option<u64>,
    /// Changes pruned before their time to make room, since the store was opened.
    pub pruned_for_space: u64,
}
