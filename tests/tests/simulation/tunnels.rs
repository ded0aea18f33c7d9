//! Gateways, proxies and tunnels, with everything else given.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use edge_proxy::{config::GatewayDoors, metrics::Metrics};
use isthmus_tests::{
    apps::{connect, request, serve_echo, serve_http},
    federated::{door, open_door},
    mesh::{Addresses, TwoSites},
};
use mesh_api::v1::LinkTransport;
use mesh_tunnel::Net;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use crate::{Script, Step, net, play, seeds, until_ok};

const LISTENER: u16 = 4140;
const APP: u16 = 8080;

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

/// Both gateways and both machines with their applications.
fn two_sites(seed: u64) -> turmoil::Sim<'static> {
    World::new(seed).build()
}

/// What two sites are built from.
pub(crate) struct World {
    pub(crate) seed: u64,
    /// What the link may use.
    pub(crate) transport: LinkTransport,
    /// What gateways send and hear by.
    pub(crate) wide_area: Arc<dyn Net>,
    /// What `vm` counts, once it has started.
    pub(crate) counted: Arc<OnceLock<Arc<Metrics>>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            transport: LinkTransport::Unspecified,
            wide_area: net(),
            counted: Arc::default(),
        }
    }

    pub(crate) fn build(self) -> turmoil::Sim<'static> {
        let Self { seed, transport, wide_area, counted } = self;
        println!("seed {seed}");
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .simulation_duration(Duration::from_secs(300))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(5))
            .max_message_latency(Duration::from_millis(5))
            .repair_rate(0.9)
            .tcp_capacity(4096)
            .udp_capacity(4096)
            .build();
        let sites = TwoSites::new(Addresses {
            west_quic: "west-gw:8443".into(),
            west_tls: "west-gw:8443".into(),
            east_quic: "east-gw:8443".into(),
            east_tls: "east-gw:8443".into(),
            node_inbound: SocketAddr::new(sim.lookup("node"), 4143),
            payments: local(APP),
            orders: local(APP),
        });
        let sites = Arc::new(TwoSites { transport, ..sites });
        for (host, site) in [("west-gw", "west"), ("east-gw", "east")] {
            let (sites, net) = (sites.clone(), wide_area.clone());
            sim.host(host, move || {
                let doors = GatewayDoors { quic: Some(any(8443)), tls: any(8443) };
                let app = sites.gateway(site, doors, net.clone());
                async move {
                    app.run_in_place().await?;
                    std::future::pending::<()>().await;
                    Ok(())
                }
            });
        }
        for (host, name) in [("vm", "orders"), ("node", "payments")] {
            let (sites, counted) = (sites.clone(), counted.clone());
            sim.host(host, move || {
                let app = match host {
                    "vm" => {
                        let app = sites.vm(local(LISTENER), net());
                        counted.get_or_init(|| app.shared.metrics.clone());
                        app
                    }
                    _ => sites.node(local(LISTENER), net()),
                };
                async move {
                    app.run_in_place().await?;
                    tokio::spawn(serve_http(net(), local(APP), name));
                    tokio::spawn(serve_echo(net(), local(APP + 1)));
                    tokio::spawn(open_door(local(LISTENER)));
                    std::future::pending::<()>().await;
                    Ok(())
                }
            });
        }
        sim
    }
}

pub(crate) const PAYMENTS: &str = "http://payments.prod/";
pub(crate) const ORDERS: &str = "http://orders.shop/";
pub(crate) const WARM_UP: Duration = Duration::from_secs(10);

#[test]
fn requests_cross_two_gateways_both_ways() {
    for seed in seeds() {
        let mut sim = two_sites(seed);
        sim.client("test", async {
            let body = until_ok("vm", PAYMENTS, WARM_UP).await?;
            assert_eq!(body, "payments heard spiffe://west.example/ns/shop/sa/orders: ");
            let body = until_ok("node", ORDERS, WARM_UP).await?;
            assert_eq!(body, "orders heard spiffe://east.example/ns/prod/sa/payments: ");
            for n in 0..50 {
                let sent = format!("order {n}");
                let answer = request(&net(), door("vm"), "POST", PAYMENTS, &sent).await?;
                assert_eq!(answer.status, 200, "{answer:?}");
                assert!(answer.body.ends_with(&sent), "{answer:?}");
            }
            Ok(())
        });
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn opaque_bytes_and_half_close_cross_two_gateways() {
    for seed in seeds() {
        let mut sim = two_sites(seed);
        sim.client("test", async {
            until_ok("vm", PAYMENTS, WARM_UP).await?;
            let mut stream = connect(&net(), door("vm"), "payments.prod:9000").await?;
            let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
            let (mut rx, mut tx) = tokio::io::split(&mut stream);
            let write = async {
                tx.write_all(&sent).await?;
                tx.shutdown().await
            };
            let mut received = Vec::new();
            let read = rx.read_to_end(&mut received);
            let (written, read) = timeout(WARM_UP, async { tokio::join!(write, read) }).await?;
            written?;
            read?;
            assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
            Ok(())
        });
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn a_restarted_gateway_is_found_again() {
    for seed in seeds() {
        for gateway in ["east-gw", "west-gw"] {
            let mut sim = two_sites(seed);
            let script = Script::default();
            let asks = script.clone();
            sim.client("test", async move {
                until_ok("vm", PAYMENTS, WARM_UP).await?;
                until_ok("node", ORDERS, WARM_UP).await?;
                asks.ask(Step::Start(gateway));
                sleep(Duration::from_secs(1)).await;
                // A dead tunnel is noticed after three missed keep-alives.
                until_ok("vm", PAYMENTS, Duration::from_secs(60)).await?;
                until_ok("node", ORDERS, Duration::from_secs(60)).await?;
                Ok(())
            });
            play(sim, &script, seed);
        }
    }
}

#[test]
fn a_partition_between_gateways_heals() {
    for seed in seeds() {
        let mut sim = two_sites(seed);
        sim.client("test", async {
            until_ok("vm", PAYMENTS, WARM_UP).await?;
            turmoil::partition("west-gw", "east-gw");
            let answer = request(&net(), door("vm"), "GET", PAYMENTS, "").await;
            assert!(!answer.as_ref().is_ok_and(|answer| answer.status == 200), "{answer:?}");
            sleep(Duration::from_secs(40)).await;
            turmoil::repair("west-gw", "east-gw");
            until_ok("vm", PAYMENTS, Duration::from_secs(60)).await?;
            until_ok("node", ORDERS, Duration::from_secs(60)).await?;
            Ok(())
        });
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

#[test]
fn losing_packets_loses_no_request() {
    for seed in seeds() {
        let mut sim = two_sites(seed);
        sim.client("test", async {
            until_ok("vm", PAYMENTS, WARM_UP).await?;
            for _ in 0..30 {
                let answer = request(&net(), door("vm"), "GET", PAYMENTS, "").await?;
                assert_eq!(answer.status, 200, "{answer:?}");
            }
            Ok(())
        });
        sim.set_link_fail_rate("west-gw", "east-gw", 0.02);
        sim.run().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}
