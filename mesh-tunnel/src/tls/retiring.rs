//! Whether our own certificate hangs on a root that is about to leave.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    Allowed, TrustBundle, TrustBundles, VerifyError,
    identity::{Revocations, Side},
    verify_peer,
};
use rustls::pki_types::CertificateDer;

use super::{Credentials, now, verifier};

impl Credentials {
    /// Within which time our own certificate is to be renewed because the root
    /// that it hangs on, and on no other, leaves the bundle.
    pub fn retires_within(&self) -> Option<Duration> {
        let svid = self.svid()?;
        let trust = self.trust.load();
        let domain = svid.id.trust_domain();
        let bundle = trust.bundles.get(domain)?;
        let retiring = bundle.retiring.as_ref()?;
        let leaves = |root: &CertificateDer<'_>| {
            verifier::spki_sha256(root).is_some_and(|hash| hash == retiring.spki_sha256)
        };
        let roots: Vec<_> = bundle.roots.iter().filter(|root| !leaves(root)).cloned().collect();
        if roots.is_empty() || roots.len() == bundle.roots.len() {
            return None;
        }
        let staying = TrustBundle { roots, retiring: None, ..TrustBundle::clone(bundle) };
        let staying = TrustBundles::from([(domain.clone(), Arc::new(staying))]);
        let own = Allowed::Exactly(svid.id.clone());
        let none = Revocations::default();
        let verify = |side| verify_peer(&svid.chain, side, &staying, &none, &own, now());
        let hangs = |side| matches!(verify(side), Err(VerifyError::UntrustedChain { .. }));
        (hangs(Side::Client) && hangs(Side::Server)).then_some(retiring.within)
    }

    /// Waits until [`Credentials::retires_within`] says something.
    pub async fn retires(&self) -> Duration {
        let mut changed = self.changed();
        loop {
            if let Some(within) = self.retires_within() {
                return within;
            }
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}
