//! The `sql` import: a plugin's statements, run by the host's pool.
//!
//! A plugin that imports it is not shown the operator's connection string; the host takes that as the database's. All
//! instances of a plugin share the pool, and each has its own transactions and listeners, which end with it.
//!
//! A transaction runs one statement at a time; what a plugin asks for meanwhile waits. Dropping a call drops the future here,
//! and with it whatever the database still works on.

use std::sync::Arc;
use std::time::Duration;

use databroker_sql::{
    ConnectionString, ConnectionStringError, Environment, Error, ErrorKind, Isolation, Listener, Pool, Rows, Statement,
    Transaction, TransactionOptions, Value, Wake,
};
use tokio::sync::{Mutex, OnceCell};
use wasmtime::component::{Accessor, HasSelf, Resource};

use super::bindings::sql;
use super::state::State;

/// The import's name, without its version.
pub(super) const IMPORT: &str = "databroker:storage/sql";

/// Most rows of an answer, most bytes of it, and of the parameters of a statement.
const MAX_ROWS: u32 = 1_000_000;
const MAX_BYTES: u64 = 64 << 20;

/// The longest that a statement may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the beginning of a transaction waits for a connection.
const BEGIN_WAIT: Duration = Duration::from_secs(30);

/// How many listeners an instance may have: each is a connection beside the pool.
const MAX_LISTENERS: usize = 8;

/// A database that a plugin is granted.
#[derive(Debug)]
pub(super) struct Database {
    settings: ConnectionString,
    /// Connected at the first use.
    pool: OnceCell<Pool>,
}

impl Database {
    /// Reads the connection string; connects to nothing.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without any of its secrets.
    pub(super) fn new(connection_string: &str) -> Result<Self, ConnectionStringError> {
        Ok(Self {
            settings: ConnectionString::parse(connection_string, &Environment::process())?,
            pool: OnceCell::new(),
        })
    }

    async fn pool(&self) -> Result<&Pool, Error> {
        self.pool.get_or_try_init(|| Pool::open(self.settings.clone())).await
    }

    fn summary(&self) -> String {
        let hosts: Vec<_> = self.settings.hosts.iter().map(ToString::to_string).collect();
        format!("postgres at {}, database {}", hosts.join(", "), self.settings.database)
    }
}

/// What an instance has of it.
#[derive(Default)]
pub(super) struct Sql {
    /// None where the plugin is granted no database.
    database: Option<Arc<Database>>,
    /// How many listeners there are.
    listeners: usize,
}

impl Sql {
    pub(super) fn new(database: Option<Arc<Database>>) -> Self {
        Self { database, listeners: 0 }
    }
}

/// A transaction in a plugin's hands; none once it has ended.
pub struct OpenTransaction(Arc<Mutex<Option<Transaction>>>);

/// A listener in a plugin's hands; none where there is no database.
pub struct OpenListener {
    channels: Vec<String>,
    /// None until it is first waited for.
    listener: Arc<Mutex<Option<Listener>>>,
}

type Answer<T> = wasmtime::Result<Result<T, sql::Error>>;

fn database<T: Send>(accessor: &Accessor<T, HasSelf<State>>) -> Result<Arc<Database>, sql::Error> {
    accessor.with(|mut access| {
        access.get().sql.database.clone().ok_or_else(|| {
            sql::Error::Settings(sql::Failure {
                code: None,
                message:
                    "the plugin is granted no database: set DATABROKER_STORAGE_CONNECTION_STRING to one of Postgres"
                        .to_owned(),
            })
        })
    })
}

impl sql::Host for State {}

impl<T: Send> sql::HostWithStore<T> for HasSelf<State> {
    async fn connect(accessor: &Accessor<T, Self>) -> Answer<sql::Database> {
        let database = match database(accessor) {
            Ok(database) => database,
            Err(error) => return Ok(Err(error)),
        };
        Ok(match database.pool().await {
            Ok(pool) => Ok(sql::Database {
                summary: database.summary(),
                pooled: pool.is_bounced(),
            }),
            Err(error) => Err(to_error(error)),
        })
    }

