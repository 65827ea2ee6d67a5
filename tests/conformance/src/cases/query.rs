//! Query without filter and text: types, order, paging, counts.

use anyhow::{Context, ensure};
use databroker_proto::databroker::{QueryRequest, QueryResponse, Record};
use tonic::Code;

use crate::broker::{Broker, refused};
use crate::case::{Case, CheckResult, case};
use crate::records::{raw_any, record, session_record};

pub(super) const CASES: &[Case] = &[
    case!(
        "query.all",
        "query.all",
        "A Query by type returns all of its records, whole, and none of another type.",
        all
    ),
    case!(
        "query.order",
        "query.order",
        "Records come in bytewise order of their ids, whatever the order of their writes.",
        order
    ),
    case!(
        "query.limit_zero",
        "query.limit",
        "Limit 0 returns no records, with the right total.",
        limit_zero
    ),
    case!(
        "query.negative_limit",
        "query.bad_input",
        "A negative limit is INVALID_ARGUMENT and the server stays up.",
        negative_limit
    ),
    case!(
        "query.negative_offset",
        "query.bad_input",
        "A negative offset is INVALID_ARGUMENT and the server stays up.",
        negative_offset
    ),
    case!(
        "query.offset",
        "query.paging",
        "An offset skips so many; at or beyond the end it returns none, with the right total.",
        offset
    ),
    case!(
        "query.paging",
        "query.paging",
        "Pages by offset and limit, put together, are the whole, with the same total in each.",
        paging
    ),
    case!(
        "query.extreme_limit",
        "query.limit",
        "The largest limit returns all, the largest offset none.",
        extreme_limit
    ),
    case!(
        "query.no_such_type",
        "query.all",
        "A Query of a type without records succeeds with none and total 0.",
        no_such_type
    ),
    case!(
        "query.versions",
        "query.versions",
        "The answer holds the server version, and as record version at least the version of every Put answered before.",
        versions
    ),
    case!(
        "query.hint_ignored",
        "query.hint",
        "minimum_record_version_hint does not change the answer, not even one from the future.",
        hint_ignored
    ),
    case!(
        "query.every_type",
        "query.every_type",
        "A Query without type looks at all types, in bytewise order of type and then id.",
        every_type
    ),
    case!(
        "query.large_answer_fits",
        "query.size",
        "An answer is never larger than the 4 MiB that Pomerium's clients receive: more than that is refused, not lost silently.",
        large_answer_fits
    ),
];

async fn all(broker: Broker) -> CheckResult {
    let (one, two) = (broker.unique(), broker.unique());
    let mut sent: Vec<Record> = (0..150)
        .map(|n| session_record(&one, &format!("{n:03}"), "alice"))
        .collect();
    sent.push(session_record(&two, "1", "bob"));
    let put = broker.put(sent).await?.records;
    let found = broker.all(&one).await?;
    ensure!(
        Some(found.as_slice()) == put.get(..150),
        "Query returns {} of 150 as they were put",
        found.len()
    );
    Ok(())
}

async fn order(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let ids = [
        "b",
        "\u{e9}",
        "a0",
        "B",
        "",
        "a",
        "z",
        "a\0",
        "10",
        "9",
        "日",
        "\u{10ffff}",
        "A",
        "~",
    ];
    for id in ids {
        broker.put_one(session_record(&record_type, id, "alice")).await?;
    }
    let mut expected: Vec<&str> = ids.to_vec();
    expected.sort_unstable();
    let found = broker.all(&record_type).await?;
    let found: Vec<&str> = found.iter().map(|record| record.id.as_str()).collect();
    ensure!(found == expected, "expected {expected:?}, got {found:?}");
    Ok(())
}

async fn limit_zero(broker: Broker) -> CheckResult {
    let record_type = with_ten(&broker).await?;
    let response = page(&broker, &record_type, 0, 0).await?;
    ensure!(response.records.is_empty(), "{} records", response.records.len());
    ensure!(response.total_count == 10, "total {}", response.total_count);
    Ok(())
}

async fn negative_limit(broker: Broker) -> CheckResult {
    let record_type = with_ten(&broker).await?;
    for limit in [-1, i64::MIN] {
        refused(page(&broker, &record_type, 0, limit).await, &[Code::InvalidArgument])
            .with_context(|| format!("limit {limit}"))?;
    }
    page(&broker, &record_type, 0, 1).await.context("the server after it")?;
    Ok(())
}

async fn negative_offset(broker: Broker) -> CheckResult {
    let record_type = with_ten(&broker).await?;
    for offset in [-1, i64::MIN] {
        refused(page(&broker, &record_type, offset, 1).await, &[Code::InvalidArgument])
            .with_context(|| format!("offset {offset}"))?;
    }
    page(&broker, &record_type, 0, 1).await.context("the server after it")?;
    Ok(())
}

async fn offset(broker: Broker) -> CheckResult {
    let record_type = with_ten(&broker).await?;
    for (offset, expected) in [(0, 10), (1, 9), (9, 1), (10, 0), (11, 0), (1_000_000, 0)] {
        let response = page(&broker, &record_type, offset, 100).await?;
        ensure!(
            (response.records.len(), response.total_count) == (expected, 10),
            "offset {offset} gives {} of {}",
            response.records.len(),
            response.total_count
        );
        ensure!(
            response
                .records
                .first()
                .is_none_or(|first| first.id == offset.to_string()),
            "offset {offset} begins with {:?}",
            response.records.first()
        );
    }
    Ok(())
}

