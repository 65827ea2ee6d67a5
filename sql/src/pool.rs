//! A pool of connections over servers that come and go.
//!
//! Not the library's pool, which connects to one host by options that it cannot change: here every new connection looks
//! for a server anew. A failure that means another server may be due ends all connections that were made before it, so that
//! a failover is noticed once and not once per connection.
//!
//! A connection that is dropped while a statement runs is never used again. The server's process behind it is ended, since the
//! statement would otherwise go on and hold its locks. To cancel the statement would not do: it can catch that and go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::connect::{Connector, Route};
use super::connection_string::ConnectionString;
use super::error::{Error, ErrorKind};
use super::statement::{self, Rows, Statement};
use super::transaction::{Transaction, TransactionOptions};
use super::{bouncer, listener};

/// A connection that was idle for longer is asked whether it still lives before it is used.
const FRESH: Duration = Duration::from_secs(1);

/// How long that, a rollback or the end of a process of the server's may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a pool has done, for metrics. The numbers mean what those of Go's `pgxpool` do, which Pomerium shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStatistics {
    /// Connections at most.
    pub max_connections: u64,
    /// Connections that wait for work.
    pub idle: u64,
    /// Connections that work.
    pub acquired: u64,
    /// Connections that are being made.
    pub constructing: u64,
    /// How often a connection was handed out.
    pub acquire_count: u64,
    /// How long that took, all together.
    pub acquire_time: Duration,
    /// How often a caller had to wait before that, or a connection had to be made.
    pub empty_acquire_count: u64,
    /// How long that took, all together.
    pub empty_acquire_time: Duration,
    /// How often a caller went away, or ran out of patience, before there was one.
    pub canceled_acquire_count: u64,
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
    /// True where the server of the newest connection takes no writes.
    read_only: AtomicBool,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    acquired: AtomicU64,
    acquiring_nanoseconds: AtomicU64,
    empty: AtomicU64,
    empty_nanoseconds: AtomicU64,
    canceled: AtomicU64,
    /// Those that are being made now; all others only grow.
    constructing: AtomicU64,
    made: AtomicU64,
    lifetime_closed: AtomicU64,
    idle_closed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts what has not come to its end when it is dropped.
struct Unless<'c>(Option<&'c AtomicU64>);

impl Unless<'_> {
    fn done(mut self) {
        self.0 = None;
    }
}

impl Drop for Unless<'_> {
    fn drop(&mut self) {
        self.0.into_iter().for_each(count);
    }
}

/// Counts as one for as long as it is there.
struct While<'c>(&'c AtomicU64);

impl<'c> While<'c> {
    fn new(counter: &'c AtomicU64) -> Self {
        count(counter);
        Self(counter)
    }
}

