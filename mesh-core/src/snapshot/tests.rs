use std::sync::Arc;

use mesh_api::v1::{self, ResourceKind, resource::Resource as Kind};

use super::{Rejected, Revision, Snapshot, apply, to_delta};
use crate::example::{bundle, change, endpoint, gateway, link, mesh, service, site, whole};

fn ids(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let service = &snapshot.services[service];
    service.endpoints.iter().map(|e| format!("{}/{}", e.site, e.id)).collect()
}

#[test]
fn a_snapshot_survives_its_own_delta() {
    let mesh = mesh();
    assert_eq!(apply(None, &to_delta(&mesh)).unwrap(), mesh);
}

#[test]
fn endpoints_are_grouped_and_sorted() {
    let mut mesh = mesh();
    assert_eq!(ids(&mesh, "orders.shop"), ["east/o-1", "east/o-2"]);
    let upsert = [("west", "a"), ("east", "o-0"), ("east", "o-9")];
    let upsert = upsert.map(|(site, id)| Kind::Endpoint(endpoint("orders.shop", site, id)));
    mesh = apply(Some(&mesh), &change(&mesh, upsert.into(), vec![])).unwrap();
    assert_eq!(
        ids(&mesh, "orders.shop"),
        ["east/o-0", "east/o-1", "east/o-2", "east/o-9", "west/a"]
    );
    assert_eq!(mesh.revision, Revision { epoch: 7, n: 2 });
}

#[test]
fn only_what_changed_is_replaced() {
    let old = mesh();
    let unhealthy = v1::Endpoint {
        health: v1::Health::Unhealthy.into(),
        ..endpoint("orders.shop", "east", "o-1")
    };
    let new = apply(Some(&old), &change(&old, vec![Kind::Endpoint(unhealthy)], vec![])).unwrap();
    let same = |name: &str| Arc::ptr_eq(&old.services[name], &new.services[name]);
    assert!(same("billing.shop") && same("search.shop") && !same("orders.shop"));
    let endpoints = |s: &Snapshot| s.services["orders.shop"].endpoints.clone();
    assert!(!Arc::ptr_eq(&endpoints(&old)[0], &endpoints(&new)[0]));
    assert!(Arc::ptr_eq(&endpoints(&old)[1], &endpoints(&new)[1]));
    assert!(Arc::ptr_eq(&old.bundles, &new.bundles));
    assert!(Arc::ptr_eq(&old.revocations, &new.revocations));
}

#[test]
fn a_whole_state_shares_what_stayed() {
    let old = mesh();
    let mut delta = to_delta(&old);
    delta.to = Some(v1::Revision { epoch: 8, n: 1 });
    for resource in &mut delta.upsert {
        match &mut resource.resource {
            Some(Kind::Endpoint(e)) if e.id == "o-2" => e.weight = 5,
            Some(Kind::Bundle(b)) if b.trust_domain == "west.example" => b.sequence = 2,
            _ => {}
        }
    }
    let new = apply(Some(&old), &delta).unwrap();
    assert!(Arc::ptr_eq(&old.services["billing.shop"], &new.services["billing.shop"]));
    assert!(Arc::ptr_eq(
        &old.services["orders.shop"].endpoints[0],
        &new.services["orders.shop"].endpoints[0]
    ));
    assert_eq!(new.services["orders.shop"].endpoints[1].weight, 5);
    for (key, gateway) in &old.gateways {
        assert!(Arc::ptr_eq(gateway, &new.gateways[key]));
    }
    let bundle = |s: &Snapshot, domain: &str| s.bundles[domain].clone();
    assert!(Arc::ptr_eq(&bundle(&old, "east.example"), &bundle(&new, "east.example")));
    assert_eq!(bundle(&new, "west.example").sequence, 2);
    let same = apply(Some(&old), &to_delta(&old)).unwrap();
    assert!(Arc::ptr_eq(&old.bundles, &same.bundles));
    assert!(Arc::ptr_eq(&old.revocations, &same.revocations));
}

#[test]
fn a_whole_state_forgets_what_it_does_not_name() {
    let old = mesh();
    let delta = whole(vec![Kind::Site(site()), Kind::Service(service("billing.shop"))]);
    let new = apply(Some(&old), &delta).unwrap();
    assert_eq!(new.services.len(), 1);
    assert!(new.services["billing.shop"].endpoints.is_empty());
    assert!(new.links.is_empty() && new.gateways.is_empty() && new.bundles.is_empty());
}

