//! `registry.Registry` over the broker.

use std::sync::Arc;

use databroker_proto::registry as proto;
use databroker_proto::registry_server::registry_server::Registry;
use futures::stream::{BoxStream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::convert;
use super::databroker::messages;
use crate::broker::Broker;

/// The service.
pub struct Services(pub Arc<Broker>);

#[tonic::async_trait]
impl Registry for Services {
    async fn report(
        &self,
        request: Request<proto::RegisterRequest>,
    ) -> Result<Response<proto::RegisterResponse>, Status> {
        let call_back_after = self
            .0
            .report_services(convert::services(request.into_inner().services)?)
            .await?;
        let call_back_after = Some(convert::proto_duration(call_back_after));
        Ok(Response::new(proto::RegisterResponse { call_back_after }))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Result<Response<proto::ServiceList>, Status> {
        let services = self.0.list_services(request.into_inner().kinds).await?;
        Ok(Response::new(convert::bounded(convert::service_list(services))?))
    }

    type WatchStream = BoxStream<'static, Result<proto::ServiceList, Status>>;

    async fn watch(&self, request: Request<proto::ListRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let stream = self.0.watch_services(request.into_inner().kinds).await?;
        let lists = stream.map(|services| convert::bounded(convert::service_list(services?)));
        Ok(Response::new(messages(lists, |list| [list])))
    }
}
