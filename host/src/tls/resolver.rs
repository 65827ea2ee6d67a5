//! Which certificate a client gets: that of the name it asks for.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::load::Loaded;

/// The certificates that new handshakes use, replaced as a whole.
pub(super) struct Newest {
    loaded: ArcSwap<Loaded>,
    provider: Arc<CryptoProvider>,
}

impl Newest {
    pub(super) fn new(loaded: Loaded, provider: Arc<CryptoProvider>) -> Self {
        Self {
            loaded: ArcSwap::from_pointee(loaded),
            provider,
        }
    }

    pub(super) fn get(&self) -> Arc<Loaded> {
        self.loaded.load_full()
    }

    pub(super) fn set(&self, loaded: Loaded) {
        self.loaded.store(Arc::new(loaded));
    }

    pub(super) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }
}

impl std::fmt::Debug for Newest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Newest")
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let loaded = self.get();
        choose(&loaded.certificates, client.server_name(), client.signature_schemes())
            .map(|chosen| Arc::clone(&chosen.key))
    }
}

/// A certificate and what it is good for.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    /// The host names, in lower case.
    pub(super) names: Vec<String>,
    /// Whether it is good for an IP address too.
    pub(super) has_address: bool,
}

impl Certificate {
    fn has_name(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    /// Whether the client can check signatures of this key.
    fn suits(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }
}

/// The certificate for a client that asks for this name, of those whose signatures it can check: the one with exactly
/// this name, else with `*` for its first part, else the first one there is. A client that asks for no name dials an IP
/// address.
pub(super) fn choose<'a>(
    certificates: &'a [Certificate],
    name: Option<&str>,
    schemes: &[SignatureScheme],
) -> Option<&'a Certificate> {
    let usable = || certificates.iter().filter(|certificate| certificate.suits(schemes));
    let fitting = match name {
        None => usable().find(|certificate| certificate.has_address),
        Some(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = name.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            usable().find(|certificate| certificate.has_name(&name)).or_else(|| {
                usable().find(|certificate| wildcard.as_ref().is_some_and(|name| certificate.has_name(name)))
            })
        }
    };
    fitting.or_else(|| usable().next())
}
