//! What a real component gets of a database through `sql`: within which bounds, and what is left of it when it goes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use postgres_server::PostgresServer;

use super::{config, descriptors};
use crate::backend::BackendError;
use crate::component::{OpenError, Source, open};

/// `tests/probe-sql`, built once.
fn probe() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/probe-sql");
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
        folder.join("target/wasm32-wasip2/release/probe_sql.wasm")
    })
}

/// Lets the probe do this, and gives what came of each line, or how the probe ended.
async fn ask(connection_string: Option<String>, script: &[&str]) -> Result<Vec<String>, OpenError> {
    let mut config = config(Source::File(probe().to_owned()));
    config.cache_dir = Some(probe().with_file_name("cache"));
    config.connection_string = connection_string;
    config.grants.settings.insert("script".to_owned(), script.join("\n"));
    let opened = tokio::time::timeout(Duration::from_secs(60), open(config, descriptors())).await;
    match opened.expect("it answers").err() {
        Some(OpenError::Store {
            error: BackendError::Configuration(said),
            ..
        }) => Ok(said.split(" | ").map(str::to_owned).collect()),
        Some(error) => Err(error),
        None => panic!("it has no store"),
    }
}

/// Waits until a statement gives this.
async fn until(server: &PostgresServer, statement: &str, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = server.sql(statement).unwrap();
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{statement} gives {found}, not {expected}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grant_each_function_says_which_setting_is_missing() {
    for line in ["connect", "run SELECT 1", "begin"] {
        let said = ask(None, &[line]).await.unwrap();
        assert!(
            said[0].starts_with("settings: ") && said[0].contains("DATABROKER_STORAGE_CONNECTION_STRING"),
            "{line}: {said:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_have_bounds_and_the_password_stays_with_the_host() {
    let server = PostgresServer::start().unwrap();
    let url = format!("postgres://postgres:hunter2@127.0.0.1:{}/postgres", server.port());
    let too_large = "too-large: ";
    let cases: &[(&[&str], &str)] = &[
        (&["connect"], "postgres at 127.0.0.1:"),
        (&["run SELECT generate_series(1, 5)"], "5 rows"),
        (&["rows 4", "run SELECT generate_series(1, 5)"], too_large),
        (&["bytes 1000", "run SELECT repeat('x', 1000)"], too_large),
        // More than is granted to anybody.
        (
            &[
                "rows 4000000000",
                "bytes 4000000000",
                "run SELECT 1 FROM generate_series(1, 1000001)",
            ],
            too_large,
        ),
        (&["send 1000"], "done"),
        (&["send 70000000"], too_large),
        // A text.
        (&["write 1000000"], "1 rows"),
        (&["write 1100000"], too_large),
        // Statements beside each other, and again once they have ended.
        (&["crowd 3 60000000"], "3 of 3"),
        (&["crowd 5 60000000", "crowd 3 60000000"], "3 of 3"),
        (&["crowd 5 60000000"], "out-of-connections: "),
        (&["timeout 100", "run SELECT pg_sleep(30)"], "timeout: "),
        (&["run SELECT nonsense"], "statement: "),
        // A connection that was left in the middle of an answer is not used for the next one.
        (
            &[
                "rows 1",
                "run SELECT generate_series(1, 5)",
                "rows 9",
                "run SELECT generate_series(1, 5)",
            ],
            "5 rows",
        ),
        (
            &["begin", "run SELECT nonsense", "run SELECT 1"],
            "statement: a statement of this transaction has failed",
        ),
    ];
    for (script, expected) in cases {
        let said = ask(Some(url.clone()), script).await.unwrap();
        let last = said.last().unwrap();
        assert!(last.starts_with(expected), "{script:?}: {said:?}");
        assert!(!said.concat().contains("hunter2"), "{said:?}");
    }
    until(&server, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND state = 'active' AND pid <> pg_backend_pid()", "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_plugin_drops_is_undone() {
    const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
        AND state <> 'idle'";
    let server = PostgresServer::start().unwrap();
    server.sql("CREATE TABLE t (x int)").unwrap();
    let insert = "run INSERT INTO t VALUES (1)";
    // What is done, and how many rows there are then.
    for (script, rows) in [
        (&["begin", insert, "commit"][..], "1"),
        (&["begin", insert, "forget"], "1"),
        (&["begin", insert], "1"),
        (&["begin", insert, "trap"], "1"),
        (&["drop INSERT INTO t SELECT 1 FROM pg_sleep(30)"], "1"),
        (&[insert], "2"),
    ] {
        let outcome = ask(Some(server.url()), script).await;
        assert_eq!(outcome.is_err(), script.contains(&"trap"), "{script:?}: {outcome:?}");
        // Neither a transaction nor a statement is left at the server.
        until(&server, OTHERS, "0").await;
        assert_eq!(server.sql("SELECT count(*) FROM t").unwrap(), rows, "{script:?}");
    }
}
