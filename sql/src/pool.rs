//! A pool of connections over servers that come and go.
//!
//! Not the library's pool, which connects to one host by options that it cannot change: here every new connection looks
//! for a server anew. A failure that means another server may be due ends all connections that were made before it, so that
//! a failover is noticed once and not once per connection.
//!
//! A connection that is dropped while a statement runs is never used again. The statement is cancelled at the server first,
//! since it would otherwise go on and hold its locks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::connect::{Connector, Established, Route};
use super::connection_string::ConnectionString;
use super::error::{Error, ErrorKind};
use super::statement::{self, Rows, Statement};
use super::transaction::{Transaction, TransactionOptions};
use super::{bouncer, listener};

/// A connection that was idle for longer is asked whether it still lives before it is used.
const FRESH: Duration = Duration::from_secs(1);

/// How long that, a rollback or a cancellation may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pool has done, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStatistics {
    /// Connections at most.
    pub max_connections: u64,
    /// Connections that wait for work.
    pub idle: u64,
    /// Connections that work.
    pub acquired: u64,
    /// How often a connection was handed out.
    pub acquire_count: u64,
    /// How long callers have waited for one, all together.
    pub acquire_time: Duration,
    /// How often a caller had to wait, or a connection had to be made.
    pub empty_acquire_count: u64,
    /// Connections that were made.
    pub new_connections: u64,
    /// Connections that were closed because of their age.
    pub lifetime_closed: u64,
    /// Connections that were closed because nothing used them.
    pub idle_closed: u64,
}

/// A pool. Clones share it; it closes when the last one and its transactions are gone.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) connector: Connector,
    /// A permit per connection in use.
    permits: Arc<Semaphore>,
    /// The connections that wait for work; the last one was used last.
    idle: Mutex<Vec<Member>>,
    /// Goes up when a failure says that the servers have changed. Connections from before are not used again.
    generation: AtomicU64,
    /// True behind a pooler that gives each transaction another connection of the server.
    pub(crate) bounced: AtomicBool,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    acquired: AtomicU64,
    waited_nanoseconds: AtomicU64,
    empty: AtomicU64,
    made: AtomicU64,
    lifetime_closed: AtomicU64,
    idle_closed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A connection of the pool.
#[derive(Debug)]
struct Member {
    connection: PgConnection,
    route: Route,
    process: i32,
    generation: u64,
    /// When it is too old.
    ends: Instant,
    /// When it was last used.
    used: Instant,
}

