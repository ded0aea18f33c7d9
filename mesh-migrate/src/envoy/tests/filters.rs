//! Filters of HTTP and of connections, and chains by address: what Envoy does, as it was
//! seen of Envoy 1.40.0, and ours.

use super::*;

const HEAD: &str = "static_resources:
  clusters:
  - {name: a, load_assignment: {cluster_name: a, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}]}]}}
  - {name: b, load_assignment: {cluster_name: b, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}}]}]}}
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 8080}}
";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
pub(super) const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";

/// What Envoy and ours do: a status, endpoints, or nothing.
pub(super) fn both(config: &str, request: &Request) -> [String; 2] {
    let config = Config::read(&Source::of("e", config)).unwrap_or_else(|e| panic!("{e}"));
    let (program, _) = convert(&config);
    [explain(&config, request), decide(&program, request)].map(|answer| match &answer.outcome {
        Outcome::Answered { status, headers, .. } => {
            let allowed = headers.iter().find(|(name, _)| name == "access-control-allow-origin");
            let allowed = allowed.map(|(_, origin)| format!(" {origin}")).unwrap_or_default();
            format!("{status}{allowed}")
        }
        Outcome::Forwarded(to) => {
            let all: Vec<_> = endpoints(&answer).into_iter().collect();
            format!("{} {}", all.join(" "), to.target.as_deref().unwrap_or_default())
        }
        Outcome::Closed => "closed".into(),
    })
}

pub(super) fn ask(method: &str, target: &str, headers: &[(&str, &str)], source: &str) -> Request {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let http = Http {
        method: method.into(),
        host: Some("h".into()),
        target: target.into(),
        headers,
        is_http10: false,
    };
    Request { listener: Some("l".into()), source: source.parse().unwrap(), kind: Kind::Http(http) }
}

