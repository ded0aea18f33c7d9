//! Making a link: the side that redeems a token, and the side that issued it.

use mesh_api::{
    VERSIONS,
    v1::{
        Bundle, Gateway, Link, LinkMade, LinkTransport, RedeemLinkRequest, RedeemLinkResponse,
        TokenUsed, authority_record::Event,
    },
};
use mesh_core::{
    Allowed, SiteName, SpiffeId, TrustBundle, TrustDomain,
    identity::{Revocations, Side, verify_peer},
    name::InvalidName,
    token::{Purpose, Token},
};
use mesh_tunnel::Svid;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tonic::Code;

use crate::{
    authority::State,
    ca::spki_sha256,
    imports::{ImportError, MAX_GATEWAYS, check_bundle, check_gateway},
    proof::{self, ProofError},
    refusal::Refusal,
    site::gateways,
    tokens::{self, TokenRefusal},
};

/// Certificates of one chain: leaf, issuing CA, root, and room.
const MAX_CHAIN: usize = 8;
/// The longest certificate, in bytes; ours have about 500.
const MAX_CERTIFICATE: usize = 16 * 1024;
/// The longest signature; ECDSA over P-256 has at most 72 bytes.
const MAX_PROOF: usize = 1024;

/// Why a link was not made. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The token does not let anybody in.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// A name, bundle or gateway that is not well formed or not its own.
    #[error("{0}")]
    Invalid(String),
    /// Somebody else's token.
    #[error(
        "this token is for site {expected}, not for {site}; make one with `meshctl link token \
             --site {site}`"
    )]
    WrongSite {
        /// Who came.
        site: SiteName,
        /// Who may.
        expected: String,
    },
    /// We would link with ourselves.
    #[error("{0} is this very site; run this on the other one")]
    OwnSite(SiteName),
    /// Two sites with one trust domain cannot be told apart.
    #[error("trust domain {0} is this site's own; each site needs one of its own")]
    OwnDomain(TrustDomain),
    /// The domain is known under another name.
    #[error(
        "trust domain {domain} is linked already, as site {site}; `meshctl unlink {site}` first"
    )]
    DomainTaken {
        /// Which domain.
        domain: TrustDomain,
        /// As whom it is known.
        site: SiteName,
    },
    /// The site is linked.
    #[error("{0} is linked already; `meshctl unlink {0}` first")]
    AlreadyLinked(SiteName),
    /// The same site with roots that share nothing with those that are known.
    #[error(
        "{0} is linked with other roots; if that site was made anew, `meshctl unlink {0}` first"
    )]
    OtherRoots(SiteName),
    /// The certificate is not that of the domain's federation.
    #[error("the certificate of the site that redeems: {0}")]
    Chain(#[from] mesh_core::VerifyError),
    /// The key is not its own.
    #[error(transparent)]
    Proof(#[from] ProofError),
}

impl Refusal for LinkError {
    fn code(&self) -> Code {
        match self {
            Self::Token(error) => error.code(),
            Self::Invalid(_) => Code::InvalidArgument,
            Self::WrongSite { .. } | Self::Chain(_) | Self::Proof(_) => Code::PermissionDenied,
            Self::OwnSite(_)
            | Self::OwnDomain(_)
            | Self::DomainTaken { .. }
            | Self::AlreadyLinked(_)
            | Self::OtherRoots(_) => Code::FailedPrecondition,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Token(error) => error.reason(),
            Self::Invalid(_) => "invalid_argument",
            Self::WrongSite { .. } => "token_wrong_site",
            Self::OwnSite(_) => "link_own_site",
            Self::OwnDomain(_) => "link_own_domain",
            Self::DomainTaken { .. } => "link_domain_taken",
            Self::AlreadyLinked(_) => "link_exists",
            Self::OtherRoots(_) => "link_other_roots",
            Self::Chain(error) => error.code(),
            Self::Proof(_) => "link_proof",
        }
    }
}

impl From<InvalidName> for LinkError {
    fn from(error: InvalidName) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl From<ImportError> for LinkError {
    fn from(error: ImportError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// The other site, checked: its names agree and its bundle is its own.
#[derive(Debug, Clone)]
pub struct PeerSite {
    /// As it calls itself.
    pub site: SiteName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its roots.
    pub bundle: Bundle,
    /// Where its border is.
    pub gateways: Vec<Gateway>,
}

impl PeerSite {
    fn check(
        site: &str,
        trust_domain: &str,
        bundle: Option<&Bundle>,
        gateways: &[Gateway],
    ) -> Result<Self, LinkError> {
        let (site, trust_domain) = (site.parse()?, trust_domain.parse()?);
        let bundle = bundle.ok_or_else(|| LinkError::Invalid("no bundle".into()))?;
        check_bundle(bundle, &trust_domain)?;
        if gateways.is_empty() || gateways.len() > MAX_GATEWAYS {
            let problem = format!("{site} must have 1 to {MAX_GATEWAYS} gateways");
            return Err(LinkError::Invalid(problem));
        }
        let checked = gateways.iter().map(|gateway| check_gateway(gateway, &site));
        let gateways = checked.collect::<Result<_, _>>()?;
        Ok(Self { site, trust_domain, bundle: bundle.clone(), gateways })
    }

    /// The record that makes the link.
    pub fn made(&self, dial: bool, transport: LinkTransport) -> Event {
        let link = Link {
            site: self.site.to_string(),
            trust_domain: self.trust_domain.to_string(),
            dial,
            transport: transport.into(),
        };
        let bundle = Some(self.bundle.clone());
        Event::LinkMade(LinkMade { link: Some(link), bundle, gateways: self.gateways.clone() })
    }
}

/// Whether a link with this site and domain may be made at all.
pub fn check_new(
    state: &State,
    site: &SiteName,
    trust_domain: &TrustDomain,
) -> Result<(), LinkError> {
    let own = state.site();
    if *site == own.name {
        return Err(LinkError::OwnSite(site.clone()));
    }
    if *trust_domain == own.trust_domain {
        return Err(LinkError::OwnDomain(trust_domain.clone()));
    }
    let taken = state
        .links
        .iter()
        .find(|(known, link)| link.trust_domain == *trust_domain && *known != site);
    if let Some((known, _)) = taken {
        let (domain, site) = (trust_domain.clone(), known.clone());
        return Err(LinkError::DomainTaken { domain, site });
    }
    if state.links.contains_key(site) {
        return Err(LinkError::AlreadyLinked(site.clone()));
    }
    Ok(())
}

/// As [`check_new`], for the side that is asked: the very same site, with roots
/// of the lineage that is known, may come again. It has lost our answer, or
/// its link.
fn check_new_or_again(state: &State, peer: &PeerSite) -> Result<(), LinkError> {
    match (check_new(state, &peer.site, &peer.trust_domain), state.links.get(&peer.site)) {
        (Err(LinkError::AlreadyLinked(_)), Some(known)) => {
            let shares_root = || peer.bundle.roots.iter().any(|r| known.bundle.roots.contains(r));
            if known.trust_domain == peer.trust_domain && shares_root() {
                Ok(())
            } else {
                Err(LinkError::OtherRoots(peer.site.clone()))
            }
        }
        (result, _) => result,
    }
}

// ---- the side that redeems -------------------------------------------------

/// What is sent to the site that issued the token.
pub fn request(
    state: &State,
    token: &Token,
    svid: &Svid,
    now_unix_ms: i64,
) -> Result<RedeemLinkRequest, LinkError> {
    let own = state.site();
    let proof = proof::prove(svid, &token.secret, &own.trust_domain, &token.trust_domain)?;
    Ok(RedeemLinkRequest {
        versions: VERSIONS.to_vec(),
        token_id: token.id.to_string(),
        token_secret: token.secret.to_vec(),
        site: own.name.to_string(),
        trust_domain: own.trust_domain.to_string(),
        bundle: Some(own.bundle.clone()),
        gateways: gateways(state),
        chain: svid.chain.iter().map(|certificate| certificate.to_vec()).collect(),
        proof,
        time_unix_ms: now_unix_ms.unsigned_abs(),
    })
}

/// Whether the answer is that of the site that the token names.
pub fn check_response(token: &Token, response: &RedeemLinkResponse) -> Result<PeerSite, LinkError> {
    let peer = PeerSite::check(
        &response.site,
        &response.trust_domain,
        response.bundle.as_ref(),
        &response.gateways,
    )?;
    if peer.site != token.site || peer.trust_domain != token.trust_domain {
        let problem = format!(
            "{} of {} has answered for {} of {}",
            peer.site, peer.trust_domain, token.site, token.trust_domain
        );
        return Err(LinkError::Invalid(problem));
    }
    let pinned = |root: &Vec<u8>| spki_sha256(root) == Some(token.root_spki_sha256);
    if !peer.bundle.roots.iter().any(pinned) {
        let problem = format!("the roots of {} are not those that the token names", peer.site);
        return Err(LinkError::Invalid(problem));
    }
    Ok(peer)
}

// ---- the side that issued the token ----------------------------------------

/// What can be checked before the decision: form, certificate and signature.
/// Only for bearers of a good token, because it costs computing time.
pub fn check_request(
    state: &State,
    request: &RedeemLinkRequest,
    now: Duration,
) -> Result<PeerSite, LinkError> {
    check_token(state, request, now)?;
    let peer = PeerSite::check(
        &request.site,
        &request.trust_domain,
        request.bundle.as_ref(),
        &request.gateways,
    )?;
    let too_long = request.chain.len() > MAX_CHAIN
        || request.chain.iter().any(|certificate| certificate.len() > MAX_CERTIFICATE)
        || request.proof.len() > MAX_PROOF;
    if too_long {
        return Err(LinkError::Invalid("its certificates are too long".into()));
    }
    let chain: Vec<CertificateDer<'_>> =
        request.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let roots = peer.bundle.roots.iter().cloned().map(CertificateDer::from).collect();
    let trust_domain = peer.trust_domain.clone();
    let sequence = peer.bundle.sequence;
    let presented = TrustBundle {
        trust_domain: trust_domain.clone(),
        sequence,
        roots,
        retiring: None,
        jwt_keys: Vec::new(),
    };
    verify_peer(
        &chain,
        Side::Client,
        &BTreeMap::from([(trust_domain.clone(), Arc::new(presented))]),
        &Revocations::default(),
        &Allowed::Exactly(SpiffeId::federation(&trust_domain)),
        UnixTime::since_unix_epoch(now),
    )?;
    let leaf = chain.first().ok_or(mesh_core::VerifyError::NoCertificate)?;
    let own = &state.site().trust_domain;
    proof::verify(leaf, &request.proof, &request.token_secret, &trust_domain, own)?;
    Ok(peer)
}

fn check_token(
    state: &State,
    request: &RedeemLinkRequest,
    now: Duration,
) -> Result<String, LinkError> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (id, secret) = (&request.token_id, &request.token_secret);
    let token = tokens::check(state, id, secret, Purpose::Link, now)?;
    if token.site != request.site {
        let (site, expected) = (request.site.parse()?, token.site.clone());
        return Err(LinkError::WrongSite { site, expected });
    }
    Ok(token.id.clone())
}

/// The events that use the token up and make the link, together.
pub fn decide_redeem(
    state: &State,
    request: &RedeemLinkRequest,
    peer: &PeerSite,
    now: Duration,
) -> Result<Vec<Event>, LinkError> {
    let id = check_token(state, request, now)?;
    check_new_or_again(state, peer)?;
    let used = TokenUsed { id, by: format!("site:{} ({})", peer.site, peer.trust_domain) };
    Ok(vec![Event::TokenUsed(used), peer.made(false, LinkTransport::Unspecified)])
}

#[cfg(test)]
mod tests;
