//! Patch's merge: the masked fields of an update overwrite those of an existing record.
//!
//! A path ends at a field that is copied as a whole: lists and maps are replaced, not merged, and a field that the update
//! does not set is cleared. Since a number, a text or a flag that has its default counts as not set, it clears too. A path
//! that goes on goes into a message, which is made where only the update has it and left alone where neither has. Where
//! one path leads to another's parent, the parent is copied. No path copies nothing, and `*` is a field name like others.
//!
//! Merging copies and drops whole fields of the encoded messages. Whatever else the existing message holds stays as it
//! is, byte for byte, fields among it that the type does not know.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::DataError;
use super::check::Reach;
use super::descriptors::Descriptors;
use super::scalar::{low_u32, unpack};
use super::schema::{Field, Kind, Message, MessageId, Shape};
use super::structure::joined;
use super::wire::{Field as WireField, Fields, MAX_DEPTH, Payload, put_bytes};

/// Which fields a patch copies: a tree of proto field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// A name without names below it is copied as a whole.
    fields: BTreeMap<String, Mask>,
}

/// Why data could not be merged. The texts follow those of Pomerium's own server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The existing record has no data, or data that cannot be decoded.
    #[error("could not unmarshal existing record data: {0}")]
    Existing(String),
    /// The update has no data, or data that cannot be decoded.
    #[error("could not unmarshal new record data: {0}")]
    Update(String),
    /// The two are of different types.
    #[error("cannot patch record: descriptor mismatch: {existing}, {update}")]
    Mismatch {
        /// The full name of the existing message.
        existing: String,
        /// The full name of the update's.
        update: String,
    },
    /// The mask names a field that the message does not have.
    #[error("cannot patch record: cannot overwrite unknown field {field:?} in message {message}")]
    UnknownField {
        /// The field.
        field: String,
        /// The full name of the message.
        message: String,
    },
    /// The mask goes into a field that is not a single message.
    #[error("cannot patch record: cannot overwrite sub-fields of field {field:?} in message {message}")]
    NotAMessage {
        /// The field.
        field: String,
        /// The full name of the message.
        message: String,
    },
    /// A path of the mask has more names than messages can be nested.
    #[error("cannot patch record: a path of the field mask has more than {MAX_DEPTH} names")]
    MaskTooDeep,
}

impl Mask {
    /// A mask of paths: proto field names joined by dots. None at all is a mask that copies nothing.
    ///
    /// # Errors
    ///
    /// [`MergeError::MaskTooDeep`] for a path of more than 100 names.
    pub fn new<P: AsRef<str>>(paths: impl IntoIterator<Item = P>) -> Result<Self, MergeError> {
        let mut mask = Self::default();
        for path in paths {
            let path = path.as_ref();
            if path.split('.').count() > MAX_DEPTH {
                return Err(MergeError::MaskTooDeep);
            }
            mask.add(path);
        }
        Ok(mask)
    }

    fn add(&mut self, path: &str) {
        let mut level = self;
        let mut is_new = false;
        for name in path.split('.') {
            if !is_new && !level.fields.contains_key(name) {
                is_new = true;
            } else if !is_new && level.fields.get(name).is_some_and(|below| below.fields.is_empty()) {
                // A parent of this path is copied as a whole.
                return;
            }
            level = level.fields.entry(name.to_owned()).or_default();
        }
        level.fields.clear();
    }
}

impl Descriptors {
    /// Copies the masked fields of an update into existing data; the result is an encoded `Any` again.
    ///
    /// # Errors
    ///
    /// See [`MergeError`]; absent data is an error on either side.
    pub fn merge(&self, existing: Option<&[u8]>, update: Option<&[u8]>, mask: &Mask) -> Result<Bytes, MergeError> {
        let (type_url, id, message, existing) = self.whole(existing).map_err(MergeError::Existing)?;
        let (_, update_id, update_message, update) = self.whole(update).map_err(MergeError::Update)?;
        if id != update_id {
            return Err(MergeError::Mismatch {
                existing: message.descriptor.full_name().to_owned(),
                update: update_message.descriptor.full_name().to_owned(),
            });
        }
        let merged = self.merge_message(message, existing, update, mask)?;
        let mut data = Vec::with_capacity(type_url.len() + merged.len() + 16);
        put_bytes(&mut data, 1, type_url.as_bytes());
        put_bytes(&mut data, 2, &merged);
        Ok(Bytes::from(data))
    }

