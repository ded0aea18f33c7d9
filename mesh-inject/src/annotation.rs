//! What a pod says itself, read strictly.

use std::{fmt, str::FromStr};

use mesh_core::Cidr;
use mesh_runtime::config;
use serde_json::Value;

use crate::{
    field::{At, Field},
    outcome::{Refusal, Warning},
    own,
    ports::Ports,
    quantity::Quantity,
    settings::{Resources, Settings},
};

/// Where outbound connections are left alone.
pub const SKIP_OUTBOUND_PORTS: &str = "isthmus.dev/skip-outbound-ports";
/// Where inbound connections are left alone.
pub const SKIP_INBOUND_PORTS: &str = "isthmus.dev/skip-inbound-ports";
/// Destinations that are left alone.
pub const SKIP_OUTBOUND_CIDRS: &str = "isthmus.dev/skip-outbound-cidrs";
/// Whose bytes nobody looks at.
pub const OPAQUE_PORTS: &str = "isthmus.dev/opaque-ports";
/// `enabled` or `disabled`: whether connections are redirected.
pub const REDIRECT: &str = "isthmus.dev/redirect";
/// `resources.requests.cpu` of the proxy.
pub const CPU_REQUEST: &str = "isthmus.dev/proxy-cpu-request";
/// `resources.limits.cpu` of the proxy.
pub const CPU_LIMIT: &str = "isthmus.dev/proxy-cpu-limit";
/// `resources.requests.memory` of the proxy.
pub const MEMORY_REQUEST: &str = "isthmus.dev/proxy-memory-request";
/// `resources.limits.memory` of the proxy.
pub const MEMORY_LIMIT: &str = "isthmus.dev/proxy-memory-limit";
/// Of its own log.
pub const LOG_LEVEL: &str = "isthmus.dev/proxy-log-level";
/// With `edge-proxy`.
pub const IMAGE: &str = "isthmus.dev/proxy-image";
/// `true` or `false`: whether the proxy is a native sidecar.
pub const NATIVE_SIDECAR: &str = "isthmus.dev/native-sidecar";

/// Share of traffic; the controller reads it.
pub const WEIGHT: &str = "isthmus.dev/weight";

const KNOWN: [&str; 13] = [
    SKIP_OUTBOUND_PORTS,
    SKIP_INBOUND_PORTS,
    SKIP_OUTBOUND_CIDRS,
    OPAQUE_PORTS,
    REDIRECT,
    CPU_REQUEST,
    CPU_LIMIT,
    MEMORY_REQUEST,
    MEMORY_LIMIT,
    LOG_LEVEL,
    IMAGE,
    NATIVE_SIDECAR,
    WEIGHT,
];

/// What holds for one pod: its annotations before the settings of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) skip_outbound_ports: Ports,
    pub(crate) skip_inbound_ports: Ports,
    pub(crate) skip_outbound_cidrs: Vec<Cidr>,
    pub(crate) redirect: bool,
    pub(crate) resources: Resources,
    pub(crate) log_level: LogFilter,
    pub(crate) image: String,
    pub(crate) native: bool,
    pub(crate) unknown: Vec<Warning>,
}

impl Wishes {
    pub(crate) fn read(pod: &Value, settings: &Settings) -> Result<Self, Refusal> {
        let all = Annotations::of(pod)?;
        let ports = |name, default: &Ports| all.parsed(name, str::parse, || default.clone());
        // The controller tells the mesh; here they are only seen to make sense.
        ports(OPAQUE_PORTS, &Ports::default())?;
        all.parsed(WEIGHT, weight, || 1)?;
        Ok(Self {
            skip_outbound_ports: ports(SKIP_OUTBOUND_PORTS, &settings.skip_outbound_ports)?,
            skip_inbound_ports: ports(SKIP_INBOUND_PORTS, &settings.skip_inbound_ports)?,
            skip_outbound_cidrs: all
                .parsed(SKIP_OUTBOUND_CIDRS, blocks, || settings.skip_outbound_cidrs.clone())?,
            redirect: all.parsed(REDIRECT, enabled, || true)?,
            resources: all.resources(&settings.resources)?,
            log_level: all.parsed(LOG_LEVEL, str::parse, || settings.log_level.clone())?,
            image: all.parsed(IMAGE, image, || settings.proxy_image.clone())?,
            native: all.parsed(NATIVE_SIDECAR, truth, || settings.native.is_native())?,
            unknown: all.unknown(),
        })
    }
}

struct Annotations<'a> {
    at: At<'a>,
    names: Vec<&'a str>,
}

impl<'a> Annotations<'a> {
    fn of(pod: &'a Value) -> Result<Self, Refusal> {
        let at = At::root(pod).path(&["metadata", "annotations"])?;
        // What is no object is told by whoever reads the first one.
        let names = pod.pointer("/metadata/annotations").and_then(Value::as_object);
        let names = names.into_iter().flat_map(|map| map.keys().map(String::as_str)).collect();
        Ok(Self { at, names })
    }

