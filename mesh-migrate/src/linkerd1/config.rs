//! A configuration file of Linkerd 1.x, YAML or JSON, or `/config.json` of one that
//! runs. Keys that are not known here stay in the tree for the ledger.

use std::net::{IpAddr, Ipv4Addr};

use super::{dtab::Dtab, name::Name, places::Lines, policy::Policy};
use crate::{
    source::{Place, Problem, Source},
    yaml::{self, Node},
};

/// A whole file.
#[derive(Debug, Clone)]
pub struct Config {
    /// As it is written.
    pub root: Node,
    /// In order of the file.
    pub namers: Vec<Namer>,
    /// In order of the file.
    pub routers: Vec<Router>,
}

/// One router.
#[derive(Debug, Clone)]
pub struct Router {
    /// As it is written.
    pub node: Node,
    /// `label`, or the name of the protocol.
    pub label: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// What all its service names begin with.
    pub dst_prefix: Name,
    /// Its own table.
    pub dtab: Dtab,
    /// The first that knows a request names it.
    pub identifiers: Vec<Identifier>,
    /// Who turns names into endpoints.
    pub interpreter: Interpreter,
    /// Where it listens.
    pub servers: Vec<Server>,
    /// By service name.
    pub service: Policy,
    /// By bound name.
    pub client: Policy,
}

/// Headers in which Linkerd is told of a request's context.
pub(super) const CONTEXT: [&str; 6] =
    ["dtab-local", "l5d-ctx-deadline", "l5d-ctx-dtab", "l5d-ctx-trace", "l5d-dtab", "l5d-sample"];

impl Router {
    /// Whether what clients say of the context counts nothing (`clearContext`).
    pub(super) fn clears_context(&self) -> bool {
        !self.servers.is_empty() && self.servers.iter().all(|server| server.clears_context)
    }
}

/// What a router speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// HTTP/2 and gRPC.
    H2,
    /// Thrift, mux or both: names are not those of HTTP.
    Rpc(String),
    /// A plugin's.
    Other(String),
}

/// Where a router listens.
#[derive(Debug, Clone)]
pub struct Server {
    /// As it is written.
    pub node: Node,
    /// Loopback where it is not said.
    pub ip: IpAddr,
    /// The protocol's where it is not said.
    pub port: u16,
    /// Headers `l5d-*` of clients are not believed.
    pub clears_context: bool,
}

/// How requests are named.
#[derive(Debug, Clone)]
pub struct Identifier {
    /// Where it is written; the router where it is not.
    pub place: Place,
    /// How.
    pub kind: IdentifierKind,
}

/// How requests are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentifierKind {
    /// `io.l5d.header.token`: the value is one label.
    HeaderToken(String),
    /// `io.l5d.header`: the value is a path.
    Header(String),
    /// `io.l5d.methodAndHost`, and whether the path follows.
    MethodAndHost(bool),
    /// `io.l5d.path`.
    Path {
        /// How many.
        segments: usize,
        /// The application does not get them.
        consume: bool,
    },
    /// `io.l5d.header.path`: a path in a header, its first segments or all.
    HeaderPath(String, Option<usize>),
    /// `io.l5d.static`.
    Static(Name),
    /// `io.l5d.ingress`.
    Ingress {
        /// Of the rules; all where absent.
        namespace: Option<String>,
        /// Of the annotation `kubernetes.io/ingress.class`.
        class: String,
        /// Whether `spec.backend` counts for nothing.
        ignores_default_backends: bool,
    },
    /// `io.l5d.k8s.istio`.
    Istio,
    /// A plugin's.
    Other(String),
}

/// Who turns names into endpoints.
#[derive(Debug, Clone)]
pub struct Interpreter {
    /// As it is written.
    pub node: Option<Node>,
    /// Which.
    pub kind: InterpreterKind,
    /// Applied to everything that it binds, in order.
    pub transformers: Vec<Transformer>,
}

