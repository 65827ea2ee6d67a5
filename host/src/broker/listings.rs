//! Lists whose length nothing says before they are read: of the types, and of the services.
//!
//! A client with a token can make them as long as an answer of the store may be, which is more than anybody takes and more
//! than many callers may hold at once. So few are read at a time, and what is longer than clients take is dropped at once.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{ANSWER_BYTES, BrokerError};
use crate::backend::Backend;
use crate::record::{Service, Timestamp};

/// How many lists are read at a time; further callers wait. Each is as long as an answer of the store at most, 128 MiB.
const AT_A_TIME: usize = 4;

/// What an entry counts beside its text: the least that it takes on the way to a client.
const ENTRY_BYTES: usize = 2;

/// Where lists are read.
pub struct Listings {
    backend: Arc<dyn Backend>,
    turns: Semaphore,
}

impl Listings {
    /// Those of a store.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            turns: Semaphore::new(AT_A_TIME),
        }
    }

    /// The types that have live records, ascending.
    ///
    /// # Errors
    ///
    /// [`BrokerError::AnswerTooLarge`] where they are more than clients take; and the backend's.
    pub async fn types(&self) -> Result<Vec<String>, BrokerError> {
        let _turn = self.turns.acquire().await.map_err(|_| BrokerError::ShuttingDown)?;
        let types = self.backend.types().await?;
        bounded(types, String::len)
    }

    /// The services of these kinds, in order; no kinds means all.
    ///
    /// # Errors
    ///
    /// As [`Self::types`].
    pub async fn services(&self, kinds: &[i32], now: Timestamp) -> Result<Vec<Service>, BrokerError> {
        let _turn = self.turns.acquire().await.map_err(|_| BrokerError::ShuttingDown)?;
        let mut services = self.backend.list_services(now).await?;
        services.retain(|service| kinds.is_empty() || kinds.contains(&service.kind));
        services.sort();
        bounded(services, |service| service.endpoint.len())
    }
}

fn bounded<T>(entries: Vec<T>, text_bytes: impl Fn(&T) -> usize) -> Result<Vec<T>, BrokerError> {
    let bytes: usize = entries.iter().map(|entry| text_bytes(entry) + ENTRY_BYTES).sum();
    if bytes > ANSWER_BYTES {
        return Err(BrokerError::AnswerTooLarge(ANSWER_BYTES));
    }
    Ok(entries)
}
