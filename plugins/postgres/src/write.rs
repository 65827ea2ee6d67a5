//! Writing: batches of changes, evictions, wiping.
//!
//! A call is one transaction under the writers' lock, and of the transaction one statement writes everything: versions are
//! taken from Pomerium's sequence in the order of the steps, the change log, the records and our own table get a row each,
//! and whoever waits is notified at the commit. What the steps do to each other is worked out here before.

use std::collections::HashMap;

use crate::database::{Data, Database, Query, Session, Value};
use crate::json;
use crate::read::{bounded, keys_as_parameters};
use crate::record::{Key, Position, Record, SIZE, columns};
use crate::store::{Error, Failed, Store, first, signed, unsigned};
use crate::text;

/// Most bytes of tombstones that a call answers with.
const TOMBSTONES: u64 = 64 << 20;

/// Most bytes of a type and an id together, as they are stored. The database indexes both in one entry, which it bounds by
/// 2704 bytes with what it adds. It compresses entries first, so that some would fit that are longer; they are refused all the
/// same, since nobody could tell which.
const KEY: usize = 2600;

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

/// What there is of a key before a step.
#[derive(Clone, Copy)]
enum Before {
    /// No record.
    Missing,
    /// A record in the database, with its size.
    Stored { version: u64, size: u64 },
    /// A record that this call writes, by its place among the writes.
    Written(usize),
}

/// A row of the change log that is to be written.
struct Write {
    key: Key,
    /// What is written, or the last of what is removed, unless the database has that.
    data: Option<Vec<u8>>,
    network: Option<String>,
    deleted: bool,
    /// True where the data of what is removed is the database's.
    in_database: bool,
}

/// A step that was accepted.
enum Step {
    Stored(usize),
    Deleted(usize),
    Missing,
}

/// What a call writes, worked out.
#[derive(Default)]
struct Plan {
    writes: Vec<Write>,
    batches: Vec<Result<Vec<Step>, Refusal>>,
}

impl Plan {
    fn of(batches: &[Vec<Change>], stored: &HashMap<Key, (u64, u64)>) -> Self {
        let mut plan = Self::default();
        // What the accepted batches have made of the keys so far.
        let mut now: HashMap<Key, Before> = HashMap::new();
        let mut tombstones = 0;
        for batch in batches {
            let begin = plan.writes.len();
            let result = plan.batch(batch, stored, &mut now, &mut tombstones);
            if result.is_err() {
                plan.writes.truncate(begin);
            }
            plan.batches.push(result);
        }
        plan
    }

    fn batch(
        &mut self,
        batch: &[Change],
        stored: &HashMap<Key, (u64, u64)>,
        now: &mut HashMap<Key, Before>,
        tombstones: &mut u64,
    ) -> Result<Vec<Step>, Refusal> {
        let mut changed: HashMap<Key, Before> = HashMap::new();
        let mut steps = Vec::with_capacity(batch.len());
        let mut removed = 0_u64;
        for (index, change) in batch.iter().enumerate() {
            let before = match changed.get(&change.key).or_else(|| now.get(&change.key)) {
                Some(before) => *before,
                None => match stored.get(&change.key) {
                    Some(&(version, size)) => Before::Stored { version, size },
                    None => Before::Missing,
                },
            };
            let fits = match (change.expected, before) {
                (None, _) => true,
                (Some(expected), Before::Missing) => expected == 0,
                (Some(expected), Before::Stored { version, .. }) => expected == version,
                // Nobody can know the version that it will have.
                (Some(_), Before::Written(_)) => false,
            };
            if !fits {
                return Err(Refusal::Conflict(u32::try_from(index).unwrap_or(u32::MAX)));
            }
            let place = self.writes.len();
            let (write, step) = match &change.operation {
                Operation::Upsert { data, network } => {
                    let length = text::stored_len(&change.key.record_type) + text::stored_len(&change.key.id);
                    if length > KEY {
                        return Err(Refusal::Exhausted(format!(
                            "a record's type and id come to {length} bytes, of which Postgres cannot index more than {KEY}: shorten them"
                        )));
                    }
                    changed.insert(change.key.clone(), Before::Written(place));
                    let write = Write {
                        key: change.key.clone(),
                        data: data.clone(),
                        network: network.clone(),
                        deleted: false,
                        in_database: false,
                    };
                    (write, Step::Stored(place))
                }
                Operation::Delete => {
                    let (data, in_database, size) = match before {
                        Before::Missing => {
                            steps.push(Step::Missing);
                            continue;
                        }
                        Before::Stored { size, .. } => (None, true, size),
                        Before::Written(place) => {
                            let data = self.writes.get(place).and_then(|write| write.data.clone());
                            let size = data.as_ref().map_or(0, Vec::len);
                            (data, false, u64::try_from(size).unwrap_or(u64::MAX))
                        }
                    };
                    removed = removed.saturating_add(size);
                    if tombstones.saturating_add(removed) > TOMBSTONES {
                        let problem = "what it removes is more than 64 MiB, which do not fit into an answer: remove fewer records at once";
                        return Err(Refusal::Exhausted(problem.to_owned()));
                    }
                    changed.insert(change.key.clone(), Before::Missing);
                    let write = Write {
                        key: change.key.clone(),
                        data,
                        network: None,
                        deleted: true,
                        in_database,
                    };
                    (write, Step::Deleted(place))
                }
            };
            self.writes.push(write);
            steps.push(step);
        }
        now.extend(changed);
        *tombstones = tombstones.saturating_add(removed);
        Ok(steps)
    }
}

