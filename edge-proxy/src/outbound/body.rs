//! Bodies on their way through.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::{
    answer::{AnswerBody, AnswerError, GRPC_STATUS, Used, grpc_code},
    front::http1::Conn,
};
use crate::{
    http1::ConnError,
    http2::unsent::{Piece, Unsent},
    record::Record,
};

/// A request's body as its client sends it.
#[derive(Debug)]
pub enum ClientBody {
    /// There is none.
    None,
    /// There is none either, but bytes of another protocol will follow if the
    /// application agrees.
    Offer,
    /// On a connection that carries one request at a time.
    Http1(Conn),
    /// On a stream of HTTP/2.
    Http2(Incoming),
}

/// The client has not sent all of its request.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Over HTTP/1.
    #[error(transparent)]
    Http1(#[from] ConnError),
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl ClientBody {
    /// Bytes that it is known to have.
    fn length(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Offer => None,
            Self::Http1(conn) => conn.lock().body_length(),
            Self::Http2(body) if body.is_end_stream() => Some(0),
            Self::Http2(body) => body.size_hint().exact(),
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::None => Poll::Ready(None),
            Self::Offer => Poll::Pending,
            Self::Http1(conn) => conn.lock().poll_frame(cx),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Http2),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::None => true,
            Self::Offer => false,
            Self::Http1(conn) => conn.lock().is_body_over(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }
}

/// A request's body that can be sent again as long as it is short.
#[derive(Debug)]
pub struct ReplayBody {
    incoming: ClientBody,
    /// What is kept at most.
    limit: usize,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// The next of `kept` to be sent again.
    next: usize,
    replayable: bool,
    /// Made when the first bytes are counted by somebody.
    received: Option<Arc<AtomicU64>>,
}

impl ReplayBody {
    /// Nothing has been read yet; up to `limit` bytes are kept.
    pub fn new(incoming: ClientBody, limit: usize) -> Self {
        let kept = Vec::new();
        Self { incoming, limit, kept, kept_bytes: 0, next: 0, replayable: true, received: None }
    }

    /// Whether it stands for bytes of another protocol.
    pub fn is_offer(&self) -> bool {
        matches!(self.incoming, ClientBody::Offer)
    }

    /// The same body for somebody else, once all of it has come; `None` if it
    /// is not known to be short enough to be kept.
    pub async fn copy(&mut self) -> Option<Self> {
        if self.incoming.length()? > self.limit as u64 {
            return None;
        }
        while let Some(frame) = self.frame().await {
            frame.ok()?;
        }
        self.rewind().then(|| Self {
            incoming: ClientBody::None,
            limit: self.limit,
            kept: self.kept.clone(),
            kept_bytes: self.kept_bytes,
            next: 0,
            replayable: true,
            received: None,
        })
    }

    /// Counts the bytes that come from the client.
    pub fn received(&mut self) -> Arc<AtomicU64> {
        self.received.get_or_insert_default().clone()
    }

    /// Whether all that was sent has been kept.
    pub fn is_replayable(&self) -> bool {
        self.replayable
    }

    /// Begins again, if all that was sent has been kept.
    pub fn rewind(&mut self) -> bool {
        self.next = 0;
        self.replayable
    }

    fn keep(&mut self, data: &Bytes) {
        self.kept_bytes += data.len();
        if self.replayable && self.kept_bytes <= self.limit {
            self.kept.push(data.clone());
            self.next = self.kept.len();
        } else {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        self.replayable = false;
        self.kept = Vec::new();
        self.next = 0;
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.kept.get(self.next).cloned() {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            match frame.data_ref() {
                Some(data) => {
                    if let Some(received) = &self.received {
                        received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    }
                    self.keep(data);
                }
                None => self.give_up(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.next >= self.kept.len() && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.incoming.length() {
            Some(left) => {
                let again: usize = self.kept.iter().skip(self.next).map(Bytes::len).sum();
                SizeHint::with_exact(left + again as u64)
            }
            None => SizeHint::default(),
        }
    }
}

/// A response's body towards a client of HTTP/2. What is told of the request
/// is told when it has ended or the client has gone.
#[derive(Debug)]
pub struct OutBody {
    source: Source,
    record: Option<Record>,
    received: Option<Arc<AtomicU64>>,
    deadline: Option<Pin<Box<Sleep>>>,
    used: Option<Used>,
}

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Stream(AnswerBody, Unsent),
}

impl OutBody {
    /// A body of ours.
    pub fn whole(data: Bytes, record: Record) -> Self {
        let mut body = Self::of(Source::Whole(data));
        body.record = Some(record);
        body
    }

    /// A body that is told of elsewhere.
    pub fn empty() -> Self {
        Self::of(Source::Whole(Bytes::new()))
    }

    /// A body from an application; holds what it occupies until it has ended,
    /// or until the deadline breaks it off.
    pub fn stream(
        (body, unsent): (AnswerBody, Unsent),
        record: Record,
        received: Option<Arc<AtomicU64>>,
        used: Used,
        deadline: Option<Instant>,
    ) -> Self {
        let mut body = Self::of(Source::Stream(body, unsent));
        body.record = Some(record);
        body.received = received;
        body.deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        body.used = Some(used);
        body
    }

    fn of(source: Source) -> Self {
        Self { source, record: None, received: None, deadline: None, used: None }
    }

    /// The next frame, unless the deadline comes first.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, AnswerError>>> {
        match &mut self.source {
            Source::Whole(data) if data.is_empty() => Poll::Ready(None),
            Source::Whole(data) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data).into())))),
            Source::Stream(body, unsent) => {
                let polled = match unsent.poll_room(cx) {
                    Poll::Ready(room) => Pin::new(body)
                        .poll_frame(cx)
                        .map_ok(|frame| frame.map_data(|data| Piece::new(data, room))),
                    Poll::Pending => Poll::Pending,
                };
                let late = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(cx).is_ready();
                if polled.is_pending() && self.deadline.as_mut().is_some_and(late) {
                    return Poll::Ready(Some(Err(AnswerError::late())));
                }
                polled
            }
        }
    }
}

impl Body for OutBody {
    type Data = Piece;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, AnswerError>>> {
        let this = &mut *self;
        let frame = ready!(this.poll_source(cx));
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                    let said = frame.trailers_ref().and_then(|map| map.get(GRPC_STATUS));
                    if let (Some(said), Some(used)) = (said, &mut this.used) {
                        used.read_trailers(grpc_code(said.as_bytes()), record);
                    }
                }
                // We have ended it ourselves: the deadline.
                Some(Err(AnswerError::Late(_))) => record.failed(mesh_core::Reason::Timeout),
                Some(Err(_)) => record.failed(mesh_core::Reason::UpstreamReset),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(data) => data.is_empty(),
            Source::Stream(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Source::Stream(body, _) => body.size_hint(),
        }
    }
}

impl Drop for OutBody {
    fn drop(&mut self) {
        if let (Some(record), Some(received)) = (&mut self.record, &self.received) {
            record.entry.received = received.load(Ordering::Relaxed);
        }
    }
}
