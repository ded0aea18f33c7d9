//! What strangers present: chains of certificates and requests for them.
#![no_main]

use std::time::Duration;

use federation::ca::{KeyRequest, spki_sha256};
use libfuzzer_sys::fuzz_target;
use mesh_core::{
    Allowed, TrustBundle, TrustBundles, VerifyError,
    identity::{Revocations, Side, verify_peer},
};
use rustls_pki_types::{CertificateDer, UnixTime};

/// Certificates, each after its length in two bytes.
fn split(mut data: &[u8]) -> Vec<CertificateDer<'_>> {
    let mut chain = Vec::new();
    while let [a, b, rest @ ..] = data {
        let length = usize::from(u16::from_be_bytes([*a, *b])).min(rest.len());
        let (one, rest) = rest.split_at(length);
        chain.push(one.into());
        data = rest;
    }
    chain
}

fuzz_target!(|data: &[u8]| {
    let [which, data @ ..] = data else { return };
    if which & 1 == 0 {
        let _any = (KeyRequest::parse(data).is_ok(), spki_sha256(data));
        return;
    }
    let chain = split(data);
    let side = if which & 2 == 0 { Side::Client } else { Side::Server };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let verify = |bundles: &TrustBundles| {
        verify_peer(&chain, side, bundles, &Revocations::default(), &Allowed::Known, now)
    };
    let nobody = verify(&TrustBundles::new()).expect_err("nobody is believed");
    // The last of them as the root of the domain that the first one names.
    if let (VerifyError::UnknownTrustDomain(domain), Some(root)) = (nobody, chain.last()) {
        let roots = vec![root.clone().into_owned()];
        let bundle = TrustBundle::of_roots(domain.clone(), roots);
        let bundles = [(domain.clone(), bundle.into())].into_iter().collect();
        if let Ok(peer) = verify(&bundles) {
            assert_eq!(*peer.id.trust_domain(), domain);
        }
    }
});
