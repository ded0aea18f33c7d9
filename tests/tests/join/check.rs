//! `meshctl check --from --to`: the first hop that does not work, by name.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    process::Output,
    thread,
};

use isthmus_tests::ports::free;
use serde_json::Value;

use crate::world::{Agent, World, meshctl, run, until};

const CALLER: &str = "shop/orders";
/// The machine may ask federation.
const ROLES: &str = "roles: [{ id: \"spiffe://west.example/ns/shop/sa/orders\", role: viewer }]\n";

/// Answers HTTP for as long as the test's process lives; in threads, because a
/// test waits for its commands.
fn answer(listener: tokio::net::TcpListener) {
    let listener = listener.into_std().unwrap();
    listener.set_nonblocking(false).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut head = [0; 4096];
                while stream.read(&mut head).is_ok_and(|n| n > 0) {
                    if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A command that ends shows one document, also when it fails.
fn shown(output: &Output) -> (i32, Value) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().unwrap();
    (code, serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{code}: {said}")))
}

/// Exit code, and the last hop: the first that failed, or the end.
fn last(output: &Output) -> (i32, String, Value) {
    let (code, walk) = shown(output);
    let items = walk["items"].as_array().unwrap().clone();
    let failed = items.iter().filter(|item| item["ok"] == false).count();
    assert_eq!(failed, usize::from(code != 0), "{walk}");
    let last = items.last().unwrap().clone();
    assert_eq!(last["remedy"] == "", code == 0, "{last}");
    (code, last["hop"].as_str().unwrap().to_owned(), last)
}

struct Scene {
    world: World,
    machine: Agent,
    listener: SocketAddr,
}

impl Scene {
    /// What an operator asks on the caller's machine.
    fn here(&self, to: &str) -> Output {
        let proxy = self.listener.to_string();
        let words = ["--json", "check", "--from", CALLER, "--to", to, "--proxy", &proxy];
        meshctl(&self.machine, &words)
    }

    /// What an operator asks on the host of federation.
    fn there(&self, from: &str, to: &str) -> Output {
        self.world.meshctl_output(&["--json", "check", "--from", from, "--to", to])
    }
}

/// A machine that calls the service it backs.
async fn scene() -> (Scene, crate::world::Proxy) {
    let world = World::start_with(ROLES).await;
    let token = world.token(&["*.shop"], 1).await;
    let mut machine = Agent::start_unreachable(&world, "vm1").await;
    let app = machine.serve("orders").await;
    answer(app);
    let listener = free();
    let proxy = machine.proxy(&format!("http_listener: {listener}\nadmin: off\n"));
    machine.join(&token).await.unwrap();
    let scene = Scene { world, machine, listener };
    until("the way is whole", || async { scene.here("orders.shop").status.success() }).await;
    (scene, proxy)
}

#[test]
fn a_way_that_works_ends_with_a_real_request() {
    run(async {
        let (scene, _proxy) = scene().await;
        let (code, hop, item) = last(&scene.here("orders.shop"));
        assert_eq!((code, hop.as_str(), &item["skipped"]), (0, "request", &false.into()), "{item}");
        assert!(item["detail"].as_str().unwrap().starts_with("HTTP 204 in "), "{item}");

        // Nobody else can make the caller's request, and that is not hidden.
        let (code, hop, item) = last(&scene.there(CALLER, "orders.shop:80"));
        assert_eq!((code, hop.as_str(), &item["skipped"]), (0, "request", &true.into()), "{item}");
        assert!(item["detail"].as_str().unwrap().contains("not asked"), "{item}");
        let (_, walk) = shown(&scene.there(CALLER, "orders.shop"));
        let hops: Vec<&str> =
            walk["items"].as_array().unwrap().iter().map(|i| i["hop"].as_str().unwrap()).collect();
        let all = [
            "federation",
            "name",
            "name",
            "gateway",
            "route",
            "endpoint",
            "policy",
            "path",
            "identity",
            "clock",
            "request",
        ];
        assert_eq!(hops, all);
    });
}

#[test]
fn names_policies_and_identities_that_fail_are_named() {
    run(async {
        let (scene, _proxy) = scene().await;
        let node = format!("spiffe://west.example/node/{}", scene.machine.status().await.node);
        for (from, to, hop, why) in [
            (CALLER, "nothing.shop", "name", "nothing.shop"),
            (CALLER, "orders.shop:grpc", "name", "no port grpc"),
            ("spiffe://east.example/ns/shop/sa/a", "orders.shop", "name", "not of west.example"),
            (node.as_str(), "orders.shop", "policy", "denied_not_a_workload"),
            ("shop/nobody", "orders.shop", "identity", "sa/nobody"),
        ] {
            let (code, at, item) = last(&scene.there(from, to));
            assert_eq!((code, at.as_str()), (1, hop), "{item}");
            assert!(item["detail"].as_str().unwrap().contains(why), "{item}");
        }
        for words in [
            &["check", "--from", "not a name", "--to", "orders.shop"][..],
            &["check", "--from", CALLER],
            &["check", "--path", "/x"],
        ] {
            let output = scene.world.meshctl_output(words);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        }
    });
}

#[test]
fn parts_that_are_away_are_named() {
    run(async {
        let (mut scene, proxy) = scene().await;
        // An application that hangs up on everybody, which a TCP check likes.
        let broken = scene.machine.serve("broken").await.into_std().unwrap();
        broken.set_nonblocking(false).unwrap();
        thread::spawn(move || broken.incoming().for_each(drop));
        until("it is published", || async {
            scene.world.endpoints("broken.shop").await.len() == 1
        })
        .await;
        until("its proxy says so", || async {
            let (code, hop, item) = last(&scene.here("broken.shop"));
            let why = item["detail"].as_str().unwrap();
            code == 1 && hop == "request" && why.contains("(HTTP 502)")
        })
        .await;

        // Somebody else's port.
        let proxy_at = std::mem::replace(&mut scene.listener, free());
        let (code, hop, item) = last(&scene.here("orders.shop"));
        assert_eq!((code, hop.as_str()), (1, "proxy"), "{item}");
        assert!(item["remedy"].as_str().unwrap().contains("--proxy"), "{item}");
        scene.listener = proxy_at;

        // Its proxy: federation soon knows that nothing leads there.
        drop(proxy);
        until("the proxy is missed", || async {
            let (code, hop, _) = last(&scene.there(CALLER, "orders.shop"));
            code == 1 && ["path", "identity", "endpoint"].contains(&hop.as_str())
        })
        .await;

        scene.world.kill_gateway();
        let (code, hop, item) = last(&scene.there(CALLER, "orders.shop"));
        assert_eq!((code, hop.as_str()), (1, "gateway"), "{item}");
        assert!(item["remedy"].as_str().unwrap().contains("isthmus-gateway"), "{item}");

        scene.world.kill_federation();
        let (code, hop, item) = last(&scene.there(CALLER, "orders.shop"));
        assert_eq!((code, hop.as_str()), (69, "federation"), "{item}");
    });
}
