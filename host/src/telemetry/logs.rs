//! Logs: lines of text or JSON on standard error.
//!
//! A thread of its own writes them, from a queue that drops lines where it is full: a pipe that nobody drains, or a
//! disk that is full, must stop neither a call nor the shutdown. How many were lost is a metric and, once in a while, a
//! line. The level can be changed while the process runs; the format is what programs that read the log count on, and
//! stays.
//!
//! What a library complains of may be of a client's making, such as broken HTTP/2, and then it comes as often as the
//! client likes. So each of its complaints is a line only once in a while.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{FilterExt as _, Targets};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use super::config::{LogFormat, Logs};
use super::seldom::Seldom;
use super::traces;

/// How many lines wait to be written before further ones are lost. The room for each is made at the start, before anything is served:
/// what it costs, in time and memory, is a sixteenth of the library's own choice.
const WAITING: usize = 1 << 13;

/// How often lost lines are spoken of.
const INTERVAL: Duration = Duration::from_secs(60);

/// How often one complaint of a library is a line.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// The target of this program's own lines.
const OWN: &str = "databroker_host";

/// The target of what a database says beside its answers. A plugin's statement can have it say anything at any length, parts of
/// records too.
const NOTICES: &str = "sqlx::postgres::notice";

/// The log. The last lines are written when it is dropped.
pub struct Log {
    /// Changes what is logged.
    filter: reload::Handle<Targets, Registry>,
    lost: LostLines,
    /// Writes the last lines.
    _writer: WorkerGuard,
}

impl Log {
    /// A log, and the layer that feeds it from events.
    pub fn new(config: &Logs) -> (Self, Box<dyn Layer<Registry> + Send + Sync>) {
        let unwritten = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            writer: io::stderr(),
            unwritten: Arc::clone(&unwritten),
        };
        let (queue, writer): (NonBlocking, WorkerGuard) = NonBlockingBuilder::default()
            .buffered_lines_limit(WAITING)
            .lossy(true)
            .finish(lines);
        let dropped = queue.error_counter();
        let (targets, filter) = reload::Layer::new(targets(config.level));
        // A terminal gets colours, a file does not.
        let lines = layer(config.format, queue, io::stderr().is_terminal());
        let lines = lines.with_filter(targets.and(Complaints::default()));
        let log = Self {
            filter,
            lost: LostLines { dropped, unwritten },
            _writer: writer,
        };
        (log, lines.boxed())
    }

    /// Logs what is of this level or above from now on.
    pub fn set_level(&self, level: LevelFilter) {
        // It fails where the log is no longer there, and with it whoever might read it.
        let _ = self.filter.reload(targets(level));
    }

    /// Counts the lines that were lost.
    pub fn lost(&self) -> LostLines {
        self.lost.clone()
    }
}

/// How many lines were lost. Clones share the numbers.
#[derive(Clone, Debug)]
pub struct LostLines {
    /// There was no room in the queue.
    dropped: ErrorCounter,
    /// Standard error did not take them.
    unwritten: Arc<AtomicU64>,
}

impl LostLines {
    /// All of them since the start.
    pub fn count(&self) -> u64 {
        let dropped = u64::try_from(self.dropped.dropped_lines()).unwrap_or(u64::MAX);
        dropped.saturating_add(self.unwritten.load(Ordering::Relaxed))
    }
}

/// Writes lines, and counts those that cannot be written, which the thread that writes them keeps to itself.
struct Lines<W> {
    writer: W,
    unwritten: Arc<AtomicU64>,
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.writer.write_all(line).inspect_err(|_| {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Lets each complaint of a library through once in a while.
#[derive(Default)]
struct Complaints(Mutex<HashMap<Identifier, Seldom>>);

impl<S> Filter<S> for Complaints {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn callsite_enabled(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::always()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::WARN || metadata.target().starts_with(OWN) {
            return true;
        }
        // There are as many places to complain from as the libraries have.
        let mut places = self.0.lock();
        let place = places.entry(metadata.callsite()).or_default();
        place.turn(Instant::now(), COMPLAINTS).is_some()
    }
}

/// Libraries get to say what went wrong; all that they do is logged at `trace` only.
fn targets(level: LevelFilter) -> Targets {
    let libraries = if level == LevelFilter::TRACE {
        LevelFilter::TRACE
    } else {
        level.min(LevelFilter::WARN)
    };
    Targets::new()
        .with_target(OWN, level)
        .with_target(traces::TARGET, LevelFilter::OFF)
        .with_target(NOTICES, LevelFilter::OFF)
        .with_default(libraries)
}

/// What makes lines of events. The fields of JSON are described in `docs/logs.md`.
fn layer<S, W>(format: LogFormat, writer: W, colours: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    }
}

/// Says once in a while how many lines were lost since, for as long as it is polled.
pub async fn report_lost(lost: LostLines) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut told = 0;
    loop {
        ticks.tick().await;
        let all = lost.count();
        if all > told {
            let lines = all - told;
            tracing::warn!(
                lines,
                "log lines were lost: standard error was not read fast enough, or could not be written"
            );
            told = all;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use serde_json::Value;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    /// What a log of this format has for these events; the second half after another level was set.
    fn logged(format: LogFormat, events: impl Fn()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let (filter, handle) = reload::Layer::new(targets(LevelFilter::INFO));
        let lines = layer(format, move || writer.clone(), false).with_filter(filter.and(Complaints::default()));
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, || {
            events();
            handle.reload(targets(LevelFilter::DEBUG)).unwrap();
            events();
        });
        written.text()
    }

    #[test]
    fn the_level_can_be_changed_while_it_runs() {
        let text = logged(LogFormat::Text, || {
            tracing::debug!("in detail");
            tracing::info!("in short");
            tracing::info!(target: "some_library", "chatter");
            tracing::warn!(target: "some_library", "trouble");
            tracing::warn!(target: NOTICES, "what a statement has raised");
            tracing::info_span!(target: traces::TARGET, "call").in_scope(|| tracing::error!("within a span"));
        });
        let counts = ["in detail", "in short", "chatter", "trouble", "within a span", "raised"]
            .map(|part| text.lines().filter(|line| line.contains(part)).count());
        // The library complains twice from one place.
        assert_eq!(counts, [1, 2, 0, 1, 2, 0], "{text}");
        assert!(!text.contains("call"), "spans are for traces: {text}");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        /// A disk that is full.
        struct Full;

        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let unwritten = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            writer: Full,
            unwritten: Arc::clone(&unwritten),
        };
        let (mut queue, writer) = NonBlockingBuilder::default().lossy(true).finish(lines);
        let lost = LostLines {
            dropped: queue.error_counter(),
            unwritten,
        };
        for _ in 0..3 {
            queue.write_all(b"a line\n").unwrap();
        }
        drop(writer);
        assert_eq!(lost.count(), 3);
    }

    #[test]
    fn json_has_the_documented_fields_at_the_top() {
        let text = logged(LogFormat::Json, || {
            tracing::warn!(
                method = "/a.B/C",
                peer = tracing::field::display("[::1]:1"),
                "call\nfailed \"so\""
            );
        });
        assert_eq!(text.lines().count(), 2, "a line for each event: {text}");
        let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "call\nfailed \"so\"");
        assert_eq!(line["target"], "databroker_host::telemetry::logs::tests");
        assert_eq!(line["method"], "/a.B/C");
        assert_eq!(line["peer"], "[::1]:1");
        let time = line["timestamp"].as_str().unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{time}");
    }
}
