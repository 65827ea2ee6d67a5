//! Where the JSON form of record data has the values at a path.
//!
//! [`path`](super::path) says which values those are, and reads them from encoded messages. A database that keeps the JSON
//! cannot do that, but it can look at places in it, which are named here in the path language of SQL/JSON (lax mode). Wherever
//! the two could differ, the places are more than enough, or none are named.

use super::Descriptors;
use super::any::message_name;
use super::schema::{Field, Form, Kind, Message, MessageId, Shape};
use super::wire::MAX_DEPTH;

/// Most places that a path may lead to, since the keys of maps may hold the dots that join a path.
const MAX_PLACES: usize = 16;

/// A place, or several alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// A path that leads to the JSON values.
    pub path: String,
    /// What they are.
    pub form: PlaceForm,
    /// What there is where JSON leaves the field out.
    pub absence: Option<Absence>,
}

/// How JSON writes the text that a filter compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlaceForm {
    /// As a string that is the text.
    Text,
    /// As a string that is the text, which is a time in UTC.
    Time,
    /// As a string that is the text, or as a number where an enum's value has no name.
    Enum,
    /// As `true` or `false`.
    Bool,
    /// As a number, of which the text is the decimal form.
    Integer,
    /// As a number, of which the text is what [`number_text`](super::number_text) makes, or as a word.
    Double,
    /// As any plain value of JSON. There may be more values at the place than the filter compares.
    Json,
}

/// What a field that JSON leaves out stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Absence {
    /// A path to the messages that lack the field.
    pub path: String,
    /// The text of its default. An empty one is a value only where an odd encoder has written it all the same.
    pub default: String,
}

impl Descriptors {
    /// The places of the values at a path, in data of a record type whose type URL is the same; none at all where the path
    /// never has a value. `None` where they cannot be told.
    pub(crate) fn places(&self, record_type: &str, path: &str) -> Option<Vec<Place>> {
        // A path has no more names than data has levels; and databases keep no NUL, not even in the text of a condition.
        if path.split('.').count() > MAX_DEPTH || path.contains('\0') {
            return None;
        }
        let (id, message) = self.schema().find(message_name(record_type))?;
        let base = match message.form {
            Form::Plain => "$".to_owned(),
            _ => below("$", "value"),
        };
        let mut places = Vec::new();
        let finder = Finder { descriptors: self };
        finder.message(id, base, path, &mut places)?;
        Some(places)
    }
}

struct Finder<'d> {
    descriptors: &'d Descriptors,
}

