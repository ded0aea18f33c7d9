//! What follows the head of an answer over HTTP/1.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use mesh_core::message::Fields;
use mesh_tunnel::Stream;

use super::{
    Apps,
    upload::{Upload, UploadEnd},
};
use crate::http1::{ClientConn, ConnError};

/// The body of an answer, and what is left of its request, which must be
/// driven on. Dropped before [`Answer::finish`] it closes its connection.
#[derive(Debug)]
pub struct Answer<B> {
    apps: Arc<Apps>,
    target: SocketAddr,
    conn: ClientConn<Stream>,
    idle_for: Duration,
    upload: Upload<B>,
}

impl<B> Answer<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    pub(super) fn new(
        apps: Arc<Apps>,
        target: SocketAddr,
        (conn, idle_for): (ClientConn<Stream>, Duration),
        upload: Upload<B>,
    ) -> Self {
        Self { apps, target, conn, idle_for, upload }
    }

    /// Sends on what is left of the request. The answer counts however that
    /// ends, unless the body failed.
    pub fn poll_upload(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        self.upload.poll(cx, &mut self.conn)
    }

    /// The connection, to read the body from, and the request's body.
    pub fn parts(&mut self) -> (&mut ClientConn<Stream>, &mut B) {
        (&mut self.conn, self.upload.body())
    }

    /// Waits for more of the body; `None` at its end. What is not consumed is
    /// returned again.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<&[u8]>, ConnError>> {
        self.conn.poll_data(cx)
    }

    /// So much of what [`Answer::poll_data`] returned is done with.
    pub fn consume(&mut self, count: usize) {
        self.conn.consume(count);
    }

    /// Whether all of the body has been consumed.
    pub fn is_end(&self) -> bool {
        self.conn.is_body_end()
    }

    /// Whether there are trailers to be taken.
    pub fn has_trailers(&self) -> bool {
        self.conn.has_trailers()
    }

    /// What followed the body, once.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.conn.take_trailers()
    }

    /// Keeps the connection for another request, if it can take one: both
    /// messages are over. Gives the request's body back.
    pub fn finish(mut self) -> B {
        if self.conn.is_reusable() {
            self.apps.give(self.target, self.conn, self.idle_for);
        }
        self.upload.into_body()
    }

    /// Gives the request's body back and closes the connection.
    pub fn into_body(self) -> B {
        self.upload.into_body()
    }
}

/// An answer as a body. Its request goes on as long as it is read or waited for:
/// not while a client leaves a full window unread. Its connection is kept once
/// it has been read to its end.
#[derive(Debug)]
pub struct AnswerBody<B> {
    /// `None` after its end.
    answer: Option<Answer<B>>,
}

impl<B> AnswerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// All that follows the head.
    pub fn new(answer: Answer<B>) -> Self {
        let mut body = Self { answer: Some(answer) };
        body.finish_at_end();
        body
    }

    /// Trailers are still to be taken where the body does not know its end.
    fn finish_at_end(&mut self) {
        if let Some(answer) = self.answer.take_if(|answer| answer.is_end()) {
            answer.finish();
        }
    }
}

impl<B> Body for AnswerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = ConnError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ConnError>>> {
        let Some(answer) = &mut self.answer else { return Poll::Ready(None) };
        let _goes_on = answer.poll_upload(cx);
        let data = match ready!(answer.poll_data(cx)) {
            Ok(Some(data)) => Bytes::copy_from_slice(data),
            Ok(None) => {
                let trailers = answer.take_trailers();
                self.finish_at_end();
                return Poll::Ready(trailers.map(|fields| {
                    let mut map = HeaderMap::new();
                    fields.write_map(&mut map);
                    Ok(Frame::trailers(map))
                }));
            }
            Err(error) => {
                self.answer = None;
                return Poll::Ready(Some(Err(error)));
            }
        };
        answer.consume(data.len());
        if answer.is_end() {
            self.finish_at_end();
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.answer.is_none() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
