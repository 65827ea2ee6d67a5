//! Protobuf's JSON form of record data: an object with `@type` and the message's fields in lowerCamelCase, or with
//! `@type` and `value` for the well-known types that have a form of their own.

use prost::Message as _;
use prost_reflect::{DeserializeOptions, DynamicMessage};

use super::check::Reach;
use super::descriptors::Descriptors;
use super::schema::Message;
use super::{DataError, any};

const ANY: &str = "google.protobuf.Any";

/// How many parts a message may have that becomes JSON or comes from it: fields, and values of lists, each counted once for
/// every level that it lies deep, since it is handed through all of them. What is decoded takes up to a kilobyte for a part and a
/// microsecond for each time that it counts, however small it is.
pub(super) const MAX_PARTS: usize = 1 << 20;

impl Descriptors {
    /// The JSON form of record data. Fields that have their default are left out, unknown fields too.
    ///
    /// # Errors
    ///
    /// [`DataError::UnknownType`] if the type is not known; [`DataError::Malformed`] if the bytes are no such message, or
    /// hold what JSON cannot say, such as a timestamp out of range or an `Any` of unknown type within; [`DataError::TooMany`]
    /// if they are made of more parts than memory should be given to.
    pub fn to_json(&self, data: &[u8]) -> Result<String, DataError> {
        self.to_json_within(data, &mut { MAX_PARTS })
    }

    /// The same, as a part of what may have no more than `room` parts altogether; what it has is taken off.
    ///
    /// # Errors
    ///
    /// As [`to_json`](Self::to_json).
    pub fn to_json_within(&self, data: &[u8], room: &mut usize) -> Result<String, DataError> {
        self.open(data)?;
        let (_, message) = self
            .schema()
            .find(ANY)
            .ok_or_else(|| DataError::UnknownType(ANY.to_owned()))?;
        let json = self.message_json(message, data, room)?;
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
        self.from_json_within(json, &mut { MAX_PARTS })
    }

    /// The same, as a part of what may have no more than `room` parts altogether; what it has is taken off.
    ///
    /// # Errors
    ///
    /// As [`from_json`](Self::from_json).
    pub fn from_json_within(&self, json: &str, room: &mut usize) -> Result<Vec<u8>, DataError> {
        take(parts(json), room)?;
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
    pub(super) fn message_json(
        &self,
        message: &Message,
        bytes: &[u8],
        room: &mut usize,
    ) -> Result<serde_json::Value, DataError> {
        // The library opens an `Any` within an `Any` without end, so that the nesting must be known to be sound before.
        if let Some((id, _)) = self.schema().find(message.descriptor.full_name()) {
            take(self.schema().check(id, bytes, Reach::Anys)?, room)?;
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

/// Takes parts off what there is room for, where they are not too many for one message.
fn take(parts: usize, room: &mut usize) -> Result<(), DataError> {
    let left = room.checked_sub(parts).filter(|_| parts <= MAX_PARTS);
    *room = left.ok_or(DataError::TooMany(MAX_PARTS))?;
    Ok(())
}

/// How many parts JSON has: as many as commas and opening brackets outside of its texts.
fn parts(json: &str) -> usize {
    let (mut is_text, mut is_escaped) = (false, false);
    let (mut parts, mut depth): (usize, usize) = (0, 0);
    for byte in json.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            _ if is_text => {}
            b'{' | b'[' => {
                depth = depth.saturating_add(1);
                parts = parts.saturating_add(depth);
            }
            b',' => parts = parts.saturating_add(depth),
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    parts
}
