//! What a plugin answers. An answer that is held to be lawful is what the laws say, as far as that can be said in other
//! words.

use databroker_host::backend::{
    Batch, Change, ChangesPage, ChangesRequest, EvictRequest, Evicted, Operation, Outcome, PutResult, Refusal, ScanPage,
};
use databroker_host::component::fuzz;

use crate::Target;
use crate::draw::Draw;

pub const TARGET: Target = Target {
    name: "answers",
    feed,
    short: 50_000,
    words: &[],
};

fn feed(bytes: &[u8]) {
    let mut draw = Draw(bytes);
    match draw.below(5) {
        0 => get(&mut draw),
        1 => put(&mut draw),
        2 => scan(&mut draw),
        3 => changes(&mut draw),
        _ => evict(&mut draw),
    }
}

fn get(draw: &mut Draw<'_>) {
    let keys = draw.list(Draw::key);
    let answers = draw.list(|draw| draw.option(Draw::record));
    if fuzz::answers(&keys, &answers) {
        assert_eq!(keys.len(), answers.len());
        for (key, record) in keys.iter().zip(&answers) {
            let is_right = |record: &databroker_host::record::Record| record.key == *key && record.deleted_at.is_none();
            assert!(record.as_ref().is_none_or(is_right));
        }
    }
}

fn put(draw: &mut Draw<'_>) {
    let after = draw.number();
    let batches = draw.list(|draw| Batch {
        changes: draw.list(|draw| Change {
            key: draw.key(),
            operation: match draw.is_so() {
                true => Operation::Delete,
                false => Operation::Upsert {
                    data: None,
                    network: None,
                },
            },
            expected: draw.option(Draw::number),
        }),
    });
    let result = PutResult {
        server_version: draw.number(),
        options_revision: draw.option(Draw::number),
        batches: draw.list(|draw| match draw.below(6) {
            0 => Err(Refusal::Conflict(usize::from(draw.byte()))),
            1 => Err(Refusal::Exhausted(String::new())),
            _ => Ok(draw.list(|draw| match draw.below(3) {
                0 => Outcome::Stored(draw.number()),
                1 => Outcome::Deleted(draw.record()),
                _ => Outcome::Missing,
            })),
        }),
    };
    if let Some(last) = fuzz::put(&batches, after, &result) {
        assert!(last >= after && result.server_version != 0);
        let mut versions = vec![after];
        for (batch, outcome) in batches.iter().zip(&result.batches) {
            let Ok(outcomes) = outcome else { continue };
            assert_eq!(batch.changes.len(), outcomes.len());
            versions.extend(outcomes.iter().filter_map(|outcome| match outcome {
                Outcome::Stored(version) => Some(*version),
                Outcome::Deleted(tombstone) => Some(tombstone.version),
                Outcome::Missing => None,
            }));
        }
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
        assert_eq!(versions.last(), Some(&last));
    }
}

fn scan(draw: &mut Draw<'_>) {
    let (after, record_type, bounds) = (draw.option(Draw::key), draw.option(Draw::text), draw.bounds());
    let page = ScanPage {
        records: draw.list(Draw::record),
        more: draw.is_so(),
        position: draw.position(),
    };
    if fuzz::scan_page(after.as_ref(), record_type.as_deref(), bounds, &page) {
        assert!(page.records.len() <= usize::try_from(bounds.records).unwrap());
        let keys: Vec<_> = after
            .iter()
            .chain(page.records.iter().map(|record| &record.key))
            .collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert!(!page.more || !page.records.is_empty(), "it would be asked for ever");
    }
}

fn changes(draw: &mut Draw<'_>) {
    let request = ChangesRequest {
        after: draw.number(),
        record_type: draw.option(Draw::text),
        bounds: draw.bounds(),
    };
    let page = ChangesPage {
        records: draw.list(Draw::record),
        through: draw.number(),
        position: draw.position(),
    };
    if fuzz::changes_page(&request, &page) {
        let versions: Vec<_> = std::iter::once(request.after)
            .chain(page.records.iter().map(|record| record.version))
            .collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
        assert!(page.through >= *versions.last().unwrap());
        let has_caught_up = page.through >= page.position.latest_version;
        assert!(
            has_caught_up || page.through > request.after,
            "it would be asked for ever"
        );
    }
}

fn evict(draw: &mut Draw<'_>) {
    let after = draw.number();
    let request = EvictRequest {
        record_type: draw.text(),
        modified_before: None,
        keep: draw.option(Draw::number),
        max_records: u32::from(draw.below(7)),
    };
    let evicted = Evicted {
        server_version: draw.number(),
        tombstones: draw.list(Draw::record),
        more: draw.is_so(),
    };
    if let Some(last) = fuzz::evicted(after, &request, &evicted) {
        assert!(last >= after);
        assert!(
            evicted.tombstones.iter().all(|tombstone| {
                tombstone.deleted_at.is_some() && tombstone.key.record_type == request.record_type
            })
        );
        assert!(!evicted.more || last > after, "it would be asked for ever");
    }
}
