//! What goes wrong, and a run of clients through it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::check::{Violation, check};
use crate::client::Client;
use crate::cluster::{Cluster, PATIENCE};
use crate::history::{Answer, Asked, Call, Content, History};
use crate::proxy::Point;
use crate::workload::{Load, Workload};

/// Something that goes wrong, and is over again after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// All connections to the database are terminated, several times.
    Terminate,
    /// The database is restarted with `-m immediate`.
    Restart,
    /// A host is killed when one of its writes or leases is at the point.
    Kill(Point),
    /// The primary is stopped with `-m immediate`, and the standby promoted.
    FailOver,
    /// A host is cut off from the database; its connections are ended.
    Cut,
    /// A host is cut off from the database, and neither of them is told.
    Silence,
    /// The same, at the moment when the host has written and not yet committed, so that it keeps others from writing.
    SilenceWriter,
    /// Each message between a host and the database takes longer.
    Slow,
    /// There is no room for more data.
    DiskFull,
    /// There is no room for Postgres' log of changes, so that Postgres itself goes down, and is started again.
    LogFull,
    /// Everything is removed through one host.
    Clear,
    /// The same, while another host is cut off from the database.
    ClearUnseen,
}

impl Fault {
    /// All that a cluster with a standby can be put through, in an order in which each can follow the one before.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut all = vec![
            Self::Terminate,
            Self::Restart,
            Self::Cut,
            Self::Silence,
            Self::SilenceWriter,
            Self::Slow,
        ];
        all.extend(Point::ALL.map(Self::Kill));
        all.push(Self::FailOver);
        all
    }

    /// Clears, with what can be in their way.
    #[must_use]
    pub fn clears() -> Vec<Self> {
        vec![
            Self::Clear,
            Self::ClearUnseen,
            Self::Kill(Point::BeforeCommit),
            Self::Clear,
            Self::Terminate,
        ]
    }

    /// Makes it go wrong, and right again.
    async fn happen(self, cluster: &mut Cluster, workload: &Workload, random: &mut StdRng) -> Result<()> {
        let host = random.random_range(0..cluster.hosts.len());
        match self {
            Self::Terminate => {
                for _ in 0..5 {
                    cluster.primary()?.sql(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
                    )?;
                    pause(300).await;
                }
            }
            Self::Restart => {
                cluster.primary()?.stop_immediately()?;
                cluster.primary()?.restart()?;
            }
            Self::Kill(point) => {
                let primary = cluster.primary;
                let way = cluster.network(host).get(primary).context("a way")?;
                tokio::time::timeout(PATIENCE, way.hold_at(point))
                    .await
                    .with_context(|| format!("host {host} never comes to the point {point:?}"))??;
                cluster.host(host)?.kill()?;
                for way in cluster.network(host) {
                    way.end_connections();
                }
                cluster.host(host)?.start_again().await?;
            }
            Self::FailOver => cluster.fail_over()?,
            Self::Cut => {
                for way in cluster.network(host) {
                    way.cut();
                }
                pause(2000).await;
                for way in cluster.network(host) {
                    way.heal();
                }
            }
            Self::Silence => {
                for way in cluster.network(host) {
                    way.silence();
                }
                pause(4000).await;
                for way in cluster.network(host) {
                    way.heal();
                }
            }
            Self::SilenceWriter => {
                let primary = cluster.primary;
                let way = cluster.network(host).get(primary).context("a way")?;
                tokio::time::timeout(PATIENCE, way.hold_at(Point::BeforeCommit))
                    .await
                    .with_context(|| format!("host {host} never commits"))??;
                for way in cluster.network(host) {
                    way.silence();
                }
                // What it holds must not keep the others from writing for ever.
                let others = (0..cluster.hosts.len()).filter(|other| *other != host);
                for other in others.collect::<Vec<_>>() {
                    let client = Client::new(cluster.host(other)?.port(), "settle")?;
                    let begun = Instant::now();
                    let record = [("settle".to_owned(), Some(Content::of("settled")))];
                    while let Err(status) = client.put(&record).await {
                        ensure!(
                            begun.elapsed() < PATIENCE,
                            "a host that is gone keeps others from writing: {status}"
                        );
                    }
                }
                for way in cluster.network(host) {
                    way.end_connections();
                    way.heal();
                }
            }
            Self::Slow => {
                for way in cluster.network(host) {
                    way.slow(Duration::from_millis(30));
                }
                pause(3000).await;
                for way in cluster.network(host) {
                    way.heal();
                }
            }
            Self::DiskFull => {
                let disk = cluster.disk.as_ref().context("the cluster has no small disk")?;
                disk.fill()?;
                pause(3000).await;
                disk.free()?;
            }
            Self::LogFull => {
                let disk = cluster.disk.as_ref().context("the cluster has no small disk")?;
                disk.fill()?;
                let begun = Instant::now();
                while cluster.primary()?.sql("SELECT pg_switch_wal()").is_ok() {
                    ensure!(begun.elapsed() < PATIENCE, "Postgres needs no room for its log");
                    pause(50).await;
                }
                pause(2000).await;
                disk.free()?;
                // It may have gone for good, or try to recover.
                drop(cluster.primary()?.stop_immediately());
                cluster.primary()?.restart()?;
            }
            Self::Clear => workload.clear(host).await?,
            Self::ClearUnseen => {
                for way in cluster.network(host) {
                    way.cut();
                }
                workload.clear((host + 1) % cluster.hosts.len()).await?;
                pause(1500).await;
                for way in cluster.network(host) {
                    way.heal();
                }
            }
        }
        Ok(())
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// What a run was like.
pub struct Run {
    /// All that was asked and answered.
    pub history: History,
    /// What is wrong with it.
    pub violations: Vec<Violation>,
    /// What each fault did to the clients.
    pub figures: Vec<Figures>,
}

/// What a fault did to the clients.
#[derive(Clone, Debug)]
pub struct Figures {
    /// The fault.
    pub fault: Fault,
    /// From its beginning until every host had written again.
    pub took: Duration,
    /// The longest time in which no write was acknowledged by any host.
    pub no_writes: Duration,
    /// The longest time in which one host acknowledged no write.
    pub one_host: Duration,
    /// Calls meanwhile.
    pub calls: usize,
    /// Of these, those of unknown outcome, by what was said.
    pub unknown: BTreeMap<String, usize>,
    /// How long the slowest of them took.
    pub slowest: Duration,
}

impl fmt::Display for Figures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown: usize = self.unknown.values().sum();
        write!(
            formatter,
            "{:?}: over after {:.2?}; no write for {:.2?}, through one host for {:.2?}; {unknown} of {} calls failed, the slowest call \
             took {:.2?}",
            self.fault, self.took, self.no_writes, self.one_host, self.calls, self.slowest
        )?;
        for (text, count) in &self.unknown {
            write!(formatter, "\n    {count} × {text}")?;
        }
        Ok(())
    }
}