impl Pool {
    /// Connects once, so that wrong settings are told at once, and looks what is between this and the server.
    ///
    /// # Errors
    ///
    /// [`Error`] if no server will do.
    pub async fn open(settings: ConnectionString) -> Result<Self, Error> {
        let settings = Arc::new(settings);
        let permits = usize::try_from(settings.pool.max_connections).unwrap_or(Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            connector: Connector::new(settings),
            permits: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
            bounced: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let mut first = shared.connector.connect().await?;
        count(&shared.counters.made);
        if bouncer::is_between(&shared.connector, &mut first).await? {
            shared.bounced.store(true, Ordering::Relaxed);
            tracing::warn!(
                "a pooler that changes connections between transactions is in front of Postgres: statements are not prepared, \
                 and changes are looked for each second instead of being told; connect to Postgres itself, or to a pooler in \
                 session mode, for better speed"
            );
        }
        let member = shared.member(first);
        shared.idle.lock().push(member);
        tokio::spawn(keep_healthy(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// True behind a pooler that gives each transaction another connection of the server.
    #[must_use]
    pub fn is_bounced(&self) -> bool {
        self.0.bounced.load(Ordering::Relaxed)
    }

    /// Runs one statement by itself. `wait` bounds the waiting for a connection.
    ///
    /// # Errors
    ///
    /// [`Error`]; where the connection broke or time ran out, it is unknown whether the statement has taken effect.
    pub async fn run(&self, statement: &Statement<'_>, wait: Duration) -> Result<Rows, Error> {
        if self.is_bounced() {
            // Between two messages outside of a transaction the pooler may change connections.
            let mut transaction = self.begin(&TransactionOptions::default(), wait).await?;
            let rows = transaction.run(statement).await?;
            transaction.commit().await?;
            return Ok(rows);
        }
        let mut acquired = self.acquire(wait).await?;
        let prepare = acquired.prepares();
        acquired
            .using(async |connection| statement::run(connection, statement, prepare).await)
            .await
    }

    /// Begins a transaction, which rolls back unless it is committed.
    ///
    /// # Errors
    ///
    /// [`Error`] if there is no connection.
    pub async fn begin(&self, options: &TransactionOptions, wait: Duration) -> Result<Transaction, Error> {
        Transaction::begin(self.acquire(wait).await?, options).await
    }

    /// Listens on channels.
    #[must_use]
    pub fn listen(&self, channels: Vec<String>) -> listener::Listener {
        listener::Listener::new(Arc::clone(&self.0), channels)
    }

    /// What it has done so far.
    #[must_use]
    pub fn statistics(&self) -> PoolStatistics {
        let shared = &self.0;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let max = u64::from(shared.connector.settings().pool.max_connections);
        let free = u64::try_from(shared.permits.available_permits()).unwrap_or(u64::MAX);
        PoolStatistics {
            max_connections: max,
            idle: u64::try_from(shared.idle.lock().len()).unwrap_or(u64::MAX),
            acquired: max.saturating_sub(free),
            acquire_count: get(&shared.counters.acquired),
            acquire_time: Duration::from_nanos(get(&shared.counters.waited_nanoseconds)),
            empty_acquire_count: get(&shared.counters.empty),
            new_connections: get(&shared.counters.made),
            lifetime_closed: get(&shared.counters.lifetime_closed),
            idle_closed: get(&shared.counters.idle_closed),
        }
    }

    async fn acquire(&self, wait: Duration) -> Result<Acquired, Error> {
        let began = Instant::now();
        let acquired = timeout(wait, self.acquire_in_time()).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::OutOfConnections,
                format!(
                    "no connection to Postgres within {} ms, of {} in the pool: set pool_max_conns higher, or look what holds them",
                    wait.as_millis(),
                    self.0.connector.settings().pool.max_connections
                ),
            ))
        });
        let waited = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.counters.waited_nanoseconds.fetch_add(waited, Ordering::Relaxed);
        count(&self.0.counters.acquired);
        acquired
    }

    async fn acquire_in_time(&self) -> Result<Acquired, Error> {
        let shared = &self.0;
        let permit = match Arc::clone(&shared.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                count(&shared.counters.empty);
                let waiting = Arc::clone(&shared.permits).acquire_owned();
                // Nothing closes the semaphore.
                waiting
                    .await
                    .map_err(|error| Error::new(ErrorKind::OutOfConnections, error.to_string()))?
            }
        };
        loop {
            let Some(mut member) = shared.idle.lock().pop() else {
                break;
            };
            if !shared.is_good(&member) {
                continue;
            }
            let lives = member.used.elapsed() < FRESH
                || matches!(timeout(PATIENCE, member.connection.ping()).await, Ok(Ok(())));
            if lives {
                return Ok(Acquired::new(shared, member, permit));
            }
            shared.move_on();
        }
        count(&shared.counters.empty);
        let established = shared.connector.connect().await?;
        count(&shared.counters.made);
        Ok(Acquired::new(shared, shared.member(established), permit))
    }
}

impl Shared {
    fn member(&self, established: Established) -> Member {
        let pool = &self.connector.settings().pool;
        let now = Instant::now();
        let jitter = pool.lifetime_jitter.mul_f64(rand::random());
        let far = now + Duration::from_secs(86_400 * 365);
        let lifetime = pool.max_lifetime.checked_add(jitter);
        Member {
            connection: established.connection,
            route: established.route,
            process: established.process,
            generation: self.generation.load(Ordering::Relaxed),
            ends: lifetime.and_then(|lifetime| now.checked_add(lifetime)).unwrap_or(far),
            used: now,
        }
    }

    /// Ends all connections that were made so far, as they come back.
    fn move_on(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.idle.lock().clear();
    }

    fn is_good(&self, member: &Member) -> bool {
        if member.generation != self.generation.load(Ordering::Relaxed) {
            return false;
        }
        if member.ends <= Instant::now() {
            count(&self.counters.lifetime_closed);
            return false;
        }
        if member.used.elapsed() > self.connector.settings().pool.max_idle_time {
            count(&self.counters.idle_closed);
            return false;
        }
        true
    }
}

