//! Plugins that do everything wrong: one that runs and misbehaves in the way its connection string names ([`guest`]), and
//! files that never get so far ([`binaries`]).
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

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the plugin that misbehaves, and says where it is. It is a program of another target with a lock file of its own,
/// so that this is a build of its own, as an author's would be.
pub fn guest() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args([
        "build",
        "--release",
        "--locked",
        "--target",
        "wasm32-wasip2",
        "--target-dir",
        "target",
    ]);
    // What this build sets for itself is not the guest's.
    for (name, _) in std::env::vars() {
        if (name.starts_with("CARGO_") && name != "CARGO_HOME")
            || name.starts_with("RUSTFLAGS")
            || name.starts_with("RUSTC_")
        {
            build.env_remove(name);
        }
    }
    let status = build.current_dir(&folder).status().expect("cargo");
    assert!(status.success(), "{build:?}: {status}; what it printed is above");
    folder.join("target/wasm32-wasip2/release/hostile_guest.wasm")
}
