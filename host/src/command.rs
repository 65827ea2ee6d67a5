//! The command line.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command as Clap};

use crate::settings::{ALL, Key, Mistakes, Settings, SharedSecret, Source, client_secret};

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<Settings>),
    /// Ask a databroker where it stands.
    ServerInfo {
        /// Its URL.
        address: String,
        /// The secret that it has.
        secret: SharedSecret,
    },
}

/// Why there is nothing to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The command line is wrong, or help was asked for.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] Mistakes),
}

impl Command {
    /// Reads the command line and the environment.
    ///
    /// # Errors
    ///
    /// See [`CommandError`].
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, CommandError> {
        let matches = clap().try_get_matches_from(arguments)?;
        let environment = environment.into_iter().collect();
        match matches.subcommand() {
            Some(("server-info", matches)) => {
                let address = matches.get_one::<String>("address").cloned().unwrap_or_default();
                let source = Source {
                    flags: BTreeMap::new(),
                    environment,
                };
                Ok(Self::ServerInfo {
                    address,
                    secret: client_secret(&source)?,
                })
            }
            // The library asks for a command, and `serve` is the only other one.
            matches => {
                let flags = matches.map(|(_, matches)| flags(matches)).unwrap_or_default();
                Ok(Self::Serve(Box::new(Settings::read(&Source { flags, environment })?)))
            }
        }
    }
}

/// The line that makes a first call with a secret, to be pasted into a shell.
pub fn first_call(program: &std::path::Path, secret: &SharedSecret, port: u16, host: &str) -> String {
    let program = program.to_string_lossy();
    let plain = program
        .chars()
        .all(|character| character.is_alphanumeric() || "/._-+".contains(character));
    let program = if plain {
        program.into_owned()
    } else {
        format!("'{}'", program.replace('\'', r"'\''"))
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    format!(
        "SHARED_SECRET={} {program} server-info --address http://{host}:{port}",
        secret.to_base64()
    )
}

fn clap() -> Clap {
    let address = Arg::new("address")
        .long("address")
        .value_name("URL")
        .default_value("http://127.0.0.1:5443")
        .help("The databroker to ask");
    Clap::new("databroker-host")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Pomerium's databroker, with storage as a WASI component")
        .after_help("Exit codes: 0 done, 1 failed, 64 wrong usage or settings.")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Clap::new("serve")
                .about("Serve Pomerium's databroker protocol")
                .after_help(environment_help())
                .args(ALL.iter().filter_map(|key| argument(key))),
        )
        .subcommand(
            Clap::new("server-info")
                .about(
                    "Ask a databroker where it stands; takes SHARED_SECRET or SHARED_SECRET_FILE from the environment",
                )
                .arg(address),
        )
}

fn argument(key: &'static Key) -> Option<Arg> {
    let flag = key.flag?;
    let argument = Arg::new(key.variable)
        .long(flag)
        .value_name(key.value)
        .value_parser(clap::value_parser!(OsString))
        .help(format!("{} [env: {}]", key.help, key.variable));
    if key.value == "BOOLEAN" {
        return Some(
            argument
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true"),
        );
    }
    Some(argument)
}

fn environment_help() -> String {
    let secrets = ALL.iter().filter(|key| key.flag.is_none());
    let lines = secrets.map(|key| format!("  {}={}\n          {}\n", key.variable, key.value, key.help));
    format!(
        "In the environment only, where other users cannot read it:\n{}",
        lines.collect::<String>()
    )
}

/// The values of the flags that were given.
fn flags(matches: &ArgMatches) -> BTreeMap<&'static str, OsString> {
    let given = |key: &'static Key| {
        let value = matches.try_get_one::<OsString>(key.variable).ok().flatten()?;
        Some((key.variable, value.clone()))
    };
    ALL.iter().filter_map(|key| given(key)).collect()
}
