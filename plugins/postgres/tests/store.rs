//! The store over real servers: the laws of one host and of several, beside a writer that behaves as Pomerium's own does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use databroker_sql::{
    ConnectionString, Environment, ErrorKind, Pool, Statement, Transaction, TransactionOptions, Wake,
};
use postgres::{
    Change, ChangesRequest, Data, Database, Error, EvictRequest, Failure, FailureKind, Hint, JsonError, Key,
    LeaseAction, Operation, Options, Outcome, Query, Record, Refusal, Row, ScanRequest, Service, Session, Store, Value,
};
use postgres_server::{Options as ServerOptions, PostgresServer};
use tokio::sync::Mutex;

/// The host's library as the store's database.
struct Direct {
    pool: Pool,
    listener: Mutex<databroker_sql::Listener>,
    warnings: Warnings,
}

/// What the operator was told.
type Warnings = Arc<std::sync::Mutex<Vec<String>>>;

const WAIT: Duration = Duration::from_secs(10);

fn to_value(value: Value) -> databroker_sql::Value {
    use databroker_sql::Value as Theirs;
    match value {
        Value::Null => Theirs::Null,
        Value::Boolean(value) => Theirs::Boolean(value),
        Value::Integer(value) => Theirs::Integer(value),
        Value::Text(value) => Theirs::Text(value),
        Value::Bytes(value) => Theirs::Bytes(value),
        Value::Timestamp(value) => Theirs::Timestamp(value),
        Value::Booleans(items) => Theirs::Booleans(items),
        Value::Integers(items) => Theirs::Integers(items),
        Value::Texts(items) => Theirs::Texts(items),
        Value::ByteStrings(items) => Theirs::ByteStrings(items),
    }
}

fn from_value(value: databroker_sql::Value) -> Value {
    use databroker_sql::Value as Theirs;
    match value {
        Theirs::Boolean(value) => Value::Boolean(value),
        Theirs::Integer(value) => Value::Integer(value),
        Theirs::Text(value) => Value::Text(value),
        Theirs::Bytes(value) => Value::Bytes(value),
        Theirs::Timestamp(value) => Value::Timestamp(value),
        Theirs::Integers(items) => Value::Integers(items),
        Theirs::Texts(items) => Value::Texts(items),
        Theirs::Null => Value::Null,
        other => panic!("{other:?}"),
    }
}

fn failure(error: databroker_sql::Error) -> Failure {
    Failure {
        kind: match error.kind() {
            ErrorKind::Settings => FailureKind::Settings,
            ErrorKind::ReadOnly => FailureKind::ReadOnly,
            ErrorKind::Conflict => FailureKind::Conflict,
            // As the component has it.
            ErrorKind::Timeout if error.code() == Some("55P03") => FailureKind::Conflict,
            ErrorKind::Full => FailureKind::Full,
            ErrorKind::TooLarge => FailureKind::TooLarge,
            ErrorKind::Statement => FailureKind::Other,
            _ => FailureKind::Unavailable,
        },
        code: error.code().map(str::to_owned),
        message: error.to_string(),
    }
}

fn statement<'s>(text: &'s str, parameters: &'s [databroker_sql::Value]) -> Statement<'s> {
    Statement {
        sql: text,
        parameters,
        max_rows: 1_000_000,
        max_bytes: 64 << 20,
        timeout: Duration::from_secs(30),
    }
}

fn rows(rows: databroker_sql::Rows) -> Vec<Row> {
    let row = |row: Vec<databroker_sql::Value>| Row::new(row.into_iter().map(from_value).collect());
    rows.rows.into_iter().map(row).collect()
}

impl Session for Direct {
    async fn run(&self, query: Query) -> Result<Vec<Row>, Failure> {
        let parameters: Vec<_> = query.parameters.into_iter().map(to_value).collect();
        self.pool
            .run(&statement(&query.text, &parameters), WAIT)
            .await
            .map(rows)
            .map_err(failure)
    }
}

struct DirectTransaction(Mutex<Transaction>);

impl Session for DirectTransaction {
    async fn run(&self, query: Query) -> Result<Vec<Row>, Failure> {
        let parameters: Vec<_> = query.parameters.into_iter().map(to_value).collect();
        let result = self.0.lock().await.run(&statement(&query.text, &parameters)).await;
        result.map(rows).map_err(failure)
    }
}

impl Database for Direct {
    type Transaction = DirectTransaction;

    async fn begin(&self) -> Result<DirectTransaction, Failure> {
        let transaction = self
            .pool
            .begin(&TransactionOptions::default(), WAIT)
            .await
            .map_err(failure)?;
        Ok(DirectTransaction(Mutex::new(transaction)))
    }

    async fn commit(&self, transaction: DirectTransaction) -> Result<(), Failure> {
        transaction.0.into_inner().commit().await.map_err(failure)
    }

    async fn notified(&self, longest: Duration) {
        let _: Wake = self.listener.lock().await.wait(longest).await;
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn warn(&self, message: &str) {
        self.warnings.lock().unwrap().push(message.to_owned());
    }
}

/// Data whose JSON is its bytes in hexadecimal; what begins with 255 is of an unknown type.
struct Hexadecimal;

impl Data for Hexadecimal {
    fn to_json(&self, data: Vec<Vec<u8>>) -> Vec<Result<String, JsonError>> {
        let one = |bytes: Vec<u8>| {
            if bytes.first() == Some(&255) {
                return Err(JsonError::UnknownType("un\"known".to_owned()));
            }
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            Ok(format!("{{\"@type\":\"hex\",\"value\":\"{digits}\"}}"))
        };
        data.into_iter().map(one).collect()
    }

    fn read_json(&self, json: Vec<String>) -> Vec<Result<Vec<u8>, JsonError>> {
        let one = |json: String| {
            if json.contains("google.protobuf.Value") {
                return Ok(b"placeholder".to_vec());
            }
            // The database writes it with space.
            let json = json.replace("\": ", "\":");
            let digits = json
                .split("\"value\":\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .filter(|_| json.contains("\"hex\""))
                .ok_or(JsonError::Malformed)?;
            let byte = |place| {
                let digits = digits.get(place..place + 2).or(digits.get(place..)).unwrap_or_default();
                u8::from_str_radix(digits, 16).map_err(|_| JsonError::Malformed)
            };
            (0..digits.len()).step_by(2).map(byte).collect()
        };
        json.into_iter().map(one).collect()
    }
}

type TestStore = Store<Direct, Hexadecimal>;

async fn open(server: &PostgresServer) -> TestStore {
    try_open(server).await.unwrap()
}

async fn connect(url: &str) -> Pool {
    let settings = ConnectionString::parse(url, &Environment::bare()).unwrap();
    Pool::open(settings).await.unwrap()
}

async fn try_open(server: &PostgresServer) -> Result<TestStore, Error> {
    open_with(connect(&server.url()).await).await
}

async fn open_with(pool: Pool) -> Result<TestStore, Error> {
    open_heard(pool, Warnings::default()).await
}

async fn open_heard(pool: Pool, warnings: Warnings) -> Result<TestStore, Error> {
    let database = Direct {
        listener: Mutex::new(pool.listen(vec!["pomerium_record_change".to_owned()])),
        pool,
        warnings,
    };
    Store::open(database, Hexadecimal, 7).await
}

fn key(record_type: &str, id: &str) -> Key {
    Key {
        record_type: record_type.to_owned(),
        id: id.to_owned(),
    }
}

fn upsert(record_type: &str, id: &str, data: &[u8]) -> Change {
    Change {
        key: key(record_type, id),
        operation: Operation::Upsert {
            data: Some(data.to_vec()),
            network: None,
        },
        expected: None,
    }
}

fn delete(record_type: &str, id: &str) -> Change {
    Change {
        key: key(record_type, id),
        operation: Operation::Delete,
        expected: None,
    }
}

fn expecting(version: u64, change: Change) -> Change {
    Change {
        expected: Some(version),
        ..change
    }
}

/// Times with all of their nanoseconds.
const NOW: i64 = 1_700_000_000_123_456_789;

async fn put(store: &TestStore, changes: Vec<Change>) -> Result<Vec<Outcome>, Refusal> {
    store.put(vec![changes], NOW).await.unwrap().batches.remove(0)
}

async fn scan(store: &TestStore) -> Vec<Record> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let request = ScanRequest {
            record_type: None,
            hint: None,
            condition: None,
            after,
            max_records: 2,
            max_bytes: 1 << 20,
        };
        let page = store.scan(request).await.unwrap();
        all.extend(page.records);
        after = all.last().map(|record| record.key.clone());
        if !page.more {
            return all;
        }
    }
}

fn everything() -> ScanRequest {
    ScanRequest {
        record_type: None,
        hint: None,
        condition: None,
        after: None,
        max_records: 1000,
        max_bytes: 1 << 20,
    }
}

async fn changes(store: &TestStore, after: u64) -> Result<Vec<(u64, String, bool)>, Error> {
    let mut all = Vec::new();
    let mut through = after;
    loop {
        let request = ChangesRequest {
            after: through,
            record_type: None,
            max_records: 3,
            max_bytes: 1 << 20,
        };
        let page = store.changes(request).await?;
        all.extend(
            page.records
                .iter()
                .map(|record| (record.version, record.key.id.clone(), record.deleted_at.is_some())),
        );
        through = page.through;
        if through >= page.position.latest_version {
            return Ok(all);
        }
    }
}

/// What Pomerium's own process does for a record, in one statement.
fn foreign(id: &str, json: &str) -> String {
    format!(
        "WITH c AS (INSERT INTO pomerium.record_changes (type, id, data, modified_at) VALUES ('t', '{id}', '{json}', now()) RETURNING *) \
         INSERT INTO pomerium.records (type, id, version, data, modified_at) SELECT type, id, version, data, modified_at FROM c \
         ON CONFLICT (type, id) DO UPDATE SET version = EXCLUDED.version, data = EXCLUDED.data, modified_at = EXCLUDED.modified_at"
    )
}

