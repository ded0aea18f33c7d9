//! The caller's proxy in `east/eu-1`, a proxy for the applications of each
//! zone, and a gateway per site.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use edge_proxy::config::{Config, Role};
use mesh_api::v1::resource::Resource as Kind;
use mesh_core::{Locality, NodeId};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::super::{mesh::at, proxies::Proxy, *};

/// Site and zone; the caller is in the first.
pub(super) const ZONES: [(&str, &str); 6] = [
    ("east", "eu-1"),
    ("east", "eu-2"),
    ("west", "eu-1"),
    ("west", "eu-2"),
    ("north", "eu-1"),
    ("north", "eu-2"),
];
/// Applications of one zone.
pub(super) const EACH: usize = 6;

/// Answers with its place, after about what its zone takes.
struct Application {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

pub(super) struct World {
    sites: [Site; 3],
    gateways: Vec<Running>,
    source: Proxy,
    proxies: Vec<Proxy>,
    apps: Vec<Vec<Application>>,
    delays: Vec<Arc<AtomicU64>>,
    /// Of its callers.
    pub(super) balance: v1::BalancePolicy,
}

/// Answers of each endpoint of each zone, and the mean latency of each zone in
/// seconds: geometric, as proxies have it.
type Measured = ([[usize; EACH]; ZONES.len()], [f64; ZONES.len()]);

impl World {
    /// Every application takes `delay`.
    pub(super) async fn start(delay: Duration) -> Self {
        let sites = ["east", "west", "north"].map(Site::new);
        let all: Vec<&Site> = sites.iter().collect();
        let mut gateways = Vec::new();
        for (site, id) in sites.iter().zip(["gw-e", "gw-w", "gw-n"]) {
            gateways.push(start(site, id, &all, any_doors(), Tuning::default()).await);
        }
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let locality = Locality { region: "eu".into(), zone: "eu-1".into(), host: "".into() };
        let config = Config { http_listener: Some(any), locality, ..Config::given(Role::Node) };
        let source = Proxy::start_on(machine(9), &sites[0], "checkout", &all, config).await;
        let (mut proxies, mut apps, mut delays) = (Vec::new(), Vec::new(), Vec::new());
        for (zone, (name, _)) in ZONES.iter().enumerate() {
            let of = sites.iter().find(|site| site.name == *name).unwrap();
            let config = Config { inbound: Some(any), ..Config::given(Role::Node) };
            proxies.push(Proxy::start_on(machine(zone), of, "web", &all, config).await);
            let delay = Arc::new(AtomicU64::new(u64::try_from(delay.as_millis()).unwrap()));
            let mut here = Vec::new();
            for i in 0..EACH {
                here.push(Application::start(format!("{zone}-{i}"), delay.clone()).await);
            }
            apps.push(here);
            delays.push(delay);
        }
        let balance =
            v1::BalancePolicy { slow_start_ms: Some(0), subset: Some(0), ..Default::default() };
        let world = Self { sites, gateways, source, proxies, apps, delays, balance };
        world.tell(&[EACH; ZONES.len()], 0);
        for site in ["west", "north"] {
            world.gateways[0].linked(site).await;
        }
        world
    }

    /// Everybody hears how many of each zone are healthy, which are the last
    /// ones, and what those of the near zone are good for; 0 is unknown.
    pub(super) fn tell(&self, left: &[usize; ZONES.len()], capacity: u32) {
        for (site, gateway) in self.sites.iter().zip(&self.gateways) {
            let snapshot = whole(self.view(site, left, capacity));
            gateway.publish(snapshot.clone());
            for (zone, proxy) in ZONES.iter().zip(&self.proxies) {
                if zone.0 == site.name {
                    proxy.publish(snapshot.clone());
                }
            }
            if site.name == "east" {
                self.source.publish(snapshot);
            }
        }
    }

    fn view(&self, of: &Site, left: &[usize; ZONES.len()], capacity: u32) -> Vec<Kind> {
        let is_east = of.name == "east";
        let mut kinds = vec![site(of, None)];
        let names = |is: bool, names: &[&str]| -> Vec<String> {
            if is { names.iter().map(ToString::to_string).collect() } else { Vec::new() }
        };
        let Kind::Service(service) = service("orders.shop", &[], &[]) else { unreachable!() };
        kinds.push(Kind::Service(v1::Service {
            balance: Some(self.balance.clone()),
            exported_to: names(!is_east, &["east"]),
            imported_from: names(is_east, &["west", "north"]),
            ..service
        }));
        for (one, (id, running)) in
            self.sites.iter().zip(["gw-e", "gw-w", "gw-n"].iter().zip(&self.gateways))
        {
            kinds.push(bundle(one));
            kinds.push(gateway(one, id, running.quic, running.tls));
            if one.name != of.name && (is_east || one.name == "east") {
                kinds.push(link(one, is_east, LinkTransport::Raced));
            }
        }
        for (zone, (site, _)) in ZONES.iter().enumerate() {
            if is_east || *site == of.name {
                kinds.extend((0..EACH).map(|i| self.endpoint(of, zone, i, left, capacity)));
            }
        }
        kinds
    }

