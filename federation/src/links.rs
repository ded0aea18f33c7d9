//! Links: made with a token, listed, exported over, ended.

use std::{sync::Arc, time::Duration};

use mesh_api::v1::{
    CreateLinkTokenRequest, CreateTokenResponse, ExportServiceRequest, ExportServiceResponse,
    LinkClusterRequest, LinkEnded, LinkProgress, LinkResult, RedeemLinkRequest, RedeemLinkResponse,
    TunnelStatus, UnlinkRequest, UnlinkResponse, authority_record::Event, join_client::JoinClient,
};
use mesh_core::{
    SiteName,
    token::{Purpose, Token},
};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};

use crate::{
    authority::State,
    ca::fingerprint,
    exports::{decide_export, decide_unexport, exported_names},
    join::{check_clock, negotiate},
    paths::Paths,
    peering::Peering,
    redeem::{self, LinkError, PeerSite, check_new},
    refusal::{Refusal, commit_status, reason_of, refuse},
    site::{Site, gateways},
    tokens::{self, NewToken},
    view::View,
};

mod listing;

/// How long the other site may take to answer a token.
const REDEEM_DEADLINE: Duration = Duration::from_secs(10);
/// How long a linked site may take to hear that the link is over.
const GOODBYE: Duration = Duration::from_secs(2);
/// How often it is looked whether the link is up.
const LOOK: Duration = Duration::from_millis(50);

/// How long a new link has to prove itself.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The side that redeems: until the first replication.
    pub prove: Duration,
    /// The side that issued the token: until it looks whether the other pulls.
    /// Longer than the other takes to give up, or it would end what the other
    /// has just kept.
    pub confirm: Duration,
    /// And how long the other may just then be reconnecting.
    pub come_back: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { prove: s(10), confirm: s(30), come_back: s(15) }
    }
}

/// Where progress goes; a listener that has gone away changes nothing.
pub type Progress = mpsc::Sender<Result<LinkProgress, Status>>;

/// The links of one site. Clones share it.
#[derive(Clone)]
pub struct Links {
    site: Site,
    view: View,
    peering: Peering,
    paths: Arc<dyn Paths>,
    drain: Drain,
    patience: Patience,
}

impl Links {
    /// Links of `site`, over `paths`.
    pub fn new(
        site: Site,
        view: View,
        peering: Peering,
        paths: Arc<dyn Paths>,
        drain: Drain,
    ) -> Self {
        Self { site, view, peering, paths, drain, patience: Patience::default() }
    }

    /// With other deadlines.
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Serves the other direction.
    pub fn peering(&self) -> &Peering {
        &self.peering
    }

    fn state(&self) -> Arc<State> {
        self.site.authority.state()
    }

    /// `Admin.CreateLinkToken`.
    pub async fn create_token(
        &self,
        actor: &str,
        request: CreateLinkTokenRequest,
    ) -> Result<CreateTokenResponse, Status> {
        let ttl = Duration::from_secs(request.ttl_s);
        let new = NewToken::link(&request.site, ttl).map_err(|error| error.status())?;
        let made = tokens::create(&self.site, actor, new).await.map_err(commit_status)?;
        let (token, expires_unix_s) = made;
        Ok(CreateTokenResponse { id: token.id.to_string(), token: token.encode(), expires_unix_s })
    }

    // ---- the side that issued the token ----------------------------------

    /// `Join.RedeemLink`: the caller has no certificate that we know, but a
    /// token, a bundle, and a proof that belongs to both.
    pub async fn redeem(&self, request: RedeemLinkRequest) -> Result<RedeemLinkResponse, Status> {
        let answer = self.try_redeem(&request).await;
        let site = crate::join::text(&request.site);
        match &answer {
            Ok(_) => log::warn!(site = site.as_str(), token = request.token_id.as_str();
                "linked: a site has redeemed its token"),
            Err(status) => log::warn!(site = site.as_str(), reason = reason_of(status),
                error = status.message(); "link refused"),
        }
        answer
    }

