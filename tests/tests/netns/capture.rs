//! The kernel sends connections of a machine to its proxy, and knows what to do
//! when those who told it to are gone.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    START, json, linked_sites,
    world::{World, text},
};

const HOST: &str = "east-node";
/// Captured, and one who is not.
const SHOP: u32 = 2000;
const OTHER: u32 = 3000;
/// None of the mesh, of both families, at the same machine.
const ELSEWHERE: [&str; 2] = ["http://10.77.2.1:8000/", "http://[fd77::1]:8000/"];
/// A proxy may be silent for 5 s, and one beat more.
const GONE: Duration = Duration::from_millis(6500);

/// Counts what it has heard back.
const ECHO_CLIENT: &str = r#"
until exec 3<>/dev/tcp/10.77.2.1/7000; do sleep 0.1; done
while printf ping >&3 && read -r -N4 -t5 <&3; do
    echo heard
    sleep 0.05
done
echo cut
"#;
const ECHO_SERVER: &str = r#"
import socket, threading
def serve(client):
    while data := client.recv(4096):
        client.sendall(data)
server = socket.create_server(("10.77.2.1", 7000))
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;
/// Written by hand (RFC 1035 section 4): A and AAAA.
const ASK: &str = r#"
import socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.settimeout(1)
for kind, family, length in (b"\1", socket.AF_INET, 4), (b"\x1c", socket.AF_INET6, 16):
    question = b"\0\7\1\0\0\1\0\0\0\0\0\0\6orders\4shop\4mesh\0\0" + kind + b"\0\1"
    client.sendto(question, ("127.240.0.53", 53))
    print(socket.inet_ntop(family, client.recv(512)[-length:]))
"#;

fn surroundings() -> World {
    let mut world = linked_sites();
    for (host, address) in [("east-gw", "fd77::1/64"), (HOST, "fd77::2/64")] {
        world.must(host, "ip", &["addr", "add", address, "dev", "lan", "nodad"]);
    }
    let index = world.write("elsewhere/index.html", "elsewhere");
    let folder = index.parent().expect("a folder").display().to_string();
    let args = ["-m", "http.server", "--bind", "::", "-d", &folder, "8000"];
    world.start("elsewhere", "east-gw", "python3", &args);
    world.start("echo-server", "east-gw", "python3", &["-c", ECHO_SERVER]);
    // Somebody else's, who keeps no track of connections.
    world.nft(
        HOST,
        "table ip docker { chain DOCKER { tcp dport 2375 accept; }
            chain forward { type filter hook forward priority 0; jump DOCKER; }
        }",
    );
    let root = world.path(HOST).display().to_string();
    world.write(
        &format!("{HOST}/capture.yaml"),
        &format!(
            "outbound: [{{ user: {SHOP} }}]\nproxy: {{ user: 0 }}\ninbound: [{{ port: 9000 }}]\n"
        ),
    );
    start_keeper(&mut world, &root);
    world
}

fn start_keeper(world: &mut World, root: &str) {
    let (rules, run) = (format!("{root}/capture.yaml"), format!("{root}/run"));
    let state = format!("{root}/capture-state");
    let args = ["capture", "--rules", &rules, "--run", &run, "--state", &state];
    world.start("keeper", HOST, &world.bin("vm-agent"), &args);
    world.eventually("the keeper answers", START, |world| capture(world, &["status"]).map(|_| ()));
}

fn start_proxy(world: &mut World) {
    let config = world.path(&format!("{HOST}/proxy.yaml")).display().to_string();
    world.start(&format!("{HOST}-proxy"), HOST, &world.bin("edge-proxy"), &["--config", &config]);
}

fn capture(world: &World, args: &[&str]) -> Result<serde_json::Value, String> {
    let run = world.path(&format!("{HOST}/run")).display().to_string();
    let all = [&["--run", &run, "--json", "vm", "capture"], args].concat();
    let output = world.run(HOST, &world.bin("meshctl"), &all);
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("one JSON document")),
        false => Err(text(&output.stderr)),
    }
}

fn must_capture(world: &World, args: &[&str]) -> serde_json::Value {
    let what = format!("meshctl vm capture {args:?}");
    world.eventually(&what, START, |world| capture(world, args))
}

fn curl_as(world: &World, user: u32, args: &[&str]) -> Result<String, String> {
    let user = [format!("--reuid={user}"), format!("--regid={user}")];
    let setpriv =
        [user[0].as_str(), &user[1], "--clear-groups", "curl", "-sS", "--max-time", "3", "-f"];
    let output = world.run(HOST, "setpriv", &[&setpriv, args].concat());
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stdout) + &text(&output.stderr)),
    }
}

/// Connections that the proxy has carried to who is none of the mesh.
fn passed(world: &World) -> usize {
    let log = std::fs::read_to_string(world.path(&format!("{HOST}-access.log")));
    log.unwrap_or_default().lines().filter(|line| line.contains("elsewhere")).count()
}

