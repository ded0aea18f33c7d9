use std::{fs, os::unix::fs::PermissionsExt};

use mesh_api::v1::{
    Link, LinkMade, NodeDuplicated, NodeHolds, NodeJoined, NodeRenewed, RegistryHello,
    RegistryRequest, Revocation, RotationAction, RotationBlocker, RotationStatus, SiteHolds,
    WorkloadIssued, registry_client::RegistryClient, registry_request::Request as Asked,
};
use mesh_core::{NodeId, SiteName, SpiffeId};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    judge::{SeenProxy, SeenSite},
    *,
};
use crate::{
    ca::KeyRequest,
    testing::{TestSite, eventually},
    tokens::NewToken,
};

fn node_id(i: u32) -> NodeId {
    format!("00000000-0000-4000-8000-{i:012x}").parse().unwrap()
}

fn joined(i: u32, life_s: i64, site: &TestSite) -> Event {
    Event::NodeJoined(NodeJoined {
        id: node_id(i).to_string(),
        serial: format!("a{i}"),
        hostname: format!("vm-{i}"),
        not_after_unix_s: site.site.authority.clock().unix_s() + life_s,
        ..NodeJoined::default()
    })
}

fn renewed(i: u32, serial: &str, with: &str, site: &TestSite) -> Event {
    Event::NodeRenewed(NodeRenewed {
        id: node_id(i).to_string(),
        serial: serial.into(),
        with_serial: with.into(),
        not_after_unix_s: site.site.authority.clock().unix_s() + 1000,
        ..NodeRenewed::default()
    })
}

fn issued(i: u32, serial: &str, replaces: &str, site: &TestSite) -> Event {
    Event::WorkloadIssued(WorkloadIssued {
        spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
        node: node_id(i).to_string(),
        serial: serial.into(),
        replaces: replaces.into(),
        not_after_unix_s: site.site.authority.clock().unix_s() + 1000,
        ..WorkloadIssued::default()
    })
}

fn revoked(subject: String) -> Event {
    Event::Revoked(Revocation { subject, revoked_at_unix_s: 1 })
}

fn linked(site: &str) -> Event {
    let trust_domain = format!("{site}.example");
    let link = Link { site: site.into(), trust_domain: trust_domain.clone(), ..Link::default() };
    let bundle = Bundle { trust_domain, sequence: 1, roots: vec![vec![1]], ..Bundle::default() };
    Event::LinkMade(LinkMade { link: Some(link), bundle: Some(bundle), gateways: vec![] })
}

/// A site in which nothing moves by itself.
async fn still() -> TestSite {
    let site = TestSite::lasting().await;
    site.drain.start();
    site
}

impl TestSite {
    fn rotation_state(&self) -> Rotation {
        Rotation::clone(self.state().rotation.as_ref().expect("a rotation is under way"))
    }

    fn blockers(&self, seen: &Seen) -> Vec<RotationBlocker> {
        let state = self.state();
        let now = self.site.authority.clock().unix_s();
        judge(&state, state.rotation.as_ref().unwrap(), seen, now).blockers
    }

    fn names(&self, seen: &Seen) -> Vec<String> {
        self.blockers(seen).into_iter().map(|blocker| blocker.name).collect()
    }

    async fn switch(&self) {
        self.rotation.switch(&self.rotation_state(), &Seen::default()).await.unwrap();
    }

    /// Directories with keys of a root, and their files.
    fn keys(&self) -> Vec<String> {
        let mut files = Vec::new();
        let mut pending = vec![self.keys.path().to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    pending.push(path);
                } else if path
                    .extension()
                    .is_some_and(|e| ["key", "pem", "crt"].contains(&e.to_str().unwrap()))
                {
                    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                    assert_eq!(mode, 0o600, "{}", path.display());
                    files.push(path.strip_prefix(self.keys.path()).unwrap().display().to_string());
                }
            }
        }
        files.sort();
        files
    }
}

