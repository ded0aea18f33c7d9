//! vm-agent with its real sockets, files and clock, against a federation that
//! the test plays: what it keeps on disk, whom it serves, what it says.

#![allow(clippy::unwrap_used, reason = "a test")]

mod jwt;
mod played;
mod workload_api;

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use isthmus_tests::pki::Ca;
use mesh_api::v1::{
    self, agent_client::AgentClient, registry_request::Request as Asked,
    workload_identity_client::WorkloadIdentityClient,
};
use mesh_core::{
    NodeId, SpiffeId,
    token::{Purpose, Token},
};
use mesh_runtime::{clock, drain::Drain, process};
use mesh_tunnel::{RealNet, tls::new_key_and_csr, unix};
use played::{serve_identities, serve_registry, serve_registry_that_tells};
use tokio::sync::mpsc;
use tonic::{Code, Status, transport::Channel};
use vm_agent::{
    agent::{Farewell, Uplink},
    app::{App, StartError},
    config::Config,
    node::Node,
    renew, session,
    state::{StateDir, StateError},
};

const NODE: &str = "2f1f3b0e-7f0c-4d0e-9b5a-0123456789ab";
const DEADLINE: Duration = Duration::from_secs(30);

fn run<T>(test: impl Future<Output = T>) -> T {
    process::current_thread().unwrap().block_on(async {
        tokio::time::timeout(DEADLINE, test).await.expect("the test ends in time")
    })
}

fn config(dir: &Path) -> Config {
    let machine_id_file = dir.join("machine-id");
    if !machine_id_file.exists() {
        std::fs::write(&machine_id_file, "0123456789abcdef0123456789abcdef\n").unwrap();
    }
    std::fs::create_dir_all(dir.join("services.d")).unwrap();
    Config {
        state: dir.join("state"),
        run: dir.join("run"),
        services: dir.join("services.d"),
        advertise: Some("10.0.0.5:4143".parse().unwrap()),
        admin: Some("127.0.0.1:0".parse().unwrap()),
        region: "eu".into(),
        zone: String::new(),
        identity_uids: Vec::new(),
        workload_api: Vec::new(),
        identity_users: Vec::new(),
        machine_id_file,
        renew_after: Duration::from_secs(3600),
    }
}

/// What joining `ca`'s site as [`NODE`] has yielded.
fn node(ca: &Ca, machine_id: &str, issued: i64) -> Node {
    let id: NodeId = NODE.parse().unwrap();
    let spiffe_id = SpiffeId::node(&ca.trust_domain, &id);
    let (key, csr) = new_key_and_csr().unwrap();
    let joined = v1::JoinNodeResponse {
        version: 1,
        site: Some(v1::Site {
            name: "west".into(),
            trust_domain: ca.trust_domain.to_string(),
            federation_address: String::new(),
        }),
        node: NODE.into(),
        chain: ca.certify(&csr, &spiffe_id, Some(&id)),
        bundles: vec![(&ca.bundle()).into()],
        gateways: vec![v1::Gateway {
            id: "west-1".into(),
            site: "west".into(),
            quic_addresses: vec!["127.0.0.1:1".into()],
            tls_addresses: vec!["127.0.0.1:1".into()],
        }],
        grants: Some(v1::Grants {
            namespace: "shop".into(),
            account: "orders".into(),
            services: vec!["*.shop".into()],
        }),
        time_unix_ms: 0,
    };
    Node::new(machine_id.into(), issued, key, joined).unwrap()
}

const MACHINE: &str = "0123456789abcdef0123456789abcdef";

fn joined(config: &Config, ca: &Ca) -> Node {
    let state = StateDir::open(&config.state).unwrap();
    let node = node(ca, MACHINE, clock::unix_seconds());
    state.save(&node).unwrap();
    node
}

async fn start(config: &Config) -> (App, Drain) {
    let drain = Drain::new();
    let app = App::start(config.clone(), Arc::new(RealNet), drain.clone()).await.unwrap();
    (app, drain)
}

async fn operator(config: &Config) -> AgentClient<Channel> {
    AgentClient::new(unix::channel(&config.agent_socket()).await.unwrap())
}

async fn identity(config: &Config) -> WorkloadIdentityClient<Channel> {
    WorkloadIdentityClient::new(unix::channel(&config.identity_socket()).await.unwrap())
}

fn reason(status: &Status) -> &str {
    status.metadata().get("isthmus-error").map_or("", |value| value.to_str().unwrap())
}

