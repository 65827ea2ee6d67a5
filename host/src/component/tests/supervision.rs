//! A plugin that stops is started again, or not.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{Log, config, descriptors};
use crate::backend::{Availability, Backend, BackendError, Batch, Change, Event, Operation, Reopenings, StoreInfo};
use crate::component::{Config, Limits, Restarts, Source, open};
use crate::record::{Key, Timestamp};

const PATIENCE: Duration = Duration::from_secs(60);

/// The memory plugin, in so little memory that one put can be too much for it.
fn small() -> Config {
    Config {
        limits: Limits {
            memory_bytes: 48 << 20,
            ..Limits::default()
        },
        restarts: Restarts {
            shortest_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(10),
            ..Restarts::default()
        },
        ..config(Source::BuiltIn("memory".to_owned()))
    }
}

async fn start(config: Config) -> (Arc<dyn Backend>, StoreInfo, Reopenings) {
    let (backend, mut info) = open(config, descriptors()).await.unwrap();
    let reopenings = std::mem::replace(&mut info.reopenings, Reopenings::never());
    (backend, info, reopenings)
}

fn batch(data: &Bytes, count: usize) -> Vec<Batch> {
    let change = |number: usize| Change {
        key: Key::new("t", number.to_string()),
        operation: Operation::Upsert {
            data: Some(data.clone()),
            network: None,
        },
        expected: None,
    };
    vec![Batch {
        changes: (0..count).map(change).collect(),
    }]
}

/// A put that the plugin survives.
async fn put(backend: &dyn Backend) -> Result<u64, BackendError> {
    let put = backend.put(batch(&Bytes::from_static(b"x"), 1), Timestamp(1)).await?;
    Ok(put.server_version)
}

/// A put that it does not survive; says what the caller is told.
async fn stop(backend: &dyn Backend) -> String {
    let data = Bytes::from(vec![0; 4 << 20]);
    match backend.put(batch(&data, 20), Timestamp(1)).await {
        Err(BackendError::Stopped(cause)) => cause,
        other => panic!("{other:?}"),
    }
}

/// Adopts the store each time it is opened again, until it is open or has ended.
async fn settled(reopenings: &mut Reopenings) -> Availability {
    let settled = async {
        loop {
            match reopenings.next().await {
                Event::Reopened(reopened) => reopened.adopt(),
                Event::Availability => match reopenings.availability() {
                    Availability::Reopening => {}
                    settled => return settled,
                },
            }
        }
    };
    timeout(PATIENCE, settled).await.expect("it settles")
}

#[tokio::test]
async fn a_store_that_lost_its_content_is_under_another_server_version() {
    let (backend, info, mut reopenings) = start(small()).await;
    let before = info.position.server_version;
    assert_eq!(put(&*backend).await, Ok(before));
    let cause = stop(&*backend).await;
    assert!(cause.contains("memory beyond its limit"), "{cause}");
    assert_eq!(settled(&mut reopenings).await, Availability::Open);
    let after = backend.current().await.unwrap();
    assert_ne!(after.server_version, before);
    assert_eq!(after.latest_version, 0, "it is empty");
    assert_eq!(put(&*backend).await, Ok(after.server_version));
    assert_eq!(backend.runtime().restarts, 1);
    assert!(backend.runtime().memory_bytes > 0);
}

#[tokio::test]
async fn no_call_reaches_a_new_instance_before_it_is_adopted() {
    let (backend, info, mut reopenings) = start(small()).await;
    stop(&*backend).await;
    let reopened = loop {
        match timeout(PATIENCE, reopenings.next()).await.unwrap() {
            Event::Reopened(reopened) => break reopened,
            Event::Availability => assert_eq!(reopenings.availability(), Availability::Reopening),
        }
    };
    assert_ne!(reopened.position.server_version, info.position.server_version);
    let health = backend.health().await.unwrap_err();
    assert!(
        matches!(&health, BackendError::NotCalled(why) if why.contains("started again")),
        "{health:?}"
    );
    // A write was decided on under the old content: it does not wait for another one.
    let write = put(&*backend).await.unwrap_err();
    assert!(matches!(write, BackendError::NotCalled(_)), "{write:?}");
    // A read waits, for a bounded time.
    let read = backend.current().await.unwrap_err();
    assert!(matches!(read, BackendError::NotCalled(_)), "{read:?}");
    let (read, ()) = tokio::join!(backend.current(), async { reopened.adopt() });
    assert_ne!(read.unwrap().server_version, info.position.server_version);
    assert_eq!(backend.health().await, Ok(()));
}

