//! What balancing costs: making a balancer, refreshing it, one choice with its
//! end. `cargo bench -p mesh-core`; the least of several rounds.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_core::{
    Endpoint, Health, Locality,
    balance::{
        Backing, BalancePolicy, Balancer, End, Paths, Vantage,
        policy::{Affinity, AffinityKey},
    },
};

const ROUNDS: u32 = 20;
const REQUESTS: u32 = 20_000;

/// Of three sites with two zones each.
fn endpoint(i: u32) -> Arc<Endpoint> {
    let site = ["east", "north", "west"][i as usize % 3];
    let zone = ["eu-1", "eu-2"][i as usize % 2];
    Arc::new(Endpoint {
        id: format!("e{i:05}").parse().expect("an id"),
        service: "orders.shop".parse().expect("a service"),
        port: "http".parse().expect("a port"),
        site: site.parse().expect("a site"),
        identity: format!("spiffe://{site}.example/ns/shop/sa/orders").parse().ok(),
        address: None,
        target: ([127, 0, 0, 1], 80).into(),
        locality: Locality { region: "eu".into(), zone: zone.into(), host: "".into() },
        weight: 1 + i % 3,
        capacity: 0,
        priority: 0,
        health: Health::Healthy,
        node: None,
        via: Default::default(),
    })
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn measure(affinity: bool, endpoints: &[Arc<Endpoint>]) {
    let locality = Locality { region: "eu".into(), zone: "eu-1".into(), host: "".into() };
    let from = Vantage { site: "east".parse().expect("a site"), locality };
    let by = Affinity { by: AffinityKey::Source, max_load: None };
    let policy = BalancePolicy { affinity: affinity.then_some(by), ..BalancePolicy::default() };
    let backing =
        Backing { from: &from, policy: &policy, endpoints, reachable: &|_| true, workers: 2 };
    let (paths, now) = (Paths::default(), Duration::from_secs(1));
    let mut least = [Duration::MAX; 4];
    for _ in 0..ROUNDS {
        let mut balancer = Balancer::new(7);
        let made = timed(|| {
            balancer.update(&backing, Duration::ZERO);
            balancer.refresh(&paths, Duration::ZERO);
        });
        let again = timed(|| balancer.update(&backing, now));
        let refreshed = timed(|| balancer.refresh(&paths, now));
        let chosen = timed(|| {
            for i in 0..REQUESTS {
                let key = affinity.then(|| u64::from(i).wrapping_mul(0x9E37_79B9_7F4A_7C15));
                let slot = balancer.choose(&[], key, now).expect("all are well");
                balancer.begin(slot);
                balancer.end(slot, End::Served(Duration::from_micros(900)), now);
                black_box(slot);
            }
        });
        for (least, took) in least.iter_mut().zip([made, again, refreshed, chosen / REQUESTS]) {
            *least = took.min(*least);
        }
    }
    let [made, again, refreshed, chosen] = least;
    let (n, kind) = (endpoints.len(), if affinity { "by key" } else { "P2C" });
    println!(
        "{n:5} endpoints, {kind:6}: made {made:?}, new snapshot {again:?}, refreshed \
         {refreshed:?}, one request {chosen:?}"
    );
}

fn main() {
    for affinity in [false, true] {
        for n in [10, 100, 1000, 3000] {
            let mut endpoints: Vec<_> = (0..n).map(endpoint).collect();
            endpoints.sort_by(|a, b| (&a.site, &a.id).cmp(&(&b.site, &b.id)));
            measure(affinity, &endpoints);
        }
    }
}
