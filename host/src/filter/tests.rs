//! Tables of filters, and properties over random filters and records.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use proptest::prelude::*;
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::data::network;
use crate::data::testing::{Entropy, data, descriptors, message_type, wrap};
use crate::record::Key;

const EVERYTHING: &str = "test.Everything";

// === Parsing ===

fn check_error(filter: Value, expected: &str) {
    assert_eq!(Filter::parse(&filter).unwrap_err().to_string(), expected, "{filter}");
}

#[test]
fn what_is_no_filter_is_refused_with_the_reason() {
    check_error(json!([]), "a filter must be an object");
    check_error(json!(null), "a filter must be an object");
    check_error(json!({"$and": {"a": 1}}), "$and must be an array");
    check_error(json!({"$and": "x"}), "$and must be an array");
    check_error(json!({"a": {"$or": {"b": 1}}}), "$or must be an array");
    check_error(
        json!({"a": {"b": {"$contains": {"c": 1}}}}),
        r#"$contains of "a.b" takes a text, a number, a flag, null or a list of these"#,
    );
    check_error(
        json!({"a": {"$eq": [["x"]]}}),
        r#"$eq of "a" takes a text, a number, a flag, null or a list of these"#,
    );
    check_error(
        json!({"a": {"$after": "yesterday"}}),
        r#"$after of "a" takes a time such as 2025-01-31T12:00:00Z"#,
    );
    check_error(
        json!({"$index": {"$contains": "10."}}),
        "$contains cannot compare the networks of $index; only equality and its negation can",
    );
    let nested = |depth| (0..depth).fold(json!("x"), |inner, _| json!({ "a": inner }));
    assert!(Filter::parse(&nested(64)).is_ok());
    check_error(nested(65), "a filter may be nested 64 deep at most");
    let parts = |count| json!({"$or": (0..count).map(|id| json!({ "id": id })).collect::<Vec<_>>()});
    assert!(Filter::parse(&parts(400)).is_ok());
    check_error(
        parts(1_000),
        "a filter may have 1000 parts at most; use one list of values instead of many comparisons",
    );
    assert!(Filter::parse(&json!({"id": vec!["x"; 10_000]})).is_ok());
    check_error(
        json!({"id": vec!["x"; 10_001]}),
        "a filter may compare with 10000 values at most; split the query",
    );
    check_error(
        json!({ "é".repeat(5_000): {"a": {"$before": "2025"}} }),
        &format!(
            "$before of {:?} takes a time such as 2025-01-31T12:00:00Z",
            "é".repeat(100)
        ),
    );
}

// === Matching ===

fn key() -> Key {
    Key::new("the-type", "the-id")
}

fn matches(filter: &Filter, data: Option<&[u8]>) -> bool {
    let mut resolution = filter.resolution();
    if let Some(network) = data.and_then(network) {
        resolution.offer(network);
    }
    filter.matches(descriptors(), &key(), data, &resolution, &mut Effort::default())
}

fn check(record: Value, filter: Value, expected: bool) {
    let data = data(EVERYTHING, record.clone());
    let parsed = Filter::parse(&filter).unwrap();
    assert_eq!(matches(&parsed, Some(&data)), expected, "{filter} on {record}");
    let negated = Filter::parse(&json!({ "$not": filter })).unwrap();
    assert_eq!(matches(&negated, Some(&data)), !expected, "not {filter} on {record}");
}

