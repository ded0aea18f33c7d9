use mesh_api::v1::{
    AuthorityRecord, Bundle, BundleUpdated, EndpointRegistered, Gateway as WireGateway,
    GatewaySeen, Grants, Link, LinkMade, NodeJoined, Protocol, Register, Revision,
    Revocation as WireRevocation, ServiceExported, SiteCreated, authority_record::Event,
};

use super::*;
use crate::{
    imports::Imported,
    live::{GatewayLive, LinkLive, Reported},
};

const NODE: &str = "00000000-0000-4000-8000-000000000001";

struct World {
    state: State,
    live: Live,
    liveness: Liveness,
}

impl World {
    fn new() -> Self {
        let mut world =
            Self { state: State::default(), live: Live::default(), liveness: Liveness::Alive };
        world.happen(Event::SiteCreated(SiteCreated {
            name: "west".into(),
            trust_domain: "west.example".into(),
            root: vec![1],
            ..SiteCreated::default()
        }));
        world.happen(Event::NodeJoined(NodeJoined {
            id: NODE.into(),
            grants: Some(Grants::default()),
            ..NodeJoined::default()
        }));
        world
    }

    fn happen(&mut self, event: Event) {
        let n = self.state.revision.n + 1;
        let record = AuthorityRecord {
            revision: Some(Revision { epoch: 1, n }),
            at_unix_ms: n.cast_signed(),
            event: Some(event),
            ..AuthorityRecord::default()
        };
        self.state.fold(&record).unwrap();
    }

    fn register(&mut self, instance: &str, service: &str) {
        let ports = vec![http(80)];
        self.happen(Event::Registered(EndpointRegistered {
            node: NODE.into(),
            spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
            register: Some(Register {
                instance: instance.into(),
                service: service.into(),
                ports,
                target_ports: vec![8080],
                target_address: "127.0.0.1".into(),
                address: "10.0.0.1:4143".into(),
                weight: 1,
                ..Register::default()
            }),
            registered_at: 0,
        }));
        let reported = Reported { health: Health::Healthy, detail: String::new() };
        self.live.health.insert((NODE.parse().unwrap(), instance.into()), reported);
    }

    fn export(&mut self, service: &str) {
        let service = service.into();
        self.happen(Event::ServiceExported(ServiceExported {
            service,
            all: true,
            ..ServiceExported::default()
        }));
    }

    fn link(&mut self, site: &str) {
        let trust_domain = format!("{site}.example");
        let link =
            Link { site: site.into(), trust_domain: trust_domain.clone(), ..Link::default() };
        let bundle =
            Bundle { trust_domain, sequence: 1, roots: vec![vec![2]], ..Bundle::default() };
        self.happen(Event::LinkMade(LinkMade {
            link: Some(link),
            bundle: Some(bundle),
            gateways: vec![WireGateway { id: "g".into(), site: site.into(), ..Default::default() }],
        }));
    }

    fn import(&mut self, site: &str, service: &str, number: u32) {
        let live: &mut LinkLive = self.live.links.entry(site.parse().unwrap()).or_default();
        let imported: &mut Imported = &mut live.imported;
        let wire =
            Service { name: service.into(), ports: vec![http(number)], ..Service::default() };
        imported.services.insert(service.parse().unwrap(), wire);
        let endpoint = Endpoint {
            id: format!("{site}-{service}"),
            service: service.into(),
            port: "http".into(),
            site: site.into(),
            spiffe_id: format!("spiffe://{site}.example/ns/shop/sa/x"),
            ..Endpoint::default()
        };
        imported.endpoints.insert(endpoint.id.clone(), endpoint);
    }

    fn render(&self) -> Rendered {
        self.render_with(AccessPolicy::AllAuthenticated)
    }

    fn render_with(&self, default_access: AccessPolicy) -> Rendered {
        let liveness = |_: &NodeId| self.liveness;
        let sources = Sources {
            state: &self.state,
            live: &self.live,
            liveness: &liveness,
            federation_address: "10.0.0.9:8446",
            default_access,
        };
        render(&sources, &mut VirtualAddresses::new(Default::default()))
    }
}

fn http(number: u32) -> Port {
    Port { name: "http".into(), number, protocol: Protocol::Http.into() }
}

fn endpoints(resources: &Resources) -> Vec<Endpoint> {
    let endpoint = |resource: &mesh_api::v1::Resource| match &resource.resource {
        Some(R::Endpoint(endpoint)) => Some(endpoint.clone()),
        _ => None,
    };
    resources.values().filter_map(|resource| endpoint(resource)).collect()
}