#[tokio::test]
async fn what_was_put_is_there_byte_for_byte() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let mut nothing = upsert("b", "none", b"");
    nothing.operation = Operation::Upsert {
        data: None,
        network: None,
    };
    let outcomes = put(
        &store,
        vec![
            upsert("b", "2", b"two"),
            upsert("a", "é", b"\xffunknown"),
            upsert("b", "10", b""),
            nothing,
            upsert("b", "2", b"too"),
        ],
    )
    .await
    .unwrap();
    assert_eq!(outcomes, [1, 2, 3, 4, 5].map(Outcome::Stored));
    let found = scan(&store).await;
    let shown: Vec<_> = found
        .iter()
        .map(|record| (record.key.id.as_str(), record.version, record.data.as_deref()))
        .collect();
    assert_eq!(
        shown,
        [
            ("é", 2, Some(b"\xffunknown".as_slice())),
            ("10", 3, Some(b"".as_slice())),
            ("2", 5, Some(b"too".as_slice())),
            ("none", 4, None),
        ]
    );
    assert!(found.iter().all(|record| record.modified_at == NOW));
    let got = store
        .get(vec![key("b", "2"), key("b", "no"), key("a\0", ""), key("a", "é")])
        .await
        .unwrap();
    let versions: Vec<_> = got
        .iter()
        .map(|record| record.as_ref().map(|record| record.version))
        .collect();
    assert_eq!(versions, [Some(5), None, None, Some(2)]);
    assert_eq!(store.count(None).await.unwrap(), 4);
    assert_eq!(store.count(Some("b".to_owned())).await.unwrap(), 3);
    assert_eq!(store.list_types().await.unwrap(), ["a", "b"]);
    assert_eq!(
        changes(&store, 3).await.unwrap(),
        [(4, "none".to_owned(), false), (5, "2".to_owned(), false)]
    );

    // As Pomerium sees it.
    let theirs = server
        .sql("SELECT version, data->>'value' FROM pomerium.records WHERE id = '2'")
        .unwrap();
    assert_eq!(theirs, "5|746f6f");
    let theirs = server
        .sql("SELECT data->>'@type' FROM pomerium.records WHERE id = 'é'")
        .unwrap();
    assert_eq!(theirs, "un\"known");

    // Another host sees the same.
    let other = open(&server).await;
    assert_eq!(scan(&other).await, found);
    assert_eq!(other.health().await, Ok(()));
}

#[tokio::test]
async fn batches_are_atomic_and_deletes_leave_tombstones() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    put(&store, vec![upsert("t", "a", b"1"), upsert("t", "b", b"2")])
        .await
        .unwrap();
    let result = store
        .put(
            vec![
                vec![upsert("t", "c", b"3"), expecting(9, upsert("t", "a", b"no"))],
                vec![
                    expecting(1, upsert("t", "a", b"4")),
                    delete("t", "b"),
                    delete("t", "none"),
                ],
                vec![expecting(1, upsert("t", "a", b"no"))],
                vec![
                    expecting(0, upsert("t", "new", b"5")),
                    delete("t", "new"),
                    upsert("t", "new", b"6"),
                ],
            ],
            NOW + 1,
        )
        .await
        .unwrap();
    assert_eq!(result.server_version, 7);
    assert_eq!(result.batches[0], Err(Refusal::Conflict(1)));
    let tombstone = |version, id: &str, data: &[u8]| {
        Outcome::Deleted(Record {
            version,
            key: key("t", id),
            data: Some(data.to_vec()),
            modified_at: NOW + 1,
            deleted_at: Some(NOW + 1),
        })
    };
    assert_eq!(
        result.batches[1],
        Ok(vec![Outcome::Stored(3), tombstone(4, "b", b"2"), Outcome::Missing])
    );
    assert_eq!(result.batches[2], Err(Refusal::Conflict(0)));
    assert_eq!(
        result.batches[3],
        Ok(vec![Outcome::Stored(5), tombstone(6, "new", b"5"), Outcome::Stored(7)])
    );
    let live: Vec<_> = scan(&store)
        .await
        .into_iter()
        .map(|record| (record.key.id, record.version))
        .collect();
    assert_eq!(live, [("a".to_owned(), 3), ("new".to_owned(), 7)]);
    let log = changes(&store, 2).await.unwrap();
    let log: Vec<_> = log
        .iter()
        .map(|(version, id, deleted)| (*version, id.as_str(), *deleted))
        .collect();
    assert_eq!(
        log,
        [
            (3, "a", false),
            (4, "b", true),
            (5, "new", false),
            (6, "new", true),
            (7, "new", false)
        ]
    );
    let deleted = store
        .changes(ChangesRequest {
            after: 3,
            record_type: Some("t".to_owned()),
            max_records: 1,
            max_bytes: 1,
        })
        .await
        .unwrap();
    assert_eq!(
        (deleted.records[0].data.as_deref(), deleted.through),
        (Some(b"2".as_slice()), 4)
    );
}

#[tokio::test]
async fn a_log_that_begins_with_a_write_that_failed_has_lost_nothing() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    assert_eq!(changes(&store, 0).await.unwrap(), []);
    let fails = "SELECT nextval(pg_get_serial_sequence('pomerium.record_changes', 'version'))";
    server.sql(fails).unwrap();
    put(&store, vec![upsert("t", "x", b"x")]).await.unwrap();
    assert_eq!(changes(&store, 0).await.unwrap(), [(2, "x".to_owned(), false)]);
    // Nor is what comes after a Clear.
    let cleared = store.clear(8).await.unwrap();
    assert_eq!(changes(&store, cleared.latest_version).await.unwrap(), []);
    server.sql(fails).unwrap();
    put(&store, vec![upsert("t", "y", b"y")]).await.unwrap();
    assert_eq!(
        changes(&store, cleared.latest_version).await.unwrap(),
        [(4, "y".to_owned(), false)]
    );
}

/// Functions, operators and aggregates of others that take exactly what statements could hand them, where the server's own take
/// something more general: their arguments, and what they give.
const BETTER_MATCHES: [(&str, &str, &str); 13] = [
    ("starts_with", "name, text", "boolean"),
    ("unnest", "text[]", "SETOF text"),
    ("pg_column_size", "jsonb", "integer"),
    ("pg_total_relation_size", "text", "bigint"),
    ("pg_advisory_xact_lock", "text", "void"),
    ("to_regclass", "name", "regclass"),
    ("->>", "jsonb, jsonb", "text"),
    ("->", "jsonb, jsonb", "jsonb"),
    ("-", "jsonb, jsonb", "jsonb"),
    ("=", "oid, regclass", "boolean"),
    ("*", "bigint, interval", "interval"),
    ("*", "numeric, integer", "numeric"),
    ("array_agg", "text", "text[]"),
];

#[tokio::test]
async fn functions_of_others_are_not_called() {
    let server = PostgresServer::start().unwrap();
    let mut made = String::from(
        "CREATE FUNCTION public.stolen(bigint[], bigint) RETURNS bigint[] LANGUAGE plpgsql AS \
         $$ BEGIN RAISE 'stolen'; END $$; \
         CREATE AGGREGATE public.array_agg(bigint) (sfunc = public.stolen, stype = bigint[], initcond = '{}')",
    );
    for (place, (name, arguments, result)) in BETTER_MATCHES.into_iter().enumerate() {
        let is_aggregate = name == "array_agg";
        let is_function = name.starts_with(char::is_alphabetic) && !is_aggregate;
        let function = if is_function {
            name.to_owned()
        } else {
            format!("stolen{place}")
        };
        let state = if is_aggregate { "text[], " } else { "" };
        made.push_str(&format!(
            "; CREATE FUNCTION public.{function}({state}{arguments}) RETURNS {result} LANGUAGE plpgsql AS \
             $$ BEGIN RAISE 'stolen: {name}({arguments})'; END $$"
        ));
        if is_aggregate {
            made.push_str(&format!(
                "; CREATE AGGREGATE public.{name}({arguments}) (sfunc = public.{function}, stype = {result}, initcond = '{{}}')"
            ));
        } else if !is_function {
            let (left, right) = arguments.split_once(", ").unwrap();
            made.push_str(&format!(
                "; CREATE OPERATOR public.{name} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.{function})"
            ));
        }
    }
    server.sql(&made).unwrap();

    // Everything that the store does.
    let store = open(&server).await;
    let fields = |fields: &[&str]| Options {
        indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        ..Options::default()
    };
    store
        .set_options("hex".to_owned(), Some(fields(&["value"])))
        .await
        .unwrap();
    let indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'host\\_field\\_%'";
    assert_eq!(server.sql(indexes).unwrap(), "1");
    let stored = put(&store, vec![upsert("hex", "a", b"x"), upsert("hex", "b", b"y")]).await;
    assert_eq!(stored.unwrap(), [1, 2].map(Outcome::Stored));
    put(&store, vec![expecting(1, upsert("hex", "a", b"z")), delete("hex", "b")])
        .await
        .unwrap();
    // A gap, so that others are looked for who write.
    server
        .sql("SELECT nextval(pg_get_serial_sequence('pomerium.record_changes', 'version'))")
        .unwrap();
    server.sql(&foreign("theirs", "{}")).unwrap();
    assert_eq!(changes(&store, 0).await.unwrap().len(), 5);
    let scanned = async |hint, condition: Option<&str>| {
        let request = ScanRequest {
            record_type: Some("hex".to_owned()),
            hint,
            condition: condition.map(str::to_owned),
            after: Some(key("hex", "")),
            max_records: 9,
            max_bytes: 1 << 20,
        };
        store.scan(request).await.unwrap().records.len()
    };
    let value = |value: &str| {
        Some(Hint::Field {
            path: "value".to_owned(),
            value: value.to_owned(),
        })
    };
    assert_eq!(
        (scanned(value("7a"), None).await, scanned(value("78"), None).await),
        (1, 0)
    );
    assert_eq!(scanned(None, Some("$.value == \"78\"")).await, 0);
    assert_eq!(scanned(Some(Hint::Network("10.0.0.0/8".to_owned())), None).await, 0);
    assert_eq!(
        store.get(vec![key("hex", "a"), key("hex", "b")]).await.unwrap().len(),
        2
    );
    assert_eq!(
        (
            store.count(None).await.unwrap(),
            store.list_types().await.unwrap().len()
        ),
        (2, 2)
    );
    let nothing = postgres::Observed {
        server_version: 0,
        latest_version: 0,
        options_revision: 0,
        services_revision: 0,
    };
    assert_eq!(store.wait(nothing).await.unwrap().latest_version, 6);
    assert!(
        store
            .lease("l".to_owned(), "one".to_owned(), LeaseAction::Hold(1 << 40))
            .await
            .unwrap()
    );
    assert!(
        store
            .lease("l".to_owned(), "one".to_owned(), LeaseAction::Release)
            .await
            .unwrap()
    );
    let service = Service {
        kind: 1,
        endpoint: "x".to_owned(),
    };
    store.report_services(vec![service.clone()], 1 << 40).await.unwrap();
    assert_eq!(store.list_services().await.unwrap(), [service]);
    store.set_checkpoint(1, 2).await.unwrap();
    assert_eq!(store.get_checkpoint().await.unwrap(), (1, 2));
    assert_eq!(store.measure().await.unwrap().types.len(), 2);
    store.health().await.unwrap();
    let expired = EvictRequest {
        record_type: "t".to_owned(),
        modified_before: Some(i64::MAX),
        keep: Some(9),
        max_records: 9,
    };
    assert_eq!(store.evict(expired, NOW).await.unwrap().tombstones.len(), 1);
    assert_eq!(store.prune(i64::MAX, 9).await.unwrap().removed, 5);
    store.set_options("hex".to_owned(), None).await.unwrap();
    assert_eq!(server.sql(indexes).unwrap(), "0");
    store.clear(8).await.unwrap();
    drop(open(&server).await);
}

