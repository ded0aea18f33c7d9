//! Whether our proxy answers as the legacy one does, before anybody is led to it.
//!
//! Requests of clients are seen on the wire, or read from an access log. Each is asked
//! three times by this process itself: of the legacy proxy, of ours, and of the legacy
//! proxy again, which shows what of its answers is by chance. No client ever hears of
//! it. Safe methods only (RFC 9110, 9.2.1) unless others are named, because whatever
//! they do is done that often more.

mod backends;
mod question;
mod wire;

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_migrate::shadow::{
    compare::{Cause, Comparison, Pair, Rules, Who, compare},
    log,
    verdict::{Tally, Verdict, name},
};
use mesh_runtime::{clock, files};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, task::AbortHandle};

use self::{
    backends::{Backends, Pools},
    question::{Own, Question, ask},
    wire::Seen,
};
use super::{
    record::{Listener, Record},
    redirect,
};

/// Asked whatever is said.
const SAFE: [&str; 3] = ["GET", "HEAD", "OPTIONS"];
/// Requests that wait; more are left out.
const WAITING: usize = 256;
/// Asked at a time.
const ASKERS: usize = 4;
/// Of a log.
const MAX_LOGGED: usize = 100_000;
/// Of a request that may be repeated, in bytes.
const MAX_BODY: usize = 64 << 10;
/// How often a request whose answers differ is asked of both, and how often where they
/// have not asked one server.
const CHANCES: u32 = 5;
const MORE_CHANCES: u32 = 20;
/// Before it is asked again: fewer than so many of these, by chance.
const PAUSES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(2);
/// From one writing of what was found to the next.
const WRITE: Duration = Duration::from_secs(5);

/// What is compared, and how long.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// Of clients' requests.
    pub percent: u32,
    /// When it is over, in seconds of Unix time.
    pub until: i64,
    /// Answers that there must be.
    pub at_least: u64,
    /// Besides the safe ones.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Headers of answers that may differ.
    #[serde(default)]
    pub ignore_headers: Vec<String>,
}

/// What was found so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// What there is to say.
    pub tally: Tally,
    /// Requests that were not compared: too many at a time, or none that can be said
    /// again.
    pub skipped: u64,
}

