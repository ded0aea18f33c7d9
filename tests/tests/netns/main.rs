//! Two sites on a real kernel, with servers and clients that nobody here
//! wrote. Run by `make test-netns`.

#![allow(clippy::disallowed_methods, reason = "real processes in real time")]

mod capture;
mod examples;
mod redirect;
mod world;

use std::time::Duration;

use world::{World, text};

const START: Duration = Duration::from_secs(30);
const FAILOVER: Duration = Duration::from_secs(60);
/// Where the mesh's virtual addresses live.
const VIRTUAL: &str = "240.0.0.0/4";

/// Echoes any message of `Ledger/Echo`; speaks no reflection.
const GRPC_SERVER: &str = r#"
import grpc, sys, time
from concurrent import futures
echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("demo.Ledger", {"Echo": echo}),))
server.add_insecure_port("127.0.0.1:50051")
server.start()
time.sleep(600)
"#;
const LEDGER_PROTO: &str = r#"
syntax = "proto3";
package demo;
service Ledger { rpc Echo(Entry) returns (Entry); }
message Entry { string text = 1; }
"#;

/// Both sites up, joined, linked, with real servers behind the proxies.
fn linked_sites() -> World {
    let mut world = World::new();
    for (site, address) in [("west", "10.77.0.1:8443"), ("east", "10.77.0.2:8443")] {
        start_site(&mut world, site, address);
    }
    start_machine(&mut world, "west", "west-vm", "shop:orders", "");
    start_machine(&mut world, "east", "east-node", "prod:payments", "10.77.2.2:4143");
    start_servers(&mut world);
    link(&world);
    world
}

fn start_site(world: &mut World, site: &str, address: &str) {
    let host = format!("{site}-gw");
    let root = world.path(site);
    let dir = |name: &str| root.join(name).display().to_string();
    let lan = if site == "west" { "10.77.1.1:8443" } else { "10.77.2.1:8443" };
    // Machines of the site come from the LAN, the other site from the WAN.
    let init = [
        "--run",
        &dir("run"),
        "site",
        "init",
        site,
        "--trust-domain",
        &format!("{site}.example"),
        "--state",
        &dir("state"),
        "--config",
        &dir("etc"),
        "--gateway-state",
        &dir("gateway-state"),
        "--gateway-address",
        address,
        "--gateway-address",
        lan,
    ];
    world.must(&host, &world.bin("meshctl"), &init);
    let config = |name: &str| dir(&format!("etc/{name}.yaml"));
    let (federation, gateway) = (config("federation"), config("gateway"));
    let (federation_bin, proxy_bin) = (world.bin("federation"), world.bin("edge-proxy"));
    world.start(&format!("{site}-federation"), &host, &federation_bin, &["--config", &federation]);
    world.start(&format!("{site}-gateway"), &host, &proxy_bin, &["--config", &gateway]);
    let run = dir("run");
    world.eventually("the control plane answers", START, |world| {
        let output = world.run(&host, &world.bin("meshctl"), &["--run", &run, "status"]);
        output.status.success().then_some(()).ok_or_else(|| text(&output.stderr))
    });
}

fn start_machine(world: &mut World, site: &str, host: &str, who: &str, advertise: &str) {
    let (namespace, account) = who.split_once(':').expect("namespace:account");
    let root = world.path(host);
    let dir = |name: &str| root.join(name).display().to_string();
    let advertise_line =
        if advertise.is_empty() { String::new() } else { format!("advertise: {advertise}\n") };
    let agent = world.write(
        &format!("{host}/agent.yaml"),
        &format!(
            "state: {}\nrun: {}\nservices: {}\nmachine_id_file: {}\n{advertise_line}",
            dir("state"),
            dir("run"),
            dir("services.d"),
            dir("machine-id"),
        ),
    );
    let id = format!("{:0>32}\n", if site == "west" { "a1" } else { "b2" });
    world.write(&format!("{host}/machine-id"), &id);
    std::fs::create_dir_all(dir("services.d")).expect("a folder");
    let inbound = if advertise.is_empty() { "" } else { "inbound: 0.0.0.0:4143\n" };
    let proxy = world.write(
        &format!("{host}/proxy.yaml"),
        &format!(
            "role: node\nidentity: {{ socket: {}/identity.sock }}\nhttp_listener: 127.0.0.1:4140\n\
             transparent: 127.0.0.1:4141\nadmin: 127.0.0.1:4191\naccess_log: {}\nstate: {}\nnames_file: names\n{inbound}",
            dir("run"), world.path(&format!("{host}-access.log")).display(), dir("proxy-state"),
        ),
    );
    let (agent_bin, proxy_bin) = (world.bin("vm-agent"), world.bin("edge-proxy"));
    world.start(
        &format!("{host}-agent"),
        host,
        &agent_bin,
        &["--config", &agent.display().to_string()],
    );
    world.start(
        &format!("{host}-proxy"),
        host,
        &proxy_bin,
        &["--config", &proxy.display().to_string()],
    );
    let site_run = world.path(&format!("{site}/run")).display().to_string();
    let token = world.must(
        host,
        &world.bin("meshctl"),
        &[
            "--run",
            &site_run,
            "-o",
            "json",
            "token",
            "create",
            "--namespace",
            namespace,
            "--account",
            account,
            "--uses",
            "1",
            "--ttl",
            "15m",
        ],
    );
    let token: serde_json::Value = serde_json::from_str(&token).expect("one JSON document");
    let token = token["token"].as_str().expect("a token").to_owned();
    let run = dir("run");
    world.eventually("the machine joins", START, |world| {
        let output = world.run(host, &world.bin("meshctl"), &["--run", &run, "join", &token]);
        output.status.success().then_some(()).ok_or_else(|| text(&output.stderr))
    });
}