#[tokio::test]
async fn the_isolation_of_a_role_changes_nothing() {
    let server = PostgresServer::start().unwrap();
    server
        .sql("ALTER ROLE postgres SET default_transaction_isolation = 'repeatable read'")
        .unwrap();
    let store = open(&server).await;
    // Another host clears while a put waits for its turn.
    let pool = connect(&server.url()).await;
    let mut clearing = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(7233190438146043755)::text";
    clearing.run(&statement(lock, &[])).await.unwrap();
    let put = store.put(vec![vec![upsert("t", "x", b"x")]], NOW);
    let (result, ()) = tokio::join!(put, async {
        let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        while server.sql(waits).unwrap().trim() != "1" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let clear = "UPDATE pomerium.migration_info SET server_version = 8";
        clearing.run(&statement(clear, &[])).await.unwrap();
        clearing.commit().await.unwrap();
    });
    assert_eq!(result.unwrap().server_version, 8);
}

#[tokio::test]
async fn what_pomerium_writes_is_read_and_its_open_transactions_are_waited_for() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    server
        .sql(&foreign("theirs", "{\"@type\": \"hex\", \"value\": \"0102\"}"))
        .unwrap();
    server.sql(&foreign("unreadable", "{\"@type\": \"new\"}")).unwrap();
    let found = scan(&store).await;
    assert_eq!(found[0].data.as_deref(), Some([1, 2].as_slice()));
    assert_eq!(found[1].data.as_deref(), Some(b"placeholder".as_slice()));

    // A version that is given out and not committed yet.
    let slow = open(&server).await;
    let begin = slow.put(vec![vec![upsert("t", "x", b"x")]], NOW);
    begin.await.unwrap();
    let pool = connect(&server.url()).await;
    let mut transaction = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    transaction.run(&statement(&foreign("late", "{}"), &[])).await.unwrap();
    // A later one that is committed at once.
    server.sql(&foreign("early", "{}")).unwrap();
    // Who reads what there is has it after a moment, as of before.
    let now = scan(&store).await;
    assert!(now.iter().any(|record| record.key.id == "early"), "{now:?}");
    let position = store.scan(everything()).await.unwrap().position;
    assert!(position.latest_version <= 3, "{position:?}");
    let (read, ()) = tokio::join!(changes(&store, 3), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        transaction.commit().await.unwrap();
    });
    let read: Vec<_> = read
        .unwrap()
        .into_iter()
        .map(|(version, id, _)| (version, id))
        .collect();
    assert_eq!(read, [(4, "late".to_owned()), (5, "early".to_owned())]);

    // One that is rolled back leaves a gap that holds nobody up.
    let mut transaction = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    transaction.run(&statement(&foreign("never", "{}"), &[])).await.unwrap();
    transaction.rollback().await.unwrap();
    server.sql(&foreign("after", "{}")).unwrap();
    assert_eq!(changes(&store, 5).await.unwrap(), [(7, "after".to_owned(), false)]);
}

/// A standby shows nobody's locks.
#[tokio::test]
async fn a_reader_of_a_standby_waits_for_the_primarys_transactions() {
    let server = PostgresServer::start().unwrap();
    let primary = open(&server).await;
    put(&primary, vec![upsert("t", "first", b"x")]).await.unwrap();
    let standby = server.standby().unwrap();
    let store = open(&standby).await;
    assert_eq!(changes(&store, 0).await.unwrap(), [(1, "first".to_owned(), false)]);

    let pool = connect(&server.url()).await;
    let mut transaction = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    transaction.run(&statement(&foreign("late", "{}"), &[])).await.unwrap();
    server.sql(&foreign("early", "{}")).unwrap();
    let arrived = async |version: u32| {
        let end = std::time::Instant::now() + WAIT;
        let newest = "SELECT max(version) FROM pomerium.record_changes";
        while standby.sql(newest).unwrap() != version.to_string() {
            assert!(std::time::Instant::now() < end, "the standby does not follow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    arrived(3).await;
    let (read, ()) = tokio::join!(changes(&store, 1), async {
        // Longer than a reader waits for nobody.
        tokio::time::sleep(Duration::from_millis(600)).await;
        transaction.commit().await.unwrap();
    });
    let read: Vec<_> = read
        .unwrap()
        .into_iter()
        .map(|(version, id, _)| (version, id))
        .collect();
    assert_eq!(read, [(2, "late".to_owned()), (3, "early".to_owned())]);

    // One that is rolled back leaves a gap that holds nobody up.
    let mut gone = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    gone.run(&statement(&foreign("never", "{}"), &[])).await.unwrap();
    gone.rollback().await.unwrap();
    server.sql(&foreign("after", "{}")).unwrap();
    arrived(5).await;
    assert_eq!(changes(&store, 3).await.unwrap(), [(5, "after".to_owned(), false)]);
}

#[tokio::test]
async fn a_transaction_that_hangs_is_waited_for_once() {
    let server = PostgresServer::start().unwrap();
    let warnings = Warnings::default();
    let store = open_heard(connect(&server.url()).await, Arc::clone(&warnings))
        .await
        .unwrap();
    put(&store, vec![upsert("t", "first", b"x")]).await.unwrap();
    let pool = connect(&server.url()).await;
    let mut hanging = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    hanging.run(&statement(&foreign("late", "{}"), &[])).await.unwrap();
    server.sql(&foreign("early", "{}")).unwrap();
    assert_eq!(changes(&store, 1).await.unwrap(), [(3, "early".to_owned(), false)]);
    for version in [5, 7] {
        server
            .sql("SELECT nextval(pg_get_serial_sequence('pomerium.record_changes', 'version'))")
            .unwrap();
        server.sql(&foreign("after a gap", "{}")).unwrap();
        let read = tokio::time::timeout(Duration::from_secs(5), changes(&store, version - 1)).await;
        let read = read.expect("it is not waited for again").unwrap();
        assert_eq!(read, [(version, "after a gap".to_owned(), false)]);
    }
    let told = warnings
        .lock()
        .unwrap()
        .iter()
        .filter(|text| text.contains("no longer wait"))
        .count();
    assert_eq!(told, 1);
}

/// As where records were copied from another server, and their sequence was not.
#[tokio::test]
async fn a_sequence_that_is_behind_loses_nothing() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    put(&store, vec![upsert("t", "a", b"old")]).await.unwrap();
    let rewind = "SELECT setval(pg_get_serial_sequence('pomerium.record_changes', 'version'), 1, false)";
    let copied = "UPDATE pomerium.records SET version = 500; DELETE FROM pomerium.record_changes";
    server.sql(&format!("{copied}; {rewind}")).unwrap();
    // Whoever is there already tells nobody that it was written.
    let refused = open_with(connect(&server.url()).await).await.unwrap();
    server.sql(rewind).unwrap();
    let result = refused.put(vec![vec![upsert("t", "a", b"lost")]], NOW).await;
    assert!(matches!(result, Err(Error::Internal(_))), "{result:?}");

    let store = open(&server).await;
    let [Outcome::Stored(version)] = put(&store, vec![upsert("t", "a", b"new")]).await.unwrap()[..] else {
        panic!("it is stored");
    };
    assert!(version > 500, "{version}");
    let found = scan(&store).await;
    assert_eq!(found[0].data.as_deref(), Some(b"new".as_slice()));
}

#[tokio::test]
async fn a_clock_that_is_ahead_removes_nothing() {
    const HOUR: i64 = 3_600_000_000_000;
    let server = PostgresServer::start().unwrap();
    let warnings = Warnings::default();
    let store = open_heard(connect(&server.url()).await, Arc::clone(&warnings))
        .await
        .unwrap();
    let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap();
    let now = i64::try_from(since_epoch.as_nanos()).unwrap();
    store.put(vec![vec![upsert("t", "a", b"x")]], now).await.unwrap();
    let evict = async |ahead: i64| {
        let request = EvictRequest {
            record_type: "t".to_owned(),
            modified_before: Some(now + ahead - HOUR),
            keep: None,
            max_records: 10,
        };
        store.evict(request, now + ahead).await.unwrap().tombstones.len()
    };
    assert_eq!(evict(2 * HOUR).await, 0);
    let told = warnings
        .lock()
        .unwrap()
        .iter()
        .filter(|text| text.contains("ahead of the database's"))
        .count();
    assert_eq!(told, 1, "{warnings:?}");
    // What is old by the database's clock goes.
    server.sql("UPDATE pomerium.records SET modified_at = now() - interval '2 hours'; UPDATE pomerium.host_exact SET modified_at = 0").unwrap();
    assert_eq!(evict(0).await, 1);
}

#[tokio::test]
async fn what_a_host_lacks_is_named_or_made_again() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    put(&store, vec![upsert("t", "a", b"x")]).await.unwrap();

    server
        .sql("TRUNCATE pomerium.host_state; TRUNCATE pomerium.checkpoints")
        .unwrap();
    store.health().await.unwrap();
    assert_eq!(scan(&store).await.len(), 1);
    assert_eq!(store.get_checkpoint().await.unwrap(), (0, 0));
    store.set_checkpoint(3, 4).await.unwrap();
    assert_eq!(store.get_checkpoint().await.unwrap(), (3, 4));

    server
        .sql("CREATE ROLE tenant LOGIN; ALTER SCHEMA pomerium OWNER TO tenant")
        .unwrap();
    for table in [
        "migration_info",
        "records",
        "record_changes",
        "record_options",
        "leases",
        "services",
        "checkpoints",
        "host_exact",
        "host_state",
    ] {
        server
            .sql(&format!("ALTER TABLE pomerium.{table} OWNER TO tenant"))
            .unwrap();
    }
    let url = format!("postgres://tenant@127.0.0.1:{}/postgres", server.port());
    let tenant = open_with(connect(&url).await).await.unwrap();
    tenant.health().await.unwrap();
    for (break_it, mend_it, said) in [
        (
            "ALTER TABLE pomerium.records OWNER TO postgres",
            "ALTER TABLE pomerium.records OWNER TO tenant",
            "grant it SELECT on pomerium.records, INSERT on pomerium.records",
        ),
        (
            "REVOKE DELETE ON pomerium.host_exact FROM tenant",
            "GRANT DELETE ON pomerium.host_exact TO tenant",
            "grant it DELETE on pomerium.host_exact, or",
        ),
        (
            "ALTER TABLE pomerium.records FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY",
            "ALTER TABLE pomerium.records NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY",
            "hides rows of pomerium.records",
        ),
        (
            "CREATE TABLE kept AS TABLE pomerium.migration_info; DELETE FROM pomerium.migration_info",
            "INSERT INTO pomerium.migration_info TABLE kept",
            "migration_info, which is Pomerium's own, is empty",
        ),
    ] {
        server.sql(break_it).unwrap();
        let error = tenant.health().await.unwrap_err().to_string();
        assert!(error.contains(said), "{break_it}: {error}");
        if said.contains("empty") {
            let lost = vec![vec![upsert("t", "lost", b"x")]];
            tenant.put(lost, NOW).await.unwrap_err();
        }
        server.sql(mend_it).unwrap();
        tenant.health().await.unwrap();
    }
    assert_eq!(tenant.get(vec![key("t", "lost")]).await.unwrap(), [None]);

    let sequence = "ALTER SEQUENCE pomerium.record_changes_version_seq CACHE";
    server.sql(&format!("{sequence} 20")).unwrap();
    let error = try_open(&server)
        .await
        .err()
        .expect("versions out of order")
        .to_string();
    assert!(error.contains(&format!("{sequence} 1")), "{error}");
    server.sql(&format!("{sequence} 1")).unwrap();
    for (statement, is_told) in [
        ("ALTER DATABASE postgres SET synchronous_commit = off", true),
        ("ALTER DATABASE postgres RESET synchronous_commit", false),
    ] {
        server.sql(statement).unwrap();
        let warnings = Warnings::default();
        open_heard(connect(&server.url()).await, Arc::clone(&warnings))
            .await
            .unwrap();
        let warnings = warnings.lock().unwrap();
        let told = warnings.iter().any(|text| text.contains("synchronous_commit"));
        assert_eq!(told, is_told, "{warnings:?}");
    }

    server.sql("DROP TABLE pomerium.leases").unwrap();
    let error = try_open(&server).await.err().expect("leases are gone").to_string();
    assert!(
        error.contains("pomerium.leases") && error.contains("restore it"),
        "{error}"
    );
}

/// Takes a database back to when it had this newest version, as a failover to a standby that was behind does: its sequence is
/// there up to 32 versions ahead of those that were given.
fn fall_back(server: &PostgresServer, version: u64, ahead: u64) {
    server
        .sql(&format!(
            "BEGIN; DELETE FROM pomerium.records WHERE version > {version}; \
             DELETE FROM pomerium.record_changes WHERE version > {version}; \
             DELETE FROM pomerium.host_exact WHERE version > {version}; \
             SELECT setval(pg_get_serial_sequence('pomerium.record_changes', 'version'), {version} + {ahead}); COMMIT"
        ))
        .unwrap();
}

#[tokio::test]
async fn a_database_that_has_lost_changes_is_begun_anew() {
    let put_one = async |store: &TestStore, id: &str| match put(store, vec![upsert("t", id, b"x")]).await.unwrap()[..] {
        [Outcome::Stored(version)] => version,
        ref other => panic!("{other:?}"),
    };
    let current = async |store: &TestStore| {
        let request = ChangesRequest {
            after: 0,
            record_type: None,
            max_records: 1000,
            max_bytes: 1 << 20,
        };
        store.changes(request).await.unwrap().position
    };
    // Who finds it out: a reader at once; a reader once others have written as many changes again; a writer.
    for (name, writes_between, is_writer, ahead) in [
        ("early", 0, false, 0),
        ("late", 20, false, 0),
        ("writer", 0, true, 0),
        ("early, sequence ahead", 0, false, 28),
        ("late, sequence ahead", 20, false, 28),
        ("writer, sequence ahead", 0, true, 28),
    ] {
        let server = PostgresServer::start().unwrap();
        let warnings = Warnings::default();
        let store = open_heard(connect(&server.url()).await, Arc::clone(&warnings))
            .await
            .unwrap();
        for number in 0..10 {
            put_one(&store, &format!("{number}")).await;
        }
        let before = current(&store).await;
        assert_eq!((before.server_version, before.latest_version), (7, 10), "{name}");
        // Nothing is wrong yet, not even where Pomerium has removed all old changes.
        assert_eq!(current(&store).await, before, "{name}");

        fall_back(&server, 4, ahead);
        for number in 0..writes_between {
            server.sql(&foreign(&format!("{number}"), "{}")).unwrap();
        }
        if is_writer {
            let again = store.put(vec![vec![upsert("t", "unknown", b"x")]], NOW).await;
            // Of a version that nobody has seen the write is as good as any; the next look finds out.
            assert_eq!(
                matches!(again, Err(Error::Unavailable(_))),
                ahead == 0,
                "{name}: {again:?}"
            );
        }
        let after = current(&store).await;
        assert_ne!(after.server_version, before.server_version, "{name}");
        assert!(after.latest_version >= before.latest_version, "{name}: {after:?}");
        assert_eq!(
            current(&store).await.server_version,
            after.server_version,
            "{name}: once"
        );
        assert!(put_one(&store, "next").await > before.latest_version, "{name}");
        let other = open(&server).await;
        assert_eq!(current(&other).await.server_version, after.server_version, "{name}");
        let told = warnings
            .lock()
            .unwrap()
            .iter()
            .filter(|text| text.contains("has lost changes"))
            .count();
        assert_eq!(told, 1, "{name}");
    }
}

#[tokio::test]
async fn a_log_that_pomerium_has_emptied_is_no_lost_one() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    for number in 0..3 {
        put(&store, vec![upsert("t", &format!("{number}"), b"x")])
            .await
            .unwrap();
    }
    assert_eq!(changes(&store, 0).await.unwrap().len(), 3);
    server.sql("DELETE FROM pomerium.record_changes").unwrap();
    let position = async || {
        let page = store
            .changes(ChangesRequest {
                after: 3,
                record_type: None,
                max_records: 3,
                max_bytes: 1 << 20,
            })
            .await;
        page.unwrap().position
    };
    assert_eq!(position().await.server_version, 7);
    put(&store, vec![upsert("t", "more", b"x")]).await.unwrap();
    let position = position().await;
    assert_eq!((position.server_version, position.latest_version), (7, 4));
}

