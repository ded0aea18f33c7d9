//! One service file.
//!
//! ```yaml
//! service: orders
//! namespace: shop
//! port: 8080
//! protocol: http          # http | grpc | tcp; detected where omitted
//! check: { http: /healthz, interval: 5s }
//! ```
//!
//! Several ports are a list: `ports: [{ name: api, port: 80, target: 8080,
//! protocol: http }, …]`. `target` is where the application listens, if it is
//! not `port`; `address` the IP address on which it does, if it is not
//! loopback; `weight` its share of new traffic, 1 by default; `capacity` how
//! many requests at once it is good for, unknown where omitted.
//!
//! `check` asks one of: `http: /healthz`, `tcp: 8080`, `grpc: shop.Orders` (the
//! protocol of `grpc.health.v1`; `grpc: ""` for the server as a whole), `unit:
//! orders.service` (what systemd says of it), `exec: [/usr/lib/orders/check, -w,
//! "10"]` (a command that ends with 0 while all is well, run as `user`); without
//! any of them every port must accept a connection. `port` is where `http` and `grpc` ask, if that is
//! not the first `target`. `interval`, `timeout`, and how many results in a row
//! change what is believed: `healthy`, `unhealthy`.

mod check;

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
};

use mesh_api::v1;
use mesh_core::{PortName, ServiceName, name::is_reserved_namespace};
use mesh_runtime::config::{self, ConfigError};
use serde::Deserialize;

use self::check::CheckFile;
pub use self::check::{CheckSpec, Exec, Probe};

/// Ports of one instance, as federation accepts them.
const MAX_PORTS: usize = 16;
/// The longest name of an instance, in bytes, as federation accepts it.
const MAX_INSTANCE: usize = 64;
/// The largest weight, as federation accepts it.
const MAX_WEIGHT: u32 = 1_000_000;

