//! What an operator can set, from the environment and from flags.
//!
//! The names are Pomerium's where Pomerium has the setting, so that its configuration works here; each has a flag of the same
//! name, which goes before the variable. All mistakes are found in one go and each says what to do, because whoever fixes
//! one and restarts wants to be done. Secrets have no flag, since other users of a machine can read flags, and no message
//! shows them.
//!
//! An empty variable is as good as none, as it is for Pomerium; only an empty secret is a mistake, since it is hardly meant.

mod address;
mod key;
mod reader;
mod secret;

use std::path::PathBuf;
use std::time::Duration;

use tracing::level_filters::LevelFilter;

pub use address::{Address, AddressError};
pub use key::{ALL, Key};
pub use reader::{Mistake, Mistakes, Source};
pub use secret::{SECRET_LENGTH, SecretError, SharedSecret};

use reader::Reader;

use crate::component;

/// All settings of `serve`, checked.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub address: Address,
    /// What callers prove themselves with.
    pub secret: Secret,
    /// Which plugin, and what it is given.
    pub storage: component::Config,
    /// A file with descriptors of more record types.
    pub record_descriptors: Option<PathBuf>,
    /// How long changes stay in the change log.
    pub history: Duration,
    /// How often old changes and expired records are removed.
    pub clean_interval: Duration,
    /// How long a shutdown may take.
    pub grace_period: Duration,
    /// How much is logged.
    pub log_level: LevelFilter,
}

/// Where the shared secret comes from.
#[derive(Debug)]
pub enum Secret {
    /// It is configured.
    Configured(SharedSecret),
    /// It was made for this run, since none is configured and nobody but this machine is served.
    Generated(SharedSecret),
}

impl Secret {
    /// The secret.
    pub fn get(&self) -> &SharedSecret {
        match self {
            Self::Configured(secret) | Self::Generated(secret) => secret,
        }
    }
}

impl Settings {
    /// Reads and checks all settings.
    ///
    /// # Errors
    ///
    /// All mistakes there are.
    pub fn read(source: &Source) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(source);
        let address = reader.parsed(&key::GRPC_ADDRESS, Address::default(), |text| {
            Address::parse(text).map_err(|error| error.to_string())
        });
        check_plaintext(&mut reader, &address);
        check_services(&mut reader);
        let secret = secret(&mut reader, address.is_loopback());
        let storage = component::Config {
            plugin: reader.parsed(
                &key::STORAGE_TYPE,
                component::Source::BuiltIn("memory".to_owned()),
                plugin,
            ),
            connection_string: reader
                .text_or_file(&key::STORAGE_CONNECTION_STRING, &key::STORAGE_CONNECTION_STRING_FILE)
                .map(|text| text.trim().to_owned()),
            cache_dir: reader.text(&key::PLUGIN_CACHE_DIR).map(PathBuf::from),
            limits: component::Limits::default(),
        };
        let settings = Self {
            storage,
            record_descriptors: reader.text(&key::RECORD_DESCRIPTORS).map(PathBuf::from),
            history: duration(
                &mut reader,
                &key::HISTORY,
                Duration::from_secs(60 * 60),
                (SHORTEST, 10 * YEAR),
            ),
            clean_interval: duration(
                &mut reader,
                &key::CLEAN_INTERVAL,
                Duration::from_secs(60),
                (SHORTEST, 24 * HOUR),
            ),
            grace_period: duration(
                &mut reader,
                &key::GRACE_PERIOD,
                Duration::from_secs(10),
                (Duration::ZERO, HOUR),
            ),
            log_level: reader.parsed(&key::LOG_LEVEL, LevelFilter::INFO, log_level),
            address,
            secret,
        };
        reader.finish().map(|()| settings)
    }
}

/// Reads the shared secret alone, which is all that a client needs.
///
/// # Errors
///
/// The mistake.
pub fn client_secret(source: &Source) -> Result<SharedSecret, Mistakes> {
    let mut reader = Reader::new(source);
    let secret = secret(&mut reader, false);
    reader.finish().map(|()| secret.get().clone())
}

