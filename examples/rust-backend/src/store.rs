//! The store itself: live records, the log of changes and the small state around them, in ordinary collections.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::rc::Rc;

use crate::bindings::databroker::storage::types::{Key, Position, Record, Timestamp, Version};
use crate::bindings::exports::databroker::storage::store::{
    BatchResult, Change, ChangesPage, ChangesRequest, Checkpoint, EvictRequest, Evicted, LeaseAction, LeaseRequest,
    Operation, Options, Outcome, Pruned, Refusal, ScanPage, ScanRequest, Service, Statistics, TypeStatistics,
};

/// What a record costs besides its bytes, roughly: names in several maps and the maps themselves.
const OVERHEAD: u64 = 512;

/// The tombstones that one call of `put` answers with hold no more bytes than this: the host takes no larger answer.
pub const ANSWER_BYTES: u64 = 64 << 20;

/// The tombstones of one eviction hold no more bytes than this, or are one. The request bounds their number alone.
const EVICTION_BYTES: u64 = 4 << 20;

/// Records and what belongs to them.
pub struct Store {
    server_version: u64,
    /// The newest change ever made. Only [`Store::next_version`] changes it, and nothing lowers it.
    latest_version: Version,
    /// The newest change that is no longer in the log; 0 where none was removed.
    pruned_version: Version,
    /// Changes in the order of their versions. A record that lives stands here and in its table, in the same memory.
    log: VecDeque<Rc<Record>>,
    /// Live records by type. A type without any is not here.
    tables: BTreeMap<String, Table>,
    /// How records of a type are kept. The host enforces capacity and ttl; this store has no indexes.
    pub options: BTreeMap<String, Options>,
    /// How far a cluster member has copied its leader.
    pub checkpoint: Checkpoint,
    /// Holder and end of each lease.
    leases: BTreeMap<String, (String, Timestamp)>,
    /// The end of each service's time, by kind and endpoint.
    services: BTreeMap<(i32, String), Timestamp>,
    /// What live records cost, and what the log does. A record that is in both counts twice, which errs on the safe side.
    live_bytes: u64,
    log_bytes: u64,
    limit_bytes: u64,
    pruned_for_space: u64,
}

/// The live records of one type.
#[derive(Default)]
struct Table {
    /// Rust compares strings bytewise, which is the order that the interface asks for.
    by_id: BTreeMap<String, Rc<Record>>,
    /// The same records in the order of their versions, so that evictions find the lowest without a search.
    by_version: BTreeMap<Version, Rc<Record>>,
    bytes: u64,
}

impl Store {
    /// An empty store that allows itself so many bytes.
    pub fn new(server_version: u64, limit_bytes: u64) -> Self {
        Self {
            server_version,
            latest_version: 0,
            pruned_version: 0,
            log: VecDeque::new(),
            tables: BTreeMap::new(),
            options: BTreeMap::new(),
            checkpoint: NO_CHECKPOINT,
            leases: BTreeMap::new(),
            services: BTreeMap::new(),
            live_bytes: 0,
            log_bytes: 0,
            limit_bytes,
            pruned_for_space: 0,
        }
    }

    /// Where the store stands.
    pub fn position(&self) -> Position {
        Position {
            server_version: self.server_version,
            earliest_version: self.log.front().map_or(0, |oldest| oldest.version),
            latest_version: self.latest_version,
        }
    }

    /// Applies a batch, all of it or nothing: every reason to refuse it is looked for before the first step is taken,
    /// so there is never anything to undo. `room` is what the tombstones of the call may come to yet.
    pub fn put(&mut self, batch: Vec<Change>, now: Timestamp, room: &mut u64) -> BatchResult {
        let answer = self.check(&batch)?;
        let left = room.checked_sub(answer).ok_or_else(|| {
            let why = "their last data is too much for one answer: delete fewer records at once";
            Refusal::Exhausted(why.into())
        })?;
        self.make_room(&batch)?;
        *room = left;
        let mut apply = |change: Change| match change.operation {
            Operation::Upsert(content) => Outcome::Stored(self.upsert(change.key, content.data, now)),
            Operation::Delete => match self.remove(&change.key, now) {
                Some(tombstone) => Outcome::Deleted(tombstone),
                None => Outcome::Missing,
            },
        };
        Ok(batch.into_iter().map(&mut apply).collect())
    }

