//! A transaction of somebody else's that hangs in the middle of a write: readers wait for it up to the bound of the guide, look
//! ever more seldom meanwhile, say so once, and go on.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use databroker_proto::databroker::sync_response::Response;
use databroker_shared_postgres::client::Client;
use databroker_shared_postgres::history::Content;
use databroker_shared_postgres::process::{Kind, Process, Program};
use postgres_server::PostgresServer;

use super::PROGRAM;

/// A write as a process of Pomerium's makes it, which commits only once it is told to, or after a minute.
const HANGS: &str = "WITH change AS (INSERT INTO pomerium.record_changes (type, id, data, modified_at) \
        VALUES ('horizon', 'late', '{\"@type\": \"type.googleapis.com/session.Session\", \"userId\": \"late\", \"idpId\": \"late\"}', now()) \
        RETURNING *) \
    INSERT INTO pomerium.records (type, id, version, data, modified_at) SELECT type, id, version, data, modified_at FROM change; \
    DO $$ BEGIN FOR turn IN 1..1200 LOOP EXIT WHEN EXISTS (SELECT FROM public.go_on); PERFORM pg_sleep(0.05); END LOOP; END $$";

/// How many statements may be run meanwhile. A look each 5 ms would be some two thousand, and there is a handful of readers.
const STATEMENTS: u64 = 500;

/// How long everything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the host says once it no longer waits.
const SAID: &str = "a transaction has been writing changes for more than 10 s";

/// Statements that were run so far.
fn statements(metrics: &str) -> u64 {
    let mut stream = TcpStream::connect(metrics).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {metrics}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("plugin_database_statements_total{result=\"ok\"} "));
    line.expect("the count of statements").trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_hangs_is_waited_for_and_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let server = PostgresServer::start().unwrap();
    // Free now, and nobody else is given it so soon after.
    let metrics = TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let program = Program {
        kind: Kind::Host,
        path: PROGRAM.into(),
        connection_string: server.url(),
        environment: vec![("METRICS_ADDRESS".to_owned(), metrics.clone())],
    };
    let host = Process::start(program, folder.path(), "host").await.unwrap();
    let client = Client::new(host.port(), "horizon").unwrap();
    let put = async |id: &str| client.put(&[(id.to_owned(), Some(Content::of(id)))]).await.unwrap()[0];
    let before = put("before").await;
    let server_version = client.server_version().await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..4 {
        let client = client.clone();
        streams.push(tokio::spawn(async move {
            let mut stream = client.sync(server_version, before).await.unwrap();
            let mut ids = Vec::new();
            while ids.last().is_none_or(|id| id != "second") {
                let message = stream.message().await.unwrap().expect("the stream goes on");
                if let Some(Response::Record(record)) = message.response {
                    ids.push(record.id);
                }
            }
            ids
        }));
    }

    server.sql("CREATE TABLE public.go_on ()").unwrap();
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| server.sql(HANGS));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                let is_writing = "SELECT count(*) FROM pg_locks WHERE relation = 'pomerium.record_changes'::regclass AND mode = 'RowExclusiveLock'";
                while server.sql(is_writing).unwrap() == "0" {
                    assert!(!hanging.is_finished(), "the write does not hang");
                }
                let counted = statements(&metrics);
                // Nobody's write waits for it, and all are read at once by their keys.
                let first = put("first").await;
                assert_eq!(client.get("first").await.unwrap(), Some((first, Content::of("first"))));
                let second = put("second").await;
                assert_eq!(client.get("second").await.unwrap(), Some((second, Content::of("second"))));
                for stream in streams {
                    let ids = tokio::time::timeout(PATIENCE, stream).await.expect("streams go on").unwrap();
                    assert_eq!(ids, ["first", "second"]);
                }
                assert!(!hanging.is_finished(), "streams went on only when the transaction had ended");
                let run = statements(&metrics) - counted;
                assert!(run < STATEMENTS, "{run} statements while a transaction was waited for");
                assert_eq!(host.log().matches(SAID).count(), 1, "{}", host.log());
            });
        });
        server.sql("INSERT INTO public.go_on DEFAULT VALUES").unwrap();
        hanging.join().unwrap().unwrap();
    });
    // What comes so late is read all the same.
    let late = client.get("late").await.unwrap();
    assert_eq!(late.map(|(_, content)| content), Some(Content::of("late")));
    put("after").await;
    assert_eq!(host.log().matches(SAID).count(), 1, "{}", host.log());
}
