//! Reads the small files that settings name, without waiting for anything: a pipe or a device is refused before it is
//! opened, since reading one could take for ever.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

/// The most that a file with a secret or a connection string may hold, in bytes.
pub(crate) const SECRET_BYTES: u64 = 64 << 10;

/// What is in a file.
pub(crate) struct Contents {
    pub(crate) bytes: Vec<u8>,
    /// Whether the file's mode lets all users read it. A group is no reason to worry: whoever mounts a secret for a
    /// process, such as Kubernetes, lets it read the file as one of a group.
    pub(crate) others_can_read: bool,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error("it is {0}, not a file")]
    NotRegular(&'static str),
    #[error("it holds more than {0} bytes")]
    TooLarge(u64),
}

/// Reads a regular file of at most so many bytes.
pub(crate) fn read(path: &Path, most: u64) -> Result<Contents, FileError> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        return Err(FileError::NotRegular(if kind.is_dir() {
            "a directory"
        } else if kind.is_fifo() {
            "a pipe"
        } else if kind.is_socket() {
            "a socket"
        } else {
            "a device"
        }));
    }
    let mut bytes = Vec::new();
    let length = File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(length).is_ok_and(|length| length > most) {
        return Err(FileError::TooLarge(most));
    }
    Ok(Contents {
        bytes,
        others_can_read: metadata.permissions().mode() & 0o004 != 0,
    })
}
