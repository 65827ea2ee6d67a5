//! The Postgres plugin: Pomerium's own schema, so that its own databrokers can work on the same database at the same time.
//!
//! It is two halves. [`Store`] is plain Rust over two traits, one for a database and one for a look into data, so that it is
//! tested against real servers without a component in between. `guest` puts the WIT world around it and exists only where
//! the target is WebAssembly.
//!
//! Three things make a store of it that keeps the laws which Pomerium's own does not:
//!
//! - **One writer at a time.** Every write takes an advisory lock before it takes versions and holds it until it has
//!   committed. So among hosts versions become visible in order. A write carries the batches of all callers that wait, so
//!   throughput does not follow the time that a commit takes. Beside Pomerium's own processes it keeps those from writing
//!   meanwhile, since their readers would pass by what is committed late.
//! - **A horizon.** Pomerium's own processes do not take that lock. So a reader looks for gaps below what it sees, and for
//!   transactions that may yet fill them, before it goes past: see `horizon`.
//! - **Exact bytes beside JSON.** Pomerium keeps data as JSON, which loses what it does not know. What was put is kept in a
//!   table of our own under the version that it was given; a row without such an entry is one that Pomerium wrote.
//!
//! # Statements
//!
//! A statement goes by the search path of the role. What is named in `pg_catalog` comes first there, unless something of the
//! same name takes exactly the types that the statement has: whoever may make functions in a schema of the path could have
//! theirs run with the rights of the host. So each argument has exactly the type that the server's own function or operator
//! takes (`'@type'::text` of a JSON operator, `indexname::text`); where that takes any type, `pg_catalog.` stands before it.
//!
//! # Layout
//!
//! - `database`: the two traits, values, failures
//! - `store`: what all calls share, and its errors
//! - `schema`: the tables, made or checked
//! - `record`: rows to records; `json`: data to JSON and back
//! - `field`: looking records up by what is in their JSON
//! - `horizon`: how far reading is safe; `timeline`: a database that has lost changes
//! - `page`: records within bounds; `window`: how far one looks; `read`: get, scan, changes
//! - `plan`: what a put comes to; `write`: put, evict, clear, with `write.sql` and `lock.sql`, which are `functions` in the
//!   database; `retention`: prune
//! - `small`: options, leases, checkpoint, services; `clock`: how old something is
//! - `text`: text with the character NUL

mod clock;
mod database;
mod field;
mod functions;
#[cfg(target_arch = "wasm32")]
mod guest;
mod horizon;
mod json;
mod page;
mod plan;
mod read;
mod record;
mod retention;
mod schema;
mod small;
mod store;
mod text;
mod timeline;
mod window;
mod write;

pub use database::{Data, Database, Failure, FailureKind, JsonError, Query, Row, Session, Value};
pub use read::{ChangesPage, ChangesRequest, Hint, ScanPage, ScanRequest};
pub use record::{Key, Position, Record};
pub use retention::{Pruned, Statistics, TypeStatistics};
pub use small::{LeaseAction, Observed, Options, Service};
pub use store::{Error, Store};
pub use write::{Change, EvictRequest, Evicted, Operation, Outcome, PutResult, Refusal};
