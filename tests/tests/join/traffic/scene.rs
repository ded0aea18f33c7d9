//! A site with a machine that serves three services and one that calls them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use isthmus_tests::ports::free;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::{Agent, Proxy, World, until};

/// Each has an application that answers with this name.
const SERVICES: [&str; 3] = ["orders", "next", "copy"];
/// Ports of each with their protocols; behind all is the same application.
const PORTS: [(u16, &str); 3] = [(80, "http"), (9000, "tcp"), (9443, "tls")];
/// How long `/wait` takes.
const WAIT: Duration = Duration::from_millis(500);

/// What an application was asked.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) app: &'static str,
    /// As it arrived.
    pub(crate) target: String,
    /// In lower case.
    pub(crate) head: String,
}

/// What a client got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// In lower case.
    head: String,
    pub(crate) body: String,
}

impl Answer {
    /// A field of its head, or nothing.
    pub(crate) fn field(&self, name: &str) -> &str {
        let line = self.head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
        line.unwrap_or_default()
    }
}

pub(crate) struct Scene {
    pub(crate) world: World,
    _machines: [Agent; 2],
    _proxies: [Proxy; 2],
    listener: SocketAddr,
    /// Plaintext to `orders`.
    door: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
    files: tempfile::TempDir,
    count: AtomicU32,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        let world = World::start().await;
        let (inbound, listener, door) = (free(), free(), free());
        let advertise = format!("advertise: {inbound}\n");
        let mut served = Agent::start_advertising(&world, "vm1", &advertise).await;
        let heard = Arc::<Mutex<Vec<Heard>>>::default();
        for name in SERVICES {
            let listener = served.serve(name).await;
            served.describe_ports(name, listener.local_addr().unwrap().port(), &PORTS);
            tokio::spawn(application(name, listener, heard.clone()));
        }
        let mut calls = Agent::start_unreachable(&world, "vm2").await;
        let off = "admin: off\naccess_log: off\n";
        let plaintext = format!(
            "inbound_plaintext: [{{ listen: '{door}', service: orders.shop, port: http }}]\n"
        );
        let proxies = [
            served.proxy(&format!("inbound: {inbound}\n{plaintext}http_listener: off\n{off}")),
            calls.proxy(&format!("http_listener: {listener}\n{off}")),
        ];
        served.join(&world.token_of("orders").await).await.unwrap();
        calls.join(&world.token_of("checkout").await).await.unwrap();
        let scene = Self {
            world,
            _machines: [served, calls],
            _proxies: proxies,
            listener,
            door,
            heard,
            files: tempfile::tempdir().unwrap(),
            count: AtomicU32::new(0),
        };
        for name in SERVICES {
            until("the service answers", || async {
                scene.ask("GET", name, "/", "").await.body == name
            })
            .await;
        }
        scene
    }

    /// A file with these documents.
    pub(crate) fn file(&self, documents: &str) -> String {
        let path = self.files.path().join(format!("{}.yaml", self.number()));
        fs::write(&path, documents).unwrap();
        path.display().to_string()
    }

    /// How many documents federation keeps.
    pub(crate) fn documents(&self) -> usize {
        let listed: serde_json::Value =
            serde_json::from_str(&self.world.meshctl(&["--json", "get"])).unwrap();
        let lists = listed.as_object().unwrap().values().filter_map(|value| value.as_array());
        lists.map(Vec::len).sum()
    }

    /// Never the same again.
    pub(crate) fn number(&self) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.ask("GET", "orders", target, "").await
    }

    /// One request on a connection of its own; `fields` end with CRLF each.
    pub(crate) async fn ask(
        &self,
        method: &str,
        service: &str,
        target: &str,
        fields: &str,
    ) -> Answer {
        self.ask_at(self.listener, method, service, target, fields).await
    }

    /// From a client that is not of the mesh.
    pub(crate) async fn plain(&self, target: &str) -> Answer {
        self.ask_at(self.door, "GET", "orders", target, "").await
    }

    async fn ask_at(
        &self,
        proxy: SocketAddr,
        method: &str,
        service: &str,
        target: &str,
        fields: &str,
    ) -> Answer {
        let exchange = async {
            let mut stream = TcpStream::connect(proxy).await?;
            let request = format!(
                "{method} {target} HTTP/1.1\r\nHost: {service}.shop\r\nConnection: close\r\n\
                 Content-Length: 0\r\n{fields}\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let exchange = tokio::time::timeout(Duration::from_secs(20), exchange);
        // Nobody listens before the proxy has started.
        let answer = exchange.await.expect("an answer in time").unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Answer {
            status: status.unwrap_or_default(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    /// What comes back for these bytes from a port that carries bytes, after
    /// the head of the answer.
    pub(crate) async fn bytes(&self, port: u16, bytes: &[u8]) -> String {
        let exchange = async {
            let (opened, mut stream) = self.connect(port).await?;
            assert!(opened.starts_with("HTTP/1.1 200 "), "{opened:?}");
            stream.write_all(bytes).await?;
            stream.shutdown().await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let exchange = tokio::time::timeout(Duration::from_secs(20), exchange);
        let answer = exchange.await.expect("an answer in time").unwrap_or_default();
        answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()
    }

    /// A connection through the proxy to a port that carries bytes, after the
    /// head of the answer.
    pub(crate) async fn connect(&self, port: u16) -> std::io::Result<(String, TcpStream)> {
        let mut stream = TcpStream::connect(self.listener).await?;
        let to = format!("orders.shop:{port}");
        let connect = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        stream.write_all(connect.as_bytes()).await?;
        let opened = head(&mut stream).await.unwrap_or_default();
        Ok((opened, stream))
    }

    /// Who was asked for this target.
    pub(crate) fn heard(&self, target: &str) -> BTreeMap<&'static str, Heard> {
        let heard = self.heard.lock().unwrap();
        let of = heard.iter().filter(|heard| heard.target == target);
        of.map(|heard| (heard.app, heard.clone())).collect()
    }
}

/// Answers with its name: `/wait` late, `/flaky/…` with 503 the first time.
async fn application(name: &'static str, listener: TcpListener, log: Arc<Mutex<Vec<Heard>>>) {
    let flaky = Arc::<Mutex<BTreeSet<String>>>::default();
    while let Ok((mut stream, _)) = listener.accept().await {
        let (log, flaky) = (log.clone(), flaky.clone());
        tokio::spawn(async move {
            while let Some(head) = head(&mut stream).await {
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let heard =
                    Heard { app: name, target: target.clone(), head: head.to_ascii_lowercase() };
                log.lock().unwrap().push(heard);
                let first = flaky.lock().unwrap().insert(target.clone());
                let status = if target.starts_with("/flaky/") && first { 503 } else { 200 };
                if target == "/wait" {
                    tokio::time::sleep(WAIT).await;
                }
                let answer =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Up to the next empty line; no client of this test sends a body.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&read).into_owned())
}
