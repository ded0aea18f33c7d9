use std::collections::BTreeSet;

use http::Method;

use super::{DenyReason, DomainMatch, PrincipalMatch, RequestHead, ServerPolicy, authorize};
use crate::{
    example::{NODE, peer},
    reason::Reason,
};

fn policy(allow: Option<Vec<PrincipalMatch>>) -> ServerPolicy {
    ServerPolicy {
        local: "east.example".parse().unwrap(),
        exported_to: BTreeSet::from(["west.example".parse().unwrap()]),
        allow,
    }
}

fn rule(domain: DomainMatch, namespace: Option<&str>, account: Option<&str>) -> PrincipalMatch {
    PrincipalMatch {
        trust_domain: domain,
        namespace: namespace.map(Into::into),
        account: account.map(Into::into),
    }
}

/// "ok", or the code of the refusal.
fn ask(policy: &ServerPolicy, caller: &str) -> &'static str {
    let (service, port) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
    let head =
        RequestHead { service: &service, port: &port, method: Some(&Method::GET), path: "/" };
    match authorize(policy, &peer(caller, None), &head) {
        Ok(permit) => {
            assert_eq!(permit.caller().as_str(), caller);
            "ok"
        }
        Err(denied) => {
            assert_eq!((denied.caller.as_str(), &denied.service), (caller, &service));
            denied.reason.reason().code()
        }
    }
}

#[test]
fn authenticated_means_local_or_exported_to() {
    let policy = policy(None);
    let node = format!("spiffe://east.example/node/{NODE}");
    let cases = [
        ("spiffe://east.example/ns/shop/sa/web", "ok"),
        ("spiffe://west.example/ns/shop/sa/web", "ok"),
        ("spiffe://north.example/ns/shop/sa/web", "denied_not_exported"),
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
}

#[test]
fn rules() {
    let west = || DomainMatch::Exactly("west.example".parse().unwrap());
    let north = || DomainMatch::Exactly("north.example".parse().unwrap());
    let callers = [
        "spiffe://east.example/ns/shop/sa/web",
        "spiffe://east.example/ns/ops/sa/web",
        "spiffe://west.example/ns/shop/sa/web",
        "spiffe://west.example/ns/shop/sa/job",
        "spiffe://north.example/ns/shop/sa/web",
    ];
    let (ok, no, foreign) = ("ok", "denied_no_rule", "denied_not_exported");
    let cases = [
        (vec![], [no, no, no, no, foreign]),
        (vec![rule(DomainMatch::Local, None, None)], [ok, ok, no, no, foreign]),
        (vec![rule(DomainMatch::Any, None, None)], [ok, ok, ok, ok, foreign]),
        (vec![rule(west(), None, None)], [no, no, ok, ok, foreign]),
        // A rule cannot let in whom the export list keeps out.
        (vec![rule(north(), None, None)], [no, no, no, no, foreign]),
        (vec![rule(DomainMatch::Local, Some("shop"), None)], [ok, no, no, no, foreign]),
        (vec![rule(DomainMatch::Any, Some("shop"), Some("web"))], [ok, no, ok, no, foreign]),
        (vec![rule(DomainMatch::Any, None, Some("job"))], [no, no, no, ok, foreign]),
        (
            vec![rule(DomainMatch::Local, Some("ops"), None), rule(west(), None, Some("job"))],
            [no, ok, no, ok, foreign],
        ),
    ];
    for (allow, expected) in cases {
        let policy = policy(Some(allow.clone()));
        assert_eq!(callers.map(|caller| ask(&policy, caller)), expected, "{allow:?}");
    }
}

#[test]
fn each_refusal_has_its_code_and_says_whom() {
    let (service, port) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
    let head = RequestHead { service: &service, port: &port, method: None, path: "" };
    let caller = peer("spiffe://north.example/ns/shop/sa/web", None);
    let denied = authorize(&policy(None), &caller, &head).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "spiffe://north.example/ns/shop/sa/web may not call orders.shop: the service is not \
         exported to its site"
    );
    assert_eq!(DenyReason::NotExported.reason(), Reason::DeniedNotExported);
    assert_eq!(DenyReason::NoRule.reason(), Reason::DeniedNoRule);
    assert_eq!(DenyReason::NotAWorkload.reason(), Reason::DeniedNotAWorkload);
}
