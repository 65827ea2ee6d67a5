//! Which certificates a listener has, or whether it has none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs;
use std::path::{Path, PathBuf};

use super::document::{self, Value};
use super::keys::{self, Key};
use super::reader::{Reader, may_be_shown, shown};
use super::{Address, SharedSecret};
use crate::file::FileError;
use crate::tls::{Certificates, Derive, Pair, Pem, Source};

/// The certificates of the gRPC listener; none for plain text.
///
/// Without any certificate there is one derived from the shared secret, as with Pomerium; only an address that no other
/// machine can reach is served in plain text without being told so.
pub(super) fn grpc(reader: &mut Reader<'_>, address: &Address, secret: &SharedSecret) -> Option<Source> {
    let insecure = reader.parsed(&keys::GRPC_INSECURE, None, |text| boolean(text).map(Some));
    let mut certificates: Vec<_> = pair(reader, &keys::CERTIFICATE, &keys::CERTIFICATE_KEY, inline)
        .into_iter()
        .collect();
    certificates.extend(listed(reader));
    certificates.extend(pair(reader, &keys::CERTIFICATE_FILE, &keys::CERTIFICATE_KEY_FILE, file));
    let domain = reader.parsed(&keys::TLS_DERIVE, None, |text| domain(text).map(Some));
    let client_authority = client_authority(reader, &keys::GRPC_CLIENT_CA, &keys::GRPC_CLIENT_CA_FILE);
    let asked_for = [&keys::TLS_DERIVE, &keys::GRPC_CLIENT_CA, &keys::GRPC_CLIENT_CA_FILE];
    let asked_for: Vec<_> = asked_for
        .into_iter()
        .filter(|key| reader.given(key).is_some())
        .collect();
    if insecure == Some(true) {
        for key in asked_for {
            reader.mistake(
                key,
                "it needs TLS, which GRPC_INSECURE turns off".to_owned(),
                "delete one of the two",
            );
        }
        let insecure = reader.place(&keys::GRPC_INSECURE);
        for pair in certificates {
            let place = pair.certificate.place();
            reader.warn(format!(
                "{place}: this certificate is not used, since TLS is turned off ({insecure}): delete one of the two"
            ));
        }
        return None;
    }
    let needs_tls = !(certificates.is_empty() && asked_for.is_empty());
    if !has_tls(insecure, needs_tls, address) || reader.has_mistake_of(&keys::GRPC_INSECURE) {
        return None;
    }
    let derive = (domain.is_some() || certificates.is_empty()).then(|| Derive {
        domain,
        secret: secret.clone(),
    });
    let source = Source {
        certificates,
        derive,
        client_authority,
    };
    let group = [
        &keys::CERTIFICATE,
        &keys::CERTIFICATE_KEY,
        &keys::CERTIFICATES,
        &keys::CERTIFICATE_FILE,
        &keys::CERTIFICATE_KEY_FILE,
        &keys::TLS_DERIVE,
        &keys::GRPC_CLIENT_CA,
        &keys::GRPC_CLIENT_CA_FILE,
    ];
    check(reader, &group, &source);
    if source.certificates.is_empty() && source.derive.as_ref().is_some_and(|derive| derive.domain.is_none()) {
        reader.inform(
            "TLS is on without certificates: a certificate derived from the shared secret is served, which only clients with \
             tls_derive trust; set GRPC_INSECURE=true for none"
                .to_owned(),
        );
    }
    Some(source)
}

