//! What an operator sees of a running process: logs, metrics, traces and health.
//!
//! [`start`] makes all of it from the settings before anything else runs. Who has something to tell is handed
//! [`Instruments`] and calls one function of it; nothing here knows how the rest works, and nothing else knows how it
//! is told. Two listeners of HTTP, for metrics and for health, are served by [`http::serve`].

pub mod config;
pub mod health;
pub mod http;
mod logs;
mod measured;
pub mod metrics;
pub mod seldom;
pub mod traces;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use config::Config;
pub use logs::LostLines;
pub use traces::TracesError;

use crate::backend::Backend;
use health::Board;
use logs::Log;
use measured::Measured;
use metrics::Metrics;
use traces::Traces;

/// How long the last spans may take to be sent.
const FLUSH: Duration = Duration::from_secs(3);

/// What parts of the process tell what happens to. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Instruments {
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// How each part is.
    pub health: Arc<Board>,
}

impl Instruments {
    /// The same store, measured from now on. It has just been opened.
    pub fn measure(&self, backend: Arc<dyn Backend>) -> Arc<dyn Backend> {
        self.metrics.observe_backend(&backend);
        Arc::new(Measured::new(backend, self.clone()))
    }
}

/// Logs and traces that are running. The last lines are written when it is dropped.
pub struct Telemetry {
    /// What parts of the process tell what happens to.
    pub instruments: Instruments,
    log: Log,
    traces: Option<Traces>,
    /// Speaks of lost lines.
    reporting: AbortHandle,
}

/// Begins to log, and to send traces if they are wanted. Call it within a tokio runtime, once in a process: a second
/// call has instruments of its own, but the first one's log goes on.
///
/// # Errors
///
/// [`TracesError`] where the settings of traces are wrong.
pub fn start(config: &Config) -> Result<Telemetry, TracesError> {
    let instruments = Instruments::default();
    let (log, lines) = Log::new(&config.logs);
    let mut layers = vec![lines];
    let mut traces = None;
    if let Some(config) = &config.traces {
        let (running, spans) = Traces::new(config, Arc::clone(&instruments.metrics))?;
        traces = Some(running);
        layers.push(spans);
    }
    // It fails where there is a log already.
    let _ = tracing_subscriber::registry().with(layers).try_init();
    instruments.metrics.observe_log(log.lost());
    let reporting = tokio::spawn(logs::report_lost(log.lost())).abort_handle();
    Ok(Telemetry {
        instruments,
        log,
        traces,
        reporting,
    })
}

impl Telemetry {
    /// Logs what is of this level or above from now on.
    pub fn set_level(&self, level: LevelFilter) {
        self.log.set_level(level);
    }

    /// Counts the lines of the log that were lost.
    pub fn log_lines_lost(&self) -> LostLines {
        self.log.lost()
    }

    /// Sends the spans that wait, for a few seconds at most, and writes the last lines of the log.
    pub async fn shutdown(mut self) {
        if let Some(traces) = self.traces.take() {
            // It blocks until the runtime's other threads have sent them.
            let _ = tokio::task::spawn_blocking(move || traces.shutdown(FLUSH)).await;
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        self.reporting.abort();
    }
}