/// Where a part of the table, or all of binding, is elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterpreterKind {
    /// `default`: here.
    Local,
    /// `io.l5d.fs`: a file holds the first part of the table.
    File(String),
    /// A store holds the first part of the table: `io.l5d.consul.interpreter`,
    /// `io.l5d.k8s.configMap`; with its key.
    Store(String),
    /// namerd holds the first part of the table and the namers: `io.l5d.namerd`,
    /// `io.l5d.namerd.http`, `io.l5d.mesh`; with the namespace.
    Namerd(String),
    /// `io.l5d.k8s.istio`, or a plugin's.
    Other(String),
}

/// One namer.
#[derive(Debug, Clone)]
pub struct Namer {
    /// As it is written.
    pub node: Node,
    /// Which.
    pub kind: String,
    /// `/#/` and the prefix: what its names begin with.
    pub prefix: Name,
    /// Applied to everything that it binds, in order.
    pub transformers: Vec<Transformer>,
}

/// What changes endpoints after binding.
#[derive(Debug, Clone)]
pub struct Transformer {
    /// Where it is written.
    pub place: Place,
    /// What it does.
    pub kind: TransformerKind,
}

/// What changes endpoints after binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransformerKind {
    /// Every endpoint gets this port.
    Port(u16),
    /// Only endpoints of this host stay.
    Localhost,
    /// Only endpoints of this address stay.
    SpecificHost(String),
    /// Every endpoint becomes the pod of the daemonset on its node.
    Daemonset {
        /// Of the service.
        namespace: String,
        /// Its port.
        port: String,
        /// Its name.
        service: String,
    },
    /// Only endpoints of this node stay.
    LocalNode,
    /// Another name, if there is one.
    Replace(Name),
    /// Always this name.
    Const(Name),
    /// A plugin's.
    Other(String),
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// It is no YAML, has no routers, or a value of the wrong kind.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let root = yaml::parse(source)?;
        let lines = Lines::of(source);
        root.map()?;
        let namers = read_namers(root.at("namers"))?;
        let Some(routers) = root.at("routers") else {
            let wrong = "expected `routers`, a list: is this a configuration of Linkerd 1.x?";
            return Err(Problem::at(&root.place, wrong));
        };
        if routers.list()?.is_empty() {
            return Err(Problem::at(
                &routers.place,
                "expected at least one router, and there is none",
            ));
        }
        let routers: Vec<_> =
            routers.list()?.iter().map(|node| router(node, &lines)).collect::<Result<_, _>>()?;
        for (at, router) in routers.iter().enumerate() {
            if routers[..at].iter().any(|other| other.label == router.label) {
                let wrong = format!("a second router {:?}: each needs a label", router.label);
                return Err(Problem::at(&router.node.place, wrong));
            }
        }
        Ok(Self { root, namers, routers })
    }
}

/// The list `namers` of a file of Linkerd or namerd.
pub(super) fn read_namers(node: Option<&Node>) -> Result<Vec<Namer>, Problem> {
    let Some(node) = node else { return Ok(Vec::new()) };
    node.list()?.iter().map(namer).collect()
}

fn namer(node: &Node) -> Result<Namer, Problem> {
    let kind = kind(node)?.ok_or_else(|| Problem::at(&node.place, "a namer needs a `kind`"))?;
    let prefix = match node.at("prefix") {
        Some(prefix) => name(prefix)?,
        None => Name::of(kind.split('/')),
    };
    let prefix = Name::of(["#"]).join(&prefix);
    let transformers = transformers(node.at("transformers"))?;
    Ok(Namer { node: node.clone(), kind, prefix, transformers })
}

