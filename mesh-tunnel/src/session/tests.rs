//! One table of behaviours, over every transport.

mod begin;
mod traced;

use std::{
    io::ErrorKind,
    sync::{Arc, Mutex},
    time::Duration,
};

use mesh_core::{
    Allowed, SpiffeId,
    path::{Connect, RefusedReason},
    service::LinkTransport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    dial::{Dialer, GatewayAddresses},
    listen::{Arrival, Door, Doors},
    net::{Net, RealNet},
    testing::{Authority, credentials, trust},
    tls::{Credentials, Trust},
};

const TRANSPORTS: [LinkTransport; 2] = [LinkTransport::Quic, LinkTransport::Tls];
const LONG: Duration = Duration::from_secs(10);

pub(crate) fn connect(name: &str) -> Connect {
    Connect {
        site: "east".parse().unwrap(),
        service: "orders.shop".parse().unwrap(),
        port: "http".parse().unwrap(),
        endpoint: Some("e1".parse().unwrap()),
        hops: 0,
        connection_id: name.into(),
    }
}

/// A gateway of `east` and a workload of the same domain that has dialled it.
struct Tunnel {
    near: Session,
    far: Session,
    near_credentials: Arc<Credentials>,
    far_credentials: Arc<Credentials>,
    east: Authority,
    _door: Door,
}

pub(crate) async fn door_of(
    credentials: &Arc<Credentials>,
    allowed: Allowed,
) -> (Door, GatewayAddresses) {
    let any = ([127, 0, 0, 1], 0).into();
    let doors = Doors {
        net: Arc::new(RealNet),
        credentials: credentials.clone(),
        allowed,
        hello: hello("east", "gw-1"),
        quic: Some(any),
        tls: any,
        turned_away: Default::default(),
    };
    let door = Door::open(doors).await.unwrap();
    let (udp, tcp) = door.local_addrs();
    let quic = vec![udp.unwrap().to_string().into()];
    (door, GatewayAddresses { quic, tls: vec![tcp.to_string().into()] })
}

pub(crate) fn hello(site: &str, gateway: &str) -> v1::Hello {
    v1::Hello { site: site.into(), gateway: gateway.into(), ..v1::Hello::default() }
}

pub(crate) fn dialer(credentials: &Arc<Credentials>) -> Dialer {
    Dialer {
        net: Arc::new(RealNet) as Arc<dyn Net>,
        credentials: credentials.clone(),
        hello: hello("east", ""),
    }
}

async fn tunnel(transport: LinkTransport) -> Tunnel {
    let east = Authority::new("east.example");
    let far_credentials = credentials(&east, &east.gateway(), &[&east]);
    let near_credentials = credentials(&east, &east.workload("checkout"), &[&east]);
    let (door, to) = door_of(&far_credentials, Allowed::Neighbour(east.domain.clone())).await;
    let dialer = dialer(&near_credentials);
    let allowed = Allowed::Exactly(east.gateway());
    let (near, far) = tokio::join!(dialer.dial(&to, allowed, transport, LONG), door.accept());
    let Arrival::Tunnel(far) = far.unwrap() else { panic!("not a tunnel") };
    Tunnel { near: near.unwrap(), far, near_credentials, far_credentials, east, _door: door }
}

/// Both ends of one accepted stream.
async fn stream(near: &Session, far: &Session) -> (TunnelStream, TunnelStream) {
    let connect = connect("s");
    let (a, b) = tokio::join!(near.open(&connect, b""), async {
        far.accept().await.unwrap().accept().await.unwrap()
    });
    (a.unwrap(), b)
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 10 s");
}

#[tokio::test]
async fn both_sides_know_each_other() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        assert_eq!(t.near.peer().id, t.east.gateway());
        assert_eq!(t.far.peer().id, t.east.workload("checkout"));
        assert_eq!(t.near.hello().gateway, "gw-1");
        assert_eq!(t.far.hello().role(), v1::Role::Workload);
        assert_eq!(t.near.transport(), t.far.transport());
        assert!(t.near.chosen_because().starts_with("pinned"), "{}", t.near.chosen_because());
        eventually("round trip", || t.near.rtt().is_some() && t.far.rtt().is_some()).await;
    }
}

