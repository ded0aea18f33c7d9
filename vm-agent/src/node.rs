//! The node identity: what joining has yielded, parsed.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::v1;
use mesh_core::{
    Gateway, GatewayId, NodeId, SiteName, SpiffeId, TrustBundle, TrustBundles, TrustDomain,
};
use mesh_tunnel::{Svid, Trust};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Gateways of a site that are kept.
const MAX_GATEWAYS: usize = 64;
/// Bundles that are kept.
const MAX_BUNDLES: usize = 1024;

/// This machine as a member of a site; immutable, replaced by renewal.
pub struct Node {
    /// Which machine joined.
    pub machine_id: String,
    /// When the certificate was obtained, in seconds since the Unix epoch.
    pub issued: i64,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// The answer to joining; renewals update its chain, bundles and gateways.
    pub joined: v1::JoinNodeResponse,
    /// From here on: what `joined` means.
    pub site: SiteName,
    /// Of the site.
    pub trust_domain: TrustDomain,
    /// UUID.
    pub id: NodeId,
    /// The identity of the workloads of this machine.
    pub workload: SpiffeId,
    /// At least one.
    pub gateways: Vec<Gateway>,
    /// End of the certificate.
    pub not_after: Duration,
    trust: Trust,
}

/// What a site answered makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidNode {
    field: &'static str,
    problem: String,
}

fn invalid(field: &'static str) -> impl FnOnce(String) -> InvalidNode {
    move |problem| InvalidNode { field, problem }
}

