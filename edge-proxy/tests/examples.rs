//! The files of examples/static as they stand, with ports and certificates
//! from flags and environment, so that runs do not meet.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use support::{
    any,
    apps::{fetch, full, http2},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

/// How long processes may take to start, and requests to find a way.
const PATIENCE: Duration = Duration::from_secs(30);

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/static").canonicalize().unwrap()
}

/// A process of an example; it ends with this.
struct Running {
    _child: Child,
    listeners: HashMap<String, SocketAddr>,
}

impl Running {
    /// `edge-proxy --config <example>/<file>` with more flags and variables.
    async fn proxy(file: &str, flags: &[String], env: &[(&str, String)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-proxy"));
        command.arg("--config").arg(examples().join(file)).args(flags);
        command.args(["--admin", "127.0.0.1:0", "--access-log", "off"]).env("ISTHMUS_LOG", "info");
        command.envs(env.iter().map(|(name, value)| (name, value)));
        let mut child = command.kill_on_drop(true).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut listeners, mut services) = (HashMap::new(), 0);
        let mut seen = String::new();
        let started = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let field = |name: &str| {
                    let found = line.split_once(&format!("{name}="))?.1;
                    Some(found.split(' ').next().unwrap_or(found).trim_matches('"').to_owned())
                };
                if let (Some(mut name), Some(addr)) = (field("listener"), field("addr")) {
                    if name == "service" {
                        name = format!("service {services}");
                        services += 1;
                    }
                    listeners.insert(name, addr.parse().unwrap());
                }
                if line.contains("started") {
                    return true;
                }
                seen += &(line + "\n");
            }
            false
        };
        assert!(tokio::time::timeout(PATIENCE, started).await.unwrap_or(false), "{file}: {seen}");
        tokio::spawn(drained(lines.into_inner()));
        let running = Self { _child: child, listeners };
        running.is_ready().await;
        running
    }

    async fn is_ready(&self) {
        let ready = async {
            while fetch(self.listeners["admin"], "/ready").await.0.status != 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("it does not get ready");
    }
}

