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
    /// that answers so many.
    ///
    /// # Errors
    ///
    /// [`Refused`] if it is not let in: nothing was called.
    pub(super) async fn enter(&self, answers: usize) -> Result<OwnedSemaphorePermit, Refused> {
        let all = self.limits.calls.clamp(1, Semaphore::MAX_PERMITS);
        let taken = u32::try_from(answers.clamp(1, all)).unwrap_or(u32::MAX);
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
                "the storage plugin is busy: {calls} calls are under way and {queue} wait (DATABROKER_PLUGIN_CALLS, \
                 DATABROKER_PLUGIN_QUEUE); nothing was changed, try again"
            )));
        }
        match tokio::time::timeout(queue_time, Arc::clone(&self.room).acquire_many_owned(taken)).await {
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
    async fn a_call_with_many_answers_takes_the_room_of_as_many_calls_but_no_more_than_there_is() {
        let gate = Gate::new(Limits {
            calls: 4,
            queue_time: Duration::from_millis(10),
            ..Limits::default()
        });
        let gate = &gate;
        let enter = |answers| async move { gate.enter(answers).await.ok() };
        let three = enter(3).await;
        assert!(three.is_some());
        assert!(enter(2).await.is_none());
        let one = enter(1).await;
        assert!(one.is_some());
        drop((three, one));
        let all = enter(16).await;
        assert!(all.is_some());
        assert!(enter(1).await.is_none());
    }
}
