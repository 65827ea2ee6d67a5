//! The table of all settings: names, defaults and what they do. Flags, help, the configuration file and the reference
//! in the documentation come from it.

mod grants;
mod plugin;
mod security;
mod storage;
mod telemetry;

pub(super) use grants::*;
pub(super) use plugin::*;
pub(super) use security::*;
pub(super) use storage::*;
pub(super) use telemetry::*;

/// A setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// The environment variable. In lower case it is the name in the configuration file.
    pub variable: &'static str,
    /// The flag without its dashes; none for secrets, since other users of a machine can read flags.
    pub flag: Option<&'static str>,
    /// What a value looks like.
    pub value: &'static str,
    /// The value where it is not set, in words where that depends; empty for none.
    pub default: &'static str,
    /// What it does, with units and bounds.
    pub help: &'static str,
    /// Why one would set it, or why it is as it is; may be empty.
    pub reason: &'static str,
    /// What to do where a value cannot be used.
    pub remedy: &'static str,
    /// What it belongs to.
    pub group: Group,
    /// Whose it is.
    pub origin: Origin,
    /// Whether it is kept out of messages.
    pub secret: bool,
    /// Whether a SIGHUP applies a new value.
    pub changeable: bool,
    /// Which kinds of YAML are taken.
    pub shape: Shape,
}

/// What settings belong to, in the order of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Where and how long to serve.
    Serving,
    /// The secret that Pomerium's services share.
    SharedSecret,
    /// Certificates of the gRPC listener.
    Tls,
    /// The plugin and what is kept.
    Storage,
    /// What the plugin is granted.
    Grants,
    /// The log.
    Logs,
    /// Probes.
    Health,
    /// Prometheus.
    Metrics,
    /// OpenTelemetry.
    Traces,
}

impl Group {
    /// The heading in the reference.
    pub fn title(self) -> &'static str {
        match self {
            Self::Serving => "Serving",
            Self::SharedSecret => "Shared secret",
            Self::Tls => "TLS",
            Self::Storage => "Storage",
            Self::Grants => "Grants",
            Self::Logs => "Logs",
            Self::Health => "Health",
            Self::Metrics => "Metrics",
            Self::Traces => "Traces",
        }
    }
}

/// Whose a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Pomerium has it too, with the same meaning.
    Pomerium,
    /// Only this program has it.
    Ours,
}

/// Which kinds of YAML a setting takes in the configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A text, number or boolean.
    Text,
    /// A list of texts, or a text with commas between the parts.
    List,
    /// A list of `cert` and `key`.
    Certificates,
}

impl Key {
    /// What most settings have in common. Name, help and remedy must be set.
    pub(super) const COMMON: Self = Self {
        variable: "",
        flag: None,
        value: "TEXT",
        default: "",
        help: "",
        reason: "",
        remedy: "",
        group: Group::Serving,
        origin: Origin::Pomerium,
        secret: false,
        changeable: false,
        shape: Shape::Text,
    };

    /// The name in the configuration file.
    pub fn yaml(&self) -> String {
        self.variable.to_ascii_lowercase()
    }

    /// What the command line says about it: what it does, why, the default and the variable.
    pub fn help_text(&self) -> String {
        let reason = if self.reason.is_empty() {
            String::new()
        } else {
            format!(". {}", self.reason)
        };
        let default = if self.default.is_empty() {
            String::new()
        } else {
            format!(" [default: {}]", self.default)
        };
        format!("{}{reason}{default} [env: {}]", self.help, self.variable)
    }
}

