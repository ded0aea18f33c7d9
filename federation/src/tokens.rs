//! Tokens: made once, kept as a hash, used a counted number of times.

use std::time::Duration;

use mesh_api::v1::{Grants, TokenCreated, TokenPurpose, authority_record::Event};
use mesh_core::{
    ServiceName, SiteName, SpiffeId,
    address::is_on_loopback,
    name::is_reserved_namespace,
    token::{MAX_GATEWAYS, Purpose, Token},
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tonic::Code;

use crate::{
    authority::{CommitError, State, rotation::RootHash, state::TokenState},
    ca::{hex, spki_sha256},
    refusal::Refusal,
    site::Site,
};

/// The most nodes that one token lets in.
pub const MAX_USES: u32 = 10_000;
/// The longest life of a token.
pub const MAX_TTL: Duration = Duration::from_secs(30 * 86_400);
/// What a token lives when nothing was said.
pub const DEFAULT_TTL: Duration = Duration::from_secs(900);
/// Tokens that are remembered at once, spent ones included.
pub const MAX_TOKENS: usize = 20_000;
/// Services that one token may name.
pub const MAX_SERVICES: usize = 256;

/// Why a token was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// Something in the request.
    #[error("{field}: {problem}")]
    Invalid {
        /// Which part.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Only gateways live there.
    #[error(
        "namespace {0} is reserved for the mesh; choose another, or make a token with --gateway"
    )]
    Reserved(String),
    /// Nobody could use it.
    #[error(
        "this site has no gateway with a TLS address to join through; add one under `gateways` in \
         federation.yaml"
    )]
    NoGateway,
    /// A gateway elsewhere would not find us.
    #[error(
        "federation is reached at {0}, from its own host alone; set `listen` in federation.yaml to \
         an address that the gateway's host can reach"
    )]
    OutOfReach(String),
    /// Linked already, or ourselves.
    #[error("{0}")]
    Site(String),
    /// There are enough.
    #[error("{MAX_TOKENS} tokens are remembered; wait until old ones are forgotten")]
    TooMany,
}

impl Refusal for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid { .. } | Self::Reserved(_) => Code::InvalidArgument,
            Self::NoGateway | Self::OutOfReach(_) | Self::Site(_) => Code::FailedPrecondition,
            Self::TooMany => Code::ResourceExhausted,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid_argument",
            Self::Reserved(_) => "reserved_namespace",
            Self::NoGateway => "no_gateway",
            Self::OutOfReach(_) => "federation_out_of_reach",
            Self::Site(_) => "invalid_site",
            Self::TooMany => "too_many_tokens",
        }
    }
}

/// Why a token does not let anybody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// Never made here, or another secret: which of the two is not told.
    #[error("this site does not know the token; ask for a new one with `meshctl token create`")]
    Unknown,
    /// For linking instead of joining, or the other way round.
    #[error("token {id} is for another purpose ({})", .purpose.as_str_name())]
    WrongPurpose {
        /// Which token.
        id: String,
        /// What it is for.
        purpose: TokenPurpose,
    },
    /// Taken back.
    #[error("token {0} was revoked; ask for a new one")]
    Revoked(String),
    /// Too late.
    #[error("token {id} expired {ago_s} s ago; ask for a new one")]
    Expired {
        /// Which token.
        id: String,
        /// How late.
        ago_s: i64,
    },
    /// Used as often as it may be.
    #[error("token {id} is used up ({uses} of {uses}, last by {by}); ask for a new one")]
    UsedUp {
        /// Which token.
        id: String,
        /// How often it could be used.
        uses: u32,
        /// Who used it last.
        by: String,
    },
}

impl Refusal for TokenRefusal {
    fn code(&self) -> Code {
        Code::PermissionDenied
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unknown => "token_unknown",
            Self::WrongPurpose { .. } => "token_wrong_purpose",
            Self::Revoked(_) => "token_revoked",
            Self::Expired { .. } => "token_expired",
            Self::UsedUp { .. } => "token_used_up",
        }
    }
}

/// What a new token is to allow.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// Join or link.
    pub purpose: Purpose,
    /// For nodes.
    pub grants: Grants,
    /// How often.
    pub uses: u32,
    /// How long.
    pub ttl: Duration,
    /// Adds the gateway identity.
    pub gateway: bool,
    /// For links: who may redeem it.
    pub site: String,
}

impl NewToken {
    /// A token that lets machines join; empty `services` grant the whole
    /// namespace, zero `ttl` is [`DEFAULT_TTL`], zero `uses` is one.
    pub fn join(
        grants: Grants,
        uses: u32,
        ttl: Duration,
        gateway: bool,
    ) -> Result<Self, CreateError> {
        let grants = check_grants(grants, gateway)?;
        let (uses, ttl) = (uses.max(1), default_ttl(ttl)?);
        if uses > MAX_USES {
            return Err(invalid("uses", format!("at most {MAX_USES}")));
        }
        Ok(Self { purpose: Purpose::Node, grants, uses, ttl, gateway, site: String::new() })
    }

