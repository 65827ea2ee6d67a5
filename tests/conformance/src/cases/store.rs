//! The store as a whole: its types, its versions, and Clear.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use databroker_proto::databroker::{Checkpoint, GetCheckpointRequest, Options, SetCheckpointRequest, SyncRequest};
use databroker_proto::registry::{ListRequest, RegisterRequest, Service};
use tonic::Code;

use crate::broker::{Broker, refused, refused_with};
use crate::case::{Case, CheckResult, case};
use crate::cases::leases;
use crate::cases::options::required_options;
use crate::records::session_record;

pub(super) const CASES: &[Case] = &[
    case!(
        "store.types",
        "store.types",
        "ListTypes names the types with live records, each once, ascending bytewise.",
        types
    ),
    case!(
        "store.types_with_nul",
        "store.types",
        "Types that hold a NUL are listed, each as a type of its own.",
        types_with_nul
    ),
    case!(
        "store.empty_type",
        "store.types",
        "The empty type is a type: listed, once, while it has records.",
        empty_type
    )
    .alone(),
    case!(
        "store.server_info",
        "store.info",
        "ServerInfo holds a server version above 0 that stays, the latest change's version, and an earliest one not above it.",
        server_info
    ),
    case!(
        "store.latest_is_exact",
        "store.info",
        "Without other writers the latest version is that of the last Put, and reads do not move it.",
        latest_is_exact
    )
    .alone(),
    case!(
        "store.clear_empties",
        "clear.empties",
        "Clear removes all records and types; whatever is put afterwards is there.",
        clear_empties
    )
    .alone(),
    case!(
        "store.clear_server_version",
        "clear.server_version",
        "Clear answers the old and the new server version, which differ, are not 0, and are what all answers say before and after.",
        clear_server_version
    )
    .alone(),
    case!(
        "store.clear_ends_streams",
        "clear.aborts_streams",
        "Clear ends every open Sync, typed or not, idle or not, with ABORTED.",
        clear_ends_streams
    )
    .alone(),
    case!(
        "store.clear_refuses_old_streams",
        "clear.aborts_streams",
        "A Sync with the old server version is ABORTED `invalid server version`, and SyncLatest leads to one that works.",
        clear_refuses_old_streams
    )
    .alone(),
    case!(
        "store.clear_required_options",
        "clear.required_options",
        "The options that Pomerium needs are there again after Clear, and work.",
        clear_required_options
    )
    .alone(),
    case!(
        "store.clear_other_options",
        "clear.options",
        "All other options are gone after Clear.",
        clear_other_options
    )
    .alone(),
    case!(
        "store.clear_keeps_leases",
        "clear.keeps",
        "Leases stay held through Clear.",
        clear_keeps_leases
    )
    .alone(),
    case!(
        "store.clear_keeps_services",
        "clear.keeps",
        "Reported services stay listed through Clear.",
        clear_keeps_services
    )
    .alone(),
    case!(
        "store.clear_resets_checkpoint",
        "clear.checkpoint",
        "The checkpoint is zero after Clear.",
        clear_resets_checkpoint
    )
    .alone(),
    case!(
        "store.clear_among_writers",
        "clear.atomic",
        "A Put that races with Clear is before it or after it: its answer's server version says which, and what was after it stays.",
        clear_among_writers
    )
    .alone(),
];

async fn types(broker: Broker) -> CheckResult {
    lists(&broker, ["b", "a", "", "\u{e9}", "B", "ab"]).await
}

async fn types_with_nul(broker: Broker) -> CheckResult {
    lists(&broker, ["", "\0", "a\0", "a\0b", "a", "a\0\0"]).await
}

/// Checks that types with these ends are listed.
async fn lists(broker: &Broker, ends: [&str; 6]) -> CheckResult {
    let prefix = broker.unique();
    let mut mine: Vec<String> = ends.map(|end| format!("{prefix}{end}")).to_vec();
    for record_type in &mine {
        broker
            .put(vec![
                session_record(record_type, "1", "alice"),
                session_record(record_type, "2", "alice"),
            ])
            .await?;
    }
    mine.sort();
    let listed = broker.types().await?;
    ensure!(listed.is_sorted_by(|a, b| a < b), "the types do not ascend, or repeat");
    let listed: Vec<String> = listed.into_iter().filter(|name| name.starts_with(&prefix)).collect();
    ensure!(listed == mine, "expected {mine:?}, got {listed:?}");
    Ok(())
}

