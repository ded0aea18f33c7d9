//! What holds for all pods of a cluster: `inject.yaml` as it is written, and
//! what it means.

use std::{collections::BTreeMap, fmt, str::FromStr};

use mesh_core::{Cidr, TrustDomain};
use mesh_runtime::config::{self, ConfigError};
use serde::{Deserialize, Deserializer};

use crate::{
    annotation::{LogFilter, blocks},
    own,
    ports::Ports,
    quantity::Quantity,
    version::Version,
};

/// What holds for all pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Written into `isthmus.dev/injected`.
    pub version: String,
    /// Of the site that the pods are in.
    pub trust_domain: TrustDomain,
    /// `host:port` at which pods reach the site's federation.
    pub federation: String,
    /// With `edge-proxy`.
    pub proxy_image: String,
    /// With `isthmus-k8s`.
    pub redirect_image: String,
    /// Of both.
    pub image_pull_policy: PullPolicy,
    /// Whether the proxy is an init container that goes on.
    pub native: Native,
    /// Of the proxy's own log.
    pub log_level: LogFilter,
    /// What the proxy may use.
    pub resources: Resources,
    /// Where outbound connections are left alone.
    pub skip_outbound_ports: Ports,
    /// Destinations that are left alone.
    pub skip_outbound_cidrs: Vec<Cidr>,
    /// Where inbound connections are left alone.
    pub skip_inbound_ports: Ports,
    /// Where the pod will be.
    pub namespace: Namespace,
}

/// Requests and limits of the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// `resources.requests.cpu`.
    pub cpu_request: Option<Quantity>,
    /// `resources.limits.cpu`.
    pub cpu_limit: Option<Quantity>,
    /// `resources.requests.memory`.
    pub memory_request: Option<Quantity>,
    /// `resources.limits.memory`.
    pub memory_limit: Option<Quantity>,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum PullPolicy {
    /// Each time.
    Always,
    /// Unless the node has it.
    #[default]
    IfNotPresent,
    /// The node has it.
    Never,
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Whether the proxy is a native sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Native {
    /// It is.
    Always,
    /// It is a container like any other.
    Never,
    /// It is where each kubelet knows what that is; where nothing is known of
    /// the cluster, too.
    Auto {
        /// Of the API server.
        server: Option<Version>,
        /// Of the node that is furthest behind.
        oldest_kubelet: Option<Version>,
    },
}

impl Native {
    /// Where nothing is known of the cluster.
    pub const AUTO: Self = Self::Auto { server: None, oldest_kubelet: None };

    /// Whether it is.
    pub fn is_native(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto { server, oldest_kubelet } => {
                // Whoever has seen no node counts on the oldest that may be there.
                let kubelet = oldest_kubelet.or(server.map(Version::oldest_kubelet));
                let each = [server, kubelet].into_iter().flatten();
                each.min().is_none_or(|oldest| oldest >= Version::NATIVE_SIDECARS)
            }
        }
    }
}

/// What is known of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// Whether pods without the label are injected.
    pub enabled: bool,
    /// What its pods may do.
    pub pod_security: PodSecurity,
}

impl Default for Namespace {
    /// Somebody has asked, and there is no restriction.
    fn default() -> Self {
        Self { enabled: true, pod_security: PodSecurity::Privileged }
    }
}

impl Namespace {
    /// From its labels.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        let label = |name: &str| labels.get(name).map(String::as_str);
        Self {
            enabled: label(own::INJECT) == Some(own::ENABLED),
            pod_security: PodSecurity::of(label("pod-security.kubernetes.io/enforce")),
        }
    }
}

/// The levels of Pod Security.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSecurity {
    /// Everything is allowed.
    Privileged,
    /// No NET_ADMIN.
    Baseline,
    /// Nor much else.
    Restricted,
}

impl PodSecurity {
    /// What cannot be read is the strictest, as it is for the API server.
    fn of(label: Option<&str>) -> Self {
        match label {
            None | Some("privileged") => Self::Privileged,
            Some("baseline") => Self::Baseline,
            Some(_) => Self::Restricted,
        }
    }

