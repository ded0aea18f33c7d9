//! A configuration of any of the formats.

use std::collections::BTreeMap;

use crate::{
    envoy, haproxy,
    ledger::Ledger,
    linkerd1::{self, name::Name, world::World},
    nginx,
    program::Program,
    request::{Answer, Endpoint, Request},
    source::{Problem, Source},
};

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Linkerd 1.x.
    Linkerd1,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
    /// Envoy, static bootstrap or `/config_dump`.
    Envoy,
}

impl Format {
    /// As `--from` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Linkerd1 => "linkerd1",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// Whether a line of it says nothing.
    pub fn is_blank(self, line: &str) -> bool {
        match self {
            Self::Linkerd1 | Self::Envoy => envoy::is_blank(line),
            Self::Haproxy => haproxy::is_blank(line),
            Self::Nginx => nginx::is_blank(line),
        }
    }
}

/// What there is beside the files.
pub struct Outside<'a> {
    /// Opens a file that the configuration names.
    pub file: &'a dyn Fn(&str) -> Result<Source, Problem>,
    /// Opens what nginx includes: a file, or all of a pattern.
    pub included: nginx::Reader<'a>,
    /// A variable of the proxy's environment.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// What discovery knows, for Linkerd.
    pub world: World,
    /// Services of Linkerd that are known to be used: `/svc/web`.
    pub names: Vec<Name>,
}

/// A configuration.
pub struct Legacy<'a> {
    outside: &'a Outside<'a>,
    sources: Vec<Source>,
    kind: Kind,
}

enum Kind {
    Linkerd1(Box<linkerd1::config::Config>),
    Haproxy(haproxy::Config),
    Nginx(Box<nginx::Config>),
    Envoy(Box<envoy::config::Config>),
}

impl<'a> Legacy<'a> {
    /// Reads the files of one proxy.
    ///
    /// # Errors
    ///
    /// They are no configuration, or several where the format has one.
    pub fn read(
        format: Format,
        sources: Vec<Source>,
        outside: &'a Outside<'a>,
    ) -> Result<Self, Problem> {
        if let (Some(second), false) = (sources.get(1), format == Format::Haproxy) {
            let place = crate::source::Place::start(&second.name);
            let problem = format!("a second file; {} has one, and names others", format.as_str());
            return Err(Problem::at(&place, problem));
        }
        let first = sources.first().cloned().unwrap_or_else(|| Source::of("-", ""));
        let (sources, kind) = match format {
            Format::Linkerd1 => {
                (sources, Kind::Linkerd1(linkerd1::config::Config::read(&first)?.into()))
            }
            Format::Haproxy => {
                let Outside { file, variable, .. } = outside;
                let config = haproxy::read(&sources, &haproxy::Outside { file, variable })?;
                (sources, Kind::Haproxy(config))
            }
            Format::Nginx => {
                let config = nginx::parse(&first, outside.included)?;
                (config.sources.clone(), Kind::Nginx(config.into()))
            }
            Format::Envoy => (sources, Kind::Envoy(envoy::config::Config::read(&first)?.into())),
        };
        Ok(Self { outside, sources, kind })
    }

    /// Every file that was read as configuration.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Where a running one takes orders: HAProxy's stats socket with level admin, or
    /// Envoy's admin URL.
    pub fn control(&self) -> Option<String> {
        match self.kind {
            Kind::Haproxy(_) => {
                let words = |line: &str| {
                    line.split_whitespace().map(str::to_owned).collect::<Vec<String>>()
                };
                let lines = self.sources.iter().flat_map(|source| source.text.lines());
                let mut sockets = lines.map(words).filter(|words| {
                    words.len() > 2
                        && words[..2] == ["stats", "socket"]
                        && words[2].starts_with('/')
                });
                let is_admin = |words: &Vec<String>| words.iter().any(|word| word == "admin");
                sockets.find(is_admin).map(|words| words[2].clone())
            }
            Kind::Envoy(_) => {
                let root = crate::yaml::parse(self.sources.first()?).ok()?;
                let either = |node: &crate::yaml::Node, names: [&str; 2]| {
                    names.iter().find_map(|name| node.at(name).cloned())
                };
                let address =
                    either(root.at("admin")?.at("address")?, ["socket_address", "socketAddress"])?;
                let port = either(&address, ["port_value", "portValue"])?.text().ok()?;
                let host = address.at("address")?.text().ok()?;
                let host = if host == "0.0.0.0" { "127.0.0.1".to_owned() } else { host };
                Some(format!("http://{host}:{port}"))
            }
            Kind::Nginx(_) | Kind::Linkerd1(_) => None,
        }
    }