/// Each reason to wait, by name, and each reason not to.
#[tokio::test]
async fn a_new_root_waits_for_everybody_who_lives_and_does_not_know_it() {
    let site = still().await;
    site.commit((1..=7).map(|i| joined(i, 1000, &site)).collect()).await;
    site.commit(vec![joined(2, -1, &site), linked("east"), linked("north"), linked("south")]).await;
    site.rotation.start("test").await.unwrap();
    let sequence = site.rotation_state().sequence;
    site.commit(vec![
        revoked(format!("node:{}", node_id(3))),
        revoked(SpiffeId::node(&site.domain(), &node_id(4)).to_string()),
        revoked("serial:a5".into()),
        Event::NodeDuplicated(NodeDuplicated { id: node_id(6).to_string(), reason: "x".into() }),
        Event::BundleHeld(BundleHeld {
            sequence,
            nodes: vec![node_id(7).to_string()],
            sites: vec!["north".into()],
        }),
        // Of an earlier rotation: means nothing now.
        Event::BundleHeld(BundleHeld {
            sequence: sequence - 1,
            nodes: vec![node_id(1).to_string()],
            sites: vec!["east".into()],
        }),
    ])
    .await;
    let proxy = |stream, holds, nack: &str| SeenProxy {
        stream,
        who: "proxy of x".into(),
        serial: String::new(),
        heard: Duration::from_secs(1),
        holds,
        nack: nack.into(),
    };
    let said = |said: &str| SeenSite { connected: true, said: said.into(), heard: None };
    let seen = Seen {
        proxies: vec![proxy(1, true, ""), proxy(2, false, ""), proxy(3, false, "too large")],
        nodes: [(node_id(1), (Some(Duration::from_secs(90)), false))].into(),
        sites: [("south".parse().unwrap(), said("2 of its proxies lack the new root: a, b"))]
            .into(),
    };
    let blockers = site.blockers(&seen);
    let names: Vec<_> = blockers.iter().map(|blocker| blocker.name.as_str()).collect();
    let (one, six) = (format!("node:{}", node_id(1)), format!("node:{}", node_id(6)));
    assert_eq!(names, [&one, &six, "stream:2", "stream:3", "site:east", "site:south"]);
    assert_eq!((blockers[0].last_heard_ms, blockers[0].connected), (Some(90_000), false));
    assert!(blockers[0].who.contains("vm-1"), "{blockers:?}");
    assert!(blockers[1].why.contains("node resolve"), "{blockers:?}");
    assert!(blockers[3].why.contains("too large"), "{blockers:?}");
    assert!(blockers[4].why.contains("not connected") && !blockers[4].connected, "{blockers:?}");
    assert!(blockers[5].why.contains("lack the new root: a, b"), "{blockers:?}");
    let switched = site.rotation.switch(&site.rotation_state(), &seen).await.unwrap_err();
    assert!(matches!(switched, RotationError::Blocked(6)), "{switched}");

    // Who is not there is waited for no longer; who is, only by name.
    let gone = to_force(&blockers, &[]);
    assert_eq!(gone.into_iter().collect::<Vec<_>>(), [one.as_str(), &six, "site:east"]);
    let named = to_force(&blockers, &["site:south".into(), "site:nobody".into()]);
    assert_eq!(named.into_iter().collect::<Vec<_>>(), ["site:south"]);
    let refused = site.rotation.force("test", &["site:nobody".into()]).await.unwrap_err();
    assert_eq!(refused.reason(), "rotation_nothing_to_force");
    let forced = site.rotation.force("test", &[]).await.unwrap();
    assert_eq!(forced.len(), 4, "south is not connected here either: {forced:?}");
    assert_eq!(site.names(&seen), ["stream:2", "stream:3"]);
}

#[tokio::test]
async fn a_root_stays_until_nothing_hangs_on_it() {
    let site = still().await;
    site.commit((1..=4).map(|i| joined(i, 1000, &site)).collect()).await;
    let leaves = [(1, "b1", ""), (1, "b2", "b1"), (2, "c1", ""), (3, "d1", ""), (4, "e1", "")];
    site.commit(leaves.map(|(i, s, r)| issued(i, s, r, &site)).into()).await;
    site.rotation.start("test").await.unwrap();
    site.rotation.force("test", &[]).await.unwrap();
    site.switch().await;
    // Forced: they are not waited for in the next phase either.
    let node = |i: u32| format!("node:{}", node_id(i));
    let mut rotation = site.rotation_state();
    rotation.forced = [node(4)].into();
    site.commit(vec![record(&rotation)]).await;
    let waits = || site.names(&Seen::default());
    let all = [&node(1), &node(2), &node(3), "serial:b1", "serial:b2", "serial:c1", "serial:d1"];
    assert_eq!(waits(), all);

    // A renewal counts when the new certificate has been shown: its answer may
    // have been lost.
    site.commit(vec![renewed(1, "a1-2", "a1", &site), issued(1, "b3", "b2", &site)]).await;
    assert_eq!(waits(), [&node(1), &node(2), &node(3), "serial:b2", "serial:c1", "serial:d1"]);
    site.commit(vec![issued(1, "b4", "b2", &site)]).await;
    let shown = |serials: &[&str]| {
        let serials = serials.iter().map(ToString::to_string).collect();
        Event::CertificatesShown(CertificatesShown { serials })
    };
    site.commit(vec![shown(&["a1-2", "b4"])]).await;
    assert_eq!(waits(), [&node(2), &node(3), "serial:c1", "serial:d1"]);
    assert!(!site.state().leaves.contains_key("b3"), "it was lost on its way");

    // Without a certificate that is believed nobody blocks.
    site.commit(vec![
        revoked("serial:c1".into()),
        revoked(node(2)),
        Event::NodeLeft(v1::NodeLeft { id: node_id(2).to_string() }),
        joined(3, -1, &site),
        revoked("spiffe://west.example/ns/shop/sa/orders".into()),
    ])
    .await;
    assert_eq!(waits(), Vec::<String>::new());
    let seen = Seen::default();
    site.rotation.retire(&site.rotation_state(), &seen).await.unwrap();
    assert!(site.state().rotation.is_none());
}

