//! Towards one gateway: QUIC, raced against TLS/TCP.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_api::v1::Hello;
use mesh_core::{Allowed, identity::Side, service::LinkTransport};
use tokio::time::timeout;

use crate::{
    net::Net,
    quic,
    session::{Carrier, Establishing, Session, Transport, establish},
    tls::{self, Before, Binding, Credentials, verify_error},
};

/// Where one gateway can be reached.
#[derive(Debug, Clone, Default)]
pub struct GatewayAddresses {
    /// `host:port` of QUIC listeners.
    pub quic: Vec<Arc<str>>,
    /// `host:port` of TLS/TCP listeners.
    pub tls: Vec<Arc<str>>,
}

/// Why no tunnel came up; one line per attempt.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no tunnel: {0}")]
pub struct DialError(pub String);

/// Opens tunnels.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// Presented and believed.
    pub credentials: Arc<Credentials>,
    /// What this side says first; versions, role, limits and time are filled
    /// in where they are empty.
    pub hello: Hello,
}

/// How long TCP waits for QUIC (RFC 8305 section 5 calls this the connection
/// attempt delay).
pub const TCP_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one gateway and transport that are tried; more are ignored.
const MAX_ATTEMPTS: usize = 8;
/// No address gets less than this, however many there are.
const MIN_ATTEMPT: Duration = Duration::from_secs(1);

impl Dialer {
    /// One tunnel to a gateway that is `allowed`: QUIC first, TLS/TCP 250 ms
    /// later or as soon as QUIC fails, the first whose `Hello` arrives wins.
    /// [`Session::chosen_because`] says why.
    pub async fn dial(
        &self,
        to: &GatewayAddresses,
        allowed: Allowed,
        transport: LinkTransport,
        deadline: Duration,
    ) -> Result<Session, DialError> {
        let attempt = Attempt { dialer: self, allowed, deadline, failures: Mutex::default() };
        let one = async {
            match transport {
                LinkTransport::Quic => attempt.pinned(Transport::Quic, &to.quic).await,
                LinkTransport::Tls => attempt.pinned(Transport::Tls, &to.tls).await,
                LinkTransport::Raced => attempt.race(to).await,
            }
        };
        match timeout(deadline, one).await {
            Ok(Some(session)) => return Ok(session),
            Ok(None) => {}
            Err(_) => attempt.failed(&format_args!("deadline of {deadline:?} passed")),
        }
        let failures = attempt.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        Err(DialError(failures.join("\n")))
    }
}

/// One call of [`Dialer::dial`].
struct Attempt<'a> {
    dialer: &'a Dialer,
    allowed: Allowed,
    deadline: Duration,
    /// One line each.
    failures: Mutex<Vec<String>>,
}

