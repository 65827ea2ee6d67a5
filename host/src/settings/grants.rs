//! What the storage plugin is granted.
//!
//! Files and directories are looked at here, so that `config check` and the start find what is missing, and not the plugin in
//! the middle of a call. What belongs to this process alone must not be in a granted directory: a secret would be given away, and
//! compiled code that a plugin can write is run without a sandbox.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::bounded;
use super::document::Value;
use super::keys::{self, Key};
use super::reader::{Reader, may_be_shown};
use crate::component::{Destination, Directory, GrantError, Grants, Origin, cache_directory};
use crate::file;

const NOTHING_ELSE: &str = "grant a directory that holds nothing but the plugin's data";

/// What these hold is the system and this process, such as its environment, and no files.
const SYSTEM: [&str; 2] = ["/proc", "/sys"];

/// The settings that name this process's own files, which no plugin may see.
const OWN_FILES: [&Key; 12] = [
    &keys::SHARED_SECRET_FILE,
    &keys::SHARED_SECRET_PREVIOUS_FILE,
    &keys::CERTIFICATE_FILE,
    &keys::CERTIFICATE_KEY_FILE,
    &keys::METRICS_CERTIFICATE_FILE,
    &keys::METRICS_CERTIFICATE_KEY_FILE,
    &keys::METRICS_BASIC_AUTH_FILE,
    &keys::STORAGE_CONNECTION_STRING_FILE,
    &keys::GRPC_CLIENT_CA_FILE,
    &keys::METRICS_CLIENT_CA_FILE,
    &keys::RECORD_DESCRIPTORS,
    &keys::PLUGIN_REPORT_DIR,
];

/// Reads them all.
pub(super) fn read(reader: &mut Reader<'_>) -> Grants {
    let grants = Grants {
        settings: named(reader, &keys::PLUGIN_SETTINGS),
        secrets: secrets(reader),
        directories: list(reader, &keys::PLUGIN_DIRECTORIES, Directory::parse),
        addresses: list(reader, &keys::PLUGIN_ADDRESSES, Destination::parse),
        http_origins: list(reader, &keys::PLUGIN_HTTP_ORIGINS, Origin::parse),
        most_open: reader.or_default(&keys::PLUGIN_OPEN, |text| bounded(text, 1, 65_536)),
    };
    check_directories(reader, &grants.directories);
    check_own_files(reader, &grants);
    check_own_directories(reader, &grants.directories);
    grants
}

fn list<T>(reader: &mut Reader<'_>, key: &'static Key, parse: fn(&str) -> Result<T, GrantError>) -> Vec<T> {
    let mut read = Vec::new();
    for part in reader.list(key) {
        match parse(&part) {
            Ok(grant) => read.push(grant),
            Err(error) => reader.mistake(key, error.to_string(), key.remedy),
        }
    }
    read
}

/// Names and values with = between them. A value may be anything, and is not shown.
fn named(reader: &mut Reader<'_>, key: &'static Key) -> BTreeMap<String, String> {
    let mut read = BTreeMap::new();
    for (index, part) in reader.list(key).into_iter().enumerate() {
        let number = index.saturating_add(1);
        let pair = part.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        match pair {
            Some((name, value)) if !name.is_empty() => {
                if read.insert(name.to_owned(), value.to_owned()).is_some() {
                    reader.mistake(key, format!("{name:?} is there twice"), "keep one of them");
                }
            }
            _ => reader.mistake(key, format!("part {number} is not NAME=VALUE"), key.remedy),
        }
    }
    read
}

fn secrets(reader: &mut Reader<'_>) -> BTreeMap<String, PathBuf> {
    let key = &keys::PLUGIN_SECRETS;
    let named = named(reader, key);
    let mut secrets = BTreeMap::new();
    for (name, path) in named {
        let path = PathBuf::from(path);
        match file::read(&path, file::SECRET_BYTES) {
            Ok(contents) if contents.others_can_read => {
                let place = reader.place(key);
                reader.warn(format!(
                    "{place}: users other than its owner can read {path:?}: chmod 600"
                ));
            }
            Ok(_) => {}
            Err(error) if may_be_shown(&path) => {
                reader.mistake(key, format!("{name:?}: {path:?}: {error}"), key.remedy);
            }
            Err(error) => reader.mistake(key, format!("the file of {name:?}: {error}"), key.remedy),
        }
        secrets.insert(name, path);
    }
    secrets
}

fn check_directories(reader: &mut Reader<'_>, directories: &[Directory]) {
    let key = &keys::PLUGIN_DIRECTORIES;
    for (index, directory) in directories.iter().enumerate() {
        let earlier = directories.iter().take(index);
        if earlier.clone().any(|earlier| earlier.inside == directory.inside) {
            reader.mistake(
                key,
                format!("{:?} is there twice", directory.inside),
                "keep one of them",
            );
        }
        if let Err(error) = fs::read_dir(&directory.outside) {
            let wrong = format!("{:?} cannot be read: {error}", directory.outside);
            reader.mistake(key, wrong, key.remedy);
        }
    }
}

