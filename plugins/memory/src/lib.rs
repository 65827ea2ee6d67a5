//! The memory plugin: records, their change log and the small state around them, kept in the component's own memory.
//!
//! It is two halves. [`Store`] is plain Rust that knows neither WIT nor clocks: whatever it needs to know of the outside
//! (the time, how to look into data) is an argument. `guest` puts the WIT world around it and exists only where the
//! target is WebAssembly. The host's native backend is the same store without the component boundary, so the difference
//! between the two is exactly what the boundary costs.
//!
//! # Layout
//!
//! - [`store`]: the store as a whole, and reading from it; `put` writes, `retention` removes what is old or too much.
//!   Every function of the WIT interface has its counterpart on [`Store`].
//! - [`batch`](Batch): what is written, and what comes of it.
//! - `table`: the live records and the changes of one type.
//! - `change_log`, `index`, `network`: what a table is made of.
//! - [`entry`](Entry): one change; what a live record and its place in the log share.
//! - `budget`: how many bytes there may be, and how many there are.
//! - `page`: what is asked of a scan or of the change log, and a page of the answer.
//! - `leases`, `services`: the small state.
//! - `reindex`: new options for a type that has records already.

mod batch;
mod budget;
mod change_log;
#[cfg(target_arch = "wasm32")]
mod compare;
mod entry;
#[cfg(target_arch = "wasm32")]
mod guest;
mod index;
mod leases;
mod network;
mod page;
mod put;
mod reindex;
mod retention;
mod services;
pub mod store;
mod table;

pub use batch::{Batch, Change, Operation, Outcome, PutResult, Refusal};
pub use budget::{Budget, SettingsError};
pub use entry::{Data, Entry, Timestamp, Version};
pub use index::{Extract, Values};
pub use leases::{Lease, LeaseAction};
pub use network::{Prefix, PrefixError};
pub use page::{Bounds, ChangesPage, ChangesRequest, Hint, Position, ScanPage, ScanRequest};
pub use reindex::Reindex;
pub use retention::{EvictRequest, Evicted, Pruned};
pub use services::Service;
pub use store::{Checkpoint, Exhausted, Observed, Options, Statistics, Store, TypeStatistics};
