//! How federation reaches the federation of another site: through a gateway of
//! its own once they are linked, through the join door of one of theirs before.

use std::{io, sync::Arc, time::Duration};

use mesh_api::{
    VERSIONS,
    v1::{Gateway, Hello, Role, TunnelLimits},
};
use mesh_core::{Allowed, SiteName, SpiffeId, TrustDomain, service::LinkTransport, token::Token};
use mesh_tunnel::{
    Dialer, GatewayAddresses, Net, Session,
    control::{Route, channel},
    net::BoxFuture,
};
use tokio::{sync::Mutex, time::timeout};
use tonic::transport::Channel;

use crate::site::Site;

/// How long one gateway may take to be dialled, and to lead on.
const DEADLINE: Duration = Duration::from_secs(5);

/// The seam between linking and the network; a simulation puts its own here.
pub trait Paths: Send + Sync + 'static {
    /// To the federation of a linked site.
    fn linked<'a>(
        &'a self,
        site: &'a SiteName,
        trust_domain: &'a TrustDomain,
    ) -> BoxFuture<'a, io::Result<Channel>>;

    /// To the federation that issued a token.
    fn join_door<'a>(&'a self, token: &'a Token) -> BoxFuture<'a, io::Result<Channel>>;
}

/// Through gateways. One tunnel to one of ours is kept and shared by all links.
pub struct GatewayPaths {
    site: Site,
    net: Arc<dyn Net>,
    boot_id: String,
    tunnel: Mutex<Option<Session>>,
}

impl GatewayPaths {
    /// No tunnel is up yet.
    pub fn new(site: Site, net: Arc<dyn Net>) -> Self {
        let boot_id = uuid::Uuid::new_v4().to_string();
        Self { site, net, boot_id, tunnel: Mutex::new(None) }
    }

    /// The kept tunnel first, then every gateway of ours in turn.
    async fn through_own(
        &self,
        site: &SiteName,
        trust_domain: &TrustDomain,
    ) -> io::Result<Channel> {
        let mut problem = io::Error::other(
            "this site has no gateway; add one under `gateways` in federation.yaml",
        );
        let kept = self.tunnel.lock().await.clone().filter(|session| !session.peer_draining());
        if let Some(session) = kept {
            match self.through(session, site, trust_domain).await {
                Ok(channel) => return Ok(channel),
                Err(error) => problem = error,
            }
        }
        for gateway in self.site.authority.state().gateways.values() {
            let reached = match self.dial(gateway).await {
                Ok(session) => {
                    let reached = self.through(session.clone(), site, trust_domain).await;
                    if reached.is_ok() {
                        *self.tunnel.lock().await = Some(session);
                    }
                    reached
                }
                Err(error) => Err(error),
            };
            match reached {
                Ok(channel) => return Ok(channel),
                Err(error) => {
                    let text = format!("through gateway {}: {error}", gateway.id);
                    problem = io::Error::new(error.kind(), text);
                }
            }
        }
        Err(problem)
    }

    async fn through(
        &self,
        session: Session,
        site: &SiteName,
        trust_domain: &TrustDomain,
    ) -> io::Result<Channel> {
        let credentials = &self.site.credentials;
        let route = Route::Through(session, site.clone());
        timeout(DEADLINE, channel(route, credentials, trust_domain)).await.map_err(late)?
    }

    async fn dial(&self, gateway: &Gateway) -> io::Result<Session> {
        let state = self.site.authority.state();
        let own = state.site();
        let addresses = |list: &[String]| list.iter().map(|a| a.as_str().into()).collect();
        let to = GatewayAddresses {
            quic: addresses(&gateway.quic_addresses),
            tls: addresses(&gateway.tls_addresses),
        };
        let hello = Hello {
            versions: VERSIONS.to_vec(),
            role: Role::Workload.into(),
            site: own.name.to_string(),
            // It accepts no streams: nobody dials federation through a tunnel
            // that federation has opened.
            limits: Some(TunnelLimits { streams: 0 }),
            time_unix_ms: self.site.authority.clock().unix_ms().unsigned_abs(),
            boot_id: self.boot_id.clone(),
            ..Hello::default()
        };
        let credentials = self.site.credentials.clone();
        let dialer = Dialer { net: self.net.clone(), credentials, hello };
        let allowed = Allowed::Exactly(SpiffeId::gateway(&own.trust_domain));
        let dialled = dialer.dial(&to, allowed, LinkTransport::Raced, DEADLINE).await;
        dialled.map_err(|error| io::Error::other(error.to_string()))
    }

    /// Any gateway that the token names.
    async fn through_theirs(&self, token: &Token) -> io::Result<Channel> {
        let mut problem = io::Error::other("the token names no gateway");
        for gateway in &token.gateways {
            let route = Route::JoinDoor {
                net: self.net.clone(),
                gateway: gateway.clone(),
                root_spki_sha256: token.root_spki_sha256,
            };
            let dialled = channel(route, &self.site.credentials, &token.trust_domain);
            match timeout(DEADLINE, dialled).await.map_err(late).flatten() {
                Ok(channel) => return Ok(channel),
                Err(error) => {
                    problem = io::Error::new(error.kind(), format!("{gateway}: {error}"));
                }
            }
        }
        Err(problem)
    }
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")
}

impl Paths for GatewayPaths {
    fn linked<'a>(
        &'a self,
        site: &'a SiteName,
        trust_domain: &'a TrustDomain,
    ) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(self.through_own(site, trust_domain))
    }

    fn join_door<'a>(&'a self, token: &'a Token) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(self.through_theirs(token))
    }
}
