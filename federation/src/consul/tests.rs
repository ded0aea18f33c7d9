use std::{num::NonZeroU16, sync::Arc};

use mesh_api::v1::{self, Endpoint, Register, authority_record::Event, resource::Resource as R};
use mesh_consul::import::{Host, Imported, Instance, Skipped};
use mesh_core::NodeId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    registration::MAX_INSTANCES,
    testing::{TestSite, eventually},
};

fn config(door: &NodeId, more: &str) -> Config {
    let text = format!(
        "{{door: {door}, churn_interval: 1ms, import: [{{allow: ['*'], as_namespace: shop}}]{more}}}"
    );
    let written = mesh_runtime::config::parse(&text, "f.yaml").unwrap();
    Config::new(&written, "f.yaml").unwrap()
}

fn own_ports() -> OwnPorts {
    OwnPorts { listens: Arc::new([]), has: Arc::new(|_| false) }
}

fn instance(id: &str, port: u16) -> Instance {
    Instance {
        id: id.into(),
        address: Host::Ip("10.0.0.9".parse().unwrap()),
        port: NonZeroU16::new(port).unwrap(),
        health: Health::Passing,
        weight: 7,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        node: "n1".into(),
        dc: "dc1".into(),
    }
}

/// All of it heard.
fn import(services: &[(&str, u16, Vec<Instance>)]) -> Import {
    let one = |(name, port, instances): &(&str, u16, Vec<Instance>)| {
        let port = NonZeroU16::new(*port).unwrap();
        let imported = Imported { port, instances: instances.clone(), stale: None };
        (name.parse().unwrap(), imported)
    };
    let services = services.iter().map(one).collect();
    Import { services, complete: true, ..Import::default() }
}

/// A site with a door, and what is written for it.
struct World {
    site: TestSite,
    door: NodeId,
    bridge: Bridge,
}

impl World {
    async fn new() -> Self {
        let site = TestSite::lasting().await;
        let door = site.join(1).await;
        site.view.heard_agent(&door);
        let bridge = Bridge::of(&config(&door, "")).unwrap();
        Self { site, door, bridge }
    }

    async fn write(&self, import: &Import) -> BTreeMap<String, String> {
        write(&self.bridge, &self.site.view, &own_ports(), import).await.unwrap()
    }

    /// What the door has of itself, under a name that could be Consul's.
    async fn register_own(&self) {
        let own = Register {
            instance: "consul-agent".into(),
            service: "own.shop".into(),
            ports: vec![v1::Port { name: "main".into(), number: 1, ..v1::Port::default() }],
            target_ports: vec![1],
            ..Register::default()
        };
        let state = self.site.state();
        let own = crate::registration::decide_register(&state, &self.door, &own).unwrap();
        self.site.view.authority().commit("test", |_| Ok::<_, Never>((own, ()))).await.unwrap();
    }

    /// `service:port -> target` of what is registered.
    fn registered(&self) -> Vec<String> {
        let state = self.site.state();
        let one = |known: &Arc<crate::authority::state::Registration>| {
            let Register { service, ports, target_address, target_ports, .. } = &known.register;
            format!("{service}:{} -> {target_address}:{}", ports[0].number, target_ports[0])
        };
        let mut all: Vec<_> = state.registrations_of(&self.door).map(one).collect();
        all.sort();
        all
    }

