//! Does the work of a workload: the calls of its callers, and what they took.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use databroker_benchmark::session;
use databroker_proto::databroker::*;
use futures::future::try_join_all;
use prost_types::value::Kind as ValueKind;
use prost_types::{FieldMask, Struct, Value};
use tokio::sync::mpsc;

use crate::client::Client;
use crate::process::{Process, Times};
use crate::reader::Reader;
use crate::workload::{Work, Workload};

/// Callers that share a connection, as those of one of Pomerium's processes do.
const CALLERS_PER_CONNECTION: usize = 16;

/// Sync streams that share a connection.
const STREAMS_PER_CONNECTION: usize = 100;

/// Records in one Put while a store is filled.
const FILLING: usize = 100;

/// A workload of Puts writes no more new records than this, so that the stores have room for those of all of them. On a quick
/// machine they are written before the time is up.
const MOST_NEW: usize = 200_000;

/// How long leases are taken for.
const LEASE: prost_types::Duration = prost_types::Duration { seconds: 30, nanos: 0 };

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
    /// Records that another client read meanwhile, where one did.
    pub read_beside: Option<u64>,
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

/// How much is done of a workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// For how long calls are made.
    pub duration: Duration,
    /// How many Puts are delivered to streams.
    pub puts: usize,
}

/// Runs a workload on a server that holds so many sessions.
pub(crate) async fn run(
    workload: &Workload,
    process: &Process,
    stored: usize,
    fresh: &AtomicUsize,
    effort: Effort,
) -> anyhow::Result<Done> {
    let runner = Runner {
        process,
        stored,
        fresh,
        effort,
        callers: workload.callers,
        most_calls: match workload.work {
            Work::Put(batch) => MOST_NEW / batch,
            _ => usize::MAX,
        },
    };
    match workload.work {
        // Both are known without anything being done here.
        Work::ColdStart | Work::Memory => Ok(Done::default()),
        Work::Get => runner.calls(1, |client, number| get(client, number % stored)).await,
        Work::Put(batch) => runner.calls(batch, |client, _| put(client, fresh, batch)).await,
        Work::Overwrite => {
            runner
                .calls(1, |client, number| {
                    put_records(client, vec![session::record(number % stored)])
                })
                .await
        }
        Work::Patch => runner.calls(1, |client, number| patch(client, number % stored)).await,
        Work::QueryId => {
            let filter = |number: usize| equals("id", &session::id(number % stored));
            runner
                .calls(1, |client, number| query(client, page(Some(filter(number)), ""), 1))
                .await
        }
        Work::QueryIndexed => {
            runner
                .calls(1, |client, number| query_user(client, number % stored))
                .await
        }
        Work::QueryPage => runner.calls(1, |client, _| query_page(client, stored)).await,
        Work::QueryUnindexed => {
            let request = page(Some(equals(session::UNINDEXED, "no such provider")), "");
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
        Work::AcquireLease => runner.calls(1, acquire_and_release).await,
        Work::RenewLease => {
            let leases = runner.leases().await?;
            runner
                .calls(1, |client, number| renew(client, Arc::clone(&leases), number))
                .await
        }
        Work::SyncLatest => runner.whole(read_latest).await,
        Work::Replay => runner.whole(read_changes).await,
        Work::Mixed {
            rate,
            during_sync_latest,
        } => {
            let leases = runner.leases().await?;
            let reader = if during_sync_latest {
                Some(Reader::start(process.target.clone()).await?)
            } else {
                None
            };
            let mixed = |client: Client, number: usize| {
                let leases = Arc::clone(&leases);
                async move {
                    match number % 10 {
                        0 => put(client, fresh, 1).await,
                        1 => patch(client, number % stored).await,
                        2 => query_user(client, number % stored).await,
                        3 => renew(client, leases, number).await,
                        _ => get(client, number % stored).await,
                    }
                }
            };
            let read = || reader.as_ref().map(Reader::records);
            let before = read();
            let mut done = runner.paced(rate, mixed).await?;
            done.read_beside = read().zip(before).map(|(after, before)| after - before);
            if let Some(reader) = reader {
                reader.stop()?;
                // What the reading cost is in the processor's time, too, so a cost per call would mean nothing.
                done.times = Times::default();
            }
            Ok(done)
        }
        Work::FanOut(streams) => runner.fan_out(streams).await,
    }
}

struct Runner<'a> {
    process: &'a Process,
    /// How many records there are.
    stored: usize,
    /// The number of the next record that is not there.
    fresh: &'a AtomicUsize,
    effort: Effort,
    callers: usize,
    /// Calls are made until the time is up, or so many were made.
    most_calls: usize,
}

