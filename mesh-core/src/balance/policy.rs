//! What may be chosen about the balancing of one service, and its defaults.

use std::{net::IpAddr, num::NonZeroU8, sync::Arc, time::Duration};

use http::{HeaderName, header};

use super::hash;
use crate::{message::RequestHead, rule::matching::parameter};

/// A ratio in hundredths: 140 is 1.4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    /// As a factor.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

/// Whether near endpoints are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalityMode {
    /// Near ones first, as far as their capacity goes.
    #[default]
    On,
    /// All endpoints of all sites are alike.
    Off,
    /// Only the nearest tier that has endpoints, whatever their health.
    Strict,
}

/// How the requests of one service are spread over its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancePolicy {
    /// Whether near endpoints are preferred.
    pub locality: LocalityMode,
    /// A tier keeps everything while its healthy capacity times this is all
    /// of its capacity; 100 to 1000.
    pub overprovisioning: Percent,
    /// With less than this healthy, reports of health are not believed; 0 to
    /// 100, 0 is never.
    pub panic_threshold: Percent,
    /// How long a new or readmitted endpoint takes to its full share; zero is
    /// at once.
    pub slow_start: Duration,
    /// Endpoints of other sites that one worker uses at a time; 0 is all.
    pub subset: u32,
    /// When an endpoint is left alone for what came back from it.
    pub outlier: OutlierPolicy,
    /// What requests stay with an endpoint by.
    pub affinity: Option<Affinity>,
}

/// When an endpoint is left alone for what came back from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Failures in a row; 0 never ejects for them.
    pub consecutive_failures: u32,
    /// For how long the first time; twice as long each further time.
    pub base_ejection: Duration,
    /// For how long at most.
    pub max_ejection: Duration,
    /// How many endpoints may be ejected at once; one always may.
    pub max_ejected: Percent,
    /// Ejection for a success rate far below that of the others.
    pub success_rate: Option<SuccessRate>,
}

/// Ejection of who fails more often than the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuccessRate {
    /// Over how long successes are counted.
    pub window: Duration,
    /// Endpoints with enough requests that are needed to compare.
    pub min_hosts: u32,
    /// Requests in the window, per worker, that an endpoint needs to be judged.
    pub min_requests: u32,
    /// Standard deviations below the mean that are too many; 190 is 1.9.
    pub deviations: Percent,
}

/// What requests stay with an endpoint by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affinity {
    /// Where the key comes from.
    pub by: AffinityKey,
    /// An endpoint with more than this times its share of what is in flight
    /// hands over to the next on the ring; `None` never does. 101 to 1000.
    pub max_load: Option<Percent>,
}

/// Where the key of affinity comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AffinityKey {
    /// A cookie; made by the proxy where the client has none.
    Cookie {
        /// Its name.
        name: Arc<str>,
        /// `Max-Age` of one made by the proxy; `None` ends with the browser.
        ttl: Option<Duration>,
    },
    /// A cookie that only the application makes; requests without it are
    /// spread.
    ApplicationCookie(Arc<str>),
    /// A header's first value; requests without it are spread.
    Header(HeaderName),
    /// The client's address.
    Source,
    /// The path; so many of its parts, `None` is all.
    Path(Option<NonZeroU8>),
    /// The first value of a parameter of the query; requests without it are
    /// spread.
    Query(Arc<str>),
}

impl Default for BalancePolicy {
    fn default() -> Self {
        Self {
            locality: LocalityMode::On,
            overprovisioning: Percent(140),
            panic_threshold: Percent(50),
            slow_start: Duration::from_secs(10),
            subset: 8,
            outlier: OutlierPolicy::default(),
            affinity: None,
        }
    }
}

impl Default for OutlierPolicy {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            base_ejection: Duration::from_secs(3),
            max_ejection: Duration::from_secs(60),
            max_ejected: Percent(50),
            success_rate: Some(SuccessRate::default()),
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(30),
            min_hosts: 5,
            min_requests: 100,
            deviations: Percent(190),
        }
    }
}

/// The longest time of any policy.
const MAX_TIME: Duration = Duration::from_secs(3600);
/// The longest life of a cookie: what browsers keep at most (RFC 6265bis).
const MAX_COOKIE: Duration = Duration::from_secs(400 * 24 * 3600);
/// More than this is no subset.
const MAX_SUBSET: u32 = 10_000;
/// Bytes of a cookie's name.
const MAX_COOKIE_NAME: usize = 128;

