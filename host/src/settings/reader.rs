//! Reads settings one by one and collects the mistakes.
//!
//! A value is looked for among the flags, then in the environment, then in the configuration file. Every mistake names
//! the place where the value was found, so that whoever mends it looks there.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::document::{self, Document, Node, Value};
use super::keys::{self, ALL, Group, Key};
use super::{BYTES_AS_BASE64, Notice, SECRET_LENGTH, SharedSecret};
use crate::file;

/// What some editors put before a text in UTF-8. Nobody sees it, and Pomerium takes no secret with it.
const BYTE_ORDER_MARK: char = '\u{feff}';
const HAS_BYTE_ORDER_MARK: &str = "it begins with a byte order mark, which some editors write";
const WITHOUT_BYTE_ORDER_MARK: &str = "write it as UTF-8 without one: `sed -i '1s/^\\xEF\\xBB\\xBF//' FILE`";

/// Where values come from, before anything looks at them.
#[derive(Clone, Default)]
pub struct Source {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// By the name of the variable: the values of the flags that were given.
    pub flags: BTreeMap<&'static str, OsString>,
    /// By name: the environment.
    pub environment: BTreeMap<OsString, OsString>,
}

impl fmt::Debug for Source {
    /// Values may be secrets: only names are shown.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Source")
            .field("file", &self.file)
            .field("flags", &self.flags.keys())
            .finish_non_exhaustive()
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is to be changed: the variable, the flag, or the file with line, column and name.
    pub setting: String,
    /// What is wrong with it; no secrets.
    pub wrong: String,
    /// What to do.
    pub remedy: Cow<'static, str>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.setting, self.wrong)?;
        if !self.remedy.is_empty() {
            write!(formatter, ": {}", self.remedy)?;
        }
        Ok(())
    }
}

/// All mistakes of a configuration, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(formatter, "{separator}{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// A digest of each value as it was set, by the name of its variable: it tells what has changed without keeping values.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Fingerprints(pub(super) BTreeMap<&'static str, [u8; 32]>);

impl fmt::Debug for Fingerprints {
    /// A digest of a short password tells the password: not shown.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Fingerprints")
    }
}

/// A value that was set, and where.
pub(super) struct Found {
    /// The flag, the variable, or the file with line, column and name.
    pub(super) place: String,
    pub(super) value: Value,
}

/// Reads settings; every method goes on after a mistake.
pub(super) struct Reader<'a> {
    source: &'a Source,
    document: Option<Document>,
    /// With the variable that each is about; none for the configuration file as a whole.
    mistakes: Vec<(Option<&'static str>, Mistake)>,
    notices: Vec<Notice>,
    /// By variable: the digest of the file that it names, where one was read.
    contents: BTreeMap<&'static str, [u8; 32]>,
}

impl<'a> Reader<'a> {
    /// Reads the configuration file, if there is one.
    pub(super) fn new(source: &'a Source) -> Self {
        let mut reader = Self {
            source,
            document: None,
            mistakes: Vec::new(),
            notices: Vec::new(),
            contents: BTreeMap::new(),
        };
        if let Some(path) = &source.file {
            match Document::read(path) {
                Ok(document) => reader.document = Some(document),
                Err(mistake) => reader.mistakes.push((None, mistake)),
            }
        }
        for key in ALL {
            let flag = source.flags.get(key.variable).map(|value| (place_of_flag(key), value));
            let variable = reader.variable(key).map(|value| (key.variable.to_owned(), value));
            let unreadable = flag.or(variable).filter(|(_, value)| value.to_str().is_none());
            if let Some((place, _)) = unreadable {
                reader.mistake_at(key, place, "it is not UTF-8".to_owned(), key.remedy);
            }
        }
        reader
    }

    /// The value of a setting and its place. An empty variable counts only where there is nothing else.
    pub(super) fn find(&self, key: &Key) -> Option<Found> {
        let text = |place, value: &OsStr| {
            let value = Value::Text(value.to_str()?.to_owned());
            Some(Found { place, value })
        };
        if let Some(value) = self.source.flags.get(key.variable) {
            return text(place_of_flag(key), value);
        }
        let variable = self.variable(key);
        if let Some(value) = variable.filter(|value| !value.is_empty()) {
            return text(key.variable.to_owned(), value);
        }
        let name = key.yaml();
        let entry = self.document.as_ref().and_then(|document| document.entries.get(&name));
        match entry {
            Some(Node { place, value }) if !matches!(value, Value::Absent) => Some(Found {
                place: format!("{place}: {name}"),
                value: value.clone(),
            }),
            _ => variable.and_then(|value| text(key.variable.to_owned(), value)),
        }
    }

    /// Where a setting is set to something, if it is.
    pub(super) fn given(&self, key: &Key) -> Option<String> {
        let empty = |value: &Value| matches!(value, Value::Text(text) if text.trim().is_empty());
        self.find(key)
            .filter(|found| !empty(&found.value))
            .map(|found| found.place)
    }

