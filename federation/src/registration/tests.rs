use std::sync::Arc;

use mesh_api::v1::{
    AuthorityRecord, Bundle, Gateway, GatewaySeen, Link, LinkMade, NodeJoined, Revision,
    SiteCreated,
};

use super::*;

const NODE: &str = "00000000-0000-4000-8000-000000000001";
const OTHER: &str = "00000000-0000-4000-8000-000000000002";

fn state_after(events: Vec<Event>) -> State {
    let site = SiteCreated {
        name: "west".into(),
        trust_domain: "west.example".into(),
        root: vec![1],
        ..Default::default()
    };
    let joined = |id: &str, services: &[&str]| {
        Event::NodeJoined(NodeJoined {
            id: id.into(),
            grants: Some(Grants {
                namespace: "shop".into(),
                account: "orders".into(),
                services: services.iter().map(|s| (*s).to_owned()).collect(),
            }),
            ..NodeJoined::default()
        })
    };
    let first = [
        Event::SiteCreated(site),
        joined(NODE, &["*.shop", "ledger.books"]),
        joined(OTHER, &["*.shop"]),
    ];
    let mut state = State::default();
    for (n, event) in first.into_iter().chain(events).enumerate() {
        let revision = Some(Revision { epoch: 1, n: n as u64 + 1 });
        let event = Some(event);
        let record = AuthorityRecord { revision, event, ..AuthorityRecord::default() };
        state.fold(&record).unwrap();
    }
    state
}

fn port(name: &str, number: u32, protocol: Protocol) -> Port {
    Port { name: name.into(), number, protocol: protocol.into() }
}

fn register() -> Register {
    Register {
        instance: "orders".into(),
        service: "orders.shop".into(),
        ports: vec![port("http", 80, Protocol::Http)],
        target_ports: vec![8080],
        weight: 1,
        ..Register::default()
    }
}

fn node(id: &str) -> NodeId {
    id.parse().unwrap()
}

