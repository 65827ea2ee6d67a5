//! The hub: where new changes meet the streams that wait for them.
//!
//! It holds the most recent changes, bounded in bytes, each once and shared by all streams. A stream keeps nothing but its
//! own place; whoever has fallen behind what the hub holds reads from the backend until it has caught up again. So a slow
//! stream costs no memory here, and it can hold up neither a writer nor another stream.
//!
//! Streams of one type are woken by changes of that type alone: of the fourteen streams that a Pomerium process keeps
//! open, most are of types that hardly ever change.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::Change;
use crate::backend::Position;
use crate::record::Version;

/// What a change costs beside its type, id and data: the record's own fields, the shared pointer and the encoding.
const OVERHEAD_BYTES: usize = 256;

/// The newest changes, and who waits for more.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    /// Most bytes of changes to hold.
    capacity_bytes: usize,
}

#[derive(Debug)]
struct State {
    /// The incarnation of the content that the changes belong to.
    server_version: u64,
    /// The newest change that was published.
    latest_version: Version,
    /// Every change above this one, up to the newest, is held.
    floor: Version,
    /// The changes, ascending by version.
    changes: VecDeque<Arc<Change>>,
    /// What they cost.
    bytes: usize,
    /// Grows whenever any type's options change.
    options_revision: u64,
    /// True once the process goes down.
    ended: bool,
    /// Wakes the streams of all types.
    all: watch::Sender<()>,
    /// Wakes the streams of one type. An entry goes when the last of its streams has gone.
    by_type: HashMap<String, watch::Sender<()>>,
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
                floor: position.latest_version,
                changes: VecDeque::new(),
                bytes: 0,
                options_revision: 0,
                ended: false,
                all: watch::Sender::new(()),
                by_type: HashMap::new(),
            }),
            capacity_bytes,
        }
    }

    /// The server version and the newest change.
    pub fn position(&self) -> (u64, Version) {
        let state = self.state.lock();
        (state.server_version, state.latest_version)
    }

    /// True once [`Hub::end`] was called.
    pub fn ended(&self) -> bool {
        self.state.lock().ended
    }

    /// The number that grows whenever options change.
    pub fn options_revision(&self) -> u64 {
        self.state.lock().options_revision
    }

    /// Adds changes, ascending and newer than any before, and wakes the streams that they concern. `through` is how far
    /// the log has been read; at least the last change's version.
    pub fn publish(&self, changes: Vec<Arc<Change>>, through: Version) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut woken: Option<&str> = None;
        for change in &changes {
            let record_type = change.record.key.record_type.as_str();
            // Batches are mostly of one type: one wake-up for a run of them.
            if woken != Some(record_type) {
                woken = Some(record_type);
                if let Some(waiting) = state.by_type.get(record_type) {
                    waiting.send_replace(());
                    if waiting.receiver_count() == 0 {
                        state.by_type.remove(record_type);
                    }
                }
            }
        }
        if !changes.is_empty() {
            state.all.send_replace(());
        }
        for change in changes {
            state.latest_version = state.latest_version.max(change.record.version);
            state.bytes += change.record.size() + OVERHEAD_BYTES;
            state.changes.push_back(change);
        }
        state.latest_version = state.latest_version.max(through);
        while state.bytes > self.capacity_bytes {
            let Some(oldest) = state.changes.pop_front() else { break };
            state.drop_oldest(&oldest);
        }
    }

    /// Drops all changes and begins again where the store stands: after a Clear, and where changes were missed. Streams of
    /// another server version end; the others read what they miss from the backend.
    pub fn reset(&self, position: Position) {
        let mut state = self.state.lock();
        state.server_version = position.server_version;
        state.latest_version = position.latest_version;
        state.floor = position.latest_version;
        state.changes.clear();
        state.bytes = 0;
        state.wake_all();
    }

    /// Drops the changes below the oldest one in the change log, so that a stream which begins there is told the same
    /// whether or not the hub could still have served it.
    pub fn pruned(&self, earliest_version: Version) {
        let mut state = self.state.lock();
        while state.floor.saturating_add(1) < earliest_version {
            let Some(oldest) = state.changes.pop_front() else { break };
            state.drop_oldest(&oldest);
        }
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

    /// What wakes a stream of this type, or of all types. Take it before reading, so that nothing is missed in between.
    pub fn subscribe(&self, record_type: Option<&str>) -> watch::Receiver<()> {
        let mut state = self.state.lock();
        match record_type {
            None => state.all.subscribe(),
            Some(record_type) => state
                .by_type
                .entry(record_type.to_owned())
                .or_insert_with(|| watch::Sender::new(()))
                .subscribe(),
        }
    }

    /// Reads what there is after a stream's place, a bounded amount of it.
    pub fn read(&self, server_version: u64, after: Version, record_type: Option<&str>) -> Reading {
        /// Most changes that one reading hands over; a stream that is slow to send them holds so many.
        const MOST_CHANGES: usize = 256;
        /// Most bytes, likewise.
        const MOST_BYTES: usize = 256 << 10;

        let state = self.state.lock();
        if state.ended {
            return Reading::Ended;
        }
        if state.server_version != server_version {
            return Reading::Cleared;
        }
        if after >= state.latest_version {
            return Reading::CaughtUp;
        }
        if after < state.floor {
            return Reading::Behind;
        }
        let first = state.changes.partition_point(|change| change.record.version <= after);
        let mut changes = Vec::new();
        let mut bytes = 0;
        let mut through = state.latest_version;
        for change in state.changes.range(first..) {
            if record_type.is_some_and(|record_type| change.record.key.record_type != record_type) {
                continue;
            }
            if changes.len() >= MOST_CHANGES || bytes >= MOST_BYTES {
                through = changes.last().map_or(after, |last: &Arc<Change>| last.record.version);
                break;
            }
            bytes += change.record.size();
            changes.push(Arc::clone(change));
        }
        Reading::Changes { changes, through }
    }
}

