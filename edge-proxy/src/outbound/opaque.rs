//! One connection of opaque bytes.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use mesh_core::{
    Endpoint, Reason,
    client_hello::ClientHello,
    message::{ResponseHead, codec},
    route::Destination,
};

use mesh_tunnel::Stream;

use super::{
    answer::Used,
    attempts::reason_of,
    dispatch::Dispatch,
    hold,
    loads::Attempt,
    pool::{self, Place},
    probation,
};
use crate::{
    copy::{Copied, Duplex, copy},
    headers,
    inner::{
        self, Blame, Session,
        mux::{Pipe, Received, Spoken},
        request::ExchangeError,
    },
    record::Record,
    refusal::Refusal,
    transition::origin,
    worker::Worker,
};

/// How long a session may take to answer CONNECT: the far proxy dials its
/// application meanwhile.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An open stream to the application of an endpoint.
#[derive(Debug)]
pub struct Opened {
    stream: Relayed,
    _used: Option<Used>,
}

/// How the bytes get there.
#[derive(Debug)]
pub enum Relayed {
    /// In an inner session.
    Mesh(Pipe),
    /// To an application without a proxy.
    App(Stream),
}

impl Relayed {
    fn reset(&mut self) {
        match self {
            Self::Mesh(stream) => stream.reset(),
            Self::App(stream) => stream.reset(),
        }
    }
}

impl Opened {
    /// Holds what is used until the connection ends.
    pub fn new(stream: Relayed, used: Used) -> Self {
        Self { stream, _used: Some(used) }
    }

    /// To whoever is there, who is none of the mesh.
    pub fn elsewhere(stream: Stream) -> Self {
        Self { stream: Relayed::App(stream), _used: None }
    }
}

/// Opens a stream to `destination`. Nothing has been sent yet, so any failure
/// may be tried elsewhere.
pub async fn open(
    worker: &Arc<Worker>,
    destination: &Destination,
    record: &mut Record,
) -> Result<Opened, Refusal> {
    open_for(worker, destination, None, record).await
}

/// The same, where it is known what its client has said of itself.
pub async fn open_for(
    worker: &Arc<Worker>,
    destination: &Destination,
    hello: Option<&ClientHello>,
    record: &mut Record,
) -> Result<Opened, Refusal> {
    record.entry.service = Some(destination.service.clone());
    record.entry.port = Some(destination.port.clone());
    if worker.shared.drain.is_draining() {
        return Err(Refusal::new(Reason::Draining, "this proxy is going away"));
    }
    let mut dispatch = Dispatch::opaque(worker, destination, hello, record.entry.client).await?;
    let connection = match dispatch.backend() {
        Some(service) => worker.protections.connect(service)?,
        None => None,
    };
    dispatch.stay(None, record.entry.client);
    loop {
        let (refusal, retry) = match round(worker, &mut dispatch, record).await {
            Ok((stream, attempt, place)) => {
                let used = Used { attempt, place, connection, in_flight: None, running: None };
                return Ok(Opened::new(stream, used));
            }
            Err(failed) => failed,
        };
        if retry != Retry::Later {
            return Err(refusal);
        }
        match Box::pin(hold::wait(worker, &mut dispatch, None)).await {
            Ok(()) => worker.shared.metrics.retried(refusal.reason),
            Err(too_many) => return Err(too_many.unwrap_or(refusal)),
        }
    }
}

/// Tries with those who are there.
async fn round(
    worker: &Arc<Worker>,
    dispatch: &mut Dispatch,
    record: &mut Record,
) -> Result<(Relayed, Attempt, Option<Place>), (Refusal, Retry)> {
    let mut last: Option<(Refusal, Retry)> = None;
    loop {
        let again =
            last.as_ref().is_some_and(|(_, retry)| matches!(retry, Retry::Again | Retry::Retired));
        let (endpoint, mut load) = match dispatch.next(again) {
            Ok(next) => next,
            Err(refusal) => return Err(last.unwrap_or((refusal, Retry::No))),
        };
        record.tries(&endpoint, dispatch.attempts());
        let attempt = attempt(worker, dispatch, &endpoint, &mut load, record);
        let (refusal, retry) = match attempt.await {
            Ok((stream, place)) => return Ok((stream, load, place)),
            Err(failed) => failed,
        };
        let nobody_there = matches!(retry, Retry::Nobody | Retry::Later | Retry::Retired);
        if retry == Retry::No || !dispatch.may_go_on(nobody_there) {
            return Err((refusal, retry));
        }
        worker.shared.metrics.retried(refusal.reason);
        last = Some((refusal, retry));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    Elsewhere,
    /// Elsewhere: nobody was there.
    Nobody,
    /// The same, and who was there a moment ago may be back in another.
    Later,
    /// Its session had ended: the same endpoint may do, in a new one.
    Again,
    /// The same, and nothing was sent on it.
    Retired,
    No,
}

async fn attempt(
    worker: &Arc<Worker>,
    dispatch: &Dispatch,
    endpoint: &Arc<Endpoint>,
    load: &mut Attempt,
    record: &mut Record,
) -> Result<(Relayed, Option<Place>), (Refusal, Retry)> {
    if endpoint.identity.is_none() {
        record.entry.path_kind = "direct";
        return plain(worker, endpoint, load).await.map(|stream| (Relayed::App(stream), None));
    }
    let place = match place(worker, dispatch, endpoint).await {
        Ok(place) => place,
        Err(failure) => {
            let blame = failure.blames(&dispatch.snapshot.site, endpoint);
            load.not_opened(blame);
            if failure.is_worth_probation(blame) {
                probation::start(worker, endpoint);
            }
            let text = format!("service {}, endpoint {}: {failure}", dispatch.service, endpoint.id);
            let retry = match blame {
                Blame::Nobody => Retry::Elsewhere,
                Blame::Endpoint | Blame::Path if failure.is_absence() => Retry::Later,
                Blame::Endpoint | Blame::Path => Retry::Nobody,
            };
            return Err((Refusal::new(failure.reason(), text), retry));
        }
    };
    record.entry.path_kind = place.path_kind;
    record.entry.peer = Some(place.peer.id.clone());
    record.entry.connection = Some(place.connection.clone());
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(&place)).await;
    load.answered();
    let named = |what: &dyn std::fmt::Display| {
        format!("service {}, endpoint {}: {what}", dispatch.service, endpoint.id)
    };
    match connected {
        Ok(Ok(stream)) => Ok((Relayed::Mesh(stream), Some(place))),
        Ok(Err(NotConnected::Refused(reason))) => {
            let retry = match reason {
                Reason::AppUnreachable | Reason::Draining => Retry::Nobody,
                _ if reason.http_status() == 403 => Retry::No,
                _ => Retry::Elsewhere,
            };
            match retry {
                Retry::Nobody | Retry::Later => load.unreachable(),
                Retry::Elsewhere | Retry::Again | Retry::Retired => load.blame(),
                Retry::No => {}
            }
            let text = named(&format_args!("refused: {reason}"));
            Err((Refusal::new(reason, text), retry))
        }
        Ok(Err(NotConnected::Broken(error))) => {
            let retry = match error {
                ExchangeError::NotProcessed(_) => Retry::Again,
                ExchangeError::Retired => Retry::Retired,
                _ => {
                    load.blame();
                    Retry::Elsewhere
                }
            };
            Err((Refusal::new(Reason::UpstreamReset, named(&error)), retry))
        }
        Err(_) => {
            load.blame();
            Err((Refusal::new(Reason::Timeout, named(&"no answer")), Retry::Elsewhere))
        }
    }
}

