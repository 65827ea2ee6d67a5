//! A native backend that a test listens to and interferes with, at every call that the broker makes.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use databroker_host::backend::native::Native;
use databroker_host::backend::*;
use databroker_host::record::{Checkpoint, Key, Options, Record, Service, Timestamp};
use futures::future::BoxFuture;

/// A call of the broker's, before it reaches the store or after the store has answered it.
#[derive(Clone, Debug)]
pub struct Call {
    /// The function's name, as in `Backend`.
    pub function: &'static str,
    /// False before the store has seen the call, true after it has carried it out.
    pub done: bool,
    /// The type it is about, if it is about one.
    pub record_type: Option<String>,
    /// How many keys or batches it carries.
    pub size: usize,
}

impl Call {
    pub fn begins(&self, function: &str) -> bool {
        !self.done && self.function == function
    }

    pub fn ends(&self, function: &str) -> bool {
        self.done && self.function == function
    }
}

type Hook = dyn Fn(Call) -> BoxFuture<'static, Result<(), BackendError>> + Send + Sync;

/// The backend. What its hook fails with, the broker is told: before the call instead of making it, after it instead of its
/// answer.
pub struct Tap {
    inner: Arc<Mutex<Arc<Native>>>,
    hook: Box<Hook>,
    lie: Option<Lie>,
}

/// What it answers that is not so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// That there are more changes to prune, always.
    MoreToPrune,
    /// That there are more records of a type to remove, always; each time it has one for it.
    MoreToEvict,
    /// That there is something to see, without waiting for it.
    SomethingToSee,
    /// That the options are the same as they were at the first put, after each.
    SameOptions,
}

impl Tap {
    pub fn new<F>(inner: Arc<Native>, hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Result<(), BackendError>> + Send + 'static,
    {
        Self::replaceable(Arc::new(Mutex::new(inner)), hook)
    }

    /// One that answers something that is not so.
    pub fn lying<F>(inner: Arc<Native>, lie: Lie, hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Result<(), BackendError>> + Send + 'static,
    {
        let hook = Box::new(move |call| -> BoxFuture<'static, _> { Box::pin(hook(call)) });
        Arc::new(Self {
            inner: Arc::new(Mutex::new(inner)),
            hook,
            lie: Some(lie),
        })
    }

    /// One that a test puts another store into.
    pub fn replaceable<F>(inner: Arc<Mutex<Arc<Native>>>, hook: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Result<(), BackendError>> + Send + 'static,
    {
        let hook = Box::new(move |call| -> BoxFuture<'static, _> { Box::pin(hook(call)) });
        Arc::new(Self { inner, hook, lie: None })
    }

    fn inner(&self) -> Arc<Native> {
        Arc::clone(&self.inner.lock().unwrap())
    }

    async fn tap<T>(
        &self,
        function: &'static str,
        record_type: Option<String>,
        size: usize,
        answer: impl Future<Output = Result<T, BackendError>> + Send,
    ) -> Result<T, BackendError> {
        let call = Call {
            function,
            done: false,
            record_type,
            size,
        };
        (self.hook)(call.clone()).await?;
        let answer = answer.await?;
        (self.hook)(Call { done: true, ..call }).await?;
        Ok(answer)
    }
}

#[async_trait]
impl Backend for Tap {
    async fn close(&self) -> Result<(), BackendError> {
        self.tap("close", None, 0, self.inner().close()).await
    }
    async fn health(&self) -> Result<(), BackendError> {
        self.tap("health", None, 0, self.inner().health()).await
    }
    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let mut result = self
            .tap("put", None, batches.len(), self.inner().put(batches, now))
            .await?;
        if self.lie == Some(Lie::SameOptions) {
            result.options_revision = Some(1);
        }
        Ok(result)
    }
    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        self.tap("get", None, keys.len(), self.inner().get(keys)).await
    }
    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        self.tap("scan", request.record_type.clone(), 0, self.inner().scan(request))
            .await
    }
    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        self.tap("count", record_type.clone(), 0, self.inner().count(record_type))
            .await
    }
    async fn types(&self) -> Result<Vec<String>, BackendError> {
        self.tap("types", None, 0, self.inner().types()).await
    }
    async fn current(&self) -> Result<Position, BackendError> {
        self.tap("current", None, 0, self.inner().current()).await
    }
    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        self.tap("changes", request.record_type.clone(), 0, self.inner().changes(request))
            .await
    }
    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        let is_lie = self.lie == Some(Lie::SomethingToSee);
        let seen = if is_lie { Observed::default() } else { seen };
        self.tap("wait", None, 0, self.inner().wait(seen)).await
    }
    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        self.tap("list_options", None, 0, self.inner().list_options()).await
    }
    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        let of_type = Some(record_type.clone());
        self.tap(
            "set_options",
            of_type,
            0,
            self.inner().set_options(record_type, options),
        )
        .await
    }
    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        self.tap("lease", None, requests.len(), self.inner().lease(requests, now))
            .await
    }
    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        self.tap("get_checkpoint", None, 0, self.inner().get_checkpoint()).await
    }
    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        self.tap("set_checkpoint", None, 0, self.inner().set_checkpoint(checkpoint))
            .await
    }
    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        let size = services.len();
        self.tap(
            "report_services",
            None,
            size,
            self.inner().report_services(services, ttl, now),
        )
        .await
    }
    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        self.tap("list_services", None, 0, self.inner().list_services(now))
            .await
    }
    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        let pruned = self
            .tap("prune", None, 0, self.inner().prune(before, max_changes))
            .await?;
        Ok(match self.lie {
            Some(Lie::MoreToPrune) => Pruned {
                removed: 1,
                more: true,
                ..pruned
            },
            _ => pruned,
        })
    }
    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        let is_lie = self.lie == Some(Lie::MoreToEvict);
        if is_lie {
            let position = self.inner().current().await?;
            let made_up = Change {
                key: Key::new(&request.record_type, position.latest_version.to_string()),
                operation: Operation::Upsert {
                    data: None,
                    network: None,
                },
                expected: None,
            };
            let changes = vec![made_up];
            self.inner().put(vec![Batch { changes }], now).await?;
        }
        let of_type = Some(request.record_type.clone());
        let evicted = self.tap("evict", of_type, 0, self.inner().evict(request, now)).await?;
        Ok(Evicted {
            more: evicted.more || is_lie,
            ..evicted
        })
    }
    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        self.tap("clear", None, 0, self.inner().clear(new_server_version)).await
    }
    async fn measure(&self) -> Result<Statistics, BackendError> {
        self.tap("measure", None, 0, self.inner().measure()).await
    }
}
