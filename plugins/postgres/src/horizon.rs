//! How far reading is safe.
//!
//! Postgres gives out versions before a transaction commits. Hosts of ours write one at a time, so their versions become
//! visible in order; Pomerium's own processes do not, and one of them may commit a version below what a reader has seen. A
//! reader that has gone past it never comes back.
//!
//! So nothing above the horizon is shown. To raise it to the newest version that is visible, it is enough that no version
//! below is missing: then none can come. Where some are missing (and many are, since a version that was given to a
//! transaction that failed is never used) it takes another look. A transaction that may yet commit one of them took a lock on
//! the table before it was given the version, and holds it until it ends. So whoever holds that lock after the newest
//! version was seen is waited for; once they have ended, what was missing is there, or will never be.
//!
//! It costs nothing while versions come without gaps, and one more query where one is new. Transactions of Pomerium's last
//! milliseconds. One that hangs holds all readers up, so after [`LONGEST`] the horizon is raised all the same, with a
//! warning, and it is not waited for again: a change may then be missed until its record is written again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::database::{Data, Database, Row, Value};
use crate::page::Parameters;
use crate::record::{Position, WRITTEN};
use crate::store::{Error, Store, no_row, unsigned};
use crate::timeline::{Seen, mark};

/// How long a transaction is waited for.
const LONGEST: Duration = Duration::from_secs(10);

/// How long between looks, at first. Each look doubles it, up to [`LONGEST_PAUSE`]: all readers look, each by itself.
const PAUSE: Duration = Duration::from_millis(5);

/// The longest between looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Selects where the store stands, as a list: the server version, the oldest change, the mark that `clear` has left, the newest
/// change, how many there are from the horizon up to that, and by what the change at the horizon and the newest are known again.
fn place(horizon: &str) -> String {
    let horizon_mark = mark(horizon);
    let newest_mark = mark("e.latest");
    format!(
        "SELECT ARRAY[m.server_version, e.earliest, s.floor, greatest(e.latest, s.floor), \
           (SELECT count(*) FROM pomerium.record_changes c WHERE c.version > {horizon} AND c.version <= e.latest), \
           {horizon_mark}, {newest_mark}] AS place \
         FROM pomerium.migration_info m, pomerium.host_state s, \
         (SELECT coalesce(min(version), 0) AS earliest, coalesce(max(version), 0) AS latest FROM pomerium.record_changes r \
           WHERE {WRITTEN}) e LIMIT 1"
    )
}

/// Transactions that were waited for in vain, as long as they go on.
#[derive(Default)]
pub(crate) struct GivenUp {
    locking: HashSet<String>,
    /// On a standby: the first that had not ended.
    oldest: Option<i64>,
}

impl GivenUp {
    fn add(&mut self, writing: Writing) {
        self.locking.extend(writing.locking);
        self.oldest = writing.next.map(|_| writing.oldest);
    }

    fn leave_out(&mut self, writing: &mut Writing) {
        self.locking.retain(|transaction| writing.locking.contains(transaction));
        writing
            .locking
            .retain(|transaction| !self.locking.contains(transaction));
        if self.oldest == Some(writing.oldest) {
            // What has begun since cannot be told from it.
            writing.next = writing.next.map(|_| writing.oldest);
        }
    }
}

/// How long those are waited for who may be writing below what is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as is worth it, for a reader that goes on from what it is given.
    Long,
    /// A moment, for one that is given what there is: most writes end within it. What is read then may be newer than what it is said
    /// to be, and comes again in the change log.
    Short,
}

impl Patience {
    fn longest(self) -> Duration {
        match self {
            Self::Long => LONGEST,
            Self::Short => Duration::from_secs(1),
        }
    }
}

/// Where the store stood at a moment.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    /// What readers are told. Every change up to the newest was to be seen.
    pub(crate) position: Position,
    /// Changes up to here are gone, of whatever type; 0 for none. What `clear` has wiped does not count.
    pub(crate) pruned: u64,
}

/// The transactions that may hold versions which nobody sees yet: those that have locked the table, as a list; the first of all
/// that has not ended; and on a standby the next that will begin. Locks are listed of all databases of the server, and tables
/// have the same number in those that were made from one template.
const WRITING: &str = "SELECT array(SELECT DISTINCT virtualtransaction FROM pg_catalog.pg_locks \
      WHERE locktype = 'relation' AND relation = 'pomerium.record_changes'::regclass::oid AND mode = 'RowExclusiveLock' AND granted \
      AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())), \
    pg_catalog.pg_snapshot_xmin(s)::text::bigint, \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_snapshot_xmax(s)::text::bigint END \
    FROM pg_catalog.pg_current_snapshot() AS s";

/// The transactions that are waited for.
struct Writing {
    /// Those that have locked the table.
    locking: HashSet<String>,
    /// The first of all that has not ended.
    oldest: i64,
    /// On a standby: the first that is not waited for.
    next: Option<i64>,
}

impl Writing {
    fn has_ended(&self) -> bool {
        self.locking.is_empty() && self.next.is_none_or(|next| self.oldest >= next)
    }

    /// Leaves out those that are not there any more.
    fn keep(&mut self, now: &Self) {
        self.locking.retain(|transaction| now.locking.contains(transaction));
        self.oldest = now.oldest;
    }
}

