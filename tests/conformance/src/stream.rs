//! Reading Sync and SyncLatest: every read has a deadline, and every order that the protocol promises is checked on the
//! way, whatever the case is about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use databroker_proto::databroker::sync_latest_response::Response as LatestResponse;
use databroker_proto::databroker::sync_response::Response;
use databroker_proto::databroker::{Options, Record, SyncLatestResponse, SyncResponse, TypedOptions, Versions};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

/// How long a message that must come may take to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long a stream is watched for a message that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// A Sync stream. Versions must ascend and types must be the one asked for, or reading fails.
pub(crate) struct Stream {
    state: State,
    /// The type asked for; empty for all.
    record_type: String,
    /// An untyped stream shows only types that begin so, since other cases write at the same time.
    prefix: Arc<str>,
    /// The version of the last record, of any type.
    last_version: u64,
}

enum State {
    Opening(JoinHandle<Result<Streaming<SyncResponse>, Status>>),
    Open(Box<Streaming<SyncResponse>>),
    Ended(Status),
}

/// What a Sync stream says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A change.
    Record(Record),
    /// A type's options.
    Options(TypedOptions),
    /// The end, with its code.
    End(Code, String),
}

impl Stream {
    pub(crate) fn new(
        opening: JoinHandle<Result<Streaming<SyncResponse>, Status>>,
        record_type: String,
        prefix: Arc<str>,
    ) -> Self {
        Self {
            state: State::Opening(opening),
            record_type,
            prefix,
            last_version: 0,
        }
    }

    /// The next event of the types in question, waited for no longer than [`PATIENCE`].
    pub(crate) async fn event(&mut self) -> anyhow::Result<Event> {
        timeout(PATIENCE, self.read())
            .await
            .context("nothing came on the stream")?
    }

    /// The next record; options on the way are passed over.
    pub(crate) async fn record(&mut self) -> anyhow::Result<Record> {
        loop {
            match self.event().await? {
                Event::Record(record) => return Ok(record),
                Event::Options(_) => {}
                Event::End(code, message) => bail!("the stream ended with {code:?} ({message})"),
            }
        }
    }

    /// The next records, as many as this.
    pub(crate) async fn records(&mut self, count: usize) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        while records.len() < count {
            let got = records.len();
            let record = self
                .record()
                .await
                .with_context(|| format!("got {got} of {count} records"))?;
            records.push(record);
        }
        Ok(records)
    }

    /// The next options; records on the way are an error.
    pub(crate) async fn options(&mut self) -> anyhow::Result<TypedOptions> {
        match self.event().await? {
            Event::Options(options) => Ok(options),
            other => bail!("expected options, not {other:?}"),
        }
    }

    /// The records up to the end of a stream that does not wait, which must be OK.
    pub(crate) async fn rest(mut self) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        loop {
            match self.event().await? {
                Event::Record(record) => records.push(record),
                Event::Options(_) => {}
                Event::End(Code::Ok, _) => return Ok(records),
                Event::End(code, message) => bail!("the stream ended with {code:?} ({message})"),
            }
        }
    }

    /// The end of the stream; records and options on the way are passed over.
    pub(crate) async fn end(mut self) -> anyhow::Result<(Code, String)> {
        loop {
            if let Event::End(code, message) = self.event().await? {
                return Ok((code, message));
            }
        }
    }

    /// Checks that the stream stays open and says nothing for a moment.
    pub(crate) async fn silent(&mut self) -> anyhow::Result<()> {
        match timeout(SILENCE, self.read()).await {
            Ok(event) => bail!("expected nothing on the stream, not {:?}", event?),
            Err(_) => Ok(()),
        }
    }

    async fn read(&mut self) -> anyhow::Result<Event> {
        loop {
            let event = self.read_any().await?;
            let mine = match &event {
                Event::Record(record) => self.check(record)?,
                Event::Options(options) => self.is_mine(&options.type_url),
                Event::End(..) => true,
            };
            if mine {
                return Ok(event);
            }
        }
    }

    /// Checks what holds for every record of every stream; false for a record of another case.
    fn check(&mut self, record: &Record) -> anyhow::Result<bool> {
        ensure!(
            record.version > self.last_version,
            "version {} came on the stream after version {}",
            record.version,
            self.last_version
        );
        self.last_version = record.version;
        ensure!(
            self.record_type.is_empty() || record.r#type == self.record_type,
            "a record of type {:?} came on a stream of type {:?}",
            record.r#type,
            self.record_type
        );
        ensure!(record.modified_at.is_some(), "a record without modified_at: {record:?}");
        Ok(self.is_mine(&record.r#type))
    }

    fn is_mine(&self, record_type: &str) -> bool {
        !self.record_type.is_empty() || record_type.starts_with(&*self.prefix)
    }

    async fn read_any(&mut self) -> anyhow::Result<Event> {
        if let State::Opening(opening) = &mut self.state {
            self.state = match opening.await.context("opening the stream")? {
                Ok(stream) => State::Open(Box::new(stream)),
                Err(status) => State::Ended(status),
            };
        }
        let status = match &mut self.state {
            State::Open(stream) => match stream.message().await {
                Ok(Some(message)) => return event(message),
                Ok(None) => Status::ok(""),
                Err(status) => status,
            },
            State::Ended(status) => status.clone(),
            State::Opening(_) => bail!("the stream is not open"),
        };
        self.state = State::Ended(status.clone());
        Ok(Event::End(status.code(), status.message().to_owned()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let State::Opening(opening) = &self.state {
            opening.abort();
        }
    }
}

fn event(message: SyncResponse) -> anyhow::Result<Event> {
    match message.response {
        Some(Response::Record(record)) => Ok(Event::Record(record)),
        Some(Response::Options(options)) => Ok(Event::Options(options)),
        None => bail!("an empty message came on the stream"),
    }
}

/// What a SyncLatest stream said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Latest {
    /// The records in the order of the stream.
    pub records: Vec<Record>,
    /// The options by type.
    pub options: BTreeMap<String, Options>,
    /// The trailing versions.
    pub versions: Versions,
}

impl Latest {
    /// Reads a stream to its end and checks the order of its messages: records, options, versions, OK.
    pub(crate) async fn read(mut stream: Streaming<SyncLatestResponse>) -> anyhow::Result<Self> {
        let mut latest = Self::default();
        let mut versions = None;
        while let Some(message) = timeout(PATIENCE, stream.message())
            .await
            .context("nothing came on the stream")??
        {
            ensure!(versions.is_none(), "a message came after the versions: {message:?}");
            match message.response {
                Some(LatestResponse::Record(record)) => {
                    ensure!(latest.options.is_empty(), "a record came after the options: {record:?}");
                    ensure!(record.deleted_at.is_none(), "a deleted record came: {record:?}");
                    latest.records.push(record);
                }
                Some(LatestResponse::Options(options)) => {
                    latest
                        .options
                        .insert(options.type_url, options.options.unwrap_or_default());
                }
                Some(LatestResponse::Versions(found)) => versions = Some(found),
                None => bail!("an empty message came on the stream"),
            }
        }
        latest.versions = versions.context("the stream ended without versions")?;
        ensure!(latest.versions.server_version != 0, "the server version is 0");
        Ok(latest)
    }
}