/// What a call has written.
struct Written {
    server_version: u64,
    /// By the places of the writes.
    versions: Vec<u64>,
}

impl<D: Database, J: Data> Store<D, J> {
    /// Applies batches, each of them or none of it.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] where the outcome is unknown, and others where nothing was changed.
    pub async fn put(&self, batches: Vec<Vec<Change>>, now: i64) -> Result<PutResult, Error> {
        self.retried(async || self.try_put(&batches, now).await).await
    }

    async fn try_put(&self, batches: &[Vec<Change>], now: i64) -> Result<PutResult, Failed> {
        let transaction = self.begin_changing().await?;
        let looks = |change: &&Change| change.expected.is_some() || change.operation == Operation::Delete;
        let mut keys: Vec<_> = batches
            .iter()
            .flatten()
            .filter(looks)
            .map(|change| change.key.clone())
            .collect();
        keys.sort();
        keys.dedup();
        let stored = if keys.is_empty() {
            HashMap::new()
        } else {
            stored(&transaction, keys).await?
        };

        let mut plan = Plan::of(batches, &stored);
        let mut removed = self.removed(&transaction, &plan.writes, &stored).await?;
        let written = self.write(&transaction, &mut plan.writes, now).await?;
        self.database.commit(transaction).await?;

        let version = |place: usize| written.versions.get(place).copied().unwrap_or_default();
        let mut outcomes = Vec::with_capacity(plan.batches.len());
        for batch in plan.batches {
            outcomes.push(batch.map(|steps| {
                steps
                    .into_iter()
                    .map(|step| match step {
                        Step::Missing => Outcome::Missing,
                        Step::Stored(place) => Outcome::Stored(version(place)),
                        Step::Deleted(place) => {
                            Outcome::Deleted(tombstone(plan.writes.get_mut(place), &mut removed, version(place), now))
                        }
                    })
                    .collect()
            }));
        }
        Ok(PutResult {
            server_version: written.server_version,
            batches: outcomes,
        })
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
                 JOIN pomerium.records r ON r.type = k.type AND r.id = k.id LEFT JOIN pomerium.host_exact d ON d.version = r.version",
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

    /// Writes it all.
    async fn write(&self, transaction: &D::Transaction, writes: &mut [Write], now: i64) -> Result<Written, Failed> {
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
            Value::Timestamp(now.div_euclid(1000)),
            Value::Integer(now),
            Value::Text(self.sequence.clone()),
        ];
        /// The last data of what is removed comes from the database where it is not among the parameters; so do its exact
        /// bytes, if there are any.
        const WRITE: &str = "WITH input AS MATERIALIZED ( \
              SELECT nextval($10::regclass) AS version, i.* FROM ( \
                SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::text[], $6::boolean[], $7::boolean[]) \
                WITH ORDINALITY AS u(type, id, json, bytes, network, deleted, is_last, n) ORDER BY n) i), \
            old AS MATERIALIZED ( \
              SELECT r.type, r.id, r.version, r.data, d.version IS NOT NULL AS exact, d.data AS bytes \
              FROM input i JOIN pomerium.records r ON r.type = i.type AND r.id = i.id \
              LEFT JOIN pomerium.host_exact d ON d.version = r.version WHERE i.is_last), \
            logged AS ( \
              INSERT INTO pomerium.record_changes (type, id, version, data, modified_at, deleted_at) \
              SELECT i.type, i.id, i.version, CASE WHEN i.json IS NULL THEN o.data ELSE i.json::jsonb END, $8, \
                CASE WHEN i.deleted THEN $8 END \
              FROM input i LEFT JOIN old o ON i.json IS NULL AND o.type = i.type AND o.id = i.id), \
            exact AS ( \
              INSERT INTO pomerium.host_exact (version, data, modified_at, deleted_at) \
              SELECT i.version, CASE WHEN i.json IS NULL THEN o.bytes ELSE i.bytes END, $9, CASE WHEN i.deleted THEN $9 END \
              FROM input i LEFT JOIN old o ON i.json IS NULL AND o.type = i.type AND o.id = i.id \
              WHERE i.json IS NOT NULL OR o.exact), \
            gone AS ( \
              DELETE FROM pomerium.records r USING input i WHERE i.is_last AND i.deleted AND r.type = i.type AND r.id = i.id), \
            kept AS ( \
              INSERT INTO pomerium.records AS r (type, id, version, data, modified_at, index_cidr) \
              SELECT type, id, version, json::jsonb, $8, network::inet FROM input WHERE is_last AND NOT deleted \
              ON CONFLICT (type, id) DO UPDATE SET version = EXCLUDED.version, data = EXCLUDED.data, \
                modified_at = EXCLUDED.modified_at, index_cidr = EXCLUDED.index_cidr WHERE r.version < EXCLUDED.version), \
            stale AS ( \
              DELETE FROM pomerium.host_exact d USING old o WHERE d.version = o.version \
              AND NOT EXISTS (SELECT 1 FROM pomerium.record_changes c WHERE c.version = o.version)) \
            SELECT m.server_version, (SELECT array_agg(version ORDER BY n) FROM input), \
              (SELECT pg_notify('pomerium_record_change', '')) FROM pomerium.migration_info m LIMIT 1";
        if writes.is_empty() {
            let query = Query::new("SELECT server_version FROM pomerium.migration_info LIMIT 1", Vec::new());
            let mut row = first(transaction.run(query).await?)?;
            return Ok(Written {
                server_version: row.count()?,
                versions: Vec::new(),
            });
        }
        let mut row = first(transaction.run(Query::new(WRITE, parameters)).await?)?;
        let server_version = row.count()?;
        let versions: Vec<_> = row.integers()?.into_iter().map(unsigned).collect();
        if versions.len() != writes.len() {
            return Err(Error::Internal("the database has not given a version to every change".to_owned()).into());
        }
        Ok(Written {
            server_version,
            versions,
        })
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
        const BYTES: i64 = 4 << 20;
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
        let before = request.modified_before.unwrap_or(i64::MIN);
        let page = "SELECT r.* FROM pomerium.records r LEFT JOIN pomerium.host_exact x ON x.version = r.version WHERE r.type = $1 \
             AND (r.version <= $2 OR (r.modified_at <= $3 \
               AND coalesce(x.modified_at, (extract(epoch FROM r.modified_at) * 1000000)::bigint * 1000) < $4)) \
             ORDER BY r.version LIMIT $5";
        let rows = format!(
            "SELECT {}, count(*) OVER () AS total, row_number() OVER w AS n, sum({SIZE}) OVER w AS upto \
             FROM ({page}) r LEFT JOIN pomerium.host_exact d ON d.version = r.version WINDOW w AS (ORDER BY r.version)",
            columns("NULL::timestamptz")
        );
        /// Postgres' first moments; earlier ones would be no time to it.
        const EARLIEST: i64 = -210_000_000_000_000_000;
        let parameters = vec![
            Value::Text(text::store(&request.record_type)),
            Value::Integer(threshold),
            Value::Timestamp(before.div_euclid(1000).max(EARLIEST)),
            Value::Integer(before),
            Value::Integer(i64::from(request.max_records) + 1),
            Value::Integer(request.max_records.into()),
            Value::Integer(BYTES),
        ];
        let mut rows = transaction
            .run(Query::new(bounded(&rows, "$6", "$7"), parameters))
            .await?;
        let mut records = self.records(&mut rows)?;
        let total = match rows.first_mut() {
            Some(row) => row.count()?,
            None => 0,
        };
        let more = u64::try_from(records.len()).unwrap_or(u64::MAX) < total;
        // What Pomerium has written meanwhile is neither old nor too much.
        let there = stored(&transaction, records.iter().map(|record| record.key.clone()).collect()).await?;
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
        let written = self.write(&transaction, &mut writes, now).await?;
        self.database.commit(transaction).await?;
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
        Ok(self.position().await.unwrap_or(seen))
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

/// Versions and sizes of the records that there are. Pomerium's processes leave them alone until the transaction ends.
async fn stored(transaction: &impl Session, keys: Vec<Key>) -> Result<HashMap<Key, (u64, u64)>, Failed> {
    let query = format!(
        "SELECT r.type, r.id, r.version, ({SIZE})::bigint FROM unnest($1::text[], $2::text[]) AS k(type, id) \
         JOIN pomerium.records r ON r.type = k.type AND r.id = k.id LEFT JOIN pomerium.host_exact d ON d.version = r.version \
         ORDER BY r.type, r.id FOR UPDATE OF r"
    );
    let mut stored = HashMap::new();
    for mut row in transaction.run(Query::new(query, keys_as_parameters(&keys))).await? {
        let key = Key::read(&mut row)?;
        stored.insert(key, (row.count()?, row.count()?));
    }
    Ok(stored)
}

/// What a delete has left.
fn tombstone(write: Option<&mut Write>, removed: &mut HashMap<Key, Record>, version: u64, now: i64) -> Record {
    let (key, data) = match write {
        Some(write) if write.in_database => {
            let record = removed.remove(&write.key);
            (write.key.clone(), record.and_then(|record| record.data))
        }
        Some(write) => (write.key.clone(), write.data.take()),
        None => (
            Key {
                record_type: String::new(),
                id: String::new(),
            },
            None,
        ),
    };
    Record {
        version,
        key,
        data,
        modified_at: now,
        deleted_at: Some(now),
    }
}
