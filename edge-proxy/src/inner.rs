//! The session between two proxies, end to end: inner TLS 1.3 with both
//! workloads' SVIDs, and streams with framing of our own inside.
//!
//! - [`mux`]: the framing.
//! - [`request`]: one request on a stream.

pub mod mux;
pub mod request;

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use mesh_api::ALPN_INNER;
use mesh_core::{
    Allowed, Endpoint, Path, PeerIdentity, Reason, SiteName, Snapshot, SpiffeId, VerifyError,
    identity::Side,
    path::{Connect, NoPath, RefusedReason, path_to},
};
use mesh_runtime::clock;
use mesh_tunnel::{
    Credentials, OpenError, Stream,
    net::BoxFuture,
    tls::{self, Before, Binding, Standing},
};
use mux::{Guardian, Probing, Spoken, Target};
use tokio::time::Instant;

use crate::{
    access_log::Entry,
    app::Shared,
    metrics::{
        Direction, Open,
        traffic::{self, OpenTcp},
    },
    tunnels::{self, Tunnels},
};

/// Since a session came up, for the streams that it was opened for: however soon
/// its path goes away.
const FIRST_STREAMS: Duration = Duration::from_millis(100);
/// How long an endpoint's proxy on the own network may take to accept.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a path through gateways may take to come up.
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the inner handshake may take once bytes flow.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// An inner session as its source holds it.
#[derive(Debug)]
pub struct Session {
    /// Streams are opened here.
    pub mux: mux::Session,
    /// The endpoint it leads to.
    endpoint: Arc<Endpoint>,
    /// What streams are for, by what is spoken in them.
    targets: [OnceLock<Arc<Target>>; 3],
    /// Who answers; exactly the endpoint's identity.
    pub peer: PeerIdentity,
    /// How bytes get there.
    pub path_kind: &'static str,
    /// Joins the log lines of every hop.
    pub connection: Arc<str>,
    /// What it goes through; `None` if nothing is between.
    pub tunnel: Option<mesh_tunnel::Session>,
    /// Set once it carries requests: connections of opaque bytes are counted
    /// one by one.
    counted: OnceLock<OpenTcp>,
    _open: Open,
}

impl Session {
    /// It carries a request.
    pub fn carries(&self, shared: &Shared, entry: &Entry) {
        self.counted.get_or_init(|| {
            let labels = traffic::labels(shared, entry, true);
            shared.metrics.traffic.opened(&labels, "dst")
        });
    }

    /// What a stream to this endpoint is for.
    pub fn target(&self, protocol: Spoken) -> &Arc<Target> {
        self.targets[protocol as usize].get_or_init(|| {
            let Endpoint { service, port, id, .. } = &*self.endpoint;
            let (service, port, endpoint) = (service.clone(), port.clone(), id.clone());
            let connection = Some(self.connection.clone());
            Arc::new(Target { service, port, endpoint, protocol, connection })
        })
    }
}

/// Why no inner session came up. No request was sent: another endpoint may be
/// tried whatever the request is.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenFailure {
    /// This proxy has no certificate: everybody would refuse it.
    #[error("this proxy has no identity yet; its /ready says why")]
    NoIdentity,
    /// There is no proxy there.
    #[error("it has no proxy: it speaks plaintext")]
    Plaintext,
    /// Nothing leads there.
    #[error(transparent)]
    NoPath(#[from] NoPath),
    /// A hop refused the stream.
    #[error("{hop} refused the stream: {reason} {detail}")]
    Refused {
        /// Its code.
        reason: RefusedReason,
        /// `<site>/<gateway>`.
        hop: String,
        /// For people.
        detail: String,
    },
    /// No gateway could be asked, or none answered.
    #[error("no gateway answered: {0}")]
    Path(String),
    /// The endpoint's proxy does not accept connections.
    #[error("its proxy is not reachable: {0}")]
    Unreachable(String),
    /// The peer is not the endpoint.
    #[error("the peer is not this endpoint: {0}")]
    Identity(VerifyError),
    /// The inner handshake failed otherwise.
    #[error("the inner handshake failed: {0}")]
    Handshake(String),
    /// Too many wait for this endpoint.
    #[error("too many requests wait for it")]
    Overloaded,
}

