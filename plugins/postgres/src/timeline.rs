//! A database that has lost changes which it had shown.
//!
//! A failover to a standby that was behind, or a backup that was restored, takes a database back to an earlier state. Versions
//! that readers have seen are then given to other changes, which none of these readers would ever be sent. Nothing in the
//! database says so; a host notices it by what it has seen itself: the newest change that it knew is gone, though older ones are
//! there; another is in its place; or the sequence has not reached its version. The sequence alone does not tell: after a crash
//! or a failover it is up to 32 versions ahead of those that were given.
//!
//! Then the store begins anew, as after a Clear: with another server version, so that every stream ends and every client reads
//! all that there is. The sequence is moved on to where it has been, so that no version is given twice. A write that finds out
//! is done, and told to be of unknown outcome.

use crate::database::{Data, Database, Query, Session, Value};
use crate::read::TYPES;
use crate::store::{Error, Failed, Store, first, signed};

/// A change that was the newest, by which a timeline is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The server version at that time.
    pub(crate) server_version: i64,
    /// Its version.
    pub(crate) version: i64,
    /// What [`mark`] says of it; 0 where it is not there.
    pub(crate) mark: i64,
}

/// By what a change is known again: a number that follows from its key and time. 0 where there is none with this version.
pub(crate) fn mark(version: &str) -> String {
    format!(
        "coalesce((SELECT pg_catalog.hashtextextended((c.type || ' ' || c.id || ' ' || \
           pg_catalog.encode(pg_catalog.timestamptz_send(c.modified_at), 'hex')) COLLATE \"C\", 0) \
         FROM pomerium.record_changes c WHERE c.version = {version}), 0)"
    )
}

/// The last version that was given by the sequence whose name is the first parameter; null to a role that may not know.
const GIVEN: &str = "CASE WHEN pg_catalog.has_sequence_privilege($1::text, 'USAGE'::text) THEN coalesce(( \
    SELECT last_value FROM pg_catalog.pg_sequences WHERE pg_catalog.format('%I.%I', schemaname, sequencename) = $1), 0) END";

impl<D: Database, J: Data> Store<D, J> {
    /// Whether the database is not the one any more whose changes were seen: by what is there now at the horizon, and the newest
    /// change. A standby may only be behind.
    pub(crate) async fn has_fallen_back(&self, now: Seen, earliest: i64, newest: i64) -> Result<bool, Error> {
        let known = self.known();
        let seen = self.seen.get().filter(|seen| seen.server_version == now.server_version);
        let at_horizon = seen.filter(|seen| seen.version == now.version);
        let is_another = at_horizon.is_some_and(|seen| now.mark != 0 && seen.mark != now.mark);
        // The change at the horizon, or one above that this host has written. Where all up to it were removed, as old ones are,
        // nothing follows from that.
        let missing = match at_horizon {
            Some(seen) if now.mark == 0 => Some(seen.version),
            _ => seen.filter(|_| newest < known).map(|_| known),
        };
        let missing = missing.filter(|version| (1..=*version).contains(&earliest));
        // Where old changes are removed, the newest may be among them, so that it is looked once at each place.
        if !is_another && ((newest >= known && missing.is_none()) || self.sound_at.get() == Some(newest)) {
            return Ok(false);
        }
        let query = format!(
            "WITH {TYPES} SELECT {GIVEN}, pg_catalog.pg_is_in_recovery(), \
               EXISTS (SELECT FROM pomerium.record_changes c WHERE c.version = $2) \
               OR EXISTS (SELECT FROM pomerium.host_exact d WHERE d.version = $2) \
               OR EXISTS (SELECT FROM types t JOIN pomerium.records r ON r.type = t.type COLLATE \"default\" AND r.version = $2)"
        );
        let parameters = vec![
            Value::Text(self.sequence.clone()),
            missing.map_or(Value::Null, Value::Integer),
        ];
        let mut row = self.one(&query, parameters).await?;
        let (given, is_standby, is_there) = (row.integer()?, row.boolean()?, row.boolean()?);
        let is_gone = missing.is_some() && !is_there;
        let has_fallen_back = !is_standby && (is_another || is_gone || given.is_some_and(|given| given < known));
        if !has_fallen_back {
            self.sound_at.set(Some(newest));
        }
        Ok(has_fallen_back)
    }

