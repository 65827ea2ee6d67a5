//! The WIT world around the store: each function turns its arguments into the store's nouns, asks the store, and turns
//! the answer back.
//!
//! The instance has one thread and no function waits for anything, so each call is atomic and the store needs no lock;
//! `set-options` alone pauses, between the steps of building an index, so that reads can pass.
//!
//! Records are answered with the store's own strings and bytes, shared and not copied: see [`Shared`].
//!
//! A failed allocation ends the instance. So besides the budget, which the store keeps, nothing large is allocated
//! before it is known to fit: see [`has_room`].

use std::cell::RefCell;
use std::ops::Deref;
use std::sync::Arc;

use bindings::databroker::storage::protobuf;
use bindings::exports::databroker::storage::store as wit;
use bindings::exports::databroker::storage::store::{Duration, Error, Guest, Key, Position, Timestamp};

use crate::{
    Batch, Bounds, Budget, Change, ChangesRequest, Checkpoint, Entry, EvictRequest, Exhausted, Extract, Hint, Lease,
    LeaseAction, Operation, Options, Outcome, Prefix, Refusal, ScanRequest, Service, Store, Values,
};

#[expect(unsafe_code, reason = "generated code")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/storage-0.1.0",
        world: "backend",
        ownership: Borrowing { duplicate_if_necessary: false },
        with: { "databroker:storage/types@0.1.0/record": crate::guest::Record },
    });
    use super::Memory;
    export!(Memory);
}

/// The bytes of a record stay where the host has put them.
type Data = Vec<u8>;

/// `record` of the interface, of which the generated code asks no more than that its texts and lists are there until the
/// answer is taken.
#[derive(Clone, Debug)]
pub struct Record {
    version: crate::Version,
    type_: Arc<str>,
    id: Arc<str>,
    data: Option<Shared>,
    modified_at: Timestamp,
    deleted_at: Option<Timestamp>,
}

/// The data of an entry, which stays as long as it is answered with it. To copy it was a good part of the time of a page.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Entry<Data>>);

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.data().map_or(&[], Vec::as_slice)
    }
}

thread_local! {
    static STORE: RefCell<Option<Store<Data>>> = const { RefCell::new(None) };
}

/// Free memory that is kept for what the budget does not count: arguments (8 MiB of records), pages and other answers,
/// and growing queues.
const HEADROOM: u64 = 32 << 20;

/// Pages are no larger than this, whatever the host asks for.
const PAGE_BYTES: u64 = 4 << 20;

/// Pages hold no more records than this: small ones take more in the answer than their bytes.
const PAGE_RECORDS: u32 = 8192;

/// An answer that cannot be had page by page is refused if it is larger than this, since no host takes any size.
const ANSWER_BYTES: u64 = 64 << 20;

/// The host is asked for this many fields of records at once, paths times records.
const EXTRACTED: usize = 50_000;

struct Memory;

impl Guest for Memory {
    async fn open(settings: wit::Settings) -> Result<wit::StoreInfo, Error> {
        let budget = Budget::from_connection_string(settings.connection_string.as_deref())
            .map_err(|error| Error::Configuration(error.to_string()))?;
        let store = Store::new(budget, settings.new_server_version);
        let position = store.position().into();
        STORE.with_borrow_mut(|open| match open {
            Some(_) => Err(Error::Internal("`open` was called twice".to_owned())),
            None => {
                *open = Some(store);
                Ok(())
            }
        })?;
        Ok(wit::StoreInfo {
            summary: format!("memory, at most {budget}"),
            shared: false,
            durable: false,
            position,
        })
    }

    async fn close() -> Result<(), Error> {
        STORE.with_borrow_mut(Option::take);
        Ok(())
    }

    async fn health() -> Result<(), Error> {
        with_store(|_| Ok(()))
    }

    async fn put(batches: Vec<Vec<wit::Change>>, now: Timestamp) -> Result<wit::PutResult, Error> {
        let batches = batches.into_iter().map(batch).collect::<Result<Vec<_>, _>>()?;
        with_store(|store| {
            let result = store.put(batches, now, &Host, &has_headroom);
            Ok(wit::PutResult {
                server_version: result.server_version,
                // Nobody else sets options here.
                options_revision: None,
                batches: result.batches.into_iter().map(batch_result).collect(),
            })
        })
    }

