//! The `config` import: settings and secrets of a plugin's own, by the names that the operator gave them.
//!
//! A secret is a handle, so that whoever reads a plugin sees where it is used, and each use is in the log. It is read from its
//! file whenever it is revealed: a secret that was changed is used without a restart, and this process keeps none.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use wasmtime::component::Resource;

use super::{Granted, Refused};
use crate::component::bindings::config;
use crate::component::state::State;
use crate::file;
use crate::telemetry::seldom::Seldom;

/// How often it is told that a secret was revealed.
const INTERVAL: Duration = Duration::from_secs(60);

/// The longest name that is told, and looked for, in bytes.
const MAX_NAME: usize = 256;

/// A secret that a plugin has a handle of.
pub struct Secret {
    name: String,
    path: PathBuf,
}

/// What an instance is granted by name.
pub(in crate::component) struct Named {
    granted: Granted,
    /// For each secret, when it was last told that it was revealed, and when that it could not be.
    revealed: BTreeMap<(String, bool), Seldom>,
}

impl Named {
    pub(in crate::component) fn new(granted: Granted) -> Self {
        Self {
            granted,
            revealed: BTreeMap::new(),
        }
    }

    fn setting(&self, name: &str) -> Option<String> {
        let found = self.granted.grants.settings.get(name);
        if found.is_none() {
            self.granted.refusals.refuse(Refused::Setting, name, || {
                format!("DATABROKER_PLUGIN_SETTINGS={}=VALUE", shown(name))
            });
        }
        found.cloned()
    }

    fn secret(&self, name: &str) -> Option<Secret> {
        let Some(path) = self.granted.grants.secrets.get(name) else {
            self.granted.refusals.refuse(Refused::Secret, name, || {
                format!("DATABROKER_PLUGIN_SECRETS={}=FILE", shown(name))
            });
            return None;
        };
        Some(Secret {
            name: name.to_owned(),
            path: path.clone(),
        })
    }

    /// Tells that a secret was asked for, whether it could be read or not.
    fn audit(&mut self, name: &str, error: Option<&str>) {
        let plugin = self.granted.refusals.plugin().to_owned();
        // Only names that the operator gave come here, so that there are few.
        let turn = self.revealed.entry((name.to_owned(), error.is_some())).or_default();
        let Some(untold) = turn.turn(Instant::now(), INTERVAL) else {
            return;
        };
        match error {
            None => tracing::info!(plugin, secret = name, untold, "the plugin has read a secret"),
            Some(error) => tracing::warn!(
                plugin,
                secret = name,
                error,
                untold,
                "the plugin cannot read a secret that is granted to it: see to its file"
            ),
        }
    }
}

fn shown(name: &str) -> &str {
    name.get(..name.floor_char_boundary(MAX_NAME)).unwrap_or_default()
}

impl config::Host for State {
    fn get_setting(&mut self, name: String) -> Option<String> {
        self.named.setting(&name)
    }

    fn get_secret(&mut self, name: String) -> wasmtime::Result<Option<Resource<Secret>>> {
        let Some(secret) = self.named.secret(&name) else {
            return Ok(None);
        };
        Ok(Some(self.table.push(secret)?))
    }
}

impl config::HostSecret for State {
    fn reveal(&mut self, secret: Resource<Secret>) -> wasmtime::Result<Result<Vec<u8>, String>> {
        let Secret { name, path } = self.table.get(&secret)?;
        let read = file::read(path, file::SECRET_BYTES).map(|contents| contents.bytes);
        let read = read.map_err(|error| error.to_string());
        let name = name.clone();
        self.named.audit(&name, read.as_ref().err().map(String::as_str));
        // Where the file is, is none of the plugin's business.
        Ok(read.map_err(|_| format!("the secret {name:?} cannot be read at present; the host's log says why")))
    }

    fn drop(&mut self, secret: Resource<Secret>) -> wasmtime::Result<()> {
        self.table.delete(secret)?;
        Ok(())
    }
}
