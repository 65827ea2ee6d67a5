//! What is the same for all calls: the layer around the services.
//!
//! - A deadline that passes is answered with DEADLINE_EXCEEDED. The transport's own answer would be CANCELLED, which
//!   makes some of Pomerium's clients give up for good, so it is given just ahead of that one.
//! - A panic is answered with INTERNAL, where the transport would reset the stream, which clients see as CANCELLED.
//! - A request that is too large is RESOURCE_EXHAUSTED as everywhere in gRPC, where the library says OUT_OF_RANGE; one
//!   that is no message of its type is INVALID_ARGUMENT, where the library says INTERNAL.
//! - UNIMPLEMENTED comes with a sentence.
//! - A call that fails, be it a stream after days, leaves one line in the log: never with record data. Where many of a
//!   method fail alike, a line says how many were left out.
//! - A call is counted and timed, and is a span where traces are on.
//! - A call is open from the request to the end of the answer, and ended where the server ends (see [`open_calls`]).
//! - A call takes its place among those that may be open, and its bytes theirs (see [`room`]). Of its metadata only
//!   what the services look at goes on, as copies: a value that was kept would keep all the metadata that came with it.
//!
//! [`open_calls`]: super::open_calls
//! [`room`]: super::room

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use hyper::body::{Frame, SizeHint};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use super::auth::METADATA_KEY;
use super::caller::{Caller, cut};
use super::health;
use super::open_calls::{OpenCall, OpenCalls};
use super::request::{RequestBody, Reservation};
use super::room::{Kind, Place, Room};
use super::unknown;
use crate::broker::BrokerError;
use crate::telemetry::metrics::{CountedCall, Metrics};
use crate::telemetry::traces;

/// By how much a deadline is kept ahead of the transport's.
const AHEAD: Duration = Duration::from_millis(2);

/// How the library begins what it says of a request that it cannot decode, and how much of that the client is told.
const MALFORMED: &str = "failed to decode Protobuf message";
const SHOWN: usize = 200;

/// The most bytes of an answer's message.
const MOST: usize = 1024;

/// The one call that answers UNKNOWN where the request is at fault.
const PATCH: &str = "/databroker.DataBrokerService/Patch";

const HOST_VERSION: HeaderName = HeaderName::from_static("x-databroker-host-version");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The metadata that the services look at.
const LOOKED_AT: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::TE,
    HeaderName::from_static(METADATA_KEY),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-accept-encoding"),
    TIMEOUT,
];

/// What needs a token begins so; all else is for everybody.
const GUARDED: [&str; 2] = ["/databroker.", "/registry."];

/// Puts [`Calls`] around a service.
#[derive(Clone, Debug)]
pub struct CallLayer {
    open: OpenCalls,
    room: Room,
    metrics: Arc<Metrics>,
}

