//! `grpc.health.v1.Health`: whether the backend answers.
//!
//! One answer for all names, since all of them live and die with the backend. The names are those that are served here
//! and the one that Pomerium's proxies ask for. Written by hand because the usual implementation answers a Watch for an
//! unknown name with an error, where the health protocol wants a message. The server's end ends the streams of Watch,
//! as it does all others.

use std::pin::pin;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::OPEN_MESSAGE;
use crate::backend::BackendError;
use crate::broker::{Broker, BrokerError};

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

/// How the paths of its calls begin, and that of what load balancers ask every few seconds.
pub(super) const PATH: &str = "/grpc.health.v1.Health/";
pub(super) const CHECK_PATH: &str = "/grpc.health.v1.Health/Check";

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
}

/// The service; clones share one state.
#[derive(Clone)]
pub struct HealthService {
    /// Written by [`Reporter`] alone; the stream of each Watch follows it.
    state: watch::Receiver<State>,
}

impl HealthService {
    /// What serves it. Requests are small, since anybody may send them.
    pub(super) fn server(self) -> HealthServer<Self> {
        HealthServer::new(self).max_decoding_message_size(OPEN_MESSAGE)
    }
}

/// What sets the state that the service answers with.
pub struct Reporter(watch::Sender<State>);

impl Reporter {
    /// A reporter, which says that nothing is served yet, and the service that answers what it reports.
    pub fn new() -> (Self, HealthService) {
        let (sender, state) = watch::channel(State::NotServing);
        (Self(sender), HealthService { state })
    }

    /// Reports a state; says whether it is another one than before.
    pub fn set(&self, state: State) -> bool {
        self.0
            .send_if_modified(|current| std::mem::replace(current, state) != state)
    }

    /// Asks the backend once, before anybody is sent here, and reports the outcome.
    pub async fn probe(&self, broker: &Broker) {
        // Without an answer in time it stays as it is reported already: not serving.
        let _ = tokio::time::timeout(TIME_LIMIT, self.ask(broker)).await;
    }

    /// Asks the backend again and again. Returns only when its plugin has stopped, which no waiting mends, and says
    /// why.
    pub async fn follow(&self, broker: &Broker) -> String {
        let mut availability = broker.availability();
        loop {
            // A plugin that stops and is started again in between is told as well.
            tokio::select! {
                Ok(()) = availability.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if let Err(BrokerError::Backend(BackendError::Stopped(cause))) = self.ask(broker).await {
                return cause;
            }
        }
    }

    /// A backend that is late with its answer is not asked again before it has come, so that questions do not pile up.
    async fn ask(&self, broker: &Broker) -> Result<(), BrokerError> {
        let mut answer = pin!(broker.health());
        let answer = match tokio::time::timeout(TIME_LIMIT, &mut answer).await {
            Ok(answer) => answer,
            Err(_) => {
                self.report(Some(&format!(
                    "no answer within {TIME_LIMIT:?}: the plugin computes, or waits for its store"
                )));
                answer.await
            }
        };
        self.report(answer.as_ref().err().map(ToString::to_string).as_deref());
        answer
    }

    fn report(&self, failure: Option<&str>) {
        match failure {
            None => {
                if self.set(State::Serving) {
                    tracing::info!("the backend answers: serving");
                }
            }
            Some(error) => {
                if self.set(State::NotServing) {
                    tracing::error!(error, "the backend does not answer: not serving");
                }
            }
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
            State::NotServing => ServingStatus::NotServing,
        };
        Ok(Response::new(response(status)))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = NAMES.contains(&request.get_ref().service.as_str());
        Ok(Response::new(statuses(self.state.clone(), known).boxed()))
    }
}

/// The status at once and whenever it changes. That of an unknown name is just that and never changes.
fn statuses(
    mut state: watch::Receiver<State>,
    known: bool,
) -> impl stream::Stream<Item = Result<HealthCheckResponse, Status>> {
    state.mark_changed();
    stream::unfold((state, None), move |(mut state, sent)| async move {
        loop {
            if state.changed().await.is_err() {
                // Nothing reports any more: the server is about to end.
                std::future::pending::<()>().await;
            }
            let status = match *state.borrow_and_update() {
                _ if !known => ServingStatus::ServiceUnknown,
                State::Serving => ServingStatus::Serving,
                State::NotServing => ServingStatus::NotServing,
            };
            if sent != Some(status) {
                return Some((Ok(response(status)), (state, Some(status))));
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
        ] {
            reporter.set(state);
            for name in NAMES {
                assert_eq!(check(&service, name).await, Ok(expected), "{name:?} when {state:?}");
            }
            assert_eq!(check(&service, "nobody.Knows").await, Err(Code::NotFound));
        }
    }

    #[tokio::test]
    async fn watch_follows_the_state() {
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
    }
}
