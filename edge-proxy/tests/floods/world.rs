//! Two proxies and an application.

use std::{
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
    time::sleep,
};

use super::{
    attack::{Attack, Pace, endure, long},
    machine::{ASIDE, pin_others},
    support::{
        DOMAIN, SITE,
        apps::{AnyBody, App, full},
        pki::Authority,
        process::{Running, write_config, write_identity},
    },
};

/// One attack at a time: figures are of one process on one machine.
static TURN: Mutex<()> = Mutex::const_new(());

/// That one.
pub(crate) struct Turn {
    _held: MutexGuard<'static, ()>,
}

impl Turn {
    pub(crate) async fn take() -> Self {
        let _held = TURN.lock().await;
        if long().is_some() {
            pin_others();
        }
        Self { _held }
    }
}

/// One for the core that a process has in figures.
pub(crate) fn workers() -> usize {
    if long().is_some() { 1 } else { 2 }
}

fn config(dir: &Path, account: &str, rest: &str) -> PathBuf {
    let path = write_config(dir, account, rest);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("workers: 2", &format!("workers: {}", workers()))).unwrap();
    path
}

/// `checkout` calls `orders.shop` through two processes.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) source: Running,
    pub(crate) destination: Running,
    _app: App,
    _dir: tempfile::TempDir,
    _turn: Turn,
}

/// `/` says hello, `/big` a mebibyte, `/deaf` reads nothing and never answers,
/// anything else reads all and says how much.
pub(crate) async fn answer(request: Request<Incoming>) -> Response<AnyBody> {
    match request.uri().path() {
        "/" => Response::new(full("hello")),
        "/big" => Response::new(full(Bytes::from_static(&[b'x'; 1 << 20]))),
        "/deaf" => std::future::pending().await,
        _ => {
            use http_body_util::BodyExt;
            let body = request.into_body().collect().await;
            Response::new(full(body.map_or(0, |body| body.to_bytes().len()).to_string()))
        }
    }
}

fn write_site(dir: &Path, proxy: Option<SocketAddr>, target: SocketAddr) {
    let proxy = proxy.map(|addr| format!("proxy: {addr}, ")).unwrap_or_default();
    let text = format!(
        "site: {SITE}\ntrust_domain: {DOMAIN}\nservices:\n  - name: orders.shop\n    ports: \
         [{{ name: http, port: 80, protocol: http }}]\n    endpoints:\n      - {{ id: one-http, \
         port: http, identity: \"spiffe://{DOMAIN}/ns/shop/sa/orders\", {proxy}target: \
         \"{target}\" }}\n"
    );
    std::fs::write(dir.join("site.yaml"), text).unwrap();
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::limited("").await
    }

    /// With more in the configuration of the source.
    pub(crate) async fn limited(more: &str) -> Self {
        let turn = Turn::take().await;
        let app = ASIDE.spawn(App::start(answer)).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(DOMAIN);
        write_identity(dir.path(), &authority, "orders");
        write_identity(dir.path(), &authority, "checkout");
        write_site(dir.path(), None, app.addr);
        let rest = "http_listener: off\ninbound: 127.0.0.1:0\n";
        let destination = Running::start(&config(dir.path(), "orders", rest)).await;
        write_site(dir.path(), Some(destination.listeners["inbound"]), app.addr);
        let rest = format!("http_listener: 127.0.0.1:0\n{more}");
        let source = Running::start(&config(dir.path(), "checkout", &rest)).await;
        Self { authority, source, destination, _app: app, _dir: dir, _turn: turn }
    }

    /// The door of the source for applications.
    pub(crate) fn outbound(&self) -> SocketAddr {
        self.source.listeners["http"]
    }

    /// The door of the destination for the mesh.
    pub(crate) fn inbound(&self) -> SocketAddr {
        self.destination.listeners["inbound"]
    }

    /// Attacks the source.
    pub(crate) async fn at_source<F: Future<Output = ()>>(
        &self,
        attack: Attack,
        run: impl FnOnce(Arc<Pace>) -> F,
    ) {
        endure(&self.source, self.outbound(), attack, run).await;
    }

    /// Attacks the destination.
    pub(crate) async fn at_destination<F: Future<Output = ()>>(
        &self,
        attack: Attack,
        run: impl FnOnce(Arc<Pace>) -> F,
    ) {
        endure(&self.destination, self.outbound(), attack, run).await;
    }
}

/// Sends `limit` bytes in pieces, and waits so long for the other end to close or
/// reset the connection; whether it does.
pub(crate) async fn is_cut(
    stream: &mut TcpStream,
    piece: &[u8],
    limit: usize,
    wait: Duration,
) -> bool {
    let (mut from, mut to) = stream.split();
    let closed = async {
        let mut sink = vec![0; 16 << 10];
        while matches!(from.read(&mut sink).await, Ok(1..)) {}
    };
    let sending = async {
        for _ in 0..limit.div_ceil(piece.len()) {
            if to.write_all(piece).await.is_err() {
                return true;
            }
        }
        sleep(wait).await;
        false
    };
    tokio::select! {
        () = closed => true,
        cut = sending => cut,
    }
}
