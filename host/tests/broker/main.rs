//! The broker over the native backend: what a caller and a stream see, with one broker and with two on a shared store.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod faults;
mod restarts;
mod streams;
mod tap;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use databroker_host::backend::native::{Native, Settings};
use databroker_host::backend::*;
use databroker_host::broker::{Broker, BrokerError, Config, SyncLatestPage, SyncPage, SyncStart, Write};
use databroker_host::data::Descriptors;
use databroker_host::record::{Key, Options, Record, Service, Timestamp};
use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::tap::Tap;

const PATIENCE: Duration = Duration::from_secs(20);

fn descriptors() -> Arc<Descriptors> {
    Arc::new(Descriptors::built_in())
}

fn native(shared: bool) -> (Arc<Native>, StoreInfo) {
    let settings = Settings {
        connection_string: None,
        new_server_version: 41,
        descriptors: descriptors(),
    };
    if shared {
        Native::shared(settings)
    } else {
        Native::open(settings)
    }
    .unwrap()
}

/// The same once more, for a second broker.
fn again(info: &StoreInfo) -> StoreInfo {
    StoreInfo {
        summary: info.summary.clone(),
        reopenings: Reopenings::never(),
        ..*info
    }
}

async fn broker_over(backend: Arc<dyn Backend>, info: StoreInfo, config: Config) -> Arc<Broker> {
    Broker::start(backend, info, config, descriptors()).await.unwrap()
}

async fn broker(config: Config) -> Arc<Broker> {
    let (backend, info) = native(false);
    broker_over(backend, info, config).await
}

fn write(record_type: &str, id: &str, data: &'static [u8]) -> Write {
    Write {
        key: Key::new(record_type, id),
        data: Some(data.into()),
        delete: false,
    }
}

fn delete(record_type: &str, id: &str) -> Write {
    Write {
        key: Key::new(record_type, id),
        data: None,
        delete: true,
    }
}

/// An encoded `Any` of a session with this id and user.
fn session(id: &str, user_id: &str) -> Vec<u8> {
    let field = |tag: u8, text: &str| {
        let mut bytes = vec![tag << 3 | 2, u8::try_from(text.len()).unwrap()];
        bytes.extend(text.as_bytes());
        bytes
    };
    let message = [field(2, id), field(3, user_id)].concat();
    let mut any = field(1, "type.googleapis.com/session.Session");
    any.extend([0x12, u8::try_from(message.len()).unwrap()]);
    any.extend(message);
    any
}

/// What a stream sends, one by one.
#[derive(Debug)]
enum Item {
    Record(Record),
    Options(String, Options),
    Position(Position),
}

type Stream = BoxStream<'static, Result<Item, BrokerError>>;

fn options(all: Vec<(String, Options)>) -> Vec<Item> {
    all.into_iter()
        .map(|(record_type, options)| Item::Options(record_type, options))
        .collect()
}

fn records(all: Vec<Record>) -> Vec<Item> {
    all.into_iter().map(Item::Record).collect()
}

fn sync_items(page: SyncPage) -> Vec<Item> {
    match page {
        SyncPage::Options(all) => options(all),
        SyncPage::Recent(changes) => records(changes.iter().map(|change| change.record.clone()).collect()),
        SyncPage::Past(all) => records(all),
    }
}

fn latest_items(page: SyncLatestPage) -> Vec<Item> {
    match page {
        SyncLatestPage::Options(all) => options(all),
        SyncLatestPage::Records(all) => records(all),
        SyncLatestPage::Position(position) => vec![Item::Position(position)],
    }
}

/// A Sync stream, item by item.
async fn open(broker: &Broker, start: SyncStart) -> Result<Stream, BrokerError> {
    let pages = broker.sync(start).await?;
    let items = |page| stream::iter(sync_items(page)).map(Ok);
    Ok(pages.map_ok(items).try_flatten().boxed())
}