fn service(resources: &Resources, name: &str) -> Service {
    let find = |resource: &mesh_api::v1::Resource| match &resource.resource {
        Some(R::Service(service)) if service.name == name => Some(service.clone()),
        _ => None,
    };
    resources.values().find_map(|resource| find(resource)).expect(name)
}

#[test]
fn what_a_node_registered_is_published_as_liveness_has_it() {
    let mut world = World::new();
    world.register("a", "orders.shop");
    for (liveness, expected) in [
        (Liveness::Alive, Some(Health::Healthy)),
        (Liveness::Leaving, Some(Health::Healthy)),
        (Liveness::Unknown, Some(Health::Unknown)),
        (Liveness::Lapsed, None),
    ] {
        world.liveness = liveness;
        let rendered = world.render().resources;
        let health = endpoints(&rendered).first().map(Endpoint::health);
        assert_eq!(health, expected, "{liveness:?}");
        // The name stays: "no endpoint" is a better answer than "no service".
        assert_eq!(service(&rendered, "orders.shop").ports, [http(80)]);
    }
}

#[test]
fn keys_for_tokens_go_to_linked_sites_and_not_to_proxies() {
    let mut world = World::new();
    world.link("east");
    let jwt_keys = vec![mesh_api::v1::JwtKey { kid: "k".into(), ..Default::default() }];
    for of in [world.state.site().bundle.clone(), linked(&world).bundle.clone()] {
        let bundle = Bundle { sequence: 2, jwt_keys: jwt_keys.clone(), ..of };
        world.happen(Event::BundleUpdated(BundleUpdated { bundle: Some(bundle) }));
    }
    let bundles = |resources: &Resources| -> Vec<Bundle> {
        let bundle = |resource: &mesh_api::v1::Resource| match &resource.resource {
            Some(R::Bundle(bundle)) => Some(bundle.clone()),
            _ => None,
        };
        resources.values().filter_map(|resource| bundle(resource)).collect()
    };
    let view = world.render().resources;
    let told = bundles(&view);
    assert_eq!(told.len(), 2);
    assert!(told.iter().all(|bundle| bundle.sequence == 2 && bundle.jwt_keys.is_empty()));
    let exported = bundles(&render_export(&world.state, &view, &"east".parse().unwrap()));
    assert_eq!(exported, [world.state.site().bundle.clone()]);
    assert_eq!(exported[0].jwt_keys, jwt_keys);
}

fn linked(world: &World) -> &LinkState {
    world.state.links.values().next().unwrap()
}

#[test]
fn nobody_is_sent_to_a_revoked_endpoint() {
    for subject in [format!("node:{NODE}"), "spiffe://west.example/ns/shop/sa/orders".into()] {
        let mut world = World::new();
        world.register("a", "orders.shop");
        world.happen(Event::Revoked(WireRevocation { subject, revoked_at_unix_s: 1 }));
        assert!(endpoints(&world.render().resources).is_empty());
    }
}

#[test]
fn endpoint_ids_are_stable_and_never_used_again() {
    let mut world = World::new();
    world.register("a", "orders.shop");
    world.register("b", "orders.shop");
    let ids = |world: &World| {
        endpoints(&world.render().resources).into_iter().map(|e| e.id).collect::<BTreeSet<_>>()
    };
    let first = ids(&world);
    assert_eq!(first.len(), 2);
    assert!(first.iter().all(|id| id.parse::<mesh_core::EndpointId>().is_ok()));
    assert_eq!(ids(&world), first);
    world.happen(Event::Deregistered(mesh_api::v1::EndpointDeregistered {
        node: NODE.into(),
        instance: "a".into(),
        reason: "asked".into(),
    }));
    world.register("a", "orders.shop");
    assert_eq!(ids(&world).intersection(&first).count(), 1, "b's only");
}

#[test]
fn gateways_that_hold_a_session_are_named() {
    let mut world = World::new();
    world.register("a", "orders.shop");
    let nodes = BTreeSet::from([NODE.parse().unwrap()]);
    let gateway = GatewayLive { nodes, ..GatewayLive::default() };
    world.live.gateways.insert("gw-1".into(), gateway);
    world.live.gateways.insert("gw-2".into(), GatewayLive::default());
    assert_eq!(endpoints(&world.render().resources)[0].via, ["gw-1"]);
}

#[test]
fn an_older_link_keeps_a_name_from_a_newer_one() {
    let mut world = World::new();
    world.link("north");
    world.link("east");
    world.import("north", "orders.shop", 80);
    world.import("east", "orders.shop", 80);
    let rendered = world.render();
    assert_eq!(service(&rendered.resources, "orders.shop").imported_from, ["north"]);
    let sites: Vec<_> = endpoints(&rendered.resources).into_iter().map(|e| e.site).collect();
    assert_eq!(sites, ["north"]);
    assert_eq!(rendered.notes.len(), 1);
    assert_eq!(rendered.notes[0].site.as_str(), "east");
}