impl Finder<'_> {
    fn message(&self, id: MessageId, base: String, rest: &str, places: &mut Vec<Place>) -> Option<()> {
        let message = self.descriptors.schema().message(id)?;
        match message.form {
            Form::Plain if !rest.is_empty() => {}
            Form::Plain | Form::MapEntry | Form::Any => return None,
            // A value of it may be anywhere: lists have no names there, however deep they are within each other, so that names
            // could be looked for only at every depth. One such look within another would cost a database what the data's
            // depth multiplies, with each name once more.
            Form::Struct | Form::Value | Form::ListValue => {
                places.push(place(format!("{base}.**"), PlaceForm::Json));
                return Some(());
            }
            Form::Timestamp | Form::Duration | Form::Wrapper if !rest.is_empty() => return self.inside(message, rest),
            Form::Timestamp => {
                places.push(place(base, PlaceForm::Time));
                return Some(());
            }
            Form::Duration => {
                places.push(place(base, PlaceForm::Text));
                return Some(());
            }
            Form::Wrapper => {
                let form = form(message.field(1)?.kind, message)?;
                places.push(place(base, form));
                return Some(());
            }
        }
        // JSON has it as one string.
        if message.descriptor.full_name() == "google.protobuf.FieldMask" {
            return None;
        }
        let (name, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let Some(field) = message.field_by_name(name) else {
            return Some(());
        };
        let key = message.descriptor.get_field(field.number)?.json_name().to_owned();
        let path = below(&base, &key);
        match (field.shape, field.kind) {
            (Shape::Map, Kind::Message(entry)) => self.map(entry, &path, rest, places),
            (Shape::List, Kind::Message(id)) => self.message(id, path + "[*]", rest, places),
            (Shape::Singular, Kind::Message(id)) => self.message(id, path, rest, places),
            // There is nothing inside of a plain value.
            _ if !rest.is_empty() => Some(()),
            (Shape::Singular, kind) => {
                let default = self.descriptors.schema().default_text(kind)?.into_owned();
                places.push(Place {
                    form: form(kind, message)?,
                    absence: (!field.presence).then(|| Absence {
                        path: format!("{base} ? (!exists({}))", below("@", &key)),
                        default,
                    }),
                    path,
                });
                Some(())
            }
            (_, kind) => {
                places.push(place(path + "[*]", form(kind, message)?));
                Some(())
            }
        }
    }

    /// A path that goes on into what JSON writes as one value. A field of that name has a value all the same.
    fn inside(&self, message: &Message, rest: &str) -> Option<()> {
        let name = rest.split_once('.').map_or(rest, |(name, _)| name);
        message.field_by_name(name).is_none().then_some(())
    }

    fn map(&self, entry: MessageId, base: &str, rest: &str, places: &mut Vec<Place>) -> Option<()> {
        let entry = self.descriptors.schema().message(entry)?;
        let value: &Field = entry.field(2)?;
        let mut one = |path: String, rest: &str| match value.kind {
            Kind::Message(id) => self.message(id, path, rest, places),
            kind if rest.is_empty() => {
                places.push(place(path, form(kind, entry)?));
                Some(())
            }
            _ => Some(()),
        };
        if rest.is_empty() {
            return one(format!("{base}.*"), "");
        }
        for (key, rest) in splits(rest).take(MAX_PLACES + 1) {
            one(below(base, key), rest)?;
        }
        (splits(rest).count() <= MAX_PLACES && places.len() <= MAX_PLACES).then_some(())
    }
}

fn place(path: String, form: PlaceForm) -> Place {
    Place {
        path,
        form,
        absence: None,
    }
}

/// The path to what is under a key.
fn below(base: &str, key: &str) -> String {
    format!("{base}.{}", literal(key))
}

/// A text as a string of the path language, which takes what JSON does.
pub(crate) fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The keys that a path may begin with, which may hold dots, each with the rest of the path.
fn splits(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let dots = path.match_indices('.').map(|(place, _)| place);
    dots.filter_map(move |place| Some((path.get(..place)?, path.get(place + 1..)?)))
        .chain([(path, "")])
}

/// How JSON writes values of this kind; none where that is not certain.
fn form(kind: Kind, message: &Message) -> Option<PlaceForm> {
    Some(match kind {
        Kind::Bool => PlaceForm::Bool,
        Kind::Int32 | Kind::Uint32 | Kind::Sint32 | Kind::Fixed32 | Kind::Sfixed32 => PlaceForm::Integer,
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => PlaceForm::Text,
        Kind::String | Kind::Bytes => PlaceForm::Text,
        Kind::Double => PlaceForm::Double,
        Kind::Enum(_) => {
            // Of several names for one number either may be written, and JSON's null is an enum of its own.
            let odd = message.descriptor.fields().any(|field| match field.kind() {
                prost_reflect::Kind::Enum(values) => {
                    let mut numbers: Vec<_> = values.values().map(|value| value.number()).collect();
                    numbers.sort_unstable();
                    numbers
                        .windows(2)
                        .any(|pair| matches!(pair, [one, other] if one == other))
                        || values.full_name() == "google.protobuf.NullValue"
                }
                _ => false,
            });
            if odd {
                return None;
            }
            PlaceForm::Enum
        }
        // Its text has fewer digits than its number.
        Kind::Float | Kind::Message(_) => return None,
    })
}
