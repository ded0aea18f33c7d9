//! What people see of single requests: access logs, statsd, tap.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use edge_proxy::{
    access_log::AccessLogFormat,
    config::{AccessLogTarget, Config},
    control,
};
use http::{Request, Response};
use hyper::body::Incoming;
use mesh_api::v1::{self, proxy_client::ProxyClient, tap_event::Event};
use serde_json::Value;
use support::{
    Pair, Targets,
    apps::{AnyBody, App, fetch, full},
    caller::wait,
};

async fn hello(request: Request<Incoming>) -> Response<AnyBody> {
    let status = if request.uri().path() == "/broken" { 500 } else { 200 };
    Response::builder().status(status).body(full("hello")).unwrap()
}

fn logged(path: &Path, format: AccessLogFormat) -> impl FnOnce(&mut Config) + use<> {
    let target = AccessLogTarget::File(path.to_owned());
    move |config| (config.access_log, config.access_log_format) = (target, format)
}

/// The lines of a file, once there are `count`.
async fn lines(path: &Path, count: usize) -> Vec<String> {
    wait(async {
        loop {
            let text = std::fs::read_to_string(path).unwrap();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.len() >= count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn lines_of_both_hops_have_one_connection_and_the_reason_of_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (dir.path().join("near.log"), dir.path().join("far.log"));
    let app = App::start(hello).await;
    let json = AccessLogFormat::Json;
    let targets = Targets::all(app.addr);
    let pair = Pair::start_both(targets, logged(&near, json), logged(&far, json)).await;
    fetch(pair.source.http(), "http://orders.shop/a?secret=1").await;
    app.kill().await;
    let (refused, _) = fetch(pair.source.http(), "http://orders.shop/b").await;
    let code = refused.headers["isthmus-error"].to_str().unwrap().to_owned();
    assert_eq!((refused.status.as_u16(), &*code), (502, "app_unreachable"));
    let read = |lines: Vec<String>| -> Vec<Value> {
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (near, far) = (read(lines(&near, 2).await), read(lines(&far, 2).await));
    for (line, direction, peer) in
        [(&near[0], "outbound", "orders"), (&far[0], "inbound", "checkout")]
    {
        assert_eq!(line["direction"], direction);
        assert_eq!((&line["method"], &line["path"]), (&"GET".into(), &"/a".into()));
        assert_eq!((&line["service"], &line["status"]), (&"orders.shop".into(), &200.into()));
        assert_eq!(line["peer"], format!("spiffe://west.example/ns/shop/sa/{peer}"));
        assert_eq!(line["sent"], 5);
        assert!(line.get("reason").is_none());
    }
    assert_eq!(near[0]["client"], "127.0.0.1");
    assert!(near[0]["connection"].as_str().unwrap().len() >= 16);
    assert_eq!(near[0]["connection"], far[0]["connection"]);
    for line in [&near[1], far.last().unwrap()] {
        assert_eq!((&line["reason"], &line["status"]), (&Value::from(code.clone()), &502.into()));
    }
    let counted = format!("reason=\"{code}\"");
    assert!(pair.source.metrics().contains(&counted));
}

#[tokio::test]
async fn the_common_format_is_written_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (dir.path().join("near.log"), dir.path().join("far.log"));
    let app = App::start(hello).await;
    let common = AccessLogFormat::Common;
    let targets = Targets::all(app.addr);
    let pair = Pair::start_both(targets, logged(&near, common), logged(&far, common)).await;
    fetch(pair.source.http(), "http://orders.shop/a").await;
    let (near, far) = (lines(&near, 1).await, lines(&far, 1).await);
    let form = |client: &str, account: &str| {
        let id = format!("spiffe://west.example/ns/shop/sa/{account}");
        regex::Regex::new(&format!(
            "^{client} {id} - \\[\\d\\d/[A-Z][a-z]{{2}}/\\d{{4}}:\\d\\d:\\d\\d:\\d\\d \\+0000\\] \
             \"GET /a HTTP/1.1\" 200 5 \"-\" \"([0-9a-f]+)\"$"
        ))
        .unwrap()
    };
    let connection = |form: &regex::Regex, line: &str| {
        form.captures(line).unwrap_or_else(|| panic!("{line}"))[1].to_owned()
    };
    let there = connection(&form("127\\.0\\.0\\.1", "orders"), &near[0]);
    assert_eq!(there, connection(&form("-", "checkout"), &far[0]));
}

#[tokio::test]
async fn statsd_is_told_of_requests() {
    let statsd = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = statsd.local_addr().unwrap();
    let app = App::start(hello).await;
    let pair = Pair::start_with(Targets::all(app.addr), |config| config.statsd = Some(to)).await;
    for path in ["a", "a", "broken"] {
        fetch(pair.source.http(), &format!("http://orders.shop/{path}")).await;
    }
    let (mut success, mut failure, mut timed) = (0, 0, 0);
    wait(async {
        let mut packet = [0; 2048];
        while (success, failure, timed) != (2, 1, 3) {
            let length = statsd.recv(&mut packet).await.unwrap();
            for line in std::str::from_utf8(&packet[..length]).unwrap().lines() {
                let (name, value) = line.split_once(':').unwrap();
                let name = name.strip_prefix("isthmus.outbound.orders_shop.http.").unwrap();
                let count = || value.strip_suffix("|c").unwrap().parse::<u64>().unwrap();
                match name {
                    "requests.success" => success += count(),
                    "requests.failure" => failure += count(),
                    "latency" => {
                        assert!(value.ends_with("|ms"), "{line}");
                        timed += 1;
                    }
                    _ => assert!(name.ends_with("_bytes"), "{line}"),
                }
            }
        }
    })
    .await;
}

/// Starts the control socket of a proxy and watches what matches.
async fn tap(
    proxy: &support::Proxy,
    request: v1::TapRequest,
) -> Result<tonic::Streaming<v1::TapEvent>, tonic::Status> {
    let path = proxy.app.shared.config.control_socket.clone().unwrap();
    let channel = mesh_tunnel::unix::channel(&path).await.unwrap();
    ProxyClient::new(channel).tap(request).await.map(tonic::Response::into_inner)
}

async fn next(events: &mut tonic::Streaming<v1::TapEvent>) -> Event {
    wait(events.message()).await.unwrap().unwrap().event.unwrap()
}

async fn tapped_pair(dir: &Path) -> (App, Pair) {
    let app = App::start(hello).await;
    let (near, far) = (dir.join("near.sock"), dir.join("far.sock"));
    let pair = Pair::start_both(
        Targets::all(app.addr),
        |config| config.control_socket = Some(near),
        |config| config.control_socket = Some(far),
    )
    .await;
    for proxy in [&pair.source, &pair.destination] {
        control::start(&proxy.app.shared).await.unwrap();
    }
    (app, pair)
}

#[tokio::test]
async fn who_watches_sees_what_matches_at_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (_app, pair) = tapped_pair(dir.path()).await;
    let mode = std::fs::metadata(dir.path().join("near.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only its user and root may look");
    let asked = v1::TapRequest {
        service: "orders.shop".into(),
        path: "/bro".into(),
        method: "GET".into(),
        authority: "orders.shop".into(),
        status: "5xx".into(),
        source: "spiffe://west.example/ns/shop/sa/checkout".into(),
        destination: "spiffe://west.example/ns/shop/*".into(),
        ..v1::TapRequest::default()
    };
    let mut near = tap(&pair.source, asked.clone()).await.unwrap();
    let mut far = tap(&pair.destination, asked.clone()).await.unwrap();
    let other = v1::TapRequest { source: "spiffe://elsewhere/*".into(), ..asked.clone() };
    let mut nobody = tap(&pair.source, other).await.unwrap();
    for path in ["a", "broken?secret=1"] {
        fetch(pair.source.http(), &format!("http://orders.shop/{path}")).await;
    }
    let (Event::Seen(near), Event::Seen(far)) = (next(&mut near).await, next(&mut far).await)
    else {
        panic!("nothing was lost");
    };
    for (seen, direction) in [(&near, "outbound"), (&far, "inbound")] {
        assert_eq!((&*seen.direction, &*seen.path), (direction, "/broken"));
        assert_eq!((seen.status, seen.success, seen.sent), (500, false, 5));
        assert!(seen.duration_ns >= seen.latency_ns && seen.latency_ns > 0);
        let [source, destination] =
            [&seen.source, &seen.destination].map(|end| end.clone().unwrap());
        assert!(source.spiffe_id.ends_with("/checkout"), "{source:?}");
        assert!(destination.spiffe_id.ends_with("/orders"), "{destination:?}");
        assert_eq!((&*source.site, &*destination.endpoint), ("west", "one-http"));
    }
    assert_eq!(near.connection, far.connection);
    let none = tokio::time::timeout(Duration::from_millis(200), nobody.message()).await;
    assert!(none.is_err(), "{none:?}");
    let wrong = v1::TapRequest { status: "many".into(), ..asked };
    let refused = tap(&pair.source, wrong).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn who_asks_for_little_is_told_what_was_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (_app, pair) = tapped_pair(dir.path()).await;
    let asked = v1::TapRequest { max_rps: 2, ..v1::TapRequest::default() };
    let mut events = tap(&pair.source, asked).await.unwrap();
    for _ in 0..6 {
        fetch(pair.source.http(), "http://orders.shop/a").await;
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    fetch(pair.source.http(), "http://orders.shop/last").await;
    let (mut seen, mut lost) = (0, 0);
    loop {
        match next(&mut events).await {
            Event::Seen(event) if event.path == "/last" => break,
            Event::Seen(_) => seen += 1,
            Event::Lost(count) => lost += count,
        }
    }
    assert_eq!((seen, lost), (2, 4));
    assert!(pair.source.metrics().contains("isthmus_proxy_tap_lost_total 4\n"));
    drop(events);
    wait(async {
        while pair.source.app.shared.tap.is_watched() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_successor_takes_the_socket_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("proxy.sock");
    let app = App::start(hello).await;
    let change = |config: &mut Config| config.control_socket = Some(path.clone());
    let pair = Pair::start_both(Targets::all(app.addr), change, change).await;
    control::start(&pair.source.app.shared).await.unwrap();
    let mut before = tap(&pair.source, v1::TapRequest::default()).await.unwrap();
    assert!(control::start(&pair.destination.app.shared).await.is_err(), "somebody listens");
    control::take_over(&pair.destination.app.shared).await;
    let mut after = tap(&pair.destination, v1::TapRequest::default()).await.unwrap();
    fetch(pair.source.http(), "http://orders.shop/a").await;
    for (events, direction) in [(&mut before, "outbound"), (&mut after, "inbound")] {
        let Event::Seen(seen) = next(events).await else { panic!("nothing was lost") };
        assert_eq!(seen.direction, direction);
    }
}
