//! Differences that are known: for a server that is compared with, not held to the suite, such as Pomerium's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A table of cases that are expected to fail, each with the reason why that is right.
///
/// In TOML: `"area.name" = "reason"`, at the top level.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<String, String>);

/// Why a table of known differences cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KnownError {
    /// The file cannot be read.
    #[error("could not read {0}: {1}")]
    Read(String, std::io::Error),
    /// It is no table of reasons.
    #[error("{0} is no TOML table of case names and reasons: {1}")]
    Parse(String, toml::de::Error),
    /// A case without a reason.
    #[error("{0} gives no reason for {1}")]
    NoReason(String, String),
}

impl Known {
    /// Reads a table.
    pub fn read(path: &Path) -> Result<Self, KnownError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| KnownError::Read(name.clone(), error))?;
        Self::parse(&name, &text)
    }

    /// Parses a table; the name is for errors.
    pub fn parse(name: &str, text: &str) -> Result<Self, KnownError> {
        let reasons: BTreeMap<String, String> =
            toml::from_str(text).map_err(|error| KnownError::Parse(name.to_owned(), error))?;
        if let Some((case, _)) = reasons.iter().find(|(_, reason)| reason.trim().is_empty()) {
            return Err(KnownError::NoReason(name.to_owned(), case.clone()));
        }
        Ok(Self(reasons))
    }

    /// Why the case is expected to fail, if it is.
    pub fn reason(&self, case: &str) -> Option<&str> {
        self.0.get(case).map(String::as_str)
    }

    /// The names in the table that no case has.
    pub(crate) fn names_not_in(&self, cases: &BTreeSet<&str>) -> Vec<String> {
        self.0
            .keys()
            .filter(|name| !cases.contains(name.as_str()))
            .cloned()
            .collect()
    }
}
