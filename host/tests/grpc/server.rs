//! A server of a test's own, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use databroker_host::backend::native::{Native, Settings};
use databroker_host::backend::{Backend, StoreInfo};
use databroker_host::broker::{Broker, Config};
use databroker_host::data::Descriptors;
use databroker_host::grpc::auth::{Guard, METADATA_KEY, token};
use databroker_host::grpc::open_calls::OpenCalls;
use databroker_host::listener;
use databroker_host::server::{self, Limits, ServerError};
use databroker_host::settings::{Address, SharedSecret};
use databroker_host::telemetry::Instruments;
use databroker_proto::databroker::checkpoint_service_client::CheckpointServiceClient;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::{GetRequest, PutRequest, PutResponse, Record};
use databroker_proto::registry::registry_client::RegistryClient;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const SERVER_VERSION: u64 = 41;

/// Adds a token to each call, or none.
#[derive(Clone)]
pub struct Credentials(pub Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert(METADATA_KEY, token.clone());
        }
        Ok(request)
    }
}

pub type Connection = InterceptedService<Channel, Credentials>;

pub fn descriptors() -> Arc<Descriptors> {
    Arc::new(Descriptors::built_in())
}

/// A running server.
pub struct Server {
    pub instruments: Instruments,
    pub broker: Arc<Broker>,
    pub address: SocketAddr,
    pub calls: OpenCalls,
    pub channel: Channel,
    secret: SharedSecret,
    /// Each message is a signal to end.
    signals: mpsc::Sender<()>,
    running: JoinHandle<Result<(), ServerError>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with_grace(PATIENCE).await
    }

    pub async fn start_with_grace(grace_period: Duration) -> Self {
        let settings = Settings {
            connection_string: None,
            new_server_version: SERVER_VERSION,
            descriptors: descriptors(),
        };
        let (backend, info) = Native::open(settings).unwrap();
        Self::start_on(backend, info, grace_period).await
    }

    pub async fn start_on(backend: Arc<dyn Backend>, info: StoreInfo, grace_period: Duration) -> Self {
        Self::serve(backend, info, Config::default(), grace_period).await
    }

    /// A server on a store that was opened already.
    pub async fn serve(backend: Arc<dyn Backend>, info: StoreInfo, config: Config, grace_period: Duration) -> Self {
        let instruments = Instruments::default();
        let backend = instruments.measure(backend);
        let broker = Broker::start(backend, info, config, descriptors()).await.unwrap();
        let listener = listener::listen(&Address::parse("127.0.0.1:0").unwrap(), "GRPC_ADDRESS")
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let secret = SharedSecret::generate();
        let calls = OpenCalls::default();
        let config = server::Config {
            guard: Guard::new(&secret, Arc::clone(&instruments.metrics)),
            grace_period: watch::channel(grace_period).1,
            tls: None,
            limits: Limits {
                connections: 1024,
                streams: 1024,
            },
            calls: calls.clone(),
            instruments: instruments.clone(),
        };
        let (signals, mut received) = mpsc::channel(2);
        let received = futures::stream::poll_fn(move |context| received.poll_recv(context));
        let running = tokio::spawn(server::run(listener, Arc::clone(&broker), config, received));
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_lazy();
        Self {
            instruments,
            broker,
            address,
            calls,
            channel,
            secret,
            signals,
            running,
        }
    }

    pub fn token(&self) -> String {
        token(&self.secret).unwrap()
    }

    pub fn connection(&self) -> Connection {
        InterceptedService::new(
            self.channel.clone(),
            Credentials(Some(self.token().try_into().unwrap())),
        )
    }

    pub fn client(&self) -> DataBrokerServiceClient<Connection> {
        DataBrokerServiceClient::new(self.connection())
    }

    pub fn checkpoint_client(&self) -> CheckpointServiceClient<Connection> {
        CheckpointServiceClient::new(self.connection())
    }

    pub fn registry_client(&self) -> RegistryClient<Connection> {
        RegistryClient::new(self.connection())
    }

    pub async fn put(&self, records: Vec<Record>) -> PutResponse {
        self.client().put(PutRequest { records }).await.unwrap().into_inner()
    }

    pub async fn get(&self, id: &str) -> Result<Record, Status> {
        let request = GetRequest {
            r#type: TYPE.to_owned(),
            id: id.to_owned(),
        };
        self.client()
            .get(request)
            .await
            .map(|response| response.into_inner().record.unwrap())
    }

    /// Sends a signal, the first of which begins the shutdown.
    pub fn stop(&self) {
        self.signals.try_send(()).unwrap();
    }

    /// Waits until the server has ended.
    pub async fn ended(self) -> Result<(), ServerError> {
        drop(self.channel);
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .expect("the server does not end")
            .unwrap()
    }
}

pub const TYPE: &str = "type.googleapis.com/google.protobuf.StringValue";

/// The data of a record that holds a text.
pub fn text(text: &str) -> Bytes {
    let value = prost_types::Any {
        type_url: TYPE.to_owned(),
        value: text.to_owned().encode_to_vec(),
    };
    value.encode_to_vec().into()
}

/// A record to put that holds a text.
pub fn record(id: &str, content: &str) -> Record {
    Record {
        r#type: TYPE.to_owned(),
        id: id.to_owned(),
        data: Some(text(content)),
        ..Default::default()
    }
}

/// A record that deletes another.
pub fn deletion(id: &str) -> Record {
    let deleted_at = Some(prost_types::Timestamp::default());
    Record {
        r#type: TYPE.to_owned(),
        id: id.to_owned(),
        deleted_at,
        ..Default::default()
    }
}
