//! Bytes between two streams, both ways, until both have ended.
//!
//! The table of ends, the same on every transport:
//!
//! | one side | the other side |
//! |---|---|
//! | FIN (end of stream) | FIN, after everything that came before it |
//! | reset, error | reset of both |
//! | nothing in either direction for [`Limits::idle`] | reset of both |
//!
//! One piece is held per direction, at most
//! [`LARGEST_READ`](crate::room::LARGEST_READ) bytes. What a tunnel has is
//! passed on as it is; what a socket has is read into a buffer that begins
//! small, grows while reads fill it, and is given back when nothing moves.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use mesh_tunnel::{TunnelStream, net::Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use crate::room::Room;

/// How often a relay looks whether anything has moved: quiet for this long, it
/// gives its buffers back.
const LOOK: Duration = Duration::from_secs(30);

/// How long a relay may live without doing anything.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// No byte in either direction for this long ends it.
    pub idle: Duration,
}

/// One of the two ends of a relay: bytes, half-close by shutdown, and a reset.
pub trait End: AsyncRead + AsyncWrite + Unpin {
    /// Aborts both directions towards this peer.
    fn reset(&mut self);

    /// The next bytes, none at the end; `room` is there to read into.
    fn poll_take(&mut self, cx: &mut Context<'_>, room: &mut Room) -> Poll<io::Result<Bytes>> {
        room.poll_read(self, cx)
    }

    /// Writes from the front of `bytes`, which are not empty.
    fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        let written = ready!(Pin::new(self).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        bytes.advance(written);
        Poll::Ready(Ok(()))
    }
}

impl End for TunnelStream {
    fn reset(&mut self) {
        TunnelStream::reset(self);
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, _: &mut Room) -> Poll<io::Result<Bytes>> {
        TunnelStream::poll_take(self, cx)
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, bytes: &mut Bytes) -> Poll<io::Result<()>> {
        TunnelStream::poll_give(self, cx, bytes)
    }
}

/// A TCP connection; its reset is an RST, sent when it is dropped.
impl End for Stream {
    fn reset(&mut self) {
        self.abort_on_close();
    }
}

/// What a relay has carried and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// From the near end to the far end, in bytes.
    pub sent: u64,
    /// From the far end to the near end, in bytes.
    pub received: u64,
    /// How it ended.
    pub ending: Ending,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both directions ended with FIN.
    Finished,
    /// The near end broke or was reset.
    NearReset,
    /// The far end broke or was reset.
    FarReset,
    /// Nothing moved for too long.
    Idle,
    /// This process stops.
    Stopped,
}

impl Ending {
    /// The stable code, as in the access log.
    pub fn code(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::NearReset => "reset_by_source",
            Self::FarReset => "reset_by_destination",
            Self::Idle => "idle",
            Self::Stopped => "stopped",
        }
    }
}

/// Which end failed.
enum Fault {
    Reading,
    Writing,
}

