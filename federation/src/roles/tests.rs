use super::*;

fn own() -> TrustDomain {
    "west.example".parse().unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::workload(&own(), "ops", account).unwrap()
}

fn holder(role: Role, namespaces: &[&str]) -> Holder {
    let namespaces = namespaces.iter().map(ToString::to_string).collect::<Vec<_>>();
    Holder { id: id("alice"), role, namespaces: Some(namespaces).filter(|all| !all.is_empty()) }
}

#[test]
fn what_each_role_may() {
    let (shop, both) = (["*.shop".to_owned()], ["a.shop".to_owned(), "*.prod".to_owned()]);
    let ordinary = Call::CreateToken { namespace: "shop", services: &[], privileged: false };
    let of_shop = Call::CreateToken { namespace: "shop", services: &shop, privileged: false };
    let of_both = Call::CreateToken { namespace: "shop", services: &both, privileged: false };
    let of_prod = Call::CreateToken { namespace: "prod", services: &shop, privileged: false };
    let privileged = Call::CreateToken { namespace: "shop", services: &shop, privileged: true };
    let grants = Grants { namespace: "shop".into(), ..Grants::default() };
    let elsewhere = Grants { services: vec!["*.prod".into()], ..grants.clone() };
    let nowhere = Grants::default();
    let revoke = |grants| Call::RevokeToken { grants: Some(grants) };
    // viewer, operator, operator of shop, admin; "" is yes.
    let (role, ns) = ("role_denied", "namespace_denied");
    let cases = [
        (Call::Read, ["", "", "", ""]),
        (Call::Export { service: "orders.shop" }, [role, "", "", ""]),
        (Call::Export { service: "payments.prod" }, [role, "", ns, ""]),
        (Call::Export { service: "shop.prod" }, [role, "", ns, ""]),
        (Call::Export { service: "" }, [role, "", ns, ""]),
        (ordinary, [role, "", "", ""]),
        (of_shop, [role, "", "", ""]),
        (of_both, [role, "", ns, ""]),
        (of_prod, [role, "", ns, ""]),
        (privileged, [role, role, role, ""]),
        (revoke(&grants), [role, "", "", ""]),
        (revoke(&elsewhere), [role, "", ns, ""]),
        (revoke(&nowhere), [role, "", ns, ""]),
        (Call::RevokeToken { grants: None }, [role, "", ns, ""]),
        (Call::Tap { service: "orders.shop" }, [role, "", "", ""]),
        (Call::Tap { service: "payments.prod" }, [role, "", ns, ""]),
        (Call::Tap { service: "" }, [role, "", ns, ""]),
        (Call::Administer, [role, role, role, ""]),
    ];
    let holders = [
        holder(Role::Viewer, &[]),
        holder(Role::Operator, &[]),
        holder(Role::Operator, &["shop"]),
        holder(Role::Admin, &[]),
    ];
    for (call, expected) in cases {
        for (holder, expected) in holders.iter().zip(expected) {
            let decided = allows(holder, call);
            let reason = decided.as_ref().map_or_else(|denied| denied.reason(), |()| "");
            assert_eq!(reason, expected, "{call:?} by {holder:?}: {decided:?}");
        }
    }
}

fn roles(text: &str) -> Result<Roles, ConfigError> {
    Roles::check(mesh_runtime::config::parse(text, "f.yaml")?, &own(), "f.yaml")
}

const ALICE: &str = "- { id: \"spiffe://west.example/ns/ops/sa/alice\", role: viewer }\n";

#[test]
fn a_caller_without_a_role_is_told_the_line() {
    let roles = roles(ALICE).unwrap();
    assert_eq!(roles.admit(&id("alice"), Call::Read), Ok(()));
    for (account, call, reason, line) in [
        ("bob", Call::Read, "role_missing", "role: viewer }"),
        ("bob", Call::Administer, "role_missing", "role: admin }"),
        ("alice", Call::Export { service: "a.shop" }, "role_denied", "role: operator }"),
    ] {
        let denied = roles.admit(&id(account), call).unwrap_err();
        assert_eq!(denied.reason(), reason);
        let line = format!("- {{ id: \"{}\", {line}", id(account));
        assert!(denied.to_string().ends_with(&line), "{denied}");
    }
    let scoped = holder(Role::Operator, &["shop"]);
    let denied = allows(&scoped, Call::Export { service: "a.prod" }).unwrap_err();
    assert!(denied.to_string().ends_with("namespaces: [shop, prod] }"), "{denied}");
}

#[test]
fn a_token_that_would_confer_a_role_is_privileged() {
    let roles = roles(ALICE).unwrap();
    for (account, gateway, expected) in
        [("alice", false, true), ("bob", false, false), ("bob", true, true), ("", true, true)]
    {
        let asked = CreateTokenRequest {
            namespace: "ops".into(),
            account: account.into(),
            gateway,
            ..CreateTokenRequest::default()
        };
        let call = roles.token(&asked, &own());
        let Call::CreateToken { privileged, .. } = call else { panic!("{call:?}") };
        assert_eq!(privileged, expected, "{account} {gateway}");
    }
}

#[test]
fn what_is_wrong_with_an_entry_is_named() {
    let with = |from: &str, to: &str| ALICE.replace(from, to);
    let limited =
        |role: &str, list: &str| with("role: viewer", &format!("role: {role}, namespaces: {list}"));
    let cases = [
        (with("spiffe://", ""), "f.yaml: roles[0].id:"),
        (with("west.example", "east.example"), "roles[0].id: spiffe://east.example"),
        (with("ns/ops/sa/alice", "node/0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11"), "is a node"),
        (with("ns/ops/sa/alice", "ns/isthmus-system/sa/gateway"), "is reserved"),
        (with("viewer", "owner"), "f.yaml:1:"),
        (ALICE.repeat(2), "roles[1].id: spiffe://west.example/ns/ops/sa/alice has a role"),
        (limited("viewer", "[shop]"), "roles[0].namespaces: only an operator"),
        (limited("admin", "[shop]"), "roles[0].namespaces: only an operator"),
        (limited("operator", "[]"), "roles[0].namespaces: 1 to"),
        (limited("operator", "[Shop]"), "roles[0].namespaces:"),
    ];
    for (text, expected) in cases {
        let error = roles(&text).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert_eq!(error.exit_code(), 78);
    }
    assert!(roles(&limited("operator", "[shop, prod]")).is_ok());
}
