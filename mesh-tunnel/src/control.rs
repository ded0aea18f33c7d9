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
    Through(Session, SiteName),
    /// Its gRPC listener, `host:port`, for who has no certificate yet and shows
    /// a token instead.
    DirectJoin(Arc<dyn Net>, Arc<str>),
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

/// A channel to the federation of a site, whose identity is that of
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
    trust_domain: &TrustDomain,
) -> io::Result<Channel> {
    let connected = connect(route, credentials, trust_domain);
    let stream =
        tokio::time::timeout(CONNECT_TIMEOUT, Box::pin(connected)).await.map_err(|_| {
            let text =
                format!("federation of {trust_domain}: no answer within {CONNECT_TIMEOUT:?}");
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
    trust_domain: &TrustDomain,
) -> io::Result<Stream> {
    let federation = Allowed::Exactly(SpiffeId::federation(trust_domain));
    match route {
        Route::Direct(net, addr) => prove(net.dial(addr).await?, credentials, federation).await,
        Route::Through(session, site) => {
            let connect = to_federation(&site);
            let stream = session.open(&connect, b"").await.map_err(io::Error::other)?;
            prove(Box::new(stream), credentials, federation).await
        }
        Route::DirectJoin(net, host_port) => {
            let stream = dial_any(&*net, &host_port).await?;
            let config = credentials.client(mesh_api::ALPN_JOIN, federation);
            Ok(Box::new(tls::connect(config, stream).await?))
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

#[cfg(test)]
mod tests {
    use mesh_api::v1::{
        JoinNodeRequest, JoinNodeResponse, RedeemLinkRequest, RedeemLinkResponse,
        join_client::JoinClient,
        join_server::{Join, JoinServer},
    };
    use mesh_core::service::LinkTransport;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::{
        listen::{Arrival, Door},
        net::RealNet,
        session::tests::{dialer, door_of},
        testing::{Authority, credentials},
    };

    /// Answers everything with an error that names it.
    struct Named(&'static str);

    #[tonic::async_trait]
    impl Join for Named {
        async fn join_node(
            &self,
            _: Request<JoinNodeRequest>,
        ) -> Result<Response<JoinNodeResponse>, Status> {
            Err(Status::failed_precondition(self.0))
        }
        async fn redeem_link(
            &self,
            _: Request<RedeemLinkRequest>,
        ) -> Result<Response<RedeemLinkResponse>, Status> {
            Err(Status::failed_precondition(self.0))
        }
    }

    async fn asked(channel: Channel) -> String {
        let answer = JoinClient::new(channel).join_node(JoinNodeRequest::default()).await;
        answer.unwrap_err().message().into()
    }

    struct Site {
        east: Authority,
        federation: std::net::SocketAddr,
        door: Arc<Door>,
        to: crate::GatewayAddresses,
    }

    /// Federation with both of its faces, and a gateway that copies to it.
    async fn site() -> Site {
        let east = Authority::new("east.example");
        let id = SpiffeId::federation(&east.domain);
        let held = credentials(&east, &id, &[&east]);
        let listener = RealNet.bind(([127, 0, 0, 1], 0).into(), false).await.unwrap();
        let federation = listener.local_addr().unwrap();
        let own = Allowed::Controlled(east.domain.clone());
        let faces = [
            (held.server(&[mesh_api::ALPN_CONTROL], own), "mutual"),
            (held.join_server(), "joining"),
        ];
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let faces = faces.clone();
                tokio::spawn(serve(stream, faces));
            }
        });
        let gateway = credentials(&east, &east.gateway(), &[&east]);
        let (door, to) = door_of(&gateway, Allowed::Neighbour(east.domain.clone())).await;
        let door = Arc::new(door);
        tokio::spawn(relay(door.clone(), federation));
        Site { east, federation, door, to }
    }

    /// Chooses the face by ALPN.
    async fn serve(stream: Stream, faces: [(Arc<rustls::ServerConfig>, &'static str); 2]) {
        let acceptor = rustls::server::Acceptor::default();
        let start = tokio_rustls::LazyConfigAcceptor::new(acceptor, stream).await.unwrap();
        let joins = start.client_hello().alpn().unwrap().any(|alpn| alpn == mesh_api::ALPN_JOIN);
        let (config, name) = faces[usize::from(joins)].clone();
        let Ok(stream) = start.into_stream(config).await else { return };
        let service = JoinServer::new(Named(name));
        let io = hyper_util::rt::TokioIo::new(stream);
        let service = hyper_util::service::TowerToHyperService::new(service);
        let executor = hyper_util::rt::TokioExecutor::new();
        let _ = hyper_util::server::conn::auto::Builder::new(executor)
            .http2_only()
            .serve_connection(io, service)
            .await;
    }

    async fn relay(door: Arc<Door>, federation: std::net::SocketAddr) {
        while let Ok(arrival) = door.accept().await {
            match arrival {
                Arrival::Join(mut stream, _) => {
                    let mut to = RealNet.dial(federation).await.unwrap();
                    tokio::spawn(async move {
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
                    });
                }
                Arrival::Tunnel(session) => {
                    tokio::spawn(async move {
                        let incoming = session.accept().await.unwrap();
                        assert_eq!(incoming.connect.service.as_str(), mesh_api::FEDERATION_SERVICE);
                        assert_eq!(incoming.connect.port.as_str(), CONTROL_PORT);
                        let mut stream = incoming.accept().await.unwrap();
                        let mut to = RealNet.dial(federation).await.unwrap();
                        let _ = tokio::io::copy_bidirectional(&mut stream, &mut to).await;
                    });
                }
            }
        }
    }

    #[tokio::test]
    async fn every_route_ends_at_federation() {
        let site = site().await;
        let name: SiteName = "east".parse().unwrap();
        let domain = &site.east.domain;
        let net: Arc<dyn Net> = Arc::new(RealNet);
        let held = credentials(&site.east, &site.east.workload("a"), &[&site.east]);
        let direct = Route::Direct(net.clone(), site.federation);
        assert_eq!(asked(channel(direct, &held, domain).await.unwrap()).await, "mutual");
        for transport in [LinkTransport::Quic, LinkTransport::Tls] {
            let gateway = Allowed::Exactly(site.east.gateway());
            let dialer = dialer(&held);
            let session = dialer.dial(&site.to, gateway, transport, CONNECT_TIMEOUT).await.unwrap();
            let route = Route::Through(session, name.clone());
            assert_eq!(asked(channel(route, &held, domain).await.unwrap()).await, "mutual");
        }
        let token = Credentials::new(None, held.trust());
        let join = Route::DirectJoin(net.clone(), site.federation.to_string().into());
        assert_eq!(asked(channel(join, &token, domain).await.unwrap()).await, "joining");
        let nobody = Credentials::new(None, tls::Trust::default());
        let stranger = Route::DirectJoin(net.clone(), site.federation.to_string().into());
        channel(stranger, &nobody, domain).await.unwrap_err();
        let join = |root_spki_sha256| Route::JoinDoor {
            net: net.clone(),
            gateway: site.to.tls[0].clone(),
            root_spki_sha256,
        };
        let pinned = join(site.east.pin());
        assert_eq!(asked(channel(pinned, &nobody, domain).await.unwrap()).await, "joining");
        let error = channel(join([7; 32]), &nobody, domain).await.unwrap_err();
        assert_eq!(tls::verify_error(&error).unwrap().code(), "peer_untrusted_chain");
        assert!(site.door.turned_away().iter().all(|(code, _)| *code == "handshake_failed"));
    }

    #[tokio::test]
    async fn a_federation_of_another_name_is_refused() {
        let site = site().await;
        let west = Authority::new("west.example");
        let held = credentials(&site.east, &site.east.workload("a"), &[&site.east, &west]);
        let route = Route::Direct(Arc::new(RealNet), site.federation);
        let error = channel(route, &held, &west.domain).await.unwrap_err();
        assert_eq!(tls::verify_error(&error).unwrap().code(), "peer_not_allowed");
    }

    #[tokio::test]
    async fn a_channel_ends_when_federation_is_no_longer_believed() {
        let site = site().await;
        let held = credentials(&site.east, &site.east.workload("a"), &[&site.east]);
        let route = Route::Direct(Arc::new(RealNet), site.federation);
        let channel = channel(route, &held, &site.east.domain).await.unwrap();
        assert_eq!(asked(channel.clone()).await, "mutual");
        held.replace_trust(tls::Trust::default());
        for _ in 0..1000 {
            if asked(channel.clone()).await != "mutual" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the channel goes on");
    }
}
