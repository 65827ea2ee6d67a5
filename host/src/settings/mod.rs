//! What an operator can set, from a configuration file, the environment and flags.
//!
//! The names are Pomerium's where Pomerium has the setting, so that its configuration works here; a flag goes before
//! the variable, the variable before the file. All mistakes are found in one go and each says where it is and what to
//! do, because whoever fixes one and restarts wants to be done. Secrets have no flag, since other users of a machine
//! can read flags, and no message shows them.
//!
//! An empty variable is as good as none, as it is for Pomerium; only an empty secret is a mistake, since it is hardly
//! meant.
//!
//! ```text
//! Source -> document (file) -> reader -> names, certificates, telemetry -> Settings
//! ```

mod certificates;
mod changes;
mod client;
mod document;
mod grants;
mod keys;
mod names;
mod plugin;
mod pomerium;
mod reader;
mod reference;
mod telemetry;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use crate::address::{Address, AddressError};
pub use crate::secret::{SECRET_LENGTH, SecretError, Secrets, SharedSecret};
pub use changes::Changes;
pub use client::{Client, client};
pub use keys::{ALL, Group, Key, Origin, Shape};
pub use reader::{Mistake, Mistakes, Source};
pub use reference::reference;
pub use telemetry::default_probes;

use reader::{Fingerprints, Reader};

use crate::telemetry::config::Config as Telemetry;
use crate::{broker, component, tls};

/// All settings of `serve`, checked.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub address: Address,
    /// What callers prove themselves with.
    pub secrets: Secrets,
    /// Where certificates come from; none to serve without TLS. They were loaded once already, to check them.
    pub tls: Option<tls::Source>,
    /// How often files of certificates are looked at.
    pub tls_reload_interval: Duration,
    /// Which plugin, and what it is given.
    pub storage: component::Config,
    /// A file with descriptors of more record types.
    pub record_descriptors: Option<PathBuf>,
    /// How the broker behaves.
    pub broker: broker::Config,
    /// How long a shutdown may take.
    pub grace_period: Duration,
    /// Most connections at a time.
    pub max_connections: usize,
    /// Most streams at a time.
    pub max_streams: usize,
    /// What is logged, measured, traced and told about health.
    pub telemetry: Telemetry,
    /// What an operator should hear at start and after a reload.
    pub notices: Vec<Notice>,
    /// What tells changed values.
    fingerprints: Fingerprints,
}

/// Something about the settings that is no mistake. One line each, without secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Good to know.
    Info(String),
    /// To be looked at.
    Warning(String),
}

impl fmt::Display for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Info(text) | Self::Warning(text)) = self;
        formatter.write_str(text)
    }
}

impl Settings {
    /// Reads and checks all settings, and the files of secrets and certificates that they name.
    ///
    /// # Errors
    ///
    /// All mistakes there are.
    pub fn read(source: &Source) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(source);
        names::check(&mut reader);
        let address = reader.or_default(&keys::GRPC_ADDRESS, address);
        check_services(&mut reader);
        let secrets = secrets(&mut reader, &address);
        let tls = certificates::grpc(&mut reader, &address, &secrets.current);
        if secrets.previous.is_some() && tls.as_ref().is_some_and(|tls| tls.derive.is_some()) {
            reader.warn(
                "the certificate is derived from the new secret, so clients that have the one of SHARED_SECRET_PREVIOUS do \
                 not trust it: to change the secret without a break, serve a certificate from a file"
                    .to_owned(),
            );
        }
        let plugin = reader.parsed(
            &keys::STORAGE_TYPE,
            component::Source::BuiltIn("memory".to_owned()),
            plugin,
        );
        let storage = component::Config {
            connection_string: connection_string(&mut reader, &plugin),
            plugin,
            cache_dir: reader.text(&keys::PLUGIN_CACHE_DIR).map(PathBuf::from),
            limits: plugin::limits(&mut reader),
            restarts: plugin::restarts(&mut reader),
            report_dir: plugin::report_dir(&mut reader),
            grants: grants::read(&mut reader),
        };
        let record_descriptors = reader.text(&keys::RECORD_DESCRIPTORS).map(PathBuf::from);
        let broker = broker(&mut reader);
        let mut duration = |key, least, most| duration(&mut reader, key, (least, most));
        let grace_period = duration(&keys::GRACE_PERIOD, Duration::ZERO, HOUR);
        let tls_reload_interval = duration(&keys::TLS_RELOAD_INTERVAL, Duration::from_millis(100), 24 * HOUR);
        let mut number = |key: &'static Key, most| reader.or_default(key, |text| bounded(text, 1, most));
        let max_connections = number(&keys::MAX_CONNECTIONS, 100_000);
        let max_streams = number(&keys::MAX_STREAMS, 1_000_000);
        let telemetry = telemetry::read(&mut reader);
        check_addresses(&mut reader, &address, &telemetry);
        let (notices, fingerprints) = reader.finish()?;
        Ok(Self {
            address,
            secrets,
            tls,
            tls_reload_interval,
            storage,
            record_descriptors,
            broker,
            grace_period,
            max_connections,
            max_streams,
            telemetry,
            notices,
            fingerprints,
        })
    }
}

