//! Records as people and programs read them.
//!
//! Data of known types is protobuf's JSON; of other types it is `@type` and the bytes in base64, so that nothing is
//! lost. Versions are JSON strings as all 64-bit numbers are in protobuf's JSON, since many readers round larger
//! numbers.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use databroker_proto::databroker::Record;
use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage, Kind, MessageDescriptor};
use serde_json::{Value, json};

use super::CommandError;
use super::output::Output;
use super::secrets;
use crate::data::{DataError, Descriptors};

/// What Pomerium's record types begin with.
const PREFIX: &str = "type.googleapis.com/";

/// Flags about record types.
#[derive(Args, Clone, Debug)]
pub struct TypeFlags {
    /// A protobuf FileDescriptorSet of record types that are not Pomerium's own, to read and write their data as JSON
    #[arg(
        long,
        value_name = "FILE",
        env = "DATABROKER_RECORD_DESCRIPTORS",
        hide_env_values = true
    )]
    descriptors: Option<PathBuf>,
    /// Take TYPE as it is. Without this, the name of a known message such as session.Session stands for
    /// type.googleapis.com/session.Session, which is how Pomerium names its types
    #[arg(long)]
    literal_type: bool,
}

/// Known record types, and how to name them.
pub struct Types {
    descriptors: Descriptors,
    literal: bool,
}

impl Types {
    /// Reads the descriptors that the flags name.
    ///
    /// # Errors
    ///
    /// The file cannot be used.
    pub fn load(flags: &TypeFlags) -> Result<Self, CommandError> {
        Ok(Self {
            descriptors: super::descriptors(flags.descriptors.as_deref(), "--descriptors")?,
            literal: flags.literal_type,
        })
    }

    /// The record type that a person means.
    pub fn resolve(&self, name: &str) -> String {
        if !self.literal && !name.contains('/') && self.descriptors.knows(name) {
            return format!("{PREFIX}{name}");
        }
        name.to_owned()
    }

    /// Record data from the JSON of its message. Its type is the record's, unless the JSON has `@type`. Unlike data
    /// that a newer program has written, what a person types must have known fields only.
    ///
    /// # Errors
    ///
    /// What is wrong with it, with line and column where it is not JSON, or not that of the message.
    pub fn data(&self, record_type: &str, json: &str) -> Result<Vec<u8>, CommandError> {
        let refuse = |wrong: String| CommandError::Usage(format!("the record's JSON cannot be used: {wrong}"));
        let value: Value = serde_json::from_str(json).map_err(|error| refuse(error.to_string()))?;
        let own_type = value.get("@type").and_then(Value::as_str);
        let type_url = own_type.unwrap_or(record_type);
        let name = type_url.rsplit_once('/').map_or(type_url, |(_, name)| name);
        let Some(descriptor) = self.descriptors.descriptor(name) else {
            return Err(self.unknown(type_url));
        };
        if own_type.is_some() {
            // What stands behind `@type` is the library's to read; it does not say where a mistake is.
            let any = self.message("google.protobuf.Any")?;
            let message = read(any, json).map_err(|error| refuse(error.to_string()))?;
            return Ok(message.encode_to_vec());
        }
        let message = read(descriptor, json).map_err(|error| refuse(error.to_string()))?;
        let type_url = if type_url.contains('/') {
            type_url.to_owned()
        } else {
            format!("{PREFIX}{type_url}")
        };
        let value = message.encode_to_vec();
        Ok(prost_types::Any { type_url, value }.encode_to_vec())
    }

    /// A filter from its JSON.
    ///
    /// # Errors
    ///
    /// What is wrong with it, with line and column.
    pub fn filter(&self, json: &str) -> Result<prost_types::Struct, CommandError> {
        let refuse = |wrong: String| CommandError::Usage(format!("--filter cannot be used: {wrong}"));
        let message = read(self.message("google.protobuf.Struct")?, json).map_err(|error| refuse(error.to_string()))?;
        prost_types::Struct::decode(message.encode_to_vec().as_slice()).map_err(|error| refuse(error.to_string()))
    }

    fn message(&self, name: &str) -> Result<MessageDescriptor, CommandError> {
        self.descriptors.descriptor(name).ok_or_else(|| self.unknown(name))
    }

