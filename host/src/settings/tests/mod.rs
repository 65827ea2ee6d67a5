//! Settings as an operator gives them: what is taken, what is refused and in which words, and what the reference says.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod bad;
mod calling;
mod reloading;
mod sources;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rcgen::KeyPair;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::telemetry::config::{LogFormat, TraceProtocol};

/// Base64 of the bytes 0 to 31.
const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// Base64 of 32 zeros.
const OTHER_SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn source(flags: &[(&'static str, &str)], environment: &[(&str, &str)]) -> Source {
    Source {
        file: None,
        flags: flags
            .iter()
            .map(|(name, value)| (*name, OsString::from(value)))
            .collect(),
        environment: environment
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect(),
    }
}

fn read(environment: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    Settings::read(&source(&[], environment)).map_err(lines)
}

fn lines(mistakes: Mistakes) -> Vec<String> {
    mistakes.to_string().lines().map(str::to_owned).collect()
}

fn good(environment: &[(&str, &str)]) -> Settings {
    read(environment).unwrap_or_else(|mistakes| panic!("{environment:?}: {mistakes:?}"))
}

/// A folder with files that only their owner can read.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// A certificate and its key: the paths of the files.
    fn certificate(&self, name: &str) -> (String, String) {
        let (certificate, key) = certificate();
        (
            self.file(&format!("{name}.crt"), certificate),
            self.file(&format!("{name}.key"), key),
        )
    }

    /// The settings with this configuration file, or the lines of mistakes without the folder's path.
    fn read(&self, content: &str, environment: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
        let path = self.file("config.yaml", content);
        let source = Source {
            file: Some(path.into()),
            ..source(&[], environment)
        };
        Settings::read(&source).map_err(|mistakes| lines(mistakes).iter().map(|line| self.shortened(line)).collect())
    }

    fn good(&self, content: &str, environment: &[(&str, &str)]) -> Settings {
        self.read(content, environment)
            .unwrap_or_else(|mistakes| panic!("{content}: {mistakes:#?}"))
    }

    fn notices(&self, settings: &Settings) -> Vec<String> {
        settings
            .notices
            .iter()
            .map(|notice| self.shortened(&notice.to_string()))
            .collect()
    }

    fn shortened(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// A certificate and its key, PEM.
fn certificate() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn base64(text: impl AsRef<[u8]>) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(text)
}

#[test]
fn nothing_set_serves_this_machine_with_a_secret_of_its_own() {
    let settings = good(&[]);
    assert_eq!(settings.address.to_string(), "127.0.0.1:5443");
    assert!(settings.secrets.generated && settings.secrets.previous.is_none());
    assert!(settings.tls.is_none());
    assert_eq!(settings.storage.plugin, component::Source::BuiltIn("memory".to_owned()));
    assert_eq!(settings.broker.history, Duration::from_secs(3600));
    assert_eq!(settings.broker.clean_interval, Duration::from_secs(60));
    // The parts say themselves what they are by default, for whoever uses them without settings.
    assert_eq!(
        settings.storage,
        component::Config::new(settings.storage.plugin.clone())
    );
    assert_eq!(settings.grace_period, Duration::from_secs(10));
    assert_eq!((settings.max_connections, settings.max_streams), (1024, 8192));
    assert_eq!(settings.tls_reload_interval, Duration::from_secs(10));
    assert_eq!(settings.telemetry.logs.level, LevelFilter::INFO);
    assert_eq!(settings.telemetry.logs.format, LogFormat::Text);
    assert_eq!(settings.telemetry.health.unwrap().to_string(), "127.0.0.1:28080");
    assert!(settings.telemetry.metrics.is_none() && settings.telemetry.traces.is_none());
    assert_eq!(settings.notices, []);
    // An empty variable is as good as none.
    let names: Vec<_> = ALL.iter().map(|key| key.variable).collect();
    let no_secret = names
        .iter()
        .filter(|name| **name != "SHARED_SECRET" && **name != "SHARED_SECRET_PREVIOUS");
    let empty: Vec<_> = no_secret.map(|name| (*name, "")).collect();
    assert_eq!(good(&empty).address, settings.address);
}

#[test]
fn defaults_are_those_of_the_table() {
    let default = good(&[]);
    for key in ALL {
        // Those that are said in words.
        if key.default.is_empty() || key.default.contains(' ') || key.group == Group::Traces {
            continue;
        }
        let mut explicit = good(&[(key.variable, key.default)]);
        explicit.secrets = default.secrets.clone();
        explicit.fingerprints = default.fingerprints.clone();
        assert_eq!(format!("{explicit:?}"), format!("{default:?}"), "{}", key.variable);
    }
}

#[test]
fn nothing_secret_is_shown_by_debug() {
    let (certificate, key) = certificate();
    let environment = [
        ("SHARED_SECRET", SECRET),
        ("SHARED_SECRET_PREVIOUS", OTHER_SECRET),
        ("DATABROKER_STORAGE_CONNECTION_STRING", "hunter2"),
        ("CERTIFICATE", &base64(&certificate)),
        ("CERTIFICATE_KEY", &base64(&key)),
        ("METRICS_ADDRESS", ":9090"),
        ("METRICS_BASIC_AUTH", &base64("scraper:hunter2")),
        ("METRICS_CERTIFICATE", &base64(&certificate)),
        ("METRICS_CERTIFICATE_KEY", &base64(&key)),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2"),
    ];
    let source = source(&[], &environment);
    let settings = Settings::read(&source).unwrap();
    let shown = format!("{source:?} {settings:?}");
    let secrets = ALL.iter().filter(|key| key.secret);
    let given = |key: &&&Key| environment.iter().any(|(name, _)| *name == key.variable);
    // The headers of traces alone replace those of all exports.
    assert_eq!(secrets.clone().filter(|key| !given(key)).count(), 1);
    for (_, value) in environment
        .iter()
        .filter(|(name, _)| secrets.clone().any(|key| key.variable == *name))
    {
        assert!(!shown.contains(value), "{shown}");
    }
    for hidden in ["AAEC", "hunter2", "scraper", &key[40..60], "BEGIN"] {
        assert!(!shown.contains(hidden), "{hidden}: {shown}");
    }
}

#[test]
fn a_client_needs_the_secret_and_nothing_else() {
    let read = |environment: &[(&str, &str)]| client_secret(&source(&[], environment));
    assert_eq!(
        read(&[("SHARED_SECRET", SECRET), ("LOG_LEVEL", "loud")])
            .unwrap()
            .to_base64(),
        SECRET
    );
    assert!(
        read(&[])
            .unwrap_err()
            .to_string()
            .starts_with("SHARED_SECRET: it is not set")
    );
    let folder = Folder::new();
    let file = folder.file("config.yaml", format!("shared_secret: {SECRET}\nunknown: x\n"));
    let source = Source {
        file: Some(file.into()),
        ..Source::default()
    };
    assert_eq!(client_secret(&source).unwrap().to_base64(), SECRET);
}

/// The documentation holds what the program makes of its table. `UPDATE_EXPECT=1` writes it anew.
#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/settings.md");
    let expected = reference();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == expected,
        "docs/settings.md differs from the table of settings: run this test with UPDATE_EXPECT=1"
    );
}

#[test]
fn the_table_is_sound() {
    for (index, key) in ALL.iter().enumerate() {
        assert!(!key.help.is_empty() && !key.remedy.is_empty(), "{}", key.variable);
        for text in [key.help, key.reason] {
            assert!(!text.ends_with('.') && !text.contains('\n'), "{}: {text}", key.variable);
        }
        let flag = key.variable.to_ascii_lowercase().replace('_', "-");
        assert_eq!(key.flag, (!key.secret).then_some(flag.as_str()), "{}", key.variable);
        assert!(
            ALL[..index]
                .iter()
                .all(|other| other.variable != key.variable && other.group <= key.group)
        );
        assert_eq!(
            pomerium::classify(&key.yaml()),
            pomerium::Foreign::Unknown,
            "{}",
            key.variable
        );
    }
}
