//! The SVID from the `WorkloadIdentity` socket (vm-agent's, or federation's
//! beside a gateway), and its renewal.
//!
//! The key is made here and never leaves. A machine that has not joined yet is
//! a normal state: this asks again until there is an identity. Renewal happens
//! at two thirds of the lifetime, jittered; while it fails, everything goes on
//! with the certificate that is there.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_api::v1::{self, workload_identity_client::WorkloadIdentityClient};
use mesh_core::{
    Allowed, Gateway, GatewayId, Locality, NodeId, SpiffeId, TrustBundle, identity::Side,
    verify_peer, wire::SiteRecord,
};
use mesh_runtime::{admin::Condition, clock};
use mesh_tunnel::{Svid, tls};
use rand::Rng;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{
    app::Shared,
    beliefs,
    config::{IdentitySource, Role},
    own::Own,
    retry::Backoff,
};

/// One conversation with the identity source.
const DEADLINE: Duration = Duration::from_secs(10);
/// Pauses while there is no identity at all: joining shall be felt at once.
const FIRST_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Pauses while a renewal fails: most of a third of a lifetime is left.
const RENEWAL_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often the source is asked what this proxy is; also how soon a machine
/// that was asleep notices that its certificate is due.
const LOOK: Duration = Duration::from_secs(30);
/// When to renew, as a share of the lifetime: two thirds, ±10 %.
const RENEW_AT: std::ops::RangeInclusive<f64> = 0.60..=0.7333;

/// Starts the task that fills `shared.credentials` and `shared.own`; none if
/// identity does not come from a socket.
pub fn start(shared: &Shared) {
    let IdentitySource::Socket(socket) = &shared.config.identity else { return };
    let ready = shared.readiness.condition("identity");
    let source = Source { shared: shared.clone(), socket: socket.clone(), ready };
    shared.drain.spawn(source.run());
}

/// Why there is no (new) certificate.
#[derive(Debug, thiserror::Error)]
enum IdentityError {
    #[error("identity socket {source}; is {who} running?")]
    Unreachable { who: &'static str, source: std::io::Error },
    #[error("identity source: {}", if .0.message().is_empty() { .0.code().description() } else { .0.message() })]
    Refused(Box<tonic::Status>),
    #[error("identity source: no answer within {DEADLINE:?}")]
    Timeout,
    #[error("identity source: {0}")]
    Malformed(String),
    #[error("issued certificate: {0}")]
    NotOurs(#[from] mesh_core::VerifyError),
    #[error("issued certificate: {0}")]
    Unusable(#[from] rustls::Error),
    #[error("cannot make a key: {0}")]
    Key(String),
    #[error(
        "this machine has the identity {0}, not that of a gateway; join it with a token of \
         `meshctl token create --gateway`"
    )]
    NotAGateway(SpiffeId),
}

impl From<tonic::Status> for IdentityError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// What the source says of this proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Described {
    site: SiteRecord,
    id: SpiffeId,
    node: Option<NodeId>,
    gateway: Option<GatewayId>,
    gateways: Vec<Gateway>,
    bundles: Vec<TrustBundle>,
    locality: Locality,
}

impl TryFrom<v1::Description> for Described {
    type Error = IdentityError;

    fn try_from(message: v1::Description) -> Result<Self, IdentityError> {
        let site = message.site.as_ref().ok_or_else(|| malformed("no site"))?;
        Ok(Self {
            site: SiteRecord::try_from(site).map_err(malformed)?,
            id: message.spiffe_id.parse().map_err(malformed)?,
            node: optional(&message.node)?,
            gateway: optional(&message.gateway)?,
            gateways: every(&message.gateways)?,
            bundles: every(&message.bundles)?,
            locality: match &message.locality {
                Some(locality) => Locality::try_from(locality).map_err(malformed)?,
                None => Locality::default(),
            },
        })
    }
}

fn malformed(problem: impl std::fmt::Display) -> IdentityError {
    IdentityError::Malformed(problem.to_string())
}

fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<Option<T>, IdentityError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(malformed) }
}

fn every<'a, M, T>(messages: &'a [M]) -> Result<Vec<T>, IdentityError>
where
    T: TryFrom<&'a M, Error: std::fmt::Display>,
{
    messages.iter().map(|message| T::try_from(message).map_err(malformed)).collect()
}

/// When the certificate in use is due, in time since the Unix epoch: clocks of
/// sleeping machines stand still, certificates do not.
#[derive(Debug, Clone, Copy)]
struct Due {
    renew: Duration,
    expires: Duration,
}

impl Due {
    fn new(issued: Duration, expires: Duration, share: f64) -> Self {
        let lifetime = expires.saturating_sub(issued);
        Self { renew: issued + lifetime.mul_f64(share), expires }
    }
}

struct Source {
    shared: Shared,
    socket: PathBuf,
    ready: Condition,
}

impl Source {
    async fn run(self) {
        let drain = self.shared.drain.clone();
        tokio::select! {
            () = self.keep() => {}
            () = drain.draining() => {}
        }
    }

    async fn keep(&self) {
        let mut described: Option<Described> = None;
        let mut due: Option<Due> = None;
        let mut first = Backoff::new(FIRST_RETRY.0, FIRST_RETRY.1);
        let mut renewal = Backoff::new(RENEWAL_RETRY.0, RENEWAL_RETRY.1);
        loop {
            match timeout(DEADLINE, self.look(&described, due)).await {
                Ok(Ok((now, issued))) => {
                    described = Some(now);
                    due = Some(issued);
                    renewal.reset();
                    first.reset();
                    self.ready.holds();
                    tokio::time::sleep(pause(issued)).await;
                }
                Ok(Err(error)) => self.failed(&error, due, &mut first, &mut renewal).await,
                Err(_) => {
                    self.failed(&IdentityError::Timeout, due, &mut first, &mut renewal).await;
                }
            }
        }
    }

