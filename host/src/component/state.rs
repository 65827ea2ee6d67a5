//! What an instance of a plugin can reach: the host's side of its imports.
//!
//! A plugin is granted nothing but its log, a look inside record data, clocks and random numbers. The rest of WASI 0.2 is
//! linked, since standard libraries import all of it, but leads nowhere: there are no directories, no environment, no
//! arguments and no network.

use std::sync::Arc;

use wasmtime::ResourceLimiter;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::bindings::{self, World};
use super::log::{Level, PluginLog};
use crate::data::{DataError, Descriptors};

/// How many fields of records a plugin may ask for in one call, paths times records.
const MAX_EXTRACTED: usize = 1_000_000;

/// The data of one instance's store.
pub(super) struct State {
    wasi: WasiCtx,
    /// WASI's handles.
    table: ResourceTable,
    /// The descriptors behind the `protobuf` import.
    descriptors: Arc<Descriptors>,
    /// Where its lines go.
    log: PluginLog,
    /// How much memory it may have, and has.
    pub(super) memory: MemoryLimit,
    /// For how many epochs it has computed since a call was last finished.
    pub(super) computed: u64,
}

impl State {
    pub(super) fn new(log: PluginLog, descriptors: Arc<Descriptors>, memory_bytes: usize) -> Self {
        let wasi = WasiCtx::builder()
            .stdout(log.stream(Level::Info, false))
            .stderr(log.stream(Level::Warn, true))
            .allow_tcp(false)
            .allow_udp(false)
            .build();
        Self {
            wasi,
            table: ResourceTable::new(),
            descriptors,
            log,
            memory: MemoryLimit::new(memory_bytes),
            computed: 0,
        }
    }
}

/// Links all that a plugin may import.
pub(super) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    World::add_to_linker::<State, HasSelf<State>>(linker, |state| state)
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl bindings::types::Host for State {}

impl bindings::log::Host for State {
    fn write(&mut self, level: bindings::log::Level, message: String) {
        let level = match level {
            bindings::log::Level::Trace => Level::Trace,
            bindings::log::Level::Debug => Level::Debug,
            bindings::log::Level::Info => Level::Info,
            bindings::log::Level::Warn => Level::Warn,
            bindings::log::Level::Error => Level::Error,
        };
        self.log.write(level, &message);
    }
}

impl bindings::protobuf::Host for State {
    fn extract(&mut self, data: Vec<Vec<u8>>, paths: Vec<String>) -> wasmtime::Result<Vec<Vec<Vec<String>>>> {
        // A question of a few MiB could ask for an answer of any size: the number of its lists is a product.
        if data.len().saturating_mul(paths.len()) > MAX_EXTRACTED {
            wasmtime::bail!(
                "it asked `extract` for {} paths in {} records; {MAX_EXTRACTED} values a call at most",
                paths.len(),
                data.len()
            );
        }
        let values = |data: &Vec<u8>| paths.iter().map(|path| self.descriptors.values(data, path)).collect();
        Ok(data.iter().map(values).collect())
    }

    fn to_json(&mut self, data: Vec<Vec<u8>>) -> Vec<Result<String, bindings::protobuf::Error>> {
        let json = |data: &Vec<u8>| self.descriptors.to_json(data).map_err(data_error);
        data.iter().map(json).collect()
    }

    fn from_json(&mut self, json: Vec<String>) -> Vec<Result<Vec<u8>, bindings::protobuf::Error>> {
        let data = |json: &String| self.descriptors.from_json(json).map_err(data_error);
        json.iter().map(data).collect()
    }
}

fn data_error(error: DataError) -> bindings::protobuf::Error {
    match error {
        DataError::UnknownType(type_url) => bindings::protobuf::Error::UnknownType(type_url),
        other => bindings::protobuf::Error::Malformed(other.to_string()),
    }
}

/// Bounds the memory of an instance, over all of its linear memories.
pub(super) struct MemoryLimit {
    limit: usize,
    used: usize,
}

impl MemoryLimit {
    fn new(limit: usize) -> Self {
        Self { limit, used: 0 }
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        let granted = used <= self.limit && maximum.is_none_or(|maximum| desired <= maximum);
        if granted {
            self.used = used;
        }
        Ok(granted)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        /// Far more functions than any program has.
        const MAX_ELEMENTS: usize = 10_000_000;
        Ok(desired <= MAX_ELEMENTS)
    }
}
