//! Every setting with values that cannot be used: one line each, that says where, what is wrong and what to do.

use super::*;

/// Checks that there is exactly one mistake, and that its line begins so and holds that.
fn check(folder: &Folder, environment: &[(&str, &str)], begins: &str, holds: &str) {
    let mistakes = read(environment).map(|_| ()).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{environment:?}: {mistakes:#?}");
    let line = folder.shortened(&mistakes[0]);
    assert!(
        line.starts_with(&format!("{begins}: ")) && line.contains(holds),
        "{environment:?}: {line}"
    );
    assert!(!line.contains("hunter2"), "shows a secret: {line}");
    for (name, value) in environment {
        let is_secret = |text| SharedSecret::parse(text).is_ok();
        let secret = ALL.iter().any(|key| key.variable == *name && key.secret) || is_secret(value);
        assert!(
            !secret || value.len() < 4 || !line.contains(value),
            "shows a secret: {line}"
        );
    }
}

/// The variables, the setting that is at fault, what is wrong with it, and what to do.
type Case<'a> = (Vec<(&'a str, &'a str)>, &'a str, String, &'a str);

#[test]
fn each_mistake_says_what_to_do() {
    let folder = Folder::new();
    let file = |name: &str, content: &[u8]| folder.file(name, content);
    let pipe = folder.0.path().join("pipe").to_str().unwrap().to_owned();
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let (certificate, key) = folder.certificate("own");
    let (_, other_key) = folder.certificate("other");
    let secret = ("SHARED_SECRET", SECRET);
    let metrics = ("METRICS_ADDRESS", ":9090");
    let traces = ("OTEL_TRACES_EXPORTER", "otlp");
    let postgres = ("DATABROKER_STORAGE_TYPE", "postgres");
    let text = base64(std::fs::read(&certificate).unwrap());
    let text_key = base64(std::fs::read(&key).unwrap());
    let cache = folder.0.path().join("cache/not/there").to_str().unwrap().to_owned();
    let shared_secret = file("shared-secret", SECRET.as_bytes());
    // A folder that holds nothing but links, each of which leads to what is this process's own.
    let links = folder.0.path().join("links");
    std::fs::create_dir(&links).unwrap();
    let link = |name: &str, target: &str| {
        let link = links.join(name);
        std::os::unix::fs::symlink(target, &link).unwrap();
        link.to_str().unwrap().to_owned()
    };
    let linked_secret = link("secret", &shared_secret);
    let linked_cache = link("cache", "..");
    let links = links.display().to_string();
    let utf16: Vec<u8> = "\u{feff}AAEC".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let listed = format!("[{{cert: {certificate}, key: {key}}}]");
    let too_long = format!("{}.com", "a".repeat(300));
    // What is set besides, the setting, its value, and what the line holds.
    let cases: Vec<Case<'_>> = vec![
        (
            vec![],
            "GRPC_ADDRESS",
            "5443".into(),
            "\"5443\" is not an address: write HOST:PORT",
        ),
        // What was meant for DATABROKER_STORAGE_CONNECTION_STRING.
        (
            vec![],
            "GRPC_ADDRESS",
            "postgres://pomerium:hunter2@db/pomerium".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "postgres://pomerium:a'b hunter2@db/pomerium".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "host=db password=hunter2 user=pomerium".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "host=db PASSWORD = 'b hunter2' sslpassword=a password=hunter2".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "postgres://db/pomerium?user=pomerium&password=hunter2".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "postgres://db/pomerium?password=hunter2".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "password=hunter2".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "sslmode=disable password=hunter2".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "PGPASSWORD=hunter2".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            "postgres://pomerium:hunter@hunter2@db/pomerium".into(),
            "looks like a connection string, which is not shown",
        ),
        (
            vec![],
            "GRPC_ADDRESS",
            "127.0.0.1:99999".into(),
            "\"127.0.0.1:99999\" is not an address",
        ),
        (
            vec![],
            "GRPC_INSECURE",
            "yes please".into(),
            "neither true nor false: write true or false",
        ),
        (
            vec![],
            "SERVICES",
            "proxy,authorize".into(),
            "does not include databroker",
        ),
        (vec![], "SHUTDOWN_GRACE_PERIOD", "2h".into(), "out of bounds: 0s to 1h"),
        (
            vec![],
            "SHUTDOWN_GRACE_PERIOD",
            "soon".into(),
            "is not a duration: write a duration such as 10s",
        ),
        (vec![], "GRPC_MAX_CONNECTIONS", "0".into(), "out of bounds: 1 to 100000"),
        (
            vec![],
            "GRPC_MAX_STREAMS",
            "many".into(),
            "\"many\" is not a number: write a number such as 8192",
        ),
        (vec![], "SHARED_SECRET", "".into(), "empty shared secret"),
        (
            vec![],
            "SHARED_SECRET",
            format!("{SECRET}\n"),
            "contains whitespace: remove the spaces and line ends around it: in a file, `tr -d '[:space:]' <FILE >NEW`",
        ),
        (
            vec![],
            "SHARED_SECRET",
            "c2hvcnQgc2VjcmV0".into(),
            "got 12 bytes but want 32",
        ),
        (
            vec![],
            "SHARED_SECRET",
            "hunter2hunter2!!".into(),
            "not standard base64",
        ),
        (
            vec![],
            "SHARED_SECRET",
            "0123456789abcdef0123456789abcde!".into(),
            "it looks like the bytes of the secret themselves: write them as base64, as `base64 FILE | tr -d",
        ),
        (
            vec![],
            "SHARED_SECRET",
            format!("\u{feff}{SECRET}"),
            "it begins with a byte order mark",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            "/does/not/exist".into(),
            "\"/does/not/exist\": cannot read it: No such file",
        ),
        // What belongs into the file stands in its place.
        (
            vec![],
            "SHARED_SECRET_FILE",
            SECRET.into(),
            "the file that it names: cannot read it: No such file",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            base64([0xff; 32]),
            "the file that it names: cannot read it: No such file",
        ),
        (
            vec![secret],
            "SHARED_SECRET_PREVIOUS_FILE",
            SECRET.into(),
            "the file that it names: cannot read it: No such file",
        ),
        (
            vec![("CERTIFICATE_FILE", &certificate)],
            "CERTIFICATE_KEY_FILE",
            "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n".into(),
            "the file that it names: cannot read it",
        ),
        (
            vec![],
            "CERTIFICATES",
            format!("[{{cert: {certificate}, key: hunter2}}]"),
            "key: the file that it names: cannot read it",
        ),
        (
            vec![postgres],
            "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
            "postgres://user:hunter2@host/db".into(),
            "the file that it names: cannot read it",
        ),
        (
            vec![metrics],
            "METRICS_BASIC_AUTH_FILE",
            "admin:hunter2".into(),
            "the file that it names: cannot read it",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_SECRETS",
            format!("password={}", base64([0xff; 32])),
            "the file of \"password\": cannot read it: No such file",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            "/dev/zero".into(),
            "it is a device, not a file",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            "/".into(),
            "it is a directory, not a file",
        ),
        (vec![], "SHARED_SECRET_FILE", pipe.clone(), "it is a pipe, not a file"),
        (
            vec![],
            "SHARED_SECRET_FILE",
            file("long", &[b'A'; 65537]),
            "more than 65536 bytes",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            file("end", format!("{SECRET}\n").as_bytes()),
            "contains whitespace",
        ),
        (vec![], "SHARED_SECRET_FILE", file("empty", b""), "empty shared secret"),
        (
            vec![],
            "SHARED_SECRET_FILE",
            file("raw", &[0xff; 32]),
            "it holds 32 raw bytes, no text: it looks like the bytes of the secret themselves: write them as base64",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            file("raw-33", &[0xff; 33]),
            "it holds 33 raw bytes, no text: use the value that Pomerium has, base64 of 32 bytes such as `head",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            file("mark", format!("\u{feff}{SECRET}").as_bytes()),
            "\"mark\": it begins with a byte order mark, which some editors write: write it as UTF-8 without one",
        ),
        (
            vec![],
            "SHARED_SECRET_FILE",
            file("utf-16", &utf16),
            "\"utf-16\": it is UTF-16: save it as UTF-8",
        ),
        (
            vec![secret],
            "SHARED_SECRET_PREVIOUS",
            "c2hvcnQgc2VjcmV0".into(),
            "got 12 bytes but want 32",
        ),
        (
            vec![],
            "SHARED_SECRET_PREVIOUS",
            SECRET.into(),
            "there is no secret after it: set SHARED_SECRET",
        ),
        (
            vec![secret],
            "SHARED_SECRET_PREVIOUS_FILE",
            "/does/not/exist".into(),
            "cannot read it",
        ),
        (
            vec![("CERTIFICATE_KEY", &text_key)],
            "CERTIFICATE",
            "!".into(),
            "it is not base64: write it as",
        ),
        (
            vec![("CERTIFICATE_KEY", &text_key)],
            "CERTIFICATE",
            "-----BEGIN CERTIFICATE-----".into(),
            "it is PEM itself, not base64 of PEM",
        ),
        (
            vec![("CERTIFICATE_KEY", &text_key)],
            "CERTIFICATE",
            base64("x"),
            "there is no PEM in it",
        ),
        (
            vec![],
            "CERTIFICATE",
            text.clone(),
            "set without CERTIFICATE_KEY: set CERTIFICATE_KEY too",
        ),
        (vec![], "CERTIFICATE_KEY", text_key.clone(), "set without CERTIFICATE: "),
        (
            vec![("CERTIFICATE", &text)],
            "CERTIFICATE_KEY",
            "hunter2".into(),
            "it is not base64",
        ),
        (
            vec![("CERTIFICATE", &text)],
            "CERTIFICATE_KEY",
            text.clone(),
            "a certificate and no key",
        ),
        (
            vec![],
            "CERTIFICATE_FILE",
            certificate.clone(),
            "set without CERTIFICATE_KEY_FILE",
        ),
        (
            vec![("CERTIFICATE_KEY_FILE", &key)],
            "CERTIFICATE_FILE",
            "/nowhere".into(),
            "cannot read it",
        ),
        (
            vec![("CERTIFICATE_KEY_FILE", &key)],
            "CERTIFICATE_FILE",
            pipe.clone(),
            "it is a pipe",
        ),
        (
            vec![("CERTIFICATE_KEY_FILE", &key)],
            "CERTIFICATE_FILE",
            key.clone(),
            "a key and no certificate",
        ),
        (
            vec![],
            "CERTIFICATE_KEY_FILE",
            key.clone(),
            "set without CERTIFICATE_FILE",
        ),
        (
            vec![("CERTIFICATE_FILE", &certificate)],
            "CERTIFICATE_KEY_FILE",
            other_key.clone(),
            "does not belong",
        ),
        (
            vec![],
            "CERTIFICATES",
            certificate.clone(),
            "it is a text where a list is expected",
        ),
        (
            vec![],
            "CERTIFICATES",
            "[a]".into(),
            "it has a text where cert and key are expected",
        ),
        (
            vec![],
            "CERTIFICATES",
            "[{cert: a}]".into(),
            "a pair without key: write a list such as",
        ),
        (
            vec![],
            "CERTIFICATES",
            "[{cert: a, kye: b}]".into(),
            "it has \"kye\" where cert and key",
        ),
        (
            vec![],
            "CERTIFICATES",
            "[{cert: [a], key: b}]".into(),
            "its cert is a list where a file's path",
        ),
        (vec![], "CERTIFICATES", "[{cert: ".into(), "not a list as YAML or JSON"),
        (
            vec![],
            "CERTIFICATES",
            format!("[{{cert: {certificate}, key: /nowhere}}]"),
            "\"/nowhere\": cannot read it",
        ),
        (
            vec![],
            "TLS_DERIVE",
            "https://a".into(),
            "is not a host name: write the host name",
        ),
        (vec![], "TLS_DERIVE", too_long, "is not a host name"),
        (
            vec![("GRPC_INSECURE", "true")],
            "TLS_DERIVE",
            "a.example.com".into(),
            "needs TLS, which GRPC_INSECURE turns off",
        ),
        (vec![], "GRPC_CLIENT_CA", "hunter2".into(), "it is not base64"),
        (
            vec![("GRPC_INSECURE", "true")],
            "GRPC_CLIENT_CA",
            text.clone(),
            "needs TLS",
        ),
        (vec![], "GRPC_CLIENT_CA_FILE", "/nowhere".into(), "cannot read it"),
        (vec![], "GRPC_CLIENT_CA_FILE", key.clone(), "a key and no certificate"),
        (
            vec![],
            "TLS_RELOAD_INTERVAL",
            "1ms".into(),
            "out of bounds: 100ms to 1day",
        ),
        (
            vec![],
            "DATABROKER_STORAGE_TYPE",
            "redis".into(),
            "\"redis\" is not a storage plugin; there is memory, postgres",
        ),
        (
            vec![],
            "DATABROKER_STORAGE_TYPE",
            "file".into(),
            "that this version has no plugin for; there is memory, postgres",
        ),
        (
            vec![postgres],
            "DATABROKER_STORAGE_CONNECTION_STRING",
            " ".into(),
            "it is not set, and DATABROKER_STORAGE_TYPE is postgres: say where the database is",
        ),
        (
            vec![postgres],
            "DATABROKER_STORAGE_CONNECTION_STRING",
            "postgres://user:hunter2@host/db?sslmode=sometimes".into(),
            "sslmode in the connection string",
        ),
        (
            vec![postgres],
            "DATABROKER_STORAGE_CONNECTION_STRING",
            "hunter2".into(),
            "the connection string is malformed",
        ),
        (
            vec![postgres],
            "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
            file("malformed-dsn", b"postgres://user:hunter2@host/db?sslmode=sometimes\n"),
            "sslmode in the connection string",
        ),
        (
            vec![postgres],
            "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
            "/nowhere/at/all".into(),
            "cannot read it",
        ),
        (
            vec![],
            "DATABROKER_STORAGE_TYPE",
            "postgres://user@host".into(),
            "looks like a connection string",
        ),
        (
            vec![],
            "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
            "/nowhere".into(),
            "cannot read it",
        ),
        (
            vec![],
            "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
            file("dsn", &[0xff]),
            "1 raw bytes, no text: write what the plugin's documentation says",
        ),
        (
            vec![],
            "DATABROKER_HISTORY",
            "an hour".into(),
            "is not a duration: write a duration such as 1h30m",
        ),
        (vec![], "DATABROKER_HISTORY", "-1h".into(), "is not a duration"),
        (vec![], "DATABROKER_HISTORY", "3600".into(), "is not a duration"),
        (vec![], "DATABROKER_HISTORY", "0s".into(), "out of bounds: 10ms to "),
        (
            vec![],
            "DATABROKER_HISTORY",
            "99999999999999999999h".into(),
            "is not a duration",
        ),
        (
            vec![],
            "DATABROKER_CLEAN_INTERVAL",
            "2days".into(),
            "out of bounds: 10ms to 1day",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_MEMORY",
            "5GiB".into(),
            "not a size from 1MiB to 4096MiB",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_MEMORY",
            "a lot".into(),
            "write a size such as 512MiB",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_COMPUTE_TIME",
            "1ms".into(),
            "out of bounds: 100ms to 1h",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_TURN_TIME",
            "soon".into(),
            "\"soon\" is not a duration",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_CALL_TIME",
            "2h".into(),
            "out of bounds: 100ms to 1h",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_ANSWER_SIZE",
            "64MiB".into(),
            "not a size from 96MiB to 1024MiB",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_CALLS",
            "0".into(),
            "0 is out of bounds: 1 to 65536",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_MEMORIES",
            "1001".into(),
            "1001 is out of bounds: 1 to 1000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_TABLES",
            "0".into(),
            "0 is out of bounds: 1 to 10000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_TABLE_ELEMENTS",
            u64::MAX.to_string(),
            "18446744073709551615 is out of bounds: 1 to 10000000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_INSTANCES",
            "0".into(),
            "0 is out of bounds: 1 to 10000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_HANDLES",
            "63".into(),
            "63 is out of bounds: 64 to 1000000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_TRANSACTIONS",
            "0".into(),
            "0 is out of bounds: 1 to 10000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_LISTENERS",
            "1e3".into(),
            "\"1e3\" is not a number",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_LOG_BURST",
            "0".into(),
            "0 is out of bounds: 1 to 100000",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_LOG_RATE",
            u64::MAX.to_string(),
            "\"18446744073709551615\" is not a number",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_PAGE_RECORDS",
            "15".into(),
            "15 is out of bounds: 16 to 1024",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_QUEUE",
            "1".into(),
            "1 is out of bounds: 2 to 1048576",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_QUEUE_TIME",
            "1ms".into(),
            "out of bounds: 10ms to 1h",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_RESTARTS",
            "often".into(),
            "\"often\" is not a number",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_REPORT_DIR",
            key.clone(),
            "\"own.key\": it is not a directory: name a directory that this process can write to",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_REPORT_DIR",
            format!("{key}/below"),
            "\"own.key\": it is not a directory",
        ),
        (
            vec![],
            "LOG_LEVEL",
            "loud".into(),
            "\"loud\" is not a level: write trace, debug",
        ),
        (
            vec![],
            "LOG_FORMAT",
            "xml".into(),
            "\"xml\" is not a format: write text or json",
        ),
        (
            vec![],
            "HEALTH_CHECK_ADDR",
            "28080".into(),
            "is not an address: write HOST:PORT",
        ),
        (
            vec![],
            "HEALTH_CHECK_ADDR",
            "127.0.0.1:5443".into(),
            "is where GRPC_ADDRESS listens: choose another port",
        ),
        (
            vec![metrics],
            "HEALTH_CHECK_ADDR",
            ":9090".into(),
            "is where METRICS_ADDRESS listens",
        ),
        (vec![], "METRICS_ADDRESS", "here".into(), "is not an address"),
        (
            vec![],
            "METRICS_ADDRESS",
            "127.0.0.1:5443".into(),
            "is where GRPC_ADDRESS listens",
        ),
        (
            vec![metrics],
            "METRICS_BASIC_AUTH",
            "hunter2".into(),
            "it is not base64 of a text: write it as",
        ),
        (
            vec![metrics],
            "METRICS_BASIC_AUTH",
            base64("hunter2"),
            "there is no : between a name and a password",
        ),
        (
            vec![],
            "METRICS_BASIC_AUTH",
            base64("a:b"),
            "no metrics to protect: set METRICS_ADDRESS too",
        ),
        (
            vec![metrics],
            "METRICS_BASIC_AUTH_FILE",
            "/nowhere".into(),
            "cannot read it",
        ),
        (
            vec![metrics],
            "METRICS_BASIC_AUTH_FILE",
            file("auth", b"hunter2"),
            "it is not base64 of a text",
        ),
        (
            vec![metrics],
            "METRICS_CERTIFICATE",
            text.clone(),
            "set without METRICS_CERTIFICATE_KEY",
        ),
        (
            vec![("METRICS_CERTIFICATE_KEY", &text_key)],
            "METRICS_CERTIFICATE",
            text.clone(),
            "no metrics to protect",
        ),
        (
            vec![metrics],
            "METRICS_CERTIFICATE_KEY",
            text_key.clone(),
            "set without METRICS_CERTIFICATE",
        ),
        (
            vec![metrics],
            "METRICS_CERTIFICATE_FILE",
            certificate.clone(),
            "set without METRICS_CERTIFICATE_KEY_FILE",
        ),
        (
            vec![metrics],
            "METRICS_CERTIFICATE_KEY_FILE",
            key.clone(),
            "set without METRICS_CERTIFICATE_FILE",
        ),
        (
            vec![metrics, ("METRICS_CERTIFICATE_FILE", &certificate)],
            "METRICS_CERTIFICATE_KEY_FILE",
            other_key.clone(),
            "does not belong",
        ),
        (
            vec![metrics],
            "METRICS_CLIENT_CA",
            text.clone(),
            "only where the metrics have one: set METRICS_CERTIFICATE_FILE",
        ),
        (vec![metrics], "METRICS_CLIENT_CA", "hunter2".into(), "it is not base64"),
        (
            vec![metrics],
            "METRICS_CLIENT_CA_FILE",
            certificate.clone(),
            "only where the metrics have one",
        ),
        (
            vec![
                metrics,
                ("METRICS_CERTIFICATE_FILE", &certificate),
                ("METRICS_CERTIFICATE_KEY_FILE", &key),
            ],
            "METRICS_CLIENT_CA_FILE",
            "/nowhere".into(),
            "cannot read it",
        ),
        (
            vec![],
            "OTEL_TRACES_EXPORTER",
            "jaeger".into(),
            "\"jaeger\" is not an exporter: write otlp or none",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "collector:4317".into(),
            "not a URL with http:// or https://",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "http://".into(),
            "it is not a URL",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "http/json".into(),
            "is not a protocol: write grpc or",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "udp".into(),
            "is not a protocol",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_HEADERS",
            "hunter2".into(),
            "a part that is not NAME=VALUE: write",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "https://collector".into(),
            "over HTTPS by grpc only, and the protocol is http/protobuf: set OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
        ),
        (
            vec![traces, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "HTTPS://collector:4317".into(),
            "over HTTPS by grpc only",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_HEADERS",
            "good=x,swordfish 1=y".into(),
            "the name in part 2 cannot be sent as a header",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_HEADERS",
            "name-bin=swordfish".into(),
            "the name in part 1 cannot be sent",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_HEADERS",
            "name=sword\u{1}fish".into(),
            "the value in part 1 cannot be sent",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
            "a=b,=hunter2".into(),
            "a part that is not NAME=VALUE",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_TIMEOUT",
            "10s".into(),
            "is not a number: write a number of milliseconds",
        ),
        (
            vec![traces],
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
            "0".into(),
            "out of bounds: 1 to 600000",
        ),
        (
            vec![traces],
            "OTEL_TRACES_SAMPLER_ARG",
            "1.5".into(),
            "out of bounds: 0.0 to 1.0",
        ),
        (vec![traces], "OTEL_TRACES_SAMPLER_ARG", "NaN".into(), "out of bounds"),
        (
            vec![traces],
            "OTEL_RESOURCE_ATTRIBUTES",
            "databroker".into(),
            "a part that is not NAME=VALUE",
        ),
        (vec![traces], "OTEL_BSP_SCHEDULE_DELAY", "-1".into(), "is not a number"),
        (
            vec![traces],
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
            "0".into(),
            "out of bounds: 1 to 2048",
        ),
        (
            vec![traces],
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
            "-2".into(),
            "is not a number",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_SETTINGS",
            "mode=fast,hunter2".into(),
            "part 2 is not NAME=VALUE: write a list such as",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_SETTINGS",
            "mode=fast,mode=slow".into(),
            "\"mode\" is there twice: keep one",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_SECRETS",
            "password=/does/not/exist".into(),
            "\"password\": \"/does/not/exist\": cannot read it: No such file",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_SECRETS",
            "password=hunter2".into(),
            "the file of \"password\": cannot read it: No such file",
        ),
        (
            vec![("SHARED_SECRET_FILE", &shared_secret)],
            "DATABROKER_PLUGIN_SECRETS",
            format!("stolen={shared_secret}"),
            "is this process's own (SHARED_SECRET_FILE), which no plugin sees: grant the plugin a file of its own",
        ),
        (
            vec![("CERTIFICATE_FILE", &certificate), ("CERTIFICATE_KEY_FILE", &key)],
            "DATABROKER_PLUGIN_SECRETS",
            format!("stolen={key}"),
            "is this process's own (CERTIFICATE_KEY_FILE)",
        ),
        (
            vec![("CERTIFICATES", &listed)],
            "DATABROKER_PLUGIN_SECRETS",
            format!("stolen={key}"),
            "is this process's own (CERTIFICATES)",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_SECRETS",
            "stolen=/proc/self/environ".into(),
            "\"/proc/self/environ\" is of the system or of this process itself, which no plugin sees",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            "/data=/does/not/exist:rw".into(),
            "\"/does/not/exist\" cannot be read: No such file",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            format!("/data={key}"),
            "cannot be read: Not a directory",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            "/a=/tmp,/a=/var".into(),
            "\"/a\" is there twice",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            "data=/tmp".into(),
            "\"data\" is no path for the plugin",
        ),
        (
            vec![("SHARED_SECRET_FILE", &shared_secret)],
            "DATABROKER_PLUGIN_DIRECTORIES",
            format!("/data={}", folder.0.path().display()),
            "which is this process's own (SHARED_SECRET_FILE): grant a directory that holds nothing but",
        ),
        (
            vec![("SHARED_SECRET_FILE", &linked_secret)],
            "DATABROKER_PLUGIN_DIRECTORIES",
            format!("/data={links}:rw"),
            "which is this process's own (SHARED_SECRET_FILE): grant a directory that holds nothing but",
        ),
        (
            vec![("DATABROKER_PLUGIN_CACHE_DIR", &linked_cache)],
            "DATABROKER_PLUGIN_DIRECTORIES",
            format!("/data={links}:rw"),
            "holds the compiled code of plugins, which runs without a sandbox",
        ),
        (
            vec![("DATABROKER_PLUGIN_CACHE_DIR", &cache)],
            "DATABROKER_PLUGIN_DIRECTORIES",
            format!("/data={}:rw", folder.0.path().display()),
            "holds the compiled code of plugins, which runs without a sandbox",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            "/proc=/proc/self:rw".into(),
            "holds this process and the system itself",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_DIRECTORIES",
            "/root=/".into(),
            "holds this process and the system itself",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_ADDRESSES",
            "db.example.com".into(),
            "\"db.example.com\" has no port: write a list such as",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_ADDRESSES",
            "https://user:hunter2@db.example.com:443".into(),
            "a URL, which belongs into DATABROKER_PLUGIN_HTTP_ORIGINS: write a list such as",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_ADDRESSES",
            "10.0.0.5/8:5432".into(),
            "10.0.0.0/8 is the whole range, 10.0.0.5 the address alone: write a list such as",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_HTTP_ORIGINS",
            "https://user:hunter2@kv.example.com".into(),
            "no user and no password: write a list",
        ),
        (
            vec![],
            "DATABROKER_PLUGIN_OPEN",
            "0".into(),
            "0 is out of bounds: 1 to 65536",
        ),
    ];
    for (besides, name, value, holds) in &cases {
        let mut environment = besides.clone();
        environment.push((name, value));
        check(&folder, &environment, name, holds);
    }
    // What these say cannot be judged before they are used.
    let unchecked = ["DATABROKER_PLUGIN_CACHE_DIR", "DATABROKER_RECORD_DESCRIPTORS"];
    for key in ALL {
        let covered = cases.iter().any(|(_, name, _, _)| *name == key.variable);
        assert!(
            covered != unchecked.contains(&key.variable),
            "no bad value of {}",
            key.variable
        );
    }
    let misplaced = read(&[("DATABROKER_STORAGE_TYPE", "postgres://user:password@host/db")]).unwrap_err();
    assert!(!misplaced.concat().contains("password") && misplaced.concat().contains("CONNECTION_STRING"));
    let endpoint = read(&[traces, ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://user:password@host")]).unwrap_err();
    assert!(!endpoint.concat().contains("password"), "{endpoint:?}");
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        let endpoint = read(&[traces, (name, "http://user:hunter2@host:4318")]).unwrap_err();
        assert_eq!(endpoint.len(), 1, "{endpoint:?}");
        let line = endpoint.concat();
        assert!(
            line.starts_with(name) && line.contains("OTEL_EXPORTER_OTLP_HEADERS"),
            "{line}"
        );
        assert!(!line.contains("hunter2"), "{line}");
    }
}

/// The file that says what a plugin is granted may hold the shared secret.
#[test]
fn the_configuration_file_is_no_secret_of_a_plugin() {
    let folder = Folder::new();
    let config = folder.0.path().join("config.yaml");
    let mistakes = folder.read(
        "log_level: info\n",
        &[("DATABROKER_PLUGIN_SECRETS", &format!("stolen={}", config.display()))],
    );
    assert_eq!(
        mistakes.map(|_| ()).unwrap_err(),
        [
            "DATABROKER_PLUGIN_SECRETS: \"stolen\": \"config.yaml\" is this process's own (the configuration file), which no plugin \
          sees: grant the plugin a file of its own"
        ]
    );
}

#[test]
fn unknown_names_show_no_value_that_stuck_to_them() {
    let folder = Folder::new();
    let mistakes = folder
        .read(&format!("{{shared_secret:{SECRET}}}\n"), &[])
        .map(|_| ())
        .unwrap_err();
    assert!(
        mistakes
            .iter()
            .any(|line| line.contains("shared_secret…: there is no such setting")),
        "{mistakes:?}"
    );
    assert!(!mistakes.concat().contains("AAEC"), "{mistakes:?}");
}

#[test]
fn an_address_for_others_needs_a_secret() {
    let folder = Folder::new();
    check(
        &folder,
        &[("GRPC_INSECURE", "true"), ("GRPC_ADDRESS", ":5443")],
        "SHARED_SECRET",
        "it is not set: use the value that Pomerium has",
    );
    check(
        &folder,
        &[("GRPC_ADDRESS", "10.0.0.1:5443")],
        "SHARED_SECRET",
        "it is not set",
    );
}

#[test]
fn every_setting_refuses_yaml_of_another_shape() {
    let folder = Folder::new();
    for key in ALL {
        let name = key.yaml();
        let shapes: &[(&str, &str)] = match key.shape {
            Shape::Text => &[
                ("[x, y]", "it is a list where"),
                ("{x: y}", "it is a mapping where"),
                (
                    "!!binary AAEC",
                    "it is a value that cannot be read as its tag says where",
                ),
            ],
            Shape::List => &[
                ("{x: y}", "it is a mapping where"),
                ("!!bool 3", "it is a value that cannot be read as its tag says where"),
                ("[[x]]", "it has a list in a list of texts"),
            ],
            Shape::Certificates => &[
                ("{x: y}", "it is a mapping where"),
                (
                    "!!binary AAEC",
                    "it is a value that cannot be read as its tag says where",
                ),
                ("[[x]]", "it has a list where cert and key"),
            ],
        };
        for (value, expected) in shapes {
            let content = format!("{name}: {value}\n");
            let besides = [("OTEL_TRACES_EXPORTER", "otlp")];
            let besides = if key.variable == besides[0].0 {
                &[][..]
            } else {
                &besides[..]
            };
            let mistakes = folder.read(&content, besides).map(|_| ()).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{content}: {mistakes:?}");
            let begins = format!("config.yaml:1:1: {name}: {expected}");
            let begins_inside = format!("config.yaml:1:16: {name}: {expected}");
            let line = &mistakes[0];
            assert!(line.starts_with(&begins) || line.starts_with(&begins_inside), "{line}");
        }
    }
}

#[test]
fn values_that_are_no_text_are_mistakes() {
    use std::os::unix::ffi::OsStringExt as _;
    for key in ALL {
        let value = OsString::from_vec(vec![0xff]);
        let mut in_environment = Source::default();
        in_environment.environment.insert(key.variable.into(), value.clone());
        let mut as_flag = Source::default();
        as_flag.flags.insert(key.variable, value);
        let flag = key.flag.map(|flag| (as_flag, format!("--{flag}")));
        for (source, name) in [(in_environment, key.variable.to_owned())].into_iter().chain(flag) {
            let mistakes = lines(Settings::read(&source).unwrap_err());
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(
                mistakes[0].starts_with(&format!("{name}: it is not UTF-8")),
                "{mistakes:?}"
            );
        }
    }
}

#[test]
fn each_setting_wants_its_kind_of_yaml() {
    let folder = Folder::new();
    for key in ALL {
        let name = key.yaml();
        // What belongs to something that is off is not looked at.
        let environment = [("OTEL_TRACES_EXPORTER", "otlp"), ("SHARED_SECRET", SECRET)];
        let environment = environment
            .into_iter()
            .filter(|(variable, _)| *variable != key.variable);
        let mistakes = folder.read(
            &format!("{name}: {{of: another kind}}\n"),
            &environment.collect::<Vec<_>>(),
        );
        let mistakes = mistakes.map(|_| ()).unwrap_err();
        let begins = format!("config.yaml:1:1: {name}: it is");
        assert!(
            mistakes.iter().any(|line| line.starts_with(&begins)),
            "{name}: {mistakes:?}"
        );
    }
}

#[test]
fn addresses_that_overlap_are_a_mistake() {
    for (grpc, metrics, overlap) in [
        ("127.0.0.1:7000", ":7000", true),
        (":7000", "127.0.0.1:7000", true),
        ("0.0.0.0:7000", "127.0.0.1:7000", true),
        ("[::]:7000", "127.0.0.1:7000", true),
        ("LOCALHOST:7000", "127.0.0.1:7000", true),
        ("[::ffff:127.0.0.1]:7000", "127.0.0.1:7000", true),
        ("127.0.0.1:7000", "127.0.0.1:7001", false),
        ("127.0.0.1:7000", "127.0.0.2:7000", false),
        ("127.0.0.1:7000", "[::1]:7000", false),
        ("0.0.0.0:7000", "[::1]:7000", false),
        (":0", ":0", false),
    ] {
        let settings = [
            ("GRPC_ADDRESS", grpc),
            ("METRICS_ADDRESS", metrics),
            ("GRPC_INSECURE", "true"),
            ("SHARED_SECRET", SECRET),
        ];
        let mistakes = read(&settings).map_or_else(|mistakes| mistakes, |_| Vec::new());
        assert_eq!(!mistakes.is_empty(), overlap, "{grpc} {metrics}: {mistakes:?}");
        assert!(
            mistakes.iter().all(|line| line.contains("GRPC_ADDRESS")),
            "{mistakes:?}"
        );
    }
}

#[test]
fn mistakes_name_what_was_used() {
    let flags = [("LOG_LEVEL", "loud")];
    let mistakes = lines(Settings::read(&source(&flags, &[("LOG_LEVEL", "info")])).unwrap_err());
    assert_eq!(
        mistakes,
        ["--log-level: \"loud\" is not a level: write trace, debug, info, warn, error or off"]
    );
    let folder = Folder::new();
    let mistakes = folder.read("# levels\nlog_level: loud\n", &[]).unwrap_err();
    assert_eq!(
        mistakes,
        ["config.yaml:2:1: log_level: \"loud\" is not a level: write trace, debug, info, warn, error or off"]
    );
    let content = "certificates:\n- cert: /nowhere\n  key: /nowhere\n- cert: x\n";
    let mistakes = folder.read(content, &[]).unwrap_err();
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("config.yaml:4:3: certificates: it has a pair without key"),
        "{mistakes:?}"
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let folder = Folder::new();
    let mistakes = folder
        .read(
            "grpc_adress: x\nlog_format: xml\ntracing_provider: x\ndatabroker_history: [1h]\n",
            &[
                ("GRPC_ADDRESS", "nowhere"),
                ("GRPC_INSECURE", "maybe"),
                ("SHARED_SECRET", "c2hvcnQgc2VjcmV0"),
                ("CERTIFICATE_FILE", "/nowhere"),
                ("DATABROKER_STORAGE_TYPE", "redis"),
                ("DATABROKER_CLEAN_INTERVAL", "often"),
                ("SHUTDOWN_GRACE_PERIOD", "short"),
                ("LOG_LEVEL", "loud"),
                ("SERVICES", "proxy"),
                ("METRICS_BASIC_AUTH", "x"),
            ],
        )
        .unwrap_err();
    assert_eq!(mistakes.len(), 14, "{mistakes:#?}");
    // A file that cannot be read hides nothing of the rest.
    let broken = folder.read("a: [\n", &[("LOG_LEVEL", "loud")]).unwrap_err();
    assert_eq!(broken.len(), 2, "{broken:?}");
}
