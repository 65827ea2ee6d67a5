//! What is taken from where.

use super::*;

#[test]
fn pomeriums_environment_is_taken() {
    let folder = Folder::new();
    let reports = folder.0.path().join("made/with/the/first");
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
        ("DATABROKER_PLUGIN_MEMORY", "64MiB"),
        ("DATABROKER_PLUGIN_TURN_TIME", "2s"),
        ("DATABROKER_PLUGIN_CALLS", "7"),
        ("DATABROKER_PLUGIN_MEMORIES", "2"),
        ("DATABROKER_PLUGIN_TABLES", "3"),
        ("DATABROKER_PLUGIN_TABLE_ELEMENTS", "4000"),
        ("DATABROKER_PLUGIN_INSTANCES", "5"),
        ("DATABROKER_PLUGIN_HANDLES", "600"),
        ("DATABROKER_PLUGIN_TRANSACTIONS", "7"),
        ("DATABROKER_PLUGIN_LISTENERS", "8"),
        ("DATABROKER_PLUGIN_LOG_BURST", "9"),
        ("DATABROKER_PLUGIN_LOG_RATE", "10"),
        ("DATABROKER_PLUGIN_PAGE_RECORDS", "100"),
        ("DATABROKER_PLUGIN_RESTARTS", "0"),
        ("DATABROKER_PLUGIN_REPORT_DIR", reports.to_str().unwrap()),
        ("DATABROKER_RECORD_DESCRIPTORS", "/etc/x.binpb"),
        ("SHUTDOWN_GRACE_PERIOD", "0s"),
        ("GRPC_MAX_CONNECTIONS", "7"),
        ("GRPC_MAX_STREAMS", "70"),
        ("LOG_LEVEL", "warning"),
        ("LOG_FORMAT", "json"),
        ("HEALTH_CHECK_ADDR", ":28080"),
        ("METRICS_ADDRESS", ":9090"),
        ("METRICS_BASIC_AUTH", &base64("scraper:pass:word")),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer x=, b = c"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=databroker"),
        ("UNRELATED", "x"),
    ]);
    assert_eq!(settings.address.to_string(), ":5443");
    assert_eq!(settings.secrets.current.to_base64(), SECRET);
    assert!(!settings.secrets.generated && settings.tls.is_none());
    assert_eq!(
        settings.storage.plugin,
        component::Source::File("./plugins/mine.wasm".into())
    );
    assert_eq!(
        settings.storage.connection_string.as_deref(),
        Some("postgres://user:password@host/db")
    );
    assert_eq!(settings.storage.cache_dir, Some("/var/cache/x".into()));
    let limits = settings.storage.limits;
    assert_eq!((limits.memory_bytes, limits.calls), (64 << 20, 7));
    assert_eq!(limits.turn, Duration::from_secs(2));
    assert_eq!((limits.memories, limits.tables, limits.table_elements), (2, 3, 4000));
    assert_eq!((limits.instances, limits.handles), (5, 600));
    assert_eq!((limits.transactions, limits.listeners), (7, 8));
    assert_eq!((limits.log_burst, limits.log_rate, limits.page_records), (9, 10, 100));
    assert_eq!(settings.storage.restarts.most, 0);
    assert_eq!(settings.storage.report_dir, Some(reports));
    assert_eq!(settings.broker.history, Duration::from_secs(90 * 60));
    assert_eq!(settings.broker.clean_interval, Duration::from_secs(90));
    assert_eq!(settings.grace_period, Duration::ZERO);
    assert_eq!((settings.max_connections, settings.max_streams), (7, 70));
    assert_eq!(settings.record_descriptors, Some("/etc/x.binpb".into()));
    assert_eq!(settings.telemetry.logs.level, LevelFilter::WARN);
    assert_eq!(settings.telemetry.logs.format, LogFormat::Json);
    assert_eq!(settings.telemetry.health.unwrap().to_string(), ":28080");
    let metrics = settings.telemetry.metrics.unwrap();
    let basic_auth = metrics.basic_auth.unwrap();
    assert_eq!(metrics.address.to_string(), ":9090");
    assert_eq!(
        (basic_auth.user.as_str(), basic_auth.password.as_str()),
        ("scraper", "pass:word")
    );
    let traces = settings.telemetry.traces.unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(traces.endpoint, "http://collector:4318/v1/traces");
    assert!(traces.protocol == TraceProtocol::HttpProtobuf);
    assert_eq!(traces.headers, [pair("authorization", "Bearer x="), pair("b", "c")]);
    assert_eq!(traces.timeout, Duration::from_millis(2500));
    assert!((traces.sample_ratio - 0.25).abs() < f64::EPSILON);
    assert_eq!(traces.resource, [pair("service.name", "databroker")]);
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file() {
    let folder = Folder::new();
    let file = folder.file(
        "config.yaml",
        "log_level: trace\ngrpc_address: 127.0.0.1:1\nshutdown_grace_period: 3s\ndatabroker_history: 3h\n",
    );
    let source = Source {
        file: Some(file.into()),
        ..source(
            &[("LOG_LEVEL", "debug"), ("DATABROKER_HISTORY", "")],
            &[
                ("LOG_LEVEL", "nonsense"),
                ("GRPC_ADDRESS", "127.0.0.1:2"),
                ("SHUTDOWN_GRACE_PERIOD", ""),
            ],
        )
    };
    let settings = Settings::read(&source).unwrap();
    assert_eq!(settings.telemetry.logs.level, LevelFilter::DEBUG);
    assert_eq!(settings.address.port(), 2);
    // An empty variable is none, so that the file counts; an empty flag is meant.
    assert_eq!(settings.grace_period, Duration::from_secs(3));
    assert_eq!(settings.broker.history, Duration::from_secs(3600));
}

