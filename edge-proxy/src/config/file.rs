//! What was written in `proxy.yaml` and said beside it means this.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use mesh_core::{Locality, TrustDomain};
use mesh_runtime::config::{self, ConfigError};

use super::{
    AccessLogTarget, Attest, Config, Flags, GatewayDoors, IdentitySource, Manner, Role,
    ServiceListener, SnapshotSource,
    flags::PortAddr,
    manner::{Errors, Paths},
    sni, transition,
    written::{
        AttestFile, ConfigFile, GatewayFile, IdentityFile, IdentityFilesFile, Listen, ListenerFile,
        LocalityFile, RoleFile, SnapshotFile,
    },
};
use crate::files::IdentityFiles;

/// Read when `--config` is not given, if it exists.
pub const DEFAULT_FILE: &str = "/etc/isthmus/proxy.yaml";
/// Workers by default: more rarely help a proxy beside an application.
const DEFAULT_WORKERS: usize = 4;
/// As long as a client that polls, or a person at a shell, may take to come
/// anew.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(15 * 60);
/// More workers than this are a mistake.
const MAX_WORKERS: usize = 64;
/// Listeners of one proxy.
const MAX_LISTENERS: usize = 256;
/// The longest name of a region, zone or host, in bytes.
const MAX_LOCALITY: usize = 64;

impl Config {
    /// Reads the file that the flags name, or the default one if it exists.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or says something that makes no sense.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let (text, path) = match &flags.config {
            Some(path) => (config::read(path)?, path.as_path()),
            None if default.exists() => (config::read(default)?, default),
            None => (String::new(), default),
        };
        let mut config = Self::parse(&text, flags, &path.display().to_string())?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        Ok(config)
    }

    /// Files named in a file are relative to it, wherever the process runs.
    fn resolve(&mut self, dir: &Path) {
        let mut paths: Vec<&mut PathBuf> = Vec::new();
        match &mut self.identity {
            IdentitySource::Files(files) => {
                paths.extend([&mut files.certificate, &mut files.key]);
                paths.extend(files.bundles.iter_mut().map(|(_, path)| path));
            }
            IdentitySource::Attest(attest) => paths.extend([&mut attest.token, &mut attest.roots]),
            IdentitySource::Socket(_) | IdentitySource::None | IdentitySource::Given => {}
        }
        for tls in self.listeners.iter_mut().filter_map(|listener| listener.tls.as_mut()) {
            paths.extend(tls.paths());
        }
        if let SnapshotSource::File { path, .. } = &mut self.snapshot {
            paths.push(path);
        }
        if let AccessLogTarget::File(path) = &mut self.access_log {
            paths.push(path);
        }
        paths.extend(&mut self.state);
        paths.extend(&mut self.control_socket);
        paths.extend(&mut self.names_file);
        for path in paths {
            *path = dir.join(&*path);
        }
    }

    /// The same from a text; `name` is how errors call it.
    ///
    /// # Errors
    ///
    /// It, or a flag, says something that makes no sense.
    pub fn parse(text: &str, flags: &Flags, name: &str) -> Result<Self, ConfigError> {
        let set = flags.settings()?;
        let file: ConfigFile = config::parse_set(text, name, &set)?;
        file.checked(flags, name).map_err(|error| config::blame(error, &set))
    }
}

