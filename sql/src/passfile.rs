//! Passwords in a file of their own, `~/.pgpass`, as libpq looks them up.
//!
//! A line is `host:port:database:user:password`; `*` stands for anything, a backslash takes the next character as it is,
//! and the first line that fits counts.

use std::path::Path;

use super::connection_string::{Host, Password};

/// The password for a connection, if the file has one. A file that others can read is left alone, with a warning.
pub(crate) fn look_up(path: &Path, host: &Host, database: &str, user: &str) -> Option<Password> {
    use std::os::unix::fs::MetadataExt as _;
    let about = std::fs::metadata(path).ok()?;
    if !about.is_file() || about.mode() & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            "the file of passwords is not used, since others than its owner can read it: set its permissions to 0600"
        );
        return None;
    }
    let text = std::fs::read_to_string(path).ok()?;
    // Under a socket's usual folder libpq looks for this machine's name.
    let name = if host.is_socket() && matches!(host.name.as_str(), "/var/run/postgresql" | "/tmp") {
        "localhost"
    } else {
        &host.name
    };
    let wanted = [name, &host.port.to_string(), database, user];
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| password(line, &wanted))
        .map(Password::from)
}

/// The password in a line that fits.
fn password(line: &str, wanted: &[&str; 4]) -> Option<String> {
    let mut rest = line;
    for wanted in wanted {
        let (field, after) = field(rest)?;
        // An escaped star is a star and nothing else.
        if field != *wanted && !rest.starts_with("*:") {
            return None;
        }
        rest = after;
    }
    // The rest of the line; a colon need not be escaped in it.
    let mut password = String::new();
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => password.extend(characters.next()),
            other => password.push(other),
        }
    }
    Some(password).filter(|password| !password.is_empty())
}

/// A field without its escapes, and what comes after its colon.
fn field(text: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut characters = text.chars();
    loop {
        match characters.next()? {
            ':' => return Some((field, characters.as_str())),
            '\\' => field.extend(characters.next()),
            other => field.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FILE: &str = "# a comment\n\
        other:*:*:*:not this\n\
        db.example:5432:data:*:one\n\
        *:5433:*:us\\:er:two\\\\with:colon\n\
        localhost:*:*:*:three\n";

    fn check(host: &str, port: u16, database: &str, user: &str, expected: Option<&str>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pgpass");
        std::fs::write(&path, FILE).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let host = Host {
            name: host.to_owned(),
            address: None,
            port,
        };
        let found = look_up(&path, &host, database, user);
        assert_eq!(
            found.as_ref().map(Password::expose),
            expected,
            "{host} {database} {user}"
        );

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(look_up(&path, &host, database, user), None, "others can read it");
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        check("db.example", 5432, "data", "anyone", Some("one"));
        check("db.example", 5432, "else", "anyone", None);
        check("anywhere", 5433, "else", "us:er", Some("two\\with:colon"));
        check("anywhere", 5433, "else", "user", None);
        check("/var/run/postgresql", 5432, "a", "b", Some("three"));
    }
}
