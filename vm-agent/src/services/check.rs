//! Health checks, of this machine only: how often, and what their results mean.

use std::{net::SocketAddr, path::Path, sync::Arc};

use mesh_api::v1::Health;
use mesh_tunnel::Net;

use super::{
    exec::Door,
    file::{CheckSpec, Probe},
    probe,
};

/// How far one interval may differ from the next, so that many services are
/// not all checked in the same moment.
const JITTER: f64 = 0.1;

/// What services are asked with.
pub struct Asker {
    /// The network.
    pub net: Arc<dyn Net>,
    /// Where commands are asked for.
    pub door: Door,
}

/// Counts passes and failures in a row. The first check decides alone.
#[derive(Debug, Default)]
pub struct Judge {
    health: Option<bool>,
    /// Checks in a row that contradict `health`.
    against: u32,
}

impl Judge {
    /// One more result; the health after it.
    pub fn judge(&mut self, passed: bool, spec: &CheckSpec) -> Health {
        let health = *self.health.get_or_insert(passed);
        if passed == health {
            self.against = 0;
        } else {
            self.against += 1;
            let needed = if passed { spec.healthy } else { spec.unhealthy };
            if self.against >= needed {
                self.health = Some(passed);
                self.against = 0;
            }
        }
        if self.health == Some(true) { Health::Healthy } else { Health::Unhealthy }
    }
}

/// Checks an instance for ever; tells `report` the health and the detail after
/// each check.
pub async fn run(
    asker: &Asker,
    instance: &str,
    spec: &CheckSpec,
    mut report: impl FnMut(Health, String),
) {
    let mut judge = Judge::default();
    loop {
        let result = once(asker, instance, spec).await;
        let health = judge.judge(result.is_ok(), spec);
        report(health, result.err().unwrap_or_default());
        let factor = 1.0 + rand::random_range(-JITTER..=JITTER);
        tokio::time::sleep(spec.interval.mul_f64(factor)).await;
    }
}

/// One check; the error is for people.
pub async fn once(asker: &Asker, instance: &str, spec: &CheckSpec) -> Result<(), String> {
    let net = &*asker.net;
    match &spec.probe {
        Probe::Tcp(addrs) => {
            let target = addrs.first().map(ToString::to_string).unwrap_or_default();
            in_time(spec, &target, connect(net, addrs)).await
        }
        Probe::Http(addr, path) => {
            let target = format!("http://{addr}{path}");
            in_time(spec, &target, probe::http(net, *addr, path)).await
        }
        Probe::Grpc(addr, service) => {
            let target = format!("grpc://{addr}/{service}");
            in_time(spec, &target, probe::grpc(net, *addr, service)).await
        }
        Probe::Unit(unit) => {
            let target = format!("systemctl show {unit}");
            in_time(spec, &target, probe::unit(Path::new("systemctl"), unit)).await
        }
        // Its time begins with the command.
        Probe::Exec(_) => asker.door.ask(net, instance, spec.timeout).await,
    }
}

async fn in_time(
    spec: &CheckSpec,
    target: &str,
    asking: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let asked = tokio::time::timeout(spec.timeout, asking).await;
    asked.unwrap_or_else(|_| Err(format!("{target}: no answer within {:?}", spec.timeout)))
}

async fn connect(net: &dyn Net, addrs: &[SocketAddr]) -> Result<(), String> {
    for addr in addrs {
        probe::connect(net, *addr).await?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) fn asker() -> Asker {
    Asker { net: Arc::new(mesh_tunnel::RealNet), door: Door::new("/nowhere/check.sock".into()) }
}

/// Quick checks with thresholds that differ.
#[cfg(test)]
pub(crate) fn spec_of(probe: Probe) -> CheckSpec {
    use std::time::Duration;
    CheckSpec {
        probe,
        interval: Duration::from_millis(100),
        timeout: Duration::from_millis(500),
        healthy: 2,
        unhealthy: 3,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_runtime::process::current_thread;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn thresholds_count_checks_in_a_row() {
        let spec = spec_of(Probe::Tcp(Vec::new()));
        let cases = [
            ("+", "+"),
            ("-", "-"),
            ("+--+--", "++++++"),
            ("+---", "+++-"),
            ("---+-++", "------+"),
            ("+---++---", "+++-" /* healthy needs two */),
        ];
        for (results, expected) in cases {
            let mut judge = Judge::default();
            let seen: String = results
                .chars()
                .map(|c| match judge.judge(c == '+', &spec) {
                    Health::Healthy => '+',
                    _ => '-',
                })
                .collect();
            assert!(seen.starts_with(expected), "{results}: {seen}");
        }
    }

    #[test]
    fn tcp_needs_every_port() {
        current_thread().unwrap().block_on(async {
            let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
            // Nobody else can have the port meanwhile.
            let closed = tokio::net::TcpSocket::new_v4().unwrap();
            closed.bind(([127, 0, 0, 1], 0).into()).unwrap();
            let (a, b) = (open.local_addr().unwrap(), closed.local_addr().unwrap());
            once(&asker(), "orders", &spec_of(Probe::Tcp(vec![a]))).await.unwrap();
            let shown =
                once(&asker(), "orders", &spec_of(Probe::Tcp(vec![a, b]))).await.unwrap_err();
            assert!(shown.contains(&b.to_string()), "{shown}");
            let _listener = closed.listen(1).unwrap();
            once(&asker(), "orders", &spec_of(Probe::Tcp(vec![a, b]))).await.unwrap();
        });
    }

    #[test]
    fn a_silent_application_fails_in_time() {
        current_thread().unwrap().block_on(async {
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut spec = spec_of(Probe::Http(silent.local_addr().unwrap(), "/healthz".into()));
            spec.timeout = Duration::from_millis(100);
            let shown = once(&asker(), "orders", &spec).await.unwrap_err();
            assert!(shown.contains("no answer within 100ms"), "{shown}");
        });
    }
}
