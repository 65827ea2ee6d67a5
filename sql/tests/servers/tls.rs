//! TLS modes against a server with a certificate of our own authority.

use std::path::{Path, PathBuf};

use databroker_sql::ErrorKind;
use postgres_server::{Options, PostgresServer, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::{one, open};

pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for a name.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.0.pem()).unwrap();
        path
    }
}

pub(super) fn server(authority: &Authority, access: &str) -> PostgresServer {
    let (certificate, key) = authority.issue("db.example");
    PostgresServer::with(&Options {
        tls: Some(Tls {
            certificate,
            key,
            client_authority: Some(authority.0.pem()),
        }),
        access: vec![access.to_owned()],
        ..Options::default()
    })
    .unwrap()
}

const ENCRYPTED: &str = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

#[tokio::test]
async fn each_mode_checks_what_it_says() {
    let (ours, other) = (Authority::new(), Authority::new());
    let server = server(&ours, "hostssl all all 127.0.0.1/32 trust");
    let folder = tempfile::tempdir().unwrap();
    let trusted = ours.write(folder.path(), "ours").display().to_string();
    let foreign = other.write(folder.path(), "other").display().to_string();
    // The name is in the certificate; the address is where the server is.
    let named = format!(
        "host=db.example hostaddr=127.0.0.1 port={} user=postgres dbname=postgres",
        server.port()
    );
    let unnamed = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", server.port());
    for (text, encrypted) in [
        // The server takes nobody without TLS, so these find out.
        (format!("{named} sslmode=allow"), true),
        (format!("{named} sslmode=prefer"), true),
        (format!("{named} sslmode=require"), true),
        (format!("{unnamed} sslmode=verify-ca sslrootcert={trusted}"), true),
        (format!("{named} sslmode=verify-full sslrootcert={trusted}"), true),
        (
            format!("{named} sslmode=verify-full sslrootcert={trusted} sslsni=0"),
            true,
        ),
    ] {
        let pool = open(&text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(one(&pool, ENCRYPTED).await == "true", encrypted, "{text}");
    }
    for (text, problem) in [
        (format!("{named} sslmode=disable"), "28000"),
        (
            format!("{unnamed} sslmode=verify-full sslrootcert={trusted}"),
            "TLS failed",
        ),
        (
            format!("{named} sslmode=verify-full sslrootcert={foreign}"),
            "TLS failed",
        ),
        (format!("{named} sslmode=verify-ca sslrootcert={foreign}"), "TLS failed"),
        // As good as verify-ca, since there is somebody to trust.
        (format!("{named} sslmode=require sslrootcert={foreign}"), "TLS failed"),
        (
            format!("{named} sslmode=verify-full sslrootcert=/no/such/file"),
            "/no/such/file cannot be read",
        ),
    ] {
        let error = open(&text).await.expect_err(&text);
        assert_eq!(error.kind(), ErrorKind::Settings, "{text}: {error}");
        assert!(error.to_string().contains(problem), "{text}: {error}");
    }
}

#[tokio::test]
async fn a_client_is_known_by_its_certificate() {
    let authority = Authority::new();
    let server = server(&authority, "hostssl all all 127.0.0.1/32 cert");
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue("postgres");
    let (certificate_file, key_file) = (folder.path().join("crt"), folder.path().join("key"));
    std::fs::write(&certificate_file, certificate).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let url = format!("{}?sslmode=require", server.url());
    assert_eq!(open(&url).await.unwrap_err().kind(), ErrorKind::Settings);
    let pool = open(&format!(
        "{url}&sslcert={}&sslkey={}",
        certificate_file.display(),
        key_file.display()
    ))
    .await
    .unwrap();
    assert_eq!(one(&pool, ENCRYPTED).await, "true");
    // Large answers go through the pipe too.
    assert_eq!(one(&pool, "SELECT length(repeat('x', 500000))").await, "500000");
    assert_eq!(one(&pool, "SELECT repeat('x', 500000)").await.len(), 500_000);
}

#[tokio::test]
async fn a_server_that_signs_its_own_certificate_is_trusted_by_it() {
    let certified = rcgen::generate_simple_self_signed(vec!["db.example".to_owned()]).unwrap();
    let server = PostgresServer::with(&Options {
        tls: Some(Tls {
            certificate: certified.cert.pem(),
            key: certified.signing_key.serialize_pem(),
            client_authority: None,
        }),
        ..Options::default()
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.crt");
    std::fs::write(&path, certified.cert.pem()).unwrap();
    let text = |name: &str| {
        format!(
            "host={name} hostaddr=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
            server.port(),
            path.display()
        )
    };
    assert!(open(&text("db.example")).await.is_ok());
    assert_eq!(
        open(&text("other.example")).await.unwrap_err().kind(),
        ErrorKind::Settings
    );
}
