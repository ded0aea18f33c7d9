//! Linkerd's ServiceProfile (`linkerd.io/v1alpha2`).

use mesh_api::v1::{self, route_match::Path};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::{ManifestDuration, millis};

/// `spec` of a ServiceProfile. Its name is that of the service:
/// `orders.shop.svc.cluster.local`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServiceProfileSpec {
    /// The first that matches counts.
    pub routes: Vec<ProfileRoute>,
    /// Of all repetitions together.
    pub retry_budget: Option<RetryBudget>,
    /// A traffic split.
    pub dst_overrides: Vec<DstOverride>,
    /// Ports that are carried as bytes.
    pub opaque_ports: Vec<String>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProfileRoute {
    /// For metrics.
    pub name: String,
    /// Which requests.
    pub condition: RequestMatch,
    /// Whatever the method.
    #[serde(default)]
    pub is_retryable: bool,
    /// The whole request, repetitions included.
    #[serde(default)]
    pub timeout: Option<ManifestDuration>,
    /// Which answers count as failures; 5xx where none matches.
    #[serde(default)]
    pub response_classes: Vec<ResponseClass>,
}

/// All given parts must hold.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RequestMatch {
    /// Matches the whole path.
    pub path_regex: Option<String>,
    /// Exact.
    pub method: Option<String>,
    /// Every one must hold.
    pub all: Vec<RequestMatch>,
    /// One must hold.
    pub any: Vec<RequestMatch>,
    /// Must not hold; not carried.
    pub not: Option<serde_json::Value>,
}

/// Which answers are failures.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResponseClass {
    /// Which answers.
    pub condition: ResponseMatch,
    /// Whether they are failures.
    #[serde(default)]
    pub is_failure: bool,
}

/// Which answers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ResponseMatch {
    /// By status.
    pub status: Option<StatusMatch>,
    /// Every one must hold; not carried.
    pub all: Option<serde_json::Value>,
    /// One must hold.
    pub any: Vec<ResponseMatch>,
    /// Must not hold; not carried.
    pub not: Option<serde_json::Value>,
}

/// Inclusive; with one of both, exactly that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusMatch {
    /// 100 to 599.
    pub min: Option<u16>,
    /// 100 to 599.
    pub max: Option<u16>,
}

/// Of all repetitions together.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudget {
    /// Repetitions per request.
    pub retry_ratio: f64,
    /// Whatever the requests are.
    pub min_retries_per_second: u32,
    /// Over which they are counted.
    pub ttl: ManifestDuration,
}

/// One target of a split.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DstOverride {
    /// `orders-v2.shop.svc.cluster.local[:port]`.
    pub authority: String,
    /// A Kubernetes quantity: `1`, `"500m"`.
    pub weight: serde_json::Value,
}

impl RetryBudget {
    pub(crate) fn wire(self) -> Result<v1::RetryBudget, String> {
        if !(0.0..=1.0).contains(&self.retry_ratio) {
            return Err("retryBudget.retryRatio: must be 0 to 1".into());
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let percent = (self.retry_ratio * 100.0).round() as u32;
        Ok(v1::RetryBudget {
            percent,
            min_per_second: self.min_retries_per_second,
            ttl_ms: self.ttl.millis(),
        })
    }
}

/// No answer has this status; no range at all would mean 5xx.
const NEVER: v1::StatusRange = v1::StatusRange { from: 100, to: 100 };

impl ProfileRoute {
    /// The rule, without backends.
    pub(crate) fn wire(&self) -> Result<v1::Route, String> {
        let failures = self.failures()?;
        let retry = v1::RetryPolicy {
            attempts: 3,
            statuses: failures.clone(),
            any_method: true,
            ..v1::RetryPolicy::default()
        };
        Ok(v1::Route {
            name: self.name.clone(),
            matches: self.condition.alternatives("condition")?,
            request_timeout_ms: millis(self.timeout),
            retry: self.is_retryable.then_some(retry),
            failures,
            ..v1::Route::default()
        })
    }

