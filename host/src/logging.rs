//! Logs: lines of text on standard error.
//!
//! A thread of its own writes them, from a queue that drops lines where it is full: a pipe that nobody drains must stop
//! neither a call nor the shutdown.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Starts to log what is of this level or above. Libraries get to say what went wrong; all that they do is logged at `trace`
/// only. A second call changes nothing. The last lines are written when what is returned is dropped.
#[must_use = "the last lines are written when it is dropped"]
pub fn start(level: LevelFilter) -> WorkerGuard {
    let (queue, guard): (NonBlocking, WorkerGuard) =
        NonBlockingBuilder::default().lossy(true).finish(std::io::stderr());
    let libraries = if level == LevelFilter::TRACE {
        LevelFilter::TRACE
    } else {
        level.min(LevelFilter::WARN)
    };
    let targets = Targets::new()
        .with_target("databroker_host", level)
        .with_default(libraries);
    // A terminal gets colours, a file does not.
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(queue);
    // It fails where a test has started to log before.
    let _ = tracing_subscriber::registry().with(targets).with(lines).try_init();
    guard
}
