//! Retention: old changes and expired records go, a bounded number at a time, so that writes pass in between.

use std::sync::Arc;
use std::time::Duration;

use super::BrokerError;
use super::options::OptionsTable;
use super::writer::{EVICT_RECORDS, MOST_CALLS, Writer, warn_of_surplus};
use crate::backend::{Backend, EvictRequest};
use crate::record::{Options, Timestamp};

/// Most changes that one call prunes.
const PRUNE_CHANGES: u32 = 4096;

/// The task that cleans.
pub struct Retention {
    /// Through which it removes.
    pub writer: Writer,
    /// Which types have a time to live.
    pub options: Arc<OptionsTable>,
    /// Asked what the store holds.
    pub backend: Arc<dyn Backend>,
    /// How long changes stay in the change log.
    pub history: Duration,
    /// How often to clean.
    pub interval: Duration,
    /// What the time is.
    pub clock: fn() -> Timestamp,
}

impl Retention {
    /// Cleans every interval until the task is aborted.
    pub async fn run(self) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pruned_for_space = 0;
        loop {
            ticks.tick().await;
            if self.clean().await.is_err() {
                return;
            }
            if let Ok(statistics) = self.backend.measure().await {
                if statistics.pruned_for_space > pruned_for_space {
                    tracing::warn!(
                        changes = statistics.pruned_for_space - pruned_for_space,
                        used_bytes = statistics.used_bytes,
                        limit_bytes = statistics.limit_bytes,
                        "the store has dropped changes before their time to make room: readers that are far behind will \
                         have to sync again; raise its limit or shorten the history"
                    );
                }
                pruned_for_space = statistics.pruned_for_space;
            }
        }
    }

    /// Takes every step, whatever became of the others: a store that is full fails the first ones, and the later ones are
    /// what makes room.
    async fn clean(&self) -> Result<(), ShuttingDown> {
        go_on(
            "set the options that Pomerium needs",
            self.writer.set_required_options().await,
        )?;
        go_on("prune old changes", self.prune().await)?;
        for (record_type, options) in self.options.all().iter() {
            go_on(
                "remove records beyond their time to live or their type's capacity",
                self.evict(record_type, options).await,
            )?;
        }
        Ok(())
    }

    async fn prune(&self) -> Result<(), BrokerError> {
        let before = (self.clock)().earlier(self.history);
        for _ in 0..MOST_CALLS {
            if !self.writer.prune(before, PRUNE_CHANGES).await?.more {
                return Ok(());
            }
        }
        tracing::warn!(
            calls = MOST_CALLS,
            "the store still says that there are old changes to prune; going on later"
        );
        Ok(())
    }

    async fn evict(&self, record_type: &str, options: &Options) -> Result<(), BrokerError> {
        if options.ttl.is_none() && options.capacity.is_none() {
            return Ok(());
        }
        for _ in 0..MOST_CALLS {
            let request = EvictRequest {
                record_type: record_type.to_owned(),
                modified_before: options.ttl.map(|ttl| (self.clock)().earlier(ttl)),
                keep: options.capacity,
                max_records: EVICT_RECORDS,
            };
            let evicted = self.writer.evict(request).await?;
            if !evicted.more || evicted.tombstones.is_empty() {
                return Ok(());
            }
        }
        warn_of_surplus(record_type);
        Ok(())
    }
}

/// There is nothing more to clean.
struct ShuttingDown;

/// Logs why a step failed.
fn go_on(step: &str, outcome: Result<(), BrokerError>) -> Result<(), ShuttingDown> {
    match outcome {
        Ok(()) => Ok(()),
        Err(BrokerError::ShuttingDown) => Err(ShuttingDown),
        Err(error) => {
            tracing::warn!(%error, step, "could not clean the store; trying again later");
            Ok(())
        }
    }
}
