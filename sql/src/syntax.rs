//! The two forms of a connection string, taken apart into names and values: a URL, and `name=value` pairs.
//!
//! Strings are read as libpq reads them, down to its quotes, escapes and lists of hosts, because that is what their writers
//! have tried them with; a test holds both readings against each other. One thing libpq takes is refused: an `@` that stands
//! unescaped in a host or in a database's name. It is always part of a password that was not percent-encoded, and the rest
//! of that password would turn up in messages as the name of a host. For the same reason no message
//! here quotes the string, but for names that are known.

use super::connection_string::ConnectionStringError;
use super::keywords;

/// A name and its value, in the order of the string. Names are not looked at yet.
pub(crate) type Pairs = Vec<(String, String)>;

/// Takes a connection string apart.
pub(crate) fn pairs(text: &str) -> Result<Pairs, ConnectionStringError> {
    let url = ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme));
    match url {
        Some(rest) => Url {
            rest,
            pairs: Vec::new(),
        }
        .read(),
        None => name_values(text),
    }
}

fn malformed(problem: impl Into<String>) -> ConnectionStringError {
    ConnectionStringError::Malformed(problem.into())
}

/// What is left of a URL, and what was found in it.
struct Url<'t> {
    rest: &'t str,
    pairs: Pairs,
}

impl<'t> Url<'t> {
    fn read(mut self) -> Result<Pairs, ConnectionStringError> {
        self.user()?;
        let after = self.hosts()?;
        let after = match after {
            None | Some('?') => after,
            Some(_) => self.database()?,
        };
        if after.is_some() {
            self.parameters()?;
        }
        Ok(self.pairs)
    }

