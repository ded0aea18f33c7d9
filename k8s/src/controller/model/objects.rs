//! What of an object of Kubernetes counts here, and what is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::api::{
    core::v1::{Node, Pod, Service},
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::ResourceExt;
use mesh_api::v1::{Locality, Protocol};
use mesh_core::name::is_reserved_namespace;

use crate::names::{EXPORT, INJECT, INJECTED, MANAGED_BY, OPAQUE_PORTS, PROXY, US, WEIGHT};

/// SMTP, MySQL, Galera, PostgreSQL, Redis, Elasticsearch's transport, Memcached: a
/// proxy that waits for the client's first bytes is in the way.
const SERVER_FIRST: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// Namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Name {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub(crate) fn of(object: &impl ResourceExt) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }

    /// Whether its namespace belongs to the cluster or to the mesh itself.
    pub(crate) fn is_reserved(&self) -> bool {
        is_reserved_namespace(&self.namespace)
    }

    /// `<name>.<namespace>`, as the mesh calls a service.
    pub(crate) fn of_mesh(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }
}

/// A field that makes no sense; what it says does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub(crate) struct Problem {
    pub(crate) field: String,
    pub(crate) problem: String,
}

/// A pod of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodSeen {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) node: String,
    /// Empty until it has one.
    pub(crate) address: String,
    /// Of each family; none until then.
    pub(crate) addresses: BTreeSet<IpAddr>,
    pub(crate) opaque_ports: BTreeSet<u16>,
    pub(crate) weight: u32,
    /// It is being deleted.
    pub(crate) ends: bool,
}

impl PodSeen {
    /// `None` for a pod that is not of the mesh, or has ended.
    pub(crate) fn read(pod: &Pod, problems: &mut Vec<Problem>) -> Option<Self> {
        problems.extend(invalid_label(pod));
        let injected = pod.annotations().contains_key(INJECTED);
        if !injected && !pod.labels().contains_key(PROXY) {
            return None;
        }
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let account = spec.service_account_name.clone().filter(|account| !account.is_empty());
        let status = pod.status.clone().unwrap_or_default();
        let all = status.pod_ips.unwrap_or_default().into_iter().map(|ip| ip.ip);
        let all = all.chain(status.pod_ip.clone()).filter_map(|ip| ip.parse().ok());
        Some(Self {
            uid: pod.uid()?,
            name: pod.name_any(),
            namespace: pod.namespace()?,
            account: account.unwrap_or_else(|| "default".to_owned()),
            node: spec.node_name.clone().unwrap_or_default(),
            address: status.pod_ip.unwrap_or_default(),
            addresses: all.collect(),
            opaque_ports: opaque_ports(pod, problems),
            weight: weight(pod, problems),
            ends: pod.metadata.deletion_timestamp.is_some(),
        })
    }

    /// Whether what a slice says of it can be so. Whoever writes a slice by hand
    /// takes no pod out of the mesh.
    pub(super) fn is_at(&self, address: IpAddr) -> bool {
        self.addresses.is_empty() || self.addresses.contains(&address)
    }
}

/// No webhook is asked about a label that says neither: nobody else tells.
pub(crate) fn invalid_label(object: &impl ResourceExt) -> Option<Problem> {
    let text = object.labels().get(INJECT)?;
    let problem = format!("{text:?} is neither enabled nor disabled, and does not count");
    let field = format!("metadata.labels[{INJECT}]");
    (!matches!(text.as_str(), "enabled" | "disabled")).then_some(Problem { field, problem })
}

fn opaque_ports(object: &impl ResourceExt, problems: &mut Vec<Problem>) -> BTreeSet<u16> {
    let Some(text) = object.annotations().get(OPAQUE_PORTS) else { return BTreeSet::new() };
    let mut ports = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => ports.extend(first..=last),
            _ => problems.push(Problem {
                field: format!("metadata.annotations[{OPAQUE_PORTS}]"),
                problem: format!("{part:?} is no port or range of ports, e.g. 3306,8000-8010"),
            }),
        }
    }
    ports
}

