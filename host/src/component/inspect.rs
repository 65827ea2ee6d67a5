//! What a plugin's file is and offers, read without compiling or running any of it.
//!
//! Authors hand in the wrong file far more often than a hostile one: a core module, the text form, a component of another
//! world or of another version. Each of these is told apart here, with a sentence that says what to do; what is only
//! damaged or ill-typed is found by the engine when it compiles.

use std::fmt;

use semver::Version;
use sha2::{Digest, Sha256};
use wasmparser::{Encoding, Parser, Payload};

/// The package that the host speaks.
const PACKAGE: &str = "databroker:storage";

/// The interface that makes a component a storage plugin.
const STORE: &str = "store";

/// The interfaces of [`PACKAGE`] that the host offers.
const OFFERED: &[&str] = &["types", "config", "log", "protobuf", "sql"];

/// The version of [`PACKAGE`] that the host speaks. It takes plugins of every version that is compatible with it.
const SUPPORTED: Version = Version::new(0, 1, 0);

/// The packages of WASI that the host offers, of version 0.2.
const WASI: &[&str] = &["cli", "clocks", "filesystem", "http", "io", "random", "sockets"];

/// The version of WASI that the host offers.
const WASI_SUPPORTED: Version = Version::new(0, 2, 0);

/// What a plugin's file is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The plugin's name: that of the built-in plugin, or the file's without its ending.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal.
    pub digest: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The world that it is built for, such as `databroker:storage/backend@0.1.0`; none where it is of another one.
    pub world: Option<String>,
    /// The names of its imports, in the file's order.
    pub imports: Vec<String>,
    /// The names of its exports, in the file's order.
    pub exports: Vec<String>,
}

impl Inspection {
    /// Whether it makes HTTP requests, as far as its imports say.
    pub(super) fn imports_http(&self) -> bool {
        self.imports.iter().any(|import| import.starts_with("wasi:http/"))
    }
}

/// Why a file is no plugin for this host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// There is nothing in it.
    #[error("it is empty: name the component that the plugin's build has made")]
    Empty,
    /// It is no WebAssembly.
    #[error(
        "it is no WebAssembly: name the component that the plugin's build has made, usually a file that ends in .wasm"
    )]
    NotWasm,
    /// It is WebAssembly's text form.
    #[error("it is WebAssembly in its text form: turn it into a component with `wasm-tools parse`")]
    Text,
    /// It is a core module.
    #[error(
        "it is a core module and not a component: build for the target wasm32-wasip2, or make a component of it with \
         `wasm-tools component new`"
    )]
    CoreModule,
    /// It was compiled to machine code.
    #[error(
        "it is machine code that an engine has compiled, which is never loaded from a file: name the component itself"
    )]
    Precompiled,
    /// It breaks off, or is not what it claims to be.
    #[error("it is damaged: {0}; build or copy it again")]
    Damaged(String),
    /// It is a component, but no storage plugin.
    #[error(
        "it is a component of another world: it exports {exports}, while a storage plugin exports {PACKAGE}/{STORE} in a \
         version compatible with {SUPPORTED}; build it for the world {PACKAGE}/backend@{SUPPORTED}",
        exports = Names(exports)
    )]
    ForeignWorld {
        /// What it exports.
        exports: Vec<String>,
    },
    /// It is a storage plugin of another version.
    #[error(
        "it is built for {PACKAGE}@{found}, and this host supports versions compatible with {SUPPORTED}: build it for \
         {PACKAGE}/backend@{SUPPORTED}, or use a host that supports {found}"
    )]
    UnsupportedVersion {
        /// The version that it is built for.
        found: String,
    },
    /// It wants what the host does not offer.
    #[error(
        "it imports {imports}, which this host does not offer: a plugin can import {PACKAGE}/config, {PACKAGE}/log, \
         {PACKAGE}/protobuf and {PACKAGE}/sql in a version compatible with {SUPPORTED}, and WASI {WASI_SUPPORTED}, of HTTP \
         only what requests need; build it without the rest",
        imports = Names(imports)
    )]
    MissingImports {
        /// What the host lacks.
        imports: Vec<String>,
    },
}

/// Reads what a file is.
///
/// # Errors
///
/// [`Unfit`] if it is no component at all. A component of another world is a good [`Inspection`]; [`check`] refuses it.
pub(super) fn inspect(name: &str, bytes: &[u8]) -> Result<Inspection, Unfit> {
    header(bytes)?;
    let mut imports = Vec::new();
    let mut exports = Vec::new();
    // Modules and components within it come with sections of their own, which are none of ours.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(damaged)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth = depth.saturating_add(1),
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import.map_err(damaged)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export.map_err(damaged)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    let world = exports
        .iter()
        .find_map(|export| Interface::parse(export).filter(Interface::is_store))
        .map(|store| format!("{PACKAGE}/backend@{}", store.version));
    Ok(Inspection {
        name: name.to_owned(),
        digest: hexadecimal(&Sha256::digest(bytes)),
        size: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
        world,
        imports,
        exports,
    })
}

