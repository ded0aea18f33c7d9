//! The SPIFFE Workload API on `workload.sock`: certificates, tokens and bundles for
//! programs of this machine that speak it. Anybody may connect; only who is
//! attested ([`crate::attest`]) learns anything.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use mesh_api::spiffe::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest,
    X509svidResponse,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use mesh_core::TrustBundles;
use mesh_runtime::clock;
use mesh_tunnel::{Credentials, Svid, unix};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{MAX_REQUEST, jwt};
use crate::{
    agent::{Agent, Member, Membership},
    attest::RealHost,
};

/// Every call must carry it: what is sent to a URL by somebody else's program
/// does not.
const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Serves programs of this machine.
pub struct WorkloadApi {
    agent: Arc<Agent>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl WorkloadApi {
    /// For whom the configuration allows.
    pub fn server(agent: Arc<Agent>) -> SpiffeWorkloadApiServer<Self> {
        SpiffeWorkloadApiServer::new(Self { agent }).max_decoding_message_size(MAX_REQUEST)
    }

    /// Refuses whoever is not attested, and everybody while there is nothing
    /// to be had.
    fn admit<T>(&self, request: &Request<T>) -> Result<Arc<Member>, Status> {
        let header = request.metadata().get(SECURITY_HEADER);
        if header.is_none_or(|value| value.as_bytes() != b"true") {
            let message = format!("the metadata {SECURITY_HEADER}: true is missing");
            return Err(Status::invalid_argument(message));
        }
        let peer = unix::peer(request)?;
        let allowed = &self.agent.config.workload_api;
        if !allowed.iter().any(|selector| selector.matches(&peer, &RealHost)) {
            log::warn!(uid = peer.uid, gid = peer.gid, pid:? = peer.pid;
                "refused on the Workload API: no entry of `workload_api` matches");
            return Err(Status::permission_denied("no identity issued"));
        }
        match &*self.agent.membership.borrow() {
            Membership::Member(member) if member.node().workload.is_gateway() => {
                Err(Status::permission_denied("the identity of a gateway is for the gateway alone"))
            }
            Membership::Member(member) => Ok(member.clone()),
            Membership::None => Err(Status::unavailable("this machine has not joined a site")),
            Membership::Unusable { problem, .. } => Err(Status::unavailable(problem.clone())),
        }
    }

    /// What `make` makes of the credentials, now and whenever it is different.
    fn follow<T, R>(&self, request: &Request<R>, make: Make<T>) -> Result<Answers<T>, Status>
    where
        T: Clone + PartialEq + Send + 'static,
    {
        self.admit(request)?;
        let workload = &self.agent.workload;
        workload.want();
        let follower = Follower {
            credentials: workload.credentials.clone(),
            changed: workload.credentials.changed(),
            problem: workload.problem.subscribe(),
            told: None,
        };
        Ok(Box::pin(stream::try_unfold(follower, move |mut follower| async move {
            let answer = follower.next(make).await?;
            Ok(Some((answer, follower)))
        })))
    }
}

/// `None` while there is nothing to tell.
type Make<T> = fn(&Credentials) -> Option<T>;

struct Follower<T> {
    credentials: Arc<Credentials>,
    changed: watch::Receiver<u64>,
    problem: watch::Receiver<String>,
    told: Option<T>,
}

impl<T: Clone + PartialEq> Follower<T> {
    async fn next(&mut self, make: Make<T>) -> Result<T, Status> {
        loop {
            self.changed.mark_unchanged();
            match make(&self.credentials) {
                Some(made) if self.told.as_ref() != Some(&made) => {
                    self.told = Some(made.clone());
                    return Ok(made);
                }
                Some(_) => {}
                None => {
                    let problem = self.problem.borrow_and_update().clone();
                    if !problem.is_empty() {
                        return Err(Status::unavailable(problem));
                    }
                    if self.told.is_some() {
                        let why = "this machine has left its site, or its certificate has ended";
                        return Err(Status::unavailable(why));
                    }
                }
            }
            // The agent holds both senders.
            tokio::select! {
                _ = self.changed.changed() => {}
                _ = self.problem.changed() => {}
            }
        }
    }
}

fn x509_svid(credentials: &Credentials) -> Option<X509svidResponse> {
    let now = clock::now_unix().as_secs();
    // One that has ended is of no use to anybody.
    let svid = credentials.svid().filter(|svid| now < svid.not_after.as_secs())?;
    let mut bundles = x509_bundles(&credentials.trust().bundles);
    // Without its roots a certificate is of no use to whoever gets it.
    let bundle = bundles.remove(&id_of(svid.id.trust_domain().as_str()))?;
    Some(X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: svid.id.to_string(),
            x509_svid: chain_of(&svid),
            x509_svid_key: svid.key.secret_der().to_vec(),
            bundle,
            hint: String::new(),
        }],
        crl: Vec::new(),
        federated_bundles: bundles,
    })
}

fn bundles(credentials: &Credentials) -> Option<X509BundlesResponse> {
    let bundles = x509_bundles(&credentials.trust().bundles);
    (!bundles.is_empty()).then_some(X509BundlesResponse { crl: Vec::new(), bundles })
}

fn chain_of(svid: &Svid) -> Vec<u8> {
    svid.chain.iter().flat_map(|certificate| certificate.iter().copied()).collect()
}

/// Roots by domain, one after the other.
fn x509_bundles(bundles: &TrustBundles) -> HashMap<String, Vec<u8>> {
    let roots = |bundle: &mesh_core::TrustBundle| {
        bundle.roots.iter().flat_map(|root| root.iter().copied()).collect()
    };
    bundles.iter().map(|(domain, bundle)| (id_of(domain.as_str()), roots(bundle))).collect()
}

pub(super) fn id_of(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}")
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<X509svidResponse>;
    type FetchX509BundlesStream = Answers<X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        self.follow(&request, x509_svid).map(Response::new)
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        self.follow(&request, bundles).map(Response::new)
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<JwtsvidRequest>,
    ) -> Result<Response<JwtsvidResponse>, Status> {
        let member = self.admit(&request)?;
        jwt::fetch(&self.agent, &member, request.into_inner()).await.map(Response::new)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        self.follow(&request, jwt::bundles).map(Response::new)
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<ValidateJwtsvidRequest>,
    ) -> Result<Response<ValidateJwtsvidResponse>, Status> {
        let member = self.admit(&request)?;
        jwt::validate(&member, &request.into_inner()).map(Response::new)
    }
}
