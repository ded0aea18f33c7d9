//! Puts rules in, keeps them in force, and takes them out.
//!
//! Whatever happens to this process, the kernel does the right thing by itself
//! ([`super::rules`]); what is done here tidies up behind it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use mesh_runtime::{
    clock,
    config::{self, ConfigError},
    drain::Drain,
    files::{self, FileError},
};
use mesh_tunnel::Net;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    in_force::InForce,
    naming::Captured,
    netlink,
    nft::{self, NftError},
    proxy,
    rules::{ALIVE, CONFIRMED, PATIENCE, REMOVAL, Term},
};

/// How soon a unit that starts is captured.
const TICK: Duration = Duration::from_millis(250);
/// Ticks from one question to the proxy to the next: it may be missed a few
/// times before [`PATIENCE`] is over.
const BEAT: u32 = 4;
/// Calls that wait; their callers wait for each.
pub const CALLS: usize = 8;
/// What was confirmed, in the state directory.
const CONFIRMED_FILE: &str = "confirmed.yaml";
/// Less is no time to look whether all is well.
const MIN_TRIAL: Duration = Duration::from_secs(5);
/// More is no trial.
const MAX_TRIAL: Duration = Duration::from_secs(3600);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file, or what it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// nft.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] FileError),
    /// The kernel, about the sets.
    #[error("the kernel refuses: {0}; is our table gone? meshctl vm capture status")]
    Kernel(#[from] io::Error),
    /// The proxy cannot take what would be captured.
    #[error("the proxy is not ready: {0}")]
    Proxy(String),
    /// A trial of no sensible length.
    #[error("a trial lasts 5s to 1h")]
    Trial,
    /// It would end the caller's own connection.
    #[error("port {0} is that of your own SSH connection; take it out of inbound in capture.yaml")]
    Ssh(u16),
    /// Nothing is on trial.
    #[error(
        "nothing is to be confirmed: the trial is over, and what was before is in force again; \
             meshctl vm capture enable"
    )]
    NoTrial,
}

/// What somebody asks for.
#[derive(Debug)]
pub enum Ask {
    /// Puts what the file says on trial.
    Enable {
        /// How long the trial lasts.
        within: Duration,
        /// Only says what would be done.
        dry_run: bool,
        /// Port of this machine that the caller came by.
        ssh_port: Option<u16>,
    },
    /// Makes it last.
    Confirm,
    /// Takes everything out.
    Disable,
    /// Says what is in force.
    Status,
}

/// A question and where its answer goes.
pub type Call = (Ask, oneshot::Sender<Result<Status, CaptureError>>);

/// What is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// `off`, `trial`, `on`, or `dry-run`.
    pub state: &'static str,
    /// What is left of a trial.
    pub left: Duration,
    /// Why the proxy is not ready; empty if it is.
    pub proxy: String,
    /// What went wrong last; empty if nothing has.
    pub problem: String,
    /// For people, a line each.
    pub captured: Vec<String>,
    /// The same.
    pub never: Vec<String>,
    /// Units that do not run.
    pub waits_for: Vec<String>,
    /// As nft reads it.
    pub rules: String,
}

#[derive(Debug)]
enum State {
    Off,
    /// At its end, what was before comes back.
    Trial {
        rules: Box<InForce>,
        until: Instant,
        before: Option<Box<InForce>>,
    },
    On(Box<InForce>),
}

/// Where it finds things.
#[derive(Debug, Clone)]
pub struct Places {
    /// `capture.yaml`.
    pub rules: PathBuf,
    /// A directory of its own.
    pub state: PathBuf,
}

/// See the module.
pub struct Keeper {
    places: Places,
    net: Arc<dyn Net>,
    calls: mpsc::Receiver<Call>,
    state: State,
    /// Told what is in force.
    captured: watch::Sender<Captured>,
    /// Why the proxy is not ready.
    proxy: Result<(), String>,
    problem: String,
}

impl Keeper {
    /// Nothing is done yet.
    pub fn new(
        places: Places,
        net: Arc<dyn Net>,
        calls: mpsc::Receiver<Call>,
        captured: watch::Sender<Captured>,
    ) -> Self {
        let proxy = Err("not asked yet".to_owned());
        let (state, problem) = (State::Off, String::new());
        Self { places, net, calls, state, captured, proxy, problem }
    }

    /// What was confirmed is in force again; what was not is taken out.
    pub async fn restore(&mut self) {
        let restored = self.read_confirmed();
        match restored {
            Ok(Some(rules)) => {
                self.state = State::On(Box::new(rules));
                self.load().await;
            }
            Ok(None) => self.clear_leftovers().await,
            Err(error) => {
                log::error!(error:% = error; "what was confirmed cannot be restored; nothing is captured");
                self.problem = error.to_string();
                self.clear_leftovers().await;
            }
        }
        self.tell();
    }

