//! The storage plugin and what is kept.

use super::{Group, Key, Origin};

const STORAGE: Key = Key {
    group: Group::Storage,
    ..Key::COMMON
};

pub(in super::super) static STORAGE_TYPE: Key = Key {
    variable: "DATABROKER_STORAGE_TYPE",
    flag: Some("databroker-storage-type"),
    value: "PLUGIN",
    default: "memory",
    help: "The storage plugin: the name of a built-in one, or the path of any component, which has a / in it or ends in .wasm",
    remedy: "name a built-in plugin, or the path of a component's file such as ./plugin.wasm",
    ..STORAGE
};

pub(in super::super) static STORAGE_CONNECTION_STRING: Key = Key {
    variable: "DATABROKER_STORAGE_CONNECTION_STRING",
    help: "Where the store is. For postgres what psql takes, as a URL or as name=value pairs; for another plugin what that says",
    remedy: "write what the plugin's documentation says, as one text",
    secret: true,
    ..STORAGE
};

pub(in super::super) static STORAGE_CONNECTION_STRING_FILE: Key = Key {
    variable: "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
    flag: Some("databroker-storage-connection-string-file"),
    value: "FILE",
    help: "A file with the connection string; goes before DATABROKER_STORAGE_CONNECTION_STRING",
    reason: "It often holds a password",
    remedy: "name a file that this process can read",
    ..STORAGE
};

pub(in super::super) static PLUGIN_CACHE_DIR: Key = Key {
    variable: "DATABROKER_PLUGIN_CACHE_DIR",
    flag: Some("databroker-plugin-cache-dir"),
    value: "DIRECTORY",
    default: "in the user's cache",
    help: "Where the compiled code of plugins from files is kept",
    reason: "Compiling a plugin takes seconds; what is kept is used at the next start",
    remedy: "name a directory",
    origin: Origin::Ours,
    ..STORAGE
};

pub(in super::super) static RECORD_DESCRIPTORS: Key = Key {
    variable: "DATABROKER_RECORD_DESCRIPTORS",
    flag: Some("databroker-record-descriptors"),
    value: "FILE",
    help: "A protobuf FileDescriptorSet of record types that are not Pomerium's own, to filter and patch them by their fields",
    reason: "Records of types that nobody has described are kept and returned all the same",
    remedy: "name a file that `protoc --include_imports --descriptor_set_out=FILE` has written",
    origin: Origin::Ours,
    ..STORAGE
};

pub(in super::super) static HISTORY: Key = Key {
    variable: "DATABROKER_HISTORY",
    flag: Some("databroker-history"),
    value: "DURATION",
    default: "1h",
    help: "How long changes are kept for streams that come back; 10ms to 10 years",
    reason: "A client that was away for longer reads everything again",
    remedy: "write a duration such as 1h30m",
    origin: Origin::Ours,
    ..STORAGE
};

pub(in super::super) static CLEAN_INTERVAL: Key = Key {
    variable: "DATABROKER_CLEAN_INTERVAL",
    flag: Some("databroker-clean-interval"),
    value: "DURATION",
    default: "1m",
    help: "How often old changes and expired records are removed; 10ms to 1 day",
    remedy: "write a duration such as 1m",
    origin: Origin::Ours,
    ..STORAGE
};
