//! QUIC connections (RFC 9000) of the mesh: explicit limits, no 0-RTT, peers
//! verified like everywhere.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use mesh_core::Allowed;
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, TokioRuntime,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;

use crate::{
    datagrams::Cids,
    net::Net,
    retry::{TokenKey, WallClock},
    session::MAX_STREAMS,
    tls::{Credentials, SERVER_NAME, Witness},
};

/// What one stream may have in flight: 100 Mbit/s at 40 ms.
const STREAM_WINDOW: u32 = 512 * 1024;
/// What all streams together may have unread. 128 streams can stall with full
/// windows before the others feel it; only a peer that is stalled costs it.
const RECEIVE_WINDOW: u32 = 64 << 20;
/// What we keep of sent bytes until they are acknowledged: 1 Gbit/s at 128 ms.
const SEND_WINDOW: u64 = 16 << 20;
/// A tunnel must survive the shortest timeouts of address translators.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Three keep-alives.
pub(crate) const IDLE: Duration = Duration::from_secs(30);
/// First guess, so that a lost first packet is sent again after 300 ms and
/// not after a second (RFC 9002 section 6.2.2).
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Connection attempts that the endpoint holds for `accept`.
const MAX_INCOMING: usize = 1024;
/// Bytes that a client may send before we begin with its handshake.
const INCOMING_BUFFER: u64 = 16 * 1024;
/// The same for all clients.
const INCOMING_BUFFERS: u64 = 4 << 20;
/// The only version that peers of ours begin with; a Retry is made of no other.
const VERSION: u32 = 1;
/// The alert `certificate_required` (RFC 8446 section 6.2) as a QUIC error.
const NO_CERTIFICATE: u8 = 116;

fn transport() -> Arc<quinn::TransportConfig> {
    static TRANSPORT: LazyLock<Arc<quinn::TransportConfig>> = LazyLock::new(|| {
        let mut config = quinn::TransportConfig::default();
        // One more for stream 0.
        config.max_concurrent_bidi_streams((MAX_STREAMS + 1).into());
        config.max_concurrent_uni_streams(0u32.into());
        config.stream_receive_window(STREAM_WINDOW.into());
        config.receive_window(RECEIVE_WINDOW.into());
        config.send_window(SEND_WINDOW);
        config.keep_alive_interval(Some(KEEP_ALIVE));
        config.max_idle_timeout(Some(IDLE.try_into().expect("30 s fit into 62 bits of ms")));
        config.initial_rtt(INITIAL_RTT);
        config.datagram_receive_buffer_size(None);
        Arc::new(config)
    });
    TRANSPORT.clone()
}

/// The workers of a process share the key of their stateless resets (RFC 9000
/// section 10.3): a client whose address changes may be led to a worker that
/// does not know its connection, and learns at once that it has to dial anew.
fn listening_config() -> EndpointConfig {
    static CONFIG: LazyLock<EndpointConfig> = LazyLock::new(EndpointConfig::default);
    CONFIG.clone()
}

fn endpoint_config(net: &dyn Net, mut config: EndpointConfig) -> EndpointConfig {
    config.rng_seed(net.quic_seed());
    config.supported_versions(vec![VERSION]);
    if let Some(generation) = net.generation() {
        config.cid_generator(move || Box::new(Cids(generation)));
    }
    config
}

/// Connects to one address; the peer's certificate is verified, its `Hello`
/// still to come. Each tunnel has a socket of its own, so that the kernel can
/// spread their work.
pub(crate) async fn connect(
    net: &dyn Net,
    credentials: &Arc<Credentials>,
    addr: SocketAddr,
    allowed: Allowed,
) -> io::Result<quinn::Connection> {
    let any = match addr {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = net.udp(any, false).await?.socket;
    let config = endpoint_config(net, EndpointConfig::default());
    let endpoint =
        Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))?;
    let witness = Witness::default();
    let tls = credentials.client_witnessed(mesh_api::ALPN_TUNNEL, allowed, witness.clone());
    let crypto = QuicClientConfig::try_from(tls).expect("the provider has AES-128-GCM");
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    let connecting = endpoint
        .connect_with(config, addr, SERVER_NAME)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    connecting.await.map_err(|error| witness.explain(error.into()))
}

/// The listening side.
#[derive(Debug, Clone)]
pub(crate) struct Acceptor {
    pub(crate) endpoint: Endpoint,
    /// With the keys of retry tokens; the certificates are looked up anew for
    /// every connection.
    base: quinn::ServerConfig,
    credentials: Arc<Credentials>,
    allowed: Allowed,
}

