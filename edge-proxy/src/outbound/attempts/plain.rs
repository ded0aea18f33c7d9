//! One attempt at an application that has no proxy, in plaintext. Only this
//! proxy's own static snapshot names such endpoints.

use std::{sync::Arc, task::Poll};

use http::StatusCode;
use mesh_core::{Endpoint, message::hop};
use tokio::time::{Instant, timeout_at};

use super::{
    super::{
        answer::{AnswerBody, Http2},
        body::ReplayBody,
        loads::Attempt,
        pool::Place,
        probation,
    },
    Carried,
    failed::Failed,
};
use crate::{
    apps::{Exchange, ExchangeError, is_final},
    http2::{self, RecvBody},
    inner::mux::Spoken,
    record::Record,
    worker::Worker,
};

/// Sends once. The body comes back where it may be sent again.
pub(super) async fn attempt(
    worker: &Arc<Worker>,
    endpoint: &Arc<Endpoint>,
    carried: &mut Carried<'_>,
    load: &mut Attempt,
    record: &mut Record,
    until: Option<Instant>,
) -> Result<(AnswerBody, Option<Place>), Failed> {
    record.entry.path_kind = "direct";
    let Some(body) = carried.body.take() else { return Err(Failed::without_body()) };
    carried.tell_deadline();
    let sent = match carried.speaks {
        Spoken::Http2 => over_http2(worker, endpoint, carried, body, until).await,
        Spoken::Http1 | Spoken::Tcp => over_http1(worker, endpoint, carried, body, until).await,
    };
    match sent {
        Ok(body) => {
            load.answered();
            Ok((body, None))
        }
        Err((failed, error)) => {
            match error {
                Some(ExchangeError::NotConnected(_)) => {
                    load.unreachable();
                    probation::start(worker, endpoint);
                }
                Some(ExchangeError::Broken(_)) | None => load.blame(),
                Some(_) => {}
            }
            Err(failed)
        }
    }
}

/// Why there is no answer; without an error there was none in time.
type Unsent = (Failed, Option<ExchangeError>);

async fn over_http1(
    worker: &Worker,
    endpoint: &Endpoint,
    carried: &mut Carried<'_>,
    body: ReplayBody,
    until: Option<Instant>,
) -> Result<AnswerBody, Unsent> {
    let (scratch, target) = (&mut *carried.scratch, endpoint.target);
    let offer = body.is_offer();
    let mut exchange = match offer {
        true => Exchange::offer(&worker.apps, target, &scratch.head, body),
        false => Exchange::new(&worker.apps, target, &scratch.head, body),
    };
    let answer = &mut scratch.answer;
    let answered = loop {
        let head = exchange.head(answer, |_, _| Poll::Pending);
        let head = match until {
            None => head.await.map_err(Some),
            Some(until) => {
                timeout_at(until, head).await.map_or(Err(None), |head| head.map_err(Some))
            }
        };
        match head {
            Ok(_) if !is_final(answer.status) => carried.early.say(answer),
            done => break done,
        }
    };
    if let Err(error) = answered {
        carried.body = Some(exchange.into_body());
        let failed = match &error {
            Some(error) => Failed::plain(endpoint, error),
            None => Failed::late(endpoint),
        };
        return Err((failed, error));
    }
    hop::remove(&mut answer.fields, hop::Upgrade::in_answer(answer.status));
    hop::remove_mesh(&mut answer.fields);
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        let tunnel = exchange.into_tunnel().map(|(stream, _)| AnswerBody::Switched(stream));
        return tunnel.ok_or_else(|| (Failed::without_body(), None));
    }
    let body = exchange.into_answer().map(|answer| AnswerBody::App(Some(Box::new(answer))));
    body.ok_or_else(|| (Failed::without_body(), None))
}

async fn over_http2(
    worker: &Worker,
    endpoint: &Endpoint,
    carried: &mut Carried<'_>,
    body: ReplayBody,
    until: Option<Instant>,
) -> Result<AnswerBody, Unsent> {
    let client = match worker.apps.http2(endpoint.target).await {
        Ok(client) => client,
        Err(error) => {
            carried.body = Some(body);
            let error = ExchangeError::NotConnected(error);
            return Err((Failed::plain(endpoint, &error), Some(error)));
        }
    };
    let mut request = match carried.scratch.head.to_request() {
        Ok(request) => request,
        Err(error) => {
            carried.body = Some(body);
            return Err((Failed::bad_request(endpoint, &error), Some(ExchangeError::Gone)));
        }
    };
    // `:authority` says the same, and says it first.
    request.headers_mut().remove(http::header::HOST);
    let lease = client.lease();
    match client.exchange(request, body, until, |_, _| Poll::Pending).await {
        Ok((response, upload)) => {
            let (head, body) = response.into_parts();
            let (head, answer) =
                (http::Response::from_parts(head, ()), &mut carried.scratch.answer);
            answer.read_parts(&head.into_parts().0);
            hop::remove(&mut answer.fields, hop::Upgrade::Drop);
            hop::remove_mesh(&mut answer.fields);
            let body = RecvBody::new(body);
            Ok(AnswerBody::Http2(Box::new(Http2 { body, upload, _lease: lease })))
        }
        Err((error, body)) => {
            carried.body = Some(body);
            Err(unsent(endpoint, error))
        }
    }
}

fn unsent(endpoint: &Endpoint, error: http2::ExchangeError) -> Unsent {
    use http2::ExchangeError as Error;
    let told = |error| std::io::Error::other(error);
    let error = match error {
        Error::NotProcessed(error) => ExchangeError::NotProcessed(told(error).into()),
        Error::Broken(error) => ExchangeError::Broken(told(error).into()),
        Error::TimedOut => return (Failed::late(endpoint), None),
        Error::BodyFailed => ExchangeError::BodyFailed,
        Error::Gone => ExchangeError::Gone,
    };
    (Failed::plain(endpoint, &error), Some(error))
}