fn serve(world: &World, host: &str, service: &str, namespace: &str, port: u16, protocol: &str) {
    world.write(
        &format!("{host}/services.d/{service}.yaml"),
        &format!(
            "service: {service}\nnamespace: {namespace}\nport: {port}\nprotocol: {protocol}\n\
             check: {{ tcp: {port}, interval: 1s }}\n"
        ),
    );
}

fn start_servers(world: &mut World) {
    for (host, content, port) in [("east-node", "paid", "8080"), ("west-vm", "ordered", "8080")] {
        let index = world.write(&format!("{host}/www/index.html"), content);
        let folder = index.parent().expect("a folder").display().to_string();
        let args = ["-m", "http.server", "--bind", "127.0.0.1", "-d", &folder, port];
        world.start(&format!("{host}-http"), host, "python3", &args);
    }
    let redis = ["--bind", "127.0.0.1", "--port", "6379", "--save", "", "--dir", "/tmp"];
    world.start("redis", "east-node", "redis-server", &redis);
    let ledger = world.write("ledger.py", GRPC_SERVER).display().to_string();
    world.start("grpc", "east-node", "python3", &[&ledger]);
    world.write("ledger.proto", LEDGER_PROTO);
    serve(world, "east-node", "payments", "prod", 8080, "http");
    serve(world, "east-node", "cache", "prod", 6379, "tcp");
    serve(world, "east-node", "ledger", "prod", 50051, "grpc");
    serve(world, "west-vm", "orders", "shop", 8080, "http");
}

fn meshctl(world: &World, site: &str, args: &[&str]) -> String {
    let run = world.path(&format!("{site}/run")).display().to_string();
    world.must(&format!("{site}-gw"), &world.bin("meshctl"), &[&["--run", &run], args].concat())
}

fn json(world: &World, site: &str, args: &[&str]) -> serde_json::Value {
    let output = meshctl(world, site, &[&["-o", "json"], args].concat());
    serde_json::from_str(&output).expect("one JSON document")
}

fn link(world: &World) {
    let token = json(world, "east", &["link", "token", "--site", "west"]);
    let token = token["token"].as_str().expect("a token").to_owned();
    meshctl(world, "west", &["link", "cluster", "east", &token]);
    for service in ["payments.prod", "cache.prod", "ledger.prod"] {
        meshctl(world, "east", &["service", "export", service]);
    }
    meshctl(world, "west", &["service", "export", "orders.shop"]);
}

fn curl(world: &World, host: &str, args: &[&str]) -> Result<String, String> {
    let all = [&["-sS", "--max-time", "10", "--fail-with-body"], args].concat();
    let output = world.run(host, "curl", &all);
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stdout) + &text(&output.stderr))
    }
}

fn through_proxy(world: &World, host: &str, url: &str) -> Result<String, String> {
    curl(world, host, &["--proxy", "http://127.0.0.1:4140", url])
}

#[test]
fn requests_of_real_clients_reach_real_servers() {
    let mut world = linked_sites();
    let page = world.eventually("west reaches east", START, |world| {
        through_proxy(world, "west-vm", "http://payments.prod:8080/index.html")
    });
    assert_eq!(page, "paid");
    let page = world.eventually("east reaches the VM", START, |world| {
        through_proxy(world, "east-node", "http://orders.shop:8080/index.html")
    });
    assert_eq!(page, "ordered");

    captured_traffic_reaches_its_service(&world);
    redis_and_grpc_answer(&world);
    only_gateways_met(&world);
    without_udp_the_link_uses_tls(&world);
    a_machine_that_dies_disappears(&mut world);
}

/// By original destination: the kernel redirects what goes to a virtual
/// address.
fn captured_traffic_reaches_its_service(world: &World) {
    world.must("west-vm", "ip", &["route", "add", VIRTUAL, "dev", "lan"]);
    world.nft(
        "west-vm",
        &format!(
            "table ip capture {{ chain output {{ type nat hook output priority -100;
                ip daddr {VIRTUAL} meta l4proto tcp redirect to :4141
            }}
            }}"
        ),
    );
    let page = world.eventually("captured HTTP", START, |world| {
        let address = virtual_address(world, "payments.prod")?;
        let resolve = format!("payments.prod:8080:{address}");
        curl(world, "west-vm", &["--resolve", &resolve, "http://payments.prod:8080/index.html"])
    });
    assert_eq!(page, "paid");
}