    /// What the legacy proxy does with a request, by its own rules.
    ///
    /// # Errors
    ///
    /// It would not start, or what it hangs on is not known here.
    pub fn explain(&self, request: &Request) -> Result<Answer, Problem> {
        let Outside { file, world, .. } = self.outside;
        match &self.kind {
            Kind::Linkerd1(config) => linkerd1::explain::explain(config, world, file, request),
            Kind::Haproxy(config) => Ok(haproxy::explain(config, request)),
            Kind::Nginx(config) => nginx::explain(config, request),
            Kind::Envoy(config) => Ok(envoy::explain::explain(config, request)),
        }
    }

    /// What it is with us, and what has become of every line.
    ///
    /// # Errors
    ///
    /// The legacy proxy would not start with it.
    pub fn convert(&self) -> Result<(Program, Ledger), Problem> {
        let Outside { file, world, names, .. } = self.outside;
        match &self.kind {
            Kind::Linkerd1(config) => Ok(linkerd1::convert::convert(config, world, file, names)),
            Kind::Haproxy(config) => Ok(haproxy::convert(config)),
            Kind::Nginx(config) => nginx::convert(config),
            Kind::Envoy(config) => Ok(envoy::convert::convert(config)),
        }
    }
}

/// What discovery knows, from lines of a bound name and its endpoints:
/// `/#/io.l5d.consul/dc1/web 10.0.0.1:80 10.0.0.2:80*2`; or from a mapping, as
/// [`linkerd1::discovery`] has it.
///
/// # Errors
///
/// A line is none of these.
pub fn read_world(source: &Source) -> Result<World, Problem> {
    let says = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
    let first = source.text.lines().find(says).unwrap_or_default();
    if first.contains(':') && !first.trim_start().starts_with('/') {
        return linkerd1::discovery::read(source);
    }
    let mut names = BTreeMap::new();
    for (line, text) in (1..).zip(source.text.lines()) {
        let place = crate::source::Place { file: source.name.clone(), line, column: 1 };
        // Names have a # themselves.
        let text = text.trim();
        let mut words = if text.starts_with('#') { "" } else { text }.split_whitespace();
        let Some(name) = words.next() else { continue };
        if !name.starts_with('/') {
            return Err(Problem::at(&place, format!("{name:?} is no name: it begins with /")));
        }
        let mut endpoints = Vec::new();
        for word in words {
            let (address, weight) = word.split_once('*').unwrap_or((word, "1"));
            let weight: f64 = weight
                .parse()
                .map_err(|_| Problem::at(&place, format!("{word:?}: the weight is no number")))?;
            let endpoint = match address.parse() {
                Ok(address) => Endpoint::Address(address),
                Err(_) if address.contains(':') => Endpoint::Name(address.to_owned()),
                Err(_) => {
                    let problem = format!("{address:?} is no endpoint: <host>:<port>");
                    return Err(Problem::at(&place, problem));
                }
            };
            endpoints.push((endpoint, weight));
        }
        names.insert(name.to_owned(), (!endpoints.is_empty()).then_some(endpoints));
    }
    Ok(World { names, ..World::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_discovery_knows_is_a_line_each() {
        let text = "# seen today\n/#/io.l5d.fs/web 10.0.0.1:80 10.0.0.2:80*2\n\n/#/x\n";
        let world = read_world(&Source::of("world", text)).unwrap();
        assert_eq!(world.names["/#/io.l5d.fs/web"].as_ref().unwrap()[1].1, 2.0);
        assert_eq!(world.names["/#/x"], None);
        let wrong = read_world(&Source::of("world", "\nweb\n")).unwrap_err();
        assert_eq!(wrong.to_string(), "world:2:1: \"web\" is no name: it begins with /");
        let mapping = "names:\n  /#/x: [10.0.0.1:80]\nlocalAddresses: [10.0.0.9]\n";
        let world = read_world(&Source::of("world", mapping)).unwrap();
        assert!(world.names["/#/x"].is_some() && world.local_addresses.is_some());
        assert!(read_world(&Source::of("world", "/a b")).is_err());
    }
}
