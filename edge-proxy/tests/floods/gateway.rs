//! Strangers at a gateway's doors, over TCP and UDP, while a link carries
//! ordinary traffic.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use mesh_api::{ALPN_JOIN, ALPN_TUNNEL};
use mesh_core::{Allowed, SpiffeId, TrustBundles};
use mesh_tunnel::{Credentials, Trust, tls};
use tokio::{
    io::AsyncReadExt,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    attack::{Attack, Pace, Saturated, endure},
    handshakes::{connect_from, half_open, hello_of, seldom},
    machine::ASIDE,
    support::{
        any,
        apps::{App, fetch},
        pki::Authority,
        process::{Running, write_identity_of},
    },
    world::{Turn, answer, workers},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two sites, a gateway each, the client in one and the application in the
/// other.
pub(crate) struct Sites {
    west: Authority,
    east: Authority,
    checkout: Running,
    west_gateway: Running,
    pub(crate) door: SocketAddr,
    _others: [Running; 2],
    _app: App,
    _dir: tempfile::TempDir,
    _turn: Turn,
}

/// An address that is free over UDP and TCP, and that no connection of this
/// machine takes before it is used.
fn free() -> SocketAddr {
    loop {
        let [a, b, c] = rand::random::<[u8; 3]>().map(|n| n.clamp(1, 254));
        let tcp = std::net::TcpListener::bind((Ipv4Addr::new(127, a, b, c), 0)).unwrap();
        let addr = tcp.local_addr().unwrap();
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

fn site(own: &str, other: &str, doors: [SocketAddr; 2], service: &str) -> String {
    let [own_door, other_door] = doors;
    let dial = own == "west";
    format!(
        "site: {own}\ntrust_domain: {own}.example\ngateways:\n  - {{ id: gw-1, quic: \
         [\"{own_door}\"], tls: [\"{own_door}\"] }}\n  - {{ id: gw-1, site: {other}, quic: \
         [\"{other_door}\"], tls: [\"{other_door}\"] }}\nlinks:\n  - {{ site: {other}, \
         trust_domain: {other}.example, dial: {dial} }}\nservices:\n  - name: orders.shop\n    \
         ports: [{{ name: http, port: 80, protocol: http }}]\n{service}"
    )
}

fn config(dir: &Path, name: &str, site: &str, rest: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{name}.yaml"));
    let workers = workers();
    let text = format!(
        "identity:\n  files:\n    certificate: {name}.pem\n    key: {name}.key\n    bundles: {{ \
         west.example: west.root.pem, east.example: east.root.pem }}\nsnapshot: {{ file: \
         {site}.yaml }}\nworkers: {workers}\nadmin: 127.0.0.1:0\naccess_log: ./{name}.log\n{rest}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

impl Sites {
    pub(crate) async fn start() -> Self {
        let turn = Turn::take().await;
        let app = ASIDE.spawn(App::start(answer)).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (west, east) = (Authority::new("west.example"), Authority::new("east.example"));
        let own = |authority: &Authority, domain: &str, name: &str, gateway: bool| {
            let domain = format!("{domain}.example").parse().unwrap();
            let id = match gateway {
                true => SpiffeId::gateway(&domain),
                false => SpiffeId::workload(&domain, "shop", name).unwrap(),
            };
            write_identity_of(dir.path(), &authority.sign(&id), name);
        };
        own(&west, "west", "checkout", false);
        own(&west, "west", "west-gateway", true);
        own(&east, "east", "orders", false);
        own(&east, "east", "east-gateway", true);
        super::support::process::write_root(dir.path(), &west, "west.root");
        super::support::process::write_root(dir.path(), &east, "east.root");
        let (door, far) = (free(), free());
        let imported = "    imported_from: [east]\n    endpoints:\n      - { id: one-http, port: http, site: \
                        east, identity: \"spiffe://east.example/ns/shop/sa/orders\" }\n";
        std::fs::write(dir.path().join("west.yaml"), site("west", "east", [door, far], imported))
            .unwrap();
        let exported = |proxy: SocketAddr| {
            format!(
                "    exported_to: [west]\n    endpoints:\n      - {{ id: one-http, port: http, identity: \
                 \"spiffe://east.example/ns/shop/sa/orders\", proxy: \"{proxy}\", target: \
                 \"{}\" }}\n",
                app.addr
            )
        };
        let east_site = |proxy| {
            let text = site("east", "west", [far, door], &exported(proxy));
            std::fs::write(dir.path().join("east.yaml"), text).unwrap();
        };
        let inbound = free();
        east_site(inbound);
        let rest = format!("role: node\nhttp_listener: off\ninbound: {inbound}\n");
        let orders = Running::start(&config(dir.path(), "orders", "east", &rest)).await;
        let gateway = |at: SocketAddr| {
            format!("role: gateway\ngateway: {{ id: gw-1, quic: \"{at}\", tls: \"{at}\" }}\n")
        };
        let path = config(dir.path(), "east-gateway", "east", &gateway(far));
        let east_gateway = Running::start(&path).await;
        let path = config(dir.path(), "west-gateway", "west", &gateway(door));
        let west_gateway = Running::start(&path).await;
        let rest = "role: node\nhttp_listener: 127.0.0.1:0\n";
        let checkout = Running::start(&config(dir.path(), "checkout", "west", rest)).await;
        let linked = async {
            let http = checkout.listeners["http"];
            while fetch(http, "http://orders.shop/").await.0.status != 200 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, linked).await.expect("the link comes up");
        let _others = [orders, east_gateway];
        Self {
            west,
            east,
            checkout,
            west_gateway,
            door,
            _others,
            _app: app,
            _dir: dir,
            _turn: turn,
        }
    }

    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        let mut bundles = TrustBundles::clone(&self.west.bundles());
        bundles.append(&mut TrustBundles::clone(&self.east.bundles()));
        let trust = Trust { bundles: bundles.into(), ..Trust::default() };
        Credentials::new(Some(self.west.workload("friend")), trust)
    }

    /// Attacks the gateway of west.
    pub(crate) async fn endure<F: Future<Output = ()>>(
        &self,
        attack: Attack,
        run: impl FnOnce(Arc<Pace>) -> F,
    ) {
        endure(&self.west_gateway, self.checkout.listeners["http"], attack, run).await;
    }

    /// Somebody else still gets through the door.
    async fn others_get_in(&self, pace: &Pace) {
        let config = self.credentials().client(ALPN_TUNNEL, Allowed::Known);
        while pace.goes_on() {
            let stream = connect_from([127, 0, 0, 7], self.door).await.unwrap();
            let secured = timeout(PATIENCE, tls::connect(config.clone(), stream)).await;
            secured.expect("it waits").expect("a handshake");
            sleep(seldom()).await;
        }
    }
}

fn attack(name: &'static str, unit: &'static str, units: u64, counted: &'static str) -> Attack {
    let pace = if unit == "datagrams" { 800 } else { 400 };
    let saturated = Some(Saturated { percent: 10, pace });
    Attack { name, unit, units, memory: 24, counted: Some(counted), saturated }
}

const LIMITED: &str = "isthmus_proxy_gateway_turned_away_total{reason=\"source_limit\"";

#[tokio::test]
async fn half_handshakes_of_one_source_over_tcp_leave_the_link_alone() {
    let sites = Sites::start().await;
    let hello = hello_of(&sites.credentials(), ALPN_TUNNEL).await;
    let run = async |pace: Arc<Pace>| {
        let flood = half_open(sites.door, hello, pace.clone());
        tokio::join!(flood, sites.others_get_in(&pace));
    };
    sites.endure(attack("gateway: half TLS handshakes", "connections", 800, LIMITED), run).await;
}

/// Handshakes at the join door, which takes anybody, that then say nothing.
#[tokio::test]
async fn silence_at_the_join_door_leaves_the_link_alone() {
    const FULL: &str = "isthmus_proxy_gateway_turned_away_total{reason=\"join_limit\"";
    let sites = Sites::start().await;
    let config = sites.credentials().client(ALPN_JOIN, Allowed::Known);
    let run = async |pace: Arc<Pace>| {
        let mut tasks = JoinSet::new();
        for _ in 0..100 {
            let (pace, config, door) = (pace.clone(), config.clone(), sites.door);
            tasks.spawn(async move {
                while pace.goes_on() {
                    pace.turn(1).await;
                    let Ok(stream) = connect_from([127, 0, 0, 66], door).await else { continue };
                    pace.unit();
                    if let Ok(mut stream) = tls::connect(config.clone(), stream).await {
                        let mut nothing = [0; 16];
                        let said = stream.read(&mut nothing);
                        let _silence = timeout(Duration::from_millis(500), said).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
        tasks.join_all().await;
    };
    sites.endure(attack("gateway: silence at the join door", "connections", 200, FULL), run).await;
}

/// First datagrams of connections, each of its own, as a client sends them.
async fn initials(sites: &Sites, count: usize) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind(any()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let tls = sites.credentials().client(ALPN_TUNNEL, Allowed::Known);
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let endpoint = quinn::Endpoint::client(any()).unwrap();
    let to = socket.local_addr().unwrap();
    // A client says more than one, and all of one connection to one id.
    let mut said = BTreeMap::new();
    let mut begun = Vec::new();
    while said.len() < count {
        begun.push(endpoint.connect_with(config.clone(), to, "isthmus").unwrap());
        tokio::task::yield_now().await;
        let socket = socket.try_clone().unwrap();
        let datagram = tokio::task::spawn_blocking(move || {
            let mut datagram = vec![0; 2048];
            let length = socket.recv(&mut datagram).unwrap();
            datagram.truncate(length);
            datagram
        });
        let datagram = datagram.await.unwrap();
        said.entry(datagram[6..14].to_vec()).or_insert(datagram);
    }
    said.into_values().collect()
}

/// The same from ever new ports of 32 addresses, and nobody answers. A few at a
/// time: a socket has room for about a hundred.
async fn flood_udp(door: SocketAddr, said: &[Vec<u8>], pace: &Pace) {
    let mut round: u8 = 0;
    let mut next = said.chunks(25).cycle();
    while pace.goes_on() {
        round = round.wrapping_add(1);
        let said = next.next().expect("there are some");
        pace.turn(said.len() as u64).await;
        let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 1, 1 + round % 32], 0))).unwrap();
        socket.set_nonblocking(true).unwrap();
        for datagram in said {
            // What the kernel has no room for is lost, as it would be.
            let _lost = socket.send_to(datagram, door);
        }
        pace.units(said.len() as u64);
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn first_datagrams_over_udp_leave_the_link_alone() {
    const RETRY: &str = "isthmus_proxy_gateway_turned_away_total{reason=\"quic_retry\"";
    let sites = Sites::start().await;
    let said = initials(&sites, 300).await;
    let run = async |pace: Arc<Pace>| flood_udp(sites.door, &said, &pace).await;
    let attack =
        Attack { memory: 48, ..attack("gateway: QUIC Initials", "datagrams", 5000, RETRY) };
    sites.endure(attack, run).await;
}

#[tokio::test]
async fn datagrams_of_nonsense_leave_the_link_alone() {
    let sites = Sites::start().await;
    let nonsense: Vec<Vec<u8>> = (0..50u8)
        .map(|n| {
            let mut datagram = vec![n; 1200];
            // What looks like an Initial (RFC 9000 section 17.2.2), and what does not.
            datagram[..7].copy_from_slice(&[0xc0 | (n & 1) << 5, 0, 0, 0, 1, 8, n]);
            datagram
        })
        .collect();
    let run = async |pace: Arc<Pace>| flood_udp(sites.door, &nonsense, &pace).await;
    // The endpoint drops it before anybody could count it.
    let attack = Attack { counted: None, ..attack("gateway: UDP nonsense", "datagrams", 5000, "") };
    sites.endure(attack, run).await;
}
