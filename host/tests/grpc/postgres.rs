//! The program with `databroker_storage_type: postgres`, on real servers that the tests start, stop and break.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use databroker_host::data::Descriptors;
use databroker_host::filter::{Effort, Filter};
use databroker_host::grpc::auth::token;
use databroker_host::record::Key;
use databroker_host::settings::SharedSecret;
use databroker_host::{broker, component};
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::{PutRequest, QueryRequest, Record, SetOptionsRequest};
use postgres_server::{Options, PostgresServer};
use prost_types::value::Kind;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::metrics::{Families, documented, is_of_database, scraped, value};
use crate::operate::{Operated, address, get};
use crate::program::{output, text};
use crate::server::{Connection, Credentials, PATIENCE, Server, descriptors, record};

/// What must not be seen anywhere.
const PASSWORD: &str = "correct-horse";

/// A configuration file and what it names.
struct Site {
    folder: tempfile::TempDir,
    secret: String,
}

impl Site {
    fn new(connection_string: &str) -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            secret: SharedSecret::generate().to_base64(),
        };
        site.connect_to(connection_string);
        let content = format!(
            "grpc_address: 127.0.0.1:0\ngrpc_insecure: true\nhealth_check_addr: 127.0.0.1:0\nmetrics_address: 127.0.0.1:0\n\
             log_format: json\nshared_secret: {}\ndatabroker_storage_type: postgres\n\
             databroker_storage_connection_string_file: {}\n",
            site.secret,
            site.connection_string_file().display()
        );
        site.write(site.configuration(), &content);
        site
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    fn connection_string_file(&self) -> PathBuf {
        self.folder.path().join("connection-string")
    }

    /// Replaces the connection string in its file.
    fn connect_to(&self, connection_string: &str) {
        self.write(self.connection_string_file(), connection_string);
    }

    fn write(&self, path: PathBuf, content: &str) {
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn serve(&self) -> Host<'_> {
        let mut operated = Operated::start(&self.configuration());
        let address = address(&operated.line(&["\"serving\""]));
        Host {
            site: self,
            operated,
            address,
        }
    }

    /// Runs `config check`: its exit code, and all that it says.
    fn check(&self) -> (Option<i32>, String) {
        let checked = output(
            &["config", "check", "--config", self.configuration().to_str().unwrap()],
            &[],
        );
        let said = text(&checked.stdout) + &text(&checked.stderr);
        assert!(!said.contains(PASSWORD), "{said}");
        (checked.status.code(), said)
    }
}

/// A running program.
struct Host<'s> {
    site: &'s Site,
    operated: Operated,
    address: String,
}

impl Host<'_> {
    /// Runs a command against it, and gives what it prints.
    fn run(&self, arguments: &[&str]) -> String {
        let url = format!("http://{}", self.address);
        let arguments = [arguments, &["--address", &url]].concat();
        let done = output(&arguments, &[("SHARED_SECRET", &self.site.secret)]);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    /// Ends it in order, and checks that it kept the password to itself.
    fn end(mut self) {
        self.operated.signal("-TERM");
        self.operated.line(&["all calls are done"]);
        assert_eq!(self.operated.serving.0.wait().unwrap().code(), Some(0));
        let log = self.operated.seen.join("\n");
        assert!(!log.contains(PASSWORD), "{log}");
    }
}

fn with_password() -> PostgresServer {
    PostgresServer::with(&Options {
        password: Some(PASSWORD.to_owned()),
        ..Options::default()
    })
    .unwrap()
}

fn url(server: &PostgresServer, password: &str) -> String {
    format!("postgres://postgres:{password}@127.0.0.1:{}/postgres", server.port())
}

