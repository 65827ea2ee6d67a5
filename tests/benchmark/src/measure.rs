//! A run: every server, step by step and round by round.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use rand::seq::SliceRandom as _;

use crate::process::{Postgres, Process, Server};
use crate::report::{self, BARE, HOST, Kind, Measurement, NATIVE, Report, SERVERS, STOCK, STOCK_WITHOUT_TRACER};
use crate::runner::{self, Effort};
use crate::shares::Sampler;
use crate::workload::{Step, Work, Workload};
use crate::{page, plot};

/// What is measured with what, how long, and where it is written.
#[derive(Args)]
pub(crate) struct Setup {
    /// This project's program [default: databroker-host beside this program]
    #[arg(long)]
    host: Option<PathBuf>,
    /// Pomerium's server, built by `go build -tags=embed_pomerium ./cmd/stock-databroker` in tests/pomerium; without it nothing
    /// is compared with Pomerium
    #[arg(long)]
    stock: Option<PathBuf>,
    /// Only servers with one of these names: host, native, bare, stock, stock without tracer
    #[arg(long, value_delimiter = ',')]
    servers: Vec<String>,
    /// Only workloads whose name has this in it; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// How often all is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each workload is measured in a round, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How many Puts are delivered to streams
    #[arg(long, default_value_t = 2000)]
    puts: usize,
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

/// Measures, and tells what came out.
pub(crate) async fn run(setup: &Setup, kind: Kind, steps: Vec<Step>) -> anyhow::Result<()> {
    // Before this process is kept to one core: the database is not.
    let postgres = (kind == Kind::Postgres).then(Postgres::start).transpose()?;
    let mut servers = setup.servers(kind, postgres.map(Arc::new))?;
    let steps = setup.wanted(steps);
    let (processor, processors, memory) = machine()?;
    pin(setup.load_core)?;
    // What is sampled is shares, of which one round says enough.
    let rounds = if kind == Kind::Shares { 1 } else { setup.rounds };
    let measured: usize = steps.iter().map(|step| step.workloads.len() + 1).sum();
    let length = u64::try_from(rounds * servers.len() * measured)?;
    let style = ProgressStyle::with_template("{elapsed_precise} [{wide_bar}] {pos}/{len} {msg}")?;
    let progress = ProgressBar::new(length).with_style(style);
    let mut measurements = Vec::new();
    // So that no program is read from a disk at its first start that is measured.
    for server in &servers {
        drop(server.start(setup.server_core).await?);
    }
    for round in 0..rounds {
        // None is always the one after the same other.
        servers.shuffle(&mut rand::rng());
        for step in &steps {
            for server in &servers {
                measurements.extend(setup.measure(kind, round, server, step, &progress).await?);
            }
        }
    }
    progress.finish_and_clear();
    setup.tell(&Report {
        kind,
        processor,
        processors,
        memory,
        rounds,
        seconds: setup.seconds,
        measurements,
    })
}

impl Setup {
    async fn measure(
        &self,
        kind: Kind,
        round: usize,
        server: &Server,
        step: &Step,
        progress: &ProgressBar,
    ) -> anyhow::Result<Vec<Measurement>> {
        let stored = step.stored;
        progress.set_message(format!("{}: {stored} records", server.name));
        let process = server.start(self.server_core).await?;
        runner::fill(&process, stored)
            .await
            .with_context(|| format!("{}: filling the store", server.name))?;
        progress.inc(1);
        let fresh = AtomicUsize::new(stored);
        let effort = Effort {
            duration: Duration::from_secs_f64(self.seconds),
            puts: self.puts,
        };
        let mut measurements = Vec::new();
        for workload in &step.workloads {
            let name = workload.name();
            if is_answered_with_nothing(kind, server, workload) {
                progress.inc(1);
                continue;
            }
            progress.set_message(format!("{}: {name}, {stored} records", server.name));
            let in_what = || format!("{}: {name}", server.name);
            let sampler = (kind == Kind::Shares)
                .then(|| Sampler::start(process.number()))
                .transpose()?;
            let done = runner::run(workload, &process, stored, &fresh, effort)
                .await
                .with_context(in_what)?;
            let measurement = Measurement {
                callers: workload.callers,
                shares: sampler.map(Sampler::finish).transpose().with_context(in_what)?,
                ..Measurement::new(round, &server.name, name, stored)
            };
            measurements.push(complete(measurement, workload, &process, done)?);
            progress.inc(1);
        }
        Ok(measurements)
    }

    fn tell(&self, report: &Report) -> anyhow::Result<()> {
        let rows = report::rows(&report.measurements);
        if report.kind == Kind::Shares {
            println!("{}", page::shares(&rows));
        } else {
            println!(
                "{}\nRounds: {}, of {} s; medians; cost is µs of the server's processor per operation, MB or ms, database that \
                 of Postgres; in parentheses what it is of stock's",
                report::table(&rows),
                report.rounds,
                report.seconds
            );
        }
        if let Some(path) = &self.json {
            write(path, &serde_json::to_string_pretty(report)?)?;
        }
        if let Some(path) = &self.svg {
            let svg = match report.kind {
                Kind::Memory | Kind::Postgres | Kind::Shares => plot::bars(&rows),
                Kind::Curves => plot::curves(&rows),
            };
            write(path, &svg)?;
        }
        Ok(())
    }

