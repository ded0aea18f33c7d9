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
    tls::{self, Credentials, verify_error},
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
        let (carrier, chain) = match transport {
            Transport::Quic => {
                let connection =
                    quic::connect(&**net, credentials, addr, self.allowed.clone()).await?;
                let chain = quic::chain_of(&connection);
                (Carrier::Quic(connection), chain)
            }
            Transport::Tls => {
                let config = credentials.client(mesh_api::ALPN_TUNNEL, self.allowed.clone());
                let stream = tls::connect(config, net.dial(addr).await?).await?;
                let chain = tls::chain_of(stream.get_ref().1);
                (Carrier::tls(stream, true), chain)
            }
        };
        let peer = credentials
            .verify(&chain, Side::Server, &self.allowed)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (credentials, hello) = (credentials.clone(), hello.clone());
        establish(Establishing { carrier, peer, chain, credentials, hello, dialled: true }).await
    }

    fn failed(&self, line: &dyn fmt::Display) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_string());
    }
}