#[test]
fn equality() {
    for operator in ["=", "==", "$eq", "$equals", "$is", "$isAnyOf"] {
        check(json!({"text": "a"}), json!({"text": {operator: "a"}}), true);
        check(json!({"text": "a"}), json!({"text": {operator: "A"}}), false);
        check(json!({"text": "a"}), json!({"text": {operator: ["x", "a"]}}), true);
        check(json!({"text": "a"}), json!({"text": {operator: []}}), false);
    }
    for operator in ["!=", "$doesNotEqual"] {
        check(json!({"text": "a"}), json!({"text": {operator: "a"}}), false);
        check(json!({"text": "a"}), json!({"text": {operator: "b"}}), true);
        check(json!({"texts": ["a", "b"]}), json!({"texts": {operator: "b"}}), false);
        check(json!({}), json!({"nonsense": {operator: "b"}}), true);
    }
    check(json!({"text": "a"}), json!({"text": "a"}), true);
    check(json!({"text": "a"}), json!({"text": ["b", "a"]}), true);
    check(json!({"text": "a"}), json!({"text": [{"$eq": "a"}, "b"]}), true);
    check(json!({"texts": ["a", "b"]}), json!({"texts": "b"}), true);
    check(json!({"child": {"text": "a"}}), json!({"child": {"text": "a"}}), true);
    check(json!({"child": {"text": "a"}}), json!({"child.text": "a"}), true);
    check(
        json!({"child": {"child": {"child": {"child": {"text": "a", "flag": true}}}}}),
        json!({"child": {"child": {"child": {"child": {"flag": true, "text": "a"}}}}}),
        true,
    );
    check(json!({"flag": true}), json!({"flag": true}), true);
    check(json!({}), json!({"flag": false}), true);
    check(json!({}), json!({"text": ""}), false);
    check(json!({}), json!({"text": {"$isEmpty": true}}), true);
    check(json!({"maybe_text": ""}), json!({"maybe_text": ""}), true);
    check(json!({"maybe_text": ""}), json!({"maybe_text": null}), true);
    check(json!({}), json!({"text": null}), true);
    check(json!({}), json!({"text": {"$eq": null}}), true);
    check(json!({}), json!({"text": {"!=": null}}), false);
    check(json!({}), json!({"text": ["a", null]}), true);
    check(json!({"text": "b"}), json!({"text": ["a", null]}), false);
    check(json!({}), json!({"nonsense": ""}), false);
    check(json!({"color": "GREEN"}), json!({"color": "GREEN"}), true);
    check(json!({"int32_field": 5}), json!({"int32_field": 5}), true);
    check(json!({"int32_field": 5}), json!({"int32_field": "5"}), true);
    check(
        json!({"int32_field": 1_500_000}),
        json!({"int32_field": 1_500_000}),
        true,
    );
    check(
        json!({"double_field": 1_500_000.0}),
        json!({"double_field": 1_500_000}),
        true,
    );
    check(json!({"text": "1.5e+06"}), json!({"text": 1_500_000}), true);
    check(json!({"json": {"a": 2.5}}), json!({"json": {"a": 2.5}}), true);
}

#[test]
fn texts_within_texts() {
    check(json!({"text": "abc"}), json!({"text": {"$contains": "b"}}), true);
    check(json!({"text": "abc"}), json!({"text": {"$contains": "B"}}), false);
    check(json!({"text": "abc"}), json!({"text": {"$contains": ["x", "c"]}}), true);
    check(json!({"text": "abc"}), json!({"text": {"$doesNotContain": "b"}}), false);
    check(json!({"text": "abc"}), json!({"text": {"$doesNotContain": "x"}}), true);
    check(json!({"text": "abc"}), json!({"text": {"$startsWith": "ab"}}), true);
    check(json!({"text": "abc"}), json!({"text": {"$startsWith": "bc"}}), false);
    check(json!({"text": "abc"}), json!({"text": {"$endsWith": "bc"}}), true);
    check(json!({"text": "abc"}), json!({"text": {"$endsWith": "ab"}}), false);
}

