use mesh_api::v1::{
    Endpoint, Heartbeat, Port, Protocol, Revocation, authority_record::Event,
    registry_client::RegistryClient, resource::Resource as R,
};

use super::*;
use crate::testing::{TestSite, eventually, soon};

/// An agent with one session.
struct Agent {
    tx: mpsc::Sender<RegistryRequest>,
    inbound: Streaming<RegistryReply>,
    sequence: u64,
}

impl Agent {
    async fn connect(site: &TestSite, node: &NodeId, boot_id: &str) -> Result<Self, Status> {
        let mut client = RegistryClient::new(site.as_agent(node).await);
        let (tx, rx) = mpsc::channel(16);
        let mut agent = Self {
            inbound: {
                tx.send(RegistryRequest { sequence: 0, request: Some(hello(boot_id)) })
                    .await
                    .unwrap();
                client.session(ReceiverStream::new(rx)).await?.into_inner()
            },
            tx,
            sequence: 0,
        };
        soon("the answer to hello", agent.inbound.message()).await?;
        Ok(agent)
    }

    async fn ask(&mut self, request: Asked) -> Result<RegistryReply, Status> {
        self.sequence += 1;
        let request = RegistryRequest { sequence: self.sequence, request: Some(request) };
        let _ = self.tx.send(request).await;
        let reply = soon("a reply", self.inbound.message()).await?;
        let reply = reply.ok_or_else(|| Status::cancelled("closed"))?;
        assert_eq!(reply.sequence, self.sequence);
        Ok(reply)
    }
}

fn hello(boot_id: &str) -> Asked {
    Asked::Hello(RegistryHello {
        versions: VERSIONS.to_vec(),
        boot_id: boot_id.into(),
        ..RegistryHello::default()
    })
}

fn register(service: &str) -> Register {
    Register {
        instance: "orders".into(),
        service: service.into(),
        ports: vec![Port { name: "http".into(), number: 80, protocol: Protocol::Http.into() }],
        target_ports: vec![8080],
        weight: 1,
        health: Health::Healthy.into(),
        ..Register::default()
    }
}

fn endpoints(site: &TestSite) -> Vec<Endpoint> {
    site.view.read(|resources, _| {
        let endpoint = |r: &Arc<mesh_api::v1::Resource>| match &r.resource {
            Some(R::Endpoint(endpoint)) => Some(endpoint.clone()),
            _ => None,
        };
        resources.values().filter_map(endpoint).collect()
    })
}

async fn until(site: &TestSite, what: &str, holds: impl Fn(&[Endpoint]) -> bool) {
    eventually(what, || holds(&endpoints(site)).then_some(())).await;
}

#[tokio::test]
async fn what_is_registered_is_durable_then_published_and_goes_when_asked() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    let reply = agent.ask(Asked::Register(register("orders.shop"))).await.unwrap();
    assert_eq!(reply.error(), RegistryError::Unspecified, "{}", reply.detail);
    assert_eq!(site.state().registrations.len(), 1, "durable before the reply");
    until(&site, "published", |all| all.len() == 1).await;
    let endpoint = endpoints(&site).remove(0);
    assert_eq!(endpoint.spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
    assert_eq!((endpoint.node, endpoint.site), (node.to_string(), "west".to_owned()));

    let n = site.state().revision.n;
    for request in [
        Asked::Register(register("orders.shop")),
        Asked::Heartbeat(Heartbeat::default()),
        Asked::Health(HealthReport {
            instance: "orders".into(),
            health: Health::Unhealthy.into(),
            detail: "503".into(),
        }),
    ] {
        agent.ask(request).await.unwrap();
    }
    until(&site, "unhealthy", |all| all[0].health() == Health::Unhealthy).await;
    assert_eq!(site.state().revision.n, n, "none of these is a write");

    agent.ask(Asked::Deregister(Deregister { instance: "orders".into() })).await.unwrap();
    assert!(site.state().registrations.is_empty());
    until(&site, "gone", <[Endpoint]>::is_empty).await;
}

#[tokio::test]
async fn what_is_not_granted_is_refused_and_the_session_goes_on() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    let table = [
        ("payments.prod", RegistryError::NotGranted),
        ("gateway.isthmus-system", RegistryError::ReservedNamespace),
        ("nonsense", RegistryError::Invalid),
    ];
    for (service, code) in table {
        let reply = agent.ask(Asked::Register(register(service))).await.unwrap();
        assert_eq!(reply.error(), code, "{service}");
    }
    assert!(site.state().registrations.is_empty());
    let reply = agent.ask(Asked::Register(register("orders.shop"))).await.unwrap();
    assert_eq!(reply.error(), RegistryError::Unspecified);
}

#[tokio::test]
async fn an_address_of_the_mesh_itself_is_refused_counted_and_keeps_what_was() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    let at = |address: &str| Register { address: address.into(), ..register("orders.shop") };
    let reply = agent.ask(Asked::Register(at("10.0.0.7:4143"))).await.unwrap();
    assert_eq!(reply.error(), RegistryError::Unspecified, "{}", reply.detail);
    let n = site.state().revision.n;
    // Federation's admin port, and what is no host at all.
    for address in ["10.0.0.5:8448", "169.254.169.254:80"] {
        let reply = agent.ask(Asked::Register(at(address))).await.unwrap();
        assert_eq!(reply.error(), RegistryError::ForbiddenAddress, "{address}");
    }
    assert_eq!(site.state().revision.n, n, "nothing has changed");
    until(&site, "published", |all| all.len() == 1).await;
    assert_eq!(endpoints(&site)[0].address, "10.0.0.7:4143");
    let refused = site.figure("registrations_refused_total{reason=\"forbidden_address\"}");
    assert_eq!(refused, Some(2.0));
}

