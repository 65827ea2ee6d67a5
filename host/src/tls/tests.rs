//! Real handshakes: which certificate a client gets and trusts, when files change, and what is wrong with them, in words.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::FromDer as _;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// An authority that signs certificates for tests.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both PEM.
struct Leaf {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn leaf(&self, names: &[&str]) -> Leaf {
        self.leaf_with(names, |_| {})
    }

    fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Leaf {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
        }
    }

    fn client(&self) -> ClientConfig {
        client(self.0.der().clone(), rustls::ALL_VERSIONS, None)
    }
}

fn client(
    authority: CertificateDer<'static>,
    versions: &[&'static SupportedProtocolVersion],
    own: Option<&Leaf>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            let key = KeyPair::from_pem(&leaf.key).unwrap().serialize_der();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
            builder.with_client_auth_cert(vec![leaf.der.clone()], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// The two ends of a connection, or why there is none.
async fn connect(
    certificates: &Certificates,
    client: ClientConfig,
    name: &str,
) -> Result<
    (
        tokio_rustls::server::TlsStream<DuplexStream>,
        tokio_rustls::client::TlsStream<DuplexStream>,
    ),
    String,
> {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accepting = certificates.acceptor(&[b"h2"]).accept(far);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connecting = TlsConnector::from(Arc::new(client)).connect(name, near);
    // A client of TLS 1.3 believes itself connected before the server has looked at its certificate.
    let both = tokio::time::timeout(PATIENCE, async { tokio::join!(accepting, connecting) })
        .await
        .unwrap();
    match both {
        (Ok(server), Ok(client)) => Ok((server, client)),
        (server, client) => Err(format!("server: {:?}, client: {:?}", server.err(), client.err())),
    }
}

/// The certificate that a client gets.
async fn served(certificates: &Certificates, client: ClientConfig, name: &str) -> CertificateDer<'static> {
    let (_, client) = connect(certificates, client, name).await.unwrap();
    client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// A folder of files that a source names.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes as careful programs do: a reader sees the old or the new content.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Pem {
        use std::os::unix::fs::PermissionsExt as _;
        let (path, new) = (self.path(name), self.path("new"));
        std::fs::write(&new, content).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&new, &path).unwrap();
        pem_file(&path)
    }

    fn pair(&self, leaf: &Leaf) -> Pair {
        Pair {
            certificate: self.write("tls.crt", &leaf.certificate),
            key: self.write("tls.key", &leaf.key),
        }
    }
}

fn pem_file(path: &Path) -> Pem {
    Pem::File {
        setting: "CERTIFICATE_FILE".to_owned(),
        path: path.to_owned(),
    }
}

fn of(pairs: Vec<Pair>) -> Source {
    Source {
        certificates: pairs,
        ..Source::default()
    }
}

fn inline(leaf: &Leaf) -> Pair {
    let pem = |text: &str| Pem::Inline {
        setting: "CERTIFICATE".to_owned(),
        pem: text.as_bytes().to_vec(),
    };
    Pair {
        certificate: pem(&leaf.certificate),
        key: pem(&leaf.key),
    }
}

