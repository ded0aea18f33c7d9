//! A site beside a real Consul, with the six hosts around both.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType},
};
use serde_json::{Value, json};

use super::hosts::{
    APP, BOTH, Calls, EXPORT, EXPORT_OF_BOTH, Host, Places, Rounds, Way, ask, ask_consul, is_asked,
};
use crate::{
    consul::Consul,
    programs::{eventually, said},
    site::{FEDERATION, Site, get},
};

pub(super) struct World {
    runtime: tokio::runtime::Runtime,
    consul: Consul,
    site: Site,
    hosts: Vec<Host>,
    rounds: Rounds,
}

/// What callers need of it.
#[derive(Clone)]
struct Map(Vec<(Host, SocketAddr)>, u16);

impl Places for Map {
    fn addr(&self, host: &Host, port: u16) -> SocketAddr {
        let found = self.0.iter().find(|(known, _)| known.name == host.name);
        let mut addr = found.expect("one of the six").1;
        addr.set_port(port);
        addr
    }

    fn consul(&self) -> u16 {
        self.1
    }
}

impl Places for World {
    fn addr(&self, host: &Host, port: u16) -> SocketAddr {
        self.site.addr(host.machine.1, port)
    }

    fn consul(&self) -> u16 {
        self.consul.http
    }
}

impl World {
    /// a, b and c have moved; a is the door. d, e and f have not.
    pub(super) fn start() -> Self {
        let runtime = mesh_runtime::process::current_thread().unwrap();
        let consul = runtime.block_on(Consul::start(json!({})));
        let numbered = ["a", "b", "c", "d", "e", "f"].into_iter().zip(21..);
        let way = |name| if name < "d" { Way::Moved } else { Way::Legacy };
        let hosts: Vec<Host> =
            numbered.map(|(name, number)| Host::new(name, number, way(name))).collect();
        let rounds = Arc::new(hosts.iter().map(|_| AtomicU64::new(0)).collect());
        let mut world = Self { runtime, consul, site: Site::start(), hosts, rounds };
        for host in world.hosts.clone() {
            host.serve(world.addr(&host, APP));
            match host.way() {
                Way::Moved => world.joins(host.name),
                Way::Legacy => world.register_in_consul(&host),
            }
        }
        world.bridge();
        world
    }

    /// From the beginning on, everything that will move may be exported.
    fn bridge(&mut self) {
        let nodes: Value =
            serde_json::from_str(&self.site.said(&["--json", "node", "list"])).unwrap();
        let is_a = |node: &&Value| {
            let id = node["id"].as_str().unwrap();
            let of_a = self.endpoints(&self.hosts[0].service()).unwrap();
            of_a[0]["node"].as_str() == Some(id)
        };
        let door = nodes["nodes"].as_array().unwrap().iter().find(is_a).unwrap();
        let exports: String = self
            .hosts
            .iter()
            .map(|host| {
                let (service, at) = (host.service(), self.addr(host, EXPORT));
                format!("      - {{ service: {service}.shop, at: ['{at}'] }}\n")
            })
            .collect();
        let at = self.addr(self.host("c"), EXPORT_OF_BOTH);
        let exports = format!("{exports}      - {{ service: {BOTH}.shop, at: ['{at}'] }}\n");
        let bridge = format!(
            "\nconsul:\n  - address: {}\n    door: {}\n    churn_interval: 100ms\n    \
             import: [{{ allow: ['svc-*'], as_namespace: shop, port: 80 }}]\n    \
             export:\n{exports}",
            self.consul.address(),
            door["id"].as_str().unwrap(),
        );
        let config = self.site.config("federation.yaml");
        let written = fs::read_to_string(&config).unwrap();
        self.site.kill(FEDERATION);
        fs::write(&config, written + &bridge).unwrap();
        self.site.start_federation();
    }

    pub(super) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    pub(super) fn host(&self, name: &str) -> &Host {
        self.hosts.iter().find(|host| host.name == name).unwrap()
    }

    /// Its own agent of Consul asks its application once a second.
    pub(super) fn register_in_consul(&self, host: &Host) {
        self.register_as(&host.service(), host);
    }

    fn register_as(&self, service: &str, host: &Host) {
        let at = self.addr(host, APP);
        let check = json!({ "HTTP": format!("http://{at}/health"), "Interval": "1s",
            "Timeout": "5s", "Status": "passing" });
        let registration = json!({ "Name": service, "ID": format!("{service}-1"),
            "Address": at.ip().to_string(), "Port": APP, "Check": check });
        let call = self.consul.call("PUT", "/v1/agent/service/register", &registration);
        self.runtime.block_on(call);
    }

