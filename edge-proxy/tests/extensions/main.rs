//! What rules say that Gateway API has no words for, where one proxy without
//! an identity serves applications in plaintext: each test gives its site file
//! as people write it.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod listeners;
#[path = "../support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use edge_proxy::{
    config::{Config, ServiceListener},
    files,
};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_core::TrustBundles;
use support::{
    DOMAIN, Proxy,
    apps::{App, empty, full, http1, http2, read},
    caller::wait,
    listener, outbound_config,
    pki::Authority,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket},
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Headers of requests that applications repeat in their answers.
const SEEN: [&str; 9] = [
    "x-real-ip",
    "x-url",
    "x-user",
    "x-gone",
    "x-added",
    "x-forwarded-for",
    "x_user",
    "x-device",
    "x-trail",
];

/// Services `edge.shop`, `a.shop`, `b.shop` and `c.shop`, and a listener for
/// `edge.shop`. The applications answer with their names, and with what they
/// were asked in `x-asked`; with 503 where they are told to.
struct World {
    proxy: Proxy,
    apps: Vec<Option<App>>,
    addrs: Vec<SocketAddr>,
    unwell: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl World {
    /// `endpoints` are those of `edge.shop`, with `$a` for the address of `a`;
    /// `documents` follow as they are indented in a list of rules.
    async fn start(endpoints: &str, documents: &str) -> Self {
        Self::with(vec![listener("edge.shop", "http")], endpoints, documents).await
    }

    async fn with(listeners: Vec<ServiceListener>, endpoints: &str, documents: &str) -> Self {
        let authority = Authority::new(DOMAIN);
        let config = Config { listeners, ..outbound_config() };
        let proxy = Proxy::start(&authority, authority.workload("edge"), config).await;
        let unwell: Arc<Mutex<BTreeSet<&'static str>>> = Arc::default();
        let (mut apps, mut addrs) = (Vec::new(), Vec::new());
        for name in NAMES {
            let unwell = unwell.clone();
            let app = App::start(move |request: Request<Incoming>| {
                let response = answer(name, &unwell, &request);
                async move {
                    let _read = request.into_body().collect().await;
                    response
                }
            });
            let app = app.await;
            addrs.push(app.addr);
            apps.push(Some(app));
        }
        let world = Self { proxy, apps, addrs, unwell };
        world.tell(endpoints, documents);
        world
    }

    fn tell(&self, endpoints: &str, documents: &str) {
        let port = "ports: [{ name: http, port: 80, protocol: http }]";
        let mut site = format!(
            "site: west\ntrust_domain: {DOMAIN}\nservices:\n  - name: edge.shop\n    {port}\n    \
             endpoints: [{endpoints}]\n"
        );
        for name in NAMES {
            let endpoint = format!("{{ port: http, plaintext: true, target: '${name}' }}");
            site += &format!("  - name: {name}.shop\n    {port}\n    endpoints: [{endpoint}]\n");
        }
        if !documents.is_empty() {
            site += &format!("rules:\n{documents}\n");
        }
        for (name, addr) in NAMES.iter().zip(&self.addrs) {
            site = site.replace(&format!("${name}'"), &format!("{addr}'"));
        }
        let snapshot = files::snapshot::parse(&site, "site.yaml", &TrustBundles::new());
        self.proxy.tell(&snapshot.unwrap());
    }

    fn port(&self) -> SocketAddr {
        self.proxy.bound.listeners[0]
    }

    /// What is answered to these bytes of a client at an address.
    async fn raw(&self, from: [u8; 4], bytes: &str) -> String {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut stream = wait(socket.connect(self.port())).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = String::new();
        wait(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    /// The head and body of the answer to one request.
    async fn ask(&self, from: [u8; 4], host: &str, request: &str) -> (String, String) {
        let request = format!("{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = self.raw(from, &request).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    /// The body of the answer to a GET.
    async fn get(&self, path: &str) -> String {
        self.ask([127, 0, 0, 1], "edge.example", &format!("GET {path}")).await.1
    }

    async fn answered(&self, times: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for _ in 0..times {
            names.insert(self.get("/").await);
        }
        names
    }
}

fn answer(
    name: &'static str,
    unwell: &Mutex<BTreeSet<&'static str>>,
    request: &Request<Incoming>,
) -> Response<support::apps::AnyBody> {
    let field = |name: &str| {
        let all = request.headers().get_all(name).iter();
        let all: Vec<&str> = all.map(|value| value.to_str().unwrap()).collect();
        all.join("|")
    };
    let asked = format!("{} {}", request.method(), request.uri().path_and_query().unwrap());
    let mut response = Response::new(full(name));
    let headers = response.headers_mut();
    headers.insert("x-asked", asked.parse().unwrap());
    for name in SEEN {
        headers.insert(name, format!("<{}>", field(name)).parse().unwrap());
    }
    headers.insert("server", "secret".parse().unwrap());
    if unwell.lock().unwrap_or_else(PoisonError::into_inner).contains(name) {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// An HTTPRoute for `edge.shop` and a TrafficPolicy.
fn rules(rules: &str, policy: &str) -> String {
    format!(
        "
  - apiVersion: gateway.networking.k8s.io/v1
    kind: HTTPRoute
    metadata: {{ name: edge, namespace: shop }}
    spec:
      parentRefs: [{{ kind: Service, name: edge }}]
      rules:
{rules}
  - apiVersion: isthmus.io/v1
    kind: TrafficPolicy
    metadata: {{ name: edge, namespace: shop }}
    spec:
      targetRef: {{ kind: Service, name: edge }}
{policy}
"
    )
}

const HERE: [u8; 4] = [127, 0, 0, 1];

#[tokio::test]
async fn the_first_rule_decides_where_rules_are_listed() {
    let routes = "
        - { matches: [{ path: { value: /shop } }], backendRefs: [{ name: a }] }
        - { matches: [{ path: { type: Exact, value: /shop/cart } }], backendRefs: [{ name: b }] }
        - { backendRefs: [{ name: c }] }";
    let world = World::start("", &rules(routes, "      ruleOrder: Listed")).await;
    let cases = [("/shop/cart", "a"), ("/shop", "a"), ("/", "c")];
    for (path, wanted) in cases {
        assert_eq!(world.get(path).await, wanted, "{path}");
    }
    world.tell("", &rules(routes, "      ruleOrder: Precedence"));
    assert_eq!(world.get("/shop/cart").await, "b");
}

#[tokio::test]
async fn rules_ask_for_the_client_and_for_what_must_not_be() {
    let routes = "
        - { name: admin, matches: [{ path: { value: /admin } }] }
        - { name: both, matches: [{ path: { value: /both } }], backendRefs: [{ name: a }] }
        - name: host
          matches: [{ headers: [{ name: Host, type: RegularExpression, value: '(?i)(www\\.)?shop\\.example(:\\d+)?' }] }]
          backendRefs: [{ name: b }]
        - { name: exact, matches: [{ headers: [{ name: host, value: 'A.example:81' }] }], backendRefs: [{ name: a }] }
        - { name: rest, backendRefs: [{ name: c }] }";
    let policy = "      ruleOrder: Listed
      rules:
        - name: admin
          notSources: [127.0.0.2, 10.0.0.0/8]
          unless: [{ path: { value: /admin/open } }]
          reply: { status: 403, body: closed }
        - name: both
          also: [{ path: { type: RegularExpression, value: '.*\\.json' } }, { queryParams: [{ name: v, value: '2' }] }]
        - { name: rest, sources: [127.0.0.0/8] }";
    let world = World::start("", &rules(routes, policy)).await;
    let cases = [
        (HERE, "x", "/admin", "closed"),
        (HERE, "x", "/admin/open", "c"),
        ([127, 0, 0, 2], "x", "/admin", "c"),
        (HERE, "x", "/both/x.json?v=2", "a"),
        (HERE, "x", "/both/x.json", "c"),
        (HERE, "x", "/both/x.xml?v=2", "c"),
        (HERE, "WWW.Shop.Example:8080", "/", "b"),
        (HERE, "shop.example", "/", "b"),
        (HERE, "shop.example.evil", "/", "c"),
        (HERE, "A.example:81", "/", "a"),
        (HERE, "a.example:81", "/", "c"),
        (HERE, "A.example", "/", "c"),
    ];
    for (from, host, path, wanted) in cases {
        let (head, body) = world.ask(from, host, &format!("GET {path}")).await;
        assert_eq!(body, wanted, "{from:?} {host} {path}: {head}");
    }
    world.tell("", &rules(routes, &policy.replace("127.0.0.0/8", "192.0.2.0/24")));
    let (head, _) = world.ask(HERE, "x", "GET /").await;
    assert!(head.starts_with("http/1.1 404") && head.contains("isthmus-error: no_route"), "{head}");
}

const REPLIES: &str = "
        - { name: closed, matches: [{ path: { value: /closed } }], backendRefs: [{ name: a }] }
        - { name: empty, matches: [{ path: { value: /empty } }] }
        - { name: long, matches: [{ path: { value: /long } }] }
        - { name: rest, backendRefs: [{ name: c }] }";

fn replies() -> String {
    let long = "x".repeat(4096);
    let policy = format!(
        "      rules:
        - name: closed
          reply: {{ status: 503, headers: [{{ name: X-Why, value: tired }}, {{ name: x-why, value: again }}], body: \"come\\nback\" }}
        - {{ name: empty, reply: {{ status: 204 }} }}
        - {{ name: long, reply: {{ status: 200, headers: [{{ name: content-type, value: a/b }}], body: {long} }} }}"
    );
    rules(REPLIES, &policy)
}

#[tokio::test]
async fn a_rule_answers_itself() {
    let world = World::start("", &replies()).await;
    let (head, body) = world.ask(HERE, "x", "GET /closed").await;
    assert!(head.starts_with("http/1.1 503"), "{head}");
    for wanted in ["content-length: 9", "x-why: tired", "x-why: again", "text/plain"] {
        assert!(head.contains(wanted), "{wanted}: {head}");
    }
    assert_eq!(body, "come\nback");
    assert!(!head.contains("isthmus-error") && !head.contains("x-asked"), "{head}");
    let (head, body) = world.ask(HERE, "x", "HEAD /closed").await;
    assert!(head.contains("content-length: 9") && body.is_empty(), "{head} {body}");
    let (head, body) = world.ask(HERE, "x", "GET /empty").await;
    assert!(head.starts_with("http/1.1 204") && body.is_empty(), "{head}");
    assert!(!head.contains("content-length") && !head.contains("content-type"), "{head}");
    let (head, body) = world.ask(HERE, "x", "GET /long").await;
    assert!(head.contains("content-type: a/b") && body.len() == 4096, "{head}");
    // A body that was sent on is no next request; the connection goes on.
    let both = "POST /closed HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\n\
                Host: x\r\nConnection: close\r\n\r\n";
    let answers = world.raw(HERE, both).await;
    assert!(
        answers.contains("come\nbackHTTP/1.1 200") && answers.ends_with("\r\n\r\nc"),
        "{answers}"
    );
    let metrics = world.proxy.metrics();
    let failed = |line: &&str| line.contains("classification=\"failure\"") && !line.ends_with(" 0");
    assert_eq!(metrics.lines().filter(failed).count(), 0, "{metrics}");
    let told =
        |line: &&str| line.starts_with("response_total{") && line.contains("status_code=\"503\"");
    assert_eq!(metrics.lines().filter(told).count(), 1, "{metrics}");
}

#[tokio::test]
async fn a_rule_answers_clients_of_http2_and_grpc() {
    let world = World::start("", &replies()).await;
    let mut client = http2(world.port()).await;
    let ask = |method: &str, content: &str| {
        let request = Request::builder().method(method).uri("http://x/closed");
        request.header("content-type", content).body(empty()).unwrap()
    };
    let response = wait(client.send_request(ask("GET", "a/b"))).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers()["content-length"].as_bytes()),
        (503, &b"9"[..])
    );
    assert_eq!(read(response).await, "come\nback");
    let response = wait(client.send_request(ask("HEAD", "a/b"))).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), response.headers()["content-length"].as_bytes()),
        (503, &b"9"[..])
    );
    assert!(read(response).await.is_empty());
    let response = wait(client.send_request(ask("POST", "application/grpc"))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "come%0Aback");
    assert_eq!(response.headers()["x-why"], "tired");
    assert!(read(response).await.is_empty());
}

#[tokio::test]
async fn paths_are_changed_by_pattern() {
    let redirect = |name: &str, more: &str| {
        format!(
            "
        - name: {name}
          matches: [{{ path: {{ value: /{name} }} }}]
          filters: [{{ type: RequestRedirect, requestRedirect: {{ {more} }} }}]"
        )
    };
    let routes = [
        redirect("moved", "scheme: https, statusCode: 301"),
        redirect("bare", "statusCode: 303"),
        redirect("kept", "hostname: new.example, port: 8443, statusCode: 307"),
        "
        - { name: api, matches: [{ path: { value: /api } }], backendRefs: [{ name: a }] }
        - { name: bad, matches: [{ path: { value: /bad } }], backendRefs: [{ name: a }] }
        - { name: rest, backendRefs: [{ name: c }] }"
            .to_owned(),
    ];
    let policy = "      rules:
        - { name: moved, rewrite: { pattern: '^/mov', substitution: /leav } }
        - { name: bare, stripQuery: true }
        - { name: api, rewrite: { pattern: '^/api/v(\\d+)/(.*)', substitution: '/$2/$1' }, responseHeaders: { set: [{ name: x-from, value: edge }], remove: [server] } }
        - { name: bad, rewrite: { pattern: '^/bad', substitution: '' } }
        - { name: rest, rewrite: { pattern: '//+', substitution: /, all: true } }";
    let world = World::start("", &rules(&routes.concat(), policy)).await;
    let cases = [
        ("/moved/a?b=c", "301", "location: https://edge.example/leaved/a?b=c\r"),
        ("/bare/a?b=c", "303", "location: http://edge.example:8080/bare/a\r"),
        ("/kept?b", "307", "location: http://new.example:8443/kept?b\r"),
        ("/api/v2/orders/7?x=/api", "200", "x-asked: get /orders/7/2?x=/api\r"),
        ("/api/orders", "200", "x-asked: get /api/orders\r"),
        ("/bad/x", "200", "x-asked: get /x\r"),
        ("/bad", "500", "isthmus-error: bad_rewrite\r"),
        ("//a///b?c=//", "200", "x-asked: get /a/b?c=//\r"),
    ];
    for (path, status, wanted) in cases {
        let (head, _) = world.ask(HERE, "edge.example:8080", &format!("GET {path}")).await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{path}: {head}");
        assert!(format!("{head}\r").contains(wanted), "{path}: {head}");
    }
    let (head, _) = world.ask(HERE, "x", "GET /api/x").await;
    assert!(head.contains("x-from: edge") && !head.contains("server:"), "{head}");
}

#[tokio::test]
async fn headers_are_made_of_the_request() {
    let routes = "
        - name: all
          filters: [{ type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-real-ip, value: '%{host}' }] } }]
          backendRefs: [{ name: a }]";
    let policy = "      rules:
        - requestHeaders:
            set: [{ name: X-Real-IP, value: '%{client_ip}' }, { name: x-url, value: '%{method} %{scheme}://%{hostname}%{target}' }, { name: x-gone, value: '%{header:x-none}' }]
            add: [{ name: x-added, value: 'u=%{header:X-User} 100%%' }]
            remove: [x-user]
          rewrite: { pattern: '^.*', substitution: /changed }";
    let world = World::start("", &rules(routes, policy)).await;
    let request = "GET /a?b=c HTTP/1.1\r\nHost: Shop.Example:80\r\nX-User: me\r\nX-Added: mine\r\nX-Gone: 1\r\n\
                   X-Real-Ip: 6.6.6.6\r\nConnection: close\r\n\r\n";
    let head = world.raw([127, 0, 0, 9], request).await;
    for wanted in [
        "x-real-ip: <127.0.0.9>",
        "x-url: <GET http://shop.example/a?b=c>",
        "x-gone: <>",
        "x-added: <mine|u=me 100%>",
        "x-user: <>",
        "x-asked: GET /changed?b=c",
    ] {
        assert!(head.contains(wanted), "{wanted}: {head}");
    }
}

#[tokio::test]
async fn a_listener_of_a_service_is_no_proxy() {
    let world = World::start(
        "",
        &rules(
            "
        - { name: all, backendRefs: [{ name: a }] }",
            "      rules: []",
        ),
    )
    .await;
    let connect = "CONNECT a.shop:80 HTTP/1.1\r\nHost: a.shop:80\r\nConnection: close\r\n\r\n";
    let head = world.raw([127, 0, 0, 9], connect).await;
    assert!(
        head.starts_with("HTTP/1.1 501 ") && head.contains("isthmus-error: unsupported"),
        "{head}"
    );
}

#[tokio::test]
async fn headers_change_where_conditions_hold() {
    let routes = "
        - { name: all, backendRefs: [{ name: a }] }";
    let policy = "      rules:
        - requestHeaders: { set: [{ name: x-device, value: desktop }] }
          conditionalHeaders:
          - also: [{ headers: [{ type: RegularExpression, name: user-agent, value: '.*iphone.*' }] }]
            requestHeaders: { set: [{ name: x-device, value: mobile }], remove: [x-user] }
          - sources: [127.0.0.0/29]
            unless: [{ path: { type: PathPrefix, value: /public } }]
            requestHeaders: { add: [{ name: x-trail, value: 'in %{header:x-device}' }] }
          - notSources: [127.0.0.0/29]
            requestHeaders: { remove: [x-trail] }";
    let world = World::start("", &rules(routes, policy)).await;
    for (last, path, agent, wanted) in [
        (1, "/", "curl", ["desktop", "me", "mine|in theirs"]),
        (1, "/public", "my iphone", ["mobile", "", "mine"]),
        (9, "/", "my iphone", ["mobile", "", ""]),
    ] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: shop\r\nUser-Agent: {agent}\r\nX-User: me\r\n\
             X-Device: theirs\r\nX-Trail: mine\r\nConnection: close\r\n\r\n"
        );
        let head = world.raw([127, 0, 0, last], &request).await;
        for (name, value) in ["x-device", "x-user", "x-trail"].iter().zip(wanted) {
            let wanted = format!("{name}: <{value}>");
            assert!(head.contains(&wanted), "{path} {agent}: {wanted}: {head}");
        }
    }
}

