//! The section `consul` of a configuration: what was written, and what it means.
//!
//! ```yaml
//! consul:
//!   address: https://127.0.0.1:8501
//!   ca_file: /etc/isthmus/consul-ca.pem
//!   token_file: /etc/isthmus/consul.token
//!   door: 6f1c2a52-3a0e-4d0c-9f57-1c1b0a6d2e11
//!   import:
//!     - allow: ["orders*", payments]
//!       tags: [v1]
//!       as_namespace: shop
//!       rename: { orders_api: orders }
//!   export:
//!     - service: checkout.shop
//!       as: checkout
//!       at: ["10.0.0.9:7001"]
//! ```

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU16, path::PathBuf, time::Duration};

use mesh_core::{NodeId, ServiceName, name::is_reserved_namespace};
use mesh_runtime::config::{ConfigError, HumanDuration};
use serde::{Deserialize, Serialize};

use crate::{
    client::{Connection, TlsFiles},
    export::SHORTEST_TTL,
    import::{AddressOf, ImportRule, MAX_SERVICES, Pattern},
    watch::{LONGEST_WAIT, Pace},
};

/// The most rules of one kind.
const MAX_RULES: usize = 256;
/// The most places of one service that is exported.
const MAX_PLACES: usize = 64;
/// The most services that may be watched, each by a connection.
const MOST_SERVICES: usize = 4096;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// `http://host:port` or `https://host:port` of an agent.
    #[serde(default = "default_address")]
    pub address: String,
    /// Holds an ACL token, readable by its owner alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// PEM; required for https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// PEM of our certificate and its chain, where the agent asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// PEM of its key, readable by its owner alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Datacenter of rules that name none; the agent's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dc: Option<String>,
    /// Read from any server, so that reads outlast the leader.
    #[serde(default = "yes")]
    pub stale: bool,
    /// Under churn, a list is asked for once in this time.
    #[serde(default = "default_churn")]
    pub churn_interval: HumanDuration,
    /// How long an instance that is exported outlasts us.
    #[serde(default = "default_ttl")]
    pub export_ttl: HumanDuration,
    /// The most services that are watched.
    #[serde(default = "default_services")]
    pub max_services: usize,
    /// UUID of the node whose proxy leads to what is imported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub door: Option<String>,
    /// The first rule that lets a service in counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub import: Vec<ImportFile>,
    /// Services of the mesh that Consul shows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<ExportFile>,
}

/// One entry of `import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportFile {
    /// Names of services in Consul; `*` stands for anything.
    pub allow: Vec<String>,
    /// Only instances that have all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Another datacenter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dc: Option<String>,
    /// The namespace that they are in here.
    #[serde(default = "default_namespace")]
    pub as_namespace: String,
    /// Names in Consul to names here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<String, String>,
    /// `service`, `node`, or a tagged one as `lan` and `wan`.
    #[serde(default = "default_address_of", rename = "instance_address")]
    pub address: String,
    /// Where clients ask for it; else what most instances have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<NonZeroU16>,
}

/// One entry of `export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportFile {
    /// `<name>.<namespace>`.
    pub service: String,
    /// `ip:port` where clients of Consul reach it: listeners of proxies that lead to
    /// this service.
    pub at: Vec<SocketAddr>,
    /// Its name in Consul; its name here without the namespace where absent.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of each instance.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Of each instance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
}

/// What it means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The agent.
    pub connection: Connection,
    /// How it is watched.
    pub pace: Pace,
    /// The most services that are watched.
    pub max_services: usize,
    /// How long an instance that is exported outlasts us.
    pub export_ttl: Duration,
    /// The node whose proxy leads to what is imported.
    pub door: Option<NodeId>,
    /// What is imported.
    pub import: Vec<ImportRule>,
    /// What is exported.
    pub export: Vec<ExportRule>,
}

/// One service to show in Consul.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRule {
    /// As the mesh calls it.
    pub service: ServiceName,
    /// Where clients of Consul reach it.
    pub at: Vec<SocketAddr>,
    /// As Consul shall call it.
    pub name: String,
    /// Of each instance.
    pub tags: Vec<String>,
    /// Of each instance.
    pub meta: BTreeMap<String, String>,
}

