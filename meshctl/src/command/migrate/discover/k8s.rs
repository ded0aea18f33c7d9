//! `io.l5d.k8s`, `io.l5d.k8s.ns` and `io.l5d.k8s.external`: Endpoints and Services of the
//! API of Kubernetes, as `kubectl proxy` has it.

use std::collections::{BTreeMap, BTreeSet};

use mesh_migrate::{
    linkerd1::{config::Namer, name::Name, reach::Reach},
    request::Endpoint,
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Names,
    ask::{Asker, Wrong, encoded, place, text},
};

#[derive(Debug, Deserialize)]
struct List {
    items: Vec<Object>,
}

/// Endpoints or a Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    subsets: Option<Vec<Subset>>,
    spec: Spec,
    status: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Subset {
    addresses: Option<Vec<Address>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    port: u64,
    protocol: Option<String>,
}

/// What a name is made of, beside its port.
struct Shape<'a> {
    prefix: &'a Name,
    has_namespace: bool,
    /// Its value is the last label.
    selector: Option<String>,
}

pub(super) async fn read(namer: &Namer, reach: &Reach, names: &mut Names) -> Result<(), Wrong> {
    let node = &namer.node;
    let asker = Asker::of(node, "localhost", 8001)?;
    let shape = Shape {
        prefix: &namer.prefix,
        has_namespace: namer.kind != "io.l5d.k8s.ns",
        selector: text(node, "labelSelector")?,
    };
    for namespace in namespaces(namer, reach)? {
        let below = namespace.map_or_else(String::new, |name| {
            format!("/namespaces/{}", encoded(&name.to_lowercase()))
        });
        let services: Result<List, Wrong> = asker.json(&format!("/api/v1{below}/services")).await;
        if namer.kind == "io.l5d.k8s.external" {
            for (name, endpoints) in services?.items.iter().flat_map(|one| shape.external(one)) {
                put(names, reach, name, endpoints);
            }
            continue;
        }
        let list: List = match asker.json(&format!("/api/v1{below}/endpoints")).await {
            Ok(list) => list,
            Err(wrong) if wrong.is_gone() => return Err(wrong),
            // Another namespace may be readable.
            Err(wrong) => {
                names.lose(wrong);
                continue;
            }
        };
        let services = services.unwrap_or_else(|wrong| {
            names.lose(format!("ports by number: {wrong}"));
            List { items: Vec::new() }
        });
        let services: BTreeMap<_, _> = (services.items.iter())
            .map(|one| ((&one.metadata.namespace, &one.metadata.name), one))
            .collect();
        for one in &list.items {
            let service = services.get(&(&one.metadata.namespace, &one.metadata.name));
            for (name, endpoints) in shape.endpoints(one, service.copied()) {
                put(names, reach, name, endpoints);
            }
        }
    }
    Ok(())
}

/// Those that are asked for; `None` is all of them.
fn namespaces(namer: &Namer, reach: &Reach) -> Result<BTreeSet<Option<String>>, Wrong> {
    if namer.kind == "io.l5d.k8s.ns" {
        let variable = text(&namer.node, "envVar")?.unwrap_or_else(|| "POD_NAMESPACE".into());
        let namespace = std::env::var(&variable).map_err(|_| {
            Wrong::new(format!("its namespace is in {variable}, which is not set: set it here too"))
        })?;
        return Ok([Some(namespace)].into());
    }
    let ends = reach.below(&namer.prefix);
    let first = ends.iter().map(|name| name.labels().first().cloned());
    let wanted: BTreeSet<Option<String>> = first.collect();
    // Where a name ends before its namespace, or in nothing that is known: any.
    let any = wanted.is_empty() || wanted.contains(&None);
    Ok(if any { [None].into() } else { wanted })
}

/// A service without endpoints is known still: nobody is asked in its stead.
fn put(names: &mut Names, reach: &Reach, name: Name, endpoints: Vec<(Endpoint, f64)>) {
    if !reach.leads(&name) {
        return;
    }
    if endpoints.is_empty() {
        names.add_unknown(name);
    } else {
        names.add(name, endpoints);
    }
}

type Found = BTreeMap<Name, Vec<(Endpoint, f64)>>;

impl Shape<'_> {
    /// A name, unless the object lacks the label that names have.
    fn name(&self, object: &Object, port: &str) -> Option<Name> {
        let Metadata { name, namespace, labels } = &object.metadata;
        let mut all = Vec::new();
        if self.has_namespace {
            all.push(namespace.to_lowercase());
        }
        all.extend([port.to_lowercase(), name.to_lowercase()]);
        if let Some(selector) = &self.selector {
            all.push(labels.as_ref()?.get(selector)?.to_lowercase());
        }
        Some(self.prefix.join(&Name::of(all)))
    }

    /// By the name of each port, and by each number of the service.
    fn endpoints(&self, object: &Object, service: Option<&Object>) -> Found {
        let mut found = Found::new();
        let numbers = service.and_then(|service| service.spec.ports.as_deref()).unwrap_or_default();
        for subset in object.subsets.iter().flatten() {
            for port in subset.ports.iter().flatten().filter(|port| port.is_tcp()) {
                let same =
                    numbers.iter().filter(|number| number.is_tcp() && number.name == port.name);
                let labels = port.name.iter().cloned().chain(same.map(|n| n.port.to_string()));
                for name in labels.filter_map(|label| self.name(object, &label)) {
                    let addresses = subset.addresses.iter().flatten();
                    let endpoints = addresses.filter_map(|at| place(&at.ip, port.port));
                    found.entry(name).or_default().extend(endpoints.map(|at| (at, 1.0)));
                }
            }
        }
        found
    }

    /// Addresses of its load balancer.
    fn external(&self, service: &Object) -> Found {
        let mut found = Found::new();
        let ingress = service.status["loadBalancer"]["ingress"].as_array();
        for port in service.spec.ports.iter().flatten() {
            let labels = port.name.iter().cloned().chain([port.port.to_string()]);
            for name in labels.filter_map(|label| self.name(service, &label)) {
                let hosts = ingress
                    .into_iter()
                    .flatten()
                    .filter_map(|one| one["ip"].as_str().or_else(|| one["hostname"].as_str()));
                let endpoints = hosts.filter_map(|host| place(host, port.port));
                found.insert(name, endpoints.map(|at| (at, 1.0)).collect());
            }
        }
        found
    }
}

impl Port {
    fn is_tcp(&self) -> bool {
        self.protocol.as_deref().is_none_or(|protocol| protocol.eq_ignore_ascii_case("tcp"))
    }
}
