//! What gRPC itself costs: a tonic server of the same messages that keeps nothing, checks nothing and answers constants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use databroker_benchmark::session;
use databroker_proto::databroker::*;
use databroker_proto::databroker_server::data_broker_service_server::{DataBrokerService, DataBrokerServiceServer};
use databroker_proto::{Streamed, SyncLatestMessage, SyncMessage};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use prost::Message;
use tokio::sync::broadcast;
use tonic::{Request, Response, Status};

/// How many changes a stream may be behind.
const BACKLOG: usize = 1 << 16;

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
    /// How many records have been put: SyncLatest and Sync send so many.
    count: Arc<AtomicUsize>,
    /// One change as a stream sends it.
    change: Bytes,
    /// One record as SyncLatest sends it.
    latest: Bytes,
    /// Tells streams of a put.
    puts: broadcast::Sender<usize>,
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
            count: Arc::default(),
            change: change.encode_to_vec().into(),
            latest: latest.encode_to_vec().into(),
            puts: broadcast::channel(BACKLOG).0,
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
        self.count.store(0, Ordering::Relaxed);
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
        self.count.fetch_add(count, Ordering::Relaxed);
        // Nobody may be listening.
        let _ = self.puts.send(count);
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
            (Some(_), _) => 1,
            (None, "") => usize::try_from(request.limit).unwrap_or(0).min(10),
            _ => 0,
        };
        let count = self.count.load(Ordering::Relaxed);
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
            latest_record_version: 1,
        }))
    }

    async fn set_options(&self, _: Request<SetOptionsRequest>) -> Result<Response<SetOptionsResponse>, Status> {
        Ok(Response::new(SetOptionsResponse::default()))
    }

    /// A stream that waits tells of puts; one that does not repeats as many changes as were put.
    async fn sync(&self, request: Request<SyncRequest>) -> Result<Response<Messages<SyncMessage>>, Status> {
        let change = self.change.clone();
        if request.into_inner().wait == Some(false) {
            return Ok(Response::new(repeated(change, self.count.load(Ordering::Relaxed))));
        }
        let puts = self.puts.subscribe();
        let messages = futures::stream::unfold((puts, 0), move |(mut puts, left)| {
            let change = change.clone();
            async move {
                let left = if left > 0 { left } else { puts.recv().await.ok()? };
                Some((Ok(Streamed::Encoded(change)), (puts, left - 1)))
            }
        });
        Ok(Response::new(messages.boxed()))
    }

    async fn sync_latest(
        &self,
        _: Request<SyncLatestRequest>,
    ) -> Result<Response<Messages<SyncLatestMessage>>, Status> {
        Ok(Response::new(repeated(
            self.latest.clone(),
            self.count.load(Ordering::Relaxed),
        )))
    }
}

fn repeated<M: Send + 'static>(message: Bytes, count: usize) -> Messages<Streamed<M>> {
    futures::stream::iter((0..count).map(move |_| Ok(Streamed::Encoded(message.clone())))).boxed()
}
