//! A bootstrap, or what `/config_dump` says of a running Envoy.

use std::collections::BTreeMap;

use super::tree::Tree;
use crate::{
    source::{Problem, Source},
    yaml,
};

const BOOTSTRAP: &str = "envoy.config.bootstrap.v3.Bootstrap";

/// What Envoy would run with.
#[derive(Debug, Clone)]
pub struct Config {
    /// All that is written.
    pub root: Tree,
    /// Of the bootstrap and, in a dump, those that were fetched.
    pub listeners: Vec<Tree>,
    /// The same.
    pub clusters: Vec<Tree>,
    /// Route configurations that listeners name, from a dump.
    pub routes: BTreeMap<String, Tree>,
    /// Endpoints of EDS by cluster or service, from a dump with `?include_eds`.
    pub endpoints: BTreeMap<String, Tree>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Tree>,
    /// It is a dump.
    pub is_dump: bool,
}

impl Config {
    /// Reads a bootstrap or a dump, in YAML or JSON.
    ///
    /// # Errors
    ///
    /// It is no YAML, holds what Envoy does not know or would refuse, or leaves to
    /// others what must be known here.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let node = yaml::parse(source)?;
        if node.at("configs").is_some() {
            return Self::dump(Tree::read("envoy.admin.v3.ConfigDump", &node)?);
        }
        let root = Tree::read(BOOTSTRAP, &node)?;
        let mut config = Self::empty(root);
        config.bootstrap();
        config.check()?;
        Ok(config)
    }

    fn empty(root: Tree) -> Self {
        Self {
            root,
            listeners: Vec::new(),
            clusters: Vec::new(),
            routes: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            secrets: BTreeMap::new(),
            is_dump: false,
        }
    }

    fn bootstrap(&mut self) {
        let Some(resources) = self.root.msg("static_resources") else { return };
        self.listeners = resources.messages("listeners").cloned().collect();
        self.clusters = resources.messages("clusters").cloned().collect();
        let named =
            |secret: &Tree| (secret.text("name").unwrap_or_default().into(), secret.clone());
        self.secrets = resources.messages("secrets").map(named).collect();
    }

    fn dump(root: Tree) -> Result<Self, Problem> {
        let mut config = Self::empty(root);
        config.is_dump = true;
        let parts: Vec<Tree> = config.root.messages("configs").cloned().collect();
        let has = |name: &str| parts.iter().any(|part| part.message.ends_with(name));
        for needed in ["ListenersConfigDump", "ClustersConfigDump"] {
            if !has(needed) {
                let problem = format!(
                    "expected a {needed}: write down all of /config_dump?include_eds, not one resource"
                );
                return Err(Problem::at(&config.root.place, problem));
            }
        }
        for part in &parts {
            config.part(part);
        }
        config.check()?;
        Ok(config)
    }

    fn part(&mut self, part: &Tree) {
        let below = |list: &str, field: &str| {
            part.messages(list).filter_map(|one| one.msg(field).cloned()).collect::<Vec<_>>()
        };
        let named = |trees: Vec<Tree>, field: &str| {
            let name = |tree: &Tree| tree.text(field).unwrap_or_default().to_owned();
            trees.into_iter().map(|tree| (name(&tree), tree)).collect::<Vec<_>>()
        };
        match part.short() {
            "ListenersConfigDump" => {
                self.listeners.extend(below("static_listeners", "listener"));
                let active = part.messages("dynamic_listeners");
                let active = active.filter_map(|one| one.msg("active_state")?.msg("listener"));
                self.listeners.extend(active.cloned());
            }
            "ClustersConfigDump" => {
                self.clusters.extend(below("static_clusters", "cluster"));
                self.clusters.extend(below("dynamic_active_clusters", "cluster"));
            }
            "RoutesConfigDump" => {
                self.routes.extend(named(below("static_route_configs", "route_config"), "name"));
                self.routes.extend(named(below("dynamic_route_configs", "route_config"), "name"));
            }
            "EndpointsConfigDump" => {
                let all = below("dynamic_endpoint_configs", "endpoint_config");
                self.endpoints.extend(named(all, "cluster_name"));
            }
            "SecretsConfigDump" => {
                self.secrets.extend(named(below("static_secrets", "secret"), "name"));
                self.secrets.extend(named(below("dynamic_active_secrets", "secret"), "name"));
            }
            _ => {}
        }
    }

    /// A cluster.
    pub fn cluster(&self, name: &str) -> Option<&Tree> {
        self.clusters.iter().find(|cluster| cluster.text("name") == Some(name))
    }

    /// The endpoints of a cluster.
    pub fn load_assignment<'c>(&'c self, cluster: &'c Tree) -> Option<&'c Tree> {
        if cluster.text("type") != Some("EDS") {
            return cluster.msg("load_assignment");
        }
        let service =
            cluster.msg("eds_cluster_config").and_then(|eds| eds.some_text("service_name"));
        let name = cluster.text("name").unwrap_or_default();
        self.endpoints.get(service.unwrap_or(name)).or_else(|| self.endpoints.get(name))
    }

    /// The routes of a connection manager: its own, or those it names.
    pub fn routes<'c>(&'c self, hcm: &'c Tree) -> Option<&'c Tree> {
        let named = || self.routes.get(hcm.msg("rds")?.text("route_config_name")?);
        hcm.msg("route_config").or_else(named)
    }

    /// The names of a cluster's endpoints: of each its `hostname`, or what DNS is
    /// asked for.
    pub fn hostnames(&self, cluster: &Tree) -> Vec<Option<String>> {
        let assignment = self.load_assignment(cluster);
        let localities = assignment.into_iter().flat_map(|all| all.messages("endpoints"));
        let hosts = localities.flat_map(|one| one.messages("lb_endpoints"));
        let by_dns = matches!(cluster.text("type"), Some("STRICT_DNS" | "LOGICAL_DNS"));
        let name = |host: &Tree| {
            let endpoint = host.msg("endpoint")?;
            if let Some(name) = endpoint.some_text("hostname") {
                return Some(name.to_owned());
            }
            let address = endpoint.msg("address")?.msg("socket_address")?.some_text("address")?;
            by_dns.then(|| address.to_owned())
        };
        hosts.map(name).collect()
    }
}
