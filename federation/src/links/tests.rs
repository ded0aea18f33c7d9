use std::collections::BTreeSet;

use mesh_api::v1::{
    DiscoveryRequest, Endpoint, Port, Protocol, Register, ReplicateRequest, ReplicateSubscribe,
    Resource, Revision, Revocation, Subscribe, authority_record::Event,
    discovery_client::DiscoveryClient, discovery_request::Request as Say,
    discovery_response::Response as Answer, peering_client::PeeringClient,
    replicate_request::Request as Ask, replicate_response::Response as Told,
    resource::Resource as R,
};
use mesh_core::{NodeId, SpiffeId, apply};

use super::*;
use crate::{
    leases::Terms,
    registration::decide_register,
    testing::{Map, TestSite, eventually, peer, soon},
};

/// Two sites that can reach each other, not linked.
async fn two() -> (TestSite, TestSite) {
    let map = Arc::new(Map::default());
    let (west, east) = (
        TestSite::new("west", &map, Terms::default()),
        TestSite::new("east", &map, Terms::default()),
    );
    west.add_gateway("gw-w").await;
    east.add_gateway("gw-e").await;
    (west, east)
}

async fn token(from: &TestSite, site: &str) -> String {
    let request = CreateLinkTokenRequest { site: site.into(), ttl_s: 0 };
    from.links.create_token("test", request).await.unwrap().token
}

async fn try_link(by: &TestSite, site: &str, token: &str) -> Result<LinkResult, Status> {
    let (tx, mut rx) = mpsc::channel(16);
    let request = LinkClusterRequest { site: site.into(), token: token.into(), transport: 0 };
    by.links.link_cluster("test".into(), request, tx);
    loop {
        match soon("progress", rx.recv()).await.expect("a last message") {
            Ok(LinkProgress { result: Some(result), .. }) => return Ok(result),
            Ok(step) => assert!(!step.step.is_empty()),
            Err(status) => return Err(status),
        }
    }
}

/// West redeems a token of east.
async fn linked() -> (TestSite, TestSite) {
    let (west, east) = two().await;
    let token = token(&east, "west").await;
    try_link(&west, "east", &token).await.unwrap();
    (west, east)
}

async fn register(site: &TestSite, i: u32, service: &str, port: u32, protocol: Protocol) -> NodeId {
    let node = site.join(i).await;
    let register = Register {
        instance: service.into(),
        service: service.into(),
        ports: vec![Port { name: "http".into(), number: port, protocol: protocol.into() }],
        target_ports: vec![8080],
        address: "10.0.0.1:4143".into(),
        weight: 1,
        ..Register::default()
    };
    site.commit(decide_register(&site.state(), &node, &register).unwrap()).await;
    node
}

async fn export(site: &TestSite, service: &str) {
    let request = ExportServiceRequest { service: service.into(), sites: vec![] };
    site.links.export("test", request).await.unwrap();
}

fn endpoints(site: &TestSite, service: &str) -> Vec<Endpoint> {
    let of_service = |r: &Arc<Resource>| match &r.resource {
        Some(R::Endpoint(endpoint)) if endpoint.service == service => Some(endpoint.clone()),
        _ => None,
    };
    site.view.read(|resources, _| resources.values().filter_map(of_service).collect())
}

fn sites(site: &TestSite, service: &str) -> BTreeSet<String> {
    endpoints(site, service).into_iter().map(|endpoint| endpoint.site).collect()
}

async fn until_from(site: &TestSite, service: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_owned()).collect();
    let what = format!("{service} from {expected:?}");
    eventually(&what, || (sites(site, service) == expected).then_some(())).await;
}

fn reason(status: &Status) -> &str {
    status.metadata().get(crate::refusal::REASON).map_or("", |reason| reason.to_str().unwrap())
}

