//! The calls that are open: what a shutdown waits for, and what it ends.
//!
//! A call is open from its request until the transport has taken the last of its answer. Connections do not count, as
//! one that carries no call is nobody's loss. Once the store is closed, whatever still has no answer waits for its
//! client: for the rest of a request, or for the next question of a stream. So it is answered then with UNAVAILABLE, by
//! the layer in `call`, and no service needs to know of the end.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, watch};

/// The open calls of one server. Clones share them.
#[derive(Clone, Default)]
pub struct OpenCalls(Arc<Shared>);

#[derive(Default)]
struct Shared {
    count: AtomicUsize,
    /// Told when the count falls to 0.
    none: Notify,
    /// True once no further answer is waited for.
    ended: watch::Sender<bool>,
}

impl OpenCalls {
    /// How many there are now.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::SeqCst)
    }

    /// Counts a call until what is returned is dropped.
    pub(super) fn open(&self) -> OpenCall {
        self.0.count.fetch_add(1, Ordering::SeqCst);
        OpenCall(self.clone())
    }

    /// Ends each call that would have to wait for anything, now or later.
    pub fn end(&self) {
        self.0.ended.send_replace(true);
    }

    /// Returns once [`OpenCalls::end`] was called.
    pub(super) async fn ended(self) {
        // The sender cannot be gone, since this holds it.
        let _ = self.0.ended.subscribe().wait_for(|ended| *ended).await;
    }

    /// Returns once there are none.
    pub async fn none(&self) {
        loop {
            // Registered before the look, so that nothing is missed in between.
            let mut none = pin!(self.0.none.notified());
            none.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            none.await;
        }
    }
}

impl fmt::Debug for OpenCalls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("OpenCalls").field(&self.count()).finish()
    }
}

/// One open call.
pub(super) struct OpenCall(OpenCalls);

impl OpenCall {
    /// All of them.
    pub(super) fn calls(&self) -> &OpenCalls {
        &self.0
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let Shared { count, none, .. } = &*self.0.0;
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            none.notify_waiters();
        }
    }
}
