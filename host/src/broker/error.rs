//! Why the broker refused or failed a call.

use crate::backend::BackendError;

/// Why a call failed. The texts go to the client; those that Pomerium's own server has are word for word the same.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BrokerError {
    /// Get found nothing.
    #[error("record not found")]
    RecordNotFound,
    /// GetOptions found nothing.
    #[error("no such options for databroker record")]
    OptionsNotFound,
    /// AcquireLease found another holder.
    #[error("lease is already taken")]
    LeaseTaken,
    /// RenewLease found another holder.
    #[error("lease no longer held")]
    LeaseLost,
    /// The stream belongs to another incarnation of the content, or Clear has just ended it.
    #[error("invalid server version")]
    InvalidServerVersion,
    /// The change log no longer reaches back to where the stream wants to begin.
    #[error("invalid record version")]
    InvalidRecordVersion,
    /// The request is wrong in itself; what and why.
    #[error("{0}")]
    InvalidArgument(String),
    /// Patch on data that cannot be merged; what and why.
    #[error("{0}")]
    Patch(String),
    /// The records of an answer are too many; the most bytes there may be.
    #[error("the answer would have more than {0} bytes: ask for less at a time")]
    AnswerTooLarge(usize),
    /// The options of all types are too much; the most bytes there may be.
    #[error(
        "the options of all types would have more than {0} bytes: remove those of types that are no longer used, by setting \
         empty ones, or name fewer fields"
    )]
    OptionsTooLarge(usize),
    /// One record alone is too much work for the query's filter.
    #[error("the query is too much work for the record {0:?}: use fewer parts or fewer values to compare with")]
    QueryTooCostly(String),
    /// The process is going down.
    #[error("the databroker is shutting down")]
    ShuttingDown,
    /// The backend failed.
    #[error(transparent)]
    Backend(BackendError),
}

impl From<BackendError> for BrokerError {
    fn from(error: BackendError) -> Self {
        match error {
            // The call was under way when the process went down.
            BackendError::Closed => Self::ShuttingDown,
            error => Self::Backend(error),
        }
    }
}
