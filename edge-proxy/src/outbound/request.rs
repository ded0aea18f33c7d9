//! One request: route, choose, send, try again where that is safe.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{EXPECT, HOST, UPGRADE},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_core::{
    Endpoint, PortName, Protocol, Reason, ServiceName, message::RequestHead, route::Destination,
};

use super::{
    body::{OutBody, ReplayBody},
    dispatch::{Dispatch, MAX_ATTEMPTS},
    loads::Attempt,
    pool::{self, Place},
    probation,
};
use crate::{
    headers,
    http2::{ExchangeError, RecvBody, Upload},
    inner::{Blame, OpenFailure},
    record::Record,
    refusal::{Refusal, is_grpc},
    worker::Worker,
};

/// What of a refusal's text is passed on.
const MAX_REFUSAL_TEXT: usize = 4096;
/// How long a refusal's text may take after its head.
const REFUSAL_TEXT_TIMEOUT: Duration = Duration::from_secs(1);

/// One request with what it takes to send it more than once.
struct Carried {
    head: Parts,
    /// `None` only while an attempt holds it.
    body: Option<ReplayBody>,
    received: Option<Arc<AtomicU64>>,
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
    /// The session had ended before the request was processed: the same
    /// endpoint may do, in a new session.
    Again,
    /// It may have been processed: only what is idempotent, and once.
    Idempotent,
    /// Nothing.
    Nothing,
}

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
        Ok((head, body, received, used)) => {
            record.answered(head.status);
            Response::from_parts(head, OutBody::stream(body, record, received, used))
        }
        Err(refusal) => refused(&refusal, grpc, record),
    }
}

/// The response that tells a client of a refusal.
pub fn refused(refusal: &Refusal, grpc: bool, mut record: Record) -> Response<OutBody> {
    record.failed(refusal.reason);
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    refusal.response(grpc).map(|text| OutBody::whole(text, record))
}

type Answer = (http::response::Parts, RecvBody, Option<Arc<AtomicU64>>, (Attempt, Place));

async fn try_carry(
    worker: &Arc<Worker>,
    destination: &Destination,
    request: Request<Incoming>,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    if worker.shared.drain.is_draining() {
        let text = "this proxy is going away; open a new connection";
        return Err(Refusal::new(Reason::Draining, text));
    }
    refuse_upgrades(&request)?;
    let (parts, body) = request.into_parts();
    let mut head = RequestHead::new();
    head.read_parts(&parts).map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))?;
    let request = Request::from_parts(parts, body);
    let mut dispatch = Dispatch::new(worker, destination, Some(&head)).await?;
    let carried = prepare(&dispatch, request)?;
    let deadline = dispatch.deadline;
    let attempts = attempts(worker, &mut dispatch, carried, record);
    let Some(deadline) = deadline else { return attempts.await };
    tokio::time::timeout_at(deadline, attempts).await.unwrap_or_else(|_| {
        let text =
            format!("service {}: no answer before the route's deadline", destination.service);
        Err(Refusal::new(Reason::Timeout, text))
    })
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

/// Makes a client's request one of the inner session.
fn prepare(dispatch: &Dispatch, request: Request<Incoming>) -> Result<Carried, Refusal> {
    let (mut head, body) = request.into_parts();
    let speaks = inner_protocol(dispatch, &head);
    head.uri = inner_uri(&head, &dispatch.service)?;
    head.version = Version::HTTP_2;
    headers::remove_hop_by_hop(&mut head.headers);
    headers::remove_mesh(&mut head.headers);
    head.headers.remove(HOST);
    // Answered by our own front as soon as the body is asked for.
    head.headers.remove(EXPECT);
    let (service, port) = (name_value(&dispatch.service), port_value(&dispatch.port));
    head.headers.insert(headers::SERVICE, service);
    head.headers.insert(headers::PORT, port);
    head.headers.insert(headers::PROTOCOL, HeaderValue::from_static(speaks));
    let body = ReplayBody::new(body);
    let received = (!body.is_end_stream()).then(|| body.received());
    Ok(Carried { head, body: Some(body), received })
}

