//! The native backend: the memory plugin's store without the component boundary.
//!
//! Both run the very same [`memory::Store`], so what a component costs is the difference between the two. This one is for
//! tests and measurements and cannot be configured: where it crashes it takes the host with it, which is what plugins are
//! there to prevent.
//!
//! [`Native::shared`] claims to be shared by several hosts. Two brokers over one such backend learn of each other's
//! changes by `wait`, as they would over a database.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use memory::Store;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{
    Backend, BackendError, Batch, Change, ChangesPage, ChangesRequest, EvictRequest, Evicted, Hint, LeaseAction,
    LeaseRequest, Observed, Operation, Outcome, PageBounds, Position, Pruned, PutResult, Refusal, Reopenings, ScanPage,
    ScanRequest, Statistics, StoreInfo, TypeStatistics,
};
use crate::data::Descriptors;
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// What a native backend is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// As the memory plugin takes it: none, `memory://` or `memory://?budget=512MiB`.
    pub connection_string: Option<String>,
    /// The server version; must not be 0.
    pub new_server_version: u64,
    /// Looks into record data for indexed fields.
    pub descriptors: Arc<Descriptors>,
}

/// The memory store behind a lock that is never held across an await.
#[derive(Debug)]
pub struct Native {
    store: Mutex<Store<Bytes>>,
    descriptors: Arc<Descriptors>,
    /// Woken after whatever [`Observed`] may tell of.
    changed: Notify,
}

impl Native {
    /// A wait ends after this long in any case.
    const LONGEST_WAIT: Duration = Duration::from_secs(50);

    /// Opens a store that belongs to one broker.
    ///
    /// # Errors
    ///
    /// [`BackendError::Configuration`] where the connection string is wrong.
    pub fn open(settings: Settings) -> Result<(Arc<Self>, StoreInfo), BackendError> {
        let budget = memory::Budget::from_connection_string(settings.connection_string.as_deref())
            .map_err(|error| BackendError::Configuration(error.to_string()))?;
        let store = Store::new(budget, settings.new_server_version);
        let info = StoreInfo {
            summary: format!("memory, native, at most {budget}"),
            shared: false,
            durable: false,
            position: store.position().into(),
            reopenings: Reopenings::never(),
        };
        let native = Self {
            store: Mutex::new(store),
            descriptors: settings.descriptors,
            changed: Notify::new(),
        };
        Ok((Arc::new(native), info))
    }

    /// Opens a store that several brokers share.
    ///
    /// # Errors
    ///
    /// As [`Native::open`].
    pub fn shared(settings: Settings) -> Result<(Arc<Self>, StoreInfo), BackendError> {
        let (native, info) = Self::open(settings)?;
        Ok((native, StoreInfo { shared: true, ..info }))
    }
}

#[async_trait]
impl Backend for Native {
    async fn close(&self) -> Result<(), BackendError> {
        Ok(())
    }

