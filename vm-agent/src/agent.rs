//! What the parts of the agent share: who this machine is, whether it is
//! connected, what runs on it. Every part owns some of it and watches the rest.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use mesh_api::v1;
use mesh_runtime::{changes::Changes, clock};
use mesh_tunnel::{Credentials, Net};
use rustls_pki_types::PrivateKeyDer;
use tokio::sync::{Mutex, watch};
use tonic::transport::Channel;

use crate::{
    config::Config,
    jwt::Tokens,
    ledger::{Place, Registration, Registrations},
    machine::Machine,
    node::{InvalidNode, Node},
    services::Services,
    state::{StateDir, StateError},
    workload::Workload,
};

/// Everything that is shared.
pub struct Agent {
    /// What was written.
    pub config: Config,
    /// Where it runs.
    pub machine: Machine,
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// What outlives it.
    pub state: StateDir,
    /// Random per process; in the tunnel's `Hello`.
    pub process_id: String,
    /// The services of this machine; written by `services::watch`.
    pub services: watch::Sender<Services>,
    /// When to look at the service files.
    pub look: Changes,
    /// What the site has answered about them; written by `session`.
    pub registrations: watch::Sender<Registrations>,
    /// Of which site; written by joining and leaving.
    pub membership: watch::Sender<Membership>,
    /// Whether the site is reached; written by `uplink`.
    pub uplink: watch::Sender<Uplink>,
    /// What programs of this machine get over the Workload API.
    pub workload: Workload,
    /// Held while joining or leaving.
    pub changing: Mutex<()>,
    /// How to say goodbye; set before the drain starts.
    pub farewell: OnceLock<Farewell>,
}

/// Whether this machine belongs to a site.
#[derive(Clone)]
pub enum Membership {
    /// It does not.
    None,
    /// There is an identity that must not or cannot be used.
    Unusable {
        /// Why, and what to do.
        problem: String,
        /// Of which site, if that can be told.
        site: Option<v1::Site>,
    },
    /// It does.
    Member(Arc<Member>),
}

/// The use of one node identity, over renewals.
pub struct Member {
    /// Presented to gateways and federation.
    pub credentials: Arc<Credentials>,
    node: watch::Sender<Arc<Node>>,
    /// Why the identity cannot be renewed; empty if all is well.
    pub trouble: watch::Sender<String>,
    /// JWT-SVIDs of its workload.
    pub tokens: Tokens,
}

/// Whether the site is reached.
#[derive(Debug, Clone, Default)]
pub struct Uplink {
    /// gRPC to federation; `None` while there is no tunnel.
    pub channel: Option<Channel>,
    /// It was reached before, as this member.
    pub was_connected: bool,
    /// The site has refused our certificate at the last attempt.
    pub rejected: bool,
    /// Why not, and what to do; empty while it is.
    pub problem: String,
}

/// How an agent that stops says goodbye.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The agent is back within this time, or the machine is gone.
    Leaving(Duration),
    /// The machine stops: nothing of it may be called any more.
    Deregister,
}

impl Member {
    /// Begins to use a node identity.
    pub fn new(node: Node) -> Result<Arc<Self>, InvalidNode> {
        let credentials = Credentials::new(Some(node.svid()?), node.trust());
        Ok(Arc::new(Self {
            credentials,
            node: watch::Sender::new(Arc::new(node)),
            trouble: watch::Sender::new(String::new()),
            tokens: Tokens::default(),
        }))
    }

    /// The newest state of the identity.
    pub fn node(&self) -> Arc<Node> {
        self.node.borrow().clone()
    }

    /// Wakes when the identity, or whom the site believes, has changed.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Node>> {
        self.node.subscribe()
    }

    /// Keeps a renewed identity and uses it from the next handshake on. What
    /// cannot be kept is not used: after a restart it would be gone, and the
    /// one on disk retired.
    fn replace(&self, state: &StateDir, node: Node) -> Result<(), StateError> {
        state.save(&node)?;
        self.credentials.replace_trust(node.trust());
        if let Ok(svid) = node.svid() {
            self.credentials.replace_svid(svid);
        }
        self.node.send_replace(Arc::new(node));
        Ok(())
    }

    /// Takes a new certificate of this node.
    pub fn renewed(
        &self,
        state: &StateDir,
        key: PrivateKeyDer<'static>,
        certificate: v1::IssuedCertificate,
    ) -> Result<(), String> {
        let node = self
            .node()
            .renewed(clock::unix_seconds(), key, certificate)
            .map_err(|error| format!("the new certificate is not usable: {error}"))?;
        self.replace(state, node).map_err(|error| error.to_string())
    }

    /// Takes the bundles and gateways of the site as it has just told them.
    /// Whether they are kept.
    pub fn refreshed(
        &self,
        state: &StateDir,
        bundles: &[v1::Bundle],
        gateways: &[v1::Gateway],
    ) -> bool {
        let refreshed = self.node().refreshed(bundles, gateways);
        let kept = match refreshed {
            Ok(None) => return true,
            Ok(Some(node)) => self.replace(state, node).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &kept {
            log::warn!(error = error.as_str(); "bundles and gateways of the site stay as they were");
        }
        kept.is_ok()
    }

    /// What it verifies with and presents from here on, for the site.
    pub fn holds(&self) -> v1::NodeHolds {
        let node = self.node();
        let own = node.trust().bundles.get(&node.trust_domain).map(|bundle| bundle.sequence);
        let serial = self.credentials.svid().map(|svid| svid.serial());
        v1::NodeHolds {
            bundle_sequence: own.unwrap_or_default(),
            serial: serial.unwrap_or_default(),
        }
    }
}