fn name_value(name: &ServiceName) -> HeaderValue {
    HeaderValue::from_str(name.as_str()).expect("service names are ASCII")
}

fn port_value(name: &PortName) -> HeaderValue {
    HeaderValue::from_str(name.as_str()).expect("port names are ASCII")
}

/// What the application shall be spoken to in: HTTP/2 where the port is
/// declared so, or where the client speaks it and the application must, being
/// gRPC or having been found out to. All others understand HTTP/1.
fn inner_protocol(dispatch: &Dispatch, head: &Parts) -> &'static str {
    let service = dispatch.snapshot.services.get(&dispatch.service);
    let port = service.and_then(|service| service.port(dispatch.port.as_str()));
    let protocol = port.map_or(Protocol::Detect, |port| port.protocol);
    let must = protocol == Protocol::Detect || is_grpc(&head.headers);
    let client = head.version == Version::HTTP_2;
    if protocol == Protocol::Grpc || (client && must) { "http2" } else { "http1" }
}

/// The authority stays what the client called, so that the application sees
/// the host name it is known by.
fn inner_uri(head: &Parts, service: &ServiceName) -> Result<Uri, Refusal> {
    let authority = match (head.uri.authority(), head.headers.get(HOST)) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes())
            .map_err(|_| Refusal::new(Reason::BadRequest, "the Host header is not a host"))?,
        (None, None) => Authority::try_from(service.as_str()).expect("service names are hosts"),
    };
    let path = head.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|error| Refusal::new(Reason::BadRequest, error.to_string()))
}

/// Tries until there is an answer, or nothing more may be tried.
async fn attempts(
    worker: &Arc<Worker>,
    dispatch: &mut Dispatch,
    mut carried: Carried,
    record: &mut Record,
) -> Result<Answer, Refusal> {
    let idempotent = is_idempotent(&carried.head.method);
    let (mut again, mut repeated) = (false, false);
    let mut last: Option<Refusal> = None;
    loop {
        let (endpoint, mut load) = match dispatch.next(again) {
            Ok(next) => next,
            // What failed before says more than "nothing is left".
            Err(refusal) => return Err(last.unwrap_or(refusal)),
        };
        tell(record, dispatch, &endpoint);
        let sent = attempt(worker, dispatch, &endpoint, &mut carried, &mut load, record).await;
        let failed = match sent {
            Ok((head, body, place)) => return Ok((head, body, carried.received, (load, place))),
            Err(failed) => failed,
        };
        let rewound = carried.body.as_mut().is_some_and(ReplayBody::rewind);
        let allowed = match failed.after {
            After::Anything | After::Again => rewound,
            After::Idempotent => rewound && idempotent && !repeated,
            After::Nothing => false,
        };
        if !allowed || dispatch.attempts() >= MAX_ATTEMPTS {
            return Err(failed.refusal);
        }
        repeated |= failed.after == After::Idempotent;
        again = failed.after == After::Again || failed.after == After::Idempotent;
        worker.shared.metrics.retried(failed.refusal.reason);
        last = Some(failed.refusal);
    }
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE]
        .contains(method)
}

fn tell(record: &mut Record, dispatch: &Dispatch, endpoint: &Endpoint) {
    record.entry.endpoint = Some(endpoint.id.clone());
    record.entry.site = Some(endpoint.site.clone());
    record.entry.attempts = u32::try_from(dispatch.attempts()).unwrap_or(u32::MAX);
}

type Sent = (http::response::Parts, RecvBody, Place);

