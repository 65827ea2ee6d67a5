//! The store as a whole, and why its calls fail.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use crate::database::{Data, Database, Failure, FailureKind, Query, Row, Session, Value};
use crate::functions::Functions;
use crate::horizon::GivenUp;
use crate::record::Key;
use crate::timeline::Seen;

/// How often a call is tried where transactions of others are in its way.
const TRIES: usize = 5;

/// What is said where somebody holds what a call needs.
pub(crate) const HELD: &str = "a transaction of somebody else's holds a record or a table that is needed, and goes on: try again \
    later; pg_locks and pg_stat_activity say who it is";

/// Why a call fails, as the interface tells it apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Wrong settings.
    Configuration(String),
    /// Not reachable, or of unknown outcome.
    Unavailable(String),
    /// No room.
    Exhausted(String),
    /// No writes at present.
    ReadOnly(String),
    /// The log no longer reaches back; this is the highest version that is gone.
    Pruned(u64),
    /// A fault of the plugin.
    Internal(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Configuration(text)
            | Self::Unavailable(text)
            | Self::Exhausted(text)
            | Self::ReadOnly(text)
            | Self::Internal(text) => formatter.write_str(text),
            Self::Pruned(version) => write!(formatter, "changes up to version {version} are gone"),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        if failure.is_of_a_lock() {
            return Self::Unavailable(HELD.to_owned());
        }
        let message = failure.message;
        match failure.kind {
            FailureKind::Settings => Self::Configuration(message),
            FailureKind::Unavailable | FailureKind::Conflict => Self::Unavailable(message),
            FailureKind::ReadOnly => Self::ReadOnly(message),
            FailureKind::Full | FailureKind::TooLarge => Self::Exhausted(message),
            // What the database says of a statement may hold a part of a record, and this reaches clients and the log.
            FailureKind::Other => Self::Internal(match failure.code {
                Some(code) => format!(
                    "the database refuses a statement (SQLSTATE {code}): the database's own log says more; {}",
                    match code.get(..2) {
                        Some("XX") => "its files may be damaged",
                        _ => "its schema may not be Pomerium's",
                    }
                ),
                None => message,
            }),
        }
    }
}

/// Pomerium's tables, and what this host knows of them.
pub struct Store<D, J> {
    pub(crate) database: D,
    pub(crate) data: J,
    /// Every change up to here is visible, or never will be.
    pub(crate) horizon: Cell<i64>,
    /// The newest change when everything was visible last.
    pub(crate) seen: Cell<Option<Seen>>,
    /// The highest version that this host has written.
    pub(crate) wrote: Cell<i64>,
    /// The newest change when it was looked last whether the database has lost any.
    pub(crate) sound_at: Cell<Option<i64>>,
    /// Whose writes are not waited for.
    pub(crate) given_up: RefCell<GivenUp>,
    /// When the change log was seen last without a change; none once it had one.
    pub(crate) empty_at: Cell<Option<Instant>>,
    /// Below the first change that came to the empty log no version was given to any.
    pub(crate) never_given: Cell<i64>,
    /// When it was looked last for what others have done.
    pub(crate) looked_at: Cell<Option<Instant>>,
    /// Exact bytes that nobody needs any more were looked for up to this version.
    pub(crate) swept: Cell<i64>,
    /// Records for whose sake batches of the last group were refused, with how many: each is about to come again alone.
    pub(crate) held: RefCell<HashMap<Key, usize>>,
    /// Types of which the operator was told that they have rows which are no records.
    pub(crate) told_of: RefCell<BTreeSet<String>>,
    /// True once the operator was told that clocks are far apart.
    pub(crate) told_of_clock: Cell<bool>,
    /// The sequence that versions come from.
    pub(crate) sequence: String,
    /// Our functions in the database.
    pub(crate) functions: Functions,
    /// The newest change when the store was opened.
    pub(crate) opened_at: Cell<u64>,
    /// True once a change was seen that is newer and that a process of Pomerium's has written. It stays so: nobody tells
    /// when the last of them has gone.
    pub(crate) has_company: Cell<bool>,
}

