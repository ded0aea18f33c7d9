//! The binary itself: configuration, several workers, signals.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use http::Response;
use rustix::process::{Pid, Signal, kill_process};
use support::{
    DOMAIN, SITE, any,
    apps::{App, fetch, full, get, http1, read},
    pki::Authority,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, Command},
    sync::Notify,
};

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-proxy"));
    command.arg("--config").arg(config).env("ISTHMUS_LOG", "info").kill_on_drop(true);
    command
}

async fn fails(config: &Path) -> Output {
    let output = command(config).output();
    tokio::time::timeout(Duration::from_secs(20), output).await.expect("it goes on").unwrap()
}

/// Certificate, key and roots of an account, as PEM files.
fn write_identity(dir: &Path, authority: &Authority, account: &str) {
    let svid = authority.workload(account);
    let pem = |der: &[u8]| rcgen_pem("CERTIFICATE", der);
    let chain: String = svid.chain.iter().map(|certificate| pem(certificate)).collect();
    std::fs::write(dir.join(format!("{account}.pem")), chain).unwrap();
    std::fs::write(dir.join("root.pem"), pem(&authority.root())).unwrap();
    let key = dir.join(format!("{account}.key"));
    std::fs::write(&key, rcgen_pem("PRIVATE KEY", svid.key.secret_der())).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
}

