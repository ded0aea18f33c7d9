//! A static snapshot: the YAML of a site without a control plane, made into
//! the very delta that federation would send.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use mesh_api::v1::{self, resource::Resource as Kind};
use mesh_core::{Endpoint, Rejected, ServiceName, Snapshot, TrustBundles, apply};
use mesh_manifest::Compiled;
use mesh_runtime::config::{self, ConfigError, Setting};

use super::{
    origins,
    rules::Rules,
    site::{
        EndpointFile, GatewayFile, LinkFile, PortFile, PrincipalFile, ProtocolFile, ServiceFile,
        SiteFile, SpiffeIdFile, TransportFile,
    },
};
use crate::transition::origin::OriginTls;

/// What each service has of the rules.
type Compilation = BTreeMap<ServiceName, Compiled>;

/// JSON Schema of the file.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(SiteFile)
}

/// Reads a snapshot, with what was set beside the file, and what TLS there is
/// towards endpoints without a proxy; roots are those of the identity.
///
/// # Errors
///
/// The file cannot be read, or says something that makes no sense: with file
/// and line, or with the resource that is wrong.
pub fn load(
    path: &Path,
    set: &[Setting],
    bundles: &TrustBundles,
) -> Result<(Snapshot, Vec<OriginTls>), ConfigError> {
    let (text, name) = (config::read(path)?, path.display().to_string());
    let dir = path.parent().unwrap_or(Path::new(""));
    understood(config::parse_set(&text, &name, set)?, dir, &name, bundles)
}

/// The same from a text; `name` is how errors call it.
pub fn parse(text: &str, name: &str, bundles: &TrustBundles) -> Result<Snapshot, ConfigError> {
    let dir = Path::new(name).parent().unwrap_or(Path::new(""));
    understood(config::parse(text, name)?, dir, name, bundles).map(|(snapshot, _)| snapshot)
}

fn understood(
    file: SiteFile,
    dir: &Path,
    name: &str,
    bundles: &TrustBundles,
) -> Result<(Snapshot, Vec<OriginTls>), ConfigError> {
    file.check_endpoints(name)?;
    let origins = origins::of(&file, dir, name)?;
    let rules = Rules::read(&file, dir, name)?;
    let compiled = file.services.iter().map(|service| {
        let compiled = rules.of(service.name.as_str())?;
        Ok((service.name.clone(), compiled))
    });
    let compiled: Compilation = compiled.collect::<Result<_, ConfigError>>()?;
    let delta = file.delta(bundles, compiled);
    let mut snapshot = apply(None, &delta).map_err(|rejected| match rejected {
        Rejected::Invalid { resource, problem } => ConfigError::meaning(name, resource, problem),
        other @ Rejected::WrongBase { .. } => ConfigError::meaning(name, "snapshot", other),
    })?;
    check_ports(&snapshot, name)?;
    file.without_proxies(&mut snapshot);
    Ok((snapshot, origins))
}

/// A proxy without an identity can call nobody in the mesh.
///
/// # Errors
///
/// An endpoint has a proxy, which asks who calls.
pub fn check_plaintext(snapshot: &Snapshot, path: &Path) -> Result<(), ConfigError> {
    let mut endpoints = snapshot.services.values().flat_map(|service| &service.endpoints);
    let Some(endpoint) = endpoints.find(|endpoint| endpoint.identity.is_some()) else {
        return Ok(());
    };
    let resource = format!("service {}, endpoint {}", endpoint.service, endpoint.id);
    let problem = "its proxy asks for an identity, and this proxy has none: write `identity` in \
                   the configuration (or --certificate, --key and --bundle), or make it \
                   `plaintext: true` if it has no proxy";
    Err(ConfigError::meaning(&path.display().to_string(), resource, problem))
}

/// Federation may send an endpoint before its port; a file says both at once.
fn check_ports(snapshot: &Snapshot, name: &str) -> Result<(), ConfigError> {
    for service in snapshot.services.values() {
        let unknown = |endpoint: &&Arc<Endpoint>| service.port(endpoint.port.as_str()).is_none();
        if let Some(endpoint) = service.endpoints.iter().find(unknown) {
            let resource = format!("service {}, endpoint {}", service.name, endpoint.id);
            let problem = format!("port {} is not one of the service's", endpoint.port);
            return Err(ConfigError::meaning(name, resource, problem));
        }
    }
    Ok(())
}

impl SiteFile {
    /// Either a proxy with an identity, or an application in plaintext.
    fn check_endpoints(&self, name: &str) -> Result<(), ConfigError> {
        for service in &self.services {
            for (place, endpoint) in service.endpoints.iter().enumerate() {
                let key = || format!("service {}: endpoints[{place}]", service.name);
                if let Some(problem) = endpoint.problem() {
                    return Err(ConfigError::meaning(name, key(), problem));
                }
            }
        }
        Ok(())
    }