    /// Compares the expected versions with what the steps before each will have left, without taking any. Returns the bytes
    /// of the tombstones that the batch will leave.
    fn check(&self, batch: &[Change]) -> Result<u64, Refusal> {
        let mut next_version = self.latest_version;
        let mut tombstones = 0;
        let mut left: HashMap<(&str, &str), (Version, u64)> = HashMap::new();
        for (index, change) in (0..).zip(batch) {
            let Key { type_, id } = &change.key;
            let stored = || {
                let record = self.get(&change.key);
                record.map_or((0, 0), |record| (record.version, size_of_record(record)))
            };
            let (version, bytes) = left.entry((type_.as_str(), id.as_str())).or_insert_with(stored);
            if change.expected.is_some_and(|expected| expected != *version) {
                return Err(Refusal::Conflict(index));
            }
            match &change.operation {
                Operation::Upsert(content) => {
                    next_version += 1;
                    *version = next_version;
                    *bytes = size(type_, id, content.data.as_deref());
                }
                Operation::Delete if *version != 0 => {
                    next_version += 1;
                    *version = 0;
                    tombstones += *bytes;
                }
                Operation::Delete => {}
            }
        }
        Ok(tombstones)
    }

    /// Gives up the oldest changes until a batch fits, or refuses it where live records alone leave no room. A failed
    /// allocation would end the instance and all that it holds. A batch of deletes is never refused, since it is the way
    /// out of a full store: what a record cost as a live one, its tombstone costs in the log.
    fn make_room(&mut self, batch: &[Change]) -> Result<(), Refusal> {
        let cost_of = |change: &Change| match &change.operation {
            Operation::Upsert(content) => 2 * cost(size(&change.key.type_, &change.key.id, content.data.as_deref())),
            Operation::Delete => 0,
        };
        let needed: u64 = batch.iter().map(cost_of).sum();
        if needed > 0 && self.live_bytes + needed > self.limit_bytes {
            return Err(Refusal::Exhausted(format!(
                "the live records hold {} of {} bytes: delete some, or raise the limit in the connection string",
                self.live_bytes, self.limit_bytes
            )));
        }
        while self.live_bytes + self.log_bytes + needed > self.limit_bytes && self.log.len() > 1 {
            self.prune_oldest();
            self.pruned_for_space += 1;
        }
        Ok(())
    }

    fn upsert(&mut self, key: Key, data: Option<Vec<u8>>, now: Timestamp) -> Version {
        self.take(&key);
        let record = Rc::new(Record {
            version: self.next_version(),
            type_: key.type_,
            id: key.id,
            data,
            modified_at: now,
            deleted_at: None,
        });
        let table = self.tables.entry(record.type_.clone()).or_default();
        table.by_id.insert(record.id.clone(), Rc::clone(&record));
        table.by_version.insert(record.version, Rc::clone(&record));
        table.bytes += size_of_record(&record);
        self.live_bytes += cost(size_of_record(&record));
        let version = record.version;
        self.append(record);
        version
    }

    /// Removes a record and appends its tombstone: the last data under a version of its own. The only way that a record
    /// goes, save for `clear`.
    fn remove(&mut self, key: &Key, now: Timestamp) -> Option<Record> {
        let record = self.take(key)?;
        let tombstone = Record {
            version: self.next_version(),
            modified_at: now,
            deleted_at: Some(now),
            ..(*record).clone()
        };
        self.append(Rc::new(tombstone.clone()));
        Some(tombstone)
    }

    /// Takes a record out of its table, if it is there.
    fn take(&mut self, key: &Key) -> Option<Rc<Record>> {
        let table = self.tables.get_mut(&key.type_)?;
        let record = table.by_id.remove(&key.id)?;
        table.by_version.remove(&record.version);
        table.bytes -= size_of_record(&record);
        self.live_bytes -= cost(size_of_record(&record));
        if table.by_id.is_empty() {
            self.tables.remove(&key.type_);
        }
        Some(record)
    }

    fn next_version(&mut self) -> Version {
        self.latest_version += 1;
        self.latest_version
    }

