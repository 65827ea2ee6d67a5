//! The guide's way from Pomerium's database to hosts and back, with the SQL of docs/postgres.md itself.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use databroker_proto::databroker::sync_response::Response;
use databroker_proto::databroker::{
    Checkpoint, GetCheckpointRequest, GetOptionsRequest, Options, SetCheckpointRequest, SetOptionsRequest,
};
use databroker_shared_postgres::client::{Client, content_of};
use databroker_shared_postgres::history::Content;
use databroker_shared_postgres::process::{Kind, build_stock};
use postgres_server::PostgresServer;

use super::config_check::check;
use super::side_by_side::start;

/// How long a stream may take to give what there is.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longer than the test takes.
const LEASE: Duration = Duration::from_secs(600);

/// A type with options and without records.
const WITH_OPTIONS: &str = "with options";

/// The SQL under a heading of the guide.
fn guide(heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/postgres.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, section) = text
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("the guide has no {heading:?}"));
    let section = section.split("\n## ").next().unwrap_or_default();
    let (_, block) = section.split_once("```sql\n").expect("SQL under the heading");
    block.split("```").next().unwrap_or_default().to_owned()
}

/// Everything that there is in the schema: what is called so, columns and indexes as they are defined, triggers.
fn objects(server: &PostgresServer) -> BTreeSet<String> {
    let query = "SELECT relname || ' ' || relkind::text FROM pg_class WHERE relnamespace = 'pomerium'::regnamespace \
        UNION ALL SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) \
          FROM information_schema.columns WHERE table_schema = 'pomerium' \
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'pomerium' \
        UNION ALL SELECT tgname || ' on ' || tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal \
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'pomerium'::regnamespace";
    server.sql(query).unwrap().lines().map(str::to_owned).collect()
}

/// The indexes of the guide that are there: what they are, and which, so that one that was made again is told from it.
fn indexes(server: &PostgresServer) -> (String, String) {
    let query = |what| {
        format!(
            "SELECT {what} FROM pg_indexes WHERE schemaname = 'pomerium' \
             AND (indexname LIKE 'host\\_records\\_%' OR indexname = 'idx_records_type_modified_at') ORDER BY 1"
        )
    };
    let number = "indexname || ' ' || ('pomerium.' || indexname)::regclass::oid";
    (
        server.sql(&query("indexdef")).unwrap(),
        server.sql(&query(number)).unwrap(),
    )
}

/// Records that are put, patched, deleted and put again; gives the version in the middle.
async fn fill(client: &Client, by: &str) -> u64 {
    let id = |number: usize| format!("{by} {number}");
    let mut middle = 0;
    for batch in 0..10 {
        let records: Vec<_> = (0..20)
            .map(|number| (id(batch * 20 + number), Some(Content::of(by))))
            .collect();
        let versions = client.put(&records).await.unwrap();
        if batch == 5 {
            middle = versions[0];
        }
    }
    for number in 0..40 {
        client.patch(&id(number), number % 2, "patched").await.unwrap();
    }
    for number in 30..60 {
        client.put(&[(id(number), None)]).await.unwrap();
    }
    client.put(&[(id(35), Some(Content::of("put again")))]).await.unwrap();
    middle
}

async fn set_options(client: &Client, capacity: u64) {
    let request = SetOptionsRequest {
        r#type: WITH_OPTIONS.to_owned(),
        options: Some(Options {
            capacity: Some(capacity),
            indexable_fields: vec!["user_id".to_owned(), "idp_id".to_owned()],
            // Pomerium v0.32 does not have it.
            ttl: None,
        }),
    };
    client.data().set_options(request).await.unwrap();
}

async fn set_checkpoint(client: &Client, number: u64) {
    let request = SetCheckpointRequest {
        // Pomerium's own reads 120 as 12, so no number here ends with a zero.
        checkpoint: Some(Checkpoint {
            server_version: number,
            record_version: number + 2,
        }),
    };
    client.checkpoint().set_checkpoint(request).await.unwrap();
}

/// What a databroker answers of all that there is.
#[derive(Debug, PartialEq)]
struct Everything {
    server_version: u64,
    records: Vec<(String, u64, Content)>,
    options: Option<Options>,
    checkpoint: Option<Checkpoint>,
    /// From a version on.
    changes: Vec<(u64, String, Option<Content>)>,
}

