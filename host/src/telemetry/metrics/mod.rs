//! Metrics for Prometheus, at `/metrics`.
//!
//! Two kinds: what happens is counted where it happens, by atomic numbers that are there from the beginning; what is,
//! such as the hub's size or the plugin's memory, is asked for when a scrape comes. Neither takes a lock or memory for
//! an event. Names are Pomerium's where the meaning is the same, so that its dashboards work, and ours are
//! `databroker_` and `plugin_`; `docs/metrics.md` has all of them, held against a scrape by a test. No label takes a
//! value that a client can choose at will.

mod calls;
mod database;
mod histogram;
mod lag;
mod page;
mod process;
mod refused;
mod storage;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::registry::Registry;

pub use calls::{Calls, CountedCall};
pub use histogram::{DURATIONS, Histogram, Reading};
pub use lag::{Lag, Owed};
pub use refused::{Refusal, Refused};
pub use storage::{Function, Functions, Storage};

use super::config::BasicAuth;
use super::logs::LostLines;
use crate::backend::Backend;
use crate::broker::Broker;
use crate::tls::Certificates;
use page::Page;

/// The label `service` of the metrics that have Pomerium's names: what a Pomerium that is only a databroker says there.
const SERVICE: &str = "pomerium-databroker";

/// When the process began, or little later.
struct Start(SystemTime);

impl Default for Start {
    fn default() -> Self {
        Self(SystemTime::now())
    }
}

/// All metrics of a process. One is made at the start and handed to whoever has something to count.
#[derive(Default)]
pub struct Metrics {
    /// gRPC calls.
    pub calls: Calls,
    /// The storage plugin.
    pub storage: Storage,
    /// Calls that were not let in.
    pub refused: Refused,
    /// Calls that were let in with the shared secret from before.
    pub previous_secret_uses: AtomicU64,
    /// Spans that a collector has taken, and that were lost.
    pub spans: Spans,
    start: Start,
    broker: OnceLock<Weak<Broker>>,
    backend: OnceLock<Weak<dyn Backend>>,
    connections: OnceLock<Box<dyn Fn() -> u64 + Send + Sync>>,
    /// By listener.
    certificates: Mutex<Vec<(&'static str, Arc<Certificates>)>>,
    log_lines_lost: OnceLock<LostLines>,
}

/// Spans on their way to a collector.
#[derive(Debug, Default)]
pub struct Spans {
    /// It has taken them.
    pub sent: AtomicU64,
    /// It has not, or nobody was there.
    pub lost: AtomicU64,
}

impl Metrics {
    /// Asks this broker for its hub and its streams at each scrape. Only the first one counts.
    pub fn observe_broker(&self, broker: &Arc<Broker>) {
        let _ = self.broker.set(Arc::downgrade(broker));
    }

    /// Asks this store for what it uses at each scrape. Only the first one counts.
    pub fn observe_backend(&self, backend: &Arc<dyn Backend>) {
        let _ = self.backend.set(Arc::downgrade(backend));
    }

    /// Asks this for the number of connections at each scrape. Only the first one counts.
    pub fn observe_connections(&self, open: impl Fn() -> u64 + Send + Sync + 'static) {
        let _ = self.connections.set(Box::new(open));
    }

    /// Asks these certificates when they expire at each scrape. The listener is one of a few names.
    pub fn observe_certificates(&self, listener: &'static str, certificates: &Arc<Certificates>) {
        self.certificates.lock().push((listener, Arc::clone(certificates)));
    }

    /// Shows this number as that of the lines that the log has lost. Only the first one counts.
    pub fn observe_log(&self, lost: LostLines) {
        let _ = self.log_lines_lost.set(lost);
    }

    /// Everything, in the text format of Prometheus.
    ///
    /// # Errors
    ///
    /// Never: a text has room for all of it.
    pub fn text(self: &Arc<Self>) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Arc::clone(self)));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn encode_all(&self, page: &mut Page<'_>) -> fmt::Result {
        page.gauges(
            "databroker_build_info",
            "The program; always 1.",
            [(vec![("version", env!("CARGO_PKG_VERSION").into())], 1)],
        )?;
        self.calls.encode(page)?;
        self.refused.encode(page)?;
        page.counter(
            "databroker_previous_secret_uses",
            "Calls that were let in with the previous shared secret.",
            self.previous_secret_uses.load(Ordering::Relaxed),
        )?;
        let expiries: Vec<_> = self
            .certificates
            .lock()
            .iter()
            .filter_map(|(listener, certificates)| {
                let expiry = certificates.expiry()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                Some((vec![("listener", (*listener).into())], expiry.as_secs()))
            })
            .collect();
        page.gauges(
            "databroker_certificate_expiry_time_seconds",
            "When the first certificate of a listener expires, in seconds since the Unix epoch.",
            expiries,
        )?;
        if let Some(connections) = self.connections.get() {
            page.gauge(
                "databroker_connections",
                "Connections of gRPC clients that are open.",
                connections(),
            )?;
        }
        if let Some(broker) = self.broker.get().and_then(Weak::upgrade) {
            let figures = broker.figures();
            page.gauge(
                "databroker_latest_version",
                "The version of the newest change.",
                figures.latest_version,
            )?;
            page.gauge(
                "databroker_hub_bytes",
                "Bytes of recent changes that are held for streams.",
                figures.hub_bytes,
            )?;
            page.gauge(
                "databroker_hub_changes",
                "Recent changes that are held for streams.",
                figures.hub_changes,
            )?;
            page.gauge(
                "databroker_stream_lag_versions",
                "How many versions the oldest change that any Sync stream has yet to send is behind the newest.",
                figures.lag_versions,
            )?;
        }
        let runtime = self.backend.get().and_then(Weak::upgrade);
        let runtime = runtime.map(|backend| backend.runtime()).unwrap_or_default();
        self.storage.encode(page, &runtime)?;
        if let Some(database) = &runtime.database {
            database::encode(page, database)?;
        }
        if let Some(lost) = self.log_lines_lost.get() {
            page.counter(
                "databroker_log_lines_dropped",
                "Lines of the log that were lost: standard error was not read fast enough, or could not be written.",
                lost.count(),
            )?;
        }
        page.counter(
            "databroker_trace_spans_sent",
            "Spans that the collector of traces has taken.",
            self.spans.sent.load(Ordering::Relaxed),
        )?;
        page.counter(
            "databroker_trace_spans_lost",
            "Spans that the collector of traces has not taken.",
            self.spans.lost.load(Ordering::Relaxed),
        )?;
        process::encode(page, self.start.0)
    }
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_all(&mut Page::new(encoder))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Scraped {
    metrics: Arc<Metrics>,
    basic_auth: Option<Arc<BasicAuth>>,
}

/// What answers scrapes: `/metrics`, for everybody or for whoever has the credentials.
pub fn router(metrics: Arc<Metrics>, basic_auth: Option<BasicAuth>) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(Scraped {
        metrics,
        basic_auth: basic_auth.map(Arc::new),
    })
}

async fn scrape(State(scraped): State<Scraped>, headers: HeaderMap) -> Response {
    if let Some(expected) = &scraped.basic_auth
        && !offered(&headers).is_some_and(|offered| expected.matches(&offered))
    {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"metrics\", charset=\"UTF-8\"")];
        return (
            StatusCode::UNAUTHORIZED,
            challenge,
            "the credentials are missing or wrong\n",
        )
            .into_response();
    }
    match scraped.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus_text::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The `USER:PASSWORD` of a request.
fn offered(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    STANDARD.decode(credentials.trim()).ok()
}
