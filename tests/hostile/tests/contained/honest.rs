//! The others: a client that keeps a stream open and reads all the while, and holds every answer against what it knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use databroker_proto::databroker::sync_response::Response;
use databroker_proto::databroker::{GetRequest, PutRequest, Record, SyncRequest, SyncResponse};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::stand::{Client, PATIENCE};

/// The type of the honest records.
const TYPE: &str = "t";

/// Reads that are under way at once.
const READERS: usize = 2;

/// The pause between two reads of one reader: a steady load, and not all that the machine can do.
const PAUSE: Duration = Duration::from_millis(2);

/// An honest client with an open stream.
pub struct Honest {
    client: Client,
    stream: Streaming<SyncResponse>,
    /// The server version that it knows.
    pub server_version: u64,
    /// The record that was put last, as the server has answered it.
    record: Record,
}

impl Honest {
    /// Puts a record and follows its type.
    pub async fn start(mut client: Client) -> Self {
        let (server_version, record) = put(&mut client, "before").await.expect("an honest put");
        let request = SyncRequest {
            server_version,
            record_version: record.version,
            r#type: TYPE.to_owned(),
            wait: None,
        };
        let stream = client.sync(request).await.expect("an honest stream").into_inner();
        Self {
            client,
            stream,
            server_version,
            record,
        }
    }

    /// Begins to read, until it is stopped.
    pub fn read(&self) -> Reading {
        let stop = Arc::new(AtomicBool::new(false));
        let readers = (0..READERS).map(|_| {
            let (client, record, stop) = (self.client.clone(), self.record.clone(), Arc::clone(&stop));
            tokio::spawn(reader(client, record, stop))
        });
        Reading {
            readers: readers.collect(),
            stop,
        }
    }

    /// Writes, and waits until the stream has shown it.
    pub async fn write(&mut self) -> Result<(), String> {
        let (server_version, written) = put(&mut self.client, "after")
            .await
            .map_err(|error| format!("put: {error}"))?;
        if server_version != self.server_version {
            return Err(format!("another server version: {server_version}"));
        }
        match timeout(PATIENCE, self.next()).await {
            Ok(Ok(seen)) if seen == written => {
                self.record = written;
                Ok(())
            }
            Ok(other) => Err(format!("the stream says {other:?} instead of {written:?}")),
            Err(_) => Err("the stream says nothing".to_owned()),
        }
    }

    /// Waits until the plugin has been replaced: the stream ends with ABORTED, since the content is gone, and everything
    /// can be written anew.
    pub async fn start_over(&mut self) -> Result<(), String> {
        match timeout(PATIENCE, self.next()).await {
            Ok(Err(status)) if status.code() == Code::Aborted => {}
            Ok(other) => return Err(format!("the stream says {other:?} instead of ABORTED")),
            Err(_) => return Err("the stream goes on over other content".to_owned()),
        }
        let began = Instant::now();
        let (server_version, record) = loop {
            match put(&mut self.client, "after").await {
                Ok(written) => break written,
                Err(status) if status.code() == Code::Unavailable && began.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(status) => return Err(format!("put after a new start: {status}")),
            }
        };
        if server_version == self.server_version {
            return Err("the content is gone and the server version is the same".to_owned());
        }
        let mut client = self.client.clone();
        *self = Self::start(client.clone()).await;
        match get(&mut client).await {
            Ok(found) if found.version >= record.version => Ok(()),
            other => Err(format!("get after a new start: {other:?}")),
        }
    }

    async fn next(&mut self) -> Result<Record, Status> {
        loop {
            match self.stream.message().await? {
                Some(SyncResponse {
                    response: Some(Response::Record(record)),
                }) => return Ok(record),
                Some(_) => {}
                None => return Err(Status::cancelled("the stream ended without a status")),
            }
        }
    }
}

/// Readers at work.
pub struct Reading {
    readers: Vec<JoinHandle<Seen>>,
    stop: Arc<AtomicBool>,
}

/// What readers have seen.
#[derive(Default)]
pub struct Seen {
    /// How long each answer took.
    latencies: Vec<Duration>,
    /// Answers that were UNAVAILABLE, or that the record is not there.
    pub missing: usize,
    /// What should never be: another record, or another error.
    pub wrong: Vec<String>,
}

impl Reading {
    /// Stops, and says what was seen.
    pub async fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Seen::default();
        for reader in self.readers {
            let seen = timeout(PATIENCE, reader)
                .await
                .expect("a reader hangs")
                .expect("a reader panicked");
            all.latencies.extend(seen.latencies);
            all.missing += seen.missing;
            all.wrong.extend(seen.wrong);
        }
        all.latencies.sort();
        all
    }
}

impl Seen {
    /// How many answers there were.
    pub fn count(&self) -> usize {
        self.latencies.len()
    }

    /// What 99 of 100 answers took at most.
    pub fn p99(&self) -> Duration {
        let place = (self.latencies.len() * 99).div_ceil(100).saturating_sub(1);
        self.latencies.get(place).copied().unwrap_or_default()
    }

    /// The longest.
    pub fn longest(&self) -> Duration {
        self.latencies.last().copied().unwrap_or_default()
    }
}

async fn reader(mut client: Client, expected: Record, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer = get(&mut client).await;
        seen.latencies.push(began.elapsed());
        match answer {
            Ok(record) if record == expected => {}
            Ok(record) => seen.wrong.push(format!("{record:?}")),
            Err(status) if matches!(status.code(), Code::Unavailable | Code::NotFound) => seen.missing += 1,
            Err(status) => seen.wrong.push(status.to_string()),
        }
        tokio::time::sleep(PAUSE).await;
    }
    seen
}

async fn get(client: &mut Client) -> Result<Record, Status> {
    let request = GetRequest {
        r#type: TYPE.to_owned(),
        id: "honest".to_owned(),
    };
    let answer = client.get(request).await?.into_inner();
    answer
        .record
        .ok_or_else(|| Status::data_loss("an answer without a record"))
}

async fn put(client: &mut Client, text: &str) -> Result<(u64, Record), Status> {
    let record = crate::record(TYPE, "honest", text);
    let request = PutRequest { records: vec![record] };
    let answer = client.put(request).await?.into_inner();
    match answer.records.into_iter().next() {
        Some(record) => Ok((answer.server_version, record)),
        None => Err(Status::data_loss("an answer without a record")),
    }
}
