//! The program as an operator starts it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::server::PATIENCE;

const PROGRAM: &str = env!("CARGO_BIN_EXE_databroker-host");

/// A command with nothing in its environment but what a test sets.
pub fn program(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null());
    for kept in ["HOME", "PATH"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

pub fn output(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    program(arguments, environment).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A running `serve`, killed if the test fails.
pub struct Serving(pub Child);

impl Serving {
    fn start(environment: &[(&str, &str)]) -> Self {
        let mut command = program(&["serve"], environment);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// The command for a first call that the program prints at its start, once it listens.
    fn first_call(&mut self) -> String {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let mut calls = lines.map(|line| line.unwrap().trim().to_owned());
        calls
            .find(|line| line.starts_with("SHARED_SECRET="))
            .expect("the program prints no first call")
    }

    /// Sends a signal and waits for the end: the exit code and what was logged.
    pub fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        self.ended()
    }

    /// Waits for the end: the exit code and what was logged.
    fn ended(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.0.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() > deadline => panic!("the program does not end"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), log)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn it_serves_without_settings_and_prints_a_line_that_makes_a_first_call() {
    let mut serving = Serving::start(&[("GRPC_ADDRESS", "127.0.0.1:0")]);
    let mut lines = BufReader::new(serving.0.stdout.take().unwrap()).lines();
    let line = loop {
        let line = lines.next().expect("the program prints no first call").unwrap();
        if line.trim_start().starts_with("SHARED_SECRET=") {
            break line;
        }
    };
    let call = Command::new("sh").args(["-c", line.trim()]).output().unwrap();
    assert!(call.status.success(), "{line}: {}", text(&call.stderr));
    assert!(
        text(&call.stdout).contains("latest record version"),
        "{}",
        text(&call.stdout)
    );

    // The same with another secret, which the log explains.
    let address = line.split_whitespace().last().unwrap();
    let wrong = [("SHARED_SECRET", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")];
    let refused = output(&["server-info", "--address", address], &wrong);
    assert_eq!(refused.status.code(), Some(77));
    assert!(
        text(&refused.stderr).contains("does not accept the token"),
        "{}",
        text(&refused.stderr)
    );

    // A second one cannot take its place.
    let second = output(&["serve"], &[("GRPC_ADDRESS", address.trim_start_matches("http://"))]);
    assert_eq!(second.status.code(), Some(1));
    let error = text(&second.stderr);
    assert!(
        error.lines().count() == 1 && error.contains("another process uses it"),
        "{error}"
    );

    let secret = line.trim().split([' ', '=']).nth(1).unwrap().to_owned();
    let (code, log) = serving.end("-TERM");
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("wrong key") && log.contains("all calls are done"), "{log}");
    assert!(!log.contains(&secret), "the log shows the secret: {log}");
}

#[test]
fn an_interrupt_is_an_orderly_end_too() {
    let mut serving = Serving::start(&[("GRPC_ADDRESS", "127.0.0.1:0")]);
    let mut first = String::new();
    BufReader::new(serving.0.stdout.take().unwrap())
        .read_line(&mut first)
        .unwrap();
    let (code, log) = serving.end("-INT");
    assert_eq!(code, Some(0), "{log}");
}

#[test]
fn few_open_files_are_told_and_connections_that_say_nothing_keep_nobody_out() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -n 64 && exec \"$0\" serve", PROGRAM])
        .env("GRPC_ADDRESS", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut serving = Serving(command.spawn().unwrap());
    let line = serving.first_call();
    let address = line.rsplit_once("http://").unwrap().1;
    // More than may be open.
    let connections: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut log = BufReader::new(serving.0.stderr.take().unwrap()).lines();
    let told = log.any(|line| line.unwrap().contains("LimitNOFILE"));
    assert!(told, "nothing is said of it");
    // Whoever has a token is served all the same.
    let call = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(call.status.success(), "{}", text(&call.stderr));
    drop(connections);
}

#[test]
fn no_open_files_at_all_are_told_and_waited_out() {
    let mut serving = Serving::start(&[("GRPC_ADDRESS", "127.0.0.1:0")]);
    let line = serving.first_call();
    let address = line.rsplit_once("http://").unwrap().1;
    let id = serving.0.id();
    let process = Pid::from_child(&serving.0);
    // The program has inherited the highest that it may be.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = |current| {
        let limit = Rlimit {
            current: Some(current),
            maximum,
        };
        prlimit(Some(process), Resource::Nofile, limit).unwrap()
    };
    // The lowest number that is free.
    let open = |number: &u64| std::path::Path::new(&format!("/proc/{id}/fd/{number}")).exists();
    let before = limit((0..).find(|number| !open(number)).unwrap());
    let waiting = TcpStream::connect(address).unwrap();
    let mut log = BufReader::new(serving.0.stderr.take().unwrap()).lines();
    let told = log.any(|line| line.unwrap().contains("cannot accept connections"));
    assert!(told, "nothing is said of it");
    let computed = || {
        let line = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
        let figures: Vec<&str> = line.rsplit_once(')').unwrap().1.split_whitespace().collect();
        figures[11].parse::<u64>().unwrap() + figures[12].parse::<u64>().unwrap()
    };
    let begun = computed();
    std::thread::sleep(Duration::from_secs(1));
    let spent = computed() - begun;
    assert!(spent < 50, "it spins: {spent} of 100 hundredths of a second");
    limit(before.current.unwrap());
    let call = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(call.status.success(), "{}", text(&call.stderr));
    drop(waiting);
}

/// A thread that waits for a pipe, or for a file system that hangs, cannot be stopped by anybody.
#[test]
fn a_plugin_in_a_call_of_the_system_that_never_ends_does_not_keep_the_program_from_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
    assert!(made.success());
    let probe = guest_build::build("tests/probe", "probe");
    let cache = probe.with_file_name("cache");
    let mut serving = Serving::start(&[
        ("GRPC_ADDRESS", "127.0.0.1:0"),
        ("HEALTH_CHECK_ADDR", "off"),
        ("DATABROKER_STORAGE_TYPE", probe.to_str().unwrap()),
        ("DATABROKER_PLUGIN_SETTINGS", "script=read /data/pipe"),
        ("DATABROKER_PLUGIN_CACHE_DIR", cache.to_str().unwrap()),
        ("DATABROKER_PLUGIN_CALL_TIME", "1s"),
        (
            "DATABROKER_PLUGIN_DIRECTORIES",
            &format!("/data={}:rw", folder.path().display()),
        ),
    ]);
    let (code, log) = serving.ended();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("DATABROKER_PLUGIN_CALL_TIME"), "{log}");
}

