//! The WIT world around the store.

use std::cell::RefCell;
use std::rc::Rc;

use bindings::databroker::storage::{log, protobuf, sql};
use bindings::exports::databroker::storage::store as wit;
use bindings::exports::databroker::storage::store::{Duration, Error, Guest, Key, Position, Record, Timestamp};

use crate::database::{Data, Database, Failure, FailureKind, JsonError, Query, Row, Session, Value};
use crate::horizon::Patience;
use crate::{Hint, LeaseAction, Observed, Operation, Outcome, Refusal, Store};

#[expect(unsafe_code, reason = "generated code")]
mod bindings {
    wit_bindgen::generate!({
        path: "../../wit/storage-0.1.0",
        world: "sql-backend",
    });
    use super::Postgres;
    export!(Postgres);
}

/// How long a statement may take, in nanoseconds.
const TIMEOUT: u64 = 30_000_000_000;

/// The bounds of what a statement gives.
const MAX_ROWS: u32 = 1_000_000;
const MAX_BYTES: u64 = 64 << 20;

thread_local! {
    static STORE: RefCell<Option<Rc<Store<Host, Look>>>> = const { RefCell::new(None) };
}

struct Postgres;

/// The host's database.
struct Host {
    listener: sql::Listener,
    /// Listens to nothing: it is a clock that can be waited for, which lets others go on.
    clock: sql::Listener,
}

impl Host {
    fn new() -> Self {
        let channels = ["pomerium_record_change", "pomerium_service_change"].map(str::to_owned);
        Self {
            listener: sql::Listener::new(&channels),
            clock: sql::Listener::new(&[]),
        }
    }
}

fn statement(query: Query) -> sql::Statement {
    sql::Statement {
        text: query.text,
        parameters: query.parameters.into_iter().map(to_value).collect(),
        max_rows: MAX_ROWS,
        max_bytes: MAX_BYTES,
        timeout: TIMEOUT,
    }
}

impl Session for Host {
    async fn run(&self, query: Query) -> Result<Vec<Row>, Failure> {
        let rows = sql::run(statement(query)).await;
        rows.map(to_rows).map_err(failure)
    }
}

impl Session for sql::Transaction {
    async fn run(&self, query: Query) -> Result<Vec<Row>, Failure> {
        let rows = sql::Transaction::run(self, statement(query)).await;
        rows.map(to_rows).map_err(failure)
    }
}

impl Database for Host {
    type Transaction = sql::Transaction;

    async fn begin(&self) -> Result<sql::Transaction, Failure> {
        sql::begin(sql::Isolation::ReadCommitted, false).await.map_err(failure)
    }

    async fn commit(&self, transaction: sql::Transaction) -> Result<(), Failure> {
        transaction.commit().await.map_err(failure)
    }

    async fn notified(&self, longest: std::time::Duration) {
        self.listener.wait(nanoseconds(longest)).await;
    }

    async fn sleep(&self, time: std::time::Duration) {
        self.clock.wait(nanoseconds(time)).await;
    }

    fn warn(&self, message: &str) {
        log::write(log::Level::Warn, message);
    }
}

/// The host's look into data.
struct Look;

impl Data for Look {
    fn to_json(&self, data: Vec<Vec<u8>>) -> Vec<Result<String, JsonError>> {
        let answers = protobuf::to_json(&data);
        answers.into_iter().map(|answer| answer.map_err(json_error)).collect()
    }

    fn read_json(&self, json: Vec<String>) -> Vec<Result<Vec<u8>, JsonError>> {
        let answers = protobuf::from_json(&json);
        let again = |(answer, json): (Result<Vec<u8>, protobuf::Error>, String)| match answer {
            // All together may be too much where each is not.
            Err(protobuf::Error::Exhausted(_)) => match protobuf::from_json(&[json]).pop() {
                Some(answer) => answer.map_err(json_error),
                None => Err(JsonError::Malformed),
            },
            answer => answer.map_err(json_error),
        };
        answers.into_iter().zip(json).map(again).collect()
    }
}

