//! Rules about traffic of a static snapshot: the documents that `meshctl
//! apply` takes, made into what federation would send. There nobody waits for
//! a service to appear, so whatever is not in force is a mistake.

use std::{collections::BTreeMap, path::Path};

use mesh_manifest::{
    AccessIndex, Compiled, Manifest, ManifestError, ObjectName, compile,
    compile::services,
    manifest::{MAX_BYTES, MAX_DOCUMENTS},
};
use mesh_runtime::config::{self, ConfigError};

use super::site::SiteFile;

/// Every document, and what each service has of them.
#[derive(Debug)]
pub(super) struct Rules {
    manifests: Vec<Manifest>,
    /// Where each was read.
    places: BTreeMap<ObjectName, String>,
    /// (name, number) of the ports of every service.
    registry: BTreeMap<String, Vec<(String, u16)>>,
}

impl Rules {
    /// Reads all documents of a site file; `dir` is where that is, `name` how
    /// errors call it.
    pub(super) fn read(file: &SiteFile, dir: &Path, name: &str) -> Result<Self, ConfigError> {
        let mut rules =
            Self { manifests: Vec::new(), places: BTreeMap::new(), registry: registry(file) };
        for path in &file.manifests {
            let path = dir.join(path);
            let shown = path.display().to_string();
            let text = config::read_within(&path, MAX_BYTES as u64)?;
            let read = mesh_manifest::manifest::read(&text, &shown);
            for manifest in read.map_err(not_taken)? {
                rules.add(manifest, shown.clone())?;
            }
        }
        for (index, document) in file.rules.iter().enumerate() {
            let place = format!("{name}: rules[{index}]");
            let manifest = Manifest::from_value(document.clone(), &place).map_err(not_taken)?;
            rules.add(manifest, place)?;
        }
        Ok(rules)
    }

    fn add(&mut self, manifest: Manifest, place: String) -> Result<(), ConfigError> {
        let wrong =
            |problem: String| Err(ConfigError::meaning(&place, manifest.name.to_string(), problem));
        if self.manifests.len() >= MAX_DOCUMENTS {
            return wrong(format!("there are more than {MAX_DOCUMENTS} documents"));
        }
        if let Some(earlier) = self.places.get(&manifest.name) {
            return wrong(format!("is there twice, also in {earlier}"));
        }
        match services(&manifest) {
            Err(problem) => return wrong(problem),
            Ok(named) if named.is_empty() && manifest.is_route() => {
                return wrong("spec.parentRefs: names no service (kind: Service)".into());
            }
            Ok(named) => {
                let unknown = |service: &&String| !self.registry.contains_key(*service);
                if let Some(service) = named.iter().find(unknown) {
                    return wrong(format!("there is no service {service} in the site file"));
                }
            }
        }
        self.places.insert(manifest.name.clone(), place);
        self.manifests.push(manifest);
        Ok(())
    }

    /// What they mean for one service.
    pub(super) fn of(&self, service: &str) -> Result<Compiled, ConfigError> {
        let compiled = compile(service, &self.manifests, &self.registry);
        let access = AccessIndex::of(&self.manifests).problems();
        if let Some(problem) = compiled.problems.iter().chain(&access).next() {
            let written = self.places.iter().find(|(name, _)| name.to_string() == problem.document);
            let place = written.map_or("rules", |(_, place)| place.as_str());
            return Err(ConfigError::meaning(place, &*problem.document, &problem.text));
        }
        let requests = compiled.routes.iter().map(|route| (&route.name, &route.backends));
        let connections = &compiled.connection_routes;
        let connections = connections.iter().map(|route| (&route.name, &route.backends));
        for (rule, backends) in requests.chain(connections) {
            let Some(backend) = backends.iter().find(|one| !one.invalid.is_empty()) else {
                continue;
            };
            let its =
                |name: &ObjectName| rule.starts_with(&format!("{}/{}/", name.namespace, name.name));
            let written = self.places.iter().find(|(name, _)| its(name));
            let place = written.map_or("rules", |(_, place)| place.as_str());
            return Err(ConfigError::meaning(
                place,
                format!("rule {rule}: backendRefs"),
                &backend.invalid,
            ));
        }
        Ok(compiled)
    }
}

fn registry(file: &SiteFile) -> BTreeMap<String, Vec<(String, u16)>> {
    let ports = file.services.iter().map(|service| {
        let ports = service.ports.iter().map(|port| (port.name.to_string(), port.port));
        (service.name.to_string(), ports.collect())
    });
    ports.collect()
}

