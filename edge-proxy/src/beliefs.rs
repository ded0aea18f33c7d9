//! Whom this proxy believes: roots from the identity source until discovery
//! has supplied a snapshot, from then on the snapshot's. Both call from the
//! control runtime, one thread: nobody changes trust between a read and a write.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{Snapshot, TrustBundle};
use mesh_tunnel::{Credentials, Trust};

/// Adds roots that came with a certificate.
///
/// Once there is a snapshot it alone says which domains are believed: a link
/// that has ended must not come back with the next certificate. Newer roots of
/// a domain that is believed are taken all the same: after a long absence the
/// snapshot on disk may be older than the own CA.
pub(crate) fn add(credentials: &Credentials, snapshot: Option<&Snapshot>, bundles: &[TrustBundle]) {
    if let Some(trust) = with(credentials.trust(), snapshot, bundles) {
        credentials.replace_trust(trust);
    }
}

/// What [`add`] would make of `trust`; `None` if nothing.
pub(crate) fn with(
    mut trust: Trust,
    snapshot: Option<&Snapshot>,
    bundles: &[TrustBundle],
) -> Option<Trust> {
    let mut believed = BTreeMap::clone(&trust.bundles);
    let mut changed = false;
    for bundle in bundles {
        let is_news = match believed.get(&bundle.trust_domain) {
            Some(known) => known.sequence < bundle.sequence,
            None => snapshot.is_none(),
        };
        if is_news {
            believed.insert(bundle.trust_domain.clone(), Arc::new(bundle.clone()));
            changed = true;
        }
    }
    trust.bundles = Arc::new(believed);
    changed.then_some(trust)
}

/// Believes exactly what the snapshot says, but never older roots of a domain
/// than those that are there.
pub(crate) fn replace(credentials: &Credentials, snapshot: &Snapshot) {
    let before = credentials.trust();
    let mut bundles = BTreeMap::clone(&snapshot.bundles);
    for (domain, bundle) in &mut bundles {
        if let Some(known) = before.bundles.get(domain).filter(|k| k.sequence > bundle.sequence) {
            *bundle = known.clone();
        }
    }
    if bundles != *before.bundles || snapshot.revocations != before.revocations {
        let revocations = snapshot.revocations.clone();
        credentials.replace_trust(Trust { bundles: Arc::new(bundles), revocations });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(domain: &str, sequence: u64) -> TrustBundle {
        let roots = vec![vec![sequence as u8].into()];
        TrustBundle {
            trust_domain: domain.parse().unwrap(),
            sequence,
            roots,
            retiring: None,
            jwt_keys: Vec::new(),
        }
    }

    fn snapshot(bundles: &[TrustBundle]) -> Snapshot {
        let bundles =
            bundles.iter().map(|b| (b.trust_domain.clone(), Arc::new(b.clone()))).collect();
        Snapshot {
            revision: mesh_core::Revision { epoch: 1, n: 1 },
            site: "east".parse().unwrap(),
            trust_domain: "east.example".parse().unwrap(),
            federation: None,
            services: BTreeMap::new(),
            gateways: BTreeMap::new(),
            links: BTreeMap::new(),
            bundles: Arc::new(bundles),
            revocations: Arc::default(),
        }
    }

    fn believed(credentials: &Credentials) -> Vec<(String, u64)> {
        let trust = credentials.trust();
        trust.bundles.values().map(|b| (b.trust_domain.to_string(), b.sequence)).collect()
    }

    #[test]
    fn a_snapshot_ends_what_it_does_not_name_and_nothing_brings_it_back() {
        let credentials = Credentials::new(None, Trust::default());
        add(&credentials, None, &[bundle("east.example", 1), bundle("west.example", 1)]);
        assert_eq!(believed(&credentials).len(), 2);
        let unlinked = snapshot(&[bundle("east.example", 1)]);
        replace(&credentials, &unlinked);
        assert_eq!(believed(&credentials), [("east.example".to_owned(), 1)]);
        add(&credentials, Some(&unlinked), &[bundle("west.example", 2)]);
        assert_eq!(believed(&credentials), [("east.example".to_owned(), 1)]);
    }

    #[test]
    fn newer_roots_win_wherever_they_come_from() {
        let credentials = Credentials::new(None, Trust::default());
        let old = snapshot(&[bundle("east.example", 1)]);
        replace(&credentials, &old);
        add(&credentials, Some(&old), &[bundle("east.example", 3)]);
        assert_eq!(believed(&credentials), [("east.example".to_owned(), 3)]);
        replace(&credentials, &old);
        assert_eq!(believed(&credentials), [("east.example".to_owned(), 3)]);
        replace(&credentials, &snapshot(&[bundle("east.example", 4)]));
        assert_eq!(believed(&credentials), [("east.example".to_owned(), 4)]);
    }
}
