//! The database that a plugin reaches by way of the host: its pool, under Pomerium's names, and what was asked of it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use super::page::Page;
use crate::backend::DatabaseRuntime;

/// Writes all of it.
pub fn encode(page: &mut Page<'_>, database: &DatabaseRuntime) -> fmt::Result {
    page.counters(
        "plugin_database_statements",
        "Statements that have ended, by result; connecting, beginnings and ends of transactions included.",
        database
            .outcomes
            .iter()
            .map(|(result, count)| (vec![("result", Cow::from(*result))], *count)),
    )?;
    page.histograms(
        "plugin_database_statement_duration_seconds",
        "How long statements took, waiting for a connection included.",
        1e9,
        [(Vec::new(), database.durations.clone())],
    )?;
    let Some(pool) = &database.pool else {
        return Ok(());
    };
    let labels = || {
        vec![
            ("db_client_connection_pool_name", Cow::from(&database.name)),
            ("db_system", Cow::from("postgresql")),
        ]
    };
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let counters = [
        (
            "pomerium_pgxpool_acquires",
            "Connections that were handed out.",
            pool.acquire_count,
        ),
        (
            "pomerium_pgxpool_acquire_duration",
            "How long handing them out took, in nanoseconds.",
            nanoseconds(pool.acquire_time),
        ),
        (
            "pomerium_pgxpool_canceled_acquires",
            "Callers that went away, or waited for too long, before there was a connection.",
            pool.canceled_acquire_count,
        ),
        (
            "pomerium_pgxpool_empty_acquire",
            "Connections that were handed out after waiting for one, or making one.",
            pool.empty_acquire_count,
        ),
        (
            "pomerium_pgxpool_empty_acquire_wait_time",
            "How long that took, in nanoseconds.",
            nanoseconds(pool.empty_acquire_time),
        ),
        (
            "pomerium_pgxpool_max_idle_destroys",
            "Connections that were closed because nothing used them.",
            pool.idle_closed,
        ),
        (
            "pomerium_pgxpool_max_lifetime_destroys",
            "Connections that were closed because of their age.",
            pool.lifetime_closed,
        ),
        (
            "pomerium_pgxpool_new_connections",
            "Connections that were made.",
            pool.new_connections,
        ),
    ];
    for (name, help, value) in counters {
        page.counters(name, help, [(labels(), value)])?;
    }
    let gauges = [
        (
            "pomerium_pgxpool_acquired_connections",
            "Connections that work.",
            pool.acquired,
        ),
        (
            "pomerium_pgxpool_constructing_connections",
            "Connections that are being made.",
            pool.constructing,
        ),
        (
            "pomerium_pgxpool_idle_connections",
            "Connections that wait for work.",
            pool.idle,
        ),
        (
            "pomerium_pgxpool_max_connections",
            "Connections at most.",
            pool.max_connections,
        ),
        (
            "pomerium_pgxpool_total_connections",
            "Connections that there are, those that are being made included.",
            pool.acquired
                .saturating_add(pool.constructing)
                .saturating_add(pool.idle),
        ),
    ];
    for (name, help, value) in gauges {
        page.gauges(name, help, [(labels(), value)])?;
    }
    Ok(())
}