    async fn try_redeem(&self, request: &RedeemLinkRequest) -> Result<RedeemLinkResponse, Status> {
        let version = negotiate(&request.versions)?;
        let clock = self.site.authority.clock();
        check_clock(request.time_unix_ms, clock.unix_ms())?;
        let now = clock.since_epoch();
        let peer = redeem::check_request(&self.state(), request, now);
        let peer = peer.map_err(|error| error.status())?;
        let decide = |state: &State| {
            redeem::decide_redeem(state, request, &peer, now).map(|events| (events, ()))
        };
        let actor = format!("token:{}", crate::join::text(&request.token_id));
        self.site.authority.commit(&actor, decide).await.map_err(commit_status)?;
        self.drain.spawn(self.clone().confirm(peer.site.clone()));
        let state = self.state();
        Ok(RedeemLinkResponse {
            version,
            site: state.site().name.to_string(),
            trust_domain: state.site().trust_domain.to_string(),
            bundle: Some(state.site().bundle.clone()),
            gateways: gateways(&state),
            exports: exported_names(&state, &peer.site),
        })
    }

    /// The side that redeemed proves the link or gives it up; if it never pulls
    /// it has given up, and so do we.
    async fn confirm(self, site: SiteName) {
        let made_at = |state: &State| state.links.get(&site).map(|link| link.made_at_ms);
        let made = made_at(&self.state());
        let confirmed = async {
            // It may come, refuse what it gets, and go: what counts is that it
            // is there in the end, or comes back.
            sleep(self.patience.confirm).await;
            self.peering.is_subscribed(&site, self.patience.come_back).await
        };
        let confirmed = tokio::select! {
            confirmed = confirmed => confirmed,
            () = self.drain.draining() => return,
        };
        if confirmed || made_at(&self.state()) != made {
            return;
        }
        log::error!(site = site.as_str();
            "the linked site has not come through the gateways: the link is ended; look there for \
             the reason and make a new token");
        if let Err(status) = self.end("federation", &site).await {
            log::error!(site = site.as_str(), error = status.message(); "cannot end the link");
        }
    }

    // ---- the side that redeems -------------------------------------------

    /// `Admin.LinkCluster`. Goes on when the listener goes away.
    pub fn link_cluster(&self, actor: String, request: LinkClusterRequest, progress: Progress) {
        let links = self.clone();
        self.drain.spawn(async move {
            let result = tokio::select! {
                result = links.make(&actor, &request, &progress) => result,
                () = links.drain.draining() => {
                    Err(refuse(Code::Unavailable, "stopping", "federation is stopping"))
                }
            };
            let last = result.map(|result| LinkProgress {
                step: format!("linked with {}", result.site),
                result: Some(result),
            });
            if let Err(status) = &last {
                log::warn!(site = crate::join::text(&request.site).as_str(),
                    error = status.message(); "link not made");
            }
            let _ = timeout(GOODBYE, progress.send(last)).await;
        });
    }

    async fn make(
        &self,
        actor: &str,
        request: &LinkClusterRequest,
        progress: &Progress,
    ) -> Result<LinkResult, Status> {
        let token = self.check_token(request)?;
        let whom = format!("{} at {}", token.site, token.gateways.join(", "));
        tell(progress, format!("asking {whom}")).await;
        let peer = self.ask(&token).await?;
        let print = fingerprint_of(&peer.bundle);
        tell(progress, format!("{} is {} with root {print}", peer.site, peer.trust_domain)).await;
        self.keep(actor, &peer, request).await?;
        tell(progress, "waiting for its services through the gateways".to_owned()).await;
        if let Err(problem) = self.prove(&peer.site).await {
            self.roll_back(actor, &peer.site).await;
            return Err(not_proved(&self.state(), &peer, &problem));
        }
        log::warn!(site = peer.site.as_str(), trust_domain = peer.trust_domain.as_str(),
            root = print.as_str(); "linked");
        Ok(self.result(&peer))
    }