pub(super) fn http(filters: &str, routes: &str) -> String {
    format!(
        "{HEAD}    filter_chains:
    - filters:
      - name: h
        typed_config:
          '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: h
          use_remote_address: true
          http_filters:
{filters}
          - {{name: r, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}
          route_config:
            virtual_hosts:
            - name: v
              domains: ['*']
              routes:
{routes}
"
    )
}

#[test]
fn who_is_admitted_is_said_by_rules() {
    let filters = format!(
        "          - name: who
            typed_config:
              '@type': {RBAC}
              rules:
                action: ALLOW
                policies:
                  inside: {{permissions: [{{any: true}}], principals: [{{direct_remote_ip: {{address_prefix: 10.1.0.0, prefix_len: 16}}}}, {{remote_ip: {{address_prefix: 10.2.0.0, prefix_len: 16}}}}]}}
                  key: {{permissions: [{{and_rules: {{rules: [{{url_path: {{path: {{prefix: /k}}}}}}, {{not_rule: {{header: {{name: ':method', string_match: {{exact: DELETE}}}}}}}}]}}}}], principals: [{{header: {{name: x-key, present_match: true}}}}]}}"
    );
    let routes = "              - match: {prefix: /open}
                route: {cluster: b}
                typed_per_filter_config: {who: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute}}
              - match: {prefix: /never}
                route: {cluster: b}
                typed_per_filter_config: {who: {'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, rbac: {rules: {action: DENY, policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}}}}
              - match: {prefix: /}
                route: {cluster: a}";
    let config = http(&filters, routes);
    let plain = http(&filters, "              - {match: {prefix: /}, route: {cluster: a}}");
    let key = [("x-key", "1")];
    for (request, expected) in [
        (ask("GET", "/x", &[], "10.1.2.3"), "10.0.0.1:80 /x"),
        (ask("GET", "/x", &[], "10.2.2.3"), "10.0.0.1:80 /x"),
        (ask("GET", "/x", &[], "10.3.2.3"), "403"),
        (ask("GET", "/k?q", &key, "10.3.2.3"), "10.0.0.1:80 /k?q"),
        (ask("DELETE", "/k", &key, "10.3.2.3"), "403"),
        (ask("GET", "/x", &key, "10.3.2.3"), "403"),
    ] {
        assert_eq!(both(&plain, &request), [expected, expected], "{request:?}");
        assert_eq!(both(&config, &request), [expected, expected], "{request:?}");
    }
    for (target, expected) in [("/open", "10.0.0.2:80 /open"), ("/never", "403")] {
        let request = ask("GET", target, &[], "10.3.0.1");
        assert_eq!(both(&config, &request), [expected, expected]);
    }
    let inside = ask("GET", "/never", &[], "10.1.0.1");
    assert_eq!(both(&config, &inside), ["403", "403"]);
}

#[test]
fn nobody_comes_round_by_a_path_that_is_not_resolved() {
    let filters = format!(
        "          - {{name: who, typed_config: {{'@type': {RBAC}, rules: {{action: DENY, policies: {{p: {{permissions: [{{url_path: {{path: {{prefix: /in}}}}}}], principals: [{{any: true}}]}}}}}}}}}}"
    );
    let config = http(&filters, "              - {match: {prefix: /}, route: {cluster: a}}")
        .replace(
            "          use_remote_address: true",
            "          normalize_path: true\n          merge_slashes: true",
        );
    for path in
        ["/in", "/a/../in", "/./in", "//in", "/a/%2E%2e/in", "/%2e/in", "/%69n", r"/a\..\in"]
    {
        assert_eq!(both(&config, &ask("GET", path, &[], "10.1.2.3")), ["403", "403"], "{path}");
    }
    for path in ["/a", "/a.b/..c/...", "/a?x=/../in//", "/.well-known/x", "/a%20b"] {
        let there = format!("10.0.0.1:80 {path}");
        let request = ask("GET", path, &[], "10.1.2.3");
        assert_eq!(both(&config, &request), [there.clone(), there], "{path}");
    }
}

#[test]
fn routes_switch_filters_on_and_off() {
    let rbac = format!(
        "          - {{name: who, disabled: true, typed_config: {{'@type': {RBAC}, rules: {{action: DENY, policies: {{all: {{permissions: [{{any: true}}], principals: [{{any: true}}]}}}}}}}}}}\n"
    );
    let own = "{'@type': type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute, rbac: {rules: {action: DENY, policies: {b: {permissions: [{any: true}], principals: [{header: {name: x-b, present_match: true}}]}}}}}";
    let switch = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";
    let route = |path: &str, says: &str| {
        format!(
            "              - {{match: {{prefix: {path}}}, route: {{cluster: a}}, typed_per_filter_config: {{who: {says}}}}}\n"
        )
    };
    let routes = [
        route("/on", &format!("{{{switch}, config: {{}}}}")),
        route("/own", own),
        route("/within", &format!("{{{switch}, config: {own}}}")),
        route("/off", &format!("{{{switch}, disabled: true}}")),
        "              - {match: {prefix: /}, route: {cluster: b}}".to_owned(),
    ];
    let config = http(&rbac, &routes.concat());
    let get =
        |path: &str, header: &str| both(&config, &ask("GET", path, &[(header, "1")], "10.1.2.3"));
    assert_eq!(get("/on", "x-a"), ["403"; 2]);
    for path in ["/own", "/within"] {
        assert_eq!(get(path, "x-b"), ["403"; 2], "{path}");
        assert_eq!(
            get(path, "x-a"),
            [format!("10.0.0.1:80 {path}"), format!("10.0.0.1:80 {path}")]
        );
    }
    assert_eq!(get("/off", "x-a"), ["10.0.0.1:80 /off"; 2]);
    assert_eq!(get("/", "x-a"), ["10.0.0.2:80 /"; 2]);
    // Who asks in a way that is not read lets nobody in where it is on.
    let jwt = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication";
    let at = rbac.find("typed_config").unwrap();
    let asks = format!("{}typed_config: {{'@type': {jwt}}}}}\n", &rbac[..at]);
    for (filter, wanted) in
        [(asks.clone(), "10.0.0.2:80 /"), (asks.replace("disabled: true, ", ""), "501")]
    {
        let config = http(&filter, &routes.concat());
        let [_, ours] = both(&config, &ask("GET", "/", &[], "10.1.2.3"));
        assert_eq!(ours, wanted);
        let [_, ours] = both(&config, &ask("GET", "/on", &[], "10.1.2.3"));
        assert_eq!(ours, "501");
        let [_, ours] = both(&config, &ask("GET", "/off", &[], "10.1.2.3"));
        assert_eq!(ours, "10.0.0.1:80 /off");
    }
    // Nor where chance chooses who is asked.
    let weighted = format!(
        "              - {{match: {{prefix: /}}, route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1}}, {{name: b, weight: 1, typed_per_filter_config: {{who: {own}}}}}]}}}}}}"
    );
    let [_, ours] = both(&http(&rbac, &weighted), &ask("GET", "/", &[], "10.1.2.3"));
    assert_eq!(ours, "501");
}

#[test]
fn protocols_of_upgrade_are_those_of_the_route() {
    let routes = "              - {match: {prefix: /ws}, route: {cluster: a, upgrade_configs: [{upgrade_type: websocket}]}}
              - {match: {prefix: /no}, route: {cluster: a, upgrade_configs: [{upgrade_type: tunnel, enabled: false}]}}
              - {match: {prefix: /}, route: {cluster: b}}";
    let with = |config: &str, path: &str, to: &str| {
        let asks = [("connection", "keep-alive, Upgrade"), ("upgrade", to)];
        both(config, &ask("GET", path, &asks, "10.1.2.3"))
    };
    let config = http("", routes);
    assert_eq!(with(&config, "/ws", "WebSocket"), ["10.0.0.1:80 /ws"; 2]);
    assert_eq!(with(&config, "/ws", "other"), ["403"; 2]);
    assert_eq!(with(&config, "/x", "websocket"), ["403"; 2]);
    let config = config.replace(
        "          use_remote_address: true",
        "          use_remote_address: true\n          upgrade_configs: [{upgrade_type: tunnel}]",
    );
    assert_eq!(with(&config, "/x", "tunnel"), ["10.0.0.2:80 /x"; 2]);
    assert_eq!(with(&config, "/no", "tunnel"), ["403"; 2]);
    let all = config.replace(routes, routes.lines().last().unwrap());
    assert_eq!(with(&all, "/x", "tunnel"), ["10.0.0.2:80 /x"; 2]);
    assert_eq!(with(&all, "/x", "websocket"), ["403"; 2]);
}

#[test]
fn hosts_have_their_ports_where_only_virtual_hosts_leave_them_out() {
    let routes = "              - {match: {prefix: /, headers: [{name: ':authority', string_match: {exact: h}}]}, route: {cluster: a}}
              - {match: {prefix: /}, route: {cluster: b}}";
    let config = http("", routes)
        .replace("route_config:", "route_config:\n            ignore_port_in_host_matching: true");
    let mut request = ask("GET", "/", &[], "10.1.2.3");
    assert_eq!(both(&config, &request), ["10.0.0.1:80 /"; 2]);
    if let Kind::Http(http) = &mut request.kind {
        http.host = Some("h:8080".into());
    }
    assert_eq!(both(&config, &request), ["10.0.0.2:80 /"; 2]);
}

#[test]
fn path_and_query_are_asked_for_together() {
    let routes = "              - {match: {prefix: /, headers: [{name: ':path', string_match: {suffix: .map}}]}, direct_response: {status: 403}}
              - {match: {prefix: /, headers: [{name: ':path', string_match: {contains: 'x=1'}, invert_match: true}]}, route: {cluster: a}}
              - {match: {prefix: /}, route: {cluster: b}}";
    for (target, wanted) in [
        ("/a.map", "403"),
        ("/a?b=.map", "403"),
        ("/a.map?b", "10.0.0.1:80 /a.map?b"),
        ("/a?x=1", "10.0.0.2:80 /a?x=1"),
    ] {
        assert_eq!(both(&http("", routes), &ask("GET", target, &[], "10.1.2.3")), [wanted; 2]);
    }
}

#[test]
fn who_cannot_be_asked_for_is_told() {
    let filters = format!(
        "          - name: who
            typed_config: {{'@type': {RBAC}, rules: {{policies: {{p: {{permissions: [{{any: true}}], principals: [{{metadata: {{filter: f, path: [{{key: k}}], value: {{bool_match: true}}}}}}]}}}}}}}}"
    );
    let jwt = "          - {name: who, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication}}";
    for filters in [filters.as_str(), jwt] {
        let config = http(filters, "              - {match: {prefix: /}, route: {cluster: a}}");
        let config = Config::read(&Source::of("e", &config)).unwrap();
        let (program, ledger) = convert(&config);
        let asks = |entry: &Entry| matches!(&entry.verdict, Verdict::Decision { question, .. } if question.contains("nobody comes in"));
        assert!(ledger.entries().iter().any(asks), "{filters}");
        let answer = decide(&program, &ask("GET", "/", &[], "10.1.2.3"));
        assert!(
            matches!(answer.outcome, Outcome::Answered { status: 501, .. }),
            "{filters}: {answer:?}"
        );
    }
}

#[test]
fn chains_and_filters_of_connections_know_addresses() {
    let chain = |criteria: &str, cluster: &str| {
        format!(
            "{criteria} filters: [{{name: t, typed_config: {{'@type': {TCP}, stat_prefix: t, cluster: {cluster}}}}}]"
        )
    };
    let ranges = |range: &str| format!("filter_chain_match: {{source_prefix_ranges: [{range}]}},");
    let wide = chain(&ranges("{address_prefix: 10.0.0.0, prefix_len: 8}"), "a");
    let narrow = chain(&ranges("{address_prefix: 10.1.0.0, prefix_len: 16}"), "b");
    let config = format!("{HEAD}    filter_chains: [{{{wide}}}, {{{narrow}}}]\n");
    let connection = |source: &str| Request {
        listener: Some("l".into()),
        source: source.parse().unwrap(),
        kind: Kind::Connection { server_name: None },
    };
    for (source, expected) in
        [("10.1.0.9", "10.0.0.2:80 "), ("10.9.0.9", "10.0.0.1:80 "), ("192.0.2.1", "closed")]
    {
        assert_eq!(both(&config, &connection(source)), [expected, expected], "{source}");
    }
    let admit = |action: &str| {
        let rules = format!(
            "{{action: {action}, policies: {{p: {{permissions: [{{any: true}}], principals: [{{direct_remote_ip: {{address_prefix: 10.1.0.0, prefix_len: 16}}}}]}}}}}}"
        );
        format!(
            "{HEAD}    filter_chains:
    - filters:
      - {{name: who, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: who, rules: {rules}}}}}
      - {{name: t, typed_config: {{'@type': {TCP}, stat_prefix: t, cluster: a}}}}
"
        )
    };
    for (action, source, expected) in [
        ("ALLOW", "10.1.0.9", "10.0.0.1:80 "),
        ("ALLOW", "10.2.0.9", "closed"),
        ("DENY", "10.1.0.9", "closed"),
        ("DENY", "10.2.0.9", "10.0.0.1:80 "),
    ] {
        assert_eq!(both(&admit(action), &connection(source)), [expected, expected], "{action}");
    }
}

