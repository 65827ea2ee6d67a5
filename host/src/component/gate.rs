//! How many calls of clients an instance has at once, and how many wait to be let in, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::Limits;

/// Lets as many calls in as may be under way.
pub(super) struct Gate {
    room: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: Limits,
}

/// Why a call was not let in.
pub(super) enum Refused {
    /// There is no instance any more.
    Ended,
    /// There are too many calls; for the caller.
    Busy(String),
}

impl Gate {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            room: Arc::new(Semaphore::new(limits.calls.clamp(1, Semaphore::MAX_PERMITS))),
            waiting: AtomicUsize::new(0),
            limits,
        }
    }

    /// Waits until there is room for a call, which is taken until the permit is dropped: that of so many calls, for one
    /// that answers so many. A quarter of all is the most, since what waits for its room keeps what is free from others.
    ///
    /// # Errors
    ///
    /// [`Refused`] if it is not let in: nothing was called.
    pub(super) async fn enter(&self, answers: usize) -> Result<OwnedSemaphorePermit, Refused> {
        let most = (self.limits.calls / 4).clamp(1, Semaphore::MAX_PERMITS);
        let taken = u32::try_from(answers.clamp(1, most)).unwrap_or(u32::MAX);
        match Arc::clone(&self.room).try_acquire_many_owned(taken) {
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
                "the storage plugin is busy: it has no room among its {calls} calls, and {queue} wait \
                 (DATABROKER_PLUGIN_CALLS, DATABROKER_PLUGIN_QUEUE); nothing was changed, try again"
            )));
        }
        match tokio::time::timeout(queue_time, Arc::clone(&self.room).acquire_many_owned(taken)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Refused::Ended),
            Err(_) => Err(Refused::Busy(format!(
                "the storage plugin is busy: its {calls} calls (DATABROKER_PLUGIN_CALLS) have not made room within \
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
pub(super) struct Closing(pub(super) Arc<Gate>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.room.close();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_call_with_many_answers_takes_the_room_of_as_many_calls_but_of_a_quarter_at_most() {
        let gate = Gate::new(Limits {
            calls: 8,
            queue_time: Duration::from_millis(10),
            ..Limits::default()
        });
        let gate = &gate;
        let enter = |answers| async move { gate.enter(answers).await.ok() };
        let mut entered = Vec::new();
        // With room for one only, three are no more than two, and wait.
        for (answers, room) in [
            (1, true),
            (2, true),
            (3, true),
            (16, true),
            (3, false),
            (1, true),
            (1, false),
        ] {
            let permit = enter(answers).await;
            assert_eq!(permit.is_some(), room, "{answers} after {entered:?}");
            entered.extend(permit);
        }
    }

    #[tokio::test]
    async fn a_call_with_many_answers_keeps_no_other_from_a_gate_that_is_far_from_full() {
        for calls in [2, 4, 32] {
            let gate = Gate::new(Limits {
                calls,
                ..Limits::default()
            });
            let under_way = gate.enter(1).await.ok();
            let many = gate.enter(64).await.ok();
            assert!(under_way.is_some() && many.is_some(), "of {calls}");
        }
    }
}
