//! What goes: old changes. And what there is, for the operator.

use crate::clock;
use crate::database::{Data, Database, Query, Session, Value};
use crate::horizon::Patience;
use crate::read::TYPES;
use crate::record::{Position, WRITTEN};
use crate::store::{Error, Store, first};
use crate::text;

/// What `prune` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// How many changes were removed.
    pub removed: u32,
    /// True if there is more.
    pub more: bool,
    /// Where the store stands.
    pub position: Position,
}

/// What a type holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeStatistics {
    /// The type.
    pub record_type: String,
    /// Live records.
    pub records: u64,
    /// Their bytes in the database.
    pub bytes: u64,
}

/// What the store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// By type.
    pub types: Vec<TypeStatistics>,
    /// Changes in the log, as the database estimates it.
    pub changes: u64,
    /// Bytes of all tables.
    pub used_bytes: u64,
}

impl<D: Database, J: Data> Store<D, J> {
    /// Removes changes from before a time, oldest first and no further than the first that is young; the newest stays.
    ///
    /// Hosts do it one at a time, under the writers' lock. It ends before the first row that somebody holds, Pomerium's own cleaner
    /// for example, so that nobody waits for anybody in a circle; and so that what is left has no hole, of which nobody would be
    /// told who reads on from below it.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn prune(&self, before: i64, max_changes: u32) -> Result<Pruned, Error> {
        // Exact bytes go with their change, unless they are those of a live record. A change whose time somebody has set to
        // infinity is as old as those around it.
        let prune = format!(
            "WITH bound AS ( \
              SELECT least((SELECT max(version) FROM pomerium.record_changes), \
                (SELECT version FROM pomerium.record_changes r WHERE modified_at >= $1 AND isfinite(modified_at) AND {WRITTEN} \
                  ORDER BY version LIMIT 1)) AS version), \
            oldest AS MATERIALIZED ( \
              SELECT c.version, c.type FROM pomerium.record_changes c, bound b WHERE c.version < b.version \
              ORDER BY c.version LIMIT $2), \
            free AS MATERIALIZED ( \
              SELECT c.version FROM pomerium.record_changes c WHERE c.version = ANY (ARRAY(SELECT version FROM oldest)) \
              FOR UPDATE SKIP LOCKED), \
            held AS (SELECT min(o.version) AS version FROM oldest o LEFT JOIN free f USING (version) WHERE f.version IS NULL), \
            old AS MATERIALIZED ( \
              SELECT o.version, o.type FROM oldest o, held h WHERE h.version IS NULL OR o.version < h.version), \
            gone AS (DELETE FROM pomerium.record_changes c USING old o WHERE c.version = o.version), \
            stale AS (DELETE FROM pomerium.host_exact d USING old o WHERE d.version = o.version \
              AND NOT EXISTS (SELECT 1 FROM pomerium.records r WHERE r.type = o.type AND r.version = o.version)) \
            SELECT count(*), EXISTS (SELECT 1 FROM pomerium.record_changes c, bound b \
              WHERE c.version < b.version AND c.version > (SELECT max(version) FROM old)) FROM old"
        );
        let before = before.saturating_sub(self.ahead(clock::now()).await?);
        let (removed, more) = self
            .retried(async || {
                let transaction = self.begin_writing().await?;
                let parameters = vec![
                    Value::Timestamp(before.div_euclid(1000)),
                    Value::Integer(max_changes.into()),
                ];
                let mut row = first(transaction.run(Query::new(&*prune, parameters)).await?)?;
                let pruned = (row.count()?, row.boolean()?);
                self.database.commit(transaction).await?;
                Ok(pruned)
            })
            .await?;
        self.sweep().await?;
        Ok(Pruned {
            removed: u32::try_from(removed).unwrap_or(u32::MAX),
            more: more && removed > 0,
            position: self.position(Patience::Short).await?,
        })
    }

    /// Removes the exact bytes of what is gone: where Pomerium has replaced or removed a record, or old changes, it knows nothing of
    /// them. A call looks at some of those that are older than the log, where the one before has ended.
    ///
    /// No lock is needed: nothing that is gone is ever referred to again.
    async fn sweep(&self) -> Result<(), Error> {
        /// Entries that a call looks at. There are few types, and each is looked for by an index.
        const ENTRIES: i64 = 1000;
        let query = format!(
            "WITH {TYPES}, entries AS MATERIALIZED ( \
              SELECT version FROM pomerium.host_exact \
              WHERE version > $1 AND version < (SELECT min(version) FROM pomerium.record_changes r WHERE {WRITTEN}) \
              ORDER BY version LIMIT $2), \
            gone AS ( \
              DELETE FROM pomerium.host_exact d USING entries e WHERE d.version = e.version AND NOT EXISTS ( \
                SELECT 1 FROM types t JOIN pomerium.records r ON r.type = t.type COLLATE \"default\" AND r.version = e.version)) \
            SELECT max(version), count(*) FROM entries"
        );
        let from = self.swept.get();
        let mut row = self
            .one(&query, vec![Value::Integer(from), Value::Integer(ENTRIES)])
            .await?;
        let (last, entries) = (row.number()?, row.number()?);
        // From the beginning again once the end was reached.
        self.swept.set(if entries < ENTRIES { 0 } else { last });
        Ok(())
    }

    /// What the store holds.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn measure(&self) -> Result<Statistics, Error> {
        self.tell_of_odd_rows().await?;
        let by_type = "SELECT r.type COLLATE \"C\", count(*), coalesce(sum(pg_catalog.pg_column_size(r.data)), 0)::bigint \
            FROM pomerium.records r GROUP BY 1 ORDER BY 1";
        let mut types = Vec::new();
        for mut row in self.run(by_type, Vec::new()).await? {
            types.push(TypeStatistics {
                record_type: text::load(row.text()?.unwrap_or_default()),
                records: row.count()?,
                bytes: row.count()?,
            });
        }
        let sizes = "SELECT greatest(reltuples, 0)::bigint, pg_total_relation_size('pomerium.records'::regclass) \
            + pg_total_relation_size('pomerium.record_changes'::regclass) + pg_total_relation_size('pomerium.host_exact'::regclass) \
            FROM pg_catalog.pg_class WHERE oid = 'pomerium.record_changes'::regclass::oid";
        let mut row = self.one(sizes, Vec::new()).await?;
        Ok(Statistics {
            types,
            changes: row.count()?,
            used_bytes: row.count()?,
        })
    }

    /// Tells once of each type that has rows which no host takes for records.
    async fn tell_of_odd_rows(&self) -> Result<(), Error> {
        let query = format!(
            "WITH {TYPES} SELECT t.type FROM types t WHERE EXISTS ( \
               SELECT FROM pomerium.records r WHERE r.type = t.type COLLATE \"default\" AND NOT {WRITTEN})"
        );
        for mut row in self.run(&query, Vec::new()).await? {
            let record_type = text::load(row.text()?.unwrap_or_default());
            if self.told_of.borrow_mut().insert(record_type.clone()) {
                self.database.warn(&format!(
                    "rows of pomerium.records with a version below 1 are left out of all that is read, since no databroker has \
                     written them: give them versions by writing them through a databroker, or delete them (type {record_type:?})"
                ));
            }
        }
        Ok(())
    }
}
