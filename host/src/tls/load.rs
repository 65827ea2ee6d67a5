//! Reads certificates, keys and authorities, and says what is wrong with them in words that an operator can act on.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SigningKey};
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::resolver::Certificate;
use super::{Derive, Pair, Pem, Problem, Source, TlsError, client, derive};
use crate::file;

/// The most that a file with certificates or a key may hold, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// How a text in UTF-8 begins where an editor marks it as such.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The last second that RFC 3339 can say.
const LAST_SECOND: u64 = 253_402_300_799;

/// All that a [`Source`] names, read and checked.
pub(super) struct Loaded {
    pub(super) certificates: Vec<Certificate>,
    pub(super) client: Option<Arc<dyn ClientCertVerifier>>,
    /// Of everything that was read: the same digest means the same certificates.
    pub(super) digest: [u8; 32],
    pub(super) warnings: Vec<String>,
    /// When the first of the certificates expires that are not derived.
    pub(super) expiry: Option<SystemTime>,
}

impl Loaded {
    pub(super) fn load(source: &Source, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut loader = Loader {
            provider,
            digest: Sha256::new(),
            warnings: Vec::new(),
            problems: Vec::new(),
            expiry: None,
        };
        let mut certificates: Vec<_> = source
            .certificates
            .iter()
            .filter_map(|pair| loader.pair(pair))
            .collect();
        if let Some(derive) = &source.derive {
            certificates.extend(loader.derived(derive));
        }
        let client = source.client_authority.as_ref().and_then(|pem| loader.authorities(pem));
        if certificates.is_empty() && loader.problems.is_empty() {
            loader.problem(
                "TLS".to_owned(),
                "there is no certificate",
                "set CERTIFICATE_FILE and CERTIFICATE_KEY_FILE",
            );
        }
        if !loader.problems.is_empty() {
            return Err(TlsError(loader.problems));
        }
        Ok(Self {
            certificates,
            client,
            digest: loader.digest.finalize().into(),
            warnings: loader.warnings,
            expiry: loader.expiry,
        })
    }

