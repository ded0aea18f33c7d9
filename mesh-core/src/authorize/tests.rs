use std::{collections::BTreeSet, net::IpAddr};

use http::Method;
use mesh_api::v1;

use super::{Access, Call, Client, DenyReason, ServerPolicy, authorize, probe};
use crate::{
    example::{NODE, peer},
    message::RequestHead,
    name::{PortName, ServiceName},
    reason::Reason,
};

const EAST: &str = "spiffe://east.example/ns/shop/sa/web";
const OPS: &str = "spiffe://east.example/ns/ops/sa/web";
const WEST: &str = "spiffe://west.example/ns/shop/sa/web";
const WEST_JOB: &str = "spiffe://west.example/ns/shop/sa/job";
const NORTH: &str = "spiffe://north.example/ns/shop/sa/web";

fn policy(access: Option<v1::AuthorizationPolicy>) -> ServerPolicy {
    ServerPolicy {
        local: "east.example".parse().unwrap(),
        exported_to: BTreeSet::from(["west.example".parse().unwrap()]),
        access: access.map(|access| Access::try_from(&access).unwrap()),
    }
}

fn principal(domain: &str, namespace: &str, account: &str) -> v1::PrincipalMatch {
    v1::PrincipalMatch {
        trust_domain: domain.into(),
        namespace: namespace.into(),
        account: account.into(),
    }
}

fn rule(name: &str) -> v1::AccessRule {
    v1::AccessRule { name: name.into(), ..Default::default() }
}

fn rules(rules: Vec<v1::AccessRule>) -> v1::AuthorizationPolicy {
    v1::AuthorizationPolicy { rules, ..Default::default() }
}

/// "ok", the name of the rule, "audit" with why, or the code of the refusal.
fn ask_on(
    policy: &ServerPolicy,
    (caller, address): (Option<&str>, Option<&str>),
    port: &str,
    request: Option<(&Method, &str)>,
) -> String {
    let (service, port): (ServiceName, PortName) =
        ("orders.shop".parse().unwrap(), port.parse().unwrap());
    let head = request.map(|(method, target)| RequestHead {
        method: method.clone(),
        target: target.into(),
        ..RequestHead::new()
    });
    let peer = caller.map(|caller| peer(caller, None));
    let address = address.map(|address| address.parse::<IpAddr>().unwrap());
    let client = Client { peer: peer.as_ref(), address };
    let call = Call { service: &service, port: &port, request: head.as_ref() };
    match authorize(policy, client, &call) {
        Ok(permit) => {
            assert_eq!(permit.caller().map(|id| id.as_str()), caller);
            match (permit.would_deny(), permit.rule()) {
                (Some(reason), None) => format!("audit {}", reason.reason()),
                (None, Some(rule)) if !rule.is_empty() => rule.to_string(),
                (None, _) => "ok".into(),
                (Some(_), Some(rule)) => panic!("{rule} allows and does not"),
            }
        }
        Err(denied) => {
            assert_eq!(denied.service, service);
            denied.reason.reason().code().into()
        }
    }
}

fn ask(policy: &ServerPolicy, caller: &str) -> String {
    ask_on(policy, (Some(caller), None), "http", Some((&Method::GET, "/")))
}

#[test]
fn authenticated_means_local_or_exported_to() {
    let policy = policy(None);
    let node = format!("spiffe://east.example/node/{NODE}");
    let cases = [
        (EAST, "ok"),
        (WEST, "ok"),
        (NORTH, "denied_not_exported"),
        (&node, "denied_not_a_workload"),
        ("spiffe://east.example/ns/isthmus-system/sa/gateway", "denied_not_a_workload"),
        ("spiffe://west.example/ns/isthmus-system/sa/gateway", "denied_not_a_workload"),
        ("spiffe://east.example/ns/isthmus-system/sa/federation", "denied_not_a_workload"),
        // Only the reserved identities of that namespace are set apart.
        ("spiffe://east.example/ns/isthmus-system/sa/probe", "ok"),
        ("spiffe://east.example/ns/shop/sa/gateway", "ok"),
    ];
    for (caller, expected) in cases {
        assert_eq!(ask(&policy, caller), expected, "{caller}");
    }
    assert_eq!(ask_on(&policy, (None, Some("10.0.0.1")), "http", None), "denied_unauthenticated");
}

