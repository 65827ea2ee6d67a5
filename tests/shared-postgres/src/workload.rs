//! Clients that write, read, hold leases and follow streams, all at once and through all hosts, and record what they see.
//!
//! They share few records and few leases, so that they are in each other's way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use databroker_proto::databroker::Record;
use databroker_proto::databroker::sync_response::Response;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::client::{Client, content_of};
use crate::history::{Answer, Asked, Call, Change, Content, History, Reader};

/// How many records there are.
const RECORDS: usize = 12;

/// How many leases there are.
const LEASES: usize = 2;

/// After so many changes a reader that roams goes on at another host.
const ROAM: usize = 300;

/// How many clients there are of each kind.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Clients that write and read.
    pub writers: usize,
    /// Clients that only read.
    pub readers: usize,
    /// Clients that hold leases.
    pub holders: usize,
    /// How long a client rests between two calls.
    pub pause: Duration,
    /// What the clients' choices follow from. No other run on the same database may have it.
    pub seed: u64,
    /// True where all servers are hosts of this project.
    pub ours_alone: bool,
    /// For how long a lease is asked for.
    pub lease: Duration,
    /// How long recovery may take in the end. What a reader has not got by then is missing.
    pub patience: Duration,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            writers: 6,
            readers: 2,
            holders: 3,
            pause: Duration::from_millis(4),
            seed: 1,
            ours_alone: true,
            lease: Duration::from_millis(1500),
            patience: Duration::from_secs(60),
        }
    }
}

/// The clients at work.
pub struct Workload {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    streams: JoinSet<Vec<Reader>>,
    /// The version that readers end with; 0 as long as clients work.
    last: watch::Sender<u64>,
    server_version: u64,
    after: u64,
}

struct Shared {
    begun: Instant,
    hosts: Vec<Client>,
    load: Load,
    calls: Mutex<Vec<Call>>,
    stopping: watch::Sender<bool>,
    /// How many texts were given out.
    texts: AtomicU64,
}

