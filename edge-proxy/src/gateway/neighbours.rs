//! One tunnel, from its `Hello` to its end.

use std::{convert::Infallible, sync::Arc, time::Duration};

use mesh_api::v1;
use mesh_core::{GatewayId, PeerIdentity, Snapshot, name::Subject};
use mesh_tunnel::{IncomingStream, RefusedHeader, Session};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Own, State,
    quota::Quota,
    sessions::{Neighbour, TunnelId},
    streams,
};
use crate::trace::passage::Passages;

/// While a successor takes over, a tunnel without streams is kept this long:
/// its other end may not have another one yet.
pub(super) const LEAVING_QUIET: Duration = Duration::from_secs(5);
/// How often a tunnel that goes away looks whether its last stream has ended.
const LAST_STREAM_POLL: Duration = Duration::from_millis(100);
/// How long streams of a tunnel that a better one has replaced may go on.
const RETIRED_DEADLINE: Duration = Duration::from_secs(3600);

/// One tunnel that is up.
pub(super) struct Tunnel {
    pub(super) state: Arc<State>,
    pub(super) own: Own,
    pub(super) session: Session,
    pub(super) neighbour: Neighbour,
    pub(super) quota: Arc<Quota>,
    pub(super) passages: Passages,
    id: TunnelId,
    /// A better tunnel has replaced this one.
    retired: CancellationToken,
}

/// Serves a tunnel that a neighbour has dialled.
pub(super) async fn accepted(state: Arc<State>, own: Own, session: Session) {
    match Tunnel::new(state, own, session, String::new()) {
        Ok(tunnel) => tunnel.serve().await,
        // Told already.
        Err(_unwanted) => {}
    }
}

/// Why a tunnel is ended at once. The door has let its peer in: this comes
/// after it, and does not rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unwanted {
    #[error("of another trust domain only the gateway is accepted")]
    NotAGateway,
    #[error("there is no snapshot yet that could name a link")]
    NoSnapshot,
    #[error("there is no link with its trust domain")]
    NotLinked,
    #[error("its Hello names no gateway")]
    NoGatewayId,
    #[error("it says that it is this gateway")]
    Ourselves,
}

impl Unwanted {
    /// The stable code, as in the log and the metric.
    fn code(self) -> &'static str {
        match self {
            // As the door says it.
            Self::NotAGateway => "peer_not_allowed",
            Self::NoSnapshot => "no_snapshot",
            Self::NotLinked => "not_linked",
            Self::NoGatewayId => "malformed",
            Self::Ourselves => "own_gateway",
        }
    }
}

/// What the other end is. It has a valid certificate; this decides what for.
fn classify(
    own: &Own,
    snapshot: Option<&Snapshot>,
    peer: &PeerIdentity,
    hello: &v1::Hello,
) -> Result<Neighbour, Unwanted> {
    let gateway = || hello.gateway.parse::<GatewayId>().map_err(|_| Unwanted::NoGatewayId);
    if peer.id.trust_domain() != &own.trust_domain {
        if !peer.id.is_gateway() {
            return Err(Unwanted::NotAGateway);
        }
        let snapshot = snapshot.ok_or(Unwanted::NoSnapshot)?;
        let domain = peer.id.trust_domain();
        let link = snapshot.links.values().find(|link| &link.trust_domain == domain);
        let link = link.ok_or(Unwanted::NotLinked)?;
        return Ok(Neighbour::Link(link.site.clone(), gateway()?));
    }
    if peer.id.is_gateway() {
        let gateway = gateway()?;
        if gateway == own.id {
            return Err(Unwanted::Ourselves);
        }
        return Ok(Neighbour::Sibling(gateway));
    }
    match (peer.id.subject(), &peer.node) {
        // A proxy takes streams; an operator's command line on the same machine,
        // with the same identity, does not.
        (Subject::Workload { .. }, Some(node)) if takes_streams(hello) => {
            Ok(Neighbour::Node(node.clone(), peer.id.clone()))
        }
        (Subject::Workload { .. } | Subject::Node(_), _) => Ok(Neighbour::Client(peer.id.clone())),
    }
}

fn takes_streams(hello: &v1::Hello) -> bool {
    hello.limits.as_ref().is_none_or(|limits| limits.streams > 0)
}

