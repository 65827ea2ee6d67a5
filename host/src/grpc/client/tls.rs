//! Whom a client trusts, and what it shows of itself.
//!
//! Certificate authorities come from a file, and from the shared secret where the databroker has `tls_derive`; without
//! either they are the system's. A derived
//! certificate is made out to `*`, which is no name that a certificate can have by the rules of the web: whoever holds
//! the secret is trusted under any name. That holds for certificates of the derived authority alone.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Whom to trust.
#[derive(Clone)]
pub struct Trust {
    config: Arc<ClientConfig>,
    /// The name that the certificate must have, where it is not the address's host.
    name: Option<String>,
}

/// A certificate and the key for it, in PEM files, to show to a databroker that asks for one.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate, with those of its issuers behind it.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// There is nobody to trust, not even by the system.
    #[error(
        "https needs to know whom to trust, and this system has no certificate authorities: name one with \
         --certificate-authority-file, or where the databroker has tls_derive, say --tls-derive"
    )]
    Nobody,
    /// A file cannot be used.
    #[error("cannot use {path:?}: {reason}: name a PEM file {remedy}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What it must hold.
        remedy: &'static str,
    },
    /// The name is none.
    #[error("{0:?} is not a name that a certificate can have: write a host's name or an IP address")]
    Name(String),
    /// The library does not take what it was given.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl Trust {
    /// Trusts certificates by these authorities, or by the system's where there are none of either kind, and by the
    /// derived ones whatever their name, where they are made out to `*`. The name is what certificates must be made out
    /// to, where that is not the address's host.
    ///
    /// # Errors
    ///
    /// [`TrustError`].
    pub fn new(
        authorities: Vec<CertificateDer<'static>>,
        derived: Vec<CertificateDer<'static>>,
        identity: Option<&Identity>,
        name: Option<String>,
    ) -> Result<Self, TrustError> {
        let setup = |error: &dyn fmt::Display| TrustError::Setup(error.to_string());
        if let Some(name) = &name {
            ServerName::try_from(name.clone()).map_err(|_| TrustError::Name(name.clone()))?;
        }
        let authorities = if authorities.is_empty() && derived.is_empty() {
            // One that cannot be read is no reason to trust none of the others.
            let mut usable = RootCertStore::empty();
            let mut systems = rustls_native_certs::load_native_certs().certs;
            systems.retain(|certificate| usable.add(certificate.clone()).is_ok());
            if systems.is_empty() {
                return Err(TrustError::Nobody);
            }
            systems
        } else {
            authorities
        };
        let provider = Arc::new(ring::default_provider());
        let verifier = Verifier::new(authorities, derived, &provider)?;
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let certificates = certificates(certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| TrustError::File {
                    path: key.clone(),
                    reason: error.to_string(),
                    remedy: "with the certificate's private key, not encrypted",
                })?;
                config
                    .with_client_auth_cert(certificates, private)
                    .map_err(|error| setup(&error))?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// Makes the handshake over a connection to a host.
    pub(super) async fn handshake(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = self.name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Trust")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The certificates of a PEM file, at least one.
///
/// # Errors
///
/// [`TrustError::File`].
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let unusable = |reason: String| TrustError::File {
        path: path.to_owned(),
        reason,
        remedy: "with certificates",
    };
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(error.to_string()))?;
    if found.is_empty() {
        return Err(unusable("there is no certificate in it".to_owned()));
    }
    Ok(found)
}

/// Why a handshake failed, and what to do about it.
pub(super) fn explain(error: &io::Error) -> (String, &'static str) {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => (
            "it does not speak TLS".to_owned(),
            "write http:// where it serves plaintext",
        ),
        // What most people's first `openssl req -x509` makes. Go's clients take it, so that its own databroker may have one.
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(cause)))
            if cause.0.to_string() == "CaUsedAsEndEntity" =>
        {
            (
                "its certificate is not accepted: it is an authority's, not a server's".to_owned(),
                "make one with basicConstraints=CA:FALSE there",
            )
        }
        Some(rustls::Error::InvalidCertificate(cause)) => {
            let remedy = match cause {
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "say the name that it is made out to with --override-certificate-name"
                }
                // An authority of the same name with another key, such as one that is derived from another secret.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "trust its issuer with --certificate-authority-file, or with --tls-derive where the secrets are equal"
                }
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => "renew it there",
                _ => "see to the certificate there",
            };
            (format!("its certificate is not accepted: {cause}"), remedy)
        }
        Some(rustls::Error::AlertReceived(alert)) => (
            format!("it broke off the handshake: {alert:?}"),
            "where it asks for a certificate, name one with --client-certificate-file; its log says more",
        ),
        Some(other) => (format!("the TLS handshake failed: {other}"), "its log may say more"),
        None => (
            format!("the TLS handshake broke off: {error}"),
            "does it speak TLS? Write http:// where it serves plaintext",
        ),
    }
}