impl OpenFailure {
    /// The stable code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoIdentity => Reason::NoIdentity,
            Self::NoPath(_) | Self::Plaintext => Reason::NoPath,
            Self::Refused { reason: RefusedReason::Unreachable, .. } => Reason::EndpointUnreachable,
            Self::Refused { .. } | Self::Path(_) => Reason::PathRefused,
            Self::Unreachable(_) | Self::Handshake(_) => Reason::EndpointUnreachable,
            Self::Identity(_) => Reason::PeerIdentity,
            Self::Overloaded => Reason::Overloaded,
        }
    }

    /// Whether nobody is there, or nothing leads there: either may be back in a
    /// moment.
    pub fn is_absence(&self) -> bool {
        use RefusedReason::{Draining, NoPath, Timeout, Unreachable};
        match self {
            Self::NoPath(_) | Self::Path(_) | Self::Unreachable(_) | Self::Handshake(_) => true,
            Self::Refused { reason, .. } => {
                matches!(reason, Draining | NoPath | Timeout | Unreachable)
            }
            Self::NoIdentity | Self::Plaintext | Self::Identity(_) | Self::Overloaded => false,
        }
    }

    /// Whether the proxy itself finds out when the endpoint can be reached again:
    /// a way, too, is back in a moment where a gateway is replaced.
    pub fn is_worth_probation(&self, blame: Blame) -> bool {
        match blame {
            Blame::Nobody => false,
            Blame::Endpoint => true,
            Blame::Path => self.is_absence(),
        }
    }

    /// What the next request had better avoid.
    pub fn blames(&self, own: &SiteName, endpoint: &Endpoint) -> Blame {
        let remote = endpoint.site != *own;
        match self {
            Self::Overloaded | Self::NoIdentity => Blame::Nobody,
            // No gateway of ours leads to the other site: none of its
            // endpoints can be reached, and none of them is to blame.
            Self::NoPath(_) | Self::Path(_) if remote => Blame::Path,
            Self::Refused { hop, reason, .. } if remote && is_of(hop, own) => match reason {
                RefusedReason::UnknownService | RefusedReason::UnknownEndpoint => Blame::Endpoint,
                _ => Blame::Path,
            },
            _ => Blame::Endpoint,
        }
    }
}

/// What a failure says of whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// We are to blame.
    Nobody,
    /// The way to the endpoint's site.
    Path,
    /// The endpoint, or the last leg to it.
    Endpoint,
}

/// Whether a hop, `<site>/<gateway>`, is a gateway of this site.
fn is_of(hop: &str, site: &SiteName) -> bool {
    hop.split_once('/').is_some_and(|(of, _)| of == site.as_str())
}

/// Opens a session to the proxy of `endpoint`.
pub async fn open(
    shared: &Shared,
    tunnels: &Tunnels,
    snapshot: &Snapshot,
    endpoint: &Arc<Endpoint>,
) -> Result<Session, OpenFailure> {
    if shared.credentials.svid().is_none() {
        return Err(OpenFailure::NoIdentity);
    }
    let Some(identity) = &endpoint.identity else { return Err(OpenFailure::Plaintext) };
    let path = path_to(snapshot, endpoint)?;
    let connection = format!("{:016x}", rand::random::<u64>());
    let (secured, tunnel, going) =
        secure(shared, tunnels, (endpoint, identity), &path, &connection).await?;
    let (stream, peer, standing) = secured;
    let (mux, guardian) = mux::Session::start(stream, Probing::SOURCE, &shared.drain);
    shared.drain.spawn_beside(guard(peer.clone(), standing, guardian, going));
    let (path_kind, connection) = (path.describe(), connection.into());
    let _open = shared.metrics.inner_session(Direction::Outbound);
    shared.reached.came_up(endpoint);
    let (endpoint, targets) = (endpoint.clone(), Default::default());
    let counted = OnceLock::new();
    Ok(Session { mux, endpoint, targets, peer, path_kind, connection, tunnel, counted, _open })
}

/// Completes when something on a session's path goes away; never for a direct
/// one.
type Going = BoxFuture<'static, ()>;

/// A byte stream towards the endpoint's proxy.
struct Bytes {
    stream: Stream,
    /// Completes once the path has been said to lead there.
    answered: BoxFuture<'static, ()>,
    tunnel: Option<mesh_tunnel::Session>,
    going: Going,
}

