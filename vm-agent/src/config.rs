//! What was written in `agent.yaml` and on the command line, and what it
//! means.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use mesh_core::address::{self, Place};
use mesh_runtime::config::{self, ConfigError, HumanDuration};
use serde::Deserialize;

use crate::attest::Selector;

/// Read when `--config` is not given, if it exists.
pub const DEFAULT_FILE: &str = "/etc/isthmus/agent.yaml";
/// Who runs the proxy of this machine, as the packages install it: node or
/// gateway.
const PACKAGED_USERS: [&str; 2] = ["isthmus-proxy", "isthmus-gateway"];
/// The longest name of a region or zone, in bytes.
const MAX_LOCALITY: usize = 64;

/// Owns one machine of the Isthmus mesh: identity, registrations, health checks.
///
/// Examples:
///   vm-agent
///   vm-agent --config /etc/isthmus/agent.yaml
///   vm-agent --state ./state --run ./run --services ./services.d
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "vm-agent", version, verbatim_doc_comment, args_conflicts_with_subcommands = true)]
pub struct Flags {
    /// What else this program does.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Configuration file [default: /etc/isthmus/agent.yaml, if it exists]
    #[arg(long, value_name = "FILE", env = "ISTHMUS_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Directory of this machine's key and certificate
    #[arg(long, value_name = "DIR", env = "ISTHMUS_AGENT_STATE")]
    pub state: Option<PathBuf>,
    /// Directory of agent.sock and identity.sock
    #[arg(long, value_name = "DIR", env = "ISTHMUS_AGENT_RUN")]
    pub run: Option<PathBuf>,
    /// Directory of the files that describe this machine's services
    #[arg(long, value_name = "DIR", env = "ISTHMUS_AGENT_SERVICES")]
    pub services: Option<PathBuf>,
    /// Where other machines reach this one's proxy, if they can
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_AGENT_ADVERTISE")]
    pub advertise: Option<SocketAddr>,
    /// Where to serve /metrics, /live and /ready
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_AGENT_ADMIN")]
    pub admin: Option<SocketAddr>,
}

/// What else this program does.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Tell the kernel which connections of this machine go to its proxy
    ///
    /// A process of its own, because it alone needs CAP_NET_ADMIN. It does what
    /// `meshctl vm capture` asks for, and after a boot what was confirmed before.
    Capture(CaptureFlags),
    /// Move what a legacy proxy of this machine does to a proxy of ours, and back
    ///
    /// A process of its own, because it changes the kernel's rules and starts and
    /// stops programs. It does what `meshctl migrate` asks for, and after a boot
    /// what was decided before.
    Migrate(MigrateFlags),
    /// Say which virtual addresses names of the mesh have
    ///
    /// A process of its own, because anybody on the machine may ask it. What
    /// asks: systemd-resolved for the domain `mesh`, by itself; dnsmasq with
    /// `server=/mesh/127.240.0.53#4153`; others with `nameserver 127.240.0.53`
    /// as the first in resolv.conf. Of other names it knows nothing, and who
    /// asks for them asks the next server.
    Dns(DnsFlags),
    /// Run the command of one health check, for the agent
    ///
    /// By isthmus-check.socket, as root: the agent says on standard input which
    /// instance, the file of the service, which only root may have written, says
    /// what is run by whom, and systemd runs it in a unit of its own.
    CheckExec(CheckExecFlags),
}

/// Of `vm-agent dns`.
#[derive(Debug, Clone, Args)]
pub struct DnsFlags {
    /// What the proxy of this machine writes (`names_file` in proxy.yaml)
    #[arg(long, value_name = "FILE", default_value = "/run/isthmus/names")]
    pub names: PathBuf,
    /// Where to answer [default: 127.240.0.53:4153, and at port 53 if that is free]
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<SocketAddr>,
}

/// Of `vm-agent check-exec`.
#[derive(Debug, Clone, Args)]
pub struct CheckExecFlags {
    /// Configuration file of the agent [default: /etc/isthmus/agent.yaml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The unit that this is: the command ends with it
    #[arg(long, value_name = "UNIT")]
    pub unit: String,
}

/// Of `vm-agent migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateFlags {
    /// Directory of migrate.sock
    #[arg(long, value_name = "DIR", env = "ISTHMUS_AGENT_RUN", default_value = "/run/isthmus")]
    pub run: PathBuf,
    /// Directory of what was decided
    #[arg(long, value_name = "DIR", default_value = "/var/lib/isthmus/migrate")]
    pub state: PathBuf,
    /// Let the legacy proxies serve again, leave nothing, and end
    #[arg(long)]
    pub remove: bool,
    /// The proxy, where there is no systemd [default: beside this program]
    #[arg(long, value_name = "FILE")]
    pub edge_proxy: Option<PathBuf>,
}

