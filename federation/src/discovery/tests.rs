use std::time::Duration;

use mesh_api::{
    VERSIONS,
    v1::{
        Ack, EdgeStat, Health, Port, Protocol, Register, Revision, RouteStat, ServiceStat,
        StatRequest, Subscribe, TunnelStatus, Want, discovery_client::DiscoveryClient,
        discovery_request::Request as Ask, discovery_response::Response as Answer,
    },
};
use mesh_core::{Snapshot, apply};
use tonic::transport::Channel;

use super::*;
use crate::{
    registration::decide_register,
    testing::{TestSite, eventually, soon},
};

/// A proxy that applies what it is told with the code that real ones use.
struct Proxy {
    tx: mpsc::Sender<DiscoveryRequest>,
    inbound: Streaming<DiscoveryResponse>,
    snapshot: Option<Snapshot>,
    /// Deltas, and how many of them were whole states.
    deltas: (usize, usize),
    complete: Vec<String>,
}

impl Proxy {
    async fn connect(channel: Channel, subscribe: Subscribe) -> Result<Self, Status> {
        let mut client = DiscoveryClient::new(channel);
        let (tx, rx) = mpsc::channel(16);
        let request = DiscoveryRequest { request: Some(Ask::Subscribe(subscribe)) };
        tx.send(request).await.unwrap();
        let inbound = client.stream(ReceiverStream::new(rx)).await?.into_inner();
        Ok(Self { tx, inbound, snapshot: None, deltas: (0, 0), complete: Vec::new() })
    }

    async fn say(&self, request: Ask) {
        self.tx.send(DiscoveryRequest { request: Some(request) }).await.unwrap();
    }

    async fn want(&self, services: &[&str]) {
        let services = services.iter().map(|s| (*s).to_owned()).collect();
        self.say(Ask::Want(Want { services })).await;
    }

    async fn next(&mut self) -> Result<(), Status> {
        let message = soon("a message", self.inbound.message()).await?;
        match message.expect("open").response {
            Some(Answer::Delta(delta)) => {
                self.deltas.0 += 1;
                self.deltas.1 += usize::from(delta.from.is_none());
                let next = apply(self.snapshot.as_ref(), &delta).expect("a good delta");
                self.snapshot = Some(next);
                self.say(Ask::Ack(Ack { revision: delta.to, ..Ack::default() })).await;
            }
            Some(Answer::Complete(complete)) => self.complete = complete.services,
            _ => {}
        }
        Ok(())
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Snapshot) -> bool) {
        for _ in 0..1000 {
            if self.snapshot.as_ref().is_some_and(&holds) {
                return;
            }
            self.next().await.unwrap();
        }
        panic!("never: {what}");
    }

    fn revision(&self) -> Option<Revision> {
        self.snapshot.as_ref().map(|s| Revision { epoch: s.revision.epoch, n: s.revision.n })
    }

    fn endpoints(&self, service: &str) -> usize {
        let snapshot = self.snapshot.as_ref().unwrap();
        snapshot.services.get(service).map_or(0, |service| service.endpoints.len())
    }
}

fn subscribe() -> Subscribe {
    Subscribe { versions: VERSIONS.to_vec(), ..Subscribe::default() }
}

async fn register(site: &TestSite, node: &NodeId, service: &str) {
    let register = Register {
        instance: service.into(),
        service: service.into(),
        ports: vec![Port { name: "http".into(), number: 80, protocol: Protocol::Http.into() }],
        target_ports: vec![8080],
        weight: 1,
        ..Register::default()
    };
    let events = decide_register(&site.state(), node, &register).unwrap();
    site.commit(events).await;
    site.view.report_health(node, service, Health::Healthy, "");
}

/// A site with two nodes that back one service each, and do not lapse.
async fn site() -> (TestSite, NodeId, NodeId) {
    let site = TestSite::lasting().await;
    let (a, b) = (site.join(1).await, site.join(2).await);
    register(&site, &a, "orders.shop").await;
    register(&site, &b, "stock.shop").await;
    (site, a, b)
}

fn has(snapshot: &Snapshot, service: &str, endpoints: usize) -> bool {
    snapshot.services.get(service).is_some_and(|service| service.endpoints.len() == endpoints)
}

#[tokio::test]
async fn a_proxy_gets_names_its_own_endpoints_and_what_it_wants() {
    let (site, a, b) = site().await;
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, subscribe()).await.unwrap();
    proxy.until("both names", |s| has(s, "orders.shop", 1) && has(s, "stock.shop", 0)).await;
    let snapshot = proxy.snapshot.clone().unwrap();
    assert_eq!(snapshot.federation, None, "for gateways only");
    assert_eq!(snapshot.gateways.len(), 1);
    assert!(snapshot.services["stock.shop"].virtual_address.is_some());

    proxy.want(&["stock.shop", "nothing.shop", "not a name"]).await;
    while proxy.complete.is_empty() {
        proxy.next().await.unwrap();
    }
    assert_eq!(proxy.complete, ["nothing.shop", "stock.shop"]);
    assert_eq!(proxy.endpoints("stock.shop"), 1, "told before it is complete");

    // From now on it follows; what it does not want, it is not told.
    register(&site, &a, "stock.shop").await;
    register(&site, &b, "other.shop").await;
    proxy.until("the change", |s| has(s, "stock.shop", 2) && has(s, "other.shop", 0)).await;
    assert_eq!(proxy.deltas.1, 1, "one whole state, then differences");
}