    async fn endpoints(&self, what: &str, holds: impl Fn(&[Endpoint]) -> bool) {
        eventually(what, || {
            let all: Vec<Endpoint> = self.site.view.read(|resources, _| {
                let endpoint = |resource: &Arc<v1::Resource>| match &resource.resource {
                    Some(R::Endpoint(endpoint)) => Some(endpoint.clone()),
                    _ => None,
                };
                resources.values().filter_map(endpoint).collect()
            });
            holds(&all).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn imports_are_endpoints_of_the_door_with_its_identity() {
    let world = World::new().await;
    let one = import(&[("web.shop", 80, vec![instance("dc1/n1/web-1", 8080)])]);
    assert_eq!(world.write(&one).await, BTreeMap::new());
    assert_eq!(world.registered(), ["web.shop:80 -> 10.0.0.9:8080"]);
    world
        .endpoints("a healthy endpoint", |all| {
            matches!(all, [endpoint]
                if endpoint.spiffe_id == "spiffe://west.example/ns/shop/sa/orders"
                    && endpoint.weight == 7
                    && endpoint.health() == v1::Health::Healthy)
        })
        .await;
    let before = world.site.state().revision;
    world.write(&one).await;
    assert_eq!(world.site.state().revision, before, "it is not written again");

    for (health, expected) in [
        (Health::Warning, v1::Health::Healthy),
        (Health::Critical, v1::Health::Unhealthy),
        (Health::Maintenance, v1::Health::Draining),
    ] {
        let ill = Instance { health, ..instance("dc1/n1/web-1", 8080) };
        world.write(&import(&[("web.shop", 80, vec![ill])])).await;
        world.endpoints("its health", |all| all[0].health() == expected).await;
    }
    assert_eq!(world.site.state().revision, before, "health is never durable");
}

#[tokio::test]
async fn nothing_goes_before_everything_was_heard() {
    let world = World::new().await;
    let two = vec![instance("dc1/n1/web-1", 8080), instance("dc1/n2/web-1", 8081)];
    world.write(&import(&[("web.shop", 80, two)])).await;
    let both = ["web.shop:80 -> 10.0.0.9:8080", "web.shop:80 -> 10.0.0.9:8081"];
    assert_eq!(world.registered(), both);
    world.write(&Import::default()).await;
    assert_eq!(world.registered(), both, "a bridge that has just begun");
    let one = import(&[("web.shop", 80, vec![instance("dc1/n2/web-1", 8081)])]);
    world.write(&Import { complete: false, ..one.clone() }).await;
    assert_eq!(world.registered(), both);
    world.write(&one).await;
    assert_eq!(world.registered(), both[1..]);
    world.write(&import(&[])).await;
    assert!(world.registered().is_empty());
}

#[tokio::test]
async fn a_service_moves_to_another_port_at_once() {
    let world = World::new().await;
    let at = |port| import(&[("web.shop", port, vec![instance("a", port), instance("b", port)])]);
    world.write(&at(80)).await;
    assert_eq!(world.write(&at(90)).await, BTreeMap::new());
    assert_eq!(world.registered(), ["web.shop:90 -> 10.0.0.9:90"; 2]);
}

#[tokio::test]
async fn what_a_machine_may_not_register_is_not_imported_either() {
    let world = World::new().await;
    let named = Instance { address: Host::Name("web.example".into()), ..instance("named", 1) };
    let group = Instance { address: Host::Ip("224.0.0.1".parse().unwrap()), ..instance("g", 1) };
    let mut asked = import(&[
        ("web.other", 80, vec![instance("a", 80)]),
        ("named.shop", 80, vec![named]),
        ("group.shop", 80, vec![group]),
        ("fine.shop", 80, vec![instance("f", 80)]),
    ]);
    asked.skipped.insert(Skipped { what: "x_y".into(), why: "no name".into() });
    let refused = world.write(&asked).await;
    assert_eq!(world.registered(), ["fine.shop:80 -> 10.0.0.9:80"]);
    for (what, why) in [
        ("web.other", "not granted"),
        ("named", "register an IP address"),
        ("g", "more than one host"),
        ("x_y", "no name"),
    ] {
        assert!(refused[what].contains(why), "{what}: {refused:?}");
    }
    let many = (0..=MAX_INSTANCES).map(|i| instance(&i.to_string(), 80)).collect();
    let refused = world.write(&import(&[("web.shop", 80, many)])).await;
    assert!(refused["web.shop"].contains("instances already"), "{refused:?}");
    assert_eq!(world.registered().len(), MAX_INSTANCES);
}

#[tokio::test]
async fn who_writes_into_consul_opens_no_door_to_the_mesh_or_its_hosts() {
    let world = World::new().await;
    let own_ports = OwnPorts {
        listens: Arc::new(["10.0.0.8:8446".parse().unwrap()]),
        has: Arc::new(|_| false),
    };
    let door = Register {
        instance: "own".into(),
        service: "own.shop".into(),
        ports: vec![v1::Port { name: "main".into(), number: 1, ..v1::Port::default() }],
        target_ports: vec![1],
        address: "10.0.0.5:4143".into(),
        ..Register::default()
    };
    let state = world.site.state();
    let own = crate::registration::decide_register(&state, &world.door, &door).unwrap();
    world.site.view.authority().commit("test", |_| Ok::<_, Never>((own, ()))).await.unwrap();
    let at = |at: &str| {
        let at: std::net::SocketAddr = at.parse().unwrap();
        let address = Host::Ip(at.ip());
        let one = Instance { address, ..instance("x", at.port()) };
        let import = import(&[("web.shop", 80, vec![one])]);
        decide::decide(&world.site.state(), &world.bridge, &import, &own_ports)
    };
    for (forbidden, why) in [
        ("127.0.0.1:4191", "loopback"),
        ("[::1]:4191", "loopback"),
        ("169.254.169.254:80", "link-local"),
        ("168.63.129.16:80", "metadata"),
        ("255.255.255.255:80", "more than one host"),
        ("10.0.0.8:8446", "the mesh itself listens"),
        ("10.0.0.5:4143", "the mesh itself listens"),
    ] {
        let decided = at(forbidden);
        assert!(decided.events.is_empty(), "{forbidden}");
        assert!(decided.refused["x"].contains(why), "{forbidden}: {:?}", decided.refused);
    }
    let fine = at("10.0.0.8:80");
    let [Event::Registered(made)] = &fine.events[..] else { panic!("{fine:?}") };
    // Where the door is, its own registrations say.
    assert_eq!(made.register.as_ref().unwrap().address, "10.0.0.5:4143");
}

#[tokio::test]
async fn a_door_that_nobody_hears_of_gets_nothing() {
    let site = TestSite::alone().await;
    let door = site.join(1).await;
    let bridge = Bridge::of(&config(&door, "")).unwrap();
    let world = World { site, door, bridge };
    world.site.view.heard_agent(&world.door);
    let one = import(&[("web.shop", 80, vec![instance("a", 80)])]);
    world.write(&one).await;
    let lapsed = || !world.site.view.liveness(&world.door).0.is_published();
    eventually("its lease ends", || lapsed().then_some(())).await;
    let refused = world.write(&one).await;
    assert!(refused[world.door.as_str()].contains("nobody hears"), "{refused:?}");
}

#[tokio::test]
async fn what_nobody_imports_any_more_is_left_to_nobody() {
    let world = World::new().await;
    world.write(&import(&[("web.shop", 80, vec![instance("a", 80)])])).await;
    world.register_own().await;
    let kept = decide::left_behind(&world.site.state(), std::slice::from_ref(&world.bridge));
    assert_eq!(kept, []);
    let drain = Drain::new();
    let task =
        tokio::spawn(run(Consuls::default(), world.site.view.clone(), own_ports(), drain.clone()));
    eventually("it goes", || (world.registered() == ["own.shop:1 -> :1"]).then_some(())).await;
    drain.start();
    task.await.unwrap();
    let other = NodeId::clone(&"00000000-0000-4000-8000-000000000009".parse().unwrap());
    let elsewhere = Bridge::of(&config(&other, "")).unwrap();
    world.write(&import(&[("web.shop", 80, vec![instance("a", 80)])])).await;
    let events = decide::left_behind(&world.site.state(), &[elsewhere]);
    assert!(matches!(&events[..], [Event::Deregistered(gone)] if gone.node == world.door.as_str()));
}

/// An agent of Consul that has one service, and takes what is registered.
async fn agent() -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    const WEB: &str = r#"[{"Node":{"Node":"n1","Address":"10.0.0.9","Datacenter":"dc1"},
        "Service":{"ID":"web-1","Service":"web","Port":8080},"Checks":[]}]"#;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = log.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 8192];
                let read = stream.read(&mut bytes).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
                let body = match &text {
                    text if text.contains("index=") => return std::future::pending().await,
                    text if text.contains("/catalog/services") => r#"{"web":[]}"#,
                    text if text.contains("/health/service/web") => WEB,
                    _ => "{}",
                };
                log.lock().unwrap().push(text);
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 200 x\r\nconnection: close\r\nx-consul-index: 5\r\n\
                     content-length: {length}\r\n\r\n{body}"
                );
                let _ = stream.write_all(reply.as_bytes()).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_consul_is_followed_and_told() {
    let mut world = World::new().await;
    let (address, asked) = agent().await;
    let export = format!(
        ", address: '{address}', export: [{{service: own.shop, as: shop-own, \
         at: ['10.0.0.7:7001', '[fd00::7]:7001']}}, {{service: gone.shop, at: ['10.0.0.7:1']}}, \
         {{service: web.shop, as: shop-web, at: ['10.0.0.7:2']}}]"
    );
    world.register_own().await;
    let consuls = Consuls::new(&[config(&world.door, &export)]);
    world.site.consuls = consuls.clone();
    let drain = Drain::new();
    let view = world.site.view.clone();
    let task = tokio::spawn(run(consuls.clone(), view, own_ports(), drain.clone()));
    eventually("the import", || {
        world.registered().contains(&"web.shop:8080 -> 10.0.0.9:8080".to_owned()).then_some(())
    })
    .await;
    let told = |what: &str| asked.lock().unwrap().iter().any(|text| text.contains(what));
    eventually("the export", || {
        let both = told("isthmus:west:shop-own:10.0.0.7-7001")
            && told("isthmus:west:shop-own:-fd00--7--7001");
        (both && told("check/update/")).then_some(())
    })
    .await;
    assert!(!told("gone"), "the site does not have it");
    assert!(!told("shop-web"), "what it has told itself is not shown to it");
    let label = format!("{{consul=\"{address}\"}}");
    let figure = |name: &str| world.site.figure(&format!("{name}{label}"));
    eventually("it is known how it stands", || {
        let names = ["fresh", "index", "imported_services", "imported_instances"];
        let all = names.map(|name| figure(&format!("consul_{name}")));
        (all == [Some(1.0), Some(5.0), Some(1.0), Some(1.0)]).then_some(())
    })
    .await;
    assert_eq!(figure("consul_stale_seconds"), Some(0.0));
    let info = consuls.list().remove(0);
    assert_eq!((info.address, info.state.as_str(), info.exported), (address, "fresh", 2));
    drain.start();
    task.await.unwrap();
}
