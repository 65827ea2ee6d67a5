//! `grpc.health.v1.Health`: whether the backend answers.
//!
//! One answer for all names, since all of them live and die with the backend. The names are those that are served here and
//! the one that Pomerium's proxies ask for. Written by hand because the usual implementation answers a Watch for an unknown
//! name with an error, where the health protocol wants a message, and leaves its streams open at shutdown.

use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::broker::Broker;

/// The names that have a health; the empty one stands for the whole process.
const NAMES: [&str; 8] = [
    "",
    "databroker.DataBrokerService",
    "databroker.CheckpointService",
    "registry.Registry",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    // What a Pomerium with several databroker addresses asks each of them for.
    "pomerium-databroker",
];

/// How often the backend is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the backend may take to answer.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// How the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The backend answers.
    Serving,
    /// The backend does not answer, or the process is going down.
    NotServing,
    /// Watches end: nothing will change any more.
    Ended,
}

/// The service; clones share one state.
#[derive(Clone)]
pub struct HealthService {
    /// Written by [`Reporter`] alone; the stream of each Watch follows it.
    state: watch::Receiver<State>,
}

/// What sets the state that the service answers with.
pub struct Reporter(watch::Sender<State>);

impl Reporter {
    /// A reporter, which says that nothing is served yet, and the service that answers what it reports.
    pub fn new() -> (Self, HealthService) {
        let (sender, state) = watch::channel(State::NotServing);
        (Self(sender), HealthService { state })
    }

    /// Reports a state. Once [`State::Ended`] nothing else can be.
    pub fn set(&self, state: State) {
        self.0.send_if_modified(|current| {
            let changes = *current != state && *current != State::Ended;
            if changes {
                *current = state;
            }
            changes
        });
    }

    /// Asks the backend once and reports the outcome.
    pub async fn probe(&self, broker: &Broker) {
        let answer = tokio::time::timeout(TIME_LIMIT, broker.health()).await;
        let failure = match &answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {TIME_LIMIT:?}")),
        };
        let before = *self.0.borrow();
        match failure {
            None => {
                if before == State::NotServing {
                    tracing::info!("the backend answers: serving");
                }
                self.set(State::Serving);
            }
            Some(error) => {
                if before == State::Serving {
                    tracing::error!(error, "the backend does not answer: not serving");
                }
                self.set(State::NotServing);
            }
        }
    }

    /// Asks the backend again and again, until it is dropped.
    pub async fn follow(&self, broker: &Broker) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.probe(broker).await;
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !NAMES.contains(&request.get_ref().service.as_str()) {
            return Err(Status::not_found("unknown service"));
        }
        let status = match *self.state.borrow() {
            State::Serving => ServingStatus::Serving,
            State::NotServing | State::Ended => ServingStatus::NotServing,
        };
        Ok(Response::new(response(status)))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = NAMES.contains(&request.get_ref().service.as_str());
        Ok(Response::new(statuses(self.state.clone(), known).boxed()))
    }
}

/// The status at once and whenever it changes; ends with UNAVAILABLE at shutdown. The status of an unknown name is just
/// that and never changes.
fn statuses(
    mut state: watch::Receiver<State>,
    known: bool,
) -> impl stream::Stream<Item = Result<HealthCheckResponse, Status>> {
    state.mark_changed();
    stream::unfold(Some((state, None)), move |unfinished| async move {
        let (mut state, sent) = unfinished?;
        loop {
            let now = match state.changed().await {
                Ok(()) => *state.borrow_and_update(),
                Err(_) => State::Ended,
            };
            let status = match now {
                State::Ended => return Some((Err(Status::unavailable("the databroker is shutting down")), None)),
                _ if !known => ServingStatus::ServiceUnknown,
                State::Serving => ServingStatus::Serving,
                State::NotServing => ServingStatus::NotServing,
            };
            if sent != Some(status) {
                return Some((Ok(response(status)), Some((state, Some(status)))));
            }
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use futures::FutureExt as _;
    use tonic::Code;

    use super::*;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest {
            service: service.to_owned(),
        })
    }

    async fn check(service: &HealthService, name: &str) -> Result<ServingStatus, Code> {
        match service.check(request(name)).await {
            Ok(response) => Ok(response.into_inner().status()),
            Err(status) => Err(status.code()),
        }
    }

    #[tokio::test]
    async fn check_tells_the_state_of_each_known_name() {
        let (reporter, service) = Reporter::new();
        for (state, expected) in [
            (State::NotServing, ServingStatus::NotServing),
            (State::Serving, ServingStatus::Serving),
            (State::Ended, ServingStatus::NotServing),
            // Nothing comes after the end.
            (State::Serving, ServingStatus::NotServing),
        ] {
            reporter.set(state);
            for name in NAMES {
                assert_eq!(check(&service, name).await, Ok(expected), "{name:?} when {state:?}");
            }
            assert_eq!(check(&service, "nobody.Knows").await, Err(Code::NotFound));
        }
    }

    #[tokio::test]
    async fn watch_follows_the_state_and_ends_with_unavailable() {
        let (reporter, service) = Reporter::new();
        let mut known = service
            .watch(request("pomerium-databroker"))
            .await
            .unwrap()
            .into_inner();
        let mut unknown = service.watch(request("nobody.Knows")).await.unwrap().into_inner();

        assert_eq!(known.next().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert_eq!(
            unknown.next().await.unwrap().unwrap().status(),
            ServingStatus::ServiceUnknown
        );
        reporter.set(State::Serving);
        assert_eq!(known.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
        assert!(unknown.next().now_or_never().is_none());
        reporter.set(State::Serving);
        assert!(known.next().now_or_never().is_none());

        reporter.set(State::Ended);
        for stream in [&mut known, &mut unknown] {
            assert_eq!(stream.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
            assert!(stream.next().await.is_none());
        }
    }
}
