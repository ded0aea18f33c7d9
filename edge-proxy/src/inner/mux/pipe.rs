//! A stream as a byte pipe.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Exchange, ResetCode, StreamError};
use crate::copy::Duplex;

/// The bytes of an [`Exchange`]: its end is the half-close, a reset or the
/// session's loss reads and writes as `ConnectionReset`. It flushes by itself.
#[derive(Debug)]
pub struct Pipe(Exchange);

impl Pipe {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self(exchange)
    }

    /// Aborts both directions.
    pub fn reset(&mut self) {
        self.0.reset(ResetCode::Cancelled, "");
    }
}

impl Duplex for Pipe {
    fn reset(&mut self) {
        Self::reset(self);
    }
}

fn broken(error: StreamError) -> io::Error {
    let kind = match error {
        StreamError::Ended => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf).map_err(broken)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send(cx, buf, false).map_err(broken)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.finish();
        Poll::Ready(Ok(()))
    }
}
