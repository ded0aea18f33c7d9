//! What documents do, each seen from a client or an application.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::scene::Scene;

type Effect = for<'s> fn(&'s Scene) -> Pin<Box<dyn Future<Output = bool> + 's>>;

/// A document, and whether what it says is so. What an effect needs to be
/// seen, it does itself; it may be asked any number of times.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) document: fn() -> String,
    pub(crate) effect: Effect,
}

/// A route for `orders.shop`.
pub(crate) fn route(kind: &str, name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: orders }}]\n  rules:\n    {rules}\n"
    )
}

/// A policy for `orders.shop`.
pub(crate) fn policy(spec: &str) -> String {
    format!(
        "apiVersion: isthmus.io/v1\nkind: TrafficPolicy\n\
         metadata: {{ name: p, namespace: shop }}\nspec:\n  \
         targetRef: {{ kind: Service, name: orders }}\n{spec}\n"
    )
}

fn http(rules: &str) -> String {
    route("HTTPRoute", "r", rules)
}

fn all_orders(more: &str) -> String {
    http(&format!("- {{ backendRefs: [{{ name: orders, port: 80 }}]{more} }}"))
}

pub(crate) const fn family(name: &'static str, document: fn() -> String, effect: Effect) -> Family {
    Family { name, document, effect }
}

