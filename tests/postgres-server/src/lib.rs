//! Real Postgres servers for tests: each in a temporary folder, on a port of its own, gone when it is dropped.
//!
//! Faults are half of what a store's tests are about, so a server can be stopped as if the power had failed, killed, started
//! again on the same data, copied into a standby that follows it by streaming replication, and promoted. Postgres refuses
//! to run as root: a test that runs as root runs it as the user `postgres`, which Debian's package makes.
//!
//! The programs are looked for in the folder that `POSTGRES_BIN` names, where Debian puts them, and in `PATH`. A machine
//! without them fails the test in words and never skips it.

use std::ffi::{OsStr, OsString};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

mod bouncer;

pub use bouncer::{PgBouncer, PoolMode};

/// The superuser that every server has.
pub const USER: &str = "postgres";

/// How a server is made.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The superuser's password. With one, every connection over TCP needs it; without one, none does.
    pub password: Option<String>,
    /// Certificate and key in PEM, for a server that takes TLS.
    pub tls: Option<Tls>,
    /// More lines for `postgresql.conf`.
    pub configuration: Vec<String>,
    /// A disk for its log of changes alone, of which it then keeps as little as it can.
    pub log_disk: Option<PathBuf>,
    /// Lines for `pg_hba.conf` in place of the usual ones, first match first.
    pub access: Vec<String>,
}

/// A server's certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate, in PEM.
    pub certificate: String,
    /// Its private key, in PEM.
    pub key: String,
    /// Whoever signs clients' certificates, in PEM; none where clients need none.
    pub client_authority: Option<String>,
}

/// A server in a temporary folder. Dropping it stops it at once and removes the folder.
#[derive(Debug)]
pub struct PostgresServer {
    /// Holds the data and the log; removed with the server.
    folder: tempfile::TempDir,
    /// Where Postgres' programs are.
    programs: PathBuf,
    /// The port on 127.0.0.1, the same for all of its life.
    port: u16,
}

impl PostgresServer {
    /// Makes a server with its usual settings and starts it.
    ///
    /// # Errors
    ///
    /// If Postgres is not there, or does not start; the error holds the server's log.
    pub fn start() -> Result<Self> {
        Self::with(&Options::default())
    }

    /// Makes a server with settings of its own and starts it.
    ///
    /// # Errors
    ///
    /// As [`PostgresServer::start`].
    pub fn with(options: &Options) -> Result<Self> {
        let server = Self::folder()?;
        let mut initdb = vec![
            OsString::from("--no-sync"),
            "--auth=trust".into(),
            "--encoding=UTF8".into(),
            "--locale=C.UTF-8".into(),
            format!("--username={USER}").into(),
            "--pgdata".into(),
            server.data().into(),
        ];
        if let Some(password) = &options.password {
            let file = server.folder.path().join("password");
            server.write(&file, password)?;
            initdb.push("--pwfile".into());
            initdb.push(file.into());
        }
        if let Some(disk) = &options.log_disk {
            let folder = disk.join("log");
            std::fs::create_dir(&folder)?;
            server.give(&folder)?;
            initdb.push("--wal-segsize=1".into());
            initdb.push("--waldir".into());
            initdb.push(folder.into());
        }
        server.run("initdb", &initdb)?;
        server.configure(options)?;
        server.restart()?;
        Ok(server)
    }

    /// Copies this server into a standby that follows it by streaming replication, and starts that.
    ///
    /// # Errors
    ///
    /// If the copy fails or the standby does not start.
    pub fn standby(&self) -> Result<Self> {
        let standby = Self::folder()?;
        standby.run(
            "pg_basebackup",
            &[
                OsString::from("--pgdata"),
                standby.data().into(),
                "--write-recovery-conf".into(),
                "--no-sync".into(),
                "--checkpoint=fast".into(),
                "--dbname".into(),
                format!(
                    "host={} port={} user={USER} application_name=standby{}",
                    self.folder.path().display(),
                    self.port,
                    standby.port
                )
                .into(),
            ],
        )?;
        let place = format!(
            "port = {}\nunix_socket_directories = '{}'\n",
            standby.port,
            standby.folder.path().display()
        );
        let file = standby.data().join("postgresql.auto.conf");
        let settings = std::fs::read_to_string(&file).context("the standby has no settings")?;
        standby.write(&file, &format!("{settings}{place}"))?;
        standby.restart()?;
        Ok(standby)
    }

    /// Starts it, again if it was stopped, on the same data and port.
    ///
    /// # Errors
    ///
    /// If it does not start; the error holds the server's log.
    pub fn restart(&self) -> Result<()> {
        let log = self.folder.path().join("log");
        self.control(&[
            OsStr::new("start"),
            OsStr::new("--wait"),
            OsStr::new("--silent"),
            OsStr::new("--log"),
            log.as_os_str(),
        ])
        .with_context(|| format!("its log says: {}", std::fs::read_to_string(&log).unwrap_or_default()))
    }

