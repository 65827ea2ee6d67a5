//! Query: finds records by filter and text.
//!
//! The filter's plan says where to look: under ids, in an index, or through all records of the type, page by page. A
//! backend may hand over more than was asked for, so each candidate is matched here; what does not match, or lies outside
//! the part asked for, is counted and dropped at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{ANSWER_BYTES, Broker, BrokerError, GET_KEYS, Query, QueryPage};
use crate::backend::{BackendError, Hint, PageBounds, ScanRequest};
use crate::data::{Needle, network};
use crate::filter::{Effort, Filter, Lookup, MAX_SCANS, Plan, Resolution};
use crate::record::{Key, Record, Version};

/// The bounds of the pages that are looked through.
const PAGE: PageBounds = PageBounds {
    records: 512,
    bytes: 1 << 20,
};
/// Most bytes of records that are held to unite several look-ups.
const HELD_BYTES: usize = 64 << 20;

/// Most bytes of records that all queries hold together, in units of [`UNIT`].
pub const ROOM_UNITS: usize = 512 << 10;
const UNIT: usize = 1 << 10;

/// After so many bytes looked at, others get their turn on the thread, and a deadline that has passed takes effect: some
/// milliseconds.
const PAUSE_BYTES: u64 = 8 << 20;

/// Runs a query. None where the content was replaced meanwhile, so that what was found may be of both.
pub async fn run(broker: &Broker, query: Query) -> Result<Option<QueryPage>, BrokerError> {
    let mut answer = Answer::new(query.offset, query.limit, &broker.query_room)?;
    let filter = query
        .filter
        .map(|filter| Filter::parse(&filter))
        .transpose()
        .map_err(|error| BrokerError::InvalidArgument(format!("invalid query filter: {error}")))?;
    let needle = (!query.text.is_empty()).then(|| Needle::new(&query.text));
    let is_everything = filter.is_none() && needle.is_none();
    let mut search = Search {
        broker,
        record_type: query.record_type,
        filter,
        needle,
        resolution: Resolution::default(),
        condition: None,
        looked_at: AtomicU64::new(0),
        positions: Mutex::default(),
    };
    // Before the first look, so that the answer is never older than it says. Of a shared store the place is another call, and
    // each page has it.
    if !broker.shared {
        search.stand().await?;
    }
    let mut total = None;
    let mut pages_tell = broker.shared;
    if is_everything {
        search.stand().await?;
        total = Some(broker.backend.count(search.record_type.clone()).await?);
        pages_tell &= !answer.is_full();
        search.first_page(&mut answer).await?;
    } else {
        // Looks at records that do not match, too.
        search.resolve_networks().await?;
        search.narrow();
        match search.plan() {
            Plan::Nothing => {}
            Plan::Ids(ids) => {
                search.stand().await?;
                pages_tell = false;
                search.look_up_ids(&ids, &mut |record| answer.add(record)).await?;
            }
            Plan::Lookups(lookups) => {
                if lookups.iter().any(|lookup| hint(lookup).is_none()) {
                    search.stand().await?;
                    pages_tell = false;
                }
                search.look_up(&lookups, &mut answer).await?;
            }
            Plan::Scan => search.scan(None, &mut |record| answer.add(record)).await?,
        }
    }
    if !pages_tell || search.positions.lock().first.is_none() {
        search.stand().await?;
    }
    let positions = search.positions.into_inner();
    let whole = positions.first.filter(|_| !positions.differ);
    Ok(whole.map(|(server_version, latest_version)| QueryPage {
        total: total.unwrap_or(answer.total),
        records: answer.records,
        server_version,
        latest_version,
    }))
}

/// Where the store stood as a query went on.
#[derive(Default)]
struct Positions {
    /// At first: the server version and the newest change.
    first: Option<(u64, Version)>,
    /// True where it was of another server version later on.
    differ: bool,
}

/// The part of the matches that was asked for.
struct Answer<'a> {
    offset: u64,
    limit: u64,
    /// Matches so far.
    total: u64,
    records: Vec<Record>,
    bytes: usize,
    held: Held<'a>,
}

/// What a query holds of the room that all queries share, until it has its answer.
struct Held<'a> {
    room: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
}

impl<'a> Held<'a> {
    fn new(room: &'a Semaphore) -> Self {
        Self { room, permit: None }
    }