#[test]
fn mistakes_are_told_all_at_once_a_line_each() {
    let environment = [
        ("GRPC_ADDRESS", ":5443"),
        ("LOG_LEVEL", "loud"),
        ("DATABROKER_HISTORY", "long"),
    ];
    let refused = output(&["serve", "--services=proxy"], &environment);
    assert_eq!(refused.status.code(), Some(64));
    let error = text(&refused.stderr);
    let named: Vec<&str> = error.lines().map(|line| line.split_once(':').unwrap().0).collect();
    assert_eq!(
        named,
        ["--services", "SHARED_SECRET", "DATABROKER_HISTORY", "LOG_LEVEL"],
        "{error}"
    );
}

#[test]
fn a_wrong_command_line_is_wrong_usage() {
    for arguments in [
        &["serve", "--nonsense"][..],
        &["nonsense"],
        &[],
        &["serve", "--shared-secret=x"],
    ] {
        let refused = output(arguments, &[]);
        assert_eq!(
            refused.status.code(),
            Some(64),
            "{arguments:?}: {}",
            text(&refused.stderr)
        );
    }
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        assert_eq!(output(arguments, &[]).status.code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn what_cannot_be_started_is_told_in_one_line() {
    for (name, value, part) in [
        (
            "DATABROKER_STORAGE_TYPE",
            "./does-not-exist.wasm",
            "does-not-exist.wasm",
        ),
        ("DATABROKER_STORAGE_CONNECTION_STRING", "nonsense://", "memory"),
        (
            "DATABROKER_RECORD_DESCRIPTORS",
            "/does/not/exist",
            "DATABROKER_RECORD_DESCRIPTORS",
        ),
        (
            "DATABROKER_RECORD_DESCRIPTORS",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
            "protobuf",
        ),
        ("GRPC_ADDRESS", "192.0.2.1:5443", "does not have the address"),
    ] {
        let secret = ("SHARED_SECRET", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        let environment = [
            ("LOG_LEVEL", "off"),
            ("GRPC_INSECURE", "true"),
            secret,
            ("GRPC_ADDRESS", "127.0.0.1:0"),
            (name, value),
        ];
        let failed = output(&["serve"], &environment);
        let error = text(&failed.stderr);
        // What is set is wrong, or what it names does not work.
        let code = if name == "GRPC_ADDRESS" { 1 } else { 64 };
        assert_eq!(failed.status.code(), Some(code), "{name}={value}: {error}");
        assert!(
            error.lines().count() == 1 && error.contains(part),
            "{name}={value}: {error}"
        );
    }
}
