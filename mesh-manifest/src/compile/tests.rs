use std::collections::BTreeMap;

use mesh_api::v1::route_match::Path;
use mesh_core::rule::Route;

use super::*;
use crate::manifest::read;

fn registry() -> BTreeMap<String, Vec<(String, u16)>> {
    let ports = vec![("http".to_owned(), 80), ("grpc".to_owned(), 9000)];
    ["orders.shop", "orders-v2.shop", "copy.shop"]
        .map(|name| (name.to_owned(), ports.clone()))
        .into()
}

fn compiled(text: &str) -> Compiled {
    compile("orders.shop", &read(text, "t").unwrap(), &registry())
}

fn route(namespace: &str, name: &str, rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{ name: {name}, namespace: {namespace} }}\nspec:\n  \
         parentRefs: [{{ kind: Service, group: core, name: orders, namespace: shop }}]\n  \
         rules: {rules}\n"
    )
}

fn names(compiled: &Compiled) -> Vec<&str> {
    compiled.routes.iter().map(|route| route.name.as_str()).collect()
}

/// All of it is understood by the proxy's own reading.
fn is_understood(compiled: &Compiled) {
    for route in &compiled.routes {
        Route::try_from(route).unwrap();
    }
}

#[test]
fn a_rule_is_carried_whole() {
    let compiled = compiled(&route(
        "shop",
        "a",
        "
  - name: canary
    matches:
      - path: { type: RegularExpression, value: '/v[0-9]+' }
        method: GET
        headers: [{ name: X-A, value: '1' }, { name: x-a, value: '2' }]
        queryParams: [{ type: RegularExpression, name: q, value: 'a|b' }]
    filters:
      - { type: RequestHeaderModifier, requestHeaderModifier: { set: [{ name: a, value: b }] } }
      - { type: ResponseHeaderModifier, responseHeaderModifier: { remove: [server] } }
      - type: RequestMirror
        requestMirror: { backendRef: { name: copy, port: 80 }, percent: 10 }
    backendRefs:
      - { name: orders, port: 80, weight: 9 }
      - { name: orders-v2, port: 9000, weight: 0 }
    timeouts: { request: 1s, backendRequest: 100ms }
    retry: { codes: [503], attempts: 2, backoff: 10ms }",
    ));
    assert_eq!(compiled.problems, []);
    is_understood(&compiled);
    let route = &compiled.routes[0];
    assert_eq!(route.name, "shop/a/canary");
    assert_eq!(route.matches[0].headers.len(), 1, "the first of a name counts");
    assert_eq!(route.matches[0].headers[0].value, "1");
    assert_eq!(route.matches[0].query[0].regex, "a|b");
    let backends: Vec<_> =
        route.backends.iter().map(|b| (b.service.as_str(), b.port.as_str(), b.weight)).collect();
    assert_eq!(backends, [("orders.shop", "http", 9), ("orders-v2.shop", "grpc", 0)]);
    let filters = route.filters.as_ref().unwrap();
    assert_eq!(filters.mirrors[0].fraction.unwrap().numerator, 10);
    assert_eq!((route.request_timeout_ms, route.backend_timeout_ms), (1000, 100));
    assert_eq!(route.retry.as_ref().unwrap().attempts, 2);
}

#[test]
fn the_oldest_comes_first_then_the_alphabet() {
    let text = route("shop", "b", "[{}]") + &route("shop", "a", "[{}, {}]");
    let mut manifests = read(&text, "t").unwrap();
    assert_eq!(
        names(&compile("orders.shop", &manifests, &registry())),
        ["shop/a/0", "shop/a/1", "shop/b/0"]
    );
    manifests[1].created = 7;
    assert_eq!(
        names(&compile("orders.shop", &manifests, &registry())),
        ["shop/b/0", "shop/a/0", "shop/a/1"]
    );
    assert_eq!(compile("copy.shop", &manifests, &registry()), Compiled::default());
}

