//! The live records and the changes of one type.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry::{Occupied, Vacant};
use std::ops::Bound;
use std::sync::Arc;

use crate::budget::{ALLOCATION, SHARED, Usage, bytes, ordered};
use crate::change_log::ChangeLog;
use crate::entry::{Data, Entry, RecordType, Timestamp, Version};
use crate::index::{FieldIndex, Indexed, Indexes};
use crate::page::{Filling, Hint};
use crate::retention::EvictRequest;

/// One type. Charges what it keeps around its entries; the entries charge themselves.
#[derive(Debug)]
pub(crate) struct Table<D: Data> {
    record_type: Arc<RecordType>,
    records: BTreeMap<Arc<str>, Slot<D>>,
    /// The live records' ids by their versions: what eviction takes first stands first.
    order: BTreeMap<Version, Arc<str>>,
    /// The changes of this type.
    pub log: ChangeLog<D>,
    indexes: Indexes,
    /// Bytes of the live records: types, ids and data.
    size: u64,
    clock: Clock,
    /// What the table has charged and not released, and what it holds.
    charged: u64,
    held: u64,
}

/// A live record, with what the indexes know of it.
#[derive(Debug)]
struct Slot<D: Data> {
    entry: Arc<Entry<D>>,
    indexed: Option<Box<Indexed>>,
}

impl<D: Data> Table<D> {
    /// What a record takes in `records` and `order`.
    const PLACE: u64 = ordered(size_of::<(Arc<str>, Slot<D>)>()) + ordered(size_of::<(Version, Arc<str>)>());

    /// What a table of this name takes without records.
    pub fn fixed_cost(name: &str) -> u64 {
        let shared = bytes(name.len()) + 2 * (SHARED + ALLOCATION) + bytes(size_of::<RecordType>());
        shared + ordered(size_of::<(Arc<str>, Self)>())
    }

    /// What a live record takes in all.
    pub fn record_cost(entry_cost: u64, indexed_cost: u64) -> u64 {
        entry_cost + Self::PLACE + indexed_cost
    }

    pub fn new(name: Arc<str>, usage: Arc<Usage>) -> Self {
        let fixed = Self::fixed_cost(&name);
        let mut table = Self {
            record_type: Arc::new(RecordType { name, usage }),
            records: BTreeMap::new(),
            order: BTreeMap::new(),
            log: ChangeLog::default(),
            indexes: Indexes::default(),
            size: 0,
            clock: Clock::default(),
            charged: 0,
            held: 0,
        };
        table.charge(fixed, fixed);
        table
    }

    /// True where the table can be forgotten.
    pub fn is_unused(&self) -> bool {
        self.records.is_empty() && self.log.is_empty() && self.indexes.fields.is_empty()
    }

    pub fn has_records(&self) -> bool {
        !self.records.is_empty()
    }