    fn tell(&self) {
        let rules = self.state.rules().map(|rules| &rules.resolved.rules.virtual_addresses);
        self.captured.send_if_modified(|captured| {
            let changed = captured.as_ref() != rules;
            if changed {
                *captured = rules.cloned();
            }
            changed
        });
    }

    fn read_confirmed(&self) -> Result<Option<InForce>, CaptureError> {
        let path = self.confirmed_file();
        match files::read_private(&path) {
            Ok(bytes) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Ok(Some(InForce::read(text, &path)?))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn clear_leftovers(&mut self) {
        let removed = match nft::has_table(super::rules::TABLE).await {
            Ok(true) => nft::load(REMOVAL).await.map(|()| true),
            other => other,
        };
        match removed {
            Ok(true) => log::warn!("rules that nobody has confirmed are taken out"),
            Ok(false) | Err(NftError::Missing) => {}
            Err(error) => log::error!(error:% = error; "rules of ours may be left"),
        }
    }

    fn confirmed_file(&self) -> PathBuf {
        self.places.state.join(CONFIRMED_FILE)
    }

    /// Answers and looks after the rules until the process stops. Then a trial
    /// is over; what was confirmed stays.
    pub async fn run(mut self, drain: Drain) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beat = 0;
        loop {
            tokio::select! {
                biased;
                () = drain.draining() => break,
                Some((ask, reply)) = self.calls.recv() => {
                    // A caller that is gone has had its will.
                    let _ = reply.send(self.answer(ask).await);
                }
                _ = ticks.tick(), if !matches!(self.state, State::Off) => {
                    self.look(beat % BEAT == 0).await;
                    beat = beat.wrapping_add(1);
                }
            }
            self.tell();
        }
        if matches!(self.state, State::Trial { .. }) {
            self.revert().await;
            self.tell();
        }
    }

    async fn answer(&mut self, ask: Ask) -> Result<Status, CaptureError> {
        match ask {
            Ask::Enable { within, dry_run, ssh_port } => {
                self.enable(within, dry_run, ssh_port).await
            }
            Ask::Confirm => self.confirm().await,
            Ask::Disable => self.disable().await,
            Ask::Status => Ok(self.status()),
        }
    }

    async fn enable(
        &mut self,
        within: Duration,
        dry_run: bool,
        ssh_port: Option<u16>,
    ) -> Result<Status, CaptureError> {
        if !(MIN_TRIAL..=MAX_TRIAL).contains(&within) {
            return Err(CaptureError::Trial);
        }
        let path = &self.places.rules;
        let text = if path.exists() { config::read(path)? } else { String::new() };
        let mut rules = InForce::read(text, path)?;
        if let Some(port) = ssh_port.filter(|port| rules.plan.closes(*port)) {
            return Err(CaptureError::Ssh(port));
        }
        if dry_run {
            return Ok(rules.status("dry-run", within, Term::Trial(within)));
        }
        proxy::listens(&rules.resolved.rules).map_err(CaptureError::Proxy)?;
        self.proxy = proxy::is_ready(&*self.net, rules.plan.admin).await;
        self.proxy.clone().map_err(CaptureError::Proxy)?;
        nft::load(&rules.resolved.rules.text(Term::Trial(within), true)).await?;
        rules.loaded = true;
        let before = match std::mem::replace(&mut self.state, State::Off) {
            State::Off => None,
            State::Trial { before, .. } => before,
            State::On(before) => Some(before),
        };
        let until = clock::monotonic() + within;
        self.state = State::Trial { rules: Box::new(rules), until, before };
        self.problem.clear();
        log::info!(within:? = within; "rules are on trial");
        Ok(self.status())
    }

    async fn confirm(&mut self) -> Result<Status, CaptureError> {
        let left = match &self.state {
            State::On(_) => return Ok(self.status()),
            State::Trial { until, .. } => until.saturating_duration_since(clock::monotonic()),
            State::Off => return Err(CaptureError::NoTrial),
        };
        let (file, rules) = (self.confirmed_file(), self.state.rules());
        let Some(rules) = rules.filter(|_| !left.is_zero()) else {
            return Err(CaptureError::NoTrial);
        };
        proxy::is_ready(&*self.net, rules.plan.admin).await.map_err(CaptureError::Proxy)?;
        netlink::put_tcp(CONFIRMED, None)?;
        if let Err(error) = files::write_private(&file, rules.text.as_bytes()) {
            // It would be gone with the next boot, and nobody would know.
            netlink::put_tcp(CONFIRMED, Some(left))?;
            return Err(error.into());
        }
        if let State::Trial { rules, .. } = std::mem::replace(&mut self.state, State::Off) {
            self.state = State::On(rules);
        }
        log::info!("rules are confirmed");
        Ok(self.status())
    }

    async fn disable(&mut self) -> Result<Status, CaptureError> {
        files::remove(&self.confirmed_file())?;
        match nft::load(REMOVAL).await {
            // There is nothing of ours where there never was nft.
            Err(NftError::Missing) if matches!(self.state, State::Off) => {}
            other => other?,
        }
        self.state = State::Off;
        self.problem.clear();
        log::info!("nothing is captured any more");
        Ok(self.status())
    }

    /// What is to be done from time to time; with a beat, the proxy is asked.
    async fn look(&mut self, beat: bool) {
        if let State::Trial { until, .. } = &self.state
            && *until <= clock::monotonic()
        {
            if beat {
                self.revert().await;
            }
            return;
        }
        let Some(rules) = self.state.rules_mut() else { return };
        let changed = rules.look_again();
        if beat {
            let ready = proxy::is_ready(&*self.net, rules.plan.admin).await;
            self.notice(ready);
        }
        let loaded = self.state.rules().is_some_and(|rules| rules.loaded);
        if changed || (beat && !loaded) {
            self.load().await;
        } else if beat && self.proxy.is_ok() {
            self.renew().await;
        }
    }

    fn notice(&mut self, ready: Result<(), String>) {
        match (&self.proxy, &ready) {
            (Ok(()), Err(why)) => log::warn!(why = why.as_str(); "the proxy is not ready"),
            (Err(_), Ok(())) => log::info!("the proxy is ready"),
            _ => {}
        }
        self.proxy = ready;
    }

    /// The proxy is well for another while.
    async fn renew(&mut self) {
        match netlink::put_tcp(ALIVE, Some(PATIENCE)) {
            Ok(()) => {}
            // Others flush all that there is when they start.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                log::warn!("somebody has taken our rules out; they are put in again");
                self.load().await;
            }
            Err(error) => {
                log::warn!(error:% = error; "the kernel was not told that the proxy is ready")
            }
        }
    }

