//! The rotation of the site's own root.
//!
//! *Publish*: a new root is made here and joins the bundle, which goes to
//! proxies, agents and linked sites. Once all of them verify with it, *turn
//! over*: certificates are issued under the new root, and the bundle asks
//! whoever holds one under the old root to renew it. Once none is left the old
//! root is *retired*: it leaves the bundle, and its keys the disk. Each step is
//! one commit of the authority log; what the disk holds of keys follows it, now
//! and at every start. Whoever is waited for has a name ([`judge`]).
//!
//! Until everybody has the new root, what hangs on it is also believed by who
//! knows only the old one: the old root has signed the new one's key.

pub mod judge;
mod shown;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_api::v1::{
    self, Bundle, BundleHeld, BundleUpdated, CertificatesShown, RootRotation, RotationPhase,
    TokenRevoked, authority_record::Event,
};
use mesh_runtime::drain::Drain;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tonic::Code;

use self::judge::{Judgement, Seen, judge, to_force};
use crate::{
    authority::{CommitError, State, rotation::Rotation},
    ca::{CaError, fingerprint, hex, spki_sha256},
    discovery::Discovery,
    own_identity,
    peering::Peering,
    refusal::Refusal,
    registry::Registry,
    site::Site,
    tokens,
    view::View,
};

/// How often it is looked whether a step's condition holds.
const LOOK: Duration = Duration::from_millis(500);
/// How long nobody has used the old root before it is retired. Who has renewed
/// a certificate proves it in every session that is open, at once or, after
/// another proof, two seconds later; who gets the bundle first would end them.
const SETTLE: Duration = Duration::from_secs(5);
/// Certificates that are renewed in one second while they are turned over.
const RENEWALS: usize = 100;
/// The time over which renewals are spread, in seconds.
const SPREAD: (usize, usize) = (3, 600);