impl Tunnel {
    /// Enters a tunnel into the session table; one that leads nowhere is
    /// closed. `reason` says why it is not over the preferred transport.
    pub(super) fn new(
        state: Arc<State>,
        own: Own,
        session: Session,
        reason: String,
    ) -> Result<Arc<Self>, Unwanted> {
        let (peer, hello) = (session.peer(), session.hello());
        let neighbour =
            classify(&own, state.snapshot().as_deref(), peer, hello).inspect_err(|unwanted| {
                session.close(&unwanted.to_string());
                state.metrics.unwanted(unwanted.code());
                log::warn!(
                    peer = peer.id.as_str(), code = unwanted.code();
                    "tunnel refused: {unwanted}"
                );
            })?;
        let quota = state.quotas.of(&neighbour);
        let id = state.sessions.insert(neighbour.clone(), session.clone(), reason);
        state.metrics.tunnel_up(&neighbour, session.transport());
        log::info!(
            neighbour:% = neighbour, transport:% = session.transport(), tunnel = id;
            "tunnel up"
        );
        let retired = CancellationToken::new();
        let passages = Passages::default();
        Ok(Arc::new(Self { state, own, session, neighbour, quota, passages, id, retired }))
    }

    /// Opens nothing new in it; what runs goes on, then it ends.
    pub(super) fn retire(&self) {
        self.state.sessions.retire(&self.neighbour, self.id);
        self.retired.cancel();
    }

    /// Says why it is not over the preferred transport.
    pub(super) fn explain(&self, reason: &str) {
        self.state.sessions.explain(&self.neighbour, self.id, reason);
    }

    /// Takes in the streams of a tunnel until it has ended.
    pub(super) async fn serve(self: Arc<Self>) {
        let why = tokio::select! {
            why = self.take_in() => why,
            never = self.hear_of_traces() => match never {},
        };
        self.session.close(&why);
        self.state.sessions.remove(&self.neighbour, self.id);
        self.state.metrics.tunnel_down(&self.neighbour, self.session.transport());
        log::info!(
            neighbour:% = self.neighbour, transport:% = self.session.transport(),
            tunnel = self.id, why = why.as_str();
            "tunnel down"
        );
    }

    async fn take_in(self: &Arc<Self>) -> String {
        let drain = &self.state.shared.drain;
        let mut snapshot = self.state.shared.snapshot.changed();
        let going = async {
            tokio::select! {
                biased;
                () = drain.draining() => self.state.shared.config.drain_timeout,
                () = drain.leaving() => self.state.shared.config.handover_timeout,
                () = self.retired.cancelled() => RETIRED_DEADLINE,
            }
        };
        let mut going = std::pin::pin!(going);
        loop {
            tokio::select! {
                incoming = self.session.accept_or_refuse() => match incoming {
                    Some(incoming) => self.begin(incoming),
                    None => return self.session.closed().await,
                },
                changed = snapshot.changed() => {
                    if changed.is_err() || !self.is_still_wanted() {
                        return "the link has ended".to_owned();
                    }
                }
                deadline = &mut going => return self.finish(deadline).await,
            }
        }
    }

    /// Also while it goes away: what runs may be traced.
    async fn hear_of_traces(&self) -> Infallible {
        if let Some(mut traced) = self.session.traced() {
            while let Some(traced) = traced.recv().await {
                self.passages.hear(traced);
            }
        }
        std::future::pending().await
    }

    fn begin(self: &Arc<Self>, incoming: Result<IncomingStream, RefusedHeader>) {
        match incoming {
            Ok(incoming) => {
                self.state.shared.drain.spawn(streams::serve(self.clone(), incoming));
            }
            Err(refused) => streams::note_refused(self, &refused),
        }
    }

    /// A link that is gone takes its tunnels along.
    fn is_still_wanted(&self) -> bool {
        let Neighbour::Link(site, _) = &self.neighbour else { return true };
        let domain = self.session.peer().id.trust_domain();
        self.state.snapshot().is_some_and(|snapshot| {
            snapshot.links.get(site).is_some_and(|link| &link.trust_domain == domain)
        })
    }

    /// Tells the neighbour to open nothing new, refuses what it opens all the
    /// same, and returns when the last stream has ended.
    async fn finish(self: &Arc<Self>, deadline: Duration) -> String {
        let drain = &self.state.shared.drain;
        let leaving = drain.is_closing() && !drain.is_draining();
        if leaving {
            self.session.leave(deadline);
        } else {
            self.session.drain(deadline);
        }
        // Who has no other tunnel yet may come to this one.
        let quiet = if leaving { LEAVING_QUIET } else { Duration::ZERO };
        let mut busy = Instant::now();
        let mut end = std::pin::pin!(tokio::time::sleep(deadline));
        let mut look = tokio::time::interval(LAST_STREAM_POLL);
        // The first look would be at once: before the neighbour has heard.
        look.reset();
        loop {
            tokio::select! {
                incoming = self.session.accept_or_refuse() => match incoming {
                    Some(incoming) => self.begin(incoming),
                    None => return self.session.closed().await,
                },
                now = look.tick() => if self.session.streams() > 0 {
                    busy = now;
                } else if now >= busy + quiet {
                    return "drained".to_owned();
                },
                () = &mut end => return "drain deadline".to_owned(),
                () = drain.stopping() => return "stopped".to_owned(),
            }
        }
    }