#[test]
fn routes_of_another_namespace_are_for_its_clients() {
    let compiled = compiled(&(route("web", "c", "[{}]") + &route("shop", "p", "[{}]")));
    let clients: Vec<&str> =
        compiled.routes.iter().map(|route| route.client_namespace.as_str()).collect();
    assert_eq!(clients, ["", "web"]);
}

#[test]
fn backends_that_are_not_there_keep_their_share() {
    let compiled = compiled(&route(
        "shop",
        "a",
        "[{ backendRefs: [{ name: none }, { name: orders, port: 81 }, { kind: Pod, name: x }] }]",
    ));
    let invalid: Vec<&str> =
        compiled.routes[0].backends.iter().map(|b| b.invalid.as_str()).collect();
    assert_eq!(
        invalid,
        [
            "BackendNotFound: there is no service none.shop",
            "BackendNotFound: orders.shop has no port 81",
            "InvalidKind: only Service is carried",
        ]
    );
    is_understood(&compiled);
}

#[test]
fn a_parent_port_that_is_not_there_is_a_problem() {
    let text =
        route("shop", "a", "[{}]").replace("namespace: shop }]", "namespace: shop, port: 81 }]");
    let compiled = compiled(&text);
    assert_eq!(compiled.routes, []);
    assert_eq!(compiled.problems[0].text, "spec.parentRefs.port: orders.shop has no port 81");
    let named = text.replace("port: 81", "port: 9000");
    assert_eq!(
        super::super::compile::compile("orders.shop", &read(&named, "t").unwrap(), &registry())
            .routes[0]
            .port,
        "grpc"
    );
}

#[test]
fn grpc_methods_are_paths() {
    let text = "
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: g, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: orders }]
  rules:
    - matches:
        - method: { service: a.B, method: C }
        - method: { service: a.B }
        - method: { method: C }
        - method: { type: RegularExpression, service: 'a\\..*', method: '[CD]' }
        - headers: [{ name: x, value: y }]
      backendRefs: [{ name: orders, port: 9000 }]";
    let compiled = compiled(text);
    is_understood(&compiled);
    let paths: Vec<_> = compiled.routes[0].matches.iter().map(|one| one.path.clone()).collect();
    assert_eq!(
        paths,
        [
            Some(Path::ExactPath("/a.B/C".into())),
            Some(Path::PathPrefix("/a.B/".into())),
            Some(Path::PathRegex("/[^/]+/C".into())),
            Some(Path::PathRegex("/a\\..*/[CD]".into())),
            None,
        ]
    );
}

#[test]
fn profiles_replace_http_routes() {
    let text = "
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: { name: orders.shop.svc.cluster.local, namespace: shop }
spec:
  routes:
    - name: GET /o/{id}
      condition: { all: [{ method: GET }, { any: [{ pathRegex: '/o/[^/]*' }, { pathRegex: /p }] }] }
      isRetryable: true
      timeout: 300ms
      responseClasses:
        - { condition: { status: { min: 500, max: 501 } }, isFailure: true }
        - { condition: { status: { min: 503 } }, isFailure: true }
        - { condition: { status: { min: 400, max: 599 } } }
  retryBudget: { retryRatio: 0.25, minRetriesPerSecond: 3, ttl: 5s }
  dstOverrides:
    - { authority: 'orders.shop.svc.cluster.local:80', weight: 900m }
    - { authority: orders-v2.shop.svc.cluster.local, weight: 1 }
  opaquePorts: ['3306']
";
    let compiled = compiled(&(text.to_owned() + &route("shop", "a", "[{}]")));
    is_understood(&compiled);
    let profile = "profile/orders.shop.svc.cluster.local";
    assert_eq!(
        names(&compiled),
        [format!("{profile}/GET /o/{{id}}"), format!("{profile}/default")]
    );
    let route = &compiled.routes[0];
    let found: Vec<_> =
        route.matches.iter().map(|one| (one.method.as_str(), one.path.clone())).collect();
    let regex = |text: &str| Some(Path::PathRegex(text.into()));
    assert_eq!(found, [("GET", regex("/o/[^/]*")), ("GET", regex("/p"))]);
    let range = |from, to| v1::StatusRange { from, to };
    // The third class takes all that is left of 5xx, and it is none of failures.
    assert_eq!(route.failures, [range(500, 501), range(503, 503)]);
    assert_eq!(route.retry.as_ref().unwrap().statuses, route.failures);
    assert_eq!(route.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [900, 1000]);
    assert_eq!(compiled.protocols, [(3306, v1::Protocol::Tcp)]);
    let budget = compiled.traffic.as_ref().unwrap().retry_budget.as_ref().unwrap();
    assert_eq!((budget.percent, budget.min_per_second, budget.ttl_ms), (25, 3, 5000));
    assert_eq!(compiled.problems[0].document, "HTTPRoute shop/a");
}

