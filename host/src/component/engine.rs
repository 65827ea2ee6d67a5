//! The settings of the WebAssembly engine: the one place for them.
//!
//! The build script includes this same file, because code that was compiled ahead of time runs only on an engine of equal
//! settings. So it uses nothing but `wasmtime`.

use std::time::Duration;

use wasmtime::Config;

/// How often a plugin that computes lets go of its thread, so that it cannot keep a thread of the runtime for itself.
#[allow(dead_code, reason = "the build script includes this file and does not run plugins")]
pub const EPOCH: Duration = Duration::from_millis(10);

/// Settings that are part of the compiled code, and with them those that must be equal at build time and at run time.
pub fn config() -> Config {
    let mut config = Config::new();
    // The interface is made of async functions, so that one instance serves many calls at once.
    config.wasm_component_model(true).wasm_component_model_async(true);
    // Compiled code looks at a counter now and then, and stops or yields when the host has moved it on.
    config.epoch_interruption(true);
    // A memory of 32 bits reserves its whole 4 GiB of addresses at once: it never moves, and needs no checks
    // of its bounds. That is the engine's default on hosts of 64 bits, and is left to it, since it differs on others.
    config
}
