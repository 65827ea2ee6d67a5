//! The options of all types, as the backend has them, at hand for every put and stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use super::BrokerError;
use crate::backend::{Backend, BackendError};
use crate::record::Options;

/// Most bytes that the options of all types come to, as [`bytes`] counts them. A store lists all of them in one answer, of
/// 64 MiB at most, and every host and stream holds them: with more, it could not be opened again.
const MOST_BYTES: usize = 16 << 20;

/// What a type and each of its fields count beside their texts: even an empty one takes place in lists.
const ENTRY_BYTES: usize = 64;

/// The options of each type that has any.
pub type Table = BTreeMap<String, Options>;

/// A revision of a shared store's options, and the table that was read for it.
pub type Known = Option<(u64, Arc<Table>)>;

/// A copy of the backend's options: replaced whole when they change, so that readers hold what they have read.
#[derive(Debug, Default)]
pub struct OptionsTable {
    table: RwLock<Arc<Table>>,
}

impl OptionsTable {
    /// A type's options, if it has any.
    pub fn get(&self, record_type: &str) -> Option<Options> {
        self.table.read().get(record_type).cloned()
    }

    /// The options of all types.
    pub fn all(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    /// Replaces the whole table.
    pub fn replace(&self, options: impl IntoIterator<Item = (String, Options)>) {
        *self.table.write() = Arc::new(options.into_iter().collect());
    }

    /// Replaces the whole table, unless it was changed since `before` was taken from it; then it is none. What was read from a
    /// store while somebody set options may be older than those. A table that says the same stays the one that it is.
    pub fn replace_unchanged(
        &self,
        before: &Arc<Table>,
        options: impl IntoIterator<Item = (String, Options)>,
    ) -> Option<Arc<Table>> {
        let options: Table = options.into_iter().collect();
        let mut table = self.table.write();
        if !Arc::ptr_eq(before, &table) {
            return None;
        }
        if **table != options {
            *table = Arc::new(options);
        }
        Some(Arc::clone(&table))
    }

    /// Reads all of it from the backend. Options that this host sets meanwhile are not in what was read, which is then read
    /// again.
    ///
    /// # Errors
    ///
    /// The backend's.
    pub async fn refresh(&self, backend: &dyn Backend) -> Result<Arc<Table>, BackendError> {
        loop {
            let before = self.all();
            let listed = backend.list_options().await?;
            if let Some(table) = self.replace_unchanged(&before, listed) {
                return Ok(table);
            }
        }
    }

    /// The same, unless it was read for this revision already and nobody has changed it since: a store may come back to the
    /// options, and so to the revision, that it had before this host has set others. Says whether it was read.
    ///
    /// # Errors
    ///
    /// The backend's.
    pub async fn refresh_to(
        &self,
        revision: u64,
        known: &mut Known,
        backend: &dyn Backend,
    ) -> Result<bool, BackendError> {
        let is_known = |(of, table): &(u64, Arc<Table>)| *of == revision && Arc::ptr_eq(table, &self.table.read());
        if known.as_ref().is_some_and(is_known) {
            return Ok(false);
        }
        let table = self.refresh(backend).await?;
        *known = Some((revision, table));
        Ok(true)
    }

    /// Replaces one type's options; none removes them.
    pub fn set(&self, record_type: String, options: Option<Options>) {
        let mut table = self.table.write();
        let table = Arc::make_mut(&mut table);
        match options {
            Some(options) => table.insert(record_type, options),
            None => table.remove(&record_type),
        };
    }
}

/// Whether a type may get these options beside those of the other types. Where there is too much already, what makes it less
/// is let through.
///
/// # Errors
///
/// [`BrokerError::OptionsTooLarge`].
pub fn check_room(table: &Table, record_type: &str, options: &Options) -> Result<(), BrokerError> {
    let all: usize = table.iter().map(|(of, options)| bytes(of, options)).sum();
    let before = table.get(record_type).map_or(0, |current| bytes(record_type, current));
    let after = bytes(record_type, options);
    if after > before && all.saturating_sub(before).saturating_add(after) > MOST_BYTES {
        return Err(BrokerError::OptionsTooLarge(MOST_BYTES));
    }
    Ok(())
}

/// What a type's options count.
fn bytes(record_type: &str, options: &Options) -> usize {
    let fields = options.indexable_fields.iter();
    let fields: usize = fields.map(|field| field.len().saturating_add(ENTRY_BYTES)).sum();
    record_type.len().saturating_add(ENTRY_BYTES).saturating_add(fields)
}

/// The options that Pomerium counts on, by type. They are set at start, after a Clear and at each clean: all of them where
/// a type has no options, else the fields that are missing. What an operator has set for these types stays, unlike with
/// Pomerium's own server, which overwrites it at every start.
pub fn missing_required(table: &Table) -> Vec<(String, Options)> {
    required()
        .into_iter()
        .filter_map(|(record_type, required)| {
            let Some(current) = table.get(&record_type) else {
                return Some((record_type, required));
            };
            let mut options = current.clone();
            for field in required.indexable_fields {
                if !options.indexable_fields.contains(&field) {
                    options.indexable_fields.push(field);
                }
            }
            (options != *current).then_some((record_type, options))
        })
        .collect()
}

fn required() -> [(String, Options); 5] {
    const QUARTER_HOUR: Duration = Duration::from_secs(15 * 60);
    let options = |name: &str, fields: &[&str], capacity, ttl| {
        let indexable_fields = fields.iter().map(|&field| field.to_owned()).collect();
        (
            format!("type.googleapis.com/{name}"),
            Options {
                capacity,
                indexable_fields,
                ttl,
            },
        )
    };
    [
        options(
            "session.SessionBindingRequest",
            &["key"],
            Some(50_000),
            Some(QUARTER_HOUR),
        ),
        options("session.SessionBinding", &["session_id", "user_id"], None, None),
        options("session.IdentityBinding", &["user_id"], None, None),
        options("oauth21.UpstreamMCPToken", &["user_id", "route_id"], None, None),
        options("oauth21.PendingUpstreamAuth", &["state_id"], None, Some(QUARTER_HOUR)),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, reason = "tests")]

