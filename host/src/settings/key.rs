//! The table of all settings: names, defaults and what they do. Flags and help come from it.

/// A setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The environment variable.
    pub variable: &'static str,
    /// The flag without its dashes; none for secrets.
    pub flag: Option<&'static str>,
    /// What a value looks like.
    pub value: &'static str,
    /// What it does, with default and bounds.
    pub help: &'static str,
    /// What to do where a value cannot be used.
    pub remedy: &'static str,
}

/// All settings, in the order of the help.
pub const ALL: [&Key; 14] = [
    &GRPC_ADDRESS,
    &GRPC_INSECURE,
    &SHARED_SECRET,
    &SHARED_SECRET_FILE,
    &STORAGE_TYPE,
    &STORAGE_CONNECTION_STRING,
    &STORAGE_CONNECTION_STRING_FILE,
    &PLUGIN_CACHE_DIR,
    &RECORD_DESCRIPTORS,
    &HISTORY,
    &CLEAN_INTERVAL,
    &GRACE_PERIOD,
    &LOG_LEVEL,
    &SERVICES,
];

pub(super) static GRPC_ADDRESS: Key = Key {
    variable: "GRPC_ADDRESS",
    flag: Some("grpc-address"),
    value: "HOST:PORT",
    help: "Where to listen; without a host on all addresses [default: 127.0.0.1:5443]",
    remedy: "write HOST:PORT, such as 127.0.0.1:5443, or :5443 for all addresses of this machine",
};

pub(super) static GRPC_INSECURE: Key = Key {
    variable: "GRPC_INSECURE",
    flag: Some("grpc-insecure"),
    value: "BOOLEAN",
    help: "Serve without TLS. Needed where other machines can reach the address, since this version has no TLS yet",
    remedy: "write true or false",
};

pub(super) static SHARED_SECRET: Key = Key {
    variable: "SHARED_SECRET",
    flag: None,
    value: "BASE64",
    help: "The secret that callers prove themselves with, base64 of 32 bytes. On a loopback address one is made and printed \
           where none is set",
    remedy: "",
};

pub(super) static SHARED_SECRET_FILE: Key = Key {
    variable: "SHARED_SECRET_FILE",
    flag: Some("shared-secret-file"),
    value: "FILE",
    help: "A file with the secret and no line end after it; goes before SHARED_SECRET",
    remedy: "name a file that this process can read",
};

pub(super) static STORAGE_TYPE: Key = Key {
    variable: "DATABROKER_STORAGE_TYPE",
    flag: Some("databroker-storage-type"),
    value: "PLUGIN",
    help: "The storage plugin: the name of a built-in one, or the path of any component, which has a / in it or ends in \
           .wasm [default: memory]",
    remedy: "name a built-in plugin, or the path of a component's file such as ./plugin.wasm",
};

pub(super) static STORAGE_CONNECTION_STRING: Key = Key {
    variable: "DATABROKER_STORAGE_CONNECTION_STRING",
    flag: None,
    value: "TEXT",
    help: "What the plugin is told about its store; the plugin says what it takes",
    remedy: "",
};

pub(super) static STORAGE_CONNECTION_STRING_FILE: Key = Key {
    variable: "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
    flag: Some("databroker-storage-connection-string-file"),
    value: "FILE",
    help: "A file with the connection string; goes before DATABROKER_STORAGE_CONNECTION_STRING",
    remedy: "name a file that this process can read",
};

pub(super) static PLUGIN_CACHE_DIR: Key = Key {
    variable: "DATABROKER_PLUGIN_CACHE_DIR",
    flag: Some("databroker-plugin-cache-dir"),
    value: "DIRECTORY",
    help: "Where the compiled code of plugins from files is kept [default: in the user's cache]",
    remedy: "",
};

pub(super) static RECORD_DESCRIPTORS: Key = Key {
    variable: "DATABROKER_RECORD_DESCRIPTORS",
    flag: Some("databroker-record-descriptors"),
    value: "FILE",
    help: "A protobuf FileDescriptorSet of record types that are not Pomerium's own, to filter and patch them by their fields",
    remedy: "",
};

pub(super) static HISTORY: Key = Key {
    variable: "DATABROKER_HISTORY",
    flag: Some("databroker-history"),
    value: "DURATION",
    help: "How long changes are kept for streams that come back; 10ms to 10 years [default: 1h]",
    remedy: "write a duration such as 1h30m",
};

pub(super) static CLEAN_INTERVAL: Key = Key {
    variable: "DATABROKER_CLEAN_INTERVAL",
    flag: Some("databroker-clean-interval"),
    value: "DURATION",
    help: "How often old changes and expired records are removed; 10ms to 1 day [default: 1m]",
    remedy: "write a duration such as 1m",
};

pub(super) static GRACE_PERIOD: Key = Key {
    variable: "SHUTDOWN_GRACE_PERIOD",
    flag: Some("shutdown-grace-period"),
    value: "DURATION",
    help: "How long calls may take to finish at shutdown; 0s to 1h [default: 10s]",
    remedy: "write a duration such as 10s",
};

pub(super) static LOG_LEVEL: Key = Key {
    variable: "LOG_LEVEL",
    flag: Some("log-level"),
    value: "LEVEL",
    help: "How much is logged: trace, debug, info, warn, error or off [default: info]",
    remedy: "write trace, debug, info, warn, error or off",
};

pub(super) static SERVICES: Key = Key {
    variable: "SERVICES",
    flag: Some("services"),
    value: "LIST",
    help: "Which of Pomerium's services a process runs; accepted where it includes databroker",
    remedy: "set it to databroker, or not at all",
};
