//! The streams: Sync, which follows the change log, and SyncLatest, which reads what is there.
//!
//! A Sync stream reads from the hub while it keeps up and page by page from the backend while it does not. Whatever the
//! hub loses or the stream misses, it is the same log with the same versions, so the stream only has to remember its
//! place in it. Both streams belong to one server version and end with `InvalidServerVersion` once there is another: every
//! page says which one it was read under.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};

use super::hub::{Hub, Reading, Subscription};
use super::options::OptionsTable;
use super::{BrokerError, SyncLatestPage, SyncPage, SyncStart};
use crate::backend::{Backend, BackendError, ChangesPage, ChangesRequest, PageBounds, Position, ScanPage, ScanRequest};
use crate::record::{Key, Options, Version};
use crate::telemetry::metrics::Owed;

/// The bounds of the pages that streams read: what a slow stream holds.
const PAGE: PageBounds = PageBounds {
    records: 128,
    bytes: 64 << 10,
};

/// What streams are made of.
#[derive(Clone)]
pub struct Sources {
    /// Where pages come from.
    pub backend: Arc<dyn Backend>,
    /// Where new changes come from.
    pub hub: Arc<Hub>,
    /// Where options come from.
    pub options: Arc<OptionsTable>,
}

impl Sources {
    /// Reads a page of changes. Where the plugin stops over it, it is asked once more: the store may be open again by then, and
    /// the page says if its content is another.
    async fn changes(&self, request: ChangesRequest) -> Result<ChangesPage, BackendError> {
        match self.backend.changes(request.clone()).await {
            Err(BackendError::Stopped(_)) => self.backend.changes(request).await,
            answer => answer,
        }
    }

    /// Reads a page of records, in the same way.
    async fn scan(&self, request: ScanRequest) -> Result<ScanPage, BackendError> {
        match self.backend.scan(request.clone()).await {
            Err(BackendError::Stopped(_)) => self.backend.scan(request).await,
            answer => answer,
        }
    }
}

/// Lets everything else that is ready go first, requests that have come meanwhile included. A stream that reads page after page is
/// always ready; and as long as something is, the runtime looks at its sockets only after some dozens of steps, of which those
/// of such a stream are the longest.
async fn let_others_pass() {
    // In a task of its own: this one is woken by its connection whenever that has taken something, which is too soon. A task that
    // yields is not called again before the runtime has looked at its sockets. That it fails means that the runtime ends.
    let _ = tokio::spawn(tokio::task::yield_now()).await;
}

/// Begins a Sync stream. What is wrong with its beginning is said here and not in the stream.
pub async fn sync(
    sources: Sources,
    shared: bool,
    start: SyncStart,
) -> Result<BoxStream<'static, Result<SyncPage, BrokerError>>, BrokerError> {
    if sources.hub.ended() {
        return Err(BrokerError::ShuttingDown);
    }
    // What other hosts have written, or a write of unknown outcome, may not have reached the hub.
    let hub_knows = !shared && !sources.hub.in_doubt();
    if hub_knows && sources.hub.position().0 != start.server_version {
        return Err(BrokerError::InvalidServerVersion);
    }
    let mut stream = SyncStream {
        wake: sources.hub.subscribe(start.record_type.clone()),
        server_version: start.server_version,
        place: start.record_version,
        record_type: start.record_type,
        wait: start.wait,
        paging: !hub_knows || !sources.hub.reaches_back_to(start.record_version),
        options_seen: None,
        options_sent: BTreeMap::new(),
        ready: VecDeque::new(),
        owed: sources.hub.stream(),
        sources,
    };
    // The first reading finds out whether the log still reaches back so far.
    let caught_up = stream.read().await?;
    if shared {
        stream.meet_hub().await;
    }
    let begin = if caught_up && !stream.wait {
        State::Last(stream)
    } else {
        State::Live(stream)
    };
    Ok(stream::unfold(begin, State::next).boxed())
}