#[tokio::test]
async fn a_token_links_two_sites_both_ways() {
    let (west, east) = two().await;
    register(&east, 1, "orders.shop", 80, Protocol::Http).await;
    export(&east, "orders.shop").await;
    let token = token(&east, "west").await;
    let result = try_link(&west, "east", &token).await.unwrap();
    assert_eq!(
        (&*result.trust_domain, &*result.own_trust_domain),
        ("east.example", "west.example")
    );
    assert_ne!(result.root_fingerprint, result.own_root_fingerprint);
    assert_eq!(result.imports, ["orders.shop"]);

    until_from(&west, "orders.shop", &["east"]).await;
    let endpoint = endpoints(&west, "orders.shop").remove(0);
    assert_eq!(endpoint.spiffe_id, "spiffe://east.example/ns/shop/sa/orders");
    let said = (endpoint.address, endpoint.node, endpoint.target_port, endpoint.via);
    assert_eq!(said, (String::new(), String::new(), 0, vec![]), "names cross, addresses do not");

    // The other side pulls as well, and each knows who dials.
    eventually("east is up", || (east.links.list().links.pop()?.state == "up").then_some(())).await;
    let dials =
        |site: &TestSite| site.state().links.values().map(|l| l.link.dial).collect::<Vec<_>>();
    assert_eq!((dials(&west), dials(&east)), (vec![true], vec![false]));
    let info = west.links.list().links.remove(0);
    assert_eq!((info.state.as_str(), info.bundle_sequence), ("up", 1));
    assert_eq!(info.imports, ["orders.shop"]);
    // What is published is what proxies accept.
    for site in [&west, &east] {
        apply(None, &site.view.snapshot()).expect("a good snapshot");
    }

    // Used up; and west is linked already.
    let error = try_link(&west, "east", &token).await.unwrap_err();
    assert_eq!(reason(&error), "link_exists");
}

#[tokio::test]
async fn a_token_that_does_not_fit_is_refused_and_nothing_changes() {
    let (west, east) = two().await;
    let good = token(&east, "west").await;
    let join = {
        let new = NewToken::join(
            mesh_api::v1::Grants {
                namespace: "shop".into(),
                account: "orders".into(),
                services: vec![],
            },
            1,
            Duration::ZERO,
            false,
        );
        tokens::create(&east.site, "test", new.unwrap()).await.unwrap().0.encode()
    };
    let other = token(&east, "north").await;
    let own = token(&west, "east").await;
    let revoked = token(&east, "west").await;
    let id = Token::decode(&revoked, Purpose::Link).unwrap().id.to_string();
    east.commit(vec![Event::TokenRevoked(mesh_api::v1::TokenRevoked { id })]).await;
    let mut forged = Token::decode(&good, Purpose::Link).unwrap();
    forged.secret[0] ^= 1;
    let mut pinned = Token::decode(&good, Purpose::Link).unwrap();
    pinned.root_spki_sha256[0] ^= 1;
    let table = [
        ("east", &good[..good.len() - 9], "token_truncated"),
        ("east", &join, "token_wrong_purpose"),
        ("north", &good, "token_wrong_site"),
        ("east", &other, "token_wrong_site"),
        ("west", &own, "link_own_site"),
        ("east", &revoked, "token_revoked"),
        ("east", &forged.encode(), "token_unknown"),
    ];
    for (site, token, expected) in table {
        let error = try_link(&west, site, token).await.unwrap_err();
        assert_eq!(reason(&error), expected, "{error:?}");
        assert!(west.state().links.is_empty() && east.state().links.is_empty(), "{expected}");
    }
    // The wrong root: here the token is used up, but nothing is kept.
    let error = try_link(&west, "east", &pinned.encode()).await.unwrap_err();
    assert!(error.message().contains("roots"), "{error:?}");
    assert!(west.state().links.is_empty());
}

