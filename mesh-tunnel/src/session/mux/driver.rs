//! The task that owns the connection of one session.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncBufRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    Shared,
    frame::{Decoder, Frame},
};
use crate::{quic::IDLE, tls::is_about_our_certificate};

/// Rounds of writing and reading a TLS record before other tasks get their turn,
/// while what was read is still in the processor's cache.
const ROUNDS: usize = 4;
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs one session until either side ends it.
pub(super) async fn drive<T>(io: T, shared: Arc<Shared>)
where
    T: AsyncBufRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut driver = Driver {
        io,
        shared: shared.clone(),
        decoder: Decoder::default(),
        writing: Vec::new(),
        written: 0,
        unflushed: false,
        silence: Box::pin(sleep(IDLE)),
    };
    let end = poll_fn(|cx| driver.poll(cx)).await;
    let (why, tell) = match end {
        End::Wanted(why) => (why, true),
        End::Lost(why) => (why, false),
    };
    let Driver { mut io, mut writing, written, .. } = driver;
    {
        let mut state = shared.state();
        writing.extend(state.take_outgoing(Vec::new(), Instant::now()));
        state.end();
    }
    shared.closed.send_replace(Some(why.clone()));
    if tell {
        Frame::Close(why.as_bytes()).encode(&mut writing);
        let farewell = async {
            io.write_all(&writing[written..]).await?;
            io.shutdown().await
        };
        // The peer may be gone or stuck; it finds out by itself.
        let _ = timeout(FAREWELL, farewell).await;
    }
}

/// How a session ends.
enum End {
    /// This side wants it, or the peer has broken the protocol: it is told.
    Wanted(String),
    /// There is nobody to tell.
    Lost(String),
}

struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    decoder: Decoder,
    /// Frames that are being written, and how far.
    writing: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// Fires when nothing may have been heard for [`IDLE`].
    silence: Pin<Box<Sleep>>,
}

impl<T> Driver<T>
where
    T: AsyncBufRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        {
            let mut state = self.shared.state();
            state.set_driver(cx.waker());
            if let Some(why) = state.closing.take() {
                return Poll::Ready(End::Wanted(why));
            }
        }
        if let Poll::Ready(end) = self.poll_silence(cx) {
            return Poll::Ready(end);
        }
        for _ in 0..ROUNDS {
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                return Poll::Ready(End::Lost(lost(&error)));
            }
            // What is sent next wakes this task again.
            if let Err(end) = ready!(self.poll_receive(cx)) {
                return Poll::Ready(end);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes and flushes what there is.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.written < self.writing.len() {
                let bytes = &self.writing[self.written..];
                let n = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += n;
                self.unflushed = true;
            }
            if self.unflushed {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                self.unflushed = false;
                self.shared.state().flushed();
            }
            self.written = 0;
            let mut spare = std::mem::take(&mut self.writing);
            spare.clear();
            self.writing = self.shared.state().take_outgoing(spare, Instant::now());
            if self.writing.is_empty() {
                // Gives the memory back.
                self.writing = Vec::new();
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let mut io = Pin::new(&mut self.io);
        let bytes = match ready!(io.as_mut().poll_fill_buf(cx)) {
            Ok([]) => {
                return Poll::Ready(Err(End::Lost("the peer has closed the connection".into())));
            }
            Ok(bytes) => bytes,
            Err(error) => return Poll::Ready(Err(End::Lost(lost(&error)))),
        };
        let now = Instant::now();
        let mut closed = None;
        let mut state = self.shared.state();
        state.heard = now;
        let fed = self.decoder.feed(bytes, |frame| {
            if let Frame::Close(why) = frame {
                closed = Some(format!("closed by the peer: {}", String::from_utf8_lossy(why)));
            }
            state.receive(&frame, now)
        });
        let taken = bytes.len();
        io.consume(taken);
        Poll::Ready(match (closed, fed) {
            (Some(why), _) => Err(End::Lost(why)),
            (None, Err(violation)) => Err(End::Wanted(violation.to_string())),
            (None, Ok(())) => Ok(()),
        })
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.silence.as_mut().poll(cx).is_ready() {
            let until = self.shared.state().heard + IDLE;
            if until <= Instant::now() {
                return Poll::Ready(End::Lost("the peer is silent".into()));
            }
            self.silence.as_mut().reset(until);
        }
        Poll::Pending
    }
}

fn lost(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) if is_about_our_certificate((*alert).into()) => {
            format!("the peer refused our certificate ({alert:?}); its log says why")
        }
        _ => format!("connection lost: {error}"),
    }
}
