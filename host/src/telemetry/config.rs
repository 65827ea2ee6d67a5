//! What an operator can set of logs, metrics, health and traces, checked.
//!
//! Plain data: where it comes from is the business of the settings, and each part says what it makes of it. What is
//! secret has a `Debug` that shows nothing of it.

use std::fmt;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tracing::level_filters::LevelFilter;

use crate::address::Address;
use crate::tls;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// What is logged, and how.
    pub logs: Logs,
    /// Where Prometheus asks for metrics; none turns that off.
    pub metrics: Option<Metrics>,
    /// Where probes ask over HTTP; none turns that off.
    pub health: Option<Address>,
    /// Where traces go; none turns them off.
    pub traces: Option<Traces>,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logs {
    /// What is of this level or above.
    pub level: LevelFilter,
    /// As what.
    pub format: LogFormat,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            level: LevelFilter::INFO,
            format: LogFormat::Text,
        }
    }
}

/// As what a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object of JSON in each line.
    Json,
}

/// Where Prometheus asks for metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Where to listen.
    pub address: Address,
    /// Who may ask; everybody if there is none.
    pub basic_auth: Option<BasicAuth>,
    /// Certificates; plain HTTP if there are none.
    pub tls: Option<tls::Source>,
}

/// A name and a password. `Debug` shows nothing of them.
#[derive(Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// The name; it has no colon.
    pub user: String,
    /// The password.
    pub password: String,
}

impl BasicAuth {
    /// Says whether these are the credentials `USER:PASSWORD`, in a time that depends on the length of what was offered
    /// and on nothing else.
    pub fn matches(&self, offered: &[u8]) -> bool {
        // Digests are of one length, which the comparison needs.
        let expected = Sha256::new()
            .chain_update(self.user.as_bytes())
            .chain_update(b":")
            .chain_update(self.password.as_bytes())
            .finalize();
        expected.ct_eq(&Sha256::digest(offered)).into()
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BasicAuth").finish_non_exhaustive()
    }
}

/// Where traces go, and how many.
#[derive(Clone, PartialEq)]
pub struct Traces {
    /// The collector, a URL of `http` or `https`; for HTTP the whole of it, with the path that takes traces.
    pub endpoint: String,
    /// What the collector speaks.
    pub protocol: TraceProtocol,
    /// Headers for the collector, which mostly hold a key: names and values.
    pub headers: Vec<(String, String)>,
    /// How long the collector may take to accept spans.
    pub timeout: Duration,
    /// How many of the traces that begin here are recorded, from 0 to 1. Those that a client has begun follow the
    /// client.
    pub sample_ratio: f64,
    /// What every span says of this process: names and values.
    pub resource: Vec<(String, String)>,
    /// How long spans are collected before they are sent.
    pub schedule_delay: Duration,
    /// Most spans that are sent at once; at least 1.
    pub max_batch: usize,
    /// Most characters of a text in a span; none for no limit.
    pub attribute_length: Option<u32>,
}

/// Whether a URL is one of HTTPS, however that is written.
pub(crate) fn is_https(endpoint: &str) -> bool {
    endpoint
        .split_once("://")
        .is_some_and(|(scheme, _)| scheme.eq_ignore_ascii_case("https"))
}

/// What a collector of traces speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP as protobuf over HTTP/1.1.
    HttpProtobuf,
}

impl fmt::Debug for Traces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Traces")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("sample_ratio", &self.sample_ratio)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credentials() -> BasicAuth {
        BasicAuth {
            user: "scraper".to_owned(),
            password: "pass:word".to_owned(),
        }
    }

    #[test]
    fn credentials_match_only_themselves() {
        for (offered, expected) in [
            ("scraper:pass:word", true),
            ("scraper:pass:wor", false),
            ("scraper:pass:word ", false),
            ("Scraper:pass:word", false),
            ("scraper", false),
            (":", false),
            ("", false),
        ] {
            assert_eq!(credentials().matches(offered.as_bytes()), expected, "{offered:?}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let config = Config {
            metrics: Some(Metrics {
                address: Address::default(),
                basic_auth: Some(credentials()),
                tls: None,
            }),
            traces: Some(Traces {
                endpoint: "http://127.0.0.1:4317".to_owned(),
                protocol: TraceProtocol::Grpc,
                headers: vec![("api-key".to_owned(), "swordfish".to_owned())],
                timeout: Duration::from_secs(10),
                sample_ratio: 1.0,
                resource: Vec::new(),
                schedule_delay: Duration::from_secs(5),
                max_batch: 512,
                attribute_length: None,
            }),
            ..Config::default()
        };
        let shown = format!("{config:?}");
        for secret in ["scraper", "pass:word", "swordfish"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert!(shown.contains("4317"), "{shown}");
    }
}
