//! Two proxies and an application, ordinary traffic through them, and the
//! measuring of what an attack costs.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    machine::{ASIDE, Alone, Others, pin_others},
    support::{
        DOMAIN, SITE,
        apps::{AnyBody, App, fetch, full, get, http1, read},
        pki::Authority,
        process::{Running, write_config, write_identity},
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
/// What the other core must have left over for figures to be of the attacked
/// process.
const LEFT_OVER: f64 = 0.03;
/// What is left of ordinary traffic while strangers flood the doors of the mesh.
const KEPT: f64 = 0.7;

/// One attack at a time: figures are of one process on one machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// That one.
pub(crate) struct Turn {
    _held: MutexGuard<'static, ()>,
}

impl Turn {
    pub(crate) async fn take() -> Self {
        let _held = TURN.lock().await;
        if long().is_some() {
            pin_others();
        }
        Self { _held }
    }
}

/// How long an attack of the long form lasts.
pub(crate) fn long() -> Option<Duration> {
    let seconds = std::env::var("ISTHMUS_FLOOD_SECONDS").ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// One for the core that a process has in figures.
pub(crate) fn workers() -> usize {
    if long().is_some() { 1 } else { 2 }
}

fn config(dir: &Path, account: &str, rest: &str) -> PathBuf {
    let path = write_config(dir, account, rest);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("workers: 2", &format!("workers: {}", workers()))).unwrap();
    path
}

/// `checkout` calls `orders.shop` through two processes.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) source: Running,
    pub(crate) destination: Running,
    _app: App,
    _dir: tempfile::TempDir,
    _turn: Turn,
}

/// `/` says hello, `/big` a mebibyte, `/deaf` reads nothing and never answers,
/// anything else reads all and says how much.
pub(crate) async fn answer(request: Request<Incoming>) -> Response<AnyBody> {
    match request.uri().path() {
        "/" => Response::new(full("hello")),
        "/big" => Response::new(full(Bytes::from_static(&[b'x'; 1 << 20]))),
        "/deaf" => std::future::pending().await,
        _ => {
            use http_body_util::BodyExt;
            let body = request.into_body().collect().await;
            Response::new(full(body.map_or(0, |body| body.to_bytes().len()).to_string()))
        }
    }
}