#[test]
fn files_go_before_the_texts_beside_them() {
    let folder = Folder::new();
    let secret = folder.file("secret", SECRET);
    let settings = good(&[("SHARED_SECRET", "nonsense"), ("SHARED_SECRET_FILE", &secret)]);
    assert_eq!(settings.secrets.current.to_base64(), SECRET);
    let settings = good(&[
        ("SHARED_SECRET", SECRET),
        ("SHARED_SECRET_PREVIOUS", "nonsense"),
        ("SHARED_SECRET_PREVIOUS_FILE", &folder.file("previous", OTHER_SECRET)),
    ]);
    assert_eq!(settings.secrets.previous.unwrap().to_base64(), OTHER_SECRET);
    let settings = good(&[
        ("DATABROKER_STORAGE_CONNECTION_STRING", "other"),
        (
            "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
            &folder.file("dsn", "memory://?budget=1MiB\n"),
        ),
    ]);
    assert_eq!(
        settings.storage.connection_string.as_deref(),
        Some("memory://?budget=1MiB")
    );
    let settings = good(&[
        ("METRICS_ADDRESS", ":9090"),
        ("METRICS_BASIC_AUTH", "nonsense"),
        ("METRICS_BASIC_AUTH_FILE", &folder.file("auth", base64("a:b") + "\n")),
    ]);
    assert_eq!(settings.telemetry.metrics.unwrap().basic_auth.unwrap().user, "a");
    assert_eq!(settings.notices, []);
}

#[test]
fn a_secret_that_others_can_read_is_warned_about() {
    let folder = Folder::new();
    let path = folder.file("secret", SECRET);
    for (mode, warned) in [
        (0o644, true),
        // A group is how Kubernetes lets a process read what is mounted.
        (0o640, false),
        (0o440, false),
        (0o604, true),
        (0o600, false),
        (0o400, false),
    ] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let settings = good(&[("SHARED_SECRET_FILE", &path)]);
        let notices = folder.notices(&settings);
        let expected = "SHARED_SECRET_FILE: users other than its owner can read \"secret\": chmod 600".to_owned();
        assert_eq!(notices, if warned { vec![expected] } else { vec![] }, "{mode:o}");
    }
    let config = folder.file("open.yaml", format!("shared_secret: {SECRET}\n"));
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o644)).unwrap();
    let source = Source {
        file: Some(config.into()),
        ..Source::default()
    };
    let notices = folder.notices(&Settings::read(&source).unwrap());
    assert_eq!(
        notices,
        ["open.yaml: it holds secrets, and users other than its owner can read it: chmod 600"]
    );
}