    fn unknown(&self, type_url: &str) -> CommandError {
        CommandError::Usage(format!(
            "the message type {type_url:?} is not known: check its name, or give its descriptors with --descriptors FILE"
        ))
    }

    /// A record as JSON.
    pub fn json(&self, record: &Record) -> Value {
        self.value(record, true)
    }

    /// Record data as JSON, without its secrets unless they are to be shown.
    fn data_json(&self, data: &[u8], secrets: bool) -> Value {
        match self.descriptors.to_json(data) {
            Ok(json) => {
                let mut value = serde_json::from_str(&json).unwrap_or_default();
                if !secrets {
                    self.redact(&mut value);
                }
                value
            }
            Err(error) => {
                let any = prost_types::Any::decode(data).unwrap_or_default();
                let mut value = json!({"@type": any.type_url, "value": STANDARD.encode(&any.value)});
                if let (Some(object), DataError::Malformed(_)) = (value.as_object_mut(), &error) {
                    object.insert("error".to_owned(), Value::from(error.to_string()));
                }
                value
            }
        }
    }

    fn redact(&self, value: &mut Value) {
        let find = |name: &str| self.descriptors.descriptor(name);
        secrets::redact_any(value, &find);
    }

    fn value(&self, record: &Record, secrets: bool) -> Value {
        let mut value = json!({
            "type": record.r#type,
            "id": record.id,
            "version": record.version.to_string(),
        });
        if let Some(object) = value.as_object_mut() {
            let mut add = |name: &str, value: Option<Value>| {
                if let Some(value) = value {
                    object.insert(name.to_owned(), value);
                }
            };
            add(
                "modifiedAt",
                record.modified_at.as_ref().map(|at| Value::from(time(at))),
            );
            add("deletedAt", record.deleted_at.as_ref().map(|at| Value::from(time(at))));
            add("data", record.data.as_ref().map(|data| self.data_json(data, secrets)));
        }
        value
    }
}

fn read(descriptor: MessageDescriptor, json: &str) -> serde_json::Result<DynamicMessage> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options)?;
    deserializer.end()?;
    Ok(message)
}

/// Shows records on an output.
pub struct Shown<'a> {
    /// Known types.
    pub types: &'a Types,
    /// Secrets are shown to people too. Programs get records whole, or what they write back would lose them.
    pub secrets: bool,
}

