//! Every protocol by every way there is, through real proxies and gateways.
//!
//! | way | own site | other site |
//! |---|---|---|
//! | direct | `direct.shop` | none: sites do not tell each other addresses |
//! | via gateway (QUIC, TLS) | none: proxies of one site dial each other | `remote.shop` |
//! | reverse (QUIC, TLS) | `back.shop` | `far.shop`, via gateway as its caller sees it |

mod apps;
mod clients;

use std::{collections::BTreeMap, future::Future, pin::Pin};

use edge_proxy::{
    app::App,
    config::{Config, Manner, Role, ServiceListener},
};
use mesh_api::v1::resource::Resource as Kind;
use mesh_core::{NodeId, Snapshot};

use self::clients::Door;
use super::{mesh::at, proxies::Proxy, *};

/// One way, which is a service of its own.
struct Way {
    service: &'static str,
    /// How the caller's proxy says that it went, and the application's proxy
    /// that it came.
    paths: (&'static str, &'static str),
    /// Which gateways carry it: of `west`, of `east`.
    gateways: (bool, bool),
    /// Its proxy's machine.
    node: &'static str,
}

/// One client takes milliseconds; many that hang shall not take minutes.
const CELL: Duration = Duration::from_secs(5);

/// In an order in which what is not carried has never been carried.
const WAYS: [Way; 4] = [
    Way {
        service: "direct.shop",
        paths: ("direct", "direct"),
        gateways: (false, false),
        node: "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e01",
    },
    Way {
        service: "back.shop",
        paths: ("reverse", "reverse"),
        gateways: (true, false),
        node: "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e02",
    },
    Way {
        service: "remote.shop",
        paths: ("via gateway", "direct"),
        gateways: (true, true),
        node: "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e03",
    },
    Way {
        service: "far.shop",
        paths: ("via gateway", "reverse"),
        gateways: (true, true),
        node: "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e04",
    },
];

impl Way {
    /// Whether the application runs in `west`, where the caller is.
    fn is_local(&self) -> bool {
        !self.gateways.1
    }

    /// Whether only a session that its machine dialled leads to it.
    fn is_reverse(&self) -> bool {
        self.paths.1 == "reverse"
    }

    fn node(&self) -> NodeId {
        self.node.parse().unwrap()
    }
}

/// Name, number and declared protocol of every service's ports.
const PORTS: [(&str, u32, v1::Protocol); 6] = [
    ("http", 80, v1::Protocol::Http),
    ("grpc", 81, v1::Protocol::Grpc),
    ("tcp", 82, v1::Protocol::Tcp),
    ("any", 83, v1::Protocol::Unspecified),
    ("greeting", 84, v1::Protocol::Tcp),
    ("tls", 85, v1::Protocol::Tls),
];

/// A client of one protocol; it panics if anything is not as it should be.
struct Protocol {
    name: &'static str,
    port: &'static str,
    /// As metrics call it.
    counted: &'static str,
    client: fn(Door) -> Pin<Box<dyn Future<Output = ()> + Send>>,
}

const fn protocol(
    name: &'static str,
    port: &'static str,
    counted: &'static str,
    client: fn(Door) -> Pin<Box<dyn Future<Output = ()> + Send>>,
) -> Protocol {
    Protocol { name, port, counted, client }
}

const PROTOCOLS: [Protocol; 12] = [
    protocol("HTTP/1.1", "http", "http", |door| Box::pin(clients::http11(door))),
    protocol("HTTP/1.1 in chunks", "http", "http", |door| Box::pin(clients::chunked(door))),
    protocol("HTTP/1.0", "http", "http", |door| Box::pin(clients::http10(door))),
    protocol("HTTP/2", "grpc", "http", |door| Box::pin(clients::http2(door))),
    protocol("HTTP/2 to HTTP/1", "http", "http", |door| Box::pin(clients::http2_to_http1(door))),
    protocol("gRPC unary", "grpc", "http", |door| Box::pin(clients::unary(door))),
    protocol("gRPC both ways", "grpc", "http", |door| Box::pin(clients::bidi(door))),
    protocol("WebSocket", "http", "http", |door| Box::pin(clients::web_socket(door))),
    protocol("opaque TCP", "tcp", "tcp", |door| Box::pin(clients::half_closed(door))),
    protocol("opaque TCP, guessed", "any", "tcp", |door| Box::pin(clients::half_closed(door))),
    protocol("server first", "greeting", "tcp", |door| Box::pin(clients::greeted(door))),
    protocol("TLS", "tls", "tcp", |door| Box::pin(clients::tls(door))),
];

