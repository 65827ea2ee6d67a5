//! `databroker-host` answers Pomerium's databroker protocol and keeps nothing itself: every byte of state goes through
//! a WIT interface into a storage plugin, a WASI component. `ARCHITECTURE.md` beside this crate is the map.
//!
//! ```text
//! grpc  ->  broker  ->  backend (trait)  ->  component  ->  plugin
//! ```

pub mod address;
pub mod backend;
pub mod broker;
pub mod command;
pub mod component;
pub mod connections;
pub mod data;
mod file;
pub mod filter;
pub mod grpc;
pub mod listener;
pub mod open_files;
pub mod record;
pub mod secret;
pub mod server;
pub mod settings;
pub mod telemetry;
pub mod tls;
