//! PgBouncer in front of a server, as operators have it: each transaction, or each session, on a connection of the server's.
//!
//! It is taken from the machine, or fetched from Debian's packages and unpacked, not installed. Where neither can be had the
//! test fails in words.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::{PostgresServer, USER, is_root};

/// How long it may take until it listens.
const START: Duration = Duration::from_secs(30);

/// For how long a client has a connection of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as its transaction.
    Transaction,
    /// As long as its own connection.
    Session,
}

/// A pooler that runs until it is dropped.
#[derive(Debug)]
pub struct PgBouncer {
    process: Child,
    /// The port on 127.0.0.1.
    port: u16,
    /// Its settings, its log, and the program where it had to be fetched.
    _folder: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts it in front of a server without a password, with so many connections to it, and waits until it listens. It takes
    /// the connections in turn, so that no two transactions that follow each other can count on the same one.
    ///
    /// # Errors
    ///
    /// If PgBouncer cannot be had, or does not start; the error holds its log.
    pub fn start(server: &PostgresServer, mode: PoolMode, connections: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bouncer").tempdir()?;
        let program = program(folder.path())?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let users = folder.path().join("users");
        std::fs::write(&users, format!("\"{USER}\" \"\"\n"))?;
        let settings = folder.path().join("settings");
        let mode = match mode {
            PoolMode::Transaction => "transaction",
            PoolMode::Session => "session",
        };
        std::fs::write(
            &settings,
            format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\n\
                 unix_socket_dir=\nauth_type=trust\nauth_file={}\npool_mode={mode}\ndefault_pool_size={connections}\n\
                 server_round_robin=1\n",
                server.port(),
                users.display()
            ),
        )?;
        // It refuses to run as root, and its user has to read the files.
        let readable = Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()).status()?;
        ensure!(readable.success(), "PgBouncer's files could not be made readable");
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--init-groups"]);
            command.arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let log = folder.path().join("log");
        let libraries = folder
            .path()
            .join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let process = command
            .arg(&settings)
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut bouncer = Self {
            process,
            port,
            _folder: folder,
        };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = bouncer.process.try_wait()?;
            ensure!(
                ended.is_none() && begun.elapsed() < START,
                "PgBouncer does not listen ({ended:?}); its log says: {}",
                std::fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(bouncer)
    }

    /// A connection string for the superuser by way of it, without a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The program, from the machine or from Debian's packages.
fn program(work: &Path) -> Result<PathBuf> {
    for path in ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"] {
        if Path::new(path).exists() {
            return Ok(PathBuf::from(path));
        }
    }
    // With the libraries that it alone needs.
    let packages = "pgbouncer libc-ares2 libevent-2.1-7";
    let script = format!(
        "apt-get download -qq {packages} || {{ apt-get update -qq && apt-get download -qq {packages}; }} \
         && for package in *.deb; do dpkg -x \"$package\" .; done"
    );
    let fetched = Command::new("sh").args(["-c", &script]).current_dir(work).output()?;
    let path = work.join("usr/sbin/pgbouncer");
    ensure!(
        path.exists(),
        "PgBouncer is missing: install Debian's package pgbouncer ({})",
        String::from_utf8_lossy(&fetched.stderr)
    );
    Ok(path)
}
