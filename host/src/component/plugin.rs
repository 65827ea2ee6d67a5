//! Loading a plugin: from a name or a file to code that is linked and ready to be instantiated.
//!
//! A built-in plugin comes as machine code with the host and is not compiled. Any other component is inspected first,
//! then compiled, with the result kept where that is safe (`cache`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::Source;
use super::bindings::WorldPre;
use super::cache::{Cache, Code};
use super::database::Database;
use super::engine::{self, EPOCH};
use super::grants::{Granted, Grants, Resolver};
use super::inspect::{self, Inspection, Unfit};
use super::precompiled::BuiltIn;
use super::sql;
use super::state::{self, State};

/// No plugin is as large as this; a larger file is no plugin, and is not read.
const MAX_FILE_BYTES: u64 = 512 * 1024 * 1024;

/// A plugin that can be instantiated, any number of times.
pub struct Plugin {
    /// What it is.
    inspection: Inspection,
    /// The component, compiled and linked.
    linked: WorldPre<State>,
    /// True where the code was there already and nothing had to be compiled: a built-in plugin.
    precompiled: bool,
    /// The database that it is granted.
    database: Option<Arc<Database>>,
    /// What its instances are granted, and what they were refused.
    granted: Granted,
}

/// Why a plugin cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// There is no built-in plugin of that name.
    #[error("there is no built-in plugin {name:?}; there are: {known}. A plugin in a file is named by its path")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// The file cannot be read.
    #[error("cannot read the plugin {path}: {error}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is larger than any plugin.
    #[error("the plugin {path} is {bytes} bytes long, and {MAX_FILE_BYTES} at most are read: name the component itself", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The file is no plugin for this host.
    #[error("cannot use the plugin {name}: {unfit}")]
    Unfit {
        /// The file, or the built-in plugin's name.
        name: String,
        /// What is wrong with it.
        unfit: Unfit,
    },
    /// The engine does not take it, though its names and versions are right.
    #[error(
        "cannot use the plugin {name}: the engine refuses it: {reason}; build it again from the WIT package of the version that it names"
    )]
    Refused {
        /// The file, or the built-in plugin's name.
        name: String,
        /// What the engine says.
        reason: String,
    },
    /// The engine itself cannot be made.
    #[error("the WebAssembly engine does not start on this machine: {0}")]
    Engine(String),
}

impl Plugin {
    /// Reads what a plugin is without compiling or running it.
    ///
    /// # Errors
    ///
    /// [`PluginError`] if it is not there or no component. A component of another world is fine here.
    pub fn inspect(source: &Source) -> Result<Inspection, PluginError> {
        Ok(Origin::find(source)?.inspection)
    }

    /// Loads a plugin. This reads files, and compiles where it must, which takes seconds for a large component: call it
    /// where blocking is allowed.
    ///
    /// # Errors
    ///
    /// [`PluginError`], each with a sentence that says what the file is, what is supported and what to do.
    pub fn load(source: &Source, cache_dir: Option<&Path>) -> Result<Self, PluginError> {
        let origin = Origin::find(source)?;
        let name = origin.name.clone();
        inspect::check(&origin.inspection).map_err(|unfit| PluginError::Unfit {
            name: name.clone(),
            unfit,
        })?;
        let refused = |error: wasmtime::Error| PluginError::Refused {
            name: name.clone(),
            reason: format!("{error:#}"),
        };
        let (component, precompiled) = match &origin.content {
            Content::BuiltIn(built_in) => load_built_in(built_in)?,
            Content::File(bytes) => {
                let engine = start_engine()?;
                (load_file(&engine, bytes, cache_dir).map_err(refused)?, false)
            }
        };
        let mut linker = Linker::new(component.engine());
        state::link(&mut linker, origin.inspection.imports_http())
            .map_err(|error| PluginError::Engine(format!("{error:#}")))?;
        let linked = linker
            .instantiate_pre(&component)
            .and_then(WorldPre::new)
            .map_err(refused)?;
        Ok(Self {
            granted: Granted::new(&origin.inspection.name, Grants::default()),
            inspection: origin.inspection,
            linked,
            precompiled,
            database: None,
        })
    }

    /// True where it speaks to a database through the host.
    pub(super) fn wants_database(&self) -> bool {
        let is_sql = |import: &String| import.split('@').next() == Some(sql::IMPORT);
        self.inspection.imports.iter().any(is_sql)
    }

    /// Grants it a database.
    pub(super) fn grant_database(&mut self, database: Database) {
        self.database = Some(Arc::new(database));
    }

    /// The database that it is granted.
    pub(super) fn database(&self) -> Option<Arc<Database>> {
        self.database.clone()
    }

