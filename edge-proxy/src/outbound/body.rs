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
use hyper::body::Incoming;

use super::{loads::Attempt, pool::Place};
use crate::{http2::RecvBody, record::Record};

/// What of a request's body is kept for a second attempt.
const MAX_REPLAY: usize = 64 << 10;

/// A request's body that can be sent again as long as it is short.
#[derive(Debug)]
pub struct ReplayBody {
    incoming: Incoming,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// The next of `kept` to be sent again.
    next: usize,
    replayable: bool,
    received: Arc<AtomicU64>,
}

impl ReplayBody {
    /// Nothing has been read yet.
    pub fn new(incoming: Incoming) -> Self {
        let received = Arc::default();
        Self { incoming, kept: Vec::new(), kept_bytes: 0, next: 0, replayable: true, received }
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
        if self.replayable && self.kept_bytes <= MAX_REPLAY {
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
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
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
        self.next >= self.kept.len() && self.incoming.is_end_stream()
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
    _used: Option<(Attempt, Place)>,
}

#[derive(Debug)]
enum Source {
    Whole(Bytes),
    Stream(RecvBody),
}

impl OutBody {
    /// A body of ours.
    pub fn whole(data: Bytes, record: Record) -> Self {
        Self { source: Source::Whole(data), record: Some(record), received: None, _used: None }
    }

    /// A body that is told of elsewhere.
    pub fn empty() -> Self {
        Self { source: Source::Whole(Bytes::new()), record: None, received: None, _used: None }
    }

    /// A body from the mesh; holds the endpoint's load and the session's
    /// place until it has ended.
    pub fn stream(
        body: RecvBody,
        record: Record,
        received: Option<Arc<AtomicU64>>,
        used: (Attempt, Place),
    ) -> Self {
        Self { source: Source::Stream(body), record: Some(record), received, _used: Some(used) }
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Whole(data) if data.is_empty() => None,
            Source::Whole(data) => Some(Ok(Frame::data(std::mem::take(data)))),
            Source::Stream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        if let Some(record) = &mut this.record {
            match &frame {
                Some(Ok(frame)) => {
                    record.entry.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                }
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