#[test]
fn policies_change_rules_and_protect_services() {
    let policy = "
---
apiVersion: isthmus.io/v1
kind: TrafficPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRef: { kind: Service, name: orders }
  traffic:
    rateLimits: [{ requests: 10, per: 1m, burst: 2, perCaller: true, matches: [{ method: POST }] }]
    concurrency: { maxInFlight: 4, maxQueue: 8, queueTimeout: 100ms }
    circuitBreaker: { maxRequests: 100 }
  rules:
    - { name: canary, fault: { abort: { status: 503, fraction: { numerator: 1 } } } }
    - { retry: { codes: [500], anyMethod: true }, timeouts: { request: 9s }, failures: [404] }
";
    let alone = compiled(policy);
    assert_eq!(names(&alone), ["default"]);
    assert_eq!(alone.routes[0].backends[0].service, "orders.shop");
    assert!(alone.routes[0].fault.is_none(), "only the rule that is named");
    is_understood(&alone);
    let both = compiled(&(route("shop", "a", "[{ name: canary }, {}]") + policy));
    is_understood(&both);
    let faults: Vec<bool> = both.routes.iter().map(|route| route.fault.is_some()).collect();
    assert_eq!(faults, [true, false]);
    assert!(both.routes.iter().all(|route| route.request_timeout_ms == 9000));
    let traffic = both.traffic.unwrap();
    assert_eq!(traffic.rate_limits[0].period_ms, 60_000);
    assert_eq!(traffic.circuit_breaker.unwrap().max_requests, 100);
}

#[test]
fn what_gateway_api_has_no_words_for_is_said_by_policies() {
    let policy = "
---
apiVersion: isthmus.io/v1
kind: TrafficPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRef: { kind: Service, name: orders }
  ruleOrder: Listed
  rules:
    - { responseHeaders: { remove: [server] } }
    - name: admin
      also: [{ method: GET }]
      unless: [{ path: { value: /admin/open } }, { headers: [{ name: host, value: a:80 }] }]
      sources: [10.0.0.0/8]
      notSources: [10.1.0.0/16, '::1']
      reply: { status: 403, headers: [{ name: x-why, value: no }], body: closed }
      rewrite: { pattern: '^/a(.*)', substitution: '/b$1', all: true }
      stripQuery: true
      requestHeaders: { set: [{ name: x-real-ip, value: '%{client_ip}' }] }
";
    let compiled = compiled(&(route("shop", "a", "[{ name: admin }, { name: rest }]") + policy));
    is_understood(&compiled);
    assert!(compiled.traffic.as_ref().unwrap().listed_order);
    let [admin, rest] = compiled.routes.as_slice() else { panic!("there are two") };
    let removes = v1::HeaderChanges { remove: vec!["server".into()], ..Default::default() };
    let both = v1::RouteExtension { response_headers: Some(removes), ..Default::default() };
    assert_eq!(rest.extension, Some(both.clone()));
    let said = admin.extension.clone().unwrap();
    assert_eq!(said.response_headers, both.response_headers, "what was said stays");
    assert_eq!((said.also[0].method.as_str(), said.unless.len()), ("GET", 2));
    assert_eq!((said.sources.len(), said.not_sources.len()), (1, 2));
    let reply = said.reply.unwrap();
    assert_eq!((reply.status, reply.headers[0].name.as_str()), (403, "x-why"));
    assert_eq!(reply.body, "closed");
    let rewrite = said.rewrite.unwrap();
    assert_eq!(
        (rewrite.substitution.as_str(), rewrite.all, said.strip_query),
        ("/b$1", true, true)
    );
    assert_eq!(said.request_headers.unwrap().set[0].value, "%{client_ip}");
}