#[tokio::test]
async fn bytes_go_both_ways_and_half_close() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        for (one, other) in [(&t.near, &t.far), (&t.far, &t.near)] {
            let (mut a, mut b) = stream(one, other).await;
            a.write_all(b"question").await.unwrap();
            a.shutdown().await.unwrap();
            let mut got = Vec::new();
            b.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"question");
            b.write_all(b"answer").await.unwrap();
            b.shutdown().await.unwrap();
            got.clear();
            a.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"answer");
        }
        eventually("all streams ended", || t.near.streams() + t.far.streams() == 0).await;
    }
}

#[tokio::test]
async fn what_was_finished_arrives_although_everything_is_dropped() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let (mut a, mut b) = stream(&t.near, &t.far).await;
        let sent = vec![7; 200_000];
        let bytes = sent.clone();
        let writer = tokio::spawn(async move {
            a.write_all(&bytes).await.unwrap();
            a.shutdown().await.unwrap();
        });
        drop(t.near);
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} of {}", got.len(), sent.len());
        writer.await.unwrap();
        drop(b);
        t.far.closed().await;
    }
}

#[tokio::test]
async fn resets_read_as_connection_reset() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        for explicit in [true, false] {
            let (mut a, mut b) = stream(&t.near, &t.far).await;
            a.write_all(b"some").await.unwrap();
            if explicit {
                a.reset();
            }
            drop(a);
            let mut got = Vec::new();
            let error = b.read_to_end(&mut got).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            let error = loop {
                if let Err(error) = b.write_all(&[0; 10_000]).await {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        assert!(t.near.is_open());
        eventually("all streams ended", || t.near.streams() + t.far.streams() == 0).await;
    }
}

#[tokio::test]
async fn early_bytes_travel_ahead_of_the_answer() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        for length in [0, 1, MAX_EARLY, MAX_EARLY + 1, 300_000] {
            let early: Vec<u8> = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let connect = connect("early");
            let opened = async {
                let mut stream = t.near.open(&connect, &early).await.unwrap();
                stream.shutdown().await.unwrap();
                stream
            };
            let accepted = async {
                let mut incoming = t.far.accept().await.unwrap();
                assert_eq!(incoming.connect, connect);
                // Before the answer.
                let mut ahead = vec![0; length.min(MAX_EARLY)];
                incoming.stream.read_exact(&mut ahead).await.unwrap();
                let mut stream = incoming.accept().await.unwrap();
                stream.read_to_end(&mut ahead).await.unwrap();
                assert!(ahead == early, "{length}");
            };
            let _ = tokio::join!(opened, accepted);
        }
    }
}

#[tokio::test]
async fn refusals_name_reason_and_hop() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let connect = connect("no");
        let (opened, ()) = tokio::join!(t.near.open(&connect, b"early"), async {
            let incoming = t.far.accept().await.unwrap();
            incoming.refuse(RefusedReason::NotExported, "east/gw-1", "orders.shop").await;
        });
        match opened.unwrap_err() {
            OpenError::Refused { reason, hop, detail } => {
                assert_eq!(reason, RefusedReason::NotExported);
                assert_eq!((hop.as_str(), detail.as_str()), ("east/gw-1", "orders.shop"));
            }
            other => panic!("{other}"),
        }
        eventually("all streams ended", || t.near.streams() + t.far.streams() == 0).await;
    }
}

#[tokio::test]
async fn dropped_without_an_answer_is_a_refusal() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let connect = connect("dropped");
        let (opened, ()) =
            tokio::join!(t.near.open(&connect, b""), async { drop(t.far.accept().await) });
        assert!(matches!(opened, Err(OpenError::Refused { .. })), "{opened:?}");
    }
}

