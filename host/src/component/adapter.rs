//! `trait Backend`, carried to a plugin: converts the question, calls, converts the answer and holds it to the laws.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, Lower, TypedFunc};

use super::bindings::store::Guest;
use super::bindings::types;
use super::convert;
use super::inspect::Inspection;
use super::instance::Instance;
use super::laws::{self, Broken, PutShape};
use crate::backend::{
    Backend, BackendError, Batch, ChangesPage, ChangesRequest, EvictRequest, Evicted, LeaseRequest, Observed,
    PluginIdentity, Position, Pruned, PutResult, Runtime, ScanPage, ScanRequest, Statistics, StoreInfo,
};
use crate::record::{Checkpoint, Key, Options, Record, Service, Timestamp, Version};

/// A plugin's function, as the generated code has it.
type Function<P, R> = TypedFunc<P, (Result<R, types::Error>,)>;

/// A store behind a plugin.
pub(super) struct ComponentBackend {
    /// The plugin's name, for messages.
    plugin: String,
    /// The instance that answers.
    instance: Instance,
    /// The highest version that a write was answered with. Writes come one at a time.
    last_version: AtomicU64,
    /// The server version of a store that nobody else clears.
    server_version: AtomicU64,
    /// Which plugin it is, for metrics and health.
    identity: PluginIdentity,
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
        let backend = Self {
            identity: PluginIdentity {
                name: plugin.clone(),
                ..Default::default()
            },
            plugin,
            instance,
            last_version: AtomicU64::new(0),
            server_version: AtomicU64::new(0),
        };
        let settings = convert::settings(connection_string, new_server_version);
        let info = backend.ask("open", Guest::func_open, (settings,)).await?;
        let info = convert::store_info(info);
        backend.hold("open", laws::position(&info.position))?;
        backend.wrote(info.position.latest_version);
        backend
            .server_version
            .store(info.position.server_version, Ordering::Relaxed);
        Ok((backend, info))
    }

    /// Where the store stands at least, as far as writes were answered, if only this host writes to it.
    pub(super) fn position(&self) -> Position {
        Position {
            server_version: self.server_version.load(Ordering::Relaxed),
            earliest_version: 0,
            latest_version: self.last_version(),
        }
    }

    /// True once the instance does not answer any more.
    pub(super) fn has_ended(&self) -> bool {
        self.instance.has_ended()
    }

    /// Waits until the instance does not answer any more; says why.
    pub(super) async fn ended(&self) -> String {
        self.instance.ended().await
    }

    /// Says which plugin it is.
    pub(super) fn identified(mut self, inspection: &Inspection) -> Self {
        self.identity.digest.clone_from(&inspection.digest);
        self.identity.world = inspection.world.clone().unwrap_or_default();
        self
    }

    /// Calls a function and holds its error to the laws.
    async fn ask<P, R>(
        &self,
        function: &'static str,
        select: fn(&Guest) -> Function<P, R>,
        parameters: P,
    ) -> Result<R, BackendError>
    where
        P: ComponentNamedList + Lower + Send + Sync + 'static,
        R: ComponentType + Lift + Send + Sync + 'static,
    {
        let returned = self.instance.call(function, select, parameters).await?;
        self.returned(function, returned)
    }

    /// Holds the error of a call to the laws.
    fn returned<R>(&self, function: &'static str, returned: Result<R, types::Error>) -> Result<R, BackendError> {
        returned.map_err(|error| {
            let broken = match error {
                types::Error::Configuration(_) if function != "open" => {
                    Broken::new("only `open` fails with `configuration`")
                }
                types::Error::Pruned(_) if function != "changes" => Broken::new("only `changes` fails with `pruned`"),
                error => return convert::error(error),
            };
            broken.into_error(&self.plugin, function)
        })
    }

    /// The highest version that a write was answered with: the next write's are higher.
    fn last_version(&self) -> Version {
        self.last_version.load(Ordering::Relaxed)
    }

    fn wrote(&self, version: Version) {
        self.last_version.fetch_max(version, Ordering::Relaxed);
    }

    /// So many records, and no more than it is asked for at once.
    fn at_most(&self, records: u32) -> u32 {
        records.min(self.instance.limits().page_records.max(1))
    }

    /// Names the function in the error of an answer that breaks a law.
    pub(super) fn hold<R>(&self, function: &'static str, kept: Result<R, Broken>) -> Result<R, BackendError> {
        kept.map_err(|broken| broken.into_error(&self.plugin, function))
    }
}

