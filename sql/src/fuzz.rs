//! Doors for fuzzing: what is read of a server's bytes, which nothing outside this crate needs otherwise. Not for use by anything
//! else, and free to change.
//!
//! They are functions and not a feature of the crate, since a feature would build it a second time.

use sqlx::encode::{Encode as _, IsNull};
use sqlx::postgres::PgArgumentBuffer;

use super::guard::Guard;
use super::value::{Parameter, Value, least_size, read};

/// How many bytes of these a guard lets by that takes messages of so many bytes at most, where they come in pieces of this size; and
/// whether it refuses what follows.
pub fn guarded(bytes: &[u8], largest: u64, size: usize) -> (usize, bool) {
    let mut guard = Guard::new(Some(largest));
    let (mut passed, mut shown) = (0_usize, 0_usize);
    while shown < bytes.len() {
        shown = shown.saturating_add(size.max(1)).min(bytes.len());
        let (clear, refused) = guard.follow(bytes.get(passed..shown).unwrap_or_default());
        passed = passed.saturating_add(clear);
        if refused.is_some() {
            return (passed, true);
        }
    }
    (passed, false)
}

/// A value of a type, where it can be read; and how many bytes it was expected to count at least.
pub fn value(type_number: u32, bytes: &[u8]) -> (Option<Value>, u64) {
    (read(type_number, bytes), least_size(type_number, bytes))
}

/// The number of a value's type, and what is sent of it; none where it cannot be sent, and for what is no value.
pub fn sent(value: &Value) -> Option<(u32, Vec<u8>)> {
    let mut buffer = PgArgumentBuffer::default();
    match Parameter(value).encode_by_ref(&mut buffer) {
        Ok(IsNull::No) => Some((value.type_number(), buffer.to_vec())),
        _ => None,
    }
}
