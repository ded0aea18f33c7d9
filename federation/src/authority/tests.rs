use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_api::v1::{
    AuthorityRecord, Bundle, BundleHeld, BundleUpdated, CertificatesShown, EndpointRegistered,
    Gateway, GatewaySeen, Link, LinkEnded, LinkMade, NodeDuplicated, NodeJoined, NodeLeft,
    NodeRenewed, NodeResolved, Register, Revocation, RootRotation, ServiceExported, SiteCreated,
    TokenCreated, TokenPurpose, TokenRevoked, TokenUsed, WorkloadIssued, authority_record::Event,
};
use proptest::prelude::*;

use super::{
    store::{Each, StoreError},
    *,
};
use crate::refusal::Never;

const NOW_S: i64 = 1_000_000;

fn clock() -> Clock {
    Clock::from_fn(|| Duration::from_secs(NOW_S.unsigned_abs()))
}

fn site() -> SiteCreated {
    SiteCreated {
        name: "west".into(),
        trust_domain: "west.example".into(),
        root: vec![1, 2, 3],
        ..Default::default()
    }
}

fn open(store: impl Store) -> Authority {
    Authority::create(&store, &clock(), site()).unwrap();
    Authority::open(store, clock()).unwrap()
}

fn run<T>(test: impl Future<Output = T>) -> T {
    mesh_runtime::process::current_thread().unwrap().block_on(test)
}

fn token(id: &str, uses: u32) -> Event {
    Event::TokenCreated(TokenCreated {
        id: id.into(),
        purpose: TokenPurpose::Node.into(),
        secret_sha256: vec![0; 32],
        uses,
        expires_unix_s: NOW_S + 60,
        ..Default::default()
    })
}

fn used(id: &str, by: &str) -> Event {
    Event::TokenUsed(TokenUsed { id: id.into(), by: by.into() })
}

fn node_id(n: u8) -> String {
    format!("00000000-0000-4000-8000-0000000000{n:02x}")
}

fn joined(n: u8) -> Event {
    Event::NodeJoined(NodeJoined {
        id: node_id(n),
        token: "t1".into(),
        serial: format!("{n}-0"),
        not_after_unix_s: NOW_S + 1000,
        ..Default::default()
    })
}

fn renewed(n: u8, serial: &str, with: &str) -> Event {
    Event::NodeRenewed(NodeRenewed {
        id: node_id(n),
        serial: serial.into(),
        not_after_unix_s: NOW_S + 2000,
        with_serial: with.into(),
        ..Default::default()
    })
}

async fn commit(authority: &Authority, events: Vec<Event>) -> Result<(), CommitError<Never>> {
    authority.commit("test", |_| Ok((events, ()))).await
}

#[test]
fn a_token_lets_in_as_many_as_it_says_however_many_ask() {
    run(async {
        let authority = open(MemoryStore::default());
        commit(&authority, vec![token("t1", 3)]).await.unwrap();
        let attempts = (0..50).map(|i| {
            let authority = authority.clone();
            async move {
                let decide = |state: &State| match state.tokens["t1"].uses_left() {
                    0 => Err("used up"),
                    _ => Ok((vec![used("t1", &i.to_string())], ())),
                };
                authority.commit("test", decide).await.is_ok()
            }
        });
        let let_in = futures_util::future::join_all(attempts).await;
        assert_eq!(let_in.into_iter().filter(|ok| *ok).count(), 3);
        assert_eq!(authority.state().tokens["t1"].used_by.len(), 3);
    });
}

#[test]
fn what_is_not_asked_is_not_there_and_readers_keep_what_they_have() {
    run(async {
        let authority = open(MemoryStore::default());
        let before = authority.state();
        let mut revision = authority.revision();
        commit(&authority, vec![token("t1", 1)]).await.unwrap();
        assert!(before.tokens.is_empty());
        assert_eq!(authority.state().revision.n, before.revision.n + 1);
        assert!(revision.has_changed().unwrap());
        revision.mark_unchanged();
        commit(&authority, vec![]).await.unwrap();
        assert!(!revision.has_changed().unwrap(), "nothing was decided");
    });
}

/// Fails on demand, and counts writes.
#[derive(Clone, Default)]
struct Failing {
    inner: Arc<MemoryStore>,
    fail: Arc<AtomicBool>,
    commits: Arc<AtomicUsize>,
    delay: Duration,
}

