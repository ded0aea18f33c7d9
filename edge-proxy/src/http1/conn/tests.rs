use std::{
    collections::VecDeque,
    io::IoSlice,
    pin::Pin,
    sync::{Arc, Mutex},
};

use http::{Method, StatusCode};
use mesh_core::message::{RequestHead, ResponseHead};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::http1::Limits;

mod client;
mod server;
mod warm;

/// A stream whose other side is written in advance: reads give one piece
/// each, with a wait before it, then the end; writes take `accept` bytes.
#[derive(Debug, Default)]
struct Script {
    input: VecDeque<Vec<u8>>,
    waited: bool,
    /// After the input nothing comes, not even the end.
    open: bool,
    accept: usize,
    /// Each write is followed by a wait.
    pausing: bool,
    paused: bool,
    seen: Arc<Mutex<Seen>>,
}

/// What was done to it.
#[derive(Debug, Default)]
struct Seen {
    written: Vec<u8>,
    writes: usize,
    read: usize,
    aborted: bool,
    shut: bool,
}

impl Script {
    fn new(input: &[&[u8]]) -> Self {
        let input = input.iter().map(|piece| piece.to_vec()).collect();
        Self { input, accept: usize::MAX, ..Self::default() }
    }

    /// `text` in pieces of these sizes, over and over.
    fn split(text: &[u8], sizes: &[usize]) -> Self {
        let (mut input, mut rest) = (VecDeque::new(), text);
        for size in sizes.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*size).clamp(1, rest.len()));
            input.push_back(piece.to_vec());
            rest = later;
        }
        Self { input, accept: usize::MAX, ..Self::default() }
    }

    fn open(mut self) -> Self {
        self.open = true;
        self
    }

    fn accepting(mut self, accept: usize) -> Self {
        self.accept = accept;
        self
    }

    fn pausing(mut self) -> Self {
        self.pausing = true;
        self
    }

    fn seen(&self) -> Arc<Mutex<Seen>> {
        self.seen.clone()
    }
}

impl Io for Script {
    fn abort_on_close(&mut self) {
        self.seen.lock().unwrap().aborted = true;
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.input.is_empty() && self.open {
            return Poll::Pending;
        }
        self.waited = !self.waited;
        if self.waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(mut piece) = self.input.pop_front() {
            let rest = piece.split_off(piece.len().min(buf.remaining()));
            buf.put_slice(&piece);
            self.seen.lock().unwrap().read += piece.len();
            if !rest.is_empty() {
                self.input.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.accept == 0 {
            return Poll::Pending;
        }
        self.paused = self.pausing && !self.paused;
        if self.paused {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut seen = self.seen.lock().unwrap();
        let (before, mut left) = (seen.written.len(), self.accept);
        for buf in bufs {
            let taken = &buf[..buf.len().min(left)];
            seen.written.extend_from_slice(taken);
            left -= taken.len();
        }
        seen.writes += 1;
        Poll::Ready(Ok(seen.written.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seen.lock().unwrap().shut = true;
        Poll::Ready(Ok(()))
    }
}

fn text(seen: &Mutex<Seen>) -> String {
    String::from_utf8_lossy(&seen.lock().unwrap().written).into_owned()
}

/// Whether a future waits when asked now.
fn waits(future: impl Future) -> bool {
    let mut future = std::pin::pin!(future);
    future.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_pending()
}
