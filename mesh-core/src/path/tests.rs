use std::{net::IpAddr, sync::Arc};

use mesh_api::v1::{self, ResourceKind, resource::Resource as Kind};

use super::{Connect, MAX_HOPS, NextHop, Own, Path, RefusedReason, forward, is_reachable, path_to};
use crate::{
    example::{NODE, OTHER_NODE, change, endpoint, gateway, mesh, peer, service},
    name::{GatewayId, NodeId},
    snapshot::{Snapshot, apply},
};

const WEB: &str = "spiffe://east.example/ns/shop/sa/web";
const FEDERATION: &str = "federation.isthmus-system";

fn with(upsert: Vec<Kind>, remove: Vec<(ResourceKind, &str)>) -> Snapshot {
    let mesh = mesh();
    apply(Some(&mesh), &change(&mesh, upsert, remove)).unwrap()
}

fn connect(site: &str, service: &str, endpoint: &str) -> Connect {
    Connect {
        site: site.parse().unwrap(),
        service: service.parse().unwrap(),
        port: "http".parse().unwrap(),
        endpoint: (!endpoint.is_empty()).then(|| endpoint.parse().unwrap()),
        hops: 0,
        connection_id: "c-1".into(),
    }
}

/// Of gateway `gw-1`, which holds a session of no node.
fn ask(snapshot: &Snapshot, neighbour: &str, connect: &Connect) -> Result<NextHop, RefusedReason> {
    ask_with(snapshot, neighbour, connect, |_| false)
}

fn ask_with(
    snapshot: &Snapshot,
    neighbour: &str,
    connect: &Connect,
    sessions: impl Fn(&NodeId) -> bool,
) -> Result<NextHop, RefusedReason> {
    let listens = ["10.0.0.4:8443", "0.0.0.0:4191"].map(|addr| addr.parse().unwrap());
    let host: IpAddr = "10.0.7.4".parse().unwrap();
    let id = "gw-1".parse().unwrap();
    let own = Own { id: &id, listens: &listens, has: &|ip| ip == host, holds: &sessions };
    forward(snapshot, own, &peer(neighbour, None), connect)
}

fn dial() -> NextHop {
    NextHop::Dial { addr: "10.1.2.3:4143".parse().unwrap(), identity: WEB.parse().unwrap() }
}

fn to_federation() -> NextHop {
    NextHop::Federation("10.0.0.5:8446".parse().unwrap())
}

fn link(site: &str) -> NextHop {
    NextHop::Link(site.parse().unwrap())
}

/// Everybody who may be at the other end of a tunnel, against every kind of
/// target.
#[test]
fn who_reaches_what() {
    use RefusedReason::{NotExported, Role, UnknownSite, Unsupported};
    let node = format!("spiffe://east.example/node/{NODE}");
    let who = [
        WEB,
        &node,
        "spiffe://east.example/ns/isthmus-system/sa/federation",
        "spiffe://east.example/ns/isthmus-system/sa/gateway",
        "spiffe://west.example/ns/isthmus-system/sa/gateway",
        "spiffe://north.example/ns/isthmus-system/sa/gateway",
        "spiffe://west.example/ns/shop/sa/web",
        "spiffe://west.example/ns/isthmus-system/sa/federation",
        "spiffe://south.example/ns/isthmus-system/sa/gateway",
    ];
    let refused = Err::<NextHop, _>;
    let (role, not_exported) = (|| refused(Role), || refused(NotExported));
    let (unknown, transit) = (|| refused(UnknownSite), || refused(Unsupported));
    let (dial, federation) = (|| Ok(dial()), || Ok(to_federation()));
    let west = || Ok(link("west"));
    let cases = [
        (
            connect("east", "orders.shop", "o-1"),
            [dial(), role(), role(), dial(), dial(), not_exported()],
        ),
        (
            connect("east", "billing.shop", "b-1"),
            [dial(), role(), role(), dial(), not_exported(), not_exported()],
        ),
        (
            connect("west", "search.shop", "s-1"),
            [west(), role(), role(), role(), transit(), transit()],
        ),
        (
            connect("east", FEDERATION, ""),
            [federation(), federation(), federation(), role(), federation(), federation()],
        ),
        (connect("west", FEDERATION, ""), [role(), role(), west(), role(), transit(), transit()]),
        (
            connect("south", FEDERATION, ""),
            [unknown(), unknown(), unknown(), unknown(), unknown(), unknown()],
        ),
        (
            connect("south", "orders.shop", "o-1"),
            [unknown(), role(), role(), unknown(), unknown(), unknown()],
        ),
    ];
    let mesh = mesh();
    for (connect, expected) in cases {
        // Whoever is no gateway of a link, and gateways of no link.
        let strangers = [role(), role(), role()];
        for (who, expected) in who.iter().zip(expected.into_iter().chain(strangers)) {
            assert_eq!(ask(&mesh, who, &connect), expected, "{who} {connect:?}");
        }
    }
}

