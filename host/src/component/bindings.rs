//! The WIT world `databroker:storage/backend`, with all that a plugin may import, in Rust, generated once.
//!
//! Everything generated stays in a private module and only the names that the adapter needs leave it, so that the `use`
//! lines of a file show which part of the interface it touches. `convert` makes plain types of them.

#[allow(missing_docs, reason = "generated code")]
mod generated {
    wasmtime::component::bindgen!({
        world: "sql-backend",
        path: "../wit/storage-0.1.0",
        imports: {
            "databroker:storage/config.get-secret": trappable,
            "databroker:storage/config.[method]secret.reveal": trappable,
            "databroker:storage/sql": trappable,
        },
        with: {
            "databroker:storage/config.secret": crate::component::grants::Secret,
            "databroker:storage/sql.transaction": crate::component::sql::OpenTransaction,
            "databroker:storage/sql.listener": crate::component::sql::OpenListener,
        },
    });
}

pub(super) use generated::databroker::storage::{config, log, protobuf, sql, types};
pub(super) use generated::exports::databroker::storage::store;
pub(super) use generated::{SqlBackend as World, SqlBackendPre as WorldPre};
