//! Rules about callers.

use mesh_api::v1;

use super::services::service;
use crate::{
    service::Service,
    wire::{MAX_ACCESS_RULES, MAX_NETWORKS, MAX_PRINCIPALS, WireError},
};

fn rule() -> v1::AccessRule {
    v1::AccessRule { name: "r".into(), ..Default::default() }
}

fn ruled(rules: Vec<v1::AccessRule>) -> Result<Service, WireError> {
    service(|s| s.policy = Some(v1::AuthorizationPolicy { rules, ..Default::default() }))
}

fn changed(change: impl FnOnce(&mut v1::AccessRule)) -> Result<Service, WireError> {
    let mut rule = rule();
    change(&mut rule);
    ruled(vec![rule])
}

fn network(cidr: &str, except: &[&str]) -> Vec<v1::Network> {
    let except = except.iter().map(ToString::to_string).collect();
    vec![v1::Network { cidr: cidr.into(), except }]
}

#[test]
fn rules_that_mean_nothing() {
    let audit = |port: &str| {
        let policy =
            v1::AuthorizationPolicy { audit_ports: vec![port.into()], ..Default::default() };
        service(|s| s.policy = Some(policy))
    };
    let cases = [
        ("policy.rules.name", changed(|r| r.name.clear())),
        ("policy.rules.port", changed(|r| r.port = "-".into())),
        ("policy.rules.route", changed(|r| r.route = "a\nb".into())),
        (
            "policy.rules.anyone",
            changed(|r| (r.anyone, r.callers) = (true, vec![v1::PrincipalMatch::default()])),
        ),
        ("policy.rules.networks.cidr", changed(|r| r.networks = network("10.0.0.0/33", &[]))),
        ("policy.rules.networks.except", changed(|r| r.networks = network("::/0", &["x"]))),
        ("policy.audit_ports", audit("")),
    ];
    for (field, result) in cases {
        let error = result.expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

/// Exactly so many pass, one more does not.
#[test]
fn limits_of_rules() {
    let rules = |n: usize| ruled(vec![rule(); n]);
    let callers = |n: usize| changed(|r| r.callers = vec![v1::PrincipalMatch::default(); n]);
    let one = || network("10.0.0.1", &[]).remove(0);
    let networks = |n: usize| changed(|r| r.networks = vec![one(); n]);
    let except = |n: usize| changed(|r| r.networks = network("10.0.0.0/8", &vec!["10.0.0.1"; n]));
    type Limited<'a> = &'a dyn Fn(usize) -> Result<Service, WireError>;
    let cases: [(&str, usize, Limited<'_>); 4] = [
        ("policy.rules", MAX_ACCESS_RULES, &rules),
        ("policy.rules.callers", MAX_PRINCIPALS, &callers),
        ("policy.rules.networks", MAX_NETWORKS, &networks),
        ("policy.rules.networks.except", MAX_NETWORKS, &except),
    ];
    for (field, limit, with) in cases {
        with(limit).expect(field);
        assert_eq!(with(limit + 1).expect_err(field).field, field);
    }
}
