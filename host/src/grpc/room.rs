//! How much calls may hold at a time, whoever makes them, so that the memory of the process has a bound.
//!
//! Three things are counted. Open calls: those that need no token, which anybody can make; streams, for which there is
//! a setting; and all others. Bytes of large requests: each waits a while for its turn. Bytes of large answers that
//! were not taken yet: one that finds no room is refused, and a client that does not take one for a minute loses its
//! connection, since it would keep the room from others. What is small is bounded by the number of calls.
//!
//! Where one could take all the room, nobody has more of it than is left for all others ([`is_fair`]): one alone has half
//! of it, three that want all have a quarter each, and there is always as much left for the next one. It holds for the
//! large answers of a connection, and for the open calls of an address without a token.
//!
//! `docs/limits.md` has the numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tonic::Status;

use crate::connections::{Peer, one_client};
use crate::telemetry::seldom::Seldom;

/// Most open calls that need no token. Pomerium's clients have one for each connection, by which they watch the server's
/// health.
const OPEN: usize = 1024;

/// Most probes at a time: calls that need no token and are answered at once. They have places of their own, so that calls
/// that stay open keep nobody from asking whether the server is well.
const PROBES: usize = 1024;

/// Most open calls that are answered with one message. They take milliseconds, so that thousands are the load of a
/// machine that does not keep up.
const UNARY: usize = 8192;

/// Up to how many bytes a request, or a part of an answer, is small.
pub const SMALL: usize = 64 << 10;

/// Most bytes of requests that are not small, in units of [`UNIT`].
const REQUEST_UNITS: usize = 256 << 10;
const UNIT: usize = 1 << 10;

/// Most bytes of parts of answers that are not small and that clients have not taken yet.
const ANSWER_BYTES: usize = 256 << 20;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct TimeLimits {
    /// A large request, to get its turn.
    turn: Duration,
    /// A request, to come; a large one once it has its turn.
    coming: Duration,
    /// A client, to take a large part of an answer.
    taking: Duration,
}

const TIME_LIMITS: TimeLimits = TimeLimits {
    turn: Duration::from_secs(10),
    coming: Duration::from_secs(60),
    taking: Duration::from_secs(60),
};

/// How often it is logged that a client has not.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// What a call is counted as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It needs no token, and may stay open.
    Open,
    /// It needs no token, and is answered at once.
    Probe,
    /// It is answered with a stream.
    Stream,
    /// It is answered with one message.
    Unary,
}

/// The room for the calls of a server. Clones share it.
#[derive(Clone)]
pub struct Room(Arc<Shared>);

struct Shared {
    open: Arc<Semaphore>,
    /// How many of those each client has, by its address.
    by_client: Mutex<BTreeMap<IpAddr, usize>>,
    streams: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    unary: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    /// Bytes that are free for large parts of answers. Whoever changes it changes what the connection has, too.
    free: Mutex<usize>,
    time_limits: TimeLimits,
    /// Speaks of clients that do not take their answers.
    untaken: Mutex<Seldom>,
}

impl Room {
    /// Room for so many streams at a time.
    pub fn new(streams: usize) -> Self {
        Self::with_time_limits(streams, TIME_LIMITS)
    }

