//! One running instance of a plugin: a task that owns it, and a channel of calls.
//!
//! A component's memory belongs to one thread at a time, so that a task of its own holds the instance and everybody else
//! sends it calls. All calls that came since it last looked are started together; while one of them waits for something,
//! the others go on. Each call runs to its end even where nobody waits for its answer any more, since half of a write is
//! worse than either.
//!
//! After a trap an instance is never entered again: its memory may be in any state. What was under way and what comes
//! later gets [`BackendError::Stopped`] with the cause. Nothing here starts it again; `supervisor` starts another one from
//! the same [`Plugin`].
//!
//! A call cannot be taken back, so one that takes too long ends the instance as well. What its time is counted without is
//! the computing of other calls: a plugin that many ask is slow, not stuck. How many calls it has at once is bounded, and so
//! is how many wait to be let in, and for how long; who is refused there was not called at all.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot, watch};
use wasmtime::component::{Accessor, ComponentNamedList, ComponentType, GuestTaskId, Lift, Lower, TypedFunc};
use wasmtime::{AsContextMut as _, Store, UpdateDeadline};

use super::bindings::store::Guest;
use super::engine::EPOCH;
use super::log::PluginLog;
use super::plugin::Plugin;
use super::report::{Report, Reports};
use super::sql::Sql;
use super::state::State;
use super::{bound, convert};
use crate::backend::BackendError;
use crate::data::Descriptors;

/// The call that is there before all others.
const OPEN: &str = "open";

/// How many calls are started in one go.
const STARTED: usize = 256;

/// What waits for news may wait for so long by its own law, before the time of a call begins.
const NEWS: (&str, Duration) = ("wait", Duration::from_secs(60));

/// What nobody but the host calls: its looks, its one writer and its cleaning, one or two of each at a time. It takes no room from the
/// calls of clients, and needs none: however many of those there are, news come, health is told, what waits is written, old
/// changes go, and the store is closed. What it reads as clients do, the change log above all, waits as theirs does.
const APART: [&str; 10] = [
    "wait",
    "health",
    "put",
    "prune",
    "evict",
    "measure",
    "list-options",
    "set-options",
    "clear",
    "close",
];

/// However much others compute, no call takes so many times its limit.
const BUSY: u32 = 10;

/// The least that [`Limits::answer_bytes`] may be set to, in bytes: what the interface allows must fit, or a plugin that keeps
/// its laws is ended over what a client may ask for. That is 64 MiB of tombstones, 8 MiB of keys, and the places of 2^17 outcomes.
pub const LEAST_ANSWER_BYTES: u64 = 96 << 20;

/// What an instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// How many linear memories it may have. Modules mostly share one, and each takes 4 GiB of addresses.
    pub memories: usize,
    /// How many tables it may have; most modules have one.
    pub tables: usize,
    /// Elements of all tables together, of 16 bytes each.
    pub table_elements: usize,
    /// How many modules it may be made of once it runs: those of an interpreter and its shared libraries are some dozens.
    pub instances: usize,
    /// Handles of whatever kind, those of calls of the host's that have no answer yet among them; one more ends it. A handle takes
    /// some hundred bytes of the host, the fields of an HTTP request and a call that waits 8 KiB at most.
    pub handles: usize,
    /// Transactions of its database, with those that wait for a connection. Each holds one of the pool's until it ends.
    pub transactions: usize,
    /// Listeners to its database; one more ends it. Each is a connection beside the pool.
    pub listeners: usize,
    /// Lines of the log that may come at once; what is beyond is left out and counted.
    pub log_burst: u32,
    /// Lines a second that may come after those; 1 at least.
    pub log_rate: u32,
    /// For how long it may compute for one call, with what the host computes for it. The time that the call waits does not
    /// count; it is measured in steps of 10 ms, of which going on after a pause is one.
    pub compute: Duration,
    /// For how long it may compute without giving other calls their turn, which is as long as one call delays the others.
    /// Only while it opens its store, with no other calls there, it may take longer.
    pub turn: Duration,
    /// Bytes of what one call may return.
    pub answer_bytes: usize,
    /// Most records that it is asked for in one page, or to evict in one call; 1 at least.
    pub page_records: u32,
    /// How long a call may take, waiting for whatever the plugin asks of the host included, but not the time in which the
    /// instance computes for other calls. Ten times as long in any case.
    pub call: Duration,
    /// How many calls may be under way at once; 1 at least.
    pub calls: usize,
    /// How many more may wait to be let in.
    pub queue: usize,
    /// How long one may wait to be let in.
    pub queue_time: Duration,
}

