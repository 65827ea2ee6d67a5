//! TLS to a server, as libpq does it: its six modes, exactly the authorities that are named, and any address under any name.
//!
//! The library that speaks Postgres' protocol looks names up by itself and always trusts the system's authorities besides the
//! named ones. So TLS is made here, over a socket that is connected here, and the library is handed a `pipe` to it.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connection_string::{Authorities, TlsMode, TlsSettings};
use super::error::{Error, ErrorKind};

/// The message by which a client asks for TLS: its length and a number that is no version.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Connects without TLS.
pub(crate) async fn plain(address: SocketAddr) -> Result<TcpStream, Error> {
    let socket = TcpStream::connect(address).await?;
    // Whoever writes waits for whole messages already.
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// Connects with TLS.
pub(crate) async fn encrypted(
    address: SocketAddr,
    name: &str,
    settings: &TlsSettings,
) -> Result<TlsStream<TcpStream>, Error> {
    let mut socket = plain(address).await?;
    if !settings.direct {
        socket.write_all(&TLS_REQUEST).await?;
        match socket.read_u8().await? {
            b'S' => {}
            b'N' => {
                let problem = "the server has no TLS: set sslmode=disable, or ssl=on at the server";
                return Err(Error::new(ErrorKind::Settings, problem));
            }
            other => {
                let problem = format!("the server answers a request for TLS by {other:#04x}, which Postgres does not");
                return Err(Error::new(ErrorKind::Settings, problem));
            }
        }
    }
    let settings = settings.clone();
    let client = tokio::task::spawn_blocking(move || client(&settings))
        .await
        .map_err(|error| Error::new(ErrorKind::Unreachable, format!("TLS was broken off: {error}")))??;
    let server = ServerName::try_from(name.to_owned()).map_err(|_| {
        Error::new(
            ErrorKind::Settings,
            format!("{name:?} is no name that a certificate can have"),
        )
    })?;
    TlsConnector::from(client)
        .connect(server, socket)
        .await
        .map_err(|error| {
            // A certificate that cannot be verified is for the operator to mend; a connection that broke is not.
            let kind = if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
                ErrorKind::Settings
            } else {
                ErrorKind::Unreachable
            };
            Error::new(kind, format!("TLS failed: {error}"))
        })
}

/// TLS as the settings say, with files read anew so that renewed certificates are taken.
fn client(settings: &TlsSettings) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let bad = |problem: String| Error::new(ErrorKind::Settings, problem);
    let verifier = Verifier::new(settings, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(format!("TLS cannot be used: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut client = match &settings.client {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .map_err(|error| bad(format!("sslcert {} cannot be read: {error}", certificate.display())))?;
            let private = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| bad(format!("sslkey {} cannot be read: {error}", key.display())))?;
            builder.with_client_auth_cert(chain, private).map_err(|error| {
                bad(format!(
                    "sslcert {} and sslkey {} do not go together: {error}",
                    certificate.display(),
                    key.display()
                ))
            })?
        }
    };
    client.enable_sni = settings.server_name;
    if settings.direct {
        client.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(Arc::new(client))
}

/// Checks the server's certificate as far as the mode says.
#[derive(Debug)]
struct Verifier {
    /// Checks chains; none where anybody will do.
    chains: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of the file. A server may have one of them itself: many sign their own.
    named: Vec<CertificateDer<'static>>,
    /// True to check the name.
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(settings: &TlsSettings, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let bad = |problem: String| Error::new(ErrorKind::Settings, problem);
        let mut roots = RootCertStore::empty();
        let mut named = Vec::new();
        match &settings.authorities {
            None => {}
            Some(Authorities::System) => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(bad(
                        "this system has no authorities to verify a server by: name a file in sslrootcert".to_owned(),
                    ));
                }
            }
            Some(Authorities::File(path)) => {
                named = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| bad(format!("sslrootcert {} cannot be read: {error}", path.display())))?;
                let (added, _) = roots.add_parsable_certificates(named.iter().cloned());
                if added == 0 {
                    return Err(bad(format!("sslrootcert {} has no certificate", path.display())));
                }
            }
        }
        let chains = match settings.authorities {
            None => None,
            Some(_) => Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .map_err(|error| bad(format!("the authorities cannot be used: {error}")))?,
            ),
        };
        Ok(Self {
            chains,
            named,
            name: settings.mode >= TlsMode::VerifyFull,
            provider,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chains) = &self.chains else {
            return Ok(ServerCertVerified::assertion());
        };
        if self.named.iter().any(|named| named.as_ref() == end_entity.as_ref()) {
            if self.name {
                rustls::client::verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, when all else is well.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