    fn endpoint(
        &self,
        seen_from: &Site,
        zone: usize,
        i: usize,
        left: &[usize; ZONES.len()],
        capacity: u32,
    ) -> Kind {
        let (name, label) = ZONES[zone];
        let of = self.sites.iter().find(|site| site.name == name).unwrap();
        let runs_here = seen_from.name == name;
        let address = self.proxies[zone].bound.inbound.filter(|_| runs_here);
        let mut endpoint = at(of, "orders.shop", &format!("e-{zone}-{i}"), address, None);
        let lost = i < EACH - left[zone];
        let health = if lost { v1::Health::Unhealthy } else { v1::Health::Healthy };
        endpoint.health = health.into();
        let locality =
            v1::Locality { region: "eu".into(), zone: label.into(), host: String::new() };
        endpoint.locality = Some(locality);
        endpoint.capacity = match (capacity, zone) {
            (0, _) => 0,
            (capacity, 0) => capacity,
            _ => 1000,
        };
        if runs_here {
            let target = self.apps[zone][i].addr;
            endpoint.target_port = target.port().into();
            endpoint.target_address = target.ip().to_string();
        }
        Kind::Endpoint(endpoint)
    }

    /// The first so many applications of a zone are gone from now on.
    pub(super) async fn lose(&mut self, zone: usize, how_many: usize) {
        for app in &mut self.apps[zone][..how_many] {
            app.task.abort();
            while !app.task.is_finished() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// What the applications of a zone take from now on.
    pub(super) fn slow(&self, zone: usize, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap();
        self.delays[zone].store(millis, Ordering::Relaxed);
    }

    /// So many requests, so many at once. None may fail.
    pub(super) async fn run(&self, requests: usize, at_once: usize) -> Measured {
        self.run_after(0, requests, at_once).await
    }

    /// The same after so many that are not measured, without a pause between.
    pub(super) async fn run_after(
        &self,
        before: usize,
        requests: usize,
        at_once: usize,
    ) -> Measured {
        let door = self.source.bound.http.unwrap();
        let left = Arc::new(AtomicUsize::new(before + requests));
        let mut clients = JoinSet::new();
        for _ in 0..at_once {
            clients.spawn(client(door, left.clone(), requests));
        }
        let mut served = [[0; EACH]; ZONES.len()];
        let mut logs = [0.0; ZONES.len()];
        while let Some(answers) = clients.join_next().await {
            for (place, took) in answers.unwrap() {
                let (zone, i) = place.split_once('-').unwrap();
                let zone: usize = zone.parse().unwrap();
                served[zone][i.parse::<usize>().unwrap()] += 1;
                logs[zone] += took.as_secs_f64().ln();
            }
        }
        let mut zone = 0;
        let latency = logs.map(|sum| {
            let count = served[zone].iter().sum::<usize>().max(1) as f64;
            zone += 1;
            (sum / count).exp()
        });
        (served, latency)
    }

    pub(super) async fn stop(self) {
        self.source.stop().await;
        for proxy in self.proxies {
            proxy.stop().await;
        }
        for gateway in self.gateways {
            gateway.stop().await;
        }
    }
}

fn machine(number: usize) -> NodeId {
    format!("6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1f0{number}").parse().unwrap()
}

impl Application {
    async fn start(place: String, delay: Arc<AtomicU64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            // Its connections end with it.
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                serving.spawn(answer(stream, place.clone(), delay.clone()));
            }
        });
        Self { addr, task }
    }
}

async fn answer(stream: TcpStream, place: String, delay: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while !head(&mut stream).await?.is_empty() {
        // Half to one and a half of it: clients shall not march in step.
        let part = 0.5 + f64::from(rand::random::<u16>()) / f64::from(u16::MAX);
        let takes = Duration::from_millis(delay.load(Ordering::Relaxed)).mul_f64(part);
        tokio::time::sleep(takes).await;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{place}", place.len());
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// A head; empty at the end of the connection.
async fn head(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await? > 0 {}
    Ok(head)
}

/// Sends requests on one connection while any are left: who answered the last
/// `measured` of all, and how soon.
async fn client(
    door: SocketAddr,
    left: Arc<AtomicUsize>,
    measured: usize,
) -> Vec<(String, Duration)> {
    let mut stream = BufReader::new(TcpStream::connect(door).await.unwrap());
    let mut answers = Vec::new();
    let take = |left: usize| left.checked_sub(1);
    while let Ok(left) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        let began = Instant::now();
        stream.write_all(b"GET /x HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await.unwrap();
        let head = timeout(STEP, head(&mut stream)).await.expect("an answer").unwrap();
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "a request failed: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut place = vec![0; length.unwrap().parse().unwrap()];
        stream.read_exact(&mut place).await.unwrap();
        if left <= measured {
            answers.push((String::from_utf8(place).unwrap(), began.elapsed()));
        }
    }
    answers
}
