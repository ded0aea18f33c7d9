//! gRPC to federation: directly, or inside a stream of a tunnel. Either way
//! the (inner) TLS ends at federation.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mesh_core::{Allowed, SiteName, SpiffeId, TrustDomain, identity::Side, path::Connect};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    net::{BoxFuture, Net, Stream},
    session::Session,
    tls::{self, Credentials, Proved},
};

/// How to get to federation.
#[derive(Debug, Clone)]
pub enum Route {
    /// Its gRPC listener, `ip:port`.
    Direct(Arc<dyn Net>, std::net::SocketAddr),
    /// A stream to `federation.isthmus-system` of this site through a gateway.
    Through(Session),
    /// A gateway's join door: outer and inner TLS pinned to a root.
    JoinDoor {
        /// Real or simulated.
        net: Arc<dyn Net>,
        /// `host:port` of the gateway's TLS/TCP listener.
        gateway: Arc<str>,
        /// From the token.
        root_spki_sha256: [u8; 32],
    },
}

/// The port name of federation's gRPC in a `Connect`.
pub const CONTROL_PORT: &str = "control";
/// From the first packet to the end of the last handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that is silent for an interval and a timeout is gone.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// A channel to the federation of `site`, whose identity is that of
/// `trust_domain`'s federation. One connection, which ends with the
/// certificate that federation has shown; the caller dials again.
///
/// # Errors
///
/// The connection, or a handshake on the way, failed; [`tls::verify_error`]
/// tells if it was because of a certificate.
pub async fn channel(
    route: Route,
    credentials: &Arc<Credentials>,
    site: &SiteName,
    trust_domain: &TrustDomain,
) -> io::Result<Channel> {
    let connected = connect(route, credentials, site, trust_domain);
    let stream =
        tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(connected)).await.map_err(|_| {
            let text = format!("federation of {site}: no answer within {CONNECT_TIMEOUT:?}");
            io::Error::new(io::ErrorKind::TimedOut, text)
        })??;
    // The authority is sent and never looked at.
    Endpoint::from_static("http://federation.isthmus-system")
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(Once(Arc::new(Mutex::new(Some(stream)))))
        .await
        .map_err(io::Error::other)
}

/// The byte stream whose other end is federation.
async fn connect(
    route: Route,
    credentials: &Arc<Credentials>,
    site: &SiteName,
    trust_domain: &TrustDomain,
) -> io::Result<Stream> {
    let federation = Allowed::Exactly(SpiffeId::federation(trust_domain));
    match route {
        Route::Direct(net, addr) => prove(net.dial(addr).await?, credentials, federation).await,
        Route::Through(session) => {
            let connect = to_federation(site);
            let stream = session.open(&connect, b"").await.map_err(io::Error::other)?;
            prove(Box::new(stream), credentials, federation).await
        }
        Route::JoinDoor { net, gateway, root_spki_sha256 } => {
            let door = Allowed::Exactly(SpiffeId::gateway(trust_domain));
            let pinned =
                |allowed| tls::pinned_client(mesh_api::ALPN_JOIN, root_spki_sha256, allowed);
            let outer = tls::connect(pinned(door), dial_any(&*net, &gateway).await?).await?;
            Ok(Box::new(tls::connect(pinned(federation), outer).await?))
        }
    }
}

fn to_federation(site: &SiteName) -> Connect {
    Connect {
        site: site.clone(),
        service: mesh_api::FEDERATION_SERVICE.parse().expect("the constant is a service name"),
        port: CONTROL_PORT.parse().expect("the constant is a port name"),
        endpoint: None,
        hops: 0,
        connection_id: format!("{:016x}", rand::random::<u64>()),
    }
}

/// Mutual TLS; the stream ends when the peer's certificate does.
async fn prove(
    stream: Stream,
    credentials: &Arc<Credentials>,
    allowed: Allowed,
) -> io::Result<Stream> {
    let config = credentials.client(mesh_api::ALPN_CONTROL, allowed.clone());
    let stream = tls::connect(config, stream).await?;
    let connection = stream.get_ref().1;
    let peer = tls::peer_of(connection, credentials, Side::Server, &allowed)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let chain = tls::chain_of(connection);
    Ok(Box::new(Proved::new(stream, credentials.clone(), peer, chain)))
}

/// The first address of `host_port` that answers.
async fn dial_any(net: &dyn Net, host_port: &str) -> io::Result<Stream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host_port}: no address"));
    for addr in net.resolve(host_port).await? {
        match net.dial(addr).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// A connector for the one connection there is.
#[derive(Clone)]
struct Once(Arc<Mutex<Option<Stream>>>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let text = "the connection to federation has ended";
        let stream = stream.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, text));
        Box::pin(std::future::ready(stream.map(TokioIo::new)))
    }
}
