//! Looks inside record data: an encoded `google.protobuf.Any`, which the rest of the host carries unopened.
//!
//! Four things need a look: filters and indexes ([`Descriptors::values`]), text queries ([`Descriptors::matches_text`]),
//! the network of a record ([`network`]) and patches ([`Descriptors::merge`]). They run over thousands of records a call,
//! so that all four read the wire format in place and decode only what they ask for; whole messages are decoded for JSON
//! alone ([`Descriptors::to_json`]). What a message type looks like comes from [`Descriptors`]; data of other types is
//! stored and streamed all the same, it just cannot be looked into.
//!
//! Data comes from the network and is hostile: lengths, nesting and text are checked, and nothing here panics.

mod any;
mod check;
mod descriptors;
mod json;
mod merge;
mod network;
pub mod path;
mod place;
mod scalar;
mod schema;
mod structure;
mod text;
mod wire;

pub use any::check_any;
pub use descriptors::{Descriptors, DescriptorsError};
pub use merge::{Mask, MergeError};
pub use network::network;
pub(crate) use place::{Absence, Place, PlaceForm, literal};
pub use scalar::number_text;
pub use text::Needle;

use wire::WireError;

/// Why record data cannot be looked into.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// There is no descriptor for this type URL.
    #[error("the message type {0:?} is not known to this host: give it the type's descriptors")]
    UnknownType(String),
    /// The bytes, or the JSON, are not what they should be; what is wrong with them.
    #[error("malformed data: {0}")]
    Malformed(String),
    /// The data, or all that is asked for at once, has more parts than this, and would take too much memory and time as JSON.
    #[error("more than {0} parts, each counted once for every level that it lies deep, are too many for JSON")]
    TooMany(usize),
}

impl From<WireError> for DataError {
    fn from(error: WireError) -> Self {
        Self::Malformed(error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
