//! One running instance of a plugin: a task that owns it, and a channel of calls.
//!
//! A component's memory belongs to one thread at a time, so that a task of its own holds the instance and everybody else
//! sends it calls. All calls that came since it last looked are started together; while one of them waits for something,
//! the others go on. Each call runs to its end even where nobody waits for its answer any more, since half of a write is
//! worse than either.
//!
//! After a trap an instance is never entered again: its memory may be in any state. What was under way and what comes
//! later gets [`BackendError::Stopped`] with the cause. Nothing here starts it again; whoever holds it can start another
//! one from the same [`Plugin`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, oneshot, watch};
use wasmtime::component::{Accessor, ComponentNamedList, ComponentType, GuestTaskId, Lift, Lower, TypedFunc};
use wasmtime::{AsContextMut as _, Store, UpdateDeadline};

use super::bindings::store::Guest;
use super::convert;
use super::engine::EPOCH;
use super::log::PluginLog;
use super::plugin::Plugin;
use super::state::State;
use crate::backend::BackendError;
use crate::data::Descriptors;

/// How many calls may wait for the instance to look; more of them wait to be let in.
const WAITING: usize = 256;

/// How many calls may be under way in the instance at once.
const UNDER_WAY: usize = 1024;

/// What an instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// For how long it may compute for one call. The time that the call waits does not count; it is measured in steps of
    /// 10 ms, of which going on after a pause is one.
    pub compute: Duration,
    /// Bytes of what one call may return.
    pub answer_bytes: usize,
}

impl Default for Limits {
    /// All the memory that 32 bits can address, 30 seconds and 128 MiB.
    fn default() -> Self {
        Self {
            // The last page of the 4 GiB stays out, since no length of 32 bits can say the whole.
            memory_bytes: usize::try_from((1_u64 << 32) - (1 << 16)).unwrap_or(usize::MAX),
            compute: Duration::from_secs(30),
            answer_bytes: 128 * 1024 * 1024,
        }
    }
}

/// A call, as it goes to the instance's task.
type Job = Box<dyn for<'a> FnOnce(&'a Accessor<State>, &'a Guest) -> BoxFuture<'a, wasmtime::Result<()>> + Send>;

/// A running instance. The task ends when this is dropped and what was under way is done, or with a trap.
pub(super) struct Instance {
    /// Calls to the task.
    jobs: mpsc::Sender<Job>,
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
    pub(super) async fn start(plugin: &Plugin, descriptors: Arc<Descriptors>, limits: Limits) -> Result<Self, String> {
        let log = PluginLog::new(plugin.name());
        let state = State::new(log.clone(), descriptors, limits.memory_bytes);
        let mut store = Store::new(plugin.linked().engine(), state);
        let memory = store.data().memory.shown();
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(limits.answer_bytes);
        bound_compute(&mut store, limits.compute);
        let world = plugin.linked().instantiate_async(&mut store).await;
        let world = match world {
            Ok(world) => world,
            Err(error) => return Err(report(plugin.name(), store.data(), &error)),
        };
        let guest = world.databroker_storage_store().clone();

        let (jobs, received) = mpsc::channel(WAITING);
        let (end, ended) = watch::channel(None);
        let name = plugin.name().to_owned();
        tokio::spawn(async move {
            let mut received = received;
            let outcome = store
                .run_concurrent(async |accessor| serve(accessor, &guest, &mut received).await)
                .await
                .flatten();
            if let Err(error) = outcome {
                // The cause is known before the calls in the channel are let go of, since their callers ask for it.
                end.send_replace(Some(report(&name, store.data(), &error)));
            }
        });
        Ok(Self {
            jobs,
            ended,
            memory,
            log,
        })
    }

    /// Bytes of its memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// How many of its lines were left out of the log.
    pub(super) fn log_lines_dropped(&self) -> u64 {
        self.log.dropped()
    }

