//! Deletes: records in a Put that carry deleted_at.

use anyhow::{Context, ensure};
use databroker_proto::databroker::Record;
use tonic::Code;

use crate::broker::{Broker, refused_with};
use crate::case::{Case, CheckResult, case};
use crate::records::{any, deletion, session, session_record, timestamp};

pub(super) const CASES: &[Case] = &[
    case!(
        "delete.removes",
        "delete.removes",
        "A deleted record is gone for Get, Query, SyncLatest and ListTypes.",
        removes
    ),
    case!(
        "delete.any_deleted_at",
        "delete.removes",
        "deleted_at deletes with any value: the epoch, the past, the future; with data, with an empty message or without.",
        any_deleted_at
    ),
    case!(
        "delete.tombstone",
        "delete.tombstone",
        "Sync delivers the tombstone: type, id, a new version, deleted_at of the server, and the data that was stored last, whatever data the delete carried.",
        tombstone
    ),
    case!(
        "delete.answer",
        "delete.answer",
        "The answer to a delete holds the key, deleted_at, and the version of the tombstone that Sync delivers.",
        answer
    ),
    case!(
        "delete.missing",
        "delete.missing",
        "A delete of a record that is not there succeeds and is answered with its key and deleted_at.",
        missing
    ),
    case!(
        "delete.missing_is_no_change",
        "delete.missing",
        "A delete of a record that is not there leaves no tombstone.",
        missing_is_no_change
    ),
    case!(
        "delete.again",
        "delete.missing",
        "A second delete of the same record leaves no second tombstone.",
        again
    ),
    case!(
        "delete.recreate",
        "delete.recreate",
        "A record that is put again after its delete is a new one with a higher version, and the stream shows all three changes.",
        recreate
    ),
    case!(
        "delete.mixed",
        "put.order",
        "Deletes and upserts of several types in one Put keep their order in the answer and on the stream.",
        mixed
    ),
];

async fn removes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker
        .put(vec![
            session_record(&record_type, "1", "alice"),
            session_record(&record_type, "2", "bob"),
        ])
        .await?;
    broker.put_one(deletion(&record_type, "1")).await?;
    refused_with(broker.get(&record_type, "1").await, Code::NotFound, "record not found")?;
    let ids = |records: &[Record]| records.iter().map(|record| record.id.clone()).collect::<Vec<_>>();
    let queried = ids(&broker.all(&record_type).await?);
    ensure!(queried == ["2"], "Query returns {queried:?}");
    let latest = ids(&broker.latest(&record_type).await?.records);
    ensure!(latest == ["2"], "SyncLatest returns {latest:?}");
    ensure!(
        broker.types().await?.contains(&record_type),
        "ListTypes lacks a type that has a record"
    );
    broker.put_one(deletion(&record_type, "2")).await?;
    ensure!(
        !broker.types().await?.contains(&record_type),
        "ListTypes names a type without records"
    );
    Ok(())
}

async fn any_deleted_at(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for (round, seconds) in [0, 1, -1, 4_000_000_000].into_iter().enumerate() {
        for data in [
            None,
            Some(any(&session("1", "alice"))),
            Some(any(&crate::records::Session::default())),
        ] {
            let id = format!("{round}");
            broker.put_one(session_record(&record_type, &id, "alice")).await?;
            broker
                .put_one(Record {
                    deleted_at: Some(timestamp(seconds)),
                    data,
                    ..deletion(&record_type, &id)
                })
                .await?;
            ensure!(
                broker.find(&record_type, &id).await?.is_none(),
                "not deleted by {seconds}"
            );
        }
    }
    Ok(())
}

