//! Our proxy that takes a legacy proxy's place: a process of its own, which runs on
//! whatever happens to this one. systemd supervises it where there is one.

use std::{
    fs::OpenOptions,
    io,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use mesh_api::v1::TransitionTls;
use mesh_runtime::{config, files};
use mesh_tunnel::RealNet;
use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{net::TcpStream, process::Command, time::timeout};

use super::{
    super::capture::proxy::is_ready,
    record::{Listener, MAX_LISTENERS, Moves, Record},
    sockets,
};

/// The unit of a proxy that takes a legacy proxy's place.
const UNIT: &str = "isthmus-front@";
/// For one answer of its admin port.
const ASK: Duration = Duration::from_secs(2);
/// Of its figures, in bytes.
const MAX_FIGURES: usize = 16 << 20;
/// For systemctl, which waits until a unit has started.
const START: Duration = Duration::from_secs(40);
/// After SIGTERM, for what runs.
const STOP: Duration = Duration::from_secs(35);
/// Its number, in the directory of the move.
const PID_FILE: &str = "proxy.pid";
const LOG_FILE: &str = "proxy.log";

/// What our proxy has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests and connections that have ended.
    pub requests: u64,
    /// Of those, what failed.
    pub failures: u64,
    /// 99 of 100 heads of answers came within so many milliseconds.
    pub p99_ms: u32,
}

/// What our proxy says of itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// What it has done so far.
    pub figures: Figures,
    /// TLS with certificates that are not of the mesh, and when it ends.
    pub transitions: Vec<TransitionTls>,
}

/// Who starts and stops it.
#[derive(Debug, Clone)]
pub struct Supervisor {
    /// The program, where there is no systemd.
    pub program: PathBuf,
    /// systemd runs this machine.
    pub systemd: bool,
}

impl Supervisor {
    /// What this machine has.
    pub fn find(program: Option<PathBuf>) -> Self {
        let beside = || Some(std::env::current_exe().ok()?.with_file_name("edge-proxy"));
        let program = program.or_else(|| beside().filter(|path| path.exists()));
        Self {
            program: program.unwrap_or_else(|| "edge-proxy".into()),
            // sd_booted(3).
            systemd: Path::new("/run/systemd/system").exists(),
        }
    }

    /// Whether the proxy of a move runs.
    pub fn runs(&self, moves: &Moves, name: &str) -> bool {
        self.pid(moves, name).is_some()
    }

    fn pid(&self, moves: &Moves, name: &str) -> Option<u32> {
        let directory = moves.directory(name);
        let text = std::fs::read_to_string(directory.join(PID_FILE)).ok()?;
        let pid = text.trim().parse().ok()?;
        let config = moves.config(name).join("proxy.yaml").display().to_string();
        // A number may be somebody else's by now.
        let process = sockets::process(pid).filter(|_| sockets::runs(pid))?;
        process.command.contains(&config).then_some(pid)
    }

    /// Starts it unless it runs.
    ///
    /// # Errors
    ///
    /// What to tell a person.
    pub async fn start(&self, moves: &Moves, name: &str) -> Result<(), String> {
        if self.systemd {
            return systemctl(&["start", &format!("{UNIT}{name}.service")]).await;
        }
        if self.runs(moves, name) {
            return Ok(());
        }
        let config = moves.config(name).join("proxy.yaml");
        let directory = moves.directory(name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(directory.join(LOG_FILE))
            .map_err(|error| format!("{}: {error}", directory.join(LOG_FILE).display()))?;
        let failed = |error: io::Error| format!("{}: {error}", self.program.display());
        let errors = log.try_clone().map_err(failed)?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&config).current_dir(moves.config(name));
        // Whoever still talks to it is led to the legacy proxy next.
        command.args(["--set", "has_successor=true"]);
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let pid = detached(command).map_err(failed)?;
        files::write_private(&directory.join(PID_FILE), format!("{pid}\n").as_bytes())
            .map_err(|error| error.to_string())
    }

    /// Stops it, after what runs has ended or its time is over.
    ///
    /// # Errors
    ///
    /// What to tell a person.
    pub async fn stop(&self, moves: &Moves, name: &str) -> Result<(), String> {
        if self.systemd {
            return systemctl(&["stop", &format!("{UNIT}{name}.service")]).await;
        }
        let Some(pid) = self.pid(moves, name) else { return Ok(()) };
        signal(pid, Signal::TERM)?;
        let ended = async {
            while sockets::runs(pid) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match timeout(STOP, ended).await {
            Ok(()) => Ok(()),
            Err(_) => Err(format!("our proxy (process {pid}) has not ended within {STOP:?}")),
        }
    }

    /// It is started at boot, or is not any more.
    pub async fn at_boot(&self, name: &str, wanted: bool) -> Result<(), String> {
        if !self.systemd {
            return Ok(());
        }
        at_boot(&format!("{UNIT}{name}.service"), wanted).await
    }
}

/// Starts a process that outlives this one, in a session of its own.
fn detached(mut command: Command) -> io::Result<u32> {
    command.process_group(0).kill_on_drop(false);
    let mut child = command.spawn()?;
    let pid = child.id().unwrap_or_default();
    // Whoever ends is not left as a corpse while this process lives.
    tokio::spawn(async move { child.wait().await });
    Ok(pid)
}

/// kill(2).
///
/// # Errors
///
/// Who it is and what the system says.
pub fn signal(pid: u32, signal: Signal) -> Result<(), String> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or_else(|| format!("{pid}: no process"))?;
    rustix::process::kill_process(number, signal).map_err(|error| format!("process {pid}: {error}"))
}

