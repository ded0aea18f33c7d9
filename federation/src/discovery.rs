//! gRPC `Discovery`: proxies and gateways follow the view.
//!
//! One stream per proxy. Nothing is queued: a difference is made when the
//! stream can take it, so a slow proxy gets fewer and larger ones.

mod lens;
mod proxies;
mod stream;
mod taps;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_api::v1::{
    DiscoveryRequest, DiscoveryResponse, NodeSessions, ProxyInfo, SiteHolds, StatRequest,
    StatResponse, discovery_server,
};
use mesh_core::{NodeId, PeerIdentity, TrustDomain, tap::Filter};
use mesh_runtime::drain::Drain;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

pub use self::{
    proxies::Following,
    taps::{Tapping, TooMany},
};
use self::{proxies::Proxies, stream::ProxyStream, taps::Taps};
use crate::{
    refusal::{Role, caller},
    tenure::check_local,
    view::View,
};

/// Answers on their way to a proxy: one that is being sent and one that waits.
/// More would only make a slow proxy's deltas older.
const ANSWERS: usize = 2;

/// Serves `Discovery`. Clones share it.
#[derive(Clone)]
pub struct Discovery {
    view: View,
    drain: Drain,
    proxies: Arc<Proxies>,
    taps: Arc<Taps>,
    next: Arc<AtomicU64>,
}

impl Discovery {
    /// Follows `view`; its streams end with `drain`.
    pub fn new(view: View, drain: Drain) -> Self {
        // Streams are numbered from 1: 0 is a gateway's session list that no
        // stream has reported yet.
        let next = Arc::new(AtomicU64::new(1));
        Self { view, drain, proxies: Arc::default(), taps: Arc::default(), next }
    }

    /// Every proxy that follows the view.
    pub fn proxies(&self) -> Vec<ProxyInfo> {
        self.proxies.infos()
    }

    /// Every proxy that follows the view, and whether it verifies with the
    /// newest bundle of a trust domain.
    pub fn following(&self, trust_domain: &TrustDomain) -> Vec<Following> {
        let since = self.view.bundle_since(trust_domain.as_str());
        self.proxies.following(since.map(|(_, since)| since))
    }

    /// How far the bundle of a linked site's trust domain has got.
    pub fn holds(&self, trust_domain: &TrustDomain) -> SiteHolds {
        let sequence = self.view.bundle_since(trust_domain.as_str());
        let following = self.following(trust_domain);
        let waiting = following.iter().filter(|proxy| !proxy.holds);
        SiteHolds {
            bundle_sequence: sequence.map_or(0, |(sequence, _)| sequence),
            waiting: u32::try_from(waiting.clone().count()).unwrap_or(u32::MAX),
            waiting_for: waiting.take(MAX_NAMED).map(ToString::to_string).collect(),
        }
    }

    /// The figures that proxies reported last.
    pub fn stat(&self, wanted: StatRequest) -> StatResponse {
        self.proxies.stat(wanted)
    }

    /// Shows requests of the site's proxies from now on.
    pub fn tap(&self, filter: Filter) -> Result<Tapping, TooMany> {
        self.taps.open(filter, self.proxies.count())
    }

    /// Completes when federation stops.
    pub(crate) async fn stopping(&self) {
        self.drain.draining().await;
    }

    /// Whose sessions a gateway's stream reports: the id it gave, or the only
    /// gateway of the site if it gave none.
    fn gateway_id(&self, asked: &str) -> Option<String> {
        if !asked.is_empty() {
            return asked.parse::<mesh_core::GatewayId>().ok().map(|id| id.to_string());
        }
        let state = self.view.authority().state();
        let mut ids = state.gateways.keys();
        ids.next().filter(|_| ids.next().is_none()).cloned()
    }

    /// A gateway that nobody is told of helps nobody, and looks healthy.
    fn check_announced(&self, gateway: Option<&str>) {
        let known = &self.view.authority().state().gateways;
        if let Some(gateway) = gateway.filter(|gateway| !known.contains_key(*gateway)) {
            log::warn!(gateway; "nobody is told where this gateway is; name its id and its \
                 addresses under `gateways` in federation.yaml, or correct `gateway.id` in its \
                 gateway.yaml");
        }
    }

    fn report_sessions(&self, gateway: &str, stream: u64, sessions: NodeSessions) {
        let state = self.view.authority().state();
        let parsed = sessions.nodes.iter().filter_map(|node| node.parse::<NodeId>().ok());
        // Only nodes of this site: the list is as long as the site is large.
        let nodes: BTreeSet<NodeId> = parsed.filter(|n| state.nodes.contains_key(n)).collect();
        let tunnels = sessions
            .tunnels
            .into_iter()
            .filter(|tunnel| state.links.contains_key(tunnel.site.as_str()))
            .take(MAX_TUNNELS)
            .collect();
        self.view.report_sessions(gateway, stream, nodes, tunnels);
    }

    /// Whatever a proxy says renews the lease of its node.
    fn heard(&self, stream: u64, peer: &PeerIdentity) {
        self.proxies.heard(stream);
        if let Some(node) = &peer.node {
            self.view.heard_proxy(node);
        }
    }
}

/// Proxies that a linked site is told of by name.
const MAX_NAMED: usize = 8;
/// Tunnel figures kept of one gateway.
const MAX_TUNNELS: usize = 1024;

type Answers = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl discovery_server::Discovery for Discovery {
    type StreamStream = Answers;

    async fn stream(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let state = self.view.authority().state();
        let peer = caller(&request, Role::Proxy, &state.site().trust_domain)?;
        check_local(&state, &peer)?;
        let (tx, rx) = mpsc::channel(ANSWERS);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let stream = ProxyStream::new(self.clone(), number, peer, tx);
        self.drain.spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}
