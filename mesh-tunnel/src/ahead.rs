//! Reads ahead of TLS: rustls takes at most 4 KiB from a connection at a time,
//! which costs bulk traffic four system calls for each record.

use std::{
    io,
    net::SocketAddr,
    os::fd::RawFd,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use crate::net::Io;

/// Bytes that one read takes from a busy connection: four TLS records.
const AHEAD: usize = 64 << 10;
/// A connection that gives no more at once is no longer busy.
const QUIET: usize = 4 << 10;

/// A connection that is read in large pieces while it has them. One that is
/// quiet has no buffer here.
#[derive(Debug)]
pub struct ReadAhead<T> {
    io: T,
    ahead: BytesMut,
    busy: bool,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, ahead: BytesMut::new(), busy: false }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { io, ahead, busy } = self.get_mut();
        let room = buf.remaining();
        if ahead.is_empty() && !*busy {
            ready!(Pin::new(io).poll_read(cx, buf))?;
            *busy = buf.remaining() == 0 && room >= QUIET;
            return Poll::Ready(Ok(()));
        }
        if ahead.is_empty() {
            ahead.reserve(AHEAD);
            let Poll::Ready(read) = pin!(io.read_buf(ahead)).poll(cx) else {
                *ahead = BytesMut::new();
                return Poll::Pending;
            };
            *busy = read? > QUIET;
        }
        let n = ahead.len().min(room);
        buf.put_slice(&ahead[..n]);
        ahead.advance(n);
        if ahead.is_empty() && !*busy {
            *ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<T: Io> Io for ReadAhead<T> {
    fn raw_fd(&self) -> Option<RawFd> {
        self.io.raw_fd()
    }

    fn abort_on_close(&mut self) {
        self.io.abort_on_close();
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        self.io.original_destination()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Counts the reads that a connection sees.
    struct Counting<T>(T, Arc<AtomicUsize>);

    impl<T: AsyncRead + Unpin> AsyncRead for Counting<T> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    /// Reads `length` bytes, 4 KiB at a time as rustls does, of which as many
    /// as a pipe holds come at once.
    async fn read(length: usize) -> (usize, ReadAhead<Counting<tokio::io::DuplexStream>>) {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let reads = Arc::new(AtomicUsize::new(0));
        let mut ahead = ReadAhead::new(Counting(near, reads.clone()));
        let sent: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[n % 3]).collect();
        far.write_all(&sent).await.unwrap();
        let (mut got, mut piece) = (Vec::new(), [0; QUIET]);
        while got.len() < length {
            let n = ahead.read(&mut piece).await.unwrap();
            got.extend_from_slice(&piece[..n]);
        }
        assert!(got == sent);
        drop(far);
        let counted = reads.load(Ordering::Relaxed);
        assert_eq!(ahead.read(&mut piece).await.unwrap(), 0, "an end is an end");
        (counted, ahead)
    }

    #[tokio::test]
    async fn bulk_is_read_in_large_pieces_and_a_message_as_it_comes() {
        let (reads, _) = read(QUIET + 10 * AHEAD).await;
        assert_eq!(reads, 11);
        let (reads, quiet) = read(300).await;
        assert_eq!((reads, quiet.ahead.capacity()), (1, 0));
    }

    #[tokio::test]
    async fn a_connection_that_has_nothing_more_keeps_no_buffer() {
        let (mut far, near) = tokio::io::duplex(1 << 20);
        let mut ahead = ReadAhead::new(near);
        far.write_all(&[7; 3 * AHEAD]).await.unwrap();
        let mut all = vec![0; 3 * AHEAD];
        ahead.read_exact(&mut all).await.unwrap();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut piece = [0; QUIET];
        let more = Pin::new(&mut ahead).poll_read(&mut cx, &mut ReadBuf::new(&mut piece));
        assert!(more.is_pending());
        assert_eq!(ahead.ahead.capacity(), 0);
    }
}
