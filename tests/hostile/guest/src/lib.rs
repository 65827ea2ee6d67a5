//! A storage plugin for tests: right in everything but the one thing that its setting names, and in that only
//! where it is provoked.
//!
//! Records of the type [`HOSTILE`] provoke it: a get, a scan, a put or a read of changes of them, and a lease of that name.
//! Whatever else is asked is answered as it should be, by the store of the example in Rust. So a test can hold what others
//! see against what one hostile call does.

mod acts;
mod lies;
mod misbehaviour;
mod reach;
mod statements;
#[path = "../../../../examples/rust-backend/src/store.rs"]
mod store;

use std::cell::{Cell, RefCell};
use std::time::{SystemTime, UNIX_EPOCH};

use bindings::databroker::storage::config;
use bindings::databroker::storage::types::{Duration, Error, Key, Position, Record, Timestamp};
use bindings::exports::databroker::storage::store::{
    Change, ChangesPage, ChangesRequest, Checkpoint, Content, EvictRequest, Evicted, Guest, LeaseRequest, Observed,
    Operation, Options, Pruned, PutResult, ScanPage, ScanRequest, Service, Settings, Statistics, StoreInfo,
    TypedOptions,
};
use misbehaviour::Misbehaviour;
use store::Store;

#[expect(unsafe_code, reason = "generated code")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit/storage-0.1.0", world: "sql-backend" });
    export!(Hostile with_types_in self);
    use super::Hostile;
}

/// What provokes it: a type of records, and the name of a lease.
const HOSTILE: &str = "hostile";

/// A read of this record takes a while, during which others are served.
const SLOW: &str = "slow";

/// The store allows itself so many bytes.
const LIMIT: u64 = 64 << 20;

/// An `Any` that holds an empty text.
const DATA: &[u8] = b"\x0a\x2ftype.googleapis.com/google.protobuf.StringValue";

thread_local! {
    static STORE: RefCell<Option<Store>> = const { RefCell::new(None) };
    static MISBEHAVIOUR: Cell<Option<Misbehaviour>> = const { Cell::new(None) };
}

struct Hostile;

fn with_store<T>(work: impl FnOnce(&mut Store) -> T) -> Result<T, Error> {
    STORE.with_borrow_mut(|store| match store {
        Some(store) => Ok(work(store)),
        None => Err(Error::Internal("a function was called before open".into())),
    })
}

/// The misbehaviour, where this type or name provokes it.
fn provoked(name: Option<&str>) -> Option<Misbehaviour> {
    MISBEHAVIOUR.get().filter(|_| name == Some(HOSTILE))
}

impl Guest for Hostile {
    async fn open(settings: Settings) -> Result<StoreInfo, Error> {
        let name = config::get_setting("misbehaviour").unwrap_or_default();
        let Some(misbehaviour) = Misbehaviour::named(&name) else {
            let names: Vec<_> = Misbehaviour::ALL.iter().map(|kind| kind.name()).collect();
            return Err(Error::Configuration(format!(
                "the setting `misbehaviour` must be one of these names: {}",
                names.join(", ")
            )));
        };
        if misbehaviour == Misbehaviour::TrapInOpen {
            panic!("this is a trap in `open`");
        }
        MISBEHAVIOUR.set(Some(misbehaviour));
        let mut store = Store::new(settings.new_server_version, LIMIT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        // Changes that are older than what the host holds in memory, and not so old that it has them removed.
        for id in ["a", "b", SLOW] {
            let change = Change {
                key: key(id),
                operation: Operation::Upsert(Content {
                    data: Some(DATA.to_vec()),
                    network: None,
                }),
                expected: None,
            };
            if store.put(vec![change], now, &mut store::ANSWER_BYTES.clone()).is_err() {
                return Err(Error::Internal("an empty store is full".into()));
            }
        }
        let position = store.position();
        STORE.set(Some(store));
        Ok(StoreInfo {
            summary: format!("hostile: {}", misbehaviour.name()),
            shared: false,
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
        let of_type = |change: &Change| change.key.type_ == HOSTILE;
        let hostile = batches.iter().flatten().any(of_type).then_some(HOSTILE);
        let mut result = with_store(|store| {
            let mut room = store::ANSWER_BYTES;
            PutResult {
                server_version: store.position().server_version,
                options_revision: None,
                batches: batches
                    .into_iter()
                    .map(|batch| store.put(batch, now, &mut room))
                    .collect(),
            }
        })?;
        if let Some(misbehaviour) = provoked(hostile) {
            lies::about_put(misbehaviour, &mut result);
        }
        Ok(result)
    }

    async fn get(keys: Vec<Key>) -> Result<Vec<Option<Record>>, Error> {
        let hostile = keys.iter().find(|key| key.type_ == HOSTILE);
        let misbehaviour = provoked(hostile.map(|_| HOSTILE));
        match (misbehaviour, hostile) {
            (Some(_), Some(key)) if key.id == SLOW => acts::take_a_while().await,
            (Some(misbehaviour), _) => acts::act(misbehaviour).await?,
            (None, _) => {}
        }
        let answers = with_store(|store| keys.iter().map(|key| store.get(key).cloned()).collect())?;
        match misbehaviour {
            Some(misbehaviour) => lies::about_get(misbehaviour, answers),
            None => Ok(answers),
        }
    }

    async fn scan(request: ScanRequest) -> Result<ScanPage, Error> {
        let mut page = with_store(|store| store.scan(&request))?;
        if let Some(misbehaviour) = provoked(request.type_.as_deref()) {
            lies::about_scan(misbehaviour, &request, &mut page);
        }
        Ok(page)
    }

    async fn count(type_: Option<String>) -> Result<u64, Error> {
        with_store(|store| store.count(type_.as_deref()))
    }

    async fn list_types() -> Result<Vec<String>, Error> {
        let mut types = with_store(|store| store.types())?;
        if MISBEHAVIOUR.get() == Some(Misbehaviour::TypesOutOfOrder) {
            types.insert(0, "zebra".to_owned());
        }
        Ok(types)
    }

    async fn current() -> Result<Position, Error> {
        with_store(|store| store.position())
    }

    async fn changes(request: ChangesRequest) -> Result<ChangesPage, Error> {
        let page = with_store(|store| store.changes(&request))?.map_err(Error::Pruned)?;
        match provoked(request.type_.as_deref()) {
            Some(misbehaviour) => lies::about_changes(misbehaviour, &request, page),
            None => Ok(page),
        }
    }

    async fn wait(_seen: Observed) -> Result<Observed, Error> {
        Err(Error::Internal("this store is not shared".into()))
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
        let hostile = requests
            .iter()
            .any(|request| request.name == HOSTILE)
            .then_some(HOSTILE);
        let mut answers: Vec<bool> =
            with_store(|store| requests.into_iter().map(|request| store.lease(request, now)).collect())?;
        if provoked(hostile) == Some(Misbehaviour::TooFewLeases) {
            answers.pop();
        }
        Ok(answers)
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

fn key(id: &str) -> Key {
    Key {
        type_: HOSTILE.to_owned(),
        id: id.to_owned(),
    }
}
