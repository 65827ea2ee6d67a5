//! What a line has the host run in its database.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::future::{Either, select, try_join_all};

use crate::bindings::databroker::storage::sql;
use crate::bindings::databroker::storage::types::Duration;

/// What a statement may use, and the transaction that it is in.
pub struct Database {
    /// In milliseconds.
    timeout: u64,
    max_rows: u32,
    max_bytes: u64,
    transaction: Option<sql::Transaction>,
}

const MILLISECOND: Duration = 1_000_000;

impl Default for Database {
    fn default() -> Self {
        Self {
            timeout: 10_000,
            max_rows: 1000,
            max_bytes: 1 << 20,
            transaction: None,
        }
    }
}

impl Database {
    fn statement(&self, text: &str, parameters: Vec<sql::Value>) -> sql::Statement {
        sql::Statement {
            text: text.to_owned(),
            parameters,
            max_rows: self.max_rows,
            max_bytes: self.max_bytes,
            timeout: self.timeout * MILLISECOND,
        }
    }

    /// Does what a line says, and says what came of it; none where the line is about something else.
    pub async fn ask(&mut self, verb: &str, rest: &str) -> Option<String> {
        self.answer(verb, rest).await.unwrap_or_else(|error| Some(kind(error)))
    }

    async fn answer(&mut self, verb: &str, rest: &str) -> Result<Option<String>, sql::Error> {
        let number = || rest.parse().unwrap_or_default();
        match verb {
            "database" => {
                let database = sql::connect().await?;
                return said(format!("{} pooled={}", database.summary, database.pooled));
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
                return said(format!("{} rows", rows.rows.len()));
            }
            // With a parameter of so many bytes.
            "send" => {
                let bytes = vec![0; usize::try_from(number()).unwrap_or_default()];
                let statement = self.statement("SELECT octet_length($1)", vec![sql::Value::Bytes(bytes)]);
                sql::run(statement).await?;
            }
            // With so many parameters.
            "parameters" => {
                let count = usize::try_from(number()).unwrap_or_default();
                let places: Vec<_> = (1..=count).map(|place| format!("${place}::bool")).collect();
                let text = format!("SELECT num_nulls({})", places.join(","));
                sql::run(self.statement(&text, vec![sql::Value::Null; count])).await?;
            }
            // With a text of so many bytes and some.
            "text" => {
                let text = format!(
                    "SELECT 1 /*{}*/",
                    "x".repeat(usize::try_from(number()).unwrap_or_default())
                );
                let rows = sql::run(self.statement(&text, Vec::new())).await?;
                return said(format!("{} rows", rows.rows.len()));
            }
            // So many at once, each with a parameter that counts as so many bytes and takes few here, and each for so many
            // seconds. Where one fails, the others are given up.
            "crowd" => {
                let mut numbers = rest
                    .split(' ')
                    .map(|number| number.parse::<usize>().unwrap_or_default());
                let mut next = || numbers.next().unwrap_or_default();
                let (count, bytes, seconds) = (next(), next(), next());
                let items = vec![None; bytes / 32];
                let text = format!("SELECT cardinality($1), pg_sleep({seconds})");
                let asking =
                    (0..count).map(|_| sql::run(self.statement(&text, vec![sql::Value::Booleans(items.clone())])));
                let answers = try_join_all(asking).await?;
                return said(format!("{} of {count}", answers.len()));
            }
            // So many at once, each with an answer of so many bytes; then it computes for so many seconds, and only then takes the
            // answers. Says how many had run by then.
            "hoard" => {
                let mut numbers = rest.split(' ').map(|number| number.parse::<u64>().unwrap_or_default());
                let mut next = || numbers.next().unwrap_or_default();
                let (count, bytes, seconds) = (next(), next(), next());
                let text = format!("SELECT repeat('x', {bytes}), clock_timestamp()");
                let asking = (0..count).map(|_| sql::run(self.statement(&text, Vec::new())));
                let mut asking = pin!(try_join_all(asking));
                let end = SystemTime::now() + std::time::Duration::from_secs(seconds);
                let begun = poll_fn(|context| Poll::Ready(asking.as_mut().poll(context))).await;
                if begun.is_ready() {
                    return said("answered".to_owned());
                }
                while SystemTime::now() < end {}
                let end = end.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
                let answers = asking.await?;
                let rows = answers.iter().flat_map(|answer| &answer.rows).flatten();
                let ran =
                    rows.filter(|value| matches!(value, sql::Value::Timestamp(at) if i128::from(*at) <= end as i128));
                return said(format!("{} ran", ran.count()));
            }
            // A listener with so many channels, each with a name of so many bytes.
            "channels" => {
                let (count, bytes) = rest.split_once(' ').unwrap_or_default();
                let name = "x".repeat(bytes.parse().unwrap_or_default());
                drop(sql::Listener::new(&vec![name; count.parse().unwrap_or_default()]));
            }
            // Given up before there is an answer.
            "drop" => {
                let running = pin!(sql::run(self.statement(rest, Vec::new())));
                let clock = sql::Listener::new(&[]);
                let waiting = pin!(clock.wait(300 * MILLISECOND));
                if let Either::Left(_) = select(running, waiting).await {
                    return said("answered".to_owned());
                }
            }
            "begin" => self.transaction = Some(sql::begin(sql::Isolation::ReadCommitted, false).await?),
            "commit" => {
                if let Some(transaction) = self.transaction.take() {
                    transaction.commit().await?;
                }
            }
            "forget" => self.transaction = None,
            _ => return Ok(None),
        }
        said("done".to_owned())
    }
}

fn said(text: String) -> Result<Option<String>, sql::Error> {
    Ok(Some(text))
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
