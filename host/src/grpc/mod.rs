//! The gRPC layer: Pomerium's databroker services over the broker.
//!
//! A service does three things with a call: it turns the request into plain types (`convert`), calls the broker, and
//! turns the answer or the error (`status`) back. What is the same for all calls stands around the services: [`auth`]
//! lets a call in, `call` sees to deadlines, panics and the log.
//!
//! Health and reflection need no token, as with Pomerium.

pub mod auth;
pub(crate) mod call;
pub(crate) mod caller;
pub(crate) mod checkpoint;
pub mod client;
pub(crate) mod convert;
pub(crate) mod databroker;
#[doc(hidden)]
pub mod fuzz;
pub(crate) mod health;
pub mod open_calls;
pub(crate) mod opening;
pub(crate) mod registry;
mod request;
pub(crate) mod room;
mod status;
pub(crate) mod unknown;

use std::sync::Arc;

use databroker_proto::PROTOCOL_DESCRIPTORS;
use databroker_proto::databroker_server::checkpoint_service_server::CheckpointServiceServer;
use databroker_proto::databroker_server::data_broker_service_server::DataBrokerServiceServer;
use databroker_proto::registry_server::registry_server::RegistryServer;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;

use self::auth::Guard;
use self::checkpoint::Checkpoints;
use self::convert::MAX_MESSAGE;
use self::databroker::DataBroker;
use self::health::HealthService;
use self::registry::Services;
use crate::broker::Broker;

/// For the benchmark of single steps. Not for use by anything else, and free to change.
#[doc(hidden)]
pub use self::convert::sync_messages;

/// Most bytes of a request that needs no token, which anybody may send: the name of a service or a symbol.
const OPEN_MESSAGE: usize = 4 << 10;

/// All services: the three of the databroker behind the guard, health, and both versions of reflection.
///
/// # Errors
///
/// Never with the descriptors that the host is built with.
pub fn routes(
    broker: &Arc<Broker>,
    guard: &Guard,
    health: HealthService,
) -> Result<Routes, tonic_reflection::server::Error> {
    let databroker =
        DataBrokerServiceServer::new(DataBroker(Arc::clone(broker))).max_decoding_message_size(MAX_MESSAGE);
    let checkpoint =
        CheckpointServiceServer::new(Checkpoints(Arc::clone(broker))).max_decoding_message_size(MAX_MESSAGE);
    let registry = RegistryServer::new(Services(Arc::clone(broker))).max_decoding_message_size(MAX_MESSAGE);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PROTOCOL_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(InterceptedService::new(databroker, guard.clone()))
        .add_service(InterceptedService::new(checkpoint, guard.clone()))
        .add_service(InterceptedService::new(registry, guard.clone()))
        .add_service(health.server())
        .add_service(reflection().build_v1()?.max_decoding_message_size(OPEN_MESSAGE))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(OPEN_MESSAGE)))
}
