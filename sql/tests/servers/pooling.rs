//! PgBouncer in between, in both of its modes.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use databroker_sql::{TransactionOptions, Value, Wake};
use postgres_server::PostgresServer;

use super::{WAIT, eventually, one, open, run, statement};

/// A pooler in front of a server; ended when it is dropped.
struct Bouncer {
    process: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// PgBouncer, from the machine or from Debian's packages.
fn program(work: &std::path::Path) -> PathBuf {
    for path in ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"] {
        if PathBuf::from(path).exists() {
            return PathBuf::from(path);
        }
    }
    // Unpacked, not installed, with the libraries that it alone needs.
    let packages = "pgbouncer libc-ares2 libevent-2.1-7";
    let script = format!(
        "apt-get download -qq {packages} || {{ apt-get update -qq && apt-get download -qq {packages}; }} \
         && for package in *.deb; do dpkg -x \"$package\" .; done"
    );
    let fetched = Command::new("sh")
        .args(["-c", &script])
        .current_dir(work)
        .output()
        .unwrap();
    let path = work.join("usr/sbin/pgbouncer");
    assert!(
        path.exists(),
        "PgBouncer is missing: install Debian's package pgbouncer ({})",
        String::from_utf8_lossy(&fetched.stderr)
    );
    path
}

fn bouncer(server: &PostgresServer, mode: &str) -> Bouncer {
    let folder = tempfile::Builder::new().prefix("bouncer").tempdir().unwrap();
    let program = program(folder.path());
    let port = TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let users = folder.path().join("users");
    std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
    let settings = folder.path().join("settings");
    let mut file = std::fs::File::create(&settings).unwrap();
    writeln!(
        file,
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n\
         auth_type=trust\nauth_file={}\npool_mode={mode}\ndefault_pool_size=4\nserver_round_robin=1\n",
        server.port(),
        users.display()
    )
    .unwrap();
    // It refuses to run as root, and its user has to read the files.
    let readable = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(folder.path())
        .status()
        .unwrap();
    assert!(readable.success());
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let mut command = if is_root {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--init-groups"])
            .arg(&program);
        command
    } else {
        Command::new(&program)
    };
    let libraries = folder.path().join("usr/lib/x86_64-linux-gnu");
    let process = command
        .arg(&settings)
        .env("LD_LIBRARY_PATH", libraries)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Bouncer {
        process,
        port,
        _folder: folder,
    }
}

impl Bouncer {
    async fn url(&self) -> String {
        eventually("the pooler", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

#[tokio::test]
async fn transaction_pooling_is_noticed_and_everything_works() {
    let server = PostgresServer::start().unwrap();
    let bouncer = bouncer(&server, "transaction");
    let pool = open(&bouncer.url().await).await.unwrap();
    assert!(pool.is_bounced());

    run(&pool, "CREATE TABLE t (id bigint)", &[]).await.unwrap();
    let insert = async || {
        for number in 0..20 {
            run(&pool, "INSERT INTO t VALUES ($1)", &[Value::Integer(number)])
                .await
                .unwrap();
            let mut transaction = pool.begin(&TransactionOptions::default(), WAIT).await.unwrap();
            let parameters = [Value::Integer(100 + number)];
            transaction
                .run(&statement("INSERT INTO t VALUES ($1)", &parameters))
                .await
                .unwrap();
            transaction.commit().await.unwrap();
        }
    };
    tokio::join!(insert(), insert(), insert());
    assert_eq!(one(&pool, "SELECT count(*) FROM t").await, "120");

    // Nothing is notified, so waiting ends soon and says that one has to look.
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(Duration::from_secs(20)).await, Wake::Missed);
}

#[tokio::test]
async fn session_pooling_is_as_good_as_none() {
    let server = PostgresServer::start().unwrap();
    let bouncer = bouncer(&server, "session");
    let pool = open(&bouncer.url().await).await.unwrap();
    assert!(!pool.is_bounced());
    let mut listener = pool.listen(vec!["c".to_owned()]);
    assert_eq!(listener.wait(WAIT).await, Wake::Missed);
    run(&pool, "SELECT pg_notify('c', '')", &[]).await.unwrap();
    assert_eq!(listener.wait(WAIT).await, Wake::Notified);
}
