//! Pomerium's own databroker and a host on one database: what each writes the other has, and nobody loses anything to the
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use databroker_proto::databroker::sync_response::Response;
use databroker_proto::databroker::{
    Checkpoint, GetCheckpointRequest, GetOptionsRequest, Options, PutRequest, QueryRequest, Record,
    SetCheckpointRequest, SetOptionsRequest,
};
use databroker_proto::registry::{ListRequest, RegisterRequest, Service};
use databroker_shared_postgres::client::{Client, SESSION, content_of};
use databroker_shared_postgres::history::Content;
use databroker_shared_postgres::process::{Kind, Process, Program, build_stock};
use postgres_server::PostgresServer;
use prost::Message as _;
use prost_types::Any;
use tokio::task::JoinSet;

use super::PROGRAM;

/// How long a change may take to reach the other side. Pomerium's own polls nothing, so a notification must have come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a databroker of a kind on a server.
pub(crate) async fn start(kind: Kind, server: &PostgresServer, stock: &Path, folder: &Path, name: &str) -> Process {
    let path = match kind {
        Kind::Host => Path::new(PROGRAM),
        Kind::Stock => stock,
    };
    let program = Program {
        kind,
        path: path.to_owned(),
        connection_string: server.url(),
        environment: Vec::new(),
    };
    Process::start(program, folder, name).await.unwrap()
}

/// What Pomerium's own and a host say to each other, whoever has made the database.
#[tokio::test(flavor = "multi_thread")]
async fn each_has_what_the_other_writes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(stock) = build_stock(folder.path()).unwrap() else {
        return;
    };
    for first in [Kind::Host, Kind::Stock] {
        let server = PostgresServer::start().unwrap();
        let mut processes = Vec::new();
        match first {
            Kind::Host => {
                processes.push(start(Kind::Host, &server, &stock, folder.path(), "host first").await);
                processes.push(start(Kind::Stock, &server, &stock, folder.path(), "stock second").await);
            }
            Kind::Stock => {
                // The process that makes the tables goes on under a server version that is not in them, until it is started
                // again.
                drop(start(Kind::Stock, &server, &stock, folder.path(), "stock makes the tables").await);
                processes.push(start(Kind::Host, &server, &stock, folder.path(), "host second").await);
                processes.push(start(Kind::Stock, &server, &stock, folder.path(), "stock first").await);
            }
        }
        let [ours, stock] = &processes[..] else { unreachable!() };
        assert_eq!(
            server
                .sql("SELECT migration_version FROM pomerium.migration_info")
                .unwrap(),
            "9"
        );
        for (from, to, name) in [(ours, stock, "from ours to stock"), (stock, ours, "from stock to ours")] {
            println!("{first:?} first, {name}");
            both_ways(
                &Client::new(from.port(), "side").unwrap(),
                &Client::new(to.port(), "side").unwrap(),
                name,
            )
            .await;
        }
        what_stock_does_not_know(ours, stock).await;
    }
}