pub(crate) const FAMILIES: &[Family] = &[
    family("header filters", header_filters, |scene| {
        Box::pin(async move {
            let target = format!("/headers/{}", scene.number());
            let answer = scene.ask("GET", "orders", &target, "x-gone: 1\r\n").await;
            let heard = scene.heard(&target);
            let Some(arrived) = heard.get("orders").map(|heard| &heard.head) else { return false };
            arrived.contains("x-set: rule\r\n")
                && !arrived.contains("x-gone")
                && answer.field("x-answer") == "rule"
        })
    }),
    family("redirect", redirect, |scene| {
        Box::pin(async move {
            let answer = scene.get("/old/a?b=c").await;
            answer.status == 308 && answer.field("location") == "https://new.example/new/a?b=c"
        })
    }),
    family("rewrite", rewrite, |scene| {
        Box::pin(async move {
            let number = scene.number();
            scene.get(&format!("/app/{number}")).await;
            let arrived = scene.heard(&format!("/{number}"));
            arrived.get("orders").is_some_and(|heard| heard.head.contains("host: inner.example"))
        })
    }),
    family("matches", matches, |scene| {
        Box::pin(async move {
            let canary = scene.ask("GET", "orders", "/", "x-canary: 1\r\n").await;
            let query = scene.get("/?canary=a%20b").await;
            let path = scene.get("/canary/x").await;
            let others = scene.get("/canaryx").await;
            [canary.body, query.body, path.body].iter().all(|body| body == "next")
                && others.body == "orders"
        })
    }),
    family("weights", weights, |scene| Box::pin(halves(scene))),
    family("dstOverrides", dst_overrides, |scene| Box::pin(halves(scene))),
    family("weight 0 of all", no_weight, |scene| {
        Box::pin(async move {
            let answer = scene.get("/").await;
            answer.status == 500 && answer.field("isthmus-error") == "no_backend"
        })
    }),
    family("fault: abort", abort, |scene| {
        Box::pin(async move {
            let answer = scene.ask("GET", "orders", "/", "x-fault: yes\r\n").await;
            answer.field("isthmus-error") == "fault_injected" && answer.status == 418
        })
    }),
    family("fault: delay", delay, |scene| {
        Box::pin(async move {
            let began = Instant::now();
            // Of the two, one is not delayed: a busy machine is no effect.
            scene.get("/").await;
            let plain = began.elapsed();
            scene.ask("GET", "orders", "/", "x-slow: yes\r\n").await;
            began.elapsed() >= plain + Duration::from_millis(700)
        })
    }),
    family(
        "retry",
        || all_orders(", retry: { codes: [503], attempts: 2, backoff: 1ms }"),
        |scene| {
            Box::pin(async move {
                let target = format!("/flaky/{}", scene.number());
                scene.get(&target).await.status == 200
            })
        },
    ),
    family("rate limit", rate_limit, |scene| {
        Box::pin(async move {
            let mut limited = false;
            for _ in 0..4 {
                let answer = scene.get("/limited").await;
                limited |= answer.status == 429 && answer.field("isthmus-error") == "rate_limited";
            }
            limited && scene.get("/free").await.status == 200
        })
    }),
    family("concurrency", concurrency, |scene| {
        Box::pin(async move { one_of_three_is(scene, "overloaded").await })
    }),
    family("circuit breaker", circuit_breaker, |scene| {
        Box::pin(async move { one_of_three_is(scene, "circuit_open").await })
    }),
    family("circuit breaker: connections", max_connections, |scene| {
        Box::pin(async move {
            let mut held = Vec::new();
            // More than workers, of which each may have one.
            for _ in 0..MANY {
                let opening = tokio::time::timeout(Duration::from_secs(20), scene.connect(9000));
                held.push(opening.await.expect("an answer in time").expect("a connection"));
            }
            held.iter()
                .any(|(head, _)| head.starts_with("HTTP/1.1 503 ") && head.contains("circuit_open"))
        })
    }),
    family("affinity", affinity, |scene| {
        Box::pin(async move { scene.get("/").await.field("set-cookie").starts_with("session=") })
    }),
    family("mirror", mirror, |scene| {
        Box::pin(async move {
            let target = format!("/mirrored/{}", scene.number());
            let answer = scene.get(&target).await;
            // Nobody waits for a copy; a second is far more than it takes.
            for _ in 0..20 {
                if scene.heard(&target).contains_key("copy") {
                    return answer.body == "orders";
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        })
    }),
    family(
        "timeout",
        || all_orders(", timeouts: { request: 100ms }"),
        |scene| {
            Box::pin(async move {
                let answer = scene.get("/wait").await;
                answer.status == 504 && answer.field("isthmus-error") == "timeout"
            })
        },
    ),
    family("GRPCRoute", grpc_route, |scene| {
        Box::pin(async move {
            let grpc = "content-type: application/grpc\r\n";
            let taken = scene.ask("POST", "orders", "/shop.Orders/Get", grpc).await;
            let other = scene.ask("POST", "orders", "/shop.Orders/Put", grpc).await;
            taken.body == "next" && other.field("grpc-status") == "12"
        })
    }),
    family("TCPRoute", tcp_route, |scene| {
        Box::pin(async move { scene.bytes(9000, b"GET / HTTP/1.1\r\n\r\n").await == "next" })
    }),
    family("TLSRoute", tls_route, |scene| {
        Box::pin(async move {
            let named = scene.bytes(9443, &hello("next.example")).await;
            // Whatever else is asked for is refused.
            named == "next" && scene.bytes(9443, &hello("other.example")).await.is_empty()
        })
    }),
    family("ServiceProfile", profile, |scene| {
        Box::pin(async move {
            // Declared retryable whatever the method.
            let target = format!("/flaky/profile/{}", scene.number());
            let repeated = scene.ask("POST", "orders", &target, "").await.status == 200;
            repeated && scene.get("/wait").await.status == 504
        })
    }),
];

/// Connections of which some are refused where each worker may have one.
const MANY: usize = 16;

/// Half of the requests go elsewhere, and the others do not.
async fn halves(scene: &Scene) -> bool {
    let mut next = 0;
    for _ in 0..40 {
        match scene.get("/").await.body.as_str() {
            "next" => next += 1,
            "orders" => {}
            // Of weight 0, or an error.
            _ => return false,
        }
    }
    // Half of 40, within five standard deviations.
    (4..=36).contains(&next)
}

/// Three requests at once that take their time: some are served, some are not.
async fn one_of_three_is(scene: &Scene, refused: &str) -> bool {
    let (a, b, c) = tokio::join!(scene.get("/wait"), scene.get("/wait"), scene.get("/wait"));
    let all = [a, b, c];
    all.iter().any(|answer| answer.status == 200)
        && all.iter().any(|answer| answer.field("isthmus-error") == refused)
}

fn header_filters() -> String {
    http(
        "- filters:
        - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: x-set, value: rule }], remove: [x-gone] } }
        - { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-answer, value: rule }] } }
      backendRefs: [{ name: orders, port: 80 }]",
    )
}

