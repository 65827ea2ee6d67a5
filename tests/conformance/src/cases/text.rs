//! Query by text: any string in the record, whatever its case.

use anyhow::ensure;
use databroker_proto::databroker::{QueryRequest, Record};
use serde_json::json;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};
use crate::records::{
    DeviceCredential, OAuthToken, Session, SessionBinding, User, any, claim, json_struct, raw_any, record, session,
};

pub(super) const CASES: &[Case] = &[
    case!(
        "text.case_ignored",
        "text.case",
        "The text is found whatever its case and the record's, beyond ASCII too.",
        case_ignored
    ),
    case!(
        "text.depth",
        "text.where",
        "Strings at any depth count: in nested messages, in lists, in lists of messages.",
        depth
    ),
    case!(
        "text.message_map_values",
        "text.map_values",
        "The values of maps count where they are messages, such as claims.",
        message_map_values
    ),
    case!(
        "text.string_map_values",
        "text.map_values",
        "The values of maps count where they are strings, such as a session binding's details.",
        string_map_values
    ),
    case!("text.json", "text.where", "The texts in JSON data count.", json_data),
    case!(
        "text.elsewhere",
        "text.where",
        "Keys of maps, numbers, enums, ids and types of the record itself do not count.",
        elsewhere
    ),
    case!(
        "text.with_filter",
        "text.filter",
        "Text and filter together find what both match, and the total counts that.",
        with_filter
    ),
    case!(
        "text.undecodable",
        "text.undecodable",
        "Records that cannot be decoded never match and do not disturb the others.",
        undecodable
    ),
    case!(
        "text.literal",
        "text.literal",
        "The text is literal: spaces, `%`, `*` and `.` have no meaning.",
        literal
    ),
];

async fn case_ignored(broker: Broker) -> CheckResult {
    let record_type = users(&broker, &[("1", "Ärger Bäcker"), ("2", "bob")]).await?;
    for text in ["ärger", "ÄRGER", "bäck", "BÄCKER", "Ger B"] {
        finds(&broker, &record_type, text, &["1"]).await?;
    }
    finds(&broker, &record_type, "B", &["1", "2"]).await?;
    finds(&broker, &record_type, "carol", &[]).await
}

async fn depth(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        oauth_token: Some(OAuthToken {
            refresh_token: "in-a-nested-message".to_owned(),
            ..OAuthToken::default()
        }),
        audience: vec!["first".to_owned(), "in-a-list".to_owned()],
        device_credentials: vec![DeviceCredential {
            type_id: "in-a-list-of-messages".to_owned(),
            id: Some("in-an-alternative".to_owned()),
        }],
        impersonate_session_id: Some("in-an-optional-field".to_owned()),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    for text in [
        "in-a-nested-message",
        "in-a-list",
        "in-a-list-of-messages",
        "in-an-alternative",
        "in-an-optional-field",
    ] {
        finds(&broker, &record_type, text, &["1"]).await?;
    }
    Ok(())
}

async fn message_map_values(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        claims: [("groups".to_owned(), claim(&["admin", "in-a-claim"]))].into(),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    finds(&broker, &record_type, "in-a-claim", &["1"]).await
}

async fn string_map_values(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker
        .put_one(record(&record_type, "1", any(&binding("device", "In-A-Detail"))))
        .await?;
    finds(&broker, &record_type, "in-a-detail", &["1"]).await?;
    finds(&broker, &record_type, "not-there", &[]).await
}

async fn json_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let data = json!({ "name": "Alice", "nested": { "list": ["one", { "deep": "In-Json" }] } });
    broker
        .put_one(record(&record_type, "1", any(&json_struct(&data))))
        .await?;
    finds(&broker, &record_type, "alice", &["1"]).await?;
    finds(&broker, &record_type, "in-json", &["1"]).await
}

async fn elsewhere(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let data = json!({ "number": 12345, "a-key": "value", "flag": true });
    let claims = Session {
        claims: [("a-key".to_owned(), claim(&["value"]))].into(),
        ..Session::default()
    };
    broker
        .put(vec![
            record(&record_type, "an-id", any(&json_struct(&data))),
            record(&record_type, "an-id-2", any(&claims)),
        ])
        .await?;
    for text in [
        "12345",
        "a-key",
        "an-id",
        "true",
        "conformance",
        "session.Session",
        "googleapis",
    ] {
        finds(&broker, &record_type, text, &[]).await?;
    }
    Ok(())
}

async fn with_filter(broker: Broker) -> CheckResult {
    let record_type = users(&broker, &[("1", "Alice"), ("2", "Alina"), ("3", "Bob")]).await?;
    let request = QueryRequest {
        r#type: record_type,
        query: "ALI".to_owned(),
        limit: 10,
        filter: Some(json_struct(&json!({ "id": ["2", "3"] }))),
        ..QueryRequest::default()
    };
    let response = broker.query(request).await?;
    let ids: Vec<&str> = response.records.iter().map(|record| record.id.as_str()).collect();
    ensure!(
        ids == ["2"] && response.total_count == 1,
        "found {ids:?}, total {}",
        response.total_count
    );
    Ok(())
}

async fn undecodable(broker: Broker) -> CheckResult {
    let record_type = users(&broker, &[("1", "alice")]).await?;
    broker
        .put(vec![
            record(
                &record_type,
                "2",
                raw_any("example.com/no.such.Type", b"\x0a\x05alice".to_vec()),
            ),
            record(
                &record_type,
                "3",
                raw_any("type.googleapis.com/user.User", b"alice".to_vec()),
            ),
            Record {
                data: None,
                ..record(&record_type, "4", bytes::Bytes::new())
            },
            record(&record_type, "5", bytes::Bytes::new()),
        ])
        .await?;
    finds(&broker, &record_type, "alice", &["1"]).await
}

async fn literal(broker: Broker) -> CheckResult {
    let record_type = users(&broker, &[("1", "a b"), ("2", "a%b"), ("3", "a*b"), ("4", "a.b")]).await?;
    for (text, expected) in [("a b", "1"), ("%", "2"), ("a*b", "3"), (".", "4")] {
        finds(&broker, &record_type, text, &[expected]).await?;
    }
    finds(&broker, &record_type, "a  b", &[]).await
}

/// A session binding with one detail.
fn binding(key: &str, value: &str) -> SessionBinding {
    SessionBinding {
        details: [(key.to_owned(), value.to_owned())].into(),
        ..SessionBinding::default()
    }
}

/// A type with users of these ids and names.
async fn users(broker: &Broker, users: &[(&str, &str)]) -> anyhow::Result<String> {
    let record_type = broker.unique();
    let records = users
        .iter()
        .map(|(id, name)| {
            let user = User {
                name: (*name).to_owned(),
                ..User::default()
            };
            record(&record_type, id, any(&user))
        })
        .collect();
    broker.put(records).await?;
    Ok(record_type)
}

/// Checks which ids a text finds.
async fn finds(broker: &Broker, record_type: &str, text: &str, expected: &[&str]) -> CheckResult {
    let request = QueryRequest {
        r#type: record_type.to_owned(),
        query: text.to_owned(),
        limit: 100,
        ..QueryRequest::default()
    };
    let response = broker.query(request).await?;
    let found: Vec<&str> = response.records.iter().map(|record| record.id.as_str()).collect();
    ensure!(found == expected, "{text:?} finds {found:?}, not {expected:?}");
    Ok(())
}
