//! With the federations of both sites: what their absence, and the network's,
//! does to traffic and to what the sites know of each other.

use std::time::Duration;

use isthmus_tests::{
    federated::{Disks, add_sites, bring_up},
    sim,
};

use crate::{seeds, until_ok};

const PAYMENTS: &str = "http://payments.prod/";
const ORDERS: &str = "http://orders.shop/";
const WARM_UP: Duration = Duration::from_secs(20);
/// The simulation's resolution. Also the least that a message takes.
const TICK: Duration = Duration::from_millis(10);

fn two_sites(seed: u64, longest: Duration) -> (turmoil::Sim<'static>, Disks) {
    println!("seed {seed}");
    let _again = mesh_runtime::logs::init("off");
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(sim::epoch())
        .simulation_duration(longest)
        .tick_duration(TICK)
        .min_message_latency(TICK)
        .max_message_latency(TICK)
        .tcp_capacity(4096)
        .udp_capacity(4096)
        .build();
    let disks = add_sites(&mut sim);
    (sim, disks)
}

#[test]
fn sites_come_up() {
    for seed in seeds() {
        let (mut sim, disks) = two_sites(seed, Duration::from_secs(300));
        sim.client("test", async move {
            bring_up(&disks).await?;
            let body = until_ok("vm", PAYMENTS, WARM_UP).await?;
            assert_eq!(body, "node heard spiffe://west.example/ns/shop/sa/orders: ");
            let body = until_ok("node", ORDERS, WARM_UP).await?;
            assert_eq!(body, "vm heard spiffe://east.example/ns/prod/sa/payments: ");
            Ok(())
        });
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}
