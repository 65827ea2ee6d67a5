//! A store that stops and is opened again while calls and streams are under way.

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, OnceLock};

use databroker_host::broker::Query;
use tokio::sync::Notify;

use super::tap::Call;
use super::*;

const REQUIRED: &str = "type.googleapis.com/session.IdentityBinding";
const LOST: u64 = 42;

/// What a test does to the store.
struct Control {
    inner: Arc<Mutex<Arc<Native>>>,
    reopener: Reopener,
    /// At the end of this function's next call, it is done.
    armed: Mutex<Option<&'static str>>,
}

impl Control {
    /// It stops and comes back with what it had.
    async fn survive(&self) {
        let store = Arc::clone(&self.inner.lock().unwrap());
        self.replace(store).await;
    }

    /// It stops and comes back empty, but for this record.
    async fn lose(&self, data: Vec<u8>) {
        let settings = Settings {
            connection_string: None,
            new_server_version: LOST,
            descriptors: descriptors(),
        };
        let (store, _) = Native::open(settings).unwrap();
        let change = Change {
            key: Key::new("t", "a"),
            operation: Operation::Upsert {
                data: Some(data.into()),
                network: None,
            },
            expected: None,
        };
        let batch = Batch { changes: vec![change] };
        store.put(vec![batch], Timestamp::now()).await.unwrap();
        self.replace(store).await;
    }

    async fn replace(&self, store: Arc<Native>) {
        self.reopener.set(Availability::Reopening);
        let position = store.current().await.unwrap();
        timeout(PATIENCE, self.reopener.reopened(position))
            .await
            .expect("it is adopted");
        *self.inner.lock().unwrap() = store;
        self.reopener.set(Availability::Open);
    }
}

/// A broker over a store that loses its content at the end of the armed call, which still has its answer.
async fn losing() -> (Arc<Broker>, Arc<Control>) {
    let (reopener, reopenings) = Reopenings::channel();
    let (inner, info) = native(false);
    let info = StoreInfo { reopenings, ..info };
    let control = Arc::new(Control {
        inner: Arc::new(Mutex::new(inner)),
        reopener,
        armed: Mutex::new(None),
    });
    let hook = {
        let control = Arc::clone(&control);
        move |call: Call| {
            let control = Arc::clone(&control);
            async move {
                let fires = {
                    let mut armed = control.armed.lock().unwrap();
                    let fires = armed.is_some_and(|function| call.ends(function));
                    if fires {
                        *armed = None;
                    }
                    fires
                };
                if fires {
                    control.lose(session("2", "new")).await;
                }
                Ok(())
            }
        }
    };
    let tap = Tap::replaceable(Arc::clone(&control.inner), hook);
    (broker_over(tap, info, Config::default()).await, control)
}

fn arm(control: &Control, function: &'static str) {
    *control.armed.lock().unwrap() = Some(function);
}

async fn put_session(broker: &Broker, id: &str, user: &str) {
    let write = Write {
        key: Key::new("t", "a"),
        data: Some(session(id, user).into()),
        delete: false,
    };
    broker.put(vec![write]).await.unwrap();
}

#[tokio::test]
async fn streams_go_on_where_the_store_survives_and_see_a_write_whose_answer_was_lost() {
    let (reopener, reopenings) = Reopenings::channel();
    let reopener = Arc::new(reopener);
    let (inner, info) = native(false);
    let info = StoreInfo { reopenings, ..info };
    let stops = Arc::new(AtomicUsize::new(0));
    let hook = {
        let (reopener, stops) = (Arc::clone(&reopener), Arc::clone(&stops));
        move |call: Call| {
            let is_last = call.ends("put") && stops.load(Ordering::SeqCst) > 0;
            if is_last {
                reopener.set(Availability::Reopening);
            }
            let is_down = stops.load(Ordering::SeqCst) > 0 && (is_last || !call.begins("put"));
            let stopped = BackendError::Stopped("a trap".to_owned());
            futures::future::ready(if is_down { Err(stopped) } else { Ok(()) })
        }
    };
    let tap = Tap::replaceable(Arc::new(Mutex::new(Arc::clone(&inner))), hook);
    let broker = broker_over(tap, info, Config::default()).await;
    let mut stream = sync(&broker, Some("t"), 0).await;
    stops.store(1, Ordering::SeqCst);
    let error = broker.put(vec![write("t", "lost", b"1")]).await.unwrap_err();
    assert!(
        matches!(error, BrokerError::Backend(BackendError::Stopped(_))),
        "{error:?}"
    );
    // This one waits.
    let waiting = tokio::spawn({
        let broker = Arc::clone(&broker);
        async move { broker.put(vec![write("t", "next", b"2")]).await }
    });
    let position = inner.current().await.unwrap();
    timeout(PATIENCE, reopener.reopened(position))
        .await
        .expect("it is adopted");
    stops.store(0, Ordering::SeqCst);
    reopener.set(Availability::Open);
    assert_eq!(next(&mut stream).await.unwrap().key.id, "lost");
    let written = waiting.await.unwrap().unwrap();
    assert_eq!(next(&mut stream).await.as_ref(), Ok(&written.records[0]), "once");
}