/// What a whole Pomerium is configured with.
const WHOLE_POMERIUM: &str = "\
address: :443
grpc_address: :5443
grpc_insecure: true
shared_secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
cookie_secret: x
services: all
authenticate_service_url: https://authenticate.example.com
idp_provider: google
idp_scopes: [openid, email]
log_level: debug
databroker_storage_type: memory
databroker_service_urls:
  - https://databroker.example.com
autocert: false
set_response_headers:
  X-Frame-Options: DENY
runtime_flags:
  grpc_databroker_keepalive: true
routes:
  - from: https://a.example.com
    to: http://a
    policy:
      - allow: {or: [{domain: {is: example.com}}]}
";

#[test]
fn the_file_of_a_whole_pomerium_is_taken_with_one_line() {
    let folder = Folder::new();
    let settings = folder.good(WHOLE_POMERIUM, &[]);
    assert_eq!(settings.address.to_string(), ":5443");
    assert_eq!(settings.telemetry.logs.level, LevelFilter::DEBUG);
    assert_eq!(settings.secrets.current.to_base64(), SECRET);
    assert_eq!(
        folder.notices(&settings),
        [
            "config.yaml: 9 settings of Pomerium that are not for a databroker are passed over: address, \
             authenticate_service_url, cookie_secret and 6 more"
        ]
    );
}

#[test]
fn what_pomerium_has_and_this_has_not_is_told() {
    let folder = Folder::new();
    let settings = folder.good(
        "databroker_cluster_node_id: a\ndatabroker_cluster_nodes: [{id: a}]\nautocert: true\ndebug_address: ''\n",
        &[("DATABROKER_CLUSTER_LEADER_ID", "a"), ("AUTOCERT", "true")],
    );
    let notices = folder.notices(&settings);
    let begins: Vec<_> = notices
        .iter()
        .map(|notice| notice.split(": ").take(2).collect::<Vec<_>>().join(": "))
        .collect();
    assert_eq!(
        begins,
        [
            "config.yaml:3:1: autocert",
            "config.yaml:1:1: databroker_cluster_node_id",
            "config.yaml:2:1: databroker_cluster_nodes",
            "DATABROKER_CLUSTER_LEADER_ID: this process is no member of a Pomerium cluster",
        ]
    );
}

#[test]
fn unknown_names_in_the_file_are_mistakes_that_suggest_the_nearest() {
    let folder = Folder::new();
    for (content, expected) in [
        (
            "grpc_adress: :5443",
            "config.yaml:1:1: grpc_adress: there is no such setting: did you mean grpc_address?",
        ),
        (
            "# x\nmetrics_adress: :9090",
            "config.yaml:2:1: metrics_adress: there is no such setting: did you mean metrics_address?",
        ),
        (
            "cookie_secrets: x",
            "config.yaml:1:1: cookie_secrets: there is no such setting: did you mean cookie_secret?",
        ),
        (
            "completely_different: x",
            "config.yaml:1:1: completely_different: there is no such setting: delete it; `databroker-host serve --help` lists all",
        ),
        (
            "tracing_provider: jaeger",
            "config.yaml:1:1: tracing_provider: Pomerium has removed this setting and does not start with it: delete it",
        ),
        (
            "\"a\\nb\": x",
            "config.yaml:1:1: a…: there is no such setting: delete it; `databroker-host serve --help` lists all",
        ),
    ] {
        assert_eq!(folder.read(content, &[]).unwrap_err(), [expected]);
    }
}

#[test]
fn almost_our_variables_are_warned_about() {
    let settings = good(&[
        ("GRPC_ADRESS", ":5443"),
        ("SHARED_SECRETS", "x"),
        ("DATABROKER_STORAGE_TYP", "x"),
        ("METRICS_ADDR", ""),
        // Not almost ours, Pomerium's, or made by others.
        ("METRICS_ENABLED", "true"),
        ("GRPC_CLIENT_TIMEOUT", "10s"),
        ("GRPC_VERBOSITY", "debug"),
        ("DATABROKER_SERVICE_HOST", "10.0.0.1"),
        ("DATABROKER_PORT_5443_TCP", "tcp://10.0.0.1:5443"),
        ("LOG_LEVELS", "x"),
        ("grpc_adress", "x"),
    ]);
    let notices: Vec<_> = settings.notices.iter().map(Notice::to_string).collect();
    assert_eq!(
        notices,
        [
            "DATABROKER_STORAGE_TYP: there is no such setting: did you mean DATABROKER_STORAGE_TYPE?",
            "GRPC_ADRESS: there is no such setting: did you mean GRPC_ADDRESS?",
            "LOG_LEVELS: there is no such setting: did you mean LOG_LEVEL?",
            "SHARED_SECRETS: there is no such setting: did you mean SHARED_SECRET?",
        ]
    );
    assert!(
        settings
            .notices
            .iter()
            .all(|notice| matches!(notice, Notice::Warning(_)))
    );
}

