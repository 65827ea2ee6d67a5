//! Between the protocol's messages and the broker's types. What is malformed is refused here.
//!
//! Requests come from the network: whatever a message can say is either turned into something that the broker can work
//! with or refused with [`Invalid`]. The messages of that name where the fault is, never what the record data was.

use std::time::Duration;

use bytes::Bytes;
use databroker_proto::registry::ServiceKind;
use databroker_proto::{Streamed, SyncLatestMessage, SyncMessage, databroker as proto, registry as registry_proto};
use prost::Message;
use prost_types::value::Kind;

use crate::backend::Position;
use crate::broker::{BrokerError, Change, Query, QueryPage, SyncLatestPage, SyncPage, SyncStart, Write, Written};
use crate::data::check_any;
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// What Pomerium's clients take in one message, in bytes, and what this server takes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// What an answer adds to a record as it was sent: version and times.
const ADDED_PER_RECORD: usize = 48;

/// What an answer with records has beside them.
const ADDED_PER_ANSWER: usize = 48;

/// How many fields of a type may be indexed, and how long their names may be: each costs every write of the type, and
/// every stream is told of them.
const MAX_INDEXABLE_FIELDS: usize = 100;
const MAX_FIELD_BYTES: usize = 1024;

/// How long a type with options may be, in bytes: stores look options up by it, and an index takes no text of any length.
const MAX_OPTIONS_TYPE_BYTES: usize = 2048;

/// How long a lease's name and its holder's id may be, in bytes. Pomerium's are a few words and a UUID.
const MAX_LEASE_BYTES: usize = 1024;

/// The longest that a lease may be held without being renewed. Pomerium's clients ask for half a minute or a few
/// minutes; a lease of a holder that is gone keeps everybody else from it until it runs out.
const MAX_LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// How many services a report may have, and how long an endpoint may be, in bytes: every watch is sent all of them.
const MAX_SERVICES: usize = 1000;
const MAX_ENDPOINT_BYTES: usize = 2048;

/// How deep a filter may be nested.
const MAX_FILTER_DEPTH: usize = 64;

/// The longest duration there may be: what 63 bits of nanoseconds can say, about 292 years.
const MAX_DURATION: Duration = Duration::from_nanos(i64::MAX.cast_unsigned());

const NANOSECONDS: i64 = 1_000_000_000;

/// What is wrong with a request, for the client.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Invalid(String);

/// A time as the protocol has it.
pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.0.div_euclid(NANOSECONDS),
        // The remainder is below 10^9.
        nanos: i32::try_from(time.0.rem_euclid(NANOSECONDS)).unwrap_or_default(),
    }
}

/// A duration that a request must give: more than 0 and at most `i64::MAX` nanoseconds.
///
/// # Errors
///
/// [`Invalid`], naming the field, where it is absent, malformed or out of these bounds.
pub fn duration(field: &str, duration: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let refuse = |what: &str| Err(Invalid(format!("{field} {what}")));
    let Some(prost_types::Duration { seconds, nanos }) = duration else {
        return refuse("is missing: give a duration of more than 0");
    };
    let well_formed =
        nanos.unsigned_abs() < 1_000_000_000 && (seconds == 0 || nanos == 0 || (seconds < 0) == (nanos < 0));
    if !well_formed {
        return refuse("is malformed: nanos must be below 10^9 and have the sign of seconds");
    }
    let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
        return refuse("is negative: give a duration of more than 0");
    };
    match Duration::new(seconds, nanos) {
        Duration::ZERO => refuse("is 0: give a duration of more than 0"),
        duration if duration > MAX_DURATION => refuse("is too long: 2^63-1 nanoseconds are the most"),
        duration => Ok(duration),
    }
}

/// For how long a lease is to be held: more than 0 and at most a day.
///
/// # Errors
///
/// [`Invalid`] where it is absent, malformed or out of these bounds.
pub fn lease_duration(given: Option<prost_types::Duration>) -> Result<Duration, Invalid> {
    let held = duration("duration", given)?;
    if held > MAX_LEASE {
        return Err(Invalid(
            "duration is too long for a lease: 24 h are the most; renew it while it is needed".to_owned(),
        ));
    }
    Ok(held)
}

