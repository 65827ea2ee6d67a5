//! A plugin that is started again: a [`Backend`] that outlives the instances behind it.
//!
//! An instance that has trapped, computed or waited for too long, or whose task has ended in any other way, is never entered
//! again. Calls under way fail, and a new instance of the code that is compiled already takes its place: after a pause that
//! doubles, and a bounded number of times. Beyond that the store has stopped for good, says so, and the process ends, since
//! whatever is wrong with it a start from nothing is the better next attempt.
//!
//! Nothing is repeated here. A write whose instance has ended may have been carried out, and a read may be what ended it.
//!
//! A new instance is out of reach until whoever stands in front has adopted it ([`Reopenings`]), because its content may be
//! another.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Limits;
use super::adapter::ComponentBackend;
use super::database::Database;
use super::grants::Refusals;
use super::instance::Instance;
use super::laws;
use super::plugin::Plugin;
use super::report::Reports;
use crate::backend::{
    Availability, Backend, BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, LeaseRequest,
    Observed, Position, Pruned, PutResult, Reopener, Reopenings, Runtime, ScanPage, ScanRequest, Statistics, StoreInfo,
    new_server_version,
};
use crate::data::Descriptors;
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// When a plugin that has stopped is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    /// So often within the window, before it has stopped for good. 0: never.
    pub most: u32,
    /// The time in which they are counted.
    pub window: Duration,
    /// The pause before the first attempt; it doubles with each.
    pub shortest_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// A plugin that has run for so long is started again after the shortest pause.
    pub healthy: Duration,
}

impl Default for Restarts {
    /// 5 times within 5 minutes, after 100 ms to 10 s; a minute of health begins anew.
    fn default() -> Self {
        Self {
            most: 5,
            window: Duration::from_secs(5 * 60),
            shortest_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            healthy: Duration::from_secs(60),
        }
    }
}

/// How long reads and small writes wait for an instance where there is none.
const PATIENCE: Duration = Duration::from_secs(1);

/// All that an instance is made of, so that another one can be made.
pub(super) struct Factory {
    pub(super) plugin: Plugin,
    pub(super) descriptors: Arc<Descriptors>,
    pub(super) limits: Limits,
    pub(super) connection_string: Option<String>,
    pub(super) reports: Arc<Reports>,
}

/// Why there is no store.
pub(super) enum Failure {
    /// The instance did not come up.
    Start(String),
    /// It runs and could not open its store.
    Open(BackendError),
}

impl Factory {
    /// Starts an instance and opens its store.
    pub(super) async fn open(&self, new_server_version: u64) -> Result<(ComponentBackend, StoreInfo), Failure> {
        if let Some(database) = self.plugin.database() {
            database.renew();
        }
        let instance = Instance::start(
            &self.plugin,
            Arc::clone(&self.descriptors),
            self.limits,
            Arc::clone(&self.reports),
        )
        .await
        .map_err(Failure::Start)?;
        let connection_string = self.connection_string.clone();
        let opened = ComponentBackend::open(self.plugin.name(), instance, connection_string, new_server_version).await;
        let (backend, info) = opened.map_err(Failure::Open)?;
        Ok((backend.identified(self.plugin.inspection()), info))
    }
}

/// A store behind a plugin that is started again where it stops.
pub(super) struct Supervised {
    shared: Arc<Shared>,
    supervising: AbortHandle,
}

struct Shared {
    state: watch::Sender<State>,
    /// How often a new instance took the place of one that had stopped.
    restarts: AtomicU64,
    /// Of former instances.
    log_lines_dropped: AtomicU64,
    /// What all instances were refused.
    refusals: Arc<Refusals>,
    /// The database of all instances.
    database: Option<Arc<Database>>,
    /// What does not change with the instance.
    identity: Runtime,
}

/// What there is to call.
#[derive(Clone)]
enum State {
    /// An instance, which may have ended since.
    Running(Arc<ComponentBackend>),
    /// None, since it stopped for this reason; another one is on its way.
    Reopening(String),
    /// None any more.
    Ended(String),
}