fn redirect() -> String {
    http(
        "- matches: [{ path: { value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { scheme: https, hostname: new.example, statusCode: 308, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new } }",
    )
}

fn rewrite() -> String {
    http(
        "- matches: [{ path: { value: /app } }]
      filters: [{ type: URLRewrite, urlRewrite: { hostname: inner.example, path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
      backendRefs: [{ name: orders, port: 80 }]",
    )
}

fn matches() -> String {
    http(
        "- matches:
        - { path: { value: /canary } }
        - { headers: [{ name: x-canary, value: '1' }] }
        - { queryParams: [{ name: canary, type: RegularExpression, value: 'a .' }] }
      backendRefs: [{ name: next, port: 80 }]
    - { backendRefs: [{ name: orders, port: 80 }] }",
    )
}

fn weights() -> String {
    http(
        "- backendRefs:
        - { name: orders, port: 80, weight: 500 }
        - { name: next, port: 80, weight: 500 }
        - { name: copy, port: 80, weight: 0 }",
    )
}

fn no_weight() -> String {
    http("- { backendRefs: [{ name: orders, port: 80, weight: 0 }] }")
}

/// Policies change rules, so there is one.
fn with_rule(spec: &str) -> String {
    format!("{}---\n{}", all_orders(""), policy(spec))
}

fn abort() -> String {
    with_rule(
        "  rules: [{ fault: { abort: { status: 418 }, headers: [{ name: x-fault, value: 'yes' }] } }]",
    )
}

fn delay() -> String {
    with_rule(
        "  rules: [{ fault: { delay: { duration: 700ms }, headers: [{ name: x-slow, value: 'yes' }] } }]",
    )
}

fn rate_limit() -> String {
    policy(
        "  traffic: { rateLimits: [{ matches: [{ path: { value: /limited } }], requests: 1, per: 1h, burst: 2 }] }",
    )
}

fn concurrency() -> String {
    policy("  traffic: { concurrency: { maxInFlight: 1, maxQueue: 0 } }")
}

fn circuit_breaker() -> String {
    policy("  traffic: { circuitBreaker: { maxRequests: 1 } }")
}

fn max_connections() -> String {
    policy("  traffic: { circuitBreaker: { maxConnections: 1 } }")
}

fn dst_overrides() -> String {
    "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\n\
     metadata: { name: orders.shop.svc.cluster.local, namespace: shop }\nspec:\n  dstOverrides:\n  \
     - { authority: orders.shop.svc.cluster.local, weight: 500m }\n  \
     - { authority: 'next.shop.svc.cluster.local:80', weight: 500m }\n"
        .to_owned()
}

fn affinity() -> String {
    policy("  balance: { affinity: { cookie: SESSION } }")
}

fn mirror() -> String {
    http(
        "- filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: copy, port: 80 } } }]
      backendRefs: [{ name: orders, port: 80 }]",
    )
}

fn grpc_route() -> String {
    route(
        "GRPCRoute",
        "g",
        "- { matches: [{ method: { service: shop.Orders, method: Get } }], backendRefs: [{ name: next, port: 80 }] }",
    )
}

fn tcp_route() -> String {
    route("TCPRoute", "t", "- { backendRefs: [{ name: next, port: 9000 }] }")
}

fn tls_route() -> String {
    let rules = "- { backendRefs: [{ name: next, port: 9443 }] }";
    route("TLSRoute", "t", rules).replace("  rules:", "  hostnames: [next.example]\n  rules:")
}

/// What a client of TLS says first, and an end that the application knows.
fn hello(name: &'static str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let roots = rustls::RootCertStore::empty();
    let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    let mut client = rustls::ClientConnection::new(config, name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes.extend_from_slice(b"\r\n\r\n");
    bytes
}

fn profile() -> String {
    "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\n\
     metadata: { name: orders.shop.svc.cluster.local, namespace: shop }\nspec:\n  routes:\n  \
     - { name: flaky, condition: { method: POST, pathRegex: '/flaky/.*' }, isRetryable: true }\n  \
     - { name: wait, condition: { pathRegex: '/wait' }, timeout: 100ms }\n  \
     - { name: rest, condition: { pathRegex: '/.*' } }\n"
        .to_owned()
}
