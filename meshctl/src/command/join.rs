//! `meshctl join` and `leave`: this machine and its site.

use std::{io::Read, time::Duration};

use clap::Args;
use mesh_api::v1;
use serde::Serialize;
use tokio_stream::StreamExt;

use super::{view, vm};
use crate::{
    endpoint::Run,
    failure::{Exit, Failure},
    output::{self, Format, Paint, Show, count},
    time,
};

/// What a join may take, all waiting included.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A token is a few hundred bytes; more on stdin is something else.
const MAX_TOKEN: u64 = 64 * 1024;

/// Arguments of `join`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl join isthmus1.CgEBEgR3ZXN0…
  meshctl join - < token.txt
  ssh control meshctl token create --namespace shop --account orders | meshctl join -")]
pub struct Join {
    /// The token, or - to read it from stdin (it stays out of the shell history)
    token: String,
}

/// Arguments of `leave`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl leave\n  meshctl leave --force    (the site cannot be told: forget it anyway)"
)]
pub struct Leave {
    /// Forget the site even when it cannot be told
    #[arg(long)]
    force: bool,
}

/// The token itself, from the command line or from stdin.
pub(crate) fn read_token(argument: &str) -> Result<String, Failure> {
    if argument != "-" {
        return Ok(argument.trim().to_owned());
    }
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_TOKEN).read_to_string(&mut text)?;
    match text.trim() {
        "" => Err(Failure::usage("no token on stdin")
            .remedy("pipe it: meshctl token create … | meshctl join -")),
        token => Ok(token.to_owned()),
    }
}

impl Join {
    /// Asks the agent to join and shows its progress.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let token = read_token(&self.token)?;
        let joined = tokio::time::timeout(JOIN_TIMEOUT, join(run, token)).await;
        let status = joined.unwrap_or_else(|_| {
            Err(Failure::new("join: no result within 30 s")
                .exit(Exit::Unreachable)
                .remedy("see `journalctl -u isthmus-vm-agent`; the token is still good if it was not redeemed"))
        })?;
        output::print(format, &JoinView::from(status))
    }
}

async fn join(run: &Run, token: String) -> Result<v1::AgentStatusResponse, Failure> {
    let mut agent = run.agent().await?;
    let mut progress = agent.join_site(v1::JoinSiteRequest { token }).await?.into_inner();
    while let Some(message) = progress.next().await {
        let message = message?;
        if !message.step.is_empty() {
            eprintln!("  {}", message.step);
        }
        if let Some(result) = message.result {
            return Ok(result);
        }
    }
    Err(Failure::new("join: the agent ended without a result")
        .remedy("see `journalctl -u isthmus-vm-agent`"))
}

impl Leave {
    /// Asks the agent to give everything up.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let mut agent = run.agent().await?;
        vm::disable_if_there(run).await?;
        agent.leave_site(v1::LeaveSiteRequest { force: self.force }).await?;
        output::print(format, &view::Done::new("left: nothing of the site remains on this machine"))
    }
}

/// What an agent says of its machine.
#[derive(Debug, Serialize)]
pub(crate) struct JoinView {
    state: String,
    site: String,
    trust_domain: String,
    node: String,
    spiffe_id: String,
    grants: Option<view::Grants>,
    certificate_expires_unix_s: i64,
    services: Vec<LocalServiceView>,
    problem: String,
}

#[derive(Debug, Serialize)]
struct LocalServiceView {
    instance: String,
    service: String,
    ports: Vec<view::Port>,
    health: &'static str,
    detail: String,
    registered: bool,
}

impl From<v1::AgentStatusResponse> for JoinView {
    fn from(status: v1::AgentStatusResponse) -> Self {
        let site = status.site.unwrap_or_default();
        Self {
            state: status.state,
            site: site.name,
            trust_domain: site.trust_domain,
            node: status.node,
            spiffe_id: status.spiffe_id,
            grants: status.grants.map(Into::into),
            certificate_expires_unix_s: status.certificate_expires_unix_s,
            services: status.services.into_iter().map(Into::into).collect(),
            problem: status.problem,
        }
    }
}

impl From<v1::LocalService> for LocalServiceView {
    fn from(service: v1::LocalService) -> Self {
        Self {
            health: view::health(service.health()),
            instance: service.instance,
            service: service.service,
            ports: service.ports.into_iter().map(Into::into).collect(),
            detail: service.detail,
            registered: service.registered,
        }
    }
}

impl Show for JoinView {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let mut text = format!(
            "Site     {} ({})\nNode     {}\nIdentity {}\n",
            self.site, self.trust_domain, self.node, self.spiffe_id
        );
        if self.certificate_expires_unix_s != 0 {
            let expires = time::until(self.certificate_expires_unix_s, time::now_unix_s());
            text.push_str(&format!(
                "State    {}, certificate expires {expires}\n",
                view::state(paint, &self.state)
            ));
        }
        if self.services.is_empty() {
            text.push_str(&paint.warn("THIS MACHINE BACKS NO SERVICE.\n"));
            text.push_str("  next: write /etc/isthmus/services.d/<name>.yaml (service, namespace, port, protocol)\n");
        } else {
            text.push_str(&format!("Backs    {}\n", count(self.services.len(), "service")));
        }
        for service in &self.services {
            let registered = if service.registered { "" } else { "  NOT REGISTERED" };
            let detail = if service.detail.is_empty() {
                String::new()
            } else {
                format!(": {}", service.detail)
            };
            text.push_str(&format!(
                "  {}  {}  {}{}{}\n",
                service.service,
                view::Port::list(&service.ports),
                view::state(paint, service.health),
                detail,
                paint.bad(registered),
            ));
        }
        if !self.problem.is_empty() {
            text.push_str(&format!("{} {}\n", paint.bad("Problem"), self.problem));
        }
        text
    }
}
