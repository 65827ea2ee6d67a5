//! What a command that calls a databroker takes from its settings.

use super::*;

/// The environment, the address, and whether the certificate is a derived one.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, bool);

#[test]
fn the_databroker_s_own_settings_say_whom_to_call() {
    let any_certificate = ("CERTIFICATE_FILE", "/x");
    let cases: [Case; 18] = [
        (&[], "http://127.0.0.1:5443", false),
        (
            &[("GRPC_ADDRESS", ""), ("TLS_DERIVE", ""), ("GRPC_INSECURE", " ")],
            "http://127.0.0.1:5443",
            false,
        ),
        (&[("GRPC_ADDRESS", " 127.0.0.1:1 ")], "http://127.0.0.1:1", false),
        (&[("GRPC_ADDRESS", ":443")], "https://127.0.0.1:443", true),
        (
            &[("GRPC_ADDRESS", ":443"), any_certificate],
            "https://127.0.0.1:443",
            false,
        ),
        (
            &[("GRPC_ADDRESS", ":443"), ("CERTIFICATE_AUTHORITY_FILE", "/ca")],
            "https://127.0.0.1:443",
            false,
        ),
        (
            &[("GRPC_ADDRESS", "[::]:443"), ("GRPC_INSECURE", "true")],
            "http://[::1]:443",
            false,
        ),
        (
            &[("GRPC_ADDRESS", "0.0.0.0:443"), ("GRPC_INSECURE", "1")],
            "http://127.0.0.1:443",
            false,
        ),
        (
            &[("GRPC_ADDRESS", "[fd00::1]:1"), ("GRPC_INSECURE", "T")],
            "http://[fd00::1]:1",
            false,
        ),
        (
            &[("GRPC_ADDRESS", "databroker:443"), ("GRPC_INSECURE", " false ")],
            "https://databroker:443",
            true,
        ),
        (&[("GRPC_INSECURE", "false")], "https://127.0.0.1:5443", true),
        (&[("TLS_DERIVE", "pomerium.internal")], "https://127.0.0.1:5443", true),
        (
            &[("TLS_DERIVE", "x"), ("CERTIFICATE_AUTHORITY_FILE", "/ca")],
            "https://127.0.0.1:5443",
            true,
        ),
        (&[("TLS_DERIVE", "x"), any_certificate], "https://127.0.0.1:5443", true),
        (&[("GRPC_CLIENT_CA_FILE", "/x")], "https://127.0.0.1:5443", true),
        (
            &[("GRPC_CLIENT_CA", "eA=="), any_certificate],
            "https://127.0.0.1:5443",
            false,
        ),
        (
            &[any_certificate, ("GRPC_INSECURE", "true")],
            "http://127.0.0.1:5443",
            false,
        ),
        (
            &[("CERTIFICATES", "[]"), ("LOG_LEVEL", "loud")],
            "https://127.0.0.1:5443",
            false,
        ),
    ];
    for (variables, address, derived) in cases {
        let client = client(&source(&[], variables), None).unwrap();
        assert_eq!(
            (client.address.as_str(), client.derived),
            (address, derived),
            "{variables:?}"
        );
    }
    let folder = Folder::new();
    let file = folder.file(
        "config.yaml",
        "grpc_address: databroker:1\ngrpc_insecure: true\nunknown: x\n",
    );
    let source = Source {
        file: Some(file.into()),
        ..Source::default()
    };
    assert_eq!(client(&source, None).unwrap().address, "http://databroker:1");
}

#[test]
fn whom_to_trust_is_trimmed_and_may_be_empty() {
    let read = |environment: &[(&str, &str)]| client(&source(&[], environment), Some("https://other")).unwrap();
    let none = read(&[
        ("CERTIFICATE_AUTHORITY_FILE", ""),
        ("OVERRIDE_CERTIFICATE_NAME", ""),
        ("TLS_DERIVE", ""),
    ]);
    assert_eq!(
        (none.authority, none.certificate_name, none.derived),
        (None, None, false)
    );
    let both = read(&[
        ("CERTIFICATE_AUTHORITY_FILE", " /ca "),
        ("OVERRIDE_CERTIFICATE_NAME", " name"),
    ]);
    assert_eq!(both.authority, Some("/ca".into()));
    assert_eq!(both.certificate_name.as_deref(), Some("name"));
}

#[test]
fn the_address_is_judged_only_where_it_is_needed() {
    let wrong = source(&[], &[("GRPC_ADDRESS", "nonsense"), ("GRPC_INSECURE", "maybe")]);
    let mistakes = lines(client(&wrong, None).unwrap_err());
    assert_eq!(mistakes.len(), 2, "{mistakes:?}");
    assert!(
        mistakes[0].starts_with("GRPC_ADDRESS: ") && mistakes[1].starts_with("GRPC_INSECURE: "),
        "{mistakes:?}"
    );
    let client = client(&wrong, Some("http://other:1")).unwrap();
    assert_eq!((client.address.as_str(), client.derived), ("http://other:1", false));
}
