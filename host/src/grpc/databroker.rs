//! `databroker.DataBrokerService` over the broker.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use databroker_proto::databroker_server::data_broker_service_server::DataBrokerService;
use databroker_proto::{SyncLatestMessage, SyncMessage, databroker as proto};
use futures::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use tonic::{Request, Response, Status};

use super::convert;
use crate::broker::{Broker, BrokerError};

/// The service. One per process; it holds nothing but the broker.
pub struct DataBroker(pub Arc<Broker>);

/// Turns a stream of the broker into one of messages: some for each item. A panic on the way ends it like any other error:
/// with trailers that say so, where the transport would reset the stream.
pub(super) fn messages<T, I>(
    stream: impl Stream<Item = Result<T, BrokerError>> + Send + 'static,
    messages: impl Fn(T) -> I + Send + 'static,
) -> BoxStream<'static, Result<I::Item, Status>>
where
    T: 'static,
    I: IntoIterator<IntoIter: Send> + 'static,
    I::Item: Send + 'static,
{
    let messages = stream
        .map_err(Status::from)
        .map_ok(move |item| stream::iter(messages(item)).map(Ok))
        .try_flatten();
    let panicked = |_| {
        Err(Status::internal(
            "the stream failed by a fault of the server: open it again",
        ))
    };
    AssertUnwindSafe(messages)
        .catch_unwind()
        .map(move |item| item.unwrap_or_else(panicked))
        .boxed()
}

#[tonic::async_trait]
impl DataBrokerService for DataBroker {
    async fn acquire_lease(
        &self,
        request: Request<proto::AcquireLeaseRequest>,
    ) -> Result<Response<proto::AcquireLeaseResponse>, Status> {
        let request = request.into_inner();
        let name = convert::lease_text("name", request.name)?;
        let duration = convert::lease_duration(request.duration)?;
        let id = self.0.acquire_lease(name, duration).await?;
        Ok(Response::new(proto::AcquireLeaseResponse { id }))
    }

    async fn clear(&self, _: Request<()>) -> Result<Response<proto::ClearResponse>, Status> {
        let (old_server_version, new_server_version) = self.0.clear().await?;
        Ok(Response::new(proto::ClearResponse {
            old_server_version,
            new_server_version,
        }))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        let record = self.0.get(convert::key(request.into_inner())).await?;
        Ok(Response::new(proto::GetResponse {
            record: Some(convert::record(record)),
        }))
    }

    async fn get_options(
        &self,
        request: Request<proto::GetOptionsRequest>,
    ) -> Result<Response<proto::GetOptionsResponse>, Status> {
        let options = self.0.get_options(request.into_inner().r#type).await?;
        Ok(Response::new(proto::GetOptionsResponse {
            options: Some(convert::proto_options(options)),
        }))
    }

    async fn list_types(&self, _: Request<()>) -> Result<Response<proto::ListTypesResponse>, Status> {
        let types = self.0.list_types().await?;
        Ok(Response::new(convert::bounded(proto::ListTypesResponse { types })?))
    }

    async fn put(&self, request: Request<proto::PutRequest>) -> Result<Response<proto::PutResponse>, Status> {
        let request = request.into_inner();
        convert::check_answer(&request, request.records.len())?;
        let written = self.0.put(convert::writes(request.records)?).await?;
        Ok(Response::new(convert::put_response(written)))
    }

    async fn patch(&self, request: Request<proto::PatchRequest>) -> Result<Response<proto::PatchResponse>, Status> {
        let request = request.into_inner();
        convert::check_answer(&request, request.records.len())?;
        let mask = request.field_mask.map(|mask| mask.paths).unwrap_or_default();
        let written = self.0.patch(convert::writes(request.records)?, mask).await?;
        Ok(Response::new(convert::patch_response(written)))
    }

    async fn query(&self, request: Request<proto::QueryRequest>) -> Result<Response<proto::QueryResponse>, Status> {
        let page = self.0.query(convert::query(request.into_inner())?).await?;
        Ok(Response::new(convert::bounded(convert::query_response(page))?))
    }

    async fn release_lease(&self, request: Request<proto::ReleaseLeaseRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let name = convert::lease_text("name", request.name)?;
        let id = convert::lease_text("id", request.id)?;
        self.0.release_lease(name, id).await?;
        Ok(Response::new(()))
    }

    async fn renew_lease(&self, request: Request<proto::RenewLeaseRequest>) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        let name = convert::lease_text("name", request.name)?;
        let id = convert::lease_text("id", request.id)?;
        let duration = convert::lease_duration(request.duration)?;
        self.0.renew_lease(name, id, duration).await?;
        Ok(Response::new(()))
    }

    async fn server_info(&self, _: Request<()>) -> Result<Response<proto::ServerInfoResponse>, Status> {
        Ok(Response::new(convert::server_info(self.0.server_info().await?)))
    }

    async fn set_options(
        &self,
        request: Request<proto::SetOptionsRequest>,
    ) -> Result<Response<proto::SetOptionsResponse>, Status> {
        let request = request.into_inner();
        let record_type = convert::options_type(request.r#type)?;
        let options = self
            .0
            .set_options(record_type, convert::options(request.options)?)
            .await?;
        Ok(Response::new(proto::SetOptionsResponse {
            options: Some(convert::proto_options(options)),
        }))
    }

    type SyncStream = BoxStream<'static, Result<SyncMessage, Status>>;

    async fn sync(&self, request: Request<proto::SyncRequest>) -> Result<Response<Self::SyncStream>, Status> {
        let stream = self.0.sync(convert::sync_start(request.into_inner())).await?;
        Ok(Response::new(messages(stream, convert::sync_messages)))
    }

    type SyncLatestStream = BoxStream<'static, Result<SyncLatestMessage, Status>>;

    async fn sync_latest(
        &self,
        request: Request<proto::SyncLatestRequest>,
    ) -> Result<Response<Self::SyncLatestStream>, Status> {
        let stream = self
            .0
            .sync_latest(convert::some_type(request.into_inner().r#type))
            .await?;
        Ok(Response::new(messages(stream, convert::sync_latest_messages)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_stream_ends_it_with_an_error() {
        let numbers = stream::iter([Ok(1), Ok(0), Ok(2)]);
        let divide = |number: i32| (0..2).map(move |_| 4_i32.checked_div(number).unwrap_or_else(|| panic!("by zero")));
        let mut divided = messages(numbers, divide);
        for _ in 0..2 {
            assert_eq!(divided.next().await.unwrap().unwrap(), 4);
        }
        let error = divided.next().await.unwrap().unwrap_err();
        assert_eq!(error.code(), tonic::Code::Internal);
        assert!(divided.next().await.is_none());
    }
}
