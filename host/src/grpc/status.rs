//! From errors to gRPC statuses: the one table of codes.
//!
//! CANCELLED is not in it. A client of Pomerium that sees its stream end with CANCELLED takes it for its own doing and
//! never opens another one.

use tonic::{Code, Status};

use super::convert::Invalid;
use crate::backend::BackendError;
use crate::broker::BrokerError;

impl From<BrokerError> for Status {
    fn from(error: BrokerError) -> Self {
        Self::new(code(&error), error.to_string())
    }
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

fn code(error: &BrokerError) -> Code {
    match error {
        BrokerError::RecordNotFound | BrokerError::OptionsNotFound => Code::NotFound,
        BrokerError::LeaseTaken | BrokerError::LeaseLost => Code::AlreadyExists,
        // The client starts over with SyncLatest.
        BrokerError::InvalidServerVersion | BrokerError::InvalidRecordVersion => Code::Aborted,
        BrokerError::InvalidArgument(_) => Code::InvalidArgument,
        // What Pomerium's own server answers.
        BrokerError::Patch(_) => Code::Unknown,
        BrokerError::AnswerTooLarge(_) | BrokerError::OptionsTooLarge(_) | BrokerError::QueryTooCostly(_) => {
            Code::ResourceExhausted
        }
        BrokerError::ShuttingDown => Code::Unavailable,
        BrokerError::Backend(error) => backend_code(error),
    }
}

fn backend_code(error: &BackendError) -> Code {
    match error {
        // Another attempt, here or at another host, may succeed. That includes a store that takes no writes at present.
        BackendError::Unavailable(_)
        | BackendError::NotCalled(_)
        | BackendError::ReadOnly(_)
        | BackendError::Stopped(_)
        | BackendError::Closed => Code::Unavailable,
        BackendError::Exhausted(_) => Code::ResourceExhausted,
        BackendError::Pruned(_) => Code::Aborted,
        BackendError::Corrupt(_) => Code::DataLoss,
        BackendError::Configuration(_) | BackendError::Internal(_) => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_has_the_code_and_text_that_clients_know() {
        let text = || "why".to_owned();
        let cases = [
            (BrokerError::RecordNotFound, Code::NotFound, "record not found"),
            (
                BrokerError::OptionsNotFound,
                Code::NotFound,
                "no such options for databroker record",
            ),
            (BrokerError::LeaseTaken, Code::AlreadyExists, "lease is already taken"),
            (BrokerError::LeaseLost, Code::AlreadyExists, "lease no longer held"),
            (
                BrokerError::InvalidServerVersion,
                Code::Aborted,
                "invalid server version",
            ),
            (
                BrokerError::InvalidRecordVersion,
                Code::Aborted,
                "invalid record version",
            ),
            (BrokerError::InvalidArgument(text()), Code::InvalidArgument, "why"),
            (BrokerError::Patch(text()), Code::Unknown, "why"),
            (
                BrokerError::ShuttingDown,
                Code::Unavailable,
                "the databroker is shutting down",
            ),
            (
                BackendError::Unavailable(text()).into(),
                Code::Unavailable,
                "the store is unavailable: why",
            ),
            (
                BackendError::NotCalled(text()).into(),
                Code::Unavailable,
                "the store is unavailable: why",
            ),
            (
                BackendError::Stopped(text()).into(),
                Code::Unavailable,
                "the storage plugin stopped: why",
            ),
            (
                BackendError::ReadOnly(text()).into(),
                Code::Unavailable,
                "the store is read-only: why",
            ),
            (
                BackendError::Exhausted(text()).into(),
                Code::ResourceExhausted,
                "there is no room: why",
            ),
            (
                BackendError::Corrupt(text()).into(),
                Code::DataLoss,
                "the store is corrupt: why",
            ),
            (
                BackendError::Internal(text()).into(),
                Code::Internal,
                "the storage plugin failed: why",
            ),
            (
                BackendError::Pruned(7).into(),
                Code::Aborted,
                "changes up to version 7 are no longer in the change log",
            ),
        ];
        for (error, code, message) in cases {
            let status = Status::from(error.clone());
            assert_eq!((status.code(), status.message()), (code, message), "{error:?}");
        }
    }
}
