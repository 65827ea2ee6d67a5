//! What is asked of the storage plugin, how it answers, and what it holds.
//!
//! All of it is seen at the one border that every question crosses, `trait Backend`. Numbers of records and bytes are
//! what the store last told: it is asked once per cleaning interval, not once per scrape, since counting may cost it
//! much.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::histogram::{DURATIONS, Histogram, Reading, SIZES};
use super::page::Page;
use crate::backend::{BackendError, Runtime, Statistics, TypeStatistics};

/// Most types that are shown by name, and most bytes of a name; all the rest together is `other`.
const TYPES: usize = 100;
const TYPE_BYTES: usize = 200;
const OTHER: &str = "other";

/// Why calls fail.
const ERRORS: [&str; 10] = [
    "configuration",
    "unavailable",
    "not_called",
    "exhausted",
    "read_only",
    "pruned",
    "corrupt",
    "internal",
    "stopped",
    "closed",
];

/// One function of the storage interface.
pub struct Function {
    /// Its name in the interface.
    pub name: &'static str,
    succeeded: Histogram,
    failed: Histogram,
    /// As [`ERRORS`].
    errors: [AtomicU64; ERRORS.len()],
}

impl Function {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            succeeded: Histogram::new(DURATIONS),
            failed: Histogram::new(DURATIONS),
            errors: Default::default(),
        }
    }

    /// A call has ended after so long.
    pub fn ended<T>(&self, after: Duration, outcome: &Result<T, BackendError>) {
        match outcome {
            Ok(_) => self.succeeded.observe_duration(after),
            Err(error) => {
                self.failed.observe_duration(after);
                let place = ERRORS.iter().position(|name| *name == error_name(error));
                if let Some(count) = place.and_then(|place| self.errors.get(place)) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
}

fn error_name(error: &BackendError) -> &'static str {
    match error {
        BackendError::Configuration(_) => "configuration",
        BackendError::Unavailable(_) => "unavailable",
        BackendError::NotCalled(_) => "not_called",
        BackendError::Exhausted(_) => "exhausted",
        BackendError::ReadOnly(_) => "read_only",
        BackendError::Pruned(_) => "pruned",
        BackendError::Corrupt(_) => "corrupt",
        BackendError::Internal(_) => "internal",
        BackendError::Stopped(_) => "stopped",
        BackendError::Closed => "closed",
    }
}

macro_rules! functions {
    ($($field:ident: $name:literal,)*) => {
        /// The functions of the storage interface that are called once a store is open.
        pub struct Functions {
            $(#[doc = $name] pub $field: Function,)*
        }

        impl Functions {
            fn new() -> Self {
                Self { $($field: Function::new($name),)* }
            }

            fn all(&self) -> Vec<&Function> {
                vec![$(&self.$field,)*]
            }
        }
    };
}

functions! {
    close: "close",
    health: "health",
    put: "put",
    get: "get",
    scan: "scan",
    count: "count",
    types: "list-types",
    current: "current",
    changes: "changes",
    wait: "wait",
    list_options: "list-options",
    set_options: "set-options",
    lease: "lease",
    get_checkpoint: "get-checkpoint",
    set_checkpoint: "set-checkpoint",
    report_services: "report-services",
    list_services: "list-services",
    prune: "prune",
    evict: "evict",
    clear: "clear",
    measure: "measure",
}

/// The store, as it is seen from here.
pub struct Storage {
    /// What is asked of it.
    pub functions: Functions,
    /// Batches and records that one put carries.
    commit_batches: Histogram,
    commit_records: Histogram,
    pruned_changes: AtomicU64,
    evicted_records: AtomicU64,
    /// Whether it answered when it was last asked how it is.
    up: AtomicBool,
    statistics: Mutex<Option<Statistics>>,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            functions: Functions::new(),
            commit_batches: Histogram::new(SIZES),
            commit_records: Histogram::new(SIZES),
            pruned_changes: AtomicU64::new(0),
            evicted_records: AtomicU64::new(0),
            up: AtomicBool::new(false),
            statistics: Mutex::new(None),
        }
    }
}

impl Storage {
    /// One put carries so many batches, which have so many steps together.
    pub fn committing(&self, batches: usize, records: usize) {
        self.commit_batches.observe(u64::try_from(batches).unwrap_or(u64::MAX));
        self.commit_records.observe(u64::try_from(records).unwrap_or(u64::MAX));
    }

    /// So many changes were removed from the change log.
    pub fn pruned(&self, changes: u32) {
        self.pruned_changes.fetch_add(u64::from(changes), Ordering::Relaxed);
    }

