//! `meshctl site`: a site of one's own, in a file and out of it.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::{Args, Subcommand};
use mesh_core::{GatewayId, SiteName, TrustDomain};
use serde::Serialize;

use super::backup::{Backup, Restore};
use crate::{
    endpoint::DEFAULT_RUN,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show},
};

/// Subcommands of `site`.
#[derive(Debug, Subcommand)]
pub enum Site {
    /// Make a site: root and issuing CA, federation.yaml, gateway.yaml
    Init(Box<Init>),
    /// Write everything that makes the site into one file, while it runs
    Backup(Backup),
    /// Make the site of a backup again
    Restore(Restore),
}

/// Arguments of `site init`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl site init west --trust-domain west.example --gateway-address gw.west.example:8443
  meshctl site init lab --trust-domain lab.example --state ./state --config ./etc --run ./run \\
      --listen 127.0.0.1:8446 --admin 127.0.0.1:8448 --gateway-address 127.0.0.1:8443")]
pub struct Init {
    /// Name of the site, one label
    name: SiteName,
    /// SPIFFE trust domain of the site; cannot be changed later
    #[arg(long)]
    trust_domain: TrustDomain,
    /// Where the CA keys and the authority log live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    state: PathBuf,
    /// Where federation.yaml and gateway.yaml are written
    #[arg(long, default_value = "/etc/isthmus", value_name = "DIR")]
    config: PathBuf,
    /// host:port at which machines and other sites reach the gateway, UDP and TCP; may be repeated [default: this host's name, port 8443]
    #[arg(long, value_name = "HOST:PORT")]
    gateway_address: Vec<String>,
    /// The same for UDP alone, where it differs
    #[arg(long, value_name = "HOST:PORT")]
    gateway_quic_address: Vec<String>,
    /// Where the gateway listens, UDP and TCP
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "IP:PORT")]
    gateway_listen: SocketAddr,
    /// Where the gateway serves /metrics /live /ready
    #[arg(long, default_value = "127.0.0.1:8449", value_name = "IP:PORT")]
    gateway_admin: SocketAddr,
    /// Where the gateway keeps its last snapshot
    #[arg(long, default_value = "/var/lib/isthmus/gateway", value_name = "DIR")]
    gateway_state: PathBuf,
    /// Name of the gateway, unique in the site
    #[arg(long, default_value = "gw1")]
    gateway_id: GatewayId,
    /// The gateway's access log [default: none]
    #[arg(long, value_name = "FILE")]
    gateway_access_log: Option<PathBuf>,
    /// Where federation serves gRPC to its gateways
    #[arg(long, default_value = "127.0.0.1:8446", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// Where federation serves /metrics /live /ready
    #[arg(long, default_value = "127.0.0.1:8448", value_name = "IP:PORT")]
    admin: SocketAddr,
}

impl Site {
    /// Does it.
    pub async fn run(self, format: Format, run: Option<&Path>) -> Result<(), Failure> {
        match self {
            Site::Init(init) => init.run(format, run.unwrap_or(Path::new(DEFAULT_RUN))),
            Site::Backup(backup) => backup.run(format),
            Site::Restore(restore) => restore.run(format),
        }
    }
}

/// A command of `federation`, which knows the state directory.
pub(super) fn federation(command: &str) -> Result<Command, Failure> {
    let mut federation = Command::new(crate::binary::find("federation")?);
    federation.arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(federation)
}

/// Waits for one; its refusal is ours.
pub(super) fn finish(name: &str, command: &mut Command) -> Result<std::process::Output, Failure> {
    let program = PathBuf::from(command.get_program());
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let output = output.map_err(|error| at(&program, &error))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("federation: ");
    let exit = match output.status.code() {
        Some(77) => Exit::NotPermitted,
        Some(78) => Exit::Config,
        _ => Exit::Failed,
    };
    Err(Failure::new(format!("federation {name}: {said}")).exit(exit))
}

