//! `serve`: builds the parts from the backend up, serves, and drains at SIGTERM or SIGINT. SIGHUP reads the settings
//! again.
//!
//! Opening the store may take its time. Until then probes say that nothing is ready, and calls are told UNAVAILABLE.

use std::convert::Infallible;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use futures::stream::{self, Stream, StreamExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::setting_flags::SettingFlags;
use super::{CommandError, Environment};
use crate::backend::{Backend, BackendError, StoreInfo};
use crate::broker::Broker;
use crate::component::{self, OpenError};
use crate::data::Descriptors;
use crate::grpc::auth::Guard;
use crate::listener::listen;
use crate::open_files;
use crate::server::{self, Server};
use crate::settings::{self, Address, Changes, Mistakes, Notice, Settings, SharedSecret};
use crate::telemetry::{self, Instruments, Telemetry};
use crate::tls::{self, Certificates, Changed};

/// The pauses between attempts to open a store: the first, and the longest, to which they double.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long after the start descriptors are made that nobody has needed yet.
const LOADING_DELAY: Duration = Duration::from_millis(100);

/// Serves until it is told to stop.
///
/// # Errors
///
/// All mistakes in the settings, why it does not start, or why it did not end in order.
pub async fn serve(flags: &SettingFlags, environment: &Environment) -> Result<(), CommandError> {
    let settings = flags.settings(environment)?;
    let telemetry = telemetry::start(&settings.telemetry).map_err(|error| CommandError::Usage(error.to_string()))?;
    let outcome = run(settings, &telemetry, || flags.settings(environment)).await;
    telemetry.shutdown().await;
    outcome
}

async fn run(
    settings: Settings,
    telemetry: &Telemetry,
    read_again: impl Fn() -> Result<Settings, CommandError>,
) -> Result<(), CommandError> {
    settings.notices.iter().for_each(tell);
    let mut signals = Box::pin(signals()?);
    let hangup = signal(SignalKind::hangup()).context("cannot wait for SIGHUP")?;
    let instruments = telemetry.instruments.clone();

    // First of all, so that a second process says in one line that it is one.
    let listener = listen(&settings.address, "GRPC_ADDRESS")
        .await
        .map_err(anyhow::Error::from)?;

    // Those that end with this function.
    let mut tasks = JoinSet::new();
    let certificates = match &settings.tls {
        Some(source) => Some(load(source, settings.tls_reload_interval, &mut tasks)?),
        None => None,
    };
    if let Some(certificates) = &certificates {
        instruments.metrics.observe_certificates("grpc", certificates);
    }
    if let Some(address) = &settings.telemetry.health {
        serve_health(address, &instruments, &mut tasks).await?;
    }
    let metrics_certificates = serve_metrics(&settings, &instruments, &mut tasks).await?;

    let descriptors = Arc::new(super::descriptors(
        settings.record_descriptors.as_deref(),
        "DATABROKER_RECORD_DESCRIPTORS",
    )?);
    let address = listener
        .local_addr()
        .context("cannot tell the address that is listened on")?;
    let guard = Guard::new(&settings.secrets, Arc::clone(&instruments.metrics));
    let grace_period = watch::Sender::new(settings.grace_period);
    let config = server::Config {
        guard: guard.clone(),
        grace_period: grace_period.subscribe(),
        tls: certificates
            .as_ref()
            .map(|certificates| certificates.server_config(&[b"h2"])),
        limits: server::Limits {
            connections: connections(&settings),
            streams: settings.max_streams,
        },
        calls: Default::default(),
        instruments: instruments.clone(),
    };
    let mut server = Server::new(listener, config);
    let tls = certificates.is_some();
    tracing::info!(%address, tls, version = env!("CARGO_PKG_VERSION"), "listening");
    // A store may take its time, and a signal is heard meanwhile.
    let broker = tokio::select! {
        broker = server.until(open(&settings, &instruments, Arc::clone(&descriptors))) => broker.map_err(anyhow::Error::from)??,
        _ = signals.next() => {
            tracing::info!("told to stop before the store was open");
            return Ok(());
        }
    };

    tracing::info!(%address, "serving");
    tasks.spawn(load_descriptors(descriptors));
    if settings.secrets.generated {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let secret = &settings.secrets.current;
        let call = first_call(&program, secret, address.port(), &address.ip().to_string(), tls);
        // Where nobody reads it, it serves all the same.
        let _ = writeln!(
            std::io::stdout(),
            "SHARED_SECRET is not set: serving this machine only, with a secret made for this run. A first call:\n\n  {call}\n"
        );
    }
    let reload = Reload {
        settings,
        guard,
        certificates,
        metrics_certificates,
        grace_period,
        telemetry,
    };
    // A task of its own: reading settings and certificates again may block, on a file system that hangs, for as long as
    // it takes.
    let serving = tokio::spawn(server.run(broker, signals));
    let outcome = tokio::select! {
        outcome = serving => outcome,
        never = reload.at_each(hangup, read_again) => match never {},
    };
    outcome.context("the server has failed")?.map_err(anyhow::Error::from)?;
    Ok(())
}

/// Makes the descriptors once those who have waited for the start have had their answers.
async fn load_descriptors(descriptors: Arc<Descriptors>) {
    tokio::time::sleep(LOADING_DELAY).await;
    // It takes a while without letting others have their turn.
    let _ = tokio::task::spawn_blocking(move || descriptors.load()).await;
}

/// How many connections there may be of those that are wanted, which is told where it is less.
fn connections(settings: &Settings) -> usize {
    let wanted = settings.max_connections;
    let open_files = open_files::raise();
    let connections = open_files::connections(wanted, open_files, settings.storage.most_open());
    if connections < wanted {
        tracing::warn!(connections, open_files, "{}", open_files::TOO_FEW);
    }
    connections
}

/// Opens the store, and starts the broker on it.
async fn open(
    settings: &Settings,
    instruments: &Instruments,
    descriptors: Arc<Descriptors>,
) -> Result<Arc<Broker>, CommandError> {
    let (backend, store) = open_store(settings, &descriptors).await?;
    let backend = instruments.measure(backend);
    match Broker::start(Arc::clone(&backend), store, settings.broker.clone(), descriptors).await {
        Ok(broker) => Ok(broker),
        Err(error) => {
            // The error that is told is the first one.
            let _ = backend.close().await;
            let error = anyhow::Error::from(error).context("the store was opened and does not work");
            Err(error.into())
        }
    }
}

/// Opens the store. One that cannot be reached yet, or takes no writes yet, is waited for, as Pomerium does: whatever starts
/// a database and this process together cannot always keep them in order. Nothing is ready meanwhile, and the log says why.
async fn open_store(
    settings: &Settings,
    descriptors: &Arc<Descriptors>,
) -> Result<(Arc<dyn Backend>, StoreInfo), CommandError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match component::open(settings.storage.clone(), Arc::clone(descriptors)).await {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        if !matches!(
            &error,
            OpenError::Store {
                error: BackendError::Unavailable(_) | BackendError::ReadOnly(_),
                ..
            }
        ) {
            return Err(super::not_opened(error));
        }
        tracing::warn!(%error, again_in = ?pause, "the store is not there yet: not ready until it is");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What can change while the process serves, and where it goes.
struct Reload<'a> {
    /// As they are now.
    settings: Settings,
    guard: Guard,
    certificates: Option<Arc<Certificates>>,
    metrics_certificates: Option<Arc<Certificates>>,
    grace_period: watch::Sender<Duration>,
    telemetry: &'a Telemetry,
}

impl Reload<'_> {
    /// Reads the settings again at each signal. Where there is any mistake in them, all stays as it was.
    async fn at_each(mut self, mut hangup: Signal, read: impl Fn() -> Result<Settings, CommandError>) -> Infallible {
        loop {
            if hangup.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
            match read().and_then(|new| self.apply(new)) {
                Ok(()) => {}
                Err(CommandError::Settings(Mistakes(mistakes))) => {
                    for mistake in mistakes {
                        tracing::error!("{mistake}");
                    }
                    tracing::error!("the settings have mistakes, so that all of them stay as they were");
                }
                Err(error) => {
                    tracing::error!(%error, "the settings cannot be read, so that all of them stay as they were")
                }
            }
        }
    }

    fn apply(&mut self, new: Settings) -> Result<(), CommandError> {
        let Changes { applied, restart } = self.settings.reload(new).map_err(|mistake| Mistakes(vec![mistake]))?;
        self.settings.notices.iter().for_each(tell);
        self.guard.replace(&self.settings.secrets);
        self.grace_period.send_replace(self.settings.grace_period);
        self.telemetry.set_level(self.settings.telemetry.logs.level);
        let metrics = self.settings.telemetry.metrics.as_ref();
        let grpc = replace(self.certificates.as_deref(), self.settings.tls.as_ref());
        let metrics = replace(
            self.metrics_certificates.as_deref(),
            metrics.and_then(|metrics| metrics.tls.as_ref()),
        );
        let changed = Changes::names(&applied);
        if restart.is_empty() && applied.is_empty() && grpc == Changed::No && metrics == Changed::No {
            tracing::info!("read the settings again: nothing has changed");
        } else if restart.is_empty() {
            tracing::info!(changed, "read the settings again");
        } else {
            let unchanged = Changes::names(&restart);
            tracing::warn!(
                changed,
                unchanged,
                "read the settings again; what is unchanged takes effect after a restart only"
            );
        }
        Ok(())
    }
}

