//! Patch: changes some fields of records.

use anyhow::{Context, ensure};
use databroker_proto::databroker::{PatchRequest, Record};
use tonic::Code;

use crate::broker::{Broker, only, refused};
use crate::case::{Case, CheckResult, case};
use crate::records::{
    IdToken, OAuthToken, Session, SessionBinding, User, any, claim, decode, deletion, raw_any, record, session,
    session_record, timestamp,
};

/// How a server may refuse data that it cannot merge. Pomerium's own says UNKNOWN.
const CANNOT_MERGE: &[Code] = &[Code::Unknown, Code::InvalidArgument, Code::FailedPrecondition];

pub(super) const CASES: &[Case] = &[
    case!(
        "patch.masked_fields_only",
        "patch.merge",
        "Fields that the mask names are taken from the request, all others stay.",
        masked_fields_only
    ),
    case!(
        "patch.answer",
        "patch.answer",
        "The answer holds the records with their merged data, a new version and modified_at, as Get and Sync deliver them.",
        answer
    ),
    case!(
        "patch.missing_skipped",
        "patch.missing",
        "Records that are not there are skipped: left out of the answer, not made, and the others are patched.",
        missing_skipped
    ),
    case!(
        "patch.all_missing",
        "patch.missing",
        "A Patch of nothing but records that are not there succeeds with an empty answer.",
        all_missing
    ),
    case!(
        "patch.empty_mask",
        "patch.empty_mask",
        "With an empty mask, or none, no field is copied, but the record is written anew with a new version.",
        empty_mask
    ),
    case!(
        "patch.clears_unset",
        "patch.clear",
        "A masked field that the request does not set is cleared: scalars, optional fields, messages, lists and maps.",
        clears_unset
    ),
    case!(
        "patch.replaces_lists_and_maps",
        "patch.merge",
        "Lists and maps are replaced as a whole, not merged.",
        replaces_lists_and_maps
    ),
    case!(
        "patch.replaces_messages",
        "patch.merge",
        "A masked message field is replaced as a whole.",
        replaces_messages
    ),
    case!(
        "patch.nested_mask",
        "patch.nested",
        "A path into a message changes that field of it alone.",
        nested_mask
    ),
    case!(
        "patch.nested_only_in_request",
        "patch.nested",
        "A path into a message that only the request has makes the message with that field alone.",
        nested_only_in_request
    ),
    case!(
        "patch.nested_only_in_store",
        "patch.nested",
        "A path into a message that only the stored record has clears that field of it.",
        nested_only_in_store
    ),
    case!(
        "patch.nested_in_neither",
        "patch.nested",
        "A path into a message that neither side has does nothing.",
        nested_in_neither
    ),
    case!(
        "patch.overlapping_paths",
        "patch.mask",
        "Repeated paths count once, and a parent's path beats those below it.",
        overlapping_paths
    ),
    case!(
        "patch.unknown_field",
        "patch.unknown_field",
        "A path that the message does not have, `*` and JSON names among them, is an error that names it, and changes nothing.",
        unknown_field
    ),
    case!(
        "patch.path_below_leaf",
        "patch.unknown_field",
        "A path that goes on below a scalar, a list or a map is an error and changes nothing.",
        path_below_leaf
    ),
    case!(
        "patch.other_message",
        "patch.mismatch",
        "Data of another message type than the stored one is an error and changes nothing.",
        other_message
    ),
    case!(
        "patch.unknown_type",
        "patch.unknown_type",
        "A Patch on data of a type that the server does not know is an error and changes nothing.",
        unknown_type
    ),
    case!(
        "patch.no_data",
        "patch.unknown_type",
        "A Patch without data, or on a record without data, is an error and changes nothing.",
        no_data
    ),
    case!(
        "patch.all_or_nothing",
        "patch.atomic",
        "One member that cannot be merged refuses the whole Patch: no member is changed.",
        all_or_nothing
    ),
    case!(
        "patch.deletes",
        "patch.delete",
        "A Patch with deleted_at deletes the record, with a tombstone that holds its data.",
        deletes
    ),
    case!(
        "patch.same_record_twice",
        "patch.order",
        "A record that stands twice in one Patch is patched twice, in order.",
        same_record_twice
    ),
    case!(
        "patch.keeps_unknown_fields",
        "data.opaque",
        "Fields of the stored data that its type does not have survive a Patch.",
        keeps_unknown_fields
    ),
    case!(
        "patch.unmasked_is_untouched",
        "patch.merge",
        "What the mask does not name stays equal in meaning: claims, lists, nested messages, times with nanoseconds.",
        unmasked_is_untouched
    ),
    case!(
        "patch.after_delete",
        "patch.missing",
        "A Patch of a deleted record does not bring it back.",
        after_delete
    ),
    case!(
        "patch.reaches_indexes",
        "patch.index",
        "A patched field is found by its new value and no longer by its old one.",
        reaches_indexes
    ),
];

