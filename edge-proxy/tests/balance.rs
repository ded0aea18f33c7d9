//! Which of several endpoints a request reaches, over real sockets.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::collections::BTreeSet;

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_api::v1::{self, affinity::By};
use mesh_core::Locality;
use support::{
    DOMAIN, Proxy, any,
    apps::{App, empty, full, http1, read},
    endpoint, inbound_config, orders, outbound_config,
    pki::Authority,
    snapshot,
};

const URI: &str = "http://orders.shop/";

/// A source, and four applications behind one destination, `e0` and `e1` in
/// zone eu-1, `e2` and `e3` in eu-2. Each answers with its name.
struct Four {
    authority: Authority,
    source: Proxy,
    destination: Proxy,
    apps: Vec<App>,
}

impl Four {
    /// The source is in eu-1.
    async fn start(balance: v1::BalancePolicy) -> Self {
        let authority = Authority::new(DOMAIN);
        let svid = authority.workload("orders");
        let destination = Proxy::start(&authority, svid, inbound_config()).await;
        let mut apps = Vec::new();
        for i in 0..4 {
            let name = move |_request: Request<Incoming>| async move {
                Response::new(full(format!("e{i}")))
            };
            apps.push(App::start(name).await);
        }
        let locality = Locality { zone: "eu-1".into(), region: "eu".into(), host: "".into() };
        let config = edge_proxy::config::Config { locality, ..outbound_config() };
        let source = Proxy::start(&authority, authority.workload("checkout"), config).await;
        let four = Self { authority, source, destination, apps };
        four.tell(balance, &[]);
        four
    }

    fn tell(&self, balance: v1::BalancePolicy, unhealthy: &[usize]) {
        let service = v1::Service { balance: Some(balance), ..orders() };
        let endpoints = self.apps.iter().enumerate().map(|(i, app)| {
            let health = match unhealthy.contains(&i) {
                true => v1::Health::Unhealthy,
                false => v1::Health::Healthy,
            };
            let zone = if i < 2 { "eu-1" } else { "eu-2" };
            let locality =
                v1::Locality { zone: zone.into(), region: "eu".into(), ..Default::default() };
            let id = format!("e{i}");
            let inbound = self.destination.inbound();
            v1::Endpoint {
                locality: Some(locality),
                health: health.into(),
                ..endpoint(&id, "orders.shop", "http", "orders", inbound, app.addr)
            }
        });
        let snapshot = snapshot(&self.authority, vec![service], endpoints.collect());
        self.source.tell(&snapshot);
        self.destination.tell(&snapshot);
    }

    /// Who answers, and what cookie came along.
    async fn ask(&self, fields: &[(&str, &str)]) -> (String, Option<String>) {
        let mut request = Request::get(URI);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut client = http1(self.source.http()).await;
        let response = client.send_request(request.body(empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        let cookie = response.headers().get("set-cookie").map(|v| v.to_str().unwrap().to_owned());
        (String::from_utf8(read(response).await.to_vec()).unwrap(), cookie)
    }

    async fn askers(&self, fields: &[(&str, &str)], times: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for _ in 0..times {
            names.insert(self.ask(fields).await.0);
        }
        names
    }
}

fn by(by: By) -> v1::BalancePolicy {
    let affinity = v1::Affinity { by: Some(by), cookie_ttl_s: 60, ..Default::default() };
    v1::BalancePolicy {
        affinity: Some(affinity),
        slow_start_ms: Some(0),
        locality: v1::LocalityMode::Off.into(),
        ..Default::default()
    }
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[tokio::test]
async fn near_ones_first_as_far_as_they_are_well() {
    let policy = v1::BalancePolicy { slow_start_ms: Some(0), ..Default::default() };
    let four = Four::start(policy.clone()).await;
    assert_eq!(four.askers(&[], 40).await, names(["e0", "e1"]));
    // 0.3 go on, to whoever has not been measured first: fewer than two of 80
    // would with a chance of one in ten thousand million.
    four.tell(policy.clone(), &[0]);
    assert_eq!(four.askers(&[], 80).await, names(["e1", "e2", "e3"]));
    // From now on the faster of two may take all.
    four.tell(policy.clone(), &[0, 1]);
    assert!(four.askers(&[], 40).await.is_subset(&names(["e2", "e3"])));
    let strict = v1::BalancePolicy { locality: v1::LocalityMode::Strict.into(), ..policy };
    four.tell(strict, &[0, 1]);
    assert!(four.askers(&[], 40).await.is_subset(&names(["e0", "e1"])));
}

#[tokio::test]
async fn a_cookie_is_made_and_leads_back() {
    let policy = by(By::Cookie("SESSION".into()));
    let mut four = Four::start(policy.clone()).await;
    let mut met = BTreeSet::new();
    for _ in 0..40 {
        let (name, cookie) = four.ask(&[]).await;
        let cookie = cookie.expect("a client without a cookie gets one");
        assert!(cookie.starts_with("SESSION=") && cookie.contains("Max-Age=60"), "{cookie}");
        let pair = cookie.split(';').next().unwrap();
        let sent = [("cookie", pair)];
        let (again, none) = four.ask(&sent).await;
        assert_eq!((again, none), (name.clone(), None), "{pair}");
        met.insert((name, pair.to_owned()));
    }
    let apps: BTreeSet<&str> = met.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(apps.len(), 4, "other clients go elsewhere");
    // One goes: its sessions move, nobody else's.
    four.apps.remove(3).kill().await;
    for (name, pair) in &met {
        let (now, _) = four.ask(&[("cookie", pair)]).await;
        assert!(now != "e3" && (now == *name || name == "e3"), "{name} -> {now}");
    }
}

#[tokio::test]
async fn a_header_or_the_clients_address_keeps_requests_together() {
    let four = Four::start(by(By::Header("x-user".into()))).await;
    let mut met = BTreeSet::new();
    for user in 0..20 {
        let user = user.to_string();
        let answered = four.askers(&[("X-User", &user)], 5).await;
        assert_eq!(answered.len(), 1, "{user}: {answered:?}");
        met.extend(answered);
    }
    assert!(met.len() > 2, "{met:?}");
    assert!(four.askers(&[], 40).await.len() > 1, "who does not say is spread");
    four.tell(by(By::Source(true)), &[]);
    assert_eq!(four.askers(&[], 20).await.len(), 1);
}

/// Eleven of twelve are not there any more, and nobody has said so.
#[tokio::test]
async fn whoever_is_left_is_found() {
    let authority = Authority::new(DOMAIN);
    let svid = authority.workload("orders");
    let destination = Proxy::start(&authority, svid, inbound_config()).await;
    let app = App::start(|_request: Request<Incoming>| async { Response::new(full("here")) }).await;
    let closed = tokio::net::TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    let source = Proxy::start(&authority, authority.workload("checkout"), outbound_config()).await;
    let endpoints = (0..12).map(|i| {
        // Some proxies are gone, some applications.
        let (proxy, target) = match i {
            7 => (destination.inbound(), app.addr),
            i if i % 2 == 0 => (closed, app.addr),
            _ => (destination.inbound(), closed),
        };
        endpoint(&format!("e{i}"), "orders.shop", "http", "orders", proxy, target)
    });
    let snapshot = snapshot(&authority, vec![orders()], endpoints.collect());
    source.tell(&snapshot);
    destination.tell(&snapshot);
    for round in 0..20 {
        let request = Request::post(URI).body(full("order")).unwrap();
        let response = http1(source.http()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "round {round}");
        assert_eq!(read(response).await, "here");
    }
}