#[test]
fn origins_that_are_named_are_answered() {
    let filters = "          - {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}";
    let routes = "              - match: {prefix: /}
                route: {cluster: a}
                typed_per_filter_config: {c: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy, allow_origin_string_match: [{exact: 'https://a'}, {exact: 'https://b'}], allow_methods: GET}}";
    let config = http(filters, routes);
    let preflight = |origin| {
        let asked = [("origin", origin), ("access-control-request-method", "GET")];
        ask("OPTIONS", "/x", &asked, "10.1.2.3")
    };
    for (request, expected) in [
        (preflight("https://b"), "200 https://b"),
        (preflight("https://c"), "10.0.0.1:80 /x"),
        (ask("OPTIONS", "/x", &[("origin", "https://a")], "10.1.2.3"), "10.0.0.1:80 /x"),
        (ask("GET", "/x", &[("origin", "https://a")], "10.1.2.3"), "10.0.0.1:80 /x"),
    ] {
        assert_eq!(both(&config, &request), [expected, expected], "{request:?}");
    }
}

#[test]
fn templates_and_escapes_of_paths() {
    let routes = "              - match: {path_match_policy: {name: m, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig, path_template: '/m/{kind}/*/{file=**}'}}}
                route: {cluster: b, path_rewrite_policy: {name: w, typed_config: {'@type': type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig, path_template_rewrite: '/{file}/of/{kind}'}}}
              - {match: {prefix: /}, route: {cluster: a}}";
    let config = http("", routes).replace(
        "          use_remote_address: true",
        "          path_with_escaped_slashes_action: REJECT_REQUEST",
    );
    for (target, expected) in [
        ("/m/img/x/a/b.png?q", "10.0.0.2:80 /a/b.png/of/img?q"),
        ("/m/img/x", "10.0.0.1:80 /m/img/x"),
        ("/a%2Fb", "400"),
        ("/a?%2F", "10.0.0.1:80 /a?%2F"),
    ] {
        let request = ask("GET", target, &[], "10.1.2.3");
        assert_eq!(both(&config, &request), [expected, expected], "{target}");
    }
}