async fn masked_fields_only(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = session("1", "alice");
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    let update = Session {
        user_id: "bob".to_owned(),
        idp_id: "other".to_owned(),
        accessed_at: Some(timestamp(1_800_000_000)),
        ..Session::default()
    };
    broker
        .patch(
            vec![record(&record_type, "1", any(&update))],
            &["accessed_at", "user_id"],
        )
        .await?;
    let expected = Session {
        user_id: "bob".to_owned(),
        accessed_at: Some(timestamp(1_800_000_000)),
        ..stored
    };
    holds(&broker, &record_type, &expected).await
}

async fn answer(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let mut stream = broker.follow(&record_type, broker.server_info().await?.server_version, put.version);
    let response = broker
        .patch(vec![session_record(&record_type, "1", "bob")], &["user_id"])
        .await?;
    ensure!(
        response.server_version == broker.server_info().await?.server_version,
        "server version"
    );
    let patched = only(response.records)?;
    ensure!(patched.version > put.version, "no new version: {patched:?}");
    ensure!(patched.modified_at.is_some(), "no modified_at");
    ensure!(patched.deleted_at.is_none(), "deleted_at is set");
    ensure!(
        decode::<Session>(&patched)?.user_id == "bob",
        "the answer's data is not merged"
    );
    ensure!(
        broker.get(&record_type, "1").await? == patched,
        "Get differs from the answer"
    );
    ensure!(stream.record().await? == patched, "Sync differs from the answer");
    Ok(())
}

async fn missing_skipped(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker
        .put(vec![
            session_record(&record_type, "1", "alice"),
            session_record(&record_type, "3", "alice"),
        ])
        .await?;
    let update = ["0", "1", "2", "3", "4"].map(|id| session_record(&record_type, id, "bob"));
    let response = broker.patch(update.to_vec(), &["user_id"]).await?;
    let ids: Vec<&str> = response.records.iter().map(|record| record.id.as_str()).collect();
    ensure!(ids == ["1", "3"], "the answer holds {ids:?}");
    let left: Vec<String> = broker
        .all(&record_type)
        .await?
        .into_iter()
        .map(|record| record.id)
        .collect();
    ensure!(left == ["1", "3"], "the store holds {left:?}");
    for record in response.records {
        ensure!(decode::<Session>(&record)?.user_id == "bob", "not patched: {record:?}");
    }
    Ok(())
}

async fn all_missing(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let response = broker
        .patch(vec![session_record(&record_type, "1", "bob")], &["user_id"])
        .await?;
    ensure!(response.records.is_empty(), "the answer holds {:?}", response.records);
    ensure!(response.server_version != 0, "the server version is 0");
    ensure!(broker.all(&record_type).await?.is_empty(), "a record was made");
    broker
        .patch(Vec::new(), &["user_id"])
        .await
        .context("a Patch without records")?;
    Ok(())
}

async fn empty_mask(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let mut last = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let with_mask = broker
        .patch(vec![session_record(&record_type, "1", "bob")], &[])
        .await?;
    let without_mask = PatchRequest {
        records: vec![session_record(&record_type, "1", "bob")],
        field_mask: None,
    };
    let without_mask = broker.data().patch(without_mask).await?.into_inner();
    for response in [with_mask, without_mask] {
        let patched = only(response.records)?;
        ensure!(patched.version > last.version, "no new version: {patched:?}");
        ensure!(
            decode::<Session>(&patched)? == session("1", "alice"),
            "fields were copied"
        );
        last = patched;
    }
    ensure!(
        broker.get(&record_type, "1").await? == last,
        "Get differs from the answer"
    );
    Ok(())
}

