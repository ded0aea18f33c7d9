//! `federation.yaml`: what was written, and what it means.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_api::v1::Gateway;
use mesh_core::{GatewayId, SiteName, TrustDomain, service};
use mesh_manifest::AccessPolicy;
use mesh_runtime::config::{ConfigError, HumanDuration, load};
use serde::{Deserialize, Serialize};

use crate::{
    ca::WORKLOAD_LIFE,
    registration::pod::GatewayAccount,
    roles::{RoleFile, Roles},
    virtual_address::VirtualRange,
};

/// The most gateways of one site.
const MAX_GATEWAYS: usize = 64;
/// The most Consuls of one site.
const MAX_CONSULS: usize = 16;
/// The most addresses of one kind of one gateway.
const MAX_ADDRESSES: usize = 8;
/// How long certificates of workloads may live: proxies must have the time to
/// renew, and a revocation must outlast what it revokes.
const WORKLOAD_LIVES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(15)..=Duration::from_secs(7 * 86_400);

/// The file, key by key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// Name of the site, as `federation init` was told.
    pub site: String,
    /// Its trust domain, as `federation init` was told.
    pub trust_domain: String,
    /// State directory.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// Directory of the Unix sockets.
    #[serde(default = "default_run")]
    pub run: PathBuf,
    /// gRPC over mTLS.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// `ip:port` where gateways on other hosts reach `listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// `/metrics /live /ready` over HTTP.
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    /// Where services get their virtual addresses.
    #[serde(default = "default_virtual_range")]
    pub virtual_range: String,
    /// All gateways of the site; the first is the one beside federation.
    #[serde(default)]
    pub gateways: Vec<GatewayFile>,
    /// Users that may be the gateway on this host, besides root and our own.
    #[serde(default = "default_gateway_users")]
    pub gateway_users: Vec<String>,
    /// The same by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway_uids: Vec<u32>,
    /// Who may use `Admin` from other machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<RoleFile>,
    /// Who may call services that no Server or AuthorizationPolicy speaks of.
    #[serde(default = "default_access")]
    pub default_access: AccessPolicy,
    /// How long workloads, gateways and federation keep a certificate.
    #[serde(default = "default_workload_lifetime")]
    pub workload_lifetime: HumanDuration,
    /// A Kubernetes cluster belongs to this site: its controller is in the same
    /// pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterFile>,
    /// Consuls whose services are this site's, and that show some of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consul: Vec<mesh_consul::ConfigFile>,
}

/// What the site knows of its cluster beforehand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterFile {
    /// Service account in `isthmus-system` whose pods are gateways.
    #[serde(default = "default_gateway_account")]
    pub gateway_account: String,
}

/// One entry of `gateways`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayFile {
    /// Unique in the site.
    pub id: String,
    /// `host:port` of its QUIC listeners, as seen from outside.
    #[serde(default)]
    pub quic: Vec<String>,
    /// `host:port` of its TLS/TCP listeners, as seen from outside.
    pub tls: Vec<String>,
}

impl ConfigFile {
    /// A site with defaults for everything else, and no gateway.
    pub fn new(site: String, trust_domain: String) -> Self {
        Self {
            site,
            trust_domain,
            state: default_state(),
            run: default_run(),
            listen: default_listen(),
            address: None,
            admin: default_admin(),
            virtual_range: default_virtual_range(),
            gateways: Vec::new(),
            gateway_users: default_gateway_users(),
            gateway_uids: Vec::new(),
            roles: Vec::new(),
            default_access: default_access(),
            workload_lifetime: default_workload_lifetime(),
            cluster: None,
            consul: Vec::new(),
        }
    }
}

fn default_gateway_account() -> String {
    "isthmus-gateway".into()
}

fn default_state() -> PathBuf {
    "/var/lib/isthmus/federation".into()
}

fn default_run() -> PathBuf {
    "/run/isthmus".into()
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 8446).into()
}

fn default_admin() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 8448).into()
}

fn default_virtual_range() -> String {
    "240.0.0.0/4".into()
}

fn default_access() -> AccessPolicy {
    AccessPolicy::AllAuthenticated
}

fn default_workload_lifetime() -> HumanDuration {
    HumanDuration(WORKLOAD_LIFE)
}

