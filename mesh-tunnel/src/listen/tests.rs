use std::{collections::BTreeSet, time::Duration};

use mesh_core::service::LinkTransport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    dial::Dialer,
    net::RealNet,
    retry::tests::{header, padded},
    session::tests::{dialer, door_of},
    testing::{Authority, credentials, trust},
    tls::pinned_client,
};

const BOTH: [LinkTransport; 2] = [LinkTransport::Quic, LinkTransport::Tls];
const LONG: Duration = Duration::from_secs(10);

async fn turned_away(door: &Door, code: &str) {
    for _ in 0..1000 {
        if door.turned_away().iter().any(|(seen, _)| *seen == code) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{code} not among {:?}", door.turned_away());
}

#[tokio::test]
async fn only_neighbours_get_a_tunnel() {
    let east = Authority::new("east.example");
    let west = Authority::new("west.example");
    let north = Authority::new("north.example");
    let all = [&east, &west];
    let far = credentials(&east, &east.gateway(), &all);
    let nobody = Credentials::new(None, trust(&all));
    let cases = [
        (credentials(&east, &east.workload("a"), &all), None),
        (credentials(&west, &west.gateway(), &all), None),
        (credentials(&west, &west.workload("a"), &all), Some("peer_not_allowed")),
        (credentials(&west, &east.gateway(), &all), Some("peer_untrusted_chain")),
        (credentials(&north, &north.gateway(), &all), Some("peer_unknown_trust_domain")),
        (nobody, Some("peer_no_certificate")),
    ];
    for (near, refused) in cases {
        for transport in BOTH {
            let (door, to) = door_of(&far, Allowed::Neighbour(east.domain.clone())).await;
            let dialer: Dialer = dialer(&near);
            let allowed = Allowed::Exactly(east.gateway());
            let result = dialer.dial(&to, allowed, transport, LONG).await;
            match refused {
                None => {
                    let session = result.unwrap();
                    let Arrival::Tunnel(far) = door.accept().await.unwrap() else { panic!() };
                    assert_eq!(far.peer().id, near.svid().unwrap().id);
                    drop(session);
                }
                Some(code) => {
                    let told = result.unwrap_err().to_string();
                    assert!(told.contains("our certificate"), "{told}");
                    turned_away(&door, code).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn garbage_on_either_socket_does_not_close_the_door() {
    let east = Authority::new("east.example");
    let far = credentials(&east, &east.gateway(), &[&east]);
    let (door, to) = door_of(&far, Allowed::Neighbour(east.domain.clone())).await;
    let tcp = door.local_addrs().1;
    let udp = door.local_addrs().0.unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..50u8 {
        let garbage: Vec<u8> = (0..1200u32).map(|i| (i * 31).to_be_bytes()[3] ^ n).collect();
        socket.send_to(&garbage, udp).unwrap();
        // What looks like the beginning of a long header.
        socket.send_to(&[&[0xc3, 0, 0, 0, 1, 8], &garbage[..]].concat()[..1200], udp).unwrap();
        let mut stream = RealNet.dial(tcp).await.unwrap();
        let _ = stream.write_all(&garbage).await;
    }
    // Plain HTTP, a TLS record cut short, and silence.
    let mut http = RealNet.dial(tcp).await.unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut cut = RealNet.dial(tcp).await.unwrap();
    cut.write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    drop(cut);
    let _silent = RealNet.dial(tcp).await.unwrap();
    turned_away(&door, "handshake_failed").await;

    let near = dialer(&credentials(&east, &east.workload("a"), &[&east]));
    for transport in BOTH {
        near.dial(&to, Allowed::Exactly(east.gateway()), transport, LONG).await.unwrap();
    }
}

#[tokio::test]
async fn tls_with_another_protocol_is_turned_away() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let (door, _) = door_of(&held, Allowed::Neighbour(east.domain.clone())).await;
    let allowed = Allowed::Exactly(east.gateway());
    let stream = RealNet.dial(door.local_addrs().1).await.unwrap();
    assert!(tls::connect(held.client(b"h2", allowed), stream).await.is_err());
    turned_away(&door, "handshake_failed").await;
}

#[tokio::test]
async fn joining_needs_no_certificate_and_has_limits() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let (door, _) = door_of(&held, Allowed::Neighbour(east.domain.clone())).await;
    let config = pinned_client(mesh_api::ALPN_JOIN, east.pin(), Allowed::Exactly(east.gateway()));
    let tcp = door.local_addrs().1;
    let join = || async { tls::connect(config.clone(), RealNet.dial(tcp).await?).await };

    let mut near = join().await.unwrap();
    let Arrival::Join(mut far, from) = door.accept().await.unwrap() else { panic!() };
    assert!(from.ip().is_loopback());
    near.write_all(b"hello").await.unwrap();
    let mut got = [0; 5];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"hello");

    // Bytes are limited.
    let flood = tokio::spawn(async move { near.write_all(&vec![0; 64 << 20]).await });
    let error = tokio::io::copy(&mut far, &mut tokio::io::sink()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    drop(far);
    assert!(flood.await.unwrap().is_err());

    // And so is how many there are.
    let mut joined = Vec::new();
    while let Ok(stream) = join().await {
        joined.push(stream);
        assert!(joined.len() <= 64);
    }
    turned_away(&door, "join_limit").await;
}

#[tokio::test]
async fn a_closed_door_keeps_its_tunnels() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let near = dialer(&credentials(&east, &east.workload("a"), &[&east]));
    for transport in BOTH {
        let (door, to) = door_of(&held, Allowed::Neighbour(east.domain.clone())).await;
        let allowed = || Allowed::Exactly(east.gateway());
        let session = near.dial(&to, allowed(), transport, LONG).await.unwrap();
        let Arrival::Tunnel(far) = door.accept().await.unwrap() else { panic!() };
        door.close();
        assert!(door.accept().await.is_err());
        let late = near.dial(&to, allowed(), transport, Duration::from_secs(2)).await;
        assert!(late.is_err());
        drop(door);
        far.announce(vec!["still here".into()]);
        session.announced().changed().await.unwrap();
        assert!(session.is_open() && far.is_open());
    }
}

/// A connection that says nothing.
fn silent(from: [u8; 4], to: std::net::SocketAddr) -> std::net::TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// Even those that nobody can decrypt, of which the endpoint drops most.
async fn first_packets_are_answered_unread(door: std::net::SocketAddr) {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let said = (0..16u8).map(|n| padded(header(&[n; 8], &[n], &[0], &[20])));
    let said: Vec<_> = said.collect();
    let (mut answered, mut buf) = (BTreeSet::new(), [0; 2048]);
    for _ in 0..100 {
        for datagram in &said {
            socket.send_to(datagram, door).await.unwrap();
        }
        while let Ok(got) = timeout(Duration::from_millis(20), socket.recv(&mut buf)).await {
            assert!(got.unwrap() < 200 && buf[..6] == [0xf0, 0, 0, 0, 1, 1]);
            answered.insert(buf[6]);
        }
        if answered.len() == said.len() {
            return;
        }
    }
    panic!("only {answered:?}");
}

#[tokio::test]
async fn under_load_quic_clients_prove_their_address() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let near = dialer(&credentials(&east, &east.workload("a"), &[&east]));
    let (door, to) = door_of(&held, Allowed::Neighbour(east.domain.clone())).await;
    let tcp = door.local_addrs().1;
    let _silent: Vec<_> = (0..80).map(|n| silent([127, 0, 1, 1 + n % 2], tcp)).collect();
    // The handshakes have begun when the same address gets no more of them.
    let _more: Vec<_> = (0..80).map(|_| silent([127, 0, 1, 1], tcp)).collect();
    turned_away(&door, "source_limit").await;
    let allowed = Allowed::Exactly(east.gateway());
    near.dial(&to, allowed, LinkTransport::Quic, LONG).await.unwrap();
    turned_away(&door, "quic_retry").await;
    first_packets_are_answered_unread(door.local_addrs().0.unwrap()).await;
}

#[tokio::test]
async fn a_flood_of_half_open_connections_leaves_tunnels_alone() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let near = dialer(&credentials(&east, &east.workload("a"), &[&east]));
    let (door, to) = door_of(&held, Allowed::Neighbour(east.domain.clone())).await;
    let allowed = Allowed::Exactly(east.gateway());
    let session = near.dial(&to, allowed, LinkTransport::Tls, LONG).await.unwrap();
    let Arrival::Tunnel(far) = door.accept().await.unwrap() else { panic!() };
    let mut silent = Vec::new();
    for _ in 0..100 {
        // One that is turned away may be reset at once.
        silent.extend(RealNet.dial(door.local_addrs().1).await.ok());
    }
    turned_away(&door, "source_limit").await;
    far.announce(vec!["still here".into()]);
    session.announced().changed().await.unwrap();
    // QUIC clients must now prove their address, and then get in if there is
    // room; when the silent ones have timed out, everybody does.
    turned_away(&door, "handshake_timeout").await;
    let allowed = Allowed::Exactly(east.gateway());
    near.dial(&to, allowed, LinkTransport::Quic, LONG).await.unwrap();
}
