//! Reports of instances that have ended: a line of the log, and a file where a folder is set.
//!
//! What a plugin's author needs is there only at that moment: the cause, where it was in the guest's code, which calls were
//! under way, and what it said last. The folder holds a bounded number of files of a bounded size, since a plugin may trap for
//! as long as anybody calls it. A disk that does not take them holds nobody up: they are written on a thread that may wait, one
//! at a time, and waited for no longer than [`PATIENCE`].

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

use super::convert;

/// How many files are kept; the oldest go.
const KEPT: usize = 20;

/// Most bytes of one; its end is left out.
const MOST_BYTES: usize = 1 << 20;

/// How long a file is waited for, before those are told whose calls were under way.
const PATIENCE: Duration = Duration::from_secs(1);

/// How their names begin and end. What is called otherwise is not touched.
const BEGINNING: &str = "plugin-stopped-";
const ENDING: &str = ".txt";

/// Why an instance has ended.
pub(super) struct Report {
    /// The plugin's name.
    pub(super) plugin: String,
    /// In a line.
    pub(super) cause: String,
    /// The functions that were under way, the one that ended it among them; empty while it started.
    pub(super) calls: String,
    /// The error with all that led to it, and the guest's stack.
    pub(super) backtrace: String,
    /// The end of what it wrote to standard error.
    pub(super) standard_error: String,
    /// Its last lines in the log.
    pub(super) last_lines: Vec<String>,
}

/// Where reports go.
#[derive(Debug)]
pub(super) struct Reports {
    directory: Option<PathBuf>,
    /// Whether one may be written now.
    turn: Arc<Semaphore>,
}

impl Default for Reports {
    /// To the log alone.
    fn default() -> Self {
        Self::new(None)
    }
}

impl Reports {
    /// To the log, and to files in this folder if there is one.
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self {
            directory,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Logs a report and keeps it, which is waited for for a bounded time. A folder that cannot be written to, or takes too
    /// long, is logged, too, and nothing else.
    pub(super) async fn tell(&self, report: &Report) {
        tracing::error!(
            plugin = report.plugin,
            cause = report.cause,
            calls = report.calls,
            backtrace = report.backtrace,
            standard_error = report.standard_error,
            "the plugin's instance has stopped"
        );
        let Some(directory) = &self.directory else { return };
        let Ok(turn) = Arc::clone(&self.turn).try_acquire_owned() else {
            tracing::warn!(
                directory = %directory.display(),
                "cannot keep a report of the plugin's end: the one before is still being written"
            );
            return;
        };
        let (folder, text) = (directory.clone(), text(report));
        let written = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            keep(&folder, &text)
        });
        let why = match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(Ok(path))) => {
                tracing::info!(path = %path.display(), "wrote a report of the plugin's end");
                return;
            }
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the folder takes longer than {PATIENCE:?}"),
        };
        tracing::warn!(error = why, directory = %directory.display(), "cannot keep a report of the plugin's end");
    }
}

/// The guest has a say in all of it, the names of its functions included. So no line has anything but text, and those of a
/// section are indented: none can pass for another section, or for a line of the log.
fn text(report: &Report) -> String {
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let mut text = String::new();
    let sections = [
        ("calls under way", report.calls.as_str()),
        ("stack", &report.backtrace),
        ("standard error", &report.standard_error),
        ("last lines", &report.last_lines.join("\n")),
    ];
    // Writing to a text does not fail.
    let _ = writeln!(
        text,
        "plugin: {}\ntime: {time}\nhost: {}\ncause: {}",
        report.plugin,
        env!("CARGO_PKG_VERSION"),
        convert::text(&report.cause)
    );
    for (name, content) in sections {
        let _ = writeln!(text, "\n{name}:");
        for line in content.trim_end().lines() {
            let _ = writeln!(text, "  {}", convert::text(line));
        }
    }
    text.truncate(text.floor_char_boundary(MOST_BYTES));
    text
}

/// Writes a file, and removes the oldest ones beyond those that are kept.
fn keep(directory: &Path, text: &str) -> io::Result<PathBuf> {
    fs::create_dir_all(directory)?;
    let time = humantime::format_rfc3339_nanos(SystemTime::now());
    let path = directory.join(format!("{BEGINNING}{time}{ENDING}"));
    // What a plugin says may be about records.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    file.write_all(text.as_bytes())?;
    let mut names: Vec<String> = fs::read_dir(directory)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(BEGINNING) && name.ends_with(ENDING))
        .collect();
    // Their names are times of one length, so that they are in order.
    names.sort();
    for name in names.iter().take(names.len().saturating_sub(KEPT)) {
        fs::remove_file(directory.join(name))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    fn report(cause: &str) -> Report {
        Report {
            plugin: "test".to_owned(),
            cause: cause.to_owned(),
            calls: "put".to_owned(),
            backtrace: "at one\nat two".to_owned(),
            standard_error: "panicked".to_owned(),
            last_lines: vec!["first".to_owned(), "second".to_owned()],
        }
    }

    #[tokio::test]
    async fn the_newest_reports_are_kept_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("notes.txt");
        fs::write(&own, "mine").unwrap();
        let reports = Reports::new(Some(folder.path().to_owned()));
        for number in 0..KEPT + 5 {
            reports.tell(&report(&format!("cause {number}."))).await;
        }
        assert!(own.exists());
        fs::remove_file(own).unwrap();
        let mut files: Vec<PathBuf> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert_eq!(files.len(), KEPT);
        let oldest = fs::read_to_string(&files[0]).unwrap();
        assert!(oldest.contains("cause: cause 5.\n"), "{oldest}");
        for part in [
            "plugin: test\n",
            "calls under way:\n  put\n",
            "at two",
            "panicked",
            "  first\n  second",
        ] {
            assert!(oldest.contains(part), "{part}: {oldest}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_to_is_told_and_no_more() {
        let log = crate::component::tests::Log::default();
        let _guard = log.record();
        let file = tempfile::NamedTempFile::new().unwrap();
        Reports::new(Some(file.path().join("below"))).tell(&report("why")).await;
        assert!(log.text().contains("cannot keep a report"), "{}", log.text());
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_holds_nobody_up() {
        let log = crate::component::tests::Log::default();
        let _guard = log.record();
        let folder = tempfile::tempdir().unwrap();
        let reports = Reports::new(Some(folder.path().to_owned()));
        // As long as one is being written.
        let writing = Arc::clone(&reports.turn).try_acquire_owned().unwrap();
        reports.tell(&report("second")).await;
        assert!(log.text().contains("still being written"), "{}", log.text());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(writing);
        reports.tell(&report("third")).await;
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_the_guest_has_named_makes_no_lines_of_its_own() {
        let mut hostile = report("trap\ncause: another");
        hostile.backtrace = "0: f\nERROR forged\x1b[31m\n\nlast lines:\nforged\u{202e}".to_owned();
        let text = text(&hostile);
        for forged in ["\x1b", "\nERROR", "\nforged", "\ncause: another", "\u{202e}"] {
            assert!(!text.contains(forged), "{forged:?}: {text}");
        }
        assert_eq!(text.matches("\nlast lines:\n").count(), 1, "{text}");
        assert!(text.contains("\n  ERROR forged [31m\n"), "{text}");
    }

    #[test]
    fn a_report_has_a_bound() {
        let mut long = report("why");
        long.backtrace = "äääää\n".repeat(MOST_BYTES / 8);
        let text = text(&long);
        assert!((MOST_BYTES - 4..=MOST_BYTES).contains(&text.len()), "{}", text.len());
    }
}
