//! `databroker.CheckpointService` over the broker: a pair of numbers that a cluster member of Pomerium's keeps about
//! itself. This server is no member of a cluster, so that it is never a leader and lets any caller set the pair.

use std::sync::Arc;

use databroker_proto::databroker as proto;
use databroker_proto::databroker_server::checkpoint_service_server::CheckpointService;
use tonic::{Request, Response, Status};

use super::convert;
use crate::broker::Broker;

/// The service.
pub struct Checkpoints(pub Arc<Broker>);

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn get_checkpoint(
        &self,
        _: Request<proto::GetCheckpointRequest>,
    ) -> Result<Response<proto::GetCheckpointResponse>, Status> {
        let checkpoint = convert::proto_checkpoint(self.0.get_checkpoint().await?);
        Ok(Response::new(proto::GetCheckpointResponse {
            checkpoint: Some(checkpoint),
            is_leader: false,
        }))
    }

    async fn set_checkpoint(
        &self,
        request: Request<proto::SetCheckpointRequest>,
    ) -> Result<Response<proto::SetCheckpointResponse>, Status> {
        self.0
            .set_checkpoint(convert::checkpoint(request.into_inner().checkpoint))
            .await?;
        Ok(Response::new(proto::SetCheckpointResponse {}))
    }
}
