//! Reads settings one by one and collects the mistakes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read as _;

use super::Key;

/// The most that a file with a secret or a connection string may hold, in bytes.
const FILE_BYTES: u64 = 64 << 10;

/// Where values come from, before anything looks at them.
#[derive(Clone, Default)]
pub struct Source {
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
            .field("flags", &self.flags.keys())
            .finish_non_exhaustive()
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The variable or flag that is to be changed.
    pub setting: String,
    /// What is wrong with it; no secrets.
    pub wrong: String,
    /// What to do.
    pub remedy: &'static str,
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

/// Reads settings; every method goes on after a mistake.
pub(super) struct Reader<'a> {
    source: &'a Source,
    /// With the variable that each is about.
    mistakes: Vec<(&'static str, Mistake)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            mistakes: Vec::new(),
        }
    }

    /// The text of a setting; none where it is absent or empty.
    pub(super) fn text(&mut self, key: &'static Key) -> Option<String> {
        self.raw(key).filter(|text| !text.is_empty())
    }

    /// The value of a setting, or the default where it is absent or cannot be used. The parser says what is wrong with a
    /// text.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static Key,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = self.text(key) else {
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

    /// The text of a setting or of the file that another names; the file goes first.
    pub(super) fn text_or_file(&mut self, key: &'static Key, file: &'static Key) -> Option<String> {
        self.text_or_file_unless_absent(key, file)
            .map(|(_, text)| text)
            .filter(|text| !text.is_empty())
    }

    /// The same, where an empty text is one too, together with the setting that it comes from.
    pub(super) fn text_or_file_unless_absent(
        &mut self,
        key: &'static Key,
        file: &'static Key,
    ) -> Option<(&'static Key, String)> {
        let Some(path) = self.text(file) else {
            return self.raw(key).map(|text| (key, text));
        };
        match read(&path) {
            Ok(text) => Some((file, text)),
            Err(error) => {
                self.mistake(file, format!("cannot read {path:?}: {error}"), file.remedy);
                None
            }
        }
    }

    /// Notes a mistake.
    pub(super) fn mistake(&mut self, key: &'static Key, wrong: String, remedy: &'static str) {
        let setting = match key.flag {
            Some(flag) if self.source.flags.contains_key(key.variable) => format!("--{flag}"),
            _ => key.variable.to_owned(),
        };
        self.mistakes.push((key.variable, Mistake { setting, wrong, remedy }));
    }

    pub(super) fn has_mistake_of(&self, key: &'static Key) -> bool {
        self.mistakes.iter().any(|(variable, _)| *variable == key.variable)
    }

    pub(super) fn finish(self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() {
            return Ok(());
        }
        Err(Mistakes(
            self.mistakes.into_iter().map(|(_, mistake)| mistake).collect(),
        ))
    }

    fn raw(&mut self, key: &'static Key) -> Option<String> {
        let variable = std::ffi::OsStr::new(key.variable);
        let value = self
            .source
            .flags
            .get(key.variable)
            .or_else(|| self.source.environment.get(variable))?;
        match value.to_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.mistake(key, "it is not UTF-8".to_owned(), key.remedy);
                None
            }
        }
    }
}

fn read(path: &str) -> std::io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(FILE_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(length).is_ok_and(|length| length > FILE_BYTES) {
        return Err(std::io::Error::other(format!("it holds more than {FILE_BYTES} bytes")));
    }
    Ok(text)
}
