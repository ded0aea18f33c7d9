//! What every service of one federation shares, and what it tells about its
//! site.

use std::sync::Arc;

use mesh_api::v1;
use mesh_core::{GatewayId, SpiffeId, TrustBundle, identity::Revocations};
use mesh_tunnel::{Credentials, Trust};
use rustls::pki_types::CertificateDer;

use crate::{
    authority::{Authority, State},
    ca::CertificateAuthority,
};

/// The authority, the CA and the identity of one site's federation.
#[derive(Clone)]
pub struct Site {
    /// The durable truth.
    pub authority: Authority,
    /// Issues certificates.
    pub ca: Arc<CertificateAuthority>,
    /// Federation's own certificate and whom it believes.
    pub credentials: Arc<Credentials>,
    /// `ip:port` of the gRPC listener, as gateways on other hosts reach it.
    pub address: Arc<str>,
    /// The gateway that runs beside federation, if one does.
    pub gateway_beside: Option<GatewayId>,
}

impl Site {
    /// The site, as its gateways are told. Other machines need no address:
    /// they reach federation through a gateway.
    pub fn describe_to_gateway(&self) -> v1::Site {
        v1::Site { federation_address: self.address.to_string(), ..self.describe() }
    }

    /// The site, as everybody else is told.
    pub fn describe(&self) -> v1::Site {
        let state = self.authority.state();
        let site = state.site();
        v1::Site {
            name: site.name.to_string(),
            trust_domain: site.trust_domain.to_string(),
            federation_address: String::new(),
        }
    }

    /// What a certificate travels with.
    pub fn answer(&self, issued: crate::ca::Issued) -> v1::IssuedCertificate {
        let state = self.authority.state();
        v1::IssuedCertificate {
            chain: issued.chain,
            bundles: bundles(&state),
            not_after_unix_s: issued.not_after_unix_s,
            gateways: gateways(&state),
        }
    }
}

/// Every bundle that machines of the site verify peers with: its own, and
/// those of linked sites.
pub fn bundles(state: &State) -> Vec<v1::Bundle> {
    let linked = state.links.values().map(|link| link.bundle.clone());
    std::iter::once(state.site().bundle.clone()).chain(linked).collect()
}

/// The gateways of the site itself.
pub fn gateways(state: &State) -> Vec<v1::Gateway> {
    state.gateways.values().map(|gateway| (**gateway).clone()).collect()
}

/// Whom federation believes: the same bundles and revocations that it hands
/// out. Bundles and subjects that do not parse are left out: nobody is
/// believed because of them.
pub fn trust(state: &State) -> Trust {
    let parsed = bundles(state).into_iter().filter_map(|bundle| {
        let trust_domain: mesh_core::TrustDomain = bundle.trust_domain.parse().ok()?;
        let roots = bundle.roots.into_iter().map(CertificateDer::from).collect();
        let parsed = TrustBundle {
            trust_domain: trust_domain.clone(),
            sequence: bundle.sequence,
            roots,
            retiring: None,
            jwt_keys: Vec::new(),
        };
        Some((trust_domain, Arc::new(parsed)))
    });
    Trust { bundles: Arc::new(parsed.collect()), revocations: Arc::new(revocations(state)) }
}

fn revocations(state: &State) -> Revocations {
    let mut all = Revocations::default();
    for subject in state.revocations.keys() {
        match subject.split_once(':') {
            Some(("node", node)) => all.nodes.extend(node.parse().ok()),
            Some(("serial", serial)) => {
                all.serials.insert(serial.to_owned());
            }
            _ => all.identities.extend(subject.parse::<SpiffeId>().ok()),
        }
    }
    all
}