/// A byte stream to the endpoint's proxy, and the inner handshake over it. The
/// first words of the handshake travel ahead of the path's answer.
async fn secure(
    shared: &Shared,
    tunnels: &Tunnels,
    (endpoint, identity): (&Endpoint, &SpiffeId),
    path: &Path,
    connection: &str,
) -> Result<(Secured, Option<mesh_tunnel::Session>, Going), OpenFailure> {
    let deadline = Instant::now() + GATEWAY_TIMEOUT;
    loop {
        let opened = open_bytes(shared, tunnels, endpoint, path, connection, deadline).await?;
        let Bytes { stream, answered, tunnel, going } = opened;
        let error = match handshake(&shared.credentials, identity, stream, answered).await {
            Ok(secured) => return Ok((secured, tunnel, going)),
            Err(error) => error,
        };
        match mesh_tunnel::session::refusal(&error) {
            // The tunnel ended before the answer: no session came up, so
            // another tunnel may do.
            Some(OpenError::Closed) if Instant::now() < deadline => {}
            Some(error) => return Err(path_failure(error)),
            None => {
                let failure = handshake_failure(&error);
                count_failure(shared, endpoint, &failure);
                return Err(failure);
            }
        }
    }
}

async fn open_bytes(
    shared: &Shared,
    tunnels: &Tunnels,
    endpoint: &Endpoint,
    path: &Path,
    connection: &str,
    deadline: Instant,
) -> Result<Bytes, OpenFailure> {
    if let Path::Direct(addr) = path {
        let dialled = tokio::time::timeout(DIRECT_TIMEOUT, shared.net.dial(*addr)).await;
        return match dialled {
            Ok(Ok(stream)) => Ok(Bytes {
                stream,
                answered: Box::pin(std::future::ready(())),
                tunnel: None,
                going: Box::pin(std::future::pending()),
            }),
            Ok(Err(error)) => Err(OpenFailure::Unreachable(error.to_string())),
            Err(_) => Err(OpenFailure::Unreachable(format!("{addr}: no answer"))),
        };
    }
    let connect = Connect {
        site: endpoint.site.clone(),
        service: endpoint.service.clone(),
        port: endpoint.port.clone(),
        endpoint: Some(endpoint.id.clone()),
        hops: 0,
        connection_id: connection.to_owned(),
    };
    let mut stream = tunnels.begin(path, &connect, deadline).await.map_err(path_failure)?;
    let answered = Box::pin(stream.when_answered());
    let going = Box::pin(tunnels::going(stream.session(), connection));
    let tunnel = Some(stream.session().clone());
    Ok(Bytes { stream: Box::new(stream), answered, tunnel, going })
}

/// What it means that no stream leads there.
fn path_failure(error: OpenError) -> OpenFailure {
    match error {
        OpenError::Refused { reason, hop, detail } => OpenFailure::Refused { reason, hop, detail },
        OpenError::Timeout(_) => OpenFailure::Path(format!("not within {GATEWAY_TIMEOUT:?}")),
        OpenError::Closed => OpenFailure::Path(error.to_string()),
    }
}

type Secured = (Stream, PeerIdentity, Standing);

/// Inner TLS: the peer must be exactly the endpoint. Its time runs from when
/// the path is `answered`; until then that of the path does.
async fn handshake(
    credentials: &Arc<Credentials>,
    identity: &SpiffeId,
    bytes: Stream,
    answered: BoxFuture<'static, ()>,
) -> io::Result<Secured> {
    let allowed = Allowed::Exactly(identity.clone());
    let before = Before::handshake(credentials);
    let config = credentials.client(ALPN_INNER, allowed.clone());
    let late = async {
        answered.await;
        tokio::time::sleep(HANDSHAKE_TIMEOUT).await;
    };
    let stream = tokio::select! {
        biased;
        connected = tls::connect(config, bytes) => connected?,
        () = late => return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long")),
    };
    let connection = stream.get_ref().1;
    let peer = tls::peer_of(connection, credentials, Side::Server, &allowed)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let standing =
        before.proved(Binding::of_tls(connection, true)?, peer.clone(), tls::chain_of(connection));
    Ok((Box::new(stream), peer, standing))
}

fn handshake_failure(error: &io::Error) -> OpenFailure {
    match tls::verify_error(error) {
        Some(refused) => OpenFailure::Identity(refused),
        None => OpenFailure::Handshake(error.to_string()),
    }
}