/// Reads the shared secret alone, which is all that a client needs.
///
/// # Errors
///
/// The mistake.
pub fn client_secret(source: &Source) -> Result<SharedSecret, Mistakes> {
    let mut reader = Reader::new(source);
    let secret = current_secret(&mut reader, false);
    reader.finish().map(|_| secret.0)
}

/// What to do with a secret that is not written down as base64. Not every `base64` leaves line ends out by itself.
const BYTES_AS_BASE64: &str =
    "it looks like the bytes of the secret themselves: write them as base64, as `base64 FILE | tr -d '\\n'` does";

/// Shorter than anybody needs but tests.
const SHORTEST: Duration = Duration::from_millis(10);
/// What to do about a connection string that is not Postgres'.
const POSTGRES: &str = "write it as psql takes it, such as postgres://USER:PASSWORD@HOST/DATABASE";
const HOUR: Duration = Duration::from_secs(60 * 60);
/// A year of 365 days, in a bound only.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn secrets(reader: &mut Reader<'_>, address: &Address) -> Secrets {
    let (current, generated) = current_secret(reader, address.is_loopback());
    let previous = reader.text_or_file(&keys::SHARED_SECRET_PREVIOUS, &keys::SHARED_SECRET_PREVIOUS_FILE);
    let previous = previous.and_then(|(key, text)| {
        let secret = parse_secret(reader, key, &text)?;
        if generated && !reader.has_mistakes() {
            let remedy = "set SHARED_SECRET to the new one, or delete it";
            reader.mistake(key, "there is no secret after it".to_owned(), remedy);
        } else if secret == current {
            let place = reader.place(key);
            reader.warn(format!("{place}: it is the same as SHARED_SECRET: delete it"));
        }
        Some(secret)
    });
    Secrets {
        current,
        previous,
        generated,
    }
}

/// The secret, and whether it was made up.
fn current_secret(reader: &mut Reader<'_>, may_be_generated: bool) -> (SharedSecret, bool) {
    // The file's text is taken as it is: a line end in it is a mistake for Pomerium too, and both must agree.
    let found = reader.text_or_file_unless_absent(&keys::SHARED_SECRET, &keys::SHARED_SECRET_FILE);
    let parsed = match found {
        Some((key, text)) => parse_secret(reader, key, &text),
        None => {
            let key = &keys::SHARED_SECRET;
            if !(may_be_generated || reader.has_mistake_of(key) || reader.has_mistake_of(&keys::SHARED_SECRET_FILE)) {
                reader.mistake(key, "it is not set".to_owned(), key.remedy);
            }
            None
        }
    };
    parsed.map_or_else(|| (SharedSecret::generate(), true), |secret| (secret, false))
}

fn parse_secret(reader: &mut Reader<'_>, key: &'static Key, text: &str) -> Option<SharedSecret> {
    let error = match SharedSecret::parse(text) {
        Ok(secret) => return Some(secret),
        Err(error) => error,
    };
    let remedy = match error {
        SecretError::Whitespace => {
            "remove the spaces and line ends around it: in a file, `tr -d '[:space:]' <FILE >NEW` does"
        }
        SecretError::NotBase64(_) if text.len() == SECRET_LENGTH => BYTES_AS_BASE64,
        _ => keys::SHARED_SECRET.remedy,
    };
    reader.mistake(key, error.to_string(), remedy);
    None
}

/// The broker's own defaults count where nothing is set; the table of settings has them in words.
fn broker(reader: &mut Reader<'_>) -> broker::Config {
    let default = broker::Config::default();
    let mut duration =
        |key: &'static Key, default, most| reader.parsed(key, default, |text| bounded_duration(text, (SHORTEST, most)));
    broker::Config {
        history: duration(&keys::HISTORY, default.history, 10 * YEAR),
        clean_interval: duration(&keys::CLEAN_INTERVAL, default.clean_interval, 24 * HOUR),
        ..default
    }
}

