//! Where the compiled code of outside components is kept, and whether that place can be trusted.
//!
//! The engine keys what it keeps by the component's content, its own version and all settings, and runs what it finds. So
//! whoever can write to the directory can run code in the host. It is used only if it is ours alone, and if nobody else
//! can put another in its place: every directory on the way to it belongs to us or to root and is not writable for
//! others, save for those like `/tmp` in which only an entry's owner can move it.

use std::path::{Path, PathBuf};

/// Why compiled code is not kept. The host works without; it only starts more slowly.
#[derive(Debug, thiserror::Error)]
pub(super) enum Untrusted {
    /// Neither `XDG_CACHE_HOME` nor `HOME` says where to keep it.
    #[error("there is no home directory to keep it in: name a directory")]
    NoPlace,
    /// The directory cannot be made or looked at.
    #[error("{path} cannot be used: {error}", path = path.display())]
    Unusable {
        /// The directory, or one above it.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Somebody else owns it.
    #[error("{path} belongs to user {owner}, who could change it: it must belong to user {own} or to root", path = path.display())]
    Owner {
        /// The directory, or one above it.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who the host is.
        own: u32,
    },
    /// Others may write to it.
    #[error("{path} has the mode {mode:03o}, so that others could change it: take the right to write from group and others", path = path.display())]
    Writable {
        /// The directory, or one above it.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// The directory to keep compiled code in, made if need be: the one given, or one in the user's cache.
pub(super) fn directory(given: Option<&Path>) -> Result<PathBuf, Untrusted> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => default_directory().ok_or(Untrusted::NoPlace)?,
    };
    platform::prepare(&path)
}

fn default_directory() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("databroker-host"))
}

#[cfg(unix)]
mod platform {
    use std::fs::{DirBuilder, Metadata};
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    use std::path::{Path, PathBuf};

    use super::Untrusted;

    const ROOT: u32 = 0;
    /// Write access for group and others.
    const OTHERS_WRITE: u32 = 0o022;
    /// Entries may be moved by their owners alone.
    const STICKY: u32 = 0o1000;

    pub(super) fn prepare(path: &Path) -> Result<PathBuf, Untrusted> {
        let unusable = |path: &Path| {
            let path = path.to_owned();
            move |error| Untrusted::Unusable { path, error }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(unusable(path))?;
        // Without symbolic links, so that the directories that are looked at are those that are used.
        let path = path.canonicalize().map_err(unusable(path))?;
        let own = own_user().map_err(unusable(&path))?;
        for (depth, directory) in path.ancestors().enumerate() {
            let metadata = directory.metadata().map_err(unusable(directory))?;
            trust(directory, &metadata, own, depth == 0)?;
        }
        Ok(path)
    }

    /// Who the host is. The standard library does not say, but files that the process has just made do, and on Linux
    /// its own entry in `/proc`.
    fn own_user() -> std::io::Result<u32> {
        if let Ok(metadata) = Path::new("/proc/self").metadata() {
            return Ok(metadata.uid());
        }
        let name = format!("databroker-host-{}", uuid::Uuid::new_v4());
        let path = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        let owner = path.symlink_metadata().map(|metadata| metadata.uid());
        std::fs::remove_dir(&path)?;
        owner
    }

    fn trust(path: &Path, metadata: &Metadata, own: u32, innermost: bool) -> Result<(), Untrusted> {
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        if owner != own && owner != ROOT {
            let path = path.to_owned();
            return Err(Untrusted::Owner { path, owner, own });
        }
        let writable = mode & OTHERS_WRITE != 0;
        if writable && (innermost || mode & STICKY == 0) {
            let path = path.to_owned();
            return Err(Untrusted::Writable { path, mode });
        }
        Ok(())
    }
}

#[cfg(not(unix))]
mod platform {
    use std::path::{Path, PathBuf};

    use super::Untrusted;

    /// There is no check for this system, so that nothing is trusted.
    pub(super) fn prepare(path: &Path) -> Result<PathBuf, Untrusted> {
        Err(Untrusted::Unusable {
            path: path.to_owned(),
            error: std::io::ErrorKind::Unsupported.into(),
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_of_our_own_is_made_and_is_ours_alone() {
        // Within a directory like /tmp, to which everybody may write.
        let folder = tempfile::tempdir().unwrap();
        let made = directory(Some(&folder.path().join("a/b"))).unwrap();
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_place_that_others_can_change_is_refused() {
        // Mode of the directory, mode of the one above it, and whether it may be used.
        let cases = [
            (0o700, 0o755, true),
            (0o755, 0o755, true),
            (0o770, 0o755, false),
            (0o707, 0o755, false),
            (0o1777, 0o755, false),
            (0o700, 0o777, false),
            (0o700, 0o775, false),
            (0o700, 0o1777, true),
        ];
        for (mode, above, usable) in cases {
            let folder = tempfile::tempdir().unwrap();
            let parent = folder.path().join("above");
            let path = parent.join("cache");
            std::fs::create_dir_all(&path).unwrap();
            set_mode(&path, mode);
            set_mode(&parent, above);
            match directory(Some(&path)) {
                Ok(_) => assert!(usable, "{mode:o} in {above:o} was used"),
                Err(Untrusted::Writable { path: named, .. }) => {
                    assert!(!usable, "{mode:o} in {above:o} was refused");
                    let culprit = if mode & 0o022 == 0 { &parent } else { &path };
                    assert_eq!(named, culprit.canonicalize().unwrap());
                }
                Err(error) => panic!("{mode:o} in {above:o}: {error}"),
            }
        }
    }

    #[test]
    fn a_link_is_judged_by_where_it_leads() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        let link = folder.path().join("link");
        std::fs::create_dir(&open).unwrap();
        set_mode(&open, 0o777);
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(matches!(directory(Some(&link)), Err(Untrusted::Writable { .. })));
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(directory(Some(file.path())), Err(Untrusted::Unusable { .. })));
    }
}
