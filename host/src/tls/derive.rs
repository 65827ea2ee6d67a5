//! Certificates that are derived from the shared secret, so that services that share one trust each other without any
//! files.
//!
//! Pomerium derives an authority from the secret, and its services trust that authority where `tls_derive` is set. What
//! has to be the same here is the authority's key and its name, since these are what a client checks; they are computed
//! the same way: a stream of HKDF-SHA256 over the purpose, the secret and the names, and from its first 320 bits a
//! number between 1 and the order of the curve P-256. Serial numbers and the server's key come from such streams too,
//! so that every host with the same secret has the same ones; the signatures differ, which no one looks at.

use hkdf::Hkdf;
use p256::elliptic_curve::Curve as _;
use p256::elliptic_curve::bigint::{Encoding as _, NonZero, U256, U512};
use p256::pkcs8::EncodePrivateKey as _;
use p256::{NistP256, SecretKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::Sha256;

use super::{Problem, TlsError};
use crate::secret::SharedSecret;

/// The name of the catch-all certificate.
pub const ANY_NAME: &str = "*";

/// What a derived stream is for, which its first input byte says.
#[derive(Clone, Copy)]
enum Purpose {
    AuthorityKey = 0,
    ServerKey = 2,
    Serial = 4,
}

/// How many bytes of the stream a key is made of: 64 bits more than the curve's order has, so that no key is noticeably
/// more likely than another.
const KEY_BYTES: usize = 40;

/// How many bytes a serial number has.
const SERIAL_BYTES: usize = 16;

/// The certificate of the authority that clients with `tls_derive` trust, in DER.
///
/// # Errors
///
/// [`TlsError`], where the libraries refuse what they should take.
pub fn authority(secret: &SharedSecret) -> Result<Vec<u8>, TlsError> {
    make_authority(secret).map_err(problem)
}

/// A server's certificate for a name, signed by that authority, and its key.
pub(super) fn certificate(
    secret: &SharedSecret,
    name: &str,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), TlsError> {
    make_certificate(secret, name).map_err(problem)
}

/// Why deriving failed; it never should.
#[derive(Debug, thiserror::Error)]
enum DeriveError {
    #[error("the derived key is refused: {0}")]
    Key(&'static str),
    #[error(transparent)]
    Certificate(#[from] rcgen::Error),
}

fn problem(error: DeriveError) -> TlsError {
    TlsError::from(Problem {
        place: "TLS_DERIVE".to_owned(),
        wrong: format!("cannot derive certificates: {error}"),
        remedy: "check that the domain is a host name",
    })
}

fn make_authority(secret: &SharedSecret) -> Result<Vec<u8>, DeriveError> {
    let key = key_pair(&secret_key(Purpose::AuthorityKey, secret, &[])?)?;
    Ok(authority_params(secret).self_signed(&key)?.der().to_vec())
}

fn make_certificate(
    secret: &SharedSecret,
    name: &str,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), DeriveError> {
    let authority_key = key_pair(&secret_key(Purpose::AuthorityKey, secret, &[])?)?;
    let issuer = Issuer::new(authority_params(secret), authority_key);
    let key = key_pair(&secret_key(Purpose::ServerKey, secret, &[name])?)?;
    let mut params = params(secret, &[name]);
    params.distinguished_name = distinguished_name(None);
    params.subject_alt_names = vec![SanType::DnsName(name.to_owned().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((certificate.der().clone(), key))
}

fn authority_params(secret: &SharedSecret) -> CertificateParams {
    let mut params = params(secret, &[]);
    params.distinguished_name = distinguished_name(Some("Pomerium PSK CA"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn params(secret: &SharedSecret, names: &[&str]) -> CertificateParams {
    let mut serial = [0; SERIAL_BYTES];
    fill(Purpose::Serial, secret, names, &mut serial);
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2022, 12, 1);
    params.not_after = date_time_ymd(2050, 12, 1);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// The order of the parts and their encoding matter: Go compares the bytes of names.
fn distinguished_name(common_name: Option<&str>) -> DistinguishedName {
    let printable = |text: &str| {
        text.try_into()
            .map_or_else(|_| DnValue::from(text), DnValue::PrintableString)
    };
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, printable("Pomerium"));
    if let Some(common_name) = common_name {
        name.push(DnType::CommonName, printable(common_name));
    }
    name
}

fn key_pair(key: &SecretKey) -> Result<KeyPair, DeriveError> {
    let document = key
        .to_pkcs8_der()
        .map_err(|_| DeriveError::Key("it cannot be written as PKCS#8"))?;
    let der = PrivatePkcs8KeyDer::from(document.as_bytes());
    Ok(KeyPair::from_pkcs8_der_and_sign_algo(
        &der,
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )?)
}

/// The stream's number modulo one less than the order, plus one.
fn secret_key(purpose: Purpose, secret: &SharedSecret, names: &[&str]) -> Result<SecretKey, DeriveError> {
    let mut wide = [0; 64];
    let Some(low) = wide.last_chunk_mut::<KEY_BYTES>() else {
        return Err(DeriveError::Key("it does not fit"));
    };
    fill(purpose, secret, names, low);
    let order: U512 = (&NistP256::ORDER.wrapping_sub(&U256::ONE)).into();
    let order = Option::<NonZero<U512>>::from(NonZero::new(order)).ok_or(DeriveError::Key("the order is zero"))?;
    let number = U512::from_be_bytes(wide)
        .rem(&order)
        .wrapping_add(&U512::ONE)
        .to_be_bytes();
    let Some(number) = number.last_chunk::<32>() else {
        return Err(DeriveError::Key("it does not fit"));
    };
    SecretKey::from_slice(number).map_err(|_| DeriveError::Key("it is not on the curve"))
}

/// The beginning of the stream.
fn fill(purpose: Purpose, secret: &SharedSecret, names: &[&str], output: &mut [u8]) {
    let mut input = vec![purpose as u8];
    input.extend_from_slice(secret.as_bytes());
    input.push(0);
    for name in names {
        input.extend_from_slice(name.as_bytes());
        input.push(0);
    }
    // It fails for more than 255 hashes only.
    let _ = Hkdf::<Sha256>::new(None, &input).expand(&[], output);
}