async fn paging(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let sent = (0..103)
        .map(|n| session_record(&record_type, &format!("{n:03}"), "alice"))
        .collect();
    let put = broker.put(sent).await?.records;
    for size in [1, 7, 64, 102, 103, 104] {
        let mut pages = Vec::new();
        loop {
            let response = page(&broker, &record_type, i64::try_from(pages.len())?, size).await?;
            ensure!(response.total_count == 103, "total {}", response.total_count);
            ensure!(response.records.len() <= usize::try_from(size)?, "a page is too large");
            if response.records.is_empty() {
                break;
            }
            pages.extend(response.records);
        }
        ensure!(pages == put, "pages of {size} make {} records, or others", pages.len());
    }
    Ok(())
}

async fn extreme_limit(broker: Broker) -> CheckResult {
    let record_type = with_ten(&broker).await?;
    let response = page(&broker, &record_type, 0, i64::MAX).await?;
    ensure!(response.records.len() == 10, "{} records", response.records.len());
    let response = page(&broker, &record_type, i64::MAX, i64::MAX).await?;
    ensure!(
        response.records.is_empty() && response.total_count == 10,
        "the largest offset: {response:?}"
    );
    Ok(())
}

async fn no_such_type(broker: Broker) -> CheckResult {
    let response = page(&broker, &broker.unique(), 0, 10).await?;
    ensure!(response.records.is_empty() && response.total_count == 0, "{response:?}");
    ensure!(response.server_version != 0, "the server version is 0");
    Ok(())
}

async fn versions(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for _ in 0..10 {
        let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
        // Of another type, since the record version counts over all types.
        let response = page(&broker, &broker.unique(), 0, 1).await?;
        ensure!(
            response.record_version >= put.version,
            "record version {} after version {} was answered",
            response.record_version,
            put.version
        );
        let info = broker.server_info().await?;
        ensure!(response.server_version == info.server_version, "server version");
        ensure!(
            response.record_version <= info.latest_record_version,
            "the record version went backwards"
        );
    }
    Ok(())
}

async fn hint_ignored(broker: Broker) -> CheckResult {
    let record_type = with_ten(&broker).await?;
    for hint in [0, 1, u64::MAX] {
        let request = QueryRequest {
            r#type: record_type.clone(),
            limit: 100,
            minimum_record_version_hint: Some(hint),
            ..QueryRequest::default()
        };
        let response = broker.query(request).await.with_context(|| format!("hint {hint}"))?;
        ensure!(
            response.records.len() == 10,
            "hint {hint} gives {} records",
            response.records.len()
        );
    }
    Ok(())
}

async fn every_type(broker: Broker) -> CheckResult {
    // A filter by id keeps the answer small, whatever else is in the store.
    let id = broker.unique();
    let types: Vec<String> = (0..3).map(|_| broker.unique()).collect();
    for record_type in types.iter().rev() {
        broker
            .put(vec![
                session_record(record_type, &id, "alice"),
                session_record(record_type, &format!("{id}/other"), "alice"),
            ])
            .await?;
    }
    let request = QueryRequest {
        limit: 100,
        filter: Some(crate::records::json_struct(&serde_json::json!({ "id": id }))),
        ..QueryRequest::default()
    };
    let response = broker.query(request).await?;
    let found: Vec<&String> = response.records.iter().map(|record| &record.r#type).collect();
    ensure!(
        found == types.iter().collect::<Vec<_>>(),
        "expected {types:?}, got {found:?}"
    );
    ensure!(response.total_count == 3, "total {}", response.total_count);
    Ok(())
}

async fn large_answer_fits(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for n in 0..6 {
        let data = raw_any("example.com/large", vec![n; 1 << 20]);
        broker.put_one(record(&record_type, &n.to_string(), data)).await?;
    }
    // The suite's client takes 4 MiB, as Pomerium's do: a larger answer is OUT_OF_RANGE here.
    match page(&broker, &record_type, 0, 100).await {
        Ok(response) => {
            ensure!(response.total_count == 6, "total {}", response.total_count);
            ensure!(!response.records.is_empty(), "no records at all");
        }
        Err(status) => ensure!(
            status.code() == Code::ResourceExhausted,
            "neither a cut answer nor RESOURCE_EXHAUSTED but {:?} ({})",
            status.code(),
            status.message()
        ),
    }
    for offset in 0..6 {
        let response = page(&broker, &record_type, offset, 1).await?;
        ensure!(
            response.records.len() == 1,
            "offset {offset} gives {} records",
            response.records.len()
        );
    }
    Ok(())
}

/// A type with the records "0" to "9".
async fn with_ten(broker: &Broker) -> anyhow::Result<String> {
    let record_type = broker.unique();
    let records = (0..10)
        .map(|n| session_record(&record_type, &n.to_string(), "alice"))
        .collect();
    broker.put(records).await?;
    Ok(record_type)
}

async fn page(broker: &Broker, record_type: &str, offset: i64, limit: i64) -> Result<QueryResponse, tonic::Status> {
    let request = QueryRequest {
        r#type: record_type.to_owned(),
        offset,
        limit,
        ..QueryRequest::default()
    };
    broker.query(request).await
}