/// Certificates may be the same files with other content, so they are looked at whatever the settings say. Reading the
/// settings has checked them already, with all else that was read.
fn replace(certificates: Option<&Certificates>, source: Option<&tls::Source>) -> Changed {
    let (Some(certificates), Some(source)) = (certificates, source) else {
        return Changed::No;
    };
    let changed = certificates.replace(source);
    match &changed {
        Ok(Changed::Yes) => certificates.log_change(),
        Ok(Changed::No) => {}
        Err(error) => tracing::error!(%error, "the certificates cannot be used: the former ones stay"),
    }
    changed.unwrap_or(Changed::No)
}

fn tell(notice: &Notice) {
    match notice {
        Notice::Info(text) => tracing::info!("{text}"),
        Notice::Warning(text) => tracing::warn!("{text}"),
    }
}

/// Loads certificates, and looks at their files from then on.
fn load(source: &tls::Source, interval: Duration, tasks: &mut JoinSet<()>) -> Result<Arc<Certificates>, CommandError> {
    let certificates = Certificates::load(source).map_err(|error| CommandError::Usage(error.to_string()))?;
    let certificates = Arc::new(certificates);
    tasks.spawn(Arc::clone(&certificates).keep_fresh(interval));
    Ok(certificates)
}

/// Answers probes over HTTP. The default address may be taken by a Pomerium on the same machine, which is no reason not
/// to serve.
async fn serve_health(
    address: &Address,
    instruments: &Instruments,
    tasks: &mut JoinSet<()>,
) -> Result<(), CommandError> {
    let router = telemetry::health::router(Arc::clone(&instruments.health));
    match listen(address, "HEALTH_CHECK_ADDR").await {
        Ok(listener) => {
            let address = listener.local_addr().context("cannot tell the address for probes")?;
            tracing::info!(%address, "answering probes");
            tasks.spawn(telemetry::http::serve(listener, None, router, std::future::pending()));
        }
        Err(error) if settings::default_probes().as_ref() == Some(address) => {
            tracing::warn!("{error}; serving without HTTP probes");
        }
        Err(error) => return Err(anyhow::Error::from(error).into()),
    }
    Ok(())
}

