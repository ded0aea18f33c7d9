//! Streams as their users see them.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use mesh_api::v1;
use mesh_core::path::{Connect, RefusedReason};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{Session, carrier::Raw, wire};
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

/// The bytes of one stream: `AsyncRead + AsyncWrite`, half-close by shutdown,
/// a reset by [`TunnelStream::reset`] or by dropping it without a shutdown. A
/// reset by the peer, or the end of the tunnel, reads as `ConnectionReset`.
///
/// It keeps its session alive.
#[derive(Debug)]
pub struct TunnelStream {
    raw: Raw,
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
        Self { raw, counted, session, finished: false, ended: false, abort: false }
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
        Pin::new(&mut self.raw).poll_write(cx, buf)
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