/// Who is none of the mesh answers, and whether that went by the proxy.
fn goes_by_proxy(world: &World, user: u32, url: &str) -> Result<bool, String> {
    let before = passed(world);
    let page = curl_as(world, user, &[url])?;
    assert_eq!(page, "elsewhere", "{url}");
    let until = Instant::now() + Duration::from_millis(500);
    while passed(world) == before && Instant::now() < until {
        sleep(Duration::from_millis(20));
    }
    Ok(passed(world) > before)
}

fn assert_way(world: &World, user: u32, by_proxy: bool) {
    for url in ELSEWHERE {
        assert_eq!(
            goes_by_proxy(world, user, url),
            Ok(by_proxy),
            "uid {user}, {url}\n{}",
            world.logs()
        );
    }
}

/// Counters aside, as `nft` shows them.
fn rule_set(world: &World) -> String {
    world.must(HOST, "nft", &["-s", "list", "ruleset"])
}

fn virtual_address(world: &World) -> String {
    world.eventually("orders.shop has an address", START, |world| {
        let list = json(world, "east", &["service", "list"]);
        let rows = list.as_array().or_else(|| list["services"].as_array());
        let row = rows.into_iter().flatten().find(|row| row["name"] == "orders.shop");
        let address = row.and_then(|row| row["virtual_address"].as_str());
        address.map(str::to_owned).ok_or_else(|| format!("no virtual address in {list}"))
    })
}

fn virtual_ipv6(world: &World) -> String {
    let v4: Ipv4Addr = virtual_address(world).parse().expect("an address of IPv4");
    Ipv6Addr::from(0xfd69_7374_686d << 80 | u128::from(u32::from(v4))).to_string()
}

fn heard(world: &World) -> usize {
    let log = std::fs::read_to_string(world.path("echo.log")).unwrap_or_default();
    assert!(!log.lines().any(|line| line == "cut"), "the connection was cut: {log}");
    log.lines().filter(|line| *line == "heard").count()
}

/// A connection from before the rules goes on.
fn assert_heard(world: &World) {
    let before = heard(world);
    world.eventually("the old connection goes on", Duration::from_secs(3), |world| {
        if heard(world) > before + 3 { Ok(()) } else { Err("silent".to_owned()) }
    });
}

#[test]
fn captured_traffic_survives_who_captures_it() {
    let mut world = surroundings();
    let root = world.path(HOST).display().to_string();
    let service = format!("http://{}:8080/index.html", virtual_address(&world));
    let by_ipv6 = format!("http://[{}]:8080/index.html", virtual_ipv6(&world));
    let before = rule_set(&world);
    let user = format!("--reuid={SHOP}");
    world.start(
        "echo",
        HOST,
        "setpriv",
        &[user.as_str(), "--clear-groups", "bash", "-c", ECHO_CLIENT],
    );
    assert_heard(&world);
    assert_way(&world, SHOP, false);

    an_unconfirmed_trial_ends_without_anybody(&mut world, &root, &before);

    let status = must_capture(&world, &["enable", "--confirm-within", "60s"]);
    assert_eq!(status["state"], "trial", "{status}");
    assert_heard(&world);
    assert_eq!(must_capture(&world, &["confirm"])["state"], "on");
    for (user, url) in [(SHOP, &service), (OTHER, &service), (SHOP, &by_ipv6), (OTHER, &by_ipv6)] {
        let page =
            world.eventually("a virtual address", START, |world| curl_as(world, user, &[url]));
        assert_eq!(page, "ordered", "uid {user}, {url}");
    }
    assert_way(&world, SHOP, true);
    assert_way(&world, OTHER, false);
    assert_heard(&world);

    names_lead_there_while_somebody_answers(&mut world, &root);
    the_keeper_may_die(&mut world, &root);
    without_a_proxy_what_is_none_of_the_mesh_goes_direct(&mut world, [&service, &by_ipv6]);
    ports_are_refused_to_others(&mut world);

    assert_eq!(must_capture(&world, &["disable"])["state"], "off");
    assert_eq!(rule_set(&world), before);
    world.eventually("link and route are gone", Duration::from_secs(3), |world| {
        let routes = ["-4", "-6"]
            .map(|family| world.must(HOST, "ip", &[family, "route", "show", "proto", "141"]));
        let route = routes.concat();
        let link = world.run(HOST, "ip", &["link", "show", "isthmus0"]);
        match route.is_empty() && !link.status.success() {
            true => Ok(()),
            false => Err(format!("{route}{}", text(&link.stdout))),
        }
    });
    assert_heard(&world);
    world.stop("keeper", "KILL");
    start_keeper(&mut world, &root);
    assert_eq!(rule_set(&world), before, "what was disabled comes back");
}