impl Default for Limits {
    /// All the memory that 32 bits can address, 30 seconds of computing, 10 of them at a stretch, and 128 MiB; a minute for a
    /// call, 1024 of them, and 4096 more that wait for 10 seconds at most. Of all else far more than a plugin comes to that works.
    fn default() -> Self {
        Self {
            // The last page of the 4 GiB stays out, since no length of 32 bits can say the whole.
            memory_bytes: usize::try_from((1_u64 << 32) - (1 << 16)).unwrap_or(usize::MAX),
            memories: 100,
            tables: 1000,
            table_elements: 1_000_000,
            instances: 1000,
            handles: 16 * 1024,
            transactions: 64,
            listeners: 8,
            log_burst: 200,
            log_rate: 20,
            compute: Duration::from_secs(30),
            turn: Duration::from_secs(10),
            answer_bytes: 128 * 1024 * 1024,
            page_records: 1024,
            call: Duration::from_secs(60),
            calls: 1024,
            queue: 4096,
            queue_time: Duration::from_secs(10),
        }
    }
}

/// A call, as it goes to the instance's task.
type Job = Box<dyn for<'a> FnOnce(&'a Accessor<State>, &'a Guest) -> BoxFuture<'a, wasmtime::Result<()>> + Send>;

/// A running instance. The task ends when this is dropped and what was under way is done, or with a trap.
pub(super) struct Instance {
    /// Calls to the task, each with a permit of the gate's.
    jobs: mpsc::Sender<Job>,
    gate: Arc<Gate>,
    /// What it may use.
    limits: Limits,
    /// Why the task has ended, once it has.
    ended: watch::Receiver<Option<String>>,
    /// Bytes of its memory.
    memory: Arc<AtomicU64>,
    log: PluginLog,
}

impl Instance {
    /// Starts an instance of a plugin.
    ///
    /// # Errors
    ///
    /// Says what the plugin did when it was instantiated.
    pub(super) async fn start(
        plugin: &Plugin,
        descriptors: Arc<Descriptors>,
        limits: Limits,
        reports: Arc<Reports>,
    ) -> Result<Self, String> {
        let log = PluginLog::new(plugin.name(), limits);
        let mut state = State::new(log.clone(), descriptors, limits, plugin.grants())?;
        state.sql = Sql::new(plugin.database(), limits);
        let mut store = Store::new(plugin.linked().engine(), state);
        let memory = store.data().memory.shown();
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(limits.answer_bytes);
        store.set_max_component_handles(limits.handles);
        bound_compute(&mut store, limits);
        let world = match tokio::time::timeout(limits.call, plugin.linked().instantiate_async(&mut store)).await {
            Ok(world) => world,
            Err(_) => Err(wasmtime::format_err!(
                "its start took longer than {:?} (DATABROKER_PLUGIN_CALL_TIME)",
                limits.call
            )),
        };
        let world = match world {
            Ok(world) => world,
            Err(error) => {
                let report = report(plugin.name(), limits, store.data(), &error);
                reports.tell(&report).await;
                return Err(report.cause);
            }
        };
        let guest = world.databroker_storage_store().clone();

        let (jobs, received) = mpsc::channel(limits.calls.max(1));
        let (end, ended) = watch::channel(None);
        let gate = Arc::new(Gate::new(limits));
        let name = plugin.name().to_owned();
        let closing = Closing(Arc::clone(&gate));
        tokio::spawn(async move {
            // Whatever ends this task, those who wait to be let in are told.
            let _closing = closing;
            let mut received = received;
            let progress = Progress::default();
            let running = store.run_concurrent(async |accessor| {
                serve(accessor, &guest, &mut received, &progress, limits.turn / LOOKS / 2).await
            });
            let outcome = tokio::select! {
                outcome = running => outcome.flatten(),
                error = progress.stands_still(limits) => Err(error),
            };
            if let Err(error) = outcome {
                let report = report(&name, limits, store.data(), &error);
                // Before anybody hears of the end: the process may end next.
                reports.tell(&report).await;
                // The cause is known before the calls in the channel are let go of, since their callers ask for it.
                end.send_replace(Some(report.cause));
            }
        });
        Ok(Self {
            jobs,
            gate,
            limits,
            ended,
            memory,
            log,
        })
    }