#[tokio::test]
async fn malformed_headers_and_addresses_are_refused_and_told() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let long = vec![0xff; usize::from(u16::MAX)];
        let unnamed = wire::framed(&v1::Connect::default()).unwrap();
        let mut address = v1::Connect::from(&connect("a"));
        address.service = "10.0.0.1:80".into();
        let address = wire::framed(&address).unwrap();
        let cases: [&[u8]; 4] = [&[0, 3, 0xff, 0xff, 0xff], &long, &unnamed, &address];
        let acceptor = tokio::spawn({
            let far = t.far.clone();
            async move {
                let mut refused = Vec::new();
                loop {
                    match far.accept_or_refuse().await.unwrap() {
                        Ok(incoming) => break (refused, incoming.accept().await.unwrap()),
                        Err(header) => refused.push(header.reason),
                    }
                }
            }
        });
        let reasons =
            [RefusedReason::Malformed; 3].into_iter().chain([RefusedReason::ForbiddenTarget]);
        let reasons: Vec<RefusedReason> = reasons.collect();
        for (case, reason) in cases.into_iter().zip(&reasons) {
            let mut raw = t.near.shared().carrier.open().await.unwrap();
            raw.write_all(case).await.unwrap();
            raw.flush().await.unwrap();
            let reply: v1::ConnectReply = wire::read(&mut raw, 4096).await.unwrap();
            let Some(v1::connect_reply::Reply::Refused(refused)) = reply.reply else {
                panic!("accepted")
            };
            assert_eq!(RefusedReason::from(refused.reason()), *reason);
        }
        t.near.open(&connect("good"), b"").await.unwrap();
        let (refused, _stream) = acceptor.await.unwrap();
        assert_eq!(refused, reasons);
    }
}

#[tokio::test]
async fn large_transfers_arrive_whole_in_both_directions() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let (a, b) = stream(&t.near, &t.far).await;
        let bytes: Arc<Vec<u8>> = Arc::new(
            (0..8_000_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect(),
        );
        let copy = |stream: TunnelStream, bytes: Arc<Vec<u8>>| async move {
            let (mut read, mut write) = tokio::io::split(stream);
            let mut got = Vec::new();
            let (sent, received) = tokio::join!(
                async {
                    write.write_all(&bytes).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut got)
            );
            sent.unwrap();
            received.unwrap();
            assert!(got == *bytes);
        };
        tokio::join!(copy(a, bytes.clone()), copy(b, bytes));
    }
}

#[tokio::test]
async fn a_stalled_stream_does_not_block_others() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let mut stalled = Vec::new();
        for _ in 0..8 {
            let (mut a, b) = stream(&t.near, &t.far).await;
            let writer = tokio::spawn(async move {
                // Ends when the other side is dropped unread.
                let _ = a.write_all(&vec![0; 4 << 20]).await;
            });
            stalled.push((writer, b));
        }
        for _ in 0..3 {
            let (mut a, mut b) = stream(&t.near, &t.far).await;
            let (sent, got) = tokio::join!(
                async {
                    a.write_all(&vec![1; 1 << 20]).await?;
                    a.shutdown().await
                },
                async {
                    let mut got = Vec::new();
                    b.read_to_end(&mut got).await.map(|_| got.len())
                }
            );
            sent.unwrap();
            assert_eq!(got.unwrap(), 1 << 20);
        }
        for (writer, b) in stalled {
            assert!(!writer.is_finished());
            drop(b);
            writer.await.unwrap();
        }
    }
}

#[tokio::test]
async fn streams_over_the_limit_are_refused() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let keep = Mutex::new(Vec::new());
        let far = t.far.clone();
        let acceptor = tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Some(incoming) = far.accept().await {
                kept.push(incoming.accept().await.unwrap());
            }
        });
        for _ in 0..MAX_STREAMS {
            let stream = t.near.open(&connect("many"), b"").await.unwrap();
            keep.lock().unwrap().push(stream);
        }
        let error = t.near.open(&connect("more"), b"").await.unwrap_err();
        let quota = matches!(error, OpenError::Refused { reason: RefusedReason::Quota, .. });
        assert!(quota, "{error}");
        acceptor.abort();
    }
}

