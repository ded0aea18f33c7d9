use mesh_api::v1::{
    ClusterHello, ClusterRefusal, ClusterService, Endpoint, Heartbeat, Port, Protocol, Register,
    RegistryError, Service, cluster_client::ClusterClient, cluster_server::ClusterServer,
    resource::Resource as R,
};

use super::*;
use crate::testing::{TestSite, connect, eventually, soon};

const POD: &str = "00000000-0000-4000-8000-0000000000aa";
const OTHER: &str = "00000000-0000-4000-8000-0000000000bb";

/// The controller, with one session.
struct Controller {
    tx: mpsc::Sender<ClusterRequest>,
    inbound: Streaming<ClusterReply>,
    sequence: u64,
}

impl Controller {
    async fn connect(site: &TestSite) -> Self {
        let own_ports = OwnPorts { listens: Arc::new([]), has: Arc::new(|_| false) };
        let gateways = GatewayAccount(Some("isthmus-gateway".into()));
        let cluster = Cluster::new(site.view.clone(), own_ports, gateways, Drain::new());
        let mut client = ClusterClient::new(connect(ClusterServer::new(cluster)).await);
        let (tx, rx) = mpsc::channel(16);
        let hello = ClusterHello { versions: VERSIONS.to_vec() };
        tx.send(ClusterRequest { request: Some(Asked::Hello(hello)) }).await.unwrap();
        let inbound = client.session(ReceiverStream::new(rx)).await.unwrap().into_inner();
        Self { tx, inbound, sequence: 0 }
    }

    async fn next(&mut self) -> ClusterReply {
        soon("a reply", self.inbound.message()).await.unwrap().unwrap()
    }

    /// The next that is news.
    async fn news(&mut self) -> mesh_api::v1::ClusterNews {
        loop {
            if let Some(news) = self.next().await.news {
                return news;
            }
        }
    }

    async fn says(&mut self, change: ClusterChange) -> Vec<ClusterRefusal> {
        self.sequence += 1;
        let change = ClusterChange { sequence: self.sequence, ..change };
        self.tx.send(ClusterRequest { request: Some(Asked::Change(change)) }).await.unwrap();
        loop {
            let reply = self.next().await;
            if reply.sequence == self.sequence {
                return reply.refused;
            }
        }
    }
}

fn pod(uid: &str, instances: Vec<Register>) -> Pod {
    Pod {
        uid: uid.into(),
        name: "orders-1".into(),
        namespace: "shop".into(),
        account: "orders".into(),
        instances,
    }
}

fn backs(service: &str) -> Register {
    Register {
        instance: service.split('.').next().unwrap().into(),
        service: service.into(),
        ports: vec![Port { name: "http".into(), number: 80, protocol: Protocol::Http.into() }],
        target_ports: vec![8080],
        target_address: "10.1.0.7".into(),
        address: "10.1.0.7:4143".into(),
        weight: 1,
        health: Health::Healthy.into(),
        ..Register::default()
    }
}

fn whole(pods: Vec<Pod>, services: Vec<ClusterService>) -> ClusterChange {
    ClusterChange { pods, services, complete: true, ..ClusterChange::default() }
}

fn published(site: &TestSite) -> (Vec<Endpoint>, Vec<Service>) {
    site.view.read(|resources, _| {
        let (mut endpoints, mut services) = (Vec::new(), Vec::new());
        for resource in resources.values() {
            match &resource.resource {
                Some(R::Endpoint(endpoint)) => endpoints.push(endpoint.clone()),
                Some(R::Service(service)) => services.push(service.clone()),
                _ => {}
            }
        }
        (endpoints, services)
    })
}

async fn until_endpoints(site: &TestSite, what: &str, holds: impl Fn(&[Endpoint]) -> bool) {
    eventually(what, || holds(&published(site).0).then_some(())).await;
}