    fn with_time_limits(streams: usize, time_limits: TimeLimits) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self(Arc::new(Shared {
            open: semaphore(OPEN),
            by_client: Mutex::default(),
            streams: semaphore(streams),
            probes: semaphore(PROBES),
            unary: semaphore(UNARY),
            requests: semaphore(REQUEST_UNITS),
            free: Mutex::new(ANSWER_BYTES),
            time_limits,
            untaken: Mutex::default(),
        }))
    }

    /// How long a request may take to come; a large one once it has its turn.
    pub fn coming_time_limit(&self) -> Duration {
        self.0.time_limits.coming
    }

    /// A place for a call, until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED where there is none.
    pub fn enter(&self, kind: Kind, peer: &Peer) -> Result<Place, Status> {
        let (places, full) = match kind {
            Kind::Open => (
                &self.0.open,
                "too many calls without a token are open: end some, or try again",
            ),
            Kind::Probe => (&self.0.probes, "too many probes wait for their answers: try again"),
            Kind::Stream => (
                &self.0.streams,
                "as many streams are open as this server's GRPC_MAX_STREAMS allows: try again",
            ),
            Kind::Unary => (&self.0.unary, "too many calls wait for their answers: try again"),
        };
        let permit = Arc::clone(places)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted(full))?;
        let mut place = Place {
            _permit: permit,
            client: None,
        };
        let client = peer.address().map(|address| one_client(address.ip()));
        if let (Kind::Open, Some(client)) = (kind, client) {
            let mut by_client = self.0.by_client.lock();
            let count = by_client.get(&client).copied().unwrap_or_default();
            // This one has its place already.
            let free = places.available_permits().saturating_add(1);
            if !is_fair(count, 1, free) {
                return Err(Status::resource_exhausted(full));
            }
            by_client.insert(client, count.saturating_add(1));
            place.client = Some((Arc::clone(&self.0), client));
        }
        Ok(place)
    }

    /// Waits for the turn of a large request, until what is returned is dropped.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED where it does not come in time.
    pub async fn turn(self, bytes: usize) -> Result<Held, Status> {
        let turn = Arc::clone(&self.0.requests).acquire_many_owned(units(bytes, REQUEST_UNITS));
        match tokio::time::timeout(self.0.time_limits.turn, turn).await {
            Ok(Ok(permit)) => Ok(Held(permit)),
            _ => Err(Status::resource_exhausted(
                "too many large requests are under way: try again, or send less at a time",
            )),
        }
    }

    /// The part of an answer, counted until the transport has sent it or given it up, if it is large.
    ///
    /// # Errors
    ///
    /// RESOURCE_EXHAUSTED where there is no room for it.
    pub fn answer(&self, part: Bytes, peer: &Peer) -> Result<Bytes, Status> {
        if part.len() <= SMALL {
            return Ok(part);
        }
        let counted = Counted::new(&self.0, peer, part.len()).ok_or_else(|| {
            Status::resource_exhausted(
                "too much has been answered that clients, this one among them, do not take: try again, or ask for less at a \
                 time",
            )
        })?;
        let (held, gone) = oneshot::channel();
        let (room, peer) = (self.clone(), peer.clone());
        tokio::spawn(async move {
            if tokio::time::timeout(room.0.time_limits.taking, gone).await.is_err() {
                room.not_taken(&peer);
            }
        });
        Ok(Bytes::from_owner(Part {
            bytes: part,
            _counted: counted,
            _held: held,
        }))
    }

    fn not_taken(&self, peer: &Peer) {
        if let Some(untold) = self.0.untaken.lock().turn(Instant::now(), LOG_INTERVAL) {
            let peer = peer.address().map(tracing::field::display);
            tracing::warn!(
                peer,
                untold,
                time_limit = ?self.0.time_limits.taking,
                "closed the connection of a client that does not take its answer"
            );
        }
        peer.cut();
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Room").finish_non_exhaustive()
    }
}

/// The place of a call.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    /// Whose it is, where that is counted.
    client: Option<(Arc<Shared>, IpAddr)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((shared, client)) = &self.client else { return };
        let mut by_client = shared.by_client.lock();
        if let Some(count) = by_client.get_mut(client) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                by_client.remove(client);
            }
        }
    }
}

