//! Several databrokers on one Postgres: hosts of this project through faults, and beside Pomerium's own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod config_check;
mod faulty;
mod history;
mod horizon;
mod pomerium;
mod side_by_side;
mod take_over;

use std::path::PathBuf;

use databroker_shared_postgres::cluster::Setup;

/// The program that is the host.
const PROGRAM: &str = env!("CARGO_BIN_EXE_databroker-shared-postgres");

/// Three hosts on one server.
fn setup() -> Setup {
    Setup::new(PathBuf::from(PROGRAM))
}
