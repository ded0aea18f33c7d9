//! Clients that send many requests at once.

use std::{
    convert::Infallible,
    error::Error as _,
    future::{Future, poll_fn},
    io,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use http::{Method, Request, Response};
use hyper::{
    body::Incoming, rt::Executor, server::conn::http2, service::service_fn, upgrade::Upgraded,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{Reason, carriage::Carriage, message::ResponseHead, route::Destination};
use mesh_runtime::drain::Drain;
use mesh_tunnel::Stream;
use tokio::time::Instant;

use super::{Toward, inside, may_begin};
use crate::{
    gate::lane::Lane,
    http2::{
        CONNECTION_WINDOW, MAX_HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW, held::Held,
        unsent::Unsent, watched::Watched,
    },
    outbound::{
        attempts::Early,
        body::{ClientBody, OutBody},
        opaque, port,
        request::{Client, Forwarded, Outcome},
    },
    prefixed::UpgradedIo,
    record::{Came, Record},
    refusal::Refusal,
    scratch::Scratch,
    worker::Worker,
};

/// A client that is silent this long with streams open is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Serves a connection that speaks HTTP/2, until it ends.
pub async fn serve(worker: &Arc<Worker>, toward: Toward, client: IpAddr, stream: Stream) {
    let drain = worker.shared.drain.clone();
    let patience = worker.shared.config.drain_timeout;
    let lane = Arc::new(Lane::default());
    let caller = Caller { toward, address: client, unsent: Unsent::default(), lane: lane.clone() };
    // Boxed: hyper moves it more than once.
    let service = service_fn(|request| {
        Box::pin(in_turn(worker.clone(), caller.clone(), caller.lane.since(), request))
    });
    let stream = Held::new(Watched::new(stream), worker.gate.clone(), lane.clone());
    let connection = server(&drain).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = serving(&lane, connection.as_mut()) => ended,
        () = drain.closing() => {
            connection.as_mut().graceful_shutdown();
            let late = async {
                drain.draining().await;
                tokio::time::sleep(patience).await;
            };
            tokio::select! {
                ended = serving(&lane, connection) => ended,
                () = late => {
                    worker.shared.metrics.cut_by_stop(caller.toward.direction());
                    Ok(())
                }
                () = drain.stopping() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        if let Some(reason) = why_cut(&error) {
            worker.shared.metrics.connection_cut(caller.toward.direction(), reason);
        }
        log::debug!(error:% = error; "client connection ended");
    }
}

/// Drives a connection; each time, what has come is looked at once.
async fn serving<F: Future>(lane: &Lane, mut connection: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| {
        lane.begin();
        connection.as_mut().poll(cx)
    })
    .await
}

/// Whose connection it is.
#[derive(Debug, Clone)]
struct Caller {
    toward: Toward,
    address: IpAddr,
    /// Of all answers.
    unsent: Unsent,
    /// Of its requests.
    lane: Arc<Lane>,
}

/// Why we have ended a connection, if we have: frames that cost nothing,
/// streams and headers that cost too much, or frames out of place.
fn why_cut(error: &hyper::Error) -> Option<&'static str> {
    let error = error.source()?;
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return (error.kind() == io::ErrorKind::QuotaExceeded).then_some("idle_frames");
    }
    let error = error.downcast_ref::<h2::Error>().filter(|error| error.is_library())?;
    Some(match error.reason() {
        Some(h2::Reason::ENHANCE_YOUR_CALM) => "too_much",
        _ => "protocol_error",
    })
}

fn server(drain: &Drain) -> http2::Builder<OnDrain> {
    let mut builder = http2::Builder::new(OnDrain(drain.clone()));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_TIMEOUT)
        .keep_alive_timeout(PING_TIMEOUT)
        // The application's own date passes.
        .auto_date_header(false);
    builder
}

/// hyper's tasks belong to the drain like all others.
#[derive(Debug, Clone)]
struct OnDrain(Drain);

impl<F> Executor<F> for OnDrain
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

/// Waits for the turn of a request, and answers it in any case.
async fn in_turn(
    worker: Arc<Worker>,
    caller: Caller,
    since: Option<Instant>,
    request: Request<Incoming>,
) -> Result<Response<OutBody>, Infallible> {
    let came = since.map_or_else(Came::now, Came::at);
    let turn = match *request.method() {
        Method::CONNECT => Ok(()),
        _ => worker.gate.enter(Some(&caller.lane), came.at).await,
    };
    // Boxed: who waits does not keep room for it.
    Box::pin(answer(worker, caller, came, turn, request)).await
}

