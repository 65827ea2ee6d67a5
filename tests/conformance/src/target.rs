//! The server under test: where it is, how to be let in, and what is known of its settings.

use std::time::{Duration, Instant};

use base64::Engine;
use tonic::transport::{Channel, Endpoint};

use crate::case::skip;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The server under test.
#[derive(Clone)]
pub struct Target {
    /// Where it is: several addresses where several servers share one store.
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) secret: Vec<u8>,
    pub(crate) settings: Settings,
}

/// What is known of the server's settings. Cases that depend on one that is not given are skipped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// How long the server keeps changes in its change log; given only where that is short enough to wait for.
    pub history: Option<Duration>,
    /// How often the server removes old changes and expired records; given only where short enough to wait for.
    pub clean_interval: Option<Duration>,
    /// How long a reported service stays listed; given only where short enough to wait for.
    pub service_ttl: Option<Duration>,
}

/// Why a target cannot be tested.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The address is not one that the suite can connect to.
    #[error("the address {0:?} is no http://HOST:PORT: {1}")]
    Address(String, String),
    /// The shared secret is not what Pomerium takes.
    #[error("the shared secret must be 32 bytes in base64 with padding: {0}")]
    Secret(String),
    /// Nobody answers there.
    #[error("could not connect to {0}: {1}")]
    Connect(String, String),
}

impl Target {
    /// A server at `http://HOST:PORT` with this shared secret, in base64 as in Pomerium's configuration.
    pub fn new(address: &str, shared_secret: &str, settings: Settings) -> Result<Self, TargetError> {
        if !address.starts_with("http://") {
            let reason = "only plaintext HTTP/2 is spoken here".to_owned();
            return Err(TargetError::Address(address.to_owned(), reason));
        }
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|error| TargetError::Address(address.to_owned(), error.to_string()))?
            .connect_timeout(CONNECT_TIMEOUT);
        // The reason names positions, never the text itself.
        let secret = base64::engine::general_purpose::STANDARD
            .decode(shared_secret)
            .map_err(|_| TargetError::Secret("it is no base64".to_owned()))?;
        if secret.len() != 32 {
            return Err(TargetError::Secret(format!("it has {} bytes", secret.len())));
        }
        Ok(Self {
            endpoints: vec![endpoint],
            secret,
            settings,
        })
    }

    /// The same servers and those of another target, which share one store and one secret: the calls of each case are spread
    /// over all of them.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.endpoints.extend(other.endpoints.iter().cloned());
        self
    }

    /// A connection to all addresses, made when it is first used; each call takes one of them.
    pub(crate) fn channel(&self) -> Channel {
        match self.endpoints.as_slice() {
            [endpoint] => endpoint.connect_lazy(),
            endpoints => Channel::balance_list(endpoints.iter().cloned()),
        }
    }

    /// Tries to connect, so that a wrong address is one error and not one per case.
    pub async fn probe(&self) -> Result<(), TargetError> {
        for endpoint in &self.endpoints {
            endpoint.connect().await.map_err(|error| {
                let reason = anyhow::Error::from(error);
                TargetError::Connect(endpoint.uri().to_string(), format!("{reason:#}"))
            })?;
        }
        Ok(())
    }

    /// Tries to connect until that succeeds, for as long as this.
    pub async fn wait(&self, patience: Duration) -> Result<(), TargetError> {
        let start = Instant::now();
        loop {
            match self.probe().await {
                Err(_) if start.elapsed() < patience => tokio::time::sleep(Duration::from_millis(50)).await,
                result => return result,
            }
        }
    }
}

impl Settings {
    /// How long changes stay, or a skip.
    pub(crate) fn history(&self) -> anyhow::Result<Duration> {
        self.history.ok_or_else(|| unknown("--history-seconds"))
    }

    /// How often the server cleans, or a skip.
    pub(crate) fn clean_interval(&self) -> anyhow::Result<Duration> {
        self.clean_interval.ok_or_else(|| unknown("--clean-interval-seconds"))
    }

    /// How long services stay listed, or a skip.
    pub(crate) fn service_ttl(&self) -> anyhow::Result<Duration> {
        self.service_ttl.ok_or_else(|| unknown("--service-ttl-seconds"))
    }
}

fn unknown(flag: &str) -> anyhow::Error {
    skip(format!("needs a server with a short setting, named by {flag}"))
}