#[tokio::test]
async fn a_gateway_gets_everything_and_its_sessions_are_published() {
    let (site, a, _) = site().await;
    let asked = Subscribe { everything: true, gateway: "gw-1".into(), ..subscribe() };
    let mut gateway = Proxy::connect(site.as_gateway().await, asked).await.unwrap();
    gateway.until("all", |s| has(s, "orders.shop", 1) && has(s, "stock.shop", 1)).await;
    let federation = gateway.snapshot.as_ref().unwrap().federation;
    assert_eq!(federation, Some("127.0.0.1:8446".parse().unwrap()));

    let tunnel = TunnelStatus { site: "nowhere".into(), ..TunnelStatus::default() };
    let stranger = "00000000-0000-4000-8000-00000000000f".to_owned();
    let nodes = vec![a.to_string(), stranger, "nonsense".into()];
    gateway.say(Ask::NodeSessions(NodeSessions { nodes, tunnels: vec![tunnel] })).await;
    let via =
        |s: &Snapshot, count: usize| s.services["orders.shop"].endpoints[0].via.len() == count;
    gateway.until("via", |s| via(s, 1)).await;
    site.view.read_live(|live| {
        assert_eq!(live.gateways["gw-1"].nodes.len(), 1, "only nodes of this site");
        assert!(live.gateways["gw-1"].tunnels.is_empty(), "only tunnels of links");
    });

    // Its stream ends, and after a while its sessions with it.
    let asked = Subscribe { everything: true, gateway: "gw-2".into(), ..subscribe() };
    let mut other = Proxy::connect(site.as_gateway().await, asked).await.unwrap();
    other.until("via", |s| via(s, 1)).await;
    drop(gateway);
    other.until("no via", |s| via(s, 0)).await;
}

#[tokio::test]
async fn a_gateway_that_was_replaced_says_nothing_for_its_successor() {
    let (site, a, _) = site().await;
    let says = |stream, nodes: &[&NodeId]| {
        let nodes = nodes.iter().map(|node| (*node).clone()).collect();
        site.view.report_sessions("gw-1", stream, nodes, Vec::new());
        site.view.read_live(|live| live.gateways["gw-1"].nodes.len())
    };
    assert_eq!([says(7, &[&a]), says(8, &[]), says(8, &[&a])], [1, 0, 1]);
    assert_eq!(says(7, &[]), 1, "its nodes have gone to the successor");
    site.view.gateway_gone("gw-1", 7);
    assert_eq!(says(7, &[]), 1);
    site.view.gateway_gone("gw-1", 8);
    assert_eq!(says(7, &[]), 0, "there is no successor any more");
}

