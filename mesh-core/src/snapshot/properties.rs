//! What holds for any delta.

use std::{collections::BTreeMap, sync::Arc};

use mesh_api::v1::{self, ResourceKind, resource::Resource as Kind};
use proptest::prelude::*;

use super::{Snapshot, apply, to_delta};
use crate::example::{bundle, change, endpoint, gateway, link, mesh, service};

const SERVICES: [&str; 4] = ["orders.shop", "billing.shop", "search.shop", "new.shop"];
const SITES: [&str; 3] = ["east", "west", "south"];

/// A resource that may or may not fit what is there.
fn any_upsert() -> impl Strategy<Value = Kind> {
    let service_name = prop::sample::select(&SERVICES[..]);
    let site = prop::sample::select(&SITES[..]);
    let id = "[a-c]";
    let sites = prop::sample::subsequence(&["west", "north", "south"][..], 0..3);
    let any_service = (service_name.clone(), sites, 1u32..4).prop_map(|(name, sites, port)| {
        let mut message = service(name);
        message.exported_to = sites.iter().map(ToString::to_string).collect();
        message.ports[0].number = port;
        Kind::Service(message)
    });
    let identity_site = prop_oneof![9 => Just(None), 1 => Just(Some("north"))];
    let any_endpoint = (service_name, site.clone(), id, 0u32..3, identity_site).prop_map(
        |(service, site, id, weight, wrong)| {
            let mut message = endpoint(service, site, &id);
            message.weight = weight;
            if let Some(wrong) = wrong {
                message.spiffe_id = endpoint(service, wrong, &id).spiffe_id;
            }
            Kind::Endpoint(message)
        },
    );
    // Two digits: other spellings of a serial mean the same one.
    let any_revocation = "serial:[0-9a]{2}"
        .prop_map(|subject| Kind::Revocation(v1::Revocation { subject, revoked_at_unix_s: 0 }));
    prop_oneof![
        3 => any_service,
        6 => any_endpoint,
        1 => site.clone().prop_map(|site| Kind::Link(link(site))),
        1 => "gw-[1-3]".prop_map(|id| Kind::Gateway(gateway(&id))),
        1 => (site, 0u64..5)
            .prop_map(|(site, n)| Kind::Bundle(bundle(&format!("{site}.example"), n, b"root"))),
        1 => any_revocation,
    ]
}

fn any_removal() -> impl Strategy<Value = (ResourceKind, String)> {
    let site = prop::sample::select(&SITES[..]);
    prop_oneof![
        prop::sample::select(&SERVICES[..]).prop_map(|s| (ResourceKind::Service, s.to_owned())),
        (site.clone(), "[a-c]").prop_map(|(s, id)| (ResourceKind::Endpoint, format!("{s}/{id}"))),
        site.clone().prop_map(|s| (ResourceKind::Link, s.to_owned())),
        site.prop_map(|s| (ResourceKind::Bundle, format!("{s}.example"))),
        "gw-[1-3]".prop_map(|id| (ResourceKind::Gateway, format!("east/{id}"))),
        "serial:[0-9a]{2}".prop_map(|subject| (ResourceKind::Revocation, subject)),
    ]
}

type Step = (Vec<Kind>, Vec<(ResourceKind, String)>);

fn any_step() -> impl Strategy<Value = Step> {
    (prop::collection::vec(any_upsert(), 0..6), prop::collection::vec(any_removal(), 0..3))
}

fn delta_of(snapshot: &Snapshot, (upsert, remove): &Step) -> v1::Delta {
    let remove = remove.iter().map(|(kind, name)| (*kind, name.as_str())).collect();
    change(snapshot, upsert.clone(), remove)
}

/// The plain meaning of a step: (kind, key) to message, endpoints by
/// themselves. A service that goes takes its endpoints along.
#[derive(Default)]
struct Model(BTreeMap<(i32, String), v1::Resource>);

impl Model {
    fn of(snapshot: &Snapshot) -> Self {
        let mut model = Self::default();
        for resource in to_delta(snapshot).upsert {
            model.insert(resource.resource.expect("was written"));
        }
        model
    }

    fn insert(&mut self, kind: Kind) {
        let (number, name) = match &kind {
            Kind::Site(site) => (ResourceKind::Site, site.name.clone()),
            Kind::Service(service) => (ResourceKind::Service, service.name.clone()),
            Kind::Endpoint(e) => (ResourceKind::Endpoint, format!("{}/{}", e.site, e.id)),
            Kind::Bundle(bundle) => (ResourceKind::Bundle, bundle.trust_domain.clone()),
            Kind::Gateway(g) => (ResourceKind::Gateway, format!("{}/{}", g.site, g.id)),
            Kind::Link(link) => (ResourceKind::Link, link.site.clone()),
            Kind::Revocation(r) => (ResourceKind::Revocation, r.subject.clone()),
        };
        self.0.insert((number.into(), name), v1::Resource { resource: Some(kind) });
    }

    fn apply(&mut self, step: &Step) {
        for (kind, name) in &step.1 {
            self.0.remove(&((*kind).into(), name.clone()));
            if *kind == ResourceKind::Service {
                self.0.retain(|_, resource| {
                    !matches!(&resource.resource, Some(Kind::Endpoint(e)) if e.service == *name)
                });
            }
        }
        for kind in &step.0 {
            self.insert(kind.clone());
        }
    }
}

proptest! {
    /// Step by step or at once, the same state; and a refused step leaves the
    /// one before as it was.
    #[test]
    fn deltas_add_up(steps in prop::collection::vec(any_step(), 1..8)) {
        let mut snapshot = mesh();
        let mut model = Model::of(&snapshot);
        for step in &steps {
            let before = snapshot.clone();
            match apply(Some(&snapshot), &delta_of(&snapshot, step)) {
                Ok(next) => {
                    model.apply(step);
                    snapshot = next;
                }
                Err(_) => prop_assert_eq!(&snapshot, &before),
            }
            let whole = v1::Delta {
                from: None,
                to: Some(snapshot.revision.into()),
                upsert: model.0.values().cloned().collect(),
                remove: vec![],
            };
            let again = apply(None, &whole);
            prop_assert_eq!(again.as_ref(), Ok(&snapshot));
            let restored = apply(None, &to_delta(&snapshot));
            prop_assert_eq!(restored.as_ref(), Ok(&snapshot));
        }
    }

    /// Equal parts of two successive snapshots are one and the same.
    #[test]
    fn what_is_equal_is_shared(step in any_step(), whole in any::<bool>()) {
        let old = mesh();
        let Ok(mut new) = apply(Some(&old), &delta_of(&old, &step)) else { return Ok(()) };
        if whole {
            new = apply(Some(&old), &to_delta(&new)).expect("it was applied once");
        }
        for (name, service) in &new.services {
            let Some(old) = old.services.get(name) else { continue };
            prop_assert_eq!(Arc::ptr_eq(old, service), old == service);
            for endpoint in &service.endpoints {
                let mut before = old.endpoints.iter();
                if let Some(before) = before.find(|before| before == &endpoint) {
                    prop_assert!(Arc::ptr_eq(before, endpoint));
                }
            }
            let sorted = service.endpoints.is_sorted_by_key(|e| (e.site.clone(), e.id.clone()));
            prop_assert!(sorted);
        }
        prop_assert_eq!(Arc::ptr_eq(&old.bundles, &new.bundles), old.bundles == new.bundles);
        let revocations = Arc::ptr_eq(&old.revocations, &new.revocations);
        prop_assert_eq!(revocations, old.revocations == new.revocations);
    }
}
