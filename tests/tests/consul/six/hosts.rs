//! Hosts: an application each, that says who it is, and a client.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;

use crate::site::{Machine, get};

/// Where the application of a host listens.
pub(super) const APP: u16 = 8090;
/// Where the proxy of a host leads clients of Consul to the host's service.
pub(super) const EXPORT: u16 = 7000;
/// The same for the service that two hosts have.
pub(super) const EXPORT_OF_BOTH: u16 = 7002;
/// That service: one instance is in Consul, and one in the mesh.
pub(super) const BOTH: &str = "svc-both";
/// For one answer of Consul.
const ANSWER: Duration = Duration::from_secs(30);

/// How a host finds others, and is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By Consul, and the address that it says.
    Legacy,
    /// By its own proxy.
    Moved,
}

/// Clones are the same host.
#[derive(Clone)]
pub(super) struct Host {
    pub(super) name: &'static str,
    pub(super) machine: Machine,
    /// Whether its check passes.
    pub(super) is_well: Arc<AtomicBool>,
    has_moved: Arc<AtomicBool>,
}

impl Host {
    pub(super) fn new(name: &'static str, number: u8, way: Way) -> Self {
        let is_well = Arc::new(AtomicBool::new(true));
        let has_moved = Arc::new(AtomicBool::new(way == Way::Moved));
        Self { name, machine: Machine(name, number), is_well, has_moved }
    }

    /// As Consul calls it; the mesh adds its namespace.
    pub(super) fn service(&self) -> String {
        format!("svc-{}", self.name)
    }

    pub(super) fn says(&self) -> String {
        format!("I am {}.", self.name)
    }

    pub(super) fn way(&self) -> Way {
        if self.has_moved.load(Relaxed) { Way::Moved } else { Way::Legacy }
    }

    /// From its next call on.
    pub(super) fn takes(&self, way: Way) {
        self.has_moved.store(way == Way::Moved, Relaxed);
    }

    /// Its application, for as long as the test runs.
    pub(super) fn serve(&self, addr: SocketAddr) {
        let listener = TcpListener::bind(addr).unwrap();
        let host = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let host = host.clone();
                std::thread::spawn(move || host.answer(stream));
            }
        });
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        loop {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
            if !head.ends_with(b"\r\n\r\n") {
                continue;
            }
            let is_check = head.starts_with(b"GET /health");
            let status = if is_check && !self.is_well.load(Relaxed) { 503 } else { 200 };
            let (text, length) = (self.says(), self.says().len());
            let head_of = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(format!("{head_of}{text}").as_bytes())?;
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            if text.contains("connection: close") {
                return Ok(());
            }
            head.clear();
        }
    }
}

/// Where everybody is.
pub(super) trait Places {
    fn addr(&self, host: &Host, port: u16) -> SocketAddr;
    /// The port of Consul's HTTP API.
    fn consul(&self) -> u16;
}

/// `from` asks the service of `to`, and `to` answers.
pub(super) fn is_asked(places: &impl Places, from: &Host, to: &Host) -> Result<(), String> {
    let says = ask(places, from, &to.service())?;
    if says == to.says() { Ok(()) } else { Err(format!("{} asks {}: {says}", from.name, to.name)) }
}

/// `from` asks a service by its own way; what the one says who answers.
pub(super) fn ask(places: &impl Places, from: &Host, service: &str) -> Result<String, String> {
    let way = from.way();
    let named = |error: String| format!("{} ({way:?}) asks {service}: {error}", from.name);
    let (at, name) = match way {
        Way::Moved => (places.addr(from, 4140), format!("{service}.shop")),
        Way::Legacy => (resolve(places.consul(), service).map_err(named)?, service.to_owned()),
    };
    let answer = get(at, "/", &name).map_err(|error| named(format!("{at}: {error}")))?;
    let body = answer.strip_prefix("HTTP/1.1 200").and_then(|rest| rest.split_once("\r\n\r\n"));
    body.map(|(_, body)| body.to_owned()).ok_or_else(|| named(format!("{at}: {answer}")))
}

/// One of the passing instances, as a client of Consul takes one.
fn resolve(consul: u16, service: &str) -> Result<SocketAddr, String> {
    let found = ask_consul(consul, &format!("/v1/health/service/{service}?passing"))?;
    let all = found.as_array().ok_or("no list")?;
    if all.is_empty() {
        return Err("Consul knows no passing instance".into());
    }
    let one = &all[rand::random_range(0..all.len())]["Service"];
    let at = format!("{}:{}", one["Address"].as_str().unwrap_or_default(), one["Port"]);
    at.parse().map_err(|_| format!("{at} is no address"))
}

/// HTTP/1.0: an answer without chunks.
pub(super) fn ask_consul(port: u16, path: &str) -> Result<Value, String> {
    let asked = || -> io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = asked().map_err(|error| format!("consul: {error}"))?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).map_err(|error| format!("consul: {error}: {text}"))
}

/// Calls without a pause: a thread for each host asks all others, one after another.
pub(super) struct Calls {
    ends: Arc<AtomicBool>,
    callers: Vec<JoinHandle<(usize, Vec<String>)>>,
}

/// How often each host has asked all others.
pub(super) type Rounds = Arc<Vec<AtomicU64>>;

impl Calls {
    pub(super) fn begin<P>(places: P, hosts: &[Host], rounds: &Rounds) -> Self
    where
        P: Places + Clone + Send + 'static,
    {
        let ends = Arc::new(AtomicBool::new(false));
        let caller = |at: usize| {
            let (places, hosts, rounds) = (places.clone(), hosts.to_vec(), rounds.clone());
            let ends = ends.clone();
            std::thread::spawn(move || {
                let (mut made, mut failed) = (0, Vec::new());
                while !ends.load(Relaxed) {
                    for to in hosts.iter().filter(|to| to.name != hosts[at].name) {
                        made += 1;
                        failed.extend(is_asked(&places, &hosts[at], to).err());
                    }
                    rounds[at].fetch_add(1, Relaxed);
                }
                (made, failed)
            })
        };
        let callers = (0..hosts.len()).map(caller).collect();
        Self { ends, callers }
    }

    /// How many there were, and those that failed.
    pub(super) fn end(self) -> (usize, Vec<String>) {
        self.ends.store(true, Relaxed);
        let each = self.callers.into_iter().map(|caller| caller.join().unwrap());
        each.fold((0, Vec::new()), |(made, mut all), (more, failed)| {
            all.extend(failed);
            (made + more, all)
        })
    }
}
