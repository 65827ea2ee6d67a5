//! Tables of cases, and models on decoded messages that random messages are compared with.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage, Value};
use serde_json::json;

use super::testing::{Entropy, data, descriptor_set, descriptors, message_type, wrap};
use super::*;

const EVERYTHING: &str = "test.Everything";

// === Descriptors ===

#[test]
fn the_built_in_descriptors_load_and_know_the_well_known_types() {
    let descriptors = Descriptors::built_in();
    assert!(descriptors.knows("type.googleapis.com/google.protobuf.Struct"));
    assert!(descriptors.knows("type.googleapis.com/databroker.Record"));
    assert!(descriptors.knows("type.googleapis.com/session.Session"));
    assert!(!descriptors.knows("type.googleapis.com/test.Everything"));
    // Knowing a file already is no contradiction.
    assert!(descriptors.with_additional(databroker_proto::ALL_DESCRIPTORS).is_ok());
}

#[test]
fn additional_descriptors_make_types_known_and_bad_ones_are_refused() {
    let built_in = Descriptors::built_in();
    assert!(
        built_in
            .with_additional(&descriptor_set())
            .unwrap()
            .knows("test.Everything")
    );
    assert!(matches!(
        built_in.with_additional(b"\xff"),
        Err(DescriptorsError::Malformed(_))
    ));
    let mut set = prost_types::FileDescriptorSet::decode(&descriptor_set()[..]).unwrap();
    for file in &mut set.file {
        file.dependency = vec!["missing.proto".into()];
    }
    assert!(matches!(
        built_in.with_additional(&set.encode_to_vec()),
        Err(DescriptorsError::Invalid(_))
    ));
}

// === Values ===

fn check_values(json: serde_json::Value, path: &str, expected: &[&str]) {
    check_values_of(EVERYTHING, json, path, expected);
}

fn check_values_of(name: &str, json: serde_json::Value, path: &str, expected: &[&str]) {
    let found = descriptors().values(&data(name, json.clone()), path);
    assert_eq!(found, expected, "{path:?} in {name} {json}");
}

#[test]
fn scalars_are_texts() {
    check_values(json!({"text": "abc"}), "text", &["abc"]);
    check_values(json!({"flag": true}), "flag", &["true"]);
    check_values(json!({"int32_field": -5}), "int32_field", &["-5"]);
    check_values(json!({"int64_field": "1500000"}), "int64_field", &["1500000"]);
    check_values(
        json!({"uint32_field": 4_294_967_295_u32}),
        "uint32_field",
        &["4294967295"],
    );
    check_values(
        json!({"uint64_field": u64::MAX.to_string()}),
        "uint64_field",
        &["18446744073709551615"],
    );
    check_values(json!({"sint32_field": i32::MIN}), "sint32_field", &["-2147483648"]);
    check_values(
        json!({"sint64_field": i64::MIN.to_string()}),
        "sint64_field",
        &["-9223372036854775808"],
    );
    check_values(json!({"sfixed32_field": -7}), "sfixed32_field", &["-7"]);
    check_values(json!({"sfixed64_field": "-7"}), "sfixed64_field", &["-7"]);
    check_values(json!({"fixed32_field": 7}), "fixed32_field", &["7"]);
    check_values(json!({"fixed64_field": "7"}), "fixed64_field", &["7"]);
    check_values(json!({"float_field": 0.1}), "float_field", &["0.1"]);
    check_values(json!({"double_field": 1_500_000.0}), "double_field", &["1.5e+06"]);
    check_values(json!({"double_field": "NaN"}), "double_field", &["NaN"]);
    check_values(json!({"data": "aGk="}), "data", &["aGk="]);
    check_values(json!({"color": "GREEN"}), "color", &["GREEN"]);
    check_values(json!({"color": 9}), "color", &["9"]);
    check_values(
        json!({"at": "2025-01-31T12:00:00.5Z"}),
        "at",
        &["2025-01-31T12:00:00.500Z"],
    );
    check_values(json!({"lasts": "900s"}), "lasts", &["900s"]);
    check_values(json!({"lasts": "-1.5s"}), "lasts", &["-1.500s"]);
    check_values(json!({"wrapped_text": "w"}), "wrapped_text", &["w"]);
    check_values(json!({"wrapped_text": ""}), "wrapped_text", &[""]);
    check_values(json!({}), "wrapped_text", &[]);
    check_values(json!({"wrapped_number": "0"}), "wrapped_number", &["0"]);
    check_values(json!({"wrapped_number": "7"}), "wrapped_number.value", &["7"]);
}