    /// The names of all certificates, for the log.
    pub(super) fn names(&self) -> String {
        let names = self.certificates.iter().flat_map(|certificate| &certificate.names);
        names.map(String::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// Goes on after a problem, so that all are told at once.
struct Loader<'a> {
    provider: &'a Arc<CryptoProvider>,
    digest: Sha256,
    warnings: Vec<String>,
    problems: Vec<Problem>,
    expiry: Option<SystemTime>,
}

impl Loader<'_> {
    fn problem(&mut self, place: String, wrong: impl Into<String>, remedy: &'static str) {
        self.problems.push(Problem {
            place,
            wrong: wrong.into(),
            remedy,
        });
    }

    fn pair(&mut self, pair: &Pair) -> Option<Certificate> {
        let chain = self.chain(&pair.certificate);
        let key = self.key(&pair.key);
        let (chain, key) = (chain?, key?);
        self.check_key(pair, &chain, key.as_ref())?;
        let certificate = self.certificate(&pair.certificate.place(), CertifiedKey::new(chain, key))?;
        Some(certificate)
    }

    fn derived(&mut self, derive: &Derive) -> Vec<Certificate> {
        self.digest.update(derive.secret.as_bytes());
        let names = derive.domain.iter().map(String::as_str).chain([derive::ANY_NAME]);
        names.filter_map(|name| self.derived_for(derive, name)).collect()
    }

    fn derived_for(&mut self, derive: &Derive, name: &str) -> Option<Certificate> {
        self.digest.update(name);
        let made = derive::certificate(&derive.secret, name).and_then(|(certificate, key)| {
            let signing = self.provider.key_provider.load_private_key(key);
            signing
                .map(|key| CertifiedKey::new(vec![certificate], key))
                .map_err(|error| {
                    TlsError::from(Problem {
                        place: "TLS_DERIVE".to_owned(),
                        wrong: format!("the derived key is refused: {error}"),
                        remedy: "this should not happen, please report it",
                    })
                })
        });
        match made {
            Ok(key) => Some(Certificate {
                key: Arc::new(key),
                names: vec![name.to_ascii_lowercase()],
                has_address: false,
            }),
            Err(error) => {
                self.problems.extend(error.0);
                None
            }
        }
    }

    fn authorities(&mut self, pem: &Pem) -> Option<Arc<dyn ClientCertVerifier>> {
        let authorities = self.chain(pem)?;
        match client::verifier(authorities, self.provider) {
            Ok(verifier) => Some(verifier),
            Err(wrong) => {
                self.problem(
                    pem.place(),
                    format!("it holds a certificate that cannot be an authority: {wrong}"),
                    "put the certificates in that have signed the clients' certificates",
                );
                None
            }
        }
    }

    /// The bytes, whose digest is taken.
    fn read(&mut self, pem: &Pem, is_key: bool) -> Option<Vec<u8>> {
        let bytes = match pem {
            Pem::Inline { pem, .. } => pem.clone(),
            Pem::File { path, .. } => match file::read(path, FILE_BYTES) {
                Ok(contents) => {
                    if is_key && contents.others_can_read {
                        self.warnings.push(format!(
                            "{}: users other than its owner can read this key: chmod 600",
                            pem.place()
                        ));
                    }
                    contents.bytes
                }
                Err(error) => {
                    self.problem(
                        pem.place(),
                        error.to_string(),
                        "name a file in PEM that this process can read",
                    );
                    return None;
                }
            },
        };
        self.digest.update(bytes.len().to_be_bytes());
        self.digest.update(&bytes);
        Some(bytes)
    }

    fn sections(&mut self, pem: &Pem, is_key: bool) -> Option<Vec<(SectionKind, Vec<u8>)>> {
        let bytes = self.read(pem, is_key)?;
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
        let (wrong, remedy) = match sections {
            // The first line would not be taken for one of PEM, and its certificate passed over.
            _ if bytes.starts_with(BYTE_ORDER_MARK) => (
                "it begins with a byte order mark, which some editors write",
                "write it as UTF-8 without one: `sed -i '1s/^\\xEF\\xBB\\xBF//' FILE`",
            ),
            // The older kind of encryption is a line between BEGIN and the base64.
            _ if is_key && (contains(&bytes, b"BEGIN ENCRYPTED") || contains(&bytes, b"4,ENCRYPTED")) => (
                "the key is encrypted, and there is nobody to ask for its password",
                "write it without: `openssl pkey -in FILE -out NEW`",
            ),
            Ok(sections) if !sections.is_empty() => return Some(sections),
            Ok(_) if bytes.is_empty() => ("it is empty", "put PEM into it"),
            Ok(_) if bytes.first() == Some(&0x30) => (
                "it is DER, not PEM",
                "write it as PEM: `openssl x509 -inform der -in FILE` or `openssl pkey -inform der -in FILE`",
            ),
            Ok(_) => ("there is no PEM in it: no BEGIN line", "put PEM into it"),
            Err(pem::Error::MissingSectionEnd { .. }) => {
                ("it is cut off: the END line is missing", "copy the whole of it again")
            }
            Err(_) => (
                "it is damaged: what is between BEGIN and END is not base64",
                "copy it again",
            ),
        };
        self.problem(pem.place(), wrong, remedy);
        None
    }

    fn chain(&mut self, pem: &Pem) -> Option<Vec<CertificateDer<'static>>> {
        let sections = self.sections(pem, false)?;
        let is_key = |kind: &SectionKind| {
            matches!(
                kind,
                SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey
            )
        };
        let only_key = sections.iter().any(|(kind, _)| is_key(kind));
        let chain: Vec<_> = sections
            .into_iter()
            .filter(|(kind, _)| *kind == SectionKind::Certificate)
            .map(|(_, der)| CertificateDer::from(der))
            .collect();
        if chain.is_empty() {
            let (wrong, remedy) = if only_key {
                (
                    "it holds a key and no certificate",
                    "swap the two settings, or name the certificate's file",
                )
            } else {
                ("it holds no certificate", "name the certificate's file")
            };
            self.problem(pem.place(), wrong, remedy);
            return None;
        }
        if chain.iter().any(|der| parse(der).is_none()) {
            self.problem(pem.place(), "it holds a certificate that is damaged", "copy it again");
            return None;
        }
        Some(chain)
    }

