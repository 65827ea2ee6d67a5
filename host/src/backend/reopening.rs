//! How a store that stopped and was opened again comes back into use.
//!
//! What comes back may be the store that went, or an empty one under another server version. Whoever stands in front of it
//! holds positions, recent changes and options, and would join the new content to the old server version if a call reached
//! the new store first. So the store stays out of reach until what stands in front has adopted it: that one decides when,
//! between two of its writes.

use tokio::sync::{mpsc, oneshot, watch};

use super::Position;

/// Whether a store can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It is open.
    Open,
    /// It has stopped, and is being opened again. Calls wait for it for a moment, but for writes of records, for which the broker waits.
    Reopening,
    /// It has stopped for good.
    Ended,
}

/// A store that was opened again and that no call has reached yet. Dropping it adopts it, too.
#[derive(Debug)]
pub struct Reopened {
    /// Where the store stands.
    pub position: Position,
    /// Told by being dropped.
    _adopted: oneshot::Sender<()>,
}

impl Reopened {
    /// Lets calls reach the store from now on.
    pub fn adopt(self) {}
}

/// What happens to a store.
#[derive(Debug)]
pub enum Event {
    /// It was opened again: adopt it.
    Reopened(Reopened),
    /// Its availability is another one.
    Availability,
}

/// Tells one listener what happens to a store.
#[derive(Debug)]
pub struct Reopenings {
    reopened: mpsc::Receiver<Reopened>,
    availability: watch::Receiver<Availability>,
}

impl Reopenings {
    /// Those of a store that is open now, and what tells of them.
    pub fn channel() -> (Reopener, Self) {
        let (reopened, received) = mpsc::channel(1);
        let (availability, watched) = watch::channel(Availability::Open);
        let reopener = Reopener { reopened, availability };
        let reopenings = Self {
            reopened: received,
            availability: watched,
        };
        (reopener, reopenings)
    }

    /// Those of a store that is never opened again.
    pub fn never() -> Self {
        Self::channel().1
    }

    /// Whether the store can be asked now.
    pub fn availability(&self) -> Availability {
        *self.availability.borrow()
    }

    /// The same for others to watch.
    pub fn watch(&self) -> watch::Receiver<Availability> {
        self.availability.clone()
    }

    /// Waits until something happens: for ever, where nothing can. Nothing is lost where the future is dropped.
    pub async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            Some(reopened) = self.reopened.recv() => Event::Reopened(reopened),
            Ok(()) = self.availability.changed() => Event::Availability,
            else => std::future::pending().await,
        }
    }
}

/// Tells what happens to a store.
#[derive(Debug)]
pub struct Reopener {
    reopened: mpsc::Sender<Reopened>,
    availability: watch::Sender<Availability>,
}

impl Reopener {
    /// Says whether the store can be asked.
    pub fn set(&self, availability: Availability) {
        self.availability.send_if_modified(|current| {
            let is_new = *current != availability;
            *current = availability;
            is_new
        });
    }

    /// Says that the store was opened again and stands here; returns once it is adopted, or there is nobody to do so.
    pub async fn reopened(&self, position: Position) {
        let (_adopted, adopted) = oneshot::channel();
        if self.reopened.send(Reopened { position, _adopted }).await.is_ok() {
            // Nothing is ever sent: it ends when the other side is dropped.
            let _ = adopted.await;
        }
    }
}
