//! What older fields, chains and trees of matchers say.

use super::filters::{RBAC, ask, both, http};

#[test]
fn older_fields_name_origins_where_the_filter_says_nothing() {
    let cors = "          - {name: c, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}}";
    let routes = "              - {match: {prefix: /}, route: {cluster: a, cors: {allow_origin_string_match: [{exact: 'https://a'}], allow_methods: GET}}}";
    let asks = [("origin", "https://a"), ("access-control-request-method", "GET")];
    let preflight = ask("OPTIONS", "/", &asks, "10.1.2.3");
    assert_eq!(both(&http(cors, routes), &preflight), ["200 https://a"; 2]);
    // Nobody reads them without the filter.
    assert_eq!(both(&http("", routes), &preflight), ["10.0.0.1:80 /"; 2]);
}

#[test]
fn the_only_chain_is_for_its_clients() {
    let routes = "              - {match: {prefix: /}, route: {cluster: a}}";
    let criteria = "filter_chain_match: {source_prefix_ranges: [{address_prefix: 10.1.0.0, prefix_len: 16}]}\n      filters:";
    let config = http("", routes).replacen("filters:", criteria, 1);
    let [_, ours] = both(&config, &ask("GET", "/", &[], "10.1.2.3"));
    assert_eq!(ours, "10.0.0.1:80 /");
    let [_, ours] = both(&config, &ask("GET", "/", &[], "10.2.2.3"));
    assert_eq!(ours, "403");
}

#[test]
fn who_may_is_nobody_within_a_tree_of_matchers() {
    let routes = "              - {match: {prefix: /}, route: {cluster: a}}";
    let within = format!(
        "          - {{name: who, typed_config: {{'@type': type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher, extension_config: {{name: rbac, typed_config: {{'@type': {RBAC}, rules: {{action: DENY, policies: {{}}}}}}}}}}}}"
    );
    let [_, ours] = both(&http(&within, routes), &ask("GET", "/", &[], "10.1.2.3"));
    assert_eq!(ours, "501");
}
