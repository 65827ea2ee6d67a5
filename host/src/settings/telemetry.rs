//! The settings of logs, health, metrics and traces.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tracing::level_filters::LevelFilter;

use super::keys::{self, Key};
use super::reader::Reader;
use super::{Address, address, bounded, certificates};
use crate::telemetry::config::{BasicAuth, Config, LogFormat, Logs, Metrics, TraceProtocol, Traces, is_https};

/// The ports that collectors listen on.
const GRPC_PORT: &str = ":4317";
const HTTP_ENDPOINT: &str = "http://localhost:4318";
const GRPC_ENDPOINT: &str = "http://localhost:4317";

/// What is added to a collector's URL for traces over HTTP.
const TRACES_PATH: &str = "/v1/traces";

/// The longest export and delay, in milliseconds.
const LONGEST: u64 = 600_000;

/// Most spans of an export.
const MOST_SPANS: usize = 2048;

/// Reads them all.
pub(super) fn read(reader: &mut Reader<'_>) -> Config {
    Config {
        logs: Logs {
            level: reader.parsed(&keys::LOG_LEVEL, LevelFilter::INFO, log_level),
            format: reader.parsed(&keys::LOG_FORMAT, LogFormat::Text, |text| match text {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err(format!("{text:?} is not a format")),
            }),
        },
        health: health(reader),
        metrics: metrics(reader),
        traces: traces(reader),
    }
}

/// Pomerium's names of levels.
fn log_level(text: &str) -> Result<LevelFilter, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "critical" | "fatal" | "panic" => LevelFilter::ERROR,
        "off" | "none" | "disabled" => LevelFilter::OFF,
        _ => return Err(format!("{text:?} is not a level")),
    })
}

/// Where probes ask unless it is said.
pub fn default_probes() -> Option<Address> {
    Address::parse(keys::HEALTH_CHECK_ADDR.default).ok()
}

fn health(reader: &mut Reader<'_>) -> Option<Address> {
    let key = &keys::HEALTH_CHECK_ADDR;
    // An empty variable is none, but somebody who writes an empty text in the file or as a flag means it.
    let place = reader.place(key);
    if reader.find(key).is_some() && reader.given(key).is_none() && place != key.variable {
        return None;
    }
    reader.parsed(key, default_probes(), |text| match text {
        "off" => Ok(None),
        text => address(text).map(Some),
    })
}

fn metrics(reader: &mut Reader<'_>) -> Option<Metrics> {
    let key = &keys::METRICS_ADDRESS;
    let address = reader.parsed(key, None, |text| match text {
        "off" => Ok(None),
        text => address(text).map(Some),
    });
    let basic_auth = basic_auth(reader);
    let tls = certificates::metrics(reader);
    if address.is_none() && !reader.has_mistake_of(key) {
        let given = [
            (&keys::METRICS_BASIC_AUTH, basic_auth.is_some()),
            (&keys::METRICS_BASIC_AUTH_FILE, basic_auth.is_some()),
            (&keys::METRICS_CERTIFICATE, tls.is_some()),
            (&keys::METRICS_CERTIFICATE_FILE, tls.is_some()),
        ];
        for (key, counts) in given {
            if counts && reader.given(key).is_some() {
                reader.mistake(
                    key,
                    "there are no metrics to protect".to_owned(),
                    "set METRICS_ADDRESS too, or delete it",
                );
            }
        }
    }
    Some(Metrics {
        address: address?,
        basic_auth,
        tls,
    })
}

fn basic_auth(reader: &mut Reader<'_>) -> Option<BasicAuth> {
    let (key, text) = reader.text_or_file(&keys::METRICS_BASIC_AUTH, &keys::METRICS_BASIC_AUTH_FILE)?;
    let decoded = STANDARD
        .decode(text.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok());
    let remedy = keys::METRICS_BASIC_AUTH.remedy;
    match decoded.as_deref().map(|text| text.split_once(':')) {
        Some(Some((user, password))) => {
            return Some(BasicAuth {
                user: user.to_owned(),
                password: password.to_owned(),
            });
        }
        Some(None) => reader.mistake(key, "there is no : between a name and a password".to_owned(), remedy),
        None => reader.mistake(key, "it is not base64 of a text".to_owned(), remedy),
    }
    None
}