/// The certificates of the metrics; none for plain HTTP.
pub(super) fn metrics(reader: &mut Reader<'_>) -> Option<Source> {
    let inline_pair = pair(
        reader,
        &keys::METRICS_CERTIFICATE,
        &keys::METRICS_CERTIFICATE_KEY,
        inline,
    );
    let file_pair = pair(
        reader,
        &keys::METRICS_CERTIFICATE_FILE,
        &keys::METRICS_CERTIFICATE_KEY_FILE,
        file,
    );
    let client_authority = client_authority(reader, &keys::METRICS_CLIENT_CA, &keys::METRICS_CLIENT_CA_FILE);
    let group = [
        &keys::METRICS_CERTIFICATE,
        &keys::METRICS_CERTIFICATE_KEY,
        &keys::METRICS_CERTIFICATE_FILE,
        &keys::METRICS_CERTIFICATE_KEY_FILE,
        &keys::METRICS_CLIENT_CA,
        &keys::METRICS_CLIENT_CA_FILE,
    ];
    let Some(certificate) = inline_pair.or(file_pair) else {
        let wrong = group.iter().any(|key| reader.has_mistake_of(key));
        for key in [&keys::METRICS_CLIENT_CA, &keys::METRICS_CLIENT_CA_FILE] {
            if reader.given(key).is_some() && !wrong {
                reader.mistake(
                    key,
                    "clients can show certificates only where the metrics have one".to_owned(),
                    "set METRICS_CERTIFICATE_FILE and METRICS_CERTIFICATE_KEY_FILE",
                );
            }
        }
        return None;
    };
    let source = Source {
        certificates: vec![certificate],
        derive: None,
        client_authority,
    };
    check(reader, &group, &source);
    Some(source)
}

/// Whether an address is served with TLS: as it is said, else where anything needs it or other machines can listen.
pub(super) fn has_tls(insecure: Option<bool>, needs_tls: bool, address: &Address) -> bool {
    insecure.map_or(needs_tls || !address.is_loopback(), |insecure| !insecure)
}

/// As Go reads booleans.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

/// Loads the certificates, so that what is wrong with them is told together with all other mistakes.
fn check(reader: &mut Reader<'_>, group: &[&'static Key], source: &Source) {
    if group.iter().any(|key| reader.has_mistake_of(key)) {
        return;
    }
    match Certificates::load(source) {
        Ok(certificates) => certificates
            .warnings()
            .into_iter()
            .for_each(|warning| reader.warn(warning)),
        Err(error) => {
            let Some(first) = group.first() else { return };
            for problem in error.0 {
                reader.mistake_at(first, problem.place, problem.wrong, problem.remedy);
            }
        }
    }
}

/// A certificate and its key, of which one without the other is a mistake.
fn pair(
    reader: &mut Reader<'_>,
    certificate: &'static Key,
    key: &'static Key,
    pem: fn(&mut Reader<'_>, &'static Key) -> Option<Pem>,
) -> Option<Pair> {
    let (read_certificate, read_key) = (pem(reader, certificate), pem(reader, key));
    for (there, missing) in [(certificate, key), (key, certificate)] {
        if reader.given(there).is_some() && reader.given(missing).is_none() && !reader.has_mistake_of(there) {
            let wrong = format!("it is set without {}", missing.variable);
            reader.mistake(there, wrong, format!("set {} too, or neither", missing.variable));
        }
    }
    Some(Pair {
        certificate: read_certificate?,
        key: read_key?,
    })
}

fn inline(reader: &mut Reader<'_>, key: &'static Key) -> Option<Pem> {
    let setting = reader.place(key);
    reader.parsed(key, None, |text| {
        let joined: String = text.chars().filter(|character| !character.is_whitespace()).collect();
        let pem = STANDARD.decode(joined).map_err(|_| {
            if text.contains("-----BEGIN") {
                "it is PEM itself, not base64 of PEM".to_owned()
            } else {
                "it is not base64".to_owned()
            }
        })?;
        Ok(Some(Pem::Inline { setting, pem }))
    })
}

fn file(reader: &mut Reader<'_>, key: &'static Key) -> Option<Pem> {
    let path = PathBuf::from(reader.text(key)?);
    if let Err(wrong) = check_path(&path) {
        reader.mistake(key, wrong, key.remedy);
        return None;
    }
    Some(Pem::File {
        setting: reader.place(key),
        path,
    })
}