#[test]
fn what_is_not_set_has_its_default_or_no_value() {
    let defaults = [
        ("flag", "false"),
        ("int64_field", "0"),
        ("double_field", "0"),
        ("color", "RED"),
    ];
    for (path, expected) in defaults {
        check_values(json!({}), path, &[expected]);
    }
    for path in [
        "text",
        "data",
        "maybe_text",
        "maybe_number",
        "chosen_number",
        "child",
        "child.text",
        "child.int32_field",
        "child.labels.any.key",
        "child.json.a",
        "at",
        "at.seconds",
        "wrapped_number",
        "texts",
        "children.text",
        "labels.a",
        "labels",
        "claims.a",
        "json.a.b",
        "list",
    ] {
        check_values(json!({}), path, &[]);
    }
    check_values(json!({"maybe_text": ""}), "maybe_text", &[""]);
    check_values(json!({"maybe_number": 0}), "maybe_number", &["0"]);
    check_values(json!({"chosen_number": 0}), "chosen_number", &["0"]);
    check_values(json!({"child": {}}), "child.int32_field", &["0"]);
}

#[test]
fn what_is_not_known_has_no_values() {
    for path in [
        "nonsense",
        "text.more",
        "child.nonsense",
        "children.nonsense",
        "texts.a",
        "",
        "text.",
        ".",
        "at.x",
    ] {
        let found = descriptors().values(&data(EVERYTHING, json!({})), path);
        assert!(
            found.is_empty() || path.is_empty() && found == ["{}"],
            "{path:?} {found:?}"
        );
    }
    assert!(descriptors().values(&wrap("test.Unknown", vec![]), "text").is_empty());
    assert!(descriptors().values(&wrap(EVERYTHING, vec![0xff]), "text").is_empty());
    assert!(descriptors().values(b"\xff", "text").is_empty());
    assert!(descriptors().values(&[], "text").is_empty());
}

