//! `databroker-conformance`: checks a databroker, at any address, against the protocol.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use databroker_conformance::{Format, Known, Selection, Settings, Suite, Target, TargetError};

/// Everything is as expected.
const SUCCESS: u8 = 0;
/// A case failed.
const FAILURE: u8 = 1;
/// The server could not be reached.
const UNREACHABLE: u8 = 2;
/// The command line is wrong.
const USAGE: u8 = 64;

/// Checks a databroker against the protocol over gRPC.
///
/// Exit codes: 0 everything is as expected, 1 a case failed, 2 the server could not be reached, 64 the command line is
/// wrong.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The server, as http://HOST:PORT; several times where several servers share one store: the calls of each case are then
    /// spread over all of them.
    #[arg(long, required_unless_present = "list")]
    address: Vec<String>,

    /// The shared secret: 32 bytes in base64. Other users see it in the process list, so prefer the environment or a
    /// file.
    #[arg(long, env = "SHARED_SECRET", hide_env_values = true)]
    shared_secret: Option<String>,

    /// A file with the shared secret, which wins over the others.
    #[arg(long, value_name = "FILE")]
    shared_secret_file: Option<PathBuf>,

    /// Run only cases whose name or law contains this; may be given several times.
    #[arg(long, value_name = "SUBSTRING")]
    filter: Vec<String>,

    /// Print the cases and what each checks, and run nothing.
    #[arg(long)]
    list: bool,

    /// How to write the report.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,

    /// A TOML table of cases that are expected to fail, each with a reason.
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,

    /// How many cases run side by side.
    #[arg(long, default_value = "4", value_name = "COUNT")]
    jobs: usize,

    /// Before a case begins, wait so long for a server that is not there: for one that a case may bring down and that is
    /// then started again. Goes with --jobs 1.
    #[arg(long, value_name = "SECONDS", default_value = "0")]
    patience_seconds: u64,

    /// The server keeps changes for so long; without it, the cases that wait for their end are skipped.
    #[arg(long, value_name = "SECONDS")]
    history_seconds: Option<u64>,

    /// The server cleans this often; without it, the cases that wait for that are skipped.
    #[arg(long, value_name = "SECONDS")]
    clean_interval_seconds: Option<u64>,

    /// The server lists a reported service for so long; without it, the cases that wait for its end are skipped.
    #[arg(long, value_name = "SECONDS")]
    service_ttl_seconds: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
    Junit,
}

impl From<Output> for Format {
    fn from(output: Output) -> Self {
        match output {
            Output::Text => Self::Text,
            Output::Json => Self::Json,
            Output::Junit => Self::Junit,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let usage = error.use_stderr();
            // Nothing can be done where even this cannot be written.
            let _ = error.print();
            return ExitCode::from(if usage { USAGE } else { SUCCESS });
        }
    };
    match run(arguments).await {
        Ok((report, code)) => match std::io::stdout().write_all(report.as_bytes()) {
            Ok(()) => ExitCode::from(code),
            Err(_) => ExitCode::from(FAILURE),
        },
        Err((message, code)) => {
            let _ = writeln!(std::io::stderr(), "databroker-conformance: {message}");
            ExitCode::from(code)
        }
    }
}

async fn run(arguments: Arguments) -> Result<(String, u8), (String, u8)> {
    let usage = |error: &dyn std::fmt::Display| (error.to_string(), USAGE);
    let known = match &arguments.known {
        Some(path) => Known::read(path).map_err(|error| usage(&error))?,
        None => Known::default(),
    };
    let selection = Selection {
        filters: arguments.filter,
        jobs: arguments.jobs,
        known,
        patience: Duration::from_secs(arguments.patience_seconds),
    };
    let cases: Vec<_> = Suite::cases()
        .into_iter()
        .filter(|case| selection.includes(case))
        .collect();
    if cases.is_empty() {
        return Err(("no case has a name or law that contains the filter".to_owned(), USAGE));
    }
    if arguments.list {
        let list = cases
            .iter()
            .map(|case| format!("{} [{}] {}\n", case.name, case.law, case.description));
        return Ok((list.collect(), SUCCESS));
    }
    let secret = match (&arguments.shared_secret_file, arguments.shared_secret) {
        (Some(path), _) => std::fs::read_to_string(path)
            .map_err(|error| usage(&format!("could not read {}: {error}", path.display())))?
            .trim()
            .to_owned(),
        (None, Some(secret)) => secret,
        (None, None) => return Err(usage(&"give --shared-secret-file or the environment's SHARED_SECRET")),
    };
    let settings = Settings {
        history: arguments.history_seconds.map(Duration::from_secs),
        clean_interval: arguments.clean_interval_seconds.map(Duration::from_secs),
        service_ttl: arguments.service_ttl_seconds.map(Duration::from_secs),
    };
    let mut targets = Vec::new();
    for address in &arguments.address {
        targets.push(Target::new(address, &secret, settings).map_err(|error| usage(&error))?);
    }
    let targets = targets.into_iter().reduce(|all, one| all.and(&one));
    let target = targets.ok_or_else(|| usage(&"give --address"))?;
    target
        .wait(selection.patience)
        .await
        .map_err(|error: TargetError| (error.to_string(), UNREACHABLE))?;
    let report = Suite::run(&target, &selection).await;
    let code = if report.is_success() { SUCCESS } else { FAILURE };
    match report.write(arguments.output.into()) {
        Ok(text) => Ok((text, code)),
        Err(error) => Err((error.to_string(), FAILURE)),
    }
}
