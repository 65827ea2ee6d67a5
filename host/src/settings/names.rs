//! Looks for names that are nobody's: mistyped ones in the configuration file and in the environment, and those of
//! Pomerium that mean nothing here.
//!
//! In the file an unknown name is a mistake. The environment is shared with others, so there it is at most a warning,
//! and only where it is almost one of ours.

use super::document::Value;
use super::keys::{ALL, Key};
use super::pomerium::{self, Foreign};
use super::reader::{Mistake, Reader};

/// How alike two names are at least where one is suggested for the other; 1 is equal.
const ALIKE: f64 = 0.7;

/// How many letters a variable may differ from one of ours to be taken for it.
const LETTERS: usize = 2;

/// What our variables begin with, of those where others hardly begin so.
const PREFIXES: [&str; 8] = [
    "CERTIFICATE",
    "DATABROKER_",
    "GRPC_",
    "HEALTH_CHECK_",
    "LOG_",
    "METRICS_",
    "SHARED_",
    "TLS_",
];

/// How many names a summary shows, and how much of one.
const SHOWN: usize = 3;
const SHOWN_LETTERS: usize = 64;

/// Checks all names.
pub(super) fn check(reader: &mut Reader<'_>) {
    check_document(reader);
    check_environment(reader);
}

fn check_document(reader: &mut Reader<'_>) {
    let Some(document) = reader.document() else {
        return;
    };
    let file = document.name.clone();
    let mut passed_over = Vec::new();
    let mut mistakes = Vec::new();
    let mut warnings = Vec::new();
    for (name, node) in &document.entries {
        if is_ours(name) {
            continue;
        }
        let shown = shown(name);
        let place = format!("{}: {shown}", node.place);
        match pomerium::classify(name) {
            Foreign::Other => passed_over.push(shown),
            Foreign::NotDone(instead) => {
                if is_set(&node.value) {
                    warnings.push(format!("{place}: {instead}"));
                }
            }
            Foreign::Removed => mistakes.push(Mistake {
                setting: place,
                wrong: "Pomerium has removed this setting and does not start with it".to_owned(),
                remedy: "delete it".into(),
            }),
            Foreign::Unknown => mistakes.push(Mistake {
                setting: place,
                wrong: "there is no such setting".to_owned(),
                remedy: nearest(name).map_or_else(
                    || "delete it; `databroker-host serve --help` lists all".into(),
                    |nearest| format!("did you mean {nearest}?").into(),
                ),
            }),
        }
    }
    let exposed = document.others_can_read && has_secrets(reader);
    if exposed {
        reader.warn(format!(
            "{file}: it holds secrets, and users other than its owner can read it: chmod 600"
        ));
    }
    mistakes.into_iter().for_each(|mistake| reader.foreign_mistake(mistake));
    warnings.into_iter().for_each(|warning| reader.warn(warning));
    if let Some(summary) = summary(&passed_over) {
        reader.inform(format!("{file}: {summary}"));
    }
}

/// A name, as far as it looks like one: a value that stuck to it may be a secret.
fn shown(name: &str) -> String {
    let fits = |letter: &char| letter.is_ascii_alphanumeric() || "_.-".contains(*letter);
    let shown: String = name.chars().take_while(fits).take(SHOWN_LETTERS).collect();
    if shown.len() < name.len() {
        format!("{shown}…")
    } else {
        shown
    }
}

/// One line about the settings that are for other parts of Pomerium.
fn summary(names: &[String]) -> Option<String> {
    let shown = names
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match names.len() {
        0 => None,
        1 => Some(format!(
            "a setting of Pomerium that is not for a databroker is passed over: {shown}"
        )),
        count => Some(format!(
            "{count} settings of Pomerium that are not for a databroker are passed over: {shown}{more}"
        )),
    }
}

fn has_secrets(reader: &Reader<'_>) -> bool {
    let in_document = |key: &&Key| {
        let entries = reader.document().map(|document| &document.entries);
        key.secret && entries.is_some_and(|entries| entries.contains_key(&key.yaml()))
    };
    ALL.iter().copied().any(|key| in_document(&key))
}

fn check_environment(reader: &mut Reader<'_>) {
    let mut warnings = Vec::new();
    for (name, value) in &reader.source().environment {
        let Some(name) = name.to_str() else { continue };
        if value.is_empty() {
            continue;
        }
        let lower = name.to_ascii_lowercase();
        if name != lower.to_ascii_uppercase() || is_ours(&lower) {
            continue;
        }
        match pomerium::classify(&lower) {
            Foreign::NotDone(instead) if lower.starts_with("databroker_") => {
                warnings.push(format!("{name}: {instead}"))
            }
            Foreign::Unknown if PREFIXES.iter().any(|prefix| name.starts_with(prefix)) => {
                if let Some(nearest) = nearest_variable(name) {
                    warnings.push(format!("{name}: there is no such setting: did you mean {nearest}?"));
                }
            }
            _ => {}
        }
    }
    warnings.into_iter().for_each(|warning| reader.warn(warning));
}

fn is_ours(name: &str) -> bool {
    ALL.iter().any(|key| key.variable.eq_ignore_ascii_case(name))
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Absent => false,
        Value::Text(text) => !matches!(text.as_str(), "" | "false" | "0"),
        Value::List(parts) => !parts.is_empty(),
        Value::Map(parts) => !parts.is_empty(),
        Value::Unreadable => true,
    }
}

/// The setting whose name is most like this one, if one is at all.
fn nearest(name: &str) -> Option<String> {
    let name: String = name.chars().take(SHOWN_LETTERS).collect();
    let ours = ALL.iter().map(|key| key.yaml());
    let all = ours.chain(pomerium::names().map(str::to_owned));
    let rated = all.map(|known| (strsim::normalized_damerau_levenshtein(&name, &known), known));
    rated
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, known)| known)
}

fn nearest_variable(name: &str) -> Option<&'static str> {
    if name.len() > SHOWN_LETTERS {
        return None;
    }
    // What differs more in length differs by more letters, too.
    let rated = ALL
        .iter()
        .filter(|key| key.variable.len().abs_diff(name.len()) <= LETTERS)
        .map(|key| (strsim::damerau_levenshtein(name, key.variable), key.variable));
    rated
        .filter(|(letters, _)| *letters <= LETTERS)
        .min_by_key(|(letters, _)| *letters)
        .map(|(_, variable)| variable)
}
