use std::net::IpAddr;

use http::Method;
use mesh_core::{
    Call, Client, PeerIdentity, ServerPolicy, SpiffeId,
    authorize::{Access, authorize},
    message::RequestHead,
};

use super::*;
use crate::manifest::read;

const PORTS: [(&str, u16); 2] = [("http", 80), ("sql", 5432)];

fn document(kind: &str, name: &str, spec: &str) -> String {
    let api = match kind {
        "HTTPRoute" | "GRPCRoute" => "gateway.networking.k8s.io/v1",
        "Server" => "policy.linkerd.io/v1beta3",
        _ => "policy.linkerd.io/v1alpha1",
    };
    format!(
        "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{ name: {name}, namespace: shop }}\n\
         spec: {{ {spec} }}\n"
    )
}

fn server(name: &str, port: &str, access: &str) -> String {
    let labels = "externalWorkloadSelector: { matchLabels: { isthmus.io/service: orders } }";
    document("Server", name, &format!("{labels}, {port} accessPolicy: {access}"))
}

fn authorization(name: &str, target: &str, authentications: &[(&str, &str)]) -> String {
    let one = |(kind, name): &(&str, &str)| {
        format!("{{ group: policy.linkerd.io, kind: {kind}, name: {name} }}")
    };
    let refs: Vec<String> = authentications.iter().map(one).collect();
    let spec =
        format!("targetRef: {{ {target} }}, requiredAuthenticationRefs: [{}]", refs.join(", "));
    document("AuthorizationPolicy", name, &spec)
}

fn identities(name: &str, identity: &str) -> String {
    document("MeshTLSAuthentication", name, &format!("identities: ['{identity}']"))
}

fn networks(name: &str, cidr: &str) -> String {
    document("NetworkAuthentication", name, &format!("networks: [{{ cidr: {cidr} }}]"))
}

const SERVICE: &str = "group: core, kind: Service, name: orders";
const SERVER: &str = "group: policy.linkerd.io, kind: Server, name: http";
const ROUTE: &str = "group: gateway.networking.k8s.io, kind: HTTPRoute, name: admin";
const WEB: &str = "spiffe://east.example/ns/shop/sa/web";
const OPS: &str = "spiffe://east.example/ns/ops/sa/web";
const WEST: &str = "spiffe://west.example/ns/shop/sa/web";

fn compiled(text: &str, default: AccessPolicy) -> CompiledAccess {
    let manifests = read(text, "t").unwrap();
    let ports = PORTS.map(|(name, number)| (name.to_owned(), number));
    AccessIndex::of(&manifests).compile("orders.shop", &ports, default)
}

/// "yes", "audit" or the reason.
fn ask(access: &CompiledAccess, from: &str, port: &str, target: &str) -> String {
    let policy = ServerPolicy {
        local: "east.example".parse().unwrap(),
        exported_to: ["west.example".parse().unwrap()].into(),
        access: access.policy.as_ref().map(|policy| Access::try_from(policy).unwrap()),
    };
    let id: Option<SpiffeId> = from.parse().ok();
    let peer = id.map(|id| PeerIdentity {
        id,
        node: None,
        serial: "01".into(),
        not_after: rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::ZERO),
    });
    let address: Option<IpAddr> = from.parse().ok();
    let head = RequestHead { method: Method::GET, target: target.into(), ..RequestHead::new() };
    let (service, port) = ("orders.shop".parse().unwrap(), port.parse().unwrap());
    let call = Call { service: &service, port: &port, request: Some(&head) };
    match authorize(&policy, Client { peer: peer.as_ref(), address }, &call) {
        Ok(permit) if permit.would_deny().is_some() => "audit".into(),
        Ok(_) => "yes".into(),
        Err(denied) => denied.reason.reason().code().trim_start_matches("denied_").into(),
    }
}

/// Whom a set of documents lets in: (from, port, path, answer).
fn holds(text: &str, default: AccessPolicy, cases: &[(&str, &str, &str, &str)]) {
    let access = compiled(text, default);
    assert_eq!(access.problems, [], "{text}");
    for (from, port, target, wanted) in cases {
        let answer = ask(&access, from, port, target);
        assert_eq!(answer, *wanted, "{from} to {port} {target} with {text}");
    }
}

