//! The configuration: a file, and one variable of the environment. An operator writes them, and may be handed them.

use std::collections::BTreeMap;
use std::ffi::OsString;

use databroker_host::settings::{Settings, Source};

use crate::Target;

pub const TARGET: Target = Target {
    name: "configuration",
    feed,
    short: 3_000,
    words: &[
        ": ",
        "- ",
        "\n",
        "  ",
        "&a",
        "*a",
        "<<: ",
        "!!binary ",
        "|\n",
        "\"",
        "'",
        "#",
        "{",
        "}",
        "[",
        "]",
        "---\n",
        "shared_secret",
        "grpc_address",
        "databroker_storage_type",
        "databroker_storage_connection_string",
        "memory",
        "5m",
        "true",
        "~",
        "\u{feff}",
        "\t",
    ],
};

/// A value that must not be shown.
const SECRET: &str = "hunter2hunter2";

fn feed(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    // What comes after a zero byte is the value of a variable that the byte before it names.
    let (text, variable) = match bytes.iter().position(|byte| *byte == 0) {
        Some(place) => (&bytes[..place], &bytes[place + 1..]),
        None => (bytes, &b""[..]),
    };
    std::fs::write(&file, text).unwrap();
    let mut environment = BTreeMap::new();
    if let Some((which, value)) = variable.split_first() {
        let names = [
            "GRPC_ADDRESS",
            "SHARED_SECRET",
            "SERVICES",
            "DATABROKER_STORAGE_TYPE",
            "DATABROKER_HISTORY",
            "LOG_LEVEL",
            "METRICS_ADDRESS",
            "METRICS_BASIC_AUTH",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "OTEL_RESOURCE_ATTRIBUTES",
        ];
        let name = names[usize::from(*which) % names.len()];
        environment.insert(
            OsString::from(name),
            OsString::from(String::from_utf8_lossy(value).into_owned()),
        );
    }
    let connection_string = format!("memory://?password={SECRET}");
    environment.insert("DATABROKER_STORAGE_CONNECTION_STRING".into(), connection_string.into());
    let source = Source {
        file: Some(file),
        flags: BTreeMap::new(),
        environment,
    };
    let shown = match Settings::read(&source) {
        Ok(settings) => format!("{settings:?}"),
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty(), "refused without a reason");
            mistakes.to_string()
        }
    };
    assert!(!shown.contains(SECRET), "the connection string is shown");
}
