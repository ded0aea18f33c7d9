//! The identity of a gateway on federation's own host (gRPC
//! `WorkloadIdentity` on a Unix socket). Who may have it is decided by the
//! uid at the other end of the socket.

use std::sync::Arc;

use mesh_api::v1;
use mesh_core::SpiffeId;
use mesh_tunnel::unix;
use tonic::{Code, Request, Response, Status};
use v1::{authority_record::Event, workload_identity_server::WorkloadIdentity};

use crate::{
    authority::State,
    ca::{IssueError, KeyRequest},
    node_identity::replaced,
    refusal::{Refusal, commit_status, refuse},
    site::{Site, bundles, gateways},
    tenure::check_issuable,
};

/// Serves gateways beside federation.
#[derive(Clone)]
pub struct LocalIdentityService {
    site: Site,
    allowed_uids: Arc<[u32]>,
}

impl LocalIdentityService {
    /// Root and federation's own user are always allowed.
    pub fn new(site: Site, allowed_uids: &[u32]) -> Self {
        Self { site, allowed_uids: allowed_uids.into() }
    }

    /// The caller's uid, if it may be a gateway.
    fn allow<T>(&self, request: &Request<T>) -> Result<u32, Status> {
        let own = rustix::process::geteuid().as_raw();
        let uid = unix::peer(request)?.uid;
        if uid == 0 || uid == own || self.allowed_uids.contains(&uid) {
            return Ok(uid);
        }
        let message = format!(
            "uid {uid} may not be a gateway; add it to `gateway_uids` in federation.yaml if it should"
        );
        Err(refuse(Code::PermissionDenied, "uid_denied", message))
    }
}

#[tonic::async_trait]
impl WorkloadIdentity for LocalIdentityService {
    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::Description>, Status> {
        self.allow(&request)?;
        let state = self.site.authority.state();
        let gateway = self.site.gateway_beside.as_ref();
        Ok(Response::new(v1::Description {
            site: Some(self.site.describe_to_gateway()),
            spiffe_id: SpiffeId::gateway(&state.site().trust_domain).to_string(),
            node: String::new(),
            gateway: gateway.map(ToString::to_string).unwrap_or_default(),
            gateways: gateways(&state),
            bundles: bundles(&state),
            advertise: String::new(),
            locality: None,
        }))
    }

    async fn issue(
        &self,
        request: Request<v1::IssueRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        let uid = self.allow(&request)?;
        let key = KeyRequest::parse(&request.get_ref().csr).map_err(|error| error.status())?;
        let issue = |state: &State| -> Result<_, IssueError> {
            let id = SpiffeId::gateway(&state.site().trust_domain);
            check_issuable(state, &id)?;
            let issued = self.site.ca.issue_for(&key, &id, None, request.get_ref().brief)?;
            let event = Event::WorkloadIssued(v1::WorkloadIssued {
                spiffe_id: id.to_string(),
                serial: issued.serial.clone(),
                not_after_unix_s: issued.not_after_unix_s,
                root: issued.root_sha256.to_vec(),
                replaces: replaced(state, &request.get_ref().replaces, &id, None),
                ..Default::default()
            });
            Ok((vec![event], issued))
        };
        let actor = format!("local:{uid}");
        let issued = self.site.authority.commit(&actor, issue).await.map_err(commit_status)?;
        log::info!(uid, serial = issued.serial.as_str(); "gateway certificate issued");
        Ok(Response::new(self.site.answer(issued)))
    }
}
