//! Directories that a plugin may use, and what it may do there.
//!
//! A directory is opened when an instance starts, and everything in it is reached from what was opened: the runtime follows no
//! link and no `..` out of it, and no absolute path at all.

use std::fmt;
use std::path::PathBuf;

use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use super::{GrantError, Grants};

/// A directory of this machine that a plugin sees under a name of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// The absolute path by which the plugin knows it.
    pub inside: String,
    /// The directory.
    pub outside: PathBuf,
    /// Whether the plugin may change anything in it.
    pub writable: bool,
}

impl Directory {
    /// Reads `/path/in/plugin=/path/on/this/machine`, with `:rw` behind it where the plugin may write, or `:ro`, which is meant
    /// without either.
    ///
    /// # Errors
    ///
    /// [`GrantError`] where it is something else. Nothing is looked at on the disk.
    pub fn parse(text: &str) -> Result<Self, GrantError> {
        let (inside, rest) = text
            .split_once('=')
            .ok_or_else(|| GrantError::new(format!("{text:?} has no = between the two paths")))?;
        let (outside, writable) = match (rest.strip_suffix(":rw"), rest.strip_suffix(":ro")) {
            (Some(path), _) => (path, true),
            (None, Some(path)) => (path, false),
            (None, None) => (rest, false),
        };
        let plain = |part: &str| !matches!(part, "" | "." | "..");
        let absolute = inside.strip_prefix('/');
        if !absolute.is_some_and(|path| path.is_empty() || path.split('/').all(plain)) {
            return Err(GrantError::new(format!(
                "{inside:?} is no path for the plugin: it begins with / and has no empty part, no . and no .. in it"
            )));
        }
        if outside.is_empty() {
            return Err(GrantError::new(format!("{text:?} names no directory of this machine")));
        }
        Ok(Self {
            inside: inside.to_owned(),
            outside: PathBuf::from(outside),
            writable,
        })
    }
}

impl fmt::Display for Directory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.writable { "rw" } else { "ro" };
        write!(formatter, "{}={}:{mode}", self.inside, self.outside.display())
    }
}

/// Opens all directories for an instance.
///
/// # Errors
///
/// Says which one cannot be opened, and why.
pub(in crate::component) fn open_all(grants: &Grants, wasi: &mut WasiCtxBuilder) -> Result<(), String> {
    for directory in &grants.directories {
        let permissions = if directory.writable {
            FsPerms::ReadWrite
        } else {
            FsPerms::ReadOnly
        };
        wasi.preopened_dir(&directory.outside, &directory.inside, permissions)
            .map_err(|error| {
                format!(
                    "the directory {:?} that is granted to it cannot be opened: {error:#}",
                    directory.outside
                )
            })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn directories_are_read() {
        for (text, expected) in [
            ("/data=/var/lib/store:rw", "/data=/var/lib/store:rw"),
            ("/data=/var/lib/store:ro", "/data=/var/lib/store:ro"),
            ("/data=/var/lib/store", "/data=/var/lib/store:ro"),
            ("/=/srv/x:rw", "/=/srv/x:rw"),
            ("/a/b=relative", "/a/b=relative:ro"),
            ("/a=/with=sign:odd:rw", "/a=/with=sign:odd:rw"),
        ] {
            assert_eq!(Directory::parse(text).unwrap().to_string(), expected, "{text}");
        }
        for (text, expected) in [
            ("/data", "no = between"),
            ("data=/x", "\"data\" is no path for the plugin"),
            ("/a/../b=/x", "is no path for the plugin"),
            ("/a//b=/x", "is no path for the plugin"),
            ("/a/=/x", "is no path for the plugin"),
            ("/a=:rw", "names no directory"),
            ("/a=", "names no directory"),
        ] {
            let error = Directory::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