#[tokio::test]
async fn pods_are_endpoints_with_the_identity_of_their_account() {
    let site = TestSite::alone().await;
    let mut controller = Controller::connect(&site).await;
    let address = ClusterService {
        name: "orders.shop".into(),
        address: "10.96.0.7".into(),
        second_address: "fd00:96::7".into(),
        ..ClusterService::default()
    };
    let refused =
        controller.says(whole(vec![pod(POD, vec![backs("orders.shop")])], vec![address])).await;
    assert_eq!(refused, []);
    assert_eq!(site.state().registrations.len(), 1, "durable before the reply");
    until_endpoints(&site, "a healthy endpoint", |all| {
        all.iter().any(|endpoint| endpoint.health() == Health::Healthy)
    })
    .await;
    let (endpoints, services) = published(&site);
    assert_eq!(endpoints[0].spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
    assert_eq!((endpoints[0].node.as_str(), endpoints[0].address.as_str()), (POD, "10.1.0.7:4143"));
    let addresses = [&*services[0].virtual_address, &*services[0].second_address];
    assert_eq!(addresses, ["10.96.0.7", "fd00:96::7"], "as the cluster knows it");

    // Not ready, then backing another service, then gone.
    let unready = Register { health: Health::Unhealthy.into(), ..backs("orders.shop") };
    let change = ClusterChange { pods: vec![pod(POD, vec![unready])], ..ClusterChange::default() };
    assert_eq!(controller.says(change).await, []);
    until_endpoints(&site, "unhealthy", |all| all[0].health() == Health::Unhealthy).await;
    let change =
        ClusterChange { pods: vec![pod(POD, vec![backs("carts.shop")])], ..Default::default() };
    assert_eq!(controller.says(change).await, []);
    until_endpoints(&site, "another service", |all| {
        all.len() == 1 && all[0].service == "carts.shop"
    })
    .await;
    let change = ClusterChange { gone: vec![POD.into()], ..ClusterChange::default() };
    assert_eq!(controller.says(change).await, []);
    until_endpoints(&site, "no endpoint", <[Endpoint]>::is_empty).await;
    assert!(site.state().nodes.is_empty());
}

#[tokio::test]
async fn a_controller_that_comes_anew_says_what_is_no_more() {
    let site = TestSite::alone().await;
    let machine = site.join(1).await;
    let mut controller = Controller::connect(&site).await;
    let service = |name: &str| ClusterService {
        name: name.into(),
        address: "10.96.0.7".into(),
        exported_to_all: true,
        ..ClusterService::default()
    };
    let first = whole(
        vec![pod(POD, vec![backs("orders.shop")]), pod(OTHER, vec![])],
        vec![service("orders.shop"), service("carts.shop")],
    );
    assert_eq!(controller.says(first).await, []);
    drop(controller);
    // In two parts: nothing is forgotten before the last.
    let mut controller = Controller::connect(&site).await;
    let part = ClusterChange { pods: vec![pod(OTHER, vec![])], ..ClusterChange::default() };
    assert_eq!(controller.says(part).await, []);
    assert_eq!(site.state().nodes.len(), 3);
    assert_eq!(controller.says(whole(vec![], vec![service("carts.shop")])).await, []);
    let state = site.state();
    let nodes: Vec<_> = state.nodes.keys().map(NodeId::as_str).collect();
    assert_eq!(
        nodes,
        [OTHER, machine.as_str()]
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );
    assert!(state.registrations.is_empty());
    let names = |names: Vec<&ServiceName>| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(names(state.exports.keys().collect()), ["carts.shop"]);
    assert_eq!(names(state.addresses.keys().collect()), ["carts.shop"]);
}

#[tokio::test]
async fn an_operators_export_is_not_the_clusters() {
    let site = TestSite::alone().await;
    let request =
        mesh_api::v1::ExportServiceRequest { service: "orders.shop".into(), sites: vec![] };
    let (events, _) = crate::exports::decide_export(&site.state(), &request).unwrap();
    site.commit(events).await;
    let mut controller = Controller::connect(&site).await;
    let service = ClusterService { name: "orders.shop".into(), ..ClusterService::default() };
    assert_eq!(controller.says(whole(vec![], vec![service])).await, []);
    assert!(site.state().exports[&"orders.shop".parse::<ServiceName>().unwrap()].all);
    assert_eq!(controller.says(whole(vec![], vec![])).await, []);
    assert!(site.state().exports[&"orders.shop".parse::<ServiceName>().unwrap()].all);
}

#[tokio::test]
async fn what_is_refused_leaves_the_rest_alone() {
    let site = TestSite::alone().await;
    let machine = site.join(1).await;
    let mut controller = Controller::connect(&site).await;
    let foreign = Register { service: "orders.prod".into(), ..backs("orders.shop") };
    let loopback = Register { address: "169.254.0.1:4143".into(), ..backs("links.shop") };
    let table = [
        (pod(OTHER, vec![foreign]), RegistryError::Invalid, "namespace"),
        (pod(OTHER, vec![loopback]), RegistryError::ForbiddenAddress, "169.254.0.1"),
        (pod("not-a-uid", vec![]), RegistryError::Invalid, "uid"),
        (pod(machine.as_str(), vec![]), RegistryError::NotGranted, "another machine"),
        (
            Pod { namespace: "kube-system".into(), ..pod(OTHER, vec![]) },
            RegistryError::NotGranted,
            "reserved",
        ),
        (
            Pod { namespace: "isthmus-system".into(), ..pod(OTHER, vec![]) },
            RegistryError::NotGranted,
            "reserved",
        ),
    ];
    for (bad, error, says) in table {
        let change = ClusterChange {
            pods: vec![bad.clone(), pod(POD, vec![backs("orders.shop")])],
            ..ClusterChange::default()
        };
        let refused = controller.says(change).await;
        assert_eq!(refused.len(), 1, "{bad:?}");
        assert_eq!(refused[0].error(), error, "{:?}", refused[0]);
        assert!(refused[0].detail.contains(says), "{:?}", refused[0]);
        assert!(site.state().registrations.len() == 1, "the other pod is there");
    }
    assert!(!site.state().nodes[&machine].pod);
}

#[tokio::test]
async fn a_gateways_account_makes_a_gateway() {
    let site = TestSite::alone().await;
    let mut controller = Controller::connect(&site).await;
    let gateway = Pod {
        namespace: "isthmus-system".into(),
        account: "isthmus-gateway".into(),
        ..pod(POD, vec![])
    };
    assert_eq!(controller.says(whole(vec![gateway], vec![])).await, []);
    assert!(site.state().nodes[&POD.parse::<NodeId>().unwrap()].gateway);
}

#[tokio::test]
async fn the_controller_hears_of_what_the_cluster_lacks() {
    let site = TestSite::alone().await;
    let machine = site.join(1).await;
    let mut controller = Controller::connect(&site).await;
    let news = controller.news().await;
    assert_eq!(news.site.unwrap().name, "west");
    assert_eq!(news.bundle.unwrap(), site.state().site().bundle);
    assert_eq!(news.imports, []);
    let register = |service: &str| {
        mesh_api::v1::authority_record::Event::Registered(mesh_api::v1::EndpointRegistered {
            node: machine.to_string(),
            spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
            register: Some(backs(service)),
            registered_at: 0,
        })
    };
    site.commit(vec![register("legacy.shop"), register("orders.shop")]).await;
    let names = |news: &mesh_api::v1::ClusterNews| {
        news.imports.iter().map(|service| service.name.clone()).collect::<Vec<_>>()
    };
    let mut news = controller.news().await;
    while names(&news).len() != 2 {
        news = controller.news().await;
    }
    assert_eq!(news.imports[0].ports[0].number, 80);
    // What a pod backs is the cluster's own.
    assert_eq!(
        controller.says(whole(vec![pod(POD, vec![backs("orders.shop")])], vec![])).await,
        []
    );
    while names(&news) != ["legacy.shop"] {
        news = controller.news().await;
    }
}

#[tokio::test]
async fn the_newest_controller_is_the_one() {
    let site = TestSite::alone().await;
    let own_ports = OwnPorts { listens: Arc::new([]), has: Arc::new(|_| false) };
    let gateways = GatewayAccount::default();
    let cluster = Cluster::new(site.view.clone(), own_ports, gateways, Drain::new());
    let open = || async {
        let channel = connect(ClusterServer::new(cluster.clone())).await;
        let (tx, rx) = mpsc::channel(4);
        let hello = ClusterHello { versions: VERSIONS.to_vec() };
        tx.send(ClusterRequest { request: Some(Asked::Hello(hello)) }).await.unwrap();
        let stream = ClusterClient::new(channel).session(ReceiverStream::new(rx)).await.unwrap();
        (tx, stream.into_inner())
    };
    let (_tx, mut first) = open().await;
    let (tx, mut second) = open().await;
    let ended = loop {
        match soon("the first to end", first.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(crate::refusal::reason_of(&ended), "replaced");
    let heartbeat = Asked::Heartbeat(Heartbeat::default());
    tx.send(ClusterRequest { request: Some(heartbeat) }).await.unwrap();
    assert!(soon("news", second.message()).await.unwrap().is_some());
}
