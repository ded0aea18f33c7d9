//! Why an attempt gave no answer, and what may be tried after it.

use http::StatusCode;
use mesh_core::{
    Endpoint, Reason,
    message::{BadHead, codec},
};

use super::super::loads::Attempt;
use crate::{
    apps,
    http1::{BadMessage, ConnError},
    inner::{Blame, OpenFailure, request::ExchangeError},
    refusal::Refusal,
    transition::origin,
};

/// Why an attempt gave no answer, and what may be tried after it.
pub(super) struct Failed {
    pub(super) refusal: Refusal,
    pub(super) after: After,
}

/// What may be tried after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Nothing was processed: another endpoint, whatever the request is.
    Anything,
    /// The same, and nobody was there.
    Nobody,
    /// The same, and who was there a moment ago may be back in another.
    Gone,
    /// The session had ended before the request was processed: the same
    /// endpoint may do, in a new session.
    Again,
    /// The same, and nothing was sent: it costs nobody anything.
    Retired,
    /// It may have been processed: only what is idempotent or declared
    /// repeatable, within the budget.
    IfSafe,
    /// Nothing.
    Nothing,
}

impl Failed {
    pub(super) fn to_open(endpoint: &Endpoint, failure: &OpenFailure, blame: Blame) -> Self {
        let text = format!("{}: {failure}", describe(endpoint));
        let after = match blame {
            Blame::Nobody => After::Anything,
            Blame::Endpoint | Blame::Path if failure.is_absence() => After::Gone,
            Blame::Endpoint | Blame::Path => After::Nobody,
        };
        Self { refusal: Refusal::new(failure.reason(), text), after }
    }

    pub(super) fn to_answer(
        endpoint: &Endpoint,
        error: &ExchangeError,
        load: &mut Attempt,
    ) -> Self {
        let (reason, after) = match error {
            ExchangeError::NotProcessed(_) => (Reason::UpstreamReset, After::Again),
            ExchangeError::Retired => (Reason::UpstreamReset, After::Retired),
            ExchangeError::Broken { .. } => {
                if error.is_connection_lost() {
                    load.unreachable();
                } else {
                    load.blame();
                }
                (Reason::UpstreamReset, After::IfSafe)
            }
            ExchangeError::TimedOut => {
                load.blame();
                (Reason::Timeout, After::IfSafe)
            }
            ExchangeError::BodyFailed => (Reason::BadRequest, After::Nothing),
        };
        let text = format!("{}: {error}", describe(endpoint));
        Self { refusal: Refusal::new(reason, text), after }
    }

    /// The far proxy sent what is no answer.
    pub(super) fn broken(endpoint: &Endpoint, error: &codec::BadCode) -> Self {
        let text = format!("{}: {error}", describe(endpoint));
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }

    /// An answer that the policy repeats.
    pub(super) fn answered(endpoint: &Endpoint, status: StatusCode) -> Self {
        let text = format!("{}: answered {}", describe(endpoint), status.as_u16());
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::IfSafe }
    }

    /// The far proxy refused.
    pub(super) fn there(
        endpoint: &Endpoint,
        reason: Reason,
        text: &str,
        load: &mut Attempt,
    ) -> Self {
        let after = match reason {
            // It was not given to any application: there is none, or none that
            // takes more.
            Reason::Draining | Reason::AppUnreachable => After::Nobody,
            Reason::Overloaded => After::Anything,
            // What it was asked for is not there (yet, or any more).
            Reason::NoEndpoint => After::Anything,
            Reason::UpstreamReset => After::IfSafe,
            _ => After::Nothing,
        };
        match after {
            After::Nothing => {}
            After::Nobody | After::Gone => load.unreachable(),
            After::Anything | After::Again | After::Retired | After::IfSafe => load.blame(),
        }
        let text = if text.is_empty() {
            format!("{}: its proxy refused", describe(endpoint))
        } else {
            text.to_owned()
        };
        Self { refusal: Refusal::new(reason, text), after }
    }

    /// The far proxy switched to a protocol that nobody had offered.
    pub(super) fn unasked(endpoint: &Endpoint) -> Self {
        let text = format!("{}: switched protocols unasked", describe(endpoint));
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }

    /// An application without a proxy has not answered.
    pub(super) fn plain(endpoint: &Endpoint, error: &apps::ExchangeError) -> Self {
        use apps::ExchangeError as Error;
        let (reason, after) = match error {
            Error::NotConnected(error) => (origin::reason(error), After::Nobody),
            Error::NotProcessed(_) => (Reason::UpstreamReset, After::Again),
            // An answer, if no HTTP: another one would be no better.
            Error::Broken(ConnError::Bad(bad)) if *bad != BadMessage::Truncated => {
                (Reason::UpstreamReset, After::Nothing)
            }
            Error::Broken(_) => (Reason::UpstreamReset, After::IfSafe),
            Error::BodyFailed => (Reason::BadRequest, After::Nothing),
            Error::Gone => (Reason::UpstreamReset, After::Nothing),
        };
        let text =
            format!("{}: the application at {}: {error}", describe(endpoint), endpoint.target);
        Self { refusal: Refusal::new(reason, text), after }
    }

    /// Nothing (more) may be tried: there is nobody left, or the circuit is open.
    pub(super) fn for_good(refusal: Refusal) -> Self {
        Self { refusal, after: After::Nothing }
    }

    /// The request cannot be said in HTTP/2.
    pub(super) fn bad_request(endpoint: &Endpoint, error: &BadHead) -> Self {
        let text = format!("{}: {error}", describe(endpoint));
        Self { refusal: Refusal::new(Reason::BadRequest, text), after: After::Nothing }
    }

    /// No answer in the time that one attempt may take.
    pub(super) fn late(endpoint: &Endpoint) -> Self {
        let text = format!("{}: no answer in time", describe(endpoint));
        Self { refusal: Refusal::new(Reason::Timeout, text), after: After::IfSafe }
    }

    pub(super) fn without_body() -> Self {
        let text = "the request's body is gone; this is a defect of the proxy";
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }
}

fn describe(endpoint: &Endpoint) -> String {
    format!("service {}, endpoint {} in {}", endpoint.service, endpoint.id, endpoint.site)
}