    /// The number of live records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Bytes of the live records: types, ids and data.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn get(&self, id: &str) -> Option<&Arc<Entry<D>>> {
        self.records.get(id).map(|slot| &slot.entry)
    }

    /// A live record, and what it takes.
    pub fn cost(&self, id: &str) -> Option<(&Arc<Entry<D>>, u64)> {
        let slot = self.records.get(id)?;
        Some((&slot.entry, slot.cost()))
    }

    /// Writes a record and appends the change to the type's log. Looks for its place once, since most of what a write
    /// costs is looking; to write over a record takes a copy of its id for that.
    pub fn upsert(
        &mut self,
        version: Version,
        now: Timestamp,
        id: String,
        data: Option<D>,
        indexed: Indexed,
    ) -> Arc<Entry<D>> {
        let record_type = Arc::clone(&self.record_type);
        let entry = match self.records.entry(Arc::from(id)) {
            Occupied(mut place) => {
                let slot = place.get_mut();
                let id = Arc::clone(slot.entry.shared_id());
                let entry = Arc::new(Entry::put(version, now, record_type, id, data));
                let replaced = std::mem::replace(&mut slot.entry, Arc::clone(&entry));
                let (before, after) = slot.set_indexed(indexed, &mut self.indexes);
                self.order.remove(&replaced.version());
                self.size -= replaced.size();
                self.discharge(before, before + replaced.cost());
                self.charge(after, after);
                entry
            }
            Vacant(place) => {
                let id = Arc::clone(place.key());
                let entry = Arc::new(Entry::put(version, now, record_type, id, data));
                let mut slot = Slot {
                    entry: Arc::clone(&entry),
                    indexed: None,
                };
                let (_, indexed) = slot.set_indexed(indexed, &mut self.indexes);
                place.insert(slot);
                self.charge(Self::PLACE + indexed, Self::PLACE + indexed);
                entry
            }
        };
        self.charge(0, entry.cost());
        self.size += entry.size();
        self.order.insert(version, Arc::clone(entry.shared_id()));
        self.clock.tick(now);
        self.log.push(Arc::clone(&entry));
        entry
    }

    /// Removes a record, and appends its tombstone to the type's log.
    pub fn remove(&mut self, version: Version, now: Timestamp, id: &str) -> Option<Arc<Entry<D>>> {
        let mut slot = self.records.remove(id)?;
        let (indexed, _) = slot.set_indexed(Indexed::default(), &mut self.indexes);
        let removed = slot.entry;
        self.order.remove(&removed.version());
        self.size -= removed.size();
        self.discharge(Self::PLACE + indexed, Self::PLACE + indexed + removed.cost());
        let tombstone = Arc::new(Entry::tombstone(version, now, removed));
        self.log.push(Arc::clone(&tombstone));
        Some(tombstone)
    }

    /// Adds the records to a page that the hint lets through, after this id.
    pub fn scan(&self, hint: Option<&Hint>, after: Option<&str>, page: &mut Filling<D>) {
        match hint {
            Some(Hint::Network(prefix)) => {
                let ids = self.indexes.networks.containing(*prefix, after, page.wanted());
                page.extend(ids.iter().filter_map(|id| self.get(id)));
            }
            Some(Hint::Field { path, value }) => match self.indexes.ready(path) {
                Some(field) => page.extend(field.ids(value, after).filter_map(|id| self.get(id))),
                None => page.extend(self.after(after)),
            },
            None => page.extend(self.after(after)),
        }
    }

    /// The live records after this id, ascending.
    pub fn after(&self, id: Option<&str>) -> impl Iterator<Item = &Arc<Entry<D>>> {
        let start = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.records
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, slot)| &slot.entry)
    }

    /// The ids of the records to evict, lowest versions first, and whether there are more than the request allows. Looks
    /// at no others, save where the clock was set back: then at those that it may have put out of order.
    pub fn evictable(&self, request: &EvictRequest, most_bytes: u64) -> (Vec<Arc<str>>, bool) {
        let most = usize::try_from(request.max_records.max(1)).unwrap_or(usize::MAX);
        let keep = request
            .keep
            .map_or(usize::MAX, |keep| usize::try_from(keep).unwrap_or(usize::MAX));
        let surplus = self.len().saturating_sub(keep);
        let mut ids = Vec::new();
        let mut bytes = 0_u64;
        for (place, id) in self.order.values().enumerate() {
            let Some(entry) = self.get(id) else { continue };
            let is_old = request
                .modified_before
                .is_some_and(|before| entry.modified_at() < before);
            if place < surplus || is_old {
                bytes = bytes.saturating_add(entry.size());
                if ids.len() == most || (bytes > most_bytes && !ids.is_empty()) {
                    return (ids, true);
                }
                ids.push(Arc::clone(id));
            } else if request
                .modified_before
                .is_none_or(|before| self.clock.is_in_order_from(before))
            {
                break;
            }
        }
        (ids, false)
    }

    /// The paths that are extracted from every record that is written.
    pub fn paths(&self) -> Vec<String> {
        self.indexes.fields.iter().map(|field| field.path.clone()).collect()
    }

    /// What the indexes keep of a record, from the values of each of `paths`.
    pub fn indexed(&self, network: Option<crate::Prefix>, values: Vec<Vec<String>>) -> Indexed {
        let numbers = self.indexes.fields.iter().map(|field| field.number);
        let mut values: Vec<(u32, Arc<str>)> = numbers
            .zip(values)
            .flat_map(|(number, values)| values.into_iter().map(move |value| (number, Arc::from(value))))
            .collect();
        values.sort_unstable();
        values.dedup();
        Indexed { network, values }
    }

    /// Replaces what the indexes know of a record.
    pub fn set_indexed(&mut self, id: &str, indexed: Indexed) {
        let Some(slot) = self.records.get_mut(id) else { return };
        let (before, after) = slot.set_indexed(indexed, &mut self.indexes);
        self.discharge(before, before);
        self.charge(after, after);
    }

    /// The network that the indexes know of a record.
    pub fn network(&self, id: &str) -> Option<crate::Prefix> {
        self.records.get(id)?.indexed.as_ref()?.network
    }

    /// Adds an index for each path that has none yet, not ready to be asked; returns whether there were any.
    pub fn add_fields(&mut self, paths: &[String]) -> bool {
        self.indexes.add_fields(paths)
    }

    /// Makes the indexes of these paths ready, and removes all others.
    pub fn keep_fields(&mut self, paths: &[String]) {
        for field in &mut self.indexes.fields {
            field.ready |= paths.contains(&field.path);
        }
        self.drop_fields(|field| !paths.contains(&field.path));
    }

    /// Removes the indexes that are not ready.
    pub fn drop_unready_fields(&mut self) {
        self.drop_fields(|field| !field.ready);
    }

    fn drop_fields(&mut self, is_dropped: impl Fn(&FieldIndex) -> bool) {
        let fields = std::mem::take(&mut self.indexes.fields);
        let (dropped, kept): (Vec<_>, _) = fields.into_iter().partition(|field| is_dropped(field));
        self.indexes.fields = kept;
        for field in dropped {
            for id in field.all_ids() {
                self.forget_values(id, field.number);
            }
        }
    }

    fn forget_values(&mut self, id: &str, number: u32) {
        let Some(slot) = self.records.get_mut(id) else { return };
        let Some(indexed) = &mut slot.indexed else { return };
        let before = indexed.cost();
        indexed.values.retain(|(known, _)| *known != number);
        let after = if indexed.is_empty() { 0 } else { indexed.cost() };
        if indexed.is_empty() {
            slot.indexed = None;
        }
        self.discharge(before, before);
        self.charge(after, after);
    }

    /// The bytes of its live records and indexes.
    pub fn held(&self) -> u64 {
        self.held
    }

    fn charge(&mut self, charged: u64, held: u64) {
        self.charged += charged;
        self.held += held;
        self.record_type.usage.charge(charged);
        self.record_type.usage.hold(held);
    }

    fn discharge(&mut self, charged: u64, held: u64) {
        self.charged -= charged;
        self.held -= held;
        self.record_type.usage.release(charged);
        self.record_type.usage.unhold(held);
    }
}

