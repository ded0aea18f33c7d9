//! The mesh of the demo: which processes there are, where they listen, what
//! their configurations say.
//!
//! ```text
//! west (VMs, outbound only)               east (stands for a cluster)
//!   vm1  orders.shop, the caller            node1  payments.prod, catalog.shop
//!   vm2  catalog.shop
//! ```

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{
    child::Spec,
    client::Call,
    load::Flow,
    room::{Block, Room},
};
use crate::{binary, failure::Failure};

/// Trust domain of `west`.
pub(crate) const WEST: Site =
    Site { name: "west", trust_domain: "west.example", federation: 11, gateway: 12, silent: 13 };
/// Trust domain of `east`.
pub(crate) const EAST: Site =
    Site { name: "east", trust_domain: "east.example", federation: 111, gateway: 112, silent: 113 };

/// A site and the host numbers of its addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Site {
    pub(crate) name: &'static str,
    pub(crate) trust_domain: &'static str,
    federation: u8,
    gateway: u8,
    /// Where UDP is advertised when it is to be blocked.
    silent: u8,
}

/// A machine and what joins it to its site.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    pub(crate) name: &'static str,
    pub(crate) site: Site,
    host: u8,
    /// Other machines of its site may dial its proxy.
    reachable: bool,
    namespace: &'static str,
    account: &'static str,
    services: &'static [Service],
}

#[derive(Debug, Clone, Copy)]
struct Service {
    name: &'static str,
    namespace: &'static str,
    /// The application, the service port's name and number, and where the
    /// application listens.
    ports: &'static [(&'static str, &'static str, u16, u16)],
}

const HTTP_ORDERS: Service =
    Service { name: "orders", namespace: "shop", ports: &[("http", "http", 80, 8080)] };
const HTTP_CATALOG: Service =
    Service { name: "catalog", namespace: "shop", ports: &[("http", "http", 80, 8090)] };
const PAYMENTS: Service = Service {
    name: "payments",
    namespace: "prod",
    ports: &[
        ("http", "http", 80, 8080),
        ("grpc", "grpc", 50051, 8081),
        ("echo", "tcp", 7000, 8082),
    ],
};

/// The machine that calls from `west`.
pub(crate) const VM1: Machine = Machine {
    name: "vm1",
    site: WEST,
    host: 21,
    reachable: false,
    namespace: "shop",
    account: "orders",
    services: &[HTTP_ORDERS],
};
/// The machine that is stopped and killed.
pub(crate) const VM2: Machine = Machine {
    name: "vm2",
    site: WEST,
    host: 22,
    reachable: false,
    namespace: "shop",
    account: "catalog",
    services: &[HTTP_CATALOG],
};
/// The machine of `east`.
pub(crate) const NODE1: Machine = Machine {
    name: "node1",
    site: EAST,
    host: 121,
    reachable: true,
    namespace: "prod",
    account: "payments",
    services: &[PAYMENTS, HTTP_CATALOG],
};
/// All machines.
pub(crate) const MACHINES: [Machine; 3] = [VM1, VM2, NODE1];

/// HTTP proxy listener, door of the mesh, admin, and the explicit listener of
/// vm1 for the echo port of payments.prod.
const HTTP_LISTENER: u16 = 4140;
const INBOUND: u16 = 4143;
const ADMIN: u16 = 4191;
const ECHO_LISTENER: u16 = 7000;
const GATEWAY: u16 = 8443;

/// Where everything is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) room: Room,
    block: Block,
    pub(crate) block_udp: bool,
    programs: Programs,
}

#[derive(Debug)]
struct Programs {
    meshctl: PathBuf,
    federation: PathBuf,
    edge_proxy: PathBuf,
    vm_agent: PathBuf,
}

impl World {
    /// Claims a directory and addresses; finds the programs.
    pub(crate) fn new(block_udp: bool) -> Result<Self, Failure> {
        let programs = Programs {
            meshctl: std::env::current_exe()?,
            federation: binary::find("federation")?,
            edge_proxy: binary::find("edge-proxy")?,
            vm_agent: binary::find("vm-agent")?,
        };
        let world = Self { room: Room::new()?, block: Block::claim()?, block_udp, programs };
        fs::create_dir(world.dir().join("log"))?;
        for site in [WEST, EAST] {
            fs::create_dir_all(world.dir().join(site.name))?;
        }
        for machine in MACHINES {
            world.prepare(machine)?;
        }
        Ok(world)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.room.dir()
    }

