//! One stream of a caller: which own endpoint it is for, whether the caller
//! may, and the answer.

use std::{future::poll_fn, sync::Arc, task::Poll};

use http::{Method, StatusCode};
use http_body::Body;
use mesh_core::{
    Call, Endpoint, Permit, Protocol, Reason, Service, Snapshot,
    message::{Known, RequestHead, ResponseHead, codec, hop},
};
use mesh_runtime::clock;
use mesh_tunnel::Stream;
use tokio::time::{Instant, timeout_at};

use super::{
    Caller,
    answer::{Broken, Carried, carry_http1, carry_http2},
    app::{self, Failed},
    guard::{self, Running},
    stream::{CallerStream, HeadError},
};
use crate::{
    apps::{self, Exchange},
    copy::{Copied, copy},
    headers, http1,
    inner::mux::{HeadKind, MAX_INFORMATIONAL, Opened, Spoken, Target},
    metrics::Direction,
    outbound::deadline,
    record::{Came, Record},
    refusal::Refusal,
    scratch::Scratch,
    worker::Worker,
};

/// A stream that may go to an application of ours, and proof that it may.
struct Admitted {
    endpoint: Arc<Endpoint>,
    protocol: Spoken,
    permit: Permit,
    /// What its service needs to be limited.
    service: Arc<Service>,
    caller: Arc<Caller>,
    /// Of changes of policies, before it was decided.
    seen: u64,
}

impl Admitted {
    fn running(&self) -> Running<'_> {
        let Endpoint { id: endpoint, port, .. } = &*self.endpoint;
        let (client, service) = (self.caller.client(), &self.service.name);
        Running { client, service, port, endpoint, seen: self.seen }
    }
}

/// A refusal, and whom it is for.
type Refused = (Refusal, CallerStream);

/// Answers one stream in any case, when its `turn` has come: `None` if it is
/// not wanted any more.
pub async fn serve(
    worker: Arc<Worker>,
    caller: Arc<Caller>,
    opened: Opened,
    came: Came,
    turn: Option<Result<(), Refusal>>,
) {
    let Opened { target, head: coded, exchange, .. } = opened;
    let mut record = Record::since(came, &worker, Direction::Inbound, target.protocol.as_str());
    record.entry.peer = Some(caller.peer.id.clone());
    record.entry.path_kind = caller.path_kind;
    record.entry.connection = target.connection.clone().or_else(|| caller.connection.clone());
    record.entry.service = Some(target.service.clone());
    record.entry.port = Some(target.port.clone());
    let Some(turn) = turn else { return record.failed(Reason::UpstreamReset) };
    let stream = CallerStream::new(exchange);
    let mut scratch = worker.scratch.take();
    let admitted = match turn {
        Ok(()) => admit(&worker, &caller, &target, &coded, &mut scratch.head, &mut record).await,
        Err(refusal) => Err(refusal),
    };
    let served = match admitted {
        Ok(admitted) => forward(&worker, &admitted, stream, &mut scratch, &mut record).await,
        Err(refusal) => Err((refusal, stream)),
    };
    if let Err((refusal, stream)) = served {
        refuse(&refusal, stream, &mut scratch, &mut record).await;
    }
    worker.scratch.give(scratch);
}

async fn refuse(
    refusal: &Refusal,
    mut stream: CallerStream,
    scratch: &mut Scratch,
    record: &mut Record,
) {
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    record.failed(refusal.reason);
    let Scratch { answer, coded, .. } = scratch;
    answer.clear();
    answer.status = refusal.status;
    answer.fields.push(headers::ERROR.as_str(), refusal.reason.code().as_bytes());
    if stream.send_head(answer, HeadKind::Final, coded).await.is_ok() {
        // A caller that has gone misses the text. What it still sends is not
        // read: dropping the stream says so.
        let text = refusal.text.as_bytes();
        let mut sent = 0;
        let _gone = poll_fn(|cx| {
            loop {
                match stream.poll_send(cx, &text[sent..], true) {
                    Poll::Ready(Ok(n)) if sent + n < text.len() => sent += n,
                    done => return done.map_ok(drop),
                }
            }
        })
        .await;
    }
}