    /// No message can say that an endpoint speaks plaintext, so that nobody but
    /// this file can: it is said after the rest has been checked.
    fn without_proxies(&self, snapshot: &mut Snapshot) {
        for file in &self.services {
            let plain = |place: usize| file.endpoints[place].plaintext;
            let ids: Vec<String> = (0..file.endpoints.len())
                .filter(|place| plain(*place))
                .map(|place| file.endpoints[place].id(file.name.as_str(), place))
                .collect();
            let Some(service) = snapshot.services.get_mut(&file.name) else { continue };
            for endpoint in &mut Arc::make_mut(service).endpoints {
                if endpoint.site == self.site && ids.iter().any(|id| id == endpoint.id.as_str()) {
                    let target = endpoint.target;
                    *endpoint = Arc::new(Endpoint {
                        identity: None,
                        address: Some(target),
                        ..Endpoint::clone(endpoint)
                    });
                }
            }
        }
    }

    fn delta(&self, bundles: &TrustBundles, mut compiled: Compilation) -> v1::Delta {
        let own = self.site.as_str();
        let domain = self.trust_domain.as_str();
        let mut upsert = vec![Kind::Site(v1::Site {
            name: own.into(),
            trust_domain: self.trust_domain.as_str().into(),
            federation_address: String::new(),
        })];
        upsert.extend(bundles.values().map(|bundle| Kind::Bundle((&**bundle).into())));
        upsert.extend(self.gateways.iter().map(|gateway| Kind::Gateway(gateway.wire(own))));
        upsert.extend(self.links.iter().map(|link| Kind::Link(link.wire())));
        for service in &self.services {
            let compiled = compiled.remove(&service.name).unwrap_or_default();
            upsert.push(Kind::Service(service.wire(compiled)));
            let endpoints = service.endpoints.iter().enumerate();
            upsert.extend(endpoints.map(|(i, endpoint)| {
                Kind::Endpoint(endpoint.wire((own, domain), service.name.as_str(), i))
            }));
        }
        let upsert = upsert.into_iter().map(|kind| v1::Resource { resource: Some(kind) });
        v1::Delta {
            from: None,
            to: Some(v1::Revision { epoch: 1, n: 1 }),
            upsert: upsert.collect(),
            remove: Vec::new(),
        }
    }
}

fn or_own(site: &str, own: &str) -> String {
    if site.is_empty() { own.into() } else { site.into() }
}

impl ServiceFile {
    fn wire(&self, compiled: Compiled) -> v1::Service {
        let Compiled { routes, connection_routes, traffic, balance, policy, protocols, .. } =
            compiled;
        let said =
            |number: u16| protocols.iter().find(|(of, _)| *of == number).map(|(_, said)| *said);
        let port = |port: &PortFile| v1::Port {
            name: port.name.as_str().into(),
            number: port.port.into(),
            protocol: said(port.port).unwrap_or_else(|| port.protocol.wire()).into(),
        };
        let principal = |principal: &PrincipalFile| v1::PrincipalMatch {
            trust_domain: principal.trust_domain.clone(),
            namespace: principal.namespace.clone(),
            account: principal.account.clone(),
        };
        v1::Service {
            name: self.name.as_str().into(),
            ports: self.ports.iter().map(port).collect(),
            exported_to: self.exported_to.clone(),
            imported_from: self.imported_from.clone(),
            virtual_address: self.virtual_address.map(|ip| ip.to_string()).unwrap_or_default(),
            second_address: String::new(),
            routes,
            connection_routes,
            policy: match &self.allow {
                None => policy,
                Some(allow) => Some(v1::AuthorizationPolicy {
                    allow: allow.iter().map(principal).collect(),
                    ..policy.unwrap_or_default()
                }),
            },
            traffic,
            balance,
        }
    }
}

impl ProtocolFile {
    fn wire(self) -> v1::Protocol {
        match self {
            Self::Detect => v1::Protocol::Unspecified,
            Self::Http => v1::Protocol::Http,
            Self::Grpc => v1::Protocol::Grpc,
            Self::Tcp => v1::Protocol::Tcp,
            Self::Tls => v1::Protocol::Tls,
        }
    }
}

impl EndpointFile {
    /// Without an id it is named after its place, which is all that tells it
    /// from others.
    fn id(&self, service: &str, place: usize) -> String {
        match self.id.as_str() {
            "" => format!("{}-{place}", service.replace('.', "-")),
            written => written.to_owned(),
        }
    }

