//! The nouns of the broker: records, keys and versions in plain Rust, free of protobuf and of WIT.
//!
//! Record data is an encoded `google.protobuf.Any` in shared bytes: streams, hub and answers share one copy of it, and
//! nothing decodes it but queries, patches and indexes that ask for it.

use bytes::Bytes;

/// Position in the store's one sequence of changes; the first change has version 1.
pub type Version = u64;

/// Nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The wall clock's time.
    pub fn now() -> Self {
        let since_epoch = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
    }

    /// This time less a duration, no earlier than the type can say.
    pub fn earlier(self, duration: std::time::Duration) -> Self {
        let nanoseconds = i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(nanoseconds))
    }
}

/// What identifies a record. Ordered bytewise by type, then by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The record's type: any string, usually the type URL of the data.
    pub record_type: String,
    /// The record's id, unique within the type.
    pub id: String,
}

impl Key {
    /// A key of this type and id.
    pub fn new(record_type: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            record_type: record_type.into(),
            id: id.into(),
        }
    }
}

/// A record as it is stored, or the tombstone of one that was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The version of the change that wrote this.
    pub version: Version,
    /// Type and id.
    pub key: Key,
    /// An encoded `Any`, byte for byte as it was put; none where the record was put without data.
    pub data: Option<Bytes>,
    /// When it was written.
    pub modified_at: Timestamp,
    /// When it was removed; none while the record lives.
    pub deleted_at: Option<Timestamp>,
}

impl Record {
    /// The bytes that count against the bounds of a page: those of type, id and data.
    pub fn size(&self) -> usize {
        self.key.record_type.len() + self.key.id.len() + self.data.as_ref().map_or(0, Bytes::len)
    }
}

/// How records of one type are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Keep this many records, those with the highest versions.
    pub capacity: Option<u64>,
    /// Fields by which records can be found without a scan: names joined by dots.
    pub indexable_fields: Vec<String>,
    /// Remove records that were not modified for so long; at most `i64::MAX` nanoseconds.
    pub ttl: Option<std::time::Duration>,
}

impl Options {
    /// True where nothing is set, which is the same as having no options.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A service in the registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// The number of its kind in `registry.ServiceKind`.
    pub kind: i32,
    /// Its URL, which may hold credentials: kept out of `Debug`.
    pub endpoint: String,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Service")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// How far a cluster member has copied its leader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The leader's server version.
    pub server_version: u64,
    /// The leader's record version.
    pub record_version: Version,
}