#[tokio::test]
async fn an_idle_stream_goes_on_where_the_store_survives() {
    let (broker, control) = losing().await;
    let mut stream = sync(&broker, Some("t"), 0).await;
    control.survive().await;
    put_session(&broker, "1", "one").await;
    assert_eq!(next(&mut stream).await.unwrap().key.id, "a");
}

#[tokio::test]
async fn content_that_was_lost_ends_streams_and_has_the_required_options_again() {
    let (broker, control) = losing().await;
    put_session(&broker, "1", "old").await;
    let kept = Options {
        capacity: Some(3),
        ..Options::default()
    };
    broker.set_options("t".to_owned(), kept).await.unwrap();
    let required = broker.get_options(REQUIRED.to_owned()).await.unwrap();
    let mut streams = [sync(&broker, Some("t"), 1).await, sync(&broker, None, 1).await];
    control.lose(session("2", "new")).await;
    for stream in &mut streams {
        assert_eq!(next(stream).await, Err(BrokerError::InvalidServerVersion));
    }
    let begun = broker
        .sync(SyncStart {
            server_version: 41,
            record_version: 1,
            record_type: None,
            wait: true,
        })
        .await;
    assert_eq!(begun.err(), Some(BrokerError::InvalidServerVersion));
    // Written after the options, by the same task.
    let put = broker.put(vec![write("t", "b", b"")]).await.unwrap();
    assert_eq!(put.server_version, LOST);
    assert_eq!(
        broker.get_options("t".to_owned()).await,
        Err(BrokerError::OptionsNotFound)
    );
    assert_eq!(broker.get_options(REQUIRED.to_owned()).await, Ok(required));
    let start = SyncStart {
        server_version: LOST,
        record_version: 0,
        record_type: Some("t".to_owned()),
        wait: true,
    };
    let mut stream = open(&broker, start).await.unwrap();
    let seen = [next(&mut stream).await.unwrap(), next(&mut stream).await.unwrap()];
    assert_eq!(seen.map(|record| record.key.id), ["a", "b"]);
}

#[tokio::test]
async fn a_patch_is_not_made_of_one_content_and_written_to_another() {
    let (broker, control) = losing().await;
    put_session(&broker, "1", "old").await;
    // The record has the same version in both.
    arm(&control, "get");
    let patch = Write {
        key: Key::new("t", "a"),
        data: Some(session("", "patched").into()),
        delete: false,
    };
    let patched = broker.patch(vec![patch], vec!["user_id".to_owned()]).await.unwrap();
    assert_eq!(patched.server_version, LOST);
    let record = broker.get(Key::new("t", "a")).await.unwrap();
    assert_eq!(record.data.as_deref(), Some(&session("2", "patched")[..]));
}

#[tokio::test]
async fn a_query_is_of_one_content() {
    let (broker, control) = losing().await;
    put_session(&broker, "1", "old").await;
    arm(&control, "scan");
    let query = Query {
        limit: 10,
        ..Query::default()
    };
    let page = broker.query(query).await.unwrap();
    assert_eq!(page.server_version, LOST);
    assert_eq!(page.records[0].data.as_deref(), Some(&session("2", "new")[..]));
}