#[test]
fn the_scheme_is_asked_for() {
    let routes = "              - {match: {prefix: /, headers: [{name: ':scheme', string_match: {exact: https}}]}, route: {cluster: b}}
              - {match: {prefix: /}, route: {cluster: a}}";
    let config = http("", routes);
    let believed = config.replace("          use_remote_address: true\n", "");
    let request = ask("GET", "/", &[("x-forwarded-proto", "https")], "10.1.2.3");
    assert_eq!(both(&config, &request), ["10.0.0.1:80 /"; 2]);
    assert_eq!(both(&believed, &request), ["10.0.0.2:80 /"; 2]);
    assert_eq!(both(&believed, &ask("GET", "/", &[], "10.1.2.3")), ["10.0.0.1:80 /"; 2]);
}

#[test]
fn one_of_several_clusters_has_headers_of_its_own() {
    let clusters = "{clusters: [{name: a, weight: 1, request_headers_to_add: [{header: {key: X-Lane, value: a}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}], response_headers_to_remove: [x-b]}, {name: b, weight: 2, request_headers_to_add: [{header: {key: x-of-route, value: b}}]}]}";
    let routes = format!(
        "              - match: {{prefix: /}}
                route: {{weighted_clusters: {clusters}}}
                request_headers_to_add: [{{header: {{key: x-of-route, value: r}}}}]"
    );
    let config = Config::read(&Source::of("e", &http("", &routes))).unwrap();
    let (program, ledger) = convert(&config);
    let crate::program::Accepts::Http { rules, .. } = &program.listeners[0].accepts else {
        panic!("{program:?}")
    };
    let [_upgrades, rule] = rules.as_slice() else { panic!("{rules:?}") };
    let crate::program::Then::Forward(forward) = &rule.then else { panic!("{rules:?}") };
    let [own] = forward.own.as_slice() else { panic!("{forward:?}") };
    assert_eq!((own.at, own.set.as_slice()), (0, [("x-lane".into(), "a".into())].as_slice()));
    assert_eq!(own.remove_answer, ["x-b"]);
    let asks = |entry: &Entry| matches!(&entry.verdict, Verdict::Decision { question, .. } if question.contains("what the route says"));
    assert_eq!(ledger.entries().iter().filter(|entry| asks(entry)).count(), 1);
}

