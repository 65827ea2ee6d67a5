//! `trait Backend`, carried to a plugin: converts the question, calls, converts the answer and holds it to the laws.

use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use wasmtime::component::Accessor;

use super::bindings::store::Guest;
use super::bindings::types;
use super::convert;
use super::instance::Instance;
use super::laws::{self, Broken, PutShape};
use super::state::State;
use crate::backend::{
    Backend, BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, LeaseRequest, Observed, Position,
    Pruned, PutResult, ScanPage, ScanRequest, Statistics, StoreInfo,
};
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp};

/// A plugin is asked whether it can answer within a second; twice as long without an answer is one too.
const HEALTH: Duration = Duration::from_secs(2);

/// What a plugin's function returns, as the generated code has it.
type Returned<'a, R> = BoxFuture<'a, wasmtime::Result<Result<R, types::Error>>>;

/// A store behind a plugin.
pub(super) struct ComponentBackend {
    /// The plugin's name, for messages.
    plugin: String,
    /// The instance that answers.
    instance: Instance,
}

impl ComponentBackend {
    /// Opens the store of an instance that has just been started.
    ///
    /// # Errors
    ///
    /// What the plugin says, or that it broke a law in saying so.
    pub(super) async fn open(
        plugin: &str,
        instance: Instance,
        connection_string: Option<String>,
        new_server_version: u64,
    ) -> Result<(Self, StoreInfo), BackendError> {
        let plugin = plugin.to_owned();
        let backend = Self { plugin, instance };
        let settings = convert::settings(connection_string, new_server_version);
        let returned = backend
            .instance
            .call(move |accessor, guest| guest.call_open(accessor, settings).boxed())
            .await?;
        let info = match returned {
            Ok(info) => convert::store_info(info),
            Err(types::Error::Pruned(_)) => {
                let broken = Broken::new("only `changes` fails with `pruned`");
                return Err(broken.into_error(&backend.plugin, "open"));
            }
            Err(error) => return Err(convert::error(error)),
        };
        backend.hold("open", laws::position(&info.position))?;
        Ok((backend, info))
    }

    /// Makes a call; for every function but `open` and `changes`, which alone may fail in ways of their own.
    async fn ask<R, C>(&self, function: &'static str, call: C) -> Result<R, BackendError>
    where
        R: Send + 'static,
        C: for<'a> FnOnce(&'a Accessor<State>, &'a Guest) -> Returned<'a, R> + Send + 'static,
    {
        self.instance.call(call).await?.map_err(|error| {
            let broken = match error {
                types::Error::Configuration(_) => Broken::new("only `open` fails with `configuration`"),
                types::Error::Pruned(_) => Broken::new("only `changes` fails with `pruned`"),
                error => return convert::error(error),
            };
            broken.into_error(&self.plugin, function)
        })
    }

    fn hold<R>(&self, function: &'static str, kept: Result<R, Broken>) -> Result<R, BackendError> {
        kept.map_err(|broken| broken.into_error(&self.plugin, function))
    }
}

#[async_trait]
impl Backend for ComponentBackend {
    async fn close(&self) -> Result<(), BackendError> {
        self.ask("close", |accessor, guest| guest.call_close(accessor).boxed())
            .await
    }

