//! What is written, and what comes of it.

use std::sync::Arc;

use crate::entry::{Data, Entry, Version};
use crate::network::Prefix;

/// Steps that are applied as one, in their order.
pub type Batch<D> = Vec<Change<D>>;

/// One step of a batch.
#[derive(Clone, Debug)]
pub struct Change<D> {
    /// The record's type.
    pub record_type: String,
    /// The record's id.
    pub id: String,
    /// What to do with it.
    pub operation: Operation<D>,
    /// The version that the record must have, as earlier steps left it; 0 for "there is no record".
    pub expected: Option<Version>,
}

/// What to do with one record.
#[derive(Clone, Debug)]
pub enum Operation<D> {
    /// Writes it, whether or not it is there.
    Upsert {
        /// Its data.
        data: Option<D>,
        /// The network in the data.
        network: Option<Prefix>,
    },
    /// Removes it, if it is there.
    Delete,
}

/// The outcomes of one call's batches, in their order.
#[derive(Debug)]
pub struct PutResult<D: Data> {
    /// The server version that the batches were written under.
    pub server_version: u64,
    /// For each batch the outcomes of its steps, or why it was refused.
    pub batches: Vec<Result<Vec<Outcome<D>>, Refusal>>,
}

/// The outcome of one step.
#[derive(Debug)]
pub enum Outcome<D: Data> {
    /// The version that the upsert was given.
    Stored(Version),
    /// The tombstone that the delete has left.
    Deleted(Arc<Entry<D>>),
    /// There was nothing to delete.
    Missing,
}

/// Why a batch was refused; it has changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The step with this index found another version than it expected.
    Conflict(usize),
    /// There is no room for it; says what is full and what to do.
    Exhausted(String),
}