    async fn get(keys: Vec<Key>) -> Result<Vec<Option<Record>>, Error> {
        with_store(|store| {
            let entries: Vec<_> = keys.iter().map(|key| store.get(&key.type_, &key.id)).collect();
            expect_fits(entries.iter().flatten().map(|entry| entry.size()).sum())?;
            Ok(entries.into_iter().map(|entry| entry.map(record)).collect())
        })
    }

    async fn scan(request: wit::ScanRequest) -> Result<wit::ScanPage, Error> {
        let request = ScanRequest {
            record_type: request.type_,
            hint: request.hint.and_then(hint),
            after: request.after.map(|key| (key.type_, key.id)),
            bounds: bounds(request.max_records, request.max_bytes),
        };
        with_store(|store| {
            let page = store.scan(&request);
            Ok(wit::ScanPage {
                records: records(&page.records),
                more: page.more,
                position: page.position.into(),
            })
        })
    }

    async fn count(record_type: Option<String>) -> Result<u64, Error> {
        with_store(|store| Ok(store.count(record_type.as_deref())))
    }

    async fn list_types() -> Result<Vec<String>, Error> {
        with_store(|store| {
            expect_room(store.types().map(length).sum())?;
            Ok(store.types().map(str::to_owned).collect())
        })
    }

    async fn current() -> Result<Position, Error> {
        with_store(|store| Ok(store.position().into()))
    }

    async fn changes(request: wit::ChangesRequest) -> Result<wit::ChangesPage, Error> {
        let request = ChangesRequest {
            after: request.after,
            record_type: request.type_,
            bounds: bounds(request.max_records, request.max_bytes),
        };
        with_store(|store| {
            let page = store.changes(&request).map_err(Error::Pruned)?;
            Ok(wit::ChangesPage {
                records: records(&page.records),
                through: page.through,
                position: page.position.into(),
            })
        })
    }

    async fn wait(_: wit::Observed) -> Result<wit::Observed, Error> {
        Err(Error::Internal(
            "the memory store is not shared: there is nothing to wait for".to_owned(),
        ))
    }

    async fn list_options() -> Result<Vec<wit::TypedOptions>, Error> {
        with_store(|store| {
            let size = |(record_type, options): (&str, &Options)| {
                length(record_type)
                    + options
                        .indexable_fields
                        .iter()
                        .map(|path| length(path) + 64)
                        .sum::<u64>()
            };
            expect_room(store.options().map(size).sum())?;
            let typed = |(record_type, options): (&str, &Options)| wit::TypedOptions {
                type_: record_type.to_owned(),
                options: wit::Options {
                    capacity: options.capacity,
                    indexable_fields: options.indexable_fields.clone(),
                    ttl: options.ttl,
                },
            };
            Ok(store.options().map(typed).collect())
        })
    }

    async fn set_options(record_type: String, options: Option<wit::Options>) -> Result<(), Error> {
        let options = options.map(|options| Options {
            capacity: options.capacity,
            indexable_fields: options.indexable_fields,
            ttl: options.ttl,
        });
        let mut reindex = with_store(|store| Ok(store.start_reindex(record_type, options)?))?;
        while !with_store(|store| Ok(store.continue_reindex(&mut reindex, &Host, &has_headroom)?))? {
            wit_bindgen::yield_async().await;
        }
        Ok(())
    }

