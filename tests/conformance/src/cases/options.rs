//! Options of a type: what is kept of them, and how they reach streams. What they do is in `retention` and `filter`.

use anyhow::{Context, ensure};
use databroker_proto::databroker::{Options, SetOptionsRequest, SyncRequest};
use prost_types::Duration;
use tonic::Code;

use crate::broker::{Broker, refused, refused_with};
use crate::case::{Case, CheckResult, case};
use crate::records::session_record;
use crate::stream::Event;

pub(super) const CASES: &[Case] = &[
    case!(
        "options.none",
        "options.not_found",
        "GetOptions of a type without options answers NOT_FOUND.",
        none
    ),
    case!(
        "options.empty_type",
        "options.bad_input",
        "GetOptions without a type answers INVALID_ARGUMENT `options req type is empty`.",
        empty_type
    ),
    case!(
        "options.kept",
        "options.kept",
        "SetOptions answers what it keeps, and GetOptions returns the same: capacity, fields and ttl.",
        kept
    ),
    case!(
        "options.replaced",
        "options.kept",
        "SetOptions replaces the options as a whole.",
        replaced
    ),
    case!(
        "options.capacity_zero",
        "options.kept",
        "Capacity 0 is kept apart from no capacity.",
        capacity_zero
    ),
    case!(
        "options.cleared",
        "options.cleared",
        "SetOptions with empty options removes them: it answers OK with empty options or NOT_FOUND, and GetOptions answers NOT_FOUND.",
        cleared
    ),
    case!(
        "options.absent_message",
        "options.cleared",
        "SetOptions without an options message answers OK, NOT_FOUND or INVALID_ARGUMENT, and records of the type can still be put.",
        absent_message
    ),
    case!(
        "options.bad_ttl",
        "options.bad_input",
        "A ttl that is negative or beyond what a time can hold is refused as INVALID_ARGUMENT or harmless, and the server stays up.",
        bad_ttl
    ),
    case!(
        "options.at_stream_start",
        "options.stream_start",
        "A typed Sync begins with the type's options, before any record; a type without options has none.",
        at_stream_start
    ),
    case!(
        "options.at_untyped_stream_start",
        "options.stream_start",
        "An untyped Sync begins with the options of the types that have records.",
        at_untyped_stream_start
    ),
    case!(
        "options.reach_open_stream",
        "options.reach_streams",
        "A change of options reaches an open stream of the type.",
        reach_open_stream
    ),
    case!(
        "options.reach_open_untyped_stream",
        "options.reach_streams",
        "A change of options reaches an open stream of all types.",
        reach_open_untyped_stream
    ),
    case!(
        "options.other_type_is_quiet",
        "options.reach_streams",
        "A change of another type's options does not reach a typed stream.",
        other_type_is_quiet
    ),
    case!(
        "options.required",
        "options.required",
        "The types that Pomerium needs indexes, capacity or ttl for have them without anybody's doing.",
        required
    ),
    case!(
        "options.many_fields",
        "options.kept",
        "A hundred indexed fields, nested, unknown and repeated ones among them, do not disturb writes.",
        many_fields
    ),
];

async fn none(broker: Broker) -> CheckResult {
    refused(broker.options(&broker.unique()).await, &[Code::NotFound])?;
    Ok(())
}

async fn empty_type(broker: Broker) -> CheckResult {
    refused_with(
        broker.options("").await,
        Code::InvalidArgument,
        "options req type is empty",
    )
}

async fn kept(broker: Broker) -> CheckResult {
    for options in [
        capacity(7),
        capacity(u64::from(u32::MAX) + 7),
        Options {
            indexable_fields: vec!["user_id".to_owned(), "id_token.subject".to_owned()],
            ..Options::default()
        },
        Options {
            ttl: Some(Duration { seconds: 900, nanos: 5 }),
            ..Options::default()
        },
        Options {
            capacity: Some(50_000),
            indexable_fields: vec!["key".to_owned()],
            ttl: Some(Duration {
                seconds: 86_400 * 365,
                nanos: 0,
            }),
        },
    ] {
        let record_type = broker.unique();
        let answered = broker.set_options(&record_type, options.clone()).await?;
        ensure!(answered == options, "SetOptions answers {answered:?} to {options:?}");
        let got = broker.options(&record_type).await?;
        ensure!(got == options, "GetOptions returns {got:?} after {options:?}");
    }
    Ok(())
}

async fn replaced(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.set_options(&record_type, capacity(7)).await?;
    broker.index(&record_type, &["user_id"]).await?;
    let got = broker.options(&record_type).await?;
    ensure!(got.capacity.is_none() && got.indexable_fields == ["user_id"], "{got:?}");
    Ok(())
}

async fn capacity_zero(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.set_options(&record_type, capacity(0)).await?;
    ensure!(broker.options(&record_type).await? == capacity(0), "not kept");
    Ok(())
}

async fn cleared(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.set_options(&record_type, capacity(7)).await?;
    match broker.set_options(&record_type, Options::default()).await {
        Ok(answered) => ensure!(answered == Options::default(), "answered {answered:?}"),
        Err(status) => ensure!(status.code() == Code::NotFound, "refused with {status:?}"),
    }
    refused(broker.options(&record_type).await, &[Code::NotFound])?;
    let put = (0..20)
        .map(|n| session_record(&record_type, &n.to_string(), "alice"))
        .collect();
    broker.put(put).await?;
    ensure!(
        broker.all(&record_type).await?.len() == 20,
        "the old capacity still counts"
    );
    Ok(())
}