#[test]
fn order() {
    let number = json!({"int64_field": "10"});
    check(number.clone(), json!({"int64_field": {">": 9}}), true);
    check(number.clone(), json!({"int64_field": {">": 10}}), false);
    check(number.clone(), json!({"int64_field": {">=": 10}}), true);
    check(number.clone(), json!({"int64_field": {"<": 10.5}}), true);
    check(number.clone(), json!({"int64_field": {"<": 9}}), false);
    check(number.clone(), json!({"int64_field": {"<=": "10"}}), true);
    check(number, json!({"int64_field": {">": 9, "<": 11}}), true);
    check(
        json!({"int64_field": "9007199254740993"}),
        json!({"int64_field": {">": "9007199254740992"}}),
        true,
    );
    check(
        json!({"int64_field": "2000000"}),
        json!({"int64_field": {">": 1_500_000}}),
        true,
    );
    check(json!({"text": "10"}), json!({"text": {"<": "9"}}), false);
    check(json!({"text": "b"}), json!({"text": {">": "a"}}), true);
    check(json!({"text": "b"}), json!({"text": {">": 5}}), true);
    check(json!({"text": "nan"}), json!({"text": {">": "inf"}}), true);
    // The same instant, which as texts would be ordered otherwise.
    check(
        json!({"text": "2025-01-31T13:00:00+01:00"}),
        json!({"text": {"<=": "2025-01-31T12:00:00Z"}}),
        true,
    );
}

#[test]
fn times() {
    let record = json!({"at": "2025-01-31T12:00:00Z"});
    check(
        record.clone(),
        json!({"at": {"$after": "2025-01-31T11:59:59.999Z"}}),
        true,
    );
    check(record.clone(), json!({"at": {"$after": "2025-01-31T12:00:00Z"}}), false);
    check(
        record.clone(),
        json!({"at": {"$onOrAfter": "2025-01-31T13:00:00+01:00"}}),
        true,
    );
    check(
        record.clone(),
        json!({"at": {"$before": "2025-01-31T12:00:00.000000001Z"}}),
        true,
    );
    check(
        record.clone(),
        json!({"at": {"$before": "2025-01-31T12:00:00Z"}}),
        false,
    );
    check(record, json!({"at": {"$onOrBefore": "2025-01-31T12:00:00Z"}}), true);
    check(json!({}), json!({"at": {"$before": "2025-01-31T12:00:00Z"}}), false);
    check(
        json!({"text": "no time"}),
        json!({"text": {"$before": "2025-01-31T12:00:00Z"}}),
        false,
    );
}

#[test]
fn emptiness() {
    for (record, path, is_empty) in [
        (json!({}), "text", true),
        (json!({"text": "a"}), "text", false),
        (json!({}), "texts", true),
        (json!({"texts": ["", "a"]}), "texts", false),
        (json!({}), "child", true),
        (json!({"child": {}}), "child", false),
        (json!({}), "nonsense", true),
        (json!({}), "flag", false),
    ] {
        check(record.clone(), json!({path: {"$isEmpty": true}}), is_empty);
        check(record.clone(), json!({path: {"$isEmpty": null}}), is_empty);
        check(record.clone(), json!({path: {"$isEmpty": false}}), !is_empty);
        check(record.clone(), json!({path: {"$isNotEmpty": true}}), !is_empty);
        check(record, json!({path: {"$isNotEmpty": false}}), is_empty);
    }
}

#[test]
fn logic() {
    let record = json!({"text": "a", "flag": true});
    check(record.clone(), json!({"text": "a", "flag": true}), true);
    check(record.clone(), json!({"text": "a", "flag": false}), false);
    check(record.clone(), json!({"$and": [{"text": "a"}, {"flag": true}]}), true);
    check(record.clone(), json!({"$and": [{"text": "a"}, {"flag": false}]}), false);
    check(record.clone(), json!({"$or": [{"text": "b"}, {"flag": true}]}), true);
    check(record.clone(), json!({"$or": [{"text": "b"}, {"flag": false}]}), false);
    check(record.clone(), json!({"text": {"$or": ["b", "a"]}}), true);
    check(record.clone(), json!({"text": {"$not": ["b", "a"]}}), false);
    check(
        record.clone(),
        json!({"text": {"$and": [{"$startsWith": "a"}, {"$endsWith": "a"}]}}),
        true,
    );
    check(record.clone(), json!({}), false);
    check(record.clone(), json!({"text": {}}), false);
    check(record.clone(), json!({"text": []}), false);
    check(record.clone(), json!({"$or": []}), false);
    check(record.clone(), json!({"$and": []}), false);
    // A key that looks like an operator is the name of a field that is not there.
    check(record, json!({"text": {"$gt": "0"}}), false);
}