#[test]
fn an_identity_survives_on_disk_for_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    let before = joined(&config, &ca);
    let bits = |name: &str| {
        std::fs::metadata(config.state.join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(bits("identity.json"), 0o600);
    assert_eq!(bits(""), 0o700);

    let state = StateDir::open(&config.state).unwrap();
    let after = state.load().unwrap().unwrap();
    assert_eq!(after.joined, before.joined);
    assert_eq!(after.key.secret_der(), before.key.secret_der());
    assert_eq!((after.machine_id.as_str(), after.issued), (MACHINE, before.issued));
    assert!(matches!(StateDir::open(&config.state), Err(StateError::InUse(_))));

    state.save_registered(&BTreeSet::from(["a".to_owned()])).unwrap();
    assert_eq!(state.registered().into_iter().collect::<Vec<_>>(), ["a"]);
    state.forget().unwrap();
    assert!(state.load().unwrap().is_none() && state.registered().is_empty());
}

#[test]
fn a_damaged_state_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    let path = config.state.join("identity.json");
    let whole = std::fs::read(&path).unwrap();
    let state = StateDir::open(&config.state).unwrap();
    // Every truncation, in steps; only the whole file is an identity.
    for length in (0..whole.len() - 1).step_by(whole.len() / 50) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = state.load().unwrap_err();
        assert!(error.to_string().contains("meshctl leave --force"), "{length}: {error}");
    }
    let newer =
        String::from_utf8(whole.clone()).unwrap().replace("\"version\": 1", "\"version\": 2");
    std::fs::write(&path, newer).unwrap();
    assert!(state.load().unwrap_err().to_string().contains("upgrade the agent"));
    std::fs::write(&path, &whole).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(state.load().unwrap_err().to_string().contains("chmod 600"));
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    // Nobody, not even root, makes directories there.
    config.state = "/proc/isthmus".into();
    let shown = run(async {
        let started = App::start(config.clone(), Arc::new(RealNet), Drain::new()).await;
        match started {
            Err(error @ StartError::State(_)) => error.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("it started"),
        }
    });
    assert!(shown.contains("/proc/isthmus") && shown.contains("can write"), "{shown}");
    assert!(!config.agent_socket().exists(), "nothing was bound");
}

#[test]
fn a_machine_that_has_not_joined_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    run(async {
        let (app, _drain) = start(&config).await;
        let mut operator = operator(&config).await;
        let status = operator.agent_status(v1::AgentStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.state.as_str(), status.problem.as_str()), ("not joined", ""));
        let refused = operator.leave_site(v1::LeaveSiteRequest { force: true }).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::FailedPrecondition, "not_joined"));
        let mut identity = identity(&config).await;
        let refused = identity.describe(v1::DescribeRequest {}).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "not_joined"));
        assert!(refused.message().contains("meshctl join"), "{refused}");
        app.stop().await;
    });
}

#[test]
fn tokens_that_are_none_are_refused_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    run(async {
        let (app, _drain) = start(&config).await;
        let mut operator = operator(&config).await;
        for (token, expected) in [
            ("", "token_not_a_token"),
            ("hello", "token_not_a_token"),
            ("isthmus1.", "token_truncated"),
            ("isthmus2.AAAA", "token_unsupported_version"),
            ("isthmus1.!!!!", "token_damaged"),
        ] {
            let request = v1::JoinSiteRequest { token: token.into() };
            let mut lines = operator.join_site(request).await.unwrap().into_inner();
            let refused = lines.message().await.unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{token:?}: {refused}");
            assert_eq!(reason(&refused), expected, "{token:?}: {refused}");
        }
        app.stop().await;
    });
    assert!(!config.state.join("identity.json").exists());
}

#[test]
fn a_site_that_cannot_be_reached_is_named_with_each_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    run(async {
        // One refuses connections, the other is no gateway.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateways =
            [closed.local_addr(), stranger.local_addr()].map(|at| at.unwrap().to_string());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = stranger.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"220 hello\r\n").await;
            }
        });
        let token = Token {
            purpose: Purpose::Node,
            site: "west".parse().unwrap(),
            trust_domain: ca.trust_domain.clone(),
            gateways: gateways.iter().map(|at| at.as_str().into()).collect(),
            root_spki_sha256: [7; 32],
            id: "t1".into(),
            secret: [9; 32],
        };
        let (app, _drain) = start(&config).await;
        let request = v1::JoinSiteRequest { token: token.encode() };
        let mut lines = operator(&config).await.join_site(request).await.unwrap().into_inner();
        let refused = loop {
            match lines.message().await {
                Ok(line) => assert!(line.unwrap().result.is_none()),
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "no_gateway"));
        for gateway in gateways {
            assert!(refused.message().contains(&gateway), "{refused}");
        }
        let status = operator(&config).await.agent_status(v1::AgentStatusRequest {}).await.unwrap();
        assert_eq!(status.into_inner().state, "not joined");
        app.stop().await;
    });
}

