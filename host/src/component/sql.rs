//! The `sql` import: a plugin's statements, run by the host's pool.
//!
//! A plugin that imports it is not shown the operator's connection string; the host takes that as the database's. All
//! instances of a plugin share the pool, and each has its own transactions and listeners, which end with it.
//!
//! A transaction runs one statement at a time; what a plugin asks for meanwhile waits. Dropping a call drops the future here,
//! and with it whatever the database still works on.
//!
//! A plugin that computes is handed no answers, while the database goes on with what it was asked. So of answers there is no more
//! than some room, and one for each connection: where that room is taken, a connection is kept with the answer that it gave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use databroker_sql::{
    Error, ErrorKind, Isolation, Listener, Rows, Statement, Transaction, TransactionOptions, Value, Wake,
};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use wasmtime::component::{Accessor, HasSelf, Resource};

use super::Limits;
use super::bindings::sql;
use super::database::Database;
use super::grants::Refused;
use super::state::State;

/// The import's name, without its version.
pub(super) const IMPORT: &str = "databroker:storage/sql";

/// Most rows of an answer, most bytes of it, and of the parameters of a statement. A value counts more here than it takes in a
/// message of the server's, so that no answer within these bounds has a message with more bytes.
const MAX_ROWS: u32 = 1_000_000;
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Most parameters of a statement: the protocol counts them with two bytes.
const MAX_PARAMETERS: usize = 65_535;

/// Most bytes of a statement's text.
const MAX_TEXT: usize = 1 << 20;

/// Most bytes of all statements of an instance that have no answer yet: they may wait for a connection for minutes.
const MAX_WAITING: u64 = 256 << 20;

/// Most bytes of all answers to an instance that it was not handed yet, beside one for each connection.
const MAX_ANSWERS: u64 = 128 << 20;

/// Most channels of a listener, and most bytes of the name of each, which are Postgres'.
const MAX_CHANNELS: usize = 64;
const MAX_CHANNEL: usize = 63;

/// The longest that a statement may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the beginning of a transaction waits for a connection.
const BEGIN_WAIT: Duration = Duration::from_secs(30);

/// What an instance has of it.
pub(super) struct Sql {
    /// None where the plugin is granted no database.
    database: Option<Arc<Database>>,
    limits: Limits,
    /// How many listeners there are.
    listeners: usize,
    /// As many more transactions as there may be.
    transactions: Arc<Semaphore>,
    /// Bytes of statements that have no answer yet.
    waiting: Arc<AtomicU64>,
    answers: Answers,
}

impl Sql {
    pub(super) fn new(database: Option<Arc<Database>>, limits: Limits) -> Self {
        Self {
            database,
            limits,
            listeners: 0,
            transactions: Arc::new(Semaphore::new(limits.transactions.min(Semaphore::MAX_PERMITS))),
            waiting: Arc::default(),
            answers: Answers::new(),
        }
    }
}

/// The room for answers that an instance was not handed yet.
#[derive(Clone)]
struct Answers(Arc<Semaphore>);

impl Answers {
    /// What a permit stands for, in bytes.
    const UNIT: u64 = 1 << 10;

    fn new() -> Self {
        Self(Arc::new(Semaphore::new(Self::units(MAX_ANSWERS) as usize)))
    }

    fn units(bytes: u64) -> u32 {
        u32::try_from(bytes.min(MAX_ANSWERS).div_ceil(Self::UNIT)).unwrap_or(u32::MAX)
    }

    /// Room for an answer of so many bytes, once there is some; it is given back when it is dropped.
    async fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        // Nothing closes the semaphore.
        Arc::clone(&self.0).acquire_many_owned(Self::units(bytes)).await.ok()
    }
}

/// The bytes of a statement, which count until this is dropped.
struct Waiting {
    all: Arc<AtomicU64>,
    bytes: u64,
}

