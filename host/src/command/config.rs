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
use crate::backend::DatabaseRuntime;
use crate::component::{self, Limits, Plugin, Source};
use crate::open_files;
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
        // The limit is the one of whoever checks, which may be another than that of the service.
        let (wanted, limit) = (settings.max_connections, open_files::raise());
        let connections = open_files::connections(wanted, limit, settings.storage.most_open());
        if connections < wanted {
            let few = open_files::TOO_FEW;
            output::note(&format!(
                "warning: {few}; here {connections} of {wanted}, with {limit} files"
            ));
        }
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
        let given = given(&settings.storage);
        let (backend, store) = component::open(settings.storage, Arc::new(descriptors))
            .await
            .map_err(super::not_opened)?;
        let database = backend.runtime().database;
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
        let mut fields = vec![
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
            ("database", "database", Value::from(database.map(connection))),
            (
                "log level",
                "logLevel",
                Value::from(settings.telemetry.logs.level.to_string()),
            ),
        ];
        fields.extend(given);
        output.fields(&fields)?;
        telemetry.shutdown().await;
        Ok(())
    }
}

/// What a connection to a database is like, in words that say what it means.
fn connection(database: DatabaseRuntime) -> &'static str {
    match (database.read_only, database.pooled) {
        (false, false) => "takes writes, and tells of changes at once",
        (false, true) => {
            "takes writes, behind a pooler in transaction mode: changes by other hosts are seen within a second, and statements \
             are not prepared; for better speed connect to Postgres itself, or to a pooler in session mode"
        }
        (true, _) => {
            "takes no writes at present, being a standby or set so (default_transaction_read_only): reads work, and writes fail \
             with UNAVAILABLE until that changes; with several servers in the connection string, set target_session_attrs=read-write"
        }
    }
}

/// What the plugin is granted and may use, under the names of the settings. Values of its own settings may be secret: only
/// their names are shown.
fn given(config: &component::Config) -> [(&'static str, &'static str, Value); 15] {
    fn list<T: ToString>(items: impl Iterator<Item = T>) -> Value {
        items.map(|item| Value::from(item.to_string())).collect()
    }
    let (grants, limits) = (&config.grants, &config.limits);
    let secrets = grants.secrets.iter();
    let secrets = list(secrets.map(|(name, path)| format!("{name}={}", path.display())));
    let time = |duration| Value::from(humantime::format_duration(duration).to_string());
    [
        ("plugin settings", "pluginSettings", list(grants.settings.keys())),
        ("plugin secrets", "pluginSecrets", secrets),
        (
            "plugin directories",
            "pluginDirectories",
            list(grants.directories.iter()),
        ),
        ("plugin addresses", "pluginAddresses", list(grants.addresses.iter())),
        (
            "plugin HTTP origins",
            "pluginHttpOrigins",
            list(grants.http_origins.iter()),
        ),
        ("plugin open", "pluginOpen", Value::from(grants.most_open)),
        ("plugin memory", "pluginMemory", Value::from(size(limits.memory_bytes))),
        ("plugin compute time", "pluginComputeTime", time(limits.compute)),
        ("plugin turn time", "pluginTurnTime", time(limits.turn)),
        ("plugin call time", "pluginCallTime", time(limits.call)),
        (
            "plugin answer size",
            "pluginAnswerSize",
            Value::from(size(limits.answer_bytes)),
        ),
        ("plugin calls", "pluginCalls", Value::from(limits.calls)),
        ("plugin queue", "pluginQueue", Value::from(limits.queue)),
        ("plugin queue time", "pluginQueueTime", time(limits.queue_time)),
        ("plugin restarts", "pluginRestarts", Value::from(config.restarts.most)),
    ]
}

/// Bytes in the largest unit that says them exactly.
fn size(bytes: usize) -> String {
    // The whole of what 32 bits can address, which is a page more than an instance can have.
    if bytes == Limits::default().memory_bytes {
        return "4GiB".to_owned();
    }
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let exact = units
        .into_iter()
        .find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    let (name, unit) = exact.unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_as_they_are_set() {
        for (bytes, expected) in [
            (Limits::default().memory_bytes, "4GiB"),
            (128 << 20, "128MiB"),
            (1 << 30, "1GiB"),
            (64 << 10, "64KiB"),
            ((1 << 20) + 1, "1048577B"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}
