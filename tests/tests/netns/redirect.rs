//! The init container of a pod: `isthmus-k8s redirect` in a network namespace, with
//! a proxy that says where connections were bound for.

use crate::{
    START,
    world::{World, text},
};

const POD: &str = "east-node";
const OUTSIDE: &str = "east-gw";
/// Of the proxy, and of an application.
const PROXY: u32 = 2102;
const APP: u32 = 1000;

/// Says its own name to whoever connects to one of its ports.
const SERVER: &str = r#"
import socket, sys, threading
def serve(listener):
    while True:
        client = listener.accept()[0]
        client.sendall(sys.argv[1].encode())
        client.close()
for port in sys.argv[2:]:
    listener = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=serve, args=(listener,)).start()
"#;
/// Says by which port, and where the connection was bound for (`SO_ORIGINAL_DST`).
const PROXY_STUB: &str = r#"
import socket, struct, threading
def target(client):
    if client.getpeername()[0].startswith("::ffff:") or client.family == socket.AF_INET:
        raw = client.getsockopt(socket.SOL_IP, 80, 16)
        return socket.inet_ntop(socket.AF_INET, raw[4:8]) + " " + str(struct.unpack("!H", raw[2:4])[0])
    raw = client.getsockopt(socket.IPPROTO_IPV6, 80, 28)
    return socket.inet_ntop(socket.AF_INET6, raw[8:24]) + " " + str(struct.unpack("!H", raw[2:4])[0])
def serve(listener):
    port = listener.getsockname()[1]
    while True:
        client = listener.accept()[0]
        try:
            client.sendall(f"{port} {target(client)}".encode())
        except FileNotFoundError:
            client.sendall(f"{port} nowhere else".encode())
        client.close()
listeners = [
    socket.create_server(("127.0.0.1", 4141)),
    socket.create_server(("::1", 4141), family=socket.AF_INET6),
    socket.create_server(("::", 4144), family=socket.AF_INET6, dualstack_ipv6=True),
]
for listener in listeners:
    threading.Thread(target=serve, args=(listener,)).start()
"#;
const CLIENT: &str = "exec 3<>/dev/tcp/$0/$1 && cat <&3";
/// Of somebody else, which must stay as it is.
const FOREIGN: &str = "table ip theirs {
    chain input { type filter hook input priority 0;
        tcp dport 2375 accept
    }
}";
const REDIRECT: [&str; 4] = [
    "redirect",
    "--skip-outbound-ports=8001,9000-9010",
    "--skip-outbound-cidrs=10.77.2.128/25,fd77:0:0:8000::/49",
    "--skip-inbound-ports=9100",
];

/// What a client hears.
fn heard(world: &World, host: &str, user: u32, address: &str, port: u16) -> String {
    let user = [format!("--reuid={user}"), format!("--regid={user}")];
    let port = port.to_string();
    let client = ["timeout", "5", "bash", "-c", CLIENT, address, &port];
    let args = [&[user[0].as_str(), &user[1], "--clear-groups"][..], &client].concat();
    let output = world.run(host, "setpriv", &args);
    match output.status.success() {
        true => text(&output.stdout).trim().to_owned(),
        false => text(&output.stderr).lines().last().unwrap_or_default().to_owned(),
    }
}

fn pod() -> World {
    let mut world = World::new();
    for (host, address) in [
        (OUTSIDE, "fd77::1/64"),
        (OUTSIDE, "fd77:0:0:8000::1/64"),
        (POD, "fd77::2/64"),
        (POD, "fd77:0:0:8000::2/64"),
    ] {
        world.must(host, "ip", &["addr", "add", address, "dev", "lan", "nodad"]);
    }
    world.must(OUTSIDE, "ip", &["addr", "add", "10.77.2.200/24", "dev", "lan"]);
    world.nft(POD, FOREIGN);
    let outside = ["-c", SERVER, "outside", "8000", "8001", "9005"];
    world.start("outside", OUTSIDE, "python3", &outside);
    let app = ["-c", SERVER, "app", "8080", "4143", "4191", "9100"];
    world.start("app", POD, "python3", &app);
    world.start("proxy", POD, "python3", &["-c", PROXY_STUB]);
    for (host, address, port, says) in [
        (POD, "10.77.2.1", 9005, "outside"),
        (OUTSIDE, "10.77.2.2", 9100, "app"),
        (OUTSIDE, "10.77.2.2", 4144, "4144 nowhere else"),
    ] {
        world.eventually("servers listen", START, |world| {
            match heard(world, host, APP, address, port) {
                heard if heard == says => Ok(()),
                heard => Err(heard),
            }
        });
    }
    world
}