    /// Stops it in good order; open connections are ended.
    ///
    /// # Errors
    ///
    /// If it did not run.
    pub fn stop(&self) -> Result<()> {
        self.control(&["stop", "--wait", "--silent", "--mode=fast"].map(OsStr::new))
    }

    /// Stops it as if it had crashed: nothing is written to disk that was not there already.
    ///
    /// # Errors
    ///
    /// If it did not run.
    pub fn stop_immediately(&self) -> Result<()> {
        self.control(&["stop", "--wait", "--silent", "--mode=immediate"].map(OsStr::new))
    }

    /// Kills its first process, as the system does when memory runs out. The others follow by themselves.
    ///
    /// # Errors
    ///
    /// If it did not run.
    pub fn kill(&self) -> Result<()> {
        let file = self.data().join("postmaster.pid");
        let text = std::fs::read_to_string(&file).context("the server does not run")?;
        let process = text.lines().next().context("the server's process file is empty")?;
        let killed = Command::new("kill").args(["-KILL", process]).status()?;
        ensure!(killed.success(), "process {process} could not be killed");
        Ok(())
    }

    /// Makes a primary of a standby, and waits until it takes writes.
    ///
    /// # Errors
    ///
    /// If it is no standby.
    pub fn promote(&self) -> Result<()> {
        self.control(&["promote", "--wait", "--silent"].map(OsStr::new))
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its Unix socket.
    #[must_use]
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// A connection string for the superuser, without a password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port)
    }

    /// What the server has logged so far.
    ///
    /// # Errors
    ///
    /// If there is no log, since it was never started.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.path().join("log")).context("the server has no log")
    }

    /// Runs statements in one transaction as the superuser, and gives what `psql` prints, unaligned and without titles.
    ///
    /// # Errors
    ///
    /// If one fails.
    pub fn sql(&self, statements: &str) -> Result<String> {
        self.psql(&["--command".into(), statements.into()])
    }

    /// Runs statements one after the other, each by itself, as they are run that are pasted into `psql`; and gives what it prints.
    ///
    /// # Errors
    ///
    /// If one fails.
    pub fn script(&self, statements: &str) -> Result<String> {
        let file = self.folder.path().join("script");
        self.write(&file, statements)?;
        self.psql(&["--file".into(), file.into()])
    }

    /// Runs `psql` over the Unix socket.
    fn psql(&self, what: &[OsString]) -> Result<String> {
        let mut arguments = vec![
            OsString::from("--no-psqlrc"),
            "--quiet".into(),
            "--tuples-only".into(),
            "--no-align".into(),
            "--set=ON_ERROR_STOP=1".into(),
            "--host".into(),
            self.folder.path().into(),
            format!("--port={}", self.port).into(),
            format!("--username={USER}").into(),
            "--dbname=postgres".into(),
        ];
        arguments.extend_from_slice(what);
        Ok(self.run("psql", &arguments)?.trim_end().to_owned())
    }

    /// An empty folder that the server's user owns, and a free port.
    fn folder() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("postgres").tempdir()?;
        let programs = programs()?;
        // Free now, and nobody else is given it so soon after.
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let server = Self { folder, programs, port };
        server.give(server.folder.path())?;
        Ok(server)
    }

    fn configure(&self, options: &Options) -> Result<()> {
        // Durability is not what a test of ours tests of Postgres; a stopped process loses nothing without it.
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            format!("port = {}", self.port),
            format!("unix_socket_directories = '{}'", self.folder.path().display()),
            "fsync = off".to_owned(),
            "wal_level = replica".to_owned(),
            "hot_standby = on".to_owned(),
            "max_wal_senders = 4".to_owned(),
        ];
        if let Some(tls) = &options.tls {
            for (name, text) in [("server.crt", &tls.certificate), ("server.key", &tls.key)] {
                self.write(&self.data().join(name), text)?;
            }
            lines.push("ssl = on".to_owned());
            if let Some(authority) = &tls.client_authority {
                self.write(&self.data().join("clients.crt"), authority)?;
                lines.push("ssl_ca_file = 'clients.crt'".to_owned());
            }
        }
        if options.log_disk.is_some() {
            // Files that were used before would be room.
            lines.extend(["min_wal_size = 2MB", "max_wal_size = 8MB", "wal_recycle = off"].map(str::to_owned));
        }
        lines.extend(options.configuration.iter().cloned());
        let file = self.data().join("postgresql.conf");
        let before = std::fs::read_to_string(&file)?;
        self.write(&file, &format!("{before}\n{}\n", lines.join("\n")))?;

        let mut access = vec![
            "local all all trust".to_owned(),
            "local replication all trust".to_owned(),
        ];
        if options.access.is_empty() {
            let method = if options.password.is_some() {
                "scram-sha-256"
            } else {
                "trust"
            };
            access.push(format!("host all all 127.0.0.1/32 {method}"));
        } else {
            access.extend(options.access.iter().cloned());
        }
        self.write(&self.data().join("pg_hba.conf"), &format!("{}\n", access.join("\n")))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes a file that only the server's user can read.
    fn write(&self, file: &Path, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
        self.give(file)
    }

    /// Gives a file or folder to the user that the server runs as.
    fn give(&self, path: &Path) -> Result<()> {
        if is_root() {
            let changed = Command::new("chown").arg(USER).arg(path).status()?;
            ensure!(
                changed.success(),
                "{} could not be given to the user {USER:?}, as whom Postgres has to run where a test runs as root: install \
                 Debian's package postgresql, which makes that user",
                path.display()
            );
        }
        Ok(())
    }

    fn control(&self, arguments: &[&OsStr]) -> Result<()> {
        let mut all = vec![OsString::from("--pgdata"), self.data().into()];
        all.extend(arguments.iter().map(OsString::from));
        self.run("pg_ctl", &all).map(drop)
    }

    /// Runs one of Postgres' programs as the server's user.
    fn run(&self, program: &str, arguments: &[OsString]) -> Result<String> {
        let path = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--init-groups"]);
            command.arg(path);
            command
        } else {
            Command::new(path)
        };
        // A server inherits the output of the program that starts it; a pipe would stay open as long as it runs.
        let output = tempfile::tempfile()?;
        let status = command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_remove("PGHOST")
            .env_remove("PGPORT")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .status()
            .with_context(|| format!("running {program}"))?;
        let text = read_back(output)?;
        if !status.success() {
            bail!("{program} failed: {text}");
        }
        Ok(text)
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // It may have been stopped or killed already.
        drop(self.stop_immediately());
    }
}