#[test]
fn tls_is_on_where_there_are_certificates_or_others_could_listen() {
    let folder = Folder::new();
    let (certificate, key) = folder.certificate("own");
    let own = [
        ("CERTIFICATE_FILE", certificate.as_str()),
        ("CERTIFICATE_KEY_FILE", key.as_str()),
    ];
    let everywhere = ("GRPC_ADDRESS", ":5443");
    let cases: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![], "plain"),
        (vec![everywhere], "0 *"),
        (vec![everywhere, ("GRPC_INSECURE", "true")], "plain"),
        (vec![("GRPC_INSECURE", "false")], "0 *"),
        (vec![("GRPC_INSECURE", "F")], "0 *"),
        (vec![own[0], own[1]], "1"),
        (vec![everywhere, own[0], own[1]], "1"),
        (vec![own[0], own[1], ("GRPC_INSECURE", "1")], "plain"),
        (
            vec![("TLS_DERIVE", "Databroker.example.com")],
            "0 databroker.example.com",
        ),
        (vec![("TLS_DERIVE", "a.example.com"), own[0], own[1]], "1 a.example.com"),
    ];
    for (mut environment, expected) in cases {
        environment.push(("SHARED_SECRET", SECRET));
        let settings = good(&environment);
        let shown = settings.tls.as_ref().map_or_else(
            || "plain".to_owned(),
            |tls| {
                let derive = tls.derive.as_ref();
                let derived = derive.map(|derive| format!(" {}", derive.domain.as_deref().unwrap_or("*")));
                format!("{}{}", tls.certificates.len(), derived.unwrap_or_default())
            },
        );
        assert_eq!(shown, expected, "{environment:?}");
        let derived = settings.tls.and_then(|tls| tls.derive);
        assert!(derived.is_none_or(|derive| derive.secret == settings.secrets.current));
    }
}

#[test]
fn certificates_come_from_texts_and_files_and_lists() {
    let folder = Folder::new();
    let (text, text_key) = certificate();
    let (one, one_key) = folder.certificate("one");
    let (two, two_key) = folder.certificate("two");
    let list = format!("[{{cert: {one}, key: {one_key}}}, {{\"cert\": \"{two}\", \"key\": \"{two_key}\"}}]");
    let environment = [
        ("SHARED_SECRET", SECRET),
        ("CERTIFICATE", &base64(text)),
        ("CERTIFICATE_KEY", &base64(text_key)),
        ("CERTIFICATES", &list),
        ("CERTIFICATE_FILE", &two),
        ("CERTIFICATE_KEY_FILE", &two_key),
        ("GRPC_CLIENT_CA_FILE", &one),
        ("METRICS_ADDRESS", ":9090"),
        ("METRICS_CERTIFICATE_FILE", &one),
        ("METRICS_CERTIFICATE_KEY_FILE", &one_key),
        ("METRICS_CLIENT_CA_FILE", &two),
    ];
    let settings = good(&environment);
    let tls = settings.tls.unwrap();
    assert_eq!(format!("{:?}", tls.certificates[0].certificate), "CERTIFICATE");
    assert_eq!(tls.certificates.len(), 4);
    assert!(tls.client_authority.is_some() && tls.derive.is_none());
    let metrics = settings.telemetry.metrics.unwrap().tls.unwrap();
    assert!(metrics.certificates.len() == 1 && metrics.client_authority.is_some());

    let content = format!("certificates:\n- cert: {one}\n  key: {one_key}\n- cert: {two}\n  key: {two_key}\n");
    let settings = folder.good(&content, &[]);
    assert_eq!(settings.tls.unwrap().certificates.len(), 2);
}

