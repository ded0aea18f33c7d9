//! A stream as a byte pipe.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest piece handed to the stream at once.
const PIECE: usize = 64 << 10;

/// A CONNECT stream (RFC 9113 section 8.5) as a byte pipe: END_STREAM is the
/// half-close, a reset reads and writes as `ConnectionReset`.
#[derive(Debug)]
pub struct StreamIo {
    send: SendStream<Bytes>,
    recv: RecvStream,
    unread: Bytes,
    shut: bool,
}

impl StreamIo {
    /// Both halves of a stream whose heads have passed.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, unread: Bytes::new(), shut: false }
    }

    /// Aborts both directions.
    pub fn reset(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

fn reset_error(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, format!("stream reset: {detail}"))
}

impl AsyncRead for StreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.recv.poll_data(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(reset_error(&error.to_string()))),
                Some(Ok(data)) => self.unread = data,
            }
        }
        let taken = self.unread.len().min(buf.remaining());
        let data = self.unread.split_to(taken);
        buf.put_slice(&data);
        let released = self.recv.flow_control().release_capacity(taken);
        Poll::Ready(released.map_err(|error| reset_error(&error.to_string())))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(buf.len().min(PIECE));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(reset_error(&error.to_string()))),
                None => return Poll::Ready(Err(reset_error("by the peer"))),
            }
        }
        let taken = self.send.capacity().min(buf.len()).min(PIECE);
        let piece = Bytes::copy_from_slice(&buf[..taken]);
        let sent = self.send.send_data(piece, false);
        Poll::Ready(sent.map(|()| taken).map_err(|error| reset_error(&error.to_string())))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        self.shut = true;
        let sent = self.send.send_data(Bytes::new(), true);
        Poll::Ready(sent.map_err(|error| reset_error(&error.to_string())))
    }
}
