//! A federation that is killed at any moment has lost nothing that it said it
//! had. A child process (this very test binary) commits in a loop and prints
//! what was acknowledged; the parent kills it with SIGKILL and looks.
//!
//! `ISTHMUS_CRASH_POINTS` sets how many times.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use federation::{
    authority::{Authority, LogStore},
    clock::Clock,
    config::{ConfigFile, GatewayFile},
    init::init_site,
    refusal::Never,
};
use mesh_api::v1::{
    CreateTokenRequest, ListTokensRequest, SiteCreated, TokenCreated, TokenPurpose,
    admin_client::AdminClient, authority_record::Event,
};

const CHILD: &str = "ISTHMUS_CRASH_CHILD";

fn site() -> SiteCreated {
    SiteCreated {
        name: "west".into(),
        trust_domain: "west.example".into(),
        root: vec![1],
        ..Default::default()
    }
}

fn token(id: String) -> Event {
    Event::TokenCreated(TokenCreated {
        id,
        purpose: TokenPurpose::Node.into(),
        secret_sha256: vec![0; 32],
        uses: 1,
        expires_unix_s: i64::MAX / 2,
        ..Default::default()
    })
}

/// Commits from several tasks at once until it is killed.
#[test]
#[ignore = "the child of `nothing_acknowledged_is_lost`"]
fn child() {
    let Ok(directory) = env::var(CHILD) else { return };
    let runtime = mesh_runtime::process::current_thread().unwrap();
    runtime.block_on(async {
        let store = LogStore::open(Path::new(&directory)).unwrap();
        let authority = Authority::open(store, Clock::system()).unwrap();
        let first = authority.state().tokens.len();
        let workers = (0..8).map(|worker| {
            let authority = authority.clone();
            async move {
                for i in 0.. {
                    let id = format!("{first}-{worker}-{i}");
                    let decide = |_: &_| Ok::<_, Never>((vec![token(id.clone())], ()));
                    authority.commit("test", decide).await.unwrap();
                    // One write per line: a line is whole or not there.
                    let line = format!("ack {id}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            }
        });
        futures_util::future::join_all(workers).await;
    });
}

#[test]
fn nothing_acknowledged_is_lost() {
    let points = env::var("ISTHMUS_CRASH_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let directory = tempfile::tempdir().unwrap();
    let store = LogStore::create(directory.path()).unwrap();
    Authority::create(&store, &Clock::system(), site()).unwrap();
    drop(store);
    let mut acknowledged: Vec<String> = Vec::new();
    for point in 0..points {
        let before = acknowledged.len();
        run_and_kill(directory.path(), &mut acknowledged);
        let store =
            LogStore::open(directory.path()).unwrap_or_else(|e| panic!("kill {point}: {e}"));
        let authority = Authority::open(store, Clock::system()).unwrap();
        let state = authority.state();
        let lost: Vec<_> =
            acknowledged.iter().filter(|id| !state.tokens.contains_key(*id)).collect();
        assert!(lost.is_empty(), "kill {point}: {lost:?} were acknowledged");
        assert!(acknowledged.len() > before, "kill {point}: nothing was committed");
    }
    println!("{points} kills, {} acknowledged commits, none lost", acknowledged.len());
}

/// The whole program: tokens are made over the operators' socket while it is
/// killed and started again on the same state.
#[test]
fn a_killed_federation_knows_every_token_it_has_handed_out() {
    let points: usize =
        env::var("ISTHMUS_CRASH_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let directory = tempfile::tempdir().unwrap();
    let config = make_site(directory.path());
    let socket = directory.path().join("run/federation.sock");
    let runtime = mesh_runtime::process::current_thread().unwrap();
    let mut handed_out: Vec<String> = Vec::new();
    for point in 0..=points {
        let mut child = Command::new(env!("CARGO_BIN_EXE_federation"))
            .arg("--config")
            .arg(&config)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        runtime.block_on(async {
            let mut admin = connect(&socket).await;
            let listed = admin.list_tokens(ListTokensRequest {}).await.unwrap().into_inner().tokens;
            let lost = handed_out.iter().filter(|id| listed.iter().all(|token| token.id != **id));
            assert_eq!(lost.count(), 0, "after kill {point}");
            let kill_after = Duration::from_micros(rand::random_range(1_000..100_000));
            let make = async {
                loop {
                    let Ok(made) = admin.create_token(asked()).await else { return };
                    handed_out.push(made.into_inner().id);
                }
            };
            let _ = tokio::time::timeout(kill_after, make).await;
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(handed_out.len() > points, "something was handed out");
}

fn make_site(directory: &Path) -> PathBuf {
    let config = directory.join("federation.yaml");
    let written = ConfigFile {
        state: directory.join("state"),
        run: directory.join("run"),
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        gateways: vec![GatewayFile {
            id: "gw1".into(),
            quic: vec![],
            tls: vec!["127.0.0.1:1".into()],
        }],
        ..ConfigFile::new("west".into(), "west.example".into())
    };
    init_site(&written, Some(&config), None, &Clock::system()).unwrap();
    config
}

fn asked() -> CreateTokenRequest {
    CreateTokenRequest { namespace: "shop".into(), account: "orders".into(), ..Default::default() }
}

/// Waits until the program listens; the socket file of a killed one may still
/// be there.
async fn connect(socket: &Path) -> AdminClient<tonic::transport::Channel> {
    let started = async {
        loop {
            match mesh_tunnel::unix::channel(socket).await {
                Ok(channel) => return AdminClient::new(channel),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), started).await.expect("it starts")
}

/// Lets the child commit something, then kills it after a random while.
fn run_and_kill(directory: &Path, acknowledged: &mut Vec<String>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    let ack = |line: String| line.split_once("ack ").map(|(_, id)| id.to_owned());
    let first = lines.find_map(ack).expect("the child commits");
    acknowledged.push(first);
    std::thread::sleep(Duration::from_micros(rand::random_range(0..60_000)));
    child.kill().unwrap();
    // What it had written before it died is still in the pipe.
    acknowledged.extend(lines.filter_map(ack));
    child.wait().unwrap();
}
