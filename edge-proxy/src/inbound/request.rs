//! One stream of a caller: which own endpoint it is for, whether the caller
//! may, and the answer.

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use mesh_core::{
    Endpoint, Permit, PortName, Protocol, Reason, Service, ServiceName, authorize,
    message::RequestHead,
};

use super::{
    Caller,
    app::{self, Answer, CountedBody},
};
use crate::{
    copy::{Copied, copy},
    headers,
    http2::{RecvBody, StreamIo, Upload, UploadEnd},
    metrics::Direction,
    outbound::deadline,
    record::Record,
    refusal::Refusal,
    worker::Worker,
};

/// What a stream is for, from its own header.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    service: ServiceName,
    port: PortName,
    protocol: Inner,
}

/// What is spoken inside a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inner {
    Http1,
    Http2,
    Tcp,
}

impl Inner {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
        }
    }
}

/// A stream that may go to an application of ours, and proof that it may.
struct Admitted {
    endpoint: Arc<Endpoint>,
    protocol: Inner,
    permit: Permit,
    /// What its service needs to be limited.
    service: Arc<Service>,
}

/// Answers one stream in any case.
pub async fn serve(
    worker: Arc<Worker>,
    caller: Arc<Caller>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let mut record = Record::new(&worker.shared, Direction::Inbound, "http2");
    record.entry.peer = Some(caller.peer.id.clone());
    record.entry.path_kind = caller.path_kind;
    record.entry.connection.clone_from(&caller.connection);
    let admitted = match admit(&worker, &caller, &request, &mut record).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(&refusal, &mut respond, record),
    };
    record.entry.endpoint = Some(admitted.endpoint.id.clone());
    let place = worker.shared.limits.place(&admitted.service, &admitted.endpoint).await;
    let _place = match place {
        Ok(place) => place,
        Err(refusal) => return refuse(&refusal, &mut respond, record),
    };
    let refused = match admitted.protocol {
        Inner::Tcp => forward_bytes(&worker, admitted, request, &mut respond, &mut record).await,
        Inner::Http1 | Inner::Http2 => {
            forward_request(&worker, &caller, admitted, request, &mut respond, &mut record).await
        }
    };
    if let Err(refusal) = refused {
        refuse(&refusal, &mut respond, record);
    }
}

fn refuse(refusal: &Refusal, respond: &mut SendResponse<Bytes>, mut record: Record) {
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    record.failed(refusal.reason);
    let (head, text) = refusal.response(false).into_parts();
    let mut response = Response::from_parts(head, ());
    *response.version_mut() = Version::HTTP_2;
    if let Ok(mut stream) = respond.send_response(response, false) {
        // The text is shorter than any window; a caller that has gone misses
        // it. What the caller still sends is not read: dropping the stream says
        // so (RFC 9113 section 8.1).
        let _gone = stream.send_data(text, true);
    }
}

/// Target and permission come from the stream's own header and the verified
/// caller alone.
async fn admit(
    worker: &Worker,
    caller: &Caller,
    request: &Request<RecvStream>,
    record: &mut Record,
) -> Result<Admitted, Refusal> {
    let asked = asked(request.headers(), request.method())?;
    record.entry.protocol = asked.protocol.as_str();
    record.entry.service = Some(asked.service.clone());
    record.entry.port = Some(asked.port.clone());
    if asked.protocol != Inner::Tcp {
        record.entry.method = Some(request.method().clone());
        record.entry.uri = Some(request.uri().clone());
    }
    let snapshot = worker.shared.snapshot.want(&asked.service).await;
    let snapshot = snapshot.ok_or_else(|| not_ours(&asked))?;
    let wanted = request.headers().get(headers::ENDPOINT).map(HeaderValue::as_bytes);
    let endpoints = worker.view(&snapshot).endpoints(&asked.service, &asked.port);
    let own = || endpoints.iter().filter(|endpoint| worker.is_own(&snapshot, endpoint));
    let named = own().find(|endpoint| Some(endpoint.id.as_str().as_bytes()) == wanted);
    let endpoint = named.or_else(|| own().next()).ok_or_else(|| not_ours(&asked))?;
    let service = snapshot.services.get(&asked.service).ok_or_else(|| not_ours(&asked))?;
    let method = (asked.protocol != Inner::Tcp).then_some(request.method());
    let path = method.map_or("", |_| request.uri().path());
    let head = mesh_core::RequestHead { service: &asked.service, port: &asked.port, method, path };
    let permit = authorize(&service.policy, &caller.peer, &head)
        .map_err(|denied| Refusal::new(denied.reason.reason(), denied.to_string()))?;
    let port = service.port(asked.port.as_str());
    let grpc = port.is_some_and(|port| port.protocol == Protocol::Grpc);
    let protocol = match asked.protocol {
        Inner::Http1 if grpc => Inner::Http2,
        protocol => protocol,
    };
    if protocol != Inner::Tcp {
        limit_rate(worker, service, caller, request)?;
    }
    let (endpoint, service) = (endpoint.clone(), service.clone());
    Ok(Admitted { endpoint, protocol, permit, service })
}

