//! A storage backend in memory: the least that keeps every law of the interface. Copy it and put your store in place of
//! [`store::Store`].
//!
//! This file is the border: one function for each of the interface, which asks the store and hands back its answer.
//! Nothing in it waits, so every call runs from its beginning to its end before another begins. That alone makes
//! batches atomic and versions visible in their order. A backend that awaits something between reading and writing has
//! to see to both by other means.
//!
//! The host checks all that comes back and stops an instance that panics; whatever it held in memory is then gone. So
//! nothing here panics: no `unwrap`, no index, no more memory than the store allows itself and no larger answer than the
//! host takes. (Pages and evictions are bounded, the host asks for 16 records at once, and `put` counts its tombstones.)

mod store;

use std::cell::RefCell;

use bindings::databroker::storage::log::{self, Level};
use bindings::databroker::storage::types::{Duration, Error, Key, Position, Record, Timestamp};
use bindings::exports::databroker::storage::store::{
    Change, ChangesPage, ChangesRequest, Checkpoint, EvictRequest, Evicted, Guest, LeaseRequest, Observed, Options,
    Pruned, PutResult, ScanPage, ScanRequest, Service, Settings, Statistics, StoreInfo, TypedOptions,
};
use store::Store;

#[expect(unsafe_code, reason = "generated code")]
mod bindings {
    wit_bindgen::generate!({ path: "../../wit/storage-0.1.0", world: "backend" });
    export!(Backend with_types_in self);
    use super::Backend;
}

thread_local! {
    /// The store, once it is open. A component has one thread, so this needs no lock; a borrow must not be held across
    /// an `await`, where the next call would find it taken.
    static STORE: RefCell<Option<Store>> = const { RefCell::new(None) };
}

struct Backend;

/// Does something with the store.
fn with_store<T>(work: impl FnOnce(&mut Store) -> T) -> Result<T, Error> {
    STORE.with_borrow_mut(|store| match store {
        Some(store) => Ok(work(store)),
        None => Err(Error::Internal("a function was called before open".into())),
    })
}

impl Guest for Backend {
    async fn open(settings: Settings) -> Result<StoreInfo, Error> {
        let limit_mib = match settings.connection_string.as_deref().unwrap_or_default() {
            "" => 512,
            text => match text.parse() {
                Ok(mib @ 1..=2048) => mib,
                // The text of the setting stays out of the error: in other stores it holds a password.
                _ => {
                    return Err(Error::Configuration(
                        "the connection string must be empty, or the store's limit in MiB, from 1 to 2048".into(),
                    ));
                }
            },
        };
        let store = Store::new(settings.new_server_version, limit_mib << 20);
        let position = store.position();
        STORE.set(Some(store));
        log::write(Level::Info, "the store is new and empty");
        Ok(StoreInfo {
            summary: format!("example in Rust: memory, at most {limit_mib} MiB"),
            // Nobody else can write here, so the host learns of changes from its own calls and never calls `wait`.
            shared: false,
            // The content goes with the instance: the next one takes the new server version, and clients begin anew.
            durable: false,
            position,
        })
    }

    async fn close() -> Result<(), Error> {
        STORE.set(None);
        Ok(())
    }

    async fn health() -> Result<(), Error> {
        with_store(|_| ())
    }

    async fn put(batches: Vec<Vec<Change>>, now: Timestamp) -> Result<PutResult, Error> {
        with_store(|store| {
            // A delete answers with the last data of its record, so a small call may ask for a very large answer.
            let mut room = store::ANSWER_BYTES;
            PutResult {
                server_version: store.position().server_version,
                // Nobody else sets options in this store.
                options_revision: None,
                batches: batches
                    .into_iter()
                    .map(|batch| store.put(batch, now, &mut room))
                    .collect(),
            }
        })
    }

    async fn get(keys: Vec<Key>) -> Result<Vec<Option<Record>>, Error> {
        with_store(|store| keys.iter().map(|key| store.get(key).cloned()).collect())
    }

    async fn scan(request: ScanRequest) -> Result<ScanPage, Error> {
        // `request.hint` is ignored: the host checks every record again, so a hint saves time and changes no answer.
        with_store(|store| store.scan(&request))
    }

    async fn count(type_: Option<String>) -> Result<u64, Error> {
        with_store(|store| store.count(type_.as_deref()))
    }

    async fn list_types() -> Result<Vec<String>, Error> {
        with_store(|store| store.types())
    }

    async fn current() -> Result<Position, Error> {
        with_store(|store| store.position())
    }

    async fn changes(request: ChangesRequest) -> Result<ChangesPage, Error> {
        with_store(|store| store.changes(&request))?.map_err(Error::Pruned)
    }

    async fn wait(_seen: Observed) -> Result<Observed, Error> {
        Err(Error::Internal(
            "this store is not shared, so there is nothing to wait for".into(),
        ))
    }

    async fn list_options() -> Result<Vec<TypedOptions>, Error> {
        with_store(|store| {
            let typed = |(type_, options): (&String, &Options)| TypedOptions {
                type_: type_.clone(),
                options: options.clone(),
            };
            store.options.iter().map(typed).collect()
        })
    }

    async fn set_options(type_: String, options: Option<Options>) -> Result<(), Error> {
        with_store(|store| match options {
            Some(options) => store.options.insert(type_, options),
            None => store.options.remove(&type_),
        })?;
        Ok(())
    }

    async fn lease(requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, Error> {
        with_store(|store| requests.into_iter().map(|request| store.lease(request, now)).collect())
    }

    async fn get_checkpoint() -> Result<Checkpoint, Error> {
        with_store(|store| store.checkpoint)
    }

    async fn set_checkpoint(checkpoint: Checkpoint) -> Result<(), Error> {
        with_store(|store| store.checkpoint = checkpoint)
    }

    async fn report_services(services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), Error> {
        with_store(|store| store.report_services(services, now.saturating_add_unsigned(ttl)))
    }

    async fn list_services(now: Timestamp) -> Result<Vec<Service>, Error> {
        with_store(|store| store.list_services(now))
    }

    async fn prune(before: Timestamp, max_changes: u32) -> Result<Pruned, Error> {
        with_store(|store| store.prune(before, max_changes))
    }

    async fn evict(request: EvictRequest, now: Timestamp) -> Result<Evicted, Error> {
        with_store(|store| store.evict(&request, now))
    }

    async fn clear(new_server_version: u64) -> Result<Position, Error> {
        with_store(|store| store.clear(new_server_version))
    }

    async fn measure() -> Result<Statistics, Error> {
        with_store(|store| store.measure())
    }
}
