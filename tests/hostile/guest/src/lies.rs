//! Answers that it makes worse than they are.

use crate::bindings::databroker::storage::types::{Error, Record};
use crate::bindings::exports::databroker::storage::store::{
    ChangesPage, ChangesRequest, Outcome, PutResult, Refusal, ScanPage, ScanRequest,
};
use crate::misbehaviour::Misbehaviour;
use crate::{DATA, HOSTILE};

/// The answer to a get of hostile records.
pub fn about_get(misbehaviour: Misbehaviour, mut answers: Vec<Option<Record>>) -> Result<Vec<Option<Record>>, Error> {
    let found = answers.iter_mut().flatten().next();
    match (misbehaviour, found) {
        (Misbehaviour::AnswerOfOneGibibyte, Some(record)) => record.data = Some(vec![0; 1 << 30]),
        (Misbehaviour::BrokenUtf8, Some(record)) => record.id = broken_text(),
        // A text that is longer than what is left.
        (Misbehaviour::BrokenProtobuf, Some(record)) => record.data = Some(b"\x0a\x7fx".to_vec()),
        (Misbehaviour::AnotherRecord, Some(record)) => record.id = "another".to_owned(),
        (Misbehaviour::DeadRecord, Some(record)) => record.deleted_at = Some(1),
        (Misbehaviour::VersionZero, Some(record)) => record.version = 0,
        (Misbehaviour::TooFewAnswers, _) => drop(answers.pop()),
        (Misbehaviour::TooManyAnswers, _) => answers.push(None),
        (Misbehaviour::EndlessErrorText, _) => {
            return Err(Error::Internal("\x1b[2Jlevel=error\nmore\r\n".repeat(1 << 20)));
        }
        (Misbehaviour::ForeignError, _) => return Err(Error::Configuration("it was never right".to_owned())),
        _ => {}
    }
    Ok(answers)
}

/// The answer to a put of hostile records.
pub fn about_put(misbehaviour: Misbehaviour, result: &mut PutResult) {
    let first = result.batches.first_mut();
    match (misbehaviour, first) {
        (Misbehaviour::TooFewResults, _) => drop(result.batches.pop()),
        (Misbehaviour::ServerVersionZero, _) => result.server_version = 0,
        (Misbehaviour::FalseConflict, Some(batch)) => *batch = Err(Refusal::Conflict(0)),
        (Misbehaviour::TooFewOutcomes, Some(Ok(outcomes))) => drop(outcomes.pop()),
        (Misbehaviour::WrongOutcome, Some(Ok(outcomes))) => outcomes.fill(Outcome::Missing),
        (Misbehaviour::VersionRepeated, Some(Ok(outcomes))) => outcomes.fill(Outcome::Stored(1)),
        _ => {}
    }
}

/// A page of hostile records.
pub fn about_scan(misbehaviour: Misbehaviour, request: &ScanRequest, page: &mut ScanPage) {
    match misbehaviour {
        Misbehaviour::PageOfTooManyRecords => {
            page.records = (0..=request.max_records)
                .map(|number| record(&format!("c{number:010}"), 1, 0))
                .collect();
        }
        Misbehaviour::PageOfTooManyBytes => {
            let bytes = usize::try_from(request.max_bytes).unwrap_or(usize::MAX);
            page.records = ["c", "d"].map(|id| record(id, 1, bytes)).into();
        }
        Misbehaviour::CursorStandsStill => {
            page.records = vec![record("a", 1, 0)];
            page.more = true;
        }
        Misbehaviour::EmptyPageWithMore => {
            page.records.clear();
            page.more = true;
        }
        Misbehaviour::PageOutOfOrder => page.records.reverse(),
        Misbehaviour::AnotherType => page.records.iter_mut().for_each(|record| record.type_ = "t".to_owned()),
        _ => {}
    }
}

/// A page of hostile changes.
pub fn about_changes(
    misbehaviour: Misbehaviour,
    request: &ChangesRequest,
    mut page: ChangesPage,
) -> Result<ChangesPage, Error> {
    let first = page.records.first_mut();
    match (misbehaviour, first) {
        (Misbehaviour::ChangesOutOfOrder, _) => page.records.reverse(),
        (Misbehaviour::ChangesRepeated, Some(first)) => first.version = request.after,
        (Misbehaviour::ChangeOfTheFuture, _) => {
            let future = page.position.latest_version + 1000;
            page.records.push(record("z", future, 0));
            page.through = future;
        }
        (Misbehaviour::ChangesStandStill, _) => {
            page.records.clear();
            page.through = request.after;
        }
        (Misbehaviour::PrunedInThePast, _) => return Err(Error::Pruned(request.after)),
        _ => {}
    }
    Ok(page)
}

fn record(id: &str, version: u64, bytes: usize) -> Record {
    let mut data = DATA.to_vec();
    data.resize(data.len().max(bytes), 0);
    Record {
        version,
        type_: HOSTILE.to_owned(),
        id: id.to_owned(),
        data: Some(data),
        modified_at: 1,
        deleted_at: None,
    }
}

#[expect(
    unsafe_code,
    reason = "no safe code can make such a text; it is only handed over, and never looked at"
)]
fn broken_text() -> String {
    unsafe { String::from_utf8_unchecked(vec![b'a', 0xff, 0xfe]) }
}