impl Config {
    /// Checks what was written in `file`, below its key `consul`.
    ///
    /// # Errors
    ///
    /// With the key that must be mended. Files that it names are not read.
    pub fn new(written: &ConfigFile, file: &str) -> Result<Self, ConfigError> {
        let wrong = |key: &str, problem: String| {
            Err(ConfigError::meaning(file, format!("consul.{key}"), problem))
        };
        if written.import.len() > MAX_RULES || written.export.len() > MAX_RULES {
            return wrong("import", format!("more than {MAX_RULES} rules; let more in by `*`"));
        }
        let churn = written.churn_interval.0;
        if churn.is_zero() || churn > LONGEST_WAIT {
            return wrong("churn_interval", "must be above 0s and at most 10m".into());
        }
        let ttl = written.export_ttl.0;
        if !(SHORTEST_TTL..=LONGEST_WAIT).contains(&ttl) {
            return wrong("export_ttl", "must be 3s to 10m".into());
        }
        if !(1..=MOST_SERVICES).contains(&written.max_services) {
            return wrong("max_services", format!("must be 1 to {MOST_SERVICES}"));
        }
        let tls = match tls(written) {
            Ok(tls) => tls,
            Err((key, problem)) => return wrong(key, problem.into()),
        };
        let door = match written.door.as_ref().map(|door| door.parse::<NodeId>()).transpose() {
            Ok(door) => door,
            Err(error) => return wrong("door", error.to_string()),
        };
        let mut config = Self {
            connection: Connection {
                address: written.address.clone(),
                token_file: written.token_file.clone(),
                tls,
                stale: written.stale,
            },
            pace: Pace { churn, ..Pace::default() },
            max_services: written.max_services,
            export_ttl: ttl,
            door,
            import: Vec::new(),
            export: Vec::new(),
        };
        for (i, rule) in written.import.iter().enumerate() {
            match import_rule(rule, written.dc.as_ref()) {
                Ok(rule) => config.import.push(rule),
                Err((key, problem)) => return wrong(&format!("import[{i}].{key}"), problem),
            }
        }
        for (i, rule) in written.export.iter().enumerate() {
            match export_rule(rule, &config.export) {
                Ok(rule) => config.export.push(rule),
                Err((key, problem)) => return wrong(&format!("export[{i}].{key}"), problem),
            }
        }
        Ok(config)
    }
}

type Wrong = (&'static str, String);

fn tls(written: &ConfigFile) -> Result<Option<TlsFiles>, (&'static str, &'static str)> {
    let is_https = written.address.starts_with("https:");
    let client = match (&written.certificate_file, &written.key_file) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        _ => return Err(("certificate_file", "goes with key_file; write both or none")),
    };
    match (&written.ca_file, is_https) {
        (Some(ca), true) => Ok(Some(TlsFiles { ca: ca.clone(), client })),
        (None, true) => Err((
            "ca_file",
            "is required for https: the CA that has issued the agent's certificate; for a \
             public one, the system's bundle",
        )),
        (None, false) if client.is_none() => Ok(None),
        (_, false) => Err(("address", "is http, and files for TLS are named; write https://")),
    }
}

fn import_rule(written: &ImportFile, dc: Option<&String>) -> Result<ImportRule, Wrong> {
    if written.allow.is_empty() || written.allow.iter().any(String::is_empty) {
        return Err(("allow", "must name services; \"*\" stands for all".into()));
    }
    let rule = ImportRule {
        allow: written.allow.iter().cloned().map(Pattern).collect(),
        tags: written.tags.clone(),
        dc: written.dc.as_ref().or(dc).cloned(),
        as_namespace: written.as_namespace.clone(),
        rename: written.rename.clone(),
        address: match written.address.as_str() {
            "service" => AddressOf::Service,
            "node" => AddressOf::Node,
            tag => AddressOf::Tagged(tag.to_owned()),
        },
        port: written.port,
    };
    if is_reserved_namespace(&rule.as_namespace) {
        return Err(("as_namespace", format!("{} is reserved", rule.as_namespace)));
    }
    let any: Result<ServiceName, _> = format!("x.{}", rule.as_namespace).parse();
    any.map_err(|error| ("as_namespace", format!("{error}; write one label")))?;
    for (consul, name) in &rule.rename {
        if let Err(error) = rule.name(consul) {
            return Err(("rename", format!("{consul}: {name}: {error}")));
        }
    }
    Ok(rule)
}

