//! One request: its rule, what the rule does with it, and its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::UPGRADE};
use http_body::Body;
use hyper::body::Incoming;
use mesh_core::{
    Protocol, Reason,
    message::{RequestHead, ResponseHead, Scheme, hop},
    route::Destination,
    rule::{Fault, Target},
};
use mesh_runtime::clock;
use tokio::time::Instant;

use super::{
    attempts::{Answer, Carried, attempts},
    body::{OutBody, ReplayBody, Used},
    deadline,
    decision::{Chosen, Decision},
    dispatch::Dispatch,
    mirror,
};
use crate::{
    inner::mux::Spoken,
    record::Record,
    refusal::{Refusal, is_grpc},
    worker::Worker,
};

/// Carries a request to `destination` and answers in any case.
pub async fn carry(
    worker: &Arc<Worker>,
    destination: Destination,
    request: Request<Incoming>,
    mut record: Record,
) -> Response<OutBody> {
    let grpc = is_grpc(request.headers());
    record.entry.service = Some(destination.service.clone());
    record.entry.port = Some(destination.port.clone());
    match try_carry(worker, &destination, request, &mut record).await {
        Ok(Outcome::Forwarded { answer, used, deadline, received }) => {
            let Answer { head, body, used: (attempt, place) } = answer;
            record.answered(head.status);
            let used = Used { attempt, place, in_flight: used };
            let body = OutBody::stream(body, record, received, used, deadline);
            head.to_response().map(|()| body)
        }
        Ok(Outcome::Answered(response)) => {
            record.answered(response.status());
            response.map(|text| OutBody::whole(text, record))
        }
        Err(refusal) => refused(&refusal, grpc, record),
    }
}

/// The response that tells a client of a refusal.
pub fn refused(refusal: &Refusal, grpc: bool, mut record: Record) -> Response<OutBody> {
    record.failed(refusal.reason);
    record.entry.status = refusal.status.as_u16();
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    refusal.response(grpc).map(|text| OutBody::whole(text, record))
}

/// What became of a request.
enum Outcome {
    /// The application has answered.
    Forwarded {
        answer: Answer,
        used: super::protect::InFlight,
        deadline: Option<Instant>,
        received: Option<Arc<std::sync::atomic::AtomicU64>>,
    },
    /// The rule itself has.
    Answered(Response<Bytes>),
}

async fn try_carry(
    worker: &Arc<Worker>,
    destination: &Destination,
    request: Request<Incoming>,
    record: &mut Record,
) -> Result<Outcome, Refusal> {
    if worker.shared.drain.is_draining() {
        let text = "this proxy is going away; open a new connection";
        return Err(Refusal::new(Reason::Draining, text));
    }
    refuse_upgrades(&request)?;
    let (parts, body) = request.into_parts();
    let mut head = RequestHead::new();
    head.read_parts(&parts).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
    let decision = Decision::take(worker, destination, Some(&head)).await?;
    if let Some(fault) = decision.route().and_then(|route| route.fault.as_ref()) {
        inject(fault, &head).await?;
    }
    if let Some(response) = redirect(&decision, &head) {
        return Ok(Outcome::Answered(response));
    }
    let deadline = deadline_of(&decision, &head);
    let chosen = decision.choose()?;
    let mut in_flight = worker.protections.begin(&decision.service)?;
    let mut dispatch = Dispatch::to(worker, &decision, &chosen).await?;
    dispatch.stay(Some(&head.fields), record.client);
    let client = parts.version;
    let mut body = ReplayBody::new(body, decision.service.traffic.replay_bytes);
    change(&mut head, &decision, &chosen);
    mirror::start(worker, &decision, &head, &mut body).await;
    let speaks = inner_protocol(&dispatch, client, &head);
    let received = (!body.is_end_stream()).then(|| body.received());
    let route = decision.route();
    let mut carried = Carried {
        head,
        speaks,
        body: Some(body),
        received: received.clone(),
        deadline,
        retry: route.and_then(|route| route.retry.clone()),
        attempt_timeout: route.and_then(|route| route.backend_timeout),
        traffic: decision.service.traffic.clone(),
    };
    let sending = attempts(worker, &mut dispatch, &mut carried, &mut in_flight, record);
    let answered = match deadline {
        None => sending.await,
        Some(deadline) => tokio::time::timeout_at(deadline, sending)
            .await
            .unwrap_or_else(|_| Err(too_late(destination))),
    };
    let mut answer = answered?;
    change_answer(&mut answer.head, &decision, &chosen);
    if let Some(cookie) = dispatch.cookie() {
        answer.head.fields.push("set-cookie", cookie.as_bytes());
    }
    Ok(Outcome::Forwarded { answer, used: in_flight, deadline, received })
}