fn secret(bytes: [u8; 32]) -> SharedSecret {
    SharedSecret::parse(&base64::engine::general_purpose::STANDARD.encode(bytes)).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What Pomerium's `derivecert` makes of these secrets: the authority's public key and serial number, and those of its
/// certificate for `databroker.example.com`.
const DERIVED: [(&str, &str, &str, &str, &str); 4] = [
    (
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "04c023c052cf3969c5508c6f21a0094f3d9b51bcdbfe47d954505688c901031aba3303ceab959e723b06c119223588b379fbdc09d3425295457e90cac309ec4800",
        "140319712447473895157989627445252177470",
        "04970fa7e41c9ba5bddff14ff4a33dbdb156821cf662f5a5dc0b802aaf037ee198a136e52a0530f7d0cba0326ce769b0510fe49de9288d367537dee69661a1d523",
        "335820217990488206271016922150595649807",
    ),
    (
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "04d81457c1893c35a618958bba8ffbd71a833f0debaf6dcbaeed525eb802bd2b2fb3dd6af36a123f588503acaa6eb022bbd325a451f07bd90f4536b54e8241d743",
        "260426411392241471721798090739217743587",
        "044384794ed516c888768083130a5284716c399c43607cd8643aea313729554e973398cff724609ce19691baa004284b54df8fd95a051807487366a82ccd207ea2",
        "87840980813771159234634636894531073649",
    ),
    (
        "VVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVVU=",
        "0404df004684503387fc14640b949089c34cae2242d16389e73784367477e5f669897fd1e1e24c8efc99c7f4a2a435c9c35858f3eb3c938d1deaa1264d4f450cb7",
        "150918931225934952822162663824815251002",
        "0411364995dbb453968e452e97cf933aaa1295f27c5f01f23cca9a2c110208650f0dcc42c2c90478a812f3bc0ccd2e301fa9c135408b8aa1cfe0145c39868f74a3",
        "197178180993116093845979798220952303814",
    ),
    (
        "//////////////////////////////////////////8=",
        "04b00c3e91ea59ae7900212e8d685368a7a7d155db8f8a4461597d66439b3d9b76bebc24d5e81021acb1035b845e4b509c40a523401cfc4739cf0368db73d7b91f",
        "258152894687948640988224318781344823199",
        "04c134aba12d22e911d9db5b64e9b6d39af2ff93c7fa17c99d87fd7f07068cf5cfae0c060d64877dbb40ea19ea03aa133298fc9e8ddf71d8cf392843bab7987bbe",
        "156854637332439816800142716985477225585",
    ),
];

/// The name of Pomerium's authority, as DER: a client compares these bytes.
const AUTHORITY_NAME: &str =
    "302d3111300f060355040a1308506f6d657269756d311830160603550403130f506f6d657269756d2050534b204341";

#[test]
fn derives_what_pomerium_derives() {
    for (text, key, serial, server_key, server_serial) in DERIVED {
        let secret = SharedSecret::parse(text).unwrap();
        let authority = derive::authority(&secret).unwrap();
        let (_, authority) = x509_parser::certificate::X509Certificate::from_der(&authority).unwrap();
        let (certificate, _) = derive::certificate(&secret, "databroker.example.com").unwrap();
        let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&certificate).unwrap();
        assert_eq!(hex(&authority.public_key().subject_public_key.data), key);
        assert_eq!(authority.serial.to_string(), serial);
        assert_eq!(hex(authority.subject().as_raw()), AUTHORITY_NAME);
        assert_eq!(hex(certificate.issuer().as_raw()), AUTHORITY_NAME);
        assert_eq!(hex(&certificate.public_key().subject_public_key.data), server_key);
        assert_eq!(certificate.serial.to_string(), server_serial);
    }
}

#[tokio::test]
async fn whoever_has_the_secret_trusts_a_derived_certificate() {
    let source = Source {
        derive: Some(Derive {
            domain: Some("databroker.example.com".to_owned()),
            secret: secret([7; 32]),
        }),
        ..Source::default()
    };
    let certificates = Certificates::load(&source).unwrap();
    assert!(certificates.warnings().is_empty() && certificates.expiry().is_none());
    let trusting = |secret| client(derive::authority(&secret).unwrap().into(), rustls::ALL_VERSIONS, None);
    let outcome = connect(&certificates, trusting(secret([7; 32])), "databroker.example.com").await;
    assert!(outcome.is_ok(), "{outcome:?}");
    let outcome = connect(&certificates, trusting(secret([8; 32])), "databroker.example.com").await;
    assert!(outcome.is_err());
    let outcome = connect(&certificates, trusting(secret([7; 32])), "other.example.com").await;
    assert!(outcome.is_err());
}

