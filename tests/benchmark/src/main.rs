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

mod bare;
mod client;
mod native;
mod plot;
mod process;
mod report;
mod workload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use process::{Postgres, Process, Server};
use report::Measurement;
use workload::Workload;

/// The host's, so that `native` is the same but for the plugin.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The host without a plugin.
const NATIVE: &str = "native";

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Measure, and print a table
    Run(Run),
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
    },
}

#[derive(Args)]
struct Run {
    /// This project's program [default: databroker-host beside this program]
    #[arg(long)]
    host: Option<PathBuf>,
    /// Pomerium's server, built by `go build -tags=embed_pomerium ./cmd/stock-databroker` in tests/pomerium; without it nothing
    /// is compared with Pomerium
    #[arg(long)]
    stock: Option<PathBuf>,
    /// Measure on Postgres instead of in memory, each server with a database of its own on one server that is started for it
    #[arg(long)]
    postgres: bool,
    /// Only servers with one of these names: host, native, bare, stock, stock without tracer
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// Only workloads whose name has this in it; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// How many records are stored when the measuring begins; several sizes give a curve
    #[arg(long, value_delimiter = ',', default_value = "10000")]
    records: Vec<usize>,
    /// How often all is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each workload is measured in a round, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The server's core; the load takes the other one
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The load's core
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// Write all measurements to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Draw the medians into this file
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut runtime = match cli.command {
        Cmd::Run(_) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime.enable_all().build()?;
    match cli.command {
        Cmd::Run(run) => runtime.block_on(run.run()),
        Cmd::ServeBare { address } => runtime.block_on(bare::serve(address)),
        Cmd::ServeNative { address, shared_secret } => runtime.block_on(native::serve(address, &shared_secret)),
    }
}

impl Run {
    async fn run(self) -> anyhow::Result<()> {
        // Before this process is kept to one core: the database is not.
        let postgres = self.postgres.then(Postgres::start).transpose()?.map(Arc::new);
        let servers = self.servers(postgres)?;
        let wanted = |name: &str| self.only.is_empty() || self.only.iter().any(|part| name.contains(part));
        let workloads: Vec<Workload> = workload::ALL
            .into_iter()
            .filter(|workload| wanted(&workload.name()))
            .collect();
        pin(self.load_core)?;
        let steps = self.rounds * self.records.len() * servers.len() * (workloads.len() + 1);
        let progress = ProgressBar::new(u64::try_from(steps)?).with_style(ProgressStyle::with_template(
            "{elapsed_precise} [{wide_bar}] {pos}/{len} {msg}",
        )?);
        let mut measurements = Vec::new();
        for round in 0..self.rounds {
            for stored in &self.records {
                for server in &servers {
                    progress.set_message(format!("{}: {stored} records", server.name));
                    let process = server.start(self.server_core).await?;
                    measurements.extend(
                        self.measure(round, server, &process, *stored, &workloads, &progress)
                            .await?,
                    );
                }
            }
        }
        progress.finish_and_clear();
        self.tell(&measurements)
    }

    async fn measure(
        &self,
        round: usize,
        server: &Server,
        process: &Process,
        stored: usize,
        workloads: &[Workload],
        progress: &ProgressBar,
    ) -> anyhow::Result<Vec<Measurement>> {
        let named = |name: String| Measurement::new(round, &server.name, name, stored);
        let mut measurements = vec![Measurement {
            start: Some(process.cold_start.as_secs_f64() * 1e3),
            ..named("Cold start, ms".to_owned())
        }];
        workload::fill(process, stored)
            .await
            .with_context(|| format!("{}: filling the store", server.name))?;
        measurements.push(Measurement {
            memory: Some(process.resident_memory()? as f64 / 1e6),
            ..named("Memory, MB".to_owned())
        });
        progress.inc(1);
        let fresh = AtomicUsize::new(stored);
        let duration = Duration::from_secs_f64(self.seconds);
        for workload in workloads {
            let name = workload.name();
            progress.set_message(format!("{}: {name}", server.name));
            let mut done = workload::run(workload, process, stored, &fresh, duration)
                .await
                .with_context(|| format!("{}: {name}", server.name))?;
            let operations = done.operations as f64;
            let per_operation = |time: Duration| (!time.is_zero()).then(|| time.as_secs_f64() * 1e6 / operations);
            measurements.push(Measurement {
                throughput: Some(operations / done.elapsed.as_secs_f64()),
                processor: per_operation(done.times.server),
                database: per_operation(done.times.database),
                p50: report::percentile(&mut done.latencies, 0.5),
                p99: report::percentile(&mut done.latencies, 0.99),
                ..named(name)
            });
            progress.inc(1);
        }
        Ok(measurements)
    }