impl Shown<'_> {
    /// Shows one record.
    ///
    /// # Errors
    ///
    /// What the system says of the writing.
    pub fn record(&self, output: &mut Output, record: &Record) -> std::io::Result<()> {
        if output.is_json() {
            return output.document(&self.types.json(record));
        }
        let at = |at: &Option<prost_types::Timestamp>| at.as_ref().map_or(Value::Null, |at| Value::from(time(at)));
        output.fields(&[
            ("type", "", Value::from(record.r#type.as_str())),
            ("id", "", Value::from(record.id.as_str())),
            ("version", "", Value::from(record.version.to_string())),
            ("modified", "", at(&record.modified_at)),
            ("deleted", "", at(&record.deleted_at)),
        ])?;
        match &record.data {
            Some(data) => output.text(&format!("{:#}", self.types.data_json(data, self.secrets))),
            None => Ok(()),
        }
    }

    /// The heading of a table of records.
    pub const HEADING: &'static [&'static str] = &["VERSION", "MODIFIED", "TYPE", "ID", "DATA"];

    /// A record as a row of it.
    pub fn row(&self, record: &Record) -> [String; 5] {
        [
            record.version.to_string(),
            record.modified_at.as_ref().map(time).unwrap_or_default(),
            record.r#type.clone(),
            record.id.clone(),
            self.brief(record),
        ]
    }

    /// Record data in one line, without the type that stands beside it.
    pub fn brief(&self, record: &Record) -> String {
        let Some(data) = &record.data else {
            return String::new();
        };
        let mut value = self.types.data_json(data, self.secrets);
        if let Some(object) = value.as_object_mut()
            && object.get("@type").and_then(Value::as_str) == Some(record.r#type.as_str())
        {
            object.remove("@type");
        }
        value.to_string()
    }
}

/// A time by RFC 3339; what is out of its range as seconds since 1970.
pub fn time(at: &prost_types::Timestamp) -> String {
    /// The years 1 to 9999.
    const RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    if RANGE.contains(&at.seconds) && (0..1_000_000_000).contains(&at.nanos) {
        at.to_string()
    } else {
        format!("{} s", at.seconds)
    }
}

/// True for messages, whose fields are looked at one by one.
pub(super) fn message_of(kind: &Kind) -> Option<&MessageDescriptor> {
    match kind {
        Kind::Message(message) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

    use super::*;

    fn types(literal: bool) -> Types {
        Types {
            descriptors: Descriptors::built_in(),
            literal,
        }
    }

    #[test]
    fn short_names_of_known_types_are_enough() {
        let cases = [
            ("user.User", "type.googleapis.com/user.User"),
            ("type.googleapis.com/user.User", "type.googleapis.com/user.User"),
            ("unknown.Type", "unknown.Type"),
            ("", ""),
        ];
        for (name, expected) in cases {
            assert_eq!(types(false).resolve(name), expected);
            assert_eq!(types(true).resolve(name), name);
        }
    }

    #[test]
    fn data_comes_back_as_the_json_it_was_made_of() {
        let types = types(false);
        let record_type = "type.googleapis.com/user.User";
        let json = r#"{"id": "u1", "name": "Ann"}"#;
        let data = types.data(record_type, json).unwrap();
        let expected = json!({"@type": record_type, "id": "u1", "name": "Ann"});
        assert_eq!(types.data_json(&data, false), expected);
        // What was printed can be put again, in a record of any type.
        assert_eq!(types.data("anything", &expected.to_string()).unwrap(), data);
        assert_eq!(types.data("user.User", json).unwrap(), data);
        // Types with a form of their own.
        let value = types
            .data("type.googleapis.com/google.protobuf.Struct", r#"{"a": [1]}"#)
            .unwrap();
        assert_eq!(types.data_json(&value, false)["value"], json!({"a": [1.0]}));
    }

    #[test]
    fn json_that_cannot_be_used_is_told_with_its_place() {
        let cases = [
            ("user.User", "{\"id\":\n  nonsense}", "line 2 column 4"),
            ("user.User", "{\"id\": \"u1\",\n \"nmae\": \"Ann\"}", "line 2 column 7"),
            ("user.User", "{\"id\": 1}", "line 1 column 8"),
            ("user.User", "{} {}", "line 1 column 4"),
            ("user.User", "", "line 1 column 0"),
            ("unknown.Type", "{}", "--descriptors"),
            (
                "user.User",
                r#"{"@type": "type.googleapis.com/unknown.Type"}"#,
                "--descriptors",
            ),
            (
                "user.User",
                r#"{"@type": "type.googleapis.com/user.User", "nmae": "Ann"}"#,
                "nmae",
            ),
        ];
        for (record_type, json, part) in cases {
            let error = types(false).data(record_type, json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
        let error = types(false).filter("{\"a\": }").unwrap_err().to_string();
        assert!(error.contains("line 1 column 7"), "{error}");
    }

    #[test]
    fn data_that_cannot_be_read_loses_nothing() {
        let any = |type_url: &str, value: &[u8]| {
            prost_types::Any {
                type_url: type_url.to_owned(),
                value: value.to_vec(),
            }
            .encode_to_vec()
        };
        let types = types(false);
        let unknown = types.data_json(&any("example.com/unknown.Type", b"\x01\x02"), false);
        assert_eq!(unknown, json!({"@type": "example.com/unknown.Type", "value": "AQI="}));
        let malformed = types.data_json(&any("type.googleapis.com/user.User", b"\xff"), false);
        assert_eq!(malformed["value"], "/w==");
        assert!(
            malformed["error"].as_str().unwrap().contains("malformed"),
            "{malformed}"
        );
    }

    #[test]
    fn times_are_rfc_3339_or_a_number() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_700_000_000, 500_000_000, "2023-11-14T22:13:20.500Z"),
            (i64::MAX, 0, "9223372036854775807 s"),
            (i64::MIN, 0, "-9223372036854775808 s"),
            (0, -1, "0 s"),
        ];
        for (seconds, nanos, expected) in cases {
            assert_eq!(time(&prost_types::Timestamp { seconds, nanos }), expected);
        }
    }
}