    async fn health(&self) -> Result<(), BackendError> {
        Ok(())
    }

    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let batches = batches.into_iter().map(to_batch).collect::<Result<Vec<_>, _>>()?;
        let (result, options_revision) = {
            let mut store = self.store.lock();
            let result = store.put(batches, now.0, &*self.descriptors, &|| true);
            (result, store.observed().options_revision)
        };
        self.changed.notify_waiters();
        Ok(PutResult {
            server_version: result.server_version,
            options_revision: Some(options_revision),
            batches: result.batches.into_iter().map(from_batch_result).collect(),
        })
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        let store = self.store.lock();
        let get = |key: &Key| store.get(&key.record_type, &key.id).map(from_entry);
        Ok(keys.iter().map(get).collect())
    }

    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        let request = memory::ScanRequest {
            record_type: request.record_type,
            hint: request.hint.and_then(to_hint),
            after: request.after.map(|key| (key.record_type, key.id)),
            bounds: to_bounds(request.bounds),
        };
        let page = self.store.lock().scan(&request);
        Ok(ScanPage {
            records: page.records.iter().map(from_entry).collect(),
            more: page.more,
            position: page.position.into(),
        })
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        Ok(self.store.lock().count(record_type.as_deref()))
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        Ok(self.store.lock().types().map(str::to_owned).collect())
    }

    async fn current(&self) -> Result<Position, BackendError> {
        Ok(self.store.lock().position().into())
    }

    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        let request = memory::ChangesRequest {
            after: request.after,
            record_type: request.record_type,
            bounds: to_bounds(request.bounds),
        };
        let page = self.store.lock().changes(&request).map_err(BackendError::Pruned)?;
        Ok(ChangesPage {
            records: page.records.iter().map(from_entry).collect(),
            through: page.through,
            position: page.position.into(),
        })
    }

    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        let deadline = Instant::now() + Self::LONGEST_WAIT;
        loop {
            // Registered before the look, so that a change after it is not missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = Timestamp::now();
            let (observed, next_expiry) = {
                let mut store = self.store.lock();
                let next_expiry = store.expire_services(now.0);
                (Observed::from(store.observed()), next_expiry)
            };
            if observed != seen || Instant::now() >= deadline {
                return Ok(observed);
            }
            let expiry = next_expiry.map(|expiry| nanoseconds(expiry.saturating_sub(now.0)));
            let pause = expiry.map_or(deadline, |expiry| deadline.min(Instant::now() + expiry));
            // Woken or not, the next round sees what there is.
            let _ = tokio::time::timeout_at(pause, changed).await;
        }
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        let store = self.store.lock();
        let options = |(record_type, options): (&str, &memory::Options)| {
            let options = Options {
                capacity: options.capacity,
                indexable_fields: options.indexable_fields.clone(),
                ttl: options.ttl.map(Duration::from_nanos),
            };
            (record_type.to_owned(), options)
        };
        Ok(store.options().map(options).collect())
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        let options = options.map(|options| memory::Options {
            capacity: options.capacity,
            indexable_fields: options.indexable_fields,
            ttl: options.ttl.map(to_nanoseconds),
        });
        let mut reindex = self.store.lock().start_reindex(record_type, options)?;
        loop {
            let is_done = self
                .store
                .lock()
                .continue_reindex(&mut reindex, &*self.descriptors, &|| true)?;
            if is_done {
                self.changed.notify_waiters();
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
    }

    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        let requests = requests.into_iter().map(|request| memory::Lease {
            name: request.name,
            id: request.id,
            action: match request.action {
                LeaseAction::Hold(duration) => memory::LeaseAction::Hold(to_nanoseconds(duration)),
                LeaseAction::Release => memory::LeaseAction::Release,
            },
        });
        Ok(self.store.lock().lease(requests.collect(), now.0)?)
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        let checkpoint = self.store.lock().checkpoint();
        Ok(Checkpoint {
            server_version: checkpoint.server_version,
            record_version: checkpoint.record_version,
        })
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        self.store.lock().set_checkpoint(memory::Checkpoint {
            server_version: checkpoint.server_version,
            record_version: checkpoint.record_version,
        });
        Ok(())
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        let services = services.into_iter().map(|service| memory::Service {
            kind: service.kind,
            endpoint: service.endpoint,
        });
        self.store
            .lock()
            .report_services(services.collect(), to_nanoseconds(ttl), now.0)?;
        self.changed.notify_waiters();
        Ok(())
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        let mut store = self.store.lock();
        let service = |service: &memory::Service| Service {
            kind: service.kind,
            endpoint: service.endpoint.clone(),
        };
        let services = store.services(now.0).map(service).collect();
        drop(store);
        // Some may have expired.
        self.changed.notify_waiters();
        Ok(services)
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        let pruned = self.store.lock().prune(before.0, max_changes);
        Ok(Pruned {
            removed: pruned.removed,
            more: pruned.more,
            position: pruned.position.into(),
        })
    }

    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        let request = memory::EvictRequest {
            record_type: request.record_type,
            modified_before: request.modified_before.map(|before| before.0),
            keep: request.keep,
            max_records: request.max_records,
        };
        let evicted = self.store.lock().evict(&request, now.0);
        self.changed.notify_waiters();
        Ok(Evicted {
            server_version: evicted.server_version,
            tombstones: evicted.tombstones.iter().map(from_entry).collect(),
            more: evicted.more,
        })
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        let position = self.store.lock().clear(new_server_version);
        self.changed.notify_waiters();
        Ok(position.into())
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        let statistics = self.store.lock().measure();
        let of_type = |of_type: memory::TypeStatistics| TypeStatistics {
            record_type: of_type.record_type,
            records: of_type.records,
            bytes: of_type.bytes,
        };
        Ok(Statistics {
            types: statistics.types.into_iter().map(of_type).collect(),
            changes: statistics.changes,
            used_bytes: statistics.used_bytes,
            limit_bytes: Some(statistics.limit_bytes),
            pruned_for_space: statistics.pruned_for_space,
        })
    }
}

