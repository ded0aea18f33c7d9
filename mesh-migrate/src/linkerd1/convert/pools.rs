//! Bound names as pools.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value as Json;

use super::super::{explain::Target, namers::BoundName, policy::Merged};
use crate::{
    program::{Balance, ClientTls, Limits, Member, Outlier, Pool},
    request::Endpoint,
    source::Place,
};

/// What Linkerd trusts where nothing is said.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Weights of members, at most.
const MAX_WEIGHT: f64 = 10_000.0;

/// Pools by what they are made of.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// By name.
    pub pools: BTreeMap<String, Pool>,
    names: BTreeMap<String, String>,
}

/// What a pool is made of.
pub(super) struct Source<'a> {
    /// Where the bound name comes from.
    pub place: &'a Place,
    /// Linkerd's name of it.
    pub bound: &'a BoundName,
    /// What applies to it.
    pub policy: &'a Merged,
    /// The router speaks HTTP/2.
    pub is_http2: bool,
    /// The hop was one between Linkerds, which the mesh replaces.
    pub is_mesh: bool,
}

impl Pools {
    /// The pool of a bound name; routers with other policies get one of their own.
    pub(super) fn of(&mut self, source: &Source<'_>) -> String {
        let policy = serde_json::to_string(&source.policy.values).unwrap_or_default();
        let endpoints = format!("{:?}", source.bound.endpoints);
        let key = format!(
            "{} {} {} {policy} {endpoints}",
            source.bound.id, source.is_http2, source.is_mesh
        );
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let name =
            unique(&label(&source.bound.id.to_string()), |name| self.pools.contains_key(name));
        self.pools.insert(name.clone(), pool(source));
        self.names.insert(key, name.clone());
        name
    }

    /// A pool that nobody is in: `$`.
    pub(super) fn nobody(&mut self, place: &Place) -> String {
        let name = "nobody".to_owned();
        self.pools.entry(name.clone()).or_insert_with(|| empty(place));
        name
    }
}

/// A name of DNS labels without dots.
pub(super) fn label(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.is_empty() && !out.ends_with('-') {
            out.push('-');
        }
    }
    out.truncate(57);
    let out = out.trim_end_matches('-');
    if out.is_empty() { "x".into() } else { out.into() }
}

/// The name, or the name with a number.
pub(super) fn unique(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    if !is_taken(name) {
        return name.to_owned();
    }
    let numbered = (2u32..).map(|n| format!("{name}-{n}"));
    numbered.into_iter().find(|name| !is_taken(name)).expect("numbers do not end")
}

fn empty(place: &Place) -> Pool {
    Pool {
        panic_percent: None,
        place: place.clone(),
        members: Vec::new(),
        balance: Balance::LeastLoaded,
        connect_timeout: None,
        idle_timeout: None,
        check: None,
        outlier: None,
        tls: None,
        is_http2: false,
        limits: Limits::default(),
    }
}

fn pool(source: &Source<'_>) -> Pool {
    let policy = source.policy;
    let known = source.bound.endpoints.as_deref().unwrap_or_default();
    let number = |keys: &[&str]| policy.number(keys).unwrap_or_default().max(0.0) as u32;
    Pool {
        panic_percent: None,
        members: members(source.place, known),
        balance: match policy.text(&["loadBalancer", "kind"]) {
            Some("roundRobin") => Balance::RoundRobin,
            _ => Balance::LeastLoaded,
        },
        idle_timeout: policy.number(&["hostConnectionPool", "idleTimeMs"]).map(millis),
        outlier: outlier(policy),
        tls: if source.is_mesh { None } else { tls(policy) },
        is_http2: source.is_http2,
        limits: Limits {
            connections: number(&["hostConnectionPool", "maxSize"]),
            pending: number(&["hostConnectionPool", "maxWaiters"]),
            ..Limits::default()
        },
        ..empty(source.place)
    }
}

fn members(place: &Place, known: &[(Endpoint, f64)]) -> Vec<Member> {
    let weights: Vec<f64> = known.iter().map(|(_, weight)| *weight).collect();
    let (weights, _) = whole(&weights);
    let member = |((endpoint, _), weight): (&(Endpoint, f64), u32)| Member {
        place: place.clone(),
        endpoint: endpoint.clone(),
        weight,
        priority: 0,
        is_disabled: false,
        max_requests: 0,
    };
    known.iter().zip(weights).map(member).collect()
}