fn balance(text: &str) -> Result<v1::BalancePolicy, String> {
    let policy = format!(
        "apiVersion: isthmus.io/v1\nkind: TrafficPolicy\nmetadata: {{ name: orders, namespace: \
         shop }}\nspec:\n  targetRef: {{ kind: Service, name: orders }}\n  balance: {text}\n"
    );
    let read = read(&policy, "policy.yaml");
    let manifests = read.map_err(|error| error.to_string())?;
    Ok(compile("orders.shop", &manifests, &registry()).balance.unwrap())
}

#[test]
fn how_requests_are_spread_is_read_and_checked() {
    use mesh_core::balance::BalancePolicy;
    let meant = |text: &str| balance(text).map(|wire| BalancePolicy::try_from(&wire).unwrap());
    assert_eq!(meant("{}"), Ok(BalancePolicy::default()));
    let policy = meant(
        "{ locality: Strict, overprovisioningPercent: 200, panicPercent: 0, slowStart: 0s, subset: \
         0, outlier: { consecutiveFailures: 3, baseEjection: 1s, maxEjection: 5m, \
         maxEjectedPercent: 30, successRate: { off: true } }, affinity: { cookie: SID, cookieTtl: \
         1h, maxLoadPercent: 125 } }",
    );
    let wire = v1::BalancePolicy::from(&policy.unwrap());
    assert_eq!(wire.locality(), v1::LocalityMode::Strict);
    assert_eq!((wire.overprovisioning_percent, wire.panic_percent), (Some(200), Some(0)));
    assert_eq!((wire.slow_start_ms, wire.subset), (Some(0), Some(0)));
    let outlier = wire.outlier.unwrap();
    assert_eq!((outlier.consecutive_failures, outlier.max_ejected_percent), (Some(3), Some(30)));
    assert_eq!((outlier.base_ejection_ms, outlier.max_ejection_ms), (Some(1000), Some(300_000)));
    assert!(outlier.success_rate.unwrap().off);
    let affinity = wire.affinity.unwrap();
    assert_eq!(affinity.by, Some(v1::affinity::By::Cookie("SID".into())));
    assert_eq!((affinity.cookie_ttl_s, affinity.max_load_percent), (3600, 125));
    let by = |text: &str| balance(text).unwrap().affinity.unwrap().by;
    assert_eq!(by("{ affinity: { path: {} } }"), Some(v1::affinity::By::PathDepth(0)));
    assert_eq!(by("{ affinity: { path: { depth: 2 } } }"), Some(v1::affinity::By::PathDepth(2)));
    assert_eq!(by("{ affinity: { query: u } }"), Some(v1::affinity::By::Query("u".into())));
    for (text, wanted) in [
        ("{ locality: near }", "near"),
        ("{ slowstart: 1s }", "slowStart"),
        ("{ overprovisioningPercent: 50 }", "spec.balance.overprovisioningPercent: "),
        ("{ affinity: {} }", "is by one of cookie, applicationCookie, header, source: true"),
        (
            "{ affinity: { cookie: a, source: true } }",
            "is by one of cookie, applicationCookie, header, source: true",
        ),
        (
            "{ affinity: { path: {}, query: a } }",
            "is by one of cookie, applicationCookie, header, source: true",
        ),
        ("{ affinity: { path: { depth: 256 } } }", "depth"),
        ("{ affinity: { header: x-a, cookieTtl: 1s } }", "only with a cookie"),
        ("{ affinity: { cookie: 'a b' } }", "spec.balance.affinity.cookie: "),
        ("{ affinity: { applicationCookie: '' } }", "applicationCookie: is empty"),
        ("{ affinity: { applicationCookie: 'a b' } }", "spec.balance.affinity.applicationCookie: "),
        (
            "{ outlier: { successRate: { minHosts: 1 } } }",
            "spec.balance.outlier.successRate.minHosts: ",
        ),
    ] {
        let error = balance(text).unwrap_err();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn mistakes_in_values_are_named_as_they_are_written() {
    let policy = |spec: &str| {
        let text = format!(
            "apiVersion: isthmus.io/v1\nkind: TrafficPolicy\nmetadata: {{ name: orders, namespace: \
             shop }}\nspec:\n  targetRef: {{ kind: Service, name: orders }}\n  {spec}\n"
        );
        read(&text, "policy.yaml").unwrap_err().to_string()
    };
    for (spec, wanted) in [
        ("traffic: { concurrency: { maxInFlight: 0 } }", "spec.traffic.concurrency.maxInFlight: "),
        ("traffic: { replayBytes: 99999999 }", "spec.traffic.replayBytes: "),
        ("traffic: { rateLimits: [{ requests: 0 }] }", "spec.traffic.rateLimits.requests: "),
        ("ruleOrder: Random", "spec.ruleOrder"),
        ("rules: [{}, { name: r, sources: [10.0.0.0/40] }]", "spec.rules[1].sources: "),
        ("rules: [{ name: r, notSources: [a] }]", "spec.rules[0].notSources: "),
        ("rules: [{ name: r, reply: { status: 99 } }]", "spec.rules[0].reply.status: "),
        (
            "rules: [{ name: r, rewrite: { pattern: '(', substitution: '' } }]",
            "spec.rules[0].rewrite.pattern: ",
        ),
        (
            "rules: [{ name: r, rewrite: { pattern: a, substitution: $1 } }]",
            "spec.rules[0].rewrite: substitution: the pattern has no group",
        ),
        (
            "rules: [{ name: r, requestHeaders: { set: [{ name: x-a, value: '%{who}' }] } }]",
            "spec.rules[0].requestHeaders: %{who} is not known",
        ),
        ("rules: [{ name: r, unless: [{ method: 'G T' }] }]", "spec.rules[0].matches.method: "),
        ("rules: [{ name: r, retry: { codes: [99] } }]", "spec.rules[0].retry.codes: "),
    ] {
        let error = policy(spec);
        assert!(error.contains(wanted), "{spec}: {error}");
    }
}

#[test]
fn annotations_of_linkerd_are_obeyed() {
    let text = route("shop", "a", "[{}]").replace(
        "namespace: shop }\nspec",
        "namespace: shop, annotations: { retry.linkerd.io/http: '5xx,429', \
         retry.linkerd.io/grpc: unavailable, retry.linkerd.io/limit: '2', \
         retry.linkerd.io/timeout: 40ms, timeout.linkerd.io/request: 1s } }\nspec",
    );
    let compiled = compiled(&text);
    let route = &compiled.routes[0];
    let retry = route.retry.as_ref().unwrap();
    let statuses: Vec<_> = retry.statuses.iter().map(|range| (range.from, range.to)).collect();
    assert_eq!(statuses, [(500, 599), (429, 429)]);
    assert_eq!((retry.attempts, retry.grpc_codes.as_slice()), (2, [14].as_slice()));
    assert_eq!((route.request_timeout_ms, route.backend_timeout_ms), (1000, 40));
    let wrong = text.replace("5xx,429", "6yy");
    assert!(read(&wrong, "t").unwrap_err().to_string().contains("retry.linkerd.io/http"));
}

fn connections(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{ name: {name}, namespace: shop }}\nspec:\n  \
         parentRefs: [{{ kind: Service, name: orders, port: 9000 }}]\n  {spec}\n"
    )
}

