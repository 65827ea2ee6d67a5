//! A day in the life of the program: a configuration file, TLS, probes, metrics, a secret that is rotated while it serves.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use databroker_host::settings::SharedSecret;

use crate::program::{Serving, output, program, text};
use crate::server::PATIENCE;

/// The program, with its log read line by line.
pub struct Operated {
    pub serving: Serving,
    lines: mpsc::Receiver<String>,
    pub seen: Vec<String>,
}

impl Operated {
    pub fn start(file: &Path) -> Self {
        let mut command = program(&["serve", "--config", file.to_str().unwrap()], &[]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            serving: Serving(child),
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line of the log that holds all of these.
    pub fn line(&mut self, parts: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if parts.iter().all(|part| line.contains(part)) {
                        return line;
                    }
                }
                Err(_) => panic!("no line with {parts:?} in\n{}", self.seen.join("\n")),
            }
        }
    }

    pub fn signal(&self, signal: &str) {
        let id = self.serving.0.id().to_string();
        let sent = std::process::Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(sent.success());
    }
}

/// The address in a line of the log in JSON.
pub fn address(line: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line["address"].as_str().unwrap().to_owned()
}

fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub fn get(address: &str, path: &str, headers: &str) -> String {
    http(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n"),
    )
}

#[test]
fn it_is_run_from_a_file_with_tls_probes_metrics_and_a_secret_that_is_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (
        SharedSecret::generate().to_base64(),
        SharedSecret::generate().to_base64(),
    );
    let file = folder.path().join("config.yaml");
    let write = |secrets: &str, more: &str| {
        let content = format!(
            "grpc_address: 127.0.0.1:0\ntls_derive: databroker.internal\nhealth_check_addr: 127.0.0.1:0\n\
             metrics_address: 127.0.0.1:0\nmetrics_basic_auth: c2NyYXBlcjpwYXNzd29yZA==\nlog_format: json\n\
             routes: []\n{secrets}\n{more}"
        );
        fs::write(&file, content).unwrap();
    };
    write(&format!("shared_secret: {old}"), "");
    let mut operated = Operated::start(&file);
    operated.line(&["routes"]);
    let probes = address(&operated.line(&["answering probes"]));
    let metrics = address(&operated.line(&["showing metrics"]));
    let grpc = address(&operated.line(&["\"serving\""]));

    let ready = Instant::now() + PATIENCE;
    while !get(&probes, "/readyz", "").starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < ready, "{}", get(&probes, "/status", ""));
        std::thread::sleep(Duration::from_millis(10));
    }
    let url = format!("https://{grpc}");
    let call = |secret: &str| {
        output(
            &[
                "server-info",
                "--address",
                &url,
                "--tls-derive",
                "--override-certificate-name",
                "databroker.internal",
            ],
            &[("SHARED_SECRET", secret)],
        )
    };
    let answered = call(&old);
    assert!(answered.status.success(), "{}", text(&answered.stderr));
    // Without TLS nobody is let in, and the client says why.
    let plain = output(
        &["server-info", "--address", &format!("http://{grpc}")],
        &[("SHARED_SECRET", &old)],
    );
    assert_eq!(plain.status.code(), Some(69), "{}", text(&plain.stderr));
    assert!(text(&plain.stderr).contains("TLS"), "{}", text(&plain.stderr));

    let shown = get(
        &metrics,
        "/metrics",
        "Authorization: Basic c2NyYXBlcjpwYXNzd29yZA==\r\n",
    );
    for part in ["databroker_connections", "ServerInfo", "plugin_up 1"] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert!(get(&metrics, "/metrics", "").starts_with("HTTP/1.1 401"));

    // Both secrets are good for a while. The certificate follows the new one.
    write(
        &format!("shared_secret: {new}\nshared_secret_previous: {old}"),
        "log_level: debug",
    );
    operated.signal("-HUP");
    operated.line(&["read the settings again", "SHARED_SECRET", "LOG_LEVEL"]);
    operated.signal("-HUP");
    operated.line(&["read the settings again: nothing has changed"]);
    let answered = call(&new);
    assert!(answered.status.success(), "{}", text(&answered.stderr));

    // What cannot be used changes nothing, and every mistake is told.
    write("shared_secret: nonsense", "grpc_adress: \":1\"");
    operated.signal("-HUP");
    operated.line(&["grpc_adress", "grpc_address"]);
    operated.line(&["shared_secret"]);
    operated.line(&["stay as they were"]);
    assert!(call(&new).status.success());

    // What needs a restart is named.
    write(&format!("shared_secret: {new}"), "databroker_history: 2h");
    operated.signal("-HUP");
    operated.line(&["read the settings again", "DATABROKER_HISTORY"]);
    assert!(call(&new).status.success());

    let log = operated.seen.join("\n");
    assert!(
        !log.contains(&old) && !log.contains(&new),
        "a secret is in the log:\n{log}"
    );
    operated.signal("-TERM");
    operated.line(&["shutting down"]);
    operated.line(&["all calls are done"]);
    assert_eq!(operated.serving.0.wait().unwrap().code(), Some(0));
}

/// Logs are the least of its work.
#[test]
fn it_serves_where_the_disk_is_full_for_logs() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let secret = SharedSecret::generate().to_base64();
    let mut command = program(
        &["serve"],
        &[
            ("GRPC_ADDRESS", "127.0.0.1:0"),
            ("HEALTH_CHECK_ADDR", "off"),
            ("LOG_LEVEL", "debug"),
        ],
    );
    let child = command.stdout(Stdio::piped()).stderr(full).spawn().unwrap();
    let mut serving = Serving(child);
    let mut lines = BufReader::new(serving.0.stdout.take().unwrap()).lines();
    let call = lines
        .by_ref()
        .map_while(Result::ok)
        .find(|line| line.contains("SHARED_SECRET="))
        .unwrap();
    for _ in 0..3 {
        // One call that succeeds, and one that is refused, which is logged.
        let good = std::process::Command::new("sh")
            .args(["-c", call.trim()])
            .output()
            .unwrap();
        assert!(good.status.success(), "{}", text(&good.stderr));
        let address = call.split_whitespace().last().unwrap();
        let refused = output(&["server-info", "--address", address], &[("SHARED_SECRET", &secret)]);
        assert_eq!(refused.status.code(), Some(77));
    }
    let id = serving.0.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(serving.0.wait().unwrap().code(), Some(0));
}
