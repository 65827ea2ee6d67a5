//! Changes in ascending order of their versions: the log of all types, and one for each type.
//!
//! A change stands in both, at the cost of one pointer each. So a reader of one type never looks at another's changes,
//! and since the oldest change of all is also the oldest of its type, pruning takes the front of both.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entry::{Data, Entry, Version};

/// Entries, ascending by version.
#[derive(Debug)]
pub(crate) struct ChangeLog<D: Data>(VecDeque<Arc<Entry<D>>>);

impl<D: Data> Default for ChangeLog<D> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<D: Data> ChangeLog<D> {
    /// A queue smaller than this keeps its memory.
    const SMALL: usize = 1024;

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn oldest(&self) -> Option<&Arc<Entry<D>>> {
        self.0.front()
    }

    /// Makes room for more entries; false where there is no memory for it.
    pub fn reserve(&mut self, additional: usize) -> bool {
        self.0.try_reserve(additional).is_ok()
    }

    /// Appends an entry, whose version is above all others.
    pub fn push(&mut self, entry: Arc<Entry<D>>) {
        self.0.push_back(entry);
    }

    /// Takes the oldest entry, and gives memory back when little of the queue is in use.
    pub fn pop(&mut self) -> Option<Arc<Entry<D>>> {
        let entry = self.0.pop_front();
        if self.0.capacity() > Self::SMALL && self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
        entry
    }

    /// The entries with a version above this, ascending. Finding the first takes the logarithm of the log's length.
    pub fn after(&self, version: Version) -> impl Iterator<Item = &Arc<Entry<D>>> {
        let start = self.0.partition_point(|entry| entry.version() <= version);
        self.0.range(start..)
    }
}