async fn tombstone(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let put = broker
        .put(vec![
            session_record(&record_type, "1", "alice"),
            session_record(&record_type, "2", "bob"),
        ])
        .await?;
    // One delete without data, one with other data than is stored.
    broker.put_one(deletion(&record_type, "1")).await?;
    broker
        .put_one(Record {
            data: Some(any(&session("2", "mallory"))),
            ..deletion(&record_type, "2")
        })
        .await?;
    let mut last = 0;
    for stored in stream.records(2).await? {
        last = stored.version;
    }
    for stored in put.records {
        let tombstone = stream.record().await?;
        ensure!(
            tombstone.r#type == record_type && tombstone.id == stored.id,
            "key: {tombstone:?}"
        );
        ensure!(tombstone.version > last, "version: {tombstone:?}");
        ensure!(
            tombstone.data == stored.data,
            "the data is not what was stored: {tombstone:?}"
        );
        let deleted_at = tombstone.deleted_at.context("a tombstone without deleted_at")?;
        ensure!(
            deleted_at != timestamp(1_700_000_000),
            "deleted_at is the client's, not the server's"
        );
        last = tombstone.version;
    }
    Ok(())
}

async fn answer(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let deleted = broker.put_one(deletion(&record_type, "1")).await?;
    ensure!(deleted.r#type == record_type && deleted.id == "1", "key: {deleted:?}");
    ensure!(deleted.deleted_at.is_some(), "deleted_at is missing");
    ensure!(deleted.version > put.version, "version: {deleted:?}");
    let tombstone = stream.records(2).await?.pop().context("no tombstone")?;
    ensure!(
        deleted.version == tombstone.version,
        "the answer says version {}, the tombstone has {}",
        deleted.version,
        tombstone.version
    );
    Ok(())
}

async fn missing(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let deleted = broker.put_one(deletion(&record_type, "missing")).await?;
    ensure!(
        deleted.r#type == record_type && deleted.id == "missing",
        "key: {deleted:?}"
    );
    ensure!(deleted.deleted_at.is_some(), "deleted_at is missing");
    Ok(())
}

async fn missing_is_no_change(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let before = broker.server_info().await?.latest_record_version;
    broker.put_one(deletion(&record_type, "missing")).await?;
    let marker = broker.put_one(session_record(&record_type, "marker", "alice")).await?;
    let changes = broker.changes(&record_type, before).await?;
    ensure!(changes == [marker], "the change log holds {changes:?}");
    Ok(())
}

async fn again(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    for _ in 0..3 {
        broker.put_one(deletion(&record_type, "1")).await?;
    }
    let changes = broker.changes(&record_type, put.version).await?;
    ensure!(changes.len() == 1, "the change log holds {changes:?}");
    Ok(())
}

async fn recreate(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let first = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker.put_one(deletion(&record_type, "1")).await?;
    let second = broker.put_one(session_record(&record_type, "1", "bob")).await?;
    let seen = stream.records(3).await?;
    let [created, deleted, recreated] = seen.as_slice() else {
        anyhow::bail!("the stream gave {seen:?}");
    };
    ensure!(
        created == &first && recreated == &second,
        "the stream differs from the answers"
    );
    ensure!(deleted.deleted_at.is_some(), "no tombstone between them: {deleted:?}");
    ensure!(
        broker.get(&record_type, "1").await? == second,
        "Get returns another record"
    );
    Ok(())
}

async fn mixed(broker: Broker) -> CheckResult {
    let (one, two) = (broker.unique(), broker.unique());
    broker
        .put(vec![
            session_record(&one, "old", "alice"),
            session_record(&two, "old", "alice"),
        ])
        .await?;
    let mut stream = broker.follow_from_here("").await?;
    let sent = vec![
        deletion(&one, "old"),
        session_record(&two, "new", "bob"),
        deletion(&two, "old"),
        session_record(&one, "new", "bob"),
    ];
    let response = broker.put(sent.clone()).await?;
    let seen = stream.records(4).await?;
    for ((sent, got), seen) in sent.iter().zip(&response.records).zip(&seen) {
        ensure!(
            (&sent.r#type, &sent.id) == (&got.r#type, &got.id),
            "the answer's order: {got:?}"
        );
        ensure!(
            (&sent.r#type, &sent.id) == (&seen.r#type, &seen.id),
            "the stream's order: {seen:?}"
        );
        ensure!(
            sent.deleted_at.is_some() == seen.deleted_at.is_some(),
            "the stream gave {seen:?}"
        );
    }
    Ok(())
}
