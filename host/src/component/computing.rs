//! For how long an instance computes, in epochs of the engine's clock: for each call by itself, and without letting others have
//! their turn.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use wasmtime::component::GuestTaskId;
use wasmtime::{Store, UpdateDeadline};

use super::Limits;
use super::engine::EPOCH;
use super::state::State;

/// The call that is there before all others.
const OPEN: &str = "open";

/// For how many epochs an instance has computed.
pub(super) struct Computing {
    /// Since when it computes: since it was last looked at, or went on after that.
    since: Arc<Mutex<Instant>>,
    /// The calls that are under way.
    calls: HashMap<GuestTaskId, UnderWay>,
    /// For none of them: what calls leave behind after their answers. Counted anew after a while.
    left_behind: u64,
    left_behind_since: Instant,
    /// In all.
    all: u64,
    /// Without having let go of the instance.
    turn: u64,
    /// What the host has done for it, which is not counted yet.
    worked: u64,
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
            left_behind: 0,
            left_behind_since: Instant::now(),
            all: 0,
            turn: 0,
            worked: 0,
        }
    }
}

impl Computing {
    /// True while there are no calls.
    pub(super) fn is_idle(&self) -> bool {
        self.calls.is_empty()
    }

    /// A call has begun.
    pub(super) fn begin(&mut self, call: GuestTaskId, name: &'static str) {
        self.calls.insert(call, UnderWay { name, epochs: 0 });
    }

    /// It has ended.
    pub(super) fn end(&mut self, call: GuestTaskId) {
        self.calls.remove(&call);
    }

    /// All calls have had their turn.
    pub(super) fn next_turn(&mut self) {
        self.turn = 0;
        *self.since.lock() = Instant::now();
    }

    /// True while the store is being opened: nobody else calls before that is done.
    pub(super) fn is_opening(&self) -> bool {
        self.calls.values().any(|call| call.name == OPEN)
    }

    /// Counts what has passed since it was last looked at, and says how many that makes: of the call, or of what none of them has
    /// asked for within a time.
    fn count(&mut self, call: Option<GuestTaskId>, within: Duration) -> u64 {
        let passed = epochs_passed(self.since.lock().elapsed()).saturating_add(std::mem::take(&mut self.worked));
        self.all = self.all.saturating_add(passed);
        self.turn = self.turn.saturating_add(passed);
        let epochs = match call.and_then(|call| self.calls.get_mut(&call)) {
            Some(call) => &mut call.epochs,
            None => {
                if self.left_behind_since.elapsed() > within {
                    self.left_behind_since = Instant::now();
                    self.left_behind = 0;
                }
                &mut self.left_behind
            }
        };
        *epochs = epochs.saturating_add(passed);
        *epochs
    }

    /// For how many it has computed that were not this call's.
    pub(super) fn of_others(&self, call: GuestTaskId) -> u64 {
        let own = self.calls.get(&call).map_or(0, |call| call.epochs);
        self.all.saturating_sub(own)
    }

    /// Counts how long the host itself was at work for it just now.
    pub(super) fn worked(&mut self, time: Duration) {
        /// What is beyond the bounds of such work is time in which the machine was halted.
        const MOST: Duration = Duration::from_secs(8);
        self.worked = self.worked.saturating_add(epochs(time.min(MOST)));
        *self.since.lock() = Instant::now();
    }

    /// The functions that are under way, each with how often.
    pub(super) fn functions(&self) -> String {
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
pub(super) fn bound_compute(store: &mut Store<State>, limits: Limits) {
    let Limits { compute, turn, .. } = limits;
    let (most, most_at_a_stretch) = (epochs(compute), epochs(turn));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(move |mut context| {
        // The last of the stack is what the host has called.
        let call = context.async_call_stack()?.last();
        let computing = &mut context.data_mut().computing;
        // What is left behind may compute for half of the time.
        if computing.count(call, compute * 2) > most {
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

    #[test]
    fn what_is_left_behind_is_counted_over_a_time() {
        let mut computing = Computing::default();
        for round in 1..=3 {
            computing.worked(Duration::from_secs(5));
            let counted = computing.count(None, Duration::from_secs(3600));
            assert!((500 * round..600 * round).contains(&counted), "{counted}");
        }
        assert_eq!(computing.count(None, Duration::ZERO), 1, "and then anew");
    }
}
