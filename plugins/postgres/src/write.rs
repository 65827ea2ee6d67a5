//! Writing: batches of changes, evictions, wiping.
//!
//! A call is one transaction under the writers' lock, in which one function of ours (`write.sql`) writes everything: versions
//! are taken from Pomerium's sequence in the order of the steps, the change log, the records and our own table get a row each,
//! and whoever waits is notified at the commit. What the steps do to each other is worked out before (`plan`). Most calls need to
//! know nothing of what is stored, or have a guess that is right, and are that one round trip.
//!
//! Whoever else holds a record, with `SELECT … FOR UPDATE` or a transaction that does not end, keeps those waiting who write the
//! same, and nobody else for long: a call waits for it for some tenths of a second, since all hosts wait for the call, and then
//! goes on without the batches that want the record. The interface has no word for such a batch. It is refused as one that found
//! no room, which has it put again by itself; and that call fails at once.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use crate::database::{Data, Database, Query, Session, Value};
use crate::horizon::Patience;
use crate::json;
use crate::page::{Bounds, Page, Parameters, Selection};
use crate::plan::{Plan, Write, Written};
use crate::read::keys_as_parameters;
use crate::record::{EXACT, Key, Position, Record, SIZE, WRITTEN, columns};
use crate::store::{Error, Failed, HELD, Store, first, no_row, signed, unsigned};
use crate::text;

/// How much is read at once of what is about to be removed.
const PORTION: u64 = 16 << 20;

/// What to do with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes a record.
    Upsert {
        /// Its data.
        data: Option<Vec<u8>>,
        /// The network in it.
        network: Option<String>,
    },
    /// Removes it.
    Delete,
}

/// A step of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The record to change.
    pub key: Key,
    /// What to do with it.
    pub operation: Operation,
    /// The version that it must have; 0 for none.
    pub expected: Option<u64>,
}

/// The outcome of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The version that was given.
    Stored(u64),
    /// The tombstone.
    Deleted(Record),
    /// There was nothing to delete.
    Missing,
}

/// Why a batch was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The step found another version.
    Conflict(u32),
    /// No room.
    Exhausted(String),
}

/// What `put` gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutResult {
    /// The server version.
    pub server_version: u64,
    /// What [`crate::Observed`] says of the options.
    pub options_revision: u64,
    /// One result per batch.
    pub batches: Vec<Result<Vec<Outcome>, Refusal>>,
}

/// Which records to remove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictRequest {
    /// Of this type.
    pub record_type: String,
    /// Modified before this, in nanoseconds.
    pub modified_before: Option<i64>,
    /// All but this many.
    pub keep: Option<u64>,
    /// At most so many.
    pub max_records: u32,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The server version.
    pub server_version: u64,
    /// The tombstones, by version.
    pub tombstones: Vec<Record>,
    /// True if there is more.
    pub more: bool,
}

impl<D: Database, J: Data> Store<D, J> {
    /// Applies batches, each of them or none of it.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where the outcome is unknown, or somebody holds a record; and others where nothing was changed.
    pub async fn put(&self, batches: Vec<Vec<Change>>, now: i64) -> Result<PutResult, Error> {
        if let [batch] = batches.as_slice() {
            if self.was_held(batch) {
                return Err(Error::Unavailable(HELD.to_owned()));
            }
        } else {
            self.held.borrow_mut().clear();
        }
        let has_given_way = Cell::new(false);
        self.retried(async || {
            let result = self.try_put(&batches, now).await;
            let is_held = matches!(&result, Err(Failed::Database(failure)) if failure.is_of_a_lock());
            // A patch of Pomerium's ends once this has given way.
            if is_held && has_given_way.replace(true) && batches.len() > 1 {
                return self.put_what_is_free(&batches, now).await;
            }
            result
        })
        .await
    }