impl Membership {
    /// What the state directory says about this machine.
    pub fn load(state: &StateDir, machine: &Machine) -> Self {
        let node = match state.load() {
            Ok(None) => return Self::None,
            Ok(Some(node)) => node,
            Err(error) => return Self::unusable(error.to_string(), None),
        };
        let site = node.joined.site.clone();
        if node.machine_id != machine.id {
            let problem = format!(
                "the identity in the state directory belongs to another machine (id {}, this one \
                 is {}): was the image cloned? `meshctl join <token>` gives this machine its own",
                node.machine_id, machine.id
            );
            return Self::unusable(problem, site);
        }
        match Member::new(node) {
            Ok(member) => Self::Member(member),
            Err(error) => Self::unusable(error.to_string(), site),
        }
    }

    fn unusable(problem: String, site: Option<v1::Site>) -> Self {
        log::error!("identity not used: {problem}");
        Self::Unusable { problem, site }
    }
}

impl Agent {
    /// The member, if this machine is one.
    pub fn member(&self) -> Option<Arc<Member>> {
        match &*self.membership.borrow() {
            Membership::Member(member) => Some(member.clone()),
            Membership::None | Membership::Unusable { .. } => None,
        }
    }

    /// Becomes a member, or ceases to be one.
    pub fn set_membership(&self, membership: Membership) {
        // First the uplink: nobody may find the old one under the new name.
        self.uplink.send_replace(Uplink::default());
        self.registrations.send_replace(Registrations::default());
        self.membership.send_replace(membership);
    }

    /// Where this machine is, for registrations.
    pub fn place(&self) -> Place {
        Place {
            address: self.config.advertise.map(|addr| addr.to_string()).unwrap_or_default(),
            locality: self.locality(),
        }
    }

    /// Region, zone and host.
    pub fn locality(&self) -> v1::Locality {
        v1::Locality {
            region: self.config.region.clone(),
            zone: self.config.zone.clone(),
            // The longest part that federation records, in bytes.
            host: self.machine.hostname.chars().filter(char::is_ascii_graphic).take(64).collect(),
        }
    }

    /// What `meshctl` shows of this machine.
    pub fn status(&self) -> v1::AgentStatusResponse {
        let mut status = v1::AgentStatusResponse {
            services: self.local_services(),
            ..v1::AgentStatusResponse::default()
        };
        match &*self.membership.borrow() {
            Membership::None => status.state = "not joined".to_owned(),
            Membership::Unusable { problem, site } => {
                status.state = "not joined".to_owned();
                status.problem = problem.clone();
                status.site = site.clone();
            }
            Membership::Member(member) => self.member_status(member, &mut status),
        }
        status
    }

    fn member_status(&self, member: &Member, status: &mut v1::AgentStatusResponse) {
        let node = member.node();
        let uplink = self.uplink.borrow();
        status.state = uplink.state().to_owned();
        status.site = node.joined.site.clone();
        status.node = node.id.to_string();
        status.grants = Some(node.grants());
        status.spiffe_id = node.workload.to_string();
        status.certificate_expires_unix_s = i64::try_from(node.not_after.as_secs()).unwrap_or(0);
        let trouble = member.trouble.borrow();
        let problem = if uplink.problem.is_empty() { &*trouble } else { &uplink.problem };
        status.problem = problem.clone();
    }

    fn local_services(&self) -> Vec<v1::LocalService> {
        let services = self.services.borrow();
        let registrations = self.registrations.borrow();
        let local = services.local.iter().map(|(instance, local)| {
            let registration = registrations.get(instance);
            let detail = match registration {
                Some(Registration::Refused(why)) => format!("not registered: {why}"),
                _ => local.detail.clone(),
            };
            v1::LocalService {
                instance: instance.clone(),
                service: local.spec.service.to_string(),
                ports: local.spec.wire().ports,
                health: local.health.into(),
                detail,
                registered: registration == Some(&Registration::Registered),
            }
        });
        let broken = services.broken.iter().map(|(path, problem)| v1::LocalService {
            instance: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            detail: problem.clone(),
            ..v1::LocalService::default()
        });
        local.chain(broken).collect()
    }
}

impl Uplink {
    /// One word for people and metrics.
    pub fn state(&self) -> &'static str {
        match (&self.channel, self.was_connected) {
            (Some(_), _) => "connected",
            (None, true) => "lost",
            (None, false) => "connecting",
        }
    }
}
