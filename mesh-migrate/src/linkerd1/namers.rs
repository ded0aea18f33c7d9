//! What a name becomes where no entry of the table is for it: the namers of the
//! configuration (`/#/…`), and those that every Linkerd has (`/$/…`).

use super::{
    config::Namer,
    name::{Name, PathMatcher, raw, substitute},
    world::{Files, Known, World, endpoint, endpoints_of_file},
};

/// What a namer says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    /// Another name, to look up again.
    Name(Name),
    /// Endpoints.
    Bound(Box<BoundName>),
    /// Not here, and why.
    Neg(String),
    /// Not here, and nowhere.
    Fail,
    /// Here, and nobody is in.
    Empty,
    /// Binding ends with an error.
    Error(String),
}

/// A name with endpoints: what Linkerd makes a client for.
#[derive(Debug, Clone, PartialEq)]
pub struct BoundName {
    /// What client policies match.
    pub id: Name,
    /// What of the name was not needed.
    pub residual: Name,
    /// As far as they are known.
    pub endpoints: Known,
    /// Who bound it.
    pub from: Origin,
}

/// Who has bound a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A namer of the configuration, by its place in the list.
    Namer(usize),
    /// namerd, or a namer that is not known.
    Elsewhere,
    /// `/$/inet` and `/$/io.buoyant.rinet`: DNS.
    Dns,
    /// `/$/io.buoyant.http.status`: Linkerd answers itself.
    Status(u16),
}

/// What a namer of the configuration says about what is below its prefix.
pub(super) fn configured(
    at: usize,
    namer: &Namer,
    below: &Name,
    world: &World,
    files: Files<'_>,
) -> Found {
    let has = |key: &str| namer.node.at(key).is_some();
    let is = |key: &str| namer.node.at(key).and_then(|node| node.bool().ok()).unwrap_or(false);
    let registry = Registry { at, prefix: &namer.prefix, world };
    let label = usize::from(has("labelSelector"));
    match namer.kind.as_str() {
        "io.l5d.fs" => file(&registry, namer, below, files),
        // Services and tags are asked for in lower case, and named as they came.
        "io.l5d.consul" => registry.fixed(below, if is("includeTag") { 3 } else { 2 }, Case::Asked),
        "io.l5d.k8s" | "io.l5d.k8s.external" => registry.fixed(below, 3 + label, Case::Lower),
        "io.l5d.k8s.ns" => registry.fixed(below, 2 + label, Case::Lower),
        "io.l5d.rancher" | "io.l5d.k8s.istio" => registry.fixed(below, 3, Case::Kept),
        "io.l5d.dnssrv" | "io.l5d.curator" => registry.fixed(below, 1, Case::Kept),
        "io.l5d.marathon" => registry.first(below, 1..=below.len(), Case::Lower),
        "io.l5d.rewrite" => rewrite(namer, below),
        _ => registry.first(below, (0..=below.len()).rev(), Case::Kept),
    }
}

/// What namerd says where its namers are not known.
pub(super) fn elsewhere(name: &Name, world: &World) -> Found {
    let registry = Registry { at: usize::MAX, prefix: &Name::default(), world };
    registry.first(name, (1..=name.len()).rev(), Case::Kept)
}

#[derive(Clone, Copy, PartialEq)]
enum Case {
    Kept,
    Lower,
    Asked,
}

struct Registry<'a> {
    at: usize,
    prefix: &'a Name,
    world: &'a World,
}

