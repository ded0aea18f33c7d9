//! Certificates of the mesh and the one function that verifies a peer
//! (SPIFFE X509-SVID sections 2 to 5; RFC 5280 path validation by `webpki`).

#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::{CertificateDer, UnixTime};

pub use verify::verify_peer;

use crate::{
    jwt::JwtKey,
    name::{NodeId, SpiffeId, TrustDomain},
};

/// The roots of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    /// Whose identities these roots may vouch for, and nobody else's.
    pub trust_domain: TrustDomain,
    /// Grows with every change.
    pub sequence: u64,
    /// At least one.
    pub roots: Vec<CertificateDer<'static>>,
    /// The one of them that leaves soon.
    pub retiring: Option<Retiring>,
    /// What JWT-SVIDs of the domain are verified with.
    pub jwt_keys: Vec<JwtKey>,
}

impl TrustBundle {
    /// The first bundle of a domain, of roots alone.
    pub fn of_roots(trust_domain: TrustDomain, roots: Vec<CertificateDer<'static>>) -> Self {
        Self { trust_domain, sequence: 1, roots, retiring: None, jwt_keys: Vec::new() }
    }
}

/// A root that is about to leave its bundle: whoever holds a certificate that
/// hangs on it renews that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retiring {
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// Within this time, at a moment of the holder's own choosing.
    pub within: Duration,
}

/// Bundles by trust domain.
pub type TrustBundles = BTreeMap<TrustDomain, Arc<TrustBundle>>;

/// Identities, nodes and serials that are no longer accepted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Whole identities. That of a node stands for what was issued under it,
    /// too: so a linked site names its own.
    pub identities: BTreeSet<SpiffeId>,
    /// Nodes: every certificate issued to or under them.
    pub nodes: BTreeSet<NodeId>,
    /// Single certificates, lower-case hex serial numbers.
    pub serials: BTreeSet<String>,
}

/// One entry of [`Revocations`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revoked {
    /// A whole identity.
    Identity(SpiffeId),
    /// A node and everything issued under it.
    Node(NodeId),
    /// One certificate.
    Serial(String),
}

impl Revocations {
    /// Whether a certificate, its identity or its node is revoked.
    pub fn contains(&self, peer: &PeerIdentity) -> bool {
        let of_domain = |node: &NodeId| {
            let id = || SpiffeId::node(peer.id.trust_domain(), node);
            !self.identities.is_empty() && self.identities.contains(&id())
        };
        self.identities.contains(&peer.id)
            || self.serials.contains(&peer.serial)
            || peer.node.as_ref().is_some_and(|node| self.nodes.contains(node) || of_domain(node))
    }

    /// Adds an entry; false if it was there.
    pub fn insert(&mut self, revoked: Revoked) -> bool {
        match revoked {
            Revoked::Identity(id) => self.identities.insert(id),
            Revoked::Node(node) => self.nodes.insert(node),
            Revoked::Serial(serial) => self.serials.insert(serial),
        }
    }

    /// Removes an entry; false if it was not there.
    pub fn remove(&mut self, revoked: &Revoked) -> bool {
        match revoked {
            Revoked::Identity(id) => self.identities.remove(id),
            Revoked::Node(node) => self.nodes.remove(node),
            Revoked::Serial(serial) => self.serials.remove(serial),
        }
    }

    /// Every entry.
    pub fn iter(&self) -> impl Iterator<Item = Revoked> + '_ {
        let identities = self.identities.iter().cloned().map(Revoked::Identity);
        let nodes = self.nodes.iter().cloned().map(Revoked::Node);
        let serials = self.serials.iter().cloned().map(Revoked::Serial);
        identities.chain(nodes).chain(serials)
    }
}

/// A serial number as [`PeerIdentity::serial`] and [`Revocations::serials`]
/// write it: lower-case hex of the number's bytes, big endian, without leading
/// zero bytes (DER adds one to keep a number positive).
pub fn serial_hex(bytes: &[u8]) -> String {
    let significant = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len().saturating_sub(1));
    bytes[significant..].iter().map(|b| format!("{b:02x}")).collect()
}

/// The longest serial in hex: 20 bytes (RFC 5280 section 4.1.2.2) and a sign.
const MAX_SERIAL_HEX: usize = 42;