fn router(node: &Node, lines: &Lines<'_>) -> Result<Router, Problem> {
    node.map()?;
    let Some(protocol) = text(node, "protocol")? else {
        return Err(Problem::at(&node.place, "a router needs a `protocol`: http, h2 or another"));
    };
    let label = text(node, "label")?.unwrap_or_else(|| protocol.clone());
    let protocol = match protocol.as_str() {
        "http" => Protocol::Http,
        "h2" => Protocol::H2,
        "thrift" | "mux" | "thriftmux" => Protocol::Rpc(protocol),
        _ => Protocol::Other(protocol),
    };
    let dst_prefix = match node.at("dstPrefix") {
        Some(prefix) => name(prefix)?,
        None => Name::of(["svc"]),
    };
    let dtab = match node.at("dtab").or_else(|| node.at("baseDtab")) {
        Some(dtab) => {
            let value =
                if matches!(dtab.value, yaml::Value::Null) { String::new() } else { dtab.text()? };
            Dtab::within(&lines.within(dtab, &value), &value)?
        }
        None => Dtab::default(),
    };
    let servers = match node.at("servers") {
        Some(list) => {
            list.list()?.iter().map(|s| server(s, &protocol)).collect::<Result<_, _>>()?
        }
        None => Vec::new(),
    };
    Ok(Router {
        node: node.clone(),
        label,
        dst_prefix,
        dtab,
        identifiers: identifiers(node, &protocol)?,
        interpreter: interpreter(node.at("interpreter"))?,
        servers,
        service: Policy::read(node.at("service"))?,
        client: Policy::read(node.at("client"))?,
        protocol,
    })
}

fn server(node: &Node, protocol: &Protocol) -> Result<Server, Problem> {
    let port = match node.at("port") {
        Some(port) => port.number()?,
        None => default_port(protocol),
    };
    let ip = match node.at("ip") {
        Some(ip) => {
            let text = ip.text()?;
            let ip_of = if text == "localhost" { "127.0.0.1" } else { text.as_str() };
            ip_of.parse().map_err(|_| ip.expected("an IP address"))?
        }
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
    };
    let clears_context = node.at("clearContext").map(Node::bool).transpose()?.unwrap_or(false);
    Ok(Server { node: node.clone(), ip, port, clears_context })
}

fn default_port(protocol: &Protocol) -> u16 {
    match protocol {
        Protocol::H2 => 4142,
        Protocol::Rpc(name) if name == "thrift" => 4114,
        Protocol::Rpc(name) if name == "mux" => 4141,
        Protocol::Rpc(_) => 4144,
        Protocol::Http | Protocol::Other(_) => 4140,
    }
}

fn identifiers(router: &Node, protocol: &Protocol) -> Result<Vec<Identifier>, Problem> {
    let default = match protocol {
        Protocol::Http => Some("Host"),
        Protocol::H2 => Some(":authority"),
        Protocol::Rpc(_) | Protocol::Other(_) => None,
    };
    let Some(node) = router.at("identifier") else {
        let token = |header: &str| IdentifierKind::HeaderToken(header.to_owned());
        let of = |header| Identifier { place: router.place.clone(), kind: token(header) };
        return Ok(default.map(of).into_iter().collect());
    };
    match &node.value {
        yaml::Value::List(list) => list.iter().map(|one| identifier(one, protocol)).collect(),
        _ => Ok(vec![identifier(node, protocol)?]),
    }
}

fn identifier(node: &Node, protocol: &Protocol) -> Result<Identifier, Problem> {
    let kind =
        kind(node)?.ok_or_else(|| Problem::at(&node.place, "an identifier needs a `kind`"))?;
    let host = if *protocol == Protocol::H2 { ":authority" } else { "Host" };
    let flag = |key: &str| node.at(key).map_or(Ok(false), Node::bool);
    let kind = match kind.as_str() {
        "io.l5d.header.token" | "io.l5d.headerToken" => {
            IdentifierKind::HeaderToken(text(node, "header")?.unwrap_or_else(|| host.into()))
        }
        "io.l5d.header" => {
            IdentifierKind::Header(text(node, "header")?.unwrap_or_else(|| "l5d-name".into()))
        }
        "io.l5d.methodAndHost" => IdentifierKind::MethodAndHost(flag("httpUriInDst")?),
        "io.l5d.path" => IdentifierKind::Path {
            segments: node.at("segments").map_or(Ok(1), Node::number)?,
            consume: flag("consume")?,
        },
        "io.l5d.header.path" | "io.l5d.headerPath" => {
            let header = text(node, "header")?.unwrap_or_else(|| ":path".into());
            IdentifierKind::HeaderPath(header, node.at("segments").map(Node::number).transpose()?)
        }
        "io.l5d.static" => match node.at("path") {
            Some(path) => IdentifierKind::Static(name(path)?),
            None => return Err(Problem::at(&node.place, "io.l5d.static needs a `path`")),
        },
        "io.l5d.ingress" | "io.l5d.http.ingress" | "io.l5d.h2.ingress" => IdentifierKind::Ingress {
            namespace: text(node, "namespace")?,
            class: text(node, "ingressClassAnnotation")?.unwrap_or_else(|| "linkerd".into()),
            ignores_default_backends: flag("ignoreDefaultBackends")?,
        },
        "io.l5d.k8s.istio" => IdentifierKind::Istio,
        _ => IdentifierKind::Other(kind),
    };
    Ok(Identifier { place: node.place.clone(), kind })
}

