//! Streams over one ordered connection, with the meaning that QUIC's streams
//! have: each direction ends by itself, a reset gives up one direction, a stop
//! asks the peer to give up the other.
//!
//! - [`frame`]: what goes over the wire.
//! - [`rope`]: bytes on their way through.
//! - [`stream`]: one stream and its windows.
//! - [`state`]: all streams and their turns; no I/O.
//! - [`driver`]: the task that owns the connection.
//!
//! Even stream ids are of the side that dialled, odd ones of the other; the
//! first bytes of a stream open it. A receiver grants windows per stream, so a
//! stream that nobody reads stalls alone.

mod driver;
mod frame;
mod rope;
mod state;
mod stream;

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use state::State;
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::Instant,
};

use super::{MAX_STREAMS, carrier::Delivery};

/// Our side of a session; it ends when every clone is dropped.
#[derive(Clone)]
pub struct Mux(Arc<Handle>);

struct Handle(Arc<Shared>);

/// What the handles, the streams and the driver have in common.
struct Shared {
    state: Mutex<State>,
    closed: watch::Sender<Option<String>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, why: &str) {
        let mut state = self.state();
        state.closing.get_or_insert_with(|| why.into());
        state.wake_driver();
    }
}

impl Mux {
    /// Begins a session; both sides must differ in `dialled`.
    pub fn start<T>(io: T, dialled: bool) -> Self
    where
        T: AsyncBufRead + AsyncWrite + Unpin + Send + 'static,
    {
        // One more for stream 0.
        let limit = usize::try_from(MAX_STREAMS + 1).unwrap_or(usize::MAX);
        let state = State::new(dialled, limit, Instant::now());
        let closed = watch::Sender::new(None);
        let shared = Arc::new(Shared { state: Mutex::new(state), closed });
        tokio::spawn(driver::drive(io, shared.clone()));
        Self(Arc::new(Handle(shared)))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// A new stream; the peer sees it with its first byte. `None` when there
    /// are too many or the session has ended.
    pub fn open(&self) -> Option<MuxStream> {
        let id = self.shared().state().open(Instant::now())?;
        Some(MuxStream { id, shared: self.shared().clone() })
    }

    /// The next stream of the peer; `None` when the session has ended.
    pub async fn accept(&self) -> Option<MuxStream> {
        let shared = self.shared();
        let id = std::future::poll_fn(|cx| shared.state().poll_accept(cx)).await?;
        Some(MuxStream { id, shared: shared.clone() })
    }

    /// Ends it now; the peer is told why.
    pub fn close(&self, why: &str) {
        self.shared().close(why);
    }

    /// Waits for its end and says why.
    pub async fn closed(&self) -> String {
        let mut closed = self.shared().closed.subscribe();
        let why = closed.wait_for(Option::is_some).await;
        why.ok().and_then(|why| why.clone()).unwrap_or_else(|| "closed".into())
    }
}

impl fmt::Debug for Mux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mux").finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.close("no longer needed");
    }
}

/// Both directions of one stream. Dropped without a shutdown it is reset.
pub struct MuxStream {
    id: u32,
    shared: Arc<Shared>,
}

impl MuxStream {
    /// Gives up what was written and not yet sent.
    pub fn reset(&mut self) {
        self.shared.state().reset(self.id);
    }

    /// The next bytes, without a copy; none at the end.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        self.shared.state().poll_take(self.id, cx)
    }

    /// Writes from the front of `bytes`, without a copy where that is possible.
    pub(crate) fn poll_give(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        self.shared.state().poll_give(self.id, cx, bytes)
    }

    /// Asks the peer to write nothing more.
    pub fn stop(&mut self) {
        self.shared.state().stop(self.id);
    }

    /// What remains to be waited for until a finished stream has been handed
    /// to the connection; `None` if nothing does.
    pub(crate) fn delivery(&self) -> Option<Delivery> {
        let (id, shared) = (self.id, self.shared.clone());
        let mut since = None;
        let mut flushed = Box::pin(std::future::poll_fn(move |cx| {
            shared.state().poll_flushed(id, &mut since, cx)
        }));
        let mut cx = Context::from_waker(Waker::noop());
        if flushed.as_mut().poll(&mut cx).is_ready() {
            return None;
        }
        Some(flushed)
    }
}