/// The caller, the four proxies of applications, and two gateways between.
struct World {
    pair: Pair,
    source: Proxy,
    destinations: Vec<Proxy>,
    tls: apps::Tls,
}

impl World {
    async fn start(transport: LinkTransport) -> Self {
        let nowhere = "127.0.0.1:9".parse().unwrap();
        let pair = Pair::new(transport, nowhere).await;
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let sites = [&pair.west, &pair.east];
        let mut config = Config { http_listener: Some(any), ..Config::given(Role::Node) };
        for way in &WAYS {
            config.listeners.extend(PORTS.iter().map(|(port, ..)| ServiceListener {
                listen: any,
                service: way.service.parse().unwrap(),
                port: port.parse().unwrap(),
                tls: None,
                manner: Manner::default(),
            }));
        }
        let source = Proxy::start_on(node(), &pair.west, "checkout", &sites, config).await;
        let mut destinations = Vec::new();
        for way in &WAYS {
            let inbound = (!way.is_reverse()).then_some(any);
            let config = Config { inbound, ..Config::given(Role::Node) };
            let of = if way.is_local() { &pair.west } else { &pair.east };
            destinations.push(Proxy::start_on(way.node(), of, "web", &sites, config).await);
        }
        let world = Self { pair, source, destinations, tls: apps::Tls::new() };
        world.publish(transport).await;
        world.settled(transport).await;
        world
    }

    async fn publish(&self, transport: LinkTransport) {
        let tls = self.tls.clone();
        let targets = [
            apps::serve(apps::http1).await,
            apps::http2().await,
            apps::serve(apps::counted).await,
            apps::serve(apps::counted).await,
            apps::serve(apps::greeting).await,
            apps::serve(move |stream| tls.clone().answer(stream)).await,
        ];
        let in_west = self.view(&self.pair.west, transport, &targets);
        let in_east = self.view(&self.pair.east, transport, &targets);
        self.pair.west_gateway.publish(in_west.clone());
        self.pair.east_gateway.publish(in_east.clone());
        self.source.publish(in_west.clone());
        for (way, destination) in WAYS.iter().zip(&self.destinations) {
            let view = if way.is_local() { &in_west } else { &in_east };
            destination.publish(view.clone());
        }
    }

    /// What everybody in `of` knows: addresses only of what runs there, and
    /// gateways by one transport only.
    fn view(&self, of: &Site, transport: LinkTransport, targets: &[SocketAddr]) -> Snapshot {
        let (west, east) = (&self.pair.west, &self.pair.east);
        let is_west = of.name == west.name;
        let mut kinds = vec![
            site(of, None),
            bundle(west),
            bundle(east),
            link(if is_west { east } else { west }, is_west, transport),
            door(west, "gw-w", &self.pair.west_gateway, transport),
            door(east, "gw-e", &self.pair.east_gateway, transport),
        ];
        for (way, proxy) in WAYS.iter().zip(&self.destinations) {
            let runs_here = way.is_local() == is_west;
            if !way.is_local() || runs_here {
                kinds.push(ports_of(way, is_west));
                kinds.extend(self.endpoints(way, proxy, runs_here, targets));
            }
        }
        whole(kinds)
    }

