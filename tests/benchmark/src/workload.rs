//! The workloads: what Pomerium's processes do to a databroker, one thing at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use databroker_benchmark::session;
use databroker_proto::databroker::*;
use futures::future::try_join_all;
use prost_types::value::Kind as ValueKind;
use prost_types::{FieldMask, Struct, Value};

use crate::client::Client;
use crate::process::{Process, Times};

/// Callers that share a connection, as those of one of Pomerium's processes do.
const CALLERS_PER_CONNECTION: usize = 16;

/// Sync streams that share a connection.
const STREAMS_PER_CONNECTION: usize = 100;

/// Records in one Put while a store is filled.
const FILLING: usize = 100;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Get of one record.
    Get,
    /// Get, while another client reads all records by SyncLatest again and again.
    GetDuringSyncLatest,
    /// Put of so many new records a call.
    Put(usize),
    /// Patch of `accessed_at` of one record.
    Patch,
    /// Query of one record by its id.
    QueryId,
    /// Query of one record by an indexed field.
    QueryIndexed,
    /// Query of the first ten without a filter.
    QueryPage,
    /// Query by a field without an index, which nothing has: all are looked at.
    QueryUnindexed,
    /// Query by a text that nothing has.
    QueryText,
    /// Renewal of a lease.
    RenewLease,
    /// SyncLatest of all records.
    SyncLatest,
    /// Sync from the first change to the last.
    Replay,
    /// Puts, delivered to so many Sync streams.
    FanOut(usize),
}

/// Work, by how many callers, and per what it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub work: Work,
    pub callers: usize,
}

impl Workload {
    const fn new(work: Work, callers: usize) -> Self {
        Self { work, callers }
    }

    /// Its name in tables.
    pub(crate) fn name(&self) -> String {
        let callers = match self.callers {
            1 => "1 caller".to_owned(),
            callers => format!("{callers} callers"),
        };
        match self.work {
            Work::Get => format!("Get, {callers}"),
            Work::GetDuringSyncLatest => format!("Get, {callers}, during SyncLatest"),
            Work::Put(1) => format!("Put of one, {callers}"),
            Work::Put(batch) => format!("Put of {batch}, {callers}, per record"),
            Work::Patch => format!("Patch, {callers}"),
            Work::QueryId => format!("Query by id, {callers}"),
            Work::QueryIndexed => format!("Query by indexed field, {callers}"),
            Work::QueryPage => format!("Query of a page, no filter, {callers}"),
            Work::QueryUnindexed => "Query by unindexed field, per record".to_owned(),
            Work::QueryText => "Query by text, per record".to_owned(),
            Work::RenewLease => format!("Lease renewal, {callers}"),
            Work::SyncLatest => "SyncLatest, per record".to_owned(),
            Work::Replay => "Replay of changes, per record".to_owned(),
            Work::FanOut(streams) => format!("Fan-out to {streams} streams, per delivery"),
        }
    }
}

/// All workloads, in the order in which they run on one server: those that write come last.
pub(crate) const ALL: [Workload; 20] = [
    Workload::new(Work::Get, 1),
    Workload::new(Work::Get, 64),
    Workload::new(Work::QueryId, 16),
    Workload::new(Work::QueryIndexed, 1),
    Workload::new(Work::QueryIndexed, 16),
    Workload::new(Work::QueryPage, 4),
    Workload::new(Work::QueryUnindexed, 1),
    Workload::new(Work::QueryText, 1),
    Workload::new(Work::RenewLease, 16),
    Workload::new(Work::SyncLatest, 1),
    Workload::new(Work::Replay, 1),
    Workload::new(Work::GetDuringSyncLatest, 16),
    Workload::new(Work::Patch, 64),
    Workload::new(Work::Put(1), 1),
    Workload::new(Work::Put(1), 64),
    Workload::new(Work::Put(100), 1),
    Workload::new(Work::Put(100), 64),
    Workload::new(Work::FanOut(1), 1),
    Workload::new(Work::FanOut(100), 1),
    Workload::new(Work::FanOut(1000), 1),
];