impl Supervised {
    /// Supervises a store that was just opened, and says when it is opened again. Call it within a tokio runtime.
    pub(super) fn new(
        factory: Factory,
        restarts: Restarts,
        backend: ComponentBackend,
        info: &StoreInfo,
    ) -> (Self, Reopenings) {
        let backend = Arc::new(backend);
        let (reopener, reopenings) = Reopenings::channel();
        let shared = Arc::new(Shared {
            identity: backend.runtime(),
            state: watch::Sender::new(State::Running(Arc::clone(&backend))),
            restarts: AtomicU64::new(0),
            log_lines_dropped: AtomicU64::new(0),
            refusals: Arc::clone(&factory.plugin.grants().refusals),
            database: factory.plugin.database(),
        });
        let supervisor = Supervisor {
            shared: Arc::clone(&shared),
            factory,
            restarts,
            reopener,
            attempts: VecDeque::new(),
            pause: restarts.shortest_pause,
            is_shared: info.shared,
            is_durable: info.durable,
        };
        let supervised = Self {
            shared,
            supervising: tokio::spawn(supervisor.run(backend)).abort_handle(),
        };
        (supervised, reopenings)
    }

    /// The instance; waits for a moment where there is none.
    async fn instance(&self) -> Result<Arc<ComponentBackend>, BackendError> {
        let mut state = self.shared.state.subscribe();
        let found = async {
            loop {
                let current = state.borrow_and_update().clone();
                match current {
                    State::Running(backend) if !backend.has_ended() => return Ok(backend),
                    State::Ended(cause) => return Err(BackendError::Stopped(cause)),
                    State::Running(_) | State::Reopening(_) => {}
                }
                if state.changed().await.is_err() {
                    std::future::pending().await
                }
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => self.instance_now(),
        }
    }

    /// The instance, if there is one: for calls that must not reach another one than there was when they were decided on.
    fn instance_now(&self) -> Result<Arc<ComponentBackend>, BackendError> {
        let state = self.shared.state.borrow().clone();
        match state {
            State::Running(backend) => Ok(backend),
            State::Reopening(cause) => Err(reopening(&cause)),
            State::Ended(cause) => Err(BackendError::Stopped(cause)),
        }
    }
}

/// Nothing was called, and another attempt may find an instance.
fn reopening(cause: &str) -> BackendError {
    BackendError::NotCalled(format!(
        "the storage plugin stopped and is being started again: {cause}"
    ))
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.supervising.abort();
    }
}

/// The task that starts the plugin again.
struct Supervisor {
    shared: Arc<Shared>,
    factory: Factory,
    restarts: Restarts,
    reopener: Reopener,
    /// When it was started again, within the window.
    attempts: VecDeque<Instant>,
    /// How long to wait before the next attempt.
    pause: Duration,
    /// What the store has said of itself.
    is_shared: bool,
    is_durable: bool,
}

impl Supervisor {
    async fn run(mut self, mut backend: Arc<ComponentBackend>) {
        loop {
            let began = Instant::now();
            let cause = backend.ended().await;
            self.reopener.set(Availability::Reopening);
            self.shared.state.send_replace(State::Reopening(cause.clone()));
            self.shared
                .log_lines_dropped
                .fetch_add(backend.runtime().log_lines_dropped, Ordering::Relaxed);
            if began.elapsed() >= self.restarts.healthy {
                self.pause = self.restarts.shortest_pause;
            }
            let (reopened, info) = match self.reopen(&backend, cause).await {
                Ok(reopened) => reopened,
                Err(cause) => {
                    tracing::error!(
                        plugin = self.factory.plugin.name(),
                        cause,
                        restarts = self.restarts.most,
                        window = ?self.restarts.window,
                        "the plugin has stopped too often (DATABROKER_PLUGIN_RESTARTS) and is not started again"
                    );
                    self.shared.state.send_replace(State::Ended(cause));
                    self.reopener.set(Availability::Ended);
                    return;
                }
            };
            backend = Arc::new(reopened);
            self.reopener.reopened(info.position).await;
            self.shared.restarts.fetch_add(1, Ordering::Relaxed);
            self.shared.state.send_replace(State::Running(Arc::clone(&backend)));
            self.reopener.set(Availability::Open);
            tracing::warn!(
                plugin = self.factory.plugin.name(),
                restarts = self.shared.restarts.load(Ordering::Relaxed),
                store = info.summary,
                "the plugin was started again"
            );
        }
    }