impl CallLayer {
    /// A layer that keeps the open calls in the first, as long as there is room in the second, and counts all of them
    /// in the third.
    pub fn new(open: OpenCalls, room: Room, metrics: Arc<Metrics>) -> Self {
        Self { open, room, metrics }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls {
            inner,
            open: self.open.clone(),
            room: self.room.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

/// The layer's service; see the head of this file.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
    open: OpenCalls,
    room: Room,
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
        let mut call = Call::of(&request, &self.metrics, &self.room);
        let open = self.open.open();
        match self.room.enter(call.kind(), &call.caller.peer) {
            Ok(place) => call.place = Some(place),
            Err(full) => return Box::pin(async move { Ok(call.finish(full.into_http(), open)) }),
        }
        let deadline = request
            .headers()
            .get(TIMEOUT)
            .and_then(timeout)
            .map(|timeout| timeout.saturating_sub(AHEAD));
        let request = call.passed_on(request);
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

/// A call under way.
struct Call {
    caller: Arc<Caller>,
    /// Counted as open for as long as the answer is.
    counted: CountedCall,
    span: Span,
    room: Room,
    /// None where there was no room for it.
    place: Option<Place>,
    /// What its request holds, until it is answered.
    reservation: Reservation,
    /// True once it is known how the call ended.
    has_ended: bool,
}

impl Call {
    fn of(request: &Request<Body>, metrics: &Metrics, room: &Room) -> Self {
        let caller = Caller::of(request);
        let peer = caller.peer.address();
        Self {
            counted: metrics.calls.begin(request.uri().path()),
            span: traces::call(request.uri().path(), request.headers(), peer),
            caller: Arc::new(caller),
            room: room.clone(),
            place: None,
            reservation: Reservation::default(),
            has_ended: false,
        }
    }

    fn kind(&self) -> Kind {
        let guarded = GUARDED.iter().any(|service| self.caller.path.starts_with(service));
        match (guarded, self.counted.is_stream()) {
            (false, _) if self.caller.path == health::CHECK_PATH => Kind::Probe,
            (false, _) => Kind::Open,
            (true, true) => Kind::Stream,
            (true, false) => Kind::Unary,
        }
    }

    /// The request as the services see it.
    fn passed_on(&self, request: Request<Body>) -> Request<Body> {
        let (came, body) = request.into_parts();
        let body = match self.kind() {
            // The services bound it by what they take. Reflection's is a stream that may stay open.
            Kind::Open => body,
            _ => Body::new(RequestBody::new(body, self.room.clone(), Arc::clone(&self.reservation))),
        };
        let mut request = Request::new(body);
        *request.method_mut() = came.method;
        *request.version_mut() = came.version;
        // A path is a URI.
        *request.uri_mut() = came.uri.path().parse().unwrap_or_default();
        *request.extensions_mut() = came.extensions;
        request.extensions_mut().insert(Arc::clone(&self.caller));
        for name in LOOKED_AT {
            // Of several values the first one counts.
            let value = came.headers.get(&name).map(HeaderValue::as_bytes);
            if let Some(Ok(value)) = value.map(HeaderValue::from_bytes) {
                request.headers_mut().insert(name, value);
            }
        }
        request
    }

    fn finish(mut self, mut response: Response<Body>, open: OpenCall) -> Response<Body> {
        let status = Status::from_header_map(response.headers());
        if let Some(failed) = &status
            && let Some(better) = self.better(failed)
        {
            response = better.into_http();
        }
        // What is answered no longer needs what was asked.
        self.reservation.lock().take();
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
                Some(Status::unimplemented(unknown::sentence(&self.caller.path)))
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
        // These are ordinary: nothing was found, a lease is taken, a stream starts over, a client goes. Refused tokens
        // have a line of their own, which says more.
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
        let Caller {
            path: method,
            peer,
            request_id,
        } = &*self.caller;
        let code = tracing::field::debug(status.code());
        let peer = peer.address().map(tracing::field::display);
        let request_id = request_id.as_deref();
        let reason = status.message();
        match status.code() {
            // What Pomerium's server says of a mask or of data that cannot be merged: the request's fault.
            Code::Unknown if method == PATCH => {
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
        let frame = match Pin::new(&mut *body).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let ended = ended.get_or_insert_with(|| open.calls().clone().ended().boxed());
                std::task::ready!(ended.as_mut().poll(context));
                *is_over = true;
                Some(last(&Status::from(BrokerError::ShuttingDown)))
            }
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let frame = match frame.into_data() {
            Ok(data) => match call.room.answer(data, &call.caller.peer) {
                Ok(data) => Frame::data(data),
                Err(full) => {
                    *is_over = true;
                    // What would come next is not held any longer.
                    *body = Body::empty();
                    last(&full)?
                }
            },
            Err(frame) => frame,
        };
        if let Some(trailers) = frame.trailers_ref() {
            call.end(trailers);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The end of a stream.
fn last(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
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
        let mut calls = CallLayer::new(OpenCalls::default(), Room::new(8), Arc::default()).layer(service_fn(|_| {
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
            let mut calls =
                CallLayer::new(OpenCalls::default(), Room::new(8), Arc::default()).layer(service_fn(answer));
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
        let mut calls = CallLayer::new(open.clone(), Room::new(8), Arc::default()).layer(service_fn(
            move |request: Request<Body>| {
                let streams = request.uri().path() == "/stream";
                async move {
                    if !streams {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(stream()))
                }
            },
        ));
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
