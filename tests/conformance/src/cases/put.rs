//! Put: many records, all or none, in their order.

use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use bytes::Bytes;
use databroker_proto::databroker::Record;
use tonic::Code;

use crate::broker::{Broker, refused};
use crate::case::{Case, CheckResult, case};
use crate::records::{any, deletion, json_struct, raw_any, record, session_record, timestamp};

pub(super) const CASES: &[Case] = &[
    case!(
        "put.answer",
        "put.answer",
        "The answer holds the request's records, in their order and number, with the server's version and modified_at, and the server version.",
        answer
    ),
    case!(
        "put.versions",
        "versions.ascending",
        "Versions ascend within a Put and from one Put to the next, across types.",
        versions
    ),
    case!(
        "put.ignores_client_fields",
        "put.server_fields",
        "The version and modified_at that a client sends are ignored.",
        ignores_client_fields
    ),
    case!(
        "put.modified_at_is_now",
        "put.server_fields",
        "modified_at is the server's time of the write, and moves on with each write.",
        modified_at_is_now
    ),
    case!(
        "put.replaces",
        "put.upsert",
        "Put of a record that is there replaces it as a whole and gives it a new version.",
        replaces
    ),
    case!(
        "put.same_data",
        "put.upsert",
        "Put of the same data again is a change like any other, with a new version.",
        same_data
    ),
    case!(
        "put.same_key_twice",
        "put.order",
        "A key that stands twice in one Put is written twice, in order, with two versions; the last one stays.",
        same_key_twice
    ),
    case!(
        "put.delete_then_upsert",
        "put.order",
        "Steps on one key apply in order: delete then upsert leaves a record, upsert then delete leaves none.",
        delete_then_upsert
    ),
    case!(
        "put.empty",
        "put.empty",
        "A Put without records succeeds and changes nothing.",
        empty
    ),
    case!(
        "put.unknown_type",
        "data.opaque",
        "An Any of a type that the server cannot know is stored and returned byte for byte, by Get, Query, SyncLatest and Sync.",
        unknown_type
    ),
    case!(
        "put.unknown_fields",
        "data.opaque",
        "Fields that a known type does not have, and an order of fields that no encoder writes, are kept byte for byte.",
        unknown_fields
    ),
    case!(
        "put.garbage_value",
        "data.opaque",
        "A known type whose bytes cannot be decoded is stored and returned byte for byte.",
        garbage_value
    ),
    case!(
        "put.no_data",
        "data.absent",
        "A record without data is stored and comes back without data.",
        no_data
    ),
    case!(
        "put.empty_any",
        "data.empty_any",
        "A record whose data is an empty Any is stored and comes back with an empty Any.",
        empty_any
    ),
    case!(
        "put.malformed_any",
        "put.atomic",
        "A Put with a member whose data is no Any is refused and changes nothing, since no client could read a stream that holds it.",
        malformed_any
    ),
    case!(
        "put.too_large_is_atomic",
        "put.atomic",
        "A Put that is too large as a whole changes nothing.",
        too_large_is_atomic
    ),
    case!(
        "put.many_types",
        "put.atomic",
        "One Put over 500 types is applied as a whole.",
        many_types
    ),
    case!(
        "put.unicode_keys",
        "record.identity",
        "Types and ids may be any text: empty, NUL, other scripts, the highest code point.",
        unicode_keys
    ),
    case!(
        "put.type_differs_from_data",
        "record.identity",
        "The record's type need not be the data's: JSON under a directory type is kept as it is.",
        type_differs_from_data
    ),
    case!(
        "put.metadata_is_optional",
        "put.answer",
        "x-request-id and unknown metadata do not matter.",
        metadata_is_optional
    ),
];

