//! What gRPC itself costs: a tonic server of the same messages that keeps nothing, checks nothing and answers constants.

use std::net::SocketAddr;

use bytes::Bytes;
use databroker_benchmark::session;
use databroker_proto::databroker::*;
use databroker_proto::databroker_server::data_broker_service_server::{DataBrokerService, DataBrokerServiceServer};
use databroker_proto::{Streamed, SyncLatestMessage, SyncMessage};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost::Message;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// Serves until the process is killed.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let server = DataBrokerServiceServer::new(Bare::new()).max_decoding_message_size(64 << 20);
    tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .tcp_nodelay(true)
        .add_service(server)
        .serve(address)
        .await?;
    Ok(())
}

struct Bare {
    /// What Get and Query answer.
    record: Record,
    /// How many records have been put: SyncLatest and Sync send so many, and streams are told of more.
    count: watch::Sender<usize>,
    /// One change as a stream sends it.
    change: Bytes,
    /// One record as SyncLatest sends it.
    latest: Bytes,
}

impl Bare {
    fn new() -> Self {
        let record = Record {
            version: 1,
            modified_at: Some(std::time::SystemTime::now().into()),
            ..session::record(1)
        };
        let change = SyncResponse {
            response: Some(sync_response::Response::Record(record.clone())),
        };
        let latest = SyncLatestResponse {
            response: Some(sync_latest_response::Response::Record(record.clone())),
        };
        Self {
            record,
            count: watch::Sender::default(),
            change: change.encode_to_vec().into(),
            latest: latest.encode_to_vec().into(),
        }
    }

    fn records(&self, count: usize) -> Vec<Record> {
        vec![self.record.clone(); count]
    }
}

type Messages<M> = BoxStream<'static, Result<M, Status>>;

#[async_trait::async_trait]
impl DataBrokerService for Bare {
    type SyncStream = Messages<SyncMessage>;
    type SyncLatestStream = Messages<SyncLatestMessage>;

    async fn acquire_lease(&self, _: Request<AcquireLeaseRequest>) -> Result<Response<AcquireLeaseResponse>, Status> {
        let id = "3e5f2e1c-2f0e-4a6c-9d61-0b8f6a6f2c11".to_owned();
        Ok(Response::new(AcquireLeaseResponse { id }))
    }

    async fn clear(&self, _: Request<()>) -> Result<Response<ClearResponse>, Status> {
        self.count.send_replace(0);
        Ok(Response::new(ClearResponse::default()))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let record = Some(self.record.clone());
        Ok(Response::new(GetResponse { record }))
    }

    async fn get_options(&self, _: Request<GetOptionsRequest>) -> Result<Response<GetOptionsResponse>, Status> {
        Ok(Response::new(GetOptionsResponse::default()))
    }

    async fn list_types(&self, _: Request<()>) -> Result<Response<ListTypesResponse>, Status> {
        Ok(Response::new(ListTypesResponse::default()))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let count = request.into_inner().records.len();
        self.count.send_modify(|all| *all += count);
        let records = self.records(count);
        Ok(Response::new(PutResponse {
            server_version: 1,
            records,
        }))
    }

    async fn patch(&self, request: Request<PatchRequest>) -> Result<Response<PatchResponse>, Status> {
        let records = self.records(request.into_inner().records.len());
        Ok(Response::new(PatchResponse {
            server_version: 1,
            records,
        }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let request = request.into_inner();
        // As many as the benchmark's queries find.
        let found = match (request.filter, request.query.as_str()) {
            (Some(filter), _) => usize::from(!filter.fields.contains_key(session::UNINDEXED)),
            (None, "") => usize::try_from(request.limit).unwrap_or(0).min(10),
            _ => 0,
        };
        let count = *self.count.borrow();
        Ok(Response::new(QueryResponse {
            records: self.records(found),
            total_count: i64::try_from(count).unwrap_or(i64::MAX),
            server_version: 1,
            record_version: 1,
        }))
    }

    async fn release_lease(&self, _: Request<ReleaseLeaseRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn renew_lease(&self, _: Request<RenewLeaseRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }

    async fn server_info(&self, _: Request<()>) -> Result<Response<ServerInfoResponse>, Status> {
        Ok(Response::new(ServerInfoResponse {
            server_version: 1,
            earliest_record_version: 1,
            latest_record_version: u64::try_from(*self.count.borrow()).unwrap_or(u64::MAX),
        }))
    }

    async fn set_options(&self, _: Request<SetOptionsRequest>) -> Result<Response<SetOptionsResponse>, Status> {
        Ok(Response::new(SetOptionsResponse::default()))
    }

    /// A stream that waits tells of puts since the version that is asked for; one that does not repeats as many changes as were
    /// put.
    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<Messages<SyncMessage>>, Status> {
        let change = self.change.clone();
        let request = request.into_inner();
        if request.wait == Some(false) {
            return Ok(Response::new(repeated(change, *self.count.borrow())));
        }
        let sent = usize::try_from(request.record_version).unwrap_or(usize::MAX);
        let messages = futures::stream::unfold(
            (self.count.subscribe(), sent, sent),
            move |(mut count, mut all, sent)| {
                let change = change.clone();
                async move {
                    if all <= sent {
                        all = *count.wait_for(|count| *count > sent).await.ok()?;
                    }
                    Some((Ok(Streamed::Encoded(change)), (count, all, sent + 1)))
                }
            },
        );
        Ok(Response::new(messages.boxed()))
    }

    async fn sync_latest(
        &self,
        _: Request<SyncLatestRequest>,
    ) -> Result<Response<Messages<SyncLatestMessage>>, Status> {
        Ok(Response::new(repeated(self.latest.clone(), *self.count.borrow())))
    }
}

fn repeated<M: Send + 'static>(message: Bytes, count: usize) -> Messages<Streamed<M>> {
    futures::stream::iter((0..count).map(move |_| Ok(Streamed::Encoded(message.clone())))).boxed()
}
