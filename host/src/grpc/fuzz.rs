//! A door for fuzzing: requests on their way from bytes to what the broker is asked. Not for use by anything else, and free
//! to change. It is a function and not a feature of the crate, since a feature would build the whole host a second time.

use databroker_proto::{databroker as proto, registry};
use prost::Message;

use super::convert::{self, Invalid};

/// Decodes a request of one of the kinds and converts it; says why it is refused, if it is.
pub fn request(kind: u8, bytes: &[u8]) -> Option<String> {
    let outcome = match kind % 9 {
        0 => decoded(bytes, |request: proto::PutRequest| {
            convert::writes(request.records).map(drop)
        }),
        1 => decoded(bytes, |request: proto::PatchRequest| {
            convert::writes(request.records).map(drop)
        }),
        2 => decoded(bytes, |request| convert::query(request).map(drop)),
        3 => decoded(bytes, |request: proto::SetOptionsRequest| {
            convert::options(request.options).map(drop)
        }),
        4 => decoded(bytes, |request: proto::AcquireLeaseRequest| {
            convert::lease_text("name", request.name)?;
            convert::lease_duration(request.duration).map(drop)
        }),
        5 => decoded(bytes, |request: proto::SyncRequest| {
            convert::sync_start(request);
            Ok(())
        }),
        6 => decoded(bytes, |request: proto::GetRequest| {
            convert::key(request);
            Ok(())
        }),
        7 => decoded(bytes, |request: proto::SetCheckpointRequest| {
            convert::checkpoint(request.checkpoint);
            Ok(())
        }),
        _ => decoded(bytes, |request: registry::RegisterRequest| {
            convert::services(request.services).map(drop)
        }),
    };
    outcome.err()
}

fn decoded<M: Message + Default>(bytes: &[u8], convert: impl FnOnce(M) -> Result<(), Invalid>) -> Result<(), String> {
    let request = M::decode(bytes).map_err(|error| error.to_string())?;
    convert(request).map_err(|invalid| invalid.to_string())
}
