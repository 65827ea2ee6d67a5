//! The database of a plugin: one pool for all of its instances, and what becomes of what is asked of it.
//!
//! A plugin tells its callers of a failure in its own words, and a call that was tried again tells nobody. So each failure is
//! counted and logged here, by its kind, which says what an operator can do about it. A line a minute for each kind says that
//! there is trouble; the metrics say how much.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use databroker_sql::{ConnectionString, ConnectionStringError, Environment, Error, ErrorKind, Pool};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::backend::DatabaseRuntime;
use crate::telemetry::metrics::{DURATIONS, Histogram};
use crate::telemetry::seldom::Seldom;

/// How often a kind of failure is told.
const INTERVAL: Duration = Duration::from_secs(60);

/// The kinds of failures.
const KINDS: [ErrorKind; 10] = [
    ErrorKind::Settings,
    ErrorKind::Unreachable,
    ErrorKind::FailingOver,
    ErrorKind::ReadOnly,
    ErrorKind::OutOfConnections,
    ErrorKind::Conflict,
    ErrorKind::Full,
    ErrorKind::Timeout,
    ErrorKind::TooLarge,
    ErrorKind::Statement,
];

/// A database that a plugin is granted.
pub(super) struct Database {
    settings: ConnectionString,
    /// Bytes of a message of the server's at most; none where the plugin's statements are trusted.
    largest_message: Option<u64>,
    /// Connected at the first use.
    pool: OnceCell<Pool>,
    /// The first connection on its way. Whoever waits for it may give up without ending it: a statement may wait for less
    /// than it takes until the second of two servers is asked.
    opening: tokio::sync::Mutex<Option<BoxFuture<'static, Result<Pool, Error>>>>,
    /// How long it took until something was done, or had failed.
    durations: Histogram,
    succeeded: AtomicU64,
    /// As [`KINDS`].
    failures: [Failures; KINDS.len()],
    /// True after a failure that has to do with the connection, until something succeeds.
    away: AtomicBool,
}

/// Failures of a kind.
#[derive(Debug, Default)]
struct Failures {
    count: AtomicU64,
    lines: Mutex<Seldom>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Database")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// How many connections at once a connection string allows; none where it is not one of a database.
pub(super) fn most_connections(connection_string: &str) -> usize {
    ConnectionString::parse(connection_string, &Environment::process()).map_or(0, |settings| {
        usize::try_from(settings.pool.max_connections).unwrap_or(usize::MAX)
    })
}

impl Database {
    /// Reads the connection string; connects to nothing. With a `largest_message`, no message of the server's that has more bytes is
    /// received.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without any of its secrets.
    pub(super) fn new(connection_string: &str, largest_message: Option<u64>) -> Result<Self, ConnectionStringError> {
        Ok(Self {
            settings: ConnectionString::parse(connection_string, &Environment::process())?,
            largest_message,
            pool: OnceCell::new(),
            opening: tokio::sync::Mutex::default(),
            durations: Histogram::new(DURATIONS),
            succeeded: AtomicU64::new(0),
            failures: Default::default(),
            away: AtomicBool::new(false),
        })
    }

    /// Leaves nothing of what a former instance has set, locked or begun in sessions of the database.
    pub(super) fn renew(&self) {
        if let Some(pool) = self.pool.get() {
            pool.renew();
        }
    }

    /// The pool, connected within `longest`.
    pub(super) async fn pool(&self, longest: Duration) -> Result<&Pool, Error> {
        let opening = self.pool.get_or_try_init(async || {
            let mut opening = self.opening.lock().await;
            let attempt = opening.get_or_insert_with(|| {
                let (settings, largest_message) = (self.settings.clone(), self.largest_message);
                Box::pin(async move {
                    match largest_message {
                        Some(largest_message) => Pool::guarded(settings, largest_message).await,
                        None => Pool::open(settings).await,
                    }
                })
            });
            let outcome = attempt.await;
            *opening = None;
            outcome
        });
        timeout(longest, opening).await.unwrap_or_else(|_| {
            let problem = format!("no server of Postgres answers within {} ms", longest.as_millis());
            Err(Error::new(ErrorKind::Unreachable, problem))
        })
    }

    /// One line for the operator.
    pub(super) fn summary(&self) -> String {
        let hosts: Vec<_> = self.settings.hosts.iter().map(ToString::to_string).collect();
        format!("postgres at {}, database {}", hosts.join(", "), self.settings.database)
    }

    /// Asks something of it: timed, counted, and told where it fails.
    pub(super) async fn ask<T>(&self, asking: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let began = Instant::now();
        let outcome = asking.await;
        self.durations.observe_duration(began.elapsed());
        match &outcome {
            Ok(_) => {
                self.succeeded.fetch_add(1, Ordering::Relaxed);
                if self.away.load(Ordering::Relaxed) && self.away.swap(false, Ordering::Relaxed) {
                    tracing::info!(database = self.summary(), "the database answers again");
                }
            }
            Err(error) => self.failed(error),
        }
        outcome
    }

    fn failed(&self, error: &Error) {
        let kind = error.kind();
        let place = KINDS.iter().position(|known| *known == kind);
        let Some(failures) = place.and_then(|place| self.failures.get(place)) else {
            return;
        };
        failures.count.fetch_add(1, Ordering::Relaxed);
        let Some(untold) = failures.lines.lock().turn(Instant::now(), INTERVAL) else {
            return;
        };
        // Only what was told has an end that is worth telling.
        if matches!(
            kind,
            ErrorKind::Unreachable | ErrorKind::FailingOver | ErrorKind::OutOfConnections
        ) {
            self.away.store(true, Ordering::Relaxed);
        }
        let (database, code) = (self.summary(), error.code());
        // What the server says of a statement may hold a part of a record.
        let error = (kind != ErrorKind::Statement).then(|| error.to_string());
        let kind = kind.name();
        if kind == ErrorKind::Conflict.name() {
            tracing::info!(
                database,
                kind,
                code,
                error,
                untold,
                "transactions were in each other's way"
            );
        } else {
            tracing::warn!(database, kind, code, error, untold, "the database has failed");
        }
    }

    /// What it has done, for metrics.
    pub(super) fn runtime(&self) -> DatabaseRuntime {
        let first = self.settings.hosts.first();
        let first = first.map_or_else(String::new, ToString::to_string);
        let ok = ("ok", self.succeeded.load(Ordering::Relaxed));
        let failed = KINDS
            .iter()
            .zip(&self.failures)
            .map(|(kind, failures)| (kind.name(), failures.count.load(Ordering::Relaxed)));
        DatabaseRuntime {
            name: format!("{first}/{}", self.settings.database),
            pool: self.pool.get().map(Pool::statistics),
            pooled: self.pool.get().is_some_and(Pool::is_bounced),
            read_only: self.pool.get().is_some_and(Pool::is_read_only),
            outcomes: std::iter::once(ok).chain(failed).collect(),
            durations: self.durations.read(),
        }
    }
}

/// Says what is wrong with a connection string for a database, without any of its secrets. Connects to nothing.
///
/// # Errors
///
/// What is wrong.
pub fn check_database(connection_string: &str) -> Result<(), String> {
    let parsed = ConnectionString::parse(connection_string, &Environment::process());
    parsed.map(drop).map_err(|error| error.to_string())
}

/// True for what is meant as a connection string of Postgres, right or wrong.
pub fn names_database(text: &str) -> bool {
    ["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| text.starts_with(scheme))
        || check_database(text).is_ok()
}
