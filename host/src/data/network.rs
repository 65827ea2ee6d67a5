//! The network of a record: `$index.cidr` in data that is JSON (`google.protobuf.Struct` or `Value`), by which the
//! `$index` filter finds it.

use std::borrow::Cow;

use ipnet::IpNet;

use super::any::Any;
use super::structure::{Value, entries};
use super::wire::{MAX_DEPTH, WireError};

/// The network in record data, as a canonical prefix; an `Any` within the `Any` is unwrapped.
///
/// None where there is no `$index.cidr`, where it is no prefix, and at once where the data is of another type.
pub fn network(data: &[u8]) -> Option<IpNet> {
    read(data).ok().flatten()
}

fn read(mut data: &[u8]) -> Result<Option<IpNet>, WireError> {
    for _ in 0..MAX_DEPTH {
        let any = Any::read(data)?;
        return match any.message_name() {
            "google.protobuf.Any" => {
                data = any.value;
                continue;
            }
            "google.protobuf.Struct" => in_struct(any.value),
            "google.protobuf.Value" => match Value::read(any.value)? {
                Value::Struct(bytes) => in_struct(&bytes),
                _ => Ok(None),
            },
            _ => Ok(None),
        };
    }
    Ok(None)
}

fn in_struct(bytes: &[u8]) -> Result<Option<IpNet>, WireError> {
    let Some(index) = entry(bytes, "$index")? else {
        return Ok(None);
    };
    let Value::Struct(index) = Value::read(&index)? else {
        return Ok(None);
    };
    let Some(cidr) = entry(&index, "cidr")? else {
        return Ok(None);
    };
    Ok(match Value::read(&cidr)? {
        Value::Text(text) => text.parse::<IpNet>().ok().map(|network| network.trunc()),
        _ => None,
    })
}

fn entry<'a>(bytes: &'a [u8], key: &str) -> Result<Option<Cow<'a, [u8]>>, WireError> {
    Ok(entries(bytes, |other| other == key)?.into_values().next())
}
