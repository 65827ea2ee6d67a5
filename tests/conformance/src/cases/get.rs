//! Get: one record by type and id.

use anyhow::ensure;
use bytes::Bytes;
use tonic::Code;

use crate::broker::{Broker, refused_with};
use crate::case::{Case, CheckResult, case};
use crate::records::{deletion, raw_any, record, session_record};

pub(super) const CASES: &[Case] = &[
    case!(
        "get.missing",
        "get.not_found",
        "Get of a record that was never there answers NOT_FOUND `record not found`.",
        missing
    ),
    case!(
        "get.deleted",
        "get.not_found",
        "Get of a deleted record answers NOT_FOUND `record not found`.",
        deleted
    ),
    case!(
        "get.other_type",
        "record.identity",
        "A record is found under its own type only: the same id under another type is another record.",
        other_type
    ),
    case!(
        "get.whole",
        "get.fields",
        "Get returns version, type, id, data and modified_at as Put has answered them, and no deleted_at.",
        whole
    ),
    case!(
        "get.literal",
        "record.identity",
        "Types and ids are literal: no trimming, no case folding, no patterns, no normal form.",
        literal
    ),
    case!(
        "get.newest",
        "read.own_writes",
        "After each Put, Get returns what that Put has written.",
        newest
    ),
];

async fn missing(broker: Broker) -> CheckResult {
    let result = broker.get(&broker.unique(), "missing").await;
    refused_with(result, Code::NotFound, "record not found")
}

async fn deleted(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker.put_one(deletion(&record_type, "1")).await?;
    refused_with(broker.get(&record_type, "1").await, Code::NotFound, "record not found")
}

async fn other_type(broker: Broker) -> CheckResult {
    let (one, two) = (broker.unique(), broker.unique());
    broker.put_one(session_record(&one, "1", "alice")).await?;
    refused_with(broker.get(&two, "1").await, Code::NotFound, "record not found")?;
    let second = broker.put_one(session_record(&two, "1", "bob")).await?;
    ensure!(
        broker.get(&two, "1").await? == second,
        "the second type's record differs"
    );
    broker.put_one(deletion(&two, "1")).await?;
    ensure!(
        broker.find(&one, "1").await?.is_some(),
        "deleting one type's record removed another's"
    );
    Ok(())
}

async fn whole(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let sent = session_record(&record_type, "1", "alice");
    let answered = broker.put_one(sent.clone()).await?;
    let got = broker.get(&record_type, "1").await?;
    ensure!(got.version > 0 && got.version == answered.version, "version: {got:?}");
    ensure!(got.r#type == record_type && got.id == "1", "key: {got:?}");
    ensure!(got.data == sent.data, "data: {got:?}");
    ensure!(
        got.modified_at.is_some() && got.modified_at == answered.modified_at,
        "modified_at: {got:?}"
    );
    ensure!(got.deleted_at.is_none(), "deleted_at: {got:?}");
    Ok(())
}

async fn literal(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let ids = [
        "a", "A", " a", "a ", "a%", "a*", "a/", "\u{e9}", "e\u{301}", "a.b", "%", "_", "'", "\"", "\\", "a\nb",
    ];
    let records = ids
        .iter()
        .map(|id| record(&record_type, id, raw_any("example.com/text", (*id).into())))
        .collect();
    broker.put(records).await?;
    for id in ids {
        let got = broker.get(&record_type, id).await?;
        let expected: Bytes = raw_any("example.com/text", id.into());
        ensure!(got.id == id && got.data == Some(expected), "id {id:?} found {got:?}");
    }
    for id in ["", "b", "a_", "A ", "a.", "%%"] {
        ensure!(broker.find(&record_type, id).await?.is_none(), "id {id:?} was found");
    }
    ensure!(
        broker.find(&record_type.to_uppercase(), "a").await?.is_none(),
        "the type's case was ignored"
    );
    Ok(())
}

async fn newest(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for round in 0..20 {
        let put = broker
            .put_one(session_record(&record_type, "1", &format!("user-{round}")))
            .await?;
        let got = broker.get(&record_type, "1").await?;
        ensure!(got == put, "round {round}: put {put:?}, got {got:?}");
    }
    Ok(())
}
