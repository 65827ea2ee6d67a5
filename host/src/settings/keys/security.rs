//! Who may call, and how the connection is protected.

use super::{Group, Key, Origin, Shape};

const SECRET: Key = Key {
    value: "BASE64",
    group: Group::SharedSecret,
    secret: true,
    changeable: true,
    remedy: "use the value that Pomerium has, base64 of 32 bytes such as `head -c32 /dev/urandom | base64 | tr -d '\\n'` makes",
    ..Key::COMMON
};

const SECRET_FILE: Key = Key {
    value: "FILE",
    group: Group::SharedSecret,
    changeable: true,
    remedy: "name a file that this process can read",
    ..Key::COMMON
};

const TLS: Key = Key {
    group: Group::Tls,
    changeable: true,
    ..Key::COMMON
};

pub(in super::super) static SHARED_SECRET: Key = Key {
    variable: "SHARED_SECRET",
    default: "on a loopback address one is made for the run",
    help: "The secret that callers prove themselves with, base64 of 32 bytes",
    reason: "All of Pomerium's services have the same one",
    ..SECRET
};

pub(in super::super) static SHARED_SECRET_FILE: Key = Key {
    variable: "SHARED_SECRET_FILE",
    flag: Some("shared-secret-file"),
    help: "A file with the secret and no line end after it; goes before SHARED_SECRET",
    reason: "A file can be kept from other users, and a secret store can replace it",
    ..SECRET_FILE
};

pub(in super::super) static SHARED_SECRET_PREVIOUS: Key = Key {
    variable: "SHARED_SECRET_PREVIOUS",
    help: "The secret from before, which is accepted too",
    reason: "Set it while you change the secret of one service after the other; the log says now and then that somebody still uses it. It does not help where the certificate is derived (tls_derive): that follows the new secret at once",
    origin: Origin::Ours,
    ..SECRET
};

pub(in super::super) static SHARED_SECRET_PREVIOUS_FILE: Key = Key {
    variable: "SHARED_SECRET_PREVIOUS_FILE",
    flag: Some("shared-secret-previous-file"),
    help: "A file with the secret from before; goes before SHARED_SECRET_PREVIOUS",
    origin: Origin::Ours,
    ..SECRET_FILE
};

pub(in super::super) static CERTIFICATE: Key = Key {
    variable: "CERTIFICATE",
    flag: Some("certificate"),
    value: "BASE64",
    help: "The certificate with its chain, base64 of PEM; needs CERTIFICATE_KEY",
    remedy: "write it as `base64 -w0 FILE` does, or name the file in CERTIFICATE_FILE",
    ..TLS
};

pub(in super::super) static CERTIFICATE_KEY: Key = Key {
    variable: "CERTIFICATE_KEY",
    value: "BASE64",
    help: "The private key of CERTIFICATE, base64 of PEM",
    remedy: "write it as `base64 -w0 FILE` does, or name the file in CERTIFICATE_KEY_FILE",
    secret: true,
    ..TLS
};

pub(in super::super) static CERTIFICATE_FILE: Key = Key {
    variable: "CERTIFICATE_FILE",
    flag: Some("certificate-file"),
    value: "FILE",
    help: "A file with the certificate and its chain, PEM; needs CERTIFICATE_KEY_FILE",
    reason: "It is read again when it changes, without a restart",
    remedy: "name the certificate's file here and its key's in CERTIFICATE_KEY_FILE",
    ..TLS
};

pub(in super::super) static CERTIFICATE_KEY_FILE: Key = Key {
    variable: "CERTIFICATE_KEY_FILE",
    flag: Some("certificate-key-file"),
    value: "FILE",
    help: "A file with the private key of CERTIFICATE_FILE, PEM without a password",
    remedy: "name the key's file here and its certificate's in CERTIFICATE_FILE",
    ..TLS
};

pub(in super::super) static CERTIFICATES: Key = Key {
    variable: "CERTIFICATES",
    flag: Some("certificates"),
    value: "LIST",
    help: "More certificates: a list of `cert` and `key`, each a file; a client gets the one with the name that it asks for",
    reason: "For a process that is reached by several names",
    remedy: "write a list such as [{cert: a.crt, key: a.key}, {cert: b.crt, key: b.key}]",
    shape: Shape::Certificates,
    ..TLS
};

pub(in super::super) static TLS_DERIVE: Key = Key {
    variable: "TLS_DERIVE",
    flag: Some("tls-derive"),
    value: "DOMAIN",
    default: "`*` where TLS is on and there is no certificate",
    help: "Serve a certificate for this name that is derived from the shared secret",
    reason: "Pomerium's services with the same setting trust it, so that no certificates have to be made",
    remedy: "write the host name that the other services use for the databroker",
    ..TLS
};

pub(in super::super) static GRPC_CLIENT_CA: Key = Key {
    variable: "GRPC_CLIENT_CA",
    flag: Some("grpc-client-ca"),
    value: "BASE64",
    help: "Clients must show a certificate that one of these authorities has signed; base64 of PEM",
    reason: "For networks where the shared secret is not enough; Pomerium's own services show no certificates, a proxy can",
    remedy: "write it as `base64 -w0 FILE` does, or name the file in GRPC_CLIENT_CA_FILE",
    origin: Origin::Ours,
    ..TLS
};

pub(in super::super) static GRPC_CLIENT_CA_FILE: Key = Key {
    variable: "GRPC_CLIENT_CA_FILE",
    flag: Some("grpc-client-ca-file"),
    value: "FILE",
    help: "A file with those authorities, PEM; goes before GRPC_CLIENT_CA",
    remedy: "name a file that this process can read",
    origin: Origin::Ours,
    ..TLS
};

pub(in super::super) static TLS_RELOAD_INTERVAL: Key = Key {
    variable: "TLS_RELOAD_INTERVAL",
    flag: Some("tls-reload-interval"),
    value: "DURATION",
    default: "10s",
    help: "How often the files of certificates are looked at; 100ms to 1 day",
    reason: "A SIGHUP looks at once",
    remedy: "write a duration such as 10s",
    origin: Origin::Ours,
    changeable: false,
    ..TLS
};
