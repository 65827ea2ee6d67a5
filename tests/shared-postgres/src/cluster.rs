//! Hosts on one database: a primary and, if wanted, a standby that follows it synchronously; a network of its own for each
//! host.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use postgres_server::{Options, PostgresServer, SmallDisk};
use tempfile::TempDir;

use crate::client::Client;
use crate::process::{Kind, Process, Program};
use crate::proxy::Proxy;

/// How long anything may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// What a cluster is made of.
#[derive(Debug)]
pub struct Setup {
    /// The host's program.
    pub program: PathBuf,
    /// How many hosts.
    pub hosts: usize,
    /// With a synchronous standby.
    pub standby: bool,
    /// A disk that can be filled, and what is on it; not together with a standby.
    pub disk: Option<(SmallDisk, OnDisk)>,
}

/// What is on the small disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDisk {
    /// The tables: Postgres goes on without them, and refuses writes.
    Tables,
    /// Postgres' own log of changes, without which it goes down.
    Log,
}

impl Setup {
    /// Three hosts on one server.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self {
            program,
            hosts: 3,
            standby: false,
            disk: None,
        }
    }
}

/// It runs until it is dropped.
pub struct Cluster {
    /// The hosts.
    pub hosts: Vec<Process>,
    /// The servers.
    pub servers: Vec<PostgresServer>,
    /// The server that is the primary.
    pub primary: usize,
    /// For each host, a way to each server.
    networks: Vec<Vec<Proxy>>,
    /// Where the tables or the log are; unmounted after the servers have gone.
    pub disk: Option<SmallDisk>,
    /// The hosts' logs.
    folder: TempDir,
}

impl Cluster {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// If anything of it does not start.
    pub async fn start(setup: Setup) -> Result<Self> {
        let mut servers = vec![PostgresServer::with(&Options {
            // A host has a pool of connections, and there are several hosts; after a fault also those that are about to end.
            configuration: vec!["max_connections = 200".to_owned()],
            log_disk: match &setup.disk {
                Some((disk, OnDisk::Log)) => Some(disk.path().to_owned()),
                _ => None,
            },
            ..Options::default()
        })?];
        if let (Some((disk, OnDisk::Tables)), Some(server)) = (&setup.disk, servers.first()) {
            server.keep_tables_on(disk)?;
        }
        if setup.standby {
            let standby = follow(servers.first().context("a primary")?).await?;
            servers.push(standby);
        }
        let folder = tempfile::tempdir()?;
        let (mut hosts, mut networks) = (Vec::new(), Vec::new());
        for number in 0..setup.hosts {
            let mut network = Vec::new();
            for server in &servers {
                network.push(Proxy::start(server.port()).await?);
            }
            let addresses: Vec<_> = network
                .iter()
                .map(|proxy| format!("127.0.0.1:{}", proxy.port()))
                .collect();
            let program = Program {
                kind: Kind::Host,
                path: setup.program.clone(),
                connection_string: format!(
                    "postgres://postgres@{}/postgres?target_session_attrs=read-write&connect_timeout=2&sslmode=disable",
                    addresses.join(",")
                ),
                environment: Vec::new(),
            };
            hosts.push(Process::start(program, folder.path(), &format!("host{number}")).await?);
            networks.push(network);
        }
        Ok(Self {
            hosts,
            servers,
            primary: 0,
            networks,
            disk: setup.disk.map(|(disk, _)| disk),
            folder,
        })
    }

    /// Where the hosts are.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.hosts.iter().map(Process::port).collect()
    }

    /// The folder of the hosts' logs.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The primary.
    ///
    /// # Errors
    ///
    /// Never.
    pub fn primary(&self) -> Result<&PostgresServer> {
        self.servers.get(self.primary).context("a primary")
    }

    /// A host's ways to the servers.
    #[must_use]
    pub fn network(&self, host: usize) -> &[Proxy] {
        self.networks.get(host).map_or(&[], Vec::as_slice)
    }

    /// A host.
    ///
    /// # Errors
    ///
    /// If there are not so many.
    pub fn host(&mut self, host: usize) -> Result<&mut Process> {
        self.hosts.get_mut(host).context("there are not so many hosts")
    }

    /// Kills the primary's processes as a crash would, and promotes the standby.
    ///
    /// # Errors
    ///
    /// If there is no standby.
    pub fn fail_over(&mut self) -> Result<()> {
        let standby = 1 - self.primary;
        ensure!(self.servers.len() == 2, "there is no standby");
        self.primary()?.stop_immediately()?;
        self.primary = standby;
        self.primary()?.promote()
    }

    /// Makes a new standby in place of the server that was the primary before.
    ///
    /// # Errors
    ///
    /// If it does not start to follow.
    pub async fn replace_standby(&mut self) -> Result<()> {
        let lost = 1 - self.primary;
        let standby = follow(self.primary()?).await?;
        for network in &self.networks {
            network.get(lost).context("a way")?.aim(standby.port());
        }
        *self.servers.get_mut(lost).context("a server")? = standby;
        Ok(())
    }

    /// Waits until each host writes.
    ///
    /// # Errors
    ///
    /// If one does not, or has ended.
    pub async fn settle(&mut self) -> Result<()> {
        let begun = Instant::now();
        for host in &mut self.hosts {
            let client = Client::new(host.port(), "settle")?;
            loop {
                host.is_alive()?;
                let content = crate::history::Content::of("settled");
                match client.put(&[(format!("host {}", host.port()), Some(content))]).await {
                    Ok(_) => break,
                    Err(status) => ensure!(
                        begun.elapsed() < PATIENCE,
                        "a host does not recover: {status}\n{}",
                        host.log()
                    ),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }
}

/// Makes a standby that a server waits for at each commit.
async fn follow(primary: &PostgresServer) -> Result<PostgresServer> {
    let standby = primary.standby()?;
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")?;
    primary.sql("SELECT pg_reload_conf()")?;
    let begun = Instant::now();
    while primary.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'")? != "1" {
        ensure!(begun.elapsed() < PATIENCE, "the standby does not follow synchronously");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(standby)
}
