//! The suite on Postgres: the plugin as a component, over a real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{SERVICE_TTL, Server, assert_success, settings, short};
use databroker_conformance::{CaseReport, Outcome, Selection, Suite};
use databroker_host::broker;
use databroker_host::component::{self, Source};
use postgres_server::PostgresServer;

/// Builds the component, in a folder of its own: the other one is locked by the build that runs this.
fn component() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
    let mut build = Command::new(env!("CARGO"));
    build
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            "wasm32-wasip2",
            "--package",
            "postgres",
        ])
        .arg("--target-dir")
        .arg(&target);
    // What this build sets for itself is not the plugin's.
    for (name, _) in std::env::vars() {
        if (name.starts_with("CARGO_") && name != "CARGO_HOME")
            || name.starts_with("RUSTFLAGS")
            || name.starts_with("RUSTC_")
        {
            build.env_remove(name);
        }
    }
    assert!(build.status().expect("cargo").success(), "the plugin does not build");
    target.join("wasm32-wasip2/release/postgres.wasm")
}

/// A commit takes its time, so with a history of seconds a case of thousands of writes outlives its own changes. So all cases
/// run with the usual history first, and those that need a short one, which that run skips, by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn one_host() {
    let server = PostgresServer::start().expect("a server");
    let component = component();
    let usual = broker::Config {
        service_ttl: SERVICE_TTL,
        ..broker::Config::default()
    };
    let skipped = run(&server, &component, usual, Vec::new()).await;
    assert!(!skipped.is_empty());
    let skipped = run(&server, &component, short(), skipped).await;
    assert!(skipped.is_empty(), "{skipped:?}");
}

/// Runs cases, and gives the names of those that were skipped.
async fn run(server: &PostgresServer, component: &Path, config: broker::Config, filters: Vec<String>) -> Vec<String> {
    let (descriptors, _) = settings();
    let config_of_plugin = component::Config {
        connection_string: Some(server.url()),
        ..component::Config::new(Source::File(component.to_owned()))
    };
    let (backend, info) = component::open(config_of_plugin, Arc::clone(&descriptors))
        .await
        .expect("the plugin");
    assert!(info.shared && info.durable);
    let server = Server::start(backend, info, descriptors, config).await;
    let selection = Selection {
        filters,
        ..Selection::default()
    };
    let report = Suite::run(&server.target, &selection).await;
    assert_success(&report);
    server.stop().await;
    let skipped = |case: &&CaseReport| matches!(case.outcome, Outcome::Skipped(_));
    report
        .cases
        .iter()
        .filter(skipped)
        .map(|case| case.name.to_string())
        .collect()
}
