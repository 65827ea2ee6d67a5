//! The hub: where new changes meet the streams that wait for them.
//!
//! It holds the most recent changes, bounded in bytes, each once and shared by all streams. A stream keeps nothing but its
//! own place; whoever has fallen behind what the hub holds reads from the backend until it has caught up again. So a slow
//! stream costs no memory here, and it can hold up neither a writer nor another stream.
//!
//! Streams of one type are woken by changes of that type alone: of the fourteen streams that a Pomerium process keeps
//! open, most are of types that hardly ever change. So such a stream's place stays where it was while other types go on,
//! and the change log may be pruned beyond it although the stream has missed nothing. A type that has streams therefore
//! has a log of its own here, a pointer a change, which knows the newest change that was dropped *of the type*.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Change, Figures};
use crate::backend::Position;
use crate::record::Version;
use crate::telemetry::metrics::{Lag, Owed};

/// What a change costs beside its type, id and data: the record's own fields, the shared pointers and the encoding.
const OVERHEAD_BYTES: usize = 256;

/// The newest changes, and who waits for more.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    /// Most bytes of changes to hold.
    capacity_bytes: usize,
    /// What the streams have yet to send.
    lag: Lag,
}

#[derive(Debug)]
struct State {
    /// The incarnation of the content that the changes belong to.
    server_version: u64,
    /// The newest change that was published.
    latest_version: Version,
    /// The changes of all types.
    all: Log,
    /// Those of one type, again. A type is in here for as long as it has streams.
    by_type: HashMap<String, Log>,
    /// What the changes cost.
    bytes: usize,
    /// Grows whenever any type's options change.
    options_revision: u64,
    /// True while the store may hold changes that nobody has told the hub of.
    in_doubt: bool,
    /// True once the process goes down.
    ended: bool,
}

/// The newest changes of all types, or of one.
#[derive(Debug)]
struct Log {
    /// Every change above this one, up to the newest, is held.
    floor: Version,
    /// The changes, ascending by version.
    changes: VecDeque<Arc<Change>>,
    /// Wakes the streams.
    wake: watch::Sender<()>,
    /// How many streams there are.
    streams: usize,
}

/// A stream's place at the hub: what wakes it, and where it reads. The type's log goes with the last of them.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    record_type: Option<String>,
    wake: watch::Receiver<()>,
}

/// What the hub has for a stream.
#[derive(Debug)]
pub enum Reading {
    /// Changes after the stream's place; they may be none, where those in between are of other types.
    Changes {
        /// The changes, ascending.
        changes: Vec<Arc<Change>>,
        /// The stream's new place.
        through: Version,
    },
    /// The stream's place is below what the hub holds: read from the backend.
    Behind,
    /// There is nothing after the stream's place.
    CaughtUp,
    /// The content is another now: the stream ends.
    Cleared,
    /// The process goes down: the stream ends.
    Ended,
}

impl Hub {
    /// A hub that begins where the store stands.
    pub fn new(position: Position, capacity_bytes: usize) -> Self {
        Self {
            state: Mutex::new(State {
                server_version: position.server_version,
                latest_version: position.latest_version,
                all: Log::new(position.latest_version),
                by_type: HashMap::new(),
                bytes: 0,
                options_revision: 0,
                in_doubt: false,
                ended: false,
            }),
            capacity_bytes,
            lag: Lag::default(),
        }
    }

    /// A stream has begun, which says what it has yet to send.
    pub fn stream(&self) -> Owed {
        self.lag.stream()
    }

    /// What there is, for metrics.
    pub fn figures(&self) -> Figures {
        let (latest_version, bytes, changes) = {
            let state = self.state.lock();
            (state.latest_version, state.bytes, state.all.changes.len())
        };
        Figures {
            latest_version,
            hub_bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            hub_changes: u64::try_from(changes).unwrap_or(u64::MAX),
            lag_versions: self.lag.versions(latest_version),
        }
    }