    /// The highest version that is known to have been given.
    fn known(&self) -> i64 {
        self.horizon.get().max(self.wrote.get())
    }

    /// Gives the store another server version, if it still has this one, and moves the sequence on.
    pub(crate) async fn begin_anew(&self, server_version: i64) -> Result<(), Error> {
        let known = self.known();
        self.retried(async || self.try_begin_anew(server_version, known).await)
            .await?;
        self.seen.set(None);
        self.database.warn(&format!(
            "the database has lost changes that it had shown, up to version {known}: it was taken over by a standby that was behind, a \
             backup was restored, or it has crashed with synchronous_commit turned off. All clients begin anew, under another server \
             version; what is lost does not come back"
        ));
        Ok(())
    }

    async fn try_begin_anew(&self, server_version: i64, known: i64) -> Result<(), Failed> {
        let transaction = self.begin_writing().await?;
        let run = async |text: &str, parameters| transaction.run(Query::new(text, parameters)).await;
        move_on(&transaction, &self.sequence, known).await?;
        let anew = "UPDATE pomerium.migration_info SET server_version = \
              (pg_catalog.hashtextextended(pg_catalog.random()::text || pg_catalog.clock_timestamp()::text, 0) & 9223372036854775806) + 1 \
            WHERE server_version = $1";
        run(anew, vec![Value::Integer(server_version)]).await?;
        run("SELECT pg_catalog.pg_notify('pomerium_record_change', '')", Vec::new()).await?;
        self.database.commit(transaction).await?;
        Ok(())
    }

    /// Remembers versions that were written, by a call that began when those up to `before` were known to be. Hosts write one at
    /// a time, so that they ascend; where they do not, the database has fallen back.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if it has.
    pub(crate) async fn wrote(&self, before: i64, server_version: u64, versions: &[u64]) -> Result<(), Error> {
        let (Some(first), Some(last)) = (versions.first(), versions.last()) else {
            return Ok(());
        };
        if signed(*first) > before {
            self.wrote.set(signed(*last).max(self.wrote.get()));
            return Ok(());
        }
        self.begin_anew(signed(server_version)).await?;
        Err(Error::Unavailable(
            "the database has lost changes that it had acknowledged, and all clients begin anew: whether this was written, a look will tell"
                .to_owned(),
        ))
    }
}

/// Moves the sequence on to a version, and to the highest that any row has: rows that were copied, or restored, may have come
/// without it, and what is written below them would be lost.
pub(crate) async fn move_on(transaction: &impl Session, sequence: &str, known: i64) -> Result<(), Failed> {
    /// A version beyond is none that a sequence has given.
    const HIGHEST: i64 = 1 << 62;
    let run = async |text: &str, parameters| transaction.run(Query::new(text, parameters)).await;
    let name = Value::Text(sequence.to_owned());
    let query = format!(
        "WITH {TYPES} SELECT greatest( \
          (SELECT max(version) FROM pomerium.record_changes WHERE version < {HIGHEST}), \
          (SELECT max(version) FROM pomerium.host_exact WHERE version < {HIGHEST}), \
          (SELECT max(n.version) FROM types t CROSS JOIN LATERAL (SELECT max(r.version) AS version FROM pomerium.records r \
             WHERE r.type = t.type COLLATE \"default\" AND r.version < {HIGHEST}) n), 0), {GIVEN}"
    );
    let mut row = first(run(&query, vec![name.clone()]).await?)?;
    let highest = row.number()?.max(known);
    let Some(given) = row.integer()?.filter(|given| *given < highest) else {
        return Ok(());
    };
    // A role that may take versions from the sequence may not always set it.
    let query = "SELECT CASE WHEN pg_catalog.has_sequence_privilege($1::text, 'UPDATE'::text) \
        THEN pg_catalog.setval($1::text::regclass, $3::bigint) \
        ELSE (SELECT pg_catalog.count(pg_catalog.nextval($1::text::regclass)) FROM pg_catalog.generate_series($2::bigint + 1, $3::bigint)) END";
    run(query, vec![name, Value::Integer(given), Value::Integer(highest)]).await?;
    Ok(())
}