impl memory::Extract for Descriptors {
    fn extract(&self, data: &[&[u8]], paths: &[String]) -> Vec<Option<memory::Values>> {
        let of_record = |data: &&[u8]| Some(paths.iter().map(|path| self.values(data, path)).collect());
        data.iter().map(of_record).collect()
    }
}

fn to_batch(batch: Batch) -> Result<memory::Batch<Bytes>, BackendError> {
    batch.changes.into_iter().map(to_change).collect()
}

fn to_change(change: Change) -> Result<memory::Change<Bytes>, BackendError> {
    let operation = match change.operation {
        Operation::Upsert { data, network } => memory::Operation::Upsert {
            data,
            network: match network.as_deref().map(str::parse) {
                Some(Ok(prefix)) => Some(prefix),
                Some(Err(error)) => {
                    return Err(BackendError::Internal(format!(
                        "the host sent a wrong network: {error}"
                    )));
                }
                None => None,
            },
        },
        Operation::Delete => memory::Operation::Delete,
    };
    Ok(memory::Change {
        record_type: change.key.record_type,
        id: change.key.id,
        operation,
        expected: change.expected,
    })
}

fn from_batch_result(result: Result<Vec<memory::Outcome<Bytes>>, memory::Refusal>) -> Result<Vec<Outcome>, Refusal> {
    let outcome = |outcome| match outcome {
        memory::Outcome::Stored(version) => Outcome::Stored(version),
        memory::Outcome::Deleted(tombstone) => Outcome::Deleted(from_entry(&tombstone)),
        memory::Outcome::Missing => Outcome::Missing,
    };
    match result {
        Ok(outcomes) => Ok(outcomes.into_iter().map(outcome).collect()),
        Err(memory::Refusal::Conflict(step)) => Err(Refusal::Conflict(step)),
        Err(memory::Refusal::Exhausted(text)) => Err(Refusal::Exhausted(text)),
    }
}

fn from_entry(entry: &Arc<memory::Entry<Bytes>>) -> Record {
    Record {
        version: entry.version(),
        key: Key::new(entry.record_type(), entry.id()),
        data: entry.data().cloned(),
        modified_at: Timestamp(entry.modified_at()),
        deleted_at: entry.deleted_at().map(Timestamp),
    }
}

/// A hint that cannot be read narrows nothing.
fn to_hint(hint: Hint) -> Option<memory::Hint> {
    match hint {
        Hint::Field { path, value } => Some(memory::Hint::Field { path, value }),
        Hint::Network(prefix) => prefix.parse().ok().map(memory::Hint::Network),
    }
}

fn to_bounds(bounds: PageBounds) -> memory::Bounds {
    memory::Bounds {
        records: usize::try_from(bounds.records).unwrap_or(usize::MAX),
        bytes: bounds.bytes,
    }
}