impl<D: Data> Drop for Table<D> {
    fn drop(&mut self) {
        self.discharge(self.charged, self.held);
    }
}

impl<D: Data> Slot<D> {
    /// Replaces what the indexes know of the record; returns what that took before, and what it takes now.
    fn set_indexed(&mut self, indexed: Indexed, indexes: &mut Indexes) -> (u64, u64) {
        let known = self.indexed.as_deref();
        if known.map_or(indexed.is_empty(), |known| *known == indexed) {
            return (0, 0);
        }
        let id = self.entry.shared_id();
        let before = known.map_or(0, |known| {
            indexes.remove(known, id);
            known.cost()
        });
        if indexed.is_empty() {
            self.indexed = None;
            return (before, 0);
        }
        indexes.insert(&indexed, id);
        let after = indexed.cost();
        self.indexed = Some(Box::new(indexed));
        (before, after)
    }

    fn cost(&self) -> u64 {
        let indexed = self.indexed.as_ref().map_or(0, |indexed| indexed.cost());
        Table::<D>::record_cost(self.entry.cost(), indexed)
    }
}

/// What the times of writes say about the order of the records' ages. Versions ascend and so do times, but for a clock
/// that was set back.
#[derive(Debug)]
struct Clock {
    latest: Timestamp,
    /// No record that was written later than this has one of a higher version that was written before it.
    disordered_until: Timestamp,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            latest: Timestamp::MIN,
            disordered_until: Timestamp::MIN,
        }
    }
}

impl Clock {
    fn tick(&mut self, now: Timestamp) {
        if now < self.latest {
            self.disordered_until = self.latest;
        } else {
            self.latest = now;
        }
    }

    /// True if all records after one that was written at this time, or later, were too.
    fn is_in_order_from(&self, time: Timestamp) -> bool {
        time > self.disordered_until
    }
}
