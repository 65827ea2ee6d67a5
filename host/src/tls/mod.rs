//! TLS for the listeners: certificates that are checked at start and read again while the process runs.
//!
//! A [`Source`] says where certificates come from, [`Certificates`] are those that were found there. New handshakes
//! always use the newest ones; connections that exist stay as they are, so that no stream is dropped. Files are looked
//! at again by their content, not by events of the file system: that works the same for a copied file and for the links
//! that Kubernetes swaps. What cannot be used is refused whole, with the reason, and the former certificates stay.
//!
//! Sessions are not resumed: a resumed session would go past the check of a client's certificate, and the connections
//! of this protocol are few and long.

mod client;
pub mod derive;
mod load;
mod resolver;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::secret::SharedSecret;
use load::Loaded;
use resolver::Newest;

/// Where certificates come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The certificates and their keys. The first one answers clients that ask for none of the names.
    pub certificates: Vec<Pair>,
    /// Certificates that are derived from the shared secret, after those above.
    pub derive: Option<Derive>,
    /// Clients must show a certificate that one of these authorities has signed.
    pub client_authority: Option<Pem>,
}

/// A certificate with its chain, and the key that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, followed by those that lead to its authority.
    pub certificate: Pem,
    /// The private key.
    pub key: Pem,
}

/// Certificates derived from the shared secret, as Pomerium's own databroker has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Derive {
    /// The name that clients ask for; without it there is only the certificate for `*`.
    pub domain: Option<String>,
    /// What they are derived from.
    pub secret: SharedSecret,
}

/// PEM text and where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// In a setting.
    Inline {
        /// Where it was set, for messages.
        setting: String,
        /// The PEM text.
        pem: Vec<u8>,
    },
    /// In a file, which is read again.
    File {
        /// Where it was set, for messages.
        setting: String,
        /// The file.
        path: PathBuf,
    },
}

impl Pem {
    /// Where it is, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::Inline { setting, .. } => setting.clone(),
            Self::File { setting, path } => format!("{setting}: {path:?}"),
        }
    }
}

impl fmt::Debug for Pem {
    /// The text may be a key: not shown.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.place())
    }
}

/// Something about a certificate that has to be mended.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{place}: {wrong}: {remedy}")]
pub struct Problem {
    /// The file or the setting.
    pub place: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Why certificates cannot be used: at least one problem, all that were found. In one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(pub Vec<Problem>);

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(formatter, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TlsError {}

impl From<Problem> for TlsError {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

/// What looking again has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// New handshakes use other certificates from now on.
    Yes,
    /// All is as it was.
    No,
}

/// Certificates that are in use.
pub struct Certificates {
    /// Where they come from; replaced when the settings are read again.
    source: Mutex<Source>,
    /// What handshakes use.
    newest: Arc<Newest>,
    /// What every acceptor begins with.
    config: ServerConfig,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Certificates")
            .field("source", &*self.source.lock())
            .finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads and checks certificates.
    ///
    /// # Errors
    ///
    /// [`TlsError`] with all that is wrong with them. A certificate that has expired is no error but a
    /// [warning](Self::warnings): the clock may be wrong, and it may be replaced while the process runs.
    pub fn load(source: &Source) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let newest = Arc::new(Newest::new(Loaded::load(source, &provider)?, Arc::clone(&provider)));
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| Problem {
            place: "TLS".to_owned(),
            wrong: error.to_string(),
            remedy: "this should not happen, please report it",
        })?;
        let mut config = builder
            .with_client_cert_verifier(Arc::clone(&newest) as _)
            .with_cert_resolver(Arc::clone(&newest) as _);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            source: Mutex::new(source.clone()),
            newest,
            config,
        })
    }

    /// An acceptor of connections that speak one of these protocols. Its handshakes always use the newest certificates.
    pub fn acceptor(&self, alpn: &[&[u8]]) -> TlsAcceptor {
        TlsAcceptor::from(self.server_config(alpn))
    }

    /// The same, for whoever makes the acceptor.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut config = self.config.clone();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// What an operator should know about them, a line each: those that have expired or are not yet good, keys that
    /// others can read.
    pub fn warnings(&self) -> Vec<String> {
        self.newest.get().warnings.clone()
    }

    /// When the first of them expires; none where all that there is, is derived.
    pub fn expiry(&self) -> Option<SystemTime> {
        self.newest.get().expiry
    }

    /// Looks at the files again, and lets new handshakes use what is in them. Blocks as long as reading takes.
    ///
    /// # Errors
    ///
    /// [`TlsError`] where what is there now cannot be used; the former certificates stay.
    pub fn reload(&self) -> Result<Changed, TlsError> {
        // Held meanwhile, so that certificates from another place are not followed by those from here.
        let source = self.source.lock();
        self.load_from(&source)
    }

    /// Takes the certificates from other places from now on.
    ///
    /// # Errors
    ///
    /// [`TlsError`] where what is there cannot be used; all stays as it was.
    pub fn replace(&self, source: &Source) -> Result<Changed, TlsError> {
        let mut current = self.source.lock();
        let changed = self.load_from(source)?;
        *current = source.clone();
        Ok(changed)
    }

    /// Looks at the files again each interval, for ever. What cannot be used is logged once, until it changes.
    pub async fn keep_fresh(self: Arc<Self>, interval: Duration) {
        let mut refused: Option<TlsError> = None;
        loop {
            tokio::time::sleep(interval).await;
            let certificates = Arc::clone(&self);
            // A file system that hangs must not hang calls.
            let Ok(outcome) = tokio::task::spawn_blocking(move || certificates.reload()).await else {
                continue;
            };
            match outcome {
                Ok(Changed::No) => refused = None,
                Ok(Changed::Yes) => {
                    refused = None;
                    self.log_change();
                }
                Err(error) => {
                    if refused.as_ref() != Some(&error) {
                        tracing::warn!(%error, "the certificates have changed and cannot be used: the former ones stay");
                    }
                    refused = Some(error);
                }
            }
        }
    }

    /// Tells the log which certificates there are now.
    pub fn log_change(&self) {
        let loaded = self.newest.get();
        let expiry = loaded.expiry.map(humantime::format_rfc3339_seconds);
        let expiry = expiry.map(tracing::field::display);
        tracing::info!(names = loaded.names(), expiry, "new connections use new certificates");
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
    }

    fn load_from(&self, source: &Source) -> Result<Changed, TlsError> {
        let former = self.newest.get();
        let loaded = Loaded::load(source, self.newest.provider())?;
        if loaded.digest == former.digest {
            return Ok(Changed::No);
        }
        self.newest.set(loaded);
        Ok(Changed::Yes)
    }
}