/// The bytes of a large request.
pub struct Held(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

/// A large part of an answer.
struct Part {
    bytes: Bytes,
    _counted: Counted,
    /// Dropped with the part, which is how it is known to be gone.
    _held: oneshot::Sender<()>,
}

/// Bytes of large answers that count, until this is dropped, against all connections and the one that they go to.
struct Counted {
    shared: Arc<Shared>,
    peer: Peer,
    bytes: usize,
}

impl Counted {
    /// None where there is no room.
    fn new(shared: &Arc<Shared>, peer: &Peer, bytes: usize) -> Option<Self> {
        let mut free = shared.free.lock();
        let untaken = peer.untaken().map_or(0, |untaken| untaken.load(Ordering::Relaxed));
        if !is_fair(untaken, bytes, *free) {
            return None;
        }
        *free = free.saturating_sub(bytes);
        if let Some(count) = peer.untaken() {
            count.store(untaken.saturating_add(bytes), Ordering::Relaxed);
        }
        Some(Self {
            shared: Arc::clone(shared),
            peer: peer.clone(),
            bytes,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut free = self.shared.free.lock();
        *free = free.saturating_add(self.bytes);
        if let Some(count) = self.peer.untaken() {
            count.store(
                count.load(Ordering::Relaxed).saturating_sub(self.bytes),
                Ordering::Relaxed,
            );
        }
    }
}

/// Whether one that has so much may take so much more where so much is free: it must not come to have more than was free.
fn is_fair(has: usize, more: usize, free: usize) -> bool {
    has.saturating_add(more) <= free
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
impl Room {
    /// Room for one stream, with time limits that a test can wait for.
    pub fn hasty() -> Self {
        let limit = Duration::from_millis(100);
        let time_limits = TimeLimits {
            turn: limit,
            coming: limit,
            taking: limit,
        };
        Self::with_time_limits(1, time_limits)
    }
}

fn units(bytes: usize, most: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).min(most)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::net::{Ipv4Addr, SocketAddr};

    use futures::FutureExt as _;
    use tonic::Code;
    use tonic::transport::server::TcpConnectInfo;

    use super::*;
    use crate::connections::OpenConnections;

    fn peer(address: &str) -> Peer {
        Peer::from(SocketAddr::new(address.parse().unwrap(), 1))
    }

    #[test]
    fn some_addresses_do_not_take_all_places_without_a_token() {
        let room = Room::new(1);
        let mut places = Vec::new();
        // As many as there are, until one is refused.
        let mut take = |address: &str| {
            let before = places.len();
            let code = loop {
                match room.enter(Kind::Open, &peer(address)) {
                    Ok(place) => places.push(place),
                    Err(status) => break status.code(),
                }
            };
            assert_eq!(code, Code::ResourceExhausted);
            places.len() - before
        };
        assert_eq!(take("2001:db8::1"), OPEN / 2);
        assert_eq!(take("2001:db8::2"), 0, "of the same network");
        // Whoever comes, half of what the others have left is there.
        for (address, share) in [
            ("2001:db8:0:1::1", 4),
            ("192.0.2.1", 8),
            ("192.0.2.2", 16),
            ("192.0.2.3", 32),
        ] {
            assert_eq!(take(address), OPEN / share, "{address}");
        }
        // The others have places of their own.
        let stream = room.enter(Kind::Stream, &peer("192.0.2.3")).unwrap();
        assert!(room.enter(Kind::Stream, &peer("192.0.2.3")).is_err());
        drop(stream);
        assert!(room.enter(Kind::Stream, &peer("192.0.2.3")).is_ok());
        assert!(room.enter(Kind::Unary, &peer("192.0.2.3")).is_ok());
        drop(places);
        assert!(room.0.by_client.lock().is_empty());
        assert_eq!(room.0.open.available_permits(), OPEN);
    }

    #[tokio::test]
    async fn large_requests_wait_for_their_turn_for_a_while() {
        let room = Room::hasty();
        let most = REQUEST_UNITS * UNIT;
        let held = room.clone().turn(most).await.unwrap();
        let status = room.clone().turn(SMALL + 1).await.err().unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        let mut waiting = Box::pin(room.clone().turn(most));
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        assert!(waiting.await.is_ok());
    }

    #[tokio::test]
    async fn who_does_not_take_a_large_answer_loses_the_connection() {
        let info = TcpConnectInfo {
            local_addr: None,
            remote_addr: None,
        };
        let open = OpenConnections::new(2);
        let (slow, _) = open.open(Ipv4Addr::LOCALHOST.into()).unwrap();
        let (quick, _) = open.open(Ipv4Addr::LOCALHOST.into()).unwrap();
        let room = Room::hasty();
        let part = Bytes::from(vec![7; SMALL + 1]);
        let _untaken = room.answer(part.clone(), &slow.peer(info.clone())).unwrap();
        drop(room.answer(part, &quick.peer(info)).unwrap());
        tokio::time::timeout(Duration::from_secs(20), slow.cut()).await.unwrap();
        assert!(quick.cut().now_or_never().is_none());
    }

    #[tokio::test]
    async fn one_client_that_takes_nothing_leaves_room_for_the_others() {
        let info = TcpConnectInfo {
            local_addr: None,
            remote_addr: None,
        };
        let open = OpenConnections::new(10);
        let connections: Vec<_> = (0..4)
            .map(|_| open.open(Ipv4Addr::LOCALHOST.into()).unwrap().0)
            .collect();
        let room = Room::new(1);
        let part = Bytes::from(vec![7; 4 << 20]);
        let mut untaken = Vec::new();
        // One after the other asks for all that it can get.
        for (connection, share) in connections.iter().zip([2, 4, 8, 16]) {
            let peer = connection.peer(info.clone());
            let mut bytes = 0;
            while let Ok(part) = room.answer(part.clone(), &peer) {
                bytes += part.len();
                untaken.push(part);
            }
            assert_eq!(bytes, ANSWER_BYTES / share);
        }
        drop(untaken);
        assert_eq!(*room.0.free.lock(), ANSWER_BYTES);
        for connection in &connections {
            let peer = connection.peer(info.clone());
            assert_eq!(peer.untaken().unwrap().load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn large_answers_are_counted_until_they_are_taken() {
        let room = Room::new(1);
        let peer = Peer::default();
        let part = Bytes::from(vec![7; SMALL * 16]);
        let mut parts = Vec::new();
        while let Ok(part) = room.answer(part.clone(), &peer) {
            parts.push(part);
        }
        assert_eq!(parts.len() * part.len(), ANSWER_BYTES);
        assert!(parts.iter().all(|counted| *counted == part));
        // What is small is not counted.
        assert!(room.answer(part.slice(..SMALL), &peer).is_ok());
        // A slice that is left keeps the room.
        let last = parts.pop().unwrap().slice(1..);
        assert!(room.answer(part.clone(), &peer).is_err());
        drop(last);
        assert!(room.answer(part, &peer).is_ok());
    }
}