/// Answers one request, or says why it does not have its turn.
async fn answer(
    worker: Arc<Worker>,
    caller: Caller,
    came: Came,
    turn: Result<(), Refusal>,
    request: Request<Incoming>,
) -> Result<Response<OutBody>, Infallible> {
    let mut record = Record::since(came, &worker, caller.toward.direction(), "http2");
    record.entry.client = Some(caller.address);
    let mut scratch = worker.scratch.take();
    let response = try_answer(&worker, &caller, turn, request, &mut scratch, record).await;
    worker.scratch.give(scratch);
    Ok(response)
}

async fn try_answer(
    worker: &Arc<Worker>,
    caller: &Caller,
    turn: Result<(), Refusal>,
    mut request: Request<Incoming>,
    scratch: &mut Scratch,
    mut record: Record,
) -> Response<OutBody> {
    let Caller { toward, unsent, .. } = caller;
    let upgrade = (*request.method() == Method::CONNECT).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    if let Err(error) = scratch.head.read_parts(&parts) {
        return refused(
            toward,
            &Refusal::new(Reason::BadRequest, error.to_string()),
            false,
            record,
        );
    }
    drop(parts);
    record.asks(&mut scratch.head);
    let grpc = scratch.head.is_grpc();
    let destination = match toward.destination(worker, &mut scratch.head) {
        Ok(destination) => destination,
        Err(refusal) => return refused(toward, &refusal, grpc, record),
    };
    if let Some(upgrade) = upgrade {
        if let Err(refusal) = toward.may_connect() {
            return refused(toward, &refusal, grpc, record);
        }
        return connect(worker, caller, destination, upgrade, record).await;
    }
    if let Err(refusal) = may_begin(worker, &destination, turn, &mut record) {
        return refused(toward, &refusal, grpc, record);
    }
    let speaks = Client { http2: true, upgrade: false, early: Early::Nobody, forwarded: None };
    let body = ClientBody::Http2(body);
    let outcome = toward.carry(worker, &destination, scratch, body, speaks, &mut record).await;
    match outcome {
        Ok(Outcome::Forwarded(forwarded)) => {
            forward(worker, *forwarded, &scratch.answer, unsent.clone(), record)
        }
        Ok(Outcome::Answered(response)) => {
            record.answered(response.status());
            response.map(|text| OutBody::whole(text, record))
        }
        Err(refusal) => refused(toward, &refusal, grpc, record),
    }
}

fn forward(
    worker: &Worker,
    forwarded: Forwarded,
    head: &ResponseHead,
    unsent: Unsent,
    mut record: Record,
) -> Response<OutBody> {
    let Forwarded { mut answer, deadline, received } = forwarded;
    record.answered(head.status);
    record.says(&head.fields);
    answer.drive_on(worker);
    let body = OutBody::stream((answer.body, unsent), record, received, answer.used, deadline);
    head.to_response().map(|()| body)
}

/// The response that tells a client of a refusal.
fn refused(
    toward: &Toward,
    refusal: &Refusal,
    grpc: bool,
    mut record: Record,
) -> Response<OutBody> {
    record.refused(refusal, grpc);
    record.entry.status = refusal.status.as_u16();
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    toward.told(refusal, grpc).map(|text| OutBody::whole(text, record))
}

/// CONNECT: a byte stream to the named port. For a port that speaks HTTP the
/// requests inside are carried one by one.
async fn connect(
    worker: &Arc<Worker>,
    caller: &Caller,
    destination: Destination,
    upgrade: hyper::upgrade::OnUpgrade,
    mut record: Record,
) -> Response<OutBody> {
    let opened = match port::carriage(worker, &destination).await {
        Carriage::Opaque => {
            record.entry.protocol = "tcp";
            match opaque::open(worker, &destination, &mut record).await {
                Ok(opened) => Some(opened),
                Err(refusal) => return refused(&caller.toward, &refusal, false, record),
            }
        }
        _ => None,
    };
    let (worker, client) = (worker.clone(), caller.address);
    worker.shared.drain.clone().spawn(async move {
        let stream = match upgrade.await {
            Ok(upgraded) => as_stream(upgraded),
            Err(error) => return log::debug!(error:% = error; "client left after CONNECT"),
        };
        match opened {
            Some(opened) => opaque::run(&worker, stream, opened, record).await,
            None => inside(worker, destination, client, stream).await,
        }
    });
    Response::new(OutBody::empty())
}

fn as_stream(upgraded: Upgraded) -> Stream {
    Box::new(UpgradedIo(TokioIo::new(upgraded)))
}