impl Registry<'_> {
    fn fixed(&self, below: &Name, labels: usize, case: Case) -> Found {
        if below.len() < labels {
            return Found::Neg(format!("{} needs {labels} labels", self.prefix));
        }
        self.first(below, labels..=labels, case)
    }

    fn first(&self, below: &Name, lengths: impl Iterator<Item = usize>, case: Case) -> Found {
        for length in lengths {
            let (first, residual) = below.split(length);
            let asked = match case {
                Case::Kept => first.clone(),
                Case::Lower => first.lower_case(),
                Case::Asked => {
                    let (dc, rest) = first.split(1);
                    dc.join(&rest.lower_case())
                }
            };
            let key = self.prefix.join(&asked);
            if let Some(endpoints) = self.world.names.get(&key.to_string()) {
                if endpoints.as_ref().is_some_and(Vec::is_empty) {
                    return Found::Neg(format!("{key} has no endpoints"));
                }
                let id = if case == Case::Asked { self.prefix.join(&first) } else { key };
                return self.bound(id, residual, endpoints.clone());
            }
        }
        Found::Neg(format!("{} is not known", self.prefix.join(below)))
    }

    fn bound(&self, id: Name, residual: Name, endpoints: Known) -> Found {
        let from = if self.at == usize::MAX { Origin::Elsewhere } else { Origin::Namer(self.at) };
        Found::Bound(Box::new(BoundName { id, residual, endpoints, from }))
    }
}

/// Directories are descended into; a file ends the search.
fn file(registry: &Registry<'_>, namer: &Namer, below: &Name, files: Files<'_>) -> Found {
    let known = registry.first(below, 1..=below.len(), Case::Kept);
    if let Found::Bound(_) = known {
        return known;
    }
    let root = namer.node.at("rootDir").and_then(|node| node.text().ok()).unwrap_or_default();
    let mut path = root;
    for (at, label) in below.labels().iter().enumerate() {
        let label = raw(label);
        // What a client sends must not lead out of the directory.
        if label.is_empty() || label == "." || label == ".." || label.contains(['/', '\0']) {
            break;
        }
        path = format!("{path}/{label}");
        let Ok(source) = files(&path) else { continue };
        let (id, residual) = below.split(at + 1);
        return match endpoints_of_file(&source.text) {
            Ok(endpoints) => registry.bound(registry.prefix.join(&id), residual, Some(endpoints)),
            Err(wrong) => Found::Error(format!("{path}: {wrong}")),
        };
    }
    known
}

fn rewrite(namer: &Namer, below: &Name) -> Found {
    let text = |key: &str| namer.node.at(key).and_then(|node| node.text().ok()).unwrap_or_default();
    let pattern = text("pattern");
    let Some(variables) = PathMatcher::new(&pattern).extract(below) else {
        return Found::Neg(format!("{below} does not match {pattern}"));
    };
    match Name::read(&substitute(&variables, &text("name"))) {
        Ok(name) => Found::Name(name),
        Err(wrong) => Found::Error(wrong),
    }
}