#[tokio::test]
async fn only_joined_nodes_may_register() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let stranger: NodeId = "00000000-0000-4000-8000-00000000000f".parse().unwrap();
    let error = Agent::connect(&site, &stranger, "a").await.err().unwrap();
    assert_eq!(reason(&error), "node_not_joined");
    // A proxy of a joined node is not its agent.
    let mut client = RegistryClient::new(site.as_proxy(&node).await);
    let error = client.session(tokio_stream::empty()).await.unwrap_err();
    assert_eq!(reason(&error), "role_denied");

    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    let subject = format!("node:{node}");
    site.commit(vec![Event::Revoked(Revocation { subject, revoked_at_unix_s: 1 })]).await;
    let error = soon("the end", agent.inbound.message()).await.unwrap_err();
    assert_eq!(reason(&error), "peer_revoked", "a session does not outlive what proved it");
    let error = Agent::connect(&site, &node, "a").await.err().unwrap();
    assert_eq!(reason(&error), "peer_revoked");
}

fn reason(status: &Status) -> String {
    let reason = status.metadata().get(crate::refusal::REASON);
    reason.map(|reason| reason.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn a_machine_that_dies_disappears_and_returns_without_a_write() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    agent.ask(Asked::Register(register("orders.shop"))).await.unwrap();
    until(&site, "published", |all| all.len() == 1).await;
    drop(agent);
    until(&site, "lapsed", <[Endpoint]>::is_empty).await;
    eventually("counted", || (site.figure("lapses_total") == Some(1.0)).then_some(())).await;
    let n = site.state().revision.n;
    let mut agent = Agent::connect(&site, &node, "b").await.unwrap();
    agent.ask(Asked::Register(register("orders.shop"))).await.unwrap();
    until(&site, "back", |all| all.len() == 1 && all[0].health() == Health::Healthy).await;
    assert_eq!(site.state().revision.n, n);
}

#[tokio::test]
async fn an_agent_that_leaves_and_does_not_come_back_is_deregistered() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    agent.ask(Asked::Register(register("orders.shop"))).await.unwrap();
    agent.ask(Asked::Leaving(Leaving { within_ms: 300 })).await.unwrap();
    assert_eq!(site.state().registrations.len(), 1);
    drop(agent);
    eventually("deregistered", || site.state().registrations.is_empty().then_some(())).await;
    until(&site, "gone", <[Endpoint]>::is_empty).await;
}

#[tokio::test]
async fn how_far_a_clock_is_off_is_known_while_its_agent_says_so() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut agent = Agent::connect(&site, &node, "a").await.unwrap();
    let ahead = || site.registry.agent(&node).unwrap().clock_ahead_ms;
    assert_eq!(ahead(), None, "not said yet");
    let hour = 3_600_000;
    for offset in [hour, -hour, 0] {
        let now = mesh_runtime::clock::unix_millis();
        let heartbeat = Heartbeat { time_unix_ms: now.saturating_add_signed(offset) };
        agent.ask(Asked::Heartbeat(heartbeat)).await.unwrap();
        let ahead = ahead().unwrap();
        // On its way for a while.
        assert!((offset - 10_000..=offset).contains(&ahead), "{offset}: {ahead}");
    }
    // An older agent says nothing.
    agent.ask(Asked::Heartbeat(Heartbeat::default())).await.unwrap();
    assert_eq!(ahead(), None);
}

#[tokio::test]
async fn two_boots_that_both_speak_are_a_duplicate_and_one_that_died_is_not() {
    let site = TestSite::alone().await;
    let (node, rebooted) = (site.join(1).await, site.join(2).await);
    let dead = Agent::connect(&site, &rebooted, "a").await.unwrap();
    let mut alive = Agent::connect(&site, &rebooted, "b").await.unwrap();
    let mut first = Agent::connect(&site, &node, "a").await.unwrap();
    let mut second = Agent::connect(&site, &node, "b").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let error = loop {
        assert!(Instant::now() < deadline, "never found out");
        alive.ask(Asked::Heartbeat(Heartbeat::default())).await.unwrap();
        let asked = first.ask(Asked::Heartbeat(Heartbeat::default())).await;
        let Err(error) = asked else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        break error;
    };
    assert_eq!(reason(&error), "node_duplicated");
    let error = soon("the end of the other", second.inbound.message()).await.unwrap_err();
    assert_eq!(reason(&error), "node_duplicated");
    assert!(site.state().nodes[&node].duplicated.is_some());
    assert!(Agent::connect(&site, &node, "a").await.is_err());
    assert!(site.state().nodes[&rebooted].duplicated.is_none());
    drop(dead);
}

#[tokio::test]
async fn a_copy_changes_nothing_before_it_is_known_to_be_one() {
    let site = TestSite::alone().await;
    let node = site.join(1).await;
    let mut first = Agent::connect(&site, &node, "a").await.unwrap();
    first.ask(Asked::Register(register("orders.shop"))).await.unwrap();
    let mut copy = Agent::connect(&site, &node, "b").await.unwrap();
    let gone = tokio::spawn(async move {
        copy.ask(Asked::Deregister(Deregister { instance: "orders".into() })).await
    });
    let alive = async {
        while first.ask(Asked::Heartbeat(Heartbeat::default())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon("they are told apart", alive).await;
    assert_eq!(reason(&gone.await.unwrap().unwrap_err()), "node_duplicated");
    assert_eq!(site.state().registrations.len(), 1);
}
