//! gRPC's health service, by which load balancers and Envoy choose a server. No token is asked for.

use anyhow::{Context, ensure};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};
use crate::stream::PATIENCE;

/// The names that Pomerium and gRPC's tools ask for.
const NAMES: [&str; 5] = [
    "",
    "pomerium-databroker",
    "databroker.DataBrokerService",
    "databroker.CheckpointService",
    "registry.Registry",
];

pub(super) const CASES: &[Case] = &[
    case!(
        "health.check",
        "health.check",
        "Check without a token answers SERVING for no name, for the three services and for `pomerium-databroker`.",
        check
    ),
    case!(
        "health.watch",
        "health.watch",
        "Watch says SERVING at once for the same names, and stays open.",
        watch
    ),
    case!(
        "health.unknown",
        "health.unknown",
        "An unknown name is answered with NOT_FOUND or SERVING, never with an error that a client takes for an unhealthy server.",
        unknown
    ),
];

async fn check(broker: Broker) -> CheckResult {
    for name in NAMES {
        let response = HealthClient::new(broker.channel()).check(request(name)).await;
        let status = response.with_context(|| format!("{name:?}"))?.into_inner().status();
        ensure!(status == ServingStatus::Serving, "{name:?} is {status:?}");
    }
    Ok(())
}

async fn watch(broker: Broker) -> CheckResult {
    for name in NAMES {
        let mut client = HealthClient::new(broker.channel());
        let opening = timeout(PATIENCE, client.watch(request(name))).await;
        let mut stream = opening.context("the watch did not open")??.into_inner();
        let first = timeout(PATIENCE, stream.message()).await.context("nothing came")??;
        let status = first.context("the watch ended")?.status();
        ensure!(status == ServingStatus::Serving, "{name:?} is {status:?}");
        let second = timeout(std::time::Duration::from_millis(100), stream.message()).await;
        ensure!(second.is_err(), "the watch of {name:?} went on with {second:?}");
    }
    Ok(())
}

async fn unknown(broker: Broker) -> CheckResult {
    match HealthClient::new(broker.channel())
        .check(request("no.such.Service"))
        .await
    {
        Ok(response) => {
            let status = response.into_inner().status();
            ensure!(status == ServingStatus::Serving, "{status:?}");
        }
        Err(status) => ensure!(status.code() == Code::NotFound, "{status:?}"),
    }
    Ok(())
}

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}
