//! A client of the server under test, as each case gets its own: with a connection that no other case can stall, and
//! names that no other case or run uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use databroker_proto::databroker::checkpoint_service_client::CheckpointServiceClient;
use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use databroker_proto::databroker::{
    ClearResponse, GetOptionsRequest, GetRequest, ListTypesResponse, Options, PatchRequest, PatchResponse, PutRequest,
    PutResponse, QueryRequest, QueryResponse, Record, ServerInfoResponse, SetOptionsRequest, SyncLatestRequest,
    SyncRequest,
};
use databroker_proto::registry::registry_client::RegistryClient;
use prost_types::FieldMask;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::records::json_struct;
use crate::stream::{Latest, Stream};
use crate::target::{Settings, Target};
use crate::token;

/// Puts a token on every call.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<[u8]>);

impl tonic::service::Interceptor for Tokens {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token = token::valid(&self.0)
            .ok()
            .and_then(|token| token.parse().ok())
            .ok_or_else(|| Status::internal("the suite could not sign a token"))?;
        request.metadata_mut().insert("jwt", token);
        Ok(request)
    }
}

/// A channel whose calls carry a token.
pub(crate) type Authenticated = InterceptedService<Channel, Tokens>;

/// A client of the server under test.
#[derive(Clone)]
pub struct Broker {
    target: Target,
    /// The connection, without tokens.
    channel: Channel,
    tokens: Tokens,
    /// Begins every name that the case uses.
    prefix: Arc<str>,
    /// The number of names given out so far.
    names: Arc<AtomicU64>,
}

impl Broker {
    /// A client for the case with this name, with a connection of its own.
    pub(crate) fn new(target: &Target, case: &str) -> Self {
        Self {
            target: target.clone(),
            channel: target.channel(),
            tokens: Tokens(target.secret.clone().into()),
            prefix: format!("conformance/{}/{case}", uuid::Uuid::new_v4().simple()).into(),
            names: Arc::new(AtomicU64::new(0)),
        }
    }

    /// A client of the same case over a connection of its own, which a slow reader cannot stall.
    pub(crate) fn apart(&self) -> Self {
        Self {
            channel: self.target.channel(),
            ..self.clone()
        }
    }

    /// What is known of the server's settings.
    pub(crate) fn settings(&self) -> &Settings {
        &self.target.settings
    }

    /// The shared secret.
    pub(crate) fn secret(&self) -> &[u8] {
        &self.tokens.0
    }

    /// The connection, without tokens.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A name that nobody else uses, for a type, a lease or an endpoint. Names ascend bytewise.
    pub(crate) fn unique(&self) -> String {
        format!("{}/{:06}", self.prefix, self.names.fetch_add(1, Ordering::Relaxed))
    }

    /// The beginning of all names that [`Broker::unique`] gives.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The data broker's client.
    pub(crate) fn data(&self) -> DataBrokerServiceClient<Authenticated> {
        DataBrokerServiceClient::with_interceptor(self.channel(), self.tokens.clone())
    }

    /// The registry's client.
    pub(crate) fn registry(&self) -> RegistryClient<Authenticated> {
        RegistryClient::with_interceptor(self.channel(), self.tokens.clone())
    }

    /// The checkpoint service's client.
    pub(crate) fn checkpoint(&self) -> CheckpointServiceClient<Authenticated> {
        CheckpointServiceClient::with_interceptor(self.channel(), self.tokens.clone())
    }

    /// Get.
    pub(crate) async fn get(&self, record_type: &str, id: &str) -> Result<Record, Status> {
        let request = GetRequest {
            r#type: record_type.to_owned(),
            id: id.to_owned(),
        };
        let response = self.data().get(request).await?.into_inner();
        response
            .record
            .ok_or_else(|| Status::data_loss("Get answered OK without a record"))
    }

