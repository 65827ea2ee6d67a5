//! Logs, health, metrics and traces.

use super::{Group, Key, Origin, Shape};

const METRICS: Key = Key {
    group: Group::Metrics,
    ..Key::COMMON
};

const TRACES: Key = Key {
    group: Group::Traces,
    ..Key::COMMON
};

pub(in super::super) static LOG_LEVEL: Key = Key {
    variable: "LOG_LEVEL",
    flag: Some("log-level"),
    value: "LEVEL",
    default: "info",
    help: "How much is logged: trace, debug, info, warn, error or off; also Pomerium's warning, critical, fatal, panic, none and disabled",
    remedy: "write trace, debug, info, warn, error or off",
    group: Group::Logs,
    changeable: true,
    ..Key::COMMON
};

pub(in super::super) static LOG_FORMAT: Key = Key {
    variable: "LOG_FORMAT",
    flag: Some("log-format"),
    value: "FORMAT",
    default: "text",
    help: "How a line of the log looks: text for people, json for programs",
    remedy: "write text or json",
    group: Group::Logs,
    origin: Origin::Ours,
    ..Key::COMMON
};

pub(in super::super) static HEALTH_CHECK_ADDR: Key = Key {
    variable: "HEALTH_CHECK_ADDR",
    flag: Some("health-check-addr"),
    value: "HOST:PORT",
    default: "127.0.0.1:28080",
    help: "Where /healthz, /readyz, /startupz and /status are served over HTTP; off for nowhere",
    reason: "A container's probes come from outside: write :28080 there",
    remedy: "write HOST:PORT, such as 127.0.0.1:28080, or off",
    group: Group::Health,
    ..Key::COMMON
};

pub(in super::super) static METRICS_ADDRESS: Key = Key {
    variable: "METRICS_ADDRESS",
    flag: Some("metrics-address"),
    value: "HOST:PORT",
    default: "off",
    help: "Where /metrics is served for Prometheus",
    remedy: "write HOST:PORT, such as :9090",
    ..METRICS
};

pub(in super::super) static METRICS_BASIC_AUTH: Key = Key {
    variable: "METRICS_BASIC_AUTH",
    value: "BASE64",
    help: "Who may read the metrics: base64 of USER:PASSWORD",
    remedy: "write it as `printf %s USER:PASSWORD | base64` does",
    secret: true,
    ..METRICS
};

pub(in super::super) static METRICS_BASIC_AUTH_FILE: Key = Key {
    variable: "METRICS_BASIC_AUTH_FILE",
    flag: Some("metrics-basic-auth-file"),
    value: "FILE",
    help: "A file with it; goes before METRICS_BASIC_AUTH",
    remedy: "name a file that this process can read",
    origin: Origin::Ours,
    ..METRICS
};

pub(in super::super) static METRICS_CERTIFICATE: Key = Key {
    variable: "METRICS_CERTIFICATE",
    flag: Some("metrics-certificate"),
    value: "BASE64",
    help: "The certificate of the metrics with its chain, base64 of PEM; needs METRICS_CERTIFICATE_KEY",
    remedy: "write it as `base64 -w0 FILE` does, or name the file in METRICS_CERTIFICATE_FILE",
    changeable: true,
    ..METRICS
};

pub(in super::super) static METRICS_CERTIFICATE_KEY: Key = Key {
    variable: "METRICS_CERTIFICATE_KEY",
    value: "BASE64",
    help: "The private key of METRICS_CERTIFICATE, base64 of PEM",
    remedy: "write it as `base64 -w0 FILE` does, or name the file in METRICS_CERTIFICATE_KEY_FILE",
    secret: true,
    changeable: true,
    ..METRICS
};

pub(in super::super) static METRICS_CERTIFICATE_FILE: Key = Key {
    variable: "METRICS_CERTIFICATE_FILE",
    flag: Some("metrics-certificate-file"),
    value: "FILE",
    help: "A file with the certificate of the metrics and its chain, PEM; needs METRICS_CERTIFICATE_KEY_FILE",
    remedy: "name the certificate's file here and its key's in METRICS_CERTIFICATE_KEY_FILE",
    changeable: true,
    ..METRICS
};

pub(in super::super) static METRICS_CERTIFICATE_KEY_FILE: Key = Key {
    variable: "METRICS_CERTIFICATE_KEY_FILE",
    flag: Some("metrics-certificate-key-file"),
    value: "FILE",
    help: "A file with the private key of METRICS_CERTIFICATE_FILE, PEM without a password",
    remedy: "name the key's file here and its certificate's in METRICS_CERTIFICATE_FILE",
    changeable: true,
    ..METRICS
};

pub(in super::super) static METRICS_CLIENT_CA: Key = Key {
    variable: "METRICS_CLIENT_CA",
    flag: Some("metrics-client-ca"),
    value: "BASE64",
    help: "Whoever reads the metrics must show a certificate that one of these authorities has signed; base64 of PEM",
    remedy: "write it as `base64 -w0 FILE` does, or name the file in METRICS_CLIENT_CA_FILE",
    changeable: true,
    ..METRICS
};