#[test]
fn a_port_in_use_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    config.admin = Some(taken.local_addr().unwrap());
    run(async {
        match App::start(config.clone(), Arc::new(RealNet), Drain::new()).await {
            Err(error @ StartError::Admin { .. }) => {
                let port = taken.local_addr().unwrap().to_string();
                assert!(error.to_string().contains(&port), "{error}");
            }
            _ => panic!("it started"),
        }
    });
}

#[test]
fn garbage_on_a_socket_hurts_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    run(async {
        let (app, _drain) = start(&config).await;
        for path in [config.agent_socket(), config.identity_socket()] {
            for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 4096]] {
                let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
                // It may be closed before all is written or read.
                let _ = stream.write_all(garbage).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        }
        operator(&config).await.agent_status(v1::AgentStatusRequest {}).await.unwrap();
        app.stop().await;
    });
}

#[test]
fn a_member_describes_itself_without_its_site() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let bits = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(bits(&config.agent_socket()), 0o600);
        assert_eq!(bits(&config.identity_socket()), 0o666);
        let mut identity = identity(&config).await;
        let seen = identity.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
        assert_eq!(seen.spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
        assert_eq!((seen.node.as_str(), seen.gateway.as_str()), (NODE, ""));
        assert_eq!(seen.advertise, "10.0.0.5:4143");
        assert_eq!(seen.locality.unwrap().region, "eu");
        assert_eq!((seen.gateways.len(), seen.bundles.len()), (1, 1));
        let request = v1::IssueRequest { csr: new_key_and_csr().unwrap().1, ..Default::default() };
        let refused = identity.issue(request).await.unwrap_err();
        assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, "not_connected"));
        assert!(refused.message().contains("west"), "{refused}");

        let mut operator = operator(&config).await;
        let refused = operator.leave_site(v1::LeaveSiteRequest { force: false }).await.unwrap_err();
        assert!(refused.message().contains("meshctl leave --force"), "{refused}");
        assert!(config.state.join("identity.json").exists());
        operator.leave_site(v1::LeaveSiteRequest { force: true }).await.unwrap();
        assert!(!config.state.join("identity.json").exists());
        assert!(identity.describe(v1::DescribeRequest {}).await.is_err());
        app.stop().await;
    });
}

#[test]
fn a_copy_of_the_disk_in_another_machine_is_not_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    std::fs::write(&config.machine_id_file, "ffffffffffffffffffffffffffffffff\n").unwrap();
    run(async {
        let (app, _drain) = start(&config).await;
        let mut operator = operator(&config).await;
        let status = operator.agent_status(v1::AgentStatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.state, "not joined");
        assert!(status.problem.contains("another machine"), "{}", status.problem);
        let refused = identity(&config).await.describe(v1::DescribeRequest {}).await.unwrap_err();
        assert_eq!(reason(&refused), "identity_unusable");
        let refused = operator.leave_site(v1::LeaveSiteRequest { force: false }).await.unwrap_err();
        assert_eq!(reason(&refused), "not_told");
        assert!(config.state.join("identity.json").exists(), "the original may need it back");
        app.stop().await;
    });
}

#[test]
fn two_agents_do_not_share_a_machine() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path());
    run(async {
        let (app, _drain) = start(&config).await;
        let mut other = config.clone();
        other.state = dir.path().join("other");
        let started = App::start(other, Arc::new(RealNet), Drain::new()).await;
        assert!(matches!(started, Err(StartError::Socket(_))));
        operator(&config).await.agent_status(v1::AgentStatusRequest {}).await.unwrap();
        app.stop().await;
    });
}

#[test]
fn metrics_tell_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    std::fs::write(config.services.join("bad.yaml"), "service: 1\n").unwrap();
    let text = "service: orders\nnamespace: shop\nport: 1\n";
    std::fs::write(config.services.join("orders.yaml"), text).unwrap();
    run(async {
        let (app, _drain) = start(&config).await;
        app.agent.services.subscribe().wait_for(|services| services.settled()).await.unwrap();
        let registry = vm_agent::metrics::registry(app.agent.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "isthmus_agent_joined 1",
            "isthmus_agent_connected 0",
            "isthmus_agent_service_files_broken 1",
            "isthmus_agent_service_registered{instance=\"orders\",service=\"orders.shop\"} 0",
            "isthmus_agent_service_healthy{instance=\"orders\",service=\"orders.shop\"} 0",
            "isthmus_agent_certificate_remaining_seconds 8",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        app.stop().await;
    });
}