/// Runs clients while faults happen one after the other, and checks what they saw.
///
/// # Errors
///
/// If the cluster does not recover from one of them.
pub async fn run(cluster: &mut Cluster, load: Load, faults: &[Fault]) -> Result<Run> {
    cluster.settle().await?;
    let mut random = StdRng::seed_from_u64(load.seed);
    let workload = Workload::start(&cluster.ports(), load).await?;
    pause(500).await;
    let mut windows = Vec::new();
    for fault in faults {
        let begun = workload.now();
        fault
            .happen(cluster, &workload, &mut random)
            .await
            .with_context(|| format!("{fault:?}"))?;
        cluster.settle().await.with_context(|| format!("after {fault:?}"))?;
        windows.push((*fault, begun, workload.now()));
        pause(700).await;
        if *fault == Fault::FailOver {
            cluster.replace_standby().await?;
        }
    }
    let history = workload.finish().await?;
    let hosts = cluster.hosts.len();
    let figures = windows
        .into_iter()
        .map(|(fault, begun, ended)| figures(&history.calls, hosts, fault, begun, ended))
        .collect();
    Ok(Run {
        violations: check(&history),
        history,
        figures,
    })
}

fn figures(calls: &[Call], hosts: usize, fault: Fault, begun: Duration, ended: Duration) -> Figures {
    let meanwhile = || calls.iter().filter(|call| call.ended > begun && call.began < ended);
    let mut unknown = BTreeMap::new();
    for call in meanwhile() {
        if let Answer::Unknown(text) = &call.answer {
            let text: String = text.chars().take(160).collect();
            *unknown.entry(text).or_default() += 1;
        }
    }
    let longest = |host: Option<usize>| {
        let mut times: Vec<_> = calls
            .iter()
            .filter(|call| matches!(call.asked, Asked::Put { .. } | Asked::Patch { .. }))
            .filter(|call| matches!(call.answer, Answer::Written(_)) && host.is_none_or(|host| call.host == host))
            .map(|call| call.ended.clamp(begun, ended))
            .chain([begun, ended])
            .collect();
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| match pair {
            [first, second] => *second - *first,
            _ => Duration::ZERO,
        });
        gaps.max().unwrap_or_default()
    };
    Figures {
        fault,
        took: ended - begun,
        no_writes: longest(None),
        one_host: (0..hosts).map(|host| longest(Some(host))).max().unwrap_or_default(),
        calls: meanwhile().count(),
        unknown,
        slowest: meanwhile()
            .map(|call| call.ended - call.began)
            .max()
            .unwrap_or_default(),
    }
}

impl fmt::Display for Run {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = &self.history.calls;
        let count = |which: fn(&Call) -> bool| calls.iter().filter(|call| which(call)).count();
        writeln!(
            formatter,
            "{} calls: {} writes acknowledged, {} reads, {} leases granted, {} refused, {} of unknown outcome; {} changes; streams went on \
             {} times",
            calls.len(),
            count(|call| matches!(call.answer, Answer::Written(_))),
            count(|call| matches!(call.answer, Answer::Found(_) | Answer::All { .. })),
            count(|call| call.answer == Answer::Granted && matches!(call.asked, Asked::Hold { .. })),
            count(|call| call.answer == Answer::Refused),
            count(|call| matches!(call.answer, Answer::Unknown(_))),
            self.history.log.len(),
            self.history.readers.iter().map(|reader| reader.resumed).sum::<usize>(),
        )?;
        for figures in &self.figures {
            writeln!(formatter, "{figures}")?;
        }
        /// More of them say nothing more.
        const SHOWN: usize = 20;
        for violation in self.violations.iter().take(SHOWN) {
            writeln!(formatter, "{violation}")?;
        }
        write!(formatter, "{} violations", self.violations.len())
    }
}
