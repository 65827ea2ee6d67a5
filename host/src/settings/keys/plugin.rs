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

pub(in super::super) static PLUGIN_MEMORIES: Key = Key {
    variable: "DATABROKER_PLUGIN_MEMORIES",
    flag: Some("databroker-plugin-memories"),
    value: "NUMBER",
    default: "100",
    help: "How many memories the plugin may have; 1 to 1000. One that needs more does not start",
    reason: "Modules mostly share one, and each takes 4 GiB of addresses of this process, of which it has 128 TiB",
    remedy: "write a number such as 100",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_TABLES: Key = Key {
    variable: "DATABROKER_PLUGIN_TABLES",
    flag: Some("databroker-plugin-tables"),
    value: "NUMBER",
    default: "1000",
    help: "How many tables of functions the plugin may have; 1 to 10000. One that needs more does not start",
    reason: "Most modules have one; those of a large program are some dozens",
    remedy: "write a number such as 1000",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_TABLE_ELEMENTS: Key = Key {
    variable: "DATABROKER_PLUGIN_TABLE_ELEMENTS",
    flag: Some("databroker-plugin-table-elements"),
    value: "NUMBER",
    default: "1000000",
    help: "How many elements all of its tables may have together; 1 to 10000000. The plugin is refused more",
    reason: "An element is a function that can be called, of which no program has so many, and takes 16 bytes of this process",
    remedy: "write a number such as 1000000",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_INSTANCES: Key = Key {
    variable: "DATABROKER_PLUGIN_INSTANCES",
    flag: Some("databroker-plugin-instances"),
    value: "NUMBER",
    default: "1000",
    help: "How many modules the plugin may be made of once it runs; 1 to 10000. One that needs more does not start",
    reason: "An interpreter with its shared libraries is some dozens, and each takes memory of this process before it has any of its own",
    remedy: "write a number such as 1000",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_HANDLES: Key = Key {
    variable: "DATABROKER_PLUGIN_HANDLES",
    flag: Some("databroker-plugin-handles"),
    value: "NUMBER",
    default: "16384",
    help: "How many handles the plugin may have at once, of whatever kind, with one for each of its calls of the host that wait; 64 to 1000000. With one more it is stopped and started again",
    reason: "A handle takes some hundred bytes of this process, the fields of an HTTP request and a call that waits 8 KiB; only a plugin that leaks them has so many. Where DATABROKER_PLUGIN_CALLS is higher, this may have to be too",
    remedy: "write a number such as 16384",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_TRANSACTIONS: Key = Key {
    variable: "DATABROKER_PLUGIN_TRANSACTIONS",
    flag: Some("databroker-plugin-transactions"),
    value: "NUMBER",
    default: "64",
    help: "How many transactions of its database the plugin may have open, with those that wait for a connection; 1 to 10000. One more fails",
    reason: "Each holds a connection of the pool (pool_max_conns) until it ends, and the server its locks; a plugin that is to leave connections for other statements gets fewer than the pool has",
    remedy: "write a number such as 64",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_LISTENERS: Key = Key {
    variable: "DATABROKER_PLUGIN_LISTENERS",
    flag: Some("databroker-plugin-listeners"),
    value: "NUMBER",
    default: "8",
    help: "How many listeners to its database the plugin may have; 1 to 1000. With one more it is stopped and started again",
    reason: "Each is a connection to the server, beside the pool; the built-in postgres needs two",
    remedy: "write a number such as 8",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_LOG_BURST: Key = Key {
    variable: "DATABROKER_PLUGIN_LOG_BURST",
    flag: Some("databroker-plugin-log-burst"),
    value: "NUMBER",
    default: "200",
    help: "How many lines the plugin may write to the log at once; 1 to 100000. What is beyond is left out and counted",
    reason: "A start or a failure has much to say; a line is cut after 4 KiB",
    remedy: "write a number such as 200",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_LOG_RATE: Key = Key {
    variable: "DATABROKER_PLUGIN_LOG_RATE",
    flag: Some("databroker-plugin-log-rate"),
    value: "NUMBER",
    default: "20",
    help: "How many lines a second it may write once it has written so many; 1 to 10000. What is beyond is left out and counted",
    reason: "A plugin must not fill the disk, or hide what others say: this is 80 KiB a second at most",
    remedy: "write a number such as 20",
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
    help: "How much one call of the plugin may return before it is stopped and started again; 96MiB to 1GiB",
    reason: "Its answers are copied into this process. The largest that a good plugin gives must fit: 64MiB of records that one small write removes, and a place in this process for each of them",
    remedy: "write a size such as 128MiB",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_PAGE_RECORDS: Key = Key {
    variable: "DATABROKER_PLUGIN_PAGE_RECORDS",
    flag: Some("databroker-plugin-page-records"),
    value: "NUMBER",
    default: "1024",
    help: "Most records that the plugin is asked for in one answer; 16 to 1024",
    reason: "What it has to hold for one answer, beside the size of it, which the host asks for in pages of 1 MiB; fewer make more calls",
    remedy: "write a number such as 512",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_CALLS: Key = Key {
    variable: "DATABROKER_PLUGIN_CALLS",
    flag: Some("databroker-plugin-calls"),
    value: "NUMBER",
    default: "1024",
    help: "How many calls the plugin has at once; 1 to 65536. One that reads several records by their keys counts as so many, a quarter of all at most. What this host does by itself, such as its writes one after the other, cleaning and looking whether the store answers, comes on top and keeps nobody waiting here",
    reason: "Each takes memory of the plugin's, and a plugin that waits for its store serves others meanwhile",
    remedy: "write a number such as 1024",
    ..PLUGIN
};

pub(in super::super) static PLUGIN_QUEUE: Key = Key {
    variable: "DATABROKER_PLUGIN_QUEUE",
    flag: Some("databroker-plugin-queue"),
    value: "NUMBER",
    default: "4096",
    help: "How many calls more wait to be let in; further ones are refused with UNAVAILABLE; 2 to 1048576",
    reason: "More waiting would only make every answer late. Two places are the least, since what this host reads of a store that others write to waits here too: with none, a client would be refused because of it",
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