    async fn health(&self) -> Result<(), BackendError> {
        let answer = self.ask("health", |accessor, guest| guest.call_health(accessor).boxed());
        match tokio::time::timeout(HEALTH, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(BackendError::Unavailable(format!(
                "the plugin {:?} did not answer within {HEALTH:?}: it computes, or waits for its store",
                self.plugin
            ))),
        }
    }

    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let shape = PutShape::new(&batches);
        let batches = convert::to_batches(batches);
        let result = self
            .ask("put", move |accessor, guest| {
                guest.call_put(accessor, batches, now.0).boxed()
            })
            .await?;
        let result = self.hold("put", convert::put_result(result))?;
        self.hold("put", shape.check(&result))?;
        Ok(result)
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        let asked = convert::to_keys(keys.clone());
        let answers = self
            .ask("get", move |accessor, guest| guest.call_get(accessor, asked).boxed())
            .await?;
        let answers = convert::answers(answers);
        self.hold("get", laws::answers(&keys, &answers))?;
        Ok(answers)
    }

    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        let (after, record_type) = (request.after.clone(), request.record_type.clone());
        let bounds = request.bounds;
        let request = convert::to_scan_request(request);
        let page = self
            .ask("scan", move |accessor, guest| {
                guest.call_scan(accessor, request).boxed()
            })
            .await?;
        let page = convert::scan_page(page);
        let kept = laws::scan_page(after.as_ref(), record_type.as_deref(), bounds, &page);
        self.hold("scan", kept)?;
        Ok(page)
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        self.ask("count", move |accessor, guest| {
            guest.call_count(accessor, record_type).boxed()
        })
        .await
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        let types = self
            .ask("list-types", |accessor, guest| guest.call_list_types(accessor).boxed())
            .await?;
        self.hold("list-types", laws::types(&types))?;
        Ok(types)
    }

    async fn current(&self) -> Result<Position, BackendError> {
        let position = self
            .ask("current", |accessor, guest| guest.call_current(accessor).boxed())
            .await?;
        let position = convert::position(position);
        self.hold("current", laws::position(&position))?;
        Ok(position)
    }

    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        let asked = convert::to_changes_request(request.clone());
        let returned = self
            .instance
            .call(move |accessor, guest| guest.call_changes(accessor, asked).boxed())
            .await?;
        let page = match returned {
            Ok(page) => convert::changes_page(page),
            Err(types::Error::Pruned(version)) => {
                self.hold("changes", laws::pruned_beyond(request.after, version))?;
                return Err(BackendError::Pruned(version));
            }
            Err(types::Error::Configuration(_)) => {
                let broken = Broken::new("only `open` fails with `configuration`");
                return Err(broken.into_error(&self.plugin, "changes"));
            }
            Err(error) => return Err(convert::error(error)),
        };
        self.hold("changes", laws::changes_page(&request, &page))?;
        Ok(page)
    }

    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        let seen = convert::to_observed(seen);
        let observed = self
            .ask("wait", move |accessor, guest| guest.call_wait(accessor, seen).boxed())
            .await?;
        let observed = convert::observed(observed);
        self.hold("wait", laws::server_version(observed.server_version))?;
        Ok(observed)
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        let options = self
            .ask("list-options", |accessor, guest| {
                guest.call_list_options(accessor).boxed()
            })
            .await?;
        let options = convert::typed_options(options);
        self.hold("list-options", laws::typed_options(&options))?;
        Ok(options)
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        let options = options.map(convert::to_options);
        self.ask("set-options", move |accessor, guest| {
            guest.call_set_options(accessor, record_type, options).boxed()
        })
        .await
    }

    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        let asked = requests.len();
        let requests = convert::to_lease_requests(requests);
        let answers = self
            .ask("lease", move |accessor, guest| {
                guest.call_lease(accessor, requests, now.0).boxed()
            })
            .await?;
        self.hold("lease", laws::leases(asked, answers.len()))?;
        Ok(answers)
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        let checkpoint = self
            .ask("get-checkpoint", |accessor, guest| {
                guest.call_get_checkpoint(accessor).boxed()
            })
            .await?;
        Ok(convert::checkpoint(checkpoint))
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        let checkpoint = convert::to_checkpoint(checkpoint);
        self.ask("set-checkpoint", move |accessor, guest| {
            guest.call_set_checkpoint(accessor, checkpoint).boxed()
        })
        .await
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        let services = convert::to_services(services);
        let ttl = convert::to_duration(ttl);
        self.ask("report-services", move |accessor, guest| {
            guest.call_report_services(accessor, services, ttl, now.0).boxed()
        })
        .await
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        let services = self
            .ask("list-services", move |accessor, guest| {
                guest.call_list_services(accessor, now.0).boxed()
            })
            .await?;
        let services = convert::services(services);
        self.hold("list-services", laws::services(&services))?;
        Ok(services)
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        let pruned = self
            .ask("prune", move |accessor, guest| {
                guest.call_prune(accessor, before.0, max_changes).boxed()
            })
            .await?;
        let pruned = convert::pruned(pruned);
        self.hold("prune", laws::pruned(max_changes, &pruned))?;
        Ok(pruned)
    }

    async fn evict(&self, request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        let asked = convert::to_evict_request(request.clone());
        let evicted = self
            .ask("evict", move |accessor, guest| {
                guest.call_evict(accessor, asked, now.0).boxed()
            })
            .await?;
        let evicted = convert::evicted(evicted);
        self.hold("evict", laws::evicted(&request, &evicted))?;
        Ok(evicted)
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        let position = self
            .ask("clear", move |accessor, guest| {
                guest.call_clear(accessor, new_server_version).boxed()
            })
            .await?;
        let position = convert::position(position);
        self.hold("clear", laws::cleared(new_server_version, &position))?;
        Ok(position)
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        let statistics = self
            .ask("measure", |accessor, guest| guest.call_measure(accessor).boxed())
            .await?;
        let statistics = convert::statistics(statistics);
        self.hold("measure", laws::statistics(&statistics))?;
        Ok(statistics)
    }
}
