//! What carries a session, and its streams before they mean anything.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Transport,
    mux::{Mux, MuxStream},
    wire::shortened,
};
use crate::tls::is_about_our_certificate;

/// The application error code of every reset (RFC 9000 section 20.2): reasons
/// travel in `Refused` and `Drain`, not in numbers.
const RESET: quinn::VarInt = quinn::VarInt::from_u32(1);

/// Datagrams of a QUIC stream that are taken at once.
const CHUNKS: usize = 32;

/// The longest reason sent along with a close.
const MAX_REASON: usize = 256;

/// A connection with many streams.
#[derive(Debug, Clone)]
pub(crate) enum Carrier {
    /// One QUIC connection.
    Quic(quinn::Connection),
    /// Our own streams over one TLS connection.
    Tls(Mux),
}

impl Carrier {
    /// Streams over TLS; `dialled` says on which side.
    pub(crate) fn tls<T>(io: T, dialled: bool) -> Self
    where
        T: AsyncBufRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::Tls(Mux::start(io, dialled))
    }

    pub(crate) fn transport(&self) -> Transport {
        match self {
            Carrier::Quic(_) => Transport::Quic,
            Carrier::Tls(_) => Transport::Tls,
        }
    }

    /// A new stream, once the peer allows one more; `None` when it has ended.
    pub(crate) async fn open(&self) -> Option<Raw> {
        match self {
            Carrier::Quic(connection) => {
                let (send, recv) = connection.open_bi().await.ok()?;
                Some(Raw::Quic { send, recv })
            }
            Carrier::Tls(mux) => mux.open().map(Raw::Tls),
        }
    }

    /// The next stream of the peer; `None` when it has ended.
    pub(crate) async fn accept(&self) -> Option<Raw> {
        match self {
            Carrier::Quic(connection) => {
                let (send, recv) = connection.accept_bi().await.ok()?;
                Some(Raw::Quic { send, recv })
            }
            Carrier::Tls(mux) => mux.accept().await.map(Raw::Tls),
        }
    }

    /// Ends it now; the peer is told why.
    pub(crate) fn close(&self, why: &str) {
        let why = shortened(why, MAX_REASON);
        match self {
            Carrier::Quic(connection) => connection.close(0u32.into(), why.as_bytes()),
            Carrier::Tls(mux) => mux.close(why),
        }
    }

    /// Waits for its end and says why.
    pub(crate) async fn closed(&self) -> String {
        match self {
            Carrier::Quic(connection) => describe(&connection.closed().await),
            Carrier::Tls(mux) => mux.closed().await,
        }
    }

    /// Why stream 0 failed with `error`: the reason for the end of the whole,
    /// which is known at the same time or not at all.
    pub(crate) async fn closed_soon(&self, error: &io::Error) -> String {
        let soon = tokio::time::timeout(Duration::from_millis(100), self.closed()).await;
        soon.unwrap_or_else(|_| format!("stream 0: {error}"))
    }

    /// What the transport itself knows of the round trip.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        match self {
            Carrier::Quic(connection) => Some(connection.rtt()),
            Carrier::Tls(_) => None,
        }
    }
}

impl Carrier {
    /// Grows whenever the peer gives a sign of life, be it an acknowledgement;
    /// `None` where a dead peer's kernel or network says so.
    pub(crate) fn signs_of_life(&self) -> Option<u64> {
        match self {
            Carrier::Quic(connection) => Some(connection.stats().udp_rx.datagrams),
            Carrier::Tls(_) => None,
        }
    }
}

fn describe(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::ApplicationClosed(frame) => {
            format!("closed by the peer: {}", String::from_utf8_lossy(&frame.reason))
        }
        quinn::ConnectionError::ConnectionClosed(frame) if refuses_us(frame.error_code) => {
            let told = String::from_utf8_lossy(&frame.reason);
            format!("the peer refused our certificate: {told}")
        }
        quinn::ConnectionError::TimedOut => "the peer is silent".into(),
        other => other.to_string(),
    }
}

/// Alerts of TLS are the last byte of 0x01xx (RFC 9001 section 4.8).
fn refuses_us(code: quinn::TransportErrorCode) -> bool {
    let [.., kind, alert] = u64::from(code).to_be_bytes();
    kind == 1 && is_about_our_certificate(alert)
}