    /// What it may use.
    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes of its memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// How many of its lines were left out of the log.
    pub(super) fn log_lines_dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Makes a call and waits for what it returns. Waits to be let in first, where many calls are under way already. A call
    /// that was let in is finished even if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`BackendError::Stopped`] if the instance has ended, before or meanwhile; [`BackendError::Unavailable`] if the call
    /// was not let in.
    pub(super) async fn call<P, R>(
        &self,
        name: &'static str,
        function: fn(&Guest) -> TypedFunc<P, (R,)>,
        parameters: P,
    ) -> Result<R, BackendError>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentType + Lift + Send + Sync + 'static,
    {
        let permit = if APART.contains(&name) {
            None
        } else {
            match self.gate.enter().await {
                Ok(permit) => Some(permit),
                Err(Refused::Ended) => return Err(self.stopped().await),
                Err(Refused::Busy(why)) => return Err(BackendError::Unavailable(why)),
            }
        };
        let limit = if name == NEWS.0 {
            self.limits.call + NEWS.1
        } else {
            self.limits.call
        };
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |accessor, guest| {
            let function = function(guest);
            async move {
                let _permit = permit;
                let call = accessor.with(|mut access| -> wasmtime::Result<_> {
                    if access.get().computing.is_idle() {
                        access.as_context_mut().set_epoch_deadline(1);
                    }
                    let call = function.start_call_concurrent(access.as_context_mut(), parameters)?;
                    access.get().computing.begin(call.task(), name);
                    Ok(call)
                })?;
                let task = call.task();
                let finish = function.finish_call_concurrent(accessor, call);
                let (returned,) = in_time(accessor, task, limit, name, finish).await??;
                accessor.with(|mut access| access.get().computing.end(task));
                // Nobody may be there any more to take the answer.
                let _ = answer.send(returned);
                Ok(())
            }
            .boxed()
        });
        if self.jobs.send(job).await.is_ok()
            && let Ok(returned) = answered.await
        {
            return Ok(returned);
        }
        Err(self.stopped().await)
    }

    /// True once it does not answer any more.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }

    /// Waits until it does not answer any more; says why.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let cause = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|cause| cause.clone());
        cause.unwrap_or_else(|| "its task was ended".to_owned())
    }

    async fn stopped(&self) -> BackendError {
        BackendError::Stopped(self.ended().await)
    }
}

/// Lets as many calls in as may be under way.
struct Gate {
    room: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: Limits,
}

/// Why a call was not let in.
enum Refused {
    /// There is no instance any more.
    Ended,
    /// There are too many calls; for the caller.
    Busy(String),
}

