//! Conditions on a real database: random filters over random records.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::time::Duration;

use databroker_sql::{ConnectionString, Environment, Pool, Statement, Value as SqlValue};
use postgres_server::PostgresServer;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use prost::Message as _;
use serde_json::{Value, json};

use crate::data::testing::{Entropy, descriptors, message_type, wrap};
use crate::filter::{Effort, Filter};
use crate::record::Key;

/// Paths into all kinds of fields, and some that lead nowhere.
const PATHS: &[&str] = &[
    "flag",
    "int32_field",
    "int32Field",
    "int64_field",
    "uint32_field",
    "uint64_field",
    "sint64_field",
    "fixed32_field",
    "float_field",
    "double_field",
    "text",
    "data",
    "color",
    "child",
    "child.text",
    "child.flag",
    "child.color",
    "child.int64_field",
    "child.child.at",
    "child.texts",
    "child.wrapped_text",
    "at",
    "at.seconds",
    "lasts",
    "wrapped_text",
    "wrapped_text.value",
    "wrapped_number",
    "json",
    "json.a",
    "json.x.y",
    "json.Ab.a",
    "value",
    "value.a",
    "value.b.a",
    "list",
    "list.a",
    "any",
    "any.text",
    "maybe_text",
    "maybe_number",
    "texts",
    "numbers",
    "unpacked",
    "children.text",
    "children.flag",
    "children.numbers",
    "colors",
    "doubles",
    "labels",
    "labels.a",
    "labels.x.y",
    "claims",
    "claims.a",
    "claims.x.y",
    "claims.x.y.a",
    "by_number.1.text",
    "by_number.text",
    "by_number.2.color",
    "by_flag.true",
    "by_flag",
    "chosen_text",
    "chosen_child.text",
    "a",
    "b",
    "x.y",
    "a.b",
    "nonsense",
    "text.nonsense",
    "",
    "issuer",
    "id_token.issuer",
    "user_id",
    "expires_at",
];

const VALUES: &[&str] = &[
    "",
    "a",
    "A",
    "b",
    "0",
    "-0",
    "1",
    "10",
    "9.5",
    "+5",
    "1e+06",
    "1.5e+06",
    "true",
    "false",
    "RED",
    "GREEN",
    "3",
    "2025-01-31T12:00:00Z",
    "1970-01-01T00:00:00Z",
    "1970-07-16T00:00:00.000000007Z",
    "1000s",
    "x.y",
    "\0",
    "a\"\\b",
    "NaN",
    "+Inf",
    "(",
    "$",
    "\u{1}",
    "é💡\n",
    "YQ==",
];

const OPERATORS: &[&str] = &[
    "=",
    "!=",
    "<",
    "<=",
    ">",
    ">=",
    "$contains",
    "$doesNotContain",
    "$startsWith",
    "$endsWith",
    "$isEmpty",
    "$isNotEmpty",
    "$after",
    "$before",
    "$onOrAfter",
    "$onOrBefore",
];

struct Record {
    key: Key,
    data: Vec<u8>,
}

fn pick<'t, T>(entropy: &mut Entropy<'_>, items: &'t [T]) -> &'t T {
    let place = usize::from(entropy.below(255)) * 256 + usize::from(entropy.below(255));
    &items[place % items.len()]
}

/// A filter whose values are often those of a record.
fn filter(entropy: &mut Entropy<'_>, records: &[Record], depth: u8) -> Value {
    let choice = if depth == 0 { 9 } else { entropy.below(10) };
    let list = |entropy: &mut Entropy<'_>| -> Vec<Value> {
        (0..entropy.below(4))
            .map(|_| filter(entropy, records, depth - 1))
            .collect()
    };
    match choice {
        0 => json!({"$and": list(entropy)}),
        1 => json!({"$or": list(entropy)}),
        2..=4 => json!({"$not": filter(entropy, records, depth - 1)}),
        _ => {
            let path = *pick(entropy, PATHS);
            let mut value = || {
                let record = pick(entropy, records);
                let values = descriptors().values(&record.data, path);
                let text = match values.as_slice() {
                    [] => (*pick(entropy, VALUES)).to_owned(),
                    _ if entropy.below(4) == 0 => (*pick(entropy, VALUES)).to_owned(),
                    values => pick(entropy, values).clone(),
                };
                match entropy.below(6) {
                    0 => json!(text.chars().take(2).collect::<String>()),
                    1 => text
                        .parse::<f64>()
                        .ok()
                        .filter(|number| number.is_finite())
                        .map_or(json!(text), Value::from),
                    2 => text.parse::<bool>().map_or(json!(text), Value::from),
                    _ => json!(text),
                }
            };
            let operand = match value() {
                one if one == "9.5" => json!([one, value(), value()]),
                one => one,
            };
            match entropy.below(3) {
                0 => json!({ path: operand }),
                _ => json!({ path: { *pick(entropy, OPERATORS): operand } }),
            }
        }
    }
}

