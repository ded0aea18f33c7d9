//! `meshctl link`, `links`: this site and others.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use mesh_api::v1;
use serde::Serialize;
use tokio_stream::StreamExt;

use super::{join::read_token, token::show_created, view};
use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show, Table},
    time,
};

/// What making a link may take, all waiting included.
const LINK_TIMEOUT: Duration = Duration::from_secs(45);

/// Subcommands of `link`.
#[derive(Debug, Subcommand)]
pub enum Link {
    /// Make a token with which another site links to this one
    Token(LinkToken),
    /// Link to the site that made the token; both directions
    Cluster(Cluster),
    /// End a link; nothing of the other site is trusted or shown any more
    #[command(after_help = "Examples:\n  meshctl link remove east")]
    Remove {
        /// The other site
        site: String,
    },
}

/// Arguments of `link token`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  east$ meshctl link token --site west\n  west$ meshctl link cluster east <token>"
)]
pub struct LinkToken {
    /// The site that is going to redeem it
    #[arg(long = "site", value_name = "SITE")]
    peer: String,
    /// How long it works
    #[arg(long, default_value = "15m", value_parser = time::parse_duration)]
    ttl: Duration,
}

/// Arguments of `link cluster`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl link cluster east isthmus1.CgEB…\n  meshctl link cluster east - < token.txt\n  meshctl link cluster east <token> --transport tls\n  meshctl --context east link token --site west | meshctl link cluster east -"
)]
pub struct Cluster {
    /// Name of the other site, as it calls itself
    #[arg(value_name = "SITE")]
    peer: String,
    /// The token, or - to read it from stdin
    token: String,
    /// Which transports the link may use
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
}

/// `--transport`.
#[derive(Debug, Clone, Copy, ValueEnum, Default)]
pub enum Transport {
    /// QUIC where it works, TLS over TCP elsewhere
    #[default]
    Raced,
    /// QUIC or nothing
    Quic,
    /// TLS over TCP or nothing
    Tls,
}

impl From<Transport> for v1::LinkTransport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Raced => v1::LinkTransport::Unspecified,
            Transport::Quic => v1::LinkTransport::Quic,
            Transport::Tls => v1::LinkTransport::Tls,
        }
    }
}

impl Link {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        match self {
            Link::Token(token) => token.run(run, format).await,
            Link::Cluster(cluster) => cluster.run(run, format).await,
            Link::Remove { site } => {
                run.admin().await?.unlink(v1::UnlinkRequest { site: site.clone() }).await?;
                output::print(format, &view::Done::new(format!("link {site}: removed")))
            }
        }
    }
}

impl LinkToken {
    async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let ttl_s = self.ttl.as_secs().max(1);
        let request = v1::CreateLinkTokenRequest { site: self.peer.clone(), ttl_s };
        let answer = run.admin().await?.create_link_token(request).await?.into_inner();
        let next = format!("on {}: meshctl link cluster <this site> <token>", self.peer);
        show_created(format, answer, &next)
    }
}

impl Cluster {
    async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let token = read_token(&self.token)?;
        let request = v1::LinkClusterRequest {
            site: self.peer.clone(),
            token,
            transport: v1::LinkTransport::from(self.transport).into(),
        };
        let linked = tokio::time::timeout(LINK_TIMEOUT, link(run, request)).await;
        let result = linked.unwrap_or_else(|_| {
            Err(Failure::new(format!("link {}: no result within 45 s", self.peer))
                .exit(Exit::Unreachable)
                .remedy("`meshctl links` shows whether it was kept; see `journalctl -u isthmus-federation`"))
        })?;
        output::print(format, &LinkView::from(result))
    }
}

async fn link(run: &Run, request: v1::LinkClusterRequest) -> Result<v1::LinkResult, Failure> {
    let site = request.site.clone();
    let mut progress = run.admin().await?.link_cluster(request).await?.into_inner();
    while let Some(message) = progress.next().await {
        let message = message?;
        if !message.step.is_empty() {
            eprintln!("  {}", message.step);
        }
        if let Some(result) = message.result {
            return Ok(result);
        }
    }
    Err(Failure::new(format!("link {site}: federation ended without a result"))
        .remedy("see `journalctl -u isthmus-federation`"))
}

/// `meshctl links`.
pub async fn links(run: &Run, format: Format) -> Result<(), Failure> {
    let answer = run.admin().await?.list_links(v1::ListLinksRequest {}).await?.into_inner();
    let links = answer.links.into_iter().map(Into::into).collect();
    output::print(format, &Links { links })
}

#[derive(Debug, Serialize)]
struct LinkView {
    site: String,
    trust_domain: String,
    root_fingerprint: String,
    own_trust_domain: String,
    own_root_fingerprint: String,
    exports: Vec<String>,
    imports: Vec<String>,
}

impl From<v1::LinkResult> for LinkView {
    fn from(result: v1::LinkResult) -> Self {
        Self {
            site: result.site,
            trust_domain: result.trust_domain,
            root_fingerprint: result.root_fingerprint,
            own_trust_domain: result.own_trust_domain,
            own_root_fingerprint: result.own_root_fingerprint,
            exports: result.exports,
            imports: result.imports,
        }
    }
}

impl Show for LinkView {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let list = |names: &[String]| {
            if names.is_empty() { paint.faint("nothing yet") } else { names.join(", ") }
        };
        format!(
            "Linked {}\n  {:<24} root {}  exports {}\n  {:<24} root {}  exports {}\n",
            paint.bold(&self.site),
            self.own_trust_domain,
            self.own_root_fingerprint,
            list(&self.exports),
            self.trust_domain,
            self.root_fingerprint,
            list(&self.imports),
        )
    }
}

#[derive(Debug, Serialize)]
struct Links {
    links: Vec<view::Link>,
}

impl Show for Links {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.links.is_empty() {
            return "No links. On the other site: meshctl link token --site <this site>\n".into();
        }
        let mut header = vec![
            "SITE",
            "TRUST DOMAIN",
            "STATE",
            "TRANSPORT",
            "RTT",
            "HEARD",
            "BUNDLE",
            "EXPORTS",
            "IMPORTS",
        ];
        if wide {
            header.extend(["ROOT"]);
        }
        let mut table = Table::new(&header);
        for link in &self.links {
            let mut cells = vec![
                link.site.clone(),
                link.trust_domain.clone(),
                view::state(paint, &link.state),
                link.transports(),
                link.rtt(),
                time::age_ms(link.last_heard_ms),
                link.bundle_sequence.to_string(),
                link.exports.join(","),
                link.imports.join(","),
            ];
            if wide {
                cells.push(link.root_fingerprint.clone());
            }
            table.row(cells);
        }
        let mut text = table.render(paint);
        text.push_str(&remarks(&self.links, paint));
        text
    }
}

/// Why a transport is not the preferred one, and what could not be imported.
fn remarks(links: &[view::Link], paint: Paint) -> String {
    let mut text = String::new();
    for link in links {
        for tunnel in link.tunnels.iter().filter(|tunnel| !tunnel.reason.is_empty()) {
            text.push_str(&format!(
                "{} {} of gateway {}: {}\n",
                link.site,
                tunnel.transport,
                tunnel.gateway,
                paint.warn(&tunnel.reason)
            ));
        }
        for refused in &link.refused {
            text.push_str(&format!("{}: {}\n", link.site, paint.warn(refused)));
        }
    }
    text
}
