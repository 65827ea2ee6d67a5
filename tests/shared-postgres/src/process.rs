//! Databrokers as processes: hosts of this project, and Pomerium's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::client::{Client, SECRET};

/// How long a databroker may take from its start to its first answer.
const START: Duration = Duration::from_secs(60);

/// A databroker that runs. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// How it is started again.
    program: Program,
    port: u16,
    log: PathBuf,
}

/// Which databroker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A host of this project, with its built-in plugin.
    Host,
    /// Pomerium's own.
    Stock,
}

/// A databroker and how it is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// Which one it is.
    pub kind: Kind,
    /// Its program.
    pub path: PathBuf,
    /// The connection string.
    pub connection_string: String,
    /// More settings for a host, as environment.
    pub environment: Vec<(String, String)>,
}

impl Process {
    /// Starts a databroker on a port of its own, and waits until it answers. Its log goes to the folder, under this name.
    ///
    /// # Errors
    ///
    /// If it does not start; the error holds its log.
    pub async fn start(program: Program, folder: &Path, name: &str) -> Result<Self> {
        // Free now, and nobody else is given it so soon after; kept over restarts, so that clients find it again.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let log = folder.join(format!("{name}.log"));
        let child = spawn(&program, port, &log)?;
        let mut process = Self {
            child,
            program,
            port,
            log,
        };
        process.wait().await?;
        Ok(process)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it, as the system does when memory runs out.
    ///
    /// # Errors
    ///
    /// If it has ended before.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the databroker has ended by itself: {status}\n{}", self.log());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again at the same port, and waits until it answers.
    ///
    /// # Errors
    ///
    /// As [`Process::start`].
    pub async fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.program, self.port, &self.log)?;
        self.wait().await
    }

    /// Fails where it has ended.
    ///
    /// # Errors
    ///
    /// If it has; the error holds its log.
    pub fn is_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the databroker has ended: {status}\n{}", self.log()),
            None => Ok(()),
        }
    }

    async fn wait(&mut self) -> Result<()> {
        let client = Client::new(self.port, "")?;
        let begun = Instant::now();
        loop {
            let Err(status) = client.server_version().await else {
                return Ok(());
            };
            self.is_alive()?;
            ensure!(
                begun.elapsed() < START,
                "the databroker does not answer within {START:?}: {status}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(program: &Program, port: u16, log: &Path) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    let address = format!("127.0.0.1:{port}");
    let mut command = Command::new(&program.path);
    match program.kind {
        Kind::Host => command
            .arg("serve")
            .env("GRPC_ADDRESS", address)
            .env("GRPC_INSECURE", "true")
            .env("HEALTH_CHECK_ADDR", "off")
            .env("NO_COLOR", "1")
            .env("DATABROKER_STORAGE_TYPE", "postgres")
            .env("DATABROKER_STORAGE_CONNECTION_STRING", &program.connection_string)
            .envs(program.environment.iter().cloned()),
        Kind::Stock => command
            .args(["--address", &address, "--storage-type", "postgres", "--no-tracer"])
            .args(["--storage-connection-string", &program.connection_string]),
    };
    command
        .env("SHARED_SECRET", SECRET)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {}", program.path.display()))
}

/// Builds Pomerium's own databroker into the folder. None on a machine without Go, which can still run everything else.
///
/// # Errors
///
/// If it does not build; or on a machine without Go, under CI.
pub fn build_stock(folder: &Path) -> Result<Option<PathBuf>> {
    let go = Command::new("go")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !go.is_ok_and(|status| status.success()) {
        let how = "Pomerium's own server needs Go 1.26 or later: install it from go.dev or your distribution";
        ensure!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("{how}");
        return Ok(None);
    }
    let program = folder.join("stock-databroker");
    let status = Command::new("go")
        .args(["build", "-tags=embed_pomerium", "-o"])
        .arg(&program)
        .arg("./cmd/stock-databroker")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../pomerium"))
        .env("GONOSUMDB", "github.com/pomerium/*")
        .status()
        .context("running go build")?;
    ensure!(status.success(), "go build has failed: {status}");
    Ok(Some(program))
}
