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
//! warning: a change may then be missed until its record is written again.

use std::collections::HashSet;
use std::time::Duration;

use crate::database::{Data, Database};
use crate::record::Position;
use crate::store::{Error, Store, unsigned};

/// How long a transaction is waited for.
const LONGEST: Duration = Duration::from_secs(10);

/// How long between looks, at first. Each look doubles it, up to [`LONGEST_PAUSE`]: all readers look, each by itself.
const PAUSE: Duration = Duration::from_millis(5);

/// The longest between looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// Where the store stands, and how many changes there are from the horizon up to the newest.
const POSITION: &str = "SELECT m.server_version, e.earliest, greatest(e.latest, s.floor), \
    (SELECT count(*) FROM pomerium.record_changes c WHERE c.version > $1 AND c.version <= e.latest) \
    FROM pomerium.migration_info m, pomerium.host_state s, \
    (SELECT coalesce(min(version), 0) AS earliest, coalesce(max(version), 0) AS latest FROM pomerium.record_changes) e LIMIT 1";

/// The transactions that may hold versions which nobody sees yet. Locks are listed of all databases of the server, and tables
/// have the same number in those that were made from one template.
const WRITING: &str = "SELECT DISTINCT virtualtransaction FROM pg_catalog.pg_locks \
    WHERE locktype = 'relation' AND relation = 'pomerium.record_changes'::regclass AND mode = 'RowExclusiveLock' AND granted \
    AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())";

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
        self.settle().await?;
        self.horizon.set(latest.max(self.horizon.get()));
        Ok(())
    }

    /// Where the store stands, with the horizon raised as far as it can be.
    pub(crate) async fn position(&self) -> Result<Position, Error> {
        let before = self.horizon.get();
        let mut row = self.one(POSITION, vec![crate::Value::Integer(before)]).await?;
        let (server_version, earliest, latest, count) = (row.number()?, row.number()?, row.number()?, row.number()?);
        if latest > before {
            if latest - before != count {
                self.settle().await?;
            }
            self.horizon.set(latest.max(self.horizon.get()));
        }
        // Nobody falls back behind what was seen, not even where Pomerium has wiped its tables.
        let latest = self.horizon.get();
        Ok(Position {
            server_version: unsigned(server_version),
            earliest_version: unsigned(earliest.min(latest)),
            latest_version: unsigned(latest),
        })
    }

    /// Waits until every transaction that writes now has ended.
    async fn settle(&self) -> Result<(), Error> {
        let writing = async || -> Result<HashSet<String>, Error> {
            let mut transactions = HashSet::new();
            for mut row in self.run(WRITING, Vec::new()).await? {
                transactions.extend(row.text()?);
            }
            Ok(transactions)
        };
        let mut left = writing().await?;
        let (mut waited, mut pause) = (Duration::ZERO, PAUSE);
        while !left.is_empty() {
            if waited >= LONGEST {
                if !self.stalled.replace(true) {
                    self.database.warn(&format!(
                        "a transaction has been writing changes for more than {} s; readers no longer wait for it, and may miss what \
                         it commits: look into pg_stat_activity",
                        LONGEST.as_secs()
                    ));
                }
                return Ok(());
            }
            self.database.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let now = writing().await?;
            left.retain(|transaction| now.contains(transaction));
        }
        self.stalled.set(false);
        Ok(())
    }
}
