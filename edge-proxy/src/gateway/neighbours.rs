//! One tunnel, from its `Hello` to its end.

use std::{sync::Arc, time::Duration};

use mesh_core::{GatewayId, Snapshot, name::Subject};
use mesh_tunnel::{IncomingStream, RefusedHeader, Session};
use tokio_util::sync::CancellationToken;

use super::{
    Own, State,
    quota::Quota,
    sessions::{Neighbour, TunnelId},
    streams,
};

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
    id: TunnelId,
    /// A better tunnel has replaced this one.
    retired: CancellationToken,
}

/// Serves a tunnel that a neighbour has dialled.
pub(super) async fn accepted(state: Arc<State>, own: Own, session: Session) {
    match Tunnel::new(state, own, session, String::new()) {
        Ok(tunnel) => tunnel.serve().await,
        Err(refused) => {
            log::warn!(peer = refused.peer.as_str(), problem = refused.problem; "tunnel refused");
        }
    }
}

/// A tunnel that is ended at once.
pub(super) struct Unwanted {
    pub(super) peer: String,
    pub(super) problem: &'static str,
}

/// What the other end is. It has a valid certificate; this decides what for.
fn classify(
    own: &Own,
    snapshot: Option<&Snapshot>,
    session: &Session,
) -> Result<Neighbour, &'static str> {
    let peer = session.peer();
    let gateway = || session.hello().gateway.parse::<GatewayId>();
    if peer.id.trust_domain() != &own.trust_domain {
        if !peer.id.is_gateway() {
            return Err("of another trust domain only the gateway is accepted");
        }
        let snapshot = snapshot.ok_or("there is no snapshot yet that could name a link")?;
        let domain = peer.id.trust_domain();
        let link = snapshot.links.values().find(|link| &link.trust_domain == domain);
        let link = link.ok_or("there is no link with its trust domain")?;
        let gateway = gateway().map_err(|_| "its Hello names no gateway")?;
        return Ok(Neighbour::Link(link.site.clone(), gateway));
    }
    if peer.id.is_gateway() {
        let gateway = gateway().map_err(|_| "its Hello names no gateway")?;
        if gateway == own.id {
            return Err("it says that it is this gateway");
        }
        return Ok(Neighbour::Sibling(gateway));
    }
    match (peer.id.subject(), &peer.node) {
        // A proxy takes streams; an operator's command line on the same machine,
        // with the same identity, does not.
        (Subject::Workload { .. }, Some(node)) if takes_streams(session) => {
            Ok(Neighbour::Node(node.clone(), peer.id.clone()))
        }
        (Subject::Workload { .. } | Subject::Node(_), _) => Ok(Neighbour::Client(peer.id.clone())),
    }
}

fn takes_streams(session: &Session) -> bool {
    session.hello().limits.as_ref().is_none_or(|limits| limits.streams > 0)
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
        let neighbour = match classify(&own, state.snapshot().as_deref(), &session) {
            Ok(neighbour) => neighbour,
            Err(problem) => {
                session.close(problem);
                return Err(Unwanted { peer: session.peer().id.to_string(), problem });
            }
        };
        let quota = state.quotas.of(&neighbour);
        let id = state.sessions.insert(neighbour.clone(), session.clone(), reason);
        state.metrics.tunnel_up(&neighbour, session.transport());
        log::info!(
            neighbour:% = neighbour, transport:% = session.transport(), tunnel = id;
            "tunnel up"
        );
        let retired = CancellationToken::new();
        Ok(Arc::new(Self { state, own, session, neighbour, quota, id, retired }))
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
        let why = self.take_in().await;
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
        self.session.drain(deadline);
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
                _ = look.tick() => if self.session.streams() == 0 {
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
