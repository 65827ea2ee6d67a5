//! `config check`: all that `serve` does before it listens, and then the end.
//!
//! Nothing is bound, so that it can run beside the process that it is to replace. The store is opened, which is where
//! most mistakes show; a store that lets in one process only says that it is in use.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::Value;
use tracing::level_filters::LevelFilter;

use super::output::{self, Output, OutputFlags};
use super::setting_flags::SettingFlags;
use super::{CommandError, Environment};
use crate::component::{self, Plugin, Source};
use crate::settings::Notice;
use crate::telemetry;

/// What to do with a configuration.
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Check all settings, open the plugin's store and close it again, and listen nowhere
    Check(CheckFlags),
}

/// Flags of `config check`: those of `serve`.
#[derive(Args, Debug)]
pub struct CheckFlags {
    #[command(flatten)]
    settings: SettingFlags,
    #[command(flatten)]
    output: OutputFlags,
}

impl CheckFlags {
    /// Checks, and prints what was found.
    ///
    /// # Errors
    ///
    /// All mistakes in the settings, or why the store cannot be opened.
    pub async fn run(self, environment: &Environment) -> Result<(), CommandError> {
        let settings = self.settings.settings(environment)?;
        // What a plugin has to say of its troubles belongs to the answer; the rest does not.
        let mut quiet = telemetry::Config {
            traces: None,
            ..settings.telemetry.clone()
        };
        quiet.logs.level = quiet.logs.level.min(LevelFilter::WARN);
        let telemetry = telemetry::start(&quiet).map_err(anyhow::Error::from)?;
        for notice in &settings.notices {
            match notice {
                Notice::Info(text) => output::note(text),
                Notice::Warning(text) => output::note(&format!("warning: {text}")),
            }
        }
        // Reading the settings has loaded the certificates already, and its notices say what is to be known of them.
        let tls = if settings.tls.is_some() { "on" } else { "off" };
        let descriptors = super::descriptors(settings.record_descriptors.as_deref(), "DATABROKER_RECORD_DESCRIPTORS")?;
        let inspection = Plugin::inspect(&settings.storage.plugin).map_err(|error| super::not_opened(error.into()))?;
        let plugin = match &settings.storage.plugin {
            Source::BuiltIn(name) => format!("{name} (built in)"),
            Source::File(path) => path.display().to_string(),
        };
        let (backend, store) = component::open(settings.storage, Arc::new(descriptors))
            .await
            .map_err(super::not_opened)?;
        backend
            .close()
            .await
            .map_err(|error| anyhow::anyhow!("the store was opened and cannot be closed: {error}"))?;

        let secret = match (settings.secrets.generated, &settings.secrets.previous) {
            (true, _) => "none: one is made at each start, for this machine only",
            (false, None) => "configured",
            (false, Some(_)) => "configured, and the previous one is accepted too",
        };
        let metrics = settings
            .telemetry
            .metrics
            .as_ref()
            .map(|metrics| metrics.address.to_string());
        let health = settings.telemetry.health.as_ref().map(ToString::to_string);
        let mut output = Output::new(self.output);
        output.fields(&[
            ("address", "address", Value::from(settings.address.to_string())),
            ("TLS", "tls", Value::from(tls)),
            (
                "metrics",
                "metrics",
                Value::from(metrics.unwrap_or_else(|| "off".to_owned())),
            ),
            (
                "probes",
                "probes",
                Value::from(health.unwrap_or_else(|| "off".to_owned())),
            ),
            ("shared secret", "sharedSecret", Value::from(secret)),
            ("plugin", "plugin", Value::from(plugin)),
            ("digest", "digest", Value::from(format!("sha256:{}", inspection.digest))),
            ("world", "world", Value::from(inspection.world)),
            ("store", "store", Value::from(store.summary)),
            ("shared", "shared", Value::from(store.shared)),
            ("durable", "durable", Value::from(store.durable)),
            (
                "log level",
                "logLevel",
                Value::from(settings.telemetry.logs.level.to_string()),
            ),
        ])?;
        telemetry.shutdown().await;
        Ok(())
    }
}
