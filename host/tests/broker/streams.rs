//! Streams through what happens to the change log around them.

use super::*;

#[tokio::test]
async fn a_quiet_type_goes_on_when_its_place_is_pruned() {
    for shared in [false, true] {
        let (backend, info) = native(shared);
        let config = Config {
            history: Duration::ZERO,
            clean_interval: Duration::from_millis(2),
            ..Config::default()
        };
        let broker = broker_over(backend, info, config).await;
        let mut quiet = sync(&broker, Some("quiet"), 0).await;
        let first = broker
            .put(vec![write("quiet", "1", b"")])
            .await
            .unwrap()
            .records
            .remove(0);
        assert_eq!(next(&mut quiet).await, Ok(first.clone()), "shared: {shared}");

        let others_are_pruned = async {
            while broker.server_info().await.unwrap().earliest_version < first.version + 20 {
                broker.put(vec![write("other", "x", b"")]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, others_are_pruned)
            .await
            .expect("old changes are pruned");
        let second = broker
            .put(vec![write("quiet", "2", b"")])
            .await
            .unwrap()
            .records
            .remove(0);
        assert_eq!(
            next(&mut quiet).await,
            Ok(second),
            "it has missed nothing; shared: {shared}"
        );
    }
}

#[tokio::test]
async fn options_that_change_wake_quiet_streams_and_end_none() {
    let broker = broker(Config {
        history: Duration::ZERO,
        clean_interval: Duration::from_millis(2),
        ..Config::default()
    })
    .await;
    let mut quiet = sync(&broker, Some("quiet"), 0).await;
    let pruned = async {
        while broker.server_info().await.unwrap().earliest_version < 20 {
            broker.put(vec![write("other", "x", b"")]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, pruned).await.expect("old changes are pruned");
    let options = Options {
        capacity: Some(3),
        ..Options::default()
    };
    broker.set_options("quiet".to_owned(), options).await.unwrap();
    let item = timeout(PATIENCE, quiet.next()).await.unwrap().unwrap();
    assert!(matches!(item, Ok(Item::Options(..))), "{item:?}");
}
