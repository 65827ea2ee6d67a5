//! Leases: one holder each, until released or run out.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use databroker_proto::databroker::{AcquireLeaseRequest, ReleaseLeaseRequest, RenewLeaseRequest};
use futures::future::join_all;
use tonic::{Code, Status};

use crate::broker::{Broker, eventually, refused_with};
use crate::case::{Case, CheckResult, case};
use crate::records::duration;

/// Long enough that no lease of a case runs out by itself, however slow the machine.
const LONG: Duration = Duration::from_secs(600);

/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(1500);

pub(super) const CASES: &[Case] = &[
    case!(
        "leases.exclusive",
        "lease.exclusive",
        "A lease that is held is refused to others: ALREADY_EXISTS `lease is already taken`.",
        exclusive
    ),
    case!(
        "leases.independent",
        "lease.exclusive",
        "Leases of different names do not touch each other; names are literal.",
        independent
    ),
    case!(
        "leases.one_of_many",
        "lease.exclusive",
        "Of thirty that try at once to take a lease, exactly one succeeds, round after round.",
        one_of_many
    ),
    case!(
        "leases.ids_are_unique",
        "lease.id",
        "Every lease taken has an id of its own, never the empty one.",
        ids_are_unique
    ),
    case!(
        "leases.renew",
        "lease.renew",
        "The holder renews; anybody else is refused: ALREADY_EXISTS `lease no longer held`.",
        renew
    ),
    case!(
        "leases.renew_extends",
        "lease.renew",
        "A renewed lease is held beyond its first duration.",
        renew_extends
    ),
    case!(
        "leases.release",
        "lease.release",
        "A released lease can be taken at once, and its old id no longer renews it.",
        release
    ),
    case!(
        "leases.release_of_others",
        "lease.release",
        "A release with another id succeeds and changes nothing.",
        release_of_others
    ),
    case!(
        "leases.release_of_nothing",
        "lease.release",
        "A release of a lease that never was succeeds and leaves it free.",
        release_of_nothing
    ),
    case!(
        "leases.expires",
        "lease.expires",
        "A lease runs out after its duration, not before, and can then be taken; the old holder has lost it.",
        expires
    ),
    case!(
        "leases.renew_expired",
        "lease.renew",
        "The holder may renew a lease that has run out if nobody has taken it.",
        renew_expired
    ),
    case!(
        "leases.renew_free",
        "lease.renew",
        "A lease that nobody holds is taken by a renewal.",
        renew_free
    ),
    case!(
        "leases.absurd_durations",
        "lease.bad_input",
        "Durations that are absent, negative, out of form or beyond all time are answered or refused as INVALID_ARGUMENT, and the server stays up.",
        absurd_durations
    ),
    case!(
        "leases.not_records",
        "lease.separate",
        "Leases are no changes: they use no record version.",
        not_records
    )
    .alone(),
];

async fn exclusive(broker: Broker) -> CheckResult {
    let name = broker.unique();
    acquire(&broker, &name, LONG).await?;
    for _ in 0..3 {
        taken(&broker, &name).await?;
    }
    Ok(())
}

async fn independent(broker: Broker) -> CheckResult {
    let name = broker.unique();
    acquire(&broker, &name, LONG).await?;
    for other in [
        format!("{name} "),
        name.to_uppercase(),
        format!("{name}\0"),
        format!("{name}/1"),
    ] {
        acquire(&broker, &other, LONG)
            .await
            .with_context(|| format!("{other:?}"))?;
    }
    taken(&broker, &name).await
}

async fn one_of_many(broker: Broker) -> CheckResult {
    for round in 0..10 {
        let name = broker.unique();
        let results = join_all((0..30).map(|_| {
            let (broker, name) = (broker.clone(), name.clone());
            tokio::spawn(async move { acquire(&broker, &name, LONG).await })
        }))
        .await;
        let mut winners = 0;
        for result in results {
            match result? {
                Ok(_) => winners += 1,
                Err(status) => ensure!(status.code() == Code::AlreadyExists, "refused with {status:?}"),
            }
        }
        ensure!(winners == 1, "round {round} has {winners} winners");
    }
    Ok(())
}

async fn ids_are_unique(broker: Broker) -> CheckResult {
    let mut ids = BTreeSet::new();
    for _ in 0..50 {
        let id = acquire(&broker, &broker.unique(), LONG).await?;
        ensure!(
            !id.is_empty() && ids.insert(id.clone()),
            "the id {id:?} is empty or not new"
        );
    }
    Ok(())
}

async fn renew(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let id = acquire(&broker, &name, LONG).await?;
    for _ in 0..3 {
        renew_as(&broker, &name, &id, LONG).await?;
    }
    for other in ["", "other", &id.to_uppercase()] {
        lost(&broker, &name, other).await?;
    }
    renew_as(&broker, &name, &id, LONG)
        .await
        .context("after others were refused")?;
    Ok(())
}

async fn renew_extends(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let id = acquire(&broker, &name, SHORT).await?;
    renew_as(&broker, &name, &id, LONG).await?;
    tokio::time::sleep(SHORT * 2).await;
    taken(&broker, &name).await
}