    fn endpoints(
        &self,
        way: &Way,
        proxy: &Proxy,
        runs_here: bool,
        targets: &[SocketAddr],
    ) -> Vec<Kind> {
        let (of, id) =
            if way.is_local() { (&self.pair.west, "gw-w") } else { (&self.pair.east, "gw-e") };
        let one = |(port, target): (&(&str, u32, v1::Protocol), &SocketAddr)| {
            let name = format!("{}-{}", way.service.split('.').next().unwrap(), port.0);
            let mut endpoint = at(of, way.service, &name, None, None);
            endpoint.port = port.0.into();
            if runs_here {
                endpoint.node = way.node.into();
                endpoint.target_port = target.port().into();
                endpoint.target_address = target.ip().to_string();
                endpoint.address =
                    proxy.bound.inbound.map(|addr| addr.to_string()).unwrap_or_default();
                endpoint.via = if way.is_reverse() { vec![id.into()] } else { Vec::new() };
            }
            Kind::Endpoint(endpoint)
        };
        PORTS.iter().zip(targets).map(one).collect()
    }

    /// Waits until every tunnel that a way needs is up.
    async fn settled(&self, transport: LinkTransport) {
        let holds = |told: &v1::NodeSessions, way: &Way| told.nodes.contains(&way.node.to_owned());
        self.pair.west_gateway.told(|told| holds(told, &WAYS[1])).await;
        self.pair.east_gateway.told(|told| holds(told, &WAYS[3])).await;
        self.source.has_tunnel(carried_by(transport)).await;
        self.pair.west_gateway.linked("east").await;
    }

    /// Where the client of a cell goes.
    fn door(&self, way: usize, port: &str) -> Door {
        let index = PORTS.iter().position(|(name, ..)| *name == port).unwrap();
        Door {
            http: self.source.bound.http.unwrap(),
            listener: self.source.bound.listeners[way * PORTS.len() + index],
            host: format!("{}:{}", WAYS[way].service, PORTS[index].1),
            root: self.tls.root(),
        }
    }

    /// One cell: what is not as it should be.
    async fn cell(&self, index: usize, protocol: &Protocol) -> Result<(), String> {
        let way = &WAYS[index];
        let ends = [
            (&self.source, "outbound", way.paths.0),
            (&self.destinations[index], "inbound", way.paths.1),
        ];
        let before = ends.map(|(proxy, direction, _)| counts(&proxy.app, direction, way.service));
        let client = tokio::spawn((protocol.client)(self.door(index, protocol.port)));
        match timeout(CELL, client).await {
            Err(_) => return Err("hangs".into()),
            Ok(Err(failed)) => return Err(text_of(failed)),
            Ok(Ok(())) => {}
        }
        for ((proxy, direction, path), before) in ends.into_iter().zip(before) {
            let wanted = (path.to_owned(), protocol.counted.to_owned(), String::new());
            let seen = news(&proxy.app, direction, way.service, &before).await;
            if seen != [wanted.clone()] {
                return Err(format!("{direction}: {seen:?}, not {wanted:?}"));
            }
        }
        Ok(())
    }

    async fn stop(self) {
        self.source.stop().await;
        for destination in self.destinations {
            destination.stop().await;
        }
        self.pair.stop().await;
    }
}

fn ports_of(way: &Way, is_west: bool) -> Kind {
    let port = |(name, number, protocol): &(&str, u32, v1::Protocol)| v1::Port {
        name: (*name).into(),
        number: *number,
        protocol: (*protocol).into(),
    };
    let list = |is: bool, site: &str| if is { vec![site.to_owned()] } else { Vec::new() };
    Kind::Service(v1::Service {
        name: way.service.into(),
        ports: PORTS.iter().map(port).collect(),
        exported_to: list(!way.is_local() && !is_west, "west"),
        imported_from: list(!way.is_local() && is_west, "east"),
        ..v1::Service::default()
    })
}

/// A gateway that can be reached by one transport only.
fn door(of: &Site, id: &str, running: &Running, transport: LinkTransport) -> Kind {
    let (quic, tls) = match transport {
        LinkTransport::Quic => (running.quic, None),
        LinkTransport::Tls | LinkTransport::Raced => (None, Some(running.tls)),
    };
    let text = |addr: Option<SocketAddr>| addr.iter().map(ToString::to_string).collect();
    Kind::Gateway(v1::Gateway {
        id: id.into(),
        site: of.name.into(),
        quic_addresses: text(quic),
        tls_addresses: text(tls),
    })
}