#[test]
fn removal_of_each_kind() {
    let mut mesh = mesh();
    let revoke = |subject: &str| {
        Kind::Revocation(v1::Revocation { subject: subject.into(), revoked_at_unix_s: 0 })
    };
    let subjects = [
        "spiffe://east.example/ns/shop/sa/web",
        "node:6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11",
        "serial:0a0b",
    ];
    mesh = apply(Some(&mesh), &change(&mesh, subjects.map(revoke).into(), vec![])).unwrap();
    assert_eq!(mesh.revocations.iter().count(), 3);
    let remove = vec![
        (ResourceKind::Service, "billing.shop"),
        (ResourceKind::Endpoint, "east/o-1"),
        (ResourceKind::Bundle, "west.example"),
        (ResourceKind::Gateway, "east/gw-1"),
        (ResourceKind::Link, "west"),
        (ResourceKind::Revocation, subjects[0]),
        (ResourceKind::Revocation, subjects[1]),
        (ResourceKind::Revocation, subjects[2]),
        // Gone already, or never heard of.
        (ResourceKind::Endpoint, "east/o-77"),
        (ResourceKind::Bundle, "south.example"),
        (ResourceKind::Unspecified, "whatever"),
    ];
    let new = apply(Some(&mesh), &change(&mesh, vec![], remove)).unwrap();
    assert!(!new.services.contains_key("billing.shop"));
    assert_eq!(ids(&new, "orders.shop"), ["east/o-2"]);
    assert_eq!(new.bundles.len(), 1);
    assert_eq!(new.gateways.len(), 1);
    assert_eq!(new.links.len(), 1);
    assert_eq!(new.revocations.iter().count(), 0);
    // The site behind the export list is gone, so nobody of it may call.
    assert!(new.services["orders.shop"].policy.exported_to.is_empty());
}

#[test]
fn removal_of_more_endpoints_than_a_service_has() {
    let mesh = mesh();
    let remove = ["east/o-1", "east/o-2", "east/o-3", "east/b-1", "west/s-1"];
    let remove = remove.map(|name| (ResourceKind::Endpoint, name)).to_vec();
    let new = apply(Some(&mesh), &change(&mesh, vec![], remove)).unwrap();
    for name in ["orders.shop", "billing.shop", "search.shop"] {
        assert_eq!(ids(&new, name), [""; 0], "{name}");
    }
}

#[test]
fn an_endpoint_moves_to_another_service() {
    let mesh = mesh();
    let moved = Kind::Endpoint(endpoint("billing.shop", "east", "o-1"));
    let new = apply(Some(&mesh), &change(&mesh, vec![moved], vec![])).unwrap();
    assert_eq!(ids(&new, "orders.shop"), ["east/o-2"]);
    assert_eq!(ids(&new, "billing.shop"), ["east/b-1", "east/o-1"]);
}

#[test]
fn services_of_a_delta_come_before_its_endpoints() {
    let mesh = mesh();
    let upsert = vec![
        Kind::Endpoint(endpoint("new.shop", "east", "n-1")),
        Kind::Service(service("new.shop")),
    ];
    let new = apply(Some(&mesh), &change(&mesh, upsert, vec![])).unwrap();
    assert_eq!(ids(&new, "new.shop"), ["east/n-1"]);
}

#[test]
fn a_changed_service_keeps_its_endpoints() {
    let mesh = mesh();
    let changed = v1::Service { virtual_address: "240.0.0.9".into(), ..service("orders.shop") };
    let new = apply(Some(&mesh), &change(&mesh, vec![Kind::Service(changed)], vec![])).unwrap();
    assert_eq!(new.services["orders.shop"].virtual_address, Some("240.0.0.9".parse().unwrap()));
    assert_eq!(ids(&new, "orders.shop"), ["east/o-1", "east/o-2"]);
    // Replaced and removed in one: it begins anew.
    let delta = change(
        &mesh,
        vec![Kind::Service(service("orders.shop"))],
        vec![(ResourceKind::Service, "orders.shop")],
    );
    assert!(apply(Some(&mesh), &delta).unwrap().services["orders.shop"].endpoints.is_empty());
}

