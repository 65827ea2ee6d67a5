//! The load's side of the wire: connections with tokens, of which one is good for a second as Pomerium's are.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine as _;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use jsonwebtoken::{EncodingKey, Header};
use parking_lot::Mutex;
use serde::Serialize;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A client whose calls carry a token.
pub(crate) type Client = DataBrokerServiceClient<InterceptedService<Channel, Tokens>>;

/// Answers of any size are taken: what is measured is the server.
const MAX_ANSWER: usize = 1 << 30;

/// Where to connect, and with which secret.
#[derive(Clone)]
pub(crate) struct Target {
    endpoint: Endpoint,
    tokens: Tokens,
}

impl Target {
    /// A server at this address, which has this secret in base64.
    pub(crate) fn new(address: &str, shared_secret: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(Duration::from_secs(1))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        let secret = base64::engine::general_purpose::STANDARD
            .decode(shared_secret)
            .context("the shared secret is no base64")?;
        let tokens = Tokens {
            key: Arc::new(EncodingKey::from_secret(&secret)),
            last: Arc::default(),
        };
        Ok(Self { endpoint, tokens })
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Result<Client, tonic::transport::Error> {
        let channel = self.endpoint.connect().await?;
        Ok(DataBrokerServiceClient::with_interceptor(channel, self.tokens.clone())
            .max_decoding_message_size(MAX_ANSWER))
    }
}

/// Signs tokens, one a second: within a second Pomerium's clients send the same one, too.
#[derive(Clone)]
pub(crate) struct Tokens {
    key: Arc<EncodingKey>,
    last: Arc<Mutex<Option<Token>>>,
}

/// A token, and the second since the epoch that it is for.
type Token = (u64, MetadataValue<Ascii>);

#[derive(Serialize)]
struct Claims {
    exp: u64,
}

impl Tokens {
    fn token(&self) -> Option<MetadataValue<Ascii>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let mut last = self.last.lock();
        if let Some((_, token)) = last.as_ref().filter(|(second, _)| *second == now) {
            return Some(token.clone());
        }
        let claims = Claims { exp: now + 3600 };
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.key).ok()?;
        let token: MetadataValue<Ascii> = token.parse().ok()?;
        *last = Some((now, token.clone()));
        Some(token)
    }
}

impl tonic::service::Interceptor for Tokens {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = self
            .token()
            .ok_or_else(|| Status::internal("the benchmark could not sign a token"))?;
        request.metadata_mut().insert("jwt", token);
        Ok(request)
    }
}
