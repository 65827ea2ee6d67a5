//! What a plugin says: its log lines, its standard output and its standard error, as events of the host's log.
//!
//! A plugin decides neither how much is logged nor what a terminal makes of it: lines are cut, control characters are
//! taken out, and beyond a steady rate lines are counted instead of written. The end of what was said on standard error
//! is kept, since that is where a panic's message stands and nowhere else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use super::Limits;
use super::convert;

/// A line of standard output or error without an end is written in pieces of this many bytes.
const MAX_LINE: usize = 4096;

/// How many bytes of standard error are kept for the report of a trap.
const KEPT: usize = 4096;

/// How many lines are kept for the report of a trap.
const KEPT_LINES: usize = 50;

/// How many bytes a plugin may write to its standard output at once.
const PERMIT: usize = 64 * 1024;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The log of one plugin's instance. Clones share it.
#[derive(Clone)]
pub(super) struct PluginLog(Arc<Shared>);

struct Shared {
    /// The plugin's name, which every line carries.
    plugin: String,
    /// How many more lines may come, and what was left out.
    allowance: Mutex<Allowance>,
    /// The end of standard error.
    kept: Mutex<VecDeque<u8>>,
    /// The last lines that were written.
    lines: Mutex<VecDeque<String>>,
    /// All lines that were left out, for metrics.
    dropped: AtomicU64,
}

impl PluginLog {
    pub(super) fn new(plugin: &str, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            plugin: plugin.to_owned(),
            allowance: Mutex::new(Allowance::new(limits, Instant::now())),
            kept: Mutex::default(),
            lines: Mutex::default(),
            dropped: AtomicU64::new(0),
        }))
    }

    /// Writes a line, if there is room for it.
    pub(super) fn write(&self, level: Level, message: &str) {
        // What the operator does not ask for costs nothing of the allowance.
        if !enabled(level) {
            return;
        }
        let Some(left_out) = self.0.allowance.lock().take(Instant::now()) else {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let plugin = &self.0.plugin;
        if left_out > 0 {
            tracing::warn!(plugin, left_out, "the plugin logs too much; lines were left out");
        }
        let message = convert::text(message);
        match level {
            Level::Trace => tracing::trace!(plugin, "{message}"),
            Level::Debug => tracing::debug!(plugin, "{message}"),
            Level::Info => tracing::info!(plugin, "{message}"),
            Level::Warn => tracing::warn!(plugin, "{message}"),
            Level::Error => tracing::error!(plugin, "{message}"),
        }
        let mut lines = self.0.lines.lock();
        if lines.len() >= KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(message);
    }

    /// The last lines that were written, the oldest first.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.0.lines.lock().iter().cloned().collect()
    }

    /// How many lines were left out so far.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Standard output or error, line by line at this level.
    pub(super) fn stream(&self, level: Level, keep: bool) -> Stream {
        Stream {
            log: self.clone(),
            level,
            keep,
            line: Arc::default(),
        }
    }

    /// The end of what the plugin has written to standard error.
    pub(super) fn standard_error(&self) -> String {
        let kept: Vec<u8> = self.0.kept.lock().iter().copied().collect();
        String::from_utf8_lossy(&kept)
            .lines()
            .map(convert::text)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

fn enabled(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(tracing::Level::INFO),
        Level::Warn => tracing::enabled!(tracing::Level::WARN),
        Level::Error => tracing::enabled!(tracing::Level::ERROR),
    }
}

/// A bucket of lines that fills at a steady rate.
struct Allowance {
    /// How many lines it holds.
    burst: u32,
    /// One more line comes after so long.
    refill: Duration,
    lines: u32,
    left_out: u64,
    /// When the last line was added to the bucket.
    filled: Instant,
}

impl Allowance {
    fn new(limits: Limits, now: Instant) -> Self {
        let Limits {
            log_burst, log_rate, ..
        } = limits;
        Self {
            burst: log_burst,
            refill: Duration::from_secs(1) / log_rate.max(1),
            lines: log_burst,
            left_out: 0,
            filled: now,
        }
    }

