//! What is answered until the store is open, which may take its time: a database that is not there yet is waited for.
//!
//! A connection that nobody answers keeps a client waiting, and tells it nothing. UNAVAILABLE is what Pomerium's clients expect of a
//! databroker that is away: they come again. Health has been asked by then, and says that nothing is served.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

use super::health::{self, HealthService};

/// All services once they are there, and until then health alone. Clones are one.
#[derive(Clone, Debug)]
pub struct Opening {
    health: Routes,
    all: Arc<OnceLock<Routes>>,
}

impl Opening {
    /// With health, and without the others yet.
    pub fn new(health: HealthService) -> Self {
        Self {
            health: Routes::new(health.server()),
            all: Arc::default(),
        }
    }

    /// From now on all of these are served; health too must be among them.
    pub fn open(&self, all: Routes) {
        // They come once.
        let _ = self.all.set(all.prepare());
    }
}

impl Service<Request<Body>> for Opening {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Routes are always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.all.get() {
            Some(all) => all.clone().call(request).boxed(),
            None if request.uri().path().starts_with(health::PATH) => self.health.call(request).boxed(),
            None => {
                let why = "the store is not open yet: try again; the server's log says what it waits for";
                std::future::ready(Ok(Status::unavailable(why).into_http())).boxed()
            }
        }
    }
}