/// The kernel reverts when nobody is left who could.
fn an_unconfirmed_trial_ends_without_anybody(world: &mut World, root: &str, before: &str) {
    let status = must_capture(world, &["enable", "--confirm-within", "6s"]);
    let began = Instant::now();
    assert_eq!(status["state"], "trial", "{status}");
    world.stop("keeper", "KILL");
    // Nobody renews what says that the proxy is well: it has 5 s of its own.
    assert_way(world, SHOP, true);
    assert!(began.elapsed() < Duration::from_secs(4), "too slow to see the trial");
    assert_heard(world);
    sleep(Duration::from_millis(6200).saturating_sub(began.elapsed()));
    assert_way(world, SHOP, false);
    let list = world.must(HOST, "nft", &["list", "set", "inet", "isthmus", "confirmed"]);
    assert!(!list.contains("elements"), "{list}");
    assert_ne!(rule_set(world), before, "the rules are there, without effect");
    start_keeper(world, root);
    assert_eq!(rule_set(world), before, "who comes back tidies up");
    // The same with a keeper.
    must_capture(world, &["enable", "--confirm-within", "5s"]);
    world.eventually("a trial ends", Duration::from_secs(8), |world| {
        match rule_set(world) == before {
            true => Ok(()),
            false => Err("the rules are still there".to_owned()),
        }
    });
    let late = capture(world, &["confirm"]).expect_err("a confirmation of nothing");
    assert!(late.contains("capture_no_trial"), "{late}");
}

/// The link that resolvers follow is up while there are answers, and no longer.
fn names_lead_there_while_somebody_answers(world: &mut World, root: &str) {
    let is_up = |world: &World, wanted: bool| {
        let told = world.must(HOST, "ip", &["-o", "link", "show", "isthmus0"]);
        if told.contains(",UP") == wanted { Ok(()) } else { Err(told) }
    };
    let soon = Duration::from_millis(1500);
    world.eventually("nobody answers yet", soon, |world| is_up(world, false));
    let names = format!("{root}/names");
    world.start("names", HOST, &world.bin("vm-agent"), &["dns", "--names", &names]);
    world.eventually("the link is up", START, |world| is_up(world, true));
    let addresses = format!("{}\n{}", virtual_address(world), virtual_ipv6(world));
    world.eventually("the name has the service's addresses", START, |world| {
        let told = world.run(HOST, "python3", &["-c", ASK]);
        let told = text(&told.stdout) + &text(&told.stderr);
        if told.trim() == addresses { Ok(()) } else { Err(told) }
    });
    world.stop("names", "KILL");
    world.eventually("the link is down", soon, |world| is_up(world, false));
}

/// What was confirmed is in force meanwhile, and afterwards.
fn the_keeper_may_die(world: &mut World, root: &str) {
    world.stop("keeper", "KILL");
    assert_way(world, SHOP, true);
    start_keeper(world, root);
    assert_eq!(must_capture(world, &["status"])["state"], "on");
    world.eventually("captured again", START, |world| {
        goes_by_proxy(world, SHOP, ELSEWHERE[0])?.then_some(()).ok_or_else(|| "direct".to_owned())
    });
    world.must(HOST, "nft", &["delete", "table", "inet", "isthmus"]);
    world.eventually("taken out by others, and in again", START, |world| {
        goes_by_proxy(world, SHOP, ELSEWHERE[0])?.then_some(()).ok_or_else(|| "direct".to_owned())
    });
}

fn without_a_proxy_what_is_none_of_the_mesh_goes_direct(world: &mut World, services: [&str; 2]) {
    let refused = |world: &World| {
        for service in services {
            let problem =
                curl_as(world, OTHER, &[service]).expect_err("a virtual address without a proxy");
            assert!(problem.contains("(7)"), "refused, not {problem}");
        }
    };
    world.stop(&format!("{HOST}-proxy"), "KILL");
    let gone = Instant::now();
    refused(world);
    for url in ELSEWHERE {
        let page = world.eventually("it goes direct", GONE, |world| curl_as(world, SHOP, &[url]));
        assert_eq!(page, "elsewhere");
    }
    assert!(gone.elapsed() < GONE, "direct after {:?}", gone.elapsed());
    refused(world);
    assert!(
        !must_capture(world, &["status"])["proxy_problem"].as_str().unwrap_or_default().is_empty()
    );
    start_proxy(world);
    world.eventually("captured again", START, |world| {
        goes_by_proxy(world, SHOP, ELSEWHERE[1])?.then_some(()).ok_or_else(|| "direct".to_owned())
    });
}

fn ports_are_refused_to_others(world: &mut World) {
    let args = ["-m", "http.server", "--bind", "::", "-d", "/", "9000"];
    world.start("policed", HOST, "python3", &args);
    world.eventually("it listens", START, |world| {
        curl_as(world, OTHER, &["-o", "/dev/null", "http://127.0.0.1:9000/"]).map(|_| ())
    });
    for url in ["http://10.77.2.2:9000/", "http://[fd77::2]:9000/"] {
        let output = world.run("east-gw", "curl", &["-sS", "--max-time", "3", url]);
        assert_eq!(output.status.code(), Some(7), "{url}: {}", text(&output.stderr));
    }
}
