//! The registry: services that stay listed for as long as they are reported.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use super::BrokerError;
use super::hub::Hub;
use super::listings::Listings;
use crate::backend::Backend;
use crate::record::{Service, Timestamp};

/// The registry's part of the broker.
#[derive(Clone)]
pub struct Registry {
    /// Where services are kept.
    pub backend: Arc<dyn Backend>,
    /// Where they are listed.
    pub listings: Arc<Listings>,
    /// Knows when streams end.
    pub hub: Arc<Hub>,
    /// Told whenever services change, and when the process goes down.
    pub changed: watch::Sender<()>,
    /// How long a service stays listed.
    pub ttl: Duration,
    /// What the time is.
    pub clock: fn() -> Timestamp,
}

impl Registry {
    /// Lists services; returns when to report again, well before they go.
    pub async fn report(&self, services: Vec<Service>) -> Result<Duration, BrokerError> {
        if !services.is_empty() {
            self.backend.report_services(services, self.ttl, (self.clock)()).await?;
            self.changed.send_replace(());
        }
        Ok(self.ttl / 3)
    }

    /// The services of these kinds; no kinds means all.
    pub async fn list(&self, kinds: &[i32]) -> Result<Vec<Service>, BrokerError> {
        self.listings.services(kinds, (self.clock)()).await
    }

    /// Streams the list, at once and whenever it changes. Nothing tells when a service runs out, so it looks now and then.
    pub async fn watch(
        self,
        kinds: Vec<i32>,
    ) -> Result<BoxStream<'static, Result<Vec<Service>, BrokerError>>, BrokerError> {
        let changed = self.changed.subscribe();
        let first = self.list(&kinds).await?;
        let state = Watch {
            registry: self,
            kinds,
            changed,
            digests: RandomState::new(),
            sent: None,
            ready: Some(first),
        };
        Ok(stream::unfold(Some(state), |state| async {
            let mut state = state?;
            match state.next().await {
                Ok(services) => Some((Ok(services), Some(state))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

struct Watch {
    registry: Registry,
    kinds: Vec<i32>,
    changed: watch::Receiver<()>,
    digests: RandomState,
    /// The digest of what the client knows, since thousands of streams must not hold a list each.
    sent: Option<u64>,
    /// What was read and not sent yet.
    ready: Option<Vec<Service>>,
}

impl Watch {
    async fn next(&mut self) -> Result<Vec<Service>, BrokerError> {
        loop {
            if self.registry.hub.ended() {
                return Err(BrokerError::ShuttingDown);
            }
            let services = match self.ready.take() {
                Some(services) => services,
                None => self.registry.list(&self.kinds).await?,
            };
            let digest = self.digests.hash_one(&services);
            if self.sent.replace(digest) != Some(digest) {
                return Ok(services);
            }
            drop(services);
            let look_again = self.registry.ttl / 10;
            tokio::select! {
                _ = self.changed.changed() => {}
                () = tokio::time::sleep(look_again) => {}
            }
        }
    }
}