async fn clears_unset(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        impersonate_session_id: Some("2".to_owned()),
        refresh_disabled: true,
        audience: vec!["a".to_owned()],
        id_token: Some(IdToken::default()),
        claims: [("email".to_owned(), claim(&["a@example.com"]))].into(),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    let mask = [
        "user_id",
        "impersonate_session_id",
        "refresh_disabled",
        "id_token",
        "claims",
        "audience",
        "accessed_at",
    ];
    broker
        .patch(vec![record(&record_type, "1", any(&Session::default()))], &mask)
        .await?;
    let expected = Session {
        id: stored.id,
        version: stored.version,
        idp_id: stored.idp_id,
        issued_at: stored.issued_at,
        ..Session::default()
    };
    holds(&broker, &record_type, &expected).await
}

async fn replaces_lists_and_maps(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        audience: vec!["a".to_owned(), "b".to_owned()],
        claims: [
            ("email".to_owned(), claim(&["a@example.com"])),
            ("groups".to_owned(), claim(&["x", "y"])),
        ]
        .into(),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    let update = Session {
        audience: vec!["c".to_owned()],
        claims: [("email".to_owned(), claim(&["b@example.com"]))].into(),
        ..Session::default()
    };
    broker
        .patch(vec![record(&record_type, "1", any(&update))], &["audience", "claims"])
        .await?;
    let expected = Session {
        audience: update.audience,
        claims: update.claims,
        ..stored
    };
    holds(&broker, &record_type, &expected).await
}

async fn replaces_messages(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        oauth_token: Some(token("access", "refresh")),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    let update = Session {
        oauth_token: Some(token("new", "")),
        ..Session::default()
    };
    broker
        .patch(vec![record(&record_type, "1", any(&update))], &["oauth_token"])
        .await?;
    let expected = Session {
        oauth_token: update.oauth_token,
        ..stored
    };
    holds(&broker, &record_type, &expected).await
}

async fn nested_mask(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        oauth_token: Some(token("access", "refresh")),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    let update = Session {
        oauth_token: Some(token("new", "ignored")),
        ..session("ignored", "ignored")
    };
    broker
        .patch(
            vec![record(&record_type, "1", any(&update))],
            &["oauth_token.access_token"],
        )
        .await?;
    let expected = Session {
        oauth_token: Some(token("new", "refresh")),
        ..stored
    };
    holds(&broker, &record_type, &expected).await
}

async fn nested_only_in_request(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let update = Session {
        oauth_token: Some(token("new", "ignored")),
        ..Session::default()
    };
    broker
        .patch(
            vec![record(&record_type, "1", any(&update))],
            &["oauth_token.access_token"],
        )
        .await?;
    let expected = Session {
        oauth_token: Some(OAuthToken {
            access_token: "new".to_owned(),
            ..OAuthToken::default()
        }),
        ..session("1", "alice")
    };
    holds(&broker, &record_type, &expected).await
}

async fn nested_only_in_store(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        oauth_token: Some(token("access", "refresh")),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    broker
        .patch(
            vec![session_record(&record_type, "1", "alice")],
            &["oauth_token.access_token"],
        )
        .await?;
    let expected = Session {
        oauth_token: Some(token("", "refresh")),
        ..stored
    };
    holds(&broker, &record_type, &expected).await
}

async fn nested_in_neither(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker
        .patch(
            vec![session_record(&record_type, "1", "bob")],
            &["oauth_token.access_token"],
        )
        .await?;
    holds(&broker, &record_type, &session("1", "alice")).await
}

async fn overlapping_paths(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        oauth_token: Some(token("access", "refresh")),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    let update = Session {
        oauth_token: Some(token("new", "")),
        ..session("1", "bob")
    };
    let mask = ["oauth_token.access_token", "user_id", "oauth_token", "user_id"];
    broker
        .patch(vec![record(&record_type, "1", any(&update))], &mask)
        .await?;
    let expected = Session {
        user_id: "bob".to_owned(),
        oauth_token: update.oauth_token,
        ..stored
    };
    holds(&broker, &record_type, &expected).await
}