impl Waiting {
    fn new(all: Arc<AtomicU64>, bytes: u64) -> Result<Self, sql::Error> {
        // Taken back when it is dropped, whether or not it is too much.
        let before = all.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Self { all, bytes };
        if before.saturating_add(bytes) <= MAX_WAITING {
            return Ok(waiting);
        }
        Err(sql::Error::OutOfConnections(failure(&format!(
            "the statements that wait for the database hold more than {} MiB: it is slow, or away",
            MAX_WAITING >> 20
        ))))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A transaction that a call works on, and its place among those that there may be; none once it has ended.
type Shared = Arc<Mutex<Option<(Transaction, OwnedSemaphorePermit)>>>;

/// A transaction in a plugin's hands.
pub struct OpenTransaction {
    transaction: Shared,
    database: Arc<Database>,
}

/// A listener in a plugin's hands.
pub struct OpenListener {
    /// Shared by the calls that wait.
    channels: Arc<[String]>,
    /// None until it is first waited for.
    listener: Arc<Mutex<Option<Listener>>>,
}

type Answer<T> = wasmtime::Result<Result<T, sql::Error>>;

/// Works in a task of its own, which ends where its future is dropped: an answer of a million rows is not to keep the instance
/// from its other calls while it is read.
async fn apart<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> wasmtime::Result<T> {
    let mut task = JoinSet::new();
    task.spawn(work);
    let done = task.join_next().await;
    Ok(done.ok_or_else(|| wasmtime::format_err!("a statement was lost"))??)
}

/// The database; where there is none, that is told.
fn database<T: Send>(accessor: &Accessor<T, HasSelf<State>>) -> Result<Arc<Database>, sql::Error> {
    accessor.with(|mut access| {
        let state = access.get();
        state.sql.database.clone().ok_or_else(|| {
            let remedy = || "DATABROKER_STORAGE_CONNECTION_STRING=postgres://USER:PASSWORD@HOST/DATABASE".to_owned();
            let refusals = &state.granted.refusals;
            refusals.refuse(Refused::Database, "a database of Postgres", remedy);
            sql::Error::Settings(failure(
                "the plugin is granted no database: set DATABROKER_STORAGE_CONNECTION_STRING to one of Postgres",
            ))
        })
    })
}

/// The place of one more transaction; where there is none, that is told.
fn place<T: Send>(accessor: &Accessor<T, HasSelf<State>>) -> Result<OwnedSemaphorePermit, sql::Error> {
    accessor.with(|mut access| {
        let state = access.get();
        Arc::clone(&state.sql.transactions).try_acquire_owned().map_err(|_| {
            let most = state.sql.limits.transactions;
            let asked = format!("one more transaction than the {most} that it may have open");
            state.granted.refusals.refuse(Refused::Open, &asked, || {
                "a higher DATABROKER_PLUGIN_TRANSACTIONS, where it does not merely leak them".to_owned()
            });
            sql::Error::OutOfConnections(failure(&format!(
                "the plugin has {most} transactions open, and may not have more"
            )))
        })
    })
}

/// What the host says itself, and not the server.
fn failure(message: &str) -> sql::Failure {
    sql::Failure {
        code: None,
        message: message.to_owned(),
    }
}

/// The bytes of an instance's statements that have no answer yet.
fn waiting<T: Send>(accessor: &Accessor<T, HasSelf<State>>) -> Arc<AtomicU64> {
    accessor.with(|mut access| Arc::clone(&access.get().sql.waiting))
}

/// The room for an instance's answers.
fn answers<T: Send>(accessor: &Accessor<T, HasSelf<State>>) -> Answers {
    accessor.with(|mut access| access.get().sql.answers.clone())
}

/// What comes of a statement, with the room that its rows take until the plugin has them.
type Roomed = Result<(sql::Rows, Option<OwnedSemaphorePermit>), sql::Error>;

/// Hands it over.
fn hand_over(outcome: Roomed) -> Result<sql::Rows, sql::Error> {
    outcome.map(|(rows, _room)| rows)
}

impl sql::Host for State {}

impl<T: Send> sql::HostWithStore<T> for HasSelf<State> {
    async fn connect(accessor: &Accessor<T, Self>) -> Answer<sql::Database> {
        let database = match database(accessor) {
            Ok(database) => database,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match database.ask(database.pool(MAX_TIMEOUT)).await {
            Ok(pool) => Ok(sql::Database {
                summary: database.summary(),
                pooled: pool.is_bounced(),
            }),
            Err(error) => Err(to_error(error)),
        })
    }

    async fn run(accessor: &Accessor<T, Self>, statement: sql::Statement) -> Answer<sql::Rows> {
        let asked = database(accessor).and_then(|database| Ok((database, Asked::new(statement, waiting(accessor))?)));
        let (database, asked) = match asked {
            Ok(asked) => asked,
            Err(error) => return Ok(Err(error)),
        };
        let answers = answers(accessor);
        let outcome = apart(async move {
            let running = async {
                let began = Instant::now();
                let pool = database.pool(asked.bounds.timeout).await?;
                let left = asked.bounds.timeout.saturating_sub(began.elapsed());
                pool.run_and_hold(&asked.statement(), left).await
            };
            let (rows, held) = database.ask(running).await.map_err(to_error)?;
            let room = answers.room(rows.bytes).await;
            drop(held);
            Ok((to_rows(rows), room))
        });
        Ok(hand_over(outcome.await?))
    }

    async fn begin(
        accessor: &Accessor<T, Self>,
        isolation: sql::Isolation,
        read_only: bool,
    ) -> Answer<Resource<OpenTransaction>> {
        let options = TransactionOptions {
            isolation: match isolation {
                sql::Isolation::ReadCommitted => Isolation::ReadCommitted,
                sql::Isolation::RepeatableRead => Isolation::RepeatableRead,
                sql::Isolation::Serializable => Isolation::Serializable,
            },
            read_only,
        };
        let beginning = async {
            let database = database(accessor)?;
            // Before it waits for a connection: what waits is held here too.
            let place = place(accessor)?;
            let beginning = async { database.pool(BEGIN_WAIT).await?.begin(&options, BEGIN_WAIT).await };
            let transaction = database.ask(beginning).await.map_err(to_error)?;
            Ok(OpenTransaction {
                transaction: Arc::new(Mutex::new(Some((transaction, place)))),
                database,
            })
        };
        match beginning.await {
            Ok(open) => {
                let handle = accessor.with(|mut access| access.get().table.push(open))?;
                Ok(Ok(handle))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

/// The transaction behind a handle, and its database.
fn transaction<T: Send>(
    accessor: &Accessor<T, HasSelf<State>>,
    handle: &Resource<OpenTransaction>,
) -> wasmtime::Result<(Shared, Arc<Database>)> {
    accessor.with(|mut access| {
        let open = access.get().table.get(handle)?;
        Ok((Arc::clone(&open.transaction), Arc::clone(&open.database)))
    })
}

fn ended() -> sql::Error {
    sql::Error::Statement(failure("the transaction has ended: begin another one"))
}

impl<T: Send> sql::HostTransactionWithStore<T> for HasSelf<State> {
    async fn run(
        accessor: &Accessor<T, Self>,
        handle: Resource<OpenTransaction>,
        statement: sql::Statement,
    ) -> Answer<sql::Rows> {
        let (transaction, database) = transaction(accessor, &handle)?;
        let asked = match Asked::new(statement, waiting(accessor)) {
            Ok(asked) => asked,
            Err(error) => return Ok(Err(error)),
        };
        // In the order of the calls.
        let mut open = transaction.lock_owned().await;
        let answers = answers(accessor);
        let outcome = apart(async move {
            let (transaction, _) = open.as_mut().ok_or_else(ended)?;
            let statement = asked.statement();
            let rows = database.ask(transaction.run(&statement)).await.map_err(to_error)?;
            // The transaction is kept meanwhile, and its connection with it.
            let room = answers.room(rows.bytes).await;
            Ok((to_rows(rows), room))
        });
        Ok(hand_over(outcome.await?))
    }

    async fn commit(accessor: &Accessor<T, Self>, handle: Resource<OpenTransaction>) -> Answer<()> {
        let (transaction, database) = transaction(accessor, &handle)?;
        let transaction = transaction.lock().await.take();
        Ok(match transaction {
            Some((transaction, _place)) => database.ask(transaction.commit()).await.map_err(to_error),
            None => Err(ended()),
        })
    }

    async fn rollback(accessor: &Accessor<T, Self>, handle: Resource<OpenTransaction>) -> Answer<()> {
        let (transaction, database) = transaction(accessor, &handle)?;
        let transaction = transaction.lock().await.take();
        Ok(match transaction {
            Some((transaction, _place)) => database.ask(transaction.rollback()).await.map_err(to_error),
            None => Err(ended()),
        })
    }
}

impl sql::HostTransaction for State {
    fn drop(&mut self, handle: Resource<OpenTransaction>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        Ok(())
    }
}

impl<T: Send> sql::HostListenerWithStore<T> for HasSelf<State> {
    async fn wait(
        accessor: &Accessor<T, Self>,
        handle: Resource<OpenListener>,
        longest: u64,
    ) -> wasmtime::Result<sql::Wake> {
        let longest = Duration::from_nanos(longest).min(MAX_TIMEOUT);
        let (channels, listener) = accessor.with(|mut access| -> wasmtime::Result<_> {
            let open = access.get().table.get(&handle)?;
            Ok((Arc::clone(&open.channels), Arc::clone(&open.listener)))
        })?;
        if channels.is_empty() {
            tokio::time::sleep(longest).await;
            return Ok(sql::Wake::Elapsed);
        }
        let end = Instant::now() + longest;
        let waiting = async {
            let mut listener = listener.lock().await;
            if listener.is_none() {
                let database = database(accessor).ok()?;
                // A failure is told and counted there.
                let opening = database.ask(database.pool(MAX_TIMEOUT));
                let pool = timeout_at(end, opening).await.ok()?.ok()?;
                *listener = Some(pool.listen(channels.to_vec()));
            }
            Some(
                listener
                    .as_mut()?
                    .wait(end.saturating_duration_since(Instant::now()))
                    .await,
            )
        };
        Ok(match waiting.await {
            Some(Wake::Notified) => sql::Wake::Notified,
            Some(Wake::Missed) => sql::Wake::Missed,
            Some(Wake::Elapsed) => sql::Wake::Elapsed,
            None => {
                /// A plugin that asks again at once must not keep a processor busy.
                const PAUSE: Duration = Duration::from_millis(500);
                tokio::time::sleep_until(end.min(Instant::now() + PAUSE)).await;
                sql::Wake::Missed
            }
        })
    }
}

impl sql::HostListener for State {
    fn new(&mut self, channels: Vec<String>) -> wasmtime::Result<Resource<OpenListener>> {
        let most = self.sql.limits.listeners;
        if self.sql.listeners >= most {
            wasmtime::bail!("it wanted more than {most} listeners at once (DATABROKER_PLUGIN_LISTENERS)");
        }
        if channels.len() > MAX_CHANNELS || channels.iter().any(|channel| channel.len() > MAX_CHANNEL) {
            wasmtime::bail!(
                "a listener has {MAX_CHANNELS} channels at most, with names of {MAX_CHANNEL} bytes at most: it wanted more"
            );
        }
        self.sql.listeners += 1;
        Ok(self.table.push(OpenListener {
            channels: channels.into(),
            listener: Arc::default(),
        })?)
    }

    fn drop(&mut self, handle: Resource<OpenListener>) -> wasmtime::Result<()> {
        self.table.delete(handle)?;
        self.sql.listeners = self.sql.listeners.saturating_sub(1);
        Ok(())
    }
}

/// A statement within bounds.
struct Asked {
    text: String,
    parameters: Vec<Value>,
    /// Its bounds; text and parameters are empty here.
    bounds: Statement<'static>,
    /// Kept until it has its answer.
    _waiting: Waiting,
}

impl Asked {
    /// The statement, as the pool takes it.
    fn statement(&self) -> Statement<'_> {
        Statement {
            sql: &self.text,
            parameters: &self.parameters,
            ..self.bounds
        }
    }

    fn new(statement: sql::Statement, waiting: Arc<AtomicU64>) -> Result<Self, sql::Error> {
        let too_large = |message| Err(sql::Error::TooLarge(failure(message)));
        if statement.text.len() > MAX_TEXT {
            return too_large("the text of a statement is longer than it may be: what varies belongs in parameters");
        }
        if statement.parameters.len() > MAX_PARAMETERS {
            return too_large("a statement has more parameters than Postgres counts, 65535: send arrays");
        }
        let parameters: Vec<_> = statement.parameters.into_iter().map(to_value).collect();
        let bytes = parameters.iter().map(Value::size).fold(0_u64, u64::saturating_add);
        if bytes > MAX_BYTES {
            return too_large("the parameters of a statement are larger than they may be: send fewer at once");
        }
        let text = u64::try_from(statement.text.len()).unwrap_or(u64::MAX);
        let waiting = Waiting::new(waiting, bytes.saturating_add(text))?;
        Ok(Self {
            text: statement.text,
            parameters,
            bounds: Statement {
                sql: "",
                parameters: &[],
                max_rows: statement.max_rows.min(MAX_ROWS).into(),
                max_bytes: statement.max_bytes.min(MAX_BYTES),
                timeout: Duration::from_nanos(statement.timeout).min(MAX_TIMEOUT),
            },
            _waiting: waiting,
        })
    }
}

fn to_value(value: sql::Value) -> Value {
    match value {
        sql::Value::Null => Value::Null,
        sql::Value::Boolean(value) => Value::Boolean(value),
        sql::Value::Integer(value) => Value::Integer(value),
        sql::Value::Float(value) => Value::Float(value),
        sql::Value::Text(value) => Value::Text(value),
        sql::Value::Bytes(value) => Value::Bytes(value),
        sql::Value::Timestamp(value) => Value::Timestamp(value),
        sql::Value::Booleans(items) => Value::Booleans(items),
        sql::Value::Integers(items) => Value::Integers(items),
        sql::Value::Floats(items) => Value::Floats(items),
        sql::Value::Texts(items) => Value::Texts(items),
        sql::Value::ByteStrings(items) => Value::ByteStrings(items),
        sql::Value::Timestamps(items) => Value::Timestamps(items),
    }
}

fn from_value(value: Value) -> sql::Value {
    match value {
        Value::Null => sql::Value::Null,
        Value::Boolean(value) => sql::Value::Boolean(value),
        Value::Integer(value) => sql::Value::Integer(value),
        Value::Float(value) => sql::Value::Float(value),
        Value::Text(value) => sql::Value::Text(value),
        Value::Bytes(value) => sql::Value::Bytes(value),
        Value::Timestamp(value) => sql::Value::Timestamp(value),
        Value::Booleans(items) => sql::Value::Booleans(items),
        Value::Integers(items) => sql::Value::Integers(items),
        Value::Floats(items) => sql::Value::Floats(items),
        Value::Texts(items) => sql::Value::Texts(items),
        Value::ByteStrings(items) => sql::Value::ByteStrings(items),
        Value::Timestamps(items) => sql::Value::Timestamps(items),
    }
}

fn to_rows(rows: Rows) -> sql::Rows {
    let row = |row: Vec<Value>| row.into_iter().map(from_value).collect();
    sql::Rows {
        rows: rows.rows.into_iter().map(row).collect(),
        affected: rows.affected,
    }
}

fn to_error(error: Error) -> sql::Error {
    let failure = sql::Failure {
        code: error.code().map(str::to_owned),
        message: error.to_string(),
    };
    match error.kind() {
        ErrorKind::Settings => sql::Error::Settings(failure),
        ErrorKind::Unreachable => sql::Error::Unreachable(failure),
        ErrorKind::FailingOver => sql::Error::FailingOver(failure),
        ErrorKind::ReadOnly => sql::Error::ReadOnly(failure),
        ErrorKind::OutOfConnections => sql::Error::OutOfConnections(failure),
        ErrorKind::Conflict => sql::Error::Conflict(failure),
        ErrorKind::Full => sql::Error::Full(failure),
        ErrorKind::Timeout => sql::Error::Timeout(failure),
        ErrorKind::TooLarge => sql::Error::TooLarge(failure),
        _ => sql::Error::Statement(failure),
    }
}
