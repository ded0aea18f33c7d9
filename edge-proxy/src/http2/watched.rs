//! Clients that send frames which cost them nothing (RFC 9113 section 10.5).
//!
//! `h2` answers or forgets PING, SETTINGS, WINDOW_UPDATE and their like one by
//! one, for as long as they come. A connection that sends many of them and
//! carries little else is ended here.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use mesh_runtime::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::{CONTINUATION, DATA, Frames, HEADERS};
use crate::{idle_frames::Allowance, outbound::sniff::PREFACE};

/// A connection whose frames are counted.
#[derive(Debug)]
pub struct Watched<S> {
    io: S,
    read: Frames,
    written: Frames,
    allowance: Allowance,
}

/// Of the frames that begin in `bytes`: how many carry something, and how many
/// do not.
fn count(frames: &mut Frames, mut bytes: &[u8]) -> (u32, u32) {
    let (mut useful, mut idle) = (0, 0);
    while let Some(kind) = frames.next(&mut bytes) {
        match kind {
            DATA | HEADERS | CONTINUATION if !frames.is_empty() => useful += 1,
            _ => idle += 1,
        }
    }
    (useful, idle)
}

impl<S> Watched<S> {
    /// A client's connection on which nothing was read, not even its preface.
    pub fn new(io: S) -> Self {
        Self {
            io,
            read: Frames::after(PREFACE.len()),
            written: Frames::after(0),
            allowance: Allowance::new(clock::monotonic()),
        }
    }

    fn note_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (useful, idle) = count(&mut self.read, bytes);
        self.allowance.earn(useful);
        if self.allowance.is_exceeded(idle, clock::monotonic) {
            let text = "the client sends frames that carry nothing";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        Ok(())
    }

    fn note_written(&mut self, bytes: &[u8]) {
        let (useful, _) = count(&mut self.written, bytes);
        self.allowance.earn(useful);
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        Poll::Ready(self.note_read(&buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.note_written(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut left = n;
        for buf in bufs {
            let written = left.min(buf.len());
            self.note_written(&buf[..written]);
            left -= written;
        }
        Poll::Ready(Ok(n))
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

#[cfg(test)]
mod tests {
    use super::{super::frames::tests::frame, *};

    #[test]
    fn frames_are_told_apart_however_their_bytes_come() {
        let frames = [(DATA, 20_000), (DATA, 0), (HEADERS, 30), (6, 8), (4, 0), (CONTINUATION, 0)];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, n)| frame(*kind, *n)).collect();
        for size in [1, 7, 9, 10, 4096, bytes.len()] {
            let mut frames_seen = Frames::after(PREFACE.len());
            let said = [PREFACE, &bytes].concat();
            let counted = said.chunks(size).map(|piece| count(&mut frames_seen, piece));
            let sum = counted.fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
            assert_eq!(sum, (2, 4), "{size}");
        }
    }

    #[test]
    fn who_carries_something_may_send_more() {
        let mut watched = Watched::new(());
        watched.note_read(PREFACE).unwrap();
        let pings = frame(6, 8).repeat(4096);
        watched.note_read(&pings).unwrap();
        watched.note_written(&frame(DATA, 100).repeat(1024));
        watched.note_read(&pings).unwrap();
        watched.note_read(&frame(6, 8)).expect_err("nothing was carried since");
    }
}