pub(in super::super) static METRICS_CLIENT_CA_FILE: Key = Key {
    variable: "METRICS_CLIENT_CA_FILE",
    flag: Some("metrics-client-ca-file"),
    value: "FILE",
    help: "A file with those authorities, PEM; goes before METRICS_CLIENT_CA",
    remedy: "name a file that this process can read",
    changeable: true,
    ..METRICS
};

pub(in super::super) static OTEL_TRACES_EXPORTER: Key = Key {
    variable: "OTEL_TRACES_EXPORTER",
    flag: Some("otel-traces-exporter"),
    value: "EXPORTER",
    default: "none",
    help: "Where traces go: otlp or none. The other OTEL_ settings count with otlp only",
    remedy: "write otlp or none",
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_ENDPOINT: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_ENDPOINT",
    flag: Some("otel-exporter-otlp-endpoint"),
    value: "URL",
    default: "http://localhost:4318 for http/protobuf, http://localhost:4317 for grpc",
    help: "The collector; /v1/traces is added for http/protobuf",
    remedy: "write a URL such as http://localhost:4318",
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    flag: Some("otel-exporter-otlp-traces-endpoint"),
    value: "URL",
    help: "The whole URL for traces; goes before OTEL_EXPORTER_OTLP_ENDPOINT",
    remedy: "write a URL such as http://localhost:4318/v1/traces",
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_PROTOCOL: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_PROTOCOL",
    flag: Some("otel-exporter-otlp-protocol"),
    value: "PROTOCOL",
    default: "grpc for port 4317, else http/protobuf",
    help: "How traces travel: grpc or http/protobuf",
    remedy: "write grpc or http/protobuf",
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    flag: Some("otel-exporter-otlp-traces-protocol"),
    value: "PROTOCOL",
    help: "The same; goes before OTEL_EXPORTER_OTLP_PROTOCOL",
    remedy: "write grpc or http/protobuf",
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_HEADERS: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_HEADERS",
    value: "LIST",
    help: "Headers of each export, NAME=VALUE with commas between them, such as a collector's token",
    remedy: "write NAME=VALUE, with commas between several",
    secret: true,
    shape: Shape::List,
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_TRACES_HEADERS: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    value: "LIST",
    help: "The same; goes before OTEL_EXPORTER_OTLP_HEADERS",
    remedy: "write NAME=VALUE, with commas between several",
    secret: true,
    shape: Shape::List,
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_TIMEOUT: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_TIMEOUT",
    flag: Some("otel-exporter-otlp-timeout"),
    value: "MILLISECONDS",
    default: "10000",
    help: "How long an export may take, in milliseconds; 1 to 600000",
    remedy: "write a number of milliseconds such as 10000",
    ..TRACES
};

pub(in super::super) static OTEL_EXPORTER_OTLP_TRACES_TIMEOUT: Key = Key {
    variable: "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    flag: Some("otel-exporter-otlp-traces-timeout"),
    value: "MILLISECONDS",
    help: "The same; goes before OTEL_EXPORTER_OTLP_TIMEOUT",
    remedy: "write a number of milliseconds such as 10000",
    ..TRACES
};

pub(in super::super) static OTEL_TRACES_SAMPLER_ARG: Key = Key {
    variable: "OTEL_TRACES_SAMPLER_ARG",
    flag: Some("otel-traces-sampler-arg"),
    value: "RATIO",
    default: "1.0",
    help: "Which part of the traces that begin here is kept, 0.0 to 1.0",
    reason: "Traces that a caller has begun follow the caller's choice",
    remedy: "write a number from 0.0 to 1.0",
    ..TRACES
};

pub(in super::super) static OTEL_RESOURCE_ATTRIBUTES: Key = Key {
    variable: "OTEL_RESOURCE_ATTRIBUTES",
    flag: Some("otel-resource-attributes"),
    value: "LIST",
    help: "What describes this process in traces, NAME=VALUE with commas between them",
    remedy: "write NAME=VALUE, with commas between several",
    shape: Shape::List,
    ..TRACES
};

pub(in super::super) static OTEL_BSP_SCHEDULE_DELAY: Key = Key {
    variable: "OTEL_BSP_SCHEDULE_DELAY",
    flag: Some("otel-bsp-schedule-delay"),
    value: "MILLISECONDS",
    default: "5000",
    help: "How long spans wait to be exported together, in milliseconds; 1 to 600000",
    remedy: "write a number of milliseconds such as 5000",
    ..TRACES
};

pub(in super::super) static OTEL_BSP_MAX_EXPORT_BATCH_SIZE: Key = Key {
    variable: "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    flag: Some("otel-bsp-max-export-batch-size"),
    value: "NUMBER",
    default: "512",
    help: "Most spans of one export; 1 to 2048",
    remedy: "write a number such as 512",
    ..TRACES
};

pub(in super::super) static OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: Key = Key {
    variable: "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    flag: Some("otel-attribute-value-length-limit"),
    value: "NUMBER",
    default: "no limit",
    help: "Most characters of a span's attribute; -1 for no limit",
    remedy: "write a number such as 1024, or -1",
    ..TRACES
};
