//! Measures databrokers side by side: this host, the same host on the native backend, bare gRPC, and Pomerium's own
//! server, each a fresh process in every round, one after the other in the same run.
//!
//! The server has one core for itself and the load another, so that what is measured is the server. Its processor time
//! per operation is the figure to compare: it is steadier than throughput on a small or shared machine.

// Figures are rounded for people anyway.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod aims;
mod bare;
mod client;
mod measure;
mod native;
mod page;
mod plot;
mod process;
mod reader;
mod report;
mod runner;
mod shares;
mod workload;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use measure::Setup;
use report::Kind;

/// The host's, so that `native` is the same but for the plugin.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Measure all workloads, and print a table
    Run(Run),
    /// Measure how costs grow with the number of records, and a delivery's with the number of streams
    Curves(Curves),
    /// Say where this project's server spends its processor time, by samples of perf, in each workload in memory, in one round
    Shares(Shares),
    /// Print the tables of docs/benchmark.md from what `--json` has written
    Page(Page),
    /// Serve constants, to measure what gRPC itself costs
    ServeBare {
        /// Where to listen
        #[arg(long)]
        address: SocketAddr,
    },
    /// Serve this host's broker on the native backend, to measure what the plugin's boundary costs
    ServeNative {
        /// Where to listen
        #[arg(long)]
        address: SocketAddr,
        /// The shared secret in base64
        #[arg(long, env = "SHARED_SECRET", hide_env_values = true)]
        shared_secret: String,
        /// As the memory plugin takes it
        #[arg(long, env = "DATABROKER_STORAGE_CONNECTION_STRING")]
        connection_string: Option<String>,
    },
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    setup: Setup,
    /// Measure on Postgres instead of in memory, each server with a database of its own on one server that is started for it;
    /// without memory and without 1,000 streams, which take Pomerium's server minutes
    #[arg(long)]
    postgres: bool,
    /// How many records are stored when calls are measured; SyncLatest, replay and, in memory, the mixed load are measured at
    /// ten times as many, memory at ten and fifty times as many
    #[arg(long, default_value_t = 10_000)]
    records: usize,
}

#[derive(Args)]
struct Curves {
    #[command(flatten)]
    setup: Setup,
    /// At how many records
    #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000")]
    records: Vec<usize>,
    /// At how many streams
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,1000")]
    streams: Vec<usize>,
}

#[derive(Args)]
struct Shares {
    #[command(flatten)]
    setup: Setup,
    /// How many records are stored when calls are made, as for `run`
    #[arg(long, default_value_t = 10_000)]
    records: usize,
}

#[derive(Args)]
struct Page {
    /// Files that `run`, `run --postgres`, `shares` and `curves` with `--json` have written; each gives the tables of its kind
    #[arg(required = true)]
    reports: Vec<PathBuf>,
    /// Put the tables in their places in this page instead of printing them
    #[arg(long)]
    into: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut runtime = match cli.command {
        Cmd::Run(_) | Cmd::Curves(_) | Cmd::Shares(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    match cli.command {
        Cmd::Run(run) => {
            let (kind, steps) = if run.postgres {
                (Kind::Postgres, workload::on_postgres(run.records))
            } else {
                (Kind::Memory, workload::in_memory(run.records))
            };
            runtime.block_on(measure::run(&run.setup, kind, steps))
        }
        Cmd::Curves(curves) => {
            let steps = workload::curves(&curves.records, &curves.streams);
            runtime.block_on(measure::run(&curves.setup, Kind::Curves, steps))
        }
        Cmd::Shares(shares) => {
            let steps = workload::sampled(shares.records);
            runtime.block_on(measure::run(&shares.setup, Kind::Shares, steps))
        }
        Cmd::Page(page) => page::make(&page.reports, page.into.as_deref()),
        Cmd::ServeBare { address } => runtime.block_on(bare::serve(address)),
        Cmd::ServeNative {
            address,
            shared_secret,
            connection_string,
        } => runtime.block_on(native::serve(address, &shared_secret, connection_string)),
    }
}
