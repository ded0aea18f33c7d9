//! What is to be is written down first and then brought about, again and again:
//! this process, the proxies and the machine may end between any two steps.
//!
//! | phase | our proxy | rules | legacy proxy |
//! |---|---|---|---|
//! | beside, shadow, back | runs | for rehearsals | listens |
//! | watch | runs | lead to ours | listens, and gets nobody new |
//! | moved | runs | lead to ours | has let go |
//! | finished | runs | lead to ours | was stopped |

mod steps;

use std::{collections::BTreeMap, time::Duration};

use mesh_api::v1::TransitionTls;
use mesh_runtime::{clock, drain::Drain, files::FileError};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    legacy,
    proxy::{self, Figures, Supervisor},
    record::{Legacy, Listener, Moves, Phase, Record},
    redirect,
    shadow::{Found, Shadow, Shadowing},
    sockets::{self, Landed},
    tracked,
};
use crate::capture::nft::{self, NftError};

/// Calls that wait; their callers wait for each.
pub const CALLS: usize = 8;
/// From one look to the next.
const TICK: Duration = Duration::from_millis(250);
/// For our proxy to be ready, with thousands of endpoints.
const READY: Duration = Duration::from_secs(15);
/// Looks at a proxy that is not ready, before it is given up.
const BAD_LOOKS: u32 = 3;
/// Looks from one at the rules to the next.
const RULES: u32 = 8;
/// Looks from one at connections that are gone to the next, and for how long after a
/// step, in seconds: an entry of such a connection lives for five minutes.
const DEAD: u32 = 80;
const DEAD_S: i64 = 330;
/// Looks from one attempt at what did not work to the next.
const AGAIN: u32 = 12;
/// Fewer requests say nothing of how our proxy does.
const MIN_REQUESTS: u64 = 20;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// There is no such move.
    #[error("no move is called {0:?}: meshctl migrate status")]
    Unknown(String),
    /// What was said of it.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be done now; what must be first.
    #[error("{0}")]
    NotNow(String),
    /// nft.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] FileError),
}

/// What somebody asks for.
#[derive(Debug)]
pub enum Ask {
    /// Our proxy runs beside.
    Begin(Box<Begin>),
    /// Answers are compared for a while.
    Shadow(ShadowAsk),
    /// It serves, and is watched.
    CutOver(CutOver),
    /// The legacy proxy serves again.
    RollBack(String),
    /// The legacy proxy is stopped.
    Finish(String),
    /// Nothing is left of it.
    Abandon(String),
    /// All that there are.
    List,
}

