//! WIT types to plain types and back: it alone converts records, pages and options.
//!
//! What comes from a plugin is moved and never copied, and what cannot be said in plain types is refused by name. The
//! laws that bind values to each other and to the question are in [`laws`](super::laws), in plain types.

use std::time::Duration;

use bytes::Bytes;

use super::bindings::{store, types};
use super::laws::Broken;
use crate::backend::{
    BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, Hint, LeaseAction, LeaseRequest, Observed,
    Operation, Outcome, Position, Pruned, PutResult, Refusal, Reopenings, ScanPage, ScanRequest, Statistics, StoreInfo,
    TypeStatistics,
};
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// Most bytes of a text that a plugin gives for the operator; what is longer is cut.
const MAX_TEXT: usize = 4096;

// To the plugin.

pub(super) fn settings(connection_string: Option<String>, new_server_version: u64) -> store::Settings {
    store::Settings {
        connection_string,
        new_server_version,
    }
}

pub(super) fn to_key(key: Key) -> types::Key {
    types::Key {
        type_: key.record_type,
        id: key.id,
    }
}

pub(super) fn to_keys(keys: Vec<Key>) -> Vec<types::Key> {
    keys.into_iter().map(to_key).collect()
}

pub(super) fn to_batches(batches: Vec<Batch>) -> Vec<Vec<store::Change>> {
    let change = |change: crate::backend::Change| store::Change {
        key: to_key(change.key),
        operation: match change.operation {
            Operation::Upsert { data, network } => store::Operation::Upsert(store::Content {
                data: data.map(Vec::from),
                network,
            }),
            Operation::Delete => store::Operation::Delete,
        },
        expected: change.expected,
    };
    batches
        .into_iter()
        .map(|batch| batch.changes.into_iter().map(change).collect())
        .collect()
}

pub(super) fn to_scan_request(request: ScanRequest) -> store::ScanRequest {
    store::ScanRequest {
        type_: request.record_type,
        hint: request.hint.map(|hint| match hint {
            Hint::Field { path, value } => store::Hint::Field(store::FieldHint { path, value }),
            Hint::Network(prefix) => store::Hint::Network(prefix),
        }),
        condition: request.condition,
        after: request.after.map(to_key),
        max_records: request.bounds.records,
        max_bytes: request.bounds.bytes,
    }
}

pub(super) fn to_changes_request(request: ChangesRequest) -> store::ChangesRequest {
    store::ChangesRequest {
        after: request.after,
        type_: request.record_type,
        max_records: request.bounds.records,
        max_bytes: request.bounds.bytes,
    }
}

pub(super) fn to_observed(observed: Observed) -> store::Observed {
    store::Observed {
        server_version: observed.server_version,
        latest_version: observed.latest_version,
        options_revision: observed.options_revision,
        services_revision: observed.services_revision,
    }
}

pub(super) fn to_options(options: Options) -> store::Options {
    store::Options {
        capacity: options.capacity,
        indexable_fields: options.indexable_fields,
        ttl: options.ttl.map(to_duration),
    }
}

/// Nanoseconds; a length of time beyond 584 years is as good as that.
pub(super) fn to_duration(duration: Duration) -> types::Duration {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn to_lease_requests(requests: Vec<LeaseRequest>) -> Vec<store::LeaseRequest> {
    let request = |request: LeaseRequest| store::LeaseRequest {
        name: request.name,
        id: request.id,
        action: match request.action {
            LeaseAction::Hold(duration) => store::LeaseAction::Hold(to_duration(duration)),
            LeaseAction::Release => store::LeaseAction::Release,
        },
    };
    requests.into_iter().map(request).collect()
}

pub(super) fn to_checkpoint(checkpoint: Checkpoint) -> store::Checkpoint {
    store::Checkpoint {
        server_version: checkpoint.server_version,
        record_version: checkpoint.record_version,
    }
}

pub(super) fn to_services(services: Vec<Service>) -> Vec<store::Service> {
    let service = |service: Service| store::Service {
        kind: service.kind,
        endpoint: service.endpoint,
    };
    services.into_iter().map(service).collect()
}

pub(super) fn to_evict_request(request: EvictRequest) -> store::EvictRequest {
    store::EvictRequest {
        type_: request.record_type,
        modified_before: request.modified_before.map(|time| time.0),
        keep: request.keep,
        max_records: request.max_records,
    }
}

// From the plugin.

pub(super) fn error(error: types::Error) -> BackendError {
    match error {
        types::Error::Configuration(text) => BackendError::Configuration(self::text(&text)),
        types::Error::Unavailable(text) => BackendError::Unavailable(self::text(&text)),
        types::Error::Exhausted(text) => BackendError::Exhausted(self::text(&text)),
        types::Error::ReadOnly(text) => BackendError::ReadOnly(self::text(&text)),
        types::Error::Pruned(version) => BackendError::Pruned(version),
        types::Error::Corrupt(text) => BackendError::Corrupt(self::text(&text)),
        types::Error::Internal(text) => BackendError::Internal(self::text(&text)),
    }
}

/// A text for the operator: at most 4 KiB, and nothing that a terminal or a log could take for more than text.
pub(super) fn text(text: &str) -> String {
    let kept = text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or_default();
    let mut clean: String = kept
        .chars()
        .map(|character| if is_dangerous(character) { ' ' } else { character })
        .collect();
    let cut = text.len().saturating_sub(kept.len());
    if cut > 0 {
        clean.push_str(&format!("… ({cut} more bytes)"));
    }
    clean
}

/// Control characters, the line ends that only Unicode has, and what turns the direction of the text around it.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}')
}

