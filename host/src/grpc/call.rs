//! What is the same for all calls: the layer around the services.
//!
//! - A deadline that passes is answered with DEADLINE_EXCEEDED. The transport's own answer would be CANCELLED, which makes
//!   some of Pomerium's clients give up for good, so it is given just ahead of that one.
//! - A panic is answered with INTERNAL, where the transport would reset the stream, which clients see as CANCELLED.
//! - A request that is too large is RESOURCE_EXHAUSTED as everywhere in gRPC, where the library says OUT_OF_RANGE; one that
//!   is no message of its type is INVALID_ARGUMENT, where the library says INTERNAL.
//! - UNIMPLEMENTED comes with a sentence.
//! - A call that fails, be it a stream after days, leaves one line in the log: never with record data. Where many of a
//!   method fail alike, a line says how many were left out.
//! - A call is counted and timed, and is a span where traces are on.
//! - A call is open from the request to the end of the answer, and ended where the server ends (see [`open_calls`]).
//!
//! [`open_calls`]: super::open_calls

use std::any::Any;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use hyper::body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use super::open_calls::{OpenCall, OpenCalls};
use super::unknown;
use crate::broker::BrokerError;
use crate::telemetry::metrics::{CountedCall, Metrics};
use crate::telemetry::traces;

/// By how much a deadline is kept ahead of the transport's.
const AHEAD: Duration = Duration::from_millis(2);

/// How the library begins what it says of a request that it cannot decode, and how much of that the client is told.
const MALFORMED: &str = "failed to decode Protobuf message";
const SHOWN: usize = 200;

/// The most bytes of an answer's message, and of what the log says of a call.
const MOST: usize = 1024;

/// The one call that answers UNKNOWN where the request is at fault.
const PATCH: &str = "/databroker.DataBrokerService/Patch";

