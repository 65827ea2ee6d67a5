//! Plugins as machine code: the one place of the host with `unsafe`.
//!
//! Loading machine code is unsafe because the engine runs what it is given: it checks that the code was made by the same
//! version with equal settings, but cannot check that the code is what the compiler made. Here that is certain: the
//! bytes are part of this very program, put there by its build script, which compiled them in memory with this engine's
//! settings. Whoever could change them could change the rest of the program as well. So the function takes nothing but
//! a [`BuiltIn`], whose fields only the list below fills in. Code of other components is taken as [`Code`] alone, which
//! `cache` makes of what this process has compiled, or of what it kept in a place that nobody else can write to and found
//! unchanged.

#![allow(unsafe_code, reason = "see above")]

use wasmtime::Engine;
use wasmtime::component::Component;

use super::cache::Code;

/// A plugin that the host carries.
pub(super) struct BuiltIn {
    name: &'static str,
    component: &'static [u8],
    /// Empty where the build script could not compile for this machine.
    precompiled: &'static [u8],
}

/// All of them, in the order of the build script.
static BUILT_IN: &[BuiltIn] = &include!(concat!(env!("OUT_DIR"), "/built_in.rs"));

impl BuiltIn {
    /// The names of all built-in plugins.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|built_in| built_in.name)
    }

    /// The built-in plugin with this name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        BUILT_IN.iter().find(|built_in| built_in.name == name)
    }

    /// The component itself.
    pub(super) fn component(&self) -> &'static [u8] {
        self.component
    }

    /// The component as code that is ready to run.
    ///
    /// # Errors
    ///
    /// If the engine does not take the code, because it was compiled for another kind of machine or not at all.
    pub(super) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the bytes are what `Engine::precompile_component` gave the build script, unchanged: they are in the
        // read-only part of this program and come from nowhere else.
        unsafe { Component::deserialize(engine, self.precompiled) }
    }
}

impl Code {
    /// The component as code that is ready to run.
    ///
    /// # Errors
    ///
    /// If the engine does not take the code, because it was compiled by another one.
    pub(super) fn load(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: the bytes are what `Engine::precompile_component` gave this process or an earlier one of the same user:
        // `Code` is made of nothing else, and the cache has checked that they are whole.
        unsafe { Component::deserialize(engine, self.bytes()) }
    }
}