/// `SERVICES` decides what a Pomerium process runs; here it must merely not exclude the databroker.
fn check_services(reader: &mut Reader<'_>) {
    let key = &keys::SERVICES;
    let services = reader.list(key);
    let databroker = services
        .iter()
        .any(|service| matches!(service.as_str(), "all" | "databroker" | "cache"));
    if !services.is_empty() && !databroker {
        let services = services.join(",");
        let wrong = format!("{services:?} does not include databroker, which is all that this serves");
        reader.mistake(key, wrong, key.remedy);
    }
}

/// Two listeners on one address could not both start.
fn check_addresses(reader: &mut Reader<'_>, grpc: &Address, telemetry: &Telemetry) {
    let health = telemetry.health.as_ref();
    let metrics = telemetry.metrics.as_ref().map(|metrics| &metrics.address);
    let taken = [
        (&keys::METRICS_ADDRESS, metrics, "GRPC_ADDRESS", Some(grpc)),
        (&keys::HEALTH_CHECK_ADDR, health, "GRPC_ADDRESS", Some(grpc)),
        (&keys::HEALTH_CHECK_ADDR, health, "METRICS_ADDRESS", metrics),
    ];
    for (key, address, other, taken) in taken {
        if let (Some(address), Some(taken)) = (address, taken)
            && address.overlaps(taken)
        {
            let wrong = if address == taken {
                format!("{address} is where {other} listens")
            } else {
                format!("{address} is where {other} listens, being {taken}")
            };
            reader.mistake(key, wrong, "choose another port");
        }
    }
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|error| error.to_string())
}

fn plugin(text: &str) -> Result<component::Source, String> {
    let built_ins = component::built_ins();
    if text.contains("://") {
        // It may hold a password: not shown.
        return Err(
            "it looks like a connection string, which belongs into DATABROKER_STORAGE_CONNECTION_STRING".to_owned(),
        );
    }
    if built_ins.contains(&text) {
        return Ok(component::Source::BuiltIn(text.to_owned()));
    }
    if looks_like_file(text) {
        return Ok(component::Source::File(PathBuf::from(text)));
    }
    let known = built_ins.join(", ");
    Err(if text == "file" {
        format!("{text:?} is a store of Pomerium's that this version has no plugin for; there is {known}")
    } else {
        format!("{text:?} is not a storage plugin; there is {known}")
    })
}

/// True where a plugin's name can only be meant as a file's path.
pub fn looks_like_file(plugin: &str) -> bool {
    plugin.contains('/') || plugin.ends_with(".wasm")
}

/// What the plugin is told about its store. What the built-in plugins take is known, so that it is judged here; of any other
/// plugin only that plugin knows.
fn connection_string(reader: &mut Reader<'_>, plugin: &component::Source) -> Option<String> {
    let (key, file) = (&keys::STORAGE_CONNECTION_STRING, &keys::STORAGE_CONNECTION_STRING_FILE);
    let found = reader
        .text_or_file(key, file)
        .map(|(key, text)| (key, text.trim().to_owned()))
        .filter(|(_, text)| !text.is_empty());
    let component::Source::BuiltIn(name) = plugin else {
        return found.map(|(_, text)| text);
    };
    match (name.as_str(), found) {
        ("postgres", None) => {
            if !reader.has_mistake_of(file) {
                let wrong = "it is not set, and DATABROKER_STORAGE_TYPE is postgres".to_owned();
                let remedy = "say where the database is, such as postgres://USER:PASSWORD@HOST/DATABASE";
                reader.mistake(key, wrong, remedy);
            }
            None
        }
        ("postgres", Some((key, text))) => {
            if let Err(wrong) = component::check_database(&text) {
                reader.mistake(key, wrong, POSTGRES);
            }
            Some(text)
        }
        // Pomerium passes over it. Whoever has it there may believe that records outlive the process.
        ("memory", Some((key, text))) if component::names_database(&text) => {
            let place = reader.place(key);
            reader.warn(format!(
                "{place}: it is not used, since DATABROKER_STORAGE_TYPE is memory, which keeps nothing over a restart: set \
                 DATABROKER_STORAGE_TYPE to postgres, or delete it"
            ));
            None
        }
        (_, found) => found.map(|(_, text)| text),
    }
}

/// A whole number within bounds.
fn bounded<T>(text: &str, least: T, most: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    let number: T = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if number < least || number > most {
        return Err(format!("{text} is out of bounds: {least} to {most}"));
    }
    Ok(number)
}

fn duration(reader: &mut Reader<'_>, key: &'static Key, bounds: (Duration, Duration)) -> Duration {
    reader.or_default(key, |text| bounded_duration(text, bounds))
}

fn bounded_duration(text: &str, (least, most): (Duration, Duration)) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration"))?;
    if duration < least || duration > most {
        let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
        return Err(format!("{text} is out of bounds: {least} to {most}"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests;
