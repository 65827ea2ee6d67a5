//! A page of records, and where the store stands, read by one statement and so of one moment.
//!
//! The database keeps the bounds while it walks along an index: it hands over one record more than fits, which tells that there
//! is more, and holds none of them in its memory.

use crate::database::{Data, Database, Row, Value};
use crate::horizon::{Patience, Place};
use crate::record::{EXACT, Record, SIZE, columns};
use crate::store::{Error, Store, signed};

/// Pages are no larger than this, whatever is asked for.
const BYTES: u64 = 4 << 20;

/// Nor do they hold more records.
const RECORDS: u32 = 4096;

/// What a page may hold; the first record in any case.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    records: u32,
    bytes: u64,
}

impl Bounds {
    /// What a host asks for, within the bounds of every page.
    pub(crate) fn new(records: u32, bytes: u64) -> Self {
        Self {
            records: records.min(RECORDS),
            bytes: bytes.min(BYTES),
        }
    }
}

/// Parameters, numbered as they come.
#[derive(Default)]
pub(crate) struct Parameters(Vec<Value>);

impl Parameters {
    /// The place of a new one in the statement.
    pub(crate) fn add(&mut self, value: Value) -> String {
        self.0.push(value);
        format!("${}", self.0.len())
    }

    pub(crate) fn into_values(self) -> Vec<Value> {
        self.0
    }
}

/// Which records a page is of.
pub(crate) struct Selection<'s> {
    /// What stands after `FROM`; `r` is a record's row.
    pub(crate) from: &'s str,
    /// What they meet.
    pub(crate) condition: &'s str,
    /// Their order.
    pub(crate) order: &'s str,
    /// When they were removed.
    pub(crate) deleted_at: &'s str,
    /// True of a record behind which there may be more, even if the page ends with it.
    pub(crate) more: &'s str,
}

impl Selection<'_> {
    /// The statement. Its rows begin with their number and the bytes of all records up to and with this one.
    pub(crate) fn statement(&self, bounds: Bounds, parameters: &mut Parameters) -> String {
        // A number in the text, so that the server keeps a plan that is made for it; and few different ones.
        let records = bounds.records.next_power_of_two() + 1;
        let bytes = parameters.add(Value::Integer(signed(bounds.bytes)));
        let Self {
            from,
            condition,
            order,
            more,
            ..
        } = self;
        let columns = columns(self.deleted_at);
        format!(
            "SELECT * FROM (SELECT row_number() OVER w AS n, (sum({SIZE}) OVER w)::bigint AS upto, {columns}, ({SIZE})::bigint AS size, {more} AS more \
              FROM {from} {EXACT} \
              WHERE {condition} WINDOW w AS (ORDER BY {order} ROWS UNBOUNDED PRECEDING) ORDER BY {order} LIMIT {records}) q \
             WHERE n <= 2 OR upto - size <= {bytes}"
        )
    }
}

/// Part of what was selected.
pub(crate) struct Page {
    /// The records, in the order of the selection.
    pub(crate) records: Vec<Record>,
    /// True if there is more.
    pub(crate) more: bool,
}

impl<D: Database, J: Data> Store<D, J> {
    /// Reads a page, and where the store stood at that moment. Of the change log it may hold more than is to be seen there.
    pub(crate) async fn page(
        &self,
        selection: &Selection<'_>,
        bounds: Bounds,
        mut parameters: Parameters,
        patience: Patience,
    ) -> Result<(Place, Page), Error> {
        let statement = selection.statement(bounds, &mut parameters);
        let (place, rows) = self.read_at_place(&statement, parameters, patience).await?;
        Ok((place, self.cut(rows, bounds)?))
    }

    /// The records of rows that [`Selection::statement`] gives, in any order.
    pub(crate) fn cut(&self, rows: Vec<Row>, bounds: Bounds) -> Result<Page, Error> {
        let mut sized = Vec::with_capacity(rows.len());
        for mut row in rows {
            sized.push((row.count()?, row.count()?, row));
        }
        sized.sort_by_key(|(number, ..)| *number);
        let most = usize::try_from(bounds.records).unwrap_or(usize::MAX);
        let fitting = sized
            .partition_point(|(_, upto, _)| *upto <= bounds.bytes)
            .clamp(1, most.max(1));
        let mut more = sized.len() > fitting;
        let mut rows: Vec<_> = sized.into_iter().take(fitting).map(|(.., row)| row).collect();
        let records = self.records(&mut rows)?;
        if let Some(last) = rows.last_mut() {
            let _size = last.count()?;
            more |= last.boolean()?;
        }
        Ok(Page { records, more })
    }
}
