//! From and to the messages of `mesh-api`. One `TryFrom` per type; nothing
//! that came over a network reaches the rest of the crate unparsed.
//!
//! Decoding never panics and never keeps more than the limits below allow.
//! Unknown enum values fall back where that is safe (a protocol is detected, a
//! health is unknown) and are refused where it is not (a pinned transport).

mod access;
mod balance;
mod connect;
mod connection;
mod endpoint;
mod extension;
mod headers;
mod health;
mod protection;
mod rule;
mod service;
mod traced;

use std::{fmt::Display, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use mesh_api::v1;
use rustls_pki_types::CertificateDer;

use balance::balance;
pub use connect::BadConnect;
pub(crate) use service::{policy_domains, service};

use crate::{
    identity::{Retiring, Revoked, TrustBundle, canonical_serial},
    jwt::JwtKey,
    name::{EndpointId, GatewayId, ServiceName, SiteName, TrustDomain},
    service::{Gateway, Link, LinkTransport, Locality},
    snapshot::Revision,
};

/// Ports of one service.
pub const MAX_PORTS: usize = 64;
/// Routes of one service.
pub const MAX_ROUTES: usize = 1024;
/// Matches of one route.
pub const MAX_MATCHES: usize = 64;
/// Header or query conditions of one match.
pub const MAX_HEADERS: usize = 16;
/// Header changes of one kind, and headers of an answer: Gateway API's routes in a
/// cluster have 16 of them at most, files may have more.
pub const MAX_CHANGES: usize = 64;
/// Conditional changes of headers of one rule.
pub const MAX_CONDITIONAL: usize = 64;
/// Host names of one route.
pub const MAX_HOSTNAMES: usize = 16;
/// Mirrors of one route.
pub const MAX_MIRRORS: usize = 4;
/// Ranges of statuses, or gRPC codes, in one list.
pub const MAX_STATUSES: usize = 32;
/// Rate limits of one service.
pub const MAX_RATE_LIMITS: usize = 32;
/// Backends of one route.
pub const MAX_BACKENDS: usize = 64;
/// Principals of one rule about callers.
pub const MAX_PRINCIPALS: usize = 256;
/// Rules about callers of one service.
pub const MAX_ACCESS_RULES: usize = 256;
/// Networks of one rule about callers, and exceptions of one network.
pub const MAX_NETWORKS: usize = 64;
/// Sites in one list.
pub const MAX_SITES: usize = 1024;
/// Gateways that hold a session of one node.
pub const MAX_VIA: usize = 16;
/// Listener addresses of one gateway and transport.
pub const MAX_ADDRESSES: usize = 16;
/// Roots of one bundle; two while rotating, more only by accident.
pub const MAX_ROOTS: usize = 16;
/// Keys for JWT-SVIDs of one bundle; two while rotating.
pub const MAX_JWT_KEYS: usize = 16;
/// Bytes of one root certificate.
pub const MAX_ROOT_LEN: usize = 16_384;
/// Bytes of a region, zone, host or route name.
pub const MAX_TEXT: usize = 253;
/// Bytes of a path or header value in a route.
pub const MAX_MATCH_TEXT: usize = 4096;
/// Bytes of an answer that a rule gives itself.
pub const MAX_REPLY: usize = 4096;
/// Bytes of a `host:port`: a DNS name, brackets, a colon and five digits.
pub const MAX_ADDRESS: usize = 261;

/// A message that does not mean anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// The field, as the `.proto` calls it.
    pub field: &'static str,
    /// Which rule it breaks.
    pub problem: String,
}

pub(crate) fn wrong(field: &'static str, problem: impl Display) -> WireError {
    WireError { field, problem: problem.to_string() }
}

fn parse<T: FromStr<Err: Display>>(field: &'static str, value: &str) -> Result<T, WireError> {
    value.parse().map_err(|error| wrong(field, error))
}

fn at_most<T>(field: &'static str, items: &[T], max: usize) -> Result<(), WireError> {
    if items.len() > max {
        return Err(wrong(field, format_args!("{} are more than {max}", items.len())));
    }
    Ok(())
}

