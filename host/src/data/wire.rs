//! Protobuf's wire format, read in place: a message is a sequence of fields, each a number and a payload.
//!
//! The walkers of this folder work on it rather than on decoded messages, since they want one field of a record out of
//! ten thousand records. Input is hostile: every length is checked and nothing is read past the end.

/// Why bytes are not a protobuf message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("the message ends in the middle of a field")]
    Truncated,
    #[error("a number is longer than 64 bits")]
    Varint,
    #[error("a field has a number or a wire type that does not exist")]
    Tag,
    #[error("a group does not end where it should")]
    Group,
    #[error("messages are nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("a string is not valid UTF-8")]
    Utf8,
}

/// How deep messages may be nested before they count as malformed: protobuf decoders' own bound.
pub(super) const MAX_DEPTH: usize = 100;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
    /// A group, which no schema of this folder knows: only ever passed over.
    Group,
}

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    /// Its number, at least 1.
    pub number: u32,
    /// What it holds.
    pub payload: Payload<'a>,
    /// The bytes of the whole field, tag included.
    pub raw: &'a [u8],
}

/// The fields of a message in the order of its bytes; ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The fields of the message with these bytes.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn read(&mut self) -> Result<Field<'a>, WireError> {
        let start = self.rest;
        let (number, payload) = take_field(&mut self.rest, MAX_DEPTH)?;
        let length = start.len() - self.rest.len();
        Ok(Field {
            number,
            payload: payload.ok_or(WireError::Group)?,
            raw: start.get(..length).ok_or(WireError::Truncated)?,
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Takes one field off the front; without a payload it is the end of a group.
fn take_field<'a>(rest: &mut &'a [u8], depth: usize) -> Result<(u32, Option<Payload<'a>>), WireError> {
    let tag = u32::try_from(take_varint(rest)?).map_err(|_| WireError::Tag)?;
    let number = tag >> 3;
    if number == 0 {
        return Err(WireError::Tag);
    }
    let payload = match tag & 7 {
        0 => Payload::Varint(take_varint(rest)?),
        1 => Payload::Fixed64(u64::from_le_bytes(take_array(rest)?)),
        2 => {
            let length = usize::try_from(take_varint(rest)?).map_err(|_| WireError::Truncated)?;
            Payload::Bytes(take_bytes(rest, length)?)
        }
        3 => {
            let depth = depth.checked_sub(1).ok_or(WireError::Depth)?;
            loop {
                match take_field(rest, depth)? {
                    (_, Some(_)) => {}
                    (end, None) if end == number => break Payload::Group,
                    (_, None) => return Err(WireError::Group),
                }
            }
        }
        4 => return Ok((number, None)),
        5 => Payload::Fixed32(u32::from_le_bytes(take_array(rest)?)),
        _ => return Err(WireError::Tag),
    };
    Ok((number, Some(payload)))
}

/// Takes a variable-length number off the front.
#[inline]
pub(super) fn take_varint(rest: &mut &[u8]) -> Result<u64, WireError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first().ok_or(WireError::Truncated)?;
        *rest = tail;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return Err(WireError::Varint);
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(WireError::Varint)
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], WireError> {
    let (taken, tail) = rest.split_at_checked(length).ok_or(WireError::Truncated)?;
    *rest = tail;
    Ok(taken)
}

/// Takes a fixed number of bytes off the front.
pub(super) fn take_array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (taken, tail) = rest.split_first_chunk::<N>().ok_or(WireError::Truncated)?;
    *rest = tail;
    Ok(*taken)
}

/// Appends a field of bytes: a string, a message or packed numbers.
pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_varint(out, u64::from(number << 3 | 2));
    put_varint(out, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    out.extend_from_slice(bytes);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn check(bytes: &[u8], expected: Result<usize, WireError>) {
        let found: Result<Vec<_>, _> = Fields::of(bytes).collect();
        assert_eq!(found.map(|fields| fields.len()), expected, "{bytes:?}");
    }

    #[test]
    fn reads_fields_and_refuses_what_is_not_one() {
        check(&[], Ok(0));
        check(&[0x08, 0x01], Ok(1));
        check(&[0x0a, 0x02, 1, 2, 0x08, 0x01], Ok(2));
        check(&[0x0d, 1, 2, 3, 4, 0x09, 1, 2, 3, 4, 5, 6, 7, 8], Ok(2));
        // A group with a field and a group inside.
        check(&[0x0b, 0x08, 0x01, 0x13, 0x14, 0x0c], Ok(1));
        check(&[0x0b, 0x14], Err(WireError::Group));
        check(&[0x0c], Err(WireError::Group));
        check(&[0x0b], Err(WireError::Truncated));
        check(&vec![0x0b; 1000], Err(WireError::Depth));
        check(&[0x08], Err(WireError::Truncated));
        check(&[0x0a, 0x02, 1], Err(WireError::Truncated));
        check(&[0x0d, 1, 2, 3], Err(WireError::Truncated));
        check(&[0x00, 0x01], Err(WireError::Tag));
        check(&[0x0e], Err(WireError::Tag));
        check(&[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1], Ok(1));
        check(
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            Err(WireError::Varint),
        );
        check(
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            Err(WireError::Varint),
        );
    }

    proptest! {
        #[test]
        fn fields_add_up_to_the_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut joined = Vec::new();
            for field in Fields::of(&bytes) {
                let Ok(field) = field else { return Ok(()) };
                joined.extend_from_slice(field.raw);
            }
            prop_assert_eq!(joined, bytes);
        }

        #[test]
        fn what_is_put_is_read(number in 1u32..(1 << 29), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            put_bytes(&mut out, number, &bytes);
            let field = Fields::of(&out).next().unwrap().unwrap();
            prop_assert_eq!(field.number, number);
            prop_assert_eq!(field.payload, Payload::Bytes(&bytes));
            prop_assert_eq!(field.raw, &out[..]);
        }
    }
}