/// Weights as whole numbers, and whether they say the same.
pub(super) fn whole(weights: &[f64]) -> (Vec<u32>, bool) {
    let all: f64 = weights.iter().sum();
    if all <= 0.0 || !all.is_finite() {
        return (vec![1; weights.len()], weights.iter().all(|w| *w == weights[0]));
    }
    let least =
        weights.iter().copied().filter(|weight| *weight > 0.0).fold(f64::INFINITY, f64::min);
    for scale in 1..=200 {
        let scaled: Vec<f64> = weights.iter().map(|w| w / least * f64::from(scale)).collect();
        let is_whole = scaled.iter().all(|s| (s - s.round()).abs() < 1e-6 && *s <= MAX_WEIGHT);
        if is_whole {
            return (scaled.iter().map(|s| s.round() as u32).collect(), true);
        }
    }
    let least = |weight: f64| if weight > 0.0 { 1 } else { 0 };
    let of = |w: &f64| ((w / all * MAX_WEIGHT).round() as u32).max(least(*w));
    let rounded: Vec<u32> = weights.iter().map(of).collect();
    let same = weights
        .iter()
        .zip(&rounded)
        .all(|(weight, rounded)| (weight / all - f64::from(*rounded) / MAX_WEIGHT).abs() < 1e-9);
    (smallest(rounded), same)
}

fn smallest(weights: Vec<u32>) -> Vec<u32> {
    fn divisor(a: u32, b: u32) -> u32 {
        if b == 0 { a } else { divisor(b, a % b) }
    }
    let common = weights.iter().copied().fold(0, divisor).max(1);
    weights.into_iter().map(|weight| weight / common).collect()
}

pub(super) fn millis(ms: f64) -> Duration {
    Duration::from_micros((ms.max(0.0) * 1000.0) as u64)
}

/// Five failures in a row and five seconds where nothing is said.
fn outlier(policy: &Merged) -> Option<Outlier> {
    let of = |keys: &[&str]| policy.number(keys);
    match policy.text(&["failureAccrual", "kind"]) {
        // Nobody is left alone.
        Some("none" | "io.l5d.none") => Some(Outlier { failures: 0, ejection: millis(5_000.0) }),
        _ => {
            let failures = of(&["failureAccrual", "failures"]).unwrap_or(5.0).max(1.0) as u32;
            let backoff = of(&["failureAccrual", "backoff", "ms"])
                .or_else(|| of(&["failureAccrual", "backoff", "minMs"]));
            Some(Outlier { failures, ejection: millis(backoff.unwrap_or(5_000.0)) })
        }
    }
}

fn tls(policy: &Merged) -> Option<ClientTls> {
    let tls = policy.at(&["tls"])?;
    if tls.get("enabled") == Some(&Json::Bool(false)) {
        return None;
    }
    let text = |value: &Json| value.as_str().map(str::to_owned);
    let of = |key: &str| tls.get(key).and_then(text);
    let first = tls.get("trustCerts").and_then(|list| list.get(0)).and_then(text);
    let is_blind = tls.get("disableValidation") == Some(&Json::Bool(true));
    let roots = of("trustCertsBundle").or(first).unwrap_or_else(|| SYSTEM_ROOTS.into());
    let auth = |key: &str| tls.get("clientAuth").and_then(|auth| auth.get(key)).and_then(text);
    Some(ClientTls {
        server_name: of("commonName"),
        roots: (!is_blind).then_some(roots),
        certificate: auth("certPath").zip(auth("keyPath")),
    })
}

/// The time of one attempt: the longest of all that may take the request.
pub(super) fn attempt_timeout(targets: &[Target]) -> Option<Duration> {
    let each = targets.iter().map(|target| target.policy.number(&["requestAttemptTimeoutMs"]));
    let each: Option<Vec<f64>> = each.collect();
    each?.into_iter().reduce(f64::max).map(millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_whole() {
        assert_eq!(whole(&[0.95, 0.05]), (vec![19, 1], true));
        assert_eq!(whole(&[9.0, 1.0]), (vec![9, 1], true));
        assert_eq!(whole(&[1.0, 2.0]), (vec![1, 2], true));
        assert_eq!(whole(&[1.0 / 17.0, 12.0 / 17.0, 4.0 / 17.0]), (vec![1, 12, 4], true));
        assert_eq!(whole(&[0.0, 2.0]), (vec![0, 1], true));
        assert_eq!(whole(&[1.0, 1000.001]), (vec![1, 999], false));
        assert_eq!(whole(&[0.0, 0.0]), (vec![1, 1], true));
        assert_eq!(whole(&[]), (vec![], true));
    }
}
