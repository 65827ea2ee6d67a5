//! The laws of the storage interface that an answer can be held to, in plain types.
//!
//! A plugin is not trusted: an answer that breaks a law would otherwise surface far away, as a stream that misses a
//! change, a scan without end, or one record in the place of another. Each check names the law that was broken, for the
//! plugin's author. Laws that cannot be seen in one answer (what was acknowledged stays, no version appears late) are the
//! conformance suite's matter.

use crate::backend::{
    BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, Operation, Outcome, PageBounds, Position,
    Pruned, PutResult, Refusal, ScanPage, Statistics,
};
use crate::data::check_any;
use crate::record::{Key, Options, Record, Service, Version};

/// A law that an answer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken(&'static str);

impl Broken {
    /// The law as it should be.
    pub(super) const fn new(law: &'static str) -> Self {
        Self(law)
    }

    /// The error that names the plugin, the function and the law.
    pub(super) fn into_error(self, plugin: &str, function: &str) -> BackendError {
        let Self(law) = self;
        BackendError::Internal(format!(
            "the plugin {plugin:?} broke a law of databroker:storage in its answer to `{function}`: {law}; this is a fault of the plugin"
        ))
    }
}

type Check = Result<(), Broken>;

fn law(kept: bool, law: &'static str) -> Check {
    if kept { Ok(()) } else { Err(Broken(law)) }
}

/// What of a put must be remembered to judge its answer: the data itself has gone to the plugin by then.
pub(super) struct PutShape(Vec<Vec<Step>>);

struct Step {
    /// The key of a delete, which its tombstone must have; none for an upsert.
    deleted: Option<Key>,
    /// True where the step expected a version.
    checked: bool,
}

impl PutShape {
    pub(super) fn new(batches: &[Batch]) -> Self {
        let step = |change: &crate::backend::Change| Step {
            deleted: match change.operation {
                Operation::Upsert { .. } => None,
                Operation::Delete => Some(change.key.clone()),
            },
            checked: change.expected.is_some(),
        };
        Self(
            batches
                .iter()
                .map(|batch| batch.changes.iter().map(step).collect())
                .collect(),
        )
    }

    /// Checks an answer, given the highest version that was answered before; returns the highest one now.
    pub(super) fn check(&self, after: Version, result: &PutResult) -> Result<Version, Broken> {
        server_version(result.server_version)?;
        law(
            result.batches.len() == self.0.len(),
            "there is one result per batch, in their order",
        )?;
        let mut versions = Ascending::after(after);
        for (steps, result) in self.0.iter().zip(&result.batches) {
            let outcomes = match result {
                Ok(outcomes) => outcomes,
                Err(Refusal::Exhausted(_)) => continue,
                Err(Refusal::Conflict(index)) => {
                    let step = steps
                        .get(*index)
                        .ok_or(Broken("a conflict names a step of the batch"))?;
                    law(step.checked, "a conflict names a step that expected a version")?;
                    continue;
                }
            };
            law(
                outcomes.len() == steps.len(),
                "there is one outcome per step of the batch, in their order",
            )?;
            for (step, outcome) in steps.iter().zip(outcomes) {
                match (&step.deleted, outcome) {
                    (None, Outcome::Stored(version)) => versions.next(*version)?,
                    (Some(key), Outcome::Deleted(tombstone)) => {
                        law(
                            tombstone.key == *key,
                            "the tombstone of a delete has the key that was deleted",
                        )?;
                        is_tombstone(tombstone)?;
                        versions.next(tombstone.version)?;
                    }
                    (Some(_), Outcome::Missing) => {}
                    (None, _) | (Some(_), Outcome::Stored(_)) => {
                        return Err(Broken(
                            "the outcome of an upsert is `stored`, that of a delete `deleted` or `missing`",
                        ));
                    }
                }
            }
        }
        Ok(versions.last)
    }
}

pub(super) fn answers(keys: &[Key], answers: &[Option<Record>]) -> Check {
    law(
        answers.len() == keys.len(),
        "there is one answer per key, in their order",
    )?;
    for (key, answer) in keys.iter().zip(answers) {
        if let Some(record) = answer {
            law(record.key == *key, "the answer to a key is the record with that key")?;
            is_live(record)?;
        }
    }
    Ok(())
}

pub(super) fn scan_page(after: Option<&Key>, record_type: Option<&str>, bounds: PageBounds, page: &ScanPage) -> Check {
    position(&page.position)?;
    within(bounds, &page.records)?;
    law(
        !page.more || !page.records.is_empty(),
        "a page that says there is more holds one record at least",
    )?;
    let mut before = after;
    for record in &page.records {
        is_live(record)?;
        is_of(record_type, record)?;
        law(
            before.is_none_or(|before| *before < record.key),
            "keys ascend strictly within a page and begin after the key asked for",
        )?;
        before = Some(&record.key);
    }
    Ok(())
}

pub(super) fn changes_page(request: &ChangesRequest, page: &ChangesPage) -> Check {
    position(&page.position)?;
    within(request.bounds, &page.records)?;
    let mut versions = Ascending::after(request.after);
    for record in &page.records {
        is_of(request.record_type.as_deref(), record)?;
        has_data(record)?;
        versions.next(record.version)?;
    }
    law(
        page.through >= versions.last,
        "`through` is no lower than the version asked for and that of the last record",
    )?;
    law(
        page.through <= request.after.max(page.position.latest_version),
        "`through` is no higher than the newest change",
    )?;
    law(
        page.through > request.after || request.after >= page.position.latest_version,
        "a page reaches further than the last one while there are newer changes",
    )
}

