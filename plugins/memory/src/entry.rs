//! One change, which is also the live record for as long as nothing newer replaces it.
//!
//! A live record and its place in the change log are the same allocation. A tombstone points to the entry that it
//! ended, so a delete costs a few dozen bytes whatever the record held, and the last data stays readable.
//!
//! Every entry charges its cost to the store's [`Usage`] when it is made and gives it back when it is dropped. So the
//! count is right whoever lets go of it last: the table, the log, a tombstone or a page that is still being read.

use std::sync::Arc;

use crate::budget::{ALLOCATION, SHARED, Usage, bytes};

/// Position in the store's one sequence of changes; the first change has version 1.
pub type Version = u64;

/// Nanoseconds since the Unix epoch.
pub type Timestamp = i64;

/// Bytes of a record, of whatever kind the embedder shares them in.
pub trait Data: AsRef<[u8]> {}

impl<T: AsRef<[u8]>> Data for T {}

/// A record as it was written by one change, or the tombstone of one that was removed.
#[derive(Debug)]
pub struct Entry<D: Data> {
    version: Version,
    modified_at: Timestamp,
    record_type: Arc<RecordType>,
    id: Arc<str>,
    content: Content<D>,
}

/// A type's name, shared by all entries of the type, with the counter that they charge.
#[derive(Debug)]
pub(crate) struct RecordType {
    pub name: Arc<str>,
    pub usage: Arc<Usage>,
}

#[derive(Debug)]
enum Content<D: Data> {
    /// The record as it was put.
    Put(Option<D>),
    /// A tombstone: the entry that it ended, which is never a tombstone itself.
    Removed(Arc<Entry<D>>),
}

impl<D: Data> Entry<D> {
    pub(crate) fn put(
        version: Version,
        modified_at: Timestamp,
        record_type: Arc<RecordType>,
        id: Arc<str>,
        data: Option<D>,
    ) -> Self {
        Self::new(version, modified_at, record_type, id, Content::Put(data))
    }

    /// The tombstone of a live entry.
    pub(crate) fn tombstone(version: Version, removed_at: Timestamp, removed: Arc<Entry<D>>) -> Self {
        let record_type = Arc::clone(&removed.record_type);
        let id = Arc::clone(&removed.id);
        Self::new(version, removed_at, record_type, id, Content::Removed(removed))
    }

    fn new(
        version: Version,
        modified_at: Timestamp,
        record_type: Arc<RecordType>,
        id: Arc<str>,
        content: Content<D>,
    ) -> Self {
        let entry = Self {
            version,
            modified_at,
            record_type,
            id,
            content,
        };
        entry.record_type.usage.charge(entry.cost());
        entry
    }

    /// The version of this change.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The record's type.
    pub fn record_type(&self) -> &str {
        &self.record_type.name
    }

    /// The record's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The record's data; of a tombstone, the last there was. None where the record was put without data.
    pub fn data(&self) -> Option<&D> {
        match &self.content {
            Content::Put(data) => data.as_ref(),
            Content::Removed(entry) => entry.data(),
        }
    }

    /// When the change was made.
    pub fn modified_at(&self) -> Timestamp {
        self.modified_at
    }

    /// When the record was removed; none where this is not a tombstone.
    pub fn deleted_at(&self) -> Option<Timestamp> {
        matches!(self.content, Content::Removed(_)).then_some(self.modified_at)
    }

    /// The bytes that count against the bounds of a page: those of type, id and data.
    pub fn size(&self) -> u64 {
        let data = self.data().map_or(0, |data| data.as_ref().len());
        bytes(self.record_type.name.len()) + bytes(self.id.len()) + bytes(data)
    }

    pub(crate) fn shared_id(&self) -> &Arc<str> {
        &self.id
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) fn shared_type(&self) -> &Arc<str> {
        &self.record_type.name
    }

    /// What the entry takes from the budget, its two places in the log included.
    pub(crate) fn cost(&self) -> u64 {
        match &self.content {
            Content::Put(data) => put_cost::<D>(self.id.len(), data.as_ref().map(|data| data.as_ref().len())),
            Content::Removed(_) => fixed_cost::<D>(),
        }
    }
}

/// What an entry will cost that is made of this.
///
/// The id is counted with every entry, although the changes of one record share it: too much by some bytes, never too
/// little.
pub(crate) fn put_cost<D: Data>(id_length: usize, data_length: Option<usize>) -> u64 {
    let id = SHARED + ALLOCATION + bytes(id_length);
    fixed_cost::<D>() + id + data_length.map_or(0, |length| ALLOCATION + bytes(length))
}

/// The allocation of the entry, and its place in the log of all types and in that of its own, each in a queue that may
/// be half empty.
fn fixed_cost<D: Data>() -> u64 {
    SHARED + ALLOCATION + bytes(size_of::<Entry<D>>()) + 4 * bytes(size_of::<usize>())
}

impl<D: Data> Drop for Entry<D> {
    fn drop(&mut self) {
        self.record_type.usage.release(self.cost());
    }
}
