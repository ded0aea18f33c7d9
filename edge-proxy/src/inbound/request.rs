//! One stream of a caller: which own endpoint it is for, whether the caller
//! may, and the answer.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::Request;
use http_body::Body;
use mesh_core::{
    Endpoint, Permit, Protocol, Reason, Service, authorize,
    message::{RequestHead, ResponseHead, codec, hop},
};

use super::{
    Caller,
    app::{self, Answer, CountedBody},
};
use crate::{
    copy::{Copied, copy},
    headers,
    http2::Upload as Http2Upload,
    inner::{
        mux::{Opened, Spoken, Target},
        request::{RecvBody, Shared, Upload, UploadEnd},
    },
    metrics::Direction,
    outbound::deadline,
    record::Record,
    refusal::Refusal,
    worker::Worker,
};

/// A stream that may go to an application of ours, and proof that it may.
struct Admitted {
    endpoint: Arc<Endpoint>,
    protocol: Spoken,
    permit: Permit,
    /// What its service needs to be limited.
    service: Arc<Service>,
}

/// Answers one stream in any case.
pub async fn serve(worker: Arc<Worker>, caller: Arc<Caller>, opened: Opened) {
    let mut record = Record::new(&worker, Direction::Inbound, opened.target.protocol.as_str());
    record.entry.peer = Some(caller.peer.id.clone());
    record.entry.path_kind = caller.path_kind;
    record.entry.connection.clone_from(&caller.connection);
    let stream = Shared::new(opened.exchange);
    let mut head = RequestHead::new();
    let admitted = admit(&worker, &caller, &opened.target, &opened.head, &mut head, &mut record);
    let admitted = match admitted.await {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(&refusal, &stream, record).await,
    };
    record.entry.endpoint = Some(admitted.endpoint.id.clone());
    let place = worker.shared.limits.place(&admitted.service, &admitted.endpoint).await;
    let _place = match place {
        Ok(place) => place,
        Err(refusal) => return refuse(&refusal, &stream, record).await,
    };
    let refused = match admitted.protocol {
        Spoken::Tcp => return forward_bytes(&worker, admitted, stream, record).await,
        Spoken::Http1 | Spoken::Http2 => {
            forward_request(&worker, &caller, admitted, head, &stream, &mut record).await
        }
    };
    if let Err(refusal) = refused {
        refuse(&refusal, &stream, record).await;
    }
}

async fn refuse(refusal: &Refusal, stream: &Shared, mut record: Record) {
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    record.failed(refusal.reason);
    let mut head = ResponseHead::new();
    head.status = refusal.status;
    head.fields.push(headers::ERROR.as_str(), refusal.reason.code().as_bytes());
    if send_head(stream, &head, false).await {
        // A caller that has gone misses the text. What it still sends is not
        // read: dropping the stream says so.
        let text = refusal.text.as_bytes();
        let mut sent = 0;
        let _gone = poll_fn(|cx| {
            loop {
                match stream.lock().poll_send(cx, &text[sent..], true) {
                    std::task::Poll::Ready(Ok(n)) if sent + n < text.len() => sent += n,
                    done => return done.map_ok(drop),
                }
            }
        })
        .await;
    }
}

/// False if the caller has gone.
async fn send_head(stream: &Shared, head: &ResponseHead, end: bool) -> bool {
    use crate::inner::mux::HeadKind::{Final, FinalEnd};
    let mut coded = Vec::new();
    codec::put_response(head, &mut coded);
    let kind = if end { FinalEnd } else { Final };
    poll_fn(|cx| stream.lock().poll_send_head(cx, &coded, kind)).await.is_ok()
}

/// Target and permission come from the stream's own header and the verified
/// caller alone.
async fn admit(
    worker: &Worker,
    caller: &Caller,
    asked: &Target,
    coded: &[u8],
    head: &mut RequestHead,
    record: &mut Record,
) -> Result<Admitted, Refusal> {
    record.entry.service = Some(asked.service.clone());
    record.entry.port = Some(asked.port.clone());
    let opaque = asked.protocol == Spoken::Tcp;
    if !opaque {
        codec::get_request(coded, head)
            .map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
        record.asks(head);
    }
    let snapshot = worker.shared.snapshot.want(&asked.service).await;
    let snapshot = snapshot.ok_or_else(|| not_ours(asked))?;
    let endpoints = worker.view(&snapshot).endpoints(&asked.service, &asked.port);
    let own = || endpoints.iter().filter(|endpoint| worker.is_own(&snapshot, endpoint));
    let named = own().find(|endpoint| endpoint.id == asked.endpoint);
    let endpoint = named.or_else(|| own().next()).ok_or_else(|| not_ours(asked))?;
    let service = snapshot.services.get(&asked.service).ok_or_else(|| not_ours(asked))?;
    let method = (!opaque).then_some(&head.method);
    let path = if opaque { "" } else { head.path() };
    let asks = mesh_core::RequestHead { service: &asked.service, port: &asked.port, method, path };
    let permit = authorize(&service.policy, &caller.peer, &asks)
        .map_err(|denied| Refusal::new(denied.reason.reason(), denied.to_string()))?;
    let port = service.port(asked.port.as_str());
    let grpc = port.is_some_and(|port| port.protocol == Protocol::Grpc);
    let protocol = match asked.protocol {
        Spoken::Http1 if grpc => Spoken::Http2,
        protocol => protocol,
    };
    if !opaque {
        worker.shared.limits.take(service, &caller.peer.id, head)?;
    }
    let (endpoint, service) = (endpoint.clone(), service.clone());
    Ok(Admitted { endpoint, protocol, permit, service })
}

