//! The registry of services.

use std::time::Duration;

use anyhow::{Context, ensure};
use databroker_proto::registry::{ListRequest, RegisterRequest, Service, ServiceKind, ServiceList};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::broker::{Broker, eventually};
use crate::case::{Case, CheckResult, case};
use crate::stream::PATIENCE;

pub(super) const CASES: &[Case] = &[
    case!(
        "registry.report_and_list",
        "registry.list",
        "A reported service is listed, with its kind and endpoint, once however often it is reported.",
        report_and_list
    ),
    case!(
        "registry.order",
        "registry.list",
        "Services are listed by kind, then by endpoint.",
        order
    ),
    case!(
        "registry.kinds",
        "registry.kinds",
        "A list of kinds shows those kinds alone; none shows all.",
        kinds
    ),
    case!(
        "registry.same_endpoint",
        "registry.list",
        "The same endpoint under two kinds is two services.",
        same_endpoint
    ),
    case!(
        "registry.call_back_after",
        "registry.call_back",
        "The answer's call_back_after is above zero and clearly below the 30 s that a service stays listed.",
        call_back_after
    ),
    case!(
        "registry.empty_report",
        "registry.report",
        "A report without services succeeds, with a call_back_after above zero.",
        empty_report
    ),
    case!(
        "registry.watch_first",
        "registry.watch",
        "A watch says at once what is listed, also where that is nothing.",
        watch_first
    ),
    case!(
        "registry.watch_change",
        "registry.watch",
        "A watch says so when a service comes.",
        watch_change
    ),
    case!(
        "registry.watch_kinds",
        "registry.kinds",
        "A watch of some kinds shows those alone.",
        watch_kinds
    ),
    case!(
        "registry.watch_no_change",
        "registry.watch",
        "A report that changes nothing says nothing on a watch.",
        watch_no_change
    )
    .alone(),
    case!(
        "registry.expires",
        "registry.expires",
        "A service that is not reported again is gone after its time, from the list and from an open watch.",
        expires
    ),
];

async fn report_and_list(broker: Broker) -> CheckResult {
    let service = service(&broker, ServiceKind::PrometheusMetrics);
    for _ in 0..2 {
        report(&broker, vec![service.clone()]).await?;
        let listed = list(&broker, &[]).await?;
        ensure!(listed == [service.clone()], "listed: {listed:?}");
    }
    Ok(())
}

async fn order(broker: Broker) -> CheckResult {
    let mut services = Vec::new();
    for kind in [ServiceKind::Authorize, ServiceKind::Databroker, ServiceKind::Proxy] {
        for _ in 0..3 {
            services.push(service(&broker, kind));
        }
    }
    let reversed = services.iter().rev().cloned().collect();
    report(&broker, reversed).await?;
    services.sort_by(|a, b| (a.kind, &a.endpoint).cmp(&(b.kind, &b.endpoint)));
    let listed = list(&broker, &[]).await?;
    ensure!(listed == services, "listed: {listed:?}");
    Ok(())
}

async fn kinds(broker: Broker) -> CheckResult {
    let [authorize, proxy, console] =
        [ServiceKind::Authorize, ServiceKind::Proxy, ServiceKind::Console].map(|kind| service(&broker, kind));
    report(&broker, vec![authorize.clone(), proxy.clone(), console.clone()]).await?;
    for (kinds, expected) in [
        (&[ServiceKind::Proxy][..], vec![proxy.clone()]),
        (
            &[ServiceKind::Console, ServiceKind::Authorize],
            vec![authorize, console],
        ),
        (&[ServiceKind::PrometheusMetrics], vec![]),
    ] {
        let listed = list(&broker, kinds).await?;
        ensure!(listed == expected, "{kinds:?} lists {listed:?}");
    }
    Ok(())
}

async fn same_endpoint(broker: Broker) -> CheckResult {
    let authorize = service(&broker, ServiceKind::Authorize);
    let proxy = Service {
        kind: ServiceKind::Proxy.into(),
        ..authorize.clone()
    };
    report(&broker, vec![authorize.clone(), proxy.clone()]).await?;
    let listed = list(&broker, &[]).await?;
    ensure!(listed == [authorize, proxy], "listed: {listed:?}");
    Ok(())
}

async fn call_back_after(broker: Broker) -> CheckResult {
    let after = report(&broker, vec![service(&broker, ServiceKind::Proxy)]).await?;
    ensure!(!after.is_zero(), "call_back_after is zero");
    ensure!(after < Duration::from_secs(30), "call_back_after is {after:?}");
    Ok(())
}

async fn empty_report(broker: Broker) -> CheckResult {
    let after = report(&broker, Vec::new()).await?;
    ensure!(!after.is_zero(), "call_back_after is zero");
    Ok(())
}

async fn watch_first(broker: Broker) -> CheckResult {
    let mut watch = Watch::open(&broker, &[]).await?;
    watch.shows(&[]).await?;
    let service = service(&broker, ServiceKind::Proxy);
    report(&broker, vec![service.clone()]).await?;
    let mut watch = Watch::open(&broker, &[]).await?;
    let first = watch.next().await?;
    ensure!(first == [service], "the first message holds {first:?}");
    // A kind that nobody ever has.
    let mut watch = Watch::open(&broker, &[ServiceKind::UndefinedDoNotUse]).await?;
    let first = watch.next().await?;
    ensure!(first.is_empty(), "the first message holds {first:?}");
    Ok(())
}

