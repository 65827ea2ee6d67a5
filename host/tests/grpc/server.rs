//! A server of a test's own, and clients of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use databroker_host::backend::native::{Native, Settings};
use databroker_host::broker::{Broker, Config};
use databroker_host::data::Descriptors;
use databroker_host::grpc::auth::{METADATA_KEY, token};
use databroker_host::server::{self, ServerError};
use databroker_host::settings::{Address, SharedSecret};
use databroker_proto::databroker::checkpoint_service_client::CheckpointServiceClient;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::{GetRequest, PutRequest, PutResponse, Record};
use databroker_proto::registry::registry_client::RegistryClient;
use prost::Message as _;
use tokio::sync::oneshot;
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

/// A running server.
pub struct Server {
    pub broker: Arc<Broker>,
    pub channel: Channel,
    secret: SharedSecret,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), ServerError>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with_grace(PATIENCE).await
    }

    pub async fn start_with_grace(grace_period: Duration) -> Self {
        let descriptors = Arc::new(Descriptors::built_in().unwrap());
        let settings = Settings {
            connection_string: None,
            new_server_version: SERVER_VERSION,
            descriptors: Arc::clone(&descriptors),
        };
        let (backend, info) = Native::open(settings).unwrap();
        let broker = Broker::start(backend, info, Config::default(), descriptors)
            .await
            .unwrap();
        let listener = server::listen(&Address::parse("127.0.0.1:0").unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let secret = SharedSecret::generate();
        let config = server::Config {
            shared_secret: secret.clone(),
            grace_period,
        };
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(server::run(listener, Arc::clone(&broker), config, shutdown));
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect_lazy();
        Self {
            broker,
            channel,
            secret,
            stop: Some(stop),
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

    /// Begins the shutdown.
    pub fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
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
