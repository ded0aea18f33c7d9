//! Whether a document makes sense by itself.

use mesh_api::v1;
use mesh_core::{
    balance::BalancePolicy,
    rule::{ConnectionRoute, Route, TrafficPolicy},
    wire::WireError,
};

use super::{Compiled, Compiling, Registry, services};
use crate::{
    manifest::{Manifest, Spec},
    traffic::RulePolicy,
};

/// Whether a document can be in force at all, whatever services there are.
pub(crate) fn check(manifest: &Manifest) -> Result<(), String> {
    /// Knows every service with every port.
    struct Anything;
    impl Registry for Anything {
        fn ports(&self, _: &str) -> Option<Vec<(String, u16)>> {
            None
        }
    }
    let mut compiled = Compiled::default();
    if let Spec::Traffic(spec) = &manifest.spec {
        for (index, policy) in spec.rules.iter().enumerate() {
            check_rule(policy, &format!("spec.rules[{index}]"))?;
        }
    }
    for service in services(manifest)? {
        let mut compiling =
            Compiling { service: &service, registry: &Anything, compiled: &mut compiled };
        compiling.add(manifest)?;
    }
    for (index, route) in compiled.routes.iter().enumerate() {
        // Backends and ports that are not there yet are no mistake here.
        let route = v1::Route { port: String::new(), ..route.clone() };
        let place = format!("spec.rules[{index}]");
        Route::try_from(&route).map_err(|error| as_written(&place, &error))?;
    }
    for route in &compiled.connection_routes {
        let route = v1::ConnectionRoute { port: String::new(), ..route.clone() };
        ConnectionRoute::try_from(&route).map_err(|error| format!("spec: {error}"))?;
    }
    if let Some(traffic) = &compiled.traffic {
        TrafficPolicy::try_from(traffic).map_err(|error| as_written("spec.traffic", &error))?;
    }
    if let Some(balance) = &compiled.balance {
        BalancePolicy::try_from(balance).map_err(|error| as_written("spec.balance", &error))?;
    }
    Ok(())
}

/// Whatever rule it is for.
fn check_rule(policy: &RulePolicy, place: &str) -> Result<(), String> {
    let name = policy.name.clone().unwrap_or_default();
    let mut route = v1::Route { name, ..v1::Route::default() };
    policy.apply(&mut route).map_err(|text| format!("{place}.{text}"))?;
    route.name.clear();
    Route::try_from(&route).map(drop).map_err(|error| as_written(place, &error))
}

/// Messages have the fields of documents, in snake case and with units.
fn as_written(place: &str, error: &WireError) -> String {
    let field = error.field;
    let bare = field.strip_suffix("_ms").or_else(|| field.strip_suffix("_s")).unwrap_or(field);
    let section = place.rsplit('.').next().unwrap_or_default();
    let inner = bare.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')).unwrap_or(bare);
    let mut words = inner.split('_');
    let mut written = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        written += &first.to_ascii_uppercase();
        written += rest;
    }
    format!("{place}.{written}: {}", error.problem)
}
