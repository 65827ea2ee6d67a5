//! Traces as a collector receives them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use databroker_host::telemetry::config::{TraceProtocol, Traces as Config};
use databroker_host::telemetry::metrics::Metrics;
use databroker_host::telemetry::traces::Traces;
use databroker_proto::databroker::GetRequest;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use tokio::net::TcpListener;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};
use tower::Service;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::server::{PATIENCE, Server, TYPE, record};

/// As much of the protocol as the tests look at.
#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 3")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct ExportResponse {}

/// What came in.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<Received>>>);

/// The key that came with spans, and the spans.
type Received = (Option<String>, ResourceSpans);

impl Collected {
    fn add(&self, key: Option<String>, request: ExportRequest) {
        let spans = request.resource_spans.into_iter().map(|spans| (key.clone(), spans));
        self.0.lock().extend(spans);
    }

    fn spans(&self) -> Vec<Span> {
        let collected = self.0.lock();
        let scopes = collected.iter().flat_map(|(_, spans)| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

/// A collector of OTLP over gRPC.
#[derive(Clone)]
struct GrpcCollector(Collected);

impl NamedService for GrpcCollector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<http::Request<Body>> for GrpcCollector {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collected = self.0.clone();
        let export = tower::service_fn(move |request: Request<ExportRequest>| {
            let key = request
                .metadata()
                .get("api-key")
                .map(|key| key.to_str().unwrap().to_owned());
            collected.add(key, request.into_inner());
            async { Ok::<_, Status>(Response::new(ExportResponse {})) }
        });
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(tonic_prost::ProstCodec::default());
            Ok(grpc.unary(export, request).await)
        })
    }
}

/// A collector of OTLP over HTTP.
async fn take(State(collected): State<Collected>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let key = headers.get("api-key").map(|key| key.to_str().unwrap().to_owned());
    collected.add(key, ExportRequest::decode(body).unwrap());
    StatusCode::OK
}

async fn collector(protocol: TraceProtocol) -> (SocketAddr, Collected) {
    let collected = Collected::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    match protocol {
        TraceProtocol::Grpc => {
            let service = GrpcCollector(collected.clone());
            let server = tonic::transport::Server::builder().add_service(service);
            tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        }
        TraceProtocol::HttpProtobuf => {
            let router = Router::new()
                .route("/v1/traces", post(take))
                .with_state(collected.clone());
            let serving = databroker_host::telemetry::http::serve(listener, None, router, std::future::pending());
            tokio::spawn(serving);
        }
    }
    (address, collected)
}

fn config(endpoint: String, protocol: TraceProtocol) -> Config {
    Config {
        endpoint,
        protocol,
        headers: vec![("api-key".to_owned(), "swordfish".to_owned())],
        timeout: Duration::from_secs(5),
        // What the client has begun is recorded all the same.
        sample_ratio: 0.0,
        resource: vec![("deployment.environment".to_owned(), "test".to_owned())],
        schedule_delay: Duration::from_secs(60),
        max_batch: 512,
        attribute_length: Some(64),
    }
}

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN_ID: &str = "b7ad6b7169203331";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    attribute.value.clone()?.value
}

async fn a_call_is_a_span_of_the_clients_trace(protocol: TraceProtocol) {
    let (address, collected) = collector(protocol).await;
    let path = match protocol {
        TraceProtocol::Grpc => "",
        TraceProtocol::HttpProtobuf => "/v1/traces",
    };
    let metrics: Arc<Metrics> = Arc::default();
    let config = config(format!("http://{address}{path}"), protocol);
    let (traces, layer) = Traces::new(&config, Arc::clone(&metrics)).unwrap();
    // All tasks of this runtime run on this thread.
    let _subscriber = tracing::subscriber::set_default(tracing_subscriber::registry().with(vec![layer]));

    let server = Server::start().await;
    server.put(vec![record("unsampled", "x")]).await;
    let traced = |request: GetRequest| {
        let mut request = Request::new(request);
        let metadata: &mut MetadataMap = request.metadata_mut();
        metadata.insert("traceparent", format!("00-{TRACE_ID}-{SPAN_ID}-01").parse().unwrap());
        request
    };
    let request = GetRequest {
        r#type: TYPE.to_owned(),
        id: "a secret of the record".to_owned(),
    };
    let status = server.client().get(traced(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);

    let flushed = tokio::task::spawn_blocking(move || traces.shutdown(PATIENCE));
    tokio::time::timeout(PATIENCE, flushed).await.unwrap().unwrap();
    let spans = collected.spans();
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(spans.len(), 2, "{names:?}");
    let call = spans
        .iter()
        .find(|span| span.name == "databroker.DataBrokerService/Get")
        .unwrap();
    assert_eq!(hex(&call.trace_id), TRACE_ID);
    assert_eq!(hex(&call.parent_span_id), SPAN_ID);
    assert_eq!(attribute(call, "rpc.grpc.status_code"), Some(Value::Number(5)));
    assert_eq!(
        attribute(call, "network.peer.address"),
        Some(Value::Text("127.0.0.1".to_owned()))
    );
    let storage = spans.iter().find(|span| span.name == "storage/get").unwrap();
    assert_eq!(storage.trace_id, call.trace_id);
    assert_eq!(storage.parent_span_id, call.span_id);
    assert!(!format!("{spans:?}").contains("a secret"), "{spans:?}");

    let (key, first) = collected.0.lock()[0].clone();
    assert_eq!(key.as_deref(), Some("swordfish"));
    let resource = format!("{:?}", first.resource);
    assert!(
        resource.contains("databroker-host") && resource.contains("deployment.environment"),
        "{resource}"
    );
    assert_eq!(metrics.spans.sent.load(std::sync::atomic::Ordering::Relaxed), 2);
}

#[tokio::test]
async fn over_grpc_a_call_is_a_span_of_the_clients_trace() {
    a_call_is_a_span_of_the_clients_trace(TraceProtocol::Grpc).await;
}

#[tokio::test]
async fn over_http_a_call_is_a_span_of_the_clients_trace() {
    a_call_is_a_span_of_the_clients_trace(TraceProtocol::HttpProtobuf).await;
}