    /// The run directory of a site or machine.
    pub(crate) fn run_dir(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Programs other than this one, by name.
    pub(crate) fn programs(&self) -> [(&'static str, &Path); 3] {
        let Programs { federation, edge_proxy, vm_agent, .. } = &self.programs;
        [("federation", federation), ("edge-proxy", edge_proxy), ("vm-agent", vm_agent)]
    }

    /// `site init …`, without the program's name.
    pub(crate) fn site_init(&self, site: Site) -> String {
        let run = self.run_dir(site.name).display().to_string();
        let at = |port| self.block.addr(site.federation, port);
        let gateway = self.block.addr(site.gateway, GATEWAY);
        let quic = match self.block_udp {
            true => format!(" --gateway-quic-address {}", self.silent(site)),
            false => String::new(),
        };
        format!(
            "--run {run} site init {} --trust-domain {} --state {run}/state --config {run}/etc \
             --listen {} --admin {} --gateway-listen {gateway} --gateway-address {gateway}{quic} \
             --gateway-admin {} --gateway-state {run}/gateway --gateway-access-log {}",
            site.name,
            site.trust_domain,
            at(8446),
            at(8448),
            self.gateway_admin(site),
            self.log(&format!("{}-gateway.access.json", site.name)).display(),
        )
    }

    /// Where UDP is swallowed if it is to be blocked.
    pub(crate) fn silent(&self, site: Site) -> SocketAddr {
        self.block.addr(site.silent, GATEWAY)
    }

    pub(crate) fn gateway_admin(&self, site: Site) -> SocketAddr {
        self.block.addr(site.gateway, ADMIN)
    }

    pub(crate) fn proxy_admin(&self, machine: Machine) -> SocketAddr {
        self.block.addr(machine.host, ADMIN)
    }

    pub(crate) fn federation(&self, site: Site) -> Spec {
        let config = self.run_dir(site.name).join("etc/federation.yaml");
        self.daemon(format!("{}-federation", site.name), &self.programs.federation, config)
    }

    pub(crate) fn gateway(&self, site: Site) -> Spec {
        let config = self.run_dir(site.name).join("etc/gateway.yaml");
        self.daemon(format!("{}-gateway", site.name), &self.programs.edge_proxy, config)
    }

    /// Agent, proxy and applications of a machine.
    pub(crate) fn machine(&self, machine: Machine) -> Vec<Spec> {
        let etc = self.run_dir(machine.name).join("etc");
        let mut specs = Vec::new();
        // Applications first: the agent's first look shall find them.
        for service in machine.services {
            for (_, kind, _, target) in service.ports {
                specs.push(self.app(machine, service, kind, *target));
            }
        }
        let daemon = |part: &str, program: &Path, config: &str| {
            self.daemon(format!("{}-{part}", machine.name), program, etc.join(config))
        };
        specs.push(daemon("agent", &self.programs.vm_agent, "agent.yaml"));
        specs.push(daemon("proxy", &self.programs.edge_proxy, "proxy.yaml"));
        specs
    }

    fn app(&self, machine: Machine, service: &Service, kind: &str, port: u16) -> Spec {
        let kind = if kind == "tcp" { "echo" } else { kind };
        let listen = self.block.addr(machine.host, port).to_string();
        let words = ["demo-part", "app", kind, "--listen", &listen, "--name", service.name];
        let mut args: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        args.extend(["--site".into(), machine.site.name.into()]);
        let name = format!("{}-app-{}-{kind}", machine.name, service.name);
        Spec {
            log: self.log(&format!("{name}.log")),
            name,
            program: self.programs.meshctl.clone(),
            args,
        }
    }

    fn daemon(&self, name: String, program: &Path, config: PathBuf) -> Spec {
        let args = vec!["--config".into(), config.into_os_string()];
        Spec { log: self.log(&format!("{name}.log")), name, program: program.to_owned(), args }
    }

    fn log(&self, file: &str) -> PathBuf {
        self.dir().join("log").join(file)
    }

    /// The access log of a machine's proxy.
    pub(crate) fn access_log(&self, machine: Machine) -> PathBuf {
        self.log(&format!("{}.access.json", machine.name))
    }

    /// Writes what an operator would write on the machine.
    fn prepare(&self, machine: Machine) -> Result<(), Failure> {
        let run = self.run_dir(machine.name);
        for dir in ["etc/services.d", "state/agent", "state/proxy"] {
            fs::create_dir_all(run.join(dir))?;
        }
        // Machines of one host would otherwise share the host's.
        fs::write(run.join("machine-id"), format!("{:032x}\n", rand::random::<u128>()))?;
        fs::write(run.join("etc/agent.yaml"), self.agent_yaml(machine))?;
        fs::write(run.join("etc/proxy.yaml"), self.proxy_yaml(machine))?;
        for service in machine.services {
            let file = run.join("etc/services.d").join(format!("{}.yaml", service.name));
            fs::write(file, self.service_yaml(machine, service))?;
        }
        Ok(())
    }

    fn agent_yaml(&self, machine: Machine) -> String {
        let run = self.run_dir(machine.name).display().to_string();
        let mut yaml = format!(
            "state: {run}/state/agent\nrun: {run}\nservices: {run}/etc/services.d\nmachine_id_file: {run}/machine-id\n"
        );
        if machine.reachable {
            yaml.push_str(&format!("advertise: {}\n", self.block.addr(machine.host, INBOUND)));
        }
        yaml
    }

    fn proxy_yaml(&self, machine: Machine) -> String {
        let run = self.run_dir(machine.name).display().to_string();
        let at = |port| self.block.addr(machine.host, port);
        let mut yaml = format!(
            "role: node\nidentity:\n  socket: {run}/identity.sock\nhttp_listener: {}\nadmin: {}\n\
             access_log: {}\nstate: {run}/state/proxy\nworkers: 1\ndrain_timeout: 3s\n\
             control_socket: {run}/proxy.sock\n",
            at(HTTP_LISTENER),
            at(ADMIN),
            self.access_log(machine).display(),
        );
        if machine.reachable {
            yaml.push_str(&format!("inbound: {}\n", at(INBOUND)));
        }
        if machine.name == VM1.name {
            let listen = at(ECHO_LISTENER);
            yaml.push_str(&format!(
                "listeners:\n  - listen: {listen}\n    service: payments.prod\n    port: echo\n"
            ));
        }
        yaml
    }

    fn service_yaml(&self, machine: Machine, service: &Service) -> String {
        let mut yaml = format!(
            "service: {}\nnamespace: {}\naddress: {}\nports:\n",
            service.name,
            service.namespace,
            self.block.addr(machine.host, 0).ip()
        );
        for (name, protocol, number, target) in service.ports {
            yaml.push_str(&format!(
                "  - {{ name: {name}, port: {number}, target: {target}, protocol: {protocol} }}\n"
            ));
        }
        let http = service.ports.iter().find(|(_, protocol, _, _)| *protocol == "http");
        if let Some((_, _, _, target)) = http {
            yaml.push_str(&format!("check: {{ http: /healthz, port: {target}, interval: 1s }}\n"));
        }
        yaml
    }

    /// `token create …` and `join -` for a machine.
    pub(crate) fn join(&self, machine: Machine) -> (String, String) {
        let mut create = format!(
            "--site {} token create --namespace {} --account {} --uses 1 --ttl 15m",
            machine.site.name, machine.namespace, machine.account
        );
        for service in machine.services {
            create.push_str(&format!(" --service {}.{}", service.name, service.namespace));
        }
        (create, format!("--site {} join -", machine.name))
    }

    /// What is called, from where, how often.
    pub(crate) fn flows(&self) -> Vec<Flow> {
        let proxy = |machine: Machine| self.block.addr(machine.host, HTTP_LISTENER);
        let http = |machine: Machine, service: &str| Call::Http {
            proxy: proxy(machine),
            service: service.into(),
        };
        let grpc = Call::Grpc { proxy: proxy(VM1), service: "payments.prod".into(), port: 50051 };
        let tcp = Call::Tcp { listener: self.block.addr(VM1.host, ECHO_LISTENER) };
        let flow = |name, title, caller: Machine, service, port, call| Flow {
            name,
            title,
            caller,
            service,
            port,
            call,
            rate: RATE,
        };
        vec![
            flow(
                "http",
                "VM → east HTTP",
                VM1,
                "payments.prod",
                "http",
                http(VM1, "payments.prod"),
            ),
            flow("grpc", "VM → east gRPC", VM1, "payments.prod", "grpc", grpc),
            flow("tcp", "VM → east TCP", VM1, "payments.prod", "echo", tcp),
            flow(
                "reverse",
                "east → VM HTTP",
                NODE1,
                "orders.shop",
                "http",
                http(NODE1, "orders.shop"),
            ),
            flow(
                "failover",
                "VM → nearest HTTP",
                VM1,
                "catalog.shop",
                "http",
                http(VM1, "catalog.shop"),
            ),
            flow(
                "local",
                "east → east HTTP",
                NODE1,
                "catalog.shop",
                "http",
                http(NODE1, "catalog.shop"),
            ),
        ]
    }
}

/// Requests per second of each flow: enough for a p99 within seconds, little
/// enough for a laptop.
const RATE: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_configuration_is_yaml_and_names_its_machine() {
        let programs = || Programs {
            meshctl: "meshctl".into(),
            federation: "federation".into(),
            edge_proxy: "edge-proxy".into(),
            vm_agent: "vm-agent".into(),
        };
        let (room, block) = (Room::new().expect("a directory"), Block::claim().expect("a block"));
        let world = World { room, block, block_udp: true, programs: programs() };
        for machine in MACHINES {
            let mut files = vec![world.agent_yaml(machine), world.proxy_yaml(machine)];
            files.extend(
                machine.services.iter().map(|service| world.service_yaml(machine, service)),
            );
            for file in files {
                let value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&file).expect("YAML");
                assert!(value.is_mapping(), "{file}");
            }
        }
        assert!(world.agent_yaml(NODE1).contains("advertise"));
        assert!(
            !world.agent_yaml(VM1).contains("advertise")
                && !world.proxy_yaml(VM1).contains("inbound")
        );
        let init = world.site_init(WEST);
        assert!(init.contains(&format!("--gateway-quic-address {}", world.silent(WEST))));
    }
}
