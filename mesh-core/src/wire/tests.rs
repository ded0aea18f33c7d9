use std::net::SocketAddr;

use mesh_api::v1::{self, ResourceKind};
use proptest::prelude::*;

use super::{
    BadConnect, Key, MAX_ADDRESSES, MAX_JWT_KEYS, MAX_ROOT_LEN, MAX_ROOTS, MAX_TEXT, MAX_VIA,
    SiteRecord,
};
use crate::{
    example::{self, NODE},
    identity::{Revoked, TrustBundle},
    path::{Connect, RefusedReason},
    service::{Endpoint, Gateway, Health, Link, LinkTransport, Locality, Protocol},
};

mod access;
mod extensions;
mod rules;
mod services;

use services::{header_match, service};

fn connect() -> v1::Connect {
    v1::Connect {
        site: "east".into(),
        service: "orders.shop".into(),
        port: "http".into(),
        endpoint: "o-1".into(),
        hops: 2,
        connection_id: "c-1".into(),
        critical: vec![],
    }
}

fn endpoint() -> v1::Endpoint {
    example::endpoint("orders.shop", "east", "o-1")
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("s-{i}")).collect()
}

#[test]
fn a_connect_there_and_back() {
    let message = connect();
    let read = Connect::try_from(message.clone()).unwrap();
    assert_eq!(read.hops, 2);
    assert_eq!(v1::Connect::from(&read), message);
    assert_eq!(v1::Connect::from(read), message);
    let control = v1::Connect {
        service: "federation.isthmus-system".into(),
        port: "control".into(),
        endpoint: String::new(),
        ..connect()
    };
    let read = Connect::try_from(control.clone()).unwrap();
    assert_eq!(read.endpoint, None);
    assert_eq!(v1::Connect::from(read), control);
}

#[test]
fn a_connect_names_and_never_addresses() {
    let with = |change: fn(&mut v1::Connect)| {
        let mut message = connect();
        change(&mut message);
        message
    };
    let malformed = [
        with(|c| c.site = String::new()),
        with(|c| c.service = "localhost".into()),
        with(|c| c.service = "localhost:8446".into()),
        with(|c| c.service = "a.b.c".into()),
        with(|c| c.service = format!("{}.shop", "x".repeat(64))),
        with(|c| c.port = "8446/tcp".into()),
        with(|c| c.port = String::new()),
        with(|c| c.endpoint = String::new()),
        with(|c| c.endpoint = "x".repeat(65)),
        with(|c| c.connection_id = "x".repeat(65)),
        with(|c| c.connection_id = "a b".into()),
        with(|c| c.connection_id = "a\nb".into()),
        with(|c| c.connection_id = "é".into()),
    ];
    for message in malformed {
        let error = Connect::try_from(message.clone()).expect_err("must be refused");
        assert_eq!(error.reason(), RefusedReason::Malformed, "{message:?}");
    }
    let addresses = [
        with(|c| c.site = "10.0.0.1".into()),
        with(|c| c.service = "10.0.0.1:80".into()),
        with(|c| c.service = "127.0.0.1".into()),
        with(|c| c.service = "[::1]:8446".into()),
        with(|c| c.service = "[::1]".into()),
        with(|c| c.service = "::ffff:169.254.169.254".into()),
        with(|c| c.endpoint = "10.1.2.3:4143".into()),
        with(|c| c.endpoint = "10.1.2.3".into()),
    ];
    for message in addresses {
        let error = Connect::try_from(message.clone()).expect_err("must be refused");
        assert_eq!(error.reason(), RefusedReason::ForbiddenTarget, "{message:?}");
    }
    let good = [
        with(|c| c.connection_id = "~".repeat(64)),
        with(|c| c.connection_id = String::new()),
        with(|c| c.endpoint = "x".repeat(64)),
    ];
    for message in good {
        assert!(Connect::try_from(message.clone()).is_ok(), "{message:?}");
    }
}

#[test]
fn what_must_be_understood_and_is_not() {
    let message = v1::Connect { critical: vec!["x".repeat(500), "y".into()], ..connect() };
    let error = Connect::try_from(message).unwrap_err();
    assert_eq!(error, BadConnect::Unsupported("x".repeat(64)));
    assert_eq!(error.reason(), RefusedReason::Unsupported);
}

#[test]
fn hops_past_counting_stay_past_the_limit() {
    for (wire, hops) in [(0, 0), (255, 255), (256, 255), (u32::MAX, 255)] {
        let message = v1::Connect { hops: wire, ..connect() };
        assert_eq!(Connect::try_from(message).unwrap().hops, hops);
    }
}

