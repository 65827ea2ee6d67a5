#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::ffi::OsString;

use super::*;

/// Base64 of the bytes 0 to 31.
const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn source(flags: &[(&'static str, &str)], environment: &[(&str, &str)]) -> Source {
    Source {
        flags: flags
            .iter()
            .map(|(name, value)| (*name, OsString::from(value)))
            .collect(),
        environment: environment
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect(),
    }
}

fn read(environment: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    Settings::read(&source(&[], environment)).map_err(lines)
}

fn lines(mistakes: Mistakes) -> Vec<String> {
    mistakes.to_string().lines().map(str::to_owned).collect()
}

fn good(environment: &[(&str, &str)]) -> Settings {
    read(environment).unwrap_or_else(|mistakes| panic!("{environment:?}: {mistakes:?}"))
}

/// Checks that there is exactly one mistake, and that its line begins so and holds that.
fn bad(environment: &[(&str, &str)], begins: &str, holds: &str) {
    let mistakes = read(environment).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{environment:?}: {mistakes:?}");
    let line = mistakes.first().unwrap();
    assert!(
        line.starts_with(&format!("{begins}: ")) && line.contains(holds),
        "{environment:?}: {line}"
    );
    let (_, value) = environment.last().unwrap();
    let secret = environment
        .iter()
        .any(|(name, _)| name.contains("SECRET") || name.contains("CONNECTION"));
    assert!(
        !secret || value.len() < 8 || value.starts_with('/') || !line.contains(value),
        "shows a secret: {line}"
    );
}

#[test]
fn nothing_set_serves_this_machine_with_a_secret_of_its_own() {
    let settings = good(&[]);
    assert_eq!(settings.address.to_string(), "127.0.0.1:5443");
    assert!(matches!(settings.secret, Secret::Generated(_)));
    assert_eq!(settings.storage.plugin, component::Source::BuiltIn("memory".to_owned()));
    assert_eq!(settings.history, Duration::from_secs(3600));
    assert_eq!(settings.clean_interval, Duration::from_secs(60));
    assert_eq!(settings.log_level, LevelFilter::INFO);
    // Empty is as good as not set.
    let empty = good(&[
        ("GRPC_ADDRESS", ""),
        ("GRPC_INSECURE", ""),
        ("LOG_LEVEL", ""),
        ("DATABROKER_STORAGE_TYPE", ""),
    ]);
    assert_eq!(empty.address, settings.address);
}

#[test]
fn pomeriums_environment_is_taken() {
    let settings = good(&[
        ("GRPC_ADDRESS", ":5443"),
        ("GRPC_INSECURE", "true"),
        ("SHARED_SECRET", SECRET),
        ("SERVICES", "databroker"),
        ("DATABROKER_STORAGE_TYPE", "./plugins/mine.wasm"),
        (
            "DATABROKER_STORAGE_CONNECTION_STRING",
            " postgres://user:password@host/db\n",
        ),
        ("DATABROKER_HISTORY", "1h30m"),
        ("DATABROKER_CLEAN_INTERVAL", "90s"),
        ("DATABROKER_PLUGIN_CACHE_DIR", "/var/cache/x"),
        ("DATABROKER_RECORD_DESCRIPTORS", "/etc/x.binpb"),
        ("SHUTDOWN_GRACE_PERIOD", "0s"),
        ("LOG_LEVEL", "warning"),
        ("UNRELATED", "x"),
    ]);
    assert_eq!(settings.address.to_string(), ":5443");
    assert!(matches!(&settings.secret, Secret::Configured(secret) if secret.to_base64() == SECRET));
    assert_eq!(
        settings.storage.plugin,
        component::Source::File("./plugins/mine.wasm".into())
    );
    assert_eq!(
        settings.storage.connection_string.as_deref(),
        Some("postgres://user:password@host/db")
    );
    assert_eq!(settings.storage.cache_dir, Some("/var/cache/x".into()));
    assert_eq!(settings.history, Duration::from_secs(90 * 60));
    assert_eq!(settings.clean_interval, Duration::from_secs(90));
    assert_eq!(settings.grace_period, Duration::ZERO);
    assert_eq!(settings.record_descriptors, Some("/etc/x.binpb".into()));
    assert_eq!(settings.log_level, LevelFilter::WARN);
}

#[test]
fn flags_go_before_variables_and_mistakes_name_what_was_used() {
    let environment = [("LOG_LEVEL", "nonsense"), ("GRPC_ADDRESS", "nonsense")];
    let flags = [("LOG_LEVEL", "debug"), ("GRPC_ADDRESS", "127.0.0.1:1")];
    let settings = Settings::read(&source(&flags, &environment)).unwrap();
    assert_eq!((settings.log_level, settings.address.port()), (LevelFilter::DEBUG, 1));

    let mistakes = lines(Settings::read(&source(&[("LOG_LEVEL", "loud")], &[("LOG_LEVEL", "info")])).unwrap_err());
    assert_eq!(
        mistakes,
        ["--log-level: \"loud\" is not a level: write trace, debug, info, warn, error or off"]
    );
}

#[test]
fn each_mistake_says_what_to_do() {
    let open = ("GRPC_INSECURE", "true");
    bad(&[("GRPC_ADDRESS", "5443")], "GRPC_ADDRESS", "write HOST:PORT");
    bad(
        &[("GRPC_ADDRESS", "127.0.0.1:99999")],
        "GRPC_ADDRESS",
        "\"127.0.0.1:99999\" is not an address",
    );
    bad(
        &[("SHARED_SECRET", SECRET), ("GRPC_ADDRESS", ":5443")],
        "GRPC_INSECURE",
        "does not have TLS yet",
    );
    bad(&[("GRPC_INSECURE", "false")], "GRPC_INSECURE", "asks for TLS");
    bad(
        &[("GRPC_INSECURE", "yes please")],
        "GRPC_INSECURE",
        "write true or false",
    );
    bad(&[("GRPC_ADDRESS", ":5443"), open], "SHARED_SECRET", "it is not set");
    bad(&[("SHARED_SECRET", "")], "SHARED_SECRET", "empty shared secret");
    bad(
        &[("SHARED_SECRET", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n")],
        "SHARED_SECRET",
        "contains whitespace",
    );
    bad(
        &[("SHARED_SECRET", "c2hvcnQgc2VjcmV0")],
        "SHARED_SECRET",
        "got 12 bytes but want 32",
    );
    bad(
        &[("SHARED_SECRET", "hunter2hunter2!!")],
        "SHARED_SECRET",
        "not standard base64",
    );
    bad(
        &[("SHARED_SECRET_FILE", "/does/not/exist")],
        "SHARED_SECRET_FILE",
        "cannot read \"/does/not/exist\"",
    );
    bad(
        &[("SHARED_SECRET_FILE", "/dev/zero")],
        "SHARED_SECRET_FILE",
        "more than 65536 bytes",
    );
    bad(
        &[("DATABROKER_STORAGE_CONNECTION_STRING_FILE", "/does/not/exist")],
        "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
        "cannot read",
    );
    for missing in ["file", "postgres"] {
        bad(
            &[("DATABROKER_STORAGE_TYPE", missing)],
            "DATABROKER_STORAGE_TYPE",
            "does not have yet; there is memory",
        );
    }
    bad(
        &[("DATABROKER_STORAGE_TYPE", "redis")],
        "DATABROKER_STORAGE_TYPE",
        "\"redis\" is not a storage plugin; there is memory",
    );
    let misplaced = read(&[("DATABROKER_STORAGE_TYPE", "postgres://user:password@host/db")]).unwrap_err();
    assert!(!misplaced.concat().contains("password") && misplaced.concat().contains("CONNECTION_STRING"));
    bad(
        &[("DATABROKER_HISTORY", "an hour")],
        "DATABROKER_HISTORY",
        "is not a duration: write a duration such as 1h30m",
    );
    bad(
        &[("DATABROKER_HISTORY", "-1h")],
        "DATABROKER_HISTORY",
        "is not a duration",
    );
    bad(
        &[("DATABROKER_HISTORY", "3600")],
        "DATABROKER_HISTORY",
        "is not a duration",
    );
    bad(
        &[("DATABROKER_HISTORY", "0s")],
        "DATABROKER_HISTORY",
        "out of bounds: 10ms to ",
    );
    bad(
        &[("DATABROKER_HISTORY", "99999999999999999999h")],
        "DATABROKER_HISTORY",
        "is not a duration",
    );
    bad(
        &[("DATABROKER_CLEAN_INTERVAL", "2days")],
        "DATABROKER_CLEAN_INTERVAL",
        "out of bounds: 10ms to 1day",
    );
    bad(
        &[("SHUTDOWN_GRACE_PERIOD", "2h")],
        "SHUTDOWN_GRACE_PERIOD",
        "out of bounds: 0s to 1h",
    );
    bad(&[("LOG_LEVEL", "loud")], "LOG_LEVEL", "write trace, debug");
    bad(
        &[("SERVICES", "proxy,authorize")],
        "SERVICES",
        "does not include databroker",
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mistakes = read(&[
        ("GRPC_ADDRESS", "nowhere"),
        ("GRPC_INSECURE", "maybe"),
        ("SHARED_SECRET", "c2hvcnQgc2VjcmV0"),
        ("DATABROKER_STORAGE_TYPE", "redis"),
        ("DATABROKER_HISTORY", "long"),
        ("DATABROKER_CLEAN_INTERVAL", "often"),
        ("SHUTDOWN_GRACE_PERIOD", "short"),
        ("LOG_LEVEL", "loud"),
        ("SERVICES", "proxy"),
    ])
    .unwrap_err();
    let named: std::collections::BTreeSet<&str> = mistakes.iter().map(|line| line.split_once(':').unwrap().0).collect();
    assert_eq!((mistakes.len(), named.len()), (9, 9), "{mistakes:#?}");
}

#[test]
fn files_go_before_the_texts_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let secret = file("secret", SECRET.as_bytes());
    let settings = good(&[("SHARED_SECRET", "nonsense"), ("SHARED_SECRET_FILE", &secret)]);
    assert!(matches!(&settings.secret, Secret::Configured(secret) if secret.to_base64() == SECRET));

    let with_line_end = file("with_line_end", format!("{SECRET}\n").as_bytes());
    bad(
        &[("SHARED_SECRET_FILE", &with_line_end)],
        "SHARED_SECRET_FILE",
        "contains whitespace",
    );
    bad(
        &[("SHARED_SECRET_FILE", &file("empty", b""))],
        "SHARED_SECRET_FILE",
        "empty shared secret",
    );
    bad(
        &[("SHARED_SECRET_FILE", &file("binary", &[0xff; 32]))],
        "SHARED_SECRET_FILE",
        "cannot read",
    );

    let dsn = file("dsn", b"memory://?budget=1MiB\n");
    let settings = good(&[
        ("DATABROKER_STORAGE_CONNECTION_STRING", "other"),
        ("DATABROKER_STORAGE_CONNECTION_STRING_FILE", &dsn),
    ]);
    assert_eq!(
        settings.storage.connection_string.as_deref(),
        Some("memory://?budget=1MiB")
    );
}

#[cfg(unix)]
#[test]
fn values_that_are_no_text_are_mistakes() {
    use std::os::unix::ffi::OsStringExt as _;
    for key in ALL {
        let mut source = Source::default();
        source
            .environment
            .insert(key.variable.into(), OsString::from_vec(vec![0xff]));
        let mistakes = lines(Settings::read(&source).unwrap_err());
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(
            mistakes
                .concat()
                .starts_with(&format!("{}: it is not UTF-8", key.variable)),
            "{mistakes:?}"
        );
    }
}

#[test]
fn nothing_secret_is_shown_by_debug() {
    let source = source(
        &[],
        &[
            ("SHARED_SECRET", SECRET),
            ("DATABROKER_STORAGE_CONNECTION_STRING", "hunter2"),
        ],
    );
    let shown = format!("{source:?} {:?}", Settings::read(&source).unwrap());
    assert!(!shown.contains("AAEC") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn a_client_needs_the_secret_and_nothing_else() {
    let read = |environment: &[(&str, &str)]| client_secret(&source(&[], environment));
    assert_eq!(
        read(&[("SHARED_SECRET", SECRET), ("LOG_LEVEL", "loud")])
            .unwrap()
            .to_base64(),
        SECRET
    );
    assert!(
        read(&[])
            .unwrap_err()
            .to_string()
            .starts_with("SHARED_SECRET: it is not set")
    );
}