async fn both_ways(from: &Client, to: &Client, name: &str) {
    let server_version = from.server_version().await.unwrap();
    assert_eq!(to.server_version().await.unwrap(), server_version);
    let (_, versions) = to.latest().await.unwrap();
    let opening = {
        let (to, after) = (to.clone(), versions.latest_record_version);
        tokio::spawn(async move { to.sync(server_version, after).await.unwrap() })
    };

    // Records, patches and deletes; read, found, listed and streamed.
    let id = format!("record {name}");
    let version = from.put(&[(id.clone(), Some(Content::of("put")))]).await.unwrap()[0];
    assert_eq!(to.get(&id).await.unwrap(), Some((version, Content::of("put"))));
    let patched = from.patch(&id, 0, "patched").await.unwrap();
    let content = Content(["patched".to_owned(), "put".to_owned()]);
    assert_eq!(to.get(&id).await.unwrap(), Some((patched, content.clone())));
    let query = QueryRequest {
        r#type: "side".to_owned(),
        query: "patched".to_owned(),
        limit: 10,
        ..QueryRequest::default()
    };
    let found = to.data().query(query).await.unwrap().into_inner();
    assert_eq!(
        found.records.iter().map(|record| record.version).collect::<Vec<_>>(),
        [patched]
    );
    let (records, versions) = to.latest().await.unwrap();
    assert!(
        records
            .iter()
            .any(|record| record.id == id && record.version == patched)
    );
    assert!(versions.latest_record_version >= patched);
    // And back again: what one has written the other changes.
    let back = to.patch(&id, 1, "back").await.unwrap();
    let content_back = Content(["patched".to_owned(), "back".to_owned()]);
    assert_eq!(from.get(&id).await.unwrap(), Some((back, content_back.clone())));
    from.put(&[(id.clone(), None)]).await.unwrap();
    assert_eq!(to.get(&id).await.unwrap(), None);
    let mut stream = opening.await.unwrap();
    let mut streamed = Vec::new();
    let streaming = async {
        while streamed.len() < 4 {
            let message = stream.message().await.unwrap().expect("the stream goes on");
            if let Some(Response::Record(record)) = message.response {
                assert_eq!(record.id, id);
                streamed.push(
                    record
                        .deleted_at
                        .is_none()
                        .then(|| content_of(&record).unwrap_or_default()),
                );
            }
        }
    };
    tokio::time::timeout(PATIENCE, streaming)
        .await
        .expect("all changes are streamed");
    assert_eq!(
        streamed,
        [Some(Content::of("put")), Some(content), Some(content_back), None]
    );

    // Options.
    let options = Options {
        capacity: Some(77),
        indexable_fields: vec!["user_id".to_owned()],
        // Pomerium v0.32 does not have it.
        ttl: None,
    };
    let record_type = format!("options {name}");
    let request = SetOptionsRequest {
        r#type: record_type.clone(),
        options: Some(options.clone()),
    };
    from.data().set_options(request).await.unwrap();
    eventually("the options", async || {
        let request = GetOptionsRequest {
            r#type: record_type.clone(),
        };
        let response = to.data().get_options(request).await;
        response.is_ok_and(|response| response.into_inner().options.as_ref() == Some(&options))
    })
    .await;

    // Leases, under the names that Pomerium gives them.
    let lease = "identity_manager";
    let held = from
        .acquire(lease, Duration::from_secs(60))
        .await
        .unwrap()
        .expect("the lease");
    assert_eq!(to.acquire(lease, Duration::from_secs(60)).await.unwrap(), None);
    assert!(to.renew(lease, &held, Duration::from_secs(60)).await.unwrap());
    assert!(!to.renew(lease, "another", Duration::from_secs(60)).await.unwrap());
    to.release(lease, &held).await.unwrap();
    let held = to
        .acquire(lease, Duration::from_secs(60))
        .await
        .unwrap()
        .expect("a lease that was given back");
    to.release(lease, &held).await.unwrap();

    // The registry.
    let service = Service {
        kind: 7,
        endpoint: format!("http://{}", name.replace(' ', "-")),
    };
    let request = RegisterRequest {
        services: vec![service.clone()],
        ..RegisterRequest::default()
    };
    from.registry().report(request).await.unwrap();
    let listed = to.registry().list(ListRequest::default()).await.unwrap().into_inner();
    assert!(listed.services.contains(&service), "{listed:?}");

    // The checkpoint. Pomerium's own reads 120 as 12, so no number here ends with a zero.
    let checkpoint = Checkpoint {
        server_version: 123_457,
        record_version: 345_679,
    };
    let request = SetCheckpointRequest {
        checkpoint: Some(checkpoint),
    };
    from.checkpoint().set_checkpoint(request).await.unwrap();
    let response = to.checkpoint().get_checkpoint(GetCheckpointRequest {}).await.unwrap();
    assert_eq!(response.into_inner().checkpoint, Some(checkpoint));
}

/// Types and fields that Pomerium's own does not know: kept by ours byte for byte, and no reason for it to fail.
async fn what_stock_does_not_know(ours: &Process, stock: &Process) {
    let (ours, stock) = (
        Client::new(ours.port(), "side").unwrap(),
        Client::new(stock.port(), "side").unwrap(),
    );
    let unknown_type = Any {
        type_url: "type.googleapis.com/example.NobodyHasIt".to_owned(),
        value: vec![8, 1, 18, 2, 104, 105],
    };
    // Field 1000 of a session, which there is not.
    let unknown_field = Any {
        type_url: SESSION.to_owned(),
        value: vec![0x12, 1, b'u', 0xc2, 0x3e, 2, b'h', b'i'],
    };
    for (id, data) in [("type", unknown_type), ("field", unknown_field)] {
        let data = Bytes::from(data.encode_to_vec());
        let record = Record {
            r#type: "unknown".to_owned(),
            id: id.to_owned(),
            data: Some(data.clone()),
            ..Record::default()
        };
        ours.data().put(PutRequest { records: vec![record] }).await.unwrap();
        let read = async |client: &Client| {
            let query = QueryRequest {
                r#type: "unknown".to_owned(),
                limit: 10,
                ..QueryRequest::default()
            };
            let response = client.data().query(query).await.unwrap().into_inner();
            let record = response.records.into_iter().find(|record| record.id == id);
            record.expect("the record").data
        };
        assert_eq!(read(&ours).await, Some(data));
        assert!(read(&stock).await.is_some());
    }
}

async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Writers of each databroker, and what each of them writes.
const WRITERS: usize = 8;
const WRITES: usize = 150;