/// Copies both ways until both directions have ended, one end breaks, nothing
/// moves for `limits.idle`, or `stop` completes. On all but the first, both
/// ends are reset before this returns.
pub async fn relay<A: End, B: End>(
    near: &mut A,
    far: &mut B,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Carried {
    let mut up = Direction::default();
    let mut down = Direction::default();
    let ending = tokio::select! {
        biased;
        ending = copy_both(near, far, &mut up, &mut down, limits) => ending,
        () = stop => Ending::Stopped,
    };
    if ending != Ending::Finished {
        near.reset();
        far.reset();
    }
    Carried { sent: up.total, received: down.total, ending }
}

async fn copy_both<A: End, B: End>(
    near: &mut A,
    far: &mut B,
    up: &mut Direction,
    down: &mut Direction,
    limits: Limits,
) -> Ending {
    // One timer per relay, looked at rarely and never per read: what has moved
    // since decides whether it was quiet.
    let look = limits.idle.min(LOOK);
    let (mut seen, mut quiet) = (0, Duration::ZERO);
    let mut timer = std::pin::pin!(tokio::time::sleep(look));
    poll_fn(|cx| {
        match up.poll(cx, near, far) {
            Poll::Ready(Err(Fault::Reading)) => return Poll::Ready(Ending::NearReset),
            Poll::Ready(Err(Fault::Writing)) => return Poll::Ready(Ending::FarReset),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match down.poll(cx, far, near) {
            Poll::Ready(Err(Fault::Reading)) => return Poll::Ready(Ending::FarReset),
            Poll::Ready(Err(Fault::Writing)) => return Poll::Ready(Ending::NearReset),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if up.done && down.done {
            return Poll::Ready(Ending::Finished);
        }
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + look);
            let moved = up.moved + down.moved;
            quiet = if moved == seen { quiet + look } else { Duration::ZERO };
            seen = moved;
            if quiet >= limits.idle {
                return Poll::Ready(Ending::Idle);
            }
            if quiet > Duration::ZERO {
                up.give_back();
                down.give_back();
            }
        }
        Poll::Pending
    })
    .await
}

/// One direction of a relay.
#[derive(Default)]
struct Direction {
    /// Taken and not yet given.
    held: Bytes,
    room: Room,
    ended: bool,
    done: bool,
    unflushed: bool,
    /// Takes and gives so far, for the idle deadline.
    moved: u64,
    /// Bytes written so far.
    total: u64,
}

impl Direction {
    /// Moves what can be moved; ready when this direction has ended.
    fn poll<R: End, W: End>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
    ) -> Poll<Result<(), Fault>> {
        while !self.done {
            if self.held.is_empty() && !self.ended {
                match from.poll_take(cx, &mut self.room) {
                    Poll::Ready(taken) => {
                        self.held = taken.map_err(|_| Fault::Reading)?;
                        self.ended = self.held.is_empty();
                        self.moved += 1;
                    }
                    Poll::Pending => {
                        // Everything read so far must be on its way before we
                        // sleep.
                        if self.unflushed && ready!(Pin::new(&mut *to).poll_flush(cx)).is_err() {
                            return Poll::Ready(Err(Fault::Writing));
                        }
                        self.unflushed = false;
                        return Poll::Pending;
                    }
                }
            }
            ready!(self.poll_drain(cx, to)).map_err(|_| Fault::Writing)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Frees the room if nothing of it is in use.
    fn give_back(&mut self) {
        if self.held.is_empty() {
            self.held = Bytes::new();
            self.room = Room::default();
        }
    }

    fn poll_drain<W: End>(&mut self, cx: &mut Context<'_>, to: &mut W) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            let before = self.held.len();
            ready!(to.poll_give(cx, &mut self.held))?;
            self.total += (before - self.held.len()) as u64;
            self.moved += 1;
            self.unflushed = true;
        }
        // Lets the room have its memory again.
        self.held = Bytes::new();
        if self.ended {
            ready!(Pin::new(to).poll_shutdown(cx))?;
            self.done = true;
            self.room = Room::default();
        }
        Poll::Ready(Ok(()))
    }
}

/// An end that breaks when more than its budget was read from or written to
/// it: for peers that have proved nothing yet.
#[derive(Debug)]
pub struct Measured<E> {
    end: E,
    may_read: u64,
    may_write: u64,
}

impl<E: End> Measured<E> {
    /// `budget` bytes each way.
    pub fn new(end: E, budget: u64) -> Self {
        Self { end, may_read: budget, may_write: budget }
    }
}

fn spend(budget: &mut u64, bytes: usize) -> io::Result<()> {
    *budget = budget
        .checked_sub(bytes as u64)
        .ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "too many bytes"))?;
    Ok(())
}

impl<E: End> AsyncRead for Measured<E> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.end).poll_read(cx, buf))?;
        Poll::Ready(spend(&mut self.may_read, buf.filled().len() - before))
    }
}

impl<E: End> AsyncWrite for Measured<E> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.end).poll_write(cx, buf))?;
        Poll::Ready(spend(&mut self.may_write, written).map(|()| written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(cx)
    }
}

