//! Plugins that do everything wrong: one that runs and misbehaves in the way its setting names
//! ([`misbehaviour`]), and files that never get so far ([`binaries`]).
//!
//! The tests hold the host to its promise: whatever a plugin does ends in one named error, one line of the log and one
//! metric, and nobody else comes to harm.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

pub mod binaries;
#[path = "../guest/src/misbehaviour.rs"]
pub mod misbehaviour;
