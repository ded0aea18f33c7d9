//! What gateways refuse, with which code, and what they count.

use super::*;

#[tokio::test]
async fn every_refusal_has_its_code_and_names_its_hop() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let (west, east) = (&pair.west, &pair.east);
        let workload = pair.caller(transport).await;
        let as_node = west.ca.sign(&SpiffeId::node(&west.ca.trust_domain, &node()), Some(&node()));
        let machine = dial(&pair.west_gateway, west, as_node, v1::Role::Node, transport).await;
        let linked =
            dial(&pair.east_gateway, east, west.ca.gateway(), v1::Role::Gateway, transport).await;
        let hops = |hops| Connect { hops, ..orders() };
        let cases = [
            (
                "site",
                &workload,
                connect("north", "orders.shop", "o-1"),
                RefusedReason::UnknownSite,
                "west/gw-w",
            ),
            (
                "service",
                &workload,
                connect("east", "carts.shop", "c-1"),
                RefusedReason::UnknownService,
                "west/gw-w",
            ),
            (
                "endpoint",
                &workload,
                connect("east", "orders.shop", "o-9"),
                RefusedReason::UnknownEndpoint,
                "west/gw-w",
            ),
            ("hops", &workload, hops(3), RefusedReason::HopLimit, "west/gw-w"),
            ("role", &machine, orders(), RefusedReason::Role, "west/gw-w"),
            (
                "not exported",
                &linked,
                connect("east", "billing.shop", "b-1"),
                RefusedReason::NotExported,
                "east/gw-e",
            ),
            (
                "unknown at the far end",
                &linked,
                connect("east", "carts.shop", "c-1"),
                RefusedReason::UnknownService,
                "east/gw-e",
            ),
            (
                "no session",
                &linked,
                connect("east", "orders.shop", "o-2"),
                RefusedReason::NoPath,
                "east/gw-e",
            ),
        ];
        for (what, session, connect, reason, hop) in cases {
            let got = refusal(session, &connect).await;
            assert_eq!(got, (reason, hop.to_owned()), "{what} over {transport:?}");
        }
        // None of these has cost the tunnels anything.
        let mut stream = workload.open(&orders(), &[]).await.unwrap();
        assert_eq!(exchange(&mut stream, b"still here").await.unwrap(), b"still here");
        pair.stop().await;
    }
}

#[tokio::test]
async fn over_a_link_only_the_gateway_of_the_other_site_is_accepted() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Raced, address).await;
    for transport in BOTH {
        let workload = pair.west.ca.workload("shop", "checkout", None);
        let refused =
            try_dial(&pair.east_gateway, &pair.east, workload, v1::Role::Workload, transport).await;
        refused.expect_err("a workload of west at the door of east");
        // Signed by the CA of west, and says that it is of east.
        let forged = pair.west.ca.sign(&SpiffeId::gateway(&pair.east.ca.trust_domain), None);
        let refused =
            try_dial(&pair.east_gateway, &pair.east, forged, v1::Role::Gateway, transport).await;
        refused.expect_err("a gateway of east that west has made up");
    }
    pair.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_unreachable_at_its_own_gateway() {
    let nobody = free();
    let pair = Pair::new(LinkTransport::Tls, nobody).await;
    let caller = pair.caller(LinkTransport::Tls).await;
    let got = refusal(&caller, &orders()).await;
    assert_eq!(got, (RefusedReason::Unreachable, "east/gw-e".to_owned()));
    pair.stop().await;
}

#[tokio::test]
async fn a_neighbour_over_its_quota_is_refused_and_others_are_not() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let limits = Limits { per_neighbour: 2, ..Limits::default() };
    let tuning = Tuning { limits, ..Tuning::default() };
    let pair = Pair::tuned(LinkTransport::Quic, address, tuning).await;
    let one = pair.caller(LinkTransport::Quic).await;
    // A second tunnel of the same neighbour does not double what it may open.
    let again = pair.caller(LinkTransport::Tls).await;
    let first = one.open(&orders(), &[]).await.unwrap();
    let _second = again.open(&orders(), &[]).await.unwrap();
    for session in [&one, &again] {
        assert_eq!(refusal(session, &orders()).await.0, RefusedReason::Quota);
    }
    let svid = pair.west.ca.workload("shop", "other", None);
    let other =
        dial(&pair.west_gateway, &pair.west, svid, v1::Role::Workload, LinkTransport::Quic).await;
    let _third = other.open(&orders(), &[]).await.unwrap();
    // What has ended makes room.
    let mut first = first;
    exchange(&mut first, b"done").await.unwrap();
    drop(first);
    let room = async {
        while one.open(&orders(), &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(STEP, room).await.unwrap();
    pair.stop().await;
}

#[tokio::test]
async fn what_was_carried_and_what_was_refused_is_counted() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Quic, address).await;
    let caller = pair.caller(LinkTransport::Quic).await;
    let mut stream = caller.open(&orders(), &[]).await.unwrap();
    exchange(&mut stream, b"12345").await.unwrap();
    refusal(&caller, &connect("north", "orders.shop", "o-1")).await;
    let wanted = [
        "isthmus_proxy_gateway_tunnels{neighbour=\"link\",site=\"east\",transport=\"quic\"} 1",
        "isthmus_proxy_gateway_bytes_total{neighbour=\"client\",site=\"\",direction=\"sent\"} 5",
        "isthmus_proxy_gateway_streams_refused_total{neighbour=\"client\",site=\"\",\
         reason=\"unknown_site\"} 1",
        "isthmus_proxy_gateway_streams{neighbour=\"client\",site=\"\"} 0",
    ];
    let counted = async {
        loop {
            let mut text = String::new();
            let registry = &pair.west_gateway.app.shared.metrics.registry;
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            match wanted.iter().find(|line| !text.contains(**line)) {
                None => return,
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(STEP, counted).await.expect("every line");
    pair.stop().await;
}
