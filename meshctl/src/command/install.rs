//! `meshctl install`: what the chart makes of a cluster, for those without Helm.

use clap::{Args, ValueEnum};
use mesh_core::{SiteName, TrustDomain};

use crate::{failure::Failure, output};

/// Rendered by `k8s/render`, with these words for what is said here.
const RENDERED: &str = include_str!("../../../k8s/chart/install.yaml");
const SITE: &str = "name-of-the-site";
const TRUST_DOMAIN: &str = "trust-domain-of-the-site";
const REGISTRY: &str = "registry-of-the-images";
const VERSION: &str = "version-of-the-images";
const ADDRESS: &str = "address-of-the-gateway:1";
const GATEWAY_SERVICE: &str = "type: LoadBalancer";
/// The most addresses of one gateway, besides its own in the cluster.
const MAX_ADDRESSES: usize = 7;

/// Arguments of `install`.
#[derive(Debug, Args)]
#[command(
    after_help = "Prints the documents of the Helm chart; everything else that the chart can be told is for Helm. Applying \
them again with another version is an upgrade. The root of the site's CA is made once, by a Job, and kept in Secret \
isthmus-root.

Examples:
  meshctl install --site east --trust-domain east.example | kubectl apply -f -
  meshctl install --site east --trust-domain east.example --gateway-service node-port \\
      --gateway gw.east.example:30443 > isthmus.yaml
  kubectl -n isthmus-system rollout status statefulset/isthmus"
)]
pub struct Install {
    /// Name of the cluster among its sites, one label
    #[arg(long)]
    site: SiteName,
    /// SPIFFE trust domain of the site; cannot be changed later
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: TrustDomain,
    /// Where other sites and machines reach the gateway; may be repeated
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    gateway: Vec<String>,
    /// How the gateway's Service is reached from outside
    #[arg(long, value_enum, default_value_t, value_name = "TYPE")]
    gateway_service: GatewayService,
    /// Where images are
    #[arg(long, default_value = "ghcr.io/isthmus-mesh", value_name = "NAME", value_parser = word)]
    image_registry: String,
    /// Which images
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"), value_name = "TAG", value_parser = tag)]
    image_tag: String,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum GatewayService {
    /// A load balancer of the cloud
    #[default]
    LoadBalancer,
    /// A port of every node
    NodePort,
}

impl Install {
    /// Prints the documents.
    pub fn run(&self) -> Result<(), Failure> {
        if self.gateway.len() > MAX_ADDRESSES {
            return Err(Failure::usage(format!("--gateway: at most {MAX_ADDRESSES} addresses")));
        }
        output::write_stdout(&self.documents())
    }

    fn documents(&self) -> String {
        let listed: String =
            self.gateway.iter().map(|address| format!("      - {address}\n")).collect();
        let written: String =
            self.gateway.iter().map(|address| format!(",\"{address}\"")).collect();
        let service = match self.gateway_service {
            GatewayService::LoadBalancer => GATEWAY_SERVICE,
            GatewayService::NodePort => "type: NodePort",
        };
        RENDERED
            .replace(&format!("      - {ADDRESS}\n"), &listed)
            .replace(&format!(",\"{ADDRESS}\""), &written)
            .replace(GATEWAY_SERVICE, service)
            .replace(SITE, self.site.as_str())
            .replace(TRUST_DOMAIN, self.trust_domain.as_str())
            .replace(REGISTRY, &self.image_registry)
            .replace(VERSION, &self.image_tag)
    }
}

fn address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    let plain = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]".contains(&b))
    };
    match port {
        // What begins with a bracket is a list in YAML.
        Some((host, Ok(1..))) if plain(host) && !host.starts_with('[') => Ok(text.to_owned()),
        _ => Err("write <host>:<port>, e.g. gw.east.example:8443".to_owned()),
    }
}

