//! The binary itself: configuration, several workers, signals.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{os::unix::fs::PermissionsExt, path::Path, process::Output, sync::Arc, time::Duration};

use http::Response;
use rustix::process::Signal;
use support::{
    DOMAIN, any,
    apps::{App, fetch, full, get, http1, read},
    pki::Authority,
    process::{Running, command, write_config, write_identity, write_site},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

async fn fails(config: &Path) -> Output {
    let output = command(config).output();
    tokio::time::timeout(Duration::from_secs(20), output).await.expect("it goes on").unwrap()
}

#[tokio::test]
async fn a_wrong_configuration_ends_with_78_and_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.yaml");
    std::fs::write(&path, "role: node\nhttp_listner: 127.0.0.1:0\n").unwrap();
    let output = fails(&path).await;
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("proxy.yaml:2:1"), "{text}");
    assert!(text.contains("did you mean `http_listener`"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_used_is_named_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let authority = Authority::new(DOMAIN);
    write_identity(dir, &authority, "orders");
    write_site(dir, None, any());
    let taken = std::net::TcpListener::bind(any()).unwrap().local_addr().unwrap();
    let _holder = std::net::TcpListener::bind(taken).unwrap();
    let cases: [(&str, Box<dyn Fn()>, i32, &str); 3] = [
        ("http_listener: off\n", Box::new(|| ()), 78, "target_port"),
        (
            "http_listener: off\n",
            Box::new(|| {
                write_site(dir, None, taken);
                std::fs::set_permissions(dir.join("orders.key"), PermissionsExt::from_mode(0o644))
                    .unwrap();
            }),
            78,
            "chmod 600",
        ),
        (
            &format!("http_listener: {taken}\n"),
            Box::new(|| write_identity(dir, &authority, "orders")),
            1,
            "stop what listens there",
        ),
    ];
    for (rest, change, code, wanted) in cases {
        change();
        let output = fails(&write_config(dir, "orders", rest)).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(wanted), "{text}");
        assert_eq!(output.status.code(), Some(code), "{text}");
    }
}

#[tokio::test]
async fn processes_serve_with_all_workers_and_drain_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, wait) = (asked.clone(), go.clone());
    let app = App::start(move |request| {
        let (seen, wait) = (seen.clone(), wait.clone());
        async move {
            if request.uri().path() == "/slow" {
                seen.notify_one();
                wait.notified().await;
            }
            Response::new(full("hello"))
        }
    })
    .await;
    let authority = Authority::new(DOMAIN);
    write_identity(dir, &authority, "orders");
    write_identity(dir, &authority, "checkout");
    write_site(dir, None, app.addr);
    let rest = "http_listener: off\ninbound: 127.0.0.1:0\n";
    let orders = Running::start(&write_config(dir, "orders", rest)).await;
    write_site(dir, Some(orders.listeners["inbound"]), app.addr);
    let rest = "http_listener: 127.0.0.1:0\n";
    let checkout = Running::start(&write_config(dir, "checkout", rest)).await;
    let (http, admin) = (checkout.listeners["http"], checkout.listeners["admin"]);
    // Connections are spread over the workers by the kernel.
    for _ in 0..20 {
        let (head, body) = fetch(http, "http://orders.shop/").await;
        assert_eq!((head.status.as_u16(), &*body), (200, &b"hello"[..]));
    }
    let (head, _) = fetch(admin, "/ready").await;
    assert_eq!(head.status, 200);
    let (_, metrics) = fetch(admin, "/metrics").await;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("status_class=\"2xx\",reason=\"\"} 20"), "{metrics}");
    // Each worker has sessions of its own.
    let sessions = "isthmus_proxy_inner_sessions{direction=\"outbound\"} 2\n";
    assert!(metrics.contains(sessions), "{metrics}");

    let mut client = http1(http).await;
    let slow =
        tokio::spawn(async move { client.send_request(get("http://orders.shop/slow")).await });
    asked.notified().await;
    checkout.signal(Signal::TERM);
    while fetch(admin, "/ready").await.0.status == 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    orders.signal(Signal::TERM);
    go.notify_one();
    assert_eq!(read(slow.await.unwrap().unwrap()).await, "hello");
    for (mut running, account) in [(checkout, "checkout"), (orders, "orders")] {
        let log = running.ended().await;
        assert!(log.contains("stopped cut=0"), "{log}");
        let access = std::fs::read_to_string(dir.join(format!("{account}.log"))).unwrap();
        assert_eq!(access.lines().count(), 21, "{access}");
        let lines = access.lines().map(serde_json::from_str::<serde_json::Value>);
        assert!(lines.into_iter().all(|line| line.unwrap()["status"] == 200));
    }
}

/// Who is connected is served and told to come anew, where somebody else will be.
#[tokio::test]
async fn clients_are_let_go_where_others_come_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.yaml");
    let app = App::start(|_| async { Response::new(full("hello")) }).await;
    let site = format!(
        "site: west\ntrust_domain: {DOMAIN}\nservices:\n  - name: orders.shop\n    ports: [{{ name: \
         http, port: 80, protocol: http }}]\n    endpoints: [{{ port: http, plaintext: true, target: \
         '{}' }}]\n",
        app.addr
    );
    std::fs::write(dir.path().join("site.yaml"), site).unwrap();
    let text = "snapshot: { file: site.yaml }\nhttp_listener: 127.0.0.1:0\nadmin: off\n\
                access_log: off\nhas_successor: true\n";
    std::fs::write(&path, text).unwrap();
    let mut proxy = Running::start(&path).await;
    let mut client = TcpStream::connect(proxy.listeners["http"]).await.unwrap();
    let request = b"GET http://orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
    let mut answer = vec![0; 4096];
    let mut is_last = false;
    for asked in 0.. {
        // It is accepted by then.
        if asked == 1 {
            proxy.signal(Signal::TERM);
        }
        if is_last {
            break;
        }
        client.write_all(request).await.unwrap();
        let mut text = String::new();
        while !text.ends_with("hello") {
            let read = client.read(&mut answer).await.unwrap();
            assert!(read > 0, "it has closed after {text:?}");
            text += std::str::from_utf8(&answer[..read]).unwrap();
            assert!(text.contains("HTTP/1.1 200"), "{text}");
        }
        is_last = text.to_ascii_lowercase().contains("connection: close");
    }
    assert_eq!(client.read(&mut answer).await.unwrap(), 0);
    proxy.ended().await;
}