fn count_failure(shared: &Shared, endpoint: &Endpoint, failure: &OpenFailure) {
    let code = match failure {
        OpenFailure::Identity(refused) => refused.code(),
        _ => "handshake",
    };
    shared.metrics.handshake_failed(Direction::Outbound, code);
    log::warn!(
        service = endpoint.service.as_str(), endpoint = endpoint.id.as_str(),
        site = endpoint.site.as_str(), reason = code, error:% = failure;
        "inner session refused"
    );
}

/// A session does not outlive what proved it: when the last leaf that the peer
/// has shown ends, it is retired; when the peer is no longer believed, it is
/// cut. It is retired, too, when a gateway on its path says that it goes away:
/// new requests then take another way while this one still works.
async fn guard(peer: PeerIdentity, standing: Standing, guardian: Guardian, going: Going) {
    let gone = gone(going);
    let retired = async {
        tokio::select! {
            () = standing.expires(Duration::ZERO) => {}
            () = gone => {
                log::debug!(peer = peer.id.as_str(); "a hop goes away, inner session retired");
            }
        }
        guardian.retire();
        std::future::pending().await
    };
    tokio::select! {
        () = guardian.ended() => {}
        error = standing.disbelieved() => {
            log::info!(peer = peer.id.as_str(), reason = error.code(); "inner session cut");
            guardian.cut();
        }
        never = retired => never,
        never = guardian.keep_proving(&standing) => never,
    }
}

/// A session that comes up over a path that goes away carries those who waited
/// for it: the path still works, and otherwise each attempt of a request would
/// find a session that takes nothing.
fn gone(going: Going) -> impl Future<Output = ()> + Send {
    let first_streams = clock::monotonic() + FIRST_STREAMS;
    async move {
        going.await;
        tokio::time::sleep_until(first_streams).await;
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{Endpoint, Health, Locality, path::RefusedReason};

    use super::{Blame, FIRST_STREAMS, OpenFailure, gone};
    use mesh_runtime::clock;

    fn endpoint(site: &str) -> Endpoint {
        Endpoint {
            id: "e-1".parse().expect("an id"),
            service: "orders.shop".parse().expect("a service"),
            port: "http".parse().expect("a port"),
            site: site.parse().expect("a site"),
            identity: "spiffe://east.example/ns/shop/sa/orders".parse().ok(),
            address: None,
            target: ([127, 0, 0, 1], 8080).into(),
            locality: Locality::default(),
            weight: 1,
            capacity: 0,
            priority: 0,
            health: Health::Healthy,
            node: None,
            via: Default::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waited_for_a_session_finds_it_in_use() {
        let began = clock::monotonic();
        gone(Box::pin(std::future::ready(()))).await;
        assert_eq!(began.elapsed(), FIRST_STREAMS);
        let later = gone(Box::pin(tokio::time::sleep(FIRST_STREAMS * 3)));
        let began = clock::monotonic();
        later.await;
        assert_eq!(began.elapsed(), FIRST_STREAMS * 3);
    }

    #[test]
    fn who_is_to_blame() {
        let refused = |reason, hop: &str| OpenFailure::Refused {
            reason,
            hop: hop.into(),
            detail: String::new(),
        };
        let cases = [
            ("east", OpenFailure::Path("late".into()), Blame::Path),
            ("west", OpenFailure::Path("late".into()), Blame::Endpoint),
            ("east", refused(RefusedReason::NoPath, "west/gw-1"), Blame::Path),
            ("east", refused(RefusedReason::UnknownEndpoint, "west/gw-1"), Blame::Endpoint),
            ("east", refused(RefusedReason::NoPath, "east/gw-1"), Blame::Endpoint),
            ("east", refused(RefusedReason::Unreachable, "east/gw-1"), Blame::Endpoint),
            ("west", refused(RefusedReason::NoPath, "west/gw-1"), Blame::Endpoint),
            ("east", OpenFailure::Unreachable("refused".into()), Blame::Endpoint),
            ("east", OpenFailure::Overloaded, Blame::Nobody),
            ("east", OpenFailure::NoIdentity, Blame::Nobody),
        ];
        let own = "west".parse().expect("a site");
        for (site, failure, blame) in cases {
            assert_eq!(failure.blames(&own, &endpoint(site)), blame, "{site}: {failure}");
        }
    }
}
