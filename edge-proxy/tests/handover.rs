//! A process that is replaced while it serves.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{net::SocketAddr, path::Path, time::Duration};

use http::Response;
use rustix::process::Signal;
use support::{
    DOMAIN, SITE,
    apps::{App, fetch, full, get, http1, http2, read},
    pki::Authority,
    process::{Running, signal_to, write_config, write_identity, write_site},
    script::read_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// An application that says who it is.
async fn app(name: &'static str) -> App {
    App::start(move |_| async move { Response::new(full(name)) }).await
}

/// Sends back what it gets; an `Upgrade` is agreed to first.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buf = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buf).await {
                    let upgrade = buf.starts_with(b"GET ");
                    let agreed: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\n\
                        Connection: Upgrade\r\nUpgrade: echo\r\n\r\n";
                    let answer = if upgrade { agreed } else { &buf[..n] };
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    addr
}

fn write_one_hop(dir: &Path, http: SocketAddr, echo: SocketAddr, rest: &str) -> std::path::PathBuf {
    let service = |name: &str, protocol: &str, target: SocketAddr| {
        format!(
            "  - name: {name}.shop\n    ports: [{{ name: p, port: 80, protocol: {protocol} }}]\n    \
             endpoints: [{{ port: p, plaintext: true, target: \"{target}\" }}]\n"
        )
    };
    let services = service("orders", "http", http)
        + &service("upgrades", "http", echo)
        + &service("echo", "tcp", echo);
    let site = format!("site: {SITE}\ntrust_domain: {DOMAIN}\nservices:\n{services}");
    std::fs::write(dir.join("site.yaml"), site).unwrap();
    let path = dir.join("proxy.yaml");
    let text = format!(
        "snapshot: {{ file: site.yaml }}\nworkers: 2\nhttp_listener: 127.0.0.1:0\n\
         admin: 127.0.0.1:0\naccess_log: off\ndrain_timeout: 1s\n\
         listeners: [{{ listen: \"127.0.0.1:0\", service: echo.shop, port: p }}]\n{rest}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

async fn is_echoed(stream: &mut TcpStream) -> bool {
    let mut buf = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && stream.read_exact(&mut buf).await.is_ok_and(|_| &buf == b"ping")
}

/// Asks for a successor and returns its process id.
async fn replace(running: &mut Running, signal: Signal) -> u32 {
    running.signal(signal);
    running.wait_for("a successor has taken over").await;
    let log = running.log();
    let pid = log.rsplit_once("successor=").unwrap().1;
    pid.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// The predecessor may accept a few more.
async fn until_new(http: SocketAddr) {
    for _ in 0..1000 {
        if fetch(http, "http://orders.shop/").await.1 == "new" {
            return;
        }
    }
    panic!("the predecessor goes on accepting");
}

/// Sends requests, each on a connection of its own, until it is told to stop.
/// Returns how many were answered; one that is not ends the test.
fn load(http: SocketAddr) -> (watch::Sender<bool>, tokio::task::JoinHandle<usize>) {
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(async move {
        let mut answered = 0;
        while !*stopped.borrow() {
            let (head, body) = fetch(http, "http://orders.shop/").await;
            assert_eq!(head.status, 200, "{body:?}");
            answered += 1;
        }
        answered
    });
    (stop, task)
}

#[tokio::test]
async fn connections_stay_and_new_ones_are_the_successors() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, echo) = (app("old").await, app("new").await, echo().await);
    let mut running = Running::start(&write_one_hop(dir.path(), old.addr, echo, "")).await;
    let (http, tcp) = (running.listeners["http"], running.listeners["service"]);
    let admin = running.listeners["admin"];
    let mut kept = http1(http).await;
    let ask = || get("http://orders.shop/");
    assert_eq!(read(kept.send_request(ask()).await.unwrap()).await, "old");
    let mut multiplexed = http2(http).await;
    assert_eq!(read(multiplexed.send_request(ask()).await.unwrap()).await, "old");
    let mut opaque = TcpStream::connect(tcp).await.unwrap();
    assert!(is_echoed(&mut opaque).await);
    let mut upgraded = TcpStream::connect(http).await.unwrap();
    let upgrade =
        b"GET / HTTP/1.1\r\nHost: upgrades.shop\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    upgraded.write_all(upgrade).await.unwrap();
    assert!(read_until(&mut upgraded, "\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
    assert!(is_echoed(&mut upgraded).await);

    let (stop, loaded) = load(http);
    write_one_hop(dir.path(), new.addr, echo, "");
    let successor = replace(&mut running, Signal::HUP).await;
    until_new(http).await;
    for _ in 0..20 {
        assert_eq!(fetch(http, "http://orders.shop/").await.1, "new");
    }
    assert_eq!(fetch(admin, "/ready").await.0.status, 200);
    // The old ones are served as before, and told to come anew.
    let answer = kept.send_request(ask()).await.unwrap();
    assert_eq!(answer.headers()["connection"], "close");
    assert_eq!(read(answer).await, "old");
    assert!(is_echoed(&mut opaque).await && is_echoed(&mut upgraded).await);
    stop.send(true).unwrap();
    assert!(loaded.await.unwrap() > 20);
    assert!(running.child.try_wait().unwrap().is_none(), "it has connections");
    drop((kept, multiplexed, opaque, upgraded));
    let log = running.ended().await;
    assert!(log.contains("stopped cut=0"), "{log}");

    assert_eq!(fetch(http, "http://orders.shop/").await.1, "new");
    signal_to(successor, Signal::TERM);
    while TcpStream::connect(http).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new, echo) = (app("old").await, app("new").await, echo().await);
    let mut running = Running::start(&write_one_hop(dir.path(), old.addr, echo, "")).await;
    let http = running.listeners["http"];
    write_one_hop(dir.path(), new.addr, echo, "http_listner: off\n");
    running.signal(Signal::HUP);
    running.wait_for("this process goes on").await;
    let log = running.log();
    assert!(log.contains("did you mean `http_listener`"), "{log}");
    assert_eq!(fetch(http, "http://orders.shop/").await.1, "old");
    write_one_hop(dir.path(), new.addr, echo, "");
    replace(&mut running, Signal::USR2).await;
    until_new(http).await;
    running.ended().await;
}

#[tokio::test]
async fn connections_that_do_not_end_are_ended_after_the_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let (old, echo) = (app("old").await, echo().await);
    let rest = "handover_timeout: 300ms\n";
    let mut running = Running::start(&write_one_hop(dir.path(), old.addr, echo, rest)).await;
    let mut opaque = TcpStream::connect(running.listeners["service"]).await.unwrap();
    assert!(is_echoed(&mut opaque).await);
    replace(&mut running, Signal::HUP).await;
    let log = running.ended().await;
    assert!(log.contains("connections are left after handover_timeout"), "{log}");
    assert!(!is_echoed(&mut opaque).await);
}

#[tokio::test]
async fn both_proxies_of_a_path_are_replaced_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let app = app("hello").await;
    let authority = Authority::new(DOMAIN);
    write_identity(dir, &authority, "orders");
    write_identity(dir, &authority, "checkout");
    write_site(dir, None, app.addr);
    let rest = "http_listener: off\ninbound: 127.0.0.1:0\n";
    let mut orders = Running::start(&write_config(dir, "orders", rest)).await;
    write_site(dir, Some(orders.listeners["inbound"]), app.addr);
    let mut checkout =
        Running::start(&write_config(dir, "checkout", "http_listener: 127.0.0.1:0\n")).await;
    let http = checkout.listeners["http"];
    let loads: Vec<_> = (0..4).map(|_| load(http)).collect();
    replace(&mut orders, Signal::HUP).await;
    // Its sessions are left by the source, which opens new ones.
    assert!(orders.ended().await.contains("stopped cut=0"));
    replace(&mut checkout, Signal::HUP).await;
    assert!(checkout.ended().await.contains("stopped cut=0"));
    for (stop, loaded) in loads {
        stop.send(true).unwrap();
        assert!(loaded.await.unwrap() > 0);
    }
}
