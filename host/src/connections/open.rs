//! The connections that are open, and which of them goes where there is no room for another.
//!
//! Whoever can reach the port can open connections, and hold them. So a connection on which no call has yet shown a
//! good token is a stranger's, and where there are as many connections as there may be, the oldest of a stranger makes
//! room for the new one: holding connections keeps nobody out who has a token. Only where none is a stranger's is the
//! new one refused.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::transport::server::TcpConnectInfo;

/// How many connections there may be above the most, being those that make room and are not gone yet.
const LEAVING: usize = 32;

/// The open connections of a listener. Clones share them.
#[derive(Clone)]
pub struct OpenConnections(Arc<Shared>);

struct Shared {
    most: usize,
    state: Mutex<State>,
    /// Told when one is gone.
    gone: Notify,
}

#[derive(Default)]
struct State {
    /// All of them.
    count: usize,
    /// Those of them that were cut and are not gone yet.
    leaving: usize,
    /// The number of the next one.
    next: u64,
    /// Those on which nobody has shown a token, oldest first.
    strangers: BTreeMap<u64, Arc<Cut>>,
}

impl OpenConnections {
    /// None yet, and at most so many at a time.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Shared {
            most,
            state: Mutex::default(),
            gone: Notify::new(),
        }))
    }

    /// How many there are now.
    pub fn count(&self) -> u64 {
        u64::try_from(self.0.state.lock().count).unwrap_or(u64::MAX)
    }

    /// Returns once there are not too many that are only about to go.
    pub(super) async fn few_leaving(&self) {
        loop {
            // Registered before the look, so that nothing is missed in between.
            let mut gone = pin!(self.0.gone.notified());
            gone.as_mut().enable();
            if self.0.state.lock().leaving < LEAVING {
                return;
            }
            gone.await;
        }
    }

    /// Counts a connection until what is returned is dropped. Says whether another one has to go for it; none where
    /// there is no room.
    pub(crate) fn open(&self) -> Option<(OpenConnection, Displaced)> {
        let mut state = self.0.state.lock();
        let mut displaced = Displaced::None;
        if state.count.saturating_sub(state.leaving) >= self.0.most {
            let (_, stranger) = state.strangers.pop_first()?;
            state.leaving = state.leaving.saturating_add(1);
            stranger.cut();
            displaced = Displaced::Stranger;
        }
        let number = state.next;
        let cut = Arc::new(Cut::default());
        state.next = number.wrapping_add(1);
        state.count = state.count.saturating_add(1);
        state.strangers.insert(number, Arc::clone(&cut));
        let handle = Handle {
            all: self.clone(),
            number,
            cut,
            is_known: AtomicBool::new(false),
        };
        Some((OpenConnection(Arc::new(handle)), displaced))
    }
}

impl fmt::Debug for OpenConnections {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("OpenConnections").field(&self.count()).finish()
    }
}

/// What happened to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Displaced {
    /// Nothing: there was room.
    None,
    /// A stranger's connection was ended.
    Stranger,
}

/// One of them. It is counted until this is dropped.
pub(crate) struct OpenConnection(Arc<Handle>);

impl OpenConnection {
    /// What the calls of this connection know of it.
    pub(crate) fn peer(&self, info: TcpConnectInfo) -> Peer {
        Peer {
            info: Some(info),
            connection: Some(Arc::clone(&self.0)),
        }
    }

    /// Ready once the connection has to end; the caller is woken then.
    pub(super) fn poll_cut(&self, context: &Context<'_>) -> Poll<()> {
        self.0.cut.poll(context)
    }

    /// Returns once the connection has to end.
    pub(crate) async fn cut(&self) {
        poll_fn(|context| self.poll_cut(context)).await;
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let Handle {
            all,
            number,
            cut,
            is_known,
        } = &*self.0;
        let mut state = all.0.state.lock();
        state.count = state.count.saturating_sub(1);
        if state.strangers.remove(number).is_none() && !is_known.load(Ordering::Relaxed) && cut.is_cut() {
            state.leaving = state.leaving.saturating_sub(1);
        }
        drop(state);
        all.0.gone.notify_waiters();
    }
}