#[test]
fn hosts_share_a_database_that_outlives_them() {
    let server = with_password();
    let site = Site::new(&url(&server, PASSWORD));
    let (code, said) = site.check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("takes writes, and tells of changes at once"), "{said}");
    assert!(
        said.contains("postgres (built in)") && said.contains("database postgres"),
        "{said}"
    );

    let (first, mut second) = (site.serve(), site.serve());
    let ann = r#"{"@type": "type.googleapis.com/user.User", "id": "u1", "name": "Ann"}"#;
    first.run(&["record", "put", "user.User", "u1", ann]);
    assert!(second.run(&["record", "get", "user.User", "u1"]).contains("Ann"));
    first.end();
    // As Pomerium's own databroker reads it.
    let stored =
        "SELECT data->>'name' FROM pomerium.records WHERE type = 'type.googleapis.com/user.User' AND id = 'u1'";
    assert_eq!(server.sql(stored).unwrap(), "Ann");

    // Another connection string needs a restart, whatever it is.
    site.connect_to(&url(&server, "another"));
    second.operated.signal("-HUP");
    second.operated.line(&[
        "takes effect after a restart only",
        "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
    ]);
    assert!(second.run(&["record", "get", "user.User", "u1"]).contains("Ann"));
    second.end();

    // One that takes no writes is told before it is served from.
    let set = "ALTER DATABASE postgres SET default_transaction_read_only";
    server.sql(&format!("{set} = on")).unwrap();
    site.connect_to(&url(&server, PASSWORD));
    let (code, said) = site.check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("takes no writes at present"), "{said}");
    server
        .sql(&format!("SET transaction_read_only = off; {set} = off"))
        .unwrap();

    let again = site.serve();
    assert!(again.run(&["record", "get", "user.User", "u1"]).contains("Ann"));
    again.end();
}

/// What a running program shows at `/metrics`.
fn metrics(address: &str) -> String {
    get(address, "/metrics", "")
        .split_once("\r\n\r\n")
        .unwrap()
        .1
        .to_owned()
}

#[test]
fn a_scrape_has_what_is_documented_of_a_database() {
    let server = with_password();
    let site = Site::new(&(url(&server, PASSWORD) + "?pool_max_conns=7"));
    let mut operated = Operated::start(&site.configuration());
    let shown = address(&operated.line(&["showing metrics"]));
    operated.line(&["\"serving\""]);
    let text = metrics(&shown);
    let of_database =
        |families: Families| -> Families { families.into_iter().filter(|(name, _)| is_of_database(name)).collect() };
    assert_eq!(of_database(scraped(&text)), of_database(documented()), "{text}");
    let labels = format!(
        "{{db_client_connection_pool_name=\"127.0.0.1:{}/postgres\",db_system=\"postgresql\"}}",
        server.port()
    );
    let pool = |name: &str| value(&text, &format!("pomerium_pgxpool_{name}{labels}")).unwrap();
    assert!((pool("max_connections") - 7.0).abs() < f64::EPSILON, "{text}");
    assert!(
        pool("acquires_total") > 1.0 && pool("new_connections_total") >= 1.0,
        "{text}"
    );
    assert!(
        pool("total_connections") >= 1.0 && pool("acquire_duration_total") > 0.0,
        "{text}"
    );
    assert!(
        value(&text, "plugin_database_statements_total{result=\"ok\"}") > Some(1.0),
        "{text}"
    );
}

/// A fault: what it is called, how it is brought about and ended, what a write then ends in and what its error says.
struct Fault {
    /// As metrics and log name it.
    kind: &'static str,
    begin: &'static str,
    end: &'static str,
    code: Code,
    says: &'static str,
}

/// Raises an error in every write, as if the server had run into it.
const RAISE: &str = "CREATE OR REPLACE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    RAISE EXCEPTION 'a fault' USING ERRCODE = 'CODE'; END $$; \
    CREATE TRIGGER fault BEFORE INSERT ON pomerium.record_changes FOR EACH ROW EXECUTE FUNCTION fault()";
const NO_TRIGGER: &str = "DROP TRIGGER fault ON pomerium.record_changes";

