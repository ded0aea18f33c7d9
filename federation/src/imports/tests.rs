use mesh_api::v1::{Locality, Port, Protocol, Resource, ResourceKey};

use super::*;
use crate::{ca::CertificateAuthority, clock::Clock};

fn root(domain: &str) -> Vec<u8> {
    let keys = tempfile::tempdir().unwrap();
    let domain = domain.parse().unwrap();
    CertificateAuthority::create(keys.path(), &domain, &Clock::system()).unwrap()
}

/// What is known of the link with east.
struct Known {
    site: SiteName,
    trust_domain: TrustDomain,
    bundle: Bundle,
}

impl Known {
    fn new() -> Self {
        let bundle = Bundle {
            trust_domain: "east.example".into(),
            sequence: 3,
            roots: vec![root("east.example")],
            ..Bundle::default()
        };
        let (site, trust_domain) = ("east".parse().unwrap(), "east.example".parse().unwrap());
        Self { site, trust_domain, bundle }
    }

    fn apply(&self, have: &Imported, delta: &Delta) -> Result<Imported, ImportError> {
        let Self { site, trust_domain, bundle } = self;
        apply_import(have, delta, Peer { site, trust_domain, bundle })
    }
}

fn revision(n: u64) -> Option<Revision> {
    Some(Revision { epoch: 9, n })
}

fn delta(resources: impl IntoIterator<Item = resource::Resource>) -> Delta {
    let upsert = resources.into_iter().map(|resource| Resource { resource: Some(resource) });
    Delta { from: None, to: revision(1), upsert: upsert.collect(), remove: vec![] }
}

fn service() -> Service {
    Service {
        name: "orders.shop".into(),
        ports: vec![Port { name: "http".into(), number: 80, protocol: Protocol::Http.into() }],
        ..Service::default()
    }
}

fn endpoint() -> Endpoint {
    Endpoint {
        id: "e1".into(),
        service: "orders.shop".into(),
        port: "http".into(),
        site: "east".into(),
        spiffe_id: "spiffe://east.example/ns/shop/sa/orders".into(),
        weight: 1,
        health: Health::Healthy.into(),
        ..Endpoint::default()
    }
}

fn gateway() -> Gateway {
    Gateway {
        id: "gw-1".into(),
        site: "east".into(),
        quic_addresses: vec!["gw.east.example:8443".into()],
        tls_addresses: vec!["[2001:db8::1]:8443".into()],
    }
}

use resource::Resource as R;