impl<E: End> End for Measured<E> {
    fn reset(&mut self) {
        self.end.reset();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;

    const HOUR: Limits = Limits { idle: Duration::from_secs(3600) };

    /// One end of a pipe that remembers whether it was reset.
    struct Pipe(DuplexStream, bool);

    impl AsyncRead for Pipe {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Pipe {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl End for Pipe {
        fn reset(&mut self) {
            self.1 = true;
        }
    }

    fn pipe(size: usize) -> (DuplexStream, Pipe) {
        let (outside, inside) = tokio::io::duplex(size);
        (outside, Pipe(inside, false))
    }

    #[tokio::test]
    async fn each_direction_ends_for_itself() {
        let ((mut source, mut near), (mut target, mut far)) = (pipe(64), pipe(64));
        let bytes = vec![7; 300_000];
        let sending = bytes.clone();
        let talk = async move {
            let sent = async {
                source.write_all(&sending).await.unwrap();
                source.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let received = async {
                target.read_to_end(&mut got).await.unwrap();
                // Only now, after the other direction has ended.
                target.write_all(b"thanks").await.unwrap();
                target.shutdown().await.unwrap();
            };
            tokio::join!(sent, received);
            let mut answer = Vec::new();
            source.read_to_end(&mut answer).await.unwrap();
            (got, answer)
        };
        let relaying = relay(&mut near, &mut far, HOUR, std::future::pending());
        let (carried, (got, answer)) = tokio::join!(relaying, talk);
        assert!(got == bytes && answer == b"thanks");
        let ending = Ending::Finished;
        assert_eq!(carried, Carried { sent: 300_000, received: 6, ending });
        assert!(!near.1 && !far.1);
    }

    #[tokio::test]
    async fn what_is_idle_too_long_or_stopped_is_reset_at_both_ends() {
        let ((mut source, mut near), (_target, mut far)) = (pipe(64), pipe(64));
        source.write_all(b"alive").await.unwrap();
        let limits = Limits { idle: Duration::from_millis(100) };
        let carried = relay(&mut near, &mut far, limits, std::future::pending()).await;
        assert_eq!((carried.ending, carried.sent), (Ending::Idle, 5));
        assert!(near.1 && far.1);

        let ((_source, mut near), (_target, mut far)) = (pipe(64), pipe(64));
        let carried = relay(&mut near, &mut far, HOUR, async {}).await;
        assert_eq!(carried.ending, Ending::Stopped);
        assert!(near.1 && far.1);
    }

    #[tokio::test]
    async fn an_end_that_breaks_resets_the_other_one() {
        let ((mut source, mut near), (target, mut far)) = (pipe(64), pipe(64));
        drop(target);
        source.write_all(b"nobody reads this").await.unwrap();
        let carried = relay(&mut near, &mut far, HOUR, std::future::pending()).await;
        assert_eq!(carried.ending, Ending::FarReset);
        assert!(near.1 && far.1);
    }

    #[tokio::test]
    async fn who_has_proved_nothing_may_send_only_so_much() {
        for (sends, ending) in [(1000, Ending::Finished), (1001, Ending::NearReset)] {
            let ((mut source, near), (mut target, mut far)) = (pipe(64), pipe(64));
            let mut near = Measured::new(near, 1000);
            let talk = async {
                let sent = async {
                    let _refused = source.write_all(&vec![1; sends]).await;
                    let _refused = source.shutdown().await;
                };
                let received = async {
                    let mut got = Vec::new();
                    let _cut = target.read_to_end(&mut got).await;
                    let _cut = target.shutdown().await;
                };
                tokio::join!(sent, received);
            };
            let relaying = relay(&mut near, &mut far, HOUR, std::future::pending());
            let carried = tokio::select! {
                carried = relaying => carried,
                () = async { talk.await; std::future::pending().await } => unreachable!(),
            };
            assert_eq!(carried.ending, ending, "{sends} bytes");
            assert!(carried.sent <= 1000);
        }
    }
}
