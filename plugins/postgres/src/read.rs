//! Reading records: by key, page by page, and from the change log.

use crate::database::{Data, Database, Row, Value};
use crate::field::{self, OPAQUE};
use crate::record::{Key, Position, Record, SIZE, columns};
use crate::store::{Error, Store, first, signed, unsigned};
use crate::text;

/// Pages are no larger than this, whatever is asked for.
const PAGE_BYTES: u64 = 4 << 20;

/// Nor do they hold more records.
const PAGE_RECORDS: u32 = 4096;

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

/// Parameters, numbered as they come.
#[derive(Default)]
pub(crate) struct Parameters(Vec<Value>);

impl Parameters {
    pub(crate) fn add(&mut self, value: Value) -> String {
        self.0.push(value);
        format!("${}", self.0.len())
    }

    pub(crate) fn into_values(self) -> Vec<Value> {
        self.0
    }
}

/// A statement that gives rows within bounds, the first one in any case. `rows` selects them with `n`, their number,
/// `upto`, the bytes up to and with each, and `total`, how many there are; it must be limited to one more than may come.
pub(crate) fn bounded(rows: &str, max_records: &str, max_bytes: &str) -> String {
    format!("SELECT * FROM ({rows}) q WHERE n = 1 OR (n <= {max_records} AND upto <= {max_bytes}) ORDER BY n")
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
        let exact = "LEFT JOIN pomerium.host_exact d ON d.version = r.version";
        let (query, parameters) = match keys.as_slice() {
            // Lists are planned anew each time, which costs several times what the look-up of one record does.
            [key] => {
                let (record_type, id) = key.stored();
                let query = format!(
                    "SELECT {columns}, 1::bigint FROM pomerium.records r {exact} WHERE r.type = $1 AND r.id = $2"
                );
                (query, vec![Value::Text(record_type), Value::Text(id)])
            }
            keys => {
                let query = format!(
                    "SELECT {columns}, k.place FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(type, id, place) \
                     JOIN pomerium.records r ON r.type = k.type AND r.id = k.id {exact}"
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
        let position = self.position().await?;
        let max_records = request.max_records.min(PAGE_RECORDS);
        let mut parameters = Parameters::default();
        let mut conditions = vec!["true".to_owned()];
        // What narrows it, and whether that says the type too.
        let (hint, says_type) = match (request.hint, &request.record_type) {
            (Some(Hint::Network(network)), _) => {
                let network = parameters.add(Value::Text(network));
                (Some(format!("r.index_cidr >>= {network}::inet")), false)
            }
            (Some(Hint::Field { path, value }), Some(record_type)) => {
                let found = field::condition(&self.data, record_type, &path, &value).map(|condition| {
                    let condition = parameters.add(Value::Text(condition));
                    let literal = field::literal(record_type);
                    format!("r.type = {literal} AND (r.data @@ {condition}::jsonpath OR {OPAQUE})")
                });
                let says_type = found.is_some();
                (found, says_type)
            }
            (Some(Hint::Field { .. }) | None, _) => (None, false),
        };
        // Said twice, a database that has no statistics yet would rather go by the type than by the field.
        if let (Some(record_type), false) = (&request.record_type, says_type) {
            let record_type = parameters.add(Value::Text(text::store(record_type)));
            conditions.push(format!("r.type COLLATE \"C\" = {record_type}"));
        }
        // Found by the hint before anything else: a planner that expects many of them would rather walk through all records in
        // the order of the page, and meet the few that there are at the end.
        let records = match hint {
            Some(hint) => {
                conditions.push(hint);
                let found = conditions.join(" AND ");
                conditions = vec!["true".to_owned()];
                format!(
                    "(WITH found AS MATERIALIZED (SELECT r.* FROM pomerium.records r WHERE {found}) SELECT * FROM found)"
                )
            }
            None => "pomerium.records".to_owned(),
        };
        if let Some(after) = request.after {
            let (record_type, id) = after.stored();
            let record_type = parameters.add(Value::Text(record_type));
            let id = parameters.add(Value::Text(id));
            conditions.push(format!(
                "(r.type COLLATE \"C\", r.id COLLATE \"C\") > ({record_type}, {id})"
            ));
        }
        let limit = parameters.add(Value::Integer(i64::from(max_records) + 1));
        let most = parameters.add(Value::Integer(max_records.into()));
        let bytes = parameters.add(Value::Integer(signed(request.max_bytes.min(PAGE_BYTES))));
        let page = format!(
            "SELECT r.* FROM {records} r WHERE {} ORDER BY r.type COLLATE \"C\", r.id COLLATE \"C\" LIMIT {limit}",
            conditions.join(" AND ")
        );
        let rows = format!(
            "SELECT {}, count(*) OVER () AS total, row_number() OVER w AS n, sum({SIZE}) OVER w AS upto \
             FROM ({page}) r LEFT JOIN pomerium.host_exact d ON d.version = r.version \
             WINDOW w AS (ORDER BY r.type COLLATE \"C\", r.id COLLATE \"C\")",
            columns("NULL::timestamptz")
        );
        let (records, mut rest) = self
            .page(&bounded(&rows, &most, &bytes), parameters.into_values())
            .await?;
        let total = match rest.first_mut() {
            Some(row) => row.count()?,
            None => 0,
        };
        Ok(ScanPage {
            more: u64::try_from(records.len()).unwrap_or(u64::MAX) < total,
            records,
            position,
        })
    }

    /// Records, and what follows their columns.
    pub(crate) async fn page(&self, query: &str, parameters: Vec<Value>) -> Result<(Vec<Record>, Vec<Row>), Error> {
        let mut rows = self.run(query, parameters).await?;
        let records = self.records(&mut rows)?;
        Ok((records, rows))
    }

    /// Reads the change log, page by page, up to the horizon.
    ///
    /// # Errors
    ///
    /// [`Error::Pruned`] where a change after the one asked for may be gone.
    pub async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, Error> {
        let position = self.position().await?;
        let caught_up = |through| ChangesPage {
            records: Vec::new(),
            through,
            position,
        };
        if request.after >= position.latest_version {
            return Ok(caught_up(request.after));
        }
        let max_records = request.max_records.min(PAGE_RECORDS);
        let mut parameters = Parameters::default();
        let after = parameters.add(Value::Integer(signed(request.after)));
        let horizon = parameters.add(Value::Integer(signed(position.latest_version)));
        let mut condition = format!("r.version > {after} AND r.version <= {horizon}");
        if let Some(record_type) = &request.record_type {
            let record_type = parameters.add(Value::Text(text::store(record_type)));
            condition.push_str(&format!(" AND r.type = {record_type}"));
        }
        let limit = parameters.add(Value::Integer(i64::from(max_records) + 1));
        let most = parameters.add(Value::Integer(max_records.into()));
        let bytes = parameters.add(Value::Integer(signed(request.max_bytes.min(PAGE_BYTES))));
        let page =
            format!("SELECT r.* FROM pomerium.record_changes r WHERE {condition} ORDER BY r.version LIMIT {limit}");
        let rows = format!(
            "SELECT {}, count(*) OVER () AS total, row_number() OVER w AS n, sum({SIZE}) OVER w AS upto \
             FROM ({page}) r LEFT JOIN pomerium.host_exact d ON d.version = r.version WINDOW w AS (ORDER BY r.version)",
            columns("r.deleted_at")
        );
        let (records, mut rest) = self
            .page(&bounded(&rows, &most, &bytes), parameters.into_values())
            .await?;
        let total = match rest.first_mut() {
            Some(row) => row.count()?,
            None => 0,
        };
        // Looked at after the records were read: what was there before is there in the page.
        self.expect_unpruned(request.after).await?;
        let more = u64::try_from(records.len()).unwrap_or(u64::MAX) < total;
        let through = match records.last() {
            Some(last) if more => last.version,
            _ => position.latest_version,
        };
        Ok(ChangesPage {
            records,
            through,
            position,
        })
    }

    /// Fails where changes after a version may be gone, of whatever type. `clear` leaves a mark, before which nothing counts.
    async fn expect_unpruned(&self, after: u64) -> Result<(), Error> {
        let query = "SELECT (SELECT min(version) FROM pomerium.record_changes), floor FROM pomerium.host_state LIMIT 1";
        let mut row = self.one(query, Vec::new()).await?;
        let (earliest, floor) = (row.integer()?, row.number()?);
        // Without any change there was nothing to prune: the newest is kept.
        let gone = earliest.map_or(0, |earliest| earliest.saturating_sub(1));
        if gone > floor && unsigned(gone) > after {
            return Err(Error::Pruned(unsigned(gone)));
        }
        Ok(())
    }

    /// How many records there are, of a type or of all.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn count(&self, record_type: Option<String>) -> Result<u64, Error> {
        let rows = match record_type {
            Some(record_type) => {
                let count = "SELECT count(*) FROM pomerium.records WHERE type COLLATE \"C\" = $1";
                self.run(count, vec![Value::Text(text::store(&record_type))]).await?
            }
            None => self.run("SELECT count(*) FROM pomerium.records", Vec::new()).await?,
        };
        Ok(first(rows)?.count()?)
    }

    /// The types that there are records of.
    ///
    /// # Errors
    ///
    /// What the database says.
    pub async fn list_types(&self) -> Result<Vec<String>, Error> {
        let list = format!("WITH {TYPES} SELECT type FROM types WHERE type IS NOT NULL ORDER BY type COLLATE \"C\"");
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
