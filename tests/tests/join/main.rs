//! A machine joins a site, restarts, is killed, copied and leaves: federation
//! and agent as processes, as an operator starts them.

#![allow(clippy::unwrap_used, reason = "a test")]

mod addresses;
mod check;
mod cluster;
mod gateways;
mod revocation;
mod roles;
mod tokens;
mod traffic;
mod world;

use std::time::Duration;

use mesh_api::v1;
use mesh_tunnel::tls::new_key_and_csr;
use tonic::Code;
use world::{Agent, World, reason, run, until};

#[test]
fn a_machine_joins_once_and_stays_joined() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut agent = Agent::start(&world, "vm1").await;
        let application = agent.serve("orders").await;
        let steps = agent.join(&token).await.unwrap();
        assert!(
            steps.iter().any(|step| step.starts_with("backs orders.shop (healthy")),
            "{steps:?}"
        );
        let joined = agent.status().await;
        assert_eq!((joined.state.as_str(), joined.problem.as_str()), ("connected", ""));
        assert_eq!(joined.spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
        assert!(!steps.iter().any(|step| step.contains(&token)), "a token is never told");

        // Its workloads get certificates that name the node.
        let (key, csr) = new_key_and_csr().unwrap();
        let issued = agent
            .identity()
            .await
            .issue(v1::IssueRequest { csr, ..Default::default() })
            .await
            .unwrap();
        let chain = issued.into_inner().chain.into_iter().map(Into::into).collect();
        let svid = mesh_tunnel::Svid::from_der(chain, key).unwrap();
        assert_eq!(svid.id.as_str(), joined.spiffe_id);

        // Killed and started again it is the same node, without a token.
        for signal in ["-KILL", "-TERM"] {
            agent.stop(signal);
            agent.restart().await;
            let again = agent.connected().await;
            assert_eq!(again.node, joined.node, "after {signal}");
            assert!(again.services.iter().all(|service| service.registered), "after {signal}");
            world.published("orders.shop").await;
        }
        // The same token again is not spent, and not needed.
        let steps = agent.join(&token).await.unwrap();
        assert!(steps[0].contains("already joined"), "{steps:?}");
        drop(application);
        until("the failed check is published", || async {
            let endpoints = world.endpoints("orders.shop").await;
            endpoints.iter().all(|endpoint| endpoint.health() == v1::Health::Unhealthy)
        })
        .await;

        agent.operator().await.leave_site(v1::LeaveSiteRequest { force: false }).await.unwrap();
        assert_eq!(agent.status().await.state, "not joined");
        assert!(!agent.dir.join("state/identity.json").exists());
        until("the node is gone", || async { world.nodes().await.is_empty() }).await;
        until("its endpoints too", || async { world.endpoints("orders.shop").await.is_empty() })
            .await;
    });
}

#[test]
fn tokens_are_used_up_and_refused_with_their_reason() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut first = Agent::start(&world, "vm1").await;
        first.join(&token).await.unwrap();
        let mut second = Agent::start(&world, "vm2").await;
        let refused = second.join(&token).await.unwrap_err();
        assert_eq!(reason(&refused), "token_used_up", "{refused}");
        assert_eq!(second.status().await.state, "not joined");
        let id = world.revoked_token().await;
        let refused = second.join(&id).await.unwrap_err();
        assert_eq!(reason(&refused), "token_revoked", "{refused}");
        let cut = &id[..id.len() - 20];
        let refused = second.join(cut).await.unwrap_err();
        assert_eq!(reason(&refused), "token_truncated", "{refused}");
        assert_eq!(second.status().await.state, "not joined");
        assert_eq!(world.nodes().await.len(), 1);
        for code in ["token_used_up", "token_revoked"] {
            assert!(world.logged(&["join refused", code]), "{}", world.federation_said());
        }
    });
}

#[test]
fn a_service_without_a_grant_is_not_registered_and_says_why() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["orders.shop"], 1).await;
        let mut agent = Agent::start(&world, "vm1").await;
        let _orders = agent.serve("orders").await;
        let _billing = agent.serve("billing").await;
        let steps = agent.join(&token).await.unwrap();
        let told = |start: &str| steps.iter().any(|step| step.starts_with(start));
        assert!(told("backs orders.shop") && told("DOES NOT BACK billing.shop"), "{steps:?}");
        let status = agent.status().await;
        let billing = status.services.iter().find(|s| s.service == "billing.shop").unwrap();
        assert!(billing.detail.contains("not granted"), "{}", billing.detail);
        assert!(world.endpoints("billing.shop").await.is_empty());
        let parts = ["registration refused", "not_granted", "billing.shop"];
        assert!(world.logged(&parts), "{}", world.federation_said());
    });
}