#[test]
fn paths_go_through_messages_lists_maps_and_json() {
    check_values(
        json!({"child": {"child": {"text": "deep"}}}),
        "child.child.text",
        &["deep"],
    );
    check_values(json!({"maybe_text": "m"}), "maybeText", &["m"]);
    check_values(json!({"texts": ["a", "b"]}), "texts", &["a", "b"]);
    check_values(json!({"numbers": [1, 2]}), "numbers", &["1", "2"]);
    check_values(json!({"unpacked": [1, 2]}), "unpacked", &["1", "2"]);
    check_values(json!({"colors": ["BLUE", "RED"]}), "colors", &["BLUE", "RED"]);
    check_values(json!({"children": [{"text": "a"}, {}]}), "children.text", &["a"]);
    check_values(json!({"labels": {"k": "v", "x.y": "z"}}), "labels.k", &["v"]);
    check_values(json!({"labels": {"k": "v", "x.y": "z"}}), "labels.x.y", &["z"]);
    check_values(json!({"labels": {"k": "v", "x.y": "z"}}), "labels.x", &[]);
    check_values(json!({"labels": {"k": "v", "x.y": "z"}}), "labels", &["v", "z"]);
    check_values(
        json!({"claims": {"https://example.com/groups": ["a", "b"]}}),
        "claims.https://example.com/groups",
        &["a", "b"],
    );
    check_values(
        json!({"by_number": {"5": {"text": "five"}}}),
        "by_number.5.text",
        &["five"],
    );
    check_values(json!({"by_number": {"5": {"text": "five"}}}), "by_number.6.text", &[]);
    check_values(json!({"by_flag": {"true": "7"}}), "by_flag.true", &["7"]);
    check_values(
        json!({"json": {"a": {"b": [1, {"c": "x"}, null]}}}),
        "json.a.b.c",
        &["x"],
    );
    check_values(
        json!({"json": {"a": {"b": [1, {"c": "x"}, null]}}}),
        "json.a.b",
        &["1", "x", ""],
    );
    check_values(json!({"value": true}), "value", &["true"]);
    check_values(json!({"value": null}), "value", &[""]);
    check_values(json!({"list": ["a", 1e6]}), "list", &["a", "1e+06"]);
    check_values(
        json!({"any": {"@type": "x/test.Everything", "text": "in"}}),
        "any.text",
        &["in"],
    );
    check_values(
        json!({"any": {"@type": "x/google.protobuf.StringValue", "value": "in"}}),
        "any",
        &["in"],
    );
    check_values(json!({"child": {"text": "a"}}), "child", &[r#"{"text":"a"}"#]);
    check_values_of(
        "google.protobuf.Struct",
        json!({"given_name": "Alice", "x": {"y": 2}}),
        "given_name",
        &["Alice"],
    );
    check_values_of(
        "google.protobuf.Struct",
        json!({"given_name": "Alice", "x": {"y": 2}}),
        "x.y",
        &["2"],
    );
    check_values_of(
        "google.protobuf.Struct",
        json!({"$index": {"cidr": "10.0.0.0/8"}}),
        "$index.cidr",
        &["10.0.0.0/8"],
    );
    check_values_of("google.protobuf.Value", json!({"a": ["b"]}), "a", &["b"]);
    check_values_of("google.protobuf.StringValue", json!("s"), "", &["s"]);
    check_values_of("google.protobuf.StringValue", json!("s"), "value", &["s"]);
    check_values_of(
        "google.protobuf.Any",
        json!({"@type": "x/test.Everything", "text": "in"}),
        "text",
        &["in"],
    );
}

#[test]
fn numbers_are_written_as_in_go() {
    for (number, expected) in [
        (0.0, "0"),
        (1.0, "1"),
        (-2.25, "-2.25"),
        (999_999.0, "999999"),
        (1e6, "1e+06"),
        (1_234_567.5, "1.2345675e+06"),
        (123_456_789.0, "1.23456789e+08"),
        (123_456.789, "123456.789"),
        (1e21, "1e+21"),
        (1e100, "1e+100"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (f64::INFINITY, "+Inf"),
        (f64::NEG_INFINITY, "-Inf"),
        (f64::NAN, "NaN"),
    ] {
        assert_eq!(number_text(number), expected);
    }
}

/// The values of a path by the decoded message.
fn model_values(message: &DynamicMessage, rest: &str, out: &mut Vec<String>) {
    let descriptor = message.descriptor();
    match descriptor.full_name() {
        "google.protobuf.Any" => {
            let (url, value) = (
                message.get_field_by_number(1).unwrap(),
                message.get_field_by_number(2).unwrap(),
            );
            let name = url.as_str().unwrap().rsplit('/').next().unwrap();
            if let Some(inner) = super::testing::pool().get_message_by_name(name) {
                let inner = DynamicMessage::decode(inner, value.as_bytes().unwrap().clone()).unwrap();
                model_values(&inner, rest, out);
            }
            return;
        }
        "google.protobuf.Struct" => {
            let fields = message.get_field_by_number(1).unwrap();
            for (key, value) in fields.as_map().unwrap() {
                if let Some(rest) = model_rest(key.as_str().unwrap(), rest) {
                    model_values(value.as_message().unwrap(), rest, out);
                }
            }
            return;
        }
        "google.protobuf.ListValue" => {
            let list = message.get_field_by_number(1).unwrap();
            for element in list.as_list().unwrap() {
                model_values(element.as_message().unwrap(), rest, out);
            }
            return;
        }
        "google.protobuf.Value" => {
            match descriptor
                .fields()
                .find(|field| message.has_field(field))
                .map(|field| (field.number(), message.get_field(&field).into_owned()))
            {
                Some((5 | 6, inner)) => model_values(inner.as_message().unwrap(), rest, out),
                _ if !rest.is_empty() => {}
                Some((2, number)) => out.push(number_text(number.as_f64().unwrap())),
                Some((3, text)) => out.push(text.as_str().unwrap().to_owned()),
                Some((4, flag)) => out.push(flag.as_bool().unwrap().to_string()),
                _ => out.push(String::new()),
            }
            return;
        }
        _ => {}
    }
    if rest.is_empty() {
        out.push(match serde_json::to_value(message).unwrap() {
            serde_json::Value::String(text) => text,
            json => json.to_string(),
        });
        return;
    }
    let (name, rest) = rest.split_once('.').unwrap_or((rest, ""));
    let Some(field) = descriptor
        .get_field_by_name(name)
        .or_else(|| descriptor.get_field_by_json_name(name))
    else {
        return;
    };
    let value = message.get_field(&field);
    if field.is_map() {
        for (key, value) in value.as_map().unwrap() {
            let key = match key {
                MapKey::String(key) => key.clone(),
                MapKey::Bool(key) => key.to_string(),
                MapKey::I32(key) => key.to_string(),
                key => panic!("{key:?}"),
            };
            match (model_rest(&key, rest), value) {
                (Some(rest), Value::Message(value)) => model_values(value, rest, out),
                (Some(""), value) => out.push(model_scalar(value, &Kind::String)),
                _ => {}
            }
        }
    } else if field.is_list() {
        for value in value.as_list().unwrap() {
            model_single(value, &field.kind(), rest, out);
        }
    } else if field.supports_presence() && !message.has_field(&field) {
        // It has no value.
    } else if !message.has_field(&field) && matches!(field.kind(), Kind::String | Kind::Bytes) {
        // An empty text without presence cannot be told from one that was never set.
    } else {
        model_single(&value, &field.kind(), rest, out);
    }
}

fn model_single(value: &Value, kind: &Kind, rest: &str, out: &mut Vec<String>) {
    match value {
        Value::Message(message) => model_values(message, rest, out),
        value if rest.is_empty() => out.push(model_scalar(value, kind)),
        _ => {}
    }
}

fn model_scalar(value: &Value, kind: &Kind) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::F32(value) => number_text(f64::from(*value)),
        Value::F64(value) => number_text(*value),
        Value::String(value) => value.clone(),
        Value::Bytes(value) => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.encode(value)
        }
        Value::EnumNumber(number) => match kind.as_enum().unwrap().get_value(*number) {
            Some(value) => value.name().to_owned(),
            None => number.to_string(),
        },
        value => panic!("{value:?}"),
    }
}

