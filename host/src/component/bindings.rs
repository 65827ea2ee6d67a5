//! The WIT world `databroker:storage/backend` in Rust, generated once.
//!
//! Everything generated stays in a private module and only the names that the adapter needs leave it, so that the `use`
//! lines of a file show which part of the interface it touches. `convert` is the only file that knows
//! both these types and the plain ones.

#[allow(missing_docs, reason = "generated code")]
mod generated {
    wasmtime::component::bindgen!({
        world: "backend",
        path: "../wit/storage-0.1.0",
    });
}

pub(super) use generated::databroker::storage::{log, protobuf, types};
pub(super) use generated::exports::databroker::storage::store;
pub(super) use generated::{Backend as World, BackendPre as WorldPre};
