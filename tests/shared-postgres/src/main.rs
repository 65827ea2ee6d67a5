//! `databroker-shared-postgres`: the host that the tests kill, and the history test for as long as one likes.
//!
//! The host is the one of this project, started as `databroker-shared-postgres serve`, and so is its `config`: Cargo gives a test
//! the programs of its own package only.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use databroker_shared_postgres::cluster::{Cluster, Setup};
use databroker_shared_postgres::faults::{Fault, run};
use databroker_shared_postgres::workload::Load;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;

/// Runs clients against several hosts on one Postgres while faults fire, and checks everything that they saw.
///
/// `serve` or `config` as the first argument makes it the host itself.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// For how long; a round of all faults, in an order of its own, is always finished.
    #[arg(long, default_value = "600")]
    seconds: u64,

    /// What the first round follows from; each further one takes the next.
    #[arg(long, default_value = "1")]
    seed: u64,

    /// How many hosts.
    #[arg(long, default_value = "3")]
    hosts: usize,
}

/// How far the seeds of runs with Clears are from the others.
const CLEARS: u64 = 1 << 32;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments
        .get(1)
        .is_some_and(|first| first == "serve" || first == "config")
    {
        return ExitCode::from(databroker_host::command::run(arguments, std::env::vars_os()));
    }
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(rounds(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn rounds(arguments: &Arguments) -> Result<()> {
    let setup = Setup {
        hosts: arguments.hosts,
        standby: true,
        ..Setup::new(std::env::current_exe().context("this program's path")?)
    };
    let mut cluster = Cluster::start(setup).await?;
    let begun = Instant::now();
    let mut seed = arguments.seed;
    while begun.elapsed() < Duration::from_secs(arguments.seconds) {
        let mut faults = Fault::all();
        faults.shuffle(&mut StdRng::seed_from_u64(seed));
        // What is judged after a Clear is what comes after it. So Clears have a run of their own.
        for (seed, faults) in [(seed, faults), (seed.wrapping_add(CLEARS), Fault::clears())] {
            let load = Load {
                seed,
                ..Load::default()
            };
            let run = run(&mut cluster, load, &faults)
                .await
                .with_context(|| format!("with seed {seed}"))?;
            println!("seed {seed}: {run}");
            ensure!(run.violations.is_empty(), "violations with seed {seed}");
        }
        seed += 1;
    }
    Ok(())
}