/// Holds the error of `changes` to what it says.
pub(super) fn pruned_beyond(after: Version, pruned: Version) -> Check {
    law(
        pruned > after,
        "`pruned` names a version that is higher than the one asked for",
    )
}

/// Checks an answer, given the highest version that was answered before; returns the highest one now.
pub(super) fn evicted(after: Version, request: &EvictRequest, evicted: &Evicted) -> Result<Version, Broken> {
    server_version(evicted.server_version)?;
    law(
        count(evicted.tombstones.len()) <= u64::from(request.max_records),
        "no more records are removed than were allowed",
    )?;
    law(
        !evicted.more || !evicted.tombstones.is_empty(),
        "an eviction that says there is more has removed one record at least",
    )?;
    let mut versions = Ascending::after(after);
    for tombstone in &evicted.tombstones {
        is_of(Some(&request.record_type), tombstone)?;
        is_tombstone(tombstone)?;
        versions.next(tombstone.version)?;
    }
    Ok(versions.last)
}

pub(super) fn pruned(max_changes: u32, pruned: &Pruned) -> Check {
    position(&pruned.position)?;
    law(
        pruned.removed <= max_changes,
        "no more changes are removed than were allowed",
    )?;
    law(
        !pruned.more || pruned.removed > 0,
        "a prune that says there is more has removed one change at least",
    )
}

pub(super) fn cleared(after: Version, new_server_version: u64, position: &Position) -> Check {
    self::position(position)?;
    law(
        position.latest_version >= after,
        "versions go on from where they were when the store is cleared",
    )?;
    law(
        position.server_version == new_server_version,
        "the store takes the server version that `clear` gives it",
    )
}

/// What a store that only this host writes to has come back with, given where its former instance stood and whether the store
/// says that its content survives.
pub(super) fn reopened(survives: bool, server_version: u64, latest_version: Version, position: &Position) -> Check {
    if position.server_version != server_version {
        return Ok(());
    }
    law(survives, "a store that lost its content takes the new server version")?;
    law(
        position.latest_version >= latest_version,
        "what was acknowledged stays readable when a durable store is opened again",
    )
}

pub(super) fn position(position: &Position) -> Check {
    server_version(position.server_version)?;
    law(
        position.earliest_version <= position.latest_version,
        "the oldest change is no newer than the newest",
    )
}

pub(super) fn server_version(version: u64) -> Check {
    law(version != 0, "the server version is never 0")
}

pub(super) fn types(types: &[String]) -> Check {
    law(types.is_sorted_by(|a, b| a < b), "types ascend bytewise, each once")
}

pub(super) fn typed_options(options: &[(String, Options)]) -> Check {
    law(
        options.is_sorted_by(|(a, _), (b, _)| a < b),
        "options ascend by type, each type once",
    )
}

pub(super) fn leases(asked: usize, answered: usize) -> Check {
    law(asked == answered, "there is one answer per request, in their order")
}

pub(super) fn services(services: &[Service]) -> Check {
    law(
        services.is_sorted_by(|a, b| a < b),
        "services ascend by kind, then by endpoint, each once",
    )
}

pub(super) fn statistics(statistics: &Statistics) -> Check {
    law(
        statistics.types.is_sorted_by(|a, b| a.record_type < b.record_type),
        "types ascend bytewise, each once",
    )
}

fn is_live(record: &Record) -> Check {
    law(record.version != 0, "the version of a record is never 0")?;
    law(record.deleted_at.is_none(), "a live record has no `deleted-at`")?;
    has_data(record)
}

fn is_tombstone(record: &Record) -> Check {
    law(record.deleted_at.is_some(), "a tombstone has `deleted-at`")?;
    has_data(record)
}

/// Whatever is put was an `Any`. A client that received anything else could read nothing of the answer that it stands in.
fn has_data(record: &Record) -> Check {
    law(
        record.data.as_ref().is_none_or(|data| check_any(data).is_ok()),
        "the data of a record is an encoded `google.protobuf.Any`",
    )
}

fn is_of(record_type: Option<&str>, record: &Record) -> Check {
    law(
        record_type.is_none_or(|record_type| record_type == record.key.record_type),
        "records are of the type asked for",
    )
}

/// A page stops at its bounds. Since it holds one record at least, and a plugin may see only with a record at hand that it
/// is one too many bytes, the last one may go beyond.
fn within(bounds: PageBounds, records: &[Record]) -> Check {
    law(
        count(records.len()) <= u64::from(bounds.records),
        "a page holds no more records than asked for",
    )?;
    let all_but_last = records.split_last().map_or(&[][..], |(_, before)| before);
    let bytes: u64 = all_but_last.iter().map(|record| count(record.size())).sum();
    law(
        bytes <= bounds.bytes,
        "a page holds no more bytes than asked for, save for its last record",
    )
}

/// A count as the interface has them; none is beyond 64 bits.
fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Versions, each of which must be higher than the one before it.
struct Ascending {
    last: Version,
}

impl Ascending {
    fn after(last: Version) -> Self {
        Self { last }
    }

    fn next(&mut self, version: Version) -> Check {
        law(
            version > self.last,
            "versions ascend strictly and begin after the one asked for",
        )?;
        self.last = version;
        Ok(())
    }
}
