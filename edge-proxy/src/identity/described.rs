//! What the identity source says of this proxy.

use mesh_api::v1;
use mesh_core::{Gateway, GatewayId, Locality, NodeId, SpiffeId, TrustBundle, wire::SiteRecord};

/// What the source says of this proxy; compared as a whole to see whether
/// there is news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    pub(super) site: SiteRecord,
    pub(super) id: SpiffeId,
    pub(super) node: Option<NodeId>,
    pub(super) gateway: Option<GatewayId>,
    pub(super) gateways: Vec<Gateway>,
    pub(super) bundles: Vec<TrustBundle>,
    pub(super) locality: Locality,
}

/// A message whose fields make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(String);

impl Described {
    /// Whether a certificate for `other` is one for this: same identity, same
    /// machine, same site.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let of = |described: &Self| {
            let Self { site, id, node, .. } = described.clone();
            (id, node, site.name, site.trust_domain)
        };
        of(self) == of(other)
    }
}

impl TryFrom<&v1::Description> for Described {
    type Error = Malformed;

    fn try_from(message: &v1::Description) -> Result<Self, Malformed> {
        let site = message.site.as_ref().ok_or_else(|| malformed("no site"))?;
        Ok(Self {
            site: SiteRecord::try_from(site).map_err(malformed)?,
            id: message.spiffe_id.parse().map_err(malformed)?,
            node: optional(&message.node)?,
            gateway: optional(&message.gateway)?,
            gateways: every(&message.gateways)?,
            bundles: every(&message.bundles)?,
            locality: match &message.locality {
                Some(locality) => Locality::try_from(locality).map_err(malformed)?,
                None => Locality::default(),
            },
        })
    }
}

impl From<&Described> for v1::Description {
    fn from(described: &Described) -> Self {
        let text = |name: Option<&str>| name.unwrap_or_default().to_owned();
        Self {
            site: Some((&described.site).into()),
            spiffe_id: described.id.to_string(),
            node: text(described.node.as_ref().map(NodeId::as_str)),
            gateway: text(described.gateway.as_ref().map(GatewayId::as_str)),
            gateways: described.gateways.iter().map(Into::into).collect(),
            bundles: described.bundles.iter().map(Into::into).collect(),
            // The agent's business.
            advertise: String::new(),
            locality: Some((&described.locality).into()),
        }
    }
}

fn malformed(problem: impl std::fmt::Display) -> Malformed {
    Malformed(problem.to_string())
}

fn optional<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<Option<T>, Malformed> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(malformed) }
}

/// Every one of a repeated field, or why not.
pub(super) fn every<'a, M, T>(messages: &'a [M]) -> Result<Vec<T>, Malformed>
where
    T: TryFrom<&'a M, Error: std::fmt::Display>,
{
    messages.iter().map(|message| T::try_from(message).map_err(malformed)).collect()
}
