//! Leases, services, durations and times of requests, at and beyond their bounds.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message as _;
use serde_json::json;

use super::*;

fn proto_duration_of(seconds: i64, nanos: i32) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos }
}

#[test]
fn durations_are_checked() {
    let most = (9_223_372_036, 854_775_807);
    let cases: &[(i64, i32, Result<Duration, &str>)] = &[
        (0, 1, Ok(Duration::from_nanos(1))),
        (30, 0, Ok(Duration::from_secs(30))),
        (1, 999_999_999, Ok(Duration::new(1, 999_999_999))),
        (most.0, most.1, Ok(MAX_DURATION)),
        (most.0, most.1 + 1, Err("too long")),
        (i64::MAX, 0, Err("too long")),
        (0, 0, Err("is 0")),
        (-1, 0, Err("negative")),
        (0, -1, Err("negative")),
        (-1, -1, Err("negative")),
        (i64::MIN, 0, Err("negative")),
        (i64::MIN, i32::MIN, Err("malformed")),
        (0, 1_000_000_000, Err("malformed")),
        (1, -1, Err("malformed")),
        (-1, 1, Err("malformed")),
        (1, i32::MIN, Err("malformed")),
    ];
    for (seconds, nanos, expected) in cases {
        match (
            duration("duration", Some(proto_duration_of(*seconds, *nanos))),
            expected,
        ) {
            (Ok(got), Ok(expected)) => {
                assert_eq!(got, *expected);
                assert_eq!(proto_duration(got), proto_duration_of(*seconds, *nanos));
            }
            (Err(Invalid(got)), Err(expected)) => assert!(got.contains(expected), "{seconds} {nanos}: {got}"),
            (got, expected) => unreachable!("{seconds} {nanos}: {got:?} instead of {expected:?}"),
        }
    }
    assert!(duration("ttl", None).unwrap_err().0.starts_with("ttl is missing"));
}

#[test]
fn leases_have_bounds() {
    let day = 24 * 60 * 60;
    assert_eq!(
        lease_duration(Some(proto_duration_of(day, 0))),
        Ok(Duration::from_secs(24 * 60 * 60))
    );
    for (duration, why) in [
        (Some(proto_duration_of(day, 1)), "24 h"),
        (Some(proto_duration_of(i64::MAX, 0)), "too long"),
        (Some(proto_duration_of(0, 0)), "is 0"),
        (None, "is missing"),
    ] {
        let Invalid(got) = lease_duration(duration).unwrap_err();
        assert!(got.starts_with("duration ") && got.contains(why), "{duration:?}: {got}");
    }
    assert_eq!(lease_text("name", "n".repeat(1024)), Ok("n".repeat(1024)));
    let Invalid(got) = lease_text("id", "n".repeat(1025)).unwrap_err();
    assert!(
        got.starts_with("id has 1025 bytes") && got.contains("1024 at most"),
        "{got}"
    );
}

#[test]
fn services_have_bounds() {
    let service = |kind: i32, endpoint: usize| registry_proto::Service {
        kind,
        endpoint: "e".repeat(endpoint),
    };
    let fine = service(ServiceKind::PrometheusMetrics.into(), 2048);
    assert_eq!(services(vec![fine.clone(); 1000]).unwrap().len(), 1000);
    assert_eq!(services(Vec::new()), Ok(Vec::new()));
    for (reported, why) in [
        (vec![fine.clone(); 1001], "services has 1001 entries: 1000 at most"),
        (
            vec![fine.clone(), service(1, 2049)],
            "services[1].endpoint has 2049 bytes",
        ),
        (vec![service(0, 1)], "services[0].kind is 0"),
        (vec![fine.clone(), fine.clone(), service(8, 1)], "services[2].kind is 8"),
        (vec![service(-1, 1)], "services[0].kind is -1"),
        (vec![service(i32::MAX, 1)], "services[0].kind is 2147483647"),
    ] {
        let Invalid(got) = services(reported).unwrap_err();
        assert!(got.contains(why), "{got}");
    }
}

#[test]
fn timestamps_reach_as_far_as_the_type() {
    for (nanoseconds, seconds, nanos) in [
        (0, 0, 0),
        (1_700_000_000_000_000_001, 1_700_000_000, 1),
        (-1, -1, 999_999_999),
        (i64::MAX, 9_223_372_036, 854_775_807),
        (i64::MIN, -9_223_372_037, 145_224_192),
    ] {
        assert_eq!(
            timestamp(Timestamp(nanoseconds)),
            prost_types::Timestamp { seconds, nanos }
        );
    }
}

fn text_record(id: &str, deleted_at: Option<prost_types::Timestamp>, data: Option<&'static [u8]>) -> proto::Record {
    proto::Record {
        version: 77,
        r#type: "t".to_owned(),
        id: id.to_owned(),
        data: data.map(Bytes::from_static),
        modified_at: Some(prost_types::Timestamp {
            seconds: i64::MIN,
            nanos: i32::MIN,
        }),
        deleted_at,
    }
}

