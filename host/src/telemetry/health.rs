//! Health over HTTP, as Pomerium answers it.
//!
//! | path | 200 means |
//! |---|---|
//! | `/healthz` | the process is alive and not stuck; a store that does not answer is no reason to restart it |
//! | `/startupz` | the store was opened and calls were served once |
//! | `/readyz` | calls are served, the store answers, and the process is not going down |
//! | `/status` | always: how each part is |
//!
//! Otherwise it is 503. The body says which part is at fault and why, in the form that Pomerium's own has, so that
//! `pomerium health` can be asked about this process.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::backend::{BackendError, Runtime};

/// The parts, under Pomerium's name where it has the part. The store is asked every second.
const STORE: &str = "storage.backend";
const GRPC: &str = "databroker.grpc";
const PLUGIN: &str = "databroker.plugin";

/// After so long without a question to the store, the tasks of this process do not run any more.
const STUCK: Duration = Duration::from_secs(30);

/// How much of an error is told, in characters.
const SHOWN: usize = 1024;

/// How a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    /// It has not begun.
    Unknown,
    /// It does its work, unless there is an error.
    Running,
    /// It is about to end.
    Terminating,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Running => "RUNNING",
            Self::Terminating => "TERMINATING",
        }
    }
}

#[derive(Clone)]
struct Part {
    status: Status,
    error: Option<String>,
    attributes: Vec<(&'static str, String)>,
    /// When status or error came or went.
    since: SystemTime,
}

impl Part {
    fn new() -> Self {
        Self {
            status: Status::Unknown,
            error: Some("it has not begun yet".to_owned()),
            attributes: Vec::new(),
            since: SystemTime::now(),
        }
    }

    fn set(&mut self, status: Status, error: Option<String>) {
        if self.status != status || self.error.is_some() != error.is_some() {
            self.since = SystemTime::now();
        }
        self.status = status;
        self.error = error.map(|error| error.chars().take(SHOWN).collect());
    }

    fn json(&self) -> Value {
        let mut json = Map::new();
        json.insert("status".to_owned(), self.status.name().into());
        if let Some(error) = &self.error {
            json.insert("error".to_owned(), error.clone().into());
        }
        let since = ("since", humantime::format_rfc3339_millis(self.since).to_string());
        let attributes = self.attributes.iter().chain([&since]).map(attribute);
        json.insert("attributes".to_owned(), attributes.collect());
        Value::Object(json)
    }
}

fn attribute((key, value): &(&'static str, String)) -> Value {
    json!({"Key": key, "Value": value})
}

/// How every part is. Those that know it write it here, and whoever asks over HTTP reads it.
pub struct Board(Mutex<Parts>);

struct Parts {
    parts: BTreeMap<&'static str, Part>,
    /// When the store was last asked how it is.
    asked: Option<Instant>,
}

impl Default for Board {
    fn default() -> Self {
        Self(Mutex::new(Parts {
            parts: [STORE, GRPC, PLUGIN].map(|name| (name, Part::new())).into(),
            asked: None,
        }))
    }
}

impl fmt::Debug for Board {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Board").finish_non_exhaustive()
    }
}

impl Board {
    /// The store is open, by this plugin if it is one.
    pub fn store_opened(&self, runtime: &Runtime) {
        self.set(STORE, Status::Running, None);
        self.set(PLUGIN, Status::Running, None);
        let attributes = match &runtime.plugin {
            None => vec![("name", "native".to_owned())],
            Some(plugin) => vec![
                ("name", plugin.name.clone()),
                ("digest", plugin.digest.clone()),
                ("world", plugin.world.clone()),
            ],
        };
        self.describe(PLUGIN, attributes);
    }

    /// The store was asked how it is, and this is what it said.
    pub fn store_asked(&self, outcome: &Result<(), BackendError>) {
        self.0.lock().asked = Some(Instant::now());
        let stopped = match outcome {
            Err(error @ BackendError::Stopped(_)) => Some(error.to_string()),
            _ => None,
        };
        self.set(STORE, Status::Running, outcome.as_ref().err().map(ToString::to_string));
        self.set(PLUGIN, Status::Running, stopped);
    }

    /// Calls are served from now on.
    pub fn serving(&self) {
        self.set(GRPC, Status::Running, None);
        self.describe(GRPC, vec![("version", env!("CARGO_PKG_VERSION").to_owned())]);
    }

    /// The process goes down.
    pub fn draining(&self) {
        self.set(GRPC, Status::Terminating, None);
    }

    fn set(&self, name: &'static str, status: Status, error: Option<String>) {
        let mut board = self.0.lock();
        board.parts.entry(name).or_insert_with(Part::new).set(status, error);
    }