/// Answers Prometheus, where an address is set. Returns the certificates, if there are any.
async fn serve_metrics(
    settings: &Settings,
    instruments: &Instruments,
    tasks: &mut JoinSet<()>,
) -> Result<Option<Arc<Certificates>>, CommandError> {
    let Some(metrics) = &settings.telemetry.metrics else {
        return Ok(None);
    };
    let certificates = match &metrics.tls {
        Some(source) => Some(load(source, settings.tls_reload_interval, tasks)?),
        None => None,
    };
    if let Some(certificates) = &certificates {
        instruments.metrics.observe_certificates("metrics", certificates);
    }
    let acceptor = certificates
        .as_ref()
        .map(|certificates| certificates.acceptor(&[b"http/1.1"]));
    let router: Router = telemetry::metrics::router(Arc::clone(&instruments.metrics), metrics.basic_auth.clone());
    let listener = listen(&metrics.address, "METRICS_ADDRESS")
        .await
        .map_err(anyhow::Error::from)?;
    let address = listener
        .local_addr()
        .context("cannot tell the address of the metrics")?;
    tracing::info!(%address, tls = acceptor.is_some(), "showing metrics");
    tasks.spawn(telemetry::http::serve(
        listener,
        acceptor,
        router,
        std::future::pending(),
    ));
    Ok(certificates)
}

/// SIGTERM and SIGINT, as they come.
fn signals() -> Result<impl Stream<Item = ()>, CommandError> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    Ok(stream::poll_fn(move |context| {
        let signal = terminate.poll_recv(context).is_ready() || interrupt.poll_recv(context).is_ready();
        if signal { Poll::Ready(Some(())) } else { Poll::Pending }
    }))
}

/// The line that makes a first call with a secret, to be pasted into a shell.
pub fn first_call(program: &Path, secret: &SharedSecret, port: u16, host: &str, tls: bool) -> String {
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
    let (scheme, trust) = if tls {
        ("https", " --certificate-authority-file FILE")
    } else {
        ("http", "")
    };
    format!(
        "SHARED_SECRET={} {program} server-info{trust} --address {scheme}://{host}:{port}",
        secret.to_base64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_can_be_pasted_wherever_the_program_is() {
        let secret = SharedSecret::generate();
        for (program, shown) in [
            ("/usr/bin/databroker-host", "/usr/bin/databroker-host"),
            ("/it's here/x", r"'/it'\''s here/x'"),
        ] {
            let call = first_call(Path::new(program), &secret, 5443, "::1", false);
            let expected = format!(
                "SHARED_SECRET={} {shown} server-info --address http://[::1]:5443",
                secret.to_base64()
            );
            assert_eq!(call, expected);
        }
    }
}