    /// So many records were removed since they were too old or too many.
    pub fn evicted(&self, records: usize) {
        let records = u64::try_from(records).unwrap_or(u64::MAX);
        self.evicted_records.fetch_add(records, Ordering::Relaxed);
    }

    /// Whether the store answers.
    pub fn is_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// What the store holds.
    pub fn measured(&self, statistics: &Statistics) {
        *self.statistics.lock() = Some(statistics.clone());
    }

    /// Writes all of it.
    pub fn encode(&self, page: &mut Page<'_>, runtime: &Runtime) -> fmt::Result {
        self.encode_calls(page, runtime)?;
        self.encode_content(page)?;
        let plugin = runtime.plugin.as_ref();
        page.gauges(
            "plugin_info",
            "The storage plugin; always 1.",
            plugin.map(|plugin| {
                let labels = vec![
                    ("name", Cow::from(&plugin.name)),
                    ("digest", Cow::from(&plugin.digest)),
                    ("world", Cow::from(&plugin.world)),
                ];
                (labels, 1)
            }),
        )?;
        page.gauge(
            "plugin_up",
            "1 if the storage plugin answered when it was last asked how it is.",
            u64::from(self.up.load(Ordering::Relaxed)),
        )?;
        page.gauge(
            "plugin_memory_bytes",
            "Memory of the storage plugin's instance, in bytes.",
            runtime.memory_bytes,
        )?;
        page.counter(
            "plugin_restarts",
            "How often a new instance took the place of one that had stopped.",
            runtime.restarts,
        )?;
        page.counters(
            "plugin_refusals",
            "How often the storage plugin was refused what it is not granted, by kind.",
            runtime
                .refusals
                .iter()
                .map(|(kind, count)| (vec![("kind", Cow::from(*kind))], *count)),
        )?;
        page.counter(
            "plugin_log_lines_dropped",
            "Lines that the storage plugin logged and that were left out, since there were too many.",
            runtime.log_lines_dropped,
        )
    }

    fn encode_calls(&self, page: &mut Page<'_>, runtime: &Runtime) -> fmt::Result {
        let functions: Vec<(&Function, Reading, Reading)> = self
            .functions
            .all()
            .into_iter()
            .map(|function| (function, function.succeeded.read(), function.failed.read()))
            .collect();
        page.counters(
            "plugin_calls",
            "Calls of the storage plugin that have ended, by function of the interface and result.",
            functions.iter().flat_map(|(function, succeeded, _)| {
                let errors = ERRORS
                    .iter()
                    .zip(&function.errors)
                    .map(|(name, count)| (*name, count.load(Ordering::Relaxed)));
                [("ok", succeeded.count())]
                    .into_iter()
                    .chain(errors)
                    .filter(|(_, count)| *count > 0)
                    .map(|(result, count)| {
                        let labels = vec![("function", function.name.into()), ("result", result.into())];
                        (labels, count)
                    })
            }),
        )?;
        page.histograms(
            "plugin_call_duration_seconds",
            "How long calls of the storage plugin took, waiting for it to be free included.",
            1e9,
            functions.iter().filter_map(|(function, succeeded, failed)| {
                let all = succeeded.clone().and(failed);
                (all.count() > 0).then(|| (vec![("function", function.name.into())], all))
            }),
        )?;
        let backend = runtime.plugin.as_ref().map_or("native", |plugin| &plugin.name);
        page.histograms(
            "pomerium_storage_operation_duration_ms",
            "How long calls of the storage plugin took in milliseconds, under Pomerium's name.",
            1e6,
            functions.iter().flat_map(|(function, succeeded, failed)| {
                [("success", succeeded), ("error", failed)]
                    .into_iter()
                    .filter(|(_, reading)| reading.count() > 0)
                    .map(|(result, reading)| {
                        let labels = vec![
                            ("service", super::SERVICE.into()),
                            ("backend", Cow::from(backend)),
                            ("operation", function.name.into()),
                            ("result", result.into()),
                        ];
                        (labels, reading.clone())
                    })
            }),
        )
    }