impl PostgresServer {
    /// Keeps all tables and indexes that are made from now on on a small disk, and the log of changes elsewhere: so that a
    /// full disk refuses writes, and does not end the server.
    ///
    /// # Errors
    ///
    /// If the disk cannot be used.
    pub fn keep_tables_on(&self, disk: &SmallDisk) -> Result<()> {
        let folder = disk.folder.path().join("tables");
        std::fs::create_dir(&folder)?;
        self.give(&folder)?;
        self.sql(&format!("CREATE TABLESPACE small LOCATION '{}'", folder.display()))?;
        self.sql("ALTER SYSTEM SET default_tablespace = 'small'")?;
        self.sql("SELECT pg_reload_conf()").map(drop)
    }
}

/// A disk that can be filled: in memory, unmounted when it is dropped.
#[derive(Debug)]
pub struct SmallDisk {
    /// Where it is mounted.
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts a disk with room for so many mebibytes. Only root may.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted.
    pub fn mount(mebibytes: u32) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("disk").tempdir()?;
        let output = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mebibytes}m,mode=755"),
                "small-disk",
            ])
            .arg(folder.path())
            .output()
            .context("running mount")?;
        ensure!(
            output.status.success(),
            "a small disk could not be mounted, which takes root and a system that lets it: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Self { folder })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Fills it to the last byte.
    ///
    /// # Errors
    ///
    /// If it cannot be written to for another reason.
    pub fn fill(&self) -> Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::File::options().create(true).append(true).open(self.filler())?;
        let zeros = vec![0; 4096];
        loop {
            match file.write(&zeros) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error).context("filling the disk"),
            }
        }
    }

    /// Makes room again.
    ///
    /// # Errors
    ///
    /// If it was not filled.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.filler()).context("the disk was not filled")
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A server that still uses it goes first; lazily, since its last process may take a moment to end.
        drop(Command::new("umount").arg("--lazy").arg(self.folder.path()).status());
    }
}

fn read_back(mut file: std::fs::File) -> Result<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The folder of Postgres' programs: the newest version that is there.
fn programs() -> Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = std::env::var_os("POSTGRES_BIN")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<_> = versions.flatten().map(|version| version.path().join("bin")).collect();
        versions.sort();
        candidates.extend(versions.into_iter().rev());
    }
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path));
    }
    candidates
        .into_iter()
        .find(|folder| folder.join("initdb").exists() && folder.join("pg_ctl").exists())
        .context("Postgres is missing: install Debian's package postgresql, or name the folder of its programs in POSTGRES_BIN")
}
