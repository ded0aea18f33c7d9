//! What an operator may ask and do (gRPC `Admin` on the Unix socket, and over
//! mTLS for holders of a role). Every change is logged and recorded with who
//! made it.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use mesh_api::v1;
use mesh_core::{NodeId, PeerIdentity, SpiffeId, tap::Filter};
use mesh_tunnel::unix;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use v1::{admin_server::Admin, authority_record::Event};

use crate::{
    authority::{State, state::NodeState},
    consul::Consuls,
    discovery::Discovery,
    links::Links,
    manifests::{self, Change},
    node_identity::removal,
    refusal::{Refusal, commit_status, refuse},
    registry::Registry,
    roles::{Call, Roles},
    rotation::RootRotations,
    site::Site,
    status,
    tenure::{self, check_local},
    tokens::{self, CreateError, NewToken},
    view::View,
};

/// Steps of a link that its operator has not read yet.
const PROGRESS: usize = 16;

/// Serves operators on this host, and elsewhere those with a role.
#[derive(Clone)]
pub struct AdminService {
    /// The durable truth.
    pub site: Site,
    /// What is published.
    pub view: View,
    /// Agents.
    pub registry: Registry,
    /// Proxies.
    pub discovery: Discovery,
    /// Linked sites.
    pub links: Links,
    /// Another root instead of the one that is there.
    pub rotation: RootRotations,
    /// Who may call from elsewhere.
    pub roles: Roles,
    /// Consuls beside the site.
    pub consuls: Consuls,
}

/// Why an operator's wish is not granted.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Refusal for AdminError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown(_) => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "not_found",
            Self::Invalid(_) => "invalid_argument",
        }
    }
}

/// How the log names the caller: its SPIFFE ID, or its uid on this host. Who
/// has come with a certificate needs a role.
fn admit<T>(
    request: &Request<T>,
    call: Call<'_>,
    state: &State,
    roles: &Roles,
) -> Result<String, Status> {
    let Some(peer) = request.extensions().get::<PeerIdentity>() else {
        return Ok(format!("local:{}", unix::peer(request)?.uid));
    };
    check_local(state, peer)?;
    roles.admit(&peer.id, call).map_err(|denied| {
        log::warn!(id = peer.id.as_str(), serial = peer.serial.as_str(), code = denied.reason(),
            call = call.name(); "admin call refused");
        denied.status()
    })?;
    Ok(peer.id.to_string())
}

impl AdminService {
    fn admit<T>(&self, request: &Request<T>, call: Call<'_>) -> Result<String, Status> {
        admit(request, call, &self.site.authority.state(), &self.roles)
    }

    async fn commit<T>(
        &self,
        actor: &str,
        decide: impl FnOnce(&State) -> Result<(Vec<Event>, T), AdminError>,
    ) -> Result<T, Status> {
        self.site.authority.commit(actor, decide).await.map_err(commit_status)
    }