fn not_taken(error: ManifestError) -> ConfigError {
    match error {
        ManifestError::Text { file, line, column, problem } => {
            ConfigError::Text { file, line, column, problem }
        }
        ManifestError::Field { place, problem } => {
            let (key, problem) = problem.split_once(": ").unwrap_or(("document", &problem));
            ConfigError::meaning(&place, key, problem)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mesh_core::{TrustBundles, balance::LocalityMode};

    use crate::files::snapshot::{load, parse};

    const SITE: &str = "
site: west
trust_domain: west.example
services:
  - name: orders.shop
    ports: [{ name: http, port: 80, protocol: http }, { name: db, port: 3306 }]
  - name: orders-v2.shop
    ports: [{ name: http, port: 80, protocol: http }]
";

    const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: orders, namespace: shop }
spec:
  parentRefs: [{ kind: Service, name: orders, port: 80 }]
  rules:
    - name: split
      matches: [{ path: { value: /v2 } }]
      filters:
        - { type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }
      backendRefs: [{ name: orders, port: 80, weight: 9 }, { name: orders-v2, port: 80 }]
      timeouts: { request: 2s }
";

    const POLICY: &str = "
apiVersion: isthmus.io/v1
kind: TrafficPolicy
metadata: { name: orders, namespace: shop }
spec:
  targetRef: { kind: Service, name: orders }
  traffic: { concurrency: { maxInFlight: 4 } }
  balance: { locality: Strict }
  rules: [{ name: split, fault: { abort: { status: 503 } } }]
";

    const PROFILE: &str = "
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: { name: orders-v2.shop.svc.cluster.local, namespace: shop }
spec: { routes: [{ name: all, condition: { pathRegex: '/.*' }, timeout: 3s }], opaquePorts: ['80'] }
";

    /// As items of `rules`.
    fn inline(documents: &[&str]) -> String {
        let item = |text: &&str| format!("  - {}\n", text.trim().replace('\n', "\n    "));
        format!("{SITE}rules:\n{}", documents.iter().map(item).collect::<String>())
    }

    fn refused(text: &str) -> String {
        parse(text, "west.yaml", &TrustBundles::new()).map(|_| ()).unwrap_err().to_string()
    }

    fn is_all_in_force(snapshot: &mesh_core::Snapshot) {
        let orders = &snapshot.services["orders.shop"];
        let rule = &orders.routes[0];
        assert_eq!(&*rule.name, "shop/orders/split");
        assert_eq!(rule.request_timeout, Some(std::time::Duration::from_secs(2)));
        assert_eq!(rule.backends.len(), 2);
        assert!(rule.fault.is_some());
        assert_eq!(orders.traffic.concurrency.as_ref().map(|one| one.max_in_flight), Some(4));
        assert_eq!(orders.balance.locality, LocalityMode::Strict);
        let next = &snapshot.services["orders-v2.shop"];
        assert_eq!(next.port("http").map(|port| port.protocol), Some(mesh_core::Protocol::Tcp));
        assert_eq!(next.routes.len(), 2, "the profile's and its default");
    }

    #[test]
    fn documents_in_the_file_and_beside_it_mean_the_same() {
        let text = inline(&[ROUTE, POLICY, PROFILE]);
        is_all_in_force(&parse(&text, "west.yaml", &TrustBundles::new()).unwrap());

        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("west.yaml", &format!("{SITE}manifests: [rules.yaml, more/profile.yaml]\n"));
        write("rules.yaml", &format!("---{ROUTE}---{POLICY}"));
        std::fs::create_dir(dir.path().join("more")).unwrap();
        write("more/profile.yaml", PROFILE);
        let read = load(&dir.path().join("west.yaml"), &[], &TrustBundles::new());
        is_all_in_force(&read.unwrap().0);
    }

    #[test]
    fn what_is_not_in_force_is_refused_with_its_document() {
        let route = |from: &str, to: &str| {
            assert!(ROUTE.contains(from), "{from}");
            inline(&[&ROUTE.replace(from, to)])
        };
        let cases = [
            (route("HTTPRoute", "HttpRoute"), "west.yaml: rules[0]: kind: \"HttpRoute\" is none"),
            (route("matches:", "match:"), "HTTPRoute shop/orders: spec.rules[0].match: unknown"),
            (route("request: 2s", "request: 2"), "spec.rules[0].timeouts.request"),
            (
                route("name: orders, port: 80 }]\n  r", "name: order, port: 80 }]\n  r"),
                "order.shop",
            ),
            (route("port: 80 }]\n  r", "port: 81 }]\n  r"), "orders.shop has no port 81"),
            (route("name: orders-v2", "name: orders-v3"), "there is no service orders-v3.shop"),
            (route("name: orders-v2, port: 80", "name: orders-v2, port: 8"), "has no port 8"),
            (route("kind: Service", "kind: Gateway"), "names no service"),
            (inline(&[ROUTE, ROUTE]), "is there twice, also in west.yaml: rules[0]"),
            (
                inline(&[POLICY, &POLICY.replace("name: orders, n", "name: more, n")]),
                "TrafficPolicy shop/orders: replaces an older",
            ),
            (inline(&[POLICY, "1"]), "west.yaml: rules[1]"),
        ];
        for (text, wanted) in cases {
            let error = refused(&text);
            assert!(error.contains(wanted), "{error}\nlacks {wanted}");
            assert!(error.starts_with("west.yaml"), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_no_yaml_is_named() {
        let site = format!("{SITE}manifests: [none.yaml]\n");
        assert!(refused(&site).starts_with("none.yaml: cannot be read"), "{}", refused(&site));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "\na: [").unwrap();
        let site = site.replace("none", "a");
        let name = dir.path().join("west.yaml");
        let read = parse(&site, name.to_str().unwrap(), &TrustBundles::new());
        let error = read.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("{}:", dir.path().join("a.yaml").display())), "{error}");
        assert!(Path::new("a.yaml").is_relative());
    }
}
