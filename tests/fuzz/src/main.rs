//! `databroker-fuzz TARGET SECONDS [SEED]`: feeds a target mutations of its corpus for so long. `databroker-fuzz list` names
//! the targets, and `databroker-fuzz replay TARGET FILE` feeds it one file.

#![allow(clippy::panic, reason = "a tool for tests, whose panics are its findings")]

use std::time::Duration;

use databroker_fuzz::mutate::{Until, run};
use databroker_fuzz::{TARGETS, Target};

const USAGE: &str = "usage: databroker-fuzz TARGET SECONDS [SEED] | replay TARGET FILE | list";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let target = |name: &str| Target::named(name).unwrap_or_else(|| panic!("there is no target {name:?}; {USAGE}"));
    match arguments.as_slice() {
        ["list"] => TARGETS.iter().for_each(|target| println!("{}", target.name)),
        ["replay", name, file] => match std::fs::read(file) {
            Ok(bytes) => (target(name).feed)(&bytes),
            Err(error) => panic!("{file}: {error}"),
        },
        [name, seconds, rest @ ..] => {
            let number = |text: &str| {
                text.parse()
                    .unwrap_or_else(|_| panic!("{text:?} is no number; {USAGE}"))
            };
            let seed = rest.first().map_or(1, |seed| number(seed));
            let fed = run(&target(name), seed, Until::Time(Duration::from_secs(number(seconds))));
            println!("{name}: {fed} inputs, seed {seed}, nothing found");
        }
        _ => panic!("{USAGE}"),
    }
}