fn traces(reader: &mut Reader<'_>) -> Option<Traces> {
    let on = reader.parsed(&keys::OTEL_TRACES_EXPORTER, false, |text| match text {
        "otlp" => Ok(true),
        "none" | "noop" => Ok(false),
        _ => Err(format!("{text:?} is not an exporter")),
    });
    if !on {
        // They are often set for all programs of a machine: what is wrong with them is not looked at.
        for key in [
            &keys::OTEL_EXPORTER_OTLP_ENDPOINT,
            &keys::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
        ] {
            if let Some(place) = reader.given(key) {
                reader.inform(format!(
                    "{place}: traces are off: set OTEL_TRACES_EXPORTER=otlp for them"
                ));
            }
        }
        return None;
    }
    let general = reader.parsed(&keys::OTEL_EXPORTER_OTLP_ENDPOINT, None, |text| url(text).map(Some));
    let whole = reader.parsed(&keys::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, None, |text| {
        url(text).map(Some)
    });
    let protocol = first(
        reader,
        [
            &keys::OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
            &keys::OTEL_EXPORTER_OTLP_PROTOCOL,
        ],
        protocol,
    );
    let protocol = protocol.unwrap_or_else(|| fitting(whole.as_deref().or(general.as_deref())));
    let endpoint = whole.unwrap_or_else(|| match protocol {
        TraceProtocol::Grpc => general.unwrap_or_else(|| GRPC_ENDPOINT.to_owned()),
        TraceProtocol::HttpProtobuf => {
            let base = general.unwrap_or_else(|| HTTP_ENDPOINT.to_owned());
            format!("{}{TRACES_PATH}", base.trim_end_matches('/'))
        }
    });
    if protocol == TraceProtocol::HttpProtobuf && is_https(&endpoint) {
        let key = [
            &keys::OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
            &keys::OTEL_EXPORTER_OTLP_ENDPOINT,
        ]
        .into_iter()
        .find(|key| reader.given(key).is_some())
        .unwrap_or(&keys::OTEL_EXPORTER_OTLP_ENDPOINT);
        reader.mistake(
            key,
            "traces are sent over HTTPS by grpc only, and the protocol is http/protobuf".to_owned(),
            "set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or use http:// to a collector on this machine",
        );
    }
    let headers = headers(reader, &keys::OTEL_EXPORTER_OTLP_TRACES_HEADERS);
    let general_headers = self::headers(reader, &keys::OTEL_EXPORTER_OTLP_HEADERS);
    let timeout = first(
        reader,
        [
            &keys::OTEL_EXPORTER_OTLP_TRACES_TIMEOUT,
            &keys::OTEL_EXPORTER_OTLP_TIMEOUT,
        ],
        |text| bounded(text, 1, LONGEST),
    );
    let delay = reader.or_default(&keys::OTEL_BSP_SCHEDULE_DELAY, |text| bounded(text, 1, LONGEST));
    let batch = reader.or_default(&keys::OTEL_BSP_MAX_EXPORT_BATCH_SIZE, |text| {
        bounded(text, 1, MOST_SPANS)
    });
    Some(Traces {
        endpoint,
        protocol,
        headers: if headers.is_empty() { general_headers } else { headers },
        timeout: Duration::from_millis(timeout.unwrap_or(10_000)),
        sample_ratio: reader.or_default(&keys::OTEL_TRACES_SAMPLER_ARG, ratio),
        resource: pairs(reader, &keys::OTEL_RESOURCE_ATTRIBUTES),
        schedule_delay: Duration::from_millis(delay),
        max_batch: batch,
        attribute_length: reader.parsed(&keys::OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT, None, |text| match text {
            "-1" => Ok(None),
            text => bounded(text, 0, u32::MAX).map(Some),
        }),
    })
}

/// The value of the first of these settings that is set. What is wrong with the others is told too.
fn first<T>(reader: &mut Reader<'_>, keys: [&'static Key; 2], parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
    let [one, other] = keys.map(|key| reader.parsed(key, None, |text| parse(text).map(Some)));
    one.or(other)
}

fn protocol(text: &str) -> Result<TraceProtocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "grpc" => Ok(TraceProtocol::Grpc),
        "http/protobuf" => Ok(TraceProtocol::HttpProtobuf),
        _ => Err(format!("{text:?} is not a protocol")),
    }
}

/// The protocol that collectors speak on this port.
fn fitting(endpoint: Option<&str>) -> TraceProtocol {
    let authority = endpoint.and_then(|endpoint| endpoint.split('/').nth(2));
    if authority.is_some_and(|authority| authority.ends_with(GRPC_PORT)) {
        TraceProtocol::Grpc
    } else {
        TraceProtocol::HttpProtobuf
    }
}

fn url(text: &str) -> Result<String, String> {
    // It may hold a password: not shown.
    let uri: http::Uri = text.parse().map_err(|_| "it is not a URL".to_owned())?;
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("it has credentials in it, which belong into OTEL_EXPORTER_OTLP_HEADERS".to_owned());
    }
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(text.to_owned()),
        _ => Err("it is not a URL with http:// or https://".to_owned()),
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (0.0..=1.0).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{text} is out of bounds: 0.0 to 1.0"))
    }
}

/// Names and values that both protocols can send as headers. Neither is shown, since a mistyped list can have a secret
/// in either.
fn headers(reader: &mut Reader<'_>, key: &'static Key) -> Vec<(String, String)> {
    let headers = pairs(reader, key);
    for (index, (name, value)) in headers.iter().enumerate() {
        let name = name.to_ascii_lowercase().parse::<MetadataKey<Ascii>>();
        let value = value.parse::<MetadataValue<Ascii>>();
        if name.is_err() || value.is_err() {
            let part = if name.is_err() { "name" } else { "value" };
            let wrong = format!(
                "the {part} in part {} cannot be sent as a header",
                index.saturating_add(1)
            );
            reader.mistake(key, wrong, key.remedy);
        }
    }
    headers
}

/// Names and values with = between them.
fn pairs(reader: &mut Reader<'_>, key: &'static Key) -> Vec<(String, String)> {
    let parts = reader.list(key);
    let pair = |part: &String| {
        let (name, value) = part.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    let read: Vec<_> = parts.iter().filter_map(pair).collect();
    if read.len() < parts.len() {
        reader.mistake(key, "it has a part that is not NAME=VALUE".to_owned(), key.remedy);
    }
    read
}
