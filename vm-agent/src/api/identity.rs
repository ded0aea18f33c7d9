//! gRPC `WorkloadIdentity` on `identity.sock`: who the workloads of this
//! machine are, and their certificates.

use std::{sync::Arc, time::Duration};

use mesh_api::v1::{
    DescribeRequest, Description, IssueRequest, IssueWorkloadRequest, IssuedCertificate,
    workload_identity_server::{WorkloadIdentity, WorkloadIdentityServer},
};
use mesh_core::name::Subject;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use super::{Callers, MAX_REQUEST, refuse};
use crate::{
    agent::{Agent, Member, Membership},
    join::relayed,
    node::Node,
    uplink::node_identity,
};

/// For federation's answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Serves the proxy and other programs of this machine.
pub struct Identity {
    agent: Arc<Agent>,
    callers: Callers,
}

impl Identity {
    /// For root, the agent's own user and those that the configuration names.
    pub fn server(agent: Arc<Agent>) -> WorkloadIdentityServer<Self> {
        let config = &agent.config;
        let callers = Callers::own().and(&config.identity_uids, &config.identity_users);
        WorkloadIdentityServer::new(Self { agent, callers }).max_decoding_message_size(MAX_REQUEST)
    }

    fn member(&self) -> Result<Arc<Member>, Status> {
        match &*self.agent.membership.borrow() {
            Membership::Member(member) => Ok(member.clone()),
            // Callers wait for it: joining mends it.
            Membership::None => {
                let message = "this machine has not joined a site: `meshctl join <token>`";
                Err(refuse(Code::Unavailable, "not_joined", message))
            }
            Membership::Unusable { problem, .. } => {
                Err(refuse(Code::FailedPrecondition, "identity_unusable", problem))
            }
        }
    }
}

#[tonic::async_trait]
impl WorkloadIdentity for Identity {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<Description>, Status> {
        self.callers.check(&request)?;
        let node = self.member()?.node();
        Ok(Response::new(describe(&self.agent, &node)))
    }

    async fn issue(
        &self,
        request: Request<IssueRequest>,
    ) -> Result<Response<IssuedCertificate>, Status> {
        self.callers.check(&request)?;
        let member = self.member()?;
        let uplink = self.agent.uplink.borrow().clone();
        let Some(channel) = uplink.channel else {
            let why = if uplink.problem.is_empty() { "still connecting" } else { &uplink.problem };
            let message = format!("not connected to {}: {why}", member.node().site);
            return Err(refuse(Code::Unavailable, "not_connected", message));
        };
        let request = workload_request(&member.node(), request.into_inner());
        let mut client = node_identity(channel);
        let issued = match timeout(DEADLINE, client.issue_workload(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(relayed(&status)),
            Err(_) => {
                let message = format!("federation: no answer within {DEADLINE:?}");
                return Err(refuse(Code::Unavailable, "not_connected", message));
            }
        };
        member.refreshed(&self.agent.state, &issued.bundles, &issued.gateways);
        Ok(Response::new(issued))
    }
}

fn workload_request(node: &Node, asked: IssueRequest) -> IssueWorkloadRequest {
    let (namespace, account) = match node.workload.subject() {
        Subject::Workload { namespace, account } => (namespace.to_string(), account.to_string()),
        Subject::Node(_) => Default::default(),
    };
    let IssueRequest { csr, replaces, brief } = asked;
    IssueWorkloadRequest { csr, namespace, account, replaces, brief }
}

fn describe(agent: &Agent, node: &Node) -> Description {
    Description {
        site: node.joined.site.clone(),
        spiffe_id: node.workload.to_string(),
        node: node.id.to_string(),
        gateway: node.gateway().unwrap_or_default(),
        gateways: node.joined.gateways.clone(),
        bundles: node.joined.bundles.clone(),
        advertise: agent.config.advertise.map(|addr| addr.to_string()).unwrap_or_default(),
        locality: Some(agent.locality()),
    }
}
