//! Why something did not work, told apart by what a caller or an operator would do about it.
//!
//! The server's codes (SQLSTATE) decide, never its words, which come in the server's language. Of its words only the first
//! line is passed on: the details hold keys and values of rows.

use std::fmt;

use sqlx::postgres::PgDatabaseError;

use super::guard;

/// Most bytes of what a server says: a statement that raises an error may give it a text of any length, and logs have it.
const LONGEST: usize = 4 << 10;

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The settings are wrong: password, database, certificate, permission. Trying again does not help.
    Settings,
    /// No server can be reached, or the connection broke. The outcome of what was under way is unknown.
    Unreachable,
    /// Servers start, stop or change their roles. It passes.
    FailingOver,
    /// The server takes no writes.
    ReadOnly,
    /// The server, or the pool, has no connection left.
    OutOfConnections,
    /// Transactions were in each other's way. Nothing was changed; the same may succeed at once.
    Conflict,
    /// The server has no room left on its disk or in its memory.
    Full,
    /// It took longer than it may, or was cancelled.
    Timeout,
    /// The answer has more rows or bytes than it may, or what was sent is beyond what the server can do.
    TooLarge,
    /// The statement itself is wrong, or the rows forbid it.
    Statement,
}

impl ErrorKind {
    /// Its name, for metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Unreachable => "unreachable",
            Self::FailingOver => "failing_over",
            Self::ReadOnly => "read_only",
            Self::OutOfConnections => "out_of_connections",
            Self::Conflict => "conflict",
            Self::Full => "full",
            Self::Timeout => "timeout",
            Self::TooLarge => "too_large",
            Self::Statement => "statement",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A failure. Its text has no password. Of the kind [`ErrorKind::Statement`] it may hold a part of a value: the server says
/// what it could not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    code: Option<String>,
    message: String,
}

impl Error {
    /// A failure that no server has told of.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            code: None,
            message: message.into(),
        }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The server's code, five characters, where the server has told one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// The same, with the place where it happened.
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// What it is where a server says it of a client that logs in: there is no statement yet, but a parameter that the server
    /// does not know or take, or a server that is not ready for clients.
    pub(crate) fn of_login(mut self) -> Self {
        if self.kind == ErrorKind::Statement {
            let is_parameter = |code: &str| code.starts_with("22") || code.starts_with("42");
            self.kind = match &self.code {
                Some(code) if is_parameter(code) => ErrorKind::Settings,
                _ => ErrorKind::Unreachable,
            };
        }
        self
    }

    /// True where the connection is of no more use.
    pub(crate) fn breaks_connection(&self) -> bool {
        matches!(self.kind, ErrorKind::Unreachable | ErrorKind::FailingOver)
            // Found here, in the middle of an answer or in place of its rest.
            || (self.code.is_none() && matches!(self.kind, ErrorKind::TooLarge | ErrorKind::Timeout))
    }

    /// True where another server may have to be looked for.
    pub(crate) fn moves_elsewhere(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable | ErrorKind::FailingOver | ErrorKind::ReadOnly
        )
    }

    /// True where the server has refused to let this client in, which another server would do as well.
    pub(crate) fn refuses_client(&self) -> bool {
        let code = self.code.as_deref().unwrap_or_default();
        code.starts_with("28") || matches!(code, "3D000" | "42501")
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
                // Said here, and not by the server.
                Some(error) if error.code() == guard::LARGE => Self::new(ErrorKind::TooLarge, error.message()),
                Some(error) if error.code() == guard::UNSUPPORTED => Self::new(ErrorKind::Statement, error.message()),
                Some(error) => Self {
                    kind: of_code(error.code()),
                    code: Some(error.code().to_owned()),
                    message: format!(
                        "Postgres says: {} (SQLSTATE {})",
                        beginning(error.message()),
                        error.code()
                    ),
                },
                None => Self::new(ErrorKind::Statement, error.to_string()),
            },
            sqlx::Error::Io(error) => Self::new(ErrorKind::Unreachable, format!("the connection broke: {error}")),
            sqlx::Error::Configuration(error) => Self::new(ErrorKind::Settings, error.to_string()),
            sqlx::Error::Encode(error) => {
                Self::new(ErrorKind::Statement, format!("a parameter cannot be sent: {error}"))
            }
            sqlx::Error::ColumnDecode { index, source } => {
                Self::new(ErrorKind::Statement, format!("column {index} cannot be read: {source}"))
            }
            // Whatever else there is leaves the connection in an unknown state.
            other => Self::new(
                ErrorKind::Unreachable,
                format!("the connection is out of step: {other}"),
            ),
        }
    }
}

/// That of a socket to a server.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(ErrorKind::Unreachable, error.to_string())
    }
}

/// As much of a text as is passed on.
fn beginning(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST)).unwrap_or_default()
}

/// What kind of failure the server's code stands for.
fn of_code(code: &str) -> ErrorKind {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        ("28", _) | (_, "3D000" | "42501" | "3F000") => ErrorKind::Settings,
        (_, "53300") => ErrorKind::OutOfConnections,
        // Shutting down, crashed, starting up.
        (_, "57P01" | "57P02" | "57P03") => ErrorKind::FailingOver,
        (_, "25006") => ErrorKind::ReadOnly,
        (_, "40001" | "40P01") => ErrorKind::Conflict,
        // Disk, memory, a limit on temporary files, or another of its resources.
        ("53", _) => ErrorKind::Full,
        // It cannot read or write its own files.
        ("58", _) => ErrorKind::Unreachable,
        (_, "57014" | "55P03") => ErrorKind::Timeout,
        // A key that no index takes, an expression that is nested too deep, and the like.
        ("54", _) => ErrorKind::TooLarge,
        // Ended by the server: it idled (within a transaction, or at all), took too long, or its database was removed.
        ("08", _) | (_, "25P03" | "25P04" | "57P04" | "57P05") => ErrorKind::Unreachable,
        _ => ErrorKind::Statement,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_what_to_do() {
        for (code, kind) in [
            ("28P01", ErrorKind::Settings),
            ("3D000", ErrorKind::Settings),
            ("08006", ErrorKind::Unreachable),
            ("57P03", ErrorKind::FailingOver),
            ("25006", ErrorKind::ReadOnly),
            ("53300", ErrorKind::OutOfConnections),
            ("40001", ErrorKind::Conflict),
            ("40P01", ErrorKind::Conflict),
            ("53100", ErrorKind::Full),
            ("53000", ErrorKind::Full),
            ("53400", ErrorKind::Full),
            ("58030", ErrorKind::Unreachable),
            ("XX001", ErrorKind::Statement),
            ("57014", ErrorKind::Timeout),
            ("54000", ErrorKind::TooLarge),
            ("57P05", ErrorKind::Unreachable),
            ("23505", ErrorKind::Statement),
            ("", ErrorKind::Statement),
        ] {
            assert_eq!(of_code(code), kind, "{code}");
        }
    }
}