fn condition(name: &str, filter: &Value) -> Option<String> {
    let record_type = format!("type.googleapis.com/{name}");
    Filter::parse(filter).unwrap().condition(descriptors(), &record_type)
}

#[test]
fn conditions_say_what_json_says() {
    let cases = [
        (
            json!({"user_id": "u\"1"}),
            Some(r#"exists($."userId" ? (@ == "u\"1"))"#),
        ),
        (
            json!({"audience": ["a", "b"]}),
            Some(r#"exists($."audience"[*] ? ((@ == "a" || @ == "b")))"#),
        ),
        (
            json!({"refresh_disabled": false}),
            Some(r#"(exists($."refreshDisabled" ? (@ == false)) || exists($ ? (!exists(@."refreshDisabled"))))"#),
        ),
        (
            json!({"id_token.subject": {"$isEmpty": true}}),
            Some(r#"!(exists($."idToken"."subject" ? (@ != "")))"#),
        ),
        (
            json!({"claims.groups": "g"}),
            Some(r#"exists($."claims"."groups".** ? (@ == "g"))"#),
        ),
        (
            json!({"expires_at": {"$before": "2025-01-31T13:00:00+01:00"}}),
            Some(r#"exists($."expiresAt" ? (@ < "2025-01-31T12:00:00["))"#),
        ),
        (
            json!({"idp_id": {"$contains": "a.b"}}),
            Some(r#"exists($."idpId" ? (@ like_regex "a\\.b"))"#),
        ),
        // A part of an AND is enough, and of an OR all are needed.
        (
            json!({"id": {"$startsWith": "x"}, "idp_id": "i"}),
            Some(r#"exists($."idpId" ? (@ == "i"))"#),
        ),
        (json!({"$or": [{"id": {"$startsWith": "x"}}, {"idp_id": "i"}]}), None),
        (json!({"$not": {"id": {"$startsWith": "x"}, "idp_id": "i"}}), None),
        (
            json!({"$not": {"$or": [{"id": {"$startsWith": "x"}}, {"idp_id": "i"}]}}),
            Some(r#"!(exists($."idpId" ? (@ == "i")))"#),
        ),
        (json!({"no_such_field": "x"}), Some("1 == 0")),
        (json!({"$index": "10.0.0.1"}), None),
    ];
    for (filter, expected) in cases {
        assert_eq!(condition("test.Session", &filter).as_deref(), expected, "{filter}");
    }
    assert_eq!(condition("no.such.Type", &json!({"user_id": "u"})), None);
    let texts = |count: usize| (0..count).map(|text| text.to_string()).collect::<Vec<_>>();
    for (filter, is_said) in [
        (json!({"user_id": texts(128)}), true),
        (json!({"user_id": texts(129)}), false),
        (json!({"user_id": {"$contains": texts(16)}}), true),
        (json!({"user_id": {"$contains": texts(17)}}), false),
        (json!({"user_id": {"$contains": "x".repeat(1 << 10)}}), true),
        (json!({"user_id": {"$contains": "x".repeat(1 + (1 << 10))}}), false),
        (json!({"user_id": "x".repeat(15 << 10)}), true),
        (json!({"user_id": "x".repeat(16 << 10)}), false),
    ] {
        let shown: String = filter.to_string().chars().take(80).collect();
        assert_eq!(condition("test.Session", &filter).is_some(), is_said, "{shown}");
    }
    // One look at every depth, however many names there are: each further one would multiply what a database looks at.
    for path in ["a", "a.b", "a.a.a.a.a"] {
        let said = condition("google.protobuf.Struct", &json!({path: "x"})).unwrap();
        assert_eq!(said, r#"exists($."value".** ? (@ == "x"))"#, "{path}");
    }
}

/// What is left out does not match, whatever the filter and the record; and something is left out.
#[test]
fn paths_have_bounds() {
    // The name of a message that holds itself.
    let deep = |names: usize| format!("{}name", "nested_type.".repeat(names));
    for (record_type, path, is_said) in [
        ("google.protobuf.DescriptorProto", deep(10), true),
        ("google.protobuf.DescriptorProto", deep(100_000), false),
        ("google.protobuf.Struct", "a.".repeat(100_000), false),
        ("google.protobuf.Struct", "a\0b".to_owned(), false),
    ] {
        let mut filter = serde_json::Map::new();
        filter.insert(path.clone(), json!("x"));
        let said = condition(record_type, &Value::Object(filter));
        let begin: String = path.chars().take(20).collect();
        assert_eq!(said.is_some(), is_said, "{record_type} {begin:?}");
    }
}

#[tokio::test]
async fn what_a_condition_leaves_out_does_not_match() {
    const RECORDS: usize = 120;
    const FILTERS: usize = 2_500;
    let server = PostgresServer::start().unwrap();
    let pool = Pool::open(ConnectionString::parse(&server.url(), &Environment::bare()).unwrap())
        .await
        .unwrap();
    let run = async |sql: &str, parameters: &[SqlValue]| {
        let statement = Statement {
            sql,
            parameters,
            max_rows: 1_000_000,
            max_bytes: 64 << 20,
            timeout: Duration::from_secs(30),
        };
        pool.run(&statement, Duration::from_secs(10)).await
    };
    run("CREATE TABLE records (n bigint, data jsonb)", &[]).await.unwrap();

    let mut runner = TestRunner::default();
    let mut bytes = |count: usize| {
        prop::collection::vec(any::<u8>(), count)
            .new_tree(&mut runner)
            .unwrap()
            .current()
    };
    let (mut filters, mut conditions, mut exact, mut left_out) = (0, 0, 0, 0);
    for name in [
        "test.Everything",
        "test.Session",
        "google.protobuf.Struct",
        "google.protobuf.Value",
    ] {
        let mut records = Vec::new();
        for number in 0..RECORDS {
            let entropy = bytes(200);
            let message = Entropy::new(&entropy).message(&message_type(name), 3);
            records.push(Record {
                key: Key::new(format!("type.googleapis.com/{name}"), number.to_string()),
                data: wrap(name, message.encode_to_vec()),
            });
        }
        let json: Vec<_> = records
            .iter()
            .map(|record| descriptors().to_json(&record.data).ok())
            .collect();
        let numbers = SqlValue::Integers((0..i64::try_from(RECORDS).unwrap()).map(Some).collect());
        run("TRUNCATE records", &[]).await.unwrap();
        let insert = "INSERT INTO records SELECT n, data::jsonb FROM unnest($1::bigint[], $2::text[]) AS u(n, data) WHERE data IS NOT NULL";
        run(insert, &[numbers, SqlValue::Texts(json.clone())]).await.unwrap();

        for _ in 0..FILTERS {
            let entropy = bytes(150);
            let written = filter(&mut Entropy::new(&entropy), &records, 3);
            let Ok(filter) = Filter::parse(&written) else { continue };
            filters += 1;
            let Some(condition) = filter.condition(descriptors(), &records[0].key.record_type) else {
                continue;
            };
            conditions += 1;
            let select = "SELECT n FROM records WHERE data @@ $1::jsonpath";
            let found = run(select, &[SqlValue::Text(condition.clone())]).await;
            let found = found.unwrap_or_else(|error| panic!("{error}\n{written}\n{condition}"));
            let found: BTreeSet<_> = found
                .rows
                .into_iter()
                .map(|mut row| match row.pop() {
                    Some(SqlValue::Integer(number)) => usize::try_from(number).unwrap(),
                    other => panic!("{other:?}"),
                })
                .collect();
            let mut is_exact = true;
            for (number, record) in records.iter().enumerate().filter(|(number, _)| json[*number].is_some()) {
                let matches = filter.matches(
                    descriptors(),
                    &record.key,
                    Some(&record.data),
                    &filter.resolution(),
                    &mut Effort::default(),
                );
                let is_found = found.contains(&number);
                assert!(
                    is_found || !matches,
                    "{written}\n{condition}\n{}",
                    json[number].as_deref().unwrap()
                );
                is_exact &= is_found == matches;
                left_out += usize::from(!is_found);
            }
            exact += usize::from(is_exact);
        }
    }
    let shown =
        format!("{filters} filters, {conditions} conditions, {exact} of them exact; {left_out} records left out");
    eprintln!("{shown}");
    assert!(
        conditions > filters / 2 && exact > conditions / 2 && left_out > conditions,
        "{shown}"
    );
}
