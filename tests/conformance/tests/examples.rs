//! The examples of backends by third parties build with nothing but the interface, start by configuration alone, and pass
//! the suite.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::plugin_passes;
use databroker_host::component::Source;

#[tokio::test(flavor = "multi_thread")]
async fn rust() {
    plugin_passes(Source::File(guest_build::build(
        "examples/rust-backend",
        "rust-backend",
    )))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn python() {
    let python = Command::new("python3")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !python.is_ok_and(|status| status.success()) {
        // A machine without Python can still run everything else; the gate cannot.
        let how = "the Python example needs Python 3.10 or later with venv and pip: install it from your distribution";
        assert!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("{how}");
        return;
    }
    let folder = example("python-backend");
    run(Command::new("python3").arg("build.py").current_dir(&folder));
    plugin_passes(Source::File(folder.join("target/python-backend.wasm"))).await;
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name)
}

fn run(command: &mut Command) {
    let status = command.status().expect("run the build");
    assert!(status.success(), "{command:?}: {status}; what it printed is above");
}
