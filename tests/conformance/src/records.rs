//! Pomerium's record types, as far as the cases need them, written down by hand so that the suite shares no descriptors
//! with the server that it tests.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, ensure};
use bytes::Bytes;
use databroker_proto::databroker::Record;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, ListValue, Struct, Timestamp, Value};

/// `session.Session`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Session {
    #[prost(string, tag = "1")]
    pub version: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(string, tag = "3")]
    pub user_id: String,
    #[prost(message, optional, tag = "4")]
    pub expires_at: Option<Timestamp>,
    #[prost(message, optional, tag = "6")]
    pub id_token: Option<IdToken>,
    #[prost(message, optional, tag = "7")]
    pub oauth_token: Option<OAuthToken>,
    #[prost(map = "string, message", tag = "9")]
    pub claims: HashMap<String, ListValue>,
    #[prost(string, repeated, tag = "10")]
    pub audience: Vec<String>,
    #[prost(message, optional, tag = "14")]
    pub issued_at: Option<Timestamp>,
    #[prost(string, optional, tag = "15")]
    pub impersonate_session_id: Option<String>,
    #[prost(message, repeated, tag = "17")]
    pub device_credentials: Vec<DeviceCredential>,
    #[prost(message, optional, tag = "18")]
    pub accessed_at: Option<Timestamp>,
    #[prost(bool, tag = "19")]
    pub refresh_disabled: bool,
    #[prost(string, tag = "20")]
    pub idp_id: String,
}

/// `session.Session.DeviceCredential`, without its empty alternative.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeviceCredential {
    #[prost(string, tag = "1")]
    pub type_id: String,
    #[prost(string, optional, tag = "3")]
    pub id: Option<String>,
}

/// `session.IDToken`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct IdToken {
    #[prost(string, tag = "1")]
    pub issuer: String,
    #[prost(string, tag = "2")]
    pub subject: String,
    #[prost(message, optional, tag = "3")]
    pub expires_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub issued_at: Option<Timestamp>,
    #[prost(string, tag = "5")]
    pub raw: String,
}

/// `session.OAuthToken`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct OAuthToken {
    #[prost(string, tag = "1")]
    pub access_token: String,
    #[prost(string, tag = "2")]
    pub token_type: String,
    #[prost(message, optional, tag = "3")]
    pub expires_at: Option<Timestamp>,
    #[prost(string, tag = "4")]
    pub refresh_token: String,
}

/// `session.SessionBinding`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionBinding {
    #[prost(string, tag = "1")]
    pub protocol: String,
    #[prost(string, tag = "2")]
    pub session_id: String,
    #[prost(string, tag = "3")]
    pub user_id: String,
    #[prost(message, optional, tag = "4")]
    pub issued_at: Option<Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub expires_at: Option<Timestamp>,
    #[prost(btree_map = "string, string", tag = "6")]
    pub details: BTreeMap<String, String>,
}

/// `session.SessionBindingRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SessionBindingRequest {
    #[prost(string, tag = "1")]
    pub protocol: String,
    #[prost(string, tag = "2")]
    pub idp_id: String,
    #[prost(string, tag = "3")]
    pub key: String,
    #[prost(message, optional, tag = "4")]
    pub created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "5")]
    pub expires_at: Option<Timestamp>,
    /// 0 in flight, 1 accepted, 2 revoked.
    #[prost(int32, tag = "6")]
    pub state: i32,
    #[prost(btree_map = "string, string", tag = "7")]
    pub details: BTreeMap<String, String>,
}

/// `user.User`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct User {
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub email: String,
    #[prost(map = "string, message", tag = "9")]
    pub claims: HashMap<String, ListValue>,
    #[prost(string, repeated, tag = "10")]
    pub device_credential_ids: Vec<String>,
}

/// A message that can be record data.
pub(crate) trait Payload: Message + Default {
    /// The message's full name.
    const NAME: &'static str;
}

impl Payload for Session {
    const NAME: &'static str = "session.Session";
}

impl Payload for SessionBinding {
    const NAME: &'static str = "session.SessionBinding";
}

impl Payload for SessionBindingRequest {
    const NAME: &'static str = "session.SessionBindingRequest";
}

impl Payload for User {
    const NAME: &'static str = "user.User";
}

impl Payload for Struct {
    const NAME: &'static str = "google.protobuf.Struct";
}

impl Payload for Value {
    const NAME: &'static str = "google.protobuf.Value";
}

/// The type URL of a message.
pub(crate) fn type_url<M: Payload>() -> String {
    format!("type.googleapis.com/{}", M::NAME)
}

/// A message as record data: an encoded `Any`.
pub(crate) fn any<M: Payload>(message: &M) -> Bytes {
    raw_any(&type_url::<M>(), message.encode_to_vec())
}

/// An encoded `Any` of any type and value.
pub(crate) fn raw_any(type_url: &str, value: Vec<u8>) -> Bytes {
    let any = Any {
        type_url: type_url.to_owned(),
        value,
    };
    any.encode_to_vec().into()
}

/// The message in a record.
pub(crate) fn decode<M: Payload>(record: &Record) -> anyhow::Result<M> {
    let data = record.data.as_ref().context("the record has no data")?;
    let any = Any::decode(data.clone()).context("the record's data is no Any")?;
    ensure!(any.type_url == type_url::<M>(), "the record holds a {:?}", any.type_url);
    M::decode(any.value.as_slice()).context("the record's data cannot be decoded")
}

/// A record to put.
pub(crate) fn record(record_type: &str, id: &str, data: Bytes) -> Record {
    Record {
        r#type: record_type.to_owned(),
        id: id.to_owned(),
        data: Some(data),
        ..Record::default()
    }
}

/// A record to delete, as Pomerium sends one: `deleted_at` and no data.
pub(crate) fn deletion(record_type: &str, id: &str) -> Record {
    Record {
        r#type: record_type.to_owned(),
        id: id.to_owned(),
        deleted_at: Some(timestamp(1_700_000_000)),
        ..Record::default()
    }
}

/// A session with its usual fields, but without lists and maps, so that the cases about indexes are about those alone.
pub(crate) fn session(id: &str, user_id: &str) -> Session {
    Session {
        id: id.to_owned(),
        user_id: user_id.to_owned(),
        version: "1".to_owned(),
        idp_id: "idp".to_owned(),
        issued_at: Some(timestamp(1_700_000_000)),
        accessed_at: Some(timestamp(1_700_000_100)),
        ..Session::default()
    }
}

/// A session as a record to put.
pub(crate) fn session_record(record_type: &str, id: &str, user_id: &str) -> Record {
    record(record_type, id, any(&session(id, user_id)))
}

/// A point in time.
pub(crate) fn timestamp(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// A duration.
pub(crate) fn duration(duration: std::time::Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// A list of texts as a claim's value.
pub(crate) fn claim(values: &[&str]) -> ListValue {
    ListValue {
        values: values.iter().map(|value| json_value(&(*value).into())).collect(),
    }
}

/// JSON as a `Struct`; what is no object becomes an empty one.
pub(crate) fn json_struct(json: &serde_json::Value) -> Struct {
    match json_value(json).kind {
        Some(Kind::StructValue(value)) => value,
        _ => Struct::default(),
    }
}

/// JSON as a `Value`.
pub(crate) fn json_value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(flag) => Kind::BoolValue(*flag),
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(json_value).collect(),
        }),
        serde_json::Value::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .iter()
                .map(|(name, value)| (name.clone(), json_value(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}
