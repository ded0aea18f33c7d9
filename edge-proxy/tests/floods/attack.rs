//! An attack on one process beside ordinary traffic, and what it costs both.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    machine::{ASIDE, Alone, Others},
    support::{
        apps::{fetch, get, http1, read},
        process::Running,
    },
};

/// Longer than any attack of the short form takes.
const PATIENCE: Duration = Duration::from_secs(100);
/// Ordinary requests that must be answered while an attack goes on.
const BESIDE: u64 = 100;
/// Connections of ordinary clients, and how often each asks: a load that
/// leaves the machine room for the attack.
const CLIENTS: u64 = 8;
const EVERY: Duration = Duration::from_millis(10);
/// Connections of clients that ask without a pause.
const EAGER_CLIENTS: u64 = 32;
/// Until an attack has no more consequences.
const SETTLED: Duration = Duration::from_secs(5);
/// How often an attack of a process that is saturated begins and ends: what the
/// machine's other guests take moves each single figure by a tenth. Each is half
/// as long as the others.
const WINDOWS: usize = 5;
/// What the other core must have left over for figures to be of the attacked
/// process.
const LEFT_OVER: f64 = 0.03;
/// What is left of ordinary traffic while strangers flood the doors of the mesh.
const KEPT: f64 = 0.8;

/// How long an attack of the long form lasts.
pub(crate) fn long() -> Option<Duration> {
    let seconds = std::env::var("ISTHMUS_FLOOD_SECONDS").ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// What is done, and what it may cost.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What is counted, in the table.
    pub(crate) unit: &'static str,
    /// How many of them the short form does.
    pub(crate) units: u64,
    /// By how many MiB the process may grow.
    pub(crate) memory: u64,
    /// The beginning of a line of `/metrics` that counts it.
    pub(crate) counted: Option<&'static str>,
    /// For figures: ordinary traffic shall be all that the process can do.
    pub(crate) saturated: Option<Saturated>,
}

/// A process that ordinary traffic keeps busy, and an attack of that size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saturated {
    /// What the process gets of its core.
    pub(crate) percent: u32,
    /// Units of the attack each second.
    pub(crate) pace: u32,
}

/// How long an attack goes on.
pub(crate) struct Pace {
    wanted: u64,
    done: AtomicU64,
    over: AtomicBool,
    ordinary: Arc<Ordinary>,
    beside: u64,
    /// Its units each second, and since when, while it may go on.
    limit: Option<(u32, watch::Sender<Option<Instant>>)>,
    begun: AtomicU64,
}

impl Pace {
    fn new(attack: &Attack, ordinary: &Arc<Ordinary>) -> Self {
        let limit = attack.saturated.filter(|_| long().is_some());
        Self {
            wanted: long().map_or(attack.units, |_| u64::MAX),
            done: AtomicU64::new(0),
            over: AtomicBool::new(false),
            beside: ordinary.answered.load(Ordering::Relaxed) + BESIDE,
            ordinary: ordinary.clone(),
            limit: limit.map(|saturated| (saturated.pace, watch::Sender::new(None))),
            begun: AtomicU64::new(0),
        }
    }

    /// Waits until so many more may be done, where there is a limit.
    pub(crate) async fn turn(&self, many: u64) {
        let Some((pace, window)) = &self.limit else { return };
        let began = *window.subscribe().wait_for(Option::is_some).await.expect("it is ours");
        let began = began.expect("that was waited for");
        let before = u32::try_from(self.begun.fetch_add(many, Ordering::Relaxed)).unwrap();
        if !self.over.load(Ordering::Relaxed) {
            sleep_until(began + Duration::from_secs(1) * before / *pace).await;
        }
    }

    /// Where there is a limit, nothing is done before this, and after the end.
    fn begin(&self) {
        self.begun.store(0, Ordering::Relaxed);
        if let Some((_, window)) = &self.limit {
            window.send_replace(Some(Instant::now()));
        }
    }

    fn pause(&self) {
        if let Some((_, window)) = &self.limit {
            window.send_replace(None);
        }
    }