async fn unknown_field(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    for path in [
        "no_such_field",
        "*",
        "",
        "userId",
        "User_id",
        "oauth_token.no_such_field",
        " user_id",
    ] {
        let update = Session {
            oauth_token: Some(token("new", "")),
            ..session("1", "bob")
        };
        let result = broker
            .patch(vec![record(&record_type, "1", any(&update))], &["user_id", path])
            .await;
        let status = refused(result, CANNOT_MERGE).with_context(|| format!("path {path:?}"))?;
        let name = path.rsplit('.').next().unwrap_or_default();
        ensure!(
            status.message().contains(name),
            "the message does not name {name:?}: {}",
            status.message()
        );
        ensure!(
            broker.get(&record_type, "1").await? == put,
            "the record was changed by {path:?}"
        );
    }
    Ok(())
}

async fn path_below_leaf(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        claims: [("email".to_owned(), claim(&["a@example.com"]))].into(),
        ..session("1", "alice")
    };
    let put = broker.put_one(record(&record_type, "1", any(&stored))).await?;
    for path in ["user_id.x", "audience.0", "claims.email", "device_credentials.id"] {
        let result = broker
            .patch(vec![record(&record_type, "1", any(&stored))], &[path])
            .await;
        refused(result, CANNOT_MERGE).with_context(|| format!("path {path:?}"))?;
        ensure!(
            broker.get(&record_type, "1").await? == put,
            "the record was changed by {path:?}"
        );
    }
    Ok(())
}

async fn other_message(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let put = broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let user = User {
        id: "1".to_owned(),
        ..User::default()
    };
    let result = broker.patch(vec![record(&record_type, "1", any(&user))], &["id"]).await;
    refused(result, CANNOT_MERGE)?;
    ensure!(broker.get(&record_type, "1").await? == put, "the record was changed");
    Ok(())
}

async fn unknown_type(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let unknown = raw_any("example.com/no.such.Type", vec![0x0a, 0x01, b'x']);
    let known = any(&session("1", "alice"));
    for (stored, update) in [(&unknown, &unknown), (&unknown, &known), (&known, &unknown)] {
        let put = broker.put_one(record(&record_type, "1", stored.clone())).await?;
        let result = broker
            .patch(vec![record(&record_type, "1", update.clone())], &["user_id"])
            .await;
        refused(result, CANNOT_MERGE)?;
        ensure!(broker.get(&record_type, "1").await? == put, "the record was changed");
    }
    Ok(())
}

async fn no_data(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let with = session_record(&record_type, "1", "alice");
    let without = Record {
        data: None,
        ..with.clone()
    };
    for (stored, update) in [(&with, &without), (&without, &with), (&without, &without)] {
        let put = broker.put_one(stored.clone()).await?;
        let result = broker.patch(vec![update.clone()], &["user_id"]).await;
        refused(result, CANNOT_MERGE)?;
        ensure!(broker.get(&record_type, "1").await? == put, "the record was changed");
    }
    Ok(())
}

async fn all_or_nothing(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let unknown = raw_any("example.com/no.such.Type", Vec::new());
    let put = broker
        .put(vec![
            session_record(&record_type, "1", "alice"),
            record(&record_type, "2", unknown),
            session_record(&record_type, "3", "alice"),
        ])
        .await?;
    let update = ["1", "2", "3"].map(|id| session_record(&record_type, id, "bob"));
    refused(broker.patch(update.to_vec(), &["user_id"]).await, CANNOT_MERGE)?;
    ensure!(
        broker.all(&record_type).await? == put.records,
        "part of the Patch was applied"
    );
    Ok(())
}

async fn deletes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let binding = SessionBinding {
        protocol: "ssh".to_owned(),
        session_id: "session".to_owned(),
        ..SessionBinding::default()
    };
    let put = broker.put_one(record(&record_type, "1", any(&binding))).await?;
    let mut stream = broker.follow(&record_type, broker.server_info().await?.server_version, put.version);
    let request = PatchRequest {
        records: vec![Record {
            data: Some(any(&binding)),
            ..deletion(&record_type, "1")
        }],
        field_mask: None,
    };
    broker.data().patch(request).await?;
    ensure!(
        broker.find(&record_type, "1").await?.is_none(),
        "the record is still there"
    );
    let tombstone = stream.record().await?;
    ensure!(tombstone.deleted_at.is_some(), "no tombstone: {tombstone:?}");
    ensure!(
        decode::<SessionBinding>(&tombstone)? == binding,
        "the tombstone's data differs"
    );
    Ok(())
}

