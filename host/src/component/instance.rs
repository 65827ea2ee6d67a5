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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use wasmtime::component::{Accessor, ComponentNamedList, ComponentType, GuestTaskId, Lift, Lower, TypedFunc};
use wasmtime::{AsContextMut as _, Store};

use super::bindings::store::Guest;
use super::computing::{Computing, bound_compute};
use super::engine::EPOCH;
use super::gate::{Closing, Gate, Refused};
use super::log::PluginLog;
use super::plugin::Plugin;
use super::report::{Report, Reports};
use super::sql::Sql;
use super::state::State;
use super::{Limits, bound, convert};
use crate::backend::BackendError;
use crate::data::Descriptors;

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
    /// [`BackendError::Stopped`] if the instance has ended, before or meanwhile; [`BackendError::NotCalled`] if it was not
    /// let in.
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
        self.call_for(1, name, function, parameters).await
    }

    /// The same for a call with several answers, each of which may be as large as one call's: it takes so much room.
    pub(super) async fn call_for<P, R>(
        &self,
        answers: usize,
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
            match self.gate.enter(answers).await {
                Ok(permit) => Some(permit),
                Err(Refused::Ended) => return Err(self.stopped().await),
                Err(Refused::Busy(why)) => return Err(BackendError::NotCalled(why)),
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
    fn what_is_called_apart_are_functions_of_the_interface() {
        let interface = include_str!("../../../wit/storage-0.1.0/store.wit");
        let adapter = include_str!("adapter.rs");
        for name in APART.iter().chain([&NEWS.0]) {
            assert!(interface.contains(&format!("    {name}: async func(")), "{name}");
            assert!(adapter.contains(&format!("ask(\"{name}\",")), "{name}");
        }
    }
}
