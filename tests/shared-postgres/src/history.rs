//! What a history is: what clients asked, what they were answered and when, what streams delivered, and the change log as it
//! stood in the end.
//!
//! Every text that a client writes is written by one call of it alone. So a record read anywhere tells which calls made it
//! what it is, also where a call's answer was lost.

use std::time::Duration;

/// What a record holds: two texts. A put writes one text into both, a patch another one into one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content(pub [String; 2]);

impl Content {
    /// What a put writes.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self([text.to_owned(), text.to_owned()])
    }
}

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To write this text into both fields of each of these records, all or none.
    Put {
        /// The records.
        ids: Vec<String>,
        /// The text.
        text: String,
    },
    /// To delete a record.
    Delete {
        /// The record.
        id: String,
    },
    /// To write a text into one field of a record.
    Patch {
        /// The record.
        id: String,
        /// The field: 0 or 1.
        field: usize,
        /// The text.
        text: String,
    },
    /// For a record.
    Get {
        /// The record.
        id: String,
    },
    /// For all records.
    Latest,
    /// For the records that have this text in this field, or for all.
    Query {
        /// The field, 0 or 1, and the text.
        filter: Option<(usize, String)>,
    },
    /// To remove everything.
    Clear,
    /// To hold a lease, anew or for longer.
    Hold {
        /// The lease.
        name: String,
        /// The one who asks.
        holder: String,
        /// For how long.
        time: Duration,
        /// True where it has the lease as far as it knows.
        renews: bool,
    },
    /// To give a lease back.
    Release {
        /// The lease.
        name: String,
        /// The one who has it.
        holder: String,
    },
}

/// What the client was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Written, with these versions; 0 for what was not there to delete.
    Written(Vec<u64>),
    /// A record, or none.
    Found(Option<(u64, Content)>),
    /// All records by id, or all that were asked for, as new as the version.
    All {
        /// The server version that they belong to.
        server_version: u64,
        /// The version.
        through: u64,
        /// The records.
        records: Vec<(String, u64, Content)>,
    },
    /// Everything is gone, and this server version has followed that one.
    Cleared {
        /// The one before.
        before: u64,
        /// The one that is new.
        after: u64,
    },
    /// Yes: the lease is held, or given back.
    Granted,
    /// No, and nothing was changed.
    Refused,
    /// Nobody knows what came of it.
    Unknown(String),
}

/// A call. Times are since the history's beginning, by one clock.
#[derive(Clone, Debug)]
pub struct Call {
    /// The host that was asked.
    pub host: usize,
    /// When it was asked.
    pub began: Duration,
    /// When the answer was there.
    pub ended: Duration,
    /// What was asked.
    pub asked: Asked,
    /// What was answered.
    pub answer: Answer,
}

/// A row of the change log, by itself or as a stream delivered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its version.
    pub version: u64,
    /// The record.
    pub id: String,
    /// What it holds from then on; none where it was deleted.
    pub content: Option<Content>,
}

/// What one reader of Sync got under one server version, over all the streams that it opened one after the other, each from
/// where the one before had ended. After a Clear it begins anew.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    /// The server version.
    pub server_version: u64,
    /// The version after which it began.
    pub after: u64,
    /// What came, and when.
    pub changes: Vec<(Duration, Change)>,
    /// How often a stream ended and was opened again.
    pub resumed: usize,
    /// When it was told (ABORTED) that there is another server version; none where it never was.
    pub ended: Option<Duration>,
    /// Why it gave up: an end of a stream after which it cannot go on from where it was.
    pub gave_up: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The calls.
    pub calls: Vec<Call>,
    /// The readers of Sync.
    pub readers: Vec<Reader>,
    /// The change log from the beginning of the history, or the last Clear, to its end.
    pub log: Vec<Change>,
    /// The server version in the end.
    pub server_version: u64,
    /// True where every writer was a host of this project: their versions follow each other as their calls do, and a put's
    /// versions are next to each other.
    pub ours_alone: bool,
}