async fn release(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let first = acquire(&broker, &name, LONG).await?;
    release_as(&broker, &name, &first).await?;
    acquire(&broker, &name, LONG).await.context("after the release")?;
    lost(&broker, &name, &first).await
}

async fn release_of_others(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let id = acquire(&broker, &name, LONG).await?;
    for other in ["", "other"] {
        release_as(&broker, &name, other).await?;
    }
    taken(&broker, &name).await?;
    renew_as(&broker, &name, &id, LONG).await?;
    Ok(())
}

async fn release_of_nothing(broker: Broker) -> CheckResult {
    let name = broker.unique();
    release_as(&broker, &name, "nobody").await?;
    let id = acquire(&broker, &name, LONG).await?;
    release_as(&broker, &name, &id).await?;
    release_as(&broker, &name, &id).await.context("a second time")?;
    acquire(&broker, &name, LONG).await?;
    Ok(())
}

async fn expires(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let before = std::time::Instant::now();
    let first = acquire(&broker, &name, SHORT).await?;
    let second = eventually(SHORT + Duration::from_secs(10), async || {
        Ok(acquire(&broker, &name, LONG).await?)
    })
    .await?;
    let held = before.elapsed();
    ensure!(
        held >= SHORT,
        "a lease of {SHORT:?} was given to another after {held:?}"
    );
    ensure!(first != second, "both have the same id");
    lost(&broker, &name, &first).await
}

async fn renew_expired(broker: Broker) -> CheckResult {
    let name = broker.unique();
    let id = acquire(&broker, &name, Duration::from_millis(1)).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    renew_as(&broker, &name, &id, LONG).await?;
    taken(&broker, &name).await
}

async fn renew_free(broker: Broker) -> CheckResult {
    let name = broker.unique();
    renew_as(&broker, &name, "chosen by the client", LONG).await?;
    taken(&broker, &name).await?;
    lost(&broker, &name, "other").await?;
    renew_as(&broker, &name, "chosen by the client", LONG).await?;
    Ok(())
}

async fn absurd_durations(broker: Broker) -> CheckResult {
    let mut durations = vec![None];
    for (seconds, nanos) in [
        (-1, 0),
        (0, -1),
        (i64::MAX, 999_999_999),
        (i64::MIN, 0),
        (1, 2_000_000_000),
        (1, -1),
        (i64::MAX, i32::MIN),
    ] {
        durations.push(Some(prost_types::Duration { seconds, nanos }));
    }
    for duration in durations {
        let name = broker.unique();
        let acquire = AcquireLeaseRequest {
            name: name.clone(),
            duration,
        };
        let renew = RenewLeaseRequest {
            name,
            id: "id".to_owned(),
            duration,
        };
        let acquired = broker.data().acquire_lease(acquire).await.map(drop);
        let renewed = broker.data().renew_lease(renew).await.map(drop);
        for result in [acquired, renewed] {
            if let Err(status) = result {
                ensure!(
                    [Code::InvalidArgument, Code::AlreadyExists].contains(&status.code()),
                    "{duration:?} is refused with {status:?}"
                );
            }
        }
        broker.server_info().await.context("the server after it")?;
    }
    Ok(())
}

async fn not_records(broker: Broker) -> CheckResult {
    let before = broker.server_info().await?.latest_record_version;
    let name = broker.unique();
    let id = acquire(&broker, &name, LONG).await?;
    renew_as(&broker, &name, &id, LONG).await?;
    release_as(&broker, &name, &id).await?;
    let after = broker.server_info().await?.latest_record_version;
    ensure!(before == after, "the latest version went from {before} to {after}");
    Ok(())
}

pub(super) async fn acquire(broker: &Broker, name: &str, length: Duration) -> Result<String, Status> {
    let request = AcquireLeaseRequest {
        name: name.to_owned(),
        duration: Some(duration(length)),
    };
    Ok(broker.data().acquire_lease(request).await?.into_inner().id)
}

pub(super) async fn renew_as(broker: &Broker, name: &str, id: &str, length: Duration) -> Result<(), Status> {
    let request = RenewLeaseRequest {
        name: name.to_owned(),
        id: id.to_owned(),
        duration: Some(duration(length)),
    };
    broker.data().renew_lease(request).await.map(drop)
}

async fn release_as(broker: &Broker, name: &str, id: &str) -> Result<(), Status> {
    let request = ReleaseLeaseRequest {
        name: name.to_owned(),
        id: id.to_owned(),
    };
    broker.data().release_lease(request).await.map(drop)
}

/// Checks that somebody holds the lease.
async fn taken(broker: &Broker, name: &str) -> CheckResult {
    refused_with(
        acquire(broker, name, LONG).await,
        Code::AlreadyExists,
        "lease is already taken",
    )
}

/// Checks that somebody else holds the lease.
async fn lost(broker: &Broker, name: &str, id: &str) -> CheckResult {
    refused_with(
        renew_as(broker, name, id, LONG).await,
        Code::AlreadyExists,
        "lease no longer held",
    )
}