fn export_rule(written: &ExportFile, before: &[ExportRule]) -> Result<ExportRule, Wrong> {
    let service: ServiceName =
        written.service.parse().map_err(|error| ("service", format!("{error}")))?;
    let is_place = |at: &SocketAddr| at.port() != 0 && !at.ip().is_unspecified();
    if written.at.is_empty() || written.at.len() > MAX_PLACES || !written.at.iter().all(is_place) {
        let problem = format!("must be 1 to {MAX_PLACES} of ip:port, where proxies listen for it");
        return Err(("at", problem));
    }
    let name = written.name.clone().unwrap_or_else(|| service.name().to_owned());
    let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(ok) {
        return Err(("as", format!("{name:?} must be 1 to 63 of A-Z, a-z, 0-9, '_' and '-'")));
    }
    if before.iter().any(|rule| rule.name.eq_ignore_ascii_case(&name)) {
        return Err(("as", format!("{name:?} is exported already; give it another name")));
    }
    let is_key = |key: &String| !key.is_empty() && key.len() <= 128 && key.bytes().all(ok);
    // Two pairs are ours, of the 64 that Consul takes.
    let fits = |(key, value): (&String, &String)| is_key(key) && value.len() <= 512;
    if written.meta.len() > 62 || !written.meta.iter().all(fits) {
        let problem = "takes 62 pairs; keys are 1 to 128 of A-Z, a-z, 0-9, '_' and '-', values \
                       at most 512 bytes";
        return Err(("meta", problem.into()));
    }
    let (tags, meta) = (written.tags.clone(), written.meta.clone());
    Ok(ExportRule { service, at: written.at.clone(), name, tags, meta })
}

fn default_address() -> String {
    "http://127.0.0.1:8500".into()
}

fn default_churn() -> HumanDuration {
    HumanDuration(Pace::default().churn)
}

fn default_ttl() -> HumanDuration {
    HumanDuration(Duration::from_secs(15))
}

fn default_services() -> usize {
    MAX_SERVICES
}

fn default_namespace() -> String {
    "consul".into()
}

fn default_address_of() -> String {
    "service".into()
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use mesh_runtime::config::parse;

    use super::*;

    fn config(text: &str) -> Result<Config, ConfigError> {
        Config::new(&parse(text, "f.yaml")?, "f.yaml")
    }

    #[test]
    fn defaults_are_a_local_agent() {
        let config = config("import: [{allow: ['*']}]").unwrap();
        assert_eq!(config.connection.address, "http://127.0.0.1:8500");
        assert!(config.connection.stale && config.connection.tls.is_none());
        assert_eq!(config.import[0].name("Web").unwrap().as_str(), "web.consul");
    }

    #[test]
    fn a_whole_one_means_what_it_says() {
        let config = config(
            "{address: 'https://c:8501', ca_file: a, certificate_file: b, key_file: c, dc: d1, \
             import: [{allow: ['o*'], dc: d2, as_namespace: shop, rename: {o_api: orders}, \
             instance_address: wan, port: 80}, {allow: [p]}], \
             export: [{service: pay.shop, at: ['10.0.0.9:80'], tags: [t]}]}",
        )
        .unwrap();
        assert_eq!(config.connection.tls.unwrap().client, Some(("b".into(), "c".into())));
        let [first, second] = &config.import[..] else { panic!() };
        assert_eq!((first.dc.as_deref(), second.dc.as_deref()), (Some("d2"), Some("d1")));
        assert_eq!(first.name("o_api").unwrap().as_str(), "orders.shop");
        assert_eq!(first.address, AddressOf::Tagged("wan".into()));
        assert_eq!(config.export[0].name, "pay");
    }

    #[test]
    fn errors_name_the_key_and_the_remedy() {
        let cases = [
            ("import: [{allow: []}]", "consul.import[0].allow: must name services"),
            ("import: [{alow: [x]}]", "did you mean `allow`?"),
            ("import: [{allow: [x], as_namespace: a.b}]", "consul.import[0].as_namespace: "),
            ("import: [{allow: [x], as_namespace: kube-system}]", "is reserved"),
            ("import: [{allow: [x], rename: {x: X_Y}}]", "consul.import[0].rename: x: X_Y"),
            ("address: https://c:8501", "consul.ca_file: is required for https"),
            ("{address: 'https://c', ca_file: a, key_file: k}", "goes with key_file"),
            ("ca_file: a", "consul.address: is http"),
            ("churn_interval: 0s", "consul.churn_interval: must be above 0s"),
            ("export_ttl: 1s", "consul.export_ttl: must be 3s to 10m"),
            ("door: here", "consul.door: node id"),
            ("export: [{service: x, at: ['1.1.1.1:1']}]", "consul.export[0].service: "),
            ("export: [{service: x.y, at: []}]", "consul.export[0].at: must be 1 to 64"),
            ("export: [{service: x.y, at: ['0.0.0.0:1']}]", "consul.export[0].at: must be"),
            ("export: [{service: x.y, as: 'a b', at: ['1.1.1.1:1']}]", "consul.export[0].as: "),
            (
                "export: [{service: x.y, at: ['1.1.1.1:1']}, {service: x.z, at: ['1.1.1.1:1']}]",
                "is exported already",
            ),
            (
                "export: [{service: x.y, at: ['1.1.1.1:1'], meta: {'a b': c}}]",
                "consul.export[0].meta: takes 62",
            ),
        ];
        for (text, expected) in cases {
            let shown = config(text).unwrap_err().to_string();
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }
}
