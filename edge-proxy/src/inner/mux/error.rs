//! Why a stream or a session ends.

use std::sync::Arc;

/// Why one side gives up a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ResetCode {
    /// Nobody wants it any more.
    Cancelled = 0,
    /// It was not looked at: safe to repeat whatever it is.
    Refused = 1,
    /// What it needed failed.
    Failed = 2,
    /// The peer broke a rule of what is spoken inside the stream.
    Protocol = 3,
    /// The answer is complete, and what is still to come is not wanted.
    Enough = 4,
}

impl ResetCode {
    /// A code of a later version is a failure.
    pub(super) fn from_wire(byte: u8) -> Self {
        match byte {
            0 => Self::Cancelled,
            1 => Self::Refused,
            3 => Self::Protocol,
            4 => Self::Enough,
            _ => Self::Failed,
        }
    }

    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Protocol => "protocol",
            Self::Enough => "enough",
        }
    }
}

/// Why a stream goes no further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer has not looked at it: safe to repeat whatever it is.
    #[error("not processed: {0}")]
    NotProcessed(Arc<str>),
    /// The peer gave it up.
    #[error("reset by the peer: {} {reason}", .code.as_str())]
    Reset {
        /// Its code; never [`ResetCode::Refused`].
        code: ResetCode,
        /// For people, maybe empty.
        reason: Arc<str>,
    },
    /// The whole session is gone; the peer may have processed it.
    #[error("session lost: {0}")]
    Lost(Arc<str>),
    /// This side has already ended it.
    #[error("the stream was already ended here")]
    Ended,
}

impl StreamError {
    /// Whether it is safe to repeat whatever it was.
    pub fn is_not_processed(&self) -> bool {
        matches!(self, Self::NotProcessed(_))
    }

    /// Whether the whole session broke, not one stream of it.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

/// Why no stream was opened. Nothing was sent: safe to try elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The session takes nothing new, or has ended.
    #[error("the session takes no new streams")]
    Retired,
    /// As many streams are open as the peer allows.
    #[error("the session has no room for another stream")]
    Full,
    /// What was sent before waits to be written; the peer does not read.
    #[error("the peer does not read")]
    Busy,
    /// The head is longer than [`super::MAX_HEAD`].
    #[error("a head of more than {} bytes", super::MAX_HEAD)]
    TooLong,
}