    /// Those that are asked for; a step of which nothing is left is not made.
    fn wanted(&self, steps: Vec<Step>) -> Vec<Step> {
        let wanted = |workload: &Workload| {
            let name = workload.name();
            self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
        };
        let steps = steps.into_iter().map(|mut step| {
            step.workloads.retain(wanted);
            step
        });
        steps.filter(|step| !step.workloads.is_empty()).collect()
    }

    fn servers(&self, kind: Kind, postgres: Option<Arc<Postgres>>) -> anyhow::Result<Vec<Server>> {
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
        if let Some(unknown) = self.servers.iter().find(|name| !SERVERS.contains(&name.as_str())) {
            bail!("there is no server {unknown:?}; there are {}", SERVERS.join(", "));
        }
        let server = |name: &str, program: &Path, arguments: &[&str]| Server {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            environment: Vec::new(),
            postgres: postgres.clone(),
        };
        let mut environment = vec![
            ("GRPC_ADDRESS", "{address}"),
            ("GRPC_INSECURE", "true"),
            ("LOG_LEVEL", "warn"),
        ];
        let mut stock_arguments = vec!["--address", "{address}"];
        if postgres.is_some() {
            environment.push(("DATABROKER_STORAGE_TYPE", "postgres"));
            environment.push(("DATABROKER_STORAGE_CONNECTION_STRING", "{database}"));
            stock_arguments.extend(["--storage-type", "postgres"]);
            stock_arguments.extend(["--storage-connection-string", "{database}"]);
        }
        // A million records are about what the memory store takes when nothing is set.
        let room = ("DATABROKER_STORAGE_CONNECTION_STRING", "memory://?budget=2GiB");
        let room = (kind == Kind::Curves).then_some(room);
        environment.extend(room);
        let owned = |variables: Vec<(&str, &str)>| {
            let variables = variables.into_iter();
            variables
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        let mut servers = vec![
            Server {
                environment: owned(environment),
                ..server(HOST, &host, &["serve"])
            },
            Server {
                environment: owned(room.into_iter().collect()),
                ..server(NATIVE, &own, &["serve-native", "--address", "{address}"])
            },
            server(BARE, &own, &["serve-bare", "--address", "{address}"]),
        ];
        if let Some(stock) = &self.stock {
            servers.push(server(STOCK, stock, &stock_arguments));
            stock_arguments.push("--no-tracer");
            servers.push(server(STOCK_WITHOUT_TRACER, stock, &stock_arguments));
        }
        servers.retain(|server| {
            if self.servers.is_empty() {
                match kind {
                    Kind::Memory => true,
                    // Neither keeps anything in a database.
                    Kind::Postgres => server.name != NATIVE && server.name != BARE,
                    Kind::Shares => server.name == HOST,
                    // One server of each kind: what is looked for is how each of them grows.
                    Kind::Curves => server.name != BARE && server.name != STOCK_WITHOUT_TRACER,
                }
            } else {
                self.servers.contains(&server.name)
            }
        });
        ensure!(!servers.is_empty(), "no server is left; those of Pomerium need --stock");
        Ok(servers)
    }
}

/// In memory Pomerium's server finds nothing by a field without an index, whatever there is: that is not to be compared with looking.
fn is_answered_with_nothing(kind: Kind, server: &Server, workload: &Workload) -> bool {
    let is_stock = [STOCK, STOCK_WITHOUT_TRACER].contains(&server.name.as_str());
    is_stock && kind != Kind::Postgres && workload.work == Work::QueryUnindexed
}

/// The measurement of what a workload did.
fn complete(
    measurement: Measurement,
    workload: &Workload,
    process: &Process,
    mut done: runner::Done,
) -> anyhow::Result<Measurement> {
    match workload.work {
        Work::ColdStart => {
            return Ok(Measurement {
                start: Some(process.cold_start.as_secs_f64() * 1e3),
                ..measurement
            });
        }
        Work::Memory => {
            return Ok(Measurement {
                memory: Some(process.resident_memory()? as f64 / 1e6),
                ..measurement
            });
        }
        _ => {}
    }
    let operations = done.operations as f64;
    let a_second = |count: f64| count / done.elapsed.as_secs_f64();
    let each = |time: Duration| (!time.is_zero()).then(|| time.as_secs_f64() * 1e6 / operations);
    Ok(Measurement {
        streams: match workload.work {
            Work::FanOut(streams) => Some(streams),
            _ => None,
        },
        throughput: Some(a_second(operations)),
        processor: each(done.times.server),
        database: each(done.times.database),
        read_beside: done.read_beside.map(|count| a_second(count as f64)),
        p50: report::percentile(&mut done.latencies, 50),
        p99: report::percentile(&mut done.latencies, 99),
        ..measurement
    })
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// The processor's kind, how many there are, and the memory in bytes.
fn machine() -> anyhow::Result<(String, usize, u64)> {
    let value = |file: &str, name: &str| -> anyhow::Result<String> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?;
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        Ok(value.map(|(_, value)| value.trim().to_owned()).unwrap_or_default())
    };
    let memory = value("/proc/meminfo", "MemTotal")?;
    let kibibytes: u64 = memory.trim_end_matches("kB").trim().parse()?;
    let processors = std::thread::available_parallelism()?.get();
    Ok((value("/proc/cpuinfo", "model name")?, processors, kibibytes * 1024))
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