fn json_error(error: protobuf::Error) -> JsonError {
    match error {
        protobuf::Error::UnknownType(url) => JsonError::UnknownType(url),
        protobuf::Error::Malformed(_) | protobuf::Error::Exhausted(_) => JsonError::Malformed,
    }
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn to_value(value: Value) -> sql::Value {
    match value {
        Value::Null => sql::Value::Null,
        Value::Boolean(value) => sql::Value::Boolean(value),
        Value::Integer(value) => sql::Value::Integer(value),
        Value::Text(value) => sql::Value::Text(value),
        Value::Bytes(value) => sql::Value::Bytes(value),
        Value::Timestamp(value) => sql::Value::Timestamp(value),
        Value::Booleans(items) => sql::Value::Booleans(items),
        Value::Integers(items) => sql::Value::Integers(items),
        Value::Texts(items) => sql::Value::Texts(items),
        Value::ByteStrings(items) => sql::Value::ByteStrings(items),
    }
}

fn from_value(value: sql::Value) -> Value {
    match value {
        sql::Value::Boolean(value) => Value::Boolean(value),
        sql::Value::Integer(value) => Value::Integer(value),
        sql::Value::Text(value) => Value::Text(value),
        sql::Value::Bytes(value) => Value::Bytes(value),
        sql::Value::Timestamp(value) => Value::Timestamp(value),
        sql::Value::Booleans(items) => Value::Booleans(items),
        sql::Value::Integers(items) => Value::Integers(items),
        sql::Value::Texts(items) => Value::Texts(items),
        sql::Value::ByteStrings(items) => Value::ByteStrings(items),
        // Nothing here asks for any other.
        _ => Value::Null,
    }
}

fn to_rows(rows: sql::Rows) -> Vec<Row> {
    rows.rows
        .into_iter()
        .map(|row| Row::new(row.into_iter().map(from_value).collect()))
        .collect()
}

fn failure(error: sql::Error) -> Failure {
    /// A lock was not to be had in the time that was set for it.
    const LOCKED: &str = "55P03";
    let (kind, failure) = match error {
        sql::Error::Timeout(failure) if failure.code.as_deref() == Some(LOCKED) => (FailureKind::Conflict, failure),
        sql::Error::Settings(failure) => (FailureKind::Settings, failure),
        sql::Error::Unreachable(failure)
        | sql::Error::FailingOver(failure)
        | sql::Error::OutOfConnections(failure)
        | sql::Error::Timeout(failure) => (FailureKind::Unavailable, failure),
        sql::Error::ReadOnly(failure) => (FailureKind::ReadOnly, failure),
        sql::Error::Conflict(failure) => (FailureKind::Conflict, failure),
        sql::Error::Full(failure) => (FailureKind::Full, failure),
        sql::Error::TooLarge(failure) => (FailureKind::TooLarge, failure),
        sql::Error::Statement(failure) => (FailureKind::Other, failure),
    };
    Failure {
        kind,
        code: failure.code,
        message: failure.message,
    }
}

/// An error of any call but `open`.
fn error(error: crate::Error) -> Error {
    match error {
        // Settings that were right when the store was opened: the operator has changed the database.
        crate::Error::Configuration(text) | crate::Error::Unavailable(text) => Error::Unavailable(text),
        crate::Error::Exhausted(text) => Error::Exhausted(text),
        crate::Error::ReadOnly(text) => Error::ReadOnly(text),
        crate::Error::Pruned(version) => Error::Pruned(version),
        crate::Error::Internal(text) => Error::Internal(text),
    }
}

fn store() -> Result<Rc<Store<Host, Look>>, Error> {
    let not_open = || Error::Internal("the store is not open".to_owned());
    STORE.with_borrow(Clone::clone).ok_or_else(not_open)
}

fn from_key(key: Key) -> crate::Key {
    crate::Key {
        record_type: key.type_,
        id: key.id,
    }
}

fn record(record: crate::Record) -> Record {
    Record {
        version: record.version,
        type_: record.key.record_type,
        id: record.key.id,
        data: record.data,
        modified_at: record.modified_at,
        deleted_at: record.deleted_at,
    }
}

fn position(position: crate::Position) -> Position {
    Position {
        server_version: position.server_version,
        earliest_version: position.earliest_version,
        latest_version: position.latest_version,
    }
}

fn change(change: wit::Change) -> crate::Change {
    crate::Change {
        key: from_key(change.key),
        operation: match change.operation {
            wit::Operation::Upsert(content) => Operation::Upsert {
                data: content.data,
                network: content.network,
            },
            wit::Operation::Delete => Operation::Delete,
        },
        expected: change.expected,
    }
}

fn outcome(outcome: Outcome) -> wit::Outcome {
    match outcome {
        Outcome::Stored(version) => wit::Outcome::Stored(version),
        Outcome::Deleted(tombstone) => wit::Outcome::Deleted(record(tombstone)),
        Outcome::Missing => wit::Outcome::Missing,
    }
}

fn refusal(refusal: Refusal) -> wit::Refusal {
    match refusal {
        Refusal::Conflict(step) => wit::Refusal::Conflict(step),
        Refusal::Exhausted(text) => wit::Refusal::Exhausted(text),
    }
}

impl Guest for Postgres {
    async fn open(settings: wit::Settings) -> Result<wit::StoreInfo, Error> {
        let on_open = |error: crate::Error| match error {
            crate::Error::Configuration(text) => Error::Configuration(text),
            other => self::error(other),
        };
        let database = sql::connect().await.map_err(|error| on_open(failure(error).into()))?;
        let store = Store::open(Host::new(), Look, settings.new_server_version)
            .await
            .map_err(on_open)?;
        let store = Rc::new(store);
        STORE.with_borrow_mut(|open| *open = Some(Rc::clone(&store)));
        let pooled = if database.pooled {
            ", behind a pooler that changes connections"
        } else {
            ""
        };
        Ok(wit::StoreInfo {
            summary: format!("{}{pooled}", database.summary),
            shared: true,
            durable: true,
            position: position(store.position(Patience::Short).await.map_err(self::error)?),
        })
    }

    async fn close() -> Result<(), Error> {
        STORE.with_borrow_mut(Option::take);
        Ok(())
    }

    async fn health() -> Result<(), Error> {
        store()?.health().await.map_err(error)
    }

    async fn put(batches: Vec<Vec<wit::Change>>, now: Timestamp) -> Result<wit::PutResult, Error> {
        let batches = batches
            .into_iter()
            .map(|batch| batch.into_iter().map(change).collect())
            .collect();
        let result = store()?.put(batches, now).await.map_err(error)?;
        let batch = |batch: Result<Vec<Outcome>, Refusal>| match batch {
            Ok(outcomes) => Ok(outcomes.into_iter().map(outcome).collect()),
            Err(refused) => Err(refusal(refused)),
        };
        Ok(wit::PutResult {
            server_version: result.server_version,
            options_revision: Some(result.options_revision),
            batches: result.batches.into_iter().map(batch).collect(),
        })
    }

    async fn get(keys: Vec<Key>) -> Result<Vec<Option<Record>>, Error> {
        let records = store()?
            .get(keys.into_iter().map(from_key).collect())
            .await
            .map_err(error)?;
        Ok(records.into_iter().map(|found| found.map(record)).collect())
    }

    async fn scan(request: wit::ScanRequest) -> Result<wit::ScanPage, Error> {
        let request = crate::ScanRequest {
            record_type: request.type_,
            hint: request.hint.map(|hint| match hint {
                wit::Hint::Field(field) => Hint::Field {
                    path: field.path,
                    value: field.value,
                },
                wit::Hint::Network(network) => Hint::Network(network),
            }),
            condition: request.condition,
            after: request.after.map(from_key),
            max_records: request.max_records,
            max_bytes: request.max_bytes,
        };
        let page = store()?.scan(request).await.map_err(error)?;
        Ok(wit::ScanPage {
            records: page.records.into_iter().map(record).collect(),
            more: page.more,
            position: position(page.position),
        })
    }

    async fn count(type_: Option<String>) -> Result<u64, Error> {
        store()?.count(type_).await.map_err(error)
    }

    async fn list_types() -> Result<Vec<String>, Error> {
        store()?.list_types().await.map_err(error)
    }

    async fn current() -> Result<Position, Error> {
        store()?.position(Patience::Short).await.map(position).map_err(error)
    }

    async fn changes(request: wit::ChangesRequest) -> Result<wit::ChangesPage, Error> {
        let request = crate::ChangesRequest {
            after: request.after,
            record_type: request.type_,
            max_records: request.max_records,
            max_bytes: request.max_bytes,
        };
        let page = store()?.changes(request).await.map_err(error)?;
        Ok(wit::ChangesPage {
            records: page.records.into_iter().map(record).collect(),
            through: page.through,
            position: position(page.position),
        })
    }

    async fn wait(seen: wit::Observed) -> Result<wit::Observed, Error> {
        let seen = Observed {
            server_version: seen.server_version,
            latest_version: seen.latest_version,
            options_revision: seen.options_revision,
            services_revision: seen.services_revision,
        };
        let observed = store()?.wait(seen).await.map_err(error)?;
        Ok(wit::Observed {
            server_version: observed.server_version,
            latest_version: observed.latest_version,
            options_revision: observed.options_revision,
            services_revision: observed.services_revision,
        })
    }

    async fn list_options() -> Result<Vec<wit::TypedOptions>, Error> {
        let all = store()?.list_options().await.map_err(error)?;
        Ok(all
            .into_iter()
            .map(|(type_, options)| wit::TypedOptions {
                type_,
                options: wit::Options {
                    capacity: options.capacity,
                    indexable_fields: options.indexable_fields,
                    ttl: options.ttl,
                },
            })
            .collect())
    }

    async fn set_options(type_: String, options: Option<wit::Options>) -> Result<(), Error> {
        let options = options.map(|options| crate::Options {
            capacity: options.capacity,
            indexable_fields: options.indexable_fields,
            ttl: options.ttl,
        });
        store()?.set_options(type_, options).await.map_err(error)
    }

    async fn lease(requests: Vec<wit::LeaseRequest>, _now: Timestamp) -> Result<Vec<bool>, Error> {
        let store = store()?;
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let action = match request.action {
                wit::LeaseAction::Hold(time) => LeaseAction::Hold(time),
                wit::LeaseAction::Release => LeaseAction::Release,
            };
            answers.push(store.lease(request.name, request.id, action).await.map_err(error)?);
        }
        Ok(answers)
    }

    async fn get_checkpoint() -> Result<wit::Checkpoint, Error> {
        let (server_version, record_version) = store()?.get_checkpoint().await.map_err(error)?;
        Ok(wit::Checkpoint {
            server_version,
            record_version,
        })
    }

    async fn set_checkpoint(checkpoint: wit::Checkpoint) -> Result<(), Error> {
        let store = store()?;
        store
            .set_checkpoint(checkpoint.server_version, checkpoint.record_version)
            .await
            .map_err(error)
    }

    async fn report_services(services: Vec<wit::Service>, ttl: Duration, _now: Timestamp) -> Result<(), Error> {
        let service = |service: wit::Service| crate::Service {
            kind: service.kind,
            endpoint: service.endpoint,
        };
        store()?
            .report_services(services.into_iter().map(service).collect(), ttl)
            .await
            .map_err(error)
    }

    async fn list_services(_now: Timestamp) -> Result<Vec<wit::Service>, Error> {
        let service = |service: crate::Service| wit::Service {
            kind: service.kind,
            endpoint: service.endpoint,
        };
        Ok(store()?
            .list_services()
            .await
            .map_err(error)?
            .into_iter()
            .map(service)
            .collect())
    }

    async fn prune(before: Timestamp, max_changes: u32) -> Result<wit::Pruned, Error> {
        let pruned = store()?.prune(before, max_changes).await.map_err(error)?;
        Ok(wit::Pruned {
            removed: pruned.removed,
            more: pruned.more,
            position: position(pruned.position),
        })
    }

    async fn evict(request: wit::EvictRequest, now: Timestamp) -> Result<wit::Evicted, Error> {
        let request = crate::EvictRequest {
            record_type: request.type_,
            modified_before: request.modified_before,
            keep: request.keep,
            max_records: request.max_records,
        };
        let evicted = store()?.evict(request, now).await.map_err(error)?;
        Ok(wit::Evicted {
            server_version: evicted.server_version,
            tombstones: evicted.tombstones.into_iter().map(record).collect(),
            more: evicted.more,
        })
    }

    async fn clear(new_server_version: u64) -> Result<Position, Error> {
        store()?.clear(new_server_version).await.map(position).map_err(error)
    }

    async fn measure() -> Result<wit::Statistics, Error> {
        let statistics = store()?.measure().await.map_err(error)?;
        let of_type = |of_type: crate::TypeStatistics| wit::TypeStatistics {
            type_: of_type.record_type,
            records: of_type.records,
            bytes: of_type.bytes,
        };
        Ok(wit::Statistics {
            types: statistics.types.into_iter().map(of_type).collect(),
            changes: statistics.changes,
            used_bytes: statistics.used_bytes,
            limit_bytes: None,
            pruned_for_space: 0,
        })
    }
}