/// Both directions of one stream.
#[derive(Debug)]
pub(crate) enum Raw {
    /// A bidirectional stream of a QUIC connection.
    Quic {
        /// Ours to the peer.
        send: quinn::SendStream,
        /// The peer's to us.
        recv: quinn::RecvStream,
    },
    /// A stream of our own multiplexing.
    Tls(MuxStream),
}

impl Raw {
    /// Gives up what was written and not yet delivered.
    pub(crate) fn reset(&mut self) {
        match self {
            // An error says that it has ended already.
            Raw::Quic { send, .. } => drop(send.reset(RESET)),
            Raw::Tls(stream) => stream.reset(),
        }
    }

    /// Asks the peer to write nothing more.
    pub(crate) fn stop(&mut self) {
        match self {
            Raw::Quic { recv, .. } => drop(recv.stop(RESET)),
            Raw::Tls(stream) => stream.stop(),
        }
    }

    /// The next bytes, without a copy where that is possible; none at the end.
    pub(crate) fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match self {
            Raw::Quic { recv, .. } => {
                let mut chunks = [const { Bytes::new() }; CHUNKS];
                let read = ready!(pin!(recv.read_chunks(&mut chunks)).poll(cx));
                Poll::Ready(match read.map_err(unread)? {
                    None => Ok(Bytes::new()),
                    Some(1) => Ok(std::mem::take(&mut chunks[0])),
                    Some(_) => Ok(chunks.concat().into()),
                })
            }
            Raw::Tls(stream) => stream.poll_take(cx),
        }
    }

    /// Writes from the front of `bytes`, without a copy where that is possible.
    pub(crate) fn poll_give(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        match self {
            Raw::Quic { send, .. } => {
                let chunks = std::slice::from_mut(bytes);
                let written = ready!(pin!(send.write_chunks(chunks)).poll(cx));
                Poll::Ready(written.map(drop).map_err(unwritten))
            }
            Raw::Tls(stream) => stream.poll_give(cx, bytes),
        }
    }

    /// Writes all of `bytes` without waiting and finishes; false if they do not
    /// fit.
    pub(crate) fn write_now(&mut self, bytes: &[u8]) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let written = Pin::new(&mut *self).poll_write(&mut cx, bytes);
        let whole = matches!(written, Poll::Ready(Ok(n)) if n == bytes.len());
        whole && Pin::new(self).poll_shutdown(&mut cx).is_ready()
    }

    /// What remains to be waited for after a clean shutdown, until the peer
    /// has received everything; `None` if it already has.
    pub(crate) fn delivery(&mut self) -> Option<Delivery> {
        match self {
            Raw::Quic { send, .. } => {
                let mut stopped: Delivery = {
                    let stopped = send.stopped();
                    Box::pin(async move { drop(stopped.await) })
                };
                let mut cx = Context::from_waker(Waker::noop());
                stopped.as_mut().poll(&mut cx).is_pending().then_some(stopped)
            }
            Raw::Tls(stream) => stream.delivery(),
        }
    }
}

fn unread(error: quinn::ReadError) -> io::Error {
    match error {
        quinn::ReadError::ClosedStream => io::ErrorKind::NotConnected.into(),
        other => io::Error::new(io::ErrorKind::ConnectionReset, other),
    }
}

fn unwritten(error: quinn::WriteError) -> io::Error {
    match error {
        quinn::WriteError::ClosedStream => io::ErrorKind::BrokenPipe.into(),
        other => io::Error::new(io::ErrorKind::ConnectionReset, other),
    }
}

/// Completes when a stream's last byte has arrived at the peer.
pub(crate) type Delivery = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl AsyncRead for Raw {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Raw::Quic { recv, .. } => recv.poll_read_buf(cx, buf).map_err(unread),
            Raw::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Raw {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Raw::Quic { send, .. } => Pin::new(send).poll_write(cx, buf).map_err(unwritten),
            Raw::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // quinn sends as soon as windows allow.
            Raw::Quic { .. } => Poll::Ready(Ok(())),
            Raw::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            // Fails on a stream that has ended already, which is what is wanted.
            Raw::Quic { send, .. } => {
                let _ = send.finish();
                Poll::Ready(Ok(()))
            }
            Raw::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
