//! Streams as their users see them.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use mesh_api::v1;
use mesh_core::path::{Connect, RefusedReason};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{
    OpenError, Session,
    answer::{Answer, Half},
    carrier::Raw,
    wire,
};
use crate::net::Io;

/// The longest text of a refusal that is sent or kept.
pub(super) const MAX_DETAIL: usize = 256;

/// One more stream in a counter, for as long as it lives.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Counts one more, unless there are `limit` already.
    pub(super) fn up_to(counter: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let more = |n| (n < limit).then_some(n + 1);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self(counter.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that the peer wants to open. Dropped unanswered it is reset.
///
/// It reads as the bytes that the peer sends ahead of the answer: as many as
/// the transport's window for one stream holds wait to be read.
#[derive(Debug)]
pub struct IncomingStream {
    /// What it names.
    pub connect: Connect,
    pub(super) stream: TunnelStream,
}

impl IncomingStream {
    /// Says yes.
    pub async fn accept(self) -> io::Result<TunnelStream> {
        let Self { mut stream, .. } = self;
        let accepted = v1::connect_reply::Reply::Accepted(v1::Accepted {});
        wire::write(&mut stream, &v1::ConnectReply { reply: Some(accepted) }).await?;
        Ok(stream)
    }

    /// Says no.
    pub async fn refuse(self, reason: RefusedReason, hop: &str, detail: &str) {
        let Self { mut stream, .. } = self;
        // The peer may be gone, and then needs no answer.
        let _ = stream.refuse(reason, hop, detail).await;
    }
}

impl AsyncRead for IncomingStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

/// The bytes of one stream: `AsyncRead + AsyncWrite`, half-close by shutdown,
/// a reset by [`TunnelStream::reset`] or by dropping it without a shutdown. A
/// reset by the peer, or the end of the tunnel, reads as `ConnectionReset`.
///
/// Until its `Connect` is answered, it behaves as [`Session::begin`] says.
///
/// It keeps its session alive.
#[derive(Debug)]
pub struct TunnelStream {
    raw: Raw,
    pub(super) answer: Answer,
    /// `None` only while dropping.
    counted: Option<Counted>,
    session: Session,
    /// We have said that nothing more follows.
    finished: bool,
    /// The peer has.
    ended: bool,
    /// The next drop is a reset, whatever happened before.
    abort: bool,
}

impl TunnelStream {
    pub(super) fn new(raw: Raw, counted: Counted, session: Session) -> Self {
        let counted = Some(counted);
        let answer = Answer::Given;
        Self { raw, answer, counted, session, finished: false, ended: false, abort: false }
    }

    /// Waits for the answer to its `Connect`; may be given up and called again.
    pub async fn answered(&mut self) -> Result<(), OpenError> {
        poll_fn(|cx| self.poll_answer(Half::Reader, cx)).await
    }

    /// How much may be written ahead of the answer, in bytes; 0 once it is
    /// there.
    pub fn early_room(&self) -> usize {
        match &self.answer {
            Answer::Awaited(awaited) => awaited.early,
            Answer::Given | Answer::No(_) => 0,
        }
    }

    /// Completes when somebody who reads or writes has the answer, whatever it
    /// is, or nobody will. Only the last call counts.
    pub fn when_answered(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let news = match &mut self.answer {
            Answer::Awaited(awaited) => Some(awaited.news()),
            Answer::Given | Answer::No(_) => None,
        };
        async move {
            if let Some(news) = news {
                // It is dropped, not sent.
                let _ = news.await;
            }
        }
    }

    fn poll_answer(&mut self, half: Half, cx: &Context<'_>) -> Poll<Result<(), OpenError>> {
        let awaited = match &mut self.answer {
            Answer::Given => return Poll::Ready(Ok(())),
            Answer::No(error) => return Poll::Ready(Err(error.clone())),
            Answer::Awaited(awaited) => awaited,
        };
        let answer = ready!(awaited.poll(&mut self.raw, half, cx));
        let answer = answer.map_err(|no_answer| self.session.why(no_answer));
        self.answer = match &answer {
            Ok(()) => Answer::Given,
            Err(error) => Answer::No(error.clone()),
        };
        Poll::Ready(answer)
    }

    /// Writes ahead of the answer.
    fn poll_write_early(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let chunk = &buf[..buf.len().min(self.early_room())];
        match Pin::new(&mut self.raw).poll_write(cx, chunk) {
            Poll::Ready(Ok(n)) => {
                if let Answer::Awaited(awaited) = &mut self.answer {
                    awaited.early = awaited.early.saturating_sub(n);
                }
                Poll::Ready(Ok(n))
            }
            // The peer wants nothing more; its answer says why.
            Poll::Ready(Err(error)) => {
                ready!(self.poll_answer(Half::Writer, cx))?;
                Poll::Ready(Err(error))
            }
            Poll::Pending => match self.poll_answer(Half::Writer, cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            },
        }
    }

    /// The next bytes, without a copy where that is possible; none at the end.
    ///
    /// # Errors
    ///
    /// As reading has them.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        ready!(self.poll_answer(Half::Reader, cx))?;
        let taken = ready!(self.raw.poll_take(cx));
        self.ended |= taken.as_ref().map_or(true, Bytes::is_empty);
        Poll::Ready(taken)
    }

    /// Writes from the front of `bytes`, which are not empty, without a copy
    /// where that is possible.
    ///
    /// # Errors
    ///
    /// As writing has them.
    pub fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        if self.early_room() > 0 {
            let written = ready!(self.poll_write_early(cx, bytes))?;
            bytes.advance(written);
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_answer(Half::Writer, cx))?;
        self.raw.poll_give(cx, bytes)
    }

    /// Aborts both directions.
    pub fn reset(&mut self) {
        self.raw.reset();
        self.raw.stop();
        self.abort = true;
        self.ended = true;
    }

    /// The session that it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    pub(super) async fn refuse(
        &mut self,
        reason: RefusedReason,
        hop: &str,
        detail: &str,
    ) -> io::Result<()> {
        let short = |text| wire::shortened(text, MAX_DETAIL).to_owned();
        let refused = v1::Refused {
            reason: v1::RefusedReason::from(reason).into(),
            hop: short(hop),
            detail: short(detail),
        };
        let reply = Some(v1::connect_reply::Reply::Refused(refused));
        wire::write(self, &v1::ConnectReply { reply }).await?;
        self.shutdown().await
    }
}