    /// Holds one record more. It does not wait, since those who hold a part would wait for each other.
    fn take(&mut self, record: &Record) -> Result<(), BrokerError> {
        let units = u32::try_from(record.size().div_ceil(UNIT)).unwrap_or(u32::MAX);
        let more = self.room.try_acquire_many(units).map_err(|_| {
            let why = "queries hold as many records as there is memory for: try again, or narrow the filter";
            BrokerError::Backend(BackendError::Exhausted(why.to_owned()))
        })?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

impl<'a> Answer<'a> {
    fn new(offset: i64, limit: i64, room: &'a Semaphore) -> Result<Self, BrokerError> {
        let checked = |name: &str, value: i64| {
            u64::try_from(value)
                .map_err(|_| BrokerError::InvalidArgument(format!("{name} is {value}: it must not be negative")))
        };
        let (offset, limit) = (checked("offset", offset)?, checked("limit", limit)?);
        Ok(Self {
            offset,
            limit,
            total: 0,
            records: Vec::new(),
            bytes: 0,
            held: Held::new(room),
        })
    }

    /// Takes the next match, in the order of the keys.
    fn add(&mut self, record: Record) -> Result<(), BrokerError> {
        let wanted = self.total >= self.offset && self.total - self.offset < self.limit;
        self.total += 1;
        if wanted {
            self.bytes += record.size();
            if self.bytes > ANSWER_BYTES {
                return Err(BrokerError::AnswerTooLarge(ANSWER_BYTES));
            }
            self.held.take(&record)?;
            self.records.push(record);
        }
        Ok(())
    }

    /// True once further matches would only be counted.
    fn is_full(&self) -> bool {
        self.limit == 0 || self.total >= self.offset.saturating_add(self.limit)
    }
}

/// What is done with each record that is found.
type Take<'a> = dyn FnMut(Record) -> Result<(), BrokerError> + Send + 'a;

struct Search<'a> {
    broker: &'a Broker,
    record_type: Option<String>,
    filter: Option<Filter>,
    needle: Option<Needle>,
    /// The most specific networks for the filter's `$index` parts.
    resolution: Resolution,
    /// What the filter says of the JSON form of data, if anything.
    condition: Option<String>,
    /// Bytes looked at since the last pause.
    looked_at: AtomicU64,
    positions: Mutex<Positions>,
}

impl Search<'_> {
    /// Asks where the store stands.
    async fn stand(&self) -> Result<(), BrokerError> {
        let (server_version, latest_version) = self.broker.position().await?;
        self.note(server_version, latest_version);
        Ok(())
    }

    fn note(&self, server_version: u64, latest_version: Version) {
        let mut positions = self.positions.lock();
        let (first, _) = *positions.first.get_or_insert((server_version, latest_version));
        positions.differ |= first != server_version;
    }

    /// Whether a record matches.
    async fn matches(&self, record: &Record) -> Result<bool, BrokerError> {
        let mut effort = Effort::default();
        let matches = self.compare(record, &mut effort);
        if effort.is_exhausted() {
            let id = record.key.id.chars().take(128).collect();
            return Err(BrokerError::QueryTooCostly(id));
        }
        let looked_at = self.looked_at.fetch_add(effort.spent(), Ordering::Relaxed) + effort.spent();
        if looked_at > PAUSE_BYTES {
            self.looked_at.store(0, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        Ok(matches)
    }

    fn compare(&self, record: &Record, effort: &mut Effort) -> bool {
        let descriptors = &self.broker.descriptors;
        let data = record.data.as_deref();
        let right_type = self
            .record_type
            .as_ref()
            .is_none_or(|record_type| *record_type == record.key.record_type);
        right_type
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| filter.matches(descriptors, &record.key, data, &self.resolution, effort))
            && self.needle.as_ref().is_none_or(|needle| {
                data.is_some_and(|data| effort.spend(data.len(), 1) && descriptors.matches_text(data, needle))
            })
    }

    fn plan(&self) -> Plan {
        let Some(filter) = &self.filter else { return Plan::Scan };
        let record_type = self.record_type.as_deref();
        let options = record_type
            .and_then(|record_type| self.broker.options.get(record_type))
            .unwrap_or_default();
        filter.plan(record_type, &options.indexable_fields)
    }

    /// From here on a backend may leave out records that do not match.
    fn narrow(&mut self) {
        let (Some(filter), Some(record_type)) = (&self.filter, &self.record_type) else {
            return;
        };
        self.condition = filter.condition(&self.broker.descriptors, record_type);
    }

    /// Finds the most specific networks that `$index` parts ask for.
    async fn resolve_networks(&mut self) -> Result<(), BrokerError> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let mut resolution = filter.resolution();
        let hints: Vec<Option<Hint>> = match filter.networks() {
            wanted if wanted.len() > MAX_SCANS => vec![None],
            wanted => wanted
                .iter()
                .map(|wanted| Some(Hint::Network(wanted.to_string())))
                .collect(),
        };
        for hint in hints {
            let mut cursor = Cursor::default();
            while let Some(records) = self.next_page(hint.as_ref(), &mut cursor, PAGE).await? {
                let networks = records
                    .iter()
                    .filter_map(|record| record.data.as_deref().and_then(network));
                networks.for_each(|network| resolution.offer(network));
            }
        }
        self.resolution = resolution;
        Ok(())
    }