    /// Opens data that must be there and decode.
    fn whole<'d>(&self, data: Option<&'d [u8]>) -> Result<(&'d str, MessageId, &Message, &'d [u8]), String> {
        let data = data.ok_or("the record has no data")?;
        let opened = self.open(data).map_err(|error| error.to_string())?;
        self.schema()
            .check(opened.1, opened.3, Reach::Message)
            .map_err(|error| DataError::from(error).to_string())?;
        Ok(opened)
    }

    fn merge_message(
        &self,
        message: &Message,
        existing: &[u8],
        update: &[u8],
        mask: &Mask,
    ) -> Result<Vec<u8>, MergeError> {
        let mut edits = Edits::default();
        for (name, below) in &mask.fields {
            let field = message
                .field_by_proto_name(name)
                .ok_or_else(|| MergeError::UnknownField {
                    field: name.clone(),
                    message: message.descriptor.full_name().to_owned(),
                })?;
            // Both messages have been checked as a whole, so that they can be read.
            let new = message.occurrences(field, update).unwrap_or_default();
            if below.fields.is_empty() {
                if is_set(field, &new) {
                    edits.set(message, field, &new);
                } else {
                    edits.clear(message, field, existing);
                }
                continue;
            }
            let inner = match field.kind {
                Kind::Message(id) if field.shape == Shape::Singular => self.schema().message(id),
                _ => None,
            };
            let inner = inner.ok_or_else(|| MergeError::NotAMessage {
                field: name.clone(),
                message: message.descriptor.full_name().to_owned(),
            })?;
            let old = message.occurrences(field, existing).unwrap_or_default();
            if new.is_empty() && (old.is_empty() || edits.has_set_oneof(message, field)) {
                continue;
            }
            let merged = self.merge_message(inner, &joined(&old), &joined(&new), below)?;
            let mut encoded = Vec::with_capacity(merged.len() + 8);
            put_bytes(&mut encoded, field.number, &merged);
            edits.put(message, field, encoded);
        }
        Ok(edits.apply(message, existing))
    }
}

/// What to do to an encoded message.
#[derive(Default)]
struct Edits {
    /// Numbers of the fields to drop.
    dropped: Vec<u32>,
    /// Encoded fields to append, with their numbers.
    added: Vec<(u32, Vec<u8>)>,
}

impl Edits {
    /// Copies a field from where it occurs.
    fn set(&mut self, message: &Message, field: &Field, occurrences: &[WireField<'_>]) {
        let encoded = match (field.shape, field.kind, occurrences.last()) {
            // The last occurrence is the value; messages and lists consist of all of them.
            (Shape::Singular, kind, Some(last)) if !matches!(kind, Kind::Message(_)) => last.raw.to_vec(),
            _ => occurrences
                .iter()
                .flat_map(|occurrence| occurrence.raw)
                .copied()
                .collect(),
        };
        self.put(message, field, encoded);
    }

    /// Sets a field; of a oneof that clears the others.
    fn put(&mut self, message: &Message, field: &Field, encoded: Vec<u8>) {
        self.drop_all(message, field);
        self.added.retain(|(number, _)| {
            let other = message.field(*number);
            field.oneof.is_none() || other.is_none_or(|other| other.oneof != field.oneof)
        });
        self.added.push((field.number, encoded));
    }

    /// Clears a field. Of a oneof, what it had replaced goes too, or it would come back.
    fn clear(&mut self, message: &Message, field: &Field, existing: &[u8]) {
        let is_current = !message.occurrences(field, existing).unwrap_or_default().is_empty();
        if is_current {
            self.drop_all(message, field);
        } else {
            self.dropped.push(field.number);
        }
    }

    /// Drops what the existing message has of a field, and of the others of its oneof.
    fn drop_all(&mut self, message: &Message, field: &Field) {
        self.dropped.push(field.number);
        if let Some(oneof) = field.oneof {
            self.dropped
                .extend(message.oneof_fields(oneof).map(|other| other.number));
        }
    }

    /// True where a field of the same oneof has been set before this one.
    fn has_set_oneof(&self, message: &Message, field: &Field) -> bool {
        field.oneof.is_some_and(|oneof| {
            message
                .oneof_fields(oneof)
                .any(|other| self.added.iter().any(|(number, _)| *number == other.number))
        })
    }

    fn apply(self, message: &Message, existing: &[u8]) -> Vec<u8> {
        let added: usize = self.added.iter().map(|(_, field)| field.len()).sum();
        let mut merged = Vec::with_capacity(existing.len() + added);
        for occurrence in Fields::of(existing).map_while(Result::ok) {
            let is_dropped = self.dropped.contains(&occurrence.number)
                && message
                    .field(occurrence.number)
                    .is_some_and(|field| field.takes(&occurrence.payload));
            if !is_dropped {
                merged.extend_from_slice(occurrence.raw);
            }
        }
        for (_, field) in self.added {
            merged.extend_from_slice(&field);
        }
        merged
    }
}

/// True where a message with these occurrences of a field has it: something at all, and something other than the default
/// where the field has no presence.
fn is_set(field: &Field, occurrences: &[WireField<'_>]) -> bool {
    let Some(last) = occurrences.last() else {
        return false;
    };
    if field.shape == Shape::List {
        return occurrences.iter().any(|occurrence| match occurrence.payload {
            Payload::Bytes(bytes) if field.kind.is_packable() => unpack(field.kind, bytes).next().is_some(),
            _ => true,
        });
    }
    if field.presence || field.shape == Shape::Map {
        return true;
    }
    match (field.kind, last.payload) {
        (Kind::Bool | Kind::Int64 | Kind::Uint64 | Kind::Sint64, Payload::Varint(value)) => value != 0,
        (_, Payload::Varint(value)) => low_u32(value) != 0,
        (_, Payload::Fixed32(value)) => value != 0,
        (_, Payload::Fixed64(value)) => value != 0,
        (_, Payload::Bytes(bytes)) => !bytes.is_empty(),
        (_, Payload::Group) => false,
    }
}