/// A lease's name, or its holder's id: at most 1 KiB.
///
/// # Errors
///
/// [`Invalid`], naming the field, where it is longer.
pub fn lease_text(field: &str, text: String) -> Result<String, Invalid> {
    if text.len() > MAX_LEASE_BYTES {
        return Err(Invalid(format!(
            "{field} has {} bytes: a lease's may have {MAX_LEASE_BYTES} at most",
            text.len()
        )));
    }
    Ok(text)
}

/// A duration as the protocol has it.
pub fn proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// A record as answers and streams have it.
pub fn record(record: Record) -> proto::Record {
    proto::Record {
        version: record.version,
        r#type: record.key.record_type,
        id: record.key.id,
        data: record.data,
        modified_at: Some(timestamp(record.modified_at)),
        deleted_at: record.deleted_at.map(timestamp),
    }
}

/// A key as it was asked for.
pub fn key(request: proto::GetRequest) -> Key {
    Key::new(request.r#type, request.id)
}

/// What a Put asks for.
///
/// # Errors
///
/// [`Invalid`], naming the record, where its data is not an `Any`.
pub fn writes(records: Vec<proto::Record>) -> Result<Vec<Write>, Invalid> {
    let writes = records.into_iter().enumerate().map(|(index, record)| {
        if let Some(data) = &record.data {
            check_any(data).map_err(|error| Invalid(format!("records[{index}].data: {error}")))?;
        }
        Ok(Write {
            key: Key::new(record.r#type, record.id),
            // Copied, since what is kept of it would otherwise keep the whole request in memory.
            data: record.data.map(|data| Bytes::copy_from_slice(&data)),
            delete: record.deleted_at.is_some(),
        })
    });
    writes.collect()
}

/// Refuses a request to write whose answer, with the records in it, would be larger than clients take. Whatever passes
/// can also be read back and streamed, one record at a time.
///
/// # Errors
///
/// [`BrokerError::AnswerTooLarge`] if so; nothing has been written.
pub fn check_answer(request: &impl prost::Message, records: usize) -> Result<(), BrokerError> {
    let added = records
        .saturating_mul(ADDED_PER_RECORD)
        .saturating_add(ADDED_PER_ANSWER);
    if request.encoded_len().saturating_add(added) > MAX_MESSAGE {
        Err(BrokerError::AnswerTooLarge(MAX_MESSAGE))
    } else {
        Ok(())
    }
}

/// The answer to a Put.
pub fn put_response(written: Written) -> proto::PutResponse {
    proto::PutResponse {
        server_version: written.server_version,
        records: written.records.into_iter().map(record).collect(),
    }
}

/// The answer to a Patch.
pub fn patch_response(written: Written) -> proto::PatchResponse {
    let proto::PutResponse {
        server_version,
        records,
    } = put_response(written);
    proto::PatchResponse {
        server_version,
        records,
    }
}

/// What a Query asks for.
///
/// # Errors
///
/// [`Invalid`] where the filter holds a number that is none, or is nested too deep.
pub fn query(request: proto::QueryRequest) -> Result<Query, Invalid> {
    let filter = request
        .filter
        .map(|filter| json_object(filter, MAX_FILTER_DEPTH))
        .transpose()
        .map_err(|Invalid(why)| Invalid(format!("invalid query filter: {why}")))?;
    Ok(Query {
        record_type: some_type(request.r#type),
        text: request.query,
        filter,
        offset: request.offset,
        limit: request.limit,
    })
}

/// The answer to a Query.
pub fn query_response(page: QueryPage) -> proto::QueryResponse {
    proto::QueryResponse {
        records: page.records.into_iter().map(record).collect(),
        total_count: i64::try_from(page.total).unwrap_or(i64::MAX),
        server_version: page.server_version,
        record_version: page.latest_version,
    }
}

/// An answer whose size nothing else bounds.
///
/// # Errors
///
/// [`BrokerError::AnswerTooLarge`] where it would be more than clients take.
pub fn bounded<M: Message>(answer: M) -> Result<M, BrokerError> {
    if answer.encoded_len() > MAX_MESSAGE {
        Err(BrokerError::AnswerTooLarge(MAX_MESSAGE))
    } else {
        Ok(answer)
    }
}

/// Where the store stands.
pub fn server_info(position: Position) -> proto::ServerInfoResponse {
    proto::ServerInfoResponse {
        server_version: position.server_version,
        earliest_record_version: position.earliest_version,
        latest_record_version: position.latest_version,
    }
}

/// The type whose options are to be set: at most 2 KiB.
///
/// # Errors
///
/// [`Invalid`] where it is longer.
pub fn options_type(record_type: String) -> Result<String, Invalid> {
    if record_type.len() > MAX_OPTIONS_TYPE_BYTES {
        return Err(Invalid(format!(
            "type has {} bytes: one with options may have {MAX_OPTIONS_TYPE_BYTES} at most",
            record_type.len()
        )));
    }
    Ok(record_type)
}

/// Options as a request has them; absent ones are empty ones.
///
/// # Errors
///
/// [`Invalid`] where the time to live, or the number or length of the fields, is out of bounds.
pub fn options(options: Option<proto::Options>) -> Result<Options, Invalid> {
    let proto::Options {
        capacity,
        indexable_fields,
        ttl,
    } = options.unwrap_or_default();
    let ttl = ttl.map(|ttl| duration("options.ttl", Some(ttl))).transpose()?;
    if indexable_fields.len() > MAX_INDEXABLE_FIELDS {
        let count = indexable_fields.len();
        return Err(Invalid(format!(
            "options.indexable_fields has {count} fields: {MAX_INDEXABLE_FIELDS} at most"
        )));
    }
    if indexable_fields.iter().any(|field| field.len() > MAX_FIELD_BYTES) {
        return Err(Invalid(format!(
            "options.indexable_fields has a field of more than {MAX_FIELD_BYTES} bytes"
        )));
    }
    Ok(Options {
        capacity,
        indexable_fields,
        ttl,
    })
}

/// Options as answers and streams have them.
pub fn proto_options(options: Options) -> proto::Options {
    proto::Options {
        capacity: options.capacity,
        indexable_fields: options.indexable_fields,
        ttl: options.ttl.map(proto_duration),
    }
}

/// Where a Sync begins.
pub fn sync_start(request: proto::SyncRequest) -> SyncStart {
    SyncStart {
        server_version: request.server_version,
        record_version: request.record_version,
        record_type: some_type(request.r#type),
        wait: request.wait.unwrap_or(true),
    }
}

/// The type that a request narrows itself to; the empty one stands for all.
pub fn some_type(record_type: String) -> Option<String> {
    Some(record_type).filter(|record_type| !record_type.is_empty())
}

/// Messages of a stream, each made when it is sent.
pub type Messages<M> = Box<dyn Iterator<Item = M> + Send>;

/// The messages of a Sync stream.
pub fn sync_messages(page: SyncPage) -> Messages<SyncMessage> {
    use proto::sync_response::Response;
    match page {
        SyncPage::Options(all) => {
            let options = |(record_type, options)| Response::Options(typed_options(record_type, options));
            Box::new(all.into_iter().map(options).map(sync_message))
        }
        SyncPage::Recent(changes) => Box::new(
            changes
                .into_iter()
                .map(|change| Streamed::Encoded(change_bytes(&change))),
        ),
        SyncPage::Past(records) => Box::new(
            records
                .into_iter()
                .map(|found| sync_message(Response::Record(record(found)))),
        ),
    }
}

fn sync_message(response: proto::sync_response::Response) -> SyncMessage {
    Streamed::Message(proto::SyncResponse {
        response: Some(response),
    })
}

/// A change as it is sent, which is encoded by the first stream that sends it.
fn change_bytes(change: &Change) -> Bytes {
    let encode = || {
        let response = proto::sync_response::Response::Record(record(change.record.clone()));
        sync_message(response).encode_to_vec().into()
    };
    change.encoded.get_or_init(encode).clone()
}

/// The messages of a SyncLatest stream.
pub fn sync_latest_messages(page: SyncLatestPage) -> Messages<SyncLatestMessage> {
    use proto::sync_latest_response::Response;
    let message = |response| {
        Streamed::Message(proto::SyncLatestResponse {
            response: Some(response),
        })
    };
    match page {
        SyncLatestPage::Records(records) => Box::new(
            records
                .into_iter()
                .map(move |found| message(Response::Record(record(found)))),
        ),
        SyncLatestPage::Options(all) => {
            let options = |(record_type, options)| Response::Options(typed_options(record_type, options));
            Box::new(all.into_iter().map(options).map(message))
        }
        SyncLatestPage::Position(position) => {
            let versions = proto::Versions {
                server_version: position.server_version,
                latest_record_version: position.latest_version,
            };
            Box::new(std::iter::once(message(Response::Versions(versions))))
        }
    }
}

fn typed_options(record_type: String, options: Options) -> proto::TypedOptions {
    proto::TypedOptions {
        type_url: record_type,
        options: Some(proto_options(options)),
    }
}

/// A checkpoint as a request has it; an absent one is zeros.
pub fn checkpoint(checkpoint: Option<proto::Checkpoint>) -> Checkpoint {
    let proto::Checkpoint {
        server_version,
        record_version,
    } = checkpoint.unwrap_or_default();
    Checkpoint {
        server_version,
        record_version,
    }
}

/// A checkpoint as the answer has it.
pub fn proto_checkpoint(checkpoint: Checkpoint) -> proto::Checkpoint {
    proto::Checkpoint {
        server_version: checkpoint.server_version,
        record_version: checkpoint.record_version,
    }
}

/// Services as a report has them. Where they are, and whether that is a URL, is left to those who look for them.
///
/// # Errors
///
/// [`Invalid`], naming the service by its place, where there are too many, or where a kind is none that the protocol
/// names or an endpoint is too long.
pub fn services(services: Vec<registry_proto::Service>) -> Result<Vec<Service>, Invalid> {
    if services.len() > MAX_SERVICES {
        let count = services.len();
        return Err(Invalid(format!("services has {count} entries: {MAX_SERVICES} at most")));
    }
    let checked = |(place, service): (usize, registry_proto::Service)| {
        let registry_proto::Service { kind, endpoint } = service;
        match ServiceKind::try_from(kind) {
            Ok(ServiceKind::UndefinedDoNotUse) | Err(_) => Err(Invalid(format!(
                "services[{place}].kind is {kind}, which is no kind of service: give one that the protocol names"
            ))),
            Ok(_) if endpoint.len() > MAX_ENDPOINT_BYTES => Err(Invalid(format!(
                "services[{place}].endpoint has {} bytes: {MAX_ENDPOINT_BYTES} at most",
                endpoint.len()
            ))),
            Ok(_) => Ok(Service { kind, endpoint }),
        }
    };
    services.into_iter().enumerate().map(checked).collect()
}

/// Services as lists have them.
pub fn service_list(services: Vec<Service>) -> registry_proto::ServiceList {
    let services = services.into_iter().map(|service| registry_proto::Service {
        kind: service.kind,
        endpoint: service.endpoint,
    });
    registry_proto::ServiceList {
        services: services.collect(),
    }
}

fn json_object(object: prost_types::Struct, depth: usize) -> Result<serde_json::Value, Invalid> {
    let fields = object.fields.into_iter().map(|(name, value)| {
        let shown = name.get(..name.len().min(64)).unwrap_or_default();
        let value = json(value, depth).map_err(|Invalid(why)| Invalid(format!("{shown:?}: {why}")))?;
        Ok((name, value))
    });
    fields.collect::<Result<_, Invalid>>().map(serde_json::Value::Object)
}

fn json(value: prost_types::Value, depth: usize) -> Result<serde_json::Value, Invalid> {
    let inner = depth
        .checked_sub(1)
        .ok_or_else(|| Invalid(format!("nested more than {MAX_FILTER_DEPTH} deep")))?;
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(flag)) => flag.into(),
        Some(Kind::StringValue(text)) => text.into(),
        Some(Kind::NumberValue(number)) => serde_json::Number::from_f64(number)
            .map(serde_json::Value::Number)
            .ok_or_else(|| Invalid(format!("{number} is not a number that can be compared with")))?,
        Some(Kind::StructValue(object)) => json_object(object, inner)?,
        Some(Kind::ListValue(list)) => list
            .values
            .into_iter()
            .map(|value| json(value, inner))
            .collect::<Result<_, _>>()
            .map(serde_json::Value::Array)?,
    })
}

#[cfg(test)]
mod tests;
