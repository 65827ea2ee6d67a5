//! The command line: the tree of commands, and what their failures mean to whoever has called the program.
//!
//! A command is a noun, then a verb. It reads its flags, calls a databroker as any client does, and prints through
//! `output`; `serve` and `config check` are the two that have the server's parts within. Nothing here is known to the
//! rest of the library.

mod config;
mod connection;
mod docs;
mod health;
mod lease;
mod options;
mod output;
mod plugin;
mod record;
#[cfg(test)]
mod reference;
mod secrets;
mod serve;
mod server;
mod setting_flags;
mod shown;
mod terminal;
mod token;
mod watch;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tonic::Code;

use crate::backend::BackendError;
use crate::component::{OpenError, PluginError};
use crate::data::Descriptors;
use crate::grpc::client::ClientError;
use crate::settings::{Mistakes, Source};

/// All exit codes, with what they mean.
pub const EXIT_CODES: &[(u8, &str)] = &[
    (DONE, "done"),
    (
        FAILED,
        "failed; the message says why. `health`: it is not well, for whatever reason",
    ),
    (
        USAGE,
        "the command line, the settings, or what was handed in with them is wrong",
    ),
    (MISSING, "there is no such record, or there are no such options"),
    (
        UNAVAILABLE,
        "no databroker is reached, or it is not ready: trying again may help",
    ),
    (
        REFUSED,
        "the databroker does not accept the token: the shared secrets differ",
    ),
];

/// How long calls of the system's are waited for that are under way when all else has ended.
const LAST_CALLS: Duration = Duration::from_secs(1);

// What a shell calls these is in sysexits.h, for those above 2.
const DONE: u8 = 0;
const FAILED: u8 = 1;
const USAGE: u8 = 64;
const MISSING: u8 = 66;
const UNAVAILABLE: u8 = 69;
const REFUSED: u8 = 77;

/// Pomerium's databroker, with storage as a WASI component
#[derive(Parser, Debug)]
#[command(
    name = "databroker-host",
    version,
    after_help = exit_codes(),
    subcommand_required = true,
    arg_required_else_help = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve Pomerium's databroker protocol
    Serve(setting_flags::SettingFlags),
    /// Check a configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look at storage plugins
    #[command(subcommand)]
    Plugin(plugin::PluginCommand),
    /// Read and write records
    #[command(subcommand)]
    Record(Box<record::RecordCommand>),
    /// See and set how the records of a type are kept
    #[command(subcommand)]
    Options(Box<options::OptionsCommand>),
    /// Take, keep and give back leases
    #[command(subcommand)]
    Lease(Box<lease::LeaseCommand>),
    /// List the types that have records
    Types(server::ServerFlags),
    /// Ask a databroker where it stands
    ServerInfo(server::ServerFlags),
    /// Ask whether a databroker is well, for the probes of containers
    ///
    /// It needs no secret. Its exit code is 0 for well, else 1, or 64 where the command line is wrong.
    Health(Box<health::HealthFlags>),
    /// Print a token for other tools, to be sent in the metadata key jwt
    Token(token::TokenFlags),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page of the program
    Man {
        /// Write the man pages of all commands to this folder instead
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

/// Most bytes of a file with descriptors.
const DESCRIPTOR_BYTES: u64 = 64 << 20;

/// Reads the command line and does what it says: the exit code. What went wrong is on standard error.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> u8 {
    let environment = Environment(environment.into_iter().collect());
    let outcome = CommandLine::try_parse_from(arguments)
        .map_err(CommandError::from)
        .and_then(|line| line.command.run(&environment));
    match outcome {
        Ok(()) => DONE,
        Err(error) => {
            error.print();
            error.exit_code()
        }
    }
}

impl Command {
    fn run(self, environment: &Environment) -> Result<(), CommandError> {
        match self {
            Self::Serve(flags) => wait(
                tokio::runtime::Builder::new_multi_thread(),
                serve::serve(&flags, environment),
            ),
            Self::Config(config::ConfigCommand::Check(flags)) => {
                wait(tokio::runtime::Builder::new_multi_thread(), flags.run(environment))
            }
            Self::Plugin(plugin::PluginCommand::Inspect(flags)) => flags.run(),
            Self::Record(command) => client(command.run(environment)),
            Self::Options(command) => client(command.run(environment)),
            Self::Lease(command) => client(command.run(environment)),
            Self::Types(flags) => client(flags.types(environment)),
            Self::ServerInfo(flags) => client(flags.info(environment)),
            // A probe knows well and not well, whatever the reason.
            Self::Health(flags) => client(flags.run(environment)).map_err(|error| match (error.exit_code(), error) {
                (code, CommandError::Client(error)) if code != USAGE => CommandError::Failed(error.into()),
                (_, error) => error,
            }),
            Self::Token(flags) => flags.run(environment),
            Self::Completions { shell } => docs::completions(shell),
            Self::Man { out } => docs::man(out.as_deref()),
        }
    }
}

/// Does a client's work, for which one thread is enough.
fn client(work: impl Future<Output = Result<(), CommandError>>) -> Result<(), CommandError> {
    wait(tokio::runtime::Builder::new_current_thread(), work)
}

