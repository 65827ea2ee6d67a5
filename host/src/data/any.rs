//! The `google.protobuf.Any` that record data is: a type URL and an encoded message of that type.

use super::DataError;
use super::wire::{Fields, Payload, WireError};

/// A type URL and the encoded message of that type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Any<'a> {
    pub type_url: &'a str,
    pub value: &'a [u8],
}

impl<'a> Any<'a> {
    /// Reads an encoded `Any`. Fields of other numbers or other wire types are passed over, as every decoder does.
    pub(super) fn read(data: &'a [u8]) -> Result<Self, WireError> {
        let mut any = Self::default();
        for field in Fields::of(data) {
            let field = field?;
            match (field.number, field.payload) {
                (1, Payload::Bytes(bytes)) => {
                    any.type_url = std::str::from_utf8(bytes).map_err(|_| WireError::Utf8)?;
                }
                (2, Payload::Bytes(bytes)) => any.value = bytes,
                _ => {}
            }
        }
        Ok(any)
    }

    /// The full name of the message: what follows the last slash of the type URL, or all of it.
    pub(super) fn message_name(&self) -> &'a str {
        message_name(self.type_url)
    }
}

/// The full name of the message that a type URL stands for.
pub(super) fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// The type URL of record data; empty where it has none.
///
/// # Errors
///
/// [`DataError::Malformed`] if the bytes are not an `Any`.
pub fn type_url(data: &[u8]) -> Result<&str, DataError> {
    Ok(Any::read(data)?.type_url)
}

/// Checks that bytes are an `Any`; says nothing of the message inside.
///
/// # Errors
///
/// [`DataError::Malformed`] if they are not.
pub fn check_any(data: &[u8]) -> Result<(), DataError> {
    type_url(data).map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use prost::Message;

    use super::*;

    #[test]
    fn reads_what_an_encoder_makes() {
        let data = prost_types::Any {
            type_url: "type.googleapis.com/user.User".into(),
            value: vec![1, 2, 3],
        }
        .encode_to_vec();
        let any = Any::read(&data).unwrap();
        assert_eq!(any.type_url, "type.googleapis.com/user.User");
        assert_eq!(any.message_name(), "user.User");
        assert_eq!(any.value, [1, 2, 3]);
        assert_eq!(type_url(&[]), Ok(""));
    }

    #[test]
    fn refuses_what_is_not_an_any() {
        for bytes in [&b"\x0a\x02\xff\xff"[..], b"\x0a\x05ab", b"\x00", b"\x12", b"plain text"] {
            assert!(matches!(check_any(bytes), Err(DataError::Malformed(_))), "{bytes:?}");
        }
    }
}