#[test]
fn a_local_name_is_merged_with_every_site_it_is_exported_to() {
    let mut world = World::new();
    world.link("north");
    world.link("east");
    world.register("a", "orders.shop");
    world.import("north", "orders.shop", 80);
    world.import("east", "orders.shop", 81);
    assert_eq!(world.render().notes.len(), 2, "not exported: {:?}", world.render().notes);
    world.export("orders.shop");
    let rendered = world.render();
    let merged = service(&rendered.resources, "orders.shop");
    assert_eq!((merged.imported_from, merged.exported_to.len()), (vec!["north".to_owned()], 2));
    assert!(rendered.notes[0].why.contains("another number"), "{:?}", rendered.notes);
}

#[test]
fn a_link_gets_local_endpoints_of_exported_services_without_addresses() {
    let mut world = World::new();
    world.link("east");
    world.register("a", "orders.shop");
    world.register("b", "secret.shop");
    world.import("east", "orders.shop", 80);
    world.export("orders.shop");
    world.happen(Event::GatewaySeen(GatewaySeen {
        gateway: Some(WireGateway {
            id: "gw-1".into(),
            tls_addresses: vec!["gw.example:8443".into()],
            ..Default::default()
        }),
    }));
    let view = world.render().resources;
    assert_eq!(endpoints(&view).len(), 3, "two of ours, one of theirs");
    let out = render_export(&world.state, &view, &"east".parse().unwrap());
    let told = endpoints(&out);
    assert_eq!(told.len(), 1);
    let empty = Endpoint {
        id: told[0].id.clone(),
        service: "orders.shop".into(),
        port: "http".into(),
        site: "west".into(),
        spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
        weight: 1,
        health: Health::Healthy.into(),
        workload: told[0].workload.clone(),
        ..Endpoint::default()
    };
    assert_eq!(told[0], empty);
    assert_eq!(told[0].workload.len(), 16, "a machine's, and says nothing of it");
    let service = service(&out, "orders.shop");
    let plain = Service { name: "orders.shop".into(), ports: vec![http(80)], ..Service::default() };
    assert_eq!(service, plain);
    // Besides: our gateway and our own bundle, nothing else.
    assert_eq!(out.len(), 4, "{:?}", out.keys());
}

#[test]
fn the_site_says_who_may_call_where_nothing_else_does() {
    let mut world = World::new();
    world.register("a", "orders.shop");
    let of = |default| service(&world.render_with(default).resources, "orders.shop").policy;
    assert_eq!(of(AccessPolicy::AllAuthenticated), None);
    assert_eq!(of(AccessPolicy::Deny), Some(Default::default()), "nobody");
    let audited = of(AccessPolicy::Audit).unwrap();
    assert_eq!((audited.rules.len(), audited.audit_ports), (0, vec!["http".to_owned()]));
}

#[test]
fn revocations_of_the_own_domain_go_over_links_and_others_stay() {
    let mut world = World::new();
    world.link("east");
    world.link("north");
    let own = "spiffe://west.example/ns/shop/sa/web";
    let node = format!("node:{NODE}");
    for subject in [own, &node, "serial:ab01", "spiffe://north.example/ns/shop/sa/web"] {
        let subject = subject.to_owned();
        world.happen(Event::Revoked(Revocation { subject, revoked_at_unix_s: 7 }));
    }
    let theirs = "spiffe://north.example/ns/shop/sa/thief";
    for subject in [theirs, "spiffe://east.example/ns/shop/sa/thief"] {
        let live = world.live.links.entry("north".parse().unwrap()).or_default();
        let revoked = Revocation { subject: subject.into(), revoked_at_unix_s: 8 };
        live.imported.revocations.insert(subject.into(), revoked);
    }
    let subjects = |resources: &Resources| -> Vec<String> {
        let one = |resource: &std::sync::Arc<mesh_api::v1::Resource>| match &resource.resource {
            Some(R::Revocation(revocation)) => Some(revocation.subject.clone()),
            _ => None,
        };
        resources.values().filter_map(one).collect()
    };
    let view = world.render().resources;
    let here = subjects(&view);
    assert!(here.contains(&theirs.to_owned()), "{here:?}");
    assert_eq!(here.len(), 5, "a link speaks for its own domain: {here:?}");
    let out = render_export(&world.state, &view, &"east".parse().unwrap());
    assert_eq!(subjects(&out), [format!("spiffe://west.example/node/{NODE}"), own.to_owned()]);
}
