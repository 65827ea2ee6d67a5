//! What a plugin asked for and was not granted: a line of the log that says what would allow it, and a count.
//!
//! A plugin can ask as often as it likes. What it asks for is told once a minute; so many different things at most, since it
//! chooses them, and the rest of a kind once a minute together. Counts miss nothing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::component::convert;
use crate::telemetry::seldom::Seldom;

/// How often one thing is told.
const INTERVAL: Duration = Duration::from_secs(60);

/// How many different things of a plugin are told apart.
const TOLD_APART: usize = 128;

/// How many bytes of what was asked for are told.
const SHOWN: usize = 256;

/// What kind of thing was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// A setting of its own.
    Setting,
    /// A secret of its own.
    Secret,
    /// A path that is in no granted directory, or a change in one that is to be read only.
    Directory,
    /// The look-up of a name.
    Name,
    /// A connection.
    Address,
    /// An HTTP request.
    Origin,
    /// What no plugin is granted: listening, and UDP.
    Socket,
    /// One file, socket, request or transaction more than may be open at once.
    Open,
    /// A database.
    Database,
}

/// All kinds, with the names that they have in metrics.
pub const REFUSED: [(Refused, &str); 9] = [
    (Refused::Setting, "setting"),
    (Refused::Secret, "secret"),
    (Refused::Directory, "directory"),
    (Refused::Name, "name"),
    (Refused::Address, "address"),
    (Refused::Origin, "origin"),
    (Refused::Socket, "socket"),
    (Refused::Open, "open"),
    (Refused::Database, "database"),
];

/// All that a plugin was refused.
pub struct Refusals {
    plugin: String,
    /// As [`REFUSED`].
    counts: [AtomicU64; REFUSED.len()],
    /// What was told, and when.
    told: Mutex<BTreeMap<(Refused, String), Seldom>>,
}

impl Refusals {
    pub(super) fn new(plugin: &str) -> Self {
        Self {
            plugin: plugin.to_owned(),
            counts: Default::default(),
            told: Mutex::default(),
        }
    }

    /// The plugin's name.
    pub(super) fn plugin(&self) -> &str {
        &self.plugin
    }

    /// Something was refused. `asked` is what the plugin asked for, which may be any text; `remedy` what would allow it.
    pub(in crate::component) fn refuse(&self, kind: Refused, asked: &str, remedy: impl FnOnce() -> String) {
        let place = REFUSED.iter().position(|(known, _)| *known == kind);
        if let Some((count, (_, name))) = place.and_then(|place| Some((self.counts.get(place)?, REFUSED.get(place)?))) {
            count.fetch_add(1, Ordering::Relaxed);
            let shown = asked.get(..asked.floor_char_boundary(SHOWN)).unwrap_or_default();
            let asked = convert::text(shown);
            let Some(untold) = self.turn(kind, &asked) else { return };
            let (plugin, remedy) = (&self.plugin, convert::text(&remedy()));
            // A plugin may well look for a setting that it can do without.
            if kind == Refused::Setting {
                tracing::info!(
                    plugin,
                    kind = name,
                    asked,
                    remedy,
                    untold,
                    "the plugin asked for a setting that is not set"
                );
            } else {
                tracing::warn!(
                    plugin,
                    kind = name,
                    asked,
                    remedy,
                    untold,
                    "the plugin was refused what it is not granted"
                );
            }
        }
    }

    fn turn(&self, kind: Refused, asked: &str) -> Option<u64> {
        let mut told = self.told.lock();
        let mut key = (kind, asked.to_owned());
        if told.len() >= TOLD_APART && !told.contains_key(&key) {
            key = (kind, String::new());
        }
        told.entry(key).or_default().turn(Instant::now(), INTERVAL)
    }

    /// How often it was refused something, by kind.
    pub(in crate::component) fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        REFUSED.iter().map(|(_, name)| *name).zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;
    use crate::component::tests::Log;

    #[test]
    fn a_flood_of_questions_is_counted_and_told_seldom() {
        let log = Log::default();
        let recording = log.record();
        let refusals = Refusals::new("curious");
        for _ in 0..1000 {
            refusals.refuse(Refused::Name, "evil\n.example", || {
                "DATABROKER_PLUGIN_ADDRESSES=x:1".to_owned()
            });
        }
        for number in 0..1000 {
            refusals.refuse(Refused::Address, &format!("10.0.0.1:{number}"), String::new);
        }
        drop(recording);
        let text = log.text();
        assert_eq!(text.matches("evil .example").count(), 1, "{text}");
        assert!(text.contains("DATABROKER_PLUGIN_ADDRESSES=x:1"), "{text}");
        assert!(text.lines().count() <= TOLD_APART + 2, "{} lines", text.lines().count());
        let counts: BTreeMap<_, _> = refusals.counts().into_iter().collect();
        assert_eq!((counts["name"], counts["address"], counts["origin"]), (1000, 1000, 0));
    }
}
