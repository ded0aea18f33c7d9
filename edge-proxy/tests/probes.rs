//! Endpoints that are asked how they are, through two real proxies, as the
//! documents say that people write.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use mesh_api::v1;
use mesh_manifest::{compile, manifest::read as read_manifests};
use support::{
    DOMAIN, Proxy,
    apps::{App, fetch, full},
    endpoint, inbound_config, outbound_config,
    pki::Authority,
    refusing, service, snapshot,
};

const FAILING: &str = "isthmus_proxy_probe_failing{service=\"orders.shop\",port=\"http\"}";

/// A source, and applications `e0` and `e1` behind one destination, which
/// answer with their names, and to `/healthz` with what they are told.
struct World {
    authority: Authority,
    source: Proxy,
    destination: Proxy,
    targets: Vec<SocketAddr>,
    health: [Arc<AtomicU16>; 2],
    asked: Arc<AtomicUsize>,
    _apps: Vec<App>,
}

fn policy(check: &str) -> String {
    format!(
        "
apiVersion: isthmus.io/v1
kind: TrafficPolicy
metadata: {{ name: orders, namespace: shop }}
spec:
  targetRef: {{ kind: Service, name: orders }}
  balance: {{ slowStart: 0s }}
  traffic:
    healthCheck:
      {check}
      interval: 100ms
      timeout: 500ms
      unhealthyThreshold: 2
      healthyThreshold: 2
"
    )
}

const HTTP: &str = "http: { path: /healthz, expectedStatuses: [200, 204] }";

impl World {
    async fn start(policy: &str) -> Self {
        let authority = Authority::new(DOMAIN);
        let svid = authority.workload("orders");
        let destination = Proxy::start(&authority, svid, inbound_config()).await;
        let source =
            Proxy::start(&authority, authority.workload("checkout"), outbound_config()).await;
        let health = [200, 204].map(|status| Arc::new(AtomicU16::new(status)));
        let asked = Arc::<AtomicUsize>::default();
        let mut apps = Vec::new();
        for (name, health) in ["e0", "e1"].into_iter().zip(&health) {
            let (health, asked) = (health.clone(), asked.clone());
            let answer = move |request: Request<Incoming>| {
                let mut response = Response::new(full(name));
                if request.uri().path() == "/healthz" {
                    asked.fetch_add(1, Ordering::Relaxed);
                    let status = health.load(Ordering::Relaxed);
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                }
                std::future::ready(response)
            };
            apps.push(App::start(answer).await);
        }
        let targets = apps.iter().map(|app| app.addr).collect();
        let world = Self { authority, source, destination, targets, health, asked, _apps: apps };
        world.tell(policy);
        world
    }

    /// Decides by this from now on.
    fn tell(&self, policy: &str) {
        let registry = BTreeMap::from([("orders.shop".to_owned(), vec![("http".to_owned(), 80)])]);
        let compiled =
            compile("orders.shop", &read_manifests(policy, "p.yaml").unwrap(), &registry);
        assert_eq!(compiled.problems, []);
        let orders = v1::Service {
            traffic: compiled.traffic,
            balance: compiled.balance,
            ..service("orders.shop", &[("http", 80, v1::Protocol::Http)])
        };
        let proxy = self.destination.inbound();
        let endpoints = self.targets.iter().enumerate().map(|(i, target)| {
            endpoint(&format!("e{i}"), "orders.shop", "http", "orders", proxy, *target)
        });
        let snapshot = snapshot(&self.authority, vec![orders], endpoints.collect());
        self.source.tell(&snapshot);
        self.destination.tell(&snapshot);
    }

    /// Of forty requests, how many each application has answered; none fails.
    async fn spread(&self) -> [usize; 2] {
        let mut counts = [0; 2];
        // At once: one after the other all would go to whoever is faster.
        let all = (0..40).map(|_| fetch(self.source.http(), "http://orders.shop/"));
        for (head, body) in futures_util::future::join_all(all).await {
            assert_eq!(head.status, 200);
            counts[usize::from(&body[..] == b"e1")] += 1;
        }
        counts
    }

    /// The balancer looks at what was found out a few times a second.
    async fn until_spread(&self, holds: fn(usize, usize) -> bool) {
        let mut last = [0; 2];
        for _ in 0..50 {
            last = self.spread().await;
            if holds(last[0], last[1]) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("it stays {last:?}");
    }

    async fn until_failing(&self, wanted: usize) {
        let wanted = format!("{FAILING} {wanted}\n");
        for _ in 0..200 {
            if self.source.metrics().contains(&wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("not {wanted}: {}", self.source.metrics());
    }
}

#[tokio::test]
async fn an_endpoint_that_answers_badly_has_no_traffic_until_it_answers_well() {
    let world = World::start(&policy(HTTP)).await;
    let [first, second] = world.spread().await;
    assert!(first > 0 && second > 0, "both are well: {first} {second}");
    world.health[0].store(503, Ordering::Relaxed);
    world.until_failing(1).await;
    world.until_spread(|first, second| (first, second) == (0, 40)).await;
    world.health[0].store(200, Ordering::Relaxed);
    world.until_failing(0).await;
    world.until_spread(|first, second| first > 0 && second > 0).await;
    let metrics = world.source.metrics();
    for result in ["ok", "failed"] {
        let line = format!(
            "isthmus_proxy_probe_total{{service=\"orders.shop\",port=\"http\",result=\"{result}\"}}"
        );
        assert!(metrics.contains(&line), "{metrics}");
    }
}

#[tokio::test]
async fn when_all_answer_badly_none_is_preferred() {
    let world = World::start(&policy(HTTP)).await;
    world.spread().await;
    world.health.iter().for_each(|health| health.store(500, Ordering::Relaxed));
    world.until_failing(2).await;
    world.until_spread(|first, second| first > 0 && second > 0).await;
    // Unless reports are always believed.
    world.tell(&policy(HTTP).replace("slowStart: 0s", "slowStart: 0s, panicPercent: 0"));
    world.until_failing(2).await;
    let refused = async || fetch(world.source.http(), "http://orders.shop/").await.0;
    while refused().await.status != 503 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(refused().await.headers["isthmus-error"], "no_endpoint");
    world.health[1].store(200, Ordering::Relaxed);
    world.until_failing(1).await;
    while refused().await.status != 200 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(world.spread().await, [0, 40]);
}

#[tokio::test]
async fn nobody_is_asked_without_a_policy_or_before_there_is_traffic() {
    let world = World::start(&policy(HTTP)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(world.asked.load(Ordering::Relaxed), 0);
    world.spread().await;
    world.health[0].store(503, Ordering::Relaxed);
    world.until_failing(1).await;
    // Without the policy what was found out is forgotten.
    world.tell("");
    world.until_failing(0).await;
    let asked = world.asked.load(Ordering::Relaxed);
    world.until_spread(|first, second| first > 0 && second > 0).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let more = world.asked.load(Ordering::Relaxed) - asked;
    assert!(more <= 2, "asked {more} times more; two may have been on their way");
}

#[tokio::test]
async fn a_connection_is_enough_where_that_is_asked_for() {
    let mut world = World::start(&policy("tcp: {}")).await;
    world.spread().await;
    world.health[0].store(503, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(world.asked.load(Ordering::Relaxed), 0);
    // Nobody listens there; requests go on elsewhere meanwhile.
    let (_kept, closed) = refusing();
    world.targets[0] = closed;
    world.tell(&policy("tcp: {}"));
    world.until_failing(1).await;
    world.until_spread(|first, second| (first, second) == (0, 40)).await;
}
