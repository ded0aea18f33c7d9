//! What is done with requests of one name.

use super::{
    super::{
        config::CONTEXT,
        explain::{Client, Target},
        name::raw,
        namers::Origin,
        policy::Merged,
    },
    candidates::Candidate,
    pair::is_hop,
    pools::{self, Pools, Source, attempt_timeout, millis, whole},
};
use crate::{
    program::{Condition, Forward, Reply, Retry, Rule, Then},
    source::Place,
};

/// Repetitions of one request, where Linkerd only has a budget.
const ATTEMPTS: u32 = 3;

/// Where a name goes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resolved {
    /// As Linkerd has it.
    pub targets: Vec<Target>,
    /// With the endpoints of applications, where the hop was one between Linkerds.
    pub direct: Vec<Target>,
    /// What Linkerd answers itself.
    pub status: Option<u16>,
    /// What applies to the service.
    pub service: Merged,
    /// The entry that decides.
    pub place: Place,
    /// Entries on the way, by their places in the engine.
    pub used: Vec<usize>,
}

impl Resolved {
    /// Whether it goes to the same with the same policies.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let ids = |targets: &[Target]| -> Vec<(String, String)> {
            targets.iter().map(|t| (t.client.to_string(), format!("{:.9}", t.share))).collect()
        };
        if self.status.is_some() || other.status.is_some() {
            return self.status == other.status;
        }
        ids(&self.targets) == ids(&other.targets) && self.service.values == other.service.values
    }

    /// Whether it is no name at all.
    pub(super) fn is_nowhere(&self) -> bool {
        self.status == Some(502)
            && self.targets.iter().all(|target| !matches!(target.client, Client::Name(_)))
    }

    /// Whether the name of a client says `text`.
    pub(super) fn mentions(&self, text: &str) -> bool {
        self.targets.iter().any(|target| match &target.client {
            Client::Name(bound) => bound.id.labels().iter().any(|label| raw(label).contains(text)),
            _ => false,
        })
    }
}

/// Router, and where its endpoints are known from.
pub(super) struct Context<'a> {
    /// Of the router.
    pub place: &'a Place,
    /// It speaks HTTP/2.
    pub is_http2: bool,
    /// The hop was one between Linkerds.
    pub is_mesh: bool,
    /// What clients say of their context goes no further.
    pub clears_context: bool,
    pub pools: &'a mut Pools,
}

/// One rule, or two where only some methods are repeated.
pub(super) fn rules(context: &mut Context<'_>, one: &Candidate, to: &Resolved) -> Vec<Rule> {
    let rule = |when: Condition, then: Then| Rule { place: to.place.clone(), when, then };
    if let Some(status) = to.status {
        return vec![rule(one.when.clone(), Then::Reply(Reply { status, ..Reply::default() }))];
    }
    let (retry, methods) = retry(&to.service);
    let mut forward = forward(context, one, to);
    let only = retry.is_some().then_some(methods).flatten();
    let Some(methods) = only else {
        forward.retry = retry;
        return vec![rule(one.when.clone(), Then::Forward(Box::new(forward)))];
    };
    let methods = Condition::Method(methods.iter().map(|&method| method.to_owned()).collect());
    let repeated = Forward { retry, ..forward.clone() };
    vec![
        rule(Condition::All(vec![methods, one.when.clone()]), Then::Forward(Box::new(repeated))),
        rule(one.when.clone(), Then::Forward(Box::new(forward))),
    ]
}

fn forward(context: &mut Context<'_>, one: &Candidate, to: &Resolved) -> Forward {
    let targets = if context.is_mesh { &to.direct } else { &to.targets };
    let shares: Vec<f64> = targets.iter().map(|target| target.share).collect();
    let (weights, _) = whole(&shares);
    let mut named: Vec<(String, u32)> = Vec::new();
    let is_hop = to.targets.iter().map(is_hop);
    for ((target, weight), is_hop) in targets.iter().zip(weights).zip(is_hop) {
        let name = match &target.client {
            Client::Name(bound) if !matches!(bound.from, Origin::Status(_)) => {
                context.pools.of(&Source {
                    place: &to.place,
                    bound,
                    policy: &target.policy,
                    is_http2: context.is_http2,
                    is_mesh: context.is_mesh && is_hop,
                })
            }
            _ => context.pools.nobody(context.place),
        };
        match named.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known += weight,
            None => named.push((name, weight)),
        }
    }
    Forward {
        pools: named,
        path: one.path.clone(),
        request_timeout: to.service.number(&["totalTimeoutMs"]).map(millis),
        attempt_timeout: attempt_timeout(&to.targets),
        remove: match context.clears_context {
            true => CONTEXT.map(str::to_owned).to_vec(),
            false => Vec::new(),
        },
        ..Forward::default()
    }
}

/// What is repeated, and of which methods; of all where `None`.
fn retry(service: &Merged) -> (Option<Retry>, Option<&'static [&'static str]>) {
    let budget = |key: &str| service.number(&["retries", "budget", key]);
    let is_off = budget("minRetriesPerSec") == Some(0.0) && budget("percentCanRetry") == Some(0.0);
    let kind = service.text(&["responseClassifier", "kind"]).unwrap_or_default();
    let backoff = service
        .number(&["retries", "backoff", "ms"])
        .or_else(|| service.number(&["retries", "backoff", "minMs"]))
        .map(pools::millis);
    let of = |statuses: Vec<u16>, grpc_statuses: Vec<u32>, any_method: bool| Retry {
        attempts: ATTEMPTS,
        statuses,
        grpc_statuses,
        any_method,
        on_reset: true,
        backoff,
    };
    let failures = || (500..600).collect::<Vec<u16>>();
    let (retry, methods): (_, Option<&'static [&'static str]>) = match last(kind) {
        "retryableRead5XX" => {
            (of(failures(), Vec::new(), false), Some(&["GET", "HEAD", "OPTIONS", "TRACE"]))
        }
        "retryableIdempotent5XX" => (
            of(failures(), Vec::new(), false),
            Some(&["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"]),
        ),
        "retryableAll5XX" => (
            of(failures(), Vec::new(), true),
            Some(&["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "POST", "PATCH"]),
        ),
        "default" => (of(Vec::new(), vec![14], true), None),
        "compliant" => (of(vec![429, 502, 503, 504], vec![14], true), None),
        "alwaysRetryable" => (of(Vec::new(), (1..=16).collect(), true), None),
        "retryableStatusCodes" => {
            let codes = service.at(&["responseClassifier", "retryableStatusCodes"]);
            let codes = codes.and_then(|codes| codes.as_array()).into_iter().flatten();
            let codes = codes.filter_map(|code| u32::try_from(code.as_u64()?).ok()).collect();
            (of(Vec::new(), codes, true), None)
        }
        _ => return (None, None),
    };
    if is_off { (None, None) } else { (Some(retry), methods) }
}

/// `io.l5d.http.retryableRead5XX` as `retryableRead5XX`.
fn last(kind: &str) -> &str {
    kind.rsplit('.').next().unwrap_or_default()
}