#[test]
fn names_that_are_not_there() {
    use RefusedReason::{Malformed, UnknownEndpoint, UnknownService};
    let mesh = mesh();
    let other_port =
        Connect { port: "admin".parse().unwrap(), ..connect("east", "orders.shop", "o-1") };
    let cases = [
        (connect("east", "none.shop", "o-1"), UnknownService),
        (connect("east", "orders.shop", "o-7"), UnknownEndpoint),
        (connect("east", "orders.shop", "b-1"), UnknownEndpoint),
        (connect("west", "orders.shop", "o-1"), UnknownEndpoint),
        (connect("east", "orders.shop", ""), Malformed),
        (other_port, UnknownEndpoint),
    ];
    for (connect, expected) in cases {
        assert_eq!(ask(&mesh, WEB, &connect), Err(expected), "{connect:?}");
    }
    let west = "spiffe://west.example/ns/isthmus-system/sa/gateway";
    for (connect, expected) in [
        (connect("east", "none.shop", "o-1"), UnknownService),
        (connect("east", "orders.shop", "o-7"), UnknownEndpoint),
        (connect("east", "orders.shop", ""), Malformed),
    ] {
        assert_eq!(ask(&mesh, west, &connect), Err(expected), "{connect:?}");
    }
}

/// Nothing but a proxy's own file can say so; a gateway that read it anyhow
/// has nobody to verify.
#[test]
fn an_application_without_a_proxy_is_not_dialled() {
    let mut mesh = mesh();
    let to = connect("east", "orders.shop", "o-1");
    assert_eq!(ask(&mesh, WEB, &to), Ok(dial()));
    let service = mesh.services.get_mut("orders.shop").unwrap();
    for endpoint in &mut Arc::make_mut(service).endpoints {
        Arc::make_mut(endpoint).identity = None;
    }
    assert_eq!(ask(&mesh, WEB, &to), Err(RefusedReason::UnknownEndpoint));
}

#[test]
fn the_hop_limit_comes_first() {
    let mesh = mesh();
    for hops in 0..=5 {
        let connect = Connect { hops, ..connect("east", "orders.shop", "o-1") };
        let expected = if hops < MAX_HOPS { Ok(dial()) } else { Err(RefusedReason::HopLimit) };
        assert_eq!(ask(&mesh, WEB, &connect), expected);
    }
    let stranger = "spiffe://south.example/ns/shop/sa/web";
    let connect = Connect { hops: u8::MAX, ..connect("east", "none.shop", "o-1") };
    assert_eq!(ask(&mesh, stranger, &connect), Err(RefusedReason::HopLimit));
}

#[test]
fn sessions_and_siblings() {
    let mesh = mesh();
    let connect = connect("east", "orders.shop", "o-2");
    let node: NodeId = OTHER_NODE.parse().unwrap();
    let west = "spiffe://west.example/ns/isthmus-system/sa/gateway";
    let sibling = "spiffe://east.example/ns/isthmus-system/sa/gateway";
    let holds = |held: &NodeId| *held == OTHER_NODE.parse().unwrap();
    for who in [WEB, west, sibling] {
        let session = ask_with(&mesh, who, &connect, holds);
        assert_eq!(session, Ok(NextHop::Session(node.clone())), "{who}");
    }
    let handed_on = NextHop::Sibling(vec!["gw-2".parse().unwrap()], node.clone());
    assert_eq!(ask(&mesh, WEB, &connect), Ok(handed_on.clone()));
    assert_eq!(ask(&mesh, west, &connect), Ok(handed_on));
    // Only once.
    assert_eq!(ask(&mesh, sibling, &connect), Err(RefusedReason::NoPath));
}

