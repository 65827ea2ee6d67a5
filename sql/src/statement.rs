//! One statement: its parameters, its bounds, and what comes back.

use std::time::Duration;

use futures::TryStreamExt as _;
use sqlx::{AssertSqlSafe, Either, PgConnection};

use super::error::{Error, ErrorKind};
use super::value::{Parameter, Value, read_row};

/// A statement with its parameters, `$1` and on, and its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Statement<'s> {
    /// The text: one statement.
    pub sql: &'s str,
    /// The parameters, in their order.
    pub parameters: &'s [Value],
    /// Rows at most; with more it fails.
    pub max_rows: u64,
    /// Bytes of rows at most; with more it fails.
    pub max_bytes: u64,
    /// How long it may take, waiting for a connection aside.
    pub timeout: Duration,
}

/// The longest text of a statement that is kept prepared, in bytes, with the types of its parameters. A longer one is prepared each time.
const KEPT_TEXT: usize = 16 << 10;

/// What a statement gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// The rows, each with one value per column.
    pub rows: Vec<Vec<Value>>,
    /// How many bytes they count, by [`Value::size`].
    pub bytes: u64,
    /// How many rows were written, or read.
    pub affected: u64,
}

/// Runs it. Dropped on the way, it leaves the connection in no usable state.
pub(crate) async fn run(
    connection: &mut PgConnection,
    statement: &Statement<'_>,
    prepare: bool,
) -> Result<Rows, Error> {
    let running = run_to_end(connection, statement, prepare);
    tokio::time::timeout(statement.timeout, running)
        .await
        .unwrap_or_else(|_| {
            let problem = format!(
                "the statement took longer than its {} ms",
                statement.timeout.as_millis()
            );
            Err(Error::new(ErrorKind::Timeout, problem))
        })
}

async fn run_to_end(connection: &mut PgConnection, statement: &Statement<'_>, prepare: bool) -> Result<Rows, Error> {
    let mut arguments = sqlx::postgres::PgArguments::default();
    let mut types = String::new();
    for parameter in statement.parameters {
        sqlx::Arguments::add(&mut arguments, Parameter(parameter)).map_err(sqlx::Error::Encode)?;
        types.push_str(&parameter.type_number().to_string());
        types.push(' ');
    }
    // Prepared statements are kept by their text alone, and the same text may come with parameters of other types.
    let text = format!("{}\n-- {types}", statement.sql);
    let prepare = prepare && text.len() <= KEPT_TEXT;
    let query = sqlx::query_with(AssertSqlSafe(text), arguments).persistent(prepare);
    let mut answer = sqlx::Executor::fetch_many(connection, query);
    let mut result = Rows::default();
    let too_large = || {
        let problem = format!(
            "the statement gives more than the {} rows or the {} bytes that it may: ask for fewer, page by page",
            statement.max_rows, statement.max_bytes
        );
        Error::new(ErrorKind::TooLarge, problem)
    };
    while let Some(item) = answer.try_next().await? {
        match item {
            Either::Left(done) => result.affected = result.affected.saturating_add(done.rows_affected()),
            Either::Right(row) => {
                if u64::try_from(result.rows.len()).unwrap_or(u64::MAX) >= statement.max_rows {
                    return Err(too_large());
                }
                let left = statement.max_bytes.saturating_sub(result.bytes);
                let (values, bytes) = read_row(&row, left)?.ok_or_else(too_large)?;
                result.bytes = result.bytes.saturating_add(bytes);
                result.rows.push(values);
            }
        }
    }
    Ok(result)
}
