//! The SVID from the `WorkloadIdentity` socket (vm-agent's, or federation's
//! beside a gateway), and its renewal.
//!
//! The key is made here and never leaves this machine. A machine that has not
//! joined yet is a normal state: this asks again until there is an identity.
//! Renewal happens at two thirds of the lifetime, jittered; while it fails,
//! everything goes on with the certificate that is there.
//!
//! The newest identity is on disk too ([`kept`]). A proxy that starts while the
//! source cannot give a new one begins with that, until the source can. A
//! source that says no ends it: the file is removed, and what came from it is
//! presented no longer.

mod described;
mod kept;
mod source;
mod succession;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use mesh_api::v1;
use mesh_core::{Allowed, Locality, SpiffeId, TrustBundle, identity::Side, verify_peer};
use mesh_runtime::{admin::Condition, clock};
use mesh_tunnel::{Svid, tls};
use rand::Rng;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::time::timeout;
use tonic::Code;

use self::{
    described::{Described, Malformed, every},
    kept::{Disk, Kept, NotUsable},
    source::{Client, Issuer},
};
use crate::{
    app::Shared,
    beliefs,
    config::{IdentitySource, Role},
    headers,
    own::Own,
    retry::Backoff,
};

/// One conversation with the identity source.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long after the start the source may take to give an identity before the
/// one on disk is used: an agent that starts at the same time comes first.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pauses while there is no identity at all: joining shall be felt at once.
const FIRST_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// Pauses while the identity on disk is in use: whoever gives a new one, or
/// says no, shall be felt soon.
const FROM_DISK_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Pauses while a renewal fails: most of a third of a lifetime is left.
const RENEWAL_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// When to renew, as a share of the lifetime: two thirds, ±10 %.
const RENEW_AT: std::ops::RangeInclusive<f64> = 0.60..=0.7333;

/// Starts the task that fills `shared.credentials` and `shared.own`; none if
/// identity does not come from a socket.
/// `shares` where another process lives on with the identity on disk.
pub fn start(shared: &Shared, shares: bool) {
    let issuer = match &shared.config.identity {
        IdentitySource::Socket(socket) => Issuer::Socket(socket.clone()),
        IdentitySource::Attest(attest) => Issuer::Federation(attest.clone()),
        IdentitySource::Files(_) | IdentitySource::None | IdentitySource::Given => return,
    };
    let source = Source {
        shared: shared.clone(),
        issuer,
        ready: shared.readiness.condition("identity"),
        disk: shared.config.state.as_deref().map(Disk::new),
        described: None,
        current: None,
        kept: None,
        shares,
        hurries: false,
        told: String::new(),
    };
    shared.drain.spawn(source.run());
}