/// The next thing asked that is not a heartbeat.
async fn next(seen: &mut mpsc::Receiver<Asked>) -> Asked {
    loop {
        match seen.recv().await.expect("the session goes on") {
            Asked::Heartbeat(_) => {}
            asked => return asked,
        }
    }
}

#[test]
fn a_session_tells_what_runs_and_says_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    run(async {
        let (mut seen, channel) = serve_registry(dir.path()).await;
        let app_port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = app_port.local_addr().unwrap().port();
        let file = config.services.join("orders.yaml");
        let text = format!("service: orders\nnamespace: shop\nport: {port}\n");
        std::fs::write(&file, text).unwrap();
        let (app, _drain) = start(&config).await;
        app.agent.state.save_registered(&BTreeSet::from(["gone".to_owned()])).unwrap();
        let (agent, drain) = (app.agent.clone(), Drain::new());
        let ended = tokio::spawn({
            let (agent, drain) = (agent.clone(), drain.clone());
            async move { session::run(&agent, channel, &drain).await }
        });

        let Asked::Hello(hello) = next(&mut seen).await else { panic!("hello comes first") };
        assert_eq!((hello.machine_id.as_str(), hello.boot_id.is_empty()), (MACHINE, false));
        let Asked::Deregister(gone) = next(&mut seen).await else { panic!("what is gone") };
        assert_eq!(gone.instance, "gone");
        let Asked::Register(register) = next(&mut seen).await else { panic!("what is there") };
        assert_eq!(
            (register.service.as_str(), register.health()),
            ("orders.shop", v1::Health::Healthy)
        );
        assert_eq!(register.address, "10.0.0.5:4143");
        assert_eq!(register.target_ports, [u32::from(port)]);
        assert!(agent.state.registered().contains("orders"));

        std::fs::remove_file(&file).unwrap();
        let Asked::Deregister(removed) = next(&mut seen).await else { panic!("removed at once") };
        assert_eq!(removed.instance, "orders");
        assert!(matches!(seen.recv().await, Some(Asked::Heartbeat(_))), "it goes on");

        agent.farewell.set(Farewell::Leaving(Duration::from_secs(5))).unwrap();
        drain.start();
        let Asked::Leaving(leaving) = next(&mut seen).await else { panic!("goodbye") };
        assert_eq!(leaving.within_ms, 5000);
        assert_eq!(ended.await.unwrap(), "goodbye");
        assert!(seen.try_recv().is_err(), "nothing comes after goodbye");
        assert!(agent.state.registered().is_empty());
        app.stop().await;
    });
}

#[test]
fn roots_that_are_told_are_on_disk_before_they_are_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    let serial = joined(&config, &ca).svid().unwrap().serial();
    let (own, next_root) = (v1::Bundle::from(&ca.bundle()), Ca::new("west.example").bundle());
    let roots = [own.roots.clone(), v1::Bundle::from(&next_root).roots].concat();
    let bundle = |sequence, roots: &[Vec<u8>]| v1::SiteTrust {
        bundles: vec![v1::Bundle { sequence, roots: roots.to_vec(), ..own.clone() }],
        gateways: Vec::new(),
    };
    // The last two come too late, and make no sense.
    let told = vec![bundle(5, &roots), bundle(3, &own.roots), bundle(6, &[])];
    run(async {
        let (mut seen, channel) = serve_registry_that_tells(dir.path(), told).await;
        let (app, _drain) = start(&config).await;
        let (agent, drain) = (app.agent.clone(), Drain::new());
        tokio::spawn(async move { session::run(&agent, channel, &drain).await });
        let Asked::Hello(hello) = next(&mut seen).await else { panic!("hello comes first") };
        assert!(hello.follows_bundles);
        for _ in 0..2 {
            let Asked::Holds(holds) = next(&mut seen).await else { panic!("an acknowledgement") };
            assert_eq!((holds.bundle_sequence, holds.serial), (5, serial.clone()));
        }
        assert!(matches!(seen.recv().await, Some(Asked::Heartbeat(_))), "and none of the last");
        app.stop().await;
    });
    let kept = StateDir::open(&config.state).unwrap().load().unwrap().unwrap();
    assert_eq!((kept.joined.bundles[0].sequence, &kept.joined.bundles[0].roots), (5, &roots));
    assert_eq!(kept.joined.gateways.len(), 1, "none were told");
}