    fn now(&self) -> i64 {
        self.site.authority.clock().unix_s()
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let own = self.site.authority.state().site().trust_domain.clone();
        let actor = self.admit(&request, self.roles.token(request.get_ref(), &own))?;
        let asked = request.into_inner();
        let grants = v1::Grants {
            namespace: asked.namespace,
            account: asked.account,
            services: asked.services,
        };
        let ttl = Duration::from_secs(asked.ttl_s);
        let new = NewToken::join(grants, asked.uses, ttl, asked.gateway);
        let new = new.map_err(|error: CreateError| error.status())?;
        let (token, expires_unix_s) =
            tokens::create(&self.site, &actor, new).await.map_err(commit_status)?;
        log::info!(id:% = token.id, actor = actor.as_str(); "token made");
        let (id, token) = (token.id.to_string(), token.encode());
        Ok(Response::new(v1::CreateTokenResponse { id, token, expires_unix_s }))
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        self.admit(&request, Call::Read)?;
        let (state, now) = (self.site.authority.state(), self.now());
        let mut tokens: Vec<_> = state.tokens.values().collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.expires_unix_s));
        let info = |token: &std::sync::Arc<crate::authority::state::TokenState>| v1::TokenInfo {
            id: token.id.clone(),
            purpose: token.purpose.into(),
            grants: Some(token.grants.clone()),
            uses_left: token.uses_left(),
            expires_unix_s: token.expires_unix_s,
            state: tokens::describe(token, now).to_owned(),
            redeemed_by: token.used_by.clone(),
        };
        let tokens = tokens.into_iter().map(info).collect();
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let actor = {
            let state = self.site.authority.state();
            let token = state.tokens.get(&request.get_ref().id);
            self.admit(&request, Call::RevokeToken { grants: token.map(|token| &token.grants) })?
        };
        let id = request.into_inner().id;
        let decide = |state: &State| match state.tokens.get(&id) {
            None => {
                Err(AdminError::Unknown(format!("no token {id:.64}; see `meshctl token list`")))
            }
            Some(token) if token.revoked => Ok((vec![], ())),
            Some(_) => Ok((vec![Event::TokenRevoked(v1::TokenRevoked { id: id.clone() })], ())),
        };
        self.commit(&actor, decide).await?;
        log::warn!(id = id.as_str(), actor = actor.as_str(); "token revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn create_link_token(
        &self,
        request: Request<v1::CreateLinkTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let actor = self.admit(&request, Call::Administer)?;
        self.links.create_token(&actor, request.into_inner()).await.map(Response::new)
    }

    type LinkClusterStream = ReceiverStream<Result<v1::LinkProgress, Status>>;

    async fn link_cluster(
        &self,
        request: Request<v1::LinkClusterRequest>,
    ) -> Result<Response<Self::LinkClusterStream>, Status> {
        let actor = self.admit(&request, Call::Administer)?;
        let (tx, rx) = mpsc::channel(PROGRESS);
        self.links.link_cluster(actor, request.into_inner(), tx);
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn unlink(
        &self,
        request: Request<v1::UnlinkRequest>,
    ) -> Result<Response<v1::UnlinkResponse>, Status> {
        let actor = self.admit(&request, Call::Administer)?;
        self.links.unlink(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_links(
        &self,
        request: Request<v1::ListLinksRequest>,
    ) -> Result<Response<v1::ListLinksResponse>, Status> {
        self.admit(&request, Call::Read)?;
        Ok(Response::new(self.links.list()))
    }

    async fn export_service(
        &self,
        request: Request<v1::ExportServiceRequest>,
    ) -> Result<Response<v1::ExportServiceResponse>, Status> {
        let call = Call::Export { service: &request.get_ref().service };
        let actor = self.admit(&request, call)?;
        self.links.export(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn unexport_service(
        &self,
        request: Request<v1::ExportServiceRequest>,
    ) -> Result<Response<v1::ExportServiceResponse>, Status> {
        let call = Call::Export { service: &request.get_ref().service };
        let actor = self.admit(&request, call)?;
        self.links.unexport(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        self.admit(&request, Call::Read)?;
        Ok(Response::new(self.links.services()))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.admit(&request, Call::Read)?;
        Ok(Response::new(v1::ListNodesResponse { nodes: status::nodes(self) }))
    }

    async fn resolve_node(
        &self,
        request: Request<v1::ResolveNodeRequest>,
    ) -> Result<Response<v1::ResolveNodeResponse>, Status> {
        let actor = self.admit(&request, Call::Administer)?;
        let asked = request.into_inner();
        let now = self.now();
        let kept = self.commit(&actor, |state| {
            let node = node_named(state, &asked.id)?;
            let kept = serial_to_keep(node, &asked.keep_serial)?;
            Ok((resolution(node, &kept, now), kept))
        });
        let kept = kept.await?;
        log::warn!(node = asked.id.as_str(), kept = kept.as_str(), actor = actor.as_str();
            "duplicated node resolved; workload certificates end within a day");
        Ok(Response::new(v1::ResolveNodeResponse {}))
    }

    async fn revoke(
        &self,
        request: Request<v1::RevokeRequest>,
    ) -> Result<Response<v1::RevokeResponse>, Status> {
        let actor = self.admit(&request, Call::Administer)?;
        let v1::RevokeRequest { subject, force } = request.into_inner();
        let now = self.now();
        self.commit(&actor, |state| Ok((revocation(state, &subject, force, now)?, ()))).await?;
        let issued = subject.strip_prefix("serial:").and_then(|serial| {
            status::issued_to(&self.site.authority.store().certificate(serial)?)
        });
        log::warn!(subject = subject.as_str(), actor = actor.as_str(),
            issued_to = issued.unwrap_or_default().as_str(); "revoked");
        Ok(Response::new(v1::RevokeResponse {}))
    }

    async fn reinstate(
        &self,
        request: Request<v1::ReinstateRequest>,
    ) -> Result<Response<v1::ReinstateResponse>, Status> {
        let actor = self.admit(&request, Call::Administer)?;
        let subject = request.into_inner().subject;
        self.commit(&actor, |state| Ok((vec![reinstatement(state, &subject)?], ()))).await?;
        log::warn!(subject = subject.as_str(), actor = actor.as_str(); "reinstated");
        Ok(Response::new(v1::ReinstateResponse {}))
    }

    async fn site_status(
        &self,
        request: Request<v1::SiteStatusRequest>,
    ) -> Result<Response<v1::SiteStatusResponse>, Status> {
        self.admit(&request, Call::Read)?;
        Ok(Response::new(status::site(self)))
    }

    async fn stat(
        &self,
        request: Request<v1::StatRequest>,
    ) -> Result<Response<v1::StatResponse>, Status> {
        self.admit(&request, Call::Read)?;
        let site = self.site.authority.state().site().name.to_string();
        Ok(Response::new(v1::StatResponse { site, ..self.discovery.stat(request.into_inner()) }))
    }

    type TapStream = Pin<Box<dyn Stream<Item = Result<v1::TapEvent, Status>> + Send>>;

    async fn tap(
        &self,
        request: Request<v1::TapRequest>,
    ) -> Result<Response<Self::TapStream>, Status> {
        let actor = self.admit(&request, Call::Tap { service: &request.get_ref().service })?;
        let peer = request.extensions().get::<PeerIdentity>().cloned();
        let filter = Filter::try_from(request.into_inner())
            .map_err(|error| AdminError::Invalid(error.to_string()).status())?;
        log::info!(actor = actor.as_str(), service = filter.asked.service.as_str(); "tap");
        let tapping = self.discovery.tap(filter);
        let tapping = tapping.map_err(|full| Status::resource_exhausted(full.to_string()))?;
        let (authority, discovery) = (self.site.authority.clone(), self.discovery.clone());
        let must_go = async move {
            let stopping = async {
                discovery.stopping().await;
                refuse(Code::Unavailable, "stopping", "federation is stopping; come back")
            };
            let Some(peer) = &peer else { return stopping.await };
            tokio::select! {
                status = tenure::ended(&authority, peer, |state| check_local(state, peer)) => status,
                status = stopping => status,
            }
        };
        // The first error ends it.
        let events = stream::select(tapping.map(Ok), stream::once(must_go).map(Err));
        Ok(Response::new(Box::pin(events)))
    }

    async fn apply_manifests(
        &self,
        request: Request<v1::ApplyManifestsRequest>,
    ) -> Result<Response<v1::ApplyManifestsResponse>, Status> {
        let change = Change::read(request.get_ref()).map_err(|error| error.status())?;
        let namespaces = change.namespaces();
        let call = match request.get_ref().dry_run {
            true => Call::Read,
            false => Call::Manifests { namespaces: &namespaces },
        };
        let actor = self.admit(&request, call)?;
        change.apply(&self.site, &self.view, &actor).await.map(Response::new)
    }

    async fn get_manifests(
        &self,
        request: Request<v1::GetManifestsRequest>,
    ) -> Result<Response<v1::GetManifestsResponse>, Status> {
        self.admit(&request, Call::Read)?;
        let wanted = request.into_inner().name.unwrap_or_default();
        let state = self.site.authority.state();
        let found = manifests::list(&state, &self.view, &wanted);
        found.map(Response::new).map_err(|error| error.status())
    }

    async fn delete_manifests(
        &self,
        request: Request<v1::DeleteManifestsRequest>,
    ) -> Result<Response<v1::DeleteManifestsResponse>, Status> {
        let names = &request.get_ref().names;
        let namespaces = manifests::namespaces_of(&self.site.authority.state(), names);
        let actor = self.admit(&request, Call::Manifests { namespaces: &namespaces })?;
        manifests::delete(&self.site, &actor, names).await.map(Response::new)
    }

    async fn rotate_root(
        &self,
        request: Request<v1::RotateRootRequest>,
    ) -> Result<Response<v1::RotationStatus>, Status> {
        let call = match request.get_ref().action() {
            v1::RotationAction::Unspecified => Call::Read,
            _ => Call::Administer,
        };
        let actor = self.admit(&request, call)?;
        self.rotation.ask(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn read_snapshot(
        &self,
        request: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<v1::Delta>, Status> {
        self.admit(&request, Call::Read)?;
        Ok(Response::new(self.view.snapshot()))
    }
}

fn node_named<'a>(state: &'a State, id: &str) -> Result<&'a NodeState, AdminError> {
    let id: NodeId = id.parse().map_err(|error| AdminError::Invalid(format!("{error}")))?;
    let node = state.nodes.get(&id).map(|node| &**node);
    node.ok_or_else(|| AdminError::Unknown(format!("no node {id}; see `meshctl status`")))
}

/// The current certificate when none is named; else one that the node has had.
fn serial_to_keep(node: &NodeState, named: &str) -> Result<String, AdminError> {
    if named.is_empty() {
        return Ok(node.current.serial.clone());
    }
    let known: Vec<&str> =
        node.certificates().map(|certificate| certificate.serial.as_str()).collect();
    if known.contains(&named) {
        return Ok(named.to_owned());
    }
    let known = known.join(", ");
    Err(AdminError::Invalid(format!(
        "node {} has no certificate {named:.64}; it has {known}",
        node.id
    )))
}

/// One certificate stays; all others of the node are revoked.
fn resolution(node: &NodeState, kept: &str, now: i64) -> Vec<Event> {
    let others = node.certificates().filter(|certificate| certificate.serial != kept);
    let revoked = others.map(|certificate| {
        let subject = format!("serial:{}", certificate.serial);
        Event::Revoked(v1::Revocation { subject, revoked_at_unix_s: now })
    });
    let resolved = v1::NodeResolved { id: node.id.to_string(), keep_serial: kept.to_owned() };
    revoked.chain([Event::NodeResolved(resolved)]).collect()
}

fn revocation(
    state: &State,
    subject: &str,
    force: bool,
    now: i64,
) -> Result<Vec<Event>, AdminError> {
    let revoked =
        || Event::Revoked(v1::Revocation { subject: subject.into(), revoked_at_unix_s: now });
    if let Some(node) = subject.strip_prefix("node:") {
        return Ok(removal(&node_named(state, node)?.id, now));
    }
    if let Some(serial) = subject.strip_prefix("serial:") {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if serial.is_empty() || serial.len() > 40 || !serial.bytes().all(hex) {
            let problem = "a serial number is 1 to 40 lower-case hex digits".to_owned();
            return Err(AdminError::Invalid(problem));
        }
        return Ok(vec![revoked()]);
    }
    let id: SpiffeId = subject.parse().map_err(|error| {
        AdminError::Invalid(format!(
            "{error}; a subject is a SPIFFE ID, node:<uuid> or serial:<hex>"
        ))
    })?;
    if id == SpiffeId::federation(&state.site().trust_domain) {
        return Err(AdminError::Invalid(format!(
            "{id} is this very federation; it cannot be revoked"
        )));
    }
    if id == SpiffeId::gateway(&state.site().trust_domain) && !force {
        return Err(AdminError::Invalid(format!(
            "{id} is the identity of every gateway of the site, and all of them would be cut; \
             revoke one with node:<uuid> or serial:<hex>, or force it"
        )));
    }
    Ok(vec![revoked()])
}

fn reinstatement(state: &State, subject: &str) -> Result<Event, AdminError> {
    if subject.starts_with("node:") {
        let problem = "a revoked machine is gone; let it join again with a new token".to_owned();
        return Err(AdminError::Invalid(problem));
    }
    if !state.revocations.contains_key(subject) {
        return Err(AdminError::Unknown(format!("{subject} is not revoked")));
    }
    Ok(Event::Reinstated(v1::Reinstated { subject: subject.to_owned() }))
}

#[cfg(test)]
mod tests {
    use mesh_tunnel::unix::UnixPeer;

    use super::*;
    use crate::testing::{TestSite, peer, short};

    #[tokio::test]
    async fn the_log_names_who_was_admitted() {
        let site = TestSite::new("west", &Default::default(), short());
        let own = "west.example".parse().unwrap();
        let id = |account: &str| SpiffeId::workload(&own, "ops", account).unwrap();
        let line = "- { id: 'spiffe://west.example/ns/ops/sa/alice', role: viewer }";
        let written = mesh_runtime::config::parse(line, "f.yaml").unwrap();
        let roles = Roles::check(written, &own, "f.yaml").unwrap();
        let admitted = |request: &Request<()>, call| {
            let state = site.site.authority.state();
            admit(request, call, &state, &roles).map_err(|status| {
                let reason = status.metadata().get(crate::refusal::REASON);
                reason.map_or_else(String::new, |reason| reason.to_str().unwrap().to_owned())
            })
        };
        let by = |account: &str| {
            let mut request = Request::new(());
            request.extensions_mut().insert(peer(id(account), None));
            request
        };
        let name = |account: &str| Ok(id(account).to_string());
        assert_eq!(admitted(&by("alice"), Call::Read), name("alice"));
        assert_eq!(admitted(&by("alice"), Call::Administer), Err("role_denied".into()));
        assert_eq!(admitted(&by("bob"), Call::Read), Err("role_missing".into()));

        // Nobody is local who has come with a certificate, or with nothing.
        let local = Some(UnixPeer { uid: 7, gid: 7, pid: None, accepted: Duration::ZERO });
        let mut request = Request::new(());
        assert!(admitted(&request, Call::Read).is_err());
        request.extensions_mut().insert(local);
        assert_eq!(admitted(&request, Call::Administer), Ok("local:7".into()));
        request.extensions_mut().insert(peer(id("bob"), None));
        assert_eq!(admitted(&request, Call::Read), Err("role_missing".into()));

        let revoked = revocation(&site.site.authority.state(), id("alice").as_str(), false, 1);
        let decide = |_: &State| Ok::<_, AdminError>((revoked.unwrap(), ()));
        site.site.authority.commit("local:0", decide).await.unwrap();
        assert_eq!(admitted(&by("alice"), Call::Read), Err("peer_revoked".into()));
    }
}