    /// Matching records by id: of the type, or of every type there is; in the order of their keys.
    async fn look_up_ids(&self, ids: &[String], take: &mut Take<'_>) -> Result<(), BrokerError> {
        let types = match &self.record_type {
            Some(record_type) => vec![record_type.clone()],
            None => self.broker.listings.types().await?,
        };
        for record_type in types {
            // In parts, so that not all of them are held at once.
            for ids in ids.chunks(GET_KEYS) {
                let keys = ids.iter().map(|id| Key::new(record_type.clone(), id.clone())).collect();
                for record in self.broker.get_all(keys).await?.into_iter().flatten() {
                    if self.matches(&record).await? {
                        take(record)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The union of several look-ups, each record once.
    async fn look_up(&self, lookups: &[Lookup], answer: &mut Answer<'_>) -> Result<(), BrokerError> {
        // A single look-up is in the order of the keys and names no record twice.
        if let [lookup] = lookups
            && let Some(hint) = hint(lookup)
        {
            return self.scan(Some(hint), &mut |record| answer.add(record)).await;
        }
        let mut found: BTreeMap<Key, Record> = BTreeMap::new();
        let mut bytes = 0;
        let mut held = Held::new(&self.broker.query_room);
        let mut hold = |record: Record| {
            bytes += record.size();
            if bytes > HELD_BYTES {
                let why = "invalid query filter: its alternatives find more than 64 MiB of records: narrow it";
                return Err(BrokerError::InvalidArgument(why.to_owned()));
            }
            held.take(&record)?;
            found.insert(record.key.clone(), record);
            Ok(())
        };
        let mut ids = BTreeSet::new();
        for lookup in lookups {
            match (hint(lookup), lookup) {
                (Some(hint), _) => self.scan(Some(hint), &mut hold).await?,
                (None, Lookup::Id(id)) => {
                    ids.insert(id.clone());
                }
                (None, _) => {}
            }
        }
        self.look_up_ids(&ids.into_iter().collect::<Vec<_>>(), &mut hold)
            .await?;
        found.into_values().try_for_each(|record| answer.add(record))
    }

    /// Matching records of a scan, in the order of their keys.
    async fn scan(&self, hint: Option<Hint>, take: &mut Take<'_>) -> Result<(), BrokerError> {
        let mut cursor = Cursor::default();
        while let Some(records) = self.next_page(hint.as_ref(), &mut cursor, PAGE).await? {
            for record in records {
                if self.matches(&record).await? {
                    take(record)?;
                }
            }
        }
        Ok(())
    }

    /// Only as much of a scan as the answer holds; the total is known already.
    async fn first_page(&self, answer: &mut Answer<'_>) -> Result<(), BrokerError> {
        let mut cursor = Cursor::default();
        while !answer.is_full() {
            let wanted = answer.offset.saturating_add(answer.limit).saturating_sub(answer.total);
            let records = u32::try_from(wanted).unwrap_or(u32::MAX).min(PAGE.records);
            let Some(records) = self
                .next_page(None, &mut cursor, PageBounds { records, ..PAGE })
                .await?
            else {
                break;
            };
            records.into_iter().try_for_each(|record| answer.add(record))?;
        }
        Ok(())
    }

    /// The next records of a scan, matching or not; none at its end.
    async fn next_page(
        &self,
        hint: Option<&Hint>,
        cursor: &mut Cursor,
        bounds: PageBounds,
    ) -> Result<Option<Vec<Record>>, BrokerError> {
        if cursor.at_end {
            return Ok(None);
        }
        let page = self
            .broker
            .backend
            .scan(ScanRequest {
                record_type: self.record_type.clone(),
                hint: hint.cloned(),
                condition: self.condition.clone(),
                after: cursor.after.take(),
                bounds,
            })
            .await?;
        self.note(page.position.server_version, page.position.latest_version);
        cursor.after = page.records.last().map(|record| record.key.clone());
        cursor.at_end = !page.more || cursor.after.is_none();
        Ok(Some(page.records))
    }
}

/// How far a scan has come.
#[derive(Default)]
struct Cursor {
    after: Option<Key>,
    at_end: bool,
}

fn hint(lookup: &Lookup) -> Option<Hint> {
    match lookup {
        Lookup::Id(_) => None,
        Lookup::Field { path, value } => Some(Hint::Field {
            path: path.clone(),
            value: value.clone(),
        }),
        Lookup::Network(network) => Some(Hint::Network(network.to_string())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use bytes::Bytes;

    use super::*;
    use crate::record::Timestamp;

    #[test]
    fn queries_share_their_room_and_give_it_back() {
        let room = Semaphore::new(10);
        let record = Record {
            key: Key::new("t", "a"),
            version: 1,
            data: Some(Bytes::from(vec![0; 4 * UNIT])),
            modified_at: Timestamp(0),
            deleted_at: None,
        };
        let mut one = Held::new(&room);
        one.take(&record).unwrap();
        let mut other = Held::new(&room);
        other.take(&record).unwrap();
        assert!(
            matches!(one.take(&record), Err(BrokerError::Backend(BackendError::Exhausted(_)))),
            "there is no room for a third"
        );
        drop(other);
        one.take(&record).unwrap();
        drop(one);
        assert_eq!(room.available_permits(), 10);
    }
}
