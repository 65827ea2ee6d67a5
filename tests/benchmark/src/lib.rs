//! What the load program and the measurements of single steps have in common: the records.

// Seeds and lengths are small.
#![allow(clippy::cast_possible_truncation)]

pub mod session;
