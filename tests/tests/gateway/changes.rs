//! Links and gateways that come, go, break and drain.

use super::*;

#[tokio::test]
async fn where_udp_is_blocked_tls_carries_the_link_until_quic_works() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let tuning = Tuning { quic_retry: Duration::from_millis(300), ..Tuning::default() };
    let (west, east) = (Site::new("west"), Site::new("east"));
    let both = [&west, &east];
    let west_gateway = start(&west, "gw-w", &both, any_doors(), tuning).await;
    let east_gateway = start(&east, "gw-e", &both, any_doors(), tuning).await;
    let pair = Pair { west, east, west_gateway, east_gateway };
    // Datagrams to this socket go nowhere.
    let hole = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let blocked = (Some(hole.local_addr().unwrap()), pair.east_gateway.tls);
    pair.publish(LinkTransport::Raced, address, blocked);
    let told = pair.west_gateway.linked("east").await;
    assert_eq!(told.tunnels[0].transport, "tls");
    assert_ne!(told.tunnels[0].reason, "");
    let caller = pair.caller(LinkTransport::Quic).await;
    let mut old = caller.open(&orders(), &[]).await.unwrap();

    pair.publish(LinkTransport::Raced, address, (pair.east_gateway.quic, pair.east_gateway.tls));
    pair.west_gateway
        .told(|told| told.tunnels.iter().any(|tunnel| tunnel.transport == "quic"))
        .await;
    // What runs in the old tunnel goes on, and new streams work.
    assert_eq!(exchange(&mut old, b"old").await.unwrap(), b"old");
    let mut new = caller.open(&orders(), &[]).await.unwrap();
    assert_eq!(exchange(&mut new, b"new").await.unwrap(), b"new");
    drop((old, new));
    // The old tunnel goes with its last stream.
    pair.west_gateway
        .told(|told| told.tunnels.iter().all(|tunnel| tunnel.transport == "quic"))
        .await;
    pair.stop().await;
}

#[tokio::test]
async fn a_gateway_that_comes_back_is_dialled_again() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let Pair { west, east, west_gateway, east_gateway } =
        Pair::new(LinkTransport::Raced, address).await;
    let doors = edge_proxy::config::GatewayDoors { quic: east_gateway.quic, tls: east_gateway.tls };
    let snapshot = east_gateway.app.shared.snapshot.load().unwrap();
    east_gateway.stop().await;
    west_gateway.told(|told| told.tunnels.is_empty()).await;
    let east_gateway = start(&east, "gw-e", &[&west, &east], doors, Tuning::default()).await;
    east_gateway.publish(mesh_core::Snapshot::clone(&snapshot));
    let pair = Pair { west, east, west_gateway, east_gateway };
    pair.west_gateway.linked("east").await;
    let caller = pair.caller(LinkTransport::Raced).await;
    let mut stream = caller.open(&orders(), &[]).await.unwrap();
    assert_eq!(exchange(&mut stream, b"back").await.unwrap(), b"back");
    pair.stop().await;
}

#[tokio::test]
async fn a_draining_gateway_refuses_new_streams_and_finishes_old_ones() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let mut old = caller.open(&orders(), &[]).await.unwrap();
        old.write_all(b"begun ").await.unwrap();
        old.flush().await.unwrap();
        let drain = pair.west_gateway.app.shared.drain.clone();
        drain.start();
        timeout(STEP, caller.ending()).await.expect("the drain is told");
        assert!(matches!(caller.open(&orders(), &[]).await, Err(OpenError::Closed)));
        assert_eq!(exchange(&mut old, b"and ended").await.unwrap(), b"begun and ended");
        drop(old);
        // Nothing is left to wait for.
        assert_eq!(timeout(STEP, drain.finish(STEP)).await.unwrap(), 0);
        pair.stop().await;
    }
}

#[tokio::test]
async fn the_source_hears_of_a_drain_at_the_far_gateway() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let mut drained = caller.drained_streams();
        let mut open = caller.open(&orders(), &[]).await.unwrap();
        pair.east_gateway.app.shared.drain.start();
        let ids = timeout(STEP, drained.recv()).await.expect("it is told").unwrap();
        assert_eq!(*ids, ["test-1".to_owned()]);
        // Its own gateway stays, and what runs goes on.
        assert!(caller.is_open());
        assert_eq!(exchange(&mut open, b"to the end").await.unwrap(), b"to the end");
        let got = refusal(&caller, &orders()).await;
        assert_eq!(got.0, RefusedReason::NoPath);
        pair.stop().await;
    }
}

#[tokio::test]
async fn a_link_that_ends_takes_its_tunnels_along() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Raced, address).await;
    let caller = pair.caller(LinkTransport::Raced).await;
    let mut open = caller.open(&orders(), &[]).await.unwrap();
    pair.east_gateway.publish(whole(vec![site(&pair.east, None), bundle(&pair.east)]));
    pair.east_gateway.told(|told| told.tunnels.is_empty()).await;
    let error = timeout(STEP, open.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    pair.stop().await;
}

#[tokio::test]
async fn the_transport_of_a_tunnel_is_the_one_that_was_asked_for() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Raced, address).await;
    for (asked, got) in [
        (LinkTransport::Quic, Transport::Quic),
        (LinkTransport::Tls, Transport::Tls),
        (LinkTransport::Raced, Transport::Quic),
    ] {
        assert_eq!(pair.caller(asked).await.transport(), got);
    }
    let told = pair.west_gateway.linked("east").await;
    assert_eq!((told.tunnels[0].transport.as_str(), told.tunnels[0].count), ("quic", 1));
    pair.stop().await;
}