fn virtual_address(world: &World, service: &str) -> Result<String, String> {
    let list = json(world, "west", &["service", "list"]);
    let rows = list.as_array().or_else(|| list["services"].as_array());
    let row = rows.into_iter().flatten().find(|row| row["name"] == service);
    let address = row.and_then(|row| row["virtual_address"].as_str());
    address.map(str::to_owned).ok_or_else(|| format!("no virtual address in {list}"))
}

fn redis_and_grpc_answer(world: &World) {
    let address = virtual_address(world, "cache.prod").expect("an address");
    world.eventually("redis through the mesh", START, |world| {
        let args = ["-h", &address, "-p", "6379", "set", "key", "through the mesh"];
        let output = world.run("west-vm", "redis-cli", &args);
        if text(&output.stdout).trim() == "OK" {
            Ok(())
        } else {
            Err(text(&output.stdout) + &text(&output.stderr))
        }
    });
    let args = ["-h", &address, "-p", "6379", "get", "key"];
    assert_eq!(world.must("west-vm", "redis-cli", &args).trim(), "through the mesh");
    let stored = world.must("east-node", "redis-cli", &["get", "key"]);
    assert_eq!(stored.trim(), "through the mesh");

    let ledger = virtual_address(world, "ledger.prod").expect("an address");
    let (protos, target) = (world.path("").display().to_string(), format!("{ledger}:50051"));
    let args = [
        "-plaintext",
        "-max-time",
        "10",
        "-import-path",
        &protos,
        "-proto",
        "ledger.proto",
        "-d",
        r#"{"text": "debit"}"#,
        &target,
        "demo.Ledger/Echo",
    ];
    let answer = world.eventually("gRPC through the mesh", START, |world| {
        let output = world.run("west-vm", "grpcurl", &args);
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    });
    assert!(answer.contains("debit"), "{answer}");
}

fn only_gateways_met(world: &World) {
    for gateway in ["west-gw", "east-gw"] {
        assert_eq!(world.packets(gateway, "stray"), 0, "{gateway}: traffic besides the tunnels");
        assert_eq!(world.packets(gateway, "forwarded"), 0, "{gateway}: packets were routed");
    }
    assert!(world.packets("east-gw", "tunnel") > 0, "no tunnel crossed the WAN");
    assert_eq!(world.packets("west-vm", "inbound"), 0, "somebody dialled the VM");
}

fn transports(world: &World) -> Vec<String> {
    let links = json(world, "west", &["links"]);
    let rows = links.as_array().or_else(|| links["links"].as_array()).cloned().unwrap_or_default();
    let tunnels = rows.iter().filter_map(|row| row["tunnels"].as_array()).flatten();
    tunnels.filter_map(|tunnel| tunnel["transport"].as_str().map(str::to_owned)).collect()
}

fn without_udp_the_link_uses_tls(world: &World) {
    world.eventually("the link uses QUIC", START, |world| {
        let used = transports(world);
        if !used.is_empty() && used.iter().all(|t| t == "quic") {
            Ok(())
        } else {
            Err(format!("{used:?}"))
        }
    });
    for gateway in ["west-gw", "east-gw"] {
        world.nft(
            gateway,
            "table inet blockudp { chain input { type filter hook input priority -10;
                iifname wan meta l4proto udp drop
            }
            }",
        );
    }
    world.eventually("the link uses TLS", FAILOVER, |world| {
        let used = transports(world);
        if !used.is_empty() && used.iter().all(|t| t == "tls") {
            Ok(())
        } else {
            Err(format!("{used:?}"))
        }
    });
    let page = world.eventually("west reaches east without UDP", START, |world| {
        through_proxy(world, "west-vm", "http://payments.prod:8080/index.html")
    });
    assert_eq!(page, "paid");
}

fn endpoints(world: &World, site: &str, service: &str) -> usize {
    let list = json(world, site, &["endpoints", service]);
    list.as_array().or_else(|| list["endpoints"].as_array()).map_or(0, Vec::len)
}

/// Agent and proxy gone at once: no word of farewell, only silence.
fn a_machine_that_dies_disappears(world: &mut World) {
    for site in ["west", "east"] {
        assert!(endpoints(world, site, "payments.prod") > 0, "{site} knows no endpoint");
    }
    world.stop("east-node-agent", "KILL");
    world.stop("east-node-proxy", "KILL");
    for site in ["west", "east"] {
        world.eventually("the dead machine is forgotten", START, |world| {
            match endpoints(world, site, "payments.prod") {
                0 => Ok(()),
                n => Err(format!("{site} still has {n} endpoints")),
            }
        });
    }
}