#[tokio::test]
async fn transactions_of_other_databases_hold_nobody_up() {
    let server = PostgresServer::start().unwrap();
    drop(open(&server).await);
    // With the same numbers for the same tables. It can be made once nobody is connected to the first one.
    let end = std::time::Instant::now() + WAIT;
    while let Err(error) = server.sql("CREATE DATABASE other TEMPLATE postgres") {
        assert!(std::time::Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let url = format!("postgres://postgres@127.0.0.1:{}/other", server.port());
    let other = connect(&url).await;
    let mut hanging = other.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    hanging.run(&statement(&foreign("theirs", "{}"), &[])).await.unwrap();

    let store = open(&server).await;
    let gap = "SELECT nextval(pg_get_serial_sequence('pomerium.record_changes', 'version'))";
    server.sql(&foreign("first", "{}")).unwrap();
    server.sql(gap).unwrap();
    server.sql(&foreign("ours", "{}")).unwrap();
    // Far less than a transaction of its own database is waited for.
    let read = tokio::time::timeout(Duration::from_secs(5), changes(&store, 1)).await;
    let read = read.expect("nobody is waited for").unwrap();
    assert_eq!(read, [(3, "ours".to_owned(), false)]);
}

#[tokio::test]
async fn many_writers_and_none_is_missed() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let stores = [open(&server).await, open(&server).await];
    let write = async |store: &TestStore, name: &str| {
        for number in 0..40 {
            put(store, vec![upsert("t", &format!("{name}{number}"), b"x")])
                .await
                .unwrap();
        }
    };
    let their_url = server.url();
    let theirs = async {
        let pool = connect(&their_url).await;
        let one = async |name: &str| {
            for number in 0..40 {
                let text = foreign(&format!("{name}{number}"), "{}");
                pool.run(&statement(&text, &[]), WAIT).await.unwrap();
            }
        };
        tokio::join!(one("p"), one("q"), one("r"));
    };
    let read = async {
        let mut seen = Vec::new();
        while seen.len() < 200 {
            let after = seen.last().map_or(0, |(version, _, _)| *version);
            seen.extend(changes(&store, after).await.unwrap());
        }
        seen
    };
    let (seen, (), (), ()) = tokio::join!(read, write(&stores[0], "a"), write(&stores[1], "b"), theirs);
    let mut ids: Vec<_> = seen.iter().map(|(_, id, _)| id.clone()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 200, "each once");
    assert!(seen.is_sorted_by(|one, other| one.0 < other.0));
}

#[tokio::test]
async fn old_changes_go_and_readers_are_told() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    for number in 0..4 {
        store
            .put(
                vec![vec![upsert("t", "same", b"x"), upsert("t", &number.to_string(), b"y")]],
                NOW + number * 1_000_000,
            )
            .await
            .unwrap();
    }
    let pruned = store.prune(NOW + 2_000_000, 3).await.unwrap();
    assert_eq!((pruned.removed, pruned.more), (3, true));
    let pruned = store.prune(NOW + 2_000_000, 100).await.unwrap();
    assert_eq!(
        (pruned.removed, pruned.more, pruned.position.earliest_version),
        (1, false, 5)
    );
    assert_eq!(changes(&store, 3).await, Err(Error::Pruned(4)));
    assert_eq!(changes(&store, 4).await.unwrap().len(), 4);
    // The newest stays, however old.
    let pruned = store.prune(i64::MAX, 100).await.unwrap();
    assert_eq!((pruned.removed, pruned.position.earliest_version), (3, 8));
    assert_eq!(scan(&store).await.len(), 5, "records stay");
    assert!(
        scan(&store)
            .await
            .iter()
            .all(|record| record.data.is_some() && record.modified_at % 1000 == 789),
        "to the byte"
    );
    assert_eq!(
        server.sql("SELECT count(*) FROM pomerium.host_exact").unwrap(),
        "5",
        "nothing is left of the others"
    );
}