/// RFC 7468.
fn rcgen_pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * (3 - three.len()));
            for place in 0..4 {
                let index = (bits >> (18 - 6 * place)) as usize & 63;
                text.push(if place <= three.len() { ALPHABET[index].into() } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

fn write_config(dir: &Path, account: &str, rest: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{account}.yaml"));
    let text = format!(
        "identity:\n  files:\n    certificate: {account}.pem\n    key: {account}.key\n    \
         bundles: {{ {DOMAIN}: root.pem }}\nsnapshot: {{ file: site.yaml }}\nworkers: 2\n\
         admin: 127.0.0.1:0\naccess_log: ./{account}.log\ndrain_timeout: 20s\n{rest}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn write_site(dir: &Path, proxy: Option<SocketAddr>, target: SocketAddr) {
    let proxy = proxy.map(|addr| format!("proxy: {addr}\n        ")).unwrap_or_default();
    let text = format!(
        "site: {SITE}\ntrust_domain: {DOMAIN}\nservices:\n  - name: orders.shop\n    ports: \
         [{{ name: http, port: 80, protocol: http }}]\n    endpoints:\n      - port: http\n        \
         identity: spiffe://{DOMAIN}/ns/shop/sa/orders\n        {proxy}\
         target: {target}\n"
    );
    std::fs::write(dir.join("site.yaml"), text).unwrap();
}

/// A running process and where it listens.
struct Running {
    child: Child,
    listeners: HashMap<String, SocketAddr>,
    log: tokio::task::JoinHandle<String>,
}

impl Running {
    async fn start(config: &Path) -> Self {
        let mut child = command(config).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut listeners = HashMap::new();
        let started = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let field = |name: &str| {
                    let found = line.split_once(&format!("{name}="))?.1;
                    Some(found.split(' ').next().unwrap_or(found).trim_matches('"').to_owned())
                };
                if let (Some(name), Some(addr)) = (field("listener"), field("addr")) {
                    listeners.insert(name, addr.parse().unwrap());
                }
                if line.contains("started") {
                    return;
                }
            }
            panic!("it ended before it had started");
        };
        tokio::time::timeout(Duration::from_secs(20), started).await.expect("it does not start");
        let log = tokio::spawn(rest_of(lines.into_inner()));
        Self { child, listeners, log }
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    async fn ended(mut self) -> String {
        let status = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        let log = self.log.await.unwrap();
        assert!(status.expect("it goes on").unwrap().success(), "{log}");
        log
    }
}

async fn rest_of(mut stderr: BufReader<ChildStderr>) -> String {
    let mut text = String::new();
    stderr.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_78_and_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.yaml");
    std::fs::write(&path, "role: node\nhttp_listner: 127.0.0.1:0\n").unwrap();
    let output = fails(&path).await;
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("proxy.yaml:2:1"), "{text}");
    assert!(text.contains("did you mean `http_listener`"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_used_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let authority = Authority::new(DOMAIN);
    write_identity(dir, &authority, "orders");
    write_site(dir, None, any());
    let taken = std::net::TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let _holder = std::net::TcpListener::bind(taken).unwrap();
    let cases: [(&str, Box<dyn Fn()>, i32, &str); 3] = [
        ("http_listener: off\n", Box::new(|| ()), 78, "target_port"),
        (
            "http_listener: off\n",
            Box::new(|| {
                write_site(dir, None, taken);
                std::fs::set_permissions(dir.join("orders.key"), PermissionsExt::from_mode(0o644))
                    .unwrap();
            }),
            78,
            "chmod 600",
        ),
        (
            &format!("http_listener: {taken}\n"),
            Box::new(|| write_identity(dir, &authority, "orders")),
            1,
            "stop what listens there",
        ),
    ];
    for (rest, change, code, wanted) in cases {
        change();
        let output = fails(&write_config(dir, "orders", rest)).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(wanted), "{text}");
        assert_eq!(output.status.code(), Some(code), "{text}");
    }
}

#[tokio::test]
async fn processes_serve_with_all_workers_and_drain_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, wait) = (asked.clone(), go.clone());
    let app = App::start(move |request| {
        let (seen, wait) = (seen.clone(), wait.clone());
        async move {
            if request.uri().path() == "/slow" {
                seen.notify_one();
                wait.notified().await;
            }
            Response::new(full("hello"))
        }
    })
    .await;
    let authority = Authority::new(DOMAIN);
    write_identity(dir, &authority, "orders");
    write_identity(dir, &authority, "checkout");
    write_site(dir, None, app.addr);
    let rest = "http_listener: off\ninbound: 127.0.0.1:0\n";
    let orders = Running::start(&write_config(dir, "orders", rest)).await;
    write_site(dir, Some(orders.listeners["inbound"]), app.addr);
    let rest = "http_listener: 127.0.0.1:0\n";
    let checkout = Running::start(&write_config(dir, "checkout", rest)).await;
    let (http, admin) = (checkout.listeners["http"], checkout.listeners["admin"]);
    // Connections are spread over the workers by the kernel.
    for _ in 0..20 {
        let (head, body) = fetch(http, "http://orders.shop/").await;
        assert_eq!((head.status.as_u16(), &*body), (200, &b"hello"[..]));
    }
    let (head, _) = fetch(admin, "/ready").await;
    assert_eq!(head.status, 200);
    let (_, metrics) = fetch(admin, "/metrics").await;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("status_class=\"2xx\",reason=\"\"} 20"), "{metrics}");
    // Each worker has sessions of its own.
    let sessions = "isthmus_proxy_inner_sessions{direction=\"outbound\"} 2\n";
    assert!(metrics.contains(sessions), "{metrics}");

    let mut client = http1(http).await;
    let slow =
        tokio::spawn(async move { client.send_request(get("http://orders.shop/slow")).await });
    asked.notified().await;
    checkout.terminate();
    while fetch(admin, "/ready").await.0.status == 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    orders.terminate();
    go.notify_one();
    assert_eq!(read(slow.await.unwrap().unwrap()).await, "hello");
    for (running, account) in [(checkout, "checkout"), (orders, "orders")] {
        let log = running.ended().await;
        assert!(log.contains("stopped cut=0"), "{log}");
        let access = std::fs::read_to_string(dir.join(format!("{account}.log"))).unwrap();
        assert_eq!(access.lines().count(), 21, "{access}");
        let lines = access.lines().map(serde_json::from_str::<serde_json::Value>);
        assert!(lines.into_iter().all(|line| line.unwrap()["status"] == 200));
    }
}