/// Of `vm-agent capture`.
#[derive(Debug, Clone, Args)]
pub struct CaptureFlags {
    /// What is captured
    #[arg(long, value_name = "FILE", default_value = "/etc/isthmus/capture.yaml")]
    pub rules: PathBuf,
    /// Directory of capture.sock
    #[arg(long, value_name = "DIR", env = "ISTHMUS_AGENT_RUN", default_value = "/run/isthmus")]
    pub run: PathBuf,
    /// Directory of what was confirmed
    #[arg(long, value_name = "DIR", default_value = "/var/lib/isthmus/capture")]
    pub state: PathBuf,
    /// Take out the link and the routes that another process has left, and end
    #[arg(long)]
    pub remove: bool,
}

/// What was written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ConfigFile {
    state: Option<PathBuf>,
    run: Option<PathBuf>,
    services: Option<PathBuf>,
    advertise: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    locality: LocalityFile,
    identity_uids: Vec<u32>,
    identity_users: Option<Vec<String>>,
    machine_id_file: Option<PathBuf>,
    renew_after: Option<HumanDuration>,
    workload_api: Vec<Selector>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LocalityFile {
    region: String,
    zone: String,
}

/// What it means.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds key and certificate; the agent's own, mode 0700.
    pub state: PathBuf,
    /// Holds `agent.sock` and `identity.sock`.
    pub run: PathBuf,
    /// Holds `*.yaml`, one service each.
    pub services: PathBuf,
    /// Where other machines reach this one's proxy, if they can.
    pub advertise: Option<SocketAddr>,
    /// `/metrics /live /ready`.
    pub admin: Option<SocketAddr>,
    /// Empty if unknown.
    pub region: String,
    /// Empty if unknown.
    pub zone: String,
    /// Who may use `identity.sock`, besides root and the agent's own user.
    pub identity_uids: Vec<u32>,
    /// The same by name; names that do not exist are nobody.
    pub identity_users: Vec<String>,
    /// What tells this machine from a copy of it.
    pub machine_id_file: PathBuf,
    /// Age at which the node's certificate is renewed.
    pub renew_after: Duration,
    /// Who gets this machine's identity over the SPIFFE Workload API; nobody by
    /// default.
    pub workload_api: Vec<Selector>,
}

/// A node certificate lives 30 days; renewing daily leaves 29 for repairs.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Renewing more often than this only wears out the disk of federation.
const MIN_RENEW_AFTER: Duration = Duration::from_secs(1);
/// Half of a certificate's life.
const MAX_RENEW_AFTER: Duration = Duration::from_secs(15 * 24 * 3600);