struct SyncStream {
    sources: Sources,
    /// Woken when there may be something to read.
    wake: Subscription,
    server_version: u64,
    /// Everything up to this version has been read.
    place: Version,
    record_type: Option<String>,
    wait: bool,
    /// Reading pages from the backend until it says that the place is the newest.
    paging: bool,
    /// The revision of the options when they were last looked at.
    options_seen: Option<u64>,
    /// What the client knows of options.
    options_sent: BTreeMap<String, Options>,
    /// What was read and not sent yet: options, and a page of changes.
    ready: VecDeque<SyncPage>,
    /// What metrics know of that.
    owed: Owed,
}

enum State {
    Live(SyncStream),
    /// Sends what is ready, then ends cleanly.
    Last(SyncStream),
    Done,
}

impl State {
    async fn next(self) -> Option<(Result<SyncPage, BrokerError>, Self)> {
        match self {
            Self::Done => None,
            Self::Last(mut stream) => {
                let page = stream.ready.pop_front()?;
                Some((Ok(page), Self::Last(stream)))
            }
            Self::Live(mut stream) => loop {
                if let Some(page) = stream.ready.pop_front() {
                    return Some((Ok(page), Self::Live(stream)));
                }
                match stream.read().await {
                    Err(error) => return Some((Err(error), Self::Done)),
                    Ok(false) => {}
                    Ok(true) if !stream.wait => {
                        let page = stream.ready.pop_front()?;
                        return Some((Ok(page), Self::Last(stream)));
                    }
                    Ok(true) if !stream.ready.is_empty() => {}
                    Ok(true) => {
                        stream.owed.nothing();
                        stream.wake.changed().await;
                    }
                }
            },
        }
    }
}

impl SyncStream {
    /// Waits until the hub has heard of the content that the store has, which a Clear through another host may have made a moment
    /// ago. It would take this stream for one of the content before.
    async fn meet_hub(&mut self) {
        /// Longer than a follower takes that can ask the store at all.
        const LONGEST: Duration = Duration::from_secs(5);
        let meet = async {
            loop {
                self.wake.mark_unchanged();
                if self.sources.hub.ended() || self.sources.hub.position().0 == self.server_version {
                    return;
                }
                self.wake.changed().await;
            }
        };
        // If it does not, the stream ends as one that has to begin again.
        let _ = tokio::time::timeout(LONGEST, meet).await;
    }

    /// Reads on from the stream's place; true if it has caught up.
    async fn read(&mut self) -> Result<bool, BrokerError> {
        self.wake.mark_unchanged();
        self.queue_options();
        if !self.paging {
            match self.wake.read(self.server_version, self.place) {
                Reading::Changes { changes, through } => {
                    if let Some(first) = changes.first() {
                        self.owed.from(first.record.version);
                        self.ready.push_back(SyncPage::Recent(changes));
                    }
                    self.place = through;
                    return Ok(false);
                }
                Reading::CaughtUp => return Ok(true),
                Reading::Behind => self.paging = true,
                Reading::Cleared => return Err(BrokerError::InvalidServerVersion),
                Reading::Ended => return Err(BrokerError::ShuttingDown),
            }
        }
        if self.sources.hub.ended() {
            return Err(BrokerError::ShuttingDown);
        }
        let_others_pass().await;
        self.read_page().await
    }

    async fn read_page(&mut self) -> Result<bool, BrokerError> {
        let request = ChangesRequest {
            after: self.place,
            record_type: self.record_type.clone(),
            bounds: PAGE,
        };
        let page = match self.sources.changes(request).await {
            Ok(page) => page,
            Err(BackendError::Pruned(_)) => {
                // A store that was cleared and filled again by another host may have pruned, too.
                let current = self.sources.backend.current().await?;
                return Err(if current.server_version == self.server_version {
                    BrokerError::InvalidRecordVersion
                } else {
                    BrokerError::InvalidServerVersion
                });
            }
            Err(error) => return Err(error.into()),
        };
        if page.position.server_version != self.server_version {
            return Err(BrokerError::InvalidServerVersion);
        }
        if let Some(first) = page.records.first() {
            self.owed.from(first.version);
            self.ready.push_back(SyncPage::Past(page.records));
        }
        self.place = self.place.max(page.through);
        if self.place >= page.position.latest_version {
            self.paging = false;
            // What came since is in the hub, or will wake the stream.
            return Ok(self.sources.hub.position().1 <= self.place);
        }
        Ok(false)
    }