#[tokio::test]
async fn speaks_h2_with_both_versions_and_nothing_else() {
    let authority = Authority::new();
    let certificates = Certificates::load(&of(vec![inline(&authority.leaf(&["localhost"]))])).unwrap();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = client(authority.0.der().clone(), &[version], None);
        let (server, _) = connect(&certificates, config, "localhost").await.unwrap();
        assert_eq!(server.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    }
    let mut other = authority.client();
    other.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(connect(&certificates, other, "localhost").await.is_err());
}

#[tokio::test]
async fn a_client_gets_the_certificate_of_the_name_it_asks_for() {
    let authority = Authority::new();
    let first = authority.leaf(&["first.example.com"]);
    let exact = authority.leaf(&["a.example.org", "B.Example.org"]);
    let wildcard = authority.leaf(&["*.example.org"]);
    let address = authority.leaf(&["127.0.0.1"]);
    let leaves = [&first, &exact, &wildcard, &address];
    let certificates = Certificates::load(&of(leaves.iter().map(|leaf| inline(leaf)).collect())).unwrap();
    for (name, expected) in [
        ("first.example.com", &first),
        ("a.example.org", &exact),
        ("b.example.org", &exact),
        ("A.EXAMPLE.ORG", &exact),
        ("c.example.org", &wildcard),
        ("127.0.0.1", &address),
    ] {
        assert!(
            served(&certificates, authority.client(), name).await == expected.der,
            "{name}"
        );
    }
    let loaded = Certificates::load(&of(leaves.iter().map(|leaf| inline(leaf)).collect())).unwrap();
    let loaded = loaded.newest.get();
    let schemes = [rustls::SignatureScheme::ECDSA_NISTP256_SHA256];
    for (name, expected) in [
        (Some("unknown"), &first),
        (Some("d.c.example.org"), &first),
        (Some("example.org"), &first),
        (None, &address),
    ] {
        let chosen = resolver::choose(&loaded.certificates, name, &schemes).unwrap();
        assert!(chosen.key.cert[0] == expected.der, "{name:?}");
    }
    let unusable = [rustls::SignatureScheme::ED25519];
    assert!(resolver::choose(&loaded.certificates, Some("a.example.org"), &unusable).is_none());
}

#[tokio::test]
async fn changed_files_count_for_new_connections_and_broken_ones_do_not() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let (old, new) = (authority.leaf(&["localhost"]), authority.leaf(&["localhost"]));
    let certificates = Certificates::load(&of(vec![folder.pair(&old)])).unwrap();
    let (mut server, mut open) = connect(&certificates, authority.client(), "localhost").await.unwrap();
    assert_eq!(certificates.reload(), Ok(Changed::No));

    // The certificate is there and its key is not yet.
    folder.write("tls.crt", &new.certificate);
    let error = certificates.reload().unwrap_err();
    assert!(error.to_string().contains("does not belong"), "{error}");
    assert!(served(&certificates, authority.client(), "localhost").await == old.der);

    folder.write("tls.key", &new.key);
    assert_eq!(certificates.reload(), Ok(Changed::Yes));
    assert_eq!(certificates.reload(), Ok(Changed::No));
    assert!(served(&certificates, authority.client(), "localhost").await == new.der);

    // The connection from before goes on.
    open.write_all(b"still here").await.unwrap();
    open.flush().await.unwrap();
    let mut received = [0; 10];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"still here");

    std::fs::remove_file(folder.path("tls.crt")).unwrap();
    assert!(certificates.reload().is_err());
    assert!(served(&certificates, authority.client(), "localhost").await == new.der);
}

#[tokio::test]
async fn files_are_looked_at_again_and_again() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let (old, new) = (authority.leaf(&["localhost"]), authority.leaf(&["localhost"]));
    let certificates = Arc::new(Certificates::load(&of(vec![folder.pair(&old)])).unwrap());
    let watching = tokio::spawn(Arc::clone(&certificates).keep_fresh(Duration::from_millis(5)));
    folder.pair(&new);
    let deadline = Instant::now() + PATIENCE;
    while served(&certificates, authority.client(), "localhost").await != new.der {
        assert!(Instant::now() < deadline, "the new certificate is never served");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    watching.abort();
}

