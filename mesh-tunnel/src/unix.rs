//! gRPC on a Unix socket: whoever is at the other end is known by the
//! credentials that the kernel vouches for (`SO_PEERCRED`, `unix(7)`).

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint, server::Connected},
};

/// Local callers are a handful of programs; more wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
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
}

/// A connection that a server accepted on a Unix socket.
#[derive(Debug)]
pub struct UnixConn {
    stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

/// Connections for tonic's `serve_with_incoming`; a bounded number at once.
pub fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<UnixConn>> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    stream::unfold((listener, places), |(listener, places)| async move {
        let place = places.clone().acquire_owned().await.expect("never closed");
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    log::warn!(error = error.to_string().as_str(); "unix socket: cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        };
        Some((Ok(UnixConn { stream, _place: place }), (listener, places)))
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
    let named = |kind, why: String| io::Error::new(kind, format!("{}: {why}", path.display()));
    // tonic hides why a connection fails: try once by hand for the reason.
    match tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return Err(named(error.kind(), error.to_string())),
        Err(_) => {
            let why = format!("no answer within {CONNECT_TIMEOUT:?}");
            return Err(named(io::ErrorKind::TimedOut, why));
        }
    }
    let text = path.to_str().ok_or_else(|| {
        named(io::ErrorKind::InvalidInput, "the path of a socket must be UTF-8".to_owned())
    })?;
    let endpoint = Endpoint::from_shared(format!("unix:{text}"))
        .map_err(|error| named(io::ErrorKind::InvalidInput, error.to_string()))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).connect_lazy())
}

impl Connected for UnixConn {
    type ConnectInfo = Option<UnixPeer>;

    fn connect_info(&self) -> Option<UnixPeer> {
        let credentials = self.stream.peer_cred().ok()?;
        Some(UnixPeer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid() })
    }
}

impl AsyncRead for UnixConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
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
    fn an_unknown_caller_is_refused() {
        assert_eq!(peer(&Request::new(())).unwrap_err().code(), tonic::Code::Unauthenticated);
    }
}