/// Eight writers through each of two databrokers, while streams on both collect.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_ours_miss_nothing_that_either_writes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(stock) = build_stock(folder.path()).unwrap() else {
        return;
    };
    let mut missing = BTreeMap::new();
    for (name, kinds) in [
        ("stock with stock", [Kind::Stock, Kind::Stock]),
        ("stock with ours", [Kind::Stock, Kind::Host]),
    ] {
        // What a reader of Pomerium's passes by was given its version and not yet committed, and a commit takes as long as the
        // disk takes.
        let server = PostgresServer::with(&postgres_server::Options {
            configuration: vec!["fsync = on".to_owned()],
            ..postgres_server::Options::default()
        })
        .unwrap();
        drop(start(Kind::Stock, &server, &stock, folder.path(), "makes the tables").await);
        let mut processes = Vec::new();
        for (number, kind) in kinds.into_iter().enumerate() {
            processes.push((
                kind,
                start(kind, &server, &stock, folder.path(), &format!("{name} {number}")).await,
            ));
        }
        for (number, (kind, reader)) in storm(&processes).await.into_iter().enumerate() {
            println!(
                "{name}: reader {number}, of {kind:?}, lacks {} of {} changes",
                reader.missing, reader.of
            );
            assert!(!reader.is_unordered, "{name}: reader {number} got versions in disorder");
            if kind == Kind::Host {
                assert_eq!(reader.missing, 0, "{name}: a stream of ours lacks changes");
            }
            *missing.entry((name, kind == Kind::Stock)).or_insert(0) += reader.missing;
        }
    }
    println!("missing, by setting and whether stock: {missing:?}");
    let of_stock = |name| missing.get(&(name, true)).copied().unwrap_or_default();
    // Four readers of its own alone, two beside ours; a few come and go.
    let (alone, beside) = (of_stock("stock with stock"), of_stock("stock with ours") * 2);
    assert!(
        beside <= alone + WRITERS * WRITES / 20,
        "Pomerium's own readers lack {beside} changes beside ours, and {alone} beside another of their own"
    );
}

struct Reader {
    missing: usize,
    of: usize,
    is_unordered: bool,
}

/// Writers and readers of all databrokers at once; gives what each reader lacks.
async fn storm(processes: &[(Kind, Process)]) -> Vec<(Kind, Reader)> {
    let clients: Vec<_> = processes
        .iter()
        .map(|(kind, process)| (*kind, Client::new(process.port(), "storm").unwrap()))
        .collect();
    // A write that gives way to another leaves a gap. Pomerium's own takes one at the beginning of the log for changes that are gone.
    let first = [("first".to_owned(), Some(Content::of("first")))];
    clients[0].1.put(&first).await.unwrap();
    let (_, versions) = clients[0].1.latest().await.unwrap();
    let (server_version, after) = (versions.server_version, versions.latest_record_version);
    let (last, _) = tokio::sync::watch::channel(u64::MAX);
    let mut readers = Vec::new();
    for (kind, client) in clients.iter().chain(&clients) {
        let kind = *kind;
        let (client, mut last) = (client.clone(), last.subscribe());
        readers.push((
            kind,
            tokio::spawn(async move {
                let mut stream = client.sync(server_version, after).await.unwrap();
                let mut versions = vec![after];
                while versions.last() < Some(&last.borrow()) {
                    let message = tokio::select! {
                        message = stream.message() => message
                            .unwrap_or_else(|status| panic!("a stream of {kind:?} after {versions:?}: {status}"))
                            .expect("the stream goes on"),
                        _ = last.changed() => continue,
                        // A notification that was lost is made up for by nothing in Pomerium's own.
                        () = tokio::time::sleep(PATIENCE) => break,
                    };
                    if let Some(Response::Record(record)) = message.response {
                        versions.push(record.version);
                    }
                }
                versions
            }),
        ));
    }
    let mut writers = JoinSet::new();
    for (number, (_, client)) in clients.iter().enumerate() {
        for writer in 0..WRITERS {
            let client = client.clone();
            writers.spawn(async move {
                let mut versions = BTreeSet::new();
                for write in 0..WRITES {
                    // A few records of its own, and one that all write.
                    let id = match write % 5 {
                        0 => "all".to_owned(),
                        _ => format!("{number}.{writer}.{}", write % 20),
                    };
                    let content = (write % 7 != 6).then(|| Content::of(&format!("{number}.{writer}.{write}")));
                    let result = client.put(&[(id.clone(), content)]).await;
                    // Of a delete stock answers with the version of what was deleted.
                    match result {
                        Ok(written) if write % 7 != 6 => versions.extend(written),
                        Ok(_) => {}
                        Err(status) => panic!("{id}: {status}"),
                    }
                    if write % 10 == 9 {
                        let version = client
                            .patch(&format!("{number}.{writer}.1"), write % 2, "patched")
                            .await
                            .unwrap_or_default();
                        versions.insert(version);
                    }
                }
                versions
            });
        }
    }
    let mut written = BTreeSet::new();
    while let Some(versions) = writers.join_next().await {
        written.extend(versions.unwrap());
    }
    written.remove(&0);
    // Changes that come last are waited for: through each databroker, so that all of them are woken.
    for (number, (_, client)) in clients.iter().enumerate() {
        written.extend(
            client
                .put(&[(format!("last {number}"), Some(Content::of("last")))])
                .await
                .unwrap(),
        );
    }
    last.send_replace(written.last().copied().unwrap_or_default());
    let mut result = Vec::new();
    for (kind, reader) in readers {
        let got = reader.await.unwrap();
        let unique: BTreeSet<_> = got.iter().copied().collect();
        result.push((
            kind,
            Reader {
                missing: written.difference(&unique).count(),
                of: written.len(),
                is_unordered: !got.is_sorted() || unique.len() != got.len(),
            },
        ));
    }
    result
}
