//! Reading page by page: what is asked for, and the part of the answer that fits.

use std::sync::Arc;

use crate::entry::{Data, Entry, Version};
use crate::network::Prefix;

/// Where the store stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Names this incarnation of the content; never 0.
    pub server_version: u64,
    /// The oldest change in the log; 0 where the log is empty.
    pub earliest_version: Version,
    /// The newest change ever made.
    pub latest_version: Version,
}

/// A page stops at whichever bound is met first, but holds one record at least where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Most records.
    pub records: usize,
    /// Most bytes of types, ids and data.
    pub bytes: u64,
}

/// Narrows a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Records whose indexed field has this value.
    Field {
        /// Field names joined by dots.
        path: String,
        /// The value.
        value: String,
    },
    /// Records whose network contains this one.
    Network(Prefix),
}

/// What to scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// Only this type; none for all.
    pub record_type: Option<String>,
    /// Narrows the scan.
    pub hint: Option<Hint>,
    /// Continues after this type and id.
    pub after: Option<(String, String)>,
    /// The bounds of the page.
    pub bounds: Bounds,
}

/// Part of a scan.
#[derive(Debug)]
pub struct ScanPage<D: Data> {
    /// Live records, ascending by type and id.
    pub records: Vec<Arc<Entry<D>>>,
    /// True if there is more after the last of them.
    pub more: bool,
    /// Where the store stood.
    pub position: Position,
}

/// What to read from the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesRequest {
    /// Only changes with a higher version.
    pub after: Version,
    /// Only this type; none for all.
    pub record_type: Option<String>,
    /// The bounds of the page.
    pub bounds: Bounds,
}

/// Part of the change log.
#[derive(Debug)]
pub struct ChangesPage<D: Data> {
    /// The changes, ascending by version.
    pub records: Vec<Arc<Entry<D>>>,
    /// The page holds every change that was asked for up to this version.
    pub through: Version,
    /// Where the store stood.
    pub position: Position,
}

/// A page that is being filled.
#[derive(Debug)]
pub(crate) struct Filling<D: Data> {
    pub records: Vec<Arc<Entry<D>>>,
    /// True once there was an entry that did not fit any more.
    pub is_full: bool,
    bounds: Bounds,
    bytes: u64,
}

impl<D: Data> Filling<D> {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            records: Vec::new(),
            is_full: false,
            bounds,
            bytes: 0,
        }
    }

    /// Takes entries until one does not fit.
    pub fn extend<'a>(&mut self, entries: impl Iterator<Item = &'a Arc<Entry<D>>>)
    where
        D: 'a,
    {
        for entry in entries {
            if !self.accepts(entry.size()) {
                return;
            }
            self.records.push(Arc::clone(entry));
        }
    }

    /// One more than the entries that may still fit: as many as it takes to know that there are more.
    pub fn wanted(&self) -> usize {
        self.bounds.records.saturating_sub(self.records.len()).saturating_add(1)
    }

    fn accepts(&mut self, size: u64) -> bool {
        let bytes = self.bytes.saturating_add(size);
        let fits = self.records.len() < self.bounds.records && bytes <= self.bounds.bytes;
        if self.records.is_empty() || fits {
            self.bytes = bytes;
            true
        } else {
            self.is_full = true;
            false
        }
    }
}
