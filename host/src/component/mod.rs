//! The component adapter: a [`Backend`] that is a storage plugin, a WASI component of the world
//! `databroker:storage/backend`.
//!
//! ```text
//! open: Source -> inspect -> Plugin (compiled, linked) -> Instance (running) -> ComponentBackend -> Supervised
//! call: Backend -> Supervised -> convert -> Instance's task -> guest -> convert -> laws -> Backend
//! ```
//!
//! A plugin is not trusted. It reaches nothing but what `state` links and `grants` allow, its memory and its computing are bounded, what
//! it logs is cut, and what it answers is held to the laws of the interface before anybody sees it. A plugin that traps
//! takes its own instance with it and nothing else, and `supervisor` starts another one.
//!
//! WIT types do not leave this folder: `bindings` holds what is generated from the WIT, `convert` alone knows both it and
//! the plain types.

mod adapter;
mod bindings;
mod bound;
mod cache;
mod computing;
mod convert;
mod database;
mod engine;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod grants;
mod inspect;
mod instance;
mod laws;
mod limits;
mod log;
mod offer;
mod plugin;
mod precompiled;
mod report;
mod sql;
mod state;
mod supervisor;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use cache::cache_directory;
pub use database::{check_database, names_database};
pub use grants::{Destination, Directory, GrantError, Grants, Host, Kind, Origin, REFUSED, Refused, Resolver};
pub use inspect::{Inspection, Unfit};
pub use limits::{LEAST_ANSWER_BYTES, Limits};
pub use offer::{Need, Offer, needs, offer};
pub use plugin::{Plugin, PluginError};
pub use supervisor::Restarts;

use crate::backend::{Backend, BackendError, StoreInfo, new_server_version};
use crate::data::Descriptors;
use precompiled::BuiltIn;
use report::Reports;
use supervisor::{Factory, Failure, Supervised};

/// Where a plugin comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A plugin that the host carries; [`built_ins`] names them.
    BuiltIn(String),
    /// Any component in a file.
    File(PathBuf),
}

/// Which plugin, and what it is given.
#[derive(Clone, PartialEq, Eq)]
pub struct Config {
    /// The plugin.
    pub plugin: Source,
    /// What the plugin is told about its store. It may hold a password: kept out of `Debug`, logs and errors.
    pub connection_string: Option<String>,
    /// Where the compiled code of outside components is kept; by default in the user's cache.
    pub cache_dir: Option<PathBuf>,
    /// What an instance may use.
    pub limits: Limits,
    /// When it is started again.
    pub restarts: Restarts,
    /// Where a report of each end of an instance is kept, beside the log.
    pub report_dir: Option<PathBuf>,
    /// What it is granted of what is outside of it.
    pub grants: Grants,
}

impl Config {
    /// A plugin with all else as it is by default.
    pub fn new(plugin: Source) -> Self {
        Self {
            plugin,
            connection_string: None,
            cache_dir: None,
            limits: Limits::default(),
            restarts: Restarts::default(),
            report_dir: None,
            grants: Grants::default(),
        }
    }

    /// How many files and sockets of this process an instance may have open, the connections of its database among them: none
    /// where it is granted nothing that could be opened, whatever the bound.
    pub fn most_open(&self) -> usize {
        let Grants {
            directories,
            addresses,
            http_origins,
            most_open,
            ..
        } = &self.grants;
        let is_granted_any = !(directories.is_empty() && addresses.is_empty() && http_origins.is_empty());
        let connections = self
            .connection_string
            .as_deref()
            .map_or(0, |text| match database::most_connections(text) {
                0 => 0,
                connections => connections.saturating_add(self.limits.listeners),
            });
        // Each connects to the server, perhaps through a pipe within the process, both of whose ends are open.
        connections
            .saturating_mul(3)
            .saturating_add(if is_granted_any { *most_open } else { 0 })
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connection_string = self.connection_string.as_ref().map(|_| "[redacted]");
        formatter
            .debug_struct("Config")
            .field("plugin", &self.plugin)
            .field("connection_string", &connection_string)
            .field("cache_dir", &self.cache_dir)
            .field("limits", &self.limits)
            .field("restarts", &self.restarts)
            .field("report_dir", &self.report_dir)
            .field("grants", &self.grants)
            .finish()
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The plugin cannot be loaded.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugin stopped while it was instantiated.
    #[error("the plugin {plugin:?} does not start: {cause}; the log says more")]
    Start {
        /// The plugin's name.
        plugin: String,
        /// What it did.
        cause: String,
    },
    /// The plugin runs and cannot open its store: wrong settings, or a store that cannot be reached.
    #[error("the plugin {plugin:?} cannot open its store: {error}")]
    Store {
        /// The plugin's name.
        plugin: String,
        /// What it says.
        error: BackendError,
    },
    /// The host ran out of something while it loaded the plugin.
    #[error("loading the plugin was broken off: {0}")]
    BrokenOff(String),
}

/// The names of the plugins that the host carries.
pub fn built_ins() -> Vec<&'static str> {
    BuiltIn::names().collect()
}