impl Store for Failing {
    fn replay(&self, each: &mut Each<'_>) -> Result<(), StoreError> {
        self.inner.replay(each)
    }
    fn commit(&self, records: &[AuthorityRecord]) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(self.delay);
        if self.fail.load(Ordering::SeqCst) {
            let (path, problem) = ("log".into(), "No space left on device".into());
            return Err(StoreError::Io { path, problem, remedy: "make room" });
        }
        self.inner.commit(records)
    }
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn compact(&self, snapshot: Vec<AuthorityRecord>, now: i64) -> Result<(), StoreError> {
        self.inner.compact(snapshot, now)
    }
    fn certificate(&self, serial: &str) -> Option<AuthorityRecord> {
        self.inner.certificate(serial)
    }
}

#[test]
fn a_full_disk_refuses_changes_and_leaves_everything_readable() {
    run(async {
        let store = Failing::default();
        let authority = open(store.clone());
        commit(&authority, vec![token("t1", 1)]).await.unwrap();
        store.fail.store(true, Ordering::SeqCst);
        let error = commit(&authority, vec![used("t1", "a")]).await.unwrap_err();
        assert!(matches!(&error, CommitError::Store(_)), "{error}");
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert_eq!(authority.state().tokens["t1"].uses_left(), 1);
        store.fail.store(false, Ordering::SeqCst);
        commit(&authority, vec![used("t1", "b")]).await.unwrap();
        assert_eq!(authority.state().tokens["t1"].used_by, ["b"]);
        drop(authority);
        let again = Authority::open(store, clock()).unwrap();
        assert_eq!(again.state().tokens["t1"].used_by, ["b"]);
    });
}

#[test]
fn decisions_on_top_of_a_failed_one_fail_with_it() {
    run(async {
        let store = Failing { delay: Duration::from_millis(50), ..Failing::default() };
        let authority = open(store.clone());
        store.fail.store(true, Ordering::SeqCst);
        let (a, b, c) = tokio::join!(
            commit(&authority, vec![token("t1", 1)]),
            async {
                // The first is on its way to the disk by now, or waits with us.
                tokio::time::sleep(Duration::from_millis(10)).await;
                commit(&authority, vec![used("t1", "b")]).await
            },
            commit(&authority, vec![token("t2", 1)]),
        );
        assert!(a.is_err() && b.is_err() && c.is_err());
        store.fail.store(false, Ordering::SeqCst);
        commit(&authority, vec![token("t3", 1)]).await.unwrap();
        let state = authority.state();
        assert_eq!(state.tokens.keys().collect::<Vec<_>>(), ["t3"]);
    });
}

#[test]
fn commits_that_wait_share_one_write() {
    run(async {
        let store = Failing { delay: Duration::from_millis(20), ..Failing::default() };
        let authority = open(store.clone());
        let before = store.commits.load(Ordering::SeqCst);
        let all = (0..200).map(|i| {
            let events = vec![token(&format!("t{i}"), 1)];
            let authority = authority.clone();
            async move { commit(&authority, events).await }
        });
        let done = futures_util::future::join_all(all).await;
        assert!(done.into_iter().all(|result| result.is_ok()));
        let writes = store.commits.load(Ordering::SeqCst) - before;
        assert!(writes < 20, "{writes} writes for 200 commits");
        assert_eq!(authority.state().tokens.len(), 200);
    });
}

#[test]
fn a_decision_that_contradicts_the_state_changes_nothing() {
    run(async {
        let authority = open(MemoryStore::default());
        let events = vec![token("t1", 1), used("nobody", "x")];
        let error = commit(&authority, events).await.unwrap_err();
        assert!(error.to_string().contains("no token nobody"), "{error}");
        assert!(authority.state().tokens.is_empty());
        commit(&authority, vec![token("t2", 1)]).await.unwrap();
        assert_eq!(authority.state().tokens.len(), 1);
    });
}

#[test]
fn without_a_site_there_is_nothing_to_open() {
    let error = Authority::open(MemoryStore::default(), clock()).map(drop).unwrap_err();
    assert!(error.to_string().contains("site init"), "{error}");
}