    fn key(&mut self, pem: &Pem) -> Option<Arc<dyn SigningKey>> {
        let sections = self.sections(pem, true)?;
        let has_certificate = sections.iter().any(|(kind, _)| *kind == SectionKind::Certificate);
        let Some(der) = sections.into_iter().find_map(|(kind, der)| key_der(kind, der)) else {
            let (wrong, remedy) = if has_certificate {
                (
                    "it holds a certificate and no key",
                    "swap the two settings, or name the key's file",
                )
            } else {
                ("it holds no private key", "name the key's file")
            };
            self.problem(pem.place(), wrong, remedy);
            return None;
        };
        match self.provider.key_provider.load_private_key(der) {
            Ok(key) => Some(key),
            Err(_) => {
                self.problem(
                    pem.place(),
                    "the key is damaged, or of a kind that cannot be used",
                    "use ECDSA with P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits, without a password",
                );
                None
            }
        }
    }

    /// Whether the key is that of the first certificate.
    fn check_key(&mut self, pair: &Pair, chain: &[CertificateDer<'_>], key: &dyn SigningKey) -> Option<()> {
        let public = key.public_key()?;
        let own = chain
            .iter()
            .position(|der| parse(der).is_some_and(|parsed| parsed.public_key().raw == public.as_ref()));
        match own {
            Some(0) => Some(()),
            Some(_) => {
                self.problem(
                    pair.certificate.place(),
                    "its certificates are in the wrong order",
                    "put the server's own certificate first, then the one that signed it, and so on",
                );
                None
            }
            None => {
                self.problem(
                    pair.key.place(),
                    format!(
                        "the key does not belong to the certificate in {}",
                        pair.certificate.place()
                    ),
                    "use the key that the certificate was made with",
                );
                None
            }
        }
    }

    /// Names and dates; what is doubtful there is a warning.
    fn certificate(&mut self, place: &str, key: CertifiedKey) -> Option<Certificate> {
        let now = SystemTime::now();
        for (index, der) in key.cert.iter().enumerate() {
            let parsed = parse(der)?;
            let (from, until) = (time(&parsed.validity().not_before), time(&parsed.validity().not_after));
            let which = if index == 0 {
                "the certificate"
            } else {
                "a certificate of the chain"
            };
            if until < now {
                let until = humantime::format_rfc3339_seconds(until);
                self.warnings.push(format!(
                    "{place}: {which} expired at {until}, clients will refuse it: renew it, or check this machine's clock"
                ));
            } else if from > now {
                let from = humantime::format_rfc3339_seconds(from);
                self.warnings.push(format!(
                    "{place}: {which} is not valid before {from}, clients will refuse it: check this machine's clock"
                ));
            }
            if index == 0 {
                self.expiry = Some(self.expiry.map_or(until, |earliest| earliest.min(until)));
            }
        }
        let (names, has_address) = names(&parse(key.cert.first()?)?);
        if names.is_empty() && !has_address {
            self.warnings.push(format!(
                "{place}: the certificate has no subject alternative names, clients will refuse it: make one with them"
            ));
        }
        Some(Certificate {
            key: Arc::new(key),
            names,
            has_address,
        })
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Option<X509Certificate<'a>> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Some(parsed),
        _ => None,
    }
}

fn key_der(kind: SectionKind, der: Vec<u8>) -> Option<PrivateKeyDer<'static>> {
    Some(match kind {
        SectionKind::PrivateKey => PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)),
        SectionKind::RsaPrivateKey => PrivateKeyDer::Pkcs1(PrivatePkcs1KeyDer::from(der)),
        SectionKind::EcPrivateKey => PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(der)),
        _ => return None,
    })
}

/// The host names in lower case, and whether there is an address.
fn names(certificate: &X509Certificate<'_>) -> (Vec<String>, bool) {
    let extension = certificate.subject_alternative_name().ok().flatten();
    let names = extension.map_or(&[][..], |extension| &extension.value.general_names[..]);
    let hosts = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let has_address = names.iter().any(|name| matches!(name, GeneralName::IPAddress(_)));
    (hosts.collect(), has_address)
}

/// A time that can be printed.
fn time(time: &x509_parser::time::ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0).min(LAST_SECOND);
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}
