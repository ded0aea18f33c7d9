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

use crate::{idle_frames::Allowance, outbound::sniff::PREFACE};

const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

/// A connection whose frames are counted.
#[derive(Debug)]
pub struct Watched<S> {
    io: S,
    read: Scanner,
    written: Scanner,
    allowance: Allowance,
}

/// Finds the headers of frames in bytes that go by.
#[derive(Debug)]
struct Scanner {
    header: [u8; HEADER],
    filled: usize,
    /// Bytes to pass over.
    skip: usize,
}

impl Scanner {
    fn after(preface: usize) -> Self {
        Self { header: [0; HEADER], filled: 0, skip: preface }
    }

    /// Of the frames that begin in `bytes`: how many carry something, and how
    /// many do not.
    fn scan(&mut self, mut bytes: &[u8]) -> (u32, u32) {
        let (mut useful, mut idle) = (0, 0);
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.filled).min(bytes.len());
            self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            bytes = &bytes[taken..];
            if self.filled < HEADER {
                continue;
            }
            self.filled = 0;
            let [a, b, c, kind, ..] = self.header;
            self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            match kind {
                DATA | HEADERS | CONTINUATION if self.skip > 0 => useful += 1,
                _ => idle += 1,
            }
        }
        (useful, idle)
    }
}

impl<S> Watched<S> {
    /// A client's connection on which nothing was read, not even its preface.
    pub fn new(io: S) -> Self {
        Self {
            io,
            read: Scanner::after(PREFACE.len()),
            written: Scanner::after(0),
            allowance: Allowance::new(clock::monotonic()),
        }
    }

    fn note_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (useful, idle) = self.read.scan(bytes);
        self.allowance.earn(useful);
        if self.allowance.is_exceeded(idle, clock::monotonic) {
            let text = "the client sends frames that carry nothing";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        Ok(())
    }

    fn note_written(&mut self, bytes: &[u8]) {
        let (useful, _) = self.written.scan(bytes);
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
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let [.., a, b, c] = payload.to_be_bytes();
        let mut frame = vec![a, b, c, kind, 0, 0, 0, 0, 1];
        frame.resize(HEADER + payload, 7);
        frame
    }

    #[test]
    fn frames_are_told_apart_however_their_bytes_come() {
        let frames = [(DATA, 20_000), (DATA, 0), (HEADERS, 30), (6, 8), (4, 0), (CONTINUATION, 0)];
        let bytes: Vec<u8> = frames.iter().flat_map(|(kind, n)| frame(*kind, *n)).collect();
        for size in [1, 7, 9, 10, 4096, bytes.len()] {
            let mut scanner = Scanner::after(PREFACE.len());
            let said = [PREFACE, &bytes].concat();
            let counted = said.chunks(size).map(|piece| scanner.scan(piece));
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