/// Target and permission come from the stream's own header and the verified
/// caller alone.
async fn admit(
    worker: &Worker,
    caller: &Arc<Caller>,
    asked: &Target,
    coded: &[u8],
    head: &mut RequestHead,
    record: &mut Record,
) -> Result<Admitted, Refusal> {
    let opaque = asked.protocol == Spoken::Tcp;
    if !opaque {
        worker.shared.check_memory()?;
        codec::get_request(coded, head)
            .map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
        record.asks(head);
    }
    let seen = worker.changes.seen();
    let mut own = own_endpoint(worker, asked).await;
    // A caller may know more than the snapshot that this process began with.
    if own.is_none() && worker.shared.snapshot.is_confirmed_late().await {
        own = own_endpoint(worker, asked).await;
    }
    let (snapshot, endpoint) = own.ok_or_else(|| not_ours(asked))?;
    let service = snapshot.services.get(&asked.service).ok_or_else(|| not_ours(asked))?;
    let request = (!opaque).then_some(&*head);
    let call = Call { service: &asked.service, port: &asked.port, request };
    let permit = guard::admit(worker, service, caller.client(), &call, record)?;
    let port = service.port(asked.port.as_str());
    let grpc = port.is_some_and(|port| port.protocol == Protocol::Grpc);
    let protocol = match asked.protocol {
        Spoken::Http1 if grpc => Spoken::Http2,
        protocol => protocol,
    };
    if !opaque {
        worker.shared.limits.take(service, Some(&caller.peer.id), head)?;
    }
    let (service, caller) = (service.clone(), caller.clone());
    Ok(Admitted { endpoint, protocol, permit, service, caller, seen })
}

async fn own_endpoint(worker: &Worker, asked: &Target) -> Option<(Arc<Snapshot>, Arc<Endpoint>)> {
    let snapshot = worker.shared.snapshot.want(&asked.service).await?;
    let called = (&asked.service, &asked.port);
    let endpoint = guard::own_endpoint(worker, &snapshot, called, Some(&asked.endpoint))?;
    Some((snapshot, endpoint))
}

fn not_ours(asked: &Target) -> Refusal {
    let text =
        format!("service {}: this proxy has no endpoint for port {}", asked.service, asked.port);
    Refusal::new(Reason::NoEndpoint, text)
}

/// One stream to the application. An error means that nothing was answered.
async fn forward(
    worker: &Arc<Worker>,
    admitted: &Admitted,
    mut stream: CallerStream,
    scratch: &mut Scratch,
    record: &mut Record,
) -> Result<(), Refused> {
    record.entry.endpoint = Some(admitted.endpoint.clone());
    let place = tokio::select! {
        biased;
        place = worker.shared.limits.place(&admitted.service, &admitted.endpoint) => place,
        // Who gave up makes room for others that wait.
        () = poll_fn(|cx| stream.poll_gone(cx)) => {
            record.failed(Reason::UpstreamReset);
            return Ok(());
        }
    };
    let _place = match place {
        Ok(place) => place,
        Err(refusal) => return Err((refusal, stream)),
    };
    if admitted.protocol == Spoken::Tcp {
        return forward_bytes(worker, admitted, stream, scratch, record).await;
    }
    let head = &mut scratch.head;
    if head.method == Method::CONNECT {
        return Err((Refusal::new(Reason::Unsupported, "CONNECT to an application"), stream));
    }
    let http1 = admitted.protocol == Spoken::Http1;
    let offer = offered(head, http1, &mut stream);
    let until = prepare(head, &admitted.caller, offer);
    if http1 {
        forward_http1(worker, admitted, stream, scratch, (offer, until), record).await
    } else {
        forward_http2(worker, admitted, stream, scratch, until, record).await
    }
}

/// Whether the request offers another protocol: it has no body, and what
/// follows on its stream is for that protocol. An offer that is ignored, as any
/// may be, ends the stream.
fn offered(head: &RequestHead, http1: bool, stream: &mut CallerStream) -> hop::Upgrade {
    let has_length = matches!(http1::Body::of(&head.fields, true), http1::Body::Length(1..));
    if !head.fields.has(Known::Upgrade) || has_length || stream.is_end_stream() {
        return hop::Upgrade::Drop;
    }
    if http1 && hop::offers_tunnel(&head.fields) {
        return hop::Upgrade::Keep;
    }
    stream.read_no_further();
    hop::Upgrade::Drop
}

/// Makes a caller's request what the application shall see; returns when it
/// must have been answered.
fn prepare(head: &mut RequestHead, caller: &Caller, upgrade: hop::Upgrade) -> Option<Instant> {
    let left = head.fields.get(deadline::TIMEOUT).and_then(deadline::parse_millis);
    hop::remove(&mut head.fields, upgrade);
    hop::remove_mesh(&mut head.fields);
    head.fields.remove_known(Known::XForwardedClientCert);
    for name in [Known::IsthmusClientId, Known::LegacyClientId] {
        head.fields.push_known(name, caller.peer.id.as_str().as_bytes());
    }
    if let Some(certificate) = &caller.certificate {
        head.fields.push_known(Known::XForwardedClientCert, certificate.as_bytes());
    }
    let left = left?;
    deadline::write(&mut head.fields, left);
    Some(clock::monotonic() + left)
}