    /// Tells, and pauses. Without a usable certificate the proxy is not ready;
    /// with one, nothing has changed yet.
    async fn failed(
        &self,
        error: &IdentityError,
        due: Option<Due>,
        first: &mut Backoff,
        renewal: &mut Backoff,
    ) {
        let left = due.map(|due| due.expires.saturating_sub(clock::now_unix()));
        match left {
            Some(left) if !left.is_zero() => {
                log::warn!(error:% = error, expires_in:? = left; "identity cannot be renewed, trying again");
                renewal.pause().await;
            }
            _ => {
                // Said once, not at every attempt: a machine may join months later.
                if self.ready.fails(error.to_string()) {
                    log::warn!(error:% = error; "no identity yet, trying again");
                }
                first.pause().await;
            }
        }
    }

    /// Asks what this proxy is, and for a certificate if it is due or if what
    /// this proxy is has changed.
    async fn look(
        &self,
        before: &Option<Described>,
        due: Option<Due>,
    ) -> Result<(Described, Due), IdentityError> {
        let channel = self.channel().await?;
        let mut client = WorkloadIdentityClient::new(channel);
        let answer = client.describe(v1::DescribeRequest {}).await?;
        let described = Described::try_from(answer.into_inner())?;
        // Its doors would be those of nobody: nothing is told or opened.
        if self.shared.config.role == Role::Gateway && !described.id.is_gateway() {
            return Err(IdentityError::NotAGateway(described.id));
        }
        let same = before.as_ref().is_some_and(|before| {
            (&before.id, &before.node, &before.site)
                == (&described.id, &described.node, &described.site)
        });
        if before.as_ref() != Some(&described) {
            self.tell(&described);
        }
        if let Some(due) = due.filter(|due| same && clock::now_unix() < due.renew) {
            return Ok((described, due));
        }
        let due = self.issue(&mut client, &described).await?;
        Ok((described, due))
    }

    async fn channel(&self) -> Result<Channel, IdentityError> {
        let net = self.shared.net.clone();
        mesh_tunnel::unix::channel_over(net, &self.socket).await.map_err(|source| {
            IdentityError::Unreachable {
                who: if is_gateway_socket(&self.socket) {
                    "isthmus-federation"
                } else {
                    "vm-agent"
                },
                source,
            }
        })
    }

    /// Puts what was described where everybody looks. It comes before the
    /// certificate, so that whoever sees that also knows what it is for.
    fn tell(&self, described: &Described) {
        // What was written comes before what the source says.
        let config = &self.shared.config;
        let locality = match &config.locality {
            unknown if *unknown == Locality::default() => described.locality.clone(),
            written => written.clone(),
        };
        self.believe(&described.bundles);
        self.shared.own.store(Own {
            site: Some(described.site.name.clone()),
            trust_domain: Some(described.site.trust_domain.clone()),
            node: described.node.clone(),
            gateway: config.gateway_id.clone().or_else(|| described.gateway.clone()),
            gateways: described.gateways.clone(),
            federation: described.site.federation,
            locality,
        });
    }

    fn believe(&self, bundles: &[TrustBundle]) {
        let snapshot = self.shared.snapshot.load();
        beliefs::add(&self.shared.credentials, snapshot.as_deref(), bundles);
    }

    async fn issue(
        &self,
        client: &mut WorkloadIdentityClient<Channel>,
        described: &Described,
    ) -> Result<Due, IdentityError> {
        let (key, csr) =
            tls::new_key_and_csr().map_err(|error| IdentityError::Key(error.to_string()))?;
        let answer = client.issue(v1::IssueRequest { csr }).await?.into_inner();
        let bundles: Vec<TrustBundle> = every(&answer.bundles)?;
        self.believe(&bundles);
        let chain: Vec<_> = answer.chain.into_iter().map(CertificateDer::from).collect();
        let issued = clock::now_unix();
        // What everybody else will check, before it is put to use.
        let trust = self.shared.credentials.trust();
        verify_peer(
            &chain,
            Side::Client,
            &trust.bundles,
            &trust.revocations,
            &Allowed::Exactly(described.id.clone()),
            UnixTime::since_unix_epoch(issued),
        )?;
        let svid = Svid::from_der(chain, key)?;
        let expires = Duration::from_secs(svid.not_after.as_secs());
        let due = Due::new(issued, expires, rand::rng().random_range(RENEW_AT));
        self.shared.credentials.try_replace_svid(svid)?;
        log::info!(
            id = described.id.as_str(), site = described.site.name.as_str(),
            lifetime:? = expires.saturating_sub(issued);
            "identity issued"
        );
        Ok(due)
    }
}

/// Until the next look: soon enough for a certificate that lives for seconds,
/// often enough to notice that a machine was asleep.
fn pause(due: Due) -> Duration {
    due.renew.saturating_sub(clock::now_unix()).min(LOOK)
}

fn is_gateway_socket(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("gateway"))
}

/// Where federation listens, as the identity source knows it.
pub(crate) fn federation(shared: &Shared) -> Option<SocketAddr> {
    let from_snapshot = shared.snapshot.load().and_then(|snapshot| snapshot.federation);
    from_snapshot.or_else(|| shared.own.load().federation)
}
