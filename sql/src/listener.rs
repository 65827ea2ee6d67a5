//! Notifications of the server (`LISTEN`), over all that may happen to its connection.
//!
//! A notification may be lost at any time: while the connection is made anew, behind a pooler, at a failover. So waiting
//! says when something may have been missed, and the caller looks for itself. It is a way to be early, never the only way
//! to know.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::BoxFuture;
use sqlx::Connection as _;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::error::{Error, ErrorKind};
use super::pool::Shared;

/// How long to wait where notifications do not come.
const POLL: Duration = Duration::from_secs(1);

/// How long after a failure to wait before the next try. Each failure in a row doubles it, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);

/// The longest that such a pause becomes: where the server never lets anybody listen, as a standby, tries are in vain.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// After so much silence the connection is asked whether it still lives.
const SILENCE: Duration = Duration::from_secs(15);

/// How long the answer to that may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Why waiting has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There was a notification.
    Notified,
    /// Notifications may have been missed.
    Missed,
    /// The time is over.
    Elapsed,
}

/// Listens on channels, from the first wait on.
pub struct Listener {
    shared: Arc<Shared>,
    channels: Vec<String>,
    state: State,
    /// How long to wait after the next failure.
    pause: Duration,
    /// True once the operator was told that there are no notifications, until there are.
    told: bool,
}

/// What becomes of its connection. Whatever takes long is kept from one wait to the next: waits may be much shorter than it
/// takes until the first server has not answered in its time and the second one is asked.
enum State {
    /// There is none, and the next try is due then.
    Away(Instant),
    /// One is being made.
    Connecting(BoxFuture<'static, Result<PgListener, Error>>),
    /// It was heard of then.
    Listening(Box<PgListener>, Instant),
    /// It has been silent for long, and is asked whether it still lives; none if it does not.
    Asked(BoxFuture<'static, Option<Box<PgListener>>>),
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
            state: State::Away(Instant::now()),
            pause: PAUSE,
            told: false,
        }
    }

    /// Waits for the next notification, at most so long. It never fails: for as long as it cannot listen it says that something
    /// may have been missed, after a second or when the time is over. Dropping it loses nothing.
    pub async fn wait(&mut self, longest: Duration) -> Wake {
        let began = Instant::now();
        let end = began + longest.min(Duration::from_secs(86_400));
        if self.shared.bounced.load(Ordering::Relaxed) {
            sleep(longest.min(POLL)).await;
            return if longest > POLL { Wake::Missed } else { Wake::Elapsed };
        }
        loop {
            match &mut self.state {
                State::Away(next) => {
                    let next = *next;
                    let until = next.min(end).min(began + POLL);
                    sleep_until(until).await;
                    if until < next {
                        return Wake::Missed;
                    }
                    let connecting = connect(Arc::clone(&self.shared), self.channels.clone());
                    self.state = State::Connecting(Box::pin(connecting));
                }
                State::Connecting(connecting) => {
                    match timeout_at(end, connecting).await {
                        Ok(Ok(listener)) => self.connected(listener),
                        Ok(Err(error)) => self.failed(&error),
                        Err(_) => {}
                    }
                    // Whatever came so far could not be heard.
                    return Wake::Missed;
                }
                State::Listening(listener, heard) => {
                    let silent = *heard + SILENCE;
                    match timeout_at(end.min(silent), listener.try_recv()).await {
                        Ok(Ok(Some(_))) => {
                            *heard = Instant::now();
                            return Wake::Notified;
                        }
                        Ok(Ok(None) | Err(_)) => {
                            self.state = State::Away(Instant::now());
                            return Wake::Missed;
                        }
                        Err(_) if Instant::now() < silent => return Wake::Elapsed,
                        Err(_) => self.ask(),
                    }
                }
                State::Asked(asking) => match timeout_at(end, asking).await {
                    Ok(Some(listener)) => self.state = State::Listening(listener, Instant::now()),
                    Ok(None) => {
                        self.state = State::Away(Instant::now());
                        return Wake::Missed;
                    }
                    Err(_) => return Wake::Elapsed,
                },
            }
        }
    }

    fn connected(&mut self, listener: PgListener) {
        self.state = State::Listening(Box::new(listener), Instant::now());
        self.pause = PAUSE;
        if std::mem::take(&mut self.told) {
            tracing::info!("notifications of Postgres come again");
        }
    }

    fn failed(&mut self, error: &Error) {
        self.state = State::Away(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                kind = error.kind().name(),
                "notifications of Postgres cannot be had, which is tried again without another word: {error}"
            );
        }
    }

    /// Asks a connection whether it still lives.
    fn ask(&mut self) {
        let State::Listening(mut listener, _) = std::mem::replace(&mut self.state, State::Away(Instant::now())) else {
            return;
        };
        self.state = State::Asked(Box::pin(async move {
            let asking = sqlx::raw_sql("SELECT 1").execute(&mut *listener);
            let lives = matches!(timeout(ANSWER, asking).await, Ok(Ok(_)));
            lives.then_some(listener)
        }));
    }
}

/// Finds the server that will do, and listens there.
async fn connect(shared: Arc<Shared>, channels: Vec<String>) -> Result<PgListener, Error> {
    let connector = &shared.connector;
    let established = connector.connect().await?;
    let listening = async {
        let options = connector.options(&established.route).await?;
        drop(established.connection.close().await);
        // The library listens through a pool of its own only.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen_all(channels.iter().map(String::as_str)).await?;
        Ok(listener)
    };
    timeout(connector.patience(), listening)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unreachable, "the server does not answer")))
}
