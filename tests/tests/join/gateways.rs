//! A gateway on another host than federation: an admin's token makes its
//! machine one, its agent hands it its identity, and it carries requests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use isthmus_tests::{apps, ports::free};
use mesh_tunnel::{Net, RealNet};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{Agent, Proxy, World, run, until};

const GATEWAY: &str = "spiffe://west.example/ns/isthmus-system/sa/gateway";

/// The second gateway of the site.
struct Second {
    door: SocketAddr,
    admin: SocketAddr,
}

impl Second {
    fn new() -> Self {
        Self { door: free(), admin: free() }
    }

    /// What an operator adds to federation.yaml, at the end of `gateways`.
    fn announced(&self) -> String {
        format!("- id: gw2\n  quic: ['{0}']\n  tls: ['{0}']\n", self.door)
    }

    /// What an operator writes into gateway.yaml on its host.
    fn config(&self) -> String {
        let Self { door, admin } = self;
        format!(
            "role: gateway\ngateway: {{ id: gw2, quic: '{door}', tls: '{door}' }}\nadmin: {admin}\n"
        )
    }

    async fn is_open(&self) -> bool {
        TcpStream::connect(self.door).await.is_ok()
    }

    /// The answer of its admin port; empty while there is none.
    async fn shown(&self, path: &str) -> String {
        let ask = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        ask.await.unwrap_or_default()
    }
}

/// A machine without an address for others, and its proxy.
async fn machine(world: &World, account: &str, config: &str) -> (Agent, Proxy) {
    let mut agent = Agent::start_unreachable(world, account).await;
    agent.join(&world.token_of(account).await).await.unwrap();
    let proxy = agent.proxy(config);
    (agent, proxy)
}

/// `orders.shop` with its proxy, and a caller's proxy listener.
struct Shop {
    _orders: (Agent, Proxy),
    _caller: (Agent, Proxy),
    listener: SocketAddr,
}

impl Shop {
    async fn open(world: &World) -> Self {
        let net: Arc<dyn Net> = Arc::new(RealNet);
        let (mut application, listener) = (free(), free());
        // Where the services of a machine are, unless their files say so.
        application.set_ip(Ipv4Addr::LOCALHOST.into());
        tokio::spawn(apps::serve_http(net, application, "orders"));
        let closed = "http_listener: off\nadmin: off\n";
        let orders = machine(world, "orders", closed).await;
        orders.0.describe("orders", application.port());
        let open = format!("http_listener: {listener}\nadmin: off\n");
        let caller = machine(world, "checkout", &open).await;
        world.published("orders.shop").await;
        Self { _orders: orders, _caller: caller, listener }
    }

    /// Waits until a request is answered: end to end, as its caller.
    async fn serves(&self) {
        let net: Arc<dyn Net> = Arc::new(RealNet);
        let whole = "orders heard spiffe://west.example/ns/shop/sa/checkout: hello";
        until("a request is answered", || async {
            let url = "http://orders.shop/";
            let answer = apps::request(&net, self.listener, "POST", url, "hello").await;
            answer.is_ok_and(|answer| answer.status == 200 && answer.body == whole)
        })
        .await;
    }
}

#[test]
fn a_gateway_on_another_host_joins_by_an_admins_token_and_carries_requests() {
    run(async {
        let second = Second::new();
        let mut world = World::start_with(&second.announced()).await;
        let mut host = Agent::start_unreachable(&world, "gw2-host").await;
        let token = world.meshctl(&["token", "create", "--gateway"]);
        let steps = host.join(&token).await.unwrap();
        assert!(steps.iter().any(|step| step.ends_with(GATEWAY)), "{steps:?}");
        let gateway = host.proxy(&second.config());
        until("its doors open", || second.is_open()).await;
        until("it is ready", || async { second.shown("/ready").await.contains("200 OK") }).await;
        let shop = Shop::open(&world).await;
        shop.serves().await;

        // From here on there is no other way than through it.
        world.kill_gateway();
        shop.serves().await;
        let figures = second.shown("/metrics").await;
        let tunnels = "isthmus_proxy_gateway_tunnels{neighbour=\"node\"";
        let nodes = figures.lines().filter(|line| line.starts_with(tunnels));
        assert!(nodes.count() > 0, "{figures}");
        // Machines join, and agents reach federation, through it.
        let mut joins = Agent::start(&world, "vm1").await;
        joins.join(&world.token(&["*.shop"], 1).await).await.unwrap();
        joins.connected().await;

        // It needs no gateway to become one again, not even itself.
        drop(gateway);
        until("its doors are shut", || async { !second.is_open().await }).await;
        host.stop("-KILL");
        host.restart().await;
        let _gateway = host.proxy(&second.config());
        shop.serves().await;
        assert_eq!(host.connected().await.spiffe_id, GATEWAY);
    });
}

#[test]
fn a_machine_that_joined_by_an_ordinary_token_is_no_gateway() {
    run(async {
        let second = Second::new();
        let world = World::start_with(&second.announced()).await;
        let mut host = Agent::start_unreachable(&world, "gw2-host").await;
        let steps = host.join(&world.token(&["*.shop"], 1).await).await.unwrap();
        assert!(!steps.iter().any(|step| step.contains(GATEWAY)), "{steps:?}");
        let _gateway = host.proxy(&second.config());
        until("it says what it lacks", || async {
            second.shown("/ready").await.contains("meshctl token create --gateway")
        })
        .await;
        assert!(!second.is_open().await, "nobody's doors");
        assert!(world.nodes().await.iter().all(|node| node.state != "duplicated"));

        // An admin's token mends it, while its proxy runs.
        host.operator()
            .await
            .leave_site(mesh_api::v1::LeaveSiteRequest { force: false })
            .await
            .unwrap();
        host.join(&world.meshctl(&["token", "create", "--gateway"])).await.unwrap();
        until("its doors open", || second.is_open()).await;
    });
}