/// A genuine request of west to east, to be spoilt.
async fn request_for(west: &TestSite, east: &TestSite) -> RedeemLinkRequest {
    let token = Token::decode(&token(east, "west").await, Purpose::Link).unwrap();
    let svid = west.site.credentials.svid().unwrap();
    let now = west.site.authority.clock().unix_ms();
    redeem::request(&west.state(), &token, &svid, now).unwrap()
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one table")]
async fn who_redeems_must_prove_its_roots() {
    let (west, east) = two().await;
    let north = TestSite::new("north", &Arc::default(), Terms::default());
    let wests_gateway = {
        let id = SpiffeId::gateway(&west.domain());
        west.site.ca.self_issue(&id).unwrap()
    };
    type Spoil<'a> = Box<dyn Fn(&mut RedeemLinkRequest) + 'a>;
    let own = east.state().site().clone();
    let table: Vec<(&str, &str, Spoil<'_>)> = vec![
        ("signature", "link_proof", Box::new(|r| r.proof[10] ^= 1)),
        ("no signature", "link_proof", Box::new(|r| r.proof.clear())),
        ("no chain", "peer_no_certificate", Box::new(|r| r.chain.clear())),
        (
            "another's roots",
            "peer_untrusted_chain",
            Box::new(|r| {
                let roots = north.state().site().bundle.roots.clone();
                r.bundle.as_mut().unwrap().roots = roots;
            }),
        ),
        (
            "a gateway",
            "peer_not_allowed",
            Box::new(|r| {
                r.chain = wests_gateway.chain.iter().map(|c| c.to_vec()).collect();
            }),
        ),
        (
            "another's domain",
            "invalid_argument",
            Box::new(|r| {
                r.bundle.as_mut().unwrap().trust_domain = "north.example".into();
            }),
        ),
        (
            "another domain",
            "peer_unknown_trust_domain",
            Box::new(|r| {
                r.trust_domain = "north.example".into();
                r.bundle.as_mut().unwrap().trust_domain = "north.example".into();
            }),
        ),
        (
            "our domain",
            "peer_unknown_trust_domain",
            Box::new(|r| {
                r.trust_domain = own.trust_domain.to_string();
                r.bundle = Some(own.bundle.clone());
            }),
        ),
        ("another site", "token_wrong_site", Box::new(|r| r.site = "north".into())),
        (
            "another's gateway",
            "invalid_argument",
            Box::new(|r| r.gateways[0].site = "north".into()),
        ),
        ("no gateway", "invalid_argument", Box::new(|r| r.gateways.clear())),
        ("clock", "clock_skew", Box::new(|r| r.time_unix_ms += 3_600_000)),
        ("version", "unsupported_version", Box::new(|r| r.versions = vec![99])),
    ];
    for (name, expected, spoil) in table {
        let mut request = request_for(&west, &east).await;
        spoil(&mut request);
        let error = east.links.redeem(request).await.expect_err(name);
        assert_eq!(reason(&error), expected, "{name}: {error:?}");
        assert!(east.state().links.is_empty(), "{name}");
    }
    let good = request_for(&west, &east).await;
    east.links.redeem(good.clone()).await.unwrap();
    let error = east.links.redeem(good).await.unwrap_err();
    assert_eq!(reason(&error), "token_used_up");
}

#[tokio::test]
async fn a_link_that_does_not_carry_is_kept_by_neither_side() {
    let (west, east) = two().await;
    east.set_reachable_when_linked(false);
    let token = token(&east, "west").await;
    let error = try_link(&west, "east", &token).await.unwrap_err();
    assert_eq!(reason(&error), "link_unproved");
    assert!(error.message().contains("no_path"), "{}", error.message());
    assert!(west.state().links.is_empty());
    // East has heard nothing: it gives up by itself.
    eventually("east gives up", || east.state().links.is_empty().then_some(())).await;
    // A door that does not open leaves the token as it was.
    east.set_reachable(false);
    let token = self::token(&east, "west").await;
    let error = try_link(&west, "east", &token).await.unwrap_err();
    assert_eq!(reason(&error), "link_unreachable");
    east.set_reachable(true);
    east.set_reachable_when_linked(true);
    try_link(&west, "east", &token).await.unwrap();
}

#[tokio::test]
async fn one_domain_one_link_one_lineage() {
    let (west, east) = linked().await;
    // The same site comes again with the same roots: it has lost its link.
    let again = {
        let made = NewToken { site: "west".into(), ..NewToken::link("x", Duration::ZERO).unwrap() };
        // A token is not made for a linked site, but may be older than its link.
        let state = east.state();
        let links = state.links.clone();
        east.commit(vec![Event::LinkEnded(LinkEnded { site: "west".into() })]).await;
        let token = tokens::create(&east.site, "test", made).await.unwrap().0;
        let back = links.values().next().unwrap();
        east.commit(vec![Event::LinkMade(mesh_api::v1::LinkMade {
            link: Some(back.link.clone()),
            bundle: Some(back.bundle.clone()),
            gateways: back.gateways.clone(),
        })])
        .await;
        token
    };
    let svid = west.site.credentials.svid().unwrap();
    let now = west.site.authority.clock().unix_ms();
    let good = redeem::request(&west.state(), &again, &svid, now).unwrap();
    // An impostor that has the token and the names, and a CA of its own.
    let impostor = TestSite::new("west", &Arc::default(), Terms::default());
    impostor.add_gateway("gw-w").await;
    let svid = impostor.site.credentials.svid().unwrap();
    let bad = redeem::request(&impostor.state(), &again, &svid, now).unwrap();
    let error = east.links.redeem(bad).await.unwrap_err();
    assert_eq!(reason(&error), "link_other_roots");
    east.links.redeem(good).await.unwrap();
    assert_eq!(east.state().links.len(), 1);
}

#[tokio::test]
async fn names_are_merged_only_if_both_sides_export_them() {
    let (west, east) = linked().await;
    register(&west, 1, "orders.shop", 80, Protocol::Http).await;
    register(&east, 1, "orders.shop", 80, Protocol::Http).await;
    register(&west, 2, "stock.shop", 80, Protocol::Http).await;
    register(&east, 2, "stock.shop", 80, Protocol::Tcp).await;
    for service in ["orders.shop", "stock.shop"] {
        export(&east, service).await;
    }
    let refused = || west.links.list().links.remove(0).refused;
    eventually("notes", || (refused().len() == 2).then_some(())).await;
    assert_eq!(sites(&west, "orders.shop"), ["west".to_owned()].into());
    assert!(refused()[0].contains("`meshctl service export orders.shop`"), "{:?}", refused());

    export(&west, "orders.shop").await;
    export(&west, "stock.shop").await;
    for site in [&west, &east] {
        until_from(site, "orders.shop", &["east", "west"]).await;
        until_from(site, "stock.shop", &[site.state().site().name.as_str()]).await;
        apply(None, &site.view.snapshot()).expect("a good snapshot");
    }
    let services = west.links.services().services;
    let find = |name: &str| {
        services.iter().find(|s| s.service.as_ref().is_some_and(|s| s.name == name)).unwrap()
    };
    assert_eq!((find("orders.shop").endpoints, find("orders.shop").status.as_str()), (2, ""));
    assert!(
        find("stock.shop").status.contains("another protocol"),
        "{}",
        find("stock.shop").status
    );

    // Unexported, or gone: the other site is told.
    let request =
        ExportServiceRequest { service: "orders.shop".into(), sites: vec!["west".into()] };
    let answer = east.links.unexport("test", request).await.unwrap();
    assert!(answer.exported_to.is_empty());
    until_from(&west, "orders.shop", &["west"]).await;
}

#[tokio::test]
async fn a_service_is_exported_before_it_exists_and_an_import_never() {
    let (west, east) = linked().await;
    export(&east, "later.shop").await;
    let listed = east.links.services().services.remove(0);
    assert!(listed.status.contains("no machine has registered it"), "{listed:?}");
    register(&east, 1, "later.shop", 80, Protocol::Http).await;
    until_from(&west, "later.shop", &["east"]).await;
    // West exports the name that it imports: east must not get it back.
    export(&west, "later.shop").await;
    register(&west, 2, "own.shop", 80, Protocol::Http).await;
    export(&west, "own.shop").await;
    until_from(&east, "own.shop", &["west"]).await;
    assert_eq!(sites(&east, "later.shop"), ["east".to_owned()].into());

    let request = |service: &str, site: &str| ExportServiceRequest {
        service: service.into(),
        sites: vec![site.into()],
    };
    for (service, site, expected) in [
        ("a.shop", "nowhere", "not_linked"),
        ("a.kube-system", "east", "reserved_namespace"),
        ("nonsense", "east", "invalid_argument"),
    ] {
        let error = west.links.export("test", request(service, site)).await.unwrap_err();
        assert_eq!(reason(&error), expected);
    }
}

#[tokio::test]
async fn a_lost_link_keeps_what_it_knew_and_catches_up() {
    let (west, east) = linked().await;
    let node = register(&east, 1, "orders.shop", 80, Protocol::Http).await;
    export(&east, "orders.shop").await;
    until_from(&west, "orders.shop", &["east"]).await;
    // East's federation goes away, and comes back with the same log.
    east.set_reachable(false);
    east.drain.start();
    let state = || west.links.list().links.remove(0).state;
    eventually("lost", || (state() == "lost").then_some(())).await;
    let (up, silence) = ("link_up{site=\"east\"}", "link_silence_seconds{site=\"east\"}");
    assert_eq!(west.figure(up), Some(0.0));
    assert!(west.figure(silence).unwrap() > 0.0);
    assert_eq!(sites(&west, "orders.shop"), ["east".to_owned()].into());
    let gone = crate::registration::decide_deregister_all(&east.state(), &node, "asked");
    east.commit(gone).await;
    east.restart();
    eventually("up", || (state() == "up").then_some(())).await;
    assert_eq!(west.figure(up), Some(1.0));
    until_from(&west, "orders.shop", &[]).await;
}

#[tokio::test]
async fn unlinking_ends_the_link_on_both_sides() {
    let (west, east) = linked().await;
    register(&east, 1, "orders.shop", 80, Protocol::Http).await;
    export(&east, "orders.shop").await;
    until_from(&west, "orders.shop", &["east"]).await;
    let request = || UnlinkRequest { site: "east".into() };
    west.links.unlink("test", request()).await.unwrap();
    assert!(west.state().links.is_empty());
    eventually("the other side", || east.state().links.is_empty().then_some(())).await;
    eventually("no imports", || {
        let domains = west.view.read(|resources, _| {
            let bundle = |r: &&Arc<Resource>| matches!(r.resource, Some(R::Bundle(_)));
            resources.values().filter(bundle).count()
        });
        (domains == 1 && sites(&west, "orders.shop").is_empty()).then_some(())
    })
    .await;
    let error = west.links.unlink("test", request()).await.unwrap_err();
    assert_eq!(reason(&error), "not_linked");
    // And the way is free for a new one, the other way round.
    let token = token(&west, "east").await;
    try_link(&east, "west", &token).await.unwrap();
    until_from(&west, "orders.shop", &["east"]).await;
}

#[tokio::test]
async fn only_the_federation_of_a_linked_site_may_pull() {
    let (west, east) = linked().await;
    let domain = west.domain();
    let table = [
        (SpiffeId::gateway(&domain), "west", "role_denied"),
        (SpiffeId::workload(&domain, "shop", "orders").unwrap(), "west", "role_denied"),
        (SpiffeId::federation(&east.domain()), "west", "role_denied"),
        (SpiffeId::federation(&"north.example".parse().unwrap()), "north", "not_linked"),
        (SpiffeId::federation(&domain), "north", "foreign_site"),
    ];
    for (id, site, expected) in table {
        let subscribe = ReplicateSubscribe {
            versions: vec![1],
            site: site.into(),
            ..ReplicateSubscribe::default()
        };
        let request = ReplicateRequest { request: Some(Ask::Subscribe(subscribe)) };
        let mut client = PeeringClient::new(east.channel(Some(peer(id.clone(), None))).await);
        // The request stream stays open, as that of a real peer does.
        let requests =
            tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
        let error = match client.replicate(requests).await {
            Err(error) => error,
            Ok(stream) => soon("a refusal", stream.into_inner().message()).await.unwrap_err(),
        };
        assert_eq!(reason(&error), expected, "{id}");
    }
}

/// Subjects that a linked site is told are revoked, in its first state.
async fn told_revoked(by: &TestSite, to: &TestSite, revocations: bool) -> Vec<String> {
    let site = to.state().site().name.to_string();
    let subscribe = ReplicateSubscribe { versions: vec![1], site, have: None, revocations };
    let request = ReplicateRequest { request: Some(Ask::Subscribe(subscribe)) };
    let federation = SpiffeId::federation(&to.domain());
    let mut client = PeeringClient::new(by.channel(Some(peer(federation, None))).await);
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut inbound = client.replicate(requests).await.unwrap().into_inner();
    loop {
        let message = soon("a state", inbound.message()).await.unwrap().unwrap();
        if let Some(Told::Delta(delta)) = message.response {
            let subject = |one: Resource| match one.resource {
                Some(R::Revocation(revocation)) => Some(revocation.subject),
                _ => None,
            };
            return delta.upsert.into_iter().filter_map(subject).collect();
        }
    }
}

#[tokio::test]
async fn a_revoked_identity_is_known_to_linked_sites_that_understand_it() {
    let (west, east) = linked().await;
    let thief = SpiffeId::workload(&west.domain(), "shop", "thief").unwrap().to_string();
    let revoked = Revocation { subject: thief.clone(), revoked_at_unix_s: 7 };
    west.commit(vec![Event::Revoked(revoked)]).await;
    eventually("east knows", || {
        let key = |resource: &Arc<Resource>| match &resource.resource {
            Some(R::Revocation(revocation)) => revocation.subject == thief,
            _ => false,
        };
        east.view.read(|resources, _| resources.values().any(key)).then_some(())
    })
    .await;
    assert_eq!(told_revoked(&west, &east, true).await, [thief]);
    // An older one would refuse the whole state for it.
    assert!(told_revoked(&west, &east, false).await.is_empty());
}

/// The sites of a service's endpoints in the first state that a gateway gets.
async fn first_state(site: &TestSite, have: Option<Revision>) -> BTreeSet<String> {
    let subscribe = Subscribe {
        versions: vec![1],
        have,
        everything: true,
        gateway: "gw-w".into(),
        ..Subscribe::default()
    };
    let request = DiscoveryRequest { request: Some(Say::Subscribe(subscribe)) };
    let requests =
        tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut client = DiscoveryClient::new(site.as_gateway().await);
    let mut inbound = client.stream(requests).await.unwrap().into_inner();
    loop {
        let message = soon("a state", inbound.message()).await.unwrap().unwrap();
        if let Some(Answer::Delta(delta)) = message.response {
            let snapshot = apply(None, &delta).unwrap();
            let service = snapshot.services.get("orders.shop");
            let endpoints = service.into_iter().flat_map(|service| &service.endpoints);
            return endpoints.map(|endpoint| endpoint.site.to_string()).collect();
        }
    }
}

#[tokio::test]
async fn a_new_process_tells_no_old_subscriber_what_it_does_not_know_yet() {
    let (west, east) = linked().await;
    register(&east, 1, "orders.shop", 80, Protocol::Http).await;
    export(&east, "orders.shop").await;
    until_from(&west, "orders.shop", &["east"]).await;
    let have = Some(west.view.read(|_, revision| revision));
    east.set_reachable(false);
    let west = west.restart();
    // Who has nothing gets what there is, at once.
    assert!(first_state(&west, None).await.is_empty());
    east.set_reachable(true);
    assert_eq!(first_state(&west, have).await, ["east".to_owned()].into());
}
