//! A server as a process of its own: started on one core, watched through `/proc`, and stopped.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;

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
}

impl Server {
    /// Starts it, on the given core, and waits for its first answer.
    pub(crate) async fn start(&self, core: usize) -> anyhow::Result<Process> {
        let shared_secret = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
        // The port may in theory be taken by another before the server has it; then it says so and ends.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let filled = |text: &String| text.replace("{address}", &address);
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
}

impl Process {
    async fn answers(&self) -> Option<Client> {
        let mut client = self.target.connect().await.ok()?;
        client.server_info(()).await.ok()?;
        Some(client)
    }

    /// The processor time that it has used, in steps of 10 ms.
    pub(crate) fn processor_time(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        // The second field is the program's name in parentheses, which may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("no name in the process's state")?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let mut ticks = || -> anyhow::Result<u64> { Ok(fields.next().context("too few fields")?.parse()?) };
        let ticks = ticks()? + ticks()?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS))
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