    /// Takes a line and says how many were left out since the last one; none where the bucket is empty.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.filled);
        let added = since.as_nanos() / self.refill.as_nanos().max(1);
        if added > 0 {
            self.lines = u32::try_from(added)
                .unwrap_or(self.burst)
                .saturating_add(self.lines)
                .min(self.burst);
            self.filled = now;
        }
        match self.lines.checked_sub(1) {
            Some(lines) => {
                self.lines = lines;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out = self.left_out.saturating_add(1);
                None
            }
        }
    }
}

/// Standard output or standard error of a plugin.
#[derive(Clone)]
pub(super) struct Stream {
    log: PluginLog,
    level: Level,
    /// True for standard error, whose end is kept.
    keep: bool,
    /// The line that has not ended yet.
    line: Arc<Mutex<Vec<u8>>>,
}

impl Stream {
    fn take(&self, bytes: &[u8]) {
        if self.keep {
            let mut kept = self.log.0.kept.lock();
            kept.extend(bytes);
            let excess = kept.len().saturating_sub(KEPT);
            kept.drain(..excess);
        }
        let mut line = self.line.lock();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = piece;
            while !rest.is_empty() {
                let room = MAX_LINE.saturating_sub(line.len());
                let (part, after) = rest.split_at(room.min(rest.len()));
                line.extend_from_slice(part);
                rest = after;
                if line.len() >= MAX_LINE || line.ends_with(b"\n") {
                    self.end_line(&mut line);
                }
            }
        }
    }

    fn end_line(&self, line: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if !text.is_empty() {
            self.log.write(self.level, text);
        }
        line.clear();
    }
}

impl IsTerminal for Stream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    // Only WASI 0.3 asks for this one, which is not offered.
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}

#[async_trait::async_trait]
impl Pollable for Stream {
    async fn ready(&mut self) {}
}

impl OutputStream for Stream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::tests::Log;

    #[test]
    fn lines_beyond_the_rate_are_counted_and_not_written() {
        let start = Instant::now();
        let limits = Limits {
            log_burst: 3,
            log_rate: 10,
            ..Limits::default()
        };
        let mut allowance = Allowance::new(limits, start);
        for _ in 0..limits.log_burst {
            assert_eq!(allowance.take(start), Some(0));
        }
        assert_eq!(allowance.take(start), None);
        assert_eq!(allowance.take(start), None);
        let later = start + Duration::from_millis(100);
        assert_eq!(allowance.take(later), Some(2));
        assert_eq!(allowance.take(later), None);
    }

    #[test]
    fn a_long_line_is_written_in_pieces_and_whole() {
        let log = Log::default();
        let _guard = log.record();
        let said = "0123456789".repeat(6000);
        PluginLog::new("test", Limits::default())
            .stream(Level::Warn, false)
            .take(said.as_bytes());
        let text = log.text();
        let digits = text
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .flat_map(str::chars)
            .filter(char::is_ascii_digit)
            .count();
        // The last piece has not come to its end.
        assert_eq!(digits, said.len() / MAX_LINE * MAX_LINE);
    }

    #[test]
    fn a_long_message_says_how_much_was_cut() {
        let log = Log::default();
        let _guard = log.record();
        PluginLog::new("test", Limits::default()).write(Level::Warn, &"x".repeat(5000));
        assert!(log.text().contains("x… (904 more bytes)"), "{}", log.text());
    }

    #[test]
    fn the_end_of_standard_error_is_kept_without_control_characters() {
        let log = PluginLog::new("test", Limits::default());
        let stream = log.stream(Level::Warn, true);
        stream.take(&vec![b'a'; KEPT * 2]);
        stream.take(b"\nthread panicked\x1b[31m");
        let kept = log.standard_error();
        assert!(kept.ends_with("thread panicked [31m"), "{kept}");
        assert!(kept.len() <= KEPT, "{}", kept.len());
    }
}
