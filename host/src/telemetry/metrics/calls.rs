//! gRPC calls: how many, how they ended, how long they took, and which streams are open.
//!
//! Everything is there from the beginning, a place for each method and code, so that a call costs a look-up among a few
//! names and some additions. A client can ask for any path; what is no method of this server counts as `other`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tonic::Code;

use super::histogram::{DURATIONS, Histogram, Reading};
use super::page::{Labels, Page};

/// The methods that are served, ascending, and whether they answer with a stream.
const METHODS: &[(&str, bool)] = &[
    ("databroker.CheckpointService/GetCheckpoint", false),
    ("databroker.CheckpointService/SetCheckpoint", false),
    ("databroker.DataBrokerService/AcquireLease", false),
    ("databroker.DataBrokerService/Clear", false),
    ("databroker.DataBrokerService/Get", false),
    ("databroker.DataBrokerService/GetOptions", false),
    ("databroker.DataBrokerService/ListTypes", false),
    ("databroker.DataBrokerService/Patch", false),
    ("databroker.DataBrokerService/Put", false),
    ("databroker.DataBrokerService/Query", false),
    ("databroker.DataBrokerService/ReleaseLease", false),
    ("databroker.DataBrokerService/RenewLease", false),
    ("databroker.DataBrokerService/ServerInfo", false),
    ("databroker.DataBrokerService/SetOptions", false),
    ("databroker.DataBrokerService/Sync", true),
    ("databroker.DataBrokerService/SyncLatest", true),
    ("grpc.health.v1.Health/Check", false),
    ("grpc.health.v1.Health/Watch", true),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", true),
    ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", true),
    ("registry.Registry/List", false),
    ("registry.Registry/Report", false),
    ("registry.Registry/Watch", true),
];

/// What stands for all other methods.
const OTHER: &str = "other";

/// The codes with the names that gRPC gives them; Pomerium's metrics have the same.
const CODES: [(Code, &str); 17] = [
    (Code::Ok, "OK"),
    (Code::Cancelled, "CANCELLED"),
    (Code::Unknown, "UNKNOWN"),
    (Code::InvalidArgument, "INVALID_ARGUMENT"),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (Code::NotFound, "NOT_FOUND"),
    (Code::AlreadyExists, "ALREADY_EXISTS"),
    (Code::PermissionDenied, "PERMISSION_DENIED"),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (Code::FailedPrecondition, "FAILED_PRECONDITION"),
    (Code::Aborted, "ABORTED"),
    (Code::OutOfRange, "OUT_OF_RANGE"),
    (Code::Unimplemented, "UNIMPLEMENTED"),
    (Code::Internal, "INTERNAL"),
    (Code::Unavailable, "UNAVAILABLE"),
    (Code::DataLoss, "DATA_LOSS"),
    (Code::Unauthenticated, "UNAUTHENTICATED"),
];

/// How many lines the log has for one method and code within [`WINDOW`].
const LINES: u64 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// All calls of one server.
pub struct Calls {
    /// As [`METHODS`], then the one for all others.
    methods: Vec<Arc<Method>>,
}

struct Method {
    name: &'static str,
    streams: bool,
    /// Calls that have not ended.
    open: AtomicU64,
    /// One for each of [`CODES`].
    outcomes: Vec<Outcome>,
}

/// The calls of one method that ended with one code.
struct Outcome {
    code: Code,
    name: &'static str,
    /// From the call's arrival to the end of its answer.
    durations: Histogram,
    /// Locked only where a failure is about to be logged.
    lines: Mutex<Lines>,
}

/// How many lines were written for a kind of failure, and how many were not.
#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    written: u64,
    left_out: u64,
}

impl Default for Calls {
    fn default() -> Self {
        let methods = METHODS.iter().chain([&(OTHER, false)]);
        Self {
            methods: methods
                .map(|(name, streams)| Arc::new(Method::new(name, *streams)))
                .collect(),
        }
    }
}

