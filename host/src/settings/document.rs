//! The configuration file: YAML, and therefore JSON too, in which every value knows its line.
//!
//! Values are taken as they are written: whether `5443` or `true` is a text or something else is for the setting to
//! say. Names count without regard to case, as they do for Pomerium. What cannot be read as settings at all is a
//! mistake with the place where it is.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr::{LoadableYamlNode as _, MarkedYaml, Marker, Scalar, YamlData};

use super::reader::Mistake;
use crate::file;

/// The most that a configuration file may hold, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// The deepest that values may be nested: what reads them calls itself for each level.
const DEPTH: usize = 256;

/// The name by which YAML merges one mapping into another.
const MERGE: &str = "<<";

/// A configuration file that was read.
pub(super) struct Document {
    /// By name in lower case.
    pub(super) entries: BTreeMap<String, Node>,
    /// The file, as it was named.
    pub(super) name: String,
    /// Whether users other than its owner can read it.
    pub(super) others_can_read: bool,
}

/// A value and where it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The file, the line and the column.
    pub(super) place: String,
    pub(super) value: Value,
}

/// What is written there.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, or `null`.
    Absent,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
    /// Something that is not what its tag says, such as `!!bool 3`, or has one that no setting has, such as `!!binary`. It is
    /// not as if nothing were there: each setting refuses it.
    Unreadable,
}

impl Value {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Unreadable => "a value that cannot be read as its tag says",
        }
    }
}

impl Document {
    /// Reads a configuration file.
    pub(super) fn read(path: &Path) -> Result<Self, Mistake> {
        let name = path.display().to_string();
        let contents = file::read(path, FILE_BYTES).map_err(|error| {
            mistake(
                name.clone(),
                error.to_string(),
                "name a configuration file that this process can read",
            )
        })?;
        let text = String::from_utf8(contents.bytes).map_err(|error| {
            let valid = error
                .as_bytes()
                .get(..error.utf8_error().valid_up_to())
                .unwrap_or_default();
            let line = valid.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
            mistake(
                format!("{name}:{line}"),
                "it is not UTF-8".to_owned(),
                "write it as UTF-8",
            )
        })?;
        let entries = parse(&name, &text)?;
        Ok(Self {
            entries,
            name,
            others_can_read: contents.others_can_read,
        })
    }
}

/// Reads a value that is written as YAML in one line, such as a list in an environment variable.
pub(super) fn inline(place: &str, text: &str) -> Result<Value, String> {
    let not_yaml = || "it is not a list as YAML or JSON has them".to_owned();
    if too_deep(text).is_some() {
        return Err(not_yaml());
    }
    let documents = MarkedYaml::load_from_str(text).map_err(|_| not_yaml())?;
    let characters: Vec<char> = text.chars().collect();
    let reader = Reader {
        name: place,
        characters: &characters,
    };
    let node = documents.first().ok_or_else(not_yaml)?;
    Ok(relocated(reader.node(node), place).value)
}

/// The same value, with one place for all of its parts.
fn relocated(node: Node, place: &str) -> Node {
    let value = match node.value {
        Value::List(parts) => Value::List(parts.into_iter().map(|part| relocated(part, place)).collect()),
        Value::Map(parts) => {
            let parts = parts.into_iter().map(|(name, part)| (name, relocated(part, place)));
            Value::Map(parts.collect())
        }
        other => other,
    };
    Node {
        place: place.to_owned(),
        value,
    }
}

fn mistake(setting: String, wrong: String, remedy: &'static str) -> Mistake {
    Mistake {
        setting,
        wrong,
        remedy: remedy.into(),
    }
}

fn parse(name: &str, text: &str) -> Result<BTreeMap<String, Node>, Mistake> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let whole = |wrong: &str, remedy| Err(mistake(name.to_owned(), wrong.to_owned(), remedy));
    if text.trim().is_empty() {
        return whole(
            "it is empty",
            "write settings such as `grpc_address: :5443`, or leave --config out",
        );
    }
    if let Some(line) = too_deep(text) {
        return Err(mistake(
            format!("{name}:{line}"),
            "it is nested too deeply".to_owned(),
            "write it with less indentation",
        ));
    }
    let characters: Vec<char> = text.chars().collect();
    let documents = MarkedYaml::load_from_str(text).map_err(|error| scan_mistake(name, &characters, &error))?;
    if documents.len() > 1 {
        return whole(
            &format!("it holds {} documents", documents.len()),
            "keep one and delete the lines with ---",
        );
    }
    let reader = Reader {
        name,
        characters: &characters,
    };
    let root = documents.first().map(|node| reader.node(node).value);
    match root {
        Some(Value::Map(entries)) => reader.by_name(entries),
        None | Some(Value::Absent) => whole(
            "it holds no settings",
            "write settings such as `grpc_address: :5443`, or leave --config out",
        ),
        Some(other) => whole(
            &format!("it holds {} where settings are expected", other.kind()),
            "write settings such as `grpc_address: :5443`",
        ),
    }
}

