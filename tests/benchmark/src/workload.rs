//! The workloads: what Pomerium's processes do to a databroker, one thing at a time; and what is done at how many records.

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The start of the process, until its first answer.
    ColdStart,
    /// The memory that the server has once it was filled.
    Memory,
    /// Get of one record.
    Get,
    /// Put of so many new records a call.
    Put(usize),
    /// Put of a record that is there: the store keeps its size, so that this shows what that costs.
    Overwrite,
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
    /// A lease is acquired and released.
    AcquireLease,
    /// Renewal of a lease.
    RenewLease,
    /// SyncLatest of all records.
    SyncLatest,
    /// Sync from the first change to the last.
    Replay,
    /// Of ten calls six Gets, a Put, a Patch, a Query by an indexed field and a renewal of a lease.
    Mixed {
        /// Calls a second.
        rate: usize,
        /// While another client reads all records by SyncLatest again and again.
        during_sync_latest: bool,
    },
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
            Work::ColdStart => "Cold start, ms".to_owned(),
            Work::Memory => "Memory, MB".to_owned(),
            Work::Get => format!("Get, {callers}"),
            Work::Put(1) => format!("Put of one, {callers}"),
            Work::Put(batch) => format!("Put of {batch}, {callers}, per record"),
            Work::Overwrite => format!("Put over a record, {callers}"),
            Work::Patch => format!("Patch, {callers}"),
            Work::QueryId => format!("Query by id, {callers}"),
            Work::QueryIndexed => format!("Query by indexed field, {callers}"),
            Work::QueryPage => format!("Query of a page, no filter, {callers}"),
            Work::QueryUnindexed => "Query by unindexed field, per record".to_owned(),
            Work::QueryText => "Query by text, per record".to_owned(),
            Work::AcquireLease => format!("Lease acquired and released, {callers}"),
            Work::RenewLease => format!("Lease renewal, {callers}"),
            Work::SyncLatest => "SyncLatest, per record".to_owned(),
            Work::Replay => "Replay of changes, per record".to_owned(),
            Work::Mixed { during_sync_latest, .. } => if during_sync_latest {
                MIXED_DURING_SYNC_LATEST
            } else {
                MIXED
            }
            .to_owned(),
            Work::FanOut(1) => "Fan-out to 1 stream, per delivery".to_owned(),
            Work::FanOut(streams) => format!("Fan-out to {streams} streams, per delivery"),
        }
    }
}

/// The names of the two that are compared with each other.
pub(crate) const MIXED: &str = "Mixed load";
pub(crate) const MIXED_DURING_SYNC_LATEST: &str = "Mixed load, during SyncLatest";

/// What is done to a fresh server that holds so many records, in this order: what writes comes last.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// Records that are stored before.
    pub stored: usize,
    pub workloads: Vec<Workload>,
}

/// What leaves the store as it is.
const READING: [Workload; 14] = [
    Workload::new(Work::ColdStart, 1),
    Workload::new(Work::Get, 1),
    Workload::new(Work::Get, 64),
    Workload::new(Work::QueryId, 1),
    Workload::new(Work::QueryId, 16),
    Workload::new(Work::QueryIndexed, 1),
    Workload::new(Work::QueryIndexed, 16),
    Workload::new(Work::QueryPage, 1),
    Workload::new(Work::QueryPage, 4),
    Workload::new(Work::QueryUnindexed, 1),
    Workload::new(Work::QueryText, 1),
    Workload::new(Work::AcquireLease, 16),
    Workload::new(Work::RenewLease, 1),
    Workload::new(Work::RenewLease, 16),
];

/// What changes records, or adds to them.
const WRITING: [Workload; 8] = [
    Workload::new(Work::Patch, 1),
    Workload::new(Work::Patch, 64),
    Workload::new(Work::Put(1), 1),
    Workload::new(Work::Put(1), 64),
    Workload::new(Work::Put(100), 1),
    Workload::new(Work::Put(100), 64),
    Workload::new(Work::FanOut(1), 1),
    Workload::new(Work::FanOut(100), 1),
];

/// What reads everything.
const WHOLE: [Workload; 2] = [Workload::new(Work::SyncLatest, 1), Workload::new(Work::Replay, 1)];

/// The mixed load by itself and beside a SyncLatest, at a rate that Pomerium's server can serve, too: above it every call
/// would have to wait for those before, and the longer the more there were.
const fn mixed(rate: usize) -> [Workload; 2] {
    let alone = Work::Mixed {
        rate,
        during_sync_latest: false,
    };
    let beside = Work::Mixed {
        rate,
        during_sync_latest: true,
    };
    [Workload::new(alone, 16), Workload::new(beside, 16)]
}

/// All workloads in memory. Calls are measured at so many records, what reads everything at ten times as many, and memory at
/// ten and fifty times as many.
pub(crate) fn in_memory(records: usize) -> Vec<Step> {
    let memory = [Workload::new(Work::Memory, 1)];
    vec![
        Step {
            stored: records,
            workloads: [&READING[..], &WRITING, &[Workload::new(Work::FanOut(1000), 1)]].concat(),
        },
        Step {
            stored: 10 * records,
            workloads: [&memory[..], &WHOLE, &mixed(1000)].concat(),
        },
        Step {
            stored: 50 * records,
            workloads: memory.to_vec(),
        },
    ]
}

/// All workloads in memory in which calls are made, as [`in_memory`].
pub(crate) fn sampled(records: usize) -> Vec<Step> {
    let mut steps = in_memory(records);
    for step in &mut steps {
        step.workloads
            .retain(|workload| !matches!(workload.work, Work::ColdStart | Work::Memory));
    }
    steps.retain(|step| !step.workloads.is_empty());
    steps
}

/// All workloads on Postgres: without memory, in which the records are not, and without 1,000 streams, which take Pomerium's
/// server six minutes. It finds an indexed field there by looking at all records, so the mixed load is made at no more of them
/// than calls are.
pub(crate) fn on_postgres(records: usize) -> Vec<Step> {
    vec![
        Step {
            stored: records,
            workloads: [&READING[..], &mixed(200), &WRITING].concat(),
        },
        Step {
            stored: 10 * records,
            workloads: WHOLE.to_vec(),
        },
    ]
}

/// What shows that the cost of an operation does not depend on how much is stored, at each of these numbers of records, or
/// on how many streams there are.
pub(crate) fn curves(records: &[usize], streams: &[usize]) -> Vec<Step> {
    let mut steps: Vec<Step> = records
        .iter()
        .map(|&stored| Step {
            stored,
            workloads: vec![
                Workload::new(Work::Memory, 1),
                Workload::new(Work::Get, 64),
                Workload::new(Work::QueryId, 16),
                Workload::new(Work::QueryIndexed, 16),
                Workload::new(Work::QueryPage, 4),
                Workload::new(Work::RenewLease, 16),
                Workload::new(Work::SyncLatest, 1),
                Workload::new(Work::Overwrite, 64),
            ],
        })
        .collect();
    if let Some(first) = steps.first_mut() {
        first
            .workloads
            .extend(streams.iter().map(|&streams| Workload::new(Work::FanOut(streams), 1)));
    }
    steps
}
