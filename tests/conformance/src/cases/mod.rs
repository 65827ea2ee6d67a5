//! The cases by area. Each module begins with its table; the functions follow in the same order.

use crate::case::Case;

mod auth;
mod checkpoint;
mod delete;
mod filter;
mod get;
mod health;
mod laws;
mod leases;
mod limits;
mod network;
mod options;
mod patch;
mod put;
mod query;
mod reflection;
mod registry;
mod retention;
mod store;
mod sync;
mod sync_latest;
mod text;

/// All tables.
pub(crate) const ALL: &[&[Case]] = &[
    auth::CASES,
    get::CASES,
    put::CASES,
    delete::CASES,
    patch::CASES,
    query::CASES,
    filter::CASES,
    network::CASES,
    text::CASES,
    sync_latest::CASES,
    sync::CASES,
    options::CASES,
    retention::CASES,
    leases::CASES,
    registry::CASES,
    checkpoint::CASES,
    health::CASES,
    reflection::CASES,
    limits::CASES,
    laws::CASES,
    store::CASES,
];