    /// Agent and proxy of ours; answered by its own proxy when this returns.
    pub(super) fn joins(&mut self, name: &str) {
        let host = self.host(name).clone();
        let (machine, service) = (host.machine, host.service());
        self.site.prepare(machine);
        let run = self.site.run_dir(machine);
        let proxy = fs::read_to_string(run.join("proxy.yaml")).unwrap();
        let proxy = proxy.replace(
            "service: orders.shop, port: echo",
            &format!("service: {service}.shop, port: main"),
        );
        let both = self.addr(&host, EXPORT_OF_BOTH);
        let both = format!("  - {{ listen: '{both}', service: {BOTH}.shop, port: main }}\n");
        fs::write(run.join("proxy.yaml"), proxy + &both).unwrap();
        fs::remove_file(run.join("services.d/orders.yaml")).unwrap();
        self.site.start_agent(machine);
        self.site.start_proxy(machine);
        let token = self.site.token();
        said(&self.site.join(machine, &token));
        // Consul shows it from then on that it is registered, at a listener of this proxy.
        self.site.wait_ready(self.addr(&host, 4191), "its proxy is ready");
        self.has_here(&service, &host);
        let asks_itself = || {
            let name = format!("{service}.shop");
            let answer = get(self.addr(&host, 4140), "/", &name).map_err(|e| e.to_string())?;
            if answer.ends_with(&host.says()) { Ok(()) } else { Err(answer) }
        };
        eventually("its own proxy reaches it", asks_itself);
    }

    /// A file of its agent says that it has a service.
    fn has_here(&self, service: &str, host: &Host) {
        let ip = self.addr(host, APP).ip();
        let text = format!(
            "service: {service}\nnamespace: shop\naddress: {ip}\nport: 80\ntarget: {APP}\n\
             check: {{ http: /health, interval: 200ms, timeout: 5s }}\n"
        );
        let folder = self.site.run_dir(host.machine).join("services.d");
        fs::write(folder.join(format!("{service}.yaml")), text).unwrap();
    }

    /// One service on two hosts, one of which has moved.
    pub(super) fn have_both(&self, legacy: &Host, moved: &Host) {
        self.register_as(BOTH, legacy);
        self.has_here(BOTH, moved);
    }