/// The decision is taken on the newest state, whatever was looked at before.
#[tokio::test]
async fn nothing_retires_a_root_under_a_certificate_in_use() {
    let site = still().await;
    site.rotation.start("test").await.unwrap();
    site.switch().await;
    let looked = site.rotation_state();
    let old = looked.old_hash();
    let Event::WorkloadIssued(leaf) = issued(1, "late", "", &site) else { unreachable!() };
    let late = WorkloadIssued { node: String::new(), root: old.to_vec(), ..leaf };
    site.commit(vec![Event::WorkloadIssued(late)]).await;
    let refused = site.rotation.retire(&looked, &Seen::default()).await.unwrap_err();
    assert!(matches!(refused, RotationError::Blocked(1)), "{refused}");
    assert_eq!(site.state().site().bundle.roots.len(), 2);
    assert_eq!(site.keys().len(), 7, "{:?}", site.keys());
    site.rotation.set_paused("test", true).await.unwrap();
    site.rotation.force("test", &["serial:late".into()]).await.unwrap();
    let paused = site.rotation.retire(&looked, &Seen::default()).await.unwrap_err();
    assert!(matches!(paused, RotationError::Changed), "{paused}");
    site.rotation.set_paused("test", false).await.unwrap();
    site.rotation.retire(&looked, &Seen::default()).await.unwrap();
    assert_eq!(site.state().site().bundle.roots, [looked.new]);
}

#[tokio::test]
async fn every_step_is_one_commit_and_the_disk_follows() {
    let site = still().await;
    let first = site.state().site().bundle.clone();
    let old_leaf = |site: &TestSite| {
        let csr = mesh_tunnel::tls::new_key_and_csr().unwrap().1;
        let gateway = SpiffeId::gateway(&site.domain());
        site.site.ca.issue(&KeyRequest::parse(&csr).unwrap(), &gateway, None).unwrap()
    };
    assert_eq!(site.keys(), ["issuing.pem", "root.crt", "root.key"]);
    site.rotation.start("test").await.unwrap();
    let rotation = site.rotation_state();
    let published = site.state().site().bundle.clone();
    assert_eq!(published.sequence, first.sequence + 1);
    assert_eq!(published.roots, [rotation.old.clone(), rotation.new.clone()]);
    assert!(published.retiring.is_empty(), "nobody renews yet");
    assert_eq!(site.keys().len(), 7);
    assert_eq!(old_leaf(&site).root_sha256, rotation.old_hash());
    let again = site.rotation.start("test").await.unwrap_err();
    assert_eq!(again.reason(), "rotation_under_way");

    site.switch().await;
    let turning = site.state().site().bundle.clone();
    assert_eq!((turning.sequence, turning.roots.len()), (first.sequence + 2, 2));
    assert_eq!(turning.retiring, rotation.old_hash());
    let new_hash = spki_sha256(&rotation.new).unwrap();
    assert_eq!(old_leaf(&site).root_sha256, new_hash);
    assert_eq!(old_leaf(&site).chain.len(), 3, "for those who know only the old root");
    let own = site.site.credentials.svid().unwrap();
    assert!(
        site.site
            .credentials
            .verify(&own.chain, mesh_core::identity::Side::Server, &mesh_core::Allowed::Known)
            .is_ok()
    );

    site.rotation.retire(&site.rotation_state(), &Seen::default()).await.unwrap();
    let last = site.state().site().bundle.clone();
    assert_eq!((last.sequence, last.roots), (first.sequence + 3, vec![rotation.new.clone()]));
    let directory = format!("root-{}", hex(&new_hash[..8]));
    let left = ["issuing.pem", "root.crt", "root.key"].map(|file| format!("{directory}/{file}"));
    assert_eq!(site.keys(), left);
    assert_eq!(old_leaf(&site).chain.len(), 2);
    for steer in
        [site.rotation.set_paused("test", true).await, site.rotation.roll_back("test").await]
    {
        assert_eq!(steer.unwrap_err().reason(), "rotation_none");
    }
    // And once more, from there.
    site.rotation.start("test").await.unwrap();
    site.switch().await;
    site.rotation.retire(&site.rotation_state(), &Seen::default()).await.unwrap();
    assert_eq!(site.keys().len(), 3);
    assert_eq!(site.state().site().bundle.sequence, first.sequence + 6);
}