/// A policy that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct BadPolicy {
    /// The field, as files and wire call it.
    pub field: &'static str,
    /// Which rule it breaks.
    pub problem: String,
}

impl BalancePolicy {
    /// Whether every part is in its range.
    ///
    /// # Errors
    ///
    /// The first part that is not.
    pub fn check(&self) -> Result<(), BadPolicy> {
        percent("balance.overprovisioning_percent", self.overprovisioning, 100, 1000)?;
        percent("balance.panic_percent", self.panic_threshold, 0, 100)?;
        time("balance.slow_start", self.slow_start, Duration::ZERO, MAX_TIME)?;
        count("balance.subset", self.subset, 0, MAX_SUBSET)?;
        self.outlier.check()?;
        self.affinity.as_ref().map_or(Ok(()), Affinity::check)
    }
}

impl OutlierPolicy {
    fn check(&self) -> Result<(), BadPolicy> {
        let tenth = Duration::from_millis(100);
        count("balance.outlier.consecutive_failures", self.consecutive_failures, 0, 1000)?;
        time("balance.outlier.base_ejection", self.base_ejection, tenth, MAX_TIME)?;
        time("balance.outlier.max_ejection", self.max_ejection, self.base_ejection, MAX_TIME)?;
        percent("balance.outlier.max_ejected_percent", self.max_ejected, 0, 100)?;
        let Some(rate) = &self.success_rate else { return Ok(()) };
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(600));
        time("balance.outlier.success_rate.window", rate.window, least, most)?;
        count("balance.outlier.success_rate.min_hosts", rate.min_hosts, 2, 10_000)?;
        count("balance.outlier.success_rate.min_requests", rate.min_requests, 1, 1_000_000)?;
        percent("balance.outlier.success_rate.deviations_percent", rate.deviations, 0, 1000)
    }
}

impl Affinity {
    fn check(&self) -> Result<(), BadPolicy> {
        if let Some(max_load) = self.max_load {
            percent("balance.affinity.max_load_percent", max_load, 101, 1000)?;
        }
        let (field, name, ttl) = match &self.by {
            AffinityKey::Cookie { name, ttl } => ("balance.affinity.cookie", name, *ttl),
            AffinityKey::ApplicationCookie(name) => {
                ("balance.affinity.application_cookie", name, None)
            }
            _ => return Ok(()),
        };
        // A token of RFC 9110, as RFC 6265 section 4.1.1 asks.
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || name.len() > MAX_COOKIE_NAME || !name.bytes().all(is_token) {
            let problem =
                format!("must be 1 to {MAX_COOKIE_NAME} letters, digits or -._~!#$%&'*+^`|");
            return Err(BadPolicy { field, problem });
        }
        let second = Duration::from_secs(1);
        ttl.map_or(Ok(()), |ttl| time("balance.affinity.cookie_ttl", ttl, second, MAX_COOKIE))
    }

    /// The key of a request; `None` where it has none. Opaque bytes have no
    /// `head`; `source` is the client's address.
    pub fn key(&self, head: Option<&RequestHead>, source: Option<IpAddr>) -> Option<u64> {
        match &self.by {
            AffinityKey::Cookie { name, .. } | AffinityKey::ApplicationCookie(name) => {
                head?.fields.all("cookie").find_map(|field| cookie(field, name)).map(hash)
            }
            AffinityKey::Header(name) if *name == header::HOST => {
                Some(head?.authority.as_bytes()).filter(|host| !host.is_empty()).map(hash)
            }
            AffinityKey::Header(name) => head?.fields.get(name.as_str()).map(hash),
            AffinityKey::Path(depth) => Some(hash(beginning(head?.path(), *depth).as_bytes())),
            AffinityKey::Query(name) => parameter(head?.query()?, name).map(|value| hash(&value)),
            AffinityKey::Source => source.map(|ip| match ip.to_canonical() {
                IpAddr::V4(ip) => hash(&ip.octets()),
                IpAddr::V6(ip) => hash(&ip.octets()),
            }),
        }
    }

    /// `Set-Cookie` for a client without one, and the key that it will have
    /// from then on; `None` unless affinity is by a cookie of ours.
    pub fn new_cookie(&self, random: u64) -> Option<(String, u64)> {
        let AffinityKey::Cookie { name, ttl } = &self.by else { return None };
        let value = format!("{random:016x}");
        let age = ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
        let cookie = format!("{name}={value}; Path=/{age}; HttpOnly; SameSite=Lax");
        Some((cookie, hash(value.as_bytes())))
    }
}