#[test]
fn a_record_with_any_deletion_time_is_a_delete() {
    let absurd = prost_types::Timestamp {
        seconds: i64::MAX,
        nanos: -5,
    };
    let records = vec![
        text_record("a", None, Some(b"\x0a\x01x")),
        text_record("b", Some(absurd), None),
    ];
    let writes = writes(records).unwrap();
    assert_eq!((writes[0].key.id.as_str(), writes[0].delete), ("a", false));
    assert_eq!(writes[0].data.as_deref(), Some(&b"\x0a\x01x"[..]));
    assert_eq!((writes[1].key.id.as_str(), writes[1].delete), ("b", true));
}

#[test]
fn data_that_is_no_any_is_refused_by_its_place() {
    let secret_data = b"\x0a\xffsecret";
    let records = vec![
        text_record("a", None, Some(b"")),
        text_record("b", None, Some(secret_data)),
    ];
    let Invalid(message) = writes(records).unwrap_err();
    assert!(
        message.starts_with("records[1].data: ") && !message.contains("secret"),
        "{message}"
    );
}

fn value(kind: Kind) -> prost_types::Value {
    prost_types::Value { kind: Some(kind) }
}

fn object(name: &str, value: prost_types::Value) -> prost_types::Struct {
    prost_types::Struct {
        fields: [(name.to_owned(), value)].into(),
    }
}

fn filter(filter: prost_types::Struct) -> Result<Option<serde_json::Value>, String> {
    let request = proto::QueryRequest {
        filter: Some(filter),
        ..Default::default()
    };
    query(request)
        .map(|query| query.filter)
        .map_err(|error| error.to_string())
}

#[test]
fn filters_become_json() {
    let list = prost_types::ListValue {
        values: vec![
            value(Kind::NullValue(0)),
            prost_types::Value { kind: None },
            value(Kind::BoolValue(true)),
            value(Kind::NumberValue(1.5)),
            value(Kind::StructValue(object("b", value(Kind::StringValue("x".to_owned()))))),
        ],
    };
    let expected = json!({"a": [null, null, true, 1.5, {"b": "x"}]});
    assert_eq!(filter(object("a", value(Kind::ListValue(list)))), Ok(Some(expected)));

    for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let message = filter(object("age", value(Kind::NumberValue(number)))).unwrap_err();
        assert!(message.starts_with("invalid query filter: \"age\": "), "{message}");
    }

    let mut deep = object("x", value(Kind::BoolValue(true)));
    for _ in 0..MAX_FILTER_DEPTH {
        deep = object("x", value(Kind::StructValue(deep)));
    }
    assert!(filter(deep).unwrap_err().contains("deep"));
}

#[test]
fn an_empty_type_is_all_types_and_a_stream_waits_by_default() {
    let start = sync_start(proto::SyncRequest::default());
    assert_eq!((start.record_type, start.wait), (None, true));
    let start = sync_start(proto::SyncRequest {
        r#type: "t".to_owned(),
        wait: Some(false),
        ..Default::default()
    });
    assert_eq!((start.record_type.as_deref(), start.wait), (Some("t"), false));
}

fn stored(version: u64, data: usize) -> Record {
    Record {
        version,
        key: Key::new("type", "id"),
        data: Some(vec![0; data].into()),
        modified_at: Timestamp(i64::MAX),
        deleted_at: None,
    }
}

#[test]
fn a_query_answer_is_whole_or_refused() {
    let page = |records: u64| QueryPage {
        records: (0..records).map(|version| stored(version, 1 << 20)).collect(),
        total: 10,
        server_version: 5,
        latest_version: 10,
    };
    let answer = bounded(query_response(page(3))).unwrap();
    assert_eq!((answer.records.len(), answer.total_count), (3, 10));
    assert_eq!((answer.server_version, answer.record_version), (5, 10));
    assert_eq!(
        bounded(query_response(page(4))),
        Err(BrokerError::AnswerTooLarge(MAX_MESSAGE))
    );
}

