//! `meshctl identity`: who has a certificate, until when, and who shall have
//! none any more.

use clap::{Args, Subcommand};
use mesh_api::v1;
use serde::Serialize;

use super::{routes::short, view};
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
    time,
};

/// Arguments of `identity`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  meshctl identity\n  meshctl identity orders.shop -o wide\n  meshctl identity -o json | jq -r '.identities[] | select(.expires_unix_s < now + 3600).id'\n  meshctl identity revoke spiffe://west.example/ns/shop/sa/orders"
)]
pub struct Identity {
    #[command(subcommand)]
    change: Option<Change>,
    /// Only this one: SPIFFE ID, <account>.<namespace>, node:<uuid> or host
    subject: Option<String>,
}

/// Subcommands of `identity`.
#[derive(Debug, Subcommand)]
pub enum Change {
    /// Accept an identity, a machine or one certificate no more, here and in linked sites
    #[command(
        after_help = "Examples:\n  meshctl identity revoke spiffe://west.example/ns/shop/sa/orders\n  meshctl identity revoke node:0d4c1f0e-6ad3-4d0c-9d31-5d8f4f2f8a11\n  meshctl identity revoke serial:5af3…      # one certificate, this site only"
    )]
    Revoke {
        /// SPIFFE ID, node:<uuid> or serial:<hex>
        subject: String,
        /// Also the identity that all gateways share
        #[arg(long)]
        force: bool,
    },
    /// Take a revocation back; a machine joins again instead
    #[command(
        after_help = "Examples:\n  meshctl identity reinstate spiffe://west.example/ns/shop/sa/orders"
    )]
    Reinstate {
        /// SPIFFE ID or serial:<hex>
        subject: String,
    },
}

impl Identity {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut admin = run.admin().await?;
        match self.change {
            Some(Change::Revoke { subject, force }) => {
                admin.revoke(v1::RevokeRequest { subject: subject.clone(), force }).await?;
                return output::print(format, &view::Done::new(format!("{subject}: revoked")));
            }
            Some(Change::Reinstate { subject }) => {
                admin.reinstate(v1::ReinstateRequest { subject: subject.clone() }).await?;
                return output::print(format, &view::Done::new(format!("{subject}: reinstated")));
            }
            None => {}
        }
        let status = admin.site_status(v1::SiteStatusRequest {}).await?.into_inner();
        let mut shown = Shown { identities: identities(status) };
        if let Some(subject) = &self.subject {
            shown.identities.retain(|one| one.is(subject));
        }
        output::print(format, &shown)
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    identities: Vec<One>,
}

/// One certificate.
#[derive(Debug, Serialize, Default)]
struct One {
    /// SPIFFE ID, `node:<uuid>`, or the trust domain of a CA.
    id: String,
    /// `root`, `issuing-ca`, `gateway`, `workload`, `node` or `linked-root`.
    kind: &'static str,
    site: String,
    /// The machine it is on, or the gateway's id.
    holder: String,
    /// Of a root, SHA-256.
    fingerprint: String,
    /// Of a node's certificate, hex.
    serial: String,
    /// Unset of linked roots: their own site knows.
    expires_unix_s: Option<i64>,
}

impl One {
    fn is(&self, subject: &str) -> bool {
        [&self.id, &self.holder].iter().any(|one| *one == subject) || short(&self.id).0 == subject
    }
}