#[async_trait]
impl Backend for ComponentBackend {
    async fn close(&self) -> Result<(), BackendError> {
        self.ask("close", Guest::func_close, ()).await
    }

    async fn health(&self) -> Result<(), BackendError> {
        self.ask("health", Guest::func_health, ()).await
    }

    async fn put(&self, batches: Vec<Batch>, now: Timestamp) -> Result<PutResult, BackendError> {
        let shape = PutShape::new(&batches);
        let batches = convert::to_batches(batches);
        let result = self.ask("put", Guest::func_put, (batches, now.0)).await?;
        let result = self.hold("put", convert::put_result(result))?;
        self.wrote(self.hold("put", shape.check(self.last_version(), &result))?);
        Ok(result)
    }

    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Record>>, BackendError> {
        let asked = convert::to_keys(keys.clone());
        let returned = self
            .instance
            .call_for(keys.len(), "get", Guest::func_get, (asked,))
            .await?;
        let answers = self.returned("get", returned)?;
        let answers = convert::answers(answers);
        self.hold("get", laws::answers(&keys, &answers))?;
        Ok(answers)
    }

    async fn scan(&self, mut request: ScanRequest) -> Result<ScanPage, BackendError> {
        request.bounds.records = self.at_most(request.bounds.records);
        let (after, record_type) = (request.after.clone(), request.record_type.clone());
        let bounds = request.bounds;
        let request = convert::to_scan_request(request);
        let page = self.ask("scan", Guest::func_scan, (request,)).await?;
        let page = convert::scan_page(page);
        let kept = laws::scan_page(after.as_ref(), record_type.as_deref(), bounds, &page);
        self.hold("scan", kept)?;
        Ok(page)
    }

    async fn count(&self, record_type: Option<String>) -> Result<u64, BackendError> {
        self.ask("count", Guest::func_count, (record_type,)).await
    }

    async fn types(&self) -> Result<Vec<String>, BackendError> {
        let types = self.ask("list-types", Guest::func_list_types, ()).await?;
        self.hold("list-types", laws::types(&types))?;
        Ok(types)
    }

    async fn current(&self) -> Result<Position, BackendError> {
        let position = self.ask("current", Guest::func_current, ()).await?;
        let position = convert::position(position);
        self.hold("current", laws::position(&position))?;
        Ok(position)
    }

    async fn changes(&self, mut request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        request.bounds.records = self.at_most(request.bounds.records);
        let asked = convert::to_changes_request(request.clone());
        let page = match self.ask("changes", Guest::func_changes, (asked,)).await {
            Ok(page) => convert::changes_page(page),
            Err(BackendError::Pruned(version)) => {
                self.hold("changes", laws::pruned_beyond(request.after, version))?;
                return Err(BackendError::Pruned(version));
            }
            Err(error) => return Err(error),
        };
        self.hold("changes", laws::changes_page(&request, &page))?;
        Ok(page)
    }

    async fn wait(&self, seen: Observed) -> Result<Observed, BackendError> {
        let seen = convert::to_observed(seen);
        let observed = self.ask("wait", Guest::func_wait, (seen,)).await?;
        let observed = convert::observed(observed);
        self.hold("wait", laws::server_version(observed.server_version))?;
        Ok(observed)
    }

