//! Opaque bytes between two ends: a half-close stays a half-close, a reset a
//! reset, and a slow reader slows the sender.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use mesh_tunnel::Stream;
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::room::Room;

/// An end that can be aborted.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin {
    /// Makes the other side see a reset, not an orderly end.
    fn reset(&mut self);
}

impl Duplex for Stream {
    fn reset(&mut self) {
        self.abort_on_close();
    }
}

/// What went through.
#[derive(Debug, Default)]
pub struct Copied {
    /// Bytes from the first to the second end.
    pub forth: u64,
    /// Bytes from the second to the first end.
    pub back: u64,
    /// Where they are counted as they go: connections may last for days.
    pub told: Option<Told>,
}

/// Counters of both directions.
#[derive(Debug)]
pub struct Told {
    /// Bytes from the first to the second end.
    pub forth: Arc<Counter>,
    /// Bytes from the second to the first end.
    pub back: Arc<Counter>,
}

impl Copied {
    /// Nothing yet.
    pub fn counted_in(told: Told) -> Self {
        Self { told: Some(told), ..Self::default() }
    }
}

/// Copies both ways until both have ended. An error of either end resets both.
pub async fn copy<A: Duplex, B: Duplex>(
    a: &mut A,
    b: &mut B,
    copied: &mut Copied,
) -> io::Result<()> {
    let (mut forth, mut back) = (Pump::default(), Pump::default());
    let result = std::future::poll_fn(|cx| {
        let before = (copied.forth, copied.back);
        let there = forth.poll(cx, a, b, &mut copied.forth);
        let here = back.poll(cx, b, a, &mut copied.back);
        if let Some(told) = &copied.told {
            told.forth.inc_by(copied.forth - before.0);
            told.back.inc_by(copied.back - before.1);
        }
        match (there, here) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    if result.is_err() {
        a.reset();
        b.reset();
    }
    result
}

/// One direction.
#[derive(Default)]
struct Pump {
    /// Read and not yet written.
    held: Bytes,
    room: Room,
    unflushed: bool,
    state: State,
}

#[derive(Default, PartialEq, Eq)]
enum State {
    #[default]
    Running,
    Shutting,
    Done,
}

impl Pump {
    fn poll<A, B>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut A,
        to: &mut B,
        count: &mut u64,
    ) -> Poll<io::Result<()>>
    where
        A: AsyncRead + Unpin,
        B: AsyncWrite + Unpin,
    {
        loop {
            if self.state == State::Done {
                return Poll::Ready(Ok(()));
            }
            if self.state == State::Shutting {
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.state = State::Done;
                continue;
            }
            while !self.held.is_empty() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.held))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.held.advance(n);
                self.unflushed = true;
                *count += n as u64;
            }
            // Lets the room have its memory again.
            self.held = Bytes::new();
            match self.room.poll_read(from, cx)? {
                Poll::Ready(read) if read.is_empty() => self.state = State::Shutting,
                Poll::Ready(read) => self.held = read,
                Poll::Pending => {
                    // An idle direction keeps no memory.
                    self.room.rest();
                    if self.unflushed {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    fn boxed(stream: DuplexStream) -> Stream {
        Box::new(stream)
    }

    #[tokio::test]
    async fn half_close_travels_and_the_other_way_goes_on() {
        let (mut client, near) = duplex(1024);
        let (mut server, far) = duplex(1024);
        let (mut near, mut far) = (boxed(near), boxed(far));
        let task = tokio::spawn(async move {
            let mut copied = Copied::default();
            copy(&mut near, &mut far, &mut copied).await.unwrap();
            copied
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        server.read_to_end(&mut asked).await.unwrap();
        assert_eq!(asked, b"question");
        server.write_all(b"a long answer after the end").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"a long answer after the end");
        let copied = task.await.unwrap();
        assert_eq!((copied.forth, copied.back), (8, 27));
    }

    #[tokio::test]
    async fn bulk_arrives_whole_in_both_directions() {
        let (client, near) = duplex(100_000);
        let (server, far) = duplex(777);
        let (mut near, mut far) = (boxed(near), boxed(far));
        tokio::spawn(async move { copy(&mut near, &mut far, &mut Copied::default()).await });
        let data: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
        let exchange = |stream: DuplexStream| {
            let data = data.clone();
            tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(stream);
                let sent = data.clone();
                let writer = tokio::spawn(async move {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                let mut received = Vec::new();
                read.read_to_end(&mut received).await.unwrap();
                writer.await.unwrap();
                received == data
            })
        };
        let (one, two) = (exchange(client), exchange(server));
        assert!(one.await.unwrap() && two.await.unwrap());
    }
}
