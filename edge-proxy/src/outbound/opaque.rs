//! One connection of opaque bytes.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, StatusCode, Uri};
use mesh_core::{Endpoint, Reason, route::Destination};

use super::{
    dispatch::{Dispatch, MAX_ATTEMPTS},
    loads::Attempt,
    pool::{self, Place},
    probation,
};
use crate::{
    copy::{Copied, Duplex, copy},
    headers,
    http2::{ExchangeError, StreamIo},
    inner::{self, Blame},
    record::Record,
    refusal::Refusal,
    worker::Worker,
};

/// How long a session may take to answer CONNECT: the far proxy dials its
/// application meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An open stream to the application of an endpoint.
#[derive(Debug)]
pub struct Opened {
    stream: StreamIo,
    _place: Place,
    _load: Attempt,
}

/// Opens a stream to `destination`. Nothing has been sent yet, so any failure
/// may be tried elsewhere.
pub async fn open(
    worker: &Arc<Worker>,
    destination: &Destination,
    record: &mut Record,
) -> Result<Opened, Refusal> {
    record.entry.service = Some(destination.service.clone());
    record.entry.port = Some(destination.port.clone());
    if worker.shared.drain.is_draining() {
        return Err(Refusal::new(Reason::Draining, "this proxy is going away"));
    }
    let mut dispatch = Dispatch::opaque(worker, destination).await?;
    dispatch.stay(None, record.client);
    let mut last = None;
    loop {
        let (endpoint, mut load) = match dispatch.next(false) {
            Ok(next) => next,
            Err(refusal) => return Err(last.unwrap_or(refusal)),
        };
        record.entry.endpoint = Some(endpoint.id.clone());
        record.entry.site = Some(endpoint.site.clone());
        record.entry.attempts = u32::try_from(dispatch.attempts()).unwrap_or(u32::MAX);
        let attempt = attempt(worker, &dispatch, &endpoint, &mut load, record);
        match attempt.await {
            Ok((stream, place)) => return Ok(Opened { stream, _place: place, _load: load }),
            Err((refusal, _)) if dispatch.attempts() >= MAX_ATTEMPTS => return Err(refusal),
            Err((refusal, Retry::No)) => return Err(refusal),
            Err((refusal, Retry::Elsewhere)) => {
                worker.shared.metrics.retried(refusal.reason);
                last = Some(refusal);
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Elsewhere,
    No,
}

async fn attempt(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    load: &mut Attempt,
    record: &mut Record,
) -> Result<(StreamIo, Place), (Refusal, Retry)> {
    let place = match place(worker, dispatch, endpoint).await {
        Ok(place) => place,
        Err(failure) => {
            let blame = failure.blames(&dispatch.snapshot.site, endpoint);
            load.not_opened(blame);
            if blame == Blame::Endpoint {
                probation::start(worker, endpoint);
            }
            let text = format!("service {}, endpoint {}: {failure}", dispatch.service, endpoint.id);
            return Err((Refusal::new(failure.reason(), text), Retry::Elsewhere));
        }
    };
    record.entry.path_kind = place.session.path_kind;
    record.entry.peer = Some(place.session.peer.id.clone());
    record.entry.connection = Some(place.session.connection.clone());
    let connected = place.session.client.connect(head(dispatch, endpoint));
    let answered = tokio::time::timeout(CONNECT_TIMEOUT, connected).await;
    load.answered();
    let named = |what: &dyn std::fmt::Display| {
        format!("service {}, endpoint {}: {what}", dispatch.service, endpoint.id)
    };
    match answered {
        Ok(Ok((response, send))) if response.status() == StatusCode::OK => {
            Ok((StreamIo::new(send, response.into_body()), place))
        }
        Ok(Ok((response, _))) => {
            let reason = refused_with(&response);
            let denied = reason.http_status() == 403;
            if !denied {
                load.blame();
            }
            let text = named(&format_args!("refused: {reason}"));
            let retry = if denied { Retry::No } else { Retry::Elsewhere };
            Err((Refusal::new(reason, text), retry))
        }
        Ok(Err(error)) => {
            if !matches!(error, ExchangeError::NotProcessed(_)) {
                load.blame();
            }
            Err((Refusal::new(Reason::UpstreamReset, named(&error)), Retry::Elsewhere))
        }
        Err(_) => {
            load.blame();
            Err((Refusal::new(Reason::Timeout, named(&"no answer")), Retry::Elsewhere))
        }
    }
}

/// Across sites a connection has a session of its own, so that loss in it
/// stalls nobody else.
async fn place(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
) -> Result<Place, inner::OpenFailure> {
    if endpoint.site == dispatch.snapshot.site {
        return pool::place(worker, &dispatch.snapshot, endpoint).await;
    }
    let opened = inner::open(&worker.shared, &worker.tunnels, &dispatch.snapshot, endpoint);
    Ok(Place::on(&Arc::new(opened.await?)))
}

fn head(dispatch: &Dispatch, endpoint: &Endpoint) -> Request<()> {
    let value = |name: &str| HeaderValue::from_str(name).expect("names are ASCII");
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = Uri::try_from(dispatch.service.as_str()).expect("names are authorities");
    let headers = request.headers_mut();
    headers.insert(headers::SERVICE, value(dispatch.service.as_str()));
    headers.insert(headers::PORT, value(dispatch.port.as_str()));
    headers.insert(headers::PROTOCOL, HeaderValue::from_static("tcp"));
    headers.insert(headers::ENDPOINT, value(endpoint.id.as_str()));
    request
}

fn refused_with<B>(response: &http::Response<B>) -> Reason {
    let code = response.headers().get(headers::ERROR).map(HeaderValue::as_bytes);
    let known = Reason::ALL.iter().find(|reason| Some(reason.code().as_bytes()) == code);
    known.copied().unwrap_or(Reason::UpstreamReset)
}

/// Copies until both have ended, or the drain's patience has.
pub async fn run(worker: &Worker, mut client: impl Duplex, mut opened: Opened, mut record: Record) {
    record.opened();
    let mut copied = Copied::default();
    let patience = async {
        worker.shared.drain.draining().await;
        tokio::time::sleep(worker.shared.config.opaque_drain_timeout).await;
    };
    let ended = tokio::select! {
        result = copy(&mut client, &mut opened.stream, &mut copied) => result.is_ok(),
        () = patience => false,
        () = worker.shared.drain.stopping() => false,
    };
    if !ended {
        client.reset();
        opened.stream.reset();
        record.failed(Reason::UpstreamReset);
    }
    record.entry.received = copied.forth;
    record.entry.sent = copied.back;
}

/// One whole connection; a client that cannot be served is reset.
pub async fn carry(
    worker: &Arc<Worker>,
    destination: &Destination,
    mut client: impl Duplex,
    mut record: Record,
) {
    match open(worker, destination, &mut record).await {
        Ok(opened) => run(worker, client, opened, record).await,
        Err(refusal) => {
            log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
            record.failed(refusal.reason);
            client.reset();
        }
    }
}
