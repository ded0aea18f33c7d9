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

use super::{loads::Attempt, pool::Place, protect::InFlight};
use crate::{
    inner::{mux::StreamError, request::RecvBody},
    record::Record,
};

/// A request's body that can be sent again as long as it is short.
#[derive(Debug)]
pub struct ReplayBody {
    /// `None` for a copy: all of it is kept.
    incoming: Option<Incoming>,
    /// What is kept at most.
    limit: usize,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// The next of `kept` to be sent again.
    next: usize,
    replayable: bool,
    received: Arc<AtomicU64>,
}

impl ReplayBody {
    /// Nothing has been read yet; up to `limit` bytes are kept.
    pub fn new(incoming: Incoming, limit: usize) -> Self {
        let (kept, received) = (Vec::new(), Arc::default());
        let incoming = Some(incoming);
        Self { incoming, limit, kept, kept_bytes: 0, next: 0, replayable: true, received }
    }

    /// The same body for somebody else, once all of it has come; `None` if it
    /// is not known to be short enough to be kept.
    pub async fn copy(&mut self) -> Option<Self> {
        let left = self.incoming.as_ref().map_or(Some(0), |body| match body.is_end_stream() {
            true => Some(0),
            false => body.size_hint().exact(),
        })?;
        if left > self.limit as u64 {
            return None;
        }
        while let Some(frame) = self.frame().await {
            frame.ok()?;
        }
        self.rewind().then(|| Self {
            incoming: None,
            limit: self.limit,
            kept: self.kept.clone(),
            kept_bytes: self.kept_bytes,
            next: 0,
            replayable: true,
            received: Arc::default(),
        })
    }

    /// Counts the bytes that came from the client.
    pub fn received(&self) -> Arc<AtomicU64> {
        self.received.clone()
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
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(data) = self.kept.get(self.next).cloned() {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            match frame.data_ref() {
                Some(data) => {
                    self.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    self.keep(data);
                }
                None => self.give_up(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.next >= self.kept.len() && self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A response's body towards a client. What is told of the request is told
/// when it has ended or the client has gone.
#[derive(Debug)]
pub struct OutBody {
    source: Source,
    record: Option<Record>,
    received: Option<Arc<AtomicU64>>,
    deadline: Option<Pin<Box<Sleep>>>,
    _used: Option<Used>,
}

/// What an answer occupies until its body has ended.
#[derive(Debug)]
pub struct Used {
    /// The endpoint's load.
    pub attempt: Attempt,
    /// A place on a session.
    pub place: Place,
    /// A request of the service.
    pub in_flight: InFlight,
}

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Stream(RecvBody),
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

    /// A body from the mesh; holds what it occupies until it has ended, or
    /// until the deadline breaks it off.
    pub fn stream(
        body: RecvBody,
        record: Record,
        received: Option<Arc<AtomicU64>>,
        used: Used,
        deadline: Option<Instant>,
    ) -> Self {
        let mut body = Self::of(Source::Stream(body));
        body.record = Some(record);
        body.received = received;
        body.deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        body._used = Some(used);
        body
    }

    fn of(source: Source) -> Self {
        Self { source, record: None, received: None, deadline: None, _used: None }
    }

    /// The next frame, unless the deadline comes first.
    fn poll_source(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        match &mut self.source {
            Source::Whole(data) if data.is_empty() => Poll::Ready(None),
            Source::Whole(data) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(data))))),
            Source::Stream(body) => {
                let polled = Pin::new(body).poll_frame(cx);
                let late = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(cx).is_ready();
                if polled.is_pending() && self.deadline.as_mut().is_some_and(late) {
                    return Poll::Ready(Some(Err(StreamError::Ended)));
                }
                polled
            }
        }
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let this = &mut *self;
        let frame = ready!(this.poll_source(cx));
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                // We have ended it ourselves: the deadline.
                Some(Err(StreamError::Ended)) => record.failed(mesh_core::Reason::Timeout),
                Some(Err(_)) => record.failed(mesh_core::Reason::UpstreamReset),
                None => {}
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(data) => data.is_empty(),
            Source::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(data) => SizeHint::with_exact(data.len() as u64),
            Source::Stream(body) => body.size_hint(),
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
