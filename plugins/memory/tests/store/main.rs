//! The store from outside, natively: tables of cases, a comparison with a naive model, and the budget.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

mod budget;
mod cases;
mod model;

use memory::{
    Batch, Bounds, Budget, Change, ChangesRequest, Entry, Hint, Operation, Options, Outcome, Refusal, ScanRequest,
    Store, Timestamp, Version,
};

/// The bytes that the tests store.
pub type Data = Vec<u8>;

/// Everything about an entry that can be seen: version, type, id, data, modified and deleted.
pub type Seen = (Version, String, String, Option<Data>, Timestamp, Option<Timestamp>);

pub const BIG: Bounds = Bounds {
    records: usize::MAX,
    bytes: u64::MAX,
};

pub fn store() -> Store<Data> {
    Store::new(Budget::DEFAULT, 1)
}

pub fn seen(entry: &Entry<Data>) -> Seen {
    (
        entry.version(),
        entry.record_type().to_owned(),
        entry.id().to_owned(),
        entry.data().cloned(),
        entry.modified_at(),
        entry.deleted_at(),
    )
}

/// Test data is text `field=value;field=value`, and this looks into it.
pub fn extract(data: &[&[u8]], paths: &[String]) -> Vec<Vec<Vec<String>>> {
    let fields = |data: &[u8]| -> Vec<(String, String)> {
        let text = String::from_utf8_lossy(data);
        let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(field, value)| (field.to_owned(), value.to_owned()))
            .collect()
    };
    let values = |data: &&[u8]| {
        let fields = fields(data);
        let of_path = |path: &String| {
            fields
                .iter()
                .filter(|(field, _)| field == path)
                .map(|(_, value)| value.clone())
                .collect()
        };
        paths.iter().map(of_path).collect()
    };
    data.iter().map(values).collect()
}

pub fn upsert(record_type: &str, id: &str, data: &str) -> Change<Data> {
    Change {
        record_type: record_type.to_owned(),
        id: id.to_owned(),
        operation: Operation::Upsert {
            data: Some(data.as_bytes().to_vec()),
            network: data.strip_prefix("net:").map(|prefix| prefix.parse().unwrap()),
        },
        expected: None,
    }
}

pub fn delete(record_type: &str, id: &str) -> Change<Data> {
    Change {
        record_type: record_type.to_owned(),
        id: id.to_owned(),
        operation: Operation::Delete,
        expected: None,
    }
}

pub fn expecting(version: Version, change: Change<Data>) -> Change<Data> {
    Change {
        expected: Some(version),
        ..change
    }
}

pub fn put(store: &mut Store<Data>, batch: Batch<Data>, now: Timestamp) -> Result<Vec<Outcome<Data>>, Refusal> {
    store.put(vec![batch], now, &extract, &|| true).batches.pop().unwrap()
}

pub fn scan_request(record_type: Option<&str>) -> ScanRequest {
    ScanRequest {
        record_type: record_type.map(str::to_owned),
        hint: None,
        after: None,
        bounds: BIG,
    }
}

/// Reads all pages of a scan.
pub fn scan(store: &Store<Data>, record_type: Option<&str>, hint: Option<Hint>, bounds: Bounds) -> Vec<Seen> {
    let mut request = ScanRequest {
        hint,
        bounds,
        ..scan_request(record_type)
    };
    let mut found = Vec::new();
    loop {
        let page = store.scan(&request);
        let last = page
            .records
            .last()
            .map(|entry| (entry.record_type().to_owned(), entry.id().to_owned()));
        found.extend(page.records.iter().map(|entry| seen(entry)));
        if !page.more {
            return found;
        }
        request.after = Some(last.expect("a page with more after it has a record"));
    }
}

/// Reads all pages of the change log, or says what was pruned.
pub fn changes(
    store: &Store<Data>,
    after: Version,
    record_type: Option<&str>,
    bounds: Bounds,
) -> Result<Vec<Seen>, Version> {
    let mut found = Vec::new();
    let mut after = after;
    loop {
        let page = store.changes(&ChangesRequest {
            after,
            record_type: record_type.map(str::to_owned),
            bounds,
        })?;
        found.extend(page.records.iter().map(|entry| seen(entry)));
        assert!(page.through >= found.last().map_or(0, |change| change.0));
        if page.through >= page.position.latest_version {
            return Ok(found);
        }
        assert!(page.through > after, "the page does not move on");
        after = page.through;
    }
}

pub fn ids(records: &[Seen]) -> String {
    records
        .iter()
        .map(|record| record.2.as_str())
        .collect::<Vec<_>>()
        .join(" ")
}

pub fn indexing(fields: &[&str]) -> Option<Options> {
    Some(Options {
        indexable_fields: fields.iter().map(|&field| field.to_owned()).collect(),
        ..Options::default()
    })
}