fn model_rest<'p>(key: &str, path: &'p str) -> Option<&'p str> {
    match path {
        "" => Some(""),
        path if path == key => Some(""),
        path => path.strip_prefix(&format!("{key}.")),
    }
}

// === Text ===

fn check_text(json: serde_json::Value, text: &str, expected: bool) {
    let data = data(EVERYTHING, json.clone());
    assert_eq!(
        descriptors().matches_text(&data, &Needle::new(text)),
        expected,
        "{text:?} in {json}"
    );
}

#[test]
fn texts_are_found_at_any_depth_and_in_any_case() {
    check_text(json!({"text": "Hello World"}), "lo wo", true);
    check_text(json!({"text": "Hello World"}), "LO WO", true);
    check_text(json!({"text": "Hello World"}), "low", false);
    check_text(json!({"text": "aab"}), "ab", true);
    check_text(json!({"text": "ÄÖÜ Straße"}), "äöü", true);
    check_text(json!({"text": "ÄÖÜ Straße"}), "STRASSE", false);
    check_text(json!({"text": "ΟΔΥΣΣΕΥΣ"}), "οδυσσευσ", true);
    check_text(json!({"text": "\u{212a}elvin"}), "kelvin", true);
    check_text(json!({"text": "\u{130}zmir"}), "i", true);
    check_text(
        json!({"child": {"children": [{}, {"texts": ["x", "needle"]}]}}),
        "needle",
        true,
    );
    check_text(json!({"labels": {"k": "needle"}}), "needle", true);
    check_text(json!({"claims": {"k": ["needle"]}}), "needle", true);
    check_text(json!({"json": {"a": {"b": ["needle"]}}}), "needle", true);
    check_text(json!({"wrapped_text": "needle"}), "needle", true);
    check_text(json!({"by_number": {"1": {"text": "needle"}}}), "needle", true);
    check_text(json!({"text": "x"}), "", true);
}

#[test]
fn keys_numbers_enums_bytes_and_inner_anys_are_not_searched() {
    check_text(json!({"labels": {"needle": "x"}}), "needle", false);
    check_text(json!({"json": {"needle": "x"}}), "needle", false);
    check_text(json!({"int32_field": 12345}), "12345", false);
    check_text(json!({"color": "GREEN"}), "green", false);
    check_text(json!({"data": "bmVlZGxl"}), "needle", false);
    check_text(
        json!({"any": {"@type": "x/test.Everything", "text": "needle"}}),
        "needle",
        false,
    );
    let needle = Needle::new("needle");
    assert!(!descriptors().matches_text(&wrap("test.Unknown", b"\x72\x06needle".to_vec()), &needle));
    assert!(!descriptors().matches_text(b"needle", &needle));
    assert!(!descriptors().matches_text(&[], &needle));
}

fn model_text(message: &DynamicMessage, needle: &str) -> bool {
    fn value(value: &Value, needle: &str) -> bool {
        match value {
            Value::String(text) => text.to_lowercase().contains(needle),
            Value::Message(message) => model_text(message, needle),
            Value::List(list) => list.iter().any(|element| value_of(element, needle)),
            Value::Map(map) => map.values().any(|element| value_of(element, needle)),
            _ => false,
        }
    }
    fn value_of(element: &Value, needle: &str) -> bool {
        value(element, needle)
    }
    message.fields().any(|(_, field)| value(field, needle))
}

// === Network ===

#[test]
fn networks_are_read_from_json_data_only() {
    let record = |name: &str, json: serde_json::Value| network(&data(name, json)).map(|network| network.to_string());
    let index = json!({"$index": {"cidr": "10.1.2.3/16"}, "id": "x"});
    assert_eq!(
        record("google.protobuf.Struct", index.clone()).as_deref(),
        Some("10.1.0.0/16")
    );
    assert_eq!(
        record("google.protobuf.Value", index.clone()).as_deref(),
        Some("10.1.0.0/16")
    );
    assert_eq!(
        record(
            "google.protobuf.Any",
            json!({"@type": "x/google.protobuf.Struct", "value": index})
        )
        .as_deref(),
        Some("10.1.0.0/16")
    );
    assert_eq!(
        record("google.protobuf.Struct", json!({"$index": {"cidr": "2001:db8::1/32"}})).as_deref(),
        Some("2001:db8::/32")
    );
    for other in [
        json!({}),
        json!({"$index": "10.0.0.0/8"}),
        json!({"$index": {}}),
        json!({"$index": {"cidr": ""}}),
        json!({"$index": {"cidr": "10.0.0.1"}}),
        json!({"$index": {"cidr": "nonsense"}}),
        json!({"$index": {"cidr": 5}}),
        json!({"$index": {"cidr": ["10.0.0.0/8"]}}),
    ] {
        assert_eq!(record("google.protobuf.Struct", other), None);
    }
    assert_eq!(record(EVERYTHING, json!({"json": index})), None);
    assert_eq!(record("google.protobuf.Value", json!("10.0.0.0/8")), None);
}

