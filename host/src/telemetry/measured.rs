//! A store that is measured: each call counted, timed, a span of a trace, and told to health.
//!
//! It stands at the border to storage, so that neither the broker nor the plugin's adapter knows of it, and every store
//! is measured alike.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tracing::Instrument as _;

use super::Instruments;
use super::metrics::{Function, Functions};
use super::traces;
use crate::backend::{
    Backend, BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, LeaseRequest, Observed, Position,
    Pruned, PutResult, Runtime, ScanPage, ScanRequest, Statistics,
};
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// The store and what measures it.
pub struct Measured {
    backend: Arc<dyn Backend>,
    instruments: Instruments,
}

impl Measured {
    /// Measures an opened store.
    pub fn new(backend: Arc<dyn Backend>, instruments: Instruments) -> Self {
        instruments.metrics.storage.is_up(true);
        instruments.health.store_opened(&backend.runtime());
        Self { backend, instruments }
    }

    fn functions(&self) -> &Functions {
        &self.instruments.metrics.storage.functions
    }

    async fn timed<T>(
        &self,
        function: &Function,
        call: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        let span = traces::storage(function.name);
        let began = Instant::now();
        let outcome = call.instrument(span.clone()).await;
        function.ended(began.elapsed(), &outcome);
        if let Err(error) = &outcome {
            traces::failed(&span, error);
        }
        outcome
    }
}

/// After so long without an answer to how it is, a store does not answer. It is asked until it does.
const LATE: Duration = Duration::from_secs(2);

/// Tells health what became of the question how the store is, even where whoever asked did not wait for the answer.
struct Asked<'a> {
    instruments: &'a Instruments,
    since: Instant,
    outcome: Result<(), BackendError>,
    answered: bool,
}

impl Asked<'_> {
    fn tell(&self) {
        self.instruments.metrics.storage.is_up(self.outcome.is_ok());
        self.instruments.health.store_asked(&self.outcome);
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        // Whoever goes away before the answer is late, as a shutdown does, has learnt nothing.
        if self.answered || self.since.elapsed() >= LATE {
            self.tell();
        }
    }
}

#[async_trait]
impl Backend for Measured {
    async fn close(&self) -> Result<(), BackendError> {
        self.timed(&self.functions().close, self.backend.close()).await
    }

    async fn health(&self) -> Result<(), BackendError> {
        let mut asked = Asked {
            instruments: &self.instruments,
            since: Instant::now(),
            answered: false,
            outcome: Err(BackendError::Unavailable("it does not answer in time".to_owned())),
        };
        let mut answer = pin!(self.timed(&self.functions().health, self.backend.health()));
        asked.outcome = loop {
            match tokio::time::timeout(LATE, &mut answer).await {
                Ok(outcome) => break outcome,
                Err(_) => asked.tell(),
            }
        };
        asked.answered = true;
        asked.outcome.clone()
    }

    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let records = batches.iter().map(|batch| batch.changes.len()).sum();
        self.instruments.metrics.storage.committing(batches.len(), records);
        self.timed(&self.functions().put, self.backend.put(batches, now)).await
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        self.timed(&self.functions().get, self.backend.get(keys)).await
    }

    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        self.timed(&self.functions().scan, self.backend.scan(request)).await
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        self.timed(&self.functions().count, self.backend.count(record_type))
            .await
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        self.timed(&self.functions().types, self.backend.types()).await
    }

    async fn current(&self) -> Result<Position, BackendError> {
        self.timed(&self.functions().current, self.backend.current()).await
    }

    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        self.timed(&self.functions().changes, self.backend.changes(request))
            .await
    }

    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        self.timed(&self.functions().wait, self.backend.wait(seen)).await
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        self.timed(&self.functions().list_options, self.backend.list_options())
            .await
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        let call = self.backend.set_options(record_type, options);
        self.timed(&self.functions().set_options, call).await
    }

    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        self.timed(&self.functions().lease, self.backend.lease(requests, now))
            .await
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        self.timed(&self.functions().get_checkpoint, self.backend.get_checkpoint())
            .await
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        let call = self.backend.set_checkpoint(checkpoint);
        self.timed(&self.functions().set_checkpoint, call).await
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        let call = self.backend.report_services(services, ttl, now);
        self.timed(&self.functions().report_services, call).await
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        self.timed(&self.functions().list_services, self.backend.list_services(now))
            .await
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        let call = self.backend.prune(before, max_changes);
        let pruned = self.timed(&self.functions().prune, call).await?;
        self.instruments.metrics.storage.pruned(pruned.removed);
        Ok(pruned)
    }

    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        let call = self.backend.evict(request, now);
        let evicted = self.timed(&self.functions().evict, call).await?;
        self.instruments.metrics.storage.evicted(evicted.tombstones.len());
        Ok(evicted)
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        self.timed(&self.functions().clear, self.backend.clear(new_server_version))
            .await
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        let statistics = self.timed(&self.functions().measure, self.backend.measure()).await?;
        self.instruments.metrics.storage.measured(&statistics);
        Ok(statistics)
    }

    fn runtime(&self) -> Runtime {
        self.backend.runtime()
    }
}
