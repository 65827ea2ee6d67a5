//! The suite is able to fail: stores that break one law each are caught by the cases of that law.
//!
//! The hub holds next to nothing in most of them, so that streams read from the store and see its faults.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "faulty/backend.rs"]
mod backend;
mod common;

use backend::{Fault, Faulty};
use common::{Server, settings, short};
use databroker_conformance::{CaseReport, Format, Selection, Suite, Verdict};
use databroker_host::backend::StoreInfo;
use databroker_host::backend::native::Native;

/// One test per fault: its name, the fault, the law whose cases catch it, and how the store is run.
macro_rules! caught {
    ($($name:ident: $fault:ident on $store:ident by $law:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                is_caught(Fault::$fault, Store::$store, $law).await;
            }
        )*

        /// A fault without a test would prove nothing.
        #[test]
        fn every_fault_has_a_test() {
            // Does not compile where a fault is missing.
            let _ = |fault: Fault| match fault {
                $(Fault::$fault => {})*
            };
        }
    };
}

caught! {
    drops_changes: DropsChanges on Shared by "sync.complete",
    reverses_changes: ReversesChanges on Shared by "sync.changes",
    repeats_changes: RepeatsChanges on Shared by "sync.complete",
    shows_versions_late: ShowsVersionsLate on Shared by "versions.no_late",
    prunes_too_eagerly: PrunesTooEagerly on Exclusive by "sync.resume",
    denies_changes: DeniesChanges on Exclusive by "sync.complete",
    splits_batches: SplitsBatches on Exclusive by "put.atomic",
    reverses_batches: ReversesBatches on Exclusive by "put.order",
    answers_wrong_versions: AnswersWrongVersions on Shared by "read.own_writes",
    ignores_expected_versions: IgnoresExpectedVersions on Exclusive by "patch.no_lost_update",
    keeps_deleted_records: KeepsDeletedRecords on Shared by "delete.removes",
    loses_tombstone_data: LosesTombstoneData on Exclusive by "delete.tombstone",
    confuses_absent_data: ConfusesAbsentData on Exclusive by "data.absent",
    cuts_data: CutsData on Exclusive by "data.opaque",
    reads_stale_records: ReadsStaleRecords on Exclusive by "read.own_writes",
    folds_keys: FoldsKeys on Exclusive by "record.identity",
    skips_at_page_borders: SkipsAtPageBorders on Exclusive by "sync_latest.records",
    repeats_at_page_borders: RepeatsAtPageBorders on Exclusive by "sync_latest.records",
    scans_other_types: ScansOtherTypes on Exclusive by "query.all",
    loses_field_hints: LosesFieldHints on Exclusive by "filter.index",
    loses_network_hints: LosesNetworkHints on Exclusive by "network.longest",
    miscounts: Miscounts on Exclusive by "query.limit",
    lists_empty_types: ListsEmptyTypes on Exclusive by "delete.removes",
    evicts_newest: EvictsNewest on Exclusive by "capacity.evicts",
    evicts_silently: EvictsSilently on ExclusiveWithHub by "capacity.tombstones",
    never_evicts: NeverEvicts on Exclusive by "ttl.evicts",
    never_prunes: NeverPrunes on Exclusive by "history.aborted",
    gives_lease_twice: GivesLeaseTwice on Exclusive by "lease.exclusive",
    leases_forever: LeasesForever on Exclusive by "lease.expires",
    keeps_released_leases: KeepsReleasedLeases on Exclusive by "lease.release",
    refuses_renewals: RefusesRenewals on Exclusive by "lease.renew",
    hides_clears: HidesClears on Shared by "clear.server_version",
    clear_keeps_server_version: ClearKeepsServerVersion on Exclusive by "clear.server_version",
    clear_keeps_records: ClearKeepsRecords on Exclusive by "clear.empties",
    forgets_checkpoint: ForgetsCheckpoint on Exclusive by "checkpoint.kept",
    lists_expired_services: ListsExpiredServices on Exclusive by "registry.expires",
    loses_options: LosesOptions on Shared by "options.kept",
}

/// How the host takes the store.
#[derive(Clone, Copy)]
enum Store {
    /// As its own, but with a hub so small that streams read from the store.
    Exclusive,
    /// As its own: streams follow what its own calls answer.
    ExclusiveWithHub,
    /// As one that others write to as well: it follows the store's log.
    Shared,
}

async fn is_caught(fault: Fault, store: Store, law: &str) {
    let (descriptors, settings) = settings();
    let (native, info) = match store {
        Store::Exclusive | Store::ExclusiveWithHub => Native::open(settings),
        Store::Shared => Native::shared(settings),
    }
    .expect("a native store");
    // The host itself remembers the leases of a store that may forget them, which would hide what is wrong with it.
    let info = StoreInfo { durable: true, ..info };
    let mut config = short();
    if !matches!(store, Store::ExclusiveWithHub) {
        config.hub_bytes = 1;
    }
    let server = Server::start(Faulty::new(native, fault), info, descriptors, config).await;
    let selection = Selection {
        filters: vec![law.to_owned()],
        jobs: 16,
        ..Selection::default()
    };
    // Some faults show only when calls meet at the wrong moment, so that not every run of the cases meets them.
    let mut text = String::new();
    for _ in 0..3 {
        let report = Suite::run(&server.target, &selection).await;
        text = report.write(Format::Text).expect("a report");
        let caught = |case: &CaseReport| case.law == law && case.verdict() == Verdict::Fail;
        if report.cases.iter().any(caught) {
            println!("{text}");
            return;
        }
    }
    panic!("no case of {law} has noticed that the store {fault:?}:\n{text}");
}