    fn append(&mut self, change: Rc<Record>) {
        self.log_bytes += cost(size_of_record(&change));
        self.log.push_back(change);
    }

    /// The live record of a key.
    pub fn get(&self, key: &Key) -> Option<&Record> {
        self.tables.get(&key.type_)?.by_id.get(&key.id).map(Rc::as_ref)
    }

    /// A page of live records. The next page starts after a key and not at a place in a list, so what is written
    /// between two pages moves nothing: a record that is not touched is there exactly once.
    pub fn scan(&self, request: &ScanRequest) -> ScanPage {
        let after = request.after.as_ref();
        let wanted = request.type_.as_deref();
        let first_type = wanted.max(after.map(|after| after.type_.as_str())).unwrap_or_default();
        let beyond = |type_: &String| match after {
            Some(after) if after.type_ == *type_ => (Bound::Excluded(after.id.as_str()), Bound::Unbounded),
            _ => (Bound::Unbounded, Bound::Unbounded),
        };
        let live = self
            .tables
            .range::<str, _>((Bound::Included(first_type), Bound::Unbounded))
            .take_while(|(type_, _)| wanted.is_none_or(|wanted| wanted == *type_))
            .flat_map(|(type_, table)| table.by_id.range::<str, _>(beyond(type_)))
            .map(|(_, record)| record);
        let (records, more) = page(live, request.max_records, request.max_bytes);
        ScanPage {
            records,
            more,
            position: self.position(),
        }
    }

    /// The number of live records of a type, or of all.
    pub fn count(&self, type_: Option<&str>) -> u64 {
        match type_ {
            Some(type_) => self.tables.get(type_).map_or(0, |table| number(table.by_id.len())),
            None => self.tables.values().map(|table| number(table.by_id.len())).sum(),
        }
    }

    /// The types that have live records, ascending.
    pub fn types(&self) -> Vec<String> {
        self.tables.keys().cloned().collect()
    }

    /// A page of the change log; or the newest version that was pruned, where the reader has missed it.
    pub fn changes(&self, request: &ChangesRequest) -> Result<ChangesPage, Version> {
        if request.after < self.pruned_version {
            return Err(self.pruned_version);
        }
        let is_wanted = |record: &&Rc<Record>| request.type_.as_ref().is_none_or(|type_| *type_ == record.type_);
        let start = self.log.partition_point(|record| record.version <= request.after);
        let later = self.log.range(start..).filter(is_wanted);
        let (records, more) = page(later, request.max_records, request.max_bytes);
        let through = match records.last() {
            Some(last) if more => last.version,
            // Everything up to the newest change was looked at, or the reader is ahead of it.
            _ => self.latest_version.max(request.after),
        };
        Ok(ChangesPage {
            records,
            through,
            position: self.position(),
        })
    }

    /// Answers one lease request. What has run out is forgotten first, so whatever is left is held.
    pub fn lease(&mut self, request: LeaseRequest, now: Timestamp) -> bool {
        self.leases.retain(|_, (_, until)| *until > now);
        let holder = self.leases.get(&request.name).map(|(id, _)| id);
        let is_own = holder == Some(&request.id);
        match request.action {
            LeaseAction::Hold(duration) if is_own || holder.is_none() => {
                let until = now.saturating_add_unsigned(duration);
                self.leases.insert(request.name, (request.id, until));
                true
            }
            LeaseAction::Release if is_own => self.leases.remove(&request.name).is_some(),
            LeaseAction::Hold(_) | LeaseAction::Release => false,
        }
    }

    /// Adds services, or keeps those that are there, until a time.
    pub fn report_services(&mut self, services: Vec<Service>, until: Timestamp) {
        let entries = services
            .into_iter()
            .map(|service| ((service.kind, service.endpoint), until));
        self.services.extend(entries);
    }

    /// The services whose time has not run out; the others are forgotten.
    pub fn list_services(&mut self, now: Timestamp) -> Vec<Service> {
        self.services.retain(|_, until| *until > now);
        let service = |(kind, endpoint): &(i32, String)| Service {
            kind: *kind,
            endpoint: endpoint.clone(),
        };
        self.services.keys().map(service).collect()
    }