    async fn run(accessor: &Accessor<T, Self>, statement: sql::Statement) -> Answer<sql::Rows> {
        let running = async {
            let database = database(accessor)?;
            let Asked {
                text,
                parameters,
                bounds,
            } = Asked::new(statement)?;
            let statement = Statement {
                sql: &text,
                parameters: &parameters,
                ..bounds
            };
            let pool = database.pool().await.map_err(to_error)?;
            pool.run(&statement, bounds.timeout)
                .await
                .map(to_rows)
                .map_err(to_error)
        };
        Ok(running.await)
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
            let pool = database.pool().await.map_err(to_error)?;
            pool.begin(&options, BEGIN_WAIT).await.map_err(to_error)
        };
        match beginning.await {
            Ok(transaction) => {
                let open = OpenTransaction(Arc::new(Mutex::new(Some(transaction))));
                let handle = accessor.with(|mut access| access.get().table.push(open))?;
                Ok(Ok(handle))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

/// The transaction behind a handle.
fn transaction<T: Send>(
    accessor: &Accessor<T, HasSelf<State>>,
    handle: &Resource<OpenTransaction>,
) -> wasmtime::Result<Arc<Mutex<Option<Transaction>>>> {
    accessor.with(|mut access| Ok(Arc::clone(&access.get().table.get(handle)?.0)))
}

fn ended() -> sql::Error {
    sql::Error::Statement(sql::Failure {
        code: None,
        message: "the transaction has ended: begin another one".to_owned(),
    })
}

impl<T: Send> sql::HostTransactionWithStore<T> for HasSelf<State> {
    async fn run(
        accessor: &Accessor<T, Self>,
        handle: Resource<OpenTransaction>,
        statement: sql::Statement,
    ) -> Answer<sql::Rows> {
        let transaction = transaction(accessor, &handle)?;
        let Asked {
            text,
            parameters,
            bounds,
        } = match Asked::new(statement) {
            Ok(asked) => asked,
            Err(error) => return Ok(Err(error)),
        };
        let statement = Statement {
            sql: &text,
            parameters: &parameters,
            ..bounds
        };
        let mut transaction = transaction.lock().await;
        Ok(match transaction.as_mut() {
            Some(transaction) => transaction.run(&statement).await.map(to_rows).map_err(to_error),
            None => Err(ended()),
        })
    }

    async fn commit(accessor: &Accessor<T, Self>, handle: Resource<OpenTransaction>) -> Answer<()> {
        let transaction = transaction(accessor, &handle)?.lock().await.take();
        Ok(match transaction {
            Some(transaction) => transaction.commit().await.map_err(to_error),
            None => Err(ended()),
        })
    }

    async fn rollback(accessor: &Accessor<T, Self>, handle: Resource<OpenTransaction>) -> Answer<()> {
        let transaction = transaction(accessor, &handle)?.lock().await.take();
        Ok(match transaction {
            Some(transaction) => transaction.rollback().await.map_err(to_error),
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
            Ok((open.channels.clone(), Arc::clone(&open.listener)))
        })?;
        let waiting = async {
            let mut listener = listener.lock().await;
            let connected = match &*listener {
                Some(_) => true,
                None => match database(accessor) {
                    Err(_) => false,
                    Ok(database) => match database.pool().await {
                        Err(_) => false,
                        Ok(pool) => {
                            *listener = Some(pool.listen(channels));
                            true
                        }
                    },
                },
            };
            match listener.as_mut().filter(|_| connected) {
                Some(listener) => Some(listener.wait(longest).await),
                None => None,
            }
        };
        Ok(match waiting.await {
            Some(Wake::Notified { .. }) => sql::Wake::Notified,
            Some(Wake::Missed) => sql::Wake::Missed,
            Some(Wake::Elapsed) => sql::Wake::Elapsed,
            None => {
                /// A plugin that asks again at once must not keep a processor busy.
                const PAUSE: Duration = Duration::from_millis(500);
                tokio::time::sleep(longest.min(PAUSE)).await;
                sql::Wake::Missed
            }
        })
    }
}

impl sql::HostListener for State {
    fn new(&mut self, channels: Vec<String>) -> wasmtime::Result<Resource<OpenListener>> {
        if self.sql.listeners >= MAX_LISTENERS {
            wasmtime::bail!("it has more than {MAX_LISTENERS} listeners at once");
        }
        self.sql.listeners += 1;
        Ok(self.table.push(OpenListener {
            channels,
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
}

impl Asked {
    fn new(statement: sql::Statement) -> Result<Self, sql::Error> {
        let parameters: Vec<_> = statement.parameters.into_iter().map(to_value).collect();
        let bytes = parameters.iter().map(Value::size).fold(0_u64, u64::saturating_add);
        // An item of an array counts as much as a value by itself, so the count may be far above the bytes.
        if bytes > MAX_BYTES.saturating_mul(2) {
            return Err(sql::Error::TooLarge(sql::Failure {
                code: None,
                message: "the parameters of a statement are larger than they may be: send fewer at once".to_owned(),
            }));
        }
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