#[tokio::test]
async fn texts_of_the_request_are_compared_changed_and_answered() {
    let routes = "
        - { name: img, backendRefs: [{ name: a }] }
        - { name: cookie, backendRefs: [{ name: b }] }
        - { name: options }
        - { name: moved }
        - { name: rest, backendRefs: [{ name: c }] }";
    let policy = r"      ruleOrder: Listed
      rules:
        - name: img
          also: [{ headers: [{ name: '%{host|lower}%{path}', type: RegularExpression, value: 'shop[.][a-z]+/(img|css)/.*' }] }]
        - name: cookie
          also: [{ headers: [{ name: '%{cookie:lane}:%{query:v}', value: 'b:2' }] }]
          unless: [{ headers: [{ name: '%{path|s~^/v(\d+)/.*~$1~}', value: '3' }] }]
        - name: options
          also: [{ method: OPTIONS }]
          reply:
            status: 200
            templates: true
            headers: [{ name: access-control-allow-origin, value: '%{header:origin}' }, { name: x-nobody, value: '%{header:none}' }]
            body: 'asked %{path} 100%%'
        - name: moved
          also: [{ headers: [{ name: '%{hostname}', type: RegularExpression, value: 'www[.].*' }] }]
          reply: { status: 301, templates: true, headers: [{ name: location, value: 'https://%{hostname|s~^www[.]~~}%{target}' }] }";
    let world = World::start("", &rules(routes, policy)).await;
    let cases = [
        ("Shop.de", "GET /img/1", "", "a"),
        ("shop.de", "GET /imgs", "", "c"),
        ("x", "GET /v1/a?v=2", "Cookie: a=b; lane=b\r\n", "b"),
        ("x", "GET /v3/a?v=2", "Cookie: lane=b\r\n", "c"),
        ("x", "GET /v1/a", "Cookie: lane=b\r\n", "c"),
        ("x", "OPTIONS /o?p", "Origin: https://y\r\n", "asked /o 100%"),
    ];
    for (host, line, more, wanted) in cases {
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n");
        let answer = world.raw(HERE, &request).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{wanted}")), "{line}: {answer}");
        assert!(!answer.contains("x-nobody"), "{answer}");
        let is_allowed = answer.contains("access-control-allow-origin: https://y\r\n");
        assert_eq!(is_allowed, line.starts_with("OPTIONS"), "{answer}");
    }
    let (head, _) = world.ask(HERE, "WWW.Shop.de:8080", "GET /a?b=c").await;
    assert!(head.contains("location: https://shop.de/a?b=c"), "{head}");
}

