//! What was written in `proxy.yaml` and on the command line.
//! Flag before environment before file before default.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    thread,
    time::Duration,
};

use clap::Parser;
use mesh_core::{GatewayId, Locality, PortName, ServiceName, TrustDomain};
use mesh_runtime::config::{self, ConfigError, HumanDuration};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{
    AccessLogTarget, Cidr, Config, GatewayDoors, IdentitySource, Role, ServiceListener,
    SnapshotSource,
};
use crate::files::IdentityFiles;

/// Read when `--config` is not given, if it exists.
pub const DEFAULT_FILE: &str = "/etc/isthmus/proxy.yaml";
/// Workers by default: more rarely help a proxy beside an application.
const DEFAULT_WORKERS: usize = 4;
/// More workers than this are a mistake.
const MAX_WORKERS: usize = 64;
/// Listeners of one proxy.
const MAX_LISTENERS: usize = 256;
/// The longest name of a region, zone or host, in bytes.
const MAX_LOCALITY: usize = 64;

/// Carries the traffic of one machine, one workload, or a site's border.
///
/// Examples:
///   edge-proxy
///   edge-proxy --config /etc/isthmus/proxy.yaml
///   edge-proxy --config proxy.yaml --http-listener 127.0.0.1:4140 --admin off
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "edge-proxy", version, verbatim_doc_comment)]
pub struct Flags {
    /// Configuration file [default: /etc/isthmus/proxy.yaml, if it exists]
    #[arg(long, value_name = "FILE", env = "ISTHMUS_PROXY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where applications send HTTP for any service, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_HTTP_LISTENER")]
    pub http_listener: Option<Listen>,
    /// Where captured traffic arrives, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_TRANSPARENT")]
    pub transparent: Option<Listen>,
    /// Where the mesh calls, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_INBOUND")]
    pub inbound: Option<Listen>,
    /// Where to serve /metrics, /live and /ready, or `off`
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_PROXY_ADMIN")]
    pub admin: Option<Listen>,
    /// Threads that carry traffic [default: one per core, at most 4]
    #[arg(long, value_name = "N", env = "ISTHMUS_PROXY_WORKERS")]
    pub workers: Option<usize>,
    /// stdout, journald, off, or a file
    #[arg(long, value_name = "WHERE", env = "ISTHMUS_PROXY_ACCESS_LOG")]
    pub access_log: Option<String>,
}

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let addr = text.parse();
        addr.map(|addr| Self(Some(addr)))
            .map_err(|_| format!("{text:?}: write <ip>:<port>, e.g. 127.0.0.1:4140, or off"))
    }
}

