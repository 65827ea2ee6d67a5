//! The filter language of Query.

use anyhow::{Context, ensure};
use databroker_proto::databroker::{QueryRequest, Record};
use serde_json::{Value, json};
use tonic::Code;

use crate::broker::{Broker, refused};
use crate::case::{Case, CheckResult, case};
use crate::records::{
    DeviceCredential, OAuthToken, Session, SessionBinding, SessionBindingRequest, any, claim, deletion, json_struct,
    raw_any, record, session, session_record, timestamp,
};

pub(super) const CASES: &[Case] = &[
    case!(
        "filter.id",
        "filter.id",
        "`id` finds a record by its id, with and without a type.",
        id
    ),
    case!(
        "filter.type",
        "filter.type",
        "`type` compares the record's type, in a Query over all types too.",
        record_type
    ),
    case!(
        "filter.indexed_equality",
        "filter.index",
        "Equality on an indexed field finds exactly the records with that value, in order of their ids.",
        indexed_equality
    ),
    case!(
        "filter.index_of_older_records",
        "filter.index",
        "An index that is set later covers the records that are there already.",
        index_of_older_records
    ),
    case!(
        "filter.index_follows_changes",
        "filter.index",
        "After updates, deletes and new creations an index finds records by their present value only.",
        index_follows_changes
    ),
    case!(
        "filter.index_removed",
        "filter.unindexed",
        "An index may be removed again; the field still answers, and so does another one whose name begins alike.",
        index_removed
    ),
    case!(
        "filter.index_value_is_literal",
        "filter.index",
        "Indexed values are literal: prefixes, NUL, other cases and separators find nothing else.",
        index_value_is_literal
    ),
    case!(
        "filter.indexed_nested_field",
        "filter.index",
        "A field of a nested message can be indexed.",
        indexed_nested_field
    ),
    case!(
        "filter.index_beside_lists",
        "filter.index",
        "Records with lists and maps are indexed like others, and the server stays up.",
        index_beside_lists
    ),
    case!(
        "filter.unindexed_equality",
        "filter.unindexed",
        "Equality works on fields that are not indexed.",
        unindexed_equality
    ),
    case!(
        "filter.equality_names",
        "filter.grammar",
        "`=`, `==`, `$eq`, `$equals`, `$is` and a plain value all mean equality.",
        equality_names
    ),
    case!(
        "filter.keys_are_joined_by_and",
        "filter.grammar",
        "The keys of an object are joined by AND.",
        keys_are_joined_by_and
    ),
    case!(
        "filter.lists_are_joined_by_or",
        "filter.grammar",
        "A list at a path is the OR of its elements.",
        lists_are_joined_by_or
    ),
    case!(
        "filter.and_or",
        "filter.grammar",
        "`$and` and `$or` join lists of filters, nest, and stand beside other keys.",
        and_or
    ),
    case!(
        "filter.empty",
        "filter.empty",
        "The empty object and the empty list match no record.",
        empty
    ),
    case!(
        "filter.absent",
        "filter.empty",
        "No filter at all matches every record.",
        absent
    ),
    case!(
        "filter.invalid",
        "filter.invalid",
        "`$and` or `$or` without a list is INVALID_ARGUMENT `invalid query filter: ...`.",
        invalid
    ),
    case!(
        "filter.hostile",
        "filter.invalid",
        "A filter nested a hundred deep, with ten thousand values, or with a value of no kind is answered or refused as INVALID_ARGUMENT, and the server stays up.",
        hostile
    ),
    case!(
        "filter.nested_field",
        "filter.path",
        "A path leads into nested messages, written with dots or nested objects.",
        nested_field
    ),
    case!(
        "filter.map_key",
        "filter.path",
        "A path leads to a map's value by its key, underscores and capitals included.",
        map_key
    ),
    case!(
        "filter.indexed_map_key",
        "filter.index",
        "A map's value by its key can be indexed.",
        indexed_map_key
    ),
    case!(
        "filter.list_elements",
        "filter.path",
        "A path that goes through a list matches any of its elements.",
        list_elements
    ),
    case!(
        "filter.struct_data",
        "filter.path",
        "Paths lead into JSON data: nested objects, lists, texts, numbers, flags.",
        struct_data
    ),
    case!(
        "filter.scalars",
        "filter.values",
        "Flags compare as `true` and `false`, enums by name, numbers as texts; null finds what has no value.",
        scalars
    ),
    case!(
        "filter.siblings_at_depth",
        "filter.path",
        "Sibling keys four objects deep are told apart.",
        siblings_at_depth
    ),
    case!(
        "filter.unknown_field",
        "filter.path",
        "A field that no record has matches nothing and is no error.",
        unknown_field
    ),
    case!(
        "filter.undecodable_data",
        "filter.path",
        "Records of unknown types, without data or with garbage match nothing and do not disturb the others.",
        undecodable_data
    ),
    case!(
        "filter.not",
        "filter.not",
        "`$not` negates what it holds: a value, a list, an object, another `$not`.",
        not
    ),
    case!(
        "filter.not_equal",
        "filter.operators",
        "`!=` and `$doesNotEqual` match where `=` does not, records without the field among them.",
        not_equal
    ),
    case!(
        "filter.contains",
        "filter.operators",
        "`$contains` finds text within text.",
        contains
    ),
    case!(
        "filter.does_not_contain",
        "filter.operators",
        "`$doesNotContain` is the opposite of `$contains`.",
        does_not_contain
    ),
    case!(
        "filter.starts_with",
        "filter.operators",
        "`$startsWith` compares the beginning.",
        starts_with
    ),
    case!(
        "filter.ends_with",
        "filter.operators",
        "`$endsWith` compares the end.",
        ends_with
    ),
    case!(
        "filter.is_any_of",
        "filter.operators",
        "`$isAnyOf` matches any of a list.",
        is_any_of
    ),
    case!(
        "filter.is_empty",
        "filter.operators",
        "`$isEmpty` matches the empty text and what is not set; `$isNotEmpty` the opposite.",
        is_empty
    ),
    case!(
        "filter.less_and_greater",
        "filter.operators",
        "`<`, `<=`, `>` and `>=` compare texts bytewise; what has no value passes none.",
        less_and_greater
    ),
    case!(
        "filter.less_and_greater_numbers",
        "filter.operators",
        "`<`, `<=`, `>` and `>=` compare numbers as numbers: 9 is less than 10.",
        less_and_greater_numbers
    ),
    case!(
        "filter.before_and_after",
        "filter.operators",
        "`$before`, `$after`, `$onOrBefore` and `$onOrAfter` compare times, whatever their time zones.",
        before_and_after
    ),
    case!(
        "filter.operators_combine",
        "filter.operators",
        "Several operators at one path are joined by AND, and operators work within `$or`, `$and` and `$not`.",
        operators_combine
    ),
    case!(
        "filter.count",
        "filter.count",
        "The total counts the matches, not the records, and paging counts within the matches.",
        count
    ),
    case!(
        "filter.standard_lookup",
        "filter.index",
        "Pomerium's own lookup, an `$or` of `id` and `$index` with limit 1, finds a record by id.",
        standard_lookup
    ),
];

