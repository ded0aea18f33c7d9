//! `meshctl` on a joined machine: through a gateway, with the role that the
//! machine's identity has.

use std::process::Output;

use crate::world::{Agent, World, meshctl, run};

const ROLES: &str = "roles:
- { id: 'spiffe://west.example/ns/shop/sa/viewer', role: viewer }
- { id: 'spiffe://west.example/ns/shop/sa/operator', role: operator, namespaces: [shop] }
";

/// A machine whose identity is `shop/<account>`.
async fn machine(world: &World, account: &str) -> Agent {
    let mut agent = Agent::start(world, account).await;
    agent.join(&world.token_of(account).await).await.unwrap();
    agent.connected().await;
    agent
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(77), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn a_role_says_what_meshctl_may_do_on_a_joined_machine() {
    run(async {
        let world = World::start_with(ROLES).await;
        let create = |account| ["token", "create", "--namespace", "shop", "--account", account];

        let viewer = machine(&world, "viewer").await;
        let status = done(&meshctl(&viewer, &["status"]));
        assert!(status.contains("west") && status.contains(&viewer.status().await.node));
        done(&meshctl(&viewer, &["token", "list"]));
        let told = refused(&meshctl(&viewer, &create("orders")));
        assert!(
            told.contains("spiffe://west.example/ns/shop/sa/viewer has role viewer")
                && told.contains("role: operator }"),
            "{told}"
        );

        let stranger = machine(&world, "stranger").await;
        let told = refused(&meshctl(&stranger, &["status"]));
        let line = "- { id: \"spiffe://west.example/ns/shop/sa/stranger\", role: viewer }";
        assert!(told.contains("stranger has no role") && told.contains(line), "{told}");

        let operator = machine(&world, "operator").await;
        let token = done(&meshctl(&operator, &create("orders")));
        let mut joins = Agent::start(&world, "vm1").await;
        joins.join(token.trim()).await.unwrap();
        // Nobody makes a token with which to become somebody with a role.
        refused(&meshctl(&operator, &create("viewer")));
        refused(&meshctl(&operator, &["token", "create", "--gateway"]));
        refused(&meshctl(&operator, &["identity", "revoke", "spiffe://west.example/ns/a/sa/b"]));
        let elsewhere = ["token", "create", "--namespace", "prod", "--account", "a"];
        let told = refused(&meshctl(&operator, &elsewhere));
        assert!(told.contains("operator of shop only, not of prod"), "{told}");

        // Who watches requests sees what others ask for.
        let tap = |service| ["tap", service, "--count", "0"];
        let told = refused(&meshctl(&viewer, &tap("orders.shop")));
        assert!(told.contains("role: operator }"), "{told}");
        done(&meshctl(&operator, &tap("orders.shop")));
        let told = refused(&meshctl(&operator, &tap("payments.prod")));
        assert!(told.contains("operator of shop only, not of prod"), "{told}");
        refused(&meshctl(&operator, &["tap", "--count", "0"]));

        let said = world.federation_said();
        let line =
            |parts: &[&str]| said.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(line(&["token made", "spiffe://west.example/ns/shop/sa/operator"]), "{said}");
        assert!(line(&["refused", "role_missing", "ns/shop/sa/stranger"]), "{said}");
    });
}

#[test]
fn a_wrong_role_is_a_wrong_configuration() {
    let wrong = "roles: [{ id: 'spiffe://east.example/ns/a/sa/b', role: admin }]\n";
    let output = World::refuses_to_start_with(wrong);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("roles[0].id:"), "{}", text(&output.stderr));
}