/// A comparison that goes on; ends when it is dropped.
#[derive(Debug)]
pub struct Shadowing {
    found: Arc<Mutex<Found>>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Shadowing {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shadowing {
    /// Begins, or goes on with what was `found` before, with the pools of the site file
    /// `site`. `access_log` is replayed once.
    ///
    /// # Errors
    ///
    /// What to tell a person.
    pub fn start(
        record: &Record,
        shadow: &Shadow,
        found: Found,
        access_log: String,
        (file, site): (PathBuf, &Path),
    ) -> Result<Self, String> {
        let found = Arc::new(Mutex::new(found));
        let (questions, asked) = mpsc::channel(WAITING);
        let (own, backends) = (Own::default(), Backends::default());
        let mut tasks = Vec::new();
        let body = if shadow.methods.is_empty() { 0 } else { MAX_BODY };
        let wire = wire::tap(&record.listeners, body, own.clone(), backends.clone());
        let wire = wire.map_err(|error| {
            format!("clients' requests cannot be seen: {error}; CAP_NET_RAW is needed")
        });
        if shadow.percent == 0 {
            // A log is enough; where questions go to is looked at where it can be.
            if let Err(why) = &wire {
                ::log::warn!(name = record.name.as_str(); "backends are not compared: {why}");
            }
            let looking = async move {
                let _wire = wire;
                std::future::pending::<()>().await;
            };
            tasks.push(tokio::spawn(looking).abort_handle());
        } else {
            let (shadow, own, found) = (shadow.clone(), own.clone(), found.clone());
            let live = Live { wire: wire?, shadow, own, found };
            tasks.push(tokio::spawn(live.run(questions.clone())).abort_handle());
        }
        if let (Some(listener), false) = (record.listeners.first(), access_log.is_empty()) {
            let replay =
                replay(access_log, listener.clone(), shadow.clone(), questions, found.clone());
            tasks.push(tokio::spawn(replay).abort_handle());
        }
        let asked = Arc::new(tokio::sync::Mutex::new(asked));
        let pools = Arc::new(Pools::read(site));
        let mut rules = Rules::default();
        rules.ignore_headers.extend(shadow.ignore_headers.iter().map(|h| h.to_ascii_lowercase()));
        for _ in 0..ASKERS {
            let asker = Asker {
                asked: asked.clone(),
                own: own.clone(),
                backends: backends.clone(),
                pools: pools.clone(),
                rules: rules.clone(),
                found: found.clone(),
            };
            let asker = asker.run();
            tasks.push(tokio::spawn(asker).abort_handle());
        }
        tasks.push(tokio::spawn(written(found.clone(), file)).abort_handle());
        Ok(Self { found, tasks })
    }

    /// What was found so far.
    pub fn found(&self) -> Found {
        lock(&self.found).clone()
    }
}

fn lock(found: &Mutex<Found>) -> MutexGuard<'_, Found> {
    found.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shadow {
    fn repeats(&self, method: &str) -> bool {
        SAFE.contains(&method) || self.methods.iter().any(|named| named == method)
    }

    /// What there is to say.
    pub fn verdict(&self, found: &Found) -> Verdict {
        found.tally.verdict(self.at_least)
    }
}

struct Live {
    wire: mpsc::Receiver<Seen>,
    shadow: Shadow,
    own: Own,
    found: Arc<Mutex<Found>>,
}

type Asked = (Question, Listener);

impl Live {
    async fn run(mut self, questions: mpsc::Sender<Asked>) {
        while let Some((client, listener, head)) = self.wire.recv().await {
            if self.own.has(&client)
                || backends::is_question(&head)
                || !self.shadow.repeats(&head.method)
                || rand::random_range(0..100) >= self.shadow.percent
            {
                continue;
            }
            let question = Question::of_head(&head);
            let is_asked =
                question.is_some_and(|question| questions.try_send((question, listener)).is_ok());
            if !is_asked {
                lock(&self.found).skipped += 1;
            }
        }
    }
}

async fn replay(
    access_log: String,
    listener: Listener,
    shadow: Shadow,
    questions: mpsc::Sender<Asked>,
    found: Arc<Mutex<Found>>,
) {
    let default_host = listener.address.to_string();
    let mut requests = log::requests(Cursor::new(access_log.as_bytes()));
    let mut asked = 0;
    while asked < MAX_LOGGED
        && let Some(logged) = requests.next()
    {
        let question = logged
            .ok()
            .filter(|logged| shadow.repeats(&logged.method))
            .and_then(|logged| Question::of_log(&logged, &default_host));
        match question {
            Some(question) => {
                asked += 1;
                if questions.send((question, listener.clone())).await.is_err() {
                    return;
                }
            }
            None => lock(&found).skipped += 1,
        }
    }
}

struct Asker {
    asked: Arc<tokio::sync::Mutex<mpsc::Receiver<Asked>>>,
    own: Own,
    backends: Backends,
    pools: Arc<Pools>,
    rules: Rules,
    found: Arc<Mutex<Found>>,
}

impl Asker {
    async fn run(self) {
        loop {
            let next = self.asked.lock().await.recv().await;
            let Some((question, listener)) = next else { return };
            let comparison = self.differing(&question, &listener).await;
            let target = question.target.to_string();
            let name = name(question.method.as_str(), &target, question.host.as_deref());
            lock(&self.found).tally.add(&name, &comparison);
        }
    }

    /// Those who balance do not choose the same server each time: what differs is asked
    /// again, and any two answers that are alike are enough. Servers of one pool may say
    /// who they are, so it takes more where ours has not asked one that the other has.
    async fn differing(&self, question: &Question, listener: &Listener) -> Comparison {
        let with = (&self.own, &self.backends);
        let to_legacy = || ask(question, listener.reached_at(), Some(redirect::TO_LEGACY), with);
        let (mut legacy, mut ours) = (Vec::new(), Vec::new());
        let mut first: Option<Comparison> = None;
        let mut have_met = false;
        for chance in 0..MORE_CHANCES {
            if chance >= CHANCES && have_met {
                break;
            }
            if chance > 0 {
                // In step with others, one would get the same server of each that
                // balances in turn, every time.
                tokio::time::sleep(PAUSE * (rand::random::<u32>() % PAUSES)).await;
            }
            legacy.push(to_legacy().await);
            ours.push(ask(question, listener.beside_at(), None, with).await);
            legacy.push(to_legacy().await);
            let again = legacy.last().map(|(again, _)| again);
            let pairs =
                legacy.iter().flat_map(|legacy| ours.iter().map(move |ours| (legacy, ours)));
            for ((legacy, by_legacy), (ours, by_ours)) in pairs {
                let chosen = self.pools.differ(*by_legacy, *by_ours);
                let is_unknown = by_legacy.is_none() || by_ours.is_none();
                have_met |= is_unknown || by_legacy == by_ours || chosen.is_some();
                let backends = chosen.as_ref().map(|(a, b)| (a.as_str(), b.as_str())).unzip();
                let comparison = compare(&Pair { legacy, again, ours, backends }, &self.rules);
                let is_alike = comparison.differences.is_empty();
                let first = first.get_or_insert(comparison);
                if is_alike {
                    first.differences.clear();
                    return first.clone();
                }
            }
        }
        first.unwrap_or_default()
    }
}

/// So that it survives this process.
async fn written(found: Arc<Mutex<Found>>, file: PathBuf) {
    loop {
        tokio::time::sleep(WRITE).await;
        let now = lock(&found).clone();
        write(&now, &file);
    }
}

/// A comparison that is lost is made again.
pub fn write(found: &Found, file: &std::path::Path) {
    let written = serde_json::to_vec(found)
        .map_err(|error| error.to_string())
        .and_then(|text| files::write_private(file, &text).map_err(|error| error.to_string()));
    if let Err(why) = written {
        ::log::warn!("{why}");
    }
}

/// What was written; nothing if that cannot be read.
pub fn read(file: &std::path::Path) -> Found {
    let text = files::read_private(file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// In a word or two.
pub fn cause(cause: &Cause) -> String {
    match cause {
        Cause::Status(legacy, ours) => format!("status {legacy} became {ours}"),
        Cause::Backend(legacy, ours) => format!("backend {legacy} became {ours}"),
        Cause::Header(name) => format!("header {name}"),
        Cause::Body => "body".to_owned(),
        Cause::NoAnswer { who: Who::Legacy, why } => {
            format!("no answer of the legacy proxy: {why}")
        }
        Cause::NoAnswer { who: Who::Ours, why } => format!("no answer of ours: {why}"),
    }
}

/// In a word or two.
pub fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Nothing => "none",
        Verdict::TooFew => "too few",
        Verdict::Alike => "alike",
        Verdict::Different => "different",
    }
}

/// Seconds until it is over.
pub fn left(shadow: &Shadow) -> u32 {
    u32::try_from(shadow.until - clock::unix_seconds()).unwrap_or_default()
}