/// `via` is what federation heard last; it may be stale.
#[test]
fn siblings_that_are_no_use() {
    let o_2 = |via: &[&str], node: &str| {
        Kind::Endpoint(v1::Endpoint {
            address: String::new(),
            via: via.iter().map(ToString::to_string).collect(),
            node: node.into(),
            ..endpoint("orders.shop", "east", "o-2")
        })
    };
    let far = Kind::Gateway(v1::Gateway { site: "west".into(), ..gateway("gw-9") });
    let cases = [
        (o_2(&["gw-1", "gw-9"], NODE), Err(RefusedReason::NoPath)),
        (o_2(&[], NODE), Err(RefusedReason::NoPath)),
        (o_2(&["gw-2"], ""), Err(RefusedReason::NoPath)),
        (
            o_2(&["gw-1", "gw-2", "gw-9"], NODE),
            Ok(NextHop::Sibling(vec!["gw-2".parse().unwrap()], NODE.parse().unwrap())),
        ),
    ];
    for (endpoint, expected) in cases {
        let snapshot = with(vec![far.clone(), endpoint], vec![]);
        assert_eq!(ask(&snapshot, WEB, &connect("east", "orders.shop", "o-2")), expected);
    }
}

#[test]
fn no_way_to_federation() {
    let mut mesh = mesh();
    mesh.federation = None;
    let connect = connect("east", FEDERATION, "");
    assert_eq!(ask(&mesh, WEB, &connect), Err(RefusedReason::NoPath));
}

/// The mesh with `o-1` at this address.
fn claiming(address: &str, more: Vec<Kind>) -> Snapshot {
    let claim = v1::Endpoint { address: address.into(), ..endpoint("orders.shop", "east", "o-1") };
    with([vec![Kind::Endpoint(claim)], more].concat(), vec![])
}

/// Whoever asks, and whatever federation has let in.
#[test]
fn an_endpoint_cannot_make_a_gateway_dial_the_mesh_itself_or_its_host() {
    let far = Kind::Gateway(v1::Gateway {
        site: "west".into(),
        tls_addresses: vec!["198.51.100.9:8443".into()],
        quic_addresses: vec!["198.51.100.9:9443".into()],
        ..gateway("gw-9")
    });
    let forbidden = [
        // Federation's door, and its address in other words.
        "10.0.0.5:8446",
        "[::ffff:10.0.0.5]:8446",
        // Ports of this gateway: one address, and all that its host has.
        "10.0.0.4:8443",
        "10.0.7.4:4191",
        // Gateways: of this site and of a linked one.
        "192.0.2.1:8443",
        "198.51.100.9:8443",
        "198.51.100.9:9443",
        // No host of the site.
        "127.0.0.1:4143",
        "[::1]:4143",
        "0.1.2.3:4143",
        "[::ffff:0.0.0.0]:4143",
        "[::ffff:224.0.0.1]:4143",
        "255.255.255.255:4143",
        "169.254.169.254:80",
        "[fe80::1]:4143",
        "[fd00:ec2::254]:80",
    ];
    let connect = connect("east", "orders.shop", "o-1");
    let west = "spiffe://west.example/ns/isthmus-system/sa/gateway";
    let sibling = "spiffe://east.example/ns/isthmus-system/sa/gateway";
    for address in forbidden {
        let snapshot = claiming(address, vec![far.clone()]);
        for who in [WEB, west, sibling] {
            let refused = Err(RefusedReason::ForbiddenTarget);
            assert_eq!(ask(&snapshot, who, &connect), refused, "{address} for {who}");
        }
    }
    for address in ["10.0.0.4:4143", "10.0.7.4:4143", "10.0.0.5:4143", "192.0.2.1:4143"] {
        let asked = ask(&claiming(address, vec![far.clone()]), WEB, &connect);
        let Ok(NextHop::Dial { addr, .. }) = asked else { panic!("{address}: {asked:?}") };
        assert_eq!(addr, address.parse().unwrap(), "beside them");
    }
}

