//! Sending a request, and sending it again where that is safe.

use std::{sync::Arc, task::Context};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use mesh_core::{
    Endpoint, Reason,
    message::{ResponseHead, codec, hop},
    rule::{RetryPolicy, TrafficPolicy},
};
use mesh_runtime::clock;
use tokio::time::Instant;

use super::{
    answer::{Answer, AnswerBody, Used},
    body::ReplayBody,
    deadline,
    dispatch::Dispatch,
    front::http1::Conn,
    loads::Attempt,
    pool::{self, Place},
    probation,
    protect::InFlight,
};
use crate::{
    headers,
    inner::{
        Blame, OpenFailure,
        mux::Spoken,
        request::{ExchangeError, RecvBody, Upload, exchange},
    },
    record::Record,
    refusal::Refusal,
    scratch::Scratch,
    worker::Worker,
};

/// What of a refusal's text is passed on.
const MAX_REFUSAL_TEXT: usize = 4096;
/// How long a refusal's text may take after its head.
const REFUSAL_TEXT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// One request with what it takes to send it more than once.
#[derive(Debug)]
pub struct Carried<'a> {
    /// The request as the application shall see it; the answer is put here.
    pub scratch: &'a mut Scratch,
    /// What the application is spoken to in.
    pub speaks: Spoken,
    /// `None` only while an attempt holds it.
    pub body: Option<ReplayBody>,
    /// When the whole request must have been answered.
    pub deadline: Option<Instant>,
    /// When an attempt is repeated beyond what is always safe.
    pub retry: Option<&'a RetryPolicy>,
    /// How long one attempt may take.
    pub attempt_timeout: Option<std::time::Duration>,
    /// What the service allows its callers.
    pub traffic: &'a TrafficPolicy,
    /// Who is told of heads before the head.
    pub early: Early<'a>,
}

/// Who is told of heads before the head (1xx).
#[derive(Debug, Clone, Copy)]
pub enum Early<'a> {
    /// Nobody.
    Nobody,
    /// The client on this connection.
    Client(&'a Conn),
}

impl Early<'_> {
    /// What is no head is left out: it says nothing that matters.
    fn tell(self, coded: &[u8], cx: &mut Context<'_>) {
        let Self::Client(conn) = self else { return };
        let mut head = ResponseHead::new();
        if codec::get_response(coded, &mut head).is_ok() && head.status.is_informational() {
            hop::remove(&mut head.fields, hop::Upgrade::Drop);
            conn.lock().tell(&head, cx);
        }
    }
}

/// Why an attempt gave no answer, and what may be tried after it.
struct Failed {
    refusal: Refusal,
    after: After,
}

/// What may be tried after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Nothing was processed: another endpoint, whatever the request is.
    Anything,
    /// The same, and nobody was there.
    Nobody,
    /// The session had ended before the request was processed: the same
    /// endpoint may do, in a new session.
    Again,
    /// It may have been processed: only what is idempotent or declared
    /// repeatable, within the budget.
    IfSafe,
    /// Nothing.
    Nothing,
}

/// Tries until there is an answer, or nothing more may be tried.
pub async fn attempts(
    worker: &Arc<Worker>,
    dispatch: &mut Dispatch,
    carried: &mut Carried<'_>,
    in_flight: &mut InFlight,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    let (mut again, mut repeated) = (false, 0);
    let mut last: Option<Refusal> = None;
    loop {
        let (endpoint, mut load) = match dispatch.next(again) {
            Ok(next) => next,
            // What failed before says more than "nothing is left".
            Err(refusal) => return Err(last.unwrap_or(refusal)),
        };
        tell(record, dispatch, &endpoint);
        let sent = attempt(worker, dispatch, &endpoint, carried, &mut load, record).await;
        let failed = match sent {
            Ok((body, upload, place)) => {
                let answer = |body, upload, load| {
                    let used = Used { attempt: load, place, in_flight: None };
                    Ok(Answer { body: AnswerBody::Mesh(body), upload, used })
                };
                // A body that is too long to be sent again lets the answer stand.
                if !carried.wants_another()
                    || !upload.body().is_replayable()
                    || !carried.may_repeat(repeated, in_flight)
                {
                    return answer(body, upload, load);
                }
                let mut replay = upload.into_body();
                replay.rewind();
                carried.body = Some(replay);
                load.blame();
                Failed::answered(&endpoint, carried.scratch.answer.status)
            }
            Err(failed) => {
                let rewound = carried.body.as_mut().is_some_and(ReplayBody::rewind);
                let allowed = rewound
                    && match failed.after {
                        After::Anything | After::Again => dispatch.may_go_on(false),
                        After::Nobody => dispatch.may_go_on(true),
                        After::IfSafe => carried.may_repeat(repeated, in_flight),
                        After::Nothing => false,
                    };
                if !allowed {
                    return Err(failed.refusal);
                }
                failed
            }
        };
        drop(load);
        again = failed.after == After::Again || failed.after == After::IfSafe;
        worker.shared.metrics.retried(failed.refusal.reason);
        if failed.after == After::IfSafe {
            carried.pause(repeated).await;
            repeated += 1;
        }
        last = Some(failed.refusal);
    }
}

