//! The host passes the suite: on its native store, on that store shared as several hosts share one, and on the memory
//! plugin.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{passes, plugin_passes, settings, short};
use databroker_host::backend::native::Native;
use databroker_host::broker;
use databroker_host::component::Source;

#[tokio::test(flavor = "multi_thread")]
async fn native() {
    let (descriptors, settings) = settings();
    let (backend, info) = Native::open(settings).expect("a native store");
    passes(backend, info, descriptors, short()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn native_shared() {
    let (descriptors, settings) = settings();
    let (backend, info) = Native::shared(settings).expect("a native store");
    passes(backend, info, descriptors, short()).await;
}

/// With a hub that holds next to nothing, so that streams read pages from the backend all the time.
#[tokio::test(flavor = "multi_thread")]
async fn native_small_hub() {
    let (descriptors, settings) = settings();
    let (backend, info) = Native::open(settings).expect("a native store");
    let config = broker::Config {
        hub_bytes: 1,
        ..short()
    };
    passes(backend, info, descriptors, config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_plugin() {
    plugin_passes(Source::BuiltIn("memory".to_owned())).await;
}
