//! Pomerium's own databroker as the oracle: it passes the suite but for the differences that are listed, and fails each of
//! those.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use databroker_conformance::{Format, Known, Selection, Settings, Suite, Target};

#[tokio::test(flavor = "multi_thread")]
async fn stock_differs_where_the_table_says() {
    let go = Command::new("go")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !go.is_ok_and(|status| status.success()) {
        // A machine without Go can still run everything else; the gate cannot.
        let how = "Pomerium's own server needs Go 1.26 or later: install it from go.dev or your distribution";
        assert!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("{how}");
        return;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = Known::read(&folder.join("stock-differences.toml")).expect("the table of differences");
    let built = tempfile::tempdir().expect("a temporary folder");
    let program = built.path().join("stock-databroker");
    let status = Command::new("go")
        .args(["build", "-tags=embed_pomerium", "-o"])
        .arg(&program)
        .arg("./cmd/stock-databroker")
        .current_dir(folder.join("../pomerium"))
        .env("GONOSUMDB", "github.com/pomerium/*")
        .status()
        .expect("run go build");
    assert!(status.success(), "go build has failed: {status}");

    let secret = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 32]>());
    let stock = Stock::start(&program, &secret);
    let target = Target::new(&stock.address, &secret, Settings::default()).expect("a target");
    // One by one, since some of the cases bring it down; it is started again then.
    let selection = Selection {
        known,
        jobs: 1,
        patience: Duration::from_secs(30),
        ..Selection::default()
    };
    let report = Suite::run(&target, &selection).await;
    let text = report.write(Format::Text).expect("a report");
    assert!(report.is_success(), "{text}");
    println!("{text}");
}

/// The server, which is started again whenever it has gone down, at the same address.
struct Stock {
    address: String,
    stop: std::sync::mpsc::Sender<()>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Stock {
    fn start(program: &Path, secret: &str) -> Self {
        let (mut server, address) = spawn(program, secret, "127.0.0.1:0");
        let (stop, stopped) = std::sync::mpsc::channel();
        let (program, secret, again) = (program.to_owned(), secret.to_owned(), address.clone());
        let keeper = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                if server.try_wait().expect("ask for the server").is_some() {
                    (server, _) = spawn(&program, &secret, &again);
                }
            }
            server.kill().expect("stop the server");
            server.wait().expect("wait for the server");
        });
        Self {
            address: format!("http://{address}"),
            stop,
            keeper: Some(keeper),
        }
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

fn spawn(program: &Path, secret: &str, address: &str) -> (Child, String) {
    let mut server = Command::new(program)
        .args(["--address", address, "--storage-type", "memory", "--no-tracer"])
        .env("SHARED_SECRET", secret)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("start the stock server");
    let mut output = BufReader::new(server.stdout.take().expect("its output"))
        .lines()
        .map_while(Result::ok);
    let line = output.find(|line| line.starts_with("listening on "));
    let line = line.expect("the stock server says where it listens");
    // It would die of a pipe that nobody reads.
    std::thread::spawn(move || output.for_each(drop));
    (server, line.trim_start_matches("listening on ").to_owned())
}