#[test]
fn what_the_grants_name_is_registered_under_their_identity() {
    let state = state_after(vec![]);
    for service in ["orders.shop", "anything.shop", "ledger.books"] {
        let asked = Register { service: service.into(), ..register() };
        let events = decide_register(&state, &node(NODE), &asked).unwrap();
        let [Event::Registered(made)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(made.spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
        assert_eq!(made.node, NODE);
    }
}

#[test]
fn everything_else_is_refused_with_its_code() {
    let state = state_after(vec![]);
    let ports = |ports: &[Port]| Register {
        ports: ports.to_vec(),
        target_ports: vec![1; ports.len()],
        ..register()
    };
    let http = port("http", 80, Protocol::Http);
    use RegistryError::{Invalid, NotGranted, ReservedNamespace};
    let table: Vec<(&str, Register, RegistryError)> = vec![
        ("no grant", Register { service: "x.books".into(), ..register() }, NotGranted),
        ("suffix only", Register { service: "x.my-shop".into(), ..register() }, NotGranted),
        (
            "system",
            Register { service: "f.isthmus-system".into(), ..register() },
            ReservedNamespace,
        ),
        ("kube", Register { service: "dns.kube-system".into(), ..register() }, ReservedNamespace),
        ("a wildcard", Register { service: "*.shop".into(), ..register() }, Invalid),
        ("no namespace", Register { service: "orders".into(), ..register() }, Invalid),
        ("no instance", Register { instance: String::new(), ..register() }, Invalid),
        ("a path", Register { instance: "../x".into(), ..register() }, Invalid),
        ("long", Register { instance: "x".repeat(65), ..register() }, Invalid),
        ("no port", ports(&[]), Invalid),
        ("port 0", ports(&[port("http", 0, Protocol::Http)]), Invalid),
        ("port 65536", ports(&[port("http", 65536, Protocol::Http)]), Invalid),
        ("port name", ports(&[port("HTTP", 80, Protocol::Http)]), Invalid),
        ("name twice", ports(&[http.clone(), port("http", 81, Protocol::Http)]), Invalid),
        ("number twice", ports(&[http.clone(), port("h2", 80, Protocol::Http)]), Invalid),
        ("protocol", ports(&[Port { protocol: 99, ..http }]), Invalid),
        ("targets", Register { target_ports: vec![], ..register() }, Invalid),
        ("target 0", Register { target_ports: vec![0], ..register() }, Invalid),
        ("target name", Register { target_address: "db.example".into(), ..register() }, Invalid),
        ("any target", Register { target_address: "0.0.0.0".into(), ..register() }, Invalid),
        ("address", Register { address: "10.0.0.1".into(), ..register() }, Invalid),
        ("weight", Register { weight: u32::MAX, ..register() }, Invalid),
        ("capacity", Register { capacity: u32::MAX, ..register() }, Invalid),
    ];
    for (name, asked, code) in table {
        let error = decide_register(&state, &node(NODE), &asked).expect_err(name);
        assert_eq!(error.code(), code, "{name}: {error}");
    }
    let stranger = node("00000000-0000-4000-8000-00000000000f");
    let error = decide_register(&state, &stranger, &register()).unwrap_err();
    assert_eq!(error.code(), NotGranted);
}

fn gateway(site: &str, tls: &str) -> Gateway {
    Gateway {
        id: "gw-1".into(),
        site: site.into(),
        quic_addresses: vec![],
        tls_addresses: vec![tls.into()],
    }
}

fn seen(gateway: Gateway) -> Event {
    Event::GatewaySeen(GatewaySeen { gateway: Some(gateway) })
}

fn linked(gateway: Gateway) -> Event {
    let link =
        Link { site: gateway.site.clone(), trust_domain: "east.example".into(), ..Link::default() };
    let bundle = Bundle {
        trust_domain: "east.example".into(),
        sequence: 1,
        roots: vec![vec![1]],
        ..Bundle::default()
    };
    let (link, bundle) = (Some(link), Some(bundle));
    Event::LinkMade(LinkMade { link, bundle, gateways: vec![gateway] })
}

/// Whatever a gateway would dial for others.
#[test]
fn addresses_that_nobody_may_be_made_to_dial_are_refused() {
    let gateways =
        [seen(gateway("west", "192.0.2.1:8443")), linked(gateway("east", "192.0.2.9:443"))];
    let state = state_after(gateways.into());
    let forbidden = [
        "0.0.0.0:4143",
        "[::]:4143",
        "10.0.0.1:0",
        "224.0.0.1:4143",
        "255.255.255.255:4143",
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[fe80::1]:4143",
        "100.100.100.200:80",
        "127.0.0.1:4143",
        "[::1]:4143",
        "[::ffff:127.0.0.1]:4143",
        // Gateways, of this site and of a linked one.
        "192.0.2.1:8443",
        "[::ffff:192.0.2.9]:443",
    ];
    for address in forbidden {
        let asked = Register { address: address.into(), ..register() };
        let error = decide_register(&state, &node(NODE), &asked).expect_err(address);
        assert_eq!(error.code(), RegistryError::ForbiddenAddress, "{error}");
        assert!(error.to_string().contains("advertise"), "says what to do: {error}");
    }
    for address in ["", "10.0.0.1:4143", "192.0.2.1:4143", "[2001:db8::1]:4143"] {
        let asked = Register { address: address.into(), ..register() };
        assert!(decide_register(&state, &node(NODE), &asked).is_ok(), "{address}");
    }
}

#[test]
fn loopback_is_for_sites_whose_gateways_live_there() {
    let asked = Register { address: "127.0.0.1:4143".into(), ..register() };
    let cases = [
        (vec![], false),
        (vec![seen(gateway("west", "127.0.0.1:8443"))], true),
        (vec![seen(gateway("west", "gw.west.example:8443"))], false),
        (vec![linked(gateway("east", "127.0.0.1:8443"))], false),
    ];
    for (events, allowed) in cases {
        let answer = decide_register(&state_after(events.clone()), &node(NODE), &asked);
        assert_eq!(answer.is_ok(), allowed, "{events:?}");
    }
}

#[test]
fn where_federation_listens_is_no_instance() {
    let listens = ["10.0.0.5:8446", "0.0.0.0:8448"].map(|addr| addr.parse().unwrap());
    let host: IpAddr = "10.0.7.5".parse().unwrap();
    let own = OwnPorts { listens: Arc::new(listens), has: Arc::new(move |ip| ip == host) };
    let cases = [
        ("10.0.0.5:8446", false),
        ("[::ffff:10.0.0.5]:8446", false),
        ("10.0.7.5:8448", false),
        ("10.0.7.6:8448", true),
        ("10.0.7.5:8446", true),
        ("10.0.0.5:4143", true),
        ("", true),
    ];
    for (address, allowed) in cases {
        let answer = own.check(&Register { address: address.into(), ..register() });
        assert_eq!(answer.is_ok(), allowed, "{address}");
        if let Err(error) = answer {
            assert_eq!(error.code(), RegistryError::ForbiddenAddress);
        }
    }
}

#[test]
fn the_same_again_is_no_write_whatever_its_health() {
    let first = decide_register(&state_after(vec![]), &node(NODE), &register()).unwrap();
    let state = state_after(first);
    let healthy = Register { health: Health::Healthy.into(), ..register() };
    assert_eq!(decide_register(&state, &node(NODE), &healthy), Ok(vec![]));
    let known = &state.registrations[&(node(NODE), "orders".into())];
    assert!(is_same(known, &healthy));
    let heavier = Register { weight: 2, ..healthy };
    assert!(!is_same(known, &heavier));
    assert_eq!(decide_register(&state, &node(NODE), &heavier).map(|events| events.len()), Ok(1));
}

#[test]
fn instances_of_a_service_agree_on_its_ports() {
    let first = decide_register(&state_after(vec![]), &node(NODE), &register()).unwrap();
    let state = state_after(first);
    let table = [
        (port("http", 80, Protocol::Http), true),
        (port("http", 80, Protocol::Unspecified), true),
        (port("metrics", 9090, Protocol::Http), true),
        (port("http", 81, Protocol::Http), false),
        (port("http", 80, Protocol::Tcp), false),
        (port("web", 80, Protocol::Http), false),
    ];
    for (port, fits) in table {
        let asked = Register { ports: vec![port.clone()], ..register() };
        let answer = decide_register(&state, &node(OTHER), &asked);
        assert_eq!(answer.is_ok(), fits, "{port:?}");
        if let Err(error) = answer {
            assert_eq!(error.code(), RegistryError::Conflict);
        }
        // The only instance may change its mind.
        assert!(decide_register(&state, &node(NODE), &asked).is_ok(), "{port:?}");
    }
}

#[test]
fn a_node_has_a_quota() {
    let mut state = state_after(vec![]);
    let template = state_after(decide_register(&state, &node(NODE), &register()).unwrap());
    let known = template.registrations.values().next().unwrap().clone();
    for i in 0..MAX_INSTANCES {
        Arc::make_mut(&mut state.registrations)
            .insert((node(NODE), format!("i{i}").into()), known.clone());
    }
    let error = decide_register(&state, &node(NODE), &register()).unwrap_err();
    assert_eq!(error, RegisterError::Quota);
    assert!(decide_register(&state, &node(OTHER), &register()).is_ok());
}

#[test]
fn deregistering_what_is_not_there_is_no_write() {
    let state = state_after(vec![]);
    assert!(decide_deregister(&state, &node(NODE), "orders", "asked").is_empty());
    let state = state_after(decide_register(&state, &node(NODE), &register()).unwrap());
    assert_eq!(decide_deregister(&state, &node(NODE), "orders", "asked").len(), 1);
    assert_eq!(decide_deregister_all(&state, &node(NODE), "left").len(), 1);
    assert!(decide_deregister_all(&state, &node(OTHER), "left").is_empty());
}

#[test]
fn a_declared_protocol_wins_over_an_open_one() {
    let open = [port("http", 80, Protocol::Unspecified)];
    let http = [port("metrics", 9090, Protocol::Http), port("http", 80, Protocol::Http)];
    let union = union_of_ports([&open[..], &http[..]].into_iter());
    assert_eq!(union, [http[1].clone(), http[0].clone()]);
}