    fn encode_content(&self, page: &mut Page<'_>) -> fmt::Result {
        page.histograms(
            "databroker_commit_batches",
            "Puts that the store was given in one go.",
            1.0,
            [(Vec::new(), self.commit_batches.read())],
        )?;
        page.histograms(
            "databroker_commit_records",
            "Records that the store was given in one go.",
            1.0,
            [(Vec::new(), self.commit_records.read())],
        )?;
        page.counter(
            "databroker_pruned_changes",
            "Changes that were removed from the change log, being older than its history.",
            self.pruned_changes.load(Ordering::Relaxed),
        )?;
        page.counter(
            "databroker_evicted_records",
            "Records that were removed, being too old or too many for the options of their type.",
            self.evicted_records.load(Ordering::Relaxed),
        )?;
        let Some(statistics) = self.statistics.lock().clone() else {
            return Ok(());
        };
        let types = bounded(&statistics.types);
        let samples = |value: fn(&(u64, u64)) -> u64| {
            types
                .iter()
                .map(move |(name, counts)| (vec![("type", Cow::from(*name))], value(counts)))
                .collect::<Vec<_>>()
        };
        page.gauges(
            "databroker_records",
            "Live records by type, when the store was last cleaned.",
            samples(|counts| counts.0),
        )?;
        page.gauges(
            "databroker_record_bytes",
            "Bytes of live records by type, when the store was last cleaned.",
            samples(|counts| counts.1),
        )?;
        page.gauge(
            "databroker_change_log_changes",
            "Changes in the change log, when the store was last cleaned.",
            statistics.changes,
        )?;
        page.gauge(
            "databroker_store_used_bytes",
            "Bytes that count against the store's limit, when it was last cleaned.",
            statistics.used_bytes,
        )?;
        page.gauges(
            "databroker_store_limit_bytes",
            "The store's limit in bytes, where it has one.",
            statistics.limit_bytes.map(|bytes| (Vec::new(), bytes)),
        )?;
        page.counter(
            "databroker_pruned_for_space_changes",
            "Changes that the store removed before their time to make room.",
            statistics.pruned_for_space,
        )
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Storage").finish_non_exhaustive()
    }
}

/// Records and bytes by type: the types with the most records by name, the others in one.
fn bounded(types: &[TypeStatistics]) -> BTreeMap<&str, (u64, u64)> {
    let mut by_records: Vec<&TypeStatistics> = types.iter().collect();
    by_records.sort_by_key(|statistics| std::cmp::Reverse(statistics.records));
    let mut bounded = BTreeMap::new();
    for statistics in by_records {
        let named = bounded.len() < TYPES && statistics.record_type.len() <= TYPE_BYTES;
        let name = if named { statistics.record_type.as_str() } else { OTHER };
        let (records, bytes): &mut (u64, u64) = bounded.entry(name).or_default();
        *records = records.saturating_add(statistics.records);
        *bytes = bytes.saturating_add(statistics.bytes);
    }
    bounded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statistics(record_type: &str, records: u64) -> TypeStatistics {
        TypeStatistics {
            record_type: record_type.to_owned(),
            records,
            bytes: records * 10,
        }
    }

    #[test]
    fn labels_of_types_are_bounded() {
        let mut types: Vec<_> = (0..1000)
            .map(|number| statistics(&format!("t{number}"), number))
            .collect();
        types.push(statistics(&"x".repeat(10_000), 5_000));
        let bounded = bounded(&types);
        assert!((TYPES..=TYPES + 1).contains(&bounded.len()), "{}", bounded.len());
        assert!(bounded.contains_key("t999") && !bounded.contains_key("t1"));
        assert!(bounded.keys().all(|name| name.len() <= TYPE_BYTES));
        let all: u64 = bounded.values().map(|(records, _)| records).sum();
        assert_eq!(
            all,
            types.iter().map(|statistics| statistics.records).sum::<u64>(),
            "nothing is lost"
        );
        assert_eq!(
            bounded.get(OTHER).map(|(records, bytes)| records * 10 == *bytes),
            Some(true)
        );
    }

    #[test]
    fn every_error_has_a_name_of_its_own() {
        let text = String::new;
        for error in [
            BackendError::Configuration(text()),
            BackendError::Unavailable(text()),
            BackendError::NotCalled(text()),
            BackendError::Exhausted(text()),
            BackendError::ReadOnly(text()),
            BackendError::Pruned(1),
            BackendError::Corrupt(text()),
            BackendError::Internal(text()),
            BackendError::Stopped(text()),
        ] {
            let function = Function::new("get");
            function.ended(Duration::from_millis(1), &Err::<(), _>(error.clone()));
            let counted: Vec<_> = ERRORS
                .iter()
                .zip(&function.errors)
                .filter(|(_, count)| count.load(Ordering::Relaxed) == 1)
                .map(|(name, _)| *name)
                .collect();
            assert_eq!(counted, [error_name(&error)]);
            assert_eq!(
                (function.succeeded.read().count(), function.failed.read().count()),
                (0, 1)
            );
        }
    }
}
