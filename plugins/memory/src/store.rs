//! The store as a whole: one table for each type, the log of all changes, and the small state.
//!
//! Every function takes `&mut self` or `&self` and runs to its end, so whoever calls it sees each batch whole or not at
//! all. Nothing in here waits, reads a clock, or knows how record data is made up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::ops::Bound;
use std::sync::Arc;

use crate::budget::{ALLOCATION, Budget, Usage, bytes, ordered};
use crate::change_log::ChangeLog;
use crate::entry::{Data, Entry, Timestamp, Version};
use crate::leases::{Lease, Leases};
use crate::page::{ChangesPage, ChangesRequest, Filling, Position, ScanPage, ScanRequest};
use crate::services::{Service, Services};
use crate::table::Table;

/// Records, changes and small state, in memory.
#[derive(Debug)]
pub struct Store<D: Data> {
    pub(crate) server_version: u64,
    pub(crate) latest_version: Version,
    /// The highest version that was removed from the log since the store was opened or cleared.
    pub(crate) pruned_version: Version,
    pub(crate) tables: BTreeMap<Arc<str>, Table<D>>,
    /// The changes of all types.
    pub(crate) log: ChangeLog<D>,
    pub(crate) options: BTreeMap<String, Options>,
    pub(crate) options_revision: u64,
    leases: Leases,
    services: Services,
    checkpoint: Checkpoint,
    pub(crate) budget: Budget,
    pub(crate) usage: Arc<Usage>,
    pub(crate) pruned_for_space: u64,
}

/// How records of one type are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep this many records, those with the highest versions.
    pub capacity: Option<u64>,
    /// Fields to answer hints for: names joined by dots.
    pub indexable_fields: Vec<String>,
    /// Remove records that were not modified for so many nanoseconds.
    pub ttl: Option<u64>,
}

/// How far a cluster member has copied its leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The leader's server version.
    pub server_version: u64,
    /// The leader's record version.
    pub record_version: Version,
}

/// What a waiting host has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The server version.
    pub server_version: u64,
    /// The newest change.
    pub latest_version: Version,
    /// Changes whenever any type's options change.
    pub options_revision: u64,
    /// Changes whenever a service is reported or expires.
    pub services_revision: u64,
}

/// What one type holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeStatistics {
    /// The type.
    pub record_type: String,
    /// Live records.
    pub records: u64,
    /// Bytes of their types, ids and data.
    pub bytes: u64,
}

/// What the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// By type, ascending.
    pub types: Vec<TypeStatistics>,
    /// Changes in the log.
    pub changes: u64,
    /// Bytes that count against the budget.
    pub used_bytes: u64,
    /// The budget.
    pub limit_bytes: u64,
    /// Changes that were pruned before their time to make room.
    pub pruned_for_space: u64,
}

/// There is no room; nothing was changed. Says what is full and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted(pub String);

impl std::fmt::Display for Exhausted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Exhausted {}

impl<D: Data> Store<D> {
    /// An empty store. The server version must not be 0.
    pub fn new(budget: Budget, server_version: u64) -> Self {
        Self {
            server_version,
            latest_version: 0,
            pruned_version: 0,
            tables: BTreeMap::new(),
            log: ChangeLog::default(),
            options: BTreeMap::new(),
            options_revision: 0,
            leases: Leases::default(),
            services: Services::default(),
            checkpoint: Checkpoint::default(),
            budget,
            usage: Arc::default(),
            pruned_for_space: 0,
        }
    }

    /// Where the store stands.
    pub fn position(&self) -> Position {
        Position {
            server_version: self.server_version,
            earliest_version: self.log.oldest().map_or(0, |entry| entry.version()),
            latest_version: self.latest_version,
        }
    }