    async fn try_put(&self, batches: &[Vec<Change>], now: i64) -> Result<PutResult, Failed> {
        if let Some(result) = self.put_at_once(batches, now).await? {
            return Ok(result);
        }
        let wrote = self.wrote.get();
        let transaction = self.begin_changing().await?;
        self.put_within(transaction, wrote, batches, now).await
    }

    /// Applies batches in a transaction that has begun, and commits it; `wrote` is what was known of before.
    async fn put_within(
        &self,
        transaction: D::Transaction,
        wrote: i64,
        batches: &[Vec<Change>],
        now: i64,
    ) -> Result<PutResult, Failed> {
        let looks = |change: &&Change| change.expected.is_some() || change.operation == Operation::Delete;
        let keys = distinct(batches.iter().flatten().filter(looks));
        let stored = stored(&transaction, keys, "FOR UPDATE").await?;

        let mut plan = Plan::of(batches, &stored);
        let mut removed = self.removed(&transaction, &plan.writes, &stored).await?;
        let written = self
            .write(&transaction, &mut plan.writes, None, false, now)
            .await?
            .ok_or_else(no_row)?;
        self.database.commit(transaction).await?;
        self.wrote(wrote, written.server_version, &written.versions).await?;
        Ok(plan.result(&written, &mut removed, now))
    }

    /// Applies the batches of whose records nobody else holds one, and refuses the others.
    async fn put_what_is_free(&self, batches: &[Vec<Change>], now: i64) -> Result<PutResult, Failed> {
        let wrote = self.wrote.get();
        let transaction = self.begin_changing().await?;
        let held = held(&transaction, distinct(batches.iter().flatten())).await?;
        let (mut free, mut waiting) = (Vec::new(), Vec::new());
        for batch in batches {
            let key = batch.iter().map(|change| &change.key).find(|key| held.contains(*key));
            if key.is_none() {
                free.push(batch.clone());
            }
            waiting.push(key);
        }
        let mut result = self.put_within(transaction, wrote, &free, now).await?;
        let mut held = self.held.borrow_mut();
        for (place, key) in waiting.into_iter().enumerate() {
            if let Some(key) = key {
                result.batches.insert(place, Err(Refusal::Exhausted(HELD.to_owned())));
                *held.entry(key.clone()).or_default() += 1;
            }
        }
        Ok(result)
    }