    /// Makes a call and waits for what it returns. Waits for room first, where many calls wait already. A call that was
    /// let in is finished even if the future is dropped.
    ///
    /// # Errors
    ///
    /// [`BackendError::Stopped`] if the instance has trapped, before or meanwhile.
    pub(super) async fn call<P, R>(
        &self,
        function: fn(&Guest) -> TypedFunc<P, (R,)>,
        parameters: P,
    ) -> Result<R, BackendError>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentType + Lift + Send + Sync + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |accessor, guest| {
            let function = function(guest);
            async move {
                let call = accessor.with(|mut access| -> wasmtime::Result<_> {
                    if access.get().computing.is_idle() {
                        access.as_context_mut().set_epoch_deadline(1);
                    }
                    let call = function.start_call_concurrent(access.as_context_mut(), parameters)?;
                    access.get().computing.begin(call.task());
                    Ok(call)
                })?;
                let task = call.task();
                let (returned,) = function.finish_call_concurrent(accessor, call).await?;
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

    /// Why the instance no longer answers.
    async fn stopped(&self) -> BackendError {
        let mut ended = self.ended.clone();
        let cause = ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|cause| cause.clone());
        BackendError::Stopped(cause.unwrap_or_else(|| "its task was ended".to_owned()))
    }
}

/// Starts calls as they come, as many as may be under way at once, until no more can come.
async fn serve(accessor: &Accessor<State>, guest: &Guest, received: &mut mpsc::Receiver<Job>) -> wasmtime::Result<()> {
    let mut jobs = Vec::new();
    let mut under_way = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() {
        let room = UNDER_WAY.saturating_sub(under_way.len());
        tokio::select! {
            count = received.recv_many(&mut jobs, room), if open && room > 0 => {
                open = count > 0;
                under_way.extend(jobs.drain(..).map(|job| job(accessor, guest)));
            }
            Some(done) = under_way.next() => done?,
        }
    }
    Ok(())
}

/// For how many epochs an instance has computed.
#[derive(Default)]
pub(super) struct Computing {
    /// For each call that is under way.
    calls: HashMap<GuestTaskId, u64>,
    /// For none of them, since one last ended: what a call leaves behind after its answer.
    other: u64,
}

impl Computing {
    fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    fn begin(&mut self, call: GuestTaskId) {
        self.calls.insert(call, 0);
    }

    fn end(&mut self, call: GuestTaskId) {
        self.calls.remove(&call);
        self.other = 0;
    }

    /// Counts one more, and says how many that makes.
    fn count(&mut self, call: Option<GuestTaskId>) -> u64 {
        let epochs = match call.and_then(|call| self.calls.get_mut(&call)) {
            Some(epochs) => epochs,
            None => &mut self.other,
        };
        *epochs = epochs.saturating_add(1);
        *epochs
    }
}

/// Stops a plugin that computes for too long, and until then makes it let go of the thread after each epoch.
///
/// It is counted for each call by itself: calls that end do not give others more time, and many calls that wait for their
/// turn do not make any of them late.
fn bound_compute(store: &mut Store<State>, compute: Duration) {
    let most = u64::try_from(compute.as_nanos() / EPOCH.as_nanos()).unwrap_or(u64::MAX);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |mut context| {
        // The last of the stack is what the host has called.
        let call = context.async_call_stack()?.last();
        if context.data_mut().computing.count(call) > most {
            wasmtime::bail!("it computed for more than {compute:?} in one call");
        }
        // The runtime's own way of yielding lets timers and sockets have their turn too, which a task that only wakes
        // itself does not.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
}

/// Logs why an instance has ended, with all that helps its author, and says the cause in a line.
fn report(plugin: &str, state: &State, error: &wasmtime::Error) -> String {
    let mut cause = convert::text(&error.root_cause().to_string());
    if let Some(limit) = state.memory.refused() {
        // A program that gets no memory says so on its standard error, if at all, and then traps like any other.
        cause.push_str(&format!("; it had asked for memory beyond its limit of {limit} bytes"));
    }
    tracing::error!(
        plugin,
        cause,
        backtrace = format!("{error:?}"),
        standard_error = state.log.standard_error(),
        "the plugin's instance has stopped"
    );
    cause
}