impl Workload {
    /// Starts the clients of the databrokers at these ports.
    ///
    /// # Errors
    ///
    /// If the first one does not answer.
    pub async fn start(ports: &[u16], load: Load) -> Result<Self> {
        // What another run has left would have come from nowhere.
        let record_type = format!("history/{}", load.seed);
        let hosts = ports
            .iter()
            .map(|port| Client::new(*port, &record_type))
            .collect::<Result<Vec<_>>>()?;
        let first = hosts.first().context("no host")?;
        // So that queries are answered by an index; after a Clear they are not.
        first.index(0).await?;
        let (_, versions) = first.latest().await?;
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            hosts,
            load,
            calls: Mutex::default(),
            stopping: watch::channel(false).0,
            texts: AtomicU64::new(0),
        });
        let (last, _) = watch::channel(0);
        let (server_version, after) = (versions.server_version, versions.latest_record_version);
        let mut streams = JoinSet::new();
        for host in 0..ports.len() {
            streams.spawn(read(
                Arc::clone(&shared),
                (server_version, after),
                host,
                false,
                last.subscribe(),
            ));
        }
        streams.spawn(read(
            Arc::clone(&shared),
            (server_version, after),
            0,
            true,
            last.subscribe(),
        ));
        let mut clients = JoinSet::new();
        let seeds = |number: usize| StdRng::seed_from_u64(load.seed.wrapping_mul(1000).wrapping_add(number as u64));
        for number in 0..load.writers + load.readers {
            clients.spawn(write(Arc::clone(&shared), seeds(number), number < load.writers));
        }
        for number in 0..load.holders {
            clients.spawn(hold(Arc::clone(&shared), seeds(500 + number), number));
        }
        Ok(Self {
            shared,
            clients,
            streams,
            last,
            server_version,
            after,
        })
    }

    /// The time since the beginning, by which calls are recorded.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.shared.begun.elapsed()
    }

    /// Looks at the calls that were made so far.
    pub fn calls<T>(&self, look: impl FnOnce(&[Call]) -> T) -> T {
        look(&self.shared.calls.lock())
    }

    /// Removes everything, through one host, while all others go on. What the Clear does is judged with everything else.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub async fn clear(&self, host: usize) -> Result<()> {
        let clearing = async {
            let client = self.shared.host(host).ok_or_else(|| Status::internal("no host"))?;
            let response = client.clear().await?;
            Ok(Answer::Cleared {
                before: response.old_server_version,
                after: response.new_server_version,
            })
        };
        let answer = self.shared.call(host, Asked::Clear, clearing).await;
        ensure!(matches!(answer, Answer::Cleared { .. }), "Clear fails: {answer:?}");
        Ok(())
    }

    /// Stops the clients, waits until the readers have got everything, reads the log, and gives the history.
    ///
    /// # Errors
    ///
    /// If no write succeeds in the end, or the log cannot be read.
    pub async fn finish(mut self) -> Result<History> {
        self.shared.stopping.send_replace(true);
        while let Some(result) = self.clients.join_next().await {
            result?;
        }
        // A call whose client has gone may still be at work, and is done before one that comes after it is.
        let begun = Instant::now();
        let marker = loop {
            let text = self.shared.text();
            let ids = vec!["marker".to_owned()];
            let answer = self.shared.put(0, ids, text).await;
            match answer {
                Answer::Written(versions) => break versions.first().copied().unwrap_or(0),
                other => ensure!(
                    begun.elapsed() < self.shared.load.patience,
                    "no write succeeds in the end: {other:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        self.last.send_replace(marker);
        let mut readers = Vec::new();
        while let Some(reader) = self.streams.join_next().await {
            readers.extend(reader?);
        }
        let host = self.shared.hosts.first().context("no host")?;
        let info = host.server_info().await?;
        // After a Clear there is another log, with nothing in it from before.
        let after = if info.server_version == self.server_version {
            self.after
        } else {
            info.earliest_record_version.saturating_sub(1)
        };
        let mut log = Vec::new();
        let reading = async {
            let mut stream = host.sync(info.server_version, after).await?;
            while let Some(message) = stream.message().await? {
                if let Some(Response::Record(record)) = message.response {
                    let is_last = record.version >= marker;
                    log.push(change(record));
                    if is_last {
                        break;
                    }
                }
            }
            anyhow::Ok(())
        };
        // A log that does not come to its end lacks what was acknowledged last.
        if let Ok(read) = tokio::time::timeout(self.shared.load.patience, reading).await {
            read?;
        }
        let calls = std::mem::take(&mut *self.shared.calls.lock());
        Ok(History {
            calls,
            readers,
            log,
            server_version: info.server_version,
            ours_alone: self.shared.load.ours_alone,
        })
    }
}

fn change(record: Record) -> Change {
    Change {
        version: record.version,
        content: record
            .deleted_at
            .is_none()
            .then(|| content_of(&record).unwrap_or_default()),
        id: record.id,
    }
}

impl Shared {
    fn host(&self, number: usize) -> Option<&Client> {
        self.hosts.get(number)
    }

    fn any(&self, random: &mut StdRng) -> usize {
        random.random_range(0..self.hosts.len())
    }

    /// A text that nobody else writes.
    fn text(&self) -> String {
        format!("t{}", self.texts.fetch_add(1, Ordering::Relaxed))
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Makes a call and records it.
    async fn call(&self, host: usize, asked: Asked, calling: impl Future<Output = Result<Answer, Status>>) -> Answer {
        let began = self.begun.elapsed();
        let answer = match calling.await {
            Ok(answer) => answer,
            Err(status) => failure(&asked, &status),
        };
        let call = Call {
            host,
            began,
            ended: self.begun.elapsed(),
            asked,
            answer: answer.clone(),
        };
        self.calls.lock().push(call);
        answer
    }

    async fn put(&self, host: usize, ids: Vec<String>, text: String) -> Answer {
        let records: Vec<_> = ids.iter().map(|id| (id.clone(), Some(Content::of(&text)))).collect();
        let calling = async {
            let client = self.host(host).ok_or_else(|| Status::internal("no host"))?;
            client.put(&records).await.map(Answer::Written)
        };
        self.call(host, Asked::Put { ids, text }, calling).await
    }
}

/// What an error says of what was asked. That of a lease never says that another holds it, which is no error: a store whose
/// disk is full keeps a holder from renewing what is still its own.
fn failure(asked: &Asked, status: &Status) -> Answer {
    let is_lease = matches!(asked, Asked::Hold { .. } | Asked::Release { .. });
    match status.code() {
        Code::NotFound
        | Code::AlreadyExists
        | Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::ResourceExhausted
        | Code::Unauthenticated
            if !is_lease =>
        {
            Answer::Refused
        }
        code => Answer::Unknown(format!("{code:?}: {}", status.message())),
    }
}

/// Writes and reads, or only reads, until the end.
async fn write(shared: Arc<Shared>, mut random: StdRng, writes: bool) {
    // What was found last, to query for.
    let mut found: Option<(usize, String)> = None;
    while !shared.is_stopping() {
        let host = shared.any(&mut random);
        let Some(client) = shared.host(host) else { return };
        let mut id = || format!("r{}", random.random_range(0..RECORDS));
        let (first, second, third) = (id(), id(), id());
        let kind = if writes {
            random.random_range(0..100)
        } else {
            80 + random.random_range(0..20)
        };
        let answer = match kind {
            0..35 => shared.put(host, vec![first], shared.text()).await,
            35..45 => {
                let mut ids = vec![first, second, third];
                ids.sort();
                ids.dedup();
                shared.put(host, ids, shared.text()).await
            }
            45..65 => {
                let (field, text) = (kind % 2, shared.text());
                let asked = Asked::Patch {
                    id: first.clone(),
                    field,
                    text: text.clone(),
                };
                let patching = async {
                    let version = client.patch(&first, field, &text).await?;
                    Ok(Answer::Written(vec![version]))
                };
                shared.call(host, asked, patching).await
            }
            65..78 => {
                let records = [(first.clone(), None)];
                let deleting = async { client.put(&records).await.map(Answer::Written) };
                shared.call(host, Asked::Delete { id: first }, deleting).await
            }
            78..90 => {
                let getting = async { client.get(&first).await.map(Answer::Found) };
                let answer = shared.call(host, Asked::Get { id: first.clone() }, getting).await;
                if let Answer::Found(Some((_, Content(texts)))) = &answer {
                    let field = random.random_range(0..texts.len());
                    found = texts.get(field).map(|text| (field, text.clone()));
                }
                answer
            }
            90..95 => {
                let filter = found.take();
                let querying = async {
                    let response = client.query(filter.as_ref()).await?;
                    Ok(Answer::All {
                        server_version: response.server_version,
                        through: response.record_version,
                        records: contents(response.records),
                    })
                };
                let filter = filter.clone();
                shared.call(host, Asked::Query { filter }, querying).await
            }
            _ => {
                let reading = async {
                    let (records, versions) = client.latest().await?;
                    Ok(Answer::All {
                        server_version: versions.server_version,
                        through: versions.latest_record_version,
                        records: contents(records),
                    })
                };
                shared.call(host, Asked::Latest, reading).await
            }
        };
        rest(&shared, &answer).await;
    }
}

/// Records by id, as a history has them.
fn contents(records: Vec<Record>) -> Vec<(String, u64, Content)> {
    let contents = records.into_iter().map(|record| {
        let content = content_of(&record).unwrap_or_default();
        (record.id, record.version, content)
    });
    contents.collect()
}

async fn rest(shared: &Shared, answer: &Answer) {
    let pause = match answer {
        Answer::Unknown(_) => Duration::from_millis(50),
        _ => shared.load.pause,
    };
    tokio::time::sleep(pause).await;
}

/// Takes leases, keeps them for a while and gives them back, or not.
async fn hold(shared: Arc<Shared>, mut random: StdRng, number: usize) {
    let time = shared.load.lease;
    let mut count = 0;
    while !shared.is_stopping() {
        count += 1;
        let holder = format!("holder{number}.{count}");
        let name = format!("lease{}.{}", shared.load.seed, random.random_range(0..LEASES));
        let asked = |renews| Asked::Hold {
            name: name.clone(),
            holder: holder.clone(),
            time,
            renews,
        };
        let mut lease = None;
        let host = shared.any(&mut random);
        let acquiring = async {
            let client = shared.host(host).ok_or_else(|| Status::internal("no host"))?;
            lease = client.acquire(&name, time).await?;
            Ok(if lease.is_some() {
                Answer::Granted
            } else {
                Answer::Refused
            })
        };
        let answer = shared.call(host, asked(false), acquiring).await;
        let Some(lease) = lease else {
            rest(&shared, &answer).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            continue;
        };
        for _ in 0..random.random_range(0..5) {
            tokio::time::sleep(time / 5).await;
            let host = shared.any(&mut random);
            let Some(client) = shared.host(host) else { return };
            let renewing = async {
                let renewed = client.renew(&name, &lease, time).await?;
                Ok(if renewed { Answer::Granted } else { Answer::Refused })
            };
            if shared.call(host, asked(true), renewing).await == Answer::Refused {
                break;
            }
        }
        // Some go without a word.
        if [true, true, true, false].choose(&mut random) == Some(&true) {
            let host = shared.any(&mut random);
            let Some(client) = shared.host(host) else { return };
            let asked = Asked::Release {
                name: name.clone(),
                holder: holder.clone(),
            };
            let releasing = async { client.release(&name, &lease).await.map(|()| Answer::Granted) };
            shared.call(host, asked, releasing).await;
        }
    }
}

/// Follows the changes at one host, or at one after the other, through all that ends streams; begins anew after a Clear.
async fn read(
    shared: Arc<Shared>,
    (server_version, after): (u64, u64),
    mut host: usize,
    roams: bool,
    mut last: watch::Receiver<u64>,
) -> Vec<Reader> {
    let mut readers = Vec::new();
    let mut reader = Reader {
        server_version,
        after,
        ..Reader::default()
    };
    let mut position = after;
    loop {
        let following = follow(&shared, &mut reader, &mut position, host, roams, last.clone());
        let ended = tokio::select! {
            ended = following => ended,
            () = late(&mut last, shared.load.patience) => break,
        };
        match ended {
            Ok(true) => break,
            Ok(false) => {}
            Err(status) if matches!(status.code(), Code::Aborted | Code::Cancelled) => {
                let when = shared.begun.elapsed();
                let versions = tokio::select! {
                    versions = versions(&shared, host) => versions,
                    () = late(&mut last, shared.load.patience) => None,
                };
                if let Some((server_version, after)) = versions
                    && server_version != reader.server_version
                {
                    reader.ended = Some(when);
                    readers.push(std::mem::take(&mut reader));
                    reader.server_version = server_version;
                    reader.after = after;
                    position = after;
                    continue;
                }
                reader.gave_up = Some(format!(
                    "the stream of host {host} after {position} ended with {status}"
                ));
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        reader.resumed += 1;
        if roams {
            host = (host + 1) % shared.hosts.len();
        }
    }
    readers.push(reader);
    readers
}

/// Where a reader that was told of another server version begins, as Pomerium's clients do.
async fn versions(shared: &Shared, host: usize) -> Option<(u64, u64)> {
    loop {
        if let Ok((_, versions)) = shared.host(host)?.latest().await {
            return Some((versions.server_version, versions.latest_record_version));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends when the readers should long have got everything.
async fn late(last: &mut watch::Receiver<u64>, patience: Duration) {
    if last.wait_for(|last| *last > 0).await.is_err() {
        return;
    }
    tokio::time::sleep(patience).await;
}

/// Reads one stream. True once the last change has come, false where the reader goes on at another host.
async fn follow(
    shared: &Shared,
    reader: &mut Reader,
    position: &mut u64,
    host: usize,
    roams: bool,
    mut last: watch::Receiver<u64>,
) -> Result<bool, Status> {
    let client = shared.host(host).ok_or_else(|| Status::internal("no host"))?;
    let opening = client.sync(reader.server_version, *position);
    let mut stream = opening.await?;
    let mut count = 0;
    loop {
        let has_all = |position: u64, last: u64| last > 0 && position >= last;
        if has_all(*position, *last.borrow()) {
            return Ok(true);
        }
        if roams && count >= ROAM {
            return Ok(false);
        }
        let message = tokio::select! {
            message = stream.message() => message?,
            // The last change may have come before it was known to be the last one.
            _ = last.changed() => continue,
        };
        let Some(message) = message else {
            return Err(Status::unavailable("the stream has ended"));
        };
        if let Some(Response::Record(record)) = message.response {
            count += 1;
            *position = (*position).max(record.version);
            reader.changes.push((shared.begun.elapsed(), change(record)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nobodys_lease_away() {
        let full = Status::resource_exhausted("the disk is full");
        let delete = Asked::Delete { id: "a".to_owned() };
        let renewal = Asked::Hold {
            name: "a".to_owned(),
            holder: "b".to_owned(),
            time: Duration::from_secs(1),
            renews: true,
        };
        assert_eq!(failure(&delete, &full), Answer::Refused);
        assert!(matches!(failure(&renewal, &full), Answer::Unknown(_)));
    }
}