    /// Nobody waits for a turn any more.
    fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.begin();
    }

    /// One more of whatever the attack is counted in.
    pub(crate) fn unit(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn units(&self, many: u64) {
        self.done.fetch_add(many, Ordering::Relaxed);
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether it shall go on: for its units, and until ordinary traffic has
    /// been answered meanwhile.
    pub(crate) fn goes_on(&self) -> bool {
        let beside = self.ordinary.answered.load(Ordering::Relaxed) < self.beside;
        !self.over.load(Ordering::Relaxed) && (self.done() < self.wanted || beside)
    }

    /// Holds what the attack holds until it shall end.
    pub(crate) async fn hold(&self) {
        while self.goes_on() {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What clients who mean no harm get.
#[derive(Default)]
pub(crate) struct Ordinary {
    answered: AtomicU64,
    failed: AtomicU64,
    /// Why the first of them failed.
    why: OnceLock<String>,
    over: AtomicBool,
}

impl Ordinary {
    async fn client(self: Arc<Self>, proxy: SocketAddr, pause: Duration) {
        let mut client = http1(proxy).await;
        while !self.over.load(Ordering::Relaxed) {
            let asked = async {
                let asked = client.send_request(get("http://orders.shop/")).await;
                let response = asked.map_err(|error| error.to_string())?;
                let (status, headers) = (response.status(), response.headers().clone());
                let body = read(response).await;
                let good = status == 200 && body == "hello";
                good.then_some(()).ok_or_else(|| format!("{status} {headers:?} {body:?}"))
            };
            let answered = timeout(Duration::from_secs(20), asked).await;
            let count = match answered.unwrap_or_else(|_| Err("no answer".to_owned())) {
                Ok(()) => &self.answered,
                Err(why) => {
                    let _first = self.why.set(why);
                    &self.failed
                }
            };
            count.fetch_add(1, Ordering::Relaxed);
            if !pause.is_zero() {
                sleep(pause).await;
            }
        }
    }

    async fn rate(&self, during: Duration) -> f64 {
        let (before, began) = (self.answered.load(Ordering::Relaxed), Instant::now());
        sleep(during).await;
        (self.answered.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    }

    async fn answered(&self, many: u64) {
        while self.answered.load(Ordering::Relaxed) < many {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
struct Usage {
    cpu: Duration,
    resident_kib: u64,
    peak_kib: u64,
}

fn usage(pid: u32) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse().unwrap()
    };
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|text| text.parse::<u64>().unwrap()).sum();
    // USER_HZ is 100 on every architecture that we run on.
    let cpu = Duration::from_millis(ticks * 10);
    Usage { cpu, resident_kib: kib("VmRSS:"), peak_kib: kib("VmHWM:") }
}

/// The most that a process has held.
pub(crate) fn peak_mib(process: &Running) -> u64 {
    usage(process.child.id().unwrap()).peak_kib / 1024
}

/// The peak is what it is now.
fn reset_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

/// What `/metrics` says in lines that begin so, together.
pub(crate) async fn counted(process: &Running, begins: &str) -> f64 {
    let (_, text) = fetch(process.listeners["admin"], "/metrics").await;
    let text = String::from_utf8(text.to_vec()).unwrap();
    let lines = text.lines().filter(|line| !begins.is_empty() && line.starts_with(begins));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

/// Ordinary clients until they are dropped.
fn clients(ordinary: &Arc<Ordinary>, attack: &Attack, proxy: SocketAddr) -> JoinSet<()> {
    let eager = long().is_some() && attack.saturated.is_some();
    let (count, pause) = if eager { (EAGER_CLIENTS, Duration::ZERO) } else { (CLIENTS, EVERY) };
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn_on(ordinary.clone().client(proxy, pause), &ASIDE);
    }
    clients
}

/// How much of ordinary traffic is left while an attack goes on.
struct Kept<'a> {
    ordinary: &'a Ordinary,
    lasts: Duration,
    windows: usize,
    /// Answers each second without the attack, and with it.
    off: Vec<f64>,
    on: Vec<f64>,
    /// How long the attack went on.
    attacked: Duration,
}

impl<'a> Kept<'a> {
    async fn new(ordinary: &'a Ordinary, lasts: Duration, saturated: bool) -> Self {
        let (lasts, windows) = if saturated { (lasts / 2, WINDOWS) } else { (lasts, 1) };
        let off = vec![ordinary.rate(lasts).await];
        Self { ordinary, lasts, windows, off, on: Vec::new(), attacked: Duration::ZERO }
    }

    async fn during(&mut self, pace: &Pace) {
        for window in 1..=self.windows {
            pace.begin();
            let began = Instant::now();
            self.on.push(self.ordinary.rate(self.lasts).await);
            self.attacked += began.elapsed();
            if window < self.windows {
                pace.pause();
                self.settled().await;
            }
        }
        pace.end();
    }

    async fn settled(&mut self) {
        sleep(SETTLED).await;
        self.off.push(self.ordinary.rate(self.lasts).await);
    }

    /// Answers each second without the attack, and which part of them was left:
    /// the median of what each window kept of the mean before and after it.
    async fn after(&mut self) -> (f64, f64) {
        self.settled().await;
        let around = self.off.windows(2).map(|pair| f64::midpoint(pair[0], pair[1]));
        let mut kept: Vec<f64> = around.zip(&self.on).map(|(off, on)| on / off).collect();
        kept.sort_by(f64::total_cmp);
        eprintln!("kept: {kept:.2?}");
        let mean = self.off.iter().sum::<f64>() / self.off.len() as f64;
        (mean, kept[kept.len() / 2])
    }
}

/// Runs an attack on `victim` beside ordinary traffic through `proxy`.
pub(crate) async fn endure<F: Future<Output = ()>>(
    victim: &Running,
    proxy: SocketAddr,
    attack: Attack,
    run: impl FnOnce(Arc<Pace>) -> F,
) {
    let pid = victim.child.id().unwrap();
    let percent = attack.saturated.map(|saturated| saturated.percent);
    let alone = long().map(|_| Alone::new(pid, percent));
    let ordinary = Arc::<Ordinary>::default();
    let clients = clients(&ordinary, &attack, proxy);
    ordinary.answered(200).await;
    let mut kept = match long() {
        Some(lasts) => Some(Kept::new(&ordinary, lasts, attack.saturated.is_some()).await),
        None => None,
    };
    let counted_before = counted(victim, attack.counted.unwrap_or_default()).await;
    reset_peak(pid);
    let (before, others) = (usage(pid), Others::now());
    let pace = Arc::new(Pace::new(&attack, &ordinary));
    let running = timeout(PATIENCE + 10 * long().unwrap_or_default(), run(pace.clone()));
    let began = Instant::now();
    let ended = match &mut kept {
        None => running.await,
        Some(kept) => tokio::join!(running, kept.during(&pace)).0,
    };
    ended.unwrap_or_else(|_| panic!("{}: it does not end", attack.name));
    let lasted = kept.as_ref().map_or(began.elapsed(), |kept| kept.attacked);
    let (after, left_over) = (usage(pid), others.idle_since());
    let (rate, kept) = match kept {
        Some(mut kept) => kept.after().await,
        None => (1.0, 0.0),
    };
    drop(alone);
    ordinary.over.store(true, Ordering::Relaxed);
    clients.join_all().await;
    let grown = after.peak_kib.saturating_sub(before.resident_kib) / 1024;
    let failed = ordinary.failed.load(Ordering::Relaxed);
    tell(&attack, &pace, (before, after), lasted, (rate, kept));
    let why = ordinary.why.get();
    assert_eq!(failed, 0, "{}: ordinary requests failed, first {why:?}", attack.name);
    let bound = attack.memory;
    assert!(grown <= bound, "{}: grew by {grown} MiB, allowed are {bound}", attack.name);
    if long().is_some() && attack.saturated.is_some() {
        eprintln!("{}: {:.0} % of the other core left over", attack.name, 100.0 * left_over);
        assert!(left_over >= LEFT_OVER, "{}: it was fought for the other core", attack.name);
        assert!(kept >= KEPT, "{}: {:.0} % of ordinary traffic", attack.name, 100.0 * kept);
    }
    // It serves whoever comes now.
    let (head, _) = fetch(proxy, "http://orders.shop/").await;
    assert_eq!(head.status, 200, "{}", attack.name);
    if let Some(metric) = attack.counted {
        let counted = counted(victim, metric).await - counted_before;
        assert!(counted >= 1.0, "{}: no {metric}", attack.name);
    }
}

/// One row of the table.
fn tell(
    attack: &Attack,
    pace: &Pace,
    used: (Usage, Usage),
    lasted: Duration,
    (rate, kept): (f64, f64),
) {
    let cpu = used.1.cpu.saturating_sub(used.0.cpu).as_secs_f64();
    let units = pace.done().max(1) as f64;
    let grown = used.1.peak_kib.saturating_sub(used.0.resident_kib) as f64 / 1024.0;
    let seconds = lasted.as_secs_f64();
    println!(
        "| {} | {:.0} {}/s | {:.0} % | {:.1} µs | {grown:.1} MiB | {rate:.0}/s | {:.0} % |",
        attack.name,
        units / seconds,
        attack.unit,
        100.0 * cpu / seconds,
        1e6 * cpu / units,
        100.0 * kept,
    );
}
