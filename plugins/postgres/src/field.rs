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

use crate::database::{Data, Database, Failure, Query, Session, Value};
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

/// What is done to the indexes of a type at once.
#[derive(Clone, Copy)]
enum Step {
    /// Makes those of fields that have none. Only writers wait behind it, as they do while it is made. It is longer than the server
    /// takes to see that an autovacuum is in the way, which it ends then (`deadlock_timeout`, 1 s).
    Make,
    /// Drops those that no field has any more. Whoever reads a record waits behind it, at all hosts and of Pomerium's processes, so
    /// that it gives up soon.
    Drop,
}

impl Step {
    /// How long whoever holds the table is waited for.
    fn patience(self) -> &'static str {
        match self {
            Self::Make => "SET LOCAL lock_timeout = '2s'",
            Self::Drop => "SET LOCAL lock_timeout = '200ms'",
        }
    }
}

impl<D: Database, J: Data> Store<D, J> {
    /// Makes indexes of a type's indexable fields where there are none, and removes those of fields that are not among them.
    /// Without one, records are found too, by reading more.
    pub(crate) async fn index_fields(&self, record_type: &str) {
        for step in [Step::Make, Step::Drop] {
            if let Err(error) = self.alter_indexes(record_type, step).await {
                let effect = match step {
                    Step::Make => "a field has no index, so that looking for it may read all records of its type",
                    Step::Drop => {
                        "an index of a field that is none of the indexable ones any more is still there, and costs writes"
                    }
                };
                self.database.warn(&format!(
                    "{effect} ({record_type:?}); the next change of the type's options, or the next start of a host, tries again: {error}"
                ));
            }
        }
    }

    /// Whether a type's indexes are as they should be, by a look that keeps no writer waiting.
    pub(crate) async fn has_its_indexes(&self, record_type: &str) -> Result<bool, Error> {
        for step in [Step::Make, Step::Drop] {
            let (statements, is_full) = self.statements(&self.database, record_type, step).await?;
            if is_full || !statements.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes a step, among hosts one at a time. What holds the table for longer than the step waits is not tried again.
    async fn alter_indexes(&self, record_type: &str, step: Step) -> Result<(), Error> {
        let call = async || -> Result<(), Failed> {
            let transaction = self.begin_writing().await?;
            transaction.run(Query::new(step.patience(), Vec::new())).await?;
            let (statements, is_full) = self.statements(&transaction, record_type, step).await?;
            for statement in statements {
                if let Err(failure) = transaction.run(Query::new(statement, Vec::new())).await {
                    return Err(if failure.is_of_a_lock() {
                        Failed::Store(failure.into())
                    } else {
                        failure.into()
                    });
                }
            }
            self.database.commit(transaction).await?;
            if is_full {
                return Err(Error::Exhausted(format!("{INDEXES} fields have an index already")).into());
            }
            Ok(())
        };
        self.retried(call).await
    }

    /// What is to be run for a step; and whether there is no room for all of it. Another host may have set other options than
    /// this one: those count that are there while nobody else alters indexes.
    async fn statements(
        &self,
        session: &impl Session,
        record_type: &str,
        step: Step,
    ) -> Result<(Vec<String>, bool), Failure> {
        let query = "SELECT (SELECT fields FROM pomerium.record_options WHERE type = $1), \
            ARRAY(SELECT indexname::text FROM pg_catalog.pg_indexes WHERE schemaname = 'pomerium' AND starts_with(indexname::text, $2))";
        let parameters = vec![Value::Text(text::store(record_type)), Value::Text(NAME.to_owned())];
        let rows = session.run(Query::new(query, parameters)).await?;
        let (mut fields, mut there) = (Vec::new(), Vec::new());
        for mut row in rows {
            fields = row.texts()?.into_iter().map(text::load).collect();
            there = row.texts()?;
        }
        let of_type = format!("{NAME}{}_", text::digest(record_type));
        let mut wanted: Vec<(String, String)> = fields
            .iter()
            .filter_map(|field| name_in_json(&self.data, record_type, field))
            .map(|name| (format!("{of_type}{}", text::digest(&name)), name))
            .collect();
        wanted.sort();
        wanted.dedup();
        let is_surplus =
            |index: &&String| index.starts_with(&of_type) && !wanted.iter().any(|(wanted, _)| wanted == *index);
        let surplus: Vec<_> = there.iter().filter(is_surplus).collect();
        if matches!(step, Step::Drop) {
            let drop = |index: &String| format!("DROP INDEX IF EXISTS pomerium.{index}");
            return Ok((surplus.into_iter().map(drop).collect(), false));
        }
        let room = INDEXES.saturating_sub(there.len() - surplus.len());
        let mut missing: Vec<_> = wanted.iter().filter(|(index, _)| !there.contains(index)).collect();
        let is_full = missing.len() > room;
        missing.truncate(room);
        let make = |(index, name): &(String, String)| {
            // Without a list of what is still to be indexed, so that no reader pays for writers.
            format!(
                "CREATE INDEX IF NOT EXISTS {index} ON pomerium.records USING gin ((data -> {}::text) jsonb_path_ops) \
                 WITH (fastupdate = off) WHERE type = {}",
                literal(name),
                literal(record_type)
            )
        };
        Ok((missing.into_iter().map(make).collect(), is_full))
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