#[test]
fn doubts_about_certificates_are_told() {
    let folder = Folder::new();
    let (certificate, key) = folder.certificate("own");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let settings = good(&[("CERTIFICATE_FILE", &certificate), ("CERTIFICATE_KEY_FILE", &key)]);
    assert_eq!(
        folder.notices(&settings),
        ["CERTIFICATE_KEY_FILE: \"own.key\": users other than its owner can read this key: chmod 600"]
    );
    // Whoever has made a certificate may not know that it is not served.
    let content = format!("grpc_insecure: true\ncertificates:\n- cert: {certificate}\n  key: {key}\n");
    let settings = folder.good(
        &content,
        &[("CERTIFICATE_FILE", &certificate), ("CERTIFICATE_KEY_FILE", &key)],
    );
    let ignored = |place: &str| {
        let place = format!("{place}: \"own.crt\"");
        let insecure = "config.yaml:1:1: grpc_insecure";
        Notice::Warning(format!(
            "{place}: this certificate is not used, since TLS is turned off ({insecure}): delete one of the two"
        ))
    };
    let notices = settings.notices.iter().map(|notice| match notice {
        Notice::Warning(text) => Notice::Warning(folder.shortened(text)),
        other => other.clone(),
    });
    assert_eq!(
        notices.collect::<Vec<_>>(),
        [ignored("config.yaml:3:3: certificates"), ignored("CERTIFICATE_FILE")]
    );
}

#[test]
fn pomeriums_names_of_levels_are_taken() {
    for (text, level) in [
        ("trace", LevelFilter::TRACE),
        ("debug", LevelFilter::DEBUG),
        ("info", LevelFilter::INFO),
        ("", LevelFilter::INFO),
        ("warn", LevelFilter::WARN),
        ("warning", LevelFilter::WARN),
        ("error", LevelFilter::ERROR),
        ("critical", LevelFilter::ERROR),
        ("fatal", LevelFilter::ERROR),
        ("panic", LevelFilter::ERROR),
        ("off", LevelFilter::OFF),
        ("none", LevelFilter::OFF),
        ("disabled", LevelFilter::OFF),
    ] {
        let content = format!("log_level: '{text}'\n");
        assert_eq!(
            Folder::new().good(&content, &[]).telemetry.logs.level,
            level,
            "{text:?}"
        );
    }
}

#[test]
fn health_can_be_turned_off() {
    let folder = Folder::new();
    for content in ["health_check_addr: off", "health_check_addr: ''"] {
        assert!(folder.good(content, &[]).telemetry.health.is_none(), "{content}");
    }
    assert!(good(&[("HEALTH_CHECK_ADDR", "off")]).telemetry.health.is_none());
    assert!(good(&[("HEALTH_CHECK_ADDR", "")]).telemetry.health.is_some());
    let flag = Settings::read(&source(&[("HEALTH_CHECK_ADDR", "")], &[])).unwrap();
    assert!(flag.telemetry.health.is_none());
}

#[test]
fn traces_go_where_opentelemetry_says() {
    for (endpoint, whole, protocol, expected, grpc) in [
        ("", "", "", "http://localhost:4318/v1/traces", false),
        ("", "", "grpc", "http://localhost:4317", true),
        ("http://c:4317", "", "", "http://c:4317", true),
        ("https://c", "", "grpc", "https://c", true),
        ("https://c:4317", "", "", "https://c:4317", true),
        ("http://c:4317", "", "http/protobuf", "http://c:4317/v1/traces", false),
        ("http://c:4317", "http://d:4318/x", "", "http://d:4318/x", false),
    ] {
        let settings = good(&[
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", whole),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ]);
        let traces = settings.telemetry.traces.unwrap();
        assert_eq!(traces.endpoint, expected, "{endpoint} {whole} {protocol}");
        assert_eq!(
            traces.protocol == TraceProtocol::Grpc,
            grpc,
            "{endpoint} {whole} {protocol}"
        );
    }
    // Set for all programs of a machine, and not for this one.
    let settings = good(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ]);
    assert!(settings.telemetry.traces.is_none());
    assert_eq!(settings.notices.len(), 1, "{:?}", settings.notices);
}

/// The example in the documentation is one that works.
#[test]
fn the_example_is_taken() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.example.yaml");
    let folder = Folder::new();
    let (certificate, key) = folder.certificate("tls");
    let content = std::fs::read_to_string(path).unwrap();
    let content = content
        .replace("/etc/databroker/tls.crt", &certificate)
        .replace("/etc/databroker/tls.key", &key)
        .replace("/etc/databroker/shared-secret", &folder.file("secret", SECRET));
    let settings = folder.good(&content, &[]);
    assert_eq!(settings.tls.unwrap().certificates.len(), 1);
    assert_eq!(settings.secrets.current.to_base64(), SECRET);
    assert_eq!(settings.notices, []);
}