#[test]
fn what_can_be_written_can_be_answered() {
    let request = |length: usize, records: usize| {
        let record = proto::Record {
            data: Some(vec![0; length].into()),
            ..Default::default()
        };
        proto::PutRequest {
            records: vec![record; records],
        }
    };
    let answer = |request: &proto::PutRequest| {
        let records = request.records.iter().map(|record| Record {
            version: u64::MAX,
            key: Key::new(record.r#type.clone(), record.id.clone()),
            data: record.data.clone(),
            modified_at: Timestamp(i64::MAX),
            deleted_at: Some(Timestamp(i64::MAX)),
        });
        put_response(Written {
            server_version: u64::MAX,
            records: records.collect(),
        })
        .encoded_len()
    };
    // The largest of each shape that passes is answered within what clients take.
    for (most, records) in [(MAX_MESSAGE, 1), (1 << 20, 4), (1_000, 5_000), (0, 200_000)] {
        let fits = |length: usize| check_answer(&request(length, records), records).is_ok();
        let refused = (0..=most).rev().step_by(64).find(|length| fits(*length));
        match refused {
            Some(length) => assert!(
                answer(&request(length, records)) <= MAX_MESSAGE,
                "{records} of {length}"
            ),
            None => assert!(answer(&request(0, records)) > MAX_MESSAGE, "{records} empty records"),
        }
    }
    assert!(check_answer(&request(MAX_MESSAGE - 4096, 1), 1).is_ok());
}

#[test]
fn a_change_is_encoded_once_for_all_streams() {
    let change = Arc::new(Change::new(stored(3, 10)));
    let send = || sync_messages(SyncPage::Recent(vec![Arc::clone(&change)])).next();
    let (Some(Streamed::Encoded(one)), Some(Streamed::Encoded(other))) = (send(), send()) else {
        unreachable!("what is just made is sent encoded");
    };
    assert_eq!(one.as_ptr(), other.as_ptr());
    let decoded = proto::SyncResponse::decode(one).unwrap();
    assert_eq!(
        decoded.response,
        Some(proto::sync_response::Response::Record(record(stored(3, 10))))
    );
}

#[test]
fn what_is_sent_is_the_same_from_the_change_log_and_from_the_hub() {
    let records: Vec<Record> = (1..=3).map(|version| stored(version, 1000)).collect();
    let changes = records.iter().cloned().map(|record| Arc::new(Change::new(record)));
    let sent = |page| {
        sync_messages(page)
            .map(|message| message.encode_to_vec())
            .collect::<Vec<_>>()
    };
    let recent = sent(SyncPage::Recent(changes.collect()));
    assert_eq!(recent.len(), 3);
    assert_eq!(sent(SyncPage::Past(records)), recent);
}

#[test]
fn options_go_there_and_back() {
    let given = proto::Options {
        capacity: Some(u64::MAX),
        indexable_fields: vec!["a.b".to_owned()],
        ttl: Some(proto_duration_of(0, 1)),
    };
    assert_eq!(proto_options(options(Some(given.clone())).unwrap()), given);
    assert!(options(None).unwrap().is_empty());
    assert!(options(Some(proto::Options::default())).unwrap().is_empty());
    let negative = proto::Options {
        ttl: Some(proto_duration_of(-1, 0)),
        ..Default::default()
    };
    assert_eq!(
        options(Some(negative)).unwrap_err().0,
        "options.ttl is negative: give a duration of more than 0"
    );
}

fn any_value() -> impl Strategy<Value = prost_types::Value> {
    let leaf = prop_oneof![
        Just(prost_types::Value { kind: None }),
        any::<f64>().prop_map(|number| value(Kind::NumberValue(number))),
        any::<String>().prop_map(|text| value(Kind::StringValue(text))),
        any::<i32>().prop_map(|null| value(Kind::NullValue(null))),
    ];
    leaf.prop_recursive(8, 64, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4)
                .prop_map(|values| value(Kind::ListValue(prost_types::ListValue { values }))),
            proptest::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|fields| value(Kind::StructValue(prost_types::Struct { fields }))),
        ]
    })
}

proptest! {
    #[test]
    fn no_request_panics(
        bytes in any::<Vec<u8>>(),
        seconds in any::<i64>(),
        nanos in any::<i32>(),
        nanoseconds in any::<i64>(),
        any_value in any_value(),
    ) {
        if let Ok(request) = proto::PutRequest::decode(bytes.as_slice()) {
            let _ = check_answer(&request, request.records.len());
            let _ = writes(request.records);
        }
        if let Ok(request) = proto::QueryRequest::decode(bytes.as_slice()) {
            let _ = query(request);
        }
        if let Ok(request) = proto::SetOptionsRequest::decode(bytes.as_slice()) {
            let _ = options(request.options);
        }
        let _ = duration("duration", Some(proto_duration_of(seconds, nanos)));
        let time = timestamp(Timestamp(nanoseconds));
        prop_assert_eq!(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos), i128::from(nanoseconds));
        let _ = filter(object("x", any_value));
    }
}

#[test]
fn indexable_fields_are_bounded() {
    let fields = |count: usize, length: usize| {
        options(Some(proto::Options {
            indexable_fields: vec!["f".repeat(length); count],
            ..Default::default()
        }))
    };
    assert!(fields(100, 1024).is_ok());
    assert!(fields(101, 1).is_err());
    assert!(fields(1, 1025).is_err());
}

#[test]
fn what_is_kept_of_a_record_does_not_keep_its_request() {
    let any = [b"\x0a\x03abc".as_slice(), &[0; 1 << 20]].concat();
    let request = bytes::Bytes::from(any);
    let record = proto::Record {
        data: Some(request.slice(..5)),
        ..Default::default()
    };
    let written = writes(vec![record]).unwrap();
    let data = written[0].data.clone().unwrap();
    assert_eq!(data, request.slice(..5));
    assert!(
        !request.as_ptr_range().contains(&data.as_ptr()),
        "it is part of the request's memory"
    );
}
