//! gRPC on a Unix socket: whoever is at the other end is known by the
//! credentials that the kernel vouches for (`SO_PEERCRED`, `unix(7)`).

pub mod authority;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream;
use hyper_util::rt::TokioIo;
use rustix::process::geteuid;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, Uri, server::Connected},
};

use self::authority::Authorities;
use crate::net::{BoxFuture, Net, RealNet, Stream};

/// Local callers are a handful of programs; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// Connections of one user that is neither root nor our own: whoever may open
/// the socket file must not take all places and sit on them.
const MAX_OF_A_STRANGER: usize = 8;
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A local process that does not accept within this time is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Who called, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixPeer {
    /// Effective user when it connected.
    pub uid: u32,
    /// Effective group when it connected.
    pub gid: u32,
    /// Process, if it can be named in our namespace.
    pub pid: Option<i32>,
    /// When it was accepted, after boot: a process that began later has only
    /// got its number.
    pub accepted: Duration,
}

/// Accepts on a Unix socket.
pub trait LocalListener: Send + Sync + 'static {
    /// The next connection and who is at its other end.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, UnixPeer)>>;
}

impl LocalListener for UnixListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, UnixPeer)>> {
        Box::pin(async move {
            let (stream, _) = UnixListener::accept(self).await?;
            let peer = stream.peer_cred()?;
            let accepted = mesh_runtime::clock::since_boot();
            let peer = UnixPeer { uid: peer.uid(), gid: peer.gid(), pid: peer.pid(), accepted };
            Ok((Box::new(stream) as Stream, peer))
        })
    }
}

impl LocalListener for Box<dyn LocalListener> {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, UnixPeer)>> {
        (**self).accept()
    }
}

/// A connection that a server accepted on a Unix socket.
#[derive(Debug)]
pub struct UnixConn {
    stream: Stream,
    authorities: Authorities,
    peer: UnixPeer,
    _place: OwnedSemaphorePermit,
    _share: Share,
}

/// How many connections each user has.
#[derive(Debug, Clone, Default)]
struct Users(Arc<Mutex<BTreeMap<u32, usize>>>);

/// One connection of a user's share; given back when dropped.
#[derive(Debug)]
struct Share {
    users: Users,
    uid: u32,
}

impl Users {
    /// `None` if a stranger has its share.
    fn admit(&self, uid: u32, own: u32) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        if uid != 0 && uid != own && *count >= MAX_OF_A_STRANGER {
            return None;
        }
        *count += 1;
        Some(Share { users: self.clone(), uid })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.users.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = counts.entry(self.uid) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Connections for tonic's `serve_with_incoming`; a bounded number at once, and
/// fewer of a user who is a stranger.
pub fn incoming(
    listener: impl LocalListener,
) -> impl futures_util::Stream<Item = io::Result<UnixConn>> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((listener, places, Users::default()), |(listener, places, users)| async move {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let (stream, peer, share) = loop {
            match listener.accept().await {
                Ok((stream, peer)) => match users.admit(peer.uid, geteuid().as_raw()) {
                    Some(share) => break (stream, peer, share),
                    None => {
                        log::debug!(uid = peer.uid; "unix socket: too many connections of one user");
                    }
                },
                Err(error) => {
                    log::warn!(error = error.to_string().as_str(); "unix socket: cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        let authorities = Authorities::default();
        let conn = UnixConn { stream, authorities, peer, _place: place, _share: share };
        Some((Ok(conn), (listener, places, users)))
    })
}

/// The caller of a request that came over an [`incoming`] connection.
pub fn peer<T>(request: &Request<T>) -> Result<UnixPeer, Status> {
    let peer = request.extensions().get::<Option<UnixPeer>>().copied().flatten();
    peer.ok_or_else(|| Status::unauthenticated("the kernel does not say who is calling"))
}

/// A channel to a server on a Unix socket; it connects again when needed.
///
/// # Errors
///
/// Nobody listens there, or the caller may not connect; the text names the
/// path.
pub async fn channel(path: &Path) -> io::Result<Channel> {
    channel_over(Arc::new(RealNet), path).await
}

/// The same over another network than the real one.
///
/// # Errors
///
/// As [`channel`].
pub async fn channel_over(net: Arc<dyn Net>, path: &Path) -> io::Result<Channel> {
    let socket = Socket { net, path: path.into(), first: Arc::default() };
    // tonic hides why a connection fails: the first one is made by hand.
    let first = socket.connect().await?;
    *socket.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
    // The authority is sent and never looked at.
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(socket))
}

/// Where a channel connects to.
#[derive(Debug, Clone)]
struct Socket {
    net: Arc<dyn Net>,
    path: Arc<Path>,
    /// Not used yet.
    first: Arc<Mutex<Option<Stream>>>,
}

impl Socket {
    async fn connect(&self) -> io::Result<Stream> {
        let named =
            |kind, why: String| io::Error::new(kind, format!("{}: {why}", self.path.display()));
        match tokio::time::timeout(CONNECT_TIMEOUT, self.net.dial_unix(&self.path)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(named(error.kind(), error.to_string())),
            Err(_) => {
                let why = format!("no answer within {CONNECT_TIMEOUT:?}");
                Err(named(io::ErrorKind::TimedOut, why))
            }
        }
    }
}

impl tower_service::Service<Uri> for Socket {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let socket = self.clone();
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            let stream = match first {
                Some(stream) => stream,
                None => socket.connect().await?,
            };
            Ok(TokioIo::new(stream))
        })
    }
}

