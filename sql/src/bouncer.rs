//! Finds out whether a pooler is in between that changes connections from one transaction to the next.
//!
//! Behind one, nothing that belongs to a session can be relied on: prepared statements, settings, LISTEN. Poolers do not say
//! that they are there, so their doing is looked at: two connections of ours that are open at the same time cannot be one
//! process of the server, unless something hands that process around.

use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Row as _};

use super::connect::Connector;
use super::error::Error;

/// How often to look: other clients of the same pooler may come in between.
const ROUNDS: usize = 3;

/// True if there is one.
pub(crate) async fn is_between(connector: &Connector, first: &mut PgConnection) -> Result<bool, Error> {
    let mut second = connector.connect().await?.connection;
    let mut found = false;
    for _ in 0..ROUNDS {
        let outside = process(first).await?;
        // Keeps hold of one process, most often the one that was used last.
        sqlx::raw_sql("BEGIN").execute(&mut second).await?;
        let inside = process(&mut second).await?;
        let again = process(first).await?;
        sqlx::raw_sql("ROLLBACK").execute(&mut second).await?;
        // Where processes are taken in turn, and there are two, none of the above meets another one.
        let after = process(&mut second).await?;
        if inside == outside || outside != again || inside != after {
            found = true;
            break;
        }
    }
    // It was only for this.
    drop(second.close().await);
    Ok(found)
}

async fn process(connection: &mut PgConnection) -> Result<String, Error> {
    let row = sqlx::raw_sql("SELECT pg_catalog.pg_backend_pid()::text")
        .fetch_one(connection)
        .await?;
    Ok(row.try_get(0)?)
}