fn not_ours(asked: &Target) -> Refusal {
    let text =
        format!("service {}: this proxy has no endpoint for port {}", asked.service, asked.port);
    Refusal::new(Reason::NoEndpoint, text)
}

/// One request to the application. An error means that nothing was answered.
async fn forward_request(
    worker: &Arc<Worker>,
    caller: &Caller,
    admitted: Admitted,
    mut head: RequestHead,
    stream: &Shared,
    record: &mut Record,
) -> Result<(), Refusal> {
    let left = head.fields.get(deadline::TIMEOUT).and_then(deadline::parse_millis);
    hop::remove(&mut head.fields, hop::Upgrade::Drop);
    hop::remove_mesh(&mut head.fields);
    head.fields.set(headers::CLIENT_ID.as_str(), caller.peer.id.as_str().as_bytes());
    if let Some(left) = left {
        deadline::write(&mut head.fields, left);
    }
    let received = CountedBody::new(RecvBody::new(stream.clone()));
    let count = received.count();
    let request = head.to_request();
    let request = request.map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
    let request: Request<CountedBody> = request.map(|()| received);
    let http2 = admitted.protocol == Spoken::Http2;
    let answered = tokio::select! {
        biased;
        // Dropping the other branches tells the application.
        _ = poll_fn(|cx| stream.lock().poll_reset(cx)) => None,
        () = until_late(left) => {
            let name = &admitted.service.name;
            let text = format!("service {name}: its application has not answered in time");
            return Err(Refusal::new(Reason::Timeout, text));
        }
        answer = app::send(worker, &admitted.endpoint, admitted.permit, http2, request) => {
            Some(answer?)
        }
    };
    match answered {
        Some(answer) => answer_with(worker, answer, stream, record).await,
        None => record.failed(Reason::UpstreamReset),
    }
    record.entry.received = count.load(Ordering::Relaxed);
    Ok(())
}

/// Waits until the caller's deadline, forever without one.
async fn until_late(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}

/// Sends the application's answer back.
async fn answer_with(worker: &Worker, answer: Answer, stream: &Shared, record: &mut Record) {
    let Answer { head: parts, body, mut upload, kept } = answer;
    let mut head = ResponseHead::new();
    head.read_parts(&parts);
    hop::remove(&mut head.fields, hop::Upgrade::Drop);
    // Only proxies may say this; the source would believe it.
    head.fields.remove(headers::ERROR.as_str());
    record.answered(head.status);
    let ended = body.is_end_stream();
    if !send_head(stream, &head, ended).await {
        return record.failed(Reason::UpstreamReset);
    }
    let mut download = Upload::new(body, stream.clone());
    let end = tokio::select! {
        end = download.run() => end,
        // Its end does not matter; the answer's does.
        () = drive(&mut upload) => UploadEnd::Stopped,
    };
    record.entry.sent = download.sent();
    match end {
        UploadEnd::Sent => kept.give_back(worker),
        UploadEnd::Stopped | UploadEnd::BodyFailed => record.failed(Reason::UpstreamReset),
    }
}

/// Sends on what is left of a request; never ends.
async fn drive(upload: &mut Option<Http2Upload<CountedBody>>) {
    if let Some(upload) = upload {
        upload.run().await;
    }
    std::future::pending().await
}

/// Bytes between a stream and the application.
async fn forward_bytes(
    worker: &Arc<Worker>,
    admitted: Admitted,
    stream: Shared,
    mut record: Record,
) {
    let Admitted { endpoint, permit, .. } = admitted;
    let mut app = match app::dial(worker, &endpoint, &permit).await {
        Ok(app) => app,
        Err(refusal) => return refuse(&refusal, &stream, record).await,
    };
    if !send_head(&stream, &ResponseHead::new(), false).await {
        return record.failed(Reason::UpstreamReset);
    }
    record.opened();
    let Some(exchange) = stream.into_inner() else { return };
    let mut pipe = exchange.into_pipe();
    let mut copied = Copied::default();
    let result = copy(&mut pipe, &mut app, &mut copied).await;
    record.entry.received = copied.forth;
    record.entry.sent = copied.back;
    if result.is_err() {
        record.failed(Reason::UpstreamReset);
    }
}