impl Connected for UnixConn {
    type ConnectInfo = Option<UnixPeer>;

    fn connect_info(&self) -> Option<UnixPeer> {
        Some(self.peer)
    }
}

impl AsyncRead for UnixConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.authorities.mend(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UnixConn {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_the_caller() {
        mesh_runtime::process::current_thread().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("door.sock");
            assert_eq!(channel(&path).await.unwrap_err().kind(), io::ErrorKind::NotFound);
            let listener = mesh_runtime::process::bind_unix(&path, 0o600).await.unwrap();
            let mut connections = Box::pin(incoming(listener));
            let _client = channel(&path).await.unwrap();
            use futures_util::StreamExt;
            let accepted = connections.next().await.unwrap().unwrap();
            let peer = accepted.connect_info().unwrap();
            assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        });
    }

    #[test]
    fn the_connection_that_was_tried_is_used() {
        use std::future::poll_fn;

        use tower_service::Service;

        mesh_runtime::process::current_thread().unwrap().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("door.sock");
            let listener = mesh_runtime::process::bind_unix(&path, 0o600).await.unwrap();
            let mut channel = channel(&path).await.unwrap();
            poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
            let call = channel.call(http::Request::new(tonic::body::Body::empty()));
            let served = async {
                let (mut stream, _) = UnixListener::accept(&listener).await.unwrap();
                let mut preface = [0; 3];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut preface).await.unwrap();
                assert_eq!(&preface, b"PRI", "HTTP/2 begins on it (RFC 9113 section 3.4)");
            };
            tokio::select! {
                answer = call => panic!("nobody has answered: {answer:?}"),
                () = served => {}
            }
        });
    }

    #[test]
    fn a_stranger_cannot_take_all_places() {
        let users = Users::default();
        let held: Vec<_> = (0..MAX_CONNECTIONS).map_while(|_| users.admit(1000, 990)).collect();
        assert_eq!(held.len(), MAX_OF_A_STRANGER);
        let others = [0, 990, 1001].map(|uid| users.admit(uid, 990));
        assert!(others.iter().all(Option::is_some));
        drop(held);
        assert!(users.admit(1000, 990).is_some());
        drop(others);
        let all: Vec<_> = (0..MAX_CONNECTIONS).map_while(|_| users.admit(0, 990)).collect();
        assert_eq!(all.len(), MAX_CONNECTIONS);
        drop(all);
        assert!(users.0.lock().unwrap().is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn an_unknown_caller_is_refused() {
        assert_eq!(peer(&Request::new(())).unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