async fn id(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (filter, expected) in [
        (json!({ "id": "1" }), &["1"][..]),
        (json!({ "id": "no" }), &[]),
        (json!({ "id": "" }), &[]),
        (json!({ "id": ["1", "3"] }), &["1", "3"]),
        (json!({ "id": { "$eq": "2" } }), &["2"]),
        (json!({ "$and": [{ "id": "1" }, { "id": "2" }] }), &[]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    let other = broker.unique();
    let unique = broker.unique();
    broker
        .put(vec![
            session_record(&sessions.record_type, &unique, "x"),
            session_record(&other, &unique, "x"),
        ])
        .await?;
    let found = broker.filter("", &json!({ "id": unique })).await?;
    ensure!(found.len() == 2, "without a type, id finds {found:?}");
    Ok(())
}

async fn record_type(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    let own = &sessions.record_type;
    sessions.find(&json!({ "type": own, "id": "1" }), &["1"]).await?;
    sessions.find(&json!({ "type": "other", "id": "1" }), &[]).await?;
    let found = broker.filter("", &json!({ "type": own })).await?;
    ensure!(
        found == ["1", "2", "3", "4"],
        "over all types, the type finds {found:?}"
    );
    Ok(())
}

async fn indexed_equality(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id", "idp_id"]).await?;
    for (filter, expected) in [
        (json!({ "user_id": "alice" }), &["1", "3"][..]),
        (json!({ "user_id": "bob" }), &["2"]),
        (json!({ "user_id": "nobody" }), &[]),
        (json!({ "idp_id": "google" }), &["1", "2"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn index_of_older_records(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let records = [("1", "alice"), ("2", "bob"), ("3", "alice")];
    broker
        .put(
            records
                .map(|(id, user)| session_record(&record_type, id, user))
                .to_vec(),
        )
        .await?;
    broker.index(&record_type, &["user_id"]).await?;
    let found = broker.filter(&record_type, &json!({ "user_id": "alice" })).await?;
    ensure!(found == ["1", "3"], "found {found:?}");
    Ok(())
}

async fn index_follows_changes(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id"]).await?;
    let own = &sessions.record_type;
    broker.put_one(session_record(own, "1", "bob")).await?;
    sessions.find(&json!({ "user_id": "alice" }), &["3"]).await?;
    sessions.find(&json!({ "user_id": "bob" }), &["1", "2"]).await?;
    // A delete that carries no data, or other data, must clean up all the same.
    broker.put_one(deletion(own, "1")).await?;
    broker
        .put_one(Record {
            data: Some(any(&session("2", "mallory"))),
            ..deletion(own, "2")
        })
        .await?;
    sessions.find(&json!({ "user_id": "bob" }), &[]).await?;
    broker
        .put(vec![
            session_record(own, "1", "carol"),
            session_record(own, "2", "carol"),
        ])
        .await?;
    sessions.find(&json!({ "user_id": "bob" }), &[]).await?;
    sessions.find(&json!({ "user_id": "carol" }), &["1", "2"]).await
}

async fn index_removed(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.index(&record_type, &["id", "idp_id", "user_id"]).await?;
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker.index(&record_type, &["idp_id"]).await?;
    for filter in [json!({ "user_id": "alice" }), json!({ "idp_id": "idp" })] {
        let found = broker.filter(&record_type, &filter).await?;
        ensure!(found == ["1"], "{filter} finds {found:?}");
    }
    Ok(())
}

async fn index_value_is_literal(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.index(&record_type, &["user_id"]).await?;
    let values = ["a", "ab", "a\0b", "A", "a.b", "a%", "ü", "a/b", " a"];
    let records = values
        .iter()
        .enumerate()
        .map(|(n, value)| session_record(&record_type, &n.to_string(), value))
        .collect();
    broker.put(records).await?;
    for (n, value) in values.iter().enumerate() {
        let found = broker.filter(&record_type, &json!({ "user_id": value })).await?;
        ensure!(found == [n.to_string()], "{value:?} finds {found:?}");
    }
    Ok(())
}

async fn indexed_nested_field(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.index(&record_type, &["oauth_token.token_type"]).await?;
    let stored = ["Bearer", "Basic"].map(|token_type| {
        let session = Session {
            oauth_token: Some(OAuthToken {
                token_type: token_type.to_owned(),
                ..OAuthToken::default()
            }),
            ..session(token_type, "alice")
        };
        record(&record_type, token_type, any(&session))
    });
    broker.put(stored.to_vec()).await?;
    for filter in [
        json!({ "oauth_token.token_type": "Basic" }),
        json!({ "oauth_token": { "token_type": "Basic" } }),
    ] {
        let found = broker.filter(&record_type, &filter).await?;
        ensure!(found == ["Basic"], "{filter} finds {found:?}");
    }
    Ok(())
}

async fn index_beside_lists(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    broker.index(&sessions.record_type, &["user_id"]).await?;
    sessions.find(&json!({ "user_id": "alice" }), &["1", "3"]).await
}

async fn unindexed_equality(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (filter, expected) in [
        (json!({ "user_id": "alice" }), &["1", "3"][..]),
        (json!({ "user_id": "nobody" }), &[]),
        (json!({ "idp_id": "google", "user_id": "alice" }), &["1"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn equality_names(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id"]).await?;
    for name in ["=", "==", "$eq", "$equals", "$is"] {
        sessions
            .find(&json!({ "user_id": { name: "alice" } }), &["1", "3"])
            .await?;
    }
    sessions.find(&json!({ "user_id": "alice" }), &["1", "3"]).await
}

async fn keys_are_joined_by_and(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id", "idp_id"]).await?;
    for (filter, expected) in [
        (json!({ "user_id": "alice", "idp_id": "google" }), &["1"][..]),
        (json!({ "user_id": "bob", "idp_id": "okta" }), &[]),
        (json!({ "user_id": "alice", "idp_id": "okta", "id": "3" }), &["3"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn lists_are_joined_by_or(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id", "idp_id"]).await?;
    for (filter, expected) in [
        (json!({ "user_id": ["alice", "bob"] }), &["1", "2", "3"][..]),
        (json!({ "user_id": ["nobody", "bob"] }), &["2"]),
        (json!({ "user_id": ["bob", "bob"] }), &["2"]),
        (
            json!({ "user_id": ["alice"], "idp_id": ["okta", "google"] }),
            &["1", "3"],
        ),
        (json!({ "user_id": [{ "$eq": "alice" }, ["bob"]] }), &["1", "2", "3"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn and_or(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id", "idp_id"]).await?;
    for (filter, expected) in [
        (
            json!({ "$or": [{ "user_id": "bob" }, { "idp_id": "okta" }] }),
            &["2", "3"][..],
        ),
        (
            json!({ "$and": [{ "user_id": "alice" }, { "idp_id": "okta" }] }),
            &["3"],
        ),
        (json!({ "$or": [{ "user_id": "bob" }] }), &["2"]),
        (json!({ "$and": [{ "user_id": "bob" }] }), &["2"]),
        (
            json!({ "$or": [{ "$and": [{ "user_id": "alice" }, { "idp_id": "google" }] }, { "id": "4" }] }),
            &["1", "4"],
        ),
        (
            json!({ "user_id": "alice", "$or": [{ "idp_id": "okta" }, { "id": "2" }] }),
            &["3"],
        ),
        (json!({ "user_id": { "$or": ["alice", "bob"] } }), &["1", "2", "3"]),
        (json!({ "user_id": { "$and": ["alice", "bob"] } }), &[]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn empty(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for filter in [
        json!({}),
        json!({ "user_id": [] }),
        json!({ "$or": [] }),
        json!({ "$and": [] }),
    ] {
        sessions.find(&filter, &[]).await?;
    }
    Ok(())
}

async fn absent(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    let found = broker.all(&sessions.record_type).await?;
    ensure!(found.len() == 4, "{} of 4 records", found.len());
    Ok(())
}

async fn invalid(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for filter in [
        json!({ "$and": "x" }),
        json!({ "$or": { "user_id": "alice" } }),
        json!({ "$or": null }),
        json!({ "user_id": { "$and": 1 } }),
        json!({ "$and": [{ "$or": true }] }),
    ] {
        let result = broker.filter(&sessions.record_type, &filter).await;
        let status = refused(result, &[Code::InvalidArgument]).with_context(|| filter.to_string())?;
        ensure!(
            status.message().starts_with("invalid query filter: "),
            "{filter} is refused with {:?}",
            status.message()
        );
    }
    Ok(())
}

async fn hostile(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    let deep = |depth: usize, wrap: fn(Value) -> Value| {
        (0..depth).fold(json!({ "user_id": "alice" }), |filter, _| wrap(filter))
    };
    let many: Vec<String> = (0..10_000).map(|n| format!("user-{n}")).collect();
    let filters = [
        deep(30, |filter| json!({ "$and": [filter] })),
        deep(30, |filter| json!({ "x": filter })),
        json!({ "user_id": many }),
        json!({ "$or": many.iter().map(|user| json!({ "user_id": user })).collect::<Vec<_>>() }),
        json!({ "": "x" }),
        json!({ "$nope": "x" }),
        json!({ "user_id": { "$eq": { "a": [1, 2] } } }),
        json!({ "user_id": "x".repeat(1 << 20) }),
        json!({ "$index": 17 }),
    ];
    let mut structs: Vec<prost_types::Struct> = filters.iter().map(json_struct).collect();
    let kindless = prost_types::Value { kind: None };
    structs.push(prost_types::Struct {
        fields: [("user_id".to_owned(), kindless)].into(),
    });
    for filter in structs {
        let request = QueryRequest {
            r#type: sessions.record_type.clone(),
            limit: 10,
            filter: Some(filter),
            ..QueryRequest::default()
        };
        if let Err(status) = broker.query(request).await {
            ensure!(
                status.code() == Code::InvalidArgument,
                "refused with {:?} ({})",
                status.code(),
                status.message()
            );
        }
        broker.server_info().await.context("the server after it")?;
    }
    Ok(())
}

async fn nested_field(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for filter in [
        json!({ "oauth_token.token_type": "Bearer" }),
        json!({ "oauth_token": { "token_type": "Bearer" } }),
        json!({ "oauth_token": { "token_type": { "$eq": "Bearer" } } }),
    ] {
        sessions.find(&filter, &["1"]).await?;
    }
    sessions
        .find(&json!({ "oauth_token": { "token_type": "Basic" } }), &[])
        .await
}

async fn map_key(broker: Broker) -> CheckResult {
    let record_type = bindings(&broker).await?;
    for (filter, expected) in [
        (json!({ "details": { "ip": "10.0.0.1" } }), &["1"][..]),
        (json!({ "details.ip": "10.0.0.2" }), &["2"]),
        (json!({ "details": { "Snake_Case": "x" } }), &["2"]),
        (json!({ "details": { "no": "x" } }), &[]),
    ] {
        let found = broker.filter(&record_type, &filter).await?;
        ensure!(found == expected, "{filter} finds {found:?}, not {expected:?}");
    }
    Ok(())
}

async fn indexed_map_key(broker: Broker) -> CheckResult {
    let record_type = bindings(&broker).await?;
    broker.index(&record_type, &["details.ip"]).await?;
    let found = broker
        .filter(&record_type, &json!({ "details": { "ip": "10.0.0.2" } }))
        .await?;
    ensure!(found == ["2"], "found {found:?}");
    Ok(())
}

async fn list_elements(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (filter, expected) in [
        (json!({ "audience": "https://a.example.com" }), &["1", "2"][..]),
        (json!({ "audience": "https://b.example.com" }), &["2"]),
        (json!({ "audience": { "$endsWith": ".example.com" } }), &["1", "2", "3"]),
        (json!({ "device_credentials": { "type_id": "usb" } }), &["3"]),
        (json!({ "claims": { "groups": "admin" } }), &["1"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn struct_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = async |id: &str, data: Value| broker.put_one(record(&record_type, id, any(&json_struct(&data)))).await;
    put(
        "1",
        json!({ "name": "Alice", "team": { "lead": "Bob" }, "tags": ["a", "b"], "age": 42, "on": true }),
    )
    .await?;
    put(
        "2",
        json!({ "name": "Carol", "team": { "lead": "Dan" }, "tags": ["b"], "age": 1e21, "on": false }),
    )
    .await?;
    put("3", json!({ "name": null, "snake_case": "x", "camelCase": "y" })).await?;
    for (filter, expected) in [
        (json!({ "name": "Alice" }), &["1"][..]),
        (json!({ "team": { "lead": "Dan" } }), &["2"]),
        (json!({ "tags": "b" }), &["1", "2"]),
        (json!({ "age": 42 }), &["1"]),
        (json!({ "age": 1e21 }), &["2"]),
        (json!({ "on": true }), &["1"]),
        (json!({ "on": "false" }), &["2"]),
        (json!({ "snake_case": "x" }), &["3"]),
        (json!({ "camelCase": "y" }), &["3"]),
    ] {
        let found = broker.filter(&record_type, &filter).await?;
        ensure!(found == expected, "{filter} finds {found:?}, not {expected:?}");
    }
    Ok(())
}

async fn scalars(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let request = |state| SessionBindingRequest {
        state,
        ..SessionBindingRequest::default()
    };
    let refresh = Session {
        refresh_disabled: true,
        ..session("3", "")
    };
    broker
        .put(vec![
            record(&record_type, "1", any(&request(1))),
            record(&record_type, "2", any(&request(0))),
            record(&record_type, "3", any(&refresh)),
        ])
        .await?;
    for (filter, expected) in [
        (json!({ "state": "Accepted" }), &["1"][..]),
        (json!({ "state": "InFlight" }), &["2"]),
        (json!({ "refresh_disabled": true }), &["3"]),
        (json!({ "refresh_disabled": "true" }), &["3"]),
        (json!({ "version": 1 }), &["3"]),
        (json!({ "version": "1" }), &["3"]),
        (json!({ "user_id": null }), &["1", "2", "3"]),
    ] {
        let found = broker.filter(&record_type, &filter).await?;
        ensure!(found == expected, "{filter} finds {found:?}, not {expected:?}");
    }
    Ok(())
}

async fn siblings_at_depth(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let data = json!({ "a": { "b": { "c": { "d": "1", "e": "2", "f": "3" } } } });
    broker
        .put_one(record(&record_type, "1", any(&json_struct(&data))))
        .await?;
    broker.index(&record_type, &["a.b.c.d", "a.b.c.e", "a.b.c.f"]).await?;
    let found = broker.filter(&record_type, &data).await?;
    ensure!(found == ["1"], "the record's own JSON as a filter finds {found:?}");
    let crossed = json!({ "a": { "b": { "c": { "d": "3", "e": "3", "f": "3" } } } });
    let found = broker.filter(&record_type, &crossed).await?;
    ensure!(found.is_empty(), "a filter with other values finds {found:?}");
    Ok(())
}

async fn unknown_field(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for filter in [
        json!({ "no_such_field": "alice" }),
        json!({ "user_id": { "deeper": "alice" } }),
        json!({ "oauth_token": { "no": { "such": "path" } } }),
    ] {
        sessions.find(&filter, &[]).await?;
    }
    Ok(())
}

async fn undecodable_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.index(&record_type, &["user_id"]).await?;
    broker
        .put(vec![
            record(&record_type, "1", raw_any("example.com/no.such.Type", vec![0x1a, 5])),
            record(
                &record_type,
                "2",
                raw_any("type.googleapis.com/session.Session", vec![0xff; 9]),
            ),
            Record {
                data: None,
                ..session_record(&record_type, "3", "")
            },
            session_record(&record_type, "4", "alice"),
        ])
        .await?;
    let found = broker.filter(&record_type, &json!({ "user_id": "alice" })).await?;
    ensure!(found == ["4"], "found {found:?}");
    let found = broker
        .filter(&record_type, &json!({ "id": ["1", "2", "3", "4"] }))
        .await?;
    ensure!(found == ["1", "2", "3", "4"], "by id, found {found:?}");
    Ok(())
}

async fn not(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id", "idp_id"]).await?;
    for (filter, expected) in [
        (json!({ "user_id": { "$not": "alice" } }), &["2", "4"][..]),
        (json!({ "user_id": { "$not": ["alice", "bob"] } }), &["4"]),
        (json!({ "$not": { "user_id": "alice" } }), &["2", "4"]),
        (
            json!({ "$not": { "user_id": "alice", "idp_id": "okta" } }),
            &["1", "2", "4"],
        ),
        (json!({ "$not": { "$not": { "user_id": "alice" } } }), &["1", "3"]),
        (json!({ "idp_id": "google", "user_id": { "$not": "alice" } }), &["2"]),
        (json!({ "$not": { "id": "1" } }), &["2", "3", "4"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn not_equal(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for name in ["!=", "$doesNotEqual"] {
        sessions
            .find(&json!({ "user_id": { name: "alice" } }), &["2", "4"])
            .await?;
        sessions
            .find(
                &json!({ "oauth_token": { "token_type": { name: "Bearer" } } }),
                &["2", "3", "4"],
            )
            .await?;
    }
    Ok(())
}

async fn contains(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (text, expected) in [
        ("lic", &["1", "3"][..]),
        ("alice", &["1", "3"]),
        ("LIC", &[]),
        ("b", &["2"]),
    ] {
        sessions
            .find(&json!({ "user_id": { "$contains": text } }), expected)
            .await?;
    }
    Ok(())
}

async fn does_not_contain(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    sessions
        .find(&json!({ "user_id": { "$doesNotContain": "lic" } }), &["2", "4"])
        .await
}

async fn starts_with(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (text, expected) in [("al", &["1", "3"][..]), ("lice", &[]), ("bob", &["2"])] {
        sessions
            .find(&json!({ "user_id": { "$startsWith": text } }), expected)
            .await?;
    }
    Ok(())
}

async fn ends_with(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (text, expected) in [("ce", &["1", "3"][..]), ("alic", &[]), ("bob", &["2"])] {
        sessions
            .find(&json!({ "user_id": { "$endsWith": text } }), expected)
            .await?;
    }
    Ok(())
}

async fn is_any_of(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    sessions
        .find(
            &json!({ "user_id": { "$isAnyOf": ["bob", "alice"] } }),
            &["1", "2", "3"],
        )
        .await?;
    sessions
        .find(&json!({ "user_id": { "$isAnyOf": ["nobody"] } }), &[])
        .await?;
    sessions.find(&json!({ "user_id": { "$isAnyOf": [] } }), &[]).await
}

async fn is_empty(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    sessions
        .find(&json!({ "user_id": { "$isEmpty": true } }), &["4"])
        .await?;
    sessions
        .find(&json!({ "user_id": { "$isNotEmpty": true } }), &["1", "2", "3"])
        .await?;
    sessions
        .find(
            &json!({ "oauth_token": { "token_type": { "$isEmpty": true } } }),
            &["2", "3", "4"],
        )
        .await
}

async fn less_and_greater(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (name, expected) in [
        ("<", &["1", "3"][..]),
        ("<=", &["1", "2", "3"]),
        (">", &[]),
        (">=", &["2"]),
    ] {
        sessions.find(&json!({ "user_id": { name: "bob" } }), expected).await?;
    }
    Ok(())
}

async fn less_and_greater_numbers(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let records = [9, 10, 100].map(|number| {
        record(
            &record_type,
            &format!("{number:03}"),
            any(&json_struct(&json!({ "n": number }))),
        )
    });
    broker.put(records.to_vec()).await?;
    for (filter, expected) in [
        (json!({ "n": { "<": 10 } }), &["009"][..]),
        (json!({ "n": { "<=": 10 } }), &["009", "010"]),
        (json!({ "n": { ">": 9.5 } }), &["010", "100"]),
        (json!({ "n": { ">=": "100" } }), &["100"]),
    ] {
        let found = broker.filter(&record_type, &filter).await?;
        ensure!(found == expected, "{filter} finds {found:?}, not {expected:?}");
    }
    Ok(())
}

async fn before_and_after(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    // 2025-01-31T11:00:00Z, noon, and an hour later.
    let records = [1_738_321_200, 1_738_324_800, 1_738_328_400].map(|seconds| {
        let session = Session {
            expires_at: Some(timestamp(seconds)),
            ..session("", "")
        };
        record(&record_type, &seconds.to_string(), any(&session))
    });
    broker.put(records.to_vec()).await?;
    for (name, expected) in [
        ("$before", &["1738321200"][..]),
        ("$onOrBefore", &["1738321200", "1738324800"]),
        ("$after", &["1738328400"]),
        ("$onOrAfter", &["1738324800", "1738328400"]),
    ] {
        for noon in [
            "2025-01-31T12:00:00Z",
            "2025-01-31T13:00:00+01:00",
            "2025-01-31T12:00:00.000Z",
        ] {
            let filter = json!({ "expires_at": { name: noon } });
            let found = broker.filter(&record_type, &filter).await?;
            ensure!(found == expected, "{filter} finds {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

async fn operators_combine(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (filter, expected) in [
        (
            json!({ "user_id": { "$startsWith": "a", "$endsWith": "e" } }),
            &["1", "3"][..],
        ),
        (json!({ "user_id": { "$startsWith": "a", "$endsWith": "b" } }), &[]),
        (
            json!({ "$or": [{ "user_id": { "$startsWith": "b" } }, { "idp_id": { "!=": "google" } }] }),
            &["2", "3", "4"],
        ),
        (json!({ "user_id": { "$not": { "$contains": "o" } } }), &["1", "3", "4"]),
        (json!({ "id": { ">": "2" } }), &["3", "4"]),
    ] {
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

async fn count(broker: Broker) -> CheckResult {
    let sessions = Sessions::put_indexed(&broker, &["user_id"]).await?;
    for (offset, limit, expected) in [(0, 1, Some("1")), (1, 1, Some("3")), (2, 1, None), (0, 0, None)] {
        let request = QueryRequest {
            r#type: sessions.record_type.clone(),
            offset,
            limit,
            filter: Some(json_struct(&json!({ "user_id": "alice" }))),
            ..QueryRequest::default()
        };
        let response = broker.query(request).await?;
        let found = response.records.first().map(|record| record.id.as_str());
        ensure!(response.total_count == 2, "total {}", response.total_count);
        ensure!(
            found == expected,
            "offset {offset}, limit {limit}: {found:?}, not {expected:?}"
        );
    }
    Ok(())
}

async fn standard_lookup(broker: Broker) -> CheckResult {
    let sessions = Sessions::put(&broker).await?;
    for (id, expected) in [("2", &["2"][..]), ("no", &[])] {
        let filter = json!({ "$or": [{ "id": id }, { "$index": id }] });
        sessions.find(&filter, expected).await?;
    }
    Ok(())
}

/// Four sessions under a type of their own.
struct Sessions {
    broker: Broker,
    record_type: String,
}

impl Sessions {
    /// Sessions with lists, maps and nested messages.
    async fn put(broker: &Broker) -> anyhow::Result<Self> {
        let [first, second, third, fourth] = Self::plain();
        let sessions = [
            Session {
                audience: vec!["https://a.example.com".to_owned()],
                oauth_token: Some(OAuthToken {
                    token_type: "Bearer".to_owned(),
                    ..OAuthToken::default()
                }),
                claims: [("groups".to_owned(), claim(&["user", "admin"]))].into(),
                ..first
            },
            Session {
                audience: vec!["https://a.example.com".to_owned(), "https://b.example.com".to_owned()],
                ..second
            },
            Session {
                audience: vec!["https://c.example.com".to_owned()],
                device_credentials: vec![DeviceCredential {
                    type_id: "usb".to_owned(),
                    id: None,
                }],
                ..third
            },
            fourth,
        ];
        Self::put_all(broker, &sessions).await
    }

    /// Sessions without lists, maps and nested messages, and with these fields indexed.
    async fn put_indexed(broker: &Broker, fields: &[&str]) -> anyhow::Result<Self> {
        let sessions = Self::put_all(broker, &Self::plain()).await?;
        broker.index(&sessions.record_type, fields).await?;
        Ok(sessions)
    }

    fn plain() -> [Session; 4] {
        [
            ("1", "alice", "google"),
            ("2", "bob", "google"),
            ("3", "alice", "okta"),
            ("4", "", ""),
        ]
        .map(|(id, user_id, idp_id)| Session {
            id: id.to_owned(),
            user_id: user_id.to_owned(),
            idp_id: idp_id.to_owned(),
            ..Session::default()
        })
    }

    async fn put_all(broker: &Broker, sessions: &[Session]) -> anyhow::Result<Self> {
        let record_type = broker.unique();
        let records = sessions
            .iter()
            .map(|session| record(&record_type, &session.id, any(session)))
            .collect();
        broker.put(records).await?;
        Ok(Self {
            broker: broker.clone(),
            record_type,
        })
    }

    /// Checks which ids a filter finds.
    async fn find(&self, filter: &Value, expected: &[&str]) -> CheckResult {
        let found = self
            .broker
            .filter(&self.record_type, filter)
            .await
            .with_context(|| filter.to_string())?;
        ensure!(found == expected, "{filter} finds {found:?}, not {expected:?}");
        Ok(())
    }
}

/// Two session bindings with details.
async fn bindings(broker: &Broker) -> anyhow::Result<String> {
    let record_type = broker.unique();
    let binding = |details: &[(&str, &str)]| SessionBinding {
        details: details
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..SessionBinding::default()
    };
    broker
        .put(vec![
            record(&record_type, "1", any(&binding(&[("ip", "10.0.0.1")]))),
            record(
                &record_type,
                "2",
                any(&binding(&[("ip", "10.0.0.2"), ("Snake_Case", "x")])),
            ),
        ])
        .await?;
    Ok(record_type)
}
