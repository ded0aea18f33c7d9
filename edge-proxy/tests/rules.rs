//! What rules do with requests, through two real proxies: each test gives its
//! rules as the documents that people write.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use socket2::SockRef;
use support::{
    Proxy,
    apps::{fetch, full, http1, read},
    caller::wait,
    outbound_config,
    rules::{World, document, policy, request, route},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

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

/// Requests to either port of `orders.shop` go to `next` where the route is
/// for it.
#[tokio::test]
async fn a_route_is_for_its_parents_and_for_nobody_else() {
    let world = World::start(&route("    - { backendRefs: [{ name: copy }] }")).await;
    let (orders, next) = ("orders", "next");
    let cases = [
        ("kind: Service, name: orders", [next, next]),
        ("group: '', kind: Service, name: orders", [next, next]),
        ("group: core, kind: Service, name: orders", [next, next]),
        ("group: shop.example, kind: Service, name: orders", [orders, orders]),
        ("kind: Gateway, name: orders", [orders, orders]),
        ("kind: Service, name: copy", [orders, orders]),
        ("kind: Service, name: orders, namespace: shop", [next, next]),
        ("kind: Service, name: orders, namespace: other", [orders, orders]),
        ("kind: Service, name: orders, port: 80", [next, orders]),
        ("kind: Service, name: orders, port: 81", [orders, next]),
        ("kind: Service, name: orders, sectionName: more", [orders, next]),
    ];
    for (parent, wanted) in cases {
        let parents = format!("parentRefs: [{{ {parent} }}]");
        let rule = "    - { backendRefs: [{ name: next, port: 80 }] }";
        world.rules(&document("HTTPRoute", &parents, rule));
        let reached = [world.get("/").await.1, world.get(":81/").await.1];
        assert_eq!(reached, wanted, "{parent}");
    }
}

/// Gateways choose by host name; in a mesh the service has been named already.
#[tokio::test]
async fn host_names_of_a_route_change_nothing() {
    let world = World::start(&route("    - { backendRefs: [{ name: copy }] }")).await;
    let spec = "parentRefs: [{ kind: Service, name: orders }]\n  hostnames: [other.example]";
    let rule = "    - { backendRefs: [{ name: next, port: 80 }] }";
    for kind in ["HTTPRoute", "GRPCRoute"] {
        world.rules(&document(kind, spec, rule));
        let grpc = request("POST", "/s/M", &[("content-type", "application/grpc")]);
        assert_eq!(world.send(grpc).await.1, "next", "{kind}");
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
async fn copies_for_nobody_are_counted_and_fail_no_request() {
    let rule = |to: &str| {
        route(&format!(
            "    - filters: [{{ type: RequestMirror, requestMirror: {{ backendRef: {{ {to} }} }} }}]\n      \
             backendRefs: [{{ name: orders }}]"
        ))
    };
    let world = World::start("").await;
    let skipped = "isthmus_proxy_mirror_skipped_total";
    for (n, to) in
        ["name: missing, port: 80", "name: missing", "name: copy, port: 9"].iter().enumerate()
    {
        world.rules(&rule(to));
        assert_eq!(world.get("/").await.1, "orders", "{to}");
        let wanted = format!("{skipped} {}\n", n + 1);
        let counted = async {
            while !world.source.metrics().contains(&wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        wait(counted).await;
    }
    assert_eq!(world.arrived().len(), 3, "no copy went elsewhere");
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
async fn what_got_no_answer_is_repeated_unless_the_policy_says_no() {
    let retries = |retry: &str| {
        route(
            "    - { name: r, backendRefs: [{ name: orders }], timeouts: { backendRequest: 100ms } }",
        ) + &policy(&format!("  rules: [{{ retry: {retry} }}]"))
    };
    let world = World::start(&retries("{ attempts: 1, backoff: 1ms }")).await;
    for (retry, times) in [
        ("{ attempts: 2, backoff: 1ms }", 3),
        ("{ attempts: 2, codes: [503], unanswered: false, backoff: 1ms }", 1),
        ("{ attempts: 0 }", 1),
    ] {
        world.rules(&retries(retry));
        world.arrived();
        assert_eq!(world.get("/wait").await.0.status, 504, "{retry}");
        assert_eq!(world.arrived().len(), times, "{retry}");
    }
    world.rules(&retries("{ attempts: 2, codes: [503], unanswered: false, backoff: 1ms }"));
    world.arrived();
    world.answers(&[503, 503]);
    assert_eq!(world.get("/").await.0.status, 200);
    assert_eq!(world.arrived().len(), 3, "answers are repeated");
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
    let (head, _) = fetch(other.http(), "http://orders.shop/limited").await;
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

/// Of two that wait one gives up: there is room for a third.
#[tokio::test]
async fn who_gives_up_while_it_waits_makes_room() {
    let world = World::start(&policy(
        "  traffic: { concurrency: { maxInFlight: 1, maxQueue: 1, queueTimeout: 60s } }",
    ))
    .await;
    let running = world.get("/wait");
    let others = async {
        world.until_asked(1).await;
        let mut second = TcpStream::connect(world.source.http()).await.unwrap();
        second.write_all(b"GET /second HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(200), second.read_u8()).await;
        assert!(waits.is_err(), "{waits:?}");
        // A reset: who has only ended its direction still waits.
        SockRef::from(&second).set_linger(Some(Duration::ZERO)).unwrap();
        drop(second);
        let room = async {
            let refused = |answer: (http::response::Parts, String)| answer.0.status == 503;
            let soon = Duration::from_millis(200);
            while tokio::time::timeout(soon, world.get("/third")).await.is_ok_and(refused) {}
        };
        wait(room).await;
        world.gate.notify_waiters();
    };
    assert_eq!(tokio::join!(running, others).0.0.status, 200);
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