impl Config {
    /// Flags and environment before the file before defaults.
    ///
    /// # Errors
    ///
    /// Nothing is bound or written yet; the process should exit with
    /// [`ConfigError::exit_code`].
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let path = flags.config.as_deref().unwrap_or(default);
        let file = if flags.config.is_none() && !default.exists() {
            ConfigFile::default()
        } else {
            config::load(path)?
        };
        Self::merge(flags, file, &path.display().to_string())
    }

    fn merge(flags: &Flags, file: ConfigFile, name: &str) -> Result<Self, ConfigError> {
        let path = |flag: &Option<PathBuf>, file: Option<PathBuf>, default: &str| {
            flag.clone().or(file).unwrap_or_else(|| default.into())
        };
        let config = Self {
            state: path(&flags.state, file.state, "/var/lib/isthmus/agent"),
            run: path(&flags.run, file.run, "/run/isthmus"),
            services: path(&flags.services, file.services, "/etc/isthmus/services.d"),
            advertise: flags.advertise.or(file.advertise),
            admin: flags.admin.or(file.admin),
            region: file.locality.region,
            zone: file.locality.zone,
            identity_uids: file.identity_uids,
            identity_users: file
                .identity_users
                .unwrap_or_else(|| PACKAGED_USERS.map(String::from).into()),
            machine_id_file: file.machine_id_file.unwrap_or_else(|| "/etc/machine-id".into()),
            renew_after: file.renew_after.map_or(RENEW_AFTER, Into::into),
            workload_api: file.workload_api,
        };
        config.check(name)?;
        Ok(config)
    }

    fn check(&self, file: &str) -> Result<(), ConfigError> {
        // The site knows whether loopback is its network, and its own ports.
        let place = Place { loopback: true, listens: &[], has: &|_| false };
        if let Some(addr) = self.advertise
            && let Err(problem) = address::check(addr, place)
        {
            let problem = format!("{addr}: {problem}; write this machine's own address");
            return Err(ConfigError::meaning(file, "advertise", problem));
        }
        for (key, value) in [("locality.region", &self.region), ("locality.zone", &self.zone)] {
            if value.len() > MAX_LOCALITY || !value.bytes().all(|b| b.is_ascii_graphic()) {
                let problem = format!("must be at most {MAX_LOCALITY} printable ASCII bytes");
                return Err(ConfigError::meaning(file, key, problem));
            }
        }
        if self.workload_api.iter().any(Selector::is_empty) {
            let problem = "an entry without `unit`, `user` or `group` would be everybody";
            return Err(ConfigError::meaning(file, "workload_api", problem));
        }
        if !(MIN_RENEW_AFTER..=MAX_RENEW_AFTER).contains(&self.renew_after) {
            let problem = "must be 1s to 15d: a node certificate lives 30 days";
            return Err(ConfigError::meaning(file, "renew_after", problem));
        }
        Ok(())
    }

    /// The door of `meshctl`.
    pub fn agent_socket(&self) -> PathBuf {
        self.run.join("agent.sock")
    }

    /// The door of programs that speak the SPIFFE Workload API.
    pub fn workload_socket(&self) -> PathBuf {
        self.run.join("workload.sock")
    }

    /// The door behind which commands of health checks are run.
    pub fn check_socket(&self) -> PathBuf {
        self.run.join("check.sock")
    }

    /// The door of this machine's proxy.
    pub fn identity_socket(&self) -> PathBuf {
        self.run.join("identity.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, flags: &Flags) -> Result<Config, ConfigError> {
        Config::merge(flags, config::parse(text, "agent.yaml")?, "agent.yaml")
    }

    #[test]
    fn nothing_written_means_the_documented_paths() {
        let config = parse("", &Flags::default()).unwrap();
        assert_eq!(config.state, Path::new("/var/lib/isthmus/agent"));
        assert_eq!(config.agent_socket(), Path::new("/run/isthmus/agent.sock"));
        assert_eq!(config.identity_socket(), Path::new("/run/isthmus/identity.sock"));
        assert_eq!(config.services, Path::new("/etc/isthmus/services.d"));
        assert_eq!(config.identity_users, PACKAGED_USERS);
        assert_eq!(config.renew_after, Duration::from_secs(86400));
        assert_eq!((config.advertise, config.admin), (None, None));
    }

    #[test]
    fn flags_come_before_the_file() {
        let text = "state: /a\nrun: /b\nadvertise: 10.0.0.5:4143\nrenew_after: 2h\n\
                    locality: { region: eu, zone: eu-1 }\nidentity_uids: [7]\n";
        let flags = Flags { state: Some("/c".into()), ..Flags::default() };
        let config = parse(text, &flags).unwrap();
        assert_eq!((config.state, config.run), ("/c".into(), "/b".into()));
        assert_eq!(config.advertise, Some("10.0.0.5:4143".parse().unwrap()));
        assert_eq!((config.region.as_str(), config.zone.as_str()), ("eu", "eu-1"));
        assert_eq!(config.identity_uids, [7]);
        assert_eq!(config.renew_after, Duration::from_secs(7200));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("stat: /a\n", "agent.yaml:1:1: ", "did you mean `state`?"),
            ("locality:\n  zome: a\n", "agent.yaml:2:3: ", "did you mean `zone`?"),
            ("advertise: here\n", "agent.yaml:1:12: ", "invalid socket address"),
            ("advertise: 0.0.0.0:4143\n", "agent.yaml: advertise: ", "own address"),
            ("advertise: 10.0.0.5:0\n", "agent.yaml: advertise: ", "own address"),
            ("advertise: 169.254.169.254:80\n", "agent.yaml: advertise: ", "link-local"),
            ("locality: { zone: 'a b' }\n", "agent.yaml: locality.zone: ", "printable"),
            ("renew_after: 40d\n", "agent.yaml: renew_after: ", "30 days"),
            ("workload_api: [{}]\n", "agent.yaml: workload_api: ", "everybody"),
            ("workload_api: [{ unti: a }]\n", "agent.yaml:1:", "did you mean `unit`?"),
            ("renew_after: 1ms\n", "agent.yaml: renew_after: ", "1s to 15d"),
        ];
        for (text, place, remedy) in cases {
            let shown = parse(text, &Flags::default()).unwrap_err().to_string();
            assert!(shown.starts_with(place) && shown.contains(remedy), "{text:?}: {shown}");
        }
    }

    #[test]
    fn a_named_file_must_exist() {
        let flags = Flags { config: Some("/nonexistent/agent.yaml".into()), ..Flags::default() };
        assert_eq!(Config::load(&flags).unwrap_err().exit_code(), 78);
    }
}
