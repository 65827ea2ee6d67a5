//! Builds the plugins that tests run. Each is a workspace of its own, with a lock file and for another target than the host's,
//! so that it is built as an author would build it: by a cargo that knows nothing of the build around it.

#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the package in a folder, given from the repository's root, and says where the component is. A build of what has not
/// changed takes a moment only.
///
/// # Panics
///
/// If it cannot be built; the panic holds what cargo said.
pub fn build(folder: &str, package: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(&folder).args([
        "build",
        "--release",
        "--locked",
        "--target",
        "wasm32-wasip2",
        "--target-dir",
        "target",
    ]);
    // What the build around this one sets for itself is not the plugin's.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = text.starts_with("CARGO_") && text != "CARGO_HOME";
        if of_cargo || text.starts_with("RUSTFLAGS") || text.starts_with("RUSTC_") {
            build.env_remove(&name);
        }
    }
    let output = build.output().expect("cargo");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", folder.display());
    let file = package.replace('-', "_") + ".wasm";
    folder.join("target/wasm32-wasip2/release").join(file)
}
