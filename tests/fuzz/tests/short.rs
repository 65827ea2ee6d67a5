//! Each target with its corpus and some thousand mutations of it, the same ones every time: seconds, on every machine.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use databroker_fuzz::mutate::{Until, run};
use databroker_fuzz::{TARGETS, Target};

const SEED: u64 = 1;

fn short(name: &str) {
    let target = Target::named(name).unwrap();
    let fed = run(&target, SEED, Until::Count(target.short));
    println!("{name}: {fed} inputs");
}

macro_rules! short {
    ($($test:ident: $name:literal,)+) => {
        $(#[test]
        fn $test() {
            short($name);
        })+

        #[test]
        fn every_target_is_run() {
            let mut named: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            let mut run = vec![$($name),+];
            named.sort_unstable();
            run.sort_unstable();
            assert_eq!(named, run);
        }
    };
}

short! {
    answers: "answers",
    codec: "codec",
    component: "component",
    configuration: "configuration",
    connection_string: "connection-string",
    filter: "filter",
    request: "request",
    rows: "rows",
    token: "token",
}

/// `cargo fuzz` has a target for each of ours, and a corpus.
#[test]
fn both_ways_to_fuzz_have_the_same_targets() {
    let manifest = include_str!("../../../fuzz/Cargo.toml");
    for target in TARGETS {
        assert!(
            manifest.contains(&format!("name = \"{}\"", target.name)),
            "{}",
            target.name
        );
        assert!(!target.corpus().is_empty(), "{}", target.name);
    }
}