/// Ends all connections of hosts, so that they need others.
const TERMINATE: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'host'";

const FAULTS: &[Fault] = &[
    // First, since ending connections is told as this, and each kind once a minute.
    Fault {
        kind: "failing_over",
        begin: RAISE,
        end: NO_TRIGGER,
        code: Code::Unavailable,
        says: "SQLSTATE 57P01",
    },
    Fault {
        kind: "read_only",
        begin: "ALTER ROLE host SET default_transaction_read_only = on",
        end: "ALTER ROLE host RESET default_transaction_read_only",
        code: Code::Unavailable,
        says: "the store is read-only: ",
    },
    Fault {
        kind: "out_of_connections",
        begin: "ALTER ROLE host CONNECTION LIMIT 0",
        end: "ALTER ROLE host CONNECTION LIMIT -1",
        code: Code::Unavailable,
        says: "SQLSTATE 53300",
    },
    Fault {
        kind: "settings",
        begin: "ALTER ROLE host PASSWORD 'another'",
        end: "ALTER ROLE host PASSWORD 'correct-horse'",
        code: Code::Unavailable,
        says: "SQLSTATE 28P01",
    },
    Fault {
        kind: "full",
        begin: RAISE,
        end: NO_TRIGGER,
        code: Code::ResourceExhausted,
        says: "SQLSTATE 53100",
    },
    Fault {
        kind: "conflict",
        begin: RAISE,
        end: NO_TRIGGER,
        code: Code::Unavailable,
        says: "SQLSTATE 40001",
    },
    Fault {
        kind: "timeout",
        begin: RAISE,
        end: NO_TRIGGER,
        code: Code::Unavailable,
        says: "SQLSTATE 57014",
    },
    Fault {
        kind: "statement",
        begin: RAISE,
        end: NO_TRIGGER,
        code: Code::Internal,
        says: "SQLSTATE P0001",
    },
];

/// Calls a running program.
struct Caller {
    client: DataBrokerServiceClient<Connection>,
}

impl Caller {
    async fn new(address: &str, secret: &str) -> Self {
        let token = token(&SharedSecret::parse(secret).unwrap()).unwrap();
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_lazy();
        let credentials = Credentials(Some(token.try_into().unwrap()));
        Self {
            client: DataBrokerServiceClient::new(InterceptedService::new(channel, credentials)),
        }
    }

    async fn put(&mut self, id: &str) -> Result<(), Status> {
        let records = vec![record(id, "x")];
        self.client.put(PutRequest { records }).await.map(drop)
    }

