//! What a command that calls a databroker takes from the databroker's own settings.
//!
//! Where these are set, in the databroker's container or with its configuration file, no flag is needed. They are read
//! as `serve` reads them, so that both agree on the address and on TLS. Settings that a call does not need are not
//! judged.

use std::path::PathBuf;

use super::keys::{self, Key};
use super::reader::{Mistakes, Reader, Source};
use super::{address, certificates};

static CERTIFICATE_AUTHORITY_FILE: Key = Key {
    variable: "CERTIFICATE_AUTHORITY_FILE",
    flag: Some("certificate-authority-file"),
    value: "FILE",
    help: "Trust certificates by the authorities in this PEM file",
    remedy: "name a PEM file that this process can read",
    ..Key::COMMON
};

static OVERRIDE_CERTIFICATE_NAME: Key = Key {
    variable: "OVERRIDE_CERTIFICATE_NAME",
    flag: Some("override-certificate-name"),
    value: "NAME",
    help: "The name that the databroker's certificate is made out to",
    remedy: "write the name in the databroker's certificate",
    ..Key::COMMON
};

/// Whom to call, and whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// `http://HOST:PORT`, or `https://HOST:PORT` where the databroker has TLS; or the address that was asked for.
    pub address: String,
    /// Whether the databroker's certificate is one derived from the shared secret.
    pub derived: bool,
    /// A PEM file with the authorities to trust.
    pub authority: Option<PathBuf>,
    /// The name in the databroker's certificate, where it is not the host in the address.
    pub certificate_name: Option<String>,
}

/// Reads them. Where an address is given, nothing is read of the one that the databroker listens on.
///
/// # Errors
///
/// All mistakes in the settings that were read.
pub fn client(source: &Source, given: Option<&str>) -> Result<Client, Mistakes> {
    let mut reader = Reader::new(source);
    let authority = reader.parsed(&CERTIFICATE_AUTHORITY_FILE, None, |text| Ok(Some(PathBuf::from(text))));
    let certificate_name = reader.parsed(&OVERRIDE_CERTIFICATE_NAME, None, |text| Ok(Some(text.to_owned())));
    let asked_to_derive = reader.given(&keys::TLS_DERIVE).is_some();
    let (address, derived) = match given {
        Some(given) => (given.to_owned(), asked_to_derive),
        None => {
            let (address, derived) = own(&mut reader);
            // The certificate that is derived unless there is another is a guess where an authority is named.
            (address, asked_to_derive || (derived && authority.is_none()))
        }
    };
    reader.finish()?;
    Ok(Client {
        address,
        derived,
        authority,
        certificate_name,
    })
}

/// The address of the databroker that has these settings, and whether it serves a derived certificate for want of
/// another.
fn own(reader: &mut Reader<'_>) -> (String, bool) {
    let address = reader.or_default(&keys::GRPC_ADDRESS, address);
    let insecure = reader.parsed(&keys::GRPC_INSECURE, None, |text| certificates::boolean(text).map(Some));
    let given = |keys: &[&Key]| keys.iter().any(|key| reader.given(key).is_some());
    let has_certificates = given(&[&keys::CERTIFICATE, &keys::CERTIFICATE_FILE, &keys::CERTIFICATES]);
    let asks_for_tls = given(&[&keys::TLS_DERIVE, &keys::GRPC_CLIENT_CA, &keys::GRPC_CLIENT_CA_FILE]);
    let tls = certificates::has_tls(insecure, has_certificates || asks_for_tls, &address);
    // One that listens everywhere is reached on this machine.
    let host = match address.host() {
        "" | "0.0.0.0" => "127.0.0.1".to_owned(),
        "::" => "[::1]".to_owned(),
        host if host.contains(':') => format!("[{host}]"),
        host => host.to_owned(),
    };
    let scheme = if tls { "https" } else { "http" };
    (
        format!("{scheme}://{host}:{}", address.port()),
        tls && !has_certificates,
    )
}