    fn parsed<T, E: fmt::Display>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
        default: impl FnOnce() -> T,
    ) -> Result<T, Refusal> {
        match self.at.key(name)?.text()? {
            None => Ok(default()),
            Some(text) => parse(text)
                .map_err(|problem| Refusal::value(Field::annotation(name), text, problem)),
        }
    }

    fn resources(&self, default: &Resources) -> Result<Resources, Refusal> {
        let (cpu_request, cpu_limit) =
            self.pair((CPU_REQUEST, &default.cpu_request), (CPU_LIMIT, &default.cpu_limit))?;
        let (memory_request, memory_limit) = self.pair(
            (MEMORY_REQUEST, &default.memory_request),
            (MEMORY_LIMIT, &default.memory_limit),
        )?;
        Ok(Resources { cpu_request, cpu_limit, memory_request, memory_limit })
    }

    /// A request and a limit. What the pod says comes before what the settings
    /// say, which gives way where both together would make no sense.
    fn pair(
        &self,
        request: (&str, &Option<Quantity>),
        limit: (&str, &Option<Quantity>),
    ) -> Result<(Option<Quantity>, Option<Quantity>), Refusal> {
        let written = |name| self.parsed(name, |text| text.parse::<Quantity>().map(Some), || None);
        let default = |quantity: &Option<Quantity>| quantity.clone();
        match (written(request.0)?, written(limit.0)?) {
            (Some(asked), Some(most)) if asked > most => {
                let problem = format!("is above {} ({most}); write at most that", limit.0);
                Err(Refusal::value(Field::annotation(request.0), asked.as_str(), problem))
            }
            (Some(asked), None) => {
                let most = default(limit.1).map(|most| most.max(asked.clone()));
                Ok((Some(asked), most))
            }
            (None, Some(most)) => {
                let asked = default(request.1).map(|asked| asked.min(most.clone()));
                Ok((asked, Some(most)))
            }
            (None, None) => Ok((default(request.1), default(limit.1))),
            (asked, most) => Ok((asked, most)),
        }
    }

    /// Ours by name, and known to nobody.
    fn unknown(&self) -> Vec<Warning> {
        let is_unknown = |name: &&&str| {
            name.starts_with(own::PREFIX)
                && !KNOWN.contains(*name)
                && !own::SET_BY_US.contains(*name)
        };
        let warning = |name: &&str| Warning::UnknownAnnotation {
            name: (*name).to_owned(),
            nearest: config::nearest(name, KNOWN.into_iter()),
        };
        self.names.iter().filter(is_unknown).map(warning).collect()
    }
}

/// Which lines the proxy writes to its own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

/// No filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no log level; write off, error, warn, info, debug or trace, or e.g. info,edge_proxy=debug"
)]
pub struct InvalidLogFilter;

impl LogFilter {
    /// As `ISTHMUS_LOG` has it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl FromStr for LogFilter {
    type Err = InvalidLogFilter;

    fn from_str(text: &str) -> Result<Self, InvalidLogFilter> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let is_target = |target: &str| {
            !target.is_empty()
                && target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'))
        };
        let is_directive = |part: &str| match part.split_once('=') {
            Some((target, level)) => is_target(target) && LEVELS.contains(&level),
            None => LEVELS.contains(&part),
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        if parts.iter().all(|part| is_directive(part)) {
            Ok(Self(parts.join(",")))
        } else {
            Err(InvalidLogFilter)
        }
    }
}

/// Blocks of addresses, separated by commas, each by its first address.
///
/// # Errors
///
/// One is none, or there are too many; the right form is told.
pub fn blocks(text: &str) -> Result<Vec<Cidr>, String> {
    const MAX_BLOCKS: usize = 64;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    if parts.len() > MAX_BLOCKS {
        return Err(format!("more than {MAX_BLOCKS} blocks; write fewer, wider ones"));
    }
    let block = |part: &&str| {
        let hint = |problem| format!("{problem}; write blocks, e.g. 10.0.0.0/8,fd00::/8");
        part.parse::<Cidr>().map(|block| block.network()).map_err(hint)
    };
    parts.iter().map(block).collect()
}

fn enabled(text: &str) -> Result<bool, &'static str> {
    match text {
        own::ENABLED => Ok(true),
        own::DISABLED => Ok(false),
        _ => Err("write enabled or disabled"),
    }
}

fn truth(text: &str) -> Result<bool, &'static str> {
    text.parse().map_err(|_| "write \"true\" or \"false\"")
}

fn weight(text: &str) -> Result<u32, &'static str> {
    let weight = text.parse().ok().filter(|weight| *weight <= 1000);
    weight.ok_or("no share of traffic; write a number from 0 to 1000")
}

fn image(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("no image; write e.g. isthmus-proxy:0.1.0");
    }
    Ok(text.to_owned())
}