async fn sync(broker: &Broker, record_type: Option<&str>, record_version: u64) -> Stream {
    let server_version = broker.server_info().await.unwrap().server_version;
    let record_type = record_type.map(str::to_owned);
    let start = SyncStart {
        server_version,
        record_version,
        record_type,
        wait: true,
    };
    open(broker, start).await.unwrap()
}

/// The next change of a stream, past its options.
async fn next(stream: &mut Stream) -> Result<Record, BrokerError> {
    loop {
        match timeout(PATIENCE, stream.next())
            .await
            .expect("a change in time")
            .expect("the stream goes on")?
        {
            Item::Record(record) => return Ok(record),
            Item::Options(..) | Item::Position(_) => {}
        }
    }
}

async fn latest(broker: &Broker) -> Vec<Item> {
    let pages = broker.sync_latest(None).await.unwrap();
    pages
        .map(|page| stream::iter(latest_items(page.unwrap())))
        .flatten()
        .collect()
        .await
}

#[tokio::test]
async fn answers_and_streams_say_the_same() {
    let broker = broker(Config::default()).await;
    let mut stream = sync(&broker, None, 0).await;
    let written = broker
        .put(vec![
            write("t", "a", b"1"),
            write("t", "a", b"2"),
            delete("t", "a"),
            delete("t", "b"),
        ])
        .await;
    let records = written.unwrap().records;
    for expected in &records[..2] {
        assert_eq!(next(&mut stream).await.as_ref(), Ok(expected));
    }
    let tombstone = next(&mut stream).await.unwrap();
    assert_eq!(
        (tombstone.data.as_deref(), tombstone.deleted_at.is_some()),
        (Some(&b"2"[..]), true)
    );
    let sent = None;
    assert_eq!(
        records[2],
        Record {
            data: sent,
            ..tombstone.clone()
        },
        "the answer carries the request's data"
    );
    assert_eq!(
        records[3].version, 0,
        "there was nothing to delete, so there is no change"
    );
    assert_eq!(broker.server_info().await.unwrap().latest_version, tombstone.version);
}

#[tokio::test]
async fn a_stream_that_fell_behind_misses_nothing() {
    let broker = broker(Config {
        hub_bytes: 10_000,
        ..Config::default()
    })
    .await;
    let mut stream = sync(&broker, Some("t"), 0).await;
    for id in 0..2000 {
        broker
            .put(vec![write("t", &id.to_string(), &[7; 100]), write("other", "x", b"")])
            .await
            .unwrap();
    }
    for id in 0..2000 {
        assert_eq!(next(&mut stream).await.unwrap().key.id, id.to_string());
    }
    broker.put(vec![write("t", "last", b"")]).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().key.id, "last");
}

#[tokio::test]
async fn clear_ends_streams_and_brings_required_options_back() {
    let broker = broker(Config::default()).await;
    broker.put(vec![write("t", "a", b"1")]).await.unwrap();
    let mut stream = sync(&broker, Some("t"), 0).await;
    next(&mut stream).await.unwrap();
    let before = broker.server_info().await.unwrap();
    let (old, new) = broker.clear().await.unwrap();
    assert_eq!(old, before.server_version);
    assert!(new != old && new != 0);
    assert_eq!(next(&mut stream).await, Err(BrokerError::InvalidServerVersion));
    assert!(stream.next().await.is_none(), "nothing follows the error");
    let binding_requests = "type.googleapis.com/session.SessionBindingRequest".to_owned();
    assert_eq!(
        broker.get_options(binding_requests).await.unwrap().capacity,
        Some(50_000)
    );
    let items = latest(&broker).await;
    assert!(matches!(items.last(), Some(Item::Position(position)) if position.server_version == new));
    assert!(!items.iter().any(|item| matches!(item, Item::Record(_))));
    let start = SyncStart {
        server_version: old,
        wait: true,
        ..SyncStart::default()
    };
    assert_eq!(broker.sync(start).await.err(), Some(BrokerError::InvalidServerVersion));
}