    /// Queues the options that the client does not know yet.
    fn queue_options(&mut self) {
        let revision = self.sources.hub.options_revision();
        if self.options_seen == Some(revision) {
            return;
        }
        self.options_seen = Some(revision);
        let current = selected(&self.sources.options, self.record_type.as_deref());
        let mut changed = Vec::new();
        for (record_type, options) in &current {
            if self.options_sent.get(record_type) != Some(options) {
                changed.push((record_type.clone(), options.clone()));
            }
        }
        let gone = self.options_sent.keys().filter(|&known| !current.contains_key(known));
        changed.extend(gone.map(|record_type| (record_type.clone(), Options::default())));
        if !changed.is_empty() {
            self.ready.push_back(SyncPage::Options(changed));
        }
        self.options_sent = current;
    }
}

/// The options that a stream of this type, or of all types, carries.
fn selected(options: &OptionsTable, record_type: Option<&str>) -> BTreeMap<String, Options> {
    match record_type {
        None => options.all().as_ref().clone(),
        Some(record_type) => options
            .get(record_type)
            .map(|options| (record_type.to_owned(), options))
            .into_iter()
            .collect(),
    }
}

/// Begins a SyncLatest stream: the live records page by page, then the options, then the position. The position is the
/// first page's, from before the records were read: what was written since comes again by Sync.
pub async fn sync_latest(
    sources: Sources,
    record_type: Option<String>,
) -> Result<BoxStream<'static, Result<SyncLatestPage, BrokerError>>, BrokerError> {
    if sources.hub.ended() {
        return Err(BrokerError::ShuttingDown);
    }
    let mut stream = LatestStream {
        sources,
        record_type,
        position: None,
        ready: VecDeque::new(),
        after: None,
        reading: true,
    };
    stream.read_page().await?;
    Ok(stream::try_unfold(stream, LatestStream::next).boxed())
}

struct LatestStream {
    sources: Sources,
    record_type: Option<String>,
    /// Where the store stood at the first page.
    position: Option<Position>,
    /// What was read and not sent yet: a page of records, and what follows the last.
    ready: VecDeque<SyncLatestPage>,
    /// Where the next page begins.
    after: Option<Key>,
    /// False once the last page was read.
    reading: bool,
}

impl LatestStream {
    async fn next(mut self) -> Result<Option<(SyncLatestPage, Self)>, BrokerError> {
        while self.ready.is_empty() && self.reading {
            let_others_pass().await;
            self.read_page().await?;
        }
        Ok(self.ready.pop_front().map(|page| (page, self)))
    }

    async fn read_page(&mut self) -> Result<(), BrokerError> {
        if self.sources.hub.ended() {
            return Err(BrokerError::ShuttingDown);
        }
        let request = ScanRequest {
            record_type: self.record_type.clone(),
            hint: None,
            condition: None,
            after: self.after.take(),
            bounds: PAGE,
        };
        let page = self.sources.scan(request).await?;
        let position = *self.position.get_or_insert(page.position);
        if page.position.server_version != position.server_version {
            return Err(BrokerError::InvalidServerVersion);
        }
        self.after = page.records.last().map(|record| record.key.clone());
        self.reading = page.more;
        if !page.records.is_empty() {
            self.ready.push_back(SyncLatestPage::Records(page.records));
        }
        if !self.reading {
            let options = selected(&self.sources.options, self.record_type.as_deref());
            if !options.is_empty() {
                self.ready
                    .push_back(SyncLatestPage::Options(options.into_iter().collect()));
            }
            self.ready.push_back(SyncLatestPage::Position(position));
        }
        Ok(())
    }
}
