//! The binary itself, and the files that it reads.

use std::{
    collections::HashMap, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path,
    process::Stdio, time::Duration,
};

use mesh_tunnel::Svid;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};

use super::{DOMAIN, SITE, pki::Authority};

/// `EDGE_PROXY` names another build of it, for figures.
pub fn command(config: &Path) -> Command {
    let built = std::env::var_os("EDGE_PROXY");
    let mut command =
        Command::new(built.unwrap_or_else(|| env!("CARGO_BIN_EXE_edge-proxy").into()));
    command
        .arg("--config")
        .arg(config)
        .env("ISTHMUS_LOG", "info")
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Certificate, key and roots of an account, as PEM files.
pub fn write_identity(dir: &Path, authority: &Authority, account: &str) {
    write_identity_of(dir, &authority.workload(account), account);
    write_root(dir, authority, "root");
}

pub fn write_root(dir: &Path, authority: &Authority, name: &str) {
    let root = rcgen_pem("CERTIFICATE", &authority.root());
    std::fs::write(dir.join(format!("{name}.pem")), root).unwrap();
}

/// Certificate and key.
pub fn write_identity_of(dir: &Path, svid: &Svid, name: &str) {
    let pem = |der: &[u8]| rcgen_pem("CERTIFICATE", der);
    let chain: String = svid.chain.iter().map(|certificate| pem(certificate)).collect();
    std::fs::write(dir.join(format!("{name}.pem")), chain).unwrap();
    let key = dir.join(format!("{name}.key"));
    std::fs::write(&key, rcgen_pem("PRIVATE KEY", svid.key.secret_der())).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
}

/// RFC 7468.
fn rcgen_pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for three in line.chunks(3) {
            let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
            let bits = bits << (8 * (3 - three.len()));
            for place in 0..4 {
                let index = (bits >> (18 - 6 * place)) as usize & 63;
                text.push(if place <= three.len() { ALPHABET[index].into() } else { '=' });
            }
        }
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

pub fn write_config(dir: &Path, account: &str, rest: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{account}.yaml"));
    let text = format!(
        "identity:\n  files:\n    certificate: {account}.pem\n    key: {account}.key\n    \
         bundles: {{ {DOMAIN}: root.pem }}\nsnapshot: {{ file: site.yaml }}\nworkers: 2\n\
         admin: 127.0.0.1:0\naccess_log: ./{account}.log\ndrain_timeout: 20s\n{rest}"
    );
    std::fs::write(&path, text).unwrap();
    path
}

pub fn write_site(dir: &Path, proxy: Option<SocketAddr>, target: SocketAddr) {
    let proxy = proxy.map(|addr| format!("proxy: {addr}\n        ")).unwrap_or_default();
    let text = format!(
        "site: {SITE}\ntrust_domain: {DOMAIN}\nservices:\n  - name: orders.shop\n    ports: \
         [{{ name: http, port: 80, protocol: http }}]\n    endpoints:\n      - port: http\n        \
         identity: spiffe://{DOMAIN}/ns/shop/sa/orders\n        {proxy}\
         target: {target}\n"
    );
    std::fs::write(dir.join("site.yaml"), text).unwrap();
}

/// A running process, where it listens, and what it has said.
pub struct Running {
    pub child: Child,
    pub listeners: HashMap<String, SocketAddr>,
    said: watch::Receiver<String>,
}

impl Running {
    /// Waits until it has started.
    pub async fn start(config: &Path) -> Self {
        let mut child = command(config).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (say, said) = watch::channel(String::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                say.send_modify(|text| *text += &(line + "\n"));
            }
        });
        let mut running = Self { child, listeners: HashMap::new(), said };
        running.wait_for("started").await;
        running.listeners = running.log().lines().filter_map(listener).collect();
        running
    }

    /// All that it has said, and its successors.
    pub fn log(&self) -> String {
        self.said.borrow().clone()
    }

    /// Waits until it has said this.
    pub async fn wait_for(&mut self, text: &str) {
        let said = self.said.wait_for(|said| said.contains(text));
        let waited = tokio::time::timeout(Duration::from_secs(20), said).await;
        let found = waited.is_ok_and(|said| said.is_ok());
        assert!(found, "it does not say {text:?}: {}", self.log());
    }

    pub fn signal(&self, signal: Signal) {
        signal_to(self.child.id().unwrap(), signal);
    }

    /// Its log when it has ended by itself, well.
    pub async fn ended(&mut self) -> String {
        let status = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it goes on: {}", self.log())).unwrap();
        // Nobody holds the other end any more, or only a successor.
        let said = self.said.wait_for(|said| said.contains("stopped"));
        let _ = tokio::time::timeout(Duration::from_secs(10), said).await;
        assert!(status.success(), "{}", self.log());
        self.log()
    }
}

/// No successor outlives the test.
impl Drop for Running {
    fn drop(&mut self) {
        let log = self.log();
        for named in log.split("successor=").skip(1) {
            let pid = named.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            let pid = pid.parse().ok().and_then(Pid::from_raw);
            // It may have ended.
            let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
    }
}

/// Sends a signal to a process that need not be a child.
pub fn signal_to(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn listener(line: &str) -> Option<(String, SocketAddr)> {
    let field = |name: &str| {
        let found = line.split_once(&format!("{name}="))?.1;
        Some(found.split(' ').next().unwrap_or(found).trim_matches('"').to_owned())
    };
    Some((field("listener")?, field("addr")?.parse().ok()?))
}