impl Io for TunnelStream {
    fn abort_on_close(&mut self) {
        self.abort = true;
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_answer(Half::Reader, cx))?;
        let before = buf.remaining();
        let result = ready!(Pin::new(&mut self.raw).poll_read(cx, buf));
        if result.is_err() || (before > 0 && buf.remaining() == before) {
            self.ended = true;
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.early_room() > 0 {
            return self.poll_write_early(cx, buf);
        }
        ready!(self.poll_answer(Half::Writer, cx))?;
        Pin::new(&mut self.raw).poll_write(cx, buf)
    }

    /// As much as fits: TLS writes a few records at once.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.as_mut().poll_write(cx, buf) {
                Poll::Ready(Ok(n)) if n == buf.len() => written += n,
                Poll::Ready(Ok(n)) => return Poll::Ready(Ok(written + n)),
                // What is wrong shows with the next write.
                _ if written > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.raw).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.raw).poll_shutdown(cx))?;
        self.finished = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if self.abort || !self.finished {
            self.raw.reset();
        }
        if !self.ended {
            self.raw.stop();
        }
        if self.finished
            && !self.abort
            && let Some(delivery) = self.raw.delivery()
            && let Some(counted) = self.counted.take()
        {
            self.session.linger(delivery, counted);
        }
    }
}