/// systemctl(1).
///
/// # Errors
///
/// What it says last.
pub async fn systemctl(arguments: &[&str]) -> Result<(), String> {
    run("systemctl", arguments).await
}

/// Whether systemd starts a unit at boot: org.freedesktop.systemd1(5). `systemctl
/// enable` would change init scripts, too, from within this unit.
///
/// # Errors
///
/// What systemd says.
pub async fn at_boot(unit: &str, wanted: bool) -> Result<(), String> {
    let manager = ["org.freedesktop.systemd1", "/org/freedesktop/systemd1"];
    let interface = "org.freedesktop.systemd1.Manager";
    let (method, signature, more) = match wanted {
        true => ("EnableUnitFiles", "asbb", &["false", "true"][..]),
        false => ("DisableUnitFiles", "asb", &["false"][..]),
    };
    let call =
        [&["call", "--quiet"][..], &manager, &[interface, method, signature, "1", unit], more];
    run("busctl", &call.concat()).await?;
    systemctl(&["daemon-reload"]).await
}

async fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let mut command = Command::new(program);
    // Of this unit, which is no concern of theirs.
    command.args(arguments).env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).kill_on_drop(true);
    let said = timeout(START, command.output()).await;
    let said = said.map_err(|_| format!("{program} {}: no end", arguments.join(" ")))?;
    let output = said.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed");
    Err(format!("{program} {}: {}", arguments.join(" "), last.trim()))
}

/// Whether it is ready for traffic.
///
/// # Errors
///
/// Why not.
pub async fn ready(record: &Record) -> Result<(), String> {
    is_ready(&RealNet, record.admin).await
}

/// What it has done.
///
/// # Errors
///
/// It does not say.
pub async fn figures(record: &Record) -> Result<Figures, String> {
    told(record).await.map(|told| told.figures)
}

/// What it says of itself.
///
/// # Errors
///
/// It does not say.
pub async fn told(record: &Record) -> Result<Told, String> {
    let (_, text) = ask(record.admin, "GET", "/metrics").await?;
    let text = String::from_utf8_lossy(&text);
    Ok(Told { figures: read_figures(&text), transitions: read_transitions(&text) })
}

/// One request over HTTP/1.1, and its answer.
///
/// # Errors
///
/// What to tell a person.
pub async fn ask(at: SocketAddr, method: &str, path: &str) -> Result<(u16, Bytes), String> {
    let asked = async {
        let stream = TcpStream::connect(at).await.map_err(|error| error.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let driving = tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", at.to_string())
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_FIGURES).collect().await;
        driving.abort();
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    let asked = timeout(ASK, asked).await;
    asked
        .unwrap_or_else(|_| Err(format!("no answer within {ASK:?}")))
        .map_err(|why: String| format!("{at}: {why}"))
}

/// Prometheus' text: requests as clients see them, and connections.
fn read_figures(text: &str) -> Figures {
    let mut figures = Figures::default();
    let mut buckets: Vec<(f64, u64)> = Vec::new();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        // Counters are whole.
        let count = value as u64;
        let has = |label: &str| series.contains(label);
        if series.starts_with("route_response_total{") {
            figures.requests += count;
            if has("classification=\"failure\"") {
                figures.failures += count;
            }
        } else if series.starts_with("route_response_latency_ms_bucket{") {
            let bound = series.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
            let bound = bound.and_then(|bound| bound.parse::<f64>().ok()).unwrap_or(f64::INFINITY);
            match buckets.iter_mut().find(|(known, _)| *known == bound) {
                Some((_, sum)) => *sum += count,
                None => buckets.push((bound, count)),
            }
        } else if series.starts_with("tcp_close_total{") && has("peer=\"src\"") {
            figures.requests += count;
            if has("errno=\"") && !has("errno=\"\"") {
                figures.failures += count;
            }
        }
    }
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = buckets.last().map_or(0, |(_, count)| *count);
    let most = buckets.iter().find(|(_, count)| count * 100 >= all * 99 && all > 0);
    figures.p99_ms = most.map_or(0, |(bound, _)| bound.min(f64::from(u32::MAX)) as u32);
    figures
}

/// Ends of TLS with certificates of another CA, of listeners and of services.
fn read_transitions(text: &str) -> Vec<TransitionTls> {
    let one = |line: &str| {
        let labels = line.strip_prefix("isthmus_transition_tls_until_seconds{")?;
        let (labels, until) = labels.rsplit_once("} ")?;
        let (kind, name) = labels.split_once("=\"")?;
        let until: f64 = until.parse().ok()?;
        Some(TransitionTls {
            kind: kind.to_owned(),
            name: name.strip_suffix('"')?.to_owned(),
            // Whole seconds.
            until_unix_s: until as i64,
        })
    };
    text.lines().filter_map(one).take(MAX_LISTENERS).collect()
}