fn endpoint(name: &str, more: &str) -> String {
    format!("{{ port: http, plaintext: true, target: '${name}'{more} }}")
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test]
async fn standbys_serve_while_nobody_before_them_can() {
    let endpoints =
        [endpoint("a", ""), endpoint("b", ", priority: 1"), endpoint("c", ", priority: 1")];
    let mut world = World::start(&endpoints.join(", "), "").await;
    assert_eq!(world.answered(20).await, names(["a"]));
    world.apps[0].take().unwrap().kill().await;
    assert_eq!(world.answered(40).await, names(["b", "c"]), "nobody has waited or failed");
    // It listens again, where it did, and has everything once that is found out.
    let back = TcpListener::bind(world.addrs[0]).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = back.accept().await.unwrap();
            tokio::spawn(async move {
                let _head = stream.read(&mut [0; 4096]).await;
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nback";
                let _sent = stream.write_all(answer).await;
            });
        }
    });
    let returned = async {
        while world.get("/").await != "back" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    wait(returned).await;
    assert_eq!(world.answered(20).await, names(["back"]));
}

#[tokio::test]
async fn the_path_or_a_parameter_keeps_requests_together() {
    let endpoints = NAMES.map(|name| endpoint(name, "")).join(", ");
    let by = |key: &str| {
        rules(
            "        - { backendRefs: [{ name: edge }] }",
            &format!("      balance: {{ slowStart: 0s, affinity: {{ {key} }} }}"),
        )
    };
    let world = World::start(&endpoints, &by("path: { depth: 1 }")).await;
    let mut met = BTreeSet::new();
    for user in 0..12 {
        let first = world.get(&format!("/u{user}")).await;
        for deeper in ["/a", "/b/c?d", "?e"] {
            assert_eq!(world.get(&format!("/u{user}{deeper}")).await, first, "{user}{deeper}");
        }
        met.insert(first);
    }
    assert_eq!(met, names(NAMES));
    world.tell(&endpoints, &by("query: user"));
    let mut met = BTreeSet::new();
    for user in 0..12 {
        let first = world.get(&format!("/?user={user}")).await;
        for n in 0..3 {
            assert_eq!(world.get(&format!("/{n}?x=1&user={user}&y={n}")).await, first, "{user}");
        }
        met.insert(first);
    }
    assert_eq!(met, names(NAMES));
    assert!(world.answered(30).await.len() > 1, "who does not say is spread");
}

