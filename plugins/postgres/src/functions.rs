//! Our functions in the database.
//!
//! Each is named by a digest of its text, so that hosts of different versions on one database each find their own.

use crate::small::OPTIONS_REVISION;
use crate::text::digest;

/// The key of the advisory lock that all writers take: "databrok" in ASCII.
pub(crate) const WRITERS: i64 = 0x6461_7461_6272_6f6b;

/// The names of the functions, and the statements that make them.
pub(crate) struct Functions {
    /// Takes the writers' lock.
    pub(crate) lock: String,
    /// Writes changes.
    pub(crate) write: String,
    statements: [String; 2],
}

impl Functions {
    pub(crate) fn new() -> Self {
        let lock_text = include_str!("lock.sql").replace("{key}", &WRITERS.to_string());
        let lock = format!("host_lock_{}", digest(&lock_text));
        let write_text = include_str!("write.sql")
            .replace("{lock}", &lock)
            .replace("{options_revision}", OPTIONS_REVISION);
        let write = format!("host_write_{}", digest(&write_text));
        let statements = [lock_text.replace("{name}", &lock), write_text.replace("{name}", &write)];
        Self {
            lock,
            write,
            statements,
        }
    }

    /// Each name with the statement that makes it, in the order in which they are made.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = [&self.lock, &self.write].map(String::as_str);
        names.into_iter().zip(self.statements.iter().map(String::as_str))
    }
}