impl ConfigFile {
    fn checked(self, flags: &Flags, name: &str) -> Result<Config, ConfigError> {
        let gateway = matches!(self.role, RoleFile::Gateway);
        let gateway_id = self.gateway.as_ref().and_then(|g| g.id.as_ref()).map(|id| id.0.clone());
        let listen = |file: Option<Listen>, default: Option<&str>| {
            let default = || default.and_then(|addr| addr.parse().ok());
            file.map_or_else(default, |listen| listen.0)
        };
        let http_default = (!gateway).then_some("127.0.0.1:4140");
        let config = Config {
            role: self.role.into(),
            workers: workers(self.workers, name)?,
            http_listener: listen(self.http_listener, http_default),
            transparent: listen(self.transparent, None),
            inbound: listen(self.inbound, None),
            inbound_transparent: listen(self.inbound_transparent, None),
            inbound_probes: self.inbound_probes,
            admin: listen(self.admin, Some("127.0.0.1:4191")),
            access_log: access_log(self.access_log.as_ref(), name)?,
            access_log_format: self.access_log_format,
            tracing: self.tracing.map(|tracing| tracing.checked(name)).transpose()?,
            statsd: self.statsd,
            control_socket: self.control_socket,
            names_file: self.names_file,
            memory_limit: self.memory_limit_mib.map(|mib| u64::from(mib.get()) << 20),
            drain_timeout: self.drain_timeout.map_or(Duration::from_secs(20), Into::into),
            opaque_drain_timeout: self
                .opaque_drain_timeout
                .or(self.drain_timeout)
                .map_or(Duration::from_secs(20), Into::into),
            handover_timeout: self.handover_timeout.map_or(HANDOVER_TIMEOUT, Into::into),
            state: Some(self.state.unwrap_or_else(|| default_state(gateway))),
            locality: self.locality.checked(name)?,
            gateway_id,
            gateway: doors(self.gateway, gateway, name)?,
            inbound_plaintext: listeners(self.inbound_plaintext, &[], "inbound_plaintext", name)?,
            listeners: listeners(self.listeners, &flags.listener, "listeners", name)?,
            sni_listeners: self.sni_listeners,
            forwarded: self.forwarded,
            has_successor: self.has_successor,
            forwarded_client_cert: self.forwarded_client_cert,
            allow_from: self.allow_from,
            dtab_overrides: self.dtab_overrides,
            identity: identity(self.identity, self.snapshot.is_some(), gateway, name)?,
            snapshot: match self.snapshot {
                Some(SnapshotFile { file: path }) => {
                    SnapshotSource::File { path, set: flags.site_settings()? }
                }
                None => SnapshotSource::Federation,
            },
        };
        sni::check(&config.sni_listeners, name)?;
        check_plaintext(&config, name)?;
        transition::check(&config, name)?;
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
        Some("stderr") => Ok(AccessLogTarget::Stderr),
        Some("journald") => Ok(AccessLogTarget::Journald),
        Some("off") => Ok(AccessLogTarget::Off),
        Some(path) if path.contains('/') => Ok(AccessLogTarget::File(path.into())),
        Some(other) => {
            let problem =
                format!("{other:?}: write stdout, stderr, journald, off, or a path with a / in it");
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

fn listeners(
    mut written: Vec<ListenerFile>,
    flags: &[PortAddr],
    key: &str,
    name: &str,
) -> Result<Vec<ServiceListener>, ConfigError> {
    for PortAddr { service, port, addr } in flags.iter().cloned() {
        let same = |one: &&mut ListenerFile| one.service == service && one.port == port;
        match written.iter_mut().find(same) {
            Some(written) => written.listen = addr,
            None => written.push(ListenerFile::plain(addr, service, port)),
        }
    }
    if written.len() > MAX_LISTENERS {
        let problem = format!("there are more than {MAX_LISTENERS}");
        return Err(ConfigError::meaning(name, key, problem));
    }
    for (i, listener) in written.iter().enumerate() {
        let twice = |other: &ListenerFile| other.listen == listener.listen;
        if listener.listen.port() != 0 && written[..i].iter().any(twice) {
            let problem = format!("{} is there twice", listener.listen);
            return Err(ConfigError::meaning(name, format!("{key}[{i}].listen"), problem));
        }
    }
    let checked = |one: ListenerFile| {
        let manner = Manner {
            paths: one.paths.unwrap_or_default(),
            forwarded: one.forwarded,
            headers_with_underscores: one.headers_with_underscores,
            errors: one.errors,
        };
        let ListenerFile { listen, service, port, tls, .. } = one;
        ServiceListener { listen, service, port, tls, manner }
    };
    Ok(written.into_iter().map(checked).collect())
}

fn identity(
    written: Option<IdentityFile>,
    alone: bool,
    gateway: bool,
    name: &str,
) -> Result<IdentitySource, ConfigError> {
    let default = if gateway { "gateway-identity.sock" } else { "identity.sock" };
    let default = || Path::new("/run/isthmus").join(default);
    let Some(IdentityFile { socket, files, attest }) = written else {
        // Whether that does is known when the snapshot has been read.
        return Ok(if alone { IdentitySource::None } else { IdentitySource::Socket(default()) });
    };
    match (socket, files, attest) {
        (None, Some(files), None) => identity_files(files, name),
        (None, None, Some(attest)) => identity_attest(attest, name),
        (socket, None, None) => Ok(IdentitySource::Socket(socket.unwrap_or_else(default))),
        _ => Err(ConfigError::meaning(name, "identity", "write one of socket, files and attest")),
    }
}

fn identity_attest(written: AttestFile, name: &str) -> Result<IdentitySource, ConfigError> {
    let AttestFile { token, roots, federation, trust_domain } = written;
    if !is_host_port(&federation) {
        let problem = format!("{federation:?} is no <host>:<port>");
        return Err(ConfigError::meaning(name, "identity.attest.federation", problem));
    }
    let federation = federation.into();
    Ok(IdentitySource::Attest(Attest { token, roots, federation, trust_domain }))
}

fn is_host_port(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    text.rsplit_once(':').is_some_and(|(host, number)| !host.is_empty() && port(number))
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

/// Nobody of the mesh knows certificates of others: whoever shows one is no
/// caller that a policy could name. Policies see paths by themselves.
fn check_plaintext(config: &Config, name: &str) -> Result<(), ConfigError> {
    for (i, listener) in config.inbound_plaintext.iter().enumerate() {
        let key = match listener {
            ServiceListener { tls: Some(_), .. } => "tls",
            ServiceListener { manner: Manner { forwarded: Some(_), .. }, .. } => "forwarded",
            ServiceListener { manner: Manner { paths, .. }, .. } if *paths != Paths::default() => {
                "paths"
            }
            ServiceListener { manner: Manner { errors: Errors::Brief, .. }, .. } => "errors",
            ServiceListener { manner, .. } if *manner != Manner::default() => {
                "headers_with_underscores"
            }
            _ => continue,
        };
        let problem = "is only for `listeners`; remove it, or write the listener there";
        return Err(ConfigError::meaning(name, format!("inbound_plaintext[{i}].{key}"), problem));
    }
    Ok(())
}

/// Plaintext doors off loopback are open to everybody who can reach them, and
/// whom the mesh calls must show who it is.
fn check_doors(config: &Config, name: &str) -> Result<(), ConfigError> {
    let off_loopback = |addr: &SocketAddr| !addr.ip().to_canonical().is_loopback();
    let http = config.http_listener.map(|addr| ("http_listener", addr));
    let sni = config.sni_listeners.iter().map(|listener| ("sni_listeners", listener.listen));
    let open = http.into_iter().chain(sni).find(|(_, addr)| off_loopback(addr));
    if let Some((key, addr)) = open
        && config.allow_from.is_empty()
    {
        let problem = format!(
            "{addr} is reachable from other hosts, who would act with this proxy's identity; \
             say which may: allow_from: [<address or CIDR>, …]"
        );
        return Err(ConfigError::meaning(name, key, problem));
    }
    let door = match (config.role, config.inbound) {
        (Role::Gateway, _) => "role gateway",
        (_, Some(_)) => "inbound",
        (_, None) if !config.inbound_plaintext.is_empty() => "inbound_plaintext",
        (_, None) if config.inbound_transparent.is_some() => "inbound_transparent",
        (_, None) => return Ok(()),
    };
    match config.identity {
        IdentitySource::None => {
            let problem = format!(
                "{door} needs one: write {{ files: {{ certificate, key, bundles }} }} or \
                 {{ socket: <path> }}"
            );
            Err(ConfigError::meaning(name, "identity", problem))
        }
        IdentitySource::Socket(_)
        | IdentitySource::Attest(_)
        | IdentitySource::Files(_)
        | IdentitySource::Given => Ok(()),
    }
}

#[cfg(test)]
mod tests;
