//! Reading records: by key, page by page, and from the change log.

use crate::database::{Data, Database, Value};
use crate::field;
use crate::horizon::Patience;
use crate::page::{Bounds, Parameters, Selection};
use crate::record::{EXACT, Key, Position, Record, WRITTEN, columns};
use crate::store::{Error, Store, first, signed};
use crate::text;
use crate::window;

/// The types that there are records of, and one more that is null. It skips from one to the next by the index, so that it does
/// not grow with the records.
pub(crate) const TYPES: &str = "RECURSIVE types AS ( \
      (SELECT type COLLATE \"C\" AS type FROM pomerium.records ORDER BY type COLLATE \"C\" LIMIT 1) \
      UNION ALL \
      SELECT (SELECT r.type COLLATE \"C\" FROM pomerium.records r WHERE r.type COLLATE \"C\" > t.type \
              ORDER BY r.type COLLATE \"C\" LIMIT 1) \
      FROM types t WHERE t.type IS NOT NULL)";

/// How a scan is narrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Records of the type whose field has the value.
    Field {
        /// The field's path.
        path: String,
        /// Its value.
        value: String,
    },
    /// Records whose network contains this one.
    Network(String),
}

/// What to scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRequest {
    /// Only this type.
    pub record_type: Option<String>,
    /// Narrows it.
    pub hint: Option<Hint>,
    /// Narrows it where the hint does not: a condition in the language of JSON paths on the JSON of the type's records.
    pub condition: Option<String>,
    /// Continues after this key.
    pub after: Option<Key>,
    /// Records at most.
    pub max_records: u32,
    /// Bytes at most.
    pub max_bytes: u64,
}

/// Part of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanPage {
    /// The records, by key.
    pub records: Vec<Record>,
    /// True if there is more.
    pub more: bool,
    /// Where the store stood.
    pub position: Position,
}

/// What to read from the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesRequest {
    /// Only higher versions.
    pub after: u64,
    /// Only this type.
    pub record_type: Option<String>,
    /// Records at most.
    pub max_records: u32,
    /// Bytes at most.
    pub max_bytes: u64,
}

/// Part of the change log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangesPage {
    /// The changes, by version.
    pub records: Vec<Record>,
    /// All that was asked for is here up to this version.
    pub through: u64,
    /// Where the store stood.
    pub position: Position,
}

impl<D: Database, J: Data> Store<D, J> {
    /// Reads records by key, one answer each.
    ///
    /// # Errors
    ///
    /// [`Error::Exhausted`] where they are too much for one answer.
    pub async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, Error> {
        let mut answers = vec![None; keys.len()];
        let columns = columns("NULL::timestamptz");
        let (query, parameters) = match keys.as_slice() {
            // Lists are planned anew each time, which costs several times what the look-up of one record does.
            [key] => {
                let (record_type, id) = key.stored();
                let query = format!(
                    "SELECT {columns}, 1::bigint FROM pomerium.records r {EXACT} WHERE r.type = $1 AND r.id = $2 AND {WRITTEN}"
                );
                (query, vec![Value::Text(record_type), Value::Text(id)])
            }
            keys => {
                let query = format!(
                    "SELECT {columns}, k.place FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(type, id, place) \
                     CROSS JOIN LATERAL (SELECT * FROM pomerium.records r WHERE r.type = k.type AND r.id = k.id OFFSET 0) r {EXACT} \
                     WHERE {WRITTEN}"
                );
                (query, keys_as_parameters(keys))
            }
        };
        let mut rows = self.run(&query, parameters).await?;
        let records = self.records(&mut rows)?;
        for (record, mut row) in records.into_iter().zip(rows) {
            // They count from 1.
            let place = usize::try_from(row.number()?.saturating_sub(1)).unwrap_or(usize::MAX);
            if let Some(answer) = answers.get_mut(place) {
                *answer = Some(record);
            }
        }
        Ok(answers)
    }