/// The first parts of a path: `/a/b` of `/a/b/c` for two.
fn beginning(path: &str, depth: Option<NonZeroU8>) -> &str {
    let Some(depth) = depth else { return path };
    let end = path.match_indices('/').nth(depth.get().into()).map(|(at, _)| at);
    &path[..end.unwrap_or(path.len())]
}

/// A cookie's value in one `Cookie` field (RFC 6265 section 5.4).
fn cookie<'h>(field: &'h [u8], name: &str) -> Option<&'h [u8]> {
    field.split(|b| *b == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    })
}

fn percent(field: &'static str, value: Percent, min: u32, max: u32) -> Result<(), BadPolicy> {
    count(field, value.0, min, max)
}

fn count(field: &'static str, value: u32, min: u32, max: u32) -> Result<(), BadPolicy> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(BadPolicy { field, problem: format!("is {value}, must be {min} to {max}") })
}

fn time(
    field: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<(), BadPolicy> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(BadPolicy { field, problem: format!("is {value:?}, must be {min:?} to {max:?}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affinity(by: AffinityKey) -> Affinity {
        Affinity { by, max_load: None }
    }

    fn by_source() -> Affinity {
        affinity(AffinityKey::Source)
    }

    fn by_cookie(name: &str, ttl: Option<Duration>) -> Affinity {
        affinity(AffinityKey::Cookie { name: name.into(), ttl })
    }

    #[test]
    fn the_defaults_are_well_formed_and_ranges_are_kept() {
        let policy = BalancePolicy::default();
        assert_eq!(policy.check(), Ok(()));
        let with = |change: fn(&mut BalancePolicy)| {
            let mut policy = BalancePolicy::default();
            change(&mut policy);
            policy.check().map_err(|bad| bad.field)
        };
        let cases: [(fn(&mut BalancePolicy), &str); 14] = [
            (|p| p.overprovisioning = Percent(99), "balance.overprovisioning_percent"),
            (|p| p.overprovisioning = Percent(1001), "balance.overprovisioning_percent"),
            (|p| p.panic_threshold = Percent(101), "balance.panic_percent"),
            (|p| p.slow_start = MAX_TIME * 2, "balance.slow_start"),
            (|p| p.subset = MAX_SUBSET + 1, "balance.subset"),
            (|p| p.outlier.consecutive_failures = 1001, "balance.outlier.consecutive_failures"),
            (|p| p.outlier.base_ejection = Duration::ZERO, "balance.outlier.base_ejection"),
            (|p| p.outlier.max_ejection = Duration::from_secs(2), "balance.outlier.max_ejection"),
            (|p| p.outlier.max_ejected = Percent(101), "balance.outlier.max_ejected_percent"),
            (
                |p| p.outlier.success_rate.as_mut().unwrap().window = Duration::ZERO,
                "balance.outlier.success_rate.window",
            ),
            (
                |p| p.outlier.success_rate.as_mut().unwrap().min_hosts = 1,
                "balance.outlier.success_rate.min_hosts",
            ),
            (
                |p| p.outlier.success_rate.as_mut().unwrap().min_requests = 0,
                "balance.outlier.success_rate.min_requests",
            ),
            (
                |p| p.outlier.success_rate.as_mut().unwrap().deviations = Percent(1001),
                "balance.outlier.success_rate.deviations_percent",
            ),
            (
                |p| {
                    let max_load = Some(Percent(100));
                    p.affinity = Some(Affinity { by: AffinityKey::Source, max_load });
                },
                "balance.affinity.max_load_percent",
            ),
        ];
        for (change, field) in cases {
            assert_eq!(with(change), Err(field));
        }
        assert_eq!(with(|p| p.outlier.success_rate = None), Ok(()));
        assert_eq!(with(|p| p.panic_threshold = Percent(0)), Ok(()));
    }

    #[test]
    fn cookies_that_a_browser_would_not_send_back_are_refused() {
        let second = Duration::from_secs(1);
        for (name, ttl, good) in [
            ("SESSION", None, true),
            ("a.b-c", Some(second), true),
            ("", None, false),
            ("a b", None, false),
            ("a=b", None, false),
            ("a;b", None, false),
            ("é", None, false),
            ("x", Some(Duration::ZERO), false),
            // 400 days.
            ("x", Some(Duration::from_secs(34_560_000)), true),
            ("x", Some(Duration::from_secs(34_560_001)), false),
        ] {
            assert_eq!(by_cookie(name, ttl).check().is_ok(), good, "{name} {ttl:?}");
        }
        let theirs = affinity(AffinityKey::ApplicationCookie("a b".into())).check().unwrap_err();
        assert_eq!(theirs.field, "balance.affinity.application_cookie");
        assert!(by_cookie(&"x".repeat(MAX_COOKIE_NAME), None).check().is_ok());
        assert!(by_cookie(&"x".repeat(MAX_COOKIE_NAME + 1), None).check().is_err());
    }

    #[test]
    fn keys() {
        let fields = |name: &str, values: &[&str]| {
            let mut head = RequestHead { authority: "A.b:80".into(), ..RequestHead::new() };
            values.iter().for_each(|value| {
                head.fields.push(name, value.as_bytes());
            });
            head
        };
        let cookie = by_cookie("sid", None);
        let key = |values: &[&str]| cookie.key(Some(&fields("Cookie", values)), None);
        assert_eq!(key(&["sid=7"]), Some(hash(b"7")));
        assert_eq!(key(&["a=1; sid=7 ;b=2"]), Some(hash(b"7")));
        assert_eq!(key(&["a=1", "sid=7"]), Some(hash(b"7")));
        for none in [&[][..], &["xsid=7"], &["sid7"], &["sid="], &["SID=7"]] {
            assert_eq!(key(none), None, "{none:?}");
        }
        let theirs = affinity(AffinityKey::ApplicationCookie("sid".into()));
        assert_eq!(theirs.key(Some(&fields("Cookie", &["a=1; sid=7"])), None), Some(hash(b"7")));
        assert_eq!(theirs.key(Some(&fields("Cookie", &["a=1"])), None), None);
        assert_eq!(theirs.new_cookie(1), None);
        let header = affinity(AffinityKey::Header(HeaderName::from_static("x-user")));
        let user = fields("X-User", &["u1", "u2"]);
        assert_eq!(header.key(Some(&user), None), Some(hash(b"u1")));
        assert_eq!(cookie.key(Some(&user), None), None);
        assert_eq!(header.key(None, None), None);
        let host = affinity(AffinityKey::Header(header::HOST));
        assert_eq!(host.key(Some(&user), None), Some(hash(b"A.b:80")));
        let source = by_source();
        let ip = |text: &str| source.key(None, Some(text.parse().unwrap()));
        assert_eq!(ip("10.0.0.1"), ip("::ffff:10.0.0.1"));
        assert_ne!(ip("10.0.0.1"), ip("10.0.0.2"));
        assert_eq!(source.key(Some(&user), None), None);
    }

    #[test]
    fn keys_of_paths_and_queries() {
        let head = |target: &str| RequestHead { target: target.into(), ..RequestHead::new() };
        let by = |by: AffinityKey, target: &str| affinity(by).key(Some(&head(target)), None);
        let path = |depth, target| by(AffinityKey::Path(NonZeroU8::new(depth)), target);
        let cases = [
            (0, "/a/b/c?d", "/a/b/c"),
            (1, "/a/b/c?d", "/a"),
            (2, "/a/b/c", "/a/b"),
            (3, "/a/b/c", "/a/b/c"),
            (9, "/a/b/c/", "/a/b/c/"),
            (1, "/", "/"),
            (1, "*", "*"),
        ];
        for (depth, target, wanted) in cases {
            assert_eq!(path(depth, target), Some(hash(wanted.as_bytes())), "{depth} {target}");
        }
        let query = |target| by(AffinityKey::Query("user".into()), target);
        assert_eq!(query("/a?x=1&user=a%20b&user=c"), Some(hash(b"a b")));
        assert_eq!(query("/b?user=a+b"), query("/a?user=a%20b"));
        assert_eq!((query("/a?users=1"), query("/a")), (None, None));
        assert_eq!(affinity(AffinityKey::Path(None)).key(None, None), None);
    }

    #[test]
    fn a_new_cookie_leads_to_the_same_key() {
        let affinity = by_cookie("sid", Some(Duration::from_secs(3600)));
        let (set, key) = affinity.new_cookie(255).unwrap();
        assert_eq!(set, "sid=00000000000000ff; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
        let mut head = RequestHead::new();
        head.fields.push("cookie", set.split(';').next().unwrap().as_bytes());
        assert_eq!(affinity.key(Some(&head), None), Some(key));
        assert_eq!(by_source().new_cookie(1), None);
        let session = by_cookie("sid", None).new_cookie(1).unwrap().0;
        assert!(!session.contains("Max-Age"));
    }
}