/// What is known of a connection while it may already be gone.
struct Handle {
    all: OpenConnections,
    number: u64,
    cut: Arc<Cut>,
    /// True once a call has shown a good token.
    is_known: AtomicBool,
}

/// The other end of a connection, as its calls know it.
#[derive(Clone, Default)]
pub struct Peer {
    /// The addresses. None where there is no connection, as in tests.
    info: Option<TcpConnectInfo>,
    connection: Option<Arc<Handle>>,
}

impl Peer {
    /// The client's address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.info.as_ref().and_then(TcpConnectInfo::remote_addr)
    }

    /// A call on this connection has shown a good token: it is no stranger's.
    pub fn set_known(&self) {
        let Some(handle) = &self.connection else { return };
        if handle.is_known.load(Ordering::Relaxed) {
            return;
        }
        let mut state = handle.all.0.state.lock();
        // One that was cut already stays a stranger's, as which it is counted.
        if state.strangers.remove(&handle.number).is_some() {
            handle.is_known.store(true, Ordering::Relaxed);
        }
    }

    /// Ends the connection.
    pub fn cut(&self) {
        if let Some(handle) = &self.connection {
            // So that it is not counted as one that makes room.
            self.set_known();
            handle.cut.cut();
        }
    }
}

#[cfg(test)]
impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        let info = TcpConnectInfo {
            local_addr: None,
            remote_addr: Some(address),
        };
        Self {
            info: Some(info),
            connection: None,
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Peer").field(&self.info).finish()
    }
}

/// The end of a connection that comes from this side.
#[derive(Default)]
struct Cut {
    is_cut: AtomicBool,
    /// Of the task that serves the connection.
    waker: AtomicWaker,
}

impl Cut {
    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Acquire)
    }

    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        if !self.is_cut() {
            self.waker.register(context.waker());
            if !self.is_cut() {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::FutureExt as _;

    use super::*;

    fn info() -> TcpConnectInfo {
        TcpConnectInfo {
            local_addr: None,
            remote_addr: None,
        }
    }

    fn is_cut(connection: &OpenConnection) -> bool {
        connection.cut().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_stranger_makes_room_and_nobody_else() {
        let open = OpenConnections::new(3);
        let take = || open.open();
        let (known, _) = take().unwrap();
        let (old, _) = take().unwrap();
        let (young, displaced) = take().unwrap();
        assert_eq!(displaced, Displaced::None);
        known.peer(info()).set_known();

        let (third, displaced) = take().unwrap();
        assert_eq!(displaced, Displaced::Stranger);
        assert_eq!([&known, &old, &young, &third].map(is_cut), [false, true, false, false]);
        // A token that comes too late does not make two of one.
        old.peer(info()).set_known();
        assert_eq!(open.count(), 4);
        drop(old);
        assert_eq!(open.count(), 3);

        for connection in [&young, &third] {
            connection.peer(info()).set_known();
        }
        assert!(take().is_none(), "all of them have shown a token");
        drop(young);
        assert!(take().is_some());
    }

    #[tokio::test]
    async fn those_that_leave_are_few() {
        let open = OpenConnections::new(1);
        let mut taken = Vec::new();
        for _ in 0..=LEAVING {
            open.few_leaving().await;
            taken.push(open.open().unwrap().0);
        }
        assert!(open.few_leaving().now_or_never().is_none());
        taken.remove(0);
        open.few_leaving().await;
        // One that is ended for another reason is not one of them.
        let last = taken.last().unwrap();
        last.peer(info()).cut();
        assert!(is_cut(last));
        drop(taken);
        assert_eq!(open.count(), 0);
        assert_eq!(open.0.state.lock().leaving, 0);
    }
}