/// Why a rotation is not begun, steered or taken further.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// One is under way.
    #[error("a rotation is under way since {0} s; see `meshctl rotate root status`")]
    UnderWay(i64),
    /// There is none.
    #[error("no rotation of the root is under way; begin one with `meshctl rotate root`")]
    None,
    /// It has been.
    #[error("it is being rolled back already; wait for its end, then rotate anew")]
    RollsBack,
    /// Nobody is waited for, or nobody of that name.
    #[error("{0}")]
    NothingToForce(String),
    /// Somebody still needs what is to go.
    #[error("{0} still hold it back; see `meshctl rotate root status`")]
    Blocked(usize),
    /// Something else was decided meanwhile.
    #[error("the rotation has changed meanwhile; look again")]
    Changed,
    /// The keys.
    #[error(
        "{0}. Rotating needs the old root's key, `root.key`, on this host; if it is kept \
             elsewhere, put it back until the rotation is over"
    )]
    Keys(#[from] CaError),
    /// Our own certificate.
    #[error(transparent)]
    Issue(#[from] crate::ca::IssueError),
    /// The log.
    #[error("{0}")]
    Store(String),
}

impl Refusal for RotationError {
    fn code(&self) -> Code {
        match self {
            Self::NothingToForce(_) => Code::InvalidArgument,
            Self::Store(_) | Self::Issue(_) => Code::Internal,
            _ => Code::FailedPrecondition,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::UnderWay(_) => "rotation_under_way",
            Self::None => "rotation_none",
            Self::RollsBack => "rotation_rolls_back",
            Self::NothingToForce(_) => "rotation_nothing_to_force",
            Self::Blocked(_) => "rotation_blocked",
            Self::Changed => "rotation_changed",
            Self::Keys(_) => "keys",
            Self::Issue(_) => "signing_failed",
            Self::Store(_) => "not_stored",
        }
    }
}

impl From<CommitError<Self>> for RotationError {
    fn from(error: CommitError<Self>) -> Self {
        match error {
            CommitError::Refused(refused) => refused,
            other => Self::Store(other.to_string()),
        }
    }
}

/// Rotates the root of one site. Clones share it.
#[derive(Clone)]
pub struct RootRotations {
    /// The durable truth, and the keys.
    site: Site,
    /// What is published, and when nodes were heard of.
    view: View,
    /// Agents.
    registry: Registry,
    /// Proxies.
    discovery: Discovery,
    /// Linked sites.
    peering: Peering,
    /// Why the last step failed.
    problem: Arc<Mutex<String>>,
    /// Since when nobody uses the old root.
    unused_since: Arc<Mutex<Option<Instant>>>,
    /// Held while a step is taken: its commit and what follows it on the disk.
    stepping: Arc<tokio::sync::Mutex<()>>,
}

/// What one decision is made of.
type Decision = Result<(Vec<Event>, ()), RotationError>;

impl RootRotations {
    /// Takes no step before [`RootRotations::run`].
    pub fn new(
        site: Site,
        view: View,
        registry: Registry,
        discovery: Discovery,
        peering: Peering,
    ) -> Self {
        Self {
            site,
            view,
            registry,
            discovery,
            peering,
            problem: Arc::default(),
            unused_since: Arc::default(),
            stepping: Arc::default(),
        }
    }

    /// Takes steps whose conditions hold, until the process drains.
    pub async fn run(self, drain: Drain) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.draining() => return,
                _ = look.tick() => {}
            }
            if self.site.authority.state().rotation.is_none() {
                continue;
            }
            let stepped = self.look().await;
            let problem = stepped.err().map(|error| error.to_string()).unwrap_or_default();
            let mut told = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
            if *told != problem && !problem.is_empty() {
                log::error!(error = problem.as_str(); "the rotation of the root does not go on");
            }
            *told = problem;
        }
    }

    /// Records who has come along, and goes on if everybody has.
    async fn look(&self) -> Result<(), RotationError> {
        let _step = self.stepping.lock().await;
        let seen = self.seen();
        self.record(&seen).await?;
        let state = self.site.authority.state();
        let Some(rotation) = state.rotation.clone() else { return Ok(()) };
        if *self.site.ca.root() != *state.signing_root() {
            // The step was taken, and the disk could not follow.
            self.follow()?;
        }
        let holds = judge(&state, &rotation, &seen, self.now()).blockers.is_empty();
        let turned_over = rotation.phase == RotationPhase::TurnOver && holds;
        let settled = self.has_settled(turned_over);
        if rotation.paused || !holds {
            return Ok(());
        }
        match rotation.phase {
            RotationPhase::TurnOver if !settled => Ok(()),
            RotationPhase::TurnOver => self.retire(&rotation, &seen).await,
            RotationPhase::Publish | RotationPhase::Unspecified => {
                self.switch(&rotation, &seen).await
            }
        }
    }

    /// Whether it has been so for long enough that nobody uses the old root.
    fn has_settled(&self, unused: bool) -> bool {
        let mut since = self.unused_since.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *since = if unused { Some(since.unwrap_or(now)) } else { None };
        since.is_some_and(|since| now - since >= SETTLE)
    }

    /// What agents and linked sites have said becomes durable: it is true also
    /// when they are away later.
    async fn record(&self, seen: &Seen) -> Result<(), RotationError> {
        let state = self.site.authority.state();
        let Some(rotation) = &state.rotation else { return Ok(()) };
        let (mut nodes, mut sites, mut shown) = (Vec::new(), Vec::new(), Vec::new());
        for node in seen.nodes.keys().filter(|node| state.nodes.contains_key(*node)) {
            let Some(holds) = self.registry.agent(node).and_then(|agent| agent.holds) else {
                continue;
            };
            if holds.bundle_sequence >= rotation.sequence && !rotation.held_nodes.contains(node) {
                nodes.push(node.to_string());
            }
            let current = &state.nodes[node].current.serial;
            let turns = rotation.phase == RotationPhase::TurnOver;
            if turns && holds.serial == *current && !rotation.shown.contains(current) {
                shown.push(holds.serial);
            }
        }
        for site in state.links.keys().filter(|site| !rotation.held_sites.contains(*site)) {
            let (said, pulls) = self.peering.holds(site);
            let all = |said: v1::SiteHolds| {
                said.waiting == 0 && said.bundle_sequence >= rotation.sequence
            };
            if pulls && said.is_some_and(all) {
                sites.push(site.to_string());
            }
        }
        for proxy in &seen.proxies {
            let leaf = state.leaves.get(proxy.serial.as_str());
            if leaf.is_some_and(|leaf| state.leaves.contains_key(leaf.replaces.as_str())) {
                shown.push(proxy.serial.clone());
            }
        }
        let mut events = Vec::new();
        if !nodes.is_empty() || !sites.is_empty() {
            let sequence = rotation.sequence;
            events.push(Event::BundleHeld(BundleHeld { sequence, nodes, sites }));
        }
        if !shown.is_empty() {
            events.push(Event::CertificatesShown(CertificatesShown { serials: shown }));
        }
        if events.is_empty() {
            return Ok(());
        }
        self.commit("federation", |_| Ok((events, ()))).await
    }

    async fn commit(
        &self,
        actor: &str,
        decide: impl FnOnce(&State) -> Decision,
    ) -> Result<(), RotationError> {
        Ok(self.site.authority.commit(actor, decide).await?)
    }

    fn now(&self) -> i64 {
        self.site.authority.clock().unix_s()
    }

    // ---- steps -----------------------------------------------------------

    /// Makes a root and publishes it.
    async fn start(&self, actor: &str) -> Result<(), RotationError> {
        let state = self.site.authority.state();
        if let Some(rotation) = &state.rotation {
            return Err(RotationError::UnderWay(self.now() - rotation.started_unix_s));
        }
        // What a start that went wrong has left.
        self.site.ca.keep_only(&state.site().bundle.roots)?;
        let sequence = state.site().bundle.sequence + 1;
        let new = self.site.ca.prepare_root(sequence)?;
        let now = self.now();
        let begun = self.commit(actor, |state| {
            if let Some(rotation) = &state.rotation {
                return Err(RotationError::UnderWay(now - rotation.started_unix_s));
            }
            let old = state.signing_root().to_vec();
            if state.site().bundle.sequence + 1 != sequence {
                return Err(RotationError::Changed);
            }
            let rotation = Rotation {
                phase: RotationPhase::Publish,
                old: old.clone(),
                new: new.clone(),
                sequence,
                paused: false,
                rolled_back: false,
                forced: BTreeSet::new(),
                started_unix_s: now,
                phase_since_unix_s: now,
                held_nodes: BTreeSet::new(),
                held_sites: BTreeSet::new(),
                shown: BTreeSet::new(),
            };
            Ok((vec![bundle(state, vec![old, new.clone()], None, 0), record(&rotation)], ()))
        });
        if let Err(error) = begun.await {
            self.tidy();
            return Err(error);
        }
        log::warn!(actor, root = fingerprint(&new).as_str(); "the rotation of the root begins");
        Ok(())
    }

    /// Everybody knows the new root: certificates are issued under it.
    async fn switch(&self, from: &Rotation, seen: &Seen) -> Result<(), RotationError> {
        let now = self.now();
        self.commit("federation", |state| {
            let mut rotation = unchanged(state, from)?;
            refuse_blocked(&judge(state, &rotation, seen, now))?;
            rotation.phase = RotationPhase::TurnOver;
            rotation.phase_since_unix_s = now;
            Ok((turn_over(state, &rotation), ()))
        })
        .await?;
        log::warn!(root = fingerprint(&from.new).as_str();
            "certificates are issued under the new root; those under the old one are renewed");
        self.follow()
    }

    /// Nothing hangs on the old root any more.
    async fn retire(&self, from: &Rotation, seen: &Seen) -> Result<(), RotationError> {
        let now = self.now();
        self.commit("federation", |state| {
            let rotation = unchanged(state, from)?;
            // On the newest state: nobody has been issued one meanwhile.
            refuse_blocked(&judge(state, &rotation, seen, now))?;
            let mut events = vec![bundle(state, vec![rotation.new.clone()], None, 0)];
            events.push(Event::RootRotation(RootRotation::default()));
            events.extend(revoked_tokens(state, rotation.old_hash(), now));
            Ok((events, ()))
        })
        .await?;
        log::warn!(root = fingerprint(&from.old).as_str(); "a root is retired");
        self.follow()
    }

    /// Makes what signs, and what the disk holds, follow the log.
    fn follow(&self) -> Result<(), RotationError> {
        let state = self.site.authority.state();
        self.site.ca.sign_under(state.signing_root())?;
        own_identity::refresh(&self.site)?;
        self.tidy();
        Ok(())
    }

    /// Keys that remain are removed by the next rotation, or the next start.
    fn tidy(&self) {
        let roots = self.site.authority.state().site().bundle.roots.clone();
        if let Err(error) = self.site.ca.keep_only(&roots) {
            log::error!(error:% = error; "the keys of a root that is no more remain on the disk");
        }
    }

    async fn roll_back(&self, actor: &str) -> Result<(), RotationError> {
        let _step = self.stepping.lock().await;
        let now = self.now();
        self.commit(actor, |state| {
            let known = state.rotation.as_deref().ok_or(RotationError::None)?;
            if known.rolled_back {
                return Err(RotationError::RollsBack);
            }
            if known.phase != RotationPhase::TurnOver {
                // Nothing hangs on the new root.
                let bundle = bundle(state, vec![known.old.clone()], None, 0);
                return Ok((vec![bundle, Event::RootRotation(RootRotation::default())], ()));
            }
            let mut back = known.clone();
            (back.old, back.new) = (known.new.clone(), known.old.clone());
            (back.rolled_back, back.paused) = (true, false);
            back.phase_since_unix_s = now;
            back.forced.clear();
            let mut events = turn_over(state, &back);
            events.extend(revoked_tokens(state, back.old_hash(), now));
            Ok((events, ()))
        })
        .await?;
        log::warn!(actor; "the rotation of the root is rolled back");
        self.follow()
    }

    async fn set_paused(&self, actor: &str, paused: bool) -> Result<(), RotationError> {
        self.commit(actor, |state| {
            let known = state.rotation.as_deref().ok_or(RotationError::None)?;
            Ok((vec![record(&Rotation { paused, ..known.clone() })], ()))
        })
        .await
    }

    async fn force(&self, actor: &str, asked: &[String]) -> Result<Vec<String>, RotationError> {
        let (seen, now) = (self.seen(), self.now());
        let mut forced = BTreeSet::new();
        self.commit(actor, |state| {
            let known = state.rotation.as_deref().ok_or(RotationError::None)?;
            let blockers = judge(state, known, &seen, now).blockers;
            forced = to_force(&blockers, asked);
            let missing = asked.iter().find(|name| !forced.contains(*name));
            if let Some(name) = missing {
                let name = crate::join::text(name);
                let problem = format!("{name} is not waited for; see `meshctl rotate root status`");
                return Err(RotationError::NothingToForce(problem));
            }
            if forced.is_empty() {
                let problem = "nobody who is not connected is waited for; name a blocker to go on \
                               without one that is"
                    .to_owned();
                return Err(RotationError::NothingToForce(problem));
            }
            let mut rotation = known.clone();
            rotation.forced.extend(forced.clone());
            Ok((vec![record(&rotation)], ()))
        })
        .await?;
        for name in &forced {
            log::warn!(actor, name = name.as_str(); "the rotation waits for it no longer");
        }
        Ok(forced.into_iter().collect())
    }
}

