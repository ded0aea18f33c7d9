//! Two sites are linked over real sockets: real TLS, real tunnels, the join
//! door, and played gateways that forward what they cannot read.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{TestSite, reason, run};
use mesh_api::v1::{
    self, CreateLinkTokenRequest, ExportServiceRequest, GatewaySeen, Hello, LinkClusterRequest,
    LinkResult, Role, UnlinkRequest, authority_record::Event, resource::Resource as R,
};
use mesh_core::{Allowed, SpiffeId, path::RefusedReason};
use mesh_tunnel::{Arrival, Credentials, Door, Doors, RealNet, Session};
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::Status;

/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the federation of a site listens, by site.
type Map = Arc<Mutex<BTreeMap<String, SocketAddr>>>;

/// A gateway that knows the way to every federation, and its tunnels.
#[derive(Clone)]
struct Gateway {
    ways: Map,
    own: String,
    tunnels: Arc<Mutex<Vec<Session>>>,
}

impl Gateway {
    /// Opens its door, and has its site say where it is.
    async fn open(site: &TestSite, ways: &Map) -> Self {
        let (name, domain) = (site.config.site.to_string(), site.config.trust_domain.clone());
        ways.lock().unwrap().insert(name.clone(), site.running.grpc);
        let svid = site.site().ca.self_issue(&SpiffeId::gateway(&domain)).unwrap();
        let trust = site.site().credentials.trust();
        let any = "127.0.0.1:0".parse().unwrap();
        let door = Door::open(Doors {
            net: Arc::new(RealNet),
            credentials: Credentials::new(Some(svid), trust),
            allowed: Allowed::Neighbour(domain),
            hello: Hello {
                role: Role::Gateway.into(),
                site: name.clone(),
                gateway: "gw1".into(),
                ..Hello::default()
            },
            quic: Some(any),
            tls: any,
            turned_away: Default::default(),
        })
        .await
        .unwrap();
        let (quic, tls) = door.local_addrs();
        let gateway = v1::Gateway {
            id: "gw1".into(),
            site: name.clone(),
            quic_addresses: vec![quic.unwrap().to_string()],
            tls_addresses: vec![tls.to_string()],
        };
        let seen = vec![Event::GatewaySeen(GatewaySeen { gateway: Some(gateway) })];
        let decide =
            |_: &federation::authority::State| Ok::<_, federation::refusal::Never>((seen, ()));
        site.site().authority.commit("test", decide).await.unwrap();
        let gateway = Self { ways: ways.clone(), own: name, tunnels: Arc::default() };
        tokio::spawn(gateway.clone().serve(door));
        gateway
    }

