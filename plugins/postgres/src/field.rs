//! Finding records by a field's value in the JSON that the database keeps.
//!
//! An index over that JSON is right whoever has written the record, and whatever the options were at the time. Each indexable
//! field of a type has one of its own, over what JSON has under the field's name; other types do not pay for it, and nor do
//! other fields. What a filter compares is the host's text of a field, though, and JSON says some values in another way, or
//! not at all: numbers, `false`, whatever has its default. So a field is looked up by the database only where the two are the
//! same, which is tried out on the value asked for. Otherwise the records of the type are walked through, which is slower and
//! never wrong.
//!
//! JSON says nothing of data that it could not say when it was written, and little of data of another type than its record's.
//! Such records are always among those that are found: the condition is [`OPAQUE`], and an index of its own finds them. Of a
//! walk, which reads each record in any case, [`walk`] says the same in a cheaper way.
//!
//! # Which index
//!
//! GIN over `data -> 'name'` has an entry for a value and one for each value of a list, so that nobody has to know here which
//! of the two a field is; its entries are numbers made of the values, so that a value may be of any length. It costs a write
//! as much as a B-tree over `data ->> 'name'` does, and a twentieth of one over whole documents.

use crate::database::{Data, Database, Query, Session, Value};
use crate::json::quoted;
use crate::page::Parameters;
use crate::store::{Error, Failed, Store};
use crate::text;

/// Most fields that have an index, of all types: each index of a type is looked after by every write of the type, and the
/// planner looks at all of them.
const INDEXES: usize = 64;

/// What the names of indexes begin with.
const NAME: &str = "host_field_";

/// The condition on records whose JSON does not tell their fields: what is no object, which somebody has written by hand, among
/// them, of which no member can be taken away. The index on them has the same, word for word.
///
/// It compares a number, since of a comparison for equality the planner expects that few rows meet it, and of one for anything
/// else that nearly all do, so that it would read the whole table.
pub(crate) const OPAQUE: &str = "CASE WHEN jsonb_typeof(r.data) <> 'object' THEN 1 \
    WHEN r.data ->> '@type'::text = r.type AND r.data - '@type'::text <> '{}'::jsonb THEN 0 ELSE 1 END = 1";

/// Selects the records of a type whose field has the value, and those that are opaque; none where JSON does not tell.
///
/// Each of the two has an index of its own, and a part of its own: of both in one condition a database that has no statistics
/// yet would rather read all records of the type.
pub(crate) fn select(
    data: &impl Data,
    record_type: &str,
    path: &str,
    value: &str,
    parameters: &mut Parameters,
) -> Option<String> {
    // A dot may be part of a map's key, and then JSON has the value in several places.
    if path.contains('.') || value.is_empty() {
        return None;
    }
    let value = quoted(value);
    let list = format!("[{value}]");
    let nested = format!("[{list}]");
    let mut read = data.read_json(
        [&value, &list, &nested]
            .map(|value| document(record_type, path, value))
            .into(),
    );
    // What takes a list of lists is JSON itself, in which a value may be anywhere and of any kind.
    if read.pop()?.is_ok() {
        return None;
    }
    let read: Vec<_> = read.into_iter().flatten().collect();
    let written: Vec<_> = data.to_json(read).into_iter().flatten().collect();
    let name = names(path).into_iter().find(|name| {
        let same = |value: &str| {
            let document = document(record_type, name, value);
            written.contains(&document)
        };
        same(&value) || same(&list)
    })?;
    let value = parameters.add(Value::Text(value));
    let of_type = parameters.add(Value::Text(text::store(record_type)));
    // A list holds a value as the value itself does.
    Some(format!(
        "SELECT r.* FROM pomerium.records r WHERE r.type = {} AND r.data -> {}::text @> {value}::jsonb AND NOT ({OPAQUE}) \
         UNION ALL SELECT r.* FROM pomerium.records r WHERE r.type COLLATE \"C\" = {of_type} AND {OPAQUE}",
        literal(record_type),
        literal(&name)
    ))
}

/// The condition of a walk on records of a type that meet one in the language of JSON paths, or are opaque. Of a record that is
/// neither, the database looks for a path, takes one value and compares how many there are; [`OPAQUE`] would make a copy of
/// each document.
pub(crate) fn walk(record_type: &str, condition: String, parameters: &mut Parameters) -> String {
    let record_type = text::store(record_type);
    let nothing_else = parameters.add(Value::Text(format!("{{\"@type\":{}}}", quoted(&record_type))));
    let record_type = parameters.add(Value::Text(record_type));
    let condition = parameters.add(Value::Text(condition));
    format!(
        "(r.data @@ {condition}::jsonpath OR r.data ->> '@type'::text IS DISTINCT FROM {record_type} \
         OR r.data = {nothing_else}::jsonb)"
    )
}