fn cut(text: &str) -> String {
    text.chars().take(MOST / 4).collect()
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const HOST_VERSION: HeaderName = HeaderName::from_static("x-databroker-host-version");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Puts [`Calls`] around a service.
#[derive(Clone, Debug)]
pub struct CallLayer {
    open: OpenCalls,
    metrics: Arc<Metrics>,
}

impl CallLayer {
    /// A layer that keeps the open calls in the one and counts all of them in the other.
    pub fn new(open: OpenCalls, metrics: Arc<Metrics>) -> Self {
        Self { open, metrics }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls {
            inner,
            open: self.open.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

/// The layer's service; see the head of this file.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
    open: OpenCalls,
    metrics: Arc<Metrics>,
}

impl<S, E> Service<Request<Body>> for Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = E>,
    S::Future: Send + 'static,
    E: Send + 'static,
{
    type Response = Response<Body>;
    type Error = E;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::of(&request, &self.metrics);
        let open = self.open.open();
        let deadline = request
            .headers()
            .get(TIMEOUT)
            .and_then(timeout)
            .map(|timeout| timeout.saturating_sub(AHEAD));
        let passed = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        let ended = self.open.clone().ended();
        let answer = self.inner.call(request).instrument(call.span.clone());
        let answer = AssertUnwindSafe(answer).catch_unwind();
        Box::pin(async move {
            let response = tokio::select! {
                // What is done is answered, whatever else there is to say.
                biased;
                answer = answer => answer.unwrap_or_else(|panic| Ok(panicked(panic.as_ref())))?,
                () = passed => Status::deadline_exceeded("the call's deadline has passed").into_http(),
                () = ended => Status::from(BrokerError::ShuttingDown).into_http(),
            };
            Ok(call.finish(response, open))
        })
    }
}

/// What the log says of a call. Cheap to make, since every call makes one: headers and URI share their bytes.
struct Call {
    uri: Uri,
    peer: Option<SocketAddr>,
    request_id: Option<HeaderValue>,
    /// Counted as open for as long as the answer is.
    counted: CountedCall,
    span: Span,
    /// True once it is known how the call ended.
    has_ended: bool,
}

impl Call {
    fn of(request: &Request<Body>, metrics: &Metrics) -> Self {
        let peer = request
            .extensions()
            .get::<TcpConnectInfo>()
            .and_then(TcpConnectInfo::remote_addr);
        Self {
            counted: metrics.calls.begin(request.uri().path()),
            span: traces::call(request.uri().path(), request.headers(), peer),
            uri: request.uri().clone(),
            peer,
            request_id: request.headers().get(REQUEST_ID).cloned(),
            has_ended: false,
        }
    }

    fn finish(mut self, mut response: Response<Body>, open: OpenCall) -> Response<Body> {
        let status = Status::from_header_map(response.headers());
        if let Some(failed) = &status
            && let Some(better) = self.better(failed)
        {
            response = better.into_http();
        }
        response
            .headers_mut()
            .insert(HOST_VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
        if status.is_some() {
            self.end(response.headers());
        }
        response.map(|body| {
            Body::new(Answer {
                body,
                call: self,
                open,
                ended: None,
                is_over: false,
            })
        })
    }

    /// What to answer instead of what a library answers.
    fn better(&self, status: &Status) -> Option<Status> {
        match status.code() {
            Code::Unimplemented if status.message().is_empty() => {
                Some(Status::unimplemented(unknown::sentence(&cut(self.uri.path()))))
            }
            Code::OutOfRange => Some(Status::resource_exhausted(status.message())),
            // The request's bytes are at fault, not the server. For deep nesting the library names every level.
            Code::Internal if status.message().starts_with(MALFORMED) => Some(Status::invalid_argument(
                status.message().chars().take(SHOWN).collect::<String>(),
            )),
            // A message is a header, and clients refuse large ones.
            code if status.message().len() > MOST => Some(Status::new(code, cut(status.message()))),
            _ => None,
        }
    }

    /// The call has ended.
    fn end(&mut self, trailers: &HeaderMap) {
        self.has_ended = true;
        let ok = trailers
            .get(Status::GRPC_STATUS)
            .is_none_or(|code| code.as_bytes() == b"0");
        let failed = if ok { None } else { Status::from_header_map(trailers) };
        let code = failed.as_ref().map_or(Code::Ok, Status::code);
        self.counted.end(code);
        traces::ended(&self.span, code);
        if let Some(status) = failed {
            self.log(&status);
        }
    }

    /// Logs a call that has failed.
    fn log(&self, status: &Status) {
        // These are ordinary: nothing was found, a lease is taken, a stream starts over, a client goes. Refused tokens have
        // a line of their own, which says more.
        let ordinary = matches!(
            status.code(),
            Code::NotFound | Code::AlreadyExists | Code::Aborted | Code::Cancelled | Code::Unauthenticated
        );
        let unlogged = if ordinary {
            Some(0)
        } else {
            self.counted.line(status.code())
        };
        let Some(unlogged) = unlogged else { return };
        let method = cut(self.uri.path());
        let code = tracing::field::debug(status.code());
        let peer = self.peer.map(tracing::field::display);
        // A client may write what it likes here: only what can stand in one line is kept.
        let request_id = self
            .request_id
            .as_ref()
            .and_then(|id| id.to_str().ok())
            .and_then(|id| id.get(..id.len().min(128)));
        let reason = status.message();
        match status.code() {
            // What Pomerium's server says of a mask or of data that cannot be merged: the request's fault.
            Code::Unknown if self.uri.path() == PATCH => {
                tracing::info!(method, code, peer, request_id, reason, unlogged, "call failed");
            }
            Code::Internal | Code::DataLoss | Code::Unknown => {
                tracing::warn!(method, code, peer, request_id, reason, unlogged, "call failed");
            }
            _ if ordinary => tracing::debug!(method, code, peer, request_id, reason, "call failed"),
            _ => tracing::info!(method, code, peer, request_id, reason, unlogged, "call failed"),
        }
    }
}

impl Drop for Call {
    /// The client has gone away before the end; its count says CANCELLED of itself.
    fn drop(&mut self) {
        if !self.has_ended {
            traces::ended(&self.span, Code::Cancelled);
            self.log(&Status::cancelled("the client has broken the call off"));
        }
    }
}

/// The body of an answer: logs how the call ended, and ends a stream where the server does.
struct Answer {
    body: Body,
    call: Call,
    open: OpenCall,
    /// Waits for the server's end; made when the body first has nothing to give.
    ended: Option<BoxFuture<'static, ()>>,
    /// True once the stream was ended here.
    is_over: bool,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self {
            body,
            call,
            open,
            ended,
            is_over,
        } = self.get_mut();
        if *is_over {
            return Poll::Ready(None);
        }
        let frame = match Pin::new(body).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let ended = ended.get_or_insert_with(|| open.calls().clone().ended().boxed());
                std::task::ready!(ended.as_mut().poll(context));
                *is_over = true;
                let mut trailers = HeaderMap::new();
                Status::from(BrokerError::ShuttingDown).add_header(&mut trailers)?;
                Some(Ok(Frame::trailers(trailers)))
            }
        };
        if let Some(Ok(frame)) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            call.end(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Response<Body> {
    let what = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = what, "a call failed by a fault of the server");
    Status::internal("the call failed by a fault of the server").into_http()
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 60 * 60),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

    use std::pin::pin;

    use http_body_util::BodyExt as _;
    use tower::service_fn;

    use super::*;
    use crate::component::tests::Log;

    #[test]
    fn reads_timeouts() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("5m", Some(Duration::from_millis(5))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("100000000n", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("+1S", None),
            ("1", None),
            ("1s", None),
        ] {
            assert_eq!(timeout(&HeaderValue::from_static(text)), expected, "{text:?}");
        }
    }

    async fn answer_of<F>(headers: &[(&'static str, &'static str)], answer: impl Fn() -> F) -> Status
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/databroker.DataBrokerService/Nothing".parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_static(value));
        }
        let mut calls = CallLayer::new(OpenCalls::default(), Arc::default()).layer(service_fn(|_| {
            let answer = answer();
            async move { Ok::<_, std::convert::Infallible>(answer.await) }
        }));
        let response = calls.call(request).await.unwrap();
        assert!(response.headers().contains_key(HOST_VERSION));
        Status::from_header_map(response.headers()).unwrap()
    }

    #[tokio::test]
    async fn answers_what_clients_can_work_with() {
        let status = answer_of(&[("grpc-timeout", "10m")], std::future::pending).await;
        assert_eq!(status.code(), Code::DeadlineExceeded);

        let status = answer_of(&[], || async { panic!("on purpose") }).await;
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("on purpose"));

        let status = answer_of(&[], || async { Status::out_of_range("too large").into_http() }).await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::ResourceExhausted, "too large")
        );

        let status = answer_of(&[], || async { Status::unimplemented("").into_http() }).await;
        assert!(status.message().contains("has no method"), "{}", status.message());

        let status = answer_of(&[], || async { Status::not_found("record not found").into_http() }).await;
        assert_eq!((status.code(), status.message()), (Code::NotFound, "record not found"));
    }

    #[tokio::test]
    async fn what_the_client_got_wrong_is_no_warning() {
        for (path, code, level) in [
            (PATCH, Code::Unknown, " INFO "),
            (PATCH, Code::Internal, " WARN "),
            ("/databroker.DataBrokerService/Put", Code::Unknown, " WARN "),
            ("/databroker.DataBrokerService/Put", Code::InvalidArgument, " INFO "),
        ] {
            let log = Log::default();
            let recording = log.record();
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            let answer =
                move |_| async move { Ok::<_, std::convert::Infallible>(Status::new(code, "why").into_http()) };
            let mut calls = CallLayer::new(OpenCalls::default(), Arc::default()).layer(service_fn(answer));
            drop(calls.call(request).await.unwrap());
            drop(recording);
            let text = log.text();
            assert!(
                text.contains(level) && text.contains("call failed"),
                "{path} {code:?}: {text}"
            );
        }
    }

    #[tokio::test]
    async fn a_call_is_open_until_its_answer_is_taken_and_ended_with_the_server() {
        let open = OpenCalls::default();
        let stream = || {
            let messages = futures::stream::pending::<Result<Frame<Bytes>, Status>>();
            Body::new(http_body_util::StreamBody::new(messages))
        };
        let mut calls =
            CallLayer::new(open.clone(), Arc::default()).layer(service_fn(move |request: Request<Body>| {
                let streams = request.uri().path() == "/stream";
                async move {
                    if !streams {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(stream()))
                }
            }));
        let mut request = |path: &str| {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            calls.call(request)
        };
        let (unanswered, streaming, dropped) = (request("/waits"), request("/stream"), request("/stream"));
        assert_eq!(open.count(), 3);
        drop(dropped);
        assert_eq!(open.count(), 2);
        let mut body = streaming.await.unwrap().into_body();
        assert!(futures::poll!(body.frame()).is_pending());
        assert!(futures::poll!(pin!(open.none())).is_pending());

        open.end();
        let answer = unanswered.await.unwrap();
        assert_eq!(
            Status::from_header_map(answer.headers()).unwrap().code(),
            Code::Unavailable
        );
        drop(answer);
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Unavailable);
        assert!(body.frame().await.is_none());
        assert_eq!(open.count(), 1, "the transport may not have sent the end yet");
        drop(body);
        open.none().await;
    }
}