#[tokio::test]
async fn evictions_leave_tombstones_with_data() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    for number in 0..5 {
        let one = upsert("t", &number.to_string(), format!("data{number}").as_bytes());
        store
            .put(vec![vec![one, upsert("other", "x", b"")]], NOW + number)
            .await
            .unwrap();
    }
    let request = |modified_before, keep, max_records| EvictRequest {
        record_type: "t".to_owned(),
        modified_before,
        keep,
        max_records,
    };
    let evicted = store.evict(request(Some(NOW + 1), None, 10), NOW + 9).await.unwrap();
    let ids = |tombstones: &[Record]| {
        tombstones
            .iter()
            .map(|record| record.key.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!((ids(&evicted.tombstones), evicted.more), (vec!["0".to_owned()], false));
    assert_eq!(evicted.tombstones[0].data.as_deref(), Some(b"data0".as_slice()));
    assert_eq!(evicted.tombstones[0].deleted_at, Some(NOW + 9));
    let evicted = store.evict(request(None, Some(1), 2), NOW + 9).await.unwrap();
    assert_eq!(
        (ids(&evicted.tombstones), evicted.more),
        (vec!["1".to_owned(), "2".to_owned()], true)
    );
    let evicted = store.evict(request(None, Some(1), 2), NOW + 9).await.unwrap();
    assert_eq!((ids(&evicted.tombstones), evicted.more), (vec!["3".to_owned()], false));
    assert!(
        store
            .evict(request(None, Some(1), 2), NOW + 9)
            .await
            .unwrap()
            .tombstones
            .is_empty()
    );
    assert!(
        changes(&store, 0)
            .await
            .unwrap()
            .iter()
            .filter(|(_, _, deleted)| *deleted)
            .count()
            == 4
    );
}

#[tokio::test]
async fn a_clear_is_seen_by_every_host_and_versions_go_on() {
    let server = PostgresServer::start().unwrap();
    let (store, other) = (open(&server).await, open(&server).await);
    put(&store, vec![upsert("t", "a", b"1")]).await.unwrap();
    store
        .set_options("t".to_owned(), Some(Options::default()))
        .await
        .unwrap();
    store.set_checkpoint(3, u64::MAX).await.unwrap();
    assert_eq!(other.get_checkpoint().await.unwrap(), (3, u64::MAX));
    let position = other.clear(99).await.unwrap();
    assert_eq!(
        (
            position.server_version,
            position.earliest_version,
            position.latest_version
        ),
        (99, 0, 1)
    );
    let position = store
        .changes(ChangesRequest {
            after: 1,
            record_type: None,
            max_records: 1,
            max_bytes: 1,
        })
        .await
        .unwrap()
        .position;
    assert_eq!(position.server_version, 99);
    assert!(scan(&store).await.is_empty() && store.list_options().await.unwrap().is_empty());
    assert_eq!(store.get_checkpoint().await.unwrap(), (0, 0));
    assert_eq!(
        put(&store, vec![upsert("t", "a", b"1")]).await.unwrap(),
        [Outcome::Stored(2)]
    );
    assert_eq!(changes(&store, 0).await.unwrap().len(), 1, "nothing from before counts");
}

#[tokio::test]
async fn the_small_state_is_shared() {
    let server = PostgresServer::start().unwrap();
    let (store, other) = (open(&server).await, open(&server).await);
    let hold = LeaseAction::Hold(3_600_000_000_000);
    let lease =
        async |store: &TestStore, id: &str, action| store.lease("l".to_owned(), id.to_owned(), action).await.unwrap();
    assert!(lease(&store, "one", hold).await && lease(&other, "one", hold).await);
    assert!(!lease(&other, "two", hold).await && !lease(&other, "two", LeaseAction::Release).await);
    assert!(
        lease(&store, "one", LeaseAction::Release).await && lease(&other, "two", LeaseAction::Hold(u64::MAX)).await
    );

    let options = Options {
        capacity: Some(3),
        indexable_fields: vec!["a.b".to_owned()],
        ttl: Some(9),
    };
    store.set_options("t".to_owned(), Some(options.clone())).await.unwrap();
    assert_eq!(other.list_options().await.unwrap(), [("t".to_owned(), options)]);
    store.set_options("t".to_owned(), None).await.unwrap();
    assert!(other.list_options().await.unwrap().is_empty());

    let service = |kind, endpoint: &str| Service {
        kind,
        endpoint: endpoint.to_owned(),
    };
    store
        .report_services(
            vec![service(77, "z"), service(7, "y"), service(1, "x")],
            3_600_000_000_000,
        )
        .await
        .unwrap();
    store.report_services(vec![service(1, "gone")], 0).await.unwrap();
    assert_eq!(
        other.list_services().await.unwrap(),
        [service(1, "x"), service(7, "y"), service(77, "z")]
    );
}

#[tokio::test]
async fn waiting_ends_with_whatever_another_host_does() {
    let server = PostgresServer::start().unwrap();
    let (store, other) = (open(&server).await, open(&server).await);
    let nothing = postgres::Observed {
        server_version: 0,
        latest_version: 0,
        options_revision: 0,
        services_revision: 0,
    };
    let mut seen = store.wait(nothing).await.unwrap();
    for step in 0..3 {
        let act = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            match step {
                0 => drop(put(&other, vec![upsert("t", "a", b"1")]).await.unwrap()),
                1 => other
                    .set_options("t".to_owned(), Some(Options::default()))
                    .await
                    .unwrap(),
                _ => drop(other.clear(5).await.unwrap()),
            }
        };
        let waiting = tokio::time::timeout(Duration::from_secs(20), store.wait(seen));
        let (now, ()) = tokio::join!(waiting, act);
        let now = now.unwrap().unwrap();
        assert_ne!(now, seen, "{step}");
        seen = now;
    }
    assert_eq!(seen.server_version, 5);
}

#[tokio::test]
async fn networks_are_found_by_an_index() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let in_network = |id: &str, network: &str| Change {
        operation: Operation::Upsert {
            data: Some(b"x".to_vec()),
            network: Some(network.to_owned()),
        },
        ..upsert("t", id, b"")
    };
    put(
        &store,
        vec![
            in_network("wide", "10.0.0.0/8"),
            in_network("narrow", "10.1.0.0/16"),
            in_network("six", "2001:db8::/32"),
            upsert("t", "no", b""),
        ],
    )
    .await
    .unwrap();
    let found = async |network: &str| {
        let request = ScanRequest {
            record_type: Some("t".to_owned()),
            hint: Some(Hint::Network(network.to_owned())),
            condition: None,
            after: None,
            max_records: 10,
            max_bytes: 1 << 20,
        };
        let page = store.scan(request).await.unwrap();
        page.records.into_iter().map(|record| record.key.id).collect::<Vec<_>>()
    };
    assert_eq!(found("10.1.2.3/32").await, ["narrow", "wide"]);
    assert_eq!(found("10.2.0.0/16").await, ["wide"]);
    assert_eq!(found("2001:db8::1/128").await, ["six"]);
    assert!(found("11.0.0.0/8").await.is_empty());
}

/// What somebody may drop while a host works, each by itself and all of it.
const DROPPED: [&str; 5] = [
    DROP_FUNCTIONS,
    "DROP TABLE pomerium.host_exact",
    "DROP TABLE pomerium.host_state",
    "DROP INDEX pomerium.host_records_key",
    "DROP TABLE pomerium.host_exact, pomerium.host_state; DROP INDEX pomerium.host_records_key",
];
const DROP_FUNCTIONS: &str = "DO $$ DECLARE name text; BEGIN \
    FOR name IN SELECT oid::regprocedure FROM pg_proc WHERE pronamespace = 'pomerium'::regnamespace LOOP \
    EXECUTE 'DROP FUNCTION ' || name; END LOOP; END $$";

#[tokio::test]
async fn what_somebody_drops_is_made_again() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let there = || {
        let query = "SELECT relname FROM pg_class WHERE relname LIKE 'host\\_%' \
            UNION SELECT proname FROM pg_proc WHERE proname LIKE 'host\\_%' ORDER BY 1";
        server.sql(query).unwrap()
    };
    let complete = there();
    for dropped in DROPPED {
        server.sql(dropped).unwrap();
        assert_ne!(there(), complete);
        put(&store, vec![upsert("t", "a", b"x")]).await.unwrap();
        let found = scan(&store).await;
        assert_eq!(found[0].data.as_deref(), Some(b"x".as_slice()), "{dropped}");
        store.health().await.unwrap();
        // An index is done without until the next start.
        drop(open(&server).await);
        assert_eq!(there(), complete, "{dropped}");
    }
    // Each call by itself.
    server.sql(DROP_FUNCTIONS).unwrap();
    store.health().await.unwrap();
    assert_eq!(there(), complete);
    server.sql(DROP_FUNCTIONS).unwrap();
    assert!(matches!(
        put(&store, vec![delete("t", "a")]).await.unwrap()[..],
        [Outcome::Deleted(_)]
    ));
    server.sql(DROP_FUNCTIONS).unwrap();
    assert_eq!(store.prune(i64::MAX, 9).await.unwrap().removed, 5);
    server.sql(DROP_FUNCTIONS).unwrap();
    assert_eq!(store.clear(8).await.unwrap().server_version, 8);
}

