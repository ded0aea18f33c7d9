//! What rules do with requests, through two real proxies: each test gives its
//! rules as the documents that people write.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_manifest::{compile, manifest::read as read_manifests};
use support::{
    DOMAIN, Proxy,
    apps::{AnyBody, App, empty, full, http1, read},
    caller::wait,
    endpoint, inbound_config, outbound_config,
    pki::Authority,
    service, snapshot,
};
use tokio::sync::Notify;

/// What an application was asked.
#[derive(Debug, Clone)]
struct Asked {
    app: &'static str,
    method: Method,
    host: String,
    target: String,
    headers: HeaderMap,
    body: String,
}

type Log = Arc<Mutex<Vec<Asked>>>;

/// Two proxies; behind the second `orders.shop`, `next.shop` and `copy.shop`,
/// each with an application of its own that answers with its name.
struct World {
    authority: Authority,
    source: Proxy,
    destination: Proxy,
    apps: Vec<(&'static str, App)>,
    asked: Log,
    /// Answered by every application while set.
    status: Arc<Mutex<Vec<StatusCode>>>,
    gate: Arc<Notify>,
}

const SERVICES: [&str; 3] = ["orders", "next", "copy"];

impl World {
    async fn start(rules: &str) -> Self {
        let authority = Authority::new(DOMAIN);
        let destination =
            Proxy::start(&authority, authority.workload("orders"), inbound_config()).await;
        let source =
            Proxy::start(&authority, authority.workload("checkout"), outbound_config()).await;
        let (asked, status, gate) = (Log::default(), Arc::default(), Arc::<Notify>::default());
        let mut apps = Vec::new();
        for name in SERVICES {
            let app = app(name, asked.clone(), Arc::clone(&status), gate.clone()).await;
            apps.push((name, app));
        }
        let world = Self { authority, source, destination, apps, asked, status, gate };
        world.rules(rules);
        world
    }

    /// Decides by these from now on.
    fn rules(&self, text: &str) {
        let ports = vec![("http".to_owned(), 80)];
        let registry: BTreeMap<String, _> =
            SERVICES.iter().map(|name| (format!("{name}.shop"), ports.clone())).collect();
        let manifests = read_manifests(text, "rules.yaml").unwrap();
        let (mut services, mut endpoints) = (Vec::new(), Vec::new());
        for (name, app) in &self.apps {
            let full = format!("{name}.shop");
            let compiled = compile(&full, &manifests, &registry);
            services.push(mesh_api::v1::Service {
                routes: compiled.routes,
                traffic: compiled.traffic,
                ..service(&full, &[("http", 80, mesh_api::v1::Protocol::Http)])
            });
            let proxy = self.destination.inbound();
            endpoints.push(endpoint(name, &full, "http", "orders", proxy, app.addr));
        }
        let snapshot = snapshot(&self.authority, services, endpoints);
        self.source.tell(&snapshot);
        self.destination.tell(&snapshot);
    }