#[tokio::test]
async fn changed_options_reach_open_streams() {
    let broker = broker(Config::default()).await;
    let mut typed = sync(&broker, Some("t"), 0).await;
    let mut all = sync(&broker, None, 0).await;
    let options = Options {
        capacity: Some(3),
        ..Options::default()
    };
    broker.set_options("t".to_owned(), options.clone()).await.unwrap();
    let expected = |options: &Options| ("t".to_owned(), options.clone());
    let next_options = async |stream: &mut Stream| loop {
        match timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap() {
            Item::Options(record_type, options) if record_type == "t" => return (record_type, options),
            _ => {}
        }
    };
    assert_eq!(next_options(&mut typed).await, expected(&options));
    assert_eq!(next_options(&mut all).await, expected(&options));
    broker.set_options("t".to_owned(), Options::default()).await.unwrap();
    assert_eq!(
        next_options(&mut typed).await,
        expected(&Options::default()),
        "removed options are streamed as empty"
    );
    assert_eq!(
        broker.get_options("t".to_owned()).await,
        Err(BrokerError::OptionsNotFound)
    );
}

#[tokio::test]
async fn capacity_evicts_the_oldest_with_tombstones() {
    let broker = broker(Config::default()).await;
    broker
        .set_options(
            "t".to_owned(),
            Options {
                capacity: Some(2),
                ..Options::default()
            },
        )
        .await
        .unwrap();
    let mut stream = sync(&broker, Some("t"), 0).await;
    broker
        .put((1..=5).map(|id| write("t", &id.to_string(), b"data")).collect())
        .await
        .unwrap();
    let changes = async {
        let mut changes = Vec::new();
        for _ in 0..8 {
            changes.push(next(&mut stream).await.unwrap());
        }
        changes
    };
    let changes = changes.await;
    let gone: Vec<_> = changes[5..]
        .iter()
        .map(|r| (r.key.id.as_str(), r.data.as_deref(), r.deleted_at.is_some()))
        .collect();
    assert_eq!(
        gone,
        [
            ("1", Some(&b"data"[..]), true),
            ("2", Some(b"data"), true),
            ("3", Some(b"data"), true)
        ]
    );
    assert!(changes.is_sorted_by_key(|record| record.version));
    assert_eq!(broker.get(Key::new("t", "3")).await, Err(BrokerError::RecordNotFound));
}

/// The time of [`old_changes_and_expired_records_go`].
static NOW: AtomicI64 = AtomicI64::new(1_000_000_000_000_000_000);