/// Closes what is too old or idle, and keeps as many as there should be, until the pool is gone.
async fn keep_healthy(pool: std::sync::Weak<Shared>) {
    loop {
        let Some(shared) = pool.upgrade() else { return };
        let settings = shared.connector.settings().pool.clone();
        shared.idle.lock().retain(|member| shared.is_good(member));
        let least = usize::try_from(settings.min_connections).unwrap_or(usize::MAX);
        let most = usize::try_from(settings.max_connections).unwrap_or(usize::MAX);
        let used = most.saturating_sub(shared.permits.available_permits());
        let there = used.saturating_add(shared.idle.lock().len());
        for _ in there..least {
            let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() else {
                break;
            };
            // Whoever needs one next will be told why there is none.
            let Ok(established) = shared.connector.connect().await else {
                break;
            };
            count(&shared.counters.made);
            let member = shared.member(established);
            shared.idle.lock().push(member);
            drop(permit);
        }
        drop(shared);
        tokio::time::sleep(settings.health_check_period).await;
    }
}

/// A connection in use. Goes back to the pool when it is dropped, if it can be used again.
#[derive(Debug)]
pub(crate) struct Acquired {
    shared: Arc<Shared>,
    /// None once it has gone back.
    member: Option<Member>,
    /// True while a statement runs.
    busy: bool,
    /// True after a failure that leaves it of no use.
    broken: bool,
    /// True while a transaction is open.
    pub(crate) in_transaction: bool,
    permit: Option<OwnedSemaphorePermit>,
}

impl Acquired {
    fn new(shared: &Arc<Shared>, member: Member, permit: OwnedSemaphorePermit) -> Self {
        Self {
            shared: Arc::clone(shared),
            member: Some(member),
            busy: false,
            broken: false,
            in_transaction: false,
            permit: Some(permit),
        }
    }

    /// True where statements are prepared and kept.
    pub(crate) fn prepares(&self) -> bool {
        self.shared.connector.settings().prepare_statements && !self.shared.bounced.load(Ordering::Relaxed)
    }

    /// Uses the connection. Whatever ends this early leaves it marked.
    pub(crate) async fn using<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Some(member) = self.member.as_mut().filter(|_| !self.busy && !self.broken) else {
            return Err(Error::new(ErrorKind::Unreachable, "the connection broke before"));
        };
        self.busy = true;
        let result = work(&mut member.connection).await;
        match &result {
            // Its answer, or the rest of it, is still to come.
            Err(error)
                if matches!(error.kind(), ErrorKind::TooLarge)
                    || (error.kind() == ErrorKind::Timeout && error.code().is_none()) => {}
            // A value that cannot be read leaves the rest of the answer unread.
            Err(error) if error.kind() == ErrorKind::Statement && error.code().is_none() => {}
            _ => self.busy = false,
        }
        if let Err(error) = &result {
            self.broken |= error.breaks_connection();
            if error.moves_elsewhere() {
                self.shared.move_on();
            }
        }
        result
    }
}

impl Drop for Acquired {
    fn drop(&mut self) {
        let Some(mut member) = self.member.take() else { return };
        let permit = self.permit.take();
        let shared = Arc::clone(&self.shared);
        if !self.busy && !self.broken && !self.in_transaction {
            member.used = Instant::now();
            if member.generation == shared.generation.load(Ordering::Relaxed) {
                shared.idle.lock().push(member);
            }
            drop(permit);
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.busy {
            if shared.bounced.load(Ordering::Relaxed) {
                // Its number is not the server's; the pooler ends the transaction of a client that goes.
                return;
            }
            runtime.spawn(async move {
                // The connection is kept until then, so that the process is still the one that runs the statement.
                drop(timeout(PATIENCE, cancel(&shared, &member)).await);
                drop(member);
                drop(permit);
            });
        } else if !self.broken {
            runtime.spawn(async move {
                let rolled_back = timeout(PATIENCE, sqlx::raw_sql("ROLLBACK").execute(&mut member.connection)).await;
                if matches!(rolled_back, Ok(Ok(_))) && shared.is_good(&member) {
                    member.used = Instant::now();
                    shared.idle.lock().push(member);
                }
                drop(permit);
            });
        }
    }
}

/// Cancels what a connection is doing, by another one to the same server.
async fn cancel(shared: &Shared, member: &Member) -> Result<(), Error> {
    use sqlx::ConnectOptions as _;
    let options = shared.connector.options(&member.route).await?;
    let mut connection = options.connect().await?;
    sqlx::query("SELECT pg_catalog.pg_cancel_backend($1)")
        .bind(member.process)
        .persistent(false)
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    Ok(())
}
