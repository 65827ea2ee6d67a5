//! The strings that a filter on a path compares, and that an index holds.
//!
//! A path is the names from the message down, joined by dots. The walk reads the message's bytes and decodes only what
//! lies on the path, since a filter that no index answers visits every record of a type.
//!
//! - A name is a field's proto name or its JSON name, a map's key, or a key of JSON inside (`google.protobuf.Struct`).
//!   Keys may hold dots themselves: `claims.https://example.com/groups` finds the claim of that name.
//! - Lists have no names: a path goes through to all of their elements, and each gives a value of its own. A path that
//!   ends at a map or a `Struct` gives the values of all entries.
//! - What is not set has no value: a message, an optional field, a map's key, an empty list, and a plain string or bytes
//!   field that is empty, as in Pomerium's Postgres store. A plain number, bool or enum always has one, its default if
//!   nothing else.
//! - Unknown types and unknown field names have none either, and nor does what cannot be decoded. Only what is on the path
//!   is decoded, so that damage elsewhere goes unnoticed.
//! - Wrappers and an `Any` within the data stand for what they hold. A path that ends at another message gives its JSON.
//!
//! The texts: `true` and `false`; integers in decimal; floating point as in [`number_text`]; enums
//! by name; bytes in base64; timestamps in RFC 3339; durations as `900s`; JSON's null as the empty string.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::any::Any;
use super::descriptors::Descriptors;
use super::json::MAX_PARTS;
use super::scalar::{duration_text, number_text, timestamp_text, unpack};
use super::schema::{Field, Form, Kind, Message, MessageId, Shape};
use super::structure::{Value, elements, entries, joined};
use super::wire::{Field as WireField, Fields, MAX_DEPTH, Payload, WireError};

impl Descriptors {
    /// The values at a path in record data, in the order of the message; see the [module](self) for what they are.
    pub fn values(&self, data: &[u8], path: &str) -> Vec<String> {
        let mut values = Vec::new();
        self.any_value(data, path, &mut |value| {
            values.push(value.to_owned());
            false
        });
        values
    }

    /// True where one of the values at a path passes a test. Stops at the first that does.
    pub fn any_value(&self, data: &[u8], path: &str, test: &mut dyn FnMut(&str) -> bool) -> bool {
        let mut walk = Walk {
            descriptors: self,
            test,
        };
        // What was found before the damage counts, for an index and a filter alike.
        Any::read(data)
            .and_then(|any| walk.any(any, path, MAX_DEPTH))
            .unwrap_or(false)
    }
}

/// A walk down one path. Each step says whether a value has passed the test, which ends the walk.
struct Walk<'d, 't> {
    descriptors: &'d Descriptors,
    test: &'t mut dyn FnMut(&str) -> bool,
}