    /// The server version and the newest change.
    pub fn position(&self) -> (u64, Version) {
        let state = self.state.lock();
        (state.server_version, state.latest_version)
    }

    /// True where every change after this version is here. A stream that begins further back asks the backend, whose
    /// change log alone decides how far back that may be.
    pub fn reaches_back_to(&self, version: Version) -> bool {
        version >= self.state.lock().all.floor
    }

    /// True while the store may hold changes that the hub does not: its position is then no more than a lower bound.
    pub fn in_doubt(&self) -> bool {
        self.state.lock().in_doubt
    }

    /// Says that a write has an unknown outcome.
    pub fn doubt(&self) {
        self.state.lock().in_doubt = true;
    }

    /// Says that the change log was read to its end, after a later write, so that nothing can be missing any more.
    pub fn settle(&self) {
        self.state.lock().in_doubt = false;
    }

    /// True once [`Hub::end`] was called.
    pub fn ended(&self) -> bool {
        self.state.lock().ended
    }

    /// The number that grows whenever options change.
    pub fn options_revision(&self) -> u64 {
        self.state.lock().options_revision
    }

    /// Adds changes, ascending, and wakes the streams that they concern. `through` is how far the log has been read; at
    /// least the last change's version. Those that are here already, and all of another content, are left out.
    pub fn publish(&self, server_version: u64, changes: Vec<Arc<Change>>, through: Version) {
        let mut state = self.state.lock();
        if state.server_version == server_version {
            self.add(&mut state, changes, through);
        }
    }

    /// Adds the changes of a write to a shared store, if they are the very next ones; else it may be others' changes that are
    /// missing, and whoever reads the change log adds all of them.
    pub fn publish_next(&self, server_version: u64, changes: Vec<Arc<Change>>) {
        let mut state = self.state.lock();
        let mut versions = changes.iter().map(|change| change.record.version);
        let are_next = versions.clone().eq((state.latest_version + 1..).take(changes.len()));
        let through = versions.next_back();
        if let Some(through) = through.filter(|_| are_next && state.server_version == server_version) {
            self.add(&mut state, changes, through);
        }
    }

    fn add(&self, state: &mut State, mut changes: Vec<Arc<Change>>, through: Version) {
        changes.retain(|change| change.record.version > state.latest_version);
        if !changes.is_empty() {
            state.all.wake.send_replace(());
        }
        let mut last: Option<Arc<Change>> = None;
        for change in changes {
            let record_type = change.record.key.record_type.as_str();
            if let Some(log) = state.by_type.get_mut(record_type) {
                log.changes.push_back(Arc::clone(&change));
                // Batches are mostly of one type: one wake-up for a run of them.
                if last
                    .as_ref()
                    .is_none_or(|last| last.record.key.record_type != record_type)
                {
                    log.wake.send_replace(());
                }
            }
            state.latest_version = state.latest_version.max(change.record.version);
            state.bytes += cost(&change);
            state.all.changes.push_back(Arc::clone(&change));
            last = Some(change);
        }
        state.latest_version = state.latest_version.max(through);
        while state.bytes > self.capacity_bytes && state.drop_oldest() {}
    }

