//! Traces: a span for each call and for what it asks of the storage plugin, sent to a collector by OTLP.
//!
//! A client that sends the W3C header `traceparent` has its trace continued, and its decision whether the trace is
//! recorded followed. Spans hold names, codes, addresses and errors, never record data or ids of records. They are
//! spans of `tracing` under a target of their own, which nothing listens to unless a collector is configured: then a
//! span is a check of one number, and nothing is allocated.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, Value};
use opentelemetry_otlp::tonic_types::metadata::MetadataMap;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tonic::Code;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tracing::field::Empty;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Layer, Registry};

use super::config::{self, TraceProtocol};
use super::metrics::Metrics;
use super::seldom::Seldom;

/// The target of spans, which no log shows and only the traces' layer takes.
pub const TARGET: &str = "databroker_trace";

/// Spans that wait to be sent; further ones are lost.
const QUEUE: usize = 8192;

/// How often a collector that does not take spans is complained of.
const COMPLAINTS: Duration = Duration::from_secs(60);

/// How much of a path that a client has chosen is shown, in characters.
const SHOWN: usize = 128;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracesError {
    /// The collector's URL is of HTTPS where that is not supported.
    #[error(
        "traces cannot be sent to {0} by http/protobuf: HTTPS is supported for grpc only; set \
         OTEL_EXPORTER_OTLP_PROTOCOL=grpc or use http:// to a collector on this machine"
    )]
    Https(String),
    /// A header for the collector is no header.
    #[error("the header {0:?} for the collector of traces is no header: check OTEL_EXPORTER_OTLP_HEADERS")]
    Header(String),
    /// Anything else that the library finds.
    #[error("traces cannot be sent to {endpoint}: {reason}; check OTEL_EXPORTER_OTLP_ENDPOINT")]
    Exporter {
        /// The collector.
        endpoint: String,
        /// What is wrong.
        reason: String,
    },
}

/// What collects spans and sends them.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to send spans, and the layer that feeds it. Call it within a tokio runtime, which does the sending. That
    /// the collector is not there is no error: it may come.
    ///
    /// # Errors
    ///
    /// [`TracesError`] where the settings are wrong.
    pub fn new(
        config: &config::Traces,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Box<dyn Layer<Registry> + Send + Sync>), TracesError> {
        let exporter = Exporter {
            inner: Arc::new(exporter(config)?),
            runtime: Handle::current(),
            metrics,
            attribute_length: config.attribute_length,
            complained: Mutex::default(),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(config.max_batch.clamp(1, QUEUE))
            .with_scheduled_delay(config.schedule_delay)
            .build();
        let resource = Resource::builder_empty()
            .with_attribute(KeyValue::new("service.name", "databroker-host"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attributes(
                config
                    .resource
                    .iter()
                    .map(|(name, value)| KeyValue::new(name.clone(), value.clone())),
            )
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(exporter).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                config.sample_ratio,
            ))))
            .with_resource(resource)
            .build();
        let spans = tracing_opentelemetry::layer()
            .with_tracer(provider.tracer("databroker-host"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO));
        Ok((Self(provider), spans.boxed()))
    }

    /// Sends what waits, for as long as this allows. It blocks.
    pub fn shutdown(&self, within: Duration) {
        if let Err(error) = self.0.shutdown_with_timeout(within) {
            tracing::warn!(%error, "the last spans were lost");
        }
    }
}

fn exporter(config: &config::Traces) -> Result<opentelemetry_otlp::SpanExporter, TracesError> {
    let builder = opentelemetry_otlp::SpanExporter::builder();
    let https = config::is_https(&config.endpoint);
    let built = match config.protocol {
        TraceProtocol::Grpc => {
            let mut builder = builder
                .with_tonic()
                .with_endpoint(&config.endpoint)
                .with_timeout(config.timeout)
                .with_metadata(metadata(&config.headers)?);
            if https {
                builder = builder.with_tls_config(ClientTlsConfig::new().with_enabled_roots());
            }
            builder.build()
        }
        TraceProtocol::HttpProtobuf if https => return Err(TracesError::Https(config.endpoint.clone())),
        TraceProtocol::HttpProtobuf => builder
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&config.endpoint)
            .with_timeout(config.timeout)
            .with_headers(config.headers.iter().cloned().collect())
            .build(),
    };
    built.map_err(|error| TracesError::Exporter {
        endpoint: config.endpoint.clone(),
        reason: error.to_string(),
    })
}

fn metadata(headers: &[(String, String)]) -> Result<MetadataMap, TracesError> {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        // The value may be a key: it is not shown.
        let refuse = || TracesError::Header(name.clone());
        let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| refuse())?;
        let value: MetadataValue<Ascii> = value.parse().map_err(|_| refuse())?;
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// Sends spans on the runtime, since the library's thread has none, and says what became of them.
#[derive(Debug)]
struct Exporter {
    inner: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
    metrics: Arc<Metrics>,
    attribute_length: Option<u32>,
    /// Whether the collector is to be complained of.
    complained: Mutex<Seldom>,
}

