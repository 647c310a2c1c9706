//! What can go wrong for a blocking caller, in one type.
//!
//! `is_retryable` tells whether the same call may succeed later; `Unknown` is the one that must not be retried
//! blindly, because the first try may have been carried out.

use std::io;

use protocol::batch::BatchError;
use protocol::status::Status;

use crate::connection::{ConnectionError, Refusal, RequestError, ValidOffsets};
use crate::producer::PushError;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke, or the broker fell silent.
    #[error("connection lost: {0}")]
    Io(#[source] io::Error),
    /// The broker sent what it must not send.
    #[error("the broker broke the protocol: {0}")]
    Protocol(#[source] ConnectionError),
    /// A delivered or fetched batch does not match its checksums.
    #[error("a batch that the broker sent is damaged: {0}")]
    Batch(#[from] BatchError),
    /// The broker refused the request; nothing of it was done.
    #[error("refused with {status:?}{}", in_words(.detail.as_deref(), .valid.as_ref()))]
    Refused {
        /// Why.
        status: Status,
        /// When to try again, in microseconds; 0 if the broker gave no hint.
        retry_after_us: u64,
        /// In words, if the broker gave any.
        detail: Option<String>,
        /// With `OffsetOutOfRange`: what would have been in range.
        valid: Option<ValidOffsets>,
    },
    /// The broker closed the connection and said why.
    #[error("the broker closed the connection with {status:?}{}", in_words(.message.as_deref(), None))]
    GoAway {
        /// Why.
        status: Status,
        /// In words, if the broker gave any.
        message: Option<String>,
    },
    /// No answer, or no room, within the time that the caller gave.
    #[error("nothing came in time")]
    TimedOut,
    /// The request was sent and never answered: it was carried out or not.
    #[error("the connection ended before the answer: the request was carried out or not")]
    Unknown,
    /// The request could not be made.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The record was not taken.
    #[error("{0}")]
    Push(#[from] PushError),
}

impl ClientError {
    /// Whether nothing was done and the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Io(_) | Self::GoAway { .. } | Self::TimedOut => true,
            Self::Refused { status, .. } => status.is_retryable(),
            Self::Request(error) => matches!(
                error,
                RequestError::NotReady
                    | RequestError::Closing
                    | RequestError::WindowFull
                    | RequestError::TooMany
            ),
            Self::Push(error) => matches!(error, PushError::Full | PushError::ResultsWaiting),
            Self::Protocol(_) | Self::Batch(_) | Self::Unknown => false,
        }
    }

    /// Whether a request that was sent has no answer after it, and will get none.
    pub(super) fn leaves_open(&self) -> bool {
        matches!(self, Self::Io(_) | Self::Protocol(_) | Self::GoAway { .. } | Self::TimedOut)
    }
}

impl From<ConnectionError> for ClientError {
    fn from(error: ConnectionError) -> Self {
        if error.is_lie() {
            Self::Protocol(error)
        } else {
            Self::Io(io::Error::new(io::ErrorKind::TimedOut, error))
        }
    }
}

impl From<Refusal> for ClientError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused {
            status: refusal.status,
            retry_after_us: refusal.retry_after_us,
            detail: refusal.detail,
            valid: refusal.valid,
        }
    }
}

/// What follows the status: the broker's words, and the offsets that would have been in range.
fn in_words(detail: Option<&str>, valid: Option<&ValidOffsets>) -> String {
    let detail = detail.map(|text| format!(": {text}")).unwrap_or_default();
    let valid = valid.map(|valid| format!(" (valid offsets: {} to {})", valid.first, valid.last));
    detail + &valid.unwrap_or_default()
}