impl Attempt<'_> {
    async fn pinned(&self, transport: Transport, hosts: &[Arc<str>]) -> Option<Session> {
        let session = self.in_turn(transport, hosts).await?;
        Some(session.because(format!("pinned to {transport}")))
    }

    async fn race(&self, to: &GatewayAddresses) -> Option<Session> {
        let mut quic = pin!(self.in_turn(Transport::Quic, &to.quic));
        let mut tls = pin!(self.in_turn(Transport::Tls, &to.tls));
        let (mut quic_failed, mut tls_failed) = match timeout(TCP_DELAY, &mut quic).await {
            Ok(Some(session)) => return Some(session.because("quic: answered first".into())),
            Ok(None) => (true, false),
            Err(_) => (false, false),
        };
        loop {
            tokio::select! {
                session = &mut quic, if !quic_failed => match session {
                    Some(session) => return Some(session.because("quic: answered first".into())),
                    None => quic_failed = true,
                },
                session = &mut tls, if !tls_failed => match session {
                    Some(session) => return Some(session.because(self.why_tls(quic_failed))),
                    None => tls_failed = true,
                },
                else => return None,
            }
        }
    }

    fn why_tls(&self, quic_failed: bool) -> String {
        if !quic_failed {
            return format!("quic: no answer in {TCP_DELAY:?}, tls answered first");
        }
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let quic = failures.iter().find(|line| line.starts_with("quic"));
        quic.cloned().unwrap_or_else(|| "quic: failed".into())
    }

    /// Tries every address of every host.
    async fn in_turn(&self, transport: Transport, hosts: &[Arc<str>]) -> Option<Session> {
        if hosts.is_empty() {
            self.failed(&format_args!("{transport}: the gateway has no such address"));
        }
        let addrs = self.resolve(transport, hosts).await;
        let shares = u32::try_from(addrs.len()).unwrap_or(u32::MAX).max(1);
        let patience = (self.deadline / shares).max(MIN_ATTEMPT);
        for addr in addrs {
            match timeout(patience, self.connect(transport, addr)).await {
                Ok(Ok(session)) => return Some(session),
                Ok(Err(error)) => {
                    if let Some(refused) = verify_error(&error) {
                        log::warn!(addr:% = addr, code = refused.code(); "gateway not believed: {refused}");
                    }
                    self.failed(&format_args!("{transport} {addr}: {error}"));
                }
                Err(_) => {
                    self.failed(&format_args!("{transport} {addr}: no answer in {patience:?}"))
                }
            }
        }
        None
    }

    async fn resolve(&self, transport: Transport, hosts: &[Arc<str>]) -> Vec<SocketAddr> {
        let mut addrs = Vec::new();
        for host in hosts {
            match self.dialer.net.resolve(host).await {
                Ok(found) => addrs.extend(found),
                Err(error) => self.failed(&format_args!("{transport} {host}: {error}")),
            }
        }
        addrs.truncate(MAX_ATTEMPTS);
        addrs
    }

    async fn connect(&self, transport: Transport, addr: SocketAddr) -> io::Result<Session> {
        let Dialer { net, credentials, hello } = self.dialer;
        let before = Before::handshake(credentials);
        let (carrier, binding, chain) = match transport {
            Transport::Quic => {
                let connection =
                    quic::connect(&**net, credentials, addr, self.allowed.clone()).await?;
                let binding = Binding::of_quic(&connection, true)?;
                let chain = quic::chain_of(&connection);
                (Carrier::Quic(connection), binding, chain)
            }
            Transport::Tls => {
                let config = credentials.client(mesh_api::ALPN_TUNNEL, self.allowed.clone());
                let stream = tls::connect(config, net.dial(addr).await?).await?;
                let binding = Binding::of_tls(stream.get_ref().1, true)?;
                let chain = tls::chain_of(stream.get_ref().1);
                (Carrier::tls(stream, true), binding, chain)
            }
        };
        let peer = credentials
            .verify(&chain, Side::Server, &self.allowed)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (credentials, hello) = (credentials.clone(), hello.clone());
        let standing = before.proved(binding, peer.clone(), chain);
        let new = Establishing { carrier, peer, standing, credentials, hello, dialled: true };
        establish(new).await
    }

    fn failed(&self, line: &dyn fmt::Display) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        listen::{Arrival, Door},
        net::{BoxFuture, Listener, RealNet, Stream},
        session::tests::{dialer, door_of},
        testing::{Authority, credentials},
        unix::LocalListener,
    };

    const LONG: Duration = Duration::from_secs(10);

    struct Site {
        east: Authority,
        door: Door,
        to: GatewayAddresses,
        dialer: Dialer,
    }

    async fn site() -> Site {
        let east = Authority::new("east.example");
        let far = credentials(&east, &east.gateway(), &[&east]);
        let near = credentials(&east, &east.workload("checkout"), &[&east]);
        let (door, to) = door_of(&far, Allowed::Neighbour(east.domain.clone())).await;
        Site { east, door, to, dialer: dialer(&near) }
    }

    impl Site {
        async fn dial(
            &self,
            to: &GatewayAddresses,
            transport: LinkTransport,
            deadline: Duration,
        ) -> Result<Session, DialError> {
            let allowed = Allowed::Exactly(self.east.gateway());
            self.dialer.dial(to, allowed, transport, deadline).await
        }
    }

    /// A UDP socket that reads nothing: its address is a black hole.
    fn black_hole() -> (std::net::UdpSocket, Arc<str>) {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap().to_string().into();
        (socket, addr)
    }

    #[tokio::test]
    async fn quic_wins_where_it_works() {
        let site = site().await;
        // TCP fails at once, however long QUIC takes on a busy machine.
        let to = GatewayAddresses { tls: vec!["127.0.0.1:1".into()], ..site.to.clone() };
        let session = site.dial(&to, LinkTransport::Raced, LONG).await.unwrap();
        assert_eq!(session.transport(), Transport::Quic);
        assert_eq!(session.chosen_because(), "quic: answered first");
    }

    #[tokio::test]
    async fn tls_wins_where_udp_goes_nowhere() {
        let site = site().await;
        let (_socket, addr) = black_hole();
        let to = GatewayAddresses { quic: vec![addr], ..site.to.clone() };
        let session = site.dial(&to, LinkTransport::Raced, LONG).await.unwrap();
        assert_eq!(session.transport(), Transport::Tls);
        assert!(session.chosen_because().contains("no answer in 250ms"), "{session:?}");
        let Arrival::Tunnel(far) = site.door.accept().await.unwrap() else { panic!() };
        assert_eq!(far.transport(), Transport::Tls);
    }

    #[tokio::test]
    async fn without_quic_addresses_tls_does_not_wait() {
        let site = site().await;
        let to = GatewayAddresses { quic: vec![], ..site.to.clone() };
        let session = site.dial(&to, LinkTransport::Raced, LONG).await.unwrap();
        assert_eq!(session.chosen_because(), "quic: the gateway has no such address");
    }

    #[tokio::test]
    async fn pinned_transports_never_fall_back() {
        let site = site().await;
        let (_socket, hole) = black_hole();
        let to = GatewayAddresses { quic: vec![hole], ..site.to.clone() };
        let short = Duration::from_millis(600);
        let error = site.dial(&to, LinkTransport::Quic, short).await.unwrap_err();
        assert!(error.to_string().contains("deadline"), "{error}");
        assert!(!error.to_string().contains("tls"), "{error}");

        let to = GatewayAddresses { tls: vec!["127.0.0.1:1".into()], ..site.to.clone() };
        let error = site.dial(&to, LinkTransport::Tls, LONG).await.unwrap_err();
        assert!(error.to_string().starts_with("no tunnel: tls 127.0.0.1:1"), "{error}");
    }

    #[tokio::test]
    async fn every_address_is_tried_and_every_failure_told() {
        let site = site().await;
        let dead: Arc<str> = "127.0.0.1:1".into();
        let unknown: Arc<str> = "no-such-host.invalid:1".into();
        let to = GatewayAddresses {
            quic: vec![],
            tls: vec![unknown.clone(), dead.clone(), site.to.tls[0].clone()],
        };
        site.dial(&to, LinkTransport::Raced, LONG).await.unwrap();
        let to = GatewayAddresses { quic: vec![unknown], tls: vec![dead] };
        let text = site.dial(&to, LinkTransport::Raced, LONG).await.unwrap_err().to_string();
        assert!(text.contains("quic no-such-host.invalid:1"), "{text}");
        assert!(text.contains("tls 127.0.0.1:1"), "{text}");
    }

    #[tokio::test]
    async fn a_gateway_of_another_domain_is_refused_by_the_dialler() {
        let site = site().await;
        let west = Authority::new("west.example");
        let far = credentials(&west, &west.gateway(), &[&west, &site.east]);
        let (_door, to) = door_of(&far, Allowed::Known).await;
        for transport in [LinkTransport::Quic, LinkTransport::Tls] {
            let error = site.dial(&to, transport, LONG).await.unwrap_err();
            assert!(error.to_string().contains("unknown trust domain west.example"), "{error}");
        }
    }

    /// Counts what is asked of it.
    #[derive(Debug, Default)]
    struct Counting(Mutex<Vec<String>>);

    impl Net for Counting {
        fn bind(
            &self,
            addr: SocketAddr,
            shared: bool,
        ) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
            RealNet.bind(addr, shared)
        }
        fn is_free(&self, addr: SocketAddr) -> io::Result<()> {
            RealNet.is_free(addr)
        }
        fn dial(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
            self.0.lock().unwrap().push(format!("dial {addr}"));
            Box::pin(async move { RealNet.dial(addr).await })
        }
        fn udp(
            &self,
            addr: SocketAddr,
            shared: bool,
        ) -> BoxFuture<'_, io::Result<crate::net::Datagrams>> {
            self.0.lock().unwrap().push("udp".into());
            Box::pin(async move { RealNet.udp(addr, shared).await })
        }
        fn dial_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Stream>> {
            RealNet.dial_unix(path)
        }
        fn bind_unix<'a>(
            &'a self,
            path: &'a Path,
            mode: u32,
        ) -> BoxFuture<'a, io::Result<Box<dyn LocalListener>>> {
            RealNet.bind_unix(path, mode)
        }

        fn has(&self, ip: std::net::IpAddr) -> bool {
            RealNet.has(ip)
        }
        fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
            self.0.lock().unwrap().push(format!("resolve {host}"));
            Box::pin(async move { RealNet.resolve(host).await })
        }
    }

    #[tokio::test]
    async fn names_are_resolved_each_time_and_many_addresses_are_cut() {
        let site = site().await;
        let net = Arc::new(Counting::default());
        let dialer = Dialer { net: net.clone(), ..site.dialer.clone() };
        let allowed = || Allowed::Exactly(site.east.gateway());
        let to = GatewayAddresses { quic: vec![], ..site.to.clone() };
        for _ in 0..2 {
            dialer.dial(&to, allowed(), LinkTransport::Tls, LONG).await.unwrap();
        }
        let resolved = format!("resolve {}", to.tls[0]);
        let seen = std::mem::take(&mut *net.0.lock().unwrap());
        assert_eq!(seen.iter().filter(|line| **line == resolved).count(), 2);

        let to = GatewayAddresses { quic: vec![], tls: vec!["127.0.0.1:1".into(); 50] };
        dialer.dial(&to, allowed(), LinkTransport::Tls, LONG).await.unwrap_err();
        let dials = net.0.lock().unwrap().iter().filter(|line| line.starts_with("dial")).count();
        assert_eq!(dials, MAX_ATTEMPTS);
    }
}