    /// Whether new streams are refused here.
    pub(super) fn is_draining(&self) -> bool {
        self.state.shared.drain.is_draining()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_api::v1::resource::Resource as Kind;
    use mesh_core::{apply, name::NodeId};
    use rustls::pki_types::UnixTime;

    use super::*;

    const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";

    /// `east`, linked with `west`.
    fn snapshot() -> Snapshot {
        let site = v1::Site {
            name: "east".into(),
            trust_domain: "east.example".into(),
            ..v1::Site::default()
        };
        let link = v1::Link {
            site: "west".into(),
            trust_domain: "west.example".into(),
            ..v1::Link::default()
        };
        let upsert = [Kind::Site(site), Kind::Link(link)];
        let upsert = upsert.map(|kind| v1::Resource { resource: Some(kind) }).into();
        let to = Some(v1::Revision { epoch: 1, n: 1 });
        let delta = v1::Delta { from: None, to, upsert, remove: Vec::new() };
        apply(None, &delta).expect("well formed")
    }

    fn ask(
        snapshot: Option<&Snapshot>,
        id: &str,
        node: Option<&str>,
        gateway: &str,
        streams: u32,
    ) -> Result<Neighbour, Unwanted> {
        let own = Own {
            site: "east".parse().expect("a site"),
            trust_domain: "east.example".parse().expect("a domain"),
            id: "gw-1".parse().expect("an id"),
        };
        let peer = PeerIdentity {
            id: id.parse().expect("an id"),
            node: node.map(|node| node.parse().expect("a node")),
            serial: "01".into(),
            not_after: UnixTime::since_unix_epoch(Duration::MAX / 2),
        };
        let limits = Some(v1::TunnelLimits { streams });
        let hello = v1::Hello { gateway: gateway.into(), limits, ..v1::Hello::default() };
        classify(&own, snapshot, &peer, &hello)
    }

    /// Even if the door has let them in.
    #[test]
    fn over_a_link_only_the_gateway_of_a_linked_site_is_a_neighbour() {
        let snapshot = snapshot();
        let linked = "spiffe://west.example/ns/isthmus-system/sa/gateway";
        let cases = [
            ("spiffe://west.example/ns/shop/sa/web", "gw-w", Err(Unwanted::NotAGateway)),
            (
                "spiffe://west.example/ns/isthmus-system/sa/federation",
                "gw-w",
                Err(Unwanted::NotAGateway),
            ),
            (
                "spiffe://west.example/node/6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11",
                "gw-w",
                Err(Unwanted::NotAGateway),
            ),
            (
                "spiffe://north.example/ns/isthmus-system/sa/gateway",
                "gw-n",
                Err(Unwanted::NotLinked),
            ),
            (linked, "", Err(Unwanted::NoGatewayId)),
            (linked, "Not An Id", Err(Unwanted::NoGatewayId)),
        ];
        for (id, gateway, expected) in cases {
            assert_eq!(ask(Some(&snapshot), id, Some(NODE), gateway, 1), expected, "{id}");
        }
        assert_eq!(ask(None, linked, None, "gw-w", 1), Err(Unwanted::NoSnapshot));
        let link = Neighbour::Link("west".parse().expect("a site"), "gw-w".parse().expect("an id"));
        assert_eq!(ask(Some(&snapshot), linked, None, "gw-w", 1), Ok(link));
    }

    #[test]
    fn neighbours_of_the_own_site() {
        let web = "spiffe://east.example/ns/shop/sa/web";
        let machine = format!("spiffe://east.example/node/{NODE}");
        let own = "spiffe://east.example/ns/isthmus-system/sa/gateway";
        let node: NodeId = NODE.parse().expect("a node");
        let client = |id: &str| Ok(Neighbour::Client(id.parse().expect("an id")));
        let proxy = Ok(Neighbour::Node(node, web.parse().expect("an id")));
        let sibling = Ok(Neighbour::Sibling("gw-2".parse().expect("an id")));
        let cases = [
            (web, Some(NODE), "", 1, proxy),
            (web, Some(NODE), "", 0, client(web)),
            (web, None, "", 1, client(web)),
            (machine.as_str(), Some(NODE), "", 1, client(&machine)),
            (own, None, "gw-2", 1, sibling),
            (own, None, "gw-1", 1, Err(Unwanted::Ourselves)),
            (own, None, "", 1, Err(Unwanted::NoGatewayId)),
        ];
        for (id, node, gateway, streams, expected) in cases {
            assert_eq!(ask(None, id, node, gateway, streams), expected, "{id}");
        }
    }
}
