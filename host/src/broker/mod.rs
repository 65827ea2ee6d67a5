//! What is the same for every backend: the semantics of the protocol, in plain Rust.
//!
//! Reads go straight to the backend; those of single records are `joined` on the way. Whatever changes records, the change
//! log or options goes through the one `writer`, which joins the callers that wait and feeds the `hub`, from which the
//! streams in `sync` read. Where other hosts write to the same store, the `follower` feeds it too. `retention` removes what
//! is old.
//!
//! Neither protobuf messages nor WIT types come in here, and nothing is kept here but copies: the recent changes in the hub
//! and the options.

mod closing;
mod error;
mod follower;
mod hub;
mod joined;
mod leases;
mod listings;
mod options;
mod patch;
mod query;
mod registry;
mod retention;
mod sync;
mod writer;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

pub use error::BrokerError;

use self::closing::Closing;
use self::follower::Follower;
use self::hub::Hub;
use self::joined::{Apart, Joined};
use self::leases::Leases;
use self::listings::Listings;
use self::options::OptionsTable;
use self::patch::Patcher;
use self::registry::Registry;
use self::retention::Retention;
use self::sync::Sources;
use self::writer::{PutError, StoredRecord, Writer};
use crate::backend::{self, Availability, Backend, Batch, Operation, Position, StoreInfo};
use crate::data::{Descriptors, Mask, network};
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp, Version};

/// How the broker behaves, whatever the backend.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long changes stay in the change log; 1 h.
    pub history: Duration,
    /// How often old changes and expired records are removed; 1 min.
    pub clean_interval: Duration,
    /// The bytes of recent changes that the hub holds for streams; 16 MiB.
    pub hub_bytes: usize,
    /// How long a reported service stays listed; 30 s.
    pub service_ttl: Duration,
    /// What the time is: of writes, leases, services and everything that runs out.
    pub clock: fn() -> Timestamp,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            history: Duration::from_secs(60 * 60),
            clean_interval: Duration::from_secs(60),
            hub_bytes: 16 << 20,
            service_ttl: Duration::from_secs(30),
            clock: Timestamp::now,
        }
    }
}

/// Most bytes of records in an answer, which is what Pomerium's clients take. More is refused and not cut: who asks for a
/// user's sessions in order to revoke them must not get some of them.
const ANSWER_BYTES: usize = 4 << 20;

/// How often a query is made again whose store was cleared, or came back empty, meanwhile.
const QUERY_ATTEMPTS: usize = 3;

/// Most keys that one call of the backend reads: so many of the largest records, 64 MiB, are held at once.
const GET_KEYS: usize = 16;

/// A longer key is asked for by itself: those of sixteen requests could be more than a plugin has room for.
const JOINED_KEY_BYTES: usize = 4 << 10;

/// A record to write, delete or patch.
#[derive(Clone, Debug)]
pub struct Write {
    /// Type and id.
    pub key: Key,
    /// The encoded `Any`.
    pub data: Option<Bytes>,
    /// Delete the record instead.
    pub delete: bool,
}

/// What a put or patch has written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The server version that it was written under.
    pub server_version: u64,
    /// The records, in the order of the request, with versions and times as Sync delivers them; a deleted one with the data
    /// of the request.
    pub records: Vec<Record>,
}

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only this type; none for all.
    pub record_type: Option<String>,
    /// Only records with a string that holds this text, whatever its case; empty for all.
    pub text: String,
    /// Only records that match this filter (see [`crate::filter`]).
    pub filter: Option<serde_json::Value>,
    /// Skip so many matches; negative is an error.
    pub offset: i64,
    /// Return so many at most; negative is an error.
    pub limit: i64,
}

/// What a query found.
#[derive(Clone, Debug)]
pub struct QueryPage {
    /// The matches from offset on, ascending by key.
    pub records: Vec<Record>,
    /// The number of all matches.
    pub total: u64,
    /// The server version when the query began.
    pub server_version: u64,
    /// The newest change then.
    pub latest_version: Version,
}

