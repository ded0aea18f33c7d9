//! Delay and loss between the sites.

use std::{sync::Arc, time::Duration};

use edge_proxy::metrics::{Direction, DirectionLabel};
use futures_util::future::try_join_all;
use isthmus_tests::{
    apps::request,
    federated::{Failure, door},
    sim::SimNet,
};
use mesh_api::v1::LinkTransport;
use tokio::time::sleep;

use crate::{
    net, seeds,
    tunnels::{ORDERS, PAYMENTS, WARM_UP, World},
    until_ok,
};

/// One way between any two that are not both gateways.
const LAN: Duration = Duration::from_millis(1);
/// Trips within the sites, one way, that a cold request makes and a warm one
/// does not: dialling the endpoint's proxy, the handshake's own. On a network
/// with 0.1 ms of them less than 1 ms.
const TRIPS: u32 = 8;

/// Gateways are this far apart, one way.
fn spread_out(sim: &mut turmoil::Sim<'_>, wan: Duration) {
    let hosts = ["west-gw", "east-gw", "vm", "node", "test"];
    for (n, a) in hosts.iter().enumerate() {
        for b in &hosts[n + 1..] {
            let latency = if (*a, *b) == ("west-gw", "east-gw") { wan } else { LAN };
            sim.set_link_latency(*a, *b, latency);
        }
    }
}

/// How long one request takes, in virtual time.
async fn request_time(host: &str, url: &str) -> Result<Duration, Failure> {
    let start = tokio::time::Instant::now();
    let answer = request(&net(), door(host), "GET", url, "").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(start.elapsed())
}

/// The first request over the link, and the one after it.
fn cold_and_warm(transport: LinkTransport, wan: Duration, host: &'static str, url: &'static str) {
    let mut sim = World { transport, ..World::new(seeds()[0]) }.build();
    sim.client("test", async move {
        // The tunnels and the link come up.
        sleep(WARM_UP).await;
        let cold = request_time(host, url).await?;
        let warm = request_time(host, url).await?;
        println!("{transport:?}, {:?}, {url} from {host}: cold {cold:?}, warm {warm:?}", 2 * wan);
        assert!(warm >= 2 * wan, "{warm:?} is faster than the network");
        let allowed = 2 * wan + TRIPS * LAN;
        assert!(cold - warm <= allowed, "{transport:?}, {url}: cold {cold:?}, warm {warm:?}");
        Ok(())
    });
    spread_out(&mut sim, wan);
    sim.run().unwrap_or_else(|error| panic!("{transport:?}, {wan:?}, {url}: {error}"));
}

/// The inner handshake is one round trip, and the opening of its stream is
/// none: its `ClientHello` travels with the `Connect` of every hop.
#[test]
fn a_cold_request_costs_one_round_trip_more_than_a_warm_one() {
    for transport in [LinkTransport::Quic, LinkTransport::Tls] {
        for wan in [20, 40].map(Duration::from_millis) {
            for (host, url) in [("vm", PAYMENTS), ("node", ORDERS)] {
                cold_and_warm(transport, wan, host, url);
            }
        }
    }
}

/// A packet that is lost holds up the requests of one session only.
#[test]
fn many_requests_at_once_to_another_site_have_four_sessions() {
    let world = World::new(seeds()[0]);
    let counted = world.counted.clone();
    let mut sim = world.build();
    sim.client("test", async move {
        until_ok("vm", PAYMENTS, WARM_UP).await?;
        for _ in 0..ROUNDS {
            try_join_all((0..AT_ONCE).map(|_| request_time("vm", PAYMENTS))).await?;
        }
        let outbound = DirectionLabel(Direction::Outbound);
        let metrics = counted.get().expect("vm has started");
        assert_eq!(metrics.inner_sessions.get_or_create(&outbound).get(), 4);
        Ok(())
    });
    spread_out(&mut sim, Duration::from_millis(20));
    sim.run().unwrap();
}

/// As many requests as that at once, each of them this often.
const AT_ONCE: usize = 64;
const ROUNDS: usize = 5;

/// Over QUIC: turmoil's TCP is never sent again. `benches/peers` loses packets
/// of both.
#[test]
fn of_many_requests_at_once_none_fails_when_one_datagram_in_a_hundred_is_lost() {
    for seed in seeds() {
        let wide_area = Arc::new(SimNet::losing(0.01, seed));
        let transport = LinkTransport::Quic;
        let world = World { transport, wide_area: wide_area.clone(), ..World::new(seed) };
        let mut sim = world.build();
        sim.client("test", async {
            until_ok("vm", PAYMENTS, WARM_UP).await?;
            until_ok("node", ORDERS, WARM_UP).await?;
            let mut times = try_join_all((0..AT_ONCE).map(client)).await?.concat();
            times.sort();
            let at = |percent| times[times.len() * percent / 100];
            println!("{} requests: p50 {:?}, p99 {:?}", times.len(), at(50), at(99));
            Ok(())
        });
        spread_out(&mut sim, Duration::from_millis(20));
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(wide_area.lost() > 0, "seed {seed}: nothing was lost, so this shows nothing");
    }
}

async fn client(n: usize) -> Result<Vec<Duration>, Failure> {
    let (host, url) = if n.is_multiple_of(2) { ("vm", PAYMENTS) } else { ("node", ORDERS) };
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push(request_time(host, url).await?);
    }
    Ok(times)
}