impl fmt::Debug for MuxStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MuxStream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.shared.state().release(self.id);
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.state().poll_read(self.id, cx, buf)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.state().poll_write(self.id, cx, buf)
    }

    /// The driver sends without being asked.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.state().finish(self.id);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};

    use super::*;

    fn pipe_of(size: usize) -> (BufReader<DuplexStream>, BufReader<DuplexStream>) {
        let (a, b) = tokio::io::duplex(size);
        (BufReader::new(a), BufReader::new(b))
    }

    /// What one direction of one stream does.
    #[derive(Debug, Clone)]
    struct Plan {
        length: usize,
        chunk: usize,
        /// Whether it is reset in the end, not finished.
        reset: bool,
    }

    fn plan() -> impl Strategy<Value = Plan> {
        let length = prop_oneof![0..10usize, 0..150_000usize];
        (length, 1..70_000usize, prop::bool::weighted(0.2))
            .prop_map(|(length, chunk, reset)| Plan { length, chunk, reset })
    }

    fn bytes(seed: u8, length: usize) -> Vec<u8> {
        (0..length).map(|n| seed.wrapping_add((n % 253).to_be_bytes()[7])).collect()
    }

    /// Runs one side of a stream; panics unless the other side's plan arrives.
    async fn side(stream: MuxStream, seed: (u8, u8), own: Plan, other: Plan) {
        let (mut read, mut write) = tokio::io::split(stream);
        let send = async {
            for chunk in bytes(seed.0, own.length).chunks(own.chunk) {
                write.write_all(chunk).await?;
                tokio::task::yield_now().await;
            }
            if !own.reset {
                write.shutdown().await?;
            }
            Ok::<_, io::Error>(())
        };
        let receive = async {
            let expected = bytes(seed.1, other.length);
            let mut got = Vec::new();
            let result = read.read_to_end(&mut got).await;
            if other.reset {
                assert!(expected.starts_with(&got));
                if let Err(error) = &result {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
                }
            } else if !own.reset {
                result.unwrap();
                assert!(got == expected, "{} of {}", got.len(), expected.len());
            }
        };
        if own.reset {
            // Whatever the peer still sends is not wanted any more.
            send.await.ok();
            drop(receive);
        } else {
            let (sent, ()) = tokio::join!(send, receive);
            assert!(sent.is_ok() || other.reset, "{sent:?}");
        }
    }

    async fn many(plans: Vec<(Plan, Plan)>, pipe: usize) {
        let (a, b) = pipe_of(pipe);
        let (a, b) = (Mux::start(a, true), Mux::start(b, false));
        let mut tasks = tokio::task::JoinSet::new();
        for (n, (near, far)) in plans.into_iter().enumerate() {
            let (one, other) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
            let seed = n.to_be_bytes()[7];
            let mut opened = one.open().unwrap();
            opened.write_all(&[seed]).await.unwrap();
            let mut accepted = other.accept().await.unwrap();
            assert_eq!(accepted.read_u8().await.unwrap(), seed);
            let seeds = (seed, seed.wrapping_add(100));
            tasks.spawn(side(opened, seeds, near.clone(), far.clone()));
            tasks.spawn(side(accepted, (seeds.1, seeds.0), far, near));
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        // Both sides forget what is over.
        for _ in 0..1000 {
            if [&a, &b].iter().all(|mux| mux.shared().state().is_clean()) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("left over: {:?} {:?}", a.shared().state(), b.shared().state());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn interleaved_streams_deliver_exactly_their_bytes(
            plans in proptest::collection::vec((plan(), plan()), 1..12),
            pipe in prop_oneof![100..400usize, 1000..200_000usize],
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(many(plans, pipe));
        }
    }

    #[tokio::test]
    async fn violations_end_the_session_with_a_reason() {
        use frame::Frame;
        let too_much = vec![0; 16 * 1024];
        let cases: [(Vec<Frame<'_>>, &str); 7] = [
            (vec![Frame::Data(0, b"x")], "not opened"),
            (vec![Frame::Fin(1), Frame::Data(1, b"x")], "after the end"),
            (vec![Frame::Fin(1), Frame::Fin(1)], "second end"),
            ((0..5).map(|_| Frame::Data(1, &too_much)).collect(), "window allows"),
            (vec![Frame::Data(1, b"x"), Frame::Window(1, u32::MAX)], "beyond all measure"),
            (vec![Frame::Fin(u32::MAX)], "used up"),
            ((0..3000).map(|n| Frame::Fin(2 * n + 1)).collect(), "far too many"),
        ];
        for (frames, expected) in cases {
            // Nothing is read here, so refusals pile up.
            let (mut peer, io) = tokio::io::duplex(4096);
            let mux = Mux::start(BufReader::new(io), true);
            let mut bytes = Vec::new();
            frames.iter().for_each(|frame| frame.encode(&mut bytes));
            // It may be cut off before its last byte.
            let _ = peer.write_all(&bytes).await;
            let why = mux.closed().await;
            assert!(why.contains(expected), "{expected}: {why}");
            let mut told = Vec::new();
            peer.read_to_end(&mut told).await.unwrap();
            assert!(String::from_utf8_lossy(&told).contains(expected));
        }
    }

    #[tokio::test]
    async fn streams_that_were_given_up_unseen_do_no_harm() {
        let (a, b) = pipe_of(1000);
        let (a, b) = (Mux::start(a, true), Mux::start(b, false));
        drop(a.open().unwrap());
        let mut finished = a.open().unwrap();
        finished.shutdown().await.unwrap();
        let mut seen = b.accept().await.unwrap();
        assert_eq!(seen.read(&mut [0; 8]).await.unwrap(), 0);
        seen.write_all(b"late").await.unwrap();
        seen.shutdown().await.unwrap();
        let mut got = Vec::new();
        finished.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"late");
    }

    #[tokio::test]
    async fn windows_grow_for_fast_readers_within_the_budget() {
        let (a, b) = pipe_of(1 << 20);
        let (a, b) = (Mux::start(a, true), Mux::start(b, false));
        let mut one = a.open().unwrap();
        let writer = tokio::spawn(async move {
            one.write_all(&vec![0; 20 << 20]).await.unwrap();
            one
        });
        let mut other = b.accept().await.unwrap();
        let mut buf = vec![0; 1 << 20];
        for _ in 0..20 {
            other.read_exact(&mut buf).await.unwrap();
        }
        assert!(b.shared().state().grown() > 0);
        drop((writer.await.unwrap(), other));
        for _ in 0..1000 {
            if b.shared().state().grown() == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        panic!("the budget was not given back");
    }
}
