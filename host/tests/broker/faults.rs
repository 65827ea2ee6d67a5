//! A store that fails, is slow, or is asked for too much.

use std::io::Write as _;
use std::sync::{Mutex, OnceLock};

use databroker_host::broker::Query;
use serde_json::json;

use super::tap::{Call, Lie};
use super::*;

/// A broker over a native backend with this hook.
async fn tapped<F>(config: Config, hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Broker>
where
    F: Future<Output = Result<(), BackendError>> + Send + 'static,
{
    let (inner, info) = native(false);
    broker_over(Tap::new(inner, hook), info, config).await
}

/// Waits until something is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect(what);
}

fn lost() -> BackendError {
    BackendError::Unavailable("the connection was lost".to_owned())
}

#[tokio::test]
async fn a_patch_reads_few_records_at_once_and_each_once() {
    let reads = Arc::new(Mutex::new(Vec::new()));
    let broker = tapped(Config::default(), {
        let reads = Arc::clone(&reads);
        move |call| {
            if call.begins("get") {
                reads.lock().unwrap().push(call.size);
            }
            async { Ok(()) }
        }
    })
    .await;
    let ids: Vec<String> = (0..100).map(|id| id.to_string()).collect();
    broker
        .put(ids.iter().map(|id| write("t", id, &[7; 1000])).collect())
        .await
        .unwrap();
    let deletes: Vec<Write> = ids
        .iter()
        .flat_map(|id| std::iter::repeat_n(delete("t", id), 100))
        .collect();
    let patched = broker.patch(deletes, vec![]).await.unwrap();
    assert_eq!(patched.records.len(), 100);
    let reads = reads.lock().unwrap();
    assert_eq!(reads.iter().sum::<usize>(), 100, "each record is read once");
    assert!(reads.iter().all(|&keys| keys <= 16), "{reads:?}");
}

/// A hook that fails once, after the store has carried out the call.
fn lost_answer(
    function: &'static str,
    armed: &Arc<AtomicUsize>,
) -> impl Fn(Call) -> futures::future::Ready<Result<(), BackendError>> + use<> {
    let armed = Arc::clone(armed);
    move |call| {
        let is_lost = call.ends(function) && armed.swap(0, Ordering::SeqCst) > 0;
        futures::future::ready(if is_lost { Err(lost()) } else { Ok(()) })
    }
}

#[tokio::test]
async fn streams_see_what_a_put_has_changed_whose_answer_was_lost() {
    let armed = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), lost_answer("put", &armed)).await;
    let mut stream = sync(&broker, Some("t"), 0).await;
    armed.store(1, Ordering::SeqCst);
    broker.put(vec![write("t", "lost", b"1")]).await.unwrap_err();
    assert_eq!(
        next(&mut stream).await.unwrap().key.id,
        "lost",
        "at once, without another write"
    );
    let written = broker.put(vec![write("t", "next", b"2")]).await.unwrap();
    assert_eq!(next(&mut stream).await.as_ref(), Ok(&written.records[0]), "and once");
}

#[tokio::test]
async fn streams_see_what_was_lost_before_what_is_written_next() {
    // The log cannot be read either until the next put.
    let armed = Arc::new(AtomicUsize::new(0));
    let down = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), {
        let (put, armed, down) = (lost_answer("put", &armed), Arc::clone(&armed), Arc::clone(&down));
        move |call: Call| {
            if call.begins("put") && armed.load(Ordering::SeqCst) == 0 {
                down.store(0, Ordering::SeqCst);
            }
            if call.begins("changes") && down.load(Ordering::SeqCst) > 0 {
                return futures::future::ready(Err(lost()));
            }
            put(call)
        }
    })
    .await;
    let mut stream = sync(&broker, Some("t"), 0).await;
    down.store(1, Ordering::SeqCst);
    armed.store(1, Ordering::SeqCst);
    broker.put(vec![write("t", "lost", b"1")]).await.unwrap_err();
    broker.put(vec![write("t", "next", b"2")]).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().key.id, "lost");
    assert_eq!(next(&mut stream).await.unwrap().key.id, "next");
}

#[tokio::test]
async fn a_clear_whose_answer_was_lost_ends_streams() {
    let armed = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), lost_answer("clear", &armed)).await;
    let mut stream = sync(&broker, Some("t"), 0).await;
    armed.store(1, Ordering::SeqCst);
    broker.clear().await.unwrap_err();
    assert_eq!(next(&mut stream).await, Err(BrokerError::InvalidServerVersion));
}

