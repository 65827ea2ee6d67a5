//! Values as plugins know them, and as Postgres sends them.
//!
//! Few types, each with an array of its own, so that a batch of any size is one statement. What Postgres has besides is
//! read where it has an obvious form here (numbers of all widths, JSON, addresses as text) and refused by name otherwise: a
//! cast in the statement makes text of anything.

use std::net::{Ipv4Addr, Ipv6Addr};

use sqlx::encode::{Encode, IsNull};
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgRow, PgTypeInfo, PgValueFormat};
use sqlx::{Postgres, Row as _, Type, ValueRef as _};

use super::error::{Error, ErrorKind};

/// From Postgres' first moment, 2000-01-01, back to 1970-01-01, in microseconds.
const EPOCH: i64 = 946_684_800_000_000;

/// The bytes of an array's item that say how long it is.
const LENGTH: usize = 4;

/// A value of a parameter or a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value. As a parameter, of whatever type the statement needs.
    Null,
    /// `boolean`.
    Boolean(bool),
    /// `bigint`; as a column, any whole number.
    Integer(i64),
    /// `double precision`; as a column, `real` too.
    Float(f64),
    /// `text`; as a column, whatever has an obvious text.
    Text(String),
    /// `bytea`.
    Bytes(Vec<u8>),
    /// `timestamptz`, in microseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64),
    /// `boolean[]`.
    Booleans(Vec<Option<bool>>),
    /// `bigint[]`.
    Integers(Vec<Option<i64>>),
    /// `double precision[]`.
    Floats(Vec<Option<f64>>),
    /// `text[]`.
    Texts(Vec<Option<String>>),
    /// `bytea[]`.
    ByteStrings(Vec<Option<Vec<u8>>>),
    /// `timestamptz[]`, as in `Timestamp`.
    Timestamps(Vec<Option<i64>>),
}

/// What every value and every item of an array takes beside its content, in bytes.
const EACH: usize = 32;

impl Value {
    /// About how many bytes it takes in memory.
    #[must_use]
    pub fn size(&self) -> u64 {
        let bytes = match self {
            Self::Null | Self::Boolean(_) | Self::Integer(_) | Self::Float(_) | Self::Timestamp(_) => 0,
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
            Self::Booleans(items) => items.len() * EACH,
            Self::Integers(items) | Self::Timestamps(items) => items.len() * EACH,
            Self::Floats(items) => items.len() * EACH,
            Self::Texts(items) => items
                .iter()
                .map(|item| EACH + item.as_ref().map_or(0, String::len))
                .sum(),
            Self::ByteStrings(items) => items.iter().map(|item| EACH + item.as_ref().map_or(0, Vec::len)).sum(),
        };
        u64::try_from(EACH.saturating_add(bytes)).unwrap_or(u64::MAX)
    }

    /// The number of its type in Postgres; 0 lets the server choose.
    pub(crate) fn type_number(&self) -> u32 {
        match self {
            Self::Null => 0,
            Self::Boolean(_) => types::BOOL,
            Self::Integer(_) => types::INT8,
            Self::Float(_) => types::FLOAT8,
            Self::Text(_) => types::TEXT,
            Self::Bytes(_) => types::BYTEA,
            Self::Timestamp(_) => types::TIMESTAMPTZ,
            Self::Booleans(_) => 1000,
            Self::Integers(_) => 1016,
            Self::Floats(_) => 1022,
            Self::Texts(_) => 1009,
            Self::ByteStrings(_) => 1001,
            Self::Timestamps(_) => 1185,
        }
    }
}

/// The numbers of Postgres' types, which never change.
mod types {
    pub(super) const BOOL: u32 = 16;
    pub(super) const BYTEA: u32 = 17;
    pub(super) const NAME: u32 = 19;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT4: u32 = 23;
    pub(super) const TEXT: u32 = 25;
    pub(super) const OID: u32 = 26;
    pub(super) const JSON: u32 = 114;
    pub(super) const CIDR: u32 = 650;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const UNKNOWN: u32 = 705;
    pub(super) const INET: u32 = 869;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const VOID: u32 = 2278;
    pub(super) const UUID: u32 = 2950;
    pub(super) const JSONB: u32 = 3802;
}

/// A value on its way to the server.
pub(crate) struct Parameter<'v>(pub(crate) &'v Value);

impl Type<Postgres> for Parameter<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(0))
    }
}

