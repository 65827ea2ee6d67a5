//! What a real component gets of what it asks for, with a grant and without.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::Log;
use crate::backend::BackendError;
use crate::component::{Destination, Directory, Grants, OpenError, Origin};

/// Lets the probe do this, and gives what came of each line.
async fn ask(grants: Grants, lines: &[&str]) -> Result<Vec<String>, BackendError> {
    match super::ask(None, grants, lines).await {
        Err(OpenError::Store { error, .. }) => Err(error),
        other => Ok(other.unwrap()),
    }
}

fn addresses(texts: &[String]) -> Grants {
    Grants {
        addresses: texts.iter().map(|text| Destination::parse(text).unwrap()).collect(),
        ..Grants::default()
    }
}

/// Answers each connection with what it was sent, or what HTTP clients expect. Gives its port.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4];
                stream.read_exact(&mut buffer).await.unwrap();
                if &buffer == b"GET " {
                    let mut rest = vec![0; 4096];
                    while !rest.windows(4).any(|end| end == b"\r\n\r\n") {
                        let length = stream.read(&mut rest).await.unwrap();
                        rest.truncate(length);
                    }
                    let request = String::from_utf8_lossy(&rest).into_owned();
                    assert!(request.starts_with("/"), "{request}");
                    let answer: &[u8] = if request.starts_with("/away") {
                        b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 4\r\n\r\naway"
                    } else {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
                    };
                    stream.write_all(answer).await.unwrap();
                } else {
                    stream.write_all(&buffer).await.unwrap();
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn without_grants_everything_is_refused_in_words() {
    let port = echo().await;
    let log = Log::default();
    let recording = log.record();
    let connect = format!("connect 127.0.0.1:{port}");
    let by_name = format!("connect localhost:{port}");
    let get = format!("get http://127.0.0.1:{port}/");
    let cases: &[(&str, &str, &str)] = &[
        // What is asked, what the plugin is told, and what the log says would allow it.
        ("setting mode", "None", "DATABROKER_PLUGIN_SETTINGS=mode=VALUE"),
        ("secret password", "None", "DATABROKER_PLUGIN_SECRETS=password=FILE"),
        (
            &connect,
            "failed: PermissionDenied",
            &format!("DATABROKER_PLUGIN_ADDRESSES=127.0.0.1:{port}"),
        ),
        (&by_name, "failed: ", "DATABROKER_PLUGIN_ADDRESSES=localhost:PORT"),
        (
            "lookup metadata.google.internal",
            "failed: ",
            "DATABROKER_PLUGIN_ADDRESSES=metadata.google.internal:PORT",
        ),
        (
            "connect 169.254.169.254:80",
            "failed: PermissionDenied",
            "DATABROKER_PLUGIN_ADDRESSES=169.254.169.254:80",
        ),
        (
            "connect [::1]:80",
            "failed: PermissionDenied",
            "DATABROKER_PLUGIN_ADDRESSES=[::1]:80",
        ),
        (
            "listen 127.0.0.1:0",
            "failed: PermissionDenied",
            "a plugin only opens connections",
        ),
        ("udp 0.0.0.0:0", "failed: PermissionDenied", "a socket for UDP"),
        (
            &get,
            "failed: ErrorCode::HttpRequestDenied",
            &format!("DATABROKER_PLUGIN_HTTP_ORIGINS=http://127.0.0.1:{port}"),
        ),
        ("read /etc/passwd", "failed: ", ""),
    ];
    let lines: Vec<&str> = cases.iter().map(|(line, ..)| *line).collect();
    let outcomes = ask(Grants::default(), &lines).await.unwrap();
    drop(recording);
    let text = log.text();
    assert_eq!(outcomes.len(), cases.len(), "{outcomes:?}");
    for ((line, told, logged), outcome) in cases.iter().zip(&outcomes) {
        assert!(outcome.starts_with(told), "{line}: {outcome}");
        assert!(text.contains(logged), "{line}: {logged} is not in {text}");
    }
}

#[tokio::test]
async fn settings_and_secrets_are_those_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter2").unwrap();
    let grants = Grants {
        settings: BTreeMap::from([("mode".to_owned(), "fast".to_owned())]),
        secrets: BTreeMap::from([
            ("password".to_owned(), file.clone()),
            ("gone".to_owned(), folder.path().join("gone")),
        ]),
        directories: vec![Directory {
            inside: "/data".to_owned(),
            outside: folder.path().to_owned(),
            writable: true,
        }],
        ..Grants::default()
    };
    let log = Log::default();
    let recording = log.record();
    let outcomes = ask(
        grants,
        &[
            "setting mode",
            "secret password",
            "secret gone",
            "setting SHARED_SECRET",
            "remove /data/password",
            "secret password",
        ],
    )
    .await;
    drop(recording);
    let outcomes = outcomes.unwrap();
    assert_eq!(outcomes[..2], ["Some(\"fast\")", "hunter2"]);
    assert!(outcomes[2].contains("cannot be read at present"), "{outcomes:?}");
    assert!(!outcomes[2].contains(folder.path().to_str().unwrap()), "{outcomes:?}");
    assert_eq!(outcomes[3], "None");
    assert!(outcomes[5].contains("cannot be read at present"), "{outcomes:?}");
    let text = log.text();
    let read: Vec<&str> = text.lines().filter(|line| line.contains("has read a secret")).collect();
    assert!(read.len() == 1 && read[0].contains("password"), "{text}");
    assert!(!read[0].contains("hunter2"), "{text}");
    // Also where it could be read a moment ago.
    for name in ["secret=\"gone\"", "secret=\"password\""] {
        let is_told = |line: &str| line.contains("cannot read a secret") && line.contains(name);
        assert!(text.lines().any(is_told), "{name}: {text}");
    }
}