async fn empty_type(broker: Broker) -> CheckResult {
    let ids = [broker.unique(), broker.unique()];
    for id in &ids {
        let put = broker.put_one(session_record("", id, "alice")).await?;
        ensure!(broker.get("", id).await? == put, "Get differs");
    }
    let listed = broker.types().await?;
    let count = listed.iter().filter(|name| name.is_empty()).count();
    ensure!(count == 1, "the empty type is listed {count} times");
    ensure!(
        listed.first().is_some_and(String::is_empty),
        "the empty type is not the first"
    );
    broker
        .put(ids.iter().map(|id| crate::records::deletion("", id)).collect())
        .await?;
    Ok(())
}

async fn server_info(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let first = broker.server_info().await?;
    ensure!(first.server_version != 0, "the server version is 0");
    let mut latest = first.latest_record_version;
    for n in 0..10 {
        let put = broker
            .put_one(session_record(&record_type, &n.to_string(), "alice"))
            .await?;
        let info = broker.server_info().await?;
        ensure!(
            info.server_version == first.server_version,
            "the server version has changed"
        );
        ensure!(
            info.latest_record_version >= put.version,
            "the latest version is below an answered one"
        );
        ensure!(
            info.latest_record_version >= latest,
            "the latest version went backwards"
        );
        ensure!(info.earliest_record_version <= info.latest_record_version, "{info:?}");
        latest = info.latest_record_version;
    }
    Ok(())
}

async fn latest_is_exact(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker.get(&record_type, "1").await?;
    broker.all(&record_type).await?;
    broker.latest(&record_type).await?;
    let latest = broker.server_info().await?.latest_record_version;
    ensure!(
        latest == put.version,
        "the latest version is {latest}, that of the last Put {}",
        put.version
    );
    Ok(())
}

async fn clear_empties(broker: Broker) -> CheckResult {
    let types = [broker.unique(), broker.unique()];
    for record_type in &types {
        broker.put_one(session_record(record_type, "1", "alice")).await?;
    }
    broker.clear().await?;
    for record_type in &types {
        refused_with(broker.get(record_type, "1").await, Code::NotFound, "record not found")?;
        ensure!(broker.all(record_type).await?.is_empty(), "Query still finds records");
        ensure!(
            broker.latest(record_type).await?.records.is_empty(),
            "SyncLatest still gives records"
        );
    }
    let listed = broker.types().await?;
    ensure!(
        !types.iter().any(|name| listed.contains(name)),
        "ListTypes still names {listed:?}"
    );
    let [record_type, _] = types;
    let put = broker.put_one(session_record(&record_type, "2", "bob")).await?;
    ensure!(
        broker.all(&record_type).await? == [put],
        "what was put after Clear differs"
    );
    Ok(())
}

async fn clear_server_version(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut last = broker.server_info().await?.server_version;
    for _ in 0..3 {
        let cleared = broker.clear().await?;
        ensure!(cleared.old_server_version == last, "{cleared:?} after {last}");
        last = cleared.new_server_version;
        ensure!(last != 0 && last != cleared.old_server_version, "{cleared:?}");
        ensure!(
            broker.server_info().await?.server_version == last,
            "ServerInfo says another one"
        );
        let put = broker.put(vec![session_record(&record_type, "1", "alice")]).await?;
        ensure!(put.server_version == last, "Put says another one");
        let latest = broker.latest(&record_type).await?;
        ensure!(latest.versions.server_version == last, "SyncLatest says another one");
    }
    Ok(())
}

async fn clear_ends_streams(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut streams = Vec::new();
    for stream_type in [record_type.as_str(), "", &broker.unique()] {
        streams.push((stream_type.to_owned(), broker.follow_from_here(stream_type).await?));
    }
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    for (stream_type, stream) in &mut streams {
        if stream_type.is_empty() || *stream_type == record_type {
            stream.record().await?;
        }
    }
    broker.clear().await?;
    for (stream_type, stream) in streams {
        let (code, message) = stream.end().await?;
        ensure!(
            code == Code::Aborted,
            "the stream of {stream_type:?} ended with {code:?} ({message})"
        );
    }
    Ok(())
}