    fn problem(&self) -> Option<&'static str> {
        let remote = !self.site.is_empty() || !self.via.is_empty();
        match (&self.identity, self.plaintext) {
            (None, false) => Some("needs `identity`; or `plaintext: true` if there is no proxy"),
            (Some(_), true) => Some("`plaintext` has no proxy, so nobody has an `identity`"),
            (None, true) if self.target.is_none() => Some("`plaintext` needs a `target`"),
            (None, true) if self.proxy.is_some() || remote => {
                Some("`plaintext` is dialled at its `target`: no `proxy`, `site` or `via`")
            }
            _ => None,
        }
    }

    fn wire(&self, own: (&str, &str), service: &str, place: usize) -> v1::Endpoint {
        let (own, domain) = own;
        let target = self.target;
        let identity = match &self.identity {
            Some(SpiffeIdFile(identity)) => identity.to_string(),
            // Taken away again by `without_proxies`.
            None => format!("spiffe://{domain}/ns/none/sa/none"),
        };
        v1::Endpoint {
            id: self.id(service, place),
            service: service.into(),
            port: self.port.as_str().into(),
            site: or_own(&self.site, own),
            spiffe_id: identity,
            address: self.proxy.map(|addr| addr.to_string()).unwrap_or_default(),
            target_port: target.map_or(0, |addr| addr.port().into()),
            target_address: target.map(|addr| addr.ip().to_string()).unwrap_or_default(),
            locality: Some(v1::Locality {
                region: self.region.clone(),
                zone: self.zone.clone(),
                host: String::new(),
            }),
            weight: self.weight,
            workload: String::new(),
            capacity: self.capacity,
            priority: self.priority,
            health: v1::Health::Unknown.into(),
            node: self.node.clone(),
            via: self.via.clone(),
        }
    }
}

impl GatewayFile {
    fn wire(&self, own: &str) -> v1::Gateway {
        v1::Gateway {
            id: self.id.as_str().into(),
            site: or_own(&self.site, own),
            quic_addresses: self.quic.clone(),
            tls_addresses: self.tls.clone(),
        }
    }
}

impl LinkFile {
    fn wire(&self) -> v1::Link {
        let transport = match self.transport {
            TransportFile::Raced => v1::LinkTransport::Unspecified,
            TransportFile::Quic => v1::LinkTransport::Quic,
            TransportFile::Tls => v1::LinkTransport::Tls,
        };
        v1::Link {
            site: self.site.as_str().into(),
            trust_domain: self.trust_domain.as_str().into(),
            dial: self.dial,
            transport: transport.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEST: &str = "
site: west
trust_domain: west.example
services:
  - name: orders.shop
    virtual_address: 10.96.0.1
    ports:
      - { name: http, port: 80, protocol: http }
      - { name: redis, port: 6379, protocol: tcp }
    allow: [{ account: checkout }]
    endpoints:
      - port: http
        identity: spiffe://west.example/ns/shop/sa/orders
        proxy: 127.0.0.1:4143
        target: 127.0.0.1:8080
  - name: orders.next
    ports: [{ name: http, port: 80 }]
";

    #[test]
    fn a_site_is_read() {
        let snapshot = parse(WEST, "west.yaml", &TrustBundles::new()).unwrap();
        let service = &snapshot.services["orders.shop"];
        assert_eq!(service.virtual_address, Some("10.96.0.1".parse().unwrap()));
        assert_eq!(service.endpoints[0].id.as_str(), "orders-shop-0");
        assert_eq!(service.endpoints[0].target, ([127, 0, 0, 1], 8080).into());
        assert_eq!(service.endpoints[0].weight, 1);
        assert_eq!(service.policy.access.as_ref().unwrap().rules.len(), 1);
    }

    #[test]
    fn only_the_file_says_plaintext() {
        let text = WEST.replace(
            "identity: spiffe://west.example/ns/shop/sa/orders\n        proxy: 127.0.0.1:4143",
            "plaintext: true",
        );
        let snapshot = parse(&text, "west.yaml", &TrustBundles::new()).unwrap();
        let endpoint = &snapshot.services["orders.shop"].endpoints[0];
        assert_eq!(endpoint.identity, None);
        assert_eq!(endpoint.address, Some(endpoint.target));
        let message = v1::Endpoint::from(&**endpoint);
        assert!(Endpoint::try_from(&message).is_err(), "no message carries it");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let change = |from: &str, to: &str| WEST.replace(from, to);
        let cases = [
            (change("orders.next\n", "orders\n"), "<name>.<namespace>"),
            (change("protocol: http", "protocol: htp"), "did you mean `http`"),
            (change("identity: spiffe://west", "identity: spiffe://east"), "endpoint"),
            (change("target: 127.0.0.1:8080", "target: 127.0.0.1"), "west.yaml:15"),
            (change("proxy: 127.0.0.1:4143", "plaintext: true"), "nobody has an `identity`"),
            (
                change("identity: spiffe://west.example/ns/shop/sa/orders\n        ", ""),
                "plaintext: true",
            ),
            (change("proxy:", "proxi:"), "did you mean `proxy`"),
            (change("- port: http\n        identity", "- port: httpx\n        identity"), "httpx"),
        ];
        for (text, wanted) in cases {
            let error = parse(&text, "west.yaml", &TrustBundles::new()).unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
