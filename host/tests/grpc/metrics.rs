//! A scrape of a real server, held against what the documentation promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use databroker_host::broker::Config;
use databroker_host::component;
use databroker_host::data::Descriptors;
use databroker_host::telemetry::config::{BasicAuth, Logs};
use databroker_host::telemetry::{self, metrics};
use databroker_host::tls::{self, Certificates, Pem};
use databroker_proto::databroker::SyncRequest;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::sync_response::Response as Answer;
use saphyr::LoadableYamlNode as _;
use tonic::Code;

use crate::server::{PATIENCE, SERVER_VERSION, Server, record};
use crate::web::Web;

/// What a family of metrics is: its kind and its labels.
pub type Families = BTreeMap<String, (String, BTreeSet<String>)>;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// The table in `docs/metrics.md`.
pub fn documented() -> Families {
    let text = fs::read_to_string(docs().join("metrics.md")).unwrap();
    let quoted = |cell: &str| {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    text.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').collect();
            let name = quoted(cells[1]).remove(0);
            (
                name,
                (cells[2].trim().to_owned(), quoted(cells[3]).into_iter().collect()),
            )
        })
        .collect()
}

/// What a scrape has.
pub fn scraped(text: &str) -> Families {
    let mut families = Families::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            let (name, kind) = family.split_once(' ').unwrap();
            current = name.to_owned();
            let before = families.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
            assert!(before.is_none(), "{name} is there twice");
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&current), "{line} stands under {current}");
            let labels = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
            let labels = labels.map_or("", |(labels, _)| labels);
            let names = labels
                .split("\",")
                .filter_map(|label| label.split_once("=\""))
                .map(|(name, _)| name);
            let known = &mut families.get_mut(&current).unwrap().1;
            known.extend(names.filter(|name| *name != "le").map(str::to_owned));
        }
    }
    families
}

/// True for what is there only with a plugin that reaches a database by way of the host.
pub fn is_of_database(name: &str) -> bool {
    ["plugin_database_", "pomerium_pgxpool_"]
        .iter()
        .any(|begin| name.starts_with(begin))
}