#[tokio::test]
async fn drains_sessions_and_stream_drains_arrive() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let (mut a, mut b) = stream(&t.near, &t.far).await;
        let mut drained = t.near.drained_streams();
        let mut announced = t.far.announced();
        t.far.drain_streams(vec!["c1".into(), "c2".into()]);
        assert_eq!(drained.recv().await.unwrap().to_vec(), ["c1", "c2"]);
        t.near.announce(vec!["e1".into()]);
        announced.changed().await.unwrap();
        assert_eq!(announced.borrow().to_vec(), ["e1"]);

        // Who leaves still takes what can go nowhere else.
        t.far.leave(LONG);
        t.near.ending().await;
        assert!(t.near.peer_draining() && !t.near.is_open() && t.near.is_usable());
        stream(&t.near, &t.far).await;

        t.far.drain(LONG);
        let told = async {
            while t.near.is_usable() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(LONG, told).await.unwrap();
        assert!(t.near.peer_draining() && !t.near.is_open() && t.far.is_open());
        assert!(matches!(t.near.open(&connect("late"), b"").await, Err(OpenError::Closed)));
        // What runs goes on, and the draining side may still open streams.
        a.write_all(b"x").await.unwrap();
        assert_eq!(b.read_u8().await.unwrap(), b'x');
        stream(&t.far, &t.near).await;
    }
}

#[tokio::test]
async fn a_close_is_told_with_its_reason_and_resets_streams() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let (mut a, _b) = stream(&t.near, &t.far).await;
        t.far.close("maintenance");
        let error = a.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert!(t.near.closed().await.contains("maintenance"));
        assert_eq!(t.far.closed().await, "maintenance");
        assert!(t.near.accept().await.is_none());
        assert!(matches!(t.near.open(&connect("late"), b"").await, Err(OpenError::Closed)));
    }
}

#[tokio::test]
async fn a_session_ends_when_nobody_holds_it() {
    for transport in TRANSPORTS {
        let t = tunnel(transport).await;
        let (a, b) = stream(&t.near, &t.far).await;
        drop(t.near);
        let (mut c, mut d) = {
            // The open stream still holds it.
            let near = a.session().clone();
            stream(&near, &t.far).await
        };
        c.write_all(b"x").await.unwrap();
        assert_eq!(d.read_u8().await.unwrap(), b'x');
        drop((a, b, c, d));
        let why = t.far.closed().await;
        assert!(why.contains("no longer needed"), "{why}");
    }
}

#[tokio::test]
async fn a_peer_that_is_no_longer_believed_is_cut() {
    for transport in TRANSPORTS {
        let revoked = |t: &Tunnel, id: SpiffeId| {
            let mut revocations = (*t.far_credentials.trust().revocations).clone();
            revocations.identities.insert(id);
            Trust { revocations: Arc::new(revocations), ..t.far_credentials.trust() }
        };
        let t = tunnel(transport).await;
        let (mut a, _b) = stream(&t.near, &t.far).await;
        t.far_credentials.replace_trust(revoked(&t, t.east.workload("other")));
        stream(&t.near, &t.far).await;
        t.far_credentials.replace_trust(revoked(&t, t.east.workload("checkout")));
        let why = t.near.closed().await;
        assert!(why.contains("peer_revoked"), "{why}");
        assert_eq!(a.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);

        // The bundle goes.
        let t = tunnel(transport).await;
        t.near_credentials.replace_trust(trust(&[]));
        let why = t.near.closed().await;
        assert!(why.contains("peer_unknown_trust_domain"), "{why}");
    }
}