/// Whoever reads the file tells its path, which must not be the key itself.
fn check_path(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Err(error) if !may_be_shown(path) => Err(format!("{}: {}", shown(path), FileError::from(error))),
        _ => Ok(()),
    }
}

fn client_authority(reader: &mut Reader<'_>, key: &'static Key, file_key: &'static Key) -> Option<Pem> {
    file(reader, file_key).or_else(|| inline(reader, key))
}

/// The pairs of `certificates`.
fn listed(reader: &mut Reader<'_>) -> Vec<Pair> {
    let key = &keys::CERTIFICATES;
    let Some(found) = reader.structure(key) else {
        return Vec::new();
    };
    let Value::List(entries) = found.value else {
        let wrong = format!("it is {} where a list is expected", found.value.kind());
        reader.mistake(key, wrong, key.remedy);
        return Vec::new();
    };
    let mut pairs = Vec::new();
    for entry in entries {
        let place = if entry.place == found.place {
            entry.place.clone()
        } else {
            format!("{}: {}", entry.place, key.yaml())
        };
        match listed_pair(&place, entry.value) {
            Ok(pair) => pairs.push(pair),
            Err(wrong) => reader.mistake_at(key, place, wrong, key.remedy),
        }
    }
    pairs
}

/// The files that `certificates` names, and where it does. Whoever reads the setting itself tells its mistakes.
pub(super) fn listed_files(reader: &Reader<'_>) -> Vec<(String, PathBuf)> {
    let Some(found) = reader.find(&keys::CERTIFICATES) else {
        return Vec::new();
    };
    let value = match &found.value {
        Value::Text(text) => document::inline(&found.place, text).unwrap_or(Value::Absent),
        value => value.clone(),
    };
    let Value::List(pairs) = value else {
        return Vec::new();
    };
    let entries = pairs.into_iter().filter_map(|pair| match pair.value {
        Value::Map(entries) => Some(entries),
        _ => None,
    });
    let files = entries.flatten().filter_map(|(_, node)| match node.value {
        Value::Text(path) => Some((found.place.clone(), PathBuf::from(path))),
        _ => None,
    });
    files.collect()
}

fn listed_pair(place: &str, value: Value) -> Result<Pair, String> {
    let Value::Map(entries) = value else {
        return Err(format!("it has {} where cert and key are expected", value.kind()));
    };
    let (mut certificate, mut key) = (None, None);
    for (name, node) in entries {
        let slot = match name.as_str() {
            "cert" => &mut certificate,
            "key" => &mut key,
            other => return Err(format!("it has {other:?} where cert and key are expected")),
        };
        match node.value {
            Value::Text(path) if !path.is_empty() => *slot = Some(path),
            other => {
                return Err(format!(
                    "its {name} is {} where a file's path is expected",
                    other.kind()
                ));
            }
        }
    }
    let path = |path: Option<String>, name: &str| {
        path.map(PathBuf::from)
            .ok_or_else(|| format!("it has a pair without {name}"))
    };
    let (certificate, key) = (path(certificate, "cert")?, path(key, "key")?);
    let pem = |path: PathBuf, name: &str| {
        check_path(&path).map_err(|wrong| format!("{name}: {wrong}"))?;
        Ok::<_, String>(Pem::File {
            setting: place.to_owned(),
            path,
        })
    };
    Ok(Pair {
        certificate: pem(certificate, "cert")?,
        key: pem(key, "key")?,
    })
}

/// A host name, in lower case as clients ask for it.
fn domain(text: &str) -> Result<String, String> {
    let letters = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let name = text.strip_prefix("*.").unwrap_or(text);
    let fits = text == "*" || (text.len() <= 253 && name.split('.').all(|part| !part.is_empty() && letters(part)));
    if fits {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("{text:?} is not a host name"))
    }
}
