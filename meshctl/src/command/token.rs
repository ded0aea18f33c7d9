//! `meshctl token`: the tickets with which machines join.

use std::time::Duration;

use clap::{Args, Subcommand};
use mesh_api::v1;
use serde::Serialize;

use super::view;
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
    time,
};

/// Subcommands of `token`.
#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token; it is shown this once
    Create(Create),
    /// Tokens, open and spent
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  meshctl token list\n  meshctl token list --json"
    )]
    List,
    /// Make a token worthless
    #[command(after_help = "Examples:\n  meshctl token revoke 3f9a1c")]
    Revoke {
        /// Id, as `token list` shows it
        id: String,
    },
}

/// Arguments of `token create`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl token create --namespace shop --account orders
  meshctl token create --namespace shop --account orders --service orders.shop --uses 20 --ttl 1h
  meshctl token create --namespace shop --account orders | ssh vm1 meshctl join -
  meshctl token create --gateway --ttl 10m")]
pub struct Create {
    /// Namespace of the identity that the machine's workload gets
    #[arg(
        long,
        required_unless_present = "gateway",
        default_value = "",
        hide_default_value = true
    )]
    namespace: String,
    /// Account of that identity: spiffe://<trust domain>/ns/<namespace>/sa/<account>
    #[arg(
        long,
        required_unless_present = "gateway",
        default_value = "",
        hide_default_value = true
    )]
    account: String,
    /// A service the machine may offer, <name>.<namespace>; may be repeated [default: every name of the namespace]
    #[arg(long = "service", value_name = "SERVICE")]
    services: Vec<String>,
    /// How many machines may join with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// How long it works: 15m, 24h
    #[arg(long, default_value = "15m", value_parser = time::parse_duration)]
    ttl: Duration,
    /// For a gateway on a machine of its own: adds the reserved gateway identity
    #[arg(long)]
    gateway: bool,
}

impl Token {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        match self {
            Token::Create(create) => create.run(run, format).await,
            Token::List => list(run, format).await,
            Token::Revoke { id } => {
                run.admin().await?.revoke_token(v1::RevokeTokenRequest { id: id.clone() }).await?;
                output::print(format, &view::Done::new(format!("token {id}: revoked")))
            }
        }
    }
}

/// What makes the machine a gateway besides its identity.
const NEXT_FOR_GATEWAY: &str = "on the machine: meshctl join <token>, and in its gateway.yaml
    identity: { socket: /run/isthmus/identity.sock }
    gateway: { id: <id>, quic: 0.0.0.0:8443, tls: 0.0.0.0:8443 }
  here: the same id with its addresses under `gateways` in federation.yaml, and restart federation";

impl Create {
    async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let request = v1::CreateTokenRequest {
            namespace: self.namespace,
            account: self.account,
            services: self.services,
            uses: self.uses,
            ttl_s: self.ttl.as_secs().max(1),
            gateway: self.gateway,
        };
        let answer = run.admin().await?.create_token(request).await?.into_inner();
        let next =
            if self.gateway { NEXT_FOR_GATEWAY } else { "on the machine: meshctl join <token>" };
        show_created(format, answer, next)
    }
}

/// The token goes to stdout alone, so that it can be piped; what to do with it
/// goes to stderr.
pub(crate) fn show_created(
    format: Format,
    answer: v1::CreateTokenResponse,
    next: &str,
) -> Result<(), Failure> {
    let created =
        Created { id: answer.id, token: answer.token, expires_unix_s: answer.expires_unix_s };
    output::print(format, &created)?;
    if !format.is_document() {
        let expires = time::until(created.expires_unix_s, time::now_unix_s());
        eprintln!("token {}: expires {expires}; it is not shown again\n  next: {next}", created.id);
    }
    Ok(())
}

async fn list(run: &Run, format: Format) -> Result<(), Failure> {
    let answer = run.admin().await?.list_tokens(v1::ListTokensRequest {}).await?.into_inner();
    let tokens = answer.tokens.into_iter().map(TokenView::from).collect();
    output::print(format, &Tokens { tokens })
}

#[derive(Debug, Serialize)]
struct Created {
    id: String,
    token: String,
    expires_unix_s: i64,
}

impl Show for Created {
    fn text(&self, _wide: bool, _paint: Paint) -> String {
        format!("{}\n", self.token)
    }
}

#[derive(Debug, Serialize)]
struct Tokens {
    tokens: Vec<TokenView>,
}

#[derive(Debug, Serialize)]
struct TokenView {
    id: String,
    purpose: &'static str,
    state: String,
    grants: Option<view::Grants>,
    uses_left: u32,
    expires_unix_s: i64,
    redeemed_by: Vec<String>,
}

impl From<v1::TokenInfo> for TokenView {
    fn from(info: v1::TokenInfo) -> Self {
        let purpose = match info.purpose() {
            v1::TokenPurpose::Node => "join",
            v1::TokenPurpose::Link => "link",
            v1::TokenPurpose::Unspecified => "unknown",
        };
        Self {
            id: info.id,
            purpose,
            state: info.state,
            grants: info.grants.map(Into::into),
            uses_left: info.uses_left,
            expires_unix_s: info.expires_unix_s,
            redeemed_by: info.redeemed_by,
        }
    }
}

impl Show for Tokens {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.tokens.is_empty() {
            return "No tokens. Make one: meshctl token create --namespace N --account A\n".into();
        }
        let now = time::now_unix_s();
        let mut header = vec!["ID", "FOR", "STATE", "IDENTITY", "USES LEFT", "EXPIRES"];
        if wide {
            header.extend(["SERVICES", "REDEEMED BY"]);
        }
        let mut table = Table::new(&header);
        for token in &self.tokens {
            let state = if token.state == "open" {
                paint.good(&token.state)
            } else {
                paint.faint(&token.state)
            };
            let grants = token.grants.as_ref();
            let mut cells = vec![
                token.id.clone(),
                token.purpose.to_owned(),
                state,
                grants.map(view::Grants::identity).unwrap_or_default(),
                token.uses_left.to_string(),
                time::until(token.expires_unix_s, now),
            ];
            if wide {
                cells.push(grants.map(|grants| grants.services.join(",")).unwrap_or_default());
                cells.push(token.redeemed_by.join(","));
            }
            table.row(cells);
        }
        table.render(paint)
    }
}