/// Connections that are refused, and answers that are repeated, cost clients
/// nothing where another application is there.
#[tokio::test]
async fn clients_notice_nobody_who_is_gone_or_unwell() {
    let endpoints = NAMES.map(|name| endpoint(name, "")).join(", ");
    let policy = "      traffic: { retryBudget: { retryRatio: 1, minRetriesPerSecond: 1000, ttl: 10s } }
      balance: { slowStart: 0s, outlier: { consecutiveFailures: 3, baseEjection: 30s, maxEjection: 30s } }
      rules: [{ retry: { codes: [503], attempts: 2, backoff: 1ms, anyMethod: true } }]";
    let route = "        - { backendRefs: [{ name: edge }] }";
    let mut world = World::start(&endpoints, &rules(route, policy)).await;
    assert_eq!(world.answered(40).await, names(NAMES));
    world.apps[0].take().unwrap().kill().await;
    world.unwell.lock().unwrap().insert("b");
    for round in 0..40 {
        let mut client = http1(world.port()).await;
        let request = Request::post("http://edge.example/x").body(full("order")).unwrap();
        let response = wait(client.send_request(request)).await.unwrap();
        assert_eq!(response.status(), 200, "round {round}");
        assert_eq!(read(response).await, "c", "round {round}");
    }
    // Three failures in a row, one or more connections refused, and nobody asks
    // them any more: not each of 40 was repeated.
    let metrics = world.proxy.metrics();
    let retried = metrics.lines().filter(|line| line.contains("retry_total{"));
    let times = |line: &str| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    let retried: u64 = retried.map(times).sum();
    assert!((2..20).contains(&retried), "{metrics}");
}