#[tokio::test]
async fn a_query_beside_a_clear_is_of_one_content() {
    let (inner, info) = native(false);
    let before = info.position.server_version;
    let broker = Arc::new(OnceLock::<Arc<Broker>>::new());
    let clears = Arc::new(AtomicBool::new(true));
    let (cleared, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let hook = {
        let (broker, clears) = (Arc::clone(&broker), Arc::clone(&clears));
        let (cleared, go_on) = (Arc::clone(&cleared), Arc::clone(&go_on));
        move |call: Call| {
            let (broker, cleared, go_on) = (Arc::clone(&broker), Arc::clone(&cleared), Arc::clone(&go_on));
            // The store is cleared after the query has begun, and the query is at its end before the broker knows.
            let begins = call.begins("scan") && clears.swap(false, Ordering::SeqCst);
            let ends = call.ends("clear");
            async move {
                if begins {
                    let broker = Arc::clone(broker.get().unwrap());
                    tokio::spawn(async move { broker.clear().await });
                    cleared.notified().await;
                }
                if ends {
                    cleared.notify_one();
                    go_on.notified().await;
                }
                Ok(())
            }
        }
    };
    let started = broker_over(Tap::new(inner, hook), info, Config::default()).await;
    let broker = broker.get_or_init(|| started);
    put_session(broker, "1", "old").await;
    let query = Query {
        limit: 10,
        ..Query::default()
    };
    let page = timeout(PATIENCE, broker.query(query)).await.unwrap().unwrap();
    go_on.notify_one();
    assert_ne!(page.server_version, before);
    assert_eq!((page.records.len(), page.total), (0, 0));
    // This waits for the Clear.
    let put = broker.put(vec![write("t", "b", b"")]).await.unwrap();
    assert_eq!(put.server_version, page.server_version);
}

#[tokio::test]
async fn a_lease_has_one_holder_though_the_store_forgets_it() {
    let (broker, control) = losing().await;
    let lease = || "lease".to_owned();
    let minute = Duration::from_secs(60);
    // The store forgets it as soon as it has granted it.
    arm(&control, "lease");
    let id = broker.acquire_lease(lease(), minute).await.unwrap();
    assert_eq!(
        broker.acquire_lease(lease(), minute).await,
        Err(BrokerError::LeaseTaken)
    );
    assert_eq!(
        broker.renew_lease(lease(), "of another".to_owned(), minute).await,
        Err(BrokerError::LeaseLost)
    );
    broker.release_lease(lease(), "of another".to_owned()).await.unwrap();
    assert_eq!(broker.renew_lease(lease(), id.clone(), minute).await, Ok(()));
    control.lose(session("2", "new")).await;
    assert_eq!(
        broker.acquire_lease(lease(), minute).await,
        Err(BrokerError::LeaseTaken)
    );
    broker.release_lease(lease(), id).await.unwrap();
    assert!(broker.acquire_lease(lease(), minute).await.is_ok());
}

#[tokio::test]
async fn what_sync_latest_reads_is_of_one_content() {
    let (broker, control) = losing().await;
    let writes = (0..2000).map(|id| write("t", &id.to_string(), b""));
    broker.put(writes.collect()).await.unwrap();
    arm(&control, "scan");
    let mut stream = broker.sync_latest(None).await.unwrap();
    let error = loop {
        match timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .expect("it does not end well")
        {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error, BrokerError::InvalidServerVersion);
}

#[tokio::test]
async fn writers_are_told_of_a_store_that_does_not_come_back_and_do_not_each_wait_for_it() {
    let (reopener, reopenings) = Reopenings::channel();
    let (inner, info) = native(false);
    let info = StoreInfo { reopenings, ..info };
    let is_down = Arc::new(AtomicBool::new(false));
    let hook = {
        let is_down = Arc::clone(&is_down);
        move |call: Call| {
            let fails = call.begins("put") && is_down.load(Ordering::SeqCst);
            let away = BackendError::Unavailable("it is being started again".to_owned());
            futures::future::ready(if fails { Err(away) } else { Ok(()) })
        }
    };
    let tap = Tap::replaceable(Arc::new(Mutex::new(Arc::clone(&inner))), hook);
    let broker = broker_over(tap, info, Config::default()).await;
    is_down.store(true, Ordering::SeqCst);
    reopener.set(Availability::Reopening);
    // If each waited anew, as the first one does, all together would be far beyond any patience.
    let all = async {
        for _ in 0..100 {
            let error = broker.put(vec![write("t", "a", b"")]).await.unwrap_err();
            assert!(
                matches!(error, BrokerError::Backend(BackendError::Unavailable(_))),
                "{error:?}"
            );
        }
    };
    timeout(PATIENCE, all).await.expect("each waits again");
    let position = inner.current().await.unwrap();
    timeout(PATIENCE, reopener.reopened(position))
        .await
        .expect("it is adopted");
    is_down.store(false, Ordering::SeqCst);
    reopener.set(Availability::Open);
    assert!(broker.put(vec![write("t", "a", b"")]).await.is_ok());
}
