//! Notifications of the server (`LISTEN`), over all that may happen to its connection.
//!
//! A notification may be lost at any time: while the connection is made anew, behind a pooler, at a failover. So waiting
//! says when something may have been missed, and the caller looks for itself. It is a way to be early, never the only way
//! to know.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{Instant, sleep, timeout_at};

use super::error::Error;
use super::pool::Shared;

/// How long to wait where notifications do not come.
const POLL: Duration = Duration::from_secs(1);

/// How long after a failure to wait before the next try.
const PAUSE: Duration = Duration::from_millis(500);

/// After so much silence the connection is asked whether it still lives.
const SILENCE: Duration = Duration::from_secs(15);

/// Why waiting has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There was a notification.
    Notified {
        /// The channel.
        channel: String,
        /// What was sent with it.
        payload: String,
    },
    /// Notifications may have been missed.
    Missed,
    /// The time is over.
    Elapsed,
}

/// Listens on channels, from the first wait on.
pub struct Listener {
    shared: Arc<Shared>,
    channels: Vec<String>,
    /// None until it is connected, and after its connection broke.
    inner: Option<PgListener>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Listener")
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

impl Listener {
    pub(crate) fn new(shared: Arc<Shared>, channels: Vec<String>) -> Self {
        Self {
            shared,
            channels,
            inner: None,
        }
    }

    /// Waits for the next notification, at most so long. It never fails: where no server can be reached, or none notifies, it
    /// says after a while that something may have been missed. Dropping it loses nothing.
    pub async fn wait(&mut self, longest: Duration) -> Wake {
        let end = Instant::now() + longest.min(Duration::from_secs(86_400));
        if self.shared.bounced.load(Ordering::Relaxed) {
            sleep(longest.min(POLL)).await;
            return if longest > POLL { Wake::Missed } else { Wake::Elapsed };
        }
        let Some(inner) = &mut self.inner else {
            return match timeout_at(end, self.connect()).await {
                // Whatever came before could not be heard.
                Ok(Ok(())) => Wake::Missed,
                Ok(Err(error)) => {
                    tracing::warn!(
                        kind = error.kind().name(),
                        "notifications of Postgres cannot be had: {error}"
                    );
                    sleep(PAUSE.min(end.saturating_duration_since(Instant::now()))).await;
                    Wake::Missed
                }
                Err(_) => Wake::Elapsed,
            };
        };
        loop {
            let pause = end.min(Instant::now() + SILENCE);
            match timeout_at(pause, inner.try_recv()).await {
                Ok(Ok(Some(notification))) => {
                    return Wake::Notified {
                        channel: notification.channel().to_owned(),
                        payload: notification.payload().to_owned(),
                    };
                }
                Ok(Ok(None) | Err(_)) => {
                    self.inner = None;
                    return Wake::Missed;
                }
                Err(_) if pause == end => return Wake::Elapsed,
                Err(_) => {
                    let alive = sqlx::raw_sql("SELECT 1").execute(&mut *inner);
                    if !matches!(tokio::time::timeout(Duration::from_secs(5), alive).await, Ok(Ok(_))) {
                        self.inner = None;
                        return Wake::Missed;
                    }
                }
            }
        }
    }

    /// Finds the server that will do, and listens there.
    async fn connect(&mut self) -> Result<(), Error> {
        let connector = &self.shared.connector;
        let established = connector.connect().await?;
        let options = connector.options(&established.route).await?;
        drop(established.connection.close().await);
        // The library listens through a pool of its own only.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options);
        let mut inner = PgListener::connect_with(&pool).await?;
        inner.eager_reconnect(false);
        inner.listen_all(self.channels.iter().map(String::as_str)).await?;
        self.inner = Some(inner);
        Ok(())
    }
}
