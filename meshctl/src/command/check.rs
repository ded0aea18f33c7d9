//! `meshctl check`: walks from the socket to the linked sites and names the
//! first thing that does not work, with its remedy.

mod between;
mod clock;
mod pre;
mod probe;
mod request;

use std::net::SocketAddr;

use clap::Args;
use mesh_api::v1;
use serde::Serialize;

use self::{between::Ends, pre::Kubectl};
use super::why::Why;
use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show, count},
    time,
};

/// An issuing CA lives 30 days and is renewed well before.
const CA_WARNING_S: i64 = 3 * 24 * 3600;
/// The peer sends something every second; this long is a lost link.
const LINK_SILENCE_MS: u64 = 10_000;

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --from and --to it follows one request, hop by hop, and stops at the first that fails:
  federation name gateway route endpoint policy path identity clock link proxy request
Where the caller is the workload of this machine, the last hop is a real request through its
proxy: GET, for gRPC the health check, for TCP a connection; elsewhere it is skipped. A machine
asks federation with its own identity, which needs a role (see `meshctl --help`).
With --pre it asks, by kubectl, whether a cluster can become a site:
  cluster rights nodes storage

Exit codes: 0 all passed, 1 something did not, 2 the command line makes no sense,
69 federation does not answer, 77 its socket may not be opened, or no role.

Examples:
  meshctl check
  meshctl check --pre --context east
  meshctl check --from orders.shop --to payments.prod
  meshctl check --from shop/orders --to payments.prod:grpc --json | jq -r '.items[-1].hop'
  meshctl --site west check --json | jq '.items[] | select(.ok | not)'"
)]
pub struct Check {
    /// Before anything is there: whether this cluster can become a site
    #[arg(long, conflicts_with = "from")]
    pre: bool,
    /// Whose request: a SPIFFE ID, <namespace>/<account>, or a service whose identity it is
    #[arg(long, requires = "to", value_name = "CALLER")]
    from: Option<String>,
    /// To what: <name>.<namespace>[:port name or number]
    #[arg(long, requires = "from", value_name = "SERVICE")]
    to: Option<String>,
    /// Path of the request
    #[arg(long, default_value = "/", requires = "to")]
    path: String,
    /// Where the proxy of this machine takes HTTP
    #[arg(long, default_value = "127.0.0.1:4140", requires = "to", value_name = "IP:PORT")]
    proxy: SocketAddr,
}

#[derive(Debug, Serialize)]
struct Walk {
    ok: bool,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    /// What kind of thing; stable, for scripts.
    hop: &'static str,
    name: String,
    ok: bool,
    /// Could not be tried from here.
    skipped: bool,
    detail: String,
    /// Empty if it passed.
    remedy: String,
}

impl Walk {
    fn passed(&mut self, hop: &'static str, name: impl Into<String>, detail: impl Into<String>) {
        let (name, detail, remedy) = (name.into(), detail.into(), String::new());
        self.items.push(Item { hop, name, ok: true, skipped: false, detail, remedy });
    }

    fn skipped(&mut self, hop: &'static str, name: impl Into<String>, detail: impl Into<String>) {
        let (name, detail, remedy) = (name.into(), detail.into(), String::new());
        self.items.push(Item { hop, name, ok: true, skipped: true, detail, remedy });
    }

    fn failed(
        &mut self,
        hop: &'static str,
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.ok = false;
        let (name, detail, remedy) = (name.into(), detail.into(), remedy.into());
        self.items.push(Item { hop, name, ok: false, skipped: false, detail, remedy });
    }

    /// Notes what came of it, problem and remedy if it failed; whether to go on.
    fn hop(
        &mut self,
        hop: &'static str,
        name: &str,
        result: Result<String, (String, String)>,
    ) -> bool {
        let passed = result.is_ok();
        match result {
            Ok(detail) => self.passed(hop, name, detail),
            Err((problem, remedy)) => self.failed(hop, name, problem, remedy),
        }
        passed
    }
}

impl Check {
    /// Walks; exits 0 only if everything passed.
    pub async fn run(
        self,
        run: impl FnOnce() -> Result<Run, Failure>,
        context: Option<&str>,
        format: Format,
    ) -> Result<(), Failure> {
        let mut walk = Walk { ok: true, items: Vec::new() };
        let mut exit = Exit::Failed;
        if self.pre {
            pre::walk(&mut walk, &Kubectl::new(context.map(str::to_owned))).await;
            return end(&walk, format, exit);
        }
        let run = &run()?;
        match status(run).await {
            Err(failure) => {
                exit = failure.exit;
                walk.failed("federation", "federation answers", failure.problem, failure.remedy);
            }
            Ok(status) => {
                let site = status.site.clone().unwrap_or_default();
                let text = format!(
                    "site {} ({}), version {}",
                    site.name, site.trust_domain, status.version
                );
                walk.passed("federation", "federation answers", text);
                match self.ends() {
                    Some(ends) => between::walk(&mut walk, run, &status, &ends).await?,
                    None => everything(&mut walk, &status, &site.name).await,
                }
            }
        }
        end(&walk, format, exit)
    }
}