/// What is this process's own is not for the plugin: neither by itself nor in a directory of the plugin's.
fn check_own_files(reader: &mut Reader<'_>, grants: &Grants) {
    let canonical = |path: &Path| fs::canonicalize(path).ok();
    let own = own_files(reader).into_iter();
    let own: Vec<_> = own
        .filter_map(|(place, path)| Some((place, canonical(&path)?, path)))
        .collect();
    for directory in &grants.directories {
        let Some(outside) = canonical(&directory.outside) else {
            continue;
        };
        let is_within = |own: &Path, path: &Path| {
            own.starts_with(&outside) || links(path).iter().any(|link| link.starts_with(&outside))
        };
        for (place, _, path) in own.iter().filter(|(_, own, path)| is_within(own, path)) {
            let wrong = format!(
                "{:?} would give the plugin {path:?}, which is this process's own ({place})",
                directory.outside
            );
            reader.mistake(&keys::PLUGIN_DIRECTORIES, wrong, NOTHING_ELSE);
        }
    }
    let key = &keys::PLUGIN_SECRETS;
    for (name, path) in &grants.secrets {
        let Some(secret) = canonical(path) else {
            continue;
        };
        let own = own.iter().find(|(_, own, _)| secret.starts_with(own));
        let whose = match own {
            Some((place, ..)) => format!("this process's own ({place})"),
            None if is_system(&secret) => "of the system or of this process itself".to_owned(),
            None => continue,
        };
        let wrong = format!("{name:?}: {path:?} is {whose}, which no plugin sees");
        reader.mistake(key, wrong, "grant the plugin a file of its own");
    }
}

/// This process's own files, each with the place that names it.
fn own_files(reader: &Reader<'_>) -> Vec<(String, PathBuf)> {
    let named = OWN_FILES.into_iter().filter_map(|key| named_file(reader, key));
    let configuration = reader.source().file.clone();
    named
        .chain(configuration.map(|file| ("the configuration file".to_owned(), file)))
        .chain(super::certificates::listed_files(reader))
        .collect()
}

fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

/// Where this process, or its compiled code, could be changed.
fn check_own_directories(reader: &mut Reader<'_>, directories: &[Directory]) {
    let key = &keys::PLUGIN_DIRECTORIES;
    let configured = named_file(reader, &keys::PLUGIN_CACHE_DIR).map(|(_, path)| path);
    let cache = cache_directory(configured.as_deref());
    let cache_links = cache.as_deref().map(links).unwrap_or_default();
    let cache = cache.map(|path| resolved(&path));
    for directory in directories {
        let Ok(outside) = fs::canonicalize(&directory.outside) else {
            continue;
        };
        let holds = if is_system(&outside) || outside.starts_with("/dev") || outside.parent().is_none() {
            "this process and the system itself"
        } else if cache
            .as_ref()
            .is_some_and(|cache| cache.starts_with(&outside) || outside.starts_with(cache))
            || cache_links.iter().any(|link| link.starts_with(&outside))
        {
            "the compiled code of plugins, which runs without a sandbox"
        } else {
            continue;
        };
        let wrong = format!("{:?} holds {holds}", directory.outside);
        reader.mistake(key, wrong, NOTHING_ELSE);
    }
}

/// Where the links lie by which a path leads to what it names: whoever can replace one of them decides what that is.
fn links(path: &Path) -> Vec<PathBuf> {
    /// As many as the system follows.
    const MOST: usize = 40;
    let mut links = Vec::new();
    let mut rest: Vec<PathBuf> = vec![std::path::absolute(path).unwrap_or_else(|_| path.to_owned())];
    let mut at = PathBuf::new();
    while let Some(next) = rest.pop() {
        let mut components = next.components();
        let Some(component) = components.next() else { continue };
        rest.push(components.as_path().to_owned());
        match component {
            std::path::Component::ParentDir => drop(at.pop()),
            component => at.push(component),
        }
        if let Ok(target) = fs::read_link(&at) {
            links.push(at.clone());
            if links.len() > MOST {
                break;
            }
            at.pop();
            // An absolute one replaces all that was there.
            rest.push(target);
        }
    }
    links
}

/// A path without links, as far as there is anything at it.
fn resolved(path: &Path) -> PathBuf {
    let mut rest = Vec::new();
    for above in path.ancestors() {
        if let Ok(mut found) = fs::canonicalize(above) {
            found.extend(rest.iter().rev());
            return found;
        }
        rest.extend(above.file_name());
    }
    path.to_owned()
}

/// The file that a setting names, and where it does. Whoever reads the setting itself tells its mistakes.
fn named_file(reader: &Reader<'_>, key: &Key) -> Option<(String, PathBuf)> {
    let found = reader.find(key)?;
    match found.value {
        Value::Text(path) if !path.trim().is_empty() => Some((found.place, PathBuf::from(path))),
        _ => None,
    }
}
