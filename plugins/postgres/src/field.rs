//! Finding records by a field's value in the JSON that the database keeps.
//!
//! An index over that JSON is right whoever has written the record, and whatever the options were at the time. Each type that has
//! indexable fields has one, for all of its fields; others, such as sessions, do not pay for it. What a filter
//! compares is the host's text of a field, though, and JSON says some values in another way, or not at all: numbers,
//! `false`, whatever has its default. So a field is looked up by the database only where the two are the same, which is tried
//! out on the value asked for. Otherwise all records of the type are read, which is slower and never wrong.
//!
//! JSON says nothing of data that it could not say when it was written, and little of data of another type than its record's.
//! Such records are always among those that are found: the condition is [`OPAQUE`], and an index of its own finds them.

use crate::database::{Data, Database, Query, Session, Value};
use crate::json::quoted;
use crate::store::{Error, Failed, Store};
use crate::text;

/// Most types that have an index: each is looked at by every write.
const INDEXES: u64 = 64;

/// What the names of indexes begin with.
const NAME: &str = "host_fields_";

/// The condition on records whose JSON does not tell their fields. The index on them has the same, word for word.
///
/// It compares a number, since of a comparison for equality the planner expects that few rows meet it, and of one for anything
/// else that nearly all do, so that it would read the whole table.
pub(crate) const OPAQUE: &str =
    "CASE WHEN r.data ->> '@type' = r.type AND r.data - '@type' <> '{}'::jsonb THEN 0 ELSE 1 END = 1";

/// A condition in the language of JSON paths that all records of a type meet whose field has the value, but for those that are
/// opaque; none where JSON does not tell.
pub(crate) fn condition(data: &impl Data, record_type: &str, path: &str, value: &str) -> Option<String> {
    // A dot may be part of a map's key, and then JSON has the value in several places.
    if path.contains('.') || value.is_empty() {
        return None;
    }
    let document = |name: &str, value: &str| {
        let (record_type, name) = (quoted(record_type), quoted(name));
        format!("{{\"@type\":{record_type},{name}:{value}}}")
    };
    let value = quoted(value);
    let list = format!("[{value}]");
    let nested = format!("[{list}]");
    let mut read = data.read_json([&value, &list, &nested].map(|value| document(path, value)).into());
    // What takes a list of lists is JSON itself, in which a value may be anywhere and of any kind.
    if read.pop()?.is_ok() {
        return None;
    }
    let read: Vec<_> = read.into_iter().flatten().collect();
    let written: Vec<_> = data.to_json(read).into_iter().flatten().collect();
    let name = [camel_case(path), path.to_owned()].into_iter().find(|name| {
        written
            .iter()
            .any(|written| *written == document(name, &value) || *written == document(name, &list))
    })?;
    // It looks into lists by itself.
    Some(format!("$.{} == {value}", quoted(&name)))
}

/// A type as a constant in a statement: an index of that type alone is used where the statement names the type.
pub(crate) fn literal(record_type: &str) -> String {
    let stored = text::store(record_type);
    format!("E'{}'", stored.replace('\\', "\\\\").replace('\'', "''"))
}

/// The name of a type's index; FNV-1a, which is the same everywhere.
fn index_name(record_type: &str) -> String {
    let digest = record_type.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{NAME}{digest:016x}")
}

impl<D: Database, J: Data> Store<D, J> {
    /// Makes the index of a type's fields where there is none. Without it they are found too, by reading more.
    pub(crate) async fn index_fields(&self, record_type: &str) {
        if let Err(error) = self.try_index_fields(record_type).await {
            self.database.warn(&format!(
                "the fields of a type are not indexed, so that looking for them reads all of its records ({record_type:?}): {error}"
            ));
        }
    }

    async fn try_index_fields(&self, record_type: &str) -> Result<(), Error> {
        let name = index_name(record_type);
        let query = "SELECT to_regclass('pomerium.' || $1::text) IS NOT NULL, \
            (SELECT count(*) FROM pg_catalog.pg_indexes WHERE schemaname = 'pomerium' AND starts_with(indexname, $2))";
        let parameters = vec![Value::Text(name.clone()), Value::Text(NAME.to_owned())];
        let mut row = self.one(query, parameters).await?;
        let (exists, indexes) = (row.boolean()?, row.count()?);
        if exists {
            return Ok(());
        }
        if indexes >= INDEXES {
            return Err(Error::Exhausted(format!("{INDEXES} types have an index already")));
        }
        // Without a list of what is still to be indexed, so that no reader pays for writers.
        let create = format!(
            "CREATE INDEX IF NOT EXISTS {name} ON pomerium.records USING gin (data jsonb_path_ops) WITH (fastupdate = off) \
             WHERE type = {}",
            literal(record_type)
        );
        self.alter(&create).await
    }

    /// Removes the index of a type's fields. Left, it costs writers a little.
    pub(crate) async fn forget_fields(&self, record_type: &str) {
        if let Err(error) = self.try_forget_fields(record_type).await {
            self.database.warn(&format!(
                "the index of the fields of a type that has none any more is left ({record_type:?}): {error}"
            ));
        }
    }

    async fn try_forget_fields(&self, record_type: &str) -> Result<(), Error> {
        let name = index_name(record_type);
        let query = "SELECT to_regclass('pomerium.' || $1::text) IS NOT NULL";
        if self.one(query, vec![Value::Text(name.clone())]).await?.boolean()? {
            self.alter(&format!("DROP INDEX IF EXISTS pomerium.{name}")).await?;
        }
        Ok(())
    }

    /// Changes an index, among hosts one at a time. Whoever holds the table for long is not waited for, since others would wait
    /// behind this.
    async fn alter(&self, statement: &str) -> Result<(), Error> {
        let call = async || -> Result<(), Failed> {
            let transaction = self.begin_writing().await?;
            for statement in ["SET LOCAL lock_timeout = '5s'", statement] {
                transaction.run(Query::new(statement, Vec::new())).await?;
            }
            self.database.commit(transaction).await?;
            Ok(())
        };
        self.retried(call).await
    }
}

/// A field's name as JSON has it, unless its author has chosen another.
fn camel_case(name: &str) -> String {
    let mut camel = String::with_capacity(name.len());
    let mut upper = false;
    for character in name.chars() {
        if character == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            camel.push(character.to_ascii_uppercase());
        } else {
            camel.push(character);
        }
    }
    camel
}