/// What the namers that every Linkerd has say.
pub(super) fn built_in(name: &Name) -> Found {
    let (first, rest) = name.split(2);
    let [dollar, class] = first.labels() else { return Found::Neg("nobody names it".into()) };
    if dollar != "$" {
        return Found::Neg("nobody names it".into());
    }
    let labels: Vec<String> = rest.labels().iter().map(|label| raw(label)).collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let below = |labels: usize| rest.split(labels).1;
    let rewritten = |name: Option<Vec<&str>>, used: usize| match name {
        Some(labels) => Found::Name(Name::of(labels).join(&below(used))),
        None => Found::Neg(format!("{rest} is not of the form of {class}")),
    };
    match (class.as_str(), labels.as_slice()) {
        ("nil", _) => Found::Empty,
        ("fail", _) => Found::Fail,
        ("inet" | "fixedinet", _) => inet(&first, &rest, &labels),
        ("io.buoyant.rinet", [port, host, ..]) => {
            dns(first.join(&rest.split(2).0), below(2), host, port)
        }
        ("io.buoyant.hostportPfx", [prefix, host_port, ..]) => {
            let found = host_port_of(host_port).map(|(host, port)| vec![*prefix, host, port]);
            rewritten(found, 2)
        }
        ("io.buoyant.porthostPfx", [prefix, host_port, ..]) => {
            let found = host_port_of(host_port).map(|(host, port)| vec![*prefix, port, host]);
            rewritten(found, 2)
        }
        ("io.buoyant.http.domainToPathPfx", [prefix, host, ..]) if is_host(host) => {
            rewritten(Some([*prefix].into_iter().chain(reversed(host)).collect()), 2)
        }
        ("io.buoyant.http.domainToPath", [host, ..]) if is_host(host) => {
            rewritten(Some(reversed(host)), 1)
        }
        ("io.buoyant.http.subdomainOfPfx", [domain, prefix, host, ..]) => {
            rewritten(subdomain(domain, host).map(|sub| vec![*prefix, sub]), 3)
        }
        ("io.buoyant.http.subdomainOf", [domain, host, ..]) => {
            rewritten(subdomain(domain, host).map(|sub| vec![sub]), 2)
        }
        ("io.buoyant.http.anyMethodPfx", [prefix, method, ..]) if is_method(method) => {
            rewritten(Some(vec![*prefix]), 2)
        }
        ("io.buoyant.http.anyMethod", [method, ..]) if is_method(method) => {
            rewritten(Some(Vec::new()), 1)
        }
        ("io.buoyant.http.anyHostPfx", [prefix, host, ..]) if is_host(host) => {
            rewritten(Some(vec![*prefix]), 2)
        }
        ("io.buoyant.http.anyHost", [host, ..]) if is_host(host) => rewritten(Some(Vec::new()), 1),
        ("io.buoyant.http.status", [code, ..]) => status(&first, &rest, code),
        _ if is_built_in(class) => rewritten(None, 0),
        _ => Found::Error(format!("/$/{class} is a class of a plugin, which is not known here")),
    }
}

/// Whether every Linkerd has it.
pub(super) fn is_built_in(class: &str) -> bool {
    let http = class.strip_prefix("io.buoyant.http.").unwrap_or_default();
    let class = class.strip_prefix("io.buoyant.").unwrap_or(class);
    let of_http = ["anyMethod", "anyHost", "subdomainOf", "domainToPath"];
    matches!(class, "nil" | "fail" | "inet" | "fixedinet" | "rinet" | "hostportPfx" | "porthostPfx")
        || http == "status"
        || of_http.contains(&http.strip_suffix("Pfx").unwrap_or(http))
}

fn inet(first: &Name, rest: &Name, labels: &[&str]) -> Found {
    let (host, port, used) = match labels {
        [host, port, ..] if port.parse::<i32>().is_ok() => (*host, *port, 2),
        [port, ..] if port.parse::<i32>().is_ok() => ("localhost", *port, 1),
        // Finagle then looks for a class of that name.
        _ => return Found::Error(format!("{rest} is no host and port")),
    };
    // What is no text is mended on the way.
    dns(first.join(&rest.split(used).0), Name::of(&labels[used..]), host, port)
}

/// What is no port is bound as well, and nobody is there.
fn dns(id: Name, residual: Name, host: &str, port: &str) -> Found {
    let port = port.parse::<u16>().ok();
    let endpoints = Some(port.map(|port| (endpoint(host, port), 1.0)).into_iter().collect());
    Found::Bound(Box::new(BoundName { id, residual, endpoints, from: Origin::Dns }))
}

fn status(first: &Name, rest: &Name, code: &str) -> Found {
    match code.parse::<u16>() {
        Ok(code @ 100..=599) => {
            let (id, residual) = rest.split(1);
            let from = Origin::Status(code);
            let endpoints = Some(Vec::new());
            Found::Bound(Box::new(BoundName { id: first.join(&id), residual, endpoints, from }))
        }
        _ => Found::Neg(format!("{code} is no status")),
    }
}

fn is_method(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_uppercase())
}

fn is_host(label: &str) -> bool {
    let is = |byte: u8| byte.is_ascii_alphanumeric() || b".:_-".contains(&byte);
    !label.is_empty() && label.bytes().all(is)
}