    /// Puts until it succeeds.
    async fn put_again(&mut self, id: &str) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(status) = self.put(id).await {
            assert!(Instant::now() < deadline, "{id}: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_told_apart_by_code_log_and_metric_and_pass() {
    let server = with_password();
    let password = format!("CREATE ROLE host LOGIN PASSWORD '{PASSWORD}'; CREATE SCHEMA pomerium AUTHORIZATION host");
    server.sql(&password).unwrap();
    let site = Site::new(&format!(
        "postgres://host:{PASSWORD}@127.0.0.1:{}/postgres",
        server.port()
    ));
    let mut operated = Operated::start(&site.configuration());
    let shown = address(&operated.line(&["showing metrics"]));
    let grpc = address(&operated.line(&["\"serving\""]));
    let mut caller = Caller::new(&grpc, &site.secret).await;
    caller.put_again("before").await;
    for fault in FAULTS {
        let kind = fault.kind;
        let count = || {
            let series = format!("plugin_database_statements_total{{result=\"{kind}\"}}");
            value(&metrics(&shown), &series).unwrap()
        };
        let before = count();
        let code = fault.says.strip_prefix("SQLSTATE ").unwrap_or_default();
        server
            .sql(&fault.begin.replace("'CODE'", &format!("'{code}'")))
            .unwrap();
        server.sql(TERMINATE).unwrap();
        // What was open when they were ended may fail once by that.
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            let status = caller.put(kind).await.expect_err(kind);
            if status.message().contains(fault.says) {
                break status;
            }
            assert!(Instant::now() < deadline, "{kind}: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert_eq!(status.code(), fault.code, "{kind}: {status}");
        assert!(!status.message().contains(PASSWORD), "{status}");
        let line = if kind == "conflict" {
            "in each other's way"
        } else {
            "the database has failed"
        };
        operated.line(&[line, &format!("\"kind\":\"{kind}\"")]);
        assert!(count() > before, "{kind}");
        server.sql(fault.end).unwrap();
        caller.put_again(kind).await;
    }

    // One that passes by itself is not noticed by a caller: it is tried again.
    server
        .sql(
            "CREATE SEQUENCE faults; GRANT USAGE ON SEQUENCE faults TO host; \
             CREATE OR REPLACE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('public.faults') <= 3 THEN RAISE EXCEPTION 'a fault' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER fault BEFORE INSERT ON pomerium.record_changes FOR EACH ROW EXECUTE FUNCTION fault()",
        )
        .unwrap();
    caller.put("retried").await.unwrap();
    server.sql(NO_TRIGGER).unwrap();

    // Nobody is there.
    server.stop().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = caller.put("nobody").await.expect_err("nobody");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        if status.message().contains("refused") {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
    operated.line(&["the database has failed", "\"kind\":\"unreachable\""]);
    server.restart().unwrap();
    operated.line(&["the database answers again"]);
    caller.put_again("after").await;
    let log = operated.seen.join("\n");
    assert!(!log.contains(PASSWORD), "{log}");
}

#[test]
fn what_cannot_be_opened_says_why_at_the_start() {
    let server = with_password();
    let standby = server.standby().unwrap();
    let nowhere = format!("postgres://postgres:{PASSWORD}@127.0.0.1:{}/nowhere", server.port());
    // What may pass is waited for by `serve`.
    let cases = [
        (url(&server, "wrong"), 64, "SQLSTATE 28P01"),
        (nowhere, 64, "SQLSTATE 3D000"),
        (url(&standby, PASSWORD), 1, "is a standby"),
        (
            url(&standby, PASSWORD) + "?target_session_attrs=read-write",
            1,
            "it takes no writes",
        ),
        ("postgres://postgres@127.0.0.1:1/postgres".to_owned(), 1, "127.0.0.1:1"),
    ];
    for (connection_string, code, says) in cases {
        let site = Site::new(&connection_string);
        let (found, said) = site.check();
        assert_eq!(found, Some(code), "{connection_string}: {said}");
        assert!(said.contains(says), "{connection_string}: {said}");
        if code == 1 {
            let mut operated = Operated::start(&site.configuration());
            operated.line(&["the store is not there yet", says]);
            operated.signal("-TERM");
            assert_eq!(operated.serving.0.wait().unwrap().code(), Some(0));
            continue;
        }
        let failed = output(&["serve", "--config", site.configuration().to_str().unwrap()], &[]);
        assert_eq!(failed.status.code(), Some(code), "{}", text(&failed.stderr));
        assert!(!text(&failed.stderr).contains(PASSWORD), "{}", text(&failed.stderr));
    }
}

#[test]
fn a_database_that_comes_later_is_waited_for() {
    let server = with_password();
    let site = Site::new(&url(&server, PASSWORD));
    server.stop().unwrap();
    let mut operated = Operated::start(&site.configuration());
    let probes = address(&operated.line(&["answering probes"]));
    operated.line(&["the store is not there yet", "again_in"]);
    assert!(get(&probes, "/readyz", "").starts_with("HTTP/1.1 503"), "not ready");
    server.restart().unwrap();
    let address = address(&operated.line(&["\"serving\""]));
    let host = Host {
        site: &site,
        operated,
        address,
    };
    assert!(host.run(&["server-info"]).contains("erver"));
    host.end();
}

/// The built-in plugin on a server, served in this process.
async fn in_process(server: &PostgresServer) -> Server {
    let config = component::Config {
        connection_string: Some(server.url()),
        ..component::Config::new(component::Source::BuiltIn("postgres".to_owned()))
    };
    let (backend, info) = component::open(config, descriptors()).await.unwrap();
    Server::serve(backend, info, broker::Config::default(), PATIENCE).await
}

const SESSION: &str = "type.googleapis.com/session.Session";
const BINDING: &str = "type.googleapis.com/session.SessionBinding";
const REQUEST: &str = "type.googleapis.com/session.SessionBindingRequest";

async fn set_fields(server: &Server, record_type: &str, fields: &[&str]) {
    let options = databroker_proto::databroker::Options {
        indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        ..Default::default()
    };
    let request = SetOptionsRequest {
        r#type: record_type.to_owned(),
        options: Some(options),
    };
    server.client().set_options(request).await.unwrap();
}

/// The ids of the records that have a value in a field.
async fn query(server: &Server, record_type: &str, field: &str, value: &str) -> Vec<String> {
    query_by(server, record_type, &serde_json::json!({ field: value })).await
}

/// JSON as a protobuf value.
fn to_value(json: &serde_json::Value) -> prost_types::Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(*flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(list) => Kind::ListValue(prost_types::ListValue {
            values: list.iter().map(to_value).collect(),
        }),
        serde_json::Value::Object(object) => Kind::StructValue(to_struct(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn to_struct(object: &serde_json::Map<String, serde_json::Value>) -> prost_types::Struct {
    prost_types::Struct {
        fields: object
            .iter()
            .map(|(key, value)| (key.clone(), to_value(value)))
            .collect(),
    }
}

/// The ids of the records that a filter finds.
async fn query_by(server: &Server, record_type: &str, filter: &serde_json::Value) -> Vec<String> {
    let filter = to_struct(filter.as_object().unwrap());
    let request = QueryRequest {
        r#type: record_type.to_owned(),
        filter: Some(filter),
        limit: 1000,
        ..Default::default()
    };
    let found = server.client().query(request).await.unwrap().into_inner().records;
    found.into_iter().map(|record| record.id).collect()
}

/// The nodes of a plan, from the outermost in: what each is, and the index that it uses.
fn nodes(plan: &serde_json::Value, found: &mut Vec<(String, String)>) {
    let text = |name: &str| plan[name].as_str().unwrap_or_default().to_owned();
    if !text("Node Type").is_empty() {
        let index = text("Index Name");
        let on = if index.is_empty() { text("Relation Name") } else { index };
        found.push((text("Node Type"), on));
    }
    for inner in plan["Plans"].as_array().into_iter().flatten() {
        nodes(inner, found);
    }
}

/// The plans that the server has logged, each after its statement.
fn logged_plans(log: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut plans = Vec::new();
    for begin in log.split("plan:\n").skip(1) {
        let mut documents = serde_json::Deserializer::from_str(begin).into_iter::<serde_json::Value>();
        let plan = documents.next().unwrap().unwrap();
        let mut found = Vec::new();
        nodes(&plan["Plan"], &mut found);
        plans.push((plan["Query Text"].as_str().unwrap().to_owned(), found));
    }
    plans
}

/// What Postgres really does for the plugin's statements, told by the server itself.
#[tokio::test(flavor = "multi_thread")]
async fn ids_fields_and_networks_are_answered_by_indexes() {
    let database = PostgresServer::with(&Options {
        configuration: vec![
            "session_preload_libraries = 'auto_explain'".to_owned(),
            "auto_explain.log_min_duration = 0".to_owned(),
            "auto_explain.log_format = json".to_owned(),
            "log_line_prefix = ''".to_owned(),
            "autovacuum = off".to_owned(),
        ],
        ..Options::default()
    })
    .unwrap();
    let server = in_process(&database).await;
    let indexes = || {
        database
            .sql("SELECT count(*) FROM pg_indexes WHERE starts_with(indexname, 'host_field_') AND indexdef LIKE '%session.Session''%'")
            .unwrap()
    };
    // What is no field, and what JSON does not write as text, has no index; two names of one field have one.
    let fields = [
        "version",
        "user_id",
        "no_such_field",
        "claims",
        "id_token.subject",
        "refresh_disabled",
    ];
    set_fields(&server, SESSION, &fields).await;
    assert_eq!(indexes(), "2");
    set_fields(&server, SESSION, &["user_id", "userId", "audience", "expires_at"]).await;
    set_fields(&server, REQUEST, &["state"]).await;
    assert_eq!(indexes(), "3");
    // As Pomerium writes them, so that the host has no part in how they are found.
    database
        .sql(
            "SET auto_explain.log_min_duration = -1; \
             CREATE FUNCTION pg_temp.put(of text, id text, data jsonb, cidr inet) RETURNS void LANGUAGE sql AS $$ \
             INSERT INTO pomerium.records (type, id, version, data, index_cidr) VALUES (of, id, \
             nextval(pg_get_serial_sequence('pomerium.record_changes', 'version')), jsonb_build_object('@type', of) || data, cidr) $$; \
             SELECT pg_temp.put('type.googleapis.com/session.Session', 's' || n, jsonb_build_object( \
             'userId', 'u' || n / 2, 'version', 'v' || n, 'audience', jsonb_build_array('a', 'a' || n), 'expiresAt', \
             to_char(timestamp '2025-01-31' + n * interval '1 s', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')), NULL) FROM generate_series(1, 50000) n; \
             SELECT pg_temp.put('type.googleapis.com/session.SessionBindingRequest', 'r' || n, \
             jsonb_build_object('key', 'k' || n, 'state', CASE n WHEN 77 THEN 'Revoked' ELSE 'Accepted' END), NULL) FROM generate_series(1, 50000) n; \
             INSERT INTO pomerium.records (type, id, version, data, index_cidr) \
             SELECT 'network', 'n' || n, nextval(pg_get_serial_sequence('pomerium.record_changes', 'version')), \
             jsonb_build_object('@type', 'type.googleapis.com/google.protobuf.Struct', 'value', jsonb_build_object('$index', \
             jsonb_build_object('cidr', cidr::text))), cidr \
             FROM (SELECT n, ('10.' || n / 256 || '.' || n % 256 || '.0/24')::inet AS cidr FROM generate_series(1, 50000) n) n",
        )
        .unwrap();

    type Found<'f> = (&'f str, &'f [(&'f str, &'f str)]);
    let by_field: Found<'_> = (
        "::text @> $",
        &[("Index Scan", "host_field_"), ("Index Scan", "host_records_opaque")],
    );
    let cases: [(&str, &str, &str, &[&str], Found<'_>); 7] = [
        (SESSION, "user_id", "u700", &["s1400", "s1401"], by_field),
        (SESSION, "audience", "a700", &["s700"], by_field),
        (SESSION, "expires_at", "2025-01-31T00:01:00Z", &["s60"], by_field),
        (REQUEST, "state", "Revoked", &["r77"], by_field),
        (
            "network",
            "$index",
            "10.3.7.9",
            &["n775"],
            (">>=", &[("Index Scan", "records_index_cidr_idx")]),
        ),
        (
            SESSION,
            "id",
            "s31",
            &["s31"],
            ("r.type = $1 AND r.id = $2", &[("Index Scan", "records_pkey")]),
        ),
        // A walk through the records of the type, of which the host gets those that match.
        (
            SESSION,
            "version",
            "v700",
            &["s700"],
            ("::jsonpath", &[("Index Scan", "host_records_key")]),
        ),
    ];
    // Fields also while the database has no statistics, which is so for a minute or more after many records were put.
    let twice = cases.into_iter().filter(|case| case.4.0 == by_field.0).chain(cases);
    for (place, (record_type, field, value, ids, (statement, expected))) in twice.enumerate() {
        if place == 4 {
            database.sql("ANALYZE pomerium.records").unwrap();
        }
        let before = logged_plans(&database.log().unwrap()).len();
        // Often enough that a plan which is made once for all values would be used.
        for _ in 0..8 {
            assert_eq!(query(&server, record_type, field, value).await, ids, "{field}");
        }
        let plans = logged_plans(&database.log().unwrap());
        let plans: Vec<_> = plans[before..]
            .iter()
            .filter(|(text, _)| text.contains(statement))
            .collect();
        assert!(plans.len() >= 8, "{field}");
        for (text, nodes) in plans {
            let has = |node: &(&str, &str)| {
                nodes
                    .iter()
                    .any(|(kind, on)| kind.ends_with(node.0) && on.starts_with(node.1))
            };
            assert!(expected.iter().all(has), "{field}: {nodes:?}\n{text}");
            let reads_all = nodes.iter().any(|(node, on)| node == "Seq Scan" && on == "records");
            assert!(!reads_all, "{field}: {nodes:?}\n{text}");
        }
    }
    set_fields(&server, SESSION, &[]).await;
    assert_eq!(indexes(), "0");
}

/// The ids of the records that a filter matches, as the host's filters say: from the records, without a database.
fn matching(descriptors: &Descriptors, records: &[Record], filter: &serde_json::Value) -> Vec<String> {
    let filter = Filter::parse(filter).unwrap();
    let matches = |record: &&Record| {
        let key = Key::new(record.r#type.clone(), record.id.clone());
        let data = record.data.as_ref().map(AsRef::as_ref);
        filter.matches(descriptors, &key, data, &filter.resolution(), &mut Effort::default())
    };
    let mut ids: Vec<_> = records.iter().filter(matches).map(|record| record.id.clone()).collect();
    ids.sort();
    ids
}

/// Looked up by an index or not, a field has the records that the host's filters say, whoever has written them and however odd
/// they are; and so has any other filter.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_finds_what_the_filter_matches() {
    let database = PostgresServer::start().unwrap();
    let server = in_process(&database).await;
    let values = [
        "u1",
        "",
        "true",
        "false",
        "5",
        "0",
        "a\"b\\",
        "line\nbreak\u{1}",
        "nul\0",
        "nul",
        "é💡",
        "900s",
        "2025-01-31T12:00:00Z",
        "x' OR true --",
        "$.x",
        "aGk=",
        "InFlight",
        "Accepted",
        "1e+06",
    ];
    let json = |value: &str| serde_json::Value::from(value).to_string();
    let mut documents = vec!["{}".to_owned(), "{\"refreshDisabled\": true}".to_owned()];
    for value in values {
        let value = json(value);
        documents.extend([
            format!("{{\"userId\": {value}}}"),
            format!("{{\"impersonateSessionId\": {value}}}"),
            format!("{{\"audience\": [\"other\", {value}]}}"),
            format!("{{\"claims\": {{\"groups\": [{value}, [{value}], 5, true], \"a.b\": [{value}]}}}}"),
            format!("{{\"idToken\": {{\"subject\": {value}}}}}"),
            format!("{{\"deviceCredentials\": [{{\"typeId\": {value}}}]}}"),
        ]);
    }
    documents.push("{\"expiresAt\": \"2025-01-31T12:00:00Z\"}".to_owned());
    let descriptors = descriptors();
    let mut records: Vec<Record> = documents
        .iter()
        .enumerate()
        .map(|(number, document)| {
            let typed = document
                .replacen('{', &format!("{{\"@type\": \"{SESSION}\", "), 1)
                .replace(", }", "}");
            Record {
                r#type: SESSION.to_owned(),
                id: format!("s{number:03}"),
                data: Some(descriptors.from_json(&typed).unwrap().into()),
                ..Default::default()
            }
        })
        .collect();
    let mut odd = |id: &str, data: Vec<u8>| {
        records.push(Record {
            r#type: SESSION.to_owned(),
            id: id.to_owned(),
            data: Some(data.into()),
            ..Default::default()
        });
    };
    // Of other types than they say, of one that nobody knows, damaged, and with what JSON cannot say.
    let other = format!("{{\"@type\": \"{BINDING}\", \"userId\": \"u1\"}}");
    odd("o1", descriptors.from_json(&other).unwrap());
    let structure = "{\"@type\": \"type.googleapis.com/google.protobuf.Struct\", \"value\": {\"user_id\": [[\"u1\", 5]], \"audience\": true}}";
    odd("o2", descriptors.from_json(structure).unwrap());
    let any = |url: &str, value: Vec<u8>| {
        let any = prost_types::Any {
            type_url: url.to_owned(),
            value,
        };
        prost::Message::encode_to_vec(&any)
    };
    odd("o3", any("type.googleapis.com/no.such.Type", vec![0x1a, 2, b'u', b'1']));
    odd("o4", any(SESSION, vec![0x1a, 2, b'u', b'1', 0xff]));
    // A time out of range, after the user.
    odd(
        "o5",
        any(
            SESSION,
            vec![
                0x1a, 2, b'u', b'1', 0x22, 11, 8, 255, 255, 255, 255, 255, 255, 255, 255, 127,
            ],
        ),
    );
    server.put(records.clone()).await;

    let fields = [
        "user_id",
        "userId",
        "impersonate_session_id",
        "audience",
        "claims",
        "claims.groups",
        "claims.a.b",
        "id_token",
        "id_token.subject",
        "refresh_disabled",
        "expires_at",
        "device_credentials.type_id",
        "no_such_field",
        "version",
    ];
    let operators = [
        "$startsWith",
        "$endsWith",
        "$contains",
        "$doesNotContain",
        "$isEmpty",
        "!=",
        "<",
        ">=",
        "$before",
        "$onOrAfter",
    ];
    // What the host has written, and then what Pomerium has: without exact bytes, but for what it cannot write.
    for writer in ["host", "pomerium"] {
        if writer == "pomerium" {
            database
                .sql(
                    "DELETE FROM pomerium.host_exact d USING pomerium.records r WHERE r.version = d.version \
                     AND r.data ->> '@type' = r.type AND r.data - '@type' <> '{}'::jsonb",
                )
                .unwrap();
        }
        let mut found = 0;
        for field in fields {
            for indexed in [&[][..], &[field]] {
                set_fields(&server, SESSION, indexed).await;
                for value in values {
                    let expected = matching(&descriptors, &records, &serde_json::json!({ field: value }));
                    found += expected.len();
                    let what = format!("{writer}: {field} = {value:?}, indexed {indexed:?}");
                    assert_eq!(query(&server, SESSION, field, value).await, expected, "{what}");
                }
            }
            for (place, value) in values.iter().enumerate() {
                let operator = operators[(place + field.len()) % operators.len()];
                let one = serde_json::json!({ field: { operator: value } });
                let other = serde_json::json!({ "$or": [{ "user_id": value }, { "$not": &one }] });
                for filter in [one, other] {
                    if Filter::parse(&filter).is_err() {
                        continue;
                    }
                    let expected = matching(&descriptors, &records, &filter);
                    found += expected.len();
                    assert_eq!(
                        query_by(&server, SESSION, &filter).await,
                        expected,
                        "{writer}: {filter}"
                    );
                }
            }
        }
        assert!(found > 1000, "{found}");
    }
}