impl Encode<'_, Postgres> for Parameter<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::Boolean(value) => buffer.push(u8::from(*value)),
            Value::Integer(value) => buffer.extend_from_slice(&value.to_be_bytes()),
            Value::Float(value) => buffer.extend_from_slice(&value.to_be_bytes()),
            Value::Text(text) => buffer.extend_from_slice(clean(text)?.as_bytes()),
            Value::Bytes(bytes) => buffer.extend_from_slice(bytes),
            Value::Timestamp(at) => buffer.extend_from_slice(&moment(*at)?),
            Value::Booleans(items) => array(buffer, types::BOOL, items, |item| Ok([u8::from(*item)]))?,
            Value::Integers(items) => array(buffer, types::INT8, items, |item| Ok(item.to_be_bytes()))?,
            Value::Floats(items) => array(buffer, types::FLOAT8, items, |item| Ok(item.to_be_bytes()))?,
            Value::Texts(items) => array(buffer, types::TEXT, items, |item| clean(item))?,
            Value::ByteStrings(items) => array(buffer, types::BYTEA, items, |item| Ok(item.as_slice()))?,
            Value::Timestamps(items) => array(buffer, types::TIMESTAMPTZ, items, |item| moment(*item))?,
        }
        Ok(IsNull::No)
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(PgTypeInfo::with_oid(Oid(self.0.type_number())))
    }

    fn size_hint(&self) -> usize {
        usize::try_from(self.0.size()).unwrap_or(0)
    }
}

/// Postgres' text has no NUL, and the server would say less clearly why it refuses one.
fn clean(text: &str) -> Result<&str, BoxDynError> {
    if text.contains('\0') {
        return Err("text has a NUL character, which Postgres cannot store".into());
    }
    Ok(text)
}

fn moment(at: i64) -> Result<[u8; 8], BoxDynError> {
    let since = at
        .checked_sub(EPOCH)
        .ok_or("a time is before all that Postgres can store")?;
    Ok(since.to_be_bytes())
}

/// An array of one dimension that counts from 1.
fn array<'i, T, B: AsRef<[u8]>>(
    buffer: &mut PgArgumentBuffer,
    type_number: u32,
    items: &'i [Option<T>],
    bytes: impl Fn(&'i T) -> Result<B, BoxDynError>,
) -> Result<(), BoxDynError> {
    let count = i32::try_from(items.len()).map_err(|_| "an array has too many items")?;
    let has_null = i32::from(items.iter().any(Option::is_none));
    for number in [1, has_null] {
        buffer.extend_from_slice(&number.to_be_bytes());
    }
    buffer.extend_from_slice(&type_number.to_be_bytes());
    for number in [count, 1] {
        buffer.extend_from_slice(&number.to_be_bytes());
    }
    for item in items {
        match item {
            None => buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(item) => {
                let bytes = bytes(item)?;
                let length = i32::try_from(bytes.as_ref().len()).map_err(|_| "an item of an array is too large")?;
                buffer.extend_from_slice(&length.to_be_bytes());
                buffer.extend_from_slice(bytes.as_ref());
            }
        }
    }
    Ok(())
}

/// Reads all columns of a row, which counts so many bytes at most; gives them, and the bytes they count. None where it counts more: nothing
/// is made of an array that would be too large.
pub(crate) fn read_row(row: &PgRow, most: u64) -> Result<Option<(Vec<Value>, u64)>, Error> {
    let mut values = Vec::with_capacity(row.len());
    let mut left = most;
    for index in 0..row.len() {
        let column = row.try_get_raw(index)?;
        let value = if column.is_null() {
            Value::Null
        } else {
            let info = column.type_info().into_owned();
            let number = info.oid().map_or(types::TEXT, |oid| oid.0);
            let bytes = column.as_bytes().map_err(sqlx::Error::Decode)?;
            let value = match column.format() {
                PgValueFormat::Binary if least_size(number, bytes) > left => return Ok(None),
                PgValueFormat::Binary => read(number, bytes),
                PgValueFormat::Text => text(bytes),
            };
            value.ok_or_else(|| {
                let problem = format!(
                    "column {} is of the type {}, which is not supported: cast it in the statement, to text for example",
                    index + 1,
                    // Its name is the database's, and short.
                    sqlx::TypeInfo::name(&info)
                );
                Error::new(ErrorKind::Statement, problem)
            })?
        };
        let Some(after) = left.checked_sub(value.size()) else {
            return Ok(None);
        };
        left = after;
        values.push(value);
    }
    Ok(Some((values, most - left)))
}

/// How many bytes a value will count at least: an item of an array may take 4 bytes on the way, and 32 here.
pub(crate) fn least_size(type_number: u32, bytes: &[u8]) -> u64 {
    let items = match type_number {
        1000 | 1001 | 1007 | 1009 | 1015 | 1016 | 1022 | 1185 => Array::new(bytes).map_or(0, |array| array.count),
        _ => 0,
    };
    u64::try_from(items.saturating_add(1).saturating_mul(EACH)).unwrap_or(u64::MAX)
}

fn text(bytes: &[u8]) -> Option<Value> {
    Some(Value::Text(std::str::from_utf8(bytes).ok()?.to_owned()))
}