#[test]
fn principals() {
    let callers = [EAST, OPS, WEST, WEST_JOB, NORTH];
    let (ok, no, foreign) = ("ok", "denied_no_rule", "denied_not_exported");
    let cases = [
        (vec![], [no, no, no, no, foreign]),
        (vec![principal("", "", "")], [ok, ok, no, no, foreign]),
        (vec![principal("*", "", "")], [ok, ok, ok, ok, foreign]),
        (vec![principal("west.example", "", "")], [no, no, ok, ok, foreign]),
        // A rule cannot let in whom the export list keeps out.
        (vec![principal("north.example", "", "")], [no, no, no, no, foreign]),
        (vec![principal("", "shop", "")], [ok, no, no, no, foreign]),
        (vec![principal("*", "shop", "web")], [ok, no, ok, no, foreign]),
        (vec![principal("*", "", "job")], [no, no, no, ok, foreign]),
        (
            vec![principal("", "ops", ""), principal("west.example", "", "job")],
            [no, ok, no, ok, foreign],
        ),
    ];
    for (allow, expected) in cases {
        let policy = policy(Some(v1::AuthorizationPolicy { allow, ..Default::default() }));
        assert_eq!(callers.map(|caller| ask(&policy, caller)), expected, "{policy:?}");
    }
}

#[test]
fn rules_are_about_ports_and_networks_too() {
    let network = v1::Network { cidr: "10.0.0.0/8".into(), except: vec!["10.9.0.0/16".into()] };
    let policy = policy(Some(rules(vec![
        v1::AccessRule {
            callers: vec![principal("", "ops", "")],
            networks: vec![network.clone()],
            ..rule("ops")
        },
        v1::AccessRule {
            anyone: true,
            networks: vec![network],
            port: "http".into(),
            ..rule("old")
        },
        v1::AccessRule {
            callers: vec![principal("", "shop", "")],
            port: "sql".into(),
            ..rule("sql")
        },
    ])));
    let (near, far) = (Some("10.1.2.3"), Some("10.9.0.1"));
    let cases = [
        (Some(OPS), near, "sql", "ops"),
        (Some(OPS), far, "sql", "denied_network"),
        // Behind gateways nobody knows where it is.
        (Some(OPS), None, "sql", "denied_network"),
        (Some(EAST), None, "sql", "sql"),
        (Some(EAST), far, "http", "denied_network"),
        (Some(WEST), near, "sql", "denied_no_rule"),
        (None, near, "http", "old"),
        (None, far, "http", "denied_network"),
        (None, near, "sql", "denied_unauthenticated"),
        // The export list is asked before a rule for anyone.
        (Some(NORTH), near, "http", "denied_not_exported"),
    ];
    for (caller, address, port, expected) in cases {
        let asked = ask_on(&policy, (caller, address), port, None);
        assert_eq!(asked, expected, "{caller:?} from {address:?} to {port}");
    }
}

/// `/admin` is for ops alone, `/` of the same routes is written and not named.
fn by_route() -> v1::AuthorizationPolicy {
    let route = |name: &str, prefix: &str| v1::Route {
        name: name.into(),
        matches: vec![v1::RouteMatch {
            path: Some(v1::route_match::Path::PathPrefix(prefix.into())),
            ..Default::default()
        }],
        ..Default::default()
    };
    v1::AuthorizationPolicy {
        routes: vec![route("shop/admin", "/admin"), route("shop/all", "/")],
        ..rules(vec![
            v1::AccessRule {
                callers: vec![principal("", "ops", "")],
                route: "shop/admin".into(),
                ..rule("admin")
            },
            v1::AccessRule {
                callers: vec![principal("*", "", "")],
                fallback: true,
                ..rule("rest")
            },
        ])
    }
}

#[test]
fn a_route_that_a_rule_names_is_closed_to_the_rest() {
    let policy = policy(Some(by_route()));
    let cases = [
        (OPS, "/admin/x", "admin"),
        (EAST, "/admin", "denied_no_rule"),
        (EAST, "/administration", "rest"),
        (EAST, "/x?/admin", "rest"),
        // However it is written, an application may take it for that.
        (EAST, "/x/../admin", "denied_no_rule"),
        (EAST, "//admin", "denied_no_rule"),
        (EAST, "/%61dmin?a=b", "denied_no_rule"),
        (EAST, "/x/%2e%2e%2fadmin", "denied_no_rule"),
        // And the other way round.
        (EAST, "/admin/../x", "denied_no_rule"),
        (OPS, "/admin/../x", "admin"),
    ];
    for (caller, target, expected) in cases {
        let asked = ask_on(&policy, (Some(caller), None), "http", Some((&Method::GET, target)));
        assert_eq!(asked, expected, "{caller} {target}");
    }
    // Bytes that nobody looks at may be a request for it.
    assert_eq!(ask_on(&policy, (Some(EAST), None), "http", None), "denied_no_rule");
    assert_eq!(ask_on(&policy, (Some(OPS), None), "http", None), "denied_no_rule");
}

