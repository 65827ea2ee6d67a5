//! Histories of clients while faults fire. The package's program does the same for as long as one likes.

use databroker_shared_postgres::cluster::{Cluster, OnDisk, Setup};
use databroker_shared_postgres::faults::{Fault, Run, run};
use databroker_shared_postgres::workload::Load;
use postgres_server::SmallDisk;

use super::setup;

/// The clients have seen nothing wrong.
fn passes(run: &Run) {
    println!("{run}");
    assert!(run.violations.is_empty(), "{run}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_three_hosts_see_one_store_through_all_faults() {
    let mut cluster = Cluster::start(Setup {
        standby: true,
        ..setup()
    })
    .await
    .unwrap();
    let run = run(&mut cluster, Load::default(), &Fault::all()).await.unwrap();
    passes(&run);
}

/// Clears among writers, one of them unseen by a host that is cut off: gone is gone, and every stream is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_clear_is_one_at_all_hosts() {
    let mut cluster = Cluster::start(setup()).await.unwrap();
    let run = run(&mut cluster, Load::default(), &Fault::clears()).await.unwrap();
    passes(&run);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_loses_none() {
    for (kept, fault) in [(OnDisk::Tables, Fault::DiskFull), (OnDisk::Log, Fault::LogFull)] {
        let disk = match SmallDisk::mount(64) {
            Ok(disk) => disk,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "{error:#}");
                eprintln!("{error:#}");
                return;
            }
        };
        let mut cluster = Cluster::start(Setup {
            disk: Some((disk, kept)),
            ..setup()
        })
        .await
        .unwrap();
        let run = run(&mut cluster, Load::default(), &[fault]).await.unwrap();
        passes(&run);
    }
}