    /// As Linkerd reads it: the first class that holds decides, and 5xx is a
    /// failure where none does.
    fn failures(&self) -> Result<Vec<v1::StatusRange>, String> {
        let mut classes = Vec::new();
        for class in &self.response_classes {
            let mut ranges = Vec::new();
            class.condition.ranges(&mut ranges)?;
            classes.push((ranges, class.is_failure));
        }
        let is_failure = |status: u32| {
            let holds = |range: &v1::StatusRange| (range.from..=range.to).contains(&status);
            let class = classes.iter().find(|(ranges, _)| ranges.iter().any(holds));
            class.map_or(status >= 500, |(_, is_failure)| *is_failure)
        };
        let mut failures: Vec<v1::StatusRange> = Vec::new();
        for status in (200..600).filter(|status| is_failure(*status)) {
            match failures.last_mut() {
                Some(last) if last.to + 1 == status => last.to = status,
                _ => failures.push(v1::StatusRange { from: status, to: status }),
            }
        }
        if failures.is_empty() {
            failures.push(NEVER);
        }
        Ok(failures)
    }
}

impl RequestMatch {
    /// The same as a list of which any must hold.
    fn alternatives(&self, place: &str) -> Result<Vec<v1::RouteMatch>, String> {
        if self.not.is_some() {
            return Err(format!("{place}.not: is not carried; write the paths that match"));
        }
        let empty = self.path_regex.is_none() && self.method.is_none();
        if empty && self.all.is_empty() && self.any.is_empty() {
            return Err(format!("{place}: says nothing; give pathRegex, method, all or any"));
        }
        let own = v1::RouteMatch {
            path: self.path_regex.clone().map(Path::PathRegex),
            method: self.method.clone().unwrap_or_default(),
            ..v1::RouteMatch::default()
        };
        let mut found = vec![own];
        for one in &self.all {
            found = both(&found, &one.alternatives(place)?, place)?;
        }
        if !self.any.is_empty() {
            let mut any = Vec::new();
            for one in &self.any {
                any.extend(one.alternatives(place)?);
            }
            found = both(&found, &any, place)?;
        }
        Ok(found)
    }
}

/// Matches for which one of each list holds.
fn both(
    left: &[v1::RouteMatch],
    right: &[v1::RouteMatch],
    place: &str,
) -> Result<Vec<v1::RouteMatch>, String> {
    let mut found = Vec::new();
    for one in left {
        for other in right {
            let path = match (&one.path, &other.path) {
                (Some(one), Some(other)) if one != other => {
                    return Err(format!("{place}: two paths that must both match are not carried"));
                }
                (one, other) => one.clone().or_else(|| other.clone()),
            };
            let method = match (one.method.as_str(), other.method.as_str()) {
                ("", method) | (method, "") => method.to_owned(),
                (one, other) if one == other => one.to_owned(),
                // No request has two methods.
                _ => continue,
            };
            found.push(v1::RouteMatch { path, method, ..v1::RouteMatch::default() });
        }
    }
    Ok(found)
}

impl ResponseMatch {
    fn ranges(&self, found: &mut Vec<v1::StatusRange>) -> Result<(), String> {
        if self.not.is_some() || self.all.is_some() {
            return Err("responseClasses.condition: only status and any are carried".into());
        }
        if let Some(StatusMatch { min, max }) = self.status {
            let (from, to) = (min.or(max).unwrap_or(500), max.or(min).unwrap_or(599));
            found.push(v1::StatusRange { from: from.into(), to: to.into() });
        }
        self.any.iter().try_for_each(|one| one.ranges(found))
    }
}

/// Service, namespace and port of `orders-v2.shop.svc.cluster.local:80`.
pub(crate) fn authority(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.rsplit_once(':') {
        None => (text, None),
        Some((host, port)) => {
            (host, Some(port.parse().map_err(|_| format!("{text}: the port is no number"))?))
        }
    };
    let mut labels = host.split('.');
    match (labels.next(), labels.next(), labels.next()) {
        (Some(name), Some(namespace), None | Some("svc")) => {
            Ok((format!("{name}.{namespace}"), port))
        }
        _ => Err(format!("{text}: write <service>.<namespace>.svc.cluster.local")),
    }
}

impl DstOverride {
    /// Its weight in thousandths.
    pub(crate) fn milli_weight(&self) -> Result<u32, String> {
        let text = match &self.weight {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let milli = match text.strip_suffix('m') {
            Some(milli) => milli.parse().ok(),
            None => text.parse::<u32>().ok().and_then(|whole| whole.checked_mul(1000)),
        };
        milli.ok_or_else(|| format!("dstOverrides.weight: {text:?} is no quantity like 1 or 500m"))
    }
}
