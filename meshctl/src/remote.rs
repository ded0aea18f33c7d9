//! The way to federation from a joined machine: an identity from the agent, a
//! tunnel to a gateway of the site, and gRPC over mTLS in a stream of it.

use std::{path::Path, sync::Arc, time::Duration};

use mesh_api::v1::{self, workload_identity_client::WorkloadIdentityClient};
use mesh_core::{
    Allowed, Gateway, SpiffeId, TrustBundle, service::LinkTransport, wire::SiteRecord,
};
use mesh_tunnel::{
    Credentials, Dialer, GatewayAddresses, RealNet, Session, Svid, Trust,
    control::{self, Route},
    tls, unix,
};
use rand::seq::SliceRandom;
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;

use crate::failure::{Exit, Failure};

/// For the agent, who asks federation for the certificate.
const IDENTITY: Duration = Duration::from_secs(15);
/// For a tunnel to one gateway.
const DIAL: Duration = Duration::from_secs(5);
/// For all gateways together.
const REACH: Duration = Duration::from_secs(20);
/// The longest answer of the agent, in bytes: bundles and gateways.
const MAX_ANSWER: usize = 4 << 20;
/// What to do when no gateway leads to federation.
const REMEDY: &str = "see `journalctl -u isthmus-vm-agent` on this machine, and `meshctl check` on the host of federation";

/// A channel to federation as the workload of this machine, whose agent
/// listens on `socket`.
pub async fn channel(socket: &Path) -> Result<Channel, Failure> {
    let identified = timeout(IDENTITY, Machine::identify(socket)).await;
    let machine = identified.unwrap_or_else(|_| {
        let problem = format!("{}: no identity within {IDENTITY:?}", socket.display());
        Err(Failure::new(problem).exit(Exit::Unreachable).remedy(REMEDY))
    })?;
    machine.reach().await
}

/// Who this machine's workload is, and what it knows of its site.
struct Machine {
    site: SiteRecord,
    gateways: Vec<Gateway>,
    credentials: Arc<Credentials>,
}

impl Machine {
    async fn identify(socket: &Path) -> Result<Self, Failure> {
        let channel = unix::channel(socket).await.map_err(|error| {
            Failure::from(error).remedy("use sudo, or `systemctl start isthmus-vm-agent`")
        })?;
        let mut agent = WorkloadIdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER);
        let described = agent.describe(v1::DescribeRequest {}).await?.into_inner();
        let site = described.site.unwrap_or_default();
        let id: SpiffeId = described.spiffe_id.parse().map_err(malformed)?;
        // The key is made here, is never stored and ends with this process.
        let (key, csr) = tls::new_key_and_csr().map_err(Failure::new)?;
        let issued = agent
            .issue(v1::IssueRequest { csr, brief: true, ..v1::IssueRequest::default() })
            .await?
            .into_inner();
        let chain = issued.chain.into_iter().map(CertificateDer::from).collect();
        let svid = Svid::from_der(chain, key).map_err(malformed)?;
        if svid.id != id {
            return Err(malformed(format!("asked as {id}, got a certificate of {}", svid.id)));
        }
        let credentials = Credentials::new(None, trust(&issued.bundles)?);
        credentials.try_replace_svid(svid).map_err(malformed)?;
        Ok(Self {
            site: SiteRecord::try_from(&site).map_err(malformed)?,
            gateways: every(&described.gateways)?,
            credentials,
        })
    }

    /// Through the first gateway that leads there.
    async fn reach(mut self) -> Result<Channel, Failure> {
        self.gateways.shuffle(&mut rand::rng());
        let end = Instant::now() + REACH;
        let mut problems = Vec::new();
        for gateway in &self.gateways {
            let problem = match timeout_at(end, self.through(gateway)).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(problem)) => problem,
                Err(_) => format!("{REACH:?} have passed"),
            };
            problems.push(format!("gateway {}: {problem}", gateway.id));
        }
        if problems.is_empty() {
            problems.push("this machine knows no gateway".to_owned());
        }
        let problem = format!("federation of {}: {}", self.site.name, problems.join("; "));
        Err(Failure::new(problem).exit(Exit::Unreachable).remedy(REMEDY))
    }

    async fn through(&self, gateway: &Gateway) -> Result<Channel, String> {
        let session = self.dial(gateway).await?;
        let SiteRecord { name, trust_domain, .. } = &self.site;
        let route = Route::Through(session.clone(), name.clone());
        let channel = control::channel(route, &self.credentials, trust_domain).await;
        let channel = channel.map_err(|error| format!("federation behind it: {error}"))?;
        // Whoever holds a session keeps it; this one ends with the process.
        tokio::spawn(async move { session.closed().await });
        Ok(channel)
    }

    async fn dial(&self, gateway: &Gateway) -> Result<Session, String> {
        let dialer = Dialer {
            net: Arc::new(RealNet),
            credentials: self.credentials.clone(),
            hello: v1::Hello {
                site: self.site.name.to_string(),
                // The proxy of this machine has the same identity; what is
                // meant for it must not come here.
                limits: Some(v1::TunnelLimits { streams: 0 }),
                boot_id: format!("{:032x}", rand::random::<u128>()),
                ..v1::Hello::default()
            },
        };
        let to = GatewayAddresses { quic: Vec::new(), tls: gateway.tls_addresses.clone() };
        let allowed = Allowed::Exactly(SpiffeId::gateway(&self.site.trust_domain));
        // Every gateway has such an address, and the kernel closes the
        // connection of a command that has ended.
        let dialled = dialer.dial(&to, allowed, LinkTransport::Tls, DIAL).await;
        dialled.map_err(|error| error.to_string())
    }
}

fn trust(bundles: &[v1::Bundle]) -> Result<Trust, Failure> {
    let bundles = every::<_, TrustBundle>(bundles)?.into_iter();
    let bundles = bundles.map(|bundle| (bundle.trust_domain.clone(), Arc::new(bundle))).collect();
    Ok(Trust { bundles: Arc::new(bundles), ..Trust::default() })
}

fn every<'a, M, T>(messages: &'a [M]) -> Result<Vec<T>, Failure>
where
    T: TryFrom<&'a M, Error: std::fmt::Display>,
{
    messages.iter().map(|message| T::try_from(message).map_err(malformed)).collect()
}

fn malformed(problem: impl std::fmt::Display) -> Failure {
    Failure::new(format!("vm-agent: {problem}"))
        .remedy("does it run the same version? `meshctl --version`, `vm-agent --version`")
}
