//! `meshctl check`: walks from the socket to the linked sites and names the
//! first thing that does not work, with its remedy.

use std::time::Duration;

use clap::Args;
use mesh_api::v1;
use serde::Serialize;
use tokio::net::{TcpStream, UdpSocket, lookup_host};

use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show, count},
    time,
};

/// A gateway that takes longer than this to answer one packet is away.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// An issuing CA lives 30 days and is renewed well before.
const CA_WARNING_S: i64 = 3 * 24 * 3600;
/// The peer sends something every second; this long is a lost link.
const LINK_SILENCE_MS: u64 = 10_000;

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 all passed, 1 something did not, 69 federation does not answer, 77 its socket may not be opened.

Examples:
  meshctl check
  meshctl --site west check --json | jq '.items[] | select(.ok | not)'"
)]
pub struct Check {}

#[derive(Debug, Serialize)]
struct Walk {
    ok: bool,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    name: String,
    ok: bool,
    detail: String,
    /// Empty if it passed.
    remedy: String,
}

impl Walk {
    fn passed(&mut self, name: impl Into<String>, detail: impl Into<String>) {
        self.items.push(Item {
            name: name.into(),
            ok: true,
            detail: detail.into(),
            remedy: String::new(),
        });
    }

    fn failed(
        &mut self,
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.ok = false;
        self.items.push(Item {
            name: name.into(),
            ok: false,
            detail: detail.into(),
            remedy: remedy.into(),
        });
    }
}

impl Check {
    /// Walks; exits 0 only if everything passed.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut walk = Walk { ok: true, items: Vec::new() };
        let mut exit = Exit::Failed;
        match status(run).await {
            Err(failure) => {
                exit = failure.exit;
                walk.failed("federation answers", failure.problem, failure.remedy);
            }
            Ok(status) => {
                let site = status.site.clone().unwrap_or_default();
                let text = format!(
                    "site {} ({}), version {}",
                    site.name, site.trust_domain, status.version
                );
                walk.passed("federation answers", text);
                authorities(&mut walk, &status, time::now_unix_s());
                gateways(&mut walk, &status, &site.name).await;
                proxies(&mut walk, &status);
                links(&mut walk, &status);
                nodes(&mut walk, &status);
            }
        }
        output::print(format, &walk)?;
        match walk.items.iter().find(|item| !item.ok) {
            None => Ok(()),
            Some(first) => Err(Failure::new(format!("check: {}: {}", first.name, first.detail))
                .exit(exit)
                .remedy(&first.remedy)),
        }
    }
}

async fn status(run: &Run) -> Result<v1::SiteStatusResponse, Failure> {
    Ok(run.admin().await?.site_status(v1::SiteStatusRequest {}).await?.into_inner())
}

fn authorities(walk: &mut Walk, status: &v1::SiteStatusResponse, now: i64) {
    let roots =
        [("root", status.root_expires_unix_s), ("issuing CA", status.issuing_ca_expires_unix_s)];
    for (name, end) in roots {
        let name = format!("{name} is valid");
        let expires = format!("expires {}", time::until(end, now));
        if end - now > CA_WARNING_S {
            walk.passed(name, expires);
        } else {
            walk.failed(
                name,
                expires,
                "restart federation: it renews its issuing CA when it starts; check the clock",
            );
        }
    }
}

async fn gateways(walk: &mut Walk, status: &v1::SiteStatusResponse, site: &str) {
    let own: Vec<_> =
        status.gateways.iter().filter(|g| g.site == site || g.site.is_empty()).collect();
    if own.is_empty() {
        walk.failed(
            "a gateway exists",
            "none is configured",
            "add `gateways:` to federation.yaml and restart it",
        );
    }
    for gateway in own {
        for address in &gateway.tls_addresses {
            let name = format!("gateway {} answers TCP {address}", gateway.id);
            match tcp(address).await {
                Ok(took) => walk.passed(name, took),
                Err(error) => walk.failed(name, error, GATEWAY_TCP_REMEDY),
            }
        }
        for address in &gateway.quic_addresses {
            let name = format!("gateway {} answers UDP {address}", gateway.id);
            match quic(address).await {
                Ok(took) => walk.passed(name, took),
                Err(error) => walk.failed(name, error, GATEWAY_UDP_REMEDY),
            }
        }
    }
}

const GATEWAY_TCP_REMEDY: &str = "systemctl status isthmus-gateway; then the firewall: the address must be reachable from machines and other sites";
const GATEWAY_UDP_REMEDY: &str =
    "open the port for UDP too; until then machines and links use TLS over TCP";

async fn tcp(address: &str) -> Result<String, String> {
    let started = tokio::time::Instant::now();
    match tokio::time::timeout(PROBE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(format!("in {:.1} ms", started.elapsed().as_secs_f64() * 1000.0)),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
    }
}

/// Sends a QUIC Initial-sized packet of a version nobody speaks: a QUIC server
/// must answer with Version Negotiation (RFC 9000 section 6.1), without any
/// certificate and without keeping state.
async fn quic(address: &str) -> Result<String, String> {
    let started = tokio::time::Instant::now();
    let exchange = async {
        let addr = lookup_host(address).await?.next();
        let addr = addr.ok_or_else(|| std::io::Error::other("the name has no address"))?;
        let any = if addr.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(addr).await?;
        socket.send(&version_probe()).await?;
        let mut answer = [0_u8; 1500];
        let len = socket.recv(&mut answer).await?;
        Ok::<bool, std::io::Error>(is_version_negotiation(&answer[..len]))
    };
    match tokio::time::timeout(PROBE_TIMEOUT, exchange).await {
        Ok(Ok(true)) => Ok(format!("in {:.1} ms", started.elapsed().as_secs_f64() * 1000.0)),
        Ok(Ok(false)) => Err("something answers that does not speak QUIC".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())),
    }
}

