//! The options of all types, as the backend has them, at hand for every put and stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;

use crate::backend::{Backend, BackendError};
use crate::record::Options;

/// A copy of the backend's options: replaced whole when they change, so that readers hold what they have read.
#[derive(Debug, Default)]
pub struct OptionsTable {
    table: RwLock<Arc<BTreeMap<String, Options>>>,
}

impl OptionsTable {
    /// A type's options, if it has any.
    pub fn get(&self, record_type: &str) -> Option<Options> {
        self.table.read().get(record_type).cloned()
    }

    /// The options of all types.
    pub fn all(&self) -> Arc<BTreeMap<String, Options>> {
        Arc::clone(&self.table.read())
    }

    /// Replaces the whole table.
    pub fn replace(&self, options: impl IntoIterator<Item = (String, Options)>) {
        *self.table.write() = Arc::new(options.into_iter().collect());
    }

    /// Replaces the whole table, unless it was changed since `before` was taken from it; says whether it has. What was read
    /// from a store while somebody set options may be older than those.
    fn replace_unchanged(
        &self,
        before: &Arc<BTreeMap<String, Options>>,
        options: impl IntoIterator<Item = (String, Options)>,
    ) -> bool {
        let mut table = self.table.write();
        let is_unchanged = Arc::ptr_eq(before, &table);
        if is_unchanged {
            *table = Arc::new(options.into_iter().collect());
        }
        is_unchanged
    }

    /// Reads all of it from the backend. Options that this host sets meanwhile are not in what was read, which is then read
    /// again.
    ///
    /// # Errors
    ///
    /// The backend's.
    pub async fn refresh(&self, backend: &dyn Backend) -> Result<(), BackendError> {
        loop {
            let before = self.all();
            let listed = backend.list_options().await?;
            if self.replace_unchanged(&before, listed) {
                return Ok(());
            }
        }
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

/// The options that Pomerium counts on, by type. They are set at start, after a Clear and at each clean: all of them where
/// a type has no options, else the fields that are missing. What an operator has set for these types stays, unlike with
/// Pomerium's own server, which overwrites it at every start.
pub fn missing_required(table: &BTreeMap<String, Options>) -> Vec<(String, Options)> {
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
        let mut table: BTreeMap<String, Options> = required().into_iter().collect();
        table.insert("type.googleapis.com/session.SessionBindingRequest".to_owned(), kept);
        table.remove("type.googleapis.com/session.IdentityBinding");

        let missing: BTreeMap<_, _> = missing_required(&table).into_iter().collect();
        assert_eq!(missing.len(), 2, "{missing:?}");
        let binding_request = &missing["type.googleapis.com/session.SessionBindingRequest"];
        assert_eq!((binding_request.capacity, binding_request.ttl), (Some(7), None));
        assert_eq!(binding_request.indexable_fields, ["own", "key"]);

        table.extend(missing);
        assert_eq!(missing_required(&table), []);
    }
}