/// The CA first, then who has a certificate of it, then whom else is believed.
fn identities(status: v1::SiteStatusResponse) -> Vec<One> {
    let site = status.site.unwrap_or_default();
    let of_site = |kind, id: String, expires: i64| One {
        id,
        kind,
        site: site.name.clone(),
        expires_unix_s: Some(expires),
        ..One::default()
    };
    let root = of_site("root", site.trust_domain.clone(), status.root_expires_unix_s);
    let mut all = vec![One { fingerprint: status.root_fingerprint, ..root }];
    let ca = status.issuing_ca_expires_unix_s;
    all.push(of_site("issuing-ca", site.trust_domain.clone(), ca));
    let host = |node: &str| {
        let found = status.nodes.iter().find(|one| one.id == node);
        found.map_or_else(|| node.to_owned(), |found| found.hostname.clone())
    };
    let mut proxies: Vec<One> = Vec::new();
    for proxy in status.proxies {
        let kind = if proxy.gateway.is_empty() { "workload" } else { "gateway" };
        let holder = if proxy.node.is_empty() { proxy.gateway } else { host(&proxy.node) };
        let one = of_site(kind, proxy.spiffe_id, proxy.certificate_expires_unix_s);
        proxies.push(One { holder, ..one });
    }
    proxies.sort_by(|a, b| (a.kind, &a.id, &a.holder).cmp(&(b.kind, &b.id, &b.holder)));
    all.append(&mut proxies);
    for node in status.nodes {
        let one = of_site("node", format!("node:{}", node.id), node.certificate_expires_unix_s);
        all.push(One { holder: node.hostname, serial: node.serial, ..one });
    }
    all.extend(status.links.into_iter().map(|link| One {
        id: link.trust_domain,
        kind: "linked-root",
        site: link.site,
        fingerprint: link.root_fingerprint,
        ..One::default()
    }));
    all
}

impl Show for Shown {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.identities.is_empty() {
            return "No such identity. `meshctl identity` lists all of this site.\n".into();
        }
        let now = time::now_unix_s();
        let mut header = vec!["IDENTITY", "KIND", "SITE", "HOLDER", "EXPIRES"];
        if wide {
            header.extend(["SERIAL", "FINGERPRINT"]);
        }
        let mut table = Table::new(&header);
        for one in &self.identities {
            let expires = one.expires_unix_s.map(|at| {
                let text = time::until(at, now);
                if at <= now { paint.bad(&text) } else { text }
            });
            let mut cells = vec![one.id.clone(), one.kind.to_owned(), one.site.clone()];
            cells.extend([one.holder.clone(), expires.unwrap_or_default()]);
            if wide {
                cells.extend([one.serial.clone(), one.fingerprint.clone()]);
            }
            table.row(cells);
        }
        table.render(paint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::SiteStatusResponse {
        let proxy = |account: &str, node: &str, gateway: &str| v1::ProxyInfo {
            spiffe_id: format!("spiffe://west.example/ns/shop/sa/{account}"),
            node: node.into(),
            gateway: gateway.into(),
            certificate_expires_unix_s: 100,
            ..v1::ProxyInfo::default()
        };
        v1::SiteStatusResponse {
            site: Some(v1::Site {
                name: "west".into(),
                trust_domain: "west.example".into(),
                ..v1::Site::default()
            }),
            root_fingerprint: "aa".into(),
            nodes: vec![v1::NodeInfo {
                id: "n1".into(),
                hostname: "vm1".into(),
                serial: "05".into(),
                ..v1::NodeInfo::default()
            }],
            proxies: vec![proxy("orders", "n1", ""), proxy("gateway", "", "gw1")],
            links: vec![v1::LinkInfo {
                site: "east".into(),
                trust_domain: "east.example".into(),
                root_fingerprint: "bb".into(),
                ..v1::LinkInfo::default()
            }],
            ..v1::SiteStatusResponse::default()
        }
    }

    #[test]
    fn everybody_with_a_certificate_is_there() {
        let all = identities(status());
        let seen: Vec<(&str, &str, &str)> =
            all.iter().map(|one| (one.kind, one.id.as_str(), one.holder.as_str())).collect();
        let wanted = [
            ("root", "west.example", ""),
            ("issuing-ca", "west.example", ""),
            ("gateway", "spiffe://west.example/ns/shop/sa/gateway", "gw1"),
            ("workload", "spiffe://west.example/ns/shop/sa/orders", "vm1"),
            ("node", "node:n1", "vm1"),
            ("linked-root", "east.example", ""),
        ];
        assert_eq!(seen, wanted);
        let named = |subject: &str| all.iter().filter(|one| one.is(subject)).count();
        assert_eq!(
            (named("orders.shop"), named("vm1"), named("node:n1"), named("x")),
            (1, 2, 1, 0)
        );
        let text = Shown { identities: all }.text(true, Paint::PLAIN);
        assert!(text.contains("SERIAL") && text.contains("bb"), "{text}");
    }
}