impl Calls {
    /// A call has come for this path, `/SERVICE/METHOD`; it is open until what is returned is dropped.
    pub fn begin(&self, path: &str) -> CountedCall {
        let name = path.strip_prefix('/').unwrap_or(path);
        let place = METHODS
            .binary_search_by(|(known, _)| (*known).cmp(name))
            .unwrap_or(METHODS.len());
        let method = self.methods.get(place).map(Arc::clone);
        if let Some(method) = &method {
            method.open.fetch_add(1, Ordering::Relaxed);
        }
        CountedCall {
            method,
            began: Instant::now(),
            ended: false,
        }
    }

    /// Writes all of it.
    pub fn encode(&self, page: &mut Page<'_>) -> fmt::Result {
        let ended: Vec<(&Method, &Outcome, Reading)> = self
            .methods
            .iter()
            .flat_map(|method| method.outcomes.iter().map(move |outcome| (method.as_ref(), outcome)))
            .map(|(method, outcome)| (method, outcome, outcome.durations.read()))
            .filter(|(_, _, reading)| reading.count() > 0)
            .collect();
        page.counters(
            "databroker_calls",
            "gRPC calls that have ended, by method and code.",
            ended.iter().map(|(method, outcome, reading)| {
                let labels = vec![("method", method.name.into()), ("code", outcome.name.into())];
                (labels, reading.count())
            }),
        )?;
        page.histograms(
            "databroker_call_duration_seconds",
            "How long gRPC calls took, streams to their end.",
            1e9,
            self.methods.iter().filter_map(|method| {
                let all = method.outcomes.iter().map(|outcome| outcome.durations.read());
                let all = all.reduce(|sum, next| sum.and(&next)).filter(|all| all.count() > 0)?;
                Some((vec![("method", method.name.into())], all))
            }),
        )?;
        page.gauges(
            "databroker_open_streams",
            "Streams that are open, by method.",
            self.methods.iter().filter(|method| method.streams).map(|method| {
                let open = method.open.load(Ordering::Relaxed);
                (vec![("method", method.name.into())], open)
            }),
        )?;
        // The same under the names that Pomerium's dashboards have.
        page.counters(
            "pomerium_grpc_server_requests",
            "gRPC calls that have ended, under Pomerium's name.",
            ended
                .iter()
                .map(|(method, outcome, reading)| (pomerium_labels(method, outcome), reading.count())),
        )?;
        page.histograms(
            "pomerium_grpc_server_request_duration_ms",
            "How long gRPC calls took in milliseconds, under Pomerium's name.",
            1e6,
            ended
                .iter()
                .map(|(method, outcome, reading)| (pomerium_labels(method, outcome), reading.clone())),
        )
    }
}

impl fmt::Debug for Calls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Calls").finish_non_exhaustive()
    }
}

fn pomerium_labels(method: &Method, outcome: &Outcome) -> Labels<'static> {
    let (service, name) = method.name.split_once('/').unwrap_or((OTHER, OTHER));
    vec![
        ("service", super::SERVICE.into()),
        ("grpc_service", service.into()),
        ("grpc_method", name.into()),
        ("grpc_server_status", outcome.name.into()),
    ]
}

impl Method {
    fn new(name: &'static str, streams: bool) -> Self {
        Self {
            name,
            streams,
            open: AtomicU64::new(0),
            outcomes: CODES
                .iter()
                .map(|(code, name)| Outcome {
                    code: *code,
                    name,
                    durations: Histogram::new(DURATIONS),
                    lines: Mutex::default(),
                })
                .collect(),
        }
    }

    fn outcome(&self, code: Code) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.code == code)
    }
}

/// A call that has not ended. Where it is dropped without [`CountedCall::end`], the client has gone away: CANCELLED.
pub struct CountedCall {
    /// There always is one.
    method: Option<Arc<Method>>,
    began: Instant,
    ended: bool,
}

