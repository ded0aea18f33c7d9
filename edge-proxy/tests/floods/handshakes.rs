//! Strangers at the mesh's door: connections that never become sessions.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::ALPN_INNER;
use mesh_core::Allowed;
use mesh_tunnel::{Credentials, tls};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    attack::{Attack, Pace, Saturated, long},
    inner::credentials,
    support::{DOMAIN, pki::Authority},
    world::World,
};

/// Of an address that nobody else has.
pub(crate) async fn connect_from(from: [u8; 4], door: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    socket.connect(door).await
}

/// What a client says first.
pub(crate) async fn hello_of(credentials: &Arc<Credentials>, alpn: &[u8]) -> Vec<u8> {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let config = credentials.client(alpn, Allowed::Known);
    let shaking = tokio::spawn(tls::connect(config, near));
    let mut hello = Vec::new();
    far.read_buf(&mut hello).await.unwrap();
    shaking.abort();
    hello
}

/// Connections from one address that say `first` and wait, opened anew as they
/// are closed.
pub(crate) async fn half_open(door: SocketAddr, first: Vec<u8>, pace: Arc<Pace>) {
    let mut tasks = JoinSet::new();
    for _ in 0..400 {
        let (pace, first) = (pace.clone(), first.clone());
        tasks.spawn(async move {
            while pace.goes_on() {
                pace.turn(1).await;
                let Ok(mut stream) = connect_from([127, 0, 0, 66], door).await else {
                    sleep(Duration::from_millis(50)).await;
                    continue;
                };
                pace.unit();
                // It may be closed at once.
                let _closed = stream.write_all(&first).await;
                let closed =
                    async { while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {} };
                let _held = timeout(Duration::from_millis(500), closed).await;
                // Each task does little, and all of them enough.
                sleep(Duration::from_millis(50)).await;
            }
        });
    }
    tasks.join_all().await;
}

fn attack(name: &'static str, counted: &'static str) -> Attack {
    let saturated = Some(Saturated { percent: 25, pace: 1000 });
    let counted = Some(counted);
    Attack { name, unit: "connections", units: 800, memory: 24, counted, saturated }
}

const LIMITED: &str =
    "isthmus_proxy_handshake_failure_total{direction=\"inbound\",reason=\"source_limit\"";

/// How often others come: in figures they are no part of the attack.
pub(crate) fn seldom() -> Duration {
    Duration::from_millis(if long().is_some() { 500 } else { 20 })
}

/// Somebody else still gets a session while the flood goes on.
async fn others_get_in(world: &World, pace: &Pace) {
    let config = credentials(world, &world.authority, "friend").client(ALPN_INNER, Allowed::Known);
    while pace.goes_on() {
        let stream = connect_from([127, 0, 0, 7], world.inbound()).await.unwrap();
        let secured = timeout(Duration::from_secs(20), tls::connect(config.clone(), stream)).await;
        secured.expect("it waits").expect("a session");
        sleep(seldom()).await;
    }
}

#[tokio::test]
async fn silent_connections_of_one_source_are_bounded() {
    let world = World::start().await;
    let run = async |pace: Arc<Pace>| {
        let flood = half_open(world.inbound(), Vec::new(), pace.clone());
        tokio::join!(flood, others_get_in(&world, &pace));
    };
    world.at_destination(attack("half-open connections", LIMITED), run).await;
}

#[tokio::test]
async fn handshakes_of_one_source_that_stop_halfway_are_bounded() {
    let world = World::start().await;
    let hello = hello_of(&credentials(&world, &world.authority, "nobody"), ALPN_INNER).await;
    let run = async |pace: Arc<Pace>| {
        let flood = half_open(world.inbound(), hello, pace.clone());
        tokio::join!(flood, others_get_in(&world, &pace));
    };
    world.at_destination(attack("TLS handshakes, half", LIMITED), run).await;
}

/// Each proves an identity that nobody vouches for.
#[tokio::test]
async fn handshakes_of_strangers_leave_sessions_alone() {
    const UNKNOWN: &str = "isthmus_proxy_handshake_failure_total{direction=\"inbound\"";
    let world = World::start().await;
    let saturated = Some(Saturated { percent: 25, pace: 250 });
    let attack =
        Attack { units: 200, saturated, ..attack("TLS handshakes with a false CA", UNKNOWN) };
    let config = credentials(&world, &Authority::new(DOMAIN), "checkout");
    let run = async |pace: Arc<Pace>| {
        let mut tasks = JoinSet::new();
        for _ in 0..if long().is_some() { 16 } else { 4 } {
            let (pace, door) = (pace.clone(), world.inbound());
            let config = config.client(ALPN_INNER, Allowed::Known);
            tasks.spawn(async move {
                while pace.goes_on() {
                    pace.turn(1).await;
                    let stream = connect_from([127, 0, 0, 66], door).await.unwrap();
                    pace.unit();
                    // Whoever waits for too long is not answered.
                    let Ok(mut stream) = tls::connect(config.clone(), stream).await else {
                        continue;
                    };
                    // It learns of its refusal when it reads (RFC 8446 section 4.4.2.4).
                    let refused = stream.read(&mut [0; 16]).await;
                    assert!(!matches!(refused, Ok(1..)));
                }
            });
        }
        tasks.join_all().await;
    };
    world.at_destination(attack, run).await;
}
