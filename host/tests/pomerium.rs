//! Pomerium's own Go code against this host: its storage tests, its clients, and its server as a follower.
//!
//! The tests themselves are Go, in `tests/pomerium`; this runs them against the program that Cargo has just built.

#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};

#[test]
fn pomeriums_own_code() {
    if !is_there("go", "version") {
        // A machine without Go can still run everything else; the gate cannot.
        let how = "Pomerium's own tests need Go 1.26 or later: install it from go.dev or your distribution";
        assert!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("{how}");
        return;
    }
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/pomerium");
    let status = Command::new("go")
        .args(["test", "-count=1", "-timeout=20m", "./..."])
        .current_dir(module)
        .env("DATABROKER_HOST_BINARY", env!("CARGO_BIN_EXE_databroker-host"))
        .env("GOFLAGS", "-tags=embed_pomerium")
        .env("GONOSUMDB", "github.com/pomerium/*")
        .status()
        .expect("run go test");
    assert!(
        status.success(),
        "go test has failed: {status}; what it printed is above"
    );
}

/// Whether a tool can be run at all.
fn is_there(tool: &str, argument: &str) -> bool {
    Command::new(tool)
        .arg(argument)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}
