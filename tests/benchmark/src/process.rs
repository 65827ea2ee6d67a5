//! A server as a process of its own: started on one core, watched through `/proc`, and stopped.

use std::net::TcpListener;
use std::ops::Sub;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;

use postgres_server::{Options, PostgresServer, USER};

use crate::client::{Client, Target};

/// How long a server may take from its start to its first answer.
const START: Duration = Duration::from_secs(30);

/// Clock ticks of the system in a second, which is 100 on every Linux that people run.
const TICKS: u64 = 100;

/// A server that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its name in tables.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments; `{address}` stands for where to listen.
    pub arguments: Vec<String>,
    /// Its environment, beside the shared secret in `SHARED_SECRET`; `{address}` as above.
    pub environment: Vec<(String, String)>,
    /// Where it keeps its records in a database: the server that makes one for it, whose connection string stands for
    /// `{database}` in arguments and environment.
    pub postgres: Option<Arc<Postgres>>,
}

impl Server {
    /// Starts it, on the given core, and waits for its first answer.
    pub(crate) async fn start(&self, core: usize) -> anyhow::Result<Process> {
        let shared_secret = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
        // The port may in theory be taken by another before the server has it; then it says so and ends.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let database = self.postgres.clone().map(Database::new).transpose()?;
        let connection_string = database.as_ref().map(Database::connection_string).unwrap_or_default();
        let filled = |text: &String| {
            text.replace("{address}", &address)
                .replace("{database}", &connection_string)
        };
        let begun = Instant::now();
        let child = Command::new("taskset")
            .args(["--cpu-list", &core.to_string()])
            .arg(&self.program)
            .args(self.arguments.iter().map(filled))
            .env("SHARED_SECRET", &shared_secret)
            .envs(self.environment.iter().map(|(name, value)| (name, filled(value))))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| {
                format!(
                    "starting {} by taskset, which is part of util-linux",
                    self.program.display()
                )
            })?;
        let mut process = Process {
            child,
            target: Target::new(&address, &shared_secret)?,
            cold_start: Duration::ZERO,
            database,
        };
        loop {
            if let Some(client) = process.answers().await {
                process.cold_start = begun.elapsed();
                drop(client);
                return Ok(process);
            }
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended before it answered: {status}", self.name);
            }
            if begun.elapsed() > START {
                bail!("{} did not answer within {START:?}", self.name);
            }
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }
}

/// A server that runs. It is killed when dropped.
pub(crate) struct Process {
    child: Child,
    /// How to call it.
    pub target: Target,
    /// From its start to the first answer.
    pub cold_start: Duration,
    /// Dropped, and so removed, after the process has been killed.
    database: Option<Database>,
}

/// Processor time, in steps of 10 ms.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// The server's.
    pub server: Duration,
    /// That of the database that it keeps its records in, all processes of it together.
    pub database: Duration,
}

impl Sub for Times {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            server: self.server.saturating_sub(before.server),
            database: self.database.saturating_sub(before.database),
        }
    }
}

impl Process {
    async fn answers(&self) -> Option<Client> {
        let mut client = self.target.connect().await.ok()?;
        client.server_info(()).await.ok()?;
        Some(client)
    }

    /// Its number in the system.
    pub(crate) fn number(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that was used until now.
    pub(crate) fn times(&self) -> anyhow::Result<Times> {
        let database = self
            .database
            .as_ref()
            .map(|database| database.postgres.processor_time());
        Ok(Times {
            server: State::of(self.child.id())?.own,
            database: database.transpose()?.unwrap_or_default(),
        })
    }

    /// The memory that is resident, in bytes.
    pub(crate) fn resident_memory(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS in the process's state")?;
        let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has nothing to keep.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Postgres server with its usual durability, which all servers of a run share, each with a database of its own.
#[derive(Debug)]
pub(crate) struct Postgres {
    server: PostgresServer,
    /// Its first process, the parent of all others.
    process: u32,
    databases: AtomicUsize,
}

impl Postgres {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let server = PostgresServer::with(&Options {
            // So that it has statistics soon after a store was filled, as any that has run for a minute.
            configuration: vec!["autovacuum_naptime = 1s".to_owned()],
            ..Options::default()
        })?;
        let process = server
            .sql("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)")?
            .trim()
            .parse()
            .context("no process number in postmaster.pid")?;
        Ok(Self {
            server,
            process,
            databases: AtomicUsize::new(0),
        })
    }

    /// That of its first process, of all that it has waited for, and of those that run.
    fn processor_time(&self) -> anyhow::Result<Duration> {
        let first = State::of(self.process)?;
        let mut time = first.own + first.ended_children;
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(process) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that has ended meanwhile is counted next time.
            match State::of(process) {
                Ok(state) if state.parent == self.process => time += state.own,
                _ => {}
            }
        }
        Ok(time)
    }
}

/// An empty database. It is removed when dropped, so that what Postgres does to it in the background is over before
/// another server's turn.
struct Database {
    postgres: Arc<Postgres>,
    name: String,
}

impl Database {
    fn new(postgres: Arc<Postgres>) -> anyhow::Result<Self> {
        let name = format!("benchmark{}", postgres.databases.fetch_add(1, Ordering::Relaxed));
        postgres.server.sql(&format!("CREATE DATABASE {name}"))?;
        // The one before may have left work, for which this one would be charged.
        postgres.server.sql("CHECKPOINT")?;
        Ok(Self { postgres, name })
    }

    fn connection_string(&self) -> String {
        let (port, name) = (self.postgres.server.port(), &self.name);
        format!("postgres://{USER}@127.0.0.1:{port}/{name}?sslmode=disable")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The whole server goes with the run in any case.
        let _ = self
            .postgres
            .server
            .sql(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}

/// What `/proc` says of a process.
struct State {
    parent: u32,
    /// The processor time that it has used.
    own: Duration,
    /// That of its children that have ended.
    ended_children: Duration,
}

impl State {
    fn of(process: u32) -> anyhow::Result<Self> {
        let path = format!("/proc/{process}/stat");
        let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The second field is the program's name in parentheses, which may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("no name in the process's state")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let number =
            |place: usize| -> anyhow::Result<u64> { Ok(fields.get(place).context("too few fields")?.parse()?) };
        let time = |place| {
            anyhow::Ok(Duration::from_millis(
                (number(place)? + number(place + 1)?) * 1000 / TICKS,
            ))
        };
        Ok(Self {
            parent: u32::try_from(number(1)?)?,
            own: time(11)?,
            ended_children: time(13)?,
        })
    }
}