    /// As the label has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// `inject.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsFile {
    /// The SPIFFE trust domain of the site.
    #[serde(deserialize_with = "parsed")]
    trust_domain: TrustDomain,
    /// `host:port` of its federation, as pods reach it.
    #[serde(default = "federation")]
    federation: String,
    #[serde(default = "proxy_image")]
    proxy_image: String,
    #[serde(default = "redirect_image")]
    redirect_image: String,
    #[serde(default)]
    image_pull_policy: PullPolicy,
    #[serde(default)]
    native_sidecar: NativeFile,
    #[serde(default, deserialize_with = "parsed")]
    log_level: LogFilter,
    #[serde(default)]
    resources: ResourcesFile,
    #[serde(default, deserialize_with = "parsed")]
    skip_outbound_ports: Ports,
    #[serde(default, deserialize_with = "parsed")]
    skip_outbound_cidrs: Blocks,
    #[serde(default, deserialize_with = "parsed")]
    skip_inbound_ports: Ports,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NativeFile {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ResourcesFile {
    cpu_request: Option<Written>,
    cpu_limit: Option<Written>,
    memory_request: Option<Written>,
    memory_limit: Option<Written>,
}

impl Default for ResourcesFile {
    fn default() -> Self {
        let written = |text: &str| text.parse().ok().map(Written);
        Self {
            cpu_request: written("50m"),
            cpu_limit: None,
            memory_request: written("32Mi"),
            memory_limit: None,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Written(#[serde(deserialize_with = "parsed")] Quantity);

#[derive(Debug, Default)]
struct Blocks(Vec<Cidr>);

impl FromStr for Blocks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        blocks(text).map(Self)
    }
}

fn federation() -> String {
    "isthmus.isthmus-system.svc:8446".into()
}

fn proxy_image() -> String {
    concat!("ghcr.io/isthmus-mesh/isthmus-proxy:", env!("CARGO_PKG_VERSION")).into()
}

fn redirect_image() -> String {
    concat!("ghcr.io/isthmus-mesh/isthmus-k8s:", env!("CARGO_PKG_VERSION")).into()
}

/// Reads what is written as a string or a number.
fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err: fmt::Display>> serde::de::Visitor<'_> for Visitor<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
        fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
            number.to_string().parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

impl Settings {
    /// Defaults, for a site of this trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        let resources = ResourcesFile::default();
        SettingsFile {
            trust_domain,
            federation: federation(),
            proxy_image: proxy_image(),
            redirect_image: redirect_image(),
            image_pull_policy: PullPolicy::default(),
            native_sidecar: NativeFile::Auto,
            log_level: LogFilter::default(),
            resources,
            skip_outbound_ports: Ports::default(),
            skip_outbound_cidrs: Blocks::default(),
            skip_inbound_ports: Ports::default(),
        }
        .meaning()
    }

    /// Reads `inject.yaml`; `file` is how errors name it.
    ///
    /// # Errors
    ///
    /// It cannot be read, or says something that makes no sense.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let written: SettingsFile = config::parse(text, file)?;
        let settings = written.meaning();
        settings.check(file)?;
        Ok(settings)
    }

    /// Whether all of them together make sense; `from` is who says so.
    ///
    /// # Errors
    ///
    /// One does not.
    pub fn check(&self, from: &str) -> Result<(), ConfigError> {
        let wrong = |key: &str, problem: &str| Err(ConfigError::meaning(from, key, problem));
        let port = self.federation.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        // It becomes part of a list of settings.
        let is_plain = !self.federation.contains([';', '"', '\\', ' ', '$']);
        if !matches!(port, Some((host, Ok(1..))) if !host.is_empty() && is_plain) {
            let hint = "write <host>:<port>, e.g. isthmus.isthmus-system.svc:8446";
            return wrong("federation", hint);
        }
        for (key, image) in
            [("proxy_image", &self.proxy_image), ("redirect_image", &self.redirect_image)]
        {
            if image.is_empty() || image.contains(char::is_whitespace) {
                return wrong(key, "write an image, e.g. ghcr.io/isthmus-mesh/isthmus-proxy:0.1.0");
            }
        }
        let resources = &self.resources;
        for (key, request, limit) in [
            ("resources.cpu_limit", &resources.cpu_request, &resources.cpu_limit),
            ("resources.memory_limit", &resources.memory_request, &resources.memory_limit),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && request > limit
            {
                return wrong(key, "is below the request; write at least as much");
            }
        }
        Ok(())
    }
}

impl SettingsFile {
    fn meaning(self) -> Settings {
        let quantity = |written: Option<Written>| written.map(|Written(quantity)| quantity);
        Settings {
            version: env!("CARGO_PKG_VERSION").into(),
            trust_domain: self.trust_domain,
            federation: self.federation,
            proxy_image: self.proxy_image,
            redirect_image: self.redirect_image,
            image_pull_policy: self.image_pull_policy,
            native: match self.native_sidecar {
                NativeFile::Auto => Native::AUTO,
                NativeFile::Always => Native::Always,
                NativeFile::Never => Native::Never,
            },
            log_level: self.log_level,
            resources: Resources {
                cpu_request: quantity(self.resources.cpu_request),
                cpu_limit: quantity(self.resources.cpu_limit),
                memory_request: quantity(self.resources.memory_request),
                memory_limit: quantity(self.resources.memory_limit),
            },
            skip_outbound_ports: self.skip_outbound_ports,
            skip_outbound_cidrs: self.skip_outbound_cidrs.0,
            skip_inbound_ports: self.skip_inbound_ports,
            namespace: Namespace::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Option<Version> {
        text.parse().ok()
    }

    #[test]
    fn the_oldest_kubelet_decides() {
        let cases = [
            (None, None, true),
            (version("1.33"), None, true),
            (version("1.31"), None, false),
            (version("1.31"), version("1.29"), true),
            (version("1.33"), version("1.28"), false),
            (version("1.28"), version("1.29"), false),
        ];
        for (server, oldest_kubelet, native) in cases {
            let auto = Native::Auto { server, oldest_kubelet };
            assert_eq!(auto.is_native(), native, "{auto:?}");
        }
        assert!(Native::Always.is_native() && !Native::Never.is_native());
    }

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let text = "trust_domain: east.example\nnative_sidecar: never\nskip_outbound_ports: 25\n\
                    skip_outbound_cidrs: 10.1.2.3/8, fd00::/8\nlog_level: warn,edge_proxy=debug\n\
                    resources: { cpu_request: 1, cpu_limit: 2000m }\n";
        let settings = Settings::parse(text, "inject.yaml").unwrap();
        assert_eq!(settings.native, Native::Never);
        assert_eq!(settings.skip_outbound_ports.to_string(), "25");
        assert_eq!(settings.skip_outbound_cidrs.len(), 2);
        assert_eq!(settings.resources.cpu_limit, "2".parse().ok());
        assert_eq!(settings.resources.memory_request, "32Mi".parse().ok());
        let least = Settings::parse("trust_domain: east.example", "inject.yaml").unwrap();
        assert_eq!(least, Settings::new("east.example".parse().unwrap()));
    }

    #[test]
    fn a_mistake_is_named_with_its_place() {
        let wrong = |rest: &str| {
            let text = format!("trust_domain: east.example\n{rest}\n");
            Settings::parse(&text, "inject.yaml").unwrap_err().to_string()
        };
        assert!(
            wrong("federatioon: a:1").starts_with("inject.yaml:2:1: unknown field `federatioon`")
        );
        assert!(wrong("federatioon: a:1").contains("did you mean `federation`?"));
        let empty = Settings::parse("", "x").unwrap_err().to_string();
        assert!(empty.contains("missing field `trust_domain`"), "{empty}");
        let meanings = [
            ("federation: nowhere", "inject.yaml: federation: write <host>:<port>"),
            ("federation: 'a;b:1'", "inject.yaml: federation: write <host>:<port>"),
            ("proxy_image: ''", "inject.yaml: proxy_image: write an image"),
            ("resources: { memory_limit: 1Mi }", "inject.yaml: resources.memory_limit: is below"),
        ];
        for (rest, expected) in meanings {
            assert!(wrong(rest).starts_with(expected), "{rest}: {}", wrong(rest));
        }
        for (rest, expected) in [
            ("skip_inbound_ports: mysql", "is no port"),
            ("skip_outbound_cidrs: 10.0.0.0/33", "the prefix must be"),
            ("resources: { cpu_limit: lots }", "no quantity"),
            ("log_level: loud", "no log level"),
        ] {
            assert!(wrong(rest).contains(expected), "{rest}: {}", wrong(rest));
            assert!(wrong(rest).starts_with("inject.yaml:2:"), "{rest}: {}", wrong(rest));
        }
    }

    #[test]
    fn labels_say_what_a_namespace_is() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Namespace::of(&pairs.collect())
        };
        assert!(!of(&[]).enabled);
        assert!(of(&[("isthmus.dev/inject", "enabled")]).enabled);
        let enforce = "pod-security.kubernetes.io/enforce";
        assert_eq!(of(&[(enforce, "baseline")]).pod_security, PodSecurity::Baseline);
        assert_eq!(of(&[(enforce, "strict")]).pod_security, PodSecurity::Restricted);
        assert_eq!(
            of(&[("pod-security.kubernetes.io/warn", "restricted")]).pod_security,
            PodSecurity::Privileged
        );
    }
}
