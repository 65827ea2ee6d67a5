//! What the store needs of the outside: a database, and a look into data.
//!
//! In the component both are imports of the host; in tests they are the host's own library and a few lines.

#![allow(
    async_fn_in_trait,
    reason = "a component has one thread, so nobody asks whether these futures may change threads"
)]

use std::time::Duration;

/// A value of a parameter or a column.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// `boolean`.
    Boolean(bool),
    /// `bigint`.
    Integer(i64),
    /// `text`.
    Text(String),
    /// `bytea`.
    Bytes(Vec<u8>),
    /// `timestamptz`, in microseconds since 1970.
    Timestamp(i64),
    /// `boolean[]`.
    Booleans(Vec<Option<bool>>),
    /// `bigint[]`.
    Integers(Vec<Option<i64>>),
    /// `text[]`.
    Texts(Vec<Option<String>>),
    /// `bytea[]`.
    ByteStrings(Vec<Option<Vec<u8>>>),
}

/// A statement and its parameters.
#[derive(Clone, Debug)]
pub struct Query {
    /// The text.
    pub text: String,
    /// The parameters.
    pub parameters: Vec<Value>,
}

impl Query {
    /// A statement with parameters.
    pub fn new(text: impl Into<String>, parameters: Vec<Value>) -> Self {
        Self {
            text: text.into(),
            parameters,
        }
    }
}

/// A row, which is taken apart from its first column on.
#[derive(Debug)]
pub struct Row(std::vec::IntoIter<Value>);

impl Row {
    /// A row of values.
    #[must_use]
    pub fn new(values: Vec<Value>) -> Self {
        Self(values.into_iter())
    }

    fn next(&mut self) -> Value {
        self.0.next().unwrap_or(Value::Null)
    }

    /// The next column as a whole number; none where it is null.
    pub(crate) fn integer(&mut self) -> Result<Option<i64>, Failure> {
        match self.next() {
            Value::Integer(value) | Value::Timestamp(value) => Ok(Some(value)),
            Value::Null => Ok(None),
            other => Err(unexpected("a number", &other)),
        }
    }

    /// The next column as a whole number; 0 where it is null.
    pub(crate) fn number(&mut self) -> Result<i64, Failure> {
        Ok(self.integer()?.unwrap_or(0))
    }

    /// The next column as a number that is not negative; 0 where it is null.
    pub(crate) fn count(&mut self) -> Result<u64, Failure> {
        Ok(u64::try_from(self.number()?).unwrap_or(0))
    }

    /// The next column as text; none where it is null.
    pub(crate) fn text(&mut self) -> Result<Option<String>, Failure> {
        match self.next() {
            Value::Text(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            other => Err(unexpected("text", &other)),
        }
    }

    /// The next column as bytes; none where it is null.
    pub(crate) fn bytes(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        match self.next() {
            Value::Bytes(bytes) => Ok(Some(bytes)),
            Value::Null => Ok(None),
            other => Err(unexpected("bytes", &other)),
        }
    }

    /// The next column as a truth value; false where it is null.
    pub(crate) fn boolean(&mut self) -> Result<bool, Failure> {
        match self.next() {
            Value::Boolean(value) => Ok(value),
            Value::Null => Ok(false),
            other => Err(unexpected("true or false", &other)),
        }
    }

    /// The next column as a list of numbers; empty where it is null.
    pub(crate) fn integers(&mut self) -> Result<Vec<i64>, Failure> {
        match self.next() {
            Value::Integers(items) => Ok(items.into_iter().flatten().collect()),
            Value::Null => Ok(Vec::new()),
            other => Err(unexpected("a list of numbers", &other)),
        }
    }

    /// The next column as a list of texts; empty where it is null.
    pub(crate) fn texts(&mut self) -> Result<Vec<String>, Failure> {
        match self.next() {
            Value::Texts(items) => Ok(items.into_iter().flatten().collect()),
            Value::Null => Ok(Vec::new()),
            other => Err(unexpected("a list of texts", &other)),
        }
    }
}

fn unexpected(wanted: &str, found: &Value) -> Failure {
    // The value itself may be anybody's data.
    let found = match found {
        Value::Null => "nothing",
        Value::Boolean(_) => "true or false",
        Value::Integer(_) => "a number",
        Value::Timestamp(_) => "a time",
        Value::Text(_) => "text",
        Value::Bytes(_) => "bytes",
        _ => "a list",
    };
    Failure {
        kind: FailureKind::Other,
        code: None,
        message: format!("the database has {found} where {wanted} belongs: its schema is not Pomerium's"),
    }
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Wrong settings.
    Settings,
    /// Not reachable at present, or the outcome is unknown.
    Unavailable,
    /// The server takes no writes.
    ReadOnly,
    /// Transactions were in each other's way.
    Conflict,
    /// No room.
    Full,
    /// The answer is too large.
    TooLarge,
    /// Anything else.
    Other,
}

/// Why a statement has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure it is.
    pub kind: FailureKind,
    /// The server's code (SQLSTATE), where it has told one.
    pub code: Option<String>,
    /// A sentence for the operator.
    pub message: String,
}

impl Failure {
    /// True where a function or a table that a statement names is not there.
    pub(crate) fn is_of_what_is_missing(&self) -> bool {
        const FUNCTION: &str = "42883";
        const TABLE: &str = "42P01";
        matches!(self.code.as_deref(), Some(FUNCTION | TABLE))
    }

    /// True where somebody else has made what a statement was to make.
    pub(crate) fn is_of_what_is_there(&self) -> bool {
        const KEY: &str = "23505";
        const SCHEMA: &str = "42P06";
        const TABLE: &str = "42P07";
        matches!(self.code.as_deref(), Some(KEY | SCHEMA | TABLE))
    }

    /// True where somebody held what a statement wanted for longer than it was to wait.
    pub(crate) fn is_of_a_lock(&self) -> bool {
        self.code.as_deref() == Some("55P03")
    }
}

/// Where statements run: a database, or a transaction.
pub trait Session {
    /// Runs a statement.
    async fn run(&self, query: Query) -> Result<Vec<Row>, Failure>;
}

/// A database.
pub trait Database: Session {
    /// A transaction, which is rolled back unless it is committed.
    type Transaction: Session;

    /// Begins one.
    async fn begin(&self) -> Result<Self::Transaction, Failure>;

    /// Commits it.
    async fn commit(&self, transaction: Self::Transaction) -> Result<(), Failure>;

    /// Waits until the database notifies of something, or so long.
    async fn notified(&self, longest: Duration);

    /// Waits.
    async fn sleep(&self, time: Duration);

    /// Says something to the operator.
    fn warn(&self, message: &str);
}

/// Why JSON cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonError {
    /// The type is not known; this is its URL.
    UnknownType(String),
    /// The data is not what it should be.
    Malformed,
}

/// A look into data.
pub trait Data {
    /// Encoded data as JSON, one answer each.
    fn to_json(&self, data: Vec<Vec<u8>>) -> Vec<Result<String, JsonError>>;

    /// The reverse.
    fn read_json(&self, json: Vec<String>) -> Vec<Result<Vec<u8>, JsonError>>;
}
