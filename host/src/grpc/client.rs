//! The smallest client: asks a databroker where it stands. It shows that address and shared secret fit.

use std::time::Duration;

use databroker_proto::databroker::data_broker_service_client::DataBrokerServiceClient;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request};

use super::auth::{METADATA_KEY, token};
use crate::backend::Position;
use crate::settings::SharedSecret;

/// How long a connection may take.
const CONNECT_TIME_LIMIT: Duration = Duration::from_secs(5);

/// How long the answer may take.
const CALL_TIME_LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none.
    #[error("{0:?} is not an address: write http://HOST:PORT")]
    Address(String),
    /// Nobody is there.
    #[error("cannot reach {address}: {cause}; does a databroker listen there?")]
    Unreachable {
        /// The address.
        address: String,
        /// The transport's words.
        cause: String,
    },
    /// The token was not accepted.
    #[error("{0} does not accept the token: SHARED_SECRET is another there; its log says why")]
    Refused(String),
    /// The call failed.
    #[error("{address} answers {code:?}: {message}")]
    Failed {
        /// The address.
        address: String,
        /// The status.
        code: Code,
        /// What it says.
        message: String,
    },
    /// No token can be made.
    #[error("cannot make a token: {0}")]
    Token(String),
}

/// Calls ServerInfo.
///
/// # Errors
///
/// See [`ClientError`].
pub async fn server_info(address: &str, secret: &SharedSecret) -> Result<Position, ClientError> {
    if !address.starts_with("http://") {
        return Err(ClientError::Address(address.to_owned()));
    }
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| ClientError::Address(address.to_owned()))?;
    let channel = endpoint
        .connect_timeout(CONNECT_TIME_LIMIT)
        .timeout(CALL_TIME_LIMIT)
        .connect()
        .await
        .map_err(|error| ClientError::Unreachable {
            address: address.to_owned(),
            cause: root_cause(&error),
        })?;

    let token = token(secret).map_err(|error| ClientError::Token(error.to_string()))?;
    let token = MetadataValue::try_from(token).map_err(|error| ClientError::Token(error.to_string()))?;
    let mut request = Request::new(());
    request.metadata_mut().insert(METADATA_KEY, token);
    let answer = DataBrokerServiceClient::new(channel).server_info(request).await;
    answer
        .map(|answer| {
            let info = answer.into_inner();
            Position {
                server_version: info.server_version,
                earliest_version: info.earliest_record_version,
                latest_version: info.latest_record_version,
            }
        })
        .map_err(|status| match status.code() {
            Code::Unauthenticated => ClientError::Refused(address.to_owned()),
            code => ClientError::Failed {
                address: address.to_owned(),
                code,
                message: status.message().to_owned(),
            },
        })
}

/// The innermost error, which is the one that says something.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