impl<D: Database, J: Data> Store<D, J> {
    /// A store of which nothing is known yet, on tables that are there.
    pub(crate) fn new(database: D, data: J, sequence: String, functions: Functions) -> Self {
        Self {
            database,
            data,
            horizon: Cell::new(0),
            seen: Cell::new(None),
            wrote: Cell::new(0),
            sound_at: Cell::new(None),
            given_up: RefCell::default(),
            empty_at: Cell::new(None),
            never_given: Cell::new(0),
            looked_at: Cell::new(None),
            swept: Cell::new(0),
            held: RefCell::default(),
            told_of: RefCell::default(),
            told_of_clock: Cell::new(false),
            sequence,
            functions,
            opened_at: Cell::new(u64::MAX),
            has_company: Cell::new(false),
        }
    }

    /// Runs a statement by itself.
    pub(crate) async fn run(&self, text: &str, parameters: Vec<Value>) -> Result<Vec<Row>, Error> {
        let call = async || Ok(self.database.run(Query::new(text, parameters.clone())).await?);
        self.retried(call).await
    }

    /// Tries again where transactions of others were in the way, which has changed nothing; and once where something of ours is
    /// not there any more, after it was made again.
    pub(crate) async fn retried<T>(&self, call: impl AsyncFn() -> Result<T, Failed>) -> Result<T, Error> {
        let mut tries = 1;
        let mut has_mended = false;
        loop {
            match call().await {
                Ok(result) => return Ok(result),
                Err(Failed::Database(failure)) if failure.kind == FailureKind::Conflict && tries < TRIES => tries += 1,
                Err(Failed::Database(failure)) if failure.is_of_what_is_missing() && !has_mended => {
                    self.mend().await?;
                    has_mended = true;
                }
                Err(Failed::Database(failure)) => return Err(failure.into()),
                Err(Failed::Store(error)) => return Err(error),
            }
        }
    }

    /// The first row of what a statement gives.
    pub(crate) async fn one(&self, text: &str, parameters: Vec<Value>) -> Result<Row, Error> {
        first(self.run(text, parameters).await?)
    }

    /// Begins a transaction that gives versions to changes: it has writing to itself, and keeps Pomerium's processes from it
    /// where there are any.
    pub(crate) async fn begin_changing(&self) -> Result<D::Transaction, Failure> {
        self.begin_locked(self.has_company.get()).await
    }

    /// Begins a transaction that has writing to itself, among hosts.
    pub(crate) async fn begin_writing(&self) -> Result<D::Transaction, Failure> {
        self.begin_locked(false).await
    }

    async fn begin_locked(&self, in_company: bool) -> Result<D::Transaction, Failure> {
        let transaction = self.database.begin().await?;
        // In a statement of its own: what comes after it sees what those before it have committed. Whoever holds the lock
        // keeps all hosts from writing. A host whose machine or network is gone tells nobody, so the server ends what waits
        // in vain for its next statement; between two statements a host does nothing that takes so long.
        let text = format!(
            "SELECT set_config('idle_in_transaction_session_timeout', '5s', true), pomerium.{}($1)",
            self.functions.lock
        );
        transaction
            .run(Query::new(text, vec![Value::Boolean(in_company)]))
            .await?;
        Ok(transaction)
    }

    /// Says whether the database answers, and has what calls need; what is gone of ours is made again.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if it does not, or has not; or if the role has lost its rights.
    pub async fn health(&self) -> Result<(), Error> {
        if self.lacks_something().await? {
            self.mend().await?;
        }
        self.check_rights().await
    }
}

pub(crate) fn first(rows: Vec<Row>) -> Result<Row, Error> {
    rows.into_iter().next().ok_or_else(no_row)
}

pub(crate) fn no_row() -> Error {
    Error::Internal("the database gives no row where there is always one: its schema is not Pomerium's".to_owned())
}

/// A version or another number, as Postgres has it.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A version or another number, as everybody else has it.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Why a try has failed: the database's own failures may be worth another.
pub(crate) enum Failed {
    Database(Failure),
    Store(Error),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Database(failure)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}