/// One service of this machine; what its file means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Unique on this machine: the file's name, or what the file says.
    pub instance: String,
    /// `<name>.<namespace>`.
    pub service: ServiceName,
    /// At least one.
    pub ports: Vec<PortSpec>,
    /// Where the application listens; `None` is loopback.
    pub address: Option<IpAddr>,
    /// Relative share of new traffic.
    pub weight: u32,
    /// Requests at once that it is good for; 0 is unknown.
    pub capacity: u32,
    /// How it is asked for its health.
    pub check: CheckSpec,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Unique in the service.
    pub name: PortName,
    /// What clients dial.
    pub number: u16,
    /// Where the application listens.
    pub target: u16,
    /// Unspecified is detected.
    pub protocol: v1::Protocol,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceFile {
    service: String,
    namespace: String,
    instance: Option<String>,
    name: Option<String>,
    port: Option<NonZeroU16>,
    target: Option<NonZeroU16>,
    #[serde(default)]
    protocol: ProtocolFile,
    #[serde(default)]
    ports: Vec<PortFile>,
    address: Option<IpAddr>,
    weight: Option<u32>,
    capacity: Option<u32>,
    #[serde(default)]
    check: CheckFile,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortFile {
    name: Option<String>,
    port: NonZeroU16,
    target: Option<NonZeroU16>,
    #[serde(default)]
    protocol: ProtocolFile,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProtocolFile {
    #[default]
    Detect,
    Http,
    Grpc,
    Tcp,
    Tls,
}

/// Parses one file. `stem` is its name without `.yaml`, `label` how errors
/// name it.
pub fn parse(text: &str, stem: &str, label: &str) -> Result<ServiceSpec, ConfigError> {
    let file: ServiceFile = config::parse(text, label)?;
    file.check(stem).map_err(|(key, problem)| ConfigError::meaning(label, key, problem))
}

/// A key and what is wrong with its value.
type Problem = (&'static str, String);

impl ServiceFile {
    fn check(self, stem: &str) -> Result<ServiceSpec, Problem> {
        let name = format!("{}.{}", self.service, self.namespace);
        let service: ServiceName = name.parse().map_err(|e| ("service", format!("{e}")))?;
        if is_reserved_namespace(service.namespace()) {
            let problem = format!("{} is reserved; choose another", service.namespace());
            return Err(("namespace", problem));
        }
        let weight = self.weight.unwrap_or(1);
        if weight > MAX_WEIGHT {
            return Err(("weight", format!("must be at most {MAX_WEIGHT}")));
        }
        let capacity = self.capacity.unwrap_or(0);
        if self.capacity == Some(0) || capacity > MAX_WEIGHT {
            let problem = format!("must be 1 to {MAX_WEIGHT}; leave it out if it is not known");
            return Err(("capacity", problem));
        }
        if self.address.is_some_and(|ip| ip.is_unspecified() || ip.is_multicast()) {
            let problem = "must be the address of one host; leave it out for loopback";
            return Err(("address", problem.to_owned()));
        }
        let instance = self.instance.clone().unwrap_or_else(|| stem.to_owned());
        check_instance(&instance)?;
        let ports = self.ports()?;
        let host = self.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let check = self.check.check(host, &ports)?;
        let address = self.address;
        Ok(ServiceSpec { instance, service, ports, address, weight, capacity, check })
    }

    fn ports(&self) -> Result<Vec<PortSpec>, Problem> {
        let single = self.port.map(|port| PortFile {
            name: self.name.clone(),
            port,
            target: self.target,
            protocol: self.protocol,
        });
        let written: Vec<&PortFile> = match (&single, self.ports.as_slice()) {
            (Some(port), []) => vec![port],
            (None, []) => {
                return Err(("port", "is missing: where does the service listen?".to_owned()));
            }
            (None, ports) if ports.len() > MAX_PORTS => {
                return Err(("ports", format!("must be at most {MAX_PORTS}")));
            }
            (None, ports) => ports.iter().collect(),
            (Some(_), _) => {
                return Err(("ports", "cannot stand beside port; put all into ports".to_owned()));
            }
        };
        if single.is_none() && (self.target.is_some() || self.name.is_some()) {
            return Err(("ports", "name and target belong into its entries".to_owned()));
        }
        let mut ports: Vec<PortSpec> = Vec::new();
        for port in written {
            let port = port.check()?;
            if ports.iter().any(|other| other.name == port.name || other.number == port.number) {
                let problem = format!("{} ({}) is there twice", port.name, port.number);
                return Err(("ports", problem));
            }
            ports.push(port);
        }
        Ok(ports)
    }
}

impl PortFile {
    fn check(&self) -> Result<PortSpec, Problem> {
        let name = self.name.as_deref().unwrap_or(self.protocol.port_name());
        Ok(PortSpec {
            name: name.parse().map_err(|error| ("name", format!("{error}")))?,
            number: self.port.get(),
            target: self.target.unwrap_or(self.port).get(),
            protocol: self.protocol.wire(),
        })
    }
}

impl ProtocolFile {
    fn wire(self) -> v1::Protocol {
        match self {
            Self::Detect => v1::Protocol::Unspecified,
            Self::Http => v1::Protocol::Http,
            Self::Grpc => v1::Protocol::Grpc,
            Self::Tcp => v1::Protocol::Tcp,
            Self::Tls => v1::Protocol::Tls,
        }
    }

    /// A port without a name is called after its protocol.
    fn port_name(self) -> &'static str {
        match self {
            Self::Detect => "main",
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

fn check_instance(instance: &str) -> Result<(), Problem> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if instance.is_empty() || instance.len() > MAX_INSTANCE || !instance.bytes().all(ok) {
        let problem = format!(
            "{instance:?} (the file's name, unless written) must be 1 to {MAX_INSTANCE} of a-z, \
             A-Z, 0-9, '.', '-' and '_'"
        );
        return Err(("instance", problem));
    }
    Ok(())
}

impl ServiceSpec {
    /// As the site records it, but for where the machine is.
    pub fn wire(&self) -> v1::Register {
        let port = |port: &PortSpec| v1::Port {
            name: port.name.to_string(),
            number: port.number.into(),
            protocol: port.protocol.into(),
        };
        v1::Register {
            instance: self.instance.clone(),
            service: self.service.to_string(),
            ports: self.ports.iter().map(port).collect(),
            target_ports: self.ports.iter().map(|port| port.target.into()).collect(),
            target_address: self.address.map(|ip| ip.to_string()).unwrap_or_default(),
            weight: self.weight,
            capacity: self.capacity,
            ..v1::Register::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use super::*;

    fn parse_orders(text: &str) -> Result<ServiceSpec, ConfigError> {
        parse(text, "orders", "/etc/isthmus/services.d/orders.yaml")
    }

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_documented_file_means_what_it_says() {
        let text = "service: orders\nnamespace: shop\nport: 8080\nprotocol: http\n\
                    check: { http: /healthz, interval: 5s }\n";
        let spec = parse_orders(text).unwrap();
        assert_eq!((spec.instance.as_str(), spec.service.as_str()), ("orders", "orders.shop"));
        assert_eq!(spec.check.probe, Probe::Http(loopback(8080), "/healthz".into()));
        assert_eq!(spec.check.interval, Duration::from_secs(5));
        let wire = spec.wire();
        let port =
            v1::Port { name: "http".into(), number: 8080, protocol: v1::Protocol::Http.into() };
        assert_eq!((wire.ports, wire.target_ports), (vec![port], vec![8080]));
        assert_eq!((wire.weight, wire.target_address.as_str()), (1, ""));
    }

    #[test]
    fn everything_has_a_default_but_name_and_port() {
        let spec = parse_orders("service: orders\nnamespace: shop\nport: 80\n").unwrap();
        assert_eq!(spec.ports[0].name.as_str(), "main");
        assert_eq!(spec.ports[0].protocol, v1::Protocol::Unspecified);
        assert_eq!(spec.check.probe, Probe::Tcp(vec![loopback(80)]));
        assert_eq!((spec.check.healthy, spec.check.unhealthy), (1, 2));
    }

    #[test]
    fn ports_targets_and_addresses() {
        let text = "service: orders\nnamespace: shop\ninstance: blue\naddress: 10.0.0.5\nweight: 3\n\
                    capacity: 64\n\
                    ports:\n- { port: 80, target: 8080, protocol: http }\n\
                    - { name: db, port: 5432, protocol: tcp }\n";
        let spec = parse_orders(text).unwrap();
        let ten = |port| SocketAddr::from(([10, 0, 0, 5], port));
        assert_eq!((spec.instance.as_str(), spec.weight), ("blue", 3));
        assert_eq!(spec.check.probe, Probe::Tcp(vec![ten(8080), ten(5432)]));
        let wire = spec.wire();
        assert_eq!((wire.weight, wire.capacity), (3, 64));
        assert_eq!(wire.target_ports, [8080, 5432]);
        assert_eq!(wire.target_address, "10.0.0.5");
        let checked = format!("{text}check: {{ http: /live, port: 9000 }}\n");
        assert_eq!(
            parse_orders(&checked).unwrap().check.probe,
            Probe::Http(ten(9000), "/live".into())
        );
        for (check, expected) in [
            ("{ grpc: '' }", Probe::Grpc(ten(8080), String::new())),
            ("{ grpc: a.B, port: 9000 }", Probe::Grpc(ten(9000), "a.B".into())),
            ("{ unit: web@1.service }", Probe::Unit("web@1.service".into())),
        ] {
            let spec = parse_orders(&format!("{text}check: {check}\n")).unwrap();
            assert_eq!(spec.check.probe, expected);
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        const HEAD: &str = "service: orders\nnamespace: shop\n";
        let cases = [
            ("port: 80\nprotocl: http\n", ":4:1: ", "did you mean `protocol`?"),
            ("port: 80\nprotocol: htpp\n", ":4:11: ", "did you mean `http`?"),
            ("port: 99999\n", ":3:7: ", "u16"),
            ("port: 0\n", ":3:7: ", "nonzero"),
            ("", ": port: ", "is missing"),
            ("port: 80\nports: [{port: 81}]\n", ": ports: ", "beside port"),
            ("ports: [{port: 80}, {port: 80, name: b}]\n", ": ports: ", "twice"),
            ("ports: [{port: 80}, {port: 81}]\n", ": ports: ", "twice"),
            ("ports: [{port: 80}]\ntarget: 81\n", ": ports: ", "belong into its entries"),
            ("port: 80\naddress: 0.0.0.0\n", ": address: ", "loopback"),
            ("port: 80\naddress: here\n", ":4:10: ", "IP address"),
            ("port: 80\nweight: 2000000\n", ": weight: ", "at most"),
            ("port: 80\ncapacity: 0\n", ": capacity: ", "leave it out"),
            ("port: 80\ninstance: 'a b'\n", ": instance: ", "a-z"),
            ("port: 80\ncheck: { http: healthz }\n", ": check: ", "must be a path"),
            ("port: 80\ncheck: { http: /, tcp: 81 }\n", ": check: ", "one of http, tcp, grpc"),
            ("port: 80\ncheck: { grpc: '', unit: a.service }\n", ": check: ", "one of http"),
            ("port: 80\ncheck: { grpc: 'a b' }\n", ": check: ", "name of a service"),
            ("port: 80\ncheck: { unit: orders }\n", ": check: ", "e.g. orders.service"),
            ("port: 80\ncheck: { unit: '-H.service' }\n", ": check: ", "name of a unit"),
            ("port: 80\ncheck: { unit: 'a*.service' }\n", ": check: ", "name of a unit"),
            ("port: 80\ncheck: { unit: a.service, port: 81 }\n", ": check: ", "goes with http or"),
            ("port: 80\ncheck: { port: 81 }\n", ": check: ", "goes with http"),
            ("port: 80\ncheck: { interval: 1ms }\n", ": check: ", "100ms to 1h"),
            ("port: 80\ncheck: { unhealthy: 0 }\n", ": check: ", "at least 1"),
            ("port: 80\ncheck: { htp: / }\n", ":4:10: ", "did you mean `http`?"),
        ];
        for (text, place, remedy) in cases {
            let shown = parse_orders(&format!("{HEAD}{text}")).unwrap_err().to_string();
            let expected = format!("/etc/isthmus/services.d/orders.yaml{place}");
            assert!(shown.starts_with(&expected), "{text:?}: {shown}");
            assert!(shown.contains(remedy), "{text:?}: {shown}");
        }
    }

    #[test]
    fn names_must_be_names_and_not_reserved() {
        for (service, namespace, key) in [
            ("Orders", "shop", "service"),
            ("orders", "isthmus-system", "namespace"),
            ("orders", "kube-system", "namespace"),
            ("a.b", "shop", "service"),
        ] {
            let text = format!("service: {service}\nnamespace: {namespace}\nport: 80\n");
            let shown = parse_orders(&text).unwrap_err().to_string();
            assert!(shown.contains(&format!(": {key}: ")), "{shown}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "[a-z:\\[\\]{}, \n/0-9-]{0,200}") {
            let _ = parse_orders(&text);
        }
    }
}
