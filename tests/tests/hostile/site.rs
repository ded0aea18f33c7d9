//! One site of real processes on loopback addresses of its own: federation, a
//! gateway, and machines with agent, proxy and two applications.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use crate::programs::{Daemon, eventually, program, said};

pub(crate) const FEDERATION: &str = "federation";
pub(crate) const GATEWAY: &str = "gateway";

/// What the HTTP application answers.
const HELLO: &str = "hello from orders";
/// For one answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A site; all of its processes end with it.
pub(crate) struct Site {
    daemons: BTreeMap<String, Daemon>,
    dir: tempfile::TempDir,
    net: (u8, u8),
    /// Marks 127.a.b.0/24 as taken.
    _hold: TcpListener,
}

/// A machine: name and host number of its address.
#[derive(Clone, Copy)]
pub(crate) struct Machine(pub(crate) &'static str, pub(crate) u8);

impl Machine {
    pub(crate) fn agent(self) -> String {
        format!("{}-agent", self.0)
    }

    pub(crate) fn proxy(self) -> String {
        format!("{}-proxy", self.0)
    }
}

impl Site {
    /// Site west: files and addresses; nothing runs yet.
    pub(crate) fn init() -> Self {
        Self::init_as("west")
    }

    /// The same under another name.
    pub(crate) fn init_as(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("h").tempdir_in("/tmp").unwrap();
        let (net, hold) = claim();
        let site = Self { daemons: BTreeMap::new(), dir, net, _hold: hold };
        let path = |name: &str| site.dir().join(name).display().to_string();
        let gateway = site.addr(12, 8443).to_string();
        let trust_domain = format!("{name}.example");
        let words = [
            "site",
            "init",
            name,
            "--trust-domain",
            &trust_domain,
            "--state",
            &path("state"),
            "--config",
            &path("etc"),
            "--gateway-state",
            &path("gateway"),
            "--listen",
            &site.addr(11, 8446).to_string(),
            "--admin",
            &site.addr(11, 8448).to_string(),
            "--gateway-listen",
            &gateway,
            "--gateway-address",
            &gateway,
            "--gateway-admin",
            &site.addr(12, 4191).to_string(),
        ];
        said(&site.meshctl(site.dir(), &words).output().unwrap());
        site
    }

    /// Federation and gateway of west are up.
    pub(crate) fn start() -> Self {
        Self::start_as("west")
    }

    /// The same under another name.
    pub(crate) fn start_as(name: &str) -> Self {
        let mut site = Self::init_as(name);
        site.start_federation();
        site.start_gateway();
        site
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn addr(&self, host: u8, port: u16) -> SocketAddr {
        (Ipv4Addr::new(127, self.net.0, self.net.1, host), port).into()
    }

    pub(crate) fn config(&self, name: &str) -> PathBuf {
        self.dir().join("etc").join(name)
    }

    /// `meshctl --run <run> …`
    pub(crate) fn meshctl(&self, run: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(program("meshctl"));
        command.arg("--run").arg(run).args(words).stdin(Stdio::null());
        command
    }

    /// What `meshctl` says on federation's host, where it must succeed.
    pub(crate) fn said(&self, words: &[&str]) -> String {
        said(&self.meshctl(self.dir(), words).output().unwrap())
    }

    pub(crate) fn start_federation(&mut self) {
        self.start_federation_as(&mut Command::new(program("federation")));
    }

    /// `command` must run a federation with the arguments that are added here.
    pub(crate) fn start_federation_as(&mut self, command: &mut Command) {
        let config = self.config("federation.yaml");
        self.spawn(FEDERATION, command.arg("--config").arg(config));
        let socket = self.dir().join("federation.sock");
        eventually("federation listens", || connects(&socket));
    }

    pub(crate) fn start_gateway(&mut self) {
        let config = self.config("gateway.yaml");
        self.spawn(GATEWAY, Command::new(program("edge-proxy")).arg("--config").arg(config));
        self.wait_ready(self.addr(12, 4191), "the gateway");
    }

    /// Writes what an operator writes on a machine that backs orders.shop;
    /// starts its applications.
    pub(crate) fn prepare(&self, machine: Machine) {
        let run = self.run_dir(machine);
        fs::create_dir_all(run.join("services.d")).unwrap();
        fs::create_dir_all(run.join("proxy")).unwrap();
        let (at, run) = (|port| self.addr(machine.1, port), run.display());
        let write = |name: &str, text: String| fs::write(format!("{run}/{name}"), text).unwrap();
        write("machine-id", format!("{:032x}\n", rand::random::<u128>()));
        write(
            "agent.yaml",
            format!(
                "state: {run}/agent\nrun: {run}\nservices: {run}/services.d\n\
             machine_id_file: {run}/machine-id\nadvertise: {}\nadmin: {}\n",
                at(4143),
                at(4190),
            ),
        );
        write(
            "proxy.yaml",
            format!(
                "role: node\nidentity: {{ socket: {run}/identity.sock }}\nhttp_listener: {}\n\
             inbound: {}\nadmin: {}\nstate: {run}/proxy\nworkers: 2\ndrain_timeout: 1s\n\
             listeners:\n  - {{ listen: '{}', service: orders.shop, port: echo }}\n",
                at(4140),
                at(4143),
                at(4191),
                at(7000),
            ),
        );
        write(
            "services.d/orders.yaml",
            format!(
                "service: orders\nnamespace: shop\naddress: {}\nports:\n\
             - {{ name: http, port: 80, target: 8080, protocol: http }}\n\
             - {{ name: echo, port: 7000, target: 8082, protocol: tcp }}\n",
                at(0).ip(),
            ),
        );
        serve(at(8080), answer);
        serve(at(8082), echo);
    }

    /// Lets a machine that was prepared back `<name>.shop` instead.
    pub(crate) fn back(&self, machine: Machine, name: &str) {
        let folder = self.run_dir(machine).join("services.d");
        let text = fs::read_to_string(folder.join("orders.yaml")).unwrap();
        fs::remove_file(folder.join("orders.yaml")).unwrap();
        let text = text.replace("service: orders", &format!("service: {name}"));
        fs::write(folder.join(format!("{name}.yaml")), text).unwrap();
    }

    pub(crate) fn run_dir(&self, machine: Machine) -> PathBuf {
        self.dir().join(machine.0)
    }

    pub(crate) fn start_agent(&mut self, machine: Machine) {
        self.start_agent_as(machine, &mut Command::new(program("vm-agent")));
    }

    /// `command` must run a vm-agent with the arguments that are added here.
    pub(crate) fn start_agent_as(&mut self, machine: Machine, command: &mut Command) {
        let run = self.run_dir(machine);
        self.spawn(&machine.agent(), command.arg("--config").arg(run.join("agent.yaml")));
        eventually("the agent listens", || connects(&run.join("agent.sock")));
    }

    pub(crate) fn start_proxy(&mut self, machine: Machine) {
        self.start_proxy_as(machine, &mut Command::new(program("edge-proxy")));
    }

    /// `command` must run an edge-proxy with the arguments that are added here.
    pub(crate) fn start_proxy_as(&mut self, machine: Machine, command: &mut Command) {
        let config = self.run_dir(machine).join("proxy.yaml");
        self.spawn(&machine.proxy(), command.arg("--config").arg(config));
        let admin = self.addr(machine.1, 4191);
        eventually("the proxy lives", || get(admin, "/live", "admin").map_err(|e| e.to_string()));
    }

    /// A machine that has joined and answers.
    pub(crate) fn add(&mut self, machine: Machine) {
        self.add_backing(machine, "orders");
    }

    /// The same for `<name>.shop`.
    pub(crate) fn add_backing(&mut self, machine: Machine, name: &str) {
        self.prepare(machine);
        if name != "orders" {
            self.back(machine, name);
        }
        self.start_agent(machine);
        self.start_proxy(machine);
        let token = self.token();
        said(&self.join(machine, &token));
        let service = format!("{name}.shop");
        eventually("a request succeeds", || self.request_to(machine, &service));
    }

    pub(crate) fn token(&self) -> String {
        let words = [
            "token",
            "create",
            "--namespace",
            "shop",
            "--account",
            "orders",
            "--service",
            "*.shop",
        ];
        said(&self.meshctl(self.dir(), &words).output().unwrap()).trim().to_owned()
    }

    pub(crate) fn join(&self, machine: Machine, token: &str) -> Output {
        self.meshctl(&self.run_dir(machine), &["join", token]).output().unwrap()
    }

    fn spawn(&mut self, name: &str, command: &mut Command) {
        let log = self.dir().join(format!("{name}.log"));
        self.daemons.insert(name.to_owned(), Daemon::start(command, &log));
    }

    pub(crate) fn daemon(&self, name: &str) -> &Daemon {
        &self.daemons[name]
    }

    pub(crate) fn daemon_mut(&mut self, name: &str) -> &mut Daemon {
        self.daemons.get_mut(name).unwrap()
    }

    /// SIGKILL, now.
    pub(crate) fn kill(&mut self, name: &str) {
        drop(self.daemons.remove(name).unwrap());
    }

    /// Every process still runs, and none has panicked.
    pub(crate) fn check_alive(&mut self) {
        for (name, daemon) in &mut self.daemons {
            assert_eq!(daemon.ended(), None, "{name} has ended: {}", daemon.log());
            let log = daemon.log().to_lowercase();
            assert!(!log.contains("panic"), "{name}: {log}");
        }
    }

    pub(crate) fn descriptors(&self) -> BTreeMap<String, usize> {
        self.daemons.iter().map(|(name, daemon)| (name.clone(), daemon.descriptors())).collect()
    }

    /// A request to orders.shop by the proxy of `machine`.
    pub(crate) fn request(&self, machine: Machine) -> Result<(), String> {
        self.request_to(machine, "orders.shop")
    }

    /// The same to another service.
    pub(crate) fn request_to(&self, machine: Machine, service: &str) -> Result<(), String> {
        let answer = get(self.addr(machine.1, 4140), "/", service);
        match answer.map_err(|error| error.to_string())? {
            answer if answer.contains(HELLO) => Ok(()),
            answer => Err(answer),
        }
    }

    pub(crate) fn wait_served(&self, machine: Machine) {
        eventually("a request succeeds", || self.request(machine));
    }

    pub(crate) fn wait_ready(&self, admin: SocketAddr, what: &str) {
        eventually(what, || match get(admin, "/ready", "admin") {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

/// Links west with east; each exports what its machines back.
pub(crate) fn link(west: &Site, east: &Site) {
    let token = east.said(&["link", "token", "--site", "west"]);
    west.said(&["link", "cluster", "east", token.trim()]);
    east.said(&["service", "export", "stock.shop"]);
    west.said(&["service", "export", "orders.shop"]);
}

/// The whole answer to one GET, head included.
pub(crate) fn get(addr: SocketAddr, path: &str, host: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(1024 * 1024).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn connects(socket: &Path) -> Result<(), String> {
    std::os::unix::net::UnixStream::connect(socket).map(drop).map_err(|error| error.to_string())
}

/// 127.a.b.0/24 that nobody uses; the demo marks its own in the same way.
fn claim() -> ((u8, u8), TcpListener) {
    eventually("a free block of addresses", || {
        let (a, b) = (rand::random_range(10..250_u8), rand::random_range(1..250_u8));
        let hold = TcpListener::bind((Ipv4Addr::new(127, a, b, 1), 4140));
        hold.map(|hold| ((a, b), hold)).map_err(|error| error.to_string())
    })
}

/// An application: a thread for each connection, as long as the test runs.
fn serve(addr: SocketAddr, each: fn(TcpStream) -> io::Result<()>) {
    // Whoever listens on this port of every address may be about to end.
    let listener = eventually("a port for an application", || {
        TcpListener::bind(addr).map_err(|error| format!("{addr}: {error}"))
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || each(stream));
        }
    });
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    loop {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            let len = HELLO.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n{HELLO}")?;
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut reader = stream.try_clone()?;
    io::copy(&mut reader, &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)
}
