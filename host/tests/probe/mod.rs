//! `tests/probe`, a plugin that asks the host for whatever a test wants: built once for each program of tests.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The component. It is a program of another target with a lock file of its own, so that this is a build of its own.
pub fn probe() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/probe");
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
        // What this build sets for itself is not the probe's.
        for (name, _) in std::env::vars() {
            if (name.starts_with("CARGO_") && name != "CARGO_HOME")
                || name.starts_with("RUSTFLAGS")
                || name.starts_with("RUSTC_")
            {
                build.env_remove(name);
            }
        }
        let output = build.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        folder.join("target/wasm32-wasip2/release/probe.wasm")
    })
}