/// What is to run beside a legacy proxy.
#[derive(Debug)]
pub struct Begin {
    /// Of the move.
    pub name: String,
    /// Who is replaced.
    pub legacy: Legacy,
    /// As `meshctl migrate plan` has written it.
    pub proxy_yaml: String,
    /// The files that it names.
    pub beside: Vec<(&'static str, String)>,
}

/// A comparison.
#[derive(Debug)]
pub struct ShadowAsk {
    /// Of the move.
    pub name: String,
    /// How long it goes on, in seconds.
    pub for_s: u32,
    /// What is compared; `until` is not yet known.
    pub shadow: Shadow,
    /// Requests to replay; may be empty.
    pub access_log: String,
}

/// Bounds of a cut-over.
#[derive(Debug)]
pub struct CutOver {
    /// Of the move.
    pub name: String,
    /// How long it is watched, in seconds.
    pub watch_s: u32,
    /// Requests of ten thousand that must succeed.
    pub min_success: u32,
    /// In milliseconds; 0 is no bound.
    pub max_p99_ms: u32,
    /// Although nothing was compared.
    pub without_verdict: bool,
    /// How long connections of a process that was told to end may go on, in seconds.
    pub drain_s: u32,
}

/// A question and where its answer goes.
pub type Call = (Ask, oneshot::Sender<Result<Vec<Status>, MoveError>>);

/// How a move is.
#[derive(Debug, Clone)]
pub struct Status {
    /// What the disk has.
    pub record: Record,
    /// Where a new connection lands.
    pub serves: Landed,
    /// What is left of the watch, in seconds.
    pub watch_left: u32,
    /// Since the cut-over.
    pub figures: Figures,
    /// The legacy proxy listens.
    pub legacy_listens: bool,
    /// Our proxy is ready.
    pub proxy_ready: bool,
    /// What our proxy still does with certificates that are not of the mesh.
    pub transitions: Vec<TransitionTls>,
    /// Connections that the legacy proxy has.
    pub legacy_connections: u32,
    /// What a comparison has found.
    pub found: Found,
}

/// What is not written down.
#[derive(Debug, Default)]
struct Seen {
    bad: u32,
    /// Looks until what did not work is tried again.
    pause: u32,
    shadowing: Option<Shadowing>,
}

/// Keeps all moves of this machine.
#[derive(Debug)]
pub struct Keeper {
    moves: Moves,
    supervisor: Supervisor,
    records: BTreeMap<String, Record>,
    seen: BTreeMap<String, Seen>,
    calls: mpsc::Receiver<Call>,
    /// What the kernel was told last.
    in_force: String,
    looks: u32,
}

impl Keeper {
    /// Of what the disk has.
    pub fn new(moves: Moves, supervisor: Supervisor, calls: mpsc::Receiver<Call>) -> Self {
        let records =
            moves.load().into_iter().map(|record| (record.name.clone(), record)).collect();
        let (seen, in_force) = Default::default();
        Self { moves, supervisor, records, seen, calls, in_force, looks: 0 }
    }

    /// After a boot: our proxies first, then the rules that lead to them. Where there
    /// are rules our proxies run, and the rules may be those of one step before.
    pub async fn restore(&mut self) {
        if self.records.is_empty() {
            return;
        }
        if !matches!(redirect::is_there().await, Ok(true)) {
            for record in self.records.values() {
                let started = self.supervisor.start(&self.moves, &record.name).await;
                let ready = async {
                    started?;
                    until_ready(record).await
                };
                if let Err(why) = ready.await {
                    log::error!(name = record.name.as_str(); "our proxy is not ready: {why}");
                }
            }
        }
        self.put_rules().await.unwrap_or_else(|error| log::error!("{error}"));
    }

    /// The legacy proxies serve again, and nothing is left.
    ///
    /// # Errors
    ///
    /// One of them does not; what serves in its place is left as it is.
    pub async fn remove(&mut self) -> Result<(), MoveError> {
        for name in self.records.keys().cloned().collect::<Vec<_>>() {
            self.abandon(name).await?;
        }
        Ok(())
    }

