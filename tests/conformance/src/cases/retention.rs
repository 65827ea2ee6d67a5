//! What the server removes by itself: records beyond a type's capacity or ttl, and old changes.

use std::time::Duration;

use anyhow::{Context, ensure};
use databroker_proto::databroker::{Options, Record, SyncRequest};
use tonic::Code;

use crate::broker::{Broker, eventually};
use crate::case::{Case, CheckResult, case};
use crate::records::{deletion, duration, session_record};

pub(super) const CASES: &[Case] = &[
    case!(
        "retention.capacity",
        "capacity.evicts",
        "A type with a capacity keeps that many records: those with the highest versions.",
        capacity
    ),
    case!(
        "retention.capacity_counts_updates",
        "capacity.evicts",
        "An updated record counts as new: it stays, and the one that was not touched longest goes.",
        capacity_counts_updates
    ),
    case!(
        "retention.capacity_tombstones",
        "capacity.tombstones",
        "A record that goes for capacity leaves a tombstone on open streams, with type, id, deleted_at and its last data.",
        capacity_tombstones
    ),
    case!(
        "retention.capacity_within_put",
        "capacity.evicts",
        "A Put of more records than the capacity leaves its last ones; the answer still holds all of them.",
        capacity_within_put
    ),
    case!(
        "retention.capacity_after_patch",
        "capacity.evicts",
        "A Patch is a write too: after one the capacity holds.",
        capacity_after_patch
    ),
    case!(
        "retention.capacity_zero",
        "capacity.evicts",
        "Capacity 0 keeps nothing: the record comes and goes on the stream.",
        capacity_zero
    ),
    case!(
        "retention.capacity_of_other_type",
        "capacity.evicts",
        "One type's capacity does not touch another type.",
        capacity_of_other_type
    ),
    case!(
        "retention.capacity_largest",
        "capacity.evicts",
        "The largest capacity there is evicts nothing.",
        capacity_largest
    ),
    case!(
        "retention.capacity_follower",
        "capacity.tombstones",
        "Whoever follows the stream holds exactly the records that the server holds, evictions included.",
        capacity_follower
    ),
    case!(
        "retention.ttl",
        "ttl.evicts",
        "A record that was not modified for the ttl goes, with a tombstone that holds its last data; a younger one stays.",
        ttl
    ),
    case!(
        "retention.ttl_counts_updates",
        "ttl.evicts",
        "Whoever keeps modifying a record keeps it.",
        ttl_counts_updates
    ),
    case!(
        "retention.history",
        "history.aborted",
        "A Sync from a version whose later changes are no longer kept is ABORTED `invalid record version`, live records stay, and SyncLatest goes on.",
        history
    ),
    case!(
        "retention.history_keeps_newest",
        "history.newest",
        "The newest change stays however old it is: a Sync from the latest version is never ABORTED.",
        history_keeps_newest
    ),
];

async fn capacity(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, 3).await?;
    for n in 0..10 {
        broker
            .put_one(session_record(&record_type, &n.to_string(), "alice"))
            .await?;
    }
    holds(&broker, &record_type, &["7", "8", "9"]).await
}

async fn capacity_counts_updates(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, 3).await?;
    for id in ["1", "2", "3", "1", "4"] {
        broker.put_one(session_record(&record_type, id, "alice")).await?;
    }
    holds(&broker, &record_type, &["1", "3", "4"]).await
}

async fn capacity_tombstones(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, 2).await?;
    let mut stream = broker.follow_from_here(&record_type).await?;
    let mut put = Vec::new();
    for n in 0..4 {
        put.push(
            broker
                .put_one(session_record(&record_type, &n.to_string(), &format!("user-{n}")))
                .await?,
        );
    }
    let seen = stream.records(6).await?;
    let (gone, written): (Vec<Record>, Vec<Record>) = seen.into_iter().partition(|record| record.deleted_at.is_some());
    ensure!(
        written == put,
        "the upserts on the stream differ from the answers: {written:?}"
    );
    ensure!(gone.len() == 2, "the stream holds {} tombstones", gone.len());
    for (tombstone, record) in gone.iter().zip(&put) {
        ensure!(
            tombstone.id == record.id && tombstone.r#type == record.r#type,
            "key: {tombstone:?}"
        );
        ensure!(
            tombstone.data == record.data,
            "the tombstone has lost its data: {tombstone:?}"
        );
        ensure!(tombstone.version > record.version, "version: {tombstone:?}");
    }
    Ok(())
}