/// The value of a series, written as the page has it.
pub fn value(text: &str, series: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// A server on the memory plugin, cleaning all the time.
async fn server() -> Server {
    let config = component::Config {
        connection_string: Some("memory://?budget=64MiB".to_owned()),
        ..component::Config::new(component::Source::BuiltIn("memory".to_owned()))
    };
    let descriptors = Arc::new(Descriptors::built_in());
    let (backend, info) = component::open(config, descriptors).await.unwrap();
    let config = Config {
        clean_interval: Duration::from_millis(20),
        ..Config::default()
    };
    Server::serve(backend, info, config, PATIENCE).await
}

/// Some that expire in the year 2100.
fn certificates() -> Arc<Certificates> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(2100, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    let inline = |pem: String| Pem::Inline {
        setting: "CERTIFICATE".to_owned(),
        pem: pem.into_bytes(),
    };
    let source = tls::Source {
        certificates: vec![tls::Pair {
            certificate: inline(certificate.pem()),
            key: inline(key.serialize_pem()),
        }],
        ..Default::default()
    };
    Arc::new(Certificates::load(&source).unwrap())
}

#[tokio::test]
async fn a_scrape_has_what_is_documented_and_nothing_else() {
    let telemetry = telemetry::start(&telemetry::Config {
        logs: Logs {
            level: tracing::level_filters::LevelFilter::OFF,
            ..Logs::default()
        },
        ..telemetry::Config::default()
    })
    .unwrap();
    let server = server().await;
    let metrics = Arc::clone(&server.instruments.metrics);
    metrics.observe_connections(|| 1);
    metrics.observe_log(telemetry.log_lines_lost());
    metrics.observe_certificates("grpc", &certificates());
    let web = Web::serve(metrics::router(metrics, None)).await;

    server.put(vec![record("a", "x"), record("b", "y")]).await;
    server.get("a").await.unwrap();
    assert_eq!(server.get("nobody").await.unwrap_err().code(), Code::NotFound);
    let mut stranger = DataBrokerServiceClient::new(server.channel.clone());
    stranger.server_info(()).await.unwrap_err();
    let info = server.client().server_info(()).await.unwrap().into_inner();
    let stream = SyncRequest {
        server_version: info.server_version,
        record_version: 0,
        r#type: String::new(),
        wait: None,
    };
    let mut stream = server.client().sync(stream).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();

    let series = "databroker_records{type=\"type.googleapis.com/google.protobuf.StringValue\"}";
    let text = tokio::time::timeout(PATIENCE, async {
        loop {
            let (status, head, text) = web.get("/metrics", &[]).await;
            assert_eq!(status, 200);
            assert!(head.contains("text/plain; version=0.0.4"), "{head}");
            if value(&text, series) == Some(2.0) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the records are counted when the store is cleaned");

    let mut expected = documented();
    expected.retain(|name, _| !is_of_database(name));
    assert_eq!(scraped(&text), expected);
    for (series, expected) in [
        (
            "databroker_calls_total{method=\"databroker.DataBrokerService/Get\",code=\"OK\"}",
            1.0,
        ),
        (
            "databroker_calls_total{method=\"databroker.DataBrokerService/Get\",code=\"NOT_FOUND\"}",
            1.0,
        ),
        (
            "databroker_call_duration_seconds_count{method=\"databroker.DataBrokerService/Get\"}",
            2.0,
        ),
        (
            "databroker_open_streams{method=\"databroker.DataBrokerService/Sync\"}",
            1.0,
        ),
        ("databroker_auth_refused_total{reason=\"missing\"}", 1.0),
        ("databroker_previous_secret_uses_total", 0.0),
        (
            "databroker_certificate_expiry_time_seconds{listener=\"grpc\"}",
            4_102_444_800.0,
        ),
        ("databroker_commit_records_count", 1.0),
        ("databroker_commit_records_sum", 2.0),
        ("databroker_latest_version", 2.0),
        ("databroker_hub_changes", 2.0),
        ("databroker_store_limit_bytes", f64::from(64 << 20)),
        ("plugin_calls_total{function=\"put\",result=\"ok\"}", 1.0),
        ("plugin_up", 1.0),
        (
            "pomerium_grpc_server_requests_total{service=\"pomerium-databroker\",grpc_service=\"databroker.DataBrokerService\",\
             grpc_method=\"Put\",grpc_server_status=\"OK\"}",
            1.0,
        ),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series} in\n{text}");
    }
    assert!(value(&text, "plugin_memory_bytes") > Some(65536.0), "{text}");
    assert!(text.contains("plugin_info{name=\"memory\",digest=\""), "{text}");
}

#[tokio::test]
async fn a_stream_that_is_not_read_lags() {
    let server = Server::start().await;
    let start = SyncRequest {
        server_version: SERVER_VERSION,
        ..Default::default()
    };
    let mut stream = server.client().sync(start).await.unwrap().into_inner();
    let lag = || server.broker.figures().lag_versions;
    // More than the transport takes without the client reading.
    let content = "x".repeat(512 << 10);
    for number in 0..24 {
        server.put(vec![record(&number.to_string(), &content)]).await;
    }
    assert!(lag() > 4, "{}", lag());
    tokio::time::timeout(PATIENCE, async {
        loop {
            let message = stream.message().await.unwrap().unwrap();
            if matches!(message.response, Some(Answer::Record(record)) if record.id == "23") {
                break;
            }
        }
        while lag() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the lag goes when the stream is read");
}

#[tokio::test]
async fn a_scrape_wants_the_credentials() {
    let basic_auth = BasicAuth {
        user: "scraper".to_owned(),
        password: "swordfish".to_owned(),
    };
    let web = Web::serve(metrics::router(Arc::default(), Some(basic_auth))).await;
    for (header, expected) in [
        // scraper:swordfish
        (Some("Basic c2NyYXBlcjpzd29yZGZpc2g="), 200),
        (Some("basic  c2NyYXBlcjpzd29yZGZpc2g="), 200),
        // scraper:wrong
        (Some("Basic c2NyYXBlcjp3cm9uZw=="), 401),
        (Some("Basic %%%"), 401),
        (Some("Bearer c2NyYXBlcjpzd29yZGZpc2g="), 401),
        (Some("Basic"), 401),
        (None, 401),
    ] {
        let headers: Vec<_> = header.iter().map(|value| ("Authorization", *value)).collect();
        let (status, head, body) = web.get("/metrics", &headers).await;
        assert_eq!(status, expected, "{header:?}");
        assert_eq!(
            head.contains("www-authenticate: basic realm="),
            expected == 401,
            "{head}"
        );
        assert!(expected == 200 || !body.contains("databroker_"), "{body}");
    }
}

/// All names in a text that look like those of metrics.
fn names(text: &str) -> BTreeSet<String> {
    let prefixes = ["databroker_", "plugin_", "process_", "pomerium_"];
    text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        .filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let documented = documented();
    let known = |name: &str| {
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .any(|family| documented.get(family).is_some_and(|(kind, _)| kind == "histogram"));
        histogram || documented.get(name).is_some_and(|(kind, _)| kind != "histogram")
    };

    let dashboard = fs::read_to_string(docs().join("observability/dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard).unwrap();
    let mut expressions = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().into_iter().flatten();
        expressions.extend(targets.map(|target| target["expr"].as_str().unwrap().to_owned()));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        expressions.extend(variable["query"]["query"].as_str().map(str::to_owned));
    }
    assert!(expressions.len() > 20, "{expressions:?}");

    let alerts = fs::read_to_string(docs().join("observability/alerts.yaml")).unwrap();
    let mut alerts = saphyr::Yaml::load_from_str(&alerts).unwrap();
    let alerts = alerts.remove(0);
    let rules: Vec<_> = alerts["groups"][0]["rules"].as_vec().unwrap().iter().collect();
    assert!(rules.len() > 5);
    let mut alert_names = BTreeSet::new();
    for rule in rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(alert_names.insert(name.to_owned()), "{name} is there twice");
        let severity = rule["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}: {severity}"
        );
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some(), "{name} has no {text}");
        }
        expressions.push(rule["expr"].as_str().unwrap().to_owned());
    }

    for expression in &expressions {
        for name in names(expression) {
            assert!(known(&name), "{name} in {expression} is not documented");
        }
    }
}