fn interpreter(node: Option<&Node>) -> Result<Interpreter, Problem> {
    let Some(node) = node else {
        let kind = InterpreterKind::Local;
        return Ok(Interpreter { node: None, kind, transformers: Vec::new() });
    };
    let namespace = || Ok(text(node, "namespace")?.unwrap_or_else(|| "default".into()));
    let kind = match kind(node)?.as_deref() {
        None | Some("default") => InterpreterKind::Local,
        Some("io.l5d.fs") => match text(node, "dtabFile")? {
            Some(file) => InterpreterKind::File(file),
            None => return Err(Problem::at(&node.place, "io.l5d.fs needs a `dtabFile`")),
        },
        Some("io.l5d.consul.interpreter") => InterpreterKind::Store(namespace()?),
        Some("io.l5d.k8s.configMap") => {
            let part = |key: &str| Ok(text(node, key)?.unwrap_or_default());
            InterpreterKind::Store(format!(
                "{}/{}/{}",
                namespace()?,
                part("name")?,
                part("filename")?
            ))
        }
        Some("io.l5d.namerd" | "io.l5d.namerd.http") => InterpreterKind::Namerd(namespace()?),
        Some("io.l5d.mesh") => {
            let root = text(node, "root")?.unwrap_or_else(|| "/default".into());
            InterpreterKind::Namerd(root.trim_start_matches('/').to_owned())
        }
        Some(other) => InterpreterKind::Other(other.to_owned()),
    };
    let transformers = transformers(node.at("transformers"))?;
    Ok(Interpreter { node: Some(node.clone()), kind, transformers })
}

fn transformers(node: Option<&Node>) -> Result<Vec<Transformer>, Problem> {
    let Some(node) = node else { return Ok(Vec::new()) };
    node.list()?.iter().map(transformer).collect()
}

fn transformer(node: &Node) -> Result<Transformer, Problem> {
    let kind =
        kind(node)?.ok_or_else(|| Problem::at(&node.place, "a transformer needs a `kind`"))?;
    let needs = |key: &str| {
        node.at(key).ok_or_else(|| Problem::at(&node.place, format!("{kind} needs `{key}`")))
    };
    let kind = match kind.as_str() {
        "io.l5d.port" => TransformerKind::Port(needs("port")?.number()?),
        "io.l5d.localhost" => TransformerKind::Localhost,
        "io.l5d.specificHost" => TransformerKind::SpecificHost(needs("host")?.text()?),
        "io.l5d.k8s.daemonset" => TransformerKind::Daemonset {
            namespace: needs("namespace")?.text()?,
            port: needs("port")?.text()?,
            service: needs("service")?.text()?,
        },
        "io.l5d.k8s.localnode" => TransformerKind::LocalNode,
        "io.l5d.replace" => TransformerKind::Replace(name(needs("path")?)?),
        "io.l5d.const" => TransformerKind::Const(name(needs("path")?)?),
        _ => TransformerKind::Other(kind),
    };
    Ok(Transformer { place: node.place.clone(), kind })
}

/// `kind` of an object.
pub(super) fn kind(node: &Node) -> Result<Option<String>, Problem> {
    node.map()?;
    text(node, "kind")
}

/// Text of a key.
pub(super) fn text(node: &Node, key: &str) -> Result<Option<String>, Problem> {
    match node.at(key) {
        Some(Node { value: yaml::Value::Null, .. }) | None => Ok(None),
        Some(value) => value.text().map(Some),
    }
}

fn name(node: &Node) -> Result<Name, Problem> {
    Name::read(&node.text()?).map_err(|wrong| Problem::at(&node.place, wrong))
}