impl Gate {
    fn new(limits: Limits) -> Self {
        Self {
            room: Arc::new(Semaphore::new(limits.calls.clamp(1, Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            limits,
        }
    }

    async fn enter(&self) -> Result<OwnedSemaphorePermit, Refused> {
        match Arc::clone(&self.room).try_acquire_owned() {
            Ok(permit) => return Ok(permit),
            Err(TryAcquireError::Closed) => return Err(Refused::Ended),
            Err(TryAcquireError::NoPermits) => {}
        }
        let Limits {
            calls,
            queue,
            queue_time,
            ..
        } = self.limits;
        let waiting = Waiting::begin(&self.waiting);
        if waiting.number > queue {
            return Err(Refused::Busy(format!(
                "the storage plugin is busy: {calls} calls are under way and {queue} wait (DATABROKER_PLUGIN_CALLS, \
                 DATABROKER_PLUGIN_QUEUE); nothing was changed, try again"
            )));
        }
        match tokio::time::timeout(queue_time, Arc::clone(&self.room).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Refused::Ended),
            Err(_) => Err(Refused::Busy(format!(
                "the storage plugin is busy: none of {calls} calls (DATABROKER_PLUGIN_CALLS) has made room within \
                 {queue_time:?} (DATABROKER_PLUGIN_QUEUE_TIME); nothing was changed, try again"
            ))),
        }
    }
}

/// One of those who wait, for as long as it lives.
struct Waiting<'a> {
    all: &'a AtomicUsize,
    /// How many there are with it.
    number: usize,
}

impl<'a> Waiting<'a> {
    fn begin(all: &'a AtomicUsize) -> Self {
        let number = all.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        Self { all, number }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Closes the gate when it is dropped.
struct Closing(Arc<Gate>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.room.close();
    }
}

/// Waits for a call within its limit, which ends with an error if it takes longer.
async fn in_time<T>(
    accessor: &Accessor<State>,
    task: GuestTaskId,
    limit: Duration,
    name: &str,
    call: impl Future<Output = T>,
) -> wasmtime::Result<T> {
    let others = || accessor.with(|mut access| access.get().computing.of_others(task));
    let (began, before) = (Instant::now(), others());
    let mut call = std::pin::pin!(call);
    let mut left = limit;
    loop {
        if let Ok(returned) = tokio::time::timeout(left, &mut call).await {
            return Ok(returned);
        }
        let epochs = u32::try_from(others().saturating_sub(before)).unwrap_or(u32::MAX);
        let taken = began.elapsed();
        let own = taken.saturating_sub(EPOCH.saturating_mul(epochs));
        if own >= limit || taken >= limit.saturating_mul(BUSY) {
            wasmtime::bail!("a call of `{name}` took longer than {limit:?} (DATABROKER_PLUGIN_CALL_TIME)");
        }
        left = limit.saturating_sub(own).max(EPOCH);
    }
}

/// Starts calls as they come, until no more can come. While there are any, it looks so often whether it still gets its turn.
async fn serve(
    accessor: &Accessor<State>,
    guest: &Guest,
    received: &mut mpsc::Receiver<Job>,
    progress: &Progress,
    interval: Duration,
) -> wasmtime::Result<()> {
    let mut serving = std::pin::pin!(async {
        let mut jobs = Vec::new();
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        let mut turns = tokio::time::interval(interval.max(EPOCH));
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while open || !under_way.is_empty() {
            tokio::select! {
                count = received.recv_many(&mut jobs, STARTED), if open => {
                    open = count > 0;
                    under_way.extend(jobs.drain(..).map(|job| job(accessor, guest)));
                }
                Some(done) = under_way.next() => done?,
                _ = turns.tick(), if !under_way.is_empty() => {}
            }
        }
        Ok(())
    });
    std::future::poll_fn(|context| {
        // The engine looks here whenever a call has let go of the instance, before it goes on with another one.
        accessor.with(|mut access| access.get().computing.next_turn());
        let served = serving.as_mut().poll(context);
        accessor.with(|mut access| progress.made(&access.get().computing));
        served
    })
    .await
}

/// How often it is looked whether an instance goes on before it has missed its time.
const LOOKS: u32 = 10;

/// Whether calls go on, to be seen from outside of the instance: a call that waits in the host without letting go of the
/// instance runs none of the guest's code, where computing is counted, and lets nothing else be run within.
#[derive(Default)]
struct Progress {
    /// How often all calls had their turn.
    turns: AtomicU64,
    /// Whether there are any.
    is_busy: AtomicBool,
    /// Whether the only one is `open`, which delays nobody.
    is_opening: AtomicBool,
}

impl Progress {
    fn made(&self, computing: &Computing) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        self.is_busy.store(!computing.is_idle(), Ordering::Relaxed);
        self.is_opening.store(computing.is_opening(), Ordering::Relaxed);
    }

    /// Waits until no call has had its turn for too long, and says so. It is looked at so many times in between, since a
    /// machine that was halted is late only once.
    async fn stands_still(&self, limits: Limits) -> wasmtime::Error {
        let (mut seen, mut missed) = (0, 0_u32);
        loop {
            tokio::time::sleep(limits.turn / LOOKS).await;
            let turns = self.turns.load(Ordering::Relaxed);
            if turns != seen || !self.is_busy.load(Ordering::Relaxed) {
                (seen, missed) = (turns, 0);
                continue;
            }
            missed = missed.saturating_add(1);
            let (limit, setting) = if self.is_opening.load(Ordering::Relaxed) {
                (limits.call, "DATABROKER_PLUGIN_CALL_TIME")
            } else {
                (limits.turn, "DATABROKER_PLUGIN_TURN_TIME")
            };
            if limits.turn.saturating_mul(missed) / LOOKS >= limit {
                return wasmtime::format_err!(
                    "it was in a call of the host's for more than {limit:?} without giving other calls their turn ({setting})"
                );
            }
        }
    }
}

/// For how many epochs an instance has computed.
pub(super) struct Computing {
    /// Since when it computes: since it was last looked at, or went on after that.
    since: Arc<Mutex<Instant>>,
    /// The calls that are under way.
    calls: HashMap<GuestTaskId, UnderWay>,
    /// For none of them, since one last ended: what a call leaves behind after its answer.
    other: u64,
    /// In all.
    all: u64,
    /// Without having let go of the instance.
    turn: u64,
}

/// A call that is under way.
struct UnderWay {
    /// The function's name.
    name: &'static str,
    /// For how many epochs it has computed.
    epochs: u64,
}

impl Default for Computing {
    fn default() -> Self {
        Self {
            since: Arc::new(Mutex::new(Instant::now())),
            calls: HashMap::new(),
            other: 0,
            all: 0,
            turn: 0,
        }
    }
}

impl Computing {
    fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    fn begin(&mut self, call: GuestTaskId, name: &'static str) {
        self.calls.insert(call, UnderWay { name, epochs: 0 });
    }

    fn end(&mut self, call: GuestTaskId) {
        self.calls.remove(&call);
        self.other = 0;
    }