#[tokio::test]
async fn old_changes_and_expired_records_go() {
    let clock = || Timestamp(NOW.load(Ordering::SeqCst));
    let config = Config {
        clean_interval: Duration::from_millis(5),
        clock,
        ..Config::default()
    };
    let broker = broker(config).await;
    let ttl = Some(Duration::from_secs(600));
    broker
        .set_options(
            "ttl".to_owned(),
            Options {
                ttl,
                ..Options::default()
            },
        )
        .await
        .unwrap();
    broker
        .put(vec![write("ttl", "a", b"1"), write("t", "b", b"2")])
        .await
        .unwrap();
    let mut stream = sync(&broker, Some("ttl"), 1).await;
    NOW.fetch_add(601 * 1_000_000_000, Ordering::SeqCst);
    let tombstone = next(&mut stream).await.unwrap();
    assert_eq!(
        (tombstone.key.id.as_str(), tombstone.data.as_deref()),
        ("a", Some(&b"1"[..]))
    );
    broker.get(Key::new("t", "b")).await.expect("no time to live, no end");

    NOW.fetch_add(3600 * 1_000_000_000, Ordering::SeqCst);
    let pruned = async {
        while broker.server_info().await.unwrap().earliest_version < tombstone.version {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, pruned).await.expect("old changes are pruned");
    let server_version = broker.server_info().await.unwrap().server_version;
    let start = SyncStart {
        server_version,
        record_version: 1,
        record_type: None,
        wait: true,
    };
    assert!(matches!(
        broker.sync(start).await.err(),
        Some(BrokerError::InvalidRecordVersion)
    ));
}

#[tokio::test]
async fn shutdown_ends_streams_and_refuses_calls() {
    let broker = broker(Config::default()).await;
    let mut stream = sync(&broker, None, 0).await;
    let mut services = broker.watch_services(vec![]).await.unwrap();
    assert_eq!(services.next().await, Some(Ok(vec![])));
    broker.shutdown().await.unwrap();
    assert_eq!(next(&mut stream).await, Err(BrokerError::ShuttingDown));
    let ended = timeout(PATIENCE, services.next()).await.expect("the watch ends");
    assert_eq!(ended, Some(Err(BrokerError::ShuttingDown)));
    assert_eq!(broker.get(Key::new("t", "a")).await, Err(BrokerError::ShuttingDown));
    assert_eq!(
        broker.put(vec![write("t", "a", b"")]).await.err(),
        Some(BrokerError::ShuttingDown)
    );
}

/// What queries find: filter, text, offset and limit, then ids and total.
#[tokio::test]
async fn queries() {
    use databroker_host::broker::Query;
    use serde_json::json;

    let broker = broker(Config::default()).await;
    let record_type = "type.googleapis.com/session.Session";
    let indexable_fields = vec!["user_id".to_owned()];
    broker
        .set_options(
            record_type.to_owned(),
            Options {
                indexable_fields,
                ..Options::default()
            },
        )
        .await
        .unwrap();
    let users = ["ann", "bob", "ann", "cid", "bob", "ann"];
    let writes = users.iter().enumerate().map(|(index, user)| {
        let id = format!("s{index}");
        Write {
            key: Key::new(record_type, id.clone()),
            data: Some(session(&id, user).into()),
            delete: false,
        }
    });
    broker.put(writes.collect()).await.unwrap();
    broker.put(vec![write("t", "s1", b"")]).await.unwrap();

    let none = serde_json::Value::Null;
    let cases = [
        (none.clone(), "", 0, 100, "s0 s1 s2 s3 s4 s5", 6),
        (none.clone(), "", 2, 2, "s2 s3", 6),
        (none.clone(), "", 0, 0, "", 6),
        (none.clone(), "", 9, 1, "", 6),
        (json!({"id": "s3"}), "", 0, 9, "s3", 1),
        (json!({"user_id": "ann"}), "", 0, 9, "s0 s2 s5", 3),
        (json!({"user_id": "ann"}), "", 1, 1, "s2", 3),
        (json!({"user_id": ["bob", "cid"]}), "", 0, 9, "s1 s3 s4", 3),
        (
            json!({"$or": [{"id": "s0"}, {"user_id": "bob"}]}),
            "",
            0,
            9,
            "s0 s1 s4",
            3,
        ),
        (json!({"$not": {"user_id": "ann"}}), "", 0, 9, "s1 s3 s4", 3),
        (json!({"version": ""}), "", 0, 2, "", 0),
        (json!({"refresh_disabled": false}), "", 0, 2, "s0 s1", 6),
        (json!({"user_id": "ann"}), "S5", 0, 9, "s5", 1),
        (none, "BO", 0, 9, "s1 s4", 2),
        (json!({}), "", 0, 9, "", 0),
    ];
    for (filter, text, offset, limit, ids, total) in cases {
        let name = format!("{filter} {text:?} {offset} {limit}");
        let filter = (!filter.is_null()).then_some(filter);
        let record_type = Some(record_type.to_owned());
        let page = broker
            .query(Query {
                record_type,
                text: text.to_owned(),
                filter,
                offset,
                limit,
            })
            .await
            .unwrap();
        let found: Vec<_> = page.records.iter().map(|record| record.key.id.as_str()).collect();
        assert_eq!((found.join(" ").as_str(), page.total), (ids, total), "{name}");
    }
    let all_types = Query {
        filter: Some(json!({"id": "s1"})),
        limit: 9,
        ..Query::default()
    };
    assert_eq!(broker.query(all_types).await.unwrap().total, 2, "an id of every type");
    for (offset, limit) in [(-1, 0), (0, -1)] {
        let query = Query {
            offset,
            limit,
            ..Query::default()
        };
        assert!(matches!(
            broker.query(query).await.err(),
            Some(BrokerError::InvalidArgument(_))
        ));
    }
}

#[tokio::test]
async fn patches_lose_nothing_and_are_all_or_none() {
    let broker = broker(Config::default()).await;
    let record_type = "type.googleapis.com/session.Session";
    let put = |id: &str, user: &str| Write {
        key: Key::new(record_type, id),
        data: Some(session(id, user).into()),
        delete: false,
    };
    broker
        .put(vec![put("a", "u"), put("b", "u"), write("t", "x", b"")])
        .await
        .unwrap();
    let mask = vec!["user_id".to_owned()];

    let patched = broker
        .patch(vec![put("a", "v"), put("missing", "v"), put("a", "w")], mask.clone())
        .await
        .unwrap();
    assert_eq!(patched.records.len(), 2, "missing records are skipped");
    let stored = broker.get(Key::new(record_type, "a")).await.unwrap();
    assert_eq!(stored, patched.records[1]);
    assert_eq!(stored.data.as_deref(), Some(session("a", "w").as_slice()));

    let bad = Write {
        key: Key::new("t", "x"),
        data: Some(session("x", "v").into()),
        delete: false,
    };
    let before = broker.server_info().await.unwrap();
    assert!(matches!(
        broker.patch(vec![put("b", "v"), bad], mask.clone()).await.err(),
        Some(BrokerError::Patch(_))
    ));
    assert_eq!(broker.server_info().await.unwrap(), before, "nothing was changed");

    let remove = Write {
        delete: true,
        data: None,
        ..put("b", "v")
    };
    let gone = broker.patch(vec![remove, put("b", "v")], vec![]).await.unwrap();
    assert_eq!(gone.records.len(), 1, "what the same request has deleted is missing");
    assert_eq!(
        broker.get(Key::new(record_type, "b")).await,
        Err(BrokerError::RecordNotFound)
    );
}

#[tokio::test]
async fn a_patch_whose_answer_nobody_could_take_is_refused() {
    let broker = broker(Config::default()).await;
    let record_type = "type.googleapis.com/session.Session";
    let write = |id: &str, data: Vec<u8>| Write {
        key: Key::new(record_type, id),
        data: Some(data.into()),
        delete: false,
    };
    // Unknown fields are kept: so a stored record may be far larger than what patches it.
    let mut large = session("x", "u");
    let padding = [
        &[0x12, 0x84, 0x80, 0x60, 0x7a, 0x80, 0x80, 0x60][..],
        &vec![b'x'; 0x18_0000][..],
    ]
    .concat();
    large.extend(padding);
    for id in ["a", "b", "c"] {
        let written = broker.put(vec![write(id, large.clone())]).await;
        assert!(written.is_ok(), "{written:?}");
    }
    let update = |id: &str| write(id, session("x", "v"));
    let mask = || vec!["user_id".to_owned()];
    let before = broker.server_info().await.unwrap();
    let refused = broker.patch(vec![update("a"), update("b"), update("c")], mask()).await;
    assert!(matches!(refused.err(), Some(BrokerError::AnswerTooLarge(_))));
    assert_eq!(broker.server_info().await.unwrap(), before, "nothing was changed");
    broker
        .patch(vec![update("a"), update("b")], mask())
        .await
        .expect("two of them fit");
}

#[tokio::test]
async fn two_brokers_on_a_shared_store() {
    let (backend, info) = native(true);
    let one = broker_over(backend.clone(), again(&info), Config::default()).await;
    let two = broker_over(backend, info, Config::default()).await;

    // Changes, options and services of one reach the streams of the other.
    let mut changes = sync(&two, Some("t"), 0).await;
    let mut services = two.watch_services(vec![]).await.unwrap();
    assert_eq!(services.next().await, Some(Ok(vec![])));
    one.set_options(
        "t".to_owned(),
        Options {
            capacity: Some(9),
            ..Options::default()
        },
    )
    .await
    .unwrap();
    let item = timeout(PATIENCE, changes.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(item, Item::Options(_, options) if options.capacity == Some(9)));
    let written = one.put(vec![write("t", "a", b"1")]).await.unwrap();
    assert_eq!(next(&mut changes).await.as_ref(), Ok(&written.records[0]));
    let service = Service {
        kind: 1,
        endpoint: "http://x".to_owned(),
    };
    one.report_services(vec![service.clone()]).await.unwrap();
    assert_eq!(
        timeout(PATIENCE, services.next()).await.unwrap(),
        Some(Ok(vec![service]))
    );

    // Without waiting, a stream has all that the other acknowledged, however far its own broker is.
    for id in 0..50 {
        let version = one.put(vec![write("t", &id.to_string(), b"2")]).await.unwrap().records[0].version;
        let server_version = one.server_info().await.unwrap().server_version;
        let start = SyncStart {
            server_version,
            record_version: version - 1,
            record_type: None,
            wait: false,
        };
        let items: Vec<_> = open(&two, start).await.unwrap().map(Result::unwrap).collect().await;
        let found = items
            .iter()
            .any(|item| matches!(item, Item::Record(record) if record.version == version));
        assert!(found, "version {version}");
    }

    // Patches through both lose nothing.
    let descriptors = descriptors();
    let record_type = "type.googleapis.com/session.Session";
    let patch = |id: &str, user: &str| Write {
        key: Key::new(record_type, "s"),
        data: Some(session(id, user).into()),
        delete: false,
    };
    one.put(vec![patch("", "")]).await.unwrap();
    for round in 0..50 {
        let (id, user) = (format!("i{round}"), format!("u{round}"));
        let (a, b) = tokio::join!(
            one.patch(vec![patch(&id, "")], vec!["id".to_owned()]),
            two.patch(vec![patch("", &user)], vec!["user_id".to_owned()])
        );
        a.unwrap();
        b.unwrap();
        let stored = two.get(Key::new(record_type, "s")).await.unwrap().data.unwrap();
        let values = |path| descriptors.values(&stored, path);
        assert_eq!((values("id"), values("user_id")), (vec![id], vec![user]));
    }

    // A Clear through one ends the streams of the other.
    one.clear().await.unwrap();
    loop {
        match next(&mut changes).await {
            Ok(_) => {}
            Err(error) => break assert_eq!(error, BrokerError::InvalidServerVersion),
        }
    }
}

#[tokio::test]
async fn concurrent_puts_share_a_call_and_outlive_their_callers() {
    let (inner, info) = native(false);
    let (permits, puts) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    // Each put waits for a permit.
    let gated = Tap::new(inner, {
        let (permits, puts) = (Arc::clone(&permits), Arc::clone(&puts));
        move |call| {
            let permits = Arc::clone(&permits);
            puts.fetch_add(usize::from(call.begins("put")), Ordering::SeqCst);
            async move {
                if call.begins("put") {
                    permits.acquire().await.unwrap().forget();
                }
                Ok(())
            }
        }
    });
    let broker = broker_over(gated, info, Config::default()).await;
    let put = |id: usize| {
        let broker = Arc::clone(&broker);
        tokio::spawn(async move { broker.put(vec![write("t", &id.to_string(), b"")]).await })
    };

    let first = put(0);
    while puts.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let others: Vec<_> = (1..=100).map(put).collect();
    let waiting = tokio::task::yield_now;
    // Their batches are queued once each task has run up to where it waits.
    for _ in 0..200 {
        waiting().await;
    }
    others[0].abort();
    permits.add_permits(2);
    first.await.unwrap().unwrap();
    for other in others.into_iter().skip(1) {
        other.await.unwrap().unwrap();
    }
    assert_eq!(puts.load(Ordering::SeqCst), 2, "all that waited went in one call");
    broker
        .get(Key::new("t", "1"))
        .await
        .expect("the write whose caller went away");
}