#[test]
fn service_files_come_and_go() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut agent = Agent::start(&world, "vm1").await;
        let steps = agent.join(&token).await.unwrap();
        assert!(steps.iter().any(|step| step.contains("BACKS NO SERVICE")), "{steps:?}");
        let _application = agent.serve("orders").await;
        until("it is published", || async { world.endpoints("orders.shop").await.len() == 1 })
            .await;
        // Removed while the agent is away: taken back when it returns.
        agent.stop("-TERM");
        std::fs::remove_file(agent.dir.join("services.d/orders.yaml")).unwrap();
        agent.restart().await;
        agent.connected().await;
        until("it is gone", || async { world.endpoints("orders.shop").await.is_empty() }).await;
    });
}

#[test]
fn a_machine_that_dies_disappears_within_ten_seconds() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut agent = Agent::start(&world, "vm1").await;
        let _application = agent.serve("orders").await;
        agent.join(&token).await.unwrap();
        world.published("orders.shop").await;
        agent.stop("-KILL");
        let gone =
            until("it disappears", || async { world.endpoints("orders.shop").await.is_empty() });
        tokio::time::timeout(Duration::from_secs(11), gone).await.unwrap();
        agent.restart().await;
        agent.connected().await;
        world.published("orders.shop").await;
    });
}

#[test]
fn a_copied_state_directory_is_noticed() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut original = Agent::start(&world, "vm1").await;
        original.join(&token).await.unwrap();
        let node = original.status().await.node;
        let copy = original.copied("vm1-copy").await;
        let told =
            |status: v1::AgentStatusResponse| status.problem.contains("meshctl node resolve");
        until("the copy is told", || async { told(copy.status().await) }).await;
        until("the site knows", || async {
            let nodes = world.nodes().await;
            nodes.iter().any(|known| known.id == node && known.state == "duplicated")
        })
        .await;
        let (_, csr) = new_key_and_csr().unwrap();
        let refused = original
            .identity()
            .await
            .issue(v1::IssueRequest { csr, ..Default::default() })
            .await
            .unwrap_err();
        let codes = [Code::FailedPrecondition, Code::PermissionDenied, Code::Unavailable];
        assert!(codes.contains(&refused.code()), "no new certificates: {refused}");
        assert!(world.logged(&["node duplicated", &node]), "{}", world.federation_said());
    });
}

/// Serial of the node's newest certificate, as the site knows it.
async fn serial(world: &World) -> String {
    world.nodes().await.remove(0).serial
}

#[test]
fn an_agent_that_is_killed_at_any_point_stays_the_node() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        // Nearly every kill falls into a renewal or a registration.
        let mut agent = Agent::start_with(&world, "vm1", "renew_after: 1s\n").await;
        let _application = agent.serve("orders").await;
        agent.join(&token).await.unwrap();
        let joined = agent.status().await.node;
        let first = serial(&world).await;
        for _ in 0..12 {
            let alive = Duration::from_millis(rand::random_range(0..1500));
            println!("killed after {alive:?}");
            tokio::time::sleep(alive).await;
            agent.stop("-KILL");
            agent.restart().await;
        }
        let again = agent.connected().await;
        assert_eq!(again.node, joined);
        assert_ne!(serial(&world).await, first, "it was renewed on the way");
        assert_eq!(world.nodes().await[0].state, "connected");
    });
}

#[test]
fn a_disk_from_the_past_is_noticed() {
    run(async {
        let world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut agent = Agent::start_with(&world, "vm1", "renew_after: 1s\n").await;
        agent.join(&token).await.unwrap();
        let past = agent.copy_disk("past");
        for _ in 0..2 {
            let before = serial(&world).await;
            until("it is renewed", || async { serial(&world).await != before }).await;
        }
        agent.stop("-KILL");
        agent.restore_disk(&past);
        agent.restart().await;
        until("the old certificate is refused", || async {
            agent.status().await.problem.contains("meshctl node resolve")
        })
        .await;
        assert_eq!(world.nodes().await[0].state, "duplicated");
        assert!(world.logged(&["node refused", "node_duplicated"]), "{}", world.federation_said());
    });
}

#[test]
fn the_agent_finds_its_site_again() {
    run(async {
        let mut world = World::start().await;
        let token = world.token(&["*.shop"], 1).await;
        let mut agent = Agent::start(&world, "vm1").await;
        let _application = agent.serve("orders").await;
        agent.join(&token).await.unwrap();
        world.kill_federation();
        until("it is lost", || async { agent.status().await.state == "lost" }).await;
        // What it is does not depend on its site.
        agent.identity().await.describe(v1::DescribeRequest {}).await.unwrap();
        world.start_federation().await;
        agent.connected().await;
        // It is connected first, and then registers.
        until("its services are registered", || async {
            let services = agent.status().await.services;
            services.len() == 1 && services.iter().all(|service| service.registered)
        })
        .await;
    });
}