async fn everything(client: &Client, after: u64) -> Everything {
    let (records, versions) = client.latest().await.unwrap();
    let mut records: Vec<_> = records
        .into_iter()
        .map(|record| {
            let content = content_of(&record).expect("a session");
            (record.id, record.version, content)
        })
        .collect();
    records.sort_by(|one, other| one.0.cmp(&other.0));
    let request = GetOptionsRequest {
        r#type: WITH_OPTIONS.to_owned(),
    };
    let options = client.data().get_options(request).await.unwrap().into_inner().options;
    let checkpoint = client.checkpoint().get_checkpoint(GetCheckpointRequest {}).await;
    let mut changes: Vec<(u64, String, Option<Content>)> = Vec::new();
    let reading = async {
        let mut stream = client.sync(versions.server_version, after).await.unwrap();
        while changes.last().map(|(version, ..)| *version) != Some(versions.latest_record_version) {
            let message = stream.message().await.unwrap().expect("the stream goes on");
            if let Some(Response::Record(record)) = message.response {
                let content = record
                    .deleted_at
                    .is_none()
                    .then(|| content_of(&record).expect("a session"));
                changes.push((record.version, record.id, content));
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("all changes are streamed");
    Everything {
        server_version: versions.server_version,
        records,
        options,
        checkpoint: checkpoint.unwrap().into_inner().checkpoint,
        changes,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pomeriums_database_is_taken_over_and_handed_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = build_stock(folder.path()).unwrap() else {
        return;
    };
    let server = PostgresServer::start().unwrap();
    let process = async |kind, name| start(kind, &server, &program, folder.path(), name).await;

    // What Pomerium has made and filled.
    drop(process(Kind::Stock, "makes the tables").await);
    let theirs = objects(&server);
    let stock = process(Kind::Stock, "stock").await;
    let old = Client::new(stock.port(), "taken").unwrap();
    let middle = fill(&old, "by stock").await;
    set_options(&old, 77).await;
    set_checkpoint(&old, 123_457).await;
    let held = old.acquire("held", LEASE).await.unwrap().expect("a lease");

    // 1. The indexes are made while Pomerium runs, and are those that a host makes where there are none.
    server.script(&guide("Take over Pomerium's database")).unwrap();
    old.put(&[("beside".to_owned(), Some(Content::of("beside")))])
        .await
        .unwrap();
    let made = indexes(&server);
    let empty = PostgresServer::start().unwrap();
    drop(start(Kind::Host, &empty, &program, folder.path(), "on an empty database").await);
    assert_eq!(
        made.0,
        indexes(&empty).0,
        "the guide's indexes are not those that a host makes"
    );

    // 2. and 3. The check, and a host beside Pomerium's own.
    let said = check(folder.path(), &server.url());
    assert!(said.contains("takes writes, and tells of changes at once"), "{said}");
    let host = process(Kind::Host, "host").await;
    assert_eq!(indexes(&server), made, "the host has made the indexes again");
    let new = Client::new(host.port(), "taken").unwrap();
    let taken = everything(&old, middle).await;
    assert!(taken.records.len() > 150 && taken.options.is_some(), "{taken:?}");
    assert_eq!(everything(&new, middle).await, taken);
    assert_eq!(new.acquire("held", LEASE).await.unwrap(), None);
    assert!(new.renew("held", &held, LEASE).await.unwrap());

    // What hosts write, with an index of fields among it.
    new.index(0).await.unwrap();
    fill(&new, "by a host").await;
    new.patch("by stock 7", 0, "patched by a host").await.unwrap();
    set_options(&new, 88).await;
    set_checkpoint(&new, 765_433).await;
    let held_by_ours = new.acquire("held by ours", LEASE).await.unwrap().expect("a lease");
    assert!(objects(&server).iter().any(|object| object.starts_with("host_field_")));
    let handed_back = everything(&new, middle).await;
    assert_eq!(everything(&old, middle).await, handed_back, "beside each other");

    // Back again: nothing of ours is left but what Pomerium's own next version makes, and all of the content.
    drop(host);
    server.script(&guide("Hand it back")).unwrap();
    let left = objects(&server);
    let ninth = [
        "CREATE INDEX idx_records_type_modified_at ON pomerium.records USING btree (type, modified_at)",
        "idx_records_type_modified_at i",
        "record_options ttl bigint YES",
    ];
    assert_eq!(left.difference(&theirs).collect::<Vec<_>>(), ninth);
    assert_eq!(theirs.difference(&left).collect::<Vec<_>>(), Vec::<&String>::new());
    let again = process(Kind::Stock, "stock again").await;
    for stock in [&stock, &again] {
        let client = Client::new(stock.port(), "taken").unwrap();
        assert_eq!(everything(&client, middle).await, handed_back);
        assert_eq!(client.acquire("held by ours", LEASE).await.unwrap(), None);
        assert!(client.renew("held by ours", &held_by_ours, LEASE).await.unwrap());
    }
    let client = Client::new(again.port(), "taken").unwrap();
    client
        .put(&[("after".to_owned(), Some(Content::of("after")))])
        .await
        .unwrap();

    // And whatever is missing is made again.
    let host = process(Kind::Host, "host again").await;
    assert_eq!(indexes(&server).0, made.0);
    let new = Client::new(host.port(), "taken").unwrap();
    assert_eq!(everything(&new, middle).await, everything(&client, middle).await);
}
