//! The component adapter: a [`Backend`] that is a storage plugin, a WASI component of the world
//! `databroker:storage/backend`.
//!
//! ```text
//! open: Source -> inspect -> Plugin (compiled, linked) -> Instance (running) -> ComponentBackend
//! call: Backend -> convert -> Instance's task -> guest -> convert -> laws -> Backend
//! ```
//!
//! A plugin is not trusted. It reaches nothing but what `state` links, its memory and its computing are bounded, what
//! it logs is cut, and what it answers is held to the laws of the interface before anybody sees it. A plugin that traps
//! takes its own instance with it and nothing else.
//!
//! WIT types do not leave this folder: `bindings` holds what is generated from the WIT, `convert` alone knows both it and
//! the plain types.

mod adapter;
mod bindings;
mod cache;
mod convert;
mod engine;
mod grant;
mod inspect;
mod instance;
mod laws;
mod log;
mod plugin;
mod precompiled;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use grant::{Grant, grant};
pub use inspect::{Inspection, Unfit};
pub use instance::Limits;
pub use plugin::{Plugin, PluginError};

use crate::backend::{Backend, BackendError, StoreInfo, new_server_version};
use crate::data::Descriptors;
use adapter::ComponentBackend;
use instance::Instance;
use precompiled::BuiltIn;

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

/// Loads a plugin, starts it and opens its store. Call it within a tokio runtime.
///
/// # Errors
///
/// [`OpenError`], which tells a wrong file from wrong settings and from a store that cannot be reached.
pub async fn open(config: Config, descriptors: Arc<Descriptors>) -> Result<(Arc<dyn Backend>, StoreInfo), OpenError> {
    let Config {
        plugin: source,
        connection_string,
        cache_dir,
        limits,
    } = config;
    let load = move || Plugin::load(&source, cache_dir.as_deref());
    let plugin = tokio::task::spawn_blocking(load)
        .await
        .map_err(|error| OpenError::BrokenOff(error.to_string()))??;
    let name = plugin.name().to_owned();
    let instance = Instance::start(&plugin, descriptors, limits)
        .await
        .map_err(|cause| OpenError::Start {
            plugin: name.clone(),
            cause,
        })?;
    let opened = ComponentBackend::open(&name, instance, connection_string, new_server_version(0)).await;
    let (backend, info) = opened.map_err(|error| OpenError::Store {
        plugin: name.clone(),
        error,
    })?;
    let inspection = plugin.inspection();
    tracing::info!(
        plugin = name,
        digest = inspection.digest,
        world = inspection.world,
        precompiled = plugin.is_precompiled(),
        store = info.summary,
        shared = info.shared,
        durable = info.durable,
        "opened the store"
    );
    Ok((Arc::new(backend.identified(inspection)), info))
}