    /// The text of a setting; none where it is absent or empty.
    pub(super) fn text(&mut self, key: &'static Key) -> Option<String> {
        self.raw(key).filter(|text| !text.is_empty())
    }

    /// The value of a setting, or the default where it is absent or cannot be used. The parser says what is wrong with
    /// a text.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static Key,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = self.text(key).filter(|text| !text.trim().is_empty()) else {
            return default;
        };
        match parse(text.trim()) {
            Ok(value) => value,
            Err(wrong) => {
                self.mistake(key, wrong, key.remedy);
                default
            }
        }
    }

    /// The same, with the default that the table of settings has. A test holds that each of those can be parsed.
    pub(super) fn or_default<T: Default>(&mut self, key: &'static Key, parse: impl Fn(&str) -> Result<T, String>) -> T {
        let default = parse(key.default).unwrap_or_default();
        self.parsed(key, default, parse)
    }

    /// The parts of a list: of YAML, or of a text with commas between them.
    pub(super) fn list(&mut self, key: &'static Key) -> Vec<String> {
        let parts = match self.find(key).map(|found| found.value) {
            None | Some(Value::Absent) => return Vec::new(),
            Some(Value::Text(text)) => text.split(',').map(str::to_owned).collect(),
            Some(Value::List(parts)) => {
                let texts = parts.into_iter().map(|part| match part.value {
                    Value::Text(text) => Ok(text),
                    other => Err(other),
                });
                match texts.collect::<Result<Vec<_>, _>>() {
                    Ok(parts) => parts,
                    Err(other) => {
                        let wrong = format!("it has {} in a list of texts", other.kind());
                        self.mistake(key, wrong, key.remedy);
                        return Vec::new();
                    }
                }
            }
            Some(other) => {
                let wrong = format!("it is {} where a list is expected", other.kind());
                self.mistake(key, wrong, key.remedy);
                return Vec::new();
            }
        };
        let trimmed = parts.iter().map(|part| part.trim());
        trimmed.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    /// The value of a setting that is more than texts. One that was set as a text is read as YAML.
    pub(super) fn structure(&mut self, key: &'static Key) -> Option<Found> {
        let found = self.find(key)?;
        match &found.value {
            Value::Text(text) if text.trim().is_empty() => None,
            Value::Text(text) => match document::inline(&found.place, text) {
                Ok(value) => Some(Found { value, ..found }),
                Err(wrong) => {
                    self.mistake(key, wrong, key.remedy);
                    None
                }
            },
            _ => Some(found),
        }
    }

    /// The text of a setting or of the file that another names; the file goes first.
    pub(super) fn text_or_file(&mut self, key: &'static Key, file: &'static Key) -> Option<(&'static Key, String)> {
        self.text_or_file_unless_absent(key, file)
            .filter(|(_, text)| !text.is_empty())
    }

    /// The same, where an empty text is one too.
    pub(super) fn text_or_file_unless_absent(
        &mut self,
        key: &'static Key,
        file: &'static Key,
    ) -> Option<(&'static Key, String)> {
        let Some(path) = self.text(file) else {
            let text = self.raw(key)?;
            if text.starts_with(BYTE_ORDER_MARK) {
                self.mistake(key, HAS_BYTE_ORDER_MARK.to_owned(), WITHOUT_BYTE_ORDER_MARK);
                return None;
            }
            return Some((key, text));
        };
        let path = Path::new(&path);
        let contents = match file::read(path, file::SECRET_BYTES) {
            Ok(contents) => contents,
            Err(error) => {
                self.mistake(file, format!("{}: {error}", shown(path)), file.remedy);
                return None;
            }
        };
        self.contents
            .insert(file.variable, Sha256::digest(&contents.bytes).into());
        if contents.others_can_read {
            let place = self.place(file);
            self.warn(format!(
                "{place}: users other than its owner can read {path:?}: chmod 600"
            ));
        }
        let (wrong, remedy) = match String::from_utf8(contents.bytes) {
            Ok(text) if text.starts_with(BYTE_ORDER_MARK) => (HAS_BYTE_ORDER_MARK.to_owned(), WITHOUT_BYTE_ORDER_MARK),
            Ok(text) => return Some((file, text)),
            Err(error) => match error.as_bytes() {
                // Both orders of bytes.
                [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => ("it is UTF-16".to_owned(), "save it as UTF-8"),
                bytes => {
                    let wrong = format!("it holds {} raw bytes, no text", bytes.len());
                    let is_secret = key.group == Group::SharedSecret && bytes.len() == SECRET_LENGTH;
                    (wrong, if is_secret { BYTES_AS_BASE64 } else { key.remedy })
                }
            },
        };
        self.mistake(file, format!("{path:?}: {wrong}"), remedy);
        None
    }

    /// Notes a mistake, at the place where the value was found.
    pub(super) fn mistake(&mut self, key: &'static Key, wrong: String, remedy: impl Into<Cow<'static, str>>) {
        let place = self.place(key);
        self.mistake_at(key, place, wrong, remedy);
    }

    /// Notes a mistake that is at another place than the setting that it is about.
    pub(super) fn mistake_at(
        &mut self,
        key: &'static Key,
        setting: String,
        wrong: String,
        remedy: impl Into<Cow<'static, str>>,
    ) {
        // Of a secret, nothing is shown in the first place.
        let wrong = if !key.secret && may_show_a_password(key, &wrong) {
            "what is set there looks like a connection string, which is not shown".to_owned()
        } else {
            wrong
        };
        let remedy = remedy.into();
        self.mistakes
            .push((Some(key.variable), Mistake { setting, wrong, remedy }));
    }

    /// Notes a mistake that is about no setting.
    pub(super) fn foreign_mistake(&mut self, mistake: Mistake) {
        self.mistakes.push((None, mistake));
    }

    pub(super) fn has_mistake_of(&self, key: &'static Key) -> bool {
        self.mistakes
            .iter()
            .any(|(variable, _)| *variable == Some(key.variable))
    }

    pub(super) fn has_mistakes(&self) -> bool {
        !self.mistakes.is_empty()
    }

    /// Notes what an operator should look at.
    pub(super) fn warn(&mut self, text: String) {
        self.notices.push(Notice::Warning(text));
    }

    /// Notes what an operator may want to know.
    pub(super) fn inform(&mut self, text: String) {
        self.notices.push(Notice::Info(text));
    }

    pub(super) fn document(&self) -> Option<&Document> {
        self.document.as_ref()
    }

    pub(super) fn source(&self) -> &'a Source {
        self.source
    }

    /// Where the setting is set, or its variable's name where it is not.
    pub(super) fn place(&self, key: &Key) -> String {
        self.find(key)
            .map_or_else(|| key.variable.to_owned(), |found| found.place)
    }

    /// The notices and what tells changed values, or all mistakes.
    pub(super) fn finish(self) -> Result<(Vec<Notice>, Fingerprints), Mistakes> {
        if !self.mistakes.is_empty() {
            let mistakes = self.mistakes.into_iter().map(|(_, mistake)| mistake);
            return Err(Mistakes(mistakes.collect()));
        }
        let fingerprint = |key: &&'static Key| {
            let mut digest = Sha256::new();
            hash(&mut digest, &self.find(key)?.value);
            digest.update(self.contents.get(key.variable).copied().unwrap_or_default());
            Some((key.variable, digest.finalize().into()))
        };
        let fingerprints = ALL.iter().filter_map(fingerprint).collect();
        Ok((self.notices, Fingerprints(fingerprints)))
    }

    fn variable(&self, key: &Key) -> Option<&'a OsString> {
        self.source.environment.get(OsStr::new(key.variable))
    }

    fn raw(&mut self, key: &'static Key) -> Option<String> {
        match self.find(key)?.value {
            Value::Text(text) => Some(text),
            Value::Absent => None,
            other => {
                let wrong = format!("it is {} where a text is expected", other.kind());
                self.mistake(key, wrong, key.remedy);
                None
            }
        }
    }
}