/// Part of a name of images.
fn word(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._/:".contains(&b);
    if text.is_empty() || !text.bytes().all(plain) {
        return Err("write e.g. ghcr.io/isthmus-mesh".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// It is the value of a label, too.
fn tag(text: &str) -> Result<String, String> {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    let fits = bytes.len() <= 63 && ends(bytes.first()) && ends(bytes.last());
    if !fits || !bytes.iter().all(plain) {
        return Err("write a tag of at most 63 letters and digits, e.g. 0.1.0".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_yaml_ng::Value;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        install: Install,
    }

    const NAMES: &str = "install --site east --trust-domain east.example";

    fn install(line: &str) -> Result<Install, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.install)
    }

    fn documents(line: &str) -> Vec<Value> {
        let text = install(line).expect("it parses").documents();
        assert!(!text.contains("-of-the-"), "a word is left: {text}");
        let each = text.split("\n---\n").map(serde_yaml_ng::from_str::<Value>);
        each.collect::<Result<_, _>>().expect("they are YAML")
    }

    /// `federation.yaml`, as the ConfigMap has it and as the pod is annotated.
    fn federation(documents: &[Value]) -> [Value; 2] {
        let of = |kind: &str, name: &str| {
            let mut all = documents.iter();
            let found = all.find(|d| d["kind"] == kind && d["metadata"]["name"] == name);
            found.unwrap_or_else(|| panic!("no {kind} {name}")).clone()
        };
        let map = of("ConfigMap", "isthmus-federation")["data"]["federation.yaml"].clone();
        let pod = &of("StatefulSet", "isthmus")["spec"]["template"]["metadata"];
        let read = |text: &Value| {
            serde_yaml_ng::from_str(text.as_str().expect("text")).expect("federation.yaml")
        };
        [read(&map), read(&pod["annotations"]["isthmus.dev/federation"])]
    }

    #[test]
    fn what_was_said_is_everywhere() {
        let inside = "isthmus-gateway.isthmus-system.svc:8443";
        for (more, addresses) in [
            ("", vec![inside]),
            (" --gateway gw.east.example:443", vec![inside, "gw.east.example:443"]),
            (" --gateway a:1 --gateway 192.0.2.1:2", vec![inside, "a:1", "192.0.2.1:2"]),
        ] {
            let documents = documents(&format!("{NAMES}{more}"));
            for federation in federation(&documents) {
                assert_eq!(federation["site"], "east");
                assert_eq!(federation["trust_domain"], "east.example");
                for kind in ["quic", "tls"] {
                    let told = federation["gateways"][0][kind].as_sequence().expect("a list");
                    assert_eq!(
                        told,
                        &addresses.iter().map(|a| Value::from(*a)).collect::<Vec<_>>()
                    );
                }
            }
        }
    }

    #[test]
    fn images_are_of_this_version_or_another() {
        let images = |line: &str| {
            let text = install(line).expect("it parses").documents();
            let images = text.lines().filter_map(|line| line.trim().strip_prefix("image: "));
            images.map(|image| image.trim_matches('"').to_owned()).collect::<Vec<_>>()
        };
        let version = env!("CARGO_PKG_VERSION");
        let own = images(NAMES);
        assert!(own.len() >= 6, "{own:?}");
        let of_ours = |image: &String| {
            image.starts_with("ghcr.io/isthmus-mesh/isthmus-")
                && image.ends_with(&format!(":{version}"))
        };
        assert!(own.iter().all(of_ours), "{own:?}");
        let others =
            images(&format!("{NAMES} --image-registry localhost:5000/mesh/ --image-tag 9.9"));
        let of_theirs = |image: &String| {
            image.starts_with("localhost:5000/mesh/isthmus-") && image.ends_with(":9.9")
        };
        assert!(others.iter().all(of_theirs), "{others:?}");
    }

    #[test]
    fn a_port_of_every_node_does_without_a_load_balancer() {
        let services = |line: &str| {
            let of =
                |d: &Value| d["kind"] == "Service" && d["metadata"]["name"] == "isthmus-gateway";
            let found = documents(line).into_iter().find(of).expect("the gateway's Service");
            found["spec"]["type"].as_str().expect("a type").to_owned()
        };
        assert_eq!(services(NAMES), "LoadBalancer");
        assert_eq!(services(&format!("{NAMES} --gateway-service node-port")), "NodePort");
    }

    #[test]
    fn what_would_be_something_else_in_yaml_is_refused() {
        for more in [
            "--site East",
            "--trust-domain E",
            "--gateway nowhere",
            "--gateway [::1]:1",
            "--gateway a#b:1",
            "--image-tag=-1",
            "--image-tag a:b",
            "--image-registry a\"b",
        ] {
            let flag = more.split([' ', '=']).next().expect("a flag");
            let others = NAMES.split(" --").filter(|part| !format!("--{part}").starts_with(flag));
            let line = format!("{} {more}", others.collect::<Vec<_>>().join(" --"));
            let error = install(&line).expect_err(more).to_string();
            assert!(error.contains(flag), "{more}: {error}");
        }
    }
}