fn parse<T: std::str::FromStr<Err: fmt::Display>>(
    field: &'static str,
    text: &str,
) -> Result<T, InvalidNode> {
    text.parse().map_err(|error: T::Err| invalid(field)(error.to_string()))
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("site", &self.site)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Checks an answer to joining, fresh or from disk.
    pub fn new(
        machine_id: String,
        issued: i64,
        key: PrivateKeyDer<'static>,
        joined: v1::JoinNodeResponse,
    ) -> Result<Self, InvalidNode> {
        let site = joined.site.clone().unwrap_or_default();
        let trust_domain: TrustDomain = parse("trust domain", &site.trust_domain)?;
        let id: NodeId = parse("node", &joined.node)?;
        let grants = joined.grants.clone().unwrap_or_default();
        let workload = if is_gateway(&site) {
            SpiffeId::gateway(&trust_domain)
        } else {
            SpiffeId::workload(&trust_domain, &grants.namespace, &grants.account)
                .map_err(|error| invalid("grants")(error.to_string()))?
        };
        let trust = trust(&joined.bundles)?;
        if !trust.bundles.contains_key(&trust_domain) {
            return Err(invalid("bundles")(format!("none of {trust_domain}")));
        }
        let mut node = Self {
            machine_id,
            issued,
            key,
            site: parse("site", &site.name)?,
            id,
            workload,
            gateways: gateways(&joined.gateways)?,
            not_after: Duration::ZERO,
            trust,
            trust_domain,
            joined,
        };
        let svid = node.svid()?;
        let expected = SpiffeId::node(&node.trust_domain, &node.id);
        if svid.id != expected {
            return Err(invalid("chain")(format!("names {}, not {expected}", svid.id)));
        }
        node.not_after = Duration::from_secs(svid.not_after.as_secs());
        Ok(node)
    }

    /// The same node with a new key and certificate.
    pub fn renewed(
        &self,
        issued: i64,
        key: PrivateKeyDer<'static>,
        renewed: v1::IssuedCertificate,
    ) -> Result<Self, InvalidNode> {
        let mut joined = self.joined.clone();
        joined.chain = renewed.chain;
        if !renewed.bundles.is_empty() {
            joined.bundles = self.newest(renewed.bundles);
        }
        if !renewed.gateways.is_empty() {
            joined.gateways = renewed.gateways;
        }
        Self::new(self.machine_id.clone(), issued, key, joined)
    }

    /// The same node and certificate with the site's newest bundles and
    /// gateways; `None` if nothing has changed.
    pub fn refreshed(
        &self,
        bundles: &[v1::Bundle],
        gateways: &[v1::Gateway],
    ) -> Result<Option<Self>, InvalidNode> {
        let mut joined = self.joined.clone();
        if !bundles.is_empty() {
            joined.bundles = self.newest(bundles.to_vec());
        }
        if !gateways.is_empty() {
            joined.gateways = gateways.to_vec();
        }
        if joined == self.joined {
            return Ok(None);
        }
        Self::new(self.machine_id.clone(), self.issued, self.key.clone_key(), joined).map(Some)
    }

    /// An answer that was on its way for long does not bring back roots of the
    /// own domain that have been replaced.
    fn newest(&self, mut bundles: Vec<v1::Bundle>) -> Vec<v1::Bundle> {
        let own = |bundle: &&v1::Bundle| bundle.trust_domain == self.trust_domain.as_str();
        let Some(known) = self.joined.bundles.iter().find(own) else { return bundles };
        for bundle in bundles.iter_mut().filter(|bundle| own(&&**bundle)) {
            if bundle.sequence < known.sequence {
                bundle.clone_from(known);
            }
        }
        bundles
    }

    /// Certificate and key for TLS.
    pub fn svid(&self) -> Result<Svid, InvalidNode> {
        let chain = self.joined.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Svid::from_der(chain, self.key.clone_key())
            .map_err(|error| invalid("chain")(error.to_string()))
    }

    /// Whom it believes.
    pub fn trust(&self) -> Trust {
        self.trust.clone()
    }

    /// Where federation listens, as those are told who joined to be gateways.
    pub fn federation(&self) -> Option<SocketAddr> {
        self.joined.site.as_ref()?.federation_address.parse().ok()
    }

    /// Its id as a gateway, if it was joined to be one.
    pub fn gateway(&self) -> Option<String> {
        let site = self.joined.site.as_ref()?;
        let first = self.id.as_str().split('-').next()?;
        is_gateway(site).then(|| format!("gw-{first}"))
    }

    /// What it may obtain and register.
    pub fn grants(&self) -> v1::Grants {
        self.joined.grants.clone().unwrap_or_default()
    }

    /// Time to the certificate's end; `None` after it.
    pub fn remaining(&self, now: Duration) -> Option<Duration> {
        self.not_after.checked_sub(now).filter(|left| !left.is_zero())
    }
}

/// Only those who joined to be gateways are told where federation listens.
fn is_gateway(site: &v1::Site) -> bool {
    !site.federation_address.is_empty()
}

fn trust(bundles: &[v1::Bundle]) -> Result<Trust, InvalidNode> {
    let mut parsed = TrustBundles::new();
    for bundle in bundles.iter().take(MAX_BUNDLES) {
        let bundle =
            TrustBundle::try_from(bundle).map_err(|error| invalid("bundles")(error.to_string()))?;
        parsed.insert(bundle.trust_domain.clone(), Arc::new(bundle));
    }
    Ok(Trust { bundles: Arc::new(parsed), ..Trust::default() })
}

fn gateways(gateways: &[v1::Gateway]) -> Result<Vec<Gateway>, InvalidNode> {
    gateways
        .iter()
        .take(MAX_GATEWAYS)
        .map(|gateway| {
            Gateway::try_from(gateway).map_err(|error| invalid("gateways")(error.to_string()))
        })
        .collect()
}

/// A gateway that is known only by the addresses in a token.
pub fn gateway_of_token(site: &SiteName, addresses: &[Arc<str>]) -> v1::Gateway {
    let id: GatewayId = "token".parse().expect("it is a label");
    v1::Gateway {
        id: id.to_string(),
        site: site.to_string(),
        quic_addresses: Vec::new(),
        tls_addresses: addresses.iter().map(ToString::to_string).collect(),
    }
}
