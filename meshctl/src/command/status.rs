//! `meshctl status`: one page on a site.

use std::collections::BTreeMap;

use mesh_api::v1;
use serde::Serialize;

use super::{node::node_table, transition::TransitionTls, view};
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
    time,
};

/// A leaf that ends sooner than this should have been renewed.
const CERTIFICATE_WARNING_S: i64 = 4 * 3600;

/// Asks federation and shows everything.
pub async fn status(run: &Run, format: Format) -> Result<(), Failure> {
    let answer = run.admin().await?.site_status(v1::SiteStatusRequest {}).await?.into_inner();
    output::print(format, &Status::from(answer))
}

#[derive(Debug, Serialize)]
struct Status {
    site: String,
    trust_domain: String,
    version: String,
    revision: String,
    root_fingerprint: String,
    root_expires_unix_s: i64,
    issuing_ca_expires_unix_s: i64,
    gateways: Vec<GatewayView>,
    nodes: Vec<view::Node>,
    links: Vec<view::Link>,
    proxies: Vec<ProxyView>,
    consuls: Vec<ConsulView>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct GatewayView {
    id: String,
    quic_addresses: Vec<String>,
    tls_addresses: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ProxyView {
    spiffe_id: String,
    node: String,
    version: String,
    acked: String,
    nack: String,
    last_heard_ms: u64,
    certificate_expires_unix_s: i64,
    /// Of a gateway.
    gateway: String,
    /// How far its clock is ahead of federation's, milliseconds.
    clock_ahead_ms: Option<i64>,
    /// What it still does with certificates of another CA.
    transitions: Vec<TransitionTls>,
}

#[derive(Debug, Serialize)]
struct ConsulView {
    address: String,
    /// UUID of the node whose proxy leads to what is imported.
    door: String,
    /// `waiting`, `fresh`, `stale`.
    state: String,
    stale_ms: u64,
    problem: String,
    imported_services: u32,
    imported_instances: u32,
    not_imported: u32,
    exported: u32,
    not_exported: u32,
    index: u64,
    /// Calls that failed since federation began, by kind.
    errors: BTreeMap<String, u64>,
}

/// `<n>@<epoch>`.
pub(crate) fn revision(revision: Option<v1::Revision>) -> String {
    revision.map(|r| format!("{}@{:x}", r.n, r.epoch)).unwrap_or_default()
}

impl From<v1::SiteStatusResponse> for Status {
    fn from(answer: v1::SiteStatusResponse) -> Self {
        let site = answer.site.unwrap_or_default();
        Self {
            site: site.name.clone(),
            trust_domain: site.trust_domain,
            version: answer.version,
            revision: revision(answer.revision),
            root_fingerprint: answer.root_fingerprint,
            root_expires_unix_s: answer.root_expires_unix_s,
            issuing_ca_expires_unix_s: answer.issuing_ca_expires_unix_s,
            gateways: answer
                .gateways
                .into_iter()
                .filter(|gateway| gateway.site == site.name || gateway.site.is_empty())
                .map(Into::into)
                .collect(),
            nodes: answer.nodes.into_iter().map(Into::into).collect(),
            links: answer.links.into_iter().map(Into::into).collect(),
            proxies: answer.proxies.into_iter().map(Into::into).collect(),
            consuls: answer.consuls.into_iter().map(Into::into).collect(),
            warnings: answer.warnings,
        }
    }
}

impl From<v1::Gateway> for GatewayView {
    fn from(gateway: v1::Gateway) -> Self {
        Self {
            id: gateway.id,
            quic_addresses: gateway.quic_addresses,
            tls_addresses: gateway.tls_addresses,
        }
    }
}

impl From<v1::ProxyInfo> for ProxyView {
    fn from(proxy: v1::ProxyInfo) -> Self {
        Self {
            spiffe_id: proxy.spiffe_id,
            node: proxy.node,
            version: proxy.version,
            acked: revision(proxy.acked),
            nack: proxy.nack,
            last_heard_ms: proxy.last_heard_ms,
            certificate_expires_unix_s: proxy.certificate_expires_unix_s,
            gateway: proxy.gateway,
            clock_ahead_ms: proxy.clock_ahead_ms,
            transitions: proxy.transitions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<v1::ConsulInfo> for ConsulView {
    fn from(consul: v1::ConsulInfo) -> Self {
        Self {
            address: consul.address,
            door: consul.door,
            state: consul.state,
            stale_ms: consul.stale_ms,
            problem: consul.problem,
            imported_services: consul.imported_services,
            imported_instances: consul.imported_instances,
            not_imported: consul.not_imported,
            exported: consul.exported,
            not_exported: consul.not_exported,
            index: consul.index,
            errors: consul.errors.into_iter().map(|error| (error.kind, error.count)).collect(),
        }
    }
}

impl Show for Status {
    fn text(&self, wide: bool, paint: Paint) -> String {
        let now = time::now_unix_s();
        let mut text = format!(
            "{} {}  trust domain {}  federation {}  revision {}\nroot {} expires {}; issuing CA expires {}\n",
            paint.bold("SITE"),
            paint.bold(&self.site),
            self.trust_domain,
            self.version,
            self.revision,
            self.root_fingerprint,
            time::until(self.root_expires_unix_s, now),
            time::until(self.issuing_ca_expires_unix_s, now),
        );
        for warning in &self.warnings {
            text.push_str(&format!("{} {warning}\n", paint.warn("warning:")));
        }
        for gateway in &self.gateways {
            text.push_str(&format!(
                "\ngateway {}  quic {}  tls {}\n",
                paint.bold(&gateway.id),
                gateway.quic_addresses.join(","),
                gateway.tls_addresses.join(",")
            ));
        }
        if !self.links.is_empty() {
            text.push_str(&format!("\n{}", self.link_table(paint)));
        }
        if !self.nodes.is_empty() {
            text.push_str(&format!("\n{}", node_table(&self.nodes, wide, paint)));
        }
        if !self.proxies.is_empty() {
            text.push_str(&format!("\n{}", self.proxy_table(paint, now)));
        }
        if self.proxies.iter().any(|proxy| !proxy.transitions.is_empty()) {
            text.push_str(&format!("\n{}", self.transition_table(paint, now)));
        }
        if !self.consuls.is_empty() {
            text.push_str(&format!("\n{}", self.consul_table(paint)));
        }
        text
    }
}

impl Status {
    fn link_table(&self, paint: Paint) -> String {
        let mut table =
            Table::new(&["LINK", "STATE", "TRANSPORT", "RTT", "HEARD", "EXPORTS", "IMPORTS"]);
        for link in &self.links {
            table.row([
                link.site.clone(),
                view::state(paint, &link.state),
                link.transports(),
                link.rtt(),
                time::age_ms(link.last_heard_ms),
                link.exports.join(","),
                link.imports.join(","),
            ]);
        }
        table.render(paint)
    }

    fn transition_table(&self, paint: Paint, now: i64) -> String {
        let mut table = Table::new(&["TLS OF ANOTHER CA", "PROXY", "NODE", "UNTIL"]);
        for proxy in &self.proxies {
            for tls in &proxy.transitions {
                table.row([
                    format!("{} {}", tls.kind, tls.name),
                    proxy.spiffe_id.clone(),
                    proxy.node.chars().take(8).collect(),
                    tls.end(now, paint),
                ]);
            }
        }
        table.render(paint)
    }

    fn consul_table(&self, paint: Paint) -> String {
        let mut table =
            Table::new(&["CONSUL", "STATE", "DOOR", "IMPORTS", "EXPORTS", "INDEX", "ERRORS"]);
        for consul in &self.consuls {
            let state = match consul.state.as_str() {
                "fresh" => paint.good("fresh"),
                "stale" => paint.bad(&format!("stale {}", time::age_ms(consul.stale_ms))),
                state => paint.warn(state),
            };
            let but = |refused: u32| match refused {
                0 => String::new(),
                refused => format!(" (not {refused})"),
            };
            let imports = format!(
                "{} in {} services{}",
                consul.imported_instances,
                consul.imported_services,
                but(consul.not_imported)
            );
            let errors = consul.errors.iter().map(|(kind, count)| format!("{kind} {count}"));
            table.row([
                consul.address.clone(),
                state,
                consul.door.chars().take(8).collect(),
                imports,
                format!("{}{}", consul.exported, but(consul.not_exported)),
                consul.index.to_string(),
                errors.collect::<Vec<_>>().join(", "),
            ]);
        }
        table.render(paint)
    }

    fn proxy_table(&self, paint: Paint, now: i64) -> String {
        let mut table = Table::new(&["PROXY", "NODE", "STATE", "CERTIFICATE", "HEARD", "VERSION"]);
        for proxy in &self.proxies {
            let expires = time::until(proxy.certificate_expires_unix_s, now);
            let soon = proxy.certificate_expires_unix_s - now < CERTIFICATE_WARNING_S;
            let known = proxy.certificate_expires_unix_s != 0;
            let acked = match (proxy.acked.is_empty(), proxy.nack.is_empty()) {
                (_, false) => paint.bad(&format!("refused: {}", proxy.nack)),
                (true, true) => paint.warn("waiting"),
                (false, true) => paint.good("follows"),
            };
            table.row([
                proxy.spiffe_id.clone(),
                proxy.node.chars().take(8).collect(),
                acked,
                if known && soon { paint.warn(&expires) } else { expires },
                time::age_ms(proxy.last_heard_ms),
                proxy.version.clone(),
            ]);
        }
        table.render(paint)
    }
}
