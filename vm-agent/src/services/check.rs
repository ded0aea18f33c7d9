//! Health checks: TCP connect or HTTP GET, against this machine only.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use mesh_api::v1::Health;
use mesh_tunnel::{Net, Stream};

use super::file::{CheckSpec, Probe};

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
    match tokio::time::timeout(spec.timeout, probe(net, &spec.probe)).await {
        Ok(result) => result,
        Err(_) => Err(format!("{}: no answer within {:?}", target(&spec.probe), spec.timeout)),
    }
}

fn target(probe: &Probe) -> String {
    match probe {
        Probe::Tcp(addrs) => addrs.first().map(ToString::to_string).unwrap_or_default(),
        Probe::Http(addr, path) => format!("http://{addr}{path}"),
    }
}

async fn probe(net: &dyn Net, probe: &Probe) -> Result<(), String> {
    match probe {
        Probe::Tcp(addrs) => {
            for addr in addrs {
                connect(net, *addr).await?;
            }
            Ok(())
        }
        Probe::Http(addr, path) => get(net, *addr, path).await,
    }
}

/// The error names the address.
async fn connect(net: &dyn Net, addr: SocketAddr) -> Result<Stream, String> {
    net.dial(addr).await.map_err(|error| error.to_string())
}

async fn get(net: &dyn Net, addr: SocketAddr, path: &str) -> Result<(), String> {
    let named = |problem: String| format!("http://{addr}{path}: {problem}");
    let stream = TokioIo::new(connect(net, addr).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| named(error.to_string()))?;
    let request = http::Request::get(path)
        .header(http::header::HOST, addr.to_string())
        .header(http::header::USER_AGENT, concat!("isthmus-vm-agent/", env!("CARGO_PKG_VERSION")))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| named(error.to_string()))?;
    // The head is enough: the body is dropped with the connection. When the
    // connection ends first, the response has arrived or never will.
    let response = std::pin::pin!(sender.send_request(request));
    let response = match select(response, std::pin::pin!(connection)).await {
        Either::Left((response, _)) => response,
        Either::Right((_, response)) => response.await,
    };
    let status = response.map_err(|error| named(error.to_string()))?.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(named(status.to_string()))
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
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

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

    /// Answers every connection with these bytes and closes it.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let n = stream.read(&mut request).await.unwrap();
                assert!(request[..n].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        addr
    }

    #[test]
    fn http_is_judged_by_its_status() {
        current_thread().unwrap().block_on(async {
            let cases = [
                ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())),
                ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
                ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", Ok(())),
                ("HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", Ok(())),
                ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", Err("500")),
                ("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", Err("404")),
                ("garbage\r\n\r\n", Err("http://127.0.0.1")),
                ("", Err("http://127.0.0.1")),
            ];
            for (answer, expected) in cases {
                let addr = server(answer).await;
                let result = once(&RealNet, &spec_of(Probe::Http(addr, "/healthz".into()))).await;
                match (&result, expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(shown), Err(part)) if shown.contains(part) => {}
                    _ => panic!("{answer:?}: {result:?}"),
                }
            }
        });
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
