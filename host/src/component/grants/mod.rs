//! What an operator grants a plugin beyond what every plugin has, and the host's side of it.
//!
//! Nothing is granted that the configuration does not name: no directory, no address, no origin of HTTP, no setting and no
//! secret. Names are looked up for granted names only, and a connection goes to an address that was looked up for a granted
//! name, or granted as an address (`network`, by the rules of `address`). What is refused is counted, and told in one line of
//! the log with the setting that would allow it (`refusals`). What is granted is bounded too: `open` says how much of it may be
//! open at once.

mod address;
mod destination;
mod directory;
mod http;
mod lookup;
mod named;
mod network;
mod open;
mod refusals;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use wasmtime::component::Linker;

pub use address::Kind;
pub use destination::{Destination, Host, Origin};
pub use directory::Directory;
pub use named::Secret;
pub use network::Resolver;
pub use refusals::{REFUSED, Refused};

pub(super) use directory::open_all;
pub(super) use http::{Http, link as link_http};
pub(super) use named::Named;
pub(super) use network::{Network, system};
pub(super) use refusals::Refusals;

use super::state::State;

/// What a plugin is granted. By default nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Grants {
    /// Settings of its own, by name.
    pub settings: BTreeMap<String, String>,
    /// Secrets of its own: for each name a file, which is read each time that the plugin asks.
    pub secrets: BTreeMap<String, PathBuf>,
    /// Directories of this machine.
    pub directories: Vec<Directory>,
    /// Where it may connect to by TCP.
    pub addresses: Vec<Destination>,
    /// Where its HTTP requests may go.
    pub http_origins: Vec<Origin>,
    /// How many files, directories, sockets and HTTP requests it may have open at once.
    pub most_open: usize,
}

impl Default for Grants {
    /// Nothing; and 256 things open at once, of the 1024 that a process often has in all.
    fn default() -> Self {
        Self {
            settings: BTreeMap::new(),
            secrets: BTreeMap::new(),
            directories: Vec::new(),
            addresses: Vec::new(),
            http_origins: Vec::new(),
            most_open: 256,
        }
    }
}

impl fmt::Debug for Grants {
    /// Shows names only of what may hold a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Grants")
            .field("settings", &self.settings.keys())
            .field("secrets", &self.secrets.keys())
            .field("directories", &self.directories)
            .field("addresses", &self.addresses)
            .field("http_origins", &self.http_origins)
            .field("most_open", &self.most_open)
            .finish()
    }
}

/// Why a text is no grant. Without its value, where that may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GrantError(String);

impl GrantError {
    fn new(text: String) -> Self {
        Self(text)
    }
}

/// What a plugin is granted, and what it was refused over all of its instances.
#[derive(Clone)]
pub(super) struct Granted {
    pub(super) grants: Arc<Grants>,
    pub(super) refusals: Arc<Refusals>,
    /// Whom granted names are asked of.
    pub(super) resolver: Arc<Resolver>,
}

impl Granted {
    pub(super) fn new(plugin: &str, grants: Grants) -> Self {
        Self {
            grants: Arc::new(grants),
            refusals: Arc::new(Refusals::new(plugin)),
            resolver: Arc::new(system),
        }
    }
}

/// Puts what is bounded and checked here in the place of WASI's own.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    lookup::link(linker)?;
    open::link(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}
