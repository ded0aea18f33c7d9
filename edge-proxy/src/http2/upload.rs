//! A body on its way into a stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// A body on its way into a stream, driven by whoever owns it. Nothing is read
/// from the body before the stream has room for what was read last.
#[derive(Debug)]
pub struct Upload<B> {
    body: B,
    stream: SendStream<Bytes>,
    pending: Bytes,
    ended: Option<UploadEnd>,
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadEnd {
    /// All of it is on its way.
    Sent,
    /// The peer wants no more; its answer says why.
    Stopped,
    /// The body itself failed; the stream was reset.
    BodyFailed,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Nothing is sent before the first poll. A body without frames was ended
    /// by the head that opened the stream.
    pub fn new(body: B, stream: SendStream<Bytes>) -> Self {
        let ended = body.is_end_stream().then_some(UploadEnd::Sent);
        Self { body, stream, pending: Bytes::new(), ended }
    }

    /// The body.
    pub fn body(&mut self) -> &mut B {
        &mut self.body
    }

    /// Gives the body back; the stream is reset unless it has ended.
    pub fn into_body(self) -> B {
        self.body
    }

    /// Moves what can be moved.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        if self.ended.is_none() {
            self.ended = Some(ready!(self.poll_frames(cx)));
        }
        self.ended.map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        loop {
            if !self.pending.is_empty() {
                match ready!(self.poll_pending(cx)) {
                    Ok(true) => return Poll::Ready(UploadEnd::Sent),
                    Ok(false) => continue,
                    Err(()) => return Poll::Ready(UploadEnd::Stopped),
                }
            }
            // A reset would go unnoticed while the body has nothing to send.
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(UploadEnd::Stopped);
            }
            if let Some(end) = ready!(self.poll_body(cx)) {
                return Poll::Ready(end);
            }
        }
    }

    /// Sends part of `pending`; `true` if that was the end of the body.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ()>> {
        self.stream.reserve_capacity(self.pending.len());
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(())),
            }
        }
        let room = self.stream.capacity().min(self.pending.len());
        let chunk = self.pending.split_to(room);
        let last = self.pending.is_empty() && self.body.is_end_stream();
        Poll::Ready(self.stream.send_data(chunk, last).map(|()| last).map_err(|_| ()))
    }

    /// Takes the next frame of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<UploadEnd>> {
        let sent = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => self.stream.send_data(Bytes::new(), true),
            Some(Err(_)) => {
                self.stream.send_reset(Reason::CANCEL);
                return Poll::Ready(Some(UploadEnd::BodyFailed));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    self.pending = data;
                    return Poll::Ready(None);
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => self.stream.send_trailers(trailers),
                    Err(_) => return Poll::Ready(None),
                },
            },
        };
        Poll::Ready(Some(if sent.is_ok() { UploadEnd::Sent } else { UploadEnd::Stopped }))
    }
}