/// Says whether the host can run a component, as far as names and versions go.
///
/// # Errors
///
/// [`Unfit`] if it is of another world or version, or imports what the host does not offer.
pub(super) fn check(inspection: &Inspection) -> Result<(), Unfit> {
    let stores: Vec<_> = inspection
        .exports
        .iter()
        .filter_map(|export| Interface::parse(export).filter(Interface::is_store))
        .collect();
    let Some(store) = stores.first() else {
        return Err(Unfit::ForeignWorld {
            exports: inspection.exports.clone(),
        });
    };
    if !stores.iter().any(|store| compatible(&store.version, &SUPPORTED)) {
        return Err(Unfit::UnsupportedVersion {
            found: store.version.to_string(),
        });
    }
    let missing: Vec<_> = inspection
        .imports
        .iter()
        .filter(|import| !Interface::parse(import).is_some_and(|interface| interface.is_offered()))
        .cloned()
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Unfit::MissingImports { imports: missing })
    }
}

/// Tells a component from everything else by how the file begins.
fn header(bytes: &[u8]) -> Result<(), Unfit> {
    if bytes.is_empty() {
        return Err(Unfit::Empty);
    }
    if wasmtime::Engine::detect_precompiled(bytes).is_some() {
        return Err(Unfit::Precompiled);
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(if is_text(bytes) { Unfit::Text } else { Unfit::NotWasm });
    }
    match Parser::new(0).parse_all(bytes).next() {
        Some(Ok(Payload::Version {
            encoding: Encoding::Component,
            ..
        })) => Ok(()),
        Some(Ok(_)) => Err(Unfit::CoreModule),
        Some(Err(error)) => Err(damaged(error)),
        None => Err(Unfit::NotWasm),
    }
}

/// True for what begins like WebAssembly's text form, after space and comments.
fn is_text(bytes: &[u8]) -> bool {
    let Ok(mut text) = std::str::from_utf8(bytes) else {
        return false;
    };
    loop {
        text = text.trim_start();
        let comment = if text.starts_with(";;") {
            text.split_once('\n')
        } else if text.starts_with("(;") {
            text.split_once(";)")
        } else {
            break;
        };
        let Some((_, rest)) = comment else { return false };
        text = rest;
    }
    let Some(form) = text.strip_prefix('(') else {
        return false;
    };
    ["module", "component"]
        .iter()
        .any(|keyword| form.trim_start().starts_with(keyword))
}

fn damaged(error: wasmparser::BinaryReaderError) -> Unfit {
    Unfit::Damaged(error.to_string())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of an interface: `namespace:package/interface@version`.
struct Interface<'n> {
    package: &'n str,
    interface: &'n str,
    version: Version,
}

impl<'n> Interface<'n> {
    fn parse(name: &'n str) -> Option<Self> {
        let (path, version) = name.split_once('@')?;
        let (package, interface) = path.split_once('/')?;
        let version = Version::parse(version).ok()?;
        Some(Self {
            package,
            interface,
            version,
        })
    }

    fn is_store(&self) -> bool {
        self.package == PACKAGE && self.interface == STORE
    }

    fn is_offered(&self) -> bool {
        if self.package == PACKAGE {
            return OFFERED.contains(&self.interface) && compatible(&self.version, &SUPPORTED);
        }
        let wasi = self.package.strip_prefix("wasi:");
        // Requests come to the host and not to a plugin.
        let served = self.package == "wasi:http" && self.interface == "incoming-handler";
        !served && wasi.is_some_and(|package| WASI.contains(&package)) && compatible(&self.version, &WASI_SUPPORTED)
    }
}

/// True where both versions promise to work together: the same major version, or before 1.0 the same minor version.
fn compatible(version: &Version, supported: &Version) -> bool {
    if !version.pre.is_empty() || version.major != supported.major {
        return false;
    }
    supported.major > 0 || version.minor == supported.minor
}

/// Names, one after the other, for a sentence.
struct Names<'n>(&'n [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// More than these do not help anybody.
        const SHOWN: usize = 12;
        if self.0.is_empty() {
            return formatter.write_str("nothing");
        }
        for (index, name) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                formatter.write_str(", ")?;
            }
            // The name is the file's, and may hold anything.
            formatter.write_str(&super::convert::text(name))?;
        }
        match self.0.len().checked_sub(SHOWN) {
            None | Some(0) => Ok(()),
            Some(more) => write!(formatter, " and {more} more"),
        }
    }
}
