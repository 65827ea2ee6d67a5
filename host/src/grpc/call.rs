//! What is the same for all calls: the layer around the services.
//!
//! - A deadline that passes is answered with DEADLINE_EXCEEDED. The transport's own answer would be CANCELLED, which makes
//!   some of Pomerium's clients give up for good, so it is given just ahead of that one.
//! - A panic is answered with INTERNAL, where the transport would reset the stream, which clients see as CANCELLED.
//! - A request that is too large is RESOURCE_EXHAUSTED as everywhere in gRPC, where the library says OUT_OF_RANGE; one that
//!   is no message of its type is INVALID_ARGUMENT, where the library says INTERNAL.
//! - UNIMPLEMENTED comes with a sentence.
//! - A call that fails, be it a stream after days, leaves one line in the log: never with record data.

use std::any::Any;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::unknown;

/// By how much a deadline is kept ahead of the transport's.
const AHEAD: Duration = Duration::from_millis(2);

/// How the library begins what it says of a request that it cannot decode, and how much of that the client is told.
const MALFORMED: &str = "failed to decode Protobuf message";
const SHOWN: usize = 200;

/// The most bytes of an answer's message, and of what the log says of a call.
const MOST: usize = 1024;

fn cut(text: &str) -> String {
    text.chars().take(MOST / 4).collect()
}

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const HOST_VERSION: HeaderName = HeaderName::from_static("x-databroker-host-version");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Puts [`Calls`] around a service.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallLayer;

impl<S> Layer<S> for CallLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

/// The layer's service; see the head of this file.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
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
        let call = Call::of(&request);
        let deadline = request
            .headers()
            .get(TIMEOUT)
            .and_then(timeout)
            .map(|timeout| timeout.saturating_sub(AHEAD));
        let answer = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            let answer = match deadline {
                None => answer.await,
                Some(deadline) => match tokio::time::timeout(deadline, answer).await {
                    Ok(answer) => answer,
                    Err(_) => Ok(Ok(
                        Status::deadline_exceeded("the call's deadline has passed").into_http()
                    )),
                },
            };
            let response = answer.unwrap_or_else(|panic| Ok(panicked(panic.as_ref())))?;
            Ok(call.finish(response))
        })
    }
}

/// What the log says of a call. Cheap to make, since every call makes one: headers and URI share their bytes.
struct Call {
    uri: Uri,
    peer: Option<SocketAddr>,
    request_id: Option<HeaderValue>,
}

impl Call {
    fn of(request: &Request<Body>) -> Self {
        Self {
            uri: request.uri().clone(),
            peer: request
                .extensions()
                .get::<TcpConnectInfo>()
                .and_then(TcpConnectInfo::remote_addr),
            request_id: request.headers().get(REQUEST_ID).cloned(),
        }
    }

    fn finish(self, mut response: Response<Body>) -> Response<Body> {
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
            self.log(response.headers());
            return response;
        }
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                if let Some(trailers) = frame.trailers_ref() {
                    self.log(trailers);
                }
                frame
            }))
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

    /// Logs a call that has failed.
    fn log(&self, trailers: &HeaderMap) {
        let ok = trailers
            .get(Status::GRPC_STATUS)
            .is_none_or(|code| code.as_bytes() == b"0");
        if ok {
            return;
        }
        let Some(status) = Status::from_header_map(trailers) else {
            return;
        };
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
            Code::Internal | Code::DataLoss | Code::Unknown => {
                tracing::warn!(method, code, peer, request_id, reason, "call failed");
            }
            // These are ordinary: nothing was found, a lease is taken, a stream starts over. Refused tokens have a line of
            // their own, which says more.
            Code::NotFound | Code::AlreadyExists | Code::Aborted | Code::Unauthenticated => {
                tracing::debug!(method, code, peer, request_id, reason, "call failed");
            }
            _ => tracing::info!(method, code, peer, request_id, reason, "call failed"),
        }
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

    use tower::service_fn;

    use super::*;

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
        let mut calls = CallLayer.layer(service_fn(|_| {
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
}
