//! One request: its rule, what the rule does with it, and its answer.

use std::sync::{Arc, atomic::AtomicU64};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use mesh_core::{
    Protocol, Reason,
    message::{Known, RequestHead, ResponseHead, hop},
    route::Destination,
    rule::{Fault, extension::Changing, rewrite::BadRewrite},
};
use mesh_runtime::clock;
use tokio::time::Instant;

use super::{
    answer::Answer,
    attempts::{Carried, Early, attempts},
    body::{ClientBody, ReplayBody},
    deadline,
    decision::{Chosen, Decision},
    dispatch::Dispatch,
    dtab, mirror, reply,
};
use crate::{
    config, inner::mux::Spoken, record::Record, refusal::Refusal, scratch::Scratch, worker::Worker,
};

/// How a client speaks.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Over HTTP/2.
    pub http2: bool,
    /// It offers to switch to the protocol that its head names.
    pub upgrade: bool,
    /// Who is told of heads before the head.
    pub early: Early<'a>,
    /// Of its listener, instead of the proxy's own.
    pub forwarded: Option<config::Forwarded>,
}

/// What became of a request.
#[derive(Debug)]
pub enum Outcome {
    /// An application has answered; the head is in the scratch.
    Forwarded(Box<Forwarded>),
    /// The rule itself has.
    Answered(Response<Bytes>),
}

/// An application's answer on its way back.
#[derive(Debug)]
pub struct Forwarded {
    /// Its body, and what is left of the request.
    pub answer: Answer,
    /// When all of it must have come.
    pub deadline: Option<Instant>,
    /// Counts the request's body; `None` if it has none.
    pub received: Option<Arc<AtomicU64>>,
}

/// Carries the request in `scratch` to `destination`, up to the head of its
/// answer, which is put in `scratch`, too.
///
/// # Errors
///
/// Nobody has answered.
pub async fn carry(
    worker: &Arc<Worker>,
    destination: &Destination,
    scratch: &mut Scratch,
    body: ClientBody,
    client: Client<'_>,
    record: &mut Record,
) -> Result<Outcome, Refusal> {
    let address = record.entry.client;
    let decision = Decision::take(worker, destination, Some(&scratch.head), address).await?;
    record.entry.route = decision.route().map(|route| route.name.clone());
    if let Some(fault) = decision.route().and_then(|route| route.fault.as_ref()) {
        inject(fault, &scratch.head).await?;
    }
    if let Some(response) = reply::answer(&decision, &scratch.head, address)? {
        record.classified(false);
        record.entry.grpc_status = reply::grpc_status(&response);
        return Ok(Outcome::Answered(response));
    }
    let deadline = deadline_of(&decision, &scratch.head);
    let chosen = decision.choose()?;
    let mut in_flight = worker.protections.begin(&decision.service)?;
    let mut dispatch = Dispatch::to(worker, &decision, &chosen).await?;
    dispatch.stay(Some(&scratch.head), address);
    let changing = match decision.extension() {
        Some(more) => more.changing(&scratch.head, address).map_err(bad_rewrite)?,
        None => Changing::default(),
    };
    let mut body = ReplayBody::new(body, decision.service.traffic.replay_bytes);
    strip(&mut scratch.head, client.upgrade);
    if !worker.shared.config.dtab_overrides.is_empty() {
        dtab::hand_on(&mut scratch.head);
    }
    let forwarded = client.forwarded.unwrap_or(worker.shared.config.forwarded);
    forwarded.apply(&mut scratch.head, address);
    change(&mut scratch.head, &decision, &chosen, &changing)?;
    mirror::start(worker, &decision, &scratch.head, &mut body).await;
    let speaks = inner_protocol(&dispatch, client.http2, &scratch.head);
    let received = (!body.is_end_stream()).then(|| body.received());
    let route = decision.route();
    let mut carried = Carried {
        scratch,
        speaks,
        body: Some(body),
        deadline,
        retry: route.and_then(|route| route.retry.as_ref()),
        attempt_timeout: route.and_then(|route| route.backend_timeout),
        failures: route.map_or(&[], |route| &route.failures),
        traffic: &decision.service.traffic,
        early: client.early,
    };
    let sending = attempts(worker, &mut dispatch, &mut carried, &mut in_flight, record);
    let answered = match deadline {
        None => sending.await,
        Some(deadline) => tokio::time::timeout_at(deadline, sending)
            .await
            .unwrap_or_else(|_| Err(too_late(destination))),
    };
    let mut answer = answered?;
    answer.used.in_flight = Some(in_flight);
    change_answer(&mut scratch.answer, &decision, &chosen);
    if let Some(cookie) = dispatch.cookie() {
        scratch.answer.fields.push("set-cookie", cookie.as_bytes());
    }
    Ok(Outcome::Forwarded(Box::new(Forwarded { answer, deadline, received })))
}