fn default_gateway_users() -> Vec<String> {
    vec!["isthmus-gateway".into()]
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it came from, for messages.
    pub file: String,
    /// Name of the site.
    pub site: SiteName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// State directory.
    pub state: PathBuf,
    /// Directory of the Unix sockets.
    pub run: PathBuf,
    /// gRPC over mTLS.
    pub listen: SocketAddr,
    /// Where gateways reach it.
    pub address: SocketAddr,
    /// Admin over HTTP.
    pub admin: SocketAddr,
    /// Where services get their virtual addresses.
    pub virtual_range: VirtualRange,
    /// All gateways of the site.
    pub gateways: Vec<Gateway>,
    /// Users that may be the gateway on this host.
    pub gateway_uids: Vec<u32>,
    /// Who may use `Admin` from other machines.
    pub roles: Roles,
    /// Who may call services that no document speaks of.
    pub default_access: AccessPolicy,
    /// How long workloads, gateways and federation keep a certificate.
    pub workload_life: Duration,
    /// The cluster that belongs to the site.
    pub cluster: Option<ClusterFile>,
    /// The Consuls beside it.
    pub consul: Vec<mesh_consul::Config>,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::check(load(path)?, &path.display().to_string())
    }

    /// Checks what was written; `file` is how errors name it.
    pub fn check(written: ConfigFile, file: &str) -> Result<Self, ConfigError> {
        let wrong =
            |key: &str, problem: &dyn std::fmt::Display| ConfigError::meaning(file, key, problem);
        let site: SiteName = written.site.parse().map_err(|error| wrong("site", &error))?;
        let trust_domain =
            written.trust_domain.parse().map_err(|error| wrong("trust_domain", &error))?;
        if written.gateways.len() > MAX_GATEWAYS {
            return Err(wrong("gateways", &format!("at most {MAX_GATEWAYS} gateways")));
        }
        let virtual_range =
            written.virtual_range.parse().map_err(|error| wrong("virtual_range", &error))?;
        let mut gateways: Vec<Gateway> = Vec::new();
        for (i, gateway) in written.gateways.into_iter().enumerate() {
            let key = format!("gateways[{i}]");
            let checked = check_gateway(gateway, &site, file, &key)?;
            if gateways.iter().any(|other| other.id == checked.id) {
                let problem =
                    format!("{} is the id of an earlier gateway; ids are unique", checked.id);
                return Err(ConfigError::meaning(file, format!("{key}.id"), problem));
            }
            gateways.push(checked);
        }
        let workload_life = written.workload_lifetime.into();
        if !WORKLOAD_LIVES.contains(&workload_life) {
            return Err(wrong("workload_lifetime", &"at least 15s, at most 168h"));
        }
        let roles = Roles::check(written.roles, &trust_domain, file)?;
        let mut gateway_uids = written.gateway_uids;
        gateway_uids.extend(written.gateway_users.iter().filter_map(|user| uid_of(user)));
        Ok(Self {
            file: file.to_owned(),
            site,
            trust_domain,
            state: written.state,
            run: written.run,
            listen: written.listen,
            address: written.address.unwrap_or_else(|| local(written.listen)),
            admin: written.admin,
            virtual_range,
            gateways,
            gateway_uids,
            roles,
            default_access: written.default_access,
            workload_life,
            cluster: written.cluster,
            consul: check_consuls(&written.consul, file)?,
        })
    }

    /// The service account whose pods are gateways.
    pub fn gateway_account(&self) -> GatewayAccount {
        GatewayAccount(self.cluster.as_ref().map(|cluster| cluster.gateway_account.clone()))
    }

    /// The gateway that runs beside federation, if one does.
    pub fn gateway_beside(&self) -> Option<GatewayId> {
        self.gateways.first().and_then(|gateway| gateway.id.parse().ok())
    }
}

fn check_consuls(
    written: &[mesh_consul::ConfigFile],
    file: &str,
) -> Result<Vec<mesh_consul::Config>, ConfigError> {
    let wrong = |key: &str, problem: &str| Err(ConfigError::meaning(file, key, problem));
    if written.len() > MAX_CONSULS {
        return wrong("consul", &format!("at most {MAX_CONSULS}"));
    }
    let mut consuls: Vec<mesh_consul::Config> = Vec::new();
    for written in written {
        let consul = mesh_consul::Config::new(written, file)?;
        if !consul.import.is_empty() && consul.door.is_none() {
            let problem = "is missing: the UUID of a machine (`meshctl node list`) whose proxy leads \
                           to what is imported, and whose token granted it those services";
            return wrong("consul.door", problem);
        }
        let address = &consul.connection.address;
        if consuls.iter().any(|other| other.connection.address == *address) {
            return wrong("consul.address", &format!("{address} is there twice; put all into one"));
        }
        consuls.push(consul);
    }
    Ok(consuls)
}