// === Merge ===

fn check_merge(existing: serde_json::Value, update: serde_json::Value, mask: &[&str], expected: serde_json::Value) {
    let merged = descriptors()
        .merge(
            Some(&data(EVERYTHING, existing.clone())),
            Some(&data(EVERYTHING, update.clone())),
            &Mask::new(mask).unwrap(),
        )
        .unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&descriptors().to_json(&merged).unwrap()).unwrap();
    json.as_object_mut().unwrap().remove("@type");
    assert_eq!(json, expected, "{update} into {existing} by {mask:?}");
}

#[test]
fn masked_fields_are_overwritten() {
    let existing = json!({"text": "old", "flag": true, "texts": ["a"], "labels": {"a": "1"}, "child": {"text": "c", "flag": true}});
    let check = |update, mask: &[&str], expected| check_merge(existing.clone(), update, mask, expected);
    let with = |changes: serde_json::Value| {
        let mut all = existing.clone();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                serde_json::Value::Null => all.as_object_mut().unwrap().remove(key),
                value => all.as_object_mut().unwrap().insert(key.clone(), value.clone()),
            };
        }
        all
    };
    check(
        json!({"text": "new", "flag": false}),
        &["text"],
        with(json!({"text": "new"})),
    );
    check(
        json!({"text": "new"}),
        &["text", "flag"],
        with(json!({"text": "new", "flag": null})),
    );
    check(json!({"text": "new"}), &[], existing.clone());
    check(
        json!({"texts": ["b", "c"]}),
        &["texts"],
        with(json!({"texts": ["b", "c"]})),
    );
    check(json!({}), &["texts"], with(json!({"texts": null})));
    check(
        json!({"labels": {"b": "2"}}),
        &["labels"],
        with(json!({"labels": {"b": "2"}})),
    );
    check(
        json!({"child": {"text": "n"}}),
        &["child"],
        with(json!({"child": {"text": "n"}})),
    );
    check(json!({}), &["child"], with(json!({"child": null})));
    check(
        json!({"child": {"text": "n"}}),
        &["child.text"],
        with(json!({"child": {"text": "n", "flag": true}})),
    );
    check(json!({}), &["child.text"], with(json!({"child": {"flag": true}})));
    check(
        json!({"child": {"text": "n"}}),
        &["child.text", "child"],
        with(json!({"child": {"text": "n"}})),
    );
    check(
        json!({"child": {"text": "n"}}),
        &["child", "child.text"],
        with(json!({"child": {"text": "n"}})),
    );
    check(
        json!({"at": "2025-01-31T12:00:00Z"}),
        &["at"],
        with(json!({"at": "2025-01-31T12:00:00Z"})),
    );
    check(
        json!({"at": "1970-01-01T00:00:00Z"}),
        &["at"],
        with(json!({"at": "1970-01-01T00:00:00Z"})),
    );
    check(
        json!({"maybe_number": 0}),
        &["maybe_number"],
        with(json!({"maybeNumber": 0})),
    );
    check(json!({"lasts": "5s"}), &["lasts.seconds"], with(json!({"lasts": "5s"})));
    // Neither side has the message: what is below is not even looked at.
    check(json!({}), &["chosen_child.nonsense"], existing.clone());
    check_merge(
        json!({"chosen_text": "a"}),
        json!({"chosen_number": 0}),
        &["chosen_number"],
        json!({"chosenNumber": 0}),
    );
    check_merge(
        json!({"chosen_text": "a"}),
        json!({"chosen_number": 0}),
        &["chosen_text"],
        json!({}),
    );
    check_merge(
        json!({"chosen_text": "a"}),
        json!({"chosen_child": {"text": "b"}}),
        &["chosen_child.text"],
        json!({"chosenChild": {"text": "b"}}),
    );
}