/// Makes an application's answer what the caller shall see.
fn clean(head: &mut ResponseHead) {
    hop::remove(&mut head.fields, hop::Upgrade::in_answer(head.status));
    // Only proxies may say this; the source would believe it.
    head.fields.remove_known(Known::IsthmusError);
    head.fields.remove_known(Known::ProxyError);
}

async fn forward_http1(
    worker: &Arc<Worker>,
    admitted: &Admitted,
    stream: CallerStream,
    scratch: &mut Scratch,
    how: (hop::Upgrade, Option<Instant>),
    record: &mut Record,
) -> Result<(), Refused> {
    let head = std::mem::take(&mut scratch.head);
    let running = admitted.running();
    let exchange = exchange_http1(worker, admitted, stream, (&head, scratch), how, record);
    let done = match running.while_allowed(worker, Some(&head), exchange).await {
        Ok(Ok(Some((app, stream)))) => {
            let passing = pass_bytes(app, stream, scratch, Copied::default(), record);
            running.while_allowed(worker, Some(&head), passing).await.map(Ok)
        }
        Ok(done) => Ok(done.map(drop)),
        Err(denied) => Err(denied),
    };
    scratch.head = head;
    done.unwrap_or_else(|denied| {
        running.cut(&denied, record);
        Ok(())
    })
}

/// One exchange; what is left is a tunnel, if both ends have switched.
async fn exchange_http1(
    worker: &Arc<Worker>,
    admitted: &Admitted,
    stream: CallerStream,
    (head, scratch): (&RequestHead, &mut Scratch),
    (upgrade, until): (hop::Upgrade, Option<Instant>),
    record: &mut Record,
) -> Result<Option<(Stream, CallerStream)>, Refused> {
    let Admitted { endpoint, permit, .. } = admitted;
    let Scratch { answer, coded, .. } = scratch;
    let offer = upgrade == hop::Upgrade::Keep;
    let mut exchange = app::http1(worker, endpoint.target, permit, head, stream, offer);
    let response = final_head(&mut exchange, endpoint, answer, coded, until).await;
    let response = match response {
        Ok(response) => response,
        Err(failed) => return give_up(failed, exchange.into_body(), record).map(|()| None),
    };
    let switched = answer.status == StatusCode::SWITCHING_PROTOCOLS;
    clean(answer);
    let ended = response.body.is_empty() && !switched;
    let kind = if ended { HeadKind::FinalEnd } else { HeadKind::Final };
    if let Err(error) = exchange.body().send_head(answer, kind, coded).await {
        return give_up(not_sent(endpoint, error), exchange.into_body(), record).map(|()| None);
    }
    record.answered(answer.status);
    record.says(&answer.fields);
    admitted.caller.asks(&worker.shared, &record.entry);
    if switched {
        return Ok(exchange.into_tunnel());
    }
    let Some(answer) = exchange.into_answer() else { return Ok(None) };
    let mut carried = Carried::default();
    let result = carry_http1(answer, ended, &mut carried).await;
    ended_with(result, carried, record);
    Ok(None)
}

/// Waits for the final head, passing on what comes before it.
async fn final_head(
    exchange: &mut Exchange<'_, CallerStream>,
    endpoint: &Endpoint,
    answer: &mut ResponseHead,
    coded: &mut Vec<u8>,
    until: Option<Instant>,
) -> Result<http1::Response, Failed> {
    let mut told = 0;
    loop {
        let head = exchange.head(answer, |cx, stream| stream.poll_gone(cx));
        let response = match until {
            None => head.await,
            Some(until) => timeout_at(until, head).await.map_err(|_| app::late(endpoint))?,
        };
        let response = response.map_err(|error| app::of_http1(endpoint, &error))?;
        if apps::is_final(answer.status) {
            return Ok(response);
        }
        // More might be more than a caller may leave waiting.
        if told < MAX_INFORMATIONAL {
            told += 1;
            clean(answer);
            let sent = exchange.body().send_head(answer, HeadKind::Informational, coded).await;
            if sent == Err(HeadError::Gone) {
                return Err(Failed::Gone);
            }
        }
    }
}