async fn answer(broker: Broker) -> CheckResult {
    let (one, two) = (broker.unique(), broker.unique());
    let sent = vec![
        session_record(&two, "b", "bob"),
        session_record(&one, "a", "alice"),
        session_record(&two, "a", "alice"),
    ];
    let response = broker.put(sent.clone()).await?;
    let info = broker.server_info().await?;
    ensure!(response.server_version != 0, "the server version is 0");
    ensure!(
        response.server_version == info.server_version,
        "the server version differs from ServerInfo's"
    );
    ensure!(
        response.records.len() == sent.len(),
        "{} records",
        response.records.len()
    );
    for (sent, got) in sent.iter().zip(&response.records) {
        ensure!((&got.r#type, &got.id) == (&sent.r#type, &sent.id), "order: {got:?}");
        ensure!(got.data == sent.data, "data: {got:?}");
        ensure!(
            got.version > 0 && got.version <= info.latest_record_version,
            "version: {got:?}"
        );
        ensure!(got.modified_at.is_some(), "modified_at: {got:?}");
        ensure!(got.deleted_at.is_none(), "deleted_at: {got:?}");
        ensure!(
            broker.get(&got.r#type, &got.id).await? == *got,
            "Get differs from the answer"
        );
    }
    Ok(())
}

async fn versions(broker: Broker) -> CheckResult {
    let (one, two) = (broker.unique(), broker.unique());
    let mut last = broker.server_info().await?.latest_record_version;
    for round in 0..10 {
        let records = (0..5)
            .map(|n| session_record(if n % 2 == 0 { &two } else { &one }, &format!("{round}-{n}"), "alice"))
            .collect();
        for record in broker.put(records).await?.records {
            ensure!(record.version > last, "version {} came after {last}", record.version);
            last = record.version;
        }
    }
    Ok(())
}

async fn ignores_client_fields(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let sent = Record {
        version: u64::MAX,
        modified_at: Some(timestamp(1)),
        ..session_record(&record_type, "1", "alice")
    };
    let put = broker.put_one(sent).await?;
    ensure!(put.version < u64::MAX, "the client's version was taken");
    ensure!(put.modified_at != Some(timestamp(1)), "the client's time was taken");
    ensure!(
        broker.get(&record_type, "1").await? == put,
        "Get differs from the answer"
    );
    Ok(())
}

async fn modified_at_is_now(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut last = None;
    for _ in 0..3 {
        let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
        let modified = put.modified_at.context("no modified_at")?;
        let modified = SystemTime::try_from(modified).context("modified_at")?;
        let distance = match SystemTime::now().duration_since(modified) {
            Ok(age) => age,
            Err(ahead) => ahead.duration(),
        };
        // Wide, for clocks of different machines; what it tells apart is "now" from the client's or no time.
        ensure!(distance < Duration::from_secs(300), "modified_at is {distance:?} off");
        ensure!(last <= Some(modified), "modified_at went backwards");
        last = Some(modified);
    }
    Ok(())
}

async fn replaces(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let first = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let user = crate::records::User {
        id: "1".to_owned(),
        ..crate::records::User::default()
    };
    let second = broker.put_one(record(&record_type, "1", any(&user))).await?;
    ensure!(second.version > first.version, "no new version");
    let got = broker.get(&record_type, "1").await?;
    ensure!(got.data == Some(any(&user)), "the record was not replaced: {got:?}");
    ensure!(
        broker.all(&record_type).await?.len() == 1,
        "there is more than one record"
    );
    Ok(())
}

async fn same_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let first = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let second = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    ensure!(second.version > first.version, "no new version");
    ensure!(
        stream.records(2).await? == [first, second],
        "the stream differs from the answers"
    );
    Ok(())
}

async fn same_key_twice(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let sent = vec![
        session_record(&record_type, "1", "first"),
        session_record(&record_type, "2", "other"),
        session_record(&record_type, "1", "second"),
    ];
    let response = broker.put(sent.clone()).await?;
    let versions: Vec<u64> = response.records.iter().map(|record| record.version).collect();
    ensure!(
        versions.is_sorted_by(|a, b| a < b),
        "versions do not ascend: {versions:?}"
    );
    for (sent, got) in sent.iter().zip(&response.records) {
        ensure!(sent.data == got.data, "the answer holds other data: {got:?}");
    }
    let last = response.records.last().context("no records in the answer")?;
    ensure!(
        broker.get(&record_type, "1").await? == *last,
        "the last one does not stay"
    );
    ensure!(
        stream.records(3).await? == response.records,
        "the stream differs from the answer"
    );
    Ok(())
}

async fn delete_then_upsert(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let response = broker
        .put(vec![
            deletion(&record_type, "1"),
            session_record(&record_type, "1", "bob"),
            session_record(&record_type, "2", "carol"),
            deletion(&record_type, "2"),
        ])
        .await?;
    ensure!(
        response.records.len() == 4,
        "{} records in the answer",
        response.records.len()
    );
    let left = broker.all(&record_type).await?;
    let ids: Vec<&str> = left.iter().map(|record| record.id.as_str()).collect();
    ensure!(ids == ["1"], "left over: {ids:?}");
    ensure!(
        left.first() == response.records.get(1),
        "the record is not the one that was put last"
    );
    Ok(())
}

async fn empty(broker: Broker) -> CheckResult {
    let response = broker.put(Vec::new()).await?;
    ensure!(response.records.is_empty(), "records in the answer");
    ensure!(
        response.server_version == broker.server_info().await?.server_version,
        "wrong server version"
    );
    Ok(())
}

async fn unknown_type(broker: Broker) -> CheckResult {
    // Neither the type nor the bytes mean anything.
    let data = raw_any("example.com/no.such.Type", (0..=255).cycle().take(5000).collect());
    kept(&broker, Some(data)).await
}

async fn unknown_fields(broker: Broker) -> CheckResult {
    // Field 20, then 2, then 1000 that the type does not have, then 2 again.
    let mut value = vec![0xa2, 0x01, 0x03, b'i', b'd', b'p', 0x12, 0x01, b'1'];
    value.extend([0xc2, 0x3e, 0x02, 0xff, 0x00]);
    value.extend([0x12, 0x01, b'2']);
    kept(&broker, Some(raw_any("type.googleapis.com/session.Session", value))).await
}

async fn garbage_value(broker: Broker) -> CheckResult {
    kept(
        &broker,
        Some(raw_any("type.googleapis.com/session.Session", vec![0xff; 9])),
    )
    .await
}

async fn no_data(broker: Broker) -> CheckResult {
    kept(&broker, None).await
}

async fn empty_any(broker: Broker) -> CheckResult {
    kept(&broker, Some(Bytes::new())).await
}

async fn malformed_any(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    // A length that goes beyond the end, a type URL that is no UTF-8, a wire type that does not exist.
    for data in [&[0x0a, 0x05, b'a'][..], &[0x0a, 0x02, 0xff, 0xfe], &[0x0f]] {
        let records = vec![
            session_record(&record_type, "good", "alice"),
            record(&record_type, "bad", Bytes::copy_from_slice(data)),
        ];
        refused(broker.put(records).await, &[Code::InvalidArgument, Code::Internal])
            .with_context(|| format!("data {data:x?}"))?;
        ensure!(
            broker.all(&record_type).await?.is_empty(),
            "part of the Put was applied"
        );
    }
    Ok(())
}

async fn too_large_is_atomic(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let large = raw_any("example.com/large", vec![1; 3 << 20]);
    let records = ["1", "2"].map(|id| record(&record_type, id, large.clone())).to_vec();
    refused(broker.put(records).await, &[Code::ResourceExhausted, Code::OutOfRange])?;
    ensure!(
        broker.all(&record_type).await?.is_empty(),
        "part of the Put was applied"
    );
    Ok(())
}

async fn many_types(broker: Broker) -> CheckResult {
    let types: Vec<String> = (0..500).map(|_| broker.unique()).collect();
    let records = types.iter().map(|name| session_record(name, "1", "alice")).collect();
    broker.put(records).await?;
    let listed = broker.types().await?;
    for name in types {
        ensure!(listed.binary_search(&name).is_ok(), "ListTypes lacks {name}");
    }
    Ok(())
}

async fn unicode_keys(broker: Broker) -> CheckResult {
    let prefix = broker.unique();
    for suffix in [
        "",
        "\0",
        "a\0b",
        "\u{10ffff}",
        "\u{fffd}",
        "日本語",
        "\u{202e}",
        "\u{feff}",
    ] {
        let record_type = format!("{prefix}{suffix}");
        for id in ["", "\0", "x\0y", "\u{10ffff}", "ключ", "🔑"] {
            let put = broker.put_one(session_record(&record_type, id, "alice")).await?;
            ensure!(
                put.id == id && put.r#type == record_type,
                "the answer holds another key: {put:?}"
            );
            ensure!(broker.get(&record_type, id).await? == put, "Get differs for id {id:?}");
        }
        let ids: Vec<String> = broker
            .all(&record_type)
            .await?
            .into_iter()
            .map(|record| record.id)
            .collect();
        let expected = ["", "\0", "x\0y", "ключ", "\u{10ffff}", "🔑"];
        let mut expected: Vec<String> = expected.map(str::to_owned).to_vec();
        expected.sort();
        ensure!(ids == expected, "type {record_type:?} holds {ids:?}");
    }
    Ok(())
}

async fn type_differs_from_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let json = json_struct(&serde_json::json!({ "id": "1", "groups": ["a", "b"], "nested": { "number": 1.5 } }));
    let data = any(&json);
    let put = broker.put_one(record(&record_type, "1", data.clone())).await?;
    ensure!(put.r#type == record_type, "the type was changed to {:?}", put.r#type);
    ensure!(
        broker.get(&record_type, "1").await?.data == Some(data),
        "the data was changed"
    );
    Ok(())
}

async fn metadata_is_optional(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut request = tonic::Request::new(databroker_proto::databroker::PutRequest {
        records: vec![session_record(&record_type, "1", "alice")],
    });
    request.metadata_mut().insert("x-request-id", "a request".parse()?);
    request.metadata_mut().insert("x-unknown", "anything".parse()?);
    request
        .metadata_mut()
        .insert_bin("x-unknown-bin", tonic::metadata::MetadataValue::from_bytes(&[0, 255]));
    broker.data().put(request).await?;
    broker.get(&record_type, "1").await?;
    Ok(())
}

/// Checks that data comes back byte for byte by every way there is.
async fn kept(broker: &Broker, data: Option<Bytes>) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    let sent = Record {
        data,
        ..session_record(&record_type, "1", "alice")
    };
    let put = broker.put_one(sent.clone()).await?;
    ensure!(put.data == sent.data, "Put's answer holds {:?}", put.data);
    let got = broker.get(&record_type, "1").await?;
    ensure!(got.data == sent.data, "Get returns {:?}", got.data);
    let queried = broker.all(&record_type).await?;
    ensure!(queried == [put.clone()], "Query returns {queried:?}");
    let latest = broker.latest(&record_type).await?;
    ensure!(
        latest.records == [put.clone()],
        "SyncLatest returns {:?}",
        latest.records
    );
    let synced = stream.record().await?;
    ensure!(synced == put, "Sync delivers {synced:?}");
    // What is kept must not disturb its neighbours either.
    let other = broker.put_one(session_record(&record_type, "2", "bob")).await?;
    ensure!(
        stream.record().await? == other,
        "the next change did not come as it was put"
    );
    broker
        .put_one(deletion(&record_type, "1"))
        .await
        .context("deleting it")?;
    let deleted = stream.record().await?;
    ensure!(
        deleted.deleted_at.is_some() && deleted.data == sent.data,
        "the tombstone is {deleted:?}"
    );
    Ok(())
}