fn scan_mistake(name: &str, characters: &[char], error: &saphyr::ScanError) -> Mistake {
    let place = place(name, error.marker());
    if error.info().contains("duplicated key") {
        let key: String = characters
            .iter()
            .skip(error.marker().index())
            .take_while(|character| !matches!(character, ':' | '\n'))
            .take(64)
            .collect();
        return mistake(
            place,
            format!("{:?} is there twice", key.trim()),
            "keep the line that is meant",
        );
    }
    mistake(
        place,
        format!("it is not YAML: {}", error.info()),
        "mend the line or the one before it; texts with : or # in them need quotes",
    )
}

/// The first line that could begin deeper than is allowed. Each level takes at least one of the characters that a line
/// begins with; brackets have a bound of the parser's own.
fn too_deep(text: &str) -> Option<usize> {
    let deep = |line: &str| {
        let begins = line
            .chars()
            .take_while(|character| matches!(character, ' ' | '\t' | '-' | '?' | ':'));
        begins.count() > DEPTH
    };
    text.split(['\n', '\r'])
        .position(deep)
        .map(|index| index.saturating_add(1))
}

fn place(name: &str, marker: &Marker) -> String {
    format!("{name}:{}:{}", marker.line(), marker.col().saturating_add(1))
}

/// Turns what the parser gives into values.
struct Reader<'a> {
    name: &'a str,
    characters: &'a [char],
}

impl Reader<'_> {
    fn by_name(&self, entries: Vec<(String, Node)>) -> Result<BTreeMap<String, Node>, Mistake> {
        let mut by_name = BTreeMap::new();
        let mut merged = Vec::new();
        for (name, node) in entries {
            if name == MERGE {
                merged.push(node);
                continue;
            }
            let place = node.place.clone();
            if by_name.insert(name.to_ascii_lowercase(), node).is_some() {
                return Err(mistake(
                    place,
                    format!("{name:?} is there twice"),
                    "keep the line that is meant",
                ));
            }
        }
        for node in merged {
            self.merge(node, &mut by_name)?;
        }
        Ok(by_name)
    }

    /// What is merged counts where it is not written otherwise.
    fn merge(&self, node: Node, by_name: &mut BTreeMap<String, Node>) -> Result<(), Mistake> {
        match node.value {
            Value::Map(entries) => {
                for (name, node) in entries {
                    by_name.entry(name.to_ascii_lowercase()).or_insert(node);
                }
                Ok(())
            }
            Value::List(parts) => parts.into_iter().try_for_each(|part| match part.value {
                Value::Map(_) => self.merge(part, by_name),
                other => Err(not_merged(part.place, &other)),
            }),
            other => Err(not_merged(node.place, &other)),
        }
    }

    fn node(&self, node: &MarkedYaml<'_>) -> Node {
        let value = match &node.data {
            YamlData::Value(scalar) => self.scalar(scalar, node),
            YamlData::Representation(text, _, _) => Value::Text(text.to_string()),
            YamlData::Sequence(parts) => Value::List(parts.iter().map(|part| self.node(part)).collect()),
            YamlData::Mapping(parts) => {
                let parts = parts.iter().map(|(name, part)| self.entry(name, part));
                Value::Map(parts.collect())
            }
            YamlData::Tagged(_, tagged) => self.node(tagged).value,
            YamlData::Alias(_) | YamlData::BadValue => Value::Unreadable,
        };
        Node {
            place: place(self.name, &node.span.start),
            value,
        }
    }

    /// An entry is where its name is.
    fn entry(&self, name: &MarkedYaml<'_>, value: &MarkedYaml<'_>) -> (String, Node) {
        let Node { place, value: name } = self.node(name);
        let name = match name {
            Value::Text(name) => name,
            other => other.kind().to_owned(),
        };
        let value = self.node(value).value;
        (name, Node { place, value })
    }

    fn scalar(&self, scalar: &Scalar<'_>, node: &MarkedYaml<'_>) -> Value {
        let written = || {
            let text = self.characters.get(node.span.start.index()..node.span.end.index());
            let text: String = text.unwrap_or_default().iter().collect();
            text.trim().to_owned()
        };
        match scalar {
            Scalar::Null => Value::Absent,
            Scalar::String(text) => Value::Text(text.to_string()),
            // The place of a value that another one stands for is that of its name.
            Scalar::Boolean(value) if written().starts_with('*') => Value::Text(value.to_string()),
            Scalar::Integer(value) if written().starts_with('*') => Value::Text(value.to_string()),
            Scalar::FloatingPoint(value) if written().starts_with('*') => Value::Text(value.to_string()),
            Scalar::Boolean(_) | Scalar::Integer(_) | Scalar::FloatingPoint(_) => Value::Text(written()),
        }
    }
}

fn not_merged(place: String, value: &Value) -> Mistake {
    mistake(
        place,
        format!("{MERGE} merges {}", value.kind()),
        "name an anchor of a mapping",
    )
}

#[cfg(test)]
mod tests;