    /// Puts in again what is in force.
    async fn load(&mut self) {
        let (term, alive) = (self.state.term(), self.proxy.is_ok());
        let Some(rules) = self.state.rules_mut() else { return };
        match nft::load(&rules.resolved.rules.text(term, alive)).await {
            Ok(()) => {
                rules.loaded = true;
                self.problem.clear();
            }
            Err(error) => {
                rules.loaded = false;
                if self.problem.is_empty() {
                    log::error!(error:% = error; "rules are not in force; trying again");
                }
                self.problem = error.to_string();
            }
        }
    }

    /// A trial is over: what was before it is in force again.
    async fn revert(&mut self) {
        log::warn!("nobody has confirmed: what was before is in force again");
        let State::Trial { before, .. } = &mut self.state else { return };
        if let Some(before) = before.take() {
            self.state = State::On(before);
            return self.load().await;
        }
        match nft::load(REMOVAL).await {
            Ok(()) => self.state = State::Off,
            // They have no effect any more, and are taken out with the next beat.
            Err(error) => log::error!(error:% = error; "rules are not taken out; trying again"),
        }
    }

    fn status(&self) -> Status {
        let left = match &self.state {
            State::Trial { until, .. } => until.saturating_duration_since(clock::monotonic()),
            State::Off | State::On(_) => Duration::ZERO,
        };
        let told = match (&self.state, self.state.rules()) {
            (State::Trial { .. }, Some(rules)) => rules.status("trial", left, self.state.term()),
            (_, Some(rules)) => rules.status("on", left, Term::Confirmed),
            (_, None) => {
                return Status { state: "off", problem: self.problem.clone(), ..Status::default() };
            }
        };
        let proxy = self.proxy.clone().err().unwrap_or_default();
        Status { proxy, problem: self.problem.clone(), ..told }
    }
}

impl State {
    fn rules(&self) -> Option<&InForce> {
        match self {
            Self::Off => None,
            Self::Trial { rules, .. } | Self::On(rules) => Some(rules),
        }
    }

    fn rules_mut(&mut self) -> Option<&mut InForce> {
        match self {
            Self::Off => None,
            Self::Trial { rules, .. } | Self::On(rules) => Some(rules),
        }
    }

    fn term(&self) -> Term {
        match self {
            Self::Trial { until, .. } => {
                Term::Trial(until.saturating_duration_since(clock::monotonic()))
            }
            Self::Off | Self::On(_) => Term::Confirmed,
        }
    }
}

#[cfg(test)]
mod tests;
