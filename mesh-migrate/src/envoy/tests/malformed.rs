//! What is wrong is told with its place, and what was expected there.

use super::{Config, Source};

fn problem(text: &str) -> String {
    match Config::read(&Source::of("e.yaml", text)) {
        Ok(_) => "nothing".into(),
        Err(problem) => problem.to_string(),
    }
}

const CLUSTER: &str = "static_resources:\n  clusters:\n  - name: a\n";

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn what_is_wrong_has_a_place() {
    let hcm = |inner: &str| {
        format!(
            "static_resources:\n  listeners:\n  - address: {{ socket_address: {{ address: 0.0.0.0, port_value: 80 }} }}\n    filter_chains:\n    - filters:\n      - name: h\n        typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n{inner}\n  clusters:\n  - name: orders\n"
        )
    };
    let routes = |route: &str| {
        hcm(&format!(
            "          route_config:\n            virtual_hosts:\n            - name: v\n              domains: [\"*\"]\n              routes:\n              - {route}"
        ))
    };
    for (text, wanted) in [
        (
            "static_resource: {}\n".to_owned(),
            "e.yaml:1:1: Bootstrap has no field \"static_resource\"; did you mean \"static_resources\"?",
        ),
        (
            format!("{CLUSTER}    conect_timeout: 1s\n"),
            "e.yaml:4:5: Cluster has no field \"conect_timeout\"; did you mean \"connect_timeout\"?",
        ),
        (format!("{CLUSTER}    connectTimeOut: 1s\n"), "did you mean \"connect_timeout\"?"),
        (
            format!("{CLUSTER}    connect_timeout: 1500ms\n"),
            "e.yaml:4:22: expected a duration in seconds like \"1.5s\", and this is text",
        ),
        (format!("{CLUSTER}    connect_timeout: 1\n"), "e.yaml:4:22: expected a duration"),
        (format!("{CLUSTER}    connect_timeout: -1s\n"), "not negative"),
        (
            format!("{CLUSTER}    connect_timeout: 1s\n    connectTimeout: 1s\n"),
            "e.yaml:5:5: \"connect_timeout\" is there twice",
        ),
        (
            format!("{CLUSTER}    lb_policy: LEAST_CONN\n"),
            "e.yaml:4:16: expected Cluster.LbPolicy: one of LEAST_REQUEST",
        ),
        (
            format!("{CLUSTER}    type: EDS\n    eds_cluster_config: {{}}\n"),
            "e.yaml:4:5: endpoints of \"a\" come by EDS: this file is not the whole configuration: save /config_dump",
        ),
        (format!("{CLUSTER}  - name: a\n"), "e.yaml:4:5: cluster \"a\" is there twice"),
        (
            "static_resources:\n  clusters:\n  - type: STATIC\n".into(),
            "e.yaml:3:5: Cluster needs \"name\"",
        ),
        (
            format!(
                "{CLUSTER}    load_assignment: {{ cluster_name: a, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: host, port_value: 80 }} }} }} }} ] }} ] }}\n"
            ),
            "\"host\" is no address, and cluster \"a\" is STATIC",
        ),
        (
            format!(
                "{CLUSTER}    load_assignment: {{ cluster_name: a, endpoints: [ {{ lb_endpoints: [ {{ endpoint: {{ address: {{ socket_address: {{ address: 1.1.1.1, port_value: 80800 }} }} }} }} ] }} ] }}\n"
            ),
            "port 80800 is above 65535",
        ),
        (
            "dynamic_resources:\n  ads_config: {}\n  lds_config: { ads: {} }\n".into(),
            "e.yaml:3:3: lds_config: this file is not the whole configuration: save /config_dump?include_eds",
        ),
        (
            hcm("          rds: { route_config_name: r, config_source: { ads: {} } }"),
            "e.yaml:9:11: rds: this file is not the whole configuration",
        ),
        (
            hcm("          stat_prefix: 1"),
            "e.yaml:9:24: expected text, and Envoy reads 1 as a number: write \"1\" in quotes",
        ),
        (
            hcm("          use_remote_address: \"maybe\""),
            "e.yaml:9:31: expected true or false, and this is text",
        ),
        (
            hcm("          stat_prefix: no"),
            "e.yaml:9:24: expected text, and Envoy reads no as true or false",
        ),
        (
            hcm(
                "          stat_prefix: 1.5\n          use_remote_address: On\n          via: 'no'\n          max_request_headers_kb: 0x10",
            ),
            "expected route_config or rds",
        ),
        (hcm("          stat_prefix: x"), "expected route_config or rds"),
        (
            routes("match: { prefix: / }\n                route: { cluster: order }"),
            "e.yaml:15:35: there is no cluster \"order\"; did you mean \"orders\"?",
        ),
        (
            routes("match: { prefix: /, path: /a }\n                route: { cluster: orders }"),
            "e.yaml:14:37: \"path\" excludes \"prefix\", which is there, too",
        ),
        (
            routes("match: { headers: [] }\n                route: { cluster: orders }"),
            "RouteMatch needs one of prefix, path, safe_regex",
        ),
        (routes("match: { prefix: / }"), "Route needs one of route, redirect, direct_response"),
        (
            routes(
                "match: { safe_regex: { regex: \"(\" } }\n                route: { cluster: orders }",
            ),
            "is no regular expression of RE2",
        ),
        (
            routes(
                "match: { prefix: / }\n                route: { weighted_clusters: { clusters: [ { name: orders, weight: 0 } ] } }",
            ),
            "weights of weighted_clusters make 0",
        ),
        (
            format!("{CLUSTER}    transport_socket: {{ name: tls, typed_config: {{ sni: x }} }}\n"),
            "expected \"@type\"",
        ),
        (
            format!(
                "{CLUSTER}    transport_socket: {{ name: tls, typed_config: {{ \"@type\": type.googleapis.com/envoy.api.v2.auth.UpstreamTlsContext }} }}\n"
            ),
            "is of the API v2",
        ),
        (
            format!(
                "{CLUSTER}    transport_socket: {{ name: tls, typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.v3.UpstreamTlsContext }} }}\n"
            ),
            "did you mean \"envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext\"?",
        ),
        (
            routes(
                "match: { path_separated_prefix: /a/ }\n                route: { cluster: orders }",
            ),
            "e.yaml:14:49: a path_separated_prefix ends with no /",
        ),
        (
            routes("match: { prefix: / }\n                direct_response: { status: 99 }"),
            "expected a status from 200 to 599, and this is 99",
        ),
        (
            routes(
                "match: { prefix: / }\n                route: { cluster: orders }\n                request_headers_to_add: { header: { key: a } }",
            ),
            "e.yaml:16:41: expected a list, and this is a mapping",
        ),
        (
            routes(
                "match: { prefix: / }\n                route: { cluster: orders }\n                request_headers_to_add: [ { header: { key: Host, value: x } } ]",
            ),
            "Host is changed by host_rewrite_literal",
        ),
        (format!("{CLUSTER}    <<: {{}}\n"), "e.yaml:4:5: Cluster has no field \"<<\""),
        (
            "configs:\n- \"@type\": type.googleapis.com/envoy.admin.v3.ClustersConfigDump\n".into(),
            "expected a ListenersConfigDump: write down all of /config_dump",
        ),
        ("[]".into(), "e.yaml:1:1: expected a mapping, and this is a list"),
    ] {
        assert!(
            problem(&text).contains(wanted),
            "{}\nwanted {wanted}\nfor\n{text}",
            problem(&text)
        );
    }
}

#[test]
fn what_is_large_ends_soon() {
    let begin = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let long = format!("{CLUSTER}    alt_stat_name: \"{}\"\n", "x".repeat(8 << 20));
    assert_eq!(problem(&long), "nothing");
    let deep = format!("node: {{ metadata: {}1{} }}\n", "[".repeat(5000), "]".repeat(5000));
    let told = problem(&deep);
    assert!(told.contains("deeper than 64") || told.contains("recursion limit"), "{told}");
    let many: String = (0..100_000).map(|n| format!("  - name: c{n}\n")).collect();
    assert_eq!(problem(&format!("static_resources:\n  clusters:\n{many}")), "nothing");
    let took = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap() - begin;
    assert!(took.as_secs() < 60, "{took:?}");
}
