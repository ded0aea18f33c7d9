//! Who may call, by route and address, audited or not, and for how long.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_api::v1;
use mesh_manifest::{compile, manifest::read as read_manifests};
use support::{
    Pair, Proxy, Targets, any,
    apps::{AnyBody, App, fetch, full, get, http1, http2, read},
    inbound_config, listener, orders, orders_endpoints,
    pki::Authority,
    snapshot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const OPS: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: MeshTLSAuthentication
metadata: { name: ops, namespace: shop }
spec: { identities: [ns/ops/*] }
";

const ADMIN: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: admin, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: orders }]
  rules: [{ matches: [{ path: { value: /admin } }] }]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: admin, namespace: shop }
spec:
  targetRef: { group: gateway.networking.k8s.io, kind: HTTPRoute, name: admin }
  requiredAuthenticationRefs:
    - { group: policy.linkerd.io, kind: MeshTLSAuthentication, name: ops }
---
";

const NETWORK: &str = "
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: old, namespace: shop }
spec:
  targetRef: { kind: Service, name: orders }
  requiredAuthenticationRefs:
    - { group: policy.linkerd.io, kind: NetworkAuthentication, name: near }
---
apiVersion: policy.linkerd.io/v1alpha1
kind: NetworkAuthentication
metadata: { name: near, namespace: shop }
spec: { networks: [{ cidr: CIDR }] }
";

fn server(port: &str, access: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\n\
         metadata: {{ name: {port}, namespace: shop }}\nspec:\n  \
         externalWorkloadSelector: {{ matchLabels: {{ isthmus.io/service: orders }} }}\n  \
         port: {port}\n  accessPolicy: {access}\n---\n"
    )
}

/// `orders.shop` as these documents say.
fn guarded(documents: &str) -> v1::Service {
    let service = orders();
    let ports = service.ports.iter().map(|port| (port.name.clone(), port.number as u16));
    let registry = BTreeMap::from([(service.name.clone(), ports.collect::<Vec<_>>())]);
    let manifests = read_manifests(documents, "t.yaml").unwrap();
    let compiled = compile("orders.shop", &manifests, &registry);
    assert_eq!(compiled.problems, []);
    v1::Service { policy: compiled.policy, ..service }
}

/// Tells the destination alone: it decides.
fn guard(pair: &Pair, targets: Targets, documents: &str) {
    let endpoints = orders_endpoints("one", pair.destination.inbound(), targets);
    let told = snapshot(&pair.authority, vec![guarded(documents)], endpoints);
    pair.destination.tell(&told);
}

async fn hello(_request: Request<Incoming>) -> Response<AnyBody> {
    Response::new(full("hello"))
}

async fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

#[tokio::test]
async fn each_request_is_matched_against_the_routes_of_policies() {
    let app = App::start(hello).await;
    let targets = Targets::all(app.addr);
    let pair = Pair::start(targets).await;
    guard(&pair, targets, &format!("{ADMIN}{OPS}"));
    let mut client = http1(pair.source.http()).await;
    for (path, status) in [("/", 200), ("/admin", 403), ("/x/../admin/y", 403), ("/", 200)] {
        let uri = format!("http://orders.shop{path}");
        let response = client.send_request(get(&uri)).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        if status == 403 {
            assert_eq!(response.headers()["isthmus-error"], "denied_no_rule");
        }
        read(response).await;
        client.ready().await.unwrap();
    }
    // Bytes that nobody looks at could be a request for it.
    let connect = "CONNECT orders.shop:82 HTTP/1.1\r\nHost: orders.shop:82\r\n\r\n";
    let mut bytes = TcpStream::connect(pair.source.http()).await.unwrap();
    bytes.write_all(connect.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    wait(bytes.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn what_an_audited_port_would_refuse_passes_and_is_counted() {
    let app = App::start(hello).await;
    let targets = Targets::all(app.addr);
    let pair = Pair::start(targets).await;
    guard(&pair, targets, &server("http", "audit"));
    for _ in 0..3 {
        assert_eq!(fetch(pair.source.http(), "http://orders.shop/").await.0.status, 200);
    }
    let metrics = pair.destination.metrics();
    let counted = "would_deny_total{direction=\"inbound\",reason=\"denied_no_rule\"} 3";
    assert!(metrics.contains(counted), "{metrics}");
    guard(&pair, targets, &server("http", "deny"));
    assert_eq!(fetch(pair.source.http(), "http://orders.shop/").await.0.status, 403);
}

/// A server that echoes, after a switch if it is asked with a head.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                                   Upgrade: chat\r\n\r\n";
                    let asked = buffer[..n].starts_with(b"GET ");
                    let answer = if asked { &switch[..] } else { &buffer[..n] };
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

async fn echoes(stream: &mut TcpStream) -> bool {
    let mut back = [0; 4];
    let sent = stream.write_all(b"ping").await.is_ok();
    sent && wait(stream.read_exact(&mut back)).await.is_ok() && &back == b"ping"
}

/// A connection of bytes and one that has switched, both open.
async fn long_lived(pair: &Pair) -> [TcpStream; 2] {
    let mut bytes = TcpStream::connect(pair.port("tcp")).await.unwrap();
    assert!(echoes(&mut bytes).await);
    let mut switched = TcpStream::connect(pair.source.http()).await.unwrap();
    let offer = "GET /chat HTTP/1.1\r\nHost: orders.shop\r\nConnection: upgrade\r\n\
                 Upgrade: chat\r\n\r\n";
    switched.write_all(offer.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(wait(switched.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    assert!(echoes(&mut switched).await);
    [bytes, switched]
}

/// The only series of this name with all of these labels.
fn only(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let begins = format!("{name}{{");
    let is_it =
        |line: &&str| line.starts_with(&begins) && labels.iter().all(|label| line.contains(label));
    let found: Vec<_> = metrics.lines().filter(is_it).collect();
    let [line] = found[..] else { panic!("{name} {labels:?}: {found:?} in {metrics}") };
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn what_policies_say_is_counted_under_linkerds_names() {
    let app = App::start(hello).await;
    let targets = Targets { tcp: echo().await, ..Targets::all(app.addr) };
    let pair = Pair::start(targets).await;
    let asks = async |path: &str| {
        let (head, _) = fetch(pair.source.http(), &format!("http://orders.shop{path}")).await;
        head.status.as_u16()
    };
    assert_eq!((asks("/").await, asks("/").await), (200, 200));
    let all = server("http", "audit") + &server("tcp", "cluster-authenticated") + ADMIN + OPS;
    guard(&pair, targets, &all);
    assert_eq!((asks("/admin").await, asks("/").await), (200, 200));
    let mut open = TcpStream::connect(pair.port("tcp")).await.unwrap();
    assert!(echoes(&mut open).await);
    guard(&pair, targets, &(server("http", "deny") + &server("tcp", "deny")));
    for _ in 0..3 {
        assert_eq!(asks("/").await, 403);
    }
    let mut refused = TcpStream::connect(pair.port("tcp")).await.unwrap();
    assert!(!matches!(wait(refused.read(&mut [0])).await, Ok(1..)));

    let metrics = pair.destination.metrics();
    let caller = "client_id=\"spiffe://west.example/ns/shop/sa/checkout\"";
    let (tls, server) = ("tls=\"true\"", "srv_name=\"orders.shop\"");
    let http = |name: &str, by: &str| {
        let name = format!("inbound_http_authz_{name}_total");
        only(&metrics, &name, &[caller, tls, server, "srv_port=\"80\"", by])
    };
    let by = |group: &str, kind: &str, name: &str| {
        format!("authz_group=\"{group}\",authz_kind=\"{kind}\",authz_name=\"{name}\"")
    };
    assert_eq!(http("allow", &by("", "default", "all-authenticated")), 2.0);
    assert_eq!(http("allow", &by("", "default", "audit")), 2.0);
    assert_eq!(http("deny", ""), 3.0);
    let tcp = |name: &str, by: &str| {
        let name = format!("inbound_tcp_authz_{name}_total");
        only(&metrics, &name, &[caller, tls, server, "srv_port=\"82\"", by])
    };
    // One that goes on has been counted.
    assert_eq!(tcp("allow", &by("policy.linkerd.io", "server", "tcp")), 1.0);
    assert_eq!(tcp("deny", ""), 1.0);
}

#[tokio::test]
async fn what_a_changed_policy_still_allows_goes_on_and_the_rest_is_cut() {
    let targets = Targets::all(echo().await);
    let pair = Pair::start(targets).await;
    let mut open = long_lived(&pair).await;
    // Another policy that allows them.
    guard(&pair, targets, &(server("http", "cluster-authenticated") + &server("tcp", "audit")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    for stream in &mut open {
        assert!(echoes(stream).await, "it is still allowed");
    }
    guard(&pair, targets, &(server("http", "deny") + &server("tcp", "deny")));
    for stream in &mut open {
        let mut byte = [0];
        let ended = wait(stream.read(&mut byte)).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    let counted = || pair.destination.metrics().matches("reason=\"denied_no_rule\"} 1").count();
    wait(async {
        while counted() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_in_flight_is_cut_with_the_policy_that_forbids_it() {
    let app = App::start(|request: Request<Incoming>| async move {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Response::new(full("hello"))
    })
    .await;
    let targets = Targets::all(app.addr);
    for port in ["http", "grpc"] {
        let pair = Pair::start(targets).await;
        let number = if port == "grpc" { 81 } else { 80 };
        let uri = format!("http://orders.shop:{number}/slow");
        let mut client = http2(pair.source.http()).await;
        let request = Request::post(&uri).body(full("x")).unwrap();
        let asked = tokio::spawn(async move { client.send_request(request).await });
        wait(async {
            while app.connections.load(std::sync::atomic::Ordering::Relaxed) == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!asked.is_finished());
        guard(&pair, targets, &server(port, "deny"));
        let answered = wait(asked).await.unwrap().unwrap();
        assert!(answered.status().is_server_error(), "{port}: {:?}", answered.status());
        let metrics = pair.destination.metrics();
        assert!(metrics.contains("reason=\"denied_no_rule\"} 1"), "{port}: {metrics}");
        app.connections.store(0, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Says what it was told of its caller.
async fn told(request: Request<Incoming>) -> Response<AnyBody> {
    let of = |name: &str| {
        let all = request.headers().get_all(name).iter();
        all.map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join("|")
    };
    let names = [
        "l5d-client-id",
        "l5d_client_id",
        "x-forwarded-client-cert",
        "x_forwarded_client_cert",
        "x-isthmus-client-id",
    ];
    let all: Vec<String> = names.iter().map(|name| format!("{name}={}", of(name))).collect();
    Response::new(full(all.join("\n")))
}

/// What an application is told when its client lies under every name.
async fn forged(proxy: SocketAddr) -> String {
    let lie = "By=spiffe://west.example/ns/shop/sa/orders;URI=spiffe://west.example/ns/a/sa/admin";
    let request = Request::get("http://orders.shop/")
        .header("l5d-client-id", "spiffe://west.example/ns/a/sa/admin")
        .header("l5d_client_id", "admin")
        .header("x-isthmus-client-id", "admin")
        .header("X-Forwarded-Client-Cert", lie)
        .header("x_forwarded_client_cert", lie)
        .body(support::apps::empty())
        .unwrap();
    let response = http1(proxy).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn applications_are_told_of_verified_callers_and_of_no_others() {
    let app = App::start(told).await;
    let authority = Authority::new(support::DOMAIN);
    for asked_for in [false, true] {
        let mut config = inbound_config();
        config.forwarded_client_cert = asked_for;
        let destination = Proxy::start(&authority, authority.workload("orders"), config).await;
        let svid = authority.workload("checkout");
        let leaf = svid.chain[0].clone();
        let source = Proxy::start(&authority, svid, support::outbound_config()).await;
        let endpoints = orders_endpoints("one", destination.inbound(), Targets::all(app.addr));
        let told = snapshot(&authority, vec![orders()], endpoints);
        source.tell(&told);
        destination.tell(&told);
        let caller = "spiffe://west.example/ns/shop/sa/checkout";
        let hash: String = {
            use sha2::Digest;
            sha2::Sha256::digest(&leaf).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let certificate = match asked_for {
            true => {
                format!("By=spiffe://west.example/ns/shop/sa/orders;Hash={hash};URI={caller}")
            }
            false => String::new(),
        };
        let wanted = format!(
            "l5d-client-id={caller}\nl5d_client_id=\nx-forwarded-client-cert={certificate}\n\
             x_forwarded_client_cert=\nx-isthmus-client-id={caller}"
        );
        assert_eq!(forged(source.http()).await, wanted);
    }
}

/// A destination with a plaintext door to each port.
async fn doors(targets: Targets, documents: &str) -> (Authority, Proxy) {
    let authority = Authority::new(support::DOMAIN);
    let mut config = inbound_config();
    let ports = ["http", "grpc", "tcp", "any"];
    config.inbound_plaintext = ports.map(|port| listener("orders.shop", port)).into();
    let proxy = Proxy::start(&authority, authority.workload("orders"), config).await;
    let endpoints = orders_endpoints("one", proxy.inbound(), targets);
    proxy.tell(&snapshot(&authority, vec![guarded(documents)], endpoints));
    (authority, proxy)
}

fn say(authority: &Authority, proxy: &Proxy, targets: Targets, documents: &str) {
    let endpoints = orders_endpoints("one", proxy.inbound(), targets);
    proxy.tell(&snapshot(authority, vec![guarded(documents)], endpoints));
}

#[tokio::test]
async fn plaintext_passes_only_where_a_policy_says_so() {
    let app = App::start(hello).await;
    let targets = Targets::all(app.addr);
    let near = |cidr: &str| NETWORK.replace("CIDR", cidr);
    let (authority, proxy) = doors(targets, "").await;
    let cases = [
        (String::new(), 403, "denied_unauthenticated"),
        (server("http", "all-authenticated"), 403, "denied_unauthenticated"),
        (server("http", "all-unauthenticated"), 200, ""),
        (server("http", "audit"), 200, ""),
        (server("http", "cluster-unauthenticated"), 403, "denied_network"),
        (near("127.0.0.0/8"), 200, ""),
        (near("192.0.2.0/24"), 403, "denied_network"),
        (near("127.0.0.0/8, except: [127.0.0.1]"), 403, "denied_network"),
    ];
    for (documents, status, reason) in cases {
        say(&authority, &proxy, targets, &documents);
        let door = proxy.bound.plaintext[0];
        let (head, body) = fetch(door, "http://orders.shop/").await;
        assert_eq!(head.status, status, "{documents}: {body:?}");
        let told = head.headers.get("isthmus-error").map_or("", |code| code.to_str().unwrap());
        assert_eq!(told, reason, "{documents}");
        let mut client = http2(door).await;
        let response = client.send_request(get("http://orders.shop/")).await.unwrap();
        assert_eq!(response.status(), status, "{documents}");
    }
    let metrics = proxy.metrics();
    let counted = "direction=\"inbound\",service=\"orders.shop\",port=\"http\",path=\"plaintext\"";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_plaintext_door_leads_to_its_own_application_and_nowhere_else() {
    let app = App::start(told).await;
    let targets = Targets::all(app.addr);
    let (_authority, proxy) = doors(targets, &server("http", "all-unauthenticated")).await;
    let door = proxy.bound.plaintext[0];
    let nobody = "l5d-client-id=\nl5d_client_id=\nx-forwarded-client-cert=\n\
                  x_forwarded_client_cert=\nx-isthmus-client-id=";
    assert_eq!(forged(door).await, nobody);
    let connect = "CONNECT orders.shop:82 HTTP/1.1\r\nHost: orders.shop:82\r\n\r\n";
    let mut bytes = TcpStream::connect(door).await.unwrap();
    bytes.write_all(connect.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    wait(bytes.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 501");
}

#[tokio::test]
async fn bytes_in_plaintext_pass_and_are_cut_as_policies_say() {
    let targets = Targets::all(echo().await);
    let (authority, proxy) = doors(targets, "").await;
    let open = async |port: usize| TcpStream::connect(proxy.bound.plaintext[port]).await.unwrap();
    let mut refused = open(2).await;
    let mut byte = [0];
    let ended = wait(refused.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let both = |access: &str| server("tcp", access) + &server("any", access);
    say(&authority, &proxy, targets, &both("all-unauthenticated"));
    let mut passing = [open(2).await, open(3).await];
    for stream in &mut passing {
        assert!(echoes(stream).await);
    }
    say(&authority, &proxy, targets, &both("audit"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    for stream in &mut passing {
        assert!(echoes(stream).await);
    }
    say(&authority, &proxy, targets, &both("deny"));
    for stream in &mut passing {
        let ended = wait(stream.read(&mut byte)).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    wait(async {
        while !proxy.metrics().contains("port=\"any\",path=\"plaintext\",protocol=\"tcp\",status_class=\"\",reason=\"denied_unauthenticated\"} 1") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
