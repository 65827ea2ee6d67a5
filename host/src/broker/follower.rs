//! Follows a shared store: what other hosts write reaches the hub by reading the change log, in the log's order. So does
//! what this host writes, unless nothing was written between the hub's newest change and it.
//!
//! An exclusive store has no need of this: its hub is fed from the results of the writer's own calls. Only where the writer
//! does not know what came of a call does it read the log in the same way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Change;
use super::hub::Hub;
use super::options::{Known, OptionsTable};
use crate::backend::{Backend, BackendError, ChangesRequest, Observed, PageBounds};

/// The bounds of the pages that are read.
const PAGE: PageBounds = PageBounds {
    records: 1024,
    bytes: 1 << 20,
};
/// Most pages that are read in one go: more changes than a hub holds by default. Whoever reads them, the writer above all, has
/// other things to do.
const PAGES: usize = 64;
/// How long to wait after a failure; it doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The least time from one look to the next, which is how much later than at once a change may come that follows upon another. A
/// store whose `wait` does not wait costs no more than that; nor does what this host writes itself, of which it is notified as of
/// all else, and which its callers would otherwise share the database with.
const SHORTEST_ROUND: Duration = Duration::from_millis(25);

/// The task that follows.
pub struct Follower {
    /// The shared store.
    pub backend: Arc<dyn Backend>,
    /// Where its changes go.
    pub hub: Arc<Hub>,
    /// The copy of its options.
    pub options: Arc<OptionsTable>,
    /// Told whenever services change.
    pub services: watch::Sender<()>,
}

impl Follower {
    /// Follows until the task is aborted. Failures are logged and tried again for as long as it takes.
    pub async fn run(self) {
        // What was seen when the store was opened is unknown, so the first look reads everything.
        let mut seen = None;
        let mut known = None;
        let mut pause = SHORTEST_PAUSE;
        loop {
            let begun = Instant::now();
            match self.step(&mut seen, &mut known).await {
                Ok(()) => {
                    pause = SHORTEST_PAUSE;
                    tokio::time::sleep_until(begun + SHORTEST_ROUND).await;
                }
                Err(error) => {
                    // What was seen before means nothing to a plugin that was started again.
                    seen = None;
                    tracing::warn!(%error, "cannot follow the shared store's changes; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits for news, and brings them to where they are told.
    async fn step(&self, seen: &mut Option<Observed>, known: &mut Known) -> Result<(), BackendError> {
        // No store has server version 0, so the first wait ends at once.
        let now = self.backend.wait(seen.unwrap_or_default()).await?;
        let is_new = |part: fn(&Observed) -> u64| seen.as_ref().is_none_or(|seen| part(seen) != part(&now));
        if is_new(|observed| observed.server_version) {
            *known = None;
        }
        let revision = now.options_revision;
        if self.options.refresh_to(revision, known, &*self.backend).await? {
            self.hub.options_changed();
        }
        if is_new(|observed| observed.services_revision) {
            self.services.send_replace(());
        }
        // What this host has written itself is there already, mostly.
        let (server_version, latest_version) = self.hub.position();
        if server_version != now.server_version || latest_version < now.latest_version {
            catch_up(&*self.backend, &self.hub).await?;
        }
        let (server_version, latest_version) = self.hub.position();
        *seen = Some(Observed {
            server_version,
            // The hub may know more than a store that has just lost it.
            latest_version: latest_version.min(now.latest_version),
            ..now
        });
        Ok(())
    }
}

/// Brings the hub up to the store's newest change, by reading the change log from where the hub stands. Where that is
/// further than can be read in one go, the hub begins again with what is new, and the streams read for themselves what is
/// in between.
///
/// # Errors
///
/// The backend's; and where the hub would have to begin again a second time, so that a store which always says that it was
/// pruned or cleared does not keep the host busy.
pub async fn catch_up(backend: &dyn Backend, hub: &Hub) -> Result<(), BackendError> {
    let mut began_again = false;
    for _ in 0..PAGES {
        let (server_version, latest_version) = hub.position();
        let request = ChangesRequest {
            after: latest_version,
            record_type: None,
            bounds: PAGE,
        };
        let page = match backend.changes(request).await {
            Ok(page) => page,
            // Too far behind: the streams find out for themselves what they can still read.
            Err(BackendError::Pruned(_)) if !began_again => {
                hub.reset(backend.current().await?);
                began_again = true;
                continue;
            }
            Err(error) => return Err(error),
        };
        if page.position.server_version != server_version {
            if began_again {
                let why = "the store was cleared more than once while its change log was read";
                return Err(BackendError::Unavailable(why.to_owned()));
            }
            hub.reset(page.position);
            began_again = true;
            continue;
        }
        let through = page.through;
        let changes = page.records.into_iter().map(|record| Arc::new(Change::new(record)));
        hub.publish(server_version, changes.collect(), through);
        if through >= page.position.latest_version || through <= latest_version {
            return Ok(());
        }
    }
    hub.reset(backend.current().await?);
    Ok(())
}
