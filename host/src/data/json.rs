//! Protobuf's JSON form of record data: an object with `@type` and the message's fields in lowerCamelCase, or with
//! `@type` and `value` for the well-known types that have a form of their own.

use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage};

use super::check::Reach;
use super::descriptors::Descriptors;
use super::schema::Message;
use super::{DataError, any};

const ANY: &str = "google.protobuf.Any";

/// Of how many fields, and numbers of lists, a message may consist that becomes JSON. One that is decoded for it takes up to
/// a kilobyte for each, however small it is; the largest record that can be put would have one for each 16 bytes.
const MAX_PARTS: usize = 1 << 18;

/// How many commas and opening brackets JSON may have outside of its texts: each part may bring one of both.
const MAX_JSON_PARTS: usize = 2 * MAX_PARTS;

impl Descriptors {
    /// The JSON form of record data. Fields that have their default are left out, unknown fields too.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownType`] if the type is not known; [`DataError::Malformed`] if the bytes are no such message, or
    /// hold what JSON cannot say, such as a timestamp out of range or an `Any` of unknown type within; [`DataError::TooMany`]
    /// if they are made of more parts than memory should be given to.
    pub fn to_json(&self, data: &[u8]) -> Result<String, DataError> {
        self.open(data)?;
        let (_, message) = self
            .schema()
            .find(ANY)
            .ok_or_else(|| DataError::UnknownType(ANY.to_owned()))?;
        let json = self.message_json(message, data)?;
        Ok(json.to_string())
    }

    /// The reverse of [`to_json`](Self::to_json). Fields that the type does not have are passed over, so that what a newer
    /// Pomerium has written can be read.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownType`] if the type is not known; [`DataError::Malformed`] if the text is not JSON or not the
    /// JSON of that message; [`DataError::TooMany`] if it has more parts than memory should be given to.
    pub fn from_json(&self, json: &str) -> Result<Vec<u8>, DataError> {
        if parts(json) > MAX_JSON_PARTS {
            return Err(DataError::TooMany(MAX_JSON_PARTS));
        }
        let descriptor = self
            .descriptor(ANY)
            .ok_or_else(|| DataError::UnknownType(ANY.to_owned()))?;
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let message = DynamicMessage::deserialize_with_options(descriptor, &mut deserializer, &options)
            .map_err(|error| self.refusal(json, &error))?;
        deserializer
            .end()
            .map_err(|error| DataError::Malformed(error.to_string()))?;
        Ok(message.encode_to_vec())
    }

    /// The JSON form of an encoded message.
    pub(super) fn message_json(&self, message: &Message, bytes: &[u8]) -> Result<serde_json::Value, DataError> {
        // The library opens an `Any` within an `Any` without end, so that the nesting must be known to be sound before.
        if let Some((id, _)) = self.schema().find(message.descriptor.full_name()) {
            let parts = self.schema().check(id, bytes, Reach::Anys)?;
            if parts > MAX_PARTS {
                return Err(DataError::TooMany(MAX_PARTS));
            }
        }
        let message = DynamicMessage::decode(message.descriptor.clone(), bytes)
            .map_err(|error| DataError::Malformed(error.to_string()))?;
        serde_json::to_value(&message).map_err(|error| DataError::Malformed(error.to_string()))
    }

    /// Why JSON was refused: for its type, or for what it holds.
    fn refusal(&self, json: &str, error: &serde_json::Error) -> DataError {
        let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
        match value.get("@type").and_then(serde_json::Value::as_str) {
            Some(type_url) if self.descriptor(any::message_name(type_url)).is_none() => {
                DataError::UnknownType(type_url.to_owned())
            }
            _ => DataError::Malformed(error.to_string()),
        }
    }
}

/// How many commas and opening brackets there are outside of texts.
fn parts(json: &str) -> usize {
    let (mut is_text, mut is_escaped) = (false, false);
    let mut is_part = |byte: &u8| {
        match *byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b',' | b'{' | b'[' => return !is_text,
            _ => {}
        }
        false
    };
    json.as_bytes().iter().filter(|byte| is_part(byte)).count()
}