fn wait(
    mut runtime: tokio::runtime::Builder,
    work: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    let runtime = runtime
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let outcome = runtime.block_on(work);
    // A plugin may have a call of the system's under way that never ends, such as reading a pipe or a network's file system. That
    // must not keep the process: whoever starts it again waits for its end.
    runtime.shutdown_timeout(LAST_CALLS);
    outcome
}

/// The process's environment.
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Settings from it and a file, without any flags.
    fn source(&self, file: Option<PathBuf>) -> Source {
        Source {
            flags: BTreeMap::new(),
            environment: self.0.clone(),
            file,
        }
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The command line is wrong, or help was asked for.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The settings are wrong.
    #[error(transparent)]
    Settings(#[from] Mistakes),
    /// What was handed in is wrong: a sentence that says what and where.
    #[error("{0}")]
    Usage(String),
    /// There is none: a sentence that says of what.
    #[error("{0}")]
    Missing(String),
    /// The databroker is not reached, or does not do it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The results cannot be written.
    #[error("cannot write the results: {0}")]
    Output(#[from] io::Error),
    /// Anything else.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl CommandError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Arguments(error) if !error.use_stderr() => DONE,
            Self::Arguments(_) | Self::Settings(_) | Self::Usage(_) => USAGE,
            Self::Client(ClientError::Address(_) | ClientError::Trust(_)) => USAGE,
            Self::Client(error) if error.is_unavailable() => UNAVAILABLE,
            Self::Client(error) => match error.code() {
                Some(Code::Unauthenticated | Code::PermissionDenied) => REFUSED,
                Some(Code::InvalidArgument) => USAGE,
                _ => FAILED,
            },
            Self::Missing(_) => MISSING,
            // Whoever reads the results has enough of them.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => DONE,
            Self::Output(_) | Self::Failed(_) => FAILED,
        }
    }

    fn print(&self) {
        match self {
            Self::Arguments(error) => {
                // A failure to print leaves nothing to do.
                let _ = error.print();
            }
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            error => output::note(&error.to_string()),
        }
    }
}

/// An answer, where NOT_FOUND says that there is none.
fn found<T>(answer: Result<T, ClientError>, missing: &str) -> Result<T, CommandError> {
    answer.map_err(|error| match error.code() {
        Some(Code::NotFound) => CommandError::Missing(missing.to_owned()),
        _ => error.into(),
    })
}

/// Why a store is not opened: what the settings name is wrong, or works not.
fn not_opened(error: OpenError) -> CommandError {
    match error {
        OpenError::Plugin(PluginError::Engine(_)) => CommandError::Failed(error.into()),
        OpenError::Plugin(_)
        | OpenError::Store {
            error: BackendError::Configuration(_),
            ..
        } => CommandError::Usage(error.to_string()),
        _ => CommandError::Failed(error.into()),
    }
}

/// The built-in descriptors and those of a file, which a setting of that name has named.
fn descriptors(path: Option<&Path>, setting: &str) -> Result<Descriptors, CommandError> {
    let built_in = Descriptors::built_in();
    let Some(path) = path else {
        return Ok(built_in);
    };
    let more = crate::file::read(path, DESCRIPTOR_BYTES)
        .map_err(|error| CommandError::Usage(format!("{setting}: {path:?}: {error}")))?;
    built_in
        .with_additional(&more.bytes)
        .map_err(|error| CommandError::Usage(format!("{setting}: {path:?}: {error}")))
}

fn exit_codes() -> String {
    let codes = EXIT_CODES
        .iter()
        .map(|(code, meaning)| format!("\n  {code:2}  {meaning}"));
    format!("Exit codes:{}", codes.collect::<String>().replace('`', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_documented_exit_codes() {
        let failed = |code| {
            CommandError::from(ClientError::Failed {
                address: String::new(),
                code,
                message: String::new(),
                remedy: "",
            })
        };
        let unreachable = ClientError::Unreachable {
            address: String::new(),
            cause: String::new(),
            remedy: "",
        };
        let broken_pipe = io::Error::from(io::ErrorKind::BrokenPipe);
        let cases = [
            (broken_pipe.into(), DONE),
            (io::Error::from(io::ErrorKind::StorageFull).into(), FAILED),
            (anyhow::anyhow!("x").into(), FAILED),
            (failed(Code::Internal), FAILED),
            (failed(Code::ResourceExhausted), FAILED),
            (CommandError::Usage(String::new()), USAGE),
            (ClientError::Address(String::new()).into(), USAGE),
            (failed(Code::InvalidArgument), USAGE),
            (CommandError::Missing(String::new()), MISSING),
            (unreachable.into(), UNAVAILABLE),
            (failed(Code::Unavailable), UNAVAILABLE),
            (failed(Code::DeadlineExceeded), UNAVAILABLE),
            (ClientError::Refused(String::new()).into(), REFUSED),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error:?}");
            assert!(EXIT_CODES.iter().any(|(documented, _)| *documented == code), "{code}");
        }
    }
}