/// The same, from hex of either case with or without leading zeros; `None` if
/// it is no serial.
pub fn canonical_serial(hex: &str) -> Option<String> {
    if hex.is_empty() || hex.len() > MAX_SERIAL_HEX || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let digits = hex.trim_start_matches('0').to_ascii_lowercase();
    Some(match digits.len() {
        0 => "00".to_owned(),
        n if n % 2 == 1 => format!("0{digits}"),
        _ => digits,
    })
}

/// Which identities a purpose accepts, besides being valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// This identity and no other.
    Exactly(SpiffeId),
    /// Any identity of this trust domain.
    TrustDomain(TrustDomain),
    /// The tunnel door of a gateway: any identity of the own trust domain; of
    /// other known domains only the gateway.
    Neighbour(TrustDomain),
    /// The control door of federation: any identity of the own trust domain;
    /// of other known domains only their federation.
    Controlled(TrustDomain),
    /// Any identity of any known trust domain; authorization decides later.
    Known,
}

impl Allowed {
    /// Whether this purpose accepts `id`.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(only) => id == only,
            Self::TrustDomain(domain) => id.trust_domain() == domain,
            Self::Neighbour(own) => id.trust_domain() == own || id.is_gateway(),
            Self::Controlled(own) => id.trust_domain() == own || id.is_federation(),
            Self::Known => true,
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(only) => write!(f, "{only}"),
            Self::TrustDomain(domain) => write!(f, "an identity of {domain}"),
            Self::Neighbour(own) => write!(f, "an identity of {own}, or a gateway"),
            Self::Controlled(own) => write!(f, "an identity of {own}, or a federation"),
            Self::Known => f.write_str("any identity"),
        }
    }
}

/// Which end of a handshake is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The peer is a TLS server.
    Server,
    /// The peer is a TLS client.
    Client,
}

/// A verified peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Who it is.
    pub id: SpiffeId,
    /// The machine that its certificate was issued to or under: the UUID of a
    /// node identity, else the subject's common name if it is a UUID.
    pub node: Option<NodeId>,
    /// Lower-case hex.
    pub serial: String,
    /// The leaf's end; no session outlives it.
    pub not_after: UnixTime,
}

/// Why a peer is not who it must be. Each has a stable code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Nothing was presented.
    #[error("no certificate")]
    NoCertificate,
    /// The leaf does not parse, may sign certificates, or has more or less than
    /// one URI SAN.
    #[error("not an X509-SVID: {0}")]
    NotAnSvid(String),
    /// There is no bundle for the trust domain it claims.
    #[error("unknown trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    /// The chain does not end in that domain's own roots.
    #[error("{id}: not signed by the roots of {domain}: {detail}", domain = id.trust_domain())]
    UntrustedChain {
        /// The claimed identity.
        id: SpiffeId,
        /// What path building said.
        detail: String,
    },
    /// Before or after its validity.
    #[error("{id}: certificate expired or not yet valid; check both clocks")]
    OutsideValidity {
        /// The claimed identity.
        id: SpiffeId,
        /// What was held to be the time.
        now: UnixTime,
        /// When a certificate of the chain begins (it is after `now`) or has
        /// ended.
        limit: UnixTime,
    },
    /// Valid, and not the one this purpose accepts.
    #[error("{id}: not accepted here, expected {expected}")]
    NotAllowed {
        /// The verified identity.
        id: SpiffeId,
        /// What would have been.
        expected: String,
    },
    /// Revoked.
    #[error("{id}: revoked")]
    Revoked {
        /// The verified identity.
        id: SpiffeId,
    },
}

impl VerifyError {
    /// The stable code, as in logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "peer_no_certificate",
            Self::NotAnSvid(_) => "peer_not_an_svid",
            Self::UnknownTrustDomain(_) => "peer_unknown_trust_domain",
            Self::UntrustedChain { .. } => "peer_untrusted_chain",
            Self::OutsideValidity { .. } => "peer_outside_validity",
            Self::NotAllowed { .. } => "peer_not_allowed",
            Self::Revoked { .. } => "peer_revoked",
        }
    }
}
