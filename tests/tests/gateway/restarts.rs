//! A proxy that only a session in reverse leads to, and that is started again.

use super::{
    proxies::{CHECKOUT, Mesh, Proxy},
    *,
};

async fn holds(mesh: &Mesh) {
    let holds = |told: &v1::NodeSessions| told.nodes == [node().to_string()];
    mesh.pair.east_gateway.told(holds).await;
}

fn answered() -> (u16, String) {
    (200, CHECKOUT.to_owned())
}

#[tokio::test]
async fn a_proxy_that_drains_is_called_in_reverse_until_it_refuses() {
    for transport in BOTH {
        let mesh = Mesh::new(transport, true).await;
        holds(&mesh).await;
        assert_eq!(mesh.source.get().await, answered());
        let drain = mesh.destination.app.shared.drain.clone();
        drain.part();
        drain.start();
        for _ in 0..20 {
            assert_eq!(mesh.source.get().await, answered());
        }
        // Nobody has told the source of an end: a new session does as well.
        let opened = mesh.source.open().await.unwrap();
        assert!(opened.mux.is_usable());
        drop(opened);
        assert_eq!(timeout(STEP, drain.finish(STEP)).await.unwrap(), 0);
        mesh.pair.east_gateway.told(|told| told.nodes.is_empty()).await;
        mesh.stop().await;
    }
}

#[tokio::test]
async fn requests_wait_until_a_session_in_reverse_is_back() {
    for transport in BOTH {
        let mesh = Mesh::new(transport, true).await;
        holds(&mesh).await;
        assert_eq!(mesh.source.get().await, answered());
        let snapshot = mesh.destination.app.shared.snapshot.load().unwrap();
        let drain = mesh.destination.app.shared.drain.clone();
        assert_eq!(timeout(STEP, drain.finish(STEP)).await.unwrap(), 0);
        let (west, east) = (&mesh.pair.west, &mesh.pair.east);
        let start_again = async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            let config = Config { inbound: None, ..Config::given(edge_proxy::config::Role::Node) };
            let after = Proxy::start_on(node(), east, "web", &[west, east], config).await;
            after.publish(mesh_core::Snapshot::clone(&snapshot));
            after
        };
        let many = async {
            let mut asked = 0;
            while mesh.source.get().await == answered() {
                asked += 1;
                if asked == 20 {
                    return;
                }
            }
            panic!("a request has failed after {asked}");
        };
        let (after, ()) = tokio::join!(start_again, many);
        after.stop().await;
        mesh.stop().await;
    }
}