/// All settings, in the order of the help.
pub const ALL: [&Key; 78] = [
    &GRPC_ADDRESS,
    &GRPC_INSECURE,
    &SERVICES,
    &GRACE_PERIOD,
    &MAX_CONNECTIONS,
    &MAX_STREAMS,
    &SHARED_SECRET,
    &SHARED_SECRET_FILE,
    &SHARED_SECRET_PREVIOUS,
    &SHARED_SECRET_PREVIOUS_FILE,
    &CERTIFICATE,
    &CERTIFICATE_KEY,
    &CERTIFICATE_FILE,
    &CERTIFICATE_KEY_FILE,
    &CERTIFICATES,
    &TLS_DERIVE,
    &GRPC_CLIENT_CA,
    &GRPC_CLIENT_CA_FILE,
    &TLS_RELOAD_INTERVAL,
    &STORAGE_TYPE,
    &STORAGE_CONNECTION_STRING,
    &STORAGE_CONNECTION_STRING_FILE,
    &PLUGIN_CACHE_DIR,
    &PLUGIN_MEMORY,
    &PLUGIN_MEMORIES,
    &PLUGIN_TABLES,
    &PLUGIN_TABLE_ELEMENTS,
    &PLUGIN_INSTANCES,
    &PLUGIN_HANDLES,
    &PLUGIN_TRANSACTIONS,
    &PLUGIN_LISTENERS,
    &PLUGIN_LOG_BURST,
    &PLUGIN_LOG_RATE,
    &PLUGIN_COMPUTE_TIME,
    &PLUGIN_TURN_TIME,
    &PLUGIN_CALL_TIME,
    &PLUGIN_ANSWER_SIZE,
    &PLUGIN_PAGE_RECORDS,
    &PLUGIN_CALLS,
    &PLUGIN_QUEUE,
    &PLUGIN_QUEUE_TIME,
    &PLUGIN_RESTARTS,
    &PLUGIN_REPORT_DIR,
    &RECORD_DESCRIPTORS,
    &HISTORY,
    &CLEAN_INTERVAL,
    &PLUGIN_SETTINGS,
    &PLUGIN_SECRETS,
    &PLUGIN_DIRECTORIES,
    &PLUGIN_ADDRESSES,
    &PLUGIN_HTTP_ORIGINS,
    &PLUGIN_OPEN,
    &LOG_LEVEL,
    &LOG_FORMAT,
    &HEALTH_CHECK_ADDR,
    &METRICS_ADDRESS,
    &METRICS_BASIC_AUTH,
    &METRICS_BASIC_AUTH_FILE,
    &METRICS_CERTIFICATE,
    &METRICS_CERTIFICATE_KEY,
    &METRICS_CERTIFICATE_FILE,
    &METRICS_CERTIFICATE_KEY_FILE,
    &METRICS_CLIENT_CA,
    &METRICS_CLIENT_CA_FILE,
    &OTEL_TRACES_EXPORTER,
    &OTEL_EXPORTER_OTLP_ENDPOINT,
    &OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    &OTEL_EXPORTER_OTLP_PROTOCOL,
    &OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
    &OTEL_EXPORTER_OTLP_HEADERS,
    &OTEL_EXPORTER_OTLP_TRACES_HEADERS,
    &OTEL_EXPORTER_OTLP_TIMEOUT,
    &OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
    &OTEL_TRACES_SAMPLER_ARG,
    &OTEL_RESOURCE_ATTRIBUTES,
    &OTEL_BSP_SCHEDULE_DELAY,
    &OTEL_BSP_MAX_EXPORT_BATCH_SIZE,
    &OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT,
];

pub(super) static GRPC_ADDRESS: Key = Key {
    variable: "GRPC_ADDRESS",
    flag: Some("grpc-address"),
    value: "HOST:PORT",
    default: "127.0.0.1:5443",
    help: "Where to listen; without a host on all addresses of this machine, with port 0 on one that is free",
    reason: "Pomerium's services expect the databroker on port 5443 where they are told nothing else",
    remedy: "write HOST:PORT, such as 127.0.0.1:5443, or :5443 for all addresses of this machine",
    ..Key::COMMON
};

pub(super) static GRPC_INSECURE: Key = Key {
    variable: "GRPC_INSECURE",
    flag: Some("grpc-insecure"),
    value: "BOOLEAN",
    default: "true on a loopback address without certificates, else false",
    help: "Serve without TLS",
    reason: "For a proxy in front that does TLS, or a network that nobody else can read",
    remedy: "write true or false",
    ..Key::COMMON
};

pub(super) static SERVICES: Key = Key {
    variable: "SERVICES",
    flag: Some("services"),
    value: "LIST",
    default: "databroker",
    help: "Which of Pomerium's services a process runs; accepted where it includes databroker",
    reason: "Only the databroker is served, whatever else it names",
    remedy: "set it to databroker, or not at all",
    shape: Shape::List,
    ..Key::COMMON
};

pub(super) static GRACE_PERIOD: Key = Key {
    variable: "SHUTDOWN_GRACE_PERIOD",
    flag: Some("shutdown-grace-period"),
    value: "DURATION",
    default: "10s",
    help: "How long calls may take to finish at shutdown; 0s to 1h",
    reason: "Shorter than the time after which the service manager kills the process",
    remedy: "write a duration such as 10s",
    origin: Origin::Ours,
    changeable: true,
    ..Key::COMMON
};

pub(super) static MAX_CONNECTIONS: Key = Key {
    variable: "GRPC_MAX_CONNECTIONS",
    flag: Some("grpc-max-connections"),
    value: "NUMBER",
    default: "1024",
    help: "Most connections of clients at a time; 1 to 100000. For one more, the oldest without a call with a token is closed",
    reason: "A Pomerium process has a few; the limit of open files (LimitNOFILE, ulimit -n) must be larger by 256",
    remedy: "write a number such as 1024",
    origin: Origin::Ours,
    ..Key::COMMON
};

pub(super) static MAX_STREAMS: Key = Key {
    variable: "GRPC_MAX_STREAMS",
    flag: Some("grpc-max-streams"),
    value: "NUMBER",
    default: "8192",
    help: "Most streams at a time, of all connections together; 1 to 1000000",
    reason: "A Pomerium process has a dozen; one whose client does not read holds up to 256 KiB",
    remedy: "write a number such as 8192",
    origin: Origin::Ours,
    ..Key::COMMON
};
