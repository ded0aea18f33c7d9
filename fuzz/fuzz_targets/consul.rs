//! What an agent of Consul answers, which is whatever somebody has registered there.
#![no_main]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use libfuzzer_sys::fuzz_target;
use mesh_consul::{
    client::{HealthOf, Query, Services},
    export::{Wanted, plan},
    import::{AddressOf, Health, ImportRule, MANAGED_BY, Pattern, Snapshot, convert},
    wire::{AgentSelf, AgentServices, CatalogEntry, ServiceEntry, ServiceTags},
};

// The first byte says what was asked for.
fuzz_target!(|input: (u8, &[u8])| {
    let (which, body) = input;
    match which % 5 {
        0 => instances(body),
        1 => names(body),
        2 => registered(body),
        3 => drop(serde_json::from_slice::<Vec<CatalogEntry>>(body)),
        _ => drop(serde_json::from_slice::<AgentSelf>(body)),
    }
});

/// One rule for each kind of address.
fn rules() -> [ImportRule; 3] {
    [AddressOf::Service, AddressOf::Node, AddressOf::Tagged("wan".into())].map(|address| {
        ImportRule {
            allow: vec![Pattern("w*b".into())],
            tags: Vec::new(),
            dc: None,
            as_namespace: "shop".into(),
            rename: BTreeMap::new(),
            address,
            port: None,
        }
    })
}

fn instances(body: &[u8]) {
    let Ok(mut entries) = serde_json::from_slice::<Vec<ServiceEntry>>(body) else { return };
    HealthOf::settle(&mut entries);
    let is_ours = |entry: &&ServiceEntry| {
        entry.service.meta.get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1)
    };
    let others = entries.len() - entries.iter().filter(is_ours).count();
    let snapshot = Snapshot {
        names: BTreeMap::from([(None, Arc::default())]),
        stale: BTreeMap::new(),
        entries: BTreeMap::from([((None, "web".to_owned()), (Arc::new(entries), None))]),
    };
    for rule in rules() {
        let import = convert(&[rule], &snapshot);
        assert!(import.complete);
        for imported in import.services.values() {
            assert!(imported.instances.len() <= others);
            assert!(imported.instances.is_sorted_by(|a, b| a.id < b.id), "each of them once");
        }
    }
}

fn names(body: &[u8]) {
    let Ok(mut names) = serde_json::from_slice::<ServiceTags>(body) else { return };
    Services::settle(&mut names);
    for rule in rules() {
        for name in names.keys().filter(|name| rule.allows(name)) {
            let _ = rule.name(name);
        }
    }
}

/// Only what is of this site, and no longer wanted, is ever taken away.
fn registered(body: &[u8]) {
    let Ok(present) = serde_json::from_slice::<AgentServices>(body) else { return };
    let Ok(site) = "west".parse() else { return };
    let wanted = Wanted {
        service: "web".into(),
        instance: "a".into(),
        address: "10.0.0.9".into(),
        port: 80,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weight: 1,
        health: Health::Passing,
    };
    for action in plan(&site, Duration::from_secs(15), &[wanted], &present).actions {
        if let mesh_consul::export::Action::Deregister(id) = action {
            let meta = &present[&id].meta;
            assert_eq!(meta["isthmus-site"], "west");
            assert_eq!(meta[MANAGED_BY.0], MANAGED_BY.1);
        }
    }
}
