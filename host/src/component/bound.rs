//! Which bound the engine has met, and the setting that allows more.
//!
//! The engine names a bound in its own words, knows nothing of settings, and has types for two of these errors only. So they are
//! told apart by those words. A row of `tests/hostile` for each holds them to the engine that is built in.

use super::Limits;

/// A bound that the engine keeps.
struct Bound {
    /// What the engine says where it is met.
    words: &'static str,
    /// The setting that allows more.
    setting: &'static str,
    /// How much it allows now.
    most: fn(&Limits) -> usize,
}

const BOUNDS: [Bound; 6] = [
    Bound {
        words: "instance count too high",
        setting: "DATABROKER_PLUGIN_INSTANCES",
        most: |limits| limits.instances,
    },
    Bound {
        words: "memory count too high",
        setting: "DATABROKER_PLUGIN_MEMORIES",
        most: |limits| limits.memories,
    },
    Bound {
        words: "table count too high",
        setting: "DATABROKER_PLUGIN_TABLES",
        most: |limits| limits.tables,
    },
    Bound {
        words: "resource table has no free keys",
        setting: "DATABROKER_PLUGIN_HANDLES",
        most: |limits| limits.handles,
    },
    Bound {
        words: "store handle limit exceeded",
        setting: "DATABROKER_PLUGIN_HANDLES",
        most: |limits| limits.handles,
    },
    Bound {
        words: "fuel allocated for hostcalls has been exhausted",
        setting: "DATABROKER_PLUGIN_ANSWER_SIZE",
        most: |limits| limits.answer_bytes,
    },
];

/// The bound that an error of the engine is about, in words that follow the error's own.
pub(super) fn met(error: &str, limits: &Limits) -> Option<String> {
    let bound = BOUNDS.iter().find(|bound| error.contains(bound.words))?;
    Some(format!("at most {} ({})", (bound.most)(limits), bound.setting))
}