async fn clear_refuses_old_streams(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let old = broker.clear().await?.old_server_version;
    for wait in [false, true] {
        let stream = broker.sync(SyncRequest {
            server_version: old,
            record_version: put.version,
            r#type: record_type.clone(),
            wait: Some(wait),
        });
        let end = stream.end().await?;
        ensure!(end == (Code::Aborted, "invalid server version".to_owned()), "{end:?}");
    }
    let versions = broker.latest(&record_type).await?.versions;
    let mut stream = broker.follow(&record_type, versions.server_version, versions.latest_record_version);
    let put = broker.put_one(session_record(&record_type, "2", "bob")).await?;
    ensure!(stream.record().await? == put, "the new stream differs");
    Ok(())
}

async fn clear_required_options(broker: Broker) -> CheckResult {
    broker.clear().await?;
    required_options(&broker).await?;
    let record_type = "type.googleapis.com/session.SessionBinding";
    let id = broker.unique();
    let binding = crate::records::SessionBinding {
        session_id: id.clone(),
        ..crate::records::SessionBinding::default()
    };
    broker
        .put_one(crate::records::record(record_type, &id, crate::records::any(&binding)))
        .await?;
    let found = broker
        .filter(record_type, &serde_json::json!({ "session_id": id }))
        .await?;
    ensure!(found == [id], "the indexed field finds {found:?}");
    Ok(())
}

async fn clear_other_options(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let options = Options {
        capacity: Some(1),
        ..Options::default()
    };
    broker.set_options(&record_type, options).await?;
    broker.clear().await?;
    refused(broker.options(&record_type).await, &[Code::NotFound])?;
    broker
        .put(vec![
            session_record(&record_type, "1", "alice"),
            session_record(&record_type, "2", "alice"),
        ])
        .await?;
    ensure!(
        broker.all(&record_type).await?.len() == 2,
        "the old capacity still counts"
    );
    Ok(())
}

async fn clear_keeps_leases(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let length = std::time::Duration::from_secs(600);
    let id = leases::acquire(&broker, &name, length).await?;
    broker.clear().await?;
    refused(leases::acquire(&broker, &name, length).await, &[Code::AlreadyExists])?;
    leases::renew_as(&broker, &name, &id, length)
        .await
        .context("the holder's renewal")?;
    Ok(())
}

async fn clear_keeps_services(broker: Broker) -> CheckResult {
    let service = Service {
        kind: 4,
        endpoint: format!("http://{}", broker.unique()),
    };
    let report = RegisterRequest {
        services: vec![service.clone()],
        ..RegisterRequest::default()
    };
    broker.registry().report(report).await?;
    broker.clear().await?;
    let listed = broker.registry().list(ListRequest::default()).await?.into_inner();
    ensure!(listed.services.contains(&service), "the service is gone");
    Ok(())
}

async fn clear_resets_checkpoint(broker: Broker) -> CheckResult {
    let checkpoint = Some(Checkpoint {
        server_version: 1,
        record_version: 2,
    });
    broker
        .checkpoint()
        .set_checkpoint(SetCheckpointRequest { checkpoint })
        .await?;
    broker.clear().await?;
    let got = broker
        .checkpoint()
        .get_checkpoint(GetCheckpointRequest {})
        .await?
        .into_inner();
    ensure!(got.checkpoint.unwrap_or_default() == Checkpoint::default(), "{got:?}");
    Ok(())
}

async fn clear_among_writers(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let (broker, record_type) = (broker.clone(), record_type.clone());
            tokio::spawn(async move {
                let mut answers = Vec::new();
                for n in 0..40 {
                    let records = (0..3)
                        .map(|part| session_record(&record_type, &format!("{writer}-{n}-{part}"), "alice"))
                        .collect();
                    answers.push(broker.put(records).await?);
                }
                anyhow::Ok(answers)
            })
        })
        .collect();
    let mut last = 0;
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        last = broker.clear().await?.new_server_version;
    }
    let mut expected = BTreeMap::new();
    for writer in writers {
        for answer in writer.await?? {
            if answer.server_version == last {
                expected.extend(answer.records.into_iter().map(|record| (record.id.clone(), record)));
            }
        }
    }
    let held = broker.all(&record_type).await?;
    ensure!(
        held.len() == expected.len() && held.iter().all(|record| expected.get(&record.id) == Some(record)),
        "after the last Clear {} records were answered, and {} are there",
        expected.len(),
        held.len()
    );
    Ok(())
}
