//! Pomerium's own tests of storages, its server as a follower, and its metrics beside ours, on Postgres: with one host, and with three on one
//! database, of which each call takes the next.
//!
//! The tests themselves are Go, in `tests/pomerium`.

use std::path::Path;
use std::process::{Command, Stdio};

use postgres_server::{Options, PostgresServer};

use super::PROGRAM;

#[test]
fn pomeriums_own_code_on_postgres() {
    let go = Command::new("go")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !go.is_ok_and(|status| status.success()) {
        // A machine without Go can still run everything else; the gate cannot.
        let how = "Pomerium's own tests need Go 1.26 or later: install it from go.dev or your distribution";
        assert!(std::env::var_os("CI").is_none(), "{how}");
        eprintln!("{how}");
        return;
    }
    let server = PostgresServer::with(&Options {
        configuration: vec!["max_connections = 300".to_owned()],
        ..Options::default()
    })
    .unwrap();
    for hosts in ["1", "3"] {
        let status = Command::new("go")
            .args([
                "test",
                "-count=1",
                "-timeout=10m",
                "-v",
                "-run",
                "TestStorage|TestFollower|TestPoolMetrics",
                ".",
            ])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../pomerium"))
            .env("DATABROKER_HOST_BINARY", PROGRAM)
            .env("DATABROKER_POSTGRES", server.url())
            .env("DATABROKER_STORAGE_TYPE", "postgres")
            .env("DATABROKER_HOSTS", hosts)
            .env("GOFLAGS", "-tags=embed_pomerium")
            .env("GONOSUMDB", "github.com/pomerium/*")
            .status()
            .expect("run go test");
        assert!(
            status.success(),
            "with {hosts} hosts: go test has failed: {status}; what it printed is above"
        );
    }
}