impl Acceptor {
    pub(crate) fn new(
        net: &dyn Net,
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        credentials: &Arc<Credentials>,
        allowed: Allowed,
    ) -> io::Result<Self> {
        let crypto = crypto(credentials, &allowed, Witness::default());
        let mut base = quinn::ServerConfig::with_crypto(crypto);
        base.transport_config(transport());
        base.token_key(TokenKey::of_process());
        base.time_source(Arc::new(WallClock));
        base.max_incoming(MAX_INCOMING);
        base.incoming_buffer_size(INCOMING_BUFFER);
        base.incoming_buffer_size_total(INCOMING_BUFFERS);
        let endpoint = Endpoint::new_with_abstract_socket(
            endpoint_config(net, listening_config()),
            Some(base.clone()),
            socket,
            Arc::new(TokioRuntime),
        )?;
        Ok(Self { endpoint, base, credentials: credentials.clone(), allowed })
    }

    /// The handshake of one connection.
    pub(crate) async fn accept(&self, incoming: quinn::Incoming) -> io::Result<quinn::Connection> {
        let witness = Witness::default();
        let mut config = self.base.clone();
        config.crypto = crypto(&self.credentials, &self.allowed, witness.clone());
        let explained = |error| witness.explain(certificate_missing(error));
        incoming.accept_with(Arc::new(config)).map_err(explained)?.await.map_err(explained)
    }
}

fn crypto(
    credentials: &Arc<Credentials>,
    allowed: &Allowed,
    witness: Witness,
) -> Arc<QuicServerConfig> {
    let tls = credentials.server_witnessed(&[mesh_api::ALPN_TUNNEL], allowed.clone(), witness);
    Arc::new(QuicServerConfig::try_from(tls).expect("the provider has AES-128-GCM"))
}

/// No verifier is asked about a certificate that is not there.
fn certificate_missing(error: ConnectionError) -> io::Error {
    let code = quinn::TransportErrorCode::crypto(NO_CERTIFICATE);
    match &error {
        ConnectionError::TransportError(ours) if ours.code == code => {
            io::Error::new(io::ErrorKind::InvalidData, mesh_core::VerifyError::NoCertificate)
        }
        _ => error.into(),
    }
}

/// What the peer presented.
pub(crate) fn chain_of(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity().and_then(|any| any.downcast().ok());
    identity.map(|chain: Box<Vec<_>>| *chain).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::{
        datagrams::Generation,
        net::RealNet,
        testing::{Authority, credentials},
    };

    /// One of several at an address, that takes whoever comes.
    async fn worker(addr: SocketAddr, acceptor: &Acceptor) -> Endpoint {
        let socket = RealNet.udp(addr, true).await.unwrap().socket;
        let mut config = listening_config();
        config.cid_generator(|| Box::new(Cids(Generation(1))));
        let base = Some(acceptor.base.clone());
        let endpoint =
            Endpoint::new_with_abstract_socket(config, base, socket, Arc::new(TokioRuntime))
                .unwrap();
        let (acceptor, accepting) = (acceptor.clone(), endpoint.clone());
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = accepting.accept().await {
                held.push(acceptor.accept(incoming).await.unwrap());
            }
        });
        endpoint
    }

    #[tokio::test]
    async fn whose_new_address_leads_to_another_worker_learns_it_at_once() {
        let east = Authority::new("east.example");
        let held = credentials(&east, &east.gateway(), &[&east]);
        let near = credentials(&east, &east.workload("a"), &[&east]);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = RealNet.udp(any, true).await.unwrap().socket;
        let allowed = Allowed::Neighbour(east.domain.clone());
        let acceptor = Acceptor::new(&RealNet, socket, &held, allowed).unwrap();
        let first = worker(any, &acceptor).await;
        let addr = first.local_addr().unwrap();
        let _second = worker(addr, &acceptor).await;

        let client = Endpoint::client(any).unwrap();
        let tls = near.client(mesh_api::ALPN_TUNNEL, Allowed::Exactly(east.gateway()));
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let connection = client.connect_with(config, addr, SERVER_NAME).unwrap().await.unwrap();
        // Half of all addresses lead to the other one.
        for _ in 0..30 {
            client.rebind(std::net::UdpSocket::bind(any).unwrap()).unwrap();
            if let Ok(ended) = timeout(Duration::from_millis(500), connection.closed()).await {
                assert_eq!(ended, ConnectionError::Reset);
                return;
            }
        }
        panic!("it never learns");
    }
}