/// Reads one value, in binary; none where its type is not supported.
pub(crate) fn read(type_number: u32, bytes: &[u8]) -> Option<Value> {
    Some(match type_number {
        types::BOOL => Value::Boolean(boolean(bytes)?),
        types::INT2 => Value::Integer(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        types::INT4 => Value::Integer(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        types::OID => Value::Integer(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        types::INT8 => Value::Integer(integer(bytes)?),
        types::FLOAT4 => Value::Float(f32::from_be_bytes(bytes.try_into().ok()?).into()),
        types::FLOAT8 => Value::Float(float(bytes)?),
        types::BYTEA => Value::Bytes(bytes.to_vec()),
        types::TIMESTAMPTZ => Value::Timestamp(timestamp(bytes)?),
        types::TEXT | types::VARCHAR | types::BPCHAR | types::NAME | types::JSON | types::UNKNOWN => {
            return text(bytes);
        }
        types::JSONB => match bytes.split_first()? {
            (1, json) => return text(json),
            _ => return None,
        },
        types::UUID => {
            let number = u128::from_be_bytes(bytes.try_into().ok()?);
            let digits = format!("{number:032x}");
            let part = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default();
            let parts = [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)];
            Value::Text(parts.join("-"))
        }
        types::INET | types::CIDR => Value::Text(network(bytes)?),
        // What a function without a result gives.
        types::VOID => Value::Null,
        1000 => Value::Booleans(items(bytes, types::BOOL, boolean)?),
        1016 => Value::Integers(items(bytes, types::INT8, integer)?),
        1007 => Value::Integers(items(bytes, types::INT4, |item| {
            Some(i32::from_be_bytes(item.try_into().ok()?).into())
        })?),
        1022 => Value::Floats(items(bytes, types::FLOAT8, float)?),
        1009 => Value::Texts(items(bytes, types::TEXT, |item| String::from_utf8(item.to_vec()).ok())?),
        1015 => Value::Texts(items(bytes, types::VARCHAR, |item| {
            String::from_utf8(item.to_vec()).ok()
        })?),
        1001 => Value::ByteStrings(items(bytes, types::BYTEA, |item| Some(item.to_vec()))?),
        1185 => Value::Timestamps(items(bytes, types::TIMESTAMPTZ, timestamp)?),
        _ => return None,
    })
}

fn boolean(bytes: &[u8]) -> Option<bool> {
    bytes.first().map(|byte| *byte != 0)
}

fn integer(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

fn float(bytes: &[u8]) -> Option<f64> {
    Some(f64::from_be_bytes(bytes.try_into().ok()?))
}

/// Postgres' "infinity" stays the end of time.
fn timestamp(bytes: &[u8]) -> Option<i64> {
    Some(integer(bytes)?.saturating_add(EPOCH))
}

fn network(bytes: &[u8]) -> Option<String> {
    let (head, address) = bytes.split_at_checked(4)?;
    let &[_, bits, _, _] = head else { return None };
    let (address, full) = match address.len() {
        4 => (Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?).to_string(), 32),
        16 => (Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_string(), 128),
        _ => return None,
    };
    Some(if bits == full {
        address
    } else {
        format!("{address}/{bits}")
    })
}

/// An array of at most one dimension, as it is sent.
struct Array<'b> {
    /// The type of its items.
    of: u32,
    /// How many items it has: no more than there could be in so many bytes.
    count: usize,
    /// The items, each with its length before it.
    items: &'b [u8],
}

impl<'b> Array<'b> {
    fn new(bytes: &'b [u8]) -> Option<Self> {
        let mut rest = bytes;
        let mut number = || {
            let (head, after) = rest.split_first_chunk()?;
            rest = after;
            Some(u32::from_be_bytes(*head))
        };
        let (dimensions, _has_null, of) = (number()?, number()?, number()?);
        let count = match dimensions {
            0 => 0,
            1 => {
                let (count, _from) = (number()?, number()?);
                usize::try_from(count).ok()?
            }
            _ => return None,
        };
        (count <= rest.len() / LENGTH).then_some(Self { of, count, items: rest })
    }
}

/// The items of an array of at most one dimension.
fn items<T>(bytes: &[u8], type_number: u32, read: impl Fn(&[u8]) -> Option<T>) -> Option<Vec<Option<T>>> {
    let array = Array::new(bytes).filter(|array| array.of == type_number)?;
    let mut rest = array.items;
    let mut items = Vec::with_capacity(array.count);
    for _ in 0..array.count {
        let (length, after) = rest.split_first_chunk::<LENGTH>()?;
        rest = after;
        items.push(match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => None,
            Ok(length) => {
                let (item, after) = rest.split_at_checked(length)?;
                rest = after;
                Some(read(item)?)
            }
        });
    }
    Some(items)
}