/// Checks a server's certificate: first by the rules, then as one that was derived.
struct Verifier {
    by_the_rules: Arc<WebPkiServerVerifier>,
    derived: RootCertStore,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(
        authorities: Vec<CertificateDer<'static>>,
        derived: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TrustError> {
        let setup = |error: &dyn fmt::Display| TrustError::Setup(error.to_string());
        let mut all = RootCertStore::empty();
        let mut only_derived = RootCertStore::empty();
        for certificate in authorities {
            all.add(certificate).map_err(|error| setup(&error))?;
        }
        for certificate in derived {
            only_derived.add(certificate.clone()).map_err(|error| setup(&error))?;
            all.add(certificate).map_err(|error| setup(&error))?;
        }
        let by_the_rules = WebPkiServerVerifier::builder_with_provider(Arc::new(all), Arc::clone(provider))
            .build()
            .map_err(|error| setup(&error))?;
        Ok(Self {
            by_the_rules,
            derived: only_derived,
            provider: Arc::clone(provider),
        })
    }

    /// True for a certificate of a derived authority that is made out to `*`.
    fn is_derived(&self, certificate: &CertificateDer<'_>, between: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let Ok(parsed) = ParsedCertificate::try_from(certificate) else {
            return false;
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        !self.derived.is_empty()
            && verify_server_cert_signed_by_trust_anchor(&parsed, &self.derived, between, now, algorithms).is_ok()
            && is_for_everything(certificate)
    }
}

fn is_for_everything(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let Ok(Some(names)) = certificate.subject_alternative_name() else {
        return false;
    };
    let any = |name: &x509_parser::extensions::GeneralName<'_>| {
        matches!(name, x509_parser::extensions::GeneralName::DNSName("*"))
    };
    names.value.general_names.iter().any(any)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self
            .by_the_rules
            .verify_server_cert(certificate, between, name, ocsp, now);
        match verdict {
            Err(_) if self.is_derived(certificate, between, now) => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_the_rules
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_the_rules
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_the_rules.supported_verify_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Verifier")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// An authority, with what it signs with.
    fn authority() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        (certificate, Issuer::new(params, key))
    }

    /// Connects to 127.0.0.1 where a certificate for a name is served: what the client says of it.
    async fn connect(name: &str, issuer: &Issuer<'static, KeyPair>, trust: Trust) -> Result<(), String> {
        connect_as(IsCa::NoCa, name, issuer, trust).await
    }

    async fn connect_as(
        is_ca: IsCa,
        name: &str,
        issuer: &Issuer<'static, KeyPair>,
        trust: Trust,
    ) -> Result<(), String> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let name = rcgen::SanType::DnsName(name.to_owned().try_into().unwrap());
        params.subject_alt_names.push(name);
        params.is_ca = is_ca;
        let certificate = params.signed_by(&key, issuer).unwrap().der().clone();
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key.serialize_der().try_into().unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = TlsAcceptor::from(Arc::new(server)).accept(stream).await;
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let outcome = trust.handshake("127.0.0.1", stream).await;
        serving.await.unwrap();
        outcome.map(|_| ()).map_err(|error| {
            let (cause, remedy) = explain(&error);
            format!("{cause}: {remedy}")
        })
    }

    #[tokio::test]
    async fn a_certificate_for_everything_is_trusted_from_the_derived_authority_alone() {
        let (certificate, issuer) = authority();
        let (_, other) = authority();
        let usual = || Trust::new(vec![certificate.clone()], vec![], None, None).unwrap();
        let derived = || Trust::new(vec![], vec![certificate.clone()], None, None).unwrap();
        let named = || {
            let name = Some("databroker.internal".to_owned());
            Trust::new(vec![certificate.clone()], vec![], None, name).unwrap()
        };
        assert_eq!(connect("*", &issuer, derived()).await, Ok(()));
        assert_eq!(connect("databroker.internal", &issuer, named()).await, Ok(()));
        let authority = IsCa::Ca(BasicConstraints::Unconstrained);
        assert_eq!(
            connect_as(authority, "databroker.internal", &issuer, named()).await,
            Err(
                "its certificate is not accepted: it is an authority's, not a server's: make one with \
                 basicConstraints=CA:FALSE there"
                    .to_owned()
            )
        );
        let refused = [
            (connect("*", &issuer, usual()).await, "--override-certificate-name"),
            (
                connect("databroker.internal", &issuer, usual()).await,
                "--override-certificate-name",
            ),
            (
                connect("databroker.internal", &issuer, derived()).await,
                "--override-certificate-name",
            ),
            (connect("*", &other, derived()).await, "--tls-derive"),
            (
                connect("databroker.internal", &other, named()).await,
                "--certificate-authority-file",
            ),
        ];
        for (index, (outcome, remedy)) in refused.into_iter().enumerate() {
            let error = outcome.unwrap_err();
            assert!(error.contains(remedy), "{index}: {error}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.pem");
        std::fs::write(&empty, "not a certificate").unwrap();
        let missing = folder.path().join("missing.pem");
        for (path, part) in [(&empty, "there is no certificate in it"), (&missing, "missing.pem")] {
            let error = certificates(path).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("name a PEM file"), "{error}");
        }
        let (certificate, _) = authority();
        let name = Some("not a name".to_owned());
        assert!(matches!(
            Trust::new(vec![certificate], vec![], None, name),
            Err(TrustError::Name(_))
        ));
    }
}