impl Init {
    fn run(self, format: Format, run: &Path) -> Result<(), Failure> {
        let federation_yaml = self.config.join("federation.yaml");
        let gateway_yaml = self.config.join("gateway.yaml");
        for file in [&federation_yaml, &gateway_yaml] {
            if file.exists() {
                return Err(Failure::config(format!("{}: exists; nothing was changed", file.display()))
                    .remedy("this host has a site already; to begin anew move the file and the state directory away"));
            }
        }
        fs::create_dir_all(&self.config).map_err(|e| at(&self.config, &e))?;
        let root_fingerprint = self.make_authority()?;
        write_new(&federation_yaml, &yaml(&self.federation_config(run))?)?;
        write_new(&gateway_yaml, &yaml(&self.gateway_config(run))?)?;
        // The package's units make it, with the right owner.
        let packaged = self.config == Path::new("/etc/isthmus");
        if !packaged {
            fs::create_dir_all(&self.gateway_state).map_err(|e| at(&self.gateway_state, &e))?;
        }
        let start = if packaged {
            vec!["systemctl enable --now isthmus-federation isthmus-gateway".to_owned()]
        } else {
            vec![
                format!("federation --config {}", federation_yaml.display()),
                format!("edge-proxy --config {}", gateway_yaml.display()),
            ]
        };
        let made = Made {
            site: self.name.to_string(),
            trust_domain: self.trust_domain.to_string(),
            root_fingerprint,
            federation_config: federation_yaml,
            gateway_config: gateway_yaml,
            start,
        };
        output::print(format, &made)
    }

    /// Runs `federation init`, which makes the CA; returns what it says of the
    /// root.
    fn make_authority(&self) -> Result<String, Failure> {
        let mut command = federation("init")?;
        command
            .args(["--site", self.name.as_str(), "--trust-domain", self.trust_domain.as_str()])
            .arg("--state")
            .arg(&self.state);
        let said = finish("init", &mut command)?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
    }

    fn federation_config(&self, run: &Path) -> FederationConfig {
        let tls = self.reachable_at();
        let quic =
            if self.gateway_quic_address.is_empty() { &tls } else { &self.gateway_quic_address };
        FederationConfig {
            site: self.name.to_string(),
            trust_domain: self.trust_domain.to_string(),
            state: self.state.clone(),
            run: run.to_owned(),
            listen: self.listen,
            admin: self.admin,
            gateways: vec![GatewayEntry {
                id: self.gateway_id.to_string(),
                quic: quic.clone(),
                tls: tls.clone(),
            }],
        }
    }

    /// Where the gateway is reached over TCP.
    fn reachable_at(&self) -> Vec<String> {
        if !self.gateway_address.is_empty() {
            return self.gateway_address.clone();
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        vec![format!("{host}:{}", self.gateway_listen.port())]
    }

    fn gateway_config(&self, run: &Path) -> GatewayConfig {
        GatewayConfig {
            role: "gateway",
            identity: IdentityConfig { socket: run.join("gateway-identity.sock") },
            gateway: GatewayListen { quic: self.gateway_listen, tls: self.gateway_listen },
            admin: self.gateway_admin,
            state: self.gateway_state.clone(),
            access_log: self.gateway_access_log.clone(),
        }
    }
}

#[derive(Debug, Serialize)]
struct FederationConfig {
    site: String,
    trust_domain: String,
    state: PathBuf,
    run: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
    gateways: Vec<GatewayEntry>,
}

#[derive(Debug, Serialize)]
struct GatewayEntry {
    id: String,
    quic: Vec<String>,
    tls: Vec<String>,
}

#[derive(Debug, Serialize)]
struct GatewayConfig {
    role: &'static str,
    identity: IdentityConfig,
    gateway: GatewayListen,
    admin: SocketAddr,
    state: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_log: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct IdentityConfig {
    socket: PathBuf,
}

#[derive(Debug, Serialize)]
struct GatewayListen {
    quic: SocketAddr,
    tls: SocketAddr,
}

#[derive(Debug, Serialize)]
struct Made {
    site: String,
    trust_domain: String,
    root_fingerprint: String,
    federation_config: PathBuf,
    gateway_config: PathBuf,
    /// Commands, in order.
    start: Vec<String>,
}

impl Show for Made {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let mut text = format!(
            "Site {} of trust domain {}\n  root {}\n  {}\n  {}\nStart it:\n",
            paint.bold(&self.site),
            self.trust_domain,
            self.root_fingerprint,
            self.federation_config.display(),
            self.gateway_config.display(),
        );
        for command in &self.start {
            text.push_str(&format!("  {command}\n"));
        }
        text.push_str("Then prove it:\n  meshctl check\n");
        text
    }
}

fn yaml<T: Serialize>(config: &T) -> Result<String, Failure> {
    serde_yaml_ng::to_string(config).map_err(Failure::new)
}

/// Writes a file that must not exist yet.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let file = fs::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|error| at(path, &error))
}

fn at(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(format!("{}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => failure
            .exit(Exit::NotPermitted)
            .remedy("use sudo, or name directories of your own with --state, --config and --run"),
        _ => failure,
    }
}
