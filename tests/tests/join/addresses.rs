//! A machine that says that its proxy is where the mesh itself listens.

use crate::world::{Agent, World, run};

#[test]
fn an_address_of_federation_is_refused_told_logged_and_not_published() {
    run(async {
        let world = World::start().await;
        let admin = world.written("admin");
        for (name, address) in [("grpc", world.written("listen")), ("admin", admin)] {
            let token = world.token(&["*.shop"], 1).await;
            let advertise = format!("advertise: {address}\n");
            let mut agent = Agent::start_advertising(&world, name, &advertise).await;
            let _application = agent.serve("orders").await;
            let steps = agent.join(&token).await.unwrap();
            let told = |step: &String| {
                step.starts_with("DOES NOT BACK orders.shop") && step.contains("the mesh itself")
            };
            assert!(steps.iter().any(told), "{steps:?}");
            assert!(world.endpoints("orders.shop").await.is_empty());
            let parts = ["registration refused", "forbidden_address", &address];
            assert!(world.logged(&parts), "{}", world.federation_said());
        }
    });
}
