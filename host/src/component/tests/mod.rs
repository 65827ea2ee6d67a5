//! The adapter, tested with the memory plugin and with components that are made for what they do wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod database;
mod extract;
mod grants;
mod guests;
mod laws;
mod loading;
mod memory;
mod stopping;
mod supervision;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::grants::Granted;
use super::log::PluginLog;
use super::state::State;
use super::{Config, Grants, Limits, OpenError, Origin, Source, open};
use crate::backend::{Backend, BackendError, StoreInfo};
use crate::data::Descriptors;

fn descriptors() -> Arc<Descriptors> {
    Arc::new(Descriptors::built_in())
}

fn config(plugin: Source) -> Config {
    Config::new(plugin)
}

/// The host's side of an instance that is granted nothing.
fn state() -> State {
    let granted = Granted::new("test", Grants::default());
    let limits = Limits::default();
    State::new(PluginLog::new("test", limits), descriptors(), limits, &granted).unwrap()
}

/// Lets `tests/probe` do what the lines say, and gives what came of each, or how the probe ended.
async fn ask(connection_string: Option<String>, mut grants: Grants, lines: &[&str]) -> Result<Vec<String>, OpenError> {
    static PROBE: LazyLock<PathBuf> = LazyLock::new(|| guest_build::build("tests/probe", "probe"));
    grants.settings.insert("script".to_owned(), lines.join("\n"));
    let config = Config {
        cache_dir: Some(PROBE.with_file_name("cache")),
        connection_string,
        grants,
        ..config(Source::File(PROBE.clone()))
    };
    let opened = tokio::time::timeout(Duration::from_secs(60), open(config, descriptors())).await;
    match opened.expect("it answers").err() {
        Some(OpenError::Store {
            error: BackendError::Configuration(said),
            ..
        }) => Ok(said.split(" | ").map(str::to_owned).collect()),
        Some(error) => Err(error),
        None => panic!("it has no store"),
    }
}

async fn open_memory() -> (Arc<dyn Backend>, StoreInfo) {
    open(config(Source::BuiltIn("memory".to_owned())), descriptors())
        .await
        .unwrap()
}

#[test]
fn the_connection_string_is_not_shown() {
    let config = Config {
        connection_string: Some("postgres://user:hunter2@db".to_owned()),
        ..config(Source::BuiltIn("memory".to_owned()))
    };
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn files_are_kept_for_what_a_plugin_may_open() {
    let listeners = Limits::default().listeners;
    let database = "postgres://user@db/pomerium?pool_max_conns=100";
    let origin = Grants {
        http_origins: vec![Origin::parse("https://example.com").unwrap()],
        most_open: 7,
        ..Grants::default()
    };
    let nothing = Grants::default;
    for (connection_string, grants, expected) in [
        (None, nothing(), 0),
        (Some("memory://?budget=1GiB"), nothing(), 0),
        (Some(database), nothing(), 3 * (100 + listeners)),
        (None, origin.clone(), 7),
        (Some(database), origin, 3 * (100 + listeners) + 7),
    ] {
        let config = Config {
            connection_string: connection_string.map(str::to_owned),
            grants,
            ..config(Source::BuiltIn("memory".to_owned()))
        };
        assert_eq!(config.most_open(), expected, "{config:?}");
    }
}

/// What is logged on a test's own thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Takes what is logged from here on, until what is returned is dropped.
    pub(crate) fn record(&self) -> tracing::subscriber::DefaultGuard {
        // Where there is but one subscriber in the process, whichever thread comes to a line first decides for all of them
        // whether it is wanted, and most have none. So there are always two.
        static ANOTHER: LazyLock<tracing::Dispatch> = LazyLock::new(|| {
            let nowhere = tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_writer(io::sink);
            nowhere.finish().into()
        });
        LazyLock::force(&ANOTHER);
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
