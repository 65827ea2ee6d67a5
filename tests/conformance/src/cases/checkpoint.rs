//! The checkpoint: one pair of numbers that is read and written as it is. One for the whole store, so these run alone.

use anyhow::{Context, ensure};
use databroker_proto::databroker::{Checkpoint, GetCheckpointRequest, GetCheckpointResponse, SetCheckpointRequest};
use tonic::Status;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};

pub(super) const CASES: &[Case] = &[
    case!(
        "checkpoint.round_trip",
        "checkpoint.kept",
        "GetCheckpoint returns what SetCheckpoint has set last, the largest numbers included.",
        round_trip
    )
    .alone(),
    case!(
        "checkpoint.absent",
        "checkpoint.bad_input",
        "SetCheckpoint without a checkpoint is answered or refused, and the server stays up.",
        absent
    )
    .alone(),
    case!(
        "checkpoint.no_leader",
        "checkpoint.leader",
        "A server on its own is no leader of a cluster.",
        no_leader
    ),
    case!(
        "checkpoint.separate",
        "checkpoint.kept",
        "The checkpoint touches neither the server version nor the record version.",
        separate
    )
    .alone(),
];

async fn round_trip(broker: Broker) -> CheckResult {
    for (server_version, record_version) in [(1, 2), (120, 1000), (u64::MAX, u64::MAX), (0, 0)] {
        let checkpoint = Checkpoint {
            server_version,
            record_version,
        };
        set(&broker, Some(checkpoint)).await?;
        let got = get(&broker).await?.checkpoint.unwrap_or_default();
        ensure!(got == checkpoint, "set {checkpoint:?}, got {got:?}");
    }
    Ok(())
}

async fn absent(broker: Broker) -> CheckResult {
    // What it means is nobody's promise.
    let _ = set(&broker, None).await;
    get(&broker).await.context("the server after it")?;
    Ok(())
}

async fn no_leader(broker: Broker) -> CheckResult {
    ensure!(!get(&broker).await?.is_leader, "is_leader is set");
    Ok(())
}

async fn separate(broker: Broker) -> CheckResult {
    let before = broker.server_info().await?;
    set(
        &broker,
        Some(Checkpoint {
            server_version: 77,
            record_version: 88,
        }),
    )
    .await?;
    let after = broker.server_info().await?;
    ensure!(before == after, "ServerInfo went from {before:?} to {after:?}");
    Ok(())
}

async fn get(broker: &Broker) -> Result<GetCheckpointResponse, Status> {
    Ok(broker
        .checkpoint()
        .get_checkpoint(GetCheckpointRequest {})
        .await?
        .into_inner())
}

async fn set(broker: &Broker, checkpoint: Option<Checkpoint>) -> Result<(), Status> {
    let request = SetCheckpointRequest { checkpoint };
    broker.checkpoint().set_checkpoint(request).await.map(drop)
}