#[test]
fn grants_are_taken_as_text_and_as_yaml() {
    let folder = Folder::new();
    let password = folder.file("password", "hunter2");
    let texts = [
        ("DATABROKER_PLUGIN_SETTINGS", "mode=fast, pool = 8,url=a=b".to_owned()),
        ("DATABROKER_PLUGIN_SECRETS", format!("password={password}")),
        (
            "DATABROKER_PLUGIN_DIRECTORIES",
            "/data=/usr:ro,/other=/usr:rw".to_owned(),
        ),
        (
            "DATABROKER_PLUGIN_ADDRESSES",
            "Db.example.com:5432,[fd00::/8]:5432".to_owned(),
        ),
        ("DATABROKER_PLUGIN_HTTP_ORIGINS", "https://kv.example.com".to_owned()),
        ("DATABROKER_PLUGIN_OPEN", "9".to_owned()),
    ];
    let environment: Vec<_> = texts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let grants = good(&environment).storage.grants;
    assert_eq!(grants.settings["mode"], "fast");
    assert_eq!(grants.settings["pool"], "8");
    assert_eq!(grants.settings["url"], "a=b");
    assert_eq!(grants.secrets["password"], std::path::Path::new(&password));
    let shown = |grants: &component::Grants| {
        let directories = grants.directories.iter().map(ToString::to_string);
        let addresses = grants.addresses.iter().map(ToString::to_string);
        let origins = grants.http_origins.iter().map(ToString::to_string);
        directories.chain(addresses).chain(origins).collect::<Vec<_>>()
    };
    assert_eq!(
        shown(&grants),
        [
            "/data=/usr:ro",
            "/other=/usr:rw",
            "db.example.com:5432",
            "[fd00::/8]:5432",
            "https://kv.example.com",
        ]
    );
    assert_eq!(grants.most_open, 9);
    let debug = format!("{grants:?}");
    assert!(!debug.contains("fast") && debug.contains("mode"), "{debug}");

    let yaml = "databroker_plugin_settings: ['list=a,b']\ndatabroker_plugin_directories:\n- /data=/usr\n";
    let grants = folder.good(yaml, &[]).storage.grants;
    assert_eq!(grants.settings["list"], "a,b");
    assert_eq!(shown(&grants), ["/data=/usr:ro"]);
}

#[test]
fn a_plugins_secret_that_others_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    let password = folder.file("password", "hunter2");
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o644)).unwrap();
    let settings = good(&[("DATABROKER_PLUGIN_SECRETS", &format!("password={password}"))]);
    let notices = folder.notices(&settings);
    assert!(
        notices
            .iter()
            .any(|notice| notice.contains("DATABROKER_PLUGIN_SECRETS") && notice.contains("chmod 600")),
        "{notices:?}"
    );
}

#[test]
fn a_database_beside_the_memory_plugin_is_told_and_passed_over() {
    for text in ["postgres://user:hunter2@host/db", "host=db user=x password=hunter2"] {
        let settings = good(&[("DATABROKER_STORAGE_CONNECTION_STRING", text)]);
        assert_eq!(settings.storage.connection_string, None, "{text}");
        let [Notice::Warning(warning)] = &settings.notices[..] else {
            panic!("{text}: {:?}", settings.notices)
        };
        assert!(
            warning.starts_with("DATABROKER_STORAGE_CONNECTION_STRING: ") && warning.contains("postgres"),
            "{warning}"
        );
        assert!(!warning.contains("hunter2"), "{warning}");
    }
    // Its own is handed on, and what is neither is for the plugin to refuse.
    for text in ["memory://?budget=64MiB", "nonsense://"] {
        let settings = good(&[("DATABROKER_STORAGE_CONNECTION_STRING", text)]);
        assert_eq!(settings.storage.connection_string.as_deref(), Some(text));
        assert_eq!(settings.notices, []);
    }
}