/// What a workload did.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Calls, records or deliveries.
    pub operations: u64,
    /// How long each call took; empty where single calls mean nothing.
    pub latencies: Vec<Duration>,
    /// How long all of it took.
    pub elapsed: Duration,
    /// The processor time that went into it.
    pub times: Times,
}

/// Puts so many sessions, and an index on their users.
pub(crate) async fn fill(process: &Process, count: usize) -> anyhow::Result<()> {
    let mut client = process.target.connect().await?;
    let options = Options {
        indexable_fields: vec!["user_id".to_owned()],
        ..Options::default()
    };
    let request = SetOptionsRequest {
        r#type: session::TYPE.to_owned(),
        options: Some(options),
    };
    client.set_options(request).await?;
    let next = AtomicUsize::new(0);
    let writers = (0..8).map(|_| {
        let mut client = client.clone();
        let next = &next;
        async move {
            loop {
                let first = next.fetch_add(FILLING, Ordering::Relaxed);
                if first >= count {
                    return anyhow::Ok(());
                }
                let records = (first..count.min(first + FILLING)).map(session::record).collect();
                client.put(PutRequest { records }).await?;
            }
        }
    });
    try_join_all(writers).await?;
    Ok(())
}

/// Runs a workload on a server that holds so many sessions.
pub(crate) async fn run(
    workload: &Workload,
    process: &Process,
    stored: usize,
    fresh: &AtomicUsize,
    duration: Duration,
) -> anyhow::Result<Done> {
    let runner = Runner {
        process,
        stored,
        fresh,
        duration,
        callers: workload.callers,
    };
    let page = |filter: Option<Struct>, query: &str| QueryRequest {
        r#type: session::TYPE.to_owned(),
        query: query.to_owned(),
        limit: 10,
        filter,
        ..QueryRequest::default()
    };
    match workload.work {
        Work::Get => runner.calls(1, |client, number| get(client, number % stored)).await,
        Work::GetDuringSyncLatest => {
            let client = process.target.connect().await?;
            let reader = tokio::spawn(async move {
                loop {
                    if read_latest(client.clone()).await.is_err() {
                        break;
                    }
                }
            });
            let done = runner.calls(1, |client, number| get(client, number % stored)).await;
            reader.abort();
            // What the reading cost is in the processor's time, too, so a cost per Get would mean nothing.
            done.map(|done| Done {
                times: Times::default(),
                ..done
            })
        }
        Work::Put(batch) => {
            runner
                .calls(batch, |mut client, _| async move {
                    let first = fresh.fetch_add(batch, Ordering::Relaxed);
                    let records = (first..first + batch).map(session::record).collect();
                    let answer = client.put(PutRequest { records }).await?.into_inner();
                    ensure!(
                        answer.records.len() == batch,
                        "Put answered {} records",
                        answer.records.len()
                    );
                    Ok(())
                })
                .await
        }
        Work::Patch => {
            runner
                .calls(1, |mut client, number| async move {
                    let request = PatchRequest {
                        records: vec![session::accessed(number % stored)],
                        field_mask: Some(FieldMask {
                            paths: vec!["accessed_at".to_owned()],
                        }),
                    };
                    let answer = client.patch(request).await?.into_inner();
                    ensure!(answer.records.len() == 1, "Patch found nothing");
                    Ok(())
                })
                .await
        }
        Work::QueryId => {
            let filter = |number: usize| equals("id", &session::id(number % stored));
            runner
                .calls(1, |client, number| query(client, page(Some(filter(number)), ""), 1))
                .await
        }
        Work::QueryIndexed => {
            let filter = |number: usize| equals("user_id", &session::user_id(number % stored));
            runner
                .calls(1, |client, number| query(client, page(Some(filter(number)), ""), 1))
                .await
        }
        Work::QueryPage => runner.calls(1, |client, _| query(client, page(None, ""), 10)).await,
        Work::QueryUnindexed => {
            let request = page(Some(equals("idp_id", "no such provider")), "");
            runner
                .calls(stored, |client, _| query(client, request.clone(), 0))
                .await
        }
        Work::QueryText => {
            let request = page(None, "no such text");
            runner
                .calls(stored, |client, _| query(client, request.clone(), 0))
                .await
        }
        Work::RenewLease => runner.leases().await,
        Work::SyncLatest => runner.whole(read_latest).await,
        Work::Replay => runner.whole(read_changes).await,
        Work::FanOut(streams) => runner.fan_out(streams).await,
    }
}