    /// Reads live records by key, page by page.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn scan(&self, request: ScanRequest) -> Result<ScanPage, Error> {
        let mut parameters = Parameters::default();
        let of_type = match &request.record_type {
            Some(record_type) => {
                let record_type = parameters.add(Value::Text(text::store(record_type)));
                format!("r.type COLLATE \"C\" = {record_type}")
            }
            None => "true".to_owned(),
        };
        let mut within = format!("{of_type} AND {WRITTEN}");
        if let Some(after) = request.after {
            let is_within_type = request.record_type.as_ref() == Some(&after.record_type);
            let (record_type, id) = after.stored();
            let id = parameters.add(Value::Text(id));
            // Of a pair the server would compare the type alone to find where to begin, and walk to the id from there.
            within.push_str(&if is_within_type {
                format!(" AND r.id COLLATE \"C\" > {id}")
            } else {
                let record_type = parameters.add(Value::Text(record_type));
                format!(" AND (r.type COLLATE \"C\", r.id COLLATE \"C\") > ({record_type}, {id})")
            });
        }
        let found = match (request.hint, &request.record_type) {
            (Some(Hint::Network(network)), _) => {
                let network = parameters.add(Value::Text(network));
                Some(format!(
                    "SELECT r.* FROM pomerium.records r WHERE {of_type} AND r.index_cidr >>= {network}::inet"
                ))
            }
            (Some(Hint::Field { path, value }), Some(record_type)) => {
                field::select(&self.data, record_type, &path, &value, &mut parameters)
            }
            (Some(Hint::Field { .. }) | None, _) => None,
        };
        let by_key = "r.type COLLATE \"C\", r.id COLLATE \"C\"";
        let (from, condition, order, more) = match (found, &request.record_type, request.condition) {
            // Found by the hint before anything else: a planner that expects many of them would rather walk through all records
            // in the order of the page, and meet the few that there are at the end.
            (Some(found), ..) => {
                let from = format!("(WITH found AS MATERIALIZED ({found}) SELECT * FROM found) r");
                (from, within, by_key, "false")
            }
            (None, Some(record_type), Some(condition)) => {
                let condition = field::walk(record_type, condition, &mut parameters);
                let condition = format!("({condition} OR {})", window::IS_LAST);
                (window::select(&within), condition, window::ORDER, window::IS_LAST)
            }
            (None, ..) => ("pomerium.records r".to_owned(), within, by_key, "false"),
        };
        let selection = Selection {
            from: &from,
            condition: &condition,
            order,
            deleted_at: "NULL::timestamptz",
            more,
        };
        let bounds = Bounds::new(request.max_records, request.max_bytes);
        let (place, page) = self.page(&selection, bounds, parameters, Patience::Short).await?;
        Ok(ScanPage {
            records: page.records,
            more: page.more,
            position: place.position,
        })
    }

    /// Reads the change log, page by page, up to the horizon.
    ///
    /// # Errors
    ///
    /// [`Error::Pruned`] where a change after the one asked for may be gone.
    pub async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, Error> {
        let mut parameters = Parameters::default();
        let after = parameters.add(Value::Integer(signed(request.after)));
        let mut condition = format!("r.version > {after}");
        if let Some(record_type) = &request.record_type {
            let record_type = parameters.add(Value::Text(text::store(record_type)));
            condition.push_str(&format!(" AND r.type = {record_type}"));
        }
        let selection = Selection {
            from: "pomerium.record_changes r",
            condition: &condition,
            order: "r.version",
            deleted_at: "r.deleted_at",
            more: "false",
        };
        let bounds = Bounds::new(request.max_records, request.max_bytes);
        let (place, mut page) = self.page(&selection, bounds, parameters, Patience::Long).await?;
        let position = place.position;
        let mut through = request.after;
        if request.after < position.latest_version {
            if place.pruned > request.after {
                return Err(Error::Pruned(place.pruned));
            }
            let is_seen = |record: &Record| record.version <= position.latest_version;
            let seen = page.records.partition_point(is_seen);
            let more = page.more && seen == page.records.len();
            page.records.truncate(seen);
            through = match page.records.last() {
                Some(last) if more => last.version,
                _ => position.latest_version,
            };
        } else {
            page.records.clear();
        }
        Ok(ChangesPage {
            records: page.records,
            through,
            position,
        })
    }

    /// How many records there are, of a type or of all.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn count(&self, record_type: Option<String>) -> Result<u64, Error> {
        let rows = match record_type {
            Some(record_type) => {
                let count = format!("SELECT count(*) FROM pomerium.records r WHERE r.type = $1 AND {WRITTEN}");
                self.run(&count, vec![Value::Text(text::store(&record_type))]).await?
            }
            None => {
                let count = format!("SELECT count(*) FROM pomerium.records r WHERE {WRITTEN}");
                self.run(&count, Vec::new()).await?
            }
        };
        Ok(first(rows)?.count()?)
    }

    /// The types that there are records of.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn list_types(&self) -> Result<Vec<String>, Error> {
        let list = format!(
            "WITH {TYPES} SELECT t.type FROM types t WHERE EXISTS ( \
               SELECT FROM pomerium.records r WHERE r.type = t.type COLLATE \"default\" AND {WRITTEN}) ORDER BY t.type COLLATE \"C\""
        );
        let mut types = Vec::new();
        for mut row in self.run(&list, Vec::new()).await? {
            types.extend(row.text()?.map(text::load));
        }
        Ok(types)
    }
}

/// The types and the ids of keys, as two lists.
pub(crate) fn keys_as_parameters<'k>(keys: impl IntoIterator<Item = &'k Key>) -> Vec<Value> {
    let (types, ids) = keys
        .into_iter()
        .map(Key::stored)
        .map(|(record_type, id)| (Some(record_type), Some(id)))
        .unzip();
    vec![Value::Texts(types), Value::Texts(ids)]
}
