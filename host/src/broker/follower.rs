//! Follows a shared store: what other hosts write reaches the hub by reading the change log, in the log's order.
//!
//! An exclusive store has no need of this: its hub is fed from the results of the writer's own calls.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Change;
use super::hub::Hub;
use super::options::OptionsTable;
use crate::backend::{Backend, BackendError, ChangesRequest, Observed, PageBounds};

/// The bounds of the pages that are read.
const PAGE: PageBounds = PageBounds {
    records: 1024,
    bytes: 1 << 20,
};
/// How long to wait after a failure; it doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// The longest wait after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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
        let (server_version, latest_version) = self.hub.position();
        // The revisions of options and services are unknown yet, so the first look reads both.
        let mut seen = Observed {
            server_version,
            latest_version,
            ..Observed::default()
        };
        let mut pause = SHORTEST_PAUSE;
        loop {
            match self.step(&mut seen).await {
                Ok(()) => pause = SHORTEST_PAUSE,
                Err(error) => {
                    tracing::warn!(%error, "cannot follow the shared store's changes; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn step(&self, seen: &mut Observed) -> Result<(), BackendError> {
        let now = self.backend.wait(*seen).await?;
        if now.options_revision != seen.options_revision || now.server_version != seen.server_version {
            self.options.replace(self.backend.list_options().await?);
            self.hub.options_changed();
            seen.options_revision = now.options_revision;
        }
        if now.services_revision != seen.services_revision {
            self.services.send_replace(());
            seen.services_revision = now.services_revision;
        }
        self.read_changes().await?;
        (seen.server_version, seen.latest_version) = self.hub.position();
        Ok(())
    }

    async fn read_changes(&self) -> Result<(), BackendError> {
        loop {
            let (server_version, latest_version) = self.hub.position();
            let request = ChangesRequest {
                after: latest_version,
                record_type: None,
                bounds: PAGE,
            };
            let page = match self.backend.changes(request).await {
                Ok(page) => page,
                // Too far behind: the streams find out for themselves what they can still read.
                Err(BackendError::Pruned(_)) => {
                    self.hub.reset(self.backend.current().await?);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if page.position.server_version != server_version {
                self.hub.reset(page.position);
                continue;
            }
            let through = page.through;
            self.hub.publish(
                page.records
                    .into_iter()
                    .map(|record| Arc::new(Change::new(record)))
                    .collect(),
                through,
            );
            if through >= page.position.latest_version || through <= latest_version {
                return Ok(());
            }
        }
    }
}
