//! A world with rules, given as the documents that people write.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_manifest::{compile, manifest::read as read_manifests};
use tokio::sync::Notify;

use super::{
    DOMAIN, Proxy,
    apps::{AnyBody, App, empty, full, http1},
    caller::wait,
    endpoint, inbound_config, outbound_config,
    pki::Authority,
    service, snapshot,
};

/// What an application was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub app: &'static str,
    pub method: Method,
    pub host: String,
    pub target: String,
    pub headers: HeaderMap,
    pub body: String,
}

pub type Log = Arc<Mutex<Vec<Asked>>>;

/// Two proxies; behind the second `orders.shop`, `next.shop` and `copy.shop`,
/// each with an application of its own that answers with its name.
pub struct World {
    pub authority: Authority,
    pub source: Proxy,
    pub destination: Proxy,
    pub apps: Vec<(&'static str, App)>,
    pub asked: Log,
    /// Answered by every application while set.
    pub status: Arc<Mutex<Vec<StatusCode>>>,
    pub gate: Arc<Notify>,
}

const SERVICES: [&str; 3] = ["orders", "next", "copy"];

impl World {
    pub async fn start(rules: &str) -> Self {
        let authority = Authority::new(DOMAIN);
        let destination =
            Proxy::start(&authority, authority.workload("orders"), inbound_config()).await;
        let source =
            Proxy::start(&authority, authority.workload("checkout"), outbound_config()).await;
        let (asked, status, gate) = (Log::default(), Arc::default(), Arc::<Notify>::default());
        let mut apps = Vec::new();
        for name in SERVICES {
            let app = app(name, asked.clone(), Arc::clone(&status), gate.clone()).await;
            apps.push((name, app));
        }
        let world = Self { authority, source, destination, apps, asked, status, gate };
        world.rules(rules);
        world
    }

    /// Decides by these from now on.
    pub fn rules(&self, text: &str) {
        use mesh_api::v1::Protocol::Http;
        let ports = vec![("http".to_owned(), 80), ("more".to_owned(), 81)];
        let registry: BTreeMap<String, _> =
            SERVICES.iter().map(|name| (format!("{name}.shop"), ports.clone())).collect();
        let manifests = read_manifests(text, "rules.yaml").unwrap();
        let (mut services, mut endpoints) = (Vec::new(), Vec::new());
        for (name, app) in &self.apps {
            let full = format!("{name}.shop");
            let compiled = compile(&full, &manifests, &registry);
            services.push(mesh_api::v1::Service {
                routes: compiled.routes,
                traffic: compiled.traffic,
                ..service(&full, &[("http", 80, Http), ("more", 81, Http)])
            });
            let proxy = self.destination.inbound();
            for port in ["http", "more"] {
                let id = format!("{name}-{port}");
                endpoints.push(endpoint(&id, &full, port, "orders", proxy, app.addr));
            }
        }
        let snapshot = snapshot(&self.authority, services, endpoints);
        self.source.tell(&snapshot);
        self.destination.tell(&snapshot);
    }

    pub async fn send(&self, request: Request<AnyBody>) -> (http::response::Parts, String) {
        let mut client = http1(self.source.http()).await;
        let (head, body) = wait(client.send_request(request)).await.unwrap().into_parts();
        let body = wait(body.collect()).await.unwrap().to_bytes();
        (head, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until so many requests have arrived.
    pub async fn until_asked(&self, times: usize) {
        let asked = async {
            while self.asked.lock().unwrap().len() < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        wait(asked).await;
    }

    pub async fn get(&self, target: &str) -> (http::response::Parts, String) {
        self.send(request("GET", target, &[])).await
    }

    /// What arrived since it was last asked, in order of arrival.
    pub fn arrived(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// The next answers of applications, before 200.
    pub fn answers(&self, statuses: &[u16]) {
        let statuses = statuses.iter().rev().map(|status| StatusCode::from_u16(*status).unwrap());
        *self.status.lock().unwrap() = statuses.collect();
    }
}

async fn app(
    name: &'static str,
    log: Log,
    status: Arc<Mutex<Vec<StatusCode>>>,
    gate: Arc<Notify>,
) -> App {
    App::start(move |request: Request<Incoming>| {
        let (log, status, gate) = (log.clone(), Arc::clone(&status), gate.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            log.lock().unwrap().push(Asked {
                app: name,
                method: head.method,
                host: head.headers.get("host").map_or("", |host| host.to_str().unwrap()).into(),
                target: head.uri.path_and_query().unwrap().to_string(),
                body: String::from_utf8(body.to_vec()).unwrap(),
                headers: head.headers,
            });
            if head.uri.path() == "/wait" {
                gate.notified().await;
            }
            let mut response = Response::new(full(name));
            if let Some(status) = status.lock().unwrap().pop() {
                *response.status_mut() = status;
            }
            response.headers_mut().insert("x-app", name.parse().unwrap());
            response
        }
    })
    .await
}

/// A request for `orders.shop`; `target` may begin with a port.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<AnyBody> {
    let mut builder = Request::builder().method(method).uri(format!("http://orders.shop{target}"));
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(empty()).unwrap()
}

/// A route for `orders.shop`.
pub fn route(rules: &str) -> String {
    document("HTTPRoute", "parentRefs: [{ kind: Service, name: orders }]", rules)
}

/// The same with other parents, or of another kind.
pub fn document(kind: &str, spec: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{ name: r, namespace: shop }}\nspec:\n  {spec}\n  rules:\n{rules}\n"
    )
}

/// A policy for `orders.shop`.
pub fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: isthmus.io/v1\nkind: TrafficPolicy\n\
         metadata: {{ name: p, namespace: shop }}\nspec:\n  \
         targetRef: {{ kind: Service, name: orders }}\n{spec}\n"
    )
}