#[test]
fn who_may_have_nothing_of_a_port_need_not_connect() {
    let nothing = policy(None);
    let routed = policy(Some(by_route()));
    let open = policy(Some(rules(vec![v1::AccessRule {
        anyone: true,
        networks: vec![v1::Network { cidr: "10.0.0.0/8".into(), except: Vec::new() }],
        port: "http".into(),
        ..rule("near")
    }])));
    let cases = [
        (&nothing, Some(EAST), None, "http", true),
        (&nothing, Some(NORTH), None, "http", false),
        (&nothing, None, Some("10.0.0.1"), "http", false),
        (&routed, Some(OPS), None, "http", true),
        (&routed, None, Some("10.0.0.1"), "http", false),
        (&open, None, Some("10.0.0.1"), "http", true),
        (&open, None, Some("10.0.0.1"), "sql", false),
        (&open, None, Some("192.0.2.1"), "http", false),
    ];
    for (policy, caller, address, port, wanted) in cases {
        let peer = caller.map(|caller| peer(caller, None));
        let address = address.map(|address| address.parse().unwrap());
        let client = Client { peer: peer.as_ref(), address };
        let may = super::may_connect(policy, client, &port.parse().unwrap());
        assert_eq!(may, wanted, "{caller:?} {address:?} {port}");
    }
}

#[test]
fn what_an_audited_port_would_refuse_passes_and_is_told() {
    let mut audited = by_route();
    audited.audit_ports = vec!["http".into()];
    let policy = policy(Some(audited));
    let get = Some((&Method::GET, "/admin"));
    let cases = [
        ((Some(EAST), None), "http", get, "audit denied_no_rule"),
        ((Some(OPS), None), "http", get, "admin"),
        ((None, Some("192.0.2.1")), "http", get, "audit denied_unauthenticated"),
        ((Some(EAST), None), "other", get, "denied_no_rule"),
        // What no rule can give, no audit can.
        ((Some(NORTH), None), "http", get, "denied_not_exported"),
    ];
    for (caller, port, request, expected) in cases {
        assert_eq!(ask_on(&policy, caller, port, request), expected, "{caller:?} {port}");
    }
}

#[test]
fn each_refusal_has_its_code_and_says_whom() {
    let (service, port) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
    let call = Call { service: &service, port: &port, request: None };
    let caller = peer(NORTH, None);
    let client = Client { peer: Some(&caller), address: None };
    let denied = authorize(&policy(None), client, &call).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "spiffe://north.example/ns/shop/sa/web may not call orders.shop: the service is not \
         exported to its site"
    );
    let client = Client { peer: None, address: Some([192, 0, 2, 1].into()) };
    let denied = authorize(&policy(None), client, &call).unwrap_err();
    assert!(denied.to_string().starts_with("a client at 192.0.2.1 may not call"), "{denied}");
    for (reason, code) in [
        (DenyReason::NotExported, Reason::DeniedNotExported),
        (DenyReason::NoRule, Reason::DeniedNoRule),
        (DenyReason::Network, Reason::DeniedNetwork),
        (DenyReason::Unauthenticated, Reason::DeniedUnauthenticated),
        (DenyReason::NotAWorkload, Reason::DeniedNotAWorkload),
    ] {
        assert_eq!(reason.reason(), code);
    }
}

#[test]
fn a_probe_is_a_look_at_a_path_that_was_told_of() {
    const HEALTH: &str = "/grpc.health.v1.Health/Check";
    let probes = ["/live", HEALTH];
    let (service, port) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
    let table = [
        (None, Some((Method::GET, "/live")), true),
        (None, Some((Method::HEAD, "/live?full=1")), true),
        (None, Some((Method::POST, HEALTH)), true),
        (None, Some((Method::GET, HEALTH)), false),
        (None, Some((Method::POST, "/live")), false),
        (None, Some((Method::GET, "/live/")), false),
        (None, Some((Method::GET, "/x/../live")), false),
        (None, Some((Method::GET, "/")), false),
        (None, None, false),
        // Who has an identity is asked for it.
        (Some(EAST), Some((Method::GET, "/live")), false),
    ];
    for (caller, request, passes) in table {
        let head = request.clone().map(|(method, target)| RequestHead {
            method,
            target: target.into(),
            ..RequestHead::new()
        });
        let peer = caller.map(|caller| peer(caller, None));
        let client = Client { peer: peer.as_ref(), address: None };
        let call = Call { service: &service, port: &port, request: head.as_ref() };
        let permit = probe(probes.into_iter(), client, &call);
        assert_eq!(permit.is_some(), passes, "{caller:?} {request:?}");
    }
}