#[tokio::test]
async fn only_gateways_get_everything_and_only_members_anything() {
    let (site, a, _) = site().await;
    let asked = Subscribe { everything: true, ..subscribe() };
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, asked).await.unwrap();
    assert_eq!(proxy.next().await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let old = Subscribe { versions: vec![99], ..Subscribe::default() };
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, old).await.unwrap();
    assert_eq!(proxy.next().await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    // A node identity is for agents; another domain's workload is a stranger.
    let agent = Proxy::connect(site.as_agent(&a).await, subscribe()).await;
    assert_eq!(agent.err().unwrap().code(), tonic::Code::PermissionDenied);
    let id = "spiffe://east.example/ns/shop/sa/orders".parse().unwrap();
    let channel = site.channel(Some(crate::testing::peer(id, None))).await;
    let stranger = Proxy::connect(channel, subscribe()).await;
    assert_eq!(stranger.err().unwrap().code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn who_comes_back_gets_the_difference_and_learns_what_went() {
    let (site, a, b) = site().await;
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, subscribe()).await.unwrap();
    proxy.want(&["stock.shop"]).await;
    proxy.until("all", |s| has(s, "orders.shop", 1) && has(s, "stock.shop", 1)).await;
    let (snapshot, have) = (proxy.snapshot.clone(), proxy.revision());
    drop(proxy);

    let gone = crate::registration::decide_deregister_all(&site.state(), &b, "asked");
    site.commit(gone).await;
    register(&site, &a, "new.shop").await;
    let mut proxy =
        Proxy::connect(site.as_proxy(&a).await, Subscribe { have, ..subscribe() }).await.unwrap();
    proxy.snapshot = snapshot;
    let resumed = |s: &Snapshot| has(s, "new.shop", 1) && !s.services.contains_key("stock.shop");
    proxy.until("the difference", resumed).await;
    assert_eq!(proxy.deltas.1, 0, "no whole state");

    let have = Some(Revision { epoch: 1, n: 1 });
    let mut proxy =
        Proxy::connect(site.as_proxy(&a).await, Subscribe { have, ..subscribe() }).await.unwrap();
    proxy.until("a new start", |s| has(s, "new.shop", 1)).await;
    assert_eq!(proxy.deltas.1, 1, "another epoch: everything");
}

#[tokio::test]
async fn a_proxy_renews_the_lease_of_its_node() {
    let site = TestSite::alone().await;
    let (a, b) = (site.join(1).await, site.join(2).await);
    register(&site, &a, "orders.shop").await;
    register(&site, &b, "stock.shop").await;
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, subscribe()).await.unwrap();
    proxy.want(&["stock.shop"]).await;
    let heard = proxy.tx.clone();
    let beat = tokio::spawn(async move {
        let request = || DiscoveryRequest { request: Some(Ask::Report(Default::default())) };
        while heard.send(request()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    proxy.until("b is gone", |s| has(s, "stock.shop", 0) && has(s, "orders.shop", 1)).await;
    let health = proxy.snapshot.as_ref().unwrap().services["orders.shop"].endpoints[0].health;
    assert_eq!(health, mesh_core::Health::Unknown, "nobody reports it");
    beat.abort();
}

#[tokio::test]
async fn what_proxies_say_can_be_asked_for() {
    let (site, a, _) = site().await;
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, subscribe()).await.unwrap();
    proxy.until("a state", |_| true).await;
    let stat = ServiceStat { service: "orders.shop".into(), success: 7, ..ServiceStat::default() };
    let route = RouteStat { route: "pay".into(), failure: 2, ..RouteStat::default() };
    let edge = EdgeStat { site: "east".into(), ..EdgeStat::default() };
    let transition = mesh_api::v1::TransitionTls {
        kind: "listener".into(),
        name: "10.0.0.7:443\x1b[2J".into(),
        until_unix_s: 1_800_000_000,
    };
    let report = mesh_api::v1::Report {
        interval_ms: 1000,
        stats: vec![stat],
        routes: vec![route; 1000],
        edges: vec![edge; 1000],
        time_unix_ms: mesh_runtime::clock::unix_millis() - 3_600_000,
        transitions: vec![transition; 100],
        ..mesh_api::v1::Report::default()
    };
    proxy.say(Ask::Report(report)).await;
    let row = eventually("a row", || site.discovery.stat(StatRequest::default()).rows.pop()).await;
    assert_eq!((row.stat.unwrap().success, row.node), (7, a.to_string()));
    let all = site.discovery.stat(StatRequest { routes: true, edges: true });
    assert_eq!((all.routes.len(), all.edges.len()), (512, 512), "bounded");
    assert_eq!(all.routes[0].stat.as_ref().unwrap().failure, 2);
    assert_eq!(all.edges[0].node, a.to_string());
    let few = site.discovery.stat(StatRequest { routes: true, edges: false });
    assert_eq!((few.routes.len(), few.edges.len()), (512, 0), "only what is wanted");
    let ahead = site.discovery.proxies()[0].clock_ahead_ms.unwrap();
    assert!((-3_610_000..=-3_600_000).contains(&ahead), "{ahead}");
    let transitions = site.discovery.proxies().remove(0).transitions;
    let first = (transitions.len(), transitions[0].name.as_str());
    assert_eq!(first, (64, "10.0.0.7:443[2J"), "bounded, and nothing for terminals");
    let acked = eventually("acked", || site.discovery.proxies().pop()?.acked).await;
    assert_eq!(Some(acked), proxy.revision());
    let behind = |site: &TestSite| {
        ["proxies", "proxies_behind", "proxies_refusing"].map(|name| site.figure(name).unwrap())
    };
    assert_eq!(behind(&site), [1.0, 0.0, 0.0]);
    assert_eq!(site.figure("delta_lag_seconds"), Some(0.0));
    // It is told of this, and does not answer yet.
    let c = site.join(3).await;
    register(&site, &c, "bills.shop").await;
    eventually("behind", || (behind(&site) == [1.0, 1.0, 0.0]).then_some(())).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(site.figure("delta_lag_seconds").unwrap() >= 0.02);
    proxy.until("the name", |s| has(s, "bills.shop", 0)).await;
    eventually("not behind", || (behind(&site) == [1.0, 0.0, 0.0]).then_some(())).await;
    let nack = mesh_api::v1::Nack { revision: None, reason: "no".into() };
    proxy.say(Ask::Nack(nack)).await;
    eventually("refused", || (site.discovery.proxies().pop()?.nack == "no").then_some(())).await;
    assert_eq!(behind(&site)[2], 1.0);
    drop(proxy);
    eventually("gone", || site.discovery.proxies().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_stream_ends_with_the_process() {
    let (site, a, _) = site().await;
    let mut proxy = Proxy::connect(site.as_proxy(&a).await, subscribe()).await.unwrap();
    proxy.until("a state", |_| true).await;
    assert_eq!(site.drain.finish(Duration::from_secs(10)).await, 0, "every task ends by itself");
    let error = loop {
        if let Err(error) = proxy.next().await {
            break error;
        }
    };
    assert_eq!(error.code(), tonic::Code::Unavailable);
}
