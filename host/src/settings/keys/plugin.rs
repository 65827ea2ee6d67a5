//! What a running plugin may use, and what becomes of one that stops.

use super::{Group, Key, Origin};

const PLUGIN: Key = Key {
    group: Group::Storage,
    origin: Origin::Ours,
    ..Key::COMMON
};

pub(in super::super) static PLUGIN_MEMORY: Key = Key {
    variable: "DATABROKER_PLUGIN_MEMORY",
    flag: Some("databroker-plugin-memory"),
    value: "SIZE",
    default: "4GiB",
    help: "How much memory the plugin's instance may have; 1MiB to 4GiB",
    reason: "What it may do to this machine; 4GiB is what 32 bits can address",
    remedy: "write a size such as 512MiB",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_COMPUTE_TIME: Key = Key {
    variable: "DATABROKER_PLUGIN_COMPUTE_TIME",
    flag: Some("databroker-plugin-compute-time"),
    value: "DURATION",
    default: "30s",
    help: "For how long the plugin may compute for one call, without the time in which the call waits, before it is stopped and started again; 100ms to 1h",
    reason: "Far more than any call takes, and so much is what one that never ends costs",
    remedy: "write a duration such as 30s",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_TURN_TIME: Key = Key {
    variable: "DATABROKER_PLUGIN_TURN_TIME",
    flag: Some("databroker-plugin-turn-time"),
    value: "DURATION",
    default: "10s",
    help: "For how long the plugin may compute without giving its other calls their turn, before it is stopped and started again; 100ms to 1h",
    reason: "So long at most one call delays the others",
    remedy: "write a duration such as 10s",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_CALL_TIME: Key = Key {
    variable: "DATABROKER_PLUGIN_CALL_TIME",
    flag: Some("databroker-plugin-call-time"),
    value: "DURATION",
    default: "1m",
    help: "How long a call of the plugin may take, waiting included, before the plugin is stopped and started again; the time in which it computes for other calls does not count; 100ms to 1h",
    reason: "A call cannot be taken back, and one that is stuck holds up whoever waits for it",
    remedy: "write a duration such as 1m",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_ANSWER_SIZE: Key = Key {
    variable: "DATABROKER_PLUGIN_ANSWER_SIZE",
    flag: Some("databroker-plugin-answer-size"),
    value: "SIZE",
    default: "128MiB",
    help: "How much one call of the plugin may return before it is stopped and started again; 16MiB to 1GiB",
    reason: "Its answers are copied into this process; the pages and batches that are asked for have 8MiB",
    remedy: "write a size such as 128MiB",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_CALLS: Key = Key {
    variable: "DATABROKER_PLUGIN_CALLS",
    flag: Some("databroker-plugin-calls"),
    value: "NUMBER",
    default: "1024",
    help: "How many calls the plugin has at once; 1 to 65536",
    reason: "Each takes memory of the plugin's, and a plugin that waits for its store serves others meanwhile",
    remedy: "write a number such as 1024",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_QUEUE: Key = Key {
    variable: "DATABROKER_PLUGIN_QUEUE",
    flag: Some("databroker-plugin-queue"),
    value: "NUMBER",
    default: "4096",
    help: "How many calls more wait to be let in; further ones are refused with UNAVAILABLE; 0 to 1048576",
    reason: "More waiting would only make every answer late",
    remedy: "write a number such as 4096",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_QUEUE_TIME: Key = Key {
    variable: "DATABROKER_PLUGIN_QUEUE_TIME",
    flag: Some("databroker-plugin-queue-time"),
    value: "DURATION",
    default: "10s",
    help: "How long a call waits to be let in before it is refused with UNAVAILABLE; 10ms to 1h",
    reason: "Who has waited for so long has mostly given up",
    remedy: "write a duration such as 10s",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_RESTARTS: Key = Key {
    variable: "DATABROKER_PLUGIN_RESTARTS",
    flag: Some("databroker-plugin-restarts"),
    value: "NUMBER",
    default: "5",
    help: "How often within 5 minutes a plugin that has stopped is started again before the process ends; 0 to 1000",
    reason: "What keeps stopping is better off with a new process, and whoever watches processes hears of it",
    remedy: "write a number such as 5",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_REPORT_DIR: Key = Key {
    variable: "DATABROKER_PLUGIN_REPORT_DIR",
    flag: Some("databroker-plugin-report-dir"),
    value: "DIRECTORY",
    help: "Where a file is written each time a plugin stops: the cause, its stack, the calls, its last lines; 20 are kept",
    reason: "The plugin's author needs it; the log has the same but for the last lines. A directory that is not there is made",
    remedy: "name a directory that this process can write to",
    ..PLUGIN
};
