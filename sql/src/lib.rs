//! Postgres for plugins: what stands between a plugin's statements and servers that come and go.
//!
//! A plugin asks for rows; everything else is here, in plain Rust without a component in sight, so that it is tested against
//! real servers by itself. The protocol is sqlx's. What is added to it: connection strings as libpq reads them, several
//! hosts and the roles they may have, TLS with exactly the authorities that were named, a pool that follows a failover,
//! bounds on rows, bytes and time, statements that end when they are dropped, and failures told apart by what to do about them.
//!
//! ```no_run
//! use std::time::Duration;
//! use databroker_sql::{ConnectionString, Environment, Pool, Statement, Value};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let text = "postgres://broker@one.example,two.example/data?target_session_attrs=read-write";
//! let pool = Pool::open(ConnectionString::parse(text, &Environment::process())?).await?;
//! let statement = Statement {
//!     sql: "SELECT id FROM records WHERE type = ANY($1)",
//!     parameters: &[Value::Texts(vec![Some("one".to_owned()), Some("other".to_owned())])],
//!     max_rows: 1000,
//!     max_bytes: 1 << 20,
//!     timeout: Duration::from_secs(5),
//! };
//! let rows = pool.run(&statement, Duration::from_secs(1)).await?;
//! # let _ = rows;
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//!
//! - `syntax`, `keywords`, `connection_string`: strings, apart and together
//! - `connect`, `transport`, `pipe`, `guard`, `passfile`: one connection
//! - `pool`, `bouncer`: many
//! - `statement`, `value`, `transaction`, `listener`: what is done with one
//! - `error`: what went wrong
//! - `fuzz`: doors for fuzzing

mod bouncer;
mod connect;
mod connection_string;
mod duration;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod keywords;
mod listener;
mod passfile;
mod pipe;
mod pool;
mod statement;
mod syntax;
mod transaction;
mod transport;
mod value;

pub use connection_string::{
    Authorities, ConnectionString, ConnectionStringError, Environment, Host, Password, PoolSettings, TargetSession,
    TlsMode, TlsSettings,
};
pub use error::{Error, ErrorKind};
pub use listener::{Listener, Wake};
pub use pool::{Held, Pool, PoolStatistics};
pub use statement::{Rows, Statement};
pub use transaction::{Isolation, Transaction, TransactionOptions};
pub use value::Value;

/// A connection string taken apart into names and values, as libpq does it, for tests that compare the two.
///
/// # Errors
///
/// [`ConnectionStringError`] where it is malformed.
#[doc(hidden)]
pub fn connection_string_pairs(text: &str) -> Result<Vec<(String, String)>, ConnectionStringError> {
    syntax::pairs(text)
}