impl<D: Database, J: Data> Store<D, J> {
    /// Finds the horizon for the first time.
    pub(crate) async fn find_horizon(&self) -> Result<(), Error> {
        // All changes, so that counting them is no use: there is nearly always a gap.
        let mut row = self
            .one(
                "SELECT coalesce(max(version), 0) FROM pomerium.record_changes",
                Vec::new(),
            )
            .await?;
        let latest = row.number()?;
        self.settle(latest, Patience::Long).await?;
        self.horizon.set(latest.max(self.horizon.get()));
        Ok(())
    }

    /// Where the store stands, with the horizon raised as far as it can be.
    pub(crate) async fn position(&self, patience: Patience) -> Result<Position, Error> {
        let (place, _) = self
            .read_at_place("SELECT WHERE false", Parameters::default(), patience)
            .await?;
        Ok(place.position)
    }

    /// Runs a statement, and tells where the store stood at the moment that it shows. Its rows come in no certain order.
    ///
    /// Where changes are missing below the newest, those who may write them are waited for, and it runs once more. What is
    /// newer then is left to the next one who reads.
    pub(crate) async fn read_at_place(
        &self,
        statement: &str,
        mut parameters: Parameters,
        patience: Patience,
    ) -> Result<(Place, Vec<Row>), Error> {
        let place = place(&parameters.add(Value::Integer(0)));
        let mut parameters = parameters.into_values();
        let statement = format!(
            "WITH place AS ({place}), read AS NOT MATERIALIZED ({statement}) \
             SELECT place.*, read.* FROM place LEFT JOIN read ON false UNION ALL SELECT NULL::bigint[], read.* FROM read"
        );
        let mut has_waited = false;
        let mut has_begun_anew = false;
        loop {
            let horizon = self.horizon.get();
            let mut place = None;
            let mut read = Vec::new();
            if let Some(last) = parameters.last_mut() {
                *last = Value::Integer(horizon);
            }
            for mut row in self.run(&statement, parameters.clone()).await? {
                match row.integers()? {
                    none if none.is_empty() => read.push(row),
                    found => place = Some(found),
                }
            }
            let Some(
                &[
                    server_version,
                    earliest,
                    floor,
                    newest,
                    count,
                    horizon_mark,
                    newest_mark,
                ],
            ) = place.as_deref()
            else {
                return Err(no_row());
            };
            let seen = Seen {
                server_version,
                version: horizon,
                mark: horizon_mark,
            };
            if !has_begun_anew && self.has_fallen_back(seen, earliest, newest).await? {
                self.begin_anew(server_version).await?;
                has_begun_anew = true;
                continue;
            }
            // Nobody falls back behind what was seen, not even where Pomerium has wiped its tables.
            let mut latest = horizon;
            if newest > horizon {
                if newest - horizon == count {
                    latest = newest;
                } else if !has_waited {
                    has_waited = true;
                    if self.settle(newest, patience).await? {
                        self.horizon.set(newest.max(self.horizon.get()));
                        continue;
                    }
                }
            }
            self.horizon.set(latest.max(self.horizon.get()));
            if latest == newest && newest_mark != 0 {
                self.seen.set(Some(Seen {
                    server_version,
                    version: newest,
                    mark: newest_mark,
                }));
            }
            // Without any change there was nothing to prune: the newest is kept.
            let gone = if earliest > 0 { earliest - 1 } else { 0 };
            self.note_beginning(earliest);
            let position = Position {
                server_version: unsigned(server_version),
                earliest_version: unsigned(earliest.min(latest)),
                latest_version: unsigned(latest),
            };
            let kept = floor.max(self.never_given.get());
            let pruned = if gone > kept { unsigned(gone) } else { 0 };
            return Ok((Place { position, pruned }, read));
        }
    }

    /// A log that was empty a moment ago has lost nothing since: what is missing below its first change was given to
    /// transactions that failed. Nobody whose place is there has missed anything.
    fn note_beginning(&self, earliest: i64) {
        /// Less than changes are kept for, by far.
        const MOMENT: Duration = Duration::from_secs(5);
        if earliest == 0 {
            self.empty_at.set(Some(Instant::now()));
        } else if self.empty_at.take().is_some_and(|at| at.elapsed() < MOMENT) {
            self.never_given.set(earliest - 1);
        }
    }

    /// Waits until every transaction that writes now has ended, or another reader has raised the horizon to the version. Says
    /// whether nothing comes below that any more, or nothing that is waited for.
    async fn settle(&self, version: i64, patience: Patience) -> Result<bool, Error> {
        let mut writing = self.writing().await?;
        let (mut waited, mut pause) = (Duration::ZERO, PAUSE);
        if writing.next.is_some() {
            self.database.sleep(LONGEST_PAUSE).await;
            waited += LONGEST_PAUSE;
            writing = self.writing().await?;
        }
        while !writing.has_ended() && self.horizon.get() < version {
            if waited >= patience.longest() {
                if patience == Patience::Short {
                    return Ok(false);
                }
                self.database.warn(&format!(
                    "a transaction has been writing changes for more than {} s; readers no longer wait for it, and may miss what \
                     it commits: look into pg_stat_activity",
                    LONGEST.as_secs()
                ));
                self.given_up.borrow_mut().add(writing);
                break;
            }
            self.database.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(LONGEST_PAUSE);
            writing.keep(&self.writing().await?);
        }
        Ok(true)
    }

    async fn writing(&self) -> Result<Writing, Error> {
        let mut row = self.one(WRITING, Vec::new()).await?;
        let mut writing = Writing {
            locking: row.texts()?.into_iter().collect(),
            oldest: row.number()?,
            next: row.integer()?,
        };
        self.given_up.borrow_mut().leave_out(&mut writing);
        Ok(writing)
    }
}
