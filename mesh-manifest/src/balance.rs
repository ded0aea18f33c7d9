//! `balance` of a TrafficPolicy: how callers spread requests over the
//! endpoints of a service. What is left out has its default; ranges are
//! checked by `mesh-core`.

use mesh_api::v1::{self, affinity::By};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::ManifestDuration;

/// How requests are spread.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Balance {
    /// Whether near endpoints are preferred; `On` where absent.
    pub locality: Locality,
    /// A tier keeps everything while its healthy capacity times this is all of
    /// its capacity; 100 to 1000, 140 where absent.
    pub overprovisioning_percent: Option<u32>,
    /// With less than this healthy, reports of health are not believed; 50
    /// where absent. 0 is never: where nobody is healthy the answer is 503.
    pub panic_percent: Option<u32>,
    /// Time until a new endpoint has its full share; `10s` where absent.
    pub slow_start: Option<ManifestDuration>,
    /// Endpoints of other sites per worker; 0 is all, 8 where absent.
    pub subset: Option<u32>,
    /// When an endpoint is left alone for what came back from it.
    pub outlier: Option<Outlier>,
    /// What requests stay with an endpoint by.
    pub affinity: Option<Affinity>,
}

/// Whether near endpoints are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Locality {
    /// As far as their capacity goes.
    #[default]
    On,
    /// All endpoints of all sites are alike.
    Off,
    /// Only the nearest that there are, whatever their health.
    Strict,
}

/// When an endpoint is left alone.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outlier {
    /// 0 is never; 5 where absent.
    pub consecutive_failures: Option<u32>,
    /// `3s` where absent, doubled each time.
    pub base_ejection: Option<ManifestDuration>,
    /// `60s` where absent.
    pub max_ejection: Option<ManifestDuration>,
    /// Of all endpoints; 50 where absent.
    pub max_ejected_percent: Option<u32>,
    /// For failing more often than the others.
    pub success_rate: Option<SuccessRate>,
}

/// Ejection of who fails more often than the others.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SuccessRate {
    /// Nobody is ejected for it.
    pub off: bool,
    /// `30s` where absent.
    pub window: Option<ManifestDuration>,
    /// 5 where absent.
    pub min_hosts: Option<u32>,
    /// 100 where absent.
    pub min_requests: Option<u32>,
    /// 190 where absent: 1.9 standard deviations.
    pub deviations_percent: Option<u32>,
}

/// By one of `cookie`, `applicationCookie`, `header`, `source: true`, `path` and
/// `query`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Affinity {
    /// Name of a cookie, made where there is none.
    pub cookie: Option<String>,
    /// Life of one that is made; ends with the browser where absent.
    pub cookie_ttl: Option<ManifestDuration>,
    /// Name of a cookie that only the application sets, as `JSESSIONID`; requests
    /// without it are spread.
    pub application_cookie: Option<String>,
    /// Name of a header.
    pub header: Option<String>,
    /// The client's address.
    pub source: bool,
    /// The path, without its query.
    pub path: Option<PathKey>,
    /// Name of a parameter of the query.
    pub query: Option<String>,
    /// Above so many times its share in flight the next endpoint is taken;
    /// never where absent.
    pub max_load_percent: Option<u32>,
}

/// How much of a path counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PathKey {
    /// So many of its parts, up to 255: `/a/b` of `/a/b/c` are two; 0 or absent
    /// is the whole path.
    pub depth: u8,
}

impl Balance {
    /// As it travels.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn wire(&self) -> Result<v1::BalancePolicy, String> {
        let locality = match self.locality {
            Locality::On => v1::LocalityMode::Unspecified,
            Locality::Off => v1::LocalityMode::Off,
            Locality::Strict => v1::LocalityMode::Strict,
        };
        Ok(v1::BalancePolicy {
            locality: locality.into(),
            overprovisioning_percent: self.overprovisioning_percent,
            panic_percent: self.panic_percent,
            slow_start_ms: millis(self.slow_start),
            subset: self.subset,
            outlier: self.outlier.as_ref().map(Outlier::wire),
            affinity: self.affinity.as_ref().map(Affinity::wire).transpose()?,
        })
    }
}

impl Outlier {
    fn wire(&self) -> v1::OutlierPolicy {
        v1::OutlierPolicy {
            consecutive_failures: self.consecutive_failures,
            base_ejection_ms: millis(self.base_ejection),
            max_ejection_ms: millis(self.max_ejection),
            max_ejected_percent: self.max_ejected_percent,
            success_rate: self.success_rate.as_ref().map(|rate| v1::SuccessRate {
                off: rate.off,
                window_ms: millis(rate.window),
                min_hosts: rate.min_hosts,
                min_requests: rate.min_requests,
                deviations_percent: rate.deviations_percent,
            }),
        }
    }
}

impl Affinity {
    fn wire(&self) -> Result<v1::Affinity, String> {
        let keys = [
            self.cookie.clone().map(By::Cookie),
            self.application_cookie.as_ref().map(|_| By::Header("cookie".into())),
            self.header.clone().map(By::Header),
            self.source.then_some(By::Source(true)),
            self.path.map(|path| By::PathDepth(path.depth.into())),
            self.query.clone().map(By::Query),
        ];
        let mut keys = keys.into_iter().flatten();
        let (Some(by), None) = (keys.next(), keys.next()) else {
            let one =
                "is by one of cookie, applicationCookie, header, source: true, path and query";
            return Err(format!("balance.affinity: {one}"));
        };
        if self.application_cookie.as_deref() == Some("") {
            return Err("balance.affinity.applicationCookie: is empty".into());
        }
        if self.cookie_ttl.is_some() && self.cookie.is_none() {
            return Err("balance.affinity: has a cookieTtl only with a cookie".into());
        }
        Ok(v1::Affinity {
            by: Some(by),
            // No cookie lives shorter than a second.
            cookie_ttl_s: self.cookie_ttl.map_or(0, |ttl| ttl.get().as_secs().max(1)),
            max_load_percent: self.max_load_percent.unwrap_or_default(),
            application_cookie: self.application_cookie.clone().unwrap_or_default(),
        })
    }
}

fn millis(duration: Option<ManifestDuration>) -> Option<u64> {
    duration.map(ManifestDuration::millis)
}