impl State {
    /// Accounts for a change that is held no longer.
    fn drop_oldest(&mut self, oldest: &Change) {
        self.bytes = self.bytes.saturating_sub(oldest.record.size() + OVERHEAD_BYTES);
        self.floor = oldest.record.version;
    }

    fn wake_all(&mut self) {
        self.all.send_replace(());
        self.by_type.retain(|_, waiting| {
            waiting.send_replace(());
            waiting.receiver_count() > 0
        });
    }
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

    fn hub(latest_version: Version, capacity_bytes: usize) -> Hub {
        let position = Position {
            server_version: 7,
            earliest_version: 1,
            latest_version,
        };
        Hub::new(position, capacity_bytes)
    }

    /// The versions read, and the place after reading; none where the stream is behind or has caught up.
    fn read(hub: &Hub, after: Version, record_type: Option<&str>) -> Option<(Vec<Version>, Version)> {
        match hub.read(7, after, record_type) {
            Reading::Changes { changes, through } => {
                Some((changes.iter().map(|change| change.record.version).collect(), through))
            }
            Reading::Behind | Reading::CaughtUp => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn streams_read_their_type_from_their_place() {
        let hub = hub(10, 1 << 20);
        hub.publish(vec![change(11, "a", 1), change(12, "b", 1), change(13, "a", 1)], 13);
        assert_eq!(read(&hub, 10, None), Some((vec![11, 12, 13], 13)));
        assert_eq!(read(&hub, 10, Some("a")), Some((vec![11, 13], 13)));
        assert_eq!(
            read(&hub, 12, Some("b")),
            Some((vec![], 13)),
            "the place moves past other types"
        );
        assert!(matches!(hub.read(7, 13, None), Reading::CaughtUp));
        assert!(
            matches!(hub.read(7, 99, None), Reading::CaughtUp),
            "from the future: wait"
        );
        assert!(matches!(hub.read(7, 9, None), Reading::Behind));
        assert!(matches!(hub.read(8, 13, None), Reading::Cleared));
    }

    #[test]
    fn what_is_held_stays_within_its_bound() {
        let hub = hub(0, 10 * (1000 + OVERHEAD_BYTES));
        for version in 1..=100 {
            hub.publish(vec![change(version, "t", 900)], version);
        }
        assert!(matches!(hub.read(7, 50, None), Reading::Behind));
        let state = hub.state.lock();
        assert!(state.bytes <= hub.capacity_bytes, "{} bytes", state.bytes);
        assert_eq!(state.changes.front().unwrap().record.version, state.floor + 1);
    }

    #[test]
    fn one_reading_is_bounded() {
        let hub = hub(0, 1 << 30);
        hub.publish((1..=1000).map(|version| change(version, "t", 10)).collect(), 1000);
        assert_eq!(read(&hub, 0, None).unwrap().1, 256);
        hub.publish(
            (1001..=1010).map(|version| change(version, "u", 200 << 10)).collect(),
            1010,
        );
        assert_eq!(read(&hub, 1000, None).unwrap().0, [1001, 1002]);
    }

    #[test]
    fn only_the_streams_concerned_wake() {
        let hub = hub(0, 1 << 20);
        let (all, a, b) = (hub.subscribe(None), hub.subscribe(Some("a")), hub.subscribe(Some("b")));
        hub.publish(vec![change(1, "a", 1)], 1);
        assert!(all.has_changed().unwrap() && a.has_changed().unwrap());
        assert!(!b.has_changed().unwrap());
        hub.options_changed();
        assert!(b.has_changed().unwrap());
        drop((a, b));
        hub.options_changed();
        assert!(
            hub.state.lock().by_type.is_empty(),
            "streams that are gone leave nothing behind"
        );
    }

    #[test]
    fn clear_and_end_reach_every_stream() {
        let hub = hub(5, 1 << 20);
        let a = hub.subscribe(Some("a"));
        hub.reset(Position {
            server_version: 8,
            earliest_version: 0,
            latest_version: 5,
        });
        assert!(a.has_changed().unwrap());
        assert!(matches!(hub.read(7, 5, Some("a")), Reading::Cleared));
        hub.end();
        assert!(matches!(hub.read(8, 5, Some("a")), Reading::Ended));
    }
}
