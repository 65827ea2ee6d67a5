//! A client of one databroker, with a deadline on every call.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use bytes::Bytes;
use databroker_proto::databroker::checkpoint_service_client::CheckpointServiceClient;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::sync_latest_response::Response as LatestResponse;
use databroker_proto::databroker::{
    AcquireLeaseRequest, ClearResponse, GetRequest, Options, PatchRequest, PutRequest, QueryRequest, QueryResponse,
    Record, ReleaseLeaseRequest, RenewLeaseRequest, ServerInfoResponse, SetOptionsRequest, SyncLatestRequest,
    SyncRequest, SyncResponse, Versions,
};
use databroker_proto::registry::registry_client::RegistryClient;
use jsonwebtoken::{EncodingKey, Header};
use prost::Message;
use prost_types::value::Kind;
use prost_types::{Any, FieldMask, Struct, Timestamp, Value};
use serde::Serialize;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::history::Content;

/// The shared secret of all databrokers of a test, in base64.
pub const SECRET: &str = "c2hhcmVkIHNlY3JldCBvZiBhIHRlc3QsIDMyIGJ5dGU=";

/// How long a call may take. What takes longer has an unknown outcome.
const DEADLINE: Duration = Duration::from_secs(10);

/// A channel whose calls carry a token.
pub type Authenticated = InterceptedService<Channel, Tokens>;

/// Puts a token on every call.
#[derive(Clone)]
pub struct Tokens(EncodingKey);

#[derive(Serialize)]
struct Claims {
    exp: u64,
}

impl tonic::service::Interceptor for Tokens {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let claims = Claims {
            exp: now.as_secs() + 3600,
        };
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.0)
            .ok()
            .and_then(|token| token.parse().ok())
            .ok_or_else(|| Status::internal("no token could be signed"))?;
        request.metadata_mut().insert("jwt", token);
        Ok(request)
    }
}

/// `session.Session`, as far as it is used here: the type whose fields clients put and patch.
#[derive(Clone, PartialEq, Message)]
pub struct Session {
    /// The record's id.
    #[prost(string, tag = "2")]
    pub id: String,
    /// What one kind of patch writes.
    #[prost(string, tag = "3")]
    pub user_id: String,
    /// What the other kind of patch writes.
    #[prost(string, tag = "20")]
    pub idp_id: String,
}

/// The name of the data's type.
pub const SESSION: &str = "type.googleapis.com/session.Session";

/// A client of one databroker. Clones share the connection.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    tokens: Tokens,
    /// The type of the records that it reads and writes.
    record_type: String,
}