/// What the whole walk came to.
fn end(walk: &Walk, format: Format, exit: Exit) -> Result<(), Failure> {
    output::print(format, walk)?;
    match walk.items.iter().find(|item| !item.ok) {
        None => Ok(()),
        Some(first) => Err(Failure::new(format!("check: {}: {}", first.name, first.detail))
            .exit(exit)
            .remedy(&first.remedy)),
    }
}

impl Check {
    /// One request, if it is about one.
    fn ends(self) -> Option<Ends> {
        let why = Why::get(self.from?, self.to?, self.path);
        Some(Ends { why, proxy: self.proxy })
    }
}

/// Each part of the site by itself.
async fn everything(walk: &mut Walk, status: &v1::SiteStatusResponse, site: &str) {
    authorities(walk, status, time::now_unix_s());
    gateways(walk, status, site).await;
    proxies(walk, status);
    links(walk, status);
    nodes(walk, status);
    clocks(walk, status);
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
            walk.passed("authority", name, expires);
        } else {
            walk.failed(
                "authority",
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
            "gateway",
            "a gateway exists",
            "none is configured",
            "add `gateways:` to federation.yaml and restart it",
        );
    }
    for gateway in own {
        for address in &gateway.tls_addresses {
            let name = format!("gateway {} answers TCP {address}", gateway.id);
            match probe::tcp(address).await {
                Ok(took) => walk.passed("gateway", name, took),
                Err(error) => walk.failed("gateway", name, error, GATEWAY_TCP_REMEDY),
            }
        }
        for address in &gateway.quic_addresses {
            let name = format!("gateway {} answers UDP {address}", gateway.id);
            match probe::quic(address).await {
                Ok(took) => walk.passed("gateway", name, took),
                Err(error) => walk.failed("gateway", name, error, GATEWAY_UDP_REMEDY),
            }
        }
    }
}

const GATEWAY_TCP_REMEDY: &str = "systemctl status isthmus-gateway; then the firewall: the address must be reachable from machines and other sites";
const GATEWAY_UDP_REMEDY: &str =
    "open the port for UDP too; until then machines and links use TLS over TCP";

fn proxies(walk: &mut Walk, status: &v1::SiteStatusResponse) {
    let refused: Vec<_> = status.proxies.iter().filter(|proxy| !proxy.nack.is_empty()).collect();
    match refused.first() {
        None => walk.passed("proxy", "proxies follow", count(status.proxies.len(), "proxy stream")),
        Some(first) => walk.failed(
            "proxy",
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
            walk.passed("link", name, heard);
        } else {
            walk.failed("link", name, format!("{}, {heard}", link.state), link_remedy(&link.site));
        }
    }
}

fn link_remedy(site: &str) -> String {
    format!("run `meshctl check` in {site}: its gateway or federation does not answer")
}

fn clocks(walk: &mut Walk, status: &v1::SiteStatusResponse) {
    let differing = clock::differing(status, |_| true);
    if differing.is_empty() {
        walk.passed("clock", "clocks agree", "with federation's");
    }
    for one in differing {
        walk.failed("clock", "clocks agree", one, clock::REMEDY);
    }
}

fn nodes(walk: &mut Walk, status: &v1::SiteStatusResponse) {
    for node in &status.nodes {
        let short: String = node.id.chars().take(8).collect();
        let name = format!("machine {} ({short}) is connected", node.hostname);
        match node.state.as_str() {
            "connected" => walk.passed("machine", name, String::new()),
            // Said so itself: a stop, not a failure.
            "leaving" => walk.passed("machine", name, "it is stopping"),
            "duplicated" => walk.failed(
                "machine",
                name,
                format!("{}: two machines hold this identity", node.id),
                format!("meshctl node resolve {}", node.id),
            ),
            state => walk.failed(
                "machine",
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
            let mark = match (item.ok, item.skipped) {
                (true, true) => paint.faint("–"),
                (true, false) => paint.good("✓"),
                (false, _) => paint.bad("✗"),
            };
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
        status.proxies.push(v1::ProxyInfo {
            nack: "no".into(),
            gateway: "gw1".into(),
            clock_ahead_ms: Some(3_600_000),
            ..Default::default()
        });
        let mut walk = Walk { ok: true, items: Vec::new() };
        authorities(&mut walk, &status, 50);
        proxies(&mut walk, &status);
        links(&mut walk, &status);
        nodes(&mut walk, &status);
        clocks(&mut walk, &status);
        let failed: Vec<_> =
            walk.items.iter().filter(|item| !item.ok).map(|item| item.name.as_str()).collect();
        assert_eq!(
            failed,
            [
                "issuing CA is valid",
                "proxies follow",
                "link east is up",
                "machine  (n1) is connected",
                "clocks agree",
            ]
        );
        assert!(walk.items.iter().all(|item| item.ok == item.remedy.is_empty()));
        assert!(!walk.ok);
    }
}
