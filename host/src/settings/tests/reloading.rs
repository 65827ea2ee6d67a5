//! What a process that serves takes over.

use super::*;

/// The names of the settings that are applied, and of those that need a restart.
fn changes(settings: &mut Settings, environment: &[(&str, &str)]) -> (Vec<&'static str>, Vec<&'static str>) {
    let changes = settings.reload(good(environment)).unwrap();
    let names = |keys: &[&'static Key]| keys.iter().map(|key| key.variable).collect();
    (names(&changes.applied), names(&changes.restart))
}

#[test]
fn what_may_change_is_applied_and_the_rest_is_told() {
    let start = [
        ("SHARED_SECRET", SECRET),
        ("LOG_LEVEL", "info"),
        ("DATABROKER_HISTORY", "1h"),
    ];
    let mut settings = good(&start);
    assert_eq!(changes(&mut settings, &start), (vec![], vec![]));
    let next = [
        ("SHARED_SECRET", OTHER_SECRET),
        ("SHARED_SECRET_PREVIOUS", SECRET),
        ("LOG_LEVEL", "debug"),
        ("SHUTDOWN_GRACE_PERIOD", "1s"),
        ("GRPC_ADDRESS", "127.0.0.1:1"),
    ];
    let expected = vec![
        "SHUTDOWN_GRACE_PERIOD",
        "SHARED_SECRET",
        "SHARED_SECRET_PREVIOUS",
        "LOG_LEVEL",
    ];
    assert_eq!(
        changes(&mut settings, &next),
        (expected, vec!["GRPC_ADDRESS", "DATABROKER_HISTORY"])
    );
    assert_eq!(settings.secrets.current.to_base64(), OTHER_SECRET);
    assert_eq!(settings.secrets.previous.as_ref().unwrap().to_base64(), SECRET);
    assert_eq!(settings.telemetry.logs.level, LevelFilter::DEBUG);
    assert_eq!(settings.grace_period, Duration::from_secs(1));
    assert_eq!(settings.address.port(), 5443);
    // What needs a restart is told each time, what was applied is not.
    assert_eq!(
        changes(&mut settings, &next),
        (vec![], vec!["GRPC_ADDRESS", "DATABROKER_HISTORY"])
    );
}

#[test]
fn a_secret_that_was_made_for_the_run_stays() {
    let environment = [("GRPC_INSECURE", "false")];
    let mut settings = good(&environment);
    let secret = settings.secrets.current.clone();
    assert_eq!(changes(&mut settings, &environment), (vec![], vec![]));
    assert!(settings.secrets.current == secret);
    assert!(settings.tls.unwrap().derive.unwrap().secret == secret);
}

#[test]
fn a_configured_secret_that_is_gone_changes_nothing() {
    let mut settings = good(&[("SHARED_SECRET", SECRET), ("SHUTDOWN_GRACE_PERIOD", "3s")]);
    let mistake = settings.reload(good(&[])).unwrap_err().to_string();
    assert!(mistake.starts_with("SHARED_SECRET: "), "{mistake}");
    assert!(!mistake.contains(SECRET), "{mistake}");
    assert_eq!(settings.secrets.current.to_base64(), SECRET);
    assert!(!settings.secrets.generated);
    assert_eq!(settings.grace_period, Duration::from_secs(3));
    // Once it is back, all goes on.
    assert_eq!(
        changes(&mut settings, &[("SHARED_SECRET", OTHER_SECRET)]),
        (vec!["SHUTDOWN_GRACE_PERIOD", "SHARED_SECRET"], vec![])
    );
}

#[test]
fn a_previous_secret_beside_a_derived_certificate_is_warned_about() {
    let both = [("SHARED_SECRET", SECRET), ("SHARED_SECRET_PREVIOUS", OTHER_SECRET)];
    let warned = |more: &[(&str, &str)]| {
        let notices = good(&[&both, more].concat()).notices;
        notices
            .iter()
            .any(|notice| matches!(notice, Notice::Warning(text) if text.contains("SHARED_SECRET_PREVIOUS")))
    };
    assert!(!warned(&[]));
    assert!(warned(&[("TLS_DERIVE", "pomerium.internal")]));
    assert!(warned(&[("GRPC_ADDRESS", ":5443")]));
}

#[test]
fn the_content_of_a_secrets_file_counts() {
    let folder = Folder::new();
    let path = folder.file("secret", SECRET);
    let environment = [("SHARED_SECRET_FILE", path.as_str())];
    let mut settings = good(&environment);
    folder.file("secret", OTHER_SECRET);
    assert_eq!(
        changes(&mut settings, &environment),
        (vec!["SHARED_SECRET_FILE"], vec![])
    );
    assert_eq!(settings.secrets.current.to_base64(), OTHER_SECRET);
}

#[test]
fn certificates_can_change_and_tls_cannot_begin_or_end() {
    let folder = Folder::new();
    let (one, one_key) = folder.certificate("one");
    let (two, two_key) = folder.certificate("two");
    fn with<'a>(certificate: &'a str, key: &'a str) -> [(&'a str, &'a str); 2] {
        [("CERTIFICATE_FILE", certificate), ("CERTIFICATE_KEY_FILE", key)]
    }
    let mut settings = good(&with(&one, &one_key));
    let both = vec!["CERTIFICATE_FILE", "CERTIFICATE_KEY_FILE"];
    assert_eq!(changes(&mut settings, &with(&two, &two_key)), (both.clone(), vec![]));
    let shown = format!("{:?}", settings.tls.as_ref().unwrap().certificates);
    assert!(shown.contains("two.crt"), "{shown}");
    assert_eq!(changes(&mut settings, &[]), (vec![], both));
    assert!(settings.tls.is_some());
    let mut plain = good(&[]);
    assert_eq!(changes(&mut plain, &with(&one, &one_key)).0, Vec::<&str>::new());
    assert!(plain.tls.is_none());
}

#[test]
fn another_database_needs_a_restart() {
    let folder = Folder::new();
    let path = folder.file("dsn", "postgres://user:one@host/db");
    let environment = [
        ("DATABROKER_STORAGE_TYPE", "postgres"),
        ("DATABROKER_STORAGE_CONNECTION_STRING_FILE", path.as_str()),
    ];
    let mut settings = good(&environment);
    assert_eq!(changes(&mut settings, &environment), (vec![], vec![]));
    // Another password, in the same file.
    folder.file("dsn", "postgres://user:two@host/db");
    assert_eq!(
        changes(&mut settings, &environment),
        (vec![], vec!["DATABROKER_STORAGE_CONNECTION_STRING_FILE"])
    );
    let text = [
        ("DATABROKER_STORAGE_TYPE", "postgres"),
        ("DATABROKER_STORAGE_CONNECTION_STRING", "postgres://user:two@host/db"),
    ];
    let named = vec![
        "DATABROKER_STORAGE_CONNECTION_STRING",
        "DATABROKER_STORAGE_CONNECTION_STRING_FILE",
    ];
    assert_eq!(changes(&mut settings, &text), (vec![], named));
    assert_eq!(
        settings.storage.connection_string.as_deref(),
        Some("postgres://user:one@host/db")
    );
}