/// Loads a plugin, starts it and opens its store. It is started again where it stops; whoever stands in front of the store
/// hears of it through [`StoreInfo::reopenings`], since nobody calls a new instance before. Call it within a tokio
/// runtime.
///
/// # Errors
///
/// [`OpenError`], which tells a wrong file from wrong settings and from a store that cannot be reached.
pub async fn open(config: Config, descriptors: Arc<Descriptors>) -> Result<(Arc<dyn Backend>, StoreInfo), OpenError> {
    open_resolving(config, descriptors, Arc::new(grants::system)).await
}

/// Like [`open`], where the names that the plugin is granted are asked of the last one and not of the system. No setting leads here: it
/// is for tests of what becomes of a plugin where the answers for a name change.
///
/// # Errors
///
/// Those of [`open`].
pub async fn open_resolving(
    config: Config,
    descriptors: Arc<Descriptors>,
    resolver: Arc<Resolver>,
) -> Result<(Arc<dyn Backend>, StoreInfo), OpenError> {
    let Config {
        plugin: source,
        mut connection_string,
        cache_dir,
        limits,
        restarts,
        report_dir,
        grants,
    } = config;
    // The statements of a plugin that the host carries are known; others may ask for rows of any size.
    let largest_message = match &source {
        Source::BuiltIn(_) => None,
        Source::File(_) => Some(sql::MAX_BYTES),
    };
    let load = move || {
        let plugin = Plugin::load(&source, cache_dir.as_deref())?;
        Ok::<_, PluginError>(plugin.granted(grants).resolved_by(resolver))
    };
    let mut plugin = tokio::task::spawn_blocking(load)
        .await
        .map_err(|error| OpenError::BrokenOff(error.to_string()))??;
    // A plugin that has the host speak to a database is not shown its password.
    if plugin.wants_database()
        && let Some(text) = connection_string.take()
    {
        let database = database::Database::new(&text, largest_message).map_err(|error| OpenError::Store {
            plugin: plugin.name().to_owned(),
            error: BackendError::Configuration(error.to_string()),
        })?;
        plugin.grant_database(database);
    }
    let factory = Factory {
        plugin,
        descriptors,
        limits,
        connection_string,
        reports: Arc::new(Reports::new(report_dir)),
    };
    let plugin = || factory.plugin.name().to_owned();
    let (backend, mut info) = factory
        .open(new_server_version(0))
        .await
        .map_err(|failure| match failure {
            Failure::Start(cause) => OpenError::Start {
                plugin: plugin(),
                cause,
            },
            Failure::Open(error) => OpenError::Store {
                plugin: plugin(),
                error,
            },
        })?;
    let inspection = factory.plugin.inspection();
    tracing::info!(
        plugin = inspection.name,
        digest = inspection.digest,
        world = inspection.world,
        precompiled = factory.plugin.is_precompiled(),
        store = info.summary,
        shared = info.shared,
        durable = info.durable,
        "opened the store"
    );
    let (supervised, reopenings) = Supervised::new(factory, restarts, backend, &info);
    info.reopenings = reopenings;
    Ok((Arc::new(supervised), info))
}