fn carried_by(transport: LinkTransport) -> Transport {
    if transport == LinkTransport::Quic { Transport::Quic } else { Transport::Tls }
}

fn text_of(failed: tokio::task::JoinError) -> String {
    let panic = failed.into_panic();
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without text").to_owned()
}

fn metrics(app: &App) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.shared.metrics.registry).unwrap();
    text
}

/// A label of a line of metrics.
fn label<'l>(line: &'l str, name: &str) -> &'l str {
    let rest = line.split_once(&format!("{name}=\"")).map_or("", |(_, rest)| rest);
    rest.split('"').next().unwrap_or_default()
}

fn number(line: &str) -> u64 {
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Path, protocol and reason of what has ended.
type Ended = (String, String, String);

fn counts(app: &App, direction: &str, service: &str) -> BTreeMap<Ended, u64> {
    let mut found = BTreeMap::new();
    for line in metrics(app).lines().filter(|line| line.starts_with("isthmus_proxy_request_total{"))
    {
        if label(line, "direction") == direction && label(line, "service") == service {
            let labels = ["path", "protocol", "reason"].map(|name| label(line, name).to_owned());
            *found.entry(labels.into()).or_default() += number(line);
        }
    }
    found
}

/// What has ended since; connections are counted a moment after their clients
/// have seen their end.
async fn news(
    app: &App,
    direction: &str,
    service: &str,
    before: &BTreeMap<Ended, u64>,
) -> Vec<Ended> {
    let look = async {
        loop {
            let mut now = counts(app, direction, service);
            now.retain(|ended, count| before.get(ended).is_none_or(|before| *before < *count));
            if !now.is_empty() {
                return now.into_keys().collect();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(CELL, look).await.unwrap_or_default()
}

/// Streams that a gateway has taken, and the transports of its tunnels.
fn carried(gateway: &Running) -> (u64, Vec<String>) {
    let text = metrics(&gateway.app);
    let of = |name: &str| {
        let begin = format!("isthmus_proxy_gateway_{name}{{");
        text.lines().filter(move |line| line.starts_with(&begin)).collect::<Vec<_>>()
    };
    let streams = of("streams").iter().chain(&of("streams_ended_total")).map(|l| number(l)).sum();
    let up = of("tunnels").into_iter().filter(|line| number(line) > 0);
    let mut transports: Vec<String> = up.map(|line| label(line, "transport").into()).collect();
    transports.sort();
    transports.dedup();
    (streams, transports)
}

async fn every_way(transport: LinkTransport) {
    let world = World::start(transport).await;
    let gateways = [&world.pair.west_gateway, &world.pair.east_gateway];
    let wanted = carried_by(transport).to_string();
    let mut failed = Vec::new();
    for (index, way) in WAYS.iter().enumerate() {
        let before = gateways.map(|gateway| carried(gateway).0);
        for protocol in &PROTOCOLS {
            if let Err(problem) = world.cell(index, protocol).await {
                failed.push(format!("{} over {wanted}, {}: {problem}", way.service, protocol.name));
            }
        }
        let uses = [way.gateways.0, way.gateways.1];
        for ((gateway, before), uses) in gateways.into_iter().zip(before).zip(uses) {
            let (after, transports) = carried(gateway);
            if (after > before) != uses || transports != [wanted.as_str()] {
                let problem =
                    format!("a gateway: {before} to {after} streams, over {transports:?}");
                failed.push(format!("{} over {wanted}: {problem}", way.service));
            }
        }
    }
    let tunnels = world.source.app.tunnels.transports();
    assert!(tunnels.iter().all(|(_, got)| *got == carried_by(transport)), "{tunnels:?}");
    world.stop().await;
    assert!(failed.is_empty(), "{failed:#?}");
}

#[tokio::test]
async fn every_protocol_takes_every_way_over_quic() {
    every_way(LinkTransport::Quic).await;
}

#[tokio::test]
async fn every_protocol_takes_every_way_over_tls() {
    every_way(LinkTransport::Tls).await;
}
