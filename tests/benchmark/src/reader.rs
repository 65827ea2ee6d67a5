//! Another client, which reads all records by SyncLatest again and again while calls are measured: in a thread of its own, with
//! which the callers share their core as the kernel sees fit.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;

use crate::client::Target;
use crate::runner::all_latest;

/// The client, until it is stopped.
pub(crate) struct Reader {
    records: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Reader {
    /// Returns once records come.
    pub(crate) async fn start(target: Target) -> anyhow::Result<Self> {
        let (records, ended) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (Arc::clone(&records), Arc::clone(&ended));
        let reading = async move {
            let mut client = target.connect().await?;
            while !end.load(Ordering::Relaxed) {
                let mut stream = client.sync_latest(all_latest()).await?.into_inner();
                while !end.load(Ordering::Relaxed) && stream.message().await?.is_some() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || runtime.block_on(reading));
        let reader = Self { records, ended, thread };
        while reader.records() == 0 && !reader.thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(reader)
    }

    /// How many have come.
    pub(crate) fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Fails if the reading has failed at any time.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let outcome = self.thread.join();
        outcome.map_err(|_| anyhow!("the reader of everything panicked"))?
    }
}
