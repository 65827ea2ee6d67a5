//! A plugin for tests. When its store is opened it does what the lines of its setting `script` say, each one question to the
//! host's `sql`, and fails with what came of them. It has no store.

use std::pin::pin;

use bindings::databroker::storage::types::{Duration, Error, Key, Position, Record, Timestamp};
use bindings::databroker::storage::{config, sql};
use bindings::exports::databroker::storage::store::{
    Change, ChangesPage, ChangesRequest, Checkpoint, EvictRequest, Evicted, Guest, LeaseRequest, Observed, Options,
    Pruned, PutResult, ScanPage, ScanRequest, Service, Settings, Statistics, StoreInfo, TypedOptions,
};
use futures::future::{Either, join_all, select};

mod bindings {
    wit_bindgen::generate!({ path: "../../wit/storage-0.1.0", world: "sql-backend" });
    export!(Probe with_types_in self);
    use super::Probe;
}

struct Probe;

/// What a line may use.
struct Asked {
    /// In milliseconds.
    timeout: u64,
    max_rows: u32,
    max_bytes: u64,
    transaction: Option<sql::Transaction>,
}

const MILLISECOND: Duration = 1_000_000;

impl Asked {
    fn statement(&self, text: &str, parameters: Vec<sql::Value>) -> sql::Statement {
        sql::Statement {
            text: text.to_owned(),
            parameters,
            max_rows: self.max_rows,
            max_bytes: self.max_bytes,
            timeout: self.timeout * MILLISECOND,
        }
    }

    /// Does what a line says, and says what came of it.
    async fn ask(&mut self, line: &str) -> Result<String, sql::Error> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let number = || rest.parse().unwrap_or_default();
        match verb {
            "connect" => {
                let database = sql::connect().await?;
                return Ok(format!("{} pooled={}", database.summary, database.pooled));
            }
            "timeout" => self.timeout = number(),
            "rows" => self.max_rows = u32::try_from(number()).unwrap_or(u32::MAX),
            "bytes" => self.max_bytes = number(),
            "run" => {
                let statement = self.statement(rest, Vec::new());
                let rows = match &self.transaction {
                    Some(transaction) => transaction.run(statement).await?,
                    None => sql::run(statement).await?,
                };
                return Ok(format!("{} rows", rows.rows.len()));
            }
            // With a parameter of so many bytes.
            "send" => {
                let bytes = vec![0; usize::try_from(number()).unwrap_or_default()];
                let statement = self.statement("SELECT octet_length($1)", vec![sql::Value::Bytes(bytes)]);
                sql::run(statement).await?;
            }
            // With a text of so many bytes and some.
            "write" => {
                let text = format!(
                    "SELECT 1 /*{}*/",
                    "x".repeat(usize::try_from(number()).unwrap_or_default())
                );
                let rows = sql::run(self.statement(&text, Vec::new())).await?;
                return Ok(format!("{} rows", rows.rows.len()));
            }
            // So many at once, each with a parameter that counts as so many bytes and takes few here.
            "crowd" => {
                let (count, bytes) = rest.split_once(' ').unwrap_or_default();
                let count: usize = count.parse().unwrap_or_default();
                let items = vec![None; bytes.parse().unwrap_or(0) / 32];
                let asking = (0..count).map(|_| {
                    let parameters = vec![sql::Value::Booleans(items.clone())];
                    sql::run(self.statement("SELECT cardinality($1), pg_sleep(0.5)", parameters))
                });
                let answers = join_all(asking).await;
                let answered = answers.iter().filter(|answer| answer.is_ok()).count();
                for answer in answers {
                    answer?;
                }
                return Ok(format!("{answered} of {count}"));
            }
            // Given up before there is an answer.
            "drop" => {
                let running = pin!(sql::run(self.statement(rest, Vec::new())));
                let clock = sql::Listener::new(&[]);
                let waiting = pin!(clock.wait(300 * MILLISECOND));
                if let Either::Left(_) = select(running, waiting).await {
                    return Ok("answered".to_owned());
                }
            }
            "begin" => self.transaction = Some(sql::begin(sql::Isolation::ReadCommitted, false).await?),
            "commit" => {
                if let Some(transaction) = self.transaction.take() {
                    transaction.commit().await?;
                }
            }
            "forget" => self.transaction = None,
            "trap" => panic!("as it was told"),
            _ => return Ok("no such verb".to_owned()),
        }
        Ok("done".to_owned())
    }
}