#[tokio::test]
async fn what_cannot_be_made_again_is_told() {
    let server = PostgresServer::start().unwrap();
    server
        .sql("CREATE ROLE host LOGIN; CREATE SCHEMA pomerium AUTHORIZATION host")
        .unwrap();
    let pool = connect(&server.url().replace("postgres@", "host@")).await;
    let store = open_with(pool).await.unwrap();
    server
        .sql(&format!(
            "ALTER SCHEMA pomerium OWNER TO postgres; GRANT USAGE ON SCHEMA pomerium TO host; {DROP_FUNCTIONS}"
        ))
        .unwrap();
    let written = store.put(vec![vec![upsert("t", "a", b"x")]], NOW).await.map(drop);
    for result in [written, store.health().await] {
        match result {
            Err(Error::Unavailable(problem)) => {
                assert!(
                    problem.contains("cannot be made again") && problem.contains("permission denied"),
                    "{problem}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
    server.sql("GRANT CREATE ON SCHEMA pomerium TO host").unwrap();
    put(&store, vec![upsert("t", "a", b"x")]).await.unwrap();
    // Pomerium's own tables are nobody's to make but at a start.
    server
        .sql("DROP SCHEMA pomerium CASCADE; CREATE SCHEMA pomerium AUTHORIZATION host")
        .unwrap();
    match store.put(vec![vec![upsert("t", "a", b"x")]], NOW).await {
        Err(Error::Unavailable(problem)) => assert!(problem.contains("Pomerium's own tables"), "{problem}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(
        server
            .sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'pomerium'::regnamespace")
            .unwrap(),
        "0"
    );
}

/// The pages of a walk through the type `walk`: the ids in each.
async fn walk(store: &TestStore, condition: &str, max_records: u32) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut after = None;
    loop {
        let request = ScanRequest {
            record_type: Some("walk".to_owned()),
            hint: None,
            condition: Some(condition.to_owned()),
            after,
            max_records,
            max_bytes: 1 << 20,
        };
        let page = store.scan(request).await.unwrap();
        after = page.records.last().map(|record| record.key.clone());
        pages.push(page.records.into_iter().map(|record| record.key.id).collect());
        if !page.more {
            return pages;
        }
        assert!(after.is_some(), "a page behind which there is more holds a record");
    }
}

/// The statement that writes records 1 to `count` of the type `walk`; `data` is of a record's number, `n`.
fn numbered(count: u32, data: &str) -> String {
    format!(
        "DELETE FROM pomerium.records; INSERT INTO pomerium.records (type, id, version, data) \
         SELECT 'walk', lpad(n::text, 6, '0'), n, {data} FROM generate_series(1, {count}) n"
    )
}

/// However many records there are that do not match, a page looks at 16,384 of them.
#[tokio::test]
async fn a_page_of_a_walk_looks_at_so_many_records() {
    const WINDOW: u32 = 16_384;
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let id = |number: &u32| format!("{number:06}");
    let first = WINDOW;
    let second = 2 * WINDOW;
    type Pages<'p> = &'p [&'p [u32]];
    // How many records there are, which of them match, how many a page takes; and what comes, page by page.
    let cases: [(u32, &[u32], u32, Pages<'_>); 9] = [
        (0, &[], 9, &[&[]]),
        (first - 1, &[], 9, &[&[]]),
        (first, &[], 9, &[&[first], &[]]),
        (first + 1, &[], 9, &[&[first], &[]]),
        (first, &[first], 9, &[&[first], &[]]),
        (first + 1, &[1, first + 1], 9, &[&[1, first], &[first + 1]]),
        (
            second + 1,
            &[second, second + 1],
            9,
            &[&[first], &[second], &[second + 1]],
        ),
        // A page that is full before its window is at its end.
        (first, &[1, 2, 3], 2, &[&[1, 2], &[3]]),
        (first, &[1, first - 1], 2, &[&[1, first - 1], &[]]),
    ];
    for (count, matching, max_records, expected) in cases {
        let numbers: Vec<_> = matching.iter().map(u32::to_string).collect();
        let data = format!(
            "jsonb_build_object('@type', 'walk', 'value', CASE WHEN n IN (0{}) THEN 'yes' ELSE 'no' END)",
            numbers.iter().map(|number| format!(", {number}")).collect::<String>()
        );
        server.sql(&numbered(count, &data)).unwrap();
        let pages = walk(&store, "$.value == \"yes\"", max_records).await;
        let expected: Vec<Vec<_>> = expected.iter().map(|page| page.iter().map(id).collect()).collect();
        assert_eq!(pages, expected, "{count} records, of which {matching:?} match");
    }
    // All of them come, each once, where JSON does not tell what they are.
    server
        .sql(&numbered(WINDOW + 9, "jsonb_build_object('@type', 'another')"))
        .unwrap();
    let found = walk(&store, "$.value == \"yes\"", 4096).await.concat();
    assert_eq!(found, (1..=WINDOW + 9).map(|number| id(&number)).collect::<Vec<_>>());
}

/// What somebody has written by hand keeps no host from starting, and is among what is handed over whatever is looked for: by
/// the index of such records and by a walk alike.
#[tokio::test]
async fn json_that_is_no_message_is_always_handed_over() {
    let server = PostgresServer::start().unwrap();
    drop(open(&server).await);
    let index = "SELECT indexrelid::regclass FROM pg_index WHERE indexrelid::regclass::text LIKE 'pomerium.host\\_records\\_opaque\\_%'";
    let name = server.sql(index).unwrap();
    server.sql(&format!("DROP INDEX {name}")).unwrap();
    let data = [
        "5",
        "\"walk\"",
        "null",
        "true",
        "[]",
        "[\"@type\"]",
        "[{\"@type\": \"walk\", \"a\": 1}]",
        "{}",
        "{\"a\": 1}",
        "{\"@type\": \"walk\"}",
        "{\"@type\": 5, \"a\": 1}",
        "{\"@type\": \"another\", \"a\": 1}",
        // The only one that says what it is.
        "{\"@type\": \"walk\", \"a\": 1}",
    ];
    for (number, json) in data.iter().enumerate() {
        server
            .sql(&format!(
                "INSERT INTO pomerium.records (type, id, version, data) VALUES ('walk', '{number:02}', {number} + 1, '{json}')"
            ))
            .unwrap();
    }
    let store = open(&server).await;
    let opaque: Vec<_> = (0..data.len() - 1).map(|number| format!("{number:02}")).collect();
    assert_eq!(walk(&store, "1 == 0", 100).await.concat(), opaque);
    let condition = server
        .sql(&format!(
            "SELECT pg_get_expr(indpred, indrelid) FROM pg_index WHERE indexrelid = '{name}'::regclass"
        ))
        .unwrap();
    let indexed = format!("SELECT id FROM pomerium.records WHERE {condition} ORDER BY id");
    assert_eq!(server.sql(&indexed).unwrap().lines().collect::<Vec<_>>(), opaque);
}

/// Whoever makes them before a host does must have made the same.
#[tokio::test]
async fn the_guide_has_the_indexes_on_all_records() {
    let server = PostgresServer::start().unwrap();
    drop(open(&server).await);
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/postgres.md")).unwrap();
    let names = "SELECT indexname FROM pg_indexes WHERE tablename = 'records' AND indexname LIKE 'host\\_%'";
    let names = server.sql(names).unwrap();
    assert_eq!(names.lines().count(), 2);
    for name in names.lines() {
        let definition = format!("SELECT indexdef FROM pg_indexes WHERE indexname = '{name}'");
        let made = server.sql(&definition).unwrap();
        let begin = guide.find(&format!("CREATE INDEX CONCURRENTLY {name} ON")).expect(name);
        let statement = guide[begin..].split(';').next().unwrap();
        server.sql(&format!("DROP INDEX pomerium.{name}")).unwrap();
        server.sql(statement).unwrap();
        assert_eq!(server.sql(&definition).unwrap(), made);
    }
}

/// A row that no databroker can have written makes nothing else of its type unreadable.
#[tokio::test]
async fn rows_without_a_version_are_left_out_and_told_of() {
    let server = PostgresServer::start().unwrap();
    let warnings = Warnings::default();
    let store = open_heard(connect(&server.url()).await, Arc::clone(&warnings))
        .await
        .unwrap();
    put(&store, vec![upsert("walk", "b", b"1"), upsert("walk", "d", b"2")])
        .await
        .unwrap();
    server
        .sql(
            "INSERT INTO pomerium.records (type, id, version, data) SELECT type, id, version, '{}' FROM (VALUES \
             ('walk', 'a', 0), ('walk', 'c', -5), ('walk', 'e', -9223372036854775808), ('odd', 'x', 0)) odd(type, id, version); \
             INSERT INTO pomerium.record_changes (type, id, version, modified_at) VALUES ('walk', 'a', -7, now())",
        )
        .unwrap();
    let ids = |records: Vec<Record>| records.into_iter().map(|record| record.key.id).collect::<Vec<_>>();
    assert_eq!(ids(scan(&store).await), ["b", "d"]);
    assert_eq!(walk(&store, "1 == 0", 9).await, [["b", "d"]]);
    assert_eq!(store.get(vec![key("walk", "a")]).await.unwrap(), [None]);
    let got = store.get(vec![key("walk", "c"), key("walk", "b")]).await.unwrap();
    assert_eq!(ids(got.into_iter().flatten().collect()), ["b"]);
    assert_eq!(store.count(Some("walk".to_owned())).await.unwrap(), 2);
    assert_eq!(store.count(None).await.unwrap(), 2);
    assert_eq!(store.list_types().await.unwrap(), ["walk"]);
    assert_eq!(changes(&store, 0).await.unwrap().len(), 2);
    let evict = EvictRequest {
        record_type: "walk".to_owned(),
        modified_before: Some(NOW),
        keep: Some(2),
        max_records: 9,
    };
    assert_eq!(store.evict(evict, NOW).await.unwrap().tombstones, []);

    // Each type is told of once.
    for _ in 0..2 {
        store.measure().await.unwrap();
    }
    let told = warnings.lock().unwrap().clone();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|line| line.contains("\"walk\"")) && told.iter().any(|line| line.contains("\"odd\"")));

    // The change is none, so that what is gone of the others is told. And a row becomes a record, or goes, as any other does.
    assert_eq!(store.prune(i64::MAX, 9).await.unwrap().removed, 2);
    assert_eq!(changes(&store, 0).await, Err(Error::Pruned(1)));
    let outcomes = put(
        &store,
        vec![expecting(0, upsert("walk", "a", b"3")), delete("walk", "c")],
    )
    .await;
    assert!(matches!(
        outcomes.unwrap()[..],
        [Outcome::Stored(3), Outcome::Deleted(_)]
    ));
    assert_eq!(ids(scan(&store).await), ["a", "b", "d"]);
    assert_eq!(server.sql("SELECT count(*) FROM pomerium.records").unwrap(), "5");
}

/// Times beyond those that a databroker gives are as far away as it can say; they keep nothing else from being removed.
#[tokio::test]
async fn times_without_end_hold_nothing_up() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    for (id, time) in [("never", "infinity"), ("always", "-infinity"), ("old", "1000-01-01")] {
        server
            .sql(&foreign(id, "{}").replace("now()", &format!("timestamptz '{time}'")))
            .unwrap();
    }
    put(&store, vec![upsert("t", "x", b"x")]).await.unwrap();
    let times: Vec<_> = scan(&store)
        .await
        .into_iter()
        .map(|record| (record.key.id, record.modified_at))
        .collect();
    let expected = [("always", i64::MIN), ("never", i64::MAX), ("old", i64::MIN), ("x", NOW)];
    assert_eq!(times, expected.map(|(id, time)| (id.to_owned(), time)));
    let evicted = async |modified_before, keep| {
        let request = EvictRequest {
            record_type: "t".to_owned(),
            modified_before,
            keep,
            max_records: 9,
        };
        let evicted = store.evict(request, NOW).await.unwrap().tombstones;
        evicted.into_iter().map(|record| record.key.id).collect::<Vec<_>>()
    };
    assert_eq!(evicted(None, Some(9)).await, Vec::<String>::new());
    assert_eq!(evicted(Some(NOW), None).await, ["always", "old"]);
    assert_eq!(evicted(Some(NOW + 1), None).await, ["x"]);
    // Of the changes the first is from the end of time.
    assert_eq!(store.prune(i64::MAX, 9).await.unwrap().removed, 6);
}

/// A window is cut out along the index, also where the database has no idea of how much there is.
#[tokio::test]
async fn a_walk_sorts_nothing() {
    let server = PostgresServer::with(&ServerOptions {
        configuration: vec![
            "session_preload_libraries = 'auto_explain'".to_owned(),
            "auto_explain.log_min_duration = 0".to_owned(),
            "autovacuum = off".to_owned(),
        ],
        ..ServerOptions::default()
    })
    .unwrap();
    let store = open(&server).await;
    let data = "jsonb_build_object('@type', 'walk', 'value', md5(n::text))";
    // In another order than that of the keys, as ids are that are random.
    let fill = numbered(50_000, data).replace("lpad(n::text, 6, '0')", "md5(n::text)");
    server.sql(&fill).unwrap();
    for analyze in ["SELECT", "ANALYZE pomerium.records"] {
        server.sql(analyze).unwrap();
        let before = server.log().unwrap().len();
        // More often than plans are made for each call.
        assert_eq!(walk(&store, "$.value == \"none\"", 512).await.len(), 4);
        assert_eq!(walk(&store, "$.value == \"none\"", 512).await.len(), 4);
        let log = server.log().unwrap().split_off(before);
        let plans: Vec<_> = log.split("plan:").filter(|plan| plan.contains("is_last")).collect();
        assert_eq!(plans.len(), 8, "{log}");
        for plan in plans {
            assert!(plan.contains("Index Scan using host_records_key"), "{plan}");
            assert!(!plan.contains("Sort") && !plan.contains("Scan on records r"), "{plan}");
        }
    }
}

#[tokio::test]
async fn schemas_of_other_versions_are_refused_in_words() {
    let server = PostgresServer::start().unwrap();
    let (one, two, three) = tokio::join!(try_open(&server), try_open(&server), try_open(&server));
    assert!(one.is_ok() && two.is_ok() && three.is_ok(), "all that start together");
    assert_eq!(
        server
            .sql("SELECT server_version, migration_version FROM pomerium.migration_info")
            .unwrap(),
        "7|9"
    );
    for (version, text) in [(10, "newer Pomerium"), (7, "older Pomerium")] {
        server
            .sql(&format!(
                "UPDATE pomerium.migration_info SET migration_version = {version}"
            ))
            .unwrap();
        match try_open(&server).await {
            Err(Error::Configuration(problem)) => assert!(problem.contains(text), "{problem}"),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it was taken"),
        }
    }
}

/// Pomerium knows nothing of our table, so what it replaces is left there until it is swept.
#[tokio::test]
async fn exact_bytes_go_once_pomerium_has_replaced_the_record() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let exact = || {
        server
            .sql("SELECT string_agg(version::text, ',' ORDER BY version) FROM pomerium.host_exact")
            .unwrap()
    };
    put(&store, vec![upsert("t", "a", b"1"), upsert("t", "b", b"2")])
        .await
        .unwrap();
    put(&store, vec![upsert("t", "c", b"3")]).await.unwrap();
    assert_eq!(store.prune(i64::MAX, 100).await.unwrap().removed, 2);
    assert_eq!(exact(), "1,2,3", "their records live");
    server
        .sql(&foreign("a", "{\"@type\": \"hex\", \"value\": \"00\"}"))
        .unwrap();
    put(&store, vec![upsert("t", "d", b"5")]).await.unwrap();
    assert_eq!(store.prune(i64::MAX, 100).await.unwrap().removed, 2);
    assert_eq!(exact(), "2,3,5");
    let data: Vec<_> = scan(&store)
        .await
        .into_iter()
        .map(|record| record.data.unwrap())
        .collect();
    assert_eq!(data, [b"\0".to_vec(), b"2".to_vec(), b"3".to_vec(), b"5".to_vec()]);
}

#[tokio::test]
async fn a_database_of_the_released_pomerium_is_brought_up_to_date() {
    let server = PostgresServer::start().unwrap();
    drop(open(&server).await);
    server
        .sql(
            "UPDATE pomerium.migration_info SET migration_version = 8; ALTER TABLE pomerium.record_options DROP COLUMN ttl; \
             DROP INDEX pomerium.idx_records_type_modified_at",
        )
        .unwrap();
    let (one, two) = tokio::join!(try_open(&server), try_open(&server));
    assert!(one.is_ok() && two.is_ok(), "both that start together");
    let there = "SELECT migration_version, to_regclass('pomerium.idx_records_type_modified_at') IS NOT NULL, \
        (SELECT count(*) FROM information_schema.columns WHERE table_name = 'record_options' AND column_name = 'ttl') \
        FROM pomerium.migration_info";
    assert_eq!(server.sql(there).unwrap(), "9|t|1");
}

/// Letters that do not compress.
fn letters(count: usize) -> String {
    let mut state = 1_u64;
    let letter = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"[(state >> 58) as usize])
    };
    std::iter::repeat_with(letter).take(count).collect()
}

/// One client's long id is no reason for the writes that go with it to fail.
#[tokio::test]
async fn a_key_that_cannot_be_indexed_is_refused_alone() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let of = |id: String| vec![upsert("t", &id, b"1")];
    let batches = vec![
        of(letters(2600)),
        of(letters(2599)),
        of("i".repeat(64 << 10)),
        of("a".to_owned()),
    ];
    let batches = store.put(batches, NOW).await.unwrap().batches;
    let stored: Vec<_> = batches
        .into_iter()
        .map(|batch| match batch {
            Ok(outcomes) => Some(outcomes),
            Err(Refusal::Exhausted(problem)) if problem.contains("2600") => None,
            Err(refusal) => panic!("{refusal:?}"),
        })
        .collect();
    let one = |version| Some(vec![Outcome::Stored(version)]);
    assert_eq!(stored, [None, one(1), None, one(2)]);
    assert_eq!(
        put(&store, vec![delete("t", &letters(2600)), delete("t", &letters(2599))])
            .await
            .unwrap()[0],
        Outcome::Missing
    );
}