    /// Each of the six asks that service a few times: who answers, and nobody else.
    pub(super) fn both_is_answered_by(&self, wanted: &[&Host]) -> Result<(), String> {
        let mut missing: Vec<String> = wanted.iter().map(|host| host.says()).collect();
        for _ in 0..8 {
            for from in &self.hosts {
                let says = ask(self, from, BOTH)?;
                if !wanted.iter().any(|host| host.says() == says) {
                    return Err(format!("{} was answered {says}", from.name));
                }
                missing.retain(|other| *other != says);
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(format!("never: {missing:?}")) }
    }

    /// Its service is no longer ours; it still calls and forwards.
    pub(super) fn withdraws(&self, host: &Host) {
        let run = self.site.run_dir(host.machine);
        fs::remove_file(run.join(format!("services.d/{}.yaml", host.service()))).unwrap();
    }

    /// Nothing of ours is left there.
    pub(super) fn leaves(&mut self, host: &Host) {
        let run = self.site.run_dir(host.machine);
        said(&self.site.meshctl(&run, &["leave"]).output().unwrap());
        for name in [host.machine.proxy(), host.machine.agent()] {
            self.site.daemon(&name).signal("TERM");
            self.site.daemon_mut(&name).wait();
            self.site.kill(&name);
        }
    }

    pub(super) fn consul_says(&self, method: &str, path: &str) -> Value {
        self.runtime.block_on(self.consul.call(method, path, &Value::Null))
    }

    /// How many directions there are, all of them answered by whom they should be.
    pub(super) fn each_asks_each(&self) -> Result<usize, String> {
        let mut answered = 0;
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| to.name != from.name) {
                is_asked(self, from, to)?;
                answered += 1;
            }
        }
        Ok(answered)
    }

    pub(super) fn everybody_calls(&self) -> Calls {
        let map = self.hosts.iter().map(|host| (host.clone(), self.addr(host, 0))).collect();
        Calls::begin(Map(map, self.consul.http), &self.hosts, &self.rounds)
    }

    /// Whoever had resolved something before this began has called by then.
    pub(super) fn callers_went_round(&self) {
        let now = || self.rounds.iter().map(|round| round.load(Relaxed)).collect::<Vec<_>>();
        let before = now();
        eventually("everybody has asked everybody", || {
            let went = now().iter().zip(&before).all(|(now, before)| *now >= before + 2);
            if went { Ok(()) } else { Err(format!("{:?} of {before:?}", now())) }
        });
    }

    /// Endpoints of its service, as the site shows them.
    fn endpoints(&self, service: &str) -> Result<Vec<Value>, String> {
        let name = format!("{service}.shop");
        let output = self.site.meshctl(self.site.dir(), &["--json", "endpoints", &name]).output();
        let output = output.map_err(|error| error.to_string())?;
        let shown: Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(shown["endpoints"].as_array().cloned().unwrap_or_default())
    }

    /// So many instances are known of its service, whatever their health.
    pub(super) fn counts(
        &self,
        service: &str,
        in_consul: usize,
        here: usize,
    ) -> Result<(), String> {
        let there = ask_consul(self.consul.http, &format!("/v1/health/service/{service}"))?;
        let (found, known) = (there.as_array().map_or(0, Vec::len), self.endpoints(service)?);
        if (found, known.len()) == (in_consul, here) {
            return Ok(());
        }
        Err(format!("{service}: {found} in Consul: {there}; here {known:?}"))
    }

    /// So many of its instances are well, on both sides.
    pub(super) fn well(&self, service: &str, wanted: usize) -> Result<(), String> {
        let path = format!("/v1/health/service/{service}?passing");
        let passing = ask_consul(self.consul.http, &path)?;
        let known = self.endpoints(service)?;
        let here = known.iter().filter(|endpoint| endpoint["health"] == "healthy").count();
        let places = passing.as_array().into_iter().flatten().filter_map(|entry| {
            let ip = entry["Service"]["Address"].as_str()?.parse().ok()?;
            Some(SocketAddr::new(ip, entry["Service"]["Port"].as_u64()?.try_into().ok()?))
        });
        let (places, named): (BTreeSet<_>, _) = (places.collect(), self.by_dns(service)?);
        if (places.len(), here) == (wanted, wanted) && places == named {
            return Ok(());
        }
        Err(format!("{service}: passing {passing}; by DNS {named:?}; here {known:?}"))
    }

    /// Where Consul's DNS says that it is (SRV, RFC 2782; the addresses come with it).
    fn by_dns(&self, service: &str) -> Result<BTreeSet<SocketAddr>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let mut question = Message::query();
        let name = Name::from_ascii(format!("{service}.service.consul.")).map_err(|e| text(&e))?;
        question.add_query(Query::query(name, RecordType::SRV));
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(|e| text(&e))?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).map_err(|e| text(&e))?;
        let asked = question.to_vec().map_err(|e| text(&e))?;
        socket.send_to(&asked, ("127.0.0.1", self.consul.dns)).map_err(|e| text(&e))?;
        let mut answer = [0; 4096];
        let length = socket.recv(&mut answer).map_err(|e| text(&e))?;
        let said = Message::from_vec(&answer[..length]).map_err(|e| text(&e))?;
        let of = |target: &Name| {
            said.additionals.iter().find_map(|record| match &record.data {
                RData::A(address) if record.name == *target => Some(address.0),
                _ => None,
            })
        };
        let places = said.answers.iter().map(|record| match &record.data {
            RData::SRV(srv) => {
                let ip = of(&srv.target).ok_or_else(|| format!("no address of {}", srv.target))?;
                Ok(SocketAddr::new(ip.into(), srv.port))
            }
            other => Err(format!("{other:?} is no SRV")),
        });
        places.collect()
    }

    /// The only endpoint of it leads through the door, or does not.
    pub(super) fn is_imported(&self, host: &Host, expected: bool) -> Result<(), String> {
        let door = self.endpoints(&self.hosts[0].service())?;
        let known = self.endpoints(&host.service())?;
        let through = known.iter().all(|endpoint| endpoint["node"] == door[0]["node"]);
        if through == expected { Ok(()) } else { Err(format!("{}: {known:?}", host.name)) }
    }

    pub(super) fn names_in_consul(&self) -> Vec<String> {
        let names = self.consul_says("GET", "/v1/catalog/services");
        let mut names: Vec<String> = names.as_object().unwrap().keys().cloned().collect();
        names.sort_by_key(|name| (name == "consul", name.clone()));
        names
    }

    pub(super) fn status(&self) -> Value {
        serde_json::from_str(&self.site.said(&["--json", "status"])).unwrap()
    }

    /// In `meshctl status` and in the metrics.
    pub(super) fn bridge_counts(&self, imported: usize, exported: usize) -> Result<(), String> {
        let status = self.status();
        let consul = &status["consuls"][0];
        let shown = ["imported_services", "imported_instances", "exported", "not_imported"]
            .map(|key| consul[key].as_u64().unwrap_or(u64::MAX));
        let wanted = [imported, imported, exported, 0].map(|n| u64::try_from(n).unwrap());
        if shown != wanted || consul["state"] != "fresh" {
            return Err(consul.to_string());
        }
        let text = get(self.site.addr(11, 8448), "/metrics", "admin").map_err(|e| e.to_string())?;
        for (name, value) in [
            ("fresh", 1),
            ("imported_services", imported),
            ("imported_instances", imported),
            ("exported_instances", exported),
            ("not_imported", 0),
            ("not_exported", 0),
        ] {
            let begin = format!("isthmus_federation_consul_{name}{{");
            let line = text.lines().find(|line| line.starts_with(&begin)).unwrap_or_default();
            let found = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
            if found != Some(value as f64) {
                return Err(format!("{name} is not {value}: {line:?}"));
            }
        }
        Ok(())
    }

    pub(super) fn ends(mut self) {
        self.site.check_alive();
    }
}