async fn absent_message(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let request = SetOptionsRequest {
        r#type: record_type.clone(),
        options: None,
    };
    if let Err(status) = broker.data().set_options(request).await {
        let codes = [Code::NotFound, Code::InvalidArgument];
        ensure!(codes.contains(&status.code()), "refused with {status:?}");
    }
    broker
        .put_one(session_record(&record_type, "1", "alice"))
        .await
        .context("a Put after it")?;
    broker.server_info().await.context("the server after it")?;
    Ok(())
}

async fn bad_ttl(broker: Broker) -> CheckResult {
    for (seconds, nanos) in [
        (-1, 0),
        (0, -1),
        (i64::MAX, 0),
        (i64::MIN, 0),
        (1, 2_000_000_000),
        (1, -5),
    ] {
        let record_type = broker.unique();
        let options = Options {
            ttl: Some(Duration { seconds, nanos }),
            ..Options::default()
        };
        if let Err(status) = broker.set_options(&record_type, options).await {
            ensure!(
                status.code() == Code::InvalidArgument,
                "ttl {seconds} s {nanos} ns: {status:?}"
            );
        }
        broker.put_one(session_record(&record_type, "1", "alice")).await?;
        broker.get(&record_type, "1").await.context("the record put after it")?;
    }
    Ok(())
}

async fn at_stream_start(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.set_options(&record_type, capacity(7)).await?;
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let info = broker.server_info().await?;
    for wait in [false, true] {
        let mut stream = broker.sync(SyncRequest {
            server_version: info.server_version,
            record_version: put.version - 1,
            r#type: record_type.clone(),
            wait: Some(wait),
        });
        let options = stream.options().await?;
        ensure!(options.type_url == record_type, "options of {:?}", options.type_url);
        ensure!(options.options == Some(capacity(7)), "{options:?}");
        ensure!(stream.record().await? == put, "the record differs");
    }
    let mut stream = broker.follow_from_here(&broker.unique()).await?;
    stream.silent().await
}

async fn at_untyped_stream_start(broker: Broker) -> CheckResult {
    let (with, without) = (broker.unique(), broker.unique());
    broker.set_options(&with, capacity(7)).await?;
    broker
        .put(vec![
            session_record(&with, "1", "alice"),
            session_record(&without, "1", "alice"),
        ])
        .await?;
    let mut stream = broker.follow_from_here("").await?;
    let options = stream.options().await?;
    ensure!(
        options.type_url == with && options.options == Some(capacity(7)),
        "{options:?}"
    );
    stream.silent().await
}

async fn reach_open_stream(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here(&record_type).await?;
    // Seeing a record proves that the stream is open.
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    stream.record().await?;
    for expected in [capacity(7), capacity(8)] {
        broker.set_options(&record_type, expected.clone()).await?;
        let options = stream.options().await.context("after SetOptions")?;
        ensure!(
            options.type_url == record_type && options.options == Some(expected),
            "{options:?}"
        );
    }
    let put = broker.put_one(session_record(&record_type, "2", "alice")).await?;
    ensure!(stream.record().await? == put, "the stream differs after the options");
    Ok(())
}

async fn reach_open_untyped_stream(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut stream = broker.follow_from_here("").await?;
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    stream.record().await?;
    broker.set_options(&record_type, capacity(7)).await?;
    let options = stream.options().await.context("after SetOptions")?;
    ensure!(
        options.type_url == record_type && options.options == Some(capacity(7)),
        "{options:?}"
    );
    Ok(())
}

async fn other_type_is_quiet(broker: Broker) -> CheckResult {
    let (mine, other) = (broker.unique(), broker.unique());
    let mut stream = broker.follow_from_here(&mine).await?;
    broker.put_one(session_record(&mine, "1", "alice")).await?;
    stream.record().await?;
    broker.set_options(&other, capacity(7)).await?;
    let put = broker.put_one(session_record(&mine, "2", "alice")).await?;
    let event = stream.event().await?;
    ensure!(event == Event::Record(put), "{event:?}");
    Ok(())
}

async fn required(broker: Broker) -> CheckResult {
    required_options(&broker).await
}

async fn many_fields(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut fields: Vec<String> = (0..97).map(|n| format!("no_such_field_{n}")).collect();
    fields.extend(["user_id", "user_id", "oauth_token.access_token"].map(str::to_owned));
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    broker.index(&record_type, &fields).await?;
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let found = broker
        .filter(&record_type, &serde_json::json!({ "user_id": "alice" }))
        .await?;
    ensure!(found == ["1"], "found {found:?}");
    Ok(())
}

/// Checks the options that Pomerium relies on.
pub(super) async fn required_options(broker: &Broker) -> CheckResult {
    let quarter = Some(Duration {
        seconds: 15 * 60,
        nanos: 0,
    });
    for (name, capacity, fields, ttl) in [
        ("session.SessionBindingRequest", Some(50_000), &["key"][..], quarter),
        ("session.SessionBinding", None, &["session_id", "user_id"], None),
        ("session.IdentityBinding", None, &["user_id"], None),
        ("oauth21.UpstreamMCPToken", None, &["user_id", "route_id"], None),
        ("oauth21.PendingUpstreamAuth", None, &["state_id"], quarter),
    ] {
        let record_type = format!("type.googleapis.com/{name}");
        let got = broker.options(&record_type).await.with_context(|| name.to_owned())?;
        let expected = Options {
            capacity,
            indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            ttl,
        };
        ensure!(got == expected, "{name}: expected {expected:?}, got {got:?}");
    }
    Ok(())
}

/// Options with a capacity alone.
fn capacity(capacity: u64) -> Options {
    Options {
        capacity: Some(capacity),
        ..Options::default()
    }
}