    /// Whether a batch comes again that was just refused, since somebody held one of its records.
    fn was_held(&self, batch: &[Change]) -> bool {
        let mut held = self.held.borrow_mut();
        let Some(key) = batch
            .iter()
            .map(|change| &change.key)
            .find(|key| held.contains_key(*key))
        else {
            return false;
        };
        if let Some(count) = held.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                held.remove(key);
            }
        }
        true
    }

    /// Puts in one round trip what needs no look into the database before: nothing is removed, and every record is as it is
    /// expected to be, which the database checks. None where that is not so.
    async fn put_at_once(&self, batches: &[Vec<Change>], now: i64) -> Result<Option<PutResult>, Failed> {
        let mut stored = HashMap::new();
        for change in batches.iter().flatten() {
            if change.operation == Operation::Delete {
                return Ok(None);
            }
            if let Some(version) = change.expected.filter(|version| *version > 0) {
                stored.entry(change.key.clone()).or_insert((version, 0));
            }
        }
        let mut plan = Plan::of(batches, &stored);
        if plan.batches.iter().any(Result::is_err) {
            return Ok(None);
        }
        // The plan has no conflict, so that what the first step on a key expects is what all do.
        let mut expected: HashMap<&Key, Option<u64>> = HashMap::new();
        for change in batches.iter().flatten() {
            expected.entry(&change.key).or_insert(change.expected);
        }
        let checks = expected.values().any(Option::is_some);
        let expected: Vec<_> = plan
            .writes
            .iter()
            .map(|write| expected.get(&write.key).copied().flatten().map(signed))
            .collect();
        let wrote = self.wrote.get();
        let Some(written) = self
            .write(
                &self.database,
                &mut plan.writes,
                checks.then_some(expected),
                self.has_company.get(),
                now,
            )
            .await?
        else {
            return Ok(None);
        };
        self.wrote(wrote, written.server_version, &written.versions).await?;
        Ok(Some(plan.result(&written, &mut HashMap::new(), now)))
    }

    /// The records in the database that are about to be removed.
    async fn removed(
        &self,
        transaction: &D::Transaction,
        writes: &[Write],
        stored: &HashMap<Key, (u64, u64)>,
    ) -> Result<HashMap<Key, Record>, Failed> {
        let mut removed = HashMap::new();
        let mut portion: Vec<Key> = Vec::new();
        let mut bytes = 0_u64;
        let mut wanted = writes.iter().filter(|write| write.in_database).peekable();
        while let Some(write) = wanted.next() {
            portion.push(write.key.clone());
            bytes = bytes.saturating_add(stored.get(&write.key).map_or(0, |(_, size)| *size));
            if bytes < PORTION && wanted.peek().is_some() {
                continue;
            }
            let query = format!(
                "SELECT {} FROM unnest($1::text[], $2::text[]) AS k(type, id) \
                 CROSS JOIN LATERAL (SELECT * FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id OFFSET 0) r \
                 {EXACT}",
                columns("NULL::timestamptz")
            );
            let mut rows = transaction
                .run(Query::new(query, keys_as_parameters(&std::mem::take(&mut portion))))
                .await?;
            bytes = 0;
            for record in self.records(&mut rows)? {
                removed.insert(record.key.clone(), record);
            }
        }
        Ok(removed)
    }

    /// Writes it all, in a transaction or as one. Where a record has another version than `expected`, one for each write,
    /// nothing is written and there is none. `in_company` says that processes of Pomerium's are to be kept from writing, unless
    /// the transaction does so already.
    async fn write(
        &self,
        session: &impl Session,
        writes: &mut [Write],
        expected: Option<Vec<Option<i64>>>,
        in_company: bool,
        now: i64,
    ) -> Result<Option<Written>, Failed> {
        let mut last: HashMap<&Key, usize> = HashMap::new();
        for (place, write) in writes.iter().enumerate() {
            last.insert(&write.key, place);
        }
        let is_last: Vec<_> = writes
            .iter()
            .enumerate()
            .map(|(place, write)| Some(last.get(&write.key) == Some(&place)))
            .collect();
        let data: Vec<_> = writes.iter().map(|write| write.data.as_deref()).collect();
        let json = json::encode(&self.data, &data);
        // Of what is removed the answer needs the data, too.
        let bytes = writes
            .iter_mut()
            .map(|write| {
                if write.deleted {
                    write.data.clone()
                } else {
                    write.data.take()
                }
            })
            .collect();
        let each = |value: fn(&Write) -> Option<String>| Value::Texts(writes.iter().map(value).collect());
        let parameters = vec![
            each(|write| Some(text::store(&write.key.record_type))),
            each(|write| Some(text::store(&write.key.id))),
            Value::Texts(
                json.into_iter()
                    .zip(&*writes)
                    .map(|(json, write)| (!write.in_database).then_some(json))
                    .collect(),
            ),
            Value::ByteStrings(bytes),
            each(|write| write.network.clone()),
            Value::Booleans(writes.iter().map(|write| Some(write.deleted)).collect()),
            Value::Booleans(is_last),
            expected.map_or(Value::Null, Value::Integers),
            Value::Integer(now),
            Value::Text(self.sequence.clone()),
            Value::Boolean(in_company),
        ];
        let text = format!(
            "SELECT server_version, options_revision, versions FROM pomerium.{}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            self.functions.write
        );
        let mut row = first(session.run(Query::new(text, parameters)).await?)?;
        let (server_version, options_revision) = (row.count()?, row.count()?);
        let versions: Vec<_> = row.integers()?.into_iter().map(unsigned).collect();
        if versions.is_empty() && !writes.is_empty() {
            return Ok(None);
        }
        if versions.len() != writes.len() {
            return Err(Error::Internal("the database has not given a version to every change".to_owned()).into());
        }
        Ok(Some(Written {
            server_version,
            options_revision,
            versions,
        }))
    }

    /// Removes records that are too old, or too many.
    ///
    /// # Errors
    ///
    /// As `put`.
    pub async fn evict(&self, request: EvictRequest, now: i64) -> Result<Evicted, Error> {
        self.retried(async || self.try_evict(&request, now).await).await
    }

    async fn try_evict(&self, request: &EvictRequest, now: i64) -> Result<Evicted, Failed> {
        /// More tombstones than this are left for the next call.
        const BYTES: u64 = 4 << 20;
        let modified_before = match request.modified_before {
            Some(before) => Some(before.saturating_sub(self.ahead(now).await?)),
            None => None,
        };
        let wrote = self.wrote.get();
        let transaction = self.begin_changing().await?;
        let threshold = match request.keep {
            None => 0,
            Some(keep) => {
                // The newest of those that are too many.
                let query = "SELECT max(version) FROM (SELECT version FROM pomerium.records WHERE type = $1 \
                    ORDER BY version DESC OFFSET $2 LIMIT 1) r";
                let parameters = vec![
                    Value::Text(text::store(&request.record_type)),
                    Value::Integer(signed(keep)),
                ];
                first(transaction.run(Query::new(query, parameters)).await?)?.number()?
            }
        };
        // In microseconds, as the database's own times are; it rounds down.
        let before = modified_before.map_or(Value::Null, |before| {
            Value::Timestamp(before.div_euclid(1000) + i64::from(before.rem_euclid(1000) > 0))
        });
        let mut parameters = Parameters::default();
        let record_type = parameters.add(Value::Text(text::store(&request.record_type)));
        let threshold = parameters.add(Value::Integer(threshold));
        let before = parameters.add(before);
        let exact = parameters.add(Value::Integer(modified_before.unwrap_or(i64::MIN)));
        // The database's own times first, so that most are left out without a look at the exact ones.
        let condition = format!(
            "r.type = {record_type} AND {WRITTEN} AND (r.version <= {threshold} OR r.modified_at < {before}::timestamptz) \
             AND (r.version <= {threshold} OR d.version IS NULL OR d.modified_at < {exact})"
        );
        let selection = Selection {
            from: "pomerium.records r",
            condition: &condition,
            order: "r.version",
            deleted_at: "NULL::timestamptz",
            more: "false",
        };
        let bounds = Bounds::new(request.max_records, BYTES);
        let statement = selection.statement(bounds, &mut parameters);
        let rows = transaction.run(Query::new(statement, parameters.into_values())).await?;
        let Page { mut records, more } = self.cut(rows, bounds)?;
        // What Pomerium has written meanwhile is neither old nor too much. What somebody holds is left to a later call: puts wait
        // for this one.
        let keys = records.iter().map(|record| record.key.clone()).collect();
        let there = stored(&transaction, keys, "FOR UPDATE SKIP LOCKED").await?;
        records.retain(|record| {
            there
                .get(&record.key)
                .is_some_and(|(version, _)| *version == record.version)
        });
        let mut writes: Vec<_> = records
            .iter()
            .map(|record| Write {
                key: record.key.clone(),
                data: None,
                network: None,
                deleted: true,
                in_database: true,
            })
            .collect();
        let written = self
            .write(&transaction, &mut writes, None, false, now)
            .await?
            .ok_or_else(no_row)?;
        self.database.commit(transaction).await?;
        self.wrote(wrote, written.server_version, &written.versions).await?;
        let more = more && !records.is_empty();
        let tombstones = records
            .into_iter()
            .zip(written.versions)
            .map(|(record, version)| Record {
                version,
                modified_at: now,
                deleted_at: Some(now),
                ..record
            });
        Ok(Evicted {
            server_version: written.server_version,
            tombstones: tombstones.collect(),
            more,
        })
    }

    /// Wipes records, changes and options.
    ///
    /// # Errors
    ///
    /// As `put`.
    pub async fn clear(&self, new_server_version: u64) -> Result<Position, Error> {
        self.retried(async || self.try_clear(new_server_version).await).await?;
        // It is done, whether or not the database can still be asked where that has left it. What was seen before is a place
        // to go on from in any case.
        let seen = Position {
            server_version: new_server_version,
            earliest_version: 0,
            latest_version: unsigned(self.horizon.get()),
        };
        Ok(self.position(Patience::Long).await.unwrap_or(seen))
    }

    async fn try_clear(&self, new_server_version: u64) -> Result<(), Failed> {
        let transaction = self.begin_writing().await?;
        let statements = [
            // Versions go on from where they are.
            "UPDATE pomerium.host_state SET floor = greatest(floor, (SELECT max(version) FROM pomerium.record_changes))",
            "DELETE FROM pomerium.records",
            "DELETE FROM pomerium.record_changes",
            "DELETE FROM pomerium.record_options",
            "DELETE FROM pomerium.host_exact",
            "UPDATE pomerium.checkpoints SET server_version = 0, record_version = 0",
            "SELECT pg_notify('pomerium_record_change', '')",
        ];
        for statement in statements {
            transaction.run(Query::new(statement, Vec::new())).await?;
        }
        let query = "UPDATE pomerium.migration_info SET server_version = $1";
        transaction
            .run(Query::new(query, vec![Value::Integer(signed(new_server_version))]))
            .await?;
        self.database.commit(transaction).await?;
        Ok(())
    }
}

