//! Connections that do not outlive what proved them.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_core::PeerIdentity;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Credentials;
use crate::net::{BoxFuture, Io};

/// The wall clock is looked at this often: it may jump, and timers do not
/// count the time a machine sleeps.
const CLOCK_EVERY: Duration = Duration::from_secs(60);

/// Waits until the peer's certificate has ended, is revoked or has lost its
/// bundle, and says which.
pub async fn disproved(
    credentials: Arc<Credentials>,
    peer: PeerIdentity,
    chain: Vec<CertificateDer<'static>>,
) -> String {
    tokio::select! {
        why = no_longer_believed(&credentials, &peer, &chain) => why,
        () = expired(&peer, Duration::ZERO) => "the peer's certificate has ended".into(),
    }
}

/// Waits until a change of trust makes the peer's chain worthless.
async fn no_longer_believed(
    credentials: &Credentials,
    peer: &PeerIdentity,
    chain: &[CertificateDer<'_>],
) -> String {
    let mut changed = credentials.changed();
    loop {
        if let Err(error) = credentials.recheck(peer, chain) {
            log::warn!(peer = peer.id.as_str(), code = error.code(); "connection cut: {error}");
            return format!("{}: {error}", error.code());
        }
        if changed.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Waits until `lead` before the end of the peer's leaf.
pub(crate) async fn expired(peer: &PeerIdentity, lead: Duration) {
    loop {
        let left = left(peer).saturating_sub(lead);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(CLOCK_EVERY)).await;
    }
}

/// How long the peer's leaf is still good.
pub(crate) fn left(peer: &PeerIdentity) -> Duration {
    let end = Duration::from_secs(peer.not_after.as_secs());
    end.saturating_sub(mesh_runtime::clock::now_unix())
}

/// A stream that fails with `ConnectionAborted` once its peer is
/// [`disproved`].
pub struct Proved<T> {
    inner: T,
    peer: PeerIdentity,
    disproved: BoxFuture<'static, String>,
    /// Set when it is.
    why: Option<String>,
}

impl<T> Proved<T> {
    /// `chain` is what `peer` has presented in the handshake of `inner`.
    pub fn new(
        inner: T,
        credentials: Arc<Credentials>,
        peer: PeerIdentity,
        chain: Vec<CertificateDer<'static>>,
    ) -> Self {
        let disproved = Box::pin(disproved(credentials, peer.clone(), chain));
        Self { inner, peer, disproved, why: None }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.why.is_none()
            && let Poll::Ready(why) = self.disproved.as_mut().poll(cx)
        {
            self.why = Some(why);
        }
        match &self.why {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone())),
        }
    }
}

impl<T: Io> Io for Proved<T> {
    fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        self.inner.raw_fd()
    }

    fn abort_on_close(&mut self) {
        self.inner.abort_on_close();
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Proved<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Proved<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(why) = &self.why {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone())));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