#[tokio::test]
async fn options_whose_answer_was_lost_are_known() {
    let armed = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), lost_answer("set_options", &armed)).await;
    let options = Options {
        capacity: Some(3),
        ..Options::default()
    };
    armed.store(1, Ordering::SeqCst);
    broker.set_options("t".to_owned(), options.clone()).await.unwrap_err();
    until("the options are read again", async || {
        broker.get_options("t".to_owned()).await.as_ref() == Ok(&options)
    })
    .await;
}

#[tokio::test]
async fn nothing_is_read_from_a_store_that_is_closed() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let permits = Arc::new(Semaphore::new(0));
    let broker = tapped(Config::default(), {
        let (calls, permits) = (Arc::clone(&calls), Arc::clone(&permits));
        move |call| {
            calls.lock().unwrap().push(call.clone());
            let permits = Arc::clone(&permits);
            async move {
                if call.begins("scan") {
                    permits.acquire().await.unwrap().forget();
                }
                Ok(())
            }
        }
    })
    .await;
    broker
        .put((0..2000).map(|id| write("t", &id.to_string(), b"")).collect())
        .await
        .unwrap();
    let has = |found: &dyn Fn(&Call) -> bool| calls.lock().unwrap().iter().any(found);
    let mut changes = sync(&broker, Some("another"), 0).await;

    let query = Query {
        text: "x".to_owned(),
        ..Query::default()
    };
    let reading = tokio::spawn({
        let broker = Arc::clone(&broker);
        async move { broker.query(query).await }
    });
    until("the first page is read", async || has(&|call| call.begins("scan"))).await;
    let closing = tokio::spawn({
        let broker = Arc::clone(&broker);
        async move { broker.shutdown().await }
    });
    // Streams end first: by then the shutdown has begun.
    assert_eq!(next(&mut changes).await.err(), Some(BrokerError::ShuttingDown));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!has(&|call| call.function == "close"), "a page is still being read");
    permits.add_permits(100);
    timeout(PATIENCE, closing).await.unwrap().unwrap().unwrap();
    assert_eq!(reading.await.unwrap().err(), Some(BrokerError::ShuttingDown));
    let calls = calls.lock().unwrap();
    let last = calls.iter().rposition(|call| call.function != "close").unwrap();
    assert!(
        calls.iter().position(|call| call.begins("close")).unwrap() > last,
        "{:?}",
        calls[last]
    );
}

