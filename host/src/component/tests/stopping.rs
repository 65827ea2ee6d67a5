//! What becomes of the host when a plugin traps or does not let go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;

use super::guests::{Behaviour, storage};
use super::{Log, config, descriptors};
use crate::backend::{Backend, BackendError, Batch, Change, Operation};
use crate::component::bindings::store::Guest;
use crate::component::instance::Instance;
use crate::component::{Limits, OpenError, Plugin, Source, open};
use crate::record::{Key, Options, Timestamp};

fn write(behaviour: Behaviour) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wasm");
    std::fs::write(&path, storage(behaviour)).unwrap();
    (folder, path)
}

async fn start(behaviour: Behaviour, limits: Limits) -> Arc<Instance> {
    let (folder, path) = write(behaviour);
    let plugin = Plugin::load(&Source::File(path), Some(&folder.path().join("cache"))).unwrap();
    Arc::new(
        Instance::start(&plugin, descriptors(), limits, Arc::default())
            .await
            .unwrap(),
    )
}

/// Calls a function without arguments, and says what the caller is told.
async fn close(instance: &Instance) -> String {
    match instance.call("close", Guest::func_close, ()).await {
        Err(BackendError::Stopped(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_trap_stops_the_instance_and_nothing_else() {
    let instance = start(Behaviour::Trap, Limits::default()).await;
    let calls = futures::future::join_all((0..20).map(|_| close(&instance))).await;
    for cause in calls {
        assert!(cause.contains("unreachable"), "{cause}");
    }
    let later = close(&instance).await;
    assert!(later.contains("unreachable"), "{later}");
}

#[tokio::test]
async fn a_trap_while_opening_is_an_error() {
    let (folder, path) = write(Behaviour::Trap);
    let mut config = config(Source::File(path));
    config.cache_dir = Some(folder.path().join("cache"));
    let Err(error) = open(config, descriptors()).await else {
        panic!("the plugin was opened");
    };
    assert!(
        matches!(
            &error,
            OpenError::Store {
                error: BackendError::Stopped(_),
                ..
            }
        ),
        "{error:?}"
    );
}

// On one thread, so that a plugin that keeps it would keep the test from going on.
#[tokio::test]
async fn an_endless_loop_leaves_the_thread_to_others_and_is_stopped() {
    let compute = Duration::from_millis(500);
    let limits = Limits {
        compute,
        ..Limits::default()
    };
    let instance = start(Behaviour::Loop, limits).await;
    let begun = Instant::now();
    let call = tokio::spawn({
        let instance = Arc::clone(&instance);
        async move { close(&instance).await }
    });
    let mut turns = 0;
    while !call.is_finished() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        turns += 1;
        assert!(begun.elapsed() < Duration::from_secs(60), "it was never stopped");
    }
    let cause = call.await.unwrap();
    assert!(cause.contains("computed for more than 500ms"), "{cause}");
    assert!(begun.elapsed() >= compute, "it was stopped too early");
    assert!(turns > 5, "others had {turns} turns only");
}

#[tokio::test]
async fn a_plugin_that_gives_other_calls_no_turn_is_stopped_before_its_time_for_one_call_is_over() {
    let limits = Limits {
        turn: Duration::from_millis(200),
        ..Limits::default()
    };
    let instance = start(Behaviour::Loop, limits).await;
    let causes = futures::future::join_all((0..3).map(|_| close(&instance)));
    let causes = tokio::time::timeout(Duration::from_secs(20), causes).await;
    for cause in causes.expect("it is stopped") {
        let expected = "computed for more than 200ms without giving other calls their turn";
        assert!(cause.contains(expected), "{cause}");
    }
}

// On one thread, as above.
#[tokio::test]
async fn a_call_that_never_returns_is_stopped_and_leaves_the_thread_to_others() {
    let limits = Limits {
        call: Duration::from_millis(300),
        ..Limits::default()
    };
    let instance = start(Behaviour::Yield, limits).await;
    let begun = Instant::now();
    let causes = tokio::time::timeout(
        Duration::from_secs(60),
        futures::future::join_all((0..5).map(|_| close(&instance))),
    );
    for cause in causes.await.expect("it is stopped") {
        assert!(cause.contains("a call of `close` took longer than 300ms"), "{cause}");
    }
    assert!(begun.elapsed() >= limits.call, "it was stopped too early");
}

#[tokio::test]
async fn calls_beyond_those_under_way_wait_for_a_bounded_time_and_in_a_bounded_number() {
    let limits = Limits {
        calls: 2,
        queue: 1,
        queue_time: Duration::from_millis(50),
        ..Limits::default()
    };
    let instance = start(Behaviour::Yield, limits).await;
    let current = || instance.call("current", Guest::func_current, ());
    let calls = futures::future::join_all((0..2).map(|_| current()));
    let refused = async {
        let call = || async {
            match current().await {
                Err(BackendError::NotCalled(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        let (waited, turned_away) = tokio::join!(call(), call());
        assert!(waited.contains("not made room within 50ms"), "{waited}");
        assert!(
            turned_away.contains("no room among its 2 calls, and 1 wait"),
            "{turned_away}"
        );
    };
    tokio::select! {
        biased;
        ended = calls => panic!("{ended:?}"),
        () = refused => {}
    }
}

#[tokio::test]
async fn what_the_host_calls_by_itself_takes_no_place_of_a_clients_and_needs_none() {
    let limits = Limits {
        calls: 1,
        queue: 0,
        ..Limits::default()
    };
    let instance = start(Behaviour::Yield, limits).await;
    let by_itself = || {
        // Those without lists, for which this plugin would need memory.
        futures::future::select_all([
            instance.call("measure", Guest::func_measure, ()).map(drop).boxed(),
            instance.call("prune", Guest::func_prune, (0, 1)).map(drop).boxed(),
            instance
                .call("list-options", Guest::func_list_options, ())
                .map(drop)
                .boxed(),
            instance.call("clear", Guest::func_clear, (1,)).map(drop).boxed(),
        ])
    };
    let client = || instance.call("current", Guest::func_current, ());
    let refused = async {
        match client().await {
            Err(BackendError::NotCalled(why)) => {
                assert!(why.contains("no room among its 1 calls, and 0 wait"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    };
    // No call of this plugin ever ends, so that one which does was refused.
    tokio::select! {
        biased;
        _ = by_itself() => panic!("the host was refused before any client"),
        ended = client() => panic!("the client was refused because of the host: {ended:?}"),
        _ = by_itself() => panic!("the host was refused because of a client"),
        () = refused => {}
    }
}

async fn memory(limits: Limits) -> Arc<dyn Backend> {
    let mut config = config(Source::BuiltIn("memory".to_owned()));
    config.limits = limits;
    open(config, descriptors()).await.unwrap().0
}

#[tokio::test]
async fn a_read_of_several_records_takes_the_room_of_as_many_calls() {
    let backend = memory(Limits {
        calls: 8,
        queue: 0,
        ..Limits::default()
    })
    .await;
    // The plugin is on the same thread: it answers once all have asked. No call takes more than a quarter of the room.
    for (records, let_in) in [(1, 8), (2, 4), (3, 4)] {
        let reads = (0..8).map(|_| backend.get(vec![Key::new("t", "a"); records]));
        let answers = futures::future::join_all(reads).await;
        let answered = answers.iter().filter(|answer| **answer == Ok(vec![None; records]));
        assert_eq!(answered.count(), let_in, "{records}: {answers:?}");
    }
}

/// Writes records without data, as many as asked for, from this number on.
async fn put(backend: &dyn Backend, from: usize, count: usize, data: &Bytes) -> Result<(), BackendError> {
    let change = |number: usize| Change {
        key: Key::new("t", number.to_string()),
        operation: Operation::Upsert {
            data: Some(data.clone()),
            network: None,
        },
        expected: None,
    };
    let changes = (from..from + count).map(change).collect();
    let put = backend.put(vec![Batch { changes }], Timestamp(1)).await?;
    assert!(put.batches.iter().all(Result::is_ok), "{:?}", put.batches);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_computes_too_long_is_stopped_though_others_are_finished_meanwhile() {
    let limits = Limits {
        compute: Duration::from_millis(100),
        ..Limits::default()
    };
    let backend = memory(limits).await;
    // It builds an index in steps, and lets other calls pass in between.
    for from in (0..400_000).step_by(4000) {
        put(&*backend, from, 4000, &Bytes::new()).await.unwrap();
    }
    let options = Options {
        indexable_fields: (0..20).map(|number| format!("field{number}")).collect(),
        ..Options::default()
    };
    let indexing = tokio::spawn({
        let backend = Arc::clone(&backend);
        async move { backend.set_options("t".to_owned(), Some(options)).await }
    });
    let mut finished = 0;
    while !indexing.is_finished() {
        match backend.health().await {
            Ok(()) => finished += 1,
            Err(BackendError::NotCalled(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let error = indexing.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, BackendError::Stopped(cause) if cause.contains("computed for more than 100ms")),
        "{error:?}"
    );
    assert!(finished > 0, "no other call was finished meanwhile");
}

/// What an instance of 48 MiB says when it is given more than it can take.
async fn run_out_of_memory(records: usize, bytes: usize) -> String {
    let limits = Limits {
        memory_bytes: 48 << 20,
        ..Limits::default()
    };
    let backend = memory(limits).await;
    let data = Bytes::from(vec![0; bytes]);
    match put(&*backend, 0, records, &data).await {
        Err(BackendError::Stopped(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_instance_that_runs_out_of_memory_says_so() {
    // The arguments alone are more than it may have.
    let cause = run_out_of_memory(20, 4 << 20).await;
    assert!(cause.contains("memory beyond its limit of 50331648 bytes"), "{cause}");
}

#[tokio::test]
async fn what_a_plugin_says_before_it_traps_is_in_the_log() {
    let log = Log::default();
    let _guard = log.record();
    // It takes the arguments, and fails where it works on them.
    let cause = run_out_of_memory(260_000, 0).await;
    assert!(cause.contains("memory beyond its limit"), "{cause}");
    let log = log.text();
    let said = log.lines().filter(|line| line.contains("memory allocation of"));
    // As a line of its own when it was said, and with the report of the trap.
    assert_eq!(said.count(), 2, "{log}");
}