#[test]
fn what_a_site_says_of_itself_is_accepted_and_addresses_are_not() {
    let known = Known::new();
    let wordy = Service {
        exported_to: vec!["west".into()],
        virtual_address: "10.0.0.1".into(),
        routes: vec![mesh_api::v1::Route::default()],
        policy: Some(mesh_api::v1::AuthorizationPolicy::default()),
        ..service()
    };
    let talkative = Endpoint {
        address: "127.0.0.1:22".into(),
        target_address: "127.0.0.1".into(),
        target_port: 22,
        node: "00000000-0000-4000-8000-000000000001".into(),
        via: vec!["gw-1".into()],
        ..endpoint()
    };
    let all = delta([
        R::Service(wordy),
        R::Endpoint(talkative),
        R::Gateway(gateway()),
        R::Bundle(known.bundle.clone()),
    ]);
    let imported = known.apply(&Imported::default(), &all).unwrap();
    assert_eq!(imported.services.into_values().collect::<Vec<_>>(), [service()]);
    assert_eq!(imported.endpoints["e1"], endpoint());
    assert_eq!(imported.gateways["gw-1"], gateway());
    assert_eq!((imported.bundle, imported.revision), (Some(known.bundle), revision(1)));
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table")]
fn one_wrong_resource_refuses_the_whole_delta() {
    let known = Known::new();
    let endpoint_of = |id: &str| Endpoint { spiffe_id: id.into(), ..endpoint() };
    let bundle = |sequence, roots| Bundle { sequence, roots, ..known.bundle.clone() };
    let old = known.bundle.roots[0].clone();
    let long = Locality { region: "x".repeat(300), ..Locality::default() };
    let ports = |number| vec![Port { number, ..service().ports[0].clone() }];
    let table: Vec<(&str, R, &str)> = vec![
        (
            "our identity",
            R::Endpoint(endpoint_of("spiffe://west.example/ns/shop/sa/orders")),
            "import_foreign_identity",
        ),
        (
            "a third's identity",
            R::Endpoint(endpoint_of("spiffe://north.example/ns/shop/sa/orders")),
            "import_foreign_identity",
        ),
        (
            "its gateway",
            R::Endpoint(endpoint_of("spiffe://east.example/ns/isthmus-system/sa/gateway")),
            "import_reserved_namespace",
        ),
        (
            "its node",
            R::Endpoint(endpoint_of(
                "spiffe://east.example/node/00000000-0000-4000-8000-000000000001",
            )),
            "import_invalid",
        ),
        ("no identity", R::Endpoint(endpoint_of("")), "import_invalid"),
        (
            "our site",
            R::Endpoint(Endpoint { site: "west".into(), ..endpoint() }),
            "import_foreign_site",
        ),
        (
            "a third site",
            R::Endpoint(Endpoint { site: "north".into(), ..endpoint() }),
            "import_foreign_site",
        ),
        ("endpoint id", R::Endpoint(Endpoint { id: "E 1".into(), ..endpoint() }), "import_invalid"),
        ("port name", R::Endpoint(Endpoint { port: "a b".into(), ..endpoint() }), "import_invalid"),
        (
            "locality",
            R::Endpoint(Endpoint { locality: Some(long), ..endpoint() }),
            "import_invalid",
        ),
        (
            "endpoint of kube-system",
            R::Endpoint(Endpoint { service: "dns.kube-system".into(), ..endpoint() }),
            "import_reserved_namespace",
        ),
        (
            "kube-system",
            R::Service(Service { name: "dns.kube-system".into(), ..service() }),
            "import_reserved_namespace",
        ),
        (
            "federation",
            R::Service(Service { name: "federation.isthmus-system".into(), ..service() }),
            "import_reserved_namespace",
        ),
        (
            "service name",
            R::Service(Service { name: "orders".into(), ..service() }),
            "import_invalid",
        ),
        ("no port", R::Service(Service { ports: vec![], ..service() }), "import_invalid"),
        ("port 0", R::Service(Service { ports: ports(0), ..service() }), "import_invalid"),
        (
            "our gateway",
            R::Gateway(Gateway { site: "west".into(), ..gateway() }),
            "import_foreign_site",
        ),
        ("gateway id", R::Gateway(Gateway { id: String::new(), ..gateway() }), "import_invalid"),
        (
            "no port in address",
            R::Gateway(Gateway { tls_addresses: vec!["gw.example".into()], ..gateway() }),
            "import_invalid",
        ),
        (
            "too many addresses",
            R::Gateway(Gateway { tls_addresses: vec!["a:1".into(); 17], ..gateway() }),
            "import_invalid",
        ),
        (
            "our bundle",
            R::Bundle(Bundle {
                trust_domain: "west.example".into(),
                ..bundle(9, vec![old.clone()])
            }),
            "import_bundle",
        ),
        (
            "a third's bundle",
            R::Bundle(Bundle {
                trust_domain: "north.example".into(),
                ..bundle(9, vec![old.clone()])
            }),
            "import_bundle",
        ),
        (
            "an old bundle",
            R::Bundle(bundle(2, vec![old.clone(), root("east.example")])),
            "import_bundle",
        ),
        ("a fork", R::Bundle(bundle(3, vec![old.clone(), root("east.example")])), "import_bundle"),
        ("another lineage", R::Bundle(bundle(4, vec![root("east.example")])), "import_bundle"),
        ("no roots", R::Bundle(bundle(4, vec![])), "import_bundle"),
        ("no certificate", R::Bundle(bundle(4, vec![old.clone(), vec![1, 2, 3]])), "import_bundle"),
        ("two in one", R::Bundle(bundle(4, vec![[old.clone(), old].concat()])), "import_bundle"),
        ("a site", R::Site(mesh_api::v1::Site::default()), "import_kind"),
        ("a link", R::Link(mesh_api::v1::Link::default()), "import_kind"),
        ("our revocation", revocation(WEB), "import_foreign_identity"),
        (
            "our node's",
            revocation("spiffe://west.example/node/6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11"),
            "import_foreign_identity",
        ),
        // It could be anybody's.
        ("a bare node", revocation("node:6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11"), "import_invalid"),
        ("a serial", revocation("serial:ab01"), "import_invalid"),
        ("no revocation", revocation(""), "import_invalid"),
    ];
    for (name, wrong, expected) in table {
        let mixed = delta([R::Service(service()), wrong]);
        let error = known.apply(&Imported::default(), &mixed).expect_err(name);
        assert_eq!(error.code(), expected, "{name}: {error}");
    }
}

const WEB: &str = "spiffe://west.example/ns/shop/sa/web";

fn revocation(subject: &str) -> R {
    R::Revocation(mesh_api::v1::Revocation { subject: subject.into(), revoked_at_unix_s: 7 })
}

#[test]
fn a_link_revokes_what_is_of_its_own_domain() {
    let known = Known::new();
    let own = [
        "spiffe://east.example/node/6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11",
        "spiffe://east.example/ns/shop/sa/web",
    ];
    let have = known.apply(&Imported::default(), &delta(own.map(revocation))).unwrap();
    assert_eq!(have.revocations.keys().map(String::as_str).collect::<Vec<_>>(), own);
    let key = ResourceKey { kind: ResourceKind::Revocation.into(), name: own[0].into() };
    let undone = Delta { from: revision(1), to: revision(2), remove: vec![key], upsert: vec![] };
    assert_eq!(known.apply(&have, &undone).unwrap().revocations.len(), 1);
}

#[test]
fn a_bundle_follows_its_own_lineage() {
    let known = Known::new();
    let roots = vec![known.bundle.roots[0].clone(), root("east.example")];
    let next = Bundle { sequence: 4, roots, ..known.bundle.clone() };
    let imported = known.apply(&Imported::default(), &delta([R::Bundle(next.clone())])).unwrap();
    assert_eq!(imported.bundle, Some(next));
}

#[test]
fn keys_for_tokens_may_be_unknown_to_one_of_the_versions() {
    let key = |kid: &str| mesh_api::v1::JwtKey {
        kid: kid.into(),
        p256: vec![4; 65],
        ..mesh_api::v1::JwtKey::default()
    };
    let bundle = |sequence, kids: &[&str]| {
        let jwt_keys = kids.iter().map(|kid| key(kid)).collect();
        Bundle { sequence, jwt_keys, ..Known::new().bundle }
    };
    let roots = Known::new().bundle.roots;
    for (known, new, expected) in [
        // This side was older, or the other one is again.
        (bundle(3, &[]), bundle(3, &["a"]), true),
        (bundle(3, &["a"]), bundle(3, &[]), true),
        (bundle(3, &["a"]), bundle(4, &["a", "b"]), true),
        (bundle(3, &["a"]), bundle(3, &["b"]), false),
        (bundle(3, &["a"]), bundle(3, &["a", "b"]), false),
        (bundle(3, &["a"]), bundle(2, &["a"]), false),
        (bundle(3, &[]), bundle(2, &["a"]), false),
    ] {
        let of = |bundle: Bundle| Bundle { roots: roots.clone(), ..bundle };
        let (known, new) = (of(known), of(new));
        let (kids, sequence) = (known.jwt_keys.len(), new.sequence);
        let known = Known { bundle: known, ..Known::new() };
        let imported = known.apply(&Imported::default(), &delta([R::Bundle(new.clone())]));
        assert_eq!(imported.is_ok(), expected, "{kids} keys, then {sequence}: {new:?}");
    }
    let other_root =
        Bundle { roots: vec![roots[0].clone(), root("east.example")], ..bundle(3, &["a"]) };
    let known = Known { bundle: Bundle { roots, ..bundle(3, &[]) }, ..Known::new() };
    let forked = known.apply(&Imported::default(), &delta([R::Bundle(other_root)]));
    assert_eq!(forked.unwrap_err().code(), "import_bundle", "only keys for tokens");
}

#[test]
fn differences_follow_what_is_there() {
    let known = Known::new();
    let all = delta([R::Service(service()), R::Endpoint(endpoint()), R::Gateway(gateway())]);
    let have = known.apply(&Imported::default(), &all).unwrap();

    let key = |kind: ResourceKind, name: &str| ResourceKey { kind: kind.into(), name: name.into() };
    let remove = vec![
        key(ResourceKind::Endpoint, "east/e1"),
        // Of another site: there is no such thing.
        key(ResourceKind::Gateway, "west/gw-1"),
        key(ResourceKind::Bundle, "east.example"),
    ];
    let change = Delta { from: revision(1), to: revision(2), remove, upsert: vec![] };
    let next = known.apply(&have, &change).unwrap();
    assert!(next.endpoints.is_empty());
    assert_eq!((next.services.len(), next.gateways.len()), (1, 1));

    let error = known.apply(&next, &change).unwrap_err();
    assert_eq!(error.code(), "import_revision");
    let endless = Delta { to: None, ..all.clone() };
    assert_eq!(known.apply(&have, &endless).unwrap_err().code(), "import_invalid");
    // A whole state replaces what was there.
    let whole = known.apply(&next, &delta([])).unwrap();
    assert!(whole.services.is_empty());
}

#[test]
fn a_link_brings_no_more_than_a_link_may() {
    let known = Known::new();
    let many = (0..=MAX_GATEWAYS).map(|i| R::Gateway(Gateway { id: format!("g{i}"), ..gateway() }));
    let error = known.apply(&Imported::default(), &delta(many)).unwrap_err();
    assert_eq!(error.code(), "import_limit");
}

#[test]
fn unknown_health_and_large_weights_are_tamed() {
    let known = Known::new();
    let odd = Endpoint { health: 99, weight: u32::MAX, capacity: u32::MAX, ..endpoint() };
    let imported = known.apply(&Imported::default(), &delta([R::Endpoint(odd)])).unwrap();
    let endpoint = &imported.endpoints["e1"];
    assert_eq!((endpoint.health(), endpoint.weight), (Health::Unknown, MAX_WEIGHT));
    assert_eq!(endpoint.capacity, MAX_WEIGHT);
}
