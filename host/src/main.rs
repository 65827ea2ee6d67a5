//! The program: reads the settings, builds the parts from the backend up, serves, and drains at SIGTERM or SIGINT.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use databroker_host::broker::{self, Broker};
use databroker_host::command::{self, Command, CommandError};
use databroker_host::data::Descriptors;
use databroker_host::grpc::client;
use databroker_host::settings::{Secret, Settings, SharedSecret};
use databroker_host::{component, logging, server};
use tokio::signal::unix::{SignalKind, signal};

/// What a shell calls wrong usage.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let outcome = match Command::read(std::env::args_os(), std::env::vars_os()) {
        Ok(Command::Serve(settings)) => serve(*settings),
        Ok(Command::ServerInfo { address, secret }) => server_info(&address, &secret),
        Err(CommandError::Arguments(error)) => {
            // A failure to print leaves nothing to do.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(USAGE);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(settings: Settings) -> anyhow::Result<()> {
    let _log = logging::start(settings.log_level);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let mut descriptors = Descriptors::built_in()?;
    if let Some(path) = &settings.record_descriptors {
        let more =
            std::fs::read(path).with_context(|| format!("DATABROKER_RECORD_DESCRIPTORS: cannot read {path:?}"))?;
        descriptors = descriptors
            .with_additional(&more)
            .with_context(|| format!("{path:?}"))?;
    }
    let descriptors = Arc::new(descriptors);
    let listener = server::listen(&settings.address).await?;
    let (backend, store) = component::open(settings.storage, Arc::clone(&descriptors)).await?;
    let config = broker::Config {
        history: settings.history,
        clean_interval: settings.clean_interval,
        ..Default::default()
    };
    tracing::info!(
        store = store.summary,
        shared = store.shared,
        durable = store.durable,
        "opened the store"
    );
    let broker = Broker::start(backend, store, config, descriptors).await?;

    let address = listener.local_addr()?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    if let Secret::Generated(secret) = &settings.secret {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let call = command::first_call(&program, secret, address.port(), &address.ip().to_string());
        // Where nobody reads it, it serves all the same.
        let _ = writeln!(
            std::io::stdout(),
            "SHARED_SECRET is not set: serving this machine only, with a secret made for this run. A first call:\n\n  {call}\n"
        );
    }
    let config = server::Config {
        shared_secret: settings.secret.get().clone(),
        grace_period: settings.grace_period,
    };
    let shutdown = async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    };
    Ok(server::run(listener, broker, config, shutdown).await?)
}

#[tokio::main(flavor = "current_thread")]
async fn server_info(address: &str, secret: &SharedSecret) -> anyhow::Result<()> {
    let info = client::server_info(address, secret).await?;
    let mut output = std::io::stdout();
    writeln!(output, "server version          {}", info.server_version)?;
    writeln!(output, "earliest record version {}", info.earliest_version)?;
    writeln!(output, "latest record version   {}", info.latest_version)?;
    Ok(())
}
