//! Server reflection, by which tools such as grpcurl find their way. No token is asked for.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use prost::Message;
use prost_types::FileDescriptorProto;
use tokio::time::timeout;

use crate::broker::Broker;
use crate::case::{Case, CheckResult, case};
use crate::stream::PATIENCE;

/// The services that must be listed.
const SERVICES: [&str; 3] = [
    "databroker.DataBrokerService",
    "databroker.CheckpointService",
    "registry.Registry",
];

/// The methods that must be described.
const METHODS: [(&str, usize); 3] = [
    ("databroker.DataBrokerService", 14),
    ("databroker.CheckpointService", 2),
    ("registry.Registry", 3),
];

pub(super) const CASES: &[Case] = &[
    case!(
        "reflection.v1_list",
        "reflection.list",
        "Version 1 lists the services, without a token.",
        v1_list
    ),
    case!(
        "reflection.v1alpha_list",
        "reflection.list",
        "Version 1alpha lists the services, without a token.",
        v1alpha_list
    ),
    case!(
        "reflection.describes",
        "reflection.describes",
        "Version 1 describes each service with all of its methods.",
        describes
    ),
];

/// The two versions differ in nothing but their package.
macro_rules! ask {
    ($broker:expr, $version:ident, $question:ident($value:expr)) => {{
        use tonic_reflection::pb::$version::ServerReflectionRequest;
        use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
        use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::$question($value)),
        };
        let mut client = ServerReflectionClient::new($broker.channel());
        let opening = client.server_reflection_info(futures::stream::iter([request]));
        let mut stream = timeout(PATIENCE, opening)
            .await
            .context("the stream did not open")??
            .into_inner();
        timeout(PATIENCE, stream.message())
            .await
            .context("nothing came")??
            .and_then(|response| response.message_response)
            .context("an empty answer")?
    }};
}

macro_rules! list {
    ($broker:expr, $version:ident) => {{
        use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;
        match ask!($broker, $version, ListServices(String::new())) {
            MessageResponse::ListServicesResponse(list) => {
                list.service.into_iter().map(|service| service.name).collect()
            }
            other => bail!("the answer to ListServices is {other:?}"),
        }
    }};
}

async fn v1_list(broker: Broker) -> CheckResult {
    lists_all(&list!(broker, v1))
}

async fn v1alpha_list(broker: Broker) -> CheckResult {
    lists_all(&list!(broker, v1alpha))
}

fn lists_all(listed: &BTreeSet<String>) -> CheckResult {
    for service in SERVICES {
        ensure!(listed.contains(service), "{service} is not among {listed:?}");
    }
    Ok(())
}

async fn describes(broker: Broker) -> CheckResult {
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    for (service, expected) in METHODS {
        let files = match ask!(broker, v1, FileContainingSymbol(service.to_owned())) {
            MessageResponse::FileDescriptorResponse(response) => response.file_descriptor_proto,
            other => bail!("the answer for {service} is {other:?}"),
        };
        let mut methods = None;
        for file in files {
            let file = FileDescriptorProto::decode(file.as_slice()).context("a file descriptor")?;
            for described in file.service {
                if format!("{}.{}", file.package.as_deref().unwrap_or_default(), described.name()) == service {
                    methods = Some(described.method.len());
                }
            }
        }
        ensure!(
            methods == Some(expected),
            "{service} is described with {methods:?} methods, not {expected}"
        );
    }
    Ok(())
}
