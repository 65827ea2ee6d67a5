//! A plugin for tests. When its store is opened it does what the lines of its setting `script` say, each one question to the
//! host, and fails with what came of them. It has no store.

mod database;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};

use bindings::databroker::storage::config;
use bindings::databroker::storage::types::{Duration, Error, Key, Position, Record, Timestamp};
use bindings::exports::databroker::storage::store::{
    Change, ChangesPage, ChangesRequest, Checkpoint, EvictRequest, Evicted, Guest, LeaseRequest, Observed, Options,
    Pruned, PutResult, ScanPage, ScanRequest, Service, Settings, Statistics, StoreInfo, TypedOptions,
};
use database::Database;
use wasip2::http::outgoing_handler;
use wasip2::http::types::{Fields, Method, OutgoingRequest, Scheme};

mod bindings {
    wit_bindgen::generate!({ path: "../../wit/storage-0.1.0", world: "sql-backend" });
    export!(Probe with_types_in self);
    use super::Probe;
}

struct Probe;

/// Does what a line says, and says what came of it.
fn ask(verb: &str, rest: &str) -> Result<String, String> {
    let kind = |error: std::io::Error| format!("{:?}", error.kind());
    match verb {
        "setting" => Ok(format!("{:?}", config::get_setting(rest))),
        "secret" => {
            let Some(secret) = config::get_secret(rest) else {
                return Ok("None".to_owned());
            };
            secret
                .reveal()
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        }
        "read" => fs::read_to_string(rest).map_err(kind),
        "list" => fs::read_dir(rest)
            .map(|entries| entries.count().to_string())
            .map_err(kind),
        "write" => fs::write(rest, "written").map(|()| "written".to_owned()).map_err(kind),
        "remove" => fs::remove_file(rest).map(|()| "removed".to_owned()).map_err(kind),
        // Opens one file until it fails, and says how often it was opened.
        "exhaust" => {
            let mut files = Vec::new();
            loop {
                match fs::File::open(rest) {
                    Ok(file) => files.push(file),
                    Err(error) => return Ok(format!("{} then {}", files.len(), kind(error))),
                }
            }
        }
        "connect" => {
            let mut stream = TcpStream::connect(rest).map_err(kind)?;
            stream.write_all(b"ping").map_err(kind)?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).map_err(kind)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        }
        "lookup" => {
            let addresses = (rest, 0).to_socket_addrs().map_err(kind)?;
            let addresses: Vec<String> = addresses.map(|address| address.ip().to_string()).collect();
            Ok(addresses.join(","))
        }
        "listen" => TcpListener::bind(rest).map(|_| "listens".to_owned()).map_err(kind),
        "udp" => UdpSocket::bind(rest).map(|_| "bound".to_owned()).map_err(kind),
        "get" => get(rest),
        "leak" => {
            for _ in 0..rest.parse::<usize>().map_err(|error| error.to_string())? {
                std::mem::forget(wasip2::clocks::monotonic_clock::subscribe_duration(1));
            }
            Ok("leaked".to_owned())
        }
        _ => Err("no such verb".to_owned()),
    }
}

/// Sends a request, and gives the status and how the body begins.
fn get(url: &str) -> Result<String, String> {
    let (scheme, rest) = url.split_once("://").ok_or("no URL")?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let request = OutgoingRequest::new(Fields::new());
    let scheme = if scheme == "https" { Scheme::Https } else { Scheme::Http };
    let set = |done: Result<(), ()>| done.map_err(|()| "the URL is not taken".to_owned());
    if let Some(authority) = authority.strip_prefix("CONNECT:") {
        set(request.set_method(&Method::Connect))?;
        set(request.set_authority(Some(authority)))?;
    } else {
        set(request.set_authority(Some(authority)))?;
    }
    set(request.set_scheme(Some(&scheme)))?;
    set(request.set_path_with_query(Some(if path.is_empty() { "/" } else { path })))?;
    let future = outgoing_handler::handle(request, None).map_err(|error| format!("{error:?}"))?;
    future.subscribe().block();
    let response = future.get().ok_or("no answer")?.map_err(|()| "taken twice")?;
    let response = response.map_err(|error| format!("{error:?}"))?;
    let body = response.consume().map_err(|()| "no body")?;
    let stream = body.stream().map_err(|()| "no stream")?;
    let bytes = stream.blocking_read(64).unwrap_or_default();
    Ok(format!("{} {}", response.status(), String::from_utf8_lossy(&bytes)))
}

type Answer<T> = Result<T, Error>;

fn none<T>() -> Answer<T> {
    Err(Error::Internal("there is no store".to_owned()))
}

impl Guest for Probe {
    async fn open(settings: Settings) -> Answer<StoreInfo> {
        // Where its database is, it is never shown.
        let mut outcomes = Vec::from_iter(settings.connection_string);
        let mut database = Database::default();
        for line in config::get_setting("script").unwrap_or_default().lines() {
            let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
            let outcome = match database.ask(verb, rest).await {
                Some(outcome) => outcome,
                None => ask(verb, rest).unwrap_or_else(|error| format!("failed: {error}")),
            };
            outcomes.push(outcome);
        }
        Err(Error::Configuration(outcomes.join(" | ")))
    }

    async fn close() -> Answer<()> {
        none()
    }

    async fn health() -> Answer<()> {
        none()
    }

    async fn put(_: Vec<Vec<Change>>, _: Timestamp) -> Answer<PutResult> {
        none()
    }

    async fn get(_: Vec<Key>) -> Answer<Vec<Option<Record>>> {
        none()
    }

    async fn scan(_: ScanRequest) -> Answer<ScanPage> {
        none()
    }

    async fn count(_: Option<String>) -> Answer<u64> {
        none()
    }

    async fn list_types() -> Answer<Vec<String>> {
        none()
    }

    async fn current() -> Answer<Position> {
        none()
    }

    async fn changes(_: ChangesRequest) -> Answer<ChangesPage> {
        none()
    }

    async fn wait(_: Observed) -> Answer<Observed> {
        none()
    }

    async fn list_options() -> Answer<Vec<TypedOptions>> {
        none()
    }

    async fn set_options(_: String, _: Option<Options>) -> Answer<()> {
        none()
    }

    async fn lease(_: Vec<LeaseRequest>, _: Timestamp) -> Answer<Vec<bool>> {
        none()
    }

    async fn get_checkpoint() -> Answer<Checkpoint> {
        none()
    }

    async fn set_checkpoint(_: Checkpoint) -> Answer<()> {
        none()
    }

    async fn report_services(_: Vec<Service>, _: Duration, _: Timestamp) -> Answer<()> {
        none()
    }

    async fn list_services(_: Timestamp) -> Answer<Vec<Service>> {
        none()
    }

    async fn prune(_: Timestamp, _: u32) -> Answer<Pruned> {
        none()
    }

    async fn evict(_: EvictRequest, _: Timestamp) -> Answer<Evicted> {
        none()
    }

    async fn clear(_: u64) -> Answer<Position> {
        none()
    }

    async fn measure() -> Answer<Statistics> {
        none()
    }
}