/// What `meshctl migrate plan` has written, with our addresses instead of the legacy
/// proxy's: the file, and what listens where.
///
/// # Errors
///
/// What of the file is wrong.
pub fn place(
    proxy_yaml: &str,
    admin: SocketAddr,
    mut beside: impl FnMut(SocketAddr) -> io::Result<SocketAddr>,
) -> Result<(String, Vec<Listener>), String> {
    let read = config::parse::<Value>(proxy_yaml, "proxy.yaml");
    let mut proxy = read.map_err(|error| error.to_string())?;
    let none = || "proxy.yaml: without listeners there is nothing to take over".to_owned();
    let listeners = proxy.get_mut("listeners").and_then(Value::as_array_mut).ok_or_else(none)?;
    if listeners.is_empty() {
        return Err(none());
    }
    if listeners.len() > MAX_LISTENERS {
        return Err(format!("proxy.yaml: more than {MAX_LISTENERS} listeners"));
    }
    let mut placed = Vec::new();
    for (at, listener) in listeners.iter_mut().enumerate() {
        let wrong = |key: &str| format!("proxy.yaml: listeners[{at}].{key}: what is it?");
        let text = |key: &str| listener.get(key).and_then(Value::as_str);
        let address = text("listen").and_then(|text| text.parse().ok());
        let address: SocketAddr = address.ok_or_else(|| wrong("listen"))?;
        let name = text("service").ok_or_else(|| wrong("service"))?.to_owned();
        let beside = beside(address).map_err(|error| format!("{address}: {error}"))?;
        listener["listen"] = beside.to_string().into();
        placed.push(Listener { name, address, beside });
    }
    proxy["admin"] = admin.to_string().into();
    // JSON is YAML.
    let text = serde_json::to_string_pretty(&proxy).map_err(|error| error.to_string())?;
    Ok((text + "\n", placed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_summed_over_series() {
        let text = "# TYPE route_response counter\n\
            route_response_total{direction=\"outbound\",classification=\"success\",dst=\"a\"} 90\n\
            route_response_total{direction=\"outbound\",classification=\"failure\",dst=\"a\"} 6\n\
            route_response_total{direction=\"outbound\",classification=\"failure\",dst=\"b\"} 4\n\
            response_total{classification=\"failure\"} 1000\n\
            route_response_latency_ms_bucket{dst=\"a\",le=\"1.0\"} 50\n\
            route_response_latency_ms_bucket{dst=\"a\",le=\"10.0\"} 96\n\
            route_response_latency_ms_bucket{dst=\"a\",le=\"+Inf\"} 96\n\
            route_response_latency_ms_bucket{dst=\"b\",le=\"1.0\"} 0\n\
            route_response_latency_ms_bucket{dst=\"b\",le=\"10.0\"} 4\n\
            route_response_latency_ms_bucket{dst=\"b\",le=\"+Inf\"} 4\n";
        let read = read_figures(text);
        assert_eq!(read, Figures { requests: 100, failures: 10, p99_ms: 10 });
        assert_eq!(read_figures("nonsense"), Figures::default());
    }

    #[test]
    fn ends_of_transition_tls_are_read() {
        let text = "# TYPE isthmus_transition_tls_until_seconds gauge\n\
            isthmus_transition_tls_until_seconds{listener=\"10.0.0.7:443\"} 1804550400.0\n\
            isthmus_transition_tls_until_seconds{service=\"web.legacy\"} 1.8e9\n\
            isthmus_transition_tls_until_seconds{service=\"x\"} soon\n\
            isthmus_transition_tls_handshakes_total{listener=\"10.0.0.7:443\"} 5\n";
        let read = read_transitions(text);
        let read: Vec<_> =
            read.iter().map(|t| (t.kind.as_str(), t.name.as_str(), t.until_unix_s)).collect();
        assert_eq!(
            read,
            [("listener", "10.0.0.7:443", 1_804_550_400), ("service", "web.legacy", 1_800_000_000)]
        );
    }

    #[test]
    fn listeners_get_addresses_beside() {
        let yaml = "snapshot: { file: site.yaml }\nlisteners:\n\
                    - { listen: '10.0.0.7:80', service: fe.legacy, port: http }\n";
        let admin = "127.0.0.1:4999".parse().unwrap();
        let beside = |address: SocketAddr| Ok(SocketAddr::new(address.ip(), 20_080));
        let (text, listeners) = place(yaml, admin, beside).unwrap();
        assert_eq!(listeners[0].beside, "10.0.0.7:20080".parse().unwrap());
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["listeners"][0]["listen"], "10.0.0.7:20080");
        assert_eq!(read["admin"], "127.0.0.1:4999");
        let refused = |yaml: &str| place(yaml, admin, beside).unwrap_err();
        assert!(refused("a: 1").contains("nothing to take over"));
        assert!(refused("listeners:\n- listen: x\n").contains("listeners[0].listen"));
        assert!(refused("listeners: [").contains("proxy.yaml"));
    }
}
