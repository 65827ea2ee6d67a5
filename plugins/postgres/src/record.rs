//! Records, and rows as records.

use crate::database::{Data, Database, Row};
use crate::json;
use crate::store::{Error, Store, unsigned};
use crate::text;

/// What identifies a record. Keys are ordered by their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The record's type.
    pub record_type: String,
    /// Its id within the type.
    pub id: String,
}

impl Key {
    /// The key of two columns.
    pub(crate) fn read(row: &mut Row) -> Result<Self, Error> {
        Ok(Self {
            record_type: text::load(row.text()?.unwrap_or_default()),
            id: text::load(row.text()?.unwrap_or_default()),
        })
    }

    /// Its type and its id as they are stored.
    pub(crate) fn stored(&self) -> (String, String) {
        (text::store(&self.record_type), text::store(&self.id))
    }
}

/// A record, or the tombstone of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The version of the change that wrote it.
    pub version: u64,
    /// Its key.
    pub key: Key,
    /// Its data, byte for byte.
    pub data: Option<Vec<u8>>,
    /// When it was written, in nanoseconds since 1970.
    pub modified_at: i64,
    /// When it was removed.
    pub deleted_at: Option<i64>,
}

/// Where the store stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Names this incarnation of the content.
    pub server_version: u64,
    /// The oldest change in the log; 0 where it is empty.
    pub earliest_version: u64,
    /// The newest change that readers may go to.
    pub latest_version: u64,
}

/// The columns of a record, of a live one in `records` or of a change; `r` is its row and `d` ours.
pub(crate) fn columns(deleted_at: &str) -> String {
    format!(
        "r.version, r.type, r.id, d.version IS NOT NULL AS exact, d.data AS exact_data, \
         CASE WHEN d.version IS NULL THEN r.data::text END AS json, r.modified_at, d.modified_at AS exact_modified_at, \
         {deleted_at} AS deleted_at, d.deleted_at AS exact_deleted_at"
    )
}

/// Joins our row to a record's. One by one: a database that has no statistics yet may otherwise read all that there are.
pub(crate) const EXACT: &str =
    "LEFT JOIN LATERAL (SELECT * FROM pomerium.host_exact x WHERE x.version = r.version OFFSET 0) d ON true";

/// The condition on rows that a databroker has written: versions begin at 1. Somebody's SQL may have left others, which no host
/// takes for records. They are left out of what is read, go as any record goes, and become one when their key is written.
pub(crate) const WRITTEN: &str = "r.version > 0";

/// About how many bytes a row is as a record.
pub(crate) const SIZE: &str = "octet_length(r.type) + octet_length(r.id) \
    + coalesce(octet_length(d.data), CASE WHEN d.version IS NULL THEN octet_length(r.data::text) END, 0)";

/// A row whose JSON, where it was written by Pomerium, is still to be read.
struct Read {
    record: Record,
    json: Option<String>,
}

fn read(row: &mut Row) -> Result<Read, Error> {
    /// From microseconds.
    const NANOSECONDS: i64 = 1000;
    let version = unsigned(row.number()?);
    let key = Key::read(row)?;
    let exact = row.boolean()?;
    let data = row.bytes()?;
    let json = row.text()?;
    // What is further away than nanoseconds reach, `infinity` above all, which somebody's SQL may have written, is as far away as
    // they reach: the years 1677 and 2262.
    let mut time = || -> Result<Option<i64>, Error> {
        let (theirs, ours) = (row.integer()?, row.integer()?);
        Ok(ours.or(theirs.map(|time| time.saturating_mul(NANOSECONDS))))
    };
    let (modified_at, deleted_at) = (time()?.unwrap_or(0), time()?);
    Ok(Read {
        record: Record {
            version,
            key,
            data,
            modified_at,
            deleted_at,
        },
        // Of a tombstone Pomerium keeps no data.
        json: if exact {
            None
        } else {
            Some(json.unwrap_or_else(|| "null".to_owned()))
        },
    })
}

impl<D: Database, J: Data> Store<D, J> {
    /// Records of rows that begin with [`columns`]; what follows them is left in the rows.
    pub(crate) fn records(&self, rows: &mut [Row]) -> Result<Vec<Record>, Error> {
        let mut read = rows.iter_mut().map(read).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<_> = read
            .iter()
            .filter_map(|read| Some((read.json.clone()?, read.record.key.id.clone())))
            .collect();
        let is_new = |read: &Read| read.json.is_some() && read.record.version > self.opened_at.get();
        if read.iter().any(is_new) {
            self.has_company.set(true);
        }
        if !texts.is_empty() {
            let mut data = json::decode(&self.data, texts).into_iter();
            for read in read.iter_mut().filter(|read| read.json.is_some()) {
                read.record.data = data.next();
            }
        }
        Ok(read.into_iter().map(|read| read.record).collect())
    }
}
