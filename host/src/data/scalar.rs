//! The text forms of single values, in which filters compare them and indexes hold them.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::schema::{Kind, Schema};
use super::wire::{Fields, Payload, WireError, take_array, take_varint};

/// A number as Go's `%v` writes it, which is how Pomerium compares numbers with strings: the shortest digits that read
/// back as the same number, with an exponent where it is below -4 or above 5 (`1e-05`, `123456.7`, `1e+06`).
pub fn number_text(number: f64) -> String {
    go_float(number, number.is_nan(), number.is_infinite(), number.is_sign_negative())
}

fn go_float(number: impl std::fmt::Display + std::fmt::LowerExp, nan: bool, infinite: bool, negative: bool) -> String {
    if nan {
        return "NaN".to_owned();
    }
    if infinite {
        return if negative { "-Inf" } else { "+Inf" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..EXPONENT_FROM).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// From this power of ten on numbers are written with an exponent.
const EXPONENT_FROM: i32 = 6;

impl Schema {
    /// The text of one payload of this kind; none for messages and for a payload of another wire type.
    pub(super) fn scalar_text<'a>(&self, kind: Kind, payload: Payload<'a>) -> Result<Option<Cow<'a, str>>, WireError> {
        Ok(Some(Cow::Owned(match (kind, payload) {
            (Kind::String, Payload::Bytes(bytes)) => {
                return match std::str::from_utf8(bytes) {
                    Ok(text) => Ok(Some(Cow::Borrowed(text))),
                    Err(_) => Err(WireError::Utf8),
                };
            }
            (Kind::Bool, Payload::Varint(value)) => return Ok(Some(Cow::Borrowed(bool_text(value != 0)))),
            (Kind::Bytes, Payload::Bytes(bytes)) => STANDARD.encode(bytes),
            (Kind::Int32, Payload::Varint(value)) => low_i32(value).to_string(),
            (Kind::Int64, Payload::Varint(value)) => value.cast_signed().to_string(),
            (Kind::Uint32, Payload::Varint(value)) => low_u32(value).to_string(),
            (Kind::Uint64, Payload::Varint(value)) => value.to_string(),
            (Kind::Sint32, Payload::Varint(value)) => {
                low_i32(zigzag(u64::from(low_u32(value))).cast_unsigned()).to_string()
            }
            (Kind::Sint64, Payload::Varint(value)) => zigzag(value).to_string(),
            (Kind::Fixed32, Payload::Fixed32(value)) => value.to_string(),
            (Kind::Fixed64, Payload::Fixed64(value)) => value.to_string(),
            (Kind::Sfixed32, Payload::Fixed32(value)) => value.cast_signed().to_string(),
            (Kind::Sfixed64, Payload::Fixed64(value)) => value.cast_signed().to_string(),
            (Kind::Float, Payload::Fixed32(bits)) => {
                let number = f32::from_bits(bits);
                go_float(number, number.is_nan(), number.is_infinite(), number.is_sign_negative())
            }
            (Kind::Double, Payload::Fixed64(bits)) => number_text(f64::from_bits(bits)),
            (Kind::Enum(id), Payload::Varint(value)) => self.enum_text(id, low_i32(value)),
            _ => return Ok(None),
        })))
    }

    /// The text of a field of this kind that has its default; none for messages.
    pub(super) fn default_text(&self, kind: Kind) -> Option<Cow<'static, str>> {
        match kind {
            Kind::String | Kind::Bytes => Some(Cow::Borrowed("")),
            Kind::Bool => Some(Cow::Borrowed(bool_text(false))),
            Kind::Enum(id) => Some(Cow::Owned(self.enum_default(id))),
            Kind::Message(_) => None,
            _ => Some(Cow::Borrowed("0")),
        }
    }
}

fn bool_text(value: bool) -> &'static str {
    if value { "true" } else { "false" }
}

/// Decoders drop the upper half of a number that is too long for its field.
pub(super) fn low_u32(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default()
}

fn low_i32(value: u64) -> i32 {
    low_u32(value).cast_signed()
}

fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The numbers of a packed list of this kind.
pub(super) fn unpack(kind: Kind, mut bytes: &[u8]) -> impl Iterator<Item = Result<Payload<'static>, WireError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let payload = match kind {
            Kind::Fixed32 | Kind::Sfixed32 | Kind::Float => {
                take_array(&mut bytes).map(|bytes| Payload::Fixed32(u32::from_le_bytes(bytes)))
            }
            Kind::Fixed64 | Kind::Sfixed64 | Kind::Double => {
                take_array(&mut bytes).map(|bytes| Payload::Fixed64(u64::from_le_bytes(bytes)))
            }
            _ => take_varint(&mut bytes).map(Payload::Varint),
        };
        if payload.is_err() {
            bytes = &[];
        }
        Some(payload)
    })
}

/// Seconds and nanoseconds, as `google.protobuf.Timestamp` and `Duration` both encode them.
fn seconds_and_nanos(bytes: &[u8]) -> Result<(i64, i32), WireError> {
    let (mut seconds, mut nanos) = (0, 0);
    for field in Fields::of(bytes) {
        let field = field?;
        match (field.number, field.payload) {
            (1, Payload::Varint(value)) => seconds = value.cast_signed(),
            (2, Payload::Varint(value)) => nanos = low_i32(value),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

/// An encoded `google.protobuf.Timestamp` as RFC 3339: `2025-01-31T12:00:00Z`, with 3, 6 or 9 digits of a fraction.
pub(super) fn timestamp_text(bytes: &[u8]) -> Result<String, WireError> {
    let (seconds, nanos) = seconds_and_nanos(bytes)?;
    Ok(prost_types::Timestamp { seconds, nanos }.to_string())
}

/// An encoded `google.protobuf.Duration` in seconds: `900s`, `1.500s`.
pub(super) fn duration_text(bytes: &[u8]) -> Result<String, WireError> {
    let (seconds, nanos) = seconds_and_nanos(bytes)?;
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, fraction) = (
        total.unsigned_abs() / 1_000_000_000,
        total.unsigned_abs() % 1_000_000_000,
    );
    Ok(if fraction == 0 {
        format!("{sign}{whole}s")
    } else if fraction % 1_000_000 == 0 {
        format!("{sign}{whole}.{:03}s", fraction / 1_000_000)
    } else if fraction % 1_000 == 0 {
        format!("{sign}{whole}.{:06}s", fraction / 1_000)
    } else {
        format!("{sign}{whole}.{fraction:09}s")
    })
}