#[test]
fn refusals_there_and_back() {
    assert_eq!(RefusedReason::ALL.len(), 14);
    for reason in RefusedReason::ALL {
        let wire = v1::RefusedReason::from(*reason);
        assert_eq!(RefusedReason::from(wire), *reason);
        // The code in logs is the name on the wire.
        let name = wire.as_str_name().strip_prefix("REFUSED_REASON_").unwrap();
        assert_eq!(name.to_lowercase(), reason.to_string());
    }
    let unknown = v1::RefusedReason::try_from(99).unwrap_or_default();
    assert_eq!(RefusedReason::from(unknown), RefusedReason::NoPath);
}

#[test]
fn an_endpoint_there_and_back() {
    let full = v1::Endpoint {
        locality: Some(v1::Locality {
            region: "eu".into(),
            zone: "eu-1".into(),
            host: "vm-3".into(),
        }),
        health: v1::Health::Draining.into(),
        via: vec!["gw-1".into(), "gw-2".into()],
        target_address: "10.9.9.9".into(),
        address: "[2001:db8::1]:4143".into(),
        capacity: 250,
        priority: 3,
        ..endpoint()
    };
    let read = Endpoint::try_from(&full).unwrap();
    assert_eq!(read.target, "10.9.9.9:8080".parse::<SocketAddr>().unwrap());
    assert_eq!(v1::Endpoint::from(&read), full);

    let bare = v1::Endpoint {
        address: String::new(),
        node: String::new(),
        health: 0,
        weight: 0,
        target_port: 0,
        ..endpoint()
    };
    let read = Endpoint::try_from(&bare).unwrap();
    assert_eq!((read.address, read.node.clone(), read.weight), (None, None, 0));
    assert_eq!(read.health, Health::Unknown);
    assert_eq!(read.locality, Locality::default());
    assert_eq!(read.target, "127.0.0.1:0".parse::<SocketAddr>().unwrap());
    assert_eq!(v1::Endpoint::from(&read).locality, None);
}

