//! How far a page looks that walks along the records of a type for those that meet a condition.
//!
//! None of millions may meet it, and whoever asked has gone long before a statement has looked at all of them, which holds a
//! connection meanwhile. So a page looks at a window: the first records after the place where it begins. What lies behind is the
//! next page's, which begins after the last record of the window. That one is handed over in any case, since a page behind which
//! there is more holds one at least.

/// How many records a page looks at: some 60 ms of the database.
const RECORDS: u32 = 16_384;

/// True of the last record of a window behind which there may be more.
pub(crate) const IS_LAST: &str = "r.is_last";

/// The order of the keys, within a window.
pub(crate) const ORDER: &str = "r.key";

/// Selects a window of one type as `r`, of the records that meet `within`.
///
/// The planner is not told how many they are at most, and then makes ready for a tenth of what there is: it goes along the index.
/// A database that has no statistics yet expects few records, and with a number would rather read and sort all that there are.
pub(crate) fn select(within: &str) -> String {
    format!(
        "(SELECT r.*, r.id COLLATE \"C\" AS key, \
            row_number() OVER (ORDER BY r.type COLLATE \"C\", r.id COLLATE \"C\" ROWS UNBOUNDED PRECEDING) = {RECORDS} AS is_last \
          FROM pomerium.records r WHERE {within} ORDER BY r.type COLLATE \"C\", r.id COLLATE \"C\" LIMIT (SELECT {RECORDS})) r"
    )
}
