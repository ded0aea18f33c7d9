//! One tunnel.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    PeerIdentity,
    path::{Connect, RefusedReason},
};

/// What carries a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// QUIC (RFC 9000).
    Quic,
    /// TLS 1.3 over TCP with our own stream multiplexing.
    Tls,
}

/// A tunnel; cheap to clone, usable from any thread. It ends when every clone
/// is dropped, when either side closes it, at the end of the peer's leaf, or
/// when the peer is silent for 30 s.
#[derive(Debug, Clone)]
pub struct Session {
    _inner: Arc<()>,
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// A hop answered no. Always safe to retry elsewhere.
    #[error("{hop} refused: {reason} {detail}")]
    Refused {
        /// Why.
        reason: RefusedReason,
        /// Who: `<site>/<gateway>`.
        hop: String,
        /// For people.
        detail: String,
    },
    /// The tunnel is gone or going.
    #[error("tunnel closed")]
    Closed,
    /// No answer within the deadline.
    #[error("no answer from the gateway within {0:?}")]
    Timeout(Duration),
}

impl Session {
    /// Opens a stream and waits for its answer. Up to 16 KiB may be written
    /// ahead by passing `early`.
    pub async fn open(&self, _connect: &Connect, _early: &[u8]) -> Result<TunnelStream, OpenError> {
        unimplemented!()
    }

    /// The next stream that the peer opens; `None` when the tunnel has ended.
    pub async fn accept(&self) -> Option<IncomingStream> {
        unimplemented!()
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        unimplemented!()
    }

    /// The peer's `Hello`.
    pub fn hello(&self) -> &mesh_api::v1::Hello {
        unimplemented!()
    }

    /// What carries it.
    pub fn transport(&self) -> Transport {
        unimplemented!()
    }

    /// Smoothed round-trip time, from the transport or from pings.
    pub fn rtt(&self) -> Option<Duration> {
        unimplemented!()
    }

    /// Tells the peer to open nothing new.
    pub fn drain(&self, _deadline: Duration) {
        unimplemented!()
    }

    /// Whether the peer has said that it goes away.
    pub fn peer_draining(&self) -> bool {
        unimplemented!()
    }

    /// Ends it now; streams are reset.
    pub fn close(&self, _why: &str) {
        unimplemented!()
    }

    /// Waits for its end and says why.
    pub async fn closed(&self) -> String {
        unimplemented!()
    }

    /// Streams open now, both directions.
    pub fn streams(&self) -> usize {
        unimplemented!()
    }
}

/// A stream that the peer wants to open.
#[derive(Debug)]
pub struct IncomingStream {
    /// What it names.
    pub connect: Connect,
}

impl IncomingStream {
    /// Says yes.
    pub async fn accept(self) -> std::io::Result<TunnelStream> {
        unimplemented!()
    }

    /// Says no.
    pub async fn refuse(self, _reason: RefusedReason, _hop: &str, _detail: &str) {
        unimplemented!()
    }
}

/// The bytes of one stream: `AsyncRead + AsyncWrite`, half-close by shutdown,
/// a reset by [`TunnelStream::reset`]. A reset by the peer reads as
/// `ConnectionReset`.
#[derive(Debug)]
pub struct TunnelStream {}

impl TunnelStream {
    /// Aborts both directions.
    pub fn reset(&mut self) {
        unimplemented!()
    }
}
