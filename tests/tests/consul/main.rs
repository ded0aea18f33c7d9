//! A site beside a real Consul: who knows only the one and who knows only the other
//! reach each other. Run by `make test-consul`.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "real processes in real time")]

#[allow(dead_code, reason = "shared with the bridge's own tests")]
#[path = "../../../mesh-consul/tests/real/consul.rs"]
mod consul;
#[allow(dead_code, reason = "shared with the hostile ring")]
#[path = "../hostile/programs.rs"]
mod programs;
#[allow(dead_code, reason = "shared with the hostile ring")]
#[path = "../hostile/site.rs"]
mod site;
mod six;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use consul::Consul;
use programs::eventually;
use serde_json::{Value, json};
use site::{FEDERATION, Machine, Site, get};

/// Whose proxy leads to what is only in Consul.
const DOOR: Machine = Machine("door", 21);
/// Where a client of the mesh is.
const CALLER: Machine = Machine("caller", 22);
/// Where the application is that is only in Consul.
const LEGACY: u8 = 30;
const LEGACY_SAYS: &str = "the mesh is news to me";

/// An application without a proxy, that says whom it was asked as.
fn serve_legacy(addr: SocketAddr) {
    let listener = TcpListener::bind(addr).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    stream.read_exact(&mut byte)?;
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let caller =
                    head.lines().find_map(|line| line.strip_prefix("x-isthmus-client-id: "));
                let text = format!("{LEGACY_SAYS}, {}", caller.unwrap_or("nobody"));
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
                    text.len()
                )
            });
        }
    });
}

struct World {
    runtime: tokio::runtime::Runtime,
    consul: Consul,
    site: Site,
}

impl World {
    fn start() -> Self {
        let runtime = mesh_runtime::process::current_thread().unwrap();
        let consul = runtime.block_on(Consul::start(json!({})));
        let mut site = Site::start();
        site.add(DOOR);
        let door = door_of(&site);
        site.add_backing(CALLER, "stock");
        site.kill(FEDERATION);
        let config = site.config("federation.yaml");
        let bridge = format!(
            "\nconsul:\n  - address: {}\n    door: {door}\n    churn_interval: 100ms\n    \
             import: [{{ allow: ['legacy*'], as_namespace: shop }}]\n    \
             export: [{{ service: orders.shop, as: mesh-orders, at: ['{}'] }}]\n",
            consul.address(),
            site.addr(DOOR.1, 7000),
        );
        let written = fs::read_to_string(&config).unwrap();
        fs::write(&config, written + &bridge).unwrap();
        site.start_federation();
        Self { runtime, consul, site }
    }

    fn consul_says(&self, method: &str, path: &str, body: &Value) -> Value {
        self.runtime.block_on(self.consul.call(method, path, body))
    }

    fn register_legacy(&self) {
        let at = self.site.addr(LEGACY, 8090);
        let registration = json!({ "Name": "legacy", "ID": "legacy-1", "Port": 8090,
            "Address": at.ip().to_string(), "Check": { "CheckID": "legacy-1-check",
            "TTL": "600s", "Status": "passing" } });
        self.consul_says("PUT", "/v1/agent/service/register", &registration);
    }

    /// What a client of the mesh is answered.
    fn asks_legacy(&self) -> Result<String, String> {
        get(self.site.addr(CALLER.1, 4140), "/", "legacy.shop").map_err(|e| e.to_string())
    }

    fn is_served(&self) {
        eventually("the mesh reaches who is only in Consul", || match self.asks_legacy()? {
            answer if answer.contains(LEGACY_SAYS) => Ok(()),
            answer => Err(answer),
        });
    }
}

fn door_of(site: &Site) -> String {
    let nodes: Value = serde_json::from_str(&site.said(&["--json", "node", "list"])).unwrap();
    nodes["nodes"][0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn who_knows_only_consul_and_who_knows_only_the_mesh_reach_each_other() {
    let mut world = World::start();
    serve_legacy(world.site.addr(LEGACY, 8090));
    world.register_legacy();
    world.is_served();
    let answer = world.asks_legacy().unwrap();
    assert!(answer.contains("spiffe://west.example/ns/shop/sa/orders"), "authorized: {answer}");

    // Neither without Consul nor without federation is anything lost.
    world.consul.signal("STOP");
    world.site.kill(FEDERATION);
    assert!(world.asks_legacy().unwrap().contains(LEGACY_SAYS));
    world.site.start_federation();
    assert!(world.asks_legacy().unwrap().contains(LEGACY_SAYS));
    world.consul.signal("CONT");

    // A client that knows only Consul.
    let place = eventually("Consul shows the export", || {
        let path = "/v1/health/service/mesh-orders?passing";
        let entries = world.consul_says("GET", path, &Value::Null);
        let service = entries[0]["Service"].clone();
        if service.is_null() { Err(entries.to_string()) } else { Ok(service) }
    });
    assert_eq!(place["Meta"]["isthmus-site"], "west");
    let port = u16::try_from(place["Port"].as_u64().unwrap()).unwrap();
    let mut stream = TcpStream::connect((place["Address"].as_str().unwrap(), port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(b"over the mesh").unwrap();
    let mut echoed = [0; 13];
    stream.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"over the mesh");

    // What goes from Consul goes from the mesh, and comes back.
    world.consul_says("PUT", "/v1/agent/service/deregister/legacy-1", &Value::Null);
    eventually("it is gone", || match world.asks_legacy()? {
        answer if answer.contains(LEGACY_SAYS) => Err(answer),
        _ => Ok(()),
    });
    world.register_legacy();
    world.is_served();
    world.site.check_alive();
}