async fn capacity_within_put(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, 3).await?;
    let sent: Vec<Record> = (0..10)
        .map(|n| session_record(&record_type, &n.to_string(), "alice"))
        .collect();
    let response = broker.put(sent).await?;
    ensure!(
        response.records.len() == 10,
        "the answer holds {} records",
        response.records.len()
    );
    holds(&broker, &record_type, &["7", "8", "9"]).await
}

async fn capacity_after_patch(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for n in 0..5 {
        broker
            .put_one(session_record(&record_type, &n.to_string(), "alice"))
            .await?;
    }
    set_capacity(&broker, &record_type, 2).await?;
    broker
        .patch(vec![session_record(&record_type, "0", "bob")], &["user_id"])
        .await?;
    holds(&broker, &record_type, &["0", "4"]).await
}

async fn capacity_zero(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, 0).await?;
    let mut stream = broker.follow_from_here(&record_type).await?;
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    ensure!(stream.record().await? == put, "the stream differs from the answer");
    let tombstone = stream.record().await?;
    ensure!(tombstone.deleted_at.is_some() && tombstone.id == "1", "{tombstone:?}");
    holds(&broker, &record_type, &[]).await
}

async fn capacity_of_other_type(broker: Broker) -> CheckResult {
    let small = with_capacity(&broker, 1).await?;
    let other = broker.unique();
    for n in 0..5 {
        let records = [&small, &other].map(|record_type| session_record(record_type, &n.to_string(), "alice"));
        broker.put(records.to_vec()).await?;
    }
    holds(&broker, &small, &["4"]).await?;
    holds(&broker, &other, &["0", "1", "2", "3", "4"]).await
}

async fn capacity_largest(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, u64::MAX).await?;
    broker
        .put(vec![
            session_record(&record_type, "1", "alice"),
            session_record(&record_type, "2", "alice"),
        ])
        .await?;
    holds(&broker, &record_type, &["1", "2"]).await
}

async fn capacity_follower(broker: Broker) -> CheckResult {
    let record_type = with_capacity(&broker, 5).await?;
    let start = broker.server_info().await?.latest_record_version;
    for round in 0..10_usize {
        let records = (0..7)
            .map(|n| session_record(&record_type, &format!("{}", (round * 3 + n * 5) % 11), "alice"))
            .collect();
        broker.put(records).await?;
    }
    let mut copy = std::collections::BTreeMap::new();
    for change in broker.changes(&record_type, start).await? {
        if change.deleted_at.is_some() {
            ensure!(
                copy.remove(&change.id).is_some(),
                "a tombstone of a record that is not there: {change:?}"
            );
        } else {
            copy.insert(change.id.clone(), change);
        }
    }
    let held = broker.all(&record_type).await?;
    ensure!(held.len() == 5, "the server holds {} records", held.len());
    ensure!(
        copy.into_values().collect::<Vec<_>>() == held,
        "the follower's copy differs"
    );
    Ok(())
}

async fn ttl(broker: Broker) -> CheckResult {
    let interval = broker.settings().clean_interval()?;
    let record_type = broker.unique();
    set_ttl(&broker, &record_type, interval * 3).await?;
    let mut stream = broker.follow_from_here(&record_type).await?;
    let old = broker.put_one(session_record(&record_type, "old", "alice")).await?;
    ensure!(stream.record().await? == old, "the stream differs");
    let patience = interval * 8 + Duration::from_secs(5);
    // The other one is kept young until the first has gone.
    let young = eventually(patience, async || {
        let young = broker.put_one(session_record(&record_type, "young", "alice")).await?;
        ensure!(
            broker.find(&record_type, "old").await?.is_none(),
            "the record outlives its ttl"
        );
        Ok(young)
    })
    .await?;
    ensure!(
        broker.get(&record_type, "young").await? == young,
        "the younger record went too"
    );
    loop {
        let seen = stream.record().await.context("waiting for the tombstone")?;
        if seen.id == "old" {
            ensure!(seen.deleted_at.is_some(), "no tombstone: {seen:?}");
            ensure!(seen.data == old.data, "the tombstone has lost its data: {seen:?}");
            return Ok(());
        }
    }
}