    /// Everything up to the first of the characters, which is taken away and given back; without one, everything.
    fn until(&mut self, ends: &[char]) -> (&'t str, Option<char>) {
        match self.rest.find(ends) {
            None => (std::mem::take(&mut self.rest), None),
            Some(at) => {
                let (part, rest) = self.rest.split_at_checked(at).unwrap_or((self.rest, ""));
                let mut characters = rest.chars();
                let end = characters.next();
                self.rest = characters.as_str();
                (part, end)
            }
        }
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ConnectionStringError> {
        let value = decode(value, name)?;
        self.pairs.push((name.to_owned(), value));
        Ok(())
    }

    fn user(&mut self) -> Result<(), ConnectionStringError> {
        let Some(at) = self.rest.find(['@', '/']) else {
            return Ok(());
        };
        let Some((user, rest)) = self.rest.split_at_checked(at).filter(|(_, rest)| rest.starts_with('@')) else {
            return Ok(());
        };
        self.rest = rest.strip_prefix('@').unwrap_or(rest);
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        if !user.is_empty() {
            self.set("user", user)?;
        }
        if !password.is_empty() {
            self.set("password", password)?;
        }
        Ok(())
    }

    /// The hosts and their ports, as two lists of equal length; gives the character after them.
    fn hosts(&mut self) -> Result<Option<char>, ConnectionStringError> {
        let (mut hosts, mut ports) = (String::new(), String::new());
        let after = loop {
            let (host, mut after) = match self.rest.strip_prefix('[') {
                Some(rest) => {
                    self.rest = rest;
                    self.bracketed()?
                }
                None => self.until(&[':', '/', '?', ',']),
            };
            hosts.push_str(host);
            if after == Some(':') {
                let port;
                (port, after) = self.until(&['/', '?', ',']);
                ports.push_str(port);
            }
            if after != Some(',') {
                break after;
            }
            hosts.push(',');
            ports.push(',');
        };
        if hosts.contains('@') || ports.contains('@') {
            return Err(malformed(
                "there is a second `@` before the hosts: within a user's name or a password it is written %40, and `/` %2F",
            ));
        }
        if !hosts.is_empty() {
            self.set("host", &hosts)?;
        }
        if !ports.is_empty() {
            self.set("port", &ports)?;
        }
        Ok(after)
    }

    /// An IPv6 address in brackets, and the character after it.
    fn bracketed(&mut self) -> Result<(&'t str, Option<char>), ConnectionStringError> {
        let (host, end) = self.until(&[']']);
        if end.is_none() {
            return Err(malformed("an IPv6 address begins with `[` and does not end with `]`"));
        }
        if host.is_empty() {
            return Err(malformed(
                "there is nothing between `[` and `]`, where an IPv6 address should be",
            ));
        }
        match self.until(&[':', '/', '?', ',']) {
            ("", after) => Ok((host, after)),
            _ => Err(malformed(
                "after an IPv6 address in brackets only `:` and a port, `,`, `/` or `?` can stand",
            )),
        }
    }

    fn database(&mut self) -> Result<Option<char>, ConnectionStringError> {
        let (database, after) = self.until(&['?']);
        if database.contains('@') {
            return Err(malformed(
                "there is an `@` in the database's name: write it as %40 there, and `/` as %2F if it belongs to the password",
            ));
        }
        if !database.is_empty() {
            self.set("dbname", database)?;
        }
        Ok(after)
    }

    fn parameters(&mut self) -> Result<(), ConnectionStringError> {
        while !self.rest.is_empty() {
            let (parameter, _) = self.until(&['&']);
            let (name, value) = parameter
                .split_once('=')
                .ok_or_else(|| malformed("a parameter after `?` has no `=` and value"))?;
            let name = decode(name, "a parameter's name")?;
            let shown = shown(&name, "a parameter");
            if value.contains('=') {
                return Err(malformed(format!(
                    "{shown} has a second `=`: within a value it is written %3D, and `&` separates parameters"
                )));
            }
            let value = decode(value, shown)?;
            // As drivers of other languages write it.
            let (name, value) = match (name.as_str(), value.as_str()) {
                ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
                _ => (name, value),
            };
            self.pairs.push((name, value));
        }
        Ok(())
    }
}

/// A name as errors may show it. One that is not known may be the rest of a password.
fn shown(name: &str, otherwise: &'static str) -> &'static str {
    keywords::find(name).map_or(otherwise, |known| known.name)
}

/// Undoes percent-encoding. A `+` stays one, as with libpq.
fn decode(text: &str, what: &str) -> Result<String, ConnectionStringError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.split_at_checked(2).and_then(|(digits, after)| {
            let [high, low] = digits else { return None };
            let value = char::from(*high).to_digit(16)? * 16 + char::from(*low).to_digit(16)?;
            Some((u8::try_from(value).ok()?, after))
        });
        match digits {
            Some((0, _)) => return Err(malformed(format!("{what} has a %00, which Postgres cannot take"))),
            Some((value, after)) => {
                bytes.push(value);
                rest = after;
            }
            None => {
                return Err(malformed(format!(
                    "{what} has a `%` without two hexadecimal digits after it: a `%` itself is written %25"
                )));
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| malformed(format!("{what} is not UTF-8 after its percent-encoding is undone")))
}

/// `name = value`, separated by space; values in single quotes may hold space, and a backslash takes the next character as
/// it is.
fn name_values(text: &str) -> Result<Pairs, ConnectionStringError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        let end = rest
            .find(|character| character == '=' || is_space(character))
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let Some(after) = after.trim_start_matches(is_space).strip_prefix('=') else {
            return Err(malformed(if pairs.is_empty() {
                "it is neither a URL that begins with postgres:// nor pairs of name=value".to_owned()
            } else {
                // The word itself may be the rest of a password with a space in it.
                "a word in it has no `=` after it: a value with space in it stands in single quotes".to_owned()
            }));
        };
        let (value, after) = value(after.trim_start_matches(is_space)).ok_or_else(|| {
            let shown = shown(name, "a name in it");
            malformed(format!(
                "the value of {shown} begins with a single quote and does not end with one"
            ))
        })?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start_matches(is_space);
    }
    Ok(pairs)
}

/// A value and what comes after it; none where its quote does not end.
fn value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut characters = quoted.unwrap_or(text).chars();
    let mut value = String::new();
    loop {
        let before = characters.as_str();
        match characters.next() {
            None if quoted.is_some() => return None,
            None => return Some((value, "")),
            Some('\'') if quoted.is_some() => return Some((value, characters.as_str())),
            Some(character) if quoted.is_none() && is_space(character) => return Some((value, before)),
            // At the very end it stands for nothing.
            Some('\\') => value.extend(characters.next()),
            Some(character) => value.push(character),
        }
    }
}

/// What C calls space.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\n' | '\u{b}' | '\u{c}' | '\r')
}