fn too_late(destination: &Destination) -> Refusal {
    let text = format!("service {}: no answer before the request's deadline", destination.service);
    Refusal::new(Reason::Timeout, text)
}

/// Delays or refuses a request on purpose.
async fn inject(fault: &Fault, head: &RequestHead) -> Result<(), Refusal> {
    if !fault.headers.iter().all(|(name, value)| value.holds_in(head, name)) {
        return Ok(());
    }
    if let Some((delay, fraction)) = fault.delay
        && fraction.takes(rand::random())
    {
        tokio::time::sleep(delay).await;
    }
    match fault.abort {
        Some((status, fraction)) if fraction.takes(rand::random()) => {
            let refusal = Refusal::new(Reason::FaultInjected, "a fault of the rule, on purpose");
            Err(refusal.with_status(status, fault.abort_grpc_status))
        }
        _ => Ok(()),
    }
}

/// The sooner of what the rule and what the client allow.
fn deadline_of(decision: &Decision, head: &RequestHead) -> Option<Instant> {
    let rule = decision.route().and_then(|route| route.request_timeout);
    let timeouts = [rule, deadline::of_client(head)];
    timeouts.into_iter().flatten().min().map(|timeout| clock::monotonic() + timeout)
}

/// Removes what is between the client and this proxy.
pub fn strip(head: &mut RequestHead, upgrade: bool) {
    // Any other upgrade is an offer that may be ignored (RFC 9110 section 7.8).
    hop::remove(&mut head.fields, if upgrade { hop::Upgrade::Keep } else { hop::Upgrade::Drop });
    hop::remove_mesh(&mut head.fields);
    // Answered by our own front as soon as the body is asked for.
    head.fields.remove_known(Known::Expect);
}

/// Makes a client's request what the application shall see.
fn change(
    head: &mut RequestHead,
    decision: &Decision,
    chosen: &Chosen,
    changing: &Changing<'_>,
) -> Result<(), Refusal> {
    if head.authority.is_empty() {
        head.authority.push_str(chosen.service.as_str());
    }
    let mut changed = false;
    if let Some(route) = decision.route() {
        if let Some(rewrite) = &route.filters.rewrite {
            rewrite.apply(head, decision.matched());
            changed = rewrite.path.is_some();
            if changed {
                head.decoded.clear();
            }
        }
        route.filters.request.apply(&mut head.fields);
    }
    if let Some(more) = decision.extension() {
        changed |= more.retarget(&mut head.target, &head.decoded).map_err(bad_rewrite)?;
        changing.apply(&mut head.fields);
    }
    if let Some(backend) = decision.backend(chosen) {
        backend.request.apply(&mut head.fields);
    }
    if !changed && !head.sent.is_empty() {
        std::mem::swap(&mut head.target, &mut head.sent);
    }
    head.sent.clear();
    head.decoded.clear();
    Ok(())
}

/// What a rule makes of a request is none.
pub fn bad_rewrite(error: BadRewrite) -> Refusal {
    Refusal::new(Reason::BadRewrite, error.to_string())
}

fn change_answer(head: &mut ResponseHead, decision: &Decision, chosen: &Chosen) {
    let rule = decision.route().map(|route| &route.filters.response);
    let backend = decision.backend(chosen).map(|backend| &backend.response);
    let more = decision.extension().map(|more| &more.response_headers);
    for change in [backend, rule, more].into_iter().flatten() {
        change.apply(&mut head.fields);
    }
}

/// What the application shall be spoken to in: HTTP/2 where the port is
/// declared so, or where the client speaks it and the application must, being
/// gRPC or having been found out to. All others understand HTTP/1.
pub fn inner_protocol(dispatch: &Dispatch, http2: bool, head: &RequestHead) -> Spoken {
    let port = dispatch.backend().and_then(|service| service.port(dispatch.port.as_str()));
    let protocol = port.map_or(Protocol::Detect, |port| port.protocol);
    let must = protocol == Protocol::Detect || head.is_grpc();
    if protocol == Protocol::Grpc || (http2 && must) { Spoken::Http2 } else { Spoken::Http1 }
}