#[test]
fn the_records_own_id_and_type() {
    check(json!({}), json!({"id": "the-id"}), true);
    check(json!({}), json!({"id": "other"}), false);
    check(json!({}), json!({"id": {"$startsWith": "the"}}), true);
    check(json!({}), json!({"type": "the-type"}), true);
    check(json!({}), json!({"type": {"!=": "the-type"}}), false);
    check(json!({}), json!({"id": {"more": "x"}}), false);
    let filter = Filter::parse(&json!({"id": "the-id"})).unwrap();
    assert!(matches(&filter, None));
    assert!(matches(&filter, Some(b"\xff")));
    let filter = Filter::parse(&json!({"text": {"$isEmpty": true}})).unwrap();
    assert!(matches(&filter, None));
}

#[test]
fn the_most_specific_network_wins() {
    let networks = [
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "2001:db8::/32",
    ];
    let check = |filter: Value, expected: &[usize]| {
        let filter = Filter::parse(&filter).unwrap();
        let mut resolution = filter.resolution();
        for network in networks {
            resolution.offer(network.parse().unwrap());
        }
        let matching: Vec<usize> = (0..networks.len())
            .filter(|index| {
                let data = data("google.protobuf.Struct", json!({"$index": {"cidr": networks[*index]}}));
                filter.matches(descriptors(), &key(), Some(&data), &resolution, &mut Effort::default())
            })
            .collect();
        assert_eq!(matching, expected, "{filter:?}");
    };
    check(json!({"$index": "10.9.9.9"}), &[0]);
    check(json!({"$index": "10.1.9.9"}), &[1, 2]);
    check(json!({"$index": "10.1.2.3"}), &[3]);
    check(json!({"$index": "10.1.2.0/24"}), &[3]);
    check(json!({"$index": "10.1.2.3/23"}), &[1, 2]);
    check(json!({"$index": "10.0.0.0/7"}), &[]);
    check(json!({"$index": "2001:db8::1"}), &[4]);
    check(json!({"$index": "192.168.0.1"}), &[]);
    check(json!({"$index": "nonsense"}), &[]);
    check(json!({"$index": ["10.1.2.3", "2001:db8::1"]}), &[3, 4]);
    check(json!({"$index": {"$not": "10.1.2.3"}}), &[0, 1, 2, 4]);
    check(json!({"$or": [{"id": "other"}, {"$index": "10.1.2.3"}]}), &[3]);
}

// === Planning ===

fn check_plan(record_type: Option<&str>, filter: Value, expected: Plan) {
    let indexed = ["user_id".to_owned(), "a.b".to_owned()];
    let plan = Filter::parse(&filter).unwrap().plan(record_type, &indexed);
    assert_eq!(plan, expected, "{filter}");
}