struct Runner<'a> {
    process: &'a Process,
    /// How many records there are.
    stored: usize,
    /// The number of the next record that is not there.
    fresh: &'a AtomicUsize,
    duration: Duration,
    callers: usize,
}

impl Runner<'_> {
    /// Calls, one after the other in each caller, until the time is up. The number counts calls over all callers.
    async fn calls<F>(&self, operations: usize, call: impl Fn(Client, usize) -> F) -> anyhow::Result<Done>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let clients = self.connect(self.callers, CALLERS_PER_CONNECTION).await?;
        let number = AtomicUsize::new(0);
        // Scattered over the store, the same in each run.
        let next = || number.fetch_add(1, Ordering::Relaxed).wrapping_mul(7919);
        for client in &clients {
            call(client.clone(), next()).await?;
        }
        let before = self.process.times()?;
        let begun = Instant::now();
        let callers = clients.iter().map(|client| {
            let (call, next) = (&call, &next);
            async move {
                let mut latencies = Vec::new();
                while begun.elapsed() < self.duration {
                    let called = Instant::now();
                    call(client.clone(), next()).await?;
                    latencies.push(called.elapsed());
                }
                anyhow::Ok(latencies)
            }
        });
        let latencies = try_join_all(callers).await?.concat();
        Ok(Done {
            operations: u64::try_from(latencies.len() * operations)?,
            latencies,
            elapsed: begun.elapsed(),
            times: self.process.times()? - before,
        })
    }

    async fn leases(&self) -> anyhow::Result<Done> {
        let mut client = self.process.target.connect().await?;
        let duration = prost_types::Duration { seconds: 30, nanos: 0 };
        let mut leases = Vec::new();
        for caller in 0..self.callers {
            let name = format!("lease-{caller}-{}", self.fresh.fetch_add(1, Ordering::Relaxed));
            let request = AcquireLeaseRequest {
                name: name.clone(),
                duration: Some(duration),
            };
            leases.push((name, client.acquire_lease(request).await?.into_inner().id));
        }
        let leases = Arc::new(leases);
        self.calls(1, |mut client, number| {
            let leases = Arc::clone(&leases);
            async move {
                let (name, id) = leases.get(number % leases.len()).context("no lease")?.clone();
                let request = RenewLeaseRequest {
                    name,
                    id,
                    duration: Some(duration),
                };
                client.renew_lease(request).await?;
                Ok(())
            }
        })
        .await
    }

    /// Reads everything, again until the time is up. The reading gives the number of records.
    async fn whole<F>(&self, read: impl Fn(Client) -> F) -> anyhow::Result<Done>
    where
        F: Future<Output = anyhow::Result<u64>>,
    {
        let client = self.process.target.connect().await?;
        let before = self.process.times()?;
        let begun = Instant::now();
        let mut operations = 0;
        while begun.elapsed() < self.duration {
            let read = read(client.clone()).await?;
            ensure!(
                read >= u64::try_from(self.stored)?,
                "{read} of {} records came",
                self.stored
            );
            operations += read;
        }
        Ok(Done {
            operations,
            latencies: Vec::new(),
            elapsed: begun.elapsed(),
            times: self.process.times()? - before,
        })
    }

    /// Puts that streams see: 2,000, or fewer where there are so many streams that it would take minutes.
    async fn fan_out(&self, streams: usize) -> anyhow::Result<Done> {
        let puts = 2000.min(200_000 / streams);
        let mut client = self.process.target.connect().await?;
        let info = client.server_info(()).await?.into_inner();
        let clients = self.connect(streams, STREAMS_PER_CONNECTION).await?;
        // A stream that opens late misses nothing, since it reads from the version at which all began.
        let readers: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let request = SyncRequest {
                    server_version: info.server_version,
                    record_version: info.latest_record_version,
                    r#type: session::TYPE.to_owned(),
                    wait: Some(true),
                };
                tokio::spawn(async move {
                    let mut stream = client.sync(request).await?.into_inner();
                    let mut seen = 0;
                    while seen < puts {
                        let message = stream.message().await?.context("the stream ended")?;
                        seen += usize::from(matches!(message.response, Some(sync_response::Response::Record(_))));
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        // So that opening the streams is not measured; nothing depends on it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = self.process.times()?;
        let begun = Instant::now();
        for _ in 0..puts {
            let records = vec![session::record(self.fresh.fetch_add(1, Ordering::Relaxed))];
            client.put(PutRequest { records }).await?;
        }
        for reader in readers {
            reader.await??;
        }
        Ok(Done {
            operations: u64::try_from(streams * puts)?,
            latencies: Vec::new(),
            elapsed: begun.elapsed(),
            times: self.process.times()? - before,
        })
    }

    /// A client for each of so many, with a connection for each so many of them.
    async fn connect(&self, count: usize, per_connection: usize) -> anyhow::Result<Vec<Client>> {
        let mut clients = Vec::with_capacity(count);
        while clients.len() < count {
            let client = self.process.target.connect().await?;
            let more = per_connection.min(count - clients.len());
            clients.extend(std::iter::repeat_n(client, more));
        }
        Ok(clients)
    }
}

async fn get(mut client: Client, number: usize) -> anyhow::Result<()> {
    let request = GetRequest {
        r#type: session::TYPE.to_owned(),
        id: session::id(number),
    };
    let record = client.get(request).await?.into_inner().record;
    ensure!(record.is_some(), "Get answered nothing");
    Ok(())
}

async fn query(mut client: Client, request: QueryRequest, expected: usize) -> anyhow::Result<()> {
    let found = client.query(request).await?.into_inner().records.len();
    // The bare server answers as many as the limit allows, and Pomerium's answers nothing to some filters.
    ensure!(
        found <= 10 && (found > 0 || expected != 10),
        "Query answered {found} records"
    );
    Ok(())
}

async fn read_latest(mut client: Client) -> anyhow::Result<u64> {
    let request = SyncLatestRequest {
        r#type: session::TYPE.to_owned(),
    };
    let mut stream = client.sync_latest(request).await?.into_inner();
    let mut count = 0;
    while let Some(message) = stream.message().await? {
        count += u64::from(matches!(
            message.response,
            Some(sync_latest_response::Response::Record(_))
        ));
    }
    Ok(count)
}

async fn read_changes(mut client: Client) -> anyhow::Result<u64> {
    let info = client.server_info(()).await?.into_inner();
    let request = SyncRequest {
        server_version: info.server_version,
        record_version: 0,
        r#type: session::TYPE.to_owned(),
        wait: Some(false),
    };
    let mut stream = client.sync(request).await?.into_inner();
    let mut count = 0;
    while let Some(message) = stream.message().await? {
        count += u64::from(matches!(message.response, Some(sync_response::Response::Record(_))));
    }
    Ok(count)
}

fn equals(field: &str, value: &str) -> Struct {
    let value = Value {
        kind: Some(ValueKind::StringValue(value.to_owned())),
    };
    Struct {
        fields: [(field.to_owned(), value)].into(),
    }
}