/// Where a Sync begins.
#[derive(Clone, Debug, Default)]
pub struct SyncStart {
    /// The server version that the record version belongs to.
    pub server_version: u64,
    /// Only changes with a higher version.
    pub record_version: Version,
    /// Only this type; none for all.
    pub record_type: Option<String>,
    /// Go on with new changes once caught up.
    pub wait: bool,
}

/// A change on its way to streams.
#[derive(Debug)]
pub struct Change {
    /// The record or tombstone.
    pub record: Record,
    /// Room for the transport's encoding of it, filled by the first stream that sends it and shared by all.
    pub encoded: OnceLock<Bytes>,
}

impl Change {
    /// A change that nobody has encoded yet.
    pub fn new(record: Record) -> Self {
        Self {
            record,
            encoded: OnceLock::new(),
        }
    }
}

/// Messages of a Sync stream that were read together; never none.
#[derive(Clone, Debug)]
pub enum SyncPage {
    /// Types' options, at the start and whenever they change.
    Options(Vec<(String, Options)>),
    /// Changes that were just made, shared with other streams; versions ascend.
    Recent(Vec<Arc<Change>>),
    /// Changes from the backend's change log, for this stream alone; versions ascend.
    Past(Vec<Record>),
}

/// Messages of a SyncLatest stream that were read together; never none. Records come first, then options, then the position.
#[derive(Clone, Debug)]
pub enum SyncLatestPage {
    /// Live records.
    Records(Vec<Record>),
    /// Types' options.
    Options(Vec<(String, Options)>),
    /// Where to go on with Sync; always the last.
    Position(Position),
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The newest change that streams were told of.
    pub latest_version: Version,
    /// Bytes of the recent changes that the hub holds.
    pub hub_bytes: u64,
    /// How many they are.
    pub hub_changes: u64,
    /// How many versions the oldest change that a Sync stream has yet to send is behind the newest.
    pub lag_versions: u64,
}

