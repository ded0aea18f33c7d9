//! What discovery knows: names that are bound, with their endpoints. A caller fills it
//! from Consul, Kubernetes, Marathon, or a listing; nothing here asks anybody.

use std::{collections::BTreeMap, net::IpAddr};

use super::{config::Namer, dtab::Dtab};
use crate::{
    request::Endpoint,
    source::{Problem, Source},
};

/// Reads a file that a configuration names.
pub type Files<'a> = &'a dyn Fn(&str) -> Result<Source, Problem>;

/// What is known outside of the configuration.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Bound names (`/#/io.l5d.consul/dc1/web`), without what transformers put before
    /// them. What is not here, or has no endpoints, is negative. Pods of a daemonset are
    /// `/#/io.l5d.k8s/<namespace>/<port>/<service>`.
    pub names: BTreeMap<String, Known>,
    /// Addresses of the host, for `io.l5d.localhost`; `None` is not known.
    pub local_addresses: Option<Vec<IpAddr>>,
    /// The environment of the process: `POD_NAMESPACE`, `POD_IP`, `NODE_NAME`.
    pub environment: BTreeMap<String, String>,
    /// Rules of Kubernetes, in order of its list; `None` is not known.
    pub ingresses: Option<Vec<Ingress>>,
    /// Tables that are kept elsewhere, by namespace, or `<namespace>/<name>/<file>` of
    /// a `ConfigMap`.
    pub dtabs: BTreeMap<String, Dtab>,
    /// Namers of namerd. Where empty, the longest of `names` that a name begins with
    /// binds it.
    pub namerd: Vec<Namer>,
    /// What should have been asked and could not be, and why: by the prefix of a namer
    /// (`/#/io.l5d.consul`), or as in `dtabs` for an interpreter.
    pub unread: BTreeMap<String, String>,
}

/// Endpoints of a name, each with its weight; `None` where only the name is known.
pub type Known = Option<Vec<(Endpoint, f64)>>;

/// An Ingress of Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Its namespace.
    pub namespace: String,
    /// The annotation `kubernetes.io/ingress.class`.
    pub class: Option<String>,
    /// In order of the object.
    pub rules: Vec<IngressRule>,
    /// `spec.backend`: service and port.
    pub default_backend: Option<(String, String)>,
}

/// One path of one rule of an Ingress.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IngressRule {
    /// Without a port; any where absent.
    pub host: Option<String>,
    /// A regular expression that the whole path must match; any where absent.
    pub path: Option<String>,
    /// Service of the backend.
    pub service: String,
    /// Its port, by name or number.
    pub port: String,
}

impl World {
    /// One that knows these names, and none of their endpoints.
    pub fn of_names<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(|name| (name.into(), None)).collect();
        Self { names, ..Self::default() }
    }

    /// Rules that an identifier sees, those of all Ingresses before any default.
    pub(super) fn ingress_rules(
        &self,
        namespace: Option<&str>,
        class: &str,
        ignores_default_backends: bool,
    ) -> Option<Vec<(String, IngressRule)>> {
        let seen = self.ingresses.as_ref()?.iter().filter(|ingress| {
            namespace.is_none_or(|namespace| namespace == ingress.namespace)
                && ingress.class.as_deref().is_none_or(|known| known == class)
        });
        let rules = seen.clone().flat_map(|ingress| {
            ingress.rules.iter().map(|rule| (ingress.namespace.clone(), rule.clone()))
        });
        let defaults = seen.filter(|_| !ignores_default_backends).filter_map(|ingress| {
            let (service, port) = ingress.default_backend.clone()?;
            let rule = IngressRule { host: None, path: None, service, port };
            Some((ingress.namespace.clone(), rule))
        });
        Some(rules.chain(defaults).collect())
    }
}

/// Endpoints of a file of `io.l5d.fs`: lines of `host port [* weight]`.
pub(super) fn endpoints_of_file(text: &str) -> Result<Vec<(Endpoint, f64)>, String> {
    let mut endpoints = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        let (host, port, weight) = match words.as_slice() {
            [] => continue,
            [host, port] => (host, port, "1"),
            [host, port, "*", weight] => (host, port, *weight),
            _ => return Err(format!("{line:?} is not `host port` or `host port * weight`")),
        };
        let port: u16 = port.parse().map_err(|_| format!("{port:?} is no port"))?;
        let weight: f64 = weight.parse().map_err(|_| format!("{weight:?} is no weight"))?;
        endpoints.push((endpoint(host, port), weight));
    }
    Ok(endpoints)
}

/// Where a host and a port are.
pub fn endpoint(host: &str, port: u16) -> Endpoint {
    match host.parse::<IpAddr>() {
        Ok(ip) => Endpoint::Address((ip, port).into()),
        Err(_) => Endpoint::Name(format!("{host}:{port}")),
    }
}
