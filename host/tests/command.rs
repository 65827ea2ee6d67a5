//! The commands, as a shell calls them, against the program itself as the server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use databroker_host::grpc::auth::Verifier;
use databroker_host::settings::SharedSecret;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_databroker-host");
/// A file that is none of descriptors.
const NO_PROTOBUF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
const OTHER_SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const USER: &str = "type.googleapis.com/user.User";

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A command with nothing in its environment but what a test sets.
fn program(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for kept in ["HOME", "PATH"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// What a command has printed, and its exit code.
#[derive(Debug)]
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Done {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Done {
    program(arguments, environment).output().unwrap().into()
}

/// A process that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running `serve`, with a secret made for this run.
struct Server {
    running: Option<Running>,
    /// HOST:PORT.
    address: String,
    secret: String,
}

impl Server {
    fn start() -> Self {
        let mut serving = program(&["serve"], &[("GRPC_ADDRESS", "127.0.0.1:0")]);
        let mut running = Running(serving.stderr(Stdio::null()).spawn().unwrap());
        let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
        let line = loop {
            let line = lines.next().expect("the program prints no first call").unwrap();
            if line.trim_start().starts_with("SHARED_SECRET=") {
                break line.trim().to_owned();
            }
        };
        let address = line.rsplit_once("//").unwrap().1.to_owned();
        let secret = line.split_once('=').unwrap().1.split_once(' ').unwrap().0.to_owned();
        Self {
            running: Some(running),
            address,
            secret,
        }
    }

    /// Ends it and starts another one at the same address, which has nothing any more.
    fn restart(&mut self) {
        self.running = None;
        let environment = [("GRPC_ADDRESS", self.address.as_str()), ("SHARED_SECRET", &self.secret)];
        let mut serving = program(&["serve"], &environment);
        serving.stdout(Stdio::null()).stderr(Stdio::null());
        self.running = Some(Running(serving.spawn().unwrap()));
    }

    /// The environment of the server, which is all that its commands need.
    fn environment(&self) -> [(&str, &str); 2] {
        [("GRPC_ADDRESS", &self.address), ("SHARED_SECRET", &self.secret)]
    }

    fn run(&self, arguments: &[&str]) -> Done {
        run(arguments, &self.environment())
    }

    /// What a command prints that must succeed.
    fn ok(&self, arguments: &[&str]) -> Done {
        let done = self.run(arguments);
        assert_eq!(done.code, Some(0), "{arguments:?}: {done:?}");
        done
    }

    fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = program(arguments, &self.environment())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap().into()
    }
}

/// A case: arguments, the exit code, and what the two outputs must hold.
type Case<'a> = (&'a [&'a str], i32, &'a [&'a str], &'a [&'a str]);

fn check(server: &Server, cases: &[Case<'_>]) {
    for (arguments, code, stdout, stderr) in cases {
        let done = server.run(arguments);
        assert_eq!(done.code, Some(*code), "{arguments:?}: {done:?}");
        for part in *stdout {
            assert!(done.stdout.contains(part), "{arguments:?}: no {part:?} in {done:?}");
        }
        for part in *stderr {
            assert!(done.stderr.contains(part), "{arguments:?}: no {part:?} in {done:?}");
        }
        // Results and everything else do not mix, and a failure is one line.
        if *code != 0 {
            assert_eq!(done.stderr.lines().count(), 1, "{arguments:?}: {done:?}");
        }
    }
}

#[test]
fn records_are_written_read_and_deleted() {
    let server = Server::start();
    let ann = r#"{"id": "u1", "name": "Ann", "email": "ann@example.com"}"#;
    check(
        &server,
        &[
            (&["types"], 0, &[], &[]),
            (
                &["record", "get", USER, "u1"],
                66,
                &[],
                &["there is no record \"u1\" of type"],
            ),
            (
                &["record", "put", "user.User", "u1", ann],
                0,
                &[USER, "u1", "version", "\"name\": \"Ann\""],
                &[],
            ),
            (
                &["record", "get", "user.User", "u1"],
                0,
                &[USER, "\"email\": \"ann@example.com\"", "modified  20"],
                &[],
            ),
            (
                &["record", "get", "user.User", "u1", "--literal-type"],
                66,
                &[],
                &["\"user.User\""],
            ),
            (
                &[
                    "record",
                    "patch",
                    "user.User",
                    "u1",
                    r#"{"name": "Anna"}"#,
                    "--mask",
                    "name",
                ],
                0,
                &["\"name\": \"Anna\"", "ann@example.com"],
                &[],
            ),
            (
                &["record", "patch", "user.User", "u2", "{}", "--mask", "name"],
                66,
                &[],
                &["u2"],
            ),
            (
                &["record", "patch", "user.User", "u1", "{}", "--mask", "nmae"],
                1,
                &[],
                &["nmae"],
            ),
            (
                &["record", "list"],
                0,
                &["VERSION", "TYPE", USER, "\"name\":\"Anna\""],
                &["records, as of version"],
            ),
            (&["record", "list", "user.User"], 0, &["u1"], &["1 records"]),
            (&["record", "list", "session.Session"], 0, &[], &["0 records"]),
            (
                &["record", "query", "user.User", "--filter", r#"{"id": "u1"}"#],
                0,
                &["u1"],
                &["1 of 1 records"],
            ),
            (
                &["record", "query", "user.User", "--filter", r#"{"id": "u9"}"#],
                0,
                &[],
                &["0 of 0 records"],
            ),
            (&["record", "query", "", "--text", "ANNA"], 0, &["u1"], &["1 of 1"]),
            (&["record", "query", "user.User", "--limit", "0"], 0, &[], &["0 of 1"]),
            (&["types"], 0, &[USER], &[]),
            (&["server-info"], 0, &["server version", "latest record version"], &[]),
            (
                &["record", "watch", "user.User", "--from-version", "0", "--no-wait"],
                0,
                &["put", "Anna"],
                &[],
            ),
            (&["record", "delete", "user.User", "u1"], 0, &["deleted"], &[]),
            (
                &["record", "delete", "user.User", "u1"],
                66,
                &[],
                &["there is no record"],
            ),
            (
                &["record", "watch", "--from-version", "0", "--no-wait"],
                0,
                &["delete type.googleapis.com/user.User u1"],
                &[],
            ),
            (
                &[
                    "record",
                    "watch",
                    "--from-version",
                    "0",
                    "--server-version",
                    "1",
                    "--no-wait",
                ],
                1,
                &[],
                &["invalid server version"],
            ),
        ],
    );
}

#[test]
fn json_is_one_document_or_a_line_for_each_item() {
    let server = Server::start();
    let json = |arguments: &[&str]| server.ok(&[arguments, &["--output", "json"]].concat());
    let data = json!({"@type": USER, "id": "u1", "name": "Ann"});
    let put = json(&["record", "put", "user.User", "u1", &data.to_string()]).json();
    assert_eq!(put["data"], data);
    assert!(put["version"].as_str().unwrap().parse::<u64>().unwrap() > 0, "{put}");
    assert_eq!(json(&["record", "get", "user.User", "u1"]).json(), put);
    // What was printed can be put again, from standard input and from a file.
    let again = server.run_with_input(
        &["record", "put", "user.User", "u2", "-"],
        put["data"].to_string().as_bytes(),
    );
    assert_eq!(again.code, Some(0), "{again:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), put["data"].to_string()).unwrap();
    server.ok(&[
        "record",
        "put",
        "user.User",
        "u3",
        &format!("@{}", file.path().display()),
    ]);

    let lines = json(&["record", "list", "user.User"]).stdout;
    let listed: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut ids: Vec<&str> = listed.iter().map(|record| record["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["u1", "u2", "u3"]);

    let found = json(&["record", "query", "user.User", "--limit", "2", "--offset", "1"]).json();
    assert_eq!(
        (&found["totalCount"], found["records"].as_array().unwrap().len()),
        (&json!("3"), 2)
    );
    let patched = json(&[
        "record",
        "patch",
        "user.User",
        "u1",
        r#"{"name": "Anna"}"#,
        "--mask",
        "name",
    ])
    .json();
    assert_eq!(patched["data"]["name"], "Anna");
    let deleted = json(&["record", "delete", "user.User", "u3"]).json();
    assert!(deleted["deletedAt"].is_string(), "{deleted}");

    let events = json(&["record", "watch", "user.User", "--from-version", "0", "--no-wait"]).stdout;
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = events.last().unwrap();
    assert_eq!(
        (&last["event"], &last["record"]["id"]),
        (&json!("delete"), &json!("u3"))
    );

    assert_eq!(
        json(&["types"]).json()["types"].as_array().unwrap().last().unwrap(),
        USER
    );
    let info = json(&["server-info"]).json();
    assert!(
        info["serverVersion"].is_string() && info["latestRecordVersion"].is_string(),
        "{info}"
    );
    assert_eq!(json(&["health"]).json(), json!({"status": "SERVING"}));

    let set = [
        "options",
        "set",
        "user.User",
        "--capacity",
        "10",
        "--ttl",
        "1h",
        "--index",
        "email",
        "--index",
        "name",
    ];
    let expected = json!({"type": USER, "capacity": "10", "ttl": "1h", "indexableFields": ["email", "name"]});
    assert_eq!(json(&set).json(), expected);
    assert_eq!(json(&["options", "get", "user.User"]).json(), expected);

    let lease = json(&["lease", "acquire", "one", "--duration", "1m"]).json();
    let id = lease["id"].as_str().unwrap();
    assert_eq!(json(&["lease", "renew", "one", id]).json(), lease);
    assert_eq!(json(&["lease", "release", "one", id]).json(), lease);
}

#[test]
fn options_and_leases_are_told_to_people() {
    let server = Server::start();
    check(
        &server,
        &[
            (&["options", "get", "some.Type"], 66, &[], &["there are no options"]),
            (
                &["options", "set", "some.Type", "--ttl", "90m"],
                0,
                &["time to live  1h 30m", "capacity      none"],
                &[],
            ),
            (&["options", "get", "some.Type"], 0, &["1h 30m"], &[]),
            (
                &["options", "set", "some.Type", "--none"],
                0,
                &["time to live  none"],
                &[],
            ),
            (&["options", "get", "some.Type"], 66, &[], &["there are no options"]),
        ],
    );
    let id = server.ok(&["lease", "acquire", "one"]).stdout;
    let id = id.trim();
    check(
        &server,
        &[
            (
                &["lease", "renew", "one", "nobody"],
                1,
                &[],
                &["another holds the lease \"one\""],
            ),
            (
                &["lease", "acquire", "one"],
                1,
                &[],
                &["another holds the lease \"one\""],
            ),
            (&["lease", "renew", "one", id], 0, &["renewed one"], &[]),
            (&["lease", "release", "one", id], 0, &["released one"], &[]),
            (&["lease", "acquire", "one"], 0, &[], &[]),
        ],
    );
}

#[test]
fn secrets_are_shown_to_people_only_who_ask_for_them() {
    let server = Server::start();
    let session = r#"{"id": "s1", "oauthToken": {"accessToken": "hush"}, "idToken": {"raw": "hush"}}"#;
    let put = server.ok(&["record", "put", "session.Session", "s1", session]);
    assert!(
        put.stdout.contains("[redacted]") && !put.stdout.contains("hush"),
        "{put:?}"
    );
    let reading: [&[&str]; 4] = [
        &["record", "get", "session.Session", "s1"],
        &["record", "list"],
        &["record", "query", "session.Session"],
        &["record", "watch", "--from-version", "0", "--no-wait"],
    ];
    for arguments in reading {
        let hidden = server.ok(arguments);
        assert!(
            hidden.stdout.contains("[redacted]") && !hidden.stdout.contains("hush"),
            "{hidden:?}"
        );
        for flag in [&["--show-secrets"][..], &["--output", "json"]] {
            let shown = server.ok(&[arguments, flag].concat());
            assert!(shown.stdout.contains("hush"), "{arguments:?} {flag:?}: {shown:?}");
        }
    }
}

#[test]
fn hostile_text_does_not_reach_the_terminal() {
    let server = Server::start();
    let id = "a\x1b[2J\u{9b}31m\u{202e}b\nc\x07";
    let name = json!({"id": id, "name": "\x1b]0;title\x07\u{9d}\u{2066}"}).to_string();
    server.ok(&["record", "put", "user.User", id, &name]);
    let commands: [&[&str]; 6] = [
        &["record", "get", "user.User", id],
        &["record", "get", "user.User", "\x1b[31mnone"],
        &["record", "list"],
        &["record", "query", "user.User"],
        &["record", "watch", "--from-version", "0", "--no-wait"],
        &["record", "put", "user.User", id, "{\"\x1b[2J\": 1}"],
    ];
    for arguments in commands {
        for output in ["text", "json"] {
            let done = server.run(&[arguments, &["--output", output]].concat());
            let dangerous = |character: char| {
                (character.is_control() && character != '\n') || matches!(character, '\u{202e}' | '\u{2066}')
            };
            let all = format!("{}{}", done.stdout, done.stderr);
            assert!(!all.contains(dangerous), "{arguments:?} {output}: {all:?}");
        }
    }
    // The line end of an id makes no line of its own, and JSON means what was put.
    let table = server.ok(&["record", "list", "user.User"]);
    assert_eq!(table.stdout.lines().count(), 2, "{table:?}");
    assert_eq!(
        server
            .ok(&["record", "get", "user.User", id, "--output", "json"])
            .json()["id"],
        id
    );
}

#[test]
fn wrong_input_is_told_with_its_place() {
    let server = Server::start();
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let huge = format!("@{PROGRAM}");
    check(
        &server,
        &[
            (
                &["record", "put", "user.User", "u1", "{\"id\":\n x}"],
                64,
                &[],
                &["line 2 column 2"],
            ),
            (
                &["record", "put", "user.User", "u1", r#"{"nmae": 1}"#],
                64,
                &[],
                &["nmae", "line 1 column 7"],
            ),
            (&["record", "put", "user.User", "u1", ""], 64, &[], &["line 1 column 0"]),
            (
                &["record", "put", "some.Type", "u1", "{}"],
                64,
                &[],
                &["\"some.Type\"", "--descriptors FILE"],
            ),
            (
                &["record", "put", "user.User", "u1", "@/does/not/exist"],
                64,
                &[],
                &["/does/not/exist"],
            ),
            (
                &["record", "put", "user.User", "u1", &huge],
                64,
                &[],
                &["cannot read the record's JSON"],
            ),
            (
                &["record", "put", "user.User", "u1", "-"],
                64,
                &[],
                &["line 1 column 0"],
            ),
            (
                &["record", "put", "google.protobuf.Value", "u1", &deep],
                64,
                &[],
                &["recursion limit"],
            ),
            (
                &["record", "query", "user.User", "--filter", "{"],
                64,
                &[],
                &["--filter", "line 1 column 1"],
            ),
            (
                &["record", "query", "user.User", "--filter", r#"{"$and": 1}"#],
                64,
                &[],
                &["$and must be an array"],
            ),
            (
                &["record", "list", "--descriptors", "/dev/zero"],
                64,
                &[],
                &["it is a device, not a file"],
            ),
            (
                &["record", "list", "--descriptors", "/does/not/exist"],
                64,
                &[],
                &["--descriptors", "/does/not/exist"],
            ),
            (
                &["record", "list", "--descriptors", NO_PROTOBUF],
                64,
                &[],
                &["FileDescriptorSet"],
            ),
            (
                &["record", "list", "--address", "nonsense"],
                64,
                &[],
                &["\"nonsense\" is not an address"],
            ),
            (
                &["record", "list", "--address", "https://127.0.0.1"],
                69,
                &[],
                &["cannot reach https://127.0.0.1"],
            ),
            (&["health", "--http", "https://127.0.0.1"], 64, &[], &["--http"]),
        ],
    );
    let usage: [&[&str]; 9] = [
        &["record"],
        &["record", "get", "user.User"],
        &["record", "patch", "user.User", "u1", "{}"],
        &["record", "query", "user.User", "--limit", "-1"],
        &["record", "watch", "--server-version", "1"],
        &["record", "list", "--timeout", "0s"],
        &["record", "list", "--output", "yaml"],
        &["options", "set", "user.User"],
        &["token", "--expires", "forever"],
    ];
    for arguments in usage {
        let done = server.run(arguments);
        assert_eq!(done.code, Some(64), "{arguments:?}: {done:?}");
    }
}

#[test]
fn large_values_are_stored_or_refused_in_a_sentence() {
    let server = Server::start();
    let put = |size: usize| {
        let json = json!({"id": "u1", "name": "x".repeat(size)}).to_string();
        server.run_with_input(
            &["record", "put", "user.User", "u1", "-", "--output", "json"],
            json.as_bytes(),
        )
    };
    let stored = put(3 << 20);
    assert_eq!(stored.code, Some(0), "{}", stored.stderr);
    let refused = put(5 << 20);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("4 MiB") && refused.stderr.lines().count() == 1,
        "{}",
        refused.stderr
    );

    // A reader that has enough is no failure.
    let mut listing = program(&["record", "list", "--output", "json"], &server.environment())
        .spawn()
        .unwrap();
    let mut beginning = [0; 10];
    listing.stdout.take().unwrap().read_exact(&mut beginning).unwrap();
    let done = Done::from(listing.wait_with_output().unwrap());
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
}

#[test]
fn nobody_there_another_secret_and_wrong_schemes_are_told_apart() {
    let server = Server::start();
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let http = |address: &str| format!("http://{address}");
    let secret = [("SHARED_SECRET", OTHER_SECRET)];
    let get = |address: &str, environment: &[(&str, &str)], code: i32, part: &str| {
        for command in [&["types"][..], &["record", "list"], &["record", "watch"]] {
            let done = run(&[command, &["--address", address]].concat(), environment);
            assert_eq!(done.code, Some(code), "{command:?} {address}: {done:?}");
            assert!(
                done.stderr.contains(part) && done.stderr.lines().count() == 1,
                "{command:?} {address}: {done:?}"
            );
        }
    };
    get(
        &http(&unused.to_string()),
        &secret,
        69,
        "connection refused: nothing listens there",
    );
    get(&http("no-such-host.invalid:1"), &secret, 69, "check the address");
    get(&http(&server.address), &secret, 77, "SHARED_SECRET is another there");
    get(&http(&server.address), &[], 64, "SHARED_SECRET: it is not set");
    get(
        &http(&server.address),
        &[("SHARED_SECRET", "short")],
        64,
        "SHARED_SECRET",
    );

    // TLS to a plaintext server.
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("ca.pem");
    let certificate = rcgen::generate_simple_self_signed(vec!["databroker".to_owned()]).unwrap();
    std::fs::write(&authority, certificate.cert.pem()).unwrap();
    let tls = [secret[0], ("CERTIFICATE_AUTHORITY_FILE", authority.to_str().unwrap())];
    get(&format!("https://{}", server.address), &tls, 69, "rite http://");

    // Plaintext to a TLS server, which answers such a beginning with an alert.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16]);
            let _ = stream.write_all(b"\x15\x03\x03\x00\x02\x02\x28");
        }
    });
    get(&http(&address.to_string()), &secret, 69, "https://");

    // A server that accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http(&silent.local_addr().unwrap().to_string());
    let done = run(&["types", "--timeout", "300ms", "--address", &address], &secret);
    assert_eq!(done.code, Some(69), "{done:?}");
    assert!(done.stderr.contains("300ms"), "{done:?}");
}

#[test]
fn health_is_an_exit_code() {
    let server = Server::start();
    check(
        &server,
        &[
            (&["health"], 0, &["SERVING"], &[]),
            (
                &["health", "--service", "databroker.DataBrokerService"],
                0,
                &["SERVING"],
                &[],
            ),
            (
                &["health", "--service", "nonsense"],
                1,
                &[],
                &["no service \"nonsense\""],
            ),
            (
                &["health", "--address", "http://127.0.0.1:1"],
                1,
                &[],
                &["connection refused"],
            ),
            (
                &["health", "--http", "http://127.0.0.1:1/"],
                1,
                &[],
                &["cannot ask http://127.0.0.1:1/"],
            ),
        ],
    );
    // No secret is needed.
    let done = run(&["health"], &[("GRPC_ADDRESS", &server.address)]);
    assert_eq!(done.code, Some(0), "{done:?}");

    // A server that accepts and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    for flag in ["--address", "--http"] {
        let begun = Instant::now();
        let done = run(&["health", flag, &address, "--timeout", "300ms"], &[]);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(2) && done.stderr.contains("300ms"),
            "{done:?}"
        );
    }

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let status = if line.starts_with("GET /readyz?exclude=x ") {
                "200 OK"
            } else {
                "503 Service Unavailable"
            };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 7\r\n\r\nthe why");
        }
    });
    for (path, code) in [("/readyz?exclude=x", 0), ("/", 1)] {
        let done = run(&["health", "--http", &format!("http://{address}{path}")], &[]);
        assert_eq!(
            (done.code, done.stdout.trim()),
            (Some(code), "the why"),
            "{path}: {done:?}"
        );
    }
}

/// The lines of a stream, each waited for.
struct Lines(std::io::Lines<BufReader<ChildStdout>>);

impl Lines {
    fn next(&mut self) -> Value {
        let line = self.0.next().expect("the stream ended").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// The next event of these kinds.
    fn event(&mut self, kinds: &[&str]) -> Value {
        loop {
            let event = self.next();
            if kinds.contains(&event["event"].as_str().unwrap()) {
                return event;
            }
        }
    }
}

#[test]
fn a_watch_outlives_the_server_and_says_what_it_missed() {
    let mut server = Server::start();
    let mut command = program(
        &["record", "watch", "user.User", "--output", "json"],
        &server.environment(),
    );
    let mut watching = Running(command.stderr(Stdio::null()).spawn().unwrap());
    // The options of the type come first, where it has any; a record that is put too early is not seen, so one is put
    // until one is.
    let mut lines = Lines(BufReader::new(watching.0.stdout.take().unwrap()).lines());
    let (seen, first) = std::sync::mpsc::channel();
    let reading = std::thread::spawn(move || {
        let put = lines.event(&["put"]);
        seen.send(put).unwrap();
        let delete = lines.event(&["delete"]);
        seen.send(delete).unwrap();
        seen.send(lines.event(&["restarted"])).unwrap();
        seen.send(lines.event(&["put"])).unwrap();
    });
    let put_until_seen = |server: &Server, id: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Between two servers there is nobody to put to.
            let _ = server.run(&["record", "put", "user.User", id, "{}"]);
            if let Ok(event) = first.recv_timeout(Duration::from_millis(100)) {
                return event;
            }
            assert!(Instant::now() < deadline, "{id} is not seen");
        }
    };
    assert_eq!(put_until_seen(&server, "u1")["record"]["id"], "u1");
    server.ok(&["record", "delete", "user.User", "u1"]);
    assert_eq!(first.recv_timeout(PATIENCE).unwrap()["record"]["id"], "u1");
    server.restart();
    let restarted = first.recv_timeout(PATIENCE).unwrap();
    assert!(restarted["serverVersion"].is_string(), "{restarted}");
    assert_eq!(put_until_seen(&server, "u2")["record"]["id"], "u2");
    reading.join().unwrap();
}

#[test]
fn a_configuration_is_checked_while_the_server_runs() {
    let server = Server::start();
    check(
        &server,
        &[
            (
                &["config", "check"],
                0,
                &[&server.address, "memory (built in)", "sha256:", "configured"],
                &[],
            ),
            (
                &["config", "check", "--services", "proxy", "--log-level", "info"],
                64,
                &[],
                &["--services"],
            ),
            (
                &["config", "check", "--databroker-storage-type", "./missing.wasm"],
                64,
                &[],
                &["missing.wasm"],
            ),
            (
                &["config", "check", "--databroker-record-descriptors", NO_PROTOBUF],
                64,
                &[],
                &["FileDescriptorSet"],
            ),
        ],
    );
    let checked = server.ok(&["config", "check", "--output", "json"]).json();
    assert_eq!(checked["address"], server.address.as_str());
    assert!(!checked.to_string().contains(&server.secret), "{checked}");

    // What the plugin is granted and may use is shown, without the values of its settings.
    let grants = [
        "config",
        "check",
        "--databroker-plugin-settings",
        "mode=hunter2",
        "--databroker-plugin-directories",
        "/data=/usr",
        "--databroker-plugin-addresses",
        "db.example.com:5432",
        "--databroker-plugin-call-time",
        "90s",
    ];
    let text = server.ok(&grants).stdout;
    let json = server.ok(&[&grants[..], &["--output", "json"]].concat()).json();
    for (label, name, value) in [
        ("plugin settings", "pluginSettings", json!(["mode"])),
        ("plugin secrets", "pluginSecrets", json!([])),
        ("plugin directories", "pluginDirectories", json!(["/data=/usr:ro"])),
        ("plugin addresses", "pluginAddresses", json!(["db.example.com:5432"])),
        ("plugin memory", "pluginMemory", json!("4GiB")),
        ("plugin call time", "pluginCallTime", json!("1m 30s")),
    ] {
        assert_eq!(json[name], value, "{json}");
        let shown = match value.as_array().map(|items| items.first()) {
            Some(Some(item)) => item.as_str().unwrap(),
            Some(None) => "none",
            None => value.as_str().unwrap(),
        };
        let line = text.lines().find(|line| line.starts_with(label)).unwrap();
        assert!(line.ends_with(&format!("  {shown}")), "{line}");
    }
    assert!(!text.contains("hunter2") && !json.to_string().contains("hunter2"));

    let few_files = Command::new("sh")
        .args(["-c", "ulimit -n 300 && exec \"$0\" config check", PROGRAM])
        .output();
    let few_files = Done::from(few_files.unwrap());
    assert_eq!(few_files.code, Some(0), "{few_files:?}");
    assert!(
        few_files.stderr.contains("here 150 of 1024, with 300 files") && few_files.stderr.contains("ulimit -n"),
        "{few_files:?}"
    );

    let mistakes = run(
        &["config", "check"],
        &[("GRPC_ADDRESS", ":5443"), ("LOG_LEVEL", "loud")],
    );
    assert_eq!(mistakes.code, Some(64), "{mistakes:?}");
    assert!(
        mistakes.stderr.contains("LOG_LEVEL") && mistakes.stderr.contains("SHARED_SECRET"),
        "{mistakes:?}"
    );
}

#[test]
fn a_plugin_is_shown_and_refused_as_serve_refuses_it() {
    let done = run(&["plugin", "inspect", "memory"], &[]);
    assert_eq!(done.code, Some(0), "{done:?}");
    for part in [
        "databroker:storage/backend@0.1.0",
        "sha256:",
        "precompiled  yes",
        "granted: lines in the host's log",
    ] {
        assert!(done.stdout.contains(part), "no {part:?} in {done:?}");
    }
    let json = run(&["plugin", "inspect", "memory", "--output", "json"], &[]).json();
    assert!(
        json["refusal"].is_null() && json["size"].as_u64().unwrap() > 0,
        "{json}"
    );
    let granted = json["imports"]
        .as_array()
        .unwrap()
        .iter()
        .all(|import| import["granted"] != "no");
    assert!(granted, "{json}");
    let needs = json["wouldNeed"].as_array().unwrap();
    assert!(
        needs
            .iter()
            .all(|need| !need["settings"].as_array().unwrap().is_empty()),
        "{json}"
    );
    let by_grant = |import: &Value| import["granted"] == "by grant";
    assert_eq!(
        needs.is_empty(),
        !json["imports"].as_array().unwrap().iter().any(by_grant),
        "{json}"
    );

    let unknown = run(&["plugin", "inspect", "nosuch"], &[]);
    assert_eq!(unknown.code, Some(64), "{unknown:?}");
    assert!(
        unknown.stderr.contains("no built-in plugin \"nosuch\"; there are: ") && unknown.stderr.contains("memory"),
        "{unknown:?}"
    );

    // The smallest component there is, and a file that is none.
    let folder = tempfile::tempdir().unwrap();
    let component = folder.path().join("empty.wasm");
    std::fs::write(&component, b"\0asm\x0d\0\x01\0").unwrap();
    let component = component.to_str().unwrap();
    let foreign = run(&["plugin", "inspect", component], &[]);
    assert!(foreign.stdout.contains("none of a storage plugin"), "{foreign:?}");
    for plugin in [component, PROGRAM, "./missing", "missing.wasm"] {
        let inspected = run(&["plugin", "inspect", plugin], &[]);
        let storage = [
            ("DATABROKER_STORAGE_TYPE", plugin),
            ("GRPC_ADDRESS", "127.0.0.1:0"),
            ("LOG_LEVEL", "off"),
        ];
        let served = run(&["serve"], &storage);
        assert_eq!(
            (inspected.code, served.code),
            (Some(64), Some(64)),
            "{plugin}: {inspected:?}"
        );
        assert_eq!(inspected.stderr, served.stderr, "{plugin}");
    }
}

#[test]
fn tokens_are_good_for_as_long_as_asked() {
    let environment = [("SHARED_SECRET", OTHER_SECRET)];
    let verifier = Verifier::new(&SharedSecret::parse(OTHER_SECRET).unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let token = run(&["token", "--expires", "10m"], &environment).stdout;
    let check = |token: &str, minutes: u64| verifier.check(token.as_bytes(), now + Duration::from_secs(60 * minutes));
    assert_eq!(check(token.trim(), 9), Ok(()));
    assert!(check(token.trim(), 11).is_err());
    let json = run(&["token", "--output", "json"], &environment).json();
    assert_eq!(check(json["token"].as_str().unwrap(), 59), Ok(()));
    assert!(
        humantime::parse_rfc3339(json["expiresAt"].as_str().unwrap()).is_ok(),
        "{json}"
    );
    assert_eq!(run(&["token"], &[]).code, Some(64));
}

#[test]
fn completions_and_man_pages_come_from_the_program() {
    for shell in ["bash", "zsh", "fish"] {
        let done = run(&["completions", shell], &[]);
        assert!(
            done.code == Some(0) && done.stdout.contains("server-info"),
            "{shell}: {done:?}"
        );
    }
    let page = run(&["man"], &[]);
    assert!(
        page.code == Some(0) && page.stdout.contains(".TH databroker"),
        "{page:?}"
    );
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    assert_eq!(run(&["man", "--out", pages.to_str().unwrap()], &[]).code, Some(0));
    for name in ["databroker-host.1", "databroker-host-record-get.1"] {
        assert!(pages.join(name).is_file(), "{name}");
    }
    let help = run(&["--help"], &[]).stdout;
    for (code, _) in databroker_host::command::EXIT_CODES {
        assert!(help.contains(&format!("\n  {code:2}  ")), "{help}");
    }
}
