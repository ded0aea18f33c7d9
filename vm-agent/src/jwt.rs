//! JWT-SVIDs that programs of this machine get over the Workload API: obtained
//! when one asks, and kept for the next that asks for the same audience until
//! half of their life is over.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_api::v1::{IssueJwtRequest, IssuedJwt};
use mesh_core::{
    jwt::{JwtSvid, verify_jwt},
    name::Subject,
};
use mesh_runtime::clock;
use rustls_pki_types::UnixTime;
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Code, Status};

use crate::{
    agent::{Agent, Member},
    node::Node,
    uplink::{self, node_identity, shown},
};

/// For federation's answer, and for a turn to ask it.
const DEADLINE: Duration = Duration::from_secs(10);
/// Questions to federation at once: one per program that is starting.
const TURNS: usize = 8;
/// Tokens that are kept: more audiences than the programs of one machine have.
const MAX_HELD: usize = 256;

/// What a member holds.
pub struct Tokens {
    held: Mutex<Vec<Held>>,
    turns: Semaphore,
}

struct Held {
    audience: Vec<String>,
    token: String,
    /// Since the Unix epoch, both.
    obtained: Duration,
    fresh_until: Duration,
}

impl Default for Tokens {
    fn default() -> Self {
        Self { held: Mutex::default(), turns: Semaphore::new(TURNS) }
    }
}

impl Tokens {
    /// One that is young enough; a clock that was set back makes none young.
    fn find(&self, audience: &[String], now: Duration) -> Option<String> {
        let held = self.held();
        let fresh = |held: &&Held| (held.obtained..held.fresh_until).contains(&now);
        held.iter().find(|held| held.audience == audience).filter(fresh).map(|h| h.token.clone())
    }

    fn keep(&self, audience: &[String], token: String, now: Duration, not_after: Duration) {
        let mut held = self.held();
        held.retain(|held| held.fresh_until > now && held.audience != audience);
        if held.len() >= MAX_HELD {
            held.remove(0);
        }
        held.push(Held {
            audience: audience.to_vec(),
            token,
            obtained: now,
            fresh_until: now + not_after.saturating_sub(now) / 2,
        });
    }

    fn forget(&self, audience: &[String]) {
        self.held().retain(|held| held.audience != audience);
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token of this machine's workload for these audiences.
pub async fn token(agent: &Agent, member: &Member, audience: &[String]) -> Result<String, Status> {
    let tokens = &member.tokens;
    if let Some(token) = tokens.find(audience, clock::now_unix()) {
        return Ok(token);
    }
    let busy = |_| Status::resource_exhausted("too many programs wait for tokens; ask again");
    // Never closed.
    let _turn = timeout(DEADLINE, tokens.turns.acquire()).await.map_err(busy)?;
    if let Some(token) = tokens.find(audience, clock::now_unix()) {
        return Ok(token);
    }
    tokens.forget(audience);
    let issued = ask(agent, &member.node(), audience).await?;
    member.refreshed(&agent.state, &issued.bundles, &issued.gateways);
    let svid = checked(&member.node(), audience, &issued.token)?;
    log::info!(id = svid.id.as_str(), audience:? = audience; "JWT-SVID for the Workload API");
    tokens.keep(audience, issued.token.clone(), clock::now_unix(), svid.not_after);
    Ok(issued.token)
}

async fn ask(agent: &Agent, node: &Node, audience: &[String]) -> Result<IssuedJwt, Status> {
    let Subject::Workload { namespace, account } = node.workload.subject() else {
        return Err(Status::permission_denied("this machine has no workload identity"));
    };
    let channel = uplink::channel(agent, node).map_err(Status::unavailable)?;
    let request = IssueJwtRequest {
        namespace: namespace.to_string(),
        account: account.to_string(),
        audience: audience.to_vec(),
    };
    match timeout(DEADLINE, node_identity(channel).issue_jwt(request)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(told(&status)),
        Err(_) => Err(Status::unavailable(format!("federation: no answer within {DEADLINE:?}"))),
    }
}

/// What federation's refusal is to the program: a no, or another time.
fn told(status: &Status) -> Status {
    let why = shown(status);
    log::warn!(error = why.as_str(); "no JWT-SVID for the Workload API");
    match status.code() {
        Code::PermissionDenied => Status::permission_denied(why),
        Code::InvalidArgument => Status::invalid_argument(why),
        Code::Unimplemented => Status::unimplemented(
            "this site's federation is of a version that issues no JWT-SVIDs; use X.509-SVIDs",
        ),
        _ => Status::unavailable(why),
    }
}

/// What is not believed here is believed nowhere.
fn checked(node: &Node, audience: &[String], token: &str) -> Result<JwtSvid, Status> {
    let svid = verify(node, audience.first().map_or("", String::as_str), token);
    let svid = svid.map_err(|error| Status::unavailable(format!("federation's token: {error}")))?;
    if svid.id != node.workload {
        let why = format!("federation's token names {}, not {}", svid.id, node.workload);
        return Err(Status::unavailable(why));
    }
    Ok(svid)
}

/// Verifies a token with what the site believes now.
pub fn verify(
    node: &Node,
    audience: &str,
    token: &str,
) -> Result<JwtSvid, mesh_core::jwt::JwtError> {
    let now = UnixTime::since_unix_epoch(clock::now_unix());
    verify_jwt(token, audience, &node.trust().bundles, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn audience(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    #[test]
    fn a_token_is_handed_out_while_it_is_young() {
        let (tokens, now) = (Tokens::default(), 1000 * SECOND);
        tokens.keep(&audience("bank"), "t".into(), now, now + 300 * SECOND);
        let found = |name, at| tokens.find(&audience(name), at);
        assert_eq!(found("bank", now), Some("t".into()));
        assert_eq!(found("bank", now + 149 * SECOND), Some("t".into()));
        assert_eq!(found("bank", now + 150 * SECOND), None, "half of its life is over");
        assert_eq!(found("bank", now - SECOND), None, "the clock was set back");
        assert_eq!(found("post", now), None);
        assert_eq!(tokens.find(&[audience("bank"), audience("post")].concat(), now), None);
        tokens.keep(&audience("bank"), "u".into(), now, now + 300 * SECOND);
        assert_eq!(found("bank", now), Some("u".into()));
        tokens.forget(&audience("bank"));
        assert_eq!(found("bank", now), None);
    }

    #[test]
    fn no_program_fills_the_memory() {
        let (tokens, now) = (Tokens::default(), 1000 * SECOND);
        for n in 0..2 * MAX_HELD {
            tokens.keep(&audience(&n.to_string()), "t".into(), now, now + 300 * SECOND);
        }
        assert_eq!(tokens.held().len(), MAX_HELD);
        assert!(tokens.find(&audience("0"), now).is_none(), "the oldest goes");
        assert!(tokens.find(&audience(&(2 * MAX_HELD - 1).to_string()), now).is_some());
        tokens.keep(&audience("x"), "t".into(), now + 200 * SECOND, now + 500 * SECOND);
        assert_eq!(tokens.held().len(), 1, "what is over goes");
    }
}