fn too_late(destination: &Destination) -> Refusal {
    let text = format!("service {}: no answer before the request's deadline", destination.service);
    Refusal::new(Reason::Timeout, text)
}

fn refuse_upgrades(request: &Request<Incoming>) -> Result<(), Refusal> {
    let upgrade = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok());
    let websocket = upgrade.is_some_and(|value| value.to_ascii_lowercase().contains("websocket"));
    if websocket {
        let text = "WebSocket is not carried yet; declare the port as tcp";
        return Err(Refusal::new(Reason::Unsupported, text));
    }
    // Any other upgrade is an offer that may be ignored (RFC 9110 section 7.8).
    Ok(())
}

/// Delays or refuses a request on purpose.
async fn inject(fault: &Fault, head: &RequestHead) -> Result<(), Refusal> {
    let holds = |(name, value): &(http::HeaderName, mesh_core::rule::TextMatch)| {
        head.fields.all(name.as_str()).any(|present| value.holds(present))
    };
    if !fault.headers.iter().all(holds) {
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

/// The answer of a rule that redirects.
fn redirect(decision: &Decision, head: &RequestHead) -> Option<Response<Bytes>> {
    let redirect = decision.route()?.filters.redirect.as_ref()?;
    let port = decision.service.port(decision.port.as_str()).map_or(80, |port| port.number);
    let scheme = if head.scheme == Scheme::Https { "https" } else { "http" };
    let (status, location) = redirect.answer(head, decision.matched(), Target { scheme, port });
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    let location = HeaderValue::from_str(&location).ok()?;
    response.headers_mut().insert(http::header::LOCATION, location);
    Some(response)
}

/// The sooner of what the rule and what the client allow.
fn deadline_of(decision: &Decision, head: &RequestHead) -> Option<Instant> {
    let rule = decision.route().and_then(|route| route.request_timeout);
    let timeouts = [rule, deadline::of_client(head)];
    timeouts.into_iter().flatten().min().map(|timeout| clock::monotonic() + timeout)
}

/// Makes a client's request what the application shall see.
fn change(head: &mut RequestHead, decision: &Decision, chosen: &Chosen) {
    hop::remove(&mut head.fields, hop::Upgrade::Drop);
    hop::remove_mesh(&mut head.fields);
    // Answered by our own front as soon as the body is asked for.
    head.fields.remove("expect");
    if head.authority.is_empty() {
        head.authority.push_str(chosen.service.as_str());
    }
    if let Some(route) = decision.route() {
        if let Some(rewrite) = &route.filters.rewrite {
            rewrite.apply(head, decision.matched());
        }
        route.filters.request.apply(&mut head.fields);
    }
    if let Some(backend) = decision.backend(chosen) {
        backend.request.apply(&mut head.fields);
    }
}

fn change_answer(head: &mut ResponseHead, decision: &Decision, chosen: &Chosen) {
    let rule = decision.route().map(|route| &route.filters.response);
    let backend = decision.backend(chosen).map(|backend| &backend.response);
    for change in [backend, rule].into_iter().flatten() {
        change.apply(&mut head.fields);
    }
}

/// What the application shall be spoken to in: HTTP/2 where the port is
/// declared so, or where the client speaks it and the application must, being
/// gRPC or having been found out to. All others understand HTTP/1.
fn inner_protocol(dispatch: &Dispatch, client: http::Version, head: &RequestHead) -> Spoken {
    let service = dispatch.snapshot.services.get(&dispatch.service);
    let port = service.and_then(|service| service.port(dispatch.port.as_str()));
    let protocol = port.map_or(Protocol::Detect, |port| port.protocol);
    let must = protocol == Protocol::Detect || head.is_grpc();
    let client = client == http::Version::HTTP_2;
    if protocol == Protocol::Grpc || (client && must) { Spoken::Http2 } else { Spoken::Http1 }
}