#[test]
fn headers_with_underscores_are_nobodys_where_envoy_drops_them() {
    let routes = "              - {match: {prefix: /, headers: [{name: x_lane, string_match: {exact: b}}]}, route: {cluster: b}}
              - {match: {prefix: /}, route: {cluster: a}}";
    let config = http("", routes);
    let lane = ask("GET", "/", &[("x_lane", "b")], "10.1.2.3");
    assert_eq!(both(&config, &lane), ["10.0.0.2:80 /"; 2]);
    let drops = config.replace(
        "          use_remote_address: true",
        "          common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER}",
    );
    assert_eq!(both(&drops, &lane), ["10.0.0.1:80 /"; 2]);
    let refuses = drops.replace("DROP_HEADER", "REJECT_REQUEST");
    assert_eq!(both(&refuses, &lane), ["400", "10.0.0.1:80 /"]);
    assert_eq!(both(&refuses, &ask("GET", "/", &[], "10.1.2.3")), ["10.0.0.1:80 /"; 2]);
}

#[test]
fn how_many_must_be_well_is_as_it_is_said() {
    let routes = "              - {match: {prefix: /}, route: {cluster: a}}";
    for (said, wanted) in [
        ("", None),
        ("healthy_panic_threshold: {}", Some(0)),
        ("healthy_panic_threshold: {value: 33.4}", Some(33)),
    ] {
        let with = format!("{{name: a, common_lb_config: {{{said}}}, ");
        let text = http("", routes).replacen("{name: a, ", &with, 1);
        let config = Config::read(&Source::of("e", &text)).unwrap_or_else(|e| panic!("{e}"));
        let (program, _) = convert(&config);
        let found: Vec<_> = program.pools.values().map(|pool| pool.panic_percent).collect();
        assert_eq!(found, [wanted, None], "{said}");
    }
}