#[test]
fn merges_that_make_no_sense_are_refused() {
    let everything = data(EVERYTHING, json!({"child": {}, "texts": ["a"]}));
    let check = |existing: Option<&[u8]>, update: Option<&[u8]>, mask: &[&str], expected: &str| {
        let error = descriptors()
            .merge(existing, update, &Mask::new(mask).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    };
    let good = Some(&everything[..]);
    check(
        good,
        good,
        &["foo"],
        r#"cannot overwrite unknown field "foo" in message test.Everything"#,
    );
    check(
        good,
        good,
        &["*"],
        r#"cannot overwrite unknown field "*" in message test.Everything"#,
    );
    check(
        good,
        good,
        &["maybeText"],
        r#"cannot overwrite unknown field "maybeText" in message test.Everything"#,
    );
    check(
        good,
        good,
        &[""],
        r#"cannot overwrite unknown field "" in message test.Everything"#,
    );
    check(
        good,
        good,
        &["child.foo"],
        r#"cannot overwrite unknown field "foo" in message test.Everything"#,
    );
    check(
        good,
        good,
        &["texts.a"],
        r#"cannot overwrite sub-fields of field "texts" in message test.Everything"#,
    );
    check(
        good,
        good,
        &["labels.a"],
        r#"cannot overwrite sub-fields of field "labels" in message test.Everything"#,
    );
    check(
        good,
        good,
        &["text.a"],
        r#"cannot overwrite sub-fields of field "text" in message test.Everything"#,
    );
    let session = data("test.Session", json!({}));
    check(
        good,
        Some(&session),
        &["text"],
        "descriptor mismatch: test.Everything, test.Session",
    );
    check(None, good, &[], "could not unmarshal existing record data: ");
    check(good, None, &[], "could not unmarshal new record data: ");
    let unknown = wrap("test.Unknown", vec![]);
    check(Some(&unknown), good, &[], "could not unmarshal existing record data: ");
    check(good, Some(&unknown), &[], "could not unmarshal new record data: ");
    let broken = wrap(EVERYTHING, b"\x72\x01\xff".to_vec());
    check(
        Some(&broken),
        good,
        &[],
        "could not unmarshal existing record data: malformed data: a string is not valid UTF-8",
    );
    check(good, Some(&broken), &[], "could not unmarshal new record data: ");
    assert_eq!(Mask::new([vec!["a"; 101].join(".")]), Err(MergeError::MaskTooDeep));
}

#[test]
fn unknown_fields_of_the_existing_message_survive() {
    let mut existing = DynamicMessage::new(message_type(EVERYTHING)).encode_to_vec();
    existing.extend_from_slice(b"\xa2\x38\x03abc");
    let merged = descriptors()
        .merge(
            Some(&wrap(EVERYTHING, existing)),
            Some(&data(EVERYTHING, json!({"text": "n"}))),
            &Mask::new(["text"]).unwrap(),
        )
        .unwrap();
    assert_eq!(&merged[..], &wrap(EVERYTHING, b"\xa2\x38\x03abc\x72\x01n".to_vec())[..]);
}

#[test]
fn what_a_oneof_held_before_does_not_come_back() {
    // On the wire `chosen_text` comes first, `chosen_number` then replaces it.
    let mut existing = Vec::new();
    for (number, text) in [(60, "old"), (14, "text")] {
        wire::put_bytes(&mut existing, number, text.as_bytes());
    }
    existing.extend_from_slice(b"\xe8\x03\x05");
    let merged = descriptors()
        .merge(
            Some(&wrap(EVERYTHING, existing)),
            Some(&wrap(EVERYTHING, vec![])),
            &Mask::new(["chosen_number"]).unwrap(),
        )
        .unwrap();
    assert_eq!(&merged[..], &wrap(EVERYTHING, b"\x72\x04text".to_vec())[..]);
}

/// A mask as a tree, applied to decoded messages.
fn model_merge(existing: &mut DynamicMessage, update: &DynamicMessage, paths: &[String]) -> Result<(), String> {
    let descriptor = existing.descriptor();
    let mut names: Vec<&str> = paths.iter().map(|path| path.split('.').next().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let field = descriptor.get_field_by_name(name).ok_or("unknown")?;
        if paths.iter().any(|path| path == name) {
            if update.has_field(&field) {
                existing.set_field(&field, update.get_field(&field).into_owned());
            } else {
                existing.clear_field(&field);
            }
            continue;
        }
        if field.is_list() || field.is_map() || field.kind().as_message().is_none() {
            return Err("no message".into());
        }
        if !existing.has_field(&field) && !update.has_field(&field) {
            continue;
        }
        let prefix = format!("{name}.");
        let below: Vec<String> = paths
            .iter()
            .filter_map(|path| Some(path.strip_prefix(&prefix)?.to_owned()))
            .collect();
        let update = update.get_field(&field).into_owned();
        model_merge(
            existing.get_field_mut(&field).as_message_mut().unwrap(),
            update.as_message().unwrap(),
            &below,
        )?;
    }
    Ok(())
}

// === JSON ===

#[test]
fn json_has_the_protobuf_form() {
    let json = json!({"@type": "type.googleapis.com/test.Everything", "maybeText": "a", "int64Field": "5", "at": "2025-01-31T12:00:00Z", "color": "BLUE"});
    let bytes = descriptors().from_json(&json.to_string()).unwrap();
    assert_eq!(descriptors().values(&bytes, "color"), ["BLUE"]);
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&descriptors().to_json(&bytes).unwrap()).unwrap(),
        json
    );
    let json = json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": {"a": [1.0, null]}});
    let bytes = descriptors().from_json(&json.to_string()).unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&descriptors().to_json(&bytes).unwrap()).unwrap(),
        json
    );
    // A field that only a newer version knows.
    assert!(
        descriptors()
            .from_json(r#"{"@type":"x/test.Everything","newer":1}"#)
            .is_ok()
    );
}