/// Why there is no (new) certificate.
#[derive(Debug, thiserror::Error)]
enum IdentityError {
    #[error("identity socket {source}; is {who} running?")]
    Unreachable { who: &'static str, source: std::io::Error },
    #[error("federation {federation}: {source}")]
    NoFederation { federation: Arc<str>, source: std::io::Error },
    #[error("{what} {}: {problem}", path.display())]
    File { what: &'static str, path: PathBuf, problem: String },
    #[error("identity source: {}", if .0.message().is_empty() { .0.code().description() } else { .0.message() })]
    Refused(Box<tonic::Status>),
    #[error("identity source: no answer within {0:?}")]
    Timeout(Duration),
    #[error("identity source: {0}")]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Kept(#[from] NotUsable),
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

impl IdentityError {
    /// Whether somebody who decides has said no: the machine has not joined
    /// (any more), is not the one that joined or no gateway, or was refused by
    /// its site. Everything else is no answer.
    fn is_refusal(&self) -> bool {
        let status = match self {
            Self::Refused(status) => status,
            other => return matches!(other, Self::NotAGateway(_)),
        };
        let decided = [Code::PermissionDenied, Code::FailedPrecondition, Code::NotFound];
        match reason(status) {
            Some(reason) => reason == "not_joined" || decided.contains(&status.code()),
            None => false,
        }
    }
}

/// The stable reason of a refusal of ours.
fn reason(status: &tonic::Status) -> Option<&str> {
    status.metadata().get(headers::ERROR.as_str())?.to_str().ok()
}

/// Looks at how federation has ended a stream of this proxy: if it says that
/// the identity is no more, no later start may use what is on disk.
pub(crate) async fn heed(shared: &Shared, status: &tonic::Status) {
    let is_over = matches!(reason(status), Some("peer_revoked" | "node_not_joined"));
    let is_ours = shared.config.identity.is_issued();
    if let Some(state) = shared.config.state.as_deref().filter(|_| is_over && is_ours) {
        Disk::new(state).remove().await;
    }
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

/// The certificate in use.
struct Current {
    of: Described,
    due: Due,
    /// It is the one that was on disk at the start; the source has not yet
    /// been able to say what it thinks of it.
    is_from_disk: bool,
}

/// What comes between two attempts that fail.
struct Pauses {
    first: Backoff,
    from_disk: Backoff,
    renewal: Backoff,
}

impl Pauses {
    fn new() -> Self {
        let of = |(first, longest)| Backoff::new(first, longest);
        Self { first: of(FIRST_RETRY), from_disk: of(FROM_DISK_RETRY), renewal: of(RENEWAL_RETRY) }
    }
}

struct Source {
    shared: Shared,
    issuer: Issuer,
    ready: Condition,
    disk: Option<Disk>,
    /// What the source has said last.
    described: Option<Described>,
    current: Option<Current>,
    /// What was on disk at the start, while it may be of use.
    kept: Option<Kept>,
    /// What was on disk is another process's, which goes on with it.
    shares: bool,
    /// The root that the certificate in use hangs on leaves: it is due soon.
    hurries: bool,
    /// What was told last of the identity on disk.
    told: String,
}

impl Source {
    async fn run(self) {
        let drain = self.shared.drain.clone();
        tokio::select! {
            () = self.keep() => {}
            () = drain.refusing() => {}
        }
    }

    async fn keep(mut self) {
        self.kept = self.disk.as_ref().and_then(Disk::read);
        let patience = clock::monotonic() + PATIENCE;
        let mut pauses = Pauses::new();
        loop {
            let is_patient = self.kept.is_some() && clock::monotonic() < patience;
            let deadline = if is_patient { PATIENCE } else { DEADLINE };
            let looked = timeout(deadline, self.look()).await;
            match looked.unwrap_or(Err(IdentityError::Timeout(deadline))) {
                Ok(due) => {
                    pauses = Pauses::new();
                    self.ready.holds();
                    self.rest(due).await;
                }
                Err(error) if error.is_refusal() => {
                    self.forget(&error).await;
                    self.failed(&error, &mut pauses).await;
                }
                Err(error) => {
                    if clock::monotonic() >= patience {
                        self.use_kept();
                    }
                    self.failed(&error, &mut pauses).await;
                }
            }
        }
    }

    /// Tells, and pauses. Without a usable certificate the proxy is not ready;
    /// with one, nothing has changed yet. What may go on for long is told once,
    /// not at every attempt: a machine may join months later.
    async fn failed(&mut self, error: &IdentityError, pauses: &mut Pauses) {
        let problem = error.to_string();
        let Some(left) = self.left() else {
            if self.ready.fails(problem) {
                log::warn!(error:% = error; "no identity yet, trying again");
            }
            return pauses.first.pause().await;
        };
        let is_from_disk = self.current.as_ref().is_some_and(|current| current.is_from_disk);
        if !is_from_disk || self.is_news(problem) {
            log::warn!(error:% = error, expires_in:? = left; "identity cannot be renewed, trying again");
        }
        let pause = if is_from_disk { &mut pauses.from_disk } else { &mut pauses.renewal };
        pause.pause().await;
    }

    /// Whether something else was told last.
    fn is_news(&mut self, problem: String) -> bool {
        let is_news = self.told != problem;
        self.told = problem;
        is_news
    }

    /// Until the certificate in use ends; `None` if there is none that is good.
    fn left(&self) -> Option<Duration> {
        let expires = self.current.as_ref()?.due.expires;
        expires.checked_sub(clock::now_unix()).filter(|left| !left.is_zero())
    }

    /// Asks what this proxy is, and for a certificate if it is due or if what
    /// this proxy is has changed. What is new is kept.
    async fn look(&mut self) -> Result<Due, IdentityError> {
        let mut client = self.issuer.connect(&self.shared.net).await?;
        let answer = client.describe(v1::DescribeRequest {}).await?;
        let described = Described::try_from(&answer.into_inner())?;
        self.check_role(&described.id)?;
        let is_news = self.described.as_ref() != Some(&described);
        if is_news {
            self.tell(&described);
            self.described = Some(described.clone());
        }
        let same = self.current.as_ref().filter(|current| current.of.is_same_as(&described));
        match same.map(|current| current.due) {
            Some(due) if clock::now_unix() < due.renew => {
                if is_news {
                    self.save(&described).await;
                }
                return Ok(due);
            }
            Some(_) => {}
            None => self.withdraw("it is of another proxy"),
        }
        let due = self.issue(&mut client, &described).await?;
        (self.shares, self.hurries) = (false, false);
        self.current = Some(Current { of: described.clone(), due, is_from_disk: false });
        self.kept = None;
        self.save(&described).await;
        Ok(due)
    }

    /// The doors of a gateway that is none would be those of nobody: nothing is
    /// told or opened.
    fn check_role(&self, id: &SpiffeId) -> Result<(), IdentityError> {
        if self.shared.config.role == Role::Gateway && !id.is_gateway() {
            return Err(IdentityError::NotAGateway(id.clone()));
        }
        Ok(())
    }

    async fn save(&self, described: &Described) {
        if let (Some(disk), Some(svid)) = (&self.disk, self.shared.credentials.svid()) {
            disk.save(described, &svid).await;
        }
    }

    /// Begins with the identity on disk, if there is no other one.
    fn use_kept(&mut self) {
        let Some(kept) = self.kept.take_if(|_| self.current.is_none()) else { return };
        match self.begin_with(&kept) {
            Ok(expires) => {
                let due = Due { renew: Duration::ZERO, expires };
                self.current = Some(Current { of: kept.described, due, is_from_disk: true });
                self.ready.holds();
            }
            Err(problem) => {
                // The clock may yet be set, the source may yet speak: it is
                // looked at again.
                self.kept = Some(kept);
                if self.is_news(problem.to_string()) {
                    log::warn!(error:% = problem; "the identity on disk is not used");
                }
            }
        }
    }

    /// Puts what was on disk to use; says when it ends.
    fn begin_with(&self, kept: &Kept) -> Result<Duration, IdentityError> {
        self.check_role(&kept.described.id)?;
        if let Some(described) = &self.described {
            kept.check_is_of(described)?;
        }
        let now = clock::now_unix();
        let (trust, snapshot) = (self.shared.credentials.trust(), self.shared.snapshot.load());
        let bundles = &kept.described.bundles;
        let more = beliefs::with(trust.clone(), snapshot.as_deref(), bundles);
        let svid = kept.svid(&more.unwrap_or(trust), now)?;
        let expires = Duration::from_secs(svid.not_after.as_secs());
        if self.described.is_none() {
            self.tell(&kept.described);
        }
        self.shared.credentials.try_replace_svid(svid).map_err(NotUsable::Key)?;
        log::warn!(
            id = kept.described.id.as_str(), site = kept.described.site.name.as_str(),
            expires_in:? = expires.saturating_sub(now);
            "beginning with the identity on disk"
        );
        Ok(expires)
    }

    /// The source has said no: no start uses what is on disk, and what was
    /// begun with ends. A certificate that this process was issued stays in
    /// use; whoever is called with it knows of its revocation.
    async fn forget(&mut self, refusal: &IdentityError) {
        self.kept = None;
        self.withdraw(&refusal.to_string());
        if let Some(disk) = &self.disk {
            disk.remove().await;
        }
    }

    fn withdraw(&mut self, why: &str) {
        if self.current.take_if(|current| current.is_from_disk).is_some() {
            log::warn!(why = why; "the identity that was on disk is presented no longer");
            self.shared.credentials.withdraw_svid();
        }
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
        client: &mut Client,
        described: &Described,
    ) -> Result<Due, IdentityError> {
        let (key, csr) =
            tls::new_key_and_csr().map_err(|error| IdentityError::Key(error.to_string()))?;
        let replaces = self.replaces(described);
        let request = v1::IssueRequest { csr, replaces, ..v1::IssueRequest::default() };
        let answer = client.issue(request).await?.into_inner();
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
fn pause(due: Due, look: Duration) -> Duration {
    due.renew.saturating_sub(clock::now_unix()).min(look)
}

/// Where federation listens, as the identity source knows it.
pub(crate) fn federation(shared: &Shared) -> Option<SocketAddr> {
    let from_snapshot = shared.snapshot.load().and_then(|snapshot| snapshot.federation);
    from_snapshot.or_else(|| shared.own.load().federation)
}
