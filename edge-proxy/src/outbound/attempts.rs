//! Sending a request, and sending it again where that is safe.
//!
//! - [`mesh`]: once, to an endpoint's proxy.
//! - [`plain`]: once, to an application that has none.
//! - [`failed`]: why there was no answer.

mod failed;
mod mesh;
mod plain;

pub use mesh::reason_of;

use std::{ops::RangeInclusive, sync::Arc, task::Context};

use mesh_core::{
    message::{ResponseHead, codec, hop},
    rule::{self, RetryPolicy, TrafficPolicy},
};
use mesh_runtime::clock;
use tokio::time::Instant;

use super::{
    answer::{Answer, AnswerBody, Used, grpc_status},
    body::ReplayBody,
    deadline,
    dispatch::Dispatch,
    front::http1::Conn,
    hold,
    pool::Place,
    protect::{Connection, InFlight},
};
use crate::{
    apps::is_idempotent, inner::mux::Spoken, record::Record, refusal::Refusal, scratch::Scratch,
    worker::Worker,
};
use failed::{After, Failed};

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
    /// Statuses that count as failures; empty is 5xx.
    pub failures: &'a [RangeInclusive<u16>],
    /// What the service allows its callers.
    pub traffic: &'a TrafficPolicy,
    /// Who is told of heads before the head.
    pub early: Early<'a>,
}

/// An answer whose head was taken, and what it occupies.
struct Sent {
    body: AnswerBody,
    place: Option<Place>,
    connection: Connection,
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

    /// The same of a head that has been read.
    fn say(self, head: &mut ResponseHead) {
        let Self::Client(conn) = self else { return };
        hop::remove(&mut head.fields, hop::Upgrade::Drop);
        // What is not written now goes with the answer.
        conn.lock().tell(head, &mut Context::from_waker(std::task::Waker::noop()));
    }
}

/// Tries until there is an answer, or nothing more may be tried; where all have
/// just gone, once more when one of them is back.
pub async fn attempts(
    worker: &Arc<Worker>,
    dispatch: &mut Dispatch,
    carried: &mut Carried<'_>,
    in_flight: &mut InFlight,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    loop {
        let Failed { refusal, after } =
            match round(worker, dispatch, carried, in_flight, record).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
        if after != After::Gone {
            return Err(refusal);
        }
        match Box::pin(hold::wait(worker, dispatch, carried.deadline)).await {
            Ok(()) => worker.shared.metrics.retried(refusal.reason),
            Err(too_many) => return Err(too_many.unwrap_or(refusal)),
        }
    }
}

/// Tries with those who are there.
async fn round(
    worker: &Arc<Worker>,
    dispatch: &mut Dispatch,
    carried: &mut Carried<'_>,
    in_flight: &mut InFlight,
    record: &mut Record,
) -> Result<Answer, Failed> {
    let (mut again, mut repeated) = (false, 0);
    let mut last: Option<Failed> = None;
    loop {
        let (endpoint, mut load) = match dispatch.next(again) {
            Ok(next) => next,
            // What failed before says more than "nothing is left".
            Err(refusal) => return Err(last.unwrap_or_else(|| Failed::for_good(refusal))),
        };
        record.tries(&endpoint, dispatch.attempts());
        let until = carried.attempt_timeout.map(|timeout| clock::monotonic() + timeout);
        let sent = match endpoint.identity {
            Some(_) => {
                mesh::attempt(worker, dispatch, &endpoint, carried, &mut load, record, until).await
            }
            None => {
                plain::attempt(worker, dispatch, &endpoint, carried, &mut load, record, until).await
            }
        };
        let failed = match sent {
            Ok(Sent { mut body, place, connection }) => {
                let failure = carried.is_failure();
                if failure {
                    load.blame();
                }
                // A body that is too long to be sent again lets the answer stand.
                if !carried.wants_another()
                    || !body.is_replayable()
                    || !carried.may_repeat(true, repeated, in_flight)
                {
                    record.classified(failure);
                    let used =
                        Used { attempt: load, place, connection, in_flight: None, running: None };
                    return Ok(Answer { body, used });
                }
                carried.body = body.into_request();
                Failed::answered(&endpoint, carried.scratch.answer.status)
            }
            Err(failed) => {
                let rewound = carried.body.as_mut().is_some_and(ReplayBody::rewind);
                let allowed = rewound
                    && match failed.after {
                        After::Anything | After::Again => dispatch.may_go_on(false),
                        After::Nobody | After::Gone | After::Retired => dispatch.may_go_on(true),
                        After::IfSafe => carried.may_repeat(false, repeated, in_flight),
                        After::Nothing => false,
                    };
                if !rewound {
                    return Err(Failed::for_good(failed.refusal));
                }
                if !allowed {
                    return Err(failed);
                }
                failed
            }
        };
        drop(load);
        again = matches!(failed.after, After::Again | After::Retired | After::IfSafe);
        worker.shared.metrics.retried(failed.refusal.reason);
        if failed.after == After::IfSafe {
            carried.pause(repeated).await;
            repeated += 1;
        }
        last = Some(failed);
    }
}

impl Carried<'_> {
    /// As it travels to the far proxy, with what is left of its time.
    fn encode(&mut self) {
        self.tell_deadline();
        let Scratch { head, coded, .. } = &mut *self.scratch;
        coded.clear();
        codec::put_request(head, coded);
    }

    /// Says in the request how much time is left.
    fn tell_deadline(&mut self) {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(clock::monotonic());
            deadline::write(&mut self.scratch.head.fields, left);
        }
    }

    /// Whether the answer is one that the policy repeats.
    fn wants_another(&self) -> bool {
        let Some(retry) = &self.retry else { return false };
        let head = &self.scratch.answer;
        let by_code = |code| retry.grpc_codes.contains(&code);
        retry.repeats(head.status) || grpc_status(&head.fields).is_some_and(by_code)
    }

    /// Whether the answer's head says that the service has failed.
    fn is_failure(&self) -> bool {
        let ResponseHead { status, fields, .. } = &self.scratch.answer;
        rule::is_failure(self.failures, *status, grpc_status(fields))
    }

    /// Whether what may have been processed may be sent once more.
    fn may_repeat(&self, answered: bool, repeated: u32, in_flight: &mut InFlight) -> bool {
        let (times, any_method) = match &self.retry {
            Some(retry) if retry.answers_only && !answered => return false,
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
