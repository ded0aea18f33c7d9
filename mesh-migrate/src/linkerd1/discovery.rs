//! A file of what discovery knows: what [`World`] is filled from where names alone do
//! not suffice.
//!
//! ```yaml
//! names:
//!   /#/io.l5d.consul/dc1/web: [10.0.0.1:80, 10.0.0.2:80*2]
//!   /#/io.l5d.consul/dc1/mail:            # known, but not where
//! localAddresses: [10.0.0.1]              # of the host: io.l5d.localhost
//! environment: {POD_IP: 10.1.2.3}         # io.l5d.k8s.ns, io.l5d.k8s.localnode
//! ingresses: {items: []}                  # kubectl get ingress -A -o json
//! dtabs: {default: /svc => /#/io.l5d.fs}  # namerd, Consul, or namespace/name/file
//! namerd: {namers: []}                    # as namerd's file has them
//! unread: {/#/io.l5d.k8s: no answer}      # what could not be asked, and why
//! ```

use std::collections::BTreeMap;

use super::{
    config::{read_namers, text},
    dtab::Dtab,
    places::Lines,
    world::{Ingress, IngressRule, Known, World, endpoint},
};
use crate::{
    request::Endpoint,
    source::{Problem, Source},
    yaml::{self, Node, Value},
};

/// Reads such a file.
///
/// # Errors
///
/// It is no YAML, has a key that is not known, or a value of the wrong kind.
pub fn read(source: &Source) -> Result<World, Problem> {
    let root = yaml::parse(source)?;
    let lines = Lines::of(source);
    let mut world = World::default();
    for (key, node) in root.map()? {
        match key.name.as_str() {
            "names" => {
                for (name, endpoints) in node.map()? {
                    if !name.name.starts_with('/') {
                        let wrong = format!("{:?} is no name: it begins with /", name.name);
                        return Err(Problem::at(&name.place, wrong));
                    }
                    world.names.insert(name.name.clone(), known(endpoints)?);
                }
            }
            "localAddresses" => {
                let address =
                    |node: &Node| node.text()?.parse().map_err(|_| node.expected("an IP address"));
                let all = node.list()?.iter().map(address).collect::<Result<_, _>>()?;
                world.local_addresses = Some(all);
            }
            "environment" => world.environment = texts(node)?,
            "ingresses" => {
                let items = node.at("items").unwrap_or(node);
                world.ingresses =
                    Some(items.list()?.iter().map(ingress).collect::<Result<_, _>>()?);
            }
            "dtabs" => world.dtabs = dtabs(node, &lines)?,
            "namerd" => world.namerd = read_namers(node.at("namers"))?,
            "unread" => world.unread = texts(node)?,
            other => {
                let wrong = format!(
                    "{other:?} is not known: expected names, localAddresses, environment, ingresses, dtabs, namerd or unread"
                );
                return Err(Problem::at(&key.place, wrong));
            }
        }
    }
    Ok(world)
}

/// Names, tables and what is unread, as [`read`] has them: the same for the same.
pub fn write(world: &World) -> String {
    let mut text = String::new();
    let mut section = |name: &str, entries: Vec<(&String, String)>| {
        if !entries.is_empty() {
            text += &format!("{name}:\n");
        }
        for (key, value) in entries {
            text += &format!("  {}: {value}\n", quoted(key));
        }
    };
    let names = world.names.iter().map(|(name, known)| (name, endpoints(known.as_deref())));
    section("names", names.collect());
    section("dtabs", world.dtabs.iter().map(|(key, dtab)| (key, table(dtab))).collect());
    section("unread", world.unread.iter().map(|(key, why)| (key, quoted(why))).collect());
    if text.is_empty() { "names: {}\n".into() } else { text }
}