    fn check_token(&self, request: &LinkClusterRequest) -> Result<Token, Status> {
        let token = Token::decode(&request.token, Purpose::Link)
            .map_err(|error| refuse(Code::InvalidArgument, error.code(), error))?;
        if request.site != token.site.as_str() {
            let message = format!(
                "this token is from site {}, not from {}; say `meshctl link \
                cluster {}`",
                token.site,
                crate::join::text(&request.site),
                token.site
            );
            return Err(refuse(Code::InvalidArgument, "token_wrong_site", message));
        }
        let state = self.state();
        check_new(&state, &token.site, &token.trust_domain).map_err(|error| error.status())?;
        if state.gateways.is_empty() {
            let message = "this site has no gateway; add one under `gateways` in federation.yaml";
            return Err(refuse(Code::FailedPrecondition, "no_gateway", message));
        }
        Ok(token)
    }

    /// Redeems the token at the other site's join door.
    async fn ask(&self, token: &Token) -> Result<PeerSite, Status> {
        let svid = self.site.credentials.svid();
        let svid = svid.ok_or_else(|| {
            refuse(Code::Unavailable, "no_certificate", "federation has no certificate yet")
        })?;
        let now = self.site.authority.clock().unix_ms();
        let request = redeem::request(&self.state(), token, &svid, now);
        let request = request.map_err(|error| error.status())?;
        let channel = self.paths.join_door(token).await.map_err(|error| {
            let message = format!(
                "cannot reach {}: {error}; is its gateway's TCP port open from \
                here? The token is still good",
                token.site
            );
            refuse(Code::Unavailable, "link_unreachable", message)
        })?;
        let mut client = JoinClient::new(channel);
        let answer =
            timeout(REDEEM_DEADLINE, client.redeem_link(request)).await.map_err(|_| {
                let message = format!("{} has not answered within 10 s", token.site);
                refuse(Code::DeadlineExceeded, "timeout", message)
            })??;
        redeem::check_response(token, answer.get_ref()).map_err(|error| error.status())
    }

    async fn keep(
        &self,
        actor: &str,
        peer: &PeerSite,
        request: &LinkClusterRequest,
    ) -> Result<(), Status> {
        let transport = request.transport();
        let decide = |state: &State| -> Result<_, LinkError> {
            check_new(state, &peer.site, &peer.trust_domain)?;
            Ok((vec![peer.made(true, transport)], ()))
        };
        self.site.authority.commit(actor, decide).await.map_err(commit_status)
    }

    /// Waits until the other site's federation has answered through the
    /// gateways; else says what is in the way.
    async fn prove(&self, site: &SiteName) -> Result<(), String> {
        let deadline = Instant::now() + self.patience.prove;
        loop {
            let (proved, problem) = self.view.read_live(|live| match live.links.get(site) {
                Some(link) => {
                    let proved = link.up && link.imported.revision.is_some();
                    (proved, link.refused.clone().or_else(|| link.problem.clone()))
                }
                None => (false, None),
            });
            if proved {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(problem.unwrap_or_else(|| "no answer".to_owned()));
            }
            if !self.state().links.contains_key(site) {
                return Err("the other site has ended the link".to_owned());
            }
            sleep(LOOK).await;
        }
    }

    async fn roll_back(&self, actor: &str, site: &SiteName) {
        if let Err(status) = self.end(actor, site).await {
            log::error!(site = site.as_str(), error = status.message();
                "cannot take the link back; `meshctl unlink` it");
        }
    }

    fn result(&self, peer: &PeerSite) -> LinkResult {
        let state = self.state();
        let imports = self.view.read_live(|live| {
            let names = live.links.get(&peer.site).map(|link| link.imported.services.keys());
            names.into_iter().flatten().map(ToString::to_string).collect()
        });
        LinkResult {
            site: peer.site.to_string(),
            trust_domain: peer.trust_domain.to_string(),
            root_fingerprint: fingerprint_of(&peer.bundle),
            own_trust_domain: state.site().trust_domain.to_string(),
            own_root_fingerprint: fingerprint_of(&state.site().bundle),
            exports: exported_names(&state, &peer.site),
            imports,
        }
    }

