//! Whatever happens, the view is what rendering everything makes of it.

use mesh_api::v1::{
    AuthorityRecord, Bundle, EndpointDeregistered, EndpointRegistered, Grants, Health, Link,
    LinkMade, NodeJoined, NodeLeft, Port, Protocol, Register, Revision, ServiceExported,
    SiteCreated, authority_record::Event,
};
use proptest::prelude::*;

use super::*;
use crate::live::{GatewayLive, Reported};

const NODES: u8 = 4;

/// What may happen to a site: on a node, to an instance of a service.
#[derive(Debug, Clone)]
enum Step {
    Registers { node: u8, service: u8, number: u32, weight: u32 },
    Deregisters { node: u8, service: u8 },
    Reports { node: u8, service: u8, health: bool },
    Heard { node: u8 },
    Silent,
    Holds { nodes: BTreeSet<u8> },
    Exports { service: u8, all: bool },
    Leaves { node: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (node, service) = (|| 0..NODES, || 0_u8..3);
    // Ports that differ are rare: then everything is rendered.
    let number = prop_oneof![9 => Just(80_u32), 1 => Just(81)];
    let step = prop_oneof![
        6 => (node(), service(), number, 1_u32..3)
            .prop_map(|(node, service, number, weight)| Step::Registers { node, service, number, weight }),
        4 => (node(), service()).prop_map(|(node, service)| Step::Deregisters { node, service }),
        6 => (node(), service(), any::<bool>())
            .prop_map(|(node, service, health)| Step::Reports { node, service, health }),
        3 => node().prop_map(|node| Step::Heard { node }),
        1 => Just(Step::Silent),
        2 => proptest::collection::btree_set(node(), 0..4).prop_map(|nodes| Step::Holds { nodes }),
        1 => (service(), any::<bool>()).prop_map(|(service, all)| Step::Exports { service, all }),
        1 => node().prop_map(|node| Step::Leaves { node }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn node(n: u8) -> NodeId {
    format!("00000000-0000-4000-8000-0000000000{n:02x}").parse().unwrap()
}

struct World {
    state: State,
    inner: Inner,
    config: ViewConfig,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let config = ViewConfig::default();
        let inner = Inner::new(&config, 1, 1);
        let mut world = Self { state: State::default(), inner, config, now: Instant::now() };
        let (name, trust_domain) = ("west".into(), "west.example".into());
        let site = SiteCreated { name, trust_domain, root: vec![1], ..SiteCreated::default() };
        world.happens(Event::SiteCreated(site));
        let trust_domain = "east.example";
        let link =
            Link { site: "east".into(), trust_domain: trust_domain.into(), ..Link::default() };
        let bundle = Bundle {
            trust_domain: trust_domain.into(),
            sequence: 1,
            roots: vec![vec![2]],
            ..Bundle::default()
        };
        let gateways = Vec::new();
        world.happens(Event::LinkMade(LinkMade {
            link: Some(link),
            bundle: Some(bundle),
            gateways,
        }));
        (0..NODES).for_each(|n| world.joins(n));
        world
    }

    fn happens(&mut self, event: Event) {
        let n = self.state.revision.n + 1;
        let record = AuthorityRecord {
            revision: Some(Revision { epoch: 1, n }),
            at_unix_ms: n.cast_signed(),
            event: Some(event),
            ..AuthorityRecord::default()
        };
        self.state.fold(&record).unwrap();
    }

    fn joins(&mut self, n: u8) {
        let (id, grants) = (node(n).to_string(), Some(Grants::default()));
        self.happens(Event::NodeJoined(NodeJoined { id, grants, ..NodeJoined::default() }));
    }

    fn does(&mut self, step: &Step) {
        match step {
            Step::Registers { node: n, service, number, weight } => {
                if !self.state.nodes.contains_key(&node(*n)) {
                    self.joins(*n);
                }
                let protocol = Protocol::Http.into();
                let register = Register {
                    instance: format!("i{service}"),
                    service: format!("s{service}.shop"),
                    ports: vec![Port { name: "http".into(), number: *number, protocol }],
                    target_ports: vec![8080],
                    target_address: "127.0.0.1".into(),
                    address: "10.0.0.1:4143".into(),
                    weight: *weight,
                    ..Register::default()
                };
                self.happens(Event::Registered(EndpointRegistered {
                    node: node(*n).to_string(),
                    spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
                    register: Some(register),
                    registered_at: 0,
                }));
            }
            Step::Deregisters { node: n, service } => {
                let (node, instance) = (node(*n).to_string(), format!("i{service}"));
                self.happens(Event::Deregistered(EndpointDeregistered {
                    node,
                    instance,
                    reason: "".into(),
                }));
            }
            Step::Reports { node: n, service, health } => {
                let health = if *health { Health::Healthy } else { Health::Unhealthy };
                let key = (node(*n), format!("i{service}").into());
                if self.state.registrations.contains_key(&key) {
                    let reported = Reported { health, detail: String::new() };
                    self.inner.live.health.insert(key, reported);
                    self.inner.touched.add([&node(*n)]);
                }
            }
            Step::Heard { node: n } => {
                if self.inner.leases.heard_agent(&node(*n), self.now) {
                    self.inner.touched.add([&node(*n)]);
                }
            }
            Step::Silent => {
                self.now += std::time::Duration::from_secs(9);
                let Inner { leases, registered, .. } = &mut self.inner;
                if leases.tick(registered, self.now).changed {
                    self.inner.touched = Touched::Anywhere;
                }
            }
            Step::Holds { nodes } => {
                let nodes: BTreeSet<_> = nodes.iter().map(|n| node(*n)).collect();
                let held = self.inner.live.gateways.entry("gw-1".into()).or_default();
                let other: Vec<_> = held.nodes.symmetric_difference(&nodes).cloned().collect();
                *held = GatewayLive { nodes, ..GatewayLive::default() };
                self.inner.touched.add(&other);
            }
            Step::Exports { service, all } => {
                let service = format!("s{service}.shop");
                let exported = ServiceExported { service, all: *all, ..ServiceExported::default() };
                self.happens(Event::ServiceExported(exported));
            }
            Step::Leaves { node: n } => {
                self.happens(Event::NodeLeft(NodeLeft { id: node(*n).to_string() }));
            }
        }
    }

    /// Made of the same, all at once.
    fn whole(&self) -> (Resources, Resources) {
        let liveness = |node: &NodeId| self.inner.leases.liveness(node);
        let sources = Sources {
            state: &self.state,
            live: &self.inner.live,
            liveness: &liveness,
            federation_address: &self.config.federation_address,
            default_access: self.config.default_access,
        };
        let all = render(&sources, &mut VirtualAddresses::new(Default::default())).resources;
        let exported = render_export(&self.state, &all, &"east".parse().unwrap());
        (all, exported)
    }
}

proptest! {
    #[test]
    fn a_part_is_what_it_is_in_the_whole(steps in steps(), together in 1_usize..4) {
        let mut world = World::new();
        for steps in steps.chunks(together) {
            steps.iter().for_each(|step| world.does(step));
            let before = world.inner.site.resources().clone();
            let changed =
                world.inner.refresh(&Arc::new(world.state.clone()), &world.config);
            let (all, exported) = world.whole();
            prop_assert_eq!(world.inner.site.resources(), &all);
            prop_assert_eq!(world.inner.exports.values().next().unwrap().resources(), &exported);
            prop_assert!(changed || before == all, "a change is published");
            let known: BTreeSet<_> =
                world.state.registrations.keys().map(|(node, _)| node.clone()).collect();
            prop_assert_eq!(&world.inner.registered, &known);
        }
    }
}

#[test]
fn of_a_few_endpoints_nothing_else_is_rendered() {
    let mut world = World::new();
    let register = |n, weight| Step::Registers { node: n, service: 0, number: 80, weight };
    world.does(&register(0, 1));
    world.does(&Step::Registers { node: 1, service: 1, number: 80, weight: 1 });
    world.does(&Step::Heard { node: 0 });
    let state = Arc::new(world.state.clone());
    world.inner.refresh(&state, &world.config);
    // A mark that rendering everything would remove.
    let mark = Key { kind: ResourceKind::Service, name: "mark.shop".into() };
    let resource = Arc::new(v1::Resource::default());
    let marked = [(mark.clone(), resource)].into_iter().collect();
    world.inner.site.patch(std::iter::empty(), &marked);
    for step in [
        register(2, 1),
        register(0, 2),
        Step::Reports { node: 0, service: 0, health: true },
        Step::Holds { nodes: [0, 2].into() },
        Step::Deregisters { node: 2, service: 0 },
    ] {
        world.does(&step);
        let state = Arc::new(world.state.clone());
        assert!(world.inner.refresh(&state, &world.config), "{step:?}");
        assert!(world.inner.site.resources().contains_key(&mark), "{step:?}");
    }
    // The last of a service takes the service along.
    world.does(&Step::Deregisters { node: 0, service: 0 });
    world.inner.refresh(&Arc::new(world.state.clone()), &world.config);
    assert!(!world.inner.site.resources().contains_key(&mark));
}
