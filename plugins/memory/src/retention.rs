//! What goes, and when: old changes, surplus and outdated records, and history where space runs out.

use std::sync::Arc;

use crate::change_log::ChangeLog;
use crate::entry::{Data, Entry, Timestamp};
use crate::page::Position;
use crate::store::{Exhausted, Store};

/// What a prune did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// How many changes were removed.
    pub removed: u32,
    /// True if there is more to remove.
    pub more: bool,
    /// Where the store stands now.
    pub position: Position,
}

/// Which records to remove: those that any of the two names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictRequest {
    /// Of this type.
    pub record_type: String,
    /// Records that were last modified before this.
    pub modified_before: Option<Timestamp>,
    /// All but this many, which are those with the highest versions.
    pub keep: Option<u64>,
    /// Remove this many at most, the lowest versions first.
    pub max_records: u32,
}

/// What an eviction did.
#[derive(Debug)]
pub struct Evicted<D: Data> {
    /// The server version that the tombstones were written under.
    pub server_version: u64,
    /// The tombstones, ascending by version.
    pub tombstones: Vec<Arc<Entry<D>>>,
    /// True if there is more to remove.
    pub more: bool,
}

/// Why a batch is refused that the budget has room for.
pub(crate) const INSTANCE_FULL: &str = "the memory of the plugin's instance is full before the store's budget is: raise \
                                        the limit on it (DATABROKER_PLUGIN_MEMORY), or delete records";

impl<D: Data> Store<D> {
    /// Tombstones of more bytes than this are not returned from one eviction, but from several.
    const EVICTION_BYTES: u64 = 4 << 20;

    /// Removes changes older than `before`, oldest first, at most this many, but never the newest.
    pub fn prune(&mut self, before: Timestamp, max_changes: u32) -> Pruned {
        let mut removed = 0;
        let is_due =
            |log: &ChangeLog<D>| log.len() > 1 && log.oldest().is_some_and(|entry| entry.modified_at() < before);
        while removed < max_changes && is_due(&self.log) {
            self.prune_oldest();
            removed += 1;
        }
        Pruned {
            removed,
            more: is_due(&self.log),
            position: self.position(),
        }
    }

    /// Removes records, each with a tombstone. Stops early where the tombstones would be many bytes.
    pub fn evict(&mut self, request: &EvictRequest, now: Timestamp) -> Evicted<D> {
        let (ids, more) = match self.tables.get(request.record_type.as_str()) {
            Some(table) => table.evictable(request, Self::EVICTION_BYTES),
            None => (Vec::new(), false),
        };
        let tombstones = ids
            .iter()
            .filter_map(|id| self.remove(&request.record_type, id, now))
            .collect();
        Evicted {
            server_version: self.server_version,
            tombstones,
            more,
        }
    }

    /// Takes a change into the log of all types, where a table has taken it into its own.
    pub(crate) fn append(&mut self, entry: Arc<Entry<D>>) {
        self.latest_version = entry.version();
        self.log.push(entry);
        self.keep_to_budget();
    }

    /// Gives up the oldest history until the budget is kept.
    pub(crate) fn keep_to_budget(&mut self) {
        while self.usage.used() > self.budget.limit() && self.log.len() > 1 {
            self.prune_oldest();
            self.pruned_for_space += 1;
        }
    }

    /// Prunes an eighth of the log; false where nothing is left to prune.
    pub(crate) fn give_up_history(&mut self) -> bool {
        let removed = (self.log.len() / 8 + 1).min(self.log.len().saturating_sub(1));
        for _ in 0..removed {
            self.prune_oldest();
            self.pruned_for_space += 1;
        }
        removed > 0
    }

    /// Gives up history until there is room; fails where that is not enough.
    pub(crate) fn make_room(&mut self, has_room: &impl Fn() -> bool) -> Result<(), Exhausted> {
        self.expect_room(1)?;
        self.keep_to_budget();
        while !has_room() {
            if !self.give_up_history() {
                return Err(Exhausted(INSTANCE_FULL.to_owned()));
            }
        }
        Ok(())
    }

    fn prune_oldest(&mut self) {
        let Some(entry) = self.log.pop() else { return };
        self.pruned_version = entry.version();
        if let Some(table) = self.tables.get_mut(entry.record_type()) {
            table.log.pop();
            if table.is_unused() {
                self.tables.remove(entry.record_type());
            }
        }
    }
}