fn to_nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A length of time that is not negative.
fn nanoseconds(nanoseconds: i64) -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}

impl From<memory::Position> for Position {
    fn from(position: memory::Position) -> Self {
        Self {
            server_version: position.server_version,
            earliest_version: position.earliest_version,
            latest_version: position.latest_version,
        }
    }
}

impl From<memory::Observed> for Observed {
    fn from(observed: memory::Observed) -> Self {
        Self {
            server_version: observed.server_version,
            latest_version: observed.latest_version,
            options_revision: observed.options_revision,
            services_revision: observed.services_revision,
        }
    }
}

impl From<memory::Exhausted> for BackendError {
    fn from(exhausted: memory::Exhausted) -> Self {
        Self::Exhausted(exhausted.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    /// Longer than any wait for what does happen.
    const SOON: Duration = Duration::from_secs(20);

    fn shared() -> Arc<Native> {
        let (native, info) = Native::shared(Settings {
            connection_string: None,
            new_server_version: 7,
            descriptors: Arc::new(Descriptors::built_in()),
        })
        .unwrap();
        assert!(info.shared && !info.durable);
        assert_eq!(info.position.server_version, 7);
        native
    }

    fn upsert(id: &str, data: &'static [u8]) -> Batch {
        Batch {
            changes: vec![Change {
                key: Key::new("t", id),
                operation: Operation::Upsert {
                    data: Some(Bytes::from_static(data)),
                    network: None,
                },
                expected: None,
            }],
        }
    }

    #[tokio::test]
    async fn a_wrong_connection_string_is_a_configuration_error() {
        let opened = Native::open(Settings {
            connection_string: Some("postgres://user:secret@host".to_owned()),
            new_server_version: 1,
            descriptors: Arc::new(Descriptors::built_in()),
        });
        assert!(matches!(opened, Err(BackendError::Configuration(text)) if !text.contains("secret")));
    }

    #[tokio::test]
    async fn data_is_shared_and_not_copied() {
        let native = shared();
        let data = b"some data";
        native.put(vec![upsert("a", data)], Timestamp(1)).await.unwrap();
        let found = native.get(vec![Key::new("t", "a"), Key::new("t", "b")]).await.unwrap();
        assert_eq!(
            found[0].as_ref().unwrap().data.as_ref().unwrap().as_ptr(),
            data.as_ptr()
        );
        assert_eq!(found[1], None);
    }

    #[tokio::test]
    async fn a_wait_ends_with_whatever_it_tells_of() {
        let native = shared();
        let service = |endpoint: &str| Service {
            kind: 1,
            endpoint: endpoint.to_owned(),
        };
        let mut seen = native.wait(Observed::default()).await.unwrap();
        for step in 0..5 {
            let waiting = tokio::spawn({
                let native = Arc::clone(&native);
                async move { native.wait(seen).await }
            });
            tokio::task::yield_now().await;
            assert!(!waiting.is_finished(), "step {step}");
            let options = Options {
                capacity: Some(1),
                ..Options::default()
            };
            match step {
                0 => drop(native.put(vec![upsert("a", b"")], Timestamp(1)).await.unwrap()),
                1 => native.set_options("t".to_owned(), Some(options)).await.unwrap(),
                2 => {
                    let ttl = Duration::from_millis(300);
                    native
                        .report_services(vec![service("a")], ttl, Timestamp::now())
                        .await
                        .unwrap();
                }
                3 => {} // The service expires by itself.
                _ => drop(native.clear(8).await.unwrap()),
            }
            let observed = tokio::time::timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
            assert_ne!(observed, seen, "step {step}");
            seen = observed;
        }
        assert_eq!((seen.server_version, seen.latest_version), (8, 1));
        assert_eq!(native.list_services(Timestamp::now()).await.unwrap(), []);
    }
}
