//! What an instance of a plugin may use, each bound with its default. The settings that change them, and why each is what it is,
//! are in docs/settings.md.

use std::time::Duration;

/// What an instance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_bytes: usize,
    /// How many linear memories it may have. Modules mostly share one, and each takes 4 GiB of addresses.
    pub memories: usize,
    /// How many tables it may have; most modules have one.
    pub tables: usize,
    /// Elements of all tables together, of 16 bytes each.
    pub table_elements: usize,
    /// How many modules it may be made of once it runs: those of an interpreter and its shared libraries are some dozens.
    pub instances: usize,
    /// Handles of whatever kind, those of calls of the host's that have no answer yet among them; one more ends it. A handle takes
    /// some hundred bytes of the host, the fields of an HTTP request and a call that waits 8 KiB at most.
    pub handles: usize,
    /// Transactions of its database, with those that wait for a connection. Each holds one of the pool's until it ends.
    pub transactions: usize,
    /// Listeners to its database; one more ends it. Each is a connection beside the pool.
    pub listeners: usize,
    /// Lines of the log that may come at once; what is beyond is left out and counted.
    pub log_burst: u32,
    /// Lines a second that may come after those; 1 at least.
    pub log_rate: u32,
    /// For how long it may compute for one call, with what the host computes for it. The time that the call waits does not
    /// count; it is measured in steps of 10 ms, of which going on after a pause is one.
    pub compute: Duration,
    /// For how long it may compute without giving other calls their turn, which is as long as one call delays the others.
    /// Only while it opens its store, with no other calls there, it may take longer.
    pub turn: Duration,
    /// Bytes of what one call may return.
    pub answer_bytes: usize,
    /// Most records that it is asked for in one page, or to evict in one call; 1 at least.
    pub page_records: u32,
    /// How long a call may take, waiting for whatever the plugin asks of the host included, but not the time in which the
    /// instance computes for other calls. Ten times as long in any case.
    pub call: Duration,
    /// How many calls may be under way at once; 1 at least.
    pub calls: usize,
    /// How many more may wait to be let in.
    pub queue: usize,
    /// How long one may wait to be let in.
    pub queue_time: Duration,
}

impl Default for Limits {
    /// All the memory that 32 bits can address, 30 seconds of computing, 10 of them at a stretch, and 128 MiB; a minute for a
    /// call, 1024 of them, and 4096 more that wait for 10 seconds at most. Of all else far more than a plugin comes to that works.
    fn default() -> Self {
        Self {
            // The last page of the 4 GiB stays out, since no length of 32 bits can say the whole.
            memory_bytes: usize::try_from((1_u64 << 32) - (1 << 16)).unwrap_or(usize::MAX),
            memories: 100,
            tables: 1000,
            table_elements: 1_000_000,
            instances: 1000,
            handles: 16 * 1024,
            transactions: 64,
            listeners: 8,
            log_burst: 200,
            log_rate: 20,
            compute: Duration::from_secs(30),
            turn: Duration::from_secs(10),
            answer_bytes: 128 * 1024 * 1024,
            page_records: 1024,
            call: Duration::from_secs(60),
            calls: 1024,
            queue: 4096,
            queue_time: Duration::from_secs(10),
        }
    }
}

/// The least that [`Limits::answer_bytes`] may be set to, in bytes: what the interface allows must fit, or a plugin that keeps
/// its laws is ended over what a client may ask for. That is 64 MiB of tombstones, 8 MiB of keys, and the places of 2^17 outcomes.
pub const LEAST_ANSWER_BYTES: u64 = 96 << 20;
