//! The suite on Postgres: the built-in plugin over a real server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{SERVICE_TTL, Server, assert_success, settings, short};
use databroker_conformance::{CaseReport, Outcome, Selection, Suite};
use databroker_host::broker;
use databroker_host::component::{self, Source};
use databroker_host::settings::SharedSecret;
use postgres_server::{PgBouncer, PoolMode, PostgresServer};

/// How many cases run beside each other.
const JOBS: usize = 4;

/// A commit takes its time, so with a history of seconds a case of thousands of writes outlives its own changes. So all cases
/// run with the usual history first, and those that need a short one, which that run skips, by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn one_host() {
    let server = PostgresServer::start().expect("a server");
    passes_with(1, &server.url(), Vec::new(), JOBS).await;
}

/// Each call of a case goes to any of three hosts, so that a case puts through one host and looks through another. What a host
/// does by itself, whatever others do, is left to the run on one.
#[tokio::test(flavor = "multi_thread")]
async fn three_hosts() {
    let server = PostgresServer::start().expect("a server");
    passes_with(3, &server.url(), of_the_store(), JOBS).await;
}

/// One host whose every transaction is on whichever connection PgBouncer has free: nothing is prepared and nothing notified.
#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler() {
    let server = PostgresServer::start().expect("a server");
    let bouncer = PgBouncer::start(&server, PoolMode::Transaction, 8).expect("a pooler");
    passes_with(1, &bouncer.url(), of_the_store(), 16).await;
}

/// The cases that the store has a part in.
fn of_the_store() -> Vec<String> {
    const WITHOUT: &[&str] = &["auth", "filter", "health", "limits", "reflection", "text"];
    let cases = Suite::cases().into_iter();
    cases
        .filter(|case| !WITHOUT.contains(&case.area()))
        .map(|case| case.name.to_owned())
        .collect()
}

async fn passes_with(hosts: usize, url: &str, filters: Vec<String>, jobs: usize) {
    let usual = broker::Config {
        service_ttl: SERVICE_TTL,
        ..broker::Config::default()
    };
    let skipped = run(url, hosts, usual, filters, jobs).await;
    assert!(!skipped.is_empty());
    let skipped = run(url, hosts, short(), skipped, JOBS).await;
    assert!(skipped.is_empty(), "{skipped:?}");
}

/// Runs cases on so many hosts, and gives the names of those that were skipped.
async fn run(url: &str, hosts: usize, config: broker::Config, filters: Vec<String>, jobs: usize) -> Vec<String> {
    let (descriptors, _) = settings();
    let shared_secret = SharedSecret::generate();
    let mut servers = Vec::new();
    for _ in 0..hosts {
        let config_of_plugin = component::Config {
            connection_string: Some(url.to_owned()),
            ..component::Config::new(Source::BuiltIn("postgres".to_owned()))
        };
        let (backend, info) = component::open(config_of_plugin, Arc::clone(&descriptors))
            .await
            .expect("the plugin");
        assert!(info.shared && info.durable);
        servers
            .push(Server::with_secret(&shared_secret, backend, info, Arc::clone(&descriptors), config.clone()).await);
    }
    let targets = servers.iter().map(|server| server.target.clone());
    let target = targets.reduce(|all, one| all.and(&one)).expect("a host");
    let selection = Selection {
        filters,
        jobs,
        ..Selection::default()
    };
    let report = Suite::run(&target, &selection).await;
    assert_success(&report);
    for server in servers {
        server.stop().await;
    }
    let skipped = |case: &&CaseReport| matches!(case.outcome, Outcome::Skipped(_));
    report
        .cases
        .iter()
        .filter(skipped)
        .map(|case| case.name.to_string())
        .collect()
}
