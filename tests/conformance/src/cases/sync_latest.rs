//! SyncLatest: all live records, then options, then the versions to go on from.
//!
//! The order of the messages is checked wherever a case reads such a stream.

use anyhow::{Context, ensure};
use databroker_proto::databroker::Options;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};
use crate::records::{deletion, raw_any, record, session_record};

pub(super) const CASES: &[Case] = &[
    case!(
        "sync_latest.empty_type",
        "sync_latest.versions",
        "A type without records gives the versions alone, with the server version and a clean end.",
        empty_type
    ),
    case!(
        "sync_latest.records",
        "sync_latest.records",
        "A type's live records come as they were written, each once, and none of another type.",
        records
    ),
    case!(
        "sync_latest.only_latest",
        "sync_latest.records",
        "Of a record that was written often only the last state comes, of a deleted one nothing.",
        only_latest
    ),
    case!(
        "sync_latest.versions",
        "sync_latest.versions",
        "The versions come last: the server version, and a record version that every record answered before is part of.",
        versions
    ),
    case!(
        "sync_latest.every_type",
        "sync_latest.every_type",
        "Without a type, the live records of all types come.",
        every_type
    ),
    case!(
        "sync_latest.options_of_type",
        "sync_latest.options",
        "A type's options come after its records, and also where it has none.",
        options_of_type
    ),
    case!(
        "sync_latest.options_of_every_type",
        "sync_latest.options",
        "Without a type, the options of each type come that has records and options, and of no type without options.",
        options_of_every_type
    ),
    case!(
        "sync_latest.many_records",
        "sync_latest.records",
        "Thousands of records, more than 4 MiB together, come complete, each once.",
        many_records
    ),
];

async fn empty_type(broker: Broker) -> CheckResult {
    let latest = broker.latest(&broker.unique()).await?;
    ensure!(latest.records.is_empty() && latest.options.is_empty(), "{latest:?}");
    let info = broker.server_info().await?;
    ensure!(latest.versions.server_version == info.server_version, "server version");
    ensure!(
        latest.versions.latest_record_version <= info.latest_record_version,
        "record version"
    );
    Ok(())
}

async fn records(broker: Broker) -> CheckResult {
    let (one, two) = (broker.unique(), broker.unique());
    let put = broker
        .put(
            (0..130)
                .map(|n| session_record(&one, &format!("{n:03}"), "alice"))
                .collect(),
        )
        .await?;
    broker.put_one(session_record(&two, "1", "bob")).await?;
    let mut latest = broker.latest(&one).await?.records;
    latest.sort_by_key(|record| record.version);
    ensure!(
        latest == put.records,
        "{} of 130 records came as they were put",
        latest.len()
    );
    Ok(())
}

async fn only_latest(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut last = None;
    for user in ["alice", "bob", "carol"] {
        last = Some(broker.put_one(session_record(&record_type, "1", user)).await?);
    }
    broker.put_one(session_record(&record_type, "2", "alice")).await?;
    broker.put_one(deletion(&record_type, "2")).await?;
    let latest = broker.latest(&record_type).await?;
    ensure!(
        latest.records == [last.context("nothing was put")?],
        "{:?}",
        latest.records
    );
    Ok(())
}

async fn versions(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for _ in 0..10 {
        let put = broker.put(vec![session_record(&record_type, "1", "alice")]).await?;
        let latest = broker.latest(&record_type).await?;
        ensure!(latest.versions.server_version == put.server_version, "server version");
        let version = put.records.first().context("no record in the answer")?.version;
        ensure!(
            latest.versions.latest_record_version >= version,
            "version {} after version {version} was answered",
            latest.versions.latest_record_version
        );
    }
    Ok(())
}

async fn every_type(broker: Broker) -> CheckResult {
    let types: Vec<String> = (0..3).map(|_| broker.unique()).collect();
    let put = broker
        .put(types.iter().map(|name| session_record(name, "1", "alice")).collect())
        .await?;
    let latest = broker.latest("").await?;
    for record in put.records {
        let copies = latest.records.iter().filter(|found| **found == record).count();
        ensure!(copies == 1, "{} came {copies} times", record.r#type);
    }
    Ok(())
}

async fn options_of_type(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let options = Options {
        capacity: Some(7),
        indexable_fields: vec!["user_id".to_owned()],
        ..Options::default()
    };
    broker.set_options(&record_type, options.clone()).await?;
    for records in 0..2 {
        let latest = broker.latest(&record_type).await?;
        ensure!(latest.records.len() == records, "{} records", latest.records.len());
        ensure!(latest.options.len() == 1, "{} types have options", latest.options.len());
        ensure!(
            latest.options.get(&record_type) == Some(&options),
            "{:?}",
            latest.options
        );
        broker.put_one(session_record(&record_type, "1", "alice")).await?;
    }
    Ok(())
}

async fn options_of_every_type(broker: Broker) -> CheckResult {
    let (with, without) = (broker.unique(), broker.unique());
    let options = Options {
        capacity: Some(7),
        ..Options::default()
    };
    broker.set_options(&with, options.clone()).await?;
    broker
        .put(vec![
            session_record(&with, "1", "alice"),
            session_record(&without, "1", "alice"),
        ])
        .await?;
    let latest = broker.latest("").await?;
    ensure!(
        latest.options.get(&with) == Some(&options),
        "{:?}",
        latest.options.get(&with)
    );
    ensure!(
        !latest.options.contains_key(&without),
        "options of a type that has none"
    );
    Ok(())
}

async fn many_records(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let data = raw_any("example.com/large", vec![1; 2000]);
    let mut put = Vec::new();
    for batch in 0..5 {
        let records = (0..1000)
            .map(|n| record(&record_type, &format!("{batch}-{n:04}"), data.clone()))
            .collect();
        put.extend(broker.put(records).await?.records);
    }
    let mut latest = broker.latest(&record_type).await?.records;
    latest.sort_by_key(|record| record.version);
    ensure!(latest == put, "{} of {} records came", latest.len(), put.len());
    Ok(())
}