    async fn send(&self, request: Request<AnyBody>) -> (http::response::Parts, String) {
        let mut client = http1(self.source.http()).await;
        let (head, body) = wait(client.send_request(request)).await.unwrap().into_parts();
        let body = wait(body.collect()).await.unwrap().to_bytes();
        (head, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until so many requests have arrived.
    async fn until_asked(&self, times: usize) {
        let asked = async {
            while self.asked.lock().unwrap().len() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        wait(asked).await;
    }

    async fn get(&self, target: &str) -> (http::response::Parts, String) {
        self.send(request("GET", target, &[])).await
    }

    /// What arrived since it was last asked, in order of arrival.
    fn arrived(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// The next answers of applications, before 200.
    fn answers(&self, statuses: &[u16]) {
        let statuses = statuses.iter().rev().map(|status| StatusCode::from_u16(*status).unwrap());
        *self.status.lock().unwrap() = statuses.collect();
    }
}

async fn app(
    name: &'static str,
    log: Log,
    status: Arc<Mutex<Vec<StatusCode>>>,
    gate: Arc<Notify>,
) -> App {
    App::start(move |request: Request<Incoming>| {
        let (log, status, gate) = (log.clone(), Arc::clone(&status), gate.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            log.lock().unwrap().push(Asked {
                app: name,
                method: head.method,
                host: head.headers.get("host").map_or("", |host| host.to_str().unwrap()).into(),
                target: head.uri.path_and_query().unwrap().to_string(),
                body: String::from_utf8(body.to_vec()).unwrap(),
                headers: head.headers,
            });
            if head.uri.path() == "/wait" {
                gate.notified().await;
            }
            let mut response = Response::new(full(name));
            if let Some(status) = status.lock().unwrap().pop() {
                *response.status_mut() = status;
            }
            response.headers_mut().insert("x-app", name.parse().unwrap());
            response
        }
    })
    .await
}

fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<AnyBody> {
    let mut builder = Request::builder().method(method).uri(format!("http://orders.shop{target}"));
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(empty()).unwrap()
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{ name: r, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: orders }}]\n  rules:\n{rules}\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: isthmus.io/v1\nkind: TrafficPolicy\n\
         metadata: {{ name: p, namespace: shop }}\nspec:\n  \
         targetRef: {{ kind: Service, name: orders }}\n{spec}\n"
    )
}

#[tokio::test]
async fn matches_choose_backends() {
    let world = World::start(&route(
        "
    - { backendRefs: [{ name: orders }] }
    - matches:
        - { path: { value: /next } }
        - { headers: [{ name: x-next, value: '1' }] }
        - { queryParams: [{ name: next, value: 'a b' }] }
        - { method: PUT }
      backendRefs: [{ name: next, port: 80 }]",
    ))
    .await;
    let cases = [
        (request("GET", "/", &[]), "orders"),
        (request("GET", "/next/1", &[]), "next"),
        (request("GET", "/nextone", &[]), "orders"),
        (request("GET", "/", &[("X-Next", "1")]), "next"),
        (request("GET", "/?next=a+b", &[]), "next"),
        (request("PUT", "/", &[]), "next"),
    ];
    for (request, wanted) in cases {
        let uri = request.uri().clone();
        assert_eq!(world.send(request).await.1, wanted, "{uri}");
    }
}

#[tokio::test]
async fn what_no_rule_takes_is_404_and_what_no_backend_takes_500() {
    let world = World::start(&route(
        "
    - { matches: [{ path: { type: Exact, value: /none } }] }
    - { matches: [{ path: { type: Exact, value: /zero } }], backendRefs: [{ name: next, weight: 0 }] }
    - { matches: [{ path: { type: Exact, value: /invalid } }], backendRefs: [{ name: missing }] }",
    ))
    .await;
    let cases = [
        ("/", 404, "no_route"),
        ("/none", 500, "no_backend"),
        ("/zero", 500, "no_backend"),
        ("/invalid", 500, "invalid_backend"),
    ];
    for (path, status, reason) in cases {
        let (head, _) = world.get(path).await;
        assert_eq!(
            (head.status.as_u16(), head.headers["isthmus-error"].to_str().unwrap()),
            (status, reason)
        );
    }
    let grpc = request("POST", "/", &[("content-type", "application/grpc")]);
    assert_eq!(world.send(grpc).await.0.headers["grpc-status"], "12", "UNIMPLEMENTED");
}

#[tokio::test]
async fn weights_split_traffic() {
    let world = World::start(&route(
        "    - { backendRefs: [{ name: orders, weight: 3 }, { name: next, weight: 1 }, { name: copy, weight: 0 }] }",
    ))
    .await;
    let mut client = http1(world.source.http()).await;
    let mut next = 0;
    const N: usize = 400;
    for _ in 0..N {
        let response = client.send_request(request("GET", "/", &[])).await.unwrap();
        match &read(response).await[..] {
            b"orders" => {}
            b"next" => next += 1,
            other => panic!("{other:?}"),
        }
    }
    // Five standard deviations of the binomial distribution: 5 * sqrt(N/4*3/4).
    assert!((57..=143).contains(&next), "{next} of {N} for a weight of 1 in 4");
}

#[tokio::test]
async fn headers_are_changed_on_the_way_there_and_back() {
    let world = World::start(&route(
        "
    - filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: { set: [{ name: x-set, value: rule }], add: [{ name: x-add, value: rule }], remove: [x-gone] }
        - type: ResponseHeaderModifier
          responseHeaderModifier: { set: [{ name: x-answer, value: rule }], remove: [x-app] }
      backendRefs:
        - name: orders
          filters:
            - { type: RequestHeaderModifier, requestHeaderModifier: { add: [{ name: x-add, value: backend }] } }",
    ))
    .await;
    let sent = [("x-set", "client"), ("x-add", "client"), ("x-gone", "1"), ("x-kept", "1")];
    let (head, _) = world.send(request("GET", "/", &sent)).await;
    assert_eq!(head.headers["x-answer"], "rule");
    assert!(!head.headers.contains_key("x-app"));
    let arrived = &world.arrived()[0].headers;
    let all = |name: &str| -> Vec<&str> {
        arrived.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(all("x-set"), ["rule"]);
    assert_eq!(all("x-add"), ["client", "rule", "backend"]);
    assert_eq!(all("x-gone"), [""; 0]);
    assert_eq!(all("x-kept"), ["1"]);
}

#[tokio::test]
async fn redirects_are_answered_and_rewrites_forwarded() {
    let world = World::start(&route(
        "
    - matches: [{ path: { value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { scheme: https, hostname: new.example, statusCode: 308, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }
    - matches: [{ path: { value: /app } }]
      filters:
        - { type: URLRewrite, urlRewrite: { hostname: inner.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }
      backendRefs: [{ name: orders }]",
    ))
    .await;
    let (head, _) = world.get("/old/a?b=c").await;
    assert_eq!(head.status, 308);
    assert_eq!(head.headers["location"], "https://new.example/new/a?b=c");
    assert!(world.arrived().is_empty());
    assert_eq!(world.get("/app/x/y?z=1").await.1, "orders");
    let arrived = &world.arrived()[0];
    assert_eq!((arrived.host.as_str(), arrived.target.as_str()), ("inner.example", "/x/y?z=1"));
}

#[tokio::test]
async fn mirrors_get_a_copy_and_nobody_waits_for_them() {
    let world = World::start(&route(
        "
    - filters:
        - { type: RequestMirror, requestMirror: { backendRef: { name: copy, port: 80 } } }
        - { type: RequestMirror, requestMirror: { backendRef: { name: next, port: 80 }, percent: 0 } }
      backendRefs: [{ name: orders }]",
    ))
    .await;
    let mut posted = request("POST", "/x", &[("x-a", "1")]);
    *posted.body_mut() = full("the body");
    assert_eq!(world.send(posted).await.1, "orders");
    let arrived = || async {
        for _ in 0..200 {
            if world.asked.lock().unwrap().len() >= 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        world.arrived()
    };
    let mut both = arrived().await;
    both.sort_by_key(|asked| asked.app);
    let seen: Vec<_> = both
        .iter()
        .map(|a| {
            (
                a.app,
                a.method.as_str(),
                a.target.as_str(),
                a.body.as_str(),
                a.headers.contains_key("x-a"),
            )
        })
        .collect();
    let wanted = |app| (app, "POST", "/x", "the body", true);
    assert_eq!(seen, [wanted("copy"), wanted("orders")]);
}

#[tokio::test]
async fn what_takes_too_long_is_broken_off() {
    let world = World::start(&route(
        "
    - matches: [{ path: { value: /wait } }]
      backendRefs: [{ name: orders }]
      timeouts: { request: 100ms }
    - { backendRefs: [{ name: orders }] }",
    ))
    .await;
    let (head, _) = world.get("/wait").await;
    assert_eq!(
        (head.status.as_u16(), &head.headers["isthmus-error"]),
        (504, &"timeout".parse().unwrap())
    );
    let told = world.arrived()[0].headers["x-isthmus-timeout"].to_str().unwrap().to_owned();
    let told: u64 = told.parse().unwrap();
    assert!(told <= 100, "the application knows how long it has: {told}");
    // Clients may allow less, where the rule allows all.
    world.rules(&route("    - { backendRefs: [{ name: orders }] }"));
    let (head, _) = world.send(request("GET", "/wait", &[("x-isthmus-timeout", "80")])).await;
    assert_eq!(head.status, 504);
    let grpc = [("content-type", "application/grpc"), ("grpc-timeout", "80m")];
    let (head, _) = world.send(request("POST", "/wait", &grpc)).await;
    assert_eq!(head.headers["grpc-status"], "4", "DEADLINE_EXCEEDED");
    world.gate.notify_waiters();
}

#[tokio::test]
async fn one_slow_attempt_is_repeated() {
    let world = World::start(&route(
        "
    - matches: [{ path: { value: /wait } }]
      backendRefs: [{ name: orders }]
      timeouts: { request: 10s, backendRequest: 200ms }
      retry: { attempts: 3 }",
    ))
    .await;
    let slow = world.get("/wait");
    let release = async {
        world.until_asked(2).await;
        // Both wait; the first has been given up.
        world.gate.notify_waiters();
        world.gate.notify_one();
    };
    let ((head, _), ()) = tokio::join!(slow, release);
    assert_eq!(head.status, 200);
}

#[tokio::test]
async fn statuses_are_repeated_as_the_policy_says() {
    let retries = |retry: &str| {
        route("    - { name: r, backendRefs: [{ name: orders }] }")
            + &policy(&format!("  rules: [{{ retry: {retry} }}]"))
    };
    let world = World::start(&retries("{ codes: [503], attempts: 2, backoff: 1ms }")).await;
    world.answers(&[503, 503]);
    assert_eq!(world.get("/").await.0.status, 200);
    assert_eq!(world.arrived().len(), 3);
    world.answers(&[503, 503, 503]);
    assert_eq!(world.get("/").await.0.status, 503, "the application's own answer, at last");
    assert_eq!(world.arrived().len(), 3);
    world.answers(&[500]);
    assert_eq!(world.get("/").await.0.status, 500, "not in the list");
    assert_eq!(world.arrived().len(), 1);
    world.answers(&[503]);
    let posted = world.send(request("POST", "/", &[])).await;
    assert_eq!(posted.0.status, 503, "not idempotent");
    world.rules(&retries("{ codes: [503], anyMethod: true, backoff: 1ms }"));
    world.arrived();
    world.answers(&[503]);
    let mut posted = request("POST", "/", &[]);
    *posted.body_mut() = full("again");
    assert_eq!(world.send(posted).await.0.status, 200, "declared repeatable");
    let bodies: Vec<String> = world.arrived().into_iter().map(|asked| asked.body).collect();
    assert_eq!(bodies, ["again", "again"]);
}

#[tokio::test]
async fn bodies_longer_than_is_kept_are_not_repeated() {
    let rules = route(
        "    - { backendRefs: [{ name: orders }], retry: { codes: [503], anyMethod: true } }",
    ) + &policy("  traffic: { replayBytes: 10 }");
    let world = World::start(&rules).await;
    for (body, times) in [("short", 2), ("longer than ten", 1)] {
        world.answers(&[503]);
        let mut posted = request("POST", "/", &[]);
        *posted.body_mut() = full(body);
        world.send(posted).await;
        assert_eq!(world.arrived().len(), times, "{body}");
        world.answers(&[]);
    }
}

#[tokio::test]
async fn repetitions_end_with_the_budget() {
    let rules = route(
        "    - { backendRefs: [{ name: orders }], retry: { codes: [503], attempts: 1, backoff: 1ms } }",
    ) + &policy(
        "  traffic: { retryBudget: { retryRatio: 0.1, minRetriesPerSecond: 0, ttl: 60s } }",
    );
    let world = World::start(&rules).await;
    world.answers(&[503; 100]);
    for _ in 0..20 {
        world.get("/").await;
    }
    assert_eq!(world.arrived().len(), 22, "a tenth of twenty");
}

#[tokio::test]
async fn faults_are_injected_for_those_who_ask() {
    let world = World::start(&(route("    - { backendRefs: [{ name: orders }] }") + &policy(
        "  rules: [{ fault: { abort: { status: 418, grpcStatus: 9 }, headers: [{ name: x-fault, value: 'yes' }] } }]",
    )))
    .await;
    assert_eq!(world.get("/").await.0.status, 200);
    let (head, _) = world.send(request("GET", "/", &[("x-fault", "yes")])).await;
    assert_eq!(
        (head.status.as_u16(), head.headers["isthmus-error"].to_str().unwrap()),
        (418, "fault_injected")
    );
    let grpc = [("x-fault", "yes"), ("content-type", "application/grpc")];
    assert_eq!(world.send(request("POST", "/", &grpc)).await.0.headers["grpc-status"], "9");
    world.rules(&(route("    - { backendRefs: [{ name: orders }] }") + &policy(
        "  rules: [{ fault: { delay: { duration: 300ms, fraction: { numerator: 1, denominator: 1 } } } }]",
    )));
    let began = tokio::time::Instant::now();
    assert_eq!(world.get("/").await.0.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_service_limits_the_rate_of_its_callers() {
    let world = World::start(&policy(
        "  traffic: { rateLimits: [{ matches: [{ path: { value: /limited } }], requests: 1, per: 1h, burst: 3, perCaller: true }] }",
    ))
    .await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(world.get("/limited/x").await.0.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    assert_eq!(world.get("/free").await.0.status, 200);
    let config = outbound_config();
    let other = Proxy::start(&world.authority, world.authority.workload("web"), config).await;
    other.tell(&world.source.app.shared.snapshot.load().unwrap());
    let (head, _) = support::apps::fetch(other.http(), "http://orders.shop/limited").await;
    assert_eq!(head.status, 200, "another caller");
}

#[tokio::test]
async fn a_service_limits_what_runs_and_what_waits() {
    let world = World::start(&policy(
        "  traffic: { concurrency: { maxInFlight: 1, maxQueue: 1, queueTimeout: 10s } }",
    ))
    .await;
    let running = world.get("/wait");
    let waiting = async {
        world.until_asked(1).await;
        let second = world.get("/second");
        let third = async {
            // One waits by now, or will be refused instead.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (head, _) = world.get("/third").await;
            assert_eq!(head.status, 503);
            assert_eq!(head.headers["isthmus-error"], "overloaded");
            world.gate.notify_waiters();
        };
        tokio::join!(second, third).0
    };
    let (first, second) = tokio::join!(running, waiting);
    assert_eq!((first.0.status, second.0.status), (StatusCode::OK, StatusCode::OK));
    let targets: Vec<String> = world.arrived().into_iter().map(|asked| asked.target).collect();
    assert_eq!(targets, ["/wait", "/second"]);
}

#[tokio::test]
async fn a_caller_breaks_the_circuit() {
    let world = World::start(&policy("  traffic: { circuitBreaker: { maxRequests: 2 } }")).await;
    let done = Arc::<AtomicUsize>::default();
    let one = || async {
        let (head, _) = world.get("/wait").await;
        done.fetch_add(1, Ordering::Relaxed);
        head.status.as_u16()
    };
    let third = async {
        world.until_asked(2).await;
        let (head, _) = world.get("/wait").await;
        assert_eq!(head.headers["isthmus-error"], "circuit_open");
        world.gate.notify_waiters();
        head.status.as_u16()
    };
    assert_eq!(tokio::join!(one(), one(), third), (200, 200, 503));
    world.answers(&[]);
    assert_eq!(world.get("/").await.0.status, 200, "closed again");
}