    /// A token that lets one other site link with this one, once.
    pub fn link(site: &str, ttl: Duration) -> Result<Self, CreateError> {
        let site: SiteName = site.parse().map_err(|error| invalid("site", error))?;
        Ok(Self {
            purpose: Purpose::Link,
            grants: Grants::default(),
            uses: 1,
            ttl: default_ttl(ttl)?,
            gateway: false,
            site: site.to_string(),
        })
    }
}

/// Makes a token. The only time that its secret exists here.
pub async fn create(
    site: &Site,
    actor: &str,
    new: NewToken,
) -> Result<(Token, i64), CommitError<CreateError>> {
    let secret: [u8; 32] = rand::random();
    let id = hex(&rand::random::<[u8; 6]>());
    let expires_unix_s = site.authority.clock().unix_s() + new.ttl.as_secs().cast_signed();
    site.authority
        .commit(actor, |state| {
            let token = check_create(state, &new, &id, secret)?;
            if new.gateway {
                check_reach(state, &site.address)?;
            }
            let created = TokenCreated {
                id: id.clone(),
                purpose: new.purpose.wire().into(),
                secret_sha256: Sha256::digest(secret).to_vec(),
                grants: Some(new.grants.clone()),
                uses: new.uses,
                expires_unix_s,
                gateway: new.gateway,
                site: new.site.clone(),
                root: token.root_spki_sha256.to_vec(),
            };
            Ok((vec![Event::TokenCreated(created)], (token, expires_unix_s)))
        })
        .await
}

/// A gateway on another host dials federation, unless the site is all on one.
fn check_reach(state: &State, address: &str) -> Result<(), CreateError> {
    let gateways = state.gateways.values();
    let all = gateways.flat_map(|g| g.quic_addresses.iter().chain(&g.tls_addresses));
    if is_on_loopback([address]) && !is_on_loopback(all.map(String::as_str)) {
        return Err(CreateError::OutOfReach(address.to_owned()));
    }
    Ok(())
}

fn check_create(
    state: &State,
    new: &NewToken,
    id: &str,
    secret: [u8; 32],
) -> Result<Token, CreateError> {
    if state.tokens.len() >= MAX_TOKENS {
        return Err(CreateError::TooMany);
    }
    let site = state.site();
    if new.purpose == Purpose::Link {
        if new.site == site.name.as_str() {
            return Err(CreateError::Site(format!("{} is this very site", site.name)));
        }
        if state.links.contains_key(new.site.as_str()) {
            let problem =
                format!("{} is linked already; `meshctl unlink {}` first", new.site, new.site);
            return Err(CreateError::Site(problem));
        }
    }
    let addresses = state.gateways.values().flat_map(|gateway| &gateway.tls_addresses);
    let gateways: Vec<_> = addresses.take(MAX_GATEWAYS).map(|a| a.as_str().into()).collect();
    let root = spki_sha256(state.signing_root());
    if gateways.is_empty() {
        return Err(CreateError::NoGateway);
    }
    Ok(Token {
        purpose: new.purpose,
        site: site.name.clone(),
        trust_domain: site.trust_domain.clone(),
        gateways,
        root_spki_sha256: root.ok_or_else(|| invalid("root", "does not parse"))?,
        id: id.into(),
        secret,
    })
}

/// Whether a token lets somebody in now. To be called inside the commit that
/// also counts the use.
pub fn check<'a>(
    state: &'a State,
    id: &str,
    secret: &[u8],
    purpose: Purpose,
    now_unix_s: i64,
) -> Result<&'a TokenState, TokenRefusal> {
    let token = known(state, id, secret).ok_or(TokenRefusal::Unknown)?;
    let id = || token.id.clone();
    if token.purpose != purpose.wire() {
        return Err(TokenRefusal::WrongPurpose { id: id(), purpose: token.purpose });
    }
    if token.revoked {
        return Err(TokenRefusal::Revoked(id()));
    }
    let ago_s = now_unix_s - token.expires_unix_s;
    if ago_s >= 0 {
        return Err(TokenRefusal::Expired { id: id(), ago_s });
    }
    if token.uses_left() == 0 {
        let by = token.used_by.last().cloned().unwrap_or_default();
        return Err(TokenRefusal::UsedUp { id: id(), uses: token.uses, by });
    }
    Ok(token)
}

/// The token of which the bearer knows the secret. An unknown id takes as long
/// as a wrong secret.
pub fn known<'a>(state: &'a State, id: &str, secret: &[u8]) -> Option<&'a TokenState> {
    let token = state.tokens.get(id);
    let expected = token.map_or([0; 32], |token| token.secret_sha256);
    let given: [u8; 32] = Sha256::digest(secret).into();
    let same = bool::from(given.ct_eq(&expected));
    token.filter(|_| same).map(|token| &**token)
}

/// Those with which somebody may still come, and which pin this root.
pub fn open_with(state: &State, root: RootHash, now_unix_s: i64) -> Vec<String> {
    let open = |token: &&std::sync::Arc<TokenState>| {
        token.root == root && describe(token, now_unix_s) == "open"
    };
    state.tokens.values().filter(open).map(|token| token.id.clone()).collect()
}