#[tokio::test]
async fn calls_under_way_are_told_that_it_stopped() {
    let (backend, _, mut reopenings) = start(small()).await;
    let reads = futures::future::join_all((0..20).map(|_| backend.count(None)));
    let (_, reads) = tokio::join!(stop(&*backend), reads);
    for read in reads {
        assert!(matches!(read, Ok(0) | Err(BackendError::Stopped(_))), "{read:?}");
    }
    assert_eq!(settled(&mut reopenings).await, Availability::Open);
    assert_eq!(backend.count(None).await, Ok(0));
}

#[tokio::test]
async fn a_plugin_that_stops_too_often_has_stopped_for_good() {
    let log = Log::default();
    let _guard = log.record();
    let mut config = small();
    config.restarts.most = 2;
    let (backend, _, mut reopenings) = start(config).await;
    for _ in 0..2 {
        stop(&*backend).await;
        assert_eq!(settled(&mut reopenings).await, Availability::Open);
    }
    stop(&*backend).await;
    assert_eq!(settled(&mut reopenings).await, Availability::Ended);
    let health = backend.health().await.unwrap_err();
    assert!(
        matches!(&health, BackendError::Stopped(cause) if cause.contains("memory")),
        "{health:?}"
    );
    assert!(matches!(put(&*backend).await, Err(BackendError::Stopped(_))));
    assert!(matches!(backend.current().await, Err(BackendError::Stopped(_))));
    assert_eq!(backend.runtime().restarts, 2);
    let log = log.text();
    let stops = log.lines().filter(|line| line.contains("instance has stopped"));
    assert_eq!(stops.count(), 3, "one line for each: {log}");
}

#[tokio::test]
async fn what_was_long_ago_does_not_count() {
    let mut config = small();
    config.restarts.most = 1;
    config.restarts.window = Duration::ZERO;
    let (backend, _, mut reopenings) = start(config).await;
    for _ in 0..3 {
        stop(&*backend).await;
        assert_eq!(settled(&mut reopenings).await, Availability::Open);
    }
    assert_eq!(backend.runtime().restarts, 3);
}

#[tokio::test]
async fn a_store_that_is_closed_is_not_started_again() {
    let (backend, _, mut reopenings) = start(small()).await;
    backend.close().await.unwrap();
    stop(&*backend).await;
    assert!(timeout(Duration::from_millis(200), reopenings.next()).await.is_err());
}

#[tokio::test]
async fn a_report_says_what_was_called_and_where_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = small();
    config.report_dir = Some(folder.path().join("reports"));
    let (backend, _, mut reopenings) = start(config).await;
    // The arguments fit, and what is made of them does not.
    let error = backend
        .put(batch(&Bytes::new(), 260_000), Timestamp(1))
        .await
        .unwrap_err();
    assert!(matches!(error, BackendError::Stopped(_)), "{error:?}");
    settled(&mut reopenings).await;
    let files: Vec<_> = std::fs::read_dir(folder.path().join("reports")).unwrap().collect();
    assert_eq!(files.len(), 1);
    let report = std::fs::read_to_string(files[0].as_ref().unwrap().path()).unwrap();
    for part in [
        "plugin: memory\n",
        "memory beyond its limit",
        "calls under way:\n  put\n",
        "wasm backtrace",
        "memory allocation of",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
}