    /// The table of a type, which is made where there is none.
    pub(crate) fn table(&mut self, record_type: &str) -> &mut Table<D> {
        let name = match self.tables.get_key_value(record_type) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(record_type),
        };
        match self.tables.entry(name) {
            MapEntry::Occupied(occupied) => occupied.into_mut(),
            MapEntry::Vacant(vacant) => {
                let name = Arc::clone(vacant.key());
                vacant.insert(Table::new(name, Arc::clone(&self.usage)))
            }
        }
    }

    pub(crate) fn forget_if_empty(&mut self, record_type: &str) {
        if self.tables.get(record_type).is_some_and(Table::is_unused) {
            self.tables.remove(record_type);
        }
    }

    /// What fills the store, and what to do about it.
    pub(crate) fn no_room(&self) -> String {
        let live = self.usage.live();
        let of_tables: u64 = self.tables.values().map(Table::held).sum();
        format!(
            "the memory store has {of_tables} bytes of live records and indexes and {} of leases, services and options, \
             and its budget of {} leaves {} for them: delete records, set capacities, let leases and services run out, or \
             raise `budget` in the connection string",
            live.saturating_sub(of_tables),
            self.budget,
            self.budget.live_limit(),
        )
    }

    /// A live record.
    pub fn get(&self, record_type: &str, id: &str) -> Option<&Arc<Entry<D>>> {
        self.tables.get(record_type)?.get(id)
    }

    /// Reads a page of live records.
    pub fn scan(&self, request: &ScanRequest) -> ScanPage<D> {
        let mut page = Filling::new(request.bounds);
        let hint = request.hint.as_ref();
        let after = request
            .after
            .as_ref()
            .map(|(record_type, id)| (record_type.as_str(), id.as_str()));
        match &request.record_type {
            Some(record_type) => {
                let after_id = match after {
                    Some((after_type, _)) if after_type < record_type.as_str() => Some(None),
                    Some((after_type, id)) if after_type == record_type => Some(Some(id)),
                    Some(_) => None,
                    None => Some(None),
                };
                if let (Some(after_id), Some(table)) = (after_id, self.tables.get(record_type.as_str())) {
                    table.scan(hint, after_id, &mut page);
                }
            }
            None => {
                let start = after.map_or(Bound::Unbounded, |(record_type, _)| Bound::Included(record_type));
                for (name, table) in self.tables.range::<str, _>((start, Bound::Unbounded)) {
                    let after_id = after
                        .filter(|(record_type, _)| **name == **record_type)
                        .map(|(_, id)| id);
                    table.scan(hint, after_id, &mut page);
                    if page.is_full {
                        break;
                    }
                }
            }
        }
        ScanPage {
            more: page.is_full,
            records: page.records,
            position: self.position(),
        }
    }

    /// The number of live records of a type, or of all types.
    pub fn count(&self, record_type: Option<&str>) -> u64 {
        let count = match record_type {
            Some(record_type) => self.tables.get(record_type).map_or(0, Table::len),
            None => self.tables.values().map(Table::len).sum(),
        };
        bytes(count)
    }

    /// The types that have live records, ascending.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.tables
            .iter()
            .filter(|(_, table)| table.has_records())
            .map(|(name, _)| &**name)
    }

    /// Reads a page of the change log.
    ///
    /// # Errors
    ///
    /// The highest version that was pruned, where that is above the version asked for.
    pub fn changes(&self, request: &ChangesRequest) -> Result<ChangesPage<D>, Version> {
        if request.after < self.pruned_version {
            return Err(self.pruned_version);
        }
        let mut page = Filling::new(request.bounds);
        match &request.record_type {
            Some(record_type) => {
                if let Some(table) = self.tables.get(record_type.as_str()) {
                    page.extend(table.log.after(request.after));
                }
            }
            None => page.extend(self.log.after(request.after)),
        }
        let through = match page.records.last() {
            Some(last) if page.is_full => last.version(),
            _ => self.latest_version.max(request.after),
        };
        Ok(ChangesPage {
            records: page.records,
            through,
            position: self.position(),
        })
    }

    /// What a waiting host would see now.
    pub fn observed(&self) -> Observed {
        Observed {
            server_version: self.server_version,
            latest_version: self.latest_version,
            options_revision: self.options_revision,
            services_revision: self.services.revision(),
        }
    }

    /// All options, ascending by type.
    pub fn options(&self) -> impl Iterator<Item = (&str, &Options)> {
        self.options
            .iter()
            .map(|(record_type, options)| (record_type.as_str(), options))
    }

    /// Answers lease requests, in their order.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] where there is no room for them.
    pub fn lease(&mut self, requests: Vec<Lease>, now: Timestamp) -> Result<Vec<bool>, Exhausted> {
        self.expect_room_for_state(self.leases.growth(&requests, now))?;
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            let (succeeded, growth) = self.leases.answer(request, now);
            match u64::try_from(growth) {
                Ok(growth) => self.keep(growth),
                Err(_) => self.unkeep(growth.unsigned_abs()),
            }
            answers.push(succeeded);
        }
        self.keep_to_budget();
        Ok(answers)
    }

    /// The checkpoint as last set.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }

    /// Replaces the checkpoint.
    pub fn set_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = checkpoint;
    }

    /// Adds services, or keeps those that are there, for so many nanoseconds from now.
    ///
    /// # Errors
    ///
    /// [`Exhausted`] where there is no room for them.
    pub fn report_services(&mut self, services: Vec<Service>, ttl: u64, now: Timestamp) -> Result<(), Exhausted> {
        self.expire_services(now);
        self.expect_room_for_state(self.services.growth(&services))?;
        let added = self.services.report(services, ttl, now);
        self.keep(added);
        self.keep_to_budget();
        Ok(())
    }

    /// The services whose time has not run out, ascending by kind, then by endpoint.
    pub fn services(&mut self, now: Timestamp) -> impl Iterator<Item = &Service> {
        self.expire_services(now);
        self.services.list()
    }

    /// Removes the services whose time has run out; returns when the next one's will.
    pub fn expire_services(&mut self, now: Timestamp) -> Option<Timestamp> {
        let removed = self.services.expire(now);
        self.unkeep(removed);
        self.services.next_expiry()
    }

    /// Removes all records, changes and options, and resets the checkpoint. Versions go on from where they were.
    pub fn clear(&mut self, new_server_version: u64) -> Position {
        self.log = ChangeLog::default();
        self.tables.clear();
        for (record_type, options) in std::mem::take(&mut self.options) {
            self.unkeep(options.cost(&record_type));
        }
        self.options_revision += 1;
        self.checkpoint = Checkpoint::default();
        self.pruned_version = 0;
        self.server_version = new_server_version;
        self.position()
    }

    /// What the store holds.
    pub fn measure(&self) -> Statistics {
        let of_type = |(name, table): (&Arc<str>, &Table<D>)| TypeStatistics {
            record_type: name.to_string(),
            records: bytes(table.len()),
            bytes: table.size(),
        };
        Statistics {
            types: self
                .tables
                .iter()
                .filter(|(_, table)| table.has_records())
                .map(of_type)
                .collect(),
            changes: bytes(self.log.len()),
            used_bytes: self.usage.used(),
            limit_bytes: self.budget.limit(),
            pruned_for_space: self.pruned_for_space,
        }
    }

    /// Changes that were pruned before their time to make room.
    pub fn pruned_for_space(&self) -> u64 {
        self.pruned_for_space
    }

    /// Fails unless there is room for so many bytes of leases and services. They may use what is otherwise left to the
    /// change log: where records have filled the store, whoever holds a lease is who removes some.
    fn expect_room_for_state(&self, bytes: u64) -> Result<(), Exhausted> {
        if bytes > 0 && self.usage.live().saturating_add(bytes) > self.budget.limit() {
            return Err(Exhausted(self.no_room()));
        }
        Ok(())
    }

    /// Fails unless there is room for so many bytes of options and indexes.
    pub(crate) fn expect_room(&self, bytes: u64) -> Result<(), Exhausted> {
        if bytes > 0 && self.usage.live().saturating_add(bytes) > self.budget.live_limit() {
            return Err(Exhausted(self.no_room()));
        }
        Ok(())
    }

    /// Counts small state.
    pub(crate) fn keep(&self, bytes: u64) {
        self.usage.charge(bytes);
        self.usage.hold(bytes);
    }

    pub(crate) fn unkeep(&self, bytes: u64) {
        self.usage.release(bytes);
        self.usage.unhold(bytes);
    }
}

impl Options {
    /// What the options of a type take.
    pub(crate) fn cost(&self, record_type: &str) -> u64 {
        let paths: u64 = self
            .indexable_fields
            .iter()
            .map(|path| 2 * (bytes(path.len()) + 64))
            .sum();
        bytes(record_type.len()) + ALLOCATION + ordered(size_of::<(String, Self)>()) + paths
    }
}