#[test]
fn without_documents_the_site_decides() {
    use AccessPolicy::*;
    let cases = [
        (AllAuthenticated, ["yes", "yes", "unauthenticated"]),
        (ClusterAuthenticated, ["yes", "no_rule", "unauthenticated"]),
        (ClusterUnauthenticated, ["yes", "network", "yes"]),
        (AllUnauthenticated, ["yes", "yes", "yes"]),
        (Deny, ["no_rule", "no_rule", "unauthenticated"]),
        (Audit, ["audit", "audit", "audit"]),
    ];
    for (default, wanted) in cases {
        let access = compiled("", default);
        let asked = [WEB, WEST, "10.0.0.1"].map(|from| ask(&access, from, "sql", "/"));
        assert_eq!(asked, wanted, "{default:?}");
    }
    assert_eq!(compiled("", AllAuthenticated).policy, None, "nothing travels for what all have");
}

#[test]
fn a_server_decides_for_its_port() {
    let by_name = server("http", "port: http,", "deny");
    holds(
        &by_name,
        AccessPolicy::AllAuthenticated,
        &[(WEB, "http", "/", "no_rule"), (WEB, "sql", "/", "yes")],
    );
    let all_but_sql =
        server("all", "", "deny") + &server("sql", "port: 5432,", "cluster-authenticated");
    holds(
        &all_but_sql,
        AccessPolicy::AllUnauthenticated,
        &[
            (WEB, "http", "/", "no_rule"),
            (WEB, "sql", "/", "yes"),
            (WEST, "sql", "/", "no_rule"),
            ("10.0.0.1", "sql", "/", "unauthenticated"),
        ],
    );
}

#[test]
fn policies_close_what_they_are_for_and_open_it_to_some() {
    let mesh = [("MeshTLSAuthentication", "ops")];
    let ops = identities("ops", "ns/ops/*");
    holds(
        &(authorization("a", SERVICE, &mesh) + &ops),
        AccessPolicy::AllAuthenticated,
        &[(OPS, "http", "/", "yes"), (WEB, "sql", "/", "no_rule"), (WEST, "http", "/", "no_rule")],
    );
    holds(
        &(authorization("a", "kind: Namespace, name: shop", &mesh) + &ops),
        AccessPolicy::AllAuthenticated,
        &[(OPS, "sql", "/", "yes"), (WEB, "http", "/", "no_rule")],
    );
    // Both must hold; and a Server keeps what it says itself.
    let both = [("MeshTLSAuthentication", "ops"), ("NetworkAuthentication", "near")];
    let documents = server("http", "port: 80,", "deny")
        + &authorization("a", SERVER, &both)
        + &ops
        + &networks("near", "10.0.0.0/8");
    holds(
        &documents,
        AccessPolicy::AllAuthenticated,
        &[
            (OPS, "http", "/", "network"),
            ("10.0.0.1", "http", "/", "unauthenticated"),
            (WEB, "http", "/", "no_rule"),
            (WEB, "sql", "/", "yes"),
        ],
    );
    let plaintext = authorization("a", SERVICE, &[("NetworkAuthentication", "near")])
        + &networks("near", "10.0.0.0/8");
    holds(
        &plaintext,
        AccessPolicy::AllAuthenticated,
        &[("10.0.0.1", "http", "/", "yes"), ("192.0.2.1", "http", "/", "network")],
    );
}

#[test]
fn a_route_is_closed_alone() {
    let mesh = [("MeshTLSAuthentication", "ops")];
    let routes = |parent: &str| {
        let rule = |path: &str| format!("matches: [{{ path: {{ value: {path} }} }}]");
        let spec = |path| format!("parentRefs: [{{ {parent} }}], rules: [{{ {} }}]", rule(path));
        document("HTTPRoute", "admin", &spec("/admin"))
            + &document("HTTPRoute", "static", &spec("/admin/static"))
    };
    let of_service = authorization("a", ROUTE, &mesh)
        + &identities("ops", "ns/ops/*")
        + &routes("kind: Service, name: orders");
    let of_server = authorization("a", ROUTE, &mesh)
        + &identities("ops", "ns/ops/*")
        + &server("http", "port: http,", "deny")
        + &routes("group: policy.linkerd.io, kind: Server, name: http");
    holds(
        &of_service,
        AccessPolicy::AllAuthenticated,
        &[
            (OPS, "http", "/admin", "yes"),
            (WEB, "http", "/admin/x", "no_rule"),
            (WEB, "http", "/other", "yes"),
            // A more specific route that nobody speaks of.
            (WEB, "http", "/admin/static/x", "yes"),
        ],
    );
    holds(
        &of_server,
        AccessPolicy::AllAuthenticated,
        &[
            (OPS, "http", "/admin", "yes"),
            (OPS, "http", "/other", "no_rule"),
            (WEB, "sql", "/admin", "yes"),
        ],
    );
}

