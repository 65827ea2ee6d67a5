//! The databroker's protocol: messages, clients and servers generated from `protocol/*.proto`, and descriptors of those
//! and of Pomerium's record types in `records/*.proto`.
//!
//! Two things differ from what a generator makes of the files as they stand:
//!
//! - `Record.data` is the encoded `google.protobuf.Any` in shared bytes. On the wire that is the same; in memory it means
//!   that record data is neither decoded nor copied on its way.
//! - The servers answer Sync and SyncLatest with [`Streamed`] messages, so that a change is encoded once for
//!   all streams that keep up.
//!
//! `tests/generated.rs` makes the code anew and fails if it differs from what is committed.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType};
use prost::{DecodeError, Message};

/// Package `databroker`: messages and clients.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod databroker {
    include!("generated/databroker.rs");
}

/// Package `databroker`: servers.
#[allow(missing_docs, clippy::all, unused_imports, reason = "generated code")]
pub mod databroker_server {
    include!("generated/databroker_server.rs");
}

/// Package `registry`: messages and clients.
#[allow(missing_docs, clippy::all, reason = "generated code")]
pub mod registry {
    include!("generated/registry.rs");
}

/// Package `registry`: servers.
#[allow(missing_docs, clippy::all, unused_imports, reason = "generated code")]
pub mod registry_server {
    include!("generated/registry_server.rs");
}

/// The encoded `FileDescriptorSet` of the protocol as it stands in `protocol/*.proto`, with its comments, for reflection.
pub const PROTOCOL_DESCRIPTORS: &[u8] = include_bytes!("generated/protocol.binpb");

/// The encoded `FileDescriptorSet` of the protocol and of Pomerium's record types, without comments, for looking into
/// record data.
pub const ALL_DESCRIPTORS: &[u8] = include_bytes!("generated/all.binpb");

/// A message of a stream, which may have been encoded for other streams before.
#[derive(Clone, Debug, PartialEq)]
pub enum Streamed<M> {
    /// For this stream alone: encoded straight into what is sent.
    Message(M),
    /// Encoded already. Encoding it copies its bytes.
    Encoded(Bytes),
}

/// A message of Sync.
pub type SyncMessage = Streamed<databroker::SyncResponse>;

/// A message of SyncLatest.
pub type SyncLatestMessage = Streamed<databroker::SyncLatestResponse>;

impl<M: Default> Default for Streamed<M> {
    fn default() -> Self {
        Self::Message(M::default())
    }
}

impl<M: Message + Default> Message for Streamed<M> {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        match self {
            Self::Message(message) => message.encode_raw(buffer),
            Self::Encoded(bytes) => buffer.put_slice(bytes),
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match self {
            Self::Message(message) => message.merge_field(tag, wire_type, buffer, context),
            // Only ever an answer; a client decodes the real type.
            Self::Encoded(_) => prost::encoding::skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Message(message) => message.encoded_len(),
            Self::Encoded(bytes) => bytes.len(),
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