/// A reserved version (RFC 9000 section 15: 0x?a?a?a?a).
const PROBE_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];

fn version_probe() -> [u8; 1200] {
    let mut packet = [0_u8; 1200];
    // Long header, fixed bit; version; 8 bytes destination id; no source id.
    packet[0] = 0xc0;
    packet[1..5].copy_from_slice(&PROBE_VERSION);
    packet[5] = 8;
    packet[6..14].copy_from_slice(&rand::random::<[u8; 8]>());
    packet
}

/// Long header with version 0 (RFC 9000 section 17.2.1).
fn is_version_negotiation(packet: &[u8]) -> bool {
    packet.len() >= 7 && packet[0] & 0x80 != 0 && packet[1..5] == [0; 4]
}

fn proxies(walk: &mut Walk, status: &v1::SiteStatusResponse) {
    let refused: Vec<_> = status.proxies.iter().filter(|proxy| !proxy.nack.is_empty()).collect();
    match refused.first() {
        None => walk.passed("proxies follow", count(status.proxies.len(), "proxy stream")),
        Some(first) => walk.failed(
            "proxies follow",
            format!("{} refuses the newest state: {}", first.spiffe_id, first.nack),
            "upgrade that proxy: it runs an older version than federation",
        ),
    }
}

fn links(walk: &mut Walk, status: &v1::SiteStatusResponse) {
    for link in &status.links {
        let name = format!("link {} is up", link.site);
        let heard = format!("last heard {} ago", time::age_ms(link.last_heard_ms));
        if link.state == "up" && link.last_heard_ms < LINK_SILENCE_MS {
            walk.passed(name, heard);
        } else {
            let remedy = format!(
                "run `meshctl check` in {}: its gateway or federation does not answer",
                link.site
            );
            walk.failed(name, format!("{}, {heard}", link.state), remedy);
        }
    }
}

fn nodes(walk: &mut Walk, status: &v1::SiteStatusResponse) {
    for node in &status.nodes {
        let short: String = node.id.chars().take(8).collect();
        let name = format!("machine {} ({short}) is connected", node.hostname);
        match node.state.as_str() {
            "connected" => walk.passed(name, String::new()),
            // Said so itself: a stop, not a failure.
            "leaving" => walk.passed(name, "it is stopping".to_owned()),
            "duplicated" => walk.failed(
                name,
                format!("{}: two machines hold this identity", node.id),
                format!("meshctl node resolve {}", node.id),
            ),
            state => walk.failed(
                name,
                format!("{state} for {}", time::age_ms(node.last_heard_ms)),
                "on the machine: systemctl status isthmus-vm-agent; if it is gone for good: meshctl identity revoke node:<id>",
            ),
        }
    }
}

impl Show for Walk {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let mut text = String::new();
        for item in &self.items {
            let mark = if item.ok { paint.good("✓") } else { paint.bad("✗") };
            let detail = if item.detail.is_empty() {
                String::new()
            } else {
                paint.faint(&format!("  {}", item.detail))
            };
            text.push_str(&format!("{mark} {}{detail}\n", item.name));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_negotiation_is_recognised() {
        assert!(is_version_negotiation(&[0x80, 0, 0, 0, 0, 0, 8, 1]));
        assert!(!is_version_negotiation(&[0x80, 0, 0, 0, 1, 0, 8]));
        assert!(!is_version_negotiation(&[0x40, 0, 0, 0, 0, 0, 8]));
        assert!(!is_version_negotiation(&[]));
    }

    #[tokio::test]
    async fn a_closed_tcp_port_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        assert!(tcp(&addr).await.is_ok());
        drop(listener);
        assert!(tcp(&addr).await.is_err());
    }

    #[test]
    fn each_part_can_fail_and_says_how_to_mend_it() {
        let mut status = v1::SiteStatusResponse {
            root_expires_unix_s: 1_000_000_000,
            issuing_ca_expires_unix_s: 100,
            ..Default::default()
        };
        status.nodes.push(v1::NodeInfo {
            state: "duplicated".into(),
            id: "n1".into(),
            ..Default::default()
        });
        status.links.push(v1::LinkInfo {
            site: "east".into(),
            state: "lost".into(),
            ..Default::default()
        });
        status.proxies.push(v1::ProxyInfo { nack: "no".into(), ..Default::default() });
        let mut walk = Walk { ok: true, items: Vec::new() };
        authorities(&mut walk, &status, 50);
        proxies(&mut walk, &status);
        links(&mut walk, &status);
        nodes(&mut walk, &status);
        let failed: Vec<_> =
            walk.items.iter().filter(|item| !item.ok).map(|item| item.name.as_str()).collect();
        assert_eq!(
            failed,
            [
                "issuing CA is valid",
                "proxies follow",
                "link east is up",
                "machine  (n1) is connected"
            ]
        );
        assert!(walk.items.iter().all(|item| item.ok == item.remedy.is_empty()));
        assert!(!walk.ok);
    }
}