/// Free text that ends up in logs and tables: short, without control
/// characters.
fn text(field: &'static str, value: &str, max: usize) -> Result<Arc<str>, WireError> {
    if value.len() > max {
        return Err(wrong(field, format_args!("is longer than {max} bytes")));
    }
    if value.chars().any(char::is_control) {
        return Err(wrong(field, "holds control characters"));
    }
    Ok(value.into())
}

/// Milliseconds as they travel; 0 is none.
fn millis(value: u64) -> Option<Duration> {
    (value != 0).then(|| Duration::from_millis(value))
}

fn to_millis(value: Option<Duration>) -> u64 {
    value.map_or(0, |value| u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
}

/// A host name, an empty value for none.
fn host_name(field: &'static str, value: &str) -> Result<Option<Arc<str>>, WireError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if value.len() > MAX_TEXT || !value.bytes().all(allowed) {
        return Err(wrong(field, "must be a host name"));
    }
    Ok((!value.is_empty()).then(|| value.into()))
}

/// A host name, perhaps with a port; an empty value for none.
fn host_and_port(field: &'static str, value: &str) -> Result<Option<Arc<str>>, WireError> {
    let Some((name, port)) = value.split_once(':') else { return host_name(field, value) };
    if port.parse::<u16>().is_err() || host_name(field, name)?.is_none() {
        return Err(wrong(field, "must be a host name, or one with a port"));
    }
    Ok(Some(value.into()))
}

/// An `ip:port` that can be dialled.
fn socket_address(field: &'static str, value: &str) -> Result<SocketAddr, WireError> {
    let addr: SocketAddr = value.parse().map_err(|_| wrong(field, "must be ip:port"))?;
    if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
        return Err(wrong(field, "is not an address that can be dialled"));
    }
    Ok(addr)
}

/// The same, with an empty value for none.
fn optional_address(field: &'static str, value: &str) -> Result<Option<SocketAddr>, WireError> {
    if value.is_empty() { Ok(None) } else { socket_address(field, value).map(Some) }
}

/// A `host:port` where the host may be a name.
fn host_port(field: &'static str, value: &str) -> Result<Arc<str>, WireError> {
    let problem = || wrong(field, "must be host:port");
    let (host, port) = value.rsplit_once(':').ok_or_else(problem)?;
    let port_ok = port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_ok =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || !port_ok || value.len() > MAX_ADDRESS || !host.bytes().all(host_ok) {
        return Err(problem());
    }
    Ok(value.into())
}

fn list<T: Ord, C: FromIterator<T>>(
    field: &'static str,
    values: &[String],
    max: usize,
    one: impl Fn(&'static str, &str) -> Result<T, WireError>,
) -> Result<C, WireError> {
    at_most(field, values, max)?;
    values.iter().map(|value| one(field, value)).collect()
}

impl From<v1::Revision> for Revision {
    fn from(message: v1::Revision) -> Self {
        Self { epoch: message.epoch, n: message.n }
    }
}

impl From<Revision> for v1::Revision {
    fn from(revision: Revision) -> Self {
        Self { epoch: revision.epoch, n: revision.n }
    }
}

impl TryFrom<&v1::Locality> for Locality {
    type Error = WireError;

    fn try_from(message: &v1::Locality) -> Result<Self, WireError> {
        Ok(Self {
            region: text("locality.region", &message.region, MAX_TEXT)?,
            zone: text("locality.zone", &message.zone, MAX_TEXT)?,
            host: text("locality.host", &message.host, MAX_TEXT)?,
        })
    }
}

impl From<&Locality> for v1::Locality {
    fn from(locality: &Locality) -> Self {
        Self {
            region: locality.region.to_string(),
            zone: locality.zone.to_string(),
            host: locality.host.to_string(),
        }
    }
}

impl TryFrom<&v1::Bundle> for TrustBundle {
    type Error = WireError;

    fn try_from(message: &v1::Bundle) -> Result<Self, WireError> {
        at_most("roots", &message.roots, MAX_ROOTS)?;
        if message.roots.is_empty() {
            return Err(wrong("roots", "a bundle has at least one root"));
        }
        if message.roots.iter().any(|root| root.is_empty() || root.len() > MAX_ROOT_LEN) {
            return Err(wrong("roots", format_args!("a root has 1 to {MAX_ROOT_LEN} bytes")));
        }
        Ok(Self {
            trust_domain: parse("trust_domain", &message.trust_domain)?,
            sequence: message.sequence,
            roots: message.roots.iter().map(|root| CertificateDer::from(root.clone())).collect(),
            // What is no hash names no root.
            retiring: message.retiring.as_slice().try_into().ok().map(|spki_sha256| Retiring {
                spki_sha256,
                within: Duration::from_secs(u64::from(message.renew_within_s)),
            }),
            jwt_keys: jwt_keys(&message.jwt_keys)?,
        })
    }
}

/// Keys of kinds of a later version verify nothing here.
fn jwt_keys(messages: &[v1::JwtKey]) -> Result<Vec<JwtKey>, WireError> {
    at_most("jwt_keys", messages, MAX_JWT_KEYS)?;
    let known = messages.iter().filter(|key| !key.p256.is_empty());
    known
        .map(|key| {
            let read = JwtKey::new(&key.kid, &key.p256);
            read.ok_or_else(|| wrong("jwt_keys", "a key has a name and an uncompressed point"))
        })
        .collect()
}

impl From<&TrustBundle> for v1::Bundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self {
            trust_domain: bundle.trust_domain.to_string(),
            sequence: bundle.sequence,
            roots: bundle.roots.iter().map(|root| root.to_vec()).collect(),
            retiring: bundle.retiring.iter().flat_map(|root| root.spki_sha256).collect(),
            renew_within_s: bundle
                .retiring
                .as_ref()
                .map_or(0, |root| u32::try_from(root.within.as_secs()).unwrap_or(u32::MAX)),
            jwt_keys: bundle.jwt_keys.iter().map(v1::JwtKey::from).collect(),
        }
    }
}

