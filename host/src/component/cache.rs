//! Where the compiled code of outside components is kept, and whether it can be trusted.
//!
//! The host runs what it finds here. So whoever can write to the directory can run code in the host. It is used only if it
//! is ours alone, and if nobody else can put another in its place: every directory on the way to it belongs to us or to root
//! and is not writable for others, save for those like `/tmp` in which only an entry's owner can move it.
//!
//! An entry is named by the component's content and by all that the engine's code depends on, so that another component,
//! engine or setting never finds it. It begins with a digest of the code: what a disk has damaged is compiled again, and
//! never run.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;

/// Most entries that are kept; the oldest go.
const ENTRIES: usize = 16;

/// How entries' names end.
const ENDING: &str = "compiled";

/// How long the digest is with which an entry begins, in bytes.
const DIGEST: usize = 32;

fn digest_of(code: &[u8]) -> [u8; DIGEST] {
    Sha256::digest(code).into()
}

/// Compiled code that came out of the engine of this process, or out of the cache whole.
pub(super) struct Code(Vec<u8>);

impl Code {
    /// Compiles a component. A large one takes seconds, and one that is made for it a minute and a gigabyte, for there is no
    /// bound but those of the file and of WebAssembly itself; so the log says what a start waits for.
    ///
    /// # Errors
    ///
    /// What the engine says of the component.
    pub(super) fn compile(engine: &Engine, component: &[u8]) -> wasmtime::Result<Self> {
        tracing::info!(bytes = component.len(), "compiling the plugin");
        let began = Instant::now();
        let code = engine.precompile_component(component)?;
        tracing::info!(seconds = began.elapsed().as_secs_f32(), "compiled the plugin");
        Ok(Self(code))
    }

    /// The code.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The kept code of components.
pub(super) struct Cache {
    directory: PathBuf,
}

impl Cache {
    /// A cache in the directory given, or in one in the user's cache, which is made if need be.
    ///
    /// # Errors
    ///
    /// [`Untrusted`] where others could change what is in it.
    pub(super) fn open(given: Option<&Path>) -> Result<Self, Untrusted> {
        Ok(Self {
            directory: directory(given)?,
        })
    }

    /// Where the code of a component is kept, for an engine.
    pub(super) fn entry(&self, engine: &Engine, component: &[u8]) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let component = Sha256::digest(component);
        self.directory
            .join(format!("{component:x}-{:016x}.{ENDING}", hasher.finish()))
    }

    /// The code in an entry, if there is one. A damaged one is told and removed.
    pub(super) fn read(&self, entry: &Path) -> Option<Code> {
        let mut bytes = match fs::read(entry) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(entry = %entry.display(), %error, "cannot read the plugin's compiled code: compiling it again");
                return None;
            }
        };
        let whole = bytes
            .split_at_checked(DIGEST)
            .is_some_and(|(digest, code)| *digest == digest_of(code));
        if !whole {
            tracing::warn!(entry = %entry.display(), "the plugin's compiled code is damaged: compiling it again");
            self.remove(entry);
            return None;
        }
        bytes.drain(..DIGEST);
        Some(Code(bytes))
    }

    /// Keeps code. Where that fails, the next start compiles again.
    pub(super) fn write(&self, entry: &Path, code: &Code) {
        // Under a name of its own until it is whole, since another process may be looking.
        let unfinished = entry.with_extension(uuid::Uuid::new_v4().to_string());
        let content = [&digest_of(code.bytes()), code.bytes()].concat();
        let written = fs::write(&unfinished, content).and_then(|()| fs::rename(&unfinished, entry));
        if let Err(error) = written {
            tracing::warn!(
                entry = %entry.display(), %error,
                "the plugin's compiled code is not kept, so that the next start compiles again"
            );
            self.remove(&unfinished);
        }
        self.forget_oldest();
    }

    /// Removes an entry that is of no use, such as one that the engine does not take.
    pub(super) fn remove(&self, entry: &Path) {
        // It is written over where it stays.
        let _ = fs::remove_file(entry);
    }

    fn forget_oldest(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let mut entries: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let ours = entry.path().extension()?.to_str()? == ENDING;
                let modified = entry.metadata().ok()?.modified().ok()?;
                ours.then(|| (modified, entry.path()))
            })
            .collect();
        entries.sort();
        let surplus = entries.len().saturating_sub(ENTRIES);
        entries
            .into_iter()
            .take(surplus)
            .for_each(|(_, entry)| self.remove(&entry));
    }
}

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
fn directory(given: Option<&Path>) -> Result<PathBuf, Untrusted> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => default_directory().ok_or(Untrusted::NoPlace)?,
    };
    platform::prepare(&path)
}

/// Where compiled code is kept, as configured or by default; none where there is no place for it. Nothing is made or looked at.
pub fn cache_directory(given: Option<&Path>) -> Option<PathBuf> {
    given.map(Path::to_owned).or_else(default_directory)
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
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

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

    #[test]
    fn damaged_code_is_never_returned() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(folder.path())).unwrap();
        let entry = folder.path().join(format!("one.{ENDING}"));
        let code = Code((0..1000).map(|number| (number % 251) as u8).collect());
        cache.write(&entry, &code);
        assert_eq!(cache.read(&entry).unwrap().bytes(), code.bytes());
        let whole = std::fs::read(&entry).unwrap();
        for damage in [
            Box::new(|bytes: &mut Vec<u8>| bytes[700] ^= 1) as Box<dyn Fn(&mut Vec<u8>)>,
            Box::new(|bytes| bytes[3] ^= 1),
            Box::new(|bytes| bytes.truncate(900)),
            Box::new(|bytes| bytes.truncate(10)),
            Box::new(Vec::clear),
            Box::new(|bytes| bytes.push(0)),
        ] {
            let mut damaged = whole.clone();
            damage(&mut damaged);
            std::fs::write(&entry, damaged).unwrap();
            assert!(cache.read(&entry).is_none());
            assert!(!entry.exists());
        }
    }

    #[test]
    fn the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(folder.path())).unwrap();
        let entry = |number: usize| folder.path().join(format!("{number:02}.{ENDING}"));
        std::fs::write(folder.path().join("not ours"), "").unwrap();
        for number in 0..ENTRIES + 3 {
            cache.write(&entry(number), &Code(vec![1]));
        }
        let kept = (0..ENTRIES + 3).filter(|number| entry(*number).exists()).count();
        assert_eq!(kept, ENTRIES);
        assert!(folder.path().join("not ours").exists() && entry(ENTRIES + 2).exists());
    }
}