#[tokio::test]
async fn a_step_of_the_clean_that_fails_does_not_stop_the_others() {
    const REQUIRED: &str = "type.googleapis.com/session.IdentityBinding";
    let config = Config {
        history: Duration::ZERO,
        clean_interval: Duration::from_millis(2),
        ..Config::default()
    };
    // Set at the start, then removed by this test; the clean cannot set them again.
    let set = Arc::new(AtomicUsize::new(0));
    let broker = tapped(config, {
        let set = Arc::clone(&set);
        move |call| {
            let is_of = |record_type| call.record_type.as_deref() == Some(record_type);
            let fails = (call.begins("evict") && is_of("a"))
                || (call.begins("set_options") && is_of(REQUIRED) && set.fetch_add(1, Ordering::SeqCst) >= 2);
            let full = BackendError::Exhausted("no room".to_owned());
            async move { if fails { Err(full) } else { Ok(()) } }
        }
    })
    .await;
    broker
        .set_options(REQUIRED.to_owned(), Options::default())
        .await
        .unwrap();
    let expiring = || Options {
        ttl: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    for record_type in ["a", "b"] {
        broker.set_options(record_type.to_owned(), expiring()).await.unwrap();
    }
    broker
        .put(vec![write("a", "1", b""), write("b", "1", b""), write("c", "1", b"")])
        .await
        .unwrap();
    until("the record of the other type expires", async || {
        broker.get(Key::new("b", "1")).await == Err(BrokerError::RecordNotFound)
    })
    .await;
    until("old changes are pruned", async || {
        broker.server_info().await.unwrap().earliest_version > 3
    })
    .await;
    assert!(set.load(Ordering::SeqCst) > 2, "the first step failed");
    broker.get(Key::new("a", "1")).await.expect("what could not be removed");
}

#[tokio::test]
async fn a_delete_that_fits_by_itself_is_not_refused_for_its_neighbours() {
    static LARGE: [u8; 4 << 20] = [7; 4 << 20];
    let permits = Arc::new(Semaphore::new(usize::MAX >> 4));
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let broker = tapped(Config::default(), {
        let (permits, sizes) = (Arc::clone(&permits), Arc::clone(&sizes));
        move |call| {
            let permits = Arc::clone(&permits);
            if call.begins("put") {
                sizes.lock().unwrap().push(call.size);
            }
            async move {
                if call.begins("put") {
                    permits.acquire().await.unwrap().forget();
                }
                Ok(())
            }
        }
    })
    .await;
    for id in 0..20 {
        broker.put(vec![write("t", &id.to_string(), &LARGE)]).await.unwrap();
    }
    // While one put waits for its permit, both deletes come to wait behind it.
    permits.forget_permits(usize::MAX);
    let put = |writes: Vec<Write>| {
        let broker = Arc::clone(&broker);
        tokio::spawn(async move { broker.put(writes).await })
    };
    let first = put(vec![write("t", "other", b"")]);
    until("the first put is under way", async || sizes.lock().unwrap().len() == 21).await;
    let deletes = |ids: std::ops::Range<u32>| put(ids.map(|id| delete("t", &id.to_string())).collect());
    let (one, two) = (deletes(0..10), deletes(10..20));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    permits.add_permits(10);
    first.await.unwrap().unwrap();
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    assert_eq!(
        sizes.lock().unwrap()[21..],
        [2, 1],
        "both in one call, then one by itself"
    );
}

/// Two brokers on one store, of which the first does not see what the second does.
async fn blind_and_seeing(config: Config) -> (Arc<Broker>, Arc<Broker>, Arc<Native>) {
    let (store, info) = native(true);
    let blind = Tap::new(Arc::clone(&store), |call| async move {
        if call.begins("wait") {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    let blind = broker_over(blind, again(&info), config).await;
    let seeing = broker_over(store.clone(), info, Config::default()).await;
    (blind, seeing, store)
}

async fn stored_options(store: &Native, record_type: &str) -> Option<Options> {
    let options = store.list_options().await.unwrap();
    options
        .into_iter()
        .find(|(name, _)| name == record_type)
        .map(|(_, options)| options)
}

fn capacity(capacity: u64) -> Options {
    Options {
        capacity: Some(capacity),
        ..Options::default()
    }
}

#[tokio::test]
async fn options_that_another_host_has_changed_meanwhile_are_set_again() {
    let (blind, seeing, store) = blind_and_seeing(Config::default()).await;
    blind.set_options("t".to_owned(), capacity(3)).await.unwrap();
    seeing.set_options("t".to_owned(), capacity(9)).await.unwrap();
    blind.set_options("t".to_owned(), capacity(3)).await.unwrap();
    assert_eq!(stored_options(&store, "t").await, Some(capacity(3)));
}

#[tokio::test]
async fn a_capacity_that_another_host_has_taken_back_counts_no_more_though_the_options_are_what_they_were() {
    let (store, info) = native(true);
    let blind = Tap::lying(Arc::clone(&store), Lie::SameOptions, |call| async move {
        if call.begins("wait") {
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    let broker = broker_over(blind, info, Config::default()).await;
    broker.put(vec![write("t", "0", b"1")]).await.unwrap();
    broker.set_options("t".to_owned(), capacity(1)).await.unwrap();
    store.set_options("t".to_owned(), None).await.unwrap();
    broker
        .put(vec![write("t", "1", b"1"), write("t", "2", b"1")])
        .await
        .unwrap();
    assert_eq!(store.count(Some("t".to_owned())).await, Ok(3));
}

#[tokio::test]
async fn required_options_do_not_undo_what_another_host_has_set() {
    let config = Config {
        clean_interval: Duration::from_millis(2),
        ..Config::default()
    };
    let (blind, seeing, store) = blind_and_seeing(config).await;
    let record_type = "type.googleapis.com/session.SessionBindingRequest";
    blind.set_options(record_type.to_owned(), capacity(5)).await.unwrap();
    seeing.set_options(record_type.to_owned(), capacity(7)).await.unwrap();
    let completed = Options {
        indexable_fields: vec!["key".to_owned()],
        ..capacity(7)
    };
    until(
        "the required field is added to what the other host has set",
        async || {
            let stored = stored_options(&store, record_type).await;
            if stored.as_ref().is_some_and(|options| options.capacity == Some(5)) {
                // A clean was under way just then; the store has no way to tell.
                seeing.set_options(record_type.to_owned(), capacity(7)).await.unwrap();
            }
            stored.as_ref() == Some(&completed)
        },
    )
    .await;
}

#[tokio::test]
async fn a_capacity_that_was_lowered_holds_nobody_up() {
    let evictions = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), {
        let evictions = Arc::clone(&evictions);
        move |call| {
            evictions.fetch_add(usize::from(call.begins("evict")), Ordering::SeqCst);
            async move {
                // Others have their turn while the store is at work.
                tokio::task::yield_now().await;
                Ok(())
            }
        }
    })
    .await;
    let ids = (0..5000).map(|id| write("t", &id.to_string(), b"")).collect();
    broker.put(ids).await.unwrap();
    broker.set_options("t".to_owned(), capacity(10)).await.unwrap();
    let before = evictions.load(Ordering::SeqCst);
    broker.put(vec![write("t", "last", b"")]).await.unwrap();
    broker.put(vec![write("other", "x", b"")]).await.unwrap();
    let meanwhile = evictions.load(Ordering::SeqCst) - before;
    assert!(
        meanwhile <= 8,
        "{meanwhile} of 20 evictions before two puts were answered"
    );
    let all = || Query {
        record_type: Some("t".to_owned()),
        ..Query::default()
    };
    until("the rest is removed without another put", async || {
        broker.query(all()).await.unwrap().total == 10
    })
    .await;
}

#[tokio::test]
async fn a_capacity_that_could_not_be_kept_is_kept_by_the_next_clean() {
    let failures = Arc::new(AtomicUsize::new(0));
    let config = Config {
        clean_interval: Duration::from_millis(2),
        ..Config::default()
    };
    let broker = tapped(config, {
        let failures = Arc::clone(&failures);
        move |call| {
            let is_of_t = call.record_type.as_deref() == Some("t");
            let fails = call.begins("evict") && is_of_t && failures.fetch_add(1, Ordering::SeqCst) == 0;
            async move { if fails { Err(lost()) } else { Ok(()) } }
        }
    })
    .await;
    broker
        .put((0..20).map(|id| write("t", &id.to_string(), b"")).collect())
        .await
        .unwrap();
    broker.set_options("t".to_owned(), capacity(10)).await.unwrap();
    until("the clean removes what is above the capacity", async || {
        broker.get(Key::new("t", "9")).await == Err(BrokerError::RecordNotFound)
    })
    .await;
    assert!(failures.load(Ordering::SeqCst) > 1);
    broker.get(Key::new("t", "10")).await.expect("within the capacity");
}

#[tokio::test]
async fn new_content_never_comes_with_the_options_of_the_old() {
    let broker: Arc<OnceLock<Arc<Broker>>> = Arc::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tapped = tapped(Config::default(), {
        let (broker, seen) = (Arc::clone(&broker), Arc::clone(&seen));
        move |call| {
            let (broker, seen) = (Arc::clone(&broker), Arc::clone(&seen));
            async move {
                if call.ends("clear") {
                    // Somebody syncs while the answer is on its way.
                    let items = latest(broker.get().unwrap()).await;
                    seen.lock().unwrap().extend(items);
                }
                Ok(())
            }
        }
    })
    .await;
    assert!(broker.set(Arc::clone(&tapped)).is_ok());
    tapped.set_options("t".to_owned(), capacity(3)).await.unwrap();
    let (_, new) = tapped.clear().await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        matches!(seen.last(), Some(Item::Position(position)) if position.server_version == new),
        "{seen:?}"
    );
    assert!(!seen.iter().any(|item| matches!(item, Item::Options(..))), "{seen:?}");
}

/// What another host of a shared store does that writes so many records.
async fn put_elsewhere(store: &Native, records: u32) {
    let change = |id: u32| Change {
        key: Key::new("busy", id.to_string()),
        operation: Operation::Upsert {
            data: None,
            network: None,
        },
        expected: None,
    };
    let batch = Batch {
        changes: (0..records).map(change).collect(),
    };
    store.put(vec![batch], Timestamp::now()).await.unwrap();
}

#[tokio::test]
async fn a_store_that_always_says_it_was_pruned_does_not_keep_the_host_busy() {
    let waits = Arc::new(AtomicUsize::new(0));
    let (inner, info) = native(true);
    let store = Tap::new(Arc::clone(&inner), {
        let waits = Arc::clone(&waits);
        move |call| {
            waits.fetch_add(usize::from(call.begins("wait")), Ordering::SeqCst);
            async move {
                tokio::task::yield_now().await;
                if call.begins("changes") {
                    return Err(BackendError::Pruned(u64::MAX));
                }
                Ok(())
            }
        }
    });
    let _broker = broker_over(store, info, Config::default()).await;
    put_elsewhere(&inner, 1).await;
    // After a failure the follower pauses, and then begins anew by waiting.
    until("the follower pauses", async || waits.load(Ordering::SeqCst) > 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_comes_while_a_stream_reads_everything_does_not_wait_for_it() {
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let pages = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), {
        let pages = Arc::clone(&pages);
        move |call| {
            if call.begins("scan") && pages.fetch_add(1, Ordering::SeqCst) == 4 {
                (&client).write_all(b"?").unwrap();
            }
            async { Ok(()) }
        }
    })
    .await;
    for first in (0..3000).step_by(1000) {
        let records = (first..first + 1000).map(|id| write("t", &id.to_string(), &[7; 1000]));
        broker.put(records.collect()).await.unwrap();
    }
    let request = tokio::spawn({
        let pages = Arc::clone(&pages);
        async move {
            let server = tokio::net::UnixStream::from_std(server).unwrap();
            server.readable().await.unwrap();
            pages.load(Ordering::SeqCst)
        }
    });
    let reading = tokio::spawn(async move { latest(&broker).await.len() });
    assert!(reading.await.unwrap() >= 3000);
    let (seen, all) = (request.await.unwrap(), pages.load(Ordering::SeqCst));
    assert!(all > 30, "{all} pages");
    assert!(seen <= 8, "it came with page 5 of {all}, and was seen with page {seen}");
}

#[tokio::test]
async fn a_store_that_always_has_more_to_prune_keeps_no_record_beyond_its_time() {
    let evicts = Arc::new(AtomicUsize::new(0));
    let (inner, info) = native(false);
    let store = Tap::lying(inner, Lie::MoreToPrune, {
        let evicts = Arc::clone(&evicts);
        move |call| {
            evicts.fetch_add(usize::from(call.begins("evict")), Ordering::SeqCst);
            async {
                tokio::task::yield_now().await;
                Ok(())
            }
        }
    });
    let _broker = broker_over(store, info, Config::default()).await;
    // Types that Pomerium needs have a time to live.
    until("records are removed, too", async || evicts.load(Ordering::SeqCst) > 0).await;
}

#[tokio::test]
async fn a_store_that_always_has_more_above_a_capacity_does_not_keep_the_host_busy() {
    let (evicts, others) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inner, info) = native(false);
    let store = Tap::lying(inner, Lie::MoreToEvict, {
        let (evicts, others) = (Arc::clone(&evicts), Arc::clone(&others));
        move |call| {
            let is_of_t = call.record_type.as_deref() == Some("t");
            let count = if is_of_t { &evicts } else { &others };
            count.fetch_add(usize::from(call.begins("evict")), Ordering::SeqCst);
            async { Ok(()) }
        }
    });
    // Within the test it cleans once, and has listed the types to clean before this one has a capacity.
    let config = Config {
        clean_interval: Duration::from_secs(3600),
        ..Config::default()
    };
    let broker = broker_over(store, info, config).await;
    until("it cleans", async || others.load(Ordering::SeqCst) > 0).await;
    broker.set_options("t".to_owned(), capacity(1)).await.unwrap();
    broker.put(vec![write("t", "1", b"")]).await.unwrap();
    until("it goes on for a while", async || evicts.load(Ordering::SeqCst) >= 4096).await;
    // Each of these would let it make another call.
    let mut last = 0;
    for id in ["1", "2", "3", "4", "5"] {
        last = evicts.load(Ordering::SeqCst);
        broker.put(vec![write("other", id, b"")]).await.unwrap();
    }
    assert_eq!(evicts.load(Ordering::SeqCst), last, "it makes no more calls");
}

#[tokio::test]
async fn a_store_whose_wait_does_not_wait_does_not_keep_the_host_busy() {
    let waits = Arc::new(AtomicUsize::new(0));
    let (inner, info) = native(true);
    let store = Tap::lying(inner, Lie::SomethingToSee, {
        let waits = Arc::clone(&waits);
        move |call| {
            waits.fetch_add(usize::from(call.begins("wait")), Ordering::SeqCst);
            async {
                tokio::task::yield_now().await;
                Ok(())
            }
        }
    });
    let begun = std::time::Instant::now();
    let _broker = broker_over(store, info, Config::default()).await;
    until("the store is watched", async || waits.load(Ordering::SeqCst) > 50).await;
    // Each of the looks takes 10 ms at least.
    assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn options_that_would_keep_a_store_from_being_opened_are_refused() {
    for shared in [false, true] {
        let (inner, info) = native(shared);
        let store = Tap::new(Arc::clone(&inner), |_| async { Ok(()) });
        let broker = broker_over(store, info, Config::default()).await;
        let large = Options {
            indexable_fields: vec!["f".repeat(1 << 10); 1000],
            ..Options::default()
        };
        let mut refused = 0;
        for number in 0..80 {
            match broker.set_options(format!("type {number}"), large.clone()).await {
                Ok(_) => assert_eq!(refused, 0, "{number}"),
                Err(error) => {
                    assert!(matches!(error, BrokerError::OptionsTooLarge(_)), "{error:?}");
                    refused += 1;
                }
            }
        }
        assert!((60..70).contains(&refused), "{refused} were refused");
        // What is removed makes room again.
        broker
            .set_options("type 0".to_owned(), Options::default())
            .await
            .unwrap();
        broker.set_options("another".to_owned(), large).await.unwrap();
    }
}

#[tokio::test]
async fn a_log_that_grows_as_fast_as_it_is_read_does_not_keep_the_host_from_other_news() {
    let grows = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let pages = Arc::new(AtomicUsize::new(0));
    let (inner, info) = native(true);
    let store = Tap::new(Arc::clone(&inner), {
        let (grows, pages, inner) = (Arc::clone(&grows), Arc::clone(&pages), Arc::clone(&inner));
        move |call| {
            if call.begins("changes") && call.record_type.is_none() {
                pages.fetch_add(1, Ordering::SeqCst);
            }
            let (grows, inner) = (Arc::clone(&grows), Arc::clone(&inner));
            async move {
                // Another host writes more than fits into the page that is about to be read.
                if call.begins("changes") && call.record_type.is_none() && grows.load(Ordering::SeqCst) {
                    put_elsewhere(&inner, 1100).await;
                }
                Ok(())
            }
        }
    });
    let broker = broker_over(store, info, Config::default()).await;
    let mut stream = sync(&broker, Some("quiet"), 0).await;
    let kept = Options {
        capacity: Some(3),
        ..Options::default()
    };
    put_elsewhere(&inner, 1).await;
    until("the host reads the log", async || pages.load(Ordering::SeqCst) > 1).await;
    inner.set_options("t".to_owned(), Some(kept.clone())).await.unwrap();
    until("the host hears of options that another one has set", async || {
        broker.get_options("t".to_owned()).await.as_ref() == Ok(&kept)
    })
    .await;
    // It was heard after two rounds at most.
    let pages = pages.load(Ordering::SeqCst);
    assert!(pages < 150, "{pages} pages were read before");
    grows.store(false, Ordering::SeqCst);
    let written = broker.put(vec![write("quiet", "b", b"")]).await.unwrap();
    assert_eq!(next(&mut stream).await.as_ref(), Ok(&written.records[0]));
}

#[tokio::test]
async fn lists_are_read_few_at_a_time() {
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let broker = tapped(Config::default(), {
        let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
        move |call| {
            let (under_way, most) = (Arc::clone(&under_way), Arc::clone(&most));
            async move {
                if call.begins("types") || call.begins("list_services") {
                    most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    // All that are let in are.
                    for _ in 0..1000 {
                        tokio::task::yield_now().await;
                    }
                } else if call.ends("types") || call.ends("list_services") {
                    under_way.fetch_sub(1, Ordering::SeqCst);
                }
                Ok(())
            }
        }
    })
    .await;
    broker.put(vec![write("t", "a", b"")]).await.unwrap();
    let lists = futures::future::join_all((0..20).map(|_| broker.list_types()));
    let services = futures::future::join_all((0..20).map(|_| broker.list_services(Vec::new())));
    let (lists, services) = timeout(PATIENCE, async { tokio::join!(lists, services) })
        .await
        .unwrap();
    assert!(lists.into_iter().all(|list| list == Ok(vec!["t".to_owned()])));
    assert!(services.into_iter().all(|services| services == Ok(Vec::new())));
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

/// A broker, and how many pages were scanned of its store.
async fn counting_scans() -> (Arc<Broker>, Arc<AtomicUsize>) {
    let scans = Arc::new(AtomicUsize::new(0));
    let broker = tapped(Config::default(), {
        let scans = Arc::clone(&scans);
        move |call| {
            scans.fetch_add(usize::from(call.begins("scan")), Ordering::SeqCst);
            async { Ok(()) }
        }
    })
    .await;
    (broker, scans)
}

#[tokio::test]
async fn a_filter_with_many_networks_is_not_a_scan_for_each() {
    let (broker, scans) = counting_scans().await;
    broker.put(vec![write("t", "a", b"")]).await.unwrap();
    for (networks, most) in [(60_u32, 130), (5000, 2)] {
        let addresses: Vec<String> = (0..networks)
            .map(|n| std::net::Ipv4Addr::from(n << 8).to_string())
            .collect();
        let before = scans.load(Ordering::SeqCst);
        let query = Query {
            record_type: Some("t".to_owned()),
            filter: Some(json!({"$index": addresses})),
            ..Query::default()
        };
        assert_eq!(broker.query(query).await.unwrap().total, 0);
        let scanned = scans.load(Ordering::SeqCst) - before;
        assert!(scanned <= most, "{scanned} scans for {networks} networks");
    }
}

#[tokio::test]
async fn a_query_for_the_total_alone_reads_nothing() {
    let (broker, scans) = counting_scans().await;
    broker
        .put((0..600).map(|id| write("t", &id.to_string(), b"")).collect())
        .await
        .unwrap();
    let query = Query {
        offset: 590,
        ..Query::default()
    };
    assert_eq!(broker.query(query).await.unwrap().total, 600);
    assert_eq!(scans.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn who_asks_at_the_same_time_shares_a_call() {
    for shared in [false, true] {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (inner, info) = native(shared);
        let tap = Tap::new(inner, {
            let calls = Arc::clone(&calls);
            move |call| {
                if ["get", "current", "lease"].iter().any(|function| call.begins(function)) {
                    calls.lock().unwrap().push((call.function, call.size));
                }
                async { Ok(()) }
            }
        });
        let broker = broker_over(tap, info, Config::default()).await;
        let made = || std::mem::take(&mut *calls.lock().unwrap());
        let ids: Vec<String> = (0..20).map(|id| id.to_string()).collect();
        broker
            .put(ids.iter().map(|id| write("t", id, b"")).collect())
            .await
            .unwrap();
        made();

        let get = |id: &String| broker.get(Key::new("t", id.clone()));
        let found = futures::future::try_join_all(ids.iter().map(get)).await.unwrap();
        let found: Vec<_> = found.into_iter().map(|record| record.key.id).collect();
        assert_eq!(found, ids);
        assert_eq!(made(), [("get", 16), ("get", 4)]);

        // Those of sixteen requests could be more than a plugin has room for.
        let long = Key::new("t", "x".repeat(8 << 10));
        let (one, other) = tokio::join!(broker.get(long.clone()), broker.get(long));
        assert!(one.is_err() && other.is_err());
        assert_eq!(made(), [("get", 1), ("get", 1)]);

        let infos = futures::future::join_all((0..20).map(|_| broker.server_info())).await;
        assert!(infos.iter().all(Result::is_ok));
        assert_eq!(made(), [("current", 0)]);

        let acquire = |name: &str| broker.acquire_lease(name.to_owned(), Duration::from_secs(60));
        let (first, second, again) = tokio::join!(acquire("a"), acquire("b"), acquire("a"));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(again.err(), Some(BrokerError::LeaseTaken));
        // Where it is shared, another host may keep the store waiting with one lease, but not with the others. Who remembers the
        // leases of a store need not ask it whether one is taken.
        let expected = if shared {
            vec![("lease", 1); 3]
        } else {
            vec![("lease", 2)]
        };
        assert_eq!(made(), expected);
    }
}