/// The broker: one per process, shared by all calls.
pub struct Broker {
    backend: Arc<dyn Backend>,
    /// True where other hosts may write to the same store.
    shared: bool,
    descriptors: Arc<Descriptors>,
    hub: Arc<Hub>,
    options: Arc<OptionsTable>,
    writer: Writer,
    leases: Leases,
    patcher: Patcher,
    /// Where those meet who read one record.
    gets: Joined<Key, Option<Record>>,
    /// Where those meet who ask where the store stands.
    positions: Joined<(), Position>,
    registry: Registry,
    listings: Arc<Listings>,
    /// The room for records that queries hold.
    query_room: Semaphore,
    clock: fn() -> Timestamp,
    /// Whether the backend can be asked.
    availability: watch::Receiver<Availability>,
    /// The tasks that watch and clean; they end at shutdown.
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Broker {
    /// Takes over an opened backend: sets the options that Pomerium needs and starts the tasks that write, follow and
    /// clean. Fails where the backend does.
    pub async fn start(
        backend: Arc<dyn Backend>,
        info: StoreInfo,
        config: Config,
        descriptors: Arc<Descriptors>,
    ) -> Result<Arc<Self>, BrokerError> {
        let backend: Arc<dyn Backend> = Arc::new(Closing::new(backend));
        let availability = info.reopenings.watch();
        let clock = config.clock;
        let leases = Leases::new(Arc::clone(&backend), clock, &info);
        let hub = Arc::new(Hub::new(info.position, config.hub_bytes));
        let options = Arc::new(OptionsTable::default());
        options.replace(backend.list_options().await?);
        let writer = Writer::start(
            Arc::clone(&backend),
            info.reopenings,
            info.shared,
            Arc::clone(&hub),
            Arc::clone(&options),
            clock,
        );
        writer.set_required_options().await?;

        let listings = Arc::new(Listings::new(Arc::clone(&backend)));
        let services = watch::Sender::new(());
        let retention = Retention {
            writer: writer.clone(),
            options: Arc::clone(&options),
            backend: Arc::clone(&backend),
            history: config.history,
            interval: config.clean_interval,
            clock,
        };
        let mut tasks = vec![tokio::spawn(retention.run())];
        if info.shared {
            let follower = Follower {
                backend: Arc::clone(&backend),
                hub: Arc::clone(&hub),
                options: Arc::clone(&options),
                services: services.clone(),
            };
            tasks.push(tokio::spawn(follower.run()));
        }
        Ok(Arc::new(Self {
            shared: info.shared,
            descriptors,
            leases,
            patcher: Patcher::default(),
            gets: Joined::new(GET_KEYS, Apart::OnFailureOrDelay),
            positions: Joined::new(usize::MAX, Apart::Never),
            registry: Registry {
                backend: Arc::clone(&backend),
                listings: Arc::clone(&listings),
                hub: Arc::clone(&hub),
                changed: services,
                ttl: config.service_ttl,
                clock,
            },
            listings,
            query_room: Semaphore::new(query::ROOM_UNITS),
            backend,
            hub,
            options,
            writer,
            clock,
            availability,
            tasks: Mutex::new(tasks),
        }))
    }

    /// Reads a record.
    pub async fn get(&self, key: Key) -> Result<Record, BrokerError> {
        self.refuse_after_shutdown()?;
        self.get_one(key).await?.ok_or(BrokerError::RecordNotFound)
    }

    /// Writes and deletes records, all or none, in their order.
    pub async fn put(&self, writes: Vec<Write>) -> Result<Written, BrokerError> {
        self.refuse_after_shutdown()?;
        if writes.is_empty() {
            let (server_version, _) = self.position().await?;
            return Ok(Written {
                server_version,
                records: Vec::new(),
            });
        }
        let batch = Batch {
            changes: writes
                .iter()
                .map(|write| self.change(write, write.data.clone(), None))
                .collect(),
        };
        match self.writer.put(batch, None).await {
            Ok(stored) => Ok(self.written(writes, stored)),
            Err(PutError::Broker(error)) => Err(error),
            // Nothing was expected of the records, so the store should not have found a conflict.
            Err(PutError::Conflict) => Err(backend::BackendError::Internal(
                "a put without expected versions was refused as a conflict".to_owned(),
            )
            .into()),
        }
    }

    /// Changes the masked fields of records, all or none; those that do not exist are skipped.
    pub async fn patch(&self, writes: Vec<Write>, mask: Vec<String>) -> Result<Written, BrokerError> {
        self.refuse_after_shutdown()?;
        let mask = Mask::new(&mask).map_err(|error| BrokerError::Patch(error.to_string()))?;
        self.patcher.patch(self, writes, &mask).await
    }

    /// Finds records by filter and text.
    pub async fn query(&self, query: Query) -> Result<QueryPage, BrokerError> {
        self.refuse_after_shutdown()?;
        // A store that came back, or was cleared, is told of before any call meets the new content, or is in doubt until it is:
        // so what was read under one server version is all of one content.
        for _ in 0..QUERY_ATTEMPTS {
            if let Some(page) = query::run(self, query.clone()).await? {
                return Ok(page);
            }
        }
        let why = "the content was replaced while it was searched, more than once; try again";
        Err(backend::BackendError::Unavailable(why.to_owned()).into())
    }

    /// Streams the changes after a version, and the options of the types concerned at the start and whenever they change.
    /// Without `wait` the stream ends cleanly once it has caught up; with it, it goes on until it ends with an error:
    /// `InvalidServerVersion` after a Clear, `ShuttingDown` at shutdown.
    pub async fn sync(
        &self,
        start: SyncStart,
    ) -> Result<BoxStream<'static, Result<SyncPage, BrokerError>>, BrokerError> {
        self.know_options().await?;
        sync::sync(self.sources(), self.shared, start).await
    }