    async fn serve(self, door: Door) {
        while let Ok(arrival) = door.accept().await {
            match arrival {
                Arrival::Tunnel(session) => {
                    self.tunnels.lock().unwrap().push(session.clone());
                    tokio::spawn(self.clone().tunnel(session));
                }
                Arrival::Join(mut stream, _) => {
                    let way = self.way(&self.own).unwrap();
                    tokio::spawn(async move {
                        let mut to = TcpStream::connect(way).await.unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut to).await;
                    });
                }
            }
        }
    }

    async fn tunnel(self, session: Session) {
        while let Some(incoming) = session.accept().await {
            assert_eq!(incoming.connect.service.as_str(), "federation.isthmus-system");
            let Some(way) = self.way(incoming.connect.site.as_str()) else {
                incoming.refuse(RefusedReason::NoPath, "test/gw1", "").await;
                continue;
            };
            tokio::spawn(async move {
                let mut stream = incoming.accept().await.unwrap();
                let mut to = TcpStream::connect(way).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut to).await;
            });
        }
    }

    fn way(&self, site: &str) -> Option<SocketAddr> {
        self.ways.lock().unwrap().get(site).copied()
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn link(by: &TestSite, to: &TestSite) -> Result<LinkResult, Status> {
    let request = CreateLinkTokenRequest { site: by.config.site.to_string(), ttl_s: 0 };
    let token = to.running.admin.links.create_token("test", request).await?.token;
    redeem(by, &to.config.site.to_string(), token).await
}

async fn redeem(by: &TestSite, site: &str, token: String) -> Result<LinkResult, Status> {
    let (tx, mut rx) = mpsc::channel(16);
    let request = LinkClusterRequest { site: site.into(), token, transport: 0 };
    by.running.admin.links.link_cluster("test".into(), request, tx);
    loop {
        let progress = timeout(PATIENCE, rx.recv()).await.expect("progress");
        if let Some(result) = progress.expect("a last message")?.result {
            return Ok(result);
        }
    }
}

/// An instance of `orders.shop`, as if its node had registered it.
async fn register(site: &TestSite) {
    let machine = site.join(&site.token(1, PATIENCE, false).await).await.unwrap();
    let register = v1::Register {
        instance: "orders".into(),
        service: "orders.shop".into(),
        ports: vec![v1::Port { name: "http".into(), number: 80, protocol: 1 }],
        target_ports: vec![8080],
        weight: 1,
        ..v1::Register::default()
    };
    let node = machine.node.parse().unwrap();
    let decide = |state: &federation::authority::State| {
        federation::registration::decide_register(state, &node, &register).map(|e| (e, ()))
    };
    site.site().authority.commit("test", decide).await.unwrap();
    let request = ExportServiceRequest { service: "orders.shop".into(), sites: vec![] };
    site.running.admin.links.export("test", request).await.unwrap();
}

/// Endpoints in the site's view that run at another.
fn remote(site: &TestSite) -> usize {
    site.running.admin.view.read(|resources, _| {
        let is_remote = |resource: &Arc<v1::Resource>| match &resource.resource {
            Some(R::Endpoint(endpoint)) => endpoint.site != site.config.site.as_str(),
            _ => false,
        };
        resources.values().filter(|resource| is_remote(resource)).count()
    })
}

fn is_up(site: &TestSite) -> bool {
    site.running.admin.links.list().links.iter().all(|link| link.state == "up")
}

fn links(site: &TestSite) -> usize {
    site.site().authority.state().links.len()
}

async fn two<T>(test: impl AsyncFnOnce(TestSite, TestSite, Map) -> T) -> T {
    let (west, east) = (TestSite::new("west").await, TestSite::new("east").await);
    test(west, east, Map::default()).await
}

fn run_two(test: impl AsyncFnOnce(TestSite, TestSite, Map)) {
    run(Box::pin(async move {
        let _: () = two(test).await;
    }) as std::pin::Pin<Box<dyn Future<Output = ()>>>);
}

#[test]
fn two_sites_link_lose_each_other_find_each_other_and_unlink() {
    run_two(async |west, east, ways| {
        let (gw_west, _gw_east) =
            (Gateway::open(&west, &ways).await, Gateway::open(&east, &ways).await);
        register(&east).await;
        let result = link(&west, &east).await.unwrap();
        assert_eq!(result.imports, ["orders.shop"]);
        assert_eq!(result.trust_domain, "east.example");
        eventually("published", || remote(&west) == 1).await;
        eventually("both up", || is_up(&west) && is_up(&east)).await;

        // Its tunnel breaks: west dials again and goes on.
        for tunnel in gw_west.tunnels.lock().unwrap().drain(..) {
            tunnel.close("test");
        }
        eventually("lost", || !is_up(&west)).await;
        assert_eq!(remote(&west), 1, "what was known stays");
        eventually("up again", || is_up(&west)).await;

        let request = UnlinkRequest { site: "east".into() };
        west.running.admin.links.unlink("test", request).await.unwrap();
        eventually("unlinked on both sides", || links(&west) + links(&east) == 0).await;
        eventually("nothing is left", || remote(&west) == 0).await;
        let believed = east.site().credentials.clone();
        eventually("nobody is believed", || believed.trust().bundles.len() == 1).await;
    });
}

#[test]
fn a_link_survives_a_restart() {
    run_two(async |west, east, ways| {
        let gateways = (Gateway::open(&west, &ways).await, Gateway::open(&east, &ways).await);
        register(&east).await;
        link(&west, &east).await.unwrap();
        eventually("published", || remote(&west) == 1).await;
        // The configuration names no reachable gateway: played ones open anew.
        let west = west.restart().await;
        let again = Gateway::open(&west, &ways).await;
        assert_eq!(links(&west), 1, "it is in the log");
        eventually("published again", || remote(&west) == 1).await;
        eventually("both up", || is_up(&west) && is_up(&east)).await;
        drop((gateways, again));
    });
}

#[test]
fn without_a_way_through_the_gateways_nothing_is_kept() {
    run_two(async |west, east, ways| {
        let _gateways = (Gateway::open(&west, &ways).await, Gateway::open(&east, &ways).await);
        let request = CreateLinkTokenRequest { site: "west".into(), ttl_s: 0 };
        let token = east.running.admin.links.create_token("test", request).await.unwrap().token;
        // The gateway of west knows no way to east; east's door works.
        let _lost = Gateway::open(&west, &Map::default()).await;
        let error = redeem(&west, "east", token).await.unwrap_err();
        assert_eq!(reason(&error), "link_unproved");
        assert!(error.message().contains("no_path"), "{}", error.message());
        assert_eq!(links(&west), 0);
    });
}