fn weight(object: &impl ResourceExt, problems: &mut Vec<Problem>) -> u32 {
    let Some(text) = object.annotations().get(WEIGHT) else { return 1 };
    text.parse().ok().filter(|weight| *weight <= 1000).unwrap_or_else(|| {
        problems.push(Problem {
            field: format!("metadata.annotations[{WEIGHT}]"),
            problem: format!("{text:?} is no number from 0 to 1000; 1 counts"),
        });
        1
    })
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServicePort {
    /// As it is called there, maybe not at all.
    pub(super) name: String,
    pub(super) number: u16,
    app_protocol: String,
    /// An annotation says so.
    opaque: bool,
}

impl ServicePort {
    /// A port without a name is called after its protocol, as on a machine.
    pub(super) fn mesh_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let name = match self.protocol(&BTreeSet::new()) {
            Protocol::Http => "http",
            Protocol::Grpc => "grpc",
            Protocol::Tcp => "tcp",
            Protocol::Tls => "tls",
            Protocol::Unspecified => "main",
        };
        name.to_owned()
    }

    /// `appProtocol` (KEP 1422), else the name's first part, else nothing: then
    /// it is detected.
    pub(super) fn protocol(&self, opaque: &BTreeSet<u16>) -> Protocol {
        if self.opaque || opaque.contains(&self.number) {
            return Protocol::Tcp;
        }
        let known = |text: &str| match text {
            "http" | "http2" | "kubernetes.io/h2c" | "kubernetes.io/ws" => Some(Protocol::Http),
            "grpc" => Some(Protocol::Grpc),
            "tcp" | "linkerd.io/opaque" => Some(Protocol::Tcp),
            "https" | "tls" | "kubernetes.io/wss" => Some(Protocol::Tls),
            _ => None,
        };
        if let Some(said) = known(&self.app_protocol.to_ascii_lowercase()) {
            return said;
        }
        let first = self.name.split('-').next().unwrap_or_default();
        let server_first = SERVER_FIRST.contains(&self.number);
        let otherwise = if server_first { Protocol::Tcp } else { Protocol::Unspecified };
        known(first).unwrap_or(otherwise)
    }
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceSeen {
    /// Its ClusterIP, empty for none.
    pub(crate) address: String,
    /// That of the other family, empty for none.
    pub(crate) second_address: String,
    pub(super) ports: Vec<ServicePort>,
    pub(crate) exported_to: Vec<String>,
    pub(crate) exported_to_all: bool,
    /// Made by us for a service from elsewhere.
    pub(crate) is_ours: bool,
}

impl ServiceSeen {
    pub(crate) fn read(service: &Service, problems: &mut Vec<Problem>) -> Self {
        let spec = service.spec.clone().unwrap_or_default();
        let address = spec.cluster_ip.filter(|ip| ip != "None").unwrap_or_default();
        let second_address = spec.cluster_ips.and_then(|ips| ips.into_iter().nth(1));
        let opaque = opaque_ports(service, problems);
        let ports = spec.ports.unwrap_or_default().into_iter();
        let ports = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        let ports = ports.filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            Some(ServicePort {
                name: port.name.unwrap_or_default(),
                number,
                app_protocol: port.app_protocol.unwrap_or_default(),
                opaque: opaque.contains(&number),
            })
        });
        let ports = ports.collect();
        let (exported_to_all, exported_to) = export(service, problems);
        let is_ours = service.labels().get(MANAGED_BY).is_some_and(|by| by == US);
        let second_address = second_address.unwrap_or_default();
        Self { address, second_address, ports, exported_to, exported_to_all, is_ours }
    }
}

/// A label says yes or no; an annotation may name sites.
fn export(service: &Service, problems: &mut Vec<Problem>) -> (bool, Vec<String>) {
    let (of, text) = match (service.annotations().get(EXPORT), service.labels().get(EXPORT)) {
        (Some(text), _) => ("annotations", text.as_str()),
        (None, Some(text)) => ("labels", text.as_str()),
        (None, None) => return (false, Vec::new()),
    };
    match text {
        "true" | "all" => return (true, Vec::new()),
        "false" | "" => return (false, Vec::new()),
        _ => {}
    }
    let sites: Vec<String> = text.split(',').map(|site| site.trim().to_owned()).collect();
    let is_label = |site: &String| {
        let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !site.is_empty() && site.len() <= 63 && site.bytes().all(ok)
    };
    match sites.iter().find(|site| !is_label(site)) {
        None => (false, sites),
        Some(wrong) => {
            problems.push(Problem {
                field: format!("metadata.{of}[{EXPORT}]"),
                problem: format!("{wrong:?} is no site; write true, false, or names of sites"),
            });
            (false, Vec::new())
        }
    }
}

/// What an EndpointSlice says of readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    Yes,
    /// Not for new traffic, and still answering.
    Serving,
    No,
}

/// One endpoint of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointSeen {
    /// Which of its slice.
    pub(super) number: usize,
    pub(super) address: IpAddr,
    pub(super) ready: Ready,
}

/// An EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SliceSeen {
    pub(super) service: Name,
    /// By UID of the pod.
    pub(super) endpoints: BTreeMap<String, EndpointSeen>,
    /// Where pods listen, by the name of the Service's port.
    pub(super) ports: BTreeMap<String, u16>,
}

impl SliceSeen {
    /// `None` for a slice of no Service.
    pub(crate) fn read(slice: &EndpointSlice, problems: &mut Vec<Problem>) -> Option<Self> {
        let service = slice.labels().get("kubernetes.io/service-name")?;
        let ports = slice.ports.iter().flatten().filter_map(|port| {
            let tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
            let number = port.port.and_then(|number| u16::try_from(number).ok())?;
            tcp.then(|| (port.name.clone().unwrap_or_default(), number))
        });
        let endpoints = slice.endpoints.iter().enumerate().filter_map(|(number, endpoint)| {
            let pod = endpoint.target_ref.as_ref()?;
            if pod.kind.as_deref() != Some("Pod") {
                return None;
            }
            let uid = pod.uid.clone()?;
            let address = endpoint.addresses.first()?;
            let Ok(address) = address.parse() else {
                let problem = format!("{address:?} is no address of a pod");
                problems.push(Problem { field: at(number), problem });
                return None;
            };
            Some((uid, EndpointSeen { number, address, ready: ready(endpoint) }))
        });
        Some(Self {
            service: Name::new(&slice.namespace().unwrap_or_default(), service),
            endpoints: endpoints.collect(),
            ports: ports.collect(),
        })
    }
}

/// Where an endpoint of a slice says its address.
pub(super) fn at(number: usize) -> String {
    format!("endpoints[{number}].addresses")
}

/// Unset means ready (`discovery.k8s.io/v1`, EndpointConditions).
fn ready(endpoint: &Endpoint) -> Ready {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    match (conditions.ready.unwrap_or(true), conditions.serving) {
        (true, _) => Ready::Yes,
        (false, Some(true)) => Ready::Serving,
        (false, _) => Ready::No,
    }
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeSeen {
    pub(crate) name: String,
    pub(crate) locality: Locality,
}

impl NodeSeen {
    pub(crate) fn read(node: &Node) -> Self {
        let label = |label: &str| {
            let value = node.labels().get(label).cloned().unwrap_or_default();
            value.chars().take(64).collect::<String>()
        };
        let name = node.name_any();
        let locality = Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            host: name.chars().take(64).collect(),
        };
        Self { name, locality }
    }
}