    /// Drops all changes and begins again where the store stands: after a Clear, and where changes were missed. Streams of
    /// another server version end; the others read what they miss from the backend.
    pub fn reset(&self, position: Position) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.server_version = position.server_version;
        state.latest_version = position.latest_version;
        for log in state.by_type.values_mut().chain([&mut state.all]) {
            log.floor = position.latest_version;
            log.changes.clear();
        }
        state.bytes = 0;
        state.wake_all();
    }

    /// Drops the changes below the oldest one that this host's prune has left in the change log, so that a stream which
    /// begins there is told to start over, whether or not the hub could still have served it. (What the store drops for
    /// space, or another host prunes, may stay here for as long as there is room: to serve a stream from it is no harm.)
    pub fn pruned(&self, earliest_version: Version) {
        let mut state = self.state.lock();
        let is_pruned = |oldest: &Arc<Change>| oldest.record.version < earliest_version;
        while state.all.changes.front().is_some_and(is_pruned) && state.drop_oldest() {}
    }

    /// Says that options have changed.
    pub fn options_changed(&self) {
        let mut state = self.state.lock();
        state.options_revision += 1;
        state.wake_all();
    }

    /// Ends all streams.
    pub fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        state.wake_all();
    }

    /// Enters a stream of this type, or of all types. Do so before the first reading, so that nothing is missed in between.
    pub fn subscribe(self: &Arc<Self>, record_type: Option<String>) -> Subscription {
        let mut state = self.state.lock();
        let wake = match &record_type {
            None => state.all.enter(),
            Some(record_type) => match state.by_type.get_mut(record_type) {
                Some(log) => log.enter(),
                None => {
                    let mut log = Log::new(state.all.floor);
                    let of_type = |change: &&Arc<Change>| change.record.key.record_type == *record_type;
                    log.changes.extend(state.all.changes.iter().filter(of_type).cloned());
                    let wake = log.enter();
                    state.by_type.insert(record_type.clone(), log);
                    wake
                }
            },
        };
        Subscription {
            hub: Arc::clone(self),
            record_type,
            wake,
        }
    }
}

impl Subscription {
    /// Says that the stream is about to read: only what comes from now on wakes it.
    pub fn mark_unchanged(&mut self) {
        self.wake.mark_unchanged();
    }

    /// Waits until there may be something to read.
    pub async fn changed(&mut self) {
        // The hub, which would wake it, is held by this very subscription.
        self.wake.changed().await.unwrap_or_default();
    }

    /// Reads what there is after a stream's place, a bounded amount of it.
    pub fn read(&self, server_version: u64, after: Version) -> Reading {
        /// Most changes that one reading hands over; a stream that is slow to send them holds so many.
        const MOST_CHANGES: usize = 256;
        /// A reading that has so many bytes takes no further change, so that it has these and one record at most.
        const ENOUGH_BYTES: usize = 256 << 10;

        let state = self.hub.state.lock();
        if state.ended {
            return Reading::Ended;
        }
        if state.server_version != server_version {
            return Reading::Cleared;
        }
        if after >= state.latest_version {
            return Reading::CaughtUp;
        }
        let log = match &self.record_type {
            None => Some(&state.all),
            Some(record_type) => state.by_type.get(record_type),
        };
        let Some(log) = log.filter(|log| after >= log.floor) else {
            return Reading::Behind;
        };
        let first = log.changes.partition_point(|change| change.record.version <= after);
        let mut changes = Vec::new();
        let mut bytes = 0;
        let mut through = state.latest_version;
        for change in log.changes.range(first..) {
            if changes.len() >= MOST_CHANGES || bytes >= ENOUGH_BYTES {
                through = changes.last().map_or(after, |last: &Arc<Change>| last.record.version);
                break;
            }
            bytes += change.record.size();
            changes.push(Arc::clone(change));
        }
        Reading::Changes { changes, through }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        let Some(record_type) = &self.record_type else {
            state.all.streams -= 1;
            return;
        };
        if let Some(log) = state.by_type.get_mut(record_type) {
            log.streams -= 1;
            if log.streams == 0 {
                state.by_type.remove(record_type);
            }
        }
    }
}

impl State {
    /// Drops the oldest change, which is also the oldest of its type; false where there is none.
    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.all.changes.pop_front() else {
            return false;
        };
        self.bytes = self.bytes.saturating_sub(cost(&oldest));
        self.all.floor = oldest.record.version;
        if let Some(log) = self.by_type.get_mut(&oldest.record.key.record_type) {
            log.changes.pop_front();
            log.floor = oldest.record.version;
        }
        true
    }

    fn wake_all(&self) {
        for log in self.by_type.values().chain([&self.all]) {
            log.wake.send_replace(());
        }
    }
}