impl Client {
    /// A client of the databroker at `127.0.0.1:port`; it connects, again and again, when it is used.
    ///
    /// # Errors
    ///
    /// If the address is none.
    pub fn new(port: u16, record_type: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(5));
        let secret = base64::engine::general_purpose::STANDARD
            .decode(SECRET)
            .context("the secret")?;
        Ok(Self {
            channel: endpoint.connect_lazy(),
            tokens: Tokens(EncodingKey::from_secret(&secret)),
            record_type: record_type.to_owned(),
        })
    }

    /// The generated client of the data broker.
    #[must_use]
    pub fn data(&self) -> DataBrokerServiceClient<Authenticated> {
        DataBrokerServiceClient::with_interceptor(self.channel.clone(), self.tokens.clone())
            .max_decoding_message_size(64 << 20)
    }

    /// The generated client of the registry.
    #[must_use]
    pub fn registry(&self) -> RegistryClient<Authenticated> {
        RegistryClient::with_interceptor(self.channel.clone(), self.tokens.clone())
    }

    /// The generated client of the checkpoint service.
    #[must_use]
    pub fn checkpoint(&self) -> CheckpointServiceClient<Authenticated> {
        CheckpointServiceClient::with_interceptor(self.channel.clone(), self.tokens.clone())
    }

    /// Puts records, of which those without content are deleted, and gives their versions; 0 for what was not there to delete.
    ///
    /// # Errors
    ///
    /// The server's, and `DEADLINE_EXCEEDED`.
    pub async fn put(&self, records: &[(String, Option<Content>)]) -> Result<Vec<u64>, Status> {
        let records = records
            .iter()
            .map(|(id, content)| match content {
                Some(content) => self.record(id, content),
                None => Record {
                    r#type: self.record_type.clone(),
                    id: id.clone(),
                    deleted_at: Some(Timestamp {
                        seconds: 1_700_000_000,
                        nanos: 0,
                    }),
                    ..Record::default()
                },
            })
            .collect();
        let response = in_time(self.data().put(PutRequest { records })).await?;
        Ok(response.records.iter().map(|record| record.version).collect())
    }

    /// Writes one field of a record, and gives its version. `NOT_FOUND` where there is no such record, which the server passes
    /// over without an error.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn patch(&self, id: &str, field: usize, text: &str) -> Result<u64, Status> {
        let mut content = Content::default();
        if let Some(place) = content.0.get_mut(field) {
            text.clone_into(place);
        }
        let request = PatchRequest {
            records: vec![self.record(id, &content)],
            field_mask: Some(FieldMask {
                paths: vec![name(field).to_owned()],
            }),
        };
        let response = in_time(self.data().patch(request)).await?;
        let record = response.records.first();
        let record = record.ok_or_else(|| Status::not_found("the answer to a patch has no record"))?;
        Ok(record.version)
    }

    /// Reads a record; none where there is none.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn get(&self, id: &str) -> Result<Option<(u64, Content)>, Status> {
        let request = GetRequest {
            r#type: self.record_type.clone(),
            id: id.to_owned(),
        };
        match in_time(self.data().get(request)).await {
            Ok(response) => {
                let record = response.record.unwrap_or_default();
                Ok(Some((record.version, content_of(&record).unwrap_or_default())))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Reads all records and the versions that they are as new as.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn latest(&self) -> Result<(Vec<Record>, Versions), Status> {
        let reading = async {
            let request = SyncLatestRequest {
                r#type: self.record_type.clone(),
            };
            let mut stream = self.data().sync_latest(request).await?.into_inner();
            let (mut records, mut versions) = (Vec::new(), None);
            while let Some(message) = stream.message().await? {
                match message.response {
                    Some(LatestResponse::Record(record)) => records.push(record),
                    Some(LatestResponse::Versions(found)) => versions = Some(found),
                    Some(LatestResponse::Options(_)) | None => {}
                }
            }
            let versions = versions.ok_or_else(|| Status::data_loss("SyncLatest gave no versions"))?;
            Ok(tonic::Response::new((records, versions)))
        };
        in_time(reading).await
    }

    /// Queries the records that have a text in a field, or all.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn query(&self, filter: Option<&(usize, String)>) -> Result<QueryResponse, Status> {
        let filter = filter.map(|(field, text)| {
            let text = Value {
                kind: Some(Kind::StringValue(text.clone())),
            };
            Struct {
                fields: [(name(*field).to_owned(), text)].into(),
            }
        });
        let request = QueryRequest {
            r#type: self.record_type.clone(),
            filter,
            limit: 1000,
            ..QueryRequest::default()
        };
        in_time(self.data().query(request)).await
    }

    /// Has a field of the records indexed.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn index(&self, field: usize) -> Result<(), Status> {
        let request = SetOptionsRequest {
            r#type: self.record_type.clone(),
            options: Some(Options {
                indexable_fields: vec![name(field).to_owned()],
                ..Options::default()
            }),
        };
        in_time(self.data().set_options(request)).await.map(drop)
    }

    /// Removes everything, of all types.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn clear(&self) -> Result<ClearResponse, Status> {
        in_time(self.data().clear(())).await
    }

    /// Opens a stream of changes after a version.
    ///
    /// # Errors
    ///
    /// The server's. A server may send its headers only with the first change, so opening has no deadline.
    pub async fn sync(&self, server_version: u64, record_version: u64) -> Result<Streaming<SyncResponse>, Status> {
        let request = SyncRequest {
            server_version,
            record_version,
            r#type: self.record_type.clone(),
            ..SyncRequest::default()
        };
        Ok(self.data().sync(request).await?.into_inner())
    }

    /// The server's versions.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn server_version(&self) -> Result<u64, Status> {
        Ok(self.server_info().await?.server_version)
    }

    /// The server's versions, those of its change log included.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn server_info(&self) -> Result<ServerInfoResponse, Status> {
        in_time(self.data().server_info(())).await
    }

    /// Takes a lease, and gives what to renew it with; none where another one holds it.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn acquire(&self, name: &str, time: Duration) -> Result<Option<String>, Status> {
        let request = AcquireLeaseRequest {
            name: name.to_owned(),
            duration: Some(duration(time)),
        };
        held(
            in_time(self.data().acquire_lease(request))
                .await
                .map(|response| response.id),
        )
    }

    /// Keeps a lease; false where another one holds it.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn renew(&self, name: &str, id: &str, time: Duration) -> Result<bool, Status> {
        let request = RenewLeaseRequest {
            name: name.to_owned(),
            id: id.to_owned(),
            duration: Some(duration(time)),
        };
        Ok(held(in_time(self.data().renew_lease(request)).await)?.is_some())
    }

    /// Gives a lease back.
    ///
    /// # Errors
    ///
    /// As [`Client::put`].
    pub async fn release(&self, name: &str, id: &str) -> Result<(), Status> {
        let request = ReleaseLeaseRequest {
            name: name.to_owned(),
            id: id.to_owned(),
        };
        in_time(self.data().release_lease(request)).await
    }

    fn record(&self, id: &str, content: &Content) -> Record {
        Record {
            r#type: self.record_type.clone(),
            id: id.to_owned(),
            data: Some(data_of(id, content)),
            ..Record::default()
        }
    }
}

/// The name of one of the two fields.
fn name(field: usize) -> &'static str {
    if field == 0 { "user_id" } else { "idp_id" }
}

/// A record's data: an encoded `Any` of a session.
#[must_use]
pub fn data_of(id: &str, Content([user_id, idp_id]): &Content) -> Bytes {
    let session = Session {
        id: id.to_owned(),
        user_id: user_id.clone(),
        idp_id: idp_id.clone(),
    };
    let any = Any {
        type_url: SESSION.to_owned(),
        value: session.encode_to_vec(),
    };
    any.encode_to_vec().into()
}

/// What a record holds; none where its data is no session.
#[must_use]
pub fn content_of(record: &Record) -> Option<Content> {
    let any = Any::decode(record.data.clone()?).ok()?;
    let session = Session::decode(any.value.as_slice()).ok()?;
    (any.type_url == SESSION).then_some(Content([session.user_id, session.idp_id]))
}

fn duration(time: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default(),
    }
}

fn held<T>(result: Result<T, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::AlreadyExists => Ok(None),
        Err(status) => Err(status),
    }
}

async fn in_time<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    tokio::time::timeout(DEADLINE, call)
        .await
        .map_err(|_| Status::deadline_exceeded("no answer within the test's deadline"))?
        .map(tonic::Response::into_inner)
}