async fn watch_change(broker: Broker) -> CheckResult {
    let mut watch = Watch::open(&broker, &[]).await?;
    watch.next().await?;
    let mut expected = Vec::new();
    for _ in 0..3 {
        expected.push(service(&broker, ServiceKind::Proxy));
        report(&broker, expected.last().cloned().into_iter().collect()).await?;
        watch.shows(&expected).await?;
    }
    Ok(())
}

async fn watch_kinds(broker: Broker) -> CheckResult {
    let mut watch = Watch::open(&broker, &[ServiceKind::Console]).await?;
    watch.next().await?;
    let console = service(&broker, ServiceKind::Console);
    report(&broker, vec![service(&broker, ServiceKind::Proxy), console.clone()]).await?;
    watch.shows(&[console]).await
}

async fn watch_no_change(broker: Broker) -> CheckResult {
    let service = service(&broker, ServiceKind::Proxy);
    report(&broker, vec![service.clone()]).await?;
    let mut watch = Watch::open(&broker, &[ServiceKind::Proxy]).await?;
    watch.next().await?;
    report(&broker, vec![service]).await?;
    // Other services may run out just now, which is a change. So any message must be one.
    let mut last = watch.last.clone();
    while let Ok(services) = timeout(Duration::from_millis(500), watch.next_any()).await {
        let services = services?;
        ensure!(services != last, "a message without a change came");
        last = services;
    }
    Ok(())
}

async fn expires(broker: Broker) -> CheckResult {
    let ttl = broker.settings().service_ttl()?;
    let service = service(&broker, ServiceKind::Proxy);
    let mut watch = Watch::open(&broker, &[]).await?;
    let start = std::time::Instant::now();
    report(&broker, vec![service.clone()]).await?;
    watch.shows(&[service]).await?;
    eventually(ttl * 2 + Duration::from_secs(10), async || {
        let listed = list(&broker, &[]).await?;
        ensure!(listed.is_empty(), "listed: {listed:?}");
        Ok(())
    })
    .await?;
    // A moment less, for clocks that count differently.
    let listed_for = start.elapsed() + Duration::from_millis(100);
    ensure!(listed_for >= ttl, "gone after {listed_for:?} already");
    watch.shows(&[]).await.context("the open watch")
}

/// A service that nobody else reports.
fn service(broker: &Broker, kind: ServiceKind) -> Service {
    Service {
        kind: kind.into(),
        endpoint: format!("http://{}", broker.unique()),
    }
}

/// Reports services; gives back call_back_after.
async fn report(broker: &Broker, services: Vec<Service>) -> anyhow::Result<Duration> {
    let request = RegisterRequest {
        services,
        ..RegisterRequest::default()
    };
    let response = broker.registry().report(request).await?.into_inner();
    let after = response.call_back_after.context("no call_back_after")?;
    Duration::try_from(after).ok().context("call_back_after is negative")
}

/// The case's own services of these kinds.
async fn list(broker: &Broker, kinds: &[ServiceKind]) -> Result<Vec<Service>, Status> {
    let response = broker.registry().list(request(kinds)).await?.into_inner();
    Ok(mine(broker.prefix(), response))
}

fn request(kinds: &[ServiceKind]) -> ListRequest {
    ListRequest {
        kinds: kinds.iter().map(|kind| (*kind).into()).collect(),
    }
}

fn mine(prefix: &str, list: ServiceList) -> Vec<Service> {
    let prefix = format!("http://{prefix}");
    let mut services = list.services;
    services.retain(|service| service.endpoint.starts_with(&prefix));
    services
}

/// An open Watch that shows the case's own services.
struct Watch {
    stream: Streaming<ServiceList>,
    prefix: String,
    /// The last message, other cases' services included.
    last: Vec<Service>,
}

impl Watch {
    async fn open(broker: &Broker, kinds: &[ServiceKind]) -> anyhow::Result<Self> {
        let opening = async { broker.registry().watch(request(kinds)).await };
        let stream = timeout(PATIENCE, opening).await.context("the watch did not open")??;
        Ok(Self {
            stream: stream.into_inner(),
            prefix: broker.prefix().to_owned(),
            last: Vec::new(),
        })
    }

    /// The next message.
    async fn next(&mut self) -> anyhow::Result<Vec<Service>> {
        let services = timeout(PATIENCE, self.next_any())
            .await
            .context("nothing came on the watch")??;
        Ok(mine(&self.prefix, ServiceList { services }))
    }

    async fn next_any(&mut self) -> anyhow::Result<Vec<Service>> {
        let message = self.stream.message().await?.context("the watch ended")?;
        self.last.clone_from(&message.services);
        Ok(message.services)
    }

    /// Waits until the case's own services are these.
    async fn shows(&mut self, expected: &[Service]) -> CheckResult {
        let mut shown = Vec::new();
        let waiting = async {
            loop {
                shown = self.next().await?;
                if shown == expected {
                    return Ok(());
                }
            }
        };
        let result: anyhow::Result<anyhow::Result<()>> =
            timeout(PATIENCE, waiting).await.context("the change did not come");
        result?.with_context(|| format!("the watch shows {shown:?}, not {expected:?}"))
    }
}
