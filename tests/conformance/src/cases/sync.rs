//! Sync: the changes after a version, and then each new one.
//!
//! That versions ascend and types match is checked wherever a case reads such a stream.

use anyhow::{Context, bail, ensure};
use databroker_proto::databroker::{Record, SyncRequest};
use tonic::Code;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};
use crate::records::{deletion, raw_any, record, session_record};

pub(super) const CASES: &[Case] = &[
    case!(
        "sync.changes",
        "sync.changes",
        "Every change after the version comes once, in order, overwritten states and tombstones included, exactly as answered.",
        changes
    ),
    case!(
        "sync.new_changes",
        "sync.waits",
        "An open stream delivers changes as they are made.",
        new_changes
    ),
    case!(
        "sync.waits_by_default",
        "sync.waits",
        "Without `wait` a stream waits as with `wait: true`.",
        waits_by_default
    ),
    case!(
        "sync.ends_without_wait",
        "sync.no_wait",
        "With `wait: false` the stream ends with OK once it has caught up, also where there is nothing.",
        ends_without_wait
    ),
    case!(
        "sync.type",
        "sync.type",
        "A stream of one type shows that type alone, however much else is written.",
        of_type
    ),
    case!(
        "sync.every_type",
        "sync.every_type",
        "A stream without a type shows all types in one order of versions.",
        every_type
    ),
    case!(
        "sync.from_each_version",
        "sync.resume",
        "A stream that begins after any version returned by Put delivers exactly the changes after it.",
        from_each_version
    ),
    case!(
        "sync.wrong_server_version",
        "sync.server_version",
        "Another server version than the present one ends the stream with ABORTED `invalid server version`; so does 0.",
        wrong_server_version
    ),
    case!(
        "sync.future_version",
        "sync.future",
        "A record version beyond the latest is accepted: with `wait: false` the stream ends with OK, otherwise it waits.",
        future_version
    ),
    case!(
        "sync.largest_version",
        "sync.future",
        "The largest record version there is does not replay the log.",
        largest_version
    ),
    case!(
        "sync.from_start",
        "sync.resume",
        "From record version 0 a server that has kept all changes delivers them all; one that has not ends with ABORTED `invalid record version`.",
        from_start
    ),
    case!(
        "sync.quiet_while_idle",
        "sync.waits",
        "An idle stream stays open and says nothing.",
        quiet_while_idle
    ),
    case!(
        "sync.many_streams",
        "sync.fan_out",
        "Fifty streams at once, of which half are typed, each get every change once and in order.",
        many_streams
    )
    // Streams of all types get what other cases write, too, fifty times.
    .alone(),
    case!(
        "sync.slow_reader",
        "sync.slow_reader",
        "A stream that is not read delays neither writers nor other streams, and gets everything once it is read.",
        slow_reader
    ),
    case!(
        "sync.client_cancels",
        "sync.cancel",
        "Streams that clients drop, a hundred of them, do not disturb the server.",
        client_cancels
    ),
    case!(
        "sync.order_within_put",
        "put.order",
        "The members of a Put come in its order, so that whoever sees one finds those before it by Get.",
        order_within_put
    ),
];

async fn changes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?.latest_record_version;
    let first = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let other = broker.put_one(session_record(&record_type, "2", "alice")).await?;
    let second = broker.put_one(session_record(&record_type, "1", "bob")).await?;
    broker.put_one(deletion(&record_type, "2")).await?;
    let seen = broker.changes(&record_type, start).await?;
    ensure!(seen.len() == 4, "expected 4 changes, got {seen:?}");
    ensure!(
        seen.get(..3) == Some(&[first, other.clone(), second]),
        "the stream differs from the answers: {seen:?}"
    );
    let tombstone = seen.last().context("no tombstone")?;
    ensure!(
        tombstone.deleted_at.is_some() && tombstone.id == "2" && tombstone.data == other.data,
        "{tombstone:?}"
    );
    Ok(())
}