/// The label of a pod: whether it asks for the proxy, itself.
pub(crate) fn label(pod: &Value) -> Result<Option<bool>, Refusal> {
    let field = Field::of(&["metadata", "labels", own::INJECT]);
    let text = At::root(pod).path(&["metadata", "labels", own::INJECT])?.text()?;
    text.map(|text| enabled(text).map_err(|problem| Refusal::value(field, text, problem)))
        .transpose()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(annotations: Value) -> Result<Wishes, Refusal> {
        let mut settings = Settings::new("east.example".parse().unwrap());
        settings.resources.cpu_limit = "1".parse().ok();
        Wishes::read(&json!({"metadata": {"annotations": annotations}}), &settings)
    }

    #[test]
    fn a_bad_value_names_the_annotation_and_the_right_form() {
        let cases = [
            (SKIP_OUTBOUND_PORTS, "mysql", "\"mysql\" is no port; write ports from 1 to 65535"),
            (SKIP_INBOUND_PORTS, "9-8", "write the lower port first"),
            (OPAQUE_PORTS, "3306;5432", "is no port"),
            (SKIP_OUTBOUND_CIDRS, "10.0.0.0/40", "the prefix must be 0 to 32; write blocks, e.g."),
            (SKIP_OUTBOUND_CIDRS, "10.0.0.0/8,", "not an address or CIDR block; write blocks"),
            (REDIRECT, "no", "write enabled or disabled"),
            (CPU_REQUEST, "one", "no quantity; write a number with a suffix, e.g. 100m"),
            (MEMORY_LIMIT, "64MB", "64Mi or 1Gi of memory"),
            (LOG_LEVEL, "verbose", "no log level; write off, error"),
            (LOG_LEVEL, "info,", "no log level"),
            (IMAGE, "", "no image"),
            (NATIVE_SIDECAR, "True", "write \"true\" or \"false\""),
            (WEIGHT, "1001", "write a number from 0 to 1000"),
            (WEIGHT, "heavy", "no share of traffic"),
        ];
        for (name, value, expected) in cases {
            let error = read(json!({name: value})).unwrap_err();
            assert_eq!(error.field(), &Field::annotation(name), "{value}");
            assert!(error.to_string().contains(expected), "{name}: {error}");
            let start = format!("metadata.annotations[\"{name}\"]: ");
            assert!(error.to_string().starts_with(&start), "{error}");
        }
        assert!(
            read(json!({NATIVE_SIDECAR: true}))
                .unwrap_err()
                .to_string()
                .ends_with("must be a string")
        );
    }

    #[test]
    fn what_a_pod_says_comes_first() {
        let wishes = read(json!({
            SKIP_OUTBOUND_PORTS: "25, 587",
            SKIP_OUTBOUND_CIDRS: "10.1.2.3/8",
            OPAQUE_PORTS: "",
            LOG_LEVEL: "warn, edge_proxy::view=trace",
            NATIVE_SIDECAR: "false",
        }))
        .unwrap();
        assert_eq!(wishes.skip_outbound_ports.to_string(), "25,587");
        assert_eq!(wishes.skip_outbound_cidrs[0].to_string(), "10.0.0.0/8");
        assert!(!wishes.native);
        assert_eq!(wishes.log_level.as_str(), "warn,edge_proxy::view=trace");
    }

    #[test]
    fn the_settings_give_way_where_both_make_no_sense() {
        let resources = |annotations| read(annotations).unwrap().resources;
        let of = |text: &str| text.parse::<Quantity>().ok();
        let low = resources(json!({CPU_LIMIT: "20m"}));
        assert_eq!((low.cpu_request, low.cpu_limit), (of("20m"), of("20m")));
        let high = resources(json!({CPU_REQUEST: "3"}));
        assert_eq!((high.cpu_request, high.cpu_limit), (of("3"), of("3")));
        let none = resources(json!({}));
        assert_eq!((none.cpu_request, none.cpu_limit), (of("50m"), of("1")));
        let error = read(json!({MEMORY_REQUEST: "2Gi", MEMORY_LIMIT: "1Gi"})).unwrap_err();
        assert!(
            error.to_string().contains("is above isthmus.dev/proxy-memory-limit (1Gi)"),
            "{error}"
        );
    }

    #[test]
    fn a_slip_of_the_pen_is_told() {
        let wishes = read(json!({
            "isthmus.dev/skip-outbound-port": "25",
            "isthmus.dev/injected": "0.1.0",
            WEIGHT: "3",
            "example.com/skip-outbound-port": "25",
        }))
        .unwrap();
        let told: Vec<String> = wishes.unknown.iter().map(ToString::to_string).collect();
        let expected = "annotation isthmus.dev/skip-outbound-port is none of ours; did you mean \
                        isthmus.dev/skip-outbound-ports?";
        assert_eq!(told, [expected]);
    }

    #[test]
    fn a_label_says_yes_or_no() {
        let label = |value: Value| label(&json!({"metadata": {"labels": {own::INJECT: value}}}));
        assert_eq!(label(json!("enabled")), Ok(Some(true)));
        assert_eq!(label(json!("disabled")), Ok(Some(false)));
        assert_eq!(label(Value::Null), Ok(None));
        let error = label(json!("true")).unwrap_err().to_string();
        assert_eq!(
            error,
            "metadata.labels[\"isthmus.dev/inject\"]: \"true\": write enabled or disabled"
        );
    }
}
