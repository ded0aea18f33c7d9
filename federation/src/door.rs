//! The gRPC listener: one TCP port, two kinds of visitors.
//!
//! Who offers ALPN `isthmus-join/1` has no certificate and may only join; who
//! offers `h2` must prove an identity. The two never share a server, so that a
//! method for one kind cannot be reached by the other. A connection ends with
//! what proved its caller: at the leaf's end, or when it is revoked.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_api::{ALPN_CONTROL, ALPN_JOIN};
use mesh_core::{Allowed, PeerIdentity, TrustDomain, identity::Side};
use mesh_runtime::{clock, drain::Drain};
use mesh_tunnel::{Credentials, Listener, Stream, admission::Places, tls};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::metrics::Refused;

/// Handshakes that run at once; more wait in the backlog of the socket.
const MAX_HANDSHAKES: usize = 128;
/// Of one source; more are closed, so that others need not wait for them. A
/// gateway's address stands for all who come through it, and who joins there
/// cannot take all of its places (`mesh_tunnel::admission`).
const MAX_HANDSHAKES_PER_SOURCE: usize = 96;
/// A client that is not through by then is not one.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Connections with an identity: proxies and agents of a large site, through
/// its gateways.
const MAX_CONNECTIONS: usize = 20_000;
/// Connections without one.
const MAX_JOINING: usize = 64;
/// Connections that have been accepted and not yet taken by their server.
const ACCEPTED: usize = 64;
/// Between a revocation and the cut: who has just left still gets the answer.
/// What is asked meanwhile is refused by the services.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection whose other end has proved who it is.
pub struct Proved {
    peer: PeerIdentity,
    stream: TlsStream<Stream>,
    ended: Pin<Box<dyn Future<Output = &'static str> + Send>>,
    _place: OwnedSemaphorePermit,
}

/// A connection from somebody without a certificate.
pub struct Joining {
    stream: TlsStream<Stream>,
    _place: OwnedSemaphorePermit,
}

/// What comes in, for tonic's `serve_with_incoming`.
pub struct Incoming {
    /// For the services that need an identity.
    pub proved: ReceiverStream<io::Result<Proved>>,
    /// For `Join`.
    pub joining: ReceiverStream<io::Result<Joining>>,
}

/// Accepts until the process drains.
pub fn open(
    listener: Box<dyn Listener>,
    credentials: Arc<Credentials>,
    own: TrustDomain,
    refused: Refused,
    drain: &Drain,
) -> Incoming {
    let (proved_tx, proved) = mpsc::channel(ACCEPTED);
    let (joining_tx, joining) = mpsc::channel(ACCEPTED);
    let door = Arc::new(Door {
        allowed: Allowed::Controlled(own),
        credentials,
        proved: proved_tx,
        joining: joining_tx,
        places: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        joining_places: Arc::new(Semaphore::new(MAX_JOINING)),
        refused,
    });
    drain.spawn(accept(listener, door, drain.clone()));
    Incoming { proved: ReceiverStream::new(proved), joining: ReceiverStream::new(joining) }
}

struct Door {
    allowed: Allowed,
    credentials: Arc<Credentials>,
    proved: mpsc::Sender<io::Result<Proved>>,
    joining: mpsc::Sender<io::Result<Joining>>,
    places: Arc<Semaphore>,
    joining_places: Arc<Semaphore>,
    refused: Refused,
}

async fn accept(listener: Box<dyn Listener>, door: Arc<Door>, drain: Drain) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let places = Places::new(MAX_HANDSHAKES, MAX_HANDSHAKES_PER_SOURCE);
    loop {
        let handshake = handshakes.clone().acquire_owned().await.expect("never closed");
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                log::warn!(error:%; "the gRPC port cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = match places.take(Some(from.ip())) {
            Ok(place) => place,
            Err(full) => {
                door.refused.count(full.code().into());
                continue;
            }
        };
        let door = door.clone();
        drain.spawn(async move {
            let welcomed = timeout(HANDSHAKE_DEADLINE, door.welcome(stream)).await;
            drop((handshake, place));
            match welcomed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => door.refused.count(refused(from, &error).into()),
                Err(_) => door.refused.count("handshake_timeout".into()),
            }
        });
    }
}

/// Logs it; its code.
fn refused(from: SocketAddr, error: &io::Error) -> &'static str {
    match tls::verify_error(error) {
        Some(reason) => {
            log::warn!(from:%, code = reason.code(), error:%; "caller refused");
            reason.code()
        }
        None => {
            log::debug!(from:%, error:%; "a handshake failed");
            "handshake_failed"
        }
    }
}

impl Door {
    async fn welcome(&self, stream: Stream) -> io::Result<()> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let joins =
            start.client_hello().alpn().is_some_and(|mut offered| offered.any(|a| a == ALPN_JOIN));
        if joins {
            let place = self.joining_places.clone().try_acquire_owned();
            let place = place.map_err(|_| io::Error::other("too many machines join at once"))?;
            let stream = start.into_stream(self.credentials.join_server()).await?;
            let joining = Joining { stream, _place: place };
            return self.joining.send(Ok(joining)).await.map_err(|_| stopping());
        }
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| io::Error::other("too many connections"))?;
        let config = self.credentials.server(&[ALPN_CONTROL], self.allowed.clone());
        let stream = start.into_stream(config).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN_CONTROL) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the client speaks no h2"));
        }
        let peer = tls::peer_of(stream.get_ref().1, &self.credentials, Side::Client, &self.allowed)
            .map_err(|error| io::Error::new(io::ErrorKind::PermissionDenied, error))?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let ended = Box::pin(ended(self.credentials.clone(), peer.clone(), chain));
        let proved = Proved { peer, stream, ended, _place: place };
        self.proved.send(Ok(proved)).await.map_err(|_| stopping())
    }
}

fn stopping() -> io::Error {
    io::Error::other("federation is stopping")
}

/// Waits until what the caller has proved no longer holds.
async fn ended(
    credentials: Arc<Credentials>,
    peer: PeerIdentity,
    chain: Vec<CertificateDer<'static>>,
) -> &'static str {
    let mut changed = credentials.changed();
    let left = Duration::from_secs(peer.not_after.as_secs()).saturating_sub(clock::now_unix());
    let expired = tokio::time::sleep(left);
    tokio::pin!(expired);
    loop {
        tokio::select! {
            () = &mut expired => return "the caller's certificate has ended",
            changed = changed.changed() => if changed.is_err() { return "federation is stopping" },
        }
        if credentials.recheck(&peer, &chain).is_err() {
            tokio::time::sleep(LAST_WORDS).await;
            return "the caller's certificate is no longer accepted";
        }
    }
}

impl Connected for Proved {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl Connected for Joining {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Proved {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(why) = self.ended.as_mut().poll(cx) {
            self.ended = Box::pin(std::future::ready(why));
            log::info!(id = self.peer.id.as_str(), why; "connection ended");
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncRead for Joining {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

macro_rules! write_through {
    ($connection:ident) => {
        impl AsyncWrite for $connection {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.stream).poll_write(cx, buf)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
            ) -> Poll<io::Result<()>> {
                Pin::new(&mut self.stream).poll_shutdown(cx)
            }
        }
    };
}

write_through!(Proved);
write_through!(Joining);
