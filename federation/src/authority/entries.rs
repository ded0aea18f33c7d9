//! What a state is made of.

use std::{collections::BTreeSet, net::IpAddr};

use mesh_api::v1::{
    Bundle, Gateway, Grants, Link, Register, ServiceAddressed, SiteRestored, TokenPurpose,
};
use mesh_core::{NodeId, ServiceName, SiteName, SpiffeId, TrustDomain};
use mesh_manifest::Manifest;

use super::rotation::RootHash;

/// The site itself.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteState {
    /// Its name.
    pub name: SiteName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its roots, as published to everybody.
    pub bundle: Bundle,
    /// Unix milliseconds.
    pub created_at_ms: i64,
    /// The backup that it was restored from last.
    pub restored: Option<SiteRestored>,
}

/// A token as the site remembers it: never its secret.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenState {
    /// Public part.
    pub id: String,
    /// Node or link.
    pub purpose: TokenPurpose,
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// What the nodes that join with it may do.
    pub grants: Grants,
    /// How often it may be used.
    pub uses: u32,
    /// Who used it, in order.
    pub used_by: Vec<String>,
    /// Unix seconds.
    pub expires_unix_s: i64,
    /// Taken back by an operator.
    pub revoked: bool,
    /// Adds the reserved gateway identity.
    pub gateway: bool,
    /// Link tokens: the site that may redeem it.
    pub site: String,
    /// The root that it pins.
    pub root: RootHash,
}

impl TokenState {
    /// How often it may still be used.
    pub fn uses_left(&self) -> u32 {
        self.uses.saturating_sub(u32::try_from(self.used_by.len()).unwrap_or(u32::MAX))
    }
}

/// A document about traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestState {
    /// JSON, as it was applied.
    pub document: String,
    /// When one of its name was first applied, Unix seconds.
    pub created_unix_s: i64,
    /// What it says, or why this version does not understand it: it may have
    /// been applied through another one.
    pub read: Result<Manifest, String>,
}

/// A certificate that was issued to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCertificate {
    /// Lower-case hex.
    pub serial: String,
    /// Unix seconds.
    pub not_after_unix_s: i64,
    /// What it hangs on.
    pub root: RootHash,
}

/// A joined machine.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeState {
    /// Given when it joined.
    pub id: NodeId,
    /// What it may obtain and register.
    pub grants: Grants,
    /// As it called itself when it joined; for people only.
    pub hostname: String,
    /// `/etc/machine-id` when it joined.
    pub machine_id: String,
    /// The boot in which it joined or last renewed.
    pub boot_id: String,
    /// Id of the token that let it in.
    pub token: String,
    /// The newest certificate.
    pub current: NodeCertificate,
    /// The one that the newest was obtained with; still good for renewal.
    pub previous: Option<NodeCertificate>,
    /// Older ones that have not ended yet: renewing with one of them means
    /// that there are two copies of the node's state.
    pub retired: Vec<NodeCertificate>,
    /// Why it is held to exist twice; such a node gets no new SVIDs.
    pub duplicated: Option<String>,
    /// The site was restored since it renewed last: its certificate may be one
    /// that the backup did not know.
    pub restored: bool,
    /// May obtain the gateway identity.
    pub gateway: bool,
    /// A pod of the site's cluster, which has no certificate of a node.
    pub pod: bool,
    /// SHA-256 of the SubjectPublicKeyInfo that it joined with.
    pub key_sha256: Vec<u8>,
    /// Unix milliseconds.
    pub joined_at_ms: i64,
}

impl NodeState {
    /// Takes a new certificate: the one it was obtained with becomes the
    /// previous one, everything else retires.
    pub(super) fn renew(&mut self, new: NodeCertificate, with_serial: &str, now_unix_s: i64) {
        if self.restored && !self.knows(with_serial) {
            let shown = NodeCertificate { serial: with_serial.to_owned(), ..new.clone() };
            self.retired.push(std::mem::replace(&mut self.current, shown));
        }
        let replaced = std::mem::replace(&mut self.current, new);
        let older = self.previous.take();
        for certificate in std::iter::once(replaced).chain(older) {
            if certificate.serial == with_serial {
                self.previous = Some(certificate);
            } else {
                self.retired.push(certificate);
            }
        }
        self.retired.retain(|certificate| certificate.not_after_unix_s > now_unix_s);
    }

    /// Whether it was issued to the node, as far as the log knows.
    pub fn knows(&self, serial: &str) -> bool {
        self.certificates().any(|certificate| certificate.serial == serial)
    }

    /// Forgets every certificate but this one (and the current one, if it is
    /// not known).
    pub(super) fn keep_only(&mut self, serial: &str) {
        let kept = self.certificates().find(|certificate| certificate.serial == serial).cloned();
        if let Some(kept) = kept {
            self.current = kept;
        }
        self.previous = None;
        self.retired.clear();
    }

    /// Every certificate that may still be valid, the newest first.
    pub fn certificates(&self) -> impl Iterator<Item = &NodeCertificate> {
        std::iter::once(&self.current).chain(&self.previous).chain(self.retired.iter().rev())
    }
}

/// One registered instance. Each of its ports is one endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Registration {
    /// The machine it runs on.
    pub node: NodeId,
    /// Set from the authenticated session that registered it.
    pub identity: SpiffeId,
    /// The service, parsed.
    pub service: ServiceName,
    /// The machine is a pod of the site's cluster.
    pub of_pod: bool,
    /// What was asked.
    pub register: Register,
    /// `n` of the record that registered it first: part of its endpoints' ids,
    /// so that these survive changes and are never reused.
    pub registered_at: u64,
}

/// A linked site.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkState {
    /// Name, trust domain, who dials, which transport.
    pub link: Link,
    /// The other site's trust domain.
    pub trust_domain: TrustDomain,
    /// Its roots.
    pub bundle: Bundle,
    /// Its gateways as they were when the link was made.
    pub gateways: Vec<Gateway>,
    /// Unix milliseconds.
    pub made_at_ms: i64,
}

/// The addresses that a service has in the site's cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterAddress {
    /// Its ClusterIP.
    pub first: IpAddr,
    /// That of the other family, where there are two.
    pub second: Option<IpAddr>,
}

impl ClusterAddress {
    /// That a service has it.
    pub fn event(&self, service: &ServiceName) -> ServiceAddressed {
        ServiceAddressed {
            service: service.to_string(),
            address: self.first.to_string(),
            second_address: self.second.map(|ip| ip.to_string()).unwrap_or_default(),
        }
    }
}

/// Who outside may call one local service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Export {
    /// Every linked site, also future ones.
    pub all: bool,
    /// These sites.
    pub sites: BTreeSet<SiteName>,
    /// The cluster says so, and takes it back.
    pub by_cluster: bool,
}

impl Export {
    /// Whether it holds for this site.
    pub fn includes(&self, site: &SiteName) -> bool {
        self.all || self.sites.contains(site)
    }
}
