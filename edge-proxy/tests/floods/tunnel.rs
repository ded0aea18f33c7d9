//! A neighbour of a gateway who opens streams in its tunnel and does not read
//! them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::v1::Hello;
use mesh_core::{Allowed, SpiffeId, path::Connect, service::LinkTransport};
use mesh_tunnel::{
    RealNet,
    dial::{Dialer, GatewayAddresses},
    session::{Session, TunnelStream},
};
use tokio::time::{Instant, sleep};

use super::{
    attack::{Attack, Pace, long},
    gateway::Sites,
    inner::{Peer, ask},
};

/// Streams of the tunnel that nobody reads, and what each of them asks for:
/// more than every window on its way together.
const STALLED: u32 = 16;
const ANSWERS: u32 = 64;
/// Answers of a mebibyte that are read before, and at a time meanwhile.
const READ: u32 = 16;
/// What is left at least, in figures, of how fast they are.
const AS_FAST: f64 = 0.8;

async fn tunnel(sites: &Sites, transport: LinkTransport) -> Session {
    let door: Arc<str> = sites.door.to_string().into();
    let to = GatewayAddresses { quic: vec![door.clone()], tls: vec![door] };
    let hello = Hello { site: "west".into(), ..Hello::default() };
    let dialer = Dialer { net: Arc::new(RealNet), credentials: sites.credentials(), hello };
    let gateway = SpiffeId::gateway(&"west.example".parse().unwrap());
    let deadline = Duration::from_secs(10);
    dialer.dial(&to, Allowed::Exactly(gateway), transport, deadline).await.unwrap()
}

/// An inner session with the application's proxy in a stream of its own.
async fn session(sites: &Sites, tunnel: &Session, number: u32) -> Peer<TunnelStream> {
    let connect = Connect {
        site: "east".parse().unwrap(),
        service: "orders.shop".parse().unwrap(),
        port: "http".parse().unwrap(),
        endpoint: Some("one-http".parse().unwrap()),
        hops: 0,
        connection_id: format!("stalled-{number}"),
    };
    let stream = tunnel.open(&connect, b"").await.unwrap();
    Peer::over(stream, &sites.credentials()).await
}

/// Mebibytes a second of one stream that is read.
async fn read(peer: &mut Peer<TunnelStream>, first: u32) -> f64 {
    let began = Instant::now();
    let mut got = BTreeMap::new();
    for stream in first..first + READ {
        peer.take_big(stream, &mut got).await;
    }
    f64::from(READ) / began.elapsed().as_secs_f64()
}

async fn stall(transport: LinkTransport, name: &'static str) {
    let sites = Sites::start().await;
    let attack = Attack {
        name,
        unit: "answers of 1 MiB",
        units: 3 * u64::from(READ),
        memory: 48,
        counted: Some("isthmus_proxy_gateway_tunnels_opened_total"),
        saturated: None,
    };
    let run = async |pace: Arc<Pace>| {
        let tunnel = tunnel(&sites, transport).await;
        let mut reader = session(&sites, &tunnel, 0).await;
        let alone = read(&mut reader, 1).await;
        let mut stalled = Vec::new();
        for number in 1..=STALLED {
            let mut peer = session(&sites, &tunnel, number).await;
            let asks: Vec<_> = (1..=ANSWERS).map(|stream| ask(stream, "/big")).collect();
            assert!(peer.say(&asks).await);
            stalled.push(peer);
        }
        // Until all that may be sent of them has been.
        sleep(Duration::from_secs(1)).await;
        let (mut next, mut rates) = (1, Vec::new());
        while pace.goes_on() {
            next += READ;
            rates.push(read(&mut reader, next).await);
            pace.units(READ.into());
        }
        rates.sort_by(f64::total_cmp);
        let beside = rates[rates.len() / 2];
        eprintln!("{name}: {alone:.0} MiB/s alone, {beside:.0} MiB/s beside");
        // In the short form it is enough that it does not wait for them.
        if long().is_some() {
            assert!(beside >= alone * AS_FAST, "{name}: {beside:.0} MiB/s, alone {alone:.0}");
        }
        assert_eq!(tunnel.streams(), stalled.len() + 1, "none has ended");
    };
    sites.endure(attack, run).await;
}

#[tokio::test]
async fn streams_of_a_tunnel_over_tls_that_nobody_reads_slow_no_other() {
    stall(LinkTransport::Tls, "tunnel over TLS: 16 stalled streams, another read").await;
}

#[tokio::test]
async fn streams_of_a_tunnel_over_quic_that_nobody_reads_slow_no_other() {
    stall(LinkTransport::Quic, "tunnel over QUIC: 16 stalled streams, another read").await;
}