    use super::*;

    #[test]
    fn what_an_operator_has_set_stays_and_missing_fields_are_added() {
        let kept = Options {
            capacity: Some(7),
            indexable_fields: vec!["own".to_owned()],
            ttl: None,
        };
        let mut table: Table = required().into_iter().collect();
        table.insert("type.googleapis.com/session.SessionBindingRequest".to_owned(), kept);
        table.remove("type.googleapis.com/session.IdentityBinding");

        let missing: Table = missing_required(&table).into_iter().collect();
        assert_eq!(missing.len(), 2, "{missing:?}");
        let binding_request = &missing["type.googleapis.com/session.SessionBindingRequest"];
        assert_eq!((binding_request.capacity, binding_request.ttl), (Some(7), None));
        assert_eq!(binding_request.indexable_fields, ["own", "key"]);

        table.extend(missing);
        assert_eq!(missing_required(&table), []);
    }

    #[test]
    fn what_counts_are_texts_and_their_number() {
        let fields = |length: usize, number: usize| Options {
            indexable_fields: vec!["f".repeat(length); number],
            ..Options::default()
        };
        let too_large = Err(BrokerError::OptionsTooLarge(MOST_BYTES));
        let mut table = BTreeMap::from([("full".to_owned(), fields(1 << 20, 15))]);
        for (record_type, options, expected) in [
            ("small", fields(1000, 100), Ok(())),
            ("long", fields(1 << 20, 1), too_large.clone()),
            // Not even a byte each.
            ("many", fields(0, 20_000), too_large.clone()),
            ("full", fields(1 << 20, 14), Ok(())),
            ("full", fields(1 << 20, 16), too_large.clone()),
        ] {
            assert_eq!(check_room(&table, record_type, &options), expected, "{record_type}");
        }
        // What has too much already, as others have set it, can be mended step by step.
        table.insert("full".to_owned(), fields(1 << 20, 30));
        assert_eq!(check_room(&table, "full", &fields(1 << 20, 29)), Ok(()));
        assert_eq!(check_room(&table, "small", &fields(1, 1)), too_large);
    }
}
