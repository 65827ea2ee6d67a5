//! A plugin's file: inspected, and loaded where it passes that. The engine's own validation comes after the host's, so
//! both are fed.

use std::sync::LazyLock;

use databroker_host::component::{Plugin, Source};
use tempfile::TempDir;

use crate::Target;

pub const TARGET: Target = Target {
    name: "component",
    feed,
    short: 3_000,
    words: &[
        "\0asm\x0d\0\x01\0",
        "\0asm\x01\0\0\0",
        "databroker:storage/store@0.1.0",
        "databroker:storage/log@0.1.0",
        "wasi:io/poll@0.2.6",
        "(component",
        ";;",
    ],
};

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());

fn feed(bytes: &[u8]) {
    let path = FOLDER.path().join(format!("{:?}.wasm", std::thread::current().id()));
    std::fs::write(&path, bytes).unwrap();
    let source = Source::File(path);
    let refused = match Plugin::inspect(&source) {
        Ok(inspection) => {
            assert_eq!(inspection.size, u64::try_from(bytes.len()).unwrap());
            Plugin::load(&source, Some(&FOLDER.path().join("cache"))).err()
        }
        Err(error) => Some(error),
    };
    if let Some(error) = refused {
        let told = error.to_string();
        assert!(told.len() < 64 << 10, "{} bytes of a reason", told.len());
    }
}