/// The rotation as it was looked at, if it is still that.
fn unchanged(state: &State, from: &Rotation) -> Result<Rotation, RotationError> {
    let known = state.rotation.as_deref().ok_or(RotationError::None)?;
    let same = known.phase == from.phase && known.new == from.new && !known.paused;
    if same { Ok(known.clone()) } else { Err(RotationError::Changed) }
}

fn refuse_blocked(judgement: &Judgement) -> Result<(), RotationError> {
    match judgement.blockers.len() {
        0 => Ok(()),
        blockers => Err(RotationError::Blocked(blockers)),
    }
}

fn record(rotation: &Rotation) -> Event {
    Event::RootRotation(rotation.record())
}

/// Certificates are issued under the new root from here on.
fn turn_over(state: &State, rotation: &Rotation) -> Vec<Event> {
    let roots = state.site().bundle.roots.clone();
    let held = state.nodes.len() + state.leaves.len();
    let within_s = (held / RENEWALS).clamp(SPREAD.0, SPREAD.1);
    vec![bundle(state, roots, Some(&rotation.old), within_s), record(rotation)]
}

/// The next bundle of the site's lineage.
fn bundle(state: &State, roots: Vec<Vec<u8>>, retiring: Option<&[u8]>, within_s: usize) -> Event {
    let known = &state.site().bundle;
    let retiring = retiring.and_then(spki_sha256).map(|hash| hash.to_vec()).unwrap_or_default();
    Event::BundleUpdated(BundleUpdated {
        bundle: Some(Bundle {
            trust_domain: known.trust_domain.clone(),
            sequence: known.sequence + 1,
            roots,
            retiring,
            renew_within_s: u32::try_from(within_s).unwrap_or(u32::MAX),
            jwt_keys: known.jwt_keys.clone(),
        }),
    })
}

/// Tokens that nobody can come with any more, because of the root they pin.
fn revoked_tokens(state: &State, root: [u8; 32], now_unix_s: i64) -> Vec<Event> {
    let open = tokens::open_with(state, root, now_unix_s);
    if !open.is_empty() {
        log::warn!(tokens = open.len(), root = hex(&root).as_str();
            "open tokens end with the root that they pin; make new ones");
    }
    open.into_iter().map(|id| Event::TokenRevoked(TokenRevoked { id })).collect()
}

#[cfg(test)]
mod tests;