async fn ttl_counts_updates(broker: Broker) -> CheckResult {
    let interval = broker.settings().clean_interval()?;
    let record_type = broker.unique();
    let ttl = interval * 4;
    set_ttl(&broker, &record_type, ttl).await?;
    let end = tokio::time::Instant::now() + ttl * 2;
    while tokio::time::Instant::now() < end {
        broker.put_one(session_record(&record_type, "1", "alice")).await?;
        tokio::time::sleep(interval / 4).await;
        broker
            .get(&record_type, "1")
            .await
            .context("a record that is kept young")?;
    }
    Ok(())
}

async fn history(broker: Broker) -> CheckResult {
    let interval = broker.settings().clean_interval()?;
    let history = broker.settings().history()?;
    let record_type = broker.unique();
    let first = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let second = broker.put_one(session_record(&record_type, "2", "alice")).await?;
    broker.put_one(deletion(&record_type, "2")).await?;
    let info = broker.server_info().await?;
    let request = SyncRequest {
        server_version: info.server_version,
        record_version: first.version,
        r#type: record_type.clone(),
        wait: Some(false),
    };
    eventually(history + interval * 4 + Duration::from_secs(10), async || {
        // Something newer must be there, since the newest change is kept.
        broker.put_one(session_record(&record_type, "newest", "alice")).await?;
        let end = broker.sync(request.clone()).end().await?;
        ensure!(
            end == (Code::Aborted, "invalid record version".to_owned()),
            "the stream ends with {end:?}"
        );
        Ok(())
    })
    .await?;
    let earliest = broker.server_info().await?.earliest_record_version;
    ensure!(earliest > second.version, "the earliest version is {earliest}");
    ensure!(
        broker.get(&record_type, "1").await? == first,
        "a live record has gone with its change"
    );
    let latest = broker.latest(&record_type).await?;
    ensure!(latest.records.len() == 2, "SyncLatest gives {:?}", latest.records);
    let mut stream = broker.follow(
        &record_type,
        latest.versions.server_version,
        latest.versions.latest_record_version,
    );
    let put = broker.put_one(session_record(&record_type, "3", "alice")).await?;
    ensure!(stream.record().await? == put, "the stream after SyncLatest differs");
    Ok(())
}

async fn history_keeps_newest(broker: Broker) -> CheckResult {
    let interval = broker.settings().clean_interval()?;
    let history = broker.settings().history()?;
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    // There is nothing to wait for: that something does not happen can only be seen by letting the time pass.
    tokio::time::sleep(history + interval * 2).await;
    let info = broker.server_info().await?;
    let request = SyncRequest {
        server_version: info.server_version,
        record_version: info.latest_record_version,
        r#type: record_type,
        wait: Some(false),
    };
    broker.sync(request).rest().await?;
    Ok(())
}

/// A new type with a capacity.
async fn with_capacity(broker: &Broker, capacity: u64) -> anyhow::Result<String> {
    let record_type = broker.unique();
    set_capacity(broker, &record_type, capacity).await?;
    Ok(record_type)
}

async fn set_capacity(broker: &Broker, record_type: &str, capacity: u64) -> Result<(), tonic::Status> {
    let options = Options {
        capacity: Some(capacity),
        ..Options::default()
    };
    broker.set_options(record_type, options).await.map(drop)
}

async fn set_ttl(broker: &Broker, record_type: &str, ttl: Duration) -> Result<(), tonic::Status> {
    let options = Options {
        ttl: Some(duration(ttl)),
        ..Options::default()
    };
    broker.set_options(record_type, options).await.map(drop)
}

/// Checks which records a type holds.
async fn holds(broker: &Broker, record_type: &str, expected: &[&str]) -> CheckResult {
    let held = broker.all(record_type).await?;
    let held: Vec<&str> = held.iter().map(|record| record.id.as_str()).collect();
    ensure!(held == expected, "expected {expected:?}, the server holds {held:?}");
    Ok(())
}
