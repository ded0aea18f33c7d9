//! Two sites, a caller in one and an application in the other, and what
//! happens to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    apps,
    connections::{self, Doors, KINDS, Kind, Shared},
    programs::{eventually, program, said},
    site::{FEDERATION, GATEWAY, Machine, Site, get, link},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Where the application is, in west.
const SERVES: Machine = Machine("serves", 21);
/// Where its clients are, in east.
const CALLS: Machine = Machine("calls", 23);
/// How long certificates live at first: a rotation is when they end.
const SHORT_LIFE: Duration = Duration::from_secs(20);
/// The line of federation.yaml for it; without one they live for a day.
const SHORT_LINE: &str = "workload_lifetime: 20s";

pub(crate) struct World {
    west: Site,
    east: Site,
    /// What the proxies are started from.
    binary: PathBuf,
    dir: tempfile::TempDir,
    /// Runs the applications, to the end.
    _apps: Background,
    /// Runs the clients.
    clients: Option<Background>,
    shared: Arc<Shared>,
    requests: Arc<AtomicUsize>,
    started: Instant,
    /// When the last of the connections was opened.
    opened: Instant,
    opened_count: usize,
}

/// A runtime in a thread of its own; everything in it ends with it.
struct Background {
    handle: tokio::runtime::Handle,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Background {
    fn start() -> Self {
        let runtime = mesh_runtime::process::current_thread().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || drop(runtime.block_on(stopped)));
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

impl World {
    /// Both sites are up, linked, and `life.shop` answers across them.
    pub(crate) fn start() -> Self {
        mesh_runtime::process::raise_descriptors();
        let (started, dir) = (Instant::now(), tempfile::tempdir().unwrap());
        let binary = dir.path().join("edge-proxy");
        fs::copy(program("edge-proxy"), &binary).unwrap();
        let (mut west, mut east) = (site("west"), site("east"));
        let apps = Background::start();
        apps.handle.block_on(async {
            apps::serve(west.addr(SERVES.1, 8090), apps::http1).await;
            apps::serve(west.addr(SERVES.1, 8091), apps::http2).await;
            apps::serve(west.addr(SERVES.1, 8092), apps::echo).await;
        });
        west.prepare(SERVES);
        let services = west.run_dir(SERVES).join("services.d");
        fs::write(services.join("life.yaml"), life_service(&west)).unwrap();
        east.prepare(CALLS);
        east.back(CALLS, "stock");
        replace_in(&east.run_dir(CALLS).join("proxy.yaml"), "orders.shop", "life.shop");
        for (site, machine) in [(&mut west, SERVES), (&mut east, CALLS)] {
            site.start_agent(machine);
            site.start_proxy_as(machine, &mut from_a_shell(&binary));
            let token = site.token();
            said(&site.join(machine, &token));
        }
        link(&west, &east);
        west.said(&["service", "export", "life.shop"]);
        let doors = Doors { http: east.addr(CALLS.1, 4140), opaque: east.addr(CALLS.1, 7000) };
        let clients = Background::start();
        eventually("the application answers across the sites", || {
            clients.handle.block_on(connections::once(doors)).map_err(|error| error.to_string())
        });
        Self {
            west,
            east,
            binary,
            dir,
            _apps: apps,
            clients: Some(clients),
            shared: Shared::new(doors),
            requests: Arc::default(),
            started,
            opened: Instant::now(),
            opened_count: 0,
        }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Opens so many connections of each kind, and starts so many clients that
    /// keep none.
    pub(crate) fn open(&mut self, each: usize, clients: usize) {
        let runtime = &self.clients.as_ref().unwrap().handle;
        for number in 0..each {
            for (at, kind) in KINDS.into_iter().enumerate() {
                let keeping =
                    connections::keep(self.shared.clone(), number * KINDS.len() + at, kind);
                runtime.block_on(keeping);
            }
        }
        self.opened = Instant::now();
        self.opened_count = each * KINDS.len();
        for _ in 0..clients {
            let (shared, requests) = (self.shared.clone(), self.requests.clone());
            runtime.spawn(async move {
                loop {
                    match connections::once(shared.doors).await {
                        Ok(()) => drop(requests.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => return shared.failed(format!("a new one: {error}")),
                    }
                }
            });
        }
    }

    /// Waits until each of the connections has carried bytes both ways; ends
    /// the test if anything has failed.
    pub(crate) fn all_carry(&self, when: &str) {
        self.shared.next_lap();
        let (all, asked) = (self.opened_count, self.requests.load(Ordering::Relaxed));
        eventually(&format!("{when}: all connections carry"), || {
            self.nothing_failed(when);
            let (carried, requests) =
                (self.shared.carried(), self.requests.load(Ordering::Relaxed) - asked);
            if carried == all && requests > 0 {
                println!("{:5.1} s: {when}", self.started.elapsed().as_secs_f32());
                return Ok(());
            }
            Err(format!("{carried} of {all}, {requests} requests"))
        });
    }

    fn nothing_failed(&self, when: &str) {
        let failures = self.shared.failures();
        if failures.is_empty() {
            return;
        }
        let daemons = [
            (&self.east, CALLS.proxy()),
            (&self.east, GATEWAY.to_owned()),
            (&self.west, GATEWAY.to_owned()),
            (&self.west, SERVES.proxy()),
        ];
        let end = |log: String| log.lines().rev().take(40).collect::<Vec<_>>().join("\n");
        let logs = daemons.map(|(site, name)| {
            format!("--- {name}, last line first\n{}", end(site.daemon(&name).log()))
        });
        panic!("{when}: {} failures: {failures:#?}\n{}", failures.len(), logs.join("\n"));
    }

    /// Documents that the caller's proxy and the application's proxy act on.
    pub(crate) fn change_policies(&mut self) {
        let own = self.west.addr(SERVES.1, 4140);
        let own_request = || get(own, "/", "life.shop").map_err(|error| error.to_string());
        let answered = own_request().unwrap();
        assert!(answered.starts_with("HTTP/1.1 200"), "{answered}");
        let identity = "spiffe://east.example/ns/shop/sa/orders";
        apply(&self.west, self.dir.path(), &guard(identity));
        eventually("the policy is in force", || match own_request()? {
            answer if answer.contains("denied_no_rule") => Ok(()),
            answer => Err(answer),
        });
        apply(&self.east, self.dir.path(), ROUTE);
        eventually("the route is in force", || {
            match get(self.shared.doors.http, "/", "life.shop") {
                Ok(answer) if answer.to_ascii_lowercase().contains("x-life: routed") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// New issuing CAs, and new leaves for everybody, which from then on live
    /// for a day; those that proved the sessions in use have ended after it.
    pub(crate) fn rotate_certificates(&mut self) {
        let identities = self.identities();
        let before: Vec<_> = identities.iter().map(|path| fs::read(path).unwrap()).collect();
        for site in [&mut self.west, &mut self.east] {
            site.kill(FEDERATION);
            let due = make_issuing_due(&site.dir().join("state/keys"));
            replace_in(&site.config("federation.yaml"), SHORT_LINE, "");
            site.start_federation();
            let issuing = fs::read_to_string(site.dir().join("state/keys/issuing.pem")).unwrap();
            assert_ne!(issuing, due, "the issuing CA that was due is replaced");
        }
        for (path, before) in identities.iter().zip(&before) {
            eventually(&format!("{} is renewed", path.display()), || {
                self.nothing_failed("while certificates are replaced");
                let renewed = fs::read(path).unwrap() != *before;
                renewed.then_some(()).ok_or_else(|| "not yet".to_owned())
            });
        }
        // Those of before have ended, and so have leaves issued meanwhile.
        let ended = self.opened + SHORT_LIFE + Duration::from_secs(10);
        while Instant::now() < ended {
            self.nothing_failed("while certificates end");
            sleep(Duration::from_millis(200));
        }
    }

    /// New roots for both sites at once: nothing that anybody holds hangs on
    /// those of before.
    pub(crate) fn rotate_roots(&mut self) {
        let sites = [&self.west, &self.east];
        let before = sites.map(|site| root_of(site, "signing_root"));
        for site in sites {
            site.said(&["rotate", "root", "--no-wait"]);
        }
        for (site, before) in sites.into_iter().zip(&before) {
            let status = || site.said(&["rotate", "root", "status"]);
            eventually("the root is replaced", || {
                self.nothing_failed(&format!("while roots are replaced: {}", status()));
                let over = root_of(site, "phase") == "none";
                over.then_some(()).ok_or_else(status)
            });
            assert_ne!(&root_of(site, "signing_root"), before);
        }
    }

    /// Certificates of all four proxies, with what they are for.
    fn identities(&self) -> [PathBuf; 4] {
        [
            self.west.run_dir(SERVES).join("proxy/identity.bin"),
            self.west.dir().join("gateway/identity.bin"),
            self.east.run_dir(CALLS).join("proxy/identity.bin"),
            self.east.dir().join("gateway/identity.bin"),
        ]
    }

    pub(crate) fn stop_federations(&mut self) {
        self.west.kill(FEDERATION);
        self.east.kill(FEDERATION);
    }

    pub(crate) fn start_federations(&mut self) {
        for (site, machine) in [(&mut self.west, SERVES), (&mut self.east, CALLS)] {
            site.start_federation();
            site.wait_ready(site.addr(machine.1, 4190), "the agent is connected");
        }
    }

    /// One after the other, as an operator does.
    pub(crate) fn replace_gateways(&mut self) {
        for site in [&self.west, &self.east] {
            assert!(!site.daemon(GATEWAY).replace().is_empty());
            self.all_carry("while gateways are replaced");
        }
    }

    /// Another program in the place of the proxies', then SIGUSR2.
    pub(crate) fn upgrade_proxies(&mut self) {
        let mut upgraded = fs::read(&self.binary).unwrap();
        upgraded.extend(b"a later version");
        let new = self.dir.path().join("edge-proxy.new");
        fs::copy(&self.binary, &new).unwrap();
        fs::write(&new, &upgraded).unwrap();
        fs::rename(&new, &self.binary).unwrap();
        for (site, machine) in [(&self.west, SERVES), (&self.east, CALLS)] {
            let old = site.daemon(&machine.proxy());
            self.shared.may_move.store(machine.1 == CALLS.1, Ordering::Relaxed);
            old.signal("USR2");
            let pid = old.successor();
            let runs = fs::metadata(format!("/proc/{pid}/exe")).unwrap().len();
            assert_eq!(runs, u64::try_from(upgraded.len()).unwrap());
            self.all_carry("while proxies are upgraded");
        }
    }

    /// Requests have moved to the caller's new process, bytes have not.
    pub(crate) fn new_connections_are_the_successors(&self) {
        let daemon = self.east.daemon(&CALLS.proxy());
        let (old, new) = (daemon.pid().to_string(), daemon.successor());
        eventually("all that may move has moved", || {
            self.nothing_failed("after the upgrade");
            let (moved, all) = (self.shared.moved().len(), self.opened_count / 2);
            if moved == all { Ok(()) } else { Err(format!("{moved} of {all}")) }
        });
        self.all_carry("on both processes");
        let (moved, [of_old, of_new]) =
            (self.shared.moved(), [old, new].map(|pid| clients_of(&pid)));
        for (number, addr) in self.shared.addresses() {
            let kind = KINDS[number % KINDS.len()];
            assert_eq!(moved.contains(&number), matches!(kind, Kind::Http1 | Kind::Http2));
            let of = if moved.contains(&number) { &of_new } else { &of_old };
            assert!(of.contains(&addr), "{kind:?} {number} is with the other process");
        }
    }

    /// Ends the clients; how many requests were answered on connections of
    /// their own.
    pub(crate) fn close(&mut self) -> usize {
        self.nothing_failed("at the end");
        drop(self.clients.take());
        self.requests.load(Ordering::Relaxed)
    }

    /// What was replaced ends with its last connection, and had to cut none.
    pub(crate) fn all_predecessors_end(&mut self) {
        let (serves, calls) = (SERVES.proxy(), CALLS.proxy());
        for (site, proxy) in [(&mut self.west, serves), (&mut self.east, calls)] {
            for name in [&proxy, GATEWAY] {
                assert!(site.daemon_mut(name).wait().success(), "{name}");
                let log = site.daemon(name).log();
                assert!(log.contains("stopped cut=0") && !log.contains("panic"), "{name}: {log}");
            }
        }
    }
}

/// As shells start programs: with a limit on open files that is too low for
/// what comes, and that a program may raise.
fn from_a_shell(binary: &Path) -> Command {
    // It becomes the program, under the same process id.
    let mut command = Command::new("prlimit");
    command.arg("--nofile=1024:").arg(binary);
    command
}

/// A site whose certificates live shortly.
fn site(name: &str) -> Site {
    let mut site = Site::init_as(name);
    let config = site.config("federation.yaml");
    let written = fs::read_to_string(&config).unwrap();
    let others = written.lines().filter(|line| !line.starts_with("workload_lifetime:"));
    fs::write(&config, others.chain([SHORT_LINE]).collect::<Vec<_>>().join("\n")).unwrap();
    site.start_federation();
    site.start_gateway();
    site
}

/// What a site says of its roots.
fn root_of(site: &Site, key: &str) -> String {
    let status = site.said(&["rotate", "root", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    status[key].as_str().unwrap().to_owned()
}

fn life_service(west: &Site) -> String {
    format!(
        "service: life\nnamespace: shop\naddress: {}\nports:\n\
         - {{ name: http, port: 80, target: 8090, protocol: http }}\n\
         - {{ name: grpc, port: 81, target: 8091, protocol: grpc }}\n\
         - {{ name: echo, port: 7000, target: 8092, protocol: tcp }}\n",
        west.addr(SERVES.1, 0).ip(),
    )
}

fn replace_in(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

fn apply(site: &Site, dir: &Path, documents: &str) {
    let file = dir.join("documents.yaml");
    fs::write(&file, documents).unwrap();
    site.said(&["apply", "-f", file.to_str().unwrap()]);
}

/// Lets one identity call `life.shop`, and nobody else.
fn guard(identity: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\n\
         metadata: {{ name: guard, namespace: shop }}\nspec:\n  identities: ['{identity}']\n---\n\
         apiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: guard, namespace: shop }}\nspec:\n  \
         targetRef: {{ kind: Service, name: life }}\n  requiredAuthenticationRefs:\n    \
         - {{ group: policy.linkerd.io, kind: MeshTLSAuthentication, name: guard }}\n"
    )
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: life, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: life, port: 80 }]
  rules:
    - backendRefs: [{ name: life, port: 80 }]
      filters:
        - type: ResponseHeaderModifier
          responseHeaderModifier: { set: [{ name: x-life, value: routed }] }
";

/// Puts an issuing CA in the place of the one that is there which ends so soon
/// that federation replaces it; returns its file.
fn make_issuing_due(keys: &Path) -> String {
    let text = |name: &str| fs::read_to_string(keys.join(name)).unwrap();
    let root_key = KeyPair::from_pem(&text("root.key")).unwrap();
    let root = Issuer::from_ca_cert_pem(&text("root.crt"), root_key).unwrap();
    let mut params = CertificateParams::default();
    let now = time::OffsetDateTime::from(SystemTime::now());
    params.not_before = now - time::Duration::days(70);
    params.not_after = now + time::Duration::days(20);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let due = key.serialize_pem() + &params.signed_by(&key, &root).unwrap().pem();
    fs::write(keys.join("issuing.pem"), &due).unwrap();
    due
}

/// The far ends of a process's TCP connections.
fn clients_of(pid: &str) -> BTreeSet<SocketAddr> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let by_inode: BTreeMap<_, _> = table.lines().skip(1).filter_map(far_end).collect();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        target.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
    };
    open.filter_map(inode).filter_map(|inode| by_inode.get(&inode).copied()).collect()
}

/// A line of `/proc/net/tcp` (proc(5)): inode and remote address.
fn far_end(line: &str) -> Option<(u64, SocketAddr)> {
    let mut columns = line.split_whitespace().skip(2);
    let (ip, port) = columns.next()?.split_once(':')?;
    let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((columns.nth(6)?.parse().ok()?, (ip, port).into()))
}