#[test]
fn endpoints_that_mean_nothing() {
    let with = |change: fn(&mut v1::Endpoint)| {
        let mut message = endpoint();
        change(&mut message);
        message
    };
    let cases = [
        (with(|e| e.id = "A".into()), "id"),
        (with(|e| e.service = "orders".into()), "service"),
        (with(|e| e.port = String::new()), "port"),
        (with(|e| e.site = "e.ast".into()), "site"),
        (with(|e| e.spiffe_id = "spiffe://east.example".into()), "spiffe_id"),
        (with(|e| e.spiffe_id = format!("spiffe://east.example/node/{NODE}")), "spiffe_id"),
        (with(|e| e.address = "host:80".into()), "address"),
        (with(|e| e.address = "10.0.0.1:0".into()), "address"),
        (with(|e| e.address = "0.0.0.0:80".into()), "address"),
        (with(|e| e.address = "224.0.0.1:80".into()), "address"),
        (with(|e| e.target_port = 65536), "target_port"),
        (with(|e| e.target_address = "host".into()), "target_address"),
        (with(|e| e.target_address = "0.0.0.0".into()), "target_address"),
        (with(|e| e.target_address = "ff02::1".into()), "target_address"),
        (with(|e| e.node = "x".into()), "node"),
        (with(|e| e.via = names(MAX_VIA + 1)), "via"),
        (with(|e| e.via = vec!["-".into()]), "via"),
    ];
    for (message, field) in cases {
        let error = Endpoint::try_from(&message).expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
    assert!(Endpoint::try_from(&with(|e| e.via = names(MAX_VIA))).is_ok());
    assert!(Endpoint::try_from(&with(|e| e.target_port = 65535)).is_ok());
    let located = |zone: &str| {
        let locality = v1::Locality { zone: zone.into(), ..Default::default() };
        Endpoint::try_from(&v1::Endpoint { locality: Some(locality), ..endpoint() })
    };
    assert!(located(&"z".repeat(MAX_TEXT)).is_ok());
    assert_eq!(located(&"z".repeat(MAX_TEXT + 1)).unwrap_err().field, "locality.zone");
    assert_eq!(located("z\u{7}").unwrap_err().field, "locality.zone");
}

#[test]
fn closed_sets_there_and_back() {
    for health in [Health::Healthy, Health::Unhealthy, Health::Unknown, Health::Draining] {
        assert_eq!(Health::from(v1::Health::from(health)), health);
    }
    assert_eq!(Health::from(v1::Health::Unspecified), Health::Unknown);
    for protocol in [Protocol::Detect, Protocol::Http, Protocol::Grpc, Protocol::Tcp, Protocol::Tls]
    {
        assert_eq!(Protocol::from(v1::Protocol::from(protocol)), protocol);
    }
    for transport in [LinkTransport::Raced, LinkTransport::Quic, LinkTransport::Tls] {
        assert_eq!(LinkTransport::from(v1::LinkTransport::from(transport)), transport);
    }
    // Of a later version: detected, and judged by outcomes.
    let later = service(|s| s.ports[0].protocol = 77).unwrap();
    assert_eq!(later.ports[0].protocol, Protocol::Detect);
    let later = Endpoint::try_from(&v1::Endpoint { health: 77, ..endpoint() }).unwrap();
    assert_eq!(later.health, Health::Unknown);
}

#[test]
fn bundles() {
    let bundle = |roots: Vec<Vec<u8>>| {
        let message = v1::Bundle {
            trust_domain: "east.example".into(),
            sequence: 9,
            roots,
            ..v1::Bundle::default()
        };
        TrustBundle::try_from(&message)
            .inspect(|bundle| assert_eq!(v1::Bundle::from(bundle), message))
    };
    assert_eq!(bundle(vec![vec![1]]).unwrap().sequence, 9);
    assert!(bundle(vec![vec![1; MAX_ROOT_LEN]; MAX_ROOTS]).is_ok());
    assert!(bundle(vec![]).is_err());
    assert!(bundle(vec![vec![1], vec![]]).is_err());
    assert!(bundle(vec![vec![1; MAX_ROOT_LEN + 1]]).is_err());
    assert!(bundle(vec![vec![1]; MAX_ROOTS + 1]).is_err());
    assert!(TrustBundle::try_from(&example::bundle("", 1, b"x")).is_err());
}

#[test]
fn keys_for_tokens() {
    let key = |kid: &str, p256: &[u8]| v1::JwtKey {
        kid: kid.into(),
        p256: p256.to_vec(),
        ..v1::JwtKey::default()
    };
    let bundle = |jwt_keys: Vec<v1::JwtKey>| {
        TrustBundle::try_from(&v1::Bundle { jwt_keys, ..example::bundle("east.example", 1, b"x") })
    };
    let point = [4; 65];
    let read = bundle(vec![key("a", &point), key("later", &[]), key("b", &point)]).unwrap();
    let kids: Vec<_> = read.jwt_keys.iter().map(|key| &*key.kid).collect();
    assert_eq!(kids, ["a", "b"], "what is not known is left out");
    assert_eq!(v1::Bundle::from(&read).jwt_keys, [key("a", &point), key("b", &point)]);
    for wrong in [key("", &point), key("a", &point[1..]), key("a", &[5; 65])] {
        assert!(bundle(vec![wrong.clone()]).is_err(), "{wrong:?}");
    }
    assert!(bundle(vec![key("a", &point); MAX_JWT_KEYS]).is_ok());
    assert!(bundle(vec![key("a", &point); MAX_JWT_KEYS + 1]).is_err());
}

#[test]
fn gateways() {
    let gateway = |quic: &[&str]| {
        let quic_addresses = quic.iter().map(ToString::to_string).collect();
        let message = v1::Gateway { quic_addresses, ..example::gateway("gw-1") };
        Gateway::try_from(&message).map(|gateway| assert_eq!(v1::Gateway::from(&gateway), message))
    };
    let long = format!("{}:8443", "x".repeat(253));
    let longest = format!("{}:65535", "x".repeat(255));
    let too_long = format!("{}:65535", "x".repeat(256));
    for good in ["gw.example:8443", "192.0.2.1:1", "[2001:db8::1]:65535", &long, &longest] {
        assert!(gateway(&[good]).is_ok(), "{good}");
    }
    let bad =
        ["gw", ":8443", "gw:0", "gw:65536", "gw:", "g w:1", "gw/x:1", "gw\n:1", "", &too_long];
    for bad in bad {
        assert!(gateway(&[bad]).is_err(), "{bad:?}");
    }
    assert!(gateway(&["a:1"; MAX_ADDRESSES]).is_ok());
    assert!(gateway(&["a:1"; MAX_ADDRESSES + 1]).is_err());
    let tls = v1::Gateway { tls_addresses: vec!["x".into()], ..example::gateway("gw-1") };
    assert_eq!(Gateway::try_from(&tls).unwrap_err().field, "tls_addresses");
}

#[test]
fn links_and_sites() {
    for transport in [v1::LinkTransport::Quic, v1::LinkTransport::Tls] {
        let message = v1::Link { transport: transport.into(), ..example::link("west") };
        assert_eq!(v1::Link::from(&Link::try_from(&message).unwrap()), message);
    }
    let site = example::site();
    assert_eq!(v1::Site::from(&SiteRecord::try_from(&site).unwrap()), site);
    let hidden = v1::Site { federation_address: String::new(), ..site.clone() };
    let read = SiteRecord::try_from(&hidden).unwrap();
    assert_eq!((read.federation, v1::Site::from(&read)), (None, hidden));
    let bad = v1::Site { federation_address: "federation:8446".into(), ..site };
    assert_eq!(SiteRecord::try_from(&bad).unwrap_err().field, "federation_address");
}

#[test]
fn keys_there_and_back() {
    let cases = [
        (ResourceKind::Service, "orders.shop"),
        (ResourceKind::Endpoint, "east/o-1"),
        (ResourceKind::Bundle, "east.example"),
        (ResourceKind::Gateway, "east/gw-1"),
        (ResourceKind::Link, "west"),
        (ResourceKind::Revocation, "serial:0a"),
        (ResourceKind::Revocation, "node:6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11"),
        (ResourceKind::Revocation, "spiffe://east.example/ns/shop/sa/web"),
    ];
    for (kind, name) in cases {
        let message = v1::ResourceKey { kind: kind.into(), name: name.into() };
        let key = Key::read(&message).unwrap().expect("a known kind");
        assert_eq!(v1::ResourceKey::from(&key), message);
        // None of these names is one of any kind.
        for bad in ["", "a b", "east/", "/o-1", "east", "*"] {
            let message = v1::ResourceKey { kind: kind.into(), name: bad.into() };
            let fits = kind == ResourceKind::Bundle || kind == ResourceKind::Link;
            assert_eq!(Key::read(&message).is_ok(), fits && bad == "east", "{kind:?} {bad:?}");
        }
    }
    let site = v1::ResourceKey { kind: ResourceKind::Site.into(), name: "east".into() };
    assert!(Key::read(&site).is_err());
}

#[test]
fn serials_are_canonical() {
    assert_eq!("serial:00AB".parse(), Ok(Revoked::Serial("ab".into())));
    assert!("serial:".parse::<Revoked>().is_err());
    assert!("node:".parse::<Revoked>().is_err());
}

proptest! {
    /// Whatever bytes arrive: decoding and applying end, and end without a
    /// panic; what is refused leaves no trace and what is accepted survives a
    /// round trip.
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        decode(&bytes);
    }

    /// The same for bytes that were a delta once.
    #[test]
    fn damaged_deltas(
        at in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        use prost::Message;
        let mut bytes = crate::to_delta(&example::mesh()).encode_to_vec();
        for (index, value) in at {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        decode(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        decode(&bytes);
    }

    /// The same for any text where a name belongs.
    #[test]
    fn arbitrary_text(text in any::<String>(), number in any::<u32>(), kind in -1i32..9) {
        let mut message = endpoint();
        let fields: [&mut String; 8] = [
            &mut message.id, &mut message.service, &mut message.port, &mut message.site,
            &mut message.spiffe_id, &mut message.address, &mut message.node,
            &mut message.target_address,
        ];
        *fields.into_iter().nth(number as usize % 8).unwrap() = text.clone();
        message.target_port = number;
        let _ = Endpoint::try_from(&message);
        let _ = Key::read(&v1::ResourceKey { kind, name: text.clone() });
        let _ = service(|s| s.routes = vec![v1::Route {
            matches: vec![v1::RouteMatch {
                path: Some(v1::route_match::Path::PathPrefix(text.clone())),
                method: text.clone(),
                headers: vec![header_match(&text, &text)],
                query: vec![v1::HeaderMatch { regex: text.clone(), ..header_match(&text, "") }],
            }],
            ..Default::default()
        }]);
    }

    #[test]
    fn arbitrary_connects(text in "[ -~]{0,80}", hops in any::<u32>()) {
        let message = v1::Connect { hops, connection_id: text.clone(), ..connect() };
        if let Ok(read) = Connect::try_from(message.clone()) {
            prop_assert!(text.len() <= 64 && !text.contains(' '));
            prop_assert_eq!(&read.connection_id, &text);
        } else {
            prop_assert!(text.len() > 64 || text.contains(' '));
        }
    }
}

fn decode(bytes: &[u8]) {
    use prost::Message;
    if let Ok(message) = v1::Connect::decode(bytes)
        && let Ok(read) = Connect::try_from(message)
    {
        assert_eq!(Connect::try_from(v1::Connect::from(&read)), Ok(read));
    }
    let Ok(delta) = v1::Delta::decode(bytes) else { return };
    let before = example::mesh();
    let _ = crate::apply(Some(&before), &delta);
    assert_eq!(before, example::mesh());
    if let Ok(snapshot) = crate::apply(None, &delta) {
        assert_eq!(crate::apply(None, &crate::to_delta(&snapshot)), Ok(snapshot));
    }
}
