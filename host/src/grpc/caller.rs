//! Who calls what: what the log and the guard know of a call.

use http::{HeaderName, Request};
use tonic::body::Body;

use crate::connections::Peer;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Most bytes of a request id that are kept.
const REQUEST_ID_BYTES: usize = 128;

/// Most characters of a path that are kept.
const PATH_CHARACTERS: usize = 256;

/// A call, as the log says it. All of it is copied: headers and URI share their bytes with all the metadata that came.
#[derive(Debug, Default)]
pub struct Caller {
    /// The method's path, cut to what is shown.
    pub path: String,
    /// The connection.
    pub peer: Peer,
    /// What the client calls its request: what can stand in one line of it.
    pub request_id: Option<String>,
}

impl Caller {
    /// What a request says.
    pub fn of(request: &Request<Body>) -> Self {
        let request_id = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        Self {
            path: cut(request.uri().path()),
            peer: request.extensions().get::<Peer>().cloned().unwrap_or_default(),
            request_id: request_id
                .and_then(|id| id.get(..id.len().min(REQUEST_ID_BYTES)))
                .map(str::to_owned),
        }
    }
}

/// The beginning of a text that may be of any length.
pub fn cut(text: &str) -> String {
    text.chars().take(PATH_CHARACTERS).collect()
}