/// A type or a name as a constant in a statement: an index of that type alone is used where the statement names the type.
fn literal(text: &str) -> String {
    let stored = text::store(text);
    format!("E'{}'", stored.replace('\\', "\\\\").replace('\'', "''"))
}

fn document(record_type: &str, name: &str, value: &str) -> String {
    format!("{{\"@type\":{},{}:{value}}}", quoted(record_type), quoted(name))
}

/// How JSON may have a field's name.
fn names(path: &str) -> [String; 2] {
    [camel_case(path), path.to_owned()]
}

/// The name under which JSON has a field whose values are texts, in lists or not; none where there is no such field. It is tried
/// out, since only the host knows the type.
fn name_in_json(data: &impl Data, record_type: &str, path: &str) -> Option<String> {
    /// What texts, numbers that are written as texts, bytes, times, spans and enums take, and write as texts.
    const VALUES: &[&str] = &["\"aGk=\"", "\"1\"", "\"1970-01-01T00:00:01Z\"", "\"1s\"", "1", "2"];
    if path.contains('.') {
        return None;
    }
    let documents = VALUES
        .iter()
        .flat_map(|value| [(*value).to_owned(), format!("[{value}]")]);
    let read = data.read_json(documents.map(|value| document(record_type, path, &value)).collect());
    let written = data.to_json(read.into_iter().flatten().collect());
    let written: Vec<_> = written.into_iter().flatten().collect();
    names(path).into_iter().find(|name| {
        let begin = document(record_type, name, "");
        let begin = begin.trim_end_matches('}');
        let mut values = written.iter().filter_map(|written| written.strip_prefix(begin));
        values.any(|value| value.starts_with(['"', '[']) && value.contains('"'))
    })
}

impl<D: Database, J: Data> Store<D, J> {
    /// Makes indexes of a type's fields where there are none, and removes those of fields that are not among them. Without
    /// one, records are found too, by reading more.
    pub(crate) async fn index_fields(&self, record_type: &str, fields: &[String]) {
        if let Err(error) = self.try_index_fields(record_type, fields).await {
            self.database.warn(&format!(
                "the indexes of a type's fields are not as they should be, so that looking for a field may read all of its \
                 records ({record_type:?}): {error}"
            ));
        }
    }

    async fn try_index_fields(&self, record_type: &str, fields: &[String]) -> Result<(), Error> {
        let of_type = format!("{NAME}{}_", text::digest(record_type));
        let mut wanted: Vec<(String, String)> = Vec::new();
        for field in fields {
            if let Some(name) = name_in_json(&self.data, record_type, field) {
                wanted.push((format!("{of_type}{}", text::digest(&name)), name));
            }
        }
        wanted.sort();
        wanted.dedup();
        let query = "SELECT ARRAY(SELECT indexname::text FROM pg_catalog.pg_indexes \
            WHERE schemaname = 'pomerium' AND starts_with(indexname::text, $1))";
        let there = self.one(query, vec![Value::Text(NAME.to_owned())]).await?.texts()?;
        let mut statements = Vec::new();
        for index in there.iter().filter(|index| index.starts_with(&of_type)) {
            if !wanted.iter().any(|(wanted, _)| wanted == index) {
                statements.push(format!("DROP INDEX IF EXISTS pomerium.{index}"));
            }
        }
        let kept = there.len() - statements.len();
        wanted.retain(|(index, _)| !there.contains(index));
        let room = INDEXES.saturating_sub(kept);
        for (index, name) in wanted.iter().take(room) {
            // Without a list of what is still to be indexed, so that no reader pays for writers.
            statements.push(format!(
                "CREATE INDEX IF NOT EXISTS {index} ON pomerium.records USING gin ((data -> {}::text) jsonb_path_ops) \
                 WITH (fastupdate = off) WHERE type = {}",
                literal(name),
                literal(record_type)
            ));
        }
        if !statements.is_empty() {
            self.alter(&statements).await?;
        }
        if wanted.len() > room {
            return Err(Error::Exhausted(format!("{INDEXES} fields have an index already")));
        }
        Ok(())
    }

    /// Changes indexes, among hosts one at a time. Whoever holds the table for long is not waited for, since others would wait
    /// behind this.
    async fn alter(&self, statements: &[String]) -> Result<(), Error> {
        let call = async || -> Result<(), Failed> {
            let transaction = self.begin_writing().await?;
            transaction
                .run(Query::new("SET LOCAL lock_timeout = '5s'", Vec::new()))
                .await?;
            for statement in statements {
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