#[test]
fn what_is_not_there_allows_nobody_and_is_told() {
    let missing = authorization("a", SERVICE, &[("MeshTLSAuthentication", "ops")])
        + &authorization("b", SERVER, &[("NetworkAuthentication", "near")])
        + &networks("near", "10.0.0.0/8");
    let access = compiled(&missing, AccessPolicy::AllUnauthenticated);
    assert_eq!(ask(&access, OPS, "http", "/"), "no_rule");
    let manifests = read(&missing, "t").unwrap();
    let told: Vec<String> = AccessIndex::of(&manifests)
        .problems()
        .into_iter()
        .map(|problem| format!("{}: {}", problem.document, problem.text))
        .collect();
    assert_eq!(
        told,
        [
            "AuthorizationPolicy shop/a: RefNotResolved: there is no MeshTLSAuthentication \
             shop/ops yet; it allows nobody",
            "AuthorizationPolicy shop/b: TargetNotFound: there is no Server http yet",
        ]
    );
    let twice = server("a", "port: http,", "deny") + &server("b", "port: 80,", "all-authenticated");
    let access = compiled(&twice, AccessPolicy::AllAuthenticated);
    assert_eq!(ask(&access, WEB, "http", "/"), "no_rule", "the older one counts");
    assert!(access.problems[0].text.contains("Server shop/a"), "{:?}", access.problems);
    let nowhere = compiled(&server("a", "port: 81,", "deny"), AccessPolicy::AllAuthenticated);
    assert!(nowhere.problems[0].text.starts_with("PortNotFound"), "{:?}", nowhere.problems);
}

#[test]
fn servers_say_what_is_spoken() {
    let with =
        |protocol: &str| server("s", &format!("port: sql, proxyProtocol: {protocol},"), "deny");
    let cases = [
        ("opaque", Some(v1::Protocol::Tcp)),
        ("TLS", Some(v1::Protocol::Tls)),
        ("gRPC", Some(v1::Protocol::Grpc)),
        ("HTTP/1", Some(v1::Protocol::Http)),
        ("HTTP/2", Some(v1::Protocol::Http)),
        ("unknown", None),
    ];
    for (written, wanted) in cases {
        let access = compiled(&with(written), AccessPolicy::Deny);
        let wanted: Vec<_> = wanted.map(|protocol| (5432, protocol)).into_iter().collect();
        assert_eq!(access.protocols, wanted, "{written}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let mesh = "{ group: policy.linkerd.io, kind: MeshTLSAuthentication, name: a }";
    let policy = |target: &str, refs: &str| {
        let spec = format!("targetRef: {{ {target} }}, requiredAuthenticationRefs: [{refs}]");
        document("AuthorizationPolicy", "a", &spec)
    };
    let cases = [
        (policy("kind: Pod, name: a", mesh), "spec.targetRef"),
        (policy("kind: Server, name: a", mesh), "spec.targetRef"),
        (policy("kind: Namespace, name: other", mesh), "its own namespace, shop"),
        (policy(SERVICE, ""), "all-unauthenticated"),
        (policy(SERVICE, "{ kind: User, name: a }"), "requiredAuthenticationRefs[0]"),
        (policy(SERVICE, &format!("{mesh}, {mesh}")), "at most one"),
        (identities("a", "web.shop"), "spec.identities[0]"),
        (document("MeshTLSAuthentication", "a", ""), "either identities or identityRefs"),
        (
            document("MeshTLSAuthentication", "a", "identityRefs: [{ kind: Group, name: a }]"),
            "spec.identityRefs[0]",
        ),
        (document("NetworkAuthentication", "a", ""), "spec.networks"),
        (networks("a", "10.0.0.0/33"), "spec.networks[0].cidr"),
        (
            document("NetworkAuthentication", "a", "networks: [{ cidr: '::/0', except: [x] }]"),
            "spec.networks[0].except",
        ),
        (document("Server", "a", "port: http"), "isthmus.io/service"),
        (server("a", "", "allow"), "accessPolicy"),
        (server("a", "proxyProtocol: SPDY,", "deny"), "proxyProtocol"),
        (document("Server", "a", "podSelector: {}"), "podSelector"),
    ];
    for (text, wanted) in cases {
        let error = read(&text, "t").unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}
