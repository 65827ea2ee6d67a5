//! `config check` on what a connection can be like: it says what that means.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use databroker_shared_postgres::client::SECRET;
use databroker_shared_postgres::process::{Kind, Process, Program};
use postgres_server::{PgBouncer, PoolMode, PostgresServer};

use super::PROGRAM;

/// Checks a configuration file of Pomerium's databroker, and gives what is said.
pub(crate) fn check(folder: &Path, connection_string: &str) -> String {
    let file = folder.join("pomerium.yaml");
    let content = format!(
        "services: databroker\nshared_secret: {SECRET}\ngrpc_address: 127.0.0.1:0\ngrpc_insecure: true\n\
         databroker_storage_type: postgres\ndatabroker_storage_connection_string: {connection_string}\n"
    );
    std::fs::write(&file, content).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let checked = Command::new(PROGRAM)
        .args(["config", "check", "--config"])
        .arg(&file)
        .env_remove("DATABROKER_STORAGE_TYPE")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    said.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_connection_is_like_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let server = PostgresServer::start().unwrap();
    // The first one makes the tables, which a standby cannot.
    let plain = "takes writes, and tells of changes at once";
    let pooled = "behind a pooler in transaction mode: changes by other hosts are seen within a second";
    let read_only = "takes no writes at present, being a standby or set so (default_transaction_read_only)";
    let said = check(folder.path(), &server.url());
    assert!(said.contains(plain), "{said}");
    let standby = server.standby().unwrap();
    // Two that are taken in turn look, to who asks at the wrong moments, as if each client had one of them.
    let in_transactions = PgBouncer::start(&server, PoolMode::Transaction, 2).unwrap();
    let in_sessions = PgBouncer::start(&server, PoolMode::Session, 20).unwrap();
    let to_standby = PgBouncer::start(&standby, PoolMode::Transaction, 4).unwrap();
    for (what, url, expected) in [
        ("a pooler in transaction mode", in_transactions.url(), pooled),
        ("a pooler in transaction mode, again", in_transactions.url(), pooled),
        ("a pooler in session mode", in_sessions.url(), plain),
        ("a standby", standby.url(), read_only),
        ("a pooler before a standby", to_standby.url(), read_only),
        (
            "a connection that is set so",
            server.url() + "?options=-c%20default_transaction_read_only%3Don",
            read_only,
        ),
    ] {
        let said = check(folder.path(), &url);
        assert!(said.contains(expected), "{what}: {said}");
    }

    // A host that serves says the same in its log.
    let program = Program {
        kind: Kind::Host,
        path: PROGRAM.into(),
        connection_string: in_transactions.url(),
        environment: Vec::new(),
    };
    let host = Process::start(program, folder.path(), "host").await.unwrap();
    let log = host.log();
    assert!(log.contains("behind a pooler that changes connections"), "{log}");
}