    /// Makes attempts until one succeeds; the last cause where there may be no more of them.
    async fn reopen(
        &mut self,
        former: &ComponentBackend,
        mut cause: String,
    ) -> Result<(ComponentBackend, StoreInfo), String> {
        loop {
            let now = Instant::now();
            let window = self.restarts.window;
            self.attempts.retain(|attempt| now.duration_since(*attempt) < window);
            if self.attempts.len() >= usize::try_from(self.restarts.most).unwrap_or(usize::MAX) {
                return Err(cause);
            }
            self.attempts.push_back(now);
            tokio::time::sleep(self.pause).await;
            self.pause = self.pause.saturating_mul(2).min(self.restarts.longest_pause);
            match self.attempt(former).await {
                Ok(opened) => return Ok(opened),
                Err(Failure::Start(why)) => cause = format!("it does not start: {why}"),
                Err(Failure::Open(error)) => {
                    if matches!(error, BackendError::Unavailable(_)) {
                        // The plugin works, and what it needs is away: that is waited for however long it takes.
                        self.attempts.pop_back();
                    }
                    cause = format!("it cannot open its store again: {error}");
                }
            }
            tracing::warn!(
                plugin = self.factory.plugin.name(),
                cause,
                "the plugin could not be started again"
            );
            self.shared.state.send_replace(State::Reopening(cause.clone()));
        }
    }

    async fn attempt(&self, former: &ComponentBackend) -> Result<(ComponentBackend, StoreInfo), Failure> {
        let before = former.position();
        let fresh = new_server_version(before.server_version);
        let (backend, info) = self.factory.open(fresh).await?;
        let survives = self.is_shared || self.is_durable;
        // The one that writes to a shared store may be another host, so that all of it may have changed.
        if !self.is_shared {
            let kept = laws::reopened(survives, before.server_version, before.latest_version, &info.position);
            backend.hold("open", kept).map_err(Failure::Open)?;
        }
        if info.shared != self.is_shared {
            let why = "the store is shared now and was not before, or the other way round".to_owned();
            return Err(Failure::Open(BackendError::Configuration(why)));
        }
        Ok((backend, info))
    }
}

#[async_trait]
impl Backend for Supervised {
    /// Nothing is started again from now on. Where there is no instance the store is not closed in order.
    async fn close(&self) -> Result<(), BackendError> {
        self.supervising.abort();
        match self.instance_now() {
            Ok(backend) => backend.close().await,
            Err(BackendError::NotCalled(cause)) => Err(BackendError::Stopped(cause)),
            Err(error) => Err(error),
        }
    }

    /// [`BackendError::Stopped`] is for good.
    async fn health(&self) -> Result<(), BackendError> {
        let state = self.shared.state.borrow().clone();
        match state {
            State::Running(backend) => match backend.health().await {
                Err(BackendError::Stopped(cause)) => Err(reopening(&cause)),
                answer => answer,
            },
            State::Reopening(cause) => Err(reopening(&cause)),
            State::Ended(cause) => Err(BackendError::Stopped(cause)),
        }
    }

    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        self.instance_now()?.put(batches, now).await
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        self.instance().await?.get(keys).await
    }

    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        self.instance().await?.scan(request).await
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        self.instance().await?.count(record_type).await
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        self.instance().await?.types().await
    }

    async fn current(&self) -> Result<Position, BackendError> {
        self.instance().await?.current().await
    }

    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        self.instance().await?.changes(request).await
    }

    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        self.instance().await?.wait(seen).await
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        self.instance().await?.list_options().await
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        self.instance_now()?.set_options(record_type, options).await
    }

    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        self.instance().await?.lease(requests, now).await
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        self.instance().await?.get_checkpoint().await
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        self.instance().await?.set_checkpoint(checkpoint).await
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        self.instance().await?.report_services(services, ttl, now).await
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        self.instance().await?.list_services(now).await
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        self.instance_now()?.prune(before, max_changes).await
    }

    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        self.instance_now()?.evict(request, now).await
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        self.instance_now()?.clear(new_server_version).await
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        self.instance().await?.measure().await
    }

    fn runtime(&self) -> Runtime {
        let state = self.shared.state.borrow().clone();
        let current = match state {
            State::Running(backend) => backend.runtime(),
            State::Reopening(_) | State::Ended(_) => Runtime::default(),
        };
        let former = self.shared.log_lines_dropped.load(Ordering::Relaxed);
        Runtime {
            plugin: self.shared.identity.plugin.clone(),
            memory_bytes: current.memory_bytes,
            log_lines_dropped: former.saturating_add(current.log_lines_dropped),
            restarts: self.shared.restarts.load(Ordering::Relaxed),
            refusals: self.shared.refusals.counts(),
            database: self.shared.database.as_ref().map(|database| database.runtime()),
        }
    }
}
