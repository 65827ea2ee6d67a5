//! Checks that bytes are a whole message of their type, as far as decoding it would.

use super::any::Any;
use super::scalar::unpack;
use super::schema::{Form, Kind, MessageId, Schema, Shape};
use super::wire::{Fields, MAX_DEPTH, Payload, WireError};

/// How far a check goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// The message itself; an `Any` within it is opaque bytes.
    Message,
    /// Also into an `Any` of a known type, so that their nesting counts: JSON opens them all.
    Anys,
}

impl Schema {
    /// Checks fields, text and nesting all the way down. Returns how many parts the message has: fields and numbers of lists, each
    /// counted once for every message that it lies in.
    pub(super) fn check(&self, id: MessageId, bytes: &[u8], reach: Reach) -> Result<usize, WireError> {
        self.check_level(id, bytes, reach, MAX_DEPTH)
    }

    fn check_level(&self, id: MessageId, bytes: &[u8], reach: Reach, depth: usize) -> Result<usize, WireError> {
        let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
        let Some(message) = self.message(id) else {
            return Ok(0);
        };
        let levels = MAX_DEPTH - depth;
        let mut parts: usize = 0;
        for occurrence in Fields::of(bytes) {
            let occurrence = occurrence?;
            parts = parts.saturating_add(levels);
            let Payload::Bytes(payload) = occurrence.payload else {
                continue;
            };
            let Some(field) = message.field(occurrence.number) else {
                continue;
            };
            match field.kind {
                Kind::String => {
                    std::str::from_utf8(payload).map_err(|_| WireError::Utf8)?;
                }
                Kind::Message(inner) => {
                    parts = parts.saturating_add(self.check_level(inner, payload, reach, depth)?);
                }
                kind if field.shape == Shape::List && kind.is_packable() => {
                    unpack(kind, payload).try_for_each(|number| {
                        parts = parts.saturating_add(levels);
                        number.map(|_| ())
                    })?;
                }
                _ => {}
            }
        }
        if reach == Reach::Anys && message.form == Form::Any {
            let any = Any::read(bytes)?;
            if let Some((inner, _)) = self.find(any.message_name()) {
                parts = parts.saturating_add(self.check_level(inner, any.value, reach, depth)?);
            }
        }
        Ok(parts)
    }
}