    async fn list_options(&self) -> Result<Vec<(String, Options)>, BackendError> {
        let options = self.ask("list-options", Guest::func_list_options, ()).await?;
        let options = convert::typed_options(options);
        self.hold("list-options", laws::typed_options(&options))?;
        Ok(options)
    }

    async fn set_options(&self, record_type: String, options: Option<Options>) -> Result<(), BackendError> {
        let options = options.map(convert::to_options);
        self.ask("set-options", Guest::func_set_options, (record_type, options))
            .await
    }

    async fn lease(&self, requests: Vec<LeaseRequest>, now: Timestamp) -> Result<Vec<bool>, BackendError> {
        let asked = requests.len();
        let requests = convert::to_lease_requests(requests);
        let answers = self.ask("lease", Guest::func_lease, (requests, now.0)).await?;
        self.hold("lease", laws::leases(asked, answers.len()))?;
        Ok(answers)
    }

    async fn get_checkpoint(&self) -> Result<Checkpoint, BackendError> {
        let checkpoint = self.ask("get-checkpoint", Guest::func_get_checkpoint, ()).await?;
        Ok(convert::checkpoint(checkpoint))
    }

    async fn set_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), BackendError> {
        let checkpoint = convert::to_checkpoint(checkpoint);
        self.ask("set-checkpoint", Guest::func_set_checkpoint, (checkpoint,))
            .await
    }

    async fn report_services(&self, services: Vec<Service>, ttl: Duration, now: Timestamp) -> Result<(), BackendError> {
        let services = convert::to_services(services);
        let ttl = convert::to_duration(ttl);
        self.ask("report-services", Guest::func_report_services, (services, ttl, now.0))
            .await
    }

    async fn list_services(&self, now: Timestamp) -> Result<Vec<Service>, BackendError> {
        let services = self.ask("list-services", Guest::func_list_services, (now.0,)).await?;
        let services = convert::services(services);
        self.hold("list-services", laws::services(&services))?;
        Ok(services)
    }

    async fn prune(&self, before: Timestamp, max_changes: u32) -> Result<Pruned, BackendError> {
        let pruned = self.ask("prune", Guest::func_prune, (before.0, max_changes)).await?;
        let pruned = convert::pruned(pruned);
        self.hold("prune", laws::pruned(max_changes, &pruned))?;
        Ok(pruned)
    }

    async fn evict(&self, mut request: EvictRequest, now: Timestamp) -> Result<Evicted, BackendError> {
        request.max_records = self.at_most(request.max_records);
        let asked = convert::to_evict_request(request.clone());
        let evicted = self.ask("evict", Guest::func_evict, (asked, now.0)).await?;
        let evicted = convert::evicted(evicted);
        self.wrote(self.hold("evict", laws::evicted(self.last_version(), &request, &evicted))?);
        Ok(evicted)
    }

    async fn clear(&self, new_server_version: u64) -> Result<Position, BackendError> {
        let position = self.ask("clear", Guest::func_clear, (new_server_version,)).await?;
        let position = convert::position(position);
        self.hold(
            "clear",
            laws::cleared(self.last_version(), new_server_version, &position),
        )?;
        self.server_version.store(new_server_version, Ordering::Relaxed);
        Ok(position)
    }

    async fn measure(&self) -> Result<Statistics, BackendError> {
        let statistics = self.ask("measure", Guest::func_measure, ()).await?;
        let statistics = convert::statistics(statistics);
        self.hold("measure", laws::statistics(&statistics))?;
        Ok(statistics)
    }

    fn runtime(&self) -> Runtime {
        Runtime {
            plugin: Some(self.identity.clone()),
            memory_bytes: self.instance.memory_bytes(),
            log_lines_dropped: self.instance.log_lines_dropped(),
            restarts: 0,
            // Whoever supervises all instances counts them, and what their database does.
            refusals: Vec::new(),
            database: None,
        }
    }
}