async fn same_record_twice(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    let update = ["bob", "carol"].map(|user| session_record(&record_type, "1", user));
    let response = broker.patch(update.to_vec(), &["user_id"]).await?;
    let users = response
        .records
        .iter()
        .map(|record| Ok(decode::<Session>(record)?.user_id))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(users == ["bob", "carol"], "the answer holds {users:?}");
    ensure!(
        response.records.is_sorted_by(|a, b| a.version < b.version),
        "versions do not ascend"
    );
    holds(&broker, &record_type, &session("1", "carol")).await
}

async fn keeps_unknown_fields(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    // The session's id, and a field of the number 1000.
    let unknown = [0xc2, 0x3e, 0x03, b'n', b'e', b'w'];
    let mut value = vec![0x12, 0x01, b'1'];
    value.extend(unknown);
    let data = raw_any("type.googleapis.com/session.Session", value);
    broker.put_one(record(&record_type, "1", data)).await?;
    broker
        .patch(vec![session_record(&record_type, "1", "bob")], &["user_id"])
        .await?;
    let got = broker.get(&record_type, "1").await?;
    ensure!(decode::<Session>(&got)?.user_id == "bob", "not patched");
    let data = got.data.context("no data")?;
    ensure!(
        data.windows(unknown.len()).any(|window| window == unknown),
        "the unknown field is gone"
    );
    Ok(())
}

async fn unmasked_is_untouched(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    let stored = Session {
        id_token: Some(IdToken {
            issuer: "https://issuer.example.com".to_owned(),
            raw: "x".repeat(5000),
            expires_at: Some(prost_types::Timestamp {
                seconds: 1_900_000_000,
                nanos: 123_456_789,
            }),
            ..IdToken::default()
        }),
        claims: (0..50).map(|n| (format!("claim-{n}"), claim(&["a", "b"]))).collect(),
        device_credentials: vec![
            crate::records::DeviceCredential {
                type_id: "any".to_owned(),
                id: Some("credential".to_owned()),
            };
            3
        ],
        impersonate_session_id: Some(String::new()),
        ..session("1", "alice")
    };
    broker.put_one(record(&record_type, "1", any(&stored))).await?;
    for round in 0..5 {
        let accessed_at = Some(timestamp(1_800_000_000 + round));
        let update = Session {
            accessed_at,
            ..Session::default()
        };
        broker
            .patch(vec![record(&record_type, "1", any(&update))], &["accessed_at"])
            .await?;
        let expected = Session {
            accessed_at,
            ..stored.clone()
        };
        holds(&broker, &record_type, &expected).await?;
    }
    Ok(())
}

async fn after_delete(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker.put_one(deletion(&record_type, "1")).await?;
    let response = broker
        .patch(vec![session_record(&record_type, "1", "bob")], &["user_id"])
        .await?;
    ensure!(response.records.is_empty(), "the answer holds {:?}", response.records);
    ensure!(broker.find(&record_type, "1").await?.is_none(), "the record is back");
    Ok(())
}

async fn reaches_indexes(broker: Broker) -> CheckResult {
    let record_type = broker.unique();
    broker.index(&record_type, &["user_id"]).await?;
    broker.put_one(session_record(&record_type, "1", "alice")).await?;
    broker
        .patch(vec![session_record(&record_type, "1", "bob")], &["user_id"])
        .await?;
    let found = async |user: &str| {
        broker
            .filter(&record_type, &serde_json::json!({ "user_id": user }))
            .await
    };
    let old = found("alice").await?;
    ensure!(old.is_empty(), "the old value still finds {old:?}");
    let new = found("bob").await?;
    ensure!(new == ["1"], "the new value finds {new:?}");
    Ok(())
}

fn token(access_token: &str, refresh_token: &str) -> OAuthToken {
    OAuthToken {
        access_token: access_token.to_owned(),
        token_type: "Bearer".to_owned(),
        refresh_token: refresh_token.to_owned(),
        ..OAuthToken::default()
    }
}

/// Checks that the record "1" of a type holds this session.
async fn holds(broker: &Broker, record_type: &str, expected: &Session) -> CheckResult {
    let got: Session = decode(&broker.get(record_type, "1").await?)?;
    ensure!(got == *expected, "expected {expected:?}, got {got:?}");
    Ok(())
}