#[test]
fn a_session_of_a_machine_that_stops_takes_everything_back() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    for instance in ["a", "b"] {
        let text = format!("service: {instance}\nnamespace: shop\nport: 1\n");
        std::fs::write(config.services.join(format!("{instance}.yaml")), text).unwrap();
    }
    run(async {
        let (mut seen, channel) = serve_registry(dir.path()).await;
        let (app, _drain) = start(&config).await;
        let (agent, drain) = (app.agent.clone(), Drain::new());
        let ended = tokio::spawn({
            let (agent, drain) = (agent.clone(), drain.clone());
            async move { session::run(&agent, channel, &drain).await }
        });
        let Asked::Hello(_) = next(&mut seen).await else { panic!("hello comes first") };
        for _ in 0..2 {
            let Asked::Register(_) = next(&mut seen).await else { panic!("what is there") };
        }
        agent.farewell.set(Farewell::Deregister).unwrap();
        drain.start();
        let mut gone = BTreeSet::new();
        for _ in 0..2 {
            let Asked::Deregister(one) = next(&mut seen).await else { panic!("taken back") };
            gone.insert(one.instance);
        }
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(ended.await.unwrap(), "goodbye");
        assert!(seen.try_recv().is_err(), "and not: back in 5 s");
        assert!(agent.state.registered().is_empty());
        app.stop().await;
    });
}

#[test]
fn the_node_certificate_is_renewed_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    let old = {
        let state = StateDir::open(&config.state).unwrap();
        let old = node(&ca, MACHINE, clock::unix_seconds() - 7200);
        state.save(&old).unwrap();
        old
    };
    run(async {
        let (app, _drain) = start(&config).await;
        let (identities, channel) = serve_identities(dir.path(), ca).await;
        *identities.refusal.lock().await = Some("node x is duplicated; `meshctl node resolve x`");
        let member = app.agent.member().unwrap();
        let renewing = tokio::spawn({
            let (agent, member, channel) = (app.agent.clone(), member.clone(), channel.clone());
            async move { renew::run(&agent, &member, channel).await }
        });
        let mut trouble = member.trouble.subscribe();
        trouble.wait_for(|why| why.contains("meshctl node resolve")).await.unwrap();
        let kept = std::fs::read(config.state.join("identity.json")).unwrap();
        assert!(String::from_utf8_lossy(&kept).contains(MACHINE));
        assert_eq!(member.node().joined.chain, old.joined.chain, "a refusal changes nothing");

        *identities.refusal.lock().await = None;
        trouble.wait_for(|why| why.is_empty()).await.unwrap();
        let new = member.node();
        assert_ne!(new.joined.chain, old.joined.chain);
        assert_ne!(new.key.secret_der(), old.key.secret_der());
        assert_eq!(new.gateways[0].id.as_str(), "west-2");
        assert_eq!(member.credentials.svid().unwrap().chain[0].to_vec(), new.joined.chain[0]);
        assert_ne!(std::fs::read(config.state.join("identity.json")).unwrap(), kept);
        let renewals = identities.renewals.load(Ordering::Relaxed);
        assert_eq!(renewals, 2, "one refused, one done, none due");
        renewing.abort();
        app.stop().await;
    });
    let state = StateDir::open(&config.state).unwrap();
    assert_ne!(state.load().unwrap().unwrap().joined.chain, old.joined.chain);
}

#[test]
fn workloads_get_their_certificates_through_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let (config, ca) = (config(dir.path()), Ca::new("west.example"));
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let (_identities, channel) = serve_identities(dir.path(), ca).await;
        let connected = Uplink { channel: Some(channel), ..Uplink::default() };
        app.agent.uplink.send_replace(connected.clone());
        let (key, csr) = new_key_and_csr().unwrap();
        let issued =
            identity(&config).await.issue(v1::IssueRequest { csr, ..Default::default() }).await;
        let issued = issued.unwrap().into_inner();
        let chain = issued.chain.into_iter().map(Into::into).collect();
        let svid = mesh_tunnel::Svid::from_der(chain, key).unwrap();
        assert_eq!(svid.id.as_str(), "spiffe://west.example/ns/shop/sa/orders");
        let gateways = app.agent.member().unwrap().node().gateways.clone();
        assert_eq!(gateways[0].id.as_str(), "west-2", "what came with it is kept");
        app.agent.uplink.send_replace(connected);
        operator(&config).await.leave_site(v1::LeaveSiteRequest { force: false }).await.unwrap();
        assert!(!config.state.join("identity.json").exists());
        app.stop().await;
    });
}