fn endpoints(known: Option<&[(Endpoint, f64)]>) -> String {
    let Some(known) = known else { return "null".into() };
    let one = |(endpoint, weight): &(Endpoint, f64)| {
        let at = match endpoint {
            Endpoint::Address(address) => address.to_string(),
            Endpoint::Name(name) => name.clone(),
        };
        quoted(&if (*weight - 1.0).abs() < f64::EPSILON { at } else { format!("{at}*{weight}") })
    };
    format!("[{}]", known.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// An entry a line.
fn table(dtab: &Dtab) -> String {
    let lines = dtab.entries.iter().map(|entry| format!("\n    {entry} ;"));
    if dtab.entries.is_empty() { quoted("") } else { format!("|{}", lines.collect::<String>()) }
}

/// Text of JSON is text of YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn texts(node: &Node) -> Result<BTreeMap<String, String>, Problem> {
    let one = |(key, node): &(yaml::Key, Node)| Ok((key.name.clone(), node.text()?));
    node.map()?.iter().map(one).collect()
}

fn dtabs(node: &Node, lines: &Lines<'_>) -> Result<BTreeMap<String, Dtab>, Problem> {
    let one = |(key, node): &(yaml::Key, Node)| {
        let value = node.text()?;
        Ok((key.name.clone(), Dtab::within(&lines.within(node, &value), &value)?))
    };
    node.map()?.iter().map(one).collect()
}

/// `host:port`, or `host:port*weight`.
fn known(node: &Node) -> Result<Known, Problem> {
    if matches!(node.value, Value::Null) {
        return Ok(None);
    }
    let one = |node: &Node| -> Result<(Endpoint, f64), Problem> {
        let said = node.text()?;
        let (at, weight) = said.split_once('*').unwrap_or((&said, "1"));
        let expected = || node.expected("an endpoint: <host>:<port>, or <host>:<port>*<weight>");
        let weight = weight.trim().parse().map_err(|_| expected())?;
        let (host, port) = at.trim().rsplit_once(':').ok_or_else(expected)?;
        let host = host.trim_matches(['[', ']']);
        Ok((endpoint(host, port.parse().map_err(|_| expected())?), weight))
    };
    node.list()?.iter().map(one).collect::<Result<_, _>>().map(Some)
}

/// An Ingress of any version of its API.
fn ingress(node: &Node) -> Result<Ingress, Problem> {
    let metadata = node.at("metadata");
    let annotations = metadata.and_then(|metadata| metadata.at("annotations"));
    let class = annotations.map(|a| text(a, "kubernetes.io/ingress.class")).transpose()?.flatten();
    let namespace = metadata.map(|metadata| text(metadata, "namespace")).transpose()?.flatten();
    let mut ingress = Ingress {
        namespace: namespace.unwrap_or_else(|| "default".into()),
        class,
        ..Ingress::default()
    };
    let Some(spec) = node.at("spec") else { return Ok(ingress) };
    if let Some(backend) = spec.at("backend").or_else(|| spec.at("defaultBackend")) {
        ingress.default_backend = Some(service(backend)?);
    }
    for rule in spec.at("rules").map_or(Ok(&[][..]), Node::list)? {
        let paths = rule.at("http").and_then(|http| http.at("paths"));
        for path in paths.map_or(Ok(&[][..]), Node::list)? {
            let backend = path.at("backend").ok_or_else(|| path.expected("a `backend`"))?;
            let (service, port) = service(backend)?;
            let (host, path) = (text(rule, "host")?, text(path, "path")?);
            ingress.rules.push(IngressRule { host, path, service, port });
        }
    }
    Ok(ingress)
}

/// Service and port of a backend.
fn service(backend: &Node) -> Result<(String, String), Problem> {
    let wrong = || Problem::at(&backend.place, "a backend needs a service and a port");
    if let Some(service) = backend.at("service") {
        let port = service.at("port").ok_or_else(wrong)?;
        let port = text(port, "name")?.or(text(port, "number")?);
        return text(service, "name")?.zip(port).ok_or_else(wrong);
    }
    text(backend, "serviceName")?.zip(text(backend, "servicePort")?).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = r#"
names:
  /#/f/web: [10.0.0.1:80, "web-2:81*2"]
  /#/f/mail:
localAddresses: [10.0.0.1]
environment: {POD_IP: 10.1.2.3}
ingresses:
  items:
  - metadata: {namespace: prod, annotations: {kubernetes.io/ingress.class: linkerd}}
    spec:
      backend: {serviceName: rest, servicePort: 80}
      rules:
      - host: web.corp
        http:
          paths:
          - {path: /a, backend: {serviceName: web, servicePort: http}}
          - {backend: {service: {name: web, port: {number: 8080}}}}
dtabs:
  default: |
    /svc => /#/f ;
namerd: {namers: [{kind: io.l5d.fs, prefix: /f, rootDir: d}]}
"#;

    #[test]
    fn everything_that_is_known() {
        let world = read(&Source::of("w", ALL)).unwrap();
        let web = world.names["/#/f/web"].as_ref().unwrap();
        assert_eq!(web[1], (Endpoint::Name("web-2:81".into()), 2.0));
        assert_eq!(world.names["/#/f/mail"], None);
        assert_eq!(world.dtabs["default"].entries[0].place.line, 20);
        assert_eq!(world.namerd[0].prefix.to_string(), "/#/f");
        let rules = world.ingress_rules(Some("prod"), "linkerd", false).unwrap();
        let said: Vec<String> = rules
            .iter()
            .map(|(namespace, rule)| {
                let (host, path) = (rule.host.as_deref(), rule.path.as_deref());
                format!("{namespace} {host:?} {path:?} {}:{}", rule.service, rule.port)
            })
            .collect();
        assert_eq!(
            said,
            [
                r#"prod Some("web.corp") Some("/a") web:http"#,
                r#"prod Some("web.corp") None web:8080"#,
                "prod None None rest:80",
            ]
        );
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = r#"
names:
  /#/c/dc1/a\x20b: ["[::1]:80", 10.0.0.1:80*0.5, web:81]
  /#/c/dc1/gone: []
  /#/c/dc1/mail:
dtabs:
  default: /svc => /#/c/dc1 | 3 * /a & (/b | !) ; /*/x => $
  none: ""
unread: {"/#/k": "no answer: \"x\"\n"}
"#;
        let world = read(&Source::of("w", text)).unwrap();
        let written = write(&world);
        let again = read(&Source::of("d", &written)).unwrap();
        assert_eq!(write(&again), written);
        assert_eq!((&again.names, &again.unread), (&world.names, &world.unread));
        let entries = |world: &World| {
            world.dtabs["default"].entries.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(entries(&again), entries(&world));
        assert!(again.dtabs["none"].entries.is_empty());
        assert_eq!(write(&World::default()), "names: {}\n");
    }

    #[test]
    fn what_is_wrong_has_a_place() {
        for (text, expected) in [
            ("a: 1", "w:1:1: \"a\" is not known"),
            ("names: {web: }", "w:1:9: \"web\" is no name"),
            ("names: {/a: [b]}", "w:1:14: expected an endpoint"),
            ("localAddresses: [x]", "w:1:18: expected an IP address"),
            ("ingresses: [{spec: {backend: {}}}]", "w:1:30: a backend needs a service and a port"),
            ("dtabs: {a: /x}", "w:1:13: dtab: expected '=', found its end"),
        ] {
            let wrong = read(&Source::of("w", text)).unwrap_err().to_string();
            assert!(wrong.starts_with(expected), "{text}: {wrong}");
        }
    }
}
