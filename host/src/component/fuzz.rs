//! Doors for fuzzing: the laws of answers, which nothing outside this folder needs otherwise. Not for use by anything else,
//! and free to change.
//!
//! They are functions and not a feature of the crate, since a feature would build the whole host a second time.

use super::laws::{self, PutShape};
use crate::backend::{Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, PageBounds, PutResult, ScanPage};
use crate::record::{Key, Record, Version};

/// Whether the answer to a get is lawful.
pub fn answers(keys: &[Key], answers: &[Option<Record>]) -> bool {
    laws::answers(keys, answers).is_ok()
}

/// The highest version since, where the answer to a put is lawful.
pub fn put(batches: &[Batch], after: Version, result: &PutResult) -> Option<Version> {
    PutShape::new(batches).check(after, result).ok()
}

/// Whether a page of live records is lawful.
pub fn scan_page(after: Option<&Key>, record_type: Option<&str>, bounds: PageBounds, page: &ScanPage) -> bool {
    laws::scan_page(after, record_type, bounds, page).is_ok()
}

/// Whether a page of changes is lawful.
pub fn changes_page(request: &ChangesRequest, page: &ChangesPage) -> bool {
    laws::changes_page(request, page).is_ok()
}

/// The highest version since, where an eviction is lawful.
pub fn evicted(after: Version, request: &EvictRequest, evicted: &Evicted) -> Option<Version> {
    laws::evicted(after, request, evicted).ok()
}
