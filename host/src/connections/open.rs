//! The connections that are open, and which of them goes where there is no room for another.
//!
//! Whoever can reach the port can open connections, and hold them. So a connection on which no call has yet shown a
//! good token is a stranger's, and where there are as many connections as there may be, a stranger's makes room for the
//! new one: holding connections keeps nobody out who has a token. It is the oldest one of the address that has most of
//! them, so that whoever opens many displaces its own, and not one that is about to show its token. Only where none is a
//! stranger's is the new one refused.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    strangers: Strangers,
}

/// The connections on which nobody has shown a token: of each address those that it has, oldest first.
#[derive(Default)]
struct Strangers(BTreeMap<IpAddr, BTreeMap<u64, Arc<Cut>>>);

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

    /// Counts a connection of a client at this address until what is returned is dropped. Says whether a stranger's
    /// connection was ended to make room for it; none where there is no room.
    pub(crate) fn open(&self, client: IpAddr) -> Option<(OpenConnection, bool)> {
        let client = one_client(client);
        let mut state = self.0.state.lock();
        let is_full = state.count.saturating_sub(state.leaving) >= self.0.most;
        if is_full {
            let stranger = state.strangers.displace()?;
            state.leaving = state.leaving.saturating_add(1);
            stranger.cut();
        }
        let number = state.next;
        let cut = Arc::new(Cut::default());
        state.next = number.wrapping_add(1);
        state.count = state.count.saturating_add(1);
        state.strangers.add(client, number, Arc::clone(&cut));
        let handle = Handle {
            all: self.clone(),
            client,
            number,
            cut,
            is_known: AtomicBool::new(false),
            untaken: AtomicUsize::new(0),
        };
        Some((OpenConnection(Arc::new(handle)), is_full))
    }
}

impl fmt::Debug for OpenConnections {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("OpenConnections").field(&self.count()).finish()
    }
}

impl Strangers {
    fn add(&mut self, client: IpAddr, number: u64, cut: Arc<Cut>) {
        self.0.entry(client).or_default().insert(number, cut);
    }

    /// Says whether it was one of them.
    fn remove(&mut self, client: IpAddr, number: u64) -> bool {
        let Some(own) = self.0.get_mut(&client) else {
            return false;
        };
        let was_there = own.remove(&number).is_some();
        if own.is_empty() {
            self.0.remove(&client);
        }
        was_there
    }

    /// Takes out the one that has to go: of the address with most of them, or of the one that has had its own for longest
    /// where several have as many, the oldest. It looks at each address, of which there are no more than connections.
    fn displace(&mut self) -> Option<Arc<Cut>> {
        let weight = |own: &BTreeMap<u64, _>| (own.len(), own.keys().next().copied().map(Reverse));
        let (client, own) = self.0.iter().max_by_key(|(_, own)| weight(own))?;
        let (client, (number, cut)) = (*client, own.first_key_value()?);
        let (number, cut) = (*number, Arc::clone(cut));
        self.remove(client, number);
        Some(cut)
    }
}

/// What counts as one client: who has one address of IPv6 has as many as a network of 64 bits.
pub(crate) fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
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
            client,
            number,
            cut,
            is_known,
            ..
        } = &*self.0;
        let mut state = all.0.state.lock();
        state.count = state.count.saturating_sub(1);
        if !state.strangers.remove(*client, *number) && !is_known.load(Ordering::Relaxed) && cut.is_cut() {
            state.leaving = state.leaving.saturating_sub(1);
        }
        drop(state);
        all.0.gone.notify_waiters();
    }
}

/// What is known of a connection while it may already be gone.
struct Handle {
    all: OpenConnections,
    /// Where the client is.
    client: IpAddr,
    number: u64,
    cut: Arc<Cut>,
    /// True once a call has shown a good token.
    is_known: AtomicBool,
    /// Bytes of large answers that the client has not taken yet; `grpc/room.rs` counts them, and changes this under a lock.
    untaken: AtomicUsize,
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
        if state.strangers.remove(handle.client, handle.number) {
            handle.is_known.store(true, Ordering::Relaxed);
        }
    }

    /// Bytes of large answers on this connection that the client has not taken yet; none where there is no connection.
    pub(crate) fn untaken(&self) -> Option<&AtomicUsize> {
        self.connection.as_deref().map(|handle| &handle.untaken)
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
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

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

    fn address(number: u8) -> IpAddr {
        [192, 0, 2, number].into()
    }

    #[test]
    fn the_oldest_stranger_makes_room_and_nobody_else() {
        let open = OpenConnections::new(3);
        let take = || open.open(address(1));
        let (known, _) = take().unwrap();
        let (old, _) = take().unwrap();
        let (young, displaced) = take().unwrap();
        assert!(!displaced);
        known.peer(info()).set_known();

        let (third, displaced) = take().unwrap();
        assert!(displaced);
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

    #[test]
    fn who_opens_many_displaces_its_own() {
        let open = OpenConnections::new(4);
        let take = |client: &str| open.open(client.parse().unwrap()).unwrap().0;
        let quiet = take("192.0.2.1");
        // One network of IPv6 is one client.
        let mut many: Vec<_> = (1..=3).map(|number| take(&format!("2001:db8::{number}"))).collect();
        for number in 4..20 {
            many.push(take(&format!("2001:db8::{number}")));
            assert!(!is_cut(&quiet));
            assert!(is_cut(&many.remove(0)), "its oldest one");
        }
        // So does a newcomer, until each has as many.
        let newcomer = take("192.0.2.2");
        assert_eq!(many.iter().map(is_cut).collect::<Vec<_>>(), [true, false, false]);
        many.remove(0);
        let another = take("192.0.2.3");
        assert!(is_cut(&many.remove(0)));
        let last = take("192.0.2.4");
        assert_eq!(
            [&quiet, &many[0], &newcomer, &another, &last].map(is_cut),
            [true, false, false, false, false],
            "the oldest of those who have one each"
        );
    }

    #[tokio::test]
    async fn those_that_leave_are_few() {
        let open = OpenConnections::new(1);
        let mut taken = Vec::new();
        for _ in 0..=LEAVING {
            open.few_leaving().await;
            taken.push(open.open(address(1)).unwrap().0);
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
        let state = open.0.state.lock();
        assert_eq!((state.leaving, state.strangers.0.len()), (0, 0));
    }
}