#[tokio::test]
async fn a_directory_ends_where_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(folder.path().join("outside"), "secret").unwrap();
    std::fs::write(inside.join("own"), "own").unwrap();
    for (target, link) in [
        ("../outside", "up"),
        ("/etc/passwd", "absolute"),
        ("own", "within"),
        ("..", "parent"),
    ] {
        std::os::unix::fs::symlink(target, inside.join(link)).unwrap();
    }
    let grants = |writable: bool| Grants {
        directories: vec![Directory {
            inside: "/data".to_owned(),
            outside: inside.clone(),
            writable,
        }],
        ..Grants::default()
    };
    let log = Log::default();
    let recording = log.record();
    let lines = [
        "read /data/own",
        "read /data/within",
        "read /data/up",
        "read /data/absolute",
        "read /data/parent/outside",
        "read /data/../outside",
        "read /data/./../../etc/passwd",
        "read /etc/passwd",
        "write /data/parent/new",
        "write /data/new",
        "remove /data/new",
    ];
    let outcomes = ask(grants(true), &lines).await.unwrap();
    drop(recording);
    assert_eq!(outcomes[..2], ["own", "own"]);
    for (line, outcome) in lines.iter().zip(&outcomes).skip(2).take(7) {
        assert!(outcome.starts_with("failed: "), "{line}: {outcome}");
    }
    assert_eq!(outcomes[9..], ["written", "removed"]);
    assert!(!folder.path().join("new").exists());
    let text = log.text();
    assert!(
        text.contains("DATABROKER_PLUGIN_DIRECTORIES=") && text.contains("kind=\"directory\""),
        "{text}"
    );

    let outcomes = ask(
        grants(false),
        &["read /data/own", "write /data/new", "remove /data/own", "list /data"],
    )
    .await;
    let outcomes = outcomes.unwrap();
    assert_eq!(outcomes[0], "own");
    assert!(
        outcomes[1].starts_with("failed: ") && outcomes[2].starts_with("failed: "),
        "{outcomes:?}"
    );
    assert_eq!(outcomes[3], "5");
    assert!(inside.join("own").exists() && !inside.join("new").exists());
}

#[tokio::test]
async fn a_directory_that_is_gone_is_told_at_the_start() {
    let grants = Grants {
        directories: vec![Directory::parse("/data=/does/not/exist").unwrap()],
        ..Grants::default()
    };
    let said = super::ask(None, grants, &[]).await.unwrap_err().to_string();
    assert!(said.contains("/does/not/exist"), "{said}");
}