    /// All calls have had their turn.
    fn next_turn(&mut self) {
        self.turn = 0;
        *self.since.lock() = Instant::now();
    }

    /// True while the store is being opened: nobody else calls before that is done.
    fn is_opening(&self) -> bool {
        self.calls.values().any(|call| call.name == OPEN)
    }

    /// Counts what has passed since it was last looked at, and says how many that makes.
    fn count(&mut self, call: Option<GuestTaskId>) -> u64 {
        let passed = epochs_passed(self.since.lock().elapsed());
        self.all = self.all.saturating_add(passed);
        self.turn = self.turn.saturating_add(passed);
        let epochs = match call.and_then(|call| self.calls.get_mut(&call)) {
            Some(call) => &mut call.epochs,
            None => &mut self.other,
        };
        *epochs = epochs.saturating_add(passed);
        *epochs
    }

    /// For how many it has computed that were not this call's.
    fn of_others(&self, call: GuestTaskId) -> u64 {
        let own = self.calls.get(&call).map_or(0, |call| call.epochs);
        self.all.saturating_sub(own)
    }

    /// The functions that are under way, each with how often.
    fn functions(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for call in self.calls.values() {
            *counts.entry(call.name).or_default() += 1;
        }
        let count = |(name, count): (&str, usize)| match count {
            1 => name.to_owned(),
            count => format!("{name} ({count} times)"),
        };
        counts.into_iter().map(count).collect::<Vec<_>>().join(", ")
    }
}

/// How many epochs are counted for the time since an instance was last looked at. It is looked at in each, unless the host
/// itself is at work for it, or nothing ran at all: on a busy or a halted machine that is not the plugin's doing.
fn epochs_passed(time: Duration) -> u64 {
    /// A look that is late by less is the machine's doing.
    const LATE: Duration = Duration::from_millis(100);
    /// No more is counted at once, so that a machine that was halted for a minute does not end what runs on it.
    const MOST: Duration = Duration::from_secs(1);
    if time < LATE { 1 } else { epochs(time.min(MOST)) }
}

fn epochs(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() / EPOCH.as_nanos()).unwrap_or(u64::MAX)
}

/// Stops a plugin that computes for too long, and until then makes it let go of the thread after each epoch.
///
/// It is counted for each call by itself: calls that end do not give others more time, and many calls that wait for their
/// turn do not make any of them late.
///
/// What it may compute at a stretch is bounded besides: no other call goes on meanwhile.
fn bound_compute(store: &mut Store<State>, limits: Limits) {
    let Limits { compute, turn, .. } = limits;
    let (most, most_at_a_stretch) = (epochs(compute), epochs(turn));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |mut context| {
        // The last of the stack is what the host has called.
        let call = context.async_call_stack()?.last();
        let computing = &mut context.data_mut().computing;
        if computing.count(call) > most {
            wasmtime::bail!("it computed for more than {compute:?} in one call (DATABROKER_PLUGIN_COMPUTE_TIME)");
        }
        if computing.turn > most_at_a_stretch && !computing.is_opening() {
            wasmtime::bail!(
                "it computed for more than {turn:?} without giving other calls their turn (DATABROKER_PLUGIN_TURN_TIME)"
            );
        }
        let since = Arc::clone(&computing.since);
        let pause = async move {
            // The runtime's own way of yielding lets timers and sockets have their turn too, which a task that only wakes
            // itself does not.
            tokio::task::yield_now().await;
            *since.lock() = Instant::now();
        };
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(pause)))
    });
}

/// Why an instance has ended, with all that helps its author.
fn report(plugin: &str, limits: Limits, state: &State, error: &wasmtime::Error) -> Report {
    let mut cause = convert::text(&error.root_cause().to_string());
    let met = bound::met(&cause, &limits);
    // A program that gets no memory says so on its standard error, if at all, and then traps like any other.
    for bound in met.into_iter().chain(state.memory.refused()) {
        cause.push_str("; ");
        cause.push_str(&bound);
    }
    Report {
        plugin: plugin.to_owned(),
        cause,
        calls: state.computing.functions(),
        backtrace: format!("{error:?}"),
        standard_error: state.log.standard_error(),
        last_lines: state.log.last_lines(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_host_calls_counts_and_a_halted_machine_hardly() {
        for (milliseconds, expected) in [(0, 1), (10, 1), (99, 1), (250, 25), (1000, 100), (3_600_000, 100)] {
            assert_eq!(
                epochs_passed(Duration::from_millis(milliseconds)),
                expected,
                "{milliseconds} ms"
            );
        }
    }
}