    fn describe(&self, name: &'static str, attributes: Vec<(&'static str, String)>) {
        let mut board = self.0.lock();
        board.parts.entry(name).or_insert_with(Part::new).attributes = attributes;
    }

    /// Where one is to blame, what for.
    fn judge(&self, probe: Probe, now: Instant) -> (bool, Value) {
        let (mut parts, asked) = {
            let board = self.0.lock();
            (board.parts.clone(), board.asked)
        };
        let mut healthy = true;
        if probe == Probe::Alive
            && let Some(grpc) = parts.get_mut(GRPC)
            && grpc.status == Status::Running
            && let Some(silence) = asked.map(|asked| now.saturating_duration_since(asked))
            && silence > STUCK
        {
            grpc.error = Some(format!(
                "the store was not asked for {} s: the process is stuck",
                silence.as_secs()
            ));
            healthy = false;
        }
        healthy &= parts.values().all(|part| match probe {
            Probe::Alive => true,
            Probe::Started => part.status != Status::Unknown,
            Probe::Ready => part.status == Status::Running && part.error.is_none(),
        });
        let bodies = parts.iter().map(|(name, part)| ((*name).to_owned(), part.json()));
        (healthy, Value::Object(bodies.collect()))
    }
}

/// What a probe wants to know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Probe {
    Alive,
    Started,
    Ready,
}

/// What answers probes.
pub fn router(board: Arc<Board>) -> Router {
    let probe = |probe: Probe| {
        get(move |State(board): State<Arc<Board>>| async move {
            let (healthy, body) = board.judge(probe, Instant::now());
            let status = if healthy {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            answer(status, &body)
        })
    };
    Router::new()
        .route("/healthz", probe(Probe::Alive))
        .route("/startupz", probe(Probe::Started))
        .route("/readyz", probe(Probe::Ready))
        .route("/status", get(status))
        .with_state(board)
}

async fn status(State(board): State<Arc<Board>>) -> Response {
    let (_, statuses) = board.judge(Probe::Alive, Instant::now());
    let body = json!({"statuses": statuses, "checks": [GRPC, PLUGIN, STORE]});
    answer(StatusCode::OK, &body)
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let kind = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, kind, format!("{body:#}\n")).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;
    use crate::backend::PluginIdentity;

    /// Whether the process is alive, started and ready.
    fn probes(board: &Board, now: Instant) -> [bool; 3] {
        [Probe::Alive, Probe::Started, Probe::Ready].map(|probe| board.judge(probe, now).0)
    }

    #[test]
    fn probes_follow_a_life() {
        let board = Board::default();
        let now = Instant::now;
        assert_eq!(probes(&board, now()), [true, false, false], "at first");
        board.store_opened(&Runtime::default());
        assert_eq!(
            probes(&board, now()),
            [true, false, false],
            "with a store and no server"
        );
        board.serving();
        assert_eq!(probes(&board, now()), [true, true, true], "when all is well");
        let why = BackendError::Unavailable("the disk is away".to_owned());
        board.store_asked(&Err(why));
        assert_eq!(probes(&board, now()), [true, true, false], "without the store");
        let (_, body) = board.judge(Probe::Ready, now());
        assert_eq!(body[STORE]["error"], "the store is unavailable: the disk is away");
        assert!(body[PLUGIN].get("error").is_none(), "{body}");
        board.store_asked(&Err(BackendError::Stopped("unreachable".to_owned())));
        let (_, body) = board.judge(Probe::Ready, now());
        assert_eq!(body[PLUGIN]["error"], "the storage plugin stopped: unreachable");
        board.store_asked(&Ok(()));
        assert_eq!(probes(&board, now()), [true, true, true], "once it is back");
        assert_eq!(
            probes(&board, now() + 2 * STUCK),
            [false, true, true],
            "when nothing runs any more"
        );
        board.draining();
        assert_eq!(
            probes(&board, now() + 2 * STUCK),
            [true, true, false],
            "when it goes down"
        );
    }

    #[test]
    fn status_has_the_form_that_pomerium_reads() {
        let board = Board::default();
        board.store_opened(&Runtime {
            plugin: Some(PluginIdentity {
                name: "memory".to_owned(),
                digest: "abc".to_owned(),
                world: "databroker:storage/backend@0.1.0".to_owned(),
            }),
            ..Runtime::default()
        });
        let (_, body) = board.judge(Probe::Started, Instant::now());
        assert_eq!(body[PLUGIN]["status"], "RUNNING");
        let attributes = body[PLUGIN]["attributes"].as_array().unwrap();
        assert_eq!(attributes[0], json!({"Key": "name", "Value": "memory"}));
        assert_eq!(attributes[1], json!({"Key": "digest", "Value": "abc"}));
        assert_eq!(attributes.last().unwrap()["Key"], "since");
        assert_eq!(body[GRPC]["status"], "UNKNOWN");
    }
}
