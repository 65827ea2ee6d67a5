//! The message types that can be looked into.

use std::sync::LazyLock;

use databroker_proto::ALL_DESCRIPTORS;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MessageDescriptor};
use prost_types::FileDescriptorSet;

use super::DataError;
use super::any::Any;
use super::schema::{Message, MessageId, Schema};
use super::text::Needle;

/// The message types that can be looked into: protobuf's well-known ones, the protocol's and Pomerium's record types, and
/// those that an operator adds. Shared; nothing in it changes.
///
/// Making the built-in ones takes some milliseconds, a quarter of a start, and no call needs them before it
/// looks into a record. So they are made when they are first asked for, or by [`load`](Self::load).
pub struct Descriptors(LazyLock<Types, Box<dyn FnOnce() -> Types + Send>>);

#[derive(Default)]
struct Types {
    /// The descriptors as the library has them, for JSON.
    pool: DescriptorPool,
    /// The same for the walkers of this module.
    schema: Schema,
}

/// Why descriptors cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorsError {
    /// The bytes are not a `FileDescriptorSet`.
    #[error("not a protobuf FileDescriptorSet ({0}); make one with `protoc --include_imports --descriptor_set_out`")]
    Malformed(String),
    /// The files contradict each other or those that are built in, or one that they import is missing.
    #[error("the protobuf descriptors cannot be used: {0}; the set must hold all imports (`protoc --include_imports`)")]
    Invalid(String),
}

impl Descriptors {
    /// The types that the host knows by itself.
    pub fn built_in() -> Self {
        // It cannot fail: a test loads these very bytes.
        let load = || Types::extend(DescriptorPool::global(), ALL_DESCRIPTORS).unwrap_or_default();
        Self(LazyLock::new(Box::new(load)))
    }

    /// Makes them now, so that no call has to.
    pub fn load(&self) {
        LazyLock::force(&self.0);
    }

    /// These types and those of an encoded `FileDescriptorSet`. Files whose names are known already, such as the
    /// well-known types, are passed over.
    ///
    /// # Errors
    ///
    /// See [`DescriptorsError`].
    pub fn with_additional(&self, file_descriptor_set: &[u8]) -> Result<Self, DescriptorsError> {
        let types = Types::extend(self.0.pool.clone(), file_descriptor_set)?;
        let descriptors = Self(LazyLock::new(Box::new(|| types)));
        descriptors.load();
        Ok(descriptors)
    }

    /// True where the message that a type URL stands for is known.
    pub fn knows(&self, type_url: &str) -> bool {
        self.schema().find(super::any::message_name(type_url)).is_some()
    }

    /// True where a string in the record data holds a text, whatever its case. Keys of maps, bytes, enums, numbers and what
    /// is inside a further `Any` are not searched; data of an unknown type and data that cannot be decoded never match.
    pub fn matches_text(&self, data: &[u8], needle: &Needle) -> bool {
        let found = self
            .open(data)
            .and_then(|(_, id, _, value)| Ok(self.schema().has_text(id, value, needle)?));
        found.unwrap_or(false)
    }

    /// The tables of the walkers.
    pub(super) fn schema(&self) -> &Schema {
        &self.0.schema
    }

    /// The descriptor of a message.
    pub(crate) fn descriptor(&self, full_name: &str) -> Option<MessageDescriptor> {
        self.0.pool.get_message_by_name(full_name)
    }

    /// Opens record data: its type URL, the type of the message within, and that message's bytes.
    pub(super) fn open<'d>(&self, data: &'d [u8]) -> Result<(&'d str, MessageId, &Message, &'d [u8]), DataError> {
        let any = Any::read(data)?;
        let (id, message) = self
            .schema()
            .find(any.message_name())
            .ok_or_else(|| DataError::UnknownType(any.type_url.to_owned()))?;
        Ok((any.type_url, id, message, any.value))
    }
}

impl Types {
    fn extend(mut pool: DescriptorPool, file_descriptor_set: &[u8]) -> Result<Self, DescriptorsError> {
        let mut set = FileDescriptorSet::decode(file_descriptor_set)
            .map_err(|error| DescriptorsError::Malformed(error.to_string()))?;
        set.file.retain(|file| pool.get_file_by_name(file.name()).is_none());
        pool.add_file_descriptor_set(set)
            .map_err(|error| DescriptorsError::Invalid(error.to_string()))?;
        let schema = Schema::of(&pool);
        Ok(Self { pool, schema })
    }
}

impl std::fmt::Debug for Descriptors {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Descriptors")
            .field("messages", &self.schema().len())
            .finish_non_exhaustive()
    }
}