impl<'d> Walk<'d, '_> {
    fn any(&mut self, any: Any<'_>, rest: &str, depth: usize) -> Result<bool, WireError> {
        match self.descriptors.schema().find(any.message_name()) {
            Some((id, _)) => self.message(id, any.value, rest, depth),
            None => Ok(false),
        }
    }

    /// A message that is set.
    fn message(&mut self, id: MessageId, bytes: &[u8], rest: &str, depth: usize) -> Result<bool, WireError> {
        let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
        let Some(message) = self.descriptors.schema().message(id) else {
            return Ok(false);
        };
        match message.form {
            Form::Any => return self.any(Any::read(bytes)?, rest, depth),
            Form::Struct => return self.structure(bytes, rest, depth),
            Form::Value => return self.value(bytes, rest, depth),
            Form::ListValue => return self.list(bytes, rest, depth),
            _ => {}
        }
        if rest.is_empty() {
            return self.end(message, bytes);
        }
        let (name, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let Some(field) = message.field_by_name(name) else {
            return Ok(false);
        };
        let occurrences = message.occurrences(field, bytes)?;
        match field.shape {
            Shape::Map => self.map(field, &occurrences, rest, depth),
            Shape::List => self.repeated(field, &occurrences, rest, depth),
            Shape::Singular => self.singular(field, &occurrences, rest, depth),
        }
    }

    /// A message at which the path ends.
    fn end(&mut self, message: &Message, bytes: &[u8]) -> Result<bool, WireError> {
        match message.form {
            Form::Timestamp => Ok((self.test)(&timestamp_text(bytes)?)),
            Form::Duration => Ok((self.test)(&duration_text(bytes)?)),
            Form::Wrapper => match message.field(1) {
                // A wrapper that is set has a value, an empty one too: that is what wrappers are for.
                Some(field) => match message.occurrences(field, bytes)?.last() {
                    Some(last) => self.scalar(field.kind, last.payload, ""),
                    None => {
                        let default = self.descriptors.schema().default_text(field.kind);
                        Ok(default.is_some_and(|text| (self.test)(&text)))
                    }
                },
                None => Ok(false),
            },
            _ => match self.descriptors.message_json(message, bytes, &mut { MAX_PARTS }) {
                Ok(serde_json::Value::String(text)) => Ok((self.test)(&text)),
                Ok(json) => Ok((self.test)(&json.to_string())),
                Err(_) => Ok(false),
            },
        }
    }

    fn singular(
        &mut self,
        field: &Field,
        occurrences: &[WireField<'_>],
        rest: &str,
        depth: usize,
    ) -> Result<bool, WireError> {
        let Some(last) = occurrences.last() else {
            let default = self.descriptors.schema().default_text(field.kind);
            let default = default.filter(|text| rest.is_empty() && !field.presence && !text.is_empty());
            return Ok(default.is_some_and(|text| (self.test)(&text)));
        };
        if let Kind::Message(id) = field.kind {
            return self.message(id, &joined(occurrences), rest, depth);
        }
        self.scalar(field.kind, last.payload, rest)
    }

    fn repeated(
        &mut self,
        field: &Field,
        occurrences: &[WireField<'_>],
        rest: &str,
        depth: usize,
    ) -> Result<bool, WireError> {
        for occurrence in occurrences {
            match (field.kind, occurrence.payload) {
                (Kind::Message(id), Payload::Bytes(bytes)) => {
                    if self.message(id, bytes, rest, depth)? {
                        return Ok(true);
                    }
                }
                (kind, Payload::Bytes(bytes)) if kind.is_packable() => {
                    for number in unpack(kind, bytes) {
                        if self.scalar(kind, number?, rest)? {
                            return Ok(true);
                        }
                    }
                }
                (kind, payload) => {
                    if self.scalar(kind, payload, rest)? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    fn map(
        &mut self,
        field: &Field,
        occurrences: &[WireField<'_>],
        rest: &str,
        depth: usize,
    ) -> Result<bool, WireError> {
        let Kind::Message(id) = field.kind else {
            return Ok(false);
        };
        let Some(entry) = self.descriptors.schema().message(id) else {
            return Ok(false);
        };
        let (Some(key_field), Some(value_field)) = (entry.field(1), entry.field(2)) else {
            return Ok(false);
        };
        // By key, since of equal keys the last counts.
        let mut wanted = BTreeMap::new();
        for occurrence in occurrences {
            let Payload::Bytes(bytes) = occurrence.payload else {
                continue;
            };
            if let Some(key) = self.map_key(key_field, bytes)?
                && rest_after(&key, rest).is_some()
            {
                wanted.insert(key, bytes);
            }
        }
        for (key, bytes) in wanted {
            let Some(rest) = rest_after(&key, rest) else {
                continue;
            };
            let values = entry.occurrences(value_field, bytes)?;
            let passed = match value_field.kind {
                Kind::Message(id) => self.message(id, &joined(&values), rest, depth)?,
                kind if rest.is_empty() => match values.last() {
                    Some(value) => self.scalar(kind, value.payload, rest)?,
                    None => {
                        let default = self.descriptors.schema().default_text(kind);
                        default.is_some_and(|default| (self.test)(&default))
                    }
                },
                // The value has nothing inside: the rest of the path can only be part of a longer key.
                _ => false,
            };
            if passed {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The key of a map's entry as text.
    fn map_key<'a>(&self, key: &Field, entry: &'a [u8]) -> Result<Option<Cow<'a, str>>, WireError> {
        let mut text = self.descriptors.schema().default_text(key.kind);
        for field in Fields::of(entry) {
            let field = field?;
            if field.number == key.number
                && let Some(found) = self.descriptors.schema().scalar_text(key.kind, field.payload)?
            {
                text = Some(found);
            }
        }
        Ok(text)
    }

    /// A single value that is no message.
    fn scalar(&mut self, kind: Kind, payload: Payload<'_>, rest: &str) -> Result<bool, WireError> {
        if !rest.is_empty() {
            return Ok(false);
        }
        let text = self.descriptors.schema().scalar_text(kind, payload)?;
        Ok(text.is_some_and(|text| (self.test)(&text)))
    }

    /// An encoded `Struct`.
    fn structure(&mut self, bytes: &[u8], rest: &str, depth: usize) -> Result<bool, WireError> {
        let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
        let wanted = entries(bytes, |key| rest_after(key, rest).is_some())?;
        for (key, value) in wanted {
            if self.value(&value, rest_after(key, rest).unwrap_or_default(), depth)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An encoded `Value`.
    fn value(&mut self, bytes: &[u8], rest: &str, depth: usize) -> Result<bool, WireError> {
        let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
        match Value::read(bytes)? {
            Value::Struct(bytes) => self.structure(&bytes, rest, depth),
            Value::List(bytes) => self.list(&bytes, rest, depth),
            _ if !rest.is_empty() => Ok(false),
            Value::Null => Ok((self.test)("")),
            Value::Number(number) => Ok((self.test)(&number_text(number))),
            Value::Text(text) => Ok((self.test)(text)),
            Value::Bool(value) => Ok((self.test)(if value { "true" } else { "false" })),
        }
    }

    /// An encoded `ListValue`.
    fn list(&mut self, bytes: &[u8], rest: &str, depth: usize) -> Result<bool, WireError> {
        let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
        for element in elements(bytes)? {
            if self.value(element, rest, depth)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// What of a path is left after a key; none where the path does not begin with that key. An empty path begins with all.
fn rest_after<'p>(key: &str, path: &'p str) -> Option<&'p str> {
    if path.is_empty() {
        return Some("");
    }
    let rest = path.strip_prefix(key)?;
    if rest.is_empty() {
        Some("")
    } else {
        rest.strip_prefix('.')
    }
}
