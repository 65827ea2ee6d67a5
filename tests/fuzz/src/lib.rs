//! What hostile bytes are fed to. Each target is a function of bytes that panics where a promise is broken; both `cargo
//! fuzz` (the folder `fuzz/`) and the mutator here ([`mutate`]) call it, so that a crash that either finds is a file that the
//! other replays.
//!
//! A target holds more than "it does not panic" where more can be held: what is refused has a reason, what is accepted is
//! what it says, what is written can be read again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod draw;
pub mod mutate;
mod targets;

use std::path::{Path, PathBuf};

/// Something to feed bytes to.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which its corpus has, too.
    pub name: &'static str,
    /// Panics where a promise is broken.
    pub feed: fn(&[u8]),
    /// How many mutations the short run makes: some thousands, fewer where one of them is costly.
    pub short: u32,
    /// What bytes of this kind are made of, beside what the corpus has.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    targets::token::TARGET,
    targets::filter::TARGET,
    targets::configuration::TARGET,
    targets::connection_string::TARGET,
    targets::component::TARGET,
    targets::answers::TARGET,
    targets::codec::TARGET,
    targets::request::TARGET,
    targets::rows::TARGET,
];

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.iter().copied().find(|target| target.name == name)
    }

    /// Where its corpus is.
    pub fn corpus_folder(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(self.name)
    }

    /// Its corpus, in the order of the files' names.
    pub fn corpus(&self) -> Vec<Vec<u8>> {
        let folder = self.corpus_folder();
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.iter().map(|file| std::fs::read(file).unwrap()).collect()
    }
}

/// Feeds the target of a name.
///
/// # Panics
///
/// Where there is no such target, or the bytes break a promise.
pub fn feed(name: &str, bytes: &[u8]) {
    let target = Target::named(name).unwrap_or_else(|| panic!("there is no target {name:?}"));
    (target.feed)(bytes);
}
