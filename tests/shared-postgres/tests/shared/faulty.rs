//! The judge is able to find fault: hosts on stores that break one law each, and the kind of violation that is seen.

#[path = "../../../conformance/tests/faulty/backend.rs"]
#[allow(dead_code, reason = "the conformance suite has a use for all of its faults")]
mod backend;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backend::{Fault, Faulty};
use databroker_host::backend::native::{self, Native};
use databroker_host::backend::{Backend, Reopenings, StoreInfo, new_server_version};
use databroker_host::broker::{self, Broker};
use databroker_host::data::Descriptors;
use databroker_host::grpc::auth::Guard;
use databroker_host::server;
use databroker_host::settings::SharedSecret;
use databroker_host::telemetry::Instruments;
use databroker_shared_postgres::check::{Kind, check};
use databroker_shared_postgres::client::SECRET;
use databroker_shared_postgres::workload::{Load, Workload};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// Serves a store with this fault until the sender is dropped, and gives the ports of its hosts. Where only one of several hosts is
/// wrong about the store, there is another one before it.
async fn serve(fault: Fault, is_shared: bool) -> (Vec<u16>, Vec<oneshot::Sender<()>>) {
    let settings = native::Settings {
        connection_string: None,
        new_server_version: new_server_version(0),
        descriptors: Arc::new(Descriptors::built_in()),
    };
    let (native, info) = if is_shared {
        Native::shared(settings).unwrap()
    } else {
        Native::open(settings).unwrap()
    };
    let faulty = Faulty::new(Arc::clone(&native) as Arc<dyn Backend>, fault);
    let mut hosts = Vec::new();
    if matches!(fault, Fault::HidesClears | Fault::DeniesChanges) {
        hosts.push(serve_one(native, &info).await);
    }
    hosts.push(serve_one(faulty, &info).await);
    hosts.into_iter().unzip()
}

async fn serve_one(backend: Arc<dyn Backend>, info: &StoreInfo) -> (u16, oneshot::Sender<()>) {
    let descriptors = Arc::new(Descriptors::built_in());
    // A host remembers leases for a store that forgets them, and what streams need in its hub.
    let info = StoreInfo {
        summary: info.summary.clone(),
        durable: true,
        reopenings: Reopenings::never(),
        ..*info
    };
    let config = broker::Config {
        hub_bytes: 1,
        ..broker::Config::default()
    };
    let broker = Broker::start(backend, info, config, descriptors).await.unwrap();
    let instruments = Instruments::default();
    let secret = SharedSecret::parse(SECRET).unwrap();
    let config = server::Config {
        guard: Guard::new(&secret, Arc::clone(&instruments.metrics)),
        grace_period: watch::channel(Duration::from_secs(1)).1,
        tls: None,
        limits: server::Limits {
            connections: 1024,
            streams: 4096,
        },
        calls: Default::default(),
        instruments,
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stop, stopped) = oneshot::channel::<()>();
    let signals = futures::stream::once(async {
        let _ = stopped.await;
    });
    tokio::spawn(server::run(listener, broker, config, signals));
    (port, stop)
}

/// What is seen of a store in a moment, by kind.
async fn seen(fault: Fault, is_shared: bool, seed: u64) -> BTreeMap<Kind, String> {
    let (ports, _stop) = serve(fault, is_shared).await;
    let load = Load {
        seed,
        pause: Duration::from_millis(1),
        lease: Duration::from_millis(300),
        patience: Duration::from_secs(3),
        ..Load::default()
    };
    let workload = Workload::start(&ports, load).await.unwrap();
    if matches!(
        fault,
        Fault::ClearKeepsRecords | Fault::ClearKeepsServerVersion | Fault::HidesClears
    ) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        workload.clear(0).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    } else {
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    let history = workload.finish().await.unwrap();
    let violations = check(&history).into_iter();
    violations.map(|violation| (violation.kind, violation.text)).collect()
}

/// True where the hosts take the store as one that others write to as well.
const SHARED: bool = true;
const EXCLUSIVE: bool = false;

/// The cases: a fault, whether the store is shared, and the kind that it is seen as.
macro_rules! found_out {
    ($($fault:ident on $store:ident seen $kind:ident,)*) => {
        const CASES: &[(Fault, bool, Kind)] = &[$((Fault::$fault, $store, Kind::$kind)),*];

        // Does not compile where a kind is missing: nobody would know whether the judge sees it.
        #[allow(unreachable_patterns, reason = "a kind may have several faults")]
        const _: fn(Kind) = |kind| match kind {
            $(Kind::$kind => {})*
        };
    };
}

found_out! {
    DropsChanges on SHARED seen Lost,
    ClearKeepsRecords on EXCLUSIVE seen Invented,
    RepeatsChanges on SHARED seen Repeated,
    DropsChanges on SHARED seen Split,
    ReversesChanges on SHARED seen Order,
    DeniesChanges on SHARED seen GaveUp,
    RefusesRenewals on EXCLUSIVE seen LeaseLost,
    HidesClears on SHARED seen NotEnded,
    RepeatsChanges on SHARED seen Duplicate,
    ReversesChanges on SHARED seen Disorder,
    ShowsVersionsLate on SHARED seen Missing,
    AnswersWrongVersions on SHARED seen Lost,
    IgnoresExpectedVersions on EXCLUSIVE seen Torn,
    KeepsDeletedRecords on SHARED seen Repeated,
    ReadsStaleRecords on EXCLUSIVE seen Stale,
    GivesLeaseTwice on EXCLUSIVE seen TwoHolders,
    LeasesForever on EXCLUSIVE seen LeaseStuck,
    KeepsReleasedLeases on EXCLUSIVE seen LeaseStuck,
    LosesFieldHints on EXCLUSIVE seen Stale,
    ClearKeepsRecords on EXCLUSIVE seen Survived,
    ClearKeepsServerVersion on EXCLUSIVE seen OldServer,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_breaks_a_law_is_found_out() {
    let mut wrong = Vec::new();
    for &(fault, is_shared, expected) in CASES {
        // Some faults show only when calls meet at the wrong moment, so that not every run meets them.
        let mut found = BTreeMap::new();
        for seed in 0..5 {
            found = seen(fault, is_shared, seed).await;
            println!("{fault:?}: {:?}", found.keys().collect::<Vec<_>>());
            if found.contains_key(&expected) {
                break;
            }
        }
        if !found.contains_key(&expected) {
            wrong.push(format!("{fault:?} is not seen as {expected:?}: {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A store that keeps all laws is not accused: the same clients, the same judge.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_keeps_the_laws_is_not_accused() {
    // A fault that these clients have no way to notice.
    for is_shared in [true, false] {
        for seed in 0..3 {
            let seen = seen(Fault::ForgetsCheckpoint, is_shared, seed).await;
            assert!(seen.is_empty(), "{seen:#?}");
        }
    }
}