impl Drop for While<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
        Self::open_with(settings, None).await
    }

    /// The same for statements of somebody who is not trusted. No message of the server's may have more bytes than this, be it a row, a
    /// notice or an error: a longer one is not received, and the statement fails with [`ErrorKind::TooLarge`]. Nor may a column or a
    /// parameter be of a type that was made in the database; such a statement fails with [`ErrorKind::Statement`]. So that messages are
    /// seen on their way, each connection goes through a pipe within the process.
    ///
    /// # Errors
    ///
    /// [`Error`] if no server will do.
    pub async fn guarded(settings: ConnectionString, largest_message: u64) -> Result<Self, Error> {
        Self::open_with(settings, Some(largest_message)).await
    }

    async fn open_with(settings: ConnectionString, largest_message: Option<u64>) -> Result<Self, Error> {
        let settings = Arc::new(settings);
        let permits = usize::try_from(settings.pool.max_connections).unwrap_or(Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            connector: Connector::new(settings, largest_message),
            permits: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
            idle: Mutex::default(),
            generation: AtomicU64::new(0),
            bounced: AtomicBool::new(false),
            read_only: AtomicBool::new(false),
            counters: Counters::default(),
        });
        let mut first = shared.make().await?;
        let looking = bouncer::is_between(&shared.connector, &mut first.connection);
        let bounced = timeout(shared.connector.patience() * 2, looking)
            .await
            .unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Unreachable,
                    "the server does not answer any more",
                ))
            })?;
        if bounced {
            shared.bounced.store(true, Ordering::Relaxed);
            tracing::warn!(
                "a pooler that changes connections between transactions is in front of Postgres: statements are not prepared, \
                 and changes are looked for each second instead of being told; connect to Postgres itself, or to a pooler in \
                 session mode, for better speed"
            );
        }
        if shared.read_only.load(Ordering::Relaxed) {
            tracing::warn!(
                "the database takes no writes: it is a standby, or default_transaction_read_only is on; reads work, and writes fail \
                 until that changes; where the connection string names several servers, set target_session_attrs=read-write"
            );
        }
        shared.idle.lock().push(first);
        tokio::spawn(keep_healthy(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }

    /// True behind a pooler that gives each transaction another connection of the server.
    #[must_use]
    pub fn is_bounced(&self) -> bool {
        self.0.bounced.load(Ordering::Relaxed)
    }

    /// True where the server that was connected to last takes no writes: a standby, or one that was set so.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Relaxed)
    }

    /// Runs one statement by itself. `wait` bounds the waiting for a connection.
    ///
    /// # Errors
    ///
    /// [`Error`]; where the connection broke or time ran out, it is unknown whether the statement has taken effect.
    pub async fn run(&self, statement: &Statement<'_>, wait: Duration) -> Result<Rows, Error> {
        self.run_and_hold(statement, wait).await.map(|(rows, _)| rows)
    }

    /// The same for somebody who bounds what is held of answers: nobody else gets the connection before [`Held`] is dropped, so that
    /// no more answers come than there are connections.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub async fn run_and_hold(&self, statement: &Statement<'_>, wait: Duration) -> Result<(Rows, Held), Error> {
        if self.is_bounced() {
            // Between two messages outside of a transaction the pooler may change connections.
            let mut transaction = self.begin(&TransactionOptions::default(), wait).await?;
            let rows = transaction.run(statement).await?;
            return Ok((rows, Held(transaction.commit_and_keep().await?)));
        }
        let mut acquired = self.acquire(wait).await?;
        let prepare = acquired.prepares();
        let rows = acquired
            .using(async |connection| statement::run(connection, statement, prepare).await)
            .await?;
        Ok((rows, Held(acquired)))
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
        let constructing = get(&shared.counters.constructing);
        PoolStatistics {
            max_connections: max,
            idle: u64::try_from(shared.idle.lock().len()).unwrap_or(u64::MAX),
            acquired: max.saturating_sub(free).saturating_sub(constructing),
            constructing,
            acquire_count: get(&shared.counters.acquired),
            acquire_time: Duration::from_nanos(get(&shared.counters.acquiring_nanoseconds)),
            empty_acquire_count: get(&shared.counters.empty),
            empty_acquire_time: Duration::from_nanos(get(&shared.counters.empty_nanoseconds)),
            canceled_acquire_count: get(&shared.counters.canceled),
            new_connections: get(&shared.counters.made),
            lifetime_closed: get(&shared.counters.lifetime_closed),
            idle_closed: get(&shared.counters.idle_closed),
        }
    }

    async fn acquire(&self, wait: Duration) -> Result<Acquired, Error> {
        let counters = &self.0.counters;
        let began = Instant::now();
        let canceled = Unless(Some(&counters.canceled));
        let Ok(permitted) = timeout(wait, self.permit()).await else {
            return Err(Error::new(
                ErrorKind::OutOfConnections,
                format!(
                    "no connection to Postgres within {} ms, of {} in the pool: set pool_max_conns higher, or look what holds them",
                    wait.as_millis(),
                    self.0.connector.settings().pool.max_connections
                ),
            ));
        };
        let (permit, waited) = permitted?;
        // From here on more connections in the pool would not help.
        let left = wait.saturating_sub(began.elapsed());
        let Ok(outcome) = timeout(left, self.acquire_with(permit)).await else {
            return Err(Error::new(
                ErrorKind::Unreachable,
                format!("no server of Postgres answers within {} ms", left.as_millis()),
            ));
        };
        canceled.done();
        let (acquired, made) = outcome?;
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        count(&counters.acquired);
        counters.acquiring_nanoseconds.fetch_add(took, Ordering::Relaxed);
        if waited || made {
            count(&counters.empty);
            counters.empty_nanoseconds.fetch_add(took, Ordering::Relaxed);
        }
        Ok(acquired)
    }

    /// Leave to use a connection, and whether it had to be waited for.
    async fn permit(&self) -> Result<(OwnedSemaphorePermit, bool), Error> {
        let permits = &self.0.permits;
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok((permit, false));
        }
        let waiting = Arc::clone(permits).acquire_owned();
        // Nothing closes the semaphore.
        let permit = waiting
            .await
            .map_err(|error| Error::new(ErrorKind::OutOfConnections, error.to_string()))?;
        Ok((permit, true))
    }

    /// Ends all connections that nobody uses, and the others once they come back, so that nothing is left of what their sessions
    /// have set, locked or begun.
    pub fn renew(&self) {
        self.0.move_on();
    }

    /// A connection, and whether it had to be made.
    async fn acquire_with(&self, permit: OwnedSemaphorePermit) -> Result<(Acquired, bool), Error> {
        let shared = &self.0;
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
                return Ok((Acquired::new(shared, member, permit), false));
            }
            shared.move_on();
        }
        let member = shared.make().await?;
        Ok((Acquired::new(shared, member, permit), true))
    }
}

impl Shared {
    /// Makes a connection.
    async fn make(&self) -> Result<Member, Error> {
        // Of before: a failure meanwhile may be this server's too.
        let generation = self.generation.load(Ordering::Relaxed);
        let constructing = While::new(&self.counters.constructing);
        let established = self.connector.connect().await?;
        drop(constructing);
        self.read_only.store(established.read_only, Ordering::Relaxed);
        count(&self.counters.made);
        let pool = &self.connector.settings().pool;
        let now = Instant::now();
        let jitter = pool.lifetime_jitter.mul_f64(rand::random());
        let far = now + Duration::from_secs(86_400 * 365);
        let lifetime = pool.max_lifetime.checked_add(jitter);
        Ok(Member {
            connection: established.connection,
            route: established.route,
            process: established.process,
            generation,
            ends: lifetime.and_then(|lifetime| now.checked_add(lifetime)).unwrap_or(far),
            used: now,
        })
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
            let Ok(member) = shared.make().await else {
                break;
            };
            shared.idle.lock().push(member);
            drop(permit);
        }
        drop(shared);
        tokio::time::sleep(settings.health_check_period).await;
    }
}

/// A connection whose statement has ended, and that goes back to the pool when this is dropped.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "it is kept, and dropped")] Acquired);

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
                if error.code().is_none() && matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Timeout) => {}
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
                drop(timeout(PATIENCE, terminate(&shared, &member)).await);
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

/// Ends the server's process behind a connection, with what it is doing, by another one to the same server.
async fn terminate(shared: &Shared, member: &Member) -> Result<(), Error> {
    use sqlx::ConnectOptions as _;
    let options = shared.connector.options(&member.route).await?;
    let mut connection = options.connect().await?;
    sqlx::query("SELECT pg_catalog.pg_terminate_backend($1)")
        .bind(member.process)
        .persistent(false)
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    Ok(())
}