#[tokio::test]
async fn a_session_is_drained_and_ended_with_the_peers_leaf() {
    let over = |transport| async move {
        let east = Authority::new("east.example");
        let far = credentials(&east, &east.gateway(), &[&east]);
        let (door, to) = door_of(&far, Allowed::Neighbour(east.domain.clone())).await;
        let short = east.svid_for(&east.workload("checkout"), Duration::from_secs(7));
        let near = Credentials::new(Some(short), trust(&[&east]));
        let dialler = dialer(&near);
        let allowed = Allowed::Exactly(east.gateway());
        let (near, far) = tokio::join!(dialler.dial(&to, allowed, transport, LONG), door.accept());
        let (near, Arrival::Tunnel(far)) = (near.unwrap(), far.unwrap()) else { panic!() };
        near.ending().await;
        assert!(near.is_usable(), "for whoever has no other tunnel yet");
        stream(&near, &far).await;
        assert!(near.closed().await.contains("certificate has ended"));
        assert!(far.closed().await.contains("certificate has ended"));
    };
    tokio::join!(over(LinkTransport::Quic), over(LinkTransport::Tls));
}

#[tokio::test]
async fn a_session_goes_on_with_a_leaf_that_was_renewed() {
    let over = |transport| async move {
        let east = Authority::new("east.example");
        let short = |id: &SpiffeId| {
            let svid = east.svid_for(id, Duration::from_secs(5));
            Credentials::new(Some(svid), trust(&[&east]))
        };
        let (near_id, far_id) = (east.workload("checkout"), east.gateway());
        let (near_credentials, far_credentials) = (short(&near_id), short(&far_id));
        let (door, to) = door_of(&far_credentials, Allowed::Neighbour(east.domain.clone())).await;
        let dialler = dialer(&near_credentials);
        let allowed = Allowed::Exactly(far_id.clone());
        let (near, far) = tokio::join!(dialler.dial(&to, allowed, transport, LONG), door.accept());
        let (near, Arrival::Tunnel(far)) = (near.unwrap(), far.unwrap()) else { panic!() };
        let (mut a, mut b) = stream(&near, &far).await;
        near_credentials.replace_svid(east.svid(&near_id));
        far_credentials.replace_svid(east.svid(&far_id));
        tokio::time::sleep(Duration::from_secs(6)).await;
        assert!(near.is_open() && far.is_open());
        a.write_u8(1).await.unwrap();
        assert_eq!(b.read_u8().await.unwrap(), 1);
        // Whoever is revoked is cut by what it has shown last.
        let mut revocations = (*far_credentials.trust().revocations).clone();
        revocations.identities.insert(near_id);
        let trust = Trust { revocations: Arc::new(revocations), ..far_credentials.trust() };
        far_credentials.replace_trust(trust);
        assert!(near.closed().await.contains("peer_revoked"));
    };
    tokio::join!(over(LinkTransport::Quic), over(LinkTransport::Tls));
}

#[tokio::test]
async fn the_first_words_must_agree() {
    let cases = [
        (v1::Hello { versions: vec![99], ..hello("east", "") }, "no common version"),
        (v1::Hello { role: v1::Role::Gateway.into(), ..hello("east", "") }, "ROLE_GATEWAY"),
        (v1::Hello { role: 77, ..hello("east", "") }, "ROLE_UNSPECIFIED"),
    ];
    for transport in TRANSPORTS {
        for (hello, expected) in &cases {
            let east = Authority::new("east.example");
            let far = credentials(&east, &east.gateway(), &[&east]);
            let near = credentials(&east, &east.workload("checkout"), &[&east]);
            let (_door, to) = door_of(&far, Allowed::Neighbour(east.domain.clone())).await;
            let dialer = Dialer { hello: hello.clone(), ..dialer(&near) };
            let allowed = Allowed::Exactly(east.gateway());
            let result = dialer.dial(&to, allowed, transport, LONG).await;
            // The dialler may have its Hello before ours is judged.
            let why = match result {
                Err(error) => error.to_string(),
                Ok(session) => session.closed().await,
            };
            assert!(why.contains(expected), "{why}");
        }
    }
}