#[test]
fn json_that_cannot_be_is_refused_with_the_reason() {
    let unknown = DataError::UnknownType("x/test.Unknown".into());
    assert_eq!(
        descriptors().from_json(r#"{"@type":"x/test.Unknown"}"#),
        Err(unknown.clone())
    );
    assert_eq!(
        descriptors().to_json(
            &prost_types::Any {
                type_url: "x/test.Unknown".into(),
                value: vec![]
            }
            .encode_to_vec()
        ),
        Err(unknown)
    );
    for json in [
        "",
        "nonsense",
        "[]",
        r#"{"@type":"x/test.Everything","text":5}"#,
        r#"{"@type":"x/test.Everything"} x"#,
    ] {
        assert!(
            matches!(descriptors().from_json(json), Err(DataError::Malformed(_))),
            "{json}"
        );
    }
    assert!(matches!(
        descriptors().to_json(&wrap(EVERYTHING, vec![0xff])),
        Err(DataError::Malformed(_))
    ));
    assert!(matches!(descriptors().to_json(b"\xff"), Err(DataError::Malformed(_))));
}

// === Hostile data ===

/// A message within itself, so many times.
fn nested(field: u32, depth: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..depth {
        let mut outer = Vec::with_capacity(bytes.len() + 8);
        wire::put_bytes(&mut outer, field, &bytes);
        bytes = outer;
    }
    bytes
}

#[test]
fn endless_nesting_is_an_error_and_not_a_crash() {
    let deep = wrap(EVERYTHING, nested(20, 5_000));
    assert!(!descriptors().matches_text(&deep, &Needle::new("x")));
    assert!(descriptors().values(&deep, &vec!["child"; 5_000].join(".")).is_empty());
    assert!(descriptors().values(&deep, "child").is_empty());
    assert!(descriptors().to_json(&deep).is_err());
    let mask = Mask::new([vec!["child"; 100].join(".")]).unwrap();
    assert!(descriptors().merge(Some(&deep), Some(&deep), &mask).is_err());

    let mut anys = data(EVERYTHING, json!({"text": "inside"}));
    for _ in 0..5_000 {
        anys = wrap("google.protobuf.Any", anys);
    }
    assert!(matches!(descriptors().to_json(&anys), Err(DataError::Malformed(_))));
    assert!(descriptors().values(&anys, "text").is_empty());
    assert_eq!(network(&anys), None);

    let json = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(
        descriptors()
            .from_json(&format!(r#"{{"@type":"x/google.protobuf.Value","value":{json}}}"#))
            .is_err()
    );
}

#[test]
fn nesting_within_the_bound_works() {
    let deep = wrap(EVERYTHING, nested(20, 90));
    assert_eq!(
        descriptors().values(&deep, &format!("{}.flag", vec!["child"; 90].join("."))),
        ["false"]
    );
    assert!(descriptors().to_json(&deep).is_ok());
}

// === Properties ===

fn paths() -> impl Strategy<Value = String> {
    let names = prop::sample::select(vec![
        "flag",
        "int32_field",
        "uint64_field",
        "sint64_field",
        "float_field",
        "doubleField",
        "text",
        "data",
        "color",
        "child",
        "child",
        "at",
        "seconds",
        "lasts",
        "wrapped_text",
        "wrapped_number",
        "value",
        "json",
        "list",
        "any",
        "maybe_text",
        "maybeNumber",
        "texts",
        "numbers",
        "unpacked",
        "children",
        "children",
        "colors",
        "doubles",
        "labels",
        "claims",
        "by_number",
        "by_flag",
        "chosen_text",
        "chosen_child",
        "a",
        "x",
        "y",
        "1",
        "true",
        "nonsense",
        "",
    ]);
    prop::collection::vec(names, 0..5).prop_map(|names| names.join("."))
}

/// Paths that a patch can mask, save for a few.
fn masks() -> impl Strategy<Value = String> {
    let parents = prop::sample::select(vec!["child", "chosen_child", "chosen_tree"]);
    let leaves = prop::sample::select(vec![
        "flag",
        "sint32_field",
        "double_field",
        "text",
        "data",
        "color",
        "child",
        "at",
        "at.seconds",
        "json",
        "json.fields",
        "any",
        "any.value",
        "maybe_text",
        "maybe_number",
        "texts",
        "numbers",
        "unpacked",
        "children",
        "labels",
        "claims",
        "chosen_text",
        "chosen_number",
        "chosen_child",
        "chosen_tree",
        "chosen_tree.text",
        "value",
        "value.string_value",
        "value.struct_value",
        "nonsense",
    ]);
    (prop::collection::vec(parents, 0..3), leaves).prop_map(|(mut names, leaf)| {
        names.push(leaf);
        names.join(".")
    })
}

fn entropy() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

/// Two encoded messages one after the other, which decode to their merger: fields that occur twice.
fn doubled(entropy: &[u8]) -> (Vec<u8>, DynamicMessage) {
    let mut entropy = Entropy::new(entropy);
    let descriptor = message_type(EVERYTHING);
    let mut bytes = entropy.message(&descriptor, 3).encode_to_vec();
    bytes.extend(entropy.message(&descriptor, 3).encode_to_vec());
    let message = DynamicMessage::decode(descriptor, &bytes[..]).unwrap();
    (bytes, message)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn values_are_those_of_the_decoded_message(entropy in entropy(), path in paths()) {
        let (bytes, message) = doubled(&entropy);
        let mut expected = Vec::new();
        model_values(&message, &path, &mut expected);
        let mut found = descriptors().values(&wrap(EVERYTHING, bytes), &path);
        expected.sort();
        found.sort();
        prop_assert_eq!(found, expected, "{}", path);
    }

    #[test]
    fn texts_are_those_of_the_decoded_message(entropy in entropy(), text in prop::sample::select(vec!["a", "b", "äb", "10", "text", "z"])) {
        let message = Entropy::new(&entropy).message(&message_type(EVERYTHING), 3);
        let found = descriptors().matches_text(&wrap(EVERYTHING, message.encode_to_vec()), &Needle::new(text));
        prop_assert_eq!(found, model_text(&message, text));
    }

    #[test]
    fn merges_are_those_of_the_decoded_messages(existing in entropy(), update in entropy(), mask in prop::collection::vec(masks(), 0..4)) {
        let (existing, mut message) = doubled(&existing);
        let (update, update_message) = doubled(&update);
        let expected = model_merge(&mut message, &update_message, &mask);
        let merged = descriptors().merge(
            Some(&wrap(EVERYTHING, existing)), Some(&wrap(EVERYTHING, update)), &Mask::new(&mask).unwrap());
        match expected {
            Err(reason) => prop_assert!(merged.is_err(), "{}", reason),
            Ok(()) => {
                let any = prost_types::Any::decode(merged.unwrap()).unwrap();
                prop_assert_eq!(any.type_url, "type.googleapis.com/test.Everything");
                let merged = DynamicMessage::decode(message_type(EVERYTHING), &any.value[..]).unwrap();
                // Not by its debug form, which has no end for messages with a oneof.
                let show = |message: &DynamicMessage| serde_json::to_string(message);
                prop_assert!(merged == message, "{:?} instead of {:?}", show(&merged), show(&message));
            }
        }
    }

    #[test]
    fn json_goes_there_and_back(entropy in entropy()) {
        let (bytes, message) = doubled(&entropy);
        let json = descriptors().to_json(&wrap(EVERYTHING, bytes)).unwrap();
        let any = prost_types::Any::decode(&descriptors().from_json(&json).unwrap()[..]).unwrap();
        prop_assert_eq!(any.type_url, "type.googleapis.com/test.Everything");
        let back = DynamicMessage::decode(message_type(EVERYTHING), &any.value[..]).unwrap();
        // Inside an `Any` the order of fields may change, so that JSON is what must be equal.
        prop_assert_eq!(serde_json::to_value(&back).unwrap(), serde_json::to_value(&message).unwrap());
    }

    #[test]
    fn nothing_panics_on_damaged_data(
        entropy in entropy(),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        path in paths(),
    ) {
        let (mut bytes, _) = doubled(&entropy);
        for (place, byte) in noise {
            if !bytes.is_empty() {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
        }
        for name in [EVERYTHING, "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.Any", "google.protobuf.Timestamp"] {
            for data in [wrap(name, bytes.clone()), bytes.clone()] {
                let values = descriptors().values(&data, &path);
                for value in &values {
                    prop_assert!(descriptors().any_value(&data, &path, &mut |other| other == value));
                }
                let _ = descriptors().matches_text(&data, &Needle::new("a"));
                let _ = descriptors().to_json(&data);
                let _ = descriptors().merge(Some(&data), Some(&data), &Mask::new([&path]).unwrap());
                let _ = network(&data);
                let _ = check_any(&data);
            }
        }
    }

    #[test]
    fn a_needle_is_found_as_in_lower_case(text in "\\PC{0,12}", part in "\\PC{0,3}") {
        let fold = |text: &str| text.chars().flat_map(char::to_lowercase).collect::<String>();
        prop_assert_eq!(Needle::new(&part).is_in(&text), fold(&text).contains(&fold(&part)));
    }
}