/// A site that is all on one host.
#[test]
fn loopback_is_dialled_where_all_gateways_of_the_site_live_there() {
    let at = |id: &str, tls: &str, quic: &str| {
        Kind::Gateway(v1::Gateway {
            tls_addresses: vec![tls.into()],
            quic_addresses: vec![quic.into()],
            ..gateway(id)
        })
    };
    let (inside, outside) = ("127.0.0.1:8443", "192.0.2.1:8443");
    let cases = [
        (at("gw-1", inside, inside), at("gw-2", inside, "[::1]:8443"), true),
        (at("gw-1", inside, inside), at("gw-2", outside, inside), false),
        (at("gw-1", inside, inside), at("gw-2", inside, outside), false),
    ];
    // Where the gateways of other sites are says nothing.
    let far = Kind::Gateway(v1::Gateway { site: "west".into(), ..gateway("gw-9") });
    let connect = connect("east", "orders.shop", "o-1");
    for (one, two, allowed) in cases {
        let snapshot = claiming("127.0.0.1:4143", vec![one, two, far.clone()]);
        assert_eq!(ask(&snapshot, WEB, &connect).is_ok(), allowed);
    }
}

#[test]
fn reserved_names_are_never_exported() {
    for name in ["metrics.isthmus-system", "dns.kube-system"] {
        let exported = v1::Service { exported_to: vec!["west".into()], ..service(name) };
        let snapshot = with(
            vec![Kind::Service(exported), Kind::Endpoint(endpoint(name, "east", "m-1"))],
            vec![],
        );
        let connect = connect("east", name, "m-1");
        let west = "spiffe://west.example/ns/isthmus-system/sa/gateway";
        assert_eq!(ask(&snapshot, west, &connect), Err(RefusedReason::NotExported));
        assert_eq!(ask(&snapshot, WEB, &connect), Ok(dial()));
    }
}

fn ids(ids: &[&str]) -> Vec<GatewayId> {
    ids.iter().map(|id| id.parse().unwrap()).collect()
}

#[test]
fn paths_of_a_source() {
    let mesh = mesh();
    let path = |snapshot: &Snapshot, service: &str, site: &str, id: &str| {
        let site = site.parse().unwrap();
        let endpoint = snapshot.endpoint(service, &site, id).unwrap();
        let path = path_to(snapshot, endpoint);
        assert_eq!(is_reachable(snapshot, endpoint), path.is_ok(), "{path:?}");
        path.map_err(|error| error.to_string())
    };
    let direct = path(&mesh, "orders.shop", "east", "o-1").unwrap();
    assert_eq!(direct, Path::Direct("10.1.2.3:4143".parse().unwrap()));
    assert_eq!(direct.describe(), "direct");
    // The gateway that holds the session comes first.
    let reverse = path(&mesh, "orders.shop", "east", "o-2").unwrap();
    assert_eq!(reverse, Path::Reverse(ids(&["gw-2", "gw-1"])));
    assert_eq!(reverse.describe(), "reverse");
    // A remote address is of no use here.
    let far = Kind::Gateway(v1::Gateway { site: "west".into(), ..gateway("gw-0") });
    let snapshot = with(vec![far.clone()], vec![]);
    let via = path(&snapshot, "search.shop", "west", "s-1").unwrap();
    assert_eq!(via, Path::ViaGateway(ids(&["gw-1", "gw-2"])));
    assert_eq!(via.describe(), "via gateway");

    let no_gateways =
        vec![(ResourceKind::Gateway, "east/gw-1"), (ResourceKind::Gateway, "east/gw-2")];
    let alone = with(vec![far], no_gateways);
    assert_eq!(
        path(&alone, "search.shop", "west", "s-1"),
        Err("endpoint s-1 in west: this site has no gateway".into())
    );
    let lost =
        "endpoint o-2 in east: it has no address, and no gateway holds a session of its node";
    assert_eq!(path(&alone, "orders.shop", "east", "o-2"), Err(lost.into()));
    let unlinked = with(vec![], vec![(ResourceKind::Link, "west")]);
    assert_eq!(
        path(&unlinked, "search.shop", "west", "s-1"),
        Err("endpoint s-1 in west: its site is not linked to this one".into())
    );
}