/// A file that could not be read, for messages; see [`may_be_shown`].
pub(super) fn shown(path: &Path) -> String {
    if may_be_shown(path) {
        format!("{path:?}")
    } else {
        "the file that it names".to_owned()
    }
}

/// Whether a path is one for sure. What is no whole path may be what belongs into the file, such as a password, and so may be
/// what has the form of the shared secret.
pub(super) fn may_be_shown(path: &Path) -> bool {
    let is_secret = |text| SharedSecret::parse(text).is_ok();
    path.is_absolute() && !path.to_str().is_some_and(is_secret)
}

fn place_of_flag(key: &Key) -> String {
    format!("--{}", key.flag.unwrap_or(key.variable))
}

/// Takes a value into a digest, so that different values have different ones.
fn hash(digest: &mut Sha256, value: &Value) {
    let mut part = |tag: u8, length: usize| {
        digest.update([tag]);
        digest.update(length.to_be_bytes());
    };
    match value {
        Value::Absent => part(0, 0),
        Value::Text(text) => {
            part(1, text.len());
            digest.update(text);
        }
        Value::List(parts) => {
            part(2, parts.len());
            parts.iter().for_each(|part| hash(digest, &part.value));
        }
        Value::Map(parts) => {
            part(3, parts.len());
            for (name, part) in parts {
                hash(digest, &Value::Text(name.clone()));
                hash(digest, &part.value);
            }
        }
        Value::Unreadable => part(4, 0),
    }
}

/// True where a text about a setting may show a connection string, which was meant for another setting. What of it is the password
/// cannot be told for sure.
fn may_show_a_password(key: &Key, text: &str) -> bool {
    let has_user = text.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
    let mut dense: String = text.chars().filter(|letter| !letter.is_whitespace()).collect();
    dense.make_ascii_lowercase();
    let has = |word| dense.contains(word);
    // A secret of a plugin may be called `password`, too.
    let may_be_a_name = key.variable == keys::PLUGIN_SECRETS.variable;
    let others = ["://", "host=", "hostaddr=", "port=", "user=", "dbname="];
    has_user || (has("password=") && (!may_be_a_name || others.into_iter().any(has)))
}