/// Sends once. The body comes back where it may be sent again.
async fn attempt(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    carried: &mut Carried,
    load: &mut Attempt,
    record: &mut Record,
) -> Result<Sent, Failed> {
    let place = match pool::place(worker, &dispatch.snapshot, endpoint).await {
        Ok(place) => place,
        Err(failure) => {
            let blame = failure.blames(&dispatch.snapshot.site, endpoint);
            load.not_opened(blame);
            if blame == Blame::Endpoint {
                probation::start(worker, endpoint);
            }
            return Err(Failed::to_open(endpoint, &failure));
        }
    };
    record.entry.path_kind = place.session.path_kind;
    record.entry.peer = Some(place.session.peer.id.clone());
    record.entry.connection = Some(place.session.connection.clone());
    let Some(body) = carried.body.take() else { return Err(Failed::without_body()) };
    let request = carried.request(endpoint);
    let (response, upload) = match place.session.client.exchange(request, body).await {
        Ok(answered) => answered,
        Err((error, body)) => {
            carried.body = Some(body);
            if error.is_connection_lost() {
                probation::start(worker, endpoint);
            }
            return Err(Failed::to_answer(endpoint, &error, load));
        }
    };
    let (mut head, stream) = response.into_parts();
    let body = RecvBody::new(stream);
    if let Some(code) = head.headers.get(headers::ERROR) {
        let reason = reason_of(code, head.status);
        carried.body = Some(upload.into_body());
        return Err(Failed::there(endpoint, reason, &refusal_text(body).await, load));
    }
    load.answered();
    drive_on(worker, upload);
    headers::remove_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    Ok((head, body, place))
}

/// Answers may begin before requests have ended: then the rest of the request
/// needs a task, because nobody may read the answer as fast as we send.
fn drive_on(worker: &Worker, mut upload: Upload<ReplayBody>) {
    if !upload.is_done() {
        worker.shared.drain.spawn(async move {
            upload.run().await;
        });
    }
}

fn reason_of(code: &HeaderValue, status: StatusCode) -> Reason {
    let known = Reason::ALL.iter().find(|reason| reason.code().as_bytes() == code.as_bytes());
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

impl Carried {
    fn request(&self, endpoint: &Endpoint) -> Request<()> {
        let mut request = Request::from_parts(self.head.clone(), ());
        let id = HeaderValue::from_str(endpoint.id.as_str()).expect("endpoint ids are ASCII");
        request.headers_mut().insert(headers::ENDPOINT, id);
        request
    }
}

impl Failed {
    fn to_open(endpoint: &Endpoint, failure: &OpenFailure) -> Self {
        let text = format!("{}: {failure}", describe(endpoint));
        Self { refusal: Refusal::new(failure.reason(), text), after: After::Anything }
    }

    fn to_answer(endpoint: &Endpoint, error: &ExchangeError, load: &mut Attempt) -> Self {
        let (reason, after) = match error {
            ExchangeError::NotProcessed(_) => (Reason::UpstreamReset, After::Again),
            ExchangeError::Broken(_) => {
                if error.is_connection_lost() {
                    load.unreachable();
                } else {
                    load.blame();
                }
                (Reason::UpstreamReset, After::Idempotent)
            }
            ExchangeError::BodyFailed => (Reason::BadRequest, After::Nothing),
        };
        let text = format!("{}: {error}", describe(endpoint));
        Self { refusal: Refusal::new(reason, text), after }
    }

    /// The far proxy refused.
    fn there(endpoint: &Endpoint, reason: Reason, text: &str, load: &mut Attempt) -> Self {
        let after = match reason {
            // It was not given to any application.
            Reason::Draining | Reason::Overloaded | Reason::AppUnreachable => After::Anything,
            // What it was asked for is not there (yet, or any more).
            Reason::NoEndpoint => After::Anything,
            Reason::UpstreamReset => After::Idempotent,
            _ => After::Nothing,
        };
        if after != After::Nothing {
            load.blame();
        }
        let text = if text.is_empty() {
            format!("{}: its proxy refused", describe(endpoint))
        } else {
            text.to_owned()
        };
        Self { refusal: Refusal::new(reason, text), after }
    }

    fn without_body() -> Self {
        let text = "the request's body is gone; this is a defect of the proxy";
        Self { refusal: Refusal::new(Reason::UpstreamReset, text), after: After::Nothing }
    }
}

fn describe(endpoint: &Endpoint) -> String {
    format!("service {}, endpoint {} in {}", endpoint.service, endpoint.id, endpoint.site)
}