fn limit_rate(
    worker: &Worker,
    service: &Service,
    caller: &Caller,
    request: &Request<RecvStream>,
) -> Result<(), Refusal> {
    if service.traffic.rate_limits.is_empty() {
        return Ok(());
    }
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let method = request.method().clone();
    let mut head = RequestHead { method, target, ..RequestHead::new() };
    head.fields.read_map(request.headers());
    worker.shared.limits.take(service, &caller.peer.id, &head)
}

fn asked(headers: &HeaderMap, method: &Method) -> Result<Asked, Refusal> {
    let protocol = match text(headers, &headers::PROTOCOL)? {
        "http1" => Inner::Http1,
        "http2" => Inner::Http2,
        "tcp" => Inner::Tcp,
        _ => return Err(bad("isthmus-protocol must be http1, http2 or tcp")),
    };
    if (protocol == Inner::Tcp) != (*method == Method::CONNECT) {
        return Err(bad("CONNECT and isthmus-protocol: tcp belong together"));
    }
    let service = text(headers, &headers::SERVICE)?;
    let port = text(headers, &headers::PORT)?;
    Ok(Asked {
        service: service.parse().map_err(|error| bad(format!("isthmus-service: {error}")))?,
        port: port.parse().map_err(|error| bad(format!("isthmus-port: {error}")))?,
        protocol,
    })
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<&'h str, Refusal> {
    let mut values = headers.get_all(name).iter();
    let (value, more) = (values.next(), values.next());
    let value = value.filter(|_| more.is_none()).and_then(|value| value.to_str().ok());
    value.ok_or_else(|| bad(format!("the stream needs exactly one {name}")))
}

fn bad(text: impl Into<String>) -> Refusal {
    Refusal::new(Reason::BadRequest, text)
}

fn not_ours(asked: &Asked) -> Refusal {
    let text =
        format!("service {}: this proxy has no endpoint for port {}", asked.service, asked.port);
    Refusal::new(Reason::NoEndpoint, text)
}

/// One request to the application. An error means that nothing was answered.
async fn forward_request(
    worker: &Arc<Worker>,
    caller: &Caller,
    admitted: Admitted,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    record: &mut Record,
) -> Result<(), Refusal> {
    let (mut head, stream) = request.into_parts();
    headers::remove_hop_by_hop(&mut head.headers);
    headers::remove_mesh(&mut head.headers);
    head.headers.insert(headers::CLIENT_ID, caller.client_id.clone());
    let received = CountedBody::new(RecvBody::new(stream));
    let count = received.count();
    let request = Request::from_parts(head, received);
    let http2 = admitted.protocol == Inner::Http2;
    let late = until_late(time_left(request.headers()));
    let answered = tokio::select! {
        biased;
        // Dropping the other branches tells the application.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => None,
        () = late => {
            let text = format!("service {}: its application has not answered in time", admitted.service.name);
            return Err(Refusal::new(Reason::Timeout, text));
        }
        answer = app::send(worker, &admitted.endpoint, admitted.permit, http2, request) => {
            Some(answer?)
        }
    };
    match answered {
        Some(answer) => answer_with(worker, answer, respond, record).await,
        None => record.failed(Reason::UpstreamReset),
    }
    record.entry.received = count.load(Ordering::Relaxed);
    Ok(())
}

fn time_left(headers: &HeaderMap) -> Option<Duration> {
    headers.get(deadline::TIMEOUT).map(HeaderValue::as_bytes).and_then(deadline::parse_millis)
}

/// Waits until the caller's deadline, forever without one.
async fn until_late(left: Option<Duration>) {
    match left {
        Some(left) => tokio::time::sleep(left).await,
        None => std::future::pending().await,
    }
}

/// Sends the application's answer back.
async fn answer_with(
    worker: &Worker,
    answer: Answer,
    respond: &mut SendResponse<Bytes>,
    record: &mut Record,
) {
    let Answer { head, body, mut upload, kept } = answer;
    let status = head.status;
    let mut response = Response::from_parts(head, ());
    headers::remove_hop_by_hop(response.headers_mut());
    // Only proxies may say this; the source would believe it.
    response.headers_mut().remove(headers::ERROR);
    *response.version_mut() = Version::HTTP_2;
    record.answered(status);
    let Ok(stream) = respond.send_response(response, body.is_end_stream()) else {
        return record.failed(Reason::UpstreamReset);
    };
    let mut download = Upload::new(body, stream);
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
async fn drive(upload: &mut Option<Upload<CountedBody>>) {
    if let Some(upload) = upload {
        upload.run().await;
    }
    std::future::pending().await
}

/// Bytes between a CONNECT stream and the application.
async fn forward_bytes(
    worker: &Arc<Worker>,
    admitted: Admitted,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    record: &mut Record,
) -> Result<(), Refusal> {
    let Admitted { endpoint, permit, .. } = admitted;
    let mut app = app::dial(worker, &endpoint, &permit).await?;
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    let Ok(send) = respond.send_response(response, false) else {
        record.failed(Reason::UpstreamReset);
        return Ok(());
    };
    record.opened();
    let mut stream = StreamIo::new(send, request.into_body());
    let mut copied = Copied::default();
    let result = copy(&mut stream, &mut app, &mut copied).await;
    record.entry.received = copied.forth;
    record.entry.sent = copied.back;
    if result.is_err() {
        record.failed(Reason::UpstreamReset);
    }
    Ok(())
}