async fn new_changes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    for round in 0..50 {
        let put = broker
            .put_one(session_record(&record_type, &round.to_string(), "alice"))
            .await?;
        let seen = stream.record().await?;
        ensure!(seen == put, "put {put:?}, seen {seen:?}");
    }
    Ok(())
}

async fn waits_by_default(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let info = broker.server_info().await?;
    let mut stream = broker.sync(SyncRequest {
        server_version: info.server_version,
        record_version: info.latest_record_version,
        r#type: record_type.clone(),
        wait: None,
    });
    stream.silent().await?;
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    ensure!(stream.record().await? == put, "the change differs");
    Ok(())
}

async fn ends_without_wait(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?.latest_record_version;
    ensure!(
        broker.changes(&record_type, start).await?.is_empty(),
        "changes of a new type"
    );
    let put = broker
        .put(
            (0..200)
                .map(|n| session_record(&record_type, &n.to_string(), "alice"))
                .collect(),
        )
        .await?;
    ensure!(
        broker.changes(&record_type, start).await? == put.records,
        "the stream differs from the answer"
    );
    let last = put.records.last().context("no records")?.version;
    ensure!(
        broker.changes(&record_type, last).await?.is_empty(),
        "changes after the last one"
    );
    Ok(())
}

async fn of_type(broker: Broker) -> CheckResult {
    let (mine, other) = (broker.unique(), broker.unique());
    // A type whose name begins with the other's must not leak in either.
    let longer = format!("{mine}-longer");
    let mut stream = broker.follow_from_here(&mine).await?;
    let mut put = Vec::new();
    for round in 0..10 {
        for record_type in [&other, &longer, &mine] {
            let record = broker
                .put_one(session_record(record_type, &round.to_string(), "alice"))
                .await?;
            if *record_type == mine {
                put.push(record);
            }
        }
    }
    ensure!(stream.records(10).await? == put, "the stream differs from the answers");
    stream.silent().await
}

async fn every_type(broker: Broker) -> CheckResult {
    let types = [broker.unique(), broker.unique()];
    let mut stream = broker.follow_from_here("").await?;
    let mut put = Vec::new();
    for round in 0..10 {
        for record_type in &types {
            put.push(
                broker
                    .put_one(session_record(record_type, &round.to_string(), "alice"))
                    .await?,
            );
        }
    }
    ensure!(
        stream.records(put.len()).await? == put,
        "the stream differs from the answers"
    );
    Ok(())
}

async fn from_each_version(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut put = Vec::new();
    for round in 0..10 {
        let records = (0..7)
            .map(|n| session_record(&record_type, &format!("{n}"), &format!("{round}")))
            .collect();
        put.extend(broker.put(records).await?.records);
    }
    for start in &put {
        let expected: Vec<&Record> = put.iter().filter(|record| record.version > start.version).collect();
        let seen = broker.changes(&record_type, start.version).await?;
        ensure!(
            seen.iter().collect::<Vec<_>>() == expected,
            "after version {}, {} changes came, not {}",
            start.version,
            seen.len(),
            expected.len()
        );
    }
    Ok(())
}

async fn wrong_server_version(broker: Broker) -> CheckResult {
    let right = broker.server_info().await?;
    for wrong in [0, 1, right.server_version.wrapping_add(1), u64::MAX] {
        for wait in [None, Some(false), Some(true)] {
            let stream = broker.sync(SyncRequest {
                server_version: wrong,
                record_version: right.latest_record_version,
                r#type: broker.unique(),
                wait,
            });
            let end = stream.end().await?;
            ensure!(
                end == (Code::Aborted, "invalid server version".to_owned()),
                "server version {wrong}: {end:?}"
            );
        }
    }
    Ok(())
}

async fn future_version(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let info = broker.server_info().await?;
    let future = info.latest_record_version + 1_000_000_000;
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    ensure!(
        broker.changes(&record_type, future).await?.is_empty(),
        "changes from the past"
    );
    let mut stream = broker.follow(&record_type, info.server_version, future);
    broker.put_one(session_record(&record_type, "2", "alice")).await?;
    stream.silent().await
}