    /// Until the drain starts. What is in force stays.
    pub async fn run(mut self, drain: Drain) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.draining() => return,
                call = self.calls.recv() => {
                    let Some((ask, reply)) = call else { return };
                    // Who has asked may have gone.
                    let _ = reply.send(self.answer(ask).await);
                }
                _ = tick.tick() => self.look().await,
            }
        }
    }

    async fn answer(&mut self, ask: Ask) -> Result<Vec<Status>, MoveError> {
        let name = match ask {
            Ask::List => return Ok(self.statuses().await),
            Ask::Begin(begin) => self.begin(*begin).await?,
            Ask::Shadow(asked) => self.shadow(asked)?,
            Ask::CutOver(cut_over) => self.cut_over(cut_over).await?,
            Ask::RollBack(name) => self.roll_back(name, String::new()).await?,
            Ask::Finish(name) => self.finish(name).await?,
            Ask::Abandon(name) => return self.abandon(name).await,
        };
        Ok(vec![self.status(&self.records[&name]).await])
    }

    fn known(&self, name: &str) -> Result<&Record, MoveError> {
        self.records.get(name).ok_or_else(|| MoveError::Unknown(name.to_owned()))
    }

    /// On disk before it is true.
    fn keep(&mut self, record: Record) -> Result<(), FileError> {
        self.moves.save(&record)?;
        self.records.insert(record.name.clone(), record);
        Ok(())
    }

    fn rules(&self) -> String {
        redirect::rules(&self.records.values().collect::<Vec<_>>())
    }

    async fn put_rules(&mut self) -> Result<(), NftError> {
        let rules = self.rules();
        nft::load(&rules).await?;
        self.in_force = rules;
        Ok(())
    }

    async fn statuses(&self) -> Vec<Status> {
        let mut all = Vec::with_capacity(self.records.len());
        for record in self.records.values() {
            all.push(self.status(record).await);
        }
        all
    }

    async fn status(&self, record: &Record) -> Status {
        let table = sockets::table();
        let left = record.watch.filter(|_| record.phase == Phase::Watch);
        let left = left.map_or(0, |watch| watch.until - clock::unix_seconds());
        let told = proxy::told(record).await.unwrap_or_default();
        let before = record.watch.map(|watch| watch.before).unwrap_or_default();
        Status {
            serves: sockets::serves(&record.listeners).await,
            watch_left: u32::try_from(left).unwrap_or_default(),
            figures: since(told.figures, before),
            transitions: told.transitions,
            legacy_listens: legacy::listens(&record.listeners),
            proxy_ready: proxy::ready(record).await.is_ok(),
            legacy_connections: u32::try_from(sockets::connections(&table, &record.listeners))
                .unwrap_or(u32::MAX),
            found: self.found(&record.name),
            record: record.clone(),
        }
    }

    /// Brings about what is to be.
    async fn look(&mut self) {
        let names: Vec<String> = self.records.keys().cloned().collect();
        self.looks = self.looks.wrapping_add(1);
        let is_due = !names.is_empty() && self.looks.is_multiple_of(RULES);
        let is_gone = is_due && matches!(redirect::is_there().await, Ok(false));
        if is_gone {
            log::warn!("our rules were gone: somebody has flushed all of nft");
        }
        if is_gone || (!names.is_empty() && self.in_force != self.rules()) {
            self.put_rules().await.unwrap_or_else(|error| log::error!("{error}"));
        }
        if self.looks.is_multiple_of(DEAD) {
            let from = clock::unix_seconds() - DEAD_S;
            let moved = self.records.values().filter(|record| record.since >= from);
            forget_dead(moved.flat_map(|record| record.listeners.clone()).collect()).await;
        }
        for name in names {
            let seen = self.seen.entry(name.clone()).or_default();
            if seen.pause > 0 {
                seen.pause -= 1;
                continue;
            }
            if let Err(why) = self.look_at(&name).await {
                self.seen.entry(name.clone()).or_default().pause = AGAIN;
                self.tell(&name, &why);
            }
        }
    }

    /// Said once, not at every look.
    fn tell(&mut self, name: &str, why: &str) {
        let Some(record) = self.records.get(name).filter(|record| record.problem != why) else {
            return;
        };
        log::warn!(name; "{why}");
        let told = Record { problem: why.to_owned(), ..record.clone() };
        if let Err(error) = self.keep(told) {
            log::warn!(error:% = error; "not written down");
        }
    }

    async fn look_at(&mut self, name: &str) -> Result<(), String> {
        let record = self.records[name].clone();
        let runs = self.supervisor.systemd || self.supervisor.runs(&self.moves, name);
        if record.phase == Phase::Watch
            && let Some(why) = self.verdict(&record, runs).await
        {
            let back = self.roll_back(name.to_owned(), why).await;
            return back.map(drop).map_err(|error| error.to_string());
        }
        if record.phase == Phase::Shadow {
            self.follow_shadow(&record)?;
        }
        if !runs {
            self.supervisor.start(&self.moves, name).await?;
        }
        // Whoever supervises it knows whether it is to run.
        let is_ours_to_start = record.legacy.unit.is_empty() && record.phase.needs_legacy();
        if is_ours_to_start && !legacy::listens(&record.listeners) {
            log::warn!(name; "the legacy proxy does not listen: it is started again");
            legacy::take_back(&record).await?;
        }
        if record.phase == Phase::Watch
            && record.watch.is_none_or(|watch| watch.until <= clock::unix_seconds())
        {
            let mut moved = record.clone();
            moved.enter(Phase::Moved);
            self.keep(moved).map_err(|error| error.to_string())?;
            log::info!(name; "the watch is over: moved");
        }
        let record = self.records[name].clone();
        if record.phase == Phase::Moved && !record.let_go {
            forget_dead(record.listeners.clone()).await;
            let leaving = legacy::let_go(&record).await?;
            let mut told = Record { let_go: true, ..record };
            let drain_s = told.watch.map_or(0, |watch| watch.drain_s);
            let until = clock::unix_seconds() + i64::from(drain_s);
            told.leaving.extend(leaving.map(|id| (id, until)));
            self.keep(told).map_err(|error| error.to_string())?;
        }
        let record = &self.records[name];
        let left = legacy::end_late(&record.leaving);
        if left != record.leaving {
            let kept = Record { leaving: left, ..record.clone() };
            self.keep(kept).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Why our proxy must not go on.
    async fn verdict(&mut self, record: &Record, runs: bool) -> Option<String> {
        let seen = self.seen.entry(record.name.clone()).or_default();
        if !runs {
            return Some("our proxy has ended".to_owned());
        }
        let ready = proxy::ready(record).await;
        seen.bad = if ready.is_ok() { 0 } else { seen.bad + 1 };
        if let Err(why) = ready {
            return (seen.bad >= BAD_LOOKS).then(|| format!("our proxy is not ready: {why}"));
        }
        let (watch, now) = (record.watch?, proxy::figures(record).await.ok()?);
        let done = since(now, watch.before);
        if done.requests < MIN_REQUESTS {
            return None;
        }
        let succeeded = done.requests.saturating_sub(done.failures) * 10_000 / done.requests;
        if succeeded < u64::from(watch.min_success) {
            return Some(format!(
                "{} of {} requests failed, {:.2} % must succeed",
                done.failures,
                done.requests,
                f64::from(watch.min_success) / 100.0
            ));
        }
        let is_slow = watch.max_p99_ms > 0 && done.p99_ms > watch.max_p99_ms;
        is_slow.then(|| {
            format!("1 of 100 answers takes more than {} ms, {} may", done.p99_ms, watch.max_p99_ms)
        })
    }
}

/// Where clients were led that are gone, nobody else is led. What does not work is said
/// only: it concerns who has the same address and port within minutes.
async fn forget_dead(listeners: Vec<Listener>) {
    if listeners.is_empty() {
        return;
    }
    let forgotten = tokio::task::spawn_blocking(move || tracked::forget_dead(&listeners)).await;
    match forgotten {
        Ok(Ok(0)) => {}
        Ok(Ok(count)) => log::info!(count; "connections that are gone are tracked no more"),
        Ok(Err(error)) => log::warn!(error:%; "conntrack: connections that are gone stay"),
        Err(error) => log::error!(error:%; "conntrack"),
    }
}

/// Counters begin anew with a process.
fn since(now: Figures, before: Figures) -> Figures {
    if now.requests < before.requests {
        return now;
    }
    Figures {
        requests: now.requests - before.requests,
        failures: now.failures.saturating_sub(before.failures),
        p99_ms: now.p99_ms,
    }
}

async fn until_ready(record: &Record) -> Result<(), String> {
    let until = Instant::now() + READY;
    loop {
        let why = match proxy::ready(record).await {
            Ok(()) => return Ok(()),
            Err(why) => why,
        };
        if Instant::now() >= until {
            return Err(format!("not within {READY:?}: {why}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