/// Reads anything that is written as a string.
pub(crate) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err: Display>> serde::de::Visitor<'_> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Visitor(std::marker::PhantomData))
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// What was written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    role: RoleFile,
    identity: Option<IdentityFile>,
    snapshot: Option<SnapshotFile>,
    workers: Option<usize>,
    http_listener: Option<Listen>,
    transparent: Option<Listen>,
    inbound: Option<Listen>,
    listeners: Vec<ListenerFile>,
    admin: Option<Listen>,
    access_log: Option<String>,
    drain_timeout: Option<HumanDuration>,
    opaque_drain_timeout: Option<HumanDuration>,
    state: Option<PathBuf>,
    locality: LocalityFile,
    gateway: Option<GatewayFile>,
    allow_from: Vec<Cidr>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleFile {
    #[default]
    Node,
    Sidecar,
    Gateway,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct IdentityFile {
    socket: Option<PathBuf>,
    files: Option<IdentityFilesFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFilesFile {
    certificate: PathBuf,
    key: PathBuf,
    bundles: BTreeMap<String, PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotFile {
    file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListenerFile {
    listen: SocketAddr,
    #[serde(deserialize_with = "parsed")]
    service: ServiceName,
    #[serde(deserialize_with = "parsed")]
    port: PortName,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LocalityFile {
    region: String,
    zone: String,
    host: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewayFile {
    #[serde(default)]
    id: Option<GatewayIdFile>,
    #[serde(default)]
    quic: Option<Listen>,
    tls: SocketAddr,
}

#[derive(Debug)]
struct GatewayIdFile(GatewayId);

impl<'de> Deserialize<'de> for GatewayIdFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(D::Error::custom)
    }
}

impl Config {
    /// Reads the file that the flags name, or the default one if it exists.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or says something that makes no sense.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let (file, path) = match &flags.config {
            Some(path) => (config::load(path)?, path.as_path()),
            None if default.exists() => (config::load(default)?, default),
            None => (ConfigFile::default(), default),
        };
        let mut config = file.checked(flags, &path.display().to_string())?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Files named in a file are relative to it, wherever the process runs.
    fn resolve(&mut self, dir: &Path) {
        let mut paths: Vec<&mut PathBuf> = Vec::new();
        if let IdentitySource::Files(files) = &mut self.identity {
            paths.extend([&mut files.certificate, &mut files.key]);
            paths.extend(files.bundles.iter_mut().map(|(_, path)| path));
        }
        if let SnapshotSource::File(path) = &mut self.snapshot {
            paths.push(path);
        }
        if let AccessLogTarget::File(path) = &mut self.access_log {
            paths.push(path);
        }
        paths.extend(&mut self.state);
        for path in paths {
            *path = dir.join(&*path);
        }
    }

    /// The same from a text; `name` is how errors call it.
    pub fn parse(text: &str, flags: &Flags, name: &str) -> Result<Self, ConfigError> {
        config::parse::<ConfigFile>(text, name)?.checked(flags, name)
    }
}

impl ConfigFile {
    fn checked(self, flags: &Flags, name: &str) -> Result<Config, ConfigError> {
        let gateway = matches!(self.role, RoleFile::Gateway);
        let gateway_id = self.gateway.as_ref().and_then(|g| g.id.as_ref()).map(|id| id.0.clone());
        let listen = |flag: Option<Listen>, file: Option<Listen>, default: Option<&str>| {
            let default = || default.and_then(|addr| addr.parse().ok());
            flag.or(file).map_or_else(default, |listen| listen.0)
        };
        let http_default = (!gateway).then_some("127.0.0.1:4140");
        let config = Config {
            role: self.role.into(),
            workers: workers(flags.workers.or(self.workers), name)?,
            http_listener: listen(flags.http_listener, self.http_listener, http_default),
            transparent: listen(flags.transparent, self.transparent, None),
            inbound: listen(flags.inbound, self.inbound, None),
            admin: listen(flags.admin, self.admin, Some("127.0.0.1:4191")),
            access_log: access_log(flags.access_log.as_ref().or(self.access_log.as_ref()), name)?,
            drain_timeout: self.drain_timeout.map_or(Duration::from_secs(20), Into::into),
            opaque_drain_timeout: self
                .opaque_drain_timeout
                .or(self.drain_timeout)
                .map_or(Duration::from_secs(20), Into::into),
            state: Some(self.state.unwrap_or_else(|| default_state(gateway))),
            locality: self.locality.checked(name)?,
            gateway_id,
            gateway: doors(self.gateway, gateway, name)?,
            listeners: listeners(self.listeners, name)?,
            allow_from: self.allow_from,
            identity: identity(self.identity, gateway, name)?,
            snapshot: match self.snapshot {
                Some(SnapshotFile { file }) => SnapshotSource::File(file),
                None => SnapshotSource::Federation,
            },
        };
        check_doors(&config, name)?;
        Ok(config)
    }
}

impl From<RoleFile> for Role {
    fn from(role: RoleFile) -> Self {
        match role {
            RoleFile::Node => Self::Node,
            RoleFile::Sidecar => Self::Sidecar,
            RoleFile::Gateway => Self::Gateway,
        }
    }
}

fn workers(written: Option<usize>, name: &str) -> Result<usize, ConfigError> {
    match written {
        None => Ok(thread::available_parallelism().map_or(1, |n| n.get().min(DEFAULT_WORKERS))),
        Some(n) if (1..=MAX_WORKERS).contains(&n) => Ok(n),
        Some(n) => {
            let problem = format!("{n}: must be 1 to {MAX_WORKERS}");
            Err(ConfigError::meaning(name, "workers", problem))
        }
    }
}

fn access_log(written: Option<&String>, name: &str) -> Result<AccessLogTarget, ConfigError> {
    match written.map(String::as_str) {
        None | Some("stdout") => Ok(AccessLogTarget::Stdout),
        Some("journald") => Ok(AccessLogTarget::Journald),
        Some("off") => Ok(AccessLogTarget::Off),
        Some(path) if path.contains('/') => Ok(AccessLogTarget::File(path.into())),
        Some(other) => {
            let problem =
                format!("{other:?}: write stdout, journald, off, or a path with a / in it");
            Err(ConfigError::meaning(name, "access_log", problem))
        }
    }
}

fn default_state(gateway: bool) -> PathBuf {
    PathBuf::from(if gateway { "/var/lib/isthmus/gateway" } else { "/var/lib/isthmus/proxy" })
}

impl LocalityFile {
    fn checked(self, name: &str) -> Result<Locality, ConfigError> {
        for (key, text) in [("region", &self.region), ("zone", &self.zone), ("host", &self.host)] {
            if text.len() > MAX_LOCALITY {
                let problem = format!("is longer than {MAX_LOCALITY} bytes");
                return Err(ConfigError::meaning(name, format!("locality.{key}"), problem));
            }
        }
        let Self { region, zone, host } = self;
        Ok(Locality { region: region.into(), zone: zone.into(), host: host.into() })
    }
}

fn doors(
    written: Option<GatewayFile>,
    gateway: bool,
    name: &str,
) -> Result<Option<GatewayDoors>, ConfigError> {
    match written {
        Some(GatewayFile { quic, tls, .. }) if gateway => {
            let quic = quic.and_then(|listen| listen.0);
            Ok(Some(GatewayDoors { quic, tls }))
        }
        None if gateway => {
            let problem = "role gateway needs where to listen, e.g. { quic: 0.0.0.0:8443, tls: 0.0.0.0:8443 }";
            Err(ConfigError::meaning(name, "gateway", problem))
        }
        Some(_) => {
            Err(ConfigError::meaning(name, "gateway", "is only for role gateway; remove it"))
        }
        None => Ok(None),
    }
}

fn listeners(written: Vec<ListenerFile>, name: &str) -> Result<Vec<ServiceListener>, ConfigError> {
    if written.len() > MAX_LISTENERS {
        let problem = format!("there are more than {MAX_LISTENERS}");
        return Err(ConfigError::meaning(name, "listeners", problem));
    }
    for (i, listener) in written.iter().enumerate() {
        let twice = |other: &ListenerFile| other.listen == listener.listen;
        if listener.listen.port() != 0 && written[..i].iter().any(twice) {
            let problem = format!("{} is there twice", listener.listen);
            return Err(ConfigError::meaning(name, format!("listeners[{i}].listen"), problem));
        }
    }
    let checked =
        |ListenerFile { listen, service, port }| ServiceListener { listen, service, port };
    Ok(written.into_iter().map(checked).collect())
}

fn identity(
    written: Option<IdentityFile>,
    gateway: bool,
    name: &str,
) -> Result<IdentitySource, ConfigError> {
    let default = if gateway { "gateway-identity.sock" } else { "identity.sock" };
    let default = || Path::new("/run/isthmus").join(default);
    let Some(IdentityFile { socket, files }) = written else {
        return Ok(IdentitySource::Socket(default()));
    };
    match (socket, files) {
        (Some(_), Some(_)) => {
            Err(ConfigError::meaning(name, "identity", "write either socket or files, not both"))
        }
        (None, Some(files)) => identity_files(files, name),
        (socket, None) => Ok(IdentitySource::Socket(socket.unwrap_or_else(default))),
    }
}

fn identity_files(written: IdentityFilesFile, name: &str) -> Result<IdentitySource, ConfigError> {
    let mut bundles = Vec::new();
    for (domain, file) in written.bundles {
        let key = format!("identity.files.bundles.{domain}");
        let domain: TrustDomain =
            domain.parse().map_err(|error| ConfigError::meaning(name, key, error))?;
        bundles.push((domain, file));
    }
    if bundles.is_empty() {
        let problem = "needs at least the roots of the own trust domain: <domain>: <file>";
        return Err(ConfigError::meaning(name, "identity.files.bundles", problem));
    }
    let IdentityFilesFile { certificate, key, .. } = written;
    Ok(IdentitySource::Files(IdentityFiles { certificate, key, bundles }))
}

/// Plaintext doors off loopback are open to everybody who can reach them.
fn check_doors(config: &Config, name: &str) -> Result<(), ConfigError> {
    let off_loopback = |addr: &SocketAddr| !addr.ip().to_canonical().is_loopback();
    if let Some(addr) = config.http_listener.filter(off_loopback)
        && config.allow_from.is_empty()
    {
        let problem = format!(
            "{addr} is reachable from other hosts, who would act with this proxy's identity; \
             say which may: allow_from: [<address or CIDR>, …]"
        );
        return Err(ConfigError::meaning(name, "http_listener", problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, &Flags::default(), "proxy.yaml")
    }

    #[test]
    fn nothing_written_is_a_node_of_this_machine() {
        let config = parse("").unwrap();
        assert_eq!(config.role, Role::Node);
        assert_eq!(config.http_listener, Some(([127, 0, 0, 1], 4140).into()));
        assert_eq!(config.admin, Some(([127, 0, 0, 1], 4191).into()));
        assert_eq!((config.transparent, config.inbound), (None, None));
        assert!((1..=DEFAULT_WORKERS).contains(&config.workers));
        let socket = Path::new("/run/isthmus/identity.sock");
        assert!(matches!(config.identity, IdentitySource::Socket(path) if path == socket));
        assert!(matches!(config.snapshot, SnapshotSource::Federation));
    }

    #[test]
    fn a_gateway_listens_where_it_says_and_nowhere_else() {
        let config = parse("role: gateway\ngateway: { quic: off, tls: 127.0.0.1:1 }").unwrap();
        assert_eq!(config.http_listener, None);
        let tls = ([127, 0, 0, 1], 1).into();
        assert_eq!(config.gateway, Some(GatewayDoors { quic: None, tls }));
    }

    #[test]
    fn flags_come_before_the_file() {
        let flags = Flags {
            http_listener: Some(Listen(Some(([127, 0, 0, 1], 9).into()))),
            admin: Some(Listen(None)),
            ..Flags::default()
        };
        let text = "http_listener: 127.0.0.1:8\nadmin: 127.0.0.1:7\ninbound: 127.0.0.1:6";
        let config = Config::parse(text, &flags, "proxy.yaml").unwrap();
        assert_eq!(config.http_listener, Some(([127, 0, 0, 1], 9).into()));
        assert_eq!(config.admin, None);
        assert_eq!(config.inbound, Some(([127, 0, 0, 1], 6).into()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_place() {
        let cases = [
            ("role: nod", "did you mean `node`"),
            ("http_listner: off", "proxy.yaml:1"),
            ("http_listner: off", "did you mean `http_listener`"),
            ("\nworkers: 0", "workers: 0: must be 1 to 64"),
            ("http_listener: 0.0.0.0:4140", "allow_from"),
            ("http_listener: localhost", "or off"),
            ("gateway: { tls: 127.0.0.1:1 }", "only for role gateway"),
            ("role: gateway", "needs where to listen"),
            ("access_log: syslog", "stdout, journald, off"),
            ("identity: { socket: /a, files: { certificate: a, key: b, bundles: {} } }", "either"),
            ("identity: { files: { certificate: a, key: b, bundles: {} } }", "at least"),
            ("identity: { files: { certificate: a, key: b, bundles: { A: c } } }", "bundles.A"),
            ("listeners: [{ listen: 127.0.0.1:1, service: a, port: b }]", "<name>.<namespace>"),
            (
                "listeners:\n- { listen: '127.0.0.1:1', service: a.b, port: c }\n\
                 - { listen: '127.0.0.1:1', service: a.c, port: c }",
                "listeners[1].listen: 127.0.0.1:1 is there twice",
            ),
            ("drain_timeout: 5", "duration"),
            ("allow_from: [10.0.0.0/40]", "prefix"),
        ];
        for (text, wanted) in cases {
            let error = parse(text).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(wanted), "{text}: {error}");
            assert_eq!(error.exit_code(), 78);
        }
    }
}
