//! Clients that send one request after the other.
//!
//! - [`delivery`]: an answer's body on its way to them.

mod delivery;

use std::{
    future::poll_fn,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body::{Body as _, Frame};
use mesh_core::{
    Reason,
    carriage::Carriage,
    message::{ResponseHead, hop},
    route::Destination,
};
use mesh_runtime::clock;
use mesh_tunnel::Stream;

use super::{
    HEAD_TIMEOUT, Toward,
    ending::{Ending, Patience},
    inside, may_begin, with_read,
};
use crate::{
    http1::{BadMessage, Body, ConnError, Limits, Peer, Request, ServerConn},
    outbound::{
        answer::AnswerError,
        attempts::Early,
        body::{BodyError, ClientBody},
        opaque::{self, Opened},
        port,
        request::{Client, Forwarded, Outcome},
    },
    record::{Came, Record},
    refusal::Refusal,
    scratch::Scratch,
    worker::Worker,
};
use delivery::{Broken, Delivery};

/// A client's connection, in the hands of the request that it carries and of
/// that request's body. Never contended: one task has both.
#[derive(Debug, Clone)]
pub struct Conn(Arc<Mutex<Carrier>>);

/// The connection, and what its request's body has told.
#[derive(Debug)]
pub struct Carrier {
    server: ServerConn,
    /// Trailers have been handed on.
    trailed: bool,
}

impl Conn {
    /// A connection on which nothing has been read.
    pub fn new(worker: &Worker, stream: Stream) -> Self {
        let server = ServerConn::new(stream, Limits::default(), worker.buffers.clone());
        Self(Arc::new(Mutex::new(Carrier { server, trailed: false })))
    }

    /// The connection; never held across a wait, or while a body is polled.
    pub fn lock(&self) -> MutexGuard<'_, Carrier> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn into_server(self) -> Option<ServerConn> {
        let carrier = Arc::into_inner(self.0)?;
        Some(carrier.into_inner().unwrap_or_else(PoisonError::into_inner).server)
    }

    /// The stream, with what was read of it; `None` while a body holds it.
    pub fn into_stream(self) -> Option<Stream> {
        let (stream, read) = self.into_server()?.into_tunnel();
        Some(with_read(stream, read))
    }

    /// Waits until the client is gone, once it has sent all of its request.
    /// One that has only ended its direction still reads.
    async fn gone(&self) {
        poll_fn(|cx| {
            let mut carrier = self.lock();
            match carrier.is_body_over()
                && matches!(carrier.server.poll_peer(cx), Poll::Ready(Peer::Gone(_)))
            {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

impl Carrier {
    /// Whether `preface` comes instead of a request.
    pub fn poll_begins_with(
        &mut self,
        cx: &mut Context<'_>,
        preface: &[u8],
    ) -> Poll<std::io::Result<bool>> {
        self.server.poll_begins_with(cx, preface)
    }

    /// Bytes of the body to come, if its head has said so.
    pub fn body_length(&self) -> Option<u64> {
        self.server.body_length()
    }

    /// Whether all of the body, trailers included, was taken.
    pub fn is_body_over(&self) -> bool {
        self.server.is_body_end() && (self.trailed || !self.server.has_trailers())
    }

    /// The next piece of the body.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let data = match self.server.poll_data(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(data)) => data.map(Bytes::copy_from_slice),
            Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
        };
        if let Some(data) = data {
            self.server.consume(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        self.trailed = true;
        let trailers = self.server.take_trailers().map(|mut fields| {
            hop::remove_from_trailers(&mut fields);
            let mut map = http::HeaderMap::new();
            fields.write_map(&mut map);
            Ok(Frame::trailers(map))
        });
        Poll::Ready(trailers)
    }

    /// Sends a head before the head. What cannot be written at once goes with
    /// the answer.
    pub fn tell(&mut self, head: &ResponseHead, cx: &mut Context<'_>) {
        self.server.send_informational(head);
        // An error shows when the answer is written.
        let _flushed = self.server.poll_flush(cx);
    }
}

/// What comes after a request.
enum After {
    /// Another one, if the connection allows.
    Next,
    /// The end; what was sent can be read.
    Close,
    /// The end; what was sent is not whole, and the client sees that.
    Abort,
    /// Bytes, both ways.
    Bytes(Box<(Opened, Record)>),
    /// Requests inside a CONNECT.
    Inside(Destination),
}

/// Serves a connection that speaks HTTP/1, until it ends.
pub async fn serve(worker: &Arc<Worker>, toward: &Toward, client: IpAddr, conn: Conn) {
    let mut ending = Ending::new(&worker.shared.drain, worker.shared.config.drain_timeout);
    let after = tokio::select! {
        biased;
        () = poll_fn(|cx| ending.poll(cx)) => {
            return worker.shared.metrics.cut_by_stop(toward.direction());
        }
        after = requests(worker, toward, client, &conn) => after,
    };
    drop(ending);
    let Some(mut server) = conn.into_server() else { return };
    match after {
        After::Next | After::Close => server.close().await,
        After::Abort => server.abort(),
        After::Bytes(_) | After::Inside(_) if server.flush().await.is_err() => {}
        After::Bytes(opened) => {
            let (stream, read) = server.into_tunnel();
            let (opened, record) = *opened;
            opaque::run(worker, with_read(stream, read), opened, record).await;
        }
        After::Inside(destination) => {
            let (stream, read) = server.into_tunnel();
            inside(worker.clone(), destination, client, with_read(stream, read)).await;
        }
    }
}

/// One request after the other, up to one that is the last.
async fn requests(worker: &Arc<Worker>, toward: &Toward, client: IpAddr, conn: &Conn) -> After {
    let mut patience = Patience::new(HEAD_TIMEOUT);
    loop {
        let (request, mut scratch) = match next(worker, toward, conn, &mut patience).await {
            Next::Request(request, scratch) => (request, scratch),
            Next::Bad(bad) => return refuse_bad(worker, toward, client, conn, bad),
            Next::None => return After::Close,
            Next::Gone => return After::Abort,
        };
        let came = Came::now();
        let turn = turn(worker, conn, came, &scratch.head.method).await;
        // Boxed: a connection that is idle or waits does not keep room for it.
        let exchange = Exchange { worker, toward, client, conn };
        let after = Box::pin(exchange.answer(&request, &mut scratch, came, turn)).await;
        worker.scratch.give(scratch);
        if !matches!(after, After::Next) {
            return after;
        }
    }
}

/// Waits for the turn of a request; `None` if its client has gone.
async fn turn(
    worker: &Worker,
    conn: &Conn,
    came: Came,
    method: &Method,
) -> Option<Result<(), Refusal>> {
    if *method == Method::CONNECT {
        return Some(Ok(()));
    }
    tokio::select! {
        biased;
        turn = worker.gate.enter(None, came.at) => Some(turn),
        () = conn.gone() => None,
    }
}

/// What comes on a connection that waits.
enum Next {
    Request(Request, Box<Scratch>),
    Bad(BadMessage),
    None,
    Gone,
}

/// The next request. While there is none, the connection holds no memory but
/// its own.
async fn next(worker: &Worker, toward: &Toward, conn: &Conn, patience: &mut Patience) -> Next {
    let since = clock::monotonic();
    let drain = &worker.shared.drain;
    poll_fn(|cx| {
        let mut carrier = conn.lock();
        let mut scratch = worker.scratch.take();
        match carrier.server.poll_request(cx, &mut scratch.head) {
            Poll::Ready(Ok(Some(request))) => {
                carrier.trailed = false;
                return Poll::Ready(Next::Request(request, scratch));
            }
            Poll::Ready(Ok(None)) => return Poll::Ready(Next::None),
            Poll::Ready(Err(ConnError::Bad(bad))) => return Poll::Ready(Next::Bad(bad)),
            Poll::Ready(Err(error)) => {
                log::debug!(error:% = error; "client connection ended");
                return Poll::Ready(Next::Gone);
            }
            Poll::Pending => worker.scratch.give(scratch),
        }
        if drain.is_draining() && carrier.server.is_idle() {
            return Poll::Ready(Next::None);
        }
        patience.poll(cx, since).map(|()| {
            if !carrier.server.is_idle() {
                worker.shared.metrics.connection_cut(toward.direction(), "slow_head");
            }
            Next::None
        })
    })
    .await
}

/// Answers what is no request: whoever sent it may have meant one.
fn refuse_bad(
    worker: &Arc<Worker>,
    toward: &Toward,
    client: IpAddr,
    conn: &Conn,
    bad: BadMessage,
) -> After {
    let mut record = Record::new(worker, toward.direction(), "http1");
    record.entry.client = Some(client);
    if bad == BadMessage::Truncated {
        record.failed(Reason::BadRequest);
        return After::Abort;
    }
    let refusal = Refusal::new(Reason::BadRequest, bad.to_string());
    refuse(toward, conn, &refusal.with_status(bad.status(), 13), false, &mut record);
    After::Close
}

/// Sends a refusal; more requests may follow.
fn refuse(toward: &Toward, conn: &Conn, refusal: &Refusal, grpc: bool, record: &mut Record) {
    log::debug!(reason = refusal.reason.code(); "{}", refusal.text);
    record.refused(refusal, grpc);
    if refusal.reason == Reason::Draining {
        conn.lock().server.close_after();
    }
    whole(conn, toward.told(refusal, grpc), record);
}

/// Sends an answer of ours; the client may still read what was before.
fn whole(conn: &Conn, response: Response<Bytes>, record: &mut Record) {
    let (parts, text) = response.into_parts();
    let mut head = ResponseHead::new();
    head.read_parts(&parts);
    let mut carrier = conn.lock();
    carrier.server.send_head(&head, Body::Length(text.len() as u64));
    record.entry.status = head.status.as_u16();
    let mut never = Context::from_waker(std::task::Waker::noop());
    // A few bytes: there is room for them, as an answer ends before the next.
    if let Poll::Ready(Ok(sent)) = carrier.server.poll_send(&mut never, &text) {
        record.entry.sent += sent as u64;
    }
    let _whole = carrier.server.finish(None);
}

/// One request on its way.
struct Exchange<'a> {
    worker: &'a Arc<Worker>,
    toward: &'a Toward,
    client: IpAddr,
    conn: &'a Conn,
}

impl Exchange<'_> {
    /// Answers one request in any case.
    async fn answer(
        self,
        request: &Request,
        scratch: &mut Scratch,
        came: Came,
        turn: Option<Result<(), Refusal>>,
    ) -> After {
        let mut record = Record::since(came, self.worker, self.toward.direction(), "http1");
        record.entry.client = Some(self.client);
        record.asks(&mut scratch.head);
        let Some(turn) = turn else { return After::Abort };
        let grpc = scratch.head.is_grpc();
        let destination = match self.toward.destination(self.worker, &mut scratch.head) {
            Ok(destination) => destination,
            Err(refusal) => {
                refuse(self.toward, self.conn, &refusal, grpc, &mut record);
                return After::Next;
            }
        };
        if scratch.head.method == Method::CONNECT {
            return match self.toward.may_connect() {
                Ok(()) => self.connect(destination, record).await,
                Err(refusal) => {
                    refuse(self.toward, self.conn, &refusal, grpc, &mut record);
                    After::Next
                }
            };
        }
        if let Err(refusal) = may_begin(self.worker, &destination, turn, &mut record) {
            refuse(self.toward, self.conn, &refusal, grpc, &mut record);
            return After::Next;
        }
        let upgrade = request.upgrade && hop::offers_tunnel(&scratch.head.fields);
        let client =
            Client { http2: false, upgrade, early: Early::Client(self.conn), forwarded: None };
        let body = match upgrade {
            true => ClientBody::Offer,
            false if request.body.is_empty() => ClientBody::None,
            false => ClientBody::Http1(self.conn.clone()),
        };
        let carrying =
            self.toward.carry(self.worker, &destination, scratch, body, client, &mut record);
        let outcome = tokio::select! {
            biased;
            outcome = carrying => outcome,
            () = self.conn.gone() => return After::Abort,
        };
        match outcome {
            Ok(Outcome::Forwarded(forwarded)) => {
                self.deliver(*forwarded, &scratch.answer, record).await
            }
            Ok(Outcome::Answered(response)) => {
                record.answered(response.status());
                whole(self.conn, response, &mut record);
                After::Next
            }
            Err(refusal) => {
                refuse(self.toward, self.conn, &refusal, grpc, &mut record);
                After::Next
            }
        }
    }

    /// CONNECT: a byte stream to the named port. For a port that speaks HTTP
    /// the requests inside are carried one by one.
    async fn connect(&self, destination: Destination, mut record: Record) -> After {
        if port::carriage(self.worker, &destination).await != Carriage::Opaque {
            self.conn.lock().server.send_head(&ResponseHead::new(), Body::Tunnel);
            return After::Inside(destination);
        }
        record.entry.protocol = "tcp";
        match opaque::open(self.worker, &destination, &mut record).await {
            Ok(opened) => {
                self.conn.lock().server.send_head(&ResponseHead::new(), Body::Tunnel);
                After::Bytes(Box::new((opened, record)))
            }
            Err(refusal) => {
                refuse(self.toward, self.conn, &refusal, false, &mut record);
                After::Next
            }
        }
    }

    /// Sends an application's answer on.
    async fn deliver(
        &self,
        forwarded: Forwarded,
        head: &ResponseHead,
        mut record: Record,
    ) -> After {
        let Forwarded { answer, deadline, received } = forwarded;
        record.answered(head.status);
        record.says(&head.fields);
        let has_body = !answer.body.is_end_stream();
        {
            let mut carrier = self.conn.lock();
            if self.worker.shared.drain.is_closing() {
                carrier.server.close_after();
            }
            carrier.server.send_head(head, Body::of(&head.fields, has_body));
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(opened) = answer.into_opened() else { return After::Abort };
            return After::Bytes(Box::new((opened, record)));
        }
        let mut delivery = Delivery::new(self.conn, answer, &mut record);
        let delivered = poll_fn(|cx| delivery.poll(cx));
        let delivered = match deadline {
            None => delivered.await,
            Some(deadline) => tokio::time::timeout_at(deadline, delivered)
                .await
                .unwrap_or(Err(Broken::Answer(AnswerError::late()))),
        };
        drop(delivery);
        if let Some(received) = received {
            record.entry.received = received.load(Ordering::Relaxed);
        }
        match delivered {
            Ok(()) => return After::Next,
            Err(Broken::Client) => {}
            Err(Broken::Answer(AnswerError::Late(_))) => record.failed(Reason::Timeout),
            Err(Broken::Answer(_)) => record.failed(Reason::UpstreamReset),
        }
        After::Abort
    }
}