/// Shorter than anybody needs but tests.
const SHORTEST: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(60 * 60);
/// A year of 365 days, in a bound only.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

fn secret(reader: &mut Reader<'_>, may_be_generated: bool) -> Secret {
    // The file's text is taken as it is: a line end in it is a mistake for Pomerium too, and both must agree.
    let (key, text) = match reader.text_or_file_unless_absent(&key::SHARED_SECRET, &key::SHARED_SECRET_FILE) {
        Some(found) => found,
        None => {
            if !may_be_generated && !reader.has_mistake_of(&key::SHARED_SECRET_FILE) {
                reader.mistake(
                    &key::SHARED_SECRET,
                    "it is not set".to_owned(),
                    "set it to the value that Pomerium has, base64 of 32 bytes such as `head -c32 /dev/urandom | base64` makes",
                );
            }
            return Secret::Generated(SharedSecret::generate());
        }
    };
    match SharedSecret::parse(&text) {
        Ok(secret) => Secret::Configured(secret),
        Err(error) => {
            let remedy = match error {
                SecretError::Whitespace => {
                    "remove the spaces and line ends around it; `printf %s` writes a file without one"
                }
                _ => {
                    "set it to the value that Pomerium has, base64 of 32 bytes such as `head -c32 /dev/urandom | base64` makes"
                }
            };
            reader.mistake(key, error.to_string(), remedy);
            Secret::Generated(SharedSecret::generate())
        }
    }
}

fn check_plaintext(reader: &mut Reader<'_>, address: &Address) {
    let insecure = reader.parsed(&key::GRPC_INSECURE, None, |text| {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "t" => Ok(Some(true)),
            "false" | "0" | "f" => Ok(Some(false)),
            _ => Err("it is neither true nor false".to_owned()),
        }
    });
    let remedy = "set GRPC_INSECURE=true and leave TLS to a proxy, or listen on 127.0.0.1";
    match insecure {
        Some(true) => {}
        Some(false) => {
            reader.mistake(
                &key::GRPC_INSECURE,
                "it asks for TLS, which this version does not have yet".to_owned(),
                remedy,
            );
        }
        None if address.is_loopback() || reader.has_mistake_of(&key::GRPC_INSECURE) => {}
        None if reader.has_mistake_of(&key::GRPC_ADDRESS) => {}
        None => reader.mistake(
            &key::GRPC_INSECURE,
            format!("{address} can be reached from other machines, and this version does not have TLS yet"),
            remedy,
        ),
    }
}

/// `SERVICES` decides what a Pomerium process runs; here it must merely not exclude the databroker.
fn check_services(reader: &mut Reader<'_>) {
    reader.parsed(&key::SERVICES, (), |text| {
        let databroker = text
            .split(',')
            .any(|service| matches!(service.trim(), "all" | "databroker" | "cache"));
        if databroker {
            Ok(())
        } else {
            Err(format!(
                "{text:?} does not include databroker, which is all that this serves"
            ))
        }
    });
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
    if text.contains('/') || text.ends_with(".wasm") {
        return Ok(component::Source::File(PathBuf::from(text)));
    }
    let not_yet = if matches!(text, "file" | "postgres") {
        ", which this version does not have yet"
    } else {
        ""
    };
    Err(format!(
        "{text:?} is not a storage plugin{not_yet}; there is {}",
        built_ins.join(", ")
    ))
}

/// Pomerium's names of levels.
fn log_level(text: &str) -> Result<LevelFilter, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "critical" | "fatal" | "panic" => LevelFilter::ERROR,
        "off" | "none" | "disabled" => LevelFilter::OFF,
        _ => return Err(format!("{text:?} is not a level")),
    })
}

fn duration(reader: &mut Reader<'_>, key: &'static Key, default: Duration, bounds: (Duration, Duration)) -> Duration {
    let (least, most) = bounds;
    reader.parsed(key, default, |text| {
        let duration = humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration"))?;
        if duration < least || duration > most {
            let (least, most) = (humantime::format_duration(least), humantime::format_duration(most));
            return Err(format!("{text} is out of bounds: {least} to {most}"));
        }
        Ok(duration)
    })
}

#[cfg(test)]
mod tests;