#[test]
fn connections_have_routes_of_their_own() {
    let rules = "rules: [{ backendRefs: [{ name: orders-v2, port: 80, weight: 2 }] }]";
    let tls = format!("hostnames: [a.example.com, '*.b']\n  {rules}");
    let both = [connections("TCPRoute", "a", rules), connections("TLSRoute", "b", &tls)];
    let compiled = compiled(&both.concat());
    assert_eq!((compiled.problems, compiled.routes), (Vec::new(), Vec::new()));
    let [first, second] = compiled.connection_routes.as_slice() else { panic!("there are two") };
    assert_eq!((first.name.as_str(), first.tls), ("shop/b/0", true));
    assert_eq!(first.hostnames, ["a.example.com", "*.b"]);
    assert_eq!((second.name.as_str(), second.tls), ("shop/a/0", false));
    for route in [first, second] {
        assert_eq!(route.port, "grpc");
        assert_eq!((route.backends[0].port.as_str(), route.backends[0].weight), ("http", 2));
        mesh_core::rule::ConnectionRoute::try_from(route).unwrap();
    }
}

#[test]
fn what_connections_cannot_have_is_refused() {
    let rule = "{ backendRefs: [{ name: orders }] }";
    let change = "{ type: RequestHeaderModifier, requestHeaderModifier: {} }";
    let filtered = format!("rules: [{{ backendRefs: [{{ name: orders, filters: [{change}] }}] }}]");
    for (kind, spec, wanted) in [
        ("TCPRoute", format!("hostnames: [a.b]\n  rules: [{rule}]"), "unknown field `hostnames`"),
        ("TLSRoute", format!("hostnames: [a.b]\n  rules: [{rule}, {rule}]"), "must be one, not 2"),
        ("TLSRoute", "hostnames: [a.b]".to_owned(), "must be one, not 0"),
        ("TLSRoute", format!("hostnames: ['a.*']\n  rules: [{rule}]"), "connection_routes.host"),
        ("TLSRoute", format!("hostnames: [10.0.0.1]\n  rules: [{rule}]"), "is an address"),
        ("TLSRoute", filtered, "spec.rules[0].backendRefs[0].filters"),
    ] {
        let error = read(&connections(kind, "a", &spec), "t").unwrap_err().to_string();
        assert!(error.contains(wanted), "{spec}: {error}");
    }
}

#[test]
fn the_first_class_that_holds_decides() {
    let failures = |classes: &str| {
        let text = format!(
            "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\n\
             metadata: {{ name: orders.shop.svc.cluster.local, namespace: shop }}\nspec:\n  routes:\n  \
             - {{ name: r, condition: {{ method: GET }}, responseClasses: [{classes}] }}\n"
        );
        let found = compiled(&text).routes.swap_remove(0).failures;
        found.iter().map(|range| (range.from, range.to)).collect::<Vec<_>>()
    };
    let class = |from: u16, to: u16, fails: bool| {
        format!("{{ condition: {{ status: {{ min: {from}, max: {to} }} }}, isFailure: {fails} }}")
    };
    let cases = [
        (String::new(), vec![(500, 599)]),
        (class(404, 404, true), vec![(404, 404), (500, 599)]),
        (class(501, 501, false), vec![(500, 500), (502, 599)]),
        ([class(500, 500, true), class(500, 599, false)].join(","), vec![(500, 500)]),
        // Nothing is, and 5xx neither: a status that no answer has.
        (class(500, 599, false), vec![(100, 100)]),
    ];
    for (classes, wanted) in cases {
        assert_eq!(failures(&classes), wanted, "{classes}");
    }
}