impl Runner<'_> {
    /// Calls, one after the other in each caller, until the time is up or there were enough. The number counts calls over
    /// all callers.
    async fn calls<F>(&self, operations: usize, call: impl Fn(Client, usize) -> F) -> anyhow::Result<Done>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (clients, numbers) = self.warmed_up(&call).await?;
        let (before, begun) = self.begin()?;
        let callers = clients.iter().map(|client| {
            let (call, numbers) = (&call, &numbers);
            async move {
                let mut latencies = Vec::new();
                while begun.elapsed() < self.effort.duration && numbers.given() < self.most_calls {
                    let called = Instant::now();
                    call(client.clone(), numbers.next()).await?;
                    latencies.push(called.elapsed());
                }
                anyhow::Ok(latencies)
            }
        });
        let latencies = try_join_all(callers).await?.concat();
        self.done(before, begun, u64::try_from(latencies.len() * operations)?, latencies)
    }

    /// So many calls a second, spread over the callers, until the time is up. A call that is made late because the one
    /// before took so long counts from when it was due: otherwise the server would be asked less while it is slow.
    async fn paced<F>(&self, rate: usize, call: impl Fn(Client, usize) -> F) -> anyhow::Result<Done>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let (clients, numbers) = self.warmed_up(&call).await?;
        let between = Duration::from_secs(1) / u32::try_from(rate)?;
        let (before, begun) = self.begin()?;
        let callers = (0..).zip(&clients).map(|(place, client)| {
            let (call, numbers) = (&call, &numbers);
            async move {
                let mut latencies = Vec::new();
                let mut due = begun + between * place;
                while due < begun + self.effort.duration {
                    let mut called = due;
                    if Instant::now() < due {
                        tokio::time::sleep_until(due.into()).await;
                        // The timer is late by up to a millisecond, which is not the server's doing.
                        called = Instant::now();
                    }
                    call(client.clone(), numbers.next()).await?;
                    latencies.push(called.elapsed());
                    due += between * u32::try_from(self.callers)?;
                }
                anyhow::Ok(latencies)
            }
        });
        let latencies = try_join_all(callers).await?.concat();
        self.done(before, begun, u64::try_from(latencies.len())?, latencies)
    }

    /// Connected callers, each of which has made a call, and the numbers of the calls to come.
    async fn warmed_up<F>(&self, call: impl Fn(Client, usize) -> F) -> anyhow::Result<(Vec<Client>, Numbers)>
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let clients = self.connect(self.callers, CALLERS_PER_CONNECTION).await?;
        let numbers = Numbers::default();
        for client in &clients {
            call(client.clone(), numbers.next()).await?;
        }
        Ok((clients, numbers))
    }

    /// A lease for each caller.
    async fn leases(&self) -> anyhow::Result<Arc<Vec<(String, String)>>> {
        let mut client = self.process.target.connect().await?;
        let mut leases = Vec::new();
        for caller in 0..self.callers {
            let name = format!("lease-{caller}-{}", self.fresh.fetch_add(1, Ordering::Relaxed));
            let request = AcquireLeaseRequest {
                name: name.clone(),
                duration: Some(LEASE),
            };
            leases.push((name, client.acquire_lease(request).await?.into_inner().id));
        }
        Ok(Arc::new(leases))
    }

    /// Reads everything, again until the time is up, which is a call. The reading gives the number of records.
    async fn whole<F>(&self, read: impl Fn(Client) -> F) -> anyhow::Result<Done>
    where
        F: Future<Output = anyhow::Result<u64>>,
    {
        let client = self.process.target.connect().await?;
        let (before, begun) = self.begin()?;
        let mut operations = 0;
        let mut latencies = Vec::new();
        while begun.elapsed() < self.effort.duration {
            let called = Instant::now();
            let read = read(client.clone()).await?;
            latencies.push(called.elapsed());
            ensure!(
                read >= u64::try_from(self.stored)?,
                "{read} of {} records came",
                self.stored
            );
            operations += read;
        }
        self.done(before, begun, operations, latencies)
    }

    /// Puts that streams see, one after the other, once every stream has seen one that is not counted; done once every stream
    /// has all. The latency is that of a Put.
    async fn fan_out(&self, streams: usize) -> anyhow::Result<Done> {
        let puts = self.effort.puts;
        let mut client = self.process.target.connect().await?;
        let info = client.server_info(()).await?.into_inner();
        let clients = self.connect(streams, STREAMS_PER_CONNECTION).await?;
        let (opened, mut opening) = mpsc::channel::<()>(streams);
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
                let mut opened = Some(opened.clone());
                tokio::spawn(async move {
                    let mut stream = client.sync(request).await?.into_inner();
                    let mut seen = 0;
                    while seen <= puts {
                        let message = stream.message().await?.context("the stream ended")?;
                        if matches!(message.response, Some(sync_response::Response::Record(_))) {
                            seen += 1;
                            drop(opened.take());
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        drop(opened);
        put(client.clone(), self.fresh, 1).await?;
        // Until each has let go of it, by seeing that Put or by failing.
        let _: Option<()> = opening.recv().await;
        let (before, begun) = self.begin()?;
        let mut latencies = Vec::new();
        for _ in 0..puts {
            let called = Instant::now();
            put(client.clone(), self.fresh, 1).await?;
            latencies.push(called.elapsed());
        }
        for reader in readers {
            reader.await??;
        }
        self.done(before, begun, u64::try_from(streams * puts)?, latencies)
    }

    /// Before something is measured.
    fn begin(&self) -> anyhow::Result<(Times, Instant)> {
        Ok((self.process.times()?, Instant::now()))
    }

    /// What was done since.
    fn done(&self, before: Times, begun: Instant, operations: u64, latencies: Vec<Duration>) -> anyhow::Result<Done> {
        Ok(Done {
            operations,
            latencies,
            elapsed: begun.elapsed(),
            times: self.process.times()? - before,
            read_beside: None,
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

/// Numbers of calls, scattered over the store, the same in each run.
#[derive(Default)]
struct Numbers(AtomicUsize);

impl Numbers {
    fn given(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn next(&self) -> usize {
        self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(7919)
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

/// Puts so many new ones.
async fn put(client: Client, fresh: &AtomicUsize, count: usize) -> anyhow::Result<()> {
    let first = fresh.fetch_add(count, Ordering::Relaxed);
    put_records(client, (first..first + count).map(session::record).collect()).await
}

async fn put_records(mut client: Client, records: Vec<Record>) -> anyhow::Result<()> {
    let count = records.len();
    let answered = client.put(PutRequest { records }).await?.into_inner().records.len();
    ensure!(answered == count, "Put answered {answered} of {count} records");
    Ok(())
}

async fn patch(mut client: Client, number: usize) -> anyhow::Result<()> {
    let request = PatchRequest {
        records: vec![session::accessed(number)],
        field_mask: Some(FieldMask {
            paths: vec!["accessed_at".to_owned()],
        }),
    };
    let answer = client.patch(request).await?.into_inner();
    ensure!(answer.records.len() == 1, "Patch found nothing");
    Ok(())
}

async fn acquire_and_release(mut client: Client, number: usize) -> anyhow::Result<()> {
    let name = format!("lease-{number}");
    let request = AcquireLeaseRequest {
        name: name.clone(),
        duration: Some(LEASE),
    };
    let id = client.acquire_lease(request).await?.into_inner().id;
    client.release_lease(ReleaseLeaseRequest { name, id }).await?;
    Ok(())
}

async fn renew(mut client: Client, leases: Arc<Vec<(String, String)>>, number: usize) -> anyhow::Result<()> {
    let (name, id) = leases.get(number % leases.len()).context("no lease")?.clone();
    let request = RenewLeaseRequest {
        name,
        id,
        duration: Some(LEASE),
    };
    client.renew_lease(request).await?;
    Ok(())
}

async fn query_user(client: Client, number: usize) -> anyhow::Result<()> {
    let filter = equals("user_id", &session::user_id(number));
    query(client, page(Some(filter), ""), 1).await
}

/// The first ten.
fn page(filter: Option<Struct>, query: &str) -> QueryRequest {
    QueryRequest {
        r#type: session::TYPE.to_owned(),
        query: query.to_owned(),
        limit: 10,
        filter,
        ..QueryRequest::default()
    }
}

/// A server that finds less than there is would look fast.
async fn query(mut client: Client, request: QueryRequest, expected: usize) -> anyhow::Result<()> {
    let found = client.query(request).await?.into_inner().records.len();
    ensure!(found == expected, "Query answered {found} records and not {expected}");
    Ok(())
}

/// The first ten of so many, which the answer has to count.
async fn query_page(mut client: Client, stored: usize) -> anyhow::Result<()> {
    let answer = client.query(page(None, "")).await?.into_inner();
    let (found, total) = (answer.records.len(), answer.total_count);
    ensure!(
        found == stored.min(10) && total == i64::try_from(stored)?,
        "Query answered {found} records, and that there are {total} of {stored}"
    );
    Ok(())
}

async fn read_latest(mut client: Client) -> anyhow::Result<u64> {
    let mut stream = client.sync_latest(all_latest()).await?.into_inner();
    let mut count = 0;
    while let Some(message) = stream.message().await? {
        count += u64::from(matches!(
            message.response,
            Some(sync_latest_response::Response::Record(_))
        ));
    }
    Ok(count)
}

pub(crate) fn all_latest() -> SyncLatestRequest {
    SyncLatestRequest {
        r#type: session::TYPE.to_owned(),
    }
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