/// "open", "used up", "expired" or "revoked".
pub fn describe(token: &TokenState, now_unix_s: i64) -> &'static str {
    if token.revoked {
        "revoked"
    } else if token.uses_left() == 0 {
        "used up"
    } else if token.expires_unix_s <= now_unix_s {
        "expired"
    } else {
        "open"
    }
}

fn check_grants(mut grants: Grants, gateway: bool) -> Result<Grants, CreateError> {
    if gateway && grants.namespace.is_empty() {
        // A machine that is a gateway and nothing else.
        return if grants.account.is_empty() && grants.services.is_empty() {
            Ok(Grants::default())
        } else {
            Err(invalid("namespace", "is needed with an account or services"))
        };
    }
    // The domain plays no part in whether the names are well formed.
    let domain = "check".parse().expect("it is a trust domain");
    SpiffeId::workload(&domain, &grants.namespace, &grants.account)
        .map_err(|error| invalid("namespace and account", error))?;
    if is_reserved_namespace(&grants.namespace) {
        return Err(CreateError::Reserved(grants.namespace));
    }
    if grants.services.is_empty() {
        grants.services.push(format!("*.{}", grants.namespace));
    }
    if grants.services.len() > MAX_SERVICES {
        return Err(invalid("services", format!("at most {MAX_SERVICES}")));
    }
    for service in &grants.services {
        // "*" stands for a name.
        let name = service.strip_prefix("*.").map(|namespace| format!("any.{namespace}"));
        let name = name.as_deref().unwrap_or(service).parse::<ServiceName>();
        let name = name.map_err(|error| invalid("services", error))?;
        if is_reserved_namespace(name.namespace()) {
            return Err(CreateError::Reserved(name.namespace().to_owned()));
        }
    }
    Ok(grants)
}

fn default_ttl(ttl: Duration) -> Result<Duration, CreateError> {
    match ttl {
        Duration::ZERO => Ok(DEFAULT_TTL),
        ttl if ttl > MAX_TTL => Err(invalid("ttl", "at most 30 days")),
        ttl => Ok(ttl),
    }
}

fn invalid(field: &'static str, problem: impl ToString) -> CreateError {
    CreateError::Invalid { field, problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{TokenRevoked, TokenUsed};

    use super::*;
    use crate::testing::TestSite;

    /// One table for joining and linking: each reason, and that the first one
    /// counts.
    #[tokio::test]
    async fn a_token_that_does_not_hold_has_its_own_reason_for_each_purpose() {
        let site = TestSite::alone().await;
        let grants =
            || Grants { namespace: "shop".into(), account: "orders".into(), services: vec![] };
        let join = || NewToken::join(grants(), 1, Duration::ZERO, false).unwrap();
        let link = || NewToken::link("east", Duration::ZERO).unwrap();
        for (new, other) in [(join(), Purpose::Link), (link(), Purpose::Node)] {
            let purpose = new.purpose;
            let (token, expires) = create(&site.site, "test", new).await.unwrap();
            let ask = |secret: &[u8], purpose, now| {
                let asked = check(&site.state(), &token.id, secret, purpose, now).map(drop);
                asked.map_err(|refusal| refusal.reason())
            };
            assert_eq!(ask(&token.secret, purpose, expires - 1), Ok(()));
            assert_eq!(ask(&token.secret, purpose, expires), Err("token_expired"));
            assert_eq!(ask(&token.secret, other, expires - 1), Err("token_wrong_purpose"));
            assert_eq!(ask(&[0; 32], purpose, expires - 1), Err("token_unknown"));
            assert_eq!(ask(b"", purpose, expires - 1), Err("token_unknown"));
            let (id, by) = (token.id.to_string(), "somebody".into());
            site.commit(vec![Event::TokenUsed(TokenUsed { id: id.clone(), by })]).await;
            assert_eq!(ask(&token.secret, purpose, expires - 1), Err("token_used_up"));
            site.commit(vec![Event::TokenRevoked(TokenRevoked { id })]).await;
            assert_eq!(ask(&token.secret, purpose, expires - 1), Err("token_revoked"));
        }
    }

    #[tokio::test]
    async fn a_gateway_elsewhere_must_be_able_to_reach_federation() {
        let made = async |site: &Site, gateway| {
            let grants =
                Grants { namespace: "shop".into(), account: "orders".into(), services: vec![] };
            let new = NewToken::join(grants, 1, Duration::ZERO, gateway).unwrap();
            create(site, "test", new).await.map_err(|error| match error {
                CommitError::Refused(refused) => refused.reason(),
                _ => "store",
            })
        };
        // Its gateways have names; it says that it is at 127.0.0.1.
        let mut site = TestSite::alone().await.site;
        assert_eq!(made(&site, true).await.unwrap_err(), "federation_out_of_reach");
        assert!(made(&site, false).await.is_ok());
        site.address = "10.0.0.5:8446".into();
        assert!(made(&site, true).await.is_ok());
    }
}