fn write_site(dir: &Path, proxy: Option<SocketAddr>, target: SocketAddr) {
    let proxy = proxy.map(|addr| format!("proxy: {addr}, ")).unwrap_or_default();
    let text = format!(
        "site: {SITE}\ntrust_domain: {DOMAIN}\nservices:\n  - name: orders.shop\n    ports: \
         [{{ name: http, port: 80, protocol: http }}]\n    endpoints:\n      - {{ id: one-http, \
         port: http, identity: \"spiffe://{DOMAIN}/ns/shop/sa/orders\", {proxy}target: \
         \"{target}\" }}\n"
    );
    std::fs::write(dir.join("site.yaml"), text).unwrap();
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::limited("").await
    }

    /// With more in the configuration of the source.
    pub(crate) async fn limited(more: &str) -> Self {
        let turn = Turn::take().await;
        let app = ASIDE.spawn(App::start(answer)).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(DOMAIN);
        write_identity(dir.path(), &authority, "orders");
        write_identity(dir.path(), &authority, "checkout");
        write_site(dir.path(), None, app.addr);
        let rest = "http_listener: off\ninbound: 127.0.0.1:0\n";
        let destination = Running::start(&config(dir.path(), "orders", rest)).await;
        write_site(dir.path(), Some(destination.listeners["inbound"]), app.addr);
        let rest = format!("http_listener: 127.0.0.1:0\n{more}");
        let source = Running::start(&config(dir.path(), "checkout", &rest)).await;
        Self { authority, source, destination, _app: app, _dir: dir, _turn: turn }
    }

    /// The door of the source for applications.
    pub(crate) fn outbound(&self) -> SocketAddr {
        self.source.listeners["http"]
    }

    /// The door of the destination for the mesh.
    pub(crate) fn inbound(&self) -> SocketAddr {
        self.destination.listeners["inbound"]
    }

    /// Attacks the source.
    pub(crate) async fn at_source<F: Future<Output = ()>>(
        &self,
        attack: Attack,
        run: impl FnOnce(Arc<Pace>) -> F,
    ) {
        endure(&self.source, self.outbound(), attack, run).await;
    }

    /// Attacks the destination.
    pub(crate) async fn at_destination<F: Future<Output = ()>>(
        &self,
        attack: Attack,
        run: impl FnOnce(Arc<Pace>) -> F,
    ) {
        endure(&self.destination, self.outbound(), attack, run).await;
    }
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
    /// When it began, and its units each second.
    limit: Option<(Instant, u32)>,
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
            limit: limit.map(|saturated| (Instant::now(), saturated.pace)),
            begun: AtomicU64::new(0),
        }
    }

    /// Waits until so many more may be done, where there is a limit.
    pub(crate) async fn turn(&self, many: u64) {
        let before = self.begun.fetch_add(many, Ordering::Relaxed);
        if let Some((began, pace)) = self.limit {
            sleep_until(began + Duration::from_secs(1) * u32::try_from(before).unwrap() / pace)
                .await;
        }
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
                    eprintln!("an ordinary request failed: {why}");
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
    let rate = match long() {
        Some(lasts) => ordinary.rate(lasts).await,
        None => 0.0,
    };
    let counted_before = counted(victim, attack.counted.unwrap_or_default()).await;
    reset_peak(pid);
    let (before, began, others) = (usage(pid), Instant::now(), Others::now());
    let pace = Arc::new(Pace::new(&attack, &ordinary));
    let running = timeout(PATIENCE + long().unwrap_or_default(), run(pace.clone()));
    let kept = match long() {
        None => running.await.map(|()| 0.0),
        Some(lasts) => {
            let measured = async {
                let kept = ordinary.rate(lasts).await;
                pace.over.store(true, Ordering::Relaxed);
                kept
            };
            let (ran, kept) = tokio::join!(running, measured);
            ran.map(|()| kept)
        }
    };
    let (after, lasted, left_over) = (usage(pid), began.elapsed(), others.idle_since());
    let kept = kept.unwrap_or_else(|_| panic!("{}: it does not end", attack.name));
    // Before and after: it is not the same from one second to the next.
    let rate = match long() {
        Some(lasts) => {
            sleep(SETTLED).await;
            f64::midpoint(rate, ordinary.rate(lasts).await)
        }
        None => 1.0,
    };
    let kept = kept / rate;
    drop(alone);
    ordinary.over.store(true, Ordering::Relaxed);
    clients.join_all().await;
    let grown = after.peak_kib.saturating_sub(before.resident_kib) / 1024;
    let failed = ordinary.failed.load(Ordering::Relaxed);
    tell(&attack, &pace, (before, after), lasted, (rate, kept));
    assert_eq!(failed, 0, "{}: ordinary requests failed", attack.name);
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

/// Sends `limit` bytes in pieces, and waits so long for the other end to close or
/// reset the connection; whether it does.
pub(crate) async fn is_cut(
    stream: &mut TcpStream,
    piece: &[u8],
    limit: usize,
    wait: Duration,
) -> bool {
    let (mut from, mut to) = stream.split();
    let closed = async {
        let mut sink = vec![0; 16 << 10];
        while matches!(from.read(&mut sink).await, Ok(1..)) {}
    };
    let sending = async {
        for _ in 0..limit.div_ceil(piece.len()) {
            if to.write_all(piece).await.is_err() {
                return true;
            }
        }
        sleep(wait).await;
        false
    };
    tokio::select! {
        () = closed => true,
        cut = sending => cut,
    }
}