/// What the server says of a statement may hold what is in a record, and clients and the log get what the store says.
#[tokio::test]
async fn a_refused_statement_is_told_without_its_values() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    server
        .sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no %', NEW.id; END $$; \
             CREATE TRIGGER refuse BEFORE INSERT ON pomerium.records FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .unwrap();
    let problem = match store.put(vec![vec![upsert("t", "alice", b"1")]], NOW).await {
        Err(Error::Internal(problem)) => problem,
        other => panic!("{other:?}"),
    };
    assert!(
        problem.contains("SQLSTATE P0001") && !problem.contains("alice"),
        "{problem}"
    );
}

/// A patch by Pomerium holds its record and then writes the change; a host holds the log of changes and then wants the record.
#[tokio::test]
async fn a_patch_of_pomeriums_and_a_write_of_the_same_record_both_end_well() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    let theirs = foreign("theirs", "{\"@type\": \"hex\", \"value\": \"01\"}");
    server.sql(&theirs).unwrap();
    assert_eq!(
        scan(&store).await.len(),
        1,
        "from here on the host knows that it has company"
    );
    let pool = connect(&server.url()).await;
    let mut patch = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    let hold = "SELECT version FROM pomerium.records WHERE id = 'theirs' FOR UPDATE";
    patch.run(&statement(hold, &[])).await.unwrap();
    let (outcomes, ()) = tokio::join!(put(&store, vec![delete("t", "theirs")]), async {
        let locked = "SELECT 1 FROM pg_locks WHERE relation = 'pomerium.record_changes'::regclass AND mode = 'ShareLock' AND granted";
        let begun = tokio::time::Instant::now();
        while pool.run(&statement(locked, &[]), WAIT).await.unwrap().rows.is_empty() {
            assert!(
                begun.elapsed() < WAIT,
                "the host does not keep Pomerium's processes from writing"
            );
        }
        patch.run(&statement(&theirs, &[])).await.unwrap();
        patch.commit().await.unwrap();
    });
    assert!(matches!(&outcomes.unwrap()[..], [Outcome::Deleted(tombstone)] if tombstone.data == Some(vec![1])));
    let log: Vec<_> = changes(&store, 1)
        .await
        .unwrap()
        .into_iter()
        .map(|(_, _, deleted)| deleted)
        .collect();
    assert_eq!(log, [false, true], "the patch, and then the delete");
}

/// All hosts write one at a time: whoever holds a record may not keep those from writing who want another.
#[tokio::test]
async fn a_record_that_somebody_holds_stops_nobody_elses_writes() {
    let server = PostgresServer::start().unwrap();
    let (store, other) = (open(&server).await, open(&server).await);
    put(&store, ["a", "b", "held"].map(|id| upsert("t", id, b"1")).into())
        .await
        .unwrap();
    let pool = connect(&server.url()).await;
    let mut holder = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    let hold = "SELECT version FROM pomerium.records WHERE id = 'held' FOR UPDATE";
    holder.run(&statement(hold, &[])).await.unwrap();
    let begun = tokio::time::Instant::now();

    // The kinds of batches, and whether they want what is held.
    let batches = [
        (vec![upsert("t", "held", b"2")], true),
        (vec![upsert("t", "c", b"2")], false),
        (vec![upsert("t", "d", b"2"), delete("t", "held")], true),
        (vec![expecting(3, upsert("t", "held", b"2"))], true),
        (vec![delete("t", "b")], false),
    ];
    let all = batches.iter().map(|(batch, _)| batch.clone()).collect();
    let (answer, others) = tokio::join!(store.put(all, NOW), put(&other, vec![upsert("t", "e", b"2")]));
    others.unwrap();
    let outcomes = answer.unwrap().batches;
    assert_eq!(outcomes.len(), batches.len());
    for ((batch, is_held), outcome) in batches.iter().zip(&outcomes) {
        match outcome {
            Ok(outcomes) => assert!(!is_held && outcomes.len() == batch.len(), "{batch:?}: {outcomes:?}"),
            Err(Refusal::Exhausted(problem)) => {
                assert!(*is_held && problem.contains("pg_locks"), "{batch:?}: {problem}")
            }
            Err(refusal) => panic!("{batch:?}: {refusal:?}"),
        }
    }
    // Each comes again by itself, and is told what is the matter; the last of them has not come before.
    let held = batches
        .iter()
        .filter(|(_, is_held)| *is_held)
        .map(|(batch, _)| batch.clone());
    for batch in held.chain([vec![delete("t", "held")]]) {
        match store.put(vec![batch.clone()], NOW).await {
            Err(Error::Unavailable(problem)) => assert!(problem.contains("pg_locks"), "{batch:?}: {problem}"),
            other => panic!("{batch:?}: {other:?}"),
        }
    }
    // What is too much goes, but for what is held.
    let request = EvictRequest {
        record_type: "t".to_owned(),
        modified_before: None,
        keep: Some(1),
        max_records: 9,
    };
    store.evict(request, NOW).await.unwrap();
    let ids: Vec<_> = scan(&store).await.into_iter().map(|record| record.key.id).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert!(ids.contains(&"held".to_owned()), "{ids:?}");
    assert!(matches!(store.clear(8).await, Err(Error::Unavailable(_))));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());

    holder.commit().await.unwrap();
    put(&store, vec![upsert("t", "held", b"2")]).await.unwrap();
    assert_eq!(store.clear(8).await.unwrap().server_version, 8);
}