#[tokio::test]
async fn a_rotation_goes_back_until_the_old_root_is_retired() {
    let site = still().await;
    let first = site.state().site().bundle.roots.clone();
    site.rotation.start("test").await.unwrap();
    site.rotation.roll_back("test").await.unwrap();
    assert!(site.state().rotation.is_none(), "nothing hangs on the new root");
    assert_eq!(site.state().site().bundle.roots, first);
    assert_eq!(site.keys(), ["issuing.pem", "root.crt", "root.key"]);

    site.rotation.start("test").await.unwrap();
    site.switch().await;
    let Event::WorkloadIssued(leaf) = issued(1, "new", "", &site) else { unreachable!() };
    site.commit(vec![Event::WorkloadIssued(WorkloadIssued { node: String::new(), ..leaf })]).await;
    site.rotation.roll_back("test").await.unwrap();
    let back = site.rotation_state();
    assert_eq!(vec![back.new.clone()], first);
    assert_eq!(site.state().site().bundle.retiring, back.old_hash());
    assert_eq!(*site.site.ca.root(), first[0][..]);
    assert_eq!(site.names(&Seen::default()), ["serial:new"]);
    assert_eq!(site.rotation.roll_back("test").await.unwrap_err().reason(), "rotation_rolls_back");
    site.rotation.force("test", &[]).await.unwrap();
    site.rotation.retire(&site.rotation_state(), &Seen::default()).await.unwrap();
    assert_eq!(site.state().site().bundle.roots, first);
    assert_eq!(site.keys(), ["issuing.pem", "root.crt", "root.key"]);
}

#[tokio::test]
async fn tokens_end_with_the_root_that_they_pin() {
    let site = still().await;
    let token = async || {
        let new = NewToken::link("north", Duration::ZERO).unwrap();
        tokens::create(&site.site, "test", new).await.unwrap().0
    };
    let before = token().await;
    site.rotation.start("test").await.unwrap();
    assert_eq!(token().await.root_spki_sha256, before.root_spki_sha256);
    assert_eq!(site.rotation.status().tokens, 2);
    site.switch().await;
    let after = token().await;
    assert_ne!(after.root_spki_sha256, before.root_spki_sha256);
    assert_eq!(site.rotation.status().tokens, 2, "they are good until the root goes");
    site.rotation.retire(&site.rotation_state(), &Seen::default()).await.unwrap();
    let open: Vec<_> =
        site.state().tokens.values().filter(|t| !t.revoked).map(|t| t.id.clone()).collect();
    assert_eq!(open, [after.id.to_string()]);
}

#[tokio::test]
async fn without_the_old_roots_key_nothing_begins() {
    let site = still().await;
    fs::remove_file(site.keys.path().join("root.key")).unwrap();
    let refused = site.rotation.start("test").await.unwrap_err();
    assert!(refused.to_string().contains("put it back"), "{refused}");
    assert!(site.state().rotation.is_none());
    assert_eq!(site.keys(), ["issuing.pem", "root.crt"]);
}

