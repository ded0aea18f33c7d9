//! Health checks, of this machine only: how often, and what their results mean.

use std::path::Path;

use mesh_api::v1::Health;
use mesh_tunnel::Net;

use super::{
    file::{CheckSpec, Probe},
    probe,
};

/// How far one interval may differ from the next, so that many services are
/// not all checked in the same moment.
const JITTER: f64 = 0.1;

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

/// Checks for ever; tells `report` the health and the detail after each check.
pub async fn run(net: &dyn Net, spec: &CheckSpec, mut report: impl FnMut(Health, String)) {
    let mut judge = Judge::default();
    loop {
        let result = once(net, spec).await;
        let health = judge.judge(result.is_ok(), spec);
        report(health, result.err().unwrap_or_default());
        let factor = 1.0 + rand::random_range(-JITTER..=JITTER);
        tokio::time::sleep(spec.interval.mul_f64(factor)).await;
    }
}

/// One check; the error is for people.
pub async fn once(net: &dyn Net, spec: &CheckSpec) -> Result<(), String> {
    match tokio::time::timeout(spec.timeout, ask(net, &spec.probe)).await {
        Ok(result) => result,
        Err(_) => Err(format!("{}: no answer within {:?}", target(&spec.probe), spec.timeout)),
    }
}

fn target(probe: &Probe) -> String {
    match probe {
        Probe::Tcp(addrs) => addrs.first().map(ToString::to_string).unwrap_or_default(),
        Probe::Http(addr, path) => format!("http://{addr}{path}"),
        Probe::Grpc(addr, service) => format!("grpc://{addr}/{service}"),
        Probe::Unit(unit) => format!("systemctl show {unit}"),
    }
}

async fn ask(net: &dyn Net, probe: &Probe) -> Result<(), String> {
    match probe {
        Probe::Tcp(addrs) => {
            for addr in addrs {
                probe::connect(net, *addr).await?;
            }
            Ok(())
        }
        Probe::Http(addr, path) => probe::http(net, *addr, path).await,
        Probe::Grpc(addr, service) => probe::grpc(net, *addr, service).await,
        Probe::Unit(unit) => probe::unit(Path::new("systemctl"), unit).await,
    }
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
    use mesh_tunnel::RealNet;
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
            let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (a, b) = (open.local_addr().unwrap(), closed.local_addr().unwrap());
            once(&RealNet, &spec_of(Probe::Tcp(vec![a, b]))).await.unwrap();
            drop(closed);
            once(&RealNet, &spec_of(Probe::Tcp(vec![a]))).await.unwrap();
            let shown = once(&RealNet, &spec_of(Probe::Tcp(vec![a, b]))).await.unwrap_err();
            assert!(shown.contains(&b.to_string()), "{shown}");
        });
    }

    #[test]
    fn a_silent_application_fails_in_time() {
        current_thread().unwrap().block_on(async {
            let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut spec = spec_of(Probe::Http(silent.local_addr().unwrap(), "/healthz".into()));
            spec.timeout = Duration::from_millis(100);
            let shown = once(&RealNet, &spec).await.unwrap_err();
            assert!(shown.contains("no answer within 100ms"), "{shown}");
        });
    }
}