    // ---- both -------------------------------------------------------------

    /// `Admin.Unlink`: tells the other site, if it can be reached, and forgets
    /// it, its bundle and its services.
    pub async fn unlink(
        &self,
        actor: &str,
        request: UnlinkRequest,
    ) -> Result<UnlinkResponse, Status> {
        let site: SiteName = request
            .site
            .parse()
            .map_err(|error| refuse(Code::InvalidArgument, "invalid_argument", error))?;
        if !self.state().links.contains_key(&site) {
            let message = format!("{site} is not linked with this site; see `meshctl links`");
            return Err(refuse(Code::NotFound, "not_linked", message));
        }
        self.end(actor, &site).await?;
        log::warn!(site = site.as_str(), actor = actor; "unlinked");
        Ok(UnlinkResponse {})
    }

    /// The goodbye goes first: without the link there is no way to say it.
    async fn end(&self, actor: &str, site: &SiteName) -> Result<(), Status> {
        self.peering.say_goodbye(site, GOODBYE).await;
        let decide = |state: &State| -> Result<_, LinkError> {
            let known = state.links.contains_key(site);
            let event = Event::LinkEnded(LinkEnded { site: site.to_string() });
            Ok((known.then_some(event).into_iter().collect(), ()))
        };
        let ended = self.site.authority.commit(actor, decide).await.map_err(commit_status);
        self.peering.forget_goodbye(site);
        ended
    }

    /// `Admin.ExportService`.
    pub async fn export(
        &self,
        actor: &str,
        request: ExportServiceRequest,
    ) -> Result<ExportServiceResponse, Status> {
        let decide = |state: &State| decide_export(state, &request);
        let exported_to = self.site.authority.commit(actor, decide).await.map_err(commit_status)?;
        Ok(ExportServiceResponse { exported_to })
    }

    /// `Admin.UnexportService`.
    pub async fn unexport(
        &self,
        actor: &str,
        request: ExportServiceRequest,
    ) -> Result<ExportServiceResponse, Status> {
        let decide = |state: &State| decide_unexport(state, &request);
        let exported_to = self.site.authority.commit(actor, decide).await.map_err(commit_status)?;
        Ok(ExportServiceResponse { exported_to })
    }

    /// Tunnels to a linked site, as gateways report them.
    fn tunnels(&self, site: &SiteName) -> Vec<TunnelStatus> {
        self.view.read_live(|live| {
            let all = live.gateways.values().flat_map(|gateway| &gateway.tunnels);
            all.filter(|tunnel| tunnel.site == site.as_str()).cloned().collect()
        })
    }
}

async fn tell(progress: &Progress, step: String) {
    // A listener that has gone away, or does not read, misses it.
    let _ = timeout(LOOK, progress.send(Ok(LinkProgress { step, result: None }))).await;
}

/// What a person compares: of the oldest root.
fn fingerprint_of(bundle: &mesh_api::v1::Bundle) -> String {
    bundle.roots.first().map(|root| fingerprint(root)).unwrap_or_default()
}

fn not_proved(state: &State, peer: &PeerSite, problem: &str) -> Status {
    let own = state.site();
    let addresses: Vec<&str> = peer
        .gateways
        .iter()
        .flat_map(|gateway| gateway.quic_addresses.iter().chain(&gateway.tls_addresses))
        .map(String::as_str)
        .collect();
    let message = format!(
        "{} has accepted the token, and its federation cannot be reached through the gateways: \
         {problem}. Nothing was kept. Check that the gateways of {} run and reach {} (UDP and TCP), \
         then make a new token on {}: meshctl link token --site {}",
        peer.site,
        own.name,
        addresses.join(", "),
        peer.site,
        own.name,
    );
    refuse(Code::Unavailable, "link_unproved", message)
}

#[cfg(test)]
mod tests;