#[test]
fn plans_look_up_what_they_can() {
    let some = Some("t");
    let id = |id: &str| Lookup::Id(id.into());
    let field = |path: &str, value: &str| Lookup::Field {
        path: path.into(),
        value: value.into(),
    };
    let network = |network: &str| Lookup::Network(network.parse().unwrap());
    let ids = |ids: &[&str]| Plan::Ids(ids.iter().map(|id| (*id).to_owned()).collect());
    check_plan(some, json!({"id": "x"}), ids(&["x"]));
    check_plan(None, json!({"id": "x"}), ids(&["x"]));
    check_plan(some, json!({"id": ["y", "x", "x"]}), ids(&["x", "y"]));
    check_plan(some, json!({"id": {"$not": "x"}}), Plan::Scan);
    check_plan(some, json!({"id": {"$contains": "x"}}), Plan::Scan);
    check_plan(
        some,
        json!({"user_id": "u"}),
        Plan::Lookups(vec![field("user_id", "u")]),
    );
    check_plan(
        some,
        json!({"user_id": {"$eq": "u"}}),
        Plan::Lookups(vec![field("user_id", "u")]),
    );
    check_plan(
        some,
        json!({"a": {"b": ["x", "y"]}}),
        Plan::Lookups(vec![field("a.b", "x"), field("a.b", "y")]),
    );
    check_plan(None, json!({"user_id": "u"}), Plan::Scan);
    check_plan(some, json!({"other": "u"}), Plan::Scan);
    check_plan(some, json!({"userId": "u"}), Plan::Scan);
    check_plan(
        some,
        json!({"other": "u", "user_id": "u"}),
        Plan::Lookups(vec![field("user_id", "u")]),
    );
    check_plan(some, json!({"id": "x", "user_id": "u"}), ids(&["x"]));
    check_plan(
        some,
        json!({"$or": [{"id": "x"}, {"user_id": "u"}]}),
        Plan::Lookups(vec![id("x"), field("user_id", "u")]),
    );
    check_plan(some, json!({"$or": [{"id": "x"}, {"other": "u"}]}), Plan::Scan);
    check_plan(
        some,
        json!({"$or": [{"id": "x"}, {"$index": "10.0.0.1"}]}),
        Plan::Lookups(vec![id("x"), network("10.0.0.1/32")]),
    );
    check_plan(some, json!({"$or": [{"id": "x"}, {"$index": "x"}]}), ids(&["x"]));
    check_plan(some, json!({}), Plan::Nothing);
    check_plan(some, json!({"other": []}), Plan::Nothing);
    check_plan(some, json!({"type": "t"}), Plan::Scan);
    check_plan(some, json!({"type": "u"}), Plan::Nothing);
    check_plan(some, json!({"type": "t", "id": "x"}), ids(&["x"]));
    check_plan(None, json!({"type": "t", "id": "x"}), ids(&["x"]));
    check_plan(some, json!({"$not": {}}), Plan::Scan);
    check_plan(some, json!({"user_id": (0..65).collect::<Vec<_>>()}), Plan::Scan);
}

// === Properties ===