impl CountedCall {
    /// The call has ended with this code. Only the first end counts.
    pub fn end(&mut self, code: Code) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(outcome) = self.method.as_ref().and_then(|method| method.outcome(code)) {
            outcome.durations.observe_duration(self.began.elapsed());
        }
    }

    /// Whether it is answered with a stream.
    pub fn is_stream(&self) -> bool {
        self.method.as_ref().is_some_and(|method| method.streams)
    }

    /// Whether the log should have a line for a failure with this code: how many were left out since the last one, or
    /// none where this one is to be left out.
    pub fn line(&self, code: Code) -> Option<u64> {
        let Some(outcome) = self.method.as_ref().and_then(|method| method.outcome(code)) else {
            return Some(0);
        };
        outcome.lines.lock().next(Instant::now())
    }
}

impl Drop for CountedCall {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
        if let Some(method) = &self.method {
            method.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for CountedCall {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CountedCall").finish_non_exhaustive()
    }
}

impl Lines {
    fn next(&mut self, now: Instant) -> Option<u64> {
        let fresh = self
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= WINDOW);
        if fresh {
            self.since = Some(now);
            self.written = 0;
        }
        if self.written >= LINES {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use databroker_proto::PROTOCOL_DESCRIPTORS;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_methods_are_those_of_the_protocol() {
        let mut served = Vec::new();
        for encoded in [PROTOCOL_DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET] {
            for file in FileDescriptorSet::decode(encoded).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                        served.push((name, method.server_streaming()));
                    }
                }
            }
        }
        for version in ["v1", "v1alpha"] {
            served.push((
                format!("grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"),
                true,
            ));
        }
        served.retain(|(name, _)| name != "grpc.health.v1.Health/List");
        served.sort();
        let known: Vec<_> = METHODS
            .iter()
            .map(|(name, streams)| ((*name).to_owned(), *streams))
            .collect();
        assert_eq!(known, served, "ascending, since they are searched");
    }

    fn count(calls: &Calls, method: &str, code: Code) -> u64 {
        let method = calls.methods.iter().find(|known| known.name == method).unwrap();
        method.outcome(code).unwrap().durations.read().count()
    }

    fn open(calls: &Calls, method: &str) -> u64 {
        let method = calls.methods.iter().find(|known| known.name == method).unwrap();
        method.open.load(Ordering::Relaxed)
    }

    #[test]
    fn calls_are_counted_once_under_their_method_and_code() {
        let calls = Calls::default();
        for (path, method, code) in [
            (
                "/databroker.DataBrokerService/Get",
                "databroker.DataBrokerService/Get",
                Code::NotFound,
            ),
            ("/registry.Registry/Watch", "registry.Registry/Watch", Code::Unavailable),
            ("/databroker.DataBrokerService/Drop", OTHER, Code::Unimplemented),
            ("/", OTHER, Code::Internal),
            ("", OTHER, Code::Unknown),
        ] {
            let mut call = calls.begin(path);
            assert_eq!(open(&calls, method), 1, "{path}");
            call.end(code);
            call.end(Code::Ok);
            drop(call);
            assert_eq!(count(&calls, method, code), 1, "{path}");
            assert_eq!(count(&calls, method, Code::Ok), 0, "{path}");
            assert_eq!(count(&calls, method, Code::Cancelled), 0, "{path}");
            assert_eq!(open(&calls, method), 0, "{path}");
        }
        drop(calls.begin("/databroker.DataBrokerService/Sync"));
        assert_eq!(count(&calls, "databroker.DataBrokerService/Sync", Code::Cancelled), 1);
    }

    #[test]
    fn a_flood_of_failures_is_counted_instead_of_logged() {
        let mut lines = Lines::default();
        let start = Instant::now();
        let turns: Vec<_> = (0..15).map(|_| lines.next(start)).collect();
        assert_eq!(turns.iter().filter(|turn| turn.is_some()).count(), 10);
        assert_eq!(lines.next(start + WINDOW / 2), None);
        assert_eq!(
            lines.next(start + WINDOW),
            Some(6),
            "the next line says how many were left out"
        );
        assert_eq!(lines.next(start + WINDOW), Some(0));
    }
}
