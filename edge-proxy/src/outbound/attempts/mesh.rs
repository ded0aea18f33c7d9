//! One attempt at an endpoint of the mesh, through its proxy.

use std::{sync::Arc, task::Context, time::Duration};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;
use mesh_core::{
    Endpoint, Reason,
    message::{codec, hop},
};
use tokio::time::Instant;

use super::{
    super::{
        answer::AnswerBody,
        dispatch::Dispatch,
        loads::Attempt,
        pool::{self, Place, Plan},
        probation,
    },
    Carried, Sent,
    failed::Failed,
};
use crate::{
    headers,
    inner::{
        Blame,
        request::{RecvBody, exchange},
    },
    record::Record,
    worker::Worker,
};

/// What of a refusal's text is passed on.
const MAX_REFUSAL_TEXT: usize = 4096;
/// How long a refusal's text may take after its head.
const REFUSAL_TEXT_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends once. The body comes back where it may be sent again.
pub(super) async fn attempt(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    carried: &mut Carried<'_>,
    load: &mut Attempt,
    record: &mut Record,
    until: Option<Instant>,
) -> Result<Sent, Failed> {
    let place = place(worker, dispatch, endpoint, load).await?;
    record.goes_by(&place);
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
    place.carries(&worker.shared, &record.entry);
    let switched = head.status == StatusCode::SWITCHING_PROTOCOLS;
    match (upload.body().is_offer(), switched) {
        // Declined: the request is what it would have been without the offer.
        (true, false) => upload.finish(),
        (false, true) => return Err(Failed::unasked(endpoint)),
        (true, true) | (false, false) => {}
    }
    hop::remove(&mut head.fields, hop::Upgrade::in_answer(head.status));
    let body = AnswerBody::Mesh { body, upload: Some(upload) };
    Ok(Sent { body, place: Some(place), connection: None })
}

/// A place on a session; whoever has to wait for one is counted.
async fn place(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    load: &mut Attempt,
) -> Result<Place, Failed> {
    let placed = match pool::plan(worker, &dispatch.snapshot, endpoint) {
        Ok(Plan::Use(place)) => return Ok(place),
        Ok(opening @ Plan::Wait(_)) => {
            let waiting = dispatch.backend().map(|service| worker.protections.wait(service));
            let _waiting = waiting.transpose().map_err(|refusal| {
                load.not_opened(Blame::Nobody);
                Failed::for_good(refusal)
            })?;
            opening.carried_out().await
        }
        Err(failure) => Err(failure),
    };
    placed.map_err(|failure| {
        let blame = failure.blames(&dispatch.snapshot.site, endpoint);
        load.not_opened(blame);
        if failure.is_worth_probation(blame) {
            probation::start(worker, endpoint);
        }
        Failed::to_open(endpoint, &failure, blame)
    })
}

pub fn reason_of(code: &[u8], status: StatusCode) -> Reason {
    let known = Reason::ALL.iter().find(|reason| reason.code().as_bytes() == code);
    known.copied().unwrap_or(match status {
        StatusCode::FORBIDDEN => Reason::DeniedNoRule,
        _ => Reason::UpstreamReset,
    })
}

/// What the far proxy says to people.
async fn refusal_text(mut body: RecvBody) -> String {
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