/// The kind of an error, and how its message begins.
fn kind(error: sql::Error) -> String {
    let (kind, failure) = match error {
        sql::Error::Settings(failure) => ("settings", failure),
        sql::Error::Unreachable(failure) => ("unreachable", failure),
        sql::Error::FailingOver(failure) => ("failing-over", failure),
        sql::Error::ReadOnly(failure) => ("read-only", failure),
        sql::Error::OutOfConnections(failure) => ("out-of-connections", failure),
        sql::Error::Conflict(failure) => ("conflict", failure),
        sql::Error::Full(failure) => ("full", failure),
        sql::Error::Timeout(failure) => ("timeout", failure),
        sql::Error::TooLarge(failure) => ("too-large", failure),
        sql::Error::Statement(failure) => ("statement", failure),
    };
    format!("{kind}: {}", failure.message)
}

type Answer<T> = Result<T, Error>;

fn none<T>() -> Answer<T> {
    Err(Error::Internal("there is no store".to_owned()))
}

impl Guest for Probe {
    async fn open(settings: Settings) -> Answer<StoreInfo> {
        let mut asked = Asked {
            timeout: 10_000,
            max_rows: 1000,
            max_bytes: 1 << 20,
            transaction: None,
        };
        let mut outcomes = Vec::new();
        // It is never shown where its database is.
        outcomes.extend(settings.connection_string);
        for line in config::get_setting("script").unwrap_or_default().lines() {
            outcomes.push(asked.ask(line).await.unwrap_or_else(kind));
        }
        Err(Error::Configuration(outcomes.join(" | ")))
    }

    async fn close() -> Answer<()> {
        none()
    }

    async fn health() -> Answer<()> {
        none()
    }

    async fn put(_: Vec<Vec<Change>>, _: Timestamp) -> Answer<PutResult> {
        none()
    }

    async fn get(_: Vec<Key>) -> Answer<Vec<Option<Record>>> {
        none()
    }

    async fn scan(_: ScanRequest) -> Answer<ScanPage> {
        none()
    }

    async fn count(_: Option<String>) -> Answer<u64> {
        none()
    }

    async fn list_types() -> Answer<Vec<String>> {
        none()
    }

    async fn current() -> Answer<Position> {
        none()
    }

    async fn changes(_: ChangesRequest) -> Answer<ChangesPage> {
        none()
    }

    async fn wait(_: Observed) -> Answer<Observed> {
        none()
    }

    async fn list_options() -> Answer<Vec<TypedOptions>> {
        none()
    }

    async fn set_options(_: String, _: Option<Options>) -> Answer<()> {
        none()
    }

    async fn lease(_: Vec<LeaseRequest>, _: Timestamp) -> Answer<Vec<bool>> {
        none()
    }

    async fn get_checkpoint() -> Answer<Checkpoint> {
        none()
    }

    async fn set_checkpoint(_: Checkpoint) -> Answer<()> {
        none()
    }

    async fn report_services(_: Vec<Service>, _: Duration, _: Timestamp) -> Answer<()> {
        none()
    }

    async fn list_services(_: Timestamp) -> Answer<Vec<Service>> {
        none()
    }

    async fn prune(_: Timestamp, _: u32) -> Answer<Pruned> {
        none()
    }

    async fn evict(_: EvictRequest, _: Timestamp) -> Answer<Evicted> {
        none()
    }

    async fn clear(_: u64) -> Answer<Position> {
        none()
    }

    async fn measure() -> Answer<Statistics> {
        none()
    }
}