    /// Streams all live records, then options, then the position.
    pub async fn sync_latest(
        &self,
        record_type: Option<String>,
    ) -> Result<BoxStream<'static, Result<SyncLatestPage, BrokerError>>, BrokerError> {
        self.know_options().await?;
        sync::sync_latest(self.sources(), record_type).await
    }

    /// Lists the types that have live records, ascending.
    pub async fn list_types(&self) -> Result<Vec<String>, BrokerError> {
        self.refuse_after_shutdown()?;
        self.listings.types().await
    }

    /// Says where the store stands.
    pub async fn server_info(&self) -> Result<Position, BrokerError> {
        self.refuse_after_shutdown()?;
        self.current().await
    }

    /// Removes everything but leases and services; returns the server versions before and after. The options that Pomerium
    /// needs are set again.
    pub async fn clear(&self) -> Result<(u64, u64), BrokerError> {
        self.refuse_after_shutdown()?;
        self.writer.clear().await
    }

    /// Reads a type's options.
    pub async fn get_options(&self, record_type: String) -> Result<Options, BrokerError> {
        self.refuse_after_shutdown()?;
        refuse_empty_type(&record_type)?;
        self.know_options().await?;
        self.options.get(&record_type).ok_or(BrokerError::OptionsNotFound)
    }

    /// Looks what options other hosts of a shared store have set; who asks must not be told what they were a moment ago.
    async fn know_options(&self) -> Result<(), BrokerError> {
        self.refuse_after_shutdown()?;
        if self.shared {
            self.options.refresh(&*self.backend).await?;
        }
        Ok(())
    }

    /// Replaces a type's options; returns them as they are kept.
    pub async fn set_options(&self, record_type: String, options: Options) -> Result<Options, BrokerError> {
        self.refuse_after_shutdown()?;
        refuse_empty_type(&record_type)?;
        self.writer.set_options(record_type, Some(options.clone())).await?;
        Ok(options)
    }

    /// Takes a lease; returns its id.
    pub async fn acquire_lease(&self, name: String, duration: Duration) -> Result<String, BrokerError> {
        self.refuse_after_shutdown()?;
        let id = uuid::Uuid::new_v4().to_string();
        let held = self.leases.hold(name, id.clone(), duration).await?;
        held.then_some(id).ok_or(BrokerError::LeaseTaken)
    }

    /// Keeps a lease for longer, or takes it where nobody holds it.
    pub async fn renew_lease(&self, name: String, id: String, duration: Duration) -> Result<(), BrokerError> {
        self.refuse_after_shutdown()?;
        let held = self.leases.hold(name, id, duration).await?;
        held.then_some(()).ok_or(BrokerError::LeaseLost)
    }

    /// Gives a lease back. It is no error if the caller does not hold it.
    pub async fn release_lease(&self, name: String, id: String) -> Result<(), BrokerError> {
        self.refuse_after_shutdown()?;
        self.leases.release(name, id).await
    }

    /// Reads the checkpoint.
    pub async fn get_checkpoint(&self) -> Result<Checkpoint, BrokerError> {
        self.refuse_after_shutdown()?;
        Ok(self.backend.get_checkpoint().await?)
    }

    /// Replaces the checkpoint.
    pub async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BrokerError> {
        self.refuse_after_shutdown()?;
        Ok(self.backend.set_checkpoint(checkpoint).await?)
    }

    /// Reports services; returns when to report again.
    pub async fn report_services(&self, services: Vec<Service>) -> Result<Duration, BrokerError> {
        self.refuse_after_shutdown()?;
        self.registry.report(services).await
    }

    /// Lists the services of these kinds, ascending by kind, then by endpoint; no kinds means all.
    pub async fn list_services(&self, kinds: Vec<i32>) -> Result<Vec<Service>, BrokerError> {
        self.refuse_after_shutdown()?;
        self.registry.list(&kinds).await
    }

    /// Streams the list of services, at once and whenever it changes.
    pub async fn watch_services(
        &self,
        kinds: Vec<i32>,
    ) -> Result<BoxStream<'static, Result<Vec<Service>, BrokerError>>, BrokerError> {
        self.registry.clone().watch(kinds).await
    }

    /// Numbers for metrics; asks nobody.
    pub fn figures(&self) -> Figures {
        self.hub.figures()
    }

    /// What tells when the backend stops, is opened again, or has stopped for good.
    pub fn availability(&self) -> watch::Receiver<Availability> {
        self.availability.clone()
    }

    /// Says whether the backend answers.
    pub async fn health(&self) -> Result<(), BrokerError> {
        self.refuse_after_shutdown()?;
        Ok(self.backend.health().await?)
    }

    /// Ends all streams with `ShuttingDown`, refuses new calls with the same, and closes the backend once the writes that
    /// wait are done and the reads under way have their answers. What a call reads after that fails with `ShuttingDown`, too.
    pub async fn shutdown(&self) -> Result<(), BrokerError> {
        self.hub.end();
        self.registry.changed.send_replace(());
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.writer.close().await
    }

    /// Reads a record, together with others who read one.
    async fn get_one(&self, key: Key) -> Result<Option<Record>, BrokerError> {
        if key.record_type.len() + key.id.len() > JOINED_KEY_BYTES {
            return Ok(joined::only(self.backend.get(vec![key]).await)?);
        }
        let get = |keys| {
            let backend = Arc::clone(&self.backend);
            async move { backend.get(keys).await }
        };
        Ok(self.gets.ask(key, get).await?)
    }

    /// Asks the backend where it stands.
    async fn current(&self) -> Result<Position, BrokerError> {
        let current = |asked: Vec<()>| {
            let backend = Arc::clone(&self.backend);
            async move { Ok(vec![backend.current().await?; asked.len()]) }
        };
        Ok(self.positions.ask((), current).await?)
    }

    /// Reads records by key, [`GET_KEYS`] at most: one answer per key, in their order. Where they are too large for one
    /// answer of the backend, in smaller parts.
    async fn get_all(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BrokerError> {
        if let [key] = keys.as_slice() {
            return Ok(vec![self.get_one(key.clone()).await?]);
        }
        let mut records = Vec::with_capacity(keys.len());
        let mut parts: Vec<&[Key]> = vec![&keys];
        while let Some(part) = parts.pop() {
            match self.backend.get(part.to_vec()).await {
                Ok(found) => records.extend(found),
                Err(backend::BackendError::Exhausted(_)) if part.len() > 1 => {
                    let (first, rest) = part.split_at(part.len() / 2);
                    parts.extend([rest, first]);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(records)
    }

    fn refuse_after_shutdown(&self) -> Result<(), BrokerError> {
        if self.hub.ended() {
            Err(BrokerError::ShuttingDown)
        } else {
            Ok(())
        }
    }

    fn sources(&self) -> Sources {
        Sources {
            backend: Arc::clone(&self.backend),
            hub: Arc::clone(&self.hub),
            options: Arc::clone(&self.options),
        }
    }

    /// The server version and the newest change; without a call where only this host writes to the store.
    async fn position(&self) -> Result<(u64, Version), BrokerError> {
        if self.shared || self.hub.in_doubt() {
            let position = self.current().await?;
            return Ok((position.server_version, position.latest_version));
        }
        Ok(self.hub.position())
    }

    /// The step that carries out a write.
    fn change(&self, write: &Write, data: Option<Bytes>, expected: Option<Version>) -> backend::Change {
        let operation = if write.delete {
            Operation::Delete
        } else {
            let network = data.as_deref().and_then(network);
            Operation::Upsert {
                data,
                network: network.map(|network| network.to_string()),
            }
        };
        backend::Change {
            key: write.key.clone(),
            operation,
            expected,
        }
    }

    /// The records of an answer. That of a delete carries the data of the request and not the tombstone's, which the caller
    /// did not send and may be too large to receive; what was not there to delete has version 0.
    fn written(&self, writes: Vec<Write>, stored: writer::Stored) -> Written {
        let records = writes
            .into_iter()
            .zip(stored.records)
            .map(|(write, stored)| match stored {
                StoredRecord::Written(change) => Record {
                    version: change.record.version,
                    key: write.key,
                    data: if write.delete {
                        write.data
                    } else {
                        change.record.data.clone()
                    },
                    modified_at: change.record.modified_at,
                    deleted_at: change.record.deleted_at,
                },
                StoredRecord::Missing => {
                    let now = (self.clock)();
                    Record {
                        version: 0,
                        key: write.key,
                        data: write.data,
                        modified_at: now,
                        deleted_at: Some(now),
                    }
                }
            })
            .collect();
        Written {
            server_version: stored.server_version,
            records,
        }
    }
}

/// Options belong to a type that is named; who asks without one has left it out.
fn refuse_empty_type(record_type: &str) -> Result<(), BrokerError> {
    if record_type.is_empty() {
        return Err(BrokerError::InvalidArgument("options req type is empty".to_owned()));
    }
    Ok(())
}

impl Drop for Broker {
    fn drop(&mut self) {
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
    }
}