#[test]
fn a_log_that_does_not_fit_together_is_refused() {
    let record = |epoch, n, event| AuthorityRecord {
        revision: Some(WireRevision { epoch, n }),
        event,
        ..Default::default()
    };
    let created = || Some(Event::SiteCreated(site()));
    let cases: [(&str, Vec<AuthorityRecord>); 6] = [
        ("newer version", vec![record(1, 1, created()), record(1, 2, None)]),
        ("another lineage", vec![record(1, 1, created()), record(2, 2, Some(token("t", 1)))]),
        ("does not follow", vec![record(1, 1, created()), record(1, 3, Some(token("t", 1)))]),
        ("a second time", vec![record(1, 1, created()), record(1, 2, created())]),
        ("does not begin", vec![record(1, 1, Some(token("t", 1)))]),
        ("no node", vec![record(1, 1, created()), record(1, 2, Some(renewed(1, "a", "b")))]),
    ];
    for (expected, records) in cases {
        let store = MemoryStore::default();
        store.commit(&records).unwrap();
        let error = Authority::open(store, clock()).map(drop).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_node_has_a_current_and_a_previous_certificate() {
    let serials = |node: &state::NodeState| {
        let previous = node.previous.as_ref().map(|c| c.serial.clone());
        let retired: Vec<_> = node.retired.iter().map(|c| c.serial.clone()).collect();
        (node.current.serial.clone(), previous, retired)
    };
    run(async {
        let authority = open(MemoryStore::default());
        commit(&authority, vec![joined(1), renewed(1, "1-1", "1-0")]).await.unwrap();
        let id: mesh_core::NodeId = node_id(1).parse().unwrap();
        let node = authority.state().nodes[&id].clone();
        assert_eq!(serials(&node), ("1-1".into(), Some("1-0".into()), vec![]));
        // The answer got lost: the same old one renews again.
        commit(&authority, vec![renewed(1, "1-2", "1-0")]).await.unwrap();
        let node = authority.state().nodes[&id].clone();
        assert_eq!(serials(&node), ("1-2".into(), Some("1-0".into()), vec!["1-1".into()]));
        commit(&authority, vec![renewed(1, "1-3", "1-2")]).await.unwrap();
        let node = authority.state().nodes[&id].clone();
        let retired = vec!["1-1".into(), "1-0".into()];
        assert_eq!(serials(&node), ("1-3".into(), Some("1-2".into()), retired));
        let resolved = NodeResolved { id: node_id(1), keep_serial: "1-1".into() };
        commit(&authority, vec![Event::NodeResolved(resolved)]).await.unwrap();
        let node = authority.state().nodes[&id].clone();
        assert_eq!(serials(&node), ("1-1".into(), None, vec![]));
    });
}

fn registered(n: u8, instance: &str) -> Event {
    Event::Registered(EndpointRegistered {
        node: node_id(n),
        spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
        register: Some(Register {
            instance: instance.into(),
            service: "orders.shop".into(),
            ..Default::default()
        }),
        registered_at: 0,
    })
}

#[test]
fn a_registration_keeps_its_number_until_it_is_gone() {
    run(async {
        let authority = open(MemoryStore::default());
        commit(&authority, vec![joined(1), registered(1, "a")]).await.unwrap();
        let first = authority.state().registrations.values().next().unwrap().registered_at;
        commit(&authority, vec![registered(1, "a")]).await.unwrap();
        let again = authority.state().registrations.values().next().unwrap().registered_at;
        assert_eq!(first, again);
        commit(&authority, vec![Event::NodeLeft(NodeLeft { id: node_id(1) })]).await.unwrap();
        assert!(authority.state().registrations.is_empty());
        commit(&authority, vec![joined(1), registered(1, "a")]).await.unwrap();
        let new = authority.state().registrations.values().next().unwrap().registered_at;
        assert!(new > first);
    });
}

/// Any event, about few enough things that they meet.
fn any_event() -> impl Strategy<Value = Event> {
    let n = 0u8..4;
    let serial = "[0-3]-[0-9]";
    prop_oneof![
        (n.clone(), 1u32..3).prop_map(|(n, uses)| token(&format!("t{n}"), uses)),
        (n.clone(), "[a-c]").prop_map(|(n, by)| used(&format!("t{n}"), &by)),
        n.clone().prop_map(|n| Event::TokenRevoked(TokenRevoked { id: format!("t{n}") })),
        n.clone().prop_map(joined),
        (n.clone(), serial, serial).prop_map(|(n, serial, with)| renewed(n, &serial, &with)),
        n.clone().prop_map(|n| {
            Event::NodeDuplicated(NodeDuplicated { id: node_id(n), reason: "two".into() })
        }),
        (n.clone(), serial).prop_map(|(n, s)| Event::NodeResolved(NodeResolved {
            id: node_id(n),
            keep_serial: s
        })),
        n.clone().prop_map(|n| Event::NodeLeft(NodeLeft { id: node_id(n) })),
        (n.clone(), "[ab]").prop_map(|(n, instance)| registered(n, &instance)),
        n.clone().prop_map(link),
        n.clone().prop_map(|n| Event::LinkEnded(LinkEnded { site: format!("s{n}") })),
        (n.clone(), 2u64..9).prop_map(|(n, sequence)| bundle(n, sequence)),
        (n.clone(), any::<bool>()).prop_map(|(n, all)| {
            let sites = (0..n).map(|n| format!("s{n}")).collect();
            Event::ServiceExported(ServiceExported {
                service: "orders.shop".into(),
                sites,
                all,
                by_cluster: false,
            })
        }),
        n.clone().prop_map(|n| {
            let subject = format!("node:{}", node_id(n));
            Event::Revoked(Revocation { subject, revoked_at_unix_s: NOW_S })
        }),
        (0i32..3, n.clone()).prop_map(|(phase, n)| {
            let (old, new) = (vec![1], if phase == 0 { vec![] } else { vec![2 + n % 2] });
            Event::RootRotation(RootRotation { phase, old, new, sequence: 3, ..Default::default() })
        }),
        (n.clone(), 2u64..5).prop_map(|(n, sequence)| {
            let (nodes, sites) = (vec![node_id(n)], vec![format!("s{n}")]);
            Event::BundleHeld(BundleHeld { sequence, nodes, sites })
        }),
        prop::collection::vec(serial, 0..4)
            .prop_map(|serials| Event::CertificatesShown(CertificatesShown { serials })),
        n.prop_map(|n| Event::GatewaySeen(GatewaySeen {
            gateway: Some(Gateway {
                id: format!("g{n}"),
                site: "west".into(),
                tls_addresses: if n == 0 { vec![] } else { vec![format!("h:{n}")] },
                ..Default::default()
            })
        })),
    ]
}

fn link(n: u8) -> Event {
    let (site, trust_domain) = (format!("s{n}"), format!("s{n}.example"));
    Event::LinkMade(LinkMade {
        link: Some(Link { site, trust_domain: trust_domain.clone(), ..Default::default() }),
        bundle: Some(Bundle {
            trust_domain,
            sequence: 1,
            roots: vec![vec![n]],
            ..Bundle::default()
        }),
        gateways: vec![],
    })
}

fn bundle(n: u8, sequence: u64) -> Event {
    // 0 is our own.
    let trust_domain = if n == 0 { "west.example".into() } else { format!("s{n}.example") };
    let bundle = Bundle { trust_domain, sequence, roots: vec![vec![n, 1]], ..Bundle::default() };
    Event::BundleUpdated(BundleUpdated { bundle: Some(bundle) })
}

proptest! {
    #[test]
    fn a_snapshot_folds_to_the_state_it_was_made_of(events in prop::collection::vec(any_event(), 0..60)) {
        let mut state = State::default();
        let mut n = 1;
        let mut fold = |state: &mut State, event: Event| {
            let record = AuthorityRecord {
                revision: Some(WireRevision { epoch: 7, n }),
                at_unix_ms: NOW_S * 1000,
                actor: String::new(),
                event: Some(event),
            };
            let mut next = state.clone();
            // Some do not make sense where they stand; those are not recorded.
            if next.fold(&record).is_ok() {
                *state = next;
                n += 1;
            }
        };
        fold(&mut state, Event::SiteCreated(site()));
        for event in events {
            fold(&mut state, event);
        }
        let mut again = State::default();
        for record in snapshot::records(&state, NOW_S) {
            again.fold(&record).unwrap();
        }
        prop_assert_eq!(again, state);
    }
}

#[test]
fn compaction_forgets_what_nobody_needs() {
    run(async {
        let authority = open(MemoryStore::default());
        let revoked = |subject: &str| {
            Event::Revoked(Revocation { subject: subject.into(), revoked_at_unix_s: NOW_S })
        };
        let events = vec![
            token("t1", 1),
            revoked("serial:aa"),
            revoked("spiffe://west.example/ns/shop/sa/orders"),
        ];
        commit(&authority, events).await.unwrap();
        let later = NOW_S + 60 + snapshot::REMEMBER_TOKENS_S.max(snapshot::REMEMBER_REVOCATIONS_S);
        let mut again = State::default();
        for record in snapshot::records(&authority.state(), later) {
            again.fold(&record).unwrap();
        }
        assert!(again.tokens.is_empty());
        let subjects: Vec<_> = again.revocations.keys().collect();
        assert_eq!(subjects, ["spiffe://west.example/ns/shop/sa/orders"]);
        let mut now = State::default();
        for record in snapshot::records(&authority.state(), NOW_S) {
            now.fold(&record).unwrap();
        }
        assert_eq!(&now, &*authority.state());
    });
}

#[test]
fn a_log_that_grows_is_compacted_while_it_is_used() {
    run(async {
        let store = Failing::default();
        let authority = open(store.clone());
        let hostname = "x".repeat(512 * 1024);
        for i in 0..40 {
            let Event::NodeJoined(small) = joined(1) else { unreachable!() };
            let large = NodeJoined { hostname: hostname.clone(), ..small };
            let left = NodeLeft { id: node_id(1) };
            let events =
                vec![Event::NodeJoined(large), Event::NodeLeft(left), token(&i.to_string(), 1)];
            commit(&authority, events).await.unwrap();
        }
        // The last compaction may still be going on.
        let state = authority.state();
        drop(authority);
        assert!(store.size() < COMPACT_AT, "{} bytes", store.size());
        assert_eq!(&*Authority::open(store, clock()).unwrap().state(), &*state);
        assert_eq!(state.tokens.len(), 40);
    });
}

#[test]
fn certificates_are_found_by_their_serial_number() {
    run(async {
        let authority = open(MemoryStore::default());
        let issued = WorkloadIssued {
            spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
            node: node_id(1),
            serial: "abc".into(),
            not_after_unix_s: NOW_S + 10,
            node_serial: "1-0".into(),
            ..WorkloadIssued::default()
        };
        commit(&authority, vec![joined(1), Event::WorkloadIssued(issued)]).await.unwrap();
        let store = authority.store();
        assert_eq!(store.certificate("abc").unwrap().actor, "test");
        assert!(store.certificate("1-0").is_some() && store.certificate("x").is_none());
    });
}

/// After compaction and a restart the same certificates are in use, and every
/// one is found.
#[test]
fn certificates_in_use_survive_compaction_and_those_replaced_do_not_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = || -> Box<dyn Store> { Box::new(LogStore::open(directory.path()).unwrap()) };
    Authority::create(&LogStore::create(directory.path()).unwrap(), &clock(), site()).unwrap();
    let issued = |n: u64, serial: &str, replaces: &str, life: i64| {
        let leaf = WorkloadIssued {
            spiffe_id: "spiffe://west.example/ns/shop/sa/orders".into(),
            serial: serial.into(),
            replaces: replaces.into(),
            not_after_unix_s: NOW_S + life,
            ..WorkloadIssued::default()
        };
        AuthorityRecord {
            revision: Some(WireRevision { epoch: 0, n }),
            at_unix_ms: NOW_S * 1000,
            actor: "who asked".into(),
            event: Some(Event::WorkloadIssued(leaf)),
        }
    };
    let fold = |store: &dyn Store| {
        let mut state = State::default();
        store.replay(&mut |record| state.fold(record)).unwrap();
        state
    };
    let store_ = store();
    let mut state = fold(&*store_);
    let chain = [("a", "", 50), ("b", "a", 60), ("c", "b", 70), ("d", "", 90), ("e", "", -1)];
    for (i, (serial, replaces, life)) in chain.into_iter().enumerate() {
        let mut record = issued(2 + i as u64, serial, replaces, life);
        record.revision.as_mut().unwrap().epoch = state.revision.epoch;
        store_.commit(std::slice::from_ref(&record)).unwrap();
        state.fold(&record).unwrap();
    }
    let in_use = |state: &State| state.leaves.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(in_use(&state), ["b", "c", "d", "e"], "c shows that its holder had b");
    store_.compact(snapshot::records(&state, NOW_S), NOW_S).unwrap();
    drop(store_);
    let again = store();
    assert_eq!(in_use(&fold(&*again)), ["b", "c", "d"], "and what has ended is forgotten");
    for serial in ["a", "b", "c", "d"] {
        assert_eq!(again.certificate(serial).unwrap().actor, "who asked", "{serial}");
    }
}