fn tell(record: &mut Record, dispatch: &Dispatch, endpoint: &Endpoint) {
    record.entry.endpoint = Some(endpoint.id.clone());
    record.entry.site = Some(endpoint.site.clone());
    record.entry.attempts = u32::try_from(dispatch.attempts()).unwrap_or(u32::MAX);
}

type Sent = (RecvBody, Upload<ReplayBody>, Place);

/// Sends once. The body comes back where it may be sent again.
async fn attempt(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    carried: &mut Carried<'_>,
    load: &mut Attempt,
    record: &mut Record,
) -> Result<Sent, Failed> {
    let until = carried.attempt_timeout.map(|timeout| clock::monotonic() + timeout);
    let place = match pool::place(worker, &dispatch.snapshot, endpoint).await {
        Ok(place) => place,
        Err(failure) => {
            let blame = failure.blames(&dispatch.snapshot.site, endpoint);
            load.not_opened(blame);
            if blame == Blame::Endpoint {
                probation::start(worker, endpoint);
            }
            return Err(Failed::to_open(endpoint, &failure, blame));
        }
    };
    record.entry.path_kind = place.path_kind;
    record.entry.peer = Some(place.peer.id.clone());
    record.entry.connection = Some(place.connection.clone());
    let Some(body) = carried.body.take() else { return Err(Failed::without_body()) };
    carried.encode();
    let (target, early) = (place.target(carried.speaks), carried.early);
    let (coded, tell) =
        (&carried.scratch.coded, |head: &[u8], cx: &mut Context<'_>| early.tell(head, cx));
    let sent = exchange(&place.mux, target, coded, body, until, tell).await;
    let (coded, body, mut upload) = match sent {
        Ok(answered) => answered,
        Err((error, body)) => {
            carried.body = Some(body);
            if error.is_connection_lost() {
                probation::start(worker, endpoint);
            }
            return Err(Failed::to_answer(endpoint, &error, load));
        }
    };
    let head = &mut carried.scratch.answer;
    if let Err(error) = codec::get_response(&coded, head) {
        carried.body = Some(upload.into_body());
        load.blame();
        return Err(Failed::broken(endpoint, &error));
    }
    if let Some(code) = head.fields.get(headers::ERROR.as_str()) {
        let reason = reason_of(code, head.status);
        carried.body = Some(upload.into_body());
        return Err(Failed::there(endpoint, reason, &refusal_text(body).await, load));
    }
    load.answered();
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    match (upload.body().is_offer(), switched) {
        // Declined: the request is what it would have been without the offer.
        (true, false) => upload.finish(),
        (false, true) => return Err(Failed::unasked(endpoint)),
        (true, true) | (false, false) => {}
    }
    let upgrade = if switched { hop::Upgrade::Keep } else { hop::Upgrade::Drop };
    hop::remove(&mut head.fields, upgrade);
    Ok((body, upload, place))
}

/// Answers may begin before requests have ended: then the rest of the request
/// needs a task, because nobody may read the answer as fast as we send.
pub fn drive_on(worker: &Worker, mut upload: Upload<ReplayBody>) {
    if !upload.is_done() {
        worker.shared.drain.spawn(async move {
            upload.run().await;
        });
    }
}

pub fn reason_of(code: &[u8], status: StatusCode) -> Reason {
    let known = Reason::ALL.iter().find(|reason| reason.code().as_bytes() == code);
    known.copied().unwrap_or(match status {
        StatusCode::FORBIDDEN => Reason::DeniedNoRule,
        _ => Reason::UpstreamReset,
    })
}

/// What the far proxy says to people.
pub async fn refusal_text(mut body: RecvBody) -> String {
    let read = async {
        let mut text = BytesMut::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            if text.len() >= MAX_REFUSAL_TEXT {
                text.truncate(MAX_REFUSAL_TEXT);
                break;
            }
        }
        text
    };
    let text = tokio::time::timeout(REFUSAL_TEXT_TIMEOUT, read).await.unwrap_or_default();
    String::from_utf8_lossy(&text).trim_end().to_owned()
}