#[test]
fn policies_follow_the_links() {
    let mesh = mesh();
    let policy = |s: &Snapshot| s.services["orders.shop"].policy.clone();
    assert_eq!(policy(&mesh).local.as_str(), "east.example");
    let domains = |s: &Snapshot| -> Vec<String> {
        policy(s).exported_to.iter().map(ToString::to_string).collect()
    };
    assert_eq!(domains(&mesh), ["west.example"]);
    let renamed = v1::Link { trust_domain: "west-2.example".into(), ..link("west") };
    // `search.shop` has an endpoint whose identity is of the old domain.
    let upsert = vec![Kind::Link(renamed)];
    let remove = vec![(ResourceKind::Endpoint, "west/s-1")];
    let new = apply(Some(&mesh), &change(&mesh, upsert, remove)).unwrap();
    assert_eq!(domains(&new), ["west-2.example"]);
    let mut both = service("orders.shop");
    both.exported_to = vec!["north".into(), "west".into(), "nowhere".into()];
    let new = apply(Some(&mesh), &change(&mesh, vec![Kind::Service(both)], vec![])).unwrap();
    assert_eq!(domains(&new), ["north.example", "west.example"]);
}

#[test]
fn the_site_may_move_its_federation() {
    let mesh = mesh();
    let moved = v1::Site { federation_address: "10.0.0.6:8446".into(), ..site() };
    let new = apply(Some(&mesh), &change(&mesh, vec![Kind::Site(moved)], vec![])).unwrap();
    assert_eq!(new.federation, Some("10.0.0.6:8446".parse().unwrap()));
    let untouched = apply(Some(&mesh), &change(&mesh, vec![], vec![])).unwrap();
    assert_eq!(untouched.federation, Some("10.0.0.5:8446".parse().unwrap()));
}

#[test]
fn an_unknown_kind_of_resource_is_ignored() {
    let mesh = mesh();
    let mut delta = change(&mesh, vec![], vec![]);
    delta.upsert.push(v1::Resource { resource: None });
    delta.remove.push(v1::ResourceKey { kind: 99, name: "x".into() });
    let new = apply(Some(&mesh), &delta).unwrap();
    assert_eq!(new.services, mesh.services);
}

#[test]
fn an_equal_bundle_again_is_no_error() {
    let mesh = mesh();
    let same = Kind::Bundle(bundle("west.example", 1, b"root of west"));
    let newer = Kind::Bundle(bundle("west.example", 2, b"other root"));
    for kind in [same, newer] {
        assert!(apply(Some(&mesh), &change(&mesh, vec![kind], vec![])).is_ok());
    }
}

#[test]
fn endpoints_of_unlinked_sites_wait() {
    let mesh = mesh();
    let far = v1::Endpoint { target_port: 0, ..endpoint("orders.shop", "south", "x-1") };
    let new = apply(Some(&mesh), &change(&mesh, vec![Kind::Endpoint(far)], vec![])).unwrap();
    assert_eq!(new.services["orders.shop"].endpoints.len(), 3);
    // Once linked, its identity must be of that link.
    let odd = v1::Link { trust_domain: "odd.example".into(), ..link("south") };
    let error = apply(Some(&new), &change(&new, vec![Kind::Link(odd)], vec![])).unwrap_err();
    assert!(error.to_string().starts_with("endpoint south/x-1: "), "{error}");
    let good = change(&new, vec![Kind::Link(link("south"))], vec![]);
    assert!(apply(Some(&new), &good).is_ok());
}

#[test]
fn a_wrong_base_is_named() {
    let mesh = mesh();
    let mut delta = change(&mesh, vec![], vec![]);
    delta.from = Some(v1::Revision { epoch: 7, n: 0 });
    let have = mesh.revision;
    let from = Revision { epoch: 7, n: 0 };
    assert_eq!(apply(Some(&mesh), &delta), Err(Rejected::WrongBase { from, have }));
    let have = Revision::default();
    assert_eq!(apply(None, &delta), Err(Rejected::WrongBase { from, have }));
}

#[test]
fn revisions_go_forward_within_an_epoch() {
    let mesh = mesh();
    let from = mesh.revision;
    let cases = [
        (v1::Revision { epoch: 7, n: from.n }, true),
        (v1::Revision { epoch: 7, n: from.n + 9 }, true),
        (v1::Revision { epoch: 7, n: from.n - 1 }, false),
        (v1::Revision { epoch: 8, n: from.n + 1 }, false),
    ];
    for (to, good) in cases {
        let delta = v1::Delta { to: Some(to), ..change(&mesh, vec![], vec![]) };
        assert_eq!(apply(Some(&mesh), &delta).is_ok(), good, "{to:?}");
    }
    let delta = v1::Delta { to: None, ..change(&mesh, vec![], vec![]) };
    assert!(apply(Some(&mesh), &delta).is_err());
}

