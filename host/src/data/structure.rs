//! `google.protobuf.Struct`, `Value` and `ListValue` read in place: JSON inside protobuf.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::wire::{Field, Fields, Payload, WireError};

/// A JSON value; what it holds is still encoded.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    Null,
    Number(f64),
    Text(&'a str),
    Bool(bool),
    /// An encoded `Struct`.
    Struct(Cow<'a, [u8]>),
    /// An encoded `ListValue`.
    List(Cow<'a, [u8]>),
}

impl<'a> Value<'a> {
    /// Reads an encoded `Value`; one that holds nothing is null.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut value = Self::Null;
        for field in Fields::of(bytes) {
            let field = field?;
            value = match (field.number, field.payload) {
                (1, Payload::Varint(_)) => Self::Null,
                (2, Payload::Fixed64(bits)) => Self::Number(f64::from_bits(bits)),
                (3, Payload::Bytes(text)) => Self::Text(std::str::from_utf8(text).map_err(|_| WireError::Utf8)?),
                (4, Payload::Varint(number)) => Self::Bool(number != 0),
                (5, Payload::Bytes(more)) => match value {
                    Self::Struct(bytes) => Self::Struct(join(Some(bytes), more)),
                    _ => Self::Struct(Cow::Borrowed(more)),
                },
                (6, Payload::Bytes(more)) => match value {
                    Self::List(bytes) => Self::List(join(Some(bytes), more)),
                    _ => Self::List(Cow::Borrowed(more)),
                },
                _ => value,
            };
        }
        Ok(value)
    }
}

/// The wanted entries of an encoded `Struct`: their keys and encoded `Value`s. The last of equal keys counts.
pub(super) fn entries<'a>(
    bytes: &'a [u8],
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<&'a str, Cow<'a, [u8]>>, WireError> {
    let mut found = BTreeMap::new();
    for entry in Fields::of(bytes) {
        let entry = entry?;
        let (1, Payload::Bytes(entry)) = (entry.number, entry.payload) else {
            continue;
        };
        let mut key = &[][..];
        let mut value = None;
        for field in Fields::of(entry) {
            let field = field?;
            match (field.number, field.payload) {
                (1, Payload::Bytes(bytes)) => key = bytes,
                (2, Payload::Bytes(bytes)) => value = Some(join(value, bytes)),
                _ => {}
            }
        }
        let key = std::str::from_utf8(key).map_err(|_| WireError::Utf8)?;
        if wanted(key) {
            found.insert(key, value.unwrap_or_default());
        }
    }
    Ok(found)
}

/// The encoded `Value`s of an encoded `ListValue`.
pub(super) fn elements(bytes: &[u8]) -> Result<Vec<&[u8]>, WireError> {
    let mut found = Vec::new();
    for field in Fields::of(bytes) {
        let field = field?;
        if let (1, Payload::Bytes(element)) = (field.number, field.payload) {
            found.push(element);
        }
    }
    Ok(found)
}

/// Joins two occurrences of one message field: decoders merge them, which is what decoding the joined bytes does.
fn join<'a>(before: Option<Cow<'a, [u8]>>, more: &'a [u8]) -> Cow<'a, [u8]> {
    match before {
        None => Cow::Borrowed(more),
        Some(before) if before.is_empty() => Cow::Borrowed(more),
        Some(before) => {
            let mut joined = before.into_owned();
            joined.extend_from_slice(more);
            Cow::Owned(joined)
        }
    }
}

/// The message that the occurrences of one field make together; empty where there are none.
pub(super) fn joined<'a>(occurrences: &[Field<'a>]) -> Cow<'a, [u8]> {
    let mut all = None;
    for occurrence in occurrences {
        if let Payload::Bytes(bytes) = occurrence.payload {
            all = Some(join(all, bytes));
        }
    }
    all.unwrap_or_default()
}
