//! The end of a backend: closing waits for the calls that are under way, and no call follows it.
//!
//! It stands around the whole backend, since reads are made in many places and each of them, a query between two pages or a
//! stream that has fallen behind, may be on its way while the process goes down.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::RwLock;

use crate::backend::{
    Backend, BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, LeaseRequest, Observed, Position,
    Pruned, PutResult, ScanPage, ScanRequest, Statistics,
};
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// A backend that is closed in order: afterwards every call fails with [`BackendError::Closed`].
pub struct Closing {
    backend: Arc<dyn Backend>,
    /// True once the backend is closed. Each call holds it for reading, `close` for writing.
    closed: RwLock<bool>,
}

impl Closing {
    /// A backend that is open.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self {
            backend,
            closed: RwLock::new(false),
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<T, BackendError>> + Send) -> Result<T, BackendError> {
        let closed = self.closed.read().await;
        if *closed { Err(BackendError::Closed) } else { call.await }
    }
}

#[async_trait]
impl Backend for Closing {
    async fn close(&self) -> Result<(), BackendError> {
        let mut closed = self.closed.write().await;
        *closed = true;
        self.backend.close().await
    }

    async fn health(&self) -> Result<(), BackendError> {
        self.call(self.backend.health()).await
    }

    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        self.call(self.backend.put(batches, now)).await
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        self.call(self.backend.get(keys)).await
    }

    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        self.call(self.backend.scan(request)).await
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        self.call(self.backend.count(record_type)).await
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        self.call(self.backend.types()).await
    }

    async fn current(&self) -> Result<Position, BackendError> {
        self.call(self.backend.current()).await
    }

    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        self.call(self.backend.changes(request)).await
    }

    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        self.call(self.backend.wait(seen)).await
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        self.call(self.backend.list_options()).await
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        self.call(self.backend.set_options(record_type, options)).await
    }

    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        self.call(self.backend.lease(requests, now)).await
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        self.call(self.backend.get_checkpoint()).await
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        self.call(self.backend.set_checkpoint(checkpoint)).await
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        self.call(self.backend.report_services(services, ttl, now)).await
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        self.call(self.backend.list_services(now)).await
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        self.call(self.backend.prune(before, max_changes)).await
    }

    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        self.call(self.backend.evict(request, now)).await
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        self.call(self.backend.clear(new_server_version)).await
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        self.call(self.backend.measure()).await
    }
}