/// Every state that a crash can leave: the log up to some commit, and a disk
/// that is as far, or one step behind.
#[tokio::test]
async fn a_start_makes_the_disk_follow_the_log_at_every_step() {
    let site = still().await;
    let ca = &site.site.ca;
    let follow = || {
        let state = site.state();
        let keys = site.keys.path();
        let again = crate::ca::CertificateAuthority::open(
            keys,
            &site.domain(),
            site.site.authority.clock().clone(),
        )
        .unwrap();
        again.sign_under(state.signing_root()).unwrap();
        again.keep_only(&state.site().bundle.roots).unwrap();
        assert_eq!(*again.root(), *state.signing_root());
        site.keys().len()
    };
    let rotation = &site.rotation;
    // A root was made, and the commit did not come to be.
    ca.prepare_root(2).unwrap();
    fs::create_dir(site.keys.path().join("root.new")).unwrap();
    assert_eq!(follow(), 3);
    assert!(!site.keys.path().join("root.new").exists());
    rotation.start("test").await.unwrap();
    assert_eq!(follow(), 7);
    // Switched in the log alone.
    let from = site.rotation_state();
    let turning = Rotation { phase: RotationPhase::TurnOver, ..from.clone() };
    site.commit(turn_over(&site.state(), &turning)).await;
    assert_eq!(follow(), 7);
    // Retired in the log alone.
    site.commit(vec![
        bundle(&site.state(), vec![from.new.clone()], None, 0),
        Event::RootRotation(RootRotation::default()),
    ])
    .await;
    assert_eq!(follow(), 3);
    assert_eq!(follow(), 3);
}

/// An agent that follows bundles, and says what it has.
async fn agent_that_holds(
    site: &TestSite,
    node: &NodeId,
    sequence: u64,
) -> tokio::sync::mpsc::Sender<RegistryRequest> {
    let mut client = RegistryClient::new(site.as_agent(node).await);
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    let hello = RegistryHello {
        versions: mesh_api::VERSIONS.to_vec(),
        follows_bundles: true,
        ..RegistryHello::default()
    };
    tx.send(RegistryRequest { sequence: 1, request: Some(Asked::Hello(hello)) }).await.unwrap();
    let mut replies = client.session(ReceiverStream::new(rx)).await.unwrap().into_inner();
    let told = loop {
        let reply = replies.message().await.unwrap().unwrap();
        let own = reply.trust.and_then(|trust| trust.bundles.into_iter().next());
        if let Some(own) = own.filter(|own| own.sequence >= sequence) {
            break own.sequence;
        }
    };
    let holds = NodeHolds { bundle_sequence: told, serial: String::new() };
    tx.send(RegistryRequest { sequence: 2, request: Some(Asked::Holds(holds)) }).await.unwrap();
    tokio::spawn(async move { while let Ok(Some(_)) = replies.message().await {} });
    tx
}

/// By itself, with an agent that comes along and a linked site that is away at
/// first.
#[tokio::test]
async fn steps_are_taken_when_the_last_one_has_come_along() {
    let site = TestSite::lasting().await;
    site.commit(vec![joined(1, 1000, &site), linked("east")]).await;
    let status = site.rotation.ask(
        "test",
        v1::RotateRootRequest { action: RotationAction::Start.into(), ..Default::default() },
    );
    let status = status.await.unwrap();
    assert_eq!(status.phase(), RotationPhase::Publish);
    let agent = agent_that_holds(&site, &node_id(1), status.bundle_sequence).await;
    let east: SiteName = "east".parse().unwrap();
    let waits_for = |status: &RotationStatus| -> Vec<String> {
        status.blockers.iter().map(|blocker| blocker.name.clone()).collect()
    };
    eventually("only the linked site is waited for", || {
        let status = site.rotation.status();
        (waits_for(&status) == ["site:east"]).then_some(())
    })
    .await;
    // What it says is remembered when it is away again.
    drop(agent);
    site.rotation
        .peering
        .pretend_holds(&east, SiteHolds { bundle_sequence: 1, ..SiteHolds::default() });
    tokio::time::sleep(LOOK * 2).await;
    assert_eq!(waits_for(&site.rotation.status()), ["site:east"], "an older bundle");
    let sequence = status.bundle_sequence;
    site.rotation
        .peering
        .pretend_holds(&east, SiteHolds { bundle_sequence: sequence, ..SiteHolds::default() });
    eventually("it turns over", || {
        (site.rotation.status().phase() == RotationPhase::TurnOver).then_some(())
    })
    .await;
    assert_eq!(waits_for(&site.rotation.status()), [format!("node:{}", node_id(1))]);
    site.rotation.force("test", &[]).await.unwrap();
    eventually("it is over", || site.state().rotation.is_none().then_some(())).await;
    assert_eq!(site.keys().len(), 3);
}