impl SpanExporter for Exporter {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        if let Some(length) = self.attribute_length {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let attributes = batch.iter_mut().flat_map(|span| &mut span.attributes);
            attributes.for_each(|attribute| cut(&mut attribute.value, length));
        }
        let spans = batch.len();
        let inner = Arc::clone(&self.inner);
        let sending = self.runtime.spawn(async move { inner.export(batch).await });
        let outcome = sending
            .await
            .unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.record(spans, &outcome);
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Nothing is sent yet, so that nobody else has it.
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.set_resource(resource);
        }
    }
}

impl Exporter {
    fn record(&self, spans: usize, outcome: &OTelSdkResult) {
        let add = |count: &AtomicU64| {
            count.fetch_add(u64::try_from(spans).unwrap_or(u64::MAX), Ordering::Relaxed);
        };
        let Err(error) = outcome else {
            return add(&self.metrics.spans.sent);
        };
        add(&self.metrics.spans.lost);
        if self.complained.lock().turn(Instant::now(), COMPLAINTS).is_some() {
            tracing::warn!(%error, spans, "the collector does not take traces: they are lost");
        }
    }
}

fn cut(value: &mut Value, length: usize) {
    if let Value::String(text) = value
        && let Some((end, _)) = text.as_str().char_indices().nth(length)
        && let Some(kept) = text.as_str().get(..end)
    {
        *value = Value::from(kept.to_owned());
    }
}

/// The span of a call, with the client's as its parent if it sends one.
pub fn call(path: &str, headers: &HeaderMap, peer: Option<SocketAddr>) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "call",
        otel.name = name(path),
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.method = name(path),
        rpc.grpc.status_code = Empty,
        network.peer.address = peer.map(|peer| peer.ip().to_string()),
        network.peer.port = peer.map(|peer| peer.port()),
    );
    if !span.is_disabled() {
        // It fails where the span is not for the collector.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&Headers(headers)));
    }
    span
}

/// The call has ended with this code.
pub fn ended(span: &Span, code: Code) {
    if span.is_disabled() {
        return;
    }
    span.record("rpc.grpc.status_code", i32::from(code));
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.record("otel.status_code", "ERROR");
    }
}

/// The span that is current, to be handed to another task; one of no consequence where traces are off.
pub fn current() -> Span {
    if tracing::span_enabled!(target: TARGET, Level::INFO) {
        Span::current()
    } else {
        Span::none()
    }
}

/// The span of a call of the storage plugin within that of a call; there is none for what nobody has called for.
pub fn storage(function: &'static str) -> Span {
    let within = current();
    if within.is_disabled() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        parent: &within,
        "storage",
        otel.name = %format_args!("storage/{function}"),
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// What was done within the span has failed.
pub fn failed(span: &Span, error: &dyn fmt::Display) {
    if !span.is_disabled() {
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", tracing::field::display(error));
    }
}

fn name(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    let end = path.char_indices().nth(SHOWN).map_or(path.len(), |(end, _)| end);
    path.get(..end).unwrap_or_default()
}

/// The headers of a call, as the library reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str, protocol: TraceProtocol, header: (&str, &str)) -> config::Traces {
        config::Traces {
            endpoint: endpoint.to_owned(),
            protocol,
            headers: vec![(header.0.to_owned(), header.1.to_owned())],
            timeout: Duration::from_secs(1),
            sample_ratio: 1.0,
            resource: Vec::new(),
            schedule_delay: Duration::from_secs(5),
            max_batch: 512,
            attribute_length: None,
        }
    }

    #[tokio::test]
    async fn wrong_settings_are_said_at_the_start() {
        let key = ("api-key", "swordfish");
        for (config, part) in [
            (
                config("https://collector:4318/v1/traces", TraceProtocol::HttpProtobuf, key),
                "HTTPS is supported for grpc only",
            ),
            (
                config("not a URL", TraceProtocol::Grpc, key),
                "check OTEL_EXPORTER_OTLP_ENDPOINT",
            ),
            (
                config("http://127.0.0.1:4317", TraceProtocol::Grpc, ("a b", "swordfish")),
                "check OTEL_EXPORTER_OTLP_HEADERS",
            ),
            (
                config("http://127.0.0.1:4317", TraceProtocol::Grpc, ("a", "sword\nfish")),
                "check OTEL_EXPORTER_OTLP_HEADERS",
            ),
        ] {
            let error = Traces::new(&config, Arc::default())
                .map(|_| ())
                .map_err(|error| error.to_string());
            assert!(
                error
                    .as_ref()
                    .is_err_and(|error| error.contains(part) && !error.contains("fish")),
                "{error:?}"
            );
        }
    }

    #[test]
    fn names_and_texts_are_cut_between_characters() {
        assert_eq!(name("/a.B/C"), "a.B/C");
        assert_eq!(name(""), "");
        assert_eq!(name(&"ä".repeat(1000)).chars().count(), SHOWN);
        for (length, expected) in [(0, ""), (2, "äö"), (3, "äöü"), (100, "äöü")] {
            let mut value = Value::from("äöü");
            cut(&mut value, length);
            assert_eq!(value.as_str(), expected);
        }
    }

    #[test]
    fn there_is_no_span_where_nobody_listens() {
        let headers = HeaderMap::new();
        assert!(call("/a.B/C", &headers, None).is_disabled());
        assert!(storage("get").is_disabled());
        assert!(current().is_disabled());
    }
}