/// Where a listener is reached from its own host.
fn local(listen: SocketAddr) -> SocketAddr {
    match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

fn check_gateway(
    written: GatewayFile,
    site: &SiteName,
    file: &str,
    key: &str,
) -> Result<Gateway, ConfigError> {
    let wrong =
        |part: &str, problem: String| ConfigError::meaning(file, format!("{key}.{part}"), problem);
    if written.tls.is_empty() {
        let problem = "needs at least one host:port; machines join through it";
        return Err(wrong("tls", problem.to_owned()));
    }
    for (part, addresses) in [("quic", &written.quic), ("tls", &written.tls)] {
        if addresses.len() > MAX_ADDRESSES {
            return Err(wrong(part, format!("at most {MAX_ADDRESSES} addresses")));
        }
    }
    let gateway = Gateway {
        id: written.id,
        site: site.to_string(),
        quic_addresses: written.quic,
        tls_addresses: written.tls,
    };
    // The same check that the machines make which are told of it.
    service::Gateway::try_from(&gateway).map_err(|error| ConfigError::meaning(file, key, error))?;
    Ok(gateway)
}

/// The number of a user, from the passwd file; users that do not exist on this
/// host cannot call.
fn uid_of(user: &str) -> Option<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "site: west
trust_domain: west.example
state: /tmp/state
listen: 0.0.0.0:8446
gateways:
  - id: gw1
    quic: [gw.west.example:8443]
    tls: [gw.west.example:8443]
  - id: gw2
    tls: ['[2001:db8::1]:443']
gateway_users: [root, no-such-user]
gateway_uids: [4711]
";

    fn check(text: &str) -> Result<Config, ConfigError> {
        Config::check(mesh_runtime::config::parse(text, "f.yaml")?, "f.yaml")
    }

    #[test]
    fn a_whole_file_is_read() {
        let config = check(GOOD).unwrap();
        assert_eq!(config.gateways.len(), 2);
        assert_eq!(config.gateways[0].site, "west");
        assert_eq!(config.gateway_beside().unwrap().as_str(), "gw1");
        assert_eq!(config.address.to_string(), "127.0.0.1:8446", "reached from its own host");
        assert_eq!(config.gateway_uids, [4711, 0]);
        assert_eq!(config.admin.to_string(), "127.0.0.1:8448");
    }

    #[test]
    fn little_is_needed() {
        let config = check("site: a\ntrust_domain: a.example\n").unwrap();
        assert_eq!(config.state, Path::new("/var/lib/isthmus/federation"));
        assert!(config.gateways.is_empty() && config.gateway_beside().is_none());
        assert_eq!(config.default_access, AccessPolicy::AllAuthenticated);
        let config = check("site: a\ntrust_domain: a.example\ndefault_access: deny\n").unwrap();
        assert_eq!(config.default_access, AccessPolicy::Deny);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        let cases = [
            (with("site: west", "site: West"), "f.yaml: site:"),
            (with("west.example\n", "West\n"), "f.yaml: trust_domain:"),
            (with("site: west\n", ""), "missing field `site`"),
            (with("listen", "lisen"), "f.yaml:4:1: unknown field `lisen`"),
            (with("listen", "lisen"), "did you mean `listen`?"),
            (with("id: gw2", "id: gw1"), "gateways[1].id: gw1 is the id of an earlier"),
            (with("id: gw2", "id: GW"), "gateways[1]"),
            (with("['[2001:db8::1]:443']", "[]"), "gateways[1].tls: needs at least one"),
            (with("['[2001:db8::1]:443']", "[nowhere]"), "gateways[1]"),
            (with("listen: 0.0.0.0:8446", "virtual_range: 10.0.0.0"), "f.yaml: virtual_range:"),
            (with("listen: 0.0.0.0:8446", "listen: 8446"), "f.yaml:4:9"),
            (with("listen: 0.0.0.0:8446", "workload_lifetime: 14s"), "workload_lifetime: at least"),
            (with("listen: 0.0.0.0:8446", "workload_lifetime: 169h"), "at most 168h"),
            (with("listen: 0.0.0.0:8446", "consul: [{import: [{allow: [x]}]}]"), "consul.door: is"),
            (with("listen: 0.0.0.0:8446", "consul: [{}, {}]"), "is there twice"),
            (with("listen: 0.0.0.0:8446", "consul: [{dor: x}]"), "did you mean `door`?"),
        ];
        for (text, expected) in cases {
            let error = check(&text).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
            assert_eq!(error.exit_code(), 78);
        }
    }

    #[test]
    fn what_init_writes_is_read() {
        let written = ConfigFile::new("west".into(), "west.example".into());
        let text = serde_yaml_ng::to_string(&written).unwrap();
        assert_eq!(check(&text).unwrap().site.as_str(), "west");
    }
}
