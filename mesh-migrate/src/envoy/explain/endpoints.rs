//! Which endpoints of a cluster: "Load balancing".

use super::{Asked, Why, parts};
use crate::{
    envoy::{
        parts::Lb,
        tree::{Tree, What},
    },
    request::{Endpoint, Forwarded},
};

impl Asked<'_> {
    /// Shares of clusters and their endpoints; of clusters that are not there, none.
    pub(super) fn forwarded(&self, pools: Vec<(String, f64)>, why: &mut Why) -> Forwarded {
        let mut endpoints: Vec<(Endpoint, f64)> = Vec::new();
        let mut is_sticky = true;
        for (name, share) in &pools {
            let Some(cluster) = self.config.cluster(name) else { continue };
            is_sticky &= matches!(parts::lb(cluster), Lb::RingHash | Lb::Maglev);
            for (endpoint, part) in self.shares(cluster, why) {
                match endpoints.iter_mut().find(|(known, _)| *known == endpoint) {
                    Some((_, known)) => *known += part * share,
                    None => endpoints.push((endpoint, part * share)),
                }
            }
        }
        let is_sticky = is_sticky && pools.len() == 1;
        Forwarded { pools, endpoints, is_sticky, target: None, headers: Vec::new() }
    }

    /// Endpoints of a cluster that take something while nobody has failed.
    fn shares(&self, cluster: &Tree, why: &mut Why) -> Vec<(Endpoint, f64)> {
        let name = cluster.text("name").unwrap_or_default();
        if let Lb::Other(policy) = parts::lb(cluster) {
            why.at(&cluster.place, format!("{name} is balanced by {policy}: shares are a guess"));
        }
        if cluster.entry("lb_subset_config").is_some() {
            why.at(&cluster.place, format!("{name} has subsets: shares are those without them"));
        }
        let Some(assignment) = self.config.load_assignment(cluster) else {
            why.at(&cluster.place, format!("{name} has no endpoints of its own"));
            return Vec::new();
        };
        let mut levels: Vec<u32> = assignment.messages("endpoints").map(priority).collect();
        levels.sort_unstable();
        levels.dedup();
        let at =
            |level: u32| assignment.messages("endpoints").filter(move |l| priority(l) == level);
        let factor = overprovisioning(assignment);
        let well: Vec<f64> = levels.iter().map(|level| healthy(at(*level))).collect();
        let health: Vec<f64> = well.iter().map(|part| (part * factor).min(1.0)).collect();
        let sum: f64 = health.iter().sum();
        let total = sum.min(1.0);
        let mut left = 1.0;
        let mut shares = Vec::new();
        for ((level, health), well) in levels.iter().zip(&health).zip(&well) {
            let load = if total > 0.0 { (health / total).min(left) } else { left };
            left -= load;
            // "Panic threshold": too few are well, and other levels cannot help.
            let panics = sum < 1.0 && *well < threshold(cluster);
            if load > 0.0 {
                let of = spread(cluster, at(*level).collect(), panics);
                shares.extend(of.into_iter().map(|(endpoint, part)| (endpoint, part * load)));
            }
        }
        why.at(&cluster.place, format!("cluster {name}, {} endpoints", shares.len()));
        shares
    }
}

fn priority(locality: &Tree) -> u32 {
    locality.count("priority").unwrap_or(0)
}

fn overprovisioning(assignment: &Tree) -> f64 {
    let policy = assignment.msg("policy");
    let factor = policy.and_then(|policy| policy.count("overprovisioning_factor"));
    f64::from(factor.unwrap_or(140)) / 100.0
}

/// Which part of a level is well; those that are drained do not count.
fn healthy<'t>(localities: impl Iterator<Item = &'t Tree>) -> f64 {
    let (mut well, mut all) = (0.0, 0.0);
    for locality in localities {
        for endpoint in locality.messages("lb_endpoints") {
            let is_drained = endpoint.text("health_status") == Some("DRAINING");
            all += if is_drained { 0.0 } else { 1.0 };
            well += if parts::is_out(endpoint) { 0.0 } else { 1.0 };
        }
    }
    if all == 0.0 { 0.0 } else { well / all }
}

/// `healthy_panic_threshold`, as a part of 1.
fn threshold(cluster: &Tree) -> f64 {
    let own = cluster.msg("common_lb_config").and_then(|one| one.msg("healthy_panic_threshold"));
    match own.map(|percent| percent.at("value")) {
        Some(Some(What::Real(value))) => value / 100.0,
        Some(_) => 0.0,
        None => 0.5,
    }
}

/// Load of one level over its endpoints. In panic everybody takes some.
fn spread(cluster: &Tree, localities: Vec<&Tree>, panics: bool) -> Vec<(Endpoint, f64)> {
    let by_locality = parts::weighs_localities(cluster);
    let is_random = parts::lb(cluster) == Lb::Random;
    let mut all = Vec::new();
    for locality in localities {
        let takes = |one: &&Tree| panics || !parts::is_out(one);
        let hosts: Vec<&Tree> = locality.messages("lb_endpoints").filter(takes).collect();
        let weight = |one: &Tree| f64::from(one.count("load_balancing_weight").unwrap_or(1));
        let weight = |one: &Tree| if is_random { 1.0 } else { weight(one) };
        let sum: f64 = hosts.iter().map(|one| weight(one)).sum();
        let scale = match by_locality {
            true => f64::from(locality.count("load_balancing_weight").unwrap_or(0)) / sum,
            false => 1.0,
        };
        for host in hosts {
            if let Some(endpoint) = endpoint(host) {
                all.push((endpoint, weight(host) * scale));
            }
        }
    }
    let sum: f64 = all.iter().map(|(_, weight)| weight).sum();
    all.retain(|(_, weight)| *weight > 0.0);
    all.into_iter().map(|(endpoint, weight)| (endpoint, weight / sum)).collect()
}

fn endpoint(host: &Tree) -> Option<Endpoint> {
    let address = host.msg("endpoint")?.msg("address")?;
    if let Some(pipe) = address.msg("pipe") {
        return Some(Endpoint::Name(format!("unix:{}", pipe.text("path").unwrap_or_default())));
    }
    parts::socket(Some(address))
}