impl Carried<'_> {
    /// As it travels to the far proxy, with what is left of its time.
    fn encode(&mut self) {
        let Scratch { head, coded, .. } = &mut *self.scratch;
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(clock::monotonic());
            deadline::write(&mut head.fields, left);
        }
        coded.clear();
        codec::put_request(head, coded);
    }

    /// Whether the answer is one that the policy repeats.
    fn wants_another(&self) -> bool {
        let Some(retry) = &self.retry else { return false };
        let head = &self.scratch.answer;
        let grpc = || {
            let code = std::str::from_utf8(head.fields.get("grpc-status")?).ok()?.parse().ok()?;
            Some(retry.grpc_codes.contains(&code))
        };
        retry.repeats(head.status) || grpc().unwrap_or(false)
    }

    /// Whether what may have been processed may be sent once more.
    fn may_repeat(&self, repeated: u32, in_flight: &mut InFlight) -> bool {
        let (times, any_method) = match &self.retry {
            Some(retry) => (retry.attempts, retry.any_method),
            None => (1, false),
        };
        repeated < times
            && (any_method || is_idempotent(&self.scratch.head.method))
            && in_flight.repeat(self.traffic)
    }

    /// Waits before repetition `n`, counted from 0, as the policy says.
    async fn pause(&self, n: u32) {
        if let Some(retry) = &self.retry {
            tokio::time::sleep(retry.wait(n, rand::random())).await;
        }
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE]
        .contains(method)
}

impl Failed {
    fn to_open(endpoint: &Endpoint, failure: &OpenFailure, blame: Blame) -> Self {
        let text = format!("{}: {failure}", describe(endpoint));
        let after = if blame == Blame::Nobody { After::Anything } else { After::Nobody };
        Self { refusal: Refusal::new(failure.reason(), text), after }
    }

    fn to_answer(endpoint: &Endpoint, error: &ExchangeError, load: &mut Attempt) -> Self {
        let (reason, after) = match error {
            ExchangeError::NotProcessed(_) => (Reason::UpstreamReset, After::Again),
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
    fn broken(endpoint: &Endpoint, error: &codec::BadCode) -> Self {
        let text = format!("{}: {error}", describe(endpoint));
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }

    /// An answer that the policy repeats.
    fn answered(endpoint: &Endpoint, status: StatusCode) -> Self {
        let text = format!("{}: answered {}", describe(endpoint), status.as_u16());
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::IfSafe }
    }

    /// The far proxy refused.
    fn there(endpoint: &Endpoint, reason: Reason, text: &str, load: &mut Attempt) -> Self {
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
            After::Nobody => load.unreachable(),
            After::Anything | After::Again | After::IfSafe => load.blame(),
        }
        let text = if text.is_empty() {
            format!("{}: its proxy refused", describe(endpoint))
        } else {
            text.to_owned()
        };
        Self { refusal: Refusal::new(reason, text), after }
    }

    /// The far proxy switched to a protocol that nobody had offered.
    fn unasked(endpoint: &Endpoint) -> Self {
        let text = format!("{}: switched protocols unasked", describe(endpoint));
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }

    fn without_body() -> Self {
        let text = "the request's body is gone; this is a defect of the proxy";
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }
}

fn describe(endpoint: &Endpoint) -> String {
    format!("service {}, endpoint {} in {}", endpoint.service, endpoint.id, endpoint.site)
}