#[test]
fn redirects_lead_to_http_and_https_and_leave_out_ports_that_those_mean() {
    let redirected = |fields: &str| {
        let routes = format!("              - {{match: {{prefix: /}}, redirect: {{{fields}}}}}");
        let config = Config::read(&Source::of("e", &http("", &routes))).unwrap();
        let (program, ledger) = convert(&config);
        let request = ask("GET", "/x", &[], "10.1.2.3");
        let to = [explain(&config, &request), decide(&program, &request)].map(|answer| {
            let Outcome::Answered { status, headers, .. } = answer.outcome else { panic!() };
            let location = headers.into_iter().find(|(name, _)| name == "location");
            format!("{status} {}", location.map(|(_, to)| to).unwrap_or_default())
        });
        let told: Vec<_> = ledger.entries().iter().map(|e| format!("{:?}", e.verdict)).collect();
        (to, told.join("\n"))
    };
    let (to, told) = redirected("https_redirect: true, port_redirect: 443");
    assert_eq!(to, ["301 https://h:443/x", "301 https://h/x"]);
    assert!(told.contains("Location is without :443"), "{told}");
    let (to, told) = redirected("scheme_redirect: http, port_redirect: 443");
    assert_eq!(to, ["301 http://h:443/x"; 2]);
    assert!(!told.contains("Location is without"), "{told}");
    let (to, told) = redirected("scheme_redirect: ftp");
    assert_eq!(to[1], "501 ");
    assert!(told.contains("not to ftp"), "{told}");
}