fn not_sent(endpoint: &Endpoint, error: HeadError) -> Failed {
    match error {
        HeadError::Gone => Failed::Gone,
        HeadError::TooLong => app::broken(endpoint, &"its head is too long").into(),
    }
}

/// There is no answer; an error is one to tell the caller.
fn give_up(failed: Failed, stream: CallerStream, record: &mut Record) -> Result<(), Refused> {
    record.entry.received = stream.received();
    match failed {
        Failed::Refused(refusal) => Err((refusal, stream)),
        Failed::Body if !stream.has_failed() => {
            let text = "the request's body is not what its head has announced";
            Err((Refusal::new(Reason::BadRequest, text), stream))
        }
        Failed::Body | Failed::Gone => {
            record.failed(Reason::UpstreamReset);
            Ok(())
        }
    }
}

fn ended_with(result: Result<(), Broken>, carried: Carried, record: &mut Record) {
    record.entry.received = carried.received;
    record.entry.sent = carried.sent;
    record.entry.grpc_status = carried.grpc_status.or(record.entry.grpc_status);
    if let Err(broken) = result {
        log::debug!(error:% = broken; "an answer did not arrive whole");
        record.failed(Reason::UpstreamReset);
    }
}

async fn forward_http2(
    worker: &Arc<Worker>,
    admitted: &Admitted,
    stream: CallerStream,
    scratch: &mut Scratch,
    until: Option<Instant>,
    record: &mut Record,
) -> Result<(), Refused> {
    let Scratch { head, answer, coded } = scratch;
    let (head, running) = (&*head, admitted.running());
    let exchange = exchange_http2(worker, admitted, stream, (head, answer, coded), until, record);
    let done = running.while_allowed(worker, Some(head), exchange).await;
    done.unwrap_or_else(|denied| {
        running.cut(&denied, record);
        Ok(())
    })
}

async fn exchange_http2(
    worker: &Arc<Worker>,
    admitted: &Admitted,
    stream: CallerStream,
    (head, answer, coded): (&RequestHead, &mut ResponseHead, &mut Vec<u8>),
    until: Option<Instant>,
    record: &mut Record,
) -> Result<(), Refused> {
    let Admitted { endpoint, permit, .. } = admitted;
    let answered = app::http2(worker, endpoint, permit, head, stream, until).await;
    let (response, mut carrying) = match answered {
        Ok(answered) => answered,
        Err((failed, stream)) => return give_up(failed, stream, record),
    };
    answer.read_parts(&response.into_parts().0);
    clean(answer);
    let ended = carrying.body.is_end_stream();
    let kind = if ended { HeadKind::FinalEnd } else { HeadKind::Final };
    if let Err(error) = carrying.upload.body().send_head(answer, kind, coded).await {
        return give_up(not_sent(endpoint, error), carrying.upload.into_body(), record);
    }
    record.answered(answer.status);
    record.says(&answer.fields);
    admitted.caller.asks(&worker.shared, &record.entry);
    let mut carried = Carried::default();
    let result = carry_http2(carrying, ended, &mut carried).await;
    ended_with(result, carried, record);
    Ok(())
}

/// A connection's bytes.
async fn forward_bytes(
    worker: &Arc<Worker>,
    admitted: &Admitted,
    mut stream: CallerStream,
    scratch: &mut Scratch,
    record: &mut Record,
) -> Result<(), Refused> {
    let app = match app::dial(worker, &admitted.endpoint, &admitted.permit).await {
        Ok(app) => app,
        Err(refusal) => return Err((refusal, stream)),
    };
    let Scratch { answer, coded, .. } = scratch;
    answer.clear();
    if stream.send_head(answer, HeadKind::Final, coded).await.is_err() {
        record.failed(Reason::UpstreamReset);
        return Ok(());
    }
    let copied = Copied::counted_in(record.opened());
    let running = admitted.running();
    let passing = pass_bytes(app, stream, scratch, copied, record);
    if let Err(denied) = running.while_allowed(worker, None, passing).await {
        running.cut(&denied, record);
    }
    Ok(())
}

/// Bytes between a stream and the application, until both have ended.
async fn pass_bytes(
    mut app: Stream,
    stream: CallerStream,
    scratch: &mut Scratch,
    mut copied: Copied,
    record: &mut Record,
) {
    // This may take days; heads are over.
    *scratch = Scratch::default();
    let mut pipe = stream.into_inner().into_pipe();
    let result = copy(&mut pipe, &mut app, &mut copied).await;
    record.entry.received = copied.forth;
    record.entry.sent = copied.back;
    if result.is_err() {
        record.failed(Reason::UpstreamReset);
    }
}