impl Log {
    fn new(floor: Version) -> Self {
        Self {
            floor,
            changes: VecDeque::new(),
            wake: watch::Sender::new(()),
            streams: 0,
        }
    }

    fn enter(&mut self) -> watch::Receiver<()> {
        self.streams += 1;
        self.wake.subscribe()
    }
}

/// What a change takes.
fn cost(change: &Change) -> usize {
    change.record.size() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;
    use crate::record::{Key, Record, Timestamp};

    fn change(version: Version, record_type: &str, bytes: usize) -> Arc<Change> {
        Arc::new(Change::new(Record {
            version,
            key: Key::new(record_type, version.to_string()),
            data: Some(vec![0; bytes].into()),
            modified_at: Timestamp(0),
            deleted_at: None,
        }))
    }

    fn hub(latest_version: Version, capacity_bytes: usize) -> Arc<Hub> {
        let position = Position {
            server_version: 7,
            earliest_version: 1,
            latest_version,
        };
        Arc::new(Hub::new(position, capacity_bytes))
    }

    /// The versions read, and the place after reading; none where the stream is behind or has caught up.
    fn read(hub: &Arc<Hub>, after: Version, record_type: Option<&str>) -> Option<(Vec<Version>, Version)> {
        read_on(&subscribe(hub, record_type), after)
    }

    fn subscribe(hub: &Arc<Hub>, record_type: Option<&str>) -> Subscription {
        hub.subscribe(record_type.map(str::to_owned))
    }

    fn read_on(stream: &Subscription, after: Version) -> Option<(Vec<Version>, Version)> {
        match stream.read(7, after) {
            Reading::Changes { changes, through } => {
                Some((changes.iter().map(|change| change.record.version).collect(), through))
            }
            Reading::Behind | Reading::CaughtUp => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_here_waits_for_nobody_where_nothing_is_missing() {
        let hub = hub(10, 1 << 20);
        let changes = |versions: &[Version]| versions.iter().map(|version| change(*version, "t", 1)).collect();
        // Something of another host's may be missing; what is written to other content; nothing at all.
        for (server_version, versions) in [(7, &[12, 13][..]), (7, &[11, 13]), (7, &[10, 11]), (8, &[11]), (7, &[])] {
            hub.publish_next(server_version, changes(versions));
            assert_eq!(read(&hub, 10, None), None, "{server_version} {versions:?}");
        }
        hub.publish_next(7, changes(&[11, 12]));
        // The change log has them too, and one more.
        hub.publish(8, changes(&[13]), 13);
        hub.publish(7, changes(&[11, 12, 13]), 14);
        assert_eq!(read(&hub, 10, None), Some((vec![11, 12, 13], 14)));
    }

    #[test]
    fn streams_read_their_type_from_their_place() {
        let hub = hub(10, 1 << 20);
        hub.publish(7, vec![change(11, "a", 1), change(12, "b", 1), change(13, "a", 1)], 13);
        assert_eq!(read(&hub, 10, None), Some((vec![11, 12, 13], 13)));
        assert_eq!(read(&hub, 10, Some("a")), Some((vec![11, 13], 13)));
        assert_eq!(
            read(&hub, 12, Some("b")),
            Some((vec![], 13)),
            "the place moves past other types"
        );
        let all = subscribe(&hub, None);
        assert!(matches!(all.read(7, 13), Reading::CaughtUp));
        assert!(matches!(all.read(7, 99), Reading::CaughtUp), "from the future: wait");
        assert!(matches!(all.read(7, 9), Reading::Behind));
        assert!(matches!(all.read(8, 13), Reading::Cleared));
    }

    #[test]
    fn what_is_held_stays_within_its_bound() {
        let hub = hub(0, 10 * (1000 + OVERHEAD_BYTES));
        for version in 1..=100 {
            hub.publish(7, vec![change(version, "t", 900)], version);
        }
        assert!(matches!(subscribe(&hub, None).read(7, 50), Reading::Behind));
        let state = hub.state.lock();
        assert!(state.bytes <= hub.capacity_bytes, "{} bytes", state.bytes);
        assert_eq!(state.all.changes.front().unwrap().record.version, state.all.floor + 1);
    }

    #[test]
    fn one_reading_is_bounded() {
        let hub = hub(0, 1 << 30);
        hub.publish(7, (1..=1000).map(|version| change(version, "t", 10)).collect(), 1000);
        assert_eq!(read(&hub, 0, None).unwrap().1, 256);
        hub.publish(
            7,
            (1001..=1010).map(|version| change(version, "u", 200 << 10)).collect(),
            1010,
        );
        assert_eq!(read(&hub, 1000, None).unwrap().0, [1001, 1002]);
    }

    #[test]
    fn a_quiet_type_misses_nothing_when_others_are_dropped() {
        let hub = hub(0, 1 << 20);
        let quiet = subscribe(&hub, Some("quiet"));
        hub.publish(7, vec![change(1, "quiet", 1)], 1);
        assert_eq!(read_on(&quiet, 0), Some((vec![1], 1)));
        hub.publish(7, (2..=100).map(|version| change(version, "other", 1)).collect(), 100);
        hub.pruned(90);
        assert!(!hub.reaches_back_to(88) && hub.reaches_back_to(89));
        assert_eq!(read_on(&quiet, 1), Some((vec![], 100)), "its own changes are all there");
        assert!(
            matches!(quiet.read(7, 0), Reading::Behind),
            "one of its own was dropped"
        );
        hub.publish(7, vec![change(101, "quiet", 1)], 101);
        assert_eq!(read_on(&quiet, 1), Some((vec![101], 101)));
        let late = subscribe(&hub, Some("other"));
        assert!(
            matches!(late.read(7, 88), Reading::Behind),
            "what is dropped is unknown"
        );
        assert_eq!(read_on(&late, 98), Some((vec![99, 100], 101)));
    }

    #[test]
    fn what_is_still_in_the_log_stays_where_versions_have_gaps() {
        let hub = hub(10, 1 << 20);
        hub.publish(7, vec![change(20, "t", 1), change(30, "t", 1)], 30);
        hub.pruned(20);
        assert_eq!(read(&hub, 10, None), Some((vec![20, 30], 30)));
    }

    #[test]
    fn only_the_streams_concerned_wake() {
        let hub = hub(0, 1 << 20);
        let (all, a, b) = (
            subscribe(&hub, None),
            subscribe(&hub, Some("a")),
            subscribe(&hub, Some("b")),
        );
        let is_woken = |stream: &Subscription| stream.wake.has_changed().unwrap();
        hub.publish(7, vec![change(1, "a", 1)], 1);
        assert!(is_woken(&all) && is_woken(&a));
        assert!(!is_woken(&b));
        hub.options_changed();
        assert!(is_woken(&b));
    }

    #[test]
    fn streams_that_are_gone_leave_nothing_behind() {
        let hub = hub(0, 1 << 20);
        let (one, two) = (subscribe(&hub, Some("a")), subscribe(&hub, Some("a")));
        drop(one);
        hub.publish(7, vec![change(1, "a", 1)], 1);
        assert_eq!(read_on(&two, 0), Some((vec![1], 1)), "the other stream goes on");
        drop(two);
        assert!(hub.state.lock().by_type.is_empty());
    }

    #[test]
    fn clear_and_end_reach_every_stream() {
        let hub = hub(5, 1 << 20);
        let a = subscribe(&hub, Some("a"));
        hub.reset(Position {
            server_version: 8,
            earliest_version: 0,
            latest_version: 5,
        });
        assert!(a.wake.has_changed().unwrap());
        assert!(matches!(a.read(7, 5), Reading::Cleared));
        hub.end();
        assert!(matches!(a.read(8, 5), Reading::Ended));
    }
}