impl From<&JwtKey> for v1::JwtKey {
    fn from(key: &JwtKey) -> Self {
        Self { kid: key.kid.to_string(), p256: key.point().to_vec(), ..Self::default() }
    }
}

impl TryFrom<&v1::Gateway> for Gateway {
    type Error = WireError;

    fn try_from(message: &v1::Gateway) -> Result<Self, WireError> {
        Ok(Self {
            id: parse("id", &message.id)?,
            site: parse("site", &message.site)?,
            quic_addresses: list(
                "quic_addresses",
                &message.quic_addresses,
                MAX_ADDRESSES,
                host_port,
            )?,
            tls_addresses: list("tls_addresses", &message.tls_addresses, MAX_ADDRESSES, host_port)?,
        })
    }
}

impl From<&Gateway> for v1::Gateway {
    fn from(gateway: &Gateway) -> Self {
        let strings = |addresses: &[Arc<str>]| addresses.iter().map(|a| a.to_string()).collect();
        Self {
            id: gateway.id.to_string(),
            site: gateway.site.to_string(),
            quic_addresses: strings(&gateway.quic_addresses),
            tls_addresses: strings(&gateway.tls_addresses),
        }
    }
}

impl TryFrom<&v1::Link> for Link {
    type Error = WireError;

    fn try_from(message: &v1::Link) -> Result<Self, WireError> {
        // Guessing would undo a pin.
        let transport = v1::LinkTransport::try_from(message.transport)
            .map_err(|_| wrong("transport", "unsupported: this version does not know it"))?;
        Ok(Self {
            site: parse("site", &message.site)?,
            trust_domain: parse("trust_domain", &message.trust_domain)?,
            dial: message.dial,
            transport: transport.into(),
        })
    }
}

impl From<&Link> for v1::Link {
    fn from(link: &Link) -> Self {
        Self {
            site: link.site.to_string(),
            trust_domain: link.trust_domain.to_string(),
            dial: link.dial,
            transport: v1::LinkTransport::from(link.transport).into(),
        }
    }
}

impl From<v1::LinkTransport> for LinkTransport {
    fn from(message: v1::LinkTransport) -> Self {
        match message {
            v1::LinkTransport::Unspecified => Self::Raced,
            v1::LinkTransport::Quic => Self::Quic,
            v1::LinkTransport::Tls => Self::Tls,
        }
    }
}

impl From<LinkTransport> for v1::LinkTransport {
    fn from(transport: LinkTransport) -> Self {
        match transport {
            LinkTransport::Raced => Self::Unspecified,
            LinkTransport::Quic => Self::Quic,
            LinkTransport::Tls => Self::Tls,
        }
    }
}