/// JSON that is often a filter.
fn filters() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        prop::sample::select(vec![
            json!(0),
            json!(1),
            json!(10),
            json!(1_500_000),
            json!(-3.0),
            json!(1e300)
        ]),
        prop::sample::select(vec![
            "",
            "a",
            "b",
            "Ab",
            "10",
            "9.5",
            "GREEN",
            "record-1",
            "type-1",
            "2025-01-31T12:00:00Z",
            "10.1.2.3",
            "10.0.0.0/8",
            "::1",
            "\u{0}",
        ])
        .prop_map(Value::from),
    ];
    let keys = prop::sample::select(vec![
        "id",
        "type",
        "$index",
        "$and",
        "$or",
        "$not",
        "=",
        "!=",
        "$is",
        "$isAnyOf",
        "$contains",
        "$doesNotContain",
        "$startsWith",
        "$endsWith",
        "<",
        "<=",
        ">",
        ">=",
        "$after",
        "$before",
        "$onOrAfter",
        "$onOrBefore",
        "$isEmpty",
        "$isNotEmpty",
        "text",
        "texts",
        "child",
        "int32_field",
        "labels",
        "a",
        "at",
        "color",
        "wrapped_text",
        "nonsense",
    ]);
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..4).prop_map(|entries| entries
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

/// A record of one of two types and of some message or none.
fn record(entropy: &[u8]) -> (Key, Option<Vec<u8>>) {
    let mut entropy = Entropy::new(entropy);
    let key = Key::new(
        ["type-1", "type-2"][usize::from(entropy.below(2))],
        ["record-1", "a", ""][usize::from(entropy.below(3))],
    );
    let cidr = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "::/0"];
    let data = match entropy.below(5) {
        0 => None,
        1 => Some(data(
            "google.protobuf.Struct",
            json!({"$index": {"cidr": cidr[usize::from(entropy.below(4))]}, "text": entropy.text(), "a": entropy.text()}),
        )),
        2 => Some(b"\xff".to_vec()),
        _ => Some(wrap(
            EVERYTHING,
            entropy.message(&message_type(EVERYTHING), 3).encode_to_vec(),
        )),
    };
    (key, data)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn every_match_is_among_the_candidates(
        filter in filters(),
        entropies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..150), 0..5),
        is_typed in any::<bool>(),
    ) {
        let Ok(filter) = Filter::parse(&filter) else { return Ok(()) };
        let record_type = is_typed.then_some("type-1");
        let records: Vec<_> = entropies
            .iter()
            .map(|entropy| record(entropy))
            .filter(|(key, _)| record_type.is_none_or(|record_type| key.record_type == record_type))
            .collect();
        let mut resolution = filter.resolution();
        for (_, data) in &records {
            if let Some(network) = data.as_deref().and_then(network) {
                resolution.offer(network);
            }
        }
        let indexed: Vec<String> = ["text", "child.text", "int32_field", "labels.a"].map(str::to_owned).into();
        let plan = filter.plan(record_type, &indexed);
        for (key, data) in &records {
            if !filter.matches(descriptors(), key, data.as_deref(), &resolution, &mut Effort::default()) {
                continue;
            }
            let found = |lookup: &Lookup| match lookup {
                Lookup::Id(id) => *id == key.id,
                Lookup::Field { path, value } => {
                    assert!(is_typed && indexed.contains(path));
                    data.as_deref().is_some_and(|data| descriptors().values(data, path).contains(value))
                }
                Lookup::Network(wanted) => data.as_deref().and_then(network).is_some_and(|network| network.contains(wanted)),
            };
            let is_candidate = match &plan {
                Plan::Nothing => false,
                Plan::Ids(ids) => ids.contains(&key.id),
                Plan::Lookups(lookups) => lookups.iter().any(found),
                Plan::Scan => true,
            };
            prop_assert!(is_candidate, "{:?} misses {:?}", plan, key);
        }
    }

    #[test]
    fn a_negation_matches_what_its_positive_does_not(filter in filters(), entropy in prop::collection::vec(any::<u8>(), 0..200)) {
        let negated = json!({"$not": &filter});
        let (Ok(negated), true) = (Filter::parse(&negated), filter.is_object()) else { return Ok(()) };
        let filter = Filter::parse(&filter).unwrap();
        let (key, data) = record(&entropy);
        let resolution = filter.resolution();
        prop_assert_ne!(
            filter.matches(descriptors(), &key, data.as_deref(), &resolution, &mut Effort::default()),
            negated.matches(descriptors(), &key, data.as_deref(), &resolution, &mut Effort::default())
        );
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,8}", operand in "\\PC{0,8}", filter in filters()) {
        let _ = Filter::parse(&json!({ text: { operand: filter } }));
    }
}

// === Effort ===

/// A filter that each bound lets pass and that would take minutes is given up, whatever it is wrapped in.
#[test]
fn what_takes_too_long_is_given_up() {
    let texts: Vec<String> = (0..9_999)
        .map(|number| format!("{}{number:05}", "ab".repeat(50)))
        .collect();
    let parts: Vec<Value> = (0..400).map(|_| json!({"text": "other"})).collect();
    let long = data(EVERYTHING, json!({"text": "ab".repeat(1_500_000)}));
    let many = data(EVERYTHING, json!({"texts": vec!["a"; 300_000]}));
    for (filter, record, expected) in [
        (json!({"text": {"$contains": texts}}), &long, true),
        (json!({"$not": {"text": {"$contains": texts}}}), &long, true),
        (json!({"$or": parts}), &long, true),
        (json!({"texts": {"$startsWith": texts}}), &many, true),
        (json!({"texts": {"<": texts}}), &many, false),
        (json!({"texts": {">": texts}}), &many, true),
        (json!({"text": {"$contains": "no such text"}}), &long, false),
        (json!({"text": texts}), &long, false),
    ] {
        let mut effort = Effort::default();
        let parsed = Filter::parse(&filter).unwrap();
        parsed.matches(descriptors(), &key(), Some(record), &parsed.resolution(), &mut effort);
        let shown: String = filter.to_string().chars().take(80).collect();
        assert_eq!(effort.is_exhausted(), expected, "{shown}, {} bytes", effort.spent());
    }
}