async fn drained(mut stream: impl AsyncRead + Unpin) {
    let _ended = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// The applications of all examples.
struct Apps {
    _child: Child,
    http: SocketAddr,
    grpc: SocketAddr,
    tcp: SocketAddr,
}

impl Apps {
    async fn start() -> Self {
        let mut command = Command::new("python3");
        command.arg(examples().join("apps.py")).args(["0", "0", "0"]).kill_on_drop(true);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("python3 is needed");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        let ports = line.split(' ').skip(1).map(|port| port.parse().unwrap());
        let addrs: Vec<SocketAddr> = ports.map(|port: u16| ([127, 0, 0, 1], port).into()).collect();
        Self { _child: child, http: addrs[0], grpc: addrs[1], tcp: addrs[2] }
    }
}

/// What make-certs.sh makes for `workloads`.
fn certificates(workloads: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(examples().join("make-certs.sh"));
    let made = command.arg(dir.path()).args(workloads).output().unwrap();
    assert!(made.status.success(), "openssl 3 is needed: {made:?}");
    dir
}

/// Flags that name the certificates of `name` in `dir`.
fn identity(dir: &Path, name: &str, domains: &[&str]) -> Vec<String> {
    let file = |name: String| dir.join(name).display().to_string();
    let mut flags = vec![
        format!("--certificate={}", file(format!("{name}.pem"))),
        format!("--key={}", file(format!("{name}.key"))),
    ];
    let roots =
        domains.iter().map(|one| format!("--bundle={one}={}", file(format!("{one}.root.pem"))));
    flags.extend(roots);
    flags
}

fn flags(flags: &[&str]) -> Vec<String> {
    flags.iter().map(|flag| (*flag).to_owned()).collect()
}

fn upstreams(service: &str, apps: &Apps) -> String {
    let Apps { http, grpc, tcp, .. } = apps;
    format!("{service}:http={http},{service}:grpc={grpc},{service}:redis={tcp}")
}

/// Status and body; asks again while there is no way yet.
async fn get(proxy: SocketAddr, uri: &str) -> (u16, String) {
    let answered = async {
        loop {
            let (head, body) = fetch(proxy, uri).await;
            if head.status != 503 {
                return (head.status.as_u16(), String::from_utf8(body.to_vec()).unwrap());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("no way is found")
}

/// One message there and back, and the status after it.
async fn grpc(listener: SocketAddr) {
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    let request = Request::post("http://orders.shop:81/echo.Echo/Say")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(full(message.clone()))
        .unwrap();
    let response = http2(listener).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200, "{response:?}");
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().expect("trailers")["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), message);
}

async fn tcp(listener: SocketAddr) {
    let mut stream = TcpStream::connect(listener).await.unwrap();
    stream.write_all(b"ping\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "echo: ping\n");
}

/// All three protocols, by a proxy that runs `checkout.yaml`.
async fn calls_everything(checkout: &Running) {
    let (status, body) = get(checkout.listeners["http"], "http://orders.shop/hello").await;
    assert_eq!(status, 200, "{body}");
    let caller = "spiffe://west.example/ns/shop/sa/checkout";
    assert_eq!(body, format!("hello {caller}, you asked orders.shop for /hello\n"));
    grpc(checkout.listeners["service 0"]).await;
    tcp(checkout.listeners["service 1"]).await;
}

/// Every listener of `checkout.yaml` on a port of its own.
const CHECKOUT: [&str; 3] = [
    "--http-listener=127.0.0.1:0",
    "--listener=orders.shop:grpc=127.0.0.1:0",
    "--listener=orders.shop:redis=127.0.0.1:0",
];

#[tokio::test]
async fn one_hop_needs_no_identity() {
    let apps = Apps::start().await;
    let upstream = format!("--upstream=hello.demo:http={}", apps.http);
    let listen =
        ["--http-listener=127.0.0.1:0", "--listener=hello.demo:http=127.0.0.1:0", &upstream];
    let proxy = Running::proxy("one-hop/proxy.yaml", &flags(&listen), &[]).await;
    let (http, own) = (proxy.listeners["http"], proxy.listeners["service 0"]);
    let (status, body) = get(http, "http://hello.demo/v2/hello").await;
    assert_eq!(
        (status, &*body),
        (200, "hello nobody, you asked hello.demo for /new/hello\n"),
        "the rule of rules.yaml"
    );
    assert_eq!(get(own, "http://hello.demo/hello").await.0, 200);
    let request =
        Request::get("http://hello.demo/hello").header("x-fail", "yes").body(full("")).unwrap();
    let refused = support::apps::http1(own).await.send_request(request).await.unwrap();
    assert_eq!(refused.status(), 418, "the policy of rules.yaml");
}

#[tokio::test]
async fn two_hops_carry_http_grpc_and_tcp() {
    let apps = Apps::start().await;
    let certs = certificates(&["west.example/checkout", "west.example/orders"]);
    let mut orders = identity(certs.path(), "orders", &["west.example"]);
    orders.extend(flags(&["--inbound=127.0.0.1:0"]));
    // By the environment here, by flags below.
    let env = [("ISTHMUS_PROXY_UPSTREAM", upstreams("orders.shop", &apps))];
    let orders = Running::proxy("two-hop/orders.yaml", &orders, &env).await;
    let mut checkout = identity(certs.path(), "checkout", &["west.example"]);
    checkout.extend(flags(&CHECKOUT));
    for port in ["http", "grpc", "redis"] {
        let key = format!("services[orders.shop].endpoints[{port}].proxy");
        checkout.push(format!("--set-site={key}={}", orders.listeners["inbound"]));
    }
    let checkout = Running::proxy("two-hop/checkout.yaml", &checkout, &[]).await;
    calls_everything(&checkout).await;
}

#[tokio::test]
async fn gateways_carry_them_over_quic_and_over_tls() {
    let west_and_east = ["west.example", "east.example"];
    let certs = certificates(&[
        "west.example/checkout",
        "west.example/gateway",
        "east.example/orders",
        "east.example/gateway",
    ]);
    for transport in ["quic", "tls"] {
        let apps = Apps::start().await;
        let flagged = |name: &str, more: &[&str]| {
            [identity(certs.path(), name, &west_and_east), flags(more)].concat()
        };
        let env = [("ISTHMUS_PROXY_UPSTREAM", upstreams("orders.shop", &apps))];
        let inbound = ["--inbound=127.0.0.1:0"];
        let orders =
            Running::proxy("gateways/orders.yaml", &flagged("orders", &inbound), &env).await;
        // Both sites must know both doors before either gateway starts.
        let (west, east) = (door(), door());
        let mut site = vec![format!("links[0].transport={transport}")];
        for (index, addr) in [(0, west), (1, east)] {
            for kind in ["quic", "tls"] {
                site.push(format!("gateways[{index}].{kind}=[\"{addr}\"]"));
            }
        }
        let of_west = [("ISTHMUS_PROXY_SET_SITE", site.join(";"))];
        // The own gateway is the first in either file.
        site.iter_mut().for_each(|one| {
            *one = match one.split_at("gateways[".len()) {
                ("gateways[", rest) if rest.starts_with('0') => format!("gateways[1{}", &rest[1..]),
                ("gateways[", rest) => format!("gateways[0{}", &rest[1..]),
                _ => one.clone(),
            };
        });
        for port in ["http", "grpc", "redis"] {
            let addr = orders.listeners["inbound"];
            site.push(format!("services[0].endpoints[{port}].proxy={addr}"));
        }
        let of_east = [
            ("ISTHMUS_PROXY_SET_SITE", site.join(";")),
            ("ISTHMUS_PROXY_UPSTREAM", upstreams("orders.shop", &apps)),
        ];
        let doors = |addr: SocketAddr| {
            [format!("--set=gateway.quic={addr}"), format!("--set=gateway.tls={addr}")]
        };
        let gateway = |site: &str, addr| {
            [flagged(&format!("{site}-gateway"), &[]), doors(addr).to_vec()].concat()
        };
        let _east_gateway =
            Running::proxy("gateways/east-gateway.yaml", &gateway("east", east), &of_east).await;
        let west_gateway =
            Running::proxy("gateways/west-gateway.yaml", &gateway("west", west), &of_west).await;
        let checkout = flagged("checkout", &CHECKOUT);
        let checkout = Running::proxy("gateways/checkout.yaml", &checkout, &of_west).await;
        calls_everything(&checkout).await;
        let (_, metrics) = fetch(west_gateway.listeners["admin"], "/metrics").await;
        let metrics = String::from_utf8(metrics.to_vec()).unwrap();
        let link = format!("neighbour=\"link\",site=\"east\",transport=\"{transport}\"}} 1");
        assert!(metrics.contains(&link), "{metrics}");
    }
}

/// A port that is free over UDP and TCP just now.
fn door() -> SocketAddr {
    loop {
        let tcp = std::net::TcpListener::bind(any()).unwrap();
        let addr = tcp.local_addr().unwrap();
        if std::net::UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

#[tokio::test]
async fn a_proxy_without_identity_calls_nobody_in_the_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("proxy.yaml");
    let site = examples().join("two-hop/site.yaml");
    let text = format!("snapshot: {{ file: {} }}\nhttp_listener: 127.0.0.1:0\n", site.display());
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_edge-proxy"));
    command.arg("--config").arg(&config).args(["--admin", "off"]).kill_on_drop(true);
    let output =
        tokio::time::timeout(PATIENCE, command.output()).await.expect("it goes on").unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{told}");
    for wanted in ["site.yaml", "orders-shop-0", "--certificate", "plaintext: true"] {
        assert!(told.contains(wanted), "{told}");
    }
}
