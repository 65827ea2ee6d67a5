//! HTTPS of a plugin: it reaches a granted origin whose certificate the machine trusts, and no other. Which authorities are
//! trusted is read once for each process, so that a process is started for it, as an operator would.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::program::{output, text};

/// An authority of a test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).unwrap();
        Self {
            issuer: Issuer::new(parameters, key),
            certificate,
        }
    }

    /// Serves `hello` over HTTPS to whoever asks, as this name.
    async fn serve(&self, name: &str) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let certificate: CertificateDer<'static> = certificate.der().clone();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // Who does not trust it breaks off.
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await.unwrap());
                    }
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
                    stream.write_all(answer).await.unwrap();
                    let _ = stream.shutdown().await;
                });
            }
        });
        address
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_reaches_granted_https_origins_that_the_machine_trusts_and_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("authorities.pem");
    let (trusted, other) = (Authority::new(), Authority::new());
    std::fs::write(&file, trusted.certificate.pem()).unwrap();
    let port = async |authority: &Authority, name| authority.serve(name).await.port();
    let granted = port(&trusted, "localhost").await;
    let untrusted = port(&other, "localhost").await;
    let misnamed = port(&trusted, "another.example").await;
    let ungranted = port(&trusted, "localhost").await;
    let cases = [
        (granted, "200 hello"),
        (untrusted, "failed: ErrorCode::TlsProtocolError"),
        (misnamed, "failed: ErrorCode::TlsProtocolError"),
        (ungranted, "failed: ErrorCode::HttpRequestDenied"),
    ];
    let lines: Vec<String> = cases
        .iter()
        .map(|(port, _)| format!("get https://localhost:{port}/"))
        .collect();
    let origins = [granted, untrusted, misnamed].map(|port| format!("https://localhost:{port}"));
    let (script, origins) = (format!("script={}", lines.join("\n")), origins.join(","));
    let probe = guest_build::build("tests/probe", "probe");
    let cache = probe.with_file_name("cache");
    let environment = [
        ("GRPC_ADDRESS", "127.0.0.1:0"),
        ("HEALTH_CHECK_ADDR", "off"),
        ("DATABROKER_STORAGE_TYPE", probe.to_str().unwrap()),
        ("DATABROKER_PLUGIN_SETTINGS", script.as_str()),
        ("DATABROKER_PLUGIN_CACHE_DIR", cache.to_str().unwrap()),
        ("DATABROKER_PLUGIN_HTTP_ORIGINS", origins.as_str()),
        ("SSL_CERT_FILE", file.to_str().unwrap()),
    ];
    // The probe has no store: it says what came of each request, and the program ends with that.
    let ended = tokio::task::block_in_place(|| output(&["serve"], &environment));
    let said = text(&ended.stderr);
    assert!(!ended.status.success(), "{said}");
    let outcomes: Vec<&str> = cases.iter().map(|(_, outcome)| *outcome).collect();
    assert!(said.contains(&outcomes.join(" | ")), "{said}");
}
