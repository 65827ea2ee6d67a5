//! The adapter, tested with the memory plugin and with components that are made for what they do wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod guests;
mod laws;
mod loading;
mod memory;
mod stopping;

use std::sync::Arc;

use super::{Config, Limits, Source, open};
use crate::backend::{Backend, StoreInfo};
use crate::data::Descriptors;

fn descriptors() -> Arc<Descriptors> {
    Arc::new(Descriptors::built_in().unwrap())
}

fn config(plugin: Source) -> Config {
    Config {
        plugin,
        connection_string: None,
        cache_dir: None,
        limits: Limits::default(),
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