/// An application without a proxy is dialled itself.
async fn plain(
    worker: &Arc<Worker>,
    endpoint: &Arc<Endpoint>,
    load: &mut Attempt,
) -> Result<Stream, (Refusal, Retry)> {
    let connected = worker.apps.connect(endpoint.target, Spoken::Tcp).await;
    load.answered();
    connected.map_err(|error| {
        load.unreachable();
        probation::start(worker, endpoint);
        let Endpoint { service, id, target, .. } = &**endpoint;
        let text =
            format!("service {service}, endpoint {id}: the application at {target}: {error}");
        (Refusal::new(origin::reason(&error), text), Retry::Nobody)
    })
}

/// Why a stream did not become a connection.
enum NotConnected {
    /// The far proxy says so.
    Refused(Reason),
    /// It says nothing.
    Broken(ExchangeError),
}

impl<E: Into<ExchangeError>> From<E> for NotConnected {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

/// Opens a stream for bytes and waits until the far proxy has its application.
async fn connect(session: &Session) -> Result<Pipe, NotConnected> {
    let mut stream = session.mux.open(session.target(Spoken::Tcp), &[], false)?;
    let Some(Received::Head(coded)) = stream.recv().await? else {
        let text = "an answer without a head".to_owned();
        return Err(NotConnected::Broken(ExchangeError::Broken { text, lost: false }));
    };
    let mut head = ResponseHead::new();
    if let Err(error) = codec::get_response(&coded, &mut head) {
        let text = error.to_string();
        return Err(NotConnected::Broken(ExchangeError::Broken { text, lost: false }));
    }
    match head.fields.get(headers::ERROR.as_str()) {
        None if head.status == StatusCode::OK => Ok(stream.into_pipe()),
        code => Err(NotConnected::Refused(reason_of(code.unwrap_or_default(), head.status))),
    }
}

/// Opens a stream for bytes and gives it up.
///
/// # Errors
///
/// What the far proxy says, or nothing if it says nothing.
pub async fn try_connect(session: &Session) -> Result<(), Option<Reason>> {
    match connect(session).await {
        Ok(_stream) => Ok(()),
        Err(NotConnected::Refused(reason)) => Err(Some(reason)),
        Err(NotConnected::Broken(_)) => Err(None),
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
    Ok(Arc::new(opened.await?))
}

/// Copies until both have ended, or the drain's patience has.
pub async fn run(worker: &Worker, client: impl Duplex, opened: Opened, record: Record) {
    run_until(worker, client, opened, record, std::future::pending()).await;
}

/// The same, at most until there is a reason to cut it.
pub async fn run_until(
    worker: &Worker,
    mut client: impl Duplex,
    mut opened: Opened,
    mut record: Record,
    cut: impl Future<Output = Reason>,
) {
    let mut copied = Copied::counted_in(record.opened());
    let patience = async {
        worker.shared.drain.draining().await;
        tokio::time::sleep(worker.shared.config.opaque_drain_timeout).await;
    };
    let copying = async {
        match &mut opened.stream {
            Relayed::Mesh(stream) => copy(&mut client, stream, &mut copied).await,
            Relayed::App(stream) => copy(&mut client, stream, &mut copied).await,
        }
    };
    let ended = tokio::select! {
        result = copying => result.map_err(|_| Reason::UpstreamReset),
        reason = cut => Err(reason),
        () = patience => {
            worker.shared.metrics.cut_by_stop(record.entry.direction);
            Err(Reason::UpstreamReset)
        }
        () = worker.shared.drain.stopping() => Err(Reason::UpstreamReset),
    };
    if let Err(reason) = ended {
        client.reset();
        opened.stream.reset();
        record.failed(reason);
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