/// `a.b.c` as `c`, `b`, `a`; ports stay, dots at the end do not.
fn reversed(host: &str) -> Vec<&str> {
    let host = host.trim_end_matches('.');
    if host.is_empty() { Vec::new() } else { host.split('.').rev().collect() }
}

fn subdomain<'a>(domain: &str, host: &'a str) -> Option<&'a str> {
    if !is_host(domain) || !is_host(host) {
        return None;
    }
    let host = host.split_once(':').filter(|(name, _)| !name.is_empty()).map_or(host, |(h, _)| h);
    host.strip_suffix(domain)?.strip_suffix('.').filter(|sub| !sub.is_empty())
}

fn host_port_of(label: &str) -> Option<(&str, &str)> {
    let mut parts = label.trim_end_matches(':').split(':');
    let (host, port, more) = (parts.next()?, parts.next()?, parts.next());
    let is = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=63).contains(&port.len()) && !port.starts_with('-') && port.bytes().all(is);
    (more.is_none() && good).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_namers() {
        let cases = [
            ("/$/inet/web/80/x", "bound /$/inet/web/80 /x"),
            ("/$/inet/8080/x", "bound /$/inet/8080 /x"),
            ("/$/inet/web", "error"),
            ("/$/fixedinet/80", "bound /$/fixedinet/80 /"),
            ("/$/inet/web/99999/x", "bound /$/inet/web/99999 /x"),
            ("/$/io.buoyant.rinet/80/web/x", "bound /$/io.buoyant.rinet/80/web /x"),
            ("/$/io.buoyant.rinet/80", "neg"),
            ("/$/nil/x", "empty"),
            ("/$/fail/x", "fail"),
            ("/$/io.buoyant.hostportPfx/p/web:80/x", "/p/web/80/x"),
            ("/$/io.buoyant.hostportPfx/p/web:http", "/p/web/http"),
            ("/$/io.buoyant.hostportPfx/p/web", "neg"),
            ("/$/io.buoyant.hostportPfx/p/::1:80", "neg"),
            ("/$/io.buoyant.porthostPfx/p/web:80/x", "/p/80/web/x"),
            ("/$/io.buoyant.http.domainToPathPfx/p/a.b.c/x", "/p/c/b/a/x"),
            ("/$/io.buoyant.http.domainToPathPfx/p/web.prod:8080", "/p/prod:8080/web"),
            ("/$/io.buoyant.http.domainToPath/a.b", "/b/a"),
            ("/$/io.buoyant.http.subdomainOfPfx/corp/p/a.b.corp:80/x", "/p/a.b/x"),
            ("/$/io.buoyant.http.subdomainOfPfx/corp/p/corp", "neg"),
            ("/$/io.buoyant.http.subdomainOf/corp/a.corp", "/a"),
            ("/$/io.buoyant.http.anyMethodPfx/p/GET/x", "/p/x"),
            ("/$/io.buoyant.http.anyMethodPfx/p/get/x", "neg"),
            ("/$/io.buoyant.http.anyMethod/GET", "/"),
            ("/$/io.buoyant.http.anyHost/a.b/x", "/x"),
            ("/$/io.buoyant.http.status/204/x", "bound /$/io.buoyant.http.status/204 /x"),
            ("/$/io.buoyant.http.status/9", "neg"),
            ("/$/com.example.Namer/x", "error"),
            ("/#/x", "neg"),
            ("/", "neg"),
        ];
        for (name, expected) in cases {
            let said = match built_in(&Name::read(name).unwrap()) {
                Found::Name(name) => name.to_string(),
                Found::Bound(bound) => format!("bound {} {}", bound.id, bound.residual),
                Found::Neg(_) => "neg".into(),
                Found::Fail => "fail".into(),
                Found::Empty => "empty".into(),
                Found::Error(_) => "error".into(),
            };
            assert_eq!(said, expected, "{name}");
        }
    }
}