    /// Removes changes older than `before` from the log. The newest stays, however old.
    pub fn prune(&mut self, before: Timestamp, max_changes: u32) -> Pruned {
        let is_due = |log: &VecDeque<Rc<Record>>| log.len() > 1 && log.front().is_some_and(|c| c.modified_at < before);
        let mut removed = 0;
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

    fn prune_oldest(&mut self) {
        if let Some(oldest) = self.log.pop_front() {
            self.log_bytes -= cost(size_of_record(&oldest));
            self.pruned_version = oldest.version;
        }
    }

    /// Removes the records of a type that are too old or too many, lowest versions first.
    pub fn evict(&mut self, request: &EvictRequest, now: Timestamp) -> Evicted {
        let (due, more) = match self.tables.get(&request.type_) {
            Some(table) => table.due(request),
            None => (Vec::new(), false),
        };
        let keys = due.into_iter().map(|record| Key {
            type_: record.type_,
            id: record.id,
        });
        Evicted {
            server_version: self.server_version,
            tombstones: keys.filter_map(|key| self.remove(&key, now)).collect(),
            more,
        }
    }

    /// Removes all records, changes and options. Versions go on, so that none is ever used twice; leases and services
    /// stay, since they say who runs and not what is stored.
    pub fn clear(&mut self, new_server_version: u64) -> Position {
        self.server_version = new_server_version;
        self.pruned_version = 0;
        self.log.clear();
        self.tables.clear();
        self.options.clear();
        self.checkpoint = NO_CHECKPOINT;
        self.live_bytes = 0;
        self.log_bytes = 0;
        self.position()
    }

    /// What the store holds.
    pub fn measure(&self) -> Statistics {
        let of_type = |(type_, table): (&String, &Table)| TypeStatistics {
            type_: type_.clone(),
            records: number(table.by_id.len()),
            bytes: table.bytes,
        };
        Statistics {
            types: self.tables.iter().map(of_type).collect(),
            changes: number(self.log.len()),
            used_bytes: self.live_bytes + self.log_bytes,
            limit_bytes: Some(self.limit_bytes),
            pruned_for_space: self.pruned_for_space,
        }
    }
}

impl Table {
    /// The records to evict, ascending by version, and whether there are more than one call may remove.
    fn due(&self, request: &EvictRequest) -> (Vec<Record>, bool) {
        let live = self.by_id.len();
        let kept = request.keep.and_then(|keep| usize::try_from(keep).ok()).unwrap_or(live);
        let surplus = live.saturating_sub(kept);
        // The clock may have been set back, so the order of versions is not that of times: all must be looked at.
        let candidates = if request.modified_before.is_some() {
            live
        } else {
            surplus
        };
        let is_old = |record: &Record| {
            request
                .modified_before
                .is_some_and(|before| record.modified_at < before)
        };
        let due = self
            .by_version
            .values()
            .enumerate()
            .take(candidates)
            .filter(|(index, record)| *index < surplus || is_old(record))
            .map(|(_, record)| record);
        page(due, request.max_records, EVICTION_BYTES)
    }
}

const NO_CHECKPOINT: Checkpoint = Checkpoint {
    server_version: 0,
    record_version: 0,
};

/// Copies records until the next would cross a bound, but one at least; true if any are left.
fn page<'a>(records: impl Iterator<Item = &'a Rc<Record>>, max_records: u32, max_bytes: u64) -> (Vec<Record>, bool) {
    let mut page = Vec::new();
    let mut bytes = 0;
    for record in records {
        bytes += size_of_record(record);
        if !page.is_empty() && (bytes > max_bytes || number(page.len()) >= u64::from(max_records)) {
            return (page, true);
        }
        page.push(Record::clone(record));
    }
    (page, false)
}

/// The bytes of a record as the interface counts them.
fn size(type_: &str, id: &str, data: Option<&[u8]>) -> u64 {
    number(type_.len()) + number(id.len()) + number(data.map_or(0, <[u8]>::len))
}

fn size_of_record(record: &Record) -> u64 {
    size(&record.type_, &record.id, record.data.as_deref())
}

/// What a record of this size costs in one place.
fn cost(size: u64) -> u64 {
    size + OVERHEAD
}

/// A length as the interface has it.
fn number(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
