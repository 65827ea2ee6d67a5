//! What becomes of the host when a plugin traps or does not let go.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;

use super::guests::{Behaviour, storage};
use super::{config, descriptors};
use crate::backend::BackendError;
use crate::component::instance::Instance;
use crate::component::{Limits, OpenError, Plugin, Source, open};

fn write(behaviour: Behaviour) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plugin.wasm");
    std::fs::write(&path, storage(behaviour)).unwrap();
    (folder, path)
}

async fn start(behaviour: Behaviour, limits: Limits) -> Arc<Instance> {
    let (folder, path) = write(behaviour);
    let plugin = Plugin::load(&Source::File(path), Some(&folder.path().join("cache"))).unwrap();
    Arc::new(Instance::start(&plugin, descriptors(), limits).await.unwrap())
}

/// Calls a function without arguments, and says what the caller is told.
async fn close(instance: &Instance) -> String {
    match instance
        .call(|accessor, guest| guest.call_close(accessor).boxed())
        .await
    {
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