#[tokio::test]
async fn clients_need_a_certificate_where_authorities_are_set() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let (clients, others) = (Authority::new(), Authority::new());
    let mut source = of(vec![folder.pair(&authority.leaf(&["localhost"]))]);
    source.client_authority = Some(folder.write("clients.crt", clients.0.pem()));
    let certificates = Certificates::load(&source).unwrap();
    let client_leaf = |authority: &Authority| {
        authority.leaf_with(&["client"], |params| {
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        })
    };
    let (own, foreign) = (client_leaf(&clients), client_leaf(&others));
    let let_in = async |leaf: Option<&Leaf>| {
        let config = client(authority.0.der().clone(), rustls::ALL_VERSIONS, leaf);
        connect(&certificates, config, "localhost").await.is_ok()
    };
    assert!(!let_in(None).await);
    assert!(!let_in(Some(&foreign)).await);
    assert!(let_in(Some(&own)).await);

    folder.write("clients.crt", others.0.pem());
    assert_eq!(certificates.reload(), Ok(Changed::Yes));
    assert!(!let_in(Some(&own)).await);
    assert!(let_in(Some(&foreign)).await);

    source.client_authority = None;
    assert_eq!(certificates.replace(&source), Ok(Changed::Yes));
    assert!(let_in(None).await);
}

#[test]
fn what_is_wrong_with_a_file_is_said_in_a_sentence() {
    let (authority, folder) = (Authority::new(), Folder::new());
    let (good, other) = (authority.leaf(&["localhost"]), authority.leaf(&["localhost"]));
    let cut = |text: &str| text[..text.len() / 2].to_owned();
    let damaged = |text: &str| text.replacen('M', "!", 1);
    let damaged_der = {
        let der = base64::engine::general_purpose::STANDARD.encode(&good.der[..good.der.len() - 5]);
        format!("-----BEGIN CERTIFICATE-----\n{der}\n-----END CERTIFICATE-----\n")
    };
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIB\n-----END RSA \
                         PRIVATE KEY-----\n";
    let unusable = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n";
    let chain = format!("{}{}", authority.0.pem(), good.certificate);
    let (certificate, key) = (good.certificate.clone(), good.key.clone());
    let cases: Vec<(&str, Vec<u8>, Vec<u8>, &str)> = vec![
        ("empty", vec![], key.clone().into(), "tls.crt\": it is empty"),
        (
            "empty key",
            certificate.clone().into(),
            vec![],
            "tls.key\": it is empty",
        ),
        ("text", b"hello".to_vec(), key.clone().into(), "there is no PEM in it"),
        ("DER", good.der.to_vec(), key.clone().into(), "it is DER, not PEM"),
        (
            "a byte order mark",
            [&b"\xEF\xBB\xBF"[..], certificate.as_bytes()].concat(),
            key.clone().into(),
            "byte order mark",
        ),
        (
            "cut",
            cut(&certificate).into(),
            key.clone().into(),
            "tls.crt\": it is cut off",
        ),
        (
            "cut key",
            certificate.clone().into(),
            cut(&key).into(),
            "tls.key\": it is cut off",
        ),
        (
            "no base64",
            damaged(&certificate).into(),
            key.clone().into(),
            "it is damaged",
        ),
        (
            "damaged inside",
            damaged_der.into(),
            key.clone().into(),
            "a certificate that is damaged",
        ),
        (
            "swapped",
            key.clone().into(),
            certificate.clone().into(),
            "a key and no certificate: swap",
        ),
        (
            "key is a certificate",
            certificate.clone().into(),
            certificate.clone().into(),
            "a certificate and no key: swap",
        ),
        (
            "another's key",
            certificate.clone().into(),
            other.key.clone().into(),
            "does not belong to the certificate",
        ),
        (
            "wrong order",
            chain.into(),
            key.clone().into(),
            "in the wrong order: put the server's own",
        ),
        (
            "encrypted",
            certificate.clone().into(),
            encrypted.into(),
            "the key is encrypted",
        ),
        (
            "encrypted as of old",
            certificate.clone().into(),
            old_encrypted.into(),
            "the key is encrypted",
        ),
        (
            "unusable",
            certificate.clone().into(),
            unusable.into(),
            "the key is damaged, or of a kind",
        ),
        (
            "large",
            vec![b' '; (1 << 20) + 1],
            key.clone().into(),
            "more than 1048576 bytes",
        ),
    ];
    for (name, certificate, key, expected) in cases {
        let pair = Pair {
            certificate: folder.write("tls.crt", certificate),
            key: folder.write("tls.key", key),
        };
        let error = Certificates::load(&of(vec![pair])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains('\n'), "{name}: {text}");
        assert!(text.starts_with("CERTIFICATE_FILE: \"/"), "{name}: {text}");
        assert!(!text.contains(&good.key[40..60]), "{name} shows the key");
    }

    let missing = Pair {
        certificate: pem_file(&folder.path("missing.crt")),
        key: pem_file(folder.0.path()),
    };
    let error = Certificates::load(&of(vec![missing])).unwrap_err();
    let problems: Vec<String> = error.0.iter().map(Problem::to_string).collect();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("No such file"), "{problems:?}");
    assert!(problems[1].contains("it is a directory, not a file"), "{problems:?}");

    let mut source = of(vec![folder.pair(&good)]);
    source.client_authority = Some(folder.write("clients.crt", &good.key));
    let error = Certificates::load(&source).unwrap_err().to_string();
    assert!(error.contains("a key and no certificate"), "{error}");
}

