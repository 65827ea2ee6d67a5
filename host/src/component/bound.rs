//! Which bound the engine has met, and the setting that allows more.
//!
//! The engine names a bound in its own words, knows nothing of settings, and has types for two of these errors only. So they are
//! told apart by those words. A row of `tests/hostile` for each holds them to the engine that is built in.

use super::instance::Limits;

/// What the engine says, the setting, and how much it allows.
const BOUNDS: [(&str, &str, fn(&Limits) -> usize); 6] = [
    ("instance count too high", "DATABROKER_PLUGIN_INSTANCES", |limits| {
        limits.instances
    }),
    ("memory count too high", "DATABROKER_PLUGIN_MEMORIES", |limits| {
        limits.memories
    }),
    ("table count too high", "DATABROKER_PLUGIN_TABLES", |limits| {
        limits.tables
    }),
    (
        "resource table has no free keys",
        "DATABROKER_PLUGIN_HANDLES",
        |limits| limits.handles,
    ),
    ("store handle limit exceeded", "DATABROKER_PLUGIN_HANDLES", |limits| {
        limits.handles
    }),
    (
        "fuel allocated for hostcalls has been exhausted",
        "DATABROKER_PLUGIN_ANSWER_SIZE",
        |limits| limits.answer_bytes,
    ),
];

/// The bound that an error of the engine is about, in words that follow the error's own.
pub(super) fn met(error: &str, limits: &Limits) -> Option<String> {
    let (_, setting, most) = BOUNDS.iter().find(|(words, ..)| error.contains(words))?;
    Some(format!("at most {} ({setting})", most(limits)))
}