pub(super) fn store_info(info: store::StoreInfo) -> StoreInfo {
    StoreInfo {
        summary: text(&info.summary),
        shared: info.shared,
        durable: info.durable,
        position: position(info.position),
        // Whoever starts it again tells of that.
        reopenings: Reopenings::never(),
    }
}

pub(super) fn position(position: types::Position) -> Position {
    Position {
        server_version: position.server_version,
        earliest_version: position.earliest_version,
        latest_version: position.latest_version,
    }
}

pub(super) fn record(record: types::Record) -> Record {
    Record {
        version: record.version,
        key: Key {
            record_type: record.type_,
            id: record.id,
        },
        data: record.data.map(Bytes::from),
        modified_at: Timestamp(record.modified_at),
        deleted_at: record.deleted_at.map(Timestamp),
    }
}

pub(super) fn records(records: Vec<types::Record>) -> Vec<Record> {
    records.into_iter().map(record).collect()
}

pub(super) fn answers(answers: Vec<Option<types::Record>>) -> Vec<Option<Record>> {
    answers.into_iter().map(|answer| answer.map(record)).collect()
}

pub(super) fn put_result(result: store::PutResult) -> Result<PutResult, Broken> {
    let outcome = |outcome| match outcome {
        store::Outcome::Stored(version) => Outcome::Stored(version),
        store::Outcome::Deleted(tombstone) => Outcome::Deleted(record(tombstone)),
        store::Outcome::Missing => Outcome::Missing,
    };
    let refusal = |refusal| match refusal {
        store::Refusal::Conflict(step) => usize::try_from(step)
            .map(Refusal::Conflict)
            .map_err(|_| Broken::new("a conflict names a step of the batch")),
        store::Refusal::Exhausted(text) => Ok(Refusal::Exhausted(self::text(&text))),
    };
    let batches = result.batches.into_iter().map(|batch| match batch {
        Ok(outcomes) => Ok(Ok(outcomes.into_iter().map(outcome).collect())),
        Err(reason) => refusal(reason).map(Err),
    });
    Ok(PutResult {
        server_version: result.server_version,
        options_revision: result.options_revision,
        batches: batches.collect::<Result<_, _>>()?,
    })
}

pub(super) fn scan_page(page: store::ScanPage) -> ScanPage {
    ScanPage {
        records: records(page.records),
        more: page.more,
        position: position(page.position),
    }
}

pub(super) fn changes_page(page: store::ChangesPage) -> ChangesPage {
    ChangesPage {
        records: records(page.records),
        through: page.through,
        position: position(page.position),
    }
}

pub(super) fn observed(observed: store::Observed) -> Observed {
    Observed {
        server_version: observed.server_version,
        latest_version: observed.latest_version,
        options_revision: observed.options_revision,
        services_revision: observed.services_revision,
    }
}

pub(super) fn typed_options(options: Vec<store::TypedOptions>) -> Vec<(String, Options)> {
    let one = |typed: store::TypedOptions| {
        let options = Options {
            capacity: typed.options.capacity,
            indexable_fields: typed.options.indexable_fields,
            ttl: typed.options.ttl.map(Duration::from_nanos),
        };
        (typed.type_, options)
    };
    options.into_iter().map(one).collect()
}

pub(super) fn checkpoint(checkpoint: store::Checkpoint) -> Checkpoint {
    Checkpoint {
        server_version: checkpoint.server_version,
        record_version: checkpoint.record_version,
    }
}

pub(super) fn services(services: Vec<store::Service>) -> Vec<Service> {
    let service = |service: store::Service| Service {
        kind: service.kind,
        endpoint: service.endpoint,
    };
    services.into_iter().map(service).collect()
}

pub(super) fn pruned(pruned: store::Pruned) -> Pruned {
    Pruned {
        removed: pruned.removed,
        more: pruned.more,
        position: position(pruned.position),
    }
}

pub(super) fn evicted(evicted: store::Evicted) -> Evicted {
    Evicted {
        server_version: evicted.server_version,
        tombstones: records(evicted.tombstones),
        more: evicted.more,
    }
}

pub(super) fn statistics(statistics: store::Statistics) -> Statistics {
    let one = |one: store::TypeStatistics| TypeStatistics {
        record_type: one.type_,
        records: one.records,
        bytes: one.bytes,
    };
    Statistics {
        types: statistics.types.into_iter().map(one).collect(),
        changes: statistics.changes,
        used_bytes: statistics.used_bytes,
        limit_bytes: statistics.limit_bytes,
        pruned_for_space: statistics.pruned_for_space,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::LEAST_ANSWER_BYTES;

    #[test]
    fn a_text_has_nothing_that_makes_lines_or_turns_them() {
        let hostile = "a\nb\x1b[31mc\u{85}d\u{2028}e\u{2029}f\u{202e}g\u{2066}h\u{200f}i\u{61c}j";
        assert_eq!(text(hostile), "a b [31mc d e f g h i j");
        assert_eq!(text("naïve 世界 👍"), "naïve 世界 👍");
    }

    /// What the engine counts of an answer is its bytes and the room for its parts here.
    #[test]
    fn the_largest_answer_that_the_interface_allows_fits_into_the_least_limit() {
        let steps = 131_072 * size_of::<store::Outcome>();
        let keys = 8 << 20;
        let tombstones = 64 << 20;
        assert!(u64::try_from(tombstones + keys + steps).is_ok_and(|bytes| bytes <= LEAST_ANSWER_BYTES));
    }
}