    /// Get of a record that may not be there.
    pub(crate) async fn find(&self, record_type: &str, id: &str) -> Result<Option<Record>, Status> {
        match self.get(record_type, id).await {
            Ok(record) => Ok(Some(record)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// Put.
    pub(crate) async fn put(&self, records: Vec<Record>) -> Result<PutResponse, Status> {
        Ok(self.data().put(PutRequest { records }).await?.into_inner())
    }

    /// Put of one record; gives back the response's one.
    pub(crate) async fn put_one(&self, record: Record) -> anyhow::Result<Record> {
        only(self.put(vec![record]).await?.records)
    }

    /// Patch.
    pub(crate) async fn patch(&self, records: Vec<Record>, mask: &[&str]) -> Result<PatchResponse, Status> {
        let request = PatchRequest {
            records,
            field_mask: Some(FieldMask {
                paths: mask.iter().map(|path| (*path).to_owned()).collect(),
            }),
        };
        Ok(self.data().patch(request).await?.into_inner())
    }

    /// Query, word for word.
    pub(crate) async fn query(&self, request: QueryRequest) -> Result<QueryResponse, Status> {
        Ok(self.data().query(request).await?.into_inner())
    }

    /// Query by a filter; the ids of all matches in the order of the answer.
    pub(crate) async fn filter(&self, record_type: &str, filter: &serde_json::Value) -> Result<Vec<String>, Status> {
        let request = QueryRequest {
            r#type: record_type.to_owned(),
            limit: 10_000,
            filter: Some(json_struct(filter)),
            ..QueryRequest::default()
        };
        let response = self.query(request).await?;
        Ok(response.records.into_iter().map(|record| record.id).collect())
    }

    /// All records of a type by Query, in the order of the answer.
    pub(crate) async fn all(&self, record_type: &str) -> Result<Vec<Record>, Status> {
        let request = QueryRequest {
            r#type: record_type.to_owned(),
            limit: 1_000_000,
            ..QueryRequest::default()
        };
        Ok(self.query(request).await?.records)
    }

    /// SyncLatest, read to its end.
    pub(crate) async fn latest(&self, record_type: &str) -> anyhow::Result<Latest> {
        let request = SyncLatestRequest {
            r#type: record_type.to_owned(),
        };
        Latest::read(self.data().sync_latest(request).await?.into_inner()).await
    }

    /// Sync, word for word.
    pub(crate) fn sync(&self, request: SyncRequest) -> Stream {
        let record_type = request.r#type.clone();
        // A server may hold back the answer's headers until it has something to say, and tonic waits for them. So the
        // stream is opened in a task of its own.
        let mut data = self.data();
        let opening = tokio::spawn(async move { Ok(data.sync(request).await?.into_inner()) });
        Stream::new(opening, record_type, self.prefix.clone())
    }

    /// Sync of a type (empty for all) that goes on after a version.
    pub(crate) fn follow(&self, record_type: &str, server_version: u64, version: u64) -> Stream {
        let request = SyncRequest {
            server_version,
            record_version: version,
            r#type: record_type.to_owned(),
            wait: Some(true),
        };
        self.sync(request)
    }

    /// Sync of a type (empty for all) from where the server stands now.
    pub(crate) async fn follow_from_here(&self, record_type: &str) -> Result<Stream, Status> {
        let info = self.server_info().await?;
        Ok(self.follow(record_type, info.server_version, info.latest_record_version))
    }

    /// The changes of a type (empty for all) after a version, as far as there are any now.
    pub(crate) async fn changes(&self, record_type: &str, version: u64) -> anyhow::Result<Vec<Record>> {
        let info = self.server_info().await?;
        let request = SyncRequest {
            server_version: info.server_version,
            record_version: version,
            r#type: record_type.to_owned(),
            wait: Some(false),
        };
        self.sync(request).rest().await
    }

    /// ServerInfo.
    pub(crate) async fn server_info(&self) -> Result<ServerInfoResponse, Status> {
        Ok(self.data().server_info(()).await?.into_inner())
    }

    /// ListTypes.
    pub(crate) async fn types(&self) -> Result<Vec<String>, Status> {
        let ListTypesResponse { types } = self.data().list_types(()).await?.into_inner();
        Ok(types)
    }

    /// Clear.
    pub(crate) async fn clear(&self) -> Result<ClearResponse, Status> {
        Ok(self.data().clear(()).await?.into_inner())
    }

    /// GetOptions.
    pub(crate) async fn options(&self, record_type: &str) -> Result<Options, Status> {
        let request = GetOptionsRequest {
            r#type: record_type.to_owned(),
        };
        Ok(self
            .data()
            .get_options(request)
            .await?
            .into_inner()
            .options
            .unwrap_or_default())
    }

    /// SetOptions.
    pub(crate) async fn set_options(&self, record_type: &str, options: Options) -> Result<Options, Status> {
        let request = SetOptionsRequest {
            r#type: record_type.to_owned(),
            options: Some(options),
        };
        Ok(self
            .data()
            .set_options(request)
            .await?
            .into_inner()
            .options
            .unwrap_or_default())
    }

    /// SetOptions with indexed fields.
    pub(crate) async fn index(&self, record_type: &str, fields: &[&str]) -> Result<(), Status> {
        let options = Options {
            indexable_fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            ..Options::default()
        };
        self.set_options(record_type, options).await.map(drop)
    }
}

/// The one element of a list.
pub(crate) fn only<T>(items: Vec<T>) -> anyhow::Result<T> {
    let count = items.len();
    let mut items = items.into_iter();
    match (items.next(), items.next()) {
        (Some(item), None) => Ok(item),
        _ => bail!("expected one record in the response, not {count}"),
    }
}

/// Checks that a call was refused with one of these codes.
pub(crate) fn refused<T>(result: Result<T, Status>, codes: &[Code]) -> anyhow::Result<Status> {
    match result {
        Ok(_) => bail!("expected {codes:?}, but the call succeeded"),
        Err(status) if codes.contains(&status.code()) => Ok(status),
        Err(status) => bail!("expected {codes:?}, not {:?} ({})", status.code(), status.message()),
    }
}

/// Checks that a call was refused with this code and message.
pub(crate) fn refused_with<T>(result: Result<T, Status>, code: Code, message: &str) -> anyhow::Result<()> {
    let status = refused(result, &[code])?;
    ensure!(
        status.message() == message,
        "expected the message {message:?}, not {:?}",
        status.message()
    );
    Ok(())
}

/// Tries until it succeeds, for as long as this; then gives the last reason.
pub(crate) async fn eventually<T, F>(patience: Duration, mut attempt: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("still so after {patience:?}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