/// The site that a snapshot describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRecord {
    /// What it calls itself.
    pub name: SiteName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Federation's gRPC listener; told to gateways only.
    pub federation: Option<SocketAddr>,
}

impl TryFrom<&v1::Site> for SiteRecord {
    type Error = WireError;

    fn try_from(message: &v1::Site) -> Result<Self, WireError> {
        Ok(Self {
            name: parse("name", &message.name)?,
            trust_domain: parse("trust_domain", &message.trust_domain)?,
            federation: optional_address("federation_address", &message.federation_address)?,
        })
    }
}

impl From<&SiteRecord> for v1::Site {
    fn from(site: &SiteRecord) -> Self {
        Self {
            name: site.name.to_string(),
            trust_domain: site.trust_domain.to_string(),
            federation_address: site.federation.map(|a| a.to_string()).unwrap_or_default(),
        }
    }
}

impl FromStr for Revoked {
    type Err = WireError;

    /// A SPIFFE ID, `node:<uuid>` or `serial:<hex>`.
    fn from_str(subject: &str) -> Result<Self, WireError> {
        const FIELD: &str = "subject";
        if let Some(node) = subject.strip_prefix("node:") {
            return parse(FIELD, node).map(Self::Node);
        }
        if let Some(serial) = subject.strip_prefix("serial:") {
            return canonical_serial(serial)
                .map(Self::Serial)
                .ok_or_else(|| wrong(FIELD, "a serial is 2 to 42 hex digits"));
        }
        parse(FIELD, subject).map(Self::Identity)
    }
}

impl Display for Revoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(id) => write!(f, "{id}"),
            Self::Node(node) => write!(f, "node:{node}"),
            Self::Serial(serial) => write!(f, "serial:{serial}"),
        }
    }
}

/// What a delta removes, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// A service with its endpoints.
    Service(ServiceName),
    /// One endpoint.
    Endpoint(SiteName, EndpointId),
    /// The roots of a trust domain.
    Bundle(TrustDomain),
    /// One gateway.
    Gateway(SiteName, GatewayId),
    /// The link to a site.
    Link(SiteName),
    /// A revocation that no longer matters: what it named has ended.
    Revocation(Revoked),
}

impl Key {
    /// `None` for a kind that this version does not know; it holds none.
    pub fn read(message: &v1::ResourceKey) -> Result<Option<Self>, WireError> {
        use v1::ResourceKind as Kind;
        const FIELD: &str = "remove.name";
        let name = message.name.as_str();
        let pair = || name.split_once('/').ok_or_else(|| wrong(FIELD, "must be <site>/<id>"));
        let Ok(kind) = Kind::try_from(message.kind) else { return Ok(None) };
        Ok(Some(match kind {
            Kind::Unspecified => return Ok(None),
            Kind::Site => return Err(wrong(FIELD, "a site cannot be removed")),
            Kind::Service => Self::Service(parse(FIELD, name)?),
            Kind::Endpoint => {
                let (site, id) = pair()?;
                Self::Endpoint(parse(FIELD, site)?, parse(FIELD, id)?)
            }
            Kind::Bundle => Self::Bundle(parse(FIELD, name)?),
            Kind::Gateway => {
                let (site, id) = pair()?;
                Self::Gateway(parse(FIELD, site)?, parse(FIELD, id)?)
            }
            Kind::Link => Self::Link(parse(FIELD, name)?),
            Kind::Revocation => Self::Revocation(name.parse()?),
        }))
    }
}

impl From<&Key> for v1::ResourceKey {
    fn from(key: &Key) -> Self {
        use v1::ResourceKind as Kind;
        let (kind, name) = match key {
            Key::Service(name) => (Kind::Service, name.to_string()),
            Key::Endpoint(site, id) => (Kind::Endpoint, format!("{site}/{id}")),
            Key::Bundle(domain) => (Kind::Bundle, domain.to_string()),
            Key::Gateway(site, id) => (Kind::Gateway, format!("{site}/{id}")),
            Key::Link(site) => (Kind::Link, site.to_string()),
            Key::Revocation(revoked) => (Kind::Revocation, revoked.to_string()),
        };
        Self { kind: kind.into(), name }
    }
}

#[cfg(test)]
mod tests;