    fn tell(&self, measurements: &[Measurement]) -> anyhow::Result<()> {
        let rows = report::rows(measurements);
        println!("{}", report::table(&rows));
        println!(
            "\n{} rounds of {} s, medians; cost is µs of the server's processor per operation, MB or ms, database that of \
             Postgres; in parentheses what it is of stock's",
            self.rounds, self.seconds
        );
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(measurements)?;
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        if let Some(path) = &self.svg {
            std::fs::write(path, plot::svg(&rows)).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    fn servers(&self, postgres: Option<Arc<Postgres>>) -> anyhow::Result<Vec<Server>> {
        let own = std::env::current_exe()?;
        let host = match &self.host {
            Some(host) => host.clone(),
            None => own.with_file_name("databroker-host"),
        };
        ensure!(
            host.is_file(),
            "{} is not there: build it by `cargo build --release`, or name it with --host",
            host.display()
        );
        let server = |name: &str, program: &PathBuf, arguments: &[&str]| Server {
            name: name.to_owned(),
            program: program.clone(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: Vec::new(),
            postgres: postgres.clone(),
        };
        let mut servers = vec![
            Server {
                environment: [
                    ("GRPC_ADDRESS", "{address}"),
                    ("GRPC_INSECURE", "true"),
                    ("LOG_LEVEL", "warn"),
                ]
                .into_iter()
                .chain(self.postgres.then_some(("DATABROKER_STORAGE_TYPE", "postgres")))
                .chain(
                    self.postgres
                        .then_some(("DATABROKER_STORAGE_CONNECTION_STRING", "{database}")),
                )
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
                ..server("host", &host, &["serve"])
            },
            server(NATIVE, &own, &["serve-native", "--address", "{address}"]),
            server(report::BARE, &own, &["serve-bare", "--address", "{address}"]),
        ];
        if let Some(stock) = &self.stock {
            let mut arguments = vec!["--address", "{address}"];
            if self.postgres {
                arguments.extend([
                    "--storage-type",
                    "postgres",
                    "--storage-connection-string",
                    "{database}",
                ]);
            }
            servers.push(server(report::STOCK, stock, &arguments));
            arguments.push("--no-tracer");
            servers.push(server("stock without tracer", stock, &arguments));
        }
        if let Some(unknown) = self
            .servers
            .iter()
            .find(|name| servers.iter().all(|server| server.name != **name))
        {
            bail!(
                "there is no server {unknown:?}; with --stock there are host, native, bare, stock, stock without tracer"
            );
        }
        // The native backend is in memory, whatever is asked for.
        servers.retain(|server| !(self.postgres && server.name == NATIVE));
        servers.retain(|server| self.servers.is_empty() || self.servers.contains(&server.name));
        Ok(servers)
    }
}

/// Keeps this process to one core.
fn pin(core: usize) -> anyhow::Result<()> {
    let status = Command::new("taskset")
        .args([
            "--cpu-list",
            "--pid",
            &core.to_string(),
            &std::process::id().to_string(),
        ])
        .stdout(std::process::Stdio::null())
        .status()
        .context("running taskset, which is part of util-linux")?;
    ensure!(status.success(), "taskset could not keep the load to core {core}");
    Ok(())
}