    async fn lease(requests: Vec<wit::LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, Error> {
        let requests = requests.into_iter().map(|request| Lease {
            name: request.name,
            id: request.id,
            action: match request.action {
                wit::LeaseAction::Hold(duration) => LeaseAction::Hold(duration),
                wit::LeaseAction::Release => LeaseAction::Release,
            },
        });
        with_store(|store| Ok(store.lease(requests.collect(), now)?))
    }

    async fn get_checkpoint() -> Result<wit::Checkpoint, Error> {
        with_store(|store| {
            let checkpoint = store.checkpoint();
            Ok(wit::Checkpoint {
                server_version: checkpoint.server_version,
                record_version: checkpoint.record_version,
            })
        })
    }

    async fn set_checkpoint(checkpoint: wit::Checkpoint) -> Result<(), Error> {
        with_store(|store| {
            store.set_checkpoint(Checkpoint {
                server_version: checkpoint.server_version,
                record_version: checkpoint.record_version,
            });
            Ok(())
        })
    }

    async fn report_services(services: Vec<wit::Service>, ttl: Duration, now: Timestamp) -> Result<(), Error> {
        let services = services.into_iter().map(|service| Service {
            kind: service.kind,
            endpoint: service.endpoint,
        });
        with_store(|store| Ok(store.report_services(services.collect(), ttl, now)?))
    }

    async fn list_services(now: Timestamp) -> Result<Vec<wit::Service>, Error> {
        with_store(|store| {
            expect_room(store.services(now).map(|service| length(&service.endpoint) + 64).sum())?;
            let service = |service: &Service| wit::Service {
                kind: service.kind,
                endpoint: service.endpoint.clone(),
            };
            Ok(store.services(now).map(service).collect())
        })
    }

    async fn prune(before: Timestamp, max_changes: u32) -> Result<wit::Pruned, Error> {
        with_store(|store| {
            let pruned = store.prune(before, max_changes);
            Ok(wit::Pruned {
                removed: pruned.removed,
                more: pruned.more,
                position: pruned.position.into(),
            })
        })
    }

    async fn evict(request: wit::EvictRequest, now: Timestamp) -> Result<wit::Evicted, Error> {
        let request = EvictRequest {
            record_type: request.type_,
            modified_before: request.modified_before,
            keep: request.keep,
            max_records: request.max_records.min(PAGE_RECORDS),
        };
        with_store(|store| {
            let evicted = store.evict(&request, now);
            Ok(wit::Evicted {
                server_version: evicted.server_version,
                tombstones: records(&evicted.tombstones),
                more: evicted.more,
            })
        })
    }

    async fn clear(new_server_version: u64) -> Result<Position, Error> {
        with_store(|store| Ok(store.clear(new_server_version).into()))
    }

    async fn measure() -> Result<wit::Statistics, Error> {
        with_store(|store| {
            expect_room(store.types().map(|name| 2 * length(name) + 64).sum())?;
            let statistics = store.measure();
            let of_type = |of_type: crate::TypeStatistics| wit::TypeStatistics {
                type_: of_type.record_type,
                records: of_type.records,
                bytes: of_type.bytes,
            };
            Ok(wit::Statistics {
                types: statistics.types.into_iter().map(of_type).collect(),
                changes: statistics.changes,
                used_bytes: statistics.used_bytes,
                limit_bytes: Some(statistics.limit_bytes),
                pruned_for_space: statistics.pruned_for_space,
            })
        })
    }
}

fn with_store<T>(call: impl FnOnce(&mut Store<Data>) -> Result<T, Error>) -> Result<T, Error> {
    STORE.with_borrow_mut(|store| match store {
        Some(store) => call(store),
        None => Err(Error::Internal("the store is not open".to_owned())),
    })
}

/// Looks into records with the host's descriptors.
struct Host;

impl Extract for Host {
    fn extract(&self, data: &[&[u8]], paths: &[String]) -> Vec<Option<Values>> {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let records = (EXTRACTED / paths.len().max(1)).max(1);
        let mut values = Vec::with_capacity(data.len());
        let mut parts: Vec<&[&[u8]]> = data.chunks(records).rev().collect();
        while let Some(part) = parts.pop() {
            match protobuf::extract(part, &paths) {
                Ok(found) => values.extend(found.into_iter().map(Some)),
                Err(_) if part.len() > 1 => {
                    let (first, rest) = part.split_at(part.len() / 2);
                    parts.extend([rest, first]);
                }
                Err(_) => values.push(None),
            }
        }
        values
    }
}

/// Says whether this many bytes can be allocated now, by allocating them. That takes in what nothing else knows: the
/// limit that the host has set for the instance, and how the free memory is cut up. The memory is not written to, and is
/// the next to be used.
fn has_room(bytes: u64) -> bool {
    let mut probe = Vec::<u8>::new();
    let has_room = usize::try_from(bytes).is_ok_and(|bytes| probe.try_reserve_exact(bytes).is_ok());
    // Otherwise the compiler may leave out an allocation that nobody looks at.
    std::hint::black_box(&probe);
    has_room
}

/// Says whether [`HEADROOM`] can be allocated now.
fn has_headroom() -> bool {
    has_room(HEADROOM)
}

/// Fails where an answer of so many bytes is refused.
fn expect_fits(bytes: u64) -> Result<(), Error> {
    if bytes > ANSWER_BYTES {
        return Err(too_large(bytes));
    }
    Ok(())
}

/// Fails where an answer of so many bytes is refused, or might not fit into the memory into which it is copied.
fn expect_room(bytes: u64) -> Result<(), Error> {
    expect_fits(bytes)?;
    if bytes > PAGE_BYTES && !has_room(bytes.saturating_add(PAGE_BYTES)) {
        return Err(too_large(bytes));
    }
    Ok(())
}

fn too_large(bytes: u64) -> Error {
    Error::Exhausted(format!(
        "an answer of {bytes} bytes is more than fits: ask for less at once"
    ))
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn batch(changes: Vec<wit::Change>) -> Result<Batch<Data>, Error> {
    changes.into_iter().map(change).collect()
}

fn change(change: wit::Change) -> Result<Change<Data>, Error> {
    let operation = match change.operation {
        wit::Operation::Upsert(content) => Operation::Upsert {
            data: content.data,
            network: match content.network.as_deref().map(str::parse) {
                Some(Ok(prefix)) => Some(prefix),
                Some(Err(error)) => return Err(Error::Internal(format!("the host sent a wrong network: {error}"))),
                None => None,
            },
        },
        wit::Operation::Delete => Operation::Delete,
    };
    Ok(Change {
        record_type: change.key.type_,
        id: change.key.id,
        operation,
        expected: change.expected,
    })
}

fn batch_result(result: Result<Vec<Outcome<Data>>, Refusal>) -> Result<Vec<wit::Outcome>, wit::Refusal> {
    let outcome = |outcome| match outcome {
        Outcome::Stored(version) => wit::Outcome::Stored(version),
        Outcome::Deleted(tombstone) => wit::Outcome::Deleted(record(&tombstone)),
        Outcome::Missing => wit::Outcome::Missing,
    };
    match result {
        Ok(outcomes) => Ok(outcomes.into_iter().map(outcome).collect()),
        Err(Refusal::Conflict(step)) => Err(wit::Refusal::Conflict(u32::try_from(step).unwrap_or(u32::MAX))),
        Err(Refusal::Exhausted(text)) => Err(wit::Refusal::Exhausted(text)),
    }
}

/// A hint that cannot be read narrows nothing: the host checks every record again.
fn hint(hint: wit::Hint) -> Option<Hint> {
    match hint {
        wit::Hint::Field(field) => Some(Hint::Field {
            path: field.path,
            value: field.value,
        }),
        wit::Hint::Network(prefix) => prefix.parse::<Prefix>().ok().map(Hint::Network),
    }
}

fn bounds(max_records: u32, max_bytes: u64) -> Bounds {
    Bounds {
        records: usize::try_from(max_records.min(PAGE_RECORDS)).unwrap_or(usize::MAX),
        bytes: max_bytes.min(PAGE_BYTES),
    }
}

fn records(entries: &[Arc<Entry<Data>>]) -> Vec<Record> {
    entries.iter().map(record).collect()
}

fn record(entry: &Arc<Entry<Data>>) -> Record {
    Record {
        version: entry.version(),
        type_: Arc::clone(entry.shared_type()),
        id: Arc::clone(entry.shared_id()),
        modified_at: entry.modified_at(),
        deleted_at: entry.deleted_at(),
        data: entry.data().is_some().then(|| Shared(Arc::clone(entry))),
    }
}

impl From<crate::Position> for Position {
    fn from(position: crate::Position) -> Self {
        Self {
            server_version: position.server_version,
            earliest_version: position.earliest_version,
            latest_version: position.latest_version,
        }
    }
}

impl From<Exhausted> for Error {
    fn from(exhausted: Exhausted) -> Self {
        Self::Exhausted(exhausted.0)
    }
}
