//! The database that hostile statements are run in, and somebody else who uses it.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use postgres_server::PostgresServer;

use crate::stand::PATIENCE;

/// Connections of other clients that are not idle: a statement runs, or a transaction is open.
const BUSY: &str = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
    AND state <> 'idle'";

/// Connections for notifications: idle ones that have listened last.
const LISTENING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND query LIKE 'LISTEN%'";

/// A server that is started once it is needed.
pub struct Database(LazyLock<PostgresServer>);

impl Database {
    pub fn new() -> Self {
        Self(LazyLock::new(|| {
            let server = PostgresServer::start().expect("a server of Postgres");
            server.sql("CREATE TABLE t (x bigint)").expect("a table");
            server
        }))
    }

    /// What the plugin is granted: a pool that is larger than the transactions it may have.
    pub fn connection_string(&self) -> String {
        format!("{}?pool_max_conns=6", self.0.url())
    }

    /// Waits until nothing of the plugin's is left: no statement, no transaction, no row, no lock, and no connection that
    /// listens.
    pub async fn is_left_alone(&self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        let sql = |statement| self.0.sql(statement).map_err(|error| format!("{error:#}"));
        for statement in [BUSY, LISTENING] {
            loop {
                let found = sql(statement)?;
                if found == "0" {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("{found} of the plugin's are left: {statement}"));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        match sql("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE NOWAIT; SELECT count(*) FROM t; COMMIT")?.as_str() {
            "0" => Ok(()),
            rows => Err(format!("{rows} rows of transactions that were never committed")),
        }
    }
}