/// Each is refused with a message that names the resource and the rule.
#[test]
fn refusals() {
    let e = || endpoint("orders.shop", "east", "o-5");
    let s = || service("orders.shop");
    let cases: Vec<(Kind, &str)> = vec![
        (Kind::Endpoint(endpoint("none.shop", "east", "x")), "endpoint east/x: service none.shop"),
        (
            Kind::Endpoint(v1::Endpoint {
                spiffe_id: "spiffe://west.example/ns/a/sa/b".into(),
                ..e()
            }),
            "endpoint east/o-5: spiffe://west.example/ns/a/sa/b is not of east.example",
        ),
        (
            Kind::Endpoint(v1::Endpoint { site: "west".into(), ..e() }),
            "endpoint west/o-5: spiffe://east.example/ns/shop/sa/web is not of west.example",
        ),
        (
            Kind::Endpoint(v1::Endpoint { target_port: 0, ..e() }),
            "endpoint east/o-5: target_port: must be 1 to 65535",
        ),
        (Kind::Service(v1::Service { ports: vec![], ..s() }), "service orders.shop: ports: "),
        (Kind::Link(link("east")), "link east: leads to this very site"),
        (
            Kind::Link(v1::Link { trust_domain: "east.example".into(), ..link("south") }),
            "link south: trust domain east.example is taken",
        ),
        (
            Kind::Link(v1::Link { trust_domain: "west.example".into(), ..link("south") }),
            "link west: trust domain west.example is taken",
        ),
        (Kind::Link(v1::Link { transport: 9, ..link("south") }), "link south: transport: unsupp"),
        (Kind::Bundle(bundle("east.example", 2, b"x")), "bundle east.example: sequence 2 is not"),
        (Kind::Bundle(bundle("east.example", 3, b"x")), "bundle east.example: sequence 3 is not"),
        (Kind::Gateway(v1::Gateway { id: String::new(), ..gateway("x") }), "gateway : id: "),
        (Kind::Revocation(v1::Revocation::default()), "revocation : subject: "),
        (Kind::Site(v1::Site { name: "west".into(), ..site() }), "site west: a site keeps"),
        (Kind::Site(v1::Site { trust_domain: "x.y".into(), ..site() }), "site east: a site keeps"),
    ];
    let mesh = mesh();
    for (kind, message) in cases {
        let delta = change(&mesh, vec![kind], vec![]);
        let error = apply(Some(&mesh), &delta).expect_err(message);
        assert!(error.to_string().starts_with(message), "{error}\nexpected {message}");
    }
}

#[test]
fn a_delta_contradicts_itself() {
    let mesh = mesh();
    let e = || Kind::Endpoint(endpoint("orders.shop", "east", "o-5"));
    let elsewhere = Kind::Endpoint(endpoint("billing.shop", "east", "o-5"));
    for upsert in
        [vec![e(), e()], vec![e(), elsewhere], vec![Kind::Site(site()), Kind::Site(site())]]
    {
        let error = apply(Some(&mesh), &change(&mesh, upsert, vec![])).unwrap_err();
        assert!(error.to_string().ends_with("is there twice"), "{error}");
    }
    let remove_site = change(&mesh, vec![], vec![(ResourceKind::Site, "east")]);
    assert!(apply(Some(&mesh), &remove_site).is_err());
    assert!(apply(None, &whole(vec![Kind::Service(service("orders.shop"))])).is_err());
}

#[test]
fn one_endpoint_is_found_by_its_whole_name() {
    let mesh = mesh();
    let (east, west) = ("east".parse().unwrap(), "west".parse().unwrap());
    let found = mesh.endpoint("orders.shop", &east, "o-2").expect("is there");
    assert_eq!(found.id.as_str(), "o-2");
    assert!(mesh.endpoint("orders.shop", &west, "o-2").is_none());
    assert!(mesh.endpoint("billing.shop", &east, "o-2").is_none());
    assert!(mesh.endpoint("none.shop", &east, "o-2").is_none());
}