    /// The same plugin, whose instances are granted this. Without it they are granted nothing.
    #[must_use]
    pub fn granted(self, grants: Grants) -> Self {
        Self {
            granted: Granted::new(&self.inspection.name, grants),
            ..self
        }
    }

    /// The same plugin, whose granted names are asked of somebody else than the system.
    #[must_use]
    pub(super) fn resolved_by(mut self, resolver: Arc<Resolver>) -> Self {
        self.granted.resolver = resolver;
        self
    }

    /// What the plugin is.
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// True where the plugin came as machine code and nothing was compiled.
    pub fn is_precompiled(&self) -> bool {
        self.precompiled
    }

    pub(super) fn name(&self) -> &str {
        &self.inspection.name
    }

    pub(super) fn grants(&self) -> &Granted {
        &self.granted
    }

    pub(super) fn linked(&self) -> &WorldPre<State> {
        &self.linked
    }
}

/// Where a plugin comes from, with its bytes.
struct Origin {
    /// The built-in plugin's name or the file's path, for messages.
    name: String,
    inspection: Inspection,
    content: Content,
}

enum Content {
    BuiltIn(&'static BuiltIn),
    File(Vec<u8>),
}

impl Origin {
    fn find(source: &Source) -> Result<Self, PluginError> {
        let (name, short_name, content) = match source {
            Source::BuiltIn(name) => {
                let built_in = BuiltIn::find(name).ok_or_else(|| PluginError::Unknown {
                    name: name.clone(),
                    known: BuiltIn::names().collect::<Vec<_>>().join(", "),
                })?;
                (name.clone(), name.clone(), Content::BuiltIn(built_in))
            }
            Source::File(path) => {
                let stem = path.file_stem().unwrap_or(path.as_os_str());
                let short_name = stem.to_string_lossy().into_owned();
                (path.display().to_string(), short_name, Content::File(read(path)?))
            }
        };
        let bytes = match &content {
            Content::BuiltIn(built_in) => built_in.component(),
            Content::File(bytes) => bytes,
        };
        match inspect::inspect(&short_name, bytes) {
            Ok(inspection) => Ok(Self {
                name,
                inspection,
                content,
            }),
            Err(unfit) => Err(PluginError::Unfit { name, unfit }),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PluginError> {
    let unreadable = |error| PluginError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let metadata = path.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::Error::other("it is not a file")));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(PluginError::TooLarge {
            path: path.to_owned(),
            bytes: metadata.len(),
        });
    }
    std::fs::read(path).map_err(unreadable)
}

fn load_built_in(built_in: &BuiltIn) -> Result<(Component, bool), PluginError> {
    let engine = start_engine()?;
    match built_in.load(&engine) {
        Ok(component) => Ok((component, true)),
        Err(error) => {
            tracing::info!(
                reason = format!("{error:#}"),
                "the built-in plugin's machine code does not fit this machine; it is compiled"
            );
            let component = Component::from_binary(&engine, built_in.component())
                .map_err(|error| PluginError::Engine(format!("{error:#}")))?;
            Ok((component, false))
        }
    }
}

/// A component from a file: out of the cache, or compiled and kept there.
fn load_file(engine: &Engine, bytes: &[u8], cache_dir: Option<&Path>) -> wasmtime::Result<Component> {
    let cache = match Cache::open(cache_dir) {
        Ok(cache) => cache,
        Err(error) => {
            tracing::warn!(
                reason = error.to_string(),
                "compiled plugins are not kept, so that every start compiles again"
            );
            return Code::compile(engine, bytes)?.load(engine);
        }
    };
    let entry = cache.entry(engine, bytes);
    if let Some(code) = cache.read(&entry) {
        match code.load(engine) {
            Ok(component) => return Ok(component),
            Err(error) => {
                tracing::warn!(
                    entry = %entry.display(),
                    reason = format!("{error:#}"),
                    "the engine does not take the plugin's compiled code: compiling it again"
                );
                cache.remove(&entry);
            }
        }
    }
    let code = Code::compile(engine, bytes)?;
    cache.write(&entry, &code);
    code.load(engine)
}

/// An engine of its own for a plugin, with the thread that moves its clock for as long as it lives. The thread is one of
/// the system and not the runtime's: it must go on when plugins occupy all of those.
fn start_engine() -> Result<Engine, PluginError> {
    let engine = Engine::new(&engine::config()).map_err(|error| PluginError::Engine(format!("{error:#}")))?;
    let clock = engine.weak();
    thread::Builder::new()
        .name("plugin-epoch".to_owned())
        .spawn(move || {
            loop {
                thread::sleep(EPOCH);
                match clock.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => break,
                }
            }
        })
        .map_err(|error| PluginError::Engine(error.to_string()))?;
    Ok(engine)
}
