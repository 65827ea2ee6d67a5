//! Two clocks: a host's, which says when records were written and how old they may get, and the database's, which all hosts share
//! and leases go by.
//!
//! A host whose clock runs ahead takes everybody's records for older than they are. So what it removes for its age is held to the
//! database's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::database::{Data, Database};
use crate::store::{Error, Store};

/// How far clocks may be apart before somebody is told, in nanoseconds: 5 s.
const APART: i64 = 5_000_000_000;

/// The host's time, in nanoseconds.
pub(crate) fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

impl<D: Database, J: Data> Store<D, J> {
    /// By how many nanoseconds a time of now, of the host's clock, is ahead of the database's; 0 where it is not. Where they are
    /// far apart the operator is told.
    pub(crate) async fn ahead(&self, now: i64) -> Result<i64, Error> {
        let query =
            "SELECT (pg_catalog.date_part('epoch'::text, pg_catalog.clock_timestamp()) * 1000000::float8)::bigint";
        let microseconds = self.one(query, Vec::new()).await?.number()?;
        let ahead = now.saturating_sub(microseconds.saturating_mul(1000));
        if ahead > APART && !self.told_of_clock.replace(true) {
            self.database.warn(&format!(
                "this machine's clock is {} s ahead of the database's: records are written with a time that is to come, and how old \
                 they may get goes by the database's clock; have both set by NTP",
                ahead / 1_000_000_000
            ));
        }
        Ok(ahead.max(0))
    }
}