fn with_fields(fields: &[&str]) -> Option<Options> {
    Some(Options {
        indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        ..Options::default()
    })
}

const FIELD_INDEXES: &str = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'host\\_field\\_%'";

/// Whoever reads a record, Pomerium too, waits behind somebody who waits to drop an index.
#[tokio::test]
async fn an_index_that_cannot_be_dropped_stops_no_reader() {
    let server = PostgresServer::start().unwrap();
    let warnings = Warnings::default();
    let store = open_heard(connect(&server.url()).await, Arc::clone(&warnings))
        .await
        .unwrap();
    let other = open(&server).await;
    put(&store, vec![upsert("hex", "a", b"1")]).await.unwrap();
    // As one who makes a dump does it.
    let pool = connect(&server.url()).await;
    let mut dump = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    dump.run(&statement("LOCK TABLE pomerium.records IN ACCESS SHARE MODE", &[]))
        .await
        .unwrap();
    store
        .set_options("hex".to_owned(), with_fields(&["value"]))
        .await
        .unwrap();
    assert_eq!(server.sql(FIELD_INDEXES).unwrap(), "1", "one is made meanwhile");
    assert!(warnings.lock().unwrap().is_empty());

    let begun = tokio::time::Instant::now();
    let is_set = Cell::new(false);
    let ((), longest) = tokio::join!(
        async {
            store.set_options("hex".to_owned(), None).await.unwrap();
            is_set.set(true);
        },
        async {
            let mut longest = Duration::ZERO;
            while !is_set.get() {
                let asked = tokio::time::Instant::now();
                assert!(other.get(vec![key("hex", "a")]).await.unwrap()[0].is_some());
                longest = longest.max(asked.elapsed());
            }
            longest
        }
    );
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let told = warnings.lock().unwrap().concat();
    assert!(told.contains("\"hex\"") && told.contains("is still there"), "{told}");
    assert_eq!(server.sql(FIELD_INDEXES).unwrap(), "1");
    dump.commit().await.unwrap();
    store.set_options("hex".to_owned(), None).await.unwrap();
    assert_eq!(server.sql(FIELD_INDEXES).unwrap(), "0");
}

/// Two hosts set the options of a type, and the one whose options are gone is the last to look after indexes.
#[tokio::test]
async fn the_indexes_are_those_of_the_options_that_were_set_last() {
    let server = PostgresServer::start().unwrap();
    let (store, other) = (open(&server).await, open(&server).await);
    let pool = connect(&server.url()).await;
    let mut writer = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(x'6461746162726f6b'::bigint)";
    writer.run(&statement(lock, &[])).await.unwrap();
    let waiting = async |count: usize| {
        let waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        let begun = tokio::time::Instant::now();
        while pool.run(&statement(waiting, &[]), WAIT).await.unwrap().rows.len() < count {
            assert!(begun.elapsed() < WAIT, "it does not alter indexes by turns");
        }
    };
    let (first, last, ()) = tokio::join!(
        store.set_options("hex".to_owned(), with_fields(&["value"])),
        async {
            waiting(1).await;
            other.set_options("hex".to_owned(), None).await
        },
        async {
            let options = "SELECT 1 FROM pomerium.record_options";
            waiting(1).await;
            while !pool.run(&statement(options, &[]), WAIT).await.unwrap().rows.is_empty() {}
            writer.commit().await.unwrap();
        }
    );
    first.and(last).unwrap();
    assert_eq!(server.sql(FIELD_INDEXES).unwrap(), "0");
}

/// `CREATE INDEX CONCURRENTLY` that is broken off leaves an index that is there and is not used.
#[tokio::test]
async fn an_index_that_is_not_valid_is_told_of() {
    let server = PostgresServer::start().unwrap();
    let reopened = async || {
        let warnings = Warnings::default();
        let store = open_heard(connect(&server.url()).await, Arc::clone(&warnings))
            .await
            .unwrap();
        store
            .set_options("hex".to_owned(), with_fields(&["value"]))
            .await
            .unwrap();
        let warnings = warnings.lock().unwrap();
        warnings.clone()
    };
    assert_eq!(reopened().await, [""; 0]);
    let indexes = "SELECT indexname FROM pg_indexes WHERE tablename = 'records' \
        AND (indexname LIKE 'host\\_%' OR indexname = 'idx_records_type_modified_at') ORDER BY 1";
    let names = server.sql(indexes).unwrap();
    assert_eq!(names.lines().count(), 4);
    server
        .sql("UPDATE pg_index SET indisvalid = false WHERE indrelid = 'pomerium.records'::regclass")
        .unwrap();
    let told = reopened().await;
    assert_eq!(told.len(), 4, "{told:?}");
    for (name, told) in names.lines().zip(told) {
        assert!(
            told.contains(&format!("DROP INDEX CONCURRENTLY pomerium.{name},")),
            "{told}"
        );
    }
    assert_eq!(server.sql(indexes).unwrap(), names, "somebody may be making them");
    // What it says to do helps.
    for name in names.lines().filter(|name| name.starts_with("host_")) {
        server.sql(&format!("DROP INDEX CONCURRENTLY pomerium.{name}")).unwrap();
    }
    assert_eq!(reopened().await.len(), 1);
    assert_eq!(server.sql(indexes).unwrap(), names);
}

/// What is gone is told by where the log begins, so that it may have no hole.
#[tokio::test]
async fn old_changes_go_up_to_one_that_somebody_holds() {
    let server = PostgresServer::start().unwrap();
    let store = open(&server).await;
    put(&store, ["a", "b", "c", "d"].map(|id| upsert("t", id, b"1")).into())
        .await
        .unwrap();
    let pool = connect(&server.url()).await;
    // Before somebody writes: what is not known to be all there is waited for.
    assert_eq!(changes(&store, 0).await.unwrap().len(), 4);
    let mut cleaner = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
    cleaner
        .run(&statement("DELETE FROM pomerium.record_changes WHERE version = 2", &[]))
        .await
        .unwrap();
    let pruned = store.prune(i64::MAX, 9).await.unwrap();
    assert_eq!((pruned.removed, pruned.position.earliest_version), (1, 2));
    let left = async || {
        let changes = changes(&store, 1).await.unwrap();
        changes.into_iter().map(|(version, ..)| version).collect::<Vec<_>>()
    };
    assert_eq!(left().await, [2, 3, 4]);
    let pruned = store.prune(i64::MAX, 9).await.unwrap();
    assert_eq!((pruned.removed, pruned.more), (0, false), "it does not go on at once");
    drop(cleaner);
    // Whoever has given up lets go a moment later.
    let held =
        "SELECT 1 FROM pg_locks WHERE relation = 'pomerium.record_changes'::regclass AND mode = 'RowExclusiveLock'";
    while !pool.run(&statement(held, &[]), WAIT).await.unwrap().rows.is_empty() {}
    assert_eq!(left().await, [2, 3, 4]);
    assert_eq!(store.prune(i64::MAX, 9).await.unwrap().removed, 2);
    assert_eq!(changes(&store, 1).await, Err(Error::Pruned(3)));
}

/// Pomerium makes its tables in one transaction, and takes no lock that a host knows.
#[tokio::test]
async fn a_host_starts_while_pomerium_makes_its_tables() {
    let server = PostgresServer::start().unwrap();
    // Theirs, with a version of their own.
    drop(open(&server).await);
    server
        .sql(
            "UPDATE pomerium.migration_info SET server_version = 5; DROP TABLE pomerium.host_exact, pomerium.host_state; \
             ALTER SCHEMA pomerium RENAME TO theirs",
        )
        .unwrap();
    let pool = connect(&server.url()).await;
    for begin in [
        // The schema and the tables.
        "ALTER SCHEMA theirs RENAME TO pomerium",
        // The tables, in a schema that an administrator has made before.
        "ALTER TABLE theirs.migration_info SET SCHEMA pomerium",
    ] {
        let mut pomerium = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
        pomerium.run(&statement(begin, &[])).await.unwrap();
        let (opened, ()) = tokio::join!(try_open(&server), async {
            let waiting = "SELECT 1 FROM pg_locks WHERE NOT granted";
            let begun = tokio::time::Instant::now();
            while pool.run(&statement(waiting, &[]), WAIT).await.unwrap().rows.is_empty() {
                assert!(begun.elapsed() < WAIT, "the host does not make what Pomerium makes");
            }
            for table in [
                "records",
                "record_changes",
                "record_options",
                "leases",
                "services",
                "checkpoints",
            ] {
                let rest = format!("ALTER TABLE IF EXISTS theirs.{table} SET SCHEMA pomerium");
                pomerium.run(&statement(&rest, &[])).await.unwrap();
            }
            pomerium.commit().await.unwrap();
        });
        let store = opened.unwrap();
        let written = store.put(vec![vec![upsert("t", "a", b"1")]], NOW).await.unwrap();
        assert_eq!(written.server_version, 5, "{begin}");
        drop(store);
        server
            .sql(
                "DROP TABLE pomerium.host_exact, pomerium.host_state; DROP SCHEMA IF EXISTS theirs CASCADE; \
                 ALTER SCHEMA pomerium RENAME TO theirs; CREATE SCHEMA pomerium",
            )
            .unwrap();
    }
}