#[tokio::test]
async fn connections_go_where_they_are_granted() {
    let port = echo().await;
    let other = echo().await;
    let connect = |host: &str, port: u16| format!("connect {host}:{port}");
    let lines = [
        connect("127.0.0.1", port),
        connect("127.0.0.1", other),
        connect("localhost", port),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();

    let by_address = ask(addresses(&[format!("127.0.0.1:{port}")]), &lines).await.unwrap();
    assert_eq!(by_address[0], "ping");
    assert!(
        by_address[1].contains("PermissionDenied") && by_address[2].starts_with("failed"),
        "{by_address:?}"
    );

    // By name first, since that is what lets it in by address.
    let lines: Vec<&str> = lines.iter().rev().copied().collect();
    let by_name = ask(addresses(&[format!("localhost:{port}")]), &lines).await.unwrap();
    assert_eq!((by_name[0].as_str(), by_name[2].as_str()), ("ping", "ping"));
    assert!(by_name[1].contains("PermissionDenied"), "{by_name:?}");
}

#[tokio::test]
async fn requests_go_to_granted_origins_and_follow_nothing() {
    let port = echo().await;
    let other = echo().await;
    let grants = |origin: &str| Grants {
        http_origins: vec![Origin::parse(&format!("{origin}:{port}")).unwrap()],
        ..Grants::default()
    };
    let lines = [
        format!("get http://127.0.0.1:{port}/x"),
        format!("get http://127.0.0.1:{port}/away"),
        format!("get http://127.0.0.1:{other}/"),
        format!("get https://127.0.0.1:{port}/"),
        format!("get http://user:pw@127.0.0.1:{port}/"),
        format!("get http://CONNECT:127.0.0.1:{port}/"),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let outcomes = ask(grants("http://127.0.0.1"), &lines).await.unwrap();
    assert_eq!(outcomes[..2], ["200 hello", "302 away"]);
    for (line, outcome) in lines.iter().zip(&outcomes).skip(2) {
        assert!(outcome.starts_with("failed: "), "{line}: {outcome}");
    }
    let line = format!("get http://localhost:{port}/");
    assert_eq!(ask(grants("http://localhost"), &[&line]).await.unwrap(), ["200 hello"]);
}

#[tokio::test]
async fn what_is_open_at_once_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own"), "own").unwrap();
    let grants = Grants {
        directories: vec![Directory::parse(&format!("/data={}", folder.path().display())).unwrap()],
        most_open: 20,
        ..Grants::default()
    };
    let log = Log::default();
    let recording = log.record();
    // All are closed after the first line, and there is room again.
    let outcomes = ask(grants, &["exhaust /data/own", "read /data/own", "exhaust /data/own"])
        .await
        .unwrap();
    drop(recording);
    let (opened, error) = outcomes[0].split_once(" then ").unwrap();
    let opened: usize = opened.parse().unwrap();
    assert!((10..20).contains(&opened) && error == "OutOfMemory", "{outcomes:?}");
    assert_eq!((outcomes[1].as_str(), &outcomes[2]), ("own", &outcomes[0]));
    let text = log.text();
    assert!(
        text.contains("kind=\"open\"") && text.contains("DATABROKER_PLUGIN_OPEN"),
        "{text}"
    );
}

#[tokio::test]
async fn http_requests_count_among_what_is_open() {
    let port = echo().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("own"), "own").unwrap();
    let get = format!("get http://127.0.0.1:{port}/");
    for (most_open, expected) in [(20, "200 hello"), (1, "failed: ErrorCode::ConnectionLimitReached")] {
        let grants = Grants {
            // One handle, which is open all the while.
            directories: vec![Directory::parse(&format!("/data={}", folder.path().display())).unwrap()],
            http_origins: vec![Origin::parse(&format!("http://127.0.0.1:{port}")).unwrap()],
            most_open,
            ..Grants::default()
        };
        assert_eq!(ask(grants, &["list /data", &get]).await.unwrap()[1], expected);
    }
}

#[tokio::test]
async fn leaked_handles_end_the_instance() {
    assert_eq!(ask(Grants::default(), &["leak 7000"]).await.unwrap(), ["leaked"]);
    let error = ask(Grants::default(), &["leak 20000"]).await.unwrap_err();
    assert!(
        matches!(&error, BackendError::Stopped(cause) if cause.contains("resource table has no free keys")),
        "{error:?}"
    );
}
