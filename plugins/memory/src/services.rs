//! The registry: services that were reported and have not run out.

use std::collections::BTreeMap;

use crate::budget::{ALLOCATION, bytes, ordered};
use crate::entry::Timestamp;

/// A service in the registry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// The number of its kind.
    pub kind: i32,
    /// Its URL, which may hold credentials: kept out of `Debug`.
    pub endpoint: String,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Service")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The services, with the time until which each is there.
#[derive(Debug, Default)]
pub(crate) struct Services {
    known: BTreeMap<Service, Timestamp>,
    revision: u64,
}

impl Services {
    /// What these services add at most: nothing where they are known.
    pub fn growth(&self, services: &[Service]) -> u64 {
        let is_new = |service: &&Service| !self.known.contains_key(*service);
        services.iter().filter(is_new).map(cost).sum()
    }

    /// Adds services, or keeps them for longer; returns the bytes that were added.
    pub fn report(&mut self, services: Vec<Service>, ttl: u64, now: Timestamp) -> u64 {
        let until = now.saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX));
        let mut added = 0;
        for service in services {
            let cost = cost(&service);
            if self.known.insert(service, until).is_none() {
                added += cost;
            }
        }
        self.revision += 1;
        added
    }

    /// Removes the services whose time has run out; returns the bytes that this gave back.
    pub fn expire(&mut self, now: Timestamp) -> u64 {
        let mut removed = 0;
        self.known.retain(|service, until| {
            let keep = *until > now;
            if !keep {
                removed += cost(service);
            }
            keep
        });
        if removed > 0 {
            self.revision += 1;
        }
        removed
    }

    /// The services that are known, ascending by kind, then by endpoint.
    pub fn list(&self) -> impl Iterator<Item = &Service> {
        self.known.keys()
    }

    /// When the next service runs out; none where there is none.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.known.values().min().copied()
    }

    /// Changes whenever a service is reported or expires.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

fn cost(service: &Service) -> u64 {
    bytes(service.endpoint.len()) + ALLOCATION + ordered(size_of::<(Service, Timestamp)>())
}