async fn largest_version(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let seen = broker.changes(&record_type, u64::MAX).await?;
    ensure!(seen.is_empty(), "{} changes came", seen.len());
    Ok(())
}

async fn from_start(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let info = broker.server_info().await?;
    let stream = broker.sync(SyncRequest {
        server_version: info.server_version,
        record_version: 0,
        r#type: record_type,
        wait: Some(false),
    });
    if info.earliest_record_version <= 1 {
        ensure!(stream.rest().await? == [put], "the changes differ");
    } else {
        let end = stream.end().await?;
        ensure!(end == (Code::Aborted, "invalid record version".to_owned()), "{end:?}");
    }
    Ok(())
}

async fn quiet_while_idle(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    for _ in 0..3 {
        stream.silent().await?;
        broker.put(Vec::new()).await?;
    }
    stream.silent().await
}

async fn many_streams(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut streams = Vec::new();
    for n in 0..50 {
        let stream_type = if n % 2 == 0 { record_type.as_str() } else { "" };
        streams.push(broker.follow_from_here(stream_type).await?);
    }
    let mut put = Vec::new();
    for round in 0..20 {
        let records = (0..5)
            .map(|n| session_record(&record_type, &format!("{round}-{n}"), "alice"))
            .collect();
        put.extend(broker.put(records).await?.records);
    }
    // All at once: a stream that nobody reads takes up its connection's window, and those of all types get what other cases
    // write, too.
    let put = &put;
    futures::future::try_join_all(streams.iter_mut().enumerate().map(|(n, stream)| async move {
        ensure!(
            stream.records(put.len()).await? == *put,
            "stream {n} differs from the answers"
        );
        anyhow::Ok(())
    }))
    .await?;
    Ok(())
}

async fn slow_reader(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let start = broker.server_info().await?;
    // With connections of their own, so that only the server can let one wait for the other.
    let mut slow = broker
        .apart()
        .follow(&record_type, start.server_version, start.latest_record_version);
    let mut quick = broker
        .apart()
        .follow(&record_type, start.server_version, start.latest_record_version);
    let mut put = Vec::new();
    for n in 0..40 {
        let data = raw_any("example.com/large", vec![1; 1 << 20]);
        let mut answer = broker.put_one(record(&record_type, &n.to_string(), data)).await?;
        ensure!(quick.record().await? == answer, "the quick stream differs");
        answer.data = None;
        put.push(answer);
    }
    for answer in put {
        let mut seen = slow.record().await.context("the slow stream")?;
        ensure!(
            seen.data.take().is_some_and(|data| data.len() > 1 << 20),
            "the slow stream lost data"
        );
        ensure!(seen == answer, "the slow stream gave {seen:?}, not {answer:?}");
    }
    // Without them the store would hold 40 MiB for each run.
    broker
        .put((0..40).map(|n| deletion(&record_type, &n.to_string())).collect())
        .await?;
    Ok(())
}

async fn client_cancels(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    for n in 0..100 {
        let mut stream = broker.follow_from_here(&record_type).await?;
        let put = broker
            .put_one(session_record(&record_type, &n.to_string(), "alice"))
            .await?;
        if n % 2 == 0 {
            ensure!(stream.record().await? == put, "the stream differs");
        }
    }
    let mut stream = broker.follow_from_here(&record_type).await?;
    let put = broker.put_one(session_record(&record_type, "last", "alice")).await?;
    ensure!(stream.record().await? == put, "the stream differs");
    Ok(())
}

async fn order_within_put(broker: Broker) -> CheckResult {
    let (binding, request) = (broker.unique(), broker.unique());
    let mut stream = broker.follow_from_here(&request).await?;
    for round in 0..50 {
        let id = round.to_string();
        let sent = vec![
            session_record(&binding, &id, "alice"),
            session_record(&request, &id, "alice"),
        ];
        let writer = broker.clone();
        let put = tokio::spawn(async move { writer.put(sent).await });
        let seen = stream.record().await?;
        if broker.find(&binding, &seen.id).await?.is_none() {
            bail!("the second member of a Put was seen before its first was there");
        }
        put.await??;
    }
    Ok(())
}