#[test]
fn doubtful_certificates_are_warned_about() {
    use std::os::unix::fs::PermissionsExt as _;
    let (authority, folder) = (Authority::new(), Folder::new());
    let warnings = |leaf: &Leaf| Certificates::load(&of(vec![folder.pair(leaf)])).unwrap().warnings();
    let expired = authority.leaf_with(&["localhost"], |params| params.not_after = date_time_ymd(2001, 2, 3));
    let future = authority.leaf_with(&["localhost"], |params| params.not_before = date_time_ymd(3001, 2, 3));
    let nameless = authority.leaf(&[]);
    for (leaf, expected) in [
        (&expired, "the certificate expired at 2001-02-03T00:00:00Z"),
        (&future, "the certificate is not valid before 3001-02-03T00:00:00Z"),
        (&nameless, "no subject alternative names"),
    ] {
        let warnings = warnings(leaf);
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{warnings:?}");
        assert!(warnings[0].starts_with("CERTIFICATE_FILE: "), "{warnings:?}");
    }

    let good = authority.leaf_with(&["localhost"], |params| params.not_after = date_time_ymd(3001, 2, 3));
    let source = of(vec![folder.pair(&good)]);
    let certificates = Certificates::load(&source).unwrap();
    assert!(certificates.warnings().is_empty());
    let expiry = humantime::format_rfc3339_seconds(certificates.expiry().unwrap()).to_string();
    assert_eq!(expiry, "3001-02-03T00:00:00Z");
    for (mode, count) in [(0o640, 0), (0o604, 1), (0o644, 1), (0o600, 0), (0o400, 0)] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path("tls.key"), permissions).unwrap();
        let warnings = Certificates::load(&source).unwrap().warnings();
        assert_eq!(warnings.len(), count, "{mode:o}: {warnings:?}");
    }
}

#[test]
fn no_key_is_shown() {
    let leaf = Authority::new().leaf(&["localhost"]);
    let mut source = of(vec![inline(&leaf)]);
    source.derive = Some(Derive {
        domain: None,
        secret: secret([0x41; 32]),
    });
    let shown = format!("{source:?} {:?}", Certificates::load(&source).unwrap());
    for hidden in ["BEGIN", &leaf.key[40..60], "AAAA", "QUFB", "65, 65"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}