/// The keys of changes, each once.
fn distinct<'c>(changes: impl Iterator<Item = &'c Change>) -> Vec<Key> {
    let mut keys: Vec<_> = changes.map(|change| change.key.clone()).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Those of the records that another transaction holds; the others are held by this one from here on. A record that another is
/// only making is not to be seen.
async fn held(transaction: &impl Session, keys: Vec<Key>) -> Result<HashSet<Key>, Failed> {
    let query = "WITH k AS MATERIALIZED (SELECT * FROM unnest($1::text[], $2::text[]) AS u(type, id) ORDER BY type, id), \
        free AS MATERIALIZED (SELECT r.type, r.id FROM k CROSS JOIN LATERAL ( \
            SELECT r.type, r.id FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id FOR UPDATE SKIP LOCKED) r) \
        SELECT r.type, r.id FROM k CROSS JOIN LATERAL ( \
            SELECT r.type, r.id FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id) r \
        EXCEPT SELECT type, id FROM free";
    let mut held = HashSet::new();
    for mut row in transaction.run(Query::new(query, keys_as_parameters(&keys))).await? {
        held.insert(Key::read(&mut row)?);
    }
    Ok(held)
}

/// Versions and sizes of the records that there are. Whoever else writes leaves them alone until the transaction ends; `lock`
/// says what becomes of those that somebody holds already.
async fn stored(transaction: &impl Session, keys: Vec<Key>, lock: &str) -> Result<HashMap<Key, (u64, u64)>, Failed> {
    let query = format!(
        "SELECT r.type, r.id, r.version, ({SIZE})::bigint FROM ( \
            SELECT * FROM unnest($1::text[], $2::text[]) AS u(type, id) ORDER BY type, id) k \
         CROSS JOIN LATERAL (SELECT * FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id {lock}) r \
         {EXACT}"
    );
    let mut stored = HashMap::new();
    for mut row in transaction.run(Query::new(query, keys_as_parameters(&keys))).await? {
        let key = Key::read(&mut row)?;
        stored.insert(key, (row.count()?, row.count()?));
    }
    Ok(stored)
}