fn rules(world: &World) -> String {
    world.must(POD, "nft", &["list", "ruleset"])
}

#[test]
fn a_pods_connections_go_to_its_proxy() {
    let world = pod();
    let program = world.bin("isthmus-k8s");
    assert_eq!(heard(&world, POD, APP, "10.77.2.1", 8000), "outside");
    world.must(POD, &program, &REDIRECT);

    // Outbound, of both families, with the true destination.
    assert_eq!(heard(&world, POD, APP, "10.77.2.1", 8000), "4141 10.77.2.1 8000");
    assert_eq!(heard(&world, POD, APP, "fd77::1", 8000), "4141 fd77::1 8000");
    assert_eq!(heard(&world, POD, 0, "10.77.2.1", 1), "4141 10.77.2.1 1");
    // The proxy's own, skipped ports, skipped blocks, loopback.
    for address in ["10.77.2.1", "fd77::1"] {
        assert_eq!(heard(&world, POD, PROXY, address, 8000), "outside", "{address}");
        assert_eq!(heard(&world, POD, APP, address, 8001), "outside", "{address}");
        assert_eq!(heard(&world, POD, APP, address, 9005), "outside", "{address}");
    }
    assert_eq!(heard(&world, POD, APP, "10.77.2.200", 8000), "outside");
    assert_eq!(heard(&world, POD, APP, "fd77:0:0:8000::1", 8000), "outside");
    for address in ["127.0.0.1", "::1", "10.77.2.2", "fd77::2"] {
        assert_eq!(heard(&world, POD, APP, address, 8080), "app", "{address}");
    }
    // Inbound.
    assert_eq!(heard(&world, OUTSIDE, APP, "10.77.2.2", 8080), "4144 10.77.2.2 8080");
    assert_eq!(heard(&world, OUTSIDE, APP, "fd77::2", 8080), "4144 fd77::2 8080");
    for port in [4143, 4191, 9100] {
        assert_eq!(heard(&world, OUTSIDE, APP, "10.77.2.2", port), "app", "{port}");
        assert_eq!(heard(&world, OUTSIDE, APP, "fd77::2", port), "app", "{port}");
    }
    same_again(&world, &program);
}

/// A container that is started again, with the same arguments and with others.
fn same_again(world: &World, program: &str) {
    let once = rules(world);
    world.must(POD, program, &REDIRECT);
    assert_eq!(rules(world), once);
    let output = world.run(POD, program, &["redirect", "--skip-outbound-ports=0"]);
    assert!(!output.status.success() && text(&output.stderr).contains("is no port"));
    let unprivileged = ["--reuid=65534", "--clear-groups", program, "redirect"];
    let output = world.run(POD, "setpriv", &unprivileged);
    assert!(text(&output.stderr).contains("needs the capability NET_ADMIN"), "{output:?}");
    assert_eq!(rules(world), once);
    world.must(POD, program, &["redirect"]);
    assert!(!rules(world).contains("9000-9010"));
    // Whatever is ours goes with its table, and nothing else.
    world.must(POD, "nft", &["delete", "table", "inet", "isthmus"]);
    let theirs = rules(world);
    world.nft(POD, "flush ruleset");
    world.nft(POD, FOREIGN);
    assert_eq!(rules(world), theirs);
}