#[test]
fn another_protocol_has_to_be_switched_on() {
    let routes = "              - {match: {prefix: /}, route: {cluster: a}}";
    let config = http("", routes);
    let web_socket = [("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")];
    let asked = ask("GET", "/x", &web_socket, "10.1.2.3");
    assert_eq!(both(&config, &asked), ["403"; 2]);
    let of_http2 = [("connection", "Upgrade"), ("upgrade", "h2c")];
    for others in [&of_http2[..], &web_socket[1..], &[("connection", "upgrades, close")]] {
        let there = "10.0.0.1:80 /x";
        assert_eq!(both(&config, &ask("GET", "/x", others, "10.1.2.3")), [there; 2], "{others:?}");
    }
    let on = config.replace(
        "          use_remote_address: true",
        "          upgrade_configs: [{upgrade_type: websocket}]",
    );
    assert_eq!(both(&on, &asked), ["10.0.0.1:80 /x"; 2]);
    let of_a_route = config
        .replace("{cluster: a}}", "{cluster: a, upgrade_configs: [{upgrade_type: websocket}]}}");
    assert_eq!(both(&of_a_route, &asked), ["10.0.0.1:80 /x"; 2]);
}

#[test]
fn headers_change_where_the_client_has_sent_them_or_not() {
    let routes = "              - match: {prefix: /}
                route: {cluster: a}
                request_headers_to_add:
                - {header: {key: X-Tenant, value: none}, append_action: ADD_IF_ABSENT}
                - {header: {key: x-debug, value: 'off'}, append_action: OVERWRITE_IF_EXISTS}
                - {header: {key: x-twice, value: a}, append_action: ADD_IF_ABSENT}
                - {header: {key: x-twice, value: b}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}";
    let config = Config::read(&Source::of("e", &http("", routes))).unwrap();
    let (program, ledger) = convert(&config);
    let headers = |request: &Request| {
        [explain(&config, request), decide(&program, request)].map(|answer| {
            let Outcome::Forwarded(to) = answer.outcome else { panic!() };
            let own = |name| to.headers.iter().find(|(known, _)| known == name)?.1.clone();
            ["x-tenant", "x-debug", "x-twice"].map(|name| own(name).unwrap_or_default())
        })
    };
    let sent = [("x-tenant", "mine"), ("X-Debug", "on")];
    for (sent, wanted) in [(&sent[..0], ["none", ""]), (&sent, ["mine", "off"])] {
        let [theirs, ours] = headers(&ask("GET", "/", sent, "10.1.2.3"));
        for got in [theirs, ours] {
            // What stays as it was sent is not told.
            let changed = got[..2].iter().zip(wanted).filter(|(got, _)| !got.is_empty());
            changed.for_each(|(got, wanted)| assert_eq!(got, wanted));
            assert!(got[..2].iter().any(|got| !got.is_empty()));
        }
    }
    let told = ledger.entries().into_iter().filter(|entry| match &entry.verdict {
        Verdict::Dropped { meaning } => meaning.contains("depends on whether"),
        _ => false,
    });
    assert_eq!(told.count(), 1, "of the one that something else changes, too");
}

#[test]
fn whom_envoy_trusts_says_how_the_client_came() {
    let routes = "              - {match: {prefix: /}, route: {cluster: a}}";
    let config = http("", routes).replace(
        "          use_remote_address: true",
        "          use_remote_address: true\n          xff_num_trusted_hops: 1",
    );
    let config = Config::read(&Source::of("e", &config)).unwrap();
    let (program, _) = convert(&config);
    for (sent, expected) in [(&[("x-forwarded-proto", "https")][..], None), (&[], Some("http"))] {
        let request = ask("GET", "/", sent, "10.1.2.3");
        for answer in [explain(&config, &request), decide(&program, &request)] {
            let Outcome::Forwarded(to) = answer.outcome else { panic!() };
            let told = to.headers.into_iter().find(|(name, _)| name == "x-forwarded-proto");
            // What goes on as it was sent need not be told.
            let told = told.and_then(|(_, value)| value).filter(|value| value != "https");
            assert_eq!(told.as_deref(), expected);
        }
    }
}
