//! How far the slowest Sync stream is behind.
//!
//! A stream says which change it is about to send and when it has sent all there is. What counts is the oldest change
//! that any stream has yet to send: the place of a stream alone says little, since one whose type seldom changes stands
//! still without being behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::record::Version;

/// What a stream that owes nothing stores; no change has this version.
const NOTHING: u64 = 0;

/// The open streams.
#[derive(Debug, Default)]
pub struct Lag {
    /// Streams that are gone are taken out now and then, so that there are at most twice as many entries as streams.
    streams: Mutex<Vec<Weak<AtomicU64>>>,
}

impl Lag {
    /// A stream has begun; it counts until what is returned is dropped.
    pub fn stream(&self) -> Owed {
        let owed = Arc::new(AtomicU64::new(NOTHING));
        let mut streams = self.streams.lock();
        if streams.len() == streams.capacity() {
            streams.retain(|stream| stream.strong_count() > 0);
        }
        streams.push(Arc::downgrade(&owed));
        Owed(owed)
    }

    /// How many versions the oldest change that is yet to be sent is behind the newest one; 0 where all are sent.
    pub fn versions(&self, newest: Version) -> u64 {
        let streams = self.streams.lock();
        let oldest = streams
            .iter()
            .filter_map(Weak::upgrade)
            .map(|owed| owed.load(Ordering::Relaxed))
            .filter(|version| *version != NOTHING)
            .min();
        oldest.map_or(0, |oldest| newest.saturating_add(1).saturating_sub(oldest))
    }
}

/// What one stream has yet to send.
#[derive(Debug)]
pub struct Owed(Arc<AtomicU64>);

impl Owed {
    /// The change with this version is the next to be sent.
    pub fn from(&self, version: Version) {
        self.0.store(version, Ordering::Relaxed);
    }

    /// All there is was sent.
    pub fn nothing(&self) {
        self.0.store(NOTHING, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_change_that_was_not_sent_counts() {
        let lag = Lag::default();
        assert_eq!(lag.versions(100), 0);
        let (fast, slow) = (lag.stream(), lag.stream());
        assert_eq!(lag.versions(100), 0, "streams that have just begun owe nothing");
        fast.from(100);
        slow.from(41);
        assert_eq!(lag.versions(100), 60);
        slow.nothing();
        assert_eq!(lag.versions(100), 1);
        drop(fast);
        assert_eq!(lag.versions(100), 0, "a stream that is gone owes nothing");
        slow.from(200);
        assert_eq!(lag.versions(100), 0);
    }

    #[test]
    fn streams_that_are_gone_leave_nothing_behind() {
        let lag = Lag::default();
        let kept = lag.stream();
        for _ in 0..10_000 {
            drop(lag.stream());
        }
        assert!(lag.streams.lock().len() < 16);
        drop(kept);
    }
}
